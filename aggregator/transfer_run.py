"""The transfer model of a run: its routes file, the state of every channel in its scenarios, each portfolio's network.

Deadlines come from the run's paths, or are fixed; a routes file that asks for paths in a run without any gets the fixed
ones, and the results say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .channel_outages import channel_scenarios, market_factor, market_stress
from .config import TILE
from .engine import CONFIDENCES, Cube
from .node_scenarios import NodeScenarios
from .path_margin import PathLaw
from .portfolio import PackedPortfolio
from .route_network import MOST_ROUTED_POINTS, GivenRoute, RouteNetwork, route_network
from .routes import Outage, Routes, merged_channels
from .scenarios import draw_paths, scenario_weights, stream_number
from .transfer_batch import NetworkScenarios, evaluate_transfers
from .transfer_margin import Timing, TransferFigures, TransferMarket, scenarios_looked_at

TRACED_PORTFOLIOS = 64
"""Portfolios whose node scenarios are in memory at once."""

_HOURS_PER_DAY = 24.0


class TransferLaw(NamedTuple):
    """What all portfolios of a run share. `deadlines` is the mode that is used."""

    routes: Routes
    given: tuple[GivenRoute, ...]
    deadlines: Literal["fixed", "path"]
    channels: tuple[str, ...]
    market: TransferMarket


class Transfers(NamedTuple):
    """One portfolio: its network and the figures; `method` says how they were computed."""

    network: RouteNetwork
    figures: TransferFigures
    method: str
    deadlines: Literal["fixed", "path"]
    channels: tuple[str, ...]
    """Names behind the figures by channel."""


def transfer_law(
    routes: Routes,
    given: Sequence[GivenRoute],
    factors: Sequence[str],
    cube: Cube,
    paths: PathLaw | None,
    *,
    venues: Sequence[str],
    seed: int,
    horizon_days: float,
) -> TransferLaw:
    """The law of a run over `factors`; channels are drawn for its paths or for the scenarios of its cube.

    Raises ConfigurationError where no scenario moves the market that the file's outages look at.
    """
    market = market_factor(factors, routes.deadline.market)
    by_path = routes.deadline.mode == "path" and paths is not None
    if by_path and paths is not None:
        weights = scenario_weights(paths.generator, paths.scenarios)
        key = jax.random.fold_in(jax.random.key(paths.seed), stream_number("paths"))
        moves = jnp.concatenate(
            [
                jnp.cumsum(draw_paths(paths.generator, key, first, TILE, steps=paths.steps)[:, :, market], axis=1)
                for first in range(0, weights.shape[0], TILE)
            ]
        )
    else:
        weights, moves = cube.weights, cube.shocks[:, market][:, None]
    outages: dict[str, tuple[Outage, float]] = dict(merged_channels(routes, venues))
    outages |= {route.channel: (route.outage, 0.0) for route in given}
    stress = market_stress(moves, weights)
    kind: Literal["paths", "scenarios"] = "paths" if by_path else "scenarios"
    states = channel_scenarios(outages, stress, seed=seed, horizon_days=horizon_days, kind=kind)
    timing = Timing(
        fixed_hours=None if by_path else routes.deadline.fixed_hours,
        reaction_hours=routes.operator.reaction_hours,
        warning_share=routes.operator.warning_share,
        step_hours=paths.step_hours if by_path and paths is not None else horizon_days * _HOURS_PER_DAY,
        horizon_hours=horizon_days * _HOURS_PER_DAY,
    )
    return TransferLaw(
        routes=routes,
        given=tuple(given),
        deadlines="path" if by_path else "fixed",
        channels=tuple(outages),
        market=TransferMarket(states, weights, timing, CONFIDENCES, scenarios_looked_at(weights.shape[0])),
    )


def profit_leaves(routes: Routes) -> Mapping[str, bool]:
    """By venue, whether unrealised profit can be withdrawn."""
    return {name: venue.profit_leaves for name, venue in routes.venues.items()}


def network_of(portfolio: PackedPortfolio, law: TransferLaw, *, most_usd: float = math.inf) -> RouteNetwork:
    """The portfolio's network under the law's routes file and its own routes; see `route_network`."""
    chains = {(info.node, info.venue): info.chain for info in portfolio.accounts}
    names = {node for node, _ in portfolio.nodes}
    own = [route for route in law.given if route.source_node in names and route.target_node in names]
    return route_network(
        portfolio.nodes,
        law.routes,
        chains=[chains.get(node, "") for node in portfolio.nodes],
        given=own,
        most_usd=most_usd,
    )


def transfers(
    portfolios: Sequence[PackedPortfolio], nodes: Sequence[NodeScenarios | None], law: TransferLaw, *, devices: int
) -> list[Transfers | None]:
    """The transfer model of every portfolio with scenarios of its nodes; None for the others."""
    usable = [at for at, of_portfolio in enumerate(nodes) if _is_finite(of_portfolio)]
    known = [
        (network_of(portfolios[at], law, most_usd=_most_moved(of_portfolio)), of_portfolio)
        for at in usable
        if (of_portfolio := nodes[at]) is not None
    ]
    found = evaluate_transfers([NetworkScenarios(*pair) for pair in known], law.channels, law.market, devices=devices)
    out: list[Transfers | None] = [None] * len(portfolios)
    for at, (network, _), figures in zip(usable, known, found, strict=True):
        routed = len(network.routed)
        method = "closed_form" if routed <= MOST_ROUTED_POINTS else "cuts"
        out[at] = Transfers(network, figures, method if routed else "no_routes", law.deadlines, law.channels)
    return out


def _most_moved(nodes: NodeScenarios) -> float:
    """Largest sum of deficits in any scenario: of nodes that hold nothing, or as they are. No more is ever moved."""
    empty = np.maximum(np.asarray(nodes.losses[:, -1], np.float64), 0.0).sum(axis=0)
    as_they_are = np.maximum(-np.asarray(nodes.surplus, np.float64), 0.0).sum(axis=0)
    return float(max(empty.max(initial=0.0), as_they_are.max(initial=0.0)))


def _is_finite(nodes: NodeScenarios | None) -> bool:
    """Whether every figure is a number: a portfolio that is not has failures of its own already."""
    if nodes is None:
        return False
    return all(bool(np.isfinite(values).all()) for values in (nodes.losses, nodes.surplus, nodes.withdrawable))
