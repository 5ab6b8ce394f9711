"""Positions of many owners of one futures product at once, by columns.

An owner comes out of here only when every row of its position answers is plain, every position cross, of a known market
with brackets that allow its leverage, and both answers agree. All other owners are read row by row, with the same
result.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.schema.fields import DECIMAL, TIME

from .. import columns as flat
from ..amounts import FieldError
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
    nearest_floats,
    not_surely_within,
    own_marks,
    spread,
)
from ..fields import records_of
from ..transport import Payload
from .contracts import Market, Product
from .market import VENUE, BinanceCatalog, MarketData
from .parse import LARGEST_LEVERAGE, SIDE_MODES

_SIDES = ("LONG", "BOTH", "SHORT")  # as their side modes sort
# Half of what the row path tolerates; what lies between is computed exactly there.
_LEVERAGE_TOLERANCE = 0.0005
_NOTIONAL_TOLERANCE = 5e-7


class Question(NamedTuple):
    """What is to be read of one owner: its answers, and the account that holds what is margined in an asset."""

    owner: str
    risk: Payload | None
    account: Payload | None
    home: str
    by_asset: bool
    """Whether `home` needs the margin asset behind it."""

    def home_of(self, asset: str) -> str:
        """Id of the account of an asset."""
        return f"{self.home}:{asset}" if self.by_asset else self.home


class PlainPositions(NamedTuple):
    """All positions of one owner: rows, marks, symbols by account in the order of the rows.

    `wallets`: isolated wallets that the account answer states beside its positions, by margin asset; they are all 0.
    """

    positions: pa.Table
    marks: pa.Table
    symbols: dict[str, set[str]]
    wallets: dict[str, list[Decimal | None]]


_FIGURES = ("notional", "entry_price", "mark_price", "leverage", "initial", "maintenance", "liquidation_price")


class _Held(NamedTuple):
    """Rows of one kind of answer that hold something, in order; arrays are null where the row does not say."""

    plain: Flags
    """By owner."""
    owner: Numbers
    symbol: list[str]
    side: Numbers
    quantity: pa.Array
    notional: pa.Array
    entry_price: pa.Array
    mark_price: pa.Array
    leverage: pa.Array
    initial: pa.Array
    maintenance: pa.Array
    liquidation_price: pa.Array
    states_wallet: Flags

    def taken(self, order: Numbers) -> _Held:
        """The rows of `order` alone."""
        rows = pa.array(order)
        arrays = {name: getattr(self, name).take(rows) for name in ("quantity", *_FIGURES)}
        flags = {name: getattr(self, name)[order] for name in ("owner", "side", "states_wallet")}
        return self._replace(symbol=[self.symbol[i] for i in order.tolist()], **arrays, **flags)


def plain_positions(
    questions: Sequence[Question], product: Product, catalog: BinanceCatalog, market: MarketData
) -> dict[str, PlainPositions]:
    """Positions by owner, of those owners whose positions are all plain. Adds no row; takes held markets in."""
    risks = [records_of(q.risk.body) if q.risk else [] for q in questions]
    accounts = [_stated(q.account) for q in questions]
    if sum(len(records or ()) for lists in (risks, accounts) for records in lists) < flat.WORTHWHILE:
        return {}
    first, second = _read(risks, product), _read(accounts, product)
    own = market.brackets.by_owner.keys() | {owner for owner, _ in market.brackets.rejected}
    ordinary = [q.owner not in own for q in questions]
    plain: Flags = first.plain & second.plain & np.array(ordinary, np.bool_)

    # Both answers by owner, symbol and side, so that they can be laid upon each other.
    names = sorted({*first.symbol, *second.symbol})
    rank = {name: number for number, name in enumerate(names)}
    first, second = _ordered(first, rank), _ordered(second, rank)
    both = np.array([q.risk is not None and stated is not None for q, stated in zip(questions, accounts, strict=True)])
    plain &= _agree(first, second, both, rank)
    alone = np.array([q.risk is None for q in questions], np.bool_)
    held = _joined(first.taken(np.flatnonzero(plain[first.owner])), second, plain, both, alone)
    if not held.symbol:
        return {}
    codes = np.array([rank[name] for name in held.symbol], dtype=np.int64)
    markets = [_usable_market(name, product, catalog, market) for name in names]
    bad = np.array([entry is None for entry in markets], np.bool_)[codes]
    bad |= lacks(held.entry_price) | lacks(held.leverage)
    bad |= _wrong_figures(held, codes, names, markets, catalog, market)
    plain[held.owner[bad]] = False
    held = held.taken(np.flatnonzero(plain[held.owner]))
    return _written(questions, held, rank, markets, catalog, f"{product.api}/positionRisk", second)


# reading


def _stated(payload: Payload | None) -> list[Any] | None:
    """Positions of an account answer, None where it has no such list (then its account is read as it is)."""
    body = payload.body if payload else None
    return body["positions"] if isinstance(body, dict) and isinstance(body.get("positions"), list) else None


def _read(lists: Sequence[Sequence[Any] | None], product: Product) -> _Held:
    columns = Columns([records or [] for records in lists])
    codes, names = encoded(columns.text("symbol"))
    markets = [_market(name, product) for name in names]
    quantity = columns.decimal("positionAmt")
    held = ~is_zero(quantity)
    # A row of an unknown kind of contract that holds nothing is passed over.
    columns.reject(held & np.array([market is None for market in markets], np.bool_)[codes])
    sides = columns.among("positionSide", _SIDES)
    side = np.array([_SIDES.index(word) if word else 1 for word in sides], dtype=np.int64)
    zero = pa.scalar(Decimal(0), DECIMAL)
    for number, compare in ((0, pc.less), (2, pc.greater)):
        columns.reject((side == number) & np.asarray(pc.fill_null(compare(quantity, zero), False)))
    if columns.states("marginAsset"):
        assets = np.array([market.margin_asset if market else None for market in markets], object)[codes].tolist()
        stated = columns.values("marginAsset")
        columns.reject(np.array([s not in (None, "", a) for s, a in zip(stated, assets, strict=True)], np.bool_))
    notional = columns.decimal("notionalValue" if product.inverse else "notional", optional=True)
    columns.reject(held & is_zero(notional))
    columns.reject_repeated(codes * len(_SIDES) + side)
    return _held_rows(columns, held, quantity, notional, side)


def _held_rows(columns: Columns, held: Flags, quantity: pa.Array, notional: pa.Array, side: Numbers) -> _Held:
    rows = columns.chosen(held)
    kept = pa.array(held)
    quantity, notional = quantity.filter(kept), notional.filter(kept)
    initial = rows.decimal("positionInitialMargin", optional=True)
    leverage = rows.positive("leverage", optional=True)
    if leverage.null_count:
        leverage = coalesced(leverage, _implied_leverage(rows, notional, initial, leverage))
    rows.among("marginType", (None, "", "cross", "crossed", "CROSS", "CROSSED"))
    rows.among("isolated", (None, False, "false"))
    wallet, margin = (rows.decimal(key, optional=True) for key in ("isolatedWallet", "isolatedMargin"))
    for amount in (wallet, margin):
        rows.reject(pc.not_equal(amount, pa.scalar(Decimal(0), DECIMAL)))
    if wallet.null_count:  # then the wallet follows from margin and profit
        for key in ("unRealizedProfit", "unrealizedProfit"):
            rows.decimal(key, optional=True)
    liquidation = rows.decimal("liquidationPrice", optional=True)
    out = _Held(
        plain=rows.plain,
        owner=rows.list_numbers(),
        symbol=[value if isinstance(value, str) else "" for value in rows.values("symbol")],
        side=side[held],
        quantity=quantity,
        notional=notional,
        entry_price=rows.positive("entryPrice", optional=True),
        mark_price=rows.positive("markPrice", optional=True),
        leverage=leverage,
        initial=coalesced(initial, rows.decimal("initialMargin", optional=True)),
        maintenance=rows.decimal("maintMargin", optional=True),
        liquidation_price=pc.if_else(is_zero(liquidation), pa.scalar(None, DECIMAL), liquidation),
        states_wallet=~(lacks(wallet) & lacks(margin)),
    )
    # Only now, when every field has been read.
    return out._replace(plain=columns.plain_lists() & rows.plain_lists())


def _implied_leverage(rows: Columns, notional: pa.Array, initial: pa.Array, stated: pa.Array) -> pa.Array:
    """Whole leverages of `|notional| / initial margin`; null where there is none, not plain where it is in doubt."""
    margin = floats(initial)
    with np.errstate(divide="ignore", invalid="ignore"):
        implied = np.where(margin > 0, np.abs(floats(notional)) / margin, np.nan)
    whole = np.round(implied)
    off, missing = np.abs(implied - whole), lacks(stated)
    near = (off <= _LEVERAGE_TOLERANCE * whole) & (whole >= 1) & (whole <= LARGEST_LEVERAGE)
    far = np.isnan(implied) | (off > 4 * _LEVERAGE_TOLERANCE * np.maximum(whole, 1))
    rows.reject(missing & ~near & ~far)
    return pa.array(np.where(near, whole, 0).astype(np.int64), mask=~near).cast(DECIMAL)


def _market(symbol: str, product: Product) -> Market | None:
    try:
        return product.market_of(symbol, "")
    except FieldError:
        return None


# bringing two answers together


def _ordered(held: _Held, rank: dict[str, int]) -> _Held:
    codes = np.array([rank[name] for name in held.symbol], dtype=np.int64)
    order = np.lexsort((held.side, codes, held.owner))
    return held if np.array_equal(order, np.arange(len(order))) else held.taken(order)


def _agree(first: _Held, second: _Held, both: Flags, rank: dict[str, int]) -> Flags:
    """Owners whose two answers name the same positions with the same quantities, or who have one answer alone."""
    agree = np.ones(len(both), np.bool_)
    counts = [np.bincount(held.owner, minlength=len(both)) for held in (first, second)]
    agree &= ~both | (counts[0] == counts[1])
    a, b = (np.flatnonzero((both & agree)[held.owner]) for held in (first, second))
    x, y = first.taken(a), second.taken(b)
    same = np.array([rank[p] == rank[q] for p, q in zip(x.symbol, y.symbol, strict=True)], np.bool_)
    same &= (x.side == y.side) & ~lacks(x.quantity) & np.asarray(pc.fill_null(pc.equal(x.quantity, y.quantity), False))
    agree[x.owner[~same]] = False
    return agree


def _joined(first: _Held, second: _Held, plain: Flags, both: Flags, alone: Flags) -> _Held:
    """Rows of the first answer with what only the second says; those of the second where it stands alone."""
    other = second.taken(np.flatnonzero((plain & both)[second.owner]))
    if len(other.symbol):
        rows = np.flatnonzero(both[first.owner])
        places = np.full(len(first.owner), -1)
        places[rows] = np.arange(len(rows))
        where = pa.array(places, mask=places < 0)
        merged = {name: coalesced(getattr(first, name), getattr(other, name).take(where)) for name in _FIGURES}
        first = first._replace(**merged)
    only = second.taken(np.flatnonzero((plain & alone)[second.owner]))
    if not only.symbol:
        return first
    arrays = {name: pa.concat_arrays([getattr(first, name), getattr(only, name)]) for name in ("quantity", *_FIGURES)}
    flags = {
        name: np.concatenate([getattr(first, name), getattr(only, name)]) for name in ("owner", "side", "states_wallet")
    }
    whole = first._replace(symbol=first.symbol + only.symbol, **arrays, **flags)
    return whole.taken(np.argsort(whole.owner, kind="stable"))


# what a position needs beside its own row


def _usable_market(symbol: str, product: Product, catalog: BinanceCatalog, market: MarketData) -> Market | None:
    """A market whose assets, contract size and brackets are known, else None."""
    found = _market(symbol, product)
    if found is None or not catalog.known(found) or market.brackets.find(found) is None:
        return None
    try:
        catalog.contract_size(found)
    except FieldError:
        return None
    return found


def _wrong_figures(
    held: _Held,
    codes: Numbers,
    names: list[str],
    markets: list[Market | None],
    catalog: BinanceCatalog,
    market: MarketData,
) -> Flags:
    """Rows without a mark, with two marks, or whose notional or leverage is not surely right."""
    premiums = [market.premiums.get(name) for name in names]
    stated = ~lacks(held.mark_price)
    fallback = np.array([float(p.mark_price) if p else np.nan for p in premiums])[codes]
    mark = np.where(stated, floats(held.mark_price), fallback)
    bad = np.isnan(mark)
    pairs = (held.owner[1:] == held.owner[:-1]) & (codes[1:] == codes[:-1])
    if pairs.any():
        unequal = pc.not_equal(held.mark_price[1:], held.mark_price[:-1])
        bad[1:] |= pairs & np.asarray(pc.fill_null(unequal, True))
    size = np.array([float(catalog.contract_size(m)) if m else np.nan for m in markets])[codes]
    amount = np.abs(floats(held.quantity))
    inverse = np.array([m is not None and m.inverse for m in markets], np.bool_)[codes]
    with np.errstate(divide="ignore", invalid="ignore"):
        notional = np.where(inverse, amount * size / mark, amount * mark)
    off = np.abs(np.abs(floats(held.notional)) - notional) > _NOTIONAL_TOLERANCE * np.maximum(notional, 1)
    bad |= inverse & stated & ~lacks(held.notional) & off
    found = {code: market.brackets.find(m) for code, m in enumerate(markets) if m}
    tiers = {code: [(b.cap, b.max_leverage) for b in brackets or ()] for code, brackets in found.items()}
    return bad | not_surely_within(codes, notional, held.leverage, tiers)


# writing


def _written(
    questions: Sequence[Question],
    held: _Held,
    rank: dict[str, int],
    markets: list[Market | None],
    catalog: BinanceCatalog,
    source: str,
    stated: _Held,
) -> dict[str, PlainPositions]:
    codes = np.array([rank[name] for name in held.symbol], dtype=np.int64)
    instruments = [""] * len(markets)
    assets = [market.margin_asset if market else "" for market in markets]
    for code in np.unique(codes).tolist():
        found = markets[code]
        assert found is not None
        instruments[code] = catalog.instrument(found)
    _, asset_names = encoded(sorted(set(assets)))
    asset = np.array([asset_names.index(name) for name in assets], dtype=np.int64)[codes]
    owners = len(questions)
    homes = [q.home_of(name) for q in questions for name in asset_names]
    home = spread(held.owner * len(asset_names) + asset, homes, pa.string())
    instrument = spread(codes, instruments, pa.string())
    positions = canonical_table(
        "positions",
        len(codes),
        account_id=home,
        instrument_id=instrument,
        side_mode=spread(held.side, [SIDE_MODES[word] for word in _SIDES], pa.string()),
        quantity=held.quantity,
        entry_price=held.entry_price,
        leverage=held.leverage,
        reported_initial_margin=held.initial,
        reported_maintenance_margin=held.maintenance,
        reported_liquidation_price=held.liquidation_price,
    )
    # One mark per account and instrument, in their order; both sides of a hedge state the same.
    by_home = np.lexsort((codes, asset if len(questions) and questions[0].by_asset else asset * 0, held.owner))
    marked = by_home[~lacks(held.mark_price)[by_home]]
    key = held.owner[marked] * len(markets) + codes[marked]
    marked = marked[np.concatenate([[True], key[1:] != key[:-1]])] if len(marked) else marked
    moments, kept = [q.risk.received_at if q.risk else None for q in questions], pa.array(marked)
    marks = own_marks(
        VENUE,
        home.take(kept),
        instrument.take(kept),
        nearest_floats(held.mark_price.take(kept)),
        as_of=spread(held.owner[marked], moments, TIME),
        source=source,
    )
    wallets = _wallets(questions, stated, rank, assets)
    bounds, mark_bounds = (
        np.searchsorted(numbers, np.arange(owners + 1)).tolist() for numbers in (held.owner, held.owner[marked])
    )
    out: dict[str, PlainPositions] = {}
    for number in np.unique(held.owner).tolist():
        start, end = bounds[number], bounds[number + 1]
        symbols: dict[str, set[str]] = {}
        for name, code in zip(held.symbol[start:end], codes[start:end].tolist(), strict=True):
            symbols.setdefault(assets[code], set()).add(name)
        question = questions[number]
        by_account: dict[str, set[str]] = {}
        for name, group in symbols.items():
            by_account.setdefault(question.home_of(name), set()).update(group)
        first, last = mark_bounds[number], mark_bounds[number + 1]
        out[question.owner] = PlainPositions(
            positions.slice(start, end - start), marks.slice(first, last - first), by_account, wallets[number]
        )
    return out


def _wallets(
    questions: Sequence[Question], stated: _Held, rank: dict[str, int], assets: list[str]
) -> list[dict[str, list[Decimal | None]]]:
    out: list[dict[str, list[Decimal | None]]] = [{} for _ in questions]
    known = {
        (owner, assets[rank[name]], states)
        for owner, name, states in zip(stated.owner.tolist(), stated.symbol, stated.states_wallet.tolist(), strict=True)
    }
    for owner, asset, states in sorted(known):
        out[owner].setdefault(asset, []).append(Decimal(0) if states else None)
    return out
