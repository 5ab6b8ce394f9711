"""Uncovered amounts in closed form, against every subset in a loop and against the linear programme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.transfer import (
    MOST_NODES,
    subsets,
    uncovered,
    uncovered_fungible,
    uncovered_many,
    uncovered_siloed,
    uncovered_single_hop,
)
from aggregator.transfer_programme import uncovered_programme

SAME = 1e-12  # float64 against float64, other order of additions, amounts of order 1
PROGRAMME = 1e-7  # HiGHS's own feasibility tolerance

MANY = jax.jit(uncovered_many)
ONE_HOP = jax.jit(jax.vmap(uncovered_single_hop))
SILOED = jax.jit(jax.vmap(uncovered_siloed))
FUNGIBLE = jax.jit(jax.vmap(uncovered_fungible))


def cases(count: int, nodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    surplus = random.normal(size=(count, nodes)) * 5.0
    capacity = random.exponential(2.0, size=(count, nodes, nodes)) * (random.random((count, nodes, nodes)) < 0.5)
    return surplus, capacity


def by_loop(surplus: np.ndarray, capacity: np.ndarray) -> tuple[float, int]:
    best, place = 0.0, -1
    for number, chosen in enumerate(subsets(surplus.size)):
        cut = sum(capacity[u, v] for u in np.flatnonzero(~chosen) for v in np.flatnonzero(chosen))
        gain = -surplus[chosen].sum() - cut
        if gain > best + 1e-13:
            best, place = gain, number
    return best, place


@pytest.mark.parametrize("nodes", [1, 2, 5, 8, 9])
def test_the_closed_form_is_the_loop_over_subsets(nodes: int) -> None:
    surplus, capacity = cases(20, nodes, nodes)
    found = MANY(jnp.asarray(surplus), jnp.asarray(capacity))
    for row in range(20):
        amount, subset = by_loop(surplus[row], capacity[row])
        assert float(found.amount[row]) == pytest.approx(amount, abs=SAME * 100)
        assert int(found.subset[row]) == subset


def test_the_closed_form_is_the_least_cost_flow_on_200_cases() -> None:
    surplus, capacity = cases(200, 5, 7)
    found = MANY(jnp.asarray(surplus), jnp.asarray(capacity)).amount
    np.testing.assert_allclose(np.asarray(found), uncovered_programme(surplus, capacity), atol=PROGRAMME * 10)


def test_the_limits_and_the_order_of_all_forms() -> None:
    surplus, capacity = cases(500, 4, 11)
    x, c = jnp.asarray(surplus), jnp.asarray(capacity)
    transit, hop = np.asarray(MANY(x, c).amount), np.asarray(ONE_HOP(x, c).amount)
    siloed, fungible = np.asarray(SILOED(x)), np.asarray(FUNGIBLE(x))
    assert np.all(fungible <= transit + SAME * 100)
    assert np.all(transit <= hop + SAME * 100)
    assert np.all(hop <= siloed + SAME * 100)
    assert np.any(hop > transit + 0.1)
    np.testing.assert_allclose(np.asarray(MANY(x, jnp.zeros_like(c)).amount), siloed, atol=SAME * 100)
    np.testing.assert_allclose(np.asarray(MANY(x, jnp.full_like(c, jnp.inf)).amount), fungible, atol=SAME * 100)


def test_it_falls_in_every_capacity_and_surplus_and_by_no_more_than_a_dollar() -> None:
    surplus, capacity = cases(200, 4, 13)
    x = jnp.asarray(surplus)
    before = np.asarray(MANY(x, jnp.asarray(capacity)).amount)
    for u in range(4):
        moved = np.array(surplus)
        moved[:, u] += 0.75
        after = np.asarray(MANY(jnp.asarray(moved), jnp.asarray(capacity)).amount)
        assert np.all(after <= before)
        assert np.all(before - after <= 0.75 + SAME * 100)
        for v in range(4):
            wider = np.array(capacity)
            wider[:, u, v] += 0.5
            assert np.all(np.asarray(MANY(x, jnp.asarray(wider)).amount) <= before)


def test_appended_idle_nodes_change_no_bit_and_the_order_of_nodes_only_rounding() -> None:
    surplus, capacity = cases(300, 4, 17)
    plain = MANY(jnp.asarray(surplus), jnp.asarray(capacity))
    for nodes in (6, 8, 10):
        x = np.pad(surplus, ((0, 0), (0, nodes - 4)))
        c = np.pad(capacity, ((0, 0), (0, nodes - 4), (0, nodes - 4)))
        padded = MANY(jnp.asarray(x), jnp.asarray(c))
        np.testing.assert_array_equal(np.asarray(padded.amount), np.asarray(plain.amount))
        np.testing.assert_array_equal(np.asarray(padded.subset), np.asarray(plain.subset))
    order = np.array([2, 0, 3, 1])
    turned = MANY(jnp.asarray(surplus[:, order]), jnp.asarray(capacity[:, order][:, :, order]))
    np.testing.assert_allclose(np.asarray(turned.amount), np.asarray(plain.amount), atol=SAME * 100)


def test_float32_stays_within_its_stated_error() -> None:
    surplus, capacity = cases(2_000, 8, 19)
    exact = np.asarray(MANY(jnp.asarray(surplus), jnp.asarray(capacity)).amount)
    short = np.asarray(MANY(jnp.asarray(surplus, jnp.float32), jnp.asarray(capacity, jnp.float32)).amount)
    size = np.abs(surplus).sum(axis=1) + capacity.sum(axis=(1, 2))
    assert np.all(np.abs(short - exact) <= 2.0**-20 * size)


def test_one_capacity_for_all_is_the_same_capacity_in_each() -> None:
    surplus, capacity = cases(100, 3, 23)
    shared = MANY(jnp.asarray(surplus), jnp.asarray(capacity[0]))
    each = MANY(jnp.asarray(surplus), jnp.asarray(np.broadcast_to(capacity[0], capacity.shape)))
    np.testing.assert_array_equal(np.asarray(shared.amount), np.asarray(each.amount))


def test_missing_and_infinite_inputs() -> None:
    capacity = jnp.asarray([[0.0, 2.0], [jnp.nan, 0.0]])
    assert float(uncovered(jnp.asarray([jnp.nan, 5.0]), capacity).amount) == np.inf
    assert float(uncovered(jnp.asarray([-1.0, 5.0]), capacity).amount) == 1.0
    assert float(uncovered(jnp.asarray([5.0, -3.0]), capacity).amount) == 1.0
    # A tie between {1} and nothing is nothing.
    assert int(uncovered(jnp.asarray([5.0, -2.0]), capacity).subset) == -1


def test_isolated_nodes_separate_exactly() -> None:
    surplus, capacity = cases(100, 5, 29)
    capacity[:, 1, :] = 0.0
    capacity[:, :, 1] = 0.0
    routed = [0, 2, 3, 4]
    inner = MANY(jnp.asarray(surplus[:, routed]), jnp.asarray(capacity[:, routed][:, :, routed])).amount
    whole = np.asarray(MANY(jnp.asarray(surplus), jnp.asarray(capacity)).amount)
    np.testing.assert_allclose(np.asarray(inner) + np.maximum(-surplus[:, 1], 0.0), whole, atol=SAME * 100)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=f"1 to {MOST_NODES} nodes, found 13"):
        uncovered(jnp.zeros(13), jnp.zeros((13, 13)))
    with pytest.raises(ValueError, match="capacities >= 0"):
        uncovered_programme([[-1.0, 1.0]], [[0.0, -1.0], [0.0, 0.0]])
