"""What the risk units of one portfolio require, today and in every scenario: nested grids repriced in full, float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from .config import TILE
from .cube import TERMS, CubeRows
from .rounding import rounded
from .rules.contingency import contingency_requirement
from .rules.contract_margin import contract_requirement
from .rules.expiry_max_loss import expiry_requirement
from .rules.price_vol_grid import grid_requirement
from .rules.risk_unit import Requirement, RiskUnit, UnitMove, moved
from .unit_batch import UnitArrays

_UNIT_MANTISSA_BITS = 40
"""Requirements of risk units are rounded to 2^-41 relative, 4.5e-13. The compiler contracts the additions inside its
own error function differently in the vectorized body and in the remainder of a loop (seen on the CPU with jax 0.10.2),
so the last of the 52 bits depends on the shapes around an option; after the rounding it no longer shows."""


def unit_requirements(
    units: UnitArrays, shocks: Float[Array, " factors"], cube: CubeRows, *, elapsed_years: ArrayLike
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
        if unit.contract is not None:
            needed = contract_requirement(market, unit.contract)
            initial, maintenance = initial + needed.initial, maintenance + needed.maintenance
        return Requirement(_without_last_bits(initial), _without_last_bits(maintenance))

    return jax.vmap(one)(units)


def _without_last_bits(figure: Float[Array, ""]) -> Float[Array, ""]:
    return lax.reduce_precision(figure, exponent_bits=11, mantissa_bits=_UNIT_MANTISSA_BITS)


def _moved_market(
    unit: UnitArrays, shocks: Float[Array, " factors"], cube: CubeRows, elapsed_years: ArrayLike
) -> RiskUnit:
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


def unit_maintenance(
    units: UnitArrays,
    shocks: Float[Array, "scenarios factors"],
    cube: CubeRows,
    elapsed_years: Float[Array, " scenarios"],
) -> Float[Array, "U scenarios"]:
    """Maintenance requirement of every unit in every scenario: nested grids repriced, in tiles of fixed size."""
    tiles = (shocks.reshape(-1, TILE, shocks.shape[1]), elapsed_years.reshape(-1, TILE))

    def tile(block: tuple[Float[Array, "tile factors"], Float[Array, " tile"]]) -> Float[Array, "tile U"]:
        each = jax.vmap(lambda s, years: unit_requirements(units, s, cube, elapsed_years=years).maintenance)
        return each(*block)

    return jnp.moveaxis(lax.map(tile, tiles).reshape(shocks.shape[0], -1), 1, 0)
