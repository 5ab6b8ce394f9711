"""The transfer model in the report: figures of the tables, a map without overlaps, nothing without routes."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aggregator.report import render_report
from aggregator.report_charts import compact
from aggregator.report_network_map import MOST_ARROWS, MOST_POINTS, drawn_ways, network_map, point_labels
from aggregator.report_transfer import CHANNEL_ROWS, ROUTE_ROWS, transfer_section
from aggregator.report_words import full, percent
from aggregator.schema.results import RESULTS
from tests.report_samples import HOSTILE, HOSTILE_NAMES, Page, one_desk

HEADING = "<h3>What collateral can do in time"


def _changed(tables: Mapping[str, pa.Table], name: str, change: Mapping[str, Any], **which: Any) -> dict[str, pa.Table]:
    rows = [row | change if all(row[k] == v for k, v in which.items()) else row for row in tables[name].to_pylist()]
    return {**tables, name: pa.Table.from_pylist(rows, schema=RESULTS[name])}


def _section(tables: Mapping[str, pa.Table]) -> str:
    html = render_report(tables)
    start = html.index(HEADING)
    return html[start : html.index("<h3>Named stresses", start)].replace("\u00a0", " ")


def _text(tables: Mapping[str, pa.Table]) -> str:
    return Page(re.sub(r"<svg.*?</svg>", "", _section(tables), flags=re.S)).text


def _words(amount: float) -> str:
    return f"USD {compact(amount)}".replace("\u00a0", " ")


def _named(name: str) -> dict[str, Any]:
    """A row of a result table with nothing in it."""
    return dict.fromkeys(RESULTS[name].names)


def _node(point: str, kind: str = "node", **columns: Any) -> dict[str, Any]:
    return _named("nodes") | {"point": point, "kind": kind, "p_deficit": 0.0 if kind == "node" else None} | columns


def _route(source: str, target: str, **columns: Any) -> dict[str, Any]:
    way = {"kind": "route", "name": "arbitrum", "through": '["arbitrum"]', "p99_hours": 1.5, "worst_flow_usd": 0.0}
    return _named("routes") | way | {"source": source, "target": target, "value": 0.5} | columns


def _rectangles(svg: str, mark: str) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom) of the rectangles with this attribute."""
    found = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)"([^>]*)>', svg)
    boxes = [tuple(float(part) for part in box[:4]) for box in found if mark in box[4]]
    return [(x, y, x + wide, y + tall) for x, y, wide, tall in boxes]


NODES, LABELS = 'rx="4"', "fill-opacity"
NUMBER = r"−?\d(?:[\d,]*\d)?(?:\.\d+)?"


def test_a_run_without_routes_says_nothing() -> None:
    tables = one_desk()
    assert HEADING in render_report(tables)
    names = RESULTS["portfolio_margin"].names
    silent = _changed(tables, "portfolio_margin", dict.fromkeys(names[names.index("deadlines") :]))
    silent |= {name: silent[name].slice(0, 0) for name in ("nodes", "routes")}
    html = render_report(silent)
    page = Page(html)
    assert page.errors == []
    assert HEADING not in html
    for word in ("Usable saving", "binds is that of", "Pre-funding", "Stranded"):
        assert word not in page.text
    assert "Margin efficiency" in page.text


def test_the_sentences_say_what_the_row_says() -> None:
    tables = one_desk()
    row = tables["portfolio_margin"].to_pylist()[0]
    text = _text(tables)
    for column in ("es_99_fungible_usd", "es_99_transfer_usd", "es_99_alone_usd", "uncovered_mean_usd", "stranded_usd"):
        assert _words(row[column]) in text, column
    assert f"{percent(row['usable_saving'], 1)} of what pooling saves is usable" in text
    assert f"{percent(row['fungibility_995'], 1)} could arrive in time at the initial level" in text
    assert re.search(rf"binds is that of arbitrum ?: without it up to {_words(row['binding_failure_usd'])} more", text)
    assert f"with a probability of {percent(row['p_uncovered'])}" in text
    assert "path by path" in text
    (move,) = [r for r in tables["routes"].to_pylist() if r["move_now_usd"]]
    assert f"{_words(move['move_now_usd'])} from {move['source']} to {move['target']} by arbitrum" in text
    tile = re.search(r'Usable saving</div><div class="value">([^<]*)', render_report(tables))
    assert tile
    assert tile[1].replace("\u00a0", " ") == percent(row["usable_saving"], 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"deadlines": "fixed"}, "within the fixed hours of the routes file"),
        ({"binding_failure": None, "binding_failure_usd": None}, "No failure of a single channel asks for more."),
        ({"usable_saving": None}, "Pooling saves nothing here."),
        (
            {"fungibility_99": 0.95, "usable_saving": 0.8},
            "95.0 % of what pooling saves could arrive in time; the offset",
        ),
        ({"p_uncovered": 0.0, "uncovered_mean_usd": None}, "no scenario leaves a node short."),
        ({"p_uncovered": None}, "What lies where today was not looked at."),
        ({"es_99_transfer_gap_usd": 5000.0}, "(at most USD 5.00 k above the least possible)"),
        ({"es_99_alone_usd": np.inf}, "unbounded if nothing travels"),
    ],
)
def test_what_holds_is_what_is_said(change: dict[str, Any], sentence: str) -> None:
    tables = one_desk()
    assert sentence not in _text(tables)
    assert sentence in _text(_changed(tables, "portfolio_margin", change))


def test_nothing_to_move_is_said_when_nothing_lacks() -> None:
    still = _changed(one_desk(), "routes", {"move_now_usd": 0.0}, kind="route")
    assert "Nothing has to be moved now." not in _text(still), "something lacks, and no route mends it"
    assert "Nothing has to be moved now." in _text(_changed(still, "portfolio_margin", {"top_up_usd": 0.0}))


def test_every_number_of_the_section_is_in_a_table() -> None:
    tables = one_desk()
    written = {"99", str(tables["node_margin"].num_rows - MOST_POINTS)}
    rows = [row for name in ("portfolio_margin", "nodes", "routes") for row in tables[name].to_pylist()]
    for row in rows:
        for column, value in row.items():
            if isinstance(value, float):
                forms = [full(value), full(value, 2), percent(value, 1), percent(value)]
                forms += [compact(value)] if column.endswith("_usd") else []
                written |= {number for form in forms for number in re.findall(NUMBER, str(form))}
            elif isinstance(value, str):
                written |= set(re.findall(r"\d+", value))
    useful = sum(row["kind"] == "route" and row["value"] > 0 for row in rows if "through" in row)
    written.add(str(useful - ROUTE_ROWS))
    ladder, chart = re.findall(r"<svg.*?</svg>", _section(tables), flags=re.S)
    shown = re.findall(NUMBER, _text(tables) + " " + Page(chart).text)
    assert len(shown) > 150
    assert set(shown) <= written
    bars = re.findall(r"<title>[^<]*: USD ([^<]*)</title>", ladder)
    row = tables["portfolio_margin"].to_pylist()[0]
    names = ("es_99_alone_usd", "es_99_transfer_usd", "es_99_fungible_usd")
    assert bars == [compact(row[name]).replace("\u00a0", " ") for name in names]


def _part(nodes: Sequence[Mapping[str, Any]], routes: Sequence[Mapping[str, Any]], **portfolio: Any) -> Any:
    row = _named("portfolio_margin") | {"deadlines": "path", "transfer_method": "closed_form"} | portfolio
    return transfer_section(row, nodes, routes, decimals=0)


def test_routes_stand_by_value_and_equal_values_by_flow() -> None:
    nodes = [_node("a"), _node("b"), _node("c")]
    routes = [
        _route("a", "b", value=1.0000000001, worst_flow_usd=1.0),
        _route("b", "a", value=1.0, worst_flow_usd=9.0),
        _route("a", "c", value=0.001, capacity_usd=2e6, fee=0.0005),
        _route("c", "a", value=0.0, worst_flow_usd=5.0),
        _route("c", "b", value=0.0),
        _route("b", "c", value=0.0, worst_flow_usd=7.0, through="[]", name="withdrawal limit"),
    ]
    table = _part(nodes, routes)["routes"]
    assert [Page(row["name"]).text for row in table.rows] == ["b to a", "a to b", "a to c", "c to a"]
    assert list(table.headings) == ["P99 hours", "Limit", "Fee", "Value per USD", "Flow in worst scenarios"]
    values, limits = (
        [row["cells"][table.headings.index(heading)] for row in table.rows] for heading in ("Value per USD", "Limit")
    )
    assert values == ["1.00", "1.00", "< 0.01", "0.00"]
    assert limits[2] == "2,000,000"
    assert all("–" in limit for limit in (*limits[:2], limits[3]))
    many = [_route("a", "b", value=1.0 + k, name=f"way {k}") for k in range(ROUTE_ROWS + 3)]
    table = _part(nodes, many)["routes"]
    assert (len(table.rows), table.more) == (ROUTE_ROWS, 3)
    assert table.rows[0]["under"] == f"way {ROUTE_ROWS + 2}"


def test_channels_stand_by_what_their_failure_asks_for() -> None:
    def channel(name: str, more: float, kind: str = "channel") -> dict[str, Any]:
        return _named("routes") | {"kind": kind, "name": name, "without_usd": 10.0 + more, "without_increase_usd": more}

    rows = [channel(f"channel {k}", float(k)) for k in range(CHANNEL_ROWS + 2)] + [channel("all routes", 99.0, "all")]
    table = _part([], rows)["channels"]
    names = [row["name"] for row in table.rows]
    assert names == [*(f"channel {k}" for k in range(CHANNEL_ROWS + 1, 1, -1)), "all routes"]
    assert table.more == 1, "a channel that asks for nothing is none of them"
    assert list(table.headings) == ["Collateral without it", "More than with it"]
    assert table.rows[-1]["cells"] == ["109", "99"]


def test_columns_without_any_figure_are_left_out() -> None:
    tables = one_desk()
    assert "Pre-funding" in Page(_section(tables)).words
    nothing = dict.fromkeys(("prefunding_usd", "reactive_buffer_usd", "hedge_break_usd"))
    section = _section(_changed(tables, "nodes", nothing))
    assert not {"Pre-funding", "Calls below", "Hedge-break loss"} & set(Page(section).words)
    assert "hedge-break" not in section
    assert "n/a" not in section


def test_a_portfolio_without_routes_has_nodes_and_no_map() -> None:
    tables = _changed(one_desk(), "portfolio_margin", {"transfer_method": "no_routes", "binding_failure": None})
    tables["routes"] = tables["routes"].slice(0, 0)
    page = Page(_section(tables))
    assert page.errors == []
    assert "No route joins the nodes of this portfolio." in page.text
    assert "Arrows are as wide" not in page.text
    assert "Routes by value" not in page.text
    assert "Needs alone" in page.text
    nothing = _part([], [])
    assert nothing["map"] is nothing["ladder"] is None
    assert nothing["nodes"].rows == []


def test_a_step_up_to_a_limit_or_a_broker_is_no_arrow_of_its_own() -> None:
    nodes = [
        *(_node("a"), _node("b"), _node("a withdrawals", "limit")),
        *(_node("prime", "broker"), _node("prime claims", "broker")),
    ]
    steps = {"through": "[]", "value": 0.0, "p99_hours": 0.0}
    routes = [
        _route("a", "a withdrawals", **steps, capacity_usd=8.0, worst_flow_usd=3.0),
        _route("a withdrawals", "b", capacity_usd=9.0, worst_flow_usd=3.0),
        _route("a", "prime claims", **steps, worst_flow_usd=2.0),
        _route("prime claims", "prime", **steps, capacity_usd=4.0, worst_flow_usd=2.0),
        _route("prime", "b", worst_flow_usd=2.0),
        _route("b", "a", value=0.0),
        _route("b", "a", value=None, worst_flow_usd=None),
    ]
    assert [(way.source, way.target, way.capacity_usd) for way in drawn_ways(nodes, routes)] == [
        ("a", "b", 8.0),
        ("a", "prime", None),
        ("prime", "b", 4.0),
    ]


def test_labels_leave_out_what_all_names_share() -> None:
    assert list(point_labels(["aave:north:x", "okx:north:main"]).values()) == ["aave:x", "okx:main"]
    assert list(point_labels(["a:b", "b:a"]).values()) == ["a:b", "b:a"], "nothing would be left"
    assert list(point_labels(["a:n", "n:a:x"]).values()) == ["a:n", "n:a:x"]
    assert point_labels(["alone:x"]) == {"alone:x": "alone:x"}
    assert point_labels([]) == {}


@pytest.mark.parametrize("count", range(2, MOST_POINTS + 1))
def test_nothing_on_the_map_covers_anything_else(count: int) -> None:
    nodes = [_node(f"venue_{k}:desk:account", p_deficit=0.004 * k) for k in range(count)]
    routes = [
        _route(a["point"], b["point"], worst_flow_usd=1e5 / (1 + i), capacity_usd=2.5e6, p99_hours=12.25)
        for i, (a, b) in enumerate(itertools.permutations(nodes, 2))
    ]
    drawn = network_map(nodes, routes, title="t")
    assert drawn is not None
    svg = str(drawn.svg)
    assert drawn.ways_more == len(routes) - svg.count("<path") == max(0, len(routes) - MOST_ARROWS)
    boxes, labels = _rectangles(svg, NODES), _rectangles(svg, LABELS)
    assert len(boxes) == count
    assert len(labels) == svg.count("<path"), "every arrow has its label"
    wide, tall = (float(part) for part in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    for left, top, right, bottom in (*boxes, *labels):
        assert 0 <= left < right <= wide
        assert 0 <= top < bottom <= tall
    for one, other in itertools.combinations([*boxes, *labels], 2):
        apart = (
            one[2] <= other[0] + 0.1 or other[2] <= one[0] + 0.1 or one[3] <= other[1] + 0.1 or other[3] <= one[1] + 0.1
        )
        assert apart, (one, other)


def test_the_map_does_not_depend_on_the_order_of_the_rows() -> None:
    nodes = [_node(name, p_deficit=0.001) for name in "abcde"]
    routes = [_route(a, b, worst_flow_usd=100.0, p99_hours=1.0) for a, b in itertools.permutations("abcde", 2)]
    assert network_map(nodes, routes, title="t") == network_map(nodes[::-1], routes[::-1], title="t")


def test_a_large_network_shows_its_busiest_nodes() -> None:
    names = [f"n{k:02d}" for k in range(MOST_POINTS + 4)]
    routes = [_route(a, b, worst_flow_usd=float(k)) for k, (a, b) in enumerate(itertools.pairwise(names))]
    drawn = network_map([_node(name) for name in names], routes, title="t")
    assert drawn is not None
    titles = re.findall(r'rx="4"[^>]*><title>(\w+),', str(drawn.svg))
    assert titles == names[-MOST_POINTS:]
    assert (drawn.nodes_more, drawn.ways_more) == (4, 4)


def test_an_arrow_is_as_wide_as_its_flow_and_a_node_as_dark_as_its_risk() -> None:
    nodes = [_node("a", p_deficit=0.0), _node("b", p_deficit=0.004), _node("c", p_deficit=0.2)]
    routes = [
        _route("a", "b", worst_flow_usd=100.0),
        _route("b", "c", worst_flow_usd=50.0, capacity_usd=3e6),
        _route("c", "a", value=2.0, p99_hours=None),
    ]
    drawn = network_map(nodes, routes, title="t")
    assert drawn is not None
    svg = str(drawn.svg)
    widths = [float(width) for width in re.findall(r'stroke-width="([\d.]+)"', svg)]
    assert widths == sorted(widths, reverse=True)
    assert svg.count("stroke-dasharray") == 1, "what carries nothing is dashed"
    fills = re.findall(r'rx="4" fill="#(\w+)"', svg)
    light = [sum(int(fill[k : k + 2], 16) for k in (0, 2, 4)) for fill in fills]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 3
    assert "falls short: 20.00 %" in svg
    assert "1.50\u00a0h·".replace("·", "\u00a0·\u00a03.00\u00a0M") in svg
    assert network_map(nodes, [_route("a", "b", value=0.0)], title="t") is None


def test_names_on_the_map_are_text() -> None:
    names = [f"{name}{k}" for k, name in enumerate(HOSTILE_NAMES)]
    routes = [_route(a, b, name=HOSTILE, worst_flow_usd=1.0) for a, b in itertools.pairwise(names)]
    drawn = network_map([_node(name) for name in names], routes, title=HOSTILE)
    assert drawn is not None
    page = Page(str(drawn.svg))
    assert page.errors == []
    assert {tag for tag, _ in page.tags} == {"svg", "title", "path", "polygon", "rect", "text"}
    assert any(HOSTILE in words for words in page.words)
