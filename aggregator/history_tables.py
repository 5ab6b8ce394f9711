"""Tables of daily market history: checked closes and values in, daily changes out.

Host code on NumPy and Arrow. A bar is dated by its open time and covers one UTC day, so it is known one day after its
date. Changes are per day, arrays [dates, assets] or [dates]; NaN is a missing change, never zero and never the change
over a longer gap. Rows that cannot be used become `Failure`s, and the changes next to them are missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from .errors import ConfigurationError, DataError, Failure, FailureReason

ANCHORS = ("BTC", "ETH")
"""Assets whose dates are the dates of the panel, and on which shorter histories are loaded."""

MARKETS = ("perp", "spot")
"""Which market's closes stand for an asset, most preferred first."""

IMPLIED_VOL_SERIES = "dvol_close"
"""Series of the context table with the 30-day implied volatility of an underlying."""

FLAT_RUN = 3
"""That many equal closes in a row are a price that is no longer made; the repetitions are rejected."""

_DAY_US = 86_400_000_000


class JointSeries(NamedTuple):
    """Where the daily values of a factor stand in a context table, and how they change.

    "log" is for values that are positive (a depth, the price of a stablecoin), "difference" for those that may be zero
    or negative (a funding rate, a basis).
    """

    asset: str
    series: str
    change: Literal["log", "difference"]


@dataclass(frozen=True, slots=True)
class ReturnPanel:
    """Daily log returns [dates, assets] on the dates at which every anchor has one; NaN where missing.

    `markets` says which market an asset's closes come from ("" for none, "perp+spot" for a splice); `anchors` are the
    columns of the anchors.
    """

    dates: np.ndarray
    assets: tuple[str, ...]
    returns: np.ndarray
    markets: tuple[str, ...]
    anchors: tuple[int, ...]


def read_history_table(path: str | Path) -> pa.Table:
    """The table in a Parquet, CSV (.csv, .csv.gz) or Arrow (.arrow, .feather) file; ConfigurationError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"market history {path} does not exist")
    name = path.name.lower()
    if name.endswith((".parquet", ".pq")):
        return pa.parquet.read_table(path)
    if name.endswith((".csv", ".csv.gz")):
        # numbers stay text so that one bad cell is one failure instead of an unreadable file
        types = {"close": pa.string(), "value": pa.string()}
        options = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        return pa.csv.read_csv(path, convert_options=options)
    if name.endswith((".arrow", ".feather")):
        return pa.feather.read_table(path)
    raise ConfigurationError(f"market history {path} is not Parquet, CSV or Arrow by its suffix")


def return_panel(
    table: pa.Table,
    assets: Sequence[str],
    *,
    as_of: datetime | None = None,
    anchors: Sequence[str] = ANCHORS,
    markets: Sequence[str] = MARKETS,
    splice: bool = False,
    payload: str = "market history",
) -> tuple[ReturnPanel, tuple[Failure, ...]]:
    """Returns of the anchors and `assets` from a table with columns asset, market, ts (open time), close.

    Bars that are not complete at `as_of` are cut, and so is a last bar whose `nbars` (if the table has it) is below
    that of the full bars of its series. An asset takes the first of `markets` that has a row; with `splice`, dates
    without a return there take that of the next market (returns are joined, levels never). A row that cannot be used is
    no failure where preferred markets have the returns that it would have given. Order of rows does not matter. An
    asset without rows has an empty column. Failures name asset, market and date; all copies of a duplicate are
    rejected. Raises DataError when a column or an anchor is missing or the bars are not daily.
    """
    names = tuple(dict.fromkeys((*anchors, *assets)))
    series, failures = daily_series(
        table, names, label="market", value="close", labels=markets, every_label=splice, as_of=as_of, payload=payload
    )
    if not series:
        raise DataError(_anchor_failure(anchors[0], payload))
    start = min(int(days[0]) for days, _ in series.values())
    end = max(int(days[-1]) for days, _ in series.values())
    returns = np.full((end - start + 1, len(names)), np.nan)
    used: list[str] = []
    unused: set[str] = set()
    for column, asset in enumerate(names):
        sources = [market for market in markets if (asset, market) in series]
        for market in sources:
            days, closes = series[asset, market]
            own = _daily_changes(days, closes, start, len(returns))
            gaps = np.isnan(returns[:, column])
            returns[gaps, column] = own[gaps]
            # a close enters the return of its day and of the next one
            idle = ~gaps & ~np.append(gaps[1:], False)
            rejected = days[np.isnan(closes)]
            dates_of = rejected[idle[rejected - start]].astype("datetime64[D]")
            unused.update(_row_path(asset, market, day) for day in dates_of)
        used.append("+".join(sources))
    columns = tuple(names.index(anchor) for anchor in anchors)
    kept = np.isfinite(returns[:, columns]).all(axis=1)
    if not kept.any():
        lacking = [a for a, c in zip(anchors, columns, strict=True) if not np.isfinite(returns[:, c]).any()]
        raise DataError(_anchor_failure((lacking or list(anchors))[0], payload))
    dates = (np.flatnonzero(kept) + start).astype("datetime64[D]")
    felt = tuple(failure for failure in failures if failure.path not in unused)
    return ReturnPanel(dates, names, returns[kept], tuple(used), columns), felt


def implied_vol_changes(
    table: pa.Table,
    underlyings: Sequence[str],
    *,
    dates: np.ndarray,
    as_of: datetime | None = None,
    series: str = IMPLIED_VOL_SERIES,
    payload: str = "market context",
) -> tuple[dict[str, np.ndarray], tuple[Failure, ...]]:
    """Daily log-changes [dates] of the implied volatilities that a context table (asset, series, ts, value) has.

    A value is dated like a bar: it closes the day that opens at ts. Underlyings without a row are absent.
    """
    found, failures = daily_series(
        table, underlyings, label="series", value="value", labels=(series,), every_label=False, as_of=as_of,
        payload=payload,
    )  # fmt: skip
    positions = dates.astype("datetime64[D]").astype(np.int64)
    first = int(positions[0])
    length = int(positions[-1]) - first + 1
    changes = {}
    for (asset, _), (days, values) in found.items():
        changes[asset] = _daily_changes(days, values, first, length)[positions - first]
    return changes, failures


def joint_changes(
    table: pa.Table,
    series: Mapping[str, JointSeries],
    *,
    dates: np.ndarray,
    as_of: datetime | None = None,
    payload: str = "market context",
) -> tuple[dict[str, np.ndarray], tuple[Failure, ...]]:
    """Daily changes [dates] of each factor of `series` that a context table (asset, series, ts, value) has.

    Values are dated like those of `implied_vol_changes`. Factors without a row are absent.
    """
    positions = dates.astype("datetime64[D]").astype(np.int64)
    first = int(positions[0])
    changes: dict[str, np.ndarray] = {}
    failures: list[Failure] = []
    for factor, source in series.items():
        if source.change not in ("log", "difference"):
            raise ConfigurationError(f"change of {factor} is {source.change!r}; expected 'log' or 'difference'")
        logarithmic = source.change == "log"
        found, rejected = daily_series(
            table, (source.asset,), label="series", value="value", labels=(source.series,), every_label=False,
            as_of=as_of, payload=payload, positive=logarithmic,
        )  # fmt: skip
        failures.extend(rejected)
        for days, values in found.values():
            every_day = _daily_changes(days, values, first, int(positions[-1]) - first + 1, logarithmic=logarithmic)
            changes[factor] = every_day[positions - first]
    return changes, tuple(failures)


def daily_series(
    table: pa.Table,
    assets: Sequence[str],
    *,
    label: str,
    value: str,
    labels: Sequence[str],
    every_label: bool,
    as_of: datetime | None,
    payload: str,
    positive: bool = True,
) -> tuple[dict[tuple[str, str], tuple[np.ndarray, np.ndarray]], tuple[Failure, ...]]:
    """Days since 1970, ascending, and positive values of each (asset, label) in use; and what was rejected.

    `label` is the column that tells an asset's series apart, `labels` those wanted, most preferred first: without
    `every_label` an asset has the first that it has rows of. Bars that are not complete at `as_of` are cut. A rejected
    row keeps its day with the value NaN, so that a gap does not move. With `positive` False values may have any sign
    and repeat (a rate at its cap), else both are rejected. Raises DataError when a column is missing or most rows do
    not open at 00:00 UTC.
    """
    for column in ("asset", label, "ts", value):
        if column not in table.column_names:
            message = f"the table has no column {column}; it has {', '.join(table.column_names)}"
            raise DataError(Failure(FailureReason.MISSING_FIELD, message, payload=payload, path=column))
    wanted = pa.array(list(dict.fromkeys(assets)), type=pa.string())
    table = table.filter(pc.is_in(pc.cast(table["asset"], pa.string()), value_set=wanted))
    asset_of, label_of = column_texts(table["asset"]), column_texts(table[label])
    opened = column_microseconds(table["ts"])
    known = opened != np.iinfo(np.int64).min
    cut = np.iinfo(np.int64).max if as_of is None else _instant(as_of)
    complete = ~known | (opened <= cut - _DAY_US)
    off_grid = known & (opened % _DAY_US != 0)
    if 2 * np.count_nonzero(off_grid) > max(1, len(opened)):
        message = "most rows do not open at 00:00 UTC; expected one bar per asset, market and UTC day"
        raise DataError(Failure(FailureReason.MALFORMED, message, payload=payload, path="ts"))
    absent, numbers = column_numbers(table[value])
    bars = None
    if "nbars" in table.column_names:
        bars = column_numbers(table["nbars"])[1]

    series = {}
    failures: list[Failure] = []
    for asset in dict.fromkeys(assets):
        rows_of_asset = np.flatnonzero((asset_of == asset) & complete)
        for name in labels:
            rows = rows_of_asset[label_of[rows_of_asset] == name]
            if not len(rows):
                continue
            rows = rows[np.argsort(opened[rows], kind="stable")]
            if bars is not None:
                while len(rows) and known[rows[-1]] and bars[rows[-1]] < np.nanmax(bars[rows]):
                    rows = rows[:-1]
            days = opened[rows] // _DAY_US
            values = numbers[rows].copy()
            reasons = np.full(len(rows), "", object)
            _mark(reasons, ~known[rows], FailureReason.MISSING_FIELD)
            _mark(reasons, off_grid[rows], FailureReason.MALFORMED)
            _mark(reasons, _repeated(days), FailureReason.DUPLICATE)
            _mark(reasons, absent[rows], FailureReason.MISSING_FIELD)
            _mark(reasons, ~np.isfinite(values), FailureReason.NOT_A_NUMBER)
            if positive:
                with np.errstate(invalid="ignore"):
                    _mark(reasons, values <= 0.0, FailureReason.OUT_OF_RANGE)
                _mark(reasons, _flat(days, values, reasons == ""), FailureReason.STALE)
            failures.extend(
                _row_failure(reasons[i], asset, name, value, opened[rows[i]], float(values[i]), payload)
                for i in np.flatnonzero(reasons != "")
            )
            usable = known[rows] & ~off_grid[rows]
            values[reasons != ""] = np.nan
            days, first = np.unique(days[usable], return_index=True)
            if len(days):
                series[asset, name] = days, values[usable][first]
            if not every_label:
                break
    return series, tuple(failures)


def _mark(reasons: np.ndarray, where: np.ndarray, reason: FailureReason) -> None:
    reasons[where & (reasons == "")] = reason


def _repeated(days: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(days, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def _flat(days: np.ndarray, values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Repetitions of a value in runs of at least FLAT_RUN consecutive days."""
    same = np.zeros(len(values), bool)
    same[1:] = usable[1:] & usable[:-1] & (values[1:] == values[:-1]) & (np.diff(days) == 1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    flat = np.zeros(len(values), bool)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        flat[begin:end] = end - begin + 1 >= FLAT_RUN
    return flat


def _row_failure(
    reason: FailureReason, asset: str, label: str, column: str, opened: int, value: float, payload: str
) -> Failure:
    day = np.datetime64(int(opened), "us").astype("datetime64[D]")
    text = {
        FailureReason.MISSING_FIELD: "has no open time or no value",
        FailureReason.MALFORMED: "does not open at 00:00 UTC",
        FailureReason.DUPLICATE: "is given more than once; all copies are rejected",
        FailureReason.NOT_A_NUMBER: "is not a finite number",
        FailureReason.OUT_OF_RANGE: f"is {value!r}; expected a positive number",
        FailureReason.STALE: f"repeats {value!r} for {FLAT_RUN} days or more",
    }[reason]
    message = f"{column} of {asset} {label} on {day} {text}"
    return Failure(reason, message, payload=payload, path=_row_path(asset, label, day), subject=asset)


def _row_path(asset: str, label: str, day: np.datetime64) -> str:
    return f"{asset}/{label}/{day}"


def _anchor_failure(anchor: str, payload: str) -> Failure:
    message = f"anchor {anchor} has no daily returns; the dates of the panel are those of the anchors"
    return Failure(FailureReason.MISSING_PARAMETER, message, payload=payload, subject=anchor)


def _daily_changes(
    days: np.ndarray, values: np.ndarray, start: int, length: int, *, logarithmic: bool = True
) -> np.ndarray:
    """Changes [length] from one calendar day to the next, position 0 being day `start`; NaN across a gap."""
    changes = np.full(length, np.nan)
    change = np.diff(np.log(values) if logarithmic else values)
    position = days[1:] - start
    usable = (np.diff(days) == 1) & (position >= 0) & (position < length)
    changes[position[usable]] = change[usable]
    return changes


def column_microseconds(column: pa.ChunkedArray) -> np.ndarray:
    """Microseconds since 1970 UTC (naive times are UTC), the smallest int64 for null."""
    if pa.types.is_date(column.type) or pa.types.is_string(column.type):
        column = pc.cast(column, pa.timestamp("us"))
    column = pc.cast(column, pa.timestamp("us", tz=getattr(column.type, "tz", None)))
    return column.combine_chunks().to_numpy(zero_copy_only=False).astype("datetime64[us]").astype(np.int64)


def column_texts(column: pa.ChunkedArray) -> np.ndarray:
    """The cells as an object array of texts, None for null."""
    return np.asarray(pc.cast(column, pa.string()).to_pylist(), dtype=object)


def column_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Which cells are null, and the values as float64 with NaN for a null or a text that is no number."""
    absent = pc.is_null(column).combine_chunks().to_numpy(zero_copy_only=False)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = np.array([_number(text) for text in column.to_pylist()], dtype=np.float64)
    else:
        filled = pc.cast(column, pa.float64()).combine_chunks()
        values = filled.to_numpy(zero_copy_only=False).astype(np.float64)
    return absent, values


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _instant(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise ConfigurationError(f"as_of {moment.isoformat()} has no time zone")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
