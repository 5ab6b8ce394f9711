"""A token that the asset book does not know and that its venue counts for nothing is a finding and fails no account.

Where the venue counts such a token the account stays incomplete: nothing is known of its price in a scenario.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from aggregator.errors import FailureReason

from .amounts import joined
from .rows import Rows

SMALLEST_VALUE = Decimal("0.01")
"""USD: holdings that are worth less count for nothing."""


class Uncounted(NamedTuple):
    """The field by which a venue says that a balance counts for nothing, and what it says there."""

    field: str
    words: str


def worth_nothing(field: str, value_usd: Decimal | None, *, owed: bool) -> Uncounted | None:
    """`Uncounted` for holdings whose stated value is below a cent; None for any other, and always for a debt.

    What is owed grows without bound with a price that nobody knows, so that no value of today makes it nothing.
    """
    if owed or value_usd is None or abs(value_usd) >= SMALLEST_VALUE:
        return None
    return Uncounted(field, f"{field} is {value_usd:f} USD")


def tell_uncounted(
    rows: Rows, found: Uncounted, *, account: str, asset: str, quantity: Decimal, payload: str, path: str
) -> None:
    """The finding that `account` is computed without `quantity` of an unknown asset; `path` is that of its record."""
    rows.fail(
        FailureReason.UNKNOWN_ASSET,
        f"{asset[:40]!r} is not in the asset book and counts for nothing at the venue ({found.words}): the account is "
        f"computed without {quantity:f} of it",
        payload=payload,
        path=joined(path, found.field),
        subject=account,
    )
