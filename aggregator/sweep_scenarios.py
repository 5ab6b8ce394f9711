"""The scenarios of a sweep: drawn by all devices, or given, and put in the order in which the sweep takes them.

Scenarios of about one size stand together, and of those the falling ones: in a tile that stays near today, or goes one
way, its ranges decide most tiers and limits. The order is that of the scenarios alone, not of what a book holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from .device_mesh import AXIS, SPLIT, WHOLE, dealt_out, split_over
from .errors import ConfigurationError
from .rounding import rounded
from .scenarios import ScenarioGenerator, draw_scenarios, padded_count, scenario_weights
from .weighted_tail import MOST_SCENARIOS

_CHUNK = 2048
"""Most scenarios that a device takes at a time."""

_SUM_SLACK = 1e-9

_ONE_SIZE = 1536
"""Scenarios, a few tiles of the sweep, that count as of one size."""


class ScenarioSet(NamedTuple):
    """Log-changes [scenarios, factors] of named factors over the horizon, and their probabilities, which sum to 1."""

    factors: tuple[str, ...]
    shocks: np.ndarray
    weights: np.ndarray


class SweepScenarios(NamedTuple):
    """Scenarios in the order of a sweep, on the host: log-changes [scenarios, factors] and weights [scenarios].

    The first `positive` have a positive weight; those behind them do not count. `equal`: whether the first ones weigh
    the same.
    """

    shocks: np.ndarray
    weights: np.ndarray
    positive: int
    equal: bool


class _Drawn(NamedTuple):
    """Log-changes, their sum over the factors and the sum of their squares."""

    shocks: Float[Array, "scenarios factors"]
    total: Float[Array, " scenarios"]
    size: Float[Array, " scenarios"]


def sweep_scenarios(source: ScenarioGenerator | ScenarioSet, *, seed: int, scenarios: int | None) -> SweepScenarios:
    """The scenarios of a source; `seed` and `scenarios` are those of a generator (as `engine.draw_cube`).

    Raises `ConfigurationError` for given shocks that are not finite, for weights that are none or do not sum to 1, and
    for a seed or a number of scenarios out of range.
    """
    if not 0 <= seed < 2**63:
        raise ConfigurationError(f"seed {seed}: expected 0 to {2**63 - 1}")
    if isinstance(source, ScenarioSet):
        found = _checked(source)
        weights = np.pad(found, (0, padded_count(len(found)) - len(found)))
    elif scenarios is not None and scenarios > MOST_SCENARIOS:
        raise ConfigurationError(f"{scenarios} scenarios: expected at most {MOST_SCENARIOS}")
    else:
        weights = np.asarray(scenario_weights(source, scenarios))
    total = len(weights)
    chunk, devices = even_chunk(total)
    key = jax.random.key(seed)
    parts = []
    for first in range(0, total, chunk):
        if isinstance(source, ScenarioSet):
            given = np.zeros((chunk, len(source.factors)))
            rows = np.asarray(source.shocks)[first : first + chunk]
            given[: len(rows)] = rows
            parts.append(_given(dealt_out(given, devices), devices))
        else:
            parts.append(_drawn(source, key, jnp.uint32(first), chunk, devices))
    size = np.concatenate([part.size for part in parts])[:total]
    change = np.concatenate([part.total for part in parts])[:total]
    real = weights > 0
    order = np.lexsort((size, ~real))
    order = order[np.lexsort((change[order], np.arange(total) // _ONE_SIZE, ~real[order]))]
    place = np.empty(total, np.int64)
    place[order] = np.arange(total)
    shocks = np.zeros((total, len(source.factors)))
    for number, part in enumerate(parts):
        for of_device in part.shocks.addressable_shards:
            at = number * chunk + (of_device.index[0].start or 0)
            to = place[at : at + of_device.data.shape[0]]
            shocks[to] = np.asarray(of_device.data)[: len(to)]
    equal = bool((weights[real] == weights[real][0]).all())
    return SweepScenarios(shocks, weights[order], int(real.sum()), equal)


def even_chunk(total: int) -> tuple[int, int]:
    """(scenarios of a call, devices): the least that cover `total` scenarios in as few calls of one size."""
    devices = len(jax.local_devices())
    calls = -(-total // (_CHUNK * devices))
    return padded_count(-(-total // (calls * devices))) * devices, devices


_OF_DRAWN: Any = _Drawn(*[SPLIT] * 3)  # type: ignore[arg-type]


@eqx.filter_jit
def _drawn(
    generator: ScenarioGenerator, key: PRNGKeyArray, first: UInt32[Array, ""], count: int, devices: int
) -> _Drawn:
    """The scenarios `first` .. `first + count - 1` of a generator, `count` a multiple of `TILE * devices`."""
    figures, structure = eqx.partition(generator, eqx.is_array)
    share = count // devices

    def block(figures: Any, key: PRNGKeyArray, first: UInt32[Array, ""]) -> _Drawn:
        own = first if devices == 1 else first + lax.axis_index(AXIS).astype(jnp.uint32) * jnp.uint32(share)
        return _with_size(draw_scenarios(eqx.combine(figures, structure), key, own, share))

    drawn: _Drawn = split_over(devices, block, inputs=(WHOLE, WHOLE, WHOLE), outputs=_OF_DRAWN)(figures, key, first)
    return drawn


@eqx.filter_jit
def _given(shocks: Float[Array, "scenarios factors"], devices: int) -> _Drawn:
    given: _Drawn = split_over(devices, _with_size, inputs=(SPLIT,), outputs=_OF_DRAWN)(shocks)
    return given


def _with_size(shocks: Float[Array, "scenarios factors"]) -> _Drawn:
    by_factor = shocks.T

    def add(factor: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        of = by_factor[factor]
        return sums[0] + of, sums[1] + rounded(of * of)

    # One by one: a reduction would leave the order, and so the bits, to the compiler.
    zero = jnp.zeros(by_factor.shape[1], by_factor.dtype)
    return _Drawn(shocks, *lax.fori_loop(0, by_factor.shape[0], add, (zero, zero)))


def _checked(given: ScenarioSet) -> np.ndarray:
    """The weights; `ConfigurationError` unless shocks and weights are finite, of equal length, and those sum to 1."""
    try:
        shocks, weights = np.asarray(given.shocks, np.float64), np.asarray(given.weights, np.float64)
    except (TypeError, ValueError) as problem:
        raise ConfigurationError(f"shocks and weights of scenarios must be numbers: {problem}") from None
    if weights.ndim != 1 or shocks.shape != (len(weights), len(given.factors)):
        raise ConfigurationError(
            f"shocks have shape {shocks.shape} and weights {weights.shape}; expected (scenarios, {len(given.factors)}) "
            f"for the factors and (scenarios,)"
        )
    if len(set(given.factors)) < len(given.factors):
        raise ConfigurationError(f"a factor stands twice: {sorted(given.factors)}")
    finite = np.isfinite(shocks).all(axis=0)
    if not finite.all():
        raise ConfigurationError(f"shocks of {given.factors[int(finite.argmin())]} are not all finite numbers")
    if not (np.isfinite(weights) & (weights >= 0.0)).all() or not weights.sum() > 0.0:
        raise ConfigurationError("weights of scenarios must be finite, not negative and not all zero")
    if abs(weights.sum() - 1.0) > _SUM_SLACK:
        raise ConfigurationError(f"weights of scenarios sum to {float(weights.sum())!r}; expected 1")
    return weights
