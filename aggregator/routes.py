"""The routes file: how collateral gets from one venue to another, how fast, how much of it, and what can stop it.

A person writes what a venue does (how long a withdrawal takes, on which chains, how much a day) and what joins the
chains; the routes between any two venues follow from that (`route_network`). A route that is known better is written
out and replaces the composed ones. Times in hours, money in USD, fees and probabilities as fractions.

Whatever several routes share is a **channel**: a chain, a bridge, a venue that lets nothing out. A channel is up or
down in a scenario for all routes that lead through it.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from .errors import ConfigurationError, nearest_name
from .section import Section

_NAME = r"^[A-Za-z0-9_.:*-]{1,128}$"


class Outage(Section):
    """Probability that a channel is down: the logistic function of `intercept + slope * stress`.

    `stress` is the market's fall in standard deviations over the horizon: 0 on a quiet day, 3 on a bad one.
    """

    intercept: float = Field(default=-6.0, ge=-50, le=50)
    slope: float = Field(default=0.5, ge=-20, le=20)


NEVER_DOWN = Outage(intercept=-50.0, slope=0.0)
"""Next to never."""


class Channel(Section):
    """A chain, bridge or custodian that routes lead through. `loss_per_year`: failures a year that lose what is under
    way.
    """

    kind: Literal["chain", "bridge", "custodian"]
    outage: Outage = Outage()
    loss_per_year: float = Field(default=0.0, ge=0, le=365)
    source: str = Field(min_length=1)


class Leg(Section):
    """One part of a way: typical and almost certain duration, what passes in a day, and what it costs."""

    median_hours: float = Field(ge=0, le=8760)
    p99_hours: float = Field(ge=0, le=8760)
    capacity_usd: float | None = Field(default=None, ge=0)
    """None: no limit of its own."""
    fee: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> Leg:
        if self.p99_hours < self.median_hours:
            raise ValueError(f"p99_hours {self.p99_hours:g} is below median_hours {self.median_hours:g}")
        return self


class Link(Leg):
    """What joins two chains; `through` names a channel."""

    source_chain: str
    target_chain: str
    through: str
    fee: float = Field(default=0.0, gt=-1, lt=1)
    source: str = Field(min_length=1)


class VenueRoutes(Section):
    """What one venue lets out and takes in.

    `leaving` is a withdrawal until it is on a chain, its capacity what may leave in a day by all ways together;
    `arriving` a deposit from its chain until it counts. `within` moves collateral between two nodes of the venue (an
    isolated position and the cross account), None: not possible. `grace_hours` pass between the verdict and the
    liquidation (auctions, keepers). Without `profit_leaves`, unrealised profit cannot be withdrawn.
    """

    chains: tuple[str, ...] = Field(min_length=1)
    leaving: Leg
    arriving: Leg
    within: Leg | None = None
    profit_leaves: bool = False
    grace_hours: float = Field(default=0.0, ge=0, le=720)
    liquidation_cost: float = Field(default=0.005, ge=0, lt=1)
    """Fee and impact of a liquidation, as a share of the notional that is closed. ASSUMED."""
    outage: Outage = Outage()
    default_per_year: float | None = Field(default=None, ge=0, le=365)
    """Failures a year in which what lies at the venue is lost; None: only withdrawals halt."""
    source: str = Field(min_length=1)


class WrittenRoute(Leg):
    """A route between two venues or nodes, written out; it replaces the composed routes of that pair."""

    origin: str = Field(pattern=_NAME)
    target: str = Field(pattern=_NAME)
    asset: str = "USDC"
    through: tuple[str, ...] = ()
    fee: float = Field(default=0.0, gt=-1, lt=1)
    source: str = Field(min_length=1)


class CreditLine(Section):
    """A prime broker: advances up to `line_usd` at its venues, against what lies at the others."""

    name: str = Field(pattern=_NAME)
    line_usd: float = Field(ge=0)
    venues: tuple[str, ...] = Field(min_length=1)
    hours: float = Field(default=0.0, ge=0, le=8760)
    outage: Outage = NEVER_DOWN
    source: str = Field(min_length=1)


class Operator(Section):
    """When somebody starts to move collateral: an account's health falls below `warning_health`, or a node has lost
    `warning_share` of what it needs alone; `reaction_hours` later the transfers leave.
    """

    warning_health: float = Field(default=1.5, gt=0)
    warning_share: float = Field(default=0.5, gt=0, lt=1)
    reaction_hours: float = Field(default=1.0, ge=0, le=720)


class Deadline(Section):
    """How much time there is. "path": from the paths of the run, between the warning and the first liquidation of the
    node; "fixed": `fixed_hours` for every node in every scenario. `market` is the asset whose fall is the stress.
    """

    mode: Literal["fixed", "path"] = "fixed"
    fixed_hours: float = Field(default=4.0, ge=0, le=8760)
    market: str = "BTC"


class Routes(Section):
    """A whole routes file."""

    operator: Operator = Operator()
    deadline: Deadline = Deadline()
    channels: dict[str, Channel] = {}
    links: tuple[Link, ...] = ()
    venues: dict[str, VenueRoutes] = {}
    routes: tuple[WrittenRoute, ...] = ()
    credit: tuple[CreditLine, ...] = ()


class _Edge(NamedTuple):
    """A way that money can take, for the search for free money; `place` is where the file says so."""

    origin: str
    target: str
    fee: float
    place: tuple[str | int, ...]


def read_routes(path: str | Path, *, venues: Collection[str], nodes: Collection[str] = ()) -> Routes:
    """The routes file at `path`; `venues` and `nodes` are the names that it may use.

    Raises ConfigurationError with the line of each mistake: a negative time, an unknown venue, chain or key, and a
    cycle of fees that pays whoever goes round it.
    """
    name = Path(path).name
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"cannot read the routes {name!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # Of both libraries: no TOML, no UTF-8, or a number of more digits than Python reads.
        raise ConfigurationError(f"{name} is not valid TOML: {error}") from None
    try:
        # As JSON, so that a text is no number and a number no truth, while arrays and tables stay what they are.
        routes = Routes.model_validate_json(json.dumps(document, default=_of_no_key), strict=True)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_sentences(error, name, text))) from None
    wrong = [*_unknown_names(routes, venues, nodes), *_free_money(routes)]
    if wrong:
        raise ConfigurationError("; ".join(f"{_where(name, text, place)}: {message}" for place, message in wrong))
    return routes


def _of_no_key(value: object) -> dict[str, str]:
    """A date or time, which no key takes, as something that no key takes."""
    return {"time": str(value)}


# ---- what is wrong, and on which line --------------------------------------------------------------------------------


def _sentences(error: ValidationError, name: str, text: str) -> Iterator[str]:
    known = {
        field
        for model in (Routes, Operator, Deadline, Channel, Link, VenueRoutes, Leg, WrittenRoute, CreditLine, Outage)
        for field in model.model_fields
    }
    for entry in error.errors(include_url=False, include_context=False, include_input=False):
        where = _where(name, text, entry["loc"])
        if entry["type"] == "extra_forbidden":
            yield f"{where}: unknown key {entry['loc'][-1]}{nearest_name(str(entry['loc'][-1]), sorted(known))}"
        elif entry["type"] == "missing":
            yield f"{where}: missing key {entry['loc'][-1]}"
        else:
            yield f"{where}: {entry['msg'].removeprefix('Value error, ')}"


def _where(name: str, text: str, place: Sequence[str | int]) -> str:
    """File, line and key of a place in the file; the line of the table's header where the key has none of its own."""
    key = ".".join(str(part) for part in place)
    number = _line_number(text, place)
    return f"{name}, line {number}, {key}" if number else f"{name}, {key}"


def _line_number(text: str, place: Sequence[str | int]) -> int | None:
    """Line of the longest part of the place that has one."""
    known = _lines(text)
    for depth in range(len(place), 0, -1):
        if (number := known.get(tuple(place[:depth]))) is not None:
            return number
    return None


def _lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line on which every table and every key of a TOML text starts, by its place."""
    out: dict[tuple[str | int, ...], int] = {}
    table: tuple[str | int, ...] = ()
    counts: dict[tuple[str | int, ...], int] = {}
    closing = ""
    for number, line in enumerate(text.split("\n"), 1):
        if closing:
            # Within a text of several lines nothing is a key.
            closing = "" if closing in line else closing
        elif header := re.match(rf"\s*(\[\[?)\s*({_KEYS})\s*\]", line):
            table = ()
            for part in _parts(header[2]):
                table = (*table, part)
                if table in counts:
                    table = (*table, counts[table] - 1)
            if header[1] == "[[":
                at = table[:-1] if isinstance(table[-1], int) else table
                counts[at] = counts.get(at, 0) + 1
                out.setdefault(at, number)
                table = (*at, counts[at] - 1)
            for depth in range(1, len(table) + 1):
                out.setdefault(table[:depth], number)
        elif key := re.match(rf"\s*({_KEYS})\s*=", line):
            place = table
            for part in _parts(key[1]):
                place = (*place, part)
                out.setdefault(place, number)
            value = line[key.end() :].strip()
            closing = next((mark for mark in _LONG_TEXT if value.startswith(mark) and value.count(mark) == 1), "")
    return out


_LONG_TEXT = ('"""', "'''")
_KEY = r"""(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"


def _parts(keys: str) -> list[str]:
    return [key.strip("\"'") for key in re.findall(_KEY, keys)]


def _unknown_names(
    routes: Routes, venues: Collection[str], nodes: Collection[str]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    chains = {name for name, channel in routes.channels.items() if channel.kind == "chain"}

    def unknown(word: str, name: str, known: Collection[str]) -> str:
        return f"unknown {word} {name!r}{nearest_name(name, sorted(known))}"

    for number, link in enumerate(routes.links):
        for key in ("source_chain", "target_chain"):
            chain = getattr(link, key)
            if chain not in chains:
                yield ("links", number, key), unknown("chain", chain, chains)
        if link.source_chain == link.target_chain:
            yield ("links", number), f"the link leads from {link.source_chain} to itself"
        if link.through not in routes.channels:
            yield ("links", number, "through"), unknown("channel", link.through, routes.channels)
    for name, venue in routes.venues.items():
        if name not in venues:
            yield ("venues", name), unknown("venue", name, venues)
        for chain in venue.chains:
            if chain not in chains:
                yield ("venues", name, "chains"), unknown("chain", chain, chains)
        if len(set(venue.chains)) < len(venue.chains):
            yield ("venues", name, "chains"), "a chain is named twice, and would count twice"
    joined = set()
    for number, link in enumerate(routes.links):
        way: tuple[object, ...] = link.source_chain, link.target_chain, link.through
        if way in joined:
            yield ("links", number), "the link is written twice, and its capacity would count twice"
        joined.add(way)
    written = set()
    for number, route in enumerate(routes.routes):
        way = route.origin, route.target, route.asset, frozenset(route.through)
        if way in written:
            yield ("routes", number), "the route is written twice, and its capacity would count twice"
        written.add(way)
        for key in ("origin", "target"):
            end = getattr(route, key)
            if end not in venues and end not in nodes:
                yield ("routes", number, key), unknown("venue or node", end, [*venues, *nodes])
        if route.origin == route.target and route.origin in nodes:
            yield ("routes", number), f"the route leads from {route.origin} to itself"
        for channel in route.through:
            if channel not in routes.channels:
                yield ("routes", number, "through"), unknown("channel", channel, routes.channels)
    for name in routes.channels:
        if name.startswith(("venue ", "default ", "credit ", "route ")):
            yield ("channels", name), f"the name {name!r} is taken"
    names = set()
    for number, credit in enumerate(routes.credit):
        if len(set(credit.venues)) < max(2, len(credit.venues)):
            yield ("credit", number, "venues"), "a credit line joins at least two venues, each named once"
        for venue_name in credit.venues:
            if venue_name not in venues:
                yield ("credit", number, "venues"), unknown("venue", venue_name, venues)
        if credit.name in names or credit.name in venues or credit.name in nodes:
            yield ("credit", number, "name"), f"the name {credit.name!r} is taken"
        names.add(credit.name)


def _free_money(routes: Routes) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Cycles in which fees below zero pay more than the others take (negative cycles of -log(1 - fee))."""
    edges: list[_Edge] = []
    for name, venue in routes.venues.items():
        for chain in venue.chains:
            edges.append(_Edge(name, f"chain {chain}", venue.leaving.fee, ("venues", name)))
            edges.append(_Edge(f"chain {chain}", name, venue.arriving.fee, ("venues", name)))
    for number, link in enumerate(routes.links):
        chains = f"chain {link.source_chain}", f"chain {link.target_chain}"
        edges.append(_Edge(*chains, link.fee, ("links", number, "fee")))
    # A node that a route names is a point of its own, which also goes all the ways of its venue.
    ends = {end for route in routes.routes for end in (route.origin, route.target)}
    known = {*routes.venues, *(end for end in ends if ":" not in end)}
    named: dict[str, list[str]] = {}
    for end in sorted(ends - known):
        named.setdefault(end.partition(":")[0], []).append(end)
    for name, members in named.items():
        if name not in routes.venues:
            continue
        venue = routes.venues[name]
        for node in members:
            for chain in venue.chains:
                edges.append(_Edge(node, f"chain {chain}", venue.leaving.fee, ("venues", name)))
                edges.append(_Edge(f"chain {chain}", node, venue.arriving.fee, ("venues", name)))
            if venue.within is not None:
                for other in (name, *members):
                    if other != node:
                        edges.append(_Edge(node, other, venue.within.fee, ("venues", name)))
                        edges.append(_Edge(other, node, venue.within.fee, ("venues", name)))
    for number, route in enumerate(routes.routes):
        for origin in (route.origin, *named.get(route.origin, ())):
            for target in (route.target, *named.get(route.target, ())):
                edges.append(_Edge(origin, target, route.fee, ("routes", number, "fee")))
    for number, credit in enumerate(routes.credit):
        # The broker takes what lies at one member for what it advances at another.
        members = [end for name in credit.venues for end in (name, *named.get(name, ()))] if credit.line_usd else []
        edges += [_Edge(one, other, 0.0, ("credit", number)) for one, other in permutations(members, 2)]
    if all(edge.fee >= 0.0 for edge in edges):
        return
    cost = dict.fromkeys({end for edge in edges for end in (edge.origin, edge.target)}, 0.0)
    came: dict[str, _Edge] = {}
    changed = ""
    for _ in range(len(cost) + 1):
        changed = ""
        for edge in edges:
            there = cost[edge.origin] - math.log1p(-edge.fee)
            if there < cost[edge.target] - 1e-15:
                cost[edge.target], came[edge.target], changed = there, edge, edge.target
        if not changed:
            return
    for _ in range(len(cost)):
        changed = came[changed].origin
    cycle: list[_Edge] = []
    at = changed
    while not cycle or at != changed:
        cycle.append(came[at])
        at = came[at].origin
    cycle.reverse()
    gain = math.expm1(math.fsum(math.log1p(-edge.fee) for edge in cycle))
    way = " -> ".join([cycle[0].origin, *(edge.target for edge in cycle)])
    paying = min(cycle, key=lambda edge: edge.fee)
    yield paying.place, f"fees pay {gain:.2%} for going round {way}: no route makes money"


def merged_channels(routes: Routes, venues: Collection[str]) -> Mapping[str, tuple[Outage, float]]:
    """Outage and losses a year of every channel: withdrawals ("venue NAME"), failures of venues, credit lines too."""
    out = {name: (channel.outage, channel.loss_per_year) for name, channel in routes.channels.items()}
    for name in sorted(venues):
        if name in routes.venues:
            venue = routes.venues[name]
            out[f"venue {name}"] = venue.outage, 0.0
            if venue.default_per_year is not None:
                out[f"default {name}"] = NEVER_DOWN, venue.default_per_year
    for credit in routes.credit:
        out[f"credit {credit.name}"] = credit.outage, 0.0
    return out
