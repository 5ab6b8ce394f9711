"""Simple margin forecasts that a learned one has to beat: everything walk-forward, nothing from the future.

Definitions and lengths are those of each module; `BASELINES` names them all, `baseline_forecasts` makes the table that
is scored. Importing this package needs neither JAX nor the package `arch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from aggregator.errors import ConfigurationError, nearest_name

from ..forecast_table import HOURS, check_forecasts
from ..market_history import Loss, Windows
from .buffers import buffered, floored, stressed
from .combination import geometric_mean
from .conformal import adaptive_level, tracked_quantile
from .empirical_quantile import constant_tier, historical_simulation
from .ewma import filtered, normal
from .garch import asymmetric_filtered, student
from .har_quantile import pooled
from .published import slow_to_fall, smoothed
from .series import SIDES, Apply, Forecast, Moves, Settings, moves

__all__ = ["BASELINES", "Baseline", "baseline_forecasts"]


class Source(NamedTuple):
    """What baselines are made from."""

    windows: Windows
    moves: Moves
    settings: Settings
    apply: Apply


class Baseline(NamedTuple):
    """A forecast from the market and from the forecasts named in `parts`, in that order."""

    forecast: Callable[[Source, Sequence[Forecast]], Forecast]
    parts: tuple[str, ...] = ()


def _of_moves(method: Callable[[Moves, Settings], Forecast]) -> Baseline:
    return Baseline(lambda source, _: method(source.moves, source.settings))


BASELINES: Mapping[str, Baseline] = {
    "HS500": _of_moves(historical_simulation),
    "STATIC995": _of_moves(constant_tier),
    "EWMA97-N": _of_moves(partial(normal, decay=0.97)),
    "EWMA97-FHS": _of_moves(partial(filtered, decay=0.97)),
    "EWMA94-FHS": _of_moves(partial(filtered, decay=0.94)),
    "GARCH-t": Baseline(lambda source, _: student(source.moves, source.settings, apply=source.apply)),
    "GJR-FHS": Baseline(lambda source, _: asymmetric_filtered(source.moves, source.settings, apply=source.apply)),
    "ACI-EWMA97": _of_moves(adaptive_level),
    "QT-EWMA97": _of_moves(tracked_quantile),
    "FHS+buffer25": Baseline(lambda _, parts: buffered(parts[0]), ("EWMA97-FHS",)),
    "FHS+stress25": Baseline(lambda s, parts: stressed(parts[0], s.moves, s.settings), ("EWMA97-FHS",)),
    "FHS+floor10y": Baseline(lambda s, parts: floored(parts[0], s.moves, s.settings, decay=0.97), ("EWMA97-FHS",)),
    "HAR-QR-pooled": Baseline(lambda source, _: pooled(source.windows, source.settings)),
    "COMBO4": Baseline(lambda _, parts: geometric_mean(parts), ("HAR-QR-pooled", "GARCH-t", "GJR-FHS", "EWMA94-FHS")),
    "COMBO4-slow": Baseline(lambda source, parts: slow_to_fall(parts[0], source.settings), ("COMBO4",)),
    "COMBO4-ema0.2": Baseline(lambda source, parts: smoothed(parts[0], source.settings, weight=0.2), ("COMBO4",)),
    "HAR-QR-ema0.1": Baseline(
        lambda source, parts: smoothed(parts[0], source.settings, weight=0.1), ("HAR-QR-pooled",)
    ),
}
"""Every baseline by the name that it has in the forecast table."""


def baseline_forecasts(
    windows: Windows,
    *,
    start: np.datetime64,
    end: np.datetime64,
    loss: Loss = "close",
    names: Iterable[str] = tuple(BASELINES),
    level: float = 0.99,
    workers: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> pa.Table:
    """The forecast table of the baselines `names` for windows that open in [start, end).

    Each is made for `loss`: what it knows of tails, quantiles and breaches is of that loss. Forecasts exist where an
    asset has a return and 400 days of returns before it; the whole panel before `start` is their history. `workers`
    processes share the GARCH fits, with the same result for any number; `progress` is told the name of each forecast
    before it is made.

    Raises ConfigurationError for an unknown name, and from the GARCH baselines without the extra `baselines`.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in BASELINES:
            raise ConfigurationError(f"baseline {name!r} is unknown{nearest_name(name, BASELINES)}")
    settings = Settings(level, 24 // HOURS[windows.horizon], loss)
    found: dict[str, Forecast] = {}

    def make(name: str, source: Source) -> Forecast:
        if name not in found:
            parts = [make(part, source) for part in BASELINES[name].parts]
            progress(name)
            found[name] = BASELINES[name].forecast(source, parts)
        return found[name]

    if workers > 1:
        # spawned, not forked: a fork of a process with running threads may never come back
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            source = Source(windows, moves(windows, loss), settings, pool.map)
            tables = [_table(name, make(name, source), windows, level, loss, start, end) for name in wanted]
    else:
        source = Source(windows, moves(windows, loss), settings, map)
        tables = [_table(name, make(name, source), windows, level, loss, start, end) for name in wanted]
    return check_forecasts(pa.concat_tables(tables))


def _table(
    name: str,
    forecast: Forecast,
    windows: Windows,
    level: float,
    loss: Loss,
    start: np.datetime64,
    end: np.datetime64,
) -> pa.Table:
    inside = (windows.opening >= start) & (windows.opening < end)
    rows, assets, sides = np.nonzero(np.isfinite(forecast.margin) & inside[:, None, None])
    margin = forecast.margin[rows, assets, sides]
    count = len(rows)
    return pa.table(
        {
            "date": pa.array(windows.opening[rows], pa.timestamp("us", "UTC")),
            "asset": np.array(windows.assets)[assets],
            "side": np.array(SIDES)[sides],
            "level": np.full(count, level),
            "horizon": np.full(count, windows.horizon),
            "loss": np.full(count, loss),
            "margin_rate": margin,
            "es_rate": np.maximum(forecast.shortfall[rows, assets, sides], margin),
            "model": np.full(count, name),
        }
    )
