"""What is shown of the portfolios that matter most: where collateral flows on the worst days, what to move now, and how
much the reactive policy needs where.

Host code; the flows are small linear programmes (HiGHS) over the network, one for each scenario shown.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from .node_scenarios import NEVER, NodeRules, NodeScenarios, leaving_share
from .portfolio import PackedPortfolio
from .reactive_transfer import Prefunding, hedge_break_loss, prefunding
from .results import Evaluated
from .route_network import RouteNetwork
from .transfer_margin import needed_lead_hours
from .transfer_run import TransferLaw, Transfers

WORST_SCENARIOS = 16
BUFFER_SHARES = (0.5, 0.8)
"""Buffers of the reactive policy that are tried, as shares of what lies at a node."""

_MOST_ADDED = 4.0
"""Collateral that the reactive policy may need at most, in multiples of what the nodes need alone."""

_NEEDED = 1e-4
"""Smallest top-up of a node that counts, as a share of all of them."""

_SHORT_COST, _HOUR_COST, _STEP_COST = 1e4, 1e-4, 1e-5


class NodeNow(NamedTuple):
    """A node today, USD: above its venue's level of liquidation, and what the venue lets out."""

    surplus: float
    withdrawable: float


class TransferDetail(NamedTuple):
    """One portfolio: the transfer figures, and beside them by node (N) and by route (R) of its network, USD."""

    transfers: Transfers
    now: tuple[NodeNow, ...]
    worst_flow: np.ndarray
    move_now: np.ndarray
    prefunding: Prefunding | None
    """None without paths, and where no node needs anything."""
    split: np.ndarray
    """Shares of the nodes in `prefunding`."""
    hedge_break: np.ndarray
    """Mean loss by node on the paths on which it is liquidated; NaN on none."""
    node_equity: np.ndarray


def transfer_detail(
    evaluated: Evaluated, transfers: Transfers, nodes: NodeScenarios, law: TransferLaw, rules: NodeRules
) -> TransferDetail:
    """All of it for one portfolio with figures."""
    portfolio, network, figures = evaluated.portfolio, transfers.network, transfers.figures
    now = _today(evaluated, rules)
    equity = [0.0] * len(portfolio.nodes)
    for at, value in zip(portfolio.line_node, portfolio.line_equity, strict=True):
        equity[at] += value
    needed = np.asarray(figures.top_up)
    # What the solver leaves of its last digits is no need, and must not keep a node from giving.
    needed = np.where(needed > _NEEDED * needed.sum(), needed, 0.0)
    spare = np.zeros(len(network.points))
    for node, of_node in enumerate(now):
        spare[node] = max(min(of_node.withdrawable, _kept_above(np.asarray(nodes.surplus[node]), law)), 0.0)
    spare = np.where(needed > 0.0, 0.0, spare)
    alone = np.asarray(figures.alone)[: network.nodes]
    split = alone / alone.sum() if alone.sum() > 0.0 else np.zeros(network.nodes)
    reactive = None
    if transfers.deadlines == "path" and alone.sum() > 0.0:
        reactive = _reactive(network, nodes, law, split, float(alone.sum()))
    return TransferDetail(
        transfers=transfers,
        now=now,
        worst_flow=_worst_flow(transfers, nodes, law),
        move_now=flows(network, spare - needed, np.where(np.asarray(figures.route_open) > 0.0, np.inf, 0.0)),
        prefunding=reactive,
        split=split,
        hedge_break=_hedge_break(portfolio, nodes, law),
        node_equity=np.array(equity),
    )


def _kept_above(surplus: np.ndarray, law: TransferLaw) -> float:
    """What a node has above its level of liquidation in all but the worst scenarios: giving more would make it lack."""
    order = np.argsort(surplus, kind="stable")
    mass = np.cumsum(np.asarray(law.market.weights)[order])
    place = int(np.searchsorted(mass, 1.0 - law.market.levels[0]))
    return float(surplus[order[min(place, len(order) - 1)]])


def _today(evaluated: Evaluated, rules: NodeRules) -> tuple[NodeNow, ...]:
    portfolio, figures = evaluated
    assert figures is not None
    out = []
    on_node = list(zip(portfolio.lines, portfolio.line_node, strict=True))
    for number, node in enumerate(portfolio.nodes):
        surplus, free = [], []
        for account, info in enumerate(portfolio.accounts):
            if (info.node, info.venue) != node:
                continue
            equity = float(figures.native.equity[account])
            initial, maintenance = rules.requirements[info.account_id]
            surplus.append((equity - info.trigger * maintenance) * info.unit_price_usd)
            free.append((equity - max(initial, info.trigger * maintenance)) * info.unit_price_usd)
        withdrawable = math.fsum(free)
        if not rules.profit_leaves.get(node[1], False):
            balance = math.fsum(
                value
                for line, at, value in zip(portfolio.lines, portfolio.line_node, portfolio.line_equity, strict=True)
                if at == number and line.kind in ("collateral", "debt")
            )
            withdrawable = min(withdrawable, balance)
        if any(line.key in rules.leaving_share for line, at in on_node if at == number):
            leaves = [
                leaving_share(line, rules) * max(value, 0.0)
                for (line, at), value in zip(on_node, portfolio.line_equity, strict=True)
                if at == number
            ]
            withdrawable = min(withdrawable, math.fsum(leaves))
        out.append(NodeNow(math.fsum(surplus), max(withdrawable, 0.0)))
    return tuple(out)


def flows(network: RouteNetwork, surplus: np.ndarray, capacity: np.ndarray | None = None) -> np.ndarray:
    """What leaves by each route (R, USD) to cover as much as can be covered of the deficits in `surplus` (points, USD).

    Of several ways the cheapest, then the fastest. `capacity` replaces what each route lets leave.
    """
    routes, points = network.routes, len(network.points)
    out = np.zeros(len(routes))
    if not routes or not np.any(surplus < 0.0):
        return out
    most = float(np.maximum(-surplus, 0.0).sum())
    limit = np.array([min(route.capacity_usd, 2.0 * most) for route in routes])
    if capacity is not None:
        limit = np.minimum(limit, capacity)
    rows, columns, values = [], [], []
    for number, route in enumerate(routes):
        rows += [route.source, route.target]
        columns += [number, number]
        values += [1.0, -(1.0 - route.fee)]
    short = np.flatnonzero(surplus < 0.0)
    balance = sparse.csr_array((values, (rows, columns)), shape=(points, len(routes)))
    unmet = sparse.csr_array((-np.ones(short.size), (short, np.arange(short.size))), shape=(points, short.size))
    cost = np.array([max(route.fee, 0.0) + _HOUR_COST * route.p99_hours + _STEP_COST for route in routes])
    found = linprog(
        np.concatenate([cost, np.full(short.size, _SHORT_COST)]),
        A_ub=sparse.hstack([balance, unmet], format="csr"),
        b_ub=surplus / most,
        bounds=np.column_stack([np.zeros(len(routes) + short.size), np.append(limit / most, np.full(short.size, 1.0))]),
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(f"the flows of a network were not found: {found.message}")
    out[:] = found.x[: len(routes)] * most
    return np.where(out > 1e-9 * most, out, 0.0)


def _worst_flow(transfers: Transfers, nodes: NodeScenarios, law: TransferLaw) -> np.ndarray:
    """Mean flow by route over the worst scenarios: those with the largest deficits of the best placement of the TCES.

    Only what is up and in time there passes, and what arrives is what its fees leave.
    """
    network, figures = transfers.network, transfers.figures
    placed = np.asarray(figures.collateral)
    losses = np.zeros((len(network.points), nodes.losses.shape[-1]))
    losses[: network.nodes] = nodes.losses[:, -1]
    surplus = placed[:, None] - losses
    weights = np.asarray(law.market.weights)
    deficits = np.where(weights > 0.0, np.maximum(-surplus[: network.nodes], 0.0).sum(axis=0), 0.0)
    worst = [s for s in np.argsort(-deficits, kind="stable")[:WORST_SCENARIOS] if deficits[s] > 0.0]
    if not worst or not network.routes:
        return np.zeros(len(network.routes))
    up = np.asarray(law.market.channels.up)[worst]
    number = {name: at for at, name in enumerate(law.channels)}
    lead = _lead_hours(transfers, nodes, law, worst)
    total = np.zeros(len(network.routes))
    for place, scenario in enumerate(worst):
        is_open = [
            all(up[place, number[name]] for name in route.through) and route.p99_hours <= lead[route.target, place]
            for route in network.routes
        ]
        total += flows(network, surplus[:, scenario], np.where(is_open, np.inf, 0.0))
    return total / len(worst)


def _lead_hours(transfers: Transfers, nodes: NodeScenarios, law: TransferLaw, scenarios: Sequence[int]) -> np.ndarray:
    """Hours that transfers to each point have in some scenarios, as the TCES counts them."""
    network = transfers.network
    on_routes = np.isin(np.arange(len(network.points)), network.routed)
    losses = np.zeros((len(network.points), nodes.losses.shape[1], len(scenarios)))
    losses[: network.nodes] = np.asarray(nodes.losses, np.float64)[:, :, list(scenarios)]
    return np.asarray(
        needed_lead_hours(
            jnp.asarray(losses),
            jnp.asarray(np.where(on_routes, np.asarray(transfers.figures.alone), 0.0)),
            jnp.asarray(network.grace_hours, jnp.float64),
            jnp.asarray(network.deadline_of, jnp.int32),
            law.market.timing,
        )
    )


def _reactive(
    network: RouteNetwork, nodes: NodeScenarios, law: TransferLaw, split: np.ndarray, alone: float
) -> Prefunding:
    """The least of two plans: everywhere the fastest way within the horizon, or the one that delivers most.

    The policy knows one way for each pair, and neither alone would do: a small line that is quick hides a route that
    carries everything.
    """
    timing = law.market.timing
    count, steps = network.nodes, nodes.losses.shape[1]
    ways = [_ways(network, source) for source in range(count)]
    plans: list[tuple[np.ndarray, np.ndarray]] = []
    for widest in (False, True):
        delay, capacity = np.ones((count, count), np.int32), np.zeros((count, count))
        for source, of_source in enumerate(ways):
            for target, choices in of_source.items():
                late = [math.ceil((hours + timing.reaction_hours) / timing.step_hours) for hours, _ in choices]
                known = [(wait, most) for wait, (_, most) in zip(late, choices, strict=True) if wait <= steps]
                if known:
                    delay[source, target], capacity[source, target] = known[-1 if widest else 0]
        plans.append((delay, np.minimum(capacity, 1e15)))
    if all(np.array_equal(fast, wide) for fast, wide in zip(*plans, strict=True)):
        plans.pop()
    losses = jnp.asarray(np.moveaxis(np.asarray(nodes.losses, np.float64), -1, 0).swapaxes(1, 2))
    found = [
        prefunding(
            losses,
            delay,
            capacity,
            law.market.weights,
            split=split.tolist(),
            buffer_shares=BUFFER_SHARES,
            confidence=law.market.levels[0],
            most=_MOST_ADDED * alone,
            precision=1e-3,
        )
        for delay, capacity in plans
    ]
    return min(found, key=lambda one: one.total)


def _ways(network: RouteNetwork, source: int) -> dict[int, list[tuple[float, float]]]:
    """Of each other node: hours of a way from `source` that passes no third node, and what it delivers.

    The fastest first, behind it only what delivers more than all before.
    """
    out: dict[int, list[tuple[float, float]]] = {}
    reached: dict[int, float] = {}
    edge = [(0.0, -math.inf, source)]
    while edge:
        hours, less, at = heapq.heappop(edge)
        if -less <= reached.get(at, 0.0):
            continue
        reached[at] = -less
        if at < network.nodes and at != source:
            out.setdefault(at, []).append((hours, -less))
            continue
        for route in network.routes:
            if route.source == at and route.target != source:
                heapq.heappush(edge, (hours + route.p99_hours, -min(-less, route.arriving_usd), route.target))
    return out


# One program: the host would compile every step of it by itself.
_hedge_breaks = jax.jit(jax.vmap(hedge_break_loss, in_axes=(1, 2, None, None), out_axes=1))


def _hedge_break(portfolio: PackedPortfolio, nodes: NodeScenarios, law: TransferLaw) -> np.ndarray:
    """Mean loss by node on the paths on which its venue liquidates it: cost of the liquidation, and what its positions
    would have won afterwards, while those elsewhere run on unhedged.
    """
    gross = np.zeros(len(portfolio.nodes))
    for line, at in zip(portfolio.lines, portfolio.line_node, strict=True):
        if line.kind in ("linear", "option"):
            gross[at] += line.gross_usd
    venues = law.routes.venues
    cost = np.array([venues[v].liquidation_cost if v in venues else 0.0 for _, v in portfolio.nodes])
    weights = np.asarray(law.market.weights)
    passage = np.asarray(nodes.passage)
    steps = nodes.losses.shape[1]
    lost = np.asarray(
        _hedge_breaks(
            jnp.asarray(np.where(passage == NEVER, -1, passage)),
            jnp.asarray(np.asarray(nodes.losses, np.float64).swapaxes(0, 1)),
            jnp.asarray(np.broadcast_to(gross, (steps, len(gross)))),
            jnp.asarray(cost),
        )
    )
    hit = np.where(passage != NEVER, weights[None, :], 0.0)
    mass = hit.sum(axis=1)
    return np.where(mass > 0.0, (hit * lost).sum(axis=1) / np.where(mass > 0.0, mass, 1.0), np.nan)
