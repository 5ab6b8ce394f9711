"""Dollars that earn in their own price, where no payload states it: valued by the asset book's index, which is told.

An index is a figure of some day that only grows. It stands in for a price, but never silently.
"""

from __future__ import annotations

from collections.abc import Mapping

from aggregator.errors import FailureReason

from .asset_book import Asset
from .rows import Rows

_PRICES = frozenset({"oracle", "index", "stable_price", "mark"})
"""Fields of `marks` that price an asset."""


def tell_unpriced_earnings(rows: Rows, earning: Mapping[str, Asset]) -> None:
    """A finding for each balance of `earning` (assets by id) without a price, which the asset book's index values; a
    failure of its account where the book has no index.
    """
    held = {(row["asset_id"], row["account_id"]) for row in rows.rows["balances"] if row["asset_id"] in earning}
    for _, table in rows.tables["balances"]:
        pairs = zip(table["asset_id"].to_pylist(), table["account_id"].to_pylist(), strict=True)
        held.update(pair for pair in pairs if pair[0] in earning)
    if not held:
        return
    priced = {(row["subject"], row["account_id"]) for row in rows.rows["marks"] if row["field"] in _PRICES}
    for _, table in rows.tables["marks"]:
        columns = (table[name].to_pylist() for name in ("subject", "account_id", "field"))
        priced.update((subject, account) for subject, account, name in zip(*columns, strict=True) if name in _PRICES)
    for asset_id, account in sorted(held):
        if (asset_id, account) in priced or (asset_id, None) in priced:
            continue
        earnings = earning[asset_id].earnings
        if earnings is None or earnings.index is None:
            message = f"no price of {asset_id}, which earns in its own price, and no index in the asset book"
            rows.fail(FailureReason.MISSING_MARK, message, subject=asset_id, account_id=account)
            continue
        message = (
            f"no price of {asset_id}: it is valued at the asset book's index {earnings.index:f} of {earnings.as_of}, "
            f"source: {earnings.source}"
        )
        rows.fail(FailureReason.MISSING_MARK, message, path=asset_id, subject=account)
