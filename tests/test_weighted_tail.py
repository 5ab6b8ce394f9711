"""Tails of long loss rows against the counting search of `risk`, with equal and with other weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.risk import tail_rows
from aggregator.weighted_tail import LANES, NO_LOSS, equal_tails, highest_tails, weighted_tails

LEVELS = (0.99, 0.995)
LAWS = ("normal", "heavy", "tied", "zero", "sorted", "enormous", "gains")
WEIGHTS = ("equal", "exponential", "some_zero", "one_dominates")


def losses_of(law: str, scenarios: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(scenarios)
    return {
        "normal": normal,
        "heavy": 1e6 * rng.standard_t(2, scenarios),
        "tied": np.round(normal, 1),
        "zero": np.zeros(scenarios),
        "sorted": np.sort(normal),
        "enormous": np.exp(20.0 * normal),
        "gains": -np.exp(5.0 * normal) - 7.0,
    }[law].astype(np.float32)


def weights_of(kind: str, scenarios: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    found = np.ones(scenarios) if kind == "equal" else rng.exponential(size=scenarios) + 0.01
    if kind == "some_zero":
        found[rng.random(scenarios) < 0.3] = 0.0
    if kind == "one_dominates":
        found[scenarios // 2] = 9.0 * found.sum()
    return found / found.sum()


@functools.cache
def searches(scenarios: int):  # type: ignore[no-untyped-def]
    search = functools.partial(weighted_tails, scenarios=scenarios, levels=LEVELS)
    return jax.jit(search), jax.jit(lambda row, weights: tail_rows(row[None, :], weights, LEVELS))


@pytest.mark.parametrize("scenarios", [1500, 150])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weighted_tails_have_the_bits_of_the_counting_search(kind: str, scenarios: int) -> None:
    search, counting = searches(scenarios)
    weights = weights_of(kind, scenarios)
    padding = (0, -scenarios % LANES)
    mass = jnp.asarray(np.pad(weights, padding))
    for law in LAWS:
        values = np.where(weights > 0, losses_of(law, scenarios), NO_LOSS)
        row = jnp.asarray(np.pad(values, padding, constant_values=NO_LOSS))
        var, es, worst = search(row, mass)
        expected_var, expected_es = counting(row, mass)
        # Equal but for the sign of a zero.
        assert np.array_equal(var, expected_var[0]), law
        np.testing.assert_allclose(es, expected_es[0], rtol=1e-12, atol=0, err_msg=law)
        assert float(worst) == values[weights > 0].max()


@pytest.mark.parametrize("in_one_lane", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_the_highest_of_each_lane_suffice_or_all_are_searched(law: str, in_one_lane: bool) -> None:
    """With the tail in one lane, more of it than is kept of a lane, the whole row has to be searched."""
    scenarios, tiles, lanes = 2000, 8, 256
    values = np.sort(losses_of(law, scenarios)) if in_one_lane else losses_of(law, scenarios)
    row = np.pad(values, (0, tiles * lanes - scenarios), constant_values=NO_LOSS)
    by_lane = row.reshape(lanes, tiles).T if in_one_lane else row.reshape(tiles, lanes)
    got = both(jnp.asarray(by_lane), scenarios)
    expected = equal_tails(jnp.asarray(row), scenarios=scenarios, levels=LEVELS)
    assert np.array_equal(got[0], expected[0])
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-12, atol=0)
    assert float(got[2]) == values.max()


@pytest.mark.parametrize(("scenarios", "lanes"), [(51_200, 512), (40_000, 64)])
def test_the_more_scenarios_the_more_of_a_lane_are_kept_until_all_are_searched(scenarios: int, lanes: int) -> None:
    row = np.pad(losses_of("heavy", scenarios), (0, -scenarios % LANES), constant_values=NO_LOSS)
    got = both(jnp.asarray(row.reshape(-1, lanes)), scenarios)
    expected = equal_tails(jnp.asarray(row), scenarios=scenarios, levels=LEVELS)
    assert np.array_equal(got[0], expected[0])
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-12, atol=0)
    assert float(got[2]) == row.max()


both = functools.partial(jax.jit, static_argnums=1)(
    lambda losses, scenarios: highest_tails(losses, scenarios=scenarios, levels=LEVELS)
)


def test_more_scenarios_than_can_be_counted_are_refused() -> None:
    for scenarios in (0, 2**24 + 1):
        with pytest.raises(ValueError, match="expected 1 to"):
            equal_tails(jnp.zeros(LANES, jnp.float32), scenarios=scenarios, levels=LEVELS)
