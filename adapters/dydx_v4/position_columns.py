"""Positions of many subaccounts at once, by columns, from the indexer's answers.

A subaccount comes out of here only when every position that it lists is plain and of a listed cross market, and when it
has chosen no leverage of its own. All others are read row by row, with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal, localcontext
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.schema.fields import DECIMAL, TIME

from .. import columns as flat
from ..columns import Columns, canonical_table, encoded, is_zero, own_marks, spread
from ..symbols import instrument_id
from .markets import VENUE, Market, Reading
from .mechanics import PPM

EXACT_DIGITS = 80
MARK_SOURCE = "entryPrice + unrealizedPnl / size"
_CLOSED = ("CLOSED", "LIQUIDATED")
_ZERO = pa.scalar(Decimal(0), DECIMAL)


class Question(NamedTuple):
    """What is to be read of one subaccount: its id, its positions by market or in a list, the time of its marks."""

    account_id: str
    positions: Any
    as_of: datetime | None


class PlainPositions(NamedTuple):
    """All positions of one subaccount: rows and marks, how many, size times entry price, and margin beyond base."""

    positions: pa.Table
    marks: pa.Table
    held: int
    entry_cost: Decimal
    beyond_base: Decimal


class _Sums(NamedTuple):
    prices: list[float | None]
    entry_cost: Decimal
    beyond_base: Decimal


def plain_positions(reading: Reading, questions: Sequence[Question]) -> dict[str, PlainPositions]:
    """Positions by account id, of those subaccounts whose positions are all plain. Adds no row and no failure."""
    lists = [_records(question.positions) for question in questions]
    if sum(map(len, lists)) < flat.WORTHWHILE:
        return {}
    every = Columns(lists)
    statuses = every.among("status", ("OPEN", *_CLOSED))
    columns = every.chosen(np.array([status not in _CLOSED for status in statuses], np.bool_))
    codes, tickers = encoded(columns.text("market"))
    markets = [_market(reading, ticker) for ticker in tickers]
    columns.reject(np.array([market is None for market in markets], np.bool_)[codes])
    columns.reject_repeated(codes)
    size = columns.decimal("size")
    shorts = np.array([side == "SHORT" for side in columns.among("side", ("LONG", "SHORT"))], np.bool_)
    columns.reject(is_zero(size))
    columns.reject(~shorts & np.asarray(pc.fill_null(pc.less(size, _ZERO), False)))
    quantity = pc.if_else(pa.array(shorts), pc.negate(pc.abs(size)), size)
    entry_price = columns.positive("entryPrice")
    profit = columns.decimal("unrealizedPnl", optional=True)

    plain = every.plain_lists() & columns.plain_lists()
    sums: dict[int, _Sums] = {}
    for number in np.flatnonzero(plain).tolist():
        rows = slice(*columns.bounds[number : number + 2].tolist())
        found = _sums(columns, rows, [markets[code] for code in codes[rows].tolist()], shorts[rows].tolist())
        if rows.start < rows.stop and found is not None:
            sums[number] = found
    of_list = columns.list_numbers()
    chosen = np.isin(of_list, list(sums))
    kept, length = pa.array(chosen), int(chosen.sum())
    home = spread(of_list[chosen], [question.account_id for question in questions], pa.string())
    instrument = spread(codes[chosen], [instrument_id(VENUE, ticker) for ticker in tickers], pa.string())
    positions = canonical_table(
        "positions",
        length,
        account_id=home,
        instrument_id=instrument,
        side_mode="net",
        quantity=quantity.filter(kept),
        entry_price=entry_price.filter(kept),
        unsettled_funding=Decimal(0),
    )
    marked = profit.filter(kept).is_valid()
    times = spread(of_list[chosen], [question.as_of for question in questions], TIME)
    marks = own_marks(
        VENUE,
        home.filter(marked),
        instrument.filter(marked),
        [price for found in sums.values() for price in found.prices if price is not None],
        as_of=times.filter(marked),
        source=MARK_SOURCE,
    )
    out: dict[str, PlainPositions] = {}
    start = first = 0
    for number, found in sums.items():
        held, own = len(found.prices), sum(price is not None for price in found.prices)
        out[questions[number].account_id] = PlainPositions(
            positions.slice(start, held), marks.slice(first, own), held, found.entry_cost, found.beyond_base
        )
        start, first = start + held, first + own
    return out


def _records(positions: Any) -> list[Any]:
    """Records of a list, or of an object by market whose records name no other market; else one that is not plain."""
    if isinstance(positions, list):
        return positions
    if not isinstance(positions, dict):
        return [None]
    named = all(isinstance(record, dict) and record.get("market") == key for key, record in positions.items())
    return list(positions.values()) if named else [None]


def _market(reading: Reading, ticker: str) -> Market | None:
    """A market in which a position can be held without any question, else None."""
    market = None if ticker in reading.problems else reading.markets.get(ticker)
    known = instrument_id(VENUE, ticker) in reading.catalog.instruments
    return market if market is not None and known and not market.is_isolated else None


def _sums(columns: Columns, rows: slice, markets: Sequence[Market | None], shorts: Sequence[bool]) -> _Sums | None:
    """Marks and totals of one subaccount in the arithmetic of the row path; None for a mark that is not positive."""
    sizes = [
        -size.copy_abs() if short else size for size, short in zip(columns.exact("size", rows), shorts, strict=True)
    ]
    entries, profits = columns.exact("entryPrice", rows), columns.values("unrealizedPnl")[rows]
    prices: list[float | None] = []
    beyond = Decimal(0)
    with localcontext(prec=EXACT_DIGITS):
        for size, entry, stated, market in zip(sizes, entries, profits, markets, strict=True):
            assert market is not None
            price = None if stated is None or stated == "" else entry + Decimal(stated) / size
            if price is not None and price <= 0:
                return None
            prices.append(None if price is None else float(price))
            if market.effective_imf_ppm > market.base_imf_ppm:
                base = Decimal(market.base_imf_ppm) / PPM
                rate = Decimal(market.effective_imf_ppm) / PPM
                beyond += abs(size) * (price or market.price) * (rate - base)
        return _Sums(prices, sum(map(mul, sizes, entries), Decimal(0)), beyond)


def question_of(account_id: str, record: Any, part: str, as_of: datetime | None) -> Question | None:
    """The question for one answer of a subaccount: `part` is indexer or positions; None for any other."""
    if part == "positions":
        return Question(account_id, record, as_of)
    if part == "indexer" and isinstance(record, Mapping):
        return Question(account_id, record.get("openPerpetualPositions"), as_of)
    return None
