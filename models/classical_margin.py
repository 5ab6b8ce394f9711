"""The classical member of the learned margin: filtered historical quantiles under two volatilities.

Own volatility, once exponentially weighted and once of a GARCH(1,1), times a quantile of own standardised losses; what
an asset's history is too short to say is taken from the other assets. Hull and White, "Incorporating volatility
updating into the historical simulation method for value-at-risk", 1998; Barone-Adesi, Giannopoulos and Vosper, "VaR
without correlations", 1999.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from .features import FeaturePanel, windows_per_day
from .garch_volatility import garch_volatility
from .market_history import Loss, Side, Windows, losses
from .tier_model_settings import Classical

SMALLEST_QUANTILE = 0.1
"""Of a standardised loss: a price that never moved still gets a margin."""

LARGEST_LOG_LOSS = 3.0
"""A long margin stays below 95 %, a short one below 19 times the notional."""

LARGEST_DISAGREEMENT = 1.0
"""Of the logs of the two volatilities: a fit that runs away is held."""

SIDES: tuple[Side, Side] = ("long", "short")
"""Order of the axis of sides."""

LEAST_LOSSES = 20
"""Standardised losses from which an asset has quantiles of its own."""

LEAST_OWN_DAYS = 250.0
"""History from which an asset counts in the pooled quantiles."""


class TailRates(NamedTuple):
    """Natural logarithms of rates, [openings, assets, sides (long, short), levels]; shortfall above margin."""

    log_margin: np.ndarray
    log_shortfall: np.ndarray


def classical_rates(
    panel: FeaturePanel,
    windows: Windows,
    loss: Loss,
    *,
    levels: tuple[float, ...],
    settings: Classical,
    refits: np.ndarray,
) -> TailRates:
    """Rates at every opening of the panel, from losses that ended by then; finite everywhere.

    The geometric mean of the rates under the EWMA volatility of the panel and under GARCH volatilities fitted at
    `refits` (dates); the first alone where an asset has no fit. With n own losses and `own_days` worth k of them, the
    log quantile is (n own + k pooled) / (n + k), pooled the median over the assets with a long history; before there
    is any, that of the normal distribution.
    """
    per_day = windows_per_day(panel.horizon)
    garch = garch_volatility(
        np.log1p(windows.simple_return), panel.opening, refits, wanted=panel.usable, windows_per_day=per_day
    )
    log_ewma = np.log(panel.volatility)
    log_garch = np.log(np.where(np.isfinite(garch), garch, panel.volatility))
    log_garch = np.clip(log_garch, log_ewma - LARGEST_DISAGREEMENT, log_ewma + LARGEST_DISAGREEMENT)
    members = [
        _filtered_rates(volatility, windows, loss, levels=levels, settings=settings, per_day=per_day)
        for volatility in (panel.volatility, np.exp(log_garch))
    ]
    return TailRates(*(np.mean(values, axis=0) for values in zip(*members, strict=True)))


def _filtered_rates(
    volatility: np.ndarray,
    windows: Windows,
    loss: Loss,
    *,
    levels: tuple[float, ...],
    settings: Classical,
    per_day: float,
) -> TailRates:
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    scale = volatility[:, :, None]
    for side in SIDES:
        standardised = _log_losses(losses(windows, side, loss), side) / volatility[:-1]
        quantile, beyond = _shrunk_quantiles(standardised, levels, settings, per_day=per_day)
        sides.append((_log_rate(quantile * scale, side), _log_rate(beyond * scale, side)))
    margin, shortfall = (np.stack(values, axis=2) for values in zip(*sides, strict=True))
    return TailRates(margin, shortfall)


def _log_losses(loss: np.ndarray, side: Side) -> np.ndarray:
    return -np.log1p(-loss) if side == "long" else np.log1p(loss)


def _log_rate(log_loss: np.ndarray, side: Side) -> np.ndarray:
    size = np.minimum(log_loss, LARGEST_LOG_LOSS)
    return np.log(-np.expm1(-size)) if side == "long" else np.log(np.expm1(size))


def _shrunk_quantiles(
    standardised: np.ndarray, levels: tuple[float, ...], settings: Classical, *, per_day: float
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of standardised losses and means beyond them, [windows + 1, assets, levels]."""
    times, assets = standardised.shape
    window = round(settings.window_days * per_day)
    every = round(settings.refresh_days * per_day)
    columns = [np.flatnonzero(np.isfinite(standardised[:, asset])) for asset in range(assets)]
    normal = norm.ppf(levels)
    pooled_quantile, pooled_beyond = normal, norm.pdf(normal) / (1.0 - np.asarray(levels))
    quantile = np.zeros((times + 1, assets, len(levels)))
    beyond = np.zeros_like(quantile)
    for begin in range(0, times + 1, every):
        own = np.full((2, assets, len(levels)), np.nan)
        count = np.zeros(assets)
        for asset, rows in enumerate(columns):
            known = int(np.searchsorted(rows, begin))
            count[asset] = min(known, window)
            if known >= LEAST_LOSSES:
                own[:, asset] = _tail(np.sort(standardised[rows[max(0, known - window) : known], asset]), levels)
        own = np.maximum(own, SMALLEST_QUANTILE)
        long = (count >= LEAST_OWN_DAYS * per_day) & np.isfinite(own[0, :, 0])
        if long.any():
            pooled_quantile, pooled_beyond = np.median(own[:, long], axis=1)
        share = np.where(np.isfinite(own[0, :, 0]), count / (count + settings.own_days * per_day), 0.0)[:, None]
        at = slice(begin, begin + every)
        for result, value, pooled in ((quantile, own[0], pooled_quantile), (beyond, own[1], pooled_beyond)):
            mixed = share * np.log(np.where(np.isfinite(value), value, 1.0)) + (1.0 - share) * np.log(pooled)
            result[at] = np.exp(mixed)
    return quantile, np.maximum(beyond, 1.01 * quantile)


def _tail(ordered: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Quantiles (linear between order statistics) of rising values, and means of the values from there on."""
    place = np.asarray(levels) * (len(ordered) - 1)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    quantile = ordered[below] + (place - below) * (ordered[above] - ordered[below])
    beyond = [ordered[np.searchsorted(ordered, value) :].mean() for value in np.minimum(quantile, ordered[-1])]
    return np.stack([quantile, np.array(beyond)])
