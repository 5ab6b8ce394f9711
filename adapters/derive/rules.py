"""Margin rules of Derive as canonical data, built from the dated parameter file.

Three managers: portfolio margin 2 (`PM2`), portfolio margin 1 (`PM`), standard margin (`SM`). A portfolio-margin
account belongs to one universe (one underlying). Rule sets: `derive:pm2:<universe>`, `derive:pm:<universe>`,
`derive:sm:<class of markets>`, and `derive:cash` for an account that holds nothing but the settlement stable.

Source of the rules: derivexyz/v2-core @7736900d, PMRM_2.sol, PMRM.sol, StandardManager.sol (rules and figures only).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator.errors import ConfigurationError
from aggregator.rule_forms import (
    BasisContingency,
    Component,
    Confidence,
    Contingency,
    ExpiryMaxLoss,
    Number,
    OptionFormula,
    PegLoss,
    PriceVolGrid,
    SkewShock,
    StaticDiscount,
    Verdict,
    VolShock,
    WeightedValue,
    component_rows,
)

CASH_RULES = "derive:cash"
SETTLEMENT = "USDC"

_ONE = Decimal(1)
_VERDICT = Component(side="verdict", parameters=Verdict(liquidates_when="below", trigger=_ONE))
_EQUITY = Component(side="equity", parameters=WeightedValue(weights="unit"))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Haircut(_Part):
    """Share of a portfolio-margin collateral that does not count: for maintenance, and initially beyond that."""

    maintenance: Number
    initial_extra: Number
    risk_cancelling: bool = False


class PortfolioParameters(_Part):
    """One universe's manager of portfolio margin.

    `initial_extra` rates come on top of the maintenance rates. `static_rate` is the interest rate of an expiry whose
    tickers carry no discount factor.
    """

    as_of: str
    source: str
    grid: tuple[tuple[Number, Literal["up", "down", "none", "skew_linear", "skew_abs"], Number], ...]
    vol_shock: VolShock
    skew: SkewShock | None = None
    discount: StaticDiscount
    initial_factor: Number
    maintenance_factor: Number
    basis: BasisContingency
    peg_loss: PegLoss
    confidence: Confidence
    perp_maintenance: Number
    perp_initial_extra: Number
    option_maintenance: Number
    option_initial_extra: Number
    settlement_window_s: Number
    static_rate: Number
    universes: Mapping[str, Mapping[str, Haircut]]


class BaseMargin(_Part):
    """Margin value of a token under standard margin: a factor of its dollar value, initially times the scale."""

    margin_factor: Number
    initial_scale: Number


class MarketClass(_Part):
    """Markets of standard margin with equal parameters."""

    markets: tuple[str, ...]
    perp_initial: Number
    perp_maintenance: Number
    option: OptionFormula
    unpaired_initial_scale: Number
    unpaired_maintenance_scale: Number


class StandardParameters(_Part):
    """The manager of standard margin."""

    as_of: str
    source: str
    perp_confidence: Confidence
    option_confidence: Confidence
    base_confidence: Confidence
    depeg: PegLoss
    base: Mapping[str, BaseMargin]
    classes: Mapping[str, MarketClass]


class RuleBook(_Part):
    """The parameter file: the managers, and the venue's spelling of symbols that the asset book spells otherwise."""

    as_of: str
    source: str
    aliases: Mapping[str, str] = {}
    pm2: PortfolioParameters
    pm: PortfolioParameters
    sm: StandardParameters


class CollateralWeight(NamedTuple):
    """Fractions of a token's value that count, by level."""

    initial: Decimal
    maintenance: Decimal


class RuleSet(NamedTuple):
    """One rule set: components, weights of collateral by symbol, and the rate where a ticker states no discount.

    `static_rate` None: the manager marks options undiscounted.
    """

    name: str
    components: tuple[Component, ...]
    collateral: Mapping[str, CollateralWeight]
    static_rate: Decimal | None
    source: str
    as_of: str

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `rule_sets`."""
        return component_rows(self.name, self.components, source=self.source, valid_from=_day(self.as_of))


def read_rule_book(parameters: Mapping[str, Any]) -> RuleBook:
    """The parsed parameter file as a model; raises `ConfigurationError` naming the first key that is wrong."""
    try:
        return RuleBook.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"parameters of derive: {place}: {first['msg']}") from None


def cash_rules(book: RuleBook) -> RuleSet:
    """Rules of an account without positions and collateral: equity and no requirement."""
    return RuleSet(CASH_RULES, (_EQUITY, _VERDICT), {}, None, book.source, book.as_of)


def portfolio_rules(manager: str, parameters: PortfolioParameters, universe: str) -> RuleSet | None:
    """Rules of portfolio margin in `universe`; None when the parameter file has no such universe."""
    haircuts = parameters.universes.get(universe)
    if haircuts is None:
        return None
    grid = PriceVolGrid.model_validate(
        {
            "scenarios": [{"spot": spot, "vol": vol, "dampening": damp} for spot, vol, damp in parameters.grid],
            "vol_shock": parameters.vol_shock,
            "skew": parameters.skew,
            "discount": parameters.discount,
            "initial_factor": parameters.initial_factor,
            "maintenance_factor": parameters.maintenance_factor,
            "basis": parameters.basis,
            "peg_loss": parameters.peg_loss,
            "settlement_window_s": parameters.settlement_window_s,
            "grid_collateral": sorted(symbol for symbol, haircut in haircuts.items() if haircut.risk_cancelling),
        }
    )
    perp, option = parameters.perp_maintenance, parameters.option_maintenance
    charges = (
        Contingency(measure="gross_perp", initial_rate=perp + parameters.perp_initial_extra, maintenance_rate=perp),
        Contingency(
            measure="naked_short_options",
            initial_rate=option + parameters.option_initial_extra,
            maintenance_rate=option,
        ),
        Contingency(measure="gross_perp", confidence=parameters.confidence),
        Contingency(measure="gross_options", confidence=parameters.confidence),
        Contingency(measure="collateral", confidence=parameters.confidence),
    )
    components = (
        _EQUITY,
        Component(side="requirement", parameters=grid, group_by="risk_unit"),
        *(Component(side="requirement", parameters=charge, group_by="risk_unit") for charge in charges),
        Component(side="requirement", parameters=WeightedValue(weights="collateral_tiers")),
        _VERDICT,
    )
    weights = {
        symbol: CollateralWeight(
            initial=_ONE - haircut.maintenance - haircut.initial_extra, maintenance=_ONE - haircut.maintenance
        )
        for symbol, haircut in haircuts.items()
    }
    name = f"derive:{manager}:{universe}"
    return RuleSet(name, components, weights, parameters.static_rate, parameters.source, parameters.as_of)


def standard_class(parameters: StandardParameters, market: str) -> str | None:
    """Class of a market under standard margin; None when the parameter file does not list it."""
    return next((name for name, markets in parameters.classes.items() if market in markets.markets), None)


def standard_rules(parameters: StandardParameters, name: str) -> RuleSet:
    """Rules of standard margin for an account whose markets are of the class `name`."""
    market = parameters.classes[name]
    charges = (
        Contingency(
            measure="gross_perp",
            price="perp_mark",
            initial_rate=market.perp_initial,
            maintenance_rate=market.perp_maintenance,
        ),
        Contingency(measure="gross_perp", confidence=parameters.perp_confidence),
        Contingency(measure="short_options", confidence=parameters.option_confidence),
        Contingency(measure="gross_perp_and_short_options", depeg=parameters.depeg),
        Contingency(measure="collateral_usd", confidence=parameters.base_confidence),
    )
    options = ExpiryMaxLoss(
        per_contract=market.option,
        unpaired_initial_scale=market.unpaired_initial_scale,
        unpaired_maintenance_scale=market.unpaired_maintenance_scale,
    )
    components = (
        _EQUITY,
        Component(side="requirement", parameters=options, group_by="expiry"),
        *(Component(side="requirement", parameters=charge, group_by="risk_unit") for charge in charges),
        Component(side="requirement", parameters=WeightedValue(weights="collateral_tiers", weighted_at="usd")),
        _VERDICT,
    )
    weights = {
        symbol: CollateralWeight(initial=base.margin_factor * base.initial_scale, maintenance=base.margin_factor)
        for symbol, base in parameters.base.items()
    }
    return RuleSet(f"derive:sm:{name}", components, weights, None, parameters.source, parameters.as_of)


def _day(text: str) -> datetime:
    return datetime.combine(datetime.strptime(text, "%Y-%m-%d").date(), time(), UTC)
