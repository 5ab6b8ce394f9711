"""Sections of the calibration file by factor: margins, GARCH, jumps, regimes, liquidity, checks.

Figures are rounded here and in `calibration_laws` and `calibration_levels`, once, so that the file says exactly what
was calibrated: standard deviations and rates to four significant digits, correlations to three decimals, margins to
four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from typing import Literal, NamedTuple

import numpy as np

from .calibration.jumps import THRESHOLD, WINDOW_DAYS, jump_fit
from .calibration.liquidity import VOLUME_DAYS, amihud, invariance_spread, median_volume, wick_count
from .calibration.regimes import RegimeFit, regime_fit, state_mean_correlation, state_std, stationary_law
from .calibration.sample import Sample
from .calibration.tails import BODY_PROBABILITIES, hill, semi_parametric_law, tail_distances
from .calibration.volatility import GarchFit, garch_fit, garch_variance
from .calibration_file import (
    AssetJump,
    CommonJump,
    FactorCheck,
    Garch,
    Jumps,
    Liquidity,
    Margin,
    Regime,
    Regimes,
    TailFit,
)
from .history import ewma_volatility

_STATE_NAMES = {2: ("calm", "wild"), 3: ("calm", "ordinary", "wild")}
_GAUSSIAN_ABS_SPREAD = math.sqrt(1.0 - 2.0 / math.pi)

Filled = Literal["beta", "rule", "peg", "discount"]


def significant(value: float, digits: int = 4) -> float:
    """`value` to that many significant decimal digits."""
    return float(f"{value:.{digits}g}")


class Residuals(NamedTuple):
    """Changes over the EWMA volatility known before each [dates, columns], and the next day's standard deviation.

    `next_std` [columns] is the EWMA volatility of the next day times the root mean square of the residuals. An average
    of past squares lags behind when volatility rises, so that residuals over it have more than unit size (1.08 for BTC,
    1.05 for ETH, 2020 to 2024-06-29); a margin of variance 1 on the plain volatility is too small by that factor.
    """

    values: np.ndarray
    next_std: np.ndarray


def standardised(changes: np.ndarray, *, decay: float, floor_fraction: float) -> Residuals:
    """Residuals of daily changes [dates, columns] under the project's EWMA volatility with its floor."""
    volatility = ewma_volatility(changes, decay=decay, floor_fraction=floor_fraction)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(volatility[:-1] > 0.0, changes / volatility[:-1], np.nan)
    present = np.isfinite(values)
    # a column without a residual keeps NaN, and is refused for its length before anyone asks for it
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.sqrt(np.where(present, values**2, 0.0).sum(axis=0) / present.sum(axis=0))
    return Residuals(values, volatility[-1] * size)


class FactorFits(NamedTuple):
    """Margin and GARCH of one factor, and checks of them: Hill and Kolmogorov-Smirnov, left and right, persistence."""

    margin: Margin
    garch: Garch
    hill: tuple[float, float]
    distance: tuple[float, float]
    persistence: float


def factor_fits(changes: np.ndarray, residuals: np.ndarray) -> FactorFits:
    """Fits of one factor's daily changes [dates] and its standardised residuals [dates]; ValueError with too few."""
    law = semi_parametric_law(residuals)
    quantiles = tuple(round(float(value), 4) for value in law.quantiles)
    margin = Margin(
        quantiles=quantiles,
        lower=TailFit(
            threshold=quantiles[0],
            shape=round(law.lower.shape, 4),
            scale=round(law.lower.scale, 4),
            exceedances=law.lower.exceedances,
        ),
        upper=TailFit(
            threshold=quantiles[-1],
            shape=round(law.upper.shape, 4),
            scale=round(law.upper.scale, 4),
            exceedances=law.upper.exceedances,
        ),
    )
    fit = garch_fit(changes)
    sample = changes[np.isfinite(changes)]
    return FactorFits(
        margin,
        _garch_section(fit, sample),
        (hill(-residuals), hill(residuals)),
        tail_distances(residuals, law),
        fit.persistence,
    )


def _garch_section(fit: GarchFit, sample: np.ndarray) -> Garch:
    variance = garch_variance(
        sample, omega=fit.omega, alpha=fit.alpha, gamma=fit.gamma, beta=fit.beta, start=float(np.mean(sample**2))
    )
    alpha = round(fit.alpha, 4)
    return Garch(
        form="gjr" if fit.form == "gjr" else "garch",
        omega=significant(fit.omega),
        alpha=alpha,
        gamma=max(round(fit.gamma, 4), -alpha),
        beta=round(fit.beta, 4),
        daily_std_next=significant(math.sqrt(variance[-1])),
        daily_std_long_run=significant(math.sqrt(fit.long_run_variance)),
        days=fit.returns,
    )


def factor_check(sample: Sample, column: int, fits: FactorFits) -> FactorCheck:
    """Checks of the price factor in a column of the sample."""
    returns = sample.returns[:, column]
    present = np.isfinite(returns)
    opens, highs, lows, closes = sample.bars[:, :, column]
    return FactorCheck(
        market=sample.markets[column],
        first_date=date_of(sample.dates[present][0]),
        last_date=date_of(sample.dates[present][-1]),
        days=int(present.sum()),
        filled_share=round(1.0 - float(present.mean()), 4),
        wicks=wick_count(opens, highs, lows, closes, daily_std=float(np.std(returns[present]))),
        hill_left=round(fits.hill[0], 2),
        hill_right=round(fits.hill[1], 2),
        ks_left=round(fits.distance[0], 3),
        ks_right=round(fits.distance[1], 3),
        garch_persistence=round(fits.persistence, 4),
    )


# ---- jumps, regimes, liquidity --------------------------------------------------------------------------------------


def jumps_section(sample: Sample) -> Jumps:
    """Common and own jumps of the price factors."""
    fit = jump_fit(sample.returns)
    return Jumps(
        threshold=THRESHOLD,
        window_days=WINDOW_DAYS,
        common=CommonJump(
            per_year=significant(fit.common_per_year, 3),
            mean=significant(fit.common_mean, 3),
            std=significant(fit.common_std, 3),
            events=len(fit.common_dates),
        ),
        assets={
            f"price:{asset}": AssetJump(
                beta=significant(float(fit.beta[i]), 3),
                per_year=significant(float(fit.own_per_year[i]), 3),
                mean=significant(float(fit.own_mean[i]), 3),
                std=significant(float(fit.own_std[i]), 3),
                diffusive_std=significant(float(fit.diffusive_std[i])),
                events=int(fit.own_events[i]),
                pooled=bool(fit.pooled[i]),
            )
            for i, asset in enumerate(sample.assets)
        },
    )


def regimes_section(sample: Sample, anchors: Sequence[str]) -> Regimes:
    """Hidden states of the anchors' mean return, two of them or three, and what the factors do in each."""
    columns = [sample.assets.index(anchor) for anchor in anchors]
    market = sample.returns[:, columns].mean(axis=1)
    fits = {states: regime_fit(market, states) for states in (2, 3)}
    fit = min(fits.values(), key=lambda candidate: candidate.bic)
    whole = float(np.sqrt(np.mean(market**2)))
    stds = _state_stds(sample.returns, fit, market)
    long = np.isfinite(sample.returns).mean(axis=0) >= 0.9
    rows = np.isfinite(sample.returns[:, long]).all(axis=1)
    means = state_mean_correlation(sample.returns[rows][:, long], fit.smoothed[rows])
    return Regimes(
        states=tuple(
            Regime(
                name=name,
                mean=significant(float(fit.means[k]), 3),
                market_std=significant(float(fit.stds[k])),
                std_multiplier=significant(float(fit.stds[k]) / whole, 3),
                mean_correlation=round(float(means[k]), 3),
                daily_std={f"price:{asset}": significant(float(stds[i, k])) for i, asset in enumerate(sample.assets)},
            )
            for k, name in enumerate(_STATE_NAMES[len(fit.means)])
        ),
        transition=tuple(_shares(row) for row in fit.transition),
        filtered=_shares(fit.filtered[-1]),
        stationary=_shares(stationary_law(fit.transition)),
        bic={str(states): round(candidate.bic, 1) for states, candidate in fits.items()},
    )


def _state_stds(returns: np.ndarray, fit: RegimeFit, market: np.ndarray) -> np.ndarray:
    """Standard deviations [assets, states]; where an asset saw too little of a state, in the market's proportion."""
    stds = state_std(returns, fit.smoothed)
    for i in range(returns.shape[1]):
        present = np.isfinite(returns[:, i])
        ratio = float(np.sqrt(np.mean(returns[present, i] ** 2) / np.mean(market[present] ** 2)))
        size = np.sqrt(fit.stds**2 + fit.means**2)
        stds[i] = np.where(np.isfinite(stds[i]), stds[i], ratio * size)
    return stds


def _shares(row: np.ndarray) -> tuple[float, ...]:
    """Probabilities to six decimals that still add up to 1."""
    rounded = [round(float(value), 6) for value in row]
    largest = int(np.argmax(rounded))
    rounded[largest] = round(1.0 - sum(value for k, value in enumerate(rounded) if k != largest), 6)
    return tuple(rounded)


def liquidity_section(sample: Sample, column: int, daily_std: float) -> Liquidity:
    """Depth proxies of the asset in a column; ValueError without volume in the last 30 days."""
    volume = sample.volume_usd[-VOLUME_DAYS:, column]
    adv = median_volume(volume)
    return Liquidity(
        adv_usd=significant(adv),
        daily_std=significant(daily_std),
        spread=significant(invariance_spread(daily_std, adv), 2),
        amihud=significant(amihud(sample.returns[-VOLUME_DAYS:, column], volume), 3),
        days=int(np.count_nonzero(volume > 0.0)),
        market=sample.markets[column],
        assumed=("spread",),
    )


def margin_grid() -> tuple[float, ...]:
    """Probabilities of the body quantiles of every margin."""
    return BODY_PROBABILITIES


def date_of(day: np.datetime64) -> date:
    """The calendar date of a day of the panel."""
    return date.fromisoformat(str(day.astype("datetime64[D]")))
