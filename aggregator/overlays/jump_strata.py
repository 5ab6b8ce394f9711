"""Rare jumps drawn more often than they happen, with exact weights: strata of who jumps first in the list of coins.

A coin jumps when the hazard that it has met exceeds E, a standard exponential of its own. Coins are taken in order, and
every stratum but one says of one coin that its E lies in a band, and of those before it that theirs lie beyond their
last band; the last stratum is that of nobody. The strata exclude each other and leave nothing out, so each has a
probability in closed form:

    P(coin i, band [a, b)) = exp(-sum_{j<i} top_j) (e^{-a} - e^{-b});   P(nobody) = exp(-sum_j top_j)

A coin's first band ends at its hazard over all steps without stress: in it the coin jumps for certain. One that stress
hastens has a second, up to the hazard at `STRESS_OF_BAND` deviations: in it the coin jumps if the market falls enough.
A scenario has its stratum by its number, and weighs the probability of the stratum over the share of the scenarios that
lie in it: at most 1 / (1 - share) for nobody, and far less than 1 for a rare jump. (W. G. Cochran, "Sampling
techniques", 1977, chapter 5; P. Glasserman, "Monte Carlo Methods in Financial Engineering", 2004, section 4.3.) Because
E is what is stratified and not the jump, the weights stay exact when the hazard depends on the scenario.

Time, depth and recovery of the jump that a stratum asks for are spread evenly within it: one draw in each of as many
equal slices as it has scenarios in a period, in random order (a Latin hypercube; M. McKay, R. Beckman, W. Conover,
1979). A period is a whole scramble of a point set, so that the run of numbers which a stratum takes is a net of its
own, and a tile of independent draws otherwise. Axis words: `scenarios`, `coins`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from ..errors import ConfigurationError
from ..scenarios import TILE, float64, stream_number

SHARE = 0.25
"""Share of the scenarios in which somebody jumps; chosen with `benchmarks/rare_jump_error.py --tune`."""

STRESS_OF_BAND = 4.0
"""Falls of the market, in standard deviations of a step, whose hazard the second band reaches up to."""

_LARGEST_SHARE = 0.5
_STREAM = "jump strata"


class JumpDesign(NamedTuple):
    """How many scenarios, from which key; `period` consecutive ones hold every stratum in the same share.

    `steps` is the length of a path: the strata are those of the hazard over all of it.
    """

    key: PRNGKeyArray
    scenarios: int
    period: int = TILE
    steps: int = 1
    share: float = SHARE


class JumpStrata(eqx.Module):
    """A table of strata: which coin must jump (the number of coins: nobody), and what its jump is drawn from.

    `draws` are E of that coin and the uniforms of its recovery and depth; `tops` the end of each coin's last band.
    """

    coin: Int32[Array, " scenarios"]
    draws: Float[Array, "scenarios 3"]
    tops: Float[Array, " coins"]
    ratios: Float[Array, " scenarios"]
    """Probability of the scenario's stratum over its share of the scenarios; their mean is 1."""

    def held(self, index: UInt32[Array, ""], free: Float[Array, "coins 3"]) -> Float[Array, "coins 3"]:
        """The draws [coins, 3] of scenario `index`: those of its stratum where it says something, else the `free` ones.

        Beyond the last scenario (padding of weight 0) those of the last.
        """
        place = jnp.minimum(index.astype(jnp.int32), self.coin.shape[0] - 1)
        number, chosen = jnp.arange(free.shape[0]), self.coin[place]
        beyond = jnp.concatenate([(free[:, 0] + self.tops)[:, None], free[:, 1:]], axis=1)
        mine = jnp.where((number == chosen)[:, None], self.draws[place][None, :], free)
        return jnp.where((number < chosen)[:, None], beyond, mine)


class _Stratum(NamedTuple):
    coin: int
    low: float
    high: float
    probability: float


def jump_strata(design: JumpDesign, expected_jumps: np.ndarray, stress_loadings: np.ndarray) -> JumpStrata:
    """Strata of coins with `expected_jumps` [coins] in a step without stress, and the loadings of their hazards on it.

    A period too short for a scenario in every stratum is doubled. Raises ConfigurationError for too few scenarios.
    """
    strata, tops = _strata(expected_jumps * design.steps, stress_loadings)
    nobody = len(expected_jumps)
    size, period = _sizes(design, len(strata))
    of_period = np.full(period, len(strata))
    of_period[: size * len(strata)] = np.repeat(np.arange(len(strata)), size)
    number = np.tile(of_period, -(-design.scenarios // period))[: design.scenarios]
    probability = np.array([*(s.probability for s in strata), math.exp(-math.fsum(tops))])
    count = np.bincount(number, minlength=len(strata) + 1)
    low, high = (np.array([*(getattr(s, end) for s in strata), 0.0]) for end in ("low", "high"))
    uniforms = _spread(design, number, size, period)
    mass = -np.expm1(-(high - low))[number]
    until = low[number] - np.log1p(-uniforms[:, 0] * mass)
    coin = np.array([*(s.coin for s in strata), nobody], np.int32)[number]
    ratio = probability * design.scenarios / np.maximum(count, 1)
    return JumpStrata(
        coin=jnp.asarray(coin),
        draws=float64(np.column_stack([until, uniforms[:, 1:]])),
        tops=float64(tops),
        ratios=float64(ratio[number]),
    )


def _strata(hazards: np.ndarray, loadings: np.ndarray) -> tuple[list[_Stratum], np.ndarray]:
    """Bands of the coins that can jump at all, in order, and the end of each coin's last band."""
    strata: list[_Stratum] = []
    tops = np.zeros(len(hazards))
    before = 0.0
    for coin, (hazard, loading) in enumerate(zip(hazards, loadings, strict=True)):
        if hazard <= 0.0:
            continue
        ends = [0.0, hazard] + ([hazard * math.exp(loading * STRESS_OF_BAND)] if loading > 0.0 else [])
        for low, high in pairwise(ends):
            strata.append(_Stratum(coin, low, high, math.exp(-before - low) * -math.expm1(low - high)))
        tops[coin] = ends[-1]
        before += ends[-1]
    return strata, tops


def _sizes(design: JumpDesign, strata: int) -> tuple[int, int]:
    """Scenarios of a stratum in a period (a power of two, for runs that are nets), and the period."""
    if not 0.0 < design.share <= _LARGEST_SHARE:
        raise ConfigurationError(f"share of rare jumps is {design.share}; expected above 0 and at most one half")
    size = 1 << max(math.floor(math.log2(design.period * design.share / max(strata, 1))), 0)
    period = design.period
    while size * strata > _LARGEST_SHARE * period:
        period *= 2
    if period > design.scenarios:
        raise ConfigurationError(
            f"{design.scenarios} scenarios are too few for {strata} kinds of rare jumps; expected at least {period}"
        )
    return size, period


def _spread(design: JumpDesign, number: np.ndarray, size: int, period: int) -> np.ndarray:
    """Uniforms [scenarios, 3], strictly between 0 and 1: of `size` numbers in a row one in each slice."""
    words = [int(word) for word in np.asarray(jax.random.key_data(design.key)).ravel()]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([*words, int(stream_number(_STREAM))])))
    periods, runs = -(-len(number) // period), period // size
    slices = np.broadcast_to(np.arange(size, dtype=np.float64), (periods, runs, 3, size))
    placed = (rng.permuted(slices, axis=3) + rng.random(slices.shape)) / size
    inside = np.clip(placed, 2.0**-53, 1.0 - 2.0**-53)
    return inside.transpose(0, 1, 3, 2).reshape(-1, 3)[: len(number)]
