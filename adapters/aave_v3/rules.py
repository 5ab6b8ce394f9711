"""The rule set of one Aave v3 market in margin form, and the collateral weights of its reserves.

Equity is collateral less debt at market value; the maintenance requirement is the part of the collateral beyond its
liquidation threshold, the initial one the part beyond its LTV. Equity falls below maintenance exactly when the health
factor falls below 1. Health itself stays the venue's ratio of weighted collateral to debt.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from aggregator.rule_forms import component_rows

from ..collateral import LENDER_COMPONENTS, weight_row
from .deployments import Deployment
from .mechanics import PERCENTAGE_FACTOR, CollateralParameters, EMode, effective_parameters
from .parse import Reserve


def rule_set_id(deployment: Deployment) -> str:
    """Id of the market's rule set."""
    return f"aave_v3:{deployment.market}"


def rule_set_rows(deployment: Deployment) -> list[dict[str, Any]]:
    """Rows of the table `rule_sets`."""
    return component_rows(
        rule_set_id(deployment), LENDER_COMPONENTS, source=deployment.source or "aave_v3", read_at=deployment.as_of
    )


def collateral_tier_rows(reserve: Reserve, emodes: Iterable[EMode], *, deployment: Deployment) -> list[dict[str, Any]]:
    """Rows of the table `collateral_tiers` of one reserve: its own, and one per category that changes it.

    A category that leaves the reserve as it is has no row: the reserve's own row, with an empty category, holds.
    """
    rows = [_row(reserve, "", reserve.parameters, deployment)]
    for emode in sorted(emodes, key=lambda category: category.category):
        effective = effective_parameters(
            reserve.parameters, reserve.reserve_id, emode, generation=deployment.generation
        )
        if effective != reserve.parameters:
            rows.append(_row(reserve, str(emode.category), effective, deployment))
    return rows


def _row(reserve: Reserve, emode: str, parameters: CollateralParameters, deployment: Deployment) -> dict[str, Any]:
    bonus = parameters.liquidation_bonus
    return weight_row(
        rule_set_id(deployment),
        reserve.asset_id,
        _fraction(parameters.ltv),
        _fraction(parameters.liquidation_threshold),
        emode=emode,
        liquidation_bonus=_fraction(bonus - PERCENTAGE_FACTOR) if bonus else None,
    )


def _fraction(bps: int) -> Decimal:
    return Decimal(bps) / PERCENTAGE_FACTOR
