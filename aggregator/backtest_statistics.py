"""What a margin model is judged by out of sample: number, spacing and size of its exceptions, and how calmly it moves.

Host code on NumPy and SciPy. A series has one entry per forecast, in order of time; `losses` are the realised losses of
the window that the forecast was made for, loss positive; `confidence` is a fraction such as 0.99. An exception is a
loss above the forecast value at risk. p-values of likelihood ratios are those of the limit law; with few exceptions
(below about 5) they are rough. Nothing here returns NaN except where a docstring says so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc, ndtri
from scipy.stats import binom, kstest

TRAFFIC_LIGHT_DAYS = 250
"""Forecasts in a window of the traffic light."""

YELLOW_FROM, RED_FROM = 0.95, 0.9999
"""Zones by P(X <= x) of the binomial law: Basel Committee on Banking Supervision, "Supervisory framework for the use of
'backtesting' in conjunction with the internal models approach", 1996, section III."""

NULL_DRAWS = 2000
"""Histories simulated for the null law of Acerbi and Székely's statistic."""

PIT_EDGE = 5e-4
"""Probabilities are kept this far from 0 and 1 before the normal quantile: half the mass of one of 1,000 scenarios."""


class LikelihoodRatio(NamedTuple):
    """A likelihood ratio statistic and its p-value (the probability of a larger one under the null)."""

    statistic: float
    p_value: float


class ShortfallTest(NamedTuple):
    """Acerbi and Székely's Z2 (0 expected, positive when losses beyond VaR are larger or more frequent) and p-value."""

    statistic: float
    p_value: float


class TrafficLight(NamedTuple):
    """Shares of the windows in each zone, the most exceptions in a window, and the zone of the last window."""

    green: float
    yellow: float
    red: float
    most: int
    last: str


class BreachSizes(NamedTuple):
    """Losses on exception days over the forecast expected shortfall, and their excess over VaR; NaN without any."""

    mean_to_es: float
    largest_to_es: float
    mean_excess_to_var: float
    largest_excess_to_var: float


# ---- number and spacing of exceptions ------------------------------------------------------------------------------


def kupiec(exceptions: int, forecasts: int, *, confidence: float) -> LikelihoodRatio:
    """Proportion of failures: is the share of exceptions 1 - confidence?

    LR = -2 ln[(1-p)^(n-x) p^x / ((1-x/n)^(n-x) (x/n)^x)], chi-square with 1 degree of freedom, p = 1 - confidence and
    0^0 = 1. Raises ValueError unless 0 <= exceptions <= forecasts, forecasts > 0 and 0 < confidence < 1.

    Source: P. H. Kupiec, "Techniques for verifying the accuracy of risk measurement models", Journal of Derivatives 3
    (1995).
    """
    _check_confidence(confidence)
    if forecasts <= 0 or not 0 <= exceptions <= forecasts:
        raise ValueError(f"{exceptions} exceptions in {forecasts} forecasts: expected 0 <= exceptions <= forecasts > 0")
    tail = 1.0 - confidence
    quiet = forecasts - exceptions
    null = _log_likelihood(quiet, exceptions, tail)
    free = _log_likelihood(quiet, exceptions, exceptions / forecasts)
    return _ratio(2.0 * (free - null), 1)


def christoffersen_independence(hits: np.ndarray) -> LikelihoodRatio:
    """Independence: is an exception as likely after an exception as after none?

    Likelihood ratio of a first-order Markov chain against independent draws, from the counts n_ij of transitions of
    `hits` [forecasts] (boolean), chi-square with 1 degree of freedom. Without an exception, or with exceptions only,
    there is nothing to tell apart: statistic 0, p-value 1. Raises ValueError for fewer than 2 forecasts.

    Source: P. F. Christoffersen, "Evaluating interval forecasts", International Economic Review 39 (1998).
    """
    before, after = _pairs(hits)
    counts = [[int(np.count_nonzero((before == i) & (after == j))) for j in (False, True)] for i in (False, True)]
    (n00, n01), (n10, n11) = counts
    pooled = (n01 + n11) / (n00 + n01 + n10 + n11)
    null = _log_likelihood(n00 + n10, n01 + n11, pooled)
    after_none = _log_likelihood(n00, n01, n01 / max(n00 + n01, 1))
    after_hit = _log_likelihood(n10, n11, n11 / max(n10 + n11, 1))
    return _ratio(2.0 * (after_none + after_hit - null), 1)


def christoffersen_joint(hits: np.ndarray, *, confidence: float) -> LikelihoodRatio:
    """Conditional coverage: right share and independence together; the sum of both statistics, chi-square with 2."""
    share = kupiec(int(np.count_nonzero(hits)), len(hits), confidence=confidence)
    return _ratio(share.statistic + christoffersen_independence(hits).statistic, 2)


def traffic_light(hits: np.ndarray, *, confidence: float, window: int = TRAFFIC_LIGHT_DAYS) -> TrafficLight | None:
    """Zones of all windows of `window` consecutive forecasts in `hits` [forecasts]; None when there are fewer.

    At 99 % and 250 forecasts green is 0 to 4 exceptions, yellow 5 to 9, red 10 and more.
    """
    _check_confidence(confidence)
    if len(hits) < window:
        return None
    cumulative = np.concatenate([[0], np.cumsum(np.asarray(hits, dtype=np.int64))])
    counts = cumulative[window:] - cumulative[:-window]
    probability = binom.cdf(counts, window, 1.0 - confidence)
    zones = np.where(probability < YELLOW_FROM, 0, np.where(probability < RED_FROM, 1, 2))
    green, yellow, red = (float(np.mean(zones == zone)) for zone in range(3))
    return TrafficLight(green, yellow, red, int(counts.max()), ("green", "yellow", "red")[int(zones[-1])])


# ---- size of exceptions --------------------------------------------------------------------------------------------


def acerbi_szekely(
    losses: np.ndarray,
    value_at_risk: np.ndarray,
    tail_points: np.ndarray,
    *,
    confidence: float,
    seed: int = 0,
    draws: int = NULL_DRAWS,
) -> ShortfallTest:
    """Z2 = sum_t L_t 1{L_t > VaR_t} / (n (1-a) ES_t) - 1, with its p-value against larger values.

    `tail_points` [forecasts, points] are the means of each forecast law over equal slices of the mass 1 - a beyond its
    value at risk, so that their mean is the expected shortfall ES_t. The null law is simulated: every forecast exceeds
    with probability 1 - a, and then loses one of its points, all equally likely; `draws` histories from a counter-based
    stream of `seed`. The p-value is (1 + histories with a Z2 at least as large) / (1 + draws), never 0. Raises
    ValueError when a shape does not fit or an expected shortfall is not positive.

    Source: C. Acerbi, B. Székely, "Back-testing expected shortfall", Risk (December 2014), second test; signs turned so
    that losses are positive.
    """
    _check_confidence(confidence)
    if tail_points.ndim != 2 or not len(losses) == len(value_at_risk) == len(tail_points) > 0:
        raise ValueError(
            f"expected equal lengths, found losses {losses.shape}, value at risk {value_at_risk.shape} and tail "
            f"points {tail_points.shape}"
        )
    shortfall = tail_points.mean(axis=1)
    if not (np.isfinite(shortfall).all() and (shortfall > 0.0).all()):
        raise ValueError("an expected shortfall is not positive: Z2 divides by it")
    tail = 1.0 - confidence
    scale = 1.0 / (len(losses) * tail)
    exceeded = losses > value_at_risk
    observed = float(np.sum(losses[exceeded] / shortfall[exceeded]) * scale - 1.0)

    points = tail_points.shape[1]
    ratios = tail_points / shortfall[:, None]
    generator = np.random.Generator(np.random.Philox(key=seed))
    as_large = 0
    block = max(1, 2_000_000 // len(losses))
    for first in range(0, draws, block):
        uniforms = generator.random((min(block, draws - first), len(losses)))
        history, forecast = np.nonzero(uniforms < tail)
        slice_of = np.minimum((uniforms[history, forecast] / tail * points).astype(np.int64), points - 1)
        sums = np.bincount(history, weights=ratios[forecast, slice_of], minlength=len(uniforms))
        as_large += int(np.count_nonzero(sums * scale - 1.0 >= observed))
    return ShortfallTest(observed, (1 + as_large) / (1 + draws))


def breach_sizes(losses: np.ndarray, value_at_risk: np.ndarray, expected_shortfall: np.ndarray) -> BreachSizes:
    """How large the losses of exception days were, [forecasts] each; all NaN when there is no exception."""
    exceeded = losses > value_at_risk
    if not exceeded.any():
        return BreachSizes(math.nan, math.nan, math.nan, math.nan)
    to_es = losses[exceeded] / expected_shortfall[exceeded]
    excess = losses[exceeded] / value_at_risk[exceeded] - 1.0
    return BreachSizes(*(float(f) for f in (to_es.mean(), to_es.max(), excess.mean(), excess.max())))


# ---- how the requirement moves -------------------------------------------------------------------------------------


def largest_increase(requirement: np.ndarray, steps: int) -> float:
    """max_t m(t) / m(t - steps) - 1 of a positive series [forecasts]; NaN when it is not longer than `steps`.

    Source of this measure of procyclicality: D. Murphy, M. Vasios, N. Vause, "An investigation into the procyclicality
    of risk-based initial margin models", Bank of England Financial Stability Paper 29 (2014): n-day margin calls.
    """
    _check_requirement(requirement, steps)
    if len(requirement) <= steps:
        return math.nan
    return float(np.max(requirement[steps:] / requirement[:-steps]) - 1.0)


def peak_to_trough(requirement: np.ndarray, steps: int) -> float:
    """Largest max/min of a positive series [forecasts] within any `steps` steps (steps + 1 entries); NaN if shorter."""
    _check_requirement(requirement, steps)
    if len(requirement) <= steps:
        return math.nan
    windows = np.lib.stride_tricks.sliding_window_view(requirement, steps + 1)
    return float(np.max(windows.max(axis=1) / windows.min(axis=1)))


# ---- the whole law -------------------------------------------------------------------------------------------------


def pit_uniformity(ranks: np.ndarray) -> LikelihoodRatio:
    """Kolmogorov-Smirnov distance of the probability integral transforms `ranks` [forecasts] from the uniform law.

    A rank is P(L < l) + P(L = l) / 2 of the forecast law at the realised loss l.
    """
    found = kstest(_finite("ranks", ranks), "uniform")
    return LikelihoodRatio(float(found.statistic), float(found.pvalue))


def berkowitz(ranks: np.ndarray) -> LikelihoodRatio:
    """Are the normal quantiles of the `ranks` [forecasts] independent standard normals?

    Likelihood ratio against a Gaussian AR(1) with free mean, variance and coefficient, chi-square with 3 degrees of
    freedom, given the first value. Ranks are moved `PIT_EDGE` away from 0 and 1. Raises ValueError below 10 ranks.

    Source: J. Berkowitz, "Testing density forecasts, with applications to risk management", Journal of Business and
    Economic Statistics 19 (2001).
    """
    z = ndtri(np.clip(_finite("ranks", ranks), PIT_EDGE, 1.0 - PIT_EDGE))
    if len(z) < 10:
        raise ValueError(f"{len(z)} ranks are too few for a regression of each on the one before")
    x, y = z[:-1], z[1:]
    centered = x - x.mean()
    spread = float(np.sum(centered**2))
    slope = float(np.sum(centered * (y - y.mean()))) / spread if spread > 0.0 else 0.0
    residuals = y - y.mean() - slope * centered
    variance = float(np.mean(residuals**2))
    if variance <= 0.0:
        return LikelihoodRatio(math.inf, 0.0)
    count = len(y)
    return _ratio(float(np.sum(y**2)) - count * (1.0 + math.log(variance)), 3)


# ---- shared by the tests above -------------------------------------------------------------------------------------


def _log_likelihood(quiet: int, exceptions: int, probability: float) -> float:
    """ln[(1-p)^quiet p^exceptions] with 0^0 = 1."""
    total = 0.0
    if quiet:
        total += quiet * math.log1p(-probability)
    if exceptions:
        total += exceptions * math.log(probability)
    return total


def _ratio(statistic: float, degrees: int) -> LikelihoodRatio:
    # a free fit can only lose to the null by rounding
    value = max(statistic, 0.0)
    return LikelihoodRatio(value, float(chdtrc(degrees, value)))


def _pairs(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    series = np.asarray(hits, dtype=bool)
    if series.ndim != 1 or len(series) < 2:
        raise ValueError(f"expected a series of at least 2 hits, found shape {series.shape}")
    return series[:-1], series[1:]


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, found {confidence!r}")


def _check_requirement(requirement: np.ndarray, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    if not (np.isfinite(requirement).all() and (requirement > 0.0).all()):
        raise ValueError("a requirement is not a positive number: ratios of it mean nothing")


def _finite(what: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must be finite")
    return np.asarray(values, dtype=np.float64)
