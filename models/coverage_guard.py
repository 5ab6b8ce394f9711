"""The guard rail on coverage: one slow factor for all assets, from how often margins held in the past.

Split-conformal in spirit, pooled over assets and moved slowly: Vovk, Gammerman and Shafer, "Algorithmic learning in a
random world", 2005; Angelopoulos, Candes and Tibshirani, "Conformal PID control for time series prediction", 2023.
"""

from __future__ import annotations

import numpy as np

from .tier_model_settings import Guard

REFRESH_DAYS = 5


def coverage_factor(
    log_loss_over_margin: np.ndarray,
    *,
    level: float,
    windows_per_day: float,
    settings: Guard,
    strength: float,
) -> np.ndarray:
    """Log factor [windows + 1] for the margins at each opening, from windows that ended by then; 0 without enough.

    `log_loss_over_margin` [windows, columns] is ln(loss / margin) of every asset and side (-inf for no loss), NaN where
    either is unknown. Its pooled `level` quantile over the last `window_days` is the log factor that would have made
    coverage there exactly `level`; `strength` (0 to 1) of it is applied, within
    the bounds of the settings.
    """
    times = len(log_loss_over_margin)
    window = round(settings.window_days * windows_per_day)
    every = round(REFRESH_DAYS * windows_per_day)
    present = ~np.isnan(log_loss_over_margin)
    filled_days = np.concatenate([[0.0], np.cumsum(present.any(axis=1))]) / windows_per_day
    factor = np.zeros(times + 1)
    for begin in range(0, times + 1, every):
        first = max(0, begin - window)
        if filled_days[begin] - filled_days[first] < settings.least_days:
            continue
        ratios = log_loss_over_margin[first:begin]
        held = _quantile(ratios[present[first:begin]], level)
        bounded = np.clip(strength * held, np.log(settings.smallest_factor), np.log(settings.largest_factor))
        factor[begin : begin + every] = bounded
    return factor


def _quantile(values: np.ndarray, level: float) -> float:
    """The order statistic whose share of values at or below it first reaches `level`."""
    rank = min(len(values) - 1, int(np.ceil(level * len(values))) - 1)
    return float(np.partition(values, rank)[rank])
