"""The named stresses of a portfolio in the report, from the result table `stress`. USD, losses positive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .report_words import Limited, parsed_json

Row = Mapping[str, Any]

LARGEST_LOSSES = 8
LARGEST_UNCOVERED = 3


def stress_table(rows: Sequence[Row]) -> Row | None:
    """The stresses with the largest losses, and among the others those that leave most uncovered; None without any.

    The second kind matters: a book whose parts hedge each other may lose little as a whole and yet leave one venue
    without collateral. Rows stand by loss, the largest first.
    """
    if not rows:
        return None
    by_loss = sorted(rows, key=lambda row: (-row["loss_usd"], row["stress"]))
    rest = sorted(by_loss[LARGEST_LOSSES:], key=lambda row: (-row["uncovered_usd"], row["stress"]))
    kept = {row["stress"] for row in by_loss[:LARGEST_LOSSES]}
    kept |= {row["stress"] for row in rest[:LARGEST_UNCOVERED] if row["uncovered_usd"] > 0}
    shown = [_with_accounts(row) for row in by_loss if row["stress"] in kept]
    return {
        "rows": Limited(shown, len(rows) - len(shown)),
        "count": len(rows),
        "binding": sum(row["binding"] for row in rows),
        "with_depth": any(row["depth_loss_usd"] for row in shown),
        "widest": max((abs(row["loss_usd"]) for row in shown), default=0.0) or 1.0,
    }


def worst_stress(rows: Sequence[Row]) -> Row | None:
    """The row with the largest loss of all portfolios and stresses."""
    return max(rows, key=lambda row: row["loss_usd"], default=None)


def _with_accounts(row: Row) -> Row:
    where = f"stress {row['stress']}"
    return {
        **row,
        "liquidated": parsed_json(row["liquidated"], f"{where}, liquidated"),
        "insolvent": parsed_json(row["insolvent"], f"{where}, insolvent"),
        "without_effect": parsed_json(row["without_effect"] or "[]", f"{where}, without_effect"),
    }
