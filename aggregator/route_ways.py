"""Ways from node to node, and the limits that several of them share, as one network of points and routes.

A limit on all that leaves a venue, passes a link or arrives at a venue is one amount, however many nodes use it. Where
only one way does, it is that way's own capacity. Otherwise it is a pair of points with the limit between them, which
all these ways lead through; a point that only one route enters and one leaves is merged away. Time has to be judged
once on each way, against the deadline of the node at its end: on the first step that only ways to one node and of one
time share. Where there is none the last step takes the time of the slowest way through it, on the safe side. Users that
may not go on by each other's ways share no point: a limit is divided among their groups (`route_groups`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from .route_groups import Use, user_groups


class Route(NamedTuple):
    """One way between two points, numbers of `RouteNetwork.points`; `through` are names of channels."""

    name: str
    source: int
    target: int
    asset: str
    through: tuple[str, ...]
    median_hours: float
    p99_hours: float
    capacity_usd: float
    """What leaves the source; `fee` of it does not arrive. Infinite without a limit."""
    fee: float

    @property
    def arriving_usd(self) -> float:
        return self.capacity_usd * (1.0 - self.fee)


class Limit(NamedTuple):
    """What all ways of equal `key` may carry together; `through` are the channels that each of them shares there."""

    key: tuple[str, str]
    name: str
    capacity_usd: float
    through: tuple[str, ...] = ()


class Way(NamedTuple):
    """One way from node to node. `halts` are the channels of its origin, `through` the others; `limits` in the order
    in which money meets them, without that on the withdrawals of its origin, which `gated` ways pass.
    """

    name: str
    source: int
    target: int
    asset: str
    halts: tuple[str, ...]
    through: tuple[str, ...]
    median_hours: float
    p99_hours: float
    capacity_usd: float
    fee: float
    limits: tuple[Limit, ...] = ()
    gated: bool = True


class JoinedWays(NamedTuple):
    """Points behind the nodes with their `kinds` (limit: of one node's withdrawals; shared), all routes, and by point
    the node whose deadline decides whether what enters it is in time.
    """

    points: tuple[str, ...]
    kinds: tuple[str, ...]
    routes: tuple[Route, ...]
    deadlines: Mapping[int, int]


def passage(source: int, target: int, name: str, capacity_usd: float) -> Route:
    """A step within the network that takes no time and leads through no channel."""
    return Route(name, source, target, "", (), 0.0, 0.0, capacity_usd, 0.0)


class _Step(NamedTuple):
    source: int
    target: int
    name: str
    asset: str
    through: tuple[str, ...]
    capacity_usd: float
    fee: float


def joined_ways(
    ways: Sequence[Way], nodes: Sequence[tuple[str, str]], leaving: Mapping[str, float], *, most_usd: float
) -> JoinedWays:
    """The network of `ways` among the (node, venue) pairs; `leaving` is the limit of withdrawals by venue, in USD.

    More than `most_usd` never moves: a limit from there on needs no point. Nor does one that the withdrawals of those
    who use it cannot fill.
    """
    points = [name for name, _ in nodes]
    kinds: list[str] = []

    def add_point(name: str, kind: str) -> int:
        points.append(name)
        kinds.append(kind)
        return len(points) - 1

    shared = _shared(ways, nodes, leaving, most_usd)
    passes = _passes(ways)
    gates: dict[int, int] = {}
    first: list[Route] = []
    for venue, limit in sorted(leaving.items()):
        groups = _member_groups(ways, nodes, venue, passes) if limit < most_usd else []
        for number, members in enumerate(groups, 1):
            part = limit / len(groups)
            if len(members) == 1:
                gate = add_point(f"{nodes[members[0]][0]} withdrawals", "limit")
                first.append(passage(members[0], gate, "withdrawal limit", part))
            else:
                name = f"{venue} withdrawals" if len(groups) == 1 else f"{venue} withdrawals {number}"
                entry, gate = add_point(f"{name} entry", "shared"), add_point(name, "shared")
                first += [passage(member, entry, "to the withdrawal limit", math.inf) for member in members]
                first.append(passage(entry, gate, "withdrawal limit", part))
            gates |= dict.fromkeys(members, gate)
    kept = len(points)
    ways, shared = _divided(ways, gates, shared, passes)
    ends: dict[tuple[str, str], tuple[int, int]] = {}
    for key in sorted(shared):
        name = shared[key].name
        ends[key] = add_point(f"{name} entry", "shared"), add_point(name, "shared")
    steps = [_steps(way, _start(way, gates), shared, ends) for way in ways]
    # A fee is paid at the last shared limit of its way; of ways with different fees the largest counts there.
    fees = dict.fromkeys(shared, 0.0)
    for way in ways:
        used = [limit.key for limit in way.limits if limit.key in shared]
        for key in used[-1:]:
            fees[key] = max(fees[key], way.fee)
    for key, (entry, behind) in ends.items():
        name, capacity, through = shared[key].name, shared[key].capacity_usd, shared[key].through
        first.append(passage(entry, behind, name, capacity)._replace(through=through, fee=fees[key]))
    goals = _goals(ways, steps)
    routes = _merged([*first, *_timed(ways, steps, goals)], set(range(kept, len(points))), goals)
    return _renumbered(points, kinds, routes, len(nodes), goals)


def _shared(
    ways: Sequence[Way], nodes: Sequence[tuple[str, str]], leaving: Mapping[str, float], most_usd: float
) -> dict[tuple[str, str], Limit]:
    """Limits that more than one way uses and that could be met."""
    count = Counter(limit.key for way in ways for limit in way.limits)
    out: dict[tuple[str, str], Limit] = {}
    for way in ways:
        for limit in way.limits:
            if limit.key in out or count[limit.key] < 2 or limit.capacity_usd >= most_usd:
                continue
            users = [w for w in ways if any(other.key == limit.key for other in w.limits)]
            origins = {nodes[w.source][1] if w.gated else "" for w in users}
            if math.fsum(leaving.get(venue, math.inf) for venue in sorted(origins)) > limit.capacity_usd:
                out[limit.key] = limit
    return out


def _passes(ways: Sequence[Way]) -> set[tuple[int, int]]:
    """Pairs of nodes of which the first can pass everything to the second whenever that one can send it on."""
    channels: dict[int, set[str]] = {}
    for way in ways:
        if way.gated:
            there = {*way.halts, *way.through}
            channels[way.source] = channels.get(way.source, there) & there
    return {
        (way.source, way.target)
        for way in ways
        if not way.gated
        and not way.limits
        and math.isinf(way.capacity_usd)
        and {*way.halts, *way.through} <= channels.get(way.target, set())
    }


def _member_groups(
    ways: Sequence[Way], nodes: Sequence[tuple[str, str]], venue: str, passes: Collection[tuple[int, int]]
) -> list[list[int]]:
    """Nodes of a venue whose withdrawals are limited, in groups that have the same ways."""
    uses = [Use(w.source, w._replace(source=-1), w.source, w.target) for w in ways if _is_withdrawal(w, nodes, venue)]
    groups = user_groups(sorted(uses, key=lambda use: use.origin), passes)
    out: dict[int, list[int]] = {}
    for member in dict.fromkeys(sorted(use.origin for use in uses)):
        out.setdefault(groups[member], []).append(member)
    return list(out.values())


def _is_withdrawal(way: Way, nodes: Sequence[tuple[str, str]], venue: str) -> bool:
    return way.gated and nodes[way.source][1] == venue


def _divided(
    ways: Sequence[Way],
    gates: Mapping[int, int],
    shared: Mapping[tuple[str, str], Limit],
    passes: Collection[tuple[int, int]],
) -> tuple[list[Way], dict[tuple[str, str], Limit]]:
    """Ways and shared limits with each limit divided among groups of users that go on by the same ways."""
    found, limits = list(ways), dict(shared)
    todo = sorted(limits)
    while todo:
        key = todo.pop(0)
        uses = {}
        for number, way in enumerate(found):
            used = [limit.key for limit in way.limits if limit.key in limits]
            if key in used:
                at = used.index(key)
                entry = used[at - 1] if at else (_start(way, gates), *_entrance(way, limits))
                uses[number] = Use(entry, (*used[at + 1 :], way.target), way.source, way.target)
        groups = user_groups(uses.values(), passes)
        count = len(set(groups.values()))
        if count < 2:
            continue
        whole = limits.pop(key)
        parts = [
            whole._replace(
                key=(key[0], f"{key[1]} {n}"), name=f"{whole.name} {n}", capacity_usd=whole.capacity_usd / count
            )
            for n in range(1, count + 1)
        ]
        limits |= {part.key: part for part in parts}
        for number, use in uses.items():
            part = parts[groups[use.entry]]
            old = found[number]
            found[number] = old._replace(limits=tuple(part if limit.key == key else limit for limit in old.limits))
        # Those before and behind see other ways in and out now.
        todo = sorted(limits)
    return found, limits


def _start(way: Way, gates: Mapping[int, int]) -> int:
    """The point where a way begins: its origin, or behind the withdrawal limit."""
    return gates.get(way.source, way.source) if way.gated else way.source


def _entrance(way: Way, shared: Mapping[tuple[str, str], Limit]) -> tuple[tuple[str, ...], float]:
    """Channels and capacity of a way outside its shared limits."""
    there = {channel for limit in way.limits if limit.key in shared for channel in limit.through}
    through = tuple(dict.fromkeys((*way.halts, *(channel for channel in way.through if channel not in there))))
    capacity = min([way.capacity_usd, *(limit.capacity_usd for limit in way.limits if limit.key not in shared)])
    return through, capacity


def _steps(
    way: Way,
    start: int,
    shared: Mapping[tuple[str, str], Limit],
    ends: Mapping[tuple[str, str], tuple[int, int]],
) -> list[_Step]:
    """The way's steps from its origin, or from behind the withdrawal limit, without those through the limits."""
    used = [limit for limit in way.limits if limit.key in shared]
    through, capacity = _entrance(way, shared)
    if not used:
        return [_Step(start, way.target, way.name, way.asset, through, capacity, way.fee)]
    out = [_Step(start, ends[used[0].key][0], way.name, way.asset, through, capacity, 0.0)]
    for before, after in pairwise(used):
        out.append(_Step(ends[before.key][1], ends[after.key][0], before.name, "", (), math.inf, 0.0))
    out.append(_Step(ends[used[-1].key][1], way.target, used[-1].name, "", (), math.inf, 0.0))
    return out


def _goals(ways: Sequence[Way], steps: Sequence[Sequence[_Step]]) -> dict[int, set[int]]:
    """By point, the nodes at the ends of the ways through it; a node is its own."""
    out: dict[int, set[int]] = {}
    for way, chain in zip(ways, steps, strict=True):
        for step in chain[:-1]:
            out.setdefault(step.target, set()).add(way.target)
        for step in chain[1:]:
            out.setdefault(step.source, set()).add(way.target)
    return out | {way.target: {way.target} for way in ways}


def _timed(ways: Sequence[Way], steps: Sequence[Sequence[_Step]], goals: Mapping[int, set[int]]) -> list[Route]:
    """Every step once, with the time of the ways that are judged there."""
    users: dict[_Step, list[int]] = {}
    for number, chain in enumerate(steps):
        for step in chain:
            users.setdefault(step, []).append(number)
    hours: dict[_Step, tuple[float, float]] = dict.fromkeys(users, (0.0, 0.0))
    for number, chain in enumerate(steps):
        way = ways[number]
        own = way.p99_hours, way.median_hours
        exact = [
            step
            for step in chain
            if goals[step.target] == {way.target}
            and all((ways[n].p99_hours, ways[n].median_hours) == own for n in users[step])
        ]
        judged = exact[0] if exact else chain[-1]
        hours[judged] = max(hours[judged], own)
    return [
        Route(s.name, s.source, s.target, s.asset, s.through, median, p99, s.capacity_usd, s.fee)
        for s, (p99, median) in hours.items()
    ]


def _merged(routes: list[Route], mergeable: set[int], goals: Mapping[int, set[int]]) -> list[Route]:
    """Routes with every mergeable point gone that one route enters and one leaves, where the deadline stays."""
    for point in sorted(mergeable):
        into = [route for route in routes if route.target == point]
        out = [route for route in routes if route.source == point]
        if len(into) != 1 or len(out) != 1:
            continue
        a, b = into[0], out[0]
        if a.p99_hours > 0.0 and goals[b.target] != goals[point]:
            continue
        both = Route(
            name=a.name if a.asset else b.name,
            source=a.source,
            target=b.target,
            asset=a.asset or b.asset,
            through=tuple(dict.fromkeys((*a.through, *b.through))),
            median_hours=a.median_hours + b.median_hours,
            p99_hours=a.p99_hours + b.p99_hours,
            capacity_usd=min(a.capacity_usd, b.capacity_usd / (1.0 - a.fee)),
            fee=1.0 - (1.0 - a.fee) * (1.0 - b.fee),
        )
        routes = [route for route in routes if route is not a and route is not b] + [both]
    return routes


def _renumbered(
    points: Sequence[str], kinds: Sequence[str], routes: Sequence[Route], nodes: int, goals: Mapping[int, set[int]]
) -> JoinedWays:
    used = {end for route in routes for end in (route.source, route.target)}
    order = [*range(nodes), *(point for point in range(nodes, len(points)) if point in used)]
    place = {old: new for new, old in enumerate(order)}
    entered = sorted({route.target for route in routes if route.target >= nodes and route.p99_hours > 0.0})
    known = {points[point] for point in order}
    # Of a pair of which one point is left, that one has the limit's name.
    names = [
        name if (whole := name.removesuffix(" entry")) in known else whole
        for name in (points[point] for point in order[nodes:])
    ]
    return JoinedWays(
        points=tuple(names),
        kinds=tuple(kinds[point - nodes] for point in order[nodes:]),
        routes=tuple(route._replace(source=place[route.source], target=place[route.target]) for route in routes),
        deadlines={place[point]: next(iter(goals[point])) for point in entered},
    )
