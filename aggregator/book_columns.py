"""Canonical Arrow tables of a whole book as flat, sorted columns of USD exposures: no Python runs for each row.

A **leg** is an exposure of an account to one row of the instrument cube: USD today per unit of the row's value, as it
counts at the market, in the venue's own equity and in its requirement. Everything is in USD: a venue's inequality
`equity < trigger * requirement` in its own unit is the same inequality times the unit's price. A **tier entry** is a
position under notional tiers; what it requires is linear in the cube only where its tier stays (`netting.py`).

Covered are rule sets of the forms `tiered_notional` (floors in notional, no minimum, orders ignored), `weighted_value`
(every weight one, or weights that are linear: no netting of an asset's balances with profits, one slice or slices
counted in tokens), `debt_charge` without netting, and `fixed`; options count at their model value. Whatever else an
account needs, or lacks, makes its portfolio one that is **not covered**, with the reason: the engine evaluates it.
The figures are those of `account.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .book_accounts import BookAccounts
from .book_legs import (
    Balances,
    Fixed,
    Legs,
    Positions,
    TierEntries,
    balance_legs,
    fixed_legs,
    position_legs,
    read_balances,
    read_fixed,
    read_positions,
)
from .book_market import BookMarket
from .book_tiers import CollateralWeights, TierTables
from .column_codes import Codes, encoded, order_by, whole
from .cube import CubeBuilder
from .errors import ConfigurationError
from .schema.casting import cast_table

__all__ = ["NOT_COVERED", "Accounts", "BookColumns", "Legs", "TierEntries", "TierTables", "book_columns"]

_READ = (
    "accounts",
    "balances",
    "positions",
    "instruments",
    "assets",
    "marks",
    "rule_sets",
    "margin_tiers",
    "collateral_tiers",
)


class Accounts(NamedTuple):
    """Covered accounts, sorted by portfolio, node and id; `portfolio` numbers the portfolios that have one."""

    portfolio_id: np.ndarray
    node: np.ndarray
    account_id: np.ndarray
    venue: np.ndarray
    portfolio: np.ndarray
    trigger: np.ndarray
    at_or_below: np.ndarray
    needs_requirement: np.ndarray


@dataclass(frozen=True)
class BookColumns:
    """A covered book: accounts, legs, tier entries, the rows of the cube; and what is not covered, with reasons."""

    accounts: Accounts
    legs: Legs
    tiers: TierEntries
    tables: TierTables
    cube: CubeBuilder
    not_covered: pa.Table

    def portfolios(self, first: int, last: int) -> BookColumns:
        """The book of the portfolios `first` .. `last - 1`, accounts and portfolios numbered anew."""
        low, high = np.searchsorted(self.accounts.portfolio, (first, last)).tolist()
        accounts = Accounts(*(column[low:high] for column in self.accounts))
        at, end = np.searchsorted(self.legs.account, (low, high)).tolist()
        legs = Legs(*(column[at:end] for column in self.legs))
        begin, stop = np.searchsorted(self.tiers.account, (low, high)).tolist()
        tiers = TierEntries(*(column[begin:stop] for column in self.tiers))
        return replace(
            self,
            accounts=accounts._replace(portfolio=accounts.portfolio - first),
            legs=legs._replace(account=legs.account - low),
            tiers=tiers._replace(
                account=tiers.account - low,
                notional_leg=tiers.notional_leg - at,
                settlement_leg=tiers.settlement_leg - at,
            ),
        )


NOT_COVERED = pa.schema([("portfolio_id", pa.string()), ("account_id", pa.string()), ("reason", pa.string())])


class ReadBook(NamedTuple):
    """A book whose accounts, assets and instruments are known, and with them the rows of its cube."""

    tables: Mapping[str, pa.Table]
    accounts: BookAccounts
    positions: Positions
    balances: Balances
    fixed: Fixed
    cube: CubeBuilder
    final_row: np.ndarray


def book_columns(
    tables: Mapping[str, Any], portfolios: pa.Table, *, as_of: datetime, known: frozenset[str] | None = None
) -> BookColumns:
    """The columns of a book; `portfolios` has the columns `portfolio_id` and `account_id`, one row for each account.

    `tables` are canonical (any Arrow source; `open_orders` may be absent); with `known` factors, what needs another one
    is not covered. Rows are those of a checked snapshot: an account with a row twice, with a negative balance, with a
    price that is no positive number or with an id that no table knows is not covered. Raises `ConfigurationError` for
    an account in two portfolios or in none, an id that the map lacks, a table that is not there, and an asset, an
    instrument or a mark twice; `DataError` for a table of the wrong shape.
    """
    return columns_of(read_book(tables, portfolios, as_of=as_of, known=known))


def read_book(
    tables: Mapping[str, Any], portfolios: pa.Table, *, as_of: datetime, known: frozenset[str] | None = None
) -> ReadBook:
    """The first half of `book_columns`, after which the cube can be priced."""
    absent = [name for name in _READ if name not in tables]
    if absent:
        raise ConfigurationError(f"no table {', '.join(absent)}; one without rows will do")
    canonical = {name: cast_table(name, tables[name]) for name in _READ}
    instrument = encoded(canonical["positions"]["instrument_id"])
    market = BookMarket(canonical, pa.array(instrument.texts, pa.string()), as_of, known)
    weights = CollateralWeights(canonical["collateral_tiers"])
    accounts = BookAccounts(canonical["accounts"], portfolios, canonical["rule_sets"])
    accounts.drop_ids(market.with_own_marks, "marks of its own")
    if "open_orders" in tables:
        accounts.drop_ids(cast_table("open_orders", tables["open_orders"])["account_id"].unique(), "open orders")
    positions = read_positions(accounts, market, weights, canonical, instrument)
    balances = read_balances(accounts, market, weights, canonical["balances"])
    fixed = read_fixed(accounts, market)
    cube, final_row = market.finished()
    return ReadBook(canonical, accounts, positions, balances, fixed, cube, final_row)


def columns_of(read: ReadBook) -> BookColumns:
    """The second half of `book_columns`: legs and tier entries. It takes `read` up: accounts may be dropped from it."""
    tables, accounts, positions, balances, fixed, cube, final = read
    held, entries = position_legs(accounts, positions, tables["positions"], final)
    others = (
        fixed_legs(accounts, fixed, final),
        balance_legs(accounts, balances, tables["balances"], final),
    )
    joined = Legs(*(np.concatenate(parts) for parts in zip(held, *others, strict=True)))
    accounts.drop(joined.account[joined.requirement < 0], "a requirement that falls when prices rise")

    kept = np.flatnonzero(~accounts.lost_portfolios()[accounts.portfolio.code])
    place = np.full(len(accounts), -1, np.int64)
    place[kept] = np.arange(len(kept))
    legs, leg_place = _sorted_legs(joined, place)
    return BookColumns(
        _covered_accounts(accounts, kept),
        legs,
        _covered_entries(entries, place, leg_place),
        positions.tables,
        cube,
        pa.Table.from_pylist(
            [dict(zip(NOT_COVERED.names, row, strict=True)) for row in accounts.refused()], schema=NOT_COVERED
        ),
    )


def _covered_accounts(accounts: BookAccounts, kept: np.ndarray) -> Accounts:
    def text(column: Codes) -> np.ndarray:
        return np.array(column.texts, object)[column.code[kept]]

    owner = accounts.portfolio.code[kept]
    change = np.concatenate([[False], owner[1:] != owner[:-1]])[: len(owner)]
    return Accounts(
        text(accounts.portfolio),
        text(accounts.node),
        whole(accounts.ids.take(pa.array(kept))).to_numpy(zero_copy_only=False),
        text(accounts.venue),
        np.cumsum(change),
        accounts.of_rules(lambda r: r.trigger, float)[kept],
        accounts.of_rules(lambda r: r.at_or_below, bool)[kept],
        accounts.of_rules(lambda r: r.needs_requirement, bool)[kept],
    )


def _sorted_legs(joined: Legs, place: np.ndarray) -> tuple[Legs, np.ndarray]:
    """(the legs of covered accounts by account and row, the place of every leg that was joined).

    Legs of one account and row stay in the order of positions, cash, fixed amounts and balances, each by their keys.
    """
    account = place[joined.account]
    order = order_by(account, joined.row)
    order = order[np.searchsorted(account[order], 0) :]
    leg_place = np.full(len(account), -1, np.int64)
    leg_place[order] = np.arange(len(order))
    return Legs(account[order], *(column[order] for column in joined[1:])), leg_place


def _covered_entries(entries: TierEntries, place: np.ndarray, leg_place: np.ndarray) -> TierEntries:
    """The entries of covered accounts and their places among the legs."""
    account = place[entries.account]
    covered = account >= 0
    if not covered.all():
        entries, account = TierEntries(*(column[covered] for column in entries)), account[covered]
    return entries._replace(
        account=account,
        notional_leg=leg_place[entries.notional_leg],
        settlement_leg=leg_place[entries.settlement_leg],
    )
