"""Implied volatility that follows its price: down moves and wide moves raise it, the rest is noise.

d ln sigma = beta r + beta_abs (|r| - mean_abs) + eta Z - (1 - e^{-kappa h}) (y - level), where r is the log-change of
the price over the step of h days and y the sum of d ln sigma since today.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

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

_OVERLAY = "spot_vol"


class SpotVolRule(NamedTuple):
    """Daily rule of one `vol:` factor: `mean_abs` is E|r| of a day, `eta` the daily standard deviation of the noise.

    `reversion_per_day` is kappa, `level` the ln of the volatility it reverts to over today's.
    """

    beta: float
    eta: float
    beta_abs: float = 0.0
    mean_abs: float = 0.0
    reversion_per_day: float = 0.0
    level: float = 0.0


class SpotVol(eqx.Module):
    """A generator with `vol:` factors that follow its prices. Build it with `spot_vol`; fields are over a step."""

    base: ScenarioGenerator
    names: tuple[str, ...] = eqx.field(static=True)
    prices: tuple[int, ...] = eqx.field(static=True)
    """Columns of the prices that `names` follow."""
    beta: Float[Array, " vols"]
    beta_abs: Float[Array, " vols"]
    mean_abs: Float[Array, " vols"]
    eta: Float[Array, " vols"]
    pull: Float[Array, " vols"]
    level: Float[Array, " vols"]

    @property
    def factors(self) -> tuple[str, ...]:
        return (*self.base.factors, *self.names)

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return self.base.own_weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, Float[Array, " vols"]]:
        """State of the base, and y = 0."""
        return self.base.start(key, index), jnp.zeros(len(self.names), jnp.float64)

    def step(
        self, state: tuple[Any, Float[Array, " vols"]], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[Any, Float[Array, " vols"]], Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""
        of_base, y = state
        of_base, moves = self.base.step(of_base, key, index)
        z = overlay_normals(overlay_streams(key, _OVERLAY, self.names, index))
        r = moves[np.array(self.prices)]
        change = rounded(self.beta * r) + rounded(self.beta_abs * (jnp.abs(r) - self.mean_abs)) + rounded(self.eta * z)
        change = change - rounded(self.pull * (y - self.level))
        return (of_base, y + change), jnp.concatenate([moves, change])


def spot_vol(base: ScenarioGenerator, rules: Mapping[str, SpotVolRule], *, step_days: float = 1.0) -> SpotVol:
    """`base` with the factors of `rules` ("vol:BTC") appended, each on the price of the same name ("price:BTC").

    `mean_abs` and `eta` grow with sqrt(step_days), which must be the step of `base`. The mean of d ln sigma is 0 where
    the prices of `base` have the same E|r| as the sample of the rule. Raises ConfigurationError naming the factor when
    a figure is not finite, a standard deviation or rate negative, the price not in `base` or the factor in it already.
    """
    require_positive("step_days", step_days)
    names = appended_names(base, rules, overlay=_OVERLAY, kind="vol:")
    prices = price_places(base, (f"price:{name.removeprefix('vol:')}" for name in names), names, overlay=_OVERLAY)
    for name, rule in rules.items():
        for part, value in (("beta", rule.beta), ("beta_abs", rule.beta_abs), ("level", rule.level)):
            require_finite(f"{part} of {name}", value)
        require_at_least(f"eta of {name}", rule.eta, 0.0)
        require_at_least(f"mean_abs of {name}", rule.mean_abs, 0.0)
        require_at_least(f"reversion_per_day of {name}", rule.reversion_per_day, 0.0)
    of = [rules[name] for name in names]
    root = math.sqrt(step_days)
    return SpotVol(
        base=base,
        names=names,
        prices=prices,
        beta=float64([rule.beta for rule in of]),
        beta_abs=float64([rule.beta_abs for rule in of]),
        mean_abs=float64([rule.mean_abs * root for rule in of]),
        eta=float64([rule.eta * root for rule in of]),
        pull=float64([-math.expm1(-rule.reversion_per_day * step_days) for rule in of]),
        level=float64([rule.level for rule in of]),
    )
