"""What the calibration reads: the tables cut at as_of, as arrays on the dates of the panel, and who has no law and why.

The cut comes first, so that nothing later than as_of can reach a choice or a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataError, Failure, FailureReason
from ..history_tables import (
    ReturnPanel,
    column_microseconds,
    column_numbers,
    column_texts,
    daily_series,
    implied_vol_changes,
    return_panel,
)

MAXIMUM_AGE_DAYS = 7
"""A history that ends earlier before the end of the panel is stale."""

FUNDING_SERIES = "funding_8h"

_DAY_US = 86_400_000_000
_BAR_COLUMNS = ("open", "high", "low", "close", "volume", "quote_vol")


@dataclass(frozen=True, slots=True)
class Sample:
    """Daily log returns [dates, assets] of the assets that have a law, anchors first; NaN where missing.

    `volume_usd` [dates, assets] is quote volume (NaN where unknown), `bars` the open, high, low and close [4, dates,
    assets] as they stand in the table, `vol_changes` log changes [dates] of implied volatilities by underlying.
    `refused` says why an asset has no law; `failures` are rows that cannot be used and requests that cannot be met.
    """

    dates: np.ndarray
    assets: tuple[str, ...]
    markets: tuple[str, ...]
    returns: np.ndarray
    volume_usd: np.ndarray
    bars: np.ndarray
    vol_changes: dict[str, np.ndarray]
    refused: dict[str, str]
    failures: tuple[Failure, ...]


def table_until(table: pa.Table, as_of: datetime, *, span_us: int, payload: str) -> pa.Table:
    """Rows whose time plus `span_us` is not after as_of, and rows without a time (they become failures later)."""
    if "ts" not in table.column_names:
        message = f"the table has no column ts; it has {', '.join(table.column_names)}"
        raise DataError(Failure(FailureReason.MISSING_FIELD, message, payload=payload, path="ts"))
    opened = column_microseconds(table["ts"])
    cut = int((as_of - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
    known = opened != np.iinfo(np.int64).min
    return table.filter(pa.array(~known | (opened <= cut - span_us)))


def read_sample(
    history: pa.Table,
    context: pa.Table | None,
    *,
    as_of: datetime,
    assets: Sequence[str],
    anchors: Sequence[str],
    markets: Sequence[str],
    vols: Sequence[str],
    not_priced: Sequence[str],
    minimum_days: int,
    payload: str,
    context_payload: str,
) -> Sample:
    """The sample of the named assets, or without names of every asset of the markets but `not_priced`.

    An asset is refused with fewer than `minimum_days` returns or when its history is stale; a refused one that was
    named is a failure too, with those of its rows that cannot be used. Raises DataError for a table or an anchor that
    cannot be used.
    """
    history = table_until(history, as_of, span_us=_DAY_US, payload=payload)
    wanted = list(assets) or [name for name in assets_of(history, markets, payload) if name not in not_priced]
    wanted = list(dict.fromkeys((*anchors, *sorted(wanted))))
    panel, failures = return_panel(history, wanted, as_of=as_of, anchors=anchors, markets=markets, payload=payload)
    refused = {
        asset: reason
        for column, asset in enumerate(panel.assets)
        if (reason := refusal(panel, column, minimum_days=minimum_days))
    }
    for anchor in anchors:
        if anchor in refused:
            message = f"anchor {anchor} {refused[anchor]}"
            raise DataError(Failure(FailureReason.MISSING_PARAMETER, message, payload=payload, subject=anchor))
    # rows of an asset that nobody asked for and that has no law change nothing
    failures = tuple(f for f in failures if f.subject not in refused or f.subject in assets)
    named = [
        Failure(FailureReason.MISSING_PARAMETER, f"{asset} {refused[asset]}", payload=payload, subject=asset)
        for asset in dict.fromkeys(assets)
        if asset in refused
    ]
    kept = [column for column, asset in enumerate(panel.assets) if asset not in refused]
    names = tuple(panel.assets[column] for column in kept)
    used = tuple(panel.markets[column] for column in kept)
    bars, volume = _bars(history, names, used, panel.dates)
    changes: dict[str, np.ndarray] = {}
    vol_failures: tuple[Failure, ...] = ()
    if context is not None:
        context = table_until(context, as_of, span_us=0, payload=context_payload)
        changes, vol_failures = implied_vol_changes(
            context, [name for name in vols if name in names], dates=panel.dates, as_of=as_of, payload=context_payload
        )
    return Sample(
        panel.dates, names, used, panel.returns[:, kept], volume, bars, changes, refused,
        (*failures, *vol_failures, *named),
    )  # fmt: skip


def without(sample: Sample, refused: Mapping[str, str], failures: Sequence[Failure]) -> Sample:
    """The sample without the assets of `refused` (asset to reason), with these failures more."""
    kept = [column for column, asset in enumerate(sample.assets) if asset not in refused]
    return replace(
        sample,
        assets=tuple(sample.assets[column] for column in kept),
        markets=tuple(sample.markets[column] for column in kept),
        returns=sample.returns[:, kept],
        volume_usd=sample.volume_usd[:, kept],
        bars=sample.bars[:, :, kept],
        refused={**sample.refused, **refused},
        failures=(*sample.failures, *failures),
    )


def assets_of(table: pa.Table, markets: Sequence[str], payload: str) -> list[str]:
    """Assets with a row in one of the markets, sorted; DataError without the columns asset and market."""
    for column in ("asset", "market"):
        if column not in table.column_names:
            message = f"the table has no column {column}; it has {', '.join(table.column_names)}"
            raise DataError(Failure(FailureReason.MISSING_FIELD, message, payload=payload, path=column))
    chosen = table.filter(pc.is_in(pc.cast(table["market"], pa.string()), value_set=pa.array(list(markets))))
    return sorted(name for name in pc.unique(pc.cast(chosen["asset"], pa.string())).to_pylist() if name)


def refusal(panel: ReturnPanel, column: int, *, minimum_days: int) -> str:
    """Why the asset of a column has no law of its own, or ""."""
    present = np.flatnonzero(np.isfinite(panel.returns[:, column]))
    if not len(present):
        return "has no daily returns on the dates of the anchors"
    last = panel.dates[present[-1]]
    age = int((panel.dates[-1] - last).astype(np.int64))
    if len(present) < minimum_days:
        return f"has {len(present)} daily returns; at least {minimum_days} are needed"
    if age > MAXIMUM_AGE_DAYS:
        return f"has no return after {last}, {age} days before the end of the sample"
    values = panel.returns[present, column]
    if not np.any(values != values[0]):
        return "has returns that never vary"
    return ""


def _bars(
    table: pa.Table, assets: Sequence[str], markets: Sequence[str], dates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Open, high, low, close [4, dates, assets] and quote volume [dates, assets]; NaN where missing or given twice."""
    rows = table.filter(pc.is_in(pc.cast(table["asset"], pa.string()), value_set=pa.array(list(assets), pa.string())))
    asset_of, market_of = column_texts(rows["asset"]), column_texts(rows["market"])
    opened = column_microseconds(rows["ts"])
    values = np.full((len(_BAR_COLUMNS), rows.num_rows), np.nan)
    for k, name in enumerate(_BAR_COLUMNS):
        if name in rows.column_names:
            values[k] = column_numbers(rows[name])[1]
    # quote volume where the venue gives it, else base volume at the close
    with np.errstate(invalid="ignore"):
        traded = np.where(values[5] > 0.0, values[5], values[4] * values[3])
    position_of = {int(day): i for i, day in enumerate(dates.astype("datetime64[D]").astype(np.int64))}
    bars = np.full((4, len(dates), len(assets)), np.nan)
    volume = np.full((len(dates), len(assets)), np.nan)
    for column, (asset, market) in enumerate(zip(assets, markets, strict=True)):
        chosen = np.flatnonzero((asset_of == asset) & (market_of == market.partition("+")[0]))
        days, counts = np.unique(opened[chosen] // _DAY_US, return_counts=True)
        single = set(days[counts == 1].tolist())
        for row in chosen.tolist():
            day = int(opened[row] // _DAY_US)
            if day in single and day in position_of:
                bars[:, position_of[day], column] = values[:4, row]
                volume[position_of[day], column] = traded[row]
    return bars, volume


Levels = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
"""(asset, market) to day numbers since 1970, ascending, and closes on them, NaN where rejected."""


def daily_levels(
    table: pa.Table,
    assets: Sequence[str],
    markets: Sequence[str],
    *,
    as_of: datetime,
    payload: str,
    may_stand_still: bool = False,
) -> tuple[Levels, tuple[Failure, ...]]:
    """Closes of every asset in every market that the table has, and the rejected rows.

    `table` may hold later rows; bars that are not complete at as_of are cut first. With `may_stand_still` a level may
    repeat for days, as that of a stablecoin does; one that is not positive is then left out without a failure.
    """
    series, failures = daily_series(
        table_until(table, as_of, span_us=_DAY_US, payload=payload),
        assets,
        label="market",
        value="close",
        labels=markets,
        every_label=True,
        as_of=as_of,
        payload=payload,
        positive=not may_stand_still,
    )
    with np.errstate(invalid="ignore"):
        return {key: (days, np.where(closes > 0.0, closes, np.nan)) for key, (days, closes) in series.items()}, failures


NO_LEVELS = (np.zeros(0, np.int64), np.zeros(0))


def joined_levels(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every day from the first to the last common one, and both levels on it (NaN where missing); empty without one."""
    common = np.intersect1d(first[0], second[0])
    if not len(common):
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    days = np.arange(common[0], common[-1] + 1)
    levels = []
    for own, values in (first, second):
        grid = np.full(len(days), np.nan)
        inside = (own >= days[0]) & (own <= days[-1])
        grid[own[inside] - days[0]] = values[inside]
        levels.append(grid)
    return days, levels[0], levels[1]


def funding_rates(context: pa.Table, asset: str, *, as_of: datetime) -> tuple[np.ndarray, np.ndarray]:
    """Times (microseconds since 1970, ascending) and funding rates, fraction per interval, stamped up to as_of.

    Rates that are missing or no number, and times given twice, are left out.
    """
    cut = table_until(context, as_of, span_us=0, payload="")
    rows = cut.filter(
        pc.and_(
            pc.equal(pc.cast(cut["asset"], pa.string()), asset),
            pc.equal(pc.cast(cut["series"], pa.string()), FUNDING_SERIES),
        )
    )
    stamped, rates = column_microseconds(rows["ts"]), column_numbers(rows["value"])[1]
    usable = np.isfinite(rates) & (stamped != np.iinfo(np.int64).min)
    times, first, counts = np.unique(stamped[usable], return_index=True, return_counts=True)
    return times[counts == 1], rates[usable][first][counts == 1]
