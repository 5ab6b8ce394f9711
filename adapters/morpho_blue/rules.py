"""The rule set of one Morpho Blue market in margin form, and the weight of its collateral.

Equity is collateral less debt at the oracle's price, in the loan token; the requirement of both levels is the part of
the collateral beyond the LLTV, because the contract applies one test to borrowing and to liquidation. Equity falls
below it exactly when the debt exceeds collateral times LLTV. What an owner lends out in the market is no collateral.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from aggregator.rule_forms import Component, Verdict, WeightedValue, component_rows

from .mechanics import WAD, liquidation_incentive_factor
from .snapshots import VENUE

COMPONENTS = (
    Component(side="equity", parameters=WeightedValue(weights="unit")),
    Component(side="requirement", parameters=WeightedValue(weights="collateral_tiers")),
    Component(
        side="verdict",
        parameters=Verdict(liquidates_when="below", trigger=Decimal(1), health="weighted_collateral_over_debt"),
    ),
)


def rule_set_id(label: str) -> str:
    """Id of a market's rule set."""
    return f"{VENUE}:{label}"


def rule_set_rows(label: str, *, source: str, read_at: datetime | None) -> list[dict[str, Any]]:
    """Rows of the table `rule_sets`."""
    return component_rows(rule_set_id(label), COMPONENTS, source=source or VENUE, read_at=read_at)


def collateral_tier_row(label: str, asset_id: str, lltv: int) -> dict[str, Any]:
    """The collateral's row of `collateral_tiers`; the bonus is what a liquidator gets beyond the debt repaid."""
    weight = Decimal(lltv).scaleb(-18)
    return {
        "rule_set": rule_set_id(label),
        "asset_id": asset_id,
        "emode": "",
        "tier": 1,
        "floor": Decimal(0),
        "asset_weight_initial": weight,
        "asset_weight_maintenance": weight,
        "liability_weight_initial": Decimal(1),
        "liability_weight_maintenance": Decimal(1),
        "liquidation_bonus": Decimal(liquidation_incentive_factor(lltv) - WAD).scaleb(-18),
        "source": "venue",
    }
