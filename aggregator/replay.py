"""Historical replay: price moves of a stress measured on recorded closes, where a history table covers its dates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np
import pyarrow as pa

from .errors import DataError, Failure, FailureReason
from .history_tables import MARKETS, column_microseconds, column_numbers, column_texts
from .stress import DEFAULT, StressLibrary

_DAY_US = 86_400_000_000
_EPOCH = date(1970, 1, 1)

Closes = Mapping[tuple[str, str, date], float]
"""Closes by asset, market and the UTC day that the bar covers; NaN where a day is given twice or is no price."""


def closes_on(table: pa.Table, days: Sequence[date], *, payload: str = "market history") -> Closes:
    """Closes on `days` from a table with columns asset, market, ts (open time of a daily bar) and close.

    A day that is given twice, and a close that is no positive number, are NaN: nothing is replayed from them. Raises
    DataError when a column is missing.
    """
    for column in ("asset", "market", "ts", "close"):
        if column not in table.column_names:
            message = f"the table has no column {column}; it has {', '.join(table.column_names)}"
            raise DataError(Failure(FailureReason.MISSING_FIELD, message, payload=payload, path=column))
    numbers = {(day - _EPOCH).days: day for day in days}
    opened = column_microseconds(table["ts"]) // _DAY_US
    rows = np.flatnonzero(np.isin(opened, list(numbers)))
    chosen = table.take(pa.array(rows))
    assets, markets = column_texts(chosen["asset"]), column_texts(chosen["market"])
    _, closes = column_numbers(chosen["close"])
    found: dict[tuple[str, str, date], float] = {}
    for row, asset, market, close in zip(rows, assets, markets, closes, strict=True):
        key = asset, market, numbers[int(opened[row])]
        usable = math.isfinite(close) and close > 0.0 and key not in found
        found[key] = float(close) if usable else math.nan
    return found


def replayed(
    library: StressLibrary, closes: Closes, assets: Sequence[str], *, markets: Sequence[str] = MARKETS
) -> StressLibrary:
    """`library` with the moves of its replays measured for the `assets` (risk factors) that the closes cover.

    An asset takes the first of `markets` that has both days. One without keeps the move that the library states for it.
    The source of a stress says how many of the assets were measured.
    """
    changed = {}
    for name, stress in library.stress.items():
        if stress.replay is None:
            continue
        first, last = stress.replay.first, stress.replay.last
        measured = {}
        for asset in assets:
            for market in markets:
                before, after = (closes.get((asset, market, day), math.nan) for day in (first, last))
                if np.isfinite(before) and np.isfinite(after):
                    measured[asset] = after / before - 1.0
                    break
        stated = dict(stress.price.moves)
        if stress.price.beta is not None:
            others = [asset for asset in assets if asset not in measured and asset not in stated]
            reference = math.log1p(stated[stress.price.reference])
            stated |= {asset: math.expm1(stress.price.beta * reference) for asset in others}
        stated.setdefault(DEFAULT, 0.0)
        price = stress.price.model_copy(update={"moves": stated | measured, "beta": None})
        source = (
            f"replay of closes, {first} to {last}, for {len(measured)} of {len(assets)} prices; else {stress.source}"
        )
        changed[name] = stress.model_copy(update={"price": price, "source": source})
    return library.model_copy(update={"stress": {**library.stress, **changed}})
