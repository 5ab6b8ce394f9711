"""Deribit's margin rules as canonical data: the dated parameter file, live matrix parameters, components, tiers.

Rule sets belong to one account each (`deribit:sm:<part>`, `deribit:pm:<part>`): standard margin of a linear contract
is charged at the index while a position is valued at its mark, so its rates are stated times index over mark; portfolio
margin carries amounts that the venue reports. Rates are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator.errors import ConfigurationError, FailureReason
from aggregator.rule_forms import (
    Component,
    ContractMargin,
    ContractRate,
    DeltaShock,
    Fixed,
    GridPoint,
    Number,
    PriceVolGrid,
    RateOfSize,
    RollShock,
    Verdict,
    VolShock,
    WeightedValue,
)

from ..amounts import (
    FieldError,
    decimal_at,
    integer_at,
    joined,
    member,
    non_negative_at,
    optional_decimal_at,
    positive_at,
)
from ..collateral import weight_row
from ..fields import mapping_at
from .mechanics import EXTENDED_MOVES

VENUE = "deribit"
PARAMETER_FILE = "configs/venues/deribit.toml"
DIGITS = 9
"""Decimals to which the worst case of the matrix is rounded, in its coin."""

_ONE, _ZERO = Decimal(1), Decimal(0)
_DTE_FLOOR_DAYS = Decimal("1e-6")
# The venue states no floor; an option in its last second would divide by zero.


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FutureRates(_Part):
    """Standard margin of futures and perpetuals of one base coin: rates, and their growth per coin of size."""

    initial: Number
    maintenance: Number
    slope: Number


class OptionRates(_Part):
    """Standard margin of a short option of one base coin, fractions of the index (of the mark for `put_mark`)."""

    initial: Number
    initial_floor: Number
    maintenance: Number
    put_mark: Number


class RuleBook(_Part):
    """The parameter file. `haircuts` by currency, `portfolio_margin` in the venue's own shape of its parameters."""

    as_of: date | None = None
    source: str
    aliases: Mapping[str, str] = {}
    futures: Mapping[str, FutureRates] = {}
    options: Mapping[str, OptionRates] = {}
    haircuts: Mapping[str, Number] = {}
    portfolio_margin: Mapping[str, Any] = {}

    @property
    def valid_from(self) -> datetime | None:
        """Start of the day of `as_of`."""
        return None if self.as_of is None else datetime.combine(self.as_of, time(), UTC)


def read_rule_book(parameters: Mapping[str, Any]) -> RuleBook:
    """The parsed parameter file as a model, an empty one for no file; raises `ConfigurationError` naming the first key
    that is wrong.
    """
    try:
        return RuleBook.model_validate(parameters or {"source": ""})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"parameters of {VENUE}: {place}: {first['msg']}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Parameters of the risk matrix


class PairParameters(NamedTuple):
    """Live parameters of one currency pair (`btc_usd`)."""

    price_range: Decimal
    volatility_range_up: Decimal
    volatility_range_down: Decimal
    short_term_vega_power: Decimal
    long_term_vega_power: Decimal
    min_volatility_for_shock_up: Decimal
    extended_table_factor: Decimal
    delta_increment: Decimal
    delta_threshold: Decimal
    max_delta_shock: Decimal


class CurrencyParameters(NamedTuple):
    """Live parameters of one currency (`btc`); dampener in USD."""

    annualised_move_risk: Decimal
    min_annualised_move: Decimal
    extended_dampener: Decimal
    pnl_offset: Decimal
    haircut: Decimal
    equity_side_impact: Literal["both", "positive", "negative", "none"]


class ModelParameters(NamedTuple):
    """Parameters of the risk matrix and where they came from."""

    maintenance_factor: Decimal
    buckets: int
    vol_scenarios: int
    pairs: Mapping[str, PairParameters]
    currencies: Mapping[str, CurrencyParameters]
    source: str

    def of(self, base: str, quote: str) -> tuple[PairParameters, CurrencyParameters] | None:
        """Parameters of a base coin: its pair with the quote currency, else with USD; None where one is missing."""
        pair = self.pairs.get(f"{base}_{quote}".lower()) or self.pairs.get(f"{base}_usd".lower())
        currency = self.currencies.get(base.lower())
        return None if pair is None or currency is None else (pair, currency)


_SIDES: tuple[Literal["both", "positive", "negative", "none"], ...] = ("both", "positive", "negative", "none")


def model_parameters(content: Any, source: str, path: str = "") -> ModelParameters:
    """`model_params` of a simulation, or the answer of public/pme/get_params, which has the same three objects.

    Raises `FieldError`; out_of_range for a price range outside (0, 1) or a negative figure.
    """
    if isinstance(content, Mapping) and "model_params" in content:
        content, path = content["model_params"], joined(path, "model_params")
    general = mapping_at(content, "general", path)
    place = joined(path, "general")
    pairs, currencies = mapping_at(content, "currency_pair", path), mapping_at(content, "currency", path)
    return ModelParameters(
        maintenance_factor=positive_at(general, "mm_factor", place),
        buckets=_count(general, "buckets_count", place),
        vol_scenarios=_count(general, "vol_scenarios_count", place),
        pairs={
            str(name).lower(): _pair(
                mapping_at(pairs, name, joined(path, "currency_pair")), f"{joined(path, 'currency_pair')}.{name}"
            )
            for name in pairs
        },
        currencies={
            str(name).lower(): _currency(
                mapping_at(currencies, name, joined(path, "currency")), f"{joined(path, 'currency')}.{name}"
            )
            for name in currencies
        },
        source=source,
    )


def _count(record: Mapping[str, Any], key: str, path: str) -> int:
    number = integer_at(record, key, path)
    if not 1 <= number <= 100:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{number} does not lie between 1 and 100")
    return number


def _pair(record: Mapping[str, Any], path: str) -> PairParameters:
    price_range = positive_at(record, "price_range", path)
    if price_range >= 1:
        raise FieldError(joined(path, "price_range"), FailureReason.OUT_OF_RANGE, f"{price_range} is not below 1")
    return PairParameters(
        price_range,
        non_negative_at(record, "volatility_range_up", path),
        non_negative_at(record, "volatility_range_down", path),
        decimal_at(record, "short_term_vega_power", path),
        decimal_at(record, "long_term_vega_power", path),
        non_negative_at(record, "min_volatility_for_shock_up", path),
        non_negative_at(record, "extended_table_factor", path),
        non_negative_at(record, "m_inc", path),
        non_negative_at(record, "delta_total_liq_shock_threshold", path),
        non_negative_at(record, "max_delta_shock", path),
    )


def _currency(record: Mapping[str, Any], path: str) -> CurrencyParameters:
    side = member(record, "equity_side_impact", path)
    if side not in _SIDES:
        raise FieldError(joined(path, "equity_side_impact"), FailureReason.MALFORMED, f"{str(side)[:20]!r} is no side")
    haircut = non_negative_at(record, "haircut", path)
    if haircut > 1:
        raise FieldError(joined(path, "haircut"), FailureReason.OUT_OF_RANGE, f"{haircut} is above 1")
    return CurrencyParameters(
        non_negative_at(record, "annualised_move_risk", path),
        non_negative_at(record, "min_annualised_move", path),
        non_negative_at(record, "extended_dampener", path),
        optional_decimal_at(record, "pnl_offset", path) or _ZERO,
        haircut,
        side,
    )


def merged_parameters(first: ModelParameters | None, second: ModelParameters | None) -> ModelParameters | None:
    """`first`, with pairs and currencies that only `second` has: an owner's simulation names what the owner holds."""
    if first is None or second is None:
        return first or second
    return first._replace(pairs={**second.pairs, **first.pairs}, currencies={**second.currencies, **first.currencies})


# ---------------------------------------------------------------------------------------------------------------------
# Components

_VERDICT = Component(side="verdict", parameters=Verdict(liquidates_when="below"))


def equity_component(*, cross: bool, portfolio: bool) -> Component:
    """What the margin balance is: all value, without that of options under standard margin; in a cross account the
    haircuts of the currencies' net values go to the initial requirement (weights below 1 on that level alone).
    """
    options: Literal["mark", "excluded"] = "mark" if portfolio else "excluded"
    if cross:
        form = WeightedValue(weights="collateral_tiers", net_by_asset=True, liabilities="unit", options=options)
    else:
        form = WeightedValue(options=options)
    return Component(side="equity", parameters=form)


def contract_margin(rates: OptionRates, underlyings: Sequence[str]) -> ContractMargin:
    """Standard margin of short options; long ones need none."""
    initial = ContractRate(spot_rate=rates.initial, otm_weight=_ONE, floor_rate=rates.initial_floor, premium="mark")
    return ContractMargin(
        short_call_initial=initial,
        short_call_maintenance=ContractRate(spot_rate=rates.maintenance, premium="mark"),
        short_put_initial=initial,
        short_put_maintenance=ContractRate(spot_rate=rates.maintenance, mark_rate=rates.put_mark, premium="mark"),
        at_least_maintenance=True,
        underlyings=tuple(underlyings),
    )


def risk_grid(
    pair: PairParameters,
    currency: CurrencyParameters,
    model: ModelParameters,
    *,
    underlying: str,
    in_coin: bool,
    collateral: Sequence[str] = (),
) -> PriceVolGrid:
    """The risk matrix of one underlying: standard table, extended table, delta and roll shock.

    `collateral`: symbols whose own equity stands in the matrix of a cross-collateral account. A profit offset below 1
    shrinks gains only and cannot touch the worst case of one underlying, so it has no place here.
    """
    moves = [pair.price_range * step / model.buckets for step in range(-model.buckets, model.buckets + 1)]
    points = [GridPoint(spot=1 + move, vol=vol) for move in moves for vol in _vols(model.vol_scenarios)]
    for fraction in EXTENDED_MOVES:
        move = Decimal(fraction.numerator) / Decimal(fraction.denominator)
        edge = 1 + pair.price_range if move > 0 else 1 - pair.price_range
        scale = pair.extended_table_factor * pair.price_range / abs(move)
        steps = max(abs(move) / pair.price_range - 1, _ZERO)
        points.append(
            GridPoint(
                spot=1 + move,
                vol="up",
                dampening=scale * (1 + move) / edge if in_coin else scale,
                dampener=steps * currency.extended_dampener / (edge if in_coin else _ONE),
            )
        )
    return PriceVolGrid(
        scenarios=tuple(points),
        vol_shock=VolShock(
            range_up=pair.volatility_range_up,
            range_down=pair.volatility_range_down,
            short_term_power=pair.short_term_vega_power,
            long_term_power=pair.long_term_vega_power,
            dte_floor_days=_DTE_FLOOR_DAYS,
            min_vol_up=pair.min_volatility_for_shock_up,
            short_below_30_days=True,
        ),
        initial_factor=_ONE,
        maintenance_factor=model.maintenance_factor,
        grid_collateral=tuple(collateral),
        underlyings=(underlying,),
        profit_in="coin" if in_coin else "unit",
        round_digits=DIGITS,
        value_today="model",
        # A coin's own equity is in the matrix and not in the roll.
        roll=RollShock(
            annual_move=currency.annualised_move_risk, minimum=currency.min_annualised_move, collateral=False
        ),
        delta_shock=DeltaShock(
            threshold=pair.delta_threshold, increment=pair.delta_increment, largest=pair.max_delta_shock
        ),
    )


def _vols(count: int) -> tuple[Literal["up", "none", "down"], ...]:
    # One price bucket has three vol states; another number of them would be another model.
    return ("up", "none", "down") if count == 3 else ("none",)


def standard_components(*, cross: bool, options: Sequence[ContractMargin], order_margin: Decimal) -> list[Component]:
    """Standard margin: a rate of size per future, the contract formula per option, the reported margin of orders."""
    components = [
        equity_component(cross=cross, portfolio=False),
        Component(side="requirement", parameters=RateOfSize(law="linear"), group_by="position"),
        *(Component(side="requirement", parameters=form, group_by="position") for form in options),
    ]
    if order_margin:
        fixed = Fixed(initial=order_margin, basis="reported open_orders_margin of the positions")
        components.append(Component(side="requirement", parameters=fixed, level="initial"))
    return [*components, _VERDICT]


def portfolio_components(
    *,
    cross: bool,
    grids: Sequence[PriceVolGrid],
    other_initial: Decimal,
    other_basis: str,
    correlation: Decimal,
    maintenance_factor: Decimal,
) -> list[Component]:
    """Portfolio margin: a matrix per underlying, and what the venue reports beside it.

    `other_initial`: spot, market-maker-protection and open-order margin, reported as `other_basis` says; `correlation`:
    the correlation contingency, which is part of the matrix margin and so of both levels.
    """
    components = [
        equity_component(cross=cross, portfolio=True),
        *(Component(side="requirement", parameters=grid, group_by="risk_unit") for grid in grids),
    ]
    if other_initial:
        fixed = Fixed(initial=other_initial, basis=other_basis)
        components.append(Component(side="requirement", parameters=fixed, level="initial"))
    if correlation:
        fixed = Fixed(
            initial=correlation, maintenance=correlation * maintenance_factor, basis="reported correlation_contingency"
        )
        components.append(Component(side="requirement", parameters=fixed))
    return [*components, _VERDICT]


def tier_row(rule_set: str, market: str, rates: FutureRates, *, price_ratio: Decimal) -> dict[str, Any]:
    """The row of `margin_tiers` of one future: its rates and slope, times the price ratio (index over mark for a
    linear contract, 1 for an inverse one).
    """
    return {
        "rule_set": rule_set,
        "market": market,
        "tier": 1,
        "notional_floor": _ZERO,
        "initial_rate": rates.initial * price_ratio,
        "maintenance_rate": rates.maintenance * price_ratio,
        "deduction": _ZERO,
        "size_coefficient": rates.slope * price_ratio,
        "source": "venue",
    }


def currency_weight_row(rule_set: str, asset_id: str, haircut: Decimal, source: str) -> dict[str, Any]:
    """The row of `collateral_tiers` of one currency of a cross-collateral account."""
    return weight_row(rule_set, asset_id, _ONE - haircut, _ONE, floor_in="tokens", source=source)
