"""Days that begin at 08:00 and 16:00: more windows for training on a horizon of one day.

The tail of a day is learned from few market-wide events, and where midnight cuts them is chance. Losses of days that
begin at other hours cut the same history differently. They are only ever trained on: forecasts are for days from
midnight.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aggregator.errors import ConfigurationError

from .features import FeaturePanel, feature_panel
from .features_market import CALENDAR
from .market_history import NOTHING, Loss, MarketHistory, Side, Windows, windows

PARTS = 3
"""Windows of 8 hours in a day."""


class OffsetWindows(NamedTuple):
    """Features at openings every 8 hours, their scale that of a day, and the losses [T, A] of the day from there.

    Losses are NaN from midnight openings on (those windows are in the panel of days), and where a part is missing.
    """

    panel: FeaturePanel
    long: np.ndarray
    short: np.ndarray

    def losses(self, side: Side) -> np.ndarray:
        """Losses [T, A] of one side."""
        return self.long if side == "long" else self.short


def offset_windows(history: MarketHistory, loss: Loss) -> OffsetWindows | None:
    """Days from 08:00 and 16:00; None where the history has no bars finer than a day."""
    try:
        parts = windows(history, "8h")
    except ConfigurationError:
        return None
    panel = feature_panel(history, "8h", parts)
    even = panel.even.copy()
    for name in CALENDAR:
        if name.startswith("hour"):
            even[..., panel.even_names.index(name)] = 0.0  # as in the panel of days
    whole_day = 0.5 * np.log(PARTS)
    panel = panel._replace(
        horizon="1d",
        anchor=panel.anchor + whole_day,
        volatility=panel.volatility * np.exp(whole_day),
        even=even,
    )
    long, short = day_losses(parts, loss)
    midnight = parts.opening == parts.opening.astype("datetime64[D]")
    long[midnight], short[midnight] = np.nan, np.nan
    return OffsetWindows(panel, long, short)


def day_losses(parts: Windows, loss: Loss) -> tuple[np.ndarray, np.ndarray]:
    """Losses [T, A] long and short over the three windows from each opening, against the close before it.

    NaN unless the window before and all three are there, in one market.
    """
    times, assets = parts.close.shape
    before = np.full((times, assets), np.nan)
    before[1:] = parts.close[:-1]
    whole = np.zeros((times, assets), dtype=bool)
    market = parts.market
    last = times - PARTS + 1
    if last > 1:
        whole[1:last] = market[: last - 1] != NOTHING
        for part in range(PARTS):
            whole[1:last] &= market[1 + part : last + part] == market[: last - 1]

    def over_day(values: np.ndarray, join: np.ufunc) -> np.ndarray:
        result = np.full((times, assets), np.nan)
        joined = values[: max(last, 0)].copy()
        for part in range(1, PARTS):
            joined = join(joined, values[part : last + part])
        result[: len(joined)] = joined
        return np.where(whole, result, np.nan)

    if loss == "adverse":
        return 1.0 - over_day(parts.low, np.minimum) / before, over_day(parts.high, np.maximum) / before - 1.0
    final = np.full((times, assets), np.nan)
    if last > 0:
        final[:last] = parts.close[PARTS - 1 :]
    change = np.where(whole, final / before - 1.0, np.nan)
    return -change, change.copy()
