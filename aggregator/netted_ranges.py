"""What the ranges of the rows in a tile of scenarios decide before anything is computed in each of them.

In most tiles most accounts stay far from their limits whatever its scenarios combine: then only the loss is needed. The
calmer the scenarios of a tile, the more is decided, so it pays to put calm scenarios together. A decision hangs on the
account, its portfolio and the tile alone, so it is the same in every shard.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .netted_arrays import KNEES_TOGETHER, ROWS_TOGETHER, Block, Entries
from .weighted_tail import larger


class TileRanges(NamedTuple):
    """The least and the largest change of every row in the scenarios of each tile."""

    lowest: Float[Array, "rows tiles"]
    highest: Float[Array, "rows tiles"]


def tile_ranges(tiles: Float[Array, "tiles rows tile"]) -> TileRanges:
    """Elementwise from step to step, because a library reduction goes through one number after the other."""
    low = high = tiles
    while (width := low.shape[2] // 2) > 0:
        low = -larger(-low[..., :width], -low[..., width:])
        high = larger(high[..., :width], high[..., width:])
    return TileRanges(low[..., 0].T, high[..., 0].T)


def tiles_in_doubt(ranges: TileRanges, real: Array, block: Block, flat: Entries) -> Int[Array, "tiles P A1"]:
    """1 where the ranges of the rows leave open whether an account is liquidated, or owes more than it has, or the
    pooled portfolio is short, in some scenario of a tile; 0 where none of it can be, so that only its loss is to be
    computed. The last slot is the pooled portfolio.
    """
    size, slots = block.first.shape
    count = ranges.lowest.shape[1]

    def portfolio(p: Array, doubts: Array) -> Array:
        def account(slot: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            doubts, pooled = state
            at = (p, slot)

            def add(group: Array, least: tuple[Array, Array]) -> tuple[Array, Array]:
                market, room = least
                for k in range(ROWS_TOGETHER):
                    low, high = (lax.dynamic_index_in_dim(r, flat.row[group, k], keepdims=False) for r in ranges)
                    of_market, of_room = flat.coefficient[group, 0, k], flat.coefficient[group, 1, k]
                    market = market + of_market * jnp.where(of_market > 0, low, high)
                    room = room + of_room * jnp.where(of_room > 0, low, high)
                return market, room

            def subtract(group: Array, room: Array) -> Array:
                for k in range(KNEES_TOGETHER):
                    low, high = (lax.dynamic_index_in_dim(r, flat.knee_row[group, k], keepdims=False) for r in ranges)
                    weight, knee = flat.knee[group, 0, k], flat.knee[group, 1, k]
                    worst = jnp.where(weight > 0, high, low)
                    room = room - weight * (larger(worst, knee) - larger(knee, jnp.float32(0.0)))
                return room

            nothing = jnp.zeros(count, jnp.float32)
            first, knees = block.first[at], block.knee_first[at]
            market, room = lax.fori_loop(first, first + block.groups[at], add, (nothing, nothing))
            room = lax.fori_loop(knees, knees + block.knee_groups[at], subtract, room)
            # What hinges may require is not bounded here: they are rare.
            room = jnp.where(block.hinge_count[at] > 0, -jnp.inf, room)
            safe = (room >= block.limit[at]) & (market >= -block.equity[at])
            doubt = jnp.where(safe, jnp.int32(0), jnp.int32(1))
            return lax.dynamic_update_slice(doubts, doubt[None, None], (*at, jnp.int32(0))), pooled + room

        nothing = jnp.zeros(count, jnp.float32)
        accounts = block.accounts[p]
        doubts, pooled = lax.fori_loop(jnp.int32(0), accounts, account, (doubts, nothing))
        short = jnp.where(pooled >= block.unified_limit[p], jnp.int32(0), jnp.int32(1))
        of = lax.dynamic_slice_in_dim(doubts, p, 1)
        # The last slot is the pooled portfolio, which needs the headroom of all accounts.
        of = jnp.where((jnp.arange(slots + 1) == slots)[None, :, None], jnp.int32(0), of) | short[None, None]
        return lax.dynamic_update_slice_in_dim(doubts, of, p, 0)

    doubts = jnp.zeros((size, slots + 1, count), jnp.int32)
    return lax.fori_loop(jnp.int32(0), real, portfolio, doubts).transpose(2, 0, 1)
