"""The requirement of a portfolio whose collateral has to travel: the transfer model on its nodes' scenarios.

Two questions are answered. **What would be needed**: the transfer-constrained expected shortfall (TCES), the least
collateral, placed as well as possible, that covers the losses with what arrives in time. Deadlines are those of nodes
that hold what they need alone, so that the number does not depend on how rich the desk is today. **What is there**:
today's collateral by the venues' own rules, its uncovered amount, what is stranded and what to add where.

Written for one portfolio and mapped. USD; V points of the network (padded), R routes, T steps, S scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .batch_errors import BATCHES, LEAST_SCENARIOS, batch_standard_error
from .channel_outages import ChannelScenarios
from .engine import map_bucket
from .margin import accumulate
from .node_scenarios import NEVER, NodeScenarios
from .risk import tail_rows, tile_sum
from .rounding import rounded
from .route_network import MOST_ROUTED_POINTS, RouteNetwork
from .rules.risk_unit import ordered_sum
from .transfer import uncovered_many
from .transfer_shortfall import (
    OpenRoutes,
    TransferShortfall,
    fungibility,
    shortfall_from_zero,
    transfer_shortfall,
)
from .unit_batch import column, rounded_up

_POINTS = (2, 3, 4, 5, 6, 7, 8, 10, MOST_ROUTED_POINTS)
_ALONE = (0, 1, 2, 4, 8, 16, 32, 64)
_ROUTES = (4, 16, 32, 64, 128, 256, 512, 1024)


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
    """A point that loses and holds something; others have no deadline."""
    grace_hours: Float[Array, " V"]
    source: Int[Array, " R"]
    target: Int[Array, " R"]
    arriving: Float[Array, " R"]
    """USD that the route delivers at most; 0 for padding."""
    hours: Float[Array, " R"]
    uses: Bool[Array, "R C"]
    holder: Int[Array, " R"]
    """Point whose collateral leaves by the route: its source, or the node behind a withdrawal limit."""
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
    scenarios_used: int = eqx.field(static=True, default=4096)
    """Scenarios that the solver looks at, a multiple of the tile: those nearest to being uncovered."""
    precision: float = eqx.field(static=True, default=1e-4)
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
    alone_p_deficit: Float[Array, " I"]
    alone_top_up: Float[Array, " I"]
    alone_collateral: Float[Array, " I"]
    buffer_value: Float[Array, " V"]
    """Probability that a dollar more at the point is missing, over that of the tail."""


def route_capacity(
    arrays: TransferArrays,
    up: Bool[Array, "S C"],
    lead_hours: Float[Array, "V S"],
    exists: Bool[Array, " R"] | None = None,
) -> tuple[Bool[Array, "S R"], Float[Array, "S V V"]]:
    """Which routes are open in each scenario, and what can reach each point from each other one in time.

    `exists` leaves routes out.
    """
    points = arrays.is_node.shape[0]
    blocked = jnp.any(arrays.uses[None, :, :] & ~up[:, None, :], axis=2)
    in_time = arrays.hours[:, None] <= lead_hours[arrays.target]
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

    needed_lead, real_lead = _lead_hours(arrays, own[0, :points], market.timing)
    is_open, capacity = route_capacity(arrays, channels.up, needed_lead)
    surplus, real_capacity = _today(arrays, market, real_lead)
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
        return placed, _error_of_mean(missing, weights) / (1.0 - levels[0])

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
        alone_collateral=jnp.maximum(tail_rows(everything[points:], weights, levels)[0][:, 0], 0.0),
        **_assessment(arrays, market, surplus, real_capacity),
    )


def _error_of_mean(values: Float[Array, " S"], weights: Float[Array, " S"]) -> Float[Array, ""]:
    """Standard error of a weighted mean from batches of whole tiles; NaN where the scenarios do not fill them."""
    if values.shape[0] % LEAST_SCENARIOS:
        return jnp.full((), jnp.nan, jnp.float64)
    masses = tile_sum(weights.reshape(BATCHES, -1))
    sums = tile_sum(jnp.where(weights > 0.0, weights * values, 0.0).reshape(BATCHES, -1))
    return batch_standard_error(sums / jnp.where(masses > 0.0, masses, 1.0), masses)


def _lead_hours(
    arrays: TransferArrays, needs: Float[Array, " V"], timing: Timing
) -> tuple[Float[Array, "V S"], Float[Array, "V S"]]:
    """Hours between the first transfers and each point's deadline: with the collateral that it `needs`, and as it is.

    A path on which nobody is warned, or a node that is never lost, has time until the horizon.
    """
    nodes = arrays.nodes
    scenarios = nodes.warned.shape[0]
    grace = arrays.grace_hours[:, None]
    if timing.fixed_hours is not None:
        fixed = jnp.broadcast_to(timing.fixed_hours + grace - timing.reaction_hours, (grace.shape[0], scenarios))
        fixed = jnp.where(arrays.is_node[:, None], fixed, jnp.inf)
        return fixed, fixed
    lost = nodes.losses.astype(jnp.float64)
    has_need = (needs > 0.0)[:, None, None]
    passage = _first_step(has_need & (lost > needs[:, None, None]))
    warned = _first_step(jnp.any(has_need & (lost > rounded(timing.warning_share * needs)[:, None, None]), axis=0))

    def lead(passage: Array, warned: Array) -> Array:
        until = jnp.where(passage == NEVER, timing.horizon_hours, rounded(passage * timing.step_hours))
        since = jnp.where(warned == NEVER, 0.0, rounded(warned * timing.step_hours))
        left = until + grace - (since + timing.reaction_hours)[None, :]
        return jnp.where(arrays.is_node[:, None], left, jnp.inf)

    return lead(passage, warned), lead(nodes.passage, nodes.warned)


def _first_step(events: Bool[Array, "*rows T S"]) -> Int[Array, "*rows S"]:
    """Number of the first step (from 1) with the event; NEVER without one."""
    return jnp.where(jnp.any(events, axis=-2), jnp.argmax(events, axis=-2).astype(jnp.int32) + 1, NEVER)


def _holds(subset: Int[Array, " S"], point: Int[Array, ""]) -> Bool[Array, " S"]:
    """Whether the subset of a number (see `transfer.subsets`; -1 is the empty one) holds a point."""
    return ((subset + 1) >> point) & 1 == 1


def _today(
    arrays: TransferArrays, market: TransferMarket, lead_hours: Float[Array, "V S"]
) -> tuple[Float[Array, "S V"], Float[Array, "S V V"]]:
    """What each point has or lacks by the venues' own rules, and what can reach it, with today's collateral.

    A point short of its level of liquidation needs the difference; one above it gives what its venue lets out. Where a
    channel loses what is under way, what would have been sent through it is gone from its source as well.
    """
    nodes, channels, real = arrays.nodes, market.channels, arrays.is_node[:, None]
    above = jnp.where(real, nodes.surplus.astype(jnp.float64), 0.0)
    free = jnp.where(real, nodes.withdrawable.astype(jnp.float64), 0.0)
    surplus = jnp.where(above < 0.0, above, jnp.minimum(above, free))
    _, capacity = route_capacity(arrays, channels.up, lead_hours)
    return (surplus - _lost_on_the_way(arrays, channels, surplus, lead_hours)).T, capacity


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
    lead_hours: Float[Array, "V S"],
) -> Float[Array, "V S"]:
    """What is under way to points in deficit through channels that lose it, by source; at most what the source has."""
    loses = jnp.any(arrays.uses[None, :, :] & channels.lost[:, None, :], axis=2)
    in_time = arrays.hours[:, None] <= lead_hours[arrays.target]

    def sent(route: Array) -> Array:
        wanted = jnp.maximum(-surplus[arrays.target[route]], 0.0)
        amount = jnp.minimum(wanted, arrays.arriving[route])
        return jnp.where(loses[:, route] & in_time[route], amount, 0.0)

    total = accumulate(arrays.holder, sent, jnp.zeros_like(surplus))
    return jnp.minimum(total, jnp.maximum(surplus, 0.0))


# ---- buckets ---------------------------------------------------------------------------------------------------------


class NetworkScenarios(NamedTuple):
    """One portfolio's network and its nodes' scenarios on the host."""

    network: RouteNetwork
    nodes: NodeScenarios


def evaluate_transfers(
    portfolios: Sequence[NetworkScenarios], channels: Sequence[str], market: TransferMarket, *, devices: int
) -> list[TransferFigures]:
    """Figures (NumPy) of every portfolio; points and routes as in its network, those that stand alone with zeros.

    `channels` are the names behind the columns of the market's channel scenarios. A network with more routed points
    than the closed form holds keeps the ones that lose most and lets the others stand alone: a bound from above.
    """
    shapes: dict[tuple[int, int, int], list[int]] = {}
    kept = [_kept_points(portfolio) for portfolio in portfolios]
    for position, (portfolio, points) in enumerate(zip(portfolios, kept, strict=True)):
        routes = _kept_routes(portfolio.network, points)
        alone = portfolio.network.nodes - sum(point < portfolio.network.nodes for point in points)
        shape = (rounded_up(max(len(points), 2), _POINTS), rounded_up(len(routes), _ROUTES), rounded_up(alone, _ALONE))
        shapes.setdefault(shape, []).append(position)
    out: list[Any] = [None] * len(portfolios)
    for shape, members in sorted(shapes.items()):
        count = max(2 * devices, devices * rounded_up(-(-len(members) // devices), [2**k for k in range(21)]))
        arrays = [_arrays(portfolios[position], kept[position], channels, shape) for position in members]
        # The last one again in place of padding: an empty network would be one more case for the solver.
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *arrays, *[arrays[-1]] * (count - len(arrays)))
        found = jax.device_get(map_bucket(stacked, market, transfer_figures, devices))
        for place, position in enumerate(members):
            figures = TransferFigures(*(leaf[place] for leaf in found))
            out[position] = _unpacked(figures, portfolios[position].network, kept[position], market.levels[0])
    return out


def _kept_points(portfolio: NetworkScenarios) -> tuple[int, ...]:
    """Routed points that the closed form holds."""
    network, losses = portfolio
    routed = network.routed
    if len(routed) <= MOST_ROUTED_POINTS:
        return routed
    # Limits and brokers first: without them the routes that lead through them would be lost.
    worst = [float(np.max(losses.losses[point, -1])) if point < network.nodes else np.inf for point in routed]
    order = sorted(range(len(routed)), key=lambda at: (-worst[at], routed[at]))
    return tuple(sorted(routed[at] for at in order[:MOST_ROUTED_POINTS]))


def _kept_routes(network: RouteNetwork, points: Sequence[int]) -> list[int]:
    inside = set(points)
    return [at for at, route in enumerate(network.routes) if route.source in inside and route.target in inside]


def _arrays(
    portfolio: NetworkScenarios, points: Sequence[int], channels: Sequence[str], shape: tuple[int, ...]
) -> TransferArrays:
    network, nodes = portfolio
    size, routes_size, alone_size = shape
    place = {point: at for at, point in enumerate(points)}
    routes = [network.routes[at] for at in _kept_routes(network, points)]
    number = {name: at for at, name in enumerate(channels)}
    uses = np.zeros((routes_size, len(channels)), np.bool_)
    for at, route in enumerate(routes):
        for name in route.through:
            uses[at, number[name]] = True
    behind = {route.target: route.source for route in routes if network.kinds[route.target] == "limit"}
    inside = [point for point in points if point < network.nodes]
    alone = [node for node in range(network.nodes) if node not in place]

    def of_points(values: np.ndarray, fill: float) -> Any:
        out = np.full((size, *values.shape[1:]), fill, values.dtype)
        for point in inside:
            out[place[point]] = values[point]
        return out

    def of_alone(values: np.ndarray) -> Any:
        out = np.zeros((alone_size, values.shape[-1]), values.dtype)
        out[: len(alone)] = values[alone]
        return out

    host: Any = jax.tree.map(np.asarray, nodes)
    tables: Any = uses
    return TransferArrays(
        is_node=column([point < network.nodes for point in points], size, np.bool_),
        grace_hours=column([network.grace_hours[point] for point in points], size, np.float64),
        source=column([place[route.source] for route in routes], routes_size, np.int32),
        target=column([place[route.target] for route in routes], routes_size, np.int32),
        arriving=column([route.arriving_usd for route in routes], routes_size, np.float64),
        hours=column([route.p99_hours for route in routes], routes_size, np.float64),
        uses=tables,
        holder=column([place[behind.get(route.source, route.source)] for route in routes], routes_size, np.int32),
        nodes=NodeScenarios(
            losses=of_points(host.losses, 0.0),
            surplus=of_points(host.surplus, 0.0),
            withdrawable=of_points(host.withdrawable, 0.0),
            passage=of_points(host.passage, NEVER),
            warned=host.warned,
        ),
        alone_loss=of_alone(host.losses[:, -1]),
        alone_surplus=of_alone(np.where(host.surplus < 0.0, host.surplus, np.minimum(host.surplus, host.withdrawable))),
    )


def _unpacked(
    figures: TransferFigures, network: RouteNetwork, points: Sequence[int], confidence: float
) -> TransferFigures:
    """Figures by point and route of the network; 0 for those that were not among the kept ones."""
    size = figures.collateral.shape[0]
    alone = [node for node in range(network.nodes) if node not in points]

    def of_points(values: Any, by_itself: Any = None) -> Any:
        out = np.zeros(len(network.points))
        out[list(points)] = values[: len(points)]
        if by_itself is not None:
            out[alone] = by_itself[: len(alone)]
        return out

    def of_routes(values: Any) -> Any:
        out = np.zeros(len(network.routes))
        kept = _kept_routes(network, points)
        out[kept] = values[: len(kept)]
        return out

    return figures._replace(
        collateral=of_points(figures.collateral, figures.alone_collateral),
        alone=of_points(figures.alone, figures.alone[size:]),
        p_deficit=of_points(figures.p_deficit, figures.alone_p_deficit),
        top_up=of_points(figures.top_up, figures.alone_top_up),
        buffer_value=of_points(figures.buffer_value, figures.alone_p_deficit / (1.0 - confidence)),
        route_value=of_routes(figures.route_value),
        route_open=of_routes(figures.route_open),
        without_route=of_routes(figures.without_route),
    )
