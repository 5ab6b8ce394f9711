"""Weights that collateral should have: from the forecast of its price, the jump law of its peg, and the engine.

An asset that floats has the haircut of a long position (`collateral_haircuts.collateral_tiers`), a pegged one that of a
jump (`peg_haircut`), a staked token on top of its underlying the sum of both, which bounds the shortfall of the sum. A
liquidator who is paid a bonus b on top takes b / (1 + b) of the collateral, which is part of the haircut. What the
engine requires is the shortfall of a dollar of the asset under the scenarios of the run, jumps included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aggregator.calibration_file import CalibrationFile
from aggregator.overlays.partial_default import DefaultLaw

from .collateral_haircuts import CollateralTier, PegMoves, collateral_tiers, peg_weights
from .collateral_in_force import CollateralInForce
from .recommendation import LAW, MarketOutlook
from .tier_ladder import marginal_rates, needed_rates
from .tier_policy import BPS, GovernancePolicy
from .tier_requirement import UnitRequirement, required_level, shortfall_rates

DEEPEST_CAP = 0.99
"""A token that lost everything has no logarithm: the scenarios cut the law of a jump here, and so do haircuts."""


class PegLaw(NamedTuple):
    """The jumps and the ordinary moves of one peg, and the days of history behind the latter."""

    jumps: DefaultLaw
    moves: PegMoves
    days: int


class CollateralOutlook(NamedTuple):
    """Slices in force and wished for (of the same values), the largest weights that the engine leaves room for, in the
    order of a recommendation's figures, the days of history, and what made the haircut."""

    in_force: CollateralInForce
    current: tuple[CollateralTier, ...]
    wish: tuple[CollateralTier, ...]
    requirement: tuple[int, ...]
    history_days: float
    model: str


def peg_laws(file: CalibrationFile | None, *, stress_loading: float) -> dict[str, PegLaw]:
    """The law of every peg of a calibration, stablecoins and staked tokens, by name; none without a calibration."""
    if file is None:
        return {}
    laws = {}
    for name, found in file.pegs.items():
        jumps = DefaultLaw(
            found.jumps_per_year,
            found.depth_a,
            found.depth_b,
            min(found.depth_cap, DEEPEST_CAP),
            found.recovery_per_day,
            found.absorbing_probability,
            stress_loading,
        )
        laws[name] = PegLaw(jumps, PegMoves(found.daily_std, found.nu), found.days)
    for name, token in file.discounts.items():
        cap = min(token.depth_cap, DEEPEST_CAP)
        jumps = DefaultLaw(
            token.jumps_per_year, token.depth_a, token.depth_b, cap, token.reversion_per_day, 0.0, stress_loading
        )
        laws[name] = PegLaw(jumps, PegMoves(token.daily_std, token.nu), token.days)
    return laws


def what_is_missing(
    one: CollateralInForce, price: MarketOutlook | None, laws: Mapping[str, PegLaw], needed: UnitRequirement | None
) -> str | None:
    """Why there is no outlook of an asset; None where there is one."""
    if one.symbol is not None and price is None:
        return "no forecast of its price"
    if one.peg is not None and one.peg not in laws:
        return "no law of its peg"
    return "the scenarios do not move it" if needed is None else None


def collateral_outlook(
    one: CollateralInForce,
    price: MarketOutlook | None,
    laws: Mapping[str, PegLaw],
    needed: UnitRequirement,
    policy: GovernancePolicy,
) -> CollateralOutlook:
    """What one asset's weights should be; `price` is the outlook of its price where it floats.

    Errors as of `collateral_tiers` and `peg_weights`. Nothing may be missing (`what_is_missing`).
    """
    caps = slice_caps(one, price, policy)
    floors = [part.floor_usd for part in one.slices]
    current = tuple(
        CollateralTier(floor, cap, part.maintenance_bps, part.initial_bps)
        for part, floor, cap in zip(one.slices, floors, caps, strict=True)
    )
    maintenance = np.full(len(caps), float(BPS))
    initial = maintenance.copy()
    if price is not None:
        tiers = collateral_tiers(one.name, price.sides[0], price.size, caps, policy)
        maintenance = np.array([float(tier.maintenance_weight_bps) for tier in tiers])
        initial = np.array([float(tier.initial_weight_bps) for tier in tiers])
    if one.peg is not None:
        law = laws[one.peg]
        weights = peg_weights(one.name, law.jumps, law.moves, policy, discount=one.discount)
        maintenance, initial = maintenance - (BPS - weights[0]), initial - (BPS - weights[1])
    days = [] if price is None else [price.history_days]
    days += [] if one.peg is None else [float(laws[one.peg].days)]
    bonus = math.ceil(round(BPS * one.bonus / (1.0 + one.bonus), 6))
    wish = tuple(
        tier._replace(
            maintenance_weight_bps=max(policy.collateral_weights.least, int(low) - bonus),
            initial_weight_bps=max(policy.collateral_weights.least, int(min(low, high)) - bonus),
        )
        for tier, low, high in zip(current, maintenance, initial, strict=True)
    )
    return CollateralOutlook(
        one,
        current,
        wish,
        required_weights(one, caps, price, needed, policy),
        min(days),
        LAW if price is None else price.model,
    )


def slice_caps(one: CollateralInForce, price: MarketOutlook | None, policy: GovernancePolicy) -> list[float]:
    """Where the slices in force end, USD.

    The last one has no end: its weight is that of what the market takes within the days of the maintenance weight, of
    twice its floor, or of what is held of it, whichever is largest.
    """
    ends = [part.floor_usd for part in one.slices[1:]]
    sold = 1.0
    if price is not None:
        sold = policy.close_out.participation * price.size.daily_volume * policy.collateral.maintenance.least_days
    return [*ends, max(sold, 2.0 * one.slices[-1].floor_usd, one.held_usd)]


def required_weights(
    one: CollateralInForce,
    caps: list[float],
    price: MarketOutlook | None,
    needed: UnitRequirement,
    policy: GovernancePolicy,
) -> tuple[int, ...]:
    """The largest weights in bps, of every slice for maintenance and then initial: 1 less the engine's shortfall."""
    sides = (shortfall_rates("long", needed.horizons_days, needed.long),)
    weights = []
    for level in (policy.collateral.maintenance, policy.collateral.initial):
        days = required_level(level.least_days)
        if price is None:
            # no size of a market stands behind a peg: the shortfall alone, over the days of the level
            scale = math.sqrt(level.least_days / needed.horizons_days[-1])
            rates = [-math.expm1(scale * math.log1p(-float(sides[0].margin[-1, 0])))] * len(caps)
        else:
            ends = np.asarray(caps, dtype=np.float64)
            rates = marginal_rates(ends, needed_rates(one.name, sides, price.size, ends, days, policy)).tolist()
        weights += [max(1, BPS - math.ceil(round(min(rate, 1.0) * BPS, 6))) for rate in rates]
    return tuple(weights)
