"""Exponentially weighted volatility, with the normal quantile or the empirical one of the standardised losses."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from .series import Forecast, LogForecast, Moves, Settings, each_series
from .tail import Tail, trailing_tail

START_DAYS = 100
"""The recursion starts from the variance of this many first days, all of them before the first forecast."""

SMALLEST_VOLATILITY = 1e-6
"""A price that never moved has standardised losses of 0, not of 0/0."""

RESIDUAL_DAYS = 1000

BURN_IN_DAYS = 60
"""Standardised losses of so many first days are left out, for the volatility there still is that of the start."""


def ewma_volatility(returns: np.ndarray, decay: float, settings: Settings) -> np.ndarray:
    """Volatility per window [N] known before each of `returns` [N]: v(i+1) = decay v(i) + (1 - decay) r(i)^2.

    `decay` is that of a day; with several windows in a day it is taken to the power 1/windows. Source of the recursion:
    J.P. Morgan/Reuters, "RiskMetrics - Technical Document", 4th edition, 1996, chapter 5.
    """
    weight = decay ** (1.0 / settings.windows_per_day)
    variance = np.empty(len(returns))
    last = float(np.var(returns[: START_DAYS * settings.windows_per_day])) if len(returns) else 0.0
    for i, squared in enumerate(np.square(returns)):
        variance[i] = last
        last = weight * last + (1.0 - weight) * float(squared)
    return np.maximum(np.sqrt(variance), SMALLEST_VOLATILITY)


def residual_tail(scores: np.ndarray, settings: Settings) -> Tail:
    """Tail of the last 1,000 days of standardised losses [N] before each forecast, burn-in left out."""
    skipped = min(BURN_IN_DAYS * settings.windows_per_day, len(scores))
    length, start = RESIDUAL_DAYS * settings.windows_per_day, settings.start - skipped
    found = trailing_tail(scores[skipped:], length=length, start=start, level=settings.level)
    return Tail(*(np.concatenate([np.full(skipped, np.nan), values]) for values in found))


def normal(moves: Moves, settings: Settings, *, decay: float) -> Forecast:
    """Normal quantile and expected shortfall (density at the quantile over the tail probability) times volatility.

    For the adverse loss those of the highest point of a Brownian path (`Settings.law_level`).
    """
    score = float(ndtri(settings.law_level))
    beyond = float(np.exp(-0.5 * score**2) / np.sqrt(2.0 * np.pi) / (1.0 - settings.law_level))

    def both(own: Moves) -> tuple[LogForecast, LogForecast]:
        volatility = ewma_volatility(own.log_return, decay, settings)
        volatility[: settings.start] = np.nan
        found = LogForecast(score * volatility, beyond * volatility)
        return found, found

    return each_series(moves, both)


def filtered(moves: Moves, settings: Settings, *, decay: float) -> Forecast:
    """Volatility times quantile and tail mean of the last 1,000 days of standardised losses."""

    def both(own: Moves) -> tuple[LogForecast, LogForecast]:
        volatility = ewma_volatility(own.log_return, decay, settings)
        found = []
        for losses in (own.long, own.short):
            residual = residual_tail(losses / volatility, settings)
            found.append(LogForecast(volatility * residual.quantile, volatility * residual.mean))
        return found[0], found[1]

    return each_series(moves, both)
