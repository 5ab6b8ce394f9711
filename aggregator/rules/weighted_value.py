"""Value of balances and settled profit, weighted by sign and slice: what an account's equity is in the venue's eyes.

A **group** is what nets before it is weighted: one asset of a multi-asset collateral account, or a whole account when
every weight is one. A positive net value counts slice by slice: with floors f_k (f_0 = 0) and steps s_k of the weight
at them, `sum_k s_k * max(v - f_k, 0)`; a negative one counts at the liability weight. The same form read as a
requirement, `value * (1 - weight)`, is linear in the values and needs no function here: account.py packs it as linear
requirement rows. Padded slices have step 0.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..rounding import rounded


def weighted_value(
    net_value: Float[Array, "..."],
    floor: Float[Array, " slices"],
    step: Float[Array, " slices"],
    liability_weight: Float[Array, "..."],
) -> Float[Array, "..."]:
    """What a net value counts; continuous, 0 at 0."""
    total = rounded(jnp.maximum(net_value, 0.0) * step[0])
    for k in range(1, floor.shape[0]):
        total = total + rounded(jnp.maximum(net_value - floor[k], 0.0) * step[k])
    return total + rounded(jnp.minimum(net_value, 0.0) * liability_weight)


def weighted_value_change(
    net_today: Float[Array, "..."],
    net_change: Float[Array, "..."],
    floor: Float[Array, " slices"],
    step: Float[Array, " slices"],
    liability_weight: Float[Array, "..."],
    *,
    floor_change: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Change of `weighted_value` when the net value moves from `net_today` by `net_change` and every floor by the
    fraction `floor_change` of itself, in the precision of `net_change`.

    With a = v - f and d = dv - f * fraction: (a + d)^+ - a^+ = max(d, -a) - max(-a, 0), and the same with minima: no
    difference of two large numbers is taken.
    """
    single = net_change.dtype
    total = rounded(step[0].astype(single) * _gain(-net_today.astype(single), net_change))
    for k in range(1, floor.shape[0]):
        moved = net_change - rounded(floor[k].astype(single) * floor_change)
        total = total + rounded(step[k].astype(single) * _gain((floor[k] - net_today).astype(single), moved))
    return total + rounded(liability_weight.astype(single) * negative_part_change(net_today, net_change))


def negative_part_change(net_today: Float[Array, "..."], net_change: Float[Array, "..."]) -> Float[Array, "..."]:
    """min(v + d, 0) - min(v, 0), in the precision of d."""
    turn = -net_today.astype(net_change.dtype)
    return jnp.minimum(net_change, turn) - jnp.minimum(turn, 0.0)


def _gain(turn: Float[Array, "..."], change: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(change, turn) - jnp.maximum(turn, 0.0)
