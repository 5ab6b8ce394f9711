"""Is one model's loss smaller than another's? Diebold-Mariano tests on daily means over the cross-section."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

LAGS = 10
"""Of the Newey-West variance."""


class Comparison(NamedTuple):
    """Mean scaled pinball of all rows over the other model's, minus 1; t and two-sided p of pinball, t of FZ0."""

    model: str
    against: str
    relative: float
    t: float
    p_value: float
    fz0_t: float


def diebold_mariano(difference: np.ndarray, *, lags: int = LAGS) -> float:
    """Mean of a series of loss differences [N] over its standard error, robust to `lags` autocorrelations.

    0 when the models are the same; NaN below 2 values. Sources: F. X. Diebold, R. S. Mariano, "Comparing predictive
    accuracy", Journal of Business and Economic Statistics 13 (1995); W. K. Newey, K. D. West, "A simple, positive
    semi-definite, heteroskedasticity and autocorrelation consistent covariance matrix", Econometrica 55 (1987).
    """
    count = len(difference)
    if count < 2:
        return np.nan
    if not difference.any():
        return 0.0
    centered = difference - difference.mean()
    variance = float(centered @ centered) / count
    for lag in range(1, min(lags, count - 1) + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1.0)) * float(centered[lag:] @ centered[:-lag]) / count
    return float(difference.mean() / np.sqrt(variance / count)) if variance > 0.0 else np.nan


def compare(
    names: tuple[str, str], scaled_pinball: tuple[np.ndarray, np.ndarray], fz0: tuple[np.ndarray, np.ndarray]
) -> Comparison:
    """The first of `names` against the second, from their losses [T, K] (NaN outside common rows, not all NaN).

    Pinball losses are divided by that of the series' constant quantile beforehand, so that no asset outweighs others.
    """
    relative = float(np.nanmean(scaled_pinball[0]) / np.nanmean(scaled_pinball[1]) - 1.0)
    own, other = (_daily_mean(losses) for losses in scaled_pinball)
    t = diebold_mariano(own - other)
    own_fz0, other_fz0 = (_daily_mean(losses) for losses in fz0)
    p_value = float(2.0 * ndtr(-abs(t)))
    return Comparison(*names, relative, t, p_value, diebold_mariano(own_fz0 - other_fz0))


def _daily_mean(losses: np.ndarray) -> np.ndarray:
    there = np.isfinite(losses)
    counts = there.sum(axis=1)
    sums = np.where(there, losses, 0.0).sum(axis=1)
    return sums[counts > 0] / counts[counts > 0]
