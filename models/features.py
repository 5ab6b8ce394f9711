"""What the tail network sees: inputs per window, asset and side, all known at the opening of the window.

Volatilities enter as differences to the asset's own anchor, the log volatility that margins are scaled by, so that one
network serves every asset. An input that is missing is NaN. No input is older than `OLDEST_DAYS`: after a longer halt,
and for an asset without any history, the inputs are missing and the anchor is that of the more volatile assets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .features_cross_section import cross_section
from .features_market import CALENDAR, activity, age, calendar, direction, market_mood, tail_shape
from .features_volatility import ANCHOR_SQUARE, PRIOR_QUANTILE, bars_ended, volatilities
from .market_history import (
    NOTHING,
    Horizon,
    MarketHistory,
    Side,
    Windows,
    bars_4h_panel,
    context_series,
    windows,
)

OLDEST_DAYS = 3.0
HOURS = {"1d": 24, "8h": 8}


class FeaturePanel(NamedTuple):
    """T + 1 openings (the last is that of the window after the history) x A assets.

    `anchor` [T+1, A] is the log volatility per window that margins are relative to, `volatility` [T+1, A] the EWMA
    volatility per window of the classical quantiles; both are finite everywhere. `even` [T+1, A, E] and `signed`
    [T+1, A, S] are float32 with NaN where missing. `usable` [T+1, A]: own data at most `OLDEST_DAYS` old.
    """

    horizon: Horizon
    opening: np.ndarray
    assets: tuple[str, ...]
    anchor: np.ndarray
    volatility: np.ndarray
    usable: np.ndarray
    even: np.ndarray
    signed: np.ndarray
    even_names: tuple[str, ...]
    signed_names: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of `side_inputs`."""
        return (*self.even_names, *self.signed_names, "side")


def windows_per_day(horizon: Horizon) -> float:
    """1 for a day, 3 for eight hours."""
    return 24.0 / HOURS[horizon]


def feature_panel(history: MarketHistory, horizon: Horizon, panel: Windows | None = None) -> FeaturePanel:
    """Features of every asset at every opening of `panel` (built from the history unless given) and at the next one."""
    panel = windows(history, horizon) if panel is None else panel
    per_day = windows_per_day(horizon)
    step = np.timedelta64(HOURS[horizon], "h")
    opening = np.append(panel.opening, panel.opening[-1] + step)
    bars = bars_4h_panel(history, panel.assets)
    ended = bars_ended(bars.opening, opening)
    body = np.log(bars.close / bars.open)
    log_return = np.log1p(panel.simple_return)
    traded = panel.market != NOTHING

    speeds = volatilities(log_return, bars.high, bars.low, body, ended, windows_per_day=per_day)
    usable = _days_since(traded, per_day) <= OLDEST_DAYS
    anchor = _wide_where_unknown(speeds.anchor, usable)
    volatility = np.exp(_wide_where_unknown(speeds.square[ANCHOR_SQUARE], usable)) / per_day**0.5

    even = {f"range_{key:g}": value - anchor for key, value in speeds.range.items()}
    even |= {f"square_{key:g}": value - anchor for key, value in speeds.square.items()}
    even |= {f"body_{key:g}": value - anchor for key, value in speeds.body.items()}
    even |= {
        "long_run": _long_run(speeds.range[1.0], speeds.observed, None, per_day) - anchor,
        "year": _long_run(speeds.range[1.0], speeds.observed, 365, per_day) - anchor,
    }
    even |= activity(bars, body, ended, anchor)
    even |= tail_shape(log_return, volatility, windows_per_day=per_day)
    even |= age(traded, windows_per_day=per_day)
    even |= cross_section(body, ended, anchor, usable, windows_per_day=per_day)
    signed = direction(bars, body, ended, anchor)
    even_mood, signed_mood = market_mood(
        context_series(history, "BTC", "funding_daily_mean", opening),
        context_series(history, "MARKET", "fear_greed", opening),
        assets=len(panel.assets),
        windows_per_day=per_day,
    )
    even |= even_mood
    signed |= signed_mood
    even = {name: np.where(usable, value, np.nan) for name, value in even.items()}
    signed = {name: np.where(usable, value, np.nan) for name, value in signed.items()}
    even |= calendar(opening, len(panel.assets))
    return FeaturePanel(
        horizon,
        opening,
        panel.assets,
        anchor - 0.5 * np.log(per_day),
        volatility,
        usable,
        np.stack(list(even.values()), axis=-1).astype(np.float32),
        np.stack(list(signed.values()), axis=-1).astype(np.float32),
        tuple(even),
        tuple(signed),
    )


def side_inputs(
    panel: FeaturePanel, side: Side, time: np.ndarray, asset: np.ndarray, *, with_calendar: bool = True
) -> np.ndarray:
    """Inputs [rows, features] at times and assets [rows] for a position on `side`; missing calendar unless asked."""
    sign = np.float32(1.0 if side == "long" else -1.0)
    even = panel.even[time, asset]
    if not with_calendar:
        even[:, [panel.even_names.index(name) for name in CALENDAR]] = np.nan
    column = np.full((len(time), 1), sign, dtype=np.float32)
    return np.concatenate([even, sign * panel.signed[time, asset], column], axis=1)


def _days_since(traded: np.ndarray, per_day: float) -> np.ndarray:
    """[windows + 1, assets]: days from the end of the last traded window to each opening; infinite without any."""
    rows = np.arange(len(traded))[:, None]
    last = np.maximum.accumulate(np.where(traded, rows, -1), axis=0)
    last = np.concatenate([np.full((1, traded.shape[1]), -1), last])
    openings = np.arange(len(traded) + 1)[:, None]
    return np.where(last >= 0, (openings - last - 1) / per_day, np.inf)


def _wide_where_unknown(log_volatility: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """At least the `PRIOR_QUANTILE` of the usable assets where an asset itself is not usable."""
    wide = log_volatility.copy()
    for time in np.flatnonzero(usable.any(axis=1) & ~usable.all(axis=1)):
        pooled = np.quantile(log_volatility[time, usable[time]], PRIOR_QUANTILE)
        unknown = ~usable[time]
        wide[time, unknown] = np.maximum(log_volatility[time, unknown], pooled)
    return wide


def _long_run(log_volatility: np.ndarray, observed: np.ndarray, days: int | None, per_day: float) -> np.ndarray:
    """Mean over the last `days` (all days for None) of what was observed; NaN with less than 30 days."""
    total = np.cumsum(np.where(observed, log_volatility, 0.0), axis=0)
    count = np.cumsum(observed, axis=0).astype(np.float64)
    if days is not None:
        steps = round(days * per_day)
        for sums in (total, count):
            sums[steps:] = sums[steps:] - sums[:-steps]
    return np.where(count >= 30 * per_day, total / np.maximum(count, 1.0), np.nan)
