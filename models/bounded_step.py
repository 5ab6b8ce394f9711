"""From a wish to the figure that may be published next: dead band, delays, largest steps, and the ways out of them.

Figures are positive integers in the units of `tier_policy`. A step is decided for all figures of one kind of a market
together, so that the order among tiers, and of maintenance and initial rates, cannot be lost on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, NamedTuple

from aggregator.errors import ConfigurationError

from .tier_policy import BPS, Bound, Bounds, Review


class Reason(StrEnum):
    """Why a published figure moves, or does not move as far as the wish; closed."""

    AT_WISH = "at_wish"
    DEAD_BAND = "dead_band"
    HELD_TOO_LONG = "held_too_long"
    COOLING_DOWN = "cooling_down"
    STEP_LIMITED = "step_limited"
    WAY_OUT = "way_out"
    REQUIREMENT_FLOOR = "requirement_floor"
    BELOW_REQUIREMENT = "below_requirement"
    POLICY_BOUND = "policy_bound"
    SHORT_HISTORY = "short_history"
    FALLBACK = "fallback"


SENTENCES = {
    Reason.AT_WISH: "the published figures are what the forecast asks for",
    Reason.DEAD_BAND: "the difference is within the dead band",
    Reason.HELD_TOO_LONG: "the dead band has held back a tighter wish for as long as it may",
    Reason.COOLING_DOWN: "the last change is too recent",
    Reason.STEP_LIMITED: "the wish lies beyond the largest step",
    Reason.WAY_OUT: "danger has grown so fast that the largest step and the delay give way",
    Reason.REQUIREMENT_FLOOR: "the forecast lies below the requirement of the engine, which counts instead",
    Reason.BELOW_REQUIREMENT: "the figure stays below the requirement of the engine until further steps",
    Reason.POLICY_BOUND: "the wish lies outside the smallest and largest figure of the policy",
    Reason.SHORT_HISTORY: "the market is too young to be loosened",
    Reason.FALLBACK: "the guard rail of the learned model has tripped, the forecast is that of its classical member",
}


class Standing(NamedTuple):
    """What is known of the figures in force: last change, since when the wish has been tighter, the calmest wish.

    `calmest` is the first wish of the figures that was furthest on the loose side within the window of the way out;
    None where nothing was wished yet.
    """

    changed_at: datetime | None = None
    short_since: datetime | None = None
    calmest: int | None = None


class Step(NamedTuple):
    """Figures to publish, the wish they were clamped from, why, and since when the wish has been tighter (or None)."""

    values: tuple[int, ...]
    wish: tuple[int, ...]
    reasons: tuple[Reason, ...]
    short_since: datetime | None


def bounded_step(
    current: Sequence[int],
    wish: Sequence[int],
    *,
    bounds: Bounds,
    review: Review,
    standing: Standing,
    now: datetime,
    safe_side: Literal[1, -1] = 1,
    relative: bool = False,
    requirement: Sequence[int] | None = None,
    may_loosen: bool = True,
) -> Step:
    """The figures next to publish for one market, all of one kind, from those in force towards the wish.

    Dead band and delays are decided for all figures together and the step is a clamp with the same bounds for all, so
    that an order among figures that holds in `current` and in `wish` holds in the result. `safe_side` is 1 where larger
    is safer. `relative`: steps in bps of the figure. `requirement` are the engine's figures: the wish is at least as
    safe, and no step goes to their loose side that does not start there. Raises ConfigurationError for figures that are
    not positive, times without a zone, and a change in the future.
    """
    _require(current, wish, standing, now)
    if requirement is not None and len(requirement) != len(current):
        raise ConfigurationError(f"{len(current)} figures in force and {len(requirement)} requirements")
    reasons: list[Reason] = []
    target = [min(max(value, bounds.least), bounds.largest) for value in wish]
    if target != list(wish):
        reasons.append(Reason.POLICY_BOUND)
    if requirement is not None:
        # a policy that caps rates below the requirement would undo the floor: the requirement wins
        safer = max if safe_side == 1 else min
        floored = [safer(value, least) for value, least in zip(target, requirement, strict=True)]
        if floored != target:
            reasons.append(Reason.REQUIREMENT_FLOOR)
        target = floored
    pairs = list(zip(current, target, strict=True))
    is_short = any(safe_side * (value - figure) > 0 for figure, value in pairs)
    short_since = (standing.short_since or now) if is_short else None
    below = _is_below(current, requirement, safe_side)

    urgency = _urgency(target[0], standing.calmest, safe_side)
    urgent = is_short and urgency >= review.way_out_ratio
    held_too_long = short_since is not None and now - short_since >= timedelta(seconds=review.longest_hold_s)
    inside = all(abs(value - figure) * BPS <= review.dead_band_bps * figure for figure, value in pairs)
    if all(figure == value for figure, value in pairs):
        return Step(tuple(current), tuple(target), (*reasons, Reason.AT_WISH), None)
    if inside and not (held_too_long or below or urgent):
        return Step(tuple(current), tuple(target), (*reasons, Reason.DEAD_BAND), short_since)
    if inside and held_too_long:
        reasons.append(Reason.HELD_TOO_LONG)

    tightens = urgent or _is_due(standing, bounds.tighten, now)
    loosens = may_loosen and _is_due(standing, bounds.loosen, now)
    values = []
    for figure, value in pairs:
        up = _reach(figure, bounds.tighten, relative) if tightens else 0
        down = _reach(figure, bounds.loosen, relative) if loosens else 0
        low, high = (figure - down, figure + up) if safe_side == 1 else (figure - up, figure + down)
        if urgent:
            # the figure may move in the proportion in which danger has grown
            if safe_side == 1:
                high = max(high, min(value, math.ceil(figure * urgency)))
            else:
                low = min(low, max(value, math.floor(figure / urgency)))
        values.append(min(max(value, low), high))
    if urgent:
        reasons.append(Reason.WAY_OUT)
    reasons.extend(_why_short_of(pairs, values, safe_side, tightens=tightens, loosens=loosens, may_loosen=may_loosen))
    if _is_below(values, requirement, safe_side):
        reasons.append(Reason.BELOW_REQUIREMENT)
    return Step(tuple(values), tuple(target), tuple(reasons) or (Reason.AT_WISH,), short_since)


def _is_below(figures: Sequence[int], requirement: Sequence[int] | None, safe_side: int) -> bool:
    """Whether a figure lies on the loose side of what the engine requires."""
    return requirement is not None and any(
        safe_side * (least - figure) > 0 for figure, least in zip(figures, requirement, strict=True)
    )


def _require(current: Sequence[int], wish: Sequence[int], standing: Standing, now: datetime) -> None:
    if not current or len(current) != len(wish):
        raise ConfigurationError(
            f"{len(current)} figures in force and {len(wish)} wishes; expected as many, at least 1"
        )
    for name, values in (("figure in force", current), ("wish", wish)):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise ConfigurationError(f"{name} is {value!r}; expected a positive integer")
    for name, at in (("now", now), ("changed_at", standing.changed_at), ("short_since", standing.short_since)):
        if at is not None and at.tzinfo is None:
            raise ConfigurationError(f"{name} is {at.isoformat()}; a time needs its zone")
        if at is not None and at > now:
            raise ConfigurationError(f"{name} {at.isoformat()} lies after now, {now.isoformat()}")


def _urgency(wish: int, calmest: int | None, safe_side: int) -> float:
    if calmest is None:
        return 1.0
    return wish / calmest if safe_side == 1 else calmest / wish


def _is_due(standing: Standing, bound: Bound, now: datetime) -> bool:
    return standing.changed_at is None or now - standing.changed_at >= timedelta(seconds=bound.delay_s)


def _reach(figure: int, bound: Bound, relative: bool) -> int:
    # a relative step of a small figure is at least 1, or it could never move
    return max(1, figure * bound.largest_step_bps // BPS) if relative else bound.largest_step_bps


def _why_short_of(
    pairs: Sequence[tuple[int, int]],
    values: Sequence[int],
    safe_side: int,
    *,
    tightens: bool,
    loosens: bool,
    may_loosen: bool,
) -> list[Reason]:
    found = set()
    for (figure, value), published in zip(pairs, values, strict=True):
        if published == value:
            continue
        is_tighter = safe_side * (value - figure) > 0
        if is_tighter and not tightens:
            found.add(Reason.COOLING_DOWN)
        elif is_tighter or loosens:
            found.add(Reason.STEP_LIMITED)
        else:
            found.add(Reason.COOLING_DOWN if may_loosen else Reason.SHORT_HISTORY)
    return sorted(found)
