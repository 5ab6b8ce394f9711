"""The engine's requirement as rates of tiers: the floor under every wish, over the days that each rate has to last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aggregator.errors import DataError, Failure, FailureReason
from aggregator.factors import MarketSize
from aggregator.unit_requirement import CONFIDENCE

from .close_out import bracket_caps
from .market_history import Side
from .tier_ladder import BaseRates, Ladder, marginal_rates, needed_rates
from .tier_policy import BPS, GovernancePolicy, TierLevel


class UnitRequirement(NamedTuple):
    """The engine's requirement of a dollar of a market, long and short, over each of `horizons_days` (rising).

    Expected shortfalls at 99 % under the scenarios of the run, as fractions of notional.
    """

    horizons_days: tuple[float, ...]
    long: tuple[float, ...]
    short: tuple[float, ...]


def required_rates(
    current: Ladder, size: MarketSize, needed: UnitRequirement, policy: GovernancePolicy
) -> tuple[int, ...] | None:
    """The engine's requirement in bps for the maintenance rate of every tier, then the initial rates; None for none.

    Like against like: the shortfall at 99 % over the days that the rate has to last (those of the policy, or the
    close-out of the tier where that takes longer), with the cost of the close-out, made marginal as the rates are.
    Raises DataError for a requirement that is no rate of notional.
    """
    for rate in (*needed.long, *needed.short):
        if not (rate >= 0.0 and math.isfinite(rate)):
            message = f"requirement of {current.market} is {rate}; expected a rate of notional"
            raise DataError(Failure(FailureReason.OUT_OF_RANGE, message, subject=current.market))
    if not any((*needed.long, *needed.short)):
        return None
    sides = tuple(shortfall_rates(side, needed.horizons_days, of) for side, of in _of_sides(needed))
    ends = np.asarray(bracket_ends(current, size, policy), dtype=np.float64)
    slopes, whole = (
        needed_rates(current.market, sides, size, ends, required_level(pair.least_days), policy)
        for pair in (policy.ladder.maintenance, policy.ladder.initial)
    )
    maintenance = [_bps(rate) for rate in marginal_rates(ends, slopes).tolist()]
    initial = [max(_bps(rate), low) for rate, low in zip(whole.tolist(), maintenance, strict=True)]
    return (*maintenance, *np.maximum.accumulate(initial).tolist())


def shortfall_rates(side: Side, horizons_days: tuple[float, ...], shortfall: Sequence[float]) -> BaseRates:
    """The engine's shortfalls of a dollar over each horizon, in the shape of a forecast."""
    # a shortfall of nothing has no logarithm; a long one of everything neither
    values = np.clip(np.asarray(shortfall, dtype=np.float64), 1e-9, 1.0 - 1e-9 if side == "long" else np.inf)[:, None]
    return BaseRates(side, (CONFIDENCE,), horizons_days, values, values)


def required_level(least_days: float) -> TierLevel:
    """The engine's measure over a horizon of at least `least_days`."""
    return TierLevel(level=CONFIDENCE, measure="shortfall", least_days=least_days)


def bracket_ends(current: Ladder, size: MarketSize, policy: GovernancePolicy) -> list[float]:
    """Where the brackets in force end: an open last one at the position limit, or at twice its floor."""
    last = current.tiers[-1]
    caps = [tier.notional_cap for tier in current.tiers if tier.notional_cap is not None]
    if last.notional_cap is None:
        caps.append(max(2.0 * last.notional_floor, bracket_caps(current.market, size, policy.close_out)[-1]))
    return caps


def _of_sides(needed: UnitRequirement) -> tuple[tuple[Side, tuple[float, ...]], ...]:
    return (("long", needed.long), ("short", needed.short))


def _bps(rate: float) -> int:
    """Whole bps, up; a rate of 1 or more is the whole notional."""
    return min(BPS, math.ceil(round(rate * BPS, 6)))
