"""Coins that Bybit counts for nothing in a unified account, by the wallet's own words or the collateral answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal

from ..uncounted import Uncounted, worth_nothing
from .parse import CoinLine, CollateralLine
from .rules import CollateralTable


def uncounted(
    line: CoinLine,
    net: Decimal,
    *,
    answers: Sequence[Mapping[str, CollateralLine]],
    tables: Mapping[str, CollateralTable],
    others: Collection[str],
    as_collateral: bool,
) -> Uncounted | None:
    """Why a coin of which `net` is held adds nothing to the margin balance, or None where it does or nobody says so.

    `answers` are the rows of account/collateral-info by coin, the owner's own before the market's, `tables` the tiered
    ratios. A debt counts in full, whatever its stated value. An answer may be asked for coin by coin: what is not in
    one says something only where it names all `others` of the account and one more. With `as_collateral` False
    (isolated margin: the wallet backs nothing) only the stated value decides.
    """
    if net < 0 or line.spot_borrow or line.borrowed:
        return None
    if (found := worth_nothing("usdValue", line.usd_value, owed=False)) is not None:
        return found
    if not as_collateral:
        return None
    stated_of = [answer[line.coin] for answer in answers if line.coin in answer]
    for key, stated, name in (
        ("marginCollateral", line.is_collateral, "is_collateral"),
        ("collateralSwitch", line.switched_on, "switched_on"),
    ):
        words = [stated, *(getattr(other, name) for other in stated_of)]
        if next((word for word in words if word is not None), None) is False:
            return Uncounted(key, f"{key} is false")
    table = tables.get(line.coin)
    flat = [other.ratio for other in stated_of if other.ratio is not None][:1]
    ratios = [ratio for _, ratio in table.tiers] if table is not None else flat
    if ratios:
        return None if any(ratios) else Uncounted("coin", "its collateral ratio is 0")
    if not stated_of and line.is_collateral is None and any(set(others) < set(answer) for answer in answers):
        return Uncounted("coin", "it is not in account/collateral-info")
    return None
