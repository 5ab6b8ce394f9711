"""What one model's margins are worth on a set of rows: coverage, strictly consistent losses, size, calm.

Arrays are [T, K]: T windows in order of time, K series (an asset held long or short), NaN outside the rows that count.
A breach is a loss above the margin; a = 1 - level. Means over K give every series the same weight, all others every
row. Windows without a row are left out of a series, so that "the window before" is the row before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aggregator.backtest_statistics import (
    christoffersen_independence,
    christoffersen_joint,
    kupiec,
    largest_increase,
    peak_to_trough,
    traffic_light,
)

LEAST_P_VALUE = 0.05
SWING_DAYS = 30
RISE_DAYS = 5
REGIMES = 3


class Rows(NamedTuple):
    """Losses [T, K], the volatility regime of every window [T] (0 calm .. 2 wild, -1 unknown), level, windows a day."""

    loss: np.ndarray
    regime: np.ndarray
    level: float
    windows_per_day: int


class Metrics(NamedTuple):
    """In the order in which they are printed; NaN where nothing can be said (no breach, series too short).

    - cover: share of rows without a breach; kup_ok, chr_ok, cc_ok: share of series whose Kupiec, Christoffersen and
      joint p-values are at least 5 %; cov_lo, cov_md, cov_hi: coverage by regime
    - pin_bp: mean pinball loss in basis points; pin_n: mean over series of pinball loss over that of the series' own
      constant quantile in hindsight; fz0: mean Fissler-Ziegel loss
    - margin: mean rate; m_cov: the same after the one factor that makes coverage right
    - breach: mean of loss/margin - 1 over breaches; clus: P(breach after a breach)/a
    - dlog: mean over series of the standard deviation of log changes; p2t30, p2t: medians over series of the largest
      max/min within 30 days and of all; up5: of the largest rise over 5 days
    - green: mean over series of the share of 250-row windows in the green zone
    """

    cover: float
    kup_ok: float
    chr_ok: float
    cc_ok: float
    cov_lo: float
    cov_md: float
    cov_hi: float
    pin_bp: float
    pin_n: float
    fz0: float
    margin: float
    m_cov: float
    breach: float
    clus: float
    dlog: float
    p2t30: float
    p2t: float
    up5: float
    green: float


def pinball(loss: np.ndarray, margin: np.ndarray, level: float) -> np.ndarray:
    """p (l - m) above the margin, (1 - p)(m - l) below: strictly consistent for the quantile at level p."""
    return np.where(loss > margin, level * (loss - margin), (1.0 - level) * (margin - loss))


def fissler_ziegel(loss: np.ndarray, margin: np.ndarray, shortfall: np.ndarray, level: float) -> np.ndarray:
    """1(l >= m)(l - m)/(a e) + m/e + ln e - 1: strictly consistent for quantile m and expected shortfall e > 0.

    Source: T. Fissler, J. F. Ziegel, "Higher order elicitability and Osband's principle", Annals of Statistics 44
    (2016), in the zero-homogeneous form of A. J. Patton, J. F. Ziegel, R. Chen, "Dynamic semiparametric models for
    expected shortfall (and Value-at-Risk)", Journal of Econometrics 211 (2019), with losses positive.
    """
    excess = np.where(loss >= margin, loss - margin, 0.0)
    return excess / ((1.0 - level) * shortfall) + margin / shortfall + np.log(shortfall) - 1.0


def constant_pinball(loss: np.ndarray, level: float) -> np.ndarray:
    """Mean pinball loss of the constant that was best in hindsight, per series [K]; NaN for a series without rows."""
    found = np.full(loss.shape[1], np.nan)
    for column, series in enumerate(loss.T):
        own = series[np.isfinite(series)]
        if len(own):
            found[column] = np.mean(pinball(own, np.quantile(own, level), level))
    return found


def metrics(rows: Rows, margin: np.ndarray, shortfall: np.ndarray) -> Metrics:
    """All figures of one model; margins and shortfalls [T, K] are finite where `rows.loss` is."""
    loss, level = rows.loss, rows.level
    there = np.isfinite(loss)
    breached = there & (loss > margin)
    pinballs = np.where(there, pinball(loss, margin, level), np.nan)
    count, breaches = int(there.sum()), int(breached.sum())
    by_regime = []
    for number in range(REGIMES):
        of_regime = there & (rows.regime == number)[:, None]
        by_regime.append(1.0 - float(breached[of_regime].mean()) if of_regime.any() else np.nan)
    cov_lo, cov_md, cov_hi = by_regime
    own = _each_series(rows, margin)
    scaled = _mean_of_columns(pinballs) / constant_pinball(loss, level)
    factor = float(np.quantile(loss[there] / margin[there], level))
    mean_margin = float(margin[there].mean())
    return Metrics(
        cover=1.0 - breaches / count,
        kup_ok=own.kupiec,
        chr_ok=own.independence,
        cc_ok=own.joint,
        cov_lo=cov_lo,
        cov_md=cov_md,
        cov_hi=cov_hi,
        pin_bp=float(np.nanmean(pinballs)) * 1e4,
        pin_n=float(np.nanmean(scaled)),
        fz0=float(np.mean(fissler_ziegel(loss[there], margin[there], shortfall[there], level))),
        margin=mean_margin,
        m_cov=mean_margin * factor,
        breach=float(np.mean(loss[breached] / margin[breached] - 1.0)) if breaches else np.nan,
        clus=own.clustering,
        dlog=own.log_change,
        p2t30=own.swing,
        p2t=own.range,
        up5=own.rise,
        green=own.green,
    )


class _Series(NamedTuple):
    """Figures that are made series by series."""

    kupiec: float
    independence: float
    joint: float
    clustering: float
    log_change: float
    swing: float
    range: float
    rise: float
    green: float


def _each_series(rows: Rows, margin: np.ndarray) -> _Series:
    level, per_day = rows.level, rows.windows_per_day
    kupiecs, independences, joints, greens = [], [], [], []
    log_changes, swings, ranges, rises = [], [], [], []
    after, again = 0, 0
    for column in range(rows.loss.shape[1]):
        there = np.isfinite(rows.loss[:, column])
        if there.sum() < 2:
            continue
        rates = margin[there, column]
        hits = rows.loss[there, column] > rates
        kupiecs.append(kupiec(int(hits.sum()), len(hits), confidence=level).p_value >= LEAST_P_VALUE)
        independences.append(christoffersen_independence(hits).p_value >= LEAST_P_VALUE)
        joints.append(christoffersen_joint(hits, confidence=level).p_value >= LEAST_P_VALUE)
        zones = traffic_light(hits, confidence=level)
        if zones is not None:
            greens.append(zones.green)
        log_changes.append(float(np.std(np.diff(np.log(rates)))))
        swings.append(peak_to_trough(rates, SWING_DAYS * per_day - 1))
        ranges.append(float(rates.max() / rates.min()))
        rises.append(largest_increase(rates, RISE_DAYS * per_day))
        after += int(hits[:-1].sum())
        again += int((hits[1:] & hits[:-1]).sum())
    return _Series(
        kupiec=_mean(kupiecs),
        independence=_mean(independences),
        joint=_mean(joints),
        clustering=again / after / (1.0 - level) if after else np.nan,
        log_change=_mean(log_changes),
        swing=_median(swings),
        range=_median(ranges),
        rise=_median(rises),
        green=_mean(greens),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else np.nan


def _mean_of_columns(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    return np.where(counts > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)
