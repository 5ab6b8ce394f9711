"""From a calibration file to the generators of a run: the current law, the stressed laws, and the sizes of markets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from .calibration_file import CURRENT, CalibrationFile, Law
from .config import CalibratedFigures, Proxy
from .errors import ConfigurationError, nearest_name
from .generators.multivariate_t import multivariate_t
from .generators.t_copula import MarginLaw, ParetoTail, t_copula
from .scenarios import ScenarioGenerator, stream_number
from .sobol_points import BLOCKS, SobolDesign

_HEAVIEST_SHAPE = 0.45
"""Largest tail index of a margin made of a parametric t: above one half a law has no variance."""


class MarketFigures(NamedTuple):
    """What the file says of an asset's market: daily volume in USD, daily standard deviation, spread, basis charge."""

    daily_volume: float
    daily_vol: float
    spread: float
    basis: float | None


def calibrated_factors(file: CalibrationFile, figures: CalibratedFigures) -> tuple[str, ...]:
    """Sorted factors of a run on this file: those chosen (all, if none are) and the proxied ones.

    Every one is drawn, needed or not: dropping one would give the others other draws, and then a payload that cannot be
    read would change the figures of everybody else. Raises ConfigurationError for a factor that the file lacks.
    """
    chosen = file.factors if figures.factors is None else figures.factors
    for name in [*chosen, *(proxy.factor for proxy in figures.proxies.values())]:
        if name not in file.factors:
            raise ConfigurationError(f"factor {name!r} is not in the calibration{nearest_name(name, file.factors)}")
    return tuple(sorted({*chosen, *figures.proxies}))


def stressed_names(file: CalibrationFile, figures: CalibratedFigures) -> tuple[str, ...]:
    """The stressed laws of a run in the order of the file; ConfigurationError for one that it lacks."""
    known = [name for name in file.laws if name != CURRENT]
    for name in figures.stressed or ():
        if name not in known:
            raise ConfigurationError(f"stressed law {name!r} is not in the calibration{nearest_name(name, known)}")
    return tuple(name for name in known if figures.stressed is None or name in figures.stressed)


def calibrated_generator(
    file: CalibrationFile,
    law_name: str,
    factors: Sequence[str],
    figures: CalibratedFigures,
    *,
    seed: int,
    scenarios: int,
    horizon_days: float,
) -> ScenarioGenerator:
    """The generator of one law of the file over `factors`; `scenarios` matters to point sets alone.

    A proxied factor takes the law of its model, moved by its scale, and goes along with it.
    """
    law = file.laws[law_name]
    models = {name: figures.proxies.get(name, Proxy(factor=name)) for name in factors}
    std = {name: law.daily_std[model.factor] * model.scale for name, model in models.items()}
    correlation = _correlation(law, [models[name].factor for name in factors])
    points = _design(figures, seed, law_name, scenarios)
    if figures.law == "multivariate_t":
        return multivariate_t(
            factors, std, correlation=correlation, nu=law.nu, horizon_days=horizon_days, points=points
        )
    margins = {name: margin_of(file, model.factor) for name, model in models.items()}
    return t_copula(factors, std, margins, correlation=correlation, nu=law.nu, step_days=horizon_days, points=points)


def scenario_count(figures: CalibratedFigures, scenarios: int) -> int | None:
    """What to ask of the generator: None for a point set, which has its own number."""
    return None if figures.points == "sobol" else scenarios


def _correlation(law: Law, models: Sequence[str]) -> np.ndarray:
    distinct = tuple(dict.fromkeys(models))
    place = [distinct.index(name) for name in models]
    return law.matrix(distinct)[np.ix_(place, place)]


def _design(figures: CalibratedFigures, seed: int, law_name: str, scenarios: int) -> SobolDesign | None:
    if figures.points == "random":
        return None
    per_block = scenarios / BLOCKS
    log2_points = round(math.log2(per_block))
    if BLOCKS << log2_points != scenarios:
        low, high = BLOCKS << math.floor(math.log2(per_block)), BLOCKS << math.ceil(math.log2(per_block))
        raise ConfigurationError(
            f"{scenarios} Sobol points: the number is {BLOCKS} times a power of two, the nearest are {low} and {high}"
        )
    return SobolDesign(jax.random.fold_in(jax.random.key(seed), stream_number(f"points {law_name}")), log2_points)


def margin_of(file: CalibrationFile, factor: str) -> MarginLaw:
    """The standardised law of a factor: its own semi-parametric one, or the t of its peg or discount."""
    p = np.asarray(file.margin_probabilities)
    if factor in file.margins:
        margin = file.margins[factor]
        lower, upper = (ParetoTail(t.threshold, t.shape, t.scale) for t in (margin.lower, margin.upper))
        return MarginLaw(p, np.asarray(margin.quantiles), lower, upper)
    kind, _, name = factor.partition(":")
    figures: Mapping[str, float] = {
        **{asset: peg.nu for asset, peg in file.pegs.items()},
        **{asset: discount.nu for asset, discount in file.discounts.items()},
    }
    if kind != "peg" or name not in figures:
        raise ConfigurationError(f"the calibration has no margin, peg or discount for {factor}")
    return _student_margin(figures[name], p)


def _student_margin(nu: float, p: np.ndarray) -> MarginLaw:
    """A t law as a table: its own quantiles, and beyond them Pareto tails of the same index and density."""
    law = stats.t(nu)
    q = law.ppf(p)
    shape = min(1.0 / nu, _HEAVIEST_SHAPE)
    tail = ParetoTail(float(q[0]), shape, float(p[0] / law.pdf(q[0])))
    return MarginLaw(p, q, tail, tail._replace(threshold=float(q[-1])))


def market_figures(file: CalibrationFile) -> dict[str, MarketFigures]:
    """By price factor, for every asset whose liquidity the file knows."""
    return {
        f"price:{asset}": MarketFigures(
            found.adv_usd,
            found.daily_std,
            found.spread,
            file.basis[asset].charge if asset in file.basis else None,
        )
        for asset, found in file.liquidity.items()
    }
