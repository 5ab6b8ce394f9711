"""The unified requirement in the report: ladder, waterfall, components by node, and what the locked capital costs.

Every figure is a column of `portfolio_margin`, `node_margin` or `requirement`; those computed here are the offset that
is not granted, the difference of two of them, and the value of what has no rate, a sum over nodes. USD, requirements
positive, maintenance level where none is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .report_charts import BLUE, ORANGE, LadderStep, WaterfallStep, ladder_chart, waterfall_chart
from .report_words import limited

Row = Mapping[str, Any]

NODE_ROWS = 20
BASE_PARTS = {
    "es_blend_usd": "ES blend",
    "grid_usd": "grid",
    "stress_usd": "binding stress",
    "floor_usd": "floor",
}
"""What the base is the largest of, in the order in which a tie is decided."""
ADD_ONS = {
    "liquidity_usd": "Liquidity",
    "concentration_usd": "Concentration",
    "basis_usd": "Basis",
    "wrong_way_usd": "Wrong way",
    "venue_usd": "Venue failure",
}
_UNIFIED = "unified"
_ROW_HEIGHT = 24.0


def requirement_ladder(row: Row) -> Markup | None:
    """The chart of what each way of looking at the book asks for; None where no unified requirement was computed."""
    if not _drawable(row[f"requirement_{name}_usd"] for name in ("silo", "effective", "ideal", "initial")):
        return None
    return ladder_chart(
        [
            LadderStep("Isolated: positions", row["es_99_isolated_sum_usd"], row["es_995_isolated_sum_usd"], "99.5 %:"),
            LadderStep("Native: venues' rules", row["native_maintenance_usd"], row["native_initial_usd"], "initial:"),
            LadderStep("Silo: nodes alone", row["requirement_silo_usd"]),
            LadderStep(
                "Effective: unified",
                row["requirement_effective_usd"],
                row["requirement_initial_usd"],
                "initial:",
                emphasis=True,
            ),
            LadderStep("Ideal: all pooled", row["requirement_ideal_usd"]),
        ],
        title="Margin ladder: what each way of looking at the book asks for",
    )


def shortfall_ladder(row: Row) -> Markup:
    """The chart of the expected shortfalls alone, the pooled one with its standard error."""
    second = "99.5 %:"
    return ladder_chart(
        [
            LadderStep("Isolated: positions", row["es_99_isolated_sum_usd"], row["es_995_isolated_sum_usd"], second),
            LadderStep("Silo: nodes alone", row["es_99_silo_sum_usd"], row["es_995_silo_sum_usd"], second),
            LadderStep(
                "Ideal: all pooled",
                row["es_99_pooled_usd"],
                row["es_995_pooled_usd"],
                second,
                emphasis=True,
                error=row["es_99_pooled_error_usd"],
            ),
        ],
        title="Expected shortfall at 99 percent: positions alone, nodes alone, pooled",
    )


def binding_part(row: Row) -> str:
    """Column of `BASE_PARTS` that the base of a row of `requirement` equals."""
    return max(BASE_PARTS, key=lambda column: row[column])


def requirement_waterfall(portfolio: Row, unified: Row | None) -> Markup | None:
    """The chart from the base over the add-ons to the ideal requirement, and up by the offset not granted.

    `unified` is the row of `requirement` of everything pooled, at maintenance. None without one, and where a part is
    infinite; an add-on that nothing is known for is n/a.
    """
    if unified is None:
        return None
    ideal, effective = portfolio["requirement_ideal_usd"], portfolio["requirement_effective_usd"]
    add_ons = {label: unified[column] for column, label in ADD_ONS.items()}
    known = [amount for amount in add_ons.values() if amount is not None]
    if not _drawable([ideal, effective, unified["base_usd"], *known]):
        return None
    steps = [WaterfallStep(f"Base: {BASE_PARTS[binding_part(unified)]}", unified["base_usd"], "total")]
    steps += [WaterfallStep(label, amount) for label, amount in add_ons.items()]
    steps.append(WaterfallStep("Ideal: all pooled", ideal, "total"))
    steps.append(WaterfallStep("Offset not granted", effective - ideal))
    steps.append(WaterfallStep("Unified margin", effective, "total"))
    title = "The unified maintenance margin from its base to what is asked for"
    return waterfall_chart(steps, title=title, rise=ORANGE, fall=BLUE, row=_ROW_HEIGHT)


def component_table(requirement: Sequence[Row]) -> Row | None:
    """The components of every node and of the whole at maintenance, nodes by size; None where there are none."""
    rows = [{**row, "binding_part": binding_part(row)} for row in requirement if row["level"] == "maintenance"]
    whole = next((row for row in rows if row["scope"] == _UNIFIED), None)
    if whole is None:
        return None
    nodes = sorted(
        (row for row in rows if row["scope"] != _UNIFIED), key=lambda row: (-row["requirement_usd"], row["scope"])
    )
    return {
        "nodes": limited(nodes, NODE_ROWS),
        "whole": whole,
        "base_parts": tuple(BASE_PARTS),
        "add_ons": tuple(ADD_ONS),
        "stressed": any(row["es_stressed_usd"] is not None for row in rows),
    }


def capital_table(nodes: Sequence[Row]) -> Row | None:
    """What each node locks and what that costs a year, the largest first; None where no node says it.

    `uncosted` is the USD value of the debts and perpetuals whose rate no payload states: their cost is not known.
    """
    known = [row for row in nodes if row["locked_usd"] is not None]
    if not known:
        return None
    known.sort(key=lambda row: (-row["locked_usd"], row["node"]))
    uncosted = [row["uncosted_usd"] for row in known if row["uncosted_usd"] is not None]
    return {
        "nodes": limited(known, NODE_ROWS),
        "borrow": any(row["borrow_cost_usd"] is not None for row in known),
        "uncosted": math.fsum(uncosted),
    }


def _drawable(amounts: Iterable[float | None]) -> bool:
    return all(amount is not None and math.isfinite(amount) for amount in amounts)
