"""The tail network: log margin rates at rising levels and log expected shortfalls, from standardised inputs.

Rates are relative to the scale of an asset (the exponential of its anchor); the caller adds the anchor. By construction
a higher level has a higher margin, and a shortfall is above its margin, whatever the weights are.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

SMALLEST_STEP = 1e-4
"""Least distance of neighbouring log margins, and of a log shortfall to its log margin."""

FIRST_HEAD_SCALE = 0.1
"""The head starts small, so that training starts near the pooled quantiles of scaled losses."""


class TailForecast(eqx.Module):
    """[levels] each, natural logarithms of rates over the scale."""

    log_margin: Float[Array, " levels"]
    log_shortfall: Float[Array, " levels"]


class TailNetwork(eqx.Module):
    """Hidden layers with SiLU, plus a linear way around them; 2 x levels outputs.

    The first level has a log margin of its own; every further one and every shortfall is a softplus step above.
    `dropout` is the probability that a hidden value is dropped in training.
    """

    hidden: tuple[eqx.nn.Linear, ...]
    head: eqx.nn.Linear
    skip: eqx.nn.Linear
    bias: Float[Array, " outputs"]
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        key: Key[Array, ""],
        *,
        inputs: int,
        layers: int,
        width: int,
        log_margin: Float[Array, " levels"],
        log_shortfall: Float[Array, " levels"],
        dropout: float,
    ) -> None:
        """`log_margin` and `log_shortfall` are the pooled figures that the forecast starts from; strictly rising."""
        levels = log_margin.shape[0]
        keys = jax.random.split(key, layers + 1)
        sizes = (inputs, *([width] * layers))
        self.hidden = tuple(
            eqx.nn.Linear(before, after, dtype=jnp.float32, key=layer_key)
            for before, after, layer_key in zip(sizes[:-1], sizes[1:], keys[:-1], strict=True)
        )
        head = eqx.nn.Linear(sizes[-1], 2 * levels, use_bias=False, dtype=jnp.float32, key=keys[-1])
        self.head = eqx.tree_at(lambda layer: layer.weight, head, FIRST_HEAD_SCALE * head.weight)
        skip = eqx.nn.Linear(inputs, 2 * levels, use_bias=False, dtype=jnp.float32, key=keys[-1])
        self.skip = eqx.tree_at(lambda layer: layer.weight, skip, jnp.zeros_like(skip.weight))
        steps = jnp.concatenate([jnp.diff(log_margin), log_shortfall - log_margin])
        self.bias = jnp.concatenate([log_margin[:1], _inverse_softplus(steps)]).astype(jnp.float32)
        self.dropout = dropout

    def __call__(self, inputs: Float[Array, " inputs"], key: Key[Array, ""] | None = None) -> TailForecast:
        """The forecast of one row; with a `key`, hidden values are dropped."""
        values = inputs
        for place, layer in enumerate(self.hidden):
            values = jax.nn.silu(layer(values))
            if key is not None and self.dropout > 0.0:
                kept = jax.random.bernoulli(jax.random.fold_in(key, place), 1.0 - self.dropout, values.shape)
                values = jnp.where(kept, values / (1.0 - self.dropout), 0.0)
        raw = self.head(values) + self.skip(inputs) + self.bias
        levels = self.bias.shape[0] // 2
        steps = jax.nn.softplus(raw[1:]) + SMALLEST_STEP
        log_margin = raw[0] + jnp.concatenate([jnp.zeros((1,), raw.dtype), jnp.cumsum(steps[: levels - 1])])
        return TailForecast(log_margin, log_margin + steps[levels - 1 :])


def _inverse_softplus(steps: Float[Array, " steps"]) -> Float[Array, " steps"]:
    above = jnp.maximum(steps - SMALLEST_STEP, 1e-6)
    return above + jnp.log(-jnp.expm1(-above))
