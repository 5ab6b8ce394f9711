"""The transfer model of one portfolio against a slow twin of loops and linear programmes, and what must always hold."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.transfer_programme import shortfall_programme, uncovered_programme
from tests.margin_twin import expected_shortfall
from tests.transfer_twin import (
    CASES,
    CHANNELS,
    FIXED,
    LEVELS,
    PATH,
    SCENARIOS,
    alone,
    capacities,
    case,
    leads,
    losses_at_the_end,
    minimum,
    needs_of,
    network,
    nodes_of,
    of,
    ring,
    route,
    tces,
    today,
)

SOLVED = 1e-5  # the solver ends at a gap of 1e-7 or after its last step; the programme of HiGHS at 1e-7
EXACT = 1e-9  # sums of 512 float64 terms of both signs
UNCOVERED = 1e-6  # HiGHS: each uncovered amount to 1e-7 of the largest term

LAST = len(LEVELS) - 1


@functools.cache
def capacity_needed(name: str) -> tuple[np.ndarray, np.ndarray]:
    given, _ = of(name)
    return capacities(given, leads(given, needs_of(given, LEVELS[0])))


@pytest.mark.parametrize("name", CASES)
def test_pooled_and_siloed_start_from_zero(name: str) -> None:
    given, found = of(name)
    losses = losses_at_the_end(given)
    for number, level in enumerate(LEVELS):
        assert found.pooled[number] == pytest.approx(alone(losses.sum(axis=1), given.weights, level)[0], rel=EXACT)
        assert found.siloed[number] == pytest.approx(sum(needs_of(given, level)), rel=EXACT)
    np.testing.assert_allclose(found.alone, needs_of(given, LEVELS[0]), rtol=EXACT)


def test_a_node_that_almost_never_loses_needs_what_its_rare_loss_costs() -> None:
    """VaR below 0: the least collateral is 0 and the requirement E[L+] / (1 - a), not an expected shortfall."""
    losses = np.full((3, 4, SCENARIOS), -50.0, np.float32)
    losses[:, :, 0] = 30.0
    some = nodes_of(1, 3)._replace(losses=jnp.asarray(losses))
    given = case(1, nodes=some)._replace(weights=np.full(SCENARIOS, 1.0 / SCENARIOS))
    found = given.figures()
    np.testing.assert_allclose(found.alone, 30.0 / SCENARIOS / (1.0 - LEVELS[0]), rtol=EXACT)
    np.testing.assert_allclose(found.pooled, [90.0 / SCENARIOS / (1.0 - level) for level in LEVELS], rtol=EXACT)


@pytest.mark.parametrize("name", CASES)
def test_open_routes_are_those_up_and_in_time(name: str) -> None:
    given, found = of(name)
    is_open, _ = capacity_needed(name)
    np.testing.assert_allclose(found.route_open, given.weights @ is_open, rtol=EXACT)
    np.testing.assert_allclose(found.channel_up, given.weights @ given.up, rtol=EXACT)
    if name == "path":
        share = is_open.mean(axis=0) / given.up.mean()
        assert share.min() < 0.7 < 0.8 < share.max(), "lead hours decide nothing here"


@pytest.mark.parametrize("name", CASES)
def test_tces_is_the_optimum_of_the_linear_programme(name: str) -> None:
    given, found = of(name)
    _, capacity = capacity_needed(name)
    for number, level in enumerate(LEVELS):
        expected = shortfall_programme(losses_at_the_end(given), capacity, given.weights, level).value
        assert expected == pytest.approx(tces(given, level), rel=1e-7)
        assert found.constrained[number] == pytest.approx(expected, rel=SOLVED)
        assert found.pooled[number] < 0.999 * expected < 0.998 * found.siloed[number], "nothing to travel for"
        share = (found.siloed[number] - expected) / (found.siloed[number] - found.pooled[number])
        assert found.fungibility[number] == pytest.approx(share, abs=10 * SOLVED)
    assert (found.left_out == 0).all()
    assert (np.abs(found.gap) <= SOLVED * found.constrained).all()


@pytest.mark.parametrize("name", CASES)
def test_the_placement_attains_the_tces(name: str) -> None:
    given, found = of(name)
    _, capacity = capacity_needed(name)
    missing = uncovered_programme(found.collateral - losses_at_the_end(given), capacity)
    reached = found.collateral.sum() + given.weights @ missing / (1.0 - LEVELS[0])
    assert reached == pytest.approx(found.constrained[0], rel=UNCOVERED)


@pytest.mark.parametrize("name", CASES)
def test_today_is_assessed_as_by_the_linear_programme(name: str) -> None:
    given, found = of(name)
    surplus, capacity = today(given)
    missing = uncovered_programme(surplus, capacity)
    short = missing > UNCOVERED * np.abs(surplus).max()
    weights, size = given.weights, float(np.abs(surplus).max())
    chance = weights[short].sum()
    delivered = np.maximum(-surplus, 0.0).sum(axis=1) - missing
    stranded = np.maximum(surplus, 0.0).sum(axis=1) - delivered
    assert 0.02 < chance < 0.9
    assert found.p_uncovered == pytest.approx(chance, rel=EXACT)
    assert found.transit_mean == pytest.approx(weights @ missing, rel=UNCOVERED)
    assert found.uncovered_mean == pytest.approx(weights[short] @ missing[short] / chance, rel=UNCOVERED)
    assert found.stranded == pytest.approx(weights[short] @ stranded[short] / chance, abs=UNCOVERED * size)
    np.testing.assert_allclose(found.p_deficit, weights @ (surplus < 0.0), rtol=EXACT)
    for number, level in enumerate(LEVELS):
        expected = expected_shortfall(missing, weights, level)
        assert found.uncovered_shortfall[number] == pytest.approx(expected, rel=UNCOVERED)


@pytest.mark.parametrize("name", CASES)
def test_the_top_up_is_the_optimum_of_the_linear_programme(name: str) -> None:
    given, found = of(name)
    surplus, capacity = today(given)
    best, _ = minimum(-surplus, capacity, given.weights, LEVELS[0], given.network.nodes)
    left = uncovered_programme(surplus + found.top_up, capacity)
    assert (found.top_up >= 0.0).all()
    reached = found.top_up.sum() + given.weights @ left / (1.0 - LEVELS[0])
    assert reached == pytest.approx(best, rel=SOLVED)


def test_what_is_lost_on_the_way_is_gone_from_its_source() -> None:
    given, found = of("losing")
    assert given.lost.any()
    kept = given._replace(lost=np.zeros_like(given.lost)).figures()
    # Down it is in both: only what its source no longer has differs.
    assert found.stranded < kept.stranded * (1.0 - 1e-3)
    assert found.transit_mean >= kept.transit_mean
    np.testing.assert_array_equal(found.constrained, kept.constrained)


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_without_a_channel_is_a_bound_between_the_new_tces_and_the_silo(name: str) -> None:
    given, found = of(name)
    assert (found.without_channel >= found.constrained[0]).all()
    assert (found.without_channel <= found.siloed[0]).all()
    for channel in range(len(CHANNELS)):
        assert found.without_channel[channel] >= tces(given, LEVELS[0], channel) * (1.0 - SOLVED)
    # With the same placement, so its value is known.
    losses = losses_at_the_end(given)
    _, cut = capacities(given, leads(given, needs_of(given, LEVELS[0])), 0)
    missing = uncovered_programme(found.collateral - losses, cut)
    placed = found.collateral.sum() + given.weights @ missing / (1.0 - LEVELS[0])
    assert found.without_channel[0] == pytest.approx(min(placed, found.siloed[0]), rel=UNCOVERED)


def test_a_failure_binds_where_routes_lead_through_it() -> None:
    """The channel of all routes costs the whole benefit, one that nothing leads through costs nothing."""
    routes = [r._replace(through=("bridge",)) for r in ring()]
    found = case(1, of=network(3, routes)).figures()
    assert found.without_channel[CHANNELS.index("bridge")] == pytest.approx(found.siloed[0], rel=0.2)
    for idle in ("chain", "venue"):
        assert found.without_channel[CHANNELS.index(idle)] == pytest.approx(found.constrained[0], rel=SOLVED)
    assert int(np.argmax(found.without_channel)) == CHANNELS.index("bridge")


@pytest.mark.parametrize("failed", [("chain",), ("bridge",), ("venue",), CHANNELS])
def test_failures_leave_finite_numbers_in_their_order(failed: tuple[str, ...]) -> None:
    given, whole = of("path")
    up = given.up.copy()
    for name in failed:
        up[:, CHANNELS.index(name)] = False
    found = given._replace(up=up).figures()
    for field, values in found._asdict().items():
        if "error" not in field:  # errors from batches need more scenarios than there are here
            assert np.isfinite(values).all(), field
    assert (found.pooled <= found.constrained).all()
    assert (found.constrained <= found.siloed).all()
    assert (found.constrained >= whole.constrained * (1.0 - SOLVED)).all()
    assert found.transit_mean >= whole.transit_mean
    if failed == CHANNELS:
        np.testing.assert_array_equal(found.constrained, found.siloed)
        np.testing.assert_array_equal(found.fungibility, 0.0)
        np.testing.assert_array_equal(found.route_open, 0.0)


def test_free_and_instant_routes_pool_everything() -> None:
    routes = [route(u, v, np.inf, 0.0) for u in range(3) for v in range(3) if u != v]
    for timing in (PATH, FIXED):
        # Grace above the reaction, so that even a deadline at the warning itself leaves time.
        found = case(4, of=network(3, routes)._replace(grace_hours=(2.0, 2.0, 2.0)), timing=timing).figures()
        np.testing.assert_allclose(found.constrained, found.pooled, rtol=SOLVED)
        np.testing.assert_allclose(found.fungibility, 1.0, rtol=SOLVED)


def test_a_node_without_a_route_stands_alone() -> None:
    """The ring of "path" with a fourth node beside it: every figure is the ring's and the node's own."""
    given, ringed = of("path")
    four = nodes_of(8, 4)
    both: Any = {
        name: np.concatenate([values, getattr(four, name)[3:]])
        for name, values in given.nodes._asdict().items()
        if name != "warned"
    }
    nodes = given.nodes._replace(**both)
    wide = given._replace(network=network(4, ring()), nodes=nodes)
    found = wide.figures()
    own = losses_at_the_end(wide)[:, 3]
    value, placed = alone(own, given.weights, LEVELS[0])
    for number, level in enumerate(LEVELS):
        more = alone(own, given.weights, level)[0]
        assert found.siloed[number] == pytest.approx(ringed.siloed[number] + more, rel=EXACT)
        assert found.constrained[number] == pytest.approx(ringed.constrained[number] + more, rel=SOLVED)
    assert found.alone[3] == pytest.approx(value, rel=EXACT)
    assert found.collateral[3] == pytest.approx(placed, rel=EXACT)
    np.testing.assert_allclose(found.collateral[:3], ringed.collateral, rtol=EXACT)
    surplus, capacity = today(wide)
    missing = uncovered_programme(surplus, capacity)
    assert found.transit_mean == pytest.approx(given.weights @ missing, rel=UNCOVERED)
    short = missing > UNCOVERED * np.abs(surplus).max()
    spare = np.maximum(surplus, 0.0).sum(axis=1) - (np.maximum(-surplus, 0.0).sum(axis=1) - missing)
    assert found.stranded == pytest.approx(np.average(spare[short], weights=given.weights[short]), rel=UNCOVERED)
    chance = given.weights @ (surplus[:, 3] < 0.0)
    assert found.p_deficit[3] == pytest.approx(chance, rel=EXACT)
    assert found.buffer_value[3] == pytest.approx(chance / (1.0 - LEVELS[0]), rel=EXACT)
    assert found.top_up[3] == pytest.approx(alone(-surplus[:, 3], given.weights, LEVELS[0])[1], rel=EXACT)


def test_without_any_route_every_node_stands_alone() -> None:
    given = case(5, of=network(3, []))
    found = given.figures()
    np.testing.assert_allclose(found.constrained, found.siloed, rtol=EXACT)
    np.testing.assert_array_equal(found.fungibility, 0.0)
    assert found.route_value.shape == (0,)
    surplus, _ = today(given)
    missing = np.maximum(-surplus, 0.0).sum(axis=1)
    short = missing > 0.0
    assert found.p_uncovered == pytest.approx(given.weights[short].sum(), rel=EXACT)
    stranded = np.average(np.maximum(surplus, 0.0).sum(axis=1)[short], weights=given.weights[short])
    assert found.stranded == pytest.approx(stranded, rel=EXACT)
