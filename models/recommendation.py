"""The recommendation: what each market's tiers should be, and the step towards it that governance can apply now.

Every figure is kept twice, the wish and the clamped step, with the reasons between them. A wish is never below the
engine's own requirement over the same days; a step never goes below it unless the figure in force lies there already,
and says so. What cannot be measured (a halted market, a market without forecast) is a failure with a reason, and its
figures stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, NamedTuple

from aggregator.errors import ConfigurationError, DataError, Failure, FailureReason, nearest_name
from aggregator.factors import MarketSize

from .bounded_step import Reason, Standing, Step, bounded_step
from .close_out import bracket_caps
from .collateral_haircuts import CollateralTier
from .tier_ladder import BaseRates, Ladder, Tier, build_ladder, require_ladder
from .tier_policy import GovernancePolicy
from .tier_requirement import UnitRequirement, bracket_ends, required_rates

Kind = Literal["rates", "position_limits", "collateral_weights"]

MODEL, FALLBACK = "learned", "classical"
"""Names of the models that forecasts are made of: the learned one, and its classical member alone."""

LAW = "jump_law"
"""Name of the law of the scenarios where it, and no model, made a haircut: that of a pegged asset."""


class Parameter(StrEnum):
    """What a figure is; closed, and the first half of the update type that governance reads."""

    MAINTENANCE_RATE = "maintenance_rate"
    INITIAL_RATE = "initial_rate"
    POSITION_LIMIT = "position_limit"
    MAINTENANCE_WEIGHT = "maintenance_weight"
    INITIAL_WEIGHT = "initial_weight"


class Figure(NamedTuple):
    """One published figure: rates and weights in bps, a position limit in whole USD.

    `requirement` is the engine's, at the horizon of the figure; None where it has none.
    """

    parameter: Parameter
    tier: int
    unit: Literal["bps", "usd"]
    previous: int
    wish: int
    value: int
    requirement: int | None = None


class Recommendation(NamedTuple):
    """All figures of one kind of one market, changed or not, and what the next run needs to know of this one.

    `model` is the name of what made the forecast behind the wish.
    """

    market: str
    kind: Kind
    figures: tuple[Figure, ...]
    reasons: tuple[Reason, ...]
    created_at: datetime
    expires_at: datetime
    short_since: datetime | None
    history_days: int
    model: str

    @property
    def changes(self) -> tuple[Figure, ...]:
        """The figures that move."""
        return tuple(figure for figure in self.figures if figure.value != figure.previous)


class MarketOutlook(NamedTuple):
    """What is forecast of one market: rates of one or both sides, its liquidity, and the days its history has.

    `model` is what made the rates: `MODEL`, or `FALLBACK` where its guard rail has tripped.
    """

    market: str
    sides: tuple[BaseRates, ...]
    size: MarketSize
    history_days: float
    model: str = MODEL


class Outcome(NamedTuple):
    """Recommendations by market and kind, and why others could not be made; both in order of the market's name."""

    recommendations: tuple[Recommendation, ...]
    failures: tuple[Failure, ...]


def recommend(
    current: Mapping[str, Ladder],
    outlooks: Sequence[MarketOutlook],
    requirements: Mapping[str, UnitRequirement],
    standings: Mapping[tuple[str, Kind], Standing],
    policy: GovernancePolicy,
    *,
    now: datetime,
) -> Outcome:
    """Rates and position limits of every market in force; `requirements` are the engine's by market.

    A market in force without an outlook or a requirement, or whose liquidity, rates or requirement cannot be used, is a
    failure and keeps its tiers. Raises ConfigurationError for outlooks of unknown markets, two of one market, and
    tiers in force that contradict themselves.
    """
    by_market: dict[str, MarketOutlook] = {}
    for outlook in outlooks:
        if outlook.market not in current:
            hint = nearest_name(outlook.market, current)
            raise ConfigurationError(f"forecast of {outlook.market!r}: no such market has tiers in force{hint}")
        if outlook.market in by_market:
            raise ConfigurationError(f"forecast of {outlook.market!r} is there twice")
        by_market[outlook.market] = outlook
    made: list[Recommendation] = []
    failures: list[Failure] = []
    for market in sorted(current):
        missing = [
            name for name, known in (("forecast", by_market), ("requirement", requirements)) if market not in known
        ]
        if missing:
            message = f"no {' and no '.join(missing)} for {market}: its tiers stay as they are"
            failures.append(Failure(FailureReason.MISSING_PARAMETER, message, subject=market))
            continue
        try:
            made.extend(
                _of_market(current[market], by_market[market], requirements[market], standings, policy, now=now)
            )
        except DataError as error:
            failures.append(error.failure)
    return Outcome(tuple(made), tuple(failures))


def recommend_rates(
    current: Ladder,
    outlook: MarketOutlook,
    needed: UnitRequirement,
    standing: Standing,
    policy: GovernancePolicy,
    *,
    now: datetime,
) -> Recommendation:
    """Maintenance and initial rates over the brackets in force, which stay: a bracket that moves moves every account.

    Raises ConfigurationError for tiers in force that contradict themselves, and DataError for a market without
    liquidity and for rates or a requirement that are no positive numbers.
    """
    require_ladder(current)
    requirement = required_rates(current, outlook.size, needed, policy)
    wished = wished_ladder(current, outlook, policy)
    step = bounded_step(
        _rates(current),
        _rates(wished),
        bounds=policy.rates,
        review=policy.review,
        standing=standing,
        now=now,
        requirement=requirement,
        may_loosen=outlook.history_days >= policy.review.least_history_days,
    )
    count = len(current.tiers)
    places = [(parameter, tier) for parameter in _RATES for tier in range(1, count + 1)]
    return _recommendation(
        current.market,
        "rates",
        places,
        _rates(current),
        step,
        policy,
        now=now,
        history_days=outlook.history_days,
        model=outlook.model,
        requirement=requirement,
    )


def wished_ladder(current: Ladder, outlook: MarketOutlook, policy: GovernancePolicy) -> Ladder:
    """The ladder that the forecast asks for over the brackets of `current`, before any bound of governance.

    The rates of an open last bracket are those of a position as large as the position limit, or twice its floor.
    """
    is_open = current.tiers[-1].notional_cap is None
    caps = bracket_ends(current, outlook.size, policy)
    return build_ladder(current.market, outlook.sides, outlook.size, caps, policy, last_is_open=is_open)


def recommend_position_limit(
    current: Ladder, outlook: MarketOutlook, standing: Standing, policy: GovernancePolicy, *, now: datetime
) -> Recommendation | None:
    """The cap of the last bracket, from what the market takes in the longest close-out; None where there is no cap.

    A cap is never brought below the floor of its own bracket: that would take the bracket away.
    """
    last = current.tiers[-1]
    if last.notional_cap is None:
        return None
    wanted = bracket_caps(current.market, outlook.size, policy.close_out)[-1]
    wish = max(math.floor(wanted), math.floor(last.notional_floor) + 1)
    before = (round(last.notional_cap),)
    step = bounded_step(
        before,
        (wish,),
        bounds=policy.position_limits,
        review=policy.review,
        standing=standing,
        now=now,
        safe_side=-1,
        relative=True,
        may_loosen=outlook.history_days >= policy.review.least_history_days,
    )
    places = [(Parameter.POSITION_LIMIT, len(current.tiers))]
    days = outlook.history_days
    kind: Kind = "position_limits"
    return _recommendation(
        current.market, kind, places, before, step, policy, now=now, history_days=days, model=outlook.model
    )


def recommend_weights(
    asset: str,
    current: Sequence[CollateralTier],
    wish: Sequence[CollateralTier],
    standing: Standing,
    policy: GovernancePolicy,
    *,
    now: datetime,
    history_days: float,
    model: str,
    requirement: tuple[int, ...] | None = None,
) -> Recommendation:
    """Collateral weights over the slices in force; `wish` has the same slices (`collateral_tiers` over their caps).

    A pegged asset has one slice with the weights of `peg_weights`. `requirement` are the largest weights that the
    engine leaves room for, in the order of the figures. Raises ConfigurationError for other slices.
    """
    if [tier[:2] for tier in current] != [tier[:2] for tier in wish] or not current:
        raise ConfigurationError(f"collateral {asset}: the wish has other slices than those in force")
    step = bounded_step(
        _weights(current),
        _weights(wish),
        bounds=policy.collateral_weights,
        review=policy.review,
        standing=standing,
        now=now,
        safe_side=-1,
        requirement=requirement,
        may_loosen=history_days >= policy.review.least_history_days,
    )
    places = [(parameter, tier) for parameter in _WEIGHTS for tier in range(1, len(current) + 1)]
    return _recommendation(
        asset,
        "collateral_weights",
        places,
        _weights(current),
        step,
        policy,
        now=now,
        history_days=history_days,
        model=model,
        requirement=requirement,
    )


def applied(ladder: Ladder, recommendation: Recommendation, *, now: datetime) -> Ladder:
    """The ladder with a recommendation of rates or of its position limit applied; applying it again changes nothing.

    Raises ConfigurationError when it is of another market or of collateral, has expired or is not made yet, or when a
    figure in force is neither the one it was made for nor its result.
    """
    if recommendation.market != ladder.market or recommendation.kind == "collateral_weights":
        what = f"{recommendation.kind} of {recommendation.market}"
        raise ConfigurationError(f"a recommendation of {what} does not fit the tiers of {ladder.market}")
    if not recommendation.created_at <= now < recommendation.expires_at:
        span = f"{recommendation.created_at.isoformat()} to {recommendation.expires_at.isoformat()}"
        raise ConfigurationError(f"recommendation for {ladder.market} holds from {span}; now is {now.isoformat()}")
    tiers = list(ladder.tiers)
    for figure in recommendation.figures:
        tier = tiers[figure.tier - 1]
        found = _in_force(tier, figure.parameter)
        if found not in (figure.previous, figure.value):
            place = f"{figure.parameter} of tier {figure.tier} of {ladder.market}"
            raise ConfigurationError(f"{place} is {found}; the recommendation was made for {figure.previous}")
        if found != figure.value:
            tiers[figure.tier - 1] = tier._replace(**{_FIELDS[figure.parameter]: figure.value})
    result = Ladder(ladder.market, tuple(tiers))
    require_ladder(result)
    return result


_RATES = (Parameter.MAINTENANCE_RATE, Parameter.INITIAL_RATE)
_WEIGHTS = (Parameter.MAINTENANCE_WEIGHT, Parameter.INITIAL_WEIGHT)
_FIELDS = {
    Parameter.MAINTENANCE_RATE: "maintenance_bps",
    Parameter.INITIAL_RATE: "initial_bps",
    Parameter.POSITION_LIMIT: "notional_cap",
}


def _of_market(
    current: Ladder,
    outlook: MarketOutlook,
    needed: UnitRequirement,
    standings: Mapping[tuple[str, Kind], Standing],
    policy: GovernancePolicy,
    *,
    now: datetime,
) -> list[Recommendation]:
    market = current.market
    standing = standings.get((market, "rates"), Standing())
    made = [recommend_rates(current, outlook, needed, standing, policy, now=now)]
    standing = standings.get((market, "position_limits"), Standing())
    limit = recommend_position_limit(current, outlook, standing, policy, now=now)
    return made if limit is None else [*made, limit]


def _recommendation(
    market: str,
    kind: Kind,
    places: Sequence[tuple[Parameter, int]],
    previous: Sequence[int],
    step: Step,
    policy: GovernancePolicy,
    *,
    now: datetime,
    history_days: float,
    model: str,
    requirement: tuple[int, ...] | None = None,
) -> Recommendation:
    unit: Literal["bps", "usd"] = "usd" if kind == "position_limits" else "bps"
    least: Sequence[int | None] = [None] * len(previous) if requirement is None else requirement
    figures = tuple(
        Figure(parameter, tier, unit, before, wish, value, required)
        for (parameter, tier), before, wish, value, required in zip(
            places, previous, step.wish, step.values, least, strict=True
        )
    )
    reasons = (Reason.FALLBACK, *step.reasons) if model == FALLBACK else step.reasons
    expires_at = now + timedelta(seconds=policy.review.expiry_s)
    return Recommendation(
        market, kind, figures, reasons, now, expires_at, step.short_since, math.floor(history_days), model
    )


def _rates(ladder: Ladder) -> tuple[int, ...]:
    """Maintenance rates of all tiers, then initial rates."""
    return (*(tier.maintenance_bps for tier in ladder.tiers), *(tier.initial_bps for tier in ladder.tiers))


def _weights(tiers: Sequence[CollateralTier]) -> tuple[int, ...]:
    return (*(tier.maintenance_weight_bps for tier in tiers), *(tier.initial_weight_bps for tier in tiers))


def _in_force(tier: Tier, parameter: Parameter) -> int | None:
    found = getattr(tier, _FIELDS[parameter])
    return None if found is None else round(found)
