"""The rule set of one Morpho Blue market in margin form, and the weight of its collateral.

Equity is collateral less debt at the oracle's price, in the loan token; the requirement of both levels is the part of
the collateral beyond the LLTV, because the contract applies one test to borrowing and to liquidation. Equity falls
below it exactly when the debt exceeds collateral times LLTV. What an owner lends out in the market is no collateral.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from aggregator.rule_forms import component_rows

from ..collateral import LENDER_COMPONENTS, weight_row
from .mechanics import WAD, liquidation_incentive_factor
from .snapshots import VENUE


def rule_set_id(label: str) -> str:
    """Id of a market's rule set."""
    return f"{VENUE}:{label}"


def rule_set_rows(label: str, *, source: str, read_at: datetime | None) -> list[dict[str, Any]]:
    """Rows of the table `rule_sets`."""
    return component_rows(rule_set_id(label), LENDER_COMPONENTS, source=source or VENUE, read_at=read_at)


def collateral_tier_row(label: str, asset_id: str, lltv: int) -> dict[str, Any]:
    """The collateral's row of `collateral_tiers`; the bonus is what a liquidator gets beyond the debt repaid."""
    bonus = Decimal(liquidation_incentive_factor(lltv) - WAD).scaleb(-18)
    return weight_row(rule_set_id(label), asset_id, Decimal(lltv).scaleb(-18), liquidation_bonus=bonus)
