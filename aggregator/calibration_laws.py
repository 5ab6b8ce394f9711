"""Laws of the calibration file: the current one and those of stressed windows, and the implied volatility rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Literal, NamedTuple

import numpy as np

from .calibration.dependence import NU_GRID, CopulaFit, copula_fit, rank_correlation, regular_correlation, spectrum
from .calibration.laws import rule_std, window_price_law, with_rule_vols
from .calibration.sample import MAXIMUM_AGE_DAYS, Sample
from .calibration.vol_rule import VolRule, vol_rule_fit
from .calibration_file import Law, VolRuleFit
from .calibration_sections import Residuals, date_of, significant

_GAUSSIAN_ABS_SPREAD = math.sqrt(1.0 - 2.0 / math.pi)

Filled = Literal["beta", "rule", "peg", "discount"]


# ---- implied volatilities -------------------------------------------------------------------------------------------


class VolFactor(NamedTuple):
    """One implied volatility factor: its rule, and its changes [dates] when they are a history of its own."""

    asset: str
    rule: VolRule
    changes: np.ndarray | None
    lender: str


def vol_factors(sample: Sample, vols: Sequence[str], *, minimum_days: int) -> tuple[VolFactor, ...]:
    """Factors of the underlyings that have a price; without own history with the rule of the first that has one.

    Empty when none has a history.
    """
    wanted = [asset for asset in dict.fromkeys(vols) if asset in sample.assets]
    own: dict[str, VolRule] = {}
    for asset in wanted:
        changes = sample.vol_changes.get(asset)
        if changes is None:
            continue
        present = np.flatnonzero(np.isfinite(changes))
        if len(present) < minimum_days:
            continue
        if (sample.dates[-1] - sample.dates[present[-1]]).astype(np.int64) > MAXIMUM_AGE_DAYS:
            continue
        own[asset] = vol_rule_fit(changes, sample.returns[:, sample.assets.index(asset)])
    if not own:
        return ()
    lender = next(iter(own))
    return tuple(
        VolFactor(asset, own[asset], sample.vol_changes[asset], "")
        if asset in own
        else VolFactor(asset, own[lender], None, lender)
        for asset in wanted
    )


def vol_rule_section(factor: VolFactor, *, skew_tilt: float) -> VolRuleFit:
    """The rule of one factor; a borrowed rule is assumed as a whole."""
    rule = factor.rule
    return VolRuleFit(
        beta=significant(rule.beta, 3),
        beta_abs=significant(rule.beta_abs, 3),
        mean_abs=significant(rule.mean_abs),
        eta=significant(rule.eta),
        beta_linear=significant(rule.beta_linear, 3),
        eta_linear=significant(rule.eta_linear),
        r_squared=round(rule.r_squared, 4),
        r_squared_linear=round(rule.r_squared_linear, 4),
        skew_tilt=skew_tilt,
        days=rule.days,
        borrowed_from=factor.lender,
        assumed=("skew_tilt", "beta", "beta_abs", "eta", "beta_linear", "eta_linear")
        if factor.lender
        else ("skew_tilt",),
    )


# ---- laws -----------------------------------------------------------------------------------------------------------


class LawResult(NamedTuple):
    """A law with its checks: spectrum of prices and vols, log-likelihood profile of the copula, largest repair."""

    law: Law
    spectrum: tuple[float, ...]
    profile: dict[str, float]
    repair: float


def current_law(
    sample: Sample,
    vols: Sequence[VolFactor],
    fixed: Mapping[str, tuple[float, Filled]],
    *,
    prices: Residuals,
    vol_residuals: Mapping[str, Residuals],
    correlation_days: int,
    copula_assets: int,
) -> LawResult:
    """The law at the end of the sample: EWMA standard deviations, rank correlations of residuals of the last days.

    `fixed` are factors (pegs, discounts) with a standard deviation of their own and no correlation.
    """
    count = len(sample.assets)
    recent = slice(-correlation_days, None)
    own = [vol for vol in vols if vol.changes is not None]
    columns = [prices.values[recent], *(vol_residuals[vol.asset].values[recent] for vol in own)]
    measured = rank_correlation(np.concatenate([columns[0], *columns[1:]], axis=1))
    observed = np.full((len(vols), count + len(vols)), np.nan)
    own_price = np.zeros(len(vols))
    rows = [i for i, vol in enumerate(vols) if vol.changes is not None]
    where = [*range(count), *(count + i for i in rows)]
    for k, i in enumerate(rows):
        observed[i, where] = measured[count + k]
        own_price[i] = measured[count + k, sample.assets.index(vols[i].asset)]
    lent = {vols[i].asset: own_price[i] for i in rows}
    for i, vol in enumerate(vols):
        if vol.changes is None:
            own_price[i] = lent[vol.lender]
    underlyings = [sample.assets.index(vol.asset) for vol in vols]
    correlation = with_rule_vols(measured[:count, :count], observed, underlyings, own_price)
    std = {f"price:{asset}": float(prices.next_std[i]) for i, asset in enumerate(sample.assets)}
    filled: dict[str, Filled] = {}
    for vol in vols:
        std[f"vol:{vol.asset}"] = float(vol_residuals[vol.lender or vol.asset].next_std[0])
        if vol.changes is None:
            filled[f"vol:{vol.asset}"] = "rule"
    copula = _copula(prices.values[recent], sample, recent, copula_assets)
    return _law(sample.dates[recent], std, correlation, filled, fixed, copula)


def stressed_law(
    sample: Sample,
    vols: Sequence[VolFactor],
    fixed: Mapping[str, tuple[float, Filled]],
    *,
    first: date,
    last: date,
    anchors: Sequence[str],
    copula_assets: int,
) -> LawResult:
    """The law of the returns within the dates first..last, with beta-filled prices and rule-filled volatilities.

    ValueError when the window holds fewer than 200 dates of the sample.
    """
    inside = np.flatnonzero((sample.dates >= np.datetime64(first)) & (sample.dates <= np.datetime64(last)))
    if len(inside) < 200:
        raise ValueError(f"holds {len(inside)} dates of the sample; at least 200 are needed")
    rows = slice(int(inside[0]), int(inside[-1]) + 1)
    window = sample.returns[rows]
    columns = [sample.assets.index(anchor) for anchor in anchors]
    prices = window_price_law(window, sample.returns, columns)
    lead = window[:, columns[0]]
    abs_spread = float(np.std(np.abs(lead)) / np.sqrt(np.mean(lead**2))) or _GAUSSIAN_ABS_SPREAD
    std = {f"price:{asset}": float(prices.std[i]) for i, asset in enumerate(sample.assets)}
    filled: dict[str, Filled] = {f"price:{asset}": "beta" for i, asset in enumerate(sample.assets) if prices.filled[i]}
    count = len(sample.assets)
    observed = np.full((len(vols), count + len(vols)), np.nan)
    own_price = np.zeros(len(vols))
    underlyings = [sample.assets.index(vol.asset) for vol in vols]
    for i, vol in enumerate(vols):
        changes = None if vol.changes is None else vol.changes[rows]
        if changes is not None and np.isfinite(changes).mean() >= 0.9:
            std[f"vol:{vol.asset}"] = float(np.sqrt(np.nanmean(changes**2)))
            both = rank_correlation(np.column_stack([window, changes]))[-1, :count]
            observed[i, :count] = both
            own_price[i] = both[underlyings[i]]
            continue
        size = rule_std(vol.rule, float(prices.std[underlyings[i]]), abs_spread)
        std[f"vol:{vol.asset}"] = size
        own_price[i] = vol.rule.beta * prices.std[underlyings[i]] / size
        filled[f"vol:{vol.asset}"] = "rule"
    correlation = with_rule_vols(prices.correlation, observed, underlyings, own_price)
    copula = _copula(window, sample, rows, copula_assets)
    return _law(sample.dates[rows], std, correlation, filled, fixed, copula)


def _copula(values: np.ndarray, sample: Sample, rows: slice, count: int) -> CopulaFit:
    """Fit on the `count` assets of largest volume among those without a gap in the rows."""
    complete = np.isfinite(values).mean(axis=0) >= 0.99
    traded = np.array([float(np.nanmedian(v)) if np.isfinite(v).any() else 0.0 for v in sample.volume_usd[rows].T])
    ranked = [int(i) for i in np.argsort(-traded, kind="stable") if complete[i]][:count]
    chosen = values[:, ranked]
    return copula_fit(chosen, regular_correlation(rank_correlation(chosen)))


def _law(
    dates: np.ndarray,
    std: Mapping[str, float],
    correlation: np.ndarray,
    filled: Mapping[str, Filled],
    fixed: Mapping[str, tuple[float, Filled]],
    copula: CopulaFit,
) -> LawResult:
    regular = regular_correlation(correlation)
    rounded = np.round(regular, 3)
    names = list(std)
    pairs = {f"{names[j]} | {names[i]}": float(rounded[i, j]) for i in range(len(names)) for j in range(i)}
    best = float(np.max(copula.log_likelihoods))
    law = Law(
        first_date=date_of(dates[0]),
        last_date=date_of(dates[-1]),
        days=len(dates),
        nu=round(copula.nu, 2),
        nu_interval=(round(copula.interval[0], 2), round(copula.interval[1], 2)),
        smallest_eigenvalue=significant(float(np.linalg.eigvalsh(rounded)[0]), 3),
        daily_std={
            **{name: significant(value) for name, value in std.items()},
            **{name: significant(value) for name, (value, _) in fixed.items()},
        },
        filled={**filled, **{name: origin for name, (_, origin) in fixed.items()}},
        correlation={pair: value for pair, value in pairs.items() if value != 0.0},
    )
    profile = {
        f"{nu:g}": round(float(value) - best, 1) for nu, value in zip(NU_GRID, copula.log_likelihoods, strict=True)
    }
    shares = tuple(round(share, 3) for share in spectrum(rounded))
    return LawResult(law, shares, profile, round(float(np.max(np.abs(regular - correlation))), 3))
