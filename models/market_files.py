"""Bars, context and exchange tiers of a market folder, read from Parquet and checked before anything is computed.

Times are UTC, kept to the microsecond; a bar's time is its OPENING. Prices are quote units per base unit.

Files, one tidy schema each (`BAR_COLUMNS`): `ohlcv_4h.parquet` (perpetuals), `ohlcv_1h.parquet` (spot) and
`ohlcv_1d.parquet` (both); any of them may be missing, not all. Optional: `context.parquet`, `exchange_tiers.parquet`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from aggregator.errors import ConfigurationError

HOUR = 3_600_000_000
"""Microseconds; the unit in which openings are counted."""

WIDTHS: dict[str, int] = {"1d": 24 * HOUR, "8h": 8 * HOUR, "4h": 4 * HOUR, "1h": HOUR}
BAR_FILES = {"4h": "ohlcv_4h.parquet", "1h": "ohlcv_1h.parquet", "1d": "ohlcv_1d.parquet"}

PRICES = ("open", "high", "low", "close")
BAR_COLUMNS: dict[str, pa.DataType] = {
    "asset": pa.dictionary(pa.int32(), pa.string()),
    "market": pa.dictionary(pa.int32(), pa.string()),
    "ts": pa.timestamp("us", "UTC"),
    **dict.fromkeys((*PRICES, "volume", "quote_vol"), pa.float64()),
    "nbars": pa.int64(),
}
CONTEXT_COLUMNS: dict[str, pa.DataType] = {
    "asset": pa.string(),
    "series": pa.string(),
    "ts": pa.timestamp("us", "UTC"),
    "value": pa.float64(),
}
TIER_COLUMNS: dict[str, pa.DataType] = {
    "snapshot": pa.timestamp("us"),
    "asset": pa.string(),
    "quote": pa.string(),
    "tier": pa.int64(),
    **dict.fromkeys(("min_notional", "max_notional", "maintenance_margin_rate", "max_leverage"), pa.float64()),
}

NULLABLE = ("quote_vol", "max_notional")
"""Spot bars carry no quote volume, the oldest tiers no upper bound."""


class MarketHistory(NamedTuple):
    """Checked bars (`BAR_COLUMNS`; no rows where the file is missing), context and exchange tiers (None if missing)."""

    bars_4h: pa.Table
    bars_1h: pa.Table
    bars_1d: pa.Table
    context: pa.Table | None
    tiers: pa.Table | None


def read_market(folder: Path) -> MarketHistory:
    """The checked tables of `folder`.

    Raises ConfigurationError naming file, column, asset and time: no bar file at all, a file that cannot be read to its
    end, a missing column or a column of another kind, a missing, non-finite or non-positive price, a high below or a
    low above open or close, a negative or missing volume, an opening off the grid of the interval, bars of an asset and
    market that are duplicate or not in order of time, duplicate context values or tiers.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"market folder {folder}: no such folder")
    bars = {interval: _read_bars(folder / name, interval) for interval, name in BAR_FILES.items()}
    if all(table.num_rows == 0 for table in bars.values()):
        raise ConfigurationError(f"market folder {folder}: no bars; expected one of {', '.join(BAR_FILES.values())}")
    context = _read_optional(folder / "context.parquet", CONTEXT_COLUMNS, ("asset", "series", "ts"))
    tiers = _read_optional(folder / "exchange_tiers.parquet", TIER_COLUMNS, ("snapshot", "asset", "quote", "tier"))
    return MarketHistory(bars["4h"], bars["1h"], bars["1d"], context, tiers)


def _read(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    try:
        table = pa.parquet.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise ConfigurationError(f"{path.name}: not a complete Parquet file ({error})") from None
    arrays = []
    for name, kind in columns.items():
        if name not in table.column_names:
            raise ConfigurationError(f"{path.name}: column {name!r} is missing; found {', '.join(table.column_names)}")
        found = table[name].combine_chunks()
        try:
            if pa.types.is_dictionary(kind):
                arrays.append(found.cast(pa.string()).dictionary_encode())
            else:
                arrays.append(found.cast(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigurationError(f"{path.name}: column {name!r} is {found.type}, not {kind} ({error})") from None
        if name not in NULLABLE and arrays[-1].null_count:
            row = int(np.flatnonzero(arrays[-1].is_null().to_numpy(zero_copy_only=False))[0])
            raise ConfigurationError(f"{path.name}: column {name!r} is missing in row {row}")
    return pa.table(arrays, names=list(columns))


def _read_optional(path: Path, columns: dict[str, pa.DataType], key: tuple[str, ...]) -> pa.Table | None:
    if not path.exists():
        return None
    table = _read(path, columns)
    for name, kind in columns.items():
        if pa.types.is_floating(kind) and name not in NULLABLE:
            bad = np.flatnonzero(~np.isfinite(table[name].to_numpy()))
            if len(bad):
                place = {k: str(v) for k, v in table.select(list(key)).slice(int(bad[0]), 1).to_pylist()[0].items()}
                raise ConfigurationError(f"{path.name}: column {name!r} is not finite at {place}")
    counts = table.group_by(list(key)).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if twice.num_rows:
        place = {k: str(v) for k, v in twice.select(list(key)).slice(0, 1).to_pylist()[0].items()}
        raise ConfigurationError(f"{path.name}: {place} is there more than once")
    return table.sort_by([(name, "ascending") for name in key])


def _read_bars(path: Path, interval: str) -> pa.Table:
    if not path.exists():
        return pa.schema(list(BAR_COLUMNS.items())).empty_table()
    table = _read(path, BAR_COLUMNS)
    times = microseconds(table["ts"])
    columns = {name: table[name].to_numpy() for name in (*PRICES, "volume", "nbars")}

    def refuse(rows: np.ndarray, what: str) -> None:
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            place = f"{table['asset'][row]} {table['market'][row]} at {times[row].astype('datetime64[us]')}"
            raise ConfigurationError(f"{path.name}: {what}, {place}")

    for name in PRICES:
        refuse(~np.isfinite(columns[name]), f"column {name!r} is not a finite number")
        refuse(columns[name] <= 0.0, f"column {name!r} is not positive")
    body = columns["open"], columns["close"]
    refuse(columns["high"] < np.maximum(*body), "column 'high' is below open or close")
    refuse(columns["low"] > np.minimum(*body), "column 'low' is above open or close")
    refuse(
        ~(np.isfinite(columns["volume"]) & (columns["volume"] >= 0.0)), "column 'volume' is not a number of 0 or more"
    )
    quote_volume = table["quote_vol"].to_numpy(zero_copy_only=False)
    refuse(np.isinf(quote_volume) | (quote_volume < 0.0), "column 'quote_vol' is negative or infinite")
    refuse(columns["nbars"] < 1, "column 'nbars' is below 1")
    refuse(times % WIDTHS[interval] != 0, f"column 'ts' is not a multiple of {interval}")

    codes = [table[name].combine_chunks().indices.to_numpy() for name in ("asset", "market")]
    order = np.lexsort((codes[1], codes[0]))  # stable: rows of one series stay in the order of the file
    same = (codes[0][order][1:] == codes[0][order][:-1]) & (codes[1][order][1:] == codes[1][order][:-1])
    step = np.diff(times[order])
    for late, what in ((same & (step == 0), "duplicate bar"), (same & (step < 0), "bars are not in order of time")):
        rows = np.zeros(len(times), dtype=bool)
        rows[order[1:][late]] = True
        refuse(rows, what)
    return table


def microseconds(column: pa.ChunkedArray) -> np.ndarray:
    """A timestamp column as whole microseconds since 1970 [N]."""
    return column.cast(pa.int64()).to_numpy()
