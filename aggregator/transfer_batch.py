"""Transfer figures of many portfolios: networks of one shape in one program, those too large for it one by one.

Host code: networks become padded arrays and figures come back by the points and routes of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .batch import padded_length
from .engine import map_bucket
from .node_scenarios import NEVER, NodeScenarios
from .route_network import MOST_ROUTED_POINTS, RouteNetwork
from .transfer_large import large_network_figures
from .transfer_margin import TransferArrays, TransferFigures, TransferMarket, transfer_figures
from .unit_batch import column, rounded_up

_POINTS = tuple(range(2, MOST_ROUTED_POINTS + 1))
_ALONE = (4, 16, 64)
_ROUTES = (4, 16, 32, 64, 128, 256, 512, 1024)


class NetworkScenarios(NamedTuple):
    """One portfolio's network and its nodes' scenarios on the host."""

    network: RouteNetwork
    nodes: NodeScenarios


def evaluate_transfers(
    portfolios: Sequence[NetworkScenarios], channels: Sequence[str], market: TransferMarket, *, devices: int
) -> list[TransferFigures]:
    """Figures (NumPy) of every portfolio; points and routes as in its network, those that stand alone with zeros.

    `channels` are the names behind the columns of the market's channel scenarios.
    """
    lost = np.asarray(market.channels.lost)
    shapes: dict[tuple[int, int, int], list[int]] = {}
    out: list[Any] = [None] * len(portfolios)
    for position, portfolio in enumerate(portfolios):
        network = portfolio.network
        points = network.routed
        alone = network.nodes - sum(point < network.nodes for point in points)
        if len(points) > MOST_ROUTED_POINTS:
            arrays = _arrays(portfolio, channels, lost, (len(points), len(network.routes), alone))
            figures = large_network_figures(arrays, market)
            out[position] = _unpacked(figures, network, market.levels[0])
            continue
        sizes = max(len(points), 2), len(network.routes), alone
        limits = _POINTS, _ROUTES, _ALONE
        one, two, three = (rounded_up(size, steps) for size, steps in zip(sizes, limits, strict=True))
        shapes.setdefault((one, two, three), []).append(position)
    for shape, members in sorted(shapes.items()):
        count = padded_length(len(members), devices)
        rows = [_arrays(portfolios[position], channels, lost, shape) for position in members]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows, *[rows[-1]] * (count - len(rows)))
        found = jax.device_get(map_bucket(stacked, market, transfer_figures, devices, len(rows)))
        for place, position in enumerate(members):
            figures = TransferFigures(*(leaf[place] for leaf in found))
            out[position] = _unpacked(figures, portfolios[position].network, market.levels[0])
    return out


def _arrays(
    portfolio: NetworkScenarios, channels: Sequence[str], lost: np.ndarray, shape: tuple[int, ...]
) -> TransferArrays:
    network, nodes = portfolio
    points, routes = network.routed, network.routes
    size, routes_size, alone_size = shape
    place = {point: at for at, point in enumerate(points)}
    number = {name: at for at, name in enumerate(channels)}
    uses = np.zeros((routes_size, len(channels)), np.bool_)
    for at, route in enumerate(routes):
        for name in route.through:
            uses[at, number[name]] = True
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

    deadlines = [network.deadline_of[point] for point in points]
    # Any: host arrays stand where the module declares device arrays.
    sides: Any = np.zeros((2, routes_size, size), np.bool_)
    for at, route in enumerate(routes):
        for side, end, back in ((0, route.source, True), (1, route.target, False)):
            for node in network.nodes_beyond(end, against=back):
                if node in place:
                    sides[side][at, place[node]] = True
    host: Any = jax.tree.map(np.asarray, nodes)
    by_itself = np.where(host.surplus < 0.0, host.surplus, np.minimum(host.surplus, host.withdrawable))
    for node in alone:
        failure = number.get(f"default {network.venues[node]}")
        if failure is not None:
            # As at the nodes with a route: of a venue that fails only what is missing there is left.
            by_itself[node] = np.where(lost[:, failure], np.minimum(by_itself[node], 0.0), by_itself[node])
    tables: Any = uses
    return TransferArrays(
        is_node=column([point < network.nodes for point in points], size, np.bool_),
        deadline=column([place.get(at, -1) for at in deadlines], size, np.int32, -1),
        grace_hours=column([network.grace_hours[point] for point in points], size, np.float64),
        source=column([place[route.source] for route in routes], routes_size, np.int32),
        target=column([place[route.target] for route in routes], routes_size, np.int32),
        arriving=column([route.arriving_usd for route in routes], routes_size, np.float64),
        hours=column([route.p99_hours for route in routes], routes_size, np.float64),
        uses=tables,
        holders=sides[0],
        reaches=sides[1],
        failure=column([number.get(f"default {network.venues[p]}", -1) for p in points], size, np.int32, -1),
        nodes=NodeScenarios(
            losses=of_points(host.losses, 0.0),
            surplus=of_points(host.surplus, 0.0),
            withdrawable=of_points(host.withdrawable, 0.0),
            passage=of_points(host.passage, NEVER),
            warned=host.warned,
        ),
        alone_loss=of_alone(host.losses[:, -1]),
        alone_surplus=of_alone(by_itself),
    )


def _unpacked(figures: TransferFigures, network: RouteNetwork, confidence: float) -> TransferFigures:
    """Figures by point and route of the network."""
    size, points = figures.collateral.shape[0], network.routed
    alone = [node for node in range(network.nodes) if node not in points]

    def of_points(values: Any, by_itself: Any = None) -> Any:
        out = np.zeros(len(network.points))
        out[list(points)] = values[: len(points)]
        if by_itself is not None:
            out[alone] = by_itself[: len(alone)]
        return out

    def of_routes(values: Any) -> Any:
        return np.asarray(values)[: len(network.routes)]

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
