"""The gap between two prices of one asset: how much it moves in a day, as expected shortfall with a floor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.99
MINIMUM_DAYS = 250


class GapLaw(NamedTuple):
    """Expected shortfall at `CONFIDENCE` of the size of a day's change; mean and standard deviation of the gap."""

    es_99: float
    mean: float
    std: float
    days: int


def expected_shortfall(sizes: np.ndarray, confidence: float = CONFIDENCE) -> float:
    """Mean of the largest 1 - `confidence` of `sizes` [count], the boundary one counted in part."""
    ordered = np.sort(sizes)[::-1]
    mass = (1.0 - confidence) * len(ordered)
    weights = np.clip(mass - np.arange(len(ordered)), 0.0, 1.0)
    return float(np.sum(weights * ordered) / mass)


def gap_law(first: np.ndarray, second: np.ndarray) -> GapLaw:
    """Law of ln(first / second) of two positive daily price series [dates] on the same consecutive days, NaN for none.

    A long position in one and a short one in the other lose its change, whichever way it goes, hence the size. Raises
    ValueError with fewer than 250 changes.
    """
    gap = np.log(first) - np.log(second)
    changes = np.diff(gap)
    changes = changes[np.isfinite(changes)]
    if len(changes) < MINIMUM_DAYS:
        raise ValueError(f"{len(changes)} days with both prices; at least {MINIMUM_DAYS} are needed for a basis")
    known = gap[np.isfinite(gap)]
    return GapLaw(expected_shortfall(np.abs(changes)), float(np.mean(known)), float(np.std(known)), len(changes))
