"""The map of a portfolio's nodes and the ways between them as inline SVG, from the result tables `nodes` and `routes`.

Nodes stand on an ellipse, in the order of their names, the darker the likelier they fall short. An arrow is everything
that leads from one node to another; it is as wide as what flows there in the worst scenarios, and its label is that of
its main way. A withdrawal limit is part of the node that it belongs to; a broker's line and a limit that several ways
share have a place of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from .report_charts import BLUE, INK, NEUTRAL, NO_BREAK, ORANGE, QUIET, WHITE, compact
from .report_charts import _mixed as mixed
from .report_charts import _number as number
from .report_charts import _shortened as shortened
from .report_charts import _svg as drawing
from .report_charts import _text as text_at
from .report_words import percent

Row = Mapping[str, Any]
Place = tuple[float, float]

MOST_POINTS = 8
MOST_ARROWS = 12
FEW_ARROWS = 6
"""Ways that carry nothing but have a value are drawn up to this many arrows."""

_WIDTH, _WIDE, _TALL = 760.0, 152.0, 36.0
_HEIGHTS = {1: 120.0, 2: 120.0, 3: 260.0, 4: 300.0}
_HEIGHT = 410.0
_BENDS = (0.16, 0.1, 0.05, 0.22, 0.3, 0.4, -0.08)
_LETTER, _LINE = 5.7, 13.0
_CURVE = 24
_SHADES = ((0.0, 0.0), (0.001, 0.12), (0.01, 0.3), (math.inf, 0.55))
"""(probability up to which, depth of the shade)."""


class NetworkMap(NamedTuple):
    """The drawing, and how many nodes and connections are not on it."""

    svg: Markup
    nodes_more: int
    ways_more: int


class Way(NamedTuple):
    """One route between two points that are drawn; amounts in USD, None where there is no limit or no figure."""

    source: str
    target: str
    name: str
    p99_hours: float | None
    capacity_usd: float | None
    flow_usd: float
    value: float


class Box(NamedTuple):
    """A rectangle around its middle."""

    x: float
    y: float
    wide: float
    tall: float

    def holds(self, place: Place, margin: float = 0.0) -> bool:
        x, y = place
        return abs(x - self.x) < self.wide / 2 + margin and abs(y - self.y) < self.tall / 2 + margin

    def meets(self, other: Box) -> bool:
        return (
            abs(self.x - other.x) < (self.wide + other.wide) / 2
            and abs(self.y - other.y) < (self.tall + other.tall) / 2
        )

    def border(self, toward: Place) -> Place:
        """Where the line from the middle to `toward` leaves the rectangle."""
        dx, dy = toward[0] - self.x, toward[1] - self.y
        share = min(
            self.wide / 2 / abs(dx) if dx else math.inf,
            self.tall / 2 / abs(dy) if dy else math.inf,
        )
        return (self.x, self.y) if math.isinf(share) else (self.x + dx * share, self.y + dy * share)


class Curve(NamedTuple):
    """A quadratic Bézier curve."""

    start: Place
    control: Place
    end: Place

    def at(self, share: float) -> Place:
        a, b, c = (1 - share) ** 2, 2 * share * (1 - share), share**2
        x, y = (a * p + b * q + c * r for p, q, r in zip(self.start, self.control, self.end, strict=True))
        return x, y

    def samples(self) -> list[Place]:
        return [self.at(k / _CURVE) for k in range(1, _CURVE)]


def point_labels(names: Sequence[str]) -> dict[str, str]:
    """Names without the parts between colons that all of them share, as long as this keeps them apart."""
    parts = [name.split(":") for name in names]
    shared = set(parts[0]).intersection(*parts[1:]) if len(parts) > 1 else set()
    short = [":".join(part for part in own if part not in shared) for own in parts]
    if not all(short) or len(set(short)) < len(set(names)):
        short = list(names)
    return dict(zip(names, short, strict=True))


def drawn_ways(nodes: Sequence[Row], routes: Sequence[Row]) -> list[Way]:
    """Routes that carry something in the worst scenarios or have a value, between nodes and brokers.

    What leaves through a limit or a broker's line is bounded by it as well.
    """
    kinds = {row["point"]: row["kind"] for row in nodes}
    belongs: dict[str, str] = {}
    bounds: dict[str, float | None] = {}
    for row in routes:
        before, after = row["source"], row["target"]
        if kinds.get(after) == "limit":
            belongs[after], bounds[after] = before, row["capacity_usd"]
        elif kinds.get(before) == kinds.get(after) and kinds.get(before) in ("broker", "shared"):
            belongs[before], bounds[after] = after, row["capacity_usd"]

    def drawn(point: str) -> str:
        return belongs.get(point, point)

    out = []
    for row in routes:
        source, target = drawn(row["source"]), drawn(row["target"])
        flow = row["worst_flow_usd"] or 0.0
        value = max(row["value"] or 0.0, row["without_increase_usd"] or 0.0)
        if source == target or source not in kinds or target not in kinds or not (flow > 0.0 or value > 0.0):
            continue
        limits = [limit for limit in (row["capacity_usd"], bounds.get(row["source"])) if limit is not None]
        out.append(Way(source, target, row["name"], row["p99_hours"], min(limits, default=None), flow, value))
    return out


def network_map(nodes: Sequence[Row], routes: Sequence[Row], *, title: str) -> NetworkMap | None:
    """The map of one portfolio from its rows of `nodes` and those of `routes` that are routes; None without any way."""
    arrows: dict[tuple[str, str], list[Way]] = {}
    for way in drawn_ways(nodes, routes):
        arrows.setdefault((way.source, way.target), []).append(way)
    if not arrows:
        return None
    flows = {pair: math.fsum(way.flow_usd for way in ways) for pair, ways in arrows.items()}
    passing: dict[str, float] = {}
    for pair, flow in flows.items():
        for end in pair:
            passing[end] = passing.get(end, 0.0) + flow
    points = sorted(
        (row for row in nodes if row["kind"] == "node" or row["point"] in passing),
        key=lambda row: (-passing.get(row["point"], 0.0), -(row["p_deficit"] or 0.0), row["point"]),
    )
    shown = sorted(points[:MOST_POINTS], key=lambda row: row["point"])
    names = [row["point"] for row in shown]
    ranked = sorted(
        (pair for pair in arrows if pair[0] in names and pair[1] in names),
        key=lambda pair: (-flows[pair], -max(way.value for way in arrows[pair]), pair),
    )
    flowing = sum(flows[pair] > 0.0 for pair in ranked)
    kept = ranked[: min(MOST_ARROWS, max(flowing, FEW_ARROWS))]
    svg = _drawn(shown, {pair: arrows[pair] for pair in kept}, {pair: flows[pair] for pair in kept}, title)
    return NetworkMap(svg, len(points) - len(shown), len(arrows) - len(kept))


def _drawn(
    points: Sequence[Row],
    arrows: Mapping[tuple[str, str], Sequence[Way]],
    flows: Mapping[tuple[str, str], float],
    title: str,
) -> Markup:
    height = _HEIGHTS.get(len(points), _HEIGHT)
    boxes = _places([row["point"] for row in points], height)
    labels = point_labels(list(boxes))
    curves = {pair: _curve(boxes, *pair) for pair in arrows}
    largest = max(flows.values(), default=0.0) or 1.0
    parts: list[Markup] = []
    for pair, ways in arrows.items():
        tip = f"{pair[0]} to {pair[1]}: {'; '.join(_way_words(way) for way in ways)}"
        parts += _arrow(curves[pair], flows[pair] / largest, tip)
    for row in points:
        parts += _node(boxes[row["point"]], labels[row["point"]], row)
    taken = list(boxes.values())
    for pair, ways in arrows.items():
        words = _label(min(ways, key=lambda way: (-way.flow_usd, -way.value, way.p99_hours or 0.0, way.name)))
        others = [curve for other, curve in curves.items() if other != pair]
        if (place := _free_place(curves[pair], len(words) * _LETTER + 4.0, taken, others, height)) is not None:
            taken.append(place)
            parts += _written(place, words)
    return drawing(parts, _WIDTH, height, title, natural_width=True)


def _places(names: Sequence[str], height: float) -> dict[str, Box]:
    """Boxes on an ellipse, clockwise from the top; two stand side by side."""
    count = len(names)
    first = math.pi if count <= 2 else -math.pi / 2
    across, down = _WIDTH / 2 - _WIDE / 2 - 6.0, height / 2 - _TALL / 2 - 6.0
    angles = [first + 2 * math.pi * k / count for k in range(count)]
    return {
        name: Box(_WIDTH / 2 + across * math.cos(angle), height / 2 + down * math.sin(angle), _WIDE, _TALL)
        for name, angle in zip(names, angles, strict=True)
    }


def _curve(boxes: Mapping[str, Box], source: str, target: str) -> Curve:
    """From border to border, bent to the right so that there and back stay apart; past other boxes where it can be."""
    a, b = boxes[source], boxes[target]
    others = [box for name, box in boxes.items() if name not in (source, target)]
    found: list[tuple[int, int, Curve]] = []
    for rank, bend in enumerate(_BENDS):
        control = ((a.x + b.x) / 2 - bend * (b.y - a.y), (a.y + b.y) / 2 + bend * (b.x - a.x))
        curve = Curve(a.border(control), control, b.border(control))
        found.append((sum(box.holds(p, 3.0) for p in curve.samples() for box in others), rank, curve))
    return min(found)[2]


def _free_place(curve: Curve, wide: float, taken: Sequence[Box], others: Sequence[Curve], height: float) -> Box | None:
    """A rectangle for a label on or beside the curve that meets none of `taken` and as few other curves as possible."""
    passes = [place for other in others for place in other.samples()]
    best: tuple[float, Box] | None = None
    for rank in range(15):
        share = 0.5 + (rank + 1) // 2 * (0.05 if rank % 2 else -0.05)
        for shift in (0.0, -_LINE, _LINE):
            x, y = curve.at(share)
            box = Box(x, y + shift, wide, _LINE)
            outside = not wide / 2 < x < _WIDTH - wide / 2 or not _LINE / 2 < box.y < height - _LINE / 2
            if outside or any(box.meets(other) for other in taken):
                continue
            cost = sum(box.holds(place, 1.0) for place in passes) + 0.05 * rank + (0.6 if shift else 0.0)
            if best is None or cost < best[0]:
                best = cost, box
    return None if best is None else best[1]


def _label(way: Way) -> str:
    hours = "" if way.p99_hours is None else f"{way.p99_hours:.2f}{NO_BREAK}h"
    limit = "" if way.capacity_usd is None else f"{NO_BREAK}·{NO_BREAK}{compact(way.capacity_usd)}"
    return hours + limit


def _way_words(way: Way) -> str:
    time = "" if way.p99_hours is None else f" in {way.p99_hours:.2f} h"
    limit = "no limit" if way.capacity_usd is None else f"at most USD {compact(way.capacity_usd)}"
    return f"{way.name}{time}, {limit}, USD {compact(way.flow_usd)} in the worst scenarios"


def _arrow(curve: Curve, share: float, tip: str) -> list[Markup]:
    """A curve with its head; without a flow thin and dashed."""
    wide = 1.2 + 4.8 * share if share > 0.0 else 1.0
    color = BLUE if share > 0.0 else NEUTRAL
    back = 7.0 + wide
    dx, dy = curve.end[0] - curve.control[0], curve.end[1] - curve.control[1]
    long = math.hypot(dx, dy) or 1.0
    ux, uy = dx / long, dy / long
    neck = curve.end[0] - back * ux, curve.end[1] - back * uy
    half = 3.0 + 0.8 * wide
    corners = [curve.end, (neck[0] - half * uy, neck[1] + half * ux), (neck[0] + half * uy, neck[1] - half * ux)]
    dash = Markup(' stroke-dasharray="4 3"') if share <= 0.0 else Markup("")
    path = "M{} {}Q{} {} {} {}".format(
        *(number(part) for place in (curve.start, curve.control, neck) for part in place)
    )
    return [
        Markup(
            '<path d="{}" fill="none" stroke="{}" stroke-width="{}" stroke-opacity="0.7"{}><title>{}</title></path>'
        ).format(path, color, number(wide), dash, tip),
        Markup('<polygon points="{}" fill="{}"/>').format(
            " ".join(f"{number(x)},{number(y)}" for x, y in corners), color
        ),
    ]


def _node(box: Box, label: str, row: Row) -> list[Markup]:
    chance = row["p_deficit"]
    note = row["kind"] if chance is None else f"falls short: {percent(chance)}"
    depth = 0.0 if chance is None else next(shade for bound, shade in _SHADES if chance <= bound)
    rectangle = Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" rx="4" fill="{}" stroke="{}"><title>{}</title></rect>'
    ).format(
        number(box.x - box.wide / 2),
        number(box.y - box.tall / 2),
        number(box.wide),
        number(box.tall),
        mixed(ORANGE, depth) if depth else WHITE,
        INK,
        f"{row['point']}, {note}",
    )
    return [
        rectangle,
        text_at(box.x, box.y - 3, shortened(label, 24), anchor="middle", size=11, bold=True),
        text_at(box.x, box.y + 11, note, anchor="middle", size=10, color=INK if depth else QUIET),
    ]


def _written(place: Box, words: str) -> list[Markup]:
    """The words on a white ground, so that what passes below does not cross them out."""
    ground = Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}" fill-opacity="0.85"/>').format(
        number(place.x - place.wide / 2),
        number(place.y - place.tall / 2),
        number(place.wide),
        number(place.tall),
        WHITE,
    )
    return [ground, text_at(place.x, place.y + 3.5, words, anchor="middle", size=10)]
