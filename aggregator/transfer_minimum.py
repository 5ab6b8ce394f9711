"""The minimum of collateral plus weighted uncovered amounts of one portfolio, by Newton steps on a smoothed maximum.

    min over K >= 0 of  sum_v K_v + sum_s w_s max over A of [ terms_sA - K(A) ],  the empty A having term 0

Amounts are float64, in a unit in which they are of order 1; the weights w are those of the scenarios over 1 - a. Tables
are [2^V, S], bit v of a subset's index being its member v.

Every maximum becomes mu log-sum-exp of the same gains over mu, and K >= 0 a barrier of the same mu; Newton steps in the
V amounts follow the optimum while mu falls to 1e-8. The softmax of a scenario times its weight is a point of the dual
programme

    max sum_{s,A} q_sA terms_sA   s.t.  sum_A q_sA <= w_s,  sum_{s, A containing v} q_sA <= 1,  q >= 0

once divided by the largest of the second sums, where above 1. So every step has an exact value and a true lower bound,
and nothing about the smoothing has to be believed. Of a few lengths of a step the first that improves is taken. mu
falls when the optimality conditions hold well enough, and rises again, to fall more slowly from then on, when many
steps in a row miss them.

Sums over scenarios go through `risk.tile_sum`, those over subsets and nodes are folded or added in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .risk import tile_sum
from .rounding import rounded
from .rules.risk_unit import ordered_sum

# Measured on 1,000 portfolios of 256 scenarios on 3 nodes, the hardest for their few tail scenarios: after 60 steps one
# gap above 1e-6, of 5e-5.
_FIRST_SMOOTHING = 0.02
_LAST_SMOOTHING = 1e-8
_FALL = 0.4
_CLOSE = 0.005  # largest violation of the optimality conditions (whose scale is 1) at which the smoothing falls
_NEAR = 3.0  # and the longest step of an amount that would mend it, in units of the smoothing
_PATIENCE = 10  # steps that may miss it before the smoothing rises again and falls more slowly from then on
_RISE = 4.0
_SLOWER = 0.7
_TRUST = 1e4  # longest step of an amount, in units of the smoothing
# Shares of a step, of which the first that lowers the smoothed objective is taken: flat pieces need steps far beyond
# the smoothing, corners short ones.
_LENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_INTERIOR = 0.95  # share of the way to K = 0 that one step may go


class Problem(NamedTuple):
    """`terms` [subsets, S] are loss less cut of every subset, the empty one first; -inf leaves a subset out."""

    terms: Array
    weights: Array  # [S], over 1 - a
    members: Array  # [subsets, V]


class _Point(NamedTuple):
    collateral: Array
    multiplier: Array  # of K >= 0
    smoothing: Array
    fall: Array
    misses: Array


class Minimum(NamedTuple):
    """The least `value` [] found, its `collateral` [V], and the highest `lower_bound` [] of any step."""

    value: Array
    collateral: Array
    lower_bound: Array
    smoothing: Array  # and `lowest`, the amounts, at which the lower bound was found
    lowest: Array


def _over_subsets(values: Array) -> Array:
    """Sums [2^V, ...] over all subsets of `values` [V, ...], bit v of the index for member v."""
    out = jnp.zeros((1, *values.shape[1:]), values.dtype)
    for v in range(values.shape[0]):
        out = jnp.concatenate([out, out + values[v][None]])
    return out


def _cuts(capacity: Array) -> Array:
    """c(not A, A) [2^V, ...] of `capacity` [V, V, ...], grown node by node; see `transfer`."""
    out = jnp.zeros((1, *capacity.shape[2:]), capacity.dtype)
    for k in range(capacity.shape[0]):
        outside = out + _over_subsets(capacity[k, :k])
        inside = out + _over_subsets(capacity[:k, k])[::-1]
        out = jnp.concatenate([outside, inside])
    return out


def _folded(table: Array) -> Array:
    """Sum over the first axis, a power of two, by halves: the subsets of appended idle nodes add only zeros."""
    while table.shape[0] > 1:
        half = table.shape[0] // 2
        table = table[:half] + table[half:]
    return table[0]


def _by_node(table: Array) -> tuple[Array, Array]:
    """(sums [V, ...] over the subsets that hold each node, sum over all) of `table` [2^V, ...]."""
    sums = []
    while table.shape[0] > 1:
        half = table.shape[0] // 2
        sums.append(_folded(table[half:]))
        table = table[:half] + table[half:]
    return jnp.stack(sums[::-1]), table[0]


def problem_of(losses: Array, capacity: Array, weights: Array, active: Bool[Array, " nodes"]) -> Problem:
    """Losses [S, V], capacity [V, V] or [S, V, V] and weights over 1 - a [S], finite losses and no NaN, as a problem.

    Nodes not `active`, [V], have no loss and no route: their subsets are left out.
    """
    nodes = losses.shape[1]
    spread = capacity[..., None] if capacity.ndim == 2 else jnp.moveaxis(capacity, 0, -1)
    terms = _over_subsets(losses.T) - _cuts(spread)
    members = (jnp.arange(2**nodes)[:, None] >> jnp.arange(nodes)[None]) & 1 == 1
    idle = jnp.any(members & ~active[None], axis=1)
    return Problem(jnp.where(idle[:, None], -jnp.inf, terms), weights, members)


class _Smoothed(NamedTuple):
    value: Array  # F(K), exact over the problem's scenarios
    bound: Array  # of the dual point
    mass: Array  # [2^V] sum_s w_s softmax
    by_node: Array  # [V] its sums, the gradient of the smoothed term
    curvature: Array  # [V, V] of the smoothed term, times mu
    drift: Array  # [V] change of `by_node` per unit of mu


def _smoothed(problem: Problem, collateral: Array, smoothing: Array, active: Array) -> _Smoothed:
    gains = problem.terms - _over_subsets(collateral)[:, None]
    most = jnp.max(gains, axis=0)
    raised = jnp.exp((gains - most[None]) / smoothing)
    finite = jnp.where(jnp.isfinite(gains), gains, 0.0)
    singles, total = _by_node(raised)
    weights = problem.weights
    share = weights / total
    mass = tile_sum(rounded(raised * share[None]))
    moment = tile_sum(rounded(rounded(raised * share[None]) * finite))
    node_share = singles / total[None]
    mean_gain = _folded(rounded(raised * finite)) / total
    by_node, _ = _by_node(mass)
    moment_by_node, moment_total = _by_node(moment)
    # Mass of the subsets that hold v, by the other node they hold; a loop, so that the program holds the folds once.
    pairs = lax.map(lambda holds: _by_node(jnp.where(holds, mass, 0.0))[0], problem.members.T)
    cross = tile_sum(rounded(rounded(node_share[:, None, :] * node_share[None, :, :]) * weights[None, None]))
    spread = tile_sum(rounded(rounded(node_share * mean_gain[None]) * weights[None]))
    value = ordered_sum(collateral) + tile_sum(rounded(weights * most))
    dual = moment_total + ordered_sum(rounded(collateral * by_node))
    bound = dual / jnp.maximum(jnp.max(jnp.where(active, by_node, 0.0)), 1.0)
    return _Smoothed(value, bound, mass, by_node, pairs - cross, -(moment_by_node - spread) / (smoothing * smoothing))


def _solved(matrix: Array, rhs: Array) -> Array:
    """Solution of a positive definite system by Cholesky, written out so that the order of additions is fixed."""
    n = rhs.shape[0]
    least = 1e-14 * jnp.max(jnp.abs(jnp.diagonal(matrix))) + jnp.finfo(jnp.float64).tiny
    factor: dict[tuple[int, int], Array] = {}
    for j in range(n):
        for i in range(j, n):
            entry = matrix[i, j]
            for k in range(j):
                entry = entry - rounded(factor[i, k] * factor[j, k])
            factor[i, j] = jnp.sqrt(jnp.maximum(entry, least)) if i == j else entry / factor[j, j]
    forward: list[Array] = []
    for i in range(n):
        entry = rhs[i]
        for k in range(i):
            entry = entry - rounded(factor[i, k] * forward[k])
        forward.append(entry / factor[i, i])
    out = [forward[0]] * n
    for i in reversed(range(n)):
        entry = forward[i]
        for k in range(i + 1, n):
            entry = entry - rounded(factor[k, i] * out[k])
        out[i] = entry / factor[i, i]
    return jnp.stack(out)


def _merit(problem: Problem, collateral: Array, smoothing: Array, active: Array) -> Array:
    """The smoothed objective with its barrier, which a step has to lower."""
    gains = problem.terms - _over_subsets(collateral)[:, None]
    most = jnp.max(gains, axis=0)
    spread = jnp.log(_folded(jnp.exp((gains - most[None]) / smoothing)))
    barrier = ordered_sum(jnp.where(active, jnp.log(jnp.where(active, collateral, 1.0)), 0.0))
    smooth = tile_sum(rounded(problem.weights * (most + rounded(smoothing * spread))))
    return ordered_sum(collateral) + smooth - rounded(smoothing * barrier)


def _next_point(problem: Problem, point: _Point, found: _Smoothed, active: Array) -> _Point:
    """One Newton step of the optimality conditions, for the smoothing of the next point."""
    K, t, mu = point.collateral, point.multiplier, point.smoothing
    n = K.shape[0]
    diagonal = jnp.eye(n, dtype=bool)
    matrix = found.curvature / mu + jnp.where(diagonal, (t / K)[:, None], 0.0)
    matrix = jnp.where(active[:, None] & active[None, :], matrix, jnp.where(diagonal, 1.0, 0.0))

    def step_to(new_mu: Array) -> Array:
        rhs = -(1.0 - found.by_node - new_mu / K) + rounded(found.drift * (new_mu - mu))
        return _solved(matrix, jnp.where(active, rhs, 0.0))

    # On a flat piece a small violation may be far from the optimum: the step that would mend it has to be short too.
    missed = jnp.max(jnp.where(active, jnp.abs(1.0 - found.by_node - t), 0.0))
    close = (missed < _CLOSE) & (jnp.max(jnp.abs(step_to(mu))) <= _NEAR * mu)
    misses = jnp.where(close, 0, point.misses + 1)
    lost = misses >= _PATIENCE
    next_mu = jnp.where(
        close, jnp.maximum(mu * point.fall, _LAST_SMOOTHING), jnp.where(lost, jnp.minimum(mu * _RISE, 1.0), mu)
    )
    step = step_to(next_mu)
    longest = jnp.max(jnp.abs(step))
    length = jnp.minimum(1.0, _TRUST * mu / jnp.maximum(longest, jnp.finfo(jnp.float64).tiny))
    shrinks = jnp.where(step < 0.0, _INTERIOR * K / jnp.where(step < 0.0, -step, 1.0), jnp.inf)
    length = jnp.minimum(length, jnp.min(shrinks))
    lengths = length * jnp.asarray(_LENGTHS)
    merits = lax.map(
        lambda part: _merit(problem, jnp.where(active, K + rounded(part * step), 0.0), next_mu, active), lengths
    )
    length = lengths[jnp.argmin(merits)]
    t_step = next_mu / K - t - rounded(t / K * step)
    t_shrinks = jnp.where(t_step < 0.0, _INTERIOR * t / jnp.where(t_step < 0.0, -t_step, 1.0), jnp.inf)
    t_length = jnp.minimum(length, jnp.min(t_shrinks))
    return _Point(
        collateral=jnp.where(active, jnp.maximum(K + rounded(length * step), 1e-3 * _LAST_SMOOTHING), K),
        multiplier=jnp.where(active, jnp.maximum(t + rounded(t_length * t_step), 1e-3 * next_mu), t),
        smoothing=next_mu,
        fall=jnp.where(lost, point.fall**_SLOWER, point.fall),
        misses=jnp.where(lost, 0, misses),
    )


def minimum(problem: Problem, start: Array, active: Array, steps: int, precision: ArrayLike) -> Minimum:
    """The minimum over the scenarios of `problem`, from `start` [V]; 0 at nodes not `active` [V].

    It ends after `steps` steps, or when value and lower bound are within `precision` of the value.
    """
    collateral = jnp.where(active, jnp.maximum(start, 1e-3), 0.0)
    mu = jnp.asarray(_FIRST_SMOOTHING, jnp.float64)
    held = jnp.where(active, collateral, 1.0)
    point = _Point(held, mu / held, mu, jnp.asarray(_FALL, jnp.float64), jnp.zeros((), jnp.int32))
    best = Minimum(jnp.asarray(jnp.inf, jnp.float64), collateral, jnp.zeros((), jnp.float64), mu, collateral)

    def unfinished(carry: tuple[Array, _Point, Minimum]) -> Array:
        done, _, best = carry
        close = jnp.isfinite(best.value) & (best.value - best.lower_bound <= precision * best.value)
        return (done < steps) & ~close

    def body(carry: tuple[Array, _Point, Minimum]) -> tuple[Array, _Point, Minimum]:
        done, point, best = carry
        held = jnp.where(active, point.collateral, 0.0)
        found = _smoothed(problem, held, point.smoothing, active)
        better = found.value < best.value
        higher = found.bound > best.lower_bound
        best = Minimum(
            jnp.where(better, found.value, best.value),
            jnp.where(better, held, best.collateral),
            jnp.where(higher, found.bound, best.lower_bound),
            jnp.where(higher, point.smoothing, best.smoothing),
            jnp.where(higher, held, best.lowest),
        )
        return done + 1, _next_point(problem, point, found, active), best

    return lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), point, best))[2]


def crossing_mass(
    problem: Problem, found: Minimum, active: Bool[Array, " nodes"]
) -> Float[Array, "nodes nodes scenarios"]:
    """sum of q_s(A) over the subsets A that hold v and not u, [u, v, s], of the best dual point.

    Summed over the scenarios in which a route from u to v is open it is what a unit more of its capacity takes off the
    minimum. The maximal subset at the minimum would not do: there several tie in the scenarios that decide, and only
    the dual point says in which proportion they count.
    """
    gains = problem.terms - _over_subsets(found.lowest)[:, None]
    raised = jnp.exp((gains - jnp.max(gains, axis=0)[None]) / found.smoothing)
    mass = rounded(raised * (problem.weights / _folded(raised))[None])
    largest = jnp.maximum(jnp.max(jnp.where(active, _by_node(tile_sum(mass))[0], 0.0)), 1.0)
    rows = lax.map(lambda holds: _by_node(jnp.where(holds[:, None], 0.0, mass))[0], problem.members.T)
    return rows / largest
