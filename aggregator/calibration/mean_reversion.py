"""Ornstein-Uhlenbeck by its exact discrete form: funding rates and discounts of staked tokens.

x' = theta + (x - theta) e^-kappa + sigma sqrt((1 - e^-2kappa) / (2 kappa)) Z per interval (methodology: Uhlenbeck and
Ornstein, Physical Review 36, 1930; the conditional law is Gaussian, so that regression is maximum likelihood).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

MINIMUM_STEPS = 30
LARGEST_AUTOCORRELATION = 0.9999
"""A sample autocorrelation at or above 1 is held here: slower reversion cannot be told from none."""

SMALLEST_AUTOCORRELATION = 1e-3
"""And one at or below 0 here: the rate has forgotten its past after one interval."""


class MeanReversion(NamedTuple):
    """kappa per interval, theta in the unit of x, sigma per root interval; `bounded` when a bound was met."""

    kappa: float
    theta: float
    sigma: float
    residual_std: float
    steps: int
    bounded: bool


def mean_reversion_fit(before: np.ndarray, after: np.ndarray) -> MeanReversion:
    """Regression of values [steps] on those one interval earlier [steps]; NaN in either leaves a step out.

    Standard error of e^-kappa about sqrt((1 - e^-2kappa) / steps); the estimate is low by about (1 + 3 e^-kappa) /
    steps (Kendall, Biometrika 41, 1954), which is not corrected. Raises ValueError with too few steps or no variation.
    """
    both = np.isfinite(before) & np.isfinite(after)
    steps = int(np.count_nonzero(both))
    if steps < MINIMUM_STEPS:
        raise ValueError(f"{steps} steps; at least {MINIMUM_STEPS} are needed for mean reversion")
    x, y = before[both], after[both]
    spread = x - np.mean(x)
    variation = float(np.sum(spread**2))
    if not variation > 0.0:
        raise ValueError("the values do not vary")
    slope = float(np.sum(spread * y) / variation)
    held = min(max(slope, SMALLEST_AUTOCORRELATION), LARGEST_AUTOCORRELATION)
    level = float(np.mean(y) - held * np.mean(x))
    theta = level / (1.0 - held)
    residual = float(np.sqrt(np.mean((y - theta - held * (x - theta)) ** 2)))
    kappa = -math.log(held)
    sigma = residual * math.sqrt(2.0 * kappa / (1.0 - held * held))
    return MeanReversion(kappa, theta, sigma, residual, steps, held != slope)
