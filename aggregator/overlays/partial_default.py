"""A jump to partial default: at a random time the value falls by a random part, which then heals or never does.

Written for one coin. The discount D is 0 until the jump, which comes at rate lambda exp(b stress): when the hazard
since the start exceeds one standard exponential of the path. Its depth is Beta(a, b) times a cap; after it D decays at
`recovery_per_day`, or with `absorbing_probability` stays. A path has at most one jump, so that the law over n steps is
the law over one step of n times the length (without stress):

    P(jump) = 1 - e^{-lambda h};  E[D_h] = E[depth] lambda (e^{-lambda h} - e^{-k h}) / (k - lambda)  if it heals
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import special

from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import ScenarioGenerator, float64, require_positive
from .added_factors import require_at_least, require_finite

LEAST_SHAPE = 0.1
"""Below it a Beta law is a coin toss between nothing and the cap, too steep for the table of its quantiles."""

_DAYS_PER_YEAR = 365.0
_LARGEST_LOGIT = 37.0  # no uniform in float64 has a larger one
_NODES_PER_UNIT = 64
_TINY = 1e-300


class DefaultLaw(NamedTuple):
    """`jumps_per_year` (365 days) without stress, depth Beta(depth_a, depth_b) * depth_cap with the cap below 1.

    `stress_loading` b multiplies the rate by exp(b stress), stress in standard deviations that the market falls over
    the step (see `Stress`).
    """

    jumps_per_year: float
    depth_a: float
    depth_b: float
    depth_cap: float
    recovery_per_day: float
    absorbing_probability: float = 0.0
    stress_loading: float = 0.0


class Stress(NamedTuple):
    """stress = max(0, -move of `factor` over the step) / (daily_std * sqrt(step_days))."""

    factor: str
    daily_std: float


class DefaultState(NamedTuple):
    """Discount now, the hazard left until the jump (0 once it has come), and what is drawn of the jump."""

    discount: Float[Array, "*coins"]
    until: Float[Array, "*coins"]
    has_jumped: Bool[Array, "*coins"]
    stays: Bool[Array, "*coins"]
    depth: Float[Array, "*coins"]


class DefaultRates(eqx.Module):
    """Figures of one law over a step; built by `default_rates` with a leading axis for all coins."""

    expected_jumps: Float[Array, "*coins"]
    """lambda h without stress."""
    stress_loading: Float[Array, "*coins"]
    depths: Float[Array, "*coins nodes"]
    """Quantiles of the depth at evenly spaced ln(u / (1 - u))."""
    recovery: Float[Array, "*coins"]
    """k h."""
    absorbing_probability: Float[Array, "*coins"]


def default_rates(laws: dict[str, DefaultLaw], *, step_days: float, stress: Stress | None) -> DefaultRates:
    """Figures [coins] of `laws` over a step; ConfigurationError naming the factor when one is wrong."""
    for name, law in laws.items():
        require_at_least(f"jumps_per_year of {name}", law.jumps_per_year, 0.0)
        require_at_least(f"recovery_per_day of {name}", law.recovery_per_day, 0.0)
        require_at_least(f"depth_a of {name}", law.depth_a, LEAST_SHAPE)
        require_at_least(f"depth_b of {name}", law.depth_b, LEAST_SHAPE)
        require_finite(f"stress_loading of {name}", law.stress_loading)
        if not 0.0 < law.depth_cap < 1.0:
            raise ConfigurationError(f"depth_cap of {name} is {law.depth_cap}; expected a number between 0 and 1")
        if not 0.0 <= law.absorbing_probability <= 1.0:
            raise ConfigurationError(
                f"absorbing_probability of {name} is {law.absorbing_probability}; expected a number in [0, 1]"
            )
        if law.stress_loading != 0.0 and stress is None:
            raise ConfigurationError(f"{name} has a stress_loading of {law.stress_loading}, and no stress is given")
    of = list(laws.values())
    return DefaultRates(
        expected_jumps=float64([law.jumps_per_year * step_days / _DAYS_PER_YEAR for law in of]),
        stress_loading=float64([law.stress_loading for law in of]),
        depths=float64([_depth_table(law) for law in of]),
        recovery=float64([law.recovery_per_day * step_days for law in of]),
        absorbing_probability=float64([law.absorbing_probability for law in of]),
    )


def stress_place(base: ScenarioGenerator, stress: Stress | None, *, overlay: str) -> int | None:
    """Column of the stress factor in `base`; ConfigurationError naming it when it is not there."""
    if stress is None:
        return None
    require_positive(f"daily_std of the stress of {overlay}", stress.daily_std)
    if stress.factor not in base.factors:
        raise ConfigurationError(f"{overlay}: stress is read from {stress.factor}, which the generator does not move")
    return base.factors.index(stress.factor)


def stress_per_move(stress: Stress | None, step_days: float) -> Array:
    """Stress per log-change downwards over a step."""
    return float64(0.0 if stress is None else 1.0 / (stress.daily_std * math.sqrt(step_days)))


def stress_level(moves: Float[Array, " base"], place: int | None, per_move: Float[Array, ""]) -> Float[Array, ""]:
    """Standard deviations that the stress factor fell over the step; 0 when it rose or there is none."""
    return jnp.zeros((), jnp.float64) if place is None else jnp.maximum(-rounded(per_move * moves[place]), 0.0)


def exponential(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A standard exponential from a uniform in [0, 1)."""
    return -jnp.log1p(-u)


def default_start(draws: Float[Array, "3"], rates: DefaultRates) -> DefaultState:
    """One coin before its jump. `draws`: the hazard until it (a standard exponential), uniforms of stay and depth."""
    return DefaultState(
        discount=jnp.zeros((), jnp.float64),
        until=draws[0],
        has_jumped=jnp.zeros((), bool),
        stays=draws[1] < rates.absorbing_probability,
        depth=_depth(draws[2], rates.depths),
    )


def default_step(
    state: DefaultState, rates: DefaultRates, stress: Float[Array, ""]
) -> tuple[DefaultState, Float[Array, ""]]:
    """The state of one coin after a step, and ln((1 - D') / (1 - D)) over it."""
    expected = rounded(rates.expected_jumps * jnp.exp(rounded(rates.stress_loading * stress)))
    jumps = ~state.has_jumped & (state.until < expected)
    # Share of the step behind the jump: the hazard is the same all through it.
    since = jnp.clip(1.0 - state.until / jnp.maximum(expected, _TINY), 0.0, 1.0)
    healing = jnp.where(state.stays, 0.0, rates.recovery) * jnp.where(jumps, since, 1.0)
    discount = rounded(jnp.where(jumps, state.depth, state.discount) * jnp.exp(-healing))
    has_jumped = state.has_jumped | jumps
    until = jnp.where(has_jumped, 0.0, state.until - expected)
    after = DefaultState(discount, until, has_jumped, state.stays, state.depth)
    return after, jnp.log1p(-discount) - jnp.log1p(-state.discount)


def _depth_table(law: DefaultLaw) -> np.ndarray:
    """Depths at the nodes: the table is linear in ln(u / (1 - u)), so that both tails keep their powers of u."""
    logit = np.arange(-_LARGEST_LOGIT, _LARGEST_LOGIT + 0.5 / _NODES_PER_UNIT, 1.0 / _NODES_PER_UNIT)
    # each half from its own end, where the other loses the digits of u
    lower = special.betaincinv(law.depth_a, law.depth_b, special.expit(logit))
    upper = 1.0 - special.betaincinv(law.depth_b, law.depth_a, special.expit(-logit))
    return law.depth_cap * np.maximum.accumulate(np.where(logit < 0.0, lower, upper))


def _depth(u: Float[Array, ""], depths: Float[Array, " nodes"]) -> Float[Array, ""]:
    """Quantile of the depth at `u`, within 1e-4 of the cap."""
    last = depths.shape[0] - 1
    place = jnp.clip((jnp.log(u) - jnp.log1p(-u) + _LARGEST_LOGIT) * _NODES_PER_UNIT, 0.0, float(last))
    node = jnp.minimum(place.astype(jnp.int32), last - 1)
    share = place - node.astype(jnp.float64)
    return depths[node] + rounded(share * (depths[node + 1] - depths[node]))
