"""Losses and expected shortfalls by scope, over the liquidity horizons of what is held, today and under stressed laws.

Written for one portfolio. A **scope** is a node, or (the last one) everything together; levels stand on the last axis.
Lines that take longer to close out than a horizon count again up to the next one (Basel MAR33.5). The stressed laws are
scaled by their own losses in the same way: a book whose legs hedge each other today has next to no shortfall to take a
ratio of, and still stands naked once the quicker leg is closed out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .batch import PortfolioArrays
from .margin import accumulate
from .requirement import liquidity_horizon_shortfall
from .risk import tail_rows
from .rounding import rounded
from .unified_batch import UnifiedArrays


class LineDays(NamedTuple):
    """Days that closing out takes by line: where its node sells alone, and where all nodes share the depth."""

    alone: Float[Array, " L"]
    together: Float[Array, " L"]


def with_total(nodes: Float[Array, "N *rest"]) -> Float[Array, "scopes *rest"]:
    """The nodes' values and behind them their sum, in order."""
    total = lax.fori_loop(0, nodes.shape[0], lambda n, so_far: so_far + nodes[n], jnp.zeros_like(nodes[0]))
    return jnp.concatenate([nodes, total[None]])


def scope_losses(portfolio: PortfolioArrays, losses: Float[Array, "L columns"]) -> Float[Array, "scopes columns"]:
    """Losses of every node, and of all of them, from those of the lines."""
    start = jnp.zeros((portfolio.node_is_real.shape[0], losses.shape[1]), losses.dtype)
    return with_total(accumulate(portfolio.line_node, lambda line: losses[line], start))


def moved_losses(
    portfolio: PortfolioArrays,
    unified: UnifiedArrays,
    change: Float[Array, "rows columns"],
    counted: Bool[Array, " L"] | None = None,
) -> Float[Array, "scopes columns"]:
    """Losses by scope where the rows change by `change`, of the `counted` lines, without a detour over the lines."""
    lines = unified.line_simulated if counted is None else unified.line_simulated & counted
    coefficient = jnp.where(lines[portfolio.leg_line], portfolio.leg_coefficient, 0.0).astype(change.dtype)
    start = jnp.zeros((portfolio.node_is_real.shape[0], change.shape[1]), change.dtype)
    nodes = accumulate(
        portfolio.line_node[portfolio.leg_line],
        lambda leg: rounded(-coefficient[leg] * change[portfolio.leg_row[leg]]),
        start,
    )
    return with_total(nodes)


def horizon_shortfall(
    es: Float[Array, "scopes levels"],
    losses_of: Callable[[Bool[Array, " L"]], Float[Array, "scopes scenarios"]],
    weights: Float[Array, " scenarios"],
    days: LineDays,
    *,
    levels: tuple[float, ...],
    horizons: tuple[float, ...],
) -> Float[Array, "scopes levels"]:
    """Expected shortfall over the liquidity horizons, from that over the first, `es`, and the losses of chosen lines.

    `es` itself, to the bit, where nothing slower than the first horizon loses anything. Never below 0 elsewhere, never
    smaller where a line is slower, and finite where the losses are. Lines beyond the last horizon count up to it.
    """
    if len(horizons) == 1:
        return es
    lengths = jnp.asarray(horizons, jnp.float64)

    def slower(horizon: Array) -> Float[Array, "scopes levels"]:
        """Shortfall of the lines that take longer than this horizon."""
        alone, together = days.alone > horizon, days.together > horizon

        def shortfall() -> Float[Array, "scopes levels"]:
            rows = jnp.concatenate([losses_of(alone)[:-1], losses_of(together)[-1:]])
            return tail_rows(rows, weights, levels)[1]

        # A branch and not a selection: most portfolios close out within the horizon and need none of this.
        return lax.cond(jnp.any(alone) | jnp.any(together), shortfall, lambda: jnp.zeros_like(es))

    nested = jnp.maximum(lax.map(slower, lengths[:-1]), 0.0)
    shortfalls = jnp.moveaxis(jnp.concatenate([jnp.maximum(es, 0.0)[None], nested]), 0, -1)
    scaled = jax.vmap(jax.vmap(lambda row: liquidity_horizon_shortfall(row, lengths, base_horizon=horizons[0])))
    return jnp.where(jnp.any(nested > 0.0, axis=0), scaled(shortfalls), es)


def stressed_shortfall(
    portfolio: PortfolioArrays,
    unified: UnifiedArrays,
    change: Float[Array, "laws rows stressed"],
    weights: Float[Array, "laws stressed"],
    days: LineDays,
    *,
    levels: tuple[float, ...],
    horizons: tuple[float, ...],
) -> Float[Array, "scopes levels"]:
    """The largest expected shortfall over the stressed laws, each over the liquidity horizons; 0 without a law."""
    start = jnp.zeros((portfolio.node_is_real.shape[0] + 1, len(levels)), jnp.float64)
    if change.shape[0] == 0:
        return start

    def worse(worst: Array, law: tuple[Array, Array]) -> tuple[Array, None]:
        of_law, shares = law
        es = tail_rows(moved_losses(portfolio, unified, of_law), shares, levels)[1]
        scaled = horizon_shortfall(
            es,
            lambda counted: moved_losses(portfolio, unified, of_law, counted),
            shares,
            days,
            levels=levels,
            horizons=horizons,
        )
        return jnp.maximum(worst, scaled), None

    return lax.scan(worse, start, (change, weights))[0]
