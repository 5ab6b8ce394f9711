"""Plain empirical quantiles: historical simulation, and a constant tier that is refreshed now and then."""

from __future__ import annotations

import numpy as np

from .series import Forecast, LogForecast, Moves, Settings, each_series
from .tail import tail, trailing_tail

HISTORY_DAYS = 500
STATIC_LEVEL_SHARE = 0.5
"""The constant tier keeps half of the exceedance probability: 99.5 % for a margin at 99 %."""

STATIC_YEARS = 10
REFRESH_DAYS = 30


def historical_simulation(moves: Moves, settings: Settings) -> Forecast:
    """Quantile and tail mean of the last 500 days of losses (fewer when there are not as many)."""
    length = HISTORY_DAYS * settings.windows_per_day

    def side(losses: np.ndarray) -> LogForecast:
        return LogForecast(*trailing_tail(losses, length=length, start=settings.start, level=settings.level))

    return each_series(moves, lambda own: (side(own.long), side(own.short)))


def constant_tier(moves: Moves, settings: Settings) -> Forecast:
    """Quantile at half the exceedance probability of all losses so far (10 years at most), anew every 30 days."""
    longest = STATIC_YEARS * 365 * settings.windows_per_day
    level = 1.0 - STATIC_LEVEL_SHARE * (1.0 - settings.level)

    def side(losses: np.ndarray) -> LogForecast:
        found = LogForecast(np.full(len(losses), np.nan), np.full(len(losses), np.nan))
        step = REFRESH_DAYS * settings.windows_per_day
        for i in range(settings.start, len(losses), step):
            found.quantile[i : i + step], found.shortfall[i : i + step] = tail(losses[max(0, i - longest) : i], level)
        return found

    return each_series(moves, lambda own: (side(own.long), side(own.short)))
