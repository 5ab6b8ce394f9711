"""Standard errors of risk measures from batches of scenarios: the spread of what each batch says by itself.

A batch is a run of scenarios in the order of their numbers, because that is what the scrambles of a point set are, and
because neighbours of a history resemble each other. Every scenario of positive weight is in one batch. Letters: B
batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .risk import SCENARIO_TILE, tail_rows, tile_sum
from .rounding import rounded
from .rules.risk_unit import ordered_sum

BATCHES = 8
"""Batches behind a standard error: the scrambles of a point set, or as many parts of the scenarios."""

LEAST_SCENARIOS = BATCHES * SCENARIO_TILE
"""With fewer real scenarios the tail of a batch is two or three of them, and nothing is said."""

_LEAST_EFFECTIVE = 2.0


def batch_standard_error(figures: Float[Array, " B"], masses: Float[Array, " B"]) -> Float[Array, ""]:
    """Standard error of a figure from its values in independent batches that hold `masses` of the probability.

        se^2 = sum_b m_b^2 (x_b - mean)^2 / (1 - 2 M3 / M2 + M2),   M_k = sum_b m_b^k,   mean = sum_b m_b x_b

    with the masses m_b summing to 1. For independent batches of one variance v the mean has variance v M2, and the sum
    v (M2 - 2 M3 + M2^2) in expectation: the denominator makes it unbiased, and equal masses give the plain s / sqrt(B).
    NaN where a mass is 0, and where the batches are worth fewer than two equal ones, 1 / M2 < 2: nothing to compare.
    """
    total = ordered_sum(masses)
    share = masses / jnp.where(total > 0.0, total, 1.0)
    squared = rounded(share * share)
    second, third = ordered_sum(squared), ordered_sum(squared * share)
    away = figures - ordered_sum(share * figures)
    spread = ordered_sum(squared * rounded(away * away))
    known = jnp.all(masses > 0.0) & (_LEAST_EFFECTIVE * second <= 1.0)
    unbiased = 1.0 - 2.0 * third / jnp.where(second > 0.0, second, 1.0) + second
    return jnp.where(known, jnp.sqrt(spread / jnp.where(known, unbiased, 1.0)), jnp.nan)


def tail_standard_errors(
    losses: Float[Array, " scenarios"], weights: Float[Array, " scenarios"], levels: Sequence[float]
) -> tuple[Float[Array, " levels"], Float[Array, " levels"]]:
    """Standard errors of VaR and ES of one loss row, USD, from `BATCHES` batches of as many scenarios as possible each.

    Scenarios count up to the last of positive weight; padding behind it changes no bit. NaN with fewer than
    `LEAST_SCENARIOS`, and where `batch_standard_error` is.
    """
    count = losses.shape[0]
    per_batch = -(-count // BATCHES)
    window = -(-per_batch // SCENARIO_TILE) * SCENARIO_TILE
    if count < LEAST_SCENARIOS:
        unknown = jnp.full(len(levels), jnp.nan, jnp.float64)
        return unknown, unknown
    # Behind the end there is a window more, so that no slice is moved back to fit.
    padded, shares = jnp.pad(losses, (0, window)), jnp.pad(weights, (0, window))
    real = jnp.max(jnp.where(weights > 0.0, jnp.arange(1, count + 1), 0))
    places = jnp.arange(window)

    def of_batch(batch: Array) -> tuple[Array, Array, Array]:
        first, behind = batch * real // BATCHES, (batch + 1) * real // BATCHES
        inside = places < behind - first
        own = jnp.where(inside, lax.dynamic_slice_in_dim(shares, first, window), 0.0)
        mass = tile_sum(own)
        rows = lax.dynamic_slice_in_dim(padded, first, window)[None]
        var, es = tail_rows(rows, own / jnp.where(mass > 0.0, mass, 1.0), levels)
        return var[0], es[0], mass

    var, es, masses = lax.map(of_batch, jnp.arange(BATCHES))
    masses = jnp.where(real >= LEAST_SCENARIOS, masses, 0.0)

    def errors(values: Float[Array, "B levels"]) -> Float[Array, " levels"]:
        return jnp.stack([batch_standard_error(values[:, level], masses) for level in range(len(levels))])

    return errors(var), errors(es)
