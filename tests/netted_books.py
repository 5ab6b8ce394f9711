"""Books of the engine's tests as canonical Arrow tables with a portfolio map, for the sweep of whole books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from aggregator.portfolio import Book, PackedPortfolio
from aggregator.schema.canonical import CANONICAL
from aggregator.schema.casting import table_from_rows
from aggregator.snapshot import take_snapshot
from tests.engine_accounts import AccountBook
from tests.engine_book import packed
from tests.engine_markets import AS_OF, Rows


def arrow_tables(rows: Rows) -> dict[str, pa.Table]:
    """The checked rows as tables."""
    found = take_snapshot(
        [{name: table_from_rows(name, rows.get(name, [])) for name in CANONICAL if name != "failures"}], as_of=AS_OF
    )
    return {name: table_from_rows(name, list(found.tables[name])) for name in found.tables}


def portfolio_map(portfolios: Sequence[PackedPortfolio]) -> pa.Table:
    """Which portfolio has which account."""
    pairs = [(p.portfolio_id, account.account_id) for p in portfolios for account in p.accounts]
    return pa.table({"portfolio_id": [p for p, _ in pairs], "account_id": [a for _, a in pairs]})


def account_by_account(book: Book) -> Mapping[str, str]:
    """Every packed account as a portfolio of its own: coverage is by portfolio."""
    return {account.account_id: account.account_id for p in book.portfolios for account in p.accounts}


def alone(book: AccountBook) -> pa.Table:
    """The map in which every account is its own portfolio."""
    ids = sorted(account_by_account(packed(book)))
    return pa.table({"portfolio_id": ids, "account_id": ids})
