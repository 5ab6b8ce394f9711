"""Collateral that is moved as losses come in, without knowing the future: what an operator with slow routes can do.

USD, losses positive and cumulative, float64. Letters: V nodes, T steps of equal length; time 0 is before the first
loss. Everything is written for one path with fixed shapes and vmapped over paths by its caller.

At each step: what was sent arrives; a node whose balance is below 0 is liquidated, for good; then, before the last
step, every other node that lacks part of its buffer, counting what is under way to it, gets its share of what the
others hold above theirs:

    need_v = (buffer_v - balance_v - pending_v)+ ,   spare_u = (balance_u - buffer_u)+
    x(u, v) = min( g spare_u / sum(spare) need_v , capacity(u, v) ),   g = min(1, sum(spare) / sum(need))

It leaves now and arrives `delay[u, v]` steps later; a delay of 0 arrives before the next step's losses are seen and
helps no earlier. `prefunding` finds how much collateral keeps liquidations rare under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .risk import MASS_SLACK, tile_sum
from .rounding import rounded
from .rules.risk_unit import ordered_sum


class ReactivePath(NamedTuple):
    """One path. `liquidated_at` [V] is the step, -1 for never; `shortfall` [V] the USD missing then.

    `final_balance` [V] at step T; `sent` [T + 1, V, V] by step, from, to; `in_flight` [V] what would still arrive at
    each node after step T.
    """

    liquidated_at: Int[Array, " nodes"]
    shortfall: Float[Array, " nodes"]
    final_balance: Float[Array, " nodes"]
    sent: Float[Array, "steps nodes nodes"]
    in_flight: Float[Array, " nodes"]


class Prefunding(NamedTuple):
    """`total` in USD, split by the given shares, that keeps P(any liquidation) at `probability`, and what was tried.

    `buffer_share` is the buffer of a node over its collateral that needed the least; `totals` has the least total of
    every share tried, in their order, infinite where none up to the limit was enough.
    """

    total: float
    probability: float
    buffer_share: float
    totals: tuple[float, ...]


class _State(NamedTuple):
    flow: Array  # [V] received less sent
    arrivals: Array  # [T + 1, V] amounts by the step at which they arrive
    pending: Array  # [V] sent to a node and not there yet
    alive: Array
    liquidated_at: Array
    shortfall: Array


def _shape_check(collateral: Array, losses: Array, delay: Array, capacity: Array, buffer: Array) -> None:
    nodes = collateral.shape[-1]
    expected = ((nodes,), (losses.shape[0], nodes), (nodes, nodes), (nodes, nodes), (nodes,))
    found = tuple(x.shape for x in (collateral, losses, delay, capacity, buffer))
    if found != expected:
        raise ValueError(
            f"expected collateral [V], losses [T, V], delay and capacity [V, V] and buffer [V], found {found}; "
            "vmap over paths"
        )
    if not jnp.issubdtype(delay.dtype, jnp.integer):
        raise ValueError(f"delays are whole steps, found {delay.dtype}")


def reactive_policy(
    collateral: Float[Array, " nodes"],
    cumulative_losses: Float[Array, "steps nodes"],
    delay: Int[Array, "nodes nodes"],
    capacity: Float[Array, "nodes nodes"],
    buffer: Float[Array, " nodes"],
) -> ReactivePath:
    """The policy of the module's docstring along one path; `cumulative_losses` after steps 1..T, `capacity` per step.

    A loss that is NaN counts as infinite; a capacity that is NaN or negative as 0; a negative delay as 0. A delay of
    more than T steps never arrives, but is sent and counts as pending: leave such routes without capacity.
    """
    collateral, losses = jnp.asarray(collateral, jnp.float64), jnp.asarray(cumulative_losses, jnp.float64)
    delay = jnp.asarray(delay)
    _shape_check(collateral, losses, delay, capacity, buffer)
    steps, nodes = losses.shape
    losses = jnp.concatenate([jnp.zeros((1, nodes)), jnp.where(jnp.isnan(losses), jnp.inf, losses)])
    capacity = jnp.where((capacity > 0.0) & ~jnp.eye(nodes, dtype=bool), capacity, 0.0)
    delay = jnp.maximum(delay, 0)
    clock = jnp.arange(steps + 1)

    def step(state: _State, now: tuple[Array, Array]) -> tuple[_State, Array]:
        t, loss = now
        arrived = state.arrivals[t]
        flow = state.flow + arrived
        pending = state.pending - arrived
        balance = collateral - loss + flow
        falls = state.alive & (balance < 0.0)
        alive = state.alive & ~falls
        need = jnp.where(alive, jnp.maximum(buffer - balance - pending, 0.0), 0.0)
        spare = jnp.where(alive, jnp.maximum(balance - buffer, 0.0), 0.0)
        needs, spares = ordered_sum(need), ordered_sum(spare)
        some = (needs > 0.0) & (spares > 0.0) & (t < steps)
        granted = jnp.minimum(1.0, spares / jnp.where(some, needs, 1.0))
        share = spare / jnp.where(some, spares, 1.0)
        wished = rounded(rounded(granted * share)[:, None] * need[None, :])
        sent = jnp.where(some, jnp.minimum(wished, capacity), 0.0)
        # Later than the last step is one place beyond: it is pending and never arrives.
        arrives = jnp.minimum(jnp.maximum(t + delay, t + 1), steps + 1)
        due = jnp.where(clock[:, None, None] == arrives[None], sent[None], 0.0)
        received = ordered_sum(sent.T)
        state = _State(
            flow=flow - ordered_sum(sent),
            arrivals=state.arrivals + ordered_sum(jnp.moveaxis(due, 1, -1)),
            pending=pending + received,
            alive=alive,
            liquidated_at=jnp.where(falls, t, state.liquidated_at),
            shortfall=jnp.where(falls, -balance, state.shortfall),
        )
        return state, sent

    start = _State(
        flow=jnp.zeros(nodes),
        arrivals=jnp.zeros((steps + 1, nodes)),
        pending=jnp.zeros(nodes),
        alive=jnp.ones(nodes, bool),
        liquidated_at=jnp.full(nodes, -1, jnp.int32),
        shortfall=jnp.zeros(nodes),
    )
    end, sent = lax.scan(step, start, (clock.astype(jnp.int32), losses))
    return ReactivePath(end.liquidated_at, end.shortfall, collateral - losses[-1] + end.flow, sent, end.pending)


def hedge_break_loss(
    liquidated_at: Int[Array, " nodes"],
    cumulative_losses: Float[Array, "steps nodes"],
    notional: Float[Array, "steps nodes"],
    cost_rate: Float[Array, " nodes"],
) -> Float[Array, " nodes"]:
    """What each node's liquidation costs the whole book on one path, USD: costs there, and what its leg would have won.

        for every liquidated v   cost_rate_v |notional_v(t_v)|  +  L_v(t_v) - L_v(T)

    `liquidated_at` as of `reactive_policy`; `notional` [T, V] in USD after steps 1..T; `cost_rate` is fee and impact
    as a fraction. From t_v on node v neither wins nor loses, while the legs elsewhere run naked to the horizon: against
    the book that stayed whole, the difference is v's own loss from then on. Negative where that leg lost afterwards. A
    node liquidated at step 0, before any loss, is taken at its first notional.
    """
    steps = cumulative_losses.shape[0]
    hit = liquidated_at >= 0
    place = jnp.clip(liquidated_at - 1, 0, steps - 1)
    at = jnp.take_along_axis(cumulative_losses, place[None], axis=0)[0]
    at = jnp.where(liquidated_at == 0, 0.0, at)
    size = jnp.abs(jnp.take_along_axis(notional, place[None], axis=0)[0])
    return jnp.where(hit, rounded(cost_rate * size) + (at - cumulative_losses[-1]), 0.0)


@eqx.filter_jit
def liquidation_probability(
    collateral: Float[Array, " nodes"],
    cumulative_losses: Float[Array, "paths steps nodes"],
    delay: Int[Array, "nodes nodes"],
    capacity: Float[Array, "nodes nodes"],
    buffer: Float[Array, " nodes"],
    weights: Float[Array, " paths"],
) -> Float[Array, ""]:
    """Weighted share of paths on which any node is liquidated; their number a multiple of 256, as `risk.tile_sum`."""

    def hit(losses: Array) -> Bool[Array, ""]:
        return jnp.any(reactive_policy(collateral, losses, delay, capacity, buffer).liquidated_at >= 0)

    return tile_sum(jnp.where(jax.vmap(hit)(cumulative_losses), weights, 0.0))


def prefunding(
    cumulative_losses: Float[Array, "paths steps nodes"],
    delay: npt.ArrayLike,
    capacity: npt.ArrayLike,
    weights: Float[Array, " paths"],
    *,
    split: Sequence[float],
    buffer_shares: Sequence[float],
    confidence: float,
    most: float,
    precision: float = 1e-4,
) -> Prefunding:
    """Least total collateral, split by `split`, with P(any liquidation) <= 1 - a under the best of `buffer_shares`.

    Host loop: for every share (buffer over collateral of each node) a bisection of the total between 0 and `most` USD,
    to `precision` of the result. More collateral of one split can, rarely, mean a liquidation more, because it changes
    what is sent; bisection then finds one total whose neighbours below are not enough. Paths whose number is no
    multiple of 256 are padded with weight 0. Raises `ValueError` for shares that do not sum to 1 or are negative, a
    confidence outside (0, 1), or nothing to try.
    """
    parts = np.asarray(split, dtype=np.float64)
    if np.any(parts < 0.0) or abs(float(parts.sum()) - 1.0) > 1e-9:
        raise ValueError(f"the split of the collateral must be shares >= 0 that sum to 1, found {list(split)}")
    if not buffer_shares or min(buffer_shares) < 0.0 or not 0.0 < confidence < 1.0 or not precision > 0.0:
        raise ValueError(
            f"expected buffer shares >= 0, a confidence in (0, 1) and a precision > 0, found {list(buffer_shares)}, "
            f"{confidence!r} and {precision!r}"
        )
    losses, mass = np.asarray(cumulative_losses, np.float64), np.asarray(weights, np.float64)
    missing = -mass.size % 256
    paths = jnp.asarray(np.pad(losses, ((0, missing), (0, 0), (0, 0))))
    padded = jnp.asarray(np.pad(mass, (0, missing)))
    steps = jnp.asarray(np.asarray(delay), jnp.int32)
    limits = jnp.asarray(np.asarray(capacity, np.float64))
    allowed = 1.0 - confidence + MASS_SLACK

    def probability(total: float, share: float) -> float:
        held = jnp.asarray(parts * total)
        return float(liquidation_probability(held, paths, steps, limits, share * held, padded))

    totals, chances = [], []
    for share in buffer_shares:
        low, high = 0.0, most
        chance = probability(high, share)
        if chance > allowed:
            totals.append(float("inf"))
            chances.append(chance)
            continue
        while high - low > precision * high:
            middle = 0.5 * (low + high)
            found = probability(middle, share)
            if found <= allowed:
                high, chance = middle, found
            else:
                low = middle
        totals.append(high)
        chances.append(chance)
    best = int(np.argmin(totals))
    return Prefunding(totals[best], chances[best], float(buffer_shares[best]), tuple(totals))
