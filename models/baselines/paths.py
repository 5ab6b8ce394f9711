"""Rules that turn the margins of a series over time into other margins over time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .series import Forecast


def each_path(margin: np.ndarray, rule: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`rule` applied to the margins of every asset and side in order of time, where there are any; [T, A, 2]."""
    found = np.full(margin.shape, np.nan)
    for asset in range(margin.shape[1]):
        for side in range(margin.shape[2]):
            rows = np.flatnonzero(np.isfinite(margin[:, asset, side]))
            if len(rows):
                found[rows, asset, side] = rule(margin[rows, asset, side])
    return found


def with_margin(base: Forecast, margin: np.ndarray) -> Forecast:
    """Another margin with an expected shortfall in the same ratio to it as in `base`."""
    return Forecast(margin, margin * (base.shortfall / base.margin))
