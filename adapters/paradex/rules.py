"""Margin rules of Paradex as canonical data: cross margin, portfolio margin, and the dated parameter file.

Every account has a rule set of its own, `paradex:cross:<account>` or `paradex:portfolio:<account>`, because its fee
rates, chosen leverages and open orders are its own. What orders add to the initial requirement is computed exactly by
`mechanics` and `portfolio_margin` and enters as a fixed amount, since the engine's scenarios need maintenance only.

Cross margin: notional tiers with one tier per perpetual (rate plus fee) and a formula per option contract, fee
included. Portfolio margin: one grid per base asset with the minimum delta requirement as its floor, funding and
perpetual fee per unit of the perpetual, and the option fee as a formula per contract. The fee of an option is
min(rate * spot, cap * mark), the cap a dated parameter. Tokens other than USDC
count in the equity and in full in the requirement. Sources: see `mechanics` and `portfolio_margin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator.errors import ConfigurationError, FailureReason
from aggregator.rule_forms import (
    Component,
    Contingency,
    ContractMargin,
    ContractRate,
    DeltaFloor,
    Fixed,
    GridPoint,
    Number,
    PriceVolGrid,
    TieredNotional,
    Verdict,
    VolShock,
    WeightedValue,
    component_rows,
)

from ..amounts import FieldError, decimal_at, joined, member, members, non_negative_at
from ..collateral import weight_row
from .mechanics import LiquidationTerms

SOURCE = "Paradex docs: cross-margin-requirement, portfolio-margin, dated-options/margin-requirements (@9b82a75a)"
SETTLEMENT_WINDOW_S = Decimal(1800)

_ONE, _ZERO = Decimal(1), Decimal(0)
_LEVELS = ("initial", "maintenance")
_LARGEST_POWER = Decimal(10)
_LEAST_FLOOR_DAYS, _LARGEST_FLOOR_DAYS = Decimal("0.000001"), Decimal(3650)
_VERDICT = Component(side="verdict", parameters=Verdict(liquidates_when="below", health="requirement_over_equity"))
_EQUITY = Component(side="equity", parameters=WeightedValue(options="mark"))
_TOKENS = Component(side="requirement", parameters=WeightedValue(weights="collateral_tiers"))


class PortfolioParameters(NamedTuple):
    """Portfolio-margin configuration of one base asset; scenarios as (spot shock, vol shock, weight)."""

    scenarios: tuple[tuple[Decimal, Decimal, Decimal], ...]
    power_short: Decimal
    power_long: Decimal
    dte_floor_days: Decimal
    min_vol_up: Decimal
    hedged: Decimal
    unhedged: Decimal
    mmf_factor: Decimal
    funding_hours: Decimal
    source: str


class OptionRates(NamedTuple):
    """Per-contract fractions of one base asset's options at one level."""

    premium_multiplier: Decimal
    long_itm: Decimal
    short_itm: Decimal
    short_otm: Decimal
    short_put_cap: Decimal


class OptionFee(NamedTuple):
    """The fee of an option: a share of the spot, at most a share of the option's mark."""

    rate: Decimal
    cap: Decimal


class PerpRates(NamedTuple):
    """What one perpetual or future of a cross account is charged per unit of notional."""

    instrument_id: str
    initial: Decimal
    maintenance: Decimal


class PortfolioUnit(NamedTuple):
    """One base asset of a portfolio-margin account, by the asset's risk symbol.

    `funding` is the provision per unit of perpetual notional at spot, 0 where the position would receive.
    """

    risk_symbol: str
    parameters: PortfolioParameters
    perp_fee: Decimal
    option_fee: OptionFee | None
    funding: Decimal


# ----------------------------------------------------------------------------------------------------------------------
# Rule sets


def cross_components(
    perps: Sequence[PerpRates],
    options: Mapping[str, tuple[OptionRates, OptionRates, OptionFee]],
    *,
    order_margin: Decimal,
    has_tokens: bool,
) -> list[Component]:
    """Components of a cross or isolated account; `options` has (initial, maintenance, fee) by risk symbol."""
    components = [_EQUITY]
    if perps:
        tiers = TieredNotional(initial="tier_rate")
        components.append(Component(side="requirement", parameters=tiers, group_by="position"))
    for symbol, (initial, maintenance, fee) in sorted(options.items()):
        formula = _contract_margin(symbol, initial, maintenance, fee=fee)
        components.append(Component(side="requirement", parameters=formula, group_by="risk_unit"))
    return [*components, *_tail(order_margin, has_tokens=has_tokens)]


def portfolio_components(units: Iterable[PortfolioUnit], *, order_margin: Decimal, has_tokens: bool) -> list[Component]:
    """Components of a portfolio-margin account."""
    components = [_EQUITY]
    for unit in units:
        parts: list[Any] = [_grid(unit)]
        symbols = (unit.risk_symbol,)
        for rate, price in ((unit.perp_fee, "perp_mark"), (unit.funding, "spot")):
            if rate:
                parts.append(
                    Contingency(
                        measure="gross_perp",
                        price="perp_mark" if price == "perp_mark" else "spot",
                        underlyings=symbols,
                        initial_rate=rate,
                        maintenance_rate=rate,
                    )
                )
        if unit.option_fee and unit.option_fee.rate:
            parts.append(_option_fee(unit.risk_symbol, unit.option_fee))
        components += [Component(side="requirement", parameters=part, group_by="risk_unit") for part in parts]
    return [*components, *_tail(order_margin, has_tokens=has_tokens)]


def _tail(order_margin: Decimal, *, has_tokens: bool) -> list[Component]:
    tail = [_TOKENS] if has_tokens else []
    if order_margin:
        fixed = Fixed(initial=order_margin, basis="computed initial margin of open orders")
        tail.append(Component(side="requirement", parameters=fixed, level="initial"))
    return [*tail, _VERDICT]


def _contract_margin(symbol: str, initial: OptionRates, maintenance: OptionRates, *, fee: OptionFee) -> ContractMargin:
    """The option formula: a long one min(mark * multiplier, long_itm * spot), a short one max(short_itm * spot - OTM,
    short_otm * spot), capped for a put; plus the fee, the rate on the spot up to its cap on the mark.
    """
    fee_cap = fee.cap if fee.rate else None

    def long(rates: OptionRates) -> ContractRate:
        return ContractRate(
            mark_rate=rates.premium_multiplier, cap_rate=rates.long_itm, fee_rate=fee.rate, fee_cap=fee_cap
        )

    def short(rates: OptionRates, *, cap: Decimal | None = None) -> ContractRate:
        return ContractRate(
            spot_rate=rates.short_itm,
            otm_weight=_ONE,
            floor_rate=rates.short_otm,
            cap_rate=cap,
            fee_rate=fee.rate,
            fee_cap=fee_cap,
        )

    return ContractMargin(
        short_call_initial=short(initial),
        short_call_maintenance=short(maintenance),
        short_put_initial=short(initial, cap=initial.short_put_cap),
        short_put_maintenance=short(maintenance, cap=maintenance.short_put_cap),
        long_call_initial=long(initial),
        long_call_maintenance=long(maintenance),
        long_put_initial=long(initial),
        long_put_maintenance=long(maintenance),
        underlyings=(symbol,),
    )


def _option_fee(symbol: str, fee: OptionFee) -> ContractMargin:
    """min(rate * spot, cap * mark) of every contract, at both levels."""
    rate = ContractRate(fee_rate=fee.rate, fee_cap=fee.cap)
    sides = [f"{side}_{kind}_{level}" for side in ("short", "long") for kind in ("call", "put") for level in _LEVELS]
    return ContractMargin.model_validate(dict.fromkeys(sides, rate) | {"underlyings": (symbol,)})


def _grid(unit: PortfolioUnit) -> PriceVolGrid:
    parameters = unit.parameters
    return PriceVolGrid(
        scenarios=tuple(
            GridPoint(spot=_ONE + spot, dampening=weight, vol_move=vol) for spot, vol, weight in parameters.scenarios
        ),
        vol_shock=VolShock(
            short_term_power=parameters.power_short,
            long_term_power=parameters.power_long,
            dte_floor_days=parameters.dte_floor_days,
            min_vol_up=parameters.min_vol_up,
            short_below_30_days=True,
        ),
        initial_factor=_ONE,
        maintenance_factor=parameters.mmf_factor,
        settlement_window_s=SETTLEMENT_WINDOW_S,
        settlement_scales_profit=True,
        forward="spot",
        value_today="mark",
        delta_floor=DeltaFloor(unhedged=parameters.unhedged, hedged=parameters.hedged),
        underlyings=(unit.risk_symbol,),
    )


def rule_set_rows(rule_set: str, components: Sequence[Component]) -> list[dict[str, Any]]:
    """Rows of `rule_sets`."""
    return component_rows(rule_set, components, source=SOURCE)


def margin_tier_rows(rule_set: str, perps: Iterable[PerpRates]) -> list[dict[str, Any]]:
    """Rows of `margin_tiers`: one tier per perpetual or future, fee provision included."""
    return [
        {
            "rule_set": rule_set,
            "market": perp.instrument_id,
            "tier": 1,
            "notional_floor": _ZERO,
            "initial_rate": perp.initial,
            "maintenance_rate": perp.maintenance,
            "deduction": _ZERO,
            "source": "venue",
        }
        for perp in perps
    ]


def token_weight_rows(rule_set: str, tokens: Mapping[str, bool]) -> list[dict[str, Any]]:
    """Rows of `collateral_tiers` by asset id: whether its value counts (USDC) or is required in full (other tokens, of
    which a debt is required once more).
    """
    return [
        weight_row(rule_set, asset, _ONE, source=SOURCE)
        if counts
        else weight_row(rule_set, asset, _ZERO, liability=(Decimal(2), Decimal(2)), source=SOURCE)
        for asset, counts in sorted(tokens.items())
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Portfolio-margin configuration


def portfolio_parameters(record: Any, *, path: str, source: str) -> PortfolioParameters:
    """One base asset of the venue's configuration; scenarios as objects or as [spot shock, vol shock, weight].

    Raises `FieldError`, out_of_range for a spot shock of -1 or less, a negative weight or factor, and for a law of the
    vol shock that is no law of a vol.
    """
    scenarios = []
    for i, scenario in enumerate(members(record, "scenarios", path)):
        place = joined(joined(path, "scenarios"), i)
        named = scenario
        if isinstance(scenario, list):
            if len(scenario) != 3:
                raise FieldError(place, FailureReason.MALFORMED, "expected [spot shock, vol shock, weight]")
            named = dict(zip(("spot_shock", "vol_shock", "weight"), scenario, strict=True))
        spot = decimal_at(named, "spot_shock", place)
        if spot <= -1:
            raise FieldError(joined(place, "spot_shock"), FailureReason.OUT_OF_RANGE, f"{spot} leaves no price")
        scenarios.append((spot, decimal_at(named, "vol_shock", place), non_negative_at(named, "weight", place)))
    if not scenarios:
        raise FieldError(joined(path, "scenarios"), FailureReason.MISSING_FIELD, "no scenarios")
    vol = member(record, "vol_shock_params", path)
    place = joined(path, "vol_shock_params")
    return PortfolioParameters(
        scenarios=tuple(scenarios),
        power_short=_within(vol, "vega_power_short_dte", place, low=_ZERO, high=_LARGEST_POWER),
        power_long=_within(vol, "vega_power_long_dte", place, low=_ZERO, high=_LARGEST_POWER),
        dte_floor_days=_within(vol, "dte_floor_days", place, low=_LEAST_FLOOR_DAYS, high=_LARGEST_FLOOR_DAYS),
        min_vol_up=non_negative_at(vol, "min_vol_shock_up", place),
        hedged=non_negative_at(record, "hedged_margin_factor", path),
        unhedged=non_negative_at(record, "unhedged_margin_factor", path),
        mmf_factor=non_negative_at(record, "mmf_factor", path),
        funding_hours=non_negative_at(record, "funding_provision_hour", path),
        source=source,
    )


def _within(record: Any, key: str, path: str, *, low: Decimal, high: Decimal) -> Decimal:
    value = decimal_at(record, key, path)
    if not low <= value <= high:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} is not in {low}..{high}")
    return value


# ----------------------------------------------------------------------------------------------------------------------
# The dated parameter file


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Fees(_Part):
    as_of: str
    source: str
    perp: Number | None = None
    option: Number | None = None
    option_cap: Number | None = None


class _Vol(_Part):
    vega_power_short_dte: Number
    vega_power_long_dte: Number
    dte_floor_days: Number
    min_vol_shock_up: Number


class _Portfolio(_Part):
    as_of: str
    source: str
    hedged_margin_factor: Number
    unhedged_margin_factor: Number
    mmf_factor: Number
    funding_provision_hour: Number
    vol_shock_params: _Vol
    scenarios: tuple[tuple[Number, Number, Number], ...]


class _Liquidation(_Part):
    as_of: str
    source: str
    target_margin_ratio: Number
    share_increment: Number
    fee: Number


class _File(_Part):
    as_of: str = ""
    source: str = ""
    fees: _Fees | None = None
    liquidation: _Liquidation | None = None
    portfolio_margin: Mapping[str, _Portfolio] = {}


class ParameterFile(NamedTuple):
    """What stands in for payloads that are not there: taker fees by kind, configurations by base asset; and what no
    payload has: the cap of an option's fee as a share of its mark, and the terms of a liquidation.
    """

    fees: Mapping[str, Decimal]
    portfolio_margin: Mapping[str, PortfolioParameters]
    option_fee_cap: Decimal | None = None
    liquidation: LiquidationTerms | None = None


def read_parameter_file(parameters: Mapping[str, Any]) -> ParameterFile:
    """The parsed parameter file; raises `ConfigurationError` naming the first key that is wrong."""
    try:
        file = _File.model_validate(parameters)
        stated = file.fees
        fees = {} if stated is None else {"perp": stated.perp, "option": stated.option, "option_cap": stated.option_cap}
        portfolio = {
            base: portfolio_parameters(
                {**entry.model_dump(exclude={"scenarios"}), "scenarios": [list(row) for row in entry.scenarios]},
                path=f"portfolio_margin.{base}",
                source=f"dated parameters of {entry.as_of}: {entry.source}",
            )
            for base, entry in file.portfolio_margin.items()
        }
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"parameters of paradex: {place}: {first['msg']}") from None
    except FieldError as error:
        raise ConfigurationError(f"parameters of paradex: {error.path}: {error.message}") from None
    negative = [kind for kind, fee in fees.items() if fee is not None and not 0 <= fee <= 1]
    if negative:
        raise ConfigurationError(f"parameters of paradex: fees.{negative[0]}: a fee rate must lie in 0..1")
    cap = fees.pop("option_cap", None)
    terms = file.liquidation
    for key in ("target_margin_ratio", "share_increment", "fee"):
        if terms is not None and not 0 < getattr(terms, key) < 1:
            message = f"liquidation.{key}: {getattr(terms, key)} does not lie between 0 and 1"
            raise ConfigurationError(f"parameters of paradex: {message}")
    return ParameterFile(
        {kind: fee for kind, fee in fees.items() if fee is not None},
        portfolio,
        cap,
        None
        if terms is None
        else LiquidationTerms(*map(Fraction, (terms.fee, terms.target_margin_ratio, terms.share_increment))),
    )
