"""Balances, positions and fixed amounts of a book as legs: USD exposures of accounts to rows of the cube.

A leg has a row of the instrument cube and says in USD today, per unit of the row's value, what it counts at the market,
in the venue's own equity and in its requirement. Rows have the provisional numbers of `book_market`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .book_accounts import BookAccounts, Kind
from .book_market import AssetUnit, BookMarket, InstrumentUnit
from .book_tiers import CollateralWeights, MarginTiers, TierTables
from .column_codes import Codes, distinct, encoded, numbers, whole
from .covered_rules import NotCoveredError

_UNKNOWN = InstrumentUnit(0, 0.0, 0, 0.0, 0.0, False, True, 0.0, 0, "", 0.0)


class Legs(NamedTuple):
    """Exposures [legs], sorted by account and row: account, row of the cube, and USD per unit of the row's value."""

    account: np.ndarray
    row: np.ndarray
    market: np.ndarray
    equity: np.ndarray
    requirement: np.ndarray


class TierEntries(NamedTuple):
    """Positions under tiers [entries], sorted by account.

    Notional in the settlement asset moves with `ratio_row`, the settlement asset's USD price with `settlement_row`,
    notional in USD with `notional_row`; `table` is a row of the tier tables. `notional_leg` and `settlement_leg` are
    legs of the account with these rows.
    """

    account: np.ndarray
    notional_row: np.ndarray
    settlement_row: np.ndarray
    ratio_row: np.ndarray
    notional: np.ndarray
    settlement_usd: np.ndarray
    table: np.ndarray
    notional_leg: np.ndarray
    settlement_leg: np.ndarray


class Fixed(NamedTuple):
    """The unit of every kind of account, and which accounts have it."""

    units: list[AssetUnit | None]
    which: np.ndarray


def read_fixed(accounts: BookAccounts, market: BookMarket) -> Fixed:
    """The units in which rule sets state fixed amounts."""
    everybody = np.arange(len(accounts))
    units, which = accounts.each(
        everybody, np.zeros(len(accounts), np.int64), lambda kind, _: market.asset(kind.venue, kind.unit)
    )
    return Fixed(units, which)


def fixed_legs(accounts: BookAccounts, fixed: Fixed, final: np.ndarray) -> Legs:
    """The amounts that rule sets state in the account's own unit; `final` are the rows of provisional numbers."""
    equity = accounts.of_rules(lambda r: r.fixed_equity, float)
    need = accounts.of_rules(lambda r: r.fixed_maintenance, float)
    some = np.flatnonzero((equity != 0) | (need != 0))
    price = _column(fixed.units, lambda u: u.price)[fixed.which][some]
    row = final[_column(fixed.units, lambda u: u.row, np.int64)][fixed.which][some]
    return Legs(some, row, np.zeros(len(some)), equity[some] * price, need[some] * price)


class _HeldAsset(NamedTuple):
    """An asset on accounts of a kind: its unit, and how much of an asset and of a debt counts in equity and
    requirement.
    """

    unit: AssetUnit
    equity: float
    debt_equity: float
    requirement: float
    debt_requirement: float


class Balances(NamedTuple):
    """Balances by their keys, what is held on accounts of a kind, and which of these each balance is."""

    account: np.ndarray
    order: np.ndarray
    found: list[_HeldAsset | None]
    which: np.ndarray


def read_balances(accounts: BookAccounts, market: BookMarket, weights: CollateralWeights, table: pa.Table) -> Balances:
    """The assets of balances; accounts with what cannot be read are dropped."""
    asset = encoded(table["asset_id"])
    account, code, order = accounts.owned(table, asset, "side")

    def read(kind: Kind, number: int) -> _HeldAsset:
        asset_id = asset.texts[number]
        return _HeldAsset(market.asset(kind.venue, asset_id), *_counted(kind, weights, asset_id))

    return Balances(account, order, *accounts.each(account, code, read))


def balance_legs(accounts: BookAccounts, balances: Balances, table: pa.Table, final: np.ndarray) -> Legs:
    """What balances are worth and count, debts negative; `final` are the rows of provisional numbers."""
    account, order, found, which = balances
    held = numbers(table, "quantity")[order]
    quantity = held + numbers(table, "accrued_interest")[order]
    is_debt, is_asset = (
        whole(pc.equal(table["side"], side)).to_numpy(zero_copy_only=False)[order] for side in ("liability", "asset")
    )
    accounts.drop(account[~(is_debt | is_asset)], "a balance that is neither an asset nor a liability")
    accounts.drop(account[~((held >= 0) & (quantity >= 0))], "a negative balance")
    counts = whole(table["collateral_enabled"]).to_numpy(zero_copy_only=False)[order] | is_debt
    row = final[_column(found, lambda h: h.unit.row, np.int64)][which]
    usd = np.where(is_debt, -quantity, quantity) * _column(found, lambda h: h.unit.price)[which]
    # Of an asset, then of a debt; the number of a balance among both.
    either = which + len(found) * is_debt
    equity = np.concatenate([_column(found, lambda h: h.equity), _column(found, lambda h: h.debt_equity)])
    need = np.concatenate([_column(found, lambda h: h.requirement), _column(found, lambda h: h.debt_requirement)])
    # The requirement's haircut is a positive number of a positive value, a debt's of what is owed.
    return Legs(account, row, usd, usd * equity[either] * counts, np.abs(usd) * need[either] * counts)


def _counted(kind: Kind, weights: CollateralWeights, asset_id: str) -> tuple[float, float, float, float]:
    """(equity weight of an asset, of a debt, requirement per asset, per debt)."""
    rules = kind.rules
    if rules is None:
        return 0.0, 0.0, 0.0, 0.0
    equity = debt = 1.0
    need = owed = 0.0
    if not rules.unit_weights or rules.haircut:
        weight, liability = weights.of(kind.rule_set, kind.emode, kind.unit, asset_id)
        if not rules.unit_weights:
            equity, debt = weight, 1.0 if rules.full_liabilities else liability
        if rules.haircut:
            need, owed = 1.0 - weight, liability - 1.0
    if rules.debt_rates is not None:
        owed += rules.debt_rates.get(asset_id, rules.debt_rate)
    return equity, debt, need, owed


class _HeldInstrument(NamedTuple):
    """An instrument on accounts of a kind: its unit, and its tier table (-1 where it needs none)."""

    unit: InstrumentUnit
    table: int


class Positions(NamedTuple):
    """Positions by their keys, what is held on accounts of a kind, which of these each position is, and the tiers."""

    account: np.ndarray
    order: np.ndarray
    found: list[_HeldInstrument | None]
    which: np.ndarray
    tables: TierTables


def read_positions(
    accounts: BookAccounts,
    market: BookMarket,
    weights: CollateralWeights,
    tables: Mapping[str, pa.Table],
    instrument: Codes,
) -> Positions:
    """The instruments of positions and their tiers; accounts with what cannot be read are dropped. `instrument` are
    the codes of the table's rows.
    """
    account, code, order = accounts.owned(tables["positions"], instrument, "side_mode")
    tiers = MarginTiers(tables["margin_tiers"], [kind.rule_set for kind in accounts.kinds], instrument.texts)
    used: dict[int, int] = {}

    def read(kind: Kind, number: int) -> _HeldInstrument:
        instrument_id = instrument.texts[number]
        unit = market.instrument(kind.venue, instrument_id)
        _check_profit(kind, weights, unit, instrument_id)
        if kind.rules is None or not kind.rules.tiered:
            return _HeldInstrument(unit, -1)
        if unit.option:
            raise NotCoveredError(f"option {instrument_id} under notional tiers")
        return _HeldInstrument(unit, used.setdefault(tiers.table(kind.rule_set, instrument_id), len(used)))

    found, which = accounts.each(account, code, read)
    return Positions(account, order, found, which, tiers.tables(list(used)))


def position_legs(
    accounts: BookAccounts, positions: Positions, table: pa.Table, final: np.ndarray
) -> tuple[Legs, TierEntries]:
    """(what positions are worth, then the cash of each account by settlement asset; the entries under tiers).

    The legs of an entry are numbers among these legs; `final` are the rows of provisional numbers.
    """
    account, order, found, which, _ = positions
    units = [held.unit if held is not None else _UNKNOWN for held in found]

    def of_units(attribute: str, dtype: Any = np.float64) -> np.ndarray:
        return np.array([getattr(unit, attribute) for unit in units], dtype)

    quantity, entry = numbers(table, "quantity")[order], numbers(table, "entry_price", np.nan)[order]
    option, inverse = of_units("option", bool)[which], of_units("inverse", bool)[which]
    accounts.drop(account[~option & ~(entry > 0)], "no entry price")
    settlement_usd = of_units("settlement_usd")[which]
    entry = np.where(entry > 0, entry, 1.0)
    # Bought at the entry price: what was paid for it, in the settlement asset.
    paid = np.where(inverse, -1.0 / entry, entry) * of_units("entry_usd")[which] * quantity
    unsettled = (numbers(table, "unsettled_funding") + numbers(table, "realized_pnl"))[order]
    cash = unsettled * settlement_usd - paid
    value_row = final[of_units("value_row", np.int64)]
    settlement_row = final[of_units("settlement_row", np.int64)]
    ratio_row = final[of_units("ratio_row", np.int64)]
    settled, of_settled = _cash_legs(account, settlement_row[which], cash)

    number = np.array([held.table if held is not None else -1 for held in found], np.int64)
    at = np.flatnonzero(number[which] >= 0)
    pair = which[at]
    by_entry = accounts.of_rules(lambda r: r.tiers_by_entry, bool)[account[at]]
    settlement_leg = len(account) + of_settled[at]
    notional, notional_row, ratio, notional_leg = of_units("notional")[pair], value_row[pair], ratio_row[pair], at
    if by_entry.any():
        contract = of_units("contract")[pair]
        of_contract = np.where(inverse[at], contract / entry[at], contract * entry[at])
        notional = np.where(by_entry, of_contract, notional)
        notional_row = np.where(by_entry, settlement_row[pair], notional_row)
        ratio, notional_leg = np.where(by_entry, 0, ratio), np.where(by_entry, settlement_leg, at)
    entries = TierEntries(
        account[at],
        notional_row,
        settlement_row[pair],
        ratio,
        np.abs(quantity[at]) * notional,
        settlement_usd[at],
        number[pair],
        notional_leg,
        settlement_leg,
    )
    value = quantity * of_units("value_usd")[which]
    zero = np.zeros(len(account))
    worth = Legs(account, value_row[which], value, value, zero)
    return Legs(*(np.concatenate(parts) for parts in zip(worth, settled, strict=True))), entries


def _cash_legs(account: np.ndarray, row: np.ndarray, cash: np.ndarray) -> tuple[Legs, np.ndarray]:
    """(one leg for every account and settlement row, the leg of each position)."""
    rows = distinct(row)
    key = account * len(rows.example) + rows.number
    size = (int(account[-1]) + 1) * len(rows.example) if len(account) else 0
    there = np.flatnonzero(np.bincount(key, minlength=size))
    place = np.zeros(size, np.int64)
    place[there] = np.arange(len(there))
    total = np.bincount(key, weights=cash, minlength=size)[there]
    of_row = row[rows.example][there % max(len(rows.example), 1)]
    return Legs(there // max(len(rows.example), 1), of_row, total, total, np.zeros(len(there))), place[key]


def _check_profit(kind: Kind, weights: CollateralWeights, unit: InstrumentUnit, instrument_id: str) -> None:
    """Profit counts in full, or the account is not covered: a weight would depend on its sign."""
    if kind.rules is None or kind.rules.unit_weights:
        return
    if weights.has(kind.rule_set, kind.emode, instrument_id):
        raise NotCoveredError(f"profit of {instrument_id} at a weight of its own")
    weight, liability = weights.of(kind.rule_set, kind.emode, kind.unit, unit.settlement)
    if weight != 1.0 or not (kind.rules.full_liabilities or liability == 1.0):
        raise NotCoveredError(f"profit in {unit.settlement} that counts by its sign")


def _column(found: Sequence[Any], read: Any, dtype: Any = np.float64) -> np.ndarray:
    return np.array([read(held) if held is not None else 0 for held in found], dtype)
