"""Limits that several ways share: the network's largest flows against a programme that knows ways and limits only."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.optimize import linprog

from aggregator.route_network import GivenRoute, RouteNetwork, route_network
from aggregator.routes import Leg, Outage, Routes
from aggregator.transfer_cuts import uncovered_cuts

PROGRAMME = 1e-7  # HiGHS, relative to the largest amount
DRAWS = 60


def leg(hours: float, capacity: float | None = None) -> dict[str, Any]:
    return {"median_hours": 0.5 * hours, "p99_hours": hours, "capacity_usd": capacity}


def venue(
    chains: list[str], *, leaving: dict[str, Any], arriving: dict[str, Any], within: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"chains": chains, "leaving": leaving, "arriving": arriving, "within": within, "source": "test"}


def link(source: str, target: str, hours: float, capacity: float | None) -> dict[str, Any]:
    ends = {"source_chain": source, "target_chain": target, "through": "bridge", "source": "test"}
    return leg(hours, capacity) | ends


def routes_of(**changed: Any) -> Routes:
    """Two exchanges on two chains, and a venue on a chain of its own behind a bridge."""
    chain = {"kind": "chain", "source": "test"}
    document: dict[str, Any] = {
        "channels": {
            "ethereum": chain,
            "arbitrum": chain,
            "derive": chain,
            "bridge": {"kind": "bridge", "source": "test"},
        },
        "links": [link("ethereum", "derive", 0.5, 40.0), link("derive", "ethereum", 2.0, 30.0)],
        "venues": {
            "binance": venue(["ethereum", "arbitrum"], leaving=leg(2.0, 60.0), arriving=leg(0.5), within=leg(0.1)),
            "okx": venue(["ethereum", "arbitrum"], leaving=leg(1.0), arriving=leg(0.75, 50.0)),
            "derive": venue(["derive"], leaving=leg(0.5, 80.0), arriving=leg(0.25), within=leg(0.1)),
        },
    }
    return Routes.model_validate(document | changed)


class OneWay(NamedTuple):
    """A way as the file says it, with the names of the limits on it."""

    source: int
    target: int
    hours: float
    limits: tuple[str, ...]


def ways_of(nodes: list[tuple[str, str]], routes: Routes) -> tuple[list[OneWay], dict[str, float]]:
    """All ways between the nodes and every limit in USD, read from the file by hand."""
    ways, limits = [], {}
    for name, of_venue in routes.venues.items():
        limits[f"out {name}"] = of_venue.leaving.capacity_usd
        limits[f"in {name}"] = of_venue.arriving.capacity_usd
        limits[f"within {name}"] = None if of_venue.within is None else of_venue.within.capacity_usd
    limits |= {f"link {number}": one.capacity_usd for number, one in enumerate(routes.links)}
    limits |= {f"route {number}": one.capacity_usd for number, one in enumerate(routes.routes)}
    for u, (_, a) in enumerate(nodes):
        for v, (_, b) in enumerate(nodes):
            if u == v:
                continue
            out, into = routes.venues[a].leaving, routes.venues[b].arriving
            written = [(n, r) for n, r in enumerate(routes.routes) if (r.origin, r.target) == (a, b)]
            if written:
                ways += [OneWay(u, v, r.p99_hours, (f"out {a}", f"route {n}")) for n, r in written]
                continue
            inside = routes.venues[a].within
            if a == b:
                ways += [] if inside is None else [OneWay(u, v, inside.p99_hours, (f"within {a}",))]
                continue
            shared = [c for c in routes.venues[a].chains if c in routes.venues[b].chains]
            hours = out.p99_hours + into.p99_hours
            ways += [OneWay(u, v, hours, (f"out {a}", f"in {b}")) for _ in shared]
            for number, one in enumerate(() if shared else routes.links):
                if one.source_chain in routes.venues[a].chains and one.target_chain in routes.venues[b].chains:
                    ways.append(OneWay(u, v, hours + one.p99_hours, (f"out {a}", f"link {number}", f"in {b}")))
    return ways, {name: limit for name, limit in limits.items() if limit is not None}


def missing(surplus: np.ndarray, ways: list[OneWay], limits: dict[str, float], lead: np.ndarray) -> float:
    """Least amount from outside, by flows on ways that are in time and within every limit."""
    open_ways = [way for way in ways if way.hours <= lead[way.target]]
    count, points = len(open_ways), surplus.size
    balance = np.zeros((points, count + points))
    for number, way in enumerate(open_ways):
        balance[way.source, number] += 1.0
        balance[way.target, number] -= 1.0
    balance[:, count:] = -np.eye(points)
    rows = [balance]
    most = [surplus]
    for name, limit in limits.items():
        row = np.zeros((1, count + points))
        row[0, :count] = [name in way.limits for way in open_ways]
        rows.append(row)
        most.append(np.array([limit]))
    found = linprog(
        np.r_[np.zeros(count), np.ones(points)], A_ub=np.vstack(rows), b_ub=np.concatenate(most), method="highs"
    )
    assert found.status == 0
    return float(found.fun)


def by_network(surplus: np.ndarray, network: RouteNetwork, lead: np.ndarray) -> float:
    points = len(network.points)
    capacity = np.zeros((1, points, points))
    for route in network.routes:
        deadline = network.deadline_of[route.target]
        if route.p99_hours <= (lead[deadline] if deadline >= 0 else math.inf):
            capacity[0, route.source, route.target] += route.arriving_usd
    padded = np.zeros((1, points))
    padded[0, : network.nodes] = surplus
    return float(uncovered_cuts(padded, capacity).amount[0])


ONE_EACH = [("b", "binance"), ("o", "okx"), ("d", "derive")]
TWO_AT_DERIVE = [*ONE_EACH, ("d2", "derive")]
ALL_TWICE = [(f"{name}{n}", of_venue) for name, of_venue in ONE_EACH for n in (1, 2)]
FIXED_WAY = [{"origin": "binance", "target": "okx", "through": ["ethereum"], "source": "test"} | leg(1.0, 25.0)]

EXACT_CASES = {
    "one node each": (routes_of(), ONE_EACH, 9.0),
    "no time to think of": (routes_of(), ALL_TWICE, math.inf),
    "a written route": (routes_of(routes=FIXED_WAY), ALL_TWICE, math.inf),
    "a limit within a venue": (
        routes_of(
            venues={
                "binance": venue(["ethereum"], leaving=leg(1.0, 30.0), arriving=leg(0.5), within=leg(0.1, 20.0)),
                "okx": venue(["arbitrum", "ethereum"], leaving=leg(1.0), arriving=leg(0.5)),
            }
        ),
        [("b1", "binance"), ("b2", "binance"), ("b3", "binance"), ("o", "okx")],
        9.0,
    ),
}


@pytest.mark.parametrize("name", EXACT_CASES)
def test_the_network_delivers_exactly_what_all_limits_together_let_through(name: str) -> None:
    routes, nodes, most_hours = EXACT_CASES[name]
    network = route_network(nodes, routes)
    ways, limits = ways_of(nodes, routes)
    random = np.random.default_rng(5)
    bound = 0
    for _ in range(DRAWS):
        surplus = random.normal(0.0, 60.0, len(nodes))
        lead = random.uniform(0.0, most_hours, len(nodes)) if math.isfinite(most_hours) else np.full(len(nodes), 99.0)
        expected = missing(surplus, ways, limits, lead)
        slack = PROGRAMME * np.abs(surplus).max()
        assert by_network(surplus, network, lead) == pytest.approx(expected, abs=slack)
        bound += expected > missing(surplus, ways, {}, lead) + slack
    assert bound > DRAWS // 10, "no limit bound"


def test_where_sources_of_different_speed_share_a_limit_the_slowest_one_counts() -> None:
    """Never more than what the ways let through, and with time for all of them exactly that."""
    routes, random = routes_of(), np.random.default_rng(6)
    network = route_network(TWO_AT_DERIVE, routes)
    ways, limits = ways_of(TWO_AT_DERIVE, routes)
    late = 0
    for _ in range(DRAWS):
        surplus, lead = random.normal(0.0, 60.0, 4), random.uniform(0.0, 9.0, 4)
        slack = PROGRAMME * np.abs(surplus).max()
        found, expected = by_network(surplus, network, lead), missing(surplus, ways, limits, lead)
        assert found >= expected - slack
        late += found > expected + slack
        ample = np.maximum(lead, 4.5)
        assert by_network(surplus, network, ample) == pytest.approx(missing(surplus, ways, limits, ample), abs=slack)
    assert late > 0


def test_points_are_added_only_where_ways_meet() -> None:
    assert route_network(ONE_EACH, routes_of()).points == (
        "b",
        "o",
        "d",
        "b withdrawals",
        "d withdrawals",
        "okx deposits",
        "ethereum bridge derive",
        "derive bridge ethereum",
    )
    # Only one way through the link, and nothing that a deposit could be shared by.
    alone = route_network([("b", "binance"), ("d", "derive")], routes_of())
    assert alone.points == ("b", "d", "b withdrawals", "d withdrawals")
    assert {route.capacity_usd for route in alone.routes if route.through} == {40.0, 30.0}
    # Nobody could fill it: the withdrawals of all who use the link are limited below its own limit.
    narrow = routes_of(links=[link("ethereum", "derive", 0.5, 200.0)])
    venues = narrow.venues | {
        "okx": narrow.venues["okx"].model_copy(update={"leaving": narrow.venues["binance"].leaving})
    }
    network = route_network(ONE_EACH, narrow.model_copy(update={"venues": venues}))
    assert not [point for point in network.points if "bridge" in point]
    # More than that never moves.
    assert route_network(ONE_EACH, routes_of(), most_usd=10.0).points == ("b", "o", "d")


def test_nodes_of_one_venue_share_its_withdrawal_limit_and_moves_within_do_not_count() -> None:
    network = route_network(TWO_AT_DERIVE, routes_of())
    entry, gate = (network.points.index(f"derive withdrawals{part}") for part in (" entry", ""))
    into = {(r.source, r.target): r.capacity_usd for r in network.routes if entry in (r.source, r.target)}
    assert into == {(2, entry): math.inf, (3, entry): math.inf, (entry, gate): 80.0}
    assert {(r.source, r.target) for r in network.routes if r.name == "within"} == {(2, 3), (3, 2)}
    assert {network.kinds[point] for point in (entry, gate)} == {"shared"}


def test_an_outage_closes_every_way_through_it_and_no_other() -> None:
    """Of all paths from node to node the channels are those of the way that it stands for."""
    routes = routes_of()
    network = route_network(ALL_TWICE, routes)
    expected = {
        ("binance", "derive"): {"venue binance", "ethereum", "bridge", "derive"},
        ("okx", "derive"): {"venue okx", "ethereum", "bridge", "derive"},
        ("derive", "okx"): {"venue derive", "ethereum", "bridge", "derive"},
        ("derive", "binance"): {"venue derive", "ethereum", "bridge", "derive"},
    }
    for source, target, channels in paths_of(network):
        ends = network.venues[source], network.venues[target]
        if ends in expected:
            assert channels == expected[ends]
        elif ends[0] == ends[1]:
            assert channels == {f"venue {ends[0]}"}
        else:
            assert channels in ({f"venue {ends[0]}", "ethereum"}, {f"venue {ends[0]}", "arbitrum"})


def paths_of(network: RouteNetwork) -> list[tuple[int, int, set[str]]]:
    """Every path between two nodes that passes no third: its ends and channels."""
    out = []
    edge: list[tuple[int, int, set[str]]] = [(node, node, set()) for node in range(network.nodes)]
    while edge:
        start, at, channels = edge.pop()
        for route in network.routes:
            if route.source != at:
                continue
            if route.target >= network.nodes:
                edge.append((start, route.target, channels | set(route.through)))
            elif route.target != start:
                out.append((start, route.target, channels | set(route.through)))
    return out


# ---- ways that are not everybody's -----------------------------------------------------------------------------------


def through_open(surplus: list[float], network: RouteNetwork, down: set[str]) -> float:
    """What stays uncovered with time for everything and some channels down."""
    routes = tuple(route for route in network.routes if not down & set(route.through))
    return by_network(np.array(surplus), network._replace(routes=routes), np.full(network.nodes, 99.0))


def of_one_node(within: dict[str, Any] | None, *, written: bool) -> RouteNetwork:
    """Two nodes at one exchange that lets 60 out, of which only the first has a route of its own; what it leads to."""
    venues = {
        "binance": venue(["ethereum"], leaving=leg(2.0, 60.0), arriving=leg(0.5), within=within),
        "okx": venue(["ethereum"], leaving=leg(1.0), arriving=leg(0.5)),
    }
    own = [GivenRoute("b1", "o", "USDC", Leg(median_hours=0.1, p99_hours=0.1), Outage())]
    known = [{"origin": "b1", "target": "okx", "source": "test"} | leg(0.1)]
    return route_network(
        [("b1", "binance"), ("b2", "binance"), ("o", "okx")],
        routes_of(venues=venues, links=[], routes=known if written else []),
        given=[] if written else own,
    )


@pytest.mark.parametrize("written", [True, False])
def test_no_node_leaves_by_a_way_that_only_another_node_of_its_venue_has(written: bool) -> None:
    network = of_one_node(None, written=written)
    assert network.points[3:] == ("b1 withdrawals", "b2 withdrawals")
    chain = {"ethereum"}
    assert through_open([0.0, 50.0, -25.0], network, chain) == 25.0
    assert through_open([50.0, 0.0, -25.0], network, chain) == 0.0
    # The limit of both is divided between them: known too low, never exceeded.
    assert through_open([90.0, 90.0, -80.0], network, set()) == 20.0
    assert through_open([90.0, 0.0, -80.0], network, set()) == 50.0


def test_a_node_that_passes_everything_to_another_leaves_by_its_ways_too() -> None:
    network = of_one_node(leg(0.1), written=True)
    assert network.points[3:] == ("binance withdrawals entry", "binance withdrawals")
    assert through_open([0.0, 50.0, -25.0], network, {"ethereum"}) == 0.0
    assert through_open([0.0, 50.0, -25.0], network, {"ethereum", "venue binance"}) == 25.0
    assert through_open([90.0, 0.0, -80.0], network, set()) == 20.0
    # Not where it passes only a part, nor by a route that is open while nothing moves within the venue.
    for apart in (of_one_node(leg(0.1, 10.0), written=True), of_one_node(leg(0.1), written=False)):
        assert apart.points[3:5] == ("b1 withdrawals", "b2 withdrawals")


def test_a_deposit_arrives_only_at_the_account_on_its_own_chain() -> None:
    """A lender on two chains that takes in 40: with one chain down nothing reaches the account that lives there."""
    venues = {
        "okx": venue(["ethereum", "arbitrum"], leaving=leg(1.0), arriving=leg(0.5)),
        "aave_v3": venue(["ethereum", "arbitrum"], leaving=leg(0.1), arriving=leg(0.1, 40.0)),
    }
    network = route_network(
        [("o", "okx"), ("a1", "aave_v3"), ("a2", "aave_v3")],
        routes_of(venues=venues, links=[]),
        chains=["", "ethereum", "arbitrum"],
    )
    assert through_open([90.0, 0.0, -15.0], network, {"arbitrum"}) == 15.0
    assert through_open([90.0, -15.0, 0.0], network, {"arbitrum"}) == 0.0
    assert through_open([90.0, -30.0, -30.0], network, set()) == 20.0
