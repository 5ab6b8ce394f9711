"""Tails of one variable: generalised Pareto, Hill, and the law with an empirical body between two Pareto tails.

The excess y over a threshold has P(Y > y) = (1 + shape y / scale)^(-1/shape); shape 0 is the exponential law.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize_scalar

SHAPE_BOUNDS = (-0.25, 0.45)
"""Shapes that a fit may have. Below 1/2 the variance is finite, which a standard deviation in a law presumes."""

MINIMUM_EXCESSES = 10

BODY_PROBABILITIES = tuple(round(0.05 + 0.025 * step, 3) for step in range(37))
"""Grid of the body, 5 % to 95 %; the tails begin at its ends."""


class ParetoFit(NamedTuple):
    """Generalised-Pareto fit of `exceedances` excesses; `at_bound` when the shape is one of the bounds."""

    shape: float
    scale: float
    exceedances: int
    log_likelihood: float
    at_bound: bool


class SemiParametricLaw(NamedTuple):
    """Quantiles [probabilities] of the body, linear between, and the tails below the first and above the last."""

    probabilities: np.ndarray
    quantiles: np.ndarray
    lower: ParetoFit
    upper: ParetoFit


def pareto_fit(excesses: np.ndarray, *, bounds: tuple[float, float] = SHAPE_BOUNDS) -> ParetoFit:
    """Maximum likelihood for positive excesses [count], shape within `bounds` (lower one above -1/2).

    For a given shape the best scale solves mean((1 + shape) y / (scale + shape y)) = 1, whose left side falls in the
    scale; the search over the shape is one-dimensional. Hosking and Wallis, Technometrics 29 (1987). Standard error of
    the shape about (1 + shape) / sqrt(count). Raises ValueError for fewer than 10 excesses or one that is not positive.
    """
    count = len(excesses)
    if count < MINIMUM_EXCESSES:
        raise ValueError(f"{count} excesses; at least {MINIMUM_EXCESSES} are needed for a generalised-Pareto tail")
    if not (np.isfinite(excesses).all() and np.min(excesses) >= 0.0 and np.max(excesses) > 0.0):
        raise ValueError("excesses must be finite, not negative and not all zero")
    size = float(np.mean(excesses))
    scaled = excesses / size
    found = minimize_scalar(
        lambda shape: -_profile(scaled, shape)[0], bounds=bounds, method="bounded", options={"xatol": 1e-7}
    )
    # the search never evaluates the bounds themselves, where the best shape of a very heavy tail lies
    shape = max((float(found.x), *bounds), key=lambda candidate: _profile(scaled, candidate)[0])
    log_likelihood, scale = _profile(scaled, shape)
    return ParetoFit(shape, scale * size, count, log_likelihood - count * math.log(size), shape in bounds)


def _profile(excesses: np.ndarray, shape: float) -> tuple[float, float]:
    """Log-likelihood at the best scale, and that scale."""
    if abs(shape) < 1e-9:
        scale = float(np.mean(excesses))
        return -len(excesses) * (math.log(scale) + 1.0), scale

    def excess_of_score(scale: float) -> float:
        return float(np.mean((1.0 + shape) * excesses / (scale + shape * excesses))) - 1.0

    largest = float(np.max(excesses))
    low = 1e-9 * largest if shape > 0.0 else -shape * largest * (1.0 + 1e-9)
    high = (2.0 + abs(shape)) * (largest + float(np.mean(excesses)))
    scale = low if excess_of_score(low) <= 0.0 else float(brentq(excess_of_score, low, high, xtol=1e-14, rtol=1e-13))
    spread = np.log1p(shape * excesses / scale)
    return float(-len(excesses) * math.log(scale) - (1.0 + 1.0 / shape) * np.sum(spread)), scale


def pareto_tail_distance(excesses: np.ndarray, fit: ParetoFit) -> float:
    """Kolmogorov-Smirnov distance between the excesses [count] and the fit, 0..1.

    The fit has seen the excesses, so that tabulated critical values (1.36 / sqrt(count) at 5 %) are too generous.
    """
    ordered = np.sort(excesses)
    fitted = 1.0 - _survival(ordered, fit)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max(np.max(steps[1:] - fitted), np.max(fitted - steps[:-1])))


def _survival(excesses: np.ndarray, fit: ParetoFit) -> np.ndarray:
    if abs(fit.shape) < 1e-9:
        return np.exp(-excesses / fit.scale)
    return np.maximum(1.0 + fit.shape * excesses / fit.scale, 0.0) ** (-1.0 / fit.shape)


def _excess_at(fit: ParetoFit, survival: np.ndarray) -> np.ndarray:
    """Excess that is exceeded with probability `survival` (in (0, 1])."""
    if abs(fit.shape) < 1e-9:
        return -fit.scale * np.log(survival)
    return fit.scale / fit.shape * np.expm1(-fit.shape * np.log(survival))


def hill(values: np.ndarray, *, share: float = 0.05) -> float:
    """Hill's tail index (power of the survival function) from the largest `share` of the positive `values` [count].

    Hill, Annals of Statistics 3 (1975); standard error about index / sqrt(used). For the left tail pass the negatives.
    Raises ValueError when fewer than 10 values would be used.
    """
    ordered = np.sort(values[np.isfinite(values)])[::-1]
    used = int(share * len(ordered))
    if used < MINIMUM_EXCESSES or not ordered[used] > 0.0:
        raise ValueError(f"{used} values beyond a positive threshold; at least {MINIMUM_EXCESSES} are needed for Hill")
    return float(1.0 / np.mean(np.log(ordered[:used] / ordered[used])))


def semi_parametric_law(residuals: np.ndarray, probabilities: np.ndarray | None = None) -> SemiParametricLaw:
    """Law of the residuals [count, NaN left out] moved and scaled to mean 0 and variance 1 of the law itself.

    Empirical quantiles at `probabilities` (default 5 % to 95 % in steps of 2.5 %), linear between, and a
    generalised-Pareto tail beyond each end (McNeil, Frey and Embrechts, Quantitative Risk Management, 2015, section
    5.2). Raises ValueError when a tail has too few residuals or two quantiles are equal.
    """
    grid = np.asarray(BODY_PROBABILITIES if probabilities is None else probabilities, dtype=np.float64)
    sample = residuals[np.isfinite(residuals)]
    quantiles = np.quantile(sample, grid)
    if np.any(np.diff(quantiles) <= 0.0):
        raise ValueError("two quantiles of the residuals are equal: too many of them repeat one value")
    lower = pareto_fit(quantiles[0] - sample[sample < quantiles[0]])
    upper = pareto_fit(sample[sample > quantiles[-1]] - quantiles[-1])
    mean, variance = law_moments(SemiParametricLaw(grid, quantiles, lower, upper))
    size = math.sqrt(variance)
    return SemiParametricLaw(
        grid,
        (quantiles - mean) / size,
        lower._replace(
            scale=lower.scale / size, log_likelihood=lower.log_likelihood + lower.exceedances * math.log(size)
        ),
        upper._replace(
            scale=upper.scale / size, log_likelihood=upper.log_likelihood + upper.exceedances * math.log(size)
        ),
    )


def tail_distances(residuals: np.ndarray, law: SemiParametricLaw) -> tuple[float, float]:
    """Kolmogorov-Smirnov distances (lower, upper) between the residuals [count] beyond 5 % and 95 % and their tails.

    `law` must have been fitted to these residuals, whatever their scale.
    """
    sample = residuals[np.isfinite(residuals)]
    low, high = (float(end) for end in np.quantile(sample, law.probabilities[[0, -1]]))
    size = (high - low) / float(law.quantiles[-1] - law.quantiles[0])
    return (
        pareto_tail_distance((low - sample[sample < low]) / size, law.lower),
        pareto_tail_distance((sample[sample > high] - high) / size, law.upper),
    )


def law_moments(law: SemiParametricLaw) -> tuple[float, float]:
    """Mean and variance of the law, in closed form; both shapes below 1/2."""
    low, high = law.quantiles[:-1], law.quantiles[1:]
    weight = np.diff(law.probabilities)
    first = float(np.sum(weight * (low + high) / 2.0))
    second = float(np.sum(weight * (low * low + low * high + high * high) / 3.0))
    ends = (law.probabilities[0], law.quantiles[0], law.lower, -1.0), (
        1.0 - law.probabilities[-1], law.quantiles[-1], law.upper, 1.0,
    )  # fmt: skip
    for mass, threshold, tail, sign in ends:
        mean = tail.scale / (1.0 - tail.shape)
        square = 2.0 * tail.scale**2 / ((1.0 - tail.shape) * (1.0 - 2.0 * tail.shape))
        first += float(mass * (threshold + sign * mean))
        second += float(mass * (threshold**2 + 2.0 * sign * threshold * mean + square))
    return first, second - first * first


def law_quantile(law: SemiParametricLaw, uniforms: np.ndarray) -> np.ndarray:
    """Quantiles of the law at `uniforms` (any shape, inside 0..1), monotone; the inverse of its distribution."""
    p_low, p_high = law.probabilities[0], law.probabilities[-1]
    body = np.interp(uniforms, law.probabilities, law.quantiles)
    below = law.quantiles[0] - _excess_at(law.lower, np.minimum(uniforms / p_low, 1.0))
    above = law.quantiles[-1] + _excess_at(law.upper, np.minimum((1.0 - uniforms) / (1.0 - p_high), 1.0))
    return np.where(uniforms < p_low, below, np.where(uniforms > p_high, above, body))
