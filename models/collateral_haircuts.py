"""Haircuts of collateral: what an asset may lose in value, and be sold for, before it has been sold.

An ordinary asset has the tiers of a long position of its value. A pegged asset has a haircut from the jump risk of the
scenarios, hazard times severity: its own calm history knows of no jump until the day it comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from aggregator.calibration.pegs import DEPEG
from aggregator.errors import ConfigurationError
from aggregator.factors import MarketSize
from aggregator.overlays.partial_default import DefaultLaw

from .tier_ladder import BaseRates, checked_caps, marginal_rates, needed_rates
from .tier_policy import BPS, GovernancePolicy

YEAR_DAYS = 365.0


class CollateralTier(NamedTuple):
    """Slice of collateral value above `value_floor` (USD) up to `value_cap`; the shares of it that count, in bps."""

    value_floor: float
    value_cap: float
    maintenance_weight_bps: int
    initial_weight_bps: int


class PegMoves(NamedTuple):
    """Ordinary daily log moves of a pegged asset: a Student t with this standard deviation and `nu` > 2."""

    daily_std: float
    nu: float


def collateral_tiers(
    asset: str, long_rates: BaseRates, size: MarketSize, caps: Sequence[float], policy: GovernancePolicy
) -> tuple[CollateralTier, ...]:
    """Weights of collateral in slices of value that end at `caps` (USD, rising); they never rise with value.

    A weight is 1 less the haircut, the marginal rate of a long position of that value; the initial weight is at most
    the maintenance weight. Errors as in `tier_ladder.build_ladder`; ConfigurationError for rates of the short side.
    """
    if long_rates.side != "long":
        raise ConfigurationError(f"collateral {asset}: haircuts need rates of the long side, not {long_rates.side!r}")
    ends = checked_caps(asset, caps)
    pair = policy.collateral
    slopes = [
        marginal_rates(ends, needed_rates(asset, (long_rates,), size, ends, level, policy))
        for level in (pair.maintenance, pair.initial)
    ]
    tiers = []
    floor = 0.0
    for place, end in enumerate(ends.tolist()):
        maintenance = _weight(policy, float(slopes[0][place]))
        initial = _weight(policy, float(slopes[1][place]))
        tiers.append(CollateralTier(floor, end, maintenance, min(initial, maintenance)))
        floor = end
    return tuple(tiers)


def peg_weights(
    asset: str,
    law: DefaultLaw,
    moves: PegMoves,
    policy: GovernancePolicy,
    *,
    discount: float = 0.0,
    stress: float = 0.0,
) -> tuple[int, int]:
    """Maintenance and initial weight in bps of a pegged asset; see `peg_haircut`."""
    rules = policy.pegs
    maintenance, initial = (
        _weight(policy, peg_haircut(asset, law, moves, level=rules.level, days=days, discount=discount, stress=stress))
        for days in (rules.maintenance_days, rules.initial_days)
    )
    return maintenance, min(initial, maintenance)


def peg_haircut(
    asset: str,
    law: DefaultLaw,
    moves: PegMoves,
    *,
    level: float,
    days: float,
    discount: float = 0.0,
    stress: float = 0.0,
) -> float:
    """Haircut of a pegged asset held for `days`, a fraction of its price now within (0, 1].

    The sum of two expected shortfalls at `level`, which bounds that of the sum (it is subadditive): of ordinary moves,
    and of the depth of a jump that comes with probability 1 - exp(-hazard days), as deep as it is before it heals. A
    quantile would not see a jump less likely than 1 - level. `stress` (standard deviations that the market has fallen)
    multiplies the hazard by exp(stress_loading stress). From a `discount` of 1 % below the peg on the jump has come:
    what is left is how much deeper it gets. Raises ConfigurationError naming the asset for figures out of range.
    """
    _require(asset, law, moves, level=level, days=days, discount=discount, stress=stress)
    ordinary = -math.expm1(-_ordinary_shortfall(moves, level) * math.sqrt(days))
    if discount >= DEPEG:
        beyond = min(discount, law.depth_cap)
        deepest = _depth_shortfall(law, 1.0, level, given=beyond / law.depth_cap)
        # the price holds the discount already; what is lost further is lost of the price now
        jump = max(0.0, deepest - discount) / (1.0 - discount)
    else:
        hazard = law.jumps_per_year / YEAR_DAYS * math.exp(law.stress_loading * stress)
        jump = _depth_shortfall(law, -math.expm1(-hazard * days), level, given=0.0)
    return min(jump + ordinary, 1.0)


def _ordinary_shortfall(moves: PegMoves, level: float) -> float:
    q = float(stats.t.ppf(level, moves.nu))
    density = float(stats.t.pdf(q, moves.nu))
    of_t = density / (1.0 - level) * (moves.nu + q**2) / (moves.nu - 1.0)
    return moves.daily_std * math.sqrt((moves.nu - 2.0) / moves.nu) * of_t


def _depth_shortfall(law: DefaultLaw, probability: float, level: float, *, given: float) -> float:
    """ES at `level` of a loss that is the depth with `probability`, else 0; depths are beyond `given` caps.

    With X ~ Beta(a, b): E[X; X > x] = a / (a + b) (1 - I_x(a + 1, b)).
    """
    a, b = law.depth_a, law.depth_b
    beyond = float(special.betainc(b, a, 1.0 - given))
    if beyond <= 0.0:
        return law.depth_cap * max(given, 0.0)
    share = min(1.0, (1.0 - level) / probability) if probability > 0.0 else 1.0
    # the quantile by its upper tail, which keeps its digits
    threshold = 1.0 - float(special.betaincinv(b, a, beyond * share))
    tail = a / (a + b) * float(special.betainc(b, a + 1.0, 1.0 - threshold))
    return law.depth_cap * probability / (1.0 - level) * tail / beyond


def _require(asset: str, law: DefaultLaw, moves: PegMoves, **figures: float) -> None:
    low_high = {"level": (0.5, 1.0), "days": (0.0, 3650.0), "discount": (-0.05, 1.0), "stress": (-1e-12, 50.0)}
    for name, value in figures.items():
        low, high = low_high[name]
        if not low < value < high:
            raise ConfigurationError(f"{name} of {asset} is {value}; expected a number between {low} and {high}")
    positive = {"jumps_per_year": law.jumps_per_year, "depth_a": law.depth_a, "depth_b": law.depth_b}
    for name, value in (*positive.items(), ("daily_std", moves.daily_std)):
        if not (value > 0.0 and math.isfinite(value)):
            raise ConfigurationError(f"{name} of {asset} is {value}; expected a positive number: every peg can break")
    if not 0.0 < law.depth_cap < 1.0:
        raise ConfigurationError(f"depth_cap of {asset} is {law.depth_cap}; expected a number between 0 and 1")
    if not (moves.nu > 2.0 and math.isfinite(law.stress_loading)):
        raise ConfigurationError(f"nu of {asset} is {moves.nu}, stress_loading {law.stress_loading}")


def _weight(policy: GovernancePolicy, haircut: float) -> int:
    bounds = policy.collateral_weights
    rounded_up = policy.rounding.up(max(0.0, float(np.minimum(haircut, 1.0))))
    return min(max(BPS - rounded_up, bounds.least), bounds.largest)
