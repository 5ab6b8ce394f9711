"""Online conformal methods on losses standardised by EWMA volatility: the level or the quantile follows the breaches.

Sources: I. Gibbs, E. Candès, "Adaptive conformal inference under distribution shift", NeurIPS 34 (2021); A. N.
Angelopoulos, E. J. Candès, R. J. Tibshirani, "Conformal PID control for time series prediction", NeurIPS 36 (2023).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .ewma import BURN_IN_DAYS, RESIDUAL_DAYS, ewma_volatility
from .series import Forecast, LogForecast, Moves, Settings, each_series
from .tail import tail

DECAY = 0.97
LEVEL_STEP = 0.005
LEVEL_RANGE = (0.0005, 0.05)
QUANTILE_STEP = 0.05
SCORE_DAYS = 250


def adaptive_level(moves: Moves, settings: Settings) -> Forecast:
    """Empirical quantile at 1 - a of the last 1,000 days, a(t+1) = a(t) + 0.005 (target - breach) kept in a range.

    The expected shortfall is the mean of the standardised losses beyond that quantile.
    """
    target = 1.0 - settings.level
    length, skipped = (days * settings.windows_per_day for days in (RESIDUAL_DAYS, BURN_IN_DAYS))

    def side(scores: np.ndarray) -> np.ndarray:
        found = np.full((2, len(scores)), np.nan)
        alpha = target
        for i in range(settings.start, len(scores)):
            found[:, i] = tail(scores[max(skipped, i - length) : i], 1.0 - alpha)
            alpha += LEVEL_STEP * (target - float(scores[i] > found[0, i]))
            alpha = min(max(alpha, LEVEL_RANGE[0]), LEVEL_RANGE[1])
        return found

    return _on_scores(moves, settings, side)


def tracked_quantile(moves: Moves, settings: Settings) -> Forecast:
    """A quantile that grows by 0.05 times the largest of the last 250 days of scores after a breach, and slowly falls.

    It starts at the empirical quantile of the scores before the first forecast; the expected shortfall keeps the ratio
    to the quantile that the last 1,000 days of scores have.
    """
    target = 1.0 - settings.level
    memory, length, skipped = (d * settings.windows_per_day for d in (SCORE_DAYS, RESIDUAL_DAYS, BURN_IN_DAYS))

    def side(scores: np.ndarray) -> np.ndarray:
        found = np.full((2, len(scores)), np.nan)
        quantile = (
            float(np.quantile(scores[skipped : settings.start], settings.level))
            if len(scores) > settings.start
            else 0.0
        )
        for i in range(settings.start, len(scores)):
            level, beyond = tail(scores[max(skipped, i - length) : i], settings.level)
            found[:, i] = quantile, quantile * max(float(beyond / level), 1.0)
            largest = float(np.max(scores[max(0, i - memory) : i]))
            quantile += QUANTILE_STEP * largest * (float(scores[i] > quantile) - target)
        return found

    return _on_scores(moves, settings, side)


def _on_scores(moves: Moves, settings: Settings, side: Callable[[np.ndarray], np.ndarray]) -> Forecast:
    def both(own: Moves) -> tuple[LogForecast, LogForecast]:
        volatility = ewma_volatility(own.log_return, DECAY, settings)
        long, short = (LogForecast(*(side(losses / volatility) * volatility)) for losses in (own.long, own.short))
        return long, short

    return each_series(moves, both)
