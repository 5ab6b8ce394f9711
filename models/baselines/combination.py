"""Several margins joined into one by their geometric mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .series import Forecast


def geometric_mean(parts: Sequence[Forecast]) -> Forecast:
    """Geometric means of margins and of expected shortfalls; NaN where a part has none."""
    margins, shortfalls = ([getattr(part, name) for part in parts] for name in Forecast._fields)
    return Forecast(np.exp(np.mean(np.log(margins), axis=0)), np.exp(np.mean(np.log(shortfalls), axis=0)))
