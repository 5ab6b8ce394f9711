"""Margins that a venue can publish: smoothed, bounded in their moves, on a grid.

Arrays are [openings, columns] of one level; a column is an asset and side. NaN marks an opening without a window.
"""

from __future__ import annotations

import numpy as np

from .tier_model_settings import Published

RESTART_DAYS = 3.0
"""After a longer halt smoothing starts anew."""

GRID = ((0.01, 0.0001), (0.05, 0.0005), (np.inf, 0.001))
"""Below the first figure, rates are multiples of the second: 1 bp, 5 bp, 10 bp."""


def smoothed(log_margin: np.ndarray, *, weight: float, windows_per_day: float) -> np.ndarray:
    """Exponentially smoothed logs, `weight` per day on the newest; the plain mean until that has as much to average.

    Starts anew after a halt of more than `RESTART_DAYS`.
    """
    share = 1.0 - (1.0 - weight) ** (1.0 / windows_per_day)
    longest = RESTART_DAYS * windows_per_day
    result = np.full(log_margin.shape, np.nan)
    state = np.zeros(log_margin.shape[1])
    count = np.zeros(log_margin.shape[1])
    missed = np.zeros(log_margin.shape[1])
    for time, row in enumerate(log_margin):
        present = np.isfinite(row)
        count = np.where(missed > longest, 0.0, count)
        step = np.maximum(share, 1.0 / (count + 1.0))
        state = np.where(present, state + step * (np.where(present, row, 0.0) - state), state)
        count = np.where(present, count + 1.0, count)
        missed = np.where(present, 0.0, missed + 1.0)
        result[time] = np.where(present, state, np.nan)
    return result


def aimed(log_margin: np.ndarray, *, windows_per_day: float, settings: Published) -> np.ndarray:
    """Logs smoothed towards an aim: the slow mean plus `reach` of the distance from it to the margin of the day.

    A margin that jumps comes back; a tier that is slow anyway should go for where the margin will be in a while, and
    can then move the faster at the same roughness. Garleanu and Pedersen, "Dynamic trading with predictable returns and
    transaction costs", 2013, for the idea of trading partially towards an aim.
    """
    slow = smoothed(log_margin, weight=settings.slow_weight, windows_per_day=windows_per_day)
    aim = slow + settings.reach * (log_margin - slow)
    return smoothed(aim, weight=settings.weight, windows_per_day=windows_per_day)


def bounded(log_margin: np.ndarray, wanted: np.ndarray, *, windows_per_day: float, settings: Published) -> np.ndarray:
    """Logs whose 5-day rise and 30-day ratio of largest to smallest stay within the bounds of the settings.

    `wanted` is the log margin before smoothing: bounds give way where the bounded margin falls short of it by more than
    the factor `way_out`, so that a tier follows a coin that collapses. The result is then wanted / way_out, at least.
    """
    rise = np.log1p(settings.largest_rise_5_days)
    ratio = np.log(settings.largest_ratio_30_days)
    out = np.log(settings.way_out)
    five, thirty = round(5 * windows_per_day), round(30 * windows_per_day)
    result = np.full(log_margin.shape, np.nan)
    for time, row in enumerate(log_margin):
        past = result[max(0, time - thirty + 1) : time]
        lowest = np.min(np.where(np.isfinite(past), past, np.inf), axis=0, initial=np.inf)
        highest = np.max(np.where(np.isfinite(past), past, -np.inf), axis=0, initial=-np.inf)
        before = result[time - five] if time >= five else np.full(row.shape, np.nan)
        ceiling = np.minimum(lowest + ratio, np.where(np.isfinite(before), before + rise, np.inf))
        kept = np.minimum(np.maximum(row, highest - ratio), ceiling)
        result[time] = np.where(np.isfinite(row), np.maximum(kept, wanted[time] - out), np.nan)
    return result


def on_grid(rate: np.ndarray) -> np.ndarray:
    """Rates rounded up to the grid of tiers; NaN stays NaN."""
    result = np.full(rate.shape, np.nan)
    lower = 0.0
    for upper, step in GRID:
        inside = (rate > lower) & (rate <= upper)
        # a rate that is on the grid already must not move up by a step for its last bits
        result = np.where(inside, np.ceil(np.round(rate / step, 9)) * step, result)
        lower = upper
    return result
