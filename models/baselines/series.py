"""What a baseline gets and gives: log returns and losses of every asset, margins and expected shortfalls of both sides.

Axes: T openings, A assets, 2 sides (`SIDES`: long, short). A baseline works on one series at a time: the N log losses
of an asset and side, without gaps, in order of time. Entry i of what it returns is the forecast for loss i and uses
losses 0 .. i-1 only; it is NaN before `Settings.start`.

Volatilities are those of the returns from close to close whichever loss is forecast; tails, quantiles and breaches are
those of the loss. Laws that are stated for the return alone are carried over by `Settings.law_level`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np

from ..market_history import Loss, Side, Windows, losses

SMALLEST_RATE = 1e-6
"""A hundredth of a basis point: no margin is less, not even of an asset whose price has never moved."""

SIDES: tuple[Side, Side] = ("long", "short")


class Settings(NamedTuple):
    """Level of the margin, windows in a day, and the loss it is for; lengths that the methods state in days are
    multiplied by the second."""

    level: float = 0.99
    windows_per_day: int = 1
    loss: Loss = "close"

    @property
    def start(self) -> int:
        """Losses of a series before its first forecast: 400 days."""
        return 400 * self.windows_per_day

    @property
    def law_level(self) -> float:
        """Level at which a symmetric law of the return has the quantile of the loss, and beyond it the mean.

        For the adverse excursion half of the exceedance probability: by the reflection principle the highest point of
        a Brownian path lies beyond q > 0 twice as often as its end. It holds for Student-t as well, as the law of such
        a path whose variance is drawn anew in every window.
        """
        return self.level if self.loss == "close" else 0.5 * (1.0 + self.level)


class Moves(NamedTuple):
    """Log returns from close to close and log losses of both sides: of all assets [T, A], or of one series [N]."""

    log_return: np.ndarray
    long: np.ndarray
    short: np.ndarray


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


def moves(windows: Windows, loss: Loss) -> Moves:
    """The moves of all assets; NaN where there is no return.

    Where a low is a fault of the record, the adverse loss is not known: the loss from close to close, which it was at
    least, stands for it in the history of later forecasts.
    """
    returns = log_returns(windows)
    if loss == "close":
        return Moves(returns, -returns, returns)
    long, short = -np.log1p(-losses(windows, "long", loss)), np.log1p(losses(windows, "short", loss))
    return Moves(returns, np.fmax(long, -returns), np.fmax(short, returns))


def simple_rate(log_loss: np.ndarray, side: Side) -> np.ndarray:
    """The loss rate on notional of a log loss q: 1 - exp(-q) when long, exp(q) - 1 when short."""
    return -np.expm1(-log_loss) if side == "long" else np.expm1(log_loss)


class Apply(Protocol):
    """`map`, or the same spread over processes: the results of a function of each series, in order."""

    def __call__(
        self, function: Callable[[Moves], tuple[LogForecast, LogForecast]], series: Iterable[Moves], /
    ) -> Iterable[tuple[LogForecast, LogForecast]]: ...


def each_series(
    moves: Moves,
    forecast: Callable[[Moves], tuple[LogForecast, LogForecast]],
    *,
    apply: Apply = map,
) -> Forecast:
    """`forecast` of the moves of every asset [N] (NaN left out) gives long and short; back in the panel [T, A, 2]."""
    shape = (*moves.log_return.shape, len(SIDES))
    margin, shortfall = np.full(shape, np.nan), np.full(shape, np.nan)
    present = [np.flatnonzero(np.isfinite(column)) for column in moves.log_return.T]
    found = apply(forecast, (Moves(*(table[rows, asset] for table in moves)) for asset, rows in enumerate(present)))
    for asset, (rows, both) in enumerate(zip(present, found, strict=True)):
        for number, (side, law) in enumerate(zip(SIDES, both, strict=True)):
            for table, log_loss in ((margin, law.quantile), (shortfall, law.shortfall)):
                table[rows, asset, number] = np.maximum(simple_rate(log_loss, side), SMALLEST_RATE)
    return Forecast(margin, shortfall)
