"""The unified requirement of one portfolio in the engine: the stack of `requirement` for every node alone and for all.

Written for one portfolio, mapped by the engine. A **scope** is a node, or (the last one) everything together; both
levels stand on the last axis: maintenance at 99 %, initial at 99.5 %. Every scope is computed by the same model, so the
difference between the sum of the nodes and the whole is what pooling saves, and nothing else.

The expected shortfall under current volatility is scaled by liquidity horizons: lines that take longer to close out
than the horizon of the run count again at the longer ones. The shortfall under stressed laws (the largest of them) is
scaled by the same ratio. Grid, floor and add-ons are the same at both levels but for the concentration charge.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from . import add_ons
from .batch import PortfolioArrays
from .margin import accumulate
from .requirement import (
    AddOnTotals,
    base_requirement,
    blended_shortfall,
    effective_requirement,
    ideal_requirement,
    initial_requirement,
    liquidity_horizon_shortfall,
)
from .risk import SCENARIO_TILE, euler_allocation, tail_rows, tail_weights, tile_sum
from .rounding import rounded
from .rules.risk_unit import ordered_sum
from .unified_batch import UnifiedArrays

BATCHES = 8
"""Independent batches behind a standard error: the scrambles of a point set, or as many parts of the scenarios."""


_DAYS_PER_YEAR = 365.0


class Stack(NamedTuple):
    """What the policy says, as numbers of the program: changing one compiles anew."""

    stress_weight: float
    offset_cap: float
    floor_rate: float
    initial_scale: float
    impact: float
    participation: float
    horizons: tuple[float, ...]
    """Days, rising; the first is the horizon of the run."""
    concentration_share: float


class UnifiedMarket(eqx.Module):
    """What the requirement needs of the market beside the cube; F factors (those that are no price have no figures).

    `stressed_change` and `stressed_weights` hold one scenario set per stressed law, `grid_change` the changes at the
    points of the grid, whose losses count at `grid_weight` (0 for padding). `exposure` is what a unit of a row's
    coefficient gains, in USD, per 100 % of a price. Figures that are unknown are NaN.
    """

    stressed_change: Float[Array, "laws rows stressed"]
    stressed_weights: Float[Array, "laws stressed"]
    grid_change: Float[Array, "rows points"]
    grid_weight: Float[Array, " points"]
    exposure: Float[Array, "rows F"]
    daily_volume: Float[Array, " F"]
    daily_vol: Float[Array, " F"]
    spread: Float[Array, " F"]
    basis: Float[Array, " F"]
    stack: Stack = eqx.field(static=True)


class Components(NamedTuple):
    """Every component by scope and level, USD; `unmeasured` is the exposure that add-ons lack figures for."""

    es_current: Float[Array, "scopes levels"]
    es_horizon: Float[Array, "scopes levels"]
    es_stressed: Float[Array, "scopes levels"]
    es_blend: Float[Array, "scopes levels"]
    grid: Float[Array, "scopes levels"]
    stress: Float[Array, "scopes levels"]
    """Largest loss under a binding stress."""
    floor: Float[Array, "scopes levels"]
    base: Float[Array, "scopes levels"]
    liquidity: Float[Array, "scopes levels"]
    concentration: Float[Array, "scopes levels"]
    basis: Float[Array, "scopes levels"]
    wrong_way: Float[Array, "scopes levels"]
    venue: Float[Array, "scopes levels"]
    requirement: Float[Array, "scopes levels"]
    unmeasured: Float[Array, "scopes levels"]


class Unified(NamedTuple):
    """The stack by scope, and what follows from the whole against the sum of its nodes, [levels] each."""

    components: Components
    silo: Float[Array, " levels"]
    effective: Float[Array, " levels"]
    initial: Float[Array, ""]
    """The unified initial margin: that of its own level, or the scaled maintenance margin if that is larger."""
    var_error: Float[Array, " levels"]
    """Standard error of the pooled VaR from independent batches; NaN with fewer than two of them."""
    es_error: Float[Array, " levels"]
    grid_point: Int[Array, ""]
    """Number of the grid point with the largest pooled loss."""
    spread_cost: Float[Array, " scopes"]
    """The part of `liquidity` that is half the spread; the rest is impact."""


def unified_requirement(
    portfolio: PortfolioArrays,
    unified: UnifiedArrays,
    market: UnifiedMarket,
    line_losses: Float[Array, "L scenarios"],
    weights: Float[Array, " scenarios"],
    *,
    levels: tuple[float, ...],
    fungibility: float,
    binding_stress: Float[Array, " scopes"] | None = None,
) -> Unified:
    """The requirement from the losses of the lines in the current scenarios and the market's other scenario sets.

    `binding_stress` is a loss by scope that the base must cover like that of the grid.
    """
    stack = market.stack
    simulated = unified.line_simulated
    losses = jnp.where(simulated[:, None], line_losses, 0.0)
    scopes = _scope_losses(portfolio, losses)
    _, es = tail_rows(scopes, weights, levels)
    exposure = _exposures(portfolio, market)
    of_scope = _forced(exposure)
    days = _close_out_days(of_scope, market)
    by_horizon = _horizon_shortfall(portfolio, unified, losses, weights, es, days, levels, stack.horizons)
    stressed = _stressed_shortfall(portfolio, unified, market, levels)
    ratio = jnp.where(es > 0.0, by_horizon / jnp.where(es > 0.0, es, 1.0), 1.0)
    stressed = stressed * ratio
    grid, point = _grid_loss(portfolio, unified, market)
    stress = jnp.zeros_like(grid) if binding_stress is None else binding_stress
    floor = _with_total(rounded(stack.floor_rate * unified.node_gross))
    liquidity, unmeasured = _liquidity(exposure, market, market.stack.impact)
    spread, _ = _liquidity(exposure, market, 0.0)
    concentration = _concentration(portfolio, unified, losses, weights, scopes, of_scope, market, levels)
    basis = _basis(unified, exposure, market)

    def both(values: Float[Array, " scopes"]) -> Float[Array, "scopes levels"]:
        return jnp.broadcast_to(values[:, None], es.shape)

    blend = jax.vmap(jax.vmap(lambda c, s: blended_shortfall(c, s, stress_weight=stack.stress_weight)))(
        by_horizon, stressed
    )
    base = jax.vmap(jax.vmap(base_requirement))(blend, both(jnp.maximum(grid, stress)), both(floor))
    failure = add_ons.venue_failure(
        unified.node_hazard,
        unified.node_equity,
        loss_given_default=unified.node_loss_given_default,
        horizon_years=stack.horizons[0] / _DAYS_PER_YEAR,
    )
    costs, gaps = both(liquidity), both(basis)
    wrong_way, venue = both(_with_total(unified.node_wrong_way)), both(_with_total(failure.amount))
    add_on_totals = AddOnTotals(costs, concentration, gaps, wrong_way, venue)
    requirement = jax.vmap(jax.vmap(ideal_requirement))(base, add_on_totals)
    components = Components(
        es_current=es,
        es_horizon=by_horizon,
        es_stressed=stressed,
        es_blend=blend,
        grid=both(grid),
        stress=both(stress),
        floor=both(floor),
        base=base,
        liquidity=costs,
        concentration=concentration,
        basis=gaps,
        wrong_way=wrong_way,
        venue=venue,
        requirement=requirement,
        unmeasured=both(unmeasured),
    )
    silo = ordered_sum(requirement[:-1].T)
    effective = jax.vmap(
        lambda ideal, parts: (
            effective_requirement(ideal, parts, offset_cap=stack.offset_cap, fungibility=fungibility).requirement
        )
    )(requirement[-1], silo)
    var_error, es_error = _standard_errors(scopes[-1], weights, levels)
    initial = initial_requirement(effective[0], effective[-1], scale=stack.initial_scale)
    return Unified(components, silo, effective, initial, var_error, es_error, point, spread)


# ---- losses by scope -------------------------------------------------------------------------------------------------


def _scope_losses(portfolio: PortfolioArrays, losses: Float[Array, "L columns"]) -> Float[Array, "scopes columns"]:
    """Losses of every node, and of all of them, from those of the lines."""
    start = jnp.zeros((portfolio.node_is_real.shape[0], losses.shape[1]), losses.dtype)
    nodes = accumulate(portfolio.line_node, lambda line: losses[line], start)
    return _with_total(nodes)


def _with_total(nodes: Float[Array, "N *rest"]) -> Float[Array, "scopes *rest"]:
    """The nodes' values and behind them their sum, in order."""
    total = lax.fori_loop(0, nodes.shape[0], lambda n, so_far: so_far + nodes[n], jnp.zeros_like(nodes[0]))
    return jnp.concatenate([nodes, total[None]])


def _moved(
    portfolio: PortfolioArrays, unified: UnifiedArrays, change: Float[Array, "rows columns"]
) -> Float[Array, "scopes columns"]:
    """Losses by scope where the rows change by `change`, without a detour over the lines."""
    coefficient = jnp.where(unified.line_simulated[portfolio.leg_line], portfolio.leg_coefficient, 0.0)
    coefficient = coefficient.astype(change.dtype)
    start = jnp.zeros((portfolio.node_is_real.shape[0], change.shape[1]), change.dtype)
    nodes = accumulate(
        portfolio.line_node[portfolio.leg_line],
        lambda leg: rounded(-coefficient[leg] * change[portfolio.leg_row[leg]]),
        start,
    )
    return _with_total(nodes)


def _stressed_shortfall(
    portfolio: PortfolioArrays, unified: UnifiedArrays, market: UnifiedMarket, levels: tuple[float, ...]
) -> Float[Array, "scopes levels"]:
    """The largest expected shortfall over the stressed laws; 0 without one."""
    start = jnp.zeros((portfolio.node_is_real.shape[0] + 1, len(levels)), jnp.float64)
    if market.stressed_change.shape[0] == 0:
        return start

    def worse(worst: Array, law: tuple[Array, Array]) -> tuple[Array, None]:
        change, weights = law
        return jnp.maximum(worst, tail_rows(_moved(portfolio, unified, change), weights, levels)[1]), None

    return lax.scan(worse, start, (market.stressed_change, market.stressed_weights))[0]


def _grid_loss(
    portfolio: PortfolioArrays, unified: UnifiedArrays, market: UnifiedMarket
) -> tuple[Float[Array, " scopes"], Int[Array, ""]]:
    """The worst weighted loss over the grid by scope, at least 0, and the point of the whole's."""
    losses = _moved(portfolio, unified, market.grid_change).astype(jnp.float64) * market.grid_weight[None, :]
    return jnp.maximum(jnp.max(losses, axis=1), 0.0), jnp.argmax(losses[-1])


# ---- size against the market -----------------------------------------------------------------------------------------


def _exposures(portfolio: PortfolioArrays, market: UnifiedMarket) -> Float[Array, "N F"]:
    """Signed USD exposure of every node to every price."""
    start = jnp.zeros((portfolio.node_is_real.shape[0], market.exposure.shape[1]), jnp.float64)
    return accumulate(
        portfolio.line_node[portfolio.leg_line],
        lambda leg: rounded(portfolio.leg_coefficient[leg] * market.exposure[portfolio.leg_row[leg]]),
        start,
    )


def _forced(exposure: Float[Array, "N F"]) -> Float[Array, "scopes F"]:
    """The larger side of what liquidation would sell or buy, by scope: nodes share the depth of an asset."""
    whole = add_ons.forced_notional(exposure, nets=False)
    return jnp.concatenate([jnp.abs(exposure), jnp.maximum(whole.sold, whole.bought)[None]])


def _close_out_days(size: Float[Array, "scopes F"], market: UnifiedMarket) -> Float[Array, "scopes F"]:
    """Days to close each position out; the horizon of the run where the volume is unknown (reported as unmeasured)."""
    stack = market.stack
    found = jax.vmap(
        lambda of_scope: add_ons.close_out(
            of_scope, market.daily_volume, participation=stack.participation, least_days=stack.horizons[0]
        )
    )(size)
    return jnp.where(found.measured, found.margin_period_days, stack.horizons[0])


def _horizon_shortfall(
    portfolio: PortfolioArrays,
    unified: UnifiedArrays,
    losses: Float[Array, "L scenarios"],
    weights: Float[Array, " scenarios"],
    es: Float[Array, "scopes levels"],
    days: Float[Array, "scopes F"],
    levels: tuple[float, ...],
    horizons: tuple[float, ...],
) -> Float[Array, "scopes levels"]:
    """Expected shortfall over the liquidity horizons; that over the first where everything closes out within it."""
    base = horizons[0]
    if len(horizons) == 1:
        return es
    moved = unified.line_has_factor & portfolio.line_is_real
    of_node = jnp.where(moved, days[portfolio.line_node, unified.line_factor], base)
    of_whole = jnp.where(moved, days[-1, unified.line_factor], base)

    def longer(horizon: Array) -> Float[Array, "scopes levels"]:
        """Shortfall of the lines that take longer than this horizon."""
        nodes = _scope_losses(portfolio, jnp.where((of_node > horizon)[:, None], losses, 0.0))[:-1]
        whole = _scope_losses(portfolio, jnp.where((of_whole > horizon)[:, None], losses, 0.0))[-1:]
        return tail_rows(jnp.concatenate([nodes, whole]), weights, levels)[1]

    def scaled() -> Float[Array, "scopes levels"]:
        lengths = jnp.asarray(horizons, jnp.float64)
        slower = jnp.maximum(lax.map(longer, lengths[:-1]), 0.0)
        shortfalls = jnp.moveaxis(jnp.concatenate([es[None], slower]), 0, -1)
        return jax.vmap(jax.vmap(lambda row: liquidity_horizon_shortfall(row, lengths, base_horizon=base)))(shortfalls)

    # A branch and not a selection: most portfolios close out within the horizon and need none of this.
    needed = jnp.any(of_node > base) | jnp.any(of_whole > base)
    return jnp.where(es > 0.0, lax.cond(needed, scaled, lambda: es), es)


def _liquidity(
    exposure: Float[Array, "N F"], market: UnifiedMarket, impact: float
) -> tuple[Float[Array, " scopes"], Float[Array, " scopes"]]:
    """Liquidation cost by scope over the assets whose market is known, and the exposure to the others."""
    volume, vol, spread = market.daily_volume, market.daily_vol, market.spread

    def cost(of_node: Array) -> add_ons.AddOn:
        return add_ons.liquidity_cost(of_node, volume, daily_vol=vol, spread=spread, impact=impact)

    alone = jax.vmap(cost)(exposure)
    pool = jnp.zeros(exposure.shape[0], jnp.int32)
    whole = add_ons.pooled_liquidity_cost(
        exposure, pool, volume[None, :], daily_vol=vol, spread=spread, impact=impact, nets=False
    )
    amount = jnp.concatenate([alone.amount, whole.amount[None]])
    measured = jnp.concatenate([alone.measured, whole.measured[None]])
    unknown = jnp.where(alone.measured, 0.0, jnp.abs(exposure))
    return ordered_sum(jnp.where(measured, amount, 0.0)), _with_total(ordered_sum(unknown))


def _concentration(
    portfolio: PortfolioArrays,
    unified: UnifiedArrays,
    losses: Float[Array, "L scenarios"],
    weights: Float[Array, " scenarios"],
    scopes: Float[Array, "scopes scenarios"],
    size: Float[Array, "scopes F"],
    market: UnifiedMarket,
    levels: tuple[float, ...],
) -> Float[Array, "scopes levels"]:
    """Charge for positions that are large against their market: their part of the shortfall, scaled up."""
    limit = market.stack.concentration_share * market.daily_volume
    ratio = jax.vmap(lambda of_scope: add_ons.concentration_ratio(of_scope, limit))(size)
    large = ratio.measured & (ratio.amount > 1.0)
    nodes, factors = scopes.shape[0] - 1, size.shape[1]

    def of_scope(scope: Array) -> Float[Array, " levels"]:
        inside = (portfolio.line_node == scope) | (scope == nodes)
        counted = inside & unified.line_has_factor & portfolio.line_is_real

        def of_level(level: Array) -> Float[Array, ""]:
            tail = tail_weights(scopes[scope], weights, confidence=level)
            parts = jnp.where(counted, euler_allocation(losses, tail), 0.0)
            by_asset = accumulate(unified.line_factor, lambda line: parts[line], jnp.zeros(factors, jnp.float64))
            charge = add_ons.concentration(by_asset, size[scope], limit)
            return ordered_sum(jnp.where(large[scope], charge.amount, 0.0))

        return lax.map(of_level, jnp.asarray(levels, jnp.float64))

    nothing = jnp.zeros((nodes + 1, len(levels)), jnp.float64)
    return lax.cond(jnp.any(large), lambda: lax.map(of_scope, jnp.arange(nodes + 1)), lambda: nothing)


def _basis(unified: UnifiedArrays, exposure: Float[Array, "N F"], market: UnifiedMarket) -> Float[Array, " scopes"]:
    """Charge for legs of one asset that hedge each other across venues; a node alone has none."""
    by_venue = accumulate(unified.node_venue, lambda node: exposure[node], jnp.zeros_like(exposure))
    charge = add_ons.basis(add_ons.matched_notional(by_venue), market.basis)
    whole = ordered_sum(jnp.where(charge.measured, charge.amount, 0.0))
    return jnp.concatenate([jnp.zeros(exposure.shape[0], jnp.float64), whole[None]])


# ---- error bars ------------------------------------------------------------------------------------------------------


def _standard_errors(
    losses: Float[Array, " scenarios"], weights: Float[Array, " scenarios"], levels: tuple[float, ...]
) -> tuple[Float[Array, " levels"], Float[Array, " levels"]]:
    """Standard errors of VaR and ES from batches of whole tiles in index order, which the scrambles of a point set are.

    Spread of the batches' own figures over the root of their number; tiles beyond the last whole batch do not count.
    """
    per_batch = losses.shape[0] // SCENARIO_TILE // BATCHES
    if per_batch == 0:
        unknown = jnp.full(len(levels), jnp.nan, jnp.float64)
        return unknown, unknown
    used = per_batch * BATCHES * SCENARIO_TILE
    rows = losses[:used].reshape(BATCHES, -1)
    shares = weights[:used].reshape(BATCHES, -1)

    def of_batch(batch: Array) -> tuple[Array, Array]:
        mass = tile_sum(shares[batch])
        own = shares[batch] / jnp.where(mass > 0.0, mass, 1.0)
        var, es = tail_rows(rows[batch][None], own, levels)
        return var[0], es[0]

    def error(values: Float[Array, "batches levels"]) -> Float[Array, " levels"]:
        mean = ordered_sum(values.T) / BATCHES
        spread = ordered_sum(((values - mean[None, :]) ** 2).T) / (BATCHES - 1)
        return jnp.sqrt(spread / BATCHES)

    var, es = lax.map(of_batch, jnp.arange(BATCHES))
    # A batch without weight (padding) says nothing about the spread of the others.
    complete = jnp.all(tile_sum(shares) > 0.0)
    return jnp.where(complete, error(var), jnp.nan), jnp.where(complete, error(es), jnp.nan)
