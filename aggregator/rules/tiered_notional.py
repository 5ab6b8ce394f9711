"""Requirement of a position by notional tiers: the integral of a step function of rates over notional.

With floors f_k (f_0 = 0), rates r_k and increments g_k = r_k - r_{k-1} (g_0 = r_0):

    M(N) = sum_k g_k * max(N - f_k, 0)        = N * r_n - deduction_n in the tier n of N

which is one formula for rates that rise, fall or repeat. Venues that publish a rate and a deduction (Binance `cum`,
Hyperliquid deductions) publish the same function. Padded tiers have increment 0 and any finite floor.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..rounding import rounded


class TierTable(NamedTuple):
    """One instrument's tiers, in the instrument's settlement asset."""

    floor: Float[Array, " tiers"]
    increment: Float[Array, " tiers"]
    """Step of the maintenance rate at the floor."""
    initial_rate: Float[Array, " tiers"]
    """Initial rate of the whole notional when it lies in the tier (1 / the tier's maximum leverage)."""


def tiered_requirement(
    notional: Float[Array, ""], floor: Float[Array, " tiers"], increment: Float[Array, " tiers"]
) -> Float[Array, ""]:
    """Maintenance requirement of absolute `notional` (settlement asset); 0 at notional 0, continuous in it."""
    # One by one, as below: a reduction would let the padded length choose the order of the additions.
    total = jnp.zeros_like(notional)
    for tier in range(floor.shape[0]):
        total = total + rounded(increment[tier] * jnp.maximum(notional - floor[tier], 0.0))
    return total


def tiered_requirement_change(
    notional_today: Float[Array, ""],
    notional_change: Float[Array, ""],
    floor: Float[Array, " tiers"],
    increment: Float[Array, " tiers"],
) -> Float[Array, ""]:
    """M(N + dN) - M(N) without the cancellation of two large numbers, in the precision of `notional_change` (float32).

    Per tier, with a = N - f: (a + d)^+ - a^+ = max(d, -a) - max(-a, 0), exactly 0 while the tier stays out of reach.
    The distance to the floor is taken in float64 before it is rounded.
    """
    distance = (notional_today - floor).astype(notional_change.dtype)
    step = increment.astype(notional_change.dtype)
    # Tiers added one by one: padded tiers add exact zeros behind the real ones, so padding changes no bit.
    total = jnp.zeros_like(notional_change)
    for tier in range(floor.shape[0]):
        gone = jnp.maximum(-distance[tier], 0.0)
        total = total + rounded(step[tier] * (jnp.maximum(notional_change, -distance[tier]) - gone))
    return total


def tier_initial_rate(notional: Float[Array, ""], table: TierTable) -> Float[Array, ""]:
    """Initial rate of the tier that holds `notional`; at a floor the lower tier still applies."""
    inside = jnp.sum((notional > table.floor) & (table.initial_rate > 0.0))
    return table.initial_rate[jnp.maximum(inside - 1, 0)]


def pack_tiers(
    floors: np.ndarray, maintenance_rates: np.ndarray, initial_rates: np.ndarray, *, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Host arrays (floor, increment, initial_rate) of one table padded to `size`; floors ascend and start at 0."""
    floor = np.zeros(size)
    increment = np.zeros(size)
    initial = np.zeros(size)
    count = len(floors)
    floor[:count] = floors
    floor[count:] = floors[-1]
    increment[:count] = np.diff(np.concatenate([[0.0], maintenance_rates]))
    initial[:count] = initial_rates
    return floor, increment, initial
