"""Losses of netted portfolios in every scenario, and their tails: one portfolio after the other.

The rows of a portfolio's accounts count together, so one long pass over a few long rows of the cube gives its losses,
which are searched while they are in the processor's nearest memory and then forgotten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .netted_arrays import ROWS_TOGETHER
from .weighted_tail import LANES, NO_LOSS, highest_tails, weighted_tails

LEVELS = (0.99, 0.995)
"""Confidence levels of the risk measures."""

# Width in which the largest losses are kept apart, a divisor of `LANES`.
_LANES = 512

Tails = tuple[Float[Array, "P levels"], Float[Array, "P levels"], Float[Array, " P"]]
"""VaR, ES and the largest loss."""


class Pooled(NamedTuple):
    """Rows of all accounts of portfolios together, as losses in USD: portfolio p has `groups[p]` entries (at least one)
    from `first[p]` on of `rows` and `coefficients`, as `netted_arrays.ShardArrays` has them.
    """

    first: Int[Array, " P"]
    groups: Int[Array, " P"]
    rows: Int[Array, "pooled together"]
    coefficients: Float[Array, "pooled together"]


def equal_tails_of_block(
    change: Float[Array, "rows scenarios"],
    real: Array,
    pooled: Pooled,
    *,
    scenarios: int,
) -> Tails:
    """Tails of the first `real` portfolios of a block; the `scenarios` that count come first and weigh the same."""

    def counts(at: Array) -> Array:
        return at + jnp.arange(LANES, dtype=jnp.int32) < scenarios

    def tails(losses: Array) -> tuple[Array, Array, Array]:
        return highest_tails(losses.reshape(-1, _LANES), scenarios=scenarios, levels=LEVELS)

    return _of_each(tails, counts, change, real, pooled)


def weighted_tails_of_block(
    change: Float[Array, "rows scenarios"],
    weights: Float[Array, " scenarios"],
    real: Array,
    pooled: Pooled,
    *,
    scenarios: int,
) -> Tails:
    """The same for any weights, of which some `scenarios` are above 0."""

    def counts(at: Array) -> Array:
        return lax.dynamic_slice(weights, (at,), (LANES,)) > 0

    def tails(losses: Array) -> tuple[Array, Array, Array]:
        return weighted_tails(losses, weights, scenarios=scenarios, levels=LEVELS)

    return _of_each(tails, counts, change, real, pooled)


def _of_each(
    tails: Callable[[Array], tuple[Array, Array, Array]],
    counts: Callable[[Array], Array],
    change: Array,
    real: Array,
    pooled: Pooled,
) -> Tails:
    size, total = pooled.first.shape[0], change.shape[1]

    def portfolio(p: Array, found: tuple[Array, Tails]) -> tuple[Array, Tails]:
        losses, figures = found

        def of_pass(number: Array, losses: Array) -> Array:
            at = number * jnp.int32(LANES)
            loss = _loss(change, at, pooled.first[p], pooled.groups[p], pooled)
            return lax.dynamic_update_slice(losses, jnp.where(counts(at), loss, NO_LOSS), (at,))

        losses = lax.fori_loop(jnp.int32(0), jnp.int32(total // LANES), of_pass, losses)
        var, es, worst = (
            lax.dynamic_update_index_in_dim(f, o, p, 0) for f, o in zip(figures, tails(losses), strict=True)
        )
        return losses, (var, es, worst)

    levels = jnp.zeros((size, len(LEVELS)), jnp.float64)
    nothing = jnp.zeros(total, jnp.float32), (levels, levels, jnp.zeros(size, jnp.float64))
    return lax.fori_loop(jnp.int32(0), real, portfolio, nothing)[1]


def _loss(change: Array, at: Array, first: Array, groups: Array, pooled: Pooled) -> Float[Array, " lanes"]:
    """The loss of a portfolio in `LANES` scenarios from `at` on, from its pooled rows."""

    def terms(group: Array) -> list[Array]:
        rows = [lax.dynamic_slice(change, (pooled.rows[group, k], at), (1, LANES))[0] for k in range(ROWS_TOGETHER)]
        return [pooled.coefficients[group, k] * row for k, row in enumerate(rows)]

    def add(group: Array, total: Array) -> Array:
        return functools.reduce(jnp.add, terms(group), total)

    return lax.fori_loop(first + 1, first + groups, add, functools.reduce(jnp.add, terms(first)))
