"""Exact value at risk and expected shortfall of a long loss row, without sorting it.

For the sweep of whole books: `risk.tail_risk` counts 32 times over a row for each level, this about six times. How many
losses lie above a value is interpolated until one loss is left between two values. The value at risk has the same bits
as there.

Losses are float32, positive; scenarios that do not count carry `NO_LOSS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

from .risk import MASS_SLACK
from .rounding import rounded

LANES = 1024
"""Width in which a row is folded; rows are padded to a multiple of it."""

NO_LOSS = np.float32(np.finfo(np.float32).min)
"""Loss of a scenario that does not count: below every other."""

MOST_SCENARIOS = 2**24
"""Counts of scenarios are float32, which a CPU adds faster than integers; exact up to here."""

# As in `risk`, or the quantiles would differ.
_MASS_SCALE = 2.0**60
_SIGN = np.uint32(1 << 31)
_GROUPS = 128
_Combine = Callable[[Array, Array], Array]


def larger(a: Array, b: Array) -> Array:
    """The larger of two numbers that are no NaN: one instruction, where a maximum that keeps NaN takes several."""
    return jnp.where(a > b, a, b)


def folded(values: Float[Array, "*rows scenarios"], combine: _Combine = jnp.add) -> Float[Array, "*rows"]:
    """All values of a row, whose length is a multiple of `LANES`, combined in one fixed order; the dtype is kept.

    Elementwise from the first step to the last: a library reduction over the last axis runs one element after the
    other on a CPU, and drags along whatever the compiler fuses with it.
    """
    if values.shape[-1] == 0 or values.shape[-1] % LANES:
        raise ValueError(f"the last axis must be a positive multiple of {LANES}, found shape {values.shape}")
    out = values
    for width in (LANES, 128, 16, 2, 1):
        out = _combined_slices(out, width, combine)
    return out[..., 0]


def _combined_slices(values: Array, width: int, combine: _Combine) -> Array:
    axis = values.ndim - 1
    out = lax.slice_in_dim(values, 0, width, axis=axis)
    for first in range(width, values.shape[-1], width):
        out = combine(out, lax.slice_in_dim(values, first, first + width, axis=axis))
    return out


def losses_beyond(scenarios: int, level: float) -> int:
    """How many of `scenarios` equally likely losses lie above the value at risk at `level`, if none are tied."""
    return scenarios - math.ceil((level - MASS_SLACK) * scenarios)


def equal_tails(
    losses: Float[Array, " scenarios"], *, scenarios: int, levels: Sequence[float]
) -> tuple[Float[Array, " levels"], Float[Array, " levels"], Float[Array, ""]]:
    """(VaR, ES, largest loss) in float64 of `scenarios` equally likely losses; losses beside them are `NO_LOSS`.

    `levels` ascend. ES_a = VaR_a + sum (L - VaR_a)+ / (N (1 - a)), as `risk.tail_risk`; the order of the scenarios
    shows in its last bits alone, and the sign of a zero means nothing. Infinite losses give infinite figures; NaN
    gives some loss of the row: see to it before.
    The losses beyond the lowest level suffice. Raises `ValueError` for more scenarios than float32 can count.
    """
    if not 0 < scenarios <= MOST_SCENARIOS:
        raise ValueError(f"{scenarios} scenarios: expected 1 to {MOST_SCENARIOS}")
    top, mean, scale, groups = _first_look(losses)
    low, above_low = jnp.float32(NO_LOSS), jnp.float32(scenarios)
    guess, at_guess = mean, math.log(scenarios / (groups * 1.78))
    var, es = [], []
    for level in levels:
        beyond = losses_beyond(scenarios, level)
        start = guess + scale * np.float32(at_guess - math.log(beyond + 0.5))
        bracket = _Bracket(low, above_low, top, jnp.float32(0.0))
        quantile, low, above_low = _quantile(losses, np.float32(beyond), bracket, start, scale)
        excess = jnp.where(losses > quantile, losses.astype(jnp.float64) - quantile.astype(jnp.float64), 0.0)
        at = quantile.astype(jnp.float64)
        var.append(at)
        es.append(at + rounded(folded(excess) * (1.0 / ((1.0 - level) * scenarios))))
        guess, at_guess = quantile, math.log(beyond + 0.5)
    return jnp.stack(var), jnp.stack(es), top.astype(jnp.float64)


def weighted_tails(
    losses: Float[Array, " scenarios"], weights: Float[Array, " scenarios"], *, scenarios: int, levels: Sequence[float]
) -> tuple[Float[Array, " levels"], Float[Array, " levels"], Float[Array, ""]]:
    """(VaR, ES, largest loss) in float64 of losses with float64 weights that sum to 1; some `scenarios` are above 0.

    The value at risk has the bits of `risk.tail_risk`: probability is counted in the same integers. Scenarios of weight
    0 are `NO_LOSS`; otherwise as `equal_tails`.
    """
    mass = jnp.round(weights * _MASS_SCALE).astype(jnp.int64)
    total = folded(mass)
    top, mean, scale, groups = _first_look(losses)
    counted = scenarios / total.astype(jnp.float64)
    var, es = [], []
    for level in levels:
        # As in `risk`: the quantile is the smallest loss with at most this mass above it.
        beyond = total - jnp.ceil((level - MASS_SLACK) * total.astype(jnp.float64)).astype(jnp.int64)
        wanted = math.log((1.0 - level) * scenarios + 0.5)
        start = mean + scale * np.float32(math.log(scenarios / (groups * 1.78)) - wanted)
        quantile = _weighted_quantile(losses, mass, beyond, counted, top, (start, scale, np.float32(wanted)))
        at = quantile.astype(jnp.float64)
        excess = jnp.where(losses > quantile, losses.astype(jnp.float64) - at, 0.0)
        var.append(at)
        es.append(at + rounded(folded(rounded(weights * excess)) * (1.0 / (1.0 - level))))
    return jnp.stack(var), jnp.stack(es), top.astype(jnp.float64)


def _weighted_quantile(
    losses: Array, mass: Array, beyond: Array, counted: Array, top: Array, guess: tuple[Array, Array, np.float32]
) -> Array:
    """The smallest loss above which at most the mass `beyond` lies; `counted` scenarios make up a unit of mass."""
    start, scale, wanted = guess

    def unsettled(state: tuple[_Bracket, Array, Array, Array]) -> Array:
        b, least, _, _ = state
        return least < b.high

    def narrow(state: tuple[_Bracket, Array, Array, Array]) -> tuple[_Bracket, Array, Array, Array]:
        b, least, value, turn = state
        is_above = losses > value
        above = folded(jnp.where(is_above, mass, jnp.int64(0)))
        count = (above.astype(jnp.float64) * counted).astype(jnp.float32)
        is_low = above > beyond
        # Only losses that occur are ends of the bracket, so it closes however far apart they are.
        next_above = -folded(jnp.where(is_above, -losses, NO_LOSS), larger)
        next_below = folded(jnp.where(is_above, NO_LOSS, losses), larger)
        b = _Bracket(
            jnp.where(is_low, value, b.low),
            jnp.where(is_low, count, b.above_low),
            jnp.where(is_low, b.high, next_below),
            jnp.where(is_low, b.above_high, count),
        )
        return b, jnp.where(is_low, next_above, least), _next_value(b, wanted, scale, turn), turn + jnp.int32(1)

    low = jnp.float32(NO_LOSS)
    b = _Bracket(low, jnp.exp(wanted), top, jnp.float32(0.0))
    first = jnp.where((start > low) & (start < top), start, _half_way(b))
    b, _, _, _ = lax.while_loop(unsettled, narrow, (b, low, first, jnp.int32(0)))
    return b.high


# Share of the portfolios, of tails that spread evenly over the lanes, that may have to be searched as a whole.
_SEARCHED_WHOLE = 0.02
# With more losses of a lane to keep, keeping them takes longer than to search all.
_MOST_LAYERS = 16


def _layers(scenarios: int, lanes: int, level: float) -> int | None:
    """How many losses of each lane to keep, so that rarely one of the tail is left out; None if too many."""
    expected = losses_beyond(scenarios, level) / lanes
    # The tail of Poisson's law, and as many layers as fill whole lanes of the search.
    step = max(LANES // lanes, 1)
    for layers in range(step, _MOST_LAYERS + 1, step):
        term, below = math.exp(-expected), 0.0
        for number in range(layers + 1):
            below += term
            term *= expected / (number + 1)
        if lanes * (1.0 - below) < _SEARCHED_WHOLE:
            return layers
    return None


def highest_tails(
    losses: Float[Array, "rows lanes"], *, scenarios: int, levels: Sequence[float]
) -> tuple[Float[Array, " levels"], Float[Array, " levels"], Float[Array, ""]]:
    """As `equal_tails` of all losses together, read once: only the largest of each lane are searched.

    A lane rarely holds more than a few losses of the tail. Where one may, which its smallest kept loss tells, all are
    searched: the same values, only slower. The more scenarios, the more losses of a lane are kept.
    """
    rows, lanes = losses.shape
    layers = _layers(scenarios, lanes, levels[0])

    def of_all() -> tuple[Array, Array, Array]:
        return equal_tails(losses.reshape(-1), scenarios=scenarios, levels=levels)

    if layers is None:
        return of_all()

    def insert(row: Array, kept: tuple[Array, ...]) -> tuple[Array, ...]:
        more = lax.dynamic_index_in_dim(losses, row, keepdims=False)
        out = []
        for of in kept:
            out.append(larger(of, more))
            more = jnp.where(of > more, more, of)
        return tuple(out)

    nothing = (jnp.full(lanes, NO_LOSS, jnp.float32),) * layers
    kept = lax.fori_loop(jnp.int32(0), jnp.int32(rows), insert, nothing)
    found = equal_tails(jnp.concatenate(kept), scenarios=scenarios, levels=levels)
    left_out = folded(jnp.pad(kept[-1], (0, -lanes % LANES), constant_values=NO_LOSS), larger)
    return lax.cond(left_out.astype(jnp.float64) <= found[0][0], lambda: found, of_all)


def _first_look(losses: Array) -> tuple[Array, Array, Array, int]:
    """The largest loss, and mean and spread of the largest of every group, and how large a group is.

    The largest loss of a group is a quantile of about 1 - 1 / (its size), and how these largest losses vary says how
    fast the tail falls: those of an exponential tail of scale b have a standard deviation of 1.28 b.
    """
    lanes = _combined_slices(losses, LANES, larger)
    largest = _combined_slices(lanes, _GROUPS, larger)
    mean = _halved(largest) / np.float32(_GROUPS)
    scale = np.float32(0.78) * jnp.sqrt(_halved((largest - mean) * (largest - mean)) / np.float32(_GROUPS))
    return folded(lanes, larger), mean, scale, losses.shape[-1] // LANES * (LANES // _GROUPS)


class _Bracket(NamedTuple):
    """The quantile lies in (low, high]; how many losses lie above each of the two."""

    low: Float[Array, ""]
    above_low: Float[Array, ""]
    high: Float[Array, ""]
    above_high: Float[Array, ""]


def _quantile(
    losses: Array, beyond: np.float32, bracket: _Bracket, guess: Array, scale: Array
) -> tuple[Array, Array, Array]:
    """(the smallest loss above which at most `beyond` losses lie, the lower end of the last bracket, its count)."""

    def unsettled(state: tuple[_Bracket, Array, Array]) -> Array:
        b, _, _ = state
        return (_key(b.high) - _key(b.low) > 1) & (b.above_low > beyond + 1) & (b.above_high < beyond)

    def narrow(state: tuple[_Bracket, Array, Array]) -> tuple[_Bracket, Array, Array]:
        b, value, turn = state
        above = folded(jnp.where(losses > value, jnp.float32(1.0), jnp.float32(0.0)))
        is_low = above > beyond
        b = _Bracket(
            jnp.where(is_low, value, b.low),
            jnp.where(is_low, above, b.above_low),
            jnp.where(is_low, b.high, value),
            jnp.where(is_low, b.above_high, above),
        )
        return b, _next_value(b, np.float32(math.log(beyond + 0.5)), scale, turn), turn + jnp.int32(1)

    inside = (guess > bracket.low) & (guess < bracket.high)
    first = jnp.where(inside, guess, _half_way(bracket))
    b, _, _ = lax.while_loop(unsettled, narrow, (bracket, first, jnp.int32(0)))
    # One loss is left in the bracket: its largest if `beyond` losses lie above it, else its smallest.
    is_largest = b.above_high == beyond
    sign = jnp.where(is_largest, jnp.float32(1.0), jnp.float32(-1.0))
    there = jnp.where(is_largest, losses <= b.high, losses > b.low)
    last = sign * folded(jnp.where(there, sign * losses, NO_LOSS), larger)
    return jnp.where(is_largest | (b.above_low == beyond + 1), last, b.high), b.low, b.above_low


def _next_value(bracket: _Bracket, wanted: np.float32, scale: Array, turn: Array) -> Array:
    """Where about exp(`wanted`) losses lie above: between the ends of the bracket on the logarithm of the counts, from
    one end by the scale of the tail while the other is only a bound, and every fifth time half way between the floats,
    so that the search ends whatever the losses are.
    """
    low, above_low, high, above_high = bracket
    at_low, at_high = jnp.log(above_low + 0.5), jnp.log(above_high + 0.5)
    share = jnp.clip((at_low - wanted) / (at_low - at_high), 0.01, 0.99)
    by_scale = jnp.where(
        low == NO_LOSS,
        high - np.float32(1.1) * scale * (wanted - at_high),
        low + np.float32(1.1) * scale * (at_low - wanted),
    )
    one_sided = (low == NO_LOSS) | (above_high == 0.0)
    value = jnp.where(one_sided, by_scale, low + share * (high - low))
    usable = (value > low) & (value < high) & (turn % 5 != 4)
    return jnp.where(usable, value, _half_way(bracket))


def _half_way(bracket: _Bracket) -> Array:
    low, high = _key(bracket.low), _key(bracket.high)
    return _value(low + (high - low) // np.uint32(2))


def _halved(values: Array) -> Array:
    width = values.shape[-1]
    while width > 1:
        width //= 2
        values = values[..., :width] + values[..., width:]
    return values[..., 0]


def _key(value: Float[Array, ""]) -> UInt32[Array, ""]:
    """An integer in the order of the floats."""
    bits = lax.bitcast_convert_type(value, jnp.uint32)
    return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def _value(key: UInt32[Array, ""]) -> Float[Array, ""]:
    return lax.bitcast_convert_type(jnp.where(key >= _SIGN, key ^ _SIGN, ~key), jnp.float32)
