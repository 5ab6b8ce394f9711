"""Uncovered amounts and least collateral of networks with any number of points, by flows and cuts that are needed.

Host code in NumPy float64 and SciPy's HiGHS; USD, losses positive. `transfer` looks at every set of nodes, which
doubles with each node; here the set that decides is found scenario by scenario as the least cut of a largest flow, and
the least collateral by a linear programme that knows only the cuts found so far. The programme is a bound from below,
its collateral with exact flows one from above.

Sources: Ford and Fulkerson, "Maximal flow through a network" (1956); Edmonds and Karp, "Theoretical improvements in
algorithmic efficiency for network flow problems" (1972), shortest augmenting paths; Van Slyke and Wets, "L-shaped
linear programs with applications to optimal control and stochastic programming" (1969).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

_MOST_ROUNDS = 200
_NOTHING = 1e-12  # share of the largest amount below which a residual capacity is rounding


class Cuts(NamedTuple):
    """`amount` [S], USD uncovered, and whether each point is in the set [S, V] that decides; empty where it is 0.

    `flow` [S, V, V] is what goes from point to point of a largest flow, USD.
    """

    amount: np.ndarray
    members: np.ndarray
    flow: np.ndarray


class LeastCollateral(NamedTuple):
    """`value` is that of `collateral` [V], over all scenarios; the minimum lies between `lower_bound` and it, USD.

    `scenario`, `members` and `mass` are the cuts of the last programme with their dual values, over the tail's mass.
    """

    value: float
    lower_bound: float
    collateral: np.ndarray
    scenario: np.ndarray
    members: np.ndarray
    mass: np.ndarray


def uncovered_cuts(surplus: np.ndarray, capacity: np.ndarray) -> Cuts:
    """U(x, c) of `surplus` [S, V] and `capacity` [S, V, V], and the smallest sets that attain it."""
    count, points = surplus.shape
    amount, members = np.zeros(count), np.zeros((count, points), bool)
    flow = np.zeros((count, points, points))
    short = np.flatnonzero((surplus < 0.0).any(axis=1))
    if not short.size:
        return Cuts(amount, members, flow)
    x = surplus[short]
    lack = np.maximum(-x, 0.0).sum(axis=1)
    # Source and sink behind the points; no more than what lacks ever flows.
    left = np.zeros((short.size, points + 2, points + 2))
    left[:, :points, :points] = np.minimum(capacity[short], lack[:, None, None])
    left[:, np.arange(points), np.arange(points)] = 0.0
    left[:, points, :points] = np.minimum(np.maximum(x, 0.0), lack[:, None])
    left[:, :points, points + 1] = np.maximum(-x, 0.0)
    before = left[:, :points, :points].copy()
    least = _NOTHING * lack
    active = np.arange(short.size)
    while active.size:
        seen, parent = _paths(left[active], least[active])
        arrives = seen[:, points + 1]
        active = active[arrives]
        _augment(left, active, parent[arrives], points)
    # What lacks and has not come: the sink's edges that are not full.
    rest = np.where(left[:, :points, points + 1] > least[:, None], left[:, :points, points + 1], 0.0).sum(axis=1)
    amount[short] = rest
    # The smallest of the sets: from where what lacks could still be reached.
    room = left[:, :points, :points] > least[:, None, None]
    inside = left[:, :points, points + 1] > least[:, None]
    for _ in range(points):
        inside |= (room & inside[:, None, :]).any(axis=2)
    members[short] = inside
    flow[short] = np.maximum(before - left[:, :points, :points], 0.0)
    return Cuts(amount, members, flow)


def _paths(left: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points that a shortest path with room leads to from the source, and where each was entered from."""
    count, size, _ = left.shape
    room = left > least[:, None, None]
    seen = np.zeros((count, size), bool)
    seen[:, size - 2] = True
    parent = np.full((count, size), -1)
    edge = seen.copy()
    while edge.any():
        ways = room & edge[:, :, None]
        fresh = ways.any(axis=1) & ~seen
        parent = np.where(fresh, ways.argmax(axis=1), parent)
        seen |= fresh
        edge = fresh
        if seen[:, size - 1].all():
            break
    return seen, parent


def _augment(left: np.ndarray, rows: np.ndarray, parent: np.ndarray, points: int) -> None:
    """Send along each row's path as much as its narrowest step lets through."""
    if not rows.size:
        return
    place = np.arange(rows.size)
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    at = np.full(rows.size, points + 1)
    narrow = np.full(rows.size, np.inf)
    while True:
        moving = at != points
        if not moving.any():
            break
        before = np.where(moving, parent[place, at], at)
        narrow = np.where(moving, np.minimum(narrow, left[rows, before, at]), narrow)
        steps.append((before, at, moving))
        at = before
    for before, after, moving in steps:
        some = rows[moving]
        left[some, before[moving], after[moving]] -= narrow[moving]
        left[some, after[moving], before[moving]] += narrow[moving]


def least_collateral(
    losses: np.ndarray,
    capacity: np.ndarray,
    weights: np.ndarray,
    *,
    confidence: float,
    holds: np.ndarray,
    precision: float,
) -> LeastCollateral:
    """min over K >= 0 of sum K + E[U(K - L, c)] / (1 - a), with K at the points that `holds` [V] names.

    `losses` [S, V], `capacity` [S, V, V], `weights` [S]. It ends when value and bound are within `precision` of the
    value. Raises `RuntimeError` if HiGHS does not finish.
    """
    points = losses.shape[1]
    real = np.flatnonzero(weights > 0.0)
    share = weights / (1.0 - confidence)
    held = np.flatnonzero(holds)
    collateral = np.zeros(points)
    collateral[held] = [_quantile(losses[real, v], weights[real], confidence) for v in held]
    best, best_value, bound = collateral, np.inf, 0.0
    scenario, members = np.zeros(0, int), np.zeros((0, points), bool)
    mass = np.zeros(0)
    for _ in range(_MOST_ROUNDS):
        found = uncovered_cuts(collateral[None, :] - losses[real], capacity[real])
        value = float(collateral.sum() + share[real] @ found.amount)
        if value < best_value:
            best, best_value = collateral, value
        if best_value - bound <= precision * best_value:
            break
        short = np.flatnonzero(found.amount > 0.0)
        scenario = np.concatenate([scenario, real[short]])
        members = np.concatenate([members, found.members[short]])
        bound, collateral, mass = _programme(losses, capacity, share, held, scenario, members)
        if best_value - bound <= precision * best_value:
            break
    return LeastCollateral(best_value, min(bound, best_value), best, scenario, members, mass)


def _quantile(values: np.ndarray, weights: np.ndarray, confidence: float) -> float:
    order = np.argsort(values, kind="stable")
    place = int(np.searchsorted(np.cumsum(weights[order]), confidence))
    return max(float(values[order[min(place, order.size - 1)]]), 0.0)


def _programme(
    losses: np.ndarray,
    capacity: np.ndarray,
    share: np.ndarray,
    held: np.ndarray,
    scenario: np.ndarray,
    members: np.ndarray,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, collateral and dual values of the programme that knows these cuts."""
    if not scenario.size:
        return 0.0, np.zeros(losses.shape[1]), np.zeros(0)
    inside = members.astype(float)
    needs = np.einsum("cv,cv->c", inside, losses[scenario])
    cut = np.where(~members[:, :, None] & members[:, None, :], capacity[scenario], 0.0).sum(axis=(1, 2))
    known, column = np.unique(scenario, return_inverse=True)
    size = max(float(np.abs(needs).max(initial=0.0)), 1e-300)
    rows = sparse.hstack(
        [
            sparse.csr_array(-inside[:, held]),
            sparse.csr_array((-np.ones(scenario.size), (np.arange(scenario.size), column))),
        ],
        format="csr",
    )
    cost = np.concatenate([np.ones(held.size), share[known]])
    found = linprog(cost, A_ub=rows, b_ub=(cut - needs) / size, bounds=(0.0, None), method="highs")
    if found.status != 0:
        raise RuntimeError(f"the linear programme of the cuts was not solved: {found.message}")
    collateral = np.zeros(losses.shape[1])
    collateral[held] = np.maximum(found.x[: held.size], 0.0) * size
    return float(found.fun) * size, collateral, np.maximum(-np.asarray(found.ineqlin.marginals), 0.0)
