"""One log-linear quantile regression for all assets, on ranges and volatilities of several lengths.

    margin / s = exp(b0 + sum_k b_k x_k)      b minimises the mean pinball loss of loss / s over all assets

s is the EWMA volatility with decay 0.97, the x are known before the window; the last loss among them is that of the
side, and the return of the week turns its sign for the short side, so that one set of coefficients serves both. Fitted
every 180 days on the past 2,000 days. The long memory of ranges comes from the heterogeneous autoregressive model: F.
Corsi, "A simple approximate long-memory model of realized volatility", Journal of Financial Econometrics 7 (2009); the
loss from R. Koenker, G. Bassett, "Regression quantiles", Econometrica 46 (1978).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from ..market_history import Windows
from .ewma import START_DAYS, ewma_volatility
from .series import SIDES, Forecast, Settings, log_returns, moves, simple_rate

SCALE_DECAY = 0.97
DECAYS = (0.80, 0.94, 0.985)
RANGE_DAYS = (1, 7, 30)
RETURN_DAYS = 5
VOLUME_DAYS = 60
REFIT_DAYS = 180
LONGEST_DAYS = 2000
SMALLEST_VARIANCE = 1e-10
"""Variance of a day below which logs are cut off: 0.1 bp."""

SMOOTHING = 0.02
"""Half width in units of s over which the kink of the pinball loss is rounded while fitting."""

PREFERRED_REFERENCE = "BTC"
"""Asset whose volatility stands for the market; without it the asset that was listed first."""

LARGEST_SCORE = 5.0
"""Standardised inputs are cut off here, so that one absurd day does not multiply a margin by a hundred."""


class Inputs(NamedTuple):
    """Inputs of the long side [T, A, K] and the short side, and the scale s [T, A]; NaN where nothing is known."""

    long: np.ndarray
    short: np.ndarray
    scale: np.ndarray


def inputs(windows: Windows, settings: Settings) -> Inputs:
    """What is known before each window in which an asset has a return; losses and returns in units of s."""
    of_all = moves(windows, settings.loss)
    returns = of_all.log_return
    per_day = settings.windows_per_day
    parkinson = np.square(np.log(windows.high / windows.low)) / (4.0 * np.log(2.0))
    scale = np.full(returns.shape, np.nan)
    volatility = [np.full(returns.shape, np.nan) for _ in DECAYS]
    ranges = [np.full(returns.shape, np.nan) for _ in RANGE_DAYS]
    last_long, last_short, week, turnover = (np.full(returns.shape, np.nan) for _ in range(4))
    for asset in range(returns.shape[1]):
        rows = np.flatnonzero(np.isfinite(returns[:, asset]))
        own = returns[rows, asset]
        scale[rows, asset] = ewma_volatility(own, SCALE_DECAY, settings)
        for decay, column in zip(DECAYS, volatility, strict=True):
            column[rows, asset] = ewma_volatility(own, decay, settings)
        for days, column in zip(RANGE_DAYS, ranges, strict=True):
            column[rows, asset] = _trailing_mean(parkinson[rows, asset], days * per_day)
        for losses, column in ((of_all.long, last_long), (of_all.short, last_short)):
            column[rows, asset] = _trailing_mean(losses[rows, asset], 1) / scale[rows, asset]
        week[rows, asset] = _trailing_mean(own, RETURN_DAYS * per_day) / scale[rows, asset]
        volume = windows.volume[rows, asset]
        latest, usual = _trailing_mean(volume, 1), _trailing_mean(volume, VOLUME_DAYS * per_day)
        traded = (latest > 0.0) & (usual > 0.0)
        turnover[rows[traded], asset] = np.log(latest[traded] / usual[traded])

    reference = _reference(windows)
    weekend = (windows.opening.astype("datetime64[D]").astype(np.int64) + 3) % 7 >= 5
    unsigned = [
        *(_log_volatility(np.square(column)) for column in volatility),
        *(_log_volatility(column) for column in ranges),
        turnover,
        *(_of_all(_latest(_log_volatility(np.square(column[:, reference]))), returns) for column in volatility),
        _of_all(weekend.astype(np.float64), returns),
    ]
    signed = ((last_long, -week), (last_short, week))
    long, short = (np.stack([*unsigned, *of_side], axis=-1) for of_side in signed)
    return Inputs(long, short, scale)


def pooled(windows: Windows, settings: Settings) -> Forecast:
    """Margins of the regression; the expected shortfall is the margin times the mean ratio of breaches in the fit."""
    known = inputs(windows, settings)
    returns = log_returns(windows)
    age = np.cumsum(np.isfinite(returns), axis=0) - np.isfinite(returns)
    forecastable = np.isfinite(returns) & (age >= settings.start)
    trainable = np.isfinite(returns) & (age >= START_DAYS * settings.windows_per_day)
    shape = (*returns.shape, len(SIDES))
    margin, shortfall = np.full(shape, np.nan), np.full(shape, np.nan)
    if not forecastable.any():
        return Forecast(margin, shortfall)
    step = REFIT_DAYS * settings.windows_per_day
    longest = LONGEST_DAYS * settings.windows_per_day
    own = moves(windows, settings.loss)
    targets = [losses / known.scale for losses in (own.long, own.short)]
    for first in range(int(np.flatnonzero(forecastable.any(axis=1))[0]), len(returns), step):
        past, now = slice(max(0, first - longest), first), slice(first, first + step)
        fitted = _fit(
            np.concatenate([features[past][trainable[past]] for features in (known.long, known.short)]),
            np.concatenate([target[past][trainable[past]] for target in targets]),
            settings.level,
        )
        for number, (side, features) in enumerate(zip(SIDES, (known.long, known.short), strict=True)):
            quantile = np.exp(fitted.predict(features[now])) * known.scale[now]
            for table, rate in ((margin, quantile), (shortfall, quantile * fitted.ratio)):
                table[now, :, number] = np.where(forecastable[now], simple_rate(rate, side), np.nan)
    return Forecast(margin, shortfall)


class _Regression(NamedTuple):
    center: np.ndarray
    spread: np.ndarray
    coefficients: np.ndarray
    ratio: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        return _design(features, self.center, self.spread) @ self.coefficients


def _design(features: np.ndarray, center: np.ndarray, spread: np.ndarray) -> np.ndarray:
    scores = np.clip((features - center) / spread, -LARGEST_SCORE, LARGEST_SCORE)
    scores = np.where(np.isfinite(scores), scores, 0.0)
    return np.concatenate([np.ones((*scores.shape[:-1], 1)), scores], axis=-1)


def _fit(features: np.ndarray, target: np.ndarray, level: float) -> _Regression:
    center = np.nanmean(features, axis=0)
    spread = np.maximum(np.nanstd(features, axis=0), 1e-6)
    design = _design(features, center, spread)
    start = np.zeros(design.shape[1])
    start[0] = np.log(np.quantile(target, level))

    def objective(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        quantile = np.exp(np.minimum(design @ coefficients, 20.0))
        above = target - quantile
        # the pinball loss with its kink replaced by a parabola over +-SMOOTHING
        inside = np.abs(above) < SMOOTHING
        share = np.where(inside, 0.5 + 0.5 * above / SMOOTHING, above > 0.0)
        rounded = np.where(inside, (above + SMOOTHING) ** 2 / (4.0 * SMOOTHING), np.maximum(above, 0.0))
        value = np.mean(rounded - (1.0 - level) * above)
        slope = ((1.0 - level) - share) * quantile
        return float(value), design.T @ slope / len(target)

    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-11})
    quantile = np.exp(design @ found.x)
    beyond = target >= quantile
    ratio = float(np.mean(target[beyond] / quantile[beyond])) if beyond.any() else 1.0
    return _Regression(center, spread, found.x, max(ratio, 1.0))


def _log_volatility(variance: np.ndarray) -> np.ndarray:
    return 0.5 * np.log(np.maximum(variance, SMALLEST_VARIANCE))


def _trailing_mean(values: np.ndarray, length: int) -> np.ndarray:
    """Mean of the `length` entries before each (fewer at the start), leaving NaN out; NaN without any."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    first = np.maximum(np.arange(len(values)) - length, 0)
    count = counts[:-1] - counts[first]
    return np.where(count > 0, (sums[:-1] - sums[first]) / np.maximum(count, 1), np.nan)


def _reference(windows: Windows) -> int:
    if PREFERRED_REFERENCE in windows.assets:
        return windows.assets.index(PREFERRED_REFERENCE)
    listed = [int(np.argmax(np.append(column, True))) for column in np.isfinite(windows.simple_return).T]
    return int(np.argmin(listed))


def _of_all(column: np.ndarray, panel: np.ndarray) -> np.ndarray:
    return np.broadcast_to(column[:, None], panel.shape)


def _latest(values: np.ndarray) -> np.ndarray:
    """The last finite entry up to each [T]; NaN before the first."""
    last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), -1))
    return np.where(last >= 0, values[np.maximum(last, 0)], np.nan)
