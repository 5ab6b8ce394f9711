"""Where the pooled expected shortfall of a portfolio comes from: its positions alone and in the whole, in USD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .report_charts import HeatCell, heat_map

Row = Mapping[str, Any]

POSITION_ROWS_TOP = 30
POSITION_ROWS_BOTTOM = 8
HEAT_MAP_ROWS = 12
HEAT_MAP_COLUMNS = 10


def contribution_map(positions: Sequence[Row]) -> Markup | None:
    """The chart of Euler contributions by venue and asset; the smallest go into one row and one column."""
    if not positions:
        return None
    rows: list[str | None] = [*_largest(positions, "venue", HEAT_MAP_ROWS)]
    columns: list[str | None] = [*_largest(positions, "asset", HEAT_MAP_COLUMNS)]
    cells: dict[tuple[str | None, str | None], HeatCell] = {}
    for position in positions:
        # "" stands for all others and None for the total: no name from data is either
        venue = name if (name := position["venue"] or "no venue") in rows else ""
        asset = name if (name := position["asset"] or "no asset") in columns else ""
        for key in ((venue, asset), (venue, None), (None, asset), (None, None)):
            before = cells.get(key, HeatCell(0.0, 0.0))
            cells[key] = HeatCell(before.value + position["es_99_usd"], before.note + position["value_usd"])
    rows += [*([""] if ("", None) in cells else []), None]
    columns += [*([""] if (None, "") in cells else []), None]
    grid = [[cells.get((row, column)) for column in columns] for row in rows]
    words = {"": "other", None: "total"}
    shown_rows, shown_columns = ([words.get(name, name or "") for name in names] for names in (rows, columns))
    return heat_map(shown_rows, shown_columns, grid, title="Contribution to the pooled ES 99 % by venue and asset")


def _largest(positions: Sequence[Row], column: str, count: int) -> list[str]:
    """Names of the `count` largest groups by the sum of absolute contributions."""
    sums: dict[str, float] = {}
    for position in positions:
        name = position[column] or f"no {column}"
        sums[name] = sums.get(name, 0.0) + abs(position["es_99_usd"])
    return [name for name, _ in sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))[:count]]


def position_rows(positions: Sequence[Row], portfolio: Row) -> Row:
    """Position rows by contribution, the ends of a long list, and the sums over all of them."""
    pooled = portfolio["es_99_pooled_usd"]
    rows = [{**p, "share": p["es_99_usd"] / pooled if pooled and pooled > 0 else None} for p in positions]
    if len(rows) > POSITION_ROWS_TOP + POSITION_ROWS_BOTTOM:
        head, middle, foot = (
            rows[:POSITION_ROWS_TOP],
            rows[POSITION_ROWS_TOP:-POSITION_ROWS_BOTTOM],
            rows[-POSITION_ROWS_BOTTOM:],
        )
    else:
        head, middle, foot = rows, [], []

    def sums(some: Sequence[Row]) -> Row:
        isolated = [p["es_99_isolated_usd"] for p in some]
        return {
            "count": len(some),
            "value_usd": sum(p["value_usd"] for p in some),
            "es_99_isolated_usd": None if any(x is None for x in isolated) else sum(isolated),
            "es_99_usd": sum(p["es_99_usd"] for p in some),
            "es_995_usd": sum(p["es_995_usd"] for p in some),
            "share": sum(p["es_99_usd"] for p in some) / pooled if pooled and pooled > 0 else None,
        }

    widest = max((abs(p["share"]) for p in rows if p["share"] is not None), default=0.0) or 1.0
    return {"head": head, "foot": foot, "middle": sums(middle), "total": sums(rows), "widest": widest}
