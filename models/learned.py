"""The learned margin: networks and a classical member mixed, guarded, and the published tiers made of it.

Rates are natural logarithms, [openings, assets, sides (long, short), levels]; an opening's rates use nothing that was
not known at it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from aggregator.errors import ConfigurationError

from .checkpoint import SUFFIX, Header, read_checkpoint, read_header
from .classical_margin import SIDES, TailRates, classical_rates
from .coverage_guard import coverage_factor
from .features import FeaturePanel, feature_panel, windows_per_day
from .market_history import NOTHING, Loss, MarketHistory, Windows, losses
from .market_history import windows as market_windows
from .offset_windows import OffsetWindows
from .published_tiers import aimed, bounded, on_grid
from .tier_model_settings import Mixture, TierModelSettings
from .training import Fit
from .walk_forward import DAY, Progress, network_rates, rates_of_fit, refit_dates

LARGEST_LONG_RATE = 0.9999
"""Of a long position, 1 bp below its notional: from there on the loss in logarithms has no end."""


class LearnedRates(NamedTuple):
    """`learned` as it is forecast, `published` on the grid; NaN outside the period and where there is no window."""

    learned: TailRates
    published: TailRates


def learned_rates(
    panel: FeaturePanel,
    windows: Windows,
    loss: Loss,
    settings: TierModelSettings,
    *,
    start: np.datetime64,
    end: np.datetime64,
    offsets: OffsetWindows | None = None,
    assets: frozenset[str] | None = None,
    checkpoints: Path | None = None,
    source: str = "",
    progress: Progress | None = None,
) -> LearnedRates:
    """Walk-forward rates at every opening of [start, end) at which an asset has a window, cold starts included.

    Before the first refit the classical member stands alone. The walk begins as long before `start` as the guard and
    the smoothing look back.
    """
    per_day = windows_per_day(panel.horizon)
    look_back = max(settings.guard.window_days, settings.published.warm_up_days) * DAY
    classical = classical_rates(
        panel,
        windows,
        loss,
        levels=settings.network.levels,
        settings=settings.classical,
        refits=refit_dates(panel.opening, settings.walk_forward.months),
    )
    (varied, plain), rows = network_rates(
        panel,
        windows,
        loss,
        settings,
        start=start - look_back,
        end=end,
        with_calendar=(True, False),
        offsets=offsets,
        assets=assets,
        checkpoints=checkpoints,
        source=source,
        progress=progress,
    )
    there = np.concatenate([windows.market != NOTHING, np.ones((1, len(panel.assets)), dtype=bool)])
    there &= ((panel.opening >= start - look_back) & (panel.opening < end))[:, None]
    log_loss = guarded_losses(panel, windows, loss, settings)
    learned = mixed(varied, classical, network_weight(rows, settings.mixture), there)
    calm = mixed(plain, classical, network_weight(rows, settings.mixture), there)
    by_network = np.isfinite(varied.log_margin[..., 0])
    learned = _guarded(learned, by_network, log_loss, settings, per_day, settings.guard.strength)
    published = _published(calm, by_network, log_loss, settings, per_day)
    outside = ~(panel.opening >= start)
    for rates in (learned, published):
        for values in rates:
            values[outside] = np.nan
    return LearnedRates(learned, published)


def guarded_losses(panel: FeaturePanel, windows: Windows, loss: Loss, settings: TierModelSettings) -> np.ndarray:
    """Log losses [windows, assets, sides] that the guard looks at: -inf for a gain, NaN if unknown or of a peg."""
    scale = np.exp(panel.anchor[:-1]) * windows_per_day(panel.horizon) ** 0.5
    both = np.stack([losses(windows, side, loss) for side in SIDES], axis=-1)
    known = np.isfinite(both) & (scale >= settings.training.smallest_volatility)[:, :, None]
    positive = both > 0.0
    return np.where(known, np.where(positive, np.log(np.where(positive, both, 1.0)), -np.inf), np.nan)


def network_weight(rows: np.ndarray, settings: Mixture) -> np.ndarray:
    """Share of the networks [openings] when they were trained on `rows` [openings]: it grows with what they saw."""
    return settings.network * rows / np.maximum(rows + settings.credible_rows, 1.0)


def mixed(networks: TailRates, classical: TailRates, weight: np.ndarray, there: np.ndarray) -> TailRates:
    """Geometric mean of margins, and of shortfalls, `weight` [openings] on the networks; classical without them."""
    share = weight[:, None, None, None]
    pairs = []
    for learned, other in zip(networks, classical, strict=True):
        both = np.where(np.isfinite(learned), share * np.nan_to_num(learned) + (1.0 - share) * other, other)
        pairs.append(np.where(there[:, :, None, None], both, np.nan))
    return TailRates(*pairs)


def guard_log_factors(
    log_margin: np.ndarray,
    by_network: np.ndarray,
    log_loss: np.ndarray,
    settings: TierModelSettings,
    per_day: float,
    strength: float,
) -> np.ndarray:
    """Log factor of every opening and level, measured where networks made the rates."""
    factors = []
    for place, level in enumerate(settings.network.levels):
        ratio = np.where(by_network[:-1], log_loss - log_margin[:-1, ..., place], np.nan)
        factor = coverage_factor(
            ratio.reshape(len(ratio), -1),
            level=level,
            windows_per_day=per_day,
            settings=settings.guard,
            strength=strength,
        )
        factors.append(factor)
    return np.stack(factors, axis=-1)


def _guarded(
    rates: TailRates,
    by_network: np.ndarray,
    log_loss: np.ndarray,
    settings: TierModelSettings,
    per_day: float,
    strength: float,
) -> TailRates:
    """Every level times its factor, kept in order."""
    factors = guard_log_factors(rates.log_margin, by_network, log_loss, settings, per_day, strength)
    added = np.where(by_network[..., None], factors[:, None, None, :], 0.0)
    margin = np.maximum.accumulate(rates.log_margin + added, axis=-1)
    return losable(TailRates(margin, np.maximum(rates.log_shortfall + added, margin)))


def losable(rates: TailRates) -> TailRates:
    """Rates [..., sides, levels] of long positions at most `LARGEST_LONG_RATE`: a price falls by no more than itself.

    What is there of a network far from all that it was trained on may be larger; such a rate would be no rate to a
    ladder of tiers, and the market that collapses would be the one left as it is.
    """
    ceiling = np.full((len(SIDES), 1), np.inf)
    ceiling[SIDES.index("long")] = np.log(LARGEST_LONG_RATE)
    return TailRates(*(np.minimum(values, ceiling) for values in rates))


def _published(
    calm: TailRates, by_network: np.ndarray, log_loss: np.ndarray, settings: TierModelSettings, per_day: float
) -> TailRates:
    """Smoothed, brought back to its coverage, bounded, on the grid; the shortfall keeps its ratio to the margin."""
    shape = calm.log_margin.shape
    figures = settings.published

    def in_columns(values: np.ndarray) -> np.ndarray:
        return values.reshape(shape[0], -1)

    slow = (aimed(in_columns(values), windows_per_day=per_day, settings=figures).reshape(shape) for values in calm)
    held = _guarded(TailRates(*slow), by_network, log_loss, settings, per_day, figures.guard_strength)
    kept = bounded(
        in_columns(held.log_margin), in_columns(calm.log_margin), windows_per_day=per_day, settings=figures
    ).reshape(shape)
    rate = np.maximum.accumulate(on_grid(np.exp(kept)), axis=-1)
    ratio = held.log_shortfall - held.log_margin
    return TailRates(np.log(rate), np.log(rate) + ratio)


class UsedFit(NamedTuple):
    """A fit, the date from which it is in use, and the number of rows that it was trained on."""

    date: np.datetime64
    rows: int
    fit: Fit


class PreparedModel(NamedTuple):
    """A trained model over a history, from which its newest rates and the monitoring of its past ones are made.

    `earlier` are the refits that lie beside the checkpoint, oldest first, all older than it.
    """

    header: Header
    newest: UsedFit
    earlier: tuple[UsedFit, ...]
    panel: FeaturePanel
    windows: Windows
    classical: TailRates


def prepared_model(history: MarketHistory, checkpoint: Path, *, settings: TierModelSettings) -> PreparedModel:
    """The model of `checkpoint` over a history; errors as in `read_checkpoint`, also for the refits beside it.

    Refits beside `1d_adverse.tail` are `1d_adverse_2024-01-01.tail` and the like, as a walk-forward keeps them.
    """
    header = read_header(checkpoint)
    windows_of = market_windows(history, header.horizon)
    panel = feature_panel(history, header.horizon, windows_of)
    fits = []
    for path in (*sorted(checkpoint.parent.glob(f"{checkpoint.stem}_*{SUFFIX}")), checkpoint):
        found, made = read_checkpoint(path, inputs=panel.names)
        if (found.horizon, found.loss, found.network.levels) != (header.horizon, header.loss, header.network.levels):
            raise ConfigurationError(f"{path.name} is no earlier fit of {checkpoint.name}")
        fits.append(UsedFit(np.datetime64(found.refit), found.rows, made))
    classical = classical_rates(
        panel,
        windows_of,
        header.loss,
        levels=header.network.levels,
        settings=settings.classical,
        refits=refit_dates(panel.opening, settings.walk_forward.months),
    )
    earlier = tuple(one for one in fits[:-1] if one.date < fits[-1].date)
    return PreparedModel(header, fits[-1], earlier, panel, windows_of, classical)


class LatestRates(NamedTuple):
    """Rates as fractions for the window after the history, [assets, sides (long, short), levels].

    `finite` [assets]: whether the networks had an answer. `classical_margin` and `classical_shortfall` are those of the
    classical member alone, what the rates fall back on.
    """

    opening: np.datetime64
    assets: tuple[str, ...]
    levels: tuple[float, ...]
    margin: np.ndarray
    shortfall: np.ndarray
    finite: np.ndarray
    classical_margin: np.ndarray
    classical_shortfall: np.ndarray


def latest_rates(
    history: MarketHistory, checkpoint: Path, *, settings: TierModelSettings, with_calendar: bool = False
) -> LatestRates:
    """`rates_now` of the model of `checkpoint` over a history; errors as in `prepared_model`."""
    return rates_now(prepared_model(history, checkpoint, settings=settings), settings, with_calendar=with_calendar)


def rates_now(made: PreparedModel, settings: TierModelSettings, *, with_calendar: bool = False) -> LatestRates:
    """Rates of a trained model for the window that opens when the history ends; finite for every asset.

    Horizon, loss, levels and guard are those of the checkpoint; a tier that is to stay in force takes the calendar at
    its mean. An asset whose data is older than three days gets the wide margin.
    """
    panel, header = made.panel, made.header
    last = np.full(len(panel.assets), len(panel.opening) - 1)
    fit, assets = made.newest.fit, np.arange(len(last))
    sides = [rates_of_fit(fit, panel, side, last, assets, with_calendar=with_calendar) for side in SIDES]
    networks = TailRates(*(np.stack(values, axis=1)[None] for values in zip(*sides, strict=True)))
    classical = TailRates(*(values[-1:] for values in made.classical))
    both = mixed(
        networks,
        classical,
        network_weight(np.array([float(header.rows)]), settings.mixture),
        np.ones((1, len(last)), dtype=bool),
    )
    added = np.array(header.guard_log_factors or np.zeros(len(header.network.levels)))
    margin = np.maximum.accumulate(both.log_margin[0] + added, axis=-1)
    margin, shortfall = losable(TailRates(margin, np.maximum(both.log_shortfall[0] + added, margin)))
    alone = np.maximum.accumulate(classical.log_margin[0], axis=-1)
    return LatestRates(
        panel.opening[-1],
        panel.assets,
        header.network.levels,
        np.exp(margin),
        np.exp(shortfall),
        np.isfinite(networks.log_margin[0]).all(axis=(1, 2)) & np.isfinite(networks.log_shortfall[0]).all(axis=(1, 2)),
        np.exp(alone),
        np.exp(np.maximum(classical.log_shortfall[0], alone)),
    )
