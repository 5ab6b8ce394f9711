"""The reactive policy against a plain loop, the limits of pre-funding, and what a liquidation breaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.reactive_transfer import hedge_break_loss, liquidation_probability, prefunding, reactive_policy
from aggregator.transfer_programme import time_expanded_injection

SAME = 1e-9

POLICY = jax.jit(reactive_policy)


def path(seed: int, nodes: int = 3, steps: int = 6) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    collateral = random.uniform(2.0, 10.0, nodes)
    losses = np.cumsum(random.normal(size=(steps, nodes)) * 2.0, axis=0)
    delay = random.integers(1, 4, (nodes, nodes))
    capacity = random.exponential(3.0, (nodes, nodes)) * (random.random((nodes, nodes)) < 0.8)
    np.fill_diagonal(capacity, 0.0)
    return collateral, losses, delay, capacity, 0.5 * collateral


def by_loop(
    collateral: np.ndarray, losses: np.ndarray, delay: np.ndarray, capacity: np.ndarray, buffer: np.ndarray
) -> tuple[list[int], np.ndarray, np.ndarray, float]:
    """Liquidation steps, shortfalls, final balances and the total sent, one transfer at a time."""
    steps, nodes = losses.shape
    under_way: list[tuple[int, int, float]] = []
    cash = np.array(collateral)
    hit, missing, total = [-1] * nodes, np.zeros(nodes), 0.0
    for t in range(steps + 1):
        for arrives, v, amount in under_way:
            if arrives == t:
                cash[v] += amount
        under_way = [move for move in under_way if move[0] > t]
        balance = cash - (losses[t - 1] if t else 0.0)
        for v in range(nodes):
            if hit[v] < 0 and balance[v] < 0.0:
                hit[v], missing[v] = t, -balance[v]
        if t == steps:
            return hit, missing, balance, total
        pending = [sum(amount for _, to, amount in under_way if to == v) for v in range(nodes)]
        alive = [h < 0 for h in hit]
        need = [max(buffer[v] - balance[v] - pending[v], 0.0) * alive[v] for v in range(nodes)]
        spare = [max(balance[v] - buffer[v], 0.0) * alive[v] for v in range(nodes)]
        if sum(need) == 0.0 or sum(spare) == 0.0:
            continue
        granted = min(1.0, sum(spare) / sum(need))
        for u in range(nodes):
            for v in range(nodes):
                amount = min(granted * spare[u] / sum(spare) * need[v], capacity[u, v])
                if u != v and amount > 0.0:
                    cash[u] -= amount
                    total += amount
                    under_way.append((t + int(delay[u, v]), v, amount))
    raise AssertionError


def test_the_policy_is_the_loop_over_single_transfers() -> None:
    liquidated = 0
    for seed in range(40):
        case = path(seed)
        found = POLICY(*(jnp.asarray(x) for x in case))
        hit, missing, balance, total = by_loop(*case)
        assert np.asarray(found.liquidated_at).tolist() == hit
        np.testing.assert_allclose(np.asarray(found.shortfall), missing, atol=SAME)
        np.testing.assert_allclose(np.asarray(found.final_balance), balance, atol=SAME)
        assert float(jnp.sum(found.sent)) == pytest.approx(total, abs=SAME)
        liquidated += max(hit) >= 0
    assert 5 <= liquidated < 40


def test_no_money_appears_and_none_is_lost() -> None:
    for seed in range(10):
        collateral, losses, *rest = path(seed)
        found = POLICY(*(jnp.asarray(x) for x in (collateral, losses, *rest)))
        held = float(jnp.sum(found.final_balance) + jnp.sum(found.in_flight))
        assert held == pytest.approx(collateral.sum() - losses[-1].sum(), abs=SAME)


def test_a_path_that_survives_needs_no_injection_even_with_foresight() -> None:
    survived = 0
    for seed in range(40):
        collateral, losses, delay, capacity, buffer = path(seed)
        found = POLICY(*(jnp.asarray(x) for x in (collateral, losses, delay, capacity, buffer)))
        if int(jnp.max(found.liquidated_at)) < 0:
            survived += 1
            assert time_expanded_injection(collateral, losses, delay, capacity) == pytest.approx(0.0, abs=SAME)
    assert survived > 5


def test_what_a_liquidation_breaks_by_hand() -> None:
    # The short leg of a hedge is liquidated after step 1 at a loss of 6 and would have come back to 1: 5 of its gain is
    # lost, and closing 100 costs 2 %.
    losses = jnp.asarray([[-6.0, 6.0], [-3.0, 3.0], [-1.0, 1.0]])
    notional = jnp.full((3, 2), 100.0).at[:, 1].set(-100.0)
    rate = jnp.asarray([0.01, 0.02])
    assert float(hedge_break_loss(jnp.asarray([-1, 1]), losses, notional, rate).sum()) == pytest.approx(7.0, abs=SAME)
    assert float(hedge_break_loss(jnp.asarray([-1, -1]), losses, notional, rate).sum()) == 0.0
    # Before any loss the leg leaves at 0, and what it would have lost by the horizon is saved.
    assert float(hedge_break_loss(jnp.asarray([-1, 0]), losses, notional, rate).sum()) == pytest.approx(1.0, abs=SAME)


def hedge_paths(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    gain = 1000.0 * np.cumsum(random.standard_t(4, (count, 12)) * 0.005, axis=1)
    return np.stack([-gain, gain], axis=2), np.full(count, 1.0 / count)


def test_slower_routes_need_more_collateral_and_none_needs_most() -> None:
    losses, weights = hedge_paths(1000)
    find = functools.partial(
        prefunding, split=(0.5, 0.5), buffer_shares=(0.5, 0.8), confidence=0.95, most=1000.0, precision=1e-3
    )
    totals = []
    for hours, limit in ((1, np.inf), (4, np.inf), (1, 0.0)):
        found = find(jnp.asarray(losses), np.full((2, 2), hours), np.full((2, 2), limit), jnp.asarray(weights))
        assert found.probability <= 0.05 + 1e-9
        assert found.total == min(found.totals)
        totals.append(found.total)
    assert totals[0] < totals[1] < totals[2]
    # Without routes a venue is liquidated where its own worst loss exceeds its half.
    worst = 2.0 * losses.max(axis=(1, 2))
    assert totals[2] == pytest.approx(np.sort(worst)[949], rel=2e-3)


def test_the_probability_weighs_the_paths() -> None:
    losses = np.zeros((256, 1, 1))
    losses[:3] = 2.0
    weights = np.full(256, 0.5 / 253)
    weights[:3] = 0.5 / 3
    found = liquidation_probability(
        jnp.ones(1),
        jnp.asarray(losses),
        jnp.ones((1, 1), jnp.int32),
        jnp.zeros((1, 1)),
        jnp.ones(1),
        jnp.asarray(weights),
    )
    assert float(found) == pytest.approx(0.5, abs=1e-12)


def test_bad_input_is_named_and_a_missing_loss_liquidates() -> None:
    found = POLICY(
        jnp.asarray([1.0, 1.0]),
        jnp.asarray([[jnp.nan, 0.0]]),
        jnp.ones((2, 2), jnp.int32),
        jnp.zeros((2, 2)),
        jnp.zeros(2),
    )
    assert np.asarray(found.liquidated_at).tolist() == [1, -1]
    with pytest.raises(ValueError, match="vmap over paths"):
        reactive_policy(jnp.ones(2), jnp.ones((1, 3)), jnp.ones((2, 2), jnp.int32), jnp.ones((2, 2)), jnp.ones(2))
    losses, weights = hedge_paths(256)
    with pytest.raises(ValueError, match="sum to 1"):
        prefunding(
            jnp.asarray(losses), np.ones((2, 2)), np.ones((2, 2)), jnp.asarray(weights),
            split=(0.5, 0.6), buffer_shares=(0.5,), confidence=0.95, most=1.0,
        )  # fmt: skip
    with pytest.raises(ValueError, match="whole steps"):
        time_expanded_injection([1.0], [[0.0]], [[0.5]], [[1.0]])
