"""Rule set of one GMX v2 position as canonical data.

    equity      = collateral at its lowest price + profit at the price against the trader + fixed closing costs
    maintenance = max(minimum, factor for liquidation × size in USD)        constant in price: size is at entry
    initial     = max(minimum, factor for opening × size in USD)

The closing costs are those of today: price impact of a full close with what is pending, and fees. A profit that the
pool caps counts at the share that it pays today. Every position has a rule set of its own, because its costs do.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.rule_forms import Component, Fixed, TieredNotional, Verdict, WeightedValue, component_rows

from ..amounts import token_amount
from ..collateral import weight_row
from .mechanics import minimum_collateral_usd

SOURCE = "gmx-io/gmx-synthetics @a5c0c88, PositionUtils.isPositionLiquidatable"
_USD_DECIMALS = 30
_RATE_DECIMALS = 18


class Margin(NamedTuple):
    """What the rules of one position need, in the contract's integers."""

    min_collateral_usd: int
    factor_for_liquidation: int
    factor_for_opening: int
    impact_usd: int
    fees_usd: int
    pnl_share: Fraction
    """Share of the profit that the pool pays; 1 where the cap does not bind."""
    basis: str


def usd(amount: int) -> Decimal:
    """USD of an amount with 30 decimals, exactly."""
    return token_amount(amount, _USD_DECIMALS)


def rule_rows(rule_set: str, instrument: str, collateral: str, size_in_usd: int, margin: Margin) -> dict[str, Any]:
    """Rows of `rule_sets`, `margin_tiers` and, where the pool caps the profit, `collateral_tiers` by table."""
    capped = margin.pnl_share != 1
    maintenance = minimum_collateral_usd(size_in_usd, margin.factor_for_liquidation, margin.min_collateral_usd)
    costs = margin.impact_usd - margin.fees_usd
    components = [
        Component(side="equity", parameters=WeightedValue(weights="collateral_tiers" if capped else "unit")),
        Component(side="equity", parameters=Fixed(equity=usd(costs), basis=f"computed {margin.basis}")),
        Component(
            side="requirement",
            parameters=TieredNotional(initial="tier_rate", basis="entry", minimum=usd(margin.min_collateral_usd)),
            group_by="position",
        ),
        # Equality with a minimum is healthy, but nothing left is not.
        Component(side="verdict", parameters=Verdict(liquidates_when="below" if maintenance else "at_or_below")),
    ]
    tier = {
        "rule_set": rule_set,
        "market": instrument,
        "tier": 1,
        "notional_floor": Decimal(0),
        "initial_rate": usd(margin.factor_for_opening),
        "maintenance_rate": usd(margin.factor_for_liquidation),
        "deduction": Decimal(0),
        "source": "venue",
    }
    share = Decimal(round(margin.pnl_share * 10**_RATE_DECIMALS)).scaleb(-_RATE_DECIMALS)
    weights = [(collateral, Decimal(1)), (instrument, share)] if capped else []
    return {
        "rule_sets": component_rows(rule_set, components, source=SOURCE),
        "margin_tiers": [tier],
        "collateral_tiers": [weight_row(rule_set, identity, weight, source=SOURCE) for identity, weight in weights],
    }


def verdict_rows(rule_set: str) -> list[dict[str, Any]]:
    """The verdict alone, for a position whose figures cannot be known: a rule set needs one."""
    return component_rows(
        rule_set, [Component(side="verdict", parameters=Verdict(liquidates_when="below"))], source=SOURCE
    )


def share_of_profit(paid: int, profit: int) -> Fraction:
    """Part of a profit that is paid; 1 for a loss."""
    return Fraction(paid, profit) if profit > 0 else Fraction(1)
