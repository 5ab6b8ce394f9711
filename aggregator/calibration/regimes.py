"""Gaussian hidden Markov model of one return series: EM, Hamilton's filter, backward smoothing.

r_t | s_t ~ N(mean_s, std_s^2), s_t a Markov chain. Hamilton, Econometrica 57 (1989); Kim, J. Econometrics 60 (1994);
Baum, Petrie, Soules and Weiss, Annals of Mathematical Statistics 41 (1970). States are in order of their standard
deviation, so that 0 is the calm one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

MAXIMUM_ROUNDS = 300
TOLERANCE = 1e-7
"""EM ends when a round raises the mean log-likelihood of a return by less than this."""

SMALLEST_STD_RATIO = 0.05
"""No state is narrower than this times the whole sample: a likelihood without bound sits on single points."""

_STAY = 0.95
_BLOCK = 32
_SMALLEST_DENSITY = 1e-200


class RegimeFit(NamedTuple):
    """States [states], `start` the law of the first one, `transition` [from, to]; probabilities [dates, states].

    `filtered` knows the returns up to its date, `smoothed` all of them.
    """

    means: np.ndarray
    stds: np.ndarray
    transition: np.ndarray
    start: np.ndarray
    filtered: np.ndarray
    smoothed: np.ndarray
    log_likelihood: float

    @property
    def bic(self) -> float:
        """Bayesian information criterion, lower is better: 2 K + K (K - 1) parameters of the law."""
        states = len(self.means)
        parameters = 2 * states + states * (states - 1)
        return -2.0 * self.log_likelihood + parameters * math.log(len(self.filtered))


class Filtered(NamedTuple):
    """One pass forward and back: probabilities [dates, states], expected transitions [from, to], log-likelihood."""

    filtered: np.ndarray
    smoothed: np.ndarray
    transitions: np.ndarray
    log_likelihood: float


def regime_fit(
    returns: np.ndarray,
    states: int,
    *,
    begin: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> RegimeFit:
    """Maximum likelihood by EM on returns [dates] without NaN, from `begin` (means, stds, transition) if given.

    Without `begin` the first guess cuts the sample by the mean size of the last 20 returns into equal parts. Raises
    ValueError for fewer than 50 returns per state, a NaN, or returns that do not vary.
    """
    if not np.isfinite(returns).all():
        raise ValueError("returns of a regime model must not have gaps")
    if len(returns) < 50 * states:
        raise ValueError(f"{len(returns)} returns; at least {50 * states} are needed for {states} states")
    whole = float(np.std(returns))
    if not whole > 0.0:
        raise ValueError("the returns do not vary")
    means, stds, transition = _first_guess(returns, states) if begin is None else begin
    start = np.full(states, 1.0 / states)
    previous = -math.inf
    for _ in range(MAXIMUM_ROUNDS):
        passed = filter_and_smooth(returns, means, stds, transition, start)
        weights = passed.smoothed
        if passed.log_likelihood - previous < TOLERANCE * len(returns):
            break
        previous = passed.log_likelihood
        total = weights.sum(axis=0)
        means = (weights * returns[:, None]).sum(axis=0) / total
        deviation = (weights * (returns[:, None] - means) ** 2).sum(axis=0) / total
        stds = np.maximum(np.sqrt(deviation), SMALLEST_STD_RATIO * whole)
        transition = passed.transitions / passed.transitions.sum(axis=1, keepdims=True)
        start = weights[0]
    order = np.argsort(stds, kind="stable")
    means, stds, start = means[order], stds[order], start[order]
    transition = transition[np.ix_(order, order)]
    passed = filter_and_smooth(returns, means, stds, transition, start)
    return RegimeFit(means, stds, transition, start, passed.filtered, passed.smoothed, passed.log_likelihood)


def _first_guess(returns: np.ndarray, states: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = np.abs(returns)
    running = np.convolve(size, np.ones(20) / 20.0)[: len(size)]
    parts = np.array_split(np.argsort(running, kind="stable"), states)
    stds = np.array([float(np.std(returns[part])) for part in parts]) + 1e-3 * float(np.std(returns))
    # parts may tie; apart they have to be, or EM never separates them
    stds = stds * np.linspace(0.8, 1.2, states)
    transition = np.full((states, states), (1.0 - _STAY) / (states - 1))
    np.fill_diagonal(transition, _STAY)
    return np.full(states, float(np.mean(returns))), stds, transition


def filter_and_smooth(
    returns: np.ndarray, means: np.ndarray, stds: np.ndarray, transition: np.ndarray, start: np.ndarray
) -> Filtered:
    """Hamilton's filter forward and the smoother back for given parameters; returns [dates] without NaN."""
    log_density = -0.5 * ((returns[:, None] - means) / stds) ** 2 - np.log(stds) - 0.5 * math.log(2.0 * math.pi)
    # the largest of a date is taken out, so that a return far out in every state does not underflow
    largest = log_density.max(axis=1)
    density = np.maximum(np.exp(log_density - largest[:, None]), _SMALLEST_DENSITY)
    steps = density[:, :, None] * transition
    predicted = _directions(start, steps)[:-1]
    joint = predicted * density
    total = joint.sum(axis=1)
    filtered = joint / total[:, None]
    # backward: beta_t is proportional to P (d_{t+1} beta_{t+1}), a scan of row vectors from the last date
    back = (density[1:, :, None] * transition.T)[::-1]
    later = _directions(np.ones(len(means)), back)[::-1]
    smoothed = filtered * later
    smoothed /= smoothed.sum(axis=1, keepdims=True)
    pairs = filtered[:-1, :, None] * transition * (density[1:] * later[1:])[:, None, :]
    counts = (pairs / pairs.sum(axis=(1, 2), keepdims=True)).sum(axis=0)
    return Filtered(filtered, smoothed, counts, float(np.sum(np.log(total) + largest)))


def _directions(start: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Row vectors [dates + 1, states] of sum 1: the start, then each the one before it times its step [dates, ., .].

    Products of `_BLOCK` steps are formed in all blocks side by side and the blocks then joined: a few dozen array
    operations in place of one per date.
    """
    dates, states, _ = steps.shape
    blocks = -(-dates // _BLOCK)
    padded = np.broadcast_to(np.eye(states), (blocks * _BLOCK, states, states)).copy()
    padded[:dates] = steps
    padded = padded.reshape(blocks, _BLOCK, states, states)
    for k in range(1, _BLOCK):
        product = padded[:, k - 1] @ padded[:, k]
        padded[:, k] = product / product.sum(axis=(1, 2), keepdims=True)
    vectors = np.empty((blocks, states))
    current = start / start.sum()
    for b in range(blocks):
        vectors[b] = current
        current = current @ padded[b, -1]
        current = current / current.sum()
    inside = (vectors[:, None, None, :] @ padded)[:, :, 0, :].reshape(blocks * _BLOCK, states)[:dates]
    whole = np.concatenate([vectors[:1], inside])
    return whole / whole.sum(axis=1, keepdims=True)


def stationary_law(transition: np.ndarray) -> np.ndarray:
    """Probabilities [states] that the chain keeps; ValueError when there is more than one such law."""
    states = len(transition)
    system = np.concatenate([transition.T - np.eye(states), np.ones((1, states))])
    if np.linalg.matrix_rank(system) < states:
        raise ValueError("the chain has more than one stationary law")
    solution = np.linalg.lstsq(system, np.append(np.zeros(states), 1.0), rcond=None)[0]
    return np.maximum(solution, 0.0) / np.maximum(solution, 0.0).sum()


def state_std(returns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Standard deviation about zero [assets, states] of returns [dates, assets] under weights [dates, states].

    NaN returns are left out; NaN where the weights of an asset's dates in a state add up to less than 20 days.
    """
    present = np.isfinite(returns)
    squares = np.where(present, returns, 0.0) ** 2
    mass = present.astype(np.float64).T @ weights
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mass >= 20.0, np.sqrt((squares.T @ weights) / mass), np.nan)


def state_mean_correlation(returns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average pairwise correlation [states] of returns [dates, assets] without NaN under weights [dates, states]."""
    averages = []
    for weight in weights.T:
        second = (returns * weight[:, None]).T @ returns
        size = np.sqrt(np.diag(second))
        correlation = second / np.outer(size, size)
        count = len(size)
        averages.append((float(correlation.sum()) - count) / (count * (count - 1)))
    return np.array(averages)


def state_correlation(correlation: np.ndarray, mean_correlation: float, *, prices: np.ndarray) -> np.ndarray:
    """`correlation` [factors, factors] moved so that the pairs of `prices` [factors] (boolean) average as given.

    Up: R + w (1 - R) towards one; down: w R towards zero, both on the block of prices; pairs with other factors are
    scaled by the root of what keeps the whole positive definite. The mean must lie in (0, 1).
    """
    block = np.outer(prices, prices) & ~np.eye(len(prices), dtype=bool)
    if not block.any():
        return correlation
    mean = float(correlation[block].mean())
    if not 0.0 < mean_correlation < 1.0 or not 0.0 < mean < 1.0:
        raise ValueError(f"average correlations {mean:.3g} and {mean_correlation:.3g} must lie in (0, 1)")
    if mean_correlation <= mean:
        share = mean_correlation / mean
        # D R D + (I - D^2) with D = sqrt(share) on prices: positive definite because both terms are
        damp = np.where(prices, math.sqrt(share), 1.0)
        moved = correlation * np.outer(damp, damp)
        np.fill_diagonal(moved, 1.0)
        return moved
    share = (mean_correlation - mean) / (1.0 - mean)
    # (1 - w) of the given law and w of one shock common to all prices
    damp = np.where(prices, math.sqrt(1.0 - share), 1.0)
    moved = correlation * np.outer(damp, damp) + share * np.outer(prices, prices)
    np.fill_diagonal(moved, 1.0)
    return moved
