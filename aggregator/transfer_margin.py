"""The requirement of a portfolio whose collateral has to travel: the transfer model on its nodes' scenarios.

Two questions are answered. **What would be needed**: the transfer-constrained expected shortfall (TCES), the least
collateral, placed as well as possible, that covers the losses with what arrives in time. Deadlines are those of nodes
that hold what they need alone, so that the number does not depend on how rich the desk is today. **What is there**:
today's collateral by the venues' own rules, its uncovered amount, what is stranded and what to add where.

Written for one portfolio and mapped. USD; V points of the network (padded), R routes, T steps, S scenarios.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .batch_errors import BATCHES, LEAST_SCENARIOS, batch_standard_error
from .channel_outages import ChannelScenarios
from .margin import accumulate
from .node_scenarios import NEVER, NodeScenarios
from .risk import SCENARIO_TILE, tail_rows, tile_sum
from .rounding import rounded
from .rules.risk_unit import ordered_sum
from .transfer import uncovered_many
from .transfer_shortfall import (
    OpenRoutes,
    TransferShortfall,
    fungibility,
    shortfall_from_zero,
    transfer_shortfall,
)

SCENARIOS_USED = 4096
"""Scenarios that the solver looks at, at least."""
PRECISION = 1e-4


def scenarios_looked_at(count: int) -> int:
    """Scenarios of `count` that the solver looks at: two in twenty-five, whole tiles, and not below `SCENARIOS_USED`.

    Several nodes whose bad days differ have more than the tail's one in a hundred that matter. Of 102,400 scenarios on
    5 nodes with heavy tails 8,192 ended at a gap of 7e-5; 4,096 left out 1,553 that were uncovered, with a gap of 4 %.
    """
    return max(SCENARIOS_USED, -(-2 * count // (25 * SCENARIO_TILE)) * SCENARIO_TILE)


class Timing(NamedTuple):
    """How much time there is. `fixed_hours` None: the scenarios are paths, and say it themselves."""

    fixed_hours: float | None
    reaction_hours: float
    warning_share: float
    step_hours: float
    horizon_hours: float


class TransferArrays(eqx.Module):
    """The network of one portfolio with its nodes' scenarios (a bucket has a leading axis)."""

    is_node: Bool[Array, " V"]
    """A point that loses and holds something."""
    deadline: Int[Array, " V"]
    """Point by whose deadline what enters must have come: a node's own; -1 where nothing has to be in time."""
    grace_hours: Float[Array, " V"]
    source: Int[Array, " R"]
    target: Int[Array, " R"]
    arriving: Float[Array, " R"]
    """USD that the route delivers at most; 0 for padding."""
    hours: Float[Array, " R"]
    uses: Bool[Array, "R C"]
    holders: Bool[Array, "R V"]
    """Nodes whose collateral leaves by the route: its source, or those that send through limits before it."""
    reaches: Bool[Array, "R V"]
    """Nodes that the route serves: its target, or those behind the limits after it."""
    failure: Int[Array, " V"]
    """Channel that stands for the failure of the node's venue; -1 without one."""
    nodes: NodeScenarios
    """Of the points V."""
    alone_loss: Float[Array, "I S"]
    """Losses at the horizon of nodes without a route, which stand alone."""
    alone_surplus: Float[Array, "I S"]
    """What each of them lacks, or what its venue lets out."""


class TransferMarket(eqx.Module):
    """What all portfolios share."""

    channels: ChannelScenarios
    weights: Float[Array, " S"]
    timing: Timing = eqx.field(static=True)
    levels: tuple[float, ...] = eqx.field(static=True)
    scenarios_used: int = eqx.field(static=True, default=SCENARIOS_USED)
    """Scenarios that the solver looks at, a multiple of the tile: those nearest to being uncovered."""
    precision: float = eqx.field(static=True, default=PRECISION)
    """Relative gap at which the solver stops."""


class TransferFigures(NamedTuple):
    """One portfolio. USD, [levels] where it says so, at the first level otherwise."""

    pooled: Float[Array, " levels"]
    """Least collateral if everything were available everywhere: ES_uni."""
    siloed: Float[Array, " levels"]
    constrained: Float[Array, " levels"]
    """TCES."""
    gap: Float[Array, " levels"]
    """Largest distance of `constrained` to the true minimum."""
    error: Float[Array, ""]
    """Standard error of the TCES from independent batches, with the placement held; NaN with too few scenarios."""
    left_out: Int[Array, " levels"]
    """Scenarios that would have mattered to the solver and were not among those it looked at."""
    fungibility: Float[Array, " levels"]
    collateral: Float[Array, " V"]
    """A best placement of the TCES."""
    alone: Float[Array, " VI"]
    """Least collateral of each point by itself, behind them that of the nodes without a route."""
    route_value: Float[Array, " R"]
    """What a dollar more of capacity takes off the TCES."""
    route_open: Float[Array, " R"]
    """Probability that the route is up and in time."""
    channel_up: Float[Array, " C"]
    without_channel: Float[Array, " C"]
    """Bound from above of the TCES with a channel down in all scenarios, with the same placement."""
    without_route: Float[Array, " R"]
    """The same without a route."""
    p_uncovered: Float[Array, ""]
    uncovered_mean: Float[Array, ""]
    """Where something is uncovered."""
    uncovered_shortfall: Float[Array, " levels"]
    transit_mean: Float[Array, ""]
    """Mean of what is uncovered over all scenarios."""
    stranded: Float[Array, ""]
    """Collateral that cannot reach a deficit, mean where something is uncovered."""
    p_deficit: Float[Array, " V"]
    top_up: Float[Array, " V"]
    """Collateral to add at each point, given what is there."""
    top_up_total: Float[Array, ""]
    """The least of top-ups and what they leave uncovered, over the tail: T(K) of what is there."""
    alone_p_deficit: Float[Array, " I"]
    alone_top_up: Float[Array, " I"]
    alone_collateral: Float[Array, " I"]
    buffer_value: Float[Array, " V"]
    """Probability that a dollar more at the point is missing, over that of the tail."""


def route_capacity(
    arrays: TransferArrays,
    up: Bool[Array, "S C"],
    lead: Float[Array, "V S"],
    exists: Bool[Array, " R"] | None = None,
) -> tuple[Bool[Array, "S R"], Float[Array, "S V V"]]:
    """Which routes are open in each scenario, and what can reach each point from each other one in time.

    `exists` leaves routes out.
    """
    points = arrays.is_node.shape[0]
    blocked = jnp.any(arrays.uses[None, :, :] & ~up[:, None, :], axis=2)
    in_time = arrays.hours[:, None] <= lead[arrays.target]
    delivers = arrays.arriving > 0.0 if exists is None else (arrays.arriving > 0.0) & exists
    is_open = ~blocked & in_time.T & delivers[None, :]
    start = jnp.zeros((points * points, up.shape[0]), jnp.float64)
    flat = accumulate(
        arrays.source * points + arrays.target,
        lambda route: jnp.where(is_open[:, route], arrays.arriving[route], 0.0),
        start,
    )
    return is_open, jnp.moveaxis(flat.reshape(points, points, -1), -1, 0)


def transfer_figures(arrays: TransferArrays, market: TransferMarket) -> TransferFigures:
    """All figures of one portfolio."""
    weights, levels, channels = market.weights, market.levels, market.channels
    losses = jnp.where(arrays.is_node[:, None], arrays.nodes.losses[:, -1].astype(jnp.float64), 0.0)
    everything = jnp.concatenate([losses, arrays.alone_loss.astype(jnp.float64)])
    total = ordered_sum(everything.T)

    def each_alone(level: float) -> Float[Array, " nodes"]:
        return jax.vmap(lambda row: shortfall_from_zero(row, weights, confidence=level))(everything)

    own = jnp.stack([each_alone(level) for level in levels])
    points = losses.shape[0]
    siloed, by_itself = ordered_sum(own), ordered_sum(own[:, points:])
    pooled = jnp.stack([shortfall_from_zero(total, weights, confidence=level) for level in levels])

    nodes, timing = arrays.nodes, market.timing
    needed_lead = needed_lead_hours(nodes.losses, own[0, :points], arrays.grace_hours, arrays.deadline, timing)
    real_lead = lead_hours(nodes.passage, nodes.warned, arrays.grace_hours, arrays.deadline, timing)
    is_open, capacity = route_capacity(arrays, channels.up, needed_lead)
    surplus, real_capacity = todays_surplus(arrays, market, real_lead)
    # What is needed at both levels, and what to add to what is there: one program, walked three times.
    problems = (
        jnp.stack([losses.T, losses.T, -surplus]),
        jnp.stack([capacity, capacity, real_capacity]),
        jnp.asarray([*levels, levels[0]], jnp.float64),
    )
    used = market.scenarios_used if market.scenarios_used < weights.shape[0] else None

    routes = OpenRoutes(arrays.source, arrays.target, is_open)

    def solve(problem: tuple[Array, Array, Array]) -> TransferShortfall:
        of_losses, of_capacity, level = problem
        return transfer_shortfall(
            of_losses,
            of_capacity,
            weights,
            confidence=level,
            routes=routes,
            holds=arrays.is_node,
            scenarios_used=used,
            precision=market.precision,
        )

    solved = lax.map(solve, problems)
    # Within their limits to the bit: the routed part and what stands alone are rounded apart from the whole.
    ceiling = jnp.maximum(siloed, pooled)
    constrained = jnp.clip(solved.value[:2] + by_itself, pooled, ceiling)
    collateral = solved.collateral[0]

    count = channels.up.shape[1]

    def without(failure: Array) -> tuple[Array, Array]:
        """With one channel or route gone (the first `count` numbers are channels), or with none at the last number."""
        up = channels.up & (jnp.arange(count) != failure)[None, :]
        exists = jnp.arange(arrays.source.shape[0]) != failure - count
        cut = route_capacity(arrays, up, needed_lead, exists)[1]
        missing = uncovered_many(collateral[None, :] - losses.T, cut).amount
        beyond = tile_sum(weights * missing) / (1.0 - levels[0])
        placed = jnp.clip(ordered_sum(collateral) + beyond + by_itself[0], constrained[0], ceiling[0])
        return placed, error_of_mean(missing, weights) / (1.0 - levels[0])

    placed, errors = lax.map(without, jnp.arange(count + arrays.source.shape[0] + 1))
    share = [
        fungibility(value, siloed=silo, fungible=pool)
        for value, silo, pool in zip(constrained, siloed, pooled, strict=True)
    ]
    return TransferFigures(
        pooled=pooled,
        siloed=siloed,
        constrained=constrained,
        gap=solved.value[:2] - solved.lower_bound[:2],
        left_out=solved.left_out[:2],
        fungibility=jnp.stack(share),
        collateral=collateral,
        alone=own[0],
        route_value=jnp.where(arrays.arriving > 0.0, -solved.by_route[0], 0.0),
        route_open=tile_sum(jnp.where(is_open.T, weights[None, :], 0.0)),
        channel_up=tile_sum(jnp.where(channels.up.T, weights[None, :], 0.0)),
        error=errors[-1],
        without_channel=placed[:count],
        without_route=placed[count:-1],
        top_up=solved.collateral[2],
        top_up_total=solved.value[2] + _alone_top_up(arrays, market),
        alone_collateral=jnp.maximum(tail_rows(everything[points:], weights, levels)[0][:, 0], 0.0),
        **_assessment(arrays, market, surplus, real_capacity),
    )


def _alone_top_up(arrays: TransferArrays, market: TransferMarket) -> Float[Array, ""]:
    """T(K) of the nodes without a route."""
    short = -arrays.alone_surplus.astype(jnp.float64)
    if not short.shape[0]:
        return jnp.zeros((), jnp.float64)
    level = market.levels[0]
    return ordered_sum(jax.vmap(lambda row: shortfall_from_zero(row, market.weights, confidence=level))(short))


def error_of_mean(values: Float[Array, " S"], weights: Float[Array, " S"]) -> Float[Array, ""]:
    """Standard error of a weighted mean from batches of whole tiles; NaN where the scenarios do not fill them."""
    if values.shape[0] % LEAST_SCENARIOS:
        return jnp.full((), jnp.nan, jnp.float64)
    masses = tile_sum(weights.reshape(BATCHES, -1))
    sums = tile_sum(jnp.where(weights > 0.0, weights * values, 0.0).reshape(BATCHES, -1))
    return batch_standard_error(sums / jnp.where(masses > 0.0, masses, 1.0), masses)


@eqx.filter_jit
def needed_lead_hours(
    losses: Float[Array, "V T S"],
    needs: Float[Array, " V"],
    grace_hours: Float[Array, " V"],
    deadline: Int[Array, " V"],
    timing: Timing,
) -> Float[Array, "V S"]:
    """Hours between the first transfers and the deadline of what enters each point, if its node holds what it `needs`.

    A path on which nobody is warned, or a node that is never lost, has time until the horizon.
    """
    lost = losses.astype(jnp.float64)
    has_need = (needs > 0.0)[:, None, None]
    passage = _first_step(has_need & (lost > needs[:, None, None]))
    warned = _first_step(jnp.any(has_need & (lost > rounded(timing.warning_share * needs)[:, None, None]), axis=0))
    return lead_hours(passage, warned, grace_hours, deadline, timing)


@eqx.filter_jit
def lead_hours(
    passage: Int[Array, "V S"],
    warned: Int[Array, " S"],
    grace_hours: Float[Array, " V"],
    deadline: Int[Array, " V"],
    timing: Timing,
) -> Float[Array, "V S"]:
    """The same for the steps after which nodes are lost and somebody is warned."""
    grace = grace_hours[:, None]
    if timing.fixed_hours is not None:
        left = jnp.broadcast_to(timing.fixed_hours + grace - timing.reaction_hours, passage.shape)
    else:
        until = jnp.where(passage == NEVER, timing.horizon_hours, rounded(passage * timing.step_hours))
        since = jnp.where(warned == NEVER, 0.0, rounded(warned * timing.step_hours))
        left = until + grace - (since + timing.reaction_hours)[None, :]
    return jnp.where(deadline[:, None] >= 0, left[jnp.maximum(deadline, 0)], jnp.inf)


def _first_step(events: Bool[Array, "*rows T S"]) -> Int[Array, "*rows S"]:
    """Number of the first step (from 1) with the event; NEVER without one."""
    return jnp.where(jnp.any(events, axis=-2), jnp.argmax(events, axis=-2).astype(jnp.int32) + 1, NEVER)


def _holds(subset: Int[Array, " S"], point: Int[Array, ""]) -> Bool[Array, " S"]:
    """Whether the subset of a number (see `transfer.subsets`; -1 is the empty one) holds a point."""
    return ((subset + 1) >> point) & 1 == 1


def todays_surplus(
    arrays: TransferArrays, market: TransferMarket, lead: Float[Array, "V S"]
) -> tuple[Float[Array, "S V"], Float[Array, "S V V"]]:
    """What each point has or lacks by the venues' own rules, and what can reach it, with today's collateral.

    A point short of its level of liquidation needs the difference; one above it gives what its venue lets out. Where a
    channel loses what is under way, what would have been sent through it is gone from its source as well.
    """
    nodes, channels, real = arrays.nodes, market.channels, arrays.is_node[:, None]
    above = jnp.where(real, nodes.surplus.astype(jnp.float64), 0.0)
    free = jnp.where(real, nodes.withdrawable.astype(jnp.float64), 0.0)
    surplus = jnp.where(above < 0.0, above, jnp.minimum(above, free))
    if channels.lost.shape[1]:
        # Of a venue that fails only what is missing there is left.
        fails = (arrays.failure[:, None] >= 0) & channels.lost.T[jnp.maximum(arrays.failure, 0)]
        surplus = jnp.where(fails, jnp.minimum(surplus, 0.0), surplus)
    _, capacity = route_capacity(arrays, channels.up, lead)
    return (surplus - _lost_on_the_way(arrays, channels, surplus, lead)).T, capacity


def _assessment(
    arrays: TransferArrays,
    market: TransferMarket,
    surplus: Float[Array, "S V"],
    capacity: Float[Array, "S V V"],
) -> dict[str, Any]:
    """What today's collateral leaves uncovered, and where."""
    weights, levels = market.weights, market.levels
    found = uncovered_many(surplus, capacity)
    alone = ordered_sum(jnp.maximum(-arrays.alone_surplus.astype(jnp.float64), 0.0).T)
    missing = found.amount + alone
    some = missing > 0.0
    chance = tile_sum(jnp.where(some, weights, 0.0))
    mass = jnp.where(chance > 0.0, chance, 1.0)

    def mean_where_short(values: Float[Array, " S"]) -> Float[Array, ""]:
        return tile_sum(weights * jnp.where(some, values, 0.0)) / mass

    _, shortfall = tail_rows(missing[None], weights, levels)
    deficits = ordered_sum(jnp.maximum(-surplus, 0.0))
    delivered = jnp.clip(deficits - found.amount, 0.0, deficits)
    spare_alone = ordered_sum(jnp.maximum(arrays.alone_surplus.astype(jnp.float64), 0.0).T)
    stranded = jnp.maximum(ordered_sum(jnp.maximum(surplus, 0.0)) - delivered, 0.0) + spare_alone
    short_alone = -arrays.alone_surplus.astype(jnp.float64)
    worst_alone, _ = tail_rows(short_alone, weights, levels)

    def chance_of(events: Bool[Array, "rows S"]) -> Float[Array, " rows"]:
        return tile_sum(jnp.where(events, weights[None, :], 0.0))

    held = jax.vmap(lambda point: _holds(found.subset, point))(jnp.arange(surplus.shape[1]))
    return {
        "p_uncovered": chance,
        "uncovered_mean": mean_where_short(missing),
        "uncovered_shortfall": shortfall[0],
        "transit_mean": tile_sum(weights * missing),
        "stranded": mean_where_short(stranded),
        "p_deficit": chance_of((surplus < 0.0).T),
        "alone_p_deficit": chance_of(short_alone > 0.0),
        "alone_top_up": jnp.maximum(worst_alone[:, 0], 0.0),
        "buffer_value": chance_of(held) / (1.0 - levels[0]),
    }


def _lost_on_the_way(
    arrays: TransferArrays,
    channels: ChannelScenarios,
    surplus: Float[Array, "V S"],
    lead: Float[Array, "V S"],
) -> Float[Array, "V S"]:
    """What is under way to points in deficit through channels that lose it, by source; at most what the source has."""
    loses = jnp.any(arrays.uses[None, :, :] & channels.lost[:, None, :], axis=2)
    in_time = arrays.hours[:, None] <= lead[arrays.target]
    spare, lack = jnp.maximum(surplus, 0.0), jnp.maximum(-surplus, 0.0)

    def with_route(route: Array, total: Array) -> Array:
        wanted = ordered_sum(jnp.where(arrays.reaches[route][:, None], lack, 0.0).T)
        amount = jnp.where(loses[:, route] & in_time[route], jnp.minimum(wanted, arrays.arriving[route]), 0.0)
        held = jnp.where(arrays.holders[route][:, None], spare, 0.0)
        holds = ordered_sum(held.T)
        share = jnp.where(holds > 0.0, held / jnp.where(holds > 0.0, holds, 1.0)[None, :], 0.0)
        return total + rounded(share * amount[None, :])

    total = lax.fori_loop(0, arrays.source.shape[0], with_route, jnp.zeros_like(surplus))
    return jnp.minimum(total, spare)
