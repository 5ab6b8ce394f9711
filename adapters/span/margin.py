"""The margin of one account at a clearing house: its positions under the day's parameters, commodity by commodity."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple, TypeVar

from aggregator.errors import FailureReason

from ..amounts import FieldError
from ..findings import Problem
from . import mechanics
from .mechanics import MonthDelta, Option, PriceRisk, Scan, Scenario
from .parse import Commodity, Contract, House, Line, tier_of

T = TypeVar("T")
_DAY_S = 86_400


class Holding(NamedTuple):
    """A position with its contract."""

    contract: Contract
    quantity: Fraction
    line: Line


class CommodityMargin(NamedTuple):
    """One combined commodity of an account, in its currency."""

    commodity: Commodity
    holdings: tuple[Holding, ...]
    scan: Scan
    net_delta: Fraction
    price_risk: PriceRisk
    intra: Fraction
    delivery: Fraction
    inter_credit: Fraction
    option_minimum: Fraction

    @property
    def risk(self) -> Fraction:
        """Requirement of the commodity, maintenance level, before any option value."""
        return mechanics.commodity_risk(
            self.scan.risk,
            intra=self.intra,
            delivery=self.delivery,
            inter_credit=self.inter_credit,
            option_minimum=self.option_minimum,
        )


class PortfolioMargin(NamedTuple):
    """All of an account: its commodities, both levels of risk, and the value of its options."""

    commodities: tuple[CommodityMargin, ...]
    maintenance: Fraction
    initial: Fraction
    net_option_value: Fraction


def portfolio_margin(house: House, lines: Sequence[Line]) -> PortfolioMargin:
    """The margin of `lines`; raises `FieldError` for the first contract or parameter that lacks.

    The initial risk is each commodity's risk times its initial ratio.
    """
    by_commodity: dict[str, list[Holding]] = {}
    for line in lines:
        contract = _contract(house, line)
        by_commodity.setdefault(contract.commodity, []).append(Holding(contract, Fraction(line.quantity), line))
    found: dict[str, CommodityMargin] = {}
    for code, holdings in sorted(by_commodity.items()):
        commodity = house.commodities[code]
        if isinstance(commodity, Problem):
            raise FieldError(holdings[0].line.path, *commodity)
        found[code] = _commodity_margin(house, commodity, holdings)
    credit = mechanics.inter_commodity(
        {code: margin.net_delta for code, margin in found.items()},
        {code: margin.price_risk.weighted for code, margin in found.items()},
        house.spreads,
    )
    margins = tuple(margin._replace(inter_credit=credit.credits[code]) for code, margin in found.items())
    options = [
        (held.quantity, held.contract.price, held.contract.multiplier)
        for margin in margins
        for held in margin.holdings
        if held.contract.kind == "option"
    ]
    return PortfolioMargin(
        margins,
        sum((margin.risk for margin in margins), Fraction(0)),
        sum((margin.risk * margin.commodity.initial_ratio for margin in margins), Fraction(0)),
        mechanics.net_option_value(options),
    )


def _contract(house: House, line: Line) -> Contract:
    contract = house.contracts.get(line.symbol)
    if contract is None:
        message = f"{line.symbol!r} is no contract of {house.code}"
        raise FieldError(line.path, FailureReason.UNKNOWN_MARKET, message)
    if isinstance(contract, Problem):
        raise FieldError(line.path, contract.reason, f"{line.symbol}: {contract.message}")
    return contract


def _commodity_margin(house: House, commodity: Commodity, holdings: Sequence[Holding]) -> CommodityMargin:
    arrays = [(held.quantity, risk_array(house, commodity, held.contract)) for held in holdings]
    scan = mechanics.scan(mechanics.total_losses(arrays))
    in_spreads = any(leg.commodity == commodity.code for spread in house.spreads for leg in spread.legs)
    deltas: dict[str, Fraction] = {}
    if commodity.calendar or commodity.delivery or in_spreads:
        for held in holdings:
            month = held.contract.month
            delta = contract_delta(house, commodity, held.contract)
            deltas[month] = deltas.get(month, Fraction(0)) + held.quantity * delta
    months = [MonthDelta(month, _tier(commodity, month), delta) for month, delta in sorted(deltas.items())]
    intra = mechanics.intra_commodity(months, commodity.calendar)
    net_delta = sum(deltas.values(), Fraction(0))
    shorts = {"call": Fraction(0), "put": Fraction(0)}
    for held in holdings:
        if held.contract.option_type is not None:
            shorts[held.contract.option_type] += max(-held.quantity, Fraction(0))
    return CommodityMargin(
        commodity=commodity,
        holdings=tuple(holdings),
        scan=scan,
        net_delta=net_delta,
        price_risk=mechanics.price_risk(scan, net_delta),
        intra=intra.charge,
        delivery=mechanics.delivery_charge(intra, commodity.delivery),
        inter_credit=Fraction(0),
        option_minimum=mechanics.short_option_minimum(
            shorts["call"], shorts["put"], commodity.short_option_minimum, count=commodity.short_option_count
        ),
    )


def _tier(commodity: Commodity, month: str) -> int:
    if not commodity.calendar:
        return 0
    tier = tier_of(month, commodity.tiers)
    if tier is None:
        message = f"month {month} of {commodity.code} lies in none of its tiers"
        raise FieldError("calendar.tiers", FailureReason.MISSING_PARAMETER, message)
    return tier


def risk_array(house: House, commodity: Commodity, contract: Contract) -> tuple[Fraction, ...]:
    """Losses of one long contract: as published, else from the scan ranges; raises missing_parameter without both."""
    if contract.risk_array is not None:
        return contract.risk_array
    points, price_range = scan_points(house), scan_range(commodity, contract)
    if contract.kind == "future":
        array = mechanics.future_array(price_range, points)
    else:
        array = mechanics.option_array(
            option_of(house, contract),
            float(contract.future_price),
            price_scan_range=float(price_range),
            vol_scan_range=float(vol_range(commodity, contract)),
            look_ahead_days=float(_needed(house.look_ahead_days, "scan.look_ahead_days")),
            points=points,
        )
    return tuple(loss * Fraction(contract.multiplier) for loss in array)


def contract_delta(house: House, commodity: Commodity, contract: Contract) -> Fraction:
    """Composite delta of one long contract, scaled: as published, of a future 1, else by the house's weights."""
    delta = contract.composite_delta
    if delta is None:
        if contract.kind == "future":
            delta = Fraction(1)
        else:
            delta = mechanics.composite_delta(
                option_of(house, contract),
                float(contract.future_price),
                price_scan_range=float(scan_range(commodity, contract)),
                look_ahead_days=float(_needed(house.look_ahead_days, "scan.look_ahead_days")),
                weights=_needed(house.delta_weights, "scan.delta_weights"),
            )
    return delta * contract.delta_scale


def scan_points(house: House) -> tuple[Scenario, ...]:
    """The house's 16 scenarios; raises missing_parameter without its figures for the extreme ones."""
    multiple = _needed(house.extreme_multiple, "scan.extreme_multiple")
    return mechanics.scenarios(multiple, _needed(house.extreme_cover, "scan.extreme_cover"))


def scan_range(commodity: Commodity, contract: Contract) -> Fraction:
    """Price scan range of a contract, money per unit: its own, the commodity's, or its rate of the price."""
    if contract.price_scan_range is not None:
        return contract.price_scan_range
    if commodity.price_scan_rate is not None:
        return commodity.price_scan_rate * Fraction(contract.future_price)
    return _needed(commodity.price_scan_range, f"price_scan_range of {commodity.code}")


def vol_range(commodity: Commodity, contract: Contract) -> Fraction:
    """Vol scan range of a contract, a fraction of its vol."""
    own = contract.vol_scan_range
    return _needed(commodity.vol_scan_range, f"vol_scan_range of {commodity.code}") if own is None else own


def option_of(house: House, contract: Contract) -> Option:
    """The option's terms as the model takes them."""
    days = (contract.expiry - house.as_of).total_seconds() / _DAY_S
    strike, vol = contract.strike or Decimal(0), contract.implied_vol or Decimal(0)
    return Option(float(strike), float(vol), days, contract.option_type == "call")


def _needed(value: T | None, name: str) -> T:
    if value is None:
        message = f"{name} is not stated, and a contract without a risk array needs it"
        raise FieldError(name, FailureReason.MISSING_PARAMETER, message)
    return value
