"""Order books that thin out as their market moves away from today: L = max(d_min, exp(-k |c| / sigma)).

c is the cumulative log-change of the price since today, sigma its daily standard deviation. The factor `depth:X` is
ln L' - ln L over the step, so that the sum along a path is the logarithm of the depth over today's. Nothing is drawn:
the depth is a function of the price, and `tail_depth` is what is left of it in the widest moves of a scenario set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import ScenarioGenerator, float64, require_positive
from .added_factors import appended_names, price_places, require_at_least

_OVERLAY = "liquidity_drought"


class DroughtLaw(NamedTuple):
    """`daily_std` of the price, `sensitivity` k per such deviation, `least` d_min: the depth left, in (0, 1]."""

    daily_std: float
    sensitivity: float
    least: float


class LiquidityDrought(eqx.Module):
    """A generator with `depth:` factors that follow its prices. Build it with `liquidity_drought`."""

    base: ScenarioGenerator
    names: tuple[str, ...] = eqx.field(static=True)
    prices: tuple[int, ...] = eqx.field(static=True)
    slope: Float[Array, " depths"]
    """k / sigma."""
    log_least: Float[Array, " depths"]

    @property
    def factors(self) -> tuple[str, ...]:
        return (*self.base.factors, *self.names)

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return self.base.own_weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, Float[Array, " depths"]]:
        """State of the base, and cumulative moves of 0."""
        return self.base.start(key, index), jnp.zeros(len(self.names), jnp.float64)

    def step(
        self, state: tuple[Any, Float[Array, " depths"]], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[Any, Float[Array, " depths"]], Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""
        of_base, before = state
        of_base, moves = self.base.step(of_base, key, index)
        after = before + moves[np.array(self.prices)]
        return (of_base, after), jnp.concatenate([moves, self._log_depth(after) - self._log_depth(before)])

    def _log_depth(self, cumulative: Float[Array, " depths"]) -> Float[Array, " depths"]:
        return jnp.maximum(self.log_least, -rounded(self.slope * jnp.abs(cumulative)))


def liquidity_drought(base: ScenarioGenerator, laws: Mapping[str, DroughtLaw]) -> LiquidityDrought:
    """`base` with the factors of `laws` ("depth:BTC") appended, each on the price of the same name ("price:BTC").

    Raises ConfigurationError naming the factor when a figure is wrong, the price not in `base` or the depth in it
    already.
    """
    names = appended_names(base, laws, overlay=_OVERLAY, kind="depth:")
    prices = price_places(base, (f"price:{name.removeprefix('depth:')}" for name in names), names, overlay=_OVERLAY)
    for name, law in laws.items():
        require_positive(f"daily_std of {name}", law.daily_std)
        require_at_least(f"sensitivity of {name}", law.sensitivity, 0.0)
        if not 0.0 < law.least <= 1.0:
            raise ConfigurationError(f"least depth of {name} is {law.least}; expected a number in (0, 1]")
    return LiquidityDrought(
        base=base,
        names=names,
        prices=prices,
        slope=float64([laws[name].sensitivity / laws[name].daily_std for name in names]),
        log_least=float64([math.log(laws[name].least) for name in names]),
    )


def tail_depth(law: DroughtLaw, moves: np.ndarray, weights: np.ndarray, *, tail: float) -> float:
    """Weighted mean of the depth over today's in the share `tail` of the scenarios with the widest `moves` [scenarios].

    `weights` sum to 1; of the scenario at the edge only as much counts as fills the tail. Host arrays.
    """
    widest = np.argsort(-np.abs(moves), kind="stable")
    behind = np.cumsum(weights[widest])
    counted = np.clip(tail - (behind - weights[widest]), 0.0, weights[widest])
    depth = np.maximum(law.least, np.exp(-law.sensitivity * np.abs(moves[widest]) / law.daily_std))
    return math.fsum(counted * depth) / math.fsum(counted)
