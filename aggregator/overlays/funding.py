"""Funding of perpetuals: an Ornstein-Uhlenbeck rate per interval, paid at every interval of a step.

f' = theta + (f - theta) e^-kappa + sigma sqrt((1 - e^-2kappa) / (2 kappa)) Z exactly (G. Uhlenbeck, L. Ornstein, 1930);
what is paid is f' held within the venue's cap, while the process itself goes on unheld. The factor `funding:X` is the
sum of what is paid over the step, a fraction of the notional: a long position of notional N pays N times it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import ScenarioGenerator, float64, require_positive
from .added_factors import appended_names, overlay_normals, overlay_streams, require_at_least, require_finite

_OVERLAY = "funding"
_WHOLE = 1e-9


class FundingLaw(NamedTuple):
    """Rate of one perpetual, fraction per interval; `kappa` per interval, `sigma` per root interval.

    `latest` is the rate of the last interval before today, `cap` bounds the size of what is paid.
    """

    interval_hours: float
    kappa: float
    theta: float
    sigma: float
    cap: float
    latest: float


class Funding(eqx.Module):
    """A generator with `funding:` factors, independent of it. Build it with `funding`."""

    base: ScenarioGenerator
    names: tuple[str, ...] = eqx.field(static=True)
    most: int = eqx.field(static=True)
    """Largest number of intervals in a step."""
    intervals: Int32[Array, " rates"]
    latest: Float[Array, " rates"]
    theta: Float[Array, " rates"]
    decay: Float[Array, " rates"]
    """e^-kappa."""
    spread: Float[Array, " rates"]
    """Standard deviation of the rate given the one before."""
    cap: Float[Array, " rates"]

    @property
    def factors(self) -> tuple[str, ...]:
        return (*self.base.factors, *self.names)

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return self.base.own_weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, Float[Array, " rates"]]:
        """State of the base, and the latest rates."""
        return self.base.start(key, index), self.latest

    def step(
        self, state: tuple[Any, Float[Array, " rates"]], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[Any, Float[Array, " rates"]], Float[Array, " factors"]]:
        """The state after one step of scenario `index`, the log-changes of the factors and the funding paid over it."""
        of_base, rates = state
        of_base, moves = self.base.step(of_base, key, index)
        streams = overlay_streams(key, _OVERLAY, self.names, index)

        def pay(number: Array, before: tuple[Array, Array]) -> tuple[Array, Array]:
            rates, paid = before
            z = overlay_normals(jax.vmap(lambda stream: jax.random.fold_in(stream, number))(streams))
            drawn = self.theta + rounded(self.decay * (rates - self.theta)) + rounded(self.spread * z)
            is_due = number < self.intervals
            rates = jnp.where(is_due, drawn, rates)
            return rates, paid + jnp.where(is_due, jnp.clip(drawn, -self.cap, self.cap), 0.0)

        paid = jnp.zeros(len(self.names), jnp.float64)
        rates, paid = lax.fori_loop(0, self.most, pay, (rates, paid))
        return (of_base, rates), jnp.concatenate([moves, paid])


def funding(base: ScenarioGenerator, laws: Mapping[str, FundingLaw], *, step_days: float = 1.0) -> Funding:
    """`base` with the factors of `laws` ("funding:BTC") appended; `step_days` must be the step of `base`.

    Raises ConfigurationError naming the factor when a figure is wrong, the step is not a whole number of intervals, or
    the factor is in `base` already.
    """
    require_positive("step_days", step_days)
    names = appended_names(base, laws, overlay=_OVERLAY, kind="funding:")
    intervals = []
    for name in names:
        law = laws[name]
        for part, value in (("interval_hours", law.interval_hours), ("kappa", law.kappa), ("cap", law.cap)):
            require_positive(f"{part} of {name}", value)
        require_at_least(f"sigma of {name}", law.sigma, 0.0)
        require_finite(f"theta of {name}", law.theta)
        require_finite(f"latest rate of {name}", law.latest)
        count = 24.0 * step_days / law.interval_hours
        if round(count) < 1 or abs(count - round(count)) > _WHOLE * count:
            raise ConfigurationError(
                f"a step of {24.0 * step_days:g} hours has {count:g} intervals of {name}; expected a whole number"
            )
        intervals.append(round(count))
    of = [laws[name] for name in names]
    return Funding(
        base=base,
        names=names,
        most=max(intervals),
        intervals=jnp.asarray(intervals, jnp.int32),
        latest=float64([law.latest for law in of]),
        theta=float64([law.theta for law in of]),
        decay=float64([math.exp(-law.kappa) for law in of]),
        spread=float64([law.sigma * math.sqrt(-math.expm1(-2.0 * law.kappa) / (2.0 * law.kappa)) for law in of]),
        cap=float64([law.cap for law in of]),
    )
