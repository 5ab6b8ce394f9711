"""GARCH(1,1) with Student-t innovations and GJR-GARCH with empirical residuals, refitted every 30 days.

The fits are those of the package `arch` (extra `baselines`). Equations, x in percent, zero mean:

    x(t) = s(t) z(t)      s(t)^2 = omega + (alpha + gamma 1(x(t-1) < 0)) x(t-1)^2 + beta s(t-1)^2

gamma = 0 in GARCH; z Student-t with unit variance. Between two fits the recursion runs on with the last parameters.
Sources: T. Bollerslev, "A conditionally heteroskedastic time series model for speculative prices and rates of return",
Review of Economics and Statistics 69 (1987); L. R. Glosten, R. Jagannathan, D. E. Runkle, "On the relation between the
expected value and the volatility of the nominal excess return on stocks", Journal of Finance 48 (1993).
"""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit
from scipy.stats import t as student_t

from aggregator.errors import ConfigurationError

from .series import Apply, Forecast, LogForecast, Moves, Settings, each_series
from .tail import tail

REFIT_DAYS = 30
LONGEST_DAYS = 1500
PERCENT = 100.0


class Fit(NamedTuple):
    """Parameters in percent units; `variance` is that of the window after the sample, `volatility` [n] the sample's."""

    omega: float
    alpha: float
    gamma: float
    beta: float
    degrees: float
    variance: float
    volatility: np.ndarray


def student(moves: Moves, settings: Settings, *, apply: Apply = map) -> Forecast:
    """GARCH(1,1) with the quantile and expected shortfall of the fitted Student-t law, the same on both sides.

    For the adverse loss those of the highest point of the path (`Settings.law_level`).
    """
    return each_series(moves, partial(_forecast, settings=settings, asymmetry=0), apply=apply)


def asymmetric_filtered(moves: Moves, settings: Settings, *, apply: Apply = map) -> Forecast:
    """GJR-GARCH(1,1,1) with the empirical quantile and tail mean of the standardised losses in the fitted window."""
    return each_series(moves, partial(_forecast, settings=settings, asymmetry=1), apply=apply)


def require_arch() -> Any:
    """The package `arch`; ConfigurationError naming the extra when it is not installed."""
    try:
        return importlib.import_module("arch")
    except ImportError:
        raise ConfigurationError(
            "the GARCH baselines need the package 'arch': install crossmargin with the extra 'baselines'"
        ) from None


def fit(returns: np.ndarray, *, asymmetry: int) -> Fit:
    """Maximum likelihood fit to `returns` [n]; ConfigurationError when the package `arch` is not installed."""
    arch = require_arch()
    sample = PERCENT * returns
    model = arch.arch_model(sample, mean="Zero", vol="GARCH", p=1, o=asymmetry, q=1, dist="t", rescale=False)
    with warnings.catch_warnings():
        # A fit that stops at a bound is still a forecast, and it is judged as one.
        warnings.simplefilter("ignore")
        result = model.fit(disp="off", show_warning=False)
    found = result.params
    volatility = np.asarray(result.conditional_volatility)
    gamma = float(found["gamma[1]"]) if asymmetry else 0.0
    parameters = (float(found["omega"]), float(found["alpha[1]"]), gamma, float(found["beta[1]"]))
    after = _next_variance(parameters, float(sample[-1]), float(volatility[-1] ** 2))
    return Fit(*parameters, float(found["nu"]), after, volatility)


def _next_variance(parameters: tuple[float, float, float, float], value: float, variance: float) -> float:
    omega, alpha, gamma, beta = parameters
    return omega + (alpha + gamma * (value < 0.0)) * value**2 + beta * variance


def _forecast(own: Moves, *, settings: Settings, asymmetry: int) -> tuple[LogForecast, LogForecast]:
    returns = own.log_return
    step = REFIT_DAYS * settings.windows_per_day
    longest = LONGEST_DAYS * settings.windows_per_day
    found = np.full((2, 2, len(returns)), np.nan)
    for first in range(settings.start, len(returns), step):
        past = Moves(*(values[max(0, first - longest) : first] for values in own))
        fitted = fit(past.log_return, asymmetry=asymmetry)
        tails = np.array(
            _empirical_tail(fitted, past, settings.level) if asymmetry else _student_tail(fitted, settings.law_level)
        )
        parameters = fitted.omega, fitted.alpha, fitted.gamma, fitted.beta
        variance = fitted.variance
        for i in range(first, min(first + step, len(returns))):
            found[:, :, i] = tails * np.sqrt(variance) / PERCENT
            variance = _next_variance(parameters, PERCENT * float(returns[i]), variance)
    return LogForecast(found[0, 0], found[0, 1]), LogForecast(found[1, 0], found[1, 1])


def _student_tail(fitted: Fit, level: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """(Quantile, tail mean) in standard deviations, for the losses of long and of short:

    a Student-t law scaled to unit variance (degrees of freedom above 2)."""
    nu = fitted.degrees
    score = float(stdtrit(nu, level))
    beyond = float(student_t.pdf(score, nu)) / (1.0 - level) * (nu + score**2) / (nu - 1.0)
    scale = float(np.sqrt((nu - 2.0) / nu))
    side = (scale * score, scale * beyond)
    return side, side


def _empirical_tail(fitted: Fit, sample: Moves, level: float) -> tuple[tuple[float, float], tuple[float, float]]:
    long, short = (tail(PERCENT * losses / fitted.volatility, level) for losses in (sample.long, sample.short))
    return (float(long[0]), float(long[1])), (float(short[0]), float(short[1]))
