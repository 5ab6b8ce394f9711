"""Stablecoins: ordinary days, depegs and how they heal. Levels are prices in dollars (or in another stablecoin).

Depegs are so few that only their rate can be estimated at all; what a handful of events says about depth and recovery
is reported beside figures that are assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

DEPEG = 0.01
"""A close further than this below one is a depeg."""

HEALED = 0.003
"""It ends with the first close nearer than this to one."""

MINIMUM_DEPEGS = 5
"""From so many events on their depth and recovery are estimated."""

YEAR_DAYS = 365.0

NU_GRID = np.array([2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 40.0])
"""Below 2.5 a standard deviation says next to nothing about a t, and a sample next to nothing about it."""


class Depeg(NamedTuple):
    """One event: position of its first day, deepest close (1 - level), decay per day, whether it healed in the data."""

    first: int
    depth: float
    recovery_per_day: float
    healed: bool


class PegHistory(NamedTuple):
    """Law of the ordinary log moves (a t, from `days` of them), and the depegs in `years` of levels."""

    daily_std: float
    nu: float
    days: int
    years: float
    depegs: tuple[Depeg, ...]


def peg_history(days: np.ndarray, levels: np.ndarray, *, ordinary_days: int | None = None) -> PegHistory:
    """Ordinary law and depegs of positive `levels` [count] on ascending day numbers [count].

    The ordinary law takes the last `ordinary_days` days, default all of them, the depegs all. Moves across a gap or on
    a day of a depeg (its end included) are left out of the ordinary law. Raises ValueError when fewer than 60 ordinary
    moves remain.
    """
    depegs, inside = _depegs(days, levels)
    moves = np.diff(np.log(levels))
    usable = (np.diff(days) == 1) & ~inside[1:] & ~inside[:-1]
    if ordinary_days is not None and len(days):
        usable &= days[1:] > days[-1] - ordinary_days
    ordinary = moves[usable]
    if len(ordinary) < 60:
        raise ValueError(f"{len(ordinary)} ordinary moves; at least 60 are needed")
    std, nu = student_fit(ordinary)
    return PegHistory(std, nu, len(ordinary), len(levels) / YEAR_DAYS, depegs)


def _depegs(days: np.ndarray, levels: np.ndarray) -> tuple[tuple[Depeg, ...], np.ndarray]:
    inside = np.zeros(len(levels), bool)
    found = []
    position = 0
    while position < len(levels):
        if not levels[position] < 1.0 - DEPEG:
            position += 1
            continue
        end = position
        while end < len(levels) and abs(levels[end] - 1.0) > HEALED:
            end += 1
        healed = end < len(levels)
        inside[position : end + 1] = True
        deepest = position + int(np.argmin(levels[position:end]))
        depth = float(1.0 - levels[deepest])
        recovery = 0.0
        if healed:
            # the last discount before the end counts as healed to the bound at most
            left = max(float(1.0 - levels[end]), HEALED / 3.0)
            recovery = math.log(depth / left) / max(int(days[end] - days[deepest]), 1)
        found.append(Depeg(position, depth, recovery, healed))
        position = end + 1
    return tuple(found), inside


def student_fit(moves: np.ndarray) -> tuple[float, float]:
    """Standard deviation and degrees of freedom (> 2, on `NU_GRID`) of a t about zero, by maximum likelihood [count].

    Raises ValueError when the moves are all zero.
    """
    if not np.any(moves != 0.0):
        raise ValueError("the moves are all zero")
    best = (-math.inf, 0.0, 0.0)
    for nu in NU_GRID.tolist():
        square = float(np.mean(moves**2)) * (nu - 2.0) / nu
        for _ in range(200):
            # EM of the scale: far moves weigh less
            following = float(np.mean((nu + 1.0) / (nu + moves**2 / square) * moves**2))
            done = abs(following - square) <= 1e-12 * square
            square = following
            if done:
                break
        constant = gammaln((nu + 1.0) / 2.0) - gammaln(nu / 2.0) - 0.5 * math.log(nu * math.pi * square)
        value = len(moves) * float(constant) - (nu + 1.0) / 2.0 * float(np.sum(np.log1p(moves**2 / (nu * square))))
        best = max(best, (value, math.sqrt(square * nu / (nu - 2.0)), nu))
    return best[1], best[2]


def event_rate(events: int, years: float) -> float:
    """Events per year under Jeffreys' prior, (events + 1/2) / years; its relative error is 1 / sqrt(events + 1/2)."""
    if not years > 0.0:
        raise ValueError("a rate needs a time of exposure")
    return (events + 0.5) / years


class DepegLaw(NamedTuple):
    """Depth is Beta(a, b) * cap; the discount decays at `recovery_per_day`, or with `absorbing_probability` never."""

    depth_a: float
    depth_b: float
    recovery_per_day: float
    absorbing_probability: float


def depeg_law(depegs: Sequence[Depeg], cap: float) -> DepegLaw:
    """Law of the depegs: moments of depth / cap, median recovery of those that healed, share of those that did not.

    The share is (not healed + 1/2) / (events + 1). Raises ValueError for fewer than `MINIMUM_DEPEGS`, fewer than two
    that healed, a depth beyond the cap, or a variance no Beta has.
    """
    if len(depegs) < MINIMUM_DEPEGS:
        raise ValueError(f"{len(depegs)} depegs; at least {MINIMUM_DEPEGS} are needed")
    recoveries = [depeg.recovery_per_day for depeg in depegs if depeg.healed]
    if len(recoveries) < 2:
        raise ValueError(f"{len(recoveries)} depegs healed; at least 2 are needed")
    scaled = np.array([depeg.depth for depeg in depegs]) / cap
    if np.max(scaled) > 1.0:
        raise ValueError("a depeg is deeper than the cap")
    mean, variance = float(np.mean(scaled)), float(np.var(scaled, ddof=1))
    if not 0.0 < variance < mean * (1.0 - mean):
        raise ValueError("no Beta law has the mean and variance of the depths")
    strength = mean * (1.0 - mean) / variance - 1.0
    lost = (len(depegs) - len(recoveries) + 0.5) / (len(depegs) + 1.0)
    return DepegLaw(mean * strength, (1.0 - mean) * strength, float(np.median(recoveries)), lost)
