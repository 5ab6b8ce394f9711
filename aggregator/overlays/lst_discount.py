"""Staked and wrapped tokens against their share of the underlying: a mean-reverting log discount and a stress jump.

P = P_underlying * index * e^x * (1 - D): x is an Ornstein-Uhlenbeck process with t innovations, exact in mean and
variance over any step, x' = mean + (x - mean) e^{-k h} + s T, and D a jump to partial default (`partial_default`) that
heals at the same k, or never where the token was slashed. The factor (`discount:wstETH`, or whatever the book calls it)
is the log-change of e^x (1 - D); the index stays today's. The delay of a redemption is no matter of the price.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import (
    ScenarioGenerator,
    chi_square,
    float64,
    mixture_names,
    require_positive,
)
from .added_factors import (
    added_places,
    factors_with,
    overlay_normals,
    overlay_streams,
    require_at_least,
    require_finite,
    with_moves,
)
from .partial_default import (
    DefaultLaw,
    DefaultRates,
    DefaultState,
    Stress,
    default_rates,
    default_start,
    default_step,
    stress_level,
    stress_per_move,
    stress_place,
)

_OVERLAY = "lst_discount"


class DiscountLaw(NamedTuple):
    """Log discount of one token, below 0 when it trades under its share of the underlying.

    `daily_std` is the standard deviation of x after a day, given today's; `nu` (above 2) the degrees of freedom of the
    innovations; `latest` today's x, the mean when None. The jumps are those of `partial_default`:
    `absorbing_probability` is the share of them that are slashings.
    """

    daily_std: float
    nu: float
    mean: float
    reversion_per_day: float
    jumps_per_year: float
    depth_a: float
    depth_b: float
    depth_cap: float
    absorbing_probability: float = 0.0
    stress_loading: float = 0.0
    latest: float | None = None


class LstDiscount(eqx.Module):
    """A generator with discounts of staked tokens. Build it with `lst_discount`; fields are over a step."""

    overlay: ClassVar[str] = _OVERLAY
    base: ScenarioGenerator
    names: tuple[str, ...] = eqx.field(static=True)
    places: tuple[int, ...] = eqx.field(static=True)
    """Columns of `names` among the factors."""
    stress_place: int | None = eqx.field(static=True)
    stress_per_move: Float[Array, ""]
    rates: DefaultRates
    latest: Float[Array, " tokens"]
    mean: Float[Array, " tokens"]
    decay: Float[Array, " tokens"]
    scale: Float[Array, " tokens"]
    """Of the innovations: their standard deviation times sqrt((nu - 2) / nu)."""
    degrees_of_freedom: Float[Array, " tokens"]

    @property
    def factors(self) -> tuple[str, ...]:
        return factors_with(self.base, self.names, self.places)

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return self.base.own_weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, Float[Array, " tokens"], DefaultState]:
        """State of the base, today's log discounts, and no jump yet."""
        return self.base.start(key, index), self.latest, default_start(len(self.names))

    def step(
        self, state: tuple[Any, Float[Array, " tokens"], DefaultState], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[Any, Float[Array, " tokens"], DefaultState], Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""
        of_base, before, jumps = state
        of_base, moves = self.base.step(of_base, key, index)
        count = len(self.names)
        of_jumps = tuple(f"{name} jump" for name in self.names)
        streams = overlay_streams(key, _OVERLAY, (*self.names, *mixture_names(self.names), *of_jumps), index)
        z = overlay_normals(streams[:count])
        mixing = jax.vmap(chi_square)(streams[count : 2 * count], self.degrees_of_freedom)
        t = rounded(jnp.sqrt(self.degrees_of_freedom / mixing) * z)
        after = self.mean + rounded(self.decay * (before - self.mean)) + rounded(self.scale * t)
        stress = stress_level(moves, self.stress_place, self.stress_per_move)
        jumps, by_jumps = jax.vmap(default_step, in_axes=(0, 0, 0, None))(
            jumps, streams[2 * count :], self.rates, stress
        )
        return (of_base, after, jumps), with_moves(moves, (after - before) + by_jumps, self.places)


def lst_discount(
    base: ScenarioGenerator, laws: Mapping[str, DiscountLaw], *, stress: Stress | None = None, step_days: float = 1.0
) -> LstDiscount:
    """`base` with the discounts of `laws` by factor name, appended, or added where `base` moves the factor already.

    `step_days` must be the step of `base`. Raises ConfigurationError naming the factor when a figure is wrong, or when
    a discount below has it already.
    """
    require_positive("step_days", step_days)
    names = tuple(laws)
    places = added_places(base, names, overlay=_OVERLAY)
    for name, law in laws.items():
        require_positive(f"daily_std of {name}", law.daily_std)
        require_at_least(f"reversion_per_day of {name}", law.reversion_per_day, 0.0)
        require_finite(f"mean of {name}", law.mean)
        require_finite(f"latest discount of {name}", law.mean if law.latest is None else law.latest)
        if not (math.isfinite(law.nu) and law.nu > 2.0):
            raise ConfigurationError(f"nu of {name} is {law.nu!r}; a t law with a standard deviation needs one above 2")
    of = [laws[name] for name in names]
    jumps = {
        name: DefaultLaw(
            law.jumps_per_year, law.depth_a, law.depth_b, law.depth_cap, law.reversion_per_day,
            law.absorbing_probability, law.stress_loading,
        )
        for name, law in laws.items()
    }  # fmt: skip
    return LstDiscount(
        base=base,
        names=names,
        places=places,
        stress_place=stress_place(base, stress, overlay=_OVERLAY),
        stress_per_move=stress_per_move(stress, step_days),
        rates=default_rates(jumps, step_days=step_days, stress=stress),
        latest=float64([law.mean if law.latest is None else law.latest for law in of]),
        mean=float64([law.mean for law in of]),
        decay=float64([math.exp(-law.reversion_per_day * step_days) for law in of]),
        scale=float64([innovation_std(law, step_days) * math.sqrt((law.nu - 2.0) / law.nu) for law in of]),
        degrees_of_freedom=float64([law.nu for law in of]),
    )


def innovation_std(law: DiscountLaw, step_days: float) -> float:
    """Standard deviation of x after a step, given x before: daily_std sqrt((1 - e^{-2kh}) / (1 - e^{-2k}))."""
    k = law.reversion_per_day
    share = math.expm1(-2.0 * k * step_days) / math.expm1(-2.0 * k) if k > 0.0 else step_days
    return law.daily_std * math.sqrt(share)
