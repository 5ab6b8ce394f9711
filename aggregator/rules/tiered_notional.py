"""Requirement of a position by notional tiers: a rate and a deduction per tier, or the integral of a step function.

With floors f_k (f_0 = 0), rates r_k, deductions d_k, steps g_k = r_k - r_{k-1} (g_0 = r_0) and jumps
j_k = f_k g_k - (d_k - d_{k-1}) (j_0 = -d_0):

    M(N) = N * r_n - d_n in the tier n of N (f_n < N) = sum over f_k < N of g_k * (N - f_k) + j_k

A venue whose deductions continue the tier below has no jumps, and M is the integral of its rates: one formula for rates
that rise, fall or repeat. A table that charges the whole notional at the tier's rate has deductions of 0, and jumps.
The initial requirement by tiers is the same function of other rates. Padded tiers have step and jump 0 and any finite
floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ..rounding import rounded

_ROUNDING = 1e-12
# A jump below this share of what the tiers below it require is binary rounding of a table that continues.


class PackedTiers(NamedTuple):
    """One instrument's tiers on the host, unpadded, in its settlement asset; steps and jumps as the module says."""

    floor: np.ndarray
    step: np.ndarray
    jump: np.ndarray
    initial_step: np.ndarray
    initial_jump: np.ndarray


def tiered_requirement(
    notional: Float[Array, ""],
    floor: Float[Array, " tiers"],
    step: Float[Array, " tiers"],
    jump: Float[Array, " tiers"] | None = None,
) -> Float[Array, ""]:
    """Requirement of absolute `notional` (settlement asset); 0 at notional 0; continuous without jumps."""
    by_rate = rounded(step * jnp.maximum(notional - floor, 0.0))
    by_jump = None if jump is None else jnp.where(notional > floor, jump, 0.0)

    # One by one, as below: a reduction would let the padded length choose the order of the additions.
    def add(tier: Array, total: Array) -> Array:
        total = total + by_rate[tier]
        return total if by_jump is None else total + by_jump[tier]

    return lax.fori_loop(0, floor.shape[0], add, jnp.zeros_like(notional))


def tiered_requirement_change(
    notional_today: Float[Array, ""],
    notional_change: Float[Array, ""],
    floor: Float[Array, " tiers"],
    step: Float[Array, " tiers"],
    jump: Float[Array, " tiers"] | None = None,
) -> Float[Array, ""]:
    """M(N + dN) - M(N) without the cancellation of two large numbers, in the precision of `notional_change` (float32).

    Per tier, with a = N - f: (a + d)^+ - a^+ = max(d, -a) - max(-a, 0), exactly 0 while the tier stays out of reach;
    the jump counts by whether a + d and a are positive. The distance to the floor is taken in float64 before it is
    rounded.
    """
    distance = (notional_today - floor).astype(notional_change.dtype)
    rate = step.astype(notional_change.dtype)
    gone = jnp.maximum(-distance, 0.0)
    before = (notional_today > floor).astype(notional_change.dtype)
    jumps = None if jump is None else jump.astype(notional_change.dtype)
    used = (step != 0.0) if jump is None else (step != 0.0) | (jump != 0.0)

    # A loop, because written out it is a third of every program that prices tiers, and seconds of its compilation.
    # Tiers are added one by one up to the last that counts, so padding changes no bit.
    def add(tier: Array, total: Array) -> Array:
        total = total + rounded(rate[tier] * (jnp.maximum(notional_change, -distance[tier]) - gone[tier]))
        if jumps is not None:
            reached = (notional_change > -distance[tier]).astype(notional_change.dtype)
            total = total + rounded(jumps[tier] * (reached - before[tier]))
        return total

    last = jnp.max(jnp.where(used, jnp.arange(1, floor.shape[0] + 1, dtype=jnp.int32), 0), initial=0)
    return lax.fori_loop(0, last, add, jnp.zeros_like(notional_change))


def pack_tiers(
    floors: Sequence[float] | np.ndarray,
    rates: Sequence[float] | np.ndarray,
    deductions: Sequence[float] | np.ndarray,
    initial_rates: Sequence[float] | np.ndarray,
    *,
    initial_is_integral: bool,
) -> PackedTiers:
    """Steps and jumps of one table; floors ascend and start at 0.

    The initial rates hold for the whole notional of their tier, or are integrated over the notional.
    """
    floor = np.asarray(floors, np.float64)
    initial_step = _steps(initial_rates)
    initial_jump = np.zeros_like(floor) if initial_is_integral else floor * initial_step
    step = _steps(rates)
    jump = floor * step - _steps(deductions)
    below = np.abs(np.asarray(deductions)) + floor * np.asarray(rates)
    return PackedTiers(floor, step, np.where(np.abs(jump) <= _ROUNDING * below, 0.0, jump), initial_step, initial_jump)


def rate_at_quantity(rows: Sequence[Any], quantity: Decimal, *, whole: bool = False) -> float:
    """Rate of the whole position where floors and deductions count contracts: `rate - deduction / quantity` in the
    tier of `quantity` (floor < quantity), the tier's rate where `whole`, and the first tier's for no quantity.

    `rows` are rows of `margin_tiers` by ascending floor.
    """
    held = [row for row in rows if row["notional_floor"] < quantity] or rows[:1]
    rate, deduction = held[-1]["maintenance_rate"], held[-1]["deduction"]
    return float(rate if whole or quantity == 0 else rate - deduction / quantity)


def _steps(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.diff(np.concatenate([[0.0], np.asarray(values, np.float64)]))
