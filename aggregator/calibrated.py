"""From a calibration file to the generators of a run: the current law, the stressed laws, and the sizes of markets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from .calibrated_history import HistoryTables, filtered_law
from .calibrated_overlays import jump_stress, made_by_overlays, with_overlays, with_path_overlays
from .calibration_file import CURRENT, CalibrationFile, Law
from .config import CalibratedFigures, Proxy
from .errors import ConfigurationError, nearest_name
from .generators.merton_jumps import CommonJumps, FactorJumps, merton_jumps
from .generators.mixture import Component, mixture
from .generators.multivariate_t import multivariate_t
from .generators.regime_switching import RegimeLaw, regime_switching
from .generators.t_copula import MarginLaw, ParetoTail, t_copula
from .overlays.jump_strata import JumpDesign
from .scenarios import TILE, ScenarioGenerator, stream_number
from .sobol_points import BLOCKS, SobolDesign

_DAYS_PER_YEAR = 365.0
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
    steps: int | None = None,
    tables: HistoryTables | None = None,
) -> ScenarioGenerator:
    """The generator of one law of the file over `factors` (in another order where overlays append some).

    Its own weights, where it has some, are those of `scenarios` scenarios. `horizon_days` is the length of one of
    `steps` steps of a path, which alone has marks of oracles and funding. A proxied factor takes the law of its model,
    moved by its scale, and goes along with it. `tables` are what filtered history replays. Raises ConfigurationError
    for what the file cannot give.
    """
    made = made_by_overlays(file, figures, factors)
    drawn = [name for name in factors if name not in made]
    points = _design(figures, seed, law_name, scenarios) if takes_points(figures) else None
    of = _Source(file, law_name, drawn, figures, horizon_days, points, seed, tables)
    if figures.mixture:
        base: ScenarioGenerator = mixture(
            {name: Component(weight, _LAWS[name](of)) for name, weight in figures.mixture.items()}
        )
    else:
        base = _LAWS[figures.law](of)
    design = _jump_design(figures, seed, law_name, scenarios, steps or 1)
    base = with_overlays(base, file, figures, factors, step_days=horizon_days, design=design)
    return base if steps is None else with_path_overlays(base, file, figures, factors, step_days=horizon_days)


def takes_points(figures: CalibratedFigures) -> bool:
    """Whether the scenarios are a set of Sobol points, whose number is their own."""
    return figures.points == "sobol" and not figures.mixture and figures.law in ("t_copula", "multivariate_t")


def scenario_count(generator: ScenarioGenerator, scenarios: int) -> int | None:
    """What to ask of the generator: None for one whose scenarios have weights of their own, which are as many."""
    return scenarios if generator.own_weights is None else None


def _jump_design(figures: CalibratedFigures, seed: int, law_name: str, scenarios: int, steps: int) -> JumpDesign | None:
    """Rare jumps are spread over each scramble of a point set, or over every tile; too few scenarios draw them as they
    come.
    """
    if scenarios < TILE:
        return None
    key = jax.random.fold_in(jax.random.key(seed), stream_number(f"jumps {law_name}"))
    return JumpDesign(key, scenarios, scenarios // BLOCKS if takes_points(figures) else TILE, steps)


def _design(figures: CalibratedFigures, seed: int, law_name: str, scenarios: int) -> SobolDesign:
    per_block = scenarios / BLOCKS
    log2_points = round(math.log2(per_block))
    if BLOCKS << log2_points != scenarios:
        low, high = BLOCKS << math.floor(math.log2(per_block)), BLOCKS << math.ceil(math.log2(per_block))
        raise ConfigurationError(
            f"{scenarios} Sobol points: the number is {BLOCKS} times a power of two, the nearest are {low} and {high}"
        )
    return SobolDesign(jax.random.fold_in(jax.random.key(seed), stream_number(f"points {law_name}")), log2_points)


# ---- laws ------------------------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """What every law is built from."""

    file: CalibrationFile
    law_name: str
    factors: Sequence[str]
    figures: CalibratedFigures
    horizon_days: float
    points: SobolDesign | None
    seed: int
    tables: HistoryTables | None

    @property
    def law(self) -> Law:
        return self.file.laws[self.law_name]

    def models(self) -> dict[str, Proxy]:
        """The factor of the file behind every factor, with its scale."""
        return {name: self.figures.proxies.get(name, Proxy(factor=name)) for name in self.factors}

    def std(self) -> dict[str, float]:
        return {name: self.law.daily_std[model.factor] * model.scale for name, model in self.models().items()}

    def correlation(self) -> np.ndarray:
        models = [model.factor for model in self.models().values()]
        distinct = tuple(dict.fromkeys(models))
        place = [distinct.index(name) for name in models]
        return self.law.matrix(distinct)[np.ix_(place, place)]


def _multivariate_t(of: _Source) -> ScenarioGenerator:
    return multivariate_t(
        of.factors,
        of.std(),
        correlation=of.correlation(),
        nu=of.law.nu,
        horizon_days=of.horizon_days,
        points=of.points,
    )


def _t_copula(of: _Source) -> ScenarioGenerator:
    margins = {name: margin_of(of.file, model.factor) for name, model in of.models().items()}
    return t_copula(
        of.factors,
        of.std(),
        margins,
        correlation=of.correlation(),
        nu=of.law.nu,
        step_days=of.horizon_days,
        points=of.points,
    )


def _merton_jumps(of: _Source) -> ScenarioGenerator:
    """Jumps as the file has them, under a stressed law more often (`jump_stress`).

    What they leave of the law's variance is the diffusion's, at least a tenth.
    """
    hastened = math.exp(of.figures.jumps.stress_loading * jump_stress(of.file, of.law_name, of.factors))
    common = of.file.jumps.common
    common = common.model_copy(update={"per_year": common.per_year * hastened})
    jumps, std = {}, of.std()
    for name, model in of.models().items():
        asset = of.file.jumps.assets.get(model.factor)
        if asset is None:
            jumps[name] = FactorJumps(0.0, 0.0, 0.0, 0.0)
            continue
        scale = model.scale
        jumps[name] = FactorJumps(asset.beta * scale, asset.per_year * hastened, asset.mean * scale, asset.std * scale)
    diffusive = {}
    for name, jump in jumps.items():
        shared = common.per_year * jump.beta**2 * (common.mean**2 + common.std**2)
        own = jump.per_year * (jump.mean**2 + jump.std**2)
        variance = std[name] ** 2
        diffusive[name] = math.sqrt(max(variance - (shared + own) / _DAYS_PER_YEAR, 0.1 * variance))
    return merton_jumps(
        of.factors,
        diffusive,
        jumps,
        correlation=of.correlation(),
        common=CommonJumps(common.per_year, common.mean, common.std),
        step_days=of.horizon_days,
    )


def _regime_switching(of: _Source) -> ScenarioGenerator:
    """The file's regimes; under a stressed law today is in the wildest one."""
    regimes = of.file.regimes
    laws = {}
    for state in regimes.states:
        # What has no history to tell the regimes apart (a peg) is the same in all of them.
        std = {
            name: state.daily_std.get(model.factor, of.law.daily_std[model.factor]) * model.scale
            for name, model in of.models().items()
        }
        laws[state.name] = RegimeLaw(std, correlation_with_mean(of.correlation(), of.factors, state.mean_correlation))
    filtered = regimes.filtered
    if of.law_name != CURRENT:
        filtered = (0.0,) * (len(laws) - 1) + (1.0,)
    return regime_switching(
        of.factors,
        laws,
        transition=np.asarray(regimes.transition),
        filtered=filtered,
        step_days=of.horizon_days,
    )


def correlation_with_mean(matrix: np.ndarray, factors: Sequence[str], mean: float) -> np.ndarray:
    """`matrix` with the prices' mean correlation moved to `mean`: a common part is mixed in, or noise of their own.

    Each price becomes sqrt(1 - w) of itself and sqrt(w) of one common factor (or of noise), which keeps the matrix a
    correlation matrix; what is no price keeps its own correlations and loses a root of the share to the prices.
    """
    prices = np.array([name.startswith("price:") for name in factors])
    count = int(prices.sum())
    if count < 2:
        return matrix
    block = matrix[np.ix_(prices, prices)]
    now = (block.sum() - count) / (count * (count - 1))
    out = matrix.copy()
    if mean >= now:
        share = (mean - now) / (1.0 - now) if now < 1.0 else 0.0
        moved = (1.0 - share) * block + share
    else:
        share = 1.0 - max(mean, 0.0) / now
        moved = (1.0 - share) * block
    np.fill_diagonal(moved, 1.0)
    out[np.ix_(prices, prices)] = moved
    for one, other in ((prices, ~prices), (~prices, prices)):
        out[np.ix_(one, other)] *= math.sqrt(1.0 - share)
    return out


def _filtered_history(of: _Source) -> ScenarioGenerator:
    if of.tables is None or of.figures.history is None:
        raise ConfigurationError("filtered_history: no tables were read")
    return filtered_law(
        of.tables,
        of.file,
        of.law_name,
        of.models(),
        of.figures.history,
        key=jax.random.fold_in(jax.random.key(of.seed), stream_number(f"history {of.law_name}")),
        step_days=of.horizon_days,
    )


_LAWS: Mapping[str, Callable[[_Source], ScenarioGenerator]] = {
    "t_copula": _t_copula,
    "multivariate_t": _multivariate_t,
    "merton_jumps": _merton_jumps,
    "regime_switching": _regime_switching,
    "filtered_history": _filtered_history,
}


# ---- margins and markets ---------------------------------------------------------------------------------------------


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
