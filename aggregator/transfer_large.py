"""The transfer figures of one portfolio whose network has more points than the closed form goes over.

The same definitions as `transfer_margin`, with the sets of points that decide found one by one (`transfer_cuts`). Host
code, seconds for each portfolio; amounts in USD.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .risk import tail_rows
from .transfer_cuts import LeastCollateral, least_collateral, uncovered_cuts
from .transfer_margin import (
    TransferArrays,
    TransferFigures,
    TransferMarket,
    error_of_mean,
    lead_hours,
    needed_lead_hours,
    route_capacity,
    todays_surplus,
)
from .transfer_shortfall import fungibility, shortfall_from_zero


@jax.jit
def _each_alone(rows: jax.Array, weights: jax.Array, confidence: jax.Array) -> jax.Array:
    return jax.vmap(lambda row: shortfall_from_zero(row, weights, confidence=confidence))(rows)


def large_network_figures(arrays: TransferArrays, market: TransferMarket) -> TransferFigures:
    """All figures of one portfolio (NumPy), `arrays` without padding."""
    weights, levels = np.asarray(market.weights), market.levels
    up = np.asarray(market.channels.up)
    is_node = np.asarray(arrays.is_node)
    losses = np.where(is_node[:, None], np.asarray(arrays.nodes.losses[:, -1], np.float64), 0.0)
    alone_loss = np.asarray(arrays.alone_loss, np.float64)
    everything = np.concatenate([losses, alone_loss])
    points = losses.shape[0]

    def apart(rows: np.ndarray, level: float) -> np.ndarray:
        if not rows.shape[0]:
            return np.zeros(0)
        return np.asarray(_each_alone(jnp.asarray(rows), market.weights, jnp.asarray(level)))

    own = np.stack([apart(everything, level) for level in levels])
    siloed, by_itself = own.sum(axis=1), own[:, points:].sum(axis=1)
    pooled = np.stack([apart(everything.sum(axis=0)[None], level)[0] for level in levels])
    nodes, timing = arrays.nodes, market.timing
    grace, deadline = jnp.asarray(arrays.grace_hours), jnp.asarray(arrays.deadline)
    needed = needed_lead_hours(jnp.asarray(nodes.losses), jnp.asarray(own[0, :points]), grace, deadline, timing)
    real = lead_hours(jnp.asarray(nodes.passage), jnp.asarray(nodes.warned), grace, deadline, timing)
    device = jax.tree.map(jnp.asarray, arrays)
    is_open, capacity = (np.asarray(part) for part in route_capacity(device, market.channels.up, needed))
    surplus, real_capacity = (np.asarray(part) for part in todays_surplus(device, market, real))

    def solved(of_losses: np.ndarray, of_capacity: np.ndarray, level: float) -> LeastCollateral:
        return least_collateral(
            of_losses, of_capacity, weights, confidence=level, holds=is_node, precision=market.precision
        )

    needs = [solved(losses.T, capacity, level) for level in levels]
    added = solved(-surplus, real_capacity, levels[0])
    ceiling = np.maximum(siloed, pooled)
    constrained = np.clip(np.array([found.value for found in needs]) + by_itself, pooled, ceiling)
    first = needs[0]

    uses, routes = np.asarray(arrays.uses), np.arange(is_open.shape[1])
    source, target, arriving = (np.asarray(part) for part in (arrays.source, arrays.target, arrays.arriving))
    left = first.collateral[None, :] - losses.T
    whole = uncovered_cuts(left, capacity)

    def without(closed: np.ndarray) -> float:
        """With routes gone: only where more flows than the others between the same points let through is it another."""
        pairs = sorted({(int(source[route]), int(target[route])) for route in np.flatnonzero(closed)})
        rest = {}
        changes = np.zeros(left.shape[0], bool)
        for u, v in pairs:
            stays = np.flatnonzero(~closed & (source == u) & (target == v))
            rest[u, v] = np.where(is_open[:, stays], arriving[None, stays], 0.0).sum(axis=1)
            changes |= whole.flow[:, u, v] > rest[u, v]
        missing = whole.amount.copy()
        if changes.any():
            cut = capacity[changes]
            for (u, v), amount in rest.items():
                cut[:, u, v] = amount[changes]
            missing[changes] = uncovered_cuts(left[changes], cut).amount
        beyond = float(weights @ missing) / (1.0 - levels[0])
        return float(np.clip(first.collateral.sum() + beyond + by_itself[0], constrained[0], ceiling[0]))

    phi = [float(fungibility(v, siloed=s, fungible=p)) for v, s, p in zip(constrained, siloed, pooled, strict=True)]
    worst_alone, _ = tail_rows(jnp.asarray(everything[points:]), market.weights, levels) if len(alone_loss) else ([], 0)
    # Any: host arrays stand where the type declares device arrays.
    host: dict[str, Any] = {
        "pooled": pooled,
        "siloed": siloed,
        "constrained": constrained,
        "gap": np.array([found.value - found.lower_bound for found in needs]),
        "left_out": np.zeros(len(levels), np.int32),
        "fungibility": np.array(phi),
        "collateral": first.collateral,
        "alone": own[0],
        "route_value": _route_values(arrays, first, is_open),
        "route_open": weights @ is_open,
        "channel_up": weights @ up,
        "error": error_of_mean(jnp.asarray(whole.amount), market.weights) / (1.0 - levels[0]),
        "without_channel": np.array([without(uses[:, channel]) for channel in range(up.shape[1])]),
        "without_route": np.array([without(routes == route) for route in routes]),
        "top_up": added.collateral,
        "top_up_total": added.value + float(apart(-np.asarray(arrays.alone_surplus, np.float64), levels[0]).sum()),
        "alone_collateral": np.maximum(np.asarray(worst_alone).reshape(-1, len(levels))[:, 0], 0.0),
    }
    return TransferFigures(**host, **_assessment(arrays, market, surplus, real_capacity))


def _route_values(arrays: TransferArrays, found: LeastCollateral, is_open: np.ndarray) -> np.ndarray:
    """What a dollar more of each route takes off the minimum, from the dual values of the cuts it crosses."""
    out = np.zeros(is_open.shape[1])
    for number in range(is_open.shape[1]):
        u, v = int(arrays.source[number]), int(arrays.target[number])
        crosses = ~found.members[:, u] & found.members[:, v] & is_open[found.scenario, number]
        limited = float(arrays.arriving[number]) > 0.0
        out[number] = float(found.mass[crosses].sum()) if limited else 0.0
    return out


def _assessment(
    arrays: TransferArrays, market: TransferMarket, surplus: np.ndarray, capacity: np.ndarray
) -> dict[str, Any]:
    """What today's collateral leaves uncovered, and where."""
    weights, levels = np.asarray(market.weights), market.levels
    found = uncovered_cuts(surplus, capacity)
    alone_surplus = np.asarray(arrays.alone_surplus, np.float64)
    missing = found.amount + np.maximum(-alone_surplus, 0.0).sum(axis=0)
    some = missing > 0.0
    chance = float(weights[some].sum())
    mass = chance if chance > 0.0 else 1.0
    deficits = np.maximum(-surplus, 0.0).sum(axis=1)
    delivered = np.clip(deficits - found.amount, 0.0, deficits)
    stranded = np.maximum(np.maximum(surplus, 0.0).sum(axis=1) - delivered, 0.0)
    stranded = stranded + np.maximum(alone_surplus, 0.0).sum(axis=0)
    _, shortfall = tail_rows(jnp.asarray(missing)[None], market.weights, levels)
    top_up = np.zeros(len(alone_surplus))
    if len(alone_surplus):
        worst, _ = tail_rows(jnp.asarray(-alone_surplus), market.weights, levels)
        top_up = np.maximum(np.asarray(worst)[:, 0], 0.0)
    return {
        "p_uncovered": chance,
        "uncovered_mean": float(weights[some] @ missing[some]) / mass,
        "uncovered_shortfall": np.asarray(shortfall)[0],
        "transit_mean": float(weights @ missing),
        "stranded": float(weights[some] @ stranded[some]) / mass,
        "p_deficit": weights @ (surplus < 0.0),
        "alone_p_deficit": (alone_surplus < 0.0) @ weights,
        "alone_top_up": top_up,
        "buffer_value": weights @ found.members / (1.0 - levels[0]),
    }
