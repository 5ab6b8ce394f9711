"""Cross positions of many `clearinghouseState` payloads at once, by columns.

Only payloads whose every entry is an ordinary cross position of a listed market come out of here; all others are read
row by row, with the same result.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aggregator.schema.fields import TIME

from .. import columns as flat
from ..adapter import parameter_table
from ..amounts import FieldError, optional_time_at
from ..columns import Columns, Flags, Numbers, canonical_table, encoded, is_zero, own_marks, spread
from ..symbols import instrument_id
from ..transport import Payload
from .markets import VENUE, Reading, dex_of
from .rules import MarketTiers

EXACT_DIGITS = 80
"""Sums and products of amounts below 1e20 with 18 decimals need no more, and a quotient is rounded far behind them."""
MARK_SOURCE = "positionValue / |szi|"


class Sums(NamedTuple):
    """Totals over positions: number, notional, notional with the position's sign, margin, size times entry price."""

    number: int
    value: Decimal
    signed_value: Decimal
    margin_used: Decimal
    entry_cost: Decimal


class PlainPositions(NamedTuple):
    """All positions of one cross account on a dex: their rows and marks, sums, and tiers by coin."""

    dex: str
    positions: pa.Table
    marks: pa.Table
    sums: Sums
    tiers: dict[str, MarketTiers]


def plain_positions(
    reading: Reading, payloads: Sequence[Payload], *, dexes: Sequence[str], homes: Sequence[str], but: Collection[str]
) -> list[PlainPositions | None]:
    """For each payload its positions if all of them are plain, else None. Adds no row and no failure.

    `dexes` and `homes`: dex and cross account of each payload; `but`: owners that are left out.
    """
    lists = [_entries(payload) for payload in payloads]
    if sum(map(len, lists)) < flat.WORTHWHILE:
        return [None] * len(payloads)
    columns = Columns(lists)
    columns.among("type", ("oneWay",))
    held = columns.inner("position")
    leverage = held.inner("leverage")
    leverage.among("type", ("cross",))
    of_list = columns.list_numbers()
    codes, coins = encoded(held.text("coin"))
    held.reject_repeated(codes)
    held.reject(np.array([_tiers(reading, coin) is None for coin in coins], np.bool_)[codes])
    of_coins = [dex_of(coin) for coin in coins]
    if len({*of_coins, *dexes}) > 1:
        held.reject(np.array(of_coins, object)[codes] != np.array(dexes, object)[of_list])

    size = held.decimal("szi")
    held.reject(is_zero(size))
    entry_price, used = held.positive("entryPx"), held.decimal("marginUsed")
    held.positive("positionValue")
    rate = leverage.positive("value")
    liquidation = held.non_negative("liquidationPx", optional=True)
    held.positive("maxLeverage", optional=True, blank=False)
    held.reject(~_max_leverages_fit(reading, held, coins, codes))
    by_name = parameter_table(reading.context.parameters, "selected_by_owner", venue=VENUE)
    left_out = {*by_name, *but}
    moments = [_moment(payload) for payload in payloads]
    ordinary = [
        bool(entries) and moment != () and payload.account not in left_out
        for payload, entries, moment in zip(payloads, lists, moments, strict=True)
    ]
    plain = columns.plain_lists() & np.array(ordinary, np.bool_)

    chosen = plain[of_list]
    kept, length = pa.array(chosen), int(chosen.sum())
    home = spread(of_list[chosen], list(homes), pa.string())
    instrument = spread(codes[chosen], [instrument_id(VENUE, coin) for coin in coins], pa.string())
    positions = canonical_table(
        "positions",
        length,
        account_id=home,
        instrument_id=instrument,
        side_mode="net",
        quantity=size.filter(kept),
        entry_price=entry_price.filter(kept),
        unsettled_funding=Decimal(0),
        leverage=rate.filter(kept),
        reported_initial_margin=used.filter(kept),
        reported_liquidation_price=liquidation.filter(kept),
    )
    names, marks, sums = held.values("coin"), list[float](), dict[int, Sums]()
    for i in np.flatnonzero(plain).tolist():
        prices, sums[i] = _sums(held, slice(*columns.bounds[i : i + 2].tolist()))
        marks += prices
    times = spread(of_list[chosen], [moment or None for moment in moments], TIME)
    mark_table = own_marks(VENUE, home, instrument, marks, as_of=times, source=MARK_SOURCE)
    out: list[PlainPositions | None] = [None] * len(payloads)
    tiers_of = {coin: tiers for coin in coins if (tiers := _tiers(reading, coin)) is not None}
    start = 0
    for i, found in sums.items():
        first = int(columns.bounds[i])
        own = {coin: tiers_of[coin] for coin in names[first : first + found.number]}
        rows = positions.slice(start, found.number), mark_table.slice(start, found.number)
        out[i] = PlainPositions(dexes[i], *rows, found, own)
        start += found.number
    return out


def _entries(payload: Payload) -> list[Any]:
    entries = payload.body.get("assetPositions") if isinstance(payload.body, dict) else None
    return entries if isinstance(entries, list) else []


def _moment(payload: Payload) -> datetime | tuple[()] | None:
    """Time of a payload's marks, None where nobody states it; () where what it states is no time."""
    if not isinstance(payload.body, dict):
        return ()
    try:
        return optional_time_at(payload.body, "time") or payload.received_at
    except FieldError:
        return ()


def _tiers(reading: Reading, coin: str) -> MarketTiers | None:
    """Tiers of a market in which a position can be held without any question, else None."""
    market = reading.markets.get(coin)
    if market is None or market.is_delisted or instrument_id(VENUE, coin) not in reading.catalog.instruments:
        return None
    return market.tiers


def _max_leverages_fit(reading: Reading, held: Columns, coins: list[str], codes: Numbers) -> Flags:
    """Whether each maximum leverage, where one is stated, is one of the market's tiers."""
    known: dict[tuple[int, str], bool] = {}
    fits = []
    for code, stated, plain in zip(codes.tolist(), held.values("maxLeverage"), held.plain.tolist(), strict=True):
        if stated is None or not plain:
            fits.append(True)
            continue
        key = code, str(stated)
        if key not in known:
            tiers = _tiers(reading, coins[code])
            leverage = Fraction(Decimal(stated))
            known[key] = tiers is not None and any(tier.max_leverage == leverage for tier in tiers.tiers)
        fits.append(known[key])
    return np.array(fits, np.bool_)


def _sums(held: Columns, rows: slice) -> tuple[list[float], Sums]:
    """Marks and totals of one account's positions, in the arithmetic of the row path."""
    sizes, values = held.exact("szi", rows), held.exact("positionValue", rows)
    with localcontext(prec=EXACT_DIGITS):
        signed = [value if size > 0 else -value for size, value in zip(sizes, values, strict=True)]
        marks = [float(value / size) for size, value in zip(sizes, signed, strict=True)]
        zero = Decimal(0)
        return marks, Sums(
            len(sizes),
            sum(values, zero),
            sum(signed, zero),
            sum(held.exact("marginUsed", rows), zero),
            sum(map(mul, sizes, held.exact("entryPx", rows)), zero),
        )
