"""One account as rows over the instrument cube and rows of its rule set.

Two moneys appear: **USD** for the unified book, and the account's own **unit** (its settlement asset) for the venue's
own rules, so that the venue's number stays exactly the venue's number while its stable is off peg. Every rule form of
the account's rule set is read here once, from data; the engine only sees rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from .cube import OptionTerms, years_until
from .errors import FailureReason
from .market import IncompleteAccountError, Market, combined
from .pricing import black76_price
from .rule_forms import (
    Contingency,
    ExpiryMaxLoss,
    Fixed,
    Form,
    OptionFormula,
    PriceVolGrid,
    TieredNotional,
    Verdict,
    WeightedValue,
)
from .rules.tiered_notional import pack_tiers
from .snapshot import Row


class Line(NamedTuple):
    """One balance or position for reporting: its key, where it is, and the asset that drives it."""

    key: str
    account_id: str
    venue: str
    node: str
    asset: str
    value_usd: float
    gross_usd: float


class AccountInfo(NamedTuple):
    """What results say of an account beside its numbers."""

    account_id: str
    node: str
    venue: str
    margin_mode: str
    unit: str
    unit_price_usd: float
    trigger: float
    at_or_below: bool
    lender: bool
    reported: Mapping[str, float | None]
    reported_parts: bool


class UnitRow(NamedTuple):
    """One risk unit before padding: its market, holdings and rules (see rules.risk_unit.RiskUnit for the meaning)."""

    account: int
    underlying: str
    spot: float
    spot_confidence: float
    stable_price: float
    price_factor: str | None
    """None for a unit that holds nothing but a stable token."""
    vol_factor: str
    stable_exponents: tuple[tuple[str, float], ...]
    perp: tuple[float, float, float]
    """quantity, price, confidence"""
    collateral: tuple[tuple[float, float, float, float, int], ...]
    """quantity, price USD, confidence, in grid, USD factor row"""
    options: tuple[tuple[float, float, bool, float, int], ...]
    """quantity, strike, is call, vol, expiry index"""
    expiries: tuple[tuple[float, float, float, float], ...]
    """years, forward, rate, confidence"""
    grid: PriceVolGrid | None
    contingencies: tuple[Contingency, ...]
    max_loss: ExpiryMaxLoss | None


def account_info(row: Row, unit_price: float, verdict: Verdict, *, reported_parts: bool) -> AccountInfo:
    names = ("reported_equity", "reported_initial_margin", "reported_maintenance_margin", "reported_health")
    return AccountInfo(
        account_id=row["account_id"],
        node=row["node"],
        venue=row["venue"],
        margin_mode=row["margin_mode"],
        unit=row["settlement_asset"],
        unit_price_usd=unit_price,
        trigger=float(verdict.trigger),
        at_or_below=verdict.liquidates_when == "at_or_below",
        lender=verdict.health == "weighted_collateral_over_debt",
        reported={name: None if row[name] is None else float(row[name]) for name in names},
        reported_parts=reported_parts,
    )


class _Holding(NamedTuple):
    """One leg of an account: what the rule forms read."""

    line: int
    asset_id: str
    """Asset in which the leg nets (its own for a balance, the settlement asset for profit)."""
    native_row: int
    native_coefficient: float
    usd_row: int
    usd_coefficient: float
    counts: bool
    balance_side: str | None


class AccountDraft:
    """Builds one account's rows; nothing reaches the portfolio before the whole account stands."""

    def __init__(self, market: Market, row: Row) -> None:
        self.market, self.row = market, row
        self.account_id, self.venue = row["account_id"], row["venue"]
        self.lines: list[Line] = []
        self.line_equity: list[float] = []
        self.holdings: list[_Holding] = []
        self.groups: list[tuple[float, float]] = []
        self.native_legs: list[tuple[int, int, float]] = []
        self.requirements: list[tuple[int, float, float]] = []
        self.tiers: list[Any] = []
        self.fixed = [0.0, 0.0]
        self.units: list[Any] = []
        self.reported_parts = False

    def pack(self) -> None:
        """Everything of the account; raises `IncompleteAccountError` at the first thing that is missing."""
        market = self.market
        components = market.rules.get(self.row["rule_set"], [])
        verdicts = [form for _, form in components if isinstance(form, Verdict)]
        # The contract forms mark options undiscounted; value and requirement must agree, or their difference is no
        # margin.
        self.marks_undiscounted = any(isinstance(form, ExpiryMaxLoss | OptionFormula) for _, form in components)
        if len(verdicts) != 1:
            raise IncompleteAccountError(
                FailureReason.MISSING_PARAMETER, f"rule set {self.row['rule_set']!r} has {len(verdicts)} verdicts"
            )
        unit = self.row["settlement_asset"]
        self.unit_price, _ = market.asset_price(self.venue, self.account_id, unit)
        self.unit_exponents = market.exponents(unit)
        for balance in market.balances.get(self.account_id, ()):
            self._balance(balance)
        for position in market.positions.get(self.account_id, ()):
            self._position(position)
        if not any(row["side"] == "equity" for row, _ in components):
            raise IncompleteAccountError(
                FailureReason.MISSING_PARAMETER, f"rule set {self.row['rule_set']!r} has no equity component"
            )
        for row, form in components:
            self._component(row, form)
        self._risk_units([form for row, form in components if row["side"] == "requirement"])
        self.info = account_info(self.row, self.unit_price, verdicts[0], reported_parts=self.reported_parts)

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
    ) -> None:
        """A factor-row leg worth `usd` today, whose USD value moves with `exponents`."""
        native = combined((exponents, 1.0), (self.unit_exponents, -1.0))
        self.holdings.append(
            _Holding(line, asset_id, self._row(native), usd / self.unit_price, self._row(exponents), usd, counts, side)
        )

    def _balance(self, balance: Row) -> None:
        market, asset_id = self.market, balance["asset_id"]
        price, _ = market.asset_price(self.venue, self.account_id, asset_id)
        sign = 1.0 if balance["side"] == "asset" else -1.0
        amount = balance["quantity"] + (balance["accrued_interest"] or 0)
        usd = sign * float(amount) * price
        key = f"{self.account_id}/{asset_id}" + ("" if sign > 0 else "/debt")
        self.lines.append(
            Line(key, self.account_id, self.venue, self.row["node"], market.risk_symbol(asset_id), usd, abs(usd))
        )
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
                _Holding(line, settlement, native_row, size, usd_row, size, counts=True, balance_side=None)
            )
            value = size * price * settlement_price
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
            self._leg(line, settlement, exponents, value)
        # The value leg of an inverse perp or future is what it owes in coins; an option's is its worth.
        shown = -value if instrument["payoff"] == "inverse" and instrument["kind"] != "option" else value
        self.lines.append(
            Line(key, self.account_id, self.venue, self.row["node"], market.risk_symbol(underlying), shown, abs(value))
        )
        if cash:
            self._leg(line, settlement, settlement_exponents, cash)
        self.line_equity.append(value + cash)

    def _mark(self, instrument_id: str) -> float:
        row = self.market.mark(self.venue, self.account_id, instrument_id, "mark")
        if row is None:
            raise IncompleteAccountError(FailureReason.MISSING_MARK, f"no mark of {instrument_id}", instrument_id)
        return row["value"]

    def _expiry(self, instrument: Row, years: float) -> tuple[float, float, float]:
        """(forward, rate, lowest confidence of the two) of an option's expiry; an absent rate feed is a rate of 0."""
        subject = f"{instrument['underlying']}@{instrument['expiry']:%Y-%m-%dT%H:%M:%SZ}"
        forward = self.market.mark(self.venue, self.account_id, subject, "forward")
        if forward is None:
            raise IncompleteAccountError(FailureReason.MISSING_MARK, f"no forward of {subject}", subject)
        rate = self.market.mark(self.venue, self.account_id, subject, "rate")
        confidences = [m["confidence"] for m in (forward, rate) if m is not None and m["confidence"] is not None]
        return forward["value"], rate["value"] if rate is not None else 0.0, min(confidences, default=1.0)

    def _implied_vol(self, instrument_id: str) -> Row:
        row = self.market.mark(self.venue, self.account_id, instrument_id, "implied_vol")
        if row is None:
            raise IncompleteAccountError(
                FailureReason.MISSING_MARK, f"no implied vol of {instrument_id}", instrument_id
            )
        return row

    def _years(self, instrument: Row) -> float:
        return years_until((instrument["expiry"] - self.market.as_of).total_seconds())

    def _option(
        self, position: Row, instrument: Row, settlement_price: float, settlement_exponents: Mapping[str, float]
    ) -> tuple[tuple[int, int], float, Mapping[str, float]]:
        """((USD row, native row), price today in the settlement asset, exponents) of one option."""
        market = self.market
        years = self._years(instrument)
        forward, rate, _ = self._expiry(instrument, years)
        vol = self._implied_vol(position["instrument_id"])["value"]
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
        price = float(
            black76_price(
                forward,
                float(instrument["strike"]),
                years=years,
                vol=vol,
                is_call=instrument["option_type"] == "call",
                discount=discount,
            )
        )
        return rows, price / forward if inverse else price, settlement_exponents

    def _component(self, row: Row, form: Form) -> None:
        if isinstance(form, Fixed):
            self.fixed[0] += float(form.initial) if row["level"] != "maintenance" else 0.0
            self.fixed[1] += float(form.maintenance) if row["level"] != "initial" else 0.0
            self.reported_parts = True
        elif row["side"] == "requirement" and row["level"] != "both":
            raise IncompleteAccountError(
                FailureReason.UNSUPPORTED,
                f"{row['form']} of rule set {row['rule_set']!r} at level {row['level']!r} alone",
            )
        elif isinstance(form, WeightedValue):
            self._equity(form) if row["side"] == "equity" else self._haircut(form)
        elif isinstance(form, TieredNotional):
            self._tiers(form)

    def _weights(self, asset_id: str) -> Row | None:
        """Collateral weights of an asset in the account's e-mode, else outside; the unit itself needs none."""
        rule_set, market = self.row["rule_set"], self.market
        tiers = market.collateral_tiers.get(
            (rule_set, asset_id, self.row["emode"] or "")
        ) or market.collateral_tiers.get((rule_set, asset_id, ""))
        if tiers is None:
            if asset_id == self.row["settlement_asset"]:
                return None
            raise IncompleteAccountError(
                FailureReason.MISSING_PARAMETER, f"no collateral weight of {asset_id} in {rule_set}", asset_id
            )
        if len(tiers) > 1:
            raise IncompleteAccountError(
                FailureReason.UNSUPPORTED, f"collateral weights of {asset_id} in {len(tiers)} tiers", asset_id
            )
        return tiers[0]

    def _equity(self, form: WeightedValue) -> None:
        group_of: dict[str, int] = {}
        for holding in self.holdings:
            if not holding.counts:
                continue
            if form.weights == "unit":
                key, weights = "", (1.0, 1.0)
            else:
                tier = self._weights(holding.asset_id)
                # A position's value and its cash are one profit, whatever else is netted.
                key = holding.asset_id if form.net_by_asset else f"line {holding.line}"
                weights = (
                    (1.0, 1.0)
                    if tier is None
                    else (float(tier["asset_weight_maintenance"]), float(tier["liability_weight_maintenance"]))
                )
            if key not in group_of:
                group_of[key] = len(self.groups)
                self.groups.append(weights)
            self.native_legs.append((group_of[key], holding.native_row, holding.native_coefficient))

    def _haircut(self, form: WeightedValue) -> None:
        """`value * (1 - weight)` of every counting balance, as linear requirement rows."""
        if form.weights == "unit":
            return
        for holding in self.holdings:
            if holding.balance_side is None or not holding.counts:
                continue
            tier = self._weights(holding.asset_id)
            if tier is None:
                continue
            side = "asset" if holding.balance_side == "asset" else "liability"
            initial, maintenance = (float(tier[f"{side}_weight_{level}"]) for level in ("initial", "maintenance"))
            value = holding.native_coefficient  # negative for a debt, whose weight above 1 then adds to the requirement
            if form.weighted_at == "unit":
                self.requirements.append((holding.native_row, value * (1.0 - initial), value * (1.0 - maintenance)))
            else:
                self.requirements.append((holding.native_row, value, value))
                usd = holding.usd_coefficient
                self.requirements.append((holding.usd_row, -usd * initial, -usd * maintenance))

    def _tiers(self, form: TieredNotional) -> None:
        market = self.market
        for position in market.positions.get(self.account_id, ()):
            instrument_id = position["instrument_id"]
            instrument = market.instruments[instrument_id]
            if instrument["kind"] == "option":
                raise IncompleteAccountError(
                    FailureReason.UNSUPPORTED, f"option {instrument_id} under notional tiers", instrument_id
                )
            rows = market.margin_tiers.get((self.row["rule_set"], instrument_id))
            if not rows:
                raise IncompleteAccountError(
                    FailureReason.MISSING_PARAMETER,
                    f"no margin tiers of {instrument_id} in {self.row['rule_set']}",
                    instrument_id,
                )
            size = abs(float(position["quantity"])) * float(instrument["contract_size"])
            settlement = instrument["settlement_asset"]
            settlement_price, _ = market.asset_price(self.venue, self.account_id, settlement)
            underlying = market.exponents(instrument["underlying"])
            if instrument["payoff"] == "linear":
                notional, exponents = size * self._mark(instrument_id), underlying
            else:
                notional, exponents = size / self._mark(instrument_id), combined((underlying, -1.0))
            conversion = combined((market.exponents(settlement), 1.0), (self.unit_exponents, -1.0))
            inverse_leverage = 0.0
            if form.initial == "leverage":
                if position["leverage"] is None:
                    raise IncompleteAccountError(
                        FailureReason.MISSING_FIELD, f"no chosen leverage of {instrument_id}", instrument_id
                    )
                inverse_leverage = 1.0 / float(position["leverage"])
            if position["initial_rate_override"] is not None:
                inverse_leverage = max(inverse_leverage, float(position["initial_rate_override"]))
            floors = np.array([float(r["notional_floor"]) for r in rows])
            if floors[0] != 0 or np.any(np.diff(floors) <= 0):
                raise IncompleteAccountError(
                    FailureReason.INCONSISTENT, f"tier floors of {instrument_id} do not ascend from 0", instrument_id
                )
            arrays = pack_tiers(
                floors,
                np.array([float(r["maintenance_rate"]) for r in rows]),
                # Where leverage is chosen the tiers' own initial rates say nothing.
                np.array([0.0 if form.initial == "leverage" else float(r["initial_rate"]) for r in rows]),
                size=len(rows),
            )
            self.tiers.append(
                (
                    self._row(exponents),
                    notional,
                    self._row(conversion),
                    settlement_price / self.unit_price,
                    inverse_leverage,
                    *arrays,
                )
            )

    def _risk_units(self, forms: Sequence[Form]) -> None:
        grids = [form for form in forms if isinstance(form, PriceVolGrid)]
        max_losses = [form for form in forms if isinstance(form, ExpiryMaxLoss)]
        if any(isinstance(form, OptionFormula) for form in forms):
            raise IncompleteAccountError(
                FailureReason.UNSUPPORTED, "option_formula outside of an expiry_max_loss component"
            )
        contingencies = tuple(form for form in forms if isinstance(form, Contingency))
        if not grids and not max_losses and not contingencies:
            return
        if len(grids) > 1 or len(max_losses) > 1:
            raise IncompleteAccountError(
                FailureReason.UNSUPPORTED, f"rule set {self.row['rule_set']!r} has several grids or maximum losses"
            )
        grid = grids[0] if grids else None
        in_grid = set(grid.grid_collateral) if grid is not None else set()
        market = self.market
        holdings: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
        underlying_id: dict[str, str] = {}
        for position in market.positions.get(self.account_id, ()):
            instrument = market.instruments[position["instrument_id"]]
            symbol = market.risk_symbol(instrument["underlying"])
            holdings[symbol].append((position, instrument))
            underlying_id.setdefault(symbol, instrument["underlying"])
        collateral: dict[str, list[Row]] = defaultdict(list)
        for balance in market.balances.get(self.account_id, ()):
            asset_id = balance["asset_id"]
            if asset_id == self.row["settlement_asset"] or balance["side"] != "asset":
                continue
            if not balance["collateral_enabled"]:
                continue
            # Every token stands in exactly one unit: its own underlying's, else that of the account's only underlying.
            symbol = market.risk_symbol(asset_id)
            if symbol not in holdings and len(holdings) == 1:
                symbol = next(iter(holdings))
            collateral[symbol].append(balance)
            underlying_id.setdefault(symbol, asset_id)
        for symbol in sorted(set(holdings) | set(collateral)):
            self.units.append(
                self._risk_unit(symbol, underlying_id[symbol], holdings[symbol], collateral[symbol], in_grid)._replace(
                    grid=grid, contingencies=contingencies, max_loss=max_losses[0] if max_losses else None
                )
            )

    def _risk_unit(
        self,
        symbol: str,
        underlying: str,
        holdings: Sequence[tuple[Row, Row]],
        collateral: Sequence[Row],
        in_grid: set[str],
    ) -> UnitRow:
        market = self.market
        spot, spot_confidence = market.asset_price(self.venue, self.account_id, underlying)
        perp = (0.0, spot, 1.0)
        expiries: dict[datetime, tuple[float, float, float, float]] = {}
        options = []
        for position, instrument in holdings:
            quantity = float(position["quantity"]) * float(instrument["contract_size"])
            if instrument["payoff"] != "linear":
                raise IncompleteAccountError(
                    FailureReason.UNSUPPORTED,
                    f"inverse {instrument['kind']} {position['instrument_id']} in a risk unit",
                    position["instrument_id"],
                )
            if instrument["kind"] == "option":
                moment = instrument["expiry"]
                years = self._years(instrument)
                forward, rate, confidence = self._expiry(instrument, years)
                vol = self._implied_vol(position["instrument_id"])
                if vol["confidence"] is not None:
                    confidence = min(confidence, vol["confidence"])
                known = expiries.get(moment)
                rate = 0.0 if self.marks_undiscounted else rate
                expiries[moment] = (years, forward, rate, min(confidence, known[3]) if known else confidence)
                options.append(
                    (quantity, float(instrument["strike"]), instrument["option_type"] == "call", vol["value"], moment)
                )
            elif instrument["kind"] == "perp" and perp[0] == 0.0:
                row = market.mark(self.venue, self.account_id, position["instrument_id"], "mark")
                if row is None:
                    raise IncompleteAccountError(
                        FailureReason.MISSING_MARK, f"no mark of {position['instrument_id']}", position["instrument_id"]
                    )
                perp = (quantity, row["value"], 1.0 if row["confidence"] is None else row["confidence"])
            else:
                raise IncompleteAccountError(
                    FailureReason.UNSUPPORTED,
                    f"{instrument['kind']} {position['instrument_id']} in a risk unit",
                    position["instrument_id"],
                )
        order = {moment: number for number, moment in enumerate(sorted(expiries))}
        tokens = []
        for balance in collateral:
            price, confidence = market.asset_price(self.venue, self.account_id, balance["asset_id"])
            flag = 1.0 if market.assets[balance["asset_id"]]["symbol"] in in_grid else 0.0
            cube_row = self._row(market.exponents(balance["asset_id"]))
            quantity = float(balance["quantity"] + (balance["accrued_interest"] or 0))
            tokens.append((quantity, price, confidence, flag, cube_row))
        return UnitRow(
            account=0,
            underlying=symbol,
            spot=spot,
            spot_confidence=spot_confidence,
            stable_price=self.unit_price,
            price_factor=f"price:{symbol}" if f"price:{symbol}" in market.exponents(underlying) else None,
            vol_factor=f"vol:{symbol}",
            stable_exponents=tuple(sorted(self.unit_exponents.items())),
            perp=perp,
            collateral=tuple(tokens),
            options=tuple((q, k, c, v, order[moment]) for q, k, c, v, moment in options),
            expiries=tuple(expiries[moment] for moment in sorted(expiries)),
            grid=None,
            contingencies=(),
            max_loss=None,
        )
