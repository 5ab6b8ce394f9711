"""Currencies that OKX counts for nothing in an account in USD, by its own words in the balance or its discount list."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..uncounted import SMALLEST_VALUE, Uncounted, worth_nothing
from .market import DISCOUNTS
from .parse import DetailLine, DiscountLine


def uncounted(detail: DetailLine, slices: Mapping[str, DiscountLine], *, others: Collection[str]) -> Uncounted | None:
    """Why a currency adds nothing to the adjusted equity, or None where it does or nobody says that it does not.

    A debt counts in full, whatever its discount and its stated value. The balance's own figure goes before the discount
    list, in which a currency that is no collateral does not stand. The list may be asked for coin by coin: what is not
    in it says something only where it names all `others` of the account and one more.
    """
    if detail.equity < 0 or detail.cash < 0 or detail.interest:
        return None
    if (found := worth_nothing("eqUsd", detail.equity_usd, owed=False)) is not None:
        return found
    if not detail.is_collateral:
        return Uncounted("collateralEnabled", "collateralEnabled is false")
    if detail.discounted_usd is not None:
        if abs(detail.discounted_usd) >= SMALLEST_VALUE:
            return None
        return Uncounted("disEq", f"disEq is {detail.discounted_usd:f} USD")
    own = slices.get(detail.currency)
    if own is None and set(others) < set(slices):
        return Uncounted("ccy", f"it is not in {DISCOUNTS}")
    if own is not None and not any(rate for _, _, rate in own.tiers):
        return Uncounted("ccy", f"its discount rate in {DISCOUNTS} is 0")
    return None
