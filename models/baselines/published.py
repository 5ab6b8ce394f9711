"""Rates that a venue could publish: the same margin, smoothed, or slow to fall."""

from __future__ import annotations

import numpy as np

from .paths import each_path, with_margin
from .series import Forecast, Settings

LARGEST_FALL = 0.03


def smoothed(base: Forecast, settings: Settings, *, weight: float) -> Forecast:
    """Exponential smoothing of the log margin with `weight` of a day on today; it starts at the first margin."""
    share = 1.0 - (1.0 - weight) ** (1.0 / settings.windows_per_day)

    def path(margin: np.ndarray) -> np.ndarray:
        level = np.log(margin)
        for i in range(1, len(level)):
            level[i] = level[i - 1] + share * (level[i] - level[i - 1])
        return np.exp(level)

    return with_margin(base, each_path(base.margin, path))


def slow_to_fall(base: Forecast, settings: Settings) -> Forecast:
    """Rises at once, falls by at most 3 % a day."""
    keep = (1.0 - LARGEST_FALL) ** (1.0 / settings.windows_per_day)

    def path(margin: np.ndarray) -> np.ndarray:
        posted = margin.copy()
        for i in range(1, len(posted)):
            posted[i] = max(margin[i], keep * posted[i - 1])
        return posted

    return with_margin(base, each_path(base.margin, path))
