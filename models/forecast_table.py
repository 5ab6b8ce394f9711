"""The table of margin forecasts that is scored: its schema, its checks, its file.

One row per date, asset, side, level, horizon, loss and model. `date` is the OPENING of the window of the loss; the
rates are fractions of notional, set with what was known before it. `margin_rate` is meant to be exceeded with
probability 1 - level, `es_rate` is the expected loss given that it is.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from aggregator.errors import ConfigurationError

FORECASTS = pa.schema(
    [
        pa.field("date", pa.timestamp("us", "UTC"), metadata={"meaning": "opening of the window of the loss"}),
        pa.field("asset", pa.string()),
        pa.field("side", pa.string(), metadata={"values": "long, short"}),
        pa.field("level", pa.float64(), metadata={"unit": "probability"}),
        pa.field("horizon", pa.string(), metadata={"values": "1d, 8h"}),
        pa.field("loss", pa.string(), metadata={"values": "close, adverse"}),
        pa.field("margin_rate", pa.float64(), metadata={"unit": "fraction of notional"}),
        pa.field("es_rate", pa.float64(), metadata={"unit": "fraction of notional"}),
        pa.field("model", pa.string()),
    ],
    metadata={"schema": "margin_forecasts", "version": "1"},
)

KEY = ("model", "horizon", "loss", "level", "asset", "side", "date")
"""What makes a row unique, and the order of rows in a file."""

VALUES = {"side": ("long", "short"), "horizon": ("1d", "8h"), "loss": ("close", "adverse")}
HOURS = {"1d": 24, "8h": 8}


def check_forecasts(table: pa.Table) -> pa.Table:
    """The table with the columns of `FORECASTS` in that order and rows in the order of `KEY`.

    Raises ConfigurationError naming column and row for a missing column or value, an unknown side, horizon or loss, an
    empty model or asset, a level outside (0, 1), a rate that is not finite and positive, an expected shortfall below
    the margin, a date that is no opening of its horizon, and duplicate keys. Other columns are dropped.
    """
    arrays = []
    for field in FORECASTS:
        if field.name not in table.column_names:
            raise ConfigurationError(f"forecasts: column {field.name!r} is missing; found {table.column_names}")
        try:
            column = table[field.name].cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            kind = table[field.name].type
            raise ConfigurationError(
                f"forecasts: column {field.name!r} is {kind}, not {field.type} ({error})"
            ) from None
        if column.null_count:
            raise ConfigurationError(f"forecasts: column {field.name!r} has {column.null_count} rows without a value")
        arrays.append(column)
    checked = pa.table(arrays, schema=FORECASTS)
    for name, known in VALUES.items():
        _refuse(checked, pc.invert(pc.is_in(checked[name], value_set=pa.array(known))), f"{name} is not one of {known}")
    for name in ("model", "asset"):
        _refuse(checked, pc.equal(checked[name], ""), f"{name} is empty")
    level, margin, shortfall = (checked[name].to_numpy() for name in ("level", "margin_rate", "es_rate"))
    _refuse(checked, ~((level > 0.0) & (level < 1.0)), "level is not strictly between 0 and 1")
    _refuse(checked, ~(np.isfinite(margin) & (margin > 0.0)), "margin_rate is not finite and positive")
    _refuse(checked, ~(np.isfinite(shortfall) & (shortfall >= margin)), "es_rate is not finite or below margin_rate")
    width = np.where(checked["horizon"].to_numpy() == "1d", HOURS["1d"], HOURS["8h"]) * 3_600_000_000
    _refuse(checked, checked["date"].cast(pa.int64()).to_numpy() % width != 0, "date is no opening of its horizon")
    checked = checked.sort_by([(name, "ascending") for name in KEY])
    if checked.num_rows > 1:
        same = np.ones(checked.num_rows - 1, dtype=bool)
        for name in KEY:
            values = checked[name].combine_chunks()
            same &= pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
        _refuse(checked.slice(1), same, "duplicate key")
    return checked


def read_forecasts(path: Path) -> pa.Table:
    """A checked forecast file; ConfigurationError when it cannot be read to its end or fails `check_forecasts`."""
    try:
        table = pa.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigurationError(f"{path.name}: not a complete Parquet file ({error})") from None
    return check_forecasts(table)


def write_forecasts(table: pa.Table, path: Path) -> None:
    """The checked table as Parquet, whole or not at all; equal tables give equal bytes for one version of the library.

    Raises ConfigurationError where the file cannot be written.
    """
    checked = check_forecasts(table)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        pa.parquet.write_table(checked, partial, compression="zstd")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror or error})") from None


def _refuse(table: pa.Table, rows: pa.ChunkedArray | np.ndarray, what: str) -> None:
    bad = np.flatnonzero(np.asarray(rows))
    if len(bad):
        row = table.slice(int(bad[0]), 1).to_pylist()[0]
        place = ", ".join(f"{name} {value}" for name, value in row.items())
        raise ConfigurationError(f"forecasts: {what} in {len(bad)} rows, first {place}")
