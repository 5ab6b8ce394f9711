"""Equity and requirements of a venue's accounts today, by the engine, from what its adapter gave."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from adapters.adapter import Normalized
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.snapshot import take_snapshot


class Figures(NamedTuple):
    """In the account's own unit."""

    equity: float
    initial: float
    maintenance: float


def native_figures(result: Normalized, *, as_of: datetime) -> dict[str, Figures]:
    """Figures of every account that is complete; fails for an account that the engine cannot pack."""
    snapshot = take_snapshot([result.batches], result.failures)
    accounts = [row["account_id"] for row in snapshot.tables["accounts"]]
    book, _ = pack_book({"": snapshot}, {account: [account] for account in accounts}, as_of=as_of)
    assert book.failures == ()
    out = {}
    for portfolio, figures in zip(book.portfolios, native_today(book), strict=True):
        if figures is not None:
            out[portfolio.portfolio_id] = Figures(*(float(values[0]) for values in figures))
    return out
