"""Inputs that are the same for all assets of an opening: how the whole market moves and how far its assets are apart.

Host code on NumPy; [windows + 1, assets], known at the opening of each window, NaN where missing. Own ranges carry the
level of volatility already; these tell a fall of everything from one coin's own.
"""

from __future__ import annotations

import numpy as np

from .features_volatility import BARS_PER_DAY, at_bars

LEAST_VOLATILITY = 0.004
"""Per day: what moves less is pegged and says nothing of the market."""

LEAST_ASSETS = 8
"""Fewer than these make no market: two coins move together more than fifty do, and lie less far apart."""

CHANGE_DAYS = 5
TOGETHER_DAYS = 3
FALL_DAYS = 5
FALL = -0.20
"""Log return over `FALL_DAYS` below which an asset counts as fallen."""

SMALLEST_SQUARE = 1e-12
"""Of a 4-hour log return, in a mean: keeps the logarithm of a market that stands still finite."""


def cross_section(
    body: np.ndarray, ended: np.ndarray, anchor: np.ndarray, usable: np.ndarray, *, windows_per_day: float
) -> dict[str, np.ndarray]:
    """Change and dispersion of log volatility over the assets, how much they move together, share of them that fell.

    `body` [bars, assets] are log returns of 4-hour bars, `anchor` [windows + 1, assets] log volatilities per day and
    `usable` whether they are an asset's own. "market_together" is the log of the squared mean return over the mean
    squared return, both summed over bars: 0 when all assets move as one.

    All four are missing at an opening where fewer than `LEAST_ASSETS` assets are usable and no pegs, the change also
    where that was so `CHANGE_DAYS` before.
    """
    wild = np.where(usable & (anchor >= np.log(LEAST_VOLATILITY)), anchor, np.nan)
    market = np.isfinite(wild).sum(axis=1) >= LEAST_ASSETS
    median = np.full(len(wild), np.nan)
    dispersion = np.full(len(wild), np.nan)
    for time in np.flatnonzero(market):
        row = wild[time][np.isfinite(wild[time])]
        median[time], dispersion[time] = np.median(row), np.std(row)
    steps = round(CHANGE_DAYS * windows_per_day)
    change = np.full(len(median), np.nan)
    change[steps:] = median[steps:] - median[:-steps]

    present = np.isfinite(body)
    known = np.where(present, body, 0.0)
    count = np.maximum(present.sum(axis=1), 1)
    squared_mean = _trailing_sum((_over_assets(known) / count) ** 2, TOGETHER_DAYS * BARS_PER_DAY)
    mean_squared = _trailing_sum(_over_assets(known**2) / count, TOGETHER_DAYS * BARS_PER_DAY)
    together = np.log(np.maximum(squared_mean, SMALLEST_SQUARE)) - np.log(np.maximum(mean_squared, SMALLEST_SQUARE))

    bars = FALL_DAYS * BARS_PER_DAY
    enough = _trailing_sum(present.astype(np.float64), bars) >= bars / 2
    fallen = (enough & (_trailing_sum(known, bars) < FALL)).sum(axis=1)
    share = np.where(enough.any(axis=1), fallen / np.maximum(enough.sum(axis=1), 1), np.nan)

    of_bars = np.where(market[:, None], at_bars(np.stack([together, share], axis=1), ended), np.nan)
    found = {
        "market_change": change,
        "market_dispersion": dispersion,
        "market_together": of_bars[:, 0],
        "market_fallen": of_bars[:, 1],
    }
    return {name: np.repeat(values[:, None], anchor.shape[1], axis=1) for name, values in found.items()}


def _over_assets(values: np.ndarray) -> np.ndarray:
    """Sum of each row, one by one: an asset that is not there yet (zeros) changes no bit of it."""
    total: np.ndarray = np.cumsum(values, axis=1)[:, -1]
    return total


def _trailing_sum(values: np.ndarray, steps: int) -> np.ndarray:
    """Sum of the last `steps` values along the first axis; of fewer at first."""
    total = np.cumsum(values, axis=0)
    before = np.zeros_like(total)
    before[steps:] = total[:-steps]
    return total - before
