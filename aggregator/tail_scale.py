"""Today's scale of a replayed history from outside: forecast tail moves in place of the history's own volatility.

Host code on NumPy in float64. A forecast says how far a factor falls, and how far it rises, in a day at one level; the
residuals of the history keep their dates, their dependence and, on each side, their shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .errors import ConfigurationError

MASS_SLACK = 1e-12
"""As in `risk`: probability mass within this of the level counts as reaching it."""


class TailForecast(NamedTuple):
    """Log-moves over a day, both positive: the factor falls by more than `down`, or rises by more than `up`, with
    probability 1 - `level` each."""

    level: float
    down: float
    up: float

    def scaled(self, scale: float) -> TailForecast:
        """The forecast of a factor that moves `scale` (> 0) times as far."""
        return TailForecast(self.level, self.down * scale, self.up * scale)


class Conditioned(NamedTuple):
    """Residuals [dates] and the volatility per day that they are to be multiplied by."""

    residuals: np.ndarray
    sigma: float


def checked_forecast(name: str, forecast: TailForecast) -> TailForecast:
    """`forecast`; ConfigurationError naming the factor unless the level lies in (1/2, 1) and both moves above 0."""
    if not 0.5 < forecast.level < 1.0:
        raise ConfigurationError(f"forecast of {name}: the level is {forecast.level!r}; expected between 0.5 and 1")
    for side, move in (("down", forecast.down), ("up", forecast.up)):
        if not (math.isfinite(move) and move > 0.0):
            raise ConfigurationError(f"forecast of {name}: {side} is {move!r}; expected a positive finite log-move")
    return forecast


def forecast_of(name: str, source: str, scale: float, forecasts: Mapping[str, TailForecast]) -> TailForecast | None:
    """A factor's own forecast, else that of the `source` that it follows times `scale`, else None."""
    if name in forecasts:
        return checked_forecast(name, forecasts[name])
    return checked_forecast(source, forecasts[source]).scaled(scale) if source in forecasts else None


def conditioned(name: str, residuals: np.ndarray, weights: np.ndarray, forecast: TailForecast) -> Conditioned:
    """The history of one factor brought to a forecast; `weights` [dates] sum to 1.

    The two sides are joined at zero: falls are multiplied by sigma_down = down / q(-z), rises by sigma_up = up / q(z),
    q being the weighted quantile at the level, inf{x : P(X <= x) >= level}. Under the weights both quantiles of the law
    are then the forecast's, exactly. sigma is the geometric mean of the two, which is what a volatility recursion goes
    on from; the ratio of the sides stays in the residuals. Raises ConfigurationError when a side has no quantile above
    zero: a history that never fell, or never rose, has nothing to scale.
    """
    sides = []
    for side, losses, move in (("falls", -residuals, forecast.down), ("rises", residuals, forecast.up)):
        quantile = weighted_quantile(losses, weights, forecast.level)
        if not quantile > 0.0:
            raise ConfigurationError(
                f"history of {name} has no {side} at the level {forecast.level:g}: the forecast cannot be applied"
            )
        sides.append(move / quantile)
    down, up = sides
    sigma = math.sqrt(down * up)
    return Conditioned(residuals * np.where(residuals < 0.0, down / sigma, up / sigma), sigma)


def weighted_quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """inf{x : P(X <= x) >= level} of `values` [dates] under `weights` [dates], which sum to 1."""
    order = np.argsort(-values, kind="stable")
    place = int(np.searchsorted(np.cumsum(weights[order]), 1.0 - level + MASS_SLACK, side="right"))
    return float(values[order[min(place, len(order) - 1)]])
