"""The rule set of one Compound v3 market in margin form, and the weights of its assets.

Equity is collateral and base supply less debt at market value; the maintenance requirement is the part of the
collateral beyond its liquidation factor, the initial one the part beyond its borrow factor. Equity falls below
maintenance exactly when the contract's liquidity falls below 0. The base asset itself counts in full.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aggregator.rule_forms import component_rows

from ..collateral import LENDER_COMPONENTS, weight_row
from .mechanics import FACTOR_SCALE
from .parse import Terms
from .sections import VENUE, Deployment

_WHOLE = Terms(0, 1, 0, FACTOR_SCALE, FACTOR_SCALE, FACTOR_SCALE)


def rule_set_rows(deployment: Deployment) -> list[dict[str, Any]]:
    """Rows of the table `rule_sets`."""
    source = deployment.source or VENUE
    return component_rows(deployment.rule_set, LENDER_COMPONENTS, source=source, read_at=deployment.as_of)


def base_tier_row(deployment: Deployment) -> dict[str, Any]:
    """The base asset's row of `collateral_tiers`: a supply and a debt count in full."""
    return collateral_tier_row(deployment.base, _WHOLE, deployment) | {"liquidation_bonus": None}


def collateral_tier_row(symbol: str, terms: Terms, deployment: Deployment) -> dict[str, Any]:
    """One asset's row of `collateral_tiers`; the bonus is the borrower's penalty, 1 less the liquidation factor."""
    return weight_row(
        deployment.rule_set,
        deployment.asset_id(symbol),
        _fraction(terms.borrow_factor),
        _fraction(terms.liquidate_factor),
        liquidation_bonus=_fraction(FACTOR_SCALE - terms.liquidation_factor),
    )


def _fraction(factor: int) -> Decimal:
    return Decimal(factor).scaleb(-18)
