"""The guard rail of the learned model: what is watched in production, and when its forecasts are not to be used.

Per checkpoint: its age, the drift of its inputs, and how often its margins held; per asset: inputs that are missing,
forecasts that are no numbers, and exceptions of its own. What trips is said with its figures, and the assets it
concerns fall back on the classical member of the model (`classical_margin`), which needs neither training nor extras.
The bounds are those of the policy (`tier_policy.Monitoring`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .features_market import CALENDAR
from .input_drift import InputDrift, input_drift
from .learned import LatestRates, PreparedModel, prepared_model, rates_now
from .market_history import MarketHistory
from .production_coverage import ALL, AssetExceptions, Coverage, asset_exceptions, group_coverage, recent_exceptions
from .tier_model_settings import TierModelSettings
from .tier_policy import MonitoringRules


class TripReason(StrEnum):
    """Why forecasts are not used; closed."""

    TOO_OLD = "too_old"
    DRIFT = "drift"
    MISSING_INPUTS = "missing_inputs"
    COVERAGE = "coverage"
    NOT_FINITE = "not_finite"


class Trip(NamedTuple):
    """One bound that is broken: of the model over `horizon`, for `assets`, or for all of them when there is none."""

    reason: TripReason
    horizon: str
    assets: tuple[str, ...]
    message: str

    def concerns(self, asset: str) -> bool:
        """Whether the forecast of `asset` is not to be used."""
        return not self.assets or asset in self.assets


class MonitoredModel(NamedTuple):
    """What is watched of one checkpoint, and what it trips.

    `age_days` is from its refit to the instant, `levels` are those that tiers stand on.
    """

    horizon: str
    levels: tuple[float, ...]
    refit: str
    age_days: float
    drift: InputDrift
    coverage: tuple[Coverage, ...]
    trips: tuple[Trip, ...]


def monitor_checkpoint(
    history: MarketHistory,
    checkpoint: Path,
    *,
    settings: TierModelSettings,
    rules: MonitoringRules,
    levels: Sequence[float],
    assets: Sequence[str],
    as_of: datetime,
) -> MonitoredModel:
    """What is watched of the model of `checkpoint` over a history that ends at `as_of`; errors as `prepared_model`."""
    made = prepared_model(history, checkpoint, settings=settings)
    latest = rates_now(made, settings)
    return monitored(made, latest, settings=settings, rules=rules, levels=levels, assets=assets, as_of=as_of)


def monitored(
    made: PreparedModel,
    latest: LatestRates,
    *,
    settings: TierModelSettings,
    rules: MonitoringRules,
    levels: Sequence[float],
    assets: Sequence[str],
    as_of: datetime,
) -> MonitoredModel:
    """What is watched of a model, and what it trips.

    Coverage is held to its bounds at `levels`, those that tiers use; `assets` are those that are also watched alone.
    """
    horizon = str(made.header.horizon)
    refit = np.datetime64(made.header.refit)
    age = (np.datetime64(as_of.replace(tzinfo=None), "us") - refit) / np.timedelta64(1, "D")
    drift = input_drift(made.panel, made.newest.fit.moments, days=rules.drift_days)
    found = recent_exceptions(made, settings, days=max(rules.coverage_days))
    coverage = [row for days in rules.coverage_days for row in group_coverage(found, days=days)]
    own = [
        row
        for days in rules.coverage_days
        for level in sorted(set(levels))
        for row in asset_exceptions(found, level=level, days=days)
        if row.asset in assets
    ]
    trips = [
        *_age_trips(horizon, age, rules),
        *_drift_trips(horizon, drift, rules),
        *_coverage_trips(horizon, coverage, own, found.groups, rules, levels),
        *_asset_trips(horizon, made, latest, rules, assets),
    ]
    return MonitoredModel(
        horizon, tuple(sorted(set(levels))), str(refit), float(age), drift, tuple(coverage), tuple(trips)
    )


def tripped(models: Sequence[MonitoredModel], asset: str) -> tuple[Trip, ...]:
    """Every trip that concerns an asset."""
    return tuple(trip for model in models for trip in model.trips if trip.concerns(asset))


def _age_trips(horizon: str, age: float, rules: MonitoringRules) -> list[Trip]:
    if age <= rules.largest_age_days:
        return []
    message = f"the {horizon} model was fitted {age:.0f} days ago; at most {rules.largest_age_days:g} are allowed"
    return [Trip(TripReason.TOO_OLD, horizon, (), message)]


def _drift_trips(horizon: str, drift: InputDrift, rules: MonitoringRules) -> list[Trip]:
    if not drift.rows:
        message = f"the {horizon} model has no input in the last {rules.drift_days} days"
        return [Trip(TripReason.MISSING_INPUTS, horizon, (), message)]
    trips = []
    typical, outside = float(np.median(drift.stability)), float(np.mean(drift.outside))
    if typical > rules.largest_stability_index or outside > rules.largest_outside:
        message = (
            f"inputs of the {horizon} model over {rules.drift_days} days: median stability index {typical:.2f}"
            f" (at most {rules.largest_stability_index:g}), {outside:.1%} out of range (at most"
            f" {rules.largest_outside:.1%})"
        )
        trips.append(Trip(TripReason.DRIFT, horizon, (), message))
    lost = [
        name for name, now, then in zip(drift.names, drift.missing, drift.missing_then, strict=True) if now - then > 0.5
    ]
    if len(lost) > rules.largest_missing * len(drift.names):
        message = f"{len(lost)} of {len(drift.names)} inputs of the {horizon} model are missing: {', '.join(lost)}"
        trips.append(Trip(TripReason.MISSING_INPUTS, horizon, (), message))
    return trips


def _coverage_trips(
    horizon: str,
    coverage: Sequence[Coverage],
    own: Sequence[AssetExceptions],
    groups: dict[str, tuple[str, ...]],
    rules: MonitoringRules,
    levels: Sequence[float],
) -> list[Trip]:
    trips = []
    for row in coverage:
        outside = not rules.least_exceptions <= row.ratio <= rules.largest_exceptions
        if row.level in levels and outside and row.p_value < rules.significance:
            message = (
                f"{row.exceptions} exceptions of the {horizon} model in {row.windows} windows of {row.days} days"
                f" ({row.group}): {row.ratio:.2f} times what {row.level:.1%} allows, p {row.p_value:.1g}"
            )
            assets = () if row.group == ALL else groups[row.group]
            trips.append(Trip(TripReason.COVERAGE, horizon, assets, message))
    for one in own:
        allowed = one.windows * (1.0 - one.level)
        if one.exceptions > rules.largest_exceptions * allowed and one.p_value < rules.asset_significance:
            message = (
                f"{one.exceptions} exceptions of the {horizon} model for {one.asset} in {one.windows} windows of"
                f" {one.days} days, {allowed:.1f} allowed at {one.level:.1%}"
            )
            trips.append(Trip(TripReason.COVERAGE, horizon, (one.asset,), message))
    return trips


def _asset_trips(
    horizon: str, made: PreparedModel, latest: LatestRates, rules: MonitoringRules, assets: Sequence[str]
) -> list[Trip]:
    """Assets whose forecast is no number, or whose own inputs are missing now beyond what they were in training."""
    trips = []
    answers = (
        latest.finite & np.isfinite(latest.margin).all(axis=(1, 2)) & np.isfinite(latest.shortfall).all(axis=(1, 2))
    )
    bad = tuple(name for name, has in zip(latest.assets, answers, strict=True) if not has and name in assets)
    if bad:
        message = f"the {horizon} model has no finite forecast of {', '.join(bad)}"
        trips.append(Trip(TripReason.NOT_FINITE, horizon, bad, message))
    panel = made.panel
    names = (*panel.even_names, *panel.signed_names)
    usual = made.newest.fit.moments.shares[: len(names), -1] < 0.5
    watched = usual & ~np.isin(names, CALENDAR)
    now = np.concatenate([panel.even[-1], panel.signed[-1]], axis=-1)[:, watched]
    share = np.mean(~np.isfinite(now), axis=-1) if watched.any() else np.zeros(len(panel.assets))
    for asset, lost in zip(panel.assets, share.tolist(), strict=True):
        if asset in assets and lost > rules.largest_asset_missing:
            message = f"{lost:.0%} of the inputs of the {horizon} model are missing for {asset}"
            trips.append(Trip(TripReason.MISSING_INPUTS, horizon, (asset,), message))
    return trips
