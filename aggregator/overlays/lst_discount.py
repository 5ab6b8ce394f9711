"""Staked and wrapped tokens against their share of the underlying: a mean-reverting log discount.

P = P_underlying * index * e^x * (1 - D): x is an Ornstein-Uhlenbeck process with t innovations, exact in mean and
variance over any step, x' = mean + (x - mean) e^{-k h} + s T. The factor (`discount:wstETH`, or whatever the book calls
it) is the log-change of e^x; `rare_jumps` adds that of 1 - D, a jump that heals at the same k or never where the token
was slashed. The index stays today's. The delay of a redemption is no matter of the price.
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

_OVERLAY = "lst_discount"


class DiscountLaw(NamedTuple):
    """Log discount of one token, below 0 when it trades under its share of the underlying.

    `daily_std` is the standard deviation of x after a day, given today's; `nu` (above 2) the degrees of freedom of the
    innovations; `latest` today's x, the mean when None.
    """

    daily_std: float
    nu: float
    mean: float
    reversion_per_day: float
    latest: float | None = None


class LstDiscount(eqx.Module):
    """A generator with discounts of staked tokens. Build it with `lst_discount`; fields are over a step."""

    overlay: ClassVar[str] = _OVERLAY
    base: ScenarioGenerator
    names: tuple[str, ...] = eqx.field(static=True)
    places: tuple[int, ...] = eqx.field(static=True)
    """Columns of `names` among the factors."""
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

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, Float[Array, " tokens"]]:
        """State of the base, and today's log discounts."""
        return self.base.start(key, index), self.latest

    def step(
        self, state: tuple[Any, Float[Array, " tokens"]], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[Any, Float[Array, " tokens"]], Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""
        of_base, before = state
        of_base, moves = self.base.step(of_base, key, index)
        count = len(self.names)
        streams = overlay_streams(key, _OVERLAY, (*self.names, *mixture_names(self.names)), index)
        z = overlay_normals(streams[:count])
        mixing = jax.vmap(chi_square)(streams[count:], self.degrees_of_freedom)
        t = rounded(jnp.sqrt(self.degrees_of_freedom / mixing) * z)
        after = self.mean + rounded(self.decay * (before - self.mean)) + rounded(self.scale * t)
        return (of_base, after), with_moves(moves, after - before, self.places)


def lst_discount(base: ScenarioGenerator, laws: Mapping[str, DiscountLaw], *, step_days: float = 1.0) -> LstDiscount:
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
    return LstDiscount(
        base=base,
        names=names,
        places=places,
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
