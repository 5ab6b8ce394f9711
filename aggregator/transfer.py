"""What stays uncovered when collateral has to travel between the venues of one portfolio, in closed form.

Amounts are in USD. `surplus` [V] is collateral less loss of each node (a venue, or a point that money passes) at its
deadline, negative where collateral is missing. `capacity[u, v]` is what can reach v from u in time: not negative,
infinite for a route without limit, its diagonal never read. By the theorem of Gale and Hoffman on feasible flows

    U(x, c) = max(0, max over subsets A of nodes [ -sum_{v in A} x_v - sum_{u not in A, v in A} c(u, v) ])

is exactly the least amount that has to come from outside, where money may pass through nodes on its way. Each function
is written for one scenario and vmapped over scenarios by its caller; `uncovered_many` does it.

Subsets are numbered from 0 in the order of `subsets`: number i holds node v where bit v of i + 1 is set. Of several
subsets that attain the maximum the lowest number counts; -1 stands for the empty one, which is there when nothing is
uncovered. All arithmetic is sums of terms of one sign in a fixed order, without products, in the dtype of `surplus`:
U never falls, to the bit, when a surplus or a capacity gets smaller, and nodes appended with surplus 0 and no route
change no bit. A surplus that is NaN counts as -inf; a capacity that is NaN or negative as 0; a surplus of -inf that no
capacity of +inf reaches shows as an infinite amount. Nothing here returns NaN.

Source: Gale, "A theorem on flows in networks" (1957).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# 4,095 subsets. Above it the set that decides is looked for on the host, see `transfer_cuts`.
MOST_NODES = 12

# Up to so many nodes all subsets are written out one by one, which the compiler turns into one loop over scenarios.
# Beyond them the subsets of the first few are, beside each other for every choice of the others: compiling 4,095 terms
# would take minutes.
_UNROLLED_NODES = 8
_UNROLLED_BESIDE_OTHERS = 6

Terms = list[Array]


class Uncovered(NamedTuple):
    """`amount` [] in USD, not negative, and the number of the `subset` [] that attains it; -1 where nothing is."""

    amount: Float[Array, ""]
    subset: Int[Array, ""]


def subsets(nodes: int) -> Bool[np.ndarray, "subsets nodes"]:
    """All subsets of `nodes` nodes but the empty one, as rows; row i holds node v where bit v of i + 1 is set.

    Host constant. Raises `ValueError` for fewer than 1 or more than `MOST_NODES` nodes.
    """
    _check_count(nodes)
    return (np.arange(1, 2**nodes)[:, None] >> np.arange(nodes)) & 1 == 1


def _check_count(nodes: int) -> None:
    if not 1 <= nodes <= MOST_NODES:
        raise ValueError(
            f"the closed form goes over all subsets of 1 to {MOST_NODES} nodes, found {nodes}: leave out the nodes "
            "without a route, or use transfer_cuts"
        )


def _usable(surplus: Array, capacity: Array) -> tuple[Array, Array]:
    """`surplus` and `capacity` [V, V] in one dtype without NaN; infinite surpluses as large numbers that add up."""
    nodes = surplus.shape[-1]
    _check_count(nodes)
    if surplus.shape != (nodes,) or capacity.shape != (nodes, nodes):
        raise ValueError(
            f"expected surplus [V] and capacity [V, V], found shapes {surplus.shape} and {capacity.shape}; "
            "vmap over scenarios"
        )
    largest = _largest(surplus.dtype)
    surplus = jnp.clip(jnp.where(jnp.isnan(surplus), -jnp.inf, surplus), -largest, largest)
    capacity = capacity.astype(surplus.dtype)
    return surplus, jnp.where(capacity > 0.0, capacity, 0.0)


def _largest(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).max) / (4.0 * MOST_NODES)


def _shown(amount: Array) -> Array:
    """An amount, infinite where an infinite surplus went into it."""
    return jnp.where(amount >= 0.5 * _largest(amount.dtype), jnp.inf, amount)


def _sums(values: Sequence[Array]) -> Terms:
    """Sums over all subsets of `values`, the empty one first, each added from the first to the last member."""
    out: Terms = [jnp.zeros((), values[0].dtype)] if values else []
    for value in values:
        out = out + [total + value for total in out]
    return out


def _gains(surplus: Array, capacity: Array, members: Array) -> Terms:
    """-x(A) - c(not A, A) for every A of the first nodes joined with `members` [rest] of the others, empty A first.

    The cut grows node by node: with node k inside A come the routes to it from the nodes before it that are outside,
    with node k outside those from it to the nodes inside. Every term is a sum of capacities, so nothing cancels.
    """
    low = surplus.shape[0] - members.shape[0]
    rest = range(low, surplus.shape[0])
    zero = jnp.zeros((), surplus.dtype)
    inside = [members[k - low] for k in rest]

    deficit, cut = zero, zero
    for k, chosen in zip(rest, inside, strict=True):
        deficit = deficit + jnp.where(chosen, -surplus[k], zero)
        for j, other in zip(rest, inside, strict=True):
            if j != k:
                cut = cut + jnp.where(chosen & ~other, capacity[j, k], zero)
    needs: Terms = [zero]
    cuts: Terms = [cut]
    for k in range(low):
        into = _sums([capacity[j, k] for j in range(k)]) or [zero]
        outof = _sums([capacity[k, j] for j in range(k)]) or [zero]
        into_rest, from_rest = zero, zero
        for j, chosen in zip(rest, inside, strict=True):
            from_rest = from_rest + jnp.where(chosen, zero, capacity[j, k])
            into_rest = into_rest + jnp.where(chosen, capacity[k, j], zero)
        # Reversed, the sums over the members of A become those over the nodes that A leaves out.
        with_node = [total + (more + from_rest) for total, more in zip(cuts, into[::-1], strict=True)]
        cuts = [total + (more + into_rest) for total, more in zip(cuts, outof, strict=True)] + with_node
        needs = needs + [total - surplus[k] for total in needs]
    return [(need + deficit) - cut for need, cut in zip(needs, cuts, strict=True)]


def _largest_gain(gains: Terms, offset: Array, best: Uncovered) -> Uncovered:
    """The largest of `gains` and the `best` so far; `offset` + place - 1 is a gain's subset number."""
    amount, subset = best
    for place, gain in enumerate(gains):
        better = gain > amount
        amount = jnp.where(better, gain, amount)
        subset = jnp.where(better, offset + (place - 1), subset)
    return Uncovered(amount, subset)


def _none(dtype: jnp.dtype) -> Uncovered:
    return Uncovered(jnp.zeros((), dtype), jnp.full((), -1, jnp.int32))


def uncovered(surplus: Float[Array, " nodes"], capacity: Float[Array, "nodes nodes"]) -> Uncovered:
    """U(x, c) of one scenario where money may pass through nodes, and the subset that attains it.

    dU/dx_v = -1 for the nodes of that subset, dU/dc(u, v) = -1 for the routes into it; both 0 for -1. U is jointly
    convex in (x, c) and 1-Lipschitz in each x_v. Edge cases: module docstring. At most `MOST_NODES` nodes.
    """
    surplus, capacity = _usable(surplus, capacity)
    nodes = surplus.shape[0]
    if nodes <= _UNROLLED_NODES:
        gains = _gains(surplus, capacity, jnp.zeros(0, bool))[1:]
        found = _largest_gain(gains, jnp.ones((), jnp.int32), _none(surplus.dtype))
        return Uncovered(_shown(found.amount), found.subset)
    low = _UNROLLED_BESIDE_OTHERS
    rest = nodes - low
    numbers = jnp.arange(2**rest, dtype=jnp.int32)

    def of_rest(number: Array) -> Uncovered:
        """The best subset among those that hold the same nodes beyond the first `low`, bits of `number`."""
        members = (number >> jnp.arange(rest, dtype=jnp.int32)) & 1 == 1
        # The empty set has gain 0 and cannot displace the start.
        return _largest_gain(_gains(surplus, capacity, members), number * 2**low, _none(surplus.dtype))

    candidates = jax.vmap(of_rest)(numbers)
    # The first of equal ones: the lowest number.
    best = jnp.argmax(candidates.amount)
    found = Uncovered(candidates.amount[best], candidates.subset[best])
    return Uncovered(_shown(found.amount), found.subset)


def uncovered_many(
    surplus: Float[Array, "scenarios nodes"], capacity: Float[Array, "*scenarios nodes nodes"]
) -> Uncovered:
    """`uncovered` of every scenario, with one `capacity` for all or one of each scenario.

    In float32 the amount is within 2^-20 of the sum of the absolute surpluses and of the capacities cut (at most 144
    additions of relative error 2^-24 each; measured far below), at about half the time of float64.
    """
    shared = capacity.ndim == 2
    return jax.vmap(uncovered, in_axes=(0, None if shared else 0))(surplus, capacity)


def uncovered_siloed(surplus: Float[Array, " nodes"]) -> Float[Array, ""]:
    """sum_v (-x_v)+, USD: what U is without any route."""
    surplus = jnp.where(jnp.isnan(surplus), -jnp.inf, surplus)
    return _in_order([jnp.maximum(-surplus[v], 0.0) for v in range(surplus.shape[0])])


def uncovered_fungible(surplus: Float[Array, " nodes"]) -> Float[Array, ""]:
    """(-sum_v x_v)+, USD: what U is when everything can go everywhere."""
    largest = _largest(surplus.dtype)
    surplus = jnp.clip(jnp.where(jnp.isnan(surplus), -jnp.inf, surplus), -largest, largest)
    return _shown(jnp.maximum(_in_order([-surplus[v] for v in range(surplus.shape[0])]), 0.0))


def _in_order(values: Sequence[Array]) -> Array:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def uncovered_single_hop(surplus: Float[Array, " nodes"], capacity: Float[Array, "nodes nodes"]) -> Uncovered:
    """What stays uncovered where nothing that a node receives can be sent on within the same window, USD.

        U1 = max over A of [ sum_{v in A} (x_v)- - sum_u min( (x_u)+, sum_{v in A} c(u, v) ) ],  never below U

    For the assessment of collateral that is given: unlike U it is not convex in it.
    """
    surplus, capacity = _usable(surplus, capacity)
    nodes = surplus.shape[0]
    deficit, spare = jnp.maximum(-surplus, 0.0), jnp.maximum(surplus, 0.0)
    members = jnp.asarray(subsets(nodes))
    off_diagonal = jnp.where(jnp.eye(nodes, dtype=bool), 0.0, capacity)

    def gain(chosen: Array) -> Array:
        needed = _in_order([jnp.where(chosen[v], deficit[v], 0.0) for v in range(nodes)])
        sent = [
            jnp.minimum(spare[u], _in_order([jnp.where(chosen[v], off_diagonal[u, v], 0.0) for v in range(nodes)]))
            for u in range(nodes)
        ]
        return needed - _in_order(sent)

    gains = jax.vmap(gain)(members)
    amount = jnp.max(gains)
    some = amount > 0.0
    return Uncovered(
        _shown(jnp.where(some, amount, 0.0)), jnp.where(some, jnp.argmax(gains).astype(jnp.int32), jnp.int32(-1))
    )
