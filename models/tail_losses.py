"""Losses that a forecast of the tail is trained on: pinball for the quantile, FZ0 for the expected shortfall beyond it.

Both are consistent: the true quantile and the true pair (quantile, expected shortfall) have the least expected loss.
Losses and margins are positive fractions, or both divided by the same scale.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def smooth_pinball(
    loss: Float[Array, ""], margin: Float[Array, " levels"], levels: Float[Array, " levels"], *, width: float
) -> Float[Array, " levels"]:
    """p (l - m)^+ + (1 - p) (m - l)^+ with its corner rounded within `width` of l = m; at least the plain pinball.

    |u| / 2 + (p - 1/2) u with |u| replaced by u^2 / (2 width) + width / 2 where |u| < width, so that the gradient in
    the margin is continuous. `width` 0 is the plain loss. Koenker and Bassett, "Regression quantiles", 1978.
    """
    excess = loss - margin
    distance = jnp.abs(excess)
    if width > 0.0:
        distance = jnp.where(distance < width, excess**2 / (2.0 * width) + width / 2.0, distance)
    return 0.5 * distance + (levels - 0.5) * excess


def fissler_ziegel(
    loss: Float[Array, ""],
    margin: Float[Array, " levels"],
    shortfall: Float[Array, " levels"],
    levels: Float[Array, " levels"],
) -> Float[Array, " levels"]:
    """FZ0: 1[l >= m] (l - m) / ((1 - p) e) + m / e + ln e - 1, with e = `shortfall` >= m > 0.

    Patton, Ziegel and Chen, "Dynamic semiparametric models for expected shortfall (and value-at-risk)", 2019, in the
    sign of losses. Scaling loss, margin and shortfall by c adds ln c.
    """
    over = jnp.maximum(loss - margin, 0.0)
    return over / ((1.0 - levels) * shortfall) + margin / shortfall + jnp.log(shortfall) - 1.0
