"""Transfer-constrained expected shortfall against the linear programme, its limits and its identities."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.risk import padded_scenarios
from aggregator.transfer import uncovered_many
from aggregator.transfer_cuts import least_collateral
from aggregator.transfer_programme import shortfall_programme
from aggregator.transfer_shortfall import (
    fungibility,
    pooled_shortfall,
    siloed_shortfall,
    transfer_shortfall,
)

CONFIDENCE = 0.95
REFERENCE = 1e-4  # the solver against the programme, relative, as required of it
GAP = 1e-6  # what the solver leaves on portfolios of this size, relative; measured below 2e-7
ROUNDING = 1e-9

SOLVE = jax.jit(functools.partial(transfer_shortfall, confidence=CONFIDENCE))


def portfolio(seed: int, *, scenarios: int = 512, nodes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses [S, V] with heavy tails and any correlation, capacities [S, V, V] that fail now and then, weights [S]."""
    random = np.random.default_rng(seed)
    losses = random.standard_t(4, size=(scenarios, nodes)) @ random.normal(size=(nodes, nodes))
    losses = losses * np.exp(0.7 * random.normal(size=nodes))
    level = (
        random.exponential(1.0, size=(nodes, nodes)) * (random.random((nodes, nodes)) < 0.6) * np.exp(random.normal())
    )
    capacity = level * (random.random((scenarios, nodes, nodes)) < 0.9)
    weights = random.random(scenarios)
    return losses, capacity, weights / weights.sum()


def required(
    collateral: jax.Array, losses: jax.Array, capacity: jax.Array, weights: jax.Array, *, confidence: float
) -> jax.Array:
    """F(K) = sum K + E[U(K - L, c)] / (1 - a) of any collateral: never below TCES."""
    amounts = uncovered_many(collateral[None, :] - losses, capacity).amount
    return jnp.sum(collateral) + jnp.sum(weights * amounts) / (1.0 - confidence)


def of(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.asarray(case[0]), jnp.asarray(case[1]), jnp.asarray(case[2])


def test_the_limits_enclose_it_on_1000_portfolios() -> None:
    cases = [portfolio(seed, scenarios=256) for seed in range(1000)]

    @jax.jit
    def every(losses: jax.Array, capacity: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
        def one(case: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            found = transfer_shortfall(*case, confidence=CONFIDENCE)
            siloed = siloed_shortfall(case[0], case[2], confidence=CONFIDENCE)
            pooled = pooled_shortfall(case[0], case[2], confidence=CONFIDENCE)
            # Not the returned value: that is clipped to the limits. F(K) of the returned collateral is not.
            reached = required(found.collateral, *case, confidence=CONFIDENCE)
            return found.value, found.lower_bound, siloed, pooled, reached

        return jax.lax.map(one, (losses, capacity, weights))

    value, bound, siloed, pooled, reached = (
        np.asarray(x) for x in every(*(jnp.asarray(np.stack(column)) for column in zip(*cases, strict=True)))
    )
    slack = ROUNDING * siloed
    assert np.all(pooled <= reached + slack)
    assert np.all(reached <= siloed + slack)
    np.testing.assert_allclose(value, reached, rtol=ROUNDING)
    gap = (value - bound) / value
    assert np.all(gap >= 0.0)
    assert np.max(gap) < REFERENCE
    assert np.quantile(gap, 0.95) < GAP


def test_it_is_the_optimum_of_the_linear_programme() -> None:
    for seed in range(6):
        case = portfolio(seed, scenarios=1024, nodes=4)
        expected = shortfall_programme(*case, CONFIDENCE)
        found = SOLVE(*of(case))
        assert float(found.value) == pytest.approx(expected.value, rel=REFERENCE)
        assert float(found.lower_bound) <= expected.value * (1.0 + ROUNDING)


@pytest.mark.long
def test_it_is_the_optimum_of_the_linear_programme_on_50_portfolios_of_4096_scenarios_and_6_nodes() -> None:
    solve = jax.jit(functools.partial(transfer_shortfall, confidence=0.99))
    for seed in range(100, 150):
        case = portfolio(seed, scenarios=4096, nodes=6)
        expected = shortfall_programme(*case, 0.99).value
        found = solve(*of(case))
        assert float(found.value) == pytest.approx(expected, rel=REFERENCE), seed


def test_the_collateral_shown_by_the_reference_cases_attains_the_minimum() -> None:
    vectors = json.loads((Path(__file__).parent / "vectors" / "margin.json").read_text(encoding="utf-8"))
    cases = [case for case in vectors["cases"] if "K_one_optimum" in case["expected"]]
    assert len(cases) == 8
    for case in cases:
        given = case["inputs"]
        losses = np.asarray(given["losses"], np.float64)
        nodes = losses.shape[1]
        padded, weights = padded_scenarios(losses.T, np.full(len(losses), 1.0 / len(losses)))
        capacity = jnp.full((nodes, nodes), float(given["cap_uniform"]))
        collateral = jnp.asarray(case["expected"]["K_one_optimum"], jnp.float64)
        found = required(collateral, jnp.asarray(padded.T), capacity, jnp.asarray(weights), confidence=given["alpha"])
        assert float(found) == pytest.approx(case["expected"]["requirement"], rel=1e-6)


@pytest.mark.parametrize(("capacity", "value", "share"), [(0.0, 20.0, 0.0), (4.0, 12.0, 0.4), (15.0, 0.0, 1.0)])
def test_a_hedge_across_two_venues_by_hand(capacity: float, value: float, share: float) -> None:
    # TCES = 2 (x - c)+ and phi = min(1, c / x) for x = 10; each dollar of either route saves one.
    # The third venue holds nothing and has no route.
    both = np.zeros((512, 3))
    both[:256, :2], both[256:, :2] = (10.0, -10.0), (-10.0, 10.0)
    ways = np.zeros((3, 3))
    ways[0, 1] = ways[1, 0] = capacity
    losses, routes, weights = of((both, ways, np.full(512, 1.0 / 512)))
    found = SOLVE(losses, routes, weights)
    assert float(found.value) == pytest.approx(value, abs=1e-5)
    siloed = siloed_shortfall(losses, weights, confidence=CONFIDENCE)
    pooled = pooled_shortfall(losses, weights, confidence=CONFIDENCE)
    assert (float(siloed), float(pooled)) == (20.0, 0.0)
    assert float(fungibility(found.value, siloed=siloed, fungible=pooled)) == pytest.approx(share, abs=1e-6)
    if capacity == 4.0:
        np.testing.assert_allclose(np.asarray(found.route_values)[:2, :2], [[0.0, -1.0], [-1.0, 0.0]], atol=1e-4)


def test_it_falls_in_every_capacity_by_what_the_route_values_say() -> None:
    losses, capacity, weights = portfolio(3)
    shared = capacity.max(axis=0)
    base = SOLVE(jnp.asarray(losses), jnp.asarray(shared), jnp.asarray(weights))
    step = 0.01
    for u in range(3):
        for v in range(3):
            if u == v:
                continue
            wider, narrower = np.array(shared), np.array(shared)
            wider[u, v] += step
            narrower[u, v] = max(narrower[u, v] - step, 0.0)
            less = float(SOLVE(jnp.asarray(losses), jnp.asarray(wider), jnp.asarray(weights)).value)
            more = float(SOLVE(jnp.asarray(losses), jnp.asarray(narrower), jnp.asarray(weights)).value)
            value, slack = float(base.value), GAP * float(base.value)
            assert less <= value + slack
            assert value <= more + slack
            # Convex in the capacity: the dual value lies between the slopes on both sides.
            slope = float(base.route_values[u, v])
            assert slope * step <= less - value + 2 * slack
            assert slope * (shared[u, v] - narrower[u, v]) >= value - more - 2 * slack


def test_route_values_count_the_availability() -> None:
    losses, capacity, weights = portfolio(4)
    level, open_share = capacity.max(axis=0), (capacity > 0.0).astype(float)
    found = jax.jit(functools.partial(transfer_shortfall, confidence=CONFIDENCE))(
        jnp.asarray(losses), jnp.asarray(level), jnp.asarray(weights), availability=jnp.asarray(open_share)
    )
    assert float(found.value) == pytest.approx(float(SOLVE(*of((losses, level * open_share, weights))).value), rel=GAP)
    u, v = np.unravel_index(np.argmin(np.asarray(found.route_values)), (3, 3))
    step = 1e-3
    wider = np.array(level)
    wider[u, v] += step
    less = float(SOLVE(*of((losses, wider * open_share, weights))).value)
    assert float(found.route_values[u, v]) * step <= less - float(found.value) + 2 * GAP * less
    assert float(found.route_values[u, v]) < -0.01


def test_a_doubled_weight_is_a_scenario_that_occurs_twice() -> None:
    losses, capacity, _ = portfolio(5, scenarios=256)
    doubled = np.where(np.arange(256) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(256), doubled.astype(int))
    count = twice.size
    padding = -count % 256
    by_weight = SOLVE(*of((losses, capacity, doubled / count)))
    by_copy = SOLVE(
        jnp.asarray(np.pad(losses[twice], ((0, padding), (0, 0)))),
        jnp.asarray(np.pad(capacity[twice], ((0, padding), (0, 0), (0, 0)))),
        jnp.asarray(np.pad(np.full(count, 1.0 / count), (0, padding))),
    )
    assert float(by_weight.value) == pytest.approx(float(by_copy.value), rel=GAP)


def test_padding_and_the_order_of_nodes_change_nothing_that_counts() -> None:
    # The shapes are those of other tests: each one compiles for seconds.
    losses, capacity, weights = portfolio(6, scenarios=256)
    plain = SOLVE(*of((losses, capacity, weights)))

    def longer_by(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (
            np.concatenate([losses, np.full((count, 3), np.nan)]),
            np.concatenate([capacity, np.full((count, 3, 3), np.nan)]),
            np.concatenate([weights, np.zeros(count)]),
        )

    longer = SOLVE(*of(longer_by(256)))
    assert float(longer.value) == pytest.approx(float(plain.value), rel=ROUNDING)
    more, ways, shares = longer_by(768)
    wider = SOLVE(*of((np.pad(more, ((0, 0), (0, 1))), np.pad(ways, ((0, 0), (0, 1), (0, 1))), shares)))
    assert float(wider.value) == pytest.approx(float(plain.value), rel=ROUNDING)
    assert float(wider.collateral[3]) == 0.0
    order = np.array([2, 0, 1])
    turned = SOLVE(*of((losses[:, order], capacity[:, order][:, :, order], weights)))
    assert float(turned.value) == pytest.approx(float(plain.value), rel=GAP)


def test_a_batch_of_portfolios_gives_each_the_bits_it_has_alone() -> None:
    cases = [of(portfolio(seed)) for seed in range(5)]
    alone = [float(SOLVE(*case).value) for case in cases]
    for size in (2, 5):
        stacked = tuple(jnp.stack(column) for column in zip(*cases[:size], strict=True))
        values = jax.jit(lambda c: jax.lax.map(lambda one: SOLVE(*one).value, c))(stacked)
        assert np.asarray(values).tolist() == alone[:size]


def test_part_of_the_scenarios_gives_the_same_minimum_and_says_what_it_left_out() -> None:
    case = of(portfolio(7, scenarios=8192))
    whole = SOLVE(*case)
    some = jax.jit(functools.partial(transfer_shortfall, confidence=CONFIDENCE, scenarios_used=2048))(*case)
    assert int(some.left_out) == 0
    assert float(some.value) == pytest.approx(float(whole.value), rel=GAP)
    assert float(some.lower_bound) <= float(whole.value)
    few = jax.jit(functools.partial(transfer_shortfall, confidence=CONFIDENCE, scenarios_used=256))(*case)
    assert int(few.left_out) > 0
    assert float(few.lower_bound) <= float(whole.value) <= float(few.value) * (1.0 + ROUNDING)


def test_collateral_below_the_optimum_is_filled_up_to_it() -> None:
    """The same problem for the losses beyond what is there: together they cost what the optimum does."""
    losses, capacity, weights = of(portfolio(8))
    best = SOLVE(losses, capacity, weights)
    scarce = 0.5 * best.collateral
    added = SOLVE(losses - scarce[None, :], capacity, weights)
    assert float(jnp.sum(scarce) + added.value) == pytest.approx(float(best.value), rel=GAP)
    ample = jnp.full(3, float(losses.max()) + 1.0)
    assert float(SOLVE(losses - ample[None, :], capacity, weights).value) == pytest.approx(0.0, abs=ROUNDING)


def test_a_missing_loss_is_infinite_and_bad_shapes_are_named() -> None:
    losses, capacity, weights = portfolio(9)
    losses[3, 1] = np.nan
    found = SOLVE(*of((losses, capacity, weights)))
    assert float(found.value) == float(found.lower_bound) == np.inf
    with pytest.raises(ValueError, match="multiple of 256, found 100"):
        transfer_shortfall(jnp.zeros((100, 2)), jnp.zeros((2, 2)), jnp.zeros(100), confidence=0.9)
    with pytest.raises(ValueError, match="capacity"):
        transfer_shortfall(jnp.zeros((256, 2)), jnp.zeros((3, 3)), jnp.zeros(256), confidence=0.9)
    with pytest.raises(ValueError, match="confidence"):
        transfer_shortfall(jnp.zeros((256, 2)), jnp.zeros((2, 2)), jnp.zeros(256), confidence=1.0)


def test_more_nodes_than_the_closed_form_takes_go_through_cuts_and_the_programme() -> None:
    # 13 nodes in pairs of a perfect hedge with a route each way; the last one has none and cannot lose.
    losses = np.zeros((2, 13))
    losses[0, :12], losses[1, :12] = np.tile([10.0, -10.0], 6), np.tile([-10.0, 10.0], 6)
    capacity = np.zeros((13, 13))
    for first in range(0, 12, 2):
        capacity[first, first + 1] = capacity[first + 1, first] = 4.0
    found = shortfall_programme(losses, capacity, [0.5, 0.5], 0.9)
    assert found.value == pytest.approx(6 * 12.0, rel=1e-9)
    by_cuts = least_collateral(
        losses,
        np.broadcast_to(capacity, (2, 13, 13)),
        np.array([0.5, 0.5]),
        confidence=0.9,
        holds=np.ones(13, bool),
        precision=1e-9,
    )
    assert by_cuts.value == pytest.approx(6 * 12.0, rel=1e-9)
    assert by_cuts.lower_bound == pytest.approx(6 * 12.0, rel=1e-9)
