"""Forecasts of several models beside the losses that came: dense arrays, and the rows that all models have in common.

Axes: M models, T openings, A assets, 2 sides (long, short); NaN where a model has no forecast or a loss is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.errors import ConfigurationError

from .forecast_table import check_forecasts
from .market_history import MarketHistory, Windows, losses, windows

SIDES = ("long", "short")


class ForecastPanel(NamedTuple):
    """`loss` [T, A, 2], `margin` and `shortfall` [M, T, A, 2]; `missing` is the share of rows that a model lacks.

    The rows that could be there are those for which any model has a forecast and the loss is known; `unknown_losses`
    counts forecasts that met no known loss.
    """

    windows: Windows
    level: float
    loss_kind: str
    models: tuple[str, ...]
    loss: np.ndarray
    margin: np.ndarray
    shortfall: np.ndarray
    missing: Mapping[str, float]
    unknown_losses: int

    def common(self) -> np.ndarray:
        """Rows [T, A, 2] with a known loss and a forecast of every model."""
        return np.isfinite(self.loss) & np.isfinite(self.margin).all(axis=0)


def forecast_panel(forecasts: pa.Table, history: MarketHistory) -> ForecastPanel:
    """The checked forecasts put beside the losses of the market history; models in order of their names.

    Raises ConfigurationError for a table that fails its checks or is empty, that holds several horizons, levels or
    kinds of loss, for an asset without a spot or perp window in the history, and when no forecast meets a known loss.
    """
    table = check_forecasts(forecasts)
    if not table.num_rows:
        raise ConfigurationError("forecasts: no rows to score")
    alone = {}
    for name in ("horizon", "level", "loss"):
        values = pc.unique(table[name]).to_pylist()
        if len(values) != 1:
            raise ConfigurationError(f"forecasts: column {name!r} holds {sorted(values)}; score one of them at a time")
        alone[name] = values[0]
    panel = windows(history, alone["horizon"])
    assets = _codes(table["asset"], panel.assets)
    if (assets < 0).any():
        unknown = sorted(set(pc.unique(table["asset"]).to_pylist()) - set(panel.assets))
        raise ConfigurationError(f"forecasts: no market history of {', '.join(unknown)}")
    loss = np.stack([losses(panel, side, alone["loss"]) for side in ("long", "short")], axis=-1)
    models = tuple(sorted(pc.unique(table["model"]).to_pylist()))
    rows = np.searchsorted(panel.opening, table["date"].to_numpy().astype("datetime64[us]"))
    inside = rows < len(panel.opening)
    inside[inside] = panel.opening[rows[inside]] == table["date"].to_numpy().astype("datetime64[us]")[inside]
    at = tuple(codes[inside] for codes in (_codes(table["model"], models), rows, assets, _codes(table["side"], SIDES)))
    margin, shortfall = (np.full((len(models), *loss.shape), np.nan) for _ in range(2))
    margin[at] = table["margin_rate"].to_numpy()[inside]
    shortfall[at] = table["es_rate"].to_numpy()[inside]
    known = np.isfinite(margin) & np.isfinite(loss)
    possible = int(known.any(axis=0).sum())
    if not possible:
        raise ConfigurationError("forecasts: none of them meets a known loss of the market history")
    missing = {name: 1.0 - float(known[number].sum()) / possible for number, name in enumerate(models)}
    unknown_losses = table.num_rows - int(known.sum())
    return ForecastPanel(panel, alone["level"], alone["loss"], models, loss, margin, shortfall, missing, unknown_losses)


def _codes(column: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    found = pc.index_in(column, value_set=pa.array(names, pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)
