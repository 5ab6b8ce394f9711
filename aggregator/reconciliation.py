"""The words of a reconciliation: figures, statuses and reasons as closed lists, and what is read off its rows.

A row (table `reconciliation`) holds one figure of one account: ours, the venue's own, and what is to be said of their
difference. How that is found is in differences.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from .errors import Failure, FailureReason

FIGURES = ("equity", "initial_margin", "maintenance_margin", "health")
"""The figures that are compared; a venue's own is the column `reported_<figure>` of the table `accounts`."""


class Status(StrEnum):
    """What is to be said of a figure; closed."""

    MATCH = "match"
    EXPLAINED = "explained"
    UNEXPLAINED = "unexplained"
    NOT_REPORTED = "not_reported"
    INCOMPLETE = "incomplete"


class Reason(StrEnum):
    """Why a figure has its status; closed. `match` may have the first two, `incomplete` the last seven."""

    REPORTED_PARTS = "reported_parts"
    VENUE_ROUNDING = "venue_rounding"
    VENUE_NOTE = "venue_note"
    STALE_MARK = "stale_mark"
    STALE_TIER = "stale_tier"
    ORDERS_NOT_IN_PAYLOAD = "orders_not_in_payload"
    NO_REQUIREMENT = "no_requirement"
    DERIVED = "derived"
    MISSING_ROW = "missing_row"
    MISSING_MARK = "missing_mark"
    MISSING_PARAMETER = "missing_parameter"
    STALE = "stale"
    UNSUPPORTED = "unsupported"
    UNREACHABLE = "unreachable"
    CALCULATION = "calculation"


def by_size(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by the size of their difference in USD, biggest first; behind them those without one, incomplete first."""
    grave = (Status.INCOMPLETE, Status.UNEXPLAINED, Status.EXPLAINED, Status.MATCH, Status.NOT_REPORTED)

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        size = row["difference_usd"]
        names = row["portfolio_id"], row["account_id"], FIGURES.index(row["figure"])
        return size is None, -abs(size or 0.0), grave.index(Status(row["status"])), *names

    return sorted(rows, key=key)


def worth_showing(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows without the figures that no venue states; an account without any stays with one if it is incomplete."""
    listed = list(rows)
    told = {(row["portfolio_id"], row["account_id"]) for row in listed if row["reported"] is not None}
    return [
        row
        for row in listed
        if row["reported"] is not None
        or (
            row["status"] == Status.INCOMPLETE
            and row["figure"] == FIGURES[0]
            and (row["portfolio_id"], row["account_id"]) not in told
        )
    ]


def reconciliation_findings(rows: Iterable[Mapping[str, Any]]) -> list[Failure]:
    """A failure `inconsistent`, which stops nobody, for every difference beyond the bound that nothing explains.

    A balance or position that a payload lacks may leave no other trace.
    """
    return [
        Failure(
            FailureReason.INCONSISTENT,
            f"recomputed {row['figure'].replace('_', ' ')} {row['ours']:.6f} is not the venue's own "
            f"{row['reported']:.6f} {row['unit']}: {row['message']}",
            row["venue"],
            path=row["figure"],
            subject=row["account_id"],
        )
        for row in rows
        if row["beyond_bound"]
    ]
