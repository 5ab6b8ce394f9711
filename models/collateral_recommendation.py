"""Recommended weights of every collateral of a run, and why others stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from aggregator.calibration_file import read_calibration
from aggregator.config import CalibratedFigures, Resolved
from aggregator.errors import DataError, Failure, FailureReason

from .bounded_step import Standing
from .collateral_in_force import CollateralInForce
from .collateral_outlooks import CollateralOutlook, PegLaw, collateral_outlook, peg_laws, what_is_missing
from .recommendation import Kind, MarketOutlook, Recommendation, recommend_weights
from .tier_policy import GovernancePolicy
from .tier_requirement import UnitRequirement


class CollateralChange(NamedTuple):
    """One collateral before and after, and the accounts that hold it and are liquidatable by what changes."""

    outlook: CollateralOutlook
    recommendation: Recommendation
    accounts: tuple[str, ...] = ()

    @property
    def after(self) -> tuple[tuple[int, int], ...]:
        """(maintenance, initial) weights in bps of every slice."""
        values = [figure.value for figure in self.recommendation.figures]
        return tuple(zip(values[: len(values) // 2], values[len(values) // 2 :], strict=True))


def laws_of_run(resolved: Resolved) -> dict[str, PegLaw]:
    """The jump laws of pegs behind the scenarios of the run; none where they are not calibrated."""
    figures = resolved.configuration.scenarios
    if not isinstance(figures, CalibratedFigures):
        return {}
    file = read_calibration(resolved.path(figures.calibration))
    return peg_laws(file, stress_loading=figures.jumps.stress_loading)


def recommend_collateral(
    collateral: Mapping[str, CollateralInForce],
    prices: Iterable[MarketOutlook],
    laws: Mapping[str, PegLaw],
    needed: Mapping[str, UnitRequirement],
    standings: Mapping[tuple[str, Kind], Standing],
    policy: GovernancePolicy,
    *,
    now: datetime,
) -> tuple[list[CollateralChange], list[Failure]]:
    """Weights of everything that can be recommended; `prices` are the outlooks of what floats, by the same names.

    What nobody holds and cannot be recommended is one failure for each rule set and reason.
    """
    by_name = {outlook.market: outlook for outlook in prices}
    changes: list[CollateralChange] = []
    failures: list[Failure] = []
    missing: dict[tuple[str, str], list[str]] = {}
    for name, one in sorted(collateral.items()):
        price, requirement = by_name.get(name), needed.get(name)
        what = what_is_missing(one, price, laws, requirement)
        if what is not None or requirement is None:
            # one sentence for all of a rule set that nobody holds
            missing.setdefault((one.rule_set, f"{what}"), []).append(name)
            continue
        try:
            outlook = collateral_outlook(one, price, laws, requirement, policy)
            made = recommend_weights(
                name,
                outlook.current,
                outlook.wish,
                standings.get((name, "collateral_weights"), Standing()),
                policy,
                now=now,
                history_days=outlook.history_days,
                model=outlook.model,
                requirement=outlook.requirement,
            )
        except DataError as error:
            failures.append(error.failure)
            continue
        changes.append(CollateralChange(outlook, made))
    for (rule_set, what), names in missing.items():
        held = [name for name in names if collateral[name].held_usd > 0.0]
        others = [name for name in names if name not in held]
        failures += [_stays(name, f"{name}: {what}") for name in held]
        if others:
            assets = ", ".join(collateral[name].asset_id for name in others)
            failures.append(_stays(others[0], f"{rule_set}: {what} ({assets})"))
    return changes, failures


def in_force_figures(collateral: Mapping[str, CollateralInForce]) -> dict[tuple[str, Kind], list[int]]:
    """The weights in force in the order of a recommendation's figures, for `recommendation_files.standings`."""
    figures: dict[tuple[str, Kind], list[int]] = {}
    for name, one in collateral.items():
        figures[name, "collateral_weights"] = [
            *(part.maintenance_bps for part in one.slices),
            *(part.initial_bps for part in one.slices),
        ]
    return figures


def _stays(name: str, message: str) -> Failure:
    return Failure(FailureReason.MISSING_PARAMETER, f"{message}; its weights stay as they are", subject=name)
