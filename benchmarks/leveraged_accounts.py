"""Made-up leveraged accounts on recorded prices: what they hold, when they are liquidated, how far they are from it.

An account holds linear positions of one unit of gross notional at its opening and collateral in dollars. It is
liquidated when its equity is at or below `MAINTENANCE` times its gross notional. Prices are relative to the opening;
arrays are [accounts, assets], [bars, assets].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAINTENANCE = 0.02
"""Maintenance margin over gross notional; every venue has ladders of its own, here it is one rate."""

KINDS = ("long", "short", "long basket", "short basket", "hedged")
SHARES = (0.3, 0.2, 0.15, 0.1, 0.25)
"""Of the accounts, by kind: one asset long or short, several of them, longs against as much in shorts."""

LARGEST_BASKET = 5
COLLATERAL = {"hedged": (0.03, 0.20)}
DIRECTIONAL = (0.05, 0.50)
"""Collateral over gross notional, drawn evenly in logarithms: leverage of 2 to 20, hedged 5 to 33."""


class Accounts(NamedTuple):
    """`notional` [accounts, assets] signed, at the opening; `collateral` [accounts]; `kind` [accounts] in `KINDS`."""

    notional: np.ndarray
    collateral: np.ndarray
    kind: np.ndarray


def drawn_accounts(random: np.random.Generator, usable: np.ndarray, count: int) -> Accounts:
    """`count` accounts over the assets that are `usable` [assets], of which there must be at least `LARGEST_BASKET`."""
    choices = np.flatnonzero(usable)
    notional = np.zeros((count, len(usable)))
    kind = random.choice(len(KINDS), size=count, p=SHARES)
    collateral = np.zeros(count)
    for number, name in enumerate(KINDS[place] for place in kind):
        held = 1 if name in ("long", "short") else int(random.integers(2, LARGEST_BASKET + 1))
        assets = random.choice(choices, size=held, replace=False)
        shares = random.dirichlet(np.full(held, 2.0))
        if name == "hedged":
            signs = np.where(np.arange(held) < (held + 1) // 2, 1.0, -1.0) * random.choice((-1.0, 1.0))
            for side in (1.0, -1.0):
                shares[signs == side] *= 0.5 / shares[signs == side].sum()
            notional[number, assets] = signs * shares
        else:
            notional[number, assets] = shares if name.startswith("long") else -shares
        low, high = COLLATERAL.get(name, DIRECTIONAL)
        collateral[number] = np.exp(random.uniform(np.log(low), np.log(high)))
    return Accounts(notional, collateral, kind)


def surplus_parts(accounts: Accounts, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(constant [accounts], per unit of growth [accounts, assets]) of equity less maintenance margin.

    `ratio` [assets] are today's prices over those of the opening; with growth g of every price from today on the
    surplus is constant + sum of parts x g. A price without a ratio must not be held.
    """
    known = np.where(np.isfinite(ratio), ratio, 0.0)
    parts = (accounts.notional - MAINTENANCE * np.abs(accounts.notional)) * known
    return accounts.collateral - accounts.notional.sum(axis=1), parts


def first_liquidation(accounts: Accounts, low: np.ndarray, high: np.ndarray, close: np.ndarray) -> np.ndarray:
    """The first bar in which each account is liquidated, the number of bars where none is [accounts].

    `low`, `high`, `close` [bars, assets] over the price at the opening. Accounts on one side of the market stand at the
    worst point of each bar, of several assets together; hedged ones at its close, because the extremes of two assets
    are not of one moment. A bar without a price of what is held ends the account's record: it is liquidated in none
    from there on.
    """
    bars = len(close)
    hedged = accounts.kind == KINDS.index("hedged")
    is_long = accounts.notional.max(axis=1) > 0.0
    reference = np.where(is_long[:, None, None], low[None], high[None])
    reference = np.where(hedged[:, None, None], close[None], reference)
    held = accounts.notional != 0.0
    missing = (held[:, None, :] & ~np.isfinite(reference)).any(axis=2)
    weight = accounts.notional - MAINTENANCE * np.abs(accounts.notional)
    moved = np.einsum("ka,kba->kb", weight, np.nan_to_num(reference))
    surplus = (accounts.collateral - accounts.notional.sum(axis=1))[:, None] + moved
    gone = (surplus <= 0.0) & ~np.maximum.accumulate(missing, axis=1)
    return np.where(gone.any(axis=1), gone.argmax(axis=1), bars)
