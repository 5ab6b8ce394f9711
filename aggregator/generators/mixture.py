"""Mixture of generators: every path follows one of them, drawn by weight; today's law blended with a stressed one."""

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
from ..scenarios import ScenarioGenerator, float64, scenario_stream

_STREAM = "mixture component"
_SUM_SLACK = 1e-9


class Component(NamedTuple):
    """One generator of a mixture, and the probability of a path to follow it."""

    weight: float
    generator: ScenarioGenerator


class MixtureState(NamedTuple):
    """Which component the path follows, and the states of all of them."""

    component: Int32[Array, ""]
    states: tuple[Any, ...]


class Mixture(eqx.Module):
    """Law sum_k w_k L_k of whole paths: the component is drawn once, at the start. Build it with `mixture`.

    All components are computed for every path and one is taken; under `vmap` a choice costs the same.
    """

    components: tuple[ScenarioGenerator, ...]
    cumulative_weights: Float[Array, " components"]

    @property
    def factors(self) -> tuple[str, ...]:
        return self.components[0].factors

    @property
    def own_weights(self) -> None:
        return None

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> MixtureState:
        """The component of the path, and where each component starts."""
        u = jax.random.uniform(scenario_stream(key, _STREAM, index), (), jnp.float64)
        component = jnp.sum((u >= self.cumulative_weights).astype(jnp.int32))
        return MixtureState(component, tuple(each.start(key, index) for each in self.components))

    def step(
        self, state: MixtureState, key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[MixtureState, Float[Array, " factors"]]:
        """The states after one step of scenario `index`, and the log-changes that the path's component makes."""
        steps = [each.step(of, key, index) for each, of in zip(self.components, state.states, strict=True)]
        after = MixtureState(state.component, tuple(of for of, _ in steps))
        return after, jnp.stack([moves for _, moves in steps])[state.component]


def mixture(components: Mapping[str, Component]) -> Mixture:
    """A `Mixture` of named generators over the same factors in the same order; positive weights that sum to 1.

    Raises ConfigurationError naming the component: for a weight, for factors that differ, or for a generator with a
    scenario set of its own, whose scenarios cannot be drawn at random.
    """
    if len(components) < 2:
        raise ConfigurationError(f"a mixture of {len(components)} components; expected at least 2")
    (first, reference), *others = components.items()
    for name, (weight, generator) in components.items():
        if not (math.isfinite(weight) and weight > 0.0):
            raise ConfigurationError(f"weight of component {name} is {weight}; expected a positive number")
        if generator.own_weights is not None:
            raise ConfigurationError(
                f"component {name} has a scenario set of its own and cannot be drawn from; build it without points, "
                "or from history with drawn dates"
            )
    for name, (_, generator) in others:
        if difference := _difference(reference.generator.factors, generator.factors):
            raise ConfigurationError(f"components {first} and {name} move different factors: {name} {difference}")
    total = math.fsum(component.weight for component in components.values())
    if abs(total - 1.0) > _SUM_SLACK:
        raise ConfigurationError(f"weights of the components add up to {total:.12g}; expected 1")
    sums = np.cumsum([component.weight for component in components.values()]) / total
    sums[-1] = 1.0
    return Mixture(tuple(component.generator for component in components.values()), float64(sums))


def _difference(expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    lacking, more = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    parts = []
    if lacking:
        parts.append(f"lacks {', '.join(lacking)}")
    if more:
        parts.append(f"has {', '.join(more)} more")
    if not parts and expected != found:
        parts.append(f"has them in another order, {', '.join(found)}")
    return " and ".join(parts)
