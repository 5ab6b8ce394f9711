"""Positions of many owners in cross margin at once, by columns.

An owner comes out of here only when every row of its position lists is a plain perpetual or future in cross margin and
one-way mode, of a known market whose tiers allow its leverage, and when it has no fee rates of its own. All other
owners are read row by row, with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.schema.fields import DECIMAL, TIME

from .. import columns as flat
from ..columns import (
    Columns,
    Flags,
    Numbers,
    canonical_table,
    coalesced,
    encoded,
    floats,
    is_zero,
    lacks,
    not_surely_within,
    own_marks,
    spread,
)
from . import mechanics
from .catalog import VENUE, BybitCatalog
from .market import MarketData, taker_rate
from .parse import Market
from .rules import decimal_from

_ONE = pa.scalar(Decimal(1), DECIMAL)


class Question(NamedTuple):
    """What is to be read of one owner: its account, the rows of its position lists and the time of each list."""

    owner: str
    home: str
    lists: Sequence[tuple[list[Any], datetime | None]]


class PlainPositions(NamedTuple):
    """All positions of one owner: rows, marks and states, and what its account needs to know of them."""

    positions: pa.Table
    marks: pa.Table
    states: pa.Table
    symbols: set[str]
    maintenance: dict[str, list[Decimal | None]]
    """Reported maintenance margins by settlement coin, in the order of the rows."""
    mark_texts: dict[str, Any]
    """Marks by symbol as the venue wrote them, None or empty where it states none."""


def plain_positions(
    questions: Sequence[Question], catalog: BybitCatalog, market: MarketData, *, source: str
) -> dict[str, PlainPositions]:
    """Positions by owner, of those owners whose positions are all plain. Adds no row; takes held markets in."""
    lists = [[record for records, _ in question.lists for record in records] for question in questions]
    if sum(map(len, lists)) < flat.WORTHWHILE:
        return {}
    every = Columns(lists)
    size = every.non_negative("size")
    held = ~is_zero(size)
    moments = [moment for question in questions for records, moment in question.lists for _ in records]
    columns = every.chosen(held)
    found = _Read(columns, size.filter(pa.array(held)), catalog, market)
    plain = every.plain_lists() & columns.plain_lists()

    of_list = columns.list_numbers()
    rows = np.flatnonzero(plain[of_list])
    rank = {name: number for number, name in enumerate(sorted(found.names))}
    ranks = np.array([rank[name] for name in found.names], np.int64)
    rows = rows[np.lexsort((ranks[found.codes[rows]], of_list[rows]))]
    of_row = np.flatnonzero(held)
    times = pa.array([moments[i] for i in of_row[rows].tolist()], TIME)
    return _written(questions, found, rows, of_list[rows], times, catalog, source)


class _Read:
    """Fields of rows that hold something."""

    def __init__(self, columns: Columns, size: pa.Array, catalog: BybitCatalog, market: MarketData) -> None:
        self.codes, self.names = encoded(columns.text("symbol"))
        self.markets: list[Market | None] = [_usable(name, catalog, market) for name in self.names]
        columns.reject(np.array([m is None for m in self.markets], np.bool_)[self.codes])
        sides = columns.among("side", ("Buy", "Sell"))
        buys = np.array([side == "Buy" for side in sides], np.bool_)
        if columns.states("positionIdx"):
            columns.among("positionIdx", (0,))
        else:
            columns.reject(np.array(["positionIdx" in record for record in columns.records], np.bool_))
        columns.among("tradeMode", (None, "", 0, "0"))
        columns.reject_repeated(self.codes)

        self.quantity = pc.if_else(pa.array(buys), size, pc.negate(size))
        self.mark = columns.positive("markPrice", optional=True)
        self.leverage = columns.positive("leverage")
        columns.reject(pc.less(self.leverage, _ONE))
        for key in ("unrealisedPnl", "positionBalance"):
            columns.decimal(key, optional=True)
        session, average = columns.non_negative("sessionAvgPrice", optional=True), columns.positive("avgPrice")
        settled = np.array([m is not None and m.settle == "USDC" for m in self.markets], np.bool_)[self.codes]
        by_session = settled & ~lacks(session) & ~is_zero(session)
        self.entry_price = pc.if_else(pa.array(by_session), session, average)
        self.initial = _first_of(columns, "positionIMByMp", "positionIM")
        self.maintenance = _first_of(columns, "positionMMByMp", "positionMM")
        self.liquidation = _price_or_none(columns, "liqPrice")
        self.bankruptcy = _price_or_none(columns, "bustPrice")
        self.values = columns.values
        columns.reject(self._wrong_figures(market))
        self.rate = self._initial_rates(columns.plain, market)

    def _wrong_figures(self, market: MarketData) -> Flags:
        """Rows without a mark, or whose leverage is not surely one that its tier allows."""
        tickers = [market.tickers.get(name) for name in self.names]
        prices = [float(t.mark_price) if t is not None and t.mark_price is not None else np.nan for t in tickers]
        mark = np.where(lacks(self.mark), np.array([*prices, np.nan])[self.codes], floats(self.mark))
        inverse = np.array([m is not None and m.inverse for m in self.markets], np.bool_)[self.codes]
        amount = np.abs(floats(self.quantity))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.where(inverse, amount / mark, amount * mark)
        tables = {code: market.risk_tables.get(name) for code, name in enumerate(self.names)}
        tiers = {
            code: [(tier.limit, tier.max_leverage) for tier in table.tiers] for code, table in tables.items() if table
        }
        return np.isnan(value) | not_surely_within(self.codes, value, self.leverage, tiers)

    def _initial_rates(self, plain: Flags, market: MarketData) -> pa.Array:
        """Initial margin as a fraction of the value, by symbol, side and leverage; null where a row is not plain."""
        known: dict[tuple[int, bool, Any], Decimal | None] = {}
        out: list[Decimal | None] = []
        buys = np.asarray(pc.fill_null(pc.greater(self.quantity, pa.scalar(Decimal(0), DECIMAL)), False)).tolist()
        stated = self.values("leverage")
        for key, is_plain in zip(zip(self.codes.tolist(), buys, stated, strict=True), plain.tolist(), strict=True):
            if not is_plain:
                out.append(None)
                continue
            if key not in known:
                found = self.markets[key[0]]
                rate = None if found is None else taker_rate(market, {}, found)
                assert found is not None
                assert rate is not None
                known[key] = decimal_from(
                    mechanics.initial_margin(
                        1, Decimal(key[2]), side=1 if key[1] else -1, taker_rate=rate, inverse=found.inverse
                    )
                )
            out.append(known[key])
        codes, rates = encoded(out)
        return spread(codes, rates, DECIMAL)


def _usable(symbol: str, catalog: BybitCatalog, market: MarketData) -> Market | None:
    """A perpetual or future with known assets, tiers and taker rate, else None."""
    found = catalog.known(symbol)
    if found is None or found.kind == "option" or symbol not in market.risk_tables:
        return None
    return found if taker_rate(market, {}, found) is not None else None


def _first_of(columns: Columns, *keys: str) -> pa.Array:
    first, second = (columns.decimal(key, optional=True) for key in keys)
    return coalesced(first, second)


def _price_or_none(columns: Columns, key: str) -> pa.Array:
    """A price, or null for the 0 that the venue sends for none."""
    price = columns.non_negative(key, optional=True)
    return pc.if_else(pa.array(is_zero(price)), pa.scalar(None, DECIMAL), price)


def _written(
    questions: Sequence[Question],
    found: _Read,
    rows: Numbers,
    owners: Numbers,
    times: pa.Array,
    catalog: BybitCatalog,
    source: str,
) -> dict[str, PlainPositions]:
    codes, order = found.codes[rows], pa.array(rows)
    present = set(codes.tolist())
    instruments = [catalog.instrument(m) if c in present and m else "" for c, m in enumerate(found.markets)]
    home = spread(owners, [question.home for question in questions], pa.string())
    instrument = spread(codes, instruments, pa.string())
    positions = canonical_table(
        "positions",
        len(rows),
        account_id=home,
        instrument_id=instrument,
        side_mode="net",
        quantity=found.quantity.take(order),
        entry_price=found.entry_price.take(order),
        leverage=found.leverage.take(order),
        initial_rate_override=found.rate.take(order),
        reported_initial_margin=found.initial.take(order),
        reported_maintenance_margin=found.maintenance.take(order),
        reported_liquidation_price=found.liquidation.take(order),
    )
    mark, bankruptcy = found.mark.take(order), found.bankruptcy.take(order)
    marked, busted = mark.is_valid(), bankruptcy.is_valid()
    marks = own_marks(
        VENUE,
        home.filter(marked),
        instrument.filter(marked),
        flat.nearest_floats(mark.filter(marked)),
        as_of=times.filter(marked),
        source=source,
    )
    states = canonical_table(
        "market_state",
        int(pc.sum(busted).as_py() or 0),
        venue=VENUE,
        market=pc.binary_join_element_wise(home.filter(busted), instrument.filter(busted), "/"),
        field="bankruptcy_price",
        value=flat.nearest_floats(bankruptcy.filter(busted)),
        as_of=times.filter(busted),
        source=source,
    )
    ends = np.searchsorted(owners, np.arange(len(questions) + 1))
    marked_before = np.concatenate([[0], np.cumsum(np.asarray(marked))])[ends].tolist()
    busted_before = np.concatenate([[0], np.cumsum(np.asarray(busted))])[ends].tolist()
    texts, by_mp, stated = (found.values(key) for key in ("markPrice", "positionMMByMp", "positionMM"))
    out: dict[str, PlainPositions] = {}
    for number, question in enumerate(questions):
        start, end = int(ends[number]), int(ends[number + 1])
        if start == end:
            continue
        maintenance: dict[str, list[Decimal | None]] = {}
        own = rows[start:end].tolist()
        symbols = [found.names[code] for code in codes[start:end].tolist()]
        for row, code in zip(own, codes[start:end].tolist(), strict=True):
            value = by_mp[row] if by_mp[row] not in (None, "") else stated[row]
            coin = found.markets[code].settle  # a plain row has a market
            maintenance.setdefault(coin, []).append(None if value in (None, "") else Decimal(value))
        first, last = marked_before[number], marked_before[number + 1]
        early, late = busted_before[number], busted_before[number + 1]
        out[question.owner] = PlainPositions(
            positions.slice(start, end - start),
            marks.slice(first, last - first),
            states.slice(early, late - early),
            set(symbols),
            maintenance,
            dict(zip(symbols, (texts[row] for row in own), strict=True)),
        )
    return out
