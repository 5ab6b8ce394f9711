"""Which channels are up in every scenario: one uniform for each channel and scenario, common to all routes through it.

A channel is down with the probability that `routes.Outage` states at the scenario's stress, which is the fall of the
market in standard deviations. Draws are counter-based by the channel's name and the scenario's number, so that one
more channel in the file leaves all others as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .errors import ConfigurationError, nearest_name
from .risk import tile_sum
from .routes import Outage
from .scenarios import scenario_stream

_DAYS_PER_YEAR = 365.0


class ChannelScenarios(eqx.Module):
    """State of C channels in S scenarios. `lost`: what is under way does not arrive and does not come back."""

    up: Bool[Array, "S C"]
    lost: Bool[Array, "S C"]


def channel_scenarios(
    channels: Mapping[str, tuple[Outage, float]],
    stress: Float[Array, " S"],
    *,
    seed: int,
    horizon_days: float,
    kind: Literal["scenarios", "paths"],
) -> ChannelScenarios:
    """States of `channels` (outage and losses a year by name, in their order) at each scenario's `stress`.

    A channel that loses what is under way is down as well. `kind` keeps the paths' draws apart from the scenarios'.
    """
    key = jax.random.key(seed)
    numbers = jnp.arange(stress.shape[0], dtype=jnp.uint32)
    up, lost = [], []
    for name, (outage, per_year) in channels.items():
        chance = 1.0 / (1.0 + jnp.exp(-(outage.intercept + outage.slope * stress)))
        failing = -math.expm1(-per_year * horizon_days / _DAYS_PER_YEAR)
        fails = _uniforms(key, f"{kind} loss {name}", numbers) < failing
        up.append((_uniforms(key, f"{kind} outage {name}", numbers) >= chance) & ~fails)
        lost.append(fails)
    if not up:
        nothing = jnp.zeros((stress.shape[0], 0), bool)
        return ChannelScenarios(nothing, nothing)
    return ChannelScenarios(jnp.stack(up, axis=1), jnp.stack(lost, axis=1))


def _uniforms(key: Array, name: str, numbers: Array) -> Float[Array, " S"]:
    return jax.vmap(lambda number: jax.random.uniform(scenario_stream(key, name, number), (), jnp.float64))(numbers)


def market_factor(factors: Sequence[str], asset: str) -> int:
    """Number of the price factor of the market; ConfigurationError where the run does not move it."""
    name = f"price:{asset}"
    if name not in factors:
        known = [factor.removeprefix("price:") for factor in factors if factor.startswith("price:")]
        raise ConfigurationError(
            f"routes: deadline.market is {asset!r}, which no scenario of this run moves{nearest_name(asset, known)}"
        )
    return list(factors).index(name)


def market_stress(moves: Float[Array, "S steps"], weights: Float[Array, " S"]) -> Float[Array, " S"]:
    """Deepest fall of the market on the way, in standard deviations of its move over the horizon; at least 0.

    `moves` are log-moves since today after every step. Without any spread there is no stress.
    """
    end = moves[:, -1]
    mean = tile_sum(weights * end)
    spread = jnp.sqrt(tile_sum(weights * (end - mean) ** 2))
    deepest = jnp.maximum(-jnp.min(moves, axis=1), 0.0)
    return jnp.where(spread > 0.0, deepest / jnp.where(spread > 0.0, spread, 1.0), 0.0)
