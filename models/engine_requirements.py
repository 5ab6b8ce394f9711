"""The engine's requirement of a dollar of every market and collateral of a run, over the horizons that tiers last.

The law of the scenarios is built anew for the shortest of those horizons and taken as it is for that of the run: a
maintenance rate that has to last eight hours is held against eight hours, an initial rate against a day.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from aggregator.config import Resolved
from aggregator.factors import Generation, build_generator
from aggregator.unit_requirement import UnitShortfall, unit_requirements

from .collateral_in_force import CollateralInForce
from .markets_in_force import MarketInForce
from .tier_policy import GovernancePolicy
from .tier_requirement import UnitRequirement


def market_requirements(
    resolved: Resolved, markets: Mapping[str, MarketInForce], policy: GovernancePolicy, as_of: datetime
) -> dict[str, UnitRequirement]:
    """By market, over the least days of maintenance and initial rates; those that nothing moves are left out."""
    pair = policy.ladder
    days = sorted({pair.maintenance.least_days, pair.initial.least_days})
    return _requirements(resolved, {name: (market.factor,) for name, market in markets.items()}, days, as_of)


def collateral_requirements(
    resolved: Resolved, collateral: Mapping[str, CollateralInForce], as_of: datetime
) -> dict[str, UnitRequirement]:
    """By name, over the horizon of the run; what nothing moves is left out."""
    days = [resolved.configuration.run.horizon_days]
    return _requirements(resolved, {name: one.factors for name, one in collateral.items()}, days, as_of)


def _requirements(
    resolved: Resolved, holdings: Mapping[str, tuple[str, ...]], days: list[float], as_of: datetime
) -> dict[str, UnitRequirement]:
    if not holdings:
        return {}
    configuration = resolved.configuration
    factors = sorted({factor for of in holdings.values() for factor in of})
    found: list[dict[str, UnitShortfall]] = []
    for horizon in days:
        generation = _generation(resolved, factors, horizon, as_of)
        found.append(
            unit_requirements(
                generation, holdings, seed=configuration.run.seed, chunk=configuration.engine.scenario_chunk
            )
        )
    return {
        name: UnitRequirement(tuple(days), tuple(of[name].long for of in found), tuple(of[name].short for of in found))
        for name in found[0]
    }


def _generation(resolved: Resolved, factors: list[str], horizon: float, as_of: datetime) -> Generation:
    configuration = resolved.configuration
    if horizon == configuration.run.horizon_days:
        return build_generator(resolved, factors, as_of)
    run = configuration.run.model_copy(update={"horizon_days": horizon})
    scenarios = configuration.scenarios
    if "stressed" in type(scenarios).model_fields:
        scenarios = scenarios.model_copy(update={"stressed": ()})
    changed = configuration.model_copy(update={"run": run, "scenarios": scenarios})
    return build_generator(resolved.model_copy(update={"configuration": changed}), factors, as_of)
