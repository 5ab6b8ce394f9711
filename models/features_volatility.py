"""Own volatility of every asset at several speeds, and the pooled values that stand in where its history is short.

Host code on NumPy, arrays [times, assets], NaN where there is nothing. Every measure is a variance per day. Averages
are exponential in calendar time: a missing bar lets the old weight fade, so that at the start of a listing, or after a
halt, little own weight is left and a prior takes its place. Row t of what is known "at the opening" of window t comes
from windows and bars that end by then; there is one row more than windows, for the window after the last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

BAR = np.timedelta64(4, "h")
BARS_PER_DAY = 6

RANGE_HALF_LIVES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Days, of averages of the 4-hour Parkinson variance."""

SQUARE_DECAYS = (0.80, 0.90, 0.94, 0.97, 0.985)
"""Per day, of averages of squared returns over windows."""

BODY_HALF_LIVES = (1.0, 5.0, 20.0)
"""Days, of averages of squared 4-hour returns."""

ANCHOR_RANGES = (2.0, 8.0, 16.0)
ANCHOR_SQUARE = 0.94
"""Speeds whose log volatilities average to the anchor."""

PRIOR_STRENGTH = 0.25
"""Weight of the prior per unit of own weight that is missing: after 10 days of listing at decay 0.94 it has 23 %."""

PRIOR_QUANTILE = 0.75
"""Of the assets of the day: what an asset without history is taken for. New listings move more than the median."""

LEAST_OWN_WEIGHT = 0.3
"""Own weight from which an asset counts among those of the day."""

FIRST_VARIANCE = 0.05**2
"""Per day, before any asset has a history."""

SMALLEST_VARIANCE = 1e-10
"""(0.001 % a day) squared: keeps the logarithm of a frozen price finite."""


class FadingMean(NamedTuple):
    """[times, assets]: the sum of weighted values, and of the weights (at most 1), both fading with time."""

    total: np.ndarray
    weight: np.ndarray

    def value(self, least_weight: float) -> np.ndarray:
        """The mean; NaN where the weight is below `least_weight`."""
        enough = self.weight >= least_weight
        return np.where(enough, self.total / np.where(enough, self.weight, 1.0), np.nan)


class Volatilities(NamedTuple):
    """Known at the opening, [windows + 1, assets] each: log volatilities per day, and the anchor they go by."""

    anchor: np.ndarray
    range: dict[float, np.ndarray]
    square: dict[float, np.ndarray]
    body: dict[float, np.ndarray]
    observed: np.ndarray
    """Whether 4-hour bars of the last days are there."""


def half_life_decay(half_life_days: float, per_day: float) -> float:
    """Weight that remains after one step when `per_day` steps make a day."""
    return float(0.5 ** (1.0 / (half_life_days * per_day)))


def fading_mean(values: np.ndarray, decay: float) -> FadingMean:
    """Exponentially weighted sums after each time; a missing value adds no weight and lets the old one fade."""
    present = np.isfinite(values)
    step, memory = np.array([1.0 - decay]), np.array([1.0, -decay])
    total = lfilter(step, memory, np.where(present, values, 0.0), axis=0)
    return FadingMean(total, lfilter(step, memory, present.astype(np.float64), axis=0))


def after_windows(mean: FadingMean) -> FadingMean:
    """What is known at the opening of each window, from sums after windows: one row later, and none at first."""
    nothing = np.zeros((1, mean.total.shape[1]))
    return FadingMean(np.concatenate([nothing, mean.total]), np.concatenate([nothing, mean.weight]))


def bars_ended(bar_opening: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """Index of the last 4-hour bar that ended by each opening; -1 for none. Both are dense."""
    ended = (opening - bar_opening[0]) // BAR - 1
    return np.clip(ended.astype(np.int64), -1, len(bar_opening) - 1)


def at_bars(values: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """Rows of `values` [bars, assets] by `bars_ended`; NaN before the first bar."""
    return np.where((ended >= 0)[:, None], values[np.maximum(ended, 0)], np.nan)


def after_bars(mean: FadingMean, ended: np.ndarray) -> FadingMean:
    """What is known at the opening of each window, from sums after bars."""
    return FadingMean(np.nan_to_num(at_bars(mean.total, ended)), np.nan_to_num(at_bars(mean.weight, ended)))


def shrunk(mean: FadingMean, prior: np.ndarray) -> np.ndarray:
    """The mean where its weight is full; as own weight fades, the prior [times, assets], finite, takes over."""
    pull = PRIOR_STRENGTH * (1.0 - np.minimum(mean.weight, 1.0)) + 1e-12
    return (mean.total + pull * prior) / (mean.weight + pull)


def pooled_variance(mean: FadingMean) -> np.ndarray:
    """[times, assets], the same for all: the `PRIOR_QUANTILE` over assets that have a history of their own."""
    own = mean.value(LEAST_OWN_WEIGHT)
    pooled = np.full(own.shape, FIRST_VARIANCE)
    for time in np.flatnonzero(np.isfinite(own).any(axis=1)):
        row = own[time]
        pooled[time] = np.quantile(row[np.isfinite(row)], PRIOR_QUANTILE)
    return pooled


def parkinson_variance(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """ln(high / low)^2 / (4 ln 2) per bar. Parkinson, "The extreme value method for estimating the variance", 1980."""
    return np.log(high / low) ** 2 / (4.0 * np.log(2.0))


def volatilities(
    log_return: np.ndarray,
    high: np.ndarray,
    low: np.ndarray,
    body: np.ndarray,
    ended: np.ndarray,
    *,
    windows_per_day: float,
) -> Volatilities:
    """All speeds of all assets, from log returns [windows, assets] and 4-hour bars [bars, assets].

    `body` is the log return from open to close of a bar, so nothing crosses a gap or a change of market. Averages of
    squared returns shrink to the assets of the day, averages of bars to the asset's own squared returns.
    """
    square = {}
    for decay in SQUARE_DECAYS:
        mean = after_windows(fading_mean(log_return**2 * windows_per_day, decay ** (1.0 / windows_per_day)))
        square[decay] = shrunk(mean, pooled_variance(mean))
    own = square[ANCHOR_SQUARE]

    def of_bars(variance: np.ndarray, half_life: float) -> np.ndarray:
        mean = fading_mean(variance * BARS_PER_DAY, half_life_decay(half_life, BARS_PER_DAY))
        return shrunk(after_bars(mean, ended), own)

    parkinson = parkinson_variance(high, low)
    ranges = {half_life: _log_volatility(of_bars(parkinson, half_life)) for half_life in RANGE_HALF_LIVES}
    bodies = {half_life: _log_volatility(of_bars(body**2, half_life)) for half_life in BODY_HALF_LIVES}
    squares = {decay: _log_volatility(variance) for decay, variance in square.items()}
    anchor = np.mean([*(ranges[half_life] for half_life in ANCHOR_RANGES), squares[ANCHOR_SQUARE]], axis=0)
    recent = after_bars(fading_mean(parkinson, half_life_decay(1.0, BARS_PER_DAY)), ended)
    return Volatilities(anchor, ranges, squares, bodies, recent.weight >= LEAST_OWN_WEIGHT)


def _log_volatility(variance: np.ndarray) -> np.ndarray:
    return 0.5 * np.log(np.maximum(variance, SMALLEST_VARIANCE))
