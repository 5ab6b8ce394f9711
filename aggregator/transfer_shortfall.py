"""Transfer-constrained expected shortfall: the least collateral, placed venue by venue, when it has to travel.

    TCES_a = min over K >= 0 of  F(K) = sum_v K_v + E[ U(K - L, c) ] / (1 - a)

with U of `transfer`. USD, losses positive, float64; `confidence` is a. Everything here is for one portfolio, pure JAX
with at most a fixed number of steps, and mapped over portfolios by its caller; the scenario axis comes first and its
length is a multiple of 256 (`risk.padded_scenarios`). A scenario of weight 0 never matters, NaN included.

The solver is `transfer_minimum`; with the value comes a true lower bound. U is never negative, so leaving scenarios out
lowers F at every K, and a lower bound over some of the scenarios holds for all. The solver may therefore work on those
that come nearest to being uncovered, and is exact if none of the others is uncovered at its K; the value it returns is
always over all.

A node without any loss and route takes no part and holds nothing; appended ones move the result by rounding only
(seen: the value not at all, amounts of collateral by 4e-14).

Sources: Biagini, Fouque, Frittelli and Meyer-Brandis, "A unified approach to systemic risk measures via acceptance
sets" (2019); Rockafellar and Uryasev, "Optimization of conditional value-at-risk" (2000).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from .risk import SCENARIO_TILE, tail_risk, tile_sum, value_at_risk
from .rounding import rounded
from .rules.risk_unit import ordered_sum
from .transfer import MOST_NODES, uncovered_many
from .transfer_minimum import Minimum, crossing_mass, minimum, problem_of

DEFAULT_STEPS = 60

# Gap between value and lower bound, a share of the value, at which the search ends before its last step.
DEFAULT_PRECISION = 1e-7

# Below this share of the siloed shortfall the two limits are the same and every dollar counts as fungible.
_NO_BENEFIT = 1e-12

# Which scenarios can be uncovered at the minimum is judged with these shares of what seems to be needed.
_FIRST_SHARE, _LATER_SHARE = 0.5, 0.85
_SEARCHES = 3
_SEARCH_PRECISION = 1e-3  # of all but the last search, which only choose scenarios


class OpenRoutes(NamedTuple):
    """Routes by their ends, numbers of nodes, and the scenarios in which each is open."""

    source: Int[Array, " routes"]
    target: Int[Array, " routes"]
    is_open: Bool[Array, "scenarios routes"]


class TransferShortfall(NamedTuple):
    """One portfolio, USD unless it says otherwise.

    `value` [] is F of `collateral` [V], over all scenarios; the true minimum lies between `lower_bound` [] and it.
    `route_values` [V, V] is the change of the minimum per USD of capacity (u, v), not positive, from the dual point.
    `by_route` [R] is the same for the routes that were asked for, each where it is open; [0] without any.
    `left_out` [] counts scenarios that are uncovered and took no part in the solution: 0 unless `scenarios_used` is too
    small.
    """

    value: Float[Array, ""]
    collateral: Float[Array, " nodes"]
    lower_bound: Float[Array, ""]
    route_values: Float[Array, "nodes nodes"]
    by_route: Float[Array, " routes"]
    left_out: Int[Array, ""]


def _per_tail(confidence: ArrayLike) -> Array:
    return 1.0 / (1.0 - jnp.asarray(confidence, dtype=jnp.float64))


def _check(losses: Array, capacity: Array, weights: Array, confidence: ArrayLike) -> None:
    if losses.ndim != 2 or weights.shape != losses.shape[:1] or not 1 <= losses.shape[1] <= MOST_NODES:
        raise ValueError(
            f"expected losses [S, V] with 1 to {MOST_NODES} nodes and weights [S], found shapes {losses.shape} and "
            f"{weights.shape}"
        )
    count, nodes = losses.shape
    if count == 0 or count % SCENARIO_TILE:
        raise ValueError(
            f"the number of scenarios must be a positive multiple of {SCENARIO_TILE}, found {count}: "
            "pad with scenarios of weight 0"
        )
    if capacity.shape not in ((nodes, nodes), (count, nodes, nodes)):
        raise ValueError(f"expected capacity [V, V] or [S, V, V] of losses {losses.shape}, found {capacity.shape}")
    if losses.dtype != jnp.float64 or weights.dtype != jnp.float64:
        raise ValueError(f"expected losses and weights in float64, found {losses.dtype} and {weights.dtype}")
    if isinstance(confidence, (int, float)) and not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, found {confidence!r}")


def _usable(losses: Array, capacity: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Losses and capacities without NaN, 0 in scenarios of weight 0; and whether a loss is infinite."""
    live = weights > 0.0
    losses = jnp.where(live[:, None], jnp.where(jnp.isnan(losses), jnp.inf, losses), 0.0)
    infinite = jnp.any(losses == jnp.inf)
    nodes = losses.shape[1]
    capacity = jnp.where((capacity > 0.0) & ~jnp.eye(nodes, dtype=bool)[(None,) * (capacity.ndim - 2)], capacity, 0.0)
    if capacity.ndim == 3:
        capacity = jnp.where(live[:, None, None], capacity, 0.0)
    return jnp.where(jnp.isfinite(losses), losses, 0.0), capacity.astype(jnp.float64), infinite


def _mean(values: Float[Array, "*rows scenarios"], weights: Float[Array, " scenarios"]) -> Float[Array, "*rows"]:
    """sum_s p_s x_s over the last axis, in a fixed order."""
    spread = jnp.broadcast_to(weights, values.shape)
    return tile_sum(jnp.where(spread > 0.0, spread * jnp.where(spread > 0.0, values, 0.0), 0.0))


def shortfall_from_zero(
    losses: Float[Array, " scenarios"], weights: Float[Array, " scenarios"], *, confidence: ArrayLike
) -> Float[Array, ""]:
    """min over z >= 0 of z + E[(L - z)+] / (1 - a), USD: ES_a where VaR_a >= 0, else E[L+] / (1 - a)."""
    found = tail_risk(losses, weights, confidence=confidence)
    positive = jnp.where(jnp.isnan(losses), jnp.inf, jnp.maximum(losses, 0.0))
    # E[L+] as the tail above 0, where the value at risk is negative.
    return jnp.where(
        found.value_at_risk >= 0.0,
        found.expected_shortfall,
        rounded(_mean(positive.astype(jnp.float64), weights) * _per_tail(confidence)),
    )


def siloed_shortfall(
    losses: Float[Array, "scenarios nodes"], weights: Float[Array, " scenarios"], *, confidence: ArrayLike
) -> Float[Array, ""]:
    """ES_silo, USD: the sum over nodes of `shortfall_from_zero`; TCES without any route."""
    each = [shortfall_from_zero(losses[:, v], weights, confidence=confidence) for v in range(losses.shape[1])]
    return ordered_sum(jnp.stack(each))


def pooled_shortfall(
    losses: Float[Array, "scenarios nodes"], weights: Float[Array, " scenarios"], *, confidence: ArrayLike
) -> Float[Array, ""]:
    """ES_uni, USD: `shortfall_from_zero` of the summed losses; TCES when everything can go everywhere."""
    return shortfall_from_zero(ordered_sum(losses), weights, confidence=confidence)


def fungibility(value: ArrayLike, *, siloed: ArrayLike, fungible: ArrayLike) -> Float[Array, ""]:
    """phi = (ES_silo - TCES) / (ES_silo - ES_uni), a share in 0..1; 1 where the limits agree to 1e-12, 0 for NaN."""
    value, siloed, fungible = (jnp.asarray(x, jnp.float64) for x in (value, siloed, fungible))
    benefit = siloed - fungible
    some = benefit > _NO_BENEFIT * jnp.abs(siloed)
    share = jnp.clip((siloed - value) / jnp.where(some, benefit, 1.0), 0.0, 1.0)
    usable = jnp.isfinite(value) & jnp.isfinite(siloed) & jnp.isfinite(fungible)
    return jnp.where(usable, jnp.where(some, share, 1.0), 0.0)


_Scaled = tuple[Array, Array, Array]


def _rows(scaled: _Scaled, chosen: Array) -> _Scaled:
    losses, capacity, weights = scaled
    return losses[chosen], capacity if capacity.ndim == 2 else capacity[chosen], weights[chosen]


def _nearest(scaled: _Scaled, collateral: Array, count: int) -> Array:
    """Indices, rising, of the scenarios most uncovered with `collateral`."""
    losses, capacity, weights = scaled
    amounts = uncovered_many(collateral[None, :] - losses, capacity).amount
    order = jnp.where(weights > 0.0, amounts, -1.0)
    return jnp.sort(lax.top_k(order, count)[1])


def _searched(
    scaled: _Scaled, begin: Array, active: Array, placed: Array, count: int, steps: int, precision: float
) -> tuple[Array, Minimum]:
    """Scenarios [count] that decide the minimum, and the minimum over them.

    The first ones are the nearest to being uncovered with half of `begin`, the following ones with most of what the
    ones before them need. Not every n-th scenario: a generator may draw what is rare at places of its own.
    """

    def again(number: Array, carry: tuple[Array, Array, Minimum]) -> tuple[Array, Array, Minimum]:
        collateral, _, _ = carry
        share = jnp.where(number == 0, _FIRST_SHARE, _LATER_SHARE)
        chosen = _nearest(scaled, share * collateral, count)
        near = jnp.where(number < _SEARCHES - 1, jnp.maximum(precision, _SEARCH_PRECISION), precision)
        best = minimum(problem_of(*_rows(scaled, chosen), active), collateral, placed, steps, near)
        return best.collateral, chosen, best

    unit = jnp.zeros((), jnp.float64)
    nothing = Minimum(unit, begin, unit, unit, begin)
    start = (begin, jnp.zeros(count, jnp.int32), nothing)
    _, chosen, best = lax.fori_loop(0, _SEARCHES, again, start)
    return chosen, best


def transfer_shortfall(
    losses: Float[Array, "scenarios nodes"],
    capacity: Float[Array, "*scenarios nodes nodes"],
    weights: Float[Array, " scenarios"],
    *,
    confidence: ArrayLike,
    availability: Float[Array, "scenarios nodes nodes"] | None = None,
    routes: OpenRoutes | None = None,
    start: Float[Array, " nodes"] | None = None,
    holds: Bool[Array, " nodes"] | None = None,
    scenarios_used: int | None = None,
    steps: int = DEFAULT_STEPS,
    precision: float = DEFAULT_PRECISION,
) -> TransferShortfall:
    """TCES_a of one portfolio, with the collateral that attains it and a lower bound.

    `capacity` is [V, V], or [S, V, V] for one of each scenario; with `availability` (0..1) it is capacity [V, V] times
    that, and `route_values` are per USD of the capacity before it. `routes` asks for the values of single routes, of
    which several may join the same nodes. `start` [V] is where the search begins, the nodes' own values at risk if not
    given. `holds` [V] are the nodes where collateral can lie, without it all: a limit or a broker only passes it on.
    `scenarios_used`, a multiple of 256, is how many scenarios the solver looks at: the ones that come nearest to being
    uncovered at the minimum. Without it, all.

    The search ends after `steps` steps, or when the gap over the scenarios it looks at is within `precision` of the
    value. An infinite or NaN loss of positive weight gives an infinite value and bound. Without any route value and
    bound are ES_silo, with every route unlimited ES_uni. Raises `ValueError` for wrong shapes, dtypes or counts.
    """
    _check(losses, capacity, weights, confidence)
    if availability is not None:
        if capacity.ndim != 2 or availability.shape != (losses.shape[0], *capacity.shape):
            raise ValueError(f"expected availability [S, V, V] of a capacity [V, V], found {availability.shape}")
        capacity = jnp.where(
            availability > 0.0, rounded(capacity[None] * jnp.where(availability > 0.0, availability, 1.0)), 0.0
        )
    if scenarios_used is not None and (scenarios_used <= 0 or scenarios_used % SCENARIO_TILE):
        raise ValueError(f"scenarios_used must be a positive multiple of {SCENARIO_TILE}, found {scenarios_used}")
    losses, capacity, infinite = _usable(losses, capacity, weights)
    nodes = losses.shape[1]
    flat = jnp.any((capacity > 0.0).reshape(-1, nodes, nodes), axis=0)
    active = jnp.any(losses != 0.0, axis=0) | jnp.any(flat, axis=0) | jnp.any(flat, axis=1)
    placed = active if holds is None else active & holds
    siloed = siloed_shortfall(losses, weights, confidence=confidence)
    fungible = pooled_shortfall(losses, weights, confidence=confidence)
    alone = jax.vmap(lambda row: value_at_risk(row, weights, confidence=confidence))(losses.T)
    alone = jnp.maximum(alone, 0.0)
    # In units of the siloed shortfall the amounts are of order 1 and the smoothing is a share of it.
    scale = jnp.where(siloed > 0.0, siloed, 1.0)
    begin = alone if start is None else jnp.maximum(start, 0.0)
    scaled = (losses / scale, capacity / scale, weights * _per_tail(confidence))

    if scenarios_used is None or scenarios_used >= losses.shape[0]:
        chosen = None
        problem = problem_of(*scaled, active)
        best = minimum(problem, begin / scale, placed, steps, precision)
    else:
        chosen, best = _searched(scaled, begin / scale, active, placed, scenarios_used, steps, precision)
        problem = problem_of(*_rows(scaled, chosen), active)

    def full(collateral: Array) -> tuple[Array, Array]:
        amounts = uncovered_many(collateral[None, :] - losses, capacity).amount
        return ordered_sum(collateral) + rounded(_mean(amounts, weights) * _per_tail(confidence)), amounts

    # The search stays above 0: amounts that it left there only just are tried as 0, and so are the nodes alone.
    inner = best.collateral * scale
    small = [jnp.where(best.collateral > share, inner, 0.0) for share in (1e-6, 1e-4)]
    candidates = jnp.stack([inner, *small, alone])
    # A loop, so that the program holds the subsets once.
    tried, amounts = lax.map(full, candidates)
    least = jnp.argmin(tried)
    value, collateral = tried[least], candidates[least]
    bound = jnp.maximum(best.lower_bound * scale, fungible)

    no_route = ~jnp.any(flat)
    diagonal = jnp.eye(nodes, dtype=bool)
    endless = jnp.isinf(capacity) | diagonal[(None,) * (capacity.ndim - 2)]
    if capacity.ndim == 3:
        endless = endless | (weights <= 0.0)[:, None, None]
    unlimited = jnp.all(endless)
    closed = jnp.where(no_route, siloed, fungible)
    value = jnp.where(no_route | unlimited, closed, jnp.minimum(value, siloed))
    bound = jnp.where(no_route | unlimited, closed, jnp.minimum(bound, value))

    if chosen is None:
        left_out = jnp.zeros((), jnp.int32)
    else:
        short = (amounts[0] > 1e-9 * scale) & (weights > 0.0)
        left_out = jnp.sum(short.at[chosen].set(False)).astype(jnp.int32)
    crossing = crossing_mass(problem, best, placed)
    if availability is None:
        values = tile_sum(crossing)
    else:
        used = availability if chosen is None else availability[chosen]
        values = tile_sum(rounded(crossing * jnp.moveaxis(used, 0, -1)))
    by_route = jnp.zeros(0, jnp.float64)
    if routes is not None:
        is_open = routes.is_open if chosen is None else routes.is_open[chosen]
        by_route = -tile_sum(jnp.where(is_open.T, crossing[routes.source, routes.target], 0.0))
    return TransferShortfall(
        value=jnp.where(infinite, jnp.inf, value),
        collateral=collateral,
        lower_bound=jnp.where(infinite, jnp.inf, bound),
        route_values=jnp.where(diagonal, 0.0, -values),
        by_route=by_route,
        left_out=left_out,
    )
