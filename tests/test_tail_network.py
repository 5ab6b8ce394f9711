"""The tail network: shapes, order of its outputs whatever the weights, where it starts, dropout, gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tail_network import TailNetwork

START = jnp.array([0.3, 0.6, 1.0])
BEYOND = jnp.array([0.7, 1.0, 1.5])
ROUNDING = 1e-5  # float32


def network(layers: int = 2, dropout: float = 0.5, seed: int = 0) -> TailNetwork:
    return TailNetwork(
        jax.random.key(seed),
        inputs=4,
        layers=layers,
        width=8,
        log_margin=START,
        log_shortfall=BEYOND,
        dropout=dropout,
    )


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_without_its_head_the_network_is_the_pooled_start(layers: int) -> None:
    made = network(layers)
    bare = eqx.tree_at(lambda tree: tree.head.weight, made, jnp.zeros_like(made.head.weight))
    out = bare(jnp.arange(4, dtype=jnp.float32))
    assert np.allclose(out.log_margin, START, atol=ROUNDING)
    assert np.allclose(out.log_shortfall, BEYOND, atol=ROUNDING)
    begun = made(jnp.ones(4, jnp.float32))
    assert np.abs(begun.log_margin - START).max() < 0.3


@given(seed=st.integers(0, 2**31 - 1), size=st.sampled_from([0.1, 3.0, 30.0]))
def test_levels_never_cross_and_shortfalls_lie_above_margins(seed: int, size: float) -> None:
    made = network(1)
    leaves, tree = jax.tree.flatten(eqx.filter(made, eqx.is_array))
    generator = np.random.default_rng(seed)
    wild = jax.tree.unflatten(tree, [jnp.asarray(size * generator.standard_normal(x.shape), x.dtype) for x in leaves])
    out = eqx.combine(wild, made)(jnp.asarray(generator.standard_normal(4), jnp.float32))
    # a step can drown in the rounding of a margin of e^1000, never turn round
    assert np.all(np.diff(out.log_margin) >= 0.0)
    assert np.all(out.log_shortfall >= out.log_margin)
    assert np.isfinite(out.log_margin).all()


def test_dropout_needs_a_key_and_keeps_the_mean_of_a_linear_head() -> None:
    made = network(1)
    row = jnp.ones(4, jnp.float32)
    assert np.array_equal(made(row).log_margin, made(row).log_margin)
    keys = jax.random.split(jax.random.key(1), 4000)
    firsts = jax.vmap(lambda key: made(row, key).log_margin[0])(keys)
    spread = float(jnp.std(firsts))
    assert spread > 0.0
    # the first log margin is linear in the hidden values, so only sampling error is left: 5 standard errors
    assert abs(float(firsts.mean() - made(row).log_margin[0])) < 5.0 * spread / 4000**0.5


def test_gradients_are_those_of_difference_quotients() -> None:
    made = network(1, dropout=0.0)
    row = jnp.asarray([0.3, -1.0, 0.2, 0.9], jnp.float32)

    def cost(weight: jax.Array) -> jax.Array:
        out = eqx.tree_at(lambda tree: tree.skip.weight, made, weight)(row)
        return out.log_margin.sum() + 2.0 * out.log_shortfall.sum()

    made = jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, made)
    row = row.astype(jnp.float64)
    slope = jax.grad(cost)(made.skip.weight)
    for place in ((0, 1), (2, 3), (5, 0)):
        step = jnp.zeros_like(made.skip.weight).at[place].set(1e-6)
        quotient = float(cost(made.skip.weight + step) - cost(made.skip.weight - step)) / 2e-6
        assert float(slope[place]) == pytest.approx(quotient, abs=1e-6)


def test_rows_of_one_shape_compile_once() -> None:
    made = network(1)
    traced = eqx.debug.assert_max_traces(lambda net, rows: jax.vmap(net)(rows), max_traces=1)
    compiled = eqx.filter_jit(traced)
    for seed in range(3):
        rows = jnp.asarray(np.random.default_rng(seed).standard_normal((5, 4)), jnp.float32)
        assert compiled(made, rows).log_margin.shape == (5, 3)
