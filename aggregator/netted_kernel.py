"""The sweep's hot loop on the devices: netted portfolios in every scenario of a priced cube, arrays in and arrays out.

A block of portfolios at a time: the losses and tails of one after the other over all scenarios (`netted_losses`), then
the verdicts on all of them tile of scenarios by tile of scenarios (`netted_verdicts`). Nothing of the size portfolios x
scenarios is kept. Portfolios are split over the devices. The rows of an account are added in the order of their numbers
and every sum over scenarios has one fixed order, so neither the device nor what else is in the shard changes a bit.
Money in USD, losses positive; scenarios are float32 changes to today's float64 figures, as in `margin.py`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .device_mesh import SPLIT, WHOLE, split_over
from .netted_arrays import SCENARIOS_TOGETHER, Block, Entries, ShardArrays, TiledCube
from .netted_losses import LEVELS, Pooled, equal_tails_of_block, weighted_tails_of_block
from .netted_verdicts import block_sums, weight_sum
from .one_kernel import one_kernel


class Figures(NamedTuple):
    """Results of one shard; money in USD."""

    var: Float[Array, "P levels"]
    es: Float[Array, "P levels"]
    worst: Float[Array, " P"]
    p_any: Float[Array, " P"]
    p_unified: Float[Array, " P"]
    p_account: Float[Array, "P A"]
    bad_debt: Float[Array, "P A"]


# Portfolios that pass a tile of the cube together: many share the tile, and what is kept of them stays small.
_MOST_TOGETHER = 1024
_FEWEST_TOGETHER = 16
_ACCOUNTS_TOGETHER = 8192
_DOUBTS_TOGETHER = 2**21


@functools.partial(jax.jit, static_argnames=("scenarios", "equal", "devices"))
def evaluate_shard(
    shard: ShardArrays, cube: TiledCube, weights: Array, *, scenarios: int, equal: bool, devices: int
) -> Figures:
    """Figures of every portfolio of a shard; those of padded portfolios are zeros. One program for each shape.

    `weights` of the padded scenarios of the cube; `equal`: whether the `scenarios` with a positive weight come first
    and weigh the same.
    """

    def block(part: ShardArrays, cube: TiledCube, weights: Array) -> Figures:
        one = jax.tree.map(lambda leaf: leaf[0], part)
        found = _of_device(one, cube, weights, scenarios=scenarios, equal=equal)
        return jax.tree.map(lambda leaf: leaf[None], found)

    figures: Figures = split_over(devices, block, inputs=(SPLIT, WHOLE, WHOLE), outputs=SPLIT)(shard, cube, weights)
    return figures


def _together(size: int, slots: int, tiles: int) -> int:
    """Portfolios of a block: powers of two, as `size` is one, so that blocks divide a shard."""
    most = min(_MOST_TOGETHER, _ACCOUNTS_TOGETHER // slots, _DOUBTS_TOGETHER // (tiles * (slots + 1)))
    return min(size, max(_FEWEST_TOGETHER, 1 << max(most.bit_length() - 1, 0)))


def _of_device(part: ShardArrays, cube: TiledCube, weights: Array, *, scenarios: int, equal: bool) -> Figures:
    size, slots = part.first.shape
    together = _together(size, slots, cube.tiles.shape[0])
    counted = (weights > 0).astype(jnp.float32) if equal else weights
    counted = counted.reshape(-1, SCENARIOS_TOGETHER)
    blocks = Block(*(getattr(part, name) for name in Block._fields))
    flat = Entries(*(getattr(part, name) for name in Entries._fields))
    tails_of = one_kernel(
        functools.partial(equal_tails_of_block if equal else weighted_tails_of_block, scenarios=scenarios)
    )
    sums_of = one_kernel(block_sums)
    total = weight_sum(counted)

    def of_block(number: Array, figures: Figures) -> Figures:
        first = number * jnp.int32(together)
        few, (pooled_first, pooled_groups) = jax.tree.map(
            lambda leaf: lax.dynamic_slice_in_dim(leaf, first, together),
            (blocks, (part.pooled_first, part.pooled_groups)),
        )
        real = jnp.minimum(part.real - first, jnp.int32(together))
        weighted = () if equal else (weights,)
        pooled = Pooled(pooled_first, pooled_groups, part.pooled_row, part.pooled)
        tails = tails_of(cube.change, *weighted, real, pooled)
        sums = sums_of(cube.tiles, cube.lowest, cube.highest, counted, real, few, flat)
        of = Figures(*tails, *(of_sum / total for of_sum in sums))
        return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, first, 0), figures, of)

    levels, one, each = (jnp.zeros((size, *shape), jnp.float64) for shape in ((len(LEVELS),), (), (slots,)))
    nothing = Figures(levels, levels, one, one, one, each, each)
    count = (part.real + jnp.int32(together - 1)) // jnp.int32(together)
    return lax.fori_loop(jnp.int32(0), count, of_block, nothing)
