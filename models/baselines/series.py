"""What a baseline gets and gives: log returns of every asset, margins and expected shortfalls of both sides.

Axes: T openings, A assets, 2 sides (`SIDES`: long, short). A baseline works on one series at a time: the N log losses
of an asset and side, without gaps, in order of time. Entry i of what it returns is the forecast for loss i and uses
losses 0 .. i-1 only; it is NaN before `Settings.start`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np

from ..market_history import Side, Windows

SMALLEST_RATE = 1e-6
"""A hundredth of a basis point: no margin is less, not even of an asset whose price has never moved."""

SIDES: tuple[Side, Side] = ("long", "short")


class Settings(NamedTuple):
    """Level of the margin and windows in a day; lengths that the methods state in days are multiplied by the latter."""

    level: float = 0.99
    windows_per_day: int = 1

    @property
    def start(self) -> int:
        """Losses of a series before its first forecast: 400 days."""
        return 400 * self.windows_per_day


class Forecast(NamedTuple):
    """Margin and expected shortfall as fractions of notional, [T, A, 2]; NaN where there is no forecast."""

    margin: np.ndarray
    shortfall: np.ndarray


class LogForecast(NamedTuple):
    """Quantile and mean beyond it of the log losses of one series, [N] each; NaN where there is no forecast."""

    quantile: np.ndarray
    shortfall: np.ndarray


def log_returns(windows: Windows) -> np.ndarray:
    """ln(1 + r) of the windows [T, A]; NaN where the return is."""
    return np.log1p(windows.simple_return)


def log_losses(log_return: np.ndarray, side: Side) -> np.ndarray:
    """Log losses of a position: minus the log return when long, the log return when short."""
    return -log_return if side == "long" else log_return


def simple_rate(log_loss: np.ndarray, side: Side) -> np.ndarray:
    """The loss rate on notional of a log loss q: 1 - exp(-q) when long, exp(q) - 1 when short."""
    return -np.expm1(-log_loss) if side == "long" else np.expm1(log_loss)


class Apply(Protocol):
    """`map`, or the same spread over processes: the results of a function of each series, in order."""

    def __call__(
        self, function: Callable[[np.ndarray], tuple[LogForecast, LogForecast]], series: Iterable[np.ndarray], /
    ) -> Iterable[tuple[LogForecast, LogForecast]]: ...


def each_series(
    log_return: np.ndarray,
    forecast: Callable[[np.ndarray], tuple[LogForecast, LogForecast]],
    *,
    apply: Apply = map,
) -> Forecast:
    """`forecast` of the returns of every asset [N] (NaN left out) gives long and short; back in the panel [T, A, 2]."""
    shape = (*log_return.shape, len(SIDES))
    margin, shortfall = np.full(shape, np.nan), np.full(shape, np.nan)
    present = [np.flatnonzero(np.isfinite(column)) for column in log_return.T]
    found = apply(forecast, (log_return[rows, asset] for asset, rows in enumerate(present)))
    for asset, (rows, both) in enumerate(zip(present, found, strict=True)):
        for number, (side, law) in enumerate(zip(SIDES, both, strict=True)):
            for table, log_loss in ((margin, law.quantile), (shortfall, law.shortfall)):
                table[rows, asset, number] = np.maximum(simple_rate(log_loss, side), SMALLEST_RATE)
    return Forecast(margin, shortfall)
