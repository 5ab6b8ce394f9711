"""The verb `train`: fit the tail networks on all of a market folder and write their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from aggregator.errors import ConfigurationError

from .checkpoint import SUFFIX
from .classical_margin import classical_rates
from .features import feature_panel, windows_per_day
from .learned import guard_log_factors, guarded_losses, mixed, network_weight
from .market_history import NOTHING, Horizon, Loss, read_market, windows
from .offset_windows import offset_windows
from .tier_model_settings import read_tier_model_settings
from .walk_forward import DAY, Progress, fit_until, network_rates, refit_dates, training_rows

TARGETS: tuple[tuple[Horizon, Loss], ...] = (("1d", "close"), ("1d", "adverse"), ("8h", "close"), ("8h", "adverse"))
"""What is trained unless the caller says otherwise."""


class Trained(NamedTuple):
    """One checkpoint: where, on how many rows, and its training loss by seed."""

    path: Path
    horizon: Horizon
    loss: Loss
    until: str
    training_loss: tuple[float, ...]


def run_training(
    market: Path,
    *,
    out: Path,
    settings: Path,
    until: date | None = None,
    targets: Sequence[tuple[str, str]] = TARGETS,
    checkpoints: Path | None = None,
    source: str = "",
    progress: Progress | None = None,
) -> list[Trained]:
    """Fit every (horizon, loss) of `targets` on what ended before `until` (default: the end of the history).

    Writes `out/{horizon}_{loss}.tail` and its manifest with the guard's factors of a walk-forward over the guard's
    window; `checkpoints` keeps the fits of that walk, so that a run that was cut can go on. `source` is the description
    of the data in the manifests (default: the name of the folder). Raises ConfigurationError for an unknown target and
    when there are too few rows.
    """
    for horizon, loss in targets:
        if horizon not in get_args(Horizon) or loss not in get_args(Loss):
            raise ConfigurationError(f"target {horizon} {loss}: expected 1d or 8h, close or adverse")
    for folder in (out, checkpoints):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ConfigurationError(f"{folder} is a file; expected a folder for checkpoints")
    figures = read_tier_model_settings(settings)
    history = read_market(market)
    out.mkdir(parents=True, exist_ok=True)
    trained = []
    for horizon, loss in targets:
        panel = windows(history, horizon, until=None if until is None else np.datetime64(until, "us"))  # type: ignore[arg-type]
        features = feature_panel(history, panel.horizon, panel)
        per_day = windows_per_day(panel.horizon)
        offsets = offset_windows(history, loss) if panel.horizon == "1d" else None  # type: ignore[arg-type]
        end = features.opening[-1].astype("datetime64[D]")
        rows = training_rows(features, panel, loss, figures.training, offsets=offsets)  # type: ignore[arg-type]
        (walked,), seen = network_rates(
            features,
            panel,
            loss,  # type: ignore[arg-type]
            figures,
            start=end - figures.guard.window_days * DAY,
            end=end,
            offsets=offsets,
            checkpoints=checkpoints,
            source=source or market.name,
            progress=progress,
        )
        classical = classical_rates(
            features,
            panel,
            loss,  # type: ignore[arg-type]
            levels=figures.network.levels,
            settings=figures.classical,
            refits=refit_dates(features.opening, figures.walk_forward.months),
        )
        there = np.concatenate([panel.market != NOTHING, np.zeros((1, len(panel.assets)), dtype=bool)])
        rates = mixed(walked, classical, network_weight(seen, figures.mixture), there)
        factors = guard_log_factors(
            rates.log_margin,
            np.isfinite(walked.log_margin[..., 0]),
            guarded_losses(features, panel, loss, figures),  # type: ignore[arg-type]
            figures,
            per_day,
            figures.guard.strength,
        )[-1]
        path = out / f"{horizon}_{loss}{SUFFIX}"
        made = fit_until(
            rows,
            features,
            loss,  # type: ignore[arg-type]
            figures,
            date=end + figures.walk_forward.embargo_days * DAY,
            checkpoint=path,
            source=source or market.name,
            guard_log_factors=tuple(float(round(factor, 6)) for factor in factors),
        )
        if made is None:
            raise ConfigurationError(f"{market.name}: fewer than {figures.walk_forward.least_rows} rows by {end}")
        trained.append(Trained(path, panel.horizon, loss, str(end), tuple(float(x) for x in made.fit.training_loss)))  # type: ignore[arg-type]
    return trained
