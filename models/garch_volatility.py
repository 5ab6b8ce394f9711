"""GARCH(1,1) volatility of every asset, refitted at the dates of the walk-forward; the slow member beside the EWMA.

Unlike an exponential average it returns to its mean, which is what a margin should expect after a shock.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from aggregator.calibration.volatility import GarchFit, garch_fit, garch_variance

LONGEST_DAYS = 1500
LEAST_DAYS = 250
"""Days of returns that a fit uses at most, and needs."""


def garch_volatility(
    log_return: np.ndarray, opening: np.ndarray, dates: np.ndarray, *, wanted: np.ndarray, windows_per_day: float
) -> np.ndarray:
    """Volatility per window known at each opening, [windows + 1, assets]; NaN before the first fit of an asset.

    `opening` has one entry more than there are returns [windows, assets]. A fit on a date uses the returns of windows
    that opened before it (they have ended by then) and serves until the next date. Missing returns are skipped. NaN
    also where it is not `wanted` [windows + 1, assets]: an asset that is gone is not fitted any more.
    """
    times, assets = log_return.shape
    longest, least = round(LONGEST_DAYS * windows_per_day), round(LEAST_DAYS * windows_per_day)
    result = np.full((times + 1, assets), np.nan)
    edges = np.append(np.searchsorted(opening, dates.astype(opening.dtype)), times + 1)
    for asset in range(assets):
        rows = np.flatnonzero(np.isfinite(log_return[:, asset]))
        returns = log_return[rows, asset]
        for begin, end in pairwise(edges):
            known = int(np.searchsorted(rows, begin))
            use = begin + np.flatnonzero(wanted[begin:end, asset])
            if not len(use) or known < least:
                continue
            first = max(0, known - longest)
            sample = returns[first:known]
            fitted = _fit(sample)
            if fitted is None:
                continue
            variance = garch_variance(
                returns[first : int(np.searchsorted(rows, end))],
                omega=fitted.omega,
                alpha=fitted.alpha,
                gamma=fitted.gamma,
                beta=fitted.beta,
                start=float(np.mean(sample**2)),
            )
            result[use, asset] = np.sqrt(variance[np.searchsorted(rows, use) - first])
    return result


def _fit(sample: np.ndarray) -> GarchFit | None:
    """None for a price that never moved."""
    try:
        return garch_fit(sample, leverage=False)
    except ValueError:
        return None
