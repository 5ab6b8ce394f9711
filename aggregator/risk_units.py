"""Risk units of one account: its options, perpetuals, futures and collateral of one underlying, as rows before padding.

Host code. A unit is what the grid, contingency and contract forms see; on the device it is `rules.risk_unit.RiskUnit`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from .errors import FailureReason
from .market import IncompleteAccountError, Market
from .rule_forms import (
    Contingency,
    ContractMargin,
    ExpiryMaxLoss,
    Form,
    OptionFormula,
    PriceVolGrid,
    RateOfSize,
    TieredNotional,
    WeightedValue,
)
from .rules.contract_margin import needs_entry_price
from .rules.delta_charges import has_delta_charges, pack_delta_charges, slices_of
from .snapshot import Row


class DeltaOneRow(NamedTuple):
    """One perpetual beyond the unit's first linear one, or a future (see rules.risk_unit.DeltaOne)."""

    quantity: float
    price: float
    confidence: float
    is_inverse: bool
    money_usd: float
    expiry: int
    delta: float


class QuoteRow(NamedTuple):
    """What a venue says of one option beside the model's inputs (see rules.risk_unit.OptionQuotes)."""

    mark_offset: float
    delta_offset: float
    entry_price: float
    is_inverse: bool
    money_usd: float


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
    contract: ContractMargin | None = None
    delta_one: tuple[DeltaOneRow, ...] = ()
    quotes: tuple[QuoteRow, ...] = ()
    """One for each option, or none where all of them are neutral."""


class OptionModel(NamedTuple):
    """Price and delta of one option by the model, per unit of the underlying, in the money of its forward."""

    price: float
    delta: float
    """By the forward, discounted as the price is."""


class _Rules(NamedTuple):
    """The forms that apply to one unit."""

    grid: PriceVolGrid | None
    max_loss: ExpiryMaxLoss | None
    contract: ContractMargin | None
    contingencies: tuple[Contingency, ...]


class _Account(NamedTuple):
    """The account whose units are built."""

    market: Market
    row: Row
    unit_price: float
    unit_exponents: Mapping[str, float]
    undiscounted: bool
    equity_at_mark: bool

    def factor_row(self, exponents: Mapping[str, float]) -> int:
        try:
            return self.market.cube.factor_row(exponents)
        except ValueError as problem:
            raise IncompleteAccountError(FailureReason.UNSUPPORTED, str(problem)) from None

    def mark(self, subject: str, name: str) -> Row | None:
        return self.market.mark(self.row["venue"], self.row["account_id"], subject, name)

    def price(self, asset_id: str) -> tuple[float, float]:
        return self.market.asset_price(self.row["venue"], self.row["account_id"], asset_id)

    def money_usd(self, instrument: Row) -> float:
        """USD per unit of the money that the instrument is quoted in; 0 where that is the account's own unit."""
        if instrument["payoff"] == "inverse":
            return 1.0
        if instrument["settlement_asset"] == self.row["settlement_asset"]:
            return 0.0
        return self.price(instrument["settlement_asset"])[0]


def marks_undiscounted(forms: Iterable[Form]) -> bool:
    """Whether the rule set values options without discount: the forms of `OptionFormula` do."""
    return any(isinstance(form, ExpiryMaxLoss | OptionFormula) for form in forms)


def forward_is_spot(rule_set: str, forms: Iterable[Form], symbol: str) -> bool:
    """Whether the grid of the risk symbol values options on the spot, so that no forward of theirs is needed.

    Raises `IncompleteAccountError` where the rule set has several grids for it.
    """
    grid = _choice(rule_set, [form for form in forms if isinstance(form, PriceVolGrid)], symbol)
    return grid is not None and grid.forward == "spot"


def option_expiry(market: Market, row: Row, instrument: Row, *, on_spot: bool) -> tuple[float, float, float]:
    """(forward, rate, lowest confidence of the two) of an option's expiry in the account `row`.

    `on_spot`: the forward is `spot * exp(rate * T)`, with a rate of 0 where the venue states none; a negative rate is
    unsupported, because no rule discounts at one. Raises `IncompleteAccountError`.
    """
    venue, account_id, underlying = row["venue"], row["account_id"], instrument["underlying"]
    if not on_spot:
        return market.expiry(venue, account_id, instrument)
    subject = f"{underlying}@{instrument['expiry']:%Y-%m-%dT%H:%M:%SZ}"
    spot, confidence = market.asset_price(venue, account_id, underlying)
    rate = market.mark(venue, account_id, subject, "rate")
    if rate is None:
        return spot, 0.0, confidence
    if rate["value"] < 0:
        raise IncompleteAccountError(
            FailureReason.UNSUPPORTED,
            f"a negative rate {rate['value']} of {rate['subject']} for options on spot",
            rate["subject"],
        )
    if rate["confidence"] is not None:
        confidence = min(confidence, rate["confidence"])
    return spot * math.exp(rate["value"] * market.years(instrument)), rate["value"], confidence


def option_model(
    forward: float, strike: float, *, years: float, vol: float, is_call: bool, discount: float
) -> OptionModel:
    """Discounted Black-76 price and delta in plain numbers: `pricing.black76_price` for one option on the host.

    Without time or vol the discounted intrinsic value and its delta, one half at the strike.
    """
    side = 1.0 if is_call else -1.0
    deviation = vol * math.sqrt(max(years, 0.0))
    if deviation < 1e-16 or forward <= 0:
        gain = side * (forward - strike)
        return OptionModel(discount * max(gain, 0.0), side * discount * (1.0 if gain > 0 else 0.0 if gain < 0 else 0.5))
    d1 = math.log(forward / strike) / deviation + 0.5 * deviation
    # The one out of the money is computed, the other follows by parity, as on the device.
    out = 1.0 if strike >= forward else -1.0
    price = max(out * (forward * _cdf(out * d1) - strike * _cdf(out * (d1 - deviation))), 0.0)
    if out != side:
        price += side * (forward - strike)
    return OptionModel(discount * price, side * discount * _cdf(side * d1))


def _cdf(x: float) -> float:
    return 0.5 * math.erfc(-x * math.sqrt(0.5))


_Chosen = TypeVar("_Chosen", PriceVolGrid, ExpiryMaxLoss, ContractMargin)
_NAMES = {PriceVolGrid: "grids", ExpiryMaxLoss: "maximum losses", ContractMargin: "contract margins"}


def _choice(rule_set: str, forms: Sequence[_Chosen], symbol: str) -> _Chosen | None:
    """The form that names the risk symbol, else the one that names none."""
    found = [form for form in forms if symbol in form.underlyings] or [form for form in forms if not form.underlyings]
    if len(found) > 1:
        raise IncompleteAccountError(
            FailureReason.UNSUPPORTED, f"rule set {rule_set!r} has several {_NAMES[type(found[0])]} for {symbol}"
        )
    return found[0] if found else None


def _rules_of(rule_set: str, forms: Sequence[Form], symbol: str, instruments: Sequence[Row]) -> _Rules:
    """What applies to the unit of a risk symbol that holds `instruments`; every one of them must be charged."""
    grids = [form for form in forms if isinstance(form, PriceVolGrid)]
    max_losses = [form for form in forms if isinstance(form, ExpiryMaxLoss)]
    contracts = [form for form in forms if isinstance(form, ContractMargin)]
    contingencies = [form for form in forms if isinstance(form, Contingency)]
    has_options = any(instrument["kind"] == "option" for instrument in instruments)
    rules = _Rules(
        grid=_choice(rule_set, grids, symbol),
        max_loss=_choice(rule_set, max_losses, symbol),
        contract=_choice(rule_set, contracts, symbol) if has_options else None,
        contingencies=tuple(form for form in contingencies if not form.underlyings or symbol in form.underlyings),
    )
    by_position = any(isinstance(form, TieredNotional | RateOfSize) for form in forms)
    has_futures = any(instrument["kind"] != "option" for instrument in instruments)
    no_options = rules.grid is None and rules.max_loss is None and rules.contract is None
    if (has_options and no_options and (grids or max_losses or contracts)) or (
        has_futures and grids and rules.grid is None and not by_position and not rules.contingencies
    ):
        raise IncompleteAccountError(
            FailureReason.MISSING_PARAMETER, f"rule set {rule_set!r} says nothing of {symbol}", symbol
        )
    if rules.grid is not None and has_delta_charges(rules.grid):
        try:
            pack_delta_charges(rules.grid, slices_of(rules.grid))
        except ValueError as problem:
            raise IncompleteAccountError(FailureReason.INCONSISTENT, f"{problem}, in {rule_set!r}") from None
    return rules


def risk_unit_rows(
    market: Market,
    row: Row,
    forms: Sequence[Form],
    *,
    unit_price: float,
    unit_exponents: Mapping[str, float],
) -> list[UnitRow]:
    """One row per underlying of the account `row` that the requirement `forms` charge; none without a form for units.

    `unit_price` is USD per unit of the account, `unit_exponents` the factors that move it. Raises
    `IncompleteAccountError`.
    """
    rule_set = row["rule_set"]
    account = _Account(
        market,
        row,
        unit_price,
        unit_exponents,
        undiscounted=marks_undiscounted(forms),
        equity_at_mark=any(
            isinstance(form, WeightedValue) and component["side"] == "equity" and form.options == "mark"
            for component, form in market.rules.get(rule_set, [])
        ),
    )
    if any(isinstance(form, OptionFormula) for form in forms):
        raise IncompleteAccountError(
            FailureReason.UNSUPPORTED, "option_formula outside of an expiry_max_loss component"
        )
    if not any(isinstance(form, PriceVolGrid | ExpiryMaxLoss | ContractMargin | Contingency) for form in forms):
        return []
    account_id = row["account_id"]
    holdings: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    underlying_id: dict[str, str] = {}
    for position in market.positions.get(account_id, ()):
        instrument = market.instruments[position["instrument_id"]]
        symbol = market.risk_symbol(instrument["underlying"])
        holdings[symbol].append((position, instrument))
        underlying_id.setdefault(symbol, instrument["underlying"])
    collateral: dict[str, list[Row]] = defaultdict(list)
    for balance in market.balances.get(account_id, ()):
        asset_id = balance["asset_id"]
        if asset_id == row["settlement_asset"] or balance["side"] != "asset":
            continue
        if not balance["collateral_enabled"]:
            continue
        # Every token stands in exactly one unit: its own underlying's, else that of the account's only underlying.
        symbol = market.risk_symbol(asset_id)
        if symbol not in holdings and len(holdings) == 1:
            symbol = next(iter(holdings))
        collateral[symbol].append(balance)
        underlying_id.setdefault(symbol, asset_id)
    units = []
    for symbol in sorted(set(holdings) | set(collateral)):
        rules = _rules_of(rule_set, forms, symbol, [instrument for _, instrument in holdings[symbol]])
        if any(rules):
            units.append(
                _risk_unit(account, symbol, underlying_id[symbol], holdings[symbol], collateral[symbol], rules)
            )
    return units


def _risk_unit(
    account: _Account,
    symbol: str,
    underlying: str,
    holdings: Sequence[tuple[Row, Row]],
    collateral: Sequence[Row],
    rules: _Rules,
) -> UnitRow:
    market = account.market
    spot, spot_confidence = account.price(underlying)
    perp = (0.0, spot, 1.0)
    expiries: dict[datetime, tuple[float, float, float, float]] = {}
    futures: dict[datetime, tuple[float, float, float, float]] = {}
    options, quotes = [], []
    delta_one: list[tuple[DeltaOneRow, datetime | None]] = []
    for position, instrument in holdings:
        instrument_id, kind = position["instrument_id"], instrument["kind"]
        quantity = float(position["quantity"]) * float(instrument["contract_size"])
        if kind == "option":
            moment = instrument["expiry"]
            expiry, vol = _option_market(account, instrument, rules)
            known = expiries.get(moment)
            expiries[moment] = (*expiry[:3], min(expiry[3], known[3]) if known else expiry[3])
            options.append((quantity, float(instrument["strike"]), instrument["option_type"] == "call", vol, moment))
            quotes.append(_quote(account, position, instrument, expiry, vol, rules))
        elif kind not in ("perp", "future"):
            raise IncompleteAccountError(
                FailureReason.UNSUPPORTED, f"{kind} {instrument_id} in a risk unit", instrument_id
            )
        elif rules.grid is not None or rules.contingencies:
            row = _delta_one(account, position, instrument)
            if kind == "perp" and perp[0] == 0.0 and not row.is_inverse and row.money_usd == 0.0 and row.delta == 1.0:
                perp = row[:3]
            elif kind == "perp":
                delta_one.append((row, None))
            elif instrument["expiry"] is None:
                raise IncompleteAccountError(
                    FailureReason.MISSING_FIELD, f"no expiry of the future {instrument_id}", instrument_id
                )
            else:
                # Without options of its date a future only lends its delta an expiry.
                futures[instrument["expiry"]] = (market.years(instrument), row.price, 0.0, 1.0)
                delta_one.append((row, instrument["expiry"]))
    expiries = futures | expiries
    order = {moment: number for number, moment in enumerate(sorted(expiries))}
    in_grid = set(rules.grid.grid_collateral) if rules.grid is not None else set()
    tokens = []
    for balance in collateral:
        price, confidence = account.price(balance["asset_id"])
        flag = 1.0 if market.assets[balance["asset_id"]]["symbol"] in in_grid else 0.0
        cube_row = account.factor_row(market.exponents(balance["asset_id"]))
        quantity = float(balance["quantity"] + (balance["accrued_interest"] or 0))
        tokens.append((quantity, price, confidence, flag, cube_row))
    return UnitRow(
        account=0,
        underlying=symbol,
        spot=spot,
        spot_confidence=spot_confidence,
        stable_price=account.unit_price,
        price_factor=f"price:{symbol}" if f"price:{symbol}" in market.exponents(underlying) else None,
        vol_factor=f"vol:{symbol}",
        stable_exponents=tuple(sorted(account.unit_exponents.items())),
        perp=perp,
        collateral=tuple(tokens),
        options=tuple((q, k, c, v, order[moment]) for q, k, c, v, moment in options),
        expiries=tuple(expiries[moment] for moment in sorted(expiries)),
        grid=rules.grid,
        contingencies=rules.contingencies,
        max_loss=rules.max_loss,
        contract=rules.contract,
        delta_one=tuple(row._replace(expiry=-1 if moment is None else order[moment]) for row, moment in delta_one),
        quotes=tuple(quotes) if any(any(quote) for quote in quotes) else (),
    )


def _delta_one(account: _Account, position: Row, instrument: Row) -> DeltaOneRow:
    """A perpetual or future as a holding of the unit; its expiry is filled in later."""
    instrument_id, is_inverse = position["instrument_id"], instrument["payoff"] == "inverse"
    mark = account.mark(instrument_id, "mark")
    if mark is None:
        raise IncompleteAccountError(FailureReason.MISSING_MARK, f"no mark of {instrument_id}", instrument_id)
    quantity = float(position["quantity"]) * float(instrument["contract_size"])
    delta = account.mark(instrument_id, "delta")
    return DeltaOneRow(
        quantity=quantity / mark["value"] if is_inverse else quantity,
        price=mark["value"],
        confidence=1.0 if mark["confidence"] is None else mark["confidence"],
        is_inverse=is_inverse,
        money_usd=account.money_usd(instrument),
        expiry=-1,
        delta=1.0 if delta is None else delta["value"],
    )


def _option_market(
    account: _Account, instrument: Row, rules: _Rules
) -> tuple[tuple[float, float, float, float], float]:
    """((years, forward, rate, lowest confidence of the feeds), vol) of one option."""
    market, row = account.market, account.row
    instrument_id = instrument["instrument_id"]
    if instrument["payoff"] == "inverse" and rules.max_loss is not None:
        raise IncompleteAccountError(
            FailureReason.UNSUPPORTED, f"inverse option {instrument_id} under a maximum loss", instrument_id
        )
    on_spot = rules.grid is not None and rules.grid.forward == "spot"
    forward, rate, confidence = option_expiry(market, row, instrument, on_spot=on_spot)
    vol = market.implied_vol(row["venue"], row["account_id"], instrument_id)
    if vol["confidence"] is not None:
        confidence = min(confidence, vol["confidence"])
    rate = 0.0 if account.undiscounted else rate
    return (market.years(instrument), forward, rate, confidence), vol["value"]


def _quote(
    account: _Account,
    position: Row,
    instrument: Row,
    expiry: tuple[float, float, float, float],
    vol: float,
    rules: _Rules,
) -> QuoteRow:
    """What the rules of the unit want to know of an option beside the model's inputs."""
    years, forward, rate, _ = expiry
    instrument_id, is_inverse = position["instrument_id"], instrument["payoff"] == "inverse"
    is_call = instrument["option_type"] == "call"
    grid, contract = rules.grid, rules.contract
    discount = math.exp(-max(rate, 0.0) * years)
    model = option_model(forward, float(instrument["strike"]), years=years, vol=vol, is_call=is_call, discount=discount)
    mark_offset = delta_offset = entry = 0.0
    at_mark = contract is not None or account.equity_at_mark or (grid is not None and grid.value_today == "mark")
    mark = account.mark(instrument_id, "mark") if at_mark else None
    if mark is not None:
        mark_offset = mark["value"] - (model.price / forward if is_inverse else model.price)
    delta = account.mark(instrument_id, "delta") if grid is not None and has_delta_charges(grid) else None
    if grid is not None and delta is not None:
        delta_offset = delta["value"] - (model.delta / discount if grid.forward == "spot" else model.delta)
    if contract is not None and needs_entry_price(contract, is_call=is_call, is_short=position["quantity"] < 0):
        if position["entry_price"] is None:
            raise IncompleteAccountError(
                FailureReason.MISSING_FIELD, f"no entry price of {instrument_id}", instrument_id
            )
        entry = float(position["entry_price"])
    return QuoteRow(mark_offset, delta_offset, entry, is_inverse, account.money_usd(instrument))
