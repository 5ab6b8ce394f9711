"""How often margins of the model in use held over the last days: exceptions by level, for groups and single assets.

Every window is held against the fit that was in use when it opened: the checkpoint from its own date on, before it the
earlier fits that lie beside it. What is older than all of them is held against the oldest, which has seen it: such
windows are counted apart.

Exceptions come on the same days for all assets, so a plain Kupiec test of pooled windows would refuse any model. Its
statistic is divided by the design effect, the variance of the daily counts over that of independent windows: J. N. K.
Rao, A. J. Scott, "The analysis of categorical data from complex sample surveys", Journal of the American Statistical
Association 76 (1981).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import binom, chi2

from aggregator.backtest_statistics import kupiec

from .classical_margin import SIDES, TailRates
from .features import windows_per_day
from .forecast_scores import asset_groups
from .learned import PreparedModel, guard_log_factors, guarded_losses, mixed, network_weight
from .market_history import NOTHING
from .tier_model_settings import TierModelSettings
from .walk_forward import rates_of_fit

ALL = "all"
"""The group of every asset but the pegged ones, which no network was trained on."""


class Coverage(NamedTuple):
    """Windows (of both sides) and exceptions of one group and level over `days`; `known_before` of them were part of
    the training of the fit that they are held against. `p_value` of Kupiec's test with the design effect; NaN without
    windows."""

    group: str
    level: float
    days: int
    windows: int
    exceptions: int
    known_before: int
    p_value: float

    @property
    def ratio(self) -> float:
        """Exceptions over those that the level allows; NaN without windows."""
        return self.exceptions / (self.windows * (1.0 - self.level)) if self.windows else np.nan


class AssetExceptions(NamedTuple):
    """Exceptions of one asset at one level, both sides; `p_value`: as many or more, were they independent."""

    asset: str
    level: float
    days: int
    windows: int
    exceptions: int
    p_value: float


class Exceptions(NamedTuple):
    """Per window of the last days: `known` and `exceeded` [windows, assets, sides, levels], `before` [windows]: part of
    the training of the fit in use."""

    opening: np.ndarray
    assets: tuple[str, ...]
    levels: tuple[float, ...]
    known: np.ndarray
    exceeded: np.ndarray
    before: np.ndarray
    groups: dict[str, tuple[str, ...]]


def recent_exceptions(made: PreparedModel, settings: TierModelSettings, *, days: int) -> Exceptions:
    """Exceptions of the windows of the last `days` that are over, by the rates that tiers are made of."""
    panel, levels = made.panel, made.header.network.levels
    step = panel.opening[-1] - panel.opening[-2]
    first = panel.opening[-1] - np.timedelta64(days, "D")
    fits = (*made.earlier, made.newest)
    shape = (*panel.anchor.shape, len(SIDES), len(levels))
    networks = TailRates(np.full(shape, np.nan), np.full(shape, np.nan))
    rows = np.zeros(len(panel.opening))
    there = np.concatenate([made.windows.market != NOTHING, np.zeros((1, len(panel.assets)), dtype=bool)])
    there &= (panel.opening >= first)[:, None]
    for place, one in enumerate(fits):
        used = np.ones(len(panel.opening), dtype=bool) if place == 0 else panel.opening >= one.date
        if place + 1 < len(fits):
            used &= panel.opening < fits[place + 1].date
        rows[used] = one.rows
        time, asset = np.nonzero(there & used[:, None])
        for number, side in enumerate(SIDES):
            rates = rates_of_fit(one.fit, panel, side, time, asset, with_calendar=False)
            networks.log_margin[time, asset, number] = rates.log_margin
            networks.log_shortfall[time, asset, number] = rates.log_shortfall
    log_margin = mixed(networks, made.classical, network_weight(rows, settings.mixture), there).log_margin
    log_loss = guarded_losses(panel, made.windows, made.header.loss, settings)
    log_margin = log_margin + _guard(made, log_margin, np.isfinite(networks.log_margin[..., 0]), log_loss, settings)
    log_margin = np.maximum.accumulate(log_margin, axis=-1)[:-1]
    inside = panel.opening[:-1] >= first
    known = np.isfinite(log_margin) & ~np.isnan(log_loss)[..., None]
    return Exceptions(
        panel.opening[:-1][inside],
        panel.assets,
        levels,
        known[inside],
        (known & (log_loss[..., None] > log_margin))[inside],
        (panel.opening[:-1] + step <= fits[0].date)[inside],
        asset_groups(made.windows),
    )


def _guard(
    made: PreparedModel,
    log_margin: np.ndarray,
    by_network: np.ndarray,
    log_loss: np.ndarray,
    settings: TierModelSettings,
) -> np.ndarray:
    """Log factors [openings, 1, 1, levels]: the checkpoint's from its date on, before it what was known at the time."""
    levels = made.header.network.levels
    in_use = np.array(made.header.guard_log_factors or np.zeros(len(levels)))
    if not made.earlier:
        return np.broadcast_to(in_use, (len(log_margin), 1, 1, len(levels)))
    per_day = windows_per_day(made.header.horizon)
    walked = guard_log_factors(log_margin, by_network, log_loss, settings, per_day, settings.guard.strength)
    since = made.panel.opening >= made.newest.date
    return np.where(since[:, None], in_use, walked)[:, None, None, :]


def group_coverage(found: Exceptions, *, days: int) -> list[Coverage]:
    """Coverage of all assets, and of every group that has windows, at every level over the last `days`."""
    recent = _recent(found, days)
    # A group of every asset would say the same twice.
    groups = {ALL: found.assets, **{name: of for name, of in found.groups.items() if 0 < len(of) < len(found.assets)}}
    rows = []
    for name, members in groups.items():
        columns = np.isin(found.assets, members)
        for place, level in enumerate(found.levels):
            known = found.known[recent, :, :, place][:, columns].sum(axis=(1, 2))
            exceeded = found.exceeded[recent, :, :, place][:, columns].sum(axis=(1, 2))
            if not known.sum():
                continue
            before = int(known[found.before[recent]].sum())
            p_value = clustered_kupiec(exceeded, known, level=level, days=_day_numbers(found.opening[recent]))
            rows.append(Coverage(name, level, days, int(known.sum()), int(exceeded.sum()), before, p_value))
    return rows


def asset_exceptions(found: Exceptions, *, level: float, days: int) -> list[AssetExceptions]:
    """Exceptions of every asset that has windows in the last `days`."""
    recent, place = _recent(found, days), found.levels.index(level)
    known = found.known[recent, :, :, place].sum(axis=(0, 2))
    exceeded = found.exceeded[recent, :, :, place].sum(axis=(0, 2))
    return [
        AssetExceptions(asset, level, days, int(n), int(x), float(binom.sf(x - 1, n, 1.0 - level)))
        for asset, n, x in zip(found.assets, known, exceeded, strict=True)
        if n
    ]


def clustered_kupiec(exceeded: np.ndarray, known: np.ndarray, *, level: float, days: np.ndarray) -> float:
    """p-value of Kupiec's test of counts per window (`exceeded` of `known`, [windows]) that cluster within `days`."""
    total, hits = int(known.sum()), int(exceeded.sum())
    surprise = np.bincount(days, exceeded - (1.0 - level) * known)
    effect = max(1.0, float(np.sum(surprise**2)) / (total * level * (1.0 - level)))
    return float(chi2.sf(kupiec(hits, total, confidence=level).statistic / effect, 1))


def _recent(found: Exceptions, days: int) -> np.ndarray:
    step = found.opening[-1] - found.opening[-2]
    return found.opening >= found.opening[-1] + step - np.timedelta64(days, "D")


def _day_numbers(opening: np.ndarray) -> np.ndarray:
    return (opening.astype("datetime64[D]") - opening[0].astype("datetime64[D]")).astype(np.int64)
