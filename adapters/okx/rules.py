"""OKX's margin rules as canonical data: the dated parameter file, components, position ladders, discount slices.

Rule sets belong to one account each: the maintenance rate of a position holds the taker fee of closing it (the venue's
ratio is equity over maintenance and these fees), its tier counts what the account holds of the instrument family, and
amounts that only the venue knows stand in it as reported. Rates are fractions, money USD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator.errors import ConfigurationError
from aggregator.rule_forms import (
    Component,
    ContractMargin,
    DebtCharge,
    Fixed,
    GridPoint,
    MinimumCharge,
    Number,
    PriceVolGrid,
    RollShock,
    TieredNotional,
    Verdict,
    VolShock,
    WeightedValue,
)

from ..collateral import weight_row
from .parse import RiskUnitLine, TierLine

VENUE = "okx"
PARAMETER_FILE = "configs/venues/okx.toml"
SHARED = "okx:multi_currency"
"""Rule set under which the ladders and slices of every known market stand."""

_ZERO, _ONE = Decimal(0), Decimal(1)
_HALF = Decimal("0.5")
_NO_VOL_MOVE = VolShock(
    short_term_power=_ZERO,
    long_term_power=_ZERO,
    dte_floor_days=_ONE,
    min_vol_up=_ZERO,
    range_up=_ZERO,
    range_down=_ZERO,
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BorrowRates(_Part):
    """Rates on what is owed, where no loan tiers are at hand."""

    initial: Number
    maintenance: Number


class RiskGroup(_Part):
    """Portfolio margin of the risk units of some coins.

    `moves` of MR1 (both signs are meant), `extreme` of MR6, `basis_*` of MR4 (annualized, and the least rate that
    perpetual and spot legs bear), `charge_rate` of MR7 with its slices (floor of the raw charge, multiplier). A rate
    that is not public is absent and has to come from the venue's own answer.
    """

    coins: tuple[str, ...]
    moves: tuple[Number, ...]
    extreme: Number
    basis_annual: Number
    basis_minimum: Number | None = None
    charge_rate: Number | None = None
    charge_slices: tuple[tuple[Number, Number], ...] = ()


class RuleBook(_Part):
    """The parameter file."""

    as_of: str
    source: str
    fees: Mapping[str, Number] = {}
    """Taker rate by instrument type, where no trade-fee answer is at hand."""
    borrow: BorrowRates | None = None
    initial_factor: Number | None = None
    """Initial over maintenance requirement of a risk unit."""
    groups: Mapping[str, RiskGroup] = {}

    def group(self, coin: str) -> RiskGroup | None:
        """Group of a coin; the one without coins is that of all others."""
        named = next((group for group in self.groups.values() if coin in group.coins), None)
        return named or next((group for group in self.groups.values() if not group.coins), None)


def read_rule_book(parameters: Mapping[str, Any]) -> RuleBook:
    """The parsed parameter file as a model, an empty one for no file; raises `ConfigurationError` naming the first key
    that is wrong.
    """
    try:
        return RuleBook.model_validate(parameters or {"as_of": "", "source": ""})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"parameters of {VENUE}: {place}: {first['msg']}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Tiers


class Ladder(NamedTuple):
    """Tiers of an instrument family, ascending, and where they came from."""

    tiers: tuple[TierLine, ...]
    source: str


def tier_rows(
    rule_set: str, market: str, ladder: Sequence[TierLine], *, others: Decimal, fee: Decimal
) -> list[dict[str, Any]]:
    """Rows of `margin_tiers` of one instrument: floors in its own contracts, with `others` contracts of its family held
    beside it, and the fee of closing on top of every maintenance rate.

    The rate of a tier falls on the whole position, so there are no deductions. Tiers that the rest of the family has
    passed already are left out.
    """
    rows: list[dict[str, Any]] = []
    floor = _ZERO
    for tier in ladder:
        if tier.cap is not None and tier.cap <= others and tier is not ladder[-1]:
            continue
        rows.append(
            {
                "rule_set": rule_set,
                "market": market,
                "tier": len(rows) + 1,
                "notional_floor": floor if not rows else max(floor, _ZERO),
                "notional_cap": None if tier.cap is None or tier is ladder[-1] else tier.cap - others,
                "initial_rate": tier.initial_rate,
                "maintenance_rate": tier.maintenance_rate + fee,
                "deduction": _ZERO,
                "source": "venue",
            }
        )
        floor = _ZERO if tier.cap is None else tier.cap - others
    return rows


def slice_rows(
    rule_set: str,
    asset_id: str,
    slices: Sequence[tuple[Decimal, Decimal | None, Decimal]],
    *,
    floor_in: str,
    source: str,
) -> list[dict[str, Any]]:
    """Rows of `collateral_tiers` of one currency: marginal discount rates above their floors, debts in full.

    Nothing counts above a finite last bound.
    """
    steps = [(floor, rate) for floor, _, rate in slices]
    last = slices[-1][1]
    if last is not None:
        steps.append((last, _ZERO))
    return [
        weight_row(rule_set, asset_id, rate, tier=number, floor=floor, floor_in=floor_in, source=source)
        for number, (floor, rate) in enumerate(steps, start=1)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Components

_VERDICT = Component(side="verdict", parameters=Verdict(liquidates_when="below"))
_POSITIONS = Component(
    side="requirement", parameters=TieredNotional(initial="leverage", floors="quantity"), group_by="position"
)


def multi_currency_equity() -> Component:
    """Adjusted equity: every currency's net value in its discount slices, debts in full."""
    form = WeightedValue(weights="collateral_tiers", net_by_asset=True, liabilities="unit", options="mark")
    return Component(side="equity", parameters=form)


def single_unit_equity() -> Component:
    """Equity of one currency, or of an isolated position."""
    return Component(side="equity", parameters=WeightedValue(options="mark"))


def debt_component(rates: Mapping[str, tuple[Decimal, Decimal]]) -> list[Component]:
    """Requirement on what is owed of each currency, by asset id; none without a debt."""
    if not rates:
        return []
    form = DebtCharge(
        initial_rates={asset: initial for asset, (initial, _) in rates.items()},
        maintenance_rates={asset: maintenance for asset, (_, maintenance) in rates.items()},
        net_by_asset=True,
    )
    return [Component(side="requirement", parameters=form)]


def options_beside_tiers() -> list[Component]:
    """Says that options bear no margin by notional tiers; what a short one bears stands in a reported part."""
    return [Component(side="requirement", parameters=ContractMargin(), group_by="position")]


def reported(initial: Decimal, maintenance: Decimal, basis: str) -> list[Component]:
    """A requirement that the venue states and publishes no formula for; none for nothing."""
    if not initial and not maintenance:
        return []
    form = Fixed(initial=initial, maintenance=maintenance, basis=f"reported {basis}")
    return [Component(side="requirement", parameters=form)]


def reported_cost(equity: Decimal, basis: str) -> list[Component]:
    """A reported deduction from equity (negative); none for nothing."""
    return [Component(side="equity", parameters=Fixed(equity=equity, basis=f"reported {basis}"))] if equity else []


def account_components(
    equity: Component, extra_equity: Sequence[Component], requirements: Sequence[Component], *, positions: bool
) -> list[Component]:
    """An account: equity, position tiers where they apply, everything else, and the verdict (below 1 liquidates)."""
    return [equity, *extra_equity, *([_POSITIONS] if positions else []), *requirements, _VERDICT]


def computed_unit_grid(
    group: RiskGroup, coin: str, *, underlying: str, initial_factor: Decimal, line: RiskUnitLine | None, dated: bool
) -> PriceVolGrid | None:
    """A risk unit without options by the published rules; None where a rate of it is not public and not reported.

    MR1 and MR6 are the grid (MR6: half of the loss at the extreme move), MR4 the roll shock, MR7 the minimum charge;
    MR2, MR3, MR5 come from the venue's answer and are 0 without one: they price options. With dated futures MR4 is the
    reported one where there is an answer, because the law of its growth with time is not public.
    """
    basis, charge = group.basis_minimum, group.charge_rate
    if line is not None and line.delta:
        # An answer of the venue states both for the delta of now.
        basis = basis if basis is not None else line.parts["mr4"] / abs(line.delta)
        if charge is None and _below_first_slice(line.parts["mr7"], group.charge_slices):
            charge = line.parts["mr7"] / abs(line.delta)
    if basis is None or charge is None:
        return None
    parts = line.parts if line is not None else {}
    use_reported_basis = dated and line is not None
    add_on = (
        parts.get("mr3", _ZERO) + parts.get("mr5", _ZERO) + (parts.get("mr4", _ZERO) if use_reported_basis else _ZERO)
    )
    slices = group.charge_slices or ((_ZERO, _ONE),)
    return PriceVolGrid(
        scenarios=_points(group),
        vol_shock=_NO_VOL_MOVE,
        initial_factor=initial_factor,
        maintenance_factor=_ONE,
        underlyings=(underlying,),
        roll=None if use_reported_basis else RollShock(annual_move=group.basis_annual, minimum=basis, law="linear"),
        minimum=MinimumCharge(
            delta_rate=charge, floors=tuple(floor for floor, _ in slices), factors=tuple(factor for _, factor in slices)
        ),
        reported_worst=parts.get("mr2", _ZERO),
        reported_add_on=add_on,
    )


def reported_unit_grid(
    group: RiskGroup, *, underlying: str, initial_factor: Decimal, line: RiskUnitLine
) -> PriceVolGrid:
    """A risk unit with options: its vol moves are not public, so today's parts are the reported ones.

    The worst of MR1, MR2 and MR6 is a floor under the grid of price moves, which moves it in a scenario; what the unit
    requires beyond it (MR3, MR4, MR5, or the minimum charge) is added.
    """
    parts = line.parts
    worst = max(parts["mr1"], parts["mr2"], parts["mr6"])
    core = worst + parts["mr3"] + parts["mr4"] + parts["mr5"]
    return PriceVolGrid(
        scenarios=_points(group),
        vol_shock=_NO_VOL_MOVE,
        initial_factor=initial_factor,
        maintenance_factor=_ONE,
        underlyings=(underlying,),
        reported_worst=worst,
        reported_add_on=max(core, parts["mr7"]) - worst,
    )


def _points(group: RiskGroup) -> tuple[GridPoint, ...]:
    signed = [sign * move for move in group.moves for sign in (-1, 1)]
    shocks = [GridPoint(spot=_ONE + move) for move in (_ZERO, *signed)]
    tails = [GridPoint(spot=_ONE + sign * group.extreme, dampening=_HALF) for sign in (-1, 1)]
    return (*shocks, *tails)


def _below_first_slice(charge: Decimal, slices: Sequence[tuple[Decimal, Decimal]]) -> bool:
    return len(slices) < 2 or charge <= slices[1][0]
