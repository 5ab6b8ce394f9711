"""Columns added one after the other: the same bits alone, side by side and in a loop, and those of a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aggregator.generators.column_sums import column_sum

SIZES = (1, 7, 8, 9, 33)


def problem(size: int, vectors: int, lower: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(columns, reach, vectors), magnitudes far apart so that the order of additions shows."""
    rng = np.random.default_rng(size)
    matrix = rng.standard_normal((size, size)) * 10.0 ** rng.integers(-6, 6, (size, size))
    reach = np.full(size, size)
    if lower:
        matrix, reach = np.tril(matrix), np.arange(1, size + 1)
    return matrix.T.copy(), reach, rng.standard_normal((vectors, size))


def added(columns: np.ndarray, z: np.ndarray) -> np.ndarray:
    total = np.zeros(columns.shape[1])
    for column, factor in zip(columns, z, strict=True):
        total = total + column * factor
    return total


@pytest.mark.parametrize("lower", [True, False], ids=["triangular", "full"])
@pytest.mark.parametrize("size", SIZES)
def test_many_vectors_have_the_bits_of_a_plain_loop(size: int, lower: bool) -> None:
    columns, reach, z = problem(size, 16, lower)
    expected = np.array([added(columns, one) for one in z])
    together = jax.jit(jax.vmap(column_sum, in_axes=(None, None, 0)))(columns, reach, z)
    np.testing.assert_array_equal(together, expected)
    np.testing.assert_array_equal(column_sum(jnp.asarray(columns), jnp.asarray(reach), jnp.asarray(z[3])), expected[3])


def test_matrices_side_by_side_and_vectors_in_a_loop() -> None:
    plain = problem(9, 6, lower=True)
    expected = np.array([added(plain[0], one) for one in plain[2]])
    columns, reach, z = (jnp.asarray(values) for values in plain)
    each = jax.vmap(column_sum, in_axes=(0, None, 0))(jnp.stack([columns] * 6), reach, z)
    np.testing.assert_array_equal(each, expected)

    def along(path: jax.Array) -> jax.Array:
        return lax.scan(lambda _, step: ((), column_sum(columns, reach, step)), (), path)[1]

    paths = jax.jit(jax.vmap(along))(z.reshape(3, 2, 9))
    np.testing.assert_array_equal(paths, expected.reshape(3, 2, 9))
    twice = jax.vmap(jax.vmap(column_sum, in_axes=(None, None, 0)), in_axes=(None, None, 0))
    np.testing.assert_array_equal(twice(columns, reach, z.reshape(3, 2, 9)), expected.reshape(3, 2, 9))
