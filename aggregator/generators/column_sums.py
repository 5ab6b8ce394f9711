"""Products of a matrix by a vector that have the same bits in every program: columns added one after the other.

A matrix product of the library changes its rounding with the size of the block and with the threads at hand. Here the
order of the additions is that of the columns, whatever is computed around them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from ..one_kernel import one_kernel

# Columns of one step of a loop: the sums are read and written once for all of them.
_TOGETHER = 8
_LOWEST = np.finfo(np.float64).min


def _rounded(product: Array) -> Array:
    # As `rounding.rounded`, in one instruction: factors and normals are no NaN.
    return jnp.where(product > _LOWEST, product, _LOWEST)


@custom_vmap
def column_sum(
    columns: Float[Array, "columns rows"], reach: Int[Array, " rows"], z: Float[Array, " columns"]
) -> Float[Array, " rows"]:
    """`sum_j columns[j] z[j]`, each product rounded, j ascending; finite numbers in float64.

    Row i needs its first `reach[i]` columns, beyond them it is zero: i + 1 of a lower triangular matrix. Many vectors
    (`vmap` over `z`) have the bits of each alone.
    """
    del reach
    count, rows = columns.shape
    whole = count // _TOGETHER

    def add(step: Array, total: Array) -> Array:
        for k in range(_TOGETHER):
            j = step * _TOGETHER + k
            total = total + _rounded(columns[j] * z[j])
        return total

    total = jnp.zeros(rows, columns.dtype)
    if whole:
        total = lax.fori_loop(0, whole, add, total)
    for j in range(whole * _TOGETHER, count):
        total = total + _rounded(columns[j] * z[j])
    return total


_alone = column_sum.fun


@column_sum.def_vmap
def _side_by_side(axis_size: int, in_batched: list[bool], columns: Array, reach: Array, z: Array) -> tuple[Array, bool]:
    if in_batched == [False, False, True]:
        return _of_vectors(columns, reach, z), True
    axes = [0 if batched else None for batched in in_batched]
    return jax.vmap(_alone, in_axes=axes, axis_size=axis_size)(columns, reach, z), True


@custom_vmap
def _of_vectors(
    columns: Float[Array, "columns rows"], reach: Int[Array, " rows"], z: Float[Array, "vectors columns"]
) -> Float[Array, "vectors rows"]:
    found: Array = lax.platform_dependent(
        columns, reach, z, cpu=one_kernel(_row_by_row), default=jax.vmap(_alone, in_axes=(None, None, 0))
    )
    return found


@_of_vectors.def_vmap
def _of_tables(axis_size: int, in_batched: list[bool], columns: Array, reach: Array, z: Array) -> tuple[Array, bool]:
    # What is one kernel cannot be split further.
    axes = [0 if batched else None for batched in in_batched]
    each = jax.vmap(_alone, in_axes=(None, None, 0))
    return jax.vmap(each, in_axes=axes, axis_size=axis_size)(columns, reach, z), True


def _row_by_row(
    columns: Float[Array, "columns rows"], reach: Int[Array, " rows"], z: Float[Array, "vectors columns"]
) -> Float[Array, "vectors rows"]:
    """Row after row for all vectors, so that one row's sums stay in the nearest memory of a CPU."""
    count, rows = columns.shape
    more = -count % _TOGETHER
    of_rows, of_columns = jnp.pad(columns.T, ((0, 0), (0, more))), jnp.pad(z, ((0, 0), (0, more))).T

    def row(i: Array, sums: Array) -> Array:
        coefficients = lax.dynamic_index_in_dim(of_rows, i, keepdims=False)

        def add(step: Array, total: Array) -> Array:
            some = lax.dynamic_slice_in_dim(coefficients, step * _TOGETHER, _TOGETHER)
            vectors = lax.dynamic_slice_in_dim(of_columns, step * _TOGETHER, _TOGETHER)
            for k in range(_TOGETHER):
                total = total + _rounded(some[k] * vectors[k])
            return total

        total = lax.fori_loop(0, (reach[i] + _TOGETHER - 1) // _TOGETHER, add, jnp.zeros(z.shape[0], z.dtype))
        return lax.dynamic_update_index_in_dim(sums, total, i, 0)

    return lax.fori_loop(0, rows, row, jnp.zeros((rows, z.shape[0]), z.dtype)).T
