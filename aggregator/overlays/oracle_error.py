"""Oracles whose mark is not the price: late, frozen, wrong, or moving only when it must.

The factor `oracle:NAME` (an asset or a venue) is the log-change of M / P over the step, M the oracle's mark and P the
price; its sum along a path is ln(M / P), which is 0 today. Liquidation rules read M, fills and bad debt use P. In every
step, in this order: the feed sees the price of `delay_steps` ago; while it is wrong, a random factor times that; the
mark takes over what the feed says when it differs from the mark by more than `deviation` or the heartbeat is due, but
never during an outage. Outages and wrong spells begin at a rate per year (365 days) and last a number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import ScenarioGenerator, float64, require_positive
from .added_factors import (
    appended_names,
    overlay_normals,
    overlay_streams,
    price_places,
    require_at_least,
    require_finite,
)

_OVERLAY = "oracle_error"
_DAYS_PER_YEAR = 365.0
_NEVER = 2**31 - 1
_LONGEST_DELAY = 1000


class OracleLaw(NamedTuple):
    """One oracle of the factor `price`; all defaults together are a perfect one.

    `deviation` is a fraction of the mark, `heartbeat_steps` the most steps between two updates (None: no heartbeat).
    A wrong feed reports the price times exp(error_mean + error_std Z), one Z for a spell. Oracles with the same `feed`
    share outages, spells and Z; "" is a feed of its own.
    """

    price: str
    deviation: float = 0.0
    heartbeat_steps: int | None = None
    delay_steps: int = 0
    outages_per_year: float = 0.0
    outage_steps: int = 1
    errors_per_year: float = 0.0
    error_mean: float = 0.0
    error_std: float = 0.0
    error_steps: int = 1
    feed: str = ""


class OracleState(NamedTuple):
    """Of one oracle; logarithms are relative to today's price."""

    prices: Float[Array, " delays"]
    """Log-price now, a step ago, and so on."""
    mark: Float[Array, ""]
    age: Int32[Array, ""]
    """Steps since the last update."""
    outage_left: Int32[Array, ""]
    """Steps of the outage that are not over, this one included; 0 without one."""
    error_left: Int32[Array, ""]
    error: Float[Array, ""]


class OracleFigures(eqx.Module):
    """Figures of the laws over a step, with a leading axis for the oracles."""

    deviation: Float[Array, "*oracles"]
    heartbeat: Int32[Array, "*oracles"]
    delay: Int32[Array, "*oracles"]
    outage_probability: Float[Array, "*oracles"]
    outage_steps: Int32[Array, "*oracles"]
    error_probability: Float[Array, "*oracles"]
    error_steps: Int32[Array, "*oracles"]
    error_mean: Float[Array, "*oracles"]
    error_std: Float[Array, "*oracles"]


class OracleError(eqx.Module):
    """A generator with `oracle:` factors that follow its prices. Build it with `oracle_error`."""

    base: ScenarioGenerator
    names: tuple[str, ...] = eqx.field(static=True)
    prices: tuple[int, ...] = eqx.field(static=True)
    """Columns of the prices that the oracles report."""
    feeds: tuple[str, ...] = eqx.field(static=True)
    longest_delay: int = eqx.field(static=True)
    figures: OracleFigures

    @property
    def factors(self) -> tuple[str, ...]:
        return (*self.base.factors, *self.names)

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return self.base.own_weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, OracleState]:
        """State of the base; every oracle is up to date."""
        count = len(self.names)
        zero, none = jnp.zeros(count, jnp.float64), jnp.zeros(count, jnp.int32)
        past = jnp.zeros((count, self.longest_delay + 1), jnp.float64)
        return self.base.start(key, index), OracleState(past, zero, none, none, none, zero)

    def step(
        self, state: tuple[Any, OracleState], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[Any, OracleState], Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""
        of_base, oracles = state
        of_base, moves = self.base.step(of_base, key, index)
        feeds = tuple(dict.fromkeys(self.feeds))
        streams = overlay_streams(key, _OVERLAY, (*feeds, *(f"{feed} error" for feed in feeds)), index)
        of_feed = np.array([feeds.index(feed) for feed in self.feeds])
        u = jax.vmap(lambda stream: jax.random.uniform(stream, (2,), jnp.float64))(streams[: len(feeds)])[of_feed]
        z = overlay_normals(streams[len(feeds) :])[of_feed]
        oracles, own = jax.vmap(_oracle_step)(oracles, moves[np.array(self.prices)], u, z, self.figures)
        return (of_base, oracles), jnp.concatenate([moves, own])


def oracle_error(base: ScenarioGenerator, laws: Mapping[str, OracleLaw], *, step_days: float = 1.0) -> OracleError:
    """`base` with the factors of `laws` ("oracle:BTC", "oracle:aave") appended; `step_days` must be its step.

    Raises ConfigurationError naming the factor when a figure is wrong, the price is not in `base` or the factor is in
    it already.
    """
    require_positive("step_days", step_days)
    names = appended_names(base, laws, overlay=_OVERLAY, kind="oracle:")
    prices = price_places(base, (laws[name].price for name in names), names, overlay=_OVERLAY)
    for name, law in laws.items():
        _check(name, law)
    of = [laws[name] for name in names]

    def probability(per_year: float) -> float:
        return -math.expm1(-per_year * step_days / _DAYS_PER_YEAR)

    return OracleError(
        base=base,
        names=names,
        prices=prices,
        feeds=tuple(laws[name].feed or name for name in names),
        longest_delay=max(law.delay_steps for law in of),
        figures=OracleFigures(
            deviation=float64([law.deviation for law in of]),
            heartbeat=_counts([_NEVER if law.heartbeat_steps is None else law.heartbeat_steps for law in of]),
            delay=_counts([law.delay_steps for law in of]),
            outage_probability=float64([probability(law.outages_per_year) for law in of]),
            outage_steps=_counts([law.outage_steps for law in of]),
            error_probability=float64([probability(law.errors_per_year) for law in of]),
            error_steps=_counts([law.error_steps for law in of]),
            error_mean=float64([law.error_mean for law in of]),
            error_std=float64([law.error_std for law in of]),
        ),
    )


def _oracle_step(
    state: OracleState, move: Float[Array, ""], u: Float[Array, "2"], z: Float[Array, ""], law: OracleFigures
) -> tuple[OracleState, Float[Array, ""]]:
    """One oracle over one step: its state after, and the log-change of M / P."""
    before = state.prices[0]
    now = before + move
    prices = jnp.concatenate([now[None], state.prices[:-1]])
    outage_left = _spell(state.outage_left, u[0] < law.outage_probability, law.outage_steps)
    error_left = _spell(state.error_left, u[1] < law.error_probability, law.error_steps)
    drawn = jnp.where(state.error_left > 1, state.error, law.error_mean + rounded(law.error_std * z))
    error = jnp.where(error_left > 0, drawn, 0.0)
    feed = prices[law.delay] + error
    age = state.age + 1
    is_due = (jnp.abs(jnp.expm1(feed - state.mark)) > law.deviation) | (age >= law.heartbeat)
    updates = is_due & (outage_left == 0)
    mark = jnp.where(updates, feed, state.mark)
    after = OracleState(prices, mark, jnp.where(updates, 0, age), outage_left, error_left, error)
    return after, (mark - now) - (state.mark - before)


def _spell(left: Int32[Array, ""], begins: Array, steps: Int32[Array, ""]) -> Int32[Array, ""]:
    """Steps left of a spell, this one included: one less than before, or all of a new one once none is on."""
    return jnp.where(left > 1, left - 1, jnp.where(begins, steps, 0))


def _counts(values: list[int]) -> Int32[Array, " oracles"]:
    return jnp.asarray(values, jnp.int32)


def _check(name: str, law: OracleLaw) -> None:
    require_at_least(f"deviation of {name}", law.deviation, 0.0)
    require_at_least(f"outages_per_year of {name}", law.outages_per_year, 0.0)
    require_at_least(f"errors_per_year of {name}", law.errors_per_year, 0.0)
    require_finite(f"error_mean of {name}", law.error_mean)
    require_at_least(f"error_std of {name}", law.error_std, 0.0)
    heartbeat = 1 if law.heartbeat_steps is None else law.heartbeat_steps
    for part, count, least, most in (
        ("delay_steps", law.delay_steps, 0, _LONGEST_DELAY),
        ("heartbeat_steps", heartbeat, 1, _NEVER),
        ("outage_steps", law.outage_steps, 1, _NEVER),
        ("error_steps", law.error_steps, 1, _NEVER),
    ):
        if not (isinstance(count, int) and least <= count <= most):
            raise ConfigurationError(f"{part} of {name} is {count}; expected a whole number from {least} to {most}")
