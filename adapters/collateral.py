"""What an asset counts for: rows of `collateral_tiers`, and the rule set that lenders with one threshold share."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aggregator.rule_forms import Component, Verdict, WeightedValue

LENDER_COMPONENTS = (
    Component(side="equity", parameters=WeightedValue(weights="unit")),
    Component(side="requirement", parameters=WeightedValue(weights="collateral_tiers")),
    Component(
        side="verdict",
        parameters=Verdict(liquidates_when="below", trigger=Decimal(1), health="weighted_collateral_over_debt"),
    ),
)
"""A lender in margin form.

Equity is collateral less debt at market value, the requirement is the part of the collateral beyond its weight, so that
equity falls below the requirement exactly when weighted collateral falls below the debt: health below 1.
"""


def weight_row(
    rule_set: str,
    asset_id: str,
    initial: Decimal,
    maintenance: Decimal | None = None,
    *,
    liability: tuple[Decimal, Decimal] = (Decimal(1), Decimal(1)),
    tier: int = 1,
    floor: Decimal = Decimal(0),
    floor_in: str | None = None,
    emode: str = "",
    liquidation_bonus: Decimal | None = None,
    source: str = "venue",
) -> dict[str, Any]:
    """One row of `collateral_tiers`: what a held asset counts for, as fractions of its value by level.

    `maintenance` is `initial` where a venue has one weight; `liability` are the (initial, maintenance) weights of what
    is owed, in full unless given; `floor` is where the tier begins, in the unit of `floor_in`.
    """
    return {
        "rule_set": rule_set,
        "asset_id": asset_id,
        "emode": emode,
        "tier": tier,
        "floor": floor,
        "floor_in": floor_in,
        "asset_weight_initial": initial,
        "asset_weight_maintenance": initial if maintenance is None else maintenance,
        "liability_weight_initial": liability[0],
        "liability_weight_maintenance": liability[1],
        "liquidation_bonus": liquidation_bonus,
        "source": source,
    }
