"""Rows of `marks` and `market_state`: one value of an instrument, asset, expiry or market, and when it was so."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from .rows import Rows

Number = Decimal | Fraction | float


def add_mark(
    rows: Rows,
    subject: str,
    name: str,
    value: Number,
    *,
    as_of: datetime | None,
    source: str,
    account_id: str | None = None,
) -> None:
    """One row of `marks`: `name` is the field; with `account_id` the mark is that account's own, else the venue's."""
    rows.add(
        "marks",
        venue=rows.venue,
        account_id=account_id,
        subject=subject,
        field=name,
        value=float(value),
        as_of=as_of,
        source=source,
    )


def add_market_state(
    rows: Rows, market: str, name: str, value: Number | str, *, as_of: datetime | None, source: str
) -> None:
    """One row of `market_state`: a number of a market, or a word as its text."""
    is_text = isinstance(value, str)
    rows.add(
        "market_state",
        venue=rows.venue,
        market=market,
        field=name,
        value=None if is_text else float(value),
        text=value if is_text else None,
        as_of=as_of,
        source=source,
    )


def add_reconciliation_note(
    rows: Rows, account_id: str, figure: str, size: Number, words: str, *, as_of: datetime | None, source: str
) -> None:
    """One row of `market_state` of an account: by how much its venue's own `figure` may differ from ours, and why.

    `figure` is the reported column without `reported_` (`health`, `initial_margin`), `size` in the unit of that figure.
    """
    rows.add(
        "market_state",
        venue=rows.venue,
        market=account_id,
        field=f"reconciliation_note.{figure}",
        value=float(size),
        text=words,
        as_of=as_of,
        source=source,
    )
