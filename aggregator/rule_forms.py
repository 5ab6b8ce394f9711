"""Parameters of each rule form, as frozen models without JAX: what an adapter emits and the engine packs.

A rule set is a list of components (table `rule_sets`) and one verdict row. A component's `parameters` is the JSON text
of the model here that its `form` names; numbers are decimal strings, so that a parameter is exactly what the venue
publishes. Rows of tiers, weights and caps live in the tables `margin_tiers` and `collateral_tiers`, never here. A form
says how; no form says who: a venue is data.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

Number = Annotated[Decimal, PlainSerializer(str, return_type=str, when_used="json")]
"""An exact number; travels as a decimal string."""

Level = Literal["initial", "maintenance", "both"]
Side = Literal["equity", "requirement", "verdict"]


class Form(BaseModel):
    """What every form's parameters have in common: unknown keys are errors, instances never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TieredNotional(Form):
    """Requirement of each position: the integral of a step function of rates over notional.

    Maintenance: `sum_k rate_k * (min(N, floor_{k+1}) - floor_k)^+` over the instrument's rows of `margin_tiers`; the
    same as `N * rate - deduction` in the tier of N. Initial: `N / leverage` with the leverage chosen on the position
    (`initial = "leverage"`), or the initial rate of the tier of N on the whole notional (`initial = "tier_rate"`). An
    initial-rate override of the position wins when it is larger. N is absolute notional in the settlement asset.
    """

    initial: Literal["leverage", "tier_rate"] = "leverage"


class WeightedValue(Form):
    """Value of balances (and settled profit) of an account, weighted.

    As an equity component: `sum value * weight`, with `weights = "unit"` (all 1) or `"collateral_tiers"` (asset weight
    of the level on a positive net value, liability weight on a negative one). Values are netted per asset first when
    `net_by_asset`, unrealised profit included in its settlement asset. Only balances with collateral enabled count. As
    a requirement component: `sum value * (1 - asset weight)` on assets and `sum value * (liability weight - 1)` on
    debts, so that equity minus requirement is the weighted value. With `weighted_at = "usd"` the weighted part counts
    at the plain dollar price while the unweighted value counts in the account's own unit (they differ when the
    settlement stable is off peg).
    """

    weights: Literal["unit", "collateral_tiers"] = "unit"
    net_by_asset: bool = False
    weighted_at: Literal["unit", "usd"] = "unit"


class GridPoint(Form):
    """One scenario of a grid: spot multiplier, direction of the vol move, multiplier of the resulting profit or
    loss.
    """

    spot: Number
    vol: Literal["up", "down", "none", "skew_linear", "skew_abs"]
    dampening: Number


class VolShock(Form):
    """Relative vol move `range * (30 / max(DTE, dte_floor_days))^power`, power by DTE <= 30 or above; floor on the way
    up.
    """

    range_up: Number
    range_down: Number
    short_term_power: Number
    long_term_power: Number
    dte_floor_days: Number
    min_vol_up: Number


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


class PegLoss(Form):
    """Extra factor `max(0, threshold - stable price) * factor`."""

    threshold: Number
    factor: Number


class PriceVolGrid(Form):
    """Requirement of one risk unit (an account's options, perp and risk-cancelling collateral of one underlying).

    `requirement = -factor(level) * min(basis contingency, min over grid points of profit)`, the initial factor raised
    by the peg loss. Options by Black-76 on their forward. Collateral moves with spot where its symbol is in
    `grid_collateral`.
    """

    scenarios: tuple[GridPoint, ...] = Field(min_length=1)
    vol_shock: VolShock
    skew: SkewShock | None = None
    discount: StaticDiscount
    initial_factor: Number
    maintenance_factor: Number
    basis: BasisContingency | None = None
    peg_loss: PegLoss | None = None
    settlement_window_s: Number = Decimal(0)
    """Seconds before expiry over which the forward is progressively fixed (a time-weighted settlement price)."""
    grid_collateral: tuple[str, ...] = ()
    """Asset symbols of the collateral that counts as risk-cancelling."""

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


class Fixed(Form):
    """A requirement that the venue reports and does not publish a formula for; constant in every scenario.

    `basis` says where it came from, and results show it as reported.
    """

    initial: Number = Decimal(0)
    maintenance: Number = Decimal(0)
    basis: str


class Verdict(Form):
    """When the venue liquidates and how it states health.

    `below`: liquidated when health < trigger; `at_or_below`: when health <= trigger. Health is
    `equity / maintenance requirement`, or for a lender `sum weighted collateral / sum debt`.
    """

    liquidates_when: Literal["below", "at_or_below"]
    trigger: Number = Decimal(1)
    health: Literal["equity_over_requirement", "weighted_collateral_over_debt"] = "equity_over_requirement"


FORMS: dict[str, type[Form]] = {
    "tiered_notional": TieredNotional,
    "weighted_value": WeightedValue,
    "price_vol_grid": PriceVolGrid,
    "contingency": Contingency,
    "option_formula": OptionFormula,
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
    "BasisContingency",
    "Component",
    "Confidence",
    "Contingency",
    "ExpiryMaxLoss",
    "Fixed",
    "Form",
    "GridPoint",
    "Number",
    "OptionFormula",
    "PegLoss",
    "PriceVolGrid",
    "SkewShock",
    "StaticDiscount",
    "TieredNotional",
    "Verdict",
    "VolShock",
    "WeightedValue",
    "component_rows",
    "parse_parameters",
]
