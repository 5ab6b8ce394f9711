"""What collateral can do in time, as the report shows it, from the columns of `portfolio_margin` and the result tables
`nodes` and `routes`. USD; every figure is one of a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from .report_charts import LadderStep, ladder_chart
from .report_network_map import network_map, point_labels
from .report_words import NOT_AVAILABLE, Limited, full, percent, short

Row = Mapping[str, Any]
Cell = str | Markup
Formatter = Callable[[Any], Cell]

ROUTE_ROWS = 8
CHANNEL_ROWS = 6
NODE_ROWS = 20
MOVE_ROWS = 4
_WITHIN = "[]"
"""What a step leads through that is no transfer: up to a withdrawal limit, or to a broker."""


class Column(NamedTuple):
    """A column of a result table with its heading."""

    heading: str
    name: str
    written: Formatter


class Table(NamedTuple):
    """Headings and rows of cells; `more` rows are left out. A row has a name, a quiet line below it, and a mark."""

    headings: Sequence[str]
    rows: Sequence[Row]
    more: int


def transfer_section(portfolio: Row, nodes: Sequence[Row], routes: Sequence[Row], *, decimals: int) -> Row | None:
    """What the page shows of the transfer model; None for a run without routes.

    `portfolio` is its row of `portfolio_margin`, `nodes` and `routes` its rows there; both are empty for a portfolio
    that the run did not compute in depth, and `routes` also where nothing joins its nodes.
    """
    if portfolio["deadlines"] is None:
        return None
    ways = [row for row in routes if row["kind"] == "route"]
    labels = point_labels([row["point"] for row in nodes])
    granted, arrives = portfolio["usable_saving"], portfolio["fungibility_99"]
    moves = sorted(
        (row for row in ways if (row["move_now_usd"] or 0.0) > 0.0 and row["through"] != _WITHIN),
        key=lambda row: (-row["move_now_usd"], row["source"], row["target"], row["name"]),
    )
    return {
        "row": portfolio,
        "ladder": _collateral_ladder(portfolio),
        "capped": granted is not None and arrives is not None and granted < arrives - 5e-4,
        "gap": _notable_gap(portfolio),
        "no_routes": portfolio["transfer_method"] == "no_routes",
        "moves": Limited(moves[:MOVE_ROWS], max(0, len(moves) - MOVE_ROWS)),
        "map": network_map(nodes, ways, title="Nodes and the ways between them"),
        "routes": _route_table(ways, labels, decimals),
        "channels": _channel_table(routes, decimals),
        "nodes": _node_table(nodes, decimals),
    }


def _collateral_ladder(row: Row) -> Markup | None:
    """The chart of the least collateral by what can travel; None where a figure is missing or unbounded."""
    names = ("es_99_alone_usd", "es_99_transfer_usd", "es_99_fungible_usd")
    if not all(row[name] is not None and math.isfinite(row[name]) for name in names):
        return None
    alone, transfer, fungible = (row[name] for name in names)
    return ladder_chart(
        [
            LadderStep("Nothing travels", alone),
            LadderStep("What arrives in time", transfer, emphasis=True),
            LadderStep("Everywhere at once", fungible),
        ],
        title="Least collateral at 99 percent by what can travel",
    )


def _notable_gap(row: Row) -> float | None:
    """The distance of the TCES to the true minimum where it is more than a thousandth of it."""
    gap, found = row["es_99_transfer_gap_usd"], row["es_99_transfer_usd"]
    return gap if gap is not None and found is not None and gap > 1e-3 * abs(found) else None


def _route_table(ways: Sequence[Row], labels: Mapping[str, str], decimals: int) -> Table:
    """Routes that are missed or have a value, and transfers that carry something or are to be made now.

    First those whose loss asks for most, then those whose capacity is worth most. Values that agree to six digits stand
    by flow: where a whole chain of routes binds, each is worth the same.
    """
    amount = _amounts(decimals)
    columns = [
        Column("P99 hours", "p99_hours", lambda hours: full(hours, 2)),
        Column("P(open)", "p_open", percent),
        Column(
            "Limit",
            "capacity_usd",
            lambda limit: Markup('<span class="na">–</span>') if limit is None else amount(limit),
        ),
        Column("Fee", "fee", percent),
        Column("More without it", "without_increase_usd", amount),
        Column("Value per USD", "value", _per_dollar),
        Column("Flow in worst scenarios", "worst_flow_usd", amount),
        Column("Send now", "move_now_usd", amount),
    ]
    useful = [
        row
        for row in ways
        if (row["value"] or 0.0) > 0.0
        or (row["without_increase_usd"] or 0.0) > 0.0
        or (row["through"] != _WITHIN and ((row["worst_flow_usd"] or 0.0) > 0.0 or (row["move_now_usd"] or 0.0) > 0.0))
    ]
    useful.sort(
        key=lambda row: (
            -round(row["without_increase_usd"] or 0.0, 2),
            -round(row["value"] or 0.0, 6),
            -(row["worst_flow_usd"] or 0.0),
            row["source"],
            row["target"],
            row["name"],
        )
    )
    shown = useful[:ROUTE_ROWS]
    columns = [c for c in _known(columns, shown) if c.name != "fee" or any(row["fee"] for row in shown)]

    def ends(row: Row) -> Markup:
        source, target = (
            Markup('<span title="{}">{}</span>').format(row[end], short(labels.get(row[end], row[end]), 30))
            for end in ("source", "target")
        )
        return Markup("{} to {}").format(source, target)

    rows = [{**_cells(columns, row), "name": ends(row), "under": short(row["name"], 44), "mark": ""} for row in shown]
    return Table([column.heading for column in columns], rows, len(useful) - len(shown))


def _channel_table(routes: Sequence[Row], decimals: int) -> Table:
    """Channels whose failure asks for more, the worst first, and below them all routes at once."""
    amount = _amounts(decimals)
    columns = [
        Column(
            "P(up)", "p_open", lambda chance: Markup('<span class="na">–</span>') if chance is None else percent(chance)
        ),
        Column("Collateral without it", "without_usd", amount),
        Column("More than with it", "without_increase_usd", amount),
    ]
    channels = [row for row in routes if row["kind"] == "channel" and (row["without_increase_usd"] or 0.0) > 0.0]
    channels.sort(key=lambda row: (-row["without_increase_usd"], row["name"]))
    shown = channels[:CHANNEL_ROWS]
    together = [row for row in routes if row["kind"] == "all"]
    columns = _known(columns, [*shown, *together])
    rows = [{**_cells(columns, row), "name": short(row["name"], 34), "under": "", "mark": ""} for row in shown]
    rows += [{**_cells(columns, row), "name": short(row["name"], 34), "under": "", "mark": "sum"} for row in together]
    return Table([column.heading for column in columns], rows, len(channels) - len(shown))


def _node_table(nodes: Sequence[Row], decimals: int) -> Table:
    """Nodes, the likeliest to fall short first; of the other points those where collateral is placed."""
    amount = _amounts(decimals)
    columns = [
        Column("Equity", "equity_usd", amount),
        Column("Above liqui\u00addation", "surplus_usd", amount),
        Column("With\u00addraw\u00adable", "withdrawable_usd", amount),
        Column("Needs alone", "es_99_alone_usd", amount),
        Column("Best place\u00adment", "placement_usd", amount),
        Column("P(falls short)", "p_deficit", percent),
        Column("To add", "top_up_usd", amount),
        Column("Value per USD added", "buffer_value", _per_dollar),
        Column("Pre-funding", "prefunding_usd", amount),
        Column("Calls below", "reactive_buffer_usd", amount),
        Column("Hedge-break loss", "hedge_break_usd", amount),
        Column("Move now", "move_now_usd", amount),
    ]
    points = [row for row in nodes if row["kind"] == "node" or (row["placement_usd"] or 0.0) > 0.0]
    points.sort(
        key=lambda row: (
            row["kind"] != "node",
            -(row["p_deficit"] or 0.0),
            -(row["top_up_usd"] or 0.0),
            -(row["es_99_alone_usd"] or 0.0),
            row["point"],
        )
    )
    shown = points[:NODE_ROWS]
    columns = _known(columns, shown)
    rows = [
        {
            **_cells(columns, row),
            "name": short(row["point"], 34),
            "under": "" if row["kind"] == "node" else row["kind"],
            "mark": "lacking" if (row["top_up_usd"] or 0.0) > 0.0 else "",
        }
        for row in shown
    ]
    return Table([column.heading for column in columns], rows, len(points) - len(shown))


def _known(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """Columns with a figure in some row."""
    return [column for column in columns if any(row[column.name] is not None for row in rows)]


def _cells(columns: Sequence[Column], row: Row) -> dict[str, Any]:
    return {"cells": [column.written(row[column.name]) for column in columns]}


def _amounts(decimals: int) -> Formatter:
    return lambda amount: full(amount, decimals)


def _per_dollar(value: float | None) -> Cell:
    """USD per USD with two decimals; what would round to zero is below the last digit."""
    if value is None:
        return NOT_AVAILABLE
    return "< 0.01" if 0.0 < value < 0.005 else full(value, 2)
