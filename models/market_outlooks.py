"""What the learned model and the market's volume say of every market in force, as of an instant.

The 8-hour and the 1-day margin against the worst point inside the window, long and short; nothing of the history that
was not over at the instant is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.calibration.liquidity import invariance_spread
from aggregator.errors import ConfigurationError, DataError, Failure, FailureReason
from aggregator.factors import MarketSize

from .checkpoint import read_header
from .classical_margin import SIDES
from .close_out import trailing_volume
from .learned import LatestRates, PreparedModel, prepared_model, rates_now
from .market_files import HOUR, WIDTHS
from .market_history import MarketHistory, Windows, windows
from .model_monitor import MonitoredModel, monitored, tripped
from .recommendation import FALLBACK, MODEL, MarketOutlook
from .tier_ladder import BaseRates
from .tier_model_settings import TierModelSettings
from .tier_policy import GovernancePolicy

EIGHT_HOURS, ONE_DAY = "8h_adverse.tail", "1d_adverse.tail"
HORIZONS_DAYS = (1.0 / 3.0, 1.0)

VOLATILITY_DECAY = 0.97
"""Per day, of the squared log-returns behind the cost of a forced sale, as in the calibration of the scenarios."""

VOLATILITY_DAYS = 250


class Forecast(NamedTuple):
    """Rates of both horizons over the same assets and levels, and the daily windows behind the sizes of markets.

    `models` are what both were made of; what is watched of them is measured on it.
    """

    assets: tuple[str, ...]
    levels: tuple[float, ...]
    eight_hours: LatestRates
    one_day: LatestRates
    days: Windows
    models: tuple[PreparedModel, PreparedModel]


def latest_forecast(
    history: MarketHistory, checkpoints: Path, *, settings: TierModelSettings, as_of: datetime
) -> Forecast:
    """The newest forecast from a history of which everything after `as_of` is left out.

    Raises ConfigurationError when a checkpoint is missing or refused, of another horizon or loss than its name says,
    when the two have other levels, and when no window was over at `as_of`.
    """
    known = history_until(history, as_of)
    models = []
    for name, horizon in ((EIGHT_HOURS, "8h"), (ONE_DAY, "1d")):
        path = checkpoints / name
        if not path.exists():
            raise ConfigurationError(f"tiers.checkpoints: {checkpoints} has no {name}; `crossmargin train` writes it")
        header = read_header(path)
        if (header.horizon, header.loss) != (horizon, "adverse"):
            raise ConfigurationError(f"tiers.checkpoints: {path} is a fit of {header.horizon} {header.loss}")
        models.append(prepared_model(known, path, settings=settings))
    eight_hours, one_day = (rates_now(model, settings) for model in models)
    if eight_hours.levels != one_day.levels:
        raise ConfigurationError(f"tiers.checkpoints: {EIGHT_HOURS} has other levels than {ONE_DAY}")
    return Forecast(one_day.assets, one_day.levels, eight_hours, one_day, windows(known, "1d"), (models[0], models[1]))


def watched(
    forecast: Forecast,
    assets: Sequence[str],
    *,
    settings: TierModelSettings,
    policy: GovernancePolicy,
    as_of: datetime,
) -> tuple[MonitoredModel, ...]:
    """What is watched of both models, and what trips for `assets` at the levels that tiers stand on."""
    pairs = (policy.ladder, policy.collateral)
    levels = sorted({level.level for pair in pairs for level in (pair.maintenance, pair.initial)})
    return tuple(
        monitored(made, latest, settings=settings, rules=policy.monitoring, levels=levels, assets=assets, as_of=as_of)
        for made, latest in zip(forecast.models, (forecast.eight_hours, forecast.one_day), strict=True)
    )


class Priced(Protocol):
    """A market or a piece of collateral: what a history may call the asset whose price moves it, the nearest first."""

    @property
    def history_names(self) -> tuple[str, ...]: ...


def asset_of(one: Priced, forecast: Forecast) -> str | None:
    """The name under which the history has the asset; None where it has none."""
    return next((name for name in one.history_names if name in forecast.assets), None)


def market_outlooks(
    markets: Mapping[str, Priced],
    forecast: Forecast,
    *,
    as_of: datetime,
    max_age_days: float,
    models: Sequence[MonitoredModel] = (),
) -> tuple[list[MarketOutlook], list[Failure]]:
    """Outlooks of the markets whose asset is forecast, and why there is none of the others.

    Where one of the monitored `models` trips for an asset, its rates are those of the classical member.
    """
    outlooks: list[MarketOutlook] = []
    failures: list[Failure] = []
    for market, in_force in sorted(markets.items()):
        asset = asset_of(in_force, forecast)
        if asset is None:
            names = " or ".join(in_force.history_names)
            failures.append(_failure(FailureReason.MISSING_PARAMETER, market, f"the market history has no {names}"))
            continue
        try:
            falls_back = bool(tripped(models, asset))
            outlooks.append(_outlook(market, asset, forecast, as_of, timedelta(days=max_age_days), falls_back))
        except DataError as error:
            failures.append(error.failure)
    return outlooks, failures


def history_until(history: MarketHistory, as_of: datetime) -> MarketHistory:
    """The bars that were over and the context that was stamped at `as_of`, exchange tiers left out."""

    def bars(table: pa.Table, width: int) -> pa.Table:
        last = pa.scalar(as_of - timedelta(microseconds=width), pa.timestamp("us", "UTC"))
        return table.filter(pc.less_equal(table["ts"], last))

    context = history.context
    if context is not None:
        context = context.filter(pc.less_equal(context["ts"], pa.scalar(as_of, pa.timestamp("us", "UTC"))))
    return MarketHistory(
        bars(history.bars_4h, 4 * HOUR), bars(history.bars_1h, HOUR), bars(history.bars_1d, WIDTHS["1d"]), context, None
    )


def daily_volatility(simple_return: np.ndarray) -> float:
    """Daily standard deviation of log-returns of the last year, the newer weighing more; NaN without a return."""
    returns = np.log1p(simple_return[-VOLATILITY_DAYS:])
    weights = np.where(np.isfinite(returns), VOLATILITY_DECAY ** np.arange(len(returns))[::-1], 0.0)
    total = float(weights.sum())
    return math.sqrt(float(np.sum(weights * np.nan_to_num(returns) ** 2)) / total) if total > 0.0 else math.nan


def _outlook(
    market: str, asset: str, forecast: Forecast, as_of: datetime, max_age: timedelta, falls_back: bool
) -> MarketOutlook:
    days, column = forecast.days, forecast.days.assets.index(asset)
    returns = days.simple_return[:, column]
    known = np.flatnonzero(np.isfinite(days.close[:, column]))
    ended = days.opening[known[-1]].astype("datetime64[us]").item() if len(known) else None
    if ended is None:
        raise DataError(_failure(FailureReason.MISSING_MARK, market, f"the market history has no day of {asset}"))
    age = as_of.replace(tzinfo=None) - (ended + timedelta(days=1))
    if age > max_age:
        message = f"the market history of {asset} ended {age / timedelta(days=1):.1f} days before the run"
        raise DataError(_failure(FailureReason.STALE, market, message))
    volume = trailing_volume(days.quote_volume[:, column])
    volatility = daily_volatility(returns)
    # A market without volume or returns is refused by the ladder, with its reason: a spread would not be looked at.
    spread = invariance_spread(volatility, volume) if volume > 0.0 and volatility > 0.0 else 0.0
    size = MarketSize(volume, volatility, spread)
    both = (forecast.eight_hours, forecast.one_day)
    margin = [made.classical_margin if falls_back else made.margin for made in both]
    shortfall = [made.classical_shortfall if falls_back else made.shortfall for made in both]
    columns = [made.assets.index(asset) for made in both]
    sides = tuple(
        BaseRates(
            side,
            forecast.levels,
            HORIZONS_DAYS,
            np.stack([values[at, place] for values, at in zip(margin, columns, strict=True)]),
            np.stack([values[at, place] for values, at in zip(shortfall, columns, strict=True)]),
        )
        for place, side in enumerate(SIDES)
    )
    known_days = float(np.count_nonzero(np.isfinite(returns)))
    return MarketOutlook(market, sides, size, known_days, FALLBACK if falls_back else MODEL)


def _failure(reason: FailureReason, market: str, message: str) -> Failure:
    return Failure(reason, f"{market}: {message}; its tiers stay as they are", subject=market)
