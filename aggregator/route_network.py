"""The routes of one portfolio: every way from one of its nodes to another, composed from what the venues and chains do.

A withdrawal from the source, a link where the target sits on another chain, a deposit: times add up (the sum of 99 %
times is on the safe side of the 99 % time of the sum), the smallest capacity counts, fees compound.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from .errors import Failure, FailureReason, nearest_name
from .route_ways import Limit, Route, Way, joined_ways, passage
from .routes import Leg, Link, Outage, Routes, VenueRoutes, WrittenRoute

MOST_ROUTED_POINTS = 8
"""Up to this many points with a route the engine goes over all their subsets. Beyond them cuts are faster: for a desk
of 10 points and 4,096 paths 18 seconds of processor time against 108, with the smaller gap."""

_SECONDS = 3600.0


class RouteNetwork(NamedTuple):
    """Points among which collateral travels: the portfolio's nodes in its own order, behind them limits and brokers.

    A limit on everything that leaves a node is a point of its own, which all its routes lead through; a broker is two
    of them, with its line in between. Neither loses or holds anything, and nothing has to reach it by a deadline.
    """

    points: tuple[str, ...]
    venues: tuple[str, ...]
    """Venue of each node; empty for the other points."""
    kinds: tuple[str, ...]
    """node, limit (of what leaves one node), shared (a limit of several ways) or broker."""
    nodes: int
    routes: tuple[Route, ...]
    grace_hours: tuple[float, ...]
    deadline_of: tuple[int, ...]
    """By point, the node by whose deadline what enters the point must have come: a node's own, of a shared limit that
    of the one node behind it; -1 where nothing has to be in time.
    """

    @property
    def routed(self) -> tuple[int, ...]:
        """Points with a route in or out, in order; the others stand alone."""
        ends = {end for route in self.routes for end in (route.source, route.target)}
        return tuple(sorted(ends))

    def nodes_beyond(self, point: int, *, against: bool) -> frozenset[int]:
        """Nodes that a route into `point` serves through limits and brokers; `against` the routes, those it comes from.
        A node is itself.
        """
        found, edge = set(), [point]
        while edge:
            at = edge.pop()
            if at in found:
                continue
            found.add(at)
            if at >= self.nodes:
                edge += [
                    route.source if against else route.target
                    for route in self.routes
                    if (route.target if against else route.source) == at
                ]
        return frozenset(node for node in found if node < self.nodes)


class GivenRoute(NamedTuple):
    """A route between two nodes from a canonical table, with an outage of its own."""

    source_node: str
    target_node: str
    asset: str
    leg: Leg
    outage: Outage

    @property
    def channel(self) -> str:
        return f"route {self.source_node} to {self.target_node}, {self.asset}"


def given_routes(rows: Sequence[Mapping[str, Any]], nodes: Collection[str]) -> tuple[list[GivenRoute], list[Failure]]:
    """Routes of a canonical `routes` table between `nodes` of the book; a failure for every row that is none."""
    found: list[GivenRoute] = []
    failures: list[Failure] = []
    for row in rows:
        between = f"{row['source_node']} to {row['target_node']}"
        probability = row["failure_probability"]
        median = row["transfer_median_s"]
        bounds = {
            "transfer_median_s": (0.0, math.inf),
            "transfer_p99_s": (median or 0.0, math.inf),
            "capacity_usd": (0.0, math.inf),
            "fee_rate": (0.0, 0.999),
            "failure_probability": (0.0, 1.0),
        }
        wrong = [
            (field, f"{field} of the route {between} is {row[field]}; expected {least:g} to {most:g}")
            for field, (least, most) in bounds.items()
            if not (field == "capacity_usd" and row[field] is None) and not _within(row[field], least, most)
        ]
        wrong += [
            (
                field,
                f"the route {between} names {row[field]!r}, which is no node{nearest_name(row[field], sorted(nodes))}",
            )
            for field in ("source_node", "target_node")
            if row[field] not in nodes
        ]
        if row["source_node"] == row["target_node"]:
            wrong.append(("target_node", f"the route {between} leads to itself"))
        for field, message in wrong:
            failures.append(Failure(FailureReason.OUT_OF_RANGE, message, path=f"routes.{field}", subject=between))
        if wrong:
            continue
        leg = Leg(
            median_hours=row["transfer_median_s"] / _SECONDS,
            p99_hours=row["transfer_p99_s"] / _SECONDS,
            capacity_usd=row["capacity_usd"],
            fee=row["fee_rate"],
        )
        found.append(GivenRoute(row["source_node"], row["target_node"], row["asset_id"], leg, _constant(probability)))
    return found, failures


def _within(value: float | None, least: float, most: float) -> bool:
    return value is not None and math.isfinite(value) and least <= value <= most


def route_network(
    nodes: Sequence[tuple[str, str]],
    routes: Routes,
    *,
    chains: Sequence[str] = (),
    given: Sequence[GivenRoute] = (),
    most_usd: float = math.inf,
) -> RouteNetwork:
    """The network of a portfolio with these (node, venue) pairs.

    `chains` is where each node lives, empty for a venue that is on none: a lender's account on one chain has no others.
    `given` are routes of its own between named nodes. More than `most_usd` never moves: a limit from there on needs no
    point.
    """
    lives = chains or [""] * len(nodes)
    names = [node for node, _ in nodes]
    venues = [venue for _, venue in nodes]
    limits = {
        venue: leg.leaving.capacity_usd for venue, leg in routes.venues.items() if leg.leaving.capacity_usd is not None
    }
    ways: list[Way] = []
    for source, (origin, origin_venue) in enumerate(nodes):
        for target, (goal, goal_venue) in enumerate(nodes):
            if source == target:
                continue
            own = [g for g in given if (g.source_node, g.target_node) == (origin, goal)]
            written = [
                (number, w)
                for number, w in enumerate(routes.routes)
                if w.origin in (origin, origin_venue) and w.target in (goal, goal_venue)
            ]
            if own:
                ways += [_given_way(source, target, g, origin_venue, routes) for g in own]
            elif written:
                ways += [_written_way(source, target, n, w, origin_venue, routes) for n, w in written]
            else:
                ends = (origin_venue, lives[source]), (goal_venue, lives[target])
                ways += _composed_ways(source, target, *ends, routes)
    joined = joined_ways(ways, nodes, limits, most_usd=most_usd)
    points, found, deadlines = [*names, *joined.points], list(joined.routes), joined.deadlines
    kinds = ["node"] * len(names) + list(joined.kinds)
    point_venues = venues + [""] * len(joined.kinds)

    def add_point(name: str, kind: str) -> int:
        points.append(name)
        point_venues.append("")
        kinds.append(kind)
        return len(points) - 1

    for credit in routes.credit:
        members = [at for at, venue in enumerate(venues) if venue in credit.venues]
        if len(members) < 2 or not credit.line_usd:
            continue
        claims, advances = add_point(f"{credit.name} claims", "broker"), add_point(credit.name, "broker")
        found.append(passage(claims, advances, "credit line", credit.line_usd))
        leg = Leg(median_hours=credit.hours, p99_hours=credit.hours)
        channel = (f"credit {credit.name}",)
        for member in members:
            # The claim on what lies at a member passes at once; the broker is repaid when it arrives.
            claim = passage(member, claims, "claim", math.inf)
            lost = tuple(name for name in _halts(venues[member], routes) if name.startswith("default "))
            found.append(claim._replace(through=lost))
            found.append(_route(advances, member, "credit", leg, channel, credit.name))
    grace = [routes.venues[venue].grace_hours if venue in routes.venues else 0.0 for venue in point_venues]
    return RouteNetwork(
        points=tuple(points),
        venues=tuple(point_venues),
        kinds=tuple(kinds),
        nodes=len(names),
        routes=tuple(sorted(found, key=lambda r: (r.source, r.target, r.p99_hours, r.name))),
        grace_hours=tuple(grace),
        deadline_of=tuple(at if at < len(names) else deadlines.get(at, -1) for at in range(len(points))),
    )


def _constant(probability: float) -> Outage:
    """An outage of this probability under any stress."""
    bounded = min(max(probability, 1e-21), 1.0 - 1e-15)
    return Outage(intercept=math.log(bounded) - math.log1p(-bounded), slope=0.0)


def _route(source: int, target: int, asset: str, leg: Leg, through: tuple[str, ...], name: str | None = None) -> Route:
    capacity = math.inf if leg.capacity_usd is None else leg.capacity_usd
    return Route(
        name or " ".join(through), source, target, asset, through, leg.median_hours, leg.p99_hours, capacity, leg.fee
    )


def _given_way(source: int, target: int, given: GivenRoute, venue: str, routes: Routes) -> Way:
    leg = given.leg
    capacity = math.inf if leg.capacity_usd is None else leg.capacity_usd
    times = leg.median_hours, leg.p99_hours
    # The table states the outage of the whole way; only the failure of the venue is beside it.
    halts = tuple(name for name in _halts(venue, routes) if name.startswith("default "))
    return Way(given.channel, source, target, given.asset, halts, (given.channel,), *times, capacity, leg.fee)


def _written_way(source: int, target: int, number: int, written: WrittenRoute, venue: str, routes: Routes) -> Way:
    name = " ".join(written.through) or "direct"
    limits: tuple[Limit, ...] = ()
    if written.capacity_usd is not None:
        of_route = f"{written.origin} to {written.target} {name}"
        limits = (Limit(("route", str(number)), of_route, written.capacity_usd, written.through),)
    times = written.median_hours, written.p99_hours
    halts = _halts(venue, routes)
    return Way(name, source, target, written.asset, halts, written.through, *times, math.inf, written.fee, limits)


def _halts(venue: str, routes: Routes) -> tuple[str, ...]:
    """The channels that stand for the venue's own withdrawals, and for the venue itself."""
    if venue not in routes.venues:
        return ()
    fails = routes.venues[venue].default_per_year is not None
    return (f"venue {venue}", f"default {venue}") if fails else (f"venue {venue}",)


def _composed_ways(
    source: int, target: int, origin: tuple[str, str], goal: tuple[str, str], routes: Routes
) -> list[Way]:
    """Ways by every chain that both (venue, chain) use; where there is none, by the links that join them."""
    if origin[0] not in routes.venues or goal[0] not in routes.venues:
        return []
    leaving, arriving = routes.venues[origin[0]], routes.venues[goal[0]]
    halts = _halts(origin[0], routes)
    if origin == goal:
        return [] if leaving.within is None else [_within_way(source, target, origin[0], leaving.within, halts)]
    deposits: tuple[Limit, ...] = ()
    if arriving.arriving.capacity_usd is not None:
        deposits = (Limit(("arriving", goal[0]), f"{goal[0]} deposits", arriving.arriving.capacity_usd),)
    starts, ends = _chains(leaving, origin[1]), _chains(arriving, goal[1])
    out = []
    for chain in starts:
        if chain in ends:
            leg = _joined(leaving.leaving, arriving.arriving)
            times = leg.median_hours, leg.p99_hours
            out.append(Way(chain, source, target, "USDC", halts, (chain,), *times, math.inf, leg.fee, deposits))
    if out:
        return out
    for number, link in enumerate(routes.links):
        if link.source_chain in starts and link.target_chain in ends:
            leg = _joined(leaving.leaving, link, arriving.arriving)
            through = tuple(dict.fromkeys((link.source_chain, link.through, link.target_chain)))
            name = f"{link.source_chain} {link.through} {link.target_chain}"
            limits = deposits
            if link.capacity_usd is not None:
                limits = (Limit(("link", str(number)), name, link.capacity_usd, through), *deposits)
            times = leg.median_hours, leg.p99_hours
            out.append(Way(name, source, target, "USDC", halts, through, *times, math.inf, leg.fee, limits))
    return out


def _within_way(source: int, target: int, venue: str, leg: Leg, halts: tuple[str, ...]) -> Way:
    """Between two nodes of a venue: no withdrawal, and so not counted towards their limit."""
    limits: tuple[Limit, ...] = ()
    if leg.capacity_usd is not None:
        limits = (Limit(("within", venue), f"{venue} within", leg.capacity_usd),)
    times = leg.median_hours, leg.p99_hours
    return Way("within", source, target, "any", halts, (), *times, math.inf, leg.fee, limits, gated=False)


def _chains(venue: VenueRoutes, lives: str) -> tuple[str, ...]:
    """Chains that a node can be reached by: its own where it lives on one of them, else those of its venue."""
    return (lives,) if lives in venue.chains else venue.chains


def _joined(*legs: Leg | Link) -> Leg:
    limits = [leg.capacity_usd for leg in legs if leg.capacity_usd is not None]
    return Leg(
        median_hours=math.fsum(leg.median_hours for leg in legs),
        p99_hours=math.fsum(leg.p99_hours for leg in legs),
        capacity_usd=min(limits) if limits else None,
        # A rebate on the way is no reason to send more than a limit lets through.
        fee=max(0.0, -math.expm1(math.fsum(math.log1p(-leg.fee) for leg in legs))),
    )
