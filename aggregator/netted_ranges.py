"""What the ranges of the rows in a tile of scenarios decide before anything is computed in each of them.

In most tiles most accounts stay far from their limits whatever its scenarios combine: nothing is computed there. The
calmer the scenarios of a tile, the more is decided, so it pays to put calm scenarios together. A decision hangs on the
account, its portfolio and the tile alone, so it is the same in every shard.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .netted_arrays import KNEES_TOGETHER, ROWS_TOGETHER, Block, Entries
from .weighted_tail import larger

VERDICT = 1
"""The account may be liquidated."""
DEBT = 2
"""It may owe more than it has."""


def charged_today(distance: Array, slope: Array, jump: Array) -> Array:
    """What a hinge requires today."""
    return slope * larger(distance, jnp.float32(0.0)) + jnp.where(distance > 0, jump, jnp.float32(0.0))


def moved_range(
    n: Array, f: Array, notional: tuple[Array, Array], settlement: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The least and the largest `n dN - f dS` of a hinge, of the least and largest changes of its two rows; n is no
    negative number.
    """
    falls, rises = (jnp.where(f > 0, settlement[k], settlement[1 - k]) for k in (0, 1))
    return n * notional[0] - f * rises, n * notional[1] - f * falls


def tiles_in_doubt(
    lowest: Float[Array, "rows tiles"], highest: Float[Array, "rows tiles"], real: Array, block: Block, flat: Entries
) -> Int[Array, "tiles P A1"]:
    """What the ranges of the rows leave open of each account in some scenario of a tile, as bits (`VERDICT`, `DEBT`).
    The last slot is the pooled portfolio: 1 where it may be short.
    """
    size, slots = block.first.shape
    ranges, count = (lowest, highest), lowest.shape[1]

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

            def charge(hinge: Array, room: Array) -> Array:
                notional, settlement = (
                    tuple(lax.dynamic_index_in_dim(r, flat.hinge_rows[hinge, k], keepdims=False) for r in ranges)
                    for k in (0, 1)
                )
                n, f, distance, slope, jump = (flat.hinge_figures[hinge, k] for k in range(5))
                least, most = (moved + distance for moved in moved_range(n, f, notional, settlement))
                sloped = larger(slope * larger(least, jnp.float32(0.0)), slope * most)
                charged = sloped + larger(jump * (1.0 + settlement[0]), jump * (1.0 + settlement[1]))
                # Passed in none, in all or in some scenarios of the tile.
                charged = jnp.where(least > 0, charged, larger(charged, jnp.float32(0.0)))
                charged = jnp.where(most > 0, charged, jnp.float32(0.0))
                return room - (charged - charged_today(distance, slope, jump))

            nothing = jnp.zeros(count, jnp.float32)
            first, knees, hinges = block.first[at], block.knee_first[at], block.hinge_first[at]
            market, room = lax.fori_loop(first, first + block.groups[at], add, (nothing, nothing))
            room = lax.fori_loop(knees, knees + block.knee_groups[at], subtract, room)
            room = lax.fori_loop(hinges, hinges + block.hinge_count[at], charge, room)
            # Not "below": NaN is in doubt.
            verdict = jnp.where(room >= block.limit[at], jnp.int32(0), jnp.int32(VERDICT))
            debt = jnp.where(market >= -block.equity[at], jnp.int32(0), jnp.int32(DEBT))
            doubt = verdict | debt
            return lax.dynamic_update_slice(doubts, doubt[None, None], (*at, jnp.int32(0))), pooled + room

        nothing = jnp.zeros(count, jnp.float32)
        accounts = block.accounts[p]
        doubts, pooled = lax.fori_loop(jnp.int32(0), accounts, account, (doubts, nothing))
        short = jnp.where(pooled >= block.unified_limit[p], jnp.int32(0), jnp.int32(1))
        of = lax.dynamic_slice_in_dim(doubts, p, 1)
        of = jnp.where((jnp.arange(slots + 1) == slots)[None, :, None], short[None, None], of)
        return lax.dynamic_update_slice_in_dim(doubts, of, p, 0)

    doubts = jnp.zeros((size, slots + 1, count), jnp.int32)
    return lax.fori_loop(jnp.int32(0), real, portfolio, doubts).transpose(2, 0, 1)
