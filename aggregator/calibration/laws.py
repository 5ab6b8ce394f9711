"""Laws of price and implied volatility factors over a sample: standard deviations and correlations, gaps filled.

Prices come first, then implied volatilities. A law is of one day's log moves about zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .dependence import rank_correlation
from .vol_rule import VolRule

OBSERVED_SHARE = 0.9
"""Share of a window's dates from which an asset's own returns stand for it."""


class PriceLaw(NamedTuple):
    """Standard deviations [assets], correlations [assets, assets], which assets are filled by beta [assets]."""

    std: np.ndarray
    correlation: np.ndarray
    filled: np.ndarray


def window_price_law(window: np.ndarray, returns: np.ndarray, anchors: Sequence[int]) -> PriceLaw:
    """Law of the returns of a `window` [dates, assets]; assets without it by their beta on the anchors.

    Observed assets: root mean square and rank correlation. Others: loadings on the anchors and a residual variance from
    their whole history `returns` [all dates, assets]; the residual variance is scaled by the anchors' variance in the
    window over theirs in the asset's own history, since both rise together. The result is a linear image of the
    observed law plus independent residuals, hence consistent. Raises ValueError when an anchor is not observed.
    """
    observed = np.isfinite(window).mean(axis=0) >= OBSERVED_SHARE
    anchor = np.asarray(anchors)
    if not observed[anchor].all():
        raise ValueError("an anchor has no returns in the window")
    seen = np.flatnonzero(observed)
    std = np.sqrt(np.nanmean(window[:, seen] ** 2, axis=0))
    covariance = rank_correlation(window[:, seen]) * np.outer(std, std)
    position = np.array([int(np.flatnonzero(seen == a)[0]) for a in anchor])
    assets = window.shape[1]
    image = np.zeros((assets, len(seen)))
    image[seen, np.arange(len(seen))] = 1.0
    residual = np.zeros(assets)
    for column in np.flatnonzero(~observed):
        common = np.isfinite(returns[:, column]) & np.isfinite(returns[:, anchor]).all(axis=1)
        drivers, own = returns[common][:, anchor], returns[common, column]
        loadings = np.linalg.lstsq(drivers, own, rcond=None)[0]
        rest = float(np.mean((own - drivers @ loadings) ** 2))
        wildness = float(np.sum(std[position] ** 2) / np.sum(np.mean(drivers**2, axis=0)))
        image[column, position] = loadings
        residual[column] = rest * wildness
    whole = image @ covariance @ image.T + np.diag(residual)
    size = np.sqrt(np.diag(whole))
    correlation = whole / np.outer(size, size)
    np.fill_diagonal(correlation, 1.0)
    return PriceLaw(size, correlation, ~observed)


def rule_std(rule: VolRule, price_std: float, abs_spread: float) -> float:
    """Standard deviation of a log implied volatility change under the rule on a day when the price has `price_std`.

    `abs_spread` is the standard deviation of |r| over that of r (0.60 for a Gaussian, more for fat tails).
    """
    return math.sqrt((rule.beta * price_std) ** 2 + (rule.beta_abs * price_std * abs_spread) ** 2 + rule.eta**2)


def with_rule_vols(
    prices: np.ndarray, observed: np.ndarray, underlyings: Sequence[int], own_price: np.ndarray
) -> np.ndarray:
    """Correlation [prices + vols] when some implied volatilities have no sample and follow their underlying.

    `prices` is the correlation of prices, `underlyings` the price column of each vol, `own_price` [vols] its
    correlation rho with that price, `observed` [vols, prices + vols] the measured correlations, NaN where there are
    none. Unmeasured: vol with price j is rho R[underlying, j], vol with vol the correlation of their underlyings: a
    vol is rho times its price plus a part of its own, and the own parts are related as the prices are.
    """
    count, vols = len(prices), len(underlyings)
    base = np.asarray(underlyings, dtype=np.int64)
    whole = np.eye(count + vols)
    whole[:count, :count] = prices
    structure = np.concatenate([own_price[:, None] * prices[base], prices[np.ix_(base, base)]], axis=1)
    rows = np.where(np.isfinite(observed), observed, structure)
    whole[count:, :] = rows
    whole[:count, count:] = rows[:, :count].T
    # a pair of vols is measured when both are
    block = whole[count:, count:]
    whole[count:, count:] = (block + block.T) / 2.0
    np.fill_diagonal(whole, 1.0)
    return whole
