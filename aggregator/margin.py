"""Equity against requirement of every account of one portfolio, by the venue's own rules, today and in every scenario.

Written for one portfolio; the engine maps it. Today in float64, exact; in scenarios the *changes* from today are summed
in float32 and added to today's float64 figures before the verdict, so a large balanced account loses no digits. Rows
are added one by one in their packed order: padding adds zeros behind them, and no reduction is left to the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .batch import PortfolioArrays
from .cube import CubeRows
from .rounding import rounded
from .rules.tiered_notional import tiered_requirement, tiered_requirement_change
from .rules.weighted_value import negative_part_change, weighted_value, weighted_value_change
from .unit_margin import unit_maintenance, unit_requirements


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
        needed = unit_requirements(units, shocks_today, cube, elapsed_years=0.0)
        initial = accumulate(units.account, lambda u: needed.initial[u], initial)
        maintenance = accumulate(units.account, lambda u: needed.maintenance[u], maintenance)
    return NativeMargin(equity, initial, maintenance)


def _margin_of_rows(portfolio: PortfolioArrays, today: Float[Array, " rows"]) -> NativeMargin:
    """Every account's figures today without what its risk units require."""
    net = _group_values(portfolio, today)

    def counted(g: Array, step: Float[Array, "G slices"], liability: Float[Array, " G"]) -> Array:
        return weighted_value(net[g], portfolio.group_floor[g], step[g], liability[g])

    def at_maintenance(g: Array) -> Array:
        return counted(g, portfolio.group_maintenance_step, portfolio.group_liability_maintenance)

    def at_initial(g: Array) -> Array:
        return counted(g, portfolio.group_initial_step, portfolio.group_liability_initial)

    def debt(g: Array) -> Array:
        return jnp.maximum(-net[g], 0.0)

    equity = accumulate(portfolio.group_account, at_maintenance, portfolio.fixed_equity)
    # Equity counts at the maintenance weights; what the initial ones take away more has to be there as well.
    initial = accumulate(portfolio.group_account, lambda g: at_maintenance(g) - at_initial(g), portfolio.fixed_initial)
    initial = accumulate(portfolio.group_account, lambda g: rounded(portfolio.group_debt_initial[g] * debt(g)), initial)
    maintenance = accumulate(
        portfolio.group_account,
        lambda g: rounded(portfolio.group_debt_maintenance[g] * debt(g)),
        portfolio.fixed_maintenance,
    )
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
        lambda t: rounded(portfolio.tier_conversion[t] * _tier_maintenance(portfolio, t)),
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
    horizon_years: ArrayLike,
) -> ScenarioMargin:
    """Equity and maintenance requirement of every account at the horizon of each scenario.

    `horizon_years` is one for all or [scenarios].
    """
    equity_change, requirement_change = _native_changes(portfolio, today, change)
    of_rows = _margin_of_rows(portfolio, today)
    requirement = of_rows.maintenance[:, None] + requirement_change.astype(jnp.float64)
    if portfolio.units is not None:
        elapsed = jnp.broadcast_to(jnp.asarray(horizon_years, jnp.float64), shocks.shape[:1])
        in_units = unit_maintenance(portfolio.units, shocks, cube, elapsed)
        requirement = accumulate(portfolio.units.account, lambda u: in_units[u], requirement)
    return ScenarioMargin(of_rows.equity[:, None] + equity_change.astype(jnp.float64), requirement)


def liquidated(portfolio: PortfolioArrays, margin: ScenarioMargin) -> Bool[Array, "A scenarios"]:
    """Whether the venue liquidates each account at the horizon of each scenario."""
    verdict = is_liquidated(
        margin.equity,
        margin.maintenance,
        trigger=portfolio.trigger[:, None],
        at_or_below=portfolio.at_or_below[:, None],
        needs_requirement=portfolio.needs_requirement[:, None],
    )
    return verdict & portfolio.account_is_real[:, None]


def is_liquidated(equity: Any, requirement: Any, *, trigger: Any, at_or_below: Any, needs_requirement: Any) -> Any:
    """The verdict of `rule_forms.Verdict` on figures in one unit: one account's floats and bools, or arrays of one
    shape.

    With a requirement: equity < trigger * requirement (or <=, as the verdict says). Without one: negative equity, or
    nothing where the venue needs a requirement. A figure that is not finite is no requirement.
    """
    # Operators alone, so that a result row and a scenario are judged by the same line; `^ True` negates both kinds.
    needed = trigger * requirement
    required = requirement > 0.0
    short = (equity < needed) | (at_or_below & (equity == needed))
    return (required & short) | ((required ^ True) & (needs_requirement ^ True) & (equity < 0.0))


def _group_values(portfolio: PortfolioArrays, today: Float[Array, " rows"]) -> Float[Array, " G"]:
    value = rounded(portfolio.native_coefficient * today[portfolio.native_row])
    return accumulate(
        portfolio.native_group, lambda leg: value[leg], jnp.zeros(portfolio.group_account.shape[0], jnp.float64)
    )


def _tier_maintenance(portfolio: PortfolioArrays, tier: Array) -> Array:
    """Maintenance requirement of one position in its settlement asset."""
    by_tiers = tiered_requirement(
        portfolio.tier_notional[tier],
        portfolio.tier_floor[tier],
        portfolio.tier_step[tier],
        portfolio.tier_jump[tier],
    )
    return jnp.maximum(by_tiers, portfolio.tier_minimum[tier])


def _tier_initial(portfolio: PortfolioArrays, tier: Array) -> Array:
    """The largest of notional at the position's own rate (chosen leverage, override), the tiers' initial requirement,
    the minimum, and the maintenance requirement where the venue asks for no less.
    """
    notional = portfolio.tier_initial_notional[tier]
    by_tiers = tiered_requirement(
        notional, portfolio.tier_floor[tier], portfolio.tier_initial_step[tier], portfolio.tier_initial_jump[tier]
    )
    at_least = jnp.where(
        portfolio.tier_at_least_maintenance[tier], _tier_maintenance(portfolio, tier), portfolio.tier_minimum[tier]
    )
    own = rounded(notional * portfolio.tier_inverse_leverage[tier])
    return rounded(portfolio.tier_conversion[tier] * jnp.maximum(jnp.maximum(own, by_tiers), at_least))


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
            net_today[g],
            net[g],
            portfolio.group_floor[g],
            portfolio.group_maintenance_step[g],
            portfolio.group_liability_maintenance[g],
            floor_change=change[portfolio.group_floor_row[g]],
        ),
        jnp.zeros((accounts, scenarios), single),
    )
    debt_rate = portfolio.group_debt_maintenance.astype(single)
    requirement = accumulate(
        portfolio.group_account,
        lambda g: rounded(-debt_rate[g] * negative_part_change(net_today[g], net[g])),
        jnp.zeros((accounts, scenarios), single),
    )
    weight = portfolio.requirement_maintenance.astype(single)
    requirement = accumulate(
        portfolio.requirement_account,
        lambda r: rounded(weight[r] * change[portfolio.requirement_row[r]]),
        requirement,
    )

    def tier_change(t: Array) -> Array:
        """Requirement in the account's unit: (M + dM) * c (1 + dc) - M c = c (dM + (M + dM) dc)."""
        floor, step, jump = portfolio.tier_floor[t], portfolio.tier_step[t], portfolio.tier_jump[t]
        notional, least = portfolio.tier_notional[t], portfolio.tier_minimum[t]
        moved_by = notional.astype(single) * change[portfolio.tier_row[t]]
        by_tiers = tiered_requirement(notional, floor, step, jump)
        gain = jax.vmap(lambda d: tiered_requirement_change(notional, d, floor, step, jump))(moved_by)
        # max(M + dM, least) - max(M, least), again without a difference of large numbers.
        room = (least - by_tiers).astype(single)
        gain = jnp.maximum(gain, room) - jnp.maximum(room, 0.0)
        before = jnp.maximum(by_tiers, least).astype(single)
        drift = change[portfolio.tier_conversion_row[t]]
        return rounded(portfolio.tier_conversion[t].astype(single) * (gain + rounded((before + gain) * drift)))

    return equity, accumulate(portfolio.tier_account, tier_change, requirement)
