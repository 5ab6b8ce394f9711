"""Filtered historical simulation with the figures of a calibration: its dates, its volatility, its stressed periods.

Under the current law residuals of the whole history are replayed at today's volatility, of an exponential weighting or
of the GARCH recursions of the file. Under a stressed law the days of its period are replayed as they were: the returns
of one date together, drawn evenly. What did not trade then moves as the rules for short histories have it, at the
standard deviation that the file gives it in that period.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import PRNGKeyArray

from .calibration_file import CURRENT, CalibrationFile, Law
from .config import HistoryFigures, ScenarioForecast
from .config import Proxy as FactorProxy
from .errors import ConfigurationError
from .generators.filtered_historical import FilteredHistorical, filtered_historical
from .history import FactorHistory, Proxy, VolatilityRule, age_weights, factor_history
from .history_tables import ReturnPanel
from .scenarios import PegDistribution
from .tail_scale import TailForecast
from .volatility_filter import VolatilityRecursion


class HistoryTables(NamedTuple):
    """Daily returns of prices, and daily log-changes [dates] of implied volatilities by underlying."""

    panel: ReturnPanel
    implied_vols: Mapping[str, np.ndarray]


def filtered_law(
    tables: HistoryTables,
    file: CalibrationFile,
    law_name: str,
    models: Mapping[str, FactorProxy],
    figures: HistoryFigures,
    *,
    key: PRNGKeyArray,
    step_days: float,
) -> FilteredHistorical:
    """A law of the file by filtered historical simulation, dates drawn; `models` has the factors of the run.

    Raises ConfigurationError for a factor whose history does not suffice, and for a period without dates.
    """
    law = file.laws[law_name]
    history = _whole_history(tables, file, models, figures)
    pegs = {
        name: PegDistribution(law.daily_std[model.factor] * model.scale, _peg_nu(file, model.factor))
        for name, model in models.items()
        if name.startswith("peg:")
    }
    lacking = [name for name in models if name not in {*history.columns, *history.rules, *pegs}]
    if lacking:
        why = next((f.message for f in history.failures if f.subject in lacking), "it is not in the table")
        raise ConfigurationError(f"filtered_history: {lacking[0]} has no history of its own ({why}); leave it out")
    forecasts: Mapping[str, TailForecast] = {}
    if law_name == CURRENT:
        weights = age_weights(history.dates, figures.half_life_days or None)
        forecasts = tail_forecasts(figures.forecast)
    else:
        history = _of_period(history, tables, law, law_name)
        weights = None
    return filtered_historical(
        tuple(models),
        history,
        key=key,
        pegs=pegs,
        mode="draw",
        horizon_days=step_days,
        date_weights=weights,
        mean_block_steps=figures.mean_block,
        forecasts=forecasts,
    )


def tail_forecasts(forecast: ScenarioForecast | None) -> dict[str, TailForecast]:
    """The moves of a configuration by factor; empty without a forecast.

    Raises ConfigurationError for one whose market folder has not been read into moves yet: this package cannot.
    """
    if forecast is None:
        return {}
    if forecast.market is not None:
        raise ConfigurationError(
            "scenarios: forecast.market is not read by this verb; give the moves under forecast.moves"
        )
    return {name: TailForecast(forecast.level, moves.down, moves.up) for name, moves in forecast.moves.items()}


def _whole_history(
    tables: HistoryTables, file: CalibrationFile, models: Mapping[str, FactorProxy], figures: HistoryFigures
) -> FactorHistory:
    names = [name for name in models if not name.startswith("peg:")]
    proxies = {
        _asset(name): Proxy(_asset(model.factor), model.scale)
        for name, model in models.items()
        if name.startswith("price:") and model.factor != name
    }
    rules = {
        asset: VolatilityRule(f"price:{asset}", rule.beta_linear, rule.eta_linear)
        for asset, rule in file.vol_rules.items()
    }
    return factor_history(
        tables.panel,
        names or [f"price:{file.calibration.anchors[0]}"],
        proxies=proxies,
        implied_vols=tables.implied_vols,
        volatility_rules=rules,
        decay=file.calibration.decay,
        recursions=_recursions(file, figures),
    )


def _recursions(file: CalibrationFile, figures: HistoryFigures) -> dict[str, VolatilityRecursion]:
    """By factor; none for an exponential weighting. "garch" is "gjr" without its leverage, of the same persistence."""
    if figures.volatility == "ewma":
        return {}
    leverage = 1.0 if figures.volatility == "gjr" else 0.0
    return {
        name: VolatilityRecursion(
            fit.omega, fit.alpha + (1.0 - leverage) * fit.gamma / 2.0, fit.beta, leverage * fit.gamma
        )
        for name, fit in file.garch.items()
    }


def _of_period(history: FactorHistory, tables: HistoryTables, law: Law, law_name: str) -> FactorHistory:
    """The history of a law's period: residuals are its returns over the law's own standard deviations.

    Volatility along a path starts there and follows the recursion of the whole history.
    """
    panel = tables.panel
    first, last = np.datetime64(law.first_date), np.datetime64(law.last_date)
    kept = (panel.dates >= first) & (panel.dates <= last)
    if not kept.any():
        raise ConfigurationError(
            f"filtered_history: no date of the history lies in {law_name}, {law.first_date} to {law.last_date}"
        )
    std = np.array([law.daily_std[source] for source in history.sources])
    returns = [_changes(tables, source)[kept] for source in history.sources]
    anchors = [f"price:{panel.assets[column]}" for column in panel.anchors]
    of_anchors = panel.returns[kept][:, panel.anchors] / np.array([law.daily_std[name] for name in anchors])
    return replace(
        history,
        dates=panel.dates[kept],
        residuals=np.stack(returns, axis=1) / std,
        sigma_next=std,
        variance_next=std**2,
        floor=np.zeros(len(std)),
        anchor_residuals=of_anchors,
    )


def _changes(tables: HistoryTables, source: str) -> np.ndarray:
    kind, _, asset = source.partition(":")
    if kind == "vol":
        return tables.implied_vols[asset]
    return tables.panel.returns[:, tables.panel.assets.index(asset)]


def _peg_nu(file: CalibrationFile, factor: str) -> float:
    asset = _asset(factor)
    if asset in file.pegs:
        return file.pegs[asset].nu
    if asset in file.discounts:
        return file.discounts[asset].nu
    raise ConfigurationError(f"the calibration has no peg or discount for {factor}")


def history_assets(models: Sequence[str]) -> list[str]:
    """Assets whose closes the factors need."""
    return sorted({_asset(name) for name in models if not name.startswith("peg:")})


def _asset(factor: str) -> str:
    return factor.partition(":")[2]
