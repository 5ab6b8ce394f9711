"""Stablecoins that lose their peg and staked tokens that are slashed: rare jumps on top of ordinary moves.

The law of each is that of `partial_default`. A factor (`peg:USDC`, `discount:wstETH`) is the log-change of a price:
where the wrapped generator moves it already, the jump is added to that move. All jumps of a stack are one overlay, so
that one design decides which of them are drawn, and how often: see `jump_strata`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from ..errors import ConfigurationError
from ..scenarios import ScenarioGenerator, float64, require_positive
from .added_factors import added_places, factors_with, layers, overlay_streams, with_moves
from .jump_strata import JumpDesign, JumpStrata, jump_strata
from .partial_default import (
    DefaultLaw,
    DefaultRates,
    DefaultState,
    Stress,
    default_rates,
    default_start,
    default_step,
    exponential,
    stress_level,
    stress_per_move,
    stress_place,
)

_OVERLAY = "rare_jumps"


class RareJumps(eqx.Module):
    """A generator whose coins may jump to partial default. Build it with `rare_jumps`."""

    overlay: ClassVar[str] = _OVERLAY
    base: ScenarioGenerator
    names: tuple[str, ...] = eqx.field(static=True)
    places: tuple[int, ...] = eqx.field(static=True)
    """Columns of `names` among the factors."""
    stress_place: int | None = eqx.field(static=True)
    stress_per_move: Float[Array, ""]
    rates: DefaultRates
    strata: JumpStrata | None
    weights: Float[Array, " scenarios"] | None
    """Of base and strata together, summing to 1; None without strata."""

    @property
    def factors(self) -> tuple[str, ...]:
        return factors_with(self.base, self.names, self.places)

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return self.base.own_weights if self.weights is None else self.weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, DefaultState]:
        """State of the base; every coin at its peg, with what its jump will be."""
        streams = overlay_streams(key, _OVERLAY, self.names, index)
        u = jax.vmap(lambda stream: jax.random.uniform(stream, (3,), jnp.float64))(streams)
        draws = jnp.concatenate([exponential(u[:, :1]), u[:, 1:]], axis=1)
        if self.strata is not None:
            draws = self.strata.held(index, draws)
        return self.base.start(key, index), jax.vmap(default_start)(draws, self.rates)

    def step(
        self, state: tuple[Any, DefaultState], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[Any, DefaultState], Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""
        of_base, coins = state
        of_base, moves = self.base.step(of_base, key, index)
        stress = stress_level(moves, self.stress_place, self.stress_per_move)
        coins, own = jax.vmap(default_step, in_axes=(0, 0, None))(coins, self.rates, stress)
        return (of_base, coins), with_moves(moves, own, self.places)


def rare_jumps(
    base: ScenarioGenerator,
    laws: Mapping[str, DefaultLaw],
    *,
    stress: Stress | None = None,
    step_days: float = 1.0,
    design: JumpDesign | None = None,
) -> RareJumps:
    """`base` whose factors of `laws` ("peg:USDC") may jump to partial default; those it lacks are appended.

    `step_days` must be the step of `base`. With a `design` jumps are drawn more often than they happen and the
    scenarios weigh accordingly; without one they are drawn as they come, and few scenarios have any. Raises
    ConfigurationError naming the factor when a figure is wrong or when such an overlay below has it already, and for a
    design on scenarios that cannot be drawn (every date of a history once) or are not as many as the base has.
    """
    require_positive("step_days", step_days)
    names = tuple(laws)
    places = added_places(base, names, overlay=_OVERLAY)
    rates = default_rates(dict(laws), step_days=step_days, stress=stress)
    strata = None
    if design is not None:
        expected, loadings = np.asarray(rates.expected_jumps), np.asarray(rates.stress_loading)
        strata = jump_strata(design, expected, loadings)
    return RareJumps(
        base=base,
        names=names,
        places=places,
        stress_place=stress_place(base, stress, overlay=_OVERLAY),
        stress_per_move=stress_per_move(stress, step_days),
        rates=rates,
        strata=strata,
        weights=None if strata is None else _weights(base, strata),
    )


def _weights(base: ScenarioGenerator, strata: JumpStrata) -> Array:
    ratios = np.asarray(strata.ratios)
    if any(getattr(layer, "mode", None) == "every_date" for layer in layers(base)):
        raise ConfigurationError(f"{_OVERLAY}: every date stands once, so jumps cannot be spread over them; draw dates")
    if any(getattr(layer, "strata", None) is not None for layer in layers(base)):
        raise ConfigurationError(f"{_OVERLAY}: the jumps of an overlay below are stratified already; give all to one")
    own = base.own_weights
    if own is not None and len(own) != len(ratios):
        raise ConfigurationError(f"{_OVERLAY}: strata of {len(ratios)} scenarios on a generator that has {len(own)}")
    weights = ratios if own is None else ratios * np.asarray(own)
    return float64(weights / math.fsum(weights))
