"""The sweep's hot loop for a GPU: blocks of portfolios side by side, scenario tile by scenario tile, in plain XLA.

The arrays and figures of `netted_kernel`; rows of all accounts of a block are added group by group, the statistics of
a tile are taken before the next one, and only the losses of the block outlive it, for the search of their largest.
The figures equal those of the other body to float32 rounding: a verdict may differ where a change of the headroom lies
within rounding of its limit.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .netted_arrays import KNEES_TOGETHER, ROWS_TOGETHER, ShardArrays
from .netted_kernel import Figures
from .netted_losses import LEVELS
from .netted_ranges import charged_today
from .risk import tail_rows
from .weighted_tail import NO_LOSS, equal_tails


@functools.partial(jax.jit, static_argnames=("scenarios", "equal", "tile"))
def evaluate_dense(
    shard: ShardArrays, change: Array, weights: Array, *, scenarios: int, equal: bool, tile: int = 1024
) -> Figures:
    """Figures of every portfolio of a shard that is packed for one device.

    `tile` scenarios at a time, a divisor of their padded number (raises `ValueError` otherwise). What is kept is of
    the size portfolios x scenarios: choose the shard by the memory of the device.
    """
    if change.shape[1] % tile:
        raise ValueError(f"tiles of {tile} scenarios do not divide {change.shape[1]}")
    part = jax.tree.map(lambda leaf: leaf[0], shard)
    size, slots = part.first.shape
    most_groups, most_knees, most_hinges = (jnp.max(n) for n in (part.groups, part.knee_groups, part.hinge_count))
    counted = weights if not equal else (weights > 0).astype(jnp.float64) / scenarios

    def account_changes(rows: Array) -> tuple[Array, Array]:
        """Market equity and headroom [P, A, tile]."""

        def add(number: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
            there = (number < part.groups).astype(jnp.float32)
            group = jnp.where(number < part.groups, part.first + number, 0)
            market, room = total
            for k in range(ROWS_TOGETHER):
                row = rows[part.row[group, k]]
                market = market + (part.coefficient[group, 0, k] * there)[:, :, None] * row
                room = room + (part.coefficient[group, 1, k] * there)[:, :, None] * row
            return market, room

        def bend(number: Array, room: Array) -> Array:
            real = number < part.knee_groups
            group = jnp.where(real, part.knee_first + number, 0)
            for k in range(KNEES_TOGETHER):
                weight, knee = ((part.knee[group, n, k] * real)[:, :, None] for n in (0, 1))
                moved = jnp.maximum(rows[part.knee_row[group, k]], knee) - jnp.maximum(knee, 0.0)
                room = room - weight * moved
            return room

        def subtract(number: Array, room: Array) -> Array:
            real = number < part.hinge_count
            hinge = jnp.where(real, part.hinge_first + number, 0)
            n, f, distance, slope, jump = (part.hinge_figures[hinge, k][:, :, None] for k in range(5))
            notional, settlement = (rows[part.hinge_rows[hinge, k]] for k in (0, 1))
            moved = n * notional - f * settlement
            before = charged_today(distance, slope, jump)
            after = jnp.where(moved > -distance, slope * (moved + distance) + jump * (1.0 + settlement), 0.0)
            return room - jnp.where(real[:, :, None], after - before, 0.0)

        zero = jnp.zeros((size, slots, tile), jnp.float32)
        market, room = lax.fori_loop(jnp.int32(0), most_groups, add, (zero, zero))
        room = lax.fori_loop(jnp.int32(0), most_knees, bend, room)
        return market, lax.fori_loop(jnp.int32(0), most_hinges, subtract, room)

    def of_tile(number: Array) -> tuple[Array, ...]:
        rows = lax.dynamic_slice_in_dim(change, number * tile, tile, axis=1)
        w = lax.dynamic_slice_in_dim(counted, number * tile, tile)
        market, room = account_changes(rows)
        gone = room < part.limit[:, :, None]
        missing = jnp.maximum(-part.equity[:, :, None] - market, 0.0).astype(jnp.float64)
        loss = jnp.where(w[None, :] > 0, -jnp.sum(market, axis=1), NO_LOSS)
        short = jnp.sum(room, axis=1) < part.unified_limit[:, None]

        def expected(values: Array) -> Array:
            return jnp.sum(values * jnp.broadcast_to(w, values.shape), axis=-1)

        return (
            loss,
            expected(gone.astype(jnp.float64)),
            expected(missing),
            expected(jnp.any(gone, axis=1).astype(jnp.float64)),
            expected(short.astype(jnp.float64)),
        )

    tiles = jnp.arange(change.shape[1] // tile, dtype=jnp.int32)
    losses, *sums = lax.map(of_tile, tiles)
    loss = jnp.moveaxis(losses, 0, 1).reshape(size, -1)
    p_account, bad_debt, p_any, p_unified = (jnp.sum(s, axis=0) for s in sums)
    if equal:
        var, es, worst = jax.vmap(lambda row: equal_tails(row, scenarios=scenarios, levels=LEVELS))(loss)
    else:
        var, es = tail_rows(loss, weights, LEVELS)
        worst = jnp.max(loss, axis=1).astype(jnp.float64)
    real = jnp.arange(size) < part.real
    figures = Figures(var, es, worst, p_any, p_unified, p_account, bad_debt)
    kept = jax.tree.map(lambda f: jnp.where(real.reshape(-1, *[1] * (f.ndim - 1)), f, 0.0), figures)
    return jax.tree.map(lambda f: f[None], kept)
