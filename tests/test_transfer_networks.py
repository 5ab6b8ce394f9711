"""What changes nothing in the transfer model of a portfolio, what only helps; limits, brokers and values of routes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from aggregator import transfer_batch
from aggregator.node_scenarios import NEVER
from aggregator.route_network import RouteNetwork
from aggregator.transfer_batch import NetworkScenarios, evaluate_transfers
from aggregator.transfer_programme import uncovered_programme
from tests.transfer_twin import (
    CHANNELS,
    FIXED,
    LEVELS,
    SCENARIOS,
    Case,
    case,
    losses_at_the_end,
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

CLOSED_FIGURES = (
    "pooled",
    "siloed",
    "alone",
    "route_open",
    "channel_up",
    "p_uncovered",
    "uncovered_mean",
    "uncovered_shortfall",
    "transit_mean",
    "stranded",
    "p_deficit",
)
"""Figures without an optimum in them."""


# ---- what changes nothing, and what only helps -----------------------------------------------------------------------


def permuted(given: Case, order: list[int]) -> Case:
    """Node `order[k]` becomes node k."""
    place = {old: new for new, old in enumerate(order)}
    old = given.network
    routes = [r._replace(source=place[r.source], target=place[r.target]) for r in reversed(old.routes)]
    moved = old._replace(routes=tuple(routes), grace_hours=tuple(old.grace_hours[n] for n in order))
    moved_nodes: Any = {name: values[order] for name, values in given.nodes._asdict().items() if name != "warned"}
    nodes = given.nodes._replace(**moved_nodes)
    return given._replace(network=moved, nodes=nodes)


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 1, 0]])
def test_the_order_of_nodes_and_routes_changes_nothing(order: list[int]) -> None:
    given, found = of("losing")
    other = permuted(given, order).figures()
    for name in ("alone", "p_deficit", "buffer_value"):
        np.testing.assert_allclose(getattr(other, name), getattr(found, name)[order], rtol=EXACT, err_msg=name)
    np.testing.assert_allclose(other.route_open[::-1], found.route_open, rtol=EXACT)
    for name in ("pooled", "siloed", "p_uncovered", "uncovered_shortfall", "transit_mean", "stranded"):
        np.testing.assert_allclose(getattr(other, name), getattr(found, name), rtol=EXACT, err_msg=name)
    np.testing.assert_allclose(other.constrained, found.constrained, rtol=SOLVED)


@pytest.mark.long
def test_padding_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given, found = of("path")
    monkeypatch.setattr(transfer_batch, "_POINTS", (4,))
    padded = given.figures()
    for name in (*CLOSED_FIGURES, "constrained", "without_channel", "fungibility", "buffer_value"):
        expected = getattr(found, name)
        size = max(float(np.abs(expected).max()), 1e-300)
        np.testing.assert_allclose(getattr(padded, name), expected, rtol=EXACT, atol=EXACT * size, err_msg=name)


def test_scenarios_of_weight_zero_are_not_there() -> None:
    """Whatever happens in them, and weights are in every figure: all of it on one scenario is that scenario."""
    given, found = of("path")
    none = given.weights == 0.0
    assert none.any()
    wild: Any = {
        name: np.where(none, np.float32(1e6), getattr(given.nodes, name))
        for name in ("losses", "surplus", "withdrawable")
    }
    other = given._replace(nodes=given.nodes._replace(**wild)).figures()
    for name in (*CLOSED_FIGURES, "buffer_value"):
        np.testing.assert_allclose(getattr(other, name), getattr(found, name), rtol=EXACT, err_msg=name)
    np.testing.assert_allclose(other.constrained, found.constrained, rtol=SOLVED)
    one = int(np.argmax(losses_at_the_end(given).sum(axis=1)))
    single = given._replace(weights=(np.arange(SCENARIOS) == one).astype(float)).figures()
    assert single.pooled[0] == pytest.approx(losses_at_the_end(given)[one].sum(), rel=EXACT)
    assert set(np.unique(single.route_open)) <= {0.0, 1.0}


def test_more_capacity_and_less_time_never_cost_anything() -> None:
    values, chances = [], []
    for capacity in (0.0, 20.0, 80.0, 1e9):
        found = case(6, of=network(3, ring(capacity))).figures()
        values.append(found.constrained)
        chances.append(found.transit_mean)
    assert (np.diff(values, axis=0) <= SOLVED * np.asarray(values[:-1])).all()
    assert (np.diff(chances) <= 0.0).all()
    np.testing.assert_array_equal(values[0], case(6, of=network(3, ring(0.0))).figures().siloed)
    slower = [
        case(6, of=network(3, ring(50.0, h))).figures() for h in ((0.1, 0.1, 0.1), (0.5, 5.0, 11.0), (4.0, 9.0, 50.0))
    ]
    assert (np.diff([f.constrained for f in slower], axis=0) >= -SOLVED * slower[0].constrained).all()
    assert (np.diff([f.transit_mean for f in slower]) >= 0.0).all()
    assert slower[0].constrained[0] < 0.99 * slower[2].constrained[0]


@pytest.mark.parametrize("loses", [0.0, 0.3])
def test_more_points_than_the_closed_form_holds_are_computed_as_exactly(
    loses: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limit lowered to three the four nodes, a gate and one apart go another way to the same figures."""
    routes = [*ring(), route(3, 0, 60.0, fee=0.01), route(0, 5, 60.0, 0.0), route(5, 3, 70.0, 2.0, ("bridge",))]
    given = case(7, of=network(5, routes, ("limit",)), loses=loses)
    whole = given.figures()
    monkeypatch.setattr(transfer_batch, "MOST_ROUTED_POINTS", 3)
    found = given.figures()
    for name in (*CLOSED_FIGURES, "buffer_value"):
        expected = np.asarray(getattr(whole, name))
        np.testing.assert_allclose(getattr(found, name), expected, rtol=EXACT, atol=1e-12, err_msg=name)
    for name in ("constrained", "fungibility", "top_up_total", "without_channel", "without_route"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found.constrained, whole.constrained, rtol=SOLVED)
    assert (found.gap <= 1e-6 * found.constrained).all()
    assert float(found.collateral.sum()) <= found.constrained[0] + 1e-9
    np.testing.assert_array_equal(found.collateral[5:], 0.0)
    assert (found.route_value >= 0.0).all()
    np.testing.assert_allclose(found.route_value, whole.route_value, atol=0.05)


# ---- limits and brokers ----------------------------------------------------------------------------------------------


def gated(limit: float) -> RouteNetwork:
    """Two nodes; whatever leaves them passes a withdrawal limit."""
    # The last one carries nothing: with it the network has the shape of `brokered`.
    limits = [route(0, 2, limit, 0.0), route(1, 3, limit, 0.0), route(0, 1, 0.0)]
    ways = [route(2, 1, 500.0, 0.5, ("bridge",)), route(3, 0, 500.0, 0.5, ("bridge",))]
    return network(2, [*limits, *ways], ("limit", "limit"))


def brokered(line: float) -> RouteNetwork:
    """Two nodes that a broker serves at once up to its line."""
    routes = [route(0, 2, np.inf, 0.0), route(1, 2, np.inf, 0.0), route(2, 3, line, 0.0)]
    return network(2, [*routes, route(3, 0, np.inf, 0.0), route(3, 1, np.inf, 0.0)], ("broker", "broker"))


@pytest.mark.parametrize("build", [gated, brokered])
def test_a_limit_binds(build: object) -> None:
    values = []
    for limit in (0.0, 15.0, 60.0, 1e6):
        given = case(9, of=build(limit), nodes=nodes_of(9, 2))  # type: ignore[operator]
        found = given.figures()
        surplus, capacity = today(given)
        assert found.transit_mean == pytest.approx(
            given.weights @ uncovered_programme(surplus, capacity), rel=UNCOVERED
        )
        values.append(float(found.transit_mean))
    assert values[0] > values[1] * 1.001 > values[2] * 1.002
    assert values[2] >= values[3]


@pytest.mark.parametrize("build", [gated, brokered])
def test_only_nodes_hold_collateral(build: object) -> None:
    given = case(9, of=build(15.0), nodes=nodes_of(9, 2))  # type: ignore[operator]
    found = given.figures()
    np.testing.assert_array_equal(found.collateral[2:], 0.0)
    np.testing.assert_array_equal(found.top_up[2:], 0.0)
    for number, level in enumerate(LEVELS):
        assert found.constrained[number] == pytest.approx(tces(given, level), rel=SOLVED)


def test_collateral_behind_a_withdrawal_limit_can_be_lost_on_the_way() -> None:
    given = case(9, of=gated(60.0), nodes=nodes_of(9, 2), loses=0.4)
    surplus, capacity = today(given)
    kept, _ = today(given._replace(lost=np.zeros_like(given.lost)))
    assert (surplus[:, 0] < kept[:, 0]).any(), "nothing of the first node is lost"
    found = given.figures()
    assert found.transit_mean == pytest.approx(given.weights @ uncovered_programme(surplus, capacity), rel=UNCOVERED)


# ---- values ----------------------------------------------------------------------------------------------------------


def test_a_dollar_of_capacity_saves_what_the_route_value_says() -> None:
    """Differences of the programme on both sides, for routes alone between their nodes; at a kink any slope between."""
    given, found = of("fixed")
    step = 0.5
    for number in (2, 3):
        values = []
        for change in (-step, 0.0, step):
            routes = list(given.network.routes)
            routes[number] = routes[number]._replace(capacity_usd=routes[number].capacity_usd + change)
            values.append(tces(given._replace(network=given.network._replace(routes=tuple(routes))), LEVELS[0]))
        right, left = (values[1] - values[2]) / step, (values[0] - values[1]) / step
        assert right - 0.02 <= found.route_value[number] <= left + 0.02


def test_a_route_that_is_always_late_is_worth_nothing() -> None:
    routes = [*ring()[:5], route(2, 1, 40.0, 500.0)]
    found = case(2, timing=FIXED, of=network(3, routes)).figures()
    assert found.route_open[5] == 0.0
    assert found.route_value[5] == pytest.approx(0.0, abs=1e-9)


def test_portfolios_are_told_apart() -> None:
    """Several at once, of one shape and of others, give what each gives alone, to the bit."""
    first, expected = of("path")
    market = first.market
    given = [first, case(11), case(12, of=network(2, [route(0, 1, 30.0), route(1, 0, 30.0)]))]
    together = evaluate_transfers([NetworkScenarios(c.network, c.nodes) for c in given], CHANNELS, market, devices=1)
    backwards = evaluate_transfers(
        [NetworkScenarios(c.network, c.nodes) for c in given[::-1]], CHANNELS, market, devices=1
    )
    for one, other in zip(together, backwards[::-1], strict=True):
        for name, values in one._asdict().items():
            np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)
    for name, values in together[0]._asdict().items():
        np.testing.assert_array_equal(values, getattr(expected, name), err_msg=name)


def test_a_node_lost_today_gets_nothing_in_time() -> None:
    """No hours are left where the venue liquidates at once: what it lacks stays uncovered."""
    given, _ = of("path")
    gone = given.nodes.passage.copy()
    gone[0] = 0
    surplus = given.nodes.surplus.copy()
    surplus[0] = -10.0
    lost = given._replace(
        network=given.network._replace(grace_hours=(0.0, 0.5, 1.0)),
        nodes=given.nodes._replace(passage=gone, surplus=surplus, warned=jnp.zeros_like(given.nodes.warned)),
    )
    found = lost.figures()
    assert found.p_uncovered == pytest.approx(1.0, rel=EXACT)
    assert found.transit_mean >= 10.0 * (1.0 - EXACT)
    assert (given.nodes.passage == NEVER).any()


@pytest.mark.parametrize("most_points", [8, 2])
def test_of_a_venue_that_fails_only_what_is_missing_there_is_left(
    most_points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surplus of its node is gone and not stranded, what it lacks stays, what others send there still arrives."""
    monkeypatch.setattr(transfer_batch, "MOST_ROUTED_POINTS", most_points)
    channels = (*CHANNELS[:-1], "default v1")
    monkeypatch.setattr("tests.transfer_twin.CHANNELS", channels)
    ways = [r._replace(through=tuple(name for name in r.through if name in channels)) for r in ring()]
    routes = [r._replace(through=(*r.through, "default v1")) if r.source == 1 else r for r in ways]
    given = case(10, of=network(3, routes))
    fails = np.random.default_rng(3).random(SCENARIOS) < 0.4
    failing, standing = (
        given._replace(
            up=np.column_stack([given.up[:, :-1], ~failed]), lost=np.column_stack([given.lost[:, :-1], failed])
        )
        for failed in (fails, np.zeros(SCENARIOS, bool))
    )
    found = failing.figures()
    surplus, capacity = today(failing)
    assert (surplus[fails, 1] > 0.0).any()
    surplus[fails, 1] = np.minimum(surplus[fails, 1], 0.0)
    missing = uncovered_programme(surplus, capacity)
    assert found.transit_mean == pytest.approx(given.weights @ missing, rel=UNCOVERED)
    short = missing > UNCOVERED * np.abs(surplus).max()
    spare = np.maximum(surplus, 0.0).sum(axis=1) - (np.maximum(-surplus, 0.0).sum(axis=1) - missing)
    assert found.stranded == pytest.approx(np.average(spare[short], weights=given.weights[short]), rel=UNCOVERED)
    whole = standing.figures()
    assert (found.constrained >= whole.constrained * (1.0 - SOLVED)).all()
    assert found.without_channel[-1] >= found.constrained[0]
    assert found.channel_up[-1] == pytest.approx(given.weights @ ~fails, rel=EXACT)
    assert whole.without_channel[-1] >= tces(standing, LEVELS[0], down=channels.index("default v1")) * (1.0 - SOLVED)


def test_what_lies_alone_at_a_venue_that_fails_is_lost_and_not_stranded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as if its venue let nothing out; what it lacks stays."""
    monkeypatch.setattr("tests.transfer_twin.CHANNELS", (*CHANNELS[:-1], "default v2"))
    given = case(11, of=network(3, [route(0, 1, 50.0, 1.0, ("chain",))]))
    fails = np.random.default_rng(3).random(SCENARIOS) < 0.4
    none = np.zeros(SCENARIOS, bool)
    failing, standing = (
        given._replace(
            up=np.column_stack([given.up[:, :-1], ~failed]), lost=np.column_stack([given.lost[:, :-1], failed])
        )
        for failed in (fails, none)
    )
    assert (np.asarray(given.nodes.withdrawable)[2, fails] > 0.0).any()
    closed = np.array(given.nodes.withdrawable)
    closed[2, fails] = 0.0
    # Any: host arrays stand where the type declares device arrays.
    held: Any = closed
    found, kept = failing.figures(), standing.figures()
    assert found.stranded < kept.stranded
    assert found.stranded == standing._replace(nodes=given.nodes._replace(withdrawable=held)).figures().stranded
    assert (found.transit_mean, found.top_up_total) == (kept.transit_mean, kept.top_up_total)
