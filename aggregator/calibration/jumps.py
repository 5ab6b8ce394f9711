"""Merton jumps with a common factor, found where a return is too large for the volatility around it.

Merton, J. Financial Economics 3 (1976). A day is a jump when |r| > threshold * sqrt(bipower variation per day) of the
days before it (Barndorff-Nielsen and Shephard, J. Financial Econometrics 2, 2004; Lee and Mykland, Review of Financial
Studies 21, 2008); bipower variation, (pi/2) mean |r_t||r_{t-1}|, hardly sees single jumps. Smaller jumps count as
diffusion: rates are those of large jumps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

THRESHOLD = 4.0
WINDOW_DAYS = 60
MINIMUM_OWN_JUMPS = 5
"""With fewer own jumps an asset takes the mean and standard deviation of all own jumps of the sample."""

YEAR_DAYS = 365.0


class JumpFit(NamedTuple):
    """Common jumps, and per asset [assets] the beta on them, own jumps and the standard deviation of the rest."""

    common_per_year: float
    common_mean: float
    common_std: float
    common_dates: np.ndarray
    """Positions of the days with a common jump."""
    beta: np.ndarray
    own_per_year: np.ndarray
    own_mean: np.ndarray
    own_std: np.ndarray
    own_events: np.ndarray
    pooled: np.ndarray
    diffusive_std: np.ndarray


def bipower_std(returns: np.ndarray, *, window: int = WINDOW_DAYS) -> np.ndarray:
    """Daily standard deviation [dates, assets] by bipower variation of the `window` days before each date.

    NaN before the first whole window and where more than half of its products are missing.
    """
    dates, assets = returns.shape
    products = np.full((dates, assets), np.nan)
    products[1:] = np.abs(returns[1:]) * np.abs(returns[:-1])
    present = np.isfinite(products)
    summed = np.concatenate([np.zeros((1, assets)), np.cumsum(np.where(present, products, 0.0), axis=0)])
    counted = np.concatenate([np.zeros((1, assets)), np.cumsum(present, axis=0)])
    result = np.full((dates, assets), np.nan)
    first = np.arange(dates) - (window - 1)
    whole = first >= 1
    total = summed[:-1][whole] - summed[first[whole]]
    count = counted[:-1][whole] - counted[first[whole]]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count >= (window - 1) / 2.0, np.maximum(total, 0.0) / count, np.nan)
    result[whole] = np.sqrt(math.pi / 2.0 * mean)
    return result


def jump_fit(returns: np.ndarray, *, threshold: float = THRESHOLD, window: int = WINDOW_DAYS) -> JumpFit:
    """Jumps of the returns [dates, assets], NaN where missing.

    Common: days on which at least half of the assets that can be judged, and at least two, jump; its size is the mean
    return of these assets, `beta` the regression of an asset's return on it through the origin (1 for an asset that saw
    none). Other jumps are own jumps. Standard error of a rate is sqrt(rate / years). Without events means and standard
    deviations are 0 and rates 0. Raises ValueError when no asset has returns beyond the first window.
    """
    scale = bipower_std(returns, window=window)
    judged = np.isfinite(returns) & np.isfinite(scale) & (scale > 0.0)
    if not judged.any():
        raise ValueError(f"no returns beyond the first {window} days")
    with np.errstate(invalid="ignore"):
        jumped = judged & (np.abs(returns) > threshold * scale)
    enough = (jumped.sum(axis=1) >= 2) & (2 * jumped.sum(axis=1) >= judged.sum(axis=1))
    common = np.flatnonzero(enough)
    shared = judged[common]
    sizes = np.where(shared, returns[common], 0.0).sum(axis=1) / np.maximum(shared.sum(axis=1), 1)
    years = max(float(judged.any(axis=1).sum()), 1.0) / YEAR_DAYS

    square = np.where(shared, sizes[:, None] ** 2, 0.0).sum(axis=0)
    product = np.where(shared, sizes[:, None] * returns[common], 0.0).sum(axis=0)
    beta = np.where(square > 0.0, product / np.where(square > 0.0, square, 1.0), 1.0)

    own = jumped.copy()
    own[common] = False
    events = own.sum(axis=0)
    all_mean, all_std = _mean_std(returns[own])
    pooled = events < MINIMUM_OWN_JUMPS
    moments = [_mean_std(returns[own[:, i], i]) for i in range(returns.shape[1])]
    quiet = judged & ~jumped
    quiet[common] = False
    count = np.maximum(quiet.sum(axis=0), 1)
    mean, std = _mean_std(sizes)
    return JumpFit(
        common_per_year=len(common) / years,
        common_mean=mean,
        common_std=std,
        common_dates=common,
        beta=beta,
        own_per_year=events / np.maximum(judged.sum(axis=0) / YEAR_DAYS, 1.0 / YEAR_DAYS),
        own_mean=np.where(pooled, all_mean, [m for m, _ in moments]),
        own_std=np.where(pooled, all_std, [s for _, s in moments]),
        own_events=events,
        pooled=pooled,
        diffusive_std=np.sqrt((np.where(quiet, returns, 0.0) ** 2).sum(axis=0) / count),
    )


def _mean_std(sizes: np.ndarray) -> tuple[float, float]:
    if not len(sizes):
        return 0.0, 0.0
    return float(np.mean(sizes)), float(np.std(sizes, ddof=1)) if len(sizes) > 1 else 0.0
