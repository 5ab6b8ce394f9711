"""The three anti-procyclicality tools of EMIR, on top of a margin from filtered volatility.

Source: Commission Delegated Regulation (EU) No 153/2013, article 28(1): (a) a buffer of at least 25 % that may be used
up, (b) at least 25 % weight on stressed observations, (c) no less than with volatility over a 10-year lookback. The
expected shortfall keeps the ratio to the margin that it has in the forecast the tool is applied to.
"""

from __future__ import annotations

import numpy as np

from .ewma import ewma_volatility, residual_tail
from .paths import each_path, with_margin
from .series import Forecast, LogForecast, Moves, Settings, each_series
from .tail import trailing_tail

SHARE = 0.25
STRESS_DAYS = 250
LOOKBACK_DAYS = 3650


def buffered(base: Forecast) -> Forecast:
    """max(m, min(1.25 m, previous)): what is posted stays while margins fall, up to a quarter above them.

    The buffer is full at the first forecast.
    """

    def path(margin: np.ndarray) -> np.ndarray:
        posted = np.empty(len(margin))
        previous = (1.0 + SHARE) * margin[0]
        for i, rate in enumerate(margin):
            previous = max(rate, min((1.0 + SHARE) * rate, previous))
            posted[i] = previous
        return posted

    return with_margin(base, each_path(base.margin, path))


def stressed(base: Forecast, moves: Moves, settings: Settings) -> Forecast:
    """max(m, 0.75 m + 0.25 s), s the highest empirical quantile of any 250 days so far."""
    length = STRESS_DAYS * settings.windows_per_day

    def side(losses: np.ndarray) -> LogForecast:
        highest = trailing_tail(losses, length=length, start=length, level=settings.level).quantile
        highest[length:] = np.maximum.accumulate(highest[length:])
        return LogForecast(highest, highest)

    stress = each_series(moves, lambda own: (side(own.long), side(own.short))).margin
    return with_margin(base, np.maximum(base.margin, (1.0 - SHARE) * base.margin + SHARE * stress))


def floored(base: Forecast, moves: Moves, settings: Settings, *, decay: float) -> Forecast:
    """max(m, f), f the quantile of the standardised losses times the standard deviation of 10 years of returns."""

    def both(own: Moves) -> tuple[LogForecast, LogForecast]:
        volatility = ewma_volatility(own.log_return, decay, settings)
        long_run = _trailing_deviation(own.log_return, LOOKBACK_DAYS * settings.windows_per_day)
        found = []
        for losses in (own.long, own.short):
            score = residual_tail(losses / volatility, settings)
            found.append(LogForecast(score.quantile * long_run, score.quantile * long_run))
        return found[0], found[1]

    floor = each_series(moves, both).margin
    return with_margin(base, np.maximum(base.margin, floor))


def _trailing_deviation(values: np.ndarray, length: int) -> np.ndarray:
    """Standard deviation of the `length` values before each [N] (fewer at the start); 0 before the first."""
    found = np.zeros(len(values))
    for i in range(1, len(values)):
        found[i] = np.std(values[max(0, i - length) : i])
    return found
