"""Inputs beside volatility: direction, activity, tail shape, calendar, and what the whole market shows.

Host code on NumPy; [windows + 1, assets], known at the opening of each window, NaN where missing. Signed inputs are
positive when they speak for falls or follow rises, and change sign with the side of the position.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import maximum_filter1d

from .features_volatility import BARS_PER_DAY, after_bars, after_windows, at_bars, fading_mean, half_life_decay
from .market_history import FourHourPanel

RETURN_DAYS = (1, 3, 7, 20, 60)
SEMIVARIANCE_HALF_LIVES = (2.0, 10.0, 30.0)
WICK_HALF_LIVES = (3.0, 15.0)
SPAN_DAYS = 60
LEAST_WEIGHT = 0.05
LEAST_TAIL_WEIGHT = 0.1
LARGEST_STANDARDISED = 15.0
LARGEST_FUNDING = 10.0
"""Basis points per 8 hours."""

NEWEST_AGE, OLDEST_AGE = 5.0, 500.0
"""Days of history that are told apart."""

CALENDAR = ("monday", "saturday", "sunday", "hour_8", "hour_16")
"""Inputs that follow the clock; a published tier takes them at their mean."""


def direction(panel: FourHourPanel, body: np.ndarray, ended: np.ndarray, anchor: np.ndarray) -> dict[str, np.ndarray]:
    """Returns, semivariances, wicks and the place within the range of the last days, in units of the anchor."""
    scale = np.exp(anchor)
    present = np.isfinite(body)
    walked = np.cumsum(np.where(present, body, 0.0), axis=0)
    counted = np.cumsum(present, axis=0).astype(np.float64)
    signed = {}
    for days in RETURN_DAYS:
        bars = BARS_PER_DAY * days
        enough = _last(counted, bars) >= bars / 2
        signed[f"return_{days}"] = at_bars(np.where(enough, _last(walked, bars), np.nan), ended) / scale / days**0.5
    floor = 0.05 * scale**2 / BARS_PER_DAY  # keeps the ratio of two sums of squares finite
    for half_life in SEMIVARIANCE_HALF_LIVES:
        decay = half_life_decay(half_life, BARS_PER_DAY)
        down = after_bars(fading_mean(np.where(present, np.minimum(body, 0.0) ** 2, np.nan), decay), ended)
        up = after_bars(fading_mean(np.where(present, np.maximum(body, 0.0) ** 2, np.nan), decay), ended)
        ratio = 0.5 * (np.log(down.value(0.3) + floor) - np.log(up.value(0.3) + floor))
        signed[f"semivariance_{half_life:g}"] = ratio
    above = np.log(panel.high / np.maximum(panel.open, panel.close))
    below = np.log(np.minimum(panel.open, panel.close) / panel.low)
    for half_life in WICK_HALF_LIVES:
        mean = after_bars(fading_mean(below - above, half_life_decay(half_life, BARS_PER_DAY)), ended)
        signed[f"wick_{half_life:g}"] = mean.value(0.3) / scale * BARS_PER_DAY**0.5
    high, low, last = _span(panel, ended)
    signed["position"] = (np.log(last / high) + np.log(last / low)) / scale / SPAN_DAYS**0.5
    return signed


def activity(panel: FourHourPanel, body: np.ndarray, ended: np.ndarray, anchor: np.ndarray) -> dict[str, np.ndarray]:
    """Volume and illiquidity against their own past, width of the range of the last days, size among the assets.

    Illiquidity is |return| / traded value: Amihud, "Illiquidity and stock returns", 2002.
    """
    value = panel.volume * panel.close

    def log_mean(values: np.ndarray, half_life: float) -> np.ndarray:
        mean = after_bars(fading_mean(values, half_life_decay(half_life, BARS_PER_DAY)), ended).value(LEAST_WEIGHT)
        return np.log(np.where(mean > 0.0, mean, np.nan))

    volume = {half_life: log_mean(value, half_life) for half_life in (0.5, 5.0, 40.0)}
    illiquidity = np.abs(body) / np.where(value > 0.0, value, np.nan)
    high, low, _ = _span(panel, ended)
    return {
        "span": np.log(np.log(high / low) / np.exp(anchor) / SPAN_DAYS**0.5 + 0.05),
        "volume_fast": volume[0.5] - volume[40.0],
        "volume_slow": volume[5.0] - volume[40.0],
        "illiquidity": log_mean(illiquidity, 3.0) - log_mean(illiquidity, 40.0),
        "size": volume[40.0] - _row_median(volume[40.0])[:, None],
    }


def tail_shape(log_return: np.ndarray, volatility: np.ndarray, *, windows_per_day: float) -> dict[str, np.ndarray]:
    """Kurtosis of the returns [windows, assets] over the volatility known before each (per window), about a year."""
    standardised = np.clip(log_return / volatility[:-1], -LARGEST_STANDARDISED, LARGEST_STANDARDISED)
    decay = 0.995 ** (1.0 / windows_per_day)
    fourth = after_windows(fading_mean(standardised**4, decay)).value(LEAST_TAIL_WEIGHT)
    second = after_windows(fading_mean(standardised**2, decay)).value(LEAST_TAIL_WEIGHT)
    return {"kurtosis": np.log(fourth / np.where(second > 0.0, second, np.nan) ** 2 + 0.1)}


def age(traded: np.ndarray, *, windows_per_day: float) -> dict[str, np.ndarray]:
    """Log days of history before each window, counted from `NEWEST_AGE` to `OLDEST_AGE`; `traded` [windows, assets]."""
    days = np.concatenate([np.zeros((1, traded.shape[1])), np.cumsum(traded, axis=0)]) / windows_per_day
    return {"age": np.log(np.minimum(days, OLDEST_AGE) + NEWEST_AGE)}


def calendar(opening: np.ndarray, assets: int) -> dict[str, np.ndarray]:
    """1 or 0: weekday of the window, and its hour where windows are shorter than a day."""
    day = opening.astype("datetime64[D]")
    weekday = (day.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    hour = (opening - day) // np.timedelta64(1, "h")
    flags = (weekday == 0, weekday == 5, weekday == 6, hour == 8, hour == 16)
    return {
        name: np.repeat(flag.astype(np.float64)[:, None], assets, axis=1)
        for name, flag in zip(CALENDAR, flags, strict=True)
    }


def market_mood(
    funding: np.ndarray, fear_greed: np.ndarray, *, assets: int, windows_per_day: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Even and signed inputs of Bitcoin's funding rate (fraction per 8 h) and the fear-and-greed index (0 to 100)."""
    basis_points = np.clip(1e4 * funding, -LARGEST_FUNDING, LARGEST_FUNDING)
    width = round(7 * windows_per_day)
    present = np.isfinite(basis_points)
    total = _last(np.cumsum(np.where(present, basis_points, 0.0))[:, None], width)[:, 0]
    count = _last(np.cumsum(present).astype(np.float64)[:, None], width)[:, 0]
    week = np.where(count >= width / 2, total / np.maximum(count, 1.0), np.nan)
    greed = (fear_greed - 50.0) / 25.0

    def for_all(values: np.ndarray) -> np.ndarray:
        return np.repeat(values[:, None], assets, axis=1)

    signed = {"funding_1": for_all(basis_points), "funding_7": for_all(week), "fear_greed": for_all(greed)}
    return {"fear_greed_level": signed["fear_greed"], "funding_level": signed["funding_7"]}, signed


def _last(cumulated: np.ndarray, steps: int) -> np.ndarray:
    """Sum of the last `steps` values from cumulated sums [times, columns]; of fewer at first."""
    before = np.zeros_like(cumulated)
    before[steps:] = cumulated[:-steps] if steps < len(cumulated) else 0.0
    return cumulated - before


def _span(panel: FourHourPanel, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Highest high and lowest low of the last `SPAN_DAYS`, and the last close (at most 3 days old)."""
    bars = SPAN_DAYS * BARS_PER_DAY
    high = _trailing_maximum(panel.high, bars)
    low = -_trailing_maximum(-panel.low, bars)
    last = panel.close.copy()
    for _ in range(3 * BARS_PER_DAY):
        last[1:] = np.where(np.isfinite(last[1:]), last[1:], last[:-1])
    return at_bars(high, ended), at_bars(low, ended), at_bars(last, ended)


def _trailing_maximum(values: np.ndarray, steps: int) -> np.ndarray:
    """The largest of the last `steps` values [times, columns] that are there; NaN for none."""
    filled = np.where(np.isfinite(values), values, -np.inf)
    largest = maximum_filter1d(filled, steps, axis=0, origin=(steps - 1) // 2, mode="constant", cval=-np.inf)
    return np.where(np.isfinite(largest), largest, np.nan)


def _row_median(values: np.ndarray) -> np.ndarray:
    """Median of what is there in each row; NaN for none."""
    medians = np.full(len(values), np.nan)
    for row in np.flatnonzero(np.isfinite(values).any(axis=1)):
        medians[row] = np.median(values[row][np.isfinite(values[row])])
    return medians
