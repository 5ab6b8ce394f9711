"""The verb `backtest`: walk-forward margin forecasts over a market folder, as the table that a scorer reads."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa

from aggregator.errors import ConfigurationError

from .classical_margin import SIDES, TailRates
from .features import feature_panel
from .forecast_table import FORECASTS, write_forecasts
from .learned import learned_rates
from .market_history import Horizon, Loss, MarketHistory, Windows, read_market, windows
from .offset_windows import offset_windows
from .tier_model_settings import TierModelSettings, read_tier_model_settings
from .walk_forward import DAY, Progress

LEVEL = 0.99


class BacktestOutcome(NamedTuple):
    """What was written: where, how many rows of which models, and the first and last opening (ISO dates)."""

    path: Path
    rows: int
    models: tuple[str, ...]
    first: str
    last: str


def run_backtest(
    market: Path,
    *,
    start: date,
    end: date,
    horizon: str,
    loss: str,
    out: Path,
    settings: Path,
    levels: tuple[float, ...] = (LEVEL,),
    checkpoints: Path | None = None,
    baselines: bool = False,
    progress: Progress | None = None,
) -> BacktestOutcome:
    """Write the forecasts of `learned` and `learned_published` (and of the baselines) for openings of start .. end.

    Both days are included. A row is there for every asset, side and opening with a window, cold starts included.
    Raises ConfigurationError for an unknown horizon, loss or level, an empty period, or a folder without data in it.
    """
    if horizon not in get_args(Horizon) or loss not in get_args(Loss):
        raise ConfigurationError(f"horizon {horizon!r}, loss {loss!r}: expected 1d or 8h, close or adverse")
    if end < start:
        raise ConfigurationError(f"the period ends ({end}) before it starts ({start})")
    if baselines:
        # At once, not after the learned forecasts are made.
        from .baselines.garch import require_arch

        require_arch()
    figures = read_tier_model_settings(settings)
    unknown = sorted(set(levels) - set(figures.network.levels))
    if unknown:
        raise ConfigurationError(f"levels {unknown} are not among those of {settings}: {figures.network.levels}")
    if not out.resolve().parent.is_dir():
        raise ConfigurationError(f"{out}: its folder does not exist")
    if out.is_dir():
        raise ConfigurationError(f"{out} is a folder; expected a file to write")
    if checkpoints is not None and checkpoints.exists() and not checkpoints.is_dir():
        raise ConfigurationError(f"{checkpoints} is a file; expected a folder for checkpoints")
    first, after = np.datetime64(start), np.datetime64(end) + DAY
    history = read_market(market)
    panel = windows(history, horizon)  # type: ignore[arg-type]
    inside = (panel.opening >= first) & (panel.opening < after)
    if not panel.market[inside].any():
        days = f"{panel.opening[0].astype('datetime64[D]')} .. {panel.opening[-1].astype('datetime64[D]')}"
        raise ConfigurationError(f"no window between {start} and {end} in {market}; it has {days}")
    table = learned_forecasts(
        history,
        panel,
        loss,  # type: ignore[arg-type]
        figures,
        start=first,
        end=after,
        levels=levels,
        checkpoints=checkpoints,
        source=market.name,
        progress=progress,
    )
    if baselines:
        from .baselines import BASELINES, baseline_forecasts

        made: list[str] = []

        def say(name: str) -> None:
            if progress is not None:
                progress("baselines", len(made), len(BASELINES))
            made.append(name)

        classical = baseline_forecasts(
            panel,
            start=first,
            end=after,
            loss=loss,  # type: ignore[arg-type]
            progress=say,
        )
        if progress is not None:
            progress("baselines", len(BASELINES), len(BASELINES))
        table = pa.concat_tables([table, classical.select(table.column_names).cast(table.schema)])
    write_forecasts(table, out)
    names = tuple(sorted(set(table["model"].to_pylist())))
    shown = panel.opening[inside]
    return BacktestOutcome(out, table.num_rows, names, str(shown[0])[:10], str(shown[-1])[:10])


def learned_forecasts(
    history: MarketHistory,
    panel: Windows,
    loss: Loss,
    settings: TierModelSettings,
    *,
    start: np.datetime64,
    end: np.datetime64,
    levels: tuple[float, ...] = (LEVEL,),
    assets: frozenset[str] | None = None,
    checkpoints: Path | None = None,
    source: str = "",
    progress: Progress | None = None,
) -> pa.Table:
    """The forecast table of `learned` and `learned_published` at openings of [start, end); `assets` limits training."""
    features = feature_panel(history, panel.horizon, panel)
    offsets = offset_windows(history, loss) if panel.horizon == "1d" else None
    rates = learned_rates(
        features,
        panel,
        loss,
        settings,
        start=start,
        end=end,
        offsets=offsets,
        assets=assets,
        checkpoints=checkpoints,
        source=source,
        progress=progress,
    )
    inside = (panel.opening >= start) & (panel.opening < end)
    places = [settings.network.levels.index(level) for level in levels]
    parts = [
        _table(name, of_model, panel, loss, inside, levels, places)
        for name, of_model in (("learned", rates.learned), ("learned_published", rates.published))
    ]
    return pa.concat_tables(parts)


def _table(
    name: str,
    rates: TailRates,
    panel: Windows,
    loss: Loss,
    inside: np.ndarray,
    levels: tuple[float, ...],
    places: list[int],
) -> pa.Table:
    time, asset = np.nonzero((panel.market > 0) & inside[:, None])
    parts = []
    for level, place in zip(levels, places, strict=True):
        for number, side in enumerate(SIDES):
            margin = np.exp(rates.log_margin[time, asset, number, place])
            shortfall = np.maximum(np.exp(rates.log_shortfall[time, asset, number, place]), margin)
            columns = {
                "date": pa.array(panel.opening[time], pa.timestamp("us", "UTC")),
                "asset": pa.array(np.asarray(panel.assets, dtype=object)[asset], pa.string()),
                "side": pa.array([side] * len(time), pa.string()),
                "level": pa.array(np.full(len(time), level)),
                "horizon": pa.array([panel.horizon] * len(time), pa.string()),
                "loss": pa.array([loss] * len(time), pa.string()),
                "margin_rate": pa.array(margin),
                "es_rate": pa.array(shortfall),
                "model": pa.array([name] * len(time), pa.string()),
            }
            parts.append(pa.table(columns, schema=FORECASTS))
    return pa.concat_tables(parts)
