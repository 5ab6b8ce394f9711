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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .cube import CubeBuilder, OptionTerms, years_until
from .errors import ConfigurationError
from .market import USD, combined
from .rule_forms import DebtCharge, Fixed, Form, TieredNotional, Verdict, WeightedValue, parse_parameters
from .rules.tiered_notional import pack_tiers
from .schema import cast_table

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
_PRICE_FIELDS = ("oracle", "index", "stable_price", "mark")


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


class Legs(NamedTuple):
    """Exposures [legs], sorted by account: account, row of the cube, and USD per unit of the row's value."""

    account: np.ndarray
    row: np.ndarray
    market: np.ndarray
    equity: np.ndarray
    requirement: np.ndarray


class TierEntries(NamedTuple):
    """Positions under tiers [entries], sorted by account.

    Notional in the settlement asset moves with `ratio_row`, the settlement asset's USD price with `settlement_row`,
    notional in USD with `notional_row`; `table` is a row of the tier tables.
    """

    account: np.ndarray
    notional_row: np.ndarray
    settlement_row: np.ndarray
    ratio_row: np.ndarray
    notional: np.ndarray
    settlement_usd: np.ndarray
    table: np.ndarray


class TierTables(NamedTuple):
    """Floors, steps and jumps [tables, tiers] as `rules.tiered_notional`; padded tiers have step and jump 0."""

    floor: np.ndarray
    step: np.ndarray
    jump: np.ndarray


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

        def part(table: Any) -> Any:
            at, end = np.searchsorted(table.account, (low, high)).tolist()
            return type(table)(table.account[at:end] - low, *(column[at:end] for column in table[1:]))

        return replace(
            self,
            accounts=accounts._replace(portfolio=accounts.portfolio - first),
            legs=part(self.legs),
            tiers=part(self.tiers),
        )


class _NotCoveredError(Exception):
    """An asset, instrument or rule set needs what only the engine does."""


NOT_COVERED = pa.schema([("portfolio_id", pa.string()), ("account_id", pa.string()), ("reason", pa.string())])


def book_columns(
    tables: Mapping[str, Any], portfolios: pa.Table, *, as_of: datetime, known: frozenset[str] | None = None
) -> BookColumns:
    """The columns of a book; `portfolios` has the columns `portfolio_id` and `account_id`, one row for each account.

    `tables` are canonical (any Arrow source; `open_orders` may be absent); with `known` factors, what needs another one
    is not covered. Rows are those of a checked snapshot: an account with a row twice, with a negative
    balance or with an id that no table knows is not covered. Raises `ConfigurationError` for an account in two
    portfolios or in none, and `DataError` for a table of the wrong shape.
    """
    return _Columns(tables, portfolios, as_of, known).packed()


class _Column(NamedTuple):
    """A text column as numbers into its sorted distinct texts; -1 for null."""

    texts: list[str]
    code: np.ndarray


def _encoded(values: pa.ChunkedArray) -> _Column:
    encoded = pc.dictionary_encode(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    texts = encoded.dictionary.to_pylist()
    # Sorted, because the rows of the cube are numbered as they are met: the order of the table may not show.
    order = sorted(range(len(texts)), key=texts.__getitem__)
    place = np.zeros(len(texts) + 1, np.int64)
    place[order] = np.arange(len(texts))
    place[-1] = -1
    code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return _Column([texts[number] for number in order], place[code])


def _numbers(table: pa.Table, name: str, missing: float = 0.0) -> np.ndarray:
    return table[name].cast(pa.float64()).fill_null(missing).to_numpy().astype(np.float64, copy=False)


def _place(values: pa.ChunkedArray, among: pa.Array) -> np.ndarray:
    """Position of each value among the texts, -1 where it is none of them."""
    found = pc.index_in(values, value_set=among)
    return found.fill_null(-1).to_numpy().astype(np.int64)


class _Asset(NamedTuple):
    """Price today in USD and the row that moves it."""

    price: float
    exponents: Mapping[str, float]
    row: int


class _Instrument(NamedTuple):
    """What one unit of quantity adds: legs (value, cash of one unit of entry price, settlement), and tiers."""

    value_row: int
    value_usd: float
    settlement_row: int
    settlement_usd: float
    entry_usd: float
    inverse: bool
    option: bool
    notional: float
    ratio_row: int
    settlement: str


class _Rules(NamedTuple):
    """A covered rule set."""

    trigger: float
    at_or_below: bool
    needs_requirement: bool
    unit_weights: bool
    full_liabilities: bool
    haircut: bool
    debt: DebtCharge | None
    tiers: TieredNotional | None
    fixed_equity: float
    fixed_maintenance: float


class _Columns:
    """Reads the tables once; every lookup by asset, instrument or rule set happens once for each distinct one."""

    def __init__(
        self, tables: Mapping[str, Any], portfolios: pa.Table, as_of: datetime, known: frozenset[str] | None
    ) -> None:
        self.tables = {name: cast_table(name, tables[name]) for name in _READ}
        self.orders = cast_table("open_orders", tables["open_orders"]) if "open_orders" in tables else None
        self.as_of, self.known = as_of, known
        self.cube = CubeBuilder()
        self.assets = {row["asset_id"]: row for row in self.tables["assets"].to_pylist()}
        self.instruments = {row["instrument_id"]: row for row in self.tables["instruments"].to_pylist()}
        self.reasons: dict[int, str] = {}
        self._read_marks()
        self._read_rules()
        self._read_accounts(portfolios)

    # ---- reference tables ---------------------------------------------------------------------------------------

    def _read_marks(self) -> None:
        marks = self.tables["marks"]
        self.own_marks = marks["account_id"].drop_null().unique()
        marks = marks.filter(pc.is_null(marks["account_id"]))
        keys = zip(*(marks[name].to_pylist() for name in ("venue", "subject", "field")), strict=True)
        self.marks: dict[tuple[str, str, str], float] = dict(zip(keys, marks["value"].to_pylist(), strict=True))
        if len(self.marks) != marks.num_rows:
            raise ConfigurationError("marks: a venue, subject and field stand twice; check the tables with a snapshot")

    def _read_rules(self) -> None:
        components: dict[str, list[tuple[dict[str, Any], Form]]] = {}
        for row in (
            self.tables["rule_sets"].sort_by([("rule_set", "ascending"), ("component_no", "ascending")]).to_pylist()
        ):
            components.setdefault(row["rule_set"], []).append((row, parse_parameters(row["form"], row["parameters"])))
        self.rules: dict[str, _Rules | str] = {}
        for name, members in components.items():
            try:
                self.rules[name] = _covered_rules(members)
            except _NotCoveredError as problem:
                self.rules[name] = str(problem)
        self.collateral: dict[tuple[str, str, str], list[tuple[float, float, float, str | None]]] = {}
        table = self.tables["collateral_tiers"]
        columns = [table[name].to_pylist() for name in ("rule_set", "asset_id", "emode", "floor_in", "tier")]
        numbers = [
            _numbers(table, name).tolist()
            for name in ("floor", "asset_weight_maintenance", "liability_weight_maintenance")
        ]
        for (rule_set, asset, emode, floor_in, _), floor, weight, liability in sorted(
            zip(zip(*columns, strict=True), *numbers, strict=True), key=lambda r: (r[0][0], r[0][1], r[0][2], r[0][4])
        ):
            self.collateral.setdefault((rule_set, asset, emode), []).append((floor, weight, liability, floor_in))
        self.margin: dict[tuple[str, str], list[tuple[int, float, float, float]]] = {}
        table = self.tables["margin_tiers"]
        keys = zip(table["rule_set"].to_pylist(), table["market"].to_pylist(), strict=True)
        rows = zip(
            table["tier"].to_pylist(),
            *(_numbers(table, name).tolist() for name in ("notional_floor", "maintenance_rate", "deduction")),
            strict=True,
        )
        for key, row in zip(keys, rows, strict=True):
            self.margin.setdefault(key, []).append(row)

    def _require(self, exponents: Mapping[str, float], subject: str) -> None:
        for name in exponents:
            if self.known is not None and name not in self.known:
                raise _NotCoveredError(f"{subject} needs the factor {name}, which nothing moves")

    def _row(self, exponents: Mapping[str, float]) -> int:
        try:
            return self.cube.factor_row(exponents)
        except ValueError as problem:
            raise _NotCoveredError(str(problem)) from None

    def asset(self, venue: str, asset_id: str) -> _Asset:
        if asset_id == USD:
            return _Asset(1.0, {}, 0)
        asset = self.assets.get(asset_id)
        if asset is None:
            raise _NotCoveredError(f"asset {asset_id!r} is not known")
        exponents = {f"price:{asset['risk_factor']}": 1.0} if asset["risk_factor"] else {}
        if asset["peg_of"]:
            exponents[f"peg:{asset['peg_of']}"] = 1.0
        self._require(exponents, asset_id)
        price = next((p for f in _PRICE_FIELDS if (p := self.marks.get((venue, asset_id, f))) is not None), None)
        if price is None:
            if asset["risk_factor"] is not None:
                raise _NotCoveredError(f"no price of {asset_id} on {venue}")
            price = float(asset["multiplier"])
        return _Asset(price, exponents, self._row(exponents))

    def instrument(self, venue: str, instrument_id: str) -> _Instrument:
        row = self.instruments.get(instrument_id)
        if row is None:
            raise _NotCoveredError(f"market {instrument_id!r} is not known")
        settlement, underlying = self.asset(venue, row["settlement_asset"]), row["underlying"]
        size, inverse = float(row["contract_size"]), row["payoff"] == "inverse"
        if row["kind"] == "option":
            option = self._option_row(venue, row, settlement, inverse=inverse)
            return _Instrument(
                option, size, settlement.row, settlement.price, 0.0, inverse, True, 0.0, 0, row["settlement_asset"]
            )
        mark = self.marks.get((venue, instrument_id, "mark"))
        if mark is None:
            raise _NotCoveredError(f"no mark of {instrument_id}")
        moved = self.asset_exponents(underlying)
        self._require(moved, underlying)
        ratio = combined((moved, -1.0)) if inverse else moved
        value_row = self._row(combined((ratio, 1.0), (settlement.exponents, 1.0)))
        value = -size * settlement.price / mark if inverse else size * mark * settlement.price
        notional = size / mark if inverse else size * mark
        entry = size * settlement.price
        return _Instrument(
            value_row, value, settlement.row, settlement.price, entry, inverse, False, notional, self._row(ratio),
            row["settlement_asset"],
        )  # fmt: skip

    def asset_exponents(self, asset_id: str) -> dict[str, float]:
        if asset_id == USD:
            return {}
        asset = self.assets.get(asset_id)
        if asset is None:
            raise _NotCoveredError(f"asset {asset_id!r} is not known")
        out = {f"price:{asset['risk_factor']}": 1.0} if asset["risk_factor"] else {}
        if asset["peg_of"]:
            out[f"peg:{asset['peg_of']}"] = 1.0
        return out

    def _option_row(self, venue: str, row: Mapping[str, Any], settlement: _Asset, *, inverse: bool) -> int:
        subject = f"{row['underlying']}@{row['expiry']:%Y-%m-%dT%H:%M:%SZ}"
        forward, rate = self.marks.get((venue, subject, "forward")), self.marks.get((venue, subject, "rate"), 0.0)
        vol = self.marks.get((venue, row["instrument_id"], "implied_vol"))
        factor = self.assets.get(row["underlying"], {}).get("risk_factor")
        if forward is None or vol is None or factor is None:
            raise _NotCoveredError(f"no forward, implied vol or price factor of {row['instrument_id']}")
        names = {f"price:{factor}": 1.0}
        self._require({**names, f"vol:{factor}": 1.0}, row["instrument_id"])
        years = years_until((row["expiry"] - self.as_of).total_seconds())
        conversion = combined((settlement.exponents, 1.0), (names, -1.0 if inverse else 0.0))
        terms = OptionTerms(
            forward=forward,
            strike=float(row["strike"]),
            years=years,
            vol=vol,
            discount=float(np.exp(-max(rate, 0.0) * years)),
            is_call=row["option_type"] == "call",
            price_factor=f"price:{factor}",
            vol_factor=f"vol:{factor}",
            conversion=tuple(sorted((n, p) for n, p in conversion.items() if p)),
            conversion_today=settlement.price / forward if inverse else settlement.price,
        )
        try:
            return self.cube.option_row(terms)
        except ValueError as problem:
            raise _NotCoveredError(str(problem)) from None

    # ---- accounts -----------------------------------------------------------------------------------------------

    def _read_accounts(self, portfolios: pa.Table) -> None:
        accounts = self.tables["accounts"]
        ids = accounts["account_id"].combine_chunks()
        owner = _place(accounts["account_id"], portfolios["account_id"].combine_chunks())
        if pc.count_distinct(portfolios["account_id"]).as_py() != portfolios.num_rows:
            raise ConfigurationError("an account is in two portfolios")
        if (owner < 0).any():
            example = ids[int(np.flatnonzero(owner < 0)[0])].as_py()
            raise ConfigurationError(f"{int((owner < 0).sum())} accounts are in no portfolio, {example!r} among them")
        if pc.count_distinct(ids).as_py() != len(ids):
            raise ConfigurationError("accounts: an account_id stands twice; check the tables with a snapshot")
        self.ids = ids
        self.portfolio_id = portfolios["portfolio_id"].combine_chunks().take(pa.array(owner))
        self.venue = _encoded(accounts["venue"])
        self.rule_set = _encoded(accounts["rule_set"])
        self.unit = _encoded(accounts["settlement_asset"])
        self.emode = _encoded(accounts["emode"].fill_null(""))
        unread = _place(portfolios["account_id"], ids) < 0
        self.unread = portfolios.filter(pa.array(unread))
        for code, name in enumerate(self.rule_set.texts):
            rules = self.rules.get(name, f"rule set {name!r} is not known")
            if isinstance(rules, str):
                self._drop(np.flatnonzero(self.rule_set.code == code), rules)
        self._drop(np.flatnonzero(_place(accounts["account_id"], self.own_marks) >= 0), "marks of its own")
        if self.orders is not None and self.orders.num_rows:
            has_orders = _place(accounts["account_id"], self.orders["account_id"].unique()) >= 0
            self._drop(np.flatnonzero(has_orders), "open orders")

    def _drop(self, accounts: np.ndarray, reason: str) -> None:
        for account in np.unique(accounts).tolist():
            self.reasons.setdefault(account, reason)

    def _each(self, keys: Sequence[np.ndarray], account: np.ndarray, read: Any) -> tuple[list[Any], np.ndarray]:
        """(`read` of every distinct combination of codes, which of them a row has); rows whose combination cannot be
        read have their account dropped and point at a None.
        """
        joined = keys[0].astype(np.int64)
        for key in keys[1:]:
            joined = joined * (int(key.max(initial=0)) + 2) + key
        _, first, inverse = np.unique(joined, return_index=True, return_inverse=True)
        found = []
        for number, at in enumerate(first.tolist()):
            try:
                found.append(read(*(int(key[at]) for key in keys)))
            except _NotCoveredError as problem:
                found.append(None)
                self._drop(account[inverse == number], str(problem))
        return found, inverse

    def packed(self) -> BookColumns:
        legs: list[Legs] = []
        rules = [self.rules.get(name) for name in self.rule_set.texts]

        def of_rules(read: Any, dtype: Any) -> np.ndarray:
            values = [read(r) if isinstance(r, _Rules) else 0 for r in rules]
            return np.array(values, dtype)[self.rule_set.code]

        numbers = np.arange(len(self.ids))
        units, which = self._each(
            [self.venue.code, self.unit.code],
            numbers,
            lambda v, u: self.asset(self.venue.texts[v], self.unit.texts[u]),
        )
        unit_usd = np.array([u.price if u else 1.0 for u in units])[which]
        unit_row = np.array([u.row if u else 0 for u in units], np.int64)[which]
        fixed_equity, fixed_need = (
            of_rules(lambda r: r.fixed_equity, float),
            of_rules(lambda r: r.fixed_maintenance, float),
        )
        fixed = np.flatnonzero((fixed_equity != 0) | (fixed_need != 0))
        zero = np.zeros(len(fixed))
        legs.append(
            Legs(
                fixed, unit_row[fixed], zero, fixed_equity[fixed] * unit_usd[fixed], fixed_need[fixed] * unit_usd[fixed]
            )
        )
        legs += self._balances()
        of_positions, tiers, tables = self._positions()
        legs += of_positions
        joined = Legs(*(np.concatenate(parts) for parts in zip(*legs, strict=True)))
        return self._finished(joined, tiers, tables, of_rules)

    def _finished(self, legs: Legs, tiers: TierEntries, tables: TierTables, of_rules: Any) -> BookColumns:
        """Drop what is not covered with its whole portfolio, sort, and number the accounts anew."""
        requirement = np.zeros(len(self.ids), bool)
        requirement[legs.account[legs.requirement < 0]] = True
        self._drop(np.flatnonzero(requirement), "a requirement that falls when prices rise")
        names = _encoded(self.portfolio_id)
        lost = np.zeros(len(names.texts), bool)
        dropped = np.array(sorted(self.reasons), np.int64)
        lost[names.code[dropped]] = True
        lost[_place(self.unread["portfolio_id"], pa.array(names.texts, pa.string()))] |= self.unread.num_rows > 0
        kept = np.flatnonzero(~lost[names.code])
        columns = self.tables["accounts"].select(["node", "account_id", "venue"]).take(pa.array(kept))
        columns = columns.append_column("portfolio_id", self.portfolio_id.take(pa.array(kept)))
        order = pc.sort_indices(
            columns, sort_keys=[(name, "ascending") for name in ("portfolio_id", "node", "account_id")]
        ).to_numpy()
        columns, kept = columns.take(pa.array(order)), kept[order]
        place = np.full(len(self.ids), -1, np.int64)
        place[kept] = np.arange(len(kept))
        text = {name: np.asarray(columns[name].to_pylist(), object) for name in columns.column_names}
        owner = text["portfolio_id"]
        change = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]])) if len(owner) else np.zeros(0, int)
        portfolio = np.repeat(np.arange(len(change)), np.diff(np.append(change, len(owner))))
        accounts = Accounts(
            owner,
            text["node"],
            text["account_id"],
            text["venue"],
            portfolio,
            of_rules(lambda r: r.trigger, float)[kept],
            of_rules(lambda r: r.at_or_below, bool)[kept],
            of_rules(lambda r: r.needs_requirement, bool)[kept],
        )

        def moved(table: Any) -> Any:
            there = np.flatnonzero(place[table.account] >= 0)
            there = there[np.argsort(place[table.account[there]], kind="stable")]
            return type(table)(place[table.account[there]], *(column[there] for column in table[1:]))

        legs, tiers = moved(legs), moved(tiers)
        factor_rows = self.cube.finished_row(-1)
        legs = legs._replace(row=np.where(legs.row < 0, factor_rows - 1 - legs.row, legs.row))
        return BookColumns(accounts, legs, tiers, tables, self.cube, self._not_covered(names, lost, dropped))

    def _not_covered(self, names: _Column, lost: np.ndarray, dropped: np.ndarray) -> pa.Table:
        rows = [
            (names.texts[names.code[a]], self.ids[a].as_py(), self.reasons[a]) for a in dropped.tolist()
        ]  # fmt: skip
        rows += [(r["portfolio_id"], r["account_id"], "no account of this id") for r in self.unread.to_pylist()]
        return pa.Table.from_pylist(
            [dict(zip(NOT_COVERED.names, row, strict=True)) for row in sorted(rows)], schema=NOT_COVERED
        )

    # ---- rows of accounts ---------------------------------------------------------------------------------------

    def _owners(self, table: pa.Table, columns: Sequence[str]) -> np.ndarray:
        """Account of each row; accounts with a key twice are dropped."""
        account = _place(table["account_id"], self.ids)
        if (account < 0).any():
            raise ConfigurationError("rows of an account that is not in the table accounts; check with a snapshot")
        key = account
        for name in columns:
            code = _encoded(table[name]).code
            key = key * (int(code.max(initial=0)) + 1) + code
        _, number, count = np.unique(key, return_inverse=True, return_counts=True)
        self._drop(account[count[number] > 1], "a row twice")
        return account

    def _weights(self, rule_set: int, emode: int, unit: int, asset_id: str) -> tuple[float, float]:
        """(asset weight, liability weight) of an asset at maintenance; refused where they are not one number each."""
        name = self.rule_set.texts[rule_set]
        tiers = self.collateral.get((name, asset_id, self.emode.texts[emode])) or self.collateral.get(
            (name, asset_id, "")
        )
        if tiers is None:
            if asset_id != self.unit.texts[unit]:
                raise _NotCoveredError(f"no collateral weight of {asset_id} in {name}")
            return 1.0, 1.0
        if len(tiers) > 1 or tiers[0][0] != 0:
            raise _NotCoveredError(f"several slices of {asset_id} in {name}")
        return tiers[0][1], tiers[0][2]

    def _balances(self) -> list[Legs]:
        table = self.tables["balances"]
        account = self._owners(table, ("asset_id", "side"))
        asset = _encoded(table["asset_id"])
        quantity = _numbers(table, "quantity") + _numbers(table, "accrued_interest")
        is_debt = pc.equal(table["side"], "liability").to_numpy()
        self._drop(account[_numbers(table, "quantity") < 0], "a negative balance")
        counts = table["collateral_enabled"].to_numpy() | is_debt
        assets, which = self._each(
            [self.venue.code[account], asset.code],
            account,
            lambda v, a: self.asset(self.venue.texts[v], asset.texts[a]),
        )
        price = np.array([a.price if a else 0.0 for a in assets])[which]
        row = np.array([a.row if a else 0 for a in assets], np.int64)[which]
        usd = np.where(is_debt, -quantity, quantity) * price

        def factors(rule_set: int, emode: int, unit: int, a: int) -> tuple[float, float, float, float]:
            """(equity weight of an asset, of a debt, requirement per asset, per debt)."""
            rules = self.rules.get(self.rule_set.texts[rule_set])
            if not isinstance(rules, _Rules):
                return 0.0, 0.0, 0.0, 0.0
            equity = debt = 1.0
            need = owed = 0.0
            if not rules.unit_weights or rules.haircut:
                weight, liability = self._weights(rule_set, emode, unit, asset.texts[a])
                if not rules.unit_weights:
                    equity, debt = weight, 1.0 if rules.full_liabilities else liability
                if rules.haircut:
                    need, owed = 1.0 - weight, liability - 1.0
            if rules.debt is not None:
                owed += float(rules.debt.maintenance_rates.get(asset.texts[a], rules.debt.maintenance_rate))
            return equity, debt, need, owed

        of_rules, which = self._each(
            [self.rule_set.code[account], self.emode.code[account], self.unit.code[account], asset.code],
            account,
            factors,
        )
        weight = np.array([f or (0.0, 0.0, 0.0, 0.0) for f in of_rules]).reshape(-1, 4)[which]
        equity = usd * np.where(is_debt, weight[:, 1], weight[:, 0]) * counts
        # The requirement's haircut is a positive number of a positive value, a debt's of what is owed.
        requirement = np.abs(usd) * np.where(is_debt, weight[:, 3], weight[:, 2]) * counts
        return [Legs(account, row, usd, equity, requirement)]

    def _positions(self) -> tuple[list[Legs], TierEntries, TierTables]:
        table = self.tables["positions"]
        account = self._owners(table, ("instrument_id", "side_mode"))
        name = _encoded(table["instrument_id"])
        found, which = self._each(
            [self.venue.code[account], name.code],
            account,
            lambda v, i: self.instrument(self.venue.texts[v], name.texts[i]),
        )
        empty = _Instrument(0, 0.0, 0, 0.0, 0.0, False, True, 0.0, 0, "")

        def column(attribute: str, dtype: Any = np.float64) -> np.ndarray:
            return np.array([getattr(i or empty, attribute) for i in found], dtype)[which]

        quantity, entry = _numbers(table, "quantity"), _numbers(table, "entry_price", np.nan)
        option, inverse = column("option", bool), column("inverse", bool)
        self._drop(account[~option & ~(entry > 0)], "no entry price")
        settlement_usd, settlement_row = column("settlement_usd"), column("settlement_row", np.int64)
        cash = (_numbers(table, "unsettled_funding") + _numbers(table, "realized_pnl")) * settlement_usd
        safe_entry = np.where(entry > 0, entry, 1.0)
        at_entry = column("entry_usd") * quantity
        cash = cash + np.where(option, 0.0, np.where(inverse, at_entry / safe_entry, -at_entry * safe_entry))
        value = quantity * column("value_usd")
        self._check_profits(account, found, which)
        zero = np.zeros(len(account))
        legs = [
            Legs(account, column("value_row", np.int64), value, value, zero),
            Legs(account, settlement_row, cash, cash, zero),
        ]
        tables: list[Any] = []

        def table_of(rule_set: int, instrument: int) -> int:
            """Number of the tiers of an instrument, -1 where none are needed."""
            rules = self.rules.get(self.rule_set.texts[rule_set])
            if not isinstance(rules, _Rules) or rules.tiers is None:
                return -1
            instrument_id = name.texts[instrument]
            if self.instruments[instrument_id]["kind"] == "option":
                raise _NotCoveredError(f"option {instrument_id} under notional tiers")
            rows = sorted(self.margin.get((self.rule_set.texts[rule_set], instrument_id), ()))
            if not rows:
                raise _NotCoveredError(f"no margin tiers of {instrument_id}")
            floors = [row[1] for row in rows]
            if floors[0] != 0 or any(a >= b for a, b in pairwise(floors)):
                raise _NotCoveredError(f"tier floors of {instrument_id} do not ascend from 0")
            rates = [row[2] for row in rows]
            if rates[0] <= 0:
                raise _NotCoveredError(f"the first tier of {instrument_id} requires nothing")
            tables.append(pack_tiers(floors, rates, [row[3] for row in rows], rates, initial_is_integral=True))
            return len(tables) - 1

        known = np.array([i is not None for i in found], bool)[which]
        numbers, of_pair = self._each([self.rule_set.code[account][known], name.code[known]], account[known], table_of)
        number = np.full(len(account), -1, np.int64)
        number[known] = np.array([-1 if n is None else n for n in numbers], np.int64)[of_pair]
        at = np.flatnonzero(number >= 0)
        rules_of = [self.rules.get(text) for text in self.rule_set.texts]
        by_entry = np.array(
            [isinstance(r, _Rules) and r.tiers is not None and r.tiers.basis == "entry" for r in rules_of]
        )
        by_entry = by_entry[self.rule_set.code[account]][at] if len(rules_of) else np.zeros(len(at), bool)
        size = np.array(
            [float(self.instruments[i]["contract_size"]) if i in self.instruments else 0.0 for i in name.texts]
        )
        one = np.where(
            by_entry,
            np.where(inverse[at], size[name.code][at] / safe_entry[at], size[name.code][at] * safe_entry[at]),
            column("notional")[at],
        )
        tiers = TierEntries(
            account[at],
            np.where(by_entry, settlement_row[at], column("value_row", np.int64)[at]),
            settlement_row[at],
            np.where(by_entry, 0, column("ratio_row", np.int64)[at]),
            np.abs(quantity[at]) * one,
            settlement_usd[at],
            number[at],
        )
        width = max((len(t.floor) for t in tables), default=1)

        def padded(attribute: str, *, last: bool = False) -> np.ndarray:
            out = np.zeros((len(tables), width))
            for number, t in enumerate(tables):
                values = getattr(t, attribute)
                out[number, : len(values)] = values
                if last:
                    out[number, len(values) :] = values[-1]
            return out

        return legs, tiers, TierTables(padded("floor", last=True), padded("step"), padded("jump"))

    def _check_profits(self, account: np.ndarray, found: Sequence[_Instrument | None], which: np.ndarray) -> None:
        """Profit counts in full, or its account is not covered: a weight would depend on its sign."""
        settlement = _encoded(pa.array([i.settlement if i else "" for i in found], pa.string()))

        def plain(rule_set: int, emode: int, unit: int, asset: int, instrument: int) -> None:
            rules = self.rules.get(self.rule_set.texts[rule_set])
            of = found[instrument]
            if not isinstance(rules, _Rules) or rules.unit_weights or of is None:
                return
            asset_id = settlement.texts[asset]
            weight, liability = self._weights(rule_set, emode, unit, asset_id)
            if weight != 1.0 or not (rules.full_liabilities or liability == 1.0):
                raise _NotCoveredError(f"profit in {asset_id} that counts by its sign")

        self._each(
            [
                self.rule_set.code[account],
                self.emode.code[account],
                self.unit.code[account],
                settlement.code[which],
                which,
            ],
            account,
            plain,
        )


def _covered_rules(components: Sequence[tuple[Mapping[str, Any], Form]]) -> _Rules:
    """The rule set in the terms of this module; `_NotCoveredError` says what it has beyond them."""
    verdicts = [form for _, form in components if isinstance(form, Verdict)]
    equities = [form for row, form in components if isinstance(form, WeightedValue) and row["side"] == "equity"]
    haircuts = [form for row, form in components if isinstance(form, WeightedValue) and row["side"] == "requirement"]
    haircuts = [form for form in haircuts if form.weights != "unit"]
    debts = [form for _, form in components if isinstance(form, DebtCharge)]
    tiers = [form for _, form in components if isinstance(form, TieredNotional)]
    fixed = [(row, form) for row, form in components if isinstance(form, Fixed)]
    covered = (Verdict, WeightedValue, DebtCharge, TieredNotional, Fixed)
    for row, form in components:
        if not isinstance(form, covered):
            raise _NotCoveredError(f"the rule form {row['form']}")
        if row["side"] == "requirement" and row["level"] != "both" and not isinstance(form, Fixed):
            raise _NotCoveredError(f"{row['form']} at one level alone")
    if len(verdicts) != 1 or len(equities) != 1 or max(len(haircuts), len(debts), len(tiers)) > 1:
        raise _NotCoveredError("not one verdict, one equity and at most one of every requirement")
    equity = equities[0]
    if equity.weights != "unit" and equity.net_by_asset:
        raise _NotCoveredError("balances netted with profits by asset")
    if equity.options != "model":
        raise _NotCoveredError(f"options counted as {equity.options!r}")
    if haircuts and haircuts[0].weighted_at != "unit":
        raise _NotCoveredError("a haircut weighted at the dollar price")
    if debts and debts[0].net_by_asset:
        raise _NotCoveredError("debts netted by asset")
    if tiers and (
        tiers[0].floors != "notional" or tiers[0].minimum or tiers[0].orders != "ignore" or tiers[0].per_order
    ):
        raise _NotCoveredError("tiers counted in contracts, with a minimum or with orders")
    return _Rules(
        trigger=float(verdicts[0].trigger),
        at_or_below=verdicts[0].liquidates_when == "at_or_below",
        needs_requirement=verdicts[0].needs_requirement,
        unit_weights=equity.weights == "unit",
        full_liabilities=equity.liabilities == "unit",
        haircut=bool(haircuts),
        debt=debts[0] if debts else None,
        tiers=tiers[0] if tiers else None,
        fixed_equity=sum(float(form.equity) for row, form in fixed if row["side"] == "equity"),
        fixed_maintenance=sum(
            float(form.maintenance) for row, form in fixed if row["side"] != "equity" and row["level"] != "initial"
        ),
    )
