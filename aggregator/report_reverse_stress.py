"""The smallest moves that liquidate, as the report shows them, from the result table `reverse_stress`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from .report_words import factor_name, limited, parsed_json

Row = Mapping[str, Any]

PRICE_ROWS = 8
ACCOUNT_ROWS = 30
MOVES_SHOWN = 4
# What the page would write as 0.0 %: such a move is part of the answer, but nobody can see it.
_VISIBLE = 0.0005


def nearest_moves_table(rows: Sequence[Row]) -> Row | None:
    """The joint row of a portfolio, its single prices and its accounts; None where nothing was computed.

    Prices and accounts stand by distance, in standard deviations, nearest first; those without one are counted, unless
    their status is a failure (calculation), which is shown last.
    """
    joint = [row for row in rows if row["kind"] == "joint"]
    if not joint:
        return None
    prices, accounts = (_of_kind(rows, kind) for kind in ("asset", "account"))
    return {
        "joint": _with_moves(joint[0]),
        "prices": limited([row for row in prices if row["status"] != "none"], PRICE_ROWS),
        "prices_none": sum(row["status"] == "none" for row in prices),
        "accounts": limited([row for row in accounts if row["status"] != "none"], ACCOUNT_ROWS),
        "accounts_none": sum(row["status"] == "none" for row in accounts),
    }


def _of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    own = [_with_moves(row) for row in rows if row["kind"] == kind]
    return sorted(own, key=lambda row: (inf if row["distance"] is None else row["distance"], row["subject"]))


def _with_moves(row: Row) -> Row:
    """The row with its largest moves as (factor in words, relative move) and how many others it has."""
    moves: dict[str, float] = parsed_json(row["moves"] or "{}", f"reverse_stress of {row['subject']}, moves")
    ranked = sorted(moves.items(), key=lambda pair: (-abs(pair[1]), pair[0]))
    shown = [pair for pair in ranked[:MOVES_SHOWN] if abs(pair[1]) >= _VISIBLE] or ranked[:1]
    return {
        **row,
        "name": factor_name(row["subject"]),
        "moves": [(factor_name(factor), move) for factor, move in shown],
        "moves_more": len(ranked) - len(shown),
    }
