"""Products of a matrix by a vector that have the same bits in every program: columns added one after the other.

A matrix product of the library changes its rounding with the size of the block and with the threads at hand. Here the
order of the additions is that of the columns, whatever is computed around them.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..rounding import rounded

# Columns of one step of the loop: the sums are read and written once for all of them.
_TOGETHER = 8


def column_sum(columns: Float[Array, "columns rows"], z: Float[Array, " columns"]) -> Float[Array, " rows"]:
    """`sum_j columns[j] z[j]`, each product rounded, j ascending."""
    count, rows = columns.shape
    whole = count // _TOGETHER

    def add(step: Array, total: Array) -> Array:
        for k in range(_TOGETHER):
            j = step * _TOGETHER + k
            total = total + rounded(columns[j] * z[j])
        return total

    total = jnp.zeros(rows, columns.dtype)
    if whole:
        total = lax.fori_loop(0, whole, add, total)
    for j in range(whole * _TOGETHER, count):
        total = total + rounded(columns[j] * z[j])
    return total
