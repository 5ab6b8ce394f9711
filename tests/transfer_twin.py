"""A slow twin of the transfer model: loops over nodes, routes and scenarios, and linear programmes for every optimum.

Written from the model's definitions in plain NumPy float64; nothing of the engine's closed forms and solver. USD,
losses positive, hours.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from aggregator.channel_outages import ChannelScenarios
from aggregator.node_scenarios import NEVER, NodeScenarios
from aggregator.route_network import RouteNetwork
from aggregator.route_ways import Route
from aggregator.transfer_batch import NetworkScenarios, evaluate_transfers
from aggregator.transfer_margin import Timing, TransferFigures, TransferMarket

SCENARIOS, STEPS, STEP_HOURS = 512, 4, 6.0
LEVELS = (0.9, 0.95)
PRECISION = 1e-7  # finer than a run asks for, so that a difference of the model shows beside the solver's gap
CHANNELS = ("chain", "bridge", "venue")
PATH = Timing(None, 1.0, 0.5, STEP_HOURS, 24.0)
FIXED = Timing(8.0, 1.0, 0.5, 24.0, 24.0)


class Case(NamedTuple):
    """One portfolio with everything that the engine is given."""

    network: RouteNetwork
    nodes: NodeScenarios
    up: np.ndarray
    lost: np.ndarray
    weights: np.ndarray
    timing: Timing

    @property
    def market(self) -> TransferMarket:
        """As the engine takes it."""
        states = ChannelScenarios(jnp.asarray(self.up), jnp.asarray(self.lost))
        return TransferMarket(states, jnp.asarray(self.weights), self.timing, LEVELS, precision=PRECISION)

    def figures(self) -> TransferFigures:
        """By the engine."""
        (found,) = evaluate_transfers([NetworkScenarios(self.network, self.nodes)], CHANNELS, self.market, devices=1)
        return found


def route(
    source: int,
    target: int,
    capacity: float,
    hours: float = 1.0,
    through: tuple[str, ...] = (),
    fee: float = 0.0,
) -> Route:
    """A route of known p99 hours."""
    return Route(f"{source} to {target} in {hours:g}", source, target, "USDC", through, hours, hours, capacity, fee)


def network(nodes: int, routes: list[Route], kinds: tuple[str, ...] = (), grace: float = 0.5) -> RouteNetwork:
    """Nodes with a grace of 0, `grace`, 2 `grace`, ... hours, then points of the `kinds` given."""
    count = nodes + len(kinds)
    return RouteNetwork(
        points=tuple(f"p{n}" for n in range(count)),
        venues=(*(f"v{n}" for n in range(nodes)), *[""] * len(kinds)),
        kinds=(*["node"] * nodes, *kinds),
        nodes=nodes,
        routes=tuple(routes),
        grace_hours=(*(grace * n for n in range(nodes)), *[0.0] * len(kinds)),
        deadline_of=(*range(nodes), *[-1] * len(kinds)),
    )


def nodes_of(seed: int, count: int, *, held: float = 120.0) -> NodeScenarios:
    """Hedged, heavy-tailed losses along paths, and what today's collateral of `held` a node makes of them."""
    random = np.random.default_rng(seed)
    steps = (
        40.0
        * random.standard_t(4, size=(count, STEPS, SCENARIOS))
        * np.exp(0.3 * random.normal(size=count))[:, None, None]
    )
    steps[-1] -= 0.7 * steps[:-1].sum(axis=0)
    losses = np.cumsum(steps, axis=1)
    surplus = held - losses.max(axis=1)
    gone = losses > held
    passage = np.where(gone.any(axis=1), gone.argmax(axis=1) + 1, NEVER)
    low = (losses > 0.4 * held).any(axis=0)
    warned = np.where(low.any(axis=0), low.argmax(axis=0) + 1, NEVER)
    # Any: host arrays stand where the type declares device arrays.
    host: Any = {
        "losses": losses.astype(np.float32),
        "surplus": surplus.astype(np.float32),
        "withdrawable": np.maximum(0.8 * surplus - 15.0, 0.0).astype(np.float32),
        "passage": passage.astype(np.int32),
        "warned": warned.astype(np.int32),
    }
    return NodeScenarios(**host)


def ring(capacity: float = 50.0, hours: tuple[float, ...] = (0.5, 5.0, 11.0)) -> list[Route]:
    """Six routes among three nodes, one pair of them parallel, one slow enough to be late on most paths."""
    a, b, c = hours
    return [
        route(0, 1, capacity, a, ("chain",)),
        route(0, 1, 0.5 * capacity, c, ("bridge",), 0.02),
        route(1, 0, capacity, b, ("chain", "bridge")),
        route(1, 2, 1.5 * capacity, b, ("venue",)),
        route(2, 0, capacity, c, ("bridge",)),
        route(2, 1, 0.7 * capacity, a, ("chain",), 0.01),
    ]


def case(
    seed: int = 1,
    *,
    timing: Timing = PATH,
    of: RouteNetwork | None = None,
    nodes: NodeScenarios | None = None,
    loses: float = 0.0,
) -> Case:
    """A ring of three nodes unless given; uneven weights of which some are 0, channels that fail now and then."""
    random = np.random.default_rng(1000 + seed)
    weights = random.random(SCENARIOS) * (random.random(SCENARIOS) < 0.9)
    lost = random.random((SCENARIOS, len(CHANNELS))) < loses
    up = (random.random((SCENARIOS, len(CHANNELS))) < 0.85) & ~lost
    net = network(3, ring()) if of is None else of
    return Case(net, nodes_of(seed, net.nodes) if nodes is None else nodes, up, lost, weights / weights.sum(), timing)


CASES = {
    "path": lambda: case(1, timing=PATH),
    "fixed": lambda: case(2, timing=FIXED),
    "losing": lambda: case(3, timing=PATH, loses=0.3),
}


@functools.cache
def of(name: str) -> tuple[Case, TransferFigures]:
    """One of `CASES` with the engine's figures."""
    given = CASES[name]()
    return given, given.figures()


# ---- the twin --------------------------------------------------------------------------------------------------------


def alone(losses: np.ndarray, weights: np.ndarray, level: float) -> tuple[float, float]:
    """min over z >= 0 of z + E[(L - z)+] / (1 - a) and a z that attains it: convex and piecewise linear, so one of its
    corners.
    """
    corners = np.unique(np.append(np.maximum(losses[weights > 0.0], 0.0), 0.0))
    values = [z + float(weights @ np.maximum(losses - z, 0.0)) / (1.0 - level) for z in corners]
    best = int(np.argmin(values))
    return values[best], float(corners[best])


def leads(of: Case, needs: list[float] | None) -> np.ndarray:
    """Hours [points, S] between the start of transfers and each node's deadline; with `needs`, by the losses against
    what each node needs alone, otherwise by the venues' verdicts.
    """
    timing, nodes = of.timing, of.nodes
    out = np.full((len(of.network.points), SCENARIOS), np.inf)
    for node in range(of.network.nodes):
        for s in range(SCENARIOS):
            if timing.fixed_hours is not None:
                out[node, s] = timing.fixed_hours + of.network.grace_hours[node] - timing.reaction_hours
                continue
            start, end = 0.0, timing.horizon_hours
            if needs is None:
                if nodes.warned[s] != NEVER:
                    start = float(nodes.warned[s]) * timing.step_hours
                if nodes.passage[node, s] != NEVER:
                    end = float(nodes.passage[node, s]) * timing.step_hours
            else:
                for step in reversed(range(STEPS)):
                    at = (step + 1) * timing.step_hours
                    if any(
                        need > 0.0 and float(nodes.losses[n, step, s]) > timing.warning_share * need
                        for n, need in enumerate(needs)
                    ):
                        start = at
                    if needs[node] > 0.0 and float(nodes.losses[node, step, s]) > needs[node]:
                        end = at
            out[node, s] = end + of.network.grace_hours[node] - start - timing.reaction_hours
    return out


def capacities(of: Case, lead: np.ndarray, down: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Whether each route is open [S, R], what can arrive [S, points, points]; `down`: a channel that never is up."""
    points = len(of.network.points)
    is_open = np.zeros((SCENARIOS, len(of.network.routes)), bool)
    out = np.zeros((SCENARIOS, points, points))
    for s in range(SCENARIOS):
        for number, r in enumerate(of.network.routes):
            up = all(of.up[s, CHANNELS.index(name)] and CHANNELS.index(name) != down for name in r.through)
            if up and r.p99_hours <= lead[r.target, s]:
                is_open[s, number] = True
                out[s, r.source, r.target] += r.capacity_usd * (1.0 - r.fee)
    return is_open, out


def minimum(
    losses: np.ndarray, capacity: np.ndarray, weights: np.ndarray, level: float, holders: int
) -> tuple[float, np.ndarray]:
    """TCES of `losses` [S, points] with collateral at the first `holders` points only, as one programme with a flow for
    every route and scenario: only nodes hold something, limits and brokers pass it on.
    """
    real = np.flatnonzero(weights > 0.0)
    count, points = real.size, losses.shape[1]
    source, target = np.nonzero(capacity.max(axis=0) > 0.0)
    edges = source.size
    one = np.zeros((points, edges))
    one[source, np.arange(edges)] -= 1.0
    one[target, np.arange(edges)] += 1.0
    held = np.eye(points)[:, :holders]
    blocks = [sparse.kron(np.ones((count, 1)), held)]
    cost = [np.ones(holders)]
    upper = [np.full(holders, np.inf)]
    if edges:
        blocks.append(sparse.kron(sparse.eye_array(count), one))
        cost.append(np.zeros(count * edges))
        upper.append(capacity[real][:, source, target].ravel())
    blocks.append(sparse.eye_array(count * points))
    cost.append(np.repeat(weights[real] / (1.0 - level), points))
    upper.append(np.full(count * points, np.inf))
    limits = np.concatenate(upper)
    found = linprog(
        np.concatenate(cost),
        A_ub=-sparse.hstack(blocks, format="csr"),
        b_ub=-losses[real].ravel(),
        bounds=np.column_stack([np.zeros_like(limits), limits]),
        method="highs",
    )
    assert found.status == 0, found.message
    return float(found.fun), found.x[:holders]


def losses_at_the_end(of: Case) -> np.ndarray:
    """[S, points], 0 where nothing is held."""
    out = np.zeros((SCENARIOS, len(of.network.points)))
    out[:, : of.network.nodes] = np.asarray(of.nodes.losses, np.float64)[:, -1].T
    return out


def needs_of(of: Case, level: float) -> list[float]:
    """What each node needs alone."""
    return [alone(row, of.weights, level)[0] for row in losses_at_the_end(of).T[: of.network.nodes]]


def tces(of: Case, level: float, down: int | None = None) -> float:
    """The least collateral at the nodes, deadlines by what each node needs alone at the first level."""
    _, capacity = capacities(of, leads(of, needs_of(of, LEVELS[0])), down)
    return minimum(losses_at_the_end(of), capacity, of.weights, level, of.network.nodes)[0]


def today(of: Case) -> tuple[np.ndarray, np.ndarray]:
    """What each point has (as far as its venue lets it out) or lacks [S, points], and what can arrive in time."""
    lead = leads(of, None)
    surplus = np.zeros((SCENARIOS, len(of.network.points)))
    for node in range(of.network.nodes):
        for s in range(SCENARIOS):
            above = float(of.nodes.surplus[node, s])
            surplus[s, node] = above if above < 0.0 else min(above, float(of.nodes.withdrawable[node, s]))
    gates = {r.target: r.source for r in of.network.routes if of.network.kinds[r.target] == "limit"}
    gone = np.zeros_like(surplus)
    for s in range(SCENARIOS):
        for r in of.network.routes:
            loses = any(of.lost[s, CHANNELS.index(name)] for name in r.through)
            if loses and r.p99_hours <= lead[r.target, s]:
                wanted = max(-surplus[s, r.target], 0.0)
                gone[s, gates.get(r.source, r.source)] += min(wanted, r.capacity_usd * (1.0 - r.fee))
    return surplus - np.minimum(gone, np.maximum(surplus, 0.0)), capacities(of, lead)[1]
