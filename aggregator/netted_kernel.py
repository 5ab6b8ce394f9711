"""The sweep's hot loop on the devices: netted portfolios in every scenario of a priced cube, arrays in and arrays out.

Scenarios are cut into tiles so small that what is computed of a portfolio stays in the processor's nearest memory;
tile by tile a block of portfolios passes, so the tile of the cube stays near as well. Where the ranges of the rows
decide a tile for an account or a portfolio (`netted_ranges`), only its loss is computed there. Only the losses of a
block outlive their tile, for the search of the largest: memory is set by the size of the block. Portfolios are split
over the devices. The rows of an account are added in the order of their numbers and every sum over scenarios has one
fixed order, so neither the device nor what else is in the shard changes a bit. Money in USD, losses positive; scenarios
are float32 changes to today's float64 figures, as in `margin.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from .netted_arrays import KNEES_TOGETHER, ROWS_TOGETHER, Block, Entries, ShardArrays
from .netted_ranges import DEBT, HEADROOM, VERDICT, TileRanges, charged_today, tile_ranges, tiles_in_doubt
from .one_kernel import one_kernel
from .weighted_tail import NO_LOSS, highest_tails, larger, weighted_tails

SCENARIOS_TOGETHER = 512
"""Scenarios of a tile, a divisor of `LANES`."""

LEVELS = (0.99, 0.995)
"""Confidence levels of the risk measures."""


class Figures(NamedTuple):
    """Results of one shard; money in USD."""

    var: Float[Array, "P levels"]
    es: Float[Array, "P levels"]
    worst: Float[Array, " P"]
    p_any: Float[Array, " P"]
    p_unified: Float[Array, " P"]
    p_account: Float[Array, "P A"]
    bad_debt: Float[Array, "P A"]


# Portfolios whose losses are kept at a time: few enough for the processor's memory, enough to share a tile of the cube.
_TOGETHER = 128
_FEWEST_TOGETHER = 16
# Account slots of such a block.
_ACCOUNTS_TOGETHER = 8192


_PARTS = 8


def _part_sums(values: Array) -> Float[Array, " parts"]:
    """Sums over the scenarios of a tile that are `_PARTS` apart, in one order, in float64 of what the dtype adds."""
    while values.shape[0] > _PARTS:
        width = max(values.shape[0] // 8, _PARTS)
        slices = [values[k : k + width] for k in range(0, values.shape[0], width)]
        values = _pairwise(slices)
    return values.astype(jnp.float64)


def _pairwise(terms: list[Array]) -> Array:
    while len(terms) > 1:
        terms = [left + right for left, right in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


class _Sums(NamedTuple):
    """Sums over scenarios of portfolios and their accounts, in `_PARTS` that are added at the end."""

    p_any: Float[Array, "P parts"]
    p_unified: Float[Array, "P parts"]
    p_account: Float[Array, "P A parts"]
    bad_debt: Float[Array, "P A parts"]


def _row(tiles: Array, tile: Array, row: Array) -> Float[Array, " tile"]:
    return lax.dynamic_slice(tiles, (tile, row, jnp.int32(0)), (1, 1, tiles.shape[2]))[0, 0]


def _account_changes(flat: Entries, tiles: Array, tile: Array, first: Array, groups: Array) -> Float[Array, "two tile"]:
    """Change of an account's market equity and headroom in the scenarios of a tile, its knees and hinges aside."""

    def of_group(group: Array) -> list[Array]:
        rows = [_row(tiles, tile, flat.row[group, k]) for k in range(ROWS_TOGETHER)]
        return [flat.coefficient[group, :, k][:, None] * row[None, :] for k, row in enumerate(rows)]

    def add(group: Array, total: Array) -> Array:
        return functools.reduce(jnp.add, of_group(group), total)

    return lax.fori_loop(first + 1, first + groups, add, functools.reduce(jnp.add, of_group(first)))


def _knee_changes(flat: Entries, tiles: Array, tile: Array, first: Array, groups: Array, room: Array) -> Array:
    """`room` less what the knees of an account take off it."""

    def subtract(group: Array, room: Array) -> Array:
        for k in range(KNEES_TOGETHER):
            row = _row(tiles, tile, flat.knee_row[group, k])
            weight, knee = flat.knee[group, 0, k], flat.knee[group, 1, k]
            room = room - weight * (larger(row, knee) - larger(knee, jnp.float32(0.0)))
        return room

    return lax.fori_loop(first, first + groups, subtract, room)


def _hinge_changes(flat: Entries, tiles: Array, tile: Array, first: Array, count: Array, room: Array) -> Array:
    """`room` less what the hinges of an account add to the requirement."""

    def subtract(hinge: Array, room: Array) -> Array:
        notional, settlement = (_row(tiles, tile, flat.hinge_rows[hinge, k]) for k in (0, 1))
        n, f, distance, slope, jump = (flat.hinge_figures[hinge, k] for k in range(5))
        moved = n * notional - f * settlement
        before = charged_today(distance, slope, jump)
        after = slope * (moved + distance) + jump * (1.0 + settlement)
        return room - (jnp.where(moved > -distance, after, jnp.float32(0.0)) - before)

    return lax.fori_loop(first, first + count, subtract, room)


def _market(
    rows: Array, coefficients: Array, tiles: Array, tile: Array, first: Array, groups: Array
) -> Float[Array, " tile"]:
    """Change of market equity alone, of groups of `rows` and their `coefficients`."""

    def of_group(group: Array) -> list[Array]:
        return [coefficients[group, 0, k] * _row(tiles, tile, rows[group, k]) for k in range(ROWS_TOGETHER)]

    def add(group: Array, total: Array) -> Array:
        return functools.reduce(jnp.add, of_group(group), total)

    return lax.fori_loop(first + 1, first + groups, add, functools.reduce(jnp.add, of_group(first)))


def _bit(doubts: Array, bit: int) -> Array:
    """1 where a bit is set."""
    return jnp.minimum(doubts & jnp.int32(bit), jnp.int32(1))


def _added(sums: Array, at: tuple[Array, ...], more: Float[Array, " parts"]) -> Array:
    """`sums` with `more` added in one place."""
    whole = (*at, jnp.int32(0))
    sizes = (*(1 for _ in at), _PARTS)
    return lax.dynamic_update_slice(sums, lax.dynamic_slice(sums, whole, sizes) + more.reshape(sizes), whole)


def _in_tile(
    tiles: Array,
    weights: Array,
    tile: Array,
    doubts: Array,
    real: Array,
    block: Block,
    flat: Entries,
    losses: Array,
    sums: _Sums,
) -> tuple[Array, _Sums]:
    """`losses` [tiles, P, tile] and `sums` with those of the first `real` portfolios of a block in a tile, whose
    scenarios count with `weights`.
    """
    width = tiles.shape[2]
    counted = lax.dynamic_index_in_dim(weights, tile, keepdims=False)

    def portfolio(p: Array, found: tuple[Array, _Sums]) -> tuple[Array, _Sums]:
        losses, sums = found

        def account(slot: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            at = (p, slot)

            def calm(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
                market = _market(flat.row, flat.coefficient, tiles, tile, block.first[at], block.groups[at])
                return (state[0] - market, *state[1:])

            def in_doubt(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
                loss, headroom, least, p_account, bad_debt = state
                changes = _account_changes(flat, tiles, tile, block.first[at], block.groups[at])
                room = _knee_changes(flat, tiles, tile, block.knee_first[at], block.knee_groups[at], changes[1])
                room = _hinge_changes(flat, tiles, tile, block.hinge_first[at], block.hinge_count[at], room)

                def judged(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
                    least, p_account = state
                    beyond = room - block.limit[at]
                    verdicts = _part_sums(jnp.where(beyond < 0, counted, 0.0))
                    return jnp.where(beyond < least, beyond, least), _added(p_account, at, verdicts)

                def owing(_: Array, bad_debt: Array) -> Array:
                    missing = larger(-block.equity[at] - changes[0], jnp.float32(0.0)).astype(counted.dtype)
                    return _added(bad_debt, at, _part_sums(missing * counted))

                least, p_account = lax.fori_loop(jnp.int32(0), _bit(doubt, VERDICT), judged, (least, p_account))
                bad_debt = lax.fori_loop(jnp.int32(0), _bit(doubt, DEBT), owing, bad_debt)
                return loss - changes[0], headroom + room, least, p_account, bad_debt

            doubt = doubts[(tile, *at)]
            state = lax.fori_loop(_bit(doubt, HEADROOM), jnp.int32(1), calm, state)
            return lax.fori_loop(jnp.int32(0), _bit(doubt, HEADROOM), in_doubt, state)

        of = lax.dynamic_slice(doubts, (tile, p, jnp.int32(0)), (1, 1, doubts.shape[2]))[0, 0]
        accounts_of = of[:-1]
        doubt, verdict = (jnp.max(_bit(accounts_of, bit)) for bit in (HEADROOM, VERDICT))

        def at_ease(_: Array, loss: Array) -> Array:
            first, groups = block.pooled_first[p], block.pooled_groups[p]
            return loss - _market(flat.pooled_row, flat.pooled, tiles, tile, first, groups)

        zero = jnp.zeros(width, jnp.float32)
        start = (zero, zero, zero, sums.p_account, sums.bad_debt)
        accounts = block.accounts[p] * doubt
        loss, headroom, least, p_account, bad_debt = lax.fori_loop(jnp.int32(0), accounts, account, start)
        loss = lax.fori_loop(doubt, jnp.int32(1), at_ease, loss)
        loss = jnp.where(counted > 0, loss, NO_LOSS)

        def some(_: Array, p_any: Array) -> Array:
            return _added(p_any, (p,), _part_sums(jnp.where(least < 0, counted, 0.0)))

        def pooled(_: Array, p_unified: Array) -> Array:
            return _added(p_unified, (p,), _part_sums(jnp.where(headroom < block.unified_limit[p], counted, 0.0)))

        p_any = lax.fori_loop(jnp.int32(0), verdict, some, sums.p_any)
        p_unified = lax.fori_loop(jnp.int32(0), of[-1], pooled, sums.p_unified)
        losses = lax.dynamic_update_slice(losses, loss[None, None], (tile, p, jnp.int32(0)))
        return losses, _Sums(p_any, p_unified, p_account, bad_debt)

    return lax.fori_loop(jnp.int32(0), real, portfolio, (losses, sums))


def _of_block(
    tiles: Array, weights: Array, ranges: TileRanges, real: Array, block: Block, flat: Entries, losses: Array
) -> tuple[Array, _Sums]:
    """Losses [tiles, P, tile] of the first `real` portfolios of a block, and their sums; `losses` is overwritten."""
    size, slots = block.first.shape
    doubts = tiles_in_doubt(ranges, real, block, flat)

    def of_tile(tile: Array, found: tuple[Array, _Sums]) -> tuple[Array, _Sums]:
        return _in_tile(tiles, weights, tile, doubts, real, block, flat, *found)

    one, each = (jnp.zeros((*shape, _PARTS), jnp.float64) for shape in ((size,), (size, slots)))
    return lax.fori_loop(jnp.int32(0), jnp.int32(tiles.shape[0]), of_tile, (losses, _Sums(one, one, each, each)))


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
    together = min(_TOGETHER, size, max(_FEWEST_TOGETHER, _ACCOUNTS_TOGETHER // slots))
    counted = (weights > 0).astype(jnp.float32) if equal else weights
    counted = counted.reshape(-1, SCENARIOS_TOGETHER)
    blocks = Block(*(getattr(part, name) for name in Block._fields))
    flat = Entries(*(getattr(part, name) for name in Entries._fields))
    ranges = tile_ranges(tiles)
    compute = one_kernel(_of_block)
    search = one_kernel(functools.partial(_tails if equal else _weighted_tails, scenarios=scenarios))
    per_scenario = 1.0 / scenarios if equal else 1.0 / jnp.sum(weights)

    def of_block(number: Array, found: tuple[Array, Figures]) -> tuple[Array, Figures]:
        losses, figures = found
        first = number * jnp.int32(together)
        few = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, first, together), blocks)
        real = jnp.minimum(part.real - first, jnp.int32(together))
        losses, sums = compute(tiles, counted, ranges, real, few, flat, losses)
        tails = search(losses, real) if equal else search(losses, counted, real)
        totals = (_pairwise([parts[..., k] for k in range(_PARTS)]) for parts in sums)
        of = Figures(*tails, *(total * per_scenario for total in totals))
        return losses, jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, first, 0), figures, of)

    levels, one, each = (jnp.zeros((size, *shape), jnp.float64) for shape in ((len(LEVELS),), (), (slots,)))
    nothing = Figures(levels, levels, one, one, one, each, each)
    count = (part.real + jnp.int32(together - 1)) // jnp.int32(together)
    losses = jnp.zeros((tiles.shape[0], together, SCENARIOS_TOGETHER), jnp.float32)
    return lax.fori_loop(jnp.int32(0), count, of_block, (losses, nothing))[1]


def _tails(losses: Float[Array, "tiles P tile"], real: Array, *, scenarios: int) -> tuple[Array, Array, Array]:
    """(VaR [P, levels], ES [P, levels], largest loss [P]) of the first `real` portfolios, whose scenarios weigh the
    same.
    """
    return _of_each(lambda p: highest_tails(losses, p, scenarios=scenarios, levels=LEVELS), losses.shape[1], real)


def _weighted_tails(
    losses: Float[Array, "tiles P tile"], weights: Float[Array, "tiles tile"], real: Array, *, scenarios: int
) -> tuple[Array, Array, Array]:
    """The same for scenarios of other weights."""

    def of_portfolio(p: Array) -> tuple[Array, Array, Array]:
        row = lax.dynamic_slice_in_dim(losses, p, 1, axis=1).reshape(-1)
        return weighted_tails(row, weights.reshape(-1), scenarios=scenarios, levels=LEVELS)

    return _of_each(of_portfolio, losses.shape[1], real)


def _of_each(
    tails: Callable[[Array], tuple[Array, Array, Array]], size: int, real: Array
) -> tuple[Array, Array, Array]:
    def tail(p: Array, found: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        var, es, worst = (lax.dynamic_update_index_in_dim(f, o, p, 0) for f, o in zip(found, tails(p), strict=True))
        return var, es, worst

    levels = jnp.zeros((size, len(LEVELS)), jnp.float64)
    return lax.fori_loop(jnp.int32(0), real, tail, (levels, levels, jnp.zeros(size, jnp.float64)))
