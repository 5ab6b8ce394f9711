"""Value of balances and settled profit, weighted by sign: what an account's equity is in the venue's eyes.

A **group** is what nets before it is weighted: one asset of a multi-asset collateral account, or a whole account when
every weight is one. The same form read as a requirement, `value * (1 - weight)`, is linear in the values and needs no
function here: portfolio.py packs it as linear requirement rows.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..rounding import rounded


def weighted_value(
    net_value: Float[Array, "..."], asset_weight: Float[Array, "..."], liability_weight: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`net value * asset weight` where positive, `net value * liability weight` where negative; continuous, 0 at 0."""
    asset = rounded(jnp.maximum(net_value, 0.0) * asset_weight)
    return asset + rounded(jnp.minimum(net_value, 0.0) * liability_weight)


def weighted_value_change(
    net_today: Float[Array, "..."],
    net_change: Float[Array, "..."],
    asset_weight: Float[Array, "..."],
    liability_weight: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Change of `weighted_value` when the net value moves from `net_today` by `net_change`, in the latter's precision.

    (v + d)^+ - v^+ = max(d, -v) - max(-v, 0) and the same with minima: no difference of two large numbers is taken.
    """
    turn = -net_today.astype(net_change.dtype)
    gain = jnp.maximum(net_change, turn) - jnp.maximum(turn, 0.0)
    loss = jnp.minimum(net_change, turn) - jnp.minimum(turn, 0.0)
    asset = rounded(asset_weight.astype(net_change.dtype) * gain)
    return asset + rounded(liability_weight.astype(net_change.dtype) * loss)
