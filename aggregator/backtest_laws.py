"""The laws of tomorrow that are held against each other: for a day t and what was known then, scenarios of the factors.

A generator is a fit, repeated on a schedule, and a law, made anew every day from the fit and the filtered state. Shocks
are log-changes over one day [scenarios, factors] in the order of `Market.factors`; a factor without a history before
day t is NaN. Filtered historical simulation is the product's own (`generators.filtered_historical`, every date once) in
NumPy. Parametric laws stand on a fixed scrambled Sobol set, so that no generator is better or worse by the luck of
its draws; implied volatilities follow their rule in them. Drifts are zero except where jumps have a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaincinv, gammaln, ndtri, stdtr
from scipy.stats import qmc

from .backtest_market import Market, filled_residuals, has_history
from .calibration.dependence import NU_GRID, copula_fit, rank_correlation, regular_correlation
from .calibration.jumps import THRESHOLD, JumpFit, bipower_std, jump_fit
from .calibration.regimes import (
    RegimeFit,
    filter_and_smooth,
    regime_fit,
    state_correlation,
    state_mean_correlation,
    state_std,
)
from .calibration.tails import law_quantile, semi_parametric_law
from .calibration.volatility import garch_fit, garch_variance
from .history import DECAY, age_weights, ewma_volatility

SCENARIOS_LOG2 = 13
"""Parametric laws have 2^13 = 8,192 scenarios."""

PLAIN_DAYS = 730
"""Window of plain historical simulation."""

CORRELATION_DAYS = 500
"""Window of the exponentially weighted correlation; with decay 0.97 the rest has a weight of 2e-7."""

REGIME_DAYS = 1000
"""Window of the regime model."""

STRESS_DAYS = 365
"""Days around the worst day of a book that make its stressed window."""


class Law(NamedTuple):
    """Shocks [scenarios, factors] and weights [scenarios], which sum to 1."""

    shocks: np.ndarray
    weights: np.ndarray


class Generator(NamedTuple):
    """`fit(market, t)` on days before t, and `law(market, t, fitted)` of day t with a fit of that day or earlier."""

    fit: Callable[[Market, int], Any]
    law: Callable[[Market, int, Any], Law]


# ---- from the past itself ------------------------------------------------------------------------------------------


def _nothing(market: Market, t: int) -> None:
    return None


def historical(days: int = PLAIN_DAYS) -> Generator:
    """Plain historical simulation: the changes of the last `days` as they were, equally likely."""

    def law(market: Market, t: int, _: None) -> Law:
        shocks = plain_changes(market, t)[-days:]
        return Law(shocks, age_weights(market.dates[t - len(shocks) : t], None))

    return Generator(_nothing, law)


def plain_changes(market: Market, t: int) -> np.ndarray:
    """Changes [days, factors] from `market.first` to t - 1; gaps are filled residuals times the volatility of day t."""
    begin = market.first
    happened = market.realised[begin:t]
    if np.isfinite(happened).all():
        return happened
    filled = _moved(
        market, t, filled_residuals(market, t, market.volatility[t], market.residuals), market.volatility[t]
    )
    known = np.array([has_history(market, t, c) or c >= market.prices for c in range(len(market.factors))])
    return np.where(known, np.where(np.isfinite(happened), happened, filled), np.nan)


def filtered_history(half_life_days: float | None = None) -> Generator:
    """The product's filtered historical simulation: tomorrow's EWMA volatility times every past residual vector."""

    def law(market: Market, t: int, _: None) -> Law:
        table = filled_residuals(market, t, market.volatility[t], market.residuals)
        shocks = _moved(market, t, table, market.volatility[t])
        return Law(shocks, age_weights(market.dates[market.first : t], half_life_days))

    return Generator(_nothing, law)


def filtered_history_garch() -> Generator:
    """The same with GARCH(1,1) volatilities of the prices; implied volatilities keep the EWMA filter."""

    def fit(market: Market, t: int) -> dict[int, tuple[float, float, float, float]]:
        found = {}
        for column in range(market.prices):
            if has_history(market, t, column):
                fitted = garch_fit(market.changes[:t, column], leverage=False)
                found[column] = fitted.omega, fitted.alpha, fitted.beta, fitted.long_run_variance
        return found

    def law(market: Market, t: int, fitted: dict[int, tuple[float, float, float, float]]) -> Law:
        volatility, residuals = market.volatility[t].copy(), market.residuals[:t].copy()
        for column in range(market.prices):
            if column not in fitted:
                residuals[:, column] = np.nan
                continue
            omega, alpha, beta, start = fitted[column]
            present = np.isfinite(market.changes[:t, column])
            returns = market.changes[:t, column][present]
            sigma = np.sqrt(garch_variance(returns, omega=omega, alpha=alpha, gamma=0.0, beta=beta, start=start))
            residuals[present, column] = returns / sigma[:-1]
            volatility[column] = sigma[-1]
        shocks = _moved(market, t, filled_residuals(market, t, volatility, residuals), volatility)
        for column in range(market.prices):
            if column not in fitted:
                shocks[:, column] = np.nan
        return Law(shocks, age_weights(market.dates[market.first : t], None))

    return Generator(fit, law)


def _moved(market: Market, t: int, table: np.ndarray, volatility: np.ndarray) -> np.ndarray:
    """Shocks of a residual table; implied volatilities without a history follow their rule with a draw per day."""
    shocks = table * volatility
    for column in range(market.prices, len(market.factors)):
        if not has_history(market, t, column):
            rule = market.rules[market.factors[column]]
            move = shocks[:, market.factors.index(rule.underlying)]
            shocks[:, column] = rule.beta * move + rule.eta * market.rule_normals[market.first : t, column]
    return shocks


# ---- parametric laws -----------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Moves [scenarios, prices] of a fit per unit of EWMA volatility; NaN for prices without a history."""

    moves: np.ndarray


def ewma_normal(decay: float = DECAY) -> Generator:
    """Normal moves with the EWMA volatility and the exponentially weighted correlation of the residuals.

    Source: J.P. Morgan/Reuters, RiskMetrics Technical Document (1996).
    """

    def law(market: Market, t: int, _: None) -> Law:
        known, table = _known_residuals(market, t)
        recent = table[-CORRELATION_DAYS:]
        weights = decay ** np.arange(len(recent))[::-1]
        products = np.einsum("t,ti,tj->ij", weights, recent, recent)
        size = np.sqrt(np.diag(products))
        moves = _correlated(market, known, products / np.outer(size, size))
        return _scaled(market, t, market.volatility[t], moves)

    return Generator(_nothing, law)


def multivariate_t() -> Generator:
    """One t law over the residuals of all prices: correlation by ranks, degrees of freedom by maximum likelihood.

    Its standard deviation is the EWMA volatility times the root mean square of the residuals, as in the calibration.
    """

    def fit(market: Market, t: int) -> Shape:
        known, table = _known_residuals(market, t)
        correlation = regular_correlation(rank_correlation(table))
        nu = t_degrees_of_freedom(table, correlation)
        mixture = np.sqrt((nu - 2.0) / _chi_square(market, nu))
        return Shape(mixture[:, None] * _correlated(market, known, correlation) * _residual_size(market, t))

    return Generator(fit, _scaled_shape)


def t_copula(*, plain_ewma: bool = False) -> Generator:
    """t copula (pseudo-likelihood) between margins with an empirical body and generalised-Pareto tails.

    The margins have unit variance, and the standard deviation of the law is that of the calibration: the EWMA
    volatility times the root mean square of the residuals, which is above 1, because an average of past squares is
    least good when volatility rises. With `plain_ewma` it is the EWMA volatility alone, to show what that lacks.
    """

    def fit(market: Market, t: int) -> Shape:
        known, table = _known_residuals(market, t)
        correlation = regular_correlation(rank_correlation(table))
        nu = copula_fit(table, correlation).nu
        moves = _correlated(market, known, correlation) * np.sqrt(nu / _chi_square(market, nu))[:, None]
        for column in known:
            margin = semi_parametric_law(market.residuals[:t, column])
            # half a scenario away from 0 and 1, where a tail has no quantile
            ranks = np.clip(stdtr(nu, moves[:, column]), 0.5 / len(moves), 1.0 - 0.5 / len(moves))
            moves[:, column] = law_quantile(margin, ranks)
        return Shape(moves if plain_ewma else moves * _residual_size(market, t))

    return Generator(fit, _scaled_shape)


def _residual_size(market: Market, t: int) -> np.ndarray:
    """Root mean square [prices] of the residuals before day t; 1 where there are none, and then no law either."""
    residuals = market.residuals[:t, : market.prices]
    present = np.isfinite(residuals)
    squares = np.where(present, residuals**2, 0.0).sum(axis=0)
    return np.where(present.any(axis=0), np.sqrt(squares / np.maximum(present.sum(axis=0), 1)), 1.0)


class JumpShape(NamedTuple):
    """Diffusive standard moves and jumps in log-change, [scenarios, prices] each."""

    moves: np.ndarray
    jumps: np.ndarray


def jump_diffusion() -> Generator:
    """Merton: common and own jumps on top of a diffusion whose volatility is the EWMA of the days without a jump.

    Source: R. C. Merton, "Option pricing when underlying stock returns are discontinuous" (1976).
    """

    def fit(market: Market, t: int) -> JumpShape:
        known, _ = _known_residuals(market, t)
        quiet, volatility = _quiet(market)
        with np.errstate(invalid="ignore"):
            residuals = quiet[market.first : t, known] / volatility[market.first : t, known]
        fitted = jump_fit(market.changes[:t, known])
        jumps = np.full((2**SCENARIOS_LOG2, market.prices), np.nan)
        jumps[:, known] = _jumps(fitted, _uniforms(market.prices), market.prices)
        return JumpShape(_correlated(market, known, regular_correlation(rank_correlation(residuals))), jumps)

    def law(market: Market, t: int, fitted: JumpShape) -> Law:
        return _with_implied(market, fitted.moves * _quiet(market)[1][t] + fitted.jumps)

    return Generator(fit, law)


@lru_cache(maxsize=2)
def _quiet(market: Market) -> tuple[np.ndarray, np.ndarray]:
    """Changes of the prices [dates, prices] without jumps, and their EWMA volatility [dates + 1, prices].

    A jump is judged by the bipower variation of the days before it, and row t of the volatility reads rows before t.
    """
    prices = market.changes[:, : market.prices]
    with np.errstate(invalid="ignore"):
        jumped = np.abs(prices) > THRESHOLD * bipower_std(prices)
    quiet = np.where(jumped, np.nan, prices)
    return quiet, ewma_volatility(quiet)


def _jumps(fitted: JumpFit, uniforms: np.ndarray, prices: int) -> np.ndarray:
    """Sums of the jumps of a day [scenarios, assets]: N mean + sqrt(N) std Z for common and own ones."""
    start = prices + 2
    count = _poisson(uniforms[:, start], fitted.common_per_year / 365.0)
    common = count * fitted.common_mean + np.sqrt(count) * fitted.common_std * ndtri(uniforms[:, start + 1])
    columns = []
    for i, beta in enumerate(fitted.beta):
        own = _poisson(uniforms[:, start + 2 + 2 * i], float(fitted.own_per_year[i]) / 365.0)
        size = ndtri(uniforms[:, start + 3 + 2 * i])
        columns.append(beta * common + own * fitted.own_mean[i] + np.sqrt(own) * fitted.own_std[i] * size)
    return np.stack(columns, axis=1)


def _poisson(uniforms: np.ndarray, rate: float) -> np.ndarray:
    """Poisson counts by inversion, up to 8 a day."""
    probability, count, total = math.exp(-rate), np.zeros_like(uniforms), 0.0
    for k in range(1, 9):
        total += probability
        count = np.where(uniforms > total, k, count)
        probability *= rate / k
    return count


class RegimeShape(NamedTuple):
    """The chain fitted before day `day` and, state by state, moves in log-change [scenarios, prices]."""

    day: int
    chain: RegimeFit
    moves: tuple[np.ndarray, ...]


def regime_switching(states: int = 2) -> Generator:
    """Hidden Markov chain on the mean return of the anchors; each state has its standard deviations and correlation.

    The law of day t mixes the states by their probabilities for that day, which the filter brings up to date daily.

    Source: J. D. Hamilton, "A new approach to the economic analysis of nonstationary time series" (1989).
    """

    def fit(market: Market, t: int) -> RegimeShape:
        begin = max(market.first, t - REGIME_DAYS)
        known, _ = _known_residuals(market, t)
        returns = plain_changes(market, t)[begin - market.first :, known]
        chain = regime_fit(_anchor_mean(market, begin, t), states)
        base = regular_correlation(rank_correlation(returns))
        deviations = state_std(returns, chain.smoothed)
        correlations = state_mean_correlation(returns, chain.smoothed)
        moves = []
        for state in range(states):
            correlation = state_correlation(base, float(correlations[state]), prices=np.ones(len(known), dtype=bool))
            # a state that an asset has hardly seen takes the asset's deviation over all days
            whole = np.sqrt(np.mean(returns**2, axis=0))
            scale = np.full(market.prices, np.nan)
            scale[known] = np.where(np.isfinite(deviations[:, state]), deviations[:, state], whole)
            moves.append(_correlated(market, known, regular_correlation(correlation)) * scale)
        return RegimeShape(t, chain, tuple(moves))

    def law(market: Market, t: int, fitted: RegimeShape) -> Law:
        chain = fitted.chain
        probabilities = chain.filtered[-1] @ chain.transition
        if t > fitted.day:
            since = _anchor_mean(market, fitted.day, t)
            passed = filter_and_smooth(since, chain.means, chain.stds, chain.transition, probabilities)
            probabilities = passed.filtered[-1] @ chain.transition
        laws = [_with_implied(market, moves) for moves in fitted.moves]
        weights = [law.weights * p for law, p in zip(laws, probabilities, strict=True)]
        return Law(np.concatenate([law.shocks for law in laws]), np.concatenate(weights))

    return Generator(fit, law)


def _anchor_mean(market: Market, begin: int, t: int) -> np.ndarray:
    return market.changes[begin:t, list(market.anchors)].mean(axis=1)


def t_degrees_of_freedom(residuals: np.ndarray, correlation: np.ndarray) -> float:
    """Degrees of freedom of a multivariate t with unit variances, by maximum likelihood on the grid `NU_GRID`."""
    root = np.linalg.cholesky(correlation)
    rows, columns = residuals.shape
    distance = np.sum(np.linalg.solve(root, (residuals / residuals.std(axis=0)).T) ** 2, axis=0)

    def log_likelihood(nu: float) -> float:
        constant = gammaln((nu + columns) / 2.0) - gammaln(nu / 2.0) - columns / 2.0 * math.log(nu - 2.0)
        return float(rows * constant - (nu + columns) / 2.0 * np.sum(np.log1p(distance / (nu - 2.0))))

    return max(NU_GRID, key=log_likelihood)


def _known_residuals(market: Market, t: int) -> tuple[list[int], np.ndarray]:
    """Price columns with a history before day t, and their residuals with gaps filled."""
    known = [column for column in range(market.prices) if has_history(market, t, column)]
    return known, filled_residuals(market, t, market.volatility[t], market.residuals)[:, known]


def _correlated(market: Market, known: list[int], correlation: np.ndarray) -> np.ndarray:
    """Standard normals [scenarios, prices] with this correlation of the known columns; NaN in the others."""
    root = np.linalg.cholesky(correlation)
    normals = _normals(market.prices)[:, : len(known)]
    moves = np.full((len(normals), market.prices), np.nan)
    for i, column in enumerate(known):
        total = np.zeros(len(normals))
        for j in range(i + 1):
            total = total + root[i, j] * normals[:, j]
        moves[:, column] = total
    return moves


def _chi_square(market: Market, nu: float) -> np.ndarray:
    return 2.0 * gammaincinv(nu / 2.0, _uniforms(market.prices)[:, market.prices])


def _scaled_shape(market: Market, t: int, fitted: Shape) -> Law:
    return _scaled(market, t, market.volatility[t], fitted.moves)


def _scaled(market: Market, t: int, volatility: np.ndarray, moves: np.ndarray) -> Law:
    return _with_implied(market, moves * volatility[: market.prices])


def _with_implied(market: Market, shocks: np.ndarray) -> Law:
    """The law with the implied volatilities' columns appended: beta times the move of the price plus eta Z."""
    normal = ndtri(_uniforms(market.prices)[:, market.prices + 1])
    columns = [shocks]
    for name in market.factors[market.prices :]:
        rule = market.rules[name]
        move = shocks[:, market.factors.index(rule.underlying)]
        columns.append((rule.beta * move + rule.eta * normal)[:, None])
    return Law(np.concatenate(columns, axis=1), np.full(len(shocks), 1.0 / len(shocks)))


@lru_cache(maxsize=4)
def _uniforms(prices: int) -> np.ndarray:
    """Scrambled Sobol points: a normal per price, mixture, implied volatility, common jump (2), own jumps (2 each)."""
    points = qmc.Sobol(prices + 4 + 2 * prices, scramble=True, rng=20240630).random_base2(SCENARIOS_LOG2)
    return np.clip(points, 1e-12, 1.0 - 1e-12)


@lru_cache(maxsize=4)
def _normals(prices: int) -> np.ndarray:
    return ndtri(_uniforms(prices)[:, :prices])


def generators(half_life_days: float | None) -> Mapping[str, Generator]:
    """Every generator by name; `half_life_days` is that of the filtered history under test."""
    return {
        "historical": historical(),
        "ewma_normal": ewma_normal(),
        "filtered_history": filtered_history(half_life_days),
        "filtered_history_garch": filtered_history_garch(),
        "multivariate_t": multivariate_t(),
        "t_copula": t_copula(),
        "t_copula_plain_ewma": t_copula(plain_ewma=True),
        "jump_diffusion": jump_diffusion(),
        "regime_switching": regime_switching(),
    }
