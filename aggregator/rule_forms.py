"""Parameters of each rule form, as frozen models without JAX: what an adapter emits and the engine packs.

A rule set is a list of components (table `rule_sets`) and one verdict row. A component's `parameters` is the JSON text
of the model here that its `form` names; numbers are decimal strings, so that a parameter is exactly what the venue
publishes. Rows of tiers, weights and caps live in the tables `margin_tiers` and `collateral_tiers`, never here. A form
says how; no form says who: a venue is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Number = Annotated[Decimal, PlainSerializer(str, return_type=str, when_used="json")]
"""An exact number; travels as a decimal string."""

Digits = Annotated[int, Field(ge=0, le=18), PlainSerializer(str, return_type=str, when_used="json")]
"""A number of decimal digits; travels as text too."""

Level = Literal["initial", "maintenance", "both"]
Side = Literal["equity", "requirement", "verdict"]


class Form(BaseModel):
    """What every form's parameters have in common: unknown keys are errors, instances never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TieredNotional(Form):
    """Requirement of each position by the rows of `margin_tiers` of its instrument.

    N is absolute notional in the settlement asset, at the mark (`basis = "mark"`) or at the entry price, which no
    price moves (`basis = "entry"`). Maintenance in the tier of N (floor < N): `N * rate - deduction`, the deduction as
    the venue publishes it; where it continues the tier below this is the integral of a step function of rates, and a
    table that jumps or whose rates fall is computed as it stands. `floors = "quantity"`: the floors count contracts
    (coins for a linear contract of size 1), deductions count rate x contracts and are recomputed from the rates.
    At least `minimum` for each position.

    Initial: `N / leverage` with the leverage chosen on the position (`"leverage"`), the initial rate of the tier of N
    on the whole notional (`"tier_rate"`), or the integral of the initial rates (`"tier_integral"`). An initial-rate
    override of the position wins when it is larger. The initial requirement is never below the maintenance one where
    `initial_at_least_maintenance`.

    `orders`: the size that counts is that of the position, or the larger of the sizes after all buy orders and after
    all sell orders (`"worst_side"`), or the latter for the initial level alone (`"worst_side_initial"`); orders that
    only reduce do not count. Every order of the account adds `per_order`.
    """

    initial: Literal["leverage", "tier_rate", "tier_integral"] = "leverage"
    basis: Literal["mark", "entry"] = "mark"
    floors: Literal["notional", "quantity"] = "notional"
    minimum: Number = Decimal(0)
    initial_at_least_maintenance: bool = False
    orders: Literal["ignore", "worst_side", "worst_side_initial"] = "ignore"
    per_order: Number = Decimal(0)


class RateOfSize(Form):
    """Requirement of each position at one rate that grows with its size in units of the underlying (coins).

    The rates of the first tier of `margin_tiers` and that row's `size_coefficient` c give the rate of a position of
    size q: `law = "linear"`: `rate + c * q`; `law = "integer_sqrt"`: in integers of 1e-4 (rates) and 1e-6 (c), as an
    on-chain program computes it, `max(w, w - w/5 + isqrt(10 * q * 1e9 + 1) * c / 1e7)`, every division rounded down.
    Quantities stay in a scenario, so the rate is a number and the requirement is proportional to notional. `orders`
    and `per_order` as in `TieredNotional`; an initial-rate override of the position wins when it is larger.
    """

    law: Literal["linear", "integer_sqrt"]
    initial: Literal["rate", "leverage"] = "rate"
    orders: Literal["ignore", "worst_side", "worst_side_initial"] = "ignore"
    per_order: Number = Decimal(0)


class WeightedValue(Form):
    """Value of balances (and settled profit) of an account, weighted.

    As an equity component: `sum value * weight`, with `weights = "unit"` (all 1) or `"collateral_tiers"` (asset weight
    of the level on a positive net value, liability weight on a negative one). Several tiers of an asset are marginal:
    each slice of the net value above its floor counts at its own weight. Equity counts at the maintenance weights; what
    the initial weights take away more is added to the initial requirement. Values are netted per asset first when
    `net_by_asset`, unrealized profit included in its settlement asset. Without netting the profit of a position counts
    at the weight of its instrument where `collateral_tiers` has a row with the instrument's id in `asset_id`, else at
    that of its settlement asset. Only balances with collateral enabled count.

    `liabilities = "unit"`: a negative net value counts in full whatever the tiers say. `options`: an option is worth
    its model price (`"model"`), the venue's own mark today with the model's changes from there (`"mark"`), or nothing
    here because the per-contract formula holds its value (`"excluded"`).

    As a requirement component: `sum value * (1 - asset weight)` on assets and `sum value * (liability weight - 1)` on
    debts, so that equity minus requirement is the weighted value. With `weighted_at = "usd"` the weighted part counts
    at the plain dollar price while the unweighted value counts in the account's own unit (they differ when the
    settlement stable is off peg).
    """

    weights: Literal["unit", "collateral_tiers"] = "unit"
    net_by_asset: bool = False
    weighted_at: Literal["unit", "usd"] = "unit"
    liabilities: Literal["weighted", "unit"] = "weighted"
    options: Literal["model", "mark", "excluded"] = "model"


class DebtCharge(Form):
    """Requirement `rate * debt`: on every liability (`net_by_asset` false), or on what is owed of an asset after
    netting its balances and the profit that settles in it.

    `initial_rates` and `maintenance_rates` by asset id go before the common rates.
    """

    initial_rate: Number = Decimal(0)
    maintenance_rate: Number = Decimal(0)
    initial_rates: Mapping[str, Number] = Field(default_factory=dict)
    maintenance_rates: Mapping[str, Number] = Field(default_factory=dict)
    net_by_asset: bool = False


class GridPoint(Form):
    """One scenario of a grid.

    `spot` multiplies the price. `vol`: up and down by the ranges of the grid's vol shock, or by `vol_move` where the
    point states its own (a fraction of the vol, negative down; `vol` is then ignored but for the skews). `dampening`
    multiplies the resulting profit or loss, which is then moved towards zero by `dampener` dollars (at most to zero).
    """

    spot: Number
    vol: Literal["up", "down", "none", "skew_linear", "skew_abs"] = "none"
    dampening: Number = Decimal(1)
    vol_move: Number | None = None
    dampener: Number = Decimal(0)


class VolShock(Form):
    """Relative vol move `range * (30 / max(DTE, dte_floor_days))^power`, power by DTE <= 30 or above; floor on the way
    up. `short_below_30_days`: the short power holds below 30 days only, not at 30.
    """

    range_up: Number = Decimal(0)
    range_down: Number = Decimal(0)
    short_term_power: Number
    long_term_power: Number
    dte_floor_days: Number
    min_vol_up: Number
    short_below_30_days: bool = False


class SkewShock(Form):
    """Rotation of the smile in log-moneyness k: slope capped at `c_base * sqrt(T) + base_cap` beyond `k*`."""

    linear_base_cap: Number
    linear_c_base: Number
    abs_base_cap: Number
    abs_c_base: Number
    min_k_star: Number
    width_scale: Number
    vol_param_static: Number
    vol_param_scale: Number


class StaticDiscount(Form):
    """Discount of positive and mark-up of negative shocked expiry values: `base * exp(-+T * (rate * mult + add))`."""

    long_base: Number
    long_rate_mult: Number
    long_rate_add: Number
    short_base: Number
    short_rate_mult: Number
    short_rate_add: Number


class BasisContingency(Form):
    """Loss of each expiry's worse forward move alone, scaled by `add_factor + mult_factor * T`; competes with the
    grid.
    """

    spot_up: Number
    spot_down: Number
    add_factor: Number
    mult_factor: Number


NO_DISCOUNT = StaticDiscount(
    long_base=Decimal(1),
    long_rate_mult=Decimal(0),
    long_rate_add=Decimal(0),
    short_base=Decimal(1),
    short_rate_mult=Decimal(0),
    short_rate_add=Decimal(0),
)
"""Shocked values count as they are."""


class PegLoss(Form):
    """Extra factor `max(0, threshold - stable price) * factor`."""

    threshold: Number
    factor: Number


class DeltaFloor(Form):
    """Least loss that a grid assumes: `(unhedged * |net delta| + hedged * (gross delta - |net delta|) / 2) * spot`.

    Delta of an option per unit of the underlying, in quantity; the venue's own where `marks` has a `delta`.
    """

    unhedged: Number
    hedged: Number


class RollShock(Form):
    """Charge `sum over expiries |net delta| * spot * max(minimum, move)` with `move = exp(annual * T) - 1` or
    `annual * T` by `law`; perpetuals are the expiry T = 0, and so is the collateral in the grid unless `collateral` is
    false.
    """

    annual_move: Number
    minimum: Number
    collateral: bool = True
    law: Literal["exponential", "linear"] = "exponential"


class DeltaShock(Form):
    """Charge on a large net delta: `min(max(|D| * spot - threshold, 0) * |D| * increment, largest * spot * |D|)`.

    D: deltas of futures, perpetuals and short options, reduced towards zero by those of long options.
    """

    threshold: Number
    increment: Number
    largest: Number


class MinimumCharge(Form):
    """Least requirement of a unit: `raw = delta_rate * |net delta| * spot + short_option_rate * short options * spot`,
    each slice of the raw charge between floors multiplied by its factor.
    """

    delta_rate: Number
    short_option_rate: Number = Decimal(0)
    floors: tuple[Number, ...] = (Decimal(0),)
    factors: tuple[Number, ...] = (Decimal(1),)


class PriceVolGrid(Form):
    """Requirement of one risk unit (an account's derivatives and risk-cancelling collateral of one underlying).

        loss  = max(0, basis contingency, worst of the grid, delta floor, reported worst)
        total = max(loss + roll shock + delta shock + reported add-on, minimum charge)
        requirement = factor(level) * total

    the initial factor raised by the peg loss. Options by Black-76 on their forward, which moves with the spot; with
    `forward = "spot"` the forward is spot * exp(rate * T), which makes it Black-Scholes on spot. Collateral moves with
    spot where its symbol is in `grid_collateral`. `profit_in = "coin"`: profits are counted in the underlying (an
    inverse contract of q coins at a move m earns q * m / (1 + m), an option its value over the moved forward), rounded
    to `round_digits` digits, and valued at spot; dampeners are dollars over spot. `value_today`: what a profit is
    measured against, the model's value or the venue's mark. `look_ahead_days`: time that passes in every point.
    `underlyings`: risk symbols whose units have this grid; empty for all that no other grid of the rule set names.
    """

    scenarios: tuple[GridPoint, ...] = Field(min_length=1)
    vol_shock: VolShock
    skew: SkewShock | None = None
    discount: StaticDiscount = Field(default_factory=lambda: NO_DISCOUNT)
    initial_factor: Number
    maintenance_factor: Number
    basis: BasisContingency | None = None
    peg_loss: PegLoss | None = None
    settlement_window_s: Number = Decimal(0)
    """Seconds before expiry over which the forward is progressively fixed (a time-weighted settlement price)."""
    settlement_scales_profit: bool = False
    """Whether inside that window the profit as a whole shrinks with the open share, in place of the forward's move."""
    grid_collateral: tuple[str, ...] = ()
    """Asset symbols of the collateral that counts as risk-cancelling."""
    underlyings: tuple[str, ...] = ()
    forward: Literal["own", "spot"] = "own"
    profit_in: Literal["unit", "coin"] = "unit"
    round_digits: Digits | None = None
    value_today: Literal["model", "mark"] = "model"
    look_ahead_days: Number = Decimal(0)
    delta_floor: DeltaFloor | None = None
    roll: RollShock | None = None
    delta_shock: DeltaShock | None = None
    minimum: MinimumCharge | None = None
    reported_worst: Number = Decimal(0)
    reported_add_on: Number = Decimal(0)

    @model_validator(mode="after")
    def _skew_points_rotate_only(self) -> PriceVolGrid:
        for point in self.scenarios:
            if point.vol.startswith("skew") and (self.skew is None or point.spot != 1):
                raise ValueError("a skew point needs skew parameters and a spot multiplier of 1")
        return self


class Confidence(Form):
    """Oracle contingency: rate `(1 - confidence) * factor` when the lowest confidence involved is below the
    threshold.
    """

    threshold: Number
    factor: Number


class Contingency(Form):
    """Requirement `measure * price * rate` of one risk unit.

    Measures: `gross_perp` |perp quantity|; `naked_short_options` per expiry and strike max(0, -(calls + puts));
    `short_options` sum of short option quantity; `gross_options` sum of |option quantity|; `collateral` value of the
    non-cash collateral in the account's unit, `collateral_usd` in plain dollars; `gross_perp_and_short_options` the sum
    of the first and the third. The price does not apply to collateral.
    The rate is `initial_rate`/`maintenance_rate`, or comes from `confidence` or `depeg` (stable price below the
    threshold); exactly one of the three is set. Confidence and depeg charges fall on the initial level only.
    The confidence that counts is the lowest of: spot and perp for the perp; per expiry the spot and the expiry's own
    feeds, with `gross_options` and `naked_short_options` also the perp's where a perp is held; per collateral its own
    and spot's (`collateral`) or its own alone (`collateral_usd`).
    """

    measure: Literal[
        "gross_perp",
        "naked_short_options",
        "short_options",
        "gross_options",
        "collateral",
        "collateral_usd",
        "gross_perp_and_short_options",
    ]
    price: Literal["spot", "perp_mark"] = "spot"
    underlyings: tuple[str, ...] = ()
    """Risk symbols that it applies to; empty for all."""
    initial_rate: Number | None = None
    maintenance_rate: Number | None = None
    confidence: Confidence | None = None
    depeg: PegLoss | None = None

    @model_validator(mode="after")
    def _one_source_of_the_rate(self) -> Contingency:
        rates = self.initial_rate is not None or self.maintenance_rate is not None
        if rates + (self.confidence is not None) + (self.depeg is not None) != 1:
            raise ValueError("exactly one of the rates, `confidence` and `depeg` must be set")
        return self


class OptionFormula(Form):
    """Standard margin per short option contract on spot S and mark price m, in place of its value; a long one counts 0.

    call MM = m + mm_call * S; call IM = m + S * max(min_rate, max_rate - OTM / S);
    put MM = m + max(mm_put * S, mm_put_mark * m); put IM = the call's formula, at least mm_offset * put MM.
    The mark is undiscounted: whoever packs a unit for this form sets its expiry rates to 0.
    """

    max_spot_rate: Number
    min_spot_rate: Number
    mm_call_spot_rate: Number
    mm_put_spot_rate: Number
    mm_put_mark_rate: Number
    mm_offset_scale: Number


class ExpiryMaxLoss(Form):
    """Net margin of an expiry: the better of the summed per-contract formula and the worst payoff over {0, strikes}.

    The worst payoff is at most 0; net short calls take `unpaired_scale(level) * forward * net short calls` off it. The
    requirement is the options' value minus this net margin, so that equity minus requirement is the net margin.
    The mark is undiscounted as in `OptionFormula`.
    """

    per_contract: OptionFormula
    unpaired_initial_scale: Number
    unpaired_maintenance_scale: Number
    underlyings: tuple[str, ...] = ()
    """Risk symbols that it applies to; empty for all that no other one of the rule set names."""


class ContractRate(Form):
    """Margin per unit of the underlying of one option at spot S, mark m, entry price e, strike K; money as S.

    `charge = max(spot_rate * S - otm_weight * OTM, floor_rate * S, mark_rate * m)`, at most `cap_rate * S`
    and `premium_cap * m` where they are set, plus the premium (`"none"`, `"mark"`, or `"larger_of_entry_and_mark"`),
    plus the fee `fee_rate * S`, at most `fee_cap * m` where it is set. OTM = max(0, K - S) for a call, max(0, S - K)
    for a put.
    """

    spot_rate: Number = Decimal(0)
    otm_weight: Number = Decimal(0)
    floor_rate: Number = Decimal(0)
    mark_rate: Number = Decimal(0)
    cap_rate: Number | None = None
    premium_cap: Number | None = None
    premium: Literal["none", "mark", "larger_of_entry_and_mark"] = "none"
    fee_rate: Number = Decimal(0)
    fee_cap: Number | None = None

    @model_serializer(mode="wrap")
    def _as_published(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The text of a rule set is part of a snapshot's hash: a fee without a cap is written as it always was.
        text: dict[str, Any] = fields(self)
        if self.fee_cap is None:
            text.pop("fee_cap", None)
        return text


class ContractMargin(Form):
    """Standard margin of every option contract by side and level, added up; nothing nets.

    An absent rate charges nothing. `at_least_maintenance`: no initial margin below the maintenance one. What stands
    against it is said by `WeightedValue.options`: where the formula contains the premium and the equity contains the
    (negative) value of a short option, the two cancel to the venue's net margin.
    `underlyings`: risk symbols that it applies to; empty for all that no other one of the rule set names.
    """

    short_call_initial: ContractRate | None = None
    short_call_maintenance: ContractRate | None = None
    short_put_initial: ContractRate | None = None
    short_put_maintenance: ContractRate | None = None
    long_call_initial: ContractRate | None = None
    long_call_maintenance: ContractRate | None = None
    long_put_initial: ContractRate | None = None
    long_put_maintenance: ContractRate | None = None
    at_least_maintenance: bool = False
    underlyings: tuple[str, ...] = ()


class Fixed(Form):
    """An amount in the account's unit that no scenario moves.

    As a requirement: `initial` and `maintenance`; as equity: `equity`, negative for a cost. `basis` says where it came
    from. It begins with `reported` for what the venue reports without publishing a formula, and results then show the
    account as having reported parts; with `computed` for what the adapter's exact mechanics give of today's input.
    """

    initial: Number = Decimal(0)
    maintenance: Number = Decimal(0)
    equity: Number = Decimal(0)
    basis: str

    @model_validator(mode="after")
    def _says_where_from(self) -> Fixed:
        if not self.basis.startswith(("reported", "computed")):
            raise ValueError("basis must begin with `reported` or `computed`")
        return self


class Verdict(Form):
    """When the venue liquidates and how it states health.

    `below`: liquidated when equity < trigger * maintenance requirement; `at_or_below`: when equity <= it. `health` is
    the definition that the venue's reported health follows: `equity / maintenance requirement`, its inverse, or for a
    lender `sum weighted collateral / sum debt`. The engine's own health is never the inverse, so that the lowest is the
    worst.

    Without a requirement an account with negative equity is liquidated all the same, unless the venue asks for a
    requirement above zero (`needs_requirement`): then nothing happens to it.
    """

    liquidates_when: Literal["below", "at_or_below"]
    trigger: Number = Decimal(1)
    health: Literal["equity_over_requirement", "requirement_over_equity", "weighted_collateral_over_debt"] = (
        "equity_over_requirement"
    )
    needs_requirement: bool = False

    @model_serializer(mode="wrap")
    def _as_published(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The text of a rule set is part of a snapshot's hash: what no rule set says must not change those that exist.
        text: dict[str, Any] = fields(self)
        if not self.needs_requirement:
            text.pop("needs_requirement", None)
        return text


FORMS: dict[str, type[Form]] = {
    "tiered_notional": TieredNotional,
    "rate_of_size": RateOfSize,
    "weighted_value": WeightedValue,
    "debt_charge": DebtCharge,
    "price_vol_grid": PriceVolGrid,
    "contingency": Contingency,
    "option_formula": OptionFormula,
    "contract_margin": ContractMargin,
    "expiry_max_loss": ExpiryMaxLoss,
    "fixed": Fixed,
    "verdict": Verdict,
}
"""Model of each form by name."""

_FORM_NAMES = {model: name for name, model in FORMS.items()}


class Component(BaseModel):
    """One row of a rule set, with its parameters as a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Side
    parameters: Form
    level: Level = "both"
    group_by: Literal["position", "instrument", "expiry", "underlying", "settlement_asset", "risk_unit", "account"] = (
        "account"
    )

    @property
    def form(self) -> str:
        """Name of the form in `FORMS`."""
        return _FORM_NAMES[type(self.parameters)]


def component_rows(
    rule_set: str,
    components: Sequence[Component],
    *,
    source: str,
    valid_from: datetime | None = None,
    read_at: datetime | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table `rule_sets` for one rule set, numbered in order."""
    return [
        {
            "rule_set": rule_set,
            "component_no": number,
            "form": component.form,
            "side": component.side,
            "level": component.level,
            "group_by": component.group_by,
            "parameters": component.parameters.model_dump_json(),
            "valid_from": valid_from,
            "source": source,
            "read_at": read_at,
        }
        for number, component in enumerate(components)
    ]


def parse_parameters(form: str, text: str) -> Form:
    """The model of `form` from its JSON text; raises `KeyError` for an unknown form and pydantic's error for bad
    text.
    """
    return FORMS[form].model_validate_json(text)


__all__ = [
    "FORMS",
    "NO_DISCOUNT",
    "BasisContingency",
    "Component",
    "Confidence",
    "Contingency",
    "ContractMargin",
    "ContractRate",
    "DebtCharge",
    "DeltaFloor",
    "DeltaShock",
    "ExpiryMaxLoss",
    "Fixed",
    "Form",
    "GridPoint",
    "MinimumCharge",
    "Number",
    "OptionFormula",
    "PegLoss",
    "PriceVolGrid",
    "RateOfSize",
    "RollShock",
    "SkewShock",
    "StaticDiscount",
    "TieredNotional",
    "Verdict",
    "VolShock",
    "WeightedValue",
    "component_rows",
    "parse_parameters",
]
