"""What is shown of a portfolio's transfers: flows by a twin programme, ways of the reactive policy, broken hedges."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from aggregator.node_scenarios import NEVER
from aggregator.transfer_detail import WORST_SCENARIOS, TransferDetail, _reactive, _ways, flows, transfer_detail
from aggregator.transfer_programme import uncovered_programme
from tests.transfer_book import ROUTES, transfer_desk
from tests.transfer_twin import Case, leads, network, route

PROGRAMME = 1e-7  # HiGHS, relative to the largest amount
EXACT = 1e-9


def random_network(seed: int, *, fees: bool) -> Any:
    """Three nodes and a limit, all pairs joined with a chance of 0.7."""
    random = np.random.default_rng(seed)
    routes = [route(0, 3, float(random.exponential(40.0)), 0.0)]
    for source in (1, 2, 3):
        for target in range(3):
            if source != target and not (source == 3 and target == 0) and random.random() < 0.7:
                fee = float(random.random() * 0.05) if fees else 0.0
                routes.append(
                    route(source, target, float(random.exponential(60.0)), float(random.integers(1, 9)), fee=fee)
                )
    return network(3, routes, ("limit",))


def surplus_of(seed: int) -> np.ndarray:
    return np.append(np.random.default_rng(10_000 + seed).normal(0.0, 50.0, 3), 0.0)


def balances(net: Any, surplus: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """What each point has after the flows."""
    left = surplus.copy()
    for r, amount in zip(net.routes, sent, strict=True):
        left[r.source] -= amount
        left[r.target] += amount * (1.0 - r.fee)
    return left


@pytest.mark.parametrize("fees", [False, True])
def test_flows_keep_to_what_is_there_and_to_every_limit(fees: bool) -> None:
    moved = 0
    for seed in range(60):
        net, surplus = random_network(seed, fees=fees), surplus_of(seed)
        sent = flows(net, surplus)
        slack = PROGRAMME * np.abs(surplus).max()
        assert (sent >= 0.0).all()
        assert all(amount <= r.capacity_usd + slack for r, amount in zip(net.routes, sent, strict=True))
        after = balances(net, surplus, sent)
        assert (after >= np.minimum(surplus, 0.0) - slack).all(), "somebody gave what it did not have"
        moved += bool(sent.any())
    assert moved > 20


def test_flows_cover_all_that_can_be_covered() -> None:
    for seed in range(60):
        net, surplus = random_network(seed, fees=False), surplus_of(seed)
        capacity = np.zeros((4, 4))
        for r in net.routes:
            capacity[r.source, r.target] += r.capacity_usd
        after = balances(net, surplus, flows(net, surplus))
        expected = uncovered_programme(surplus[None], capacity)[0]
        assert np.maximum(-after, 0.0).sum() == pytest.approx(expected, abs=PROGRAMME * np.abs(surplus).max())


def cheapest(net: Any, surplus: np.ndarray) -> float:
    """Least fees of flows that leave as little uncovered as possible: two programmes, one after the other."""
    count = len(net.routes)
    rows = np.zeros((4, count + 4))
    for number, r in enumerate(net.routes):
        rows[r.source, number] += 1.0
        rows[r.target, number] -= 1.0 - r.fee
    rows[:, count:] -= np.eye(4)
    limits = [(0.0, r.capacity_usd) for r in net.routes] + [(0.0, max(-x, 0.0)) for x in surplus]
    unmet = np.r_[np.zeros(count), np.ones(4)]
    least = linprog(unmet, A_ub=rows, b_ub=surplus, bounds=limits, method="highs")
    fees = np.r_[[r.fee for r in net.routes], np.zeros(4)]
    allowed = least.fun + 1e-9
    found = linprog(
        fees, A_ub=np.vstack([rows, unmet]), b_ub=np.append(surplus, allowed), bounds=limits, method="highs"
    )
    assert found.status == 0
    return float(found.fun)


def test_flows_take_the_cheapest_ways() -> None:
    """Time has a small price as well, so that of the dearest hour in the network counts as a fee of 0.1 %."""
    some = False
    for seed in range(60):
        net, surplus = random_network(seed, fees=True), surplus_of(seed)
        sent = flows(net, surplus)
        paid = float(sum(amount * r.fee for r, amount in zip(net.routes, sent, strict=True)))
        least = cheapest(net, surplus)
        hours = float(sum(1e-4 * amount * 8.0 for amount in sent))
        assert least - 1e-6 <= paid <= least + hours + 1e-6
        some |= least > 0.1
    assert some


def test_of_two_ways_the_cheaper_then_the_faster_is_filled_first() -> None:
    ways = [route(0, 1, 30.0, 5.0), route(0, 1, 30.0, 2.0), route(0, 1, 30.0, 1.0, fee=0.01)]
    sent = flows(network(2, ways), np.array([200.0, -50.0]))
    np.testing.assert_allclose(sent, [20.0, 30.0, 0.0], atol=1e-6)
    sent = flows(network(2, ways), np.array([200.0, -89.7]))
    np.testing.assert_allclose(sent, [30.0, 30.0, 30.0], atol=1e-6)
    sent = flows(network(2, ways), np.array([200.0, -50.0]), np.array([np.inf, 0.0, np.inf]))
    np.testing.assert_allclose(sent, [30.0, 0.0, 20.0 / 0.99], atol=1e-6)


def test_nothing_flows_without_a_deficit_or_a_route() -> None:
    ways = [route(0, 1, 30.0)]
    np.testing.assert_array_equal(flows(network(2, ways), np.array([5.0, 0.0])), [0.0])
    np.testing.assert_array_equal(flows(network(2, ways), np.array([-5.0, 90.0])), [0.0])
    assert flows(network(2, []), np.array([5.0, -5.0])).shape == (0,)


def test_a_broker_passes_what_lies_at_the_others_up_to_its_line() -> None:
    ways = [route(0, 2, math.inf, 0.0), route(1, 2, math.inf, 0.0), route(2, 3, 12.0, 0.0)]
    net = network(2, [*ways, route(3, 0, math.inf, 0.0), route(3, 1, math.inf, 0.0)], ("broker", "broker"))
    sent = flows(net, np.array([50.0, -40.0, 0.0, 0.0]))
    np.testing.assert_allclose(sent, [12.0, 0.0, 12.0, 0.0, 12.0], atol=1e-6)


# ---- ways of the reactive policy -------------------------------------------------------------------------------------


def test_ways_are_the_fastest_that_pass_no_other_node() -> None:
    ways = [
        route(0, 3, 100.0, 0.0),
        route(3, 1, 500.0, 2.0),
        route(3, 1, 30.0, 1.0, fee=0.1),
        route(1, 2, 70.0, 4.0),
        route(2, 4, math.inf, 0.0),
        route(0, 4, math.inf, 0.0),
        route(4, 5, 9.0, 0.0),
        route(5, 0, math.inf, 0.5),
        route(5, 2, math.inf, 0.5),
    ]
    net = network(3, ways, ("limit", "broker", "broker"))
    from_0, from_1, from_2 = (_ways(net, source) for source in range(3))
    assert from_0[1] == [(1.0, pytest.approx(27.0, rel=1e-12)), (2.0, 100.0)]
    assert from_0[2] == [(0.5, 9.0)]  # by the broker, not by the second node
    assert from_1 == {2: [(4.0, 70.0)]}
    assert from_2 == {0: [(0.5, 9.0)]}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_ways_into_one_limit_the_fastest_counts(order: tuple[int, int]) -> None:
    into = [route(0, 2, math.inf, 1.0), route(0, 3, math.inf, 5.0)]
    behind = [route(2, 4, math.inf, 0.0), route(3, 4, math.inf, 0.0), route(4, 1, 100.0, 0.5), route(0, 1, 0.0, 0.1)]
    net = network(2, [*(into[at] for at in order), *behind], ("shared", "shared", "shared"))
    assert _ways(net, 0) == {1: [(1.5, 100.0)]}


# ---- the desk --------------------------------------------------------------------------------------------------------


@functools.cache
def detail() -> TransferDetail:
    of = transfer_desk("path")
    return transfer_detail(of.desk.evaluated, of.found, of.nodes, of.law, of.rules)


def test_nodes_today_are_sums_of_their_accounts() -> None:
    of = transfer_desk("path")
    portfolio, native = of.desk.portfolio, of.desk.headline.native
    for number, (node, venue) in enumerate(portfolio.nodes):
        members = [n for n, a in enumerate(portfolio.accounts) if (a.node, a.venue) == (node, venue)]
        above, free, balance, equity = 0.0, 0.0, 0.0, 0.0
        for n in members:
            info = portfolio.accounts[n]
            initial, maintenance = float(native.initial[n]), float(native.maintenance[n])
            own = float(native.equity[n])
            above += (own - info.trigger * maintenance) * info.unit_price_usd
            free += (own - max(initial, info.trigger * maintenance)) * info.unit_price_usd
        for line, value in zip(portfolio.lines, portfolio.line_equity, strict=True):
            if (line.node, line.venue) == (node, venue):
                equity += value
                balance += value if line.kind in ("collateral", "debt") else 0.0
        now = detail().now[number]
        assert now.surplus == pytest.approx(above, rel=EXACT)
        out = free if venue == "hyperliquid" else min(free, balance)
        assert now.withdrawable == pytest.approx(max(out, 0.0), rel=EXACT)
        assert detail().node_equity[number] == pytest.approx(equity, rel=EXACT)


@pytest.mark.parametrize("share", [0.4, 3.0])
def test_what_to_move_now_comes_from_where_nothing_is_missing(share: float) -> None:
    """The first routed node asks for a share of what the others can send along routes without a limit.

    None gives what it lacks itself in the worst of a hundred scenarios.
    """
    of = transfer_desk("path")
    net = of.found.network
    have = np.array([now.withdrawable for now in detail().now])
    weights = np.asarray(of.law.market.weights)
    for node in range(net.nodes):
        above = np.asarray(of.nodes.surplus[node])
        kept = min(x for x in above if weights[above <= x].sum() >= 0.01)
        have[node] = max(min(have[node], kept), 0.0)
    first, *others = net.routed
    needed = np.zeros(len(net.points))
    needed[first] = share * have[others].sum()
    asked = of.found._replace(figures=of.found.figures._replace(top_up=jnp.asarray(needed)))
    sent = transfer_detail(of.desk.evaluated, asked, of.nodes, of.law, of.rules).move_now
    slack = PROGRAMME * needed.sum()
    given = [sum(a for a, r in zip(sent, net.routes, strict=True) if r.source == node) for node in range(net.nodes)]
    got = [sum(a for a, r in zip(sent, net.routes, strict=True) if r.target == node) for node in range(net.nodes)]
    assert given[first] == 0.0
    assert got[first] == pytest.approx(min(1.0, share) * have[others].sum(), abs=slack)
    for node in others:
        assert given[node] - got[node] <= have[node] + slack
    assert have[others].sum() > 0.0


def test_the_worst_flows_are_means_over_the_worst_scenarios() -> None:
    of = transfer_desk("path")
    net = of.found.network
    weights, up = np.asarray(of.law.market.weights), np.asarray(of.law.market.channels.up)
    losses = of.nodes.losses[:, -1].astype(float)
    surplus = np.asarray(of.found.figures.collateral)[:, None] - losses
    short = np.where(weights > 0.0, np.maximum(-surplus, 0.0).sum(axis=0), 0.0)
    worst = [s for s in sorted(range(len(short)), key=lambda s: -short[s])[:WORST_SCENARIOS] if short[s] > 0.0]
    assert len(worst) == WORST_SCENARIOS
    law, alone = of.law.market, np.asarray(of.found.figures.alone)
    assert not law.channels.lost.any()
    given = Case(net, of.nodes, up, ~up, weights, law.timing)
    needs = [float(alone[node]) if node in net.routed else 0.0 for node in range(net.nodes)]
    lead = leads(given, needs)
    late = 0
    uncovered, capacity = [], np.zeros((len(net.points), len(net.points)))
    total = np.zeros(len(net.routes))
    for s in worst:
        capacity[:] = 0.0
        is_open = []
        for r in net.routes:
            is_up = all(up[s, of.law.channels.index(name)] for name in r.through)
            is_open.append(is_up and r.p99_hours <= lead[r.target, s])
            late += is_up and not is_open[-1]
            capacity[r.source, r.target] += r.capacity_usd if is_open[-1] else 0.0
        sent = flows(net, surplus[:, s], np.where(is_open, np.inf, 0.0))
        assert not sent[~np.array(is_open)].any()
        after = balances(net, surplus[:, s], sent)
        uncovered.append(uncovered_programme(surplus[:, s][None], np.minimum(capacity, 1e9))[0])
        assert np.maximum(-after, 0.0).sum() == pytest.approx(uncovered[-1], abs=PROGRAMME * np.abs(surplus).max())
        total += sent
    np.testing.assert_allclose(detail().worst_flow, total / len(worst), rtol=EXACT, atol=1e-6)
    assert total.any()
    assert late > 0, "everything is in time"


def test_prefunding_is_found_and_split_by_what_nodes_need_alone() -> None:
    of = transfer_desk("path")
    found = detail().prefunding
    assert found is not None
    np.testing.assert_allclose(detail().split, of.found.figures.alone / of.found.figures.siloed[0], rtol=EXACT)
    assert 0.0 < found.total < math.inf
    assert found.probability <= 1.0 - of.law.market.levels[0] + 1e-9
    assert found.total <= min(found.totals) * (1.0 + 1e-2)


def test_a_small_line_that_is_quick_asks_for_no_more_prefunding() -> None:
    of = transfer_desk("path")
    shares = np.full(2, 0.5)
    random = np.random.default_rng(8)
    moves = np.cumsum(random.normal(0.0, 10.0, size=(of.nodes.losses.shape[1], len(of.law.market.weights))), axis=0)
    # Any: host arrays stand where the type declares device arrays.
    losses: Any = np.stack([moves, -moves]).astype(np.float32)
    nodes = of.nodes._replace(losses=losses)
    wide = [route(0, 1, 1e3, 5.0), route(1, 0, 1e3, 5.0)]
    quick = [route(0, 1, 1e-3, 0.0), route(1, 0, 1e-3, 0.0)]
    alone, without, both, only = (
        _reactive(network(2, ways), nodes, of.law, shares, 100.0).total for ways in ([], wide, [*wide, *quick], quick)
    )
    assert without < 0.99 * alone
    assert both == without
    assert only == pytest.approx(alone, rel=2e-3)


def test_a_liquidation_breaks_the_hedge() -> None:
    """Its cost on what is closed, and what the node's positions would have won from there to the end of the path."""
    of = transfer_desk("path")
    portfolio, weights = of.desk.portfolio, np.asarray(of.law.market.weights)
    steps, some = of.nodes.losses.shape[1], 0
    for node, (name, venue) in enumerate(portfolio.nodes):
        gross = sum(
            line.gross_usd
            for line in portfolio.lines
            if (line.node, line.venue) == (name, venue) and line.kind in ("linear", "option")
        )
        cost = ROUTES.venues[venue].liquidation_cost if venue in ROUTES.venues else 0.0
        total, mass = 0.0, 0.0
        for s, step in enumerate(of.nodes.passage[node]):
            if step == NEVER:
                continue
            then = 0.0 if step == 0 else float(of.nodes.losses[node, step - 1, s])
            total += weights[s] * (cost * gross + then - float(of.nodes.losses[node, steps - 1, s]))
            mass += weights[s]
        if mass > 0.0:
            some += 1
            assert detail().hedge_break[node] == pytest.approx(total / mass, rel=EXACT, abs=1e-6)
        else:
            assert math.isnan(detail().hedge_break[node])
    assert some > 0
