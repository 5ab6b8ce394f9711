"""Fitting the tail networks: one pooled network per seed, all seeds at once, on the rows before a cut.

Rows are sorted by time, so what a fit may see are the first `count` rows of one array: every refit of a walk-forward
runs the same compiled program, and no later row can be drawn. Batches come from a counter-based generator: same rows,
settings and seed, same weights.

Smoothness is part of what is minimised: rows know the row of the same asset and side one window before, and a change of
the log margin from there costs. A scale that jumps is what a network then leans against.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jaxtyping import Array, Float, Int, Key

from .tail_losses import fissler_ziegel, smooth_pinball
from .tail_network import TailForecast, TailNetwork
from .tier_model_settings import Network, Training

LARGEST_INPUT = 4.0
"""Standardised inputs are clipped here: beyond it a network extrapolates."""

SMALLEST_SPREAD = 1e-3
"""Least standard deviation that an input is divided by: a flag may be constant in the rows of training."""

LARGEST_LOG_RATE = 7.0
"""Of a margin over its scale, either way: a network far from what it was trained on stays finite."""

_BLOCK = 16_384
"""Rows forecast at a time; one compiled shape whatever the number of rows."""


BINS = 10
"""Bins of equal share that the values of an input are counted in."""


class Moments(NamedTuple):
    """How the inputs of training were distributed, float64: `mean` and `spread` [inputs] are what they are standardised
    with; `edges` [inputs, BINS - 1] end bins of equal share, `shares` [inputs, BINS + 1] are the shares of the rows in
    each (a value on an edge is in the lower bin) and, last, of those where the input was missing."""

    mean: np.ndarray
    spread: np.ndarray
    edges: np.ndarray
    shares: np.ndarray


PAIRED = 4
"""One row of a batch in so many is compared with the one before it: smoothness takes fewer rows than a tail does."""


class Pairs(NamedTuple):
    """What tells how a forecast moves: `log_scale` [rows] float32, the anchor that margins are relative to; `before`
    [rows] int32, the row of the same asset and side one window before, -1 for none; `steady` [inputs] float32, 0 for
    inputs that follow the clock and 1 for all others: a weekend that comes and goes is no roughness."""

    log_scale: Float[Array, " rows"]
    before: Int[Array, " rows"]
    steady: Float[Array, " inputs"]


class Fit(NamedTuple):
    """`networks` has a leading axis of seeds on every array; `training_loss` [seeds]: the mean of the last tenth."""

    networks: TailNetwork
    moments: Moments
    training_loss: np.ndarray


def input_moments(inputs: np.ndarray) -> Moments:
    """Of the values [rows, inputs] that are there; for an input that never is the mean is 0 and the spread 1."""
    present = np.isfinite(inputs)
    count = np.maximum(present.sum(axis=0), 1)
    known = np.where(present, inputs, 0.0).astype(np.float64)
    mean = known.sum(axis=0) / count
    square = np.where(present, (known - mean) ** 2, 0.0).sum(axis=0) / count
    spread = np.where(present.any(axis=0), np.maximum(np.sqrt(square), SMALLEST_SPREAD), 1.0)
    edges = np.stack([_edges(column) for column in inputs.T])
    return Moments(mean, spread, edges, bin_shares(inputs, edges))


def bin_shares(inputs: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[inputs, BINS + 1]: shares of the rows [rows, inputs] in the bins that end at `edges`, and of those missing."""
    shares = np.zeros((inputs.shape[1], edges.shape[1] + 2))
    for place, (column, ends) in enumerate(zip(inputs.T, edges, strict=True)):
        bins = np.where(np.isfinite(column), np.searchsorted(ends, column), edges.shape[1] + 1)
        shares[place] = np.bincount(bins, minlength=shares.shape[1]) / max(len(column), 1)
    return shares


def _edges(column: np.ndarray) -> np.ndarray:
    known = column[np.isfinite(column)]
    if not len(known):
        return np.zeros(BINS - 1)
    places = (np.arange(1, BINS) * (len(known) - 1)) // BINS
    return np.partition(known, places)[places].astype(np.float64)


def standardised(inputs: np.ndarray, moments: Moments) -> np.ndarray:
    """float32 [rows, inputs]: clipped at `LARGEST_INPUT`, and 0 (the mean) where a value is missing."""
    scaled = (inputs - moments.mean) / moments.spread
    return np.where(np.isfinite(scaled), np.clip(scaled, -LARGEST_INPUT, LARGEST_INPUT), 0.0).astype(np.float32)


def pooled_start(scaled_loss: np.ndarray, levels: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Log quantiles [levels] of all scaled losses, and log means of the losses beyond them: where training starts."""
    quantiles = np.quantile(scaled_loss, levels)
    # strictly rising and positive also for losses that never move
    quantiles = np.maximum(quantiles, 1e-3 * (1.0 + np.arange(len(levels))))
    quantiles = np.maximum.accumulate(quantiles * (1.0 + 1e-3 * np.arange(len(levels))))
    beyond = np.array([np.mean(np.maximum(scaled_loss[scaled_loss >= q], q)) if (scaled_loss >= q).any() else q
                       for q in quantiles])  # fmt: skip
    return np.log(quantiles), np.log(np.maximum(beyond, 1.01 * quantiles))


def fit(
    inputs: Float[Array, "rows inputs"],
    scaled_loss: Float[Array, " rows"],
    count: int,
    *,
    pairs: Pairs,
    moments: Moments,
    start: tuple[np.ndarray, np.ndarray],
    network: Network,
    training: Training,
) -> Fit:
    """Networks fitted to the first `count` rows; `inputs` standardised (float32), losses over exp(anchor) (float32).

    `start` is `pooled_start` of those rows. Minimises the smoothed pinball, every level weighted by 1 / (1 - p), plus
    `shortfall_weight` times FZ0 with the margin held fixed, so that it moves the expected shortfall alone, plus
    `smoothness_weight` times `roughness`. Rows must come after the rows before them. Raises FloatingPointError when the
    weights are not finite at the end.
    """
    networks, history = _fit(
        inputs,
        scaled_loss,
        pairs,
        jnp.asarray(count, jnp.int32),
        jnp.asarray(start[0], jnp.float32),
        jnp.asarray(start[1], jnp.float32),
        jax.random.key(training.seed),
        network,
        training,
    )
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(eqx.filter(networks, eqx.is_array))):
        raise FloatingPointError(f"training on {count} rows ended with weights that are not finite")
    return Fit(networks, moments, np.asarray(history)[:, -max(1, training.steps // 10) :].mean(axis=1))


def forecast(networks: TailNetwork, inputs: np.ndarray) -> TailForecast:
    """Log margins and log shortfalls over the scale, [rows, levels], the mean over the seeds; float64 on the host."""
    blocks = []
    for begin in range(0, len(inputs), _BLOCK):
        block = inputs[begin : begin + _BLOCK]
        padded = np.zeros((_BLOCK, inputs.shape[1]), dtype=np.float32)
        padded[: len(block)] = block
        blocks.append(np.asarray(_forecast(networks, jnp.asarray(padded)))[:, : len(block)])
    levels = networks.bias.shape[-1] // 2
    joined = np.concatenate([np.zeros((2, 0, levels)), *blocks], axis=1).astype(np.float64)
    return TailForecast(*np.clip(joined, -LARGEST_LOG_RATE, LARGEST_LOG_RATE))


@eqx.filter_jit
def _forecast(
    networks: TailNetwork, inputs: Float[Array, "rows inputs"]
) -> Float[Array, "margin_and_shortfall rows levels"]:
    def one(network: TailNetwork, rows: Float[Array, "rows inputs"]) -> TailForecast:
        return jax.vmap(network)(rows)

    each = eqx.filter_vmap(one, in_axes=(eqx.if_array(0), None))(networks, inputs)
    return jnp.stack([each.log_margin.mean(axis=0), each.log_shortfall.mean(axis=0)])


def row_cost(
    network: TailNetwork,
    inputs: Float[Array, " inputs"],
    loss: Float[Array, ""],
    key: Key[Array, ""] | None,
    *,
    levels: Float[Array, " levels"],
    training: Training,
) -> Float[Array, ""]:
    """What one row adds to the training loss."""
    out = network(inputs, key)
    margin = jnp.exp(out.log_margin)
    pinball = smooth_pinball(loss, margin, levels, width=training.pinball_width) / (1.0 - levels)
    fixed = jax.lax.stop_gradient(margin)
    shortfall = fixed * jnp.exp(out.log_shortfall - out.log_margin)
    return jnp.mean(pinball) + training.shortfall_weight * jnp.mean(fissler_ziegel(loss, fixed, shortfall, levels))


def roughness(
    network: TailNetwork,
    inputs: Float[Array, " inputs"],
    inputs_before: Float[Array, " inputs"],
    scale_change: Float[Array, ""],
    steady: Float[Array, " inputs"],
    key: Key[Array, ""] | None,
) -> Float[Array, ""]:
    """Mean over the levels of the squared change of the log margin rate between two windows of one asset and side.

    `scale_change` is that of the log scale; inputs that are not `steady` are taken at their mean. With a `key` both
    forecasts drop the same hidden values.
    """
    now, before = network(steady * inputs, key), network(steady * inputs_before, key)
    change = now.log_margin - before.log_margin + scale_change
    return jnp.mean(change**2)


@eqx.filter_jit
def _fit(
    inputs: Float[Array, "rows inputs"],
    scaled_loss: Float[Array, " rows"],
    pairs: Pairs,
    count: Int[Array, ""],
    log_margin: Float[Array, " levels"],
    log_shortfall: Float[Array, " levels"],
    key: Key[Array, ""],
    shape: Network,
    training: Training,
) -> tuple[TailNetwork, Float[Array, "seeds steps"]]:
    levels = jnp.asarray(shape.levels, jnp.float32)
    schedule = optax.cosine_decay_schedule(training.learning_rate, training.steps)
    cost_of_row = partial(row_cost, levels=levels, training=training)

    def one_seed(seed: Int[Array, ""]) -> tuple[TailNetwork, Float[Array, " steps"]]:
        start_key, run_key = jax.random.split(jax.random.fold_in(key, seed))
        network = TailNetwork(
            start_key,
            inputs=inputs.shape[1],
            layers=shape.layers,
            width=shape.width,
            log_margin=log_margin,
            log_shortfall=log_shortfall,
            dropout=shape.dropout,
        )
        weights, rest = eqx.partition(network, eqx.is_inexact_array)
        # the bias carries the pooled quantiles: decaying it would pull margins towards the scale itself
        decayed = eqx.tree_at(lambda tree: tree.bias, jax.tree.map(lambda _: True, weights), False)
        optimizer = optax.chain(
            optax.clip_by_global_norm(training.gradient_clip),
            optax.adamw(schedule, weight_decay=training.weight_decay, mask=decayed),
        )

        def batch_cost(weights: TailNetwork, drawn: Int[Array, " batch"], key: Key[Array, ""]) -> Float[Array, ""]:
            keys = jax.random.split(key, training.batch)
            network = eqx.combine(weights, rest)
            rows = inputs[drawn]
            costs = jax.vmap(cost_of_row, in_axes=(None, 0, 0, 0))(network, rows, scaled_loss[drawn], keys)
            if training.smoothness_weight == 0.0:
                return jnp.mean(costs)
            paired = -(-training.batch // PAIRED)
            now, before = drawn[:paired], pairs.before[drawn[:paired]]
            known = before >= 0
            before = jnp.maximum(before, 0)
            moved = pairs.log_scale[now] - pairs.log_scale[before]
            rough = jax.vmap(roughness, in_axes=(None, 0, 0, 0, None, 0))(
                network, rows[:paired], inputs[before], moved, pairs.steady, keys[:paired]
            )
            return jnp.mean(costs) + training.smoothness_weight * jnp.mean(jnp.where(known, rough, 0.0))

        def step(
            state: tuple[TailNetwork, optax.OptState, TailNetwork], number: Int[Array, ""]
        ) -> tuple[tuple[TailNetwork, optax.OptState, TailNetwork], Float[Array, ""]]:
            weights, memory, average = state
            draw_key, drop_key = jax.random.split(jax.random.fold_in(run_key, number))
            drawn = jax.random.randint(draw_key, (training.batch,), 0, count)
            cost, gradient = jax.value_and_grad(batch_cost)(weights, drawn, drop_key)
            change, memory = optimizer.update(gradient, memory, weights)
            weights = optax.apply_updates(weights, change)
            kept = training.weight_average
            average = jax.tree.map(lambda old, new: kept * old + (1.0 - kept) * new, average, weights)
            return (weights, memory, average), cost

        begin = (weights, optimizer.init(weights), weights)
        (_, _, average), costs = jax.lax.scan(step, begin, jnp.arange(training.steps, dtype=jnp.int32))
        return eqx.combine(average, rest), costs

    return eqx.filter_vmap(one_seed)(jnp.arange(training.seeds, dtype=jnp.int32))
