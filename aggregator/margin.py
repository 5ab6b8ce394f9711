"""Equity against requirement of every account of one portfolio, by the venue's own rules, today and in every scenario.

Written for one portfolio; the engine maps it. Today in float64, exact; in scenarios the *changes* from today are summed
in float32 and added to today's float64 figures before the verdict, so a large balanced account loses no digits. Rows
are added one by one in their packed order: padding adds zeros behind them, and no reduction is left to the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .batch import PortfolioArrays, UnitArrays
from .config import TILE
from .cube import TERMS, CubeRows
from .rounding import rounded
from .rules.contingency import contingency_requirement
from .rules.expiry_max_loss import expiry_requirement
from .rules.price_vol_grid import grid_requirement
from .rules.risk_unit import Requirement, RiskUnit, UnitMove, moved
from .rules.tiered_notional import TierTable, tier_initial_rate, tiered_requirement, tiered_requirement_change
from .rules.weighted_value import weighted_value, weighted_value_change

_UNIT_MANTISSA_BITS = 40
"""Requirements of risk units are rounded to 2^-41 relative, 4.5e-13. The compiler contracts the additions inside its
own error function differently in the vectorized body and in the remainder of a loop (seen on the CPU with jax 0.10.2),
so the last of the 52 bits depends on the shapes around an option; after the rounding it no longer shows."""


class NativeMargin(NamedTuple):
    """Each account's figures today, in its own unit, float64."""

    equity: Float[Array, " A"]
    initial: Float[Array, " A"]
    maintenance: Float[Array, " A"]


class ScenarioMargin(NamedTuple):
    """Each account's figures at the horizon of every scenario, in its own unit, float64."""

    equity: Float[Array, "A scenarios"]
    maintenance: Float[Array, "A scenarios"]


def accumulate(
    targets: Int[Array, " rows"], value: Callable[[Array], Array], total: Float[Array, "targets ..."]
) -> Float[Array, "targets ..."]:
    """`total` with `value(row)` added to target `targets[row]`, rows in order."""
    if targets.shape[0] == 0:
        return total

    def add(row: Array, sums: Array) -> Array:
        held = lax.dynamic_index_in_dim(sums, targets[row], keepdims=False)
        return lax.dynamic_update_index_in_dim(sums, held + value(row), targets[row], 0)

    return lax.fori_loop(0, targets.shape[0], add, total)


def line_changes(portfolio: PortfolioArrays, change: Float[Array, "rows scenarios"]) -> Float[Array, "L scenarios"]:
    """Profit of every line in every scenario, USD, float32."""
    coefficient = portfolio.leg_coefficient.astype(change.dtype)
    start = jnp.zeros((portfolio.line_node.shape[0], change.shape[1]), change.dtype)
    return accumulate(portfolio.leg_line, lambda leg: rounded(coefficient[leg] * change[portfolio.leg_row[leg]]), start)


def native_margin_today(
    portfolio: PortfolioArrays, today: Float[Array, " rows"], shocks_today: Float[Array, " factors"], cube: CubeRows
) -> NativeMargin:
    """Equity, initial and maintenance requirement of every account at current prices. `shocks_today` are zeros."""
    equity, initial, maintenance = _margin_of_rows(portfolio, today)
    if portfolio.units is not None:
        units = portfolio.units
        needed = _unit_requirements(units, shocks_today, cube, elapsed_years=0.0)
        initial = accumulate(units.account, lambda u: needed.initial[u], initial)
        maintenance = accumulate(units.account, lambda u: needed.maintenance[u], maintenance)
    return NativeMargin(equity, initial, maintenance)


def _margin_of_rows(portfolio: PortfolioArrays, today: Float[Array, " rows"]) -> NativeMargin:
    """Every account's figures today without what its risk units require."""
    accounts = portfolio.trigger.shape[0]
    net = _group_values(portfolio, today)
    equity = accumulate(
        portfolio.group_account,
        lambda g: weighted_value(net[g], portfolio.group_asset_weight[g], portfolio.group_liability_weight[g]),
        jnp.zeros(accounts, jnp.float64),
    )
    initial, maintenance = portfolio.fixed_initial, portfolio.fixed_maintenance
    value = today[portfolio.requirement_row]
    initial = accumulate(
        portfolio.requirement_account, lambda r: rounded(portfolio.requirement_initial[r] * value[r]), initial
    )
    maintenance = accumulate(
        portfolio.requirement_account, lambda r: rounded(portfolio.requirement_maintenance[r] * value[r]), maintenance
    )
    initial = accumulate(portfolio.tier_account, lambda t: _tier_initial(portfolio, t), initial)
    maintenance = accumulate(
        portfolio.tier_account,
        lambda t: rounded(
            portfolio.tier_conversion[t]
            * tiered_requirement(portfolio.tier_notional[t], portfolio.tier_floor[t], portfolio.tier_increment[t])
        ),
        maintenance,
    )
    return NativeMargin(equity, initial, maintenance)


def scenario_margin(
    portfolio: PortfolioArrays,
    today: Float[Array, " rows"],
    change: Float[Array, "rows scenarios"],
    shocks: Float[Array, "scenarios factors"],
    cube: CubeRows,
    *,
    horizon_years: float,
) -> ScenarioMargin:
    """Equity and maintenance requirement of every account at the horizon of each scenario."""
    equity_change, requirement_change = _native_changes(portfolio, today, change)
    of_rows = _margin_of_rows(portfolio, today)
    requirement = of_rows.maintenance[:, None] + requirement_change.astype(jnp.float64)
    if portfolio.units is not None:
        in_units = _unit_maintenance(portfolio.units, shocks, cube, horizon_years)
        requirement = accumulate(portfolio.units.account, lambda u: in_units[u], requirement)
    return ScenarioMargin(of_rows.equity[:, None] + equity_change.astype(jnp.float64), requirement)


def liquidated(portfolio: PortfolioArrays, margin: ScenarioMargin) -> Bool[Array, "A scenarios"]:
    """Whether the venue liquidates each account at the horizon of each scenario.

    With a requirement: equity < trigger * requirement (or <=, as the verdict says); without one: negative equity.
    """
    equity, requirement = margin
    needed = portfolio.trigger[:, None] * requirement
    short = jnp.where(portfolio.at_or_below[:, None], equity <= needed, equity < needed)
    verdict = jnp.where(requirement > 0.0, short, equity < 0.0)
    return verdict & portfolio.account_is_real[:, None]


def _group_values(portfolio: PortfolioArrays, today: Float[Array, " rows"]) -> Float[Array, " G"]:
    value = rounded(portfolio.native_coefficient * today[portfolio.native_row])
    return accumulate(
        portfolio.native_group, lambda leg: value[leg], jnp.zeros(portfolio.group_account.shape[0], jnp.float64)
    )


def _tier_initial(portfolio: PortfolioArrays, tier: Array) -> Array:
    """Notional at the larger of the position's own rate (chosen leverage, override) and the tier's initial rate."""
    notional = portfolio.tier_notional[tier]
    table = TierTable(portfolio.tier_floor[tier], portfolio.tier_increment[tier], portfolio.tier_initial_rate[tier])
    rate = jnp.maximum(portfolio.tier_inverse_leverage[tier], tier_initial_rate(notional, table))
    return rounded(portfolio.tier_conversion[tier] * notional * rate)


def _native_changes(
    portfolio: PortfolioArrays, today: Float[Array, " rows"], change: Float[Array, "rows scenarios"]
) -> tuple[Float[Array, "A scenarios"], Float[Array, "A scenarios"]]:
    """Change of equity and of the maintenance requirement (without risk units) of every account, float32."""
    scenarios, single = change.shape[1], change.dtype
    accounts, groups = portfolio.trigger.shape[0], portfolio.group_account.shape[0]
    coefficient = portfolio.native_coefficient.astype(single)
    net_today = _group_values(portfolio, today)
    net = accumulate(
        portfolio.native_group,
        lambda leg: rounded(coefficient[leg] * change[portfolio.native_row[leg]]),
        jnp.zeros((groups, scenarios), single),
    )
    equity = accumulate(
        portfolio.group_account,
        lambda g: weighted_value_change(
            net_today[g], net[g], portfolio.group_asset_weight[g], portfolio.group_liability_weight[g]
        ),
        jnp.zeros((accounts, scenarios), single),
    )
    weight = portfolio.requirement_maintenance.astype(single)
    requirement = accumulate(
        portfolio.requirement_account,
        lambda r: rounded(weight[r] * change[portfolio.requirement_row[r]]),
        jnp.zeros((accounts, scenarios), single),
    )

    def tier_change(t: Array) -> Array:
        """Requirement in the account's unit: (M + dM) * c (1 + dc) - M c = c (dM + (M + dM) dc)."""
        floor, increment = portfolio.tier_floor[t], portfolio.tier_increment[t]
        notional = portfolio.tier_notional[t]
        moved_by = notional.astype(single) * change[portfolio.tier_row[t]]
        gain = jax.vmap(lambda d: tiered_requirement_change(notional, d, floor, increment))(moved_by)
        before = tiered_requirement(notional, floor, increment).astype(single)
        drift = change[portfolio.tier_conversion_row[t]]
        return rounded(portfolio.tier_conversion[t].astype(single) * (gain + rounded((before + gain) * drift)))

    return equity, accumulate(portfolio.tier_account, tier_change, requirement)


def _unit_requirements(
    units: UnitArrays, shocks: Float[Array, " factors"], cube: CubeRows, *, elapsed_years: float
) -> Requirement:
    """Initial and maintenance requirement of every risk unit in one scenario, [U] each, float64."""

    def one(unit: UnitArrays) -> Requirement:
        market = _moved_market(unit, shocks, cube, elapsed_years)
        initial = jnp.zeros((), jnp.float64)
        maintenance = jnp.zeros((), jnp.float64)
        if unit.grid is not None:
            needed = grid_requirement(market, unit.grid)
            initial, maintenance = initial + rounded(needed.initial), maintenance + rounded(needed.maintenance)
        if unit.contingency is not None:
            needed = contingency_requirement(market, unit.contingency)
            initial, maintenance = initial + needed.initial, maintenance + needed.maintenance
        if unit.expiry is not None:
            needed = expiry_requirement(market, unit.expiry)
            initial = initial + jnp.where(unit.expiry_applies > 0, needed.initial, 0.0)
            maintenance = maintenance + jnp.where(unit.expiry_applies > 0, needed.maintenance, 0.0)
        return Requirement(_without_last_bits(initial), _without_last_bits(maintenance))

    return jax.vmap(one)(units)


def _without_last_bits(figure: Float[Array, ""]) -> Float[Array, ""]:
    return lax.reduce_precision(figure, exponent_bits=11, mantissa_bits=_UNIT_MANTISSA_BITS)


def _moved_market(unit: UnitArrays, shocks: Float[Array, " factors"], cube: CubeRows, elapsed_years: float) -> RiskUnit:
    stable = rounded(unit.stable_weight[0] * shocks[unit.stable_factor[0]])
    for term in range(1, TERMS):
        stable = stable + rounded(unit.stable_weight[term] * shocks[unit.stable_factor[term]])
    move = UnitMove(
        price=unit.price_weight * shocks[unit.price_factor],
        collateral_price=jax.vmap(lambda row: cube.log_change(shocks, row))(unit.collateral_row),
        vol=unit.vol_weight * shocks[unit.vol_factor],
        stable=stable,
    )
    return moved(unit.market, move, elapsed_years=elapsed_years)


def _unit_maintenance(
    units: UnitArrays, shocks: Float[Array, "scenarios factors"], cube: CubeRows, horizon_years: float
) -> Float[Array, "U scenarios"]:
    """Maintenance requirement of every unit in every scenario: nested grids repriced, in tiles of fixed size."""
    tiles = shocks.reshape(-1, TILE, shocks.shape[1])

    def tile(block: Float[Array, "tile factors"]) -> Float[Array, "tile U"]:
        each = jax.vmap(lambda s: _unit_requirements(units, s, cube, elapsed_years=horizon_years).maintenance)
        return each(block)

    return jnp.moveaxis(lax.map(tile, tiles).reshape(shocks.shape[0], -1), 1, 0)
