"""The sweep's hot loop on the devices: netted portfolios in every scenario of a priced cube, arrays in and arrays out.

Scenarios are cut into tiles so small that what is computed of a portfolio stays in the processor's nearest memory;
tile by tile all portfolios pass, so the tile of the cube stays near as well. Only the losses of a shard outlive their
tile, for the search of the largest: memory is set by the size of the shard. Portfolios are split over the devices. The
rows of an account are added in the order of their numbers and every sum over scenarios has one fixed order, so neither
the device nor what else is in the shard changes a bit. Money in USD, losses positive; scenarios are float32 changes to
today's float64 figures, as in `margin.py`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from .one_kernel import one_kernel
from .risk import tail_rows
from .weighted_tail import NO_LOSS, equal_tails, larger

ROWS_TOGETHER = 4
"""Rows of the cube that are read together; an account's rows are padded to a multiple of it."""

SCENARIOS_TOGETHER = 512
"""Scenarios of a tile, a divisor of `LANES`."""

LEVELS = (0.99, 0.995)
"""Confidence levels of the risk measures."""


class PricedCube(NamedTuple):
    """What all portfolios share: changes of the rows in every scenario (padded to whole lanes with zeros), weights
    (zero for the padding), 1 for every scenario of positive weight, how many these are, and whether all weigh the same.
    """

    change: Any
    weights: Any
    counts: Any
    scenarios: int
    equal: bool


class ShardArrays(NamedTuple):
    """Portfolios of one number of account slots on every device (leading axis `devices`, left out below).

    The rows of an account are `groups` entries from `first` on of `row` and `coefficient` (market, headroom); hinges of
    an account likewise. The arrays are padded; `real` portfolios are computed.
    """

    real: Int[Array, ""]
    accounts: Int[Array, " P"]
    first: Int[Array, "P A"]
    groups: Int[Array, "P A"]
    limit: Float[Array, "P A"]
    equity: Float[Array, "P A"]
    unified_limit: Float[Array, " P"]
    hinge_first: Int[Array, "P A"]
    hinge_count: Int[Array, "P A"]
    row: Int[Array, "groups together"]
    coefficient: Float[Array, "groups two together"]
    hinge_rows: Int[Array, "hinges two"]
    hinge_figures: Float[Array, "hinges figures"]


class Figures(NamedTuple):
    """Results of one shard; money in USD."""

    var: Float[Array, "P levels"]
    es: Float[Array, "P levels"]
    worst: Float[Array, " P"]
    p_any: Float[Array, " P"]
    p_unified: Float[Array, " P"]
    p_account: Float[Array, "P A"]
    bad_debt: Float[Array, "P A"]


# Portfolios of one call of the compiled block.
_TOGETHER = 16


def _sum(values: Array) -> Array:
    """Sum of a tile: by slices and halves, in one order."""
    width = values.shape[0] // 8
    out = values[:width]
    for k in range(1, 8):
        out = out + values[k * width : (k + 1) * width]
    while width > 1:
        width //= 2
        out = out[:width] + out[width:]
    return out[0]


class _Block(NamedTuple):
    """A few portfolios of a shard, fields as there."""

    accounts: Array
    first: Array
    groups: Array
    limit: Array
    equity: Array
    unified_limit: Array
    hinge_first: Array
    hinge_count: Array


class _Flat(NamedTuple):
    """Rows and hinges of all accounts of a shard, fields as there."""

    row: Array
    coefficient: Array
    hinge_rows: Array
    hinge_figures: Array


class _OfTile(NamedTuple):
    """Losses of portfolios in the scenarios of a tile, and sums over them."""

    loss: Float[Array, "P tile"]
    p_any: Float[Array, " P"]
    p_unified: Float[Array, " P"]
    p_account: Float[Array, "P A"]
    bad_debt: Float[Array, "P A"]


def _account_changes(flat: _Flat, rows: Array, first: Array, groups: Array) -> Float[Array, "two tile"]:
    """Change of an account's market equity and headroom in the scenarios of a tile."""

    def add(group: Array, total: Array) -> Array:
        for k in range(ROWS_TOGETHER):
            row = lax.dynamic_index_in_dim(rows, flat.row[group, k], keepdims=False)
            total = total + flat.coefficient[group, :, k][:, None] * row[None, :]
        return total

    return lax.fori_loop(first, first + groups, add, jnp.zeros((2, rows.shape[1]), rows.dtype))


def _hinge_changes(flat: _Flat, rows: Array, first: Array, count: Array, changes: Array) -> Array:
    """`changes` of an account less what its hinges add to the requirement."""

    def subtract(hinge: Array, changes: Array) -> Array:
        notional, settlement = (rows[flat.hinge_rows[hinge, k]] for k in (0, 1))
        n, f, distance, slope, jump = (flat.hinge_figures[hinge, k] for k in range(5))
        moved = n * notional - f * settlement
        before = slope * larger(distance, jnp.float32(0.0)) + jnp.where(distance > 0, jump, jnp.float32(0.0))
        after = slope * (moved + distance) + jump * (1.0 + settlement)
        gain = jnp.where(moved > -distance, after, jnp.float32(0.0)) - before
        at = (jnp.int32(1), jnp.int32(0))
        held = lax.dynamic_slice(changes, at, (1, changes.shape[1]))
        return lax.dynamic_update_slice(changes, held - gain[None, :], at)

    return lax.fori_loop(first, first + count, subtract, changes)


def _block_in_tile(rows: Array, counted: Array, block: _Block, *arrays: Array) -> _OfTile:
    """A few portfolios in the scenarios of a tile, each with weight `counted`; `arrays` are those of the shard's rows
    and hinges.
    """
    flat = _Flat(*arrays)
    size, slots = block.first.shape
    tile = rows.shape[1]

    def portfolio(p: Array, found: _OfTile) -> _OfTile:
        def account(slot: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            loss, headroom, gone_any, p_account, bad_debt = state
            at = (p, slot)
            changes = _account_changes(flat, rows, block.first[at], block.groups[at])
            changes = _hinge_changes(flat, rows, block.hinge_first[at], block.hinge_count[at], changes)
            gone = changes[1] < block.limit[at]
            missing = larger(-block.equity[at] - changes[0], jnp.float32(0.0)).astype(counted.dtype)
            return (
                loss - changes[0],
                headroom + changes[1],
                jnp.where(gone, jnp.float32(1.0), gone_any),
                lax.dynamic_update_slice(p_account, _sum(jnp.where(gone, counted, 0.0))[None, None], at),
                lax.dynamic_update_slice(bad_debt, _sum(missing * counted)[None, None], at),
            )

        zero = jnp.zeros(tile, jnp.float32)
        start = (zero, zero, zero, found.p_account, found.bad_debt)
        loss, headroom, gone_any, p_account, bad_debt = lax.fori_loop(jnp.int32(0), block.accounts[p], account, start)
        loss = jnp.where(counted > 0, loss, NO_LOSS)
        short = jnp.where(headroom < block.unified_limit[p], counted, 0.0)
        return _OfTile(
            lax.dynamic_update_slice(found.loss, loss[None], (p, jnp.int32(0))),
            lax.dynamic_update_slice(found.p_any, _sum(jnp.where(gone_any > 0, counted, 0.0))[None], (p,)),
            lax.dynamic_update_slice(found.p_unified, _sum(short)[None], (p,)),
            p_account,
            bad_debt,
        )

    start = _empty(size, slots, tile, counted.dtype)
    return lax.fori_loop(jnp.int32(0), jnp.int32(size), portfolio, start)


def _empty(size: int, slots: int, scenarios: int, dtype: Any) -> _OfTile:
    one, each = jnp.zeros(size, dtype), jnp.zeros((size, slots), dtype)
    return _OfTile(jnp.zeros((size, scenarios), jnp.float32), one, one, each, each)


def tiles_of(change: Any) -> Any:
    """Changes [rows, scenarios] as tiles [tiles, rows, `SCENARIOS_TOGETHER`]."""
    rows, scenarios = change.shape
    return change.reshape(rows, scenarios // SCENARIOS_TOGETHER, SCENARIOS_TOGETHER).transpose(1, 0, 2)


@functools.partial(jax.jit, static_argnames=("scenarios", "equal", "devices"))
def evaluate_shard(
    shard: ShardArrays, tiles: Array, weights: Array, *, scenarios: int, equal: bool, devices: int
) -> Figures:
    """Figures of every portfolio of a shard; those of padded portfolios are zeros. One program for each shape.

    `tiles` as `tiles_of`, `weights` of the padded scenarios; `equal`: whether the `scenarios` with a positive weight
    come first and weigh the same.
    """

    def block(part: ShardArrays, tiles: Array, weights: Array) -> Figures:
        one = jax.tree.map(lambda leaf: leaf[0], part)
        found = _of_device(one, tiles, weights, scenarios=scenarios, equal=equal)
        return jax.tree.map(lambda leaf: leaf[None], found)

    if devices == 1:
        return block(shard, tiles, weights)
    mesh = jax.make_mesh((devices,), ("portfolios",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    split, whole = PartitionSpec("portfolios"), PartitionSpec()
    return jax.shard_map(
        block, mesh=mesh, in_specs=(split, whole, whole), out_specs=split, check_vma=False
    )(shard, tiles, weights)  # fmt: skip


def _of_device(part: ShardArrays, tiles: Array, weights: Array, *, scenarios: int, equal: bool) -> Figures:
    size, slots = part.first.shape
    counted = (weights > 0).astype(jnp.float32) if equal else weights
    blocks = _Block(
        part.accounts,
        part.first,
        part.groups,
        part.limit,
        part.equity,
        part.unified_limit,
        part.hinge_first,
        part.hinge_count,
    )
    compute = one_kernel(_block_in_tile)
    number = (part.real + jnp.int32(_TOGETHER - 1)) // jnp.int32(_TOGETHER)

    def of_tile(tile: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        rows = lax.dynamic_index_in_dim(tiles, tile, keepdims=False)
        at = tile * jnp.int32(SCENARIOS_TOGETHER)
        weight = lax.dynamic_slice_in_dim(counted, at, SCENARIOS_TOGETHER)

        def of_block(k: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            first = k * jnp.int32(_TOGETHER)
            few = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, first, _TOGETHER), blocks)
            found = compute(rows, weight, few, part.row, part.coefficient, part.hinge_rows, part.hinge_figures)

            def added(total: Array, more: Array) -> Array:
                so_far = lax.dynamic_slice_in_dim(total, first, _TOGETHER)
                return lax.dynamic_update_slice_in_dim(total, so_far + more.astype(jnp.float64), first, 0)

            loss = lax.dynamic_update_slice(sums[0], found.loss, (first, at))
            return (loss, *(added(total, more) for total, more in zip(sums[1:], found[1:], strict=True)))

        return lax.fori_loop(jnp.int32(0), number, of_block, sums)

    start = _empty(size, slots, 1, jnp.float64)[1:]
    losses = jnp.zeros((size, weights.shape[0]), jnp.float32)
    loss, *sums = lax.fori_loop(jnp.int32(0), jnp.int32(tiles.shape[0]), of_tile, (losses, *start))
    per_scenario = 1.0 / scenarios if equal else 1.0 / jnp.sum(weights)
    p_any, p_unified, p_account, bad_debt = (total * per_scenario for total in sums)

    search = one_kernel(functools.partial(equal_tails, scenarios=scenarios, levels=LEVELS))

    def tail(p: Array, found: tuple[Array, ...]) -> tuple[Array, ...]:
        row = lax.dynamic_index_in_dim(loss, p, keepdims=False)
        if equal:
            of_row = search(row)
        else:
            var, es = (rows[0] for rows in tail_rows(row[None, :], weights, LEVELS))
            of_row = var, es, jnp.max(row).astype(jnp.float64)
        return tuple(lax.dynamic_update_index_in_dim(f, o, p, 0) for f, o in zip(found, of_row, strict=True))

    levels = jnp.zeros((size, len(LEVELS)), jnp.float64)
    nothing = (levels, levels, jnp.zeros(size, jnp.float64))
    var, es, worst = lax.fori_loop(jnp.int32(0), part.real, tail, nothing)
    return Figures(var, es, worst, p_any, p_unified, p_account, bad_debt)
