"""The requirement stack of one portfolio: from expected shortfall, grid, floor and add-ons to the unified margin.

Pure functions for one portfolio in float64, mapped by the caller. Losses and requirements are positive, in USD; rates
and shares are fractions. Letters: J liquidity buckets, n parts of a whole (venues, underlyings).

A component that is NaN counts as +inf and shows as an infinite requirement; nothing here returns NaN. A fungibility
that is NaN counts as 0, no offset across venues.

    ES_blend = max(ES_cur, (1-w) ES_cur + w ES_str)                 w = 0.25: EMIR, RTS 153/2013 art. 28(1)(b)
    R_ideal  = max(ES_blend, G, F) + LIQ + CONC + BASIS + WWR + VENUE
    R_eff    = R_ideal                                              if R_ideal >= R_silo
             = R_silo - kappa (R_silo - R_ideal)                    otherwise, kappa = min(offset cap, fungibility)

The first branch is hidden illiquidity: add-ons that grow faster than a position cost more for the whole than for its
parts, so a unified margin may exceed the sum of the venues' and is never clipped to it (Glasserman, Moallemi and Yuan,
"Hidden Illiquidity with Multiple Central Counterparties", 2016). The offset cap of 0.8 is RTS 153/2013 art. 27.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .errors import ConfigurationError
from .rounding import rounded
from .rules.risk_unit import ordered_sum

Amount = Float[Array, ""]


class AddOnTotals(NamedTuple):
    """What the add-ons of one portfolio come to, USD each; see `add_ons`."""

    liquidity: ArrayLike
    concentration: ArrayLike
    basis: ArrayLike
    wrong_way: ArrayLike
    venue: ArrayLike


NO_ADD_ONS = AddOnTotals(0.0, 0.0, 0.0, 0.0, 0.0)


class OffsetBenefit(NamedTuple):
    """What the parts of a whole together require, and by how much that is below their sum, before and after the cap."""

    requirement: Amount
    uncapped: Amount
    capped: Amount


class RequirementStack(NamedTuple):
    """Every component of one portfolio's requirement, USD unless it says otherwise.

    `offset_share` is the kappa that applied, a fraction. `margin_efficiency` = `effective` / `silo`, above 1 where the
    hidden-illiquidity branch holds; 1 where both are 0, infinite where only `silo` is. `offset_benefit` = `silo` -
    `effective`, negative in that branch.
    """

    current_shortfall: Amount
    stressed_shortfall: Amount
    blended_shortfall: Amount
    grid: Amount
    floor: Amount
    base: Amount
    liquidity: Amount
    concentration: Amount
    basis: Amount
    wrong_way: Amount
    venue: Amount
    ideal: Amount
    silo: Amount
    offset_share: Amount
    effective: Amount
    margin_efficiency: Amount
    offset_benefit: Amount


def _component(value: ArrayLike) -> Array:
    value = jnp.asarray(value, dtype=jnp.float64)
    return jnp.where(jnp.isnan(value), jnp.inf, value)


def _share(value: ArrayLike) -> Array:
    value = jnp.asarray(value, dtype=jnp.float64)
    return jnp.clip(jnp.where(jnp.isnan(value), 0.0, value), 0.0, 1.0)


def _between(low: Array, high: Array, share: Array) -> Array:
    """high - share (high - low) for low <= high, within them to the bit; infinite ends included."""
    # As two rising terms, so that rounding never makes a larger component a smaller requirement.
    kept = jnp.where(share < 1.0, rounded((1.0 - share) * high), 0.0)
    given = jnp.where(share > 0.0, rounded(share * low), 0.0)
    return jnp.clip(kept + given, low, high)


def blended_shortfall(current: ArrayLike, stressed: ArrayLike, *, stress_weight: ArrayLike) -> Amount:
    """max(ES_cur, (1-w) ES_cur + w ES_str), USD: a calm stressed window never lowers the requirement."""
    current, stressed, weight = _component(current), _component(stressed), _share(stress_weight)
    lower = _between(jnp.minimum(current, stressed), jnp.maximum(current, stressed), 1.0 - weight)
    return jnp.where(stressed > current, lower, current)


def base_requirement(shortfall: ArrayLike, grid: ArrayLike, floor: ArrayLike) -> Amount:
    """max(ES_blend, G, F), USD, never below 0; `floor` = floor rate times gross notional."""
    least = jnp.maximum(jnp.maximum(_component(grid), _component(floor)), 0.0)
    return jnp.maximum(_component(shortfall), least)


def ideal_requirement(base: ArrayLike, add_ons: AddOnTotals) -> Amount:
    """Base plus add-ons, USD, added in the order of `AddOnTotals`."""
    total = _component(base)
    for amount in add_ons:
        total = total + rounded(_component(amount))
    return total


def capped_offset(standalone: Float[Array, " n"], combined: ArrayLike, *, cap: ArrayLike) -> OffsetBenefit:
    """Requirement of `combined` with at most `cap` (a fraction) of its benefit against the sum of its parts.

    A whole that requires more than its parts keeps that: its benefit is negative and not capped.
    """
    silo, ideal, share = ordered_sum(_component(standalone)), _component(combined), _share(cap)
    requirement = jnp.where(ideal >= silo, ideal, _between(jnp.minimum(ideal, silo), silo, share))
    return OffsetBenefit(requirement, _difference(silo, ideal), _difference(silo, requirement))


def _difference(a: Array, b: Array) -> Array:
    """a - b, 0 for equal values, two infinite ones included."""
    same = a == b
    return jnp.where(same, 0.0, a - jnp.where(same, 0.0, b))


def effective_requirement(
    ideal: ArrayLike, silo: ArrayLike, *, offset_cap: ArrayLike, fungibility: ArrayLike
) -> OffsetBenefit:
    """R_eff and the benefit that it realises: kappa = min(`offset_cap`, `fungibility`), each within 0..1.

    `fungibility` is 1 inside one venue and, across venues, the share of the pooling benefit that transfers can realise.
    """
    standalone = jnp.asarray(silo, dtype=jnp.float64)[None]
    return capped_offset(standalone, ideal, cap=jnp.minimum(_share(offset_cap), _share(fungibility)))


def requirement_stack(
    *,
    current_shortfall: ArrayLike,
    stressed_shortfall: ArrayLike,
    stress_weight: ArrayLike,
    grid: ArrayLike,
    floor: ArrayLike,
    add_ons: AddOnTotals,
    silo: ArrayLike,
    offset_cap: ArrayLike,
    fungibility: ArrayLike,
) -> RequirementStack:
    """The whole stack of one portfolio at one confidence.

    `silo` is the sum of the same stack's ideal requirements of the venues, each alone. A portfolio on one venue has
    silo = ideal, and then the effective requirement is that too.
    """
    blended = blended_shortfall(current_shortfall, stressed_shortfall, stress_weight=stress_weight)
    base = base_requirement(blended, grid, floor)
    ideal = ideal_requirement(base, add_ons)
    silo = _component(silo)
    offset = effective_requirement(ideal, silo, offset_cap=offset_cap, fungibility=fungibility)
    return RequirementStack(
        current_shortfall=_component(current_shortfall),
        stressed_shortfall=_component(stressed_shortfall),
        blended_shortfall=blended,
        grid=_component(grid),
        floor=_component(floor),
        base=base,
        liquidity=_component(add_ons.liquidity),
        concentration=_component(add_ons.concentration),
        basis=_component(add_ons.basis),
        wrong_way=_component(add_ons.wrong_way),
        venue=_component(add_ons.venue),
        ideal=ideal,
        silo=silo,
        offset_share=jnp.minimum(_share(offset_cap), _share(fungibility)),
        effective=offset.requirement,
        margin_efficiency=_ratio(offset.requirement, silo, both_zero=1.0),
        offset_benefit=offset.capped,
    )


def initial_requirement(maintenance: ArrayLike, at_initial_level: ArrayLike, *, scale: ArrayLike) -> Amount:
    """Initial requirement, USD: the larger of `scale` (1.25) times R_eff at 0.99 and R_eff at 0.995, >= maintenance."""
    maintenance = _component(maintenance)
    scaled = rounded(jnp.maximum(jnp.asarray(scale, dtype=jnp.float64), 1.0) * maintenance)
    return jnp.maximum(scaled, _component(at_initial_level))


def _ratio(numerator: Array, denominator: Array, *, both_zero: float) -> Array:
    # A denormal amount counts as 0: the device may or may not flush it, comparisons and divisions differently.
    least = jnp.finfo(jnp.float64).tiny
    usable = (jnp.abs(denominator) >= least) & jnp.isfinite(denominator)
    quotient = numerator / jnp.where(usable, denominator, 1.0)
    signed = jnp.where(numerator >= least, jnp.inf, jnp.where(numerator <= -least, -jnp.inf, both_zero))
    of_infinite = jnp.where(jnp.isinf(numerator), 1.0, 0.0)
    return jnp.where(usable, quotient, jnp.where(jnp.isinf(denominator), of_infinite, signed))


def checked_horizons(horizons: Sequence[float], *, base_horizon: float) -> tuple[float, ...]:
    """Host side: `horizons` in days, positive and rising from `base_horizon`; else `ConfigurationError`."""
    if not horizons or not base_horizon > 0.0 or horizons[0] != base_horizon:
        raise ConfigurationError(
            f"liquidity horizons must begin with the base horizon of {base_horizon!r} days, found {list(horizons)}"
        )
    if any(not later > earlier for earlier, later in itertools.pairwise(horizons)):
        raise ConfigurationError(f"liquidity horizons must rise, found {list(horizons)}")
    return tuple(float(horizon) for horizon in horizons)


def liquidity_horizon_shortfall(
    shortfalls: Float[Array, " J"], horizons: Float[Array, " J"], *, base_horizon: ArrayLike
) -> Amount:
    """Expected shortfall over liquidity buckets, USD, by the root of squares.

        ES = sqrt( sum_j ( ES_T(factors with horizon >= LH_j) sqrt((LH_j - LH_{j-1}) / T) )^2 ),  LH_0 = 0

    Shortfalls are over the base horizon T; horizons in the unit of T, rising (`checked_horizons`). A bucket with the
    horizon of the one before adds nothing, which pads a shorter list.

    Source: Basel Committee, MAR33.5.
    """
    earlier = jnp.concatenate([jnp.zeros(1, horizons.dtype), horizons[:-1]])
    periods = jnp.maximum(horizons - earlier, 0.0) / jnp.asarray(base_horizon, dtype=jnp.float64)
    amounts = _component(shortfalls)
    # The square of the largest leaves the sum, so that no square overflows and a single bucket comes out to the bit.
    scaled = jnp.where(periods > 0.0, jnp.abs(amounts) * jnp.sqrt(periods), 0.0)
    largest = jnp.max(scaled)
    usable = (largest > 0.0) & jnp.isfinite(largest)
    parts = jnp.where(usable, scaled / jnp.where(usable, largest, 1.0), 0.0)
    return jnp.where(usable, largest * jnp.sqrt(ordered_sum(parts * parts)), largest)
