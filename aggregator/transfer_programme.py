"""Transfers between venues as linear programmes: the independent twin of the closed forms and of the cuts.

Host side, NumPy float64 and SciPy's HiGHS; USD, losses positive. Nothing of `transfer`, `transfer_minimum` and
`transfer_cuts` goes into a programme here, so that each can check the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

# Scenarios per programme when a fixed collateral is checked: large enough to spread the cost of a call, small enough
# for the programme to stay fast.
_BATCH = 256

# Uncovered amounts below this share of the largest loss are the programme's own tolerance.
_TOLERANCE = 1e-9


class ProgrammeMinimum(NamedTuple):
    """Least requirement in USD, its collateral [V], and how many scenarios the last programme held."""

    value: float
    collateral: np.ndarray
    scenarios: int


class _Flows(NamedTuple):
    source: np.ndarray  # [E] routes that carry anything, in any scenario
    target: np.ndarray


def _solve(cost: np.ndarray, rows: sparse.csr_array, least: np.ndarray, upper: np.ndarray, what: str) -> np.ndarray:
    """min cost x with rows x >= least and 0 <= x <= upper; raises `RuntimeError` if HiGHS does not finish."""
    bounds = np.column_stack([np.zeros_like(upper), upper])
    found = linprog(cost, A_ub=-rows, b_ub=-least, bounds=bounds, method="highs")
    if found.status != 0:
        raise RuntimeError(f"the linear programme of {what} was not solved: {found.message}")
    solution: np.ndarray = found.x
    return solution


def _routes(capacity: np.ndarray) -> _Flows:
    most = capacity.max(axis=0)
    source, target = np.nonzero((most > 0.0) & ~np.eye(most.shape[0], dtype=bool))
    return _Flows(source, target)


def _balances(count: int, nodes: int, flows: _Flows) -> sparse.csr_array:
    """Rows [count * V]: flows in less flows out plus what comes from outside, of every scenario; flows come first."""
    edges = flows.source.size
    one = sparse.coo_array(
        (
            np.concatenate([-np.ones(edges), np.ones(edges)]),
            (np.concatenate([flows.source, flows.target]), np.tile(np.arange(edges), 2)),
        ),
        shape=(nodes, edges),
    )
    return sparse.hstack([sparse.kron(sparse.eye_array(count), one), sparse.eye_array(count * nodes)], format="csr")


def _per_scenario(capacity: npt.ArrayLike, count: int, nodes: int) -> np.ndarray:
    matrix = np.asarray(capacity, dtype=np.float64)
    if matrix.shape not in ((nodes, nodes), (count, nodes, nodes)) or not np.all(matrix >= 0.0):
        raise ValueError(
            f"expected capacities >= 0 [{nodes}, {nodes}] or [{count}, {nodes}, {nodes}], found {matrix.shape}"
        )
    return np.broadcast_to(matrix, (count, nodes, nodes))


def uncovered_programme(surplus: npt.ArrayLike, capacity: npt.ArrayLike) -> np.ndarray:
    """U(x, c) [S] of `surplus` [S, V] and `capacity` [V, V] or [S, V, V], as least-cost flows; any number of nodes.

        min sum_v y_v   s.t.  x_v + sum_u f(u, v) - sum_w f(v, w) + y_v >= 0,  0 <= f <= c,  y >= 0

    Raises `ValueError` for wrong shapes, negative capacities or surpluses that are not finite.
    """
    x = np.asarray(surplus, dtype=np.float64)
    if x.ndim != 2 or not np.all(np.isfinite(x)):
        raise ValueError(f"expected finite surpluses [S, V], found shape {x.shape}")
    limits = _per_scenario(capacity, *x.shape)
    out = np.zeros(x.shape[0])
    short = np.flatnonzero((x < 0.0).any(axis=1))
    for first in range(0, short.size, _BATCH):
        rows = short[first : first + _BATCH]
        flows = _routes(limits[rows])
        edges = flows.source.size
        cost = np.concatenate([np.zeros(rows.size * edges), np.ones(rows.size * x.shape[1])])
        upper = np.concatenate([limits[rows][:, flows.source, flows.target].ravel(), np.full(x[rows].size, np.inf)])
        found = _solve(cost, _balances(rows.size, x.shape[1], flows), -x[rows].ravel(), upper, "uncovered amounts")
        out[rows] = found[rows.size * edges :].reshape(rows.size, -1).sum(axis=1)
    return out


def shortfall_programme(
    losses: npt.ArrayLike, capacity: npt.ArrayLike, weights: npt.ArrayLike, confidence: float
) -> ProgrammeMinimum:
    """TCES_a of `losses` [S, V] as one programme with flows and shortfalls of every scenario that can matter.

    Scenarios are added until none of those left out is uncovered at the solution: leaving them out lowers the objective
    at every K and not at this one, so it is then the minimum over all. Their share starts at the nodes' own values at
    risk. `capacity` is [V, V] or [S, V, V]; weights sum to 1. Raises as `uncovered_programme`.
    """
    L = np.asarray(losses, dtype=np.float64)
    p = np.asarray(weights, dtype=np.float64)
    if L.ndim != 2 or p.shape != L.shape[:1] or not np.all(np.isfinite(L[p > 0.0])) or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"expected finite losses [S, V], weights [S] and a confidence in (0, 1), found {L.shape}, {p.shape} and "
            f"{confidence!r}"
        )
    L, limits, p = L[p > 0.0], _per_scenario(capacity, *L.shape)[p > 0.0], p[p > 0.0]
    nodes = L.shape[1]
    flows = _routes(limits)
    edges = flows.source.size
    tail = 1.0 - confidence
    collateral = 0.5 * np.maximum(np.quantile(L, confidence, axis=0), 0.0)
    chosen = np.flatnonzero(uncovered_programme(collateral - L, limits) > 0.0)
    size = float(np.abs(L).max(initial=0.0))
    while True:
        count = chosen.size
        outside = np.repeat(p[chosen] / tail, nodes)
        cost = np.concatenate([np.zeros(count * edges), outside, np.ones(nodes)])
        upper = np.concatenate(
            [limits[chosen][:, flows.source, flows.target].ravel(), np.full((count + 1) * nodes, np.inf)]
        )
        own = sparse.kron(np.ones((count, 1)), sparse.eye_array(nodes))
        rows = sparse.hstack([_balances(count, nodes, flows), own], format="csr") if count else None
        if rows is None:
            collateral, value = np.zeros(nodes), 0.0
        else:
            found = _solve(cost, rows, L[chosen].ravel(), upper, "transfer-constrained shortfall")
            collateral, value = found[-nodes:], float(cost @ found)
        left_out = np.setdiff1d(np.arange(L.shape[0]), chosen)
        missing = left_out[uncovered_programme(collateral - L[left_out], limits[left_out]) > _TOLERANCE * size]
        if missing.size == 0:
            return ProgrammeMinimum(value, collateral, count)
        chosen = np.sort(np.concatenate([chosen, missing]))


def time_expanded_injection(
    collateral: npt.ArrayLike, cumulative_losses: npt.ArrayLike, delay: npt.ArrayLike, capacity_per_step: npt.ArrayLike
) -> float:
    """Least injections in USD along one path when everything is known in advance: a lower bound for any policy.

        min sum_{v,t} i_v(t)   s.t. for all v, t in 0..T:
            K_v - L_v(t) - sum_{w, s<=t} x(v,w,s) + sum_{u, s+delay<=t} x(u,v,s) + sum_{s<=t} i_v(s) >= 0

    `collateral` [V]; `cumulative_losses` [T, V] after steps 1..T, 0 before; `delay` [V, V] in whole steps, at least 0;
    `capacity_per_step` [V, V]. A transfer is decided at one of the steps 0..T-1, leaves then and arrives `delay` later.
    Raises `ValueError` for wrong shapes, delays that are negative or broken, negative capacities.
    """
    K = np.asarray(collateral, dtype=np.float64)
    L = np.asarray(cumulative_losses, dtype=np.float64)
    steps, nodes = (L.shape[0], K.size) if L.ndim == 2 else (0, K.size)
    later = np.asarray(delay, dtype=np.float64)
    limit = np.asarray(capacity_per_step, dtype=np.float64)
    if K.ndim != 1 or L.shape != (steps, nodes) or later.shape != (nodes, nodes) or limit.shape != (nodes, nodes):
        raise ValueError(
            f"expected collateral [V], losses [T, V], delay and capacity [V, V], found {K.shape}, {L.shape}, "
            f"{later.shape} and {limit.shape}"
        )
    if not np.all((later >= 0.0) & (later == np.round(later))) or not np.all(limit >= 0.0):
        raise ValueError("delays must be whole steps >= 0 and capacities >= 0")
    source, target = np.nonzero((limit > 0.0) & ~np.eye(nodes, dtype=bool))
    edges = source.size
    columns = steps * edges
    place, row, sign = [], [], []
    for s in range(steps):
        for e in range(edges):
            u, v = int(source[e]), int(target[e])
            for t in range(s, steps + 1):
                place.append(s * edges + e)
                row.append(t * nodes + u)
                sign.append(-1.0)
            for t in range(s + int(later[u, v]), steps + 1):
                place.append(s * edges + e)
                row.append(t * nodes + v)
                sign.append(1.0)
    moves = sparse.coo_array((sign, (row, place)), shape=((steps + 1) * nodes, columns))
    so_far = sparse.kron(np.tril(np.ones((steps + 1, steps + 1))), sparse.eye_array(nodes))
    needed = np.vstack([np.zeros(nodes), L]) - K
    cost = np.concatenate([np.zeros(columns), np.ones((steps + 1) * nodes)])
    upper = np.concatenate([np.tile(limit[source, target], steps), np.full((steps + 1) * nodes, np.inf)])
    rows = sparse.hstack([moves, so_far], format="csr")
    return float(cost @ _solve(cost, rows, needed.ravel(), upper, "time-expanded injections"))
