"""The learned margin as the scale of scenarios: how far every asset may move, for a filtered history to be brought to.

The margin of a long position is the fall that is exceeded with one minus the level, that of a short one the rise; both
become log-moves over a day. Nothing of the market history that was not over at the instant of the run is read.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from aggregator.config import (
    CalibratedFigures,
    FilteredHistoryFigures,
    HistoryFigures,
    Resolved,
    ScenarioForecast,
    TailMoves,
)
from aggregator.errors import ConfigurationError

from .checkpoint import read_header
from .classical_margin import LARGEST_LOG_LOSS
from .features import windows_per_day
from .learned import latest_rates
from .market_history import MarketHistory, read_market, windows
from .market_outlooks import history_until
from .tier_model_settings import SHIPPED, TierModelSettings, read_tier_model_settings

SHIPPED_CHECKPOINT = SHIPPED.parent / "1d_close.tail"

THOUSAND = "1000"
"""Contracts on 1,000 coins are named so; a log-move is the same for one coin."""


def with_forecast(resolved: Resolved, as_of: datetime) -> Resolved:
    """The configuration with the forecast's market folder read into moves; itself where none is configured.

    What the folder says after `as_of`, or after `until` of the scenarios where that is set, is not read.
    Raises ConfigurationError when folder, checkpoint or settings cannot be read, when the level is none of the
    checkpoint's, and when no asset is forecast at `as_of`.
    """
    history, forecast = _history_of(resolved), _forecast_of(resolved)
    if forecast is None or forecast.market is None:
        return resolved
    until = history.until if isinstance(history, FilteredHistoryFigures) else None
    settings = read_tier_model_settings(SHIPPED if forecast.settings is None else resolved.path(forecast.settings))
    checkpoint = SHIPPED_CHECKPOINT if forecast.checkpoint is None else resolved.path(forecast.checkpoint)
    made = forecast_moves(
        read_market(resolved.path(forecast.market)),
        checkpoint,
        settings=settings,
        as_of=until or as_of,
        level=forecast.level,
        max_age_days=forecast.max_age_days,
    )
    return _with(resolved, ScenarioForecast(level=forecast.level, moves={**made, **forecast.moves}))


def without_forecast(resolved: Resolved) -> Resolved | None:
    """The configuration with its scale from the history alone; None where it is so already."""
    return None if _forecast_of(resolved) is None else _with(resolved, None)


def forecast_moves(
    history: MarketHistory,
    checkpoint: Path,
    *,
    settings: TierModelSettings,
    as_of: datetime,
    level: float,
    max_age_days: float,
) -> dict[str, TailMoves]:
    """Moves over a day by price factor, for every asset whose history ended at most `max_age_days` before `as_of`.

    A forecast over 8 hours is brought to a day by the root of three. A contract on 1,000 coins stands for the coin
    too, unless the history has the coin itself. The calendar of the next day takes part, as it does in the backtest.
    """
    known = history_until(history, as_of)
    header = read_header(checkpoint)
    if level not in header.network.levels:
        levels = ", ".join(f"{one:g}" for one in header.network.levels)
        raise ConfigurationError(f"scenarios: forecast.level is {level:g}; {checkpoint.name} has {levels}")
    panel = windows(known, header.horizon)
    rates = latest_rates(known, checkpoint, settings=settings, with_calendar=True)
    place = rates.levels.index(level)
    width = timedelta(days=1.0 / windows_per_day(header.horizon))
    root_day = math.sqrt(windows_per_day(header.horizon))
    made: dict[str, TailMoves] = {}
    for asset, (long, short) in zip(rates.assets, rates.margin[:, :, place], strict=True):
        closes = np.flatnonzero(np.isfinite(panel.close[:, panel.assets.index(asset)]))
        if not (len(closes) and math.isfinite(long) and math.isfinite(short)):
            continue
        ended = panel.opening[closes[-1]].astype("datetime64[us]").item() + width
        if as_of.replace(tzinfo=None) - ended > timedelta(days=max_age_days):
            continue
        down, up = log_moves(float(long), float(short))
        made[f"price:{asset}"] = TailMoves(down=down * root_day, up=up * root_day)
    if not made:
        raise ConfigurationError(
            f"scenarios: forecast.market has no asset whose history ended within {max_age_days:g} days of {as_of}"
        )
    for name in [name for name in made if name.startswith(f"price:{THOUSAND}")]:
        made.setdefault(name.replace(THOUSAND, "", 1), made[name])
    return made


def log_moves(long: float, short: float) -> tuple[float, float]:
    """Fall and rise in logs at which a position at these margin rates, fractions of its notional, is used up.

    -ln(1 - long), at most `LARGEST_LOG_LOSS` (a margin may reach the whole notional), and ln(1 + short).
    """
    down = -math.log1p(-long) if long < 1.0 else math.inf
    return min(down, LARGEST_LOG_LOSS), math.log1p(short)


def _history_of(resolved: Resolved) -> FilteredHistoryFigures | HistoryFigures | None:
    figures = resolved.configuration.scenarios
    if isinstance(figures, FilteredHistoryFigures):
        return figures
    return figures.history if isinstance(figures, CalibratedFigures) else None


def _forecast_of(resolved: Resolved) -> ScenarioForecast | None:
    history = _history_of(resolved)
    return None if history is None else history.forecast


def _with(resolved: Resolved, forecast: ScenarioForecast | None) -> Resolved:
    figures = resolved.configuration.scenarios
    changed: dict[str, object] = {"forecast": forecast}
    if isinstance(figures, CalibratedFigures) and figures.history is not None:
        changed = {"history": figures.history.model_copy(update=changed)}
    figures = figures.model_copy(update=changed)
    configuration = resolved.configuration.model_copy(update={"scenarios": figures})
    return resolved.model_copy(update={"configuration": configuration})
