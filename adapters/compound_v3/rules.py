"""The rule set of one Compound v3 market in margin form, and the weights of its assets.

Equity is collateral and base supply less debt at market value; the maintenance requirement is the part of the
collateral beyond its liquidation factor, the initial one the part beyond its borrow factor. Equity falls below
maintenance exactly when the contract's liquidity falls below 0. The base asset itself counts in full.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aggregator.rule_forms import Component, Verdict, WeightedValue, component_rows

from .mechanics import FACTOR_SCALE
from .parse import Terms
from .sections import VENUE, Deployment

COMPONENTS = (
    Component(side="equity", parameters=WeightedValue(weights="unit")),
    Component(side="requirement", parameters=WeightedValue(weights="collateral_tiers")),
    Component(
        side="verdict",
        parameters=Verdict(liquidates_when="below", trigger=Decimal(1), health="weighted_collateral_over_debt"),
    ),
)
_WHOLE = Terms(0, 1, 0, FACTOR_SCALE, FACTOR_SCALE, FACTOR_SCALE)


def rule_set_rows(deployment: Deployment) -> list[dict[str, Any]]:
    """Rows of the table `rule_sets`."""
    return component_rows(deployment.rule_set, COMPONENTS, source=deployment.source or VENUE, read_at=deployment.as_of)


def base_tier_row(deployment: Deployment) -> dict[str, Any]:
    """The base asset's row of `collateral_tiers`: a supply and a debt count in full."""
    return collateral_tier_row(deployment.base, _WHOLE, deployment) | {"liquidation_bonus": None}


def collateral_tier_row(symbol: str, terms: Terms, deployment: Deployment) -> dict[str, Any]:
    """One asset's row of `collateral_tiers`; the bonus is the borrower's penalty, 1 less the liquidation factor."""
    return {
        "rule_set": deployment.rule_set,
        "asset_id": deployment.asset_id(symbol),
        "emode": "",
        "tier": 1,
        "floor": Decimal(0),
        "asset_weight_initial": _fraction(terms.borrow_factor),
        "asset_weight_maintenance": _fraction(terms.liquidate_factor),
        "liability_weight_initial": Decimal(1),
        "liability_weight_maintenance": Decimal(1),
        "liquidation_bonus": _fraction(FACTOR_SCALE - terms.liquidation_factor),
        "source": "venue",
    }


def _fraction(factor: int) -> Decimal:
    return Decimal(factor).scaleb(-18)
