"""Stablecoins that lose their peg: rare jumps to partial default on top of the ordinary moves, if there are any.

The law is that of `partial_default`. The factor `peg:X` is the log-change of the coin's price: where the wrapped
generator moves it already, the jump is added to that move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from ..scenarios import ScenarioGenerator, require_positive
from .added_factors import added_places, factors_with, overlay_streams, with_moves
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

_OVERLAY = "depeg"


class Depeg(eqx.Module):
    """A generator whose coins may jump to partial default. Build it with `depeg`."""

    overlay: ClassVar[str] = _OVERLAY
    base: ScenarioGenerator
    names: tuple[str, ...] = eqx.field(static=True)
    places: tuple[int, ...] = eqx.field(static=True)
    """Columns of `names` among the factors."""
    stress_place: int | None = eqx.field(static=True)
    stress_per_move: Float[Array, ""]
    rates: DefaultRates

    @property
    def factors(self) -> tuple[str, ...]:
        return factors_with(self.base, self.names, self.places)

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return self.base.own_weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, DefaultState]:
        """State of the base; every coin at its peg."""
        return self.base.start(key, index), default_start(len(self.names))

    def step(
        self, state: tuple[Any, DefaultState], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[Any, DefaultState], Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""
        of_base, coins = state
        of_base, moves = self.base.step(of_base, key, index)
        stress = stress_level(moves, self.stress_place, self.stress_per_move)
        streams = overlay_streams(key, _OVERLAY, self.names, index)
        coins, own = jax.vmap(default_step, in_axes=(0, 0, 0, None))(coins, streams, self.rates, stress)
        return (of_base, coins), with_moves(moves, own, self.places)


def depeg(
    base: ScenarioGenerator, laws: Mapping[str, DefaultLaw], *, stress: Stress | None = None, step_days: float = 1.0
) -> Depeg:
    """`base` whose factors of `laws` ("peg:USDC") may jump to partial default; those it lacks are appended.

    `step_days` must be the step of `base`. Raises ConfigurationError naming the factor when a figure is wrong, or when
    a depeg below has it already.
    """
    require_positive("step_days", step_days)
    names = tuple(laws)
    return Depeg(
        base=base,
        names=names,
        places=added_places(base, names, overlay=_OVERLAY),
        stress_place=stress_place(base, stress, overlay=_OVERLAY),
        stress_per_move=stress_per_move(stress, step_days),
        rates=default_rates(dict(laws), step_days=step_days, stress=stress),
    )
