"""The unified requirement of one portfolio in the engine: the stack of `requirement` for every node alone and for all.

Written for one portfolio, mapped by the engine. A **scope** is a node, or (the last one) everything together; both
levels stand on the last axis: maintenance at 99 %, initial at 99.5 %. Every scope is computed by the same model, so the
difference between the sum of the nodes and the whole is what pooling saves, and nothing else.

The expected shortfalls, under current volatility and under the stressed laws (the largest of them), are over liquidity
horizons: lines that take longer to close out than the horizon of the run count again at the longer ones. Grid, floor
and add-ons are the same at both levels but for the concentration charge.
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
from .batch_errors import tail_standard_errors
from .margin import accumulate
from .requirement import AddOnTotals, RequirementStack, initial_requirement, requirement_stack
from .risk import euler_allocation, tail_rows, tail_weights, tile_sum
from .rounding import rounded
from .rules.risk_unit import ordered_sum
from .unified_batch import UnifiedArrays
from .unified_shortfall import (
    LineDays,
    horizon_shortfall,
    moved_losses,
    scope_losses,
    stressed_shortfall,
    with_total,
)

_DAYS_PER_YEAR = 365.0
_LEAST_LEFT = 1e-12  # of a token that lost everything, so that its logarithm is finite


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
    beyond_horizons: Float[Array, "scopes levels"]
    """Size of the positions that take longer to close out than the last liquidity horizon, up to which they count."""


class Unified(NamedTuple):
    """The stack by scope, and what follows from the whole against the sum of its nodes, [levels] each."""

    components: Components
    silo: Float[Array, " levels"]
    effective: Float[Array, " levels"]
    margin_efficiency: Float[Array, " levels"]
    """Effective over silo."""
    offset_benefit: Float[Array, " levels"]
    offset_share: Float[Array, " levels"]
    """The share of the offset across nodes that is granted."""
    initial: Float[Array, ""]
    """The unified initial margin: that of its own level, or the scaled maintenance margin if that is larger."""
    var_error: Float[Array, " levels"]
    """Standard error of the VaR of all lines pooled, collateral included; NaN where none can be estimated."""
    es_error: Float[Array, " levels"]
    es_current_error: Float[Array, " levels"]
    """Standard error of `es_current` of everything pooled: of the lines that move in the requirement alone."""
    grid_point: Int[Array, ""]
    """Number of the grid point with the largest pooled loss."""
    spread_cost: Float[Array, " scopes"]
    """The part of `liquidity` that is half the spread; the rest is impact."""
    line_daily_vol: Float[Array, " L"]
    """Daily standard deviation of the logarithm of what a line at a haircut is worth, its discount included; else 0."""


class _Parts(NamedTuple):
    """What the stack of one scope and level is made of."""

    current: Float[Array, "..."]
    stressed: Float[Array, "..."]
    grid: Float[Array, "..."]
    """Of the grid and the binding stresses the larger."""
    floor: Float[Array, "..."]
    add_ons: AddOnTotals


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
    simulated = unified.line_simulated[:, None]
    losses = jnp.where(simulated, line_losses, 0.0)
    scopes = scope_losses(portfolio, losses)
    _, es = tail_rows(scopes, weights, levels)
    exposure = _exposures(portfolio, market)
    of_scope = _forced(exposure)
    days = _close_out_days(of_scope, market)
    of_lines = _line_days(portfolio, unified, days, market)
    over = {"levels": levels, "horizons": stack.horizons}

    def losses_of(counted: Array) -> Float[Array, "scopes scenarios"]:
        return scope_losses(portfolio, jnp.where(counted[:, None], losses, 0.0))

    by_horizon = horizon_shortfall(es, losses_of, weights, of_lines, **over)
    stressed = stressed_shortfall(portfolio, unified, market.stressed_change, market.stressed_weights, of_lines, **over)
    grid, point = _grid_loss(portfolio, unified, market)
    stress = jnp.zeros_like(grid) if binding_stress is None else binding_stress
    floor = with_total(rounded(stack.floor_rate * unified.node_gross))
    liquidity, unmeasured = _liquidity(exposure, market, market.stack.impact)
    spread, _ = _liquidity(exposure, market, 0.0)
    concentration = _concentration(portfolio, unified, losses, weights, scopes, of_scope, market, levels)
    failure = add_ons.venue_failure(
        unified.node_hazard,
        unified.node_equity,
        loss_given_default=unified.node_loss_given_default,
        horizon_years=stack.horizons[0] / _DAYS_PER_YEAR,
    )
    beyond = ordered_sum(jnp.where(days > stack.horizons[-1], of_scope, 0.0))

    def both(values: Float[Array, " scopes"]) -> Float[Array, "scopes levels"]:
        return jnp.broadcast_to(values[:, None], es.shape)

    charges = AddOnTotals(
        liquidity=both(liquidity),
        concentration=concentration,
        basis=both(_basis(unified, exposure, market)),
        wrong_way=both(_wrong_way(portfolio, unified, market)),
        venue=both(with_total(failure.amount)),
    )

    def stacked(parts: _Parts, silo: Float[Array, ""]) -> RequirementStack:
        return requirement_stack(
            current_shortfall=parts.current,
            stressed_shortfall=parts.stressed,
            stress_weight=stack.stress_weight,
            grid=parts.grid,
            floor=parts.floor,
            add_ons=parts.add_ons,
            silo=silo,
            offset_cap=stack.offset_cap,
            fungibility=fungibility,
        )

    parts = _Parts(by_horizon, stressed, both(jnp.maximum(grid, stress)), both(floor), charges)
    # A scope alone is measured against nothing; what pooling saves is known once the nodes are.
    alone = jax.vmap(jax.vmap(stacked))(parts, jnp.zeros_like(es))
    silo = ordered_sum(alone.ideal[:-1].T)
    pooled = jax.vmap(stacked)(jax.tree.map(lambda values: values[-1], parts), silo)
    components = Components(
        es_current=es,
        es_horizon=by_horizon,
        es_stressed=stressed,
        es_blend=alone.blended_shortfall,
        grid=both(grid),
        stress=both(stress),
        floor=both(floor),
        base=alone.base,
        **{name: getattr(alone, name) for name in AddOnTotals._fields},
        requirement=alone.ideal,
        unmeasured=both(unmeasured),
        beyond_horizons=both(beyond),
    )
    pooled_losses = lax.cond(
        jnp.all(unified.line_simulated | ~portfolio.line_is_real),
        lambda: scopes[-1],
        lambda: scope_losses(portfolio, line_losses)[-1],
    )
    var_errors, es_errors = lax.map(
        lambda row: tail_standard_errors(row, weights, levels), jnp.stack([pooled_losses, scopes[-1]])
    )
    return Unified(
        components=components,
        silo=silo,
        effective=pooled.effective,
        margin_efficiency=pooled.margin_efficiency,
        offset_benefit=pooled.offset_benefit,
        offset_share=pooled.offset_share,
        initial=initial_requirement(pooled.effective[0], pooled.effective[-1], scale=stack.initial_scale),
        var_error=var_errors[0],
        es_error=es_errors[0],
        es_current_error=es_errors[1],
        grid_point=point,
        spread_cost=spread,
        line_daily_vol=_daily_vols(unified, line_losses, weights, stack.horizons[0]),
    )


def _grid_loss(
    portfolio: PortfolioArrays, unified: UnifiedArrays, market: UnifiedMarket
) -> tuple[Float[Array, " scopes"], Int[Array, ""]]:
    """The worst weighted loss over the grid by scope, at least 0, and the point of the whole's."""
    losses = moved_losses(portfolio, unified, market.grid_change).astype(jnp.float64) * market.grid_weight[None, :]
    return jnp.maximum(jnp.max(losses, axis=1), 0.0), jnp.argmax(losses[-1])


def _daily_vols(
    unified: UnifiedArrays, line_losses: Float[Array, "L scenarios"], weights: Float[Array, " scenarios"], days: float
) -> Float[Array, " L"]:
    """Daily standard deviation of the log-value of the lines at a haircut, whatever moves them; 0 for the others."""

    def found() -> Float[Array, " L"]:
        value = jnp.where(unified.line_at_haircut, unified.line_value, 1.0)[:, None]
        lost = jnp.where(unified.line_at_haircut[:, None] & (weights > 0.0)[None, :], line_losses, 0.0)
        share = jnp.clip(lost.astype(jnp.float64) / jnp.where(value > 0.0, value, 1.0), None, 1.0 - _LEAST_LEFT)
        moves = jnp.log1p(-share)
        away = moves - tile_sum(weights[None, :] * moves)[:, None]
        return jnp.sqrt(tile_sum(weights[None, :] * rounded(away * away)) / days)

    nothing = jnp.zeros(unified.line_value.shape[0], jnp.float64)
    return lax.cond(jnp.any(unified.line_at_haircut), found, lambda: nothing)


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


def _line_days(
    portfolio: PortfolioArrays, unified: UnifiedArrays, days: Float[Array, "scopes F"], market: UnifiedMarket
) -> LineDays:
    """Close-out days of the lines; the horizon of the run for what no price moves."""
    moved, base = unified.line_has_factor & portfolio.line_is_real, market.stack.horizons[0]
    return LineDays(
        jnp.where(moved, days[portfolio.line_node, unified.line_factor], base),
        jnp.where(moved, days[-1, unified.line_factor], base),
    )


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
    return ordered_sum(jnp.where(measured, amount, 0.0)), with_total(ordered_sum(unknown))


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


def _wrong_way(portfolio: PortfolioArrays, unified: UnifiedArrays, market: UnifiedMarket) -> Float[Array, " scopes"]:
    """Charge for what falls with a venue where the scope has a node: own tokens posted there, and all others held.

    Where the venue itself holds the other exposure a short of its token pays nothing once it has failed; elsewhere
    longs and shorts net, for they are worth what the market says.
    """
    of_leg = rounded(
        portfolio.leg_coefficient * market.exposure[portfolio.leg_row, unified.line_factor[portfolio.leg_line]]
    )
    moved = accumulate(portfolio.leg_line, lambda leg: of_leg[leg], jnp.zeros_like(unified.line_value))
    held = jnp.where(unified.line_has_factor, moved, unified.line_value)
    venues = unified.venue_loss_given_default.shape[0]
    start = jnp.zeros((portfolio.node_is_real.shape[0], venues), jnp.float64)
    falls = accumulate(
        portfolio.line_node, lambda line: jnp.where(unified.line_falls_with[line], held[line], 0.0), start
    )
    here = (unified.node_venue[:, None] == jnp.arange(venues)[None, :]) & portfolio.node_is_real[:, None]
    falls = jnp.where(here, jnp.maximum(falls, 0.0), falls)
    nodes = add_ons.wrong_way(
        unified.node_wrong_way,
        True,
        exposure=ordered_sum(jnp.where(here, falls, 0.0)),
        loss_given_default=unified.node_loss_given_default,
    )
    together = add_ons.wrong_way(
        0.0, False, exposure=ordered_sum(falls.T), loss_given_default=unified.venue_loss_given_default
    )
    posted = ordered_sum(unified.node_wrong_way)
    return jnp.concatenate([nodes.amount, (posted + ordered_sum(together.amount))[None]])
