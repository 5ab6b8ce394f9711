"""Verdicts on netted portfolios and what their accounts owe, tile of scenarios by tile of scenarios.

A tile of the cube is so small that it stays in the processor's memory while a block of portfolios passes. Where the
ranges of its rows decide an account (`netted_ranges`), nothing of it is computed there.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .netted_arrays import KNEES_TOGETHER, ROWS_TOGETHER, Block, Entries
from .netted_ranges import DEBT, VERDICT, charged_today, tiles_in_doubt
from .weighted_tail import larger

# Accumulators of a sum over scenarios: every scenario of a tile goes to the one of its number.
_PARTS = 8
_MARKET, _HEADROOM = 0, 1


class Sums(NamedTuple):
    """Sums over scenarios of portfolios and their accounts."""

    p_any: Float[Array, "P ..."]
    p_unified: Float[Array, "P ..."]
    p_account: Float[Array, "P A ..."]
    bad_debt: Float[Array, "P A ..."]


def block_sums(
    tiles: Float[Array, "tiles rows tile"],
    lowest: Float[Array, "rows tiles"],
    highest: Float[Array, "rows tiles"],
    counted: Float[Array, "tiles tile"],
    real: Array,
    block: Block,
    flat: Entries,
) -> Sums:
    """Sums of the first `real` portfolios of a block: of the scenarios, weighted by `counted`, in which an account, any
    account or the pooled portfolio is liquidated, and of what accounts owe. The cube as in `TiledCube`.
    """
    size, slots = block.first.shape
    doubts = tiles_in_doubt(lowest, highest, real, block, flat)

    def of_tile(tile: Array, sums: Sums) -> Sums:
        return _in_tile(tiles, counted, tile, doubts, real, block, flat, sums)

    one, each = (jnp.zeros((*shape, _PARTS), jnp.float64) for shape in ((size,), (size, slots)))
    sums = lax.fori_loop(jnp.int32(0), jnp.int32(tiles.shape[0]), of_tile, Sums(one, one, each, each))
    return Sums(*(_whole(parts) for parts in sums))


def weight_sum(counted: Float[Array, "tiles tile"]) -> Float[Array, ""]:
    """The sum of all weights in the order of `block_sums`, so that of what happens in every scenario it is the same."""

    def of_tile(tile: Array, parts: Array) -> Array:
        return parts + _part_sums(lax.dynamic_index_in_dim(counted, tile, keepdims=False))

    none = jnp.zeros(_PARTS, jnp.float64)
    return _whole(lax.fori_loop(jnp.int32(0), jnp.int32(counted.shape[0]), of_tile, none))


def _in_tile(
    tiles: Array,
    counted: Array,
    tile: Array,
    doubts: Array,
    real: Array,
    block: Block,
    flat: Entries,
    sums: Sums,
) -> Sums:
    """`sums` with those of the first `real` portfolios in a tile."""
    weights = lax.dynamic_index_in_dim(counted, tile, keepdims=False)
    zero = jnp.zeros(tiles.shape[2], jnp.float32)

    def portfolio(p: Array, sums: Sums) -> Sums:
        of = lax.dynamic_slice(doubts, (tile, p, jnp.int32(0)), (1, 1, doubts.shape[2]))[0, 0]
        short, verdict = of[-1], jnp.max(_bit(of[:-1], VERDICT))
        in_doubt = jnp.max(jnp.minimum(of, jnp.int32(1)))

        def account(slot: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            at = (p, slot)
            doubt = doubts[(tile, *at)]
            judge, owe = _bit(doubt, VERDICT), _bit(doubt, DEBT)

            def with_room(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
                headroom, least, p_account = state
                room = _change(flat, _HEADROOM, tiles, tile, block.first[at], block.groups[at])
                room = _knee_changes(flat, tiles, tile, block.knee_first[at], block.knee_groups[at], room)
                room = _hinge_changes(flat, tiles, tile, block.hinge_first[at], block.hinge_count[at], room)

                def judged(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
                    least, p_account = state
                    beyond = room - block.limit[at]
                    verdicts = _part_sums(jnp.where(beyond < 0, weights, 0.0))
                    return jnp.where(beyond < least, beyond, least), _added(p_account, at, verdicts)

                least, p_account = lax.fori_loop(jnp.int32(0), judge, judged, (least, p_account))
                headroom = lax.fori_loop(jnp.int32(0), short, lambda _, total: total + room, headroom)
                return headroom, least, p_account

            def owing(_: Array, bad_debt: Array) -> Array:
                market = _change(flat, _MARKET, tiles, tile, block.first[at], block.groups[at])
                missing = larger(-block.equity[at] - market, jnp.float32(0.0)).astype(weights.dtype)
                return _added(bad_debt, at, _part_sums(missing * weights))

            *of_room, bad_debt = state
            of_room = lax.fori_loop(jnp.int32(0), jnp.maximum(judge, short), with_room, tuple(of_room))
            return *of_room, lax.fori_loop(jnp.int32(0), owe, owing, bad_debt)

        def some(_: Array, p_any: Array) -> Array:
            return _added(p_any, (p,), _part_sums(jnp.where(least < 0, weights, 0.0)))

        def pooled(_: Array, p_unified: Array) -> Array:
            return _added(p_unified, (p,), _part_sums(jnp.where(headroom < block.unified_limit[p], weights, 0.0)))

        start = (zero, zero, sums.p_account, sums.bad_debt)
        accounts = block.accounts[p] * in_doubt
        headroom, least, p_account, bad_debt = lax.fori_loop(jnp.int32(0), accounts, account, start)
        p_any = lax.fori_loop(jnp.int32(0), verdict, some, sums.p_any)
        p_unified = lax.fori_loop(jnp.int32(0), short, pooled, sums.p_unified)
        return Sums(p_any, p_unified, p_account, bad_debt)

    return lax.fori_loop(jnp.int32(0), real, portfolio, sums)


def _row(tiles: Array, tile: Array, row: Array) -> Float[Array, " tile"]:
    return lax.dynamic_slice(tiles, (tile, row, jnp.int32(0)), (1, 1, tiles.shape[2]))[0, 0]


def _change(flat: Entries, which: int, tiles: Array, tile: Array, first: Array, groups: Array) -> Float[Array, " tile"]:
    """Change of an account's market equity or headroom in the scenarios of a tile, its knees and hinges aside."""

    def of_group(group: Array) -> list[Array]:
        return [flat.coefficient[group, which, k] * _row(tiles, tile, flat.row[group, k]) for k in range(ROWS_TOGETHER)]

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


def _bit(doubts: Array, bit: int) -> Array:
    """1 where a bit is set."""
    return jnp.minimum(doubts & jnp.int32(bit), jnp.int32(1))


def _part_sums(values: Array) -> Float[Array, " parts"]:
    """Sums over the scenarios of a tile that are `_PARTS` apart, in one order, in float64 of what the dtype adds."""
    while values.shape[0] > _PARTS:
        width = max(values.shape[0] // 8, _PARTS)
        slices = [values[k : k + width] for k in range(0, values.shape[0], width)]
        values = _pairwise(slices)
    return values.astype(jnp.float64)


def _whole(parts: Array) -> Array:
    return _pairwise([parts[..., k] for k in range(_PARTS)])


def _pairwise(terms: list[Array]) -> Array:
    while len(terms) > 1:
        terms = [left + right for left, right in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


def _added(sums: Array, at: tuple[Array, ...], more: Float[Array, " parts"]) -> Array:
    """`sums` with `more` added in one place."""
    whole = (*at, jnp.int32(0))
    sizes = (*(1 for _ in at), _PARTS)
    return lax.dynamic_update_slice(sums, lax.dynamic_slice(sums, whole, sizes) + more.reshape(sizes), whole)
