"""Reverse stress: the smallest plausible joint move of the factors at which a venue liquidates an account.

Plausible is what the scenarios of the run say: with their covariance S a log move x is d = sqrt(x' S^-1 x) standard
deviations away (Mahalanobis), and wanted is the smallest d with a verdict. x = L u with S = L L' turns this into the
shortest u on the boundary of the account's rules, the design point of the first-order reliability method (A. M.
Hasofer, N. C. Lind, "Exact and invariant second-moment code format", 1974; R. Rackwitz, B. Fiessler, "Structural
reliability under combined random load sequences", 1978).

Venues' rules have kinks and jumps, so a step along the gradient is only a proposal: every direction is judged by the
first verdict on its ray, and kept where that comes sooner. So each answer is a move that liquidates, whatever the shape
of the rules, and the search can only miss a shorter one. Moves are instantaneous: no time passes.

The search runs on the host in NumPy for all accounts of a bucket at once, the verdicts on the device; each account
sees only its own factors (the others then move as they do on average beside these, which costs no distance). Sums are
written out in their order, so an answer does not depend on what else is searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from .account_alone import Alone, alone, resolved, small_cubes
from .batch import PortfolioArrays, bucketed
from .condensed import BookCube, accounts_of
from .cube import CubeRows
from .engine import Cube, map_bucket
from .margin import liquidated, scenario_margin
from .portfolio import PackedPortfolio
from .rounding import rounded
from .unit_batch import SMALL_STEPS, rounded_up

FARTHEST = 10.0
"""Standard deviations up to which a move is looked for."""

_POINTS = 256  # moves judged in one call: whole tiles, which risk units are computed in
_PER_RAY = 16
_COARSE, _FINE, _EXACT = 2, 4, 8  # passes over a ray; each narrows the step by a factor of _PER_RAY
_KEPT = 2  # directions that are improved
_SHARES = (1.0, 0.5, 0.1)  # of the way to the direction that the gradient proposes
_TURNS = (0.3, 0.1, 0.03, 0.01)
_ROUNDS = 10
_PROGRESS = 1e-4  # relative; a smaller improvement ends the search, whose distance is flat around its answer
_ALIGNED = 1.0 - 1e-6  # cosine between the answer and the gradient there from which on it is the nearest nearby
_DIFFERENCE = 1e-4  # standard deviations on both sides of the point where a gradient is taken
_DEPENDENT = 1e-10  # share of a variance below which a factor is a combination of those before it
_VERIFIED = 1e-6
_SEARCHES_PER_SHAPE = 64
_MOST_BUCKETS = 6


class NearestMove(NamedTuple):
    """The nearest liquidating move of one account: `distance` in standard deviations, `moves` log moves by factor.

    `normal` are the coefficients of the plane through the move: a'x is its distance at the move, and a scenario with a
    larger a'x lies beyond. `status`: ok; none (no verdict within `FARTHEST`); liquidatable_now (distance 0);
    calculation (the verdicts around the move contradict it).
    """

    status: str
    distance: float | None
    moves: Mapping[str, float]
    normal: Mapping[str, float]


def weighted_covariance(
    shocks: Float[np.ndarray, "scenarios factors"], weights: Float[np.ndarray, " scenarios"]
) -> Float[np.ndarray, "factors factors"]:
    """Covariance of the scenarios around their mean; weights sum to 1."""
    # Sums down the scenarios, not a matrix product: its order of additions is the library's own choice.
    mean = np.sum(weights[:, None] * shocks, axis=0)
    centred = shocks - mean
    weighted = weights[:, None] * centred
    return np.stack([np.sum(weighted[:, number, None] * centred, axis=0) for number in range(shocks.shape[1])])


def nearest_moves(
    portfolios: Sequence[PackedPortfolio],
    factors: Sequence[str],
    cube: Cube,
    covariance: Float[np.ndarray, "factors factors"],
    *,
    devices: int = 1,
) -> list[list[NearestMove]]:
    """The nearest liquidating move of every account of every portfolio, in their order.

    `factors` are those of the cube and of the covariance.
    """
    book = BookCube(tuple(factors), jax.tree.map(np.asarray, cube.rows), np.asarray(cube.today))
    searches = [alone(book, account) for portfolio in portfolios for account in accounts_of(portfolio)]
    found: dict[int, NearestMove] = {}
    # Risk units take most of the time: accounts without any are not padded with them.
    for with_units in (False, True):
        part = [number for number, one in enumerate(searches) if bool(one.portfolio.units) == with_units]
        if not part:
            continue
        width = rounded_up(max(1, *(len(searches[number].factors) for number in part)), SMALL_STEPS)
        most = max(1, min(_MOST_BUCKETS, len(part) // _SEARCHES_PER_SHAPE))
        names = [str(slot) for slot in range(width)]
        apart = [searches[number].portfolio for number in part]
        for bucket in bucketed(apart, names, multiple=devices, most_buckets=most):
            members = [searches[part[position]] for position in bucket.members]
            judge = _Judge(members, bucket.arrays, book, width, devices)
            for position, move in zip(bucket.members, _searched(judge, members, book, covariance), strict=True):
                found[part[position]] = move
    moves = iter(found[number] for number in range(len(searches)))
    return [[next(moves) for _ in portfolio.accounts] for portfolio in portfolios]


# ---- verdicts on the device ------------------------------------------------------------------------------------------


class _Task(eqx.Module):
    """One account and the moves to judge (a leading axis over accounts is added by the bucket)."""

    portfolio: PortfolioArrays
    rows: CubeRows
    today: Float[Array, " rows"]
    shocks: Float[Array, "points factors"]
    active: Bool[Array, ""]
    """An account that is done is not computed again."""


def _judged(task: _Task, _: None) -> tuple[Float[Array, " points"], Bool[Array, " points"]]:
    """(distance to liquidation in the account's unit, verdict) at every move; a nonfinite distance has no verdict."""
    nothing = jnp.zeros(task.shocks.shape[0], jnp.float64), jnp.zeros(task.shocks.shape[0], bool)
    return lax.cond(task.active, lambda: _distance(task), lambda: nothing)


def _distance(task: _Task) -> tuple[Float[Array, " points"], Bool[Array, " points"]]:
    change = jax.vmap(lambda s: task.rows.changes(s, horizon_years=0.0, dtype=jnp.float64))(task.shocks).T
    margin = scenario_margin(task.portfolio, task.today, change, task.shocks, task.rows, horizon_years=0.0)
    needed = rounded(task.portfolio.trigger[0] * jnp.maximum(margin.maintenance[0], 0.0))
    distance = margin.equity[0] - needed
    return distance, liquidated(task.portfolio, margin)[0] & jnp.isfinite(distance)


class _Judge:
    """Judges moves [accounts, moves, factors] of the accounts of one bucket."""

    def __init__(
        self, members: Sequence[Alone], portfolio: PortfolioArrays, book: BookCube, width: int, devices: int
    ) -> None:
        self.accounts, self.padded, self.devices = len(members), len(portfolio.trigger), devices
        rows, today = small_cubes(members, book, self.padded)
        behind = rows.exponent_factor.shape[1]
        # Any: host arrays stand where the module declares device arrays.
        points: Any = np.zeros((self.padded, _POINTS, width))
        nobody: Any = np.zeros(self.padded, bool)
        self.task = _Task(resolved(portfolio, behind), rows, today, points, nobody)

    def __call__(self, moves: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(distance, verdict) [accounts, moves]; 0 and no verdict of accounts that are not `active`."""
        count = moves.shape[1]
        distance, gone = np.zeros((self.accounts, count)), np.zeros((self.accounts, count), bool)
        wanted = np.zeros(self.padded, bool)
        wanted[: self.accounts] = active
        for first in range(0, count if active.any() else 0, _POINTS):
            block = moves[:, first : first + _POINTS]
            shocks = np.zeros(self.task.shocks.shape)
            shocks[: self.accounts, : block.shape[1]] = block
            task = eqx.tree_at(lambda t: (t.shocks, t.active), self.task, (shocks, wanted))
            far, out = jax.device_get(map_bucket(task, None, _judged, self.devices, self.accounts))
            distance[:, first : first + _POINTS] = far[: self.accounts, : block.shape[1]]
            gone[:, first : first + _POINTS] = out[: self.accounts, : block.shape[1]]
        return distance, gone


# ---- the search ------------------------------------------------------------------------------------------------------


def _searched(judge: _Judge, members: Sequence[Alone], book: BookCube, covariance: np.ndarray) -> list[NearestMove]:
    width = judge.task.shocks.shape[2]
    root = np.zeros((len(members), width, width))
    for number, one in enumerate(members):
        at = [book.factors.index(name) for name in one.factors]
        root[number, : len(at), : len(at)] = semidefinite_root(covariance[np.ix_(at, at)])
    today, gone_today = judge(np.zeros((len(members), 1, width)), np.ones(len(members), bool))
    alive = ~gone_today[:, 0] & np.isfinite(today[:, 0])
    turn, distance = _shortest(judge, root, alive)
    # Once more, to the last digits, and both sides of the answer judged.
    found = np.isfinite(distance) & alive
    limit = np.where(found, distance, 0.0)
    direction = _product(root, turn[:, None, :])
    last = _first_verdicts(judge, direction, limit[:, None], found, _EXACT)[:, 0]
    length = np.where(found & np.isfinite(last), last, limit)
    sides = length[:, None] * np.array([1.0 - _VERIFIED, 1.0, 1.0 + _VERIFIED])
    _, verdict = judge(sides[:, :, None] * direction, found)
    holds = ~verdict[:, 0] & verdict[:, 1] & verdict[:, 2]
    out = []
    for number, one in enumerate(members):
        if not np.isfinite(today[number, 0]):
            out.append(NearestMove("calculation", None, {}, {}))
        elif gone_today[number, 0]:
            out.append(NearestMove("liquidatable_now", 0.0, {}, {}))
        elif not found[number]:
            out.append(NearestMove("none", None, {}, {}))
        else:
            move = length[number] * direction[number, 0]
            normal = _plane(root[number], turn[number])
            out.append(
                NearestMove(
                    "ok" if holds[number] else "calculation",
                    float(length[number]),
                    {name: float(move[slot]) for slot, name in enumerate(one.factors)},
                    {name: float(normal[slot]) for slot, name in enumerate(one.factors)},
                )
            )
    return out


def _shortest(judge: _Judge, root: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(unit vector u / d [accounts, factors], d [accounts]) of the nearest verdict; infinite without any.

    Starts: along the gradient of today, and each factor both ways with the others beside it as they move on average.
    """
    accounts, width, _ = root.shape
    gradient = _gradient(judge, root, np.zeros((accounts, 1, width)), alive)
    spread = np.sqrt(_dot(root, root))
    axes = root / np.where(spread > 0.0, spread, 1.0)[:, :, None]
    starts = np.concatenate([_unit(-gradient), axes, -axes], axis=1)
    far = np.full(starts.shape[:2], FARTHEST)
    lengths = _first_verdicts(judge, _product(root, starts), far, alive, _COARSE)
    best = np.argsort(lengths, axis=1, kind="stable")[:, :_KEPT]
    turns = np.take_along_axis(starts, best[:, :, None], axis=1)
    lengths = np.take_along_axis(lengths, best, axis=1)
    turns, lengths = _descended(judge, root, turns, lengths, alive)
    first = np.argmin(lengths, axis=1)[:, None]
    turns, lengths = np.take_along_axis(turns, first[:, :, None], axis=1), np.take_along_axis(lengths, first, axis=1)
    # Where rules have a kink the gradient of one side leads astray: single factors turned a little are tried as well.
    bent = alive & ~_is_aligned(judge, root, turns, lengths, alive)
    units = np.concatenate([np.eye(width), -np.eye(width)])
    for size in _TURNS:
        turns, lengths = _improved(judge, root, turns, lengths, (turns + size * units[None])[:, None], bent)
    turns, lengths = _descended(judge, root, turns, lengths, bent)
    return turns[:, 0], lengths[:, 0]


def _is_aligned(
    judge: _Judge, root: np.ndarray, turns: np.ndarray, lengths: np.ndarray, alive: np.ndarray
) -> np.ndarray:
    """Whether the gradient at the verdict points along its ray [accounts]: so it does at a smooth nearest point."""
    points = np.where(np.isfinite(lengths), lengths, 0.0)[:, :, None] * turns
    proposed = _unit(-_gradient(judge, root, points, alive))
    return np.isfinite(lengths[:, 0]) & (_dot(proposed, turns)[:, 0] >= _ALIGNED)


def _descended(
    judge: _Judge, root: np.ndarray, turns: np.ndarray, lengths: np.ndarray, alive: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`turns` [accounts, kept, factors] turned to where the gradient at the first verdict points, while it helps."""
    active: np.ndarray = alive & np.isfinite(lengths).any(axis=1)
    for _ in range(_ROUNDS):
        if not active.any():
            break
        points = np.where(np.isfinite(lengths), lengths, 0.0)[:, :, None] * turns
        proposed = _unit(-_gradient(judge, root, points, active))
        shares = np.array(_SHARES)[None, None, :, None]
        between = (1.0 - shares) * turns[:, :, None] + shares * proposed[:, :, None]
        turns, shorter = _improved(judge, root, turns, lengths, between, active)
        before, after = (np.where(np.isfinite(of), of, 0.0) for of in (lengths, shorter))
        lengths = shorter
        # An account that is done stays as it is: its answer must not depend on how long others take.
        active = np.asarray(active & (before - after > _PROGRESS * before).any(axis=1))
    return turns, lengths


def _improved(
    judge: _Judge,
    root: np.ndarray,
    turns: np.ndarray,
    lengths: np.ndarray,
    candidates: np.ndarray,
    active: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The best of each turn and its candidates [accounts, kept, candidates, factors], and its length."""
    accounts, kept, count, width = candidates.shape
    units = _unit(candidates)
    limit = np.repeat(np.where(np.isfinite(lengths), lengths, 0.0), count, axis=1)
    rays = _product(root, units.reshape(accounts, kept * count, width))
    found = _first_verdicts(judge, rays, limit, active, _FINE).reshape(accounts, kept, count)
    first = np.argmin(found, axis=2)[:, :, None]
    shortest = np.take_along_axis(found, first, axis=2)[:, :, 0]
    is_better = shortest < lengths
    chosen = np.take_along_axis(units, first[:, :, :, None], axis=2)[:, :, 0]
    return np.where(is_better[:, :, None], chosen, turns), np.where(is_better, shortest, lengths)


def _first_verdicts(judge: _Judge, rays: np.ndarray, limit: np.ndarray, active: np.ndarray, passes: int) -> np.ndarray:
    """Lengths [accounts, rays] at which the verdict first turns, up to `limit`; infinite where it does not.

    Of a verdict that turns more than once within a step of the grid a later turn may be found; it is one all the same.
    """
    accounts, count, width = rays.shape
    steps = np.arange(1, _PER_RAY + 1) / _PER_RAY
    near, far = np.zeros_like(limit), limit
    found: np.ndarray = np.zeros(limit.shape, bool)
    for number in range(passes):
        lengths = near[:, :, None] + (far - near)[:, :, None] * steps
        lengths[:, :, -1] = far
        moves = lengths[:, :, :, None] * rays[:, :, None, :]
        gone = judge(moves.reshape(accounts, count * _PER_RAY, width), active)[1].reshape(accounts, count, _PER_RAY)
        hit, at = np.any(gone, axis=2), np.argmax(gone, axis=2)
        found = hit if number == 0 else found
        if not found.any():
            break
        before = np.take_along_axis(lengths, np.maximum(at - 1, 0)[:, :, None], axis=2)[:, :, 0]
        there = np.take_along_axis(lengths, at[:, :, None], axis=2)[:, :, 0]
        near = np.where(hit & (at > 0), before, near)
        far = np.where(hit, there, far)
    return np.where(found & (limit > 0.0), far, np.inf)


def _gradient(judge: _Judge, root: np.ndarray, points: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Gradient by u of the distance to liquidation at `points` [accounts, kept, factors]; 0 where it is not finite."""
    accounts, kept, width = points.shape
    steps = _DIFFERENCE * np.concatenate([np.eye(width), -np.eye(width)])
    around = (points[:, :, None] + steps).reshape(accounts, kept * 2 * width, width)
    distance = judge(_product(root, around), active)[0].reshape(accounts, kept, 2, width)
    with np.errstate(invalid="ignore"):
        slope = (distance[:, :, 0] - distance[:, :, 1]) / (2.0 * _DIFFERENCE)
    return np.where(np.isfinite(slope), slope, 0.0)


def semidefinite_root(matrix: Float[np.ndarray, "factors factors"]) -> Float[np.ndarray, "factors factors"]:
    """Lower triangular L with L L' = `matrix`; the column of a factor that those before it determine is zero."""
    root = np.zeros_like(matrix)
    for j in range(len(matrix)):
        below = matrix[j:, j] - _dot(root[j:, :j], root[None, j, :j])
        if below[0] > _DEPENDENT * matrix[j, j]:
            root[j:, j] = below / math.sqrt(below[0])
    return root


def _plane(root: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Coefficients a with a'x = turn'u for every x = root u, by back substitution."""
    a = np.zeros(len(turn))
    for j in reversed(range(len(turn))):
        if root[j, j] > 0.0:
            a[j] = (turn[j] - math.fsum(root[j + 1 :, j] * a[j + 1 :])) / root[j, j]
    return a


def _product(root: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Log moves [accounts, n, factors] of `turns` [accounts, n, factors]."""
    total = np.zeros_like(turns)
    for j in range(root.shape[2]):
        total = total + root[:, None, :, j] * turns[:, :, j, None]
    return total


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of products over the last axis, added in its order: zeros behind the others change nothing."""
    total = np.zeros(np.broadcast_shapes(a.shape, b.shape)[:-1])
    for j in range(a.shape[-1]):
        total = total + a[..., j] * b[..., j]
    return total


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; zeros stay zeros."""
    length = np.sqrt(_dot(vectors, vectors))
    return vectors / np.where(length > 0.0, length, 1.0)[..., None]
