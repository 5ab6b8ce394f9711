"""Margin rules of dYdX v4 as canonical data: one rule set for every subaccount, one margin tier per market.

The tier's initial rate is the market's effective margin fraction at today's open interest, its maintenance rate the
base fraction times the maintenance fraction, which open interest does not move. Real numbers: the chain rounds every
requirement up to 1e-6 USDC (`mechanics`).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aggregator.rule_forms import Component, TieredNotional, Verdict, WeightedValue, component_rows

from .mechanics import PPM

RULES = "dydx_v4:perp"
SOURCE = "dydxprotocol/v4-chain 84d4664: x/perpetuals/types/liquidity_tier.go, x/perpetuals/lib, lib/margin/risk.go"
COMPONENTS = (
    Component(side="equity", parameters=WeightedValue(weights="unit")),
    Component(side="requirement", parameters=TieredNotional(initial="tier_rate"), group_by="position"),
    Component(side="verdict", parameters=Verdict(liquidates_when="below", needs_requirement=True)),
)


def rule_set_rows() -> list[dict[str, Any]]:
    """Rows of the table `rule_sets`."""
    return component_rows(RULES, COMPONENTS, source=SOURCE)


def margin_tier_row(instrument: str, *, effective_imf_ppm: int, maintenance_rate: Decimal) -> dict[str, Any]:
    """The one row of `margin_tiers` of a market."""
    return {
        "rule_set": RULES,
        "market": instrument,
        "tier": 1,
        "notional_floor": Decimal(0),
        "initial_rate": Decimal(effective_imf_ppm) / PPM,
        "maintenance_rate": maintenance_rate,
        "deduction": Decimal(0),
        "source": "venue",
    }
