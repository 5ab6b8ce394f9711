"""Volatility recursions over daily changes: what tomorrow's variance is, given today's and today's change.

Host code on NumPy, arrays [dates, columns], NaN for a missing change. Each column has a recursion of its own; the
exponentially weighted variance, GARCH(1,1) and its form with a leverage term are one formula with other figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .errors import ConfigurationError

_UNIT_PERSISTENCE = 1.0 + 1e-9  # figures of an exponential weighting may be written with a few digits


class VolatilityRecursion(NamedTuple):
    """sigma2' = omega + (alpha + gamma 1[r < 0]) r^2 + beta sigma2; omega in squared changes per day.

    GARCH(1,1): T. Bollerslev, "Generalized autoregressive conditional heteroskedasticity", 1986; gamma: L. R. Glosten,
    R. Jagannathan, D. E. Runkle, "On the relation between the expected value and the volatility of the nominal excess
    return on stocks", 1993. With omega 0 and alpha + beta 1 it is the exponentially weighted variance of J.P.
    Morgan/Reuters, RiskMetrics Technical Document, 1996.
    """

    omega: float
    alpha: float
    beta: float
    gamma: float = 0.0


class FilteredVolatility(NamedTuple):
    """All [dates + 1, columns], per day, known before each date; the last row is that of the day after the last date.

    `volatility` is the root of `variance` (of the recursion), but at least `floor`.
    """

    volatility: np.ndarray
    variance: np.ndarray
    floor: np.ndarray


def exponential_weighting(decay: float) -> VolatilityRecursion:
    """The recursion decay sigma2 + (1 - decay) r^2."""
    return VolatilityRecursion(0.0, 1.0 - decay, decay)


def check_recursion(recursion: VolatilityRecursion, name: str) -> None:
    """Raise ConfigurationError naming the factor unless variances stay positive and do not grow without end."""
    if not all(math.isfinite(value) for value in recursion):
        raise ConfigurationError(f"volatility recursion of {name} has a figure that is not finite: {tuple(recursion)}")
    omega, alpha, beta, gamma = recursion
    if min(omega, alpha, beta, alpha + gamma) < 0.0 or omega + beta == 0.0:
        raise ConfigurationError(
            f"volatility recursion of {name} is {tuple(recursion)}; omega, alpha, beta and alpha + gamma must not be "
            "negative, and omega and beta not both 0"
        )
    if alpha + beta + gamma / 2.0 > _UNIT_PERSISTENCE:
        raise ConfigurationError(
            f"volatility recursion of {name}: alpha + beta + gamma / 2 is {alpha + beta + gamma / 2.0}, above 1"
        )


def filter_volatility(
    changes: np.ndarray,
    recursions: Sequence[VolatilityRecursion],
    *,
    burn_in: int,
    floor_fraction: float,
    floor_window: int,
) -> FilteredVolatility:
    """The volatility of every column [dates, columns] under its recursion.

    The recursion starts from the mean of the first `burn_in` squares of the column; NaN before. A missing change leaves
    the variance as it is. The floor is `floor_fraction` times the root mean square of the changes among the last
    `floor_window` dates (0 when fewer than `burn_in` of them are there); it does not enter the recursion.
    """
    dates, columns = changes.shape
    omega, alpha, beta, gamma = np.array(recursions, dtype=np.float64).reshape(columns, 4).T
    present = np.isfinite(changes)
    known = np.where(present, changes, 0.0)
    squares = known**2
    pull = alpha + np.where(known < 0.0, gamma, 0.0)
    variance = np.full((dates + 1, columns), np.nan)
    count = np.zeros(columns, dtype=np.int64)
    total = np.zeros(columns)
    running = np.full(columns, np.nan)
    for t in range(dates):
        started = count >= burn_in
        updated = np.where(started, beta * running + pull[t] * squares[t] + omega, running)
        total = total + np.where(started, 0.0, squares[t])
        count = count + present[t]
        running = np.where(present[t], updated, running)
        running = np.where(~started & (count >= burn_in), total / burn_in, running)
        variance[t + 1] = running
    begin = np.zeros((1, columns))
    summed = np.concatenate([begin, np.cumsum(squares, axis=0)])
    counted = np.concatenate([begin, np.cumsum(present, axis=0)])
    earlier = np.maximum(np.arange(dates + 1) - floor_window, 0)
    inside = counted - counted[earlier]
    mean = (summed - summed[earlier]) / np.maximum(inside, 1.0)
    floor = np.where(inside >= burn_in, floor_fraction * np.sqrt(np.maximum(mean, 0.0)), 0.0)
    volatility = np.maximum(np.sqrt(variance), floor, where=np.isfinite(variance), out=np.full_like(variance, np.nan))
    return FilteredVolatility(volatility, variance, floor)
