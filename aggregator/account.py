"""One account as rows over the instrument cube and rows of its rule set.

Two moneys appear: **USD** for the unified book, and the account's own **unit** (its settlement asset) for the venue's
own rules, so that the venue's number stays exactly the venue's number while its stable is off peg. Every rule form of
the account's rule set is read here once, from data; the engine only sees rows.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .cube import OptionTerms
from .errors import FailureReason
from .market import IncompleteAccountError, Market, combined
from .pricing import black76_price
from .risk_units import UnitRow, forward_is_spot, marks_undiscounted, option_expiry, risk_unit_rows
from .rule_forms import (
    ContractMargin,
    DebtCharge,
    ExpiryMaxLoss,
    Fixed,
    Form,
    PriceVolGrid,
    RateOfSize,
    TieredNotional,
    Verdict,
    WeightedValue,
)
from .rules.rate_of_size import rate_of_size
from .rules.tiered_notional import PackedTiers, pack_tiers, rate_at_quantity
from .snapshot import Row


class Line(NamedTuple):
    """One balance or position for reporting: its key, where it is, and the asset that drives it.

    `factor` is the price factor that moves it, empty for stable tokens; `kind` is collateral, debt, linear (perps and
    futures) or option; `symbol` is the token's own, or the instrument's name. `funding_rate` is a perpetual's, for the
    venue's own interval, positive when longs pay; None without one.
    """

    key: str
    account_id: str
    venue: str
    node: str
    asset: str
    value_usd: float
    gross_usd: float
    factor: str
    kind: str
    symbol: str
    funding_rate: float | None
    is_perpetual: bool


class AccountInfo(NamedTuple):
    """What results say of an account beside its numbers."""

    account_id: str
    node: str
    venue: str
    chain: str
    margin_mode: str
    unit: str
    unit_price_usd: float
    trigger: float
    at_or_below: bool
    needs_requirement: bool
    health: str
    """Definition of the venue's own health, see rule_forms.Verdict."""
    reported: Mapping[str, float | None]
    reported_parts: bool

    @property
    def lender(self) -> bool:
        """Whether health is weighted collateral over debt."""
        return self.health == "weighted_collateral_over_debt"


def account_info(row: Row, unit_price: float, verdict: Verdict, *, reported_parts: bool) -> AccountInfo:
    names = ("reported_equity", "reported_initial_margin", "reported_maintenance_margin", "reported_health")
    return AccountInfo(
        account_id=row["account_id"],
        node=row["node"],
        venue=row["venue"],
        chain=row["chain"] or "",
        margin_mode=row["margin_mode"],
        unit=row["settlement_asset"],
        unit_price_usd=unit_price,
        trigger=float(verdict.trigger),
        at_or_below=verdict.liquidates_when == "at_or_below",
        needs_requirement=verdict.needs_requirement,
        health=verdict.health,
        reported={name: None if row[name] is None else float(row[name]) for name in names},
        reported_parts=reported_parts,
    )


class ValueGroup(NamedTuple):
    """What nets before it is weighted, and how it counts in equity and in the requirement.

    A slice of a positive net value above `floors[k]` (account's unit, moved by the factor row `floor_row`) counts at
    the weights' k-th entry; a negative one at the liability weight. A debt rate demands its share of a negative value.
    """

    floors: tuple[float, ...]
    floor_row: int
    initial_weights: tuple[float, ...]
    maintenance_weights: tuple[float, ...]
    liability_initial: float
    liability_maintenance: float
    debt_initial: float
    debt_maintenance: float


PLAIN_GROUP = ValueGroup((0.0,), 0, (1.0,), (1.0,), 1.0, 1.0, 0.0, 0.0)
"""Counts at its value."""


class OwnMark(NamedTuple):
    """The mark of one perpetual or future, and the power with which it moves a row: 1, or -1 of an inverse one."""

    instrument_id: str
    power: float


class TierEntry(NamedTuple):
    """One position under notional tiers: notional (settlement asset) and what moves it, and its packed tables.

    `conversion` is the account's unit per settlement asset today, moved by the factor row `conversion_row`.
    `initial_notional` is the notional that counts for the initial level (orders may make it larger).
    """

    row: int
    notional: float
    initial_notional: float
    conversion_row: int
    conversion: float
    inverse_leverage: float
    minimum: float
    initial_at_least_maintenance: bool
    tables: PackedTiers
    mark: OwnMark | None
    """What moves the notional apart from the rest of the account; None where nothing does."""


class _Holding(NamedTuple):
    """One leg of an account: what the rule forms read."""

    line: int
    asset_id: str
    """Asset in which the leg nets (its own for a balance, the settlement asset for profit)."""
    instrument: Row | None
    native_row: int
    native_coefficient: float
    usd_row: int
    usd_coefficient: float
    counts: bool
    balance_side: str | None
    mark: OwnMark | None = None


class AccountDraft:
    """Builds one account's rows; nothing reaches the portfolio before the whole account stands."""

    def __init__(self, market: Market, row: Row) -> None:
        self.market, self.row = market, row
        self.account_id, self.venue = row["account_id"], row["venue"]
        self.lines: list[Line] = []
        self.line_equity: list[float] = []
        self.holdings: list[_Holding] = []
        self.groups: list[ValueGroup] = []
        self.native_legs: list[tuple[int, int, float]] = []
        self.leg_marks: dict[int, OwnMark] = {}
        """The mark that moves a native leg, by the leg's number."""
        self.requirements: list[tuple[int, float, float]] = []
        self.tiers: list[TierEntry] = []
        self.fixed = [0.0, 0.0, 0.0]
        """Initial and maintenance requirement and equity that nothing moves."""
        self.units: list[UnitRow] = []
        self.reported_parts = False

    def pack(self) -> None:
        """Everything of the account; raises `IncompleteAccountError` at the first thing that is missing."""
        market = self.market
        components = market.rules.get(self.row["rule_set"], [])
        verdicts = [form for _, form in components if isinstance(form, Verdict)]
        # Value and requirement must agree, or their difference is no margin.
        self.forms = [form for _, form in components]
        self.marks_undiscounted = marks_undiscounted(self.forms)
        if len(verdicts) != 1:
            raise IncompleteAccountError(
                FailureReason.MISSING_PARAMETER, f"rule set {self.row['rule_set']!r} has {len(verdicts)} verdicts"
            )
        self.option_value = next(
            (form.options for row, form in components if isinstance(form, WeightedValue) and row["side"] == "equity"),
            "model",
        )
        unit = self.row["settlement_asset"]
        self.unit_price, _ = market.asset_price(self.venue, self.account_id, unit)
        self.unit_exponents = market.exponents(unit)
        for balance in market.balances.get(self.account_id, ()):
            self._balance(balance)
        for position in market.positions.get(self.account_id, ()):
            self._position(position)
        self.options_have_form = any(
            isinstance(form, ContractMargin | PriceVolGrid | ExpiryMaxLoss) for _, form in components
        )
        if not any(row["side"] == "equity" for row, _ in components):
            raise IncompleteAccountError(
                FailureReason.MISSING_PARAMETER, f"rule set {self.row['rule_set']!r} has no equity component"
            )
        for row, form in components:
            self._component(row, form)
        self.units = risk_unit_rows(
            market,
            self.row,
            [form for row, form in components if row["side"] == "requirement"],
            unit_price=self.unit_price,
            unit_exponents=self.unit_exponents,
        )
        self._keep_marks_that_move_alone()
        self.info = account_info(self.row, self.unit_price, verdicts[0], reported_parts=self.reported_parts)

    def _keep_marks_that_move_alone(self) -> None:
        """Forget the marks that no venue moves alone: those of a risk unit, whose scenarios move its underlying as a
        whole, and that of an isolated position, whose collateral may be the coin itself.
        """
        isolated = self.row["margin_mode"] == "isolated"
        in_units = {unit.underlying for unit in self.units if unit.grid is not None or unit.contingencies}

        def moves_alone(mark: OwnMark) -> bool:
            underlying = self.market.instruments[mark.instrument_id]["underlying"]
            return not isolated and self.market.risk_symbol(underlying) not in in_units

        self.leg_marks = {leg: mark for leg, mark in self.leg_marks.items() if moves_alone(mark)}
        self.tiers = [
            entry if entry.mark is None or moves_alone(entry.mark) else entry._replace(mark=None)
            for entry in self.tiers
        ]

    def _row(self, exponents: Mapping[str, float]) -> int:
        try:
            return self.market.cube.factor_row(exponents)
        except ValueError as problem:
            raise IncompleteAccountError(FailureReason.UNSUPPORTED, str(problem)) from None

    def _leg(
        self,
        line: int,
        asset_id: str,
        exponents: Mapping[str, float],
        usd: float,
        *,
        counts: bool = True,
        side: str | None = None,
        instrument: Row | None = None,
        mark: OwnMark | None = None,
    ) -> None:
        """A factor-row leg worth `usd` today, whose USD value moves with `exponents`."""
        native = combined((exponents, 1.0), (self.unit_exponents, -1.0))
        rows = self._row(native), self._row(exponents)
        self.holdings.append(
            _Holding(line, asset_id, instrument, rows[0], usd / self.unit_price, rows[1], usd, counts, side, mark)
        )

    def _line(
        self,
        key: str,
        asset_id: str,
        value: float,
        gross: float,
        kind: str,
        symbol: str,
        rate: float | None = None,
        *,
        is_perpetual: bool = False,
    ) -> Line:
        """The line of a balance of an asset, or of a position in an underlying."""
        factor = next((name for name in self.market.exponents(asset_id) if name.startswith("price:")), "")
        asset = self.market.risk_symbol(asset_id)
        place = self.account_id, self.venue, self.row["node"]
        return Line(key, *place, asset, value, gross, factor, kind, symbol, rate, is_perpetual)

    def _balance(self, balance: Row) -> None:
        market, asset_id = self.market, balance["asset_id"]
        price, _ = market.asset_price(self.venue, self.account_id, asset_id)
        sign = 1.0 if balance["side"] == "asset" else -1.0
        amount = balance["quantity"] + (balance["accrued_interest"] or 0)
        usd = sign * float(amount) * price
        key = f"{self.account_id}/{asset_id}" + ("" if sign > 0 else "/debt")
        kind = "collateral" if sign > 0 else "debt"
        self.lines.append(self._line(key, asset_id, usd, abs(usd), kind, market.assets[asset_id]["symbol"]))
        self.line_equity.append(usd)
        counts = bool(balance["collateral_enabled"]) or sign < 0
        self._leg(len(self.lines) - 1, asset_id, market.exponents(asset_id), usd, counts=counts, side=balance["side"])

    def _position(self, position: Row) -> None:
        market = self.market
        instrument = market.instruments[position["instrument_id"]]
        quantity = float(position["quantity"])
        size = quantity * float(instrument["contract_size"])
        settlement, underlying = instrument["settlement_asset"], instrument["underlying"]
        settlement_price, _ = market.asset_price(self.venue, self.account_id, settlement)
        settlement_exponents = market.exponents(settlement)
        key = f"{self.account_id}/{position['instrument_id']}"
        if position["side_mode"] != "net":
            key += f"/{position['side_mode']}"
        line = len(self.lines)
        cash = float((position["unsettled_funding"] or 0) + (position["realized_pnl"] or 0)) * settlement_price
        if instrument["kind"] == "option":
            row, price, exponents = self._option(position, instrument, settlement_price, settlement_exponents)
            usd_row, native_row = row
            self.holdings.append(
                _Holding(line, settlement, instrument, native_row, size, usd_row, size, counts=True, balance_side=None)
            )
            value = size * price * settlement_price
            # The venue's own mark counts today; from there the value moves by the model.
            beside_model = size * self._beside_model(position["instrument_id"], price) * settlement_price
            if beside_model:
                self._leg(line, settlement, settlement_exponents, beside_model, instrument=instrument)
            value += beside_model
        else:
            mark = self._mark(position["instrument_id"])
            if position["entry_price"] is None:
                raise IncompleteAccountError(
                    FailureReason.MISSING_FIELD,
                    f"no entry price of {position['instrument_id']}",
                    position["instrument_id"],
                )
            entry = float(position["entry_price"])
            if entry <= 0:
                raise IncompleteAccountError(
                    FailureReason.OUT_OF_RANGE,
                    f"entry price {entry} of {position['instrument_id']}",
                    position["instrument_id"],
                )
            underlying_exponents = market.exponents(underlying)
            if instrument["payoff"] == "linear":
                value = size * mark * settlement_price
                exponents = combined((underlying_exponents, 1.0), (settlement_exponents, 1.0))
                cash -= size * entry * settlement_price
            else:
                value = -size * settlement_price / mark
                exponents = combined((underlying_exponents, -1.0), (settlement_exponents, 1.0))
                cash += size * settlement_price / entry
            self._leg(line, settlement, exponents, value, instrument=instrument, mark=_own_mark(instrument))
        # The value leg of an inverse perp or future is what it owes in coins; an option's is its worth.
        shown = -value if instrument["payoff"] == "inverse" and instrument["kind"] != "option" else value
        kind = "option" if instrument["kind"] == "option" else "linear"
        funding = market.mark(self.venue, self.account_id, position["instrument_id"], "funding_rate")
        perpetual = instrument["kind"] == "perp"
        rate = float(funding["value"]) if funding is not None and perpetual else None
        name = position["instrument_id"]
        self.lines.append(self._line(key, underlying, shown, abs(value), kind, name, rate, is_perpetual=perpetual))
        if cash:
            self._leg(line, settlement, settlement_exponents, cash, instrument=instrument)
        self.line_equity.append(value + cash)

    def _mark(self, instrument_id: str) -> float:
        row = self.market.mark(self.venue, self.account_id, instrument_id, "mark")
        if row is None:
            raise IncompleteAccountError(FailureReason.MISSING_MARK, f"no mark of {instrument_id}", instrument_id)
        return row["value"]

    def _beside_model(self, instrument_id: str, model_price: float) -> float:
        """What the venue's mark of an option is above the model's price, in its settlement asset."""
        if self.option_value == "model":
            return 0.0
        row = self.market.mark(self.venue, self.account_id, instrument_id, "mark")
        if row is None and self.option_value == "mark":
            raise IncompleteAccountError(FailureReason.MISSING_MARK, f"no mark of {instrument_id}", instrument_id)
        return 0.0 if row is None else row["value"] - model_price

    def _option(
        self, position: Row, instrument: Row, settlement_price: float, settlement_exponents: Mapping[str, float]
    ) -> tuple[tuple[int, int], float, Mapping[str, float]]:
        """((USD row, native row), price today in the settlement asset, exponents) of one option."""
        market = self.market
        years = market.years(instrument)
        symbol = market.risk_symbol(instrument["underlying"])
        on_spot = forward_is_spot(self.row["rule_set"], self.forms, symbol)
        forward, rate, _ = option_expiry(market, self.row, instrument, on_spot=on_spot)
        vol = market.implied_vol(self.venue, self.account_id, position["instrument_id"])["value"]
        factor = market.assets[instrument["underlying"]]["risk_factor"]
        if factor is None:
            raise IncompleteAccountError(
                FailureReason.UNSUPPORTED, f"option on {instrument['underlying']}, which has no price factor"
            )
        market.require(f"vol:{factor}", position["instrument_id"])
        inverse = instrument["payoff"] == "inverse"
        discount = 1.0 if self.marks_undiscounted else float(np.exp(-max(rate, 0.0) * years))

        def row(exponents: Mapping[str, float], today: float) -> int:
            # An inverse option pays coins: its quote value over the forward, worth the coin's own price.
            conversion = combined((exponents, 1.0), ({f"price:{factor}": 1.0}, -1.0 if inverse else 0.0))
            terms = OptionTerms(
                forward=forward,
                strike=float(instrument["strike"]),
                years=years,
                vol=vol,
                discount=discount,
                is_call=instrument["option_type"] == "call",
                price_factor=f"price:{factor}",
                vol_factor=f"vol:{factor}",
                conversion=tuple(sorted((n, p) for n, p in conversion.items() if p)),
                conversion_today=today / forward if inverse else today,
            )
            try:
                return market.cube.option_row(terms)
            except ValueError as problem:
                raise IncompleteAccountError(FailureReason.UNSUPPORTED, str(problem)) from None

        native_exponents = combined((settlement_exponents, 1.0), (self.unit_exponents, -1.0))
        rows = row(settlement_exponents, settlement_price), row(native_exponents, settlement_price / self.unit_price)
        is_call = instrument["option_type"] == "call"
        price = _model_price(forward, float(instrument["strike"]), years, vol, is_call, discount)
        return rows, price / forward if inverse else price, settlement_exponents

    def _component(self, row: Row, form: Form) -> None:
        if isinstance(form, Fixed):
            self._fixed(row, form)
        elif row["side"] == "requirement" and row["level"] != "both":
            raise IncompleteAccountError(
                FailureReason.UNSUPPORTED,
                f"{row['form']} of rule set {row['rule_set']!r} at level {row['level']!r} alone",
            )
        elif isinstance(form, WeightedValue):
            self._equity(form) if row["side"] == "equity" else self._haircut(form)
        elif isinstance(form, DebtCharge):
            self._debts(form)
        elif isinstance(form, TieredNotional | RateOfSize):
            self._tiers(form)

    def _fixed(self, row: Row, form: Fixed) -> None:
        if row["side"] == "equity":
            self.fixed[2] += float(form.equity)
        else:
            self.fixed[0] += float(form.initial) if row["level"] != "maintenance" else 0.0
            self.fixed[1] += float(form.maintenance) if row["level"] != "initial" else 0.0
        self.reported_parts |= form.basis.startswith("reported")

    def _weights(self, asset_id: str) -> list[Row]:
        """Collateral weights of an asset in the account's e-mode, else outside, by tier; empty for the unit itself,
        which needs none.
        """
        rule_set, market = self.row["rule_set"], self.market
        tiers = market.collateral_tiers.get(
            (rule_set, asset_id, self.row["emode"] or "")
        ) or market.collateral_tiers.get((rule_set, asset_id, ""))
        if tiers is None and asset_id != self.row["settlement_asset"]:
            raise IncompleteAccountError(
                FailureReason.MISSING_PARAMETER, f"no collateral weight of {asset_id} in {rule_set}", asset_id
            )
        return tiers or []

    def _equity(self, form: WeightedValue) -> None:
        group_of: dict[str, int] = {}
        for holding in self.holdings:
            if not holding.counts:
                continue
            instrument = holding.instrument
            if form.options == "excluded" and instrument is not None and instrument["kind"] == "option":
                continue
            # A position's value and its cash are one profit, whatever else is netted.
            key = "" if form.weights == "unit" else f"line {holding.line}"
            if form.weights != "unit" and form.net_by_asset:
                key = holding.asset_id
            if key not in group_of:
                group_of[key] = len(self.groups)
                self.groups.append(PLAIN_GROUP if form.weights == "unit" else self._weighted_group(holding, form))
            self._native_leg(group_of[key], holding)

    def _native_leg(self, group: int, holding: _Holding) -> None:
        if holding.mark is not None:
            self.leg_marks[len(self.native_legs)] = holding.mark
        self.native_legs.append((group, holding.native_row, holding.native_coefficient))

    def _weighted_group(self, holding: _Holding, form: WeightedValue) -> ValueGroup:
        asset_id, rule_set = holding.asset_id, self.row["rule_set"]
        tiers: list[Row] = []
        if holding.instrument is not None and not form.net_by_asset:
            tiers = self.market.collateral_tiers.get((rule_set, holding.instrument["instrument_id"], "")) or []
        tiers = tiers or self._weights(asset_id)
        if not tiers:
            return PLAIN_GROUP
        in_tokens = tiers[0]["floor_in"] != "value"
        if any((tier["floor_in"] != "value") != in_tokens for tier in tiers):
            raise IncompleteAccountError(
                FailureReason.INCONSISTENT, f"collateral tiers of {asset_id} in tokens and in value", asset_id
            )
        floors = [float(tier["floor"]) for tier in tiers]
        if floors[0] != 0 or any(a >= b for a, b in pairwise(floors)):
            raise IncompleteAccountError(
                FailureReason.INCONSISTENT, f"collateral tiers of {asset_id} do not ascend from 0", asset_id
            )
        price, floor_row = 1.0, 0
        if in_tokens and len(floors) > 1:
            # A floor counted in tokens is worth more when the token is.
            usd, _ = self.market.asset_price(self.venue, self.account_id, asset_id)
            price = usd / self.unit_price
            floor_row = self._row(combined((self.market.exponents(asset_id), 1.0), (self.unit_exponents, -1.0)))
        full = form.liabilities == "unit"
        return ValueGroup(
            floors=tuple(floor * price for floor in floors),
            floor_row=floor_row,
            initial_weights=tuple(float(tier["asset_weight_initial"]) for tier in tiers),
            maintenance_weights=tuple(float(tier["asset_weight_maintenance"]) for tier in tiers),
            liability_initial=1.0 if full else float(tiers[0]["liability_weight_initial"]),
            liability_maintenance=1.0 if full else float(tiers[0]["liability_weight_maintenance"]),
            debt_initial=0.0,
            debt_maintenance=0.0,
        )

    def _debts(self, form: DebtCharge) -> None:
        def rates(asset_id: str) -> tuple[float, float]:
            return (
                float(form.initial_rates.get(asset_id, form.initial_rate)),
                float(form.maintenance_rates.get(asset_id, form.maintenance_rate)),
            )

        group_of: dict[str, int] = {}
        for holding in self.holdings:
            initial, maintenance = rates(holding.asset_id)
            if not form.net_by_asset:
                if holding.balance_side == "liability":
                    owed = -holding.native_coefficient
                    self.requirements.append((holding.native_row, owed * initial, owed * maintenance))
                continue
            if holding.asset_id not in group_of:
                group_of[holding.asset_id] = len(self.groups)
                self.groups.append(ValueGroup((0.0,), 0, (0.0,), (0.0,), 0.0, 0.0, initial, maintenance))
            self._native_leg(group_of[holding.asset_id], holding)

    def _haircut(self, form: WeightedValue) -> None:
        """`value * (1 - weight)` of every counting balance, as linear requirement rows."""
        if form.weights == "unit":
            return
        for holding in self.holdings:
            if holding.balance_side is None or not holding.counts:
                continue
            tiers = self._weights(holding.asset_id)
            if not tiers:
                continue
            if len(tiers) > 1:
                raise IncompleteAccountError(
                    FailureReason.UNSUPPORTED,
                    f"a haircut on {holding.asset_id} in {len(tiers)} tiers as a requirement",
                    holding.asset_id,
                )
            side = "asset" if holding.balance_side == "asset" else "liability"
            initial, maintenance = (float(tiers[0][f"{side}_weight_{level}"]) for level in ("initial", "maintenance"))
            value = holding.native_coefficient  # negative for a debt, whose weight above 1 then adds to the requirement
            if form.weighted_at == "unit":
                self.requirements.append((holding.native_row, value * (1.0 - initial), value * (1.0 - maintenance)))
            else:
                self.requirements.append((holding.native_row, value, value))
                usd = holding.usd_coefficient
                self.requirements.append((holding.usd_row, -usd * initial, -usd * maintenance))

    def _tiers(self, form: TieredNotional | RateOfSize) -> None:
        market = self.market
        orders: dict[str, list[Row]] = defaultdict(list)
        for order in market.open_orders.get(self.account_id, ()):
            self.fixed[0] += float(form.per_order)
            self.fixed[1] += float(form.per_order)
            if form.orders != "ignore" and not order["reduce_only"]:
                orders[order["instrument_id"]].append(order)
        held = set()
        for position in market.positions.get(self.account_id, ()):
            instrument = market.instruments[position["instrument_id"]]
            if self._in_a_form_of_options(instrument):
                continue
            held.add(position["instrument_id"])
            waiting = orders.get(position["instrument_id"], [])
            if waiting and position["side_mode"] != "net":
                raise IncompleteAccountError(
                    FailureReason.UNSUPPORTED,
                    f"open orders beside a {position['side_mode']} position of {position['instrument_id']}",
                    position["instrument_id"],
                )
            self._tier_entry(form, position, instrument, waiting)
        for instrument_id in sorted(set(orders) - held):
            empty = {"instrument_id": instrument_id, "quantity": Decimal(0)}
            empty |= dict.fromkeys(("entry_price", "leverage", "initial_rate_override"))
            if not self._in_a_form_of_options(market.instruments[instrument_id]):
                self._tier_entry(form, empty, market.instruments[instrument_id], orders[instrument_id])

    def _in_a_form_of_options(self, instrument: Row) -> bool:
        """Whether the instrument is an option, whose requirement another form of the rule set holds."""
        if instrument["kind"] != "option":
            return False
        if self.options_have_form:
            return True
        instrument_id = instrument["instrument_id"]
        raise IncompleteAccountError(
            FailureReason.UNSUPPORTED, f"option {instrument_id} under notional tiers", instrument_id
        )

    def _tier_entry(
        self, form: TieredNotional | RateOfSize, position: Row, instrument: Row, orders: Sequence[Row]
    ) -> None:
        market, instrument_id = self.market, instrument["instrument_id"]
        rows = market.margin_tiers.get((self.row["rule_set"], instrument_id))
        if not rows:
            raise IncompleteAccountError(
                FailureReason.MISSING_PARAMETER,
                f"no margin tiers of {instrument_id} in {self.row['rule_set']}",
                instrument_id,
            )
        floors = [float(row["notional_floor"]) for row in rows]
        if floors[0] != 0 or any(a >= b for a, b in pairwise(floors)):
            raise IncompleteAccountError(
                FailureReason.INCONSISTENT, f"tier floors of {instrument_id} do not ascend from 0", instrument_id
            )
        settlement = instrument["settlement_asset"]
        settlement_price, _ = market.asset_price(self.venue, self.account_id, settlement)
        conversion = combined((market.exponents(settlement), 1.0), (self.unit_exponents, -1.0))
        per_contract, exponents = self._notional_of_one(form, position, instrument)
        quantity = abs(position["quantity"])
        worst = max(quantity, _worst_side(position["quantity"], orders))
        counted = worst if form.orders == "worst_side" else quantity
        tables = self._tables(form, rows, counted, worst, instrument)
        self.tiers.append(
            TierEntry(
                row=self._row(exponents),
                notional=float(counted) * per_contract,
                initial_notional=float(worst) * per_contract,
                conversion_row=self._row(conversion),
                conversion=settlement_price / self.unit_price,
                inverse_leverage=self._inverse_leverage(form, position),
                minimum=float(form.minimum) if isinstance(form, TieredNotional) and quantity else 0.0,
                initial_at_least_maintenance=isinstance(form, TieredNotional) and form.initial_at_least_maintenance,
                tables=tables,
                mark=_own_mark(instrument) if exponents else None,
            )
        )

    def _notional_of_one(
        self, form: TieredNotional | RateOfSize, position: Row, instrument: Row
    ) -> tuple[float, dict[str, float]]:
        """(notional of one contract in the settlement asset, factors that move it)."""
        size, instrument_id = float(instrument["contract_size"]), instrument["instrument_id"]
        linear = instrument["payoff"] == "linear"
        if isinstance(form, TieredNotional) and form.basis == "entry":
            if position["entry_price"] is None:
                raise IncompleteAccountError(
                    FailureReason.MISSING_FIELD, f"no entry price of {instrument_id}", instrument_id
                )
            entry = float(position["entry_price"])
            return (size * entry if linear else size / entry), {}
        mark, underlying = self._mark(instrument_id), self.market.exponents(instrument["underlying"])
        return (size * mark, underlying) if linear else (size / mark, combined((underlying, -1.0)))

    def _inverse_leverage(self, form: TieredNotional | RateOfSize, position: Row) -> float:
        """The position's own initial rate: 1 / chosen leverage, or its override where that is larger."""
        rate = 0.0
        if form.initial == "leverage":
            if position["leverage"] is None:
                instrument_id = position["instrument_id"]
                raise IncompleteAccountError(
                    FailureReason.MISSING_FIELD, f"no chosen leverage of {instrument_id}", instrument_id
                )
            rate = 1.0 / float(position["leverage"])
        override = position["initial_rate_override"]
        return rate if override is None else max(rate, float(override))

    def _tables(
        self,
        form: TieredNotional | RateOfSize,
        rows: Sequence[Row],
        counted: Decimal,
        worst: Decimal,
        instrument: Row,
    ) -> PackedTiers:
        """Floors in notional with their steps; a size that decides the rate decides it today."""
        first = rows[0]
        if isinstance(form, RateOfSize):
            coefficient = first["size_coefficient"] or Decimal(0)
            size = instrument["contract_size"]
            if instrument["payoff"] != "linear":
                size = size / Decimal(str(self._mark(instrument["instrument_id"])))
            initial = rate_of_size(form.law, first["initial_rate"], coefficient, worst * size)
            maintenance = rate_of_size(form.law, first["maintenance_rate"], coefficient, counted * size)
            return pack_tiers([0.0], [maintenance], [0.0], [initial], initial_is_integral=True)
        # Where leverage is chosen the tiers' own initial rates say nothing.
        initial_rates = [Decimal(0) if form.initial == "leverage" else row["initial_rate"] for row in rows]
        integral = form.initial == "tier_integral"
        if form.floors == "quantity":
            maintenance = rate_at_quantity(rows, counted)
            initial = rate_at_quantity(
                [row | {"maintenance_rate": rate} for row, rate in zip(rows, initial_rates, strict=True)],
                worst,
                whole=not integral,
            )
            return pack_tiers([0.0], [maintenance], [0.0], [initial], initial_is_integral=True)
        return pack_tiers(
            [float(row["notional_floor"]) for row in rows],
            [float(row["maintenance_rate"]) for row in rows],
            [float(row["deduction"]) for row in rows],
            [float(rate) for rate in initial_rates],
            initial_is_integral=integral,
        )


def _own_mark(instrument: Row) -> OwnMark:
    return OwnMark(instrument["instrument_id"], 1.0 if instrument["payoff"] == "linear" else -1.0)


def _worst_side(quantity: Decimal, orders: Sequence[Row]) -> Decimal:
    """The larger absolute quantity after all buy orders, and after all sell orders."""
    bids = sum((order["remaining_quantity"] for order in orders if order["side"] == "buy"), Decimal(0))
    asks = sum((order["remaining_quantity"] for order in orders if order["side"] == "sell"), Decimal(0))
    return max(abs(quantity + bids), abs(quantity - asks))


@functools.lru_cache(maxsize=2**16)
def _model_price(forward: float, strike: float, years: float, vol: float, is_call: bool, discount: float) -> float:
    # Many accounts hold one option, and a device takes milliseconds for a single price.
    return float(black76_price(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount))
