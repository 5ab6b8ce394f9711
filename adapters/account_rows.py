"""Rows of accounts that venues write alike: signed balances, and failures of an owner as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from .rows import Rows


def add_balance(rows: Rows, account_id: str, asset_id: str, quantity: Decimal, *, enabled: bool = True) -> None:
    """One row of `balances`: what is held, or owed where `quantity` in tokens is negative; 0 is no row."""
    if quantity:
        rows.add(
            "balances",
            account_id=account_id,
            asset_id=asset_id,
            side="asset" if quantity > 0 else "liability",
            # Not `abs`, which rounds to the digits of the context.
            quantity=quantity.copy_abs(),
            collateral_enabled=enabled,
        )


def spread_failures(rows: Rows, whole: str, homes: Sequence[str]) -> None:
    """Puts one failure of each account of `homes` in the place of every failure of the owner as a whole, `whole`."""
    rows.failures[:] = [
        spread
        for failure in rows.failures
        for spread in (
            [replace(failure, account_id=home) for home in homes] if failure.account_id == whole else [failure]
        )
    ]
