"""Depth of a market by proxy from daily bars: volume, spread, price impact. There is no order book in the history.

Highs and lows enter no figure: they are only looked at to count wicks.
"""

from __future__ import annotations

import numpy as np

VOLUME_DAYS = 30

WICK = 5.0
"""A high or low further from the body of its bar than this many standard deviations of the daily return is a wick."""

_BENCHMARK_HALF_SPREAD = 8.21e-4
_BENCHMARK_STD = 0.02
_BENCHMARK_ACTIVITY = 0.02 * 40e6


def wick_count(
    opens: np.ndarray, highs: np.ndarray, lows: np.ndarray, closes: np.ndarray, *, daily_std: float, wick: float = WICK
) -> int:
    """Bars [dates] whose high or low lies more than `wick` daily standard deviations beyond open and close.

    Single prints far from everything else occur in every feed; a high or low on the wrong side counts too, NaN never.
    """
    top, bottom = np.fmax(opens, closes), np.fmin(opens, closes)
    bound = np.exp(wick * daily_std)
    with np.errstate(invalid="ignore"):
        odd = (highs > top * bound) | (highs < top) | (lows < bottom / bound) | (lows > bottom)
    return int(np.count_nonzero(odd))


def invariance_spread(daily_std: float, adv_usd: float) -> float:
    """Relative bid-ask spread from volatility and volume, by invariance of trading: 2 * 8.21 bp at the benchmark.

    half spread = 8.21e-4 (sigma / 0.02) (W / W*)^(-1/3), W = sigma ADV, W* = 0.02 * 40 million USD (Kyle and
    Obizhaeva, Econometrica 84, 2016, linear cost model; constants of US stocks 2001-2005, quoted from memory). Wide for
    the largest crypto markets, whose order books show tenths of a basis point; the order of magnitude for small ones.
    Spread estimators on daily highs and lows were tried and see nothing here: they say 0 or 1 % by chance.
    """
    activity = daily_std * adv_usd / _BENCHMARK_ACTIVITY
    return float(2.0 * _BENCHMARK_HALF_SPREAD * daily_std / _BENCHMARK_STD * activity ** (-1.0 / 3.0))


def amihud(returns: np.ndarray, volume_usd: np.ndarray) -> float:
    """Mean |daily log return| per USD of volume over dates [dates] with both. Amihud, J. Financial Markets 5 (2002).

    NaN without such a date.
    """
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(returns) & (volume_usd > 0.0)
    if not usable.any():
        return float("nan")
    return float(np.mean(np.abs(returns[usable]) / volume_usd[usable]))


def median_volume(volume_usd: np.ndarray) -> float:
    """Median of the positive daily volumes [dates]; ValueError when there is none."""
    with np.errstate(invalid="ignore"):
        traded = volume_usd[volume_usd > 0.0]
    if not len(traded):
        raise ValueError("no day with volume")
    return float(np.median(traded))
