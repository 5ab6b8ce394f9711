"""The scenario grid form: the worst profit of one risk unit over a grid of spot and vol moves.

All money in the account's own unit, profits signed (a loss is negative), requirements positive. Letters: G grid points,
X expiries, O options, C collaterals. Options are valued by Black-76 on their forward, discounted at max(rate, 0).

Source of the rule: derivexyz/v2-core @7736900d, PMRM_2.sol and PMRMLib_2.sol (rules only).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..pricing import DAYS_PER_YEAR, black76_price
from ..rounding import rounded
from ..rule_forms import PriceVolGrid
from .risk_unit import Requirement, RiskUnit, expiry_sums, ordered_sum

VOL_UP, VOL_DOWN, VOL_NONE, SKEW_LINEAR, SKEW_ABS = range(5)
_VOL_CODES = {"up": VOL_UP, "down": VOL_DOWN, "none": VOL_NONE, "skew_linear": SKEW_LINEAR, "skew_abs": SKEW_ABS}

_SECONDS_PER_DAY = 86400.0
_TERM_DAYS = 30.0
# The chain's arithmetic has 18 decimals and refuses a k* of 0; the smallest positive one keeps its limit without 0/0.
_LEAST_K_STAR = 1e-18
_ONE_SECOND_DAYS = 1.0 / _SECONDS_PER_DAY


class GridParameters(eqx.Module):
    """`PriceVolGrid` as arrays of fixed shape; a padded grid point has dampening 0 and therefore profit 0."""

    spot: Float[Array, " G"]
    vol_direction: Int[Array, " G"]
    dampening: Float[Array, " G"]

    vol_range_up: Float[Array, ""]
    vol_range_down: Float[Array, ""]
    short_term_power: Float[Array, ""]
    long_term_power: Float[Array, ""]
    dte_floor_days: Float[Array, ""]
    min_vol_up: Float[Array, ""]

    skew_linear_base_cap: Float[Array, ""]
    skew_linear_c_base: Float[Array, ""]
    skew_abs_base_cap: Float[Array, ""]
    skew_abs_c_base: Float[Array, ""]
    skew_min_k_star: Float[Array, ""]
    skew_width_scale: Float[Array, ""]
    skew_vol_param_static: Float[Array, ""]
    skew_vol_param_scale: Float[Array, ""]

    long_base: Float[Array, ""]
    long_rate_mult: Float[Array, ""]
    long_rate_add: Float[Array, ""]
    short_base: Float[Array, ""]
    short_rate_mult: Float[Array, ""]
    short_rate_add: Float[Array, ""]

    initial_factor: Float[Array, ""]
    maintenance_factor: Float[Array, ""]
    basis_spot_up: Float[Array, ""]
    basis_spot_down: Float[Array, ""]
    basis_add_factor: Float[Array, ""]
    basis_mult_factor: Float[Array, ""]
    peg_threshold: Float[Array, ""]
    peg_factor: Float[Array, ""]
    settlement_window_s: Float[Array, ""]


class _ExpiryValues(NamedTuple):
    """Value of each expiry's options, one row per grid point and at today's and the two basis prices."""

    grid: Float[Array, "G X"]
    basis_up: Float[Array, " X"]
    basis_down: Float[Array, " X"]
    today: Float[Array, " X"]


def pack_grid(parameters: PriceVolGrid, points: int) -> GridParameters:
    """`parameters` as NumPy float64 arrays with `points` grid points.

    An absent skew, basis or peg rule is packed as one that charges nothing. Raises `ValueError` when the grid has more
    points than `points`.
    """
    count = len(parameters.scenarios)
    if count > points:
        raise ValueError(f"the grid has {count} points, more than the {points} that were reserved")
    shock, discount, skew, basis, peg = (
        parameters.vol_shock,
        parameters.discount,
        parameters.skew,
        parameters.basis,
        parameters.peg_loss,
    )

    def number(value: Decimal | int) -> Any:
        return np.asarray(float(value), np.float64)

    def points_of(values: list[Any], fill: float, dtype: type) -> Any:
        return np.array(values + [fill] * (points - count), dtype)

    return GridParameters(
        spot=points_of([float(p.spot) for p in parameters.scenarios], 1.0, np.float64),
        vol_direction=points_of([_VOL_CODES[p.vol] for p in parameters.scenarios], VOL_NONE, np.int32),
        dampening=points_of([float(p.dampening) for p in parameters.scenarios], 0.0, np.float64),
        vol_range_up=number(shock.range_up),
        vol_range_down=number(shock.range_down),
        short_term_power=number(shock.short_term_power),
        long_term_power=number(shock.long_term_power),
        dte_floor_days=number(shock.dte_floor_days),
        min_vol_up=number(shock.min_vol_up),
        skew_linear_base_cap=number(skew.linear_base_cap if skew else 0),
        skew_linear_c_base=number(skew.linear_c_base if skew else 0),
        skew_abs_base_cap=number(skew.abs_base_cap if skew else 0),
        skew_abs_c_base=number(skew.abs_c_base if skew else 0),
        skew_min_k_star=number(skew.min_k_star if skew else 1),
        skew_width_scale=number(skew.width_scale if skew else 0),
        skew_vol_param_static=number(skew.vol_param_static if skew else 0),
        skew_vol_param_scale=number(skew.vol_param_scale if skew else 0),
        long_base=number(discount.long_base),
        long_rate_mult=number(discount.long_rate_mult),
        long_rate_add=number(discount.long_rate_add),
        short_base=number(discount.short_base),
        short_rate_mult=number(discount.short_rate_mult),
        short_rate_add=number(discount.short_rate_add),
        initial_factor=number(parameters.initial_factor),
        maintenance_factor=number(parameters.maintenance_factor),
        basis_spot_up=number(basis.spot_up if basis else 1),
        basis_spot_down=number(basis.spot_down if basis else 1),
        basis_add_factor=number(basis.add_factor if basis else 0),
        basis_mult_factor=number(basis.mult_factor if basis else 0),
        peg_threshold=number(peg.threshold if peg else 0),
        peg_factor=number(peg.factor if peg else 0),
        settlement_window_s=number(parameters.settlement_window_s),
    )


def discount_factors(unit: RiskUnit) -> Float[Array, " X"]:
    """Discount factor of each expiry: exp(-max(rate, 0) T)."""
    return jnp.exp(-jnp.maximum(unit.expiry_rate, 0.0) * unit.expiry_years)


def option_mark_values(unit: RiskUnit) -> Float[Array, " O"]:
    """Signed value of each option position, account unit: quantity times discounted Black-76 price; 0 for padding."""
    expiry = unit.option_expiry
    prices = jax.vmap(_price)(
        unit.expiry_forward[expiry],
        unit.option_strike,
        unit.expiry_years[expiry],
        unit.option_vol,
        unit.option_is_call,
        discount_factors(unit)[expiry],
    )
    return rounded(unit.option_quantity * prices)


def option_mark_value(unit: RiskUnit) -> Float[Array, ""]:
    """Signed value of all options of the unit, account unit."""
    return ordered_sum(expiry_sums(option_mark_values(unit), unit))


def collateral_values(unit: RiskUnit) -> Float[Array, " C"]:
    """Value of each collateral in the account's unit: quantity * price / stable price."""
    return unit.collateral_quantity * unit.collateral_price / unit.stable_price


def grid_profits(unit: RiskUnit, parameters: GridParameters) -> Float[Array, " G"]:
    """Profit of the unit at each grid point, dampened; 0 at padded points.

    expiry: dampening * (discount(sign of the shocked value) * shocked value - value today), minus its size if skewed;
    perp: dampening * quantity * price * (spot - 1); collateral in the grid likewise on its value.
    """
    return _grid_profits(unit, parameters, _expiry_values(unit, parameters))


def basis_contingency(unit: RiskUnit, parameters: GridParameters) -> Float[Array, ""]:
    """Loss (<= 0) of each expiry's worse forward move alone, without vol shock or static discount.

    sum over expiries of min(V(up) - V, V(down) - V, 0) * (add factor + mult factor * T)
    """
    return _basis_contingency(unit, parameters, _expiry_values(unit, parameters))


def grid_requirement(unit: RiskUnit, parameters: GridParameters) -> Requirement:
    """Requirement of the grid: minus the factor of the level times the worse of grid and basis contingency (<= 0).

    The initial factor grows by max(0, peg threshold - stable price) * peg factor.
    """
    values = _expiry_values(unit, parameters)
    worst = jnp.minimum(jnp.min(_grid_profits(unit, parameters, values)), _basis_contingency(unit, parameters, values))
    peg_loss = rounded(jnp.maximum(0.0, parameters.peg_threshold - unit.stable_price) * parameters.peg_factor)
    return Requirement(
        initial=-(parameters.initial_factor + peg_loss) * worst,
        maintenance=-parameters.maintenance_factor * worst,
    )


def _price(forward: Array, strike: Array, years: Array, vol: Array, is_call: Array, discount: Array) -> Array:
    return black76_price(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)


def _expiry_values(unit: RiskUnit, parameters: GridParameters) -> _ExpiryValues:
    spot = jnp.concatenate(
        [parameters.spot, jnp.stack([parameters.basis_spot_up, parameters.basis_spot_down, jnp.float64(1.0)])]
    )
    direction = jnp.concatenate([parameters.vol_direction, jnp.full(3, VOL_NONE, parameters.vol_direction.dtype)])
    points, options = spot.shape[0], unit.option_quantity.shape[0]

    forward = _shocked_forward(unit, parameters, spot)
    vol = _shocked_vol(unit, parameters, direction)
    expiry = unit.option_expiry
    across_options = jax.vmap(_price, in_axes=(0, 0, 0, 0, 0, 0))
    across_points = jax.vmap(across_options, in_axes=(0, None, None, 0, None, None))
    prices = across_points(
        forward[:, expiry],
        unit.option_strike,
        unit.expiry_years[expiry],
        vol,
        unit.option_is_call,
        discount_factors(unit)[expiry],
    )
    values = expiry_sums(jnp.broadcast_to(unit.option_quantity, (points, options)) * prices, unit)
    return _ExpiryValues(values[:-3], values[-3], values[-2], values[-1])


def _shocked_forward(unit: RiskUnit, parameters: GridParameters, spot: Float[Array, " P"]) -> Float[Array, "P X"]:
    """Forward of each expiry with its open share moved; the share that is already averaged into settlement stays."""
    window = parameters.settlement_window_s
    seconds = unit.expiry_years * (DAYS_PER_YEAR * _SECONDS_PER_DAY)
    open_share = jnp.where(window > 0, jnp.clip(seconds / jnp.where(window > 0, window, 1.0), 0.0, 1.0), 1.0)
    return rounded(unit.expiry_forward[None, :] * (1.0 + rounded(open_share[None, :] * (spot[:, None] - 1.0))))


def _shocked_vol(unit: RiskUnit, parameters: GridParameters, direction: Int[Array, " P"]) -> Float[Array, "P O"]:
    expiry = unit.option_expiry
    days = unit.expiry_years * DAYS_PER_YEAR
    # A floor of 0 on an expired option would divide by 0; the venue's clock counts whole seconds.
    tau = _TERM_DAYS / jnp.maximum(jnp.maximum(days, parameters.dte_floor_days), _ONE_SECOND_DAYS)
    move = tau ** jnp.where(days <= _TERM_DAYS, parameters.short_term_power, parameters.long_term_power)
    up = jnp.maximum(parameters.min_vol_up, unit.option_vol * (1.0 + rounded(parameters.vol_range_up * move))[expiry])
    down = unit.option_vol * jnp.maximum(0.0, 1.0 - rounded(parameters.vol_range_down * move))[expiry]
    linear, absolute = _skew_multipliers(unit, parameters)
    by_direction = jnp.stack([up, down, unit.option_vol, unit.option_vol * linear, unit.option_vol * absolute])
    return rounded(by_direction[direction])


def _skew_multipliers(unit: RiskUnit, parameters: GridParameters) -> tuple[Float[Array, " O"], Float[Array, " O"]]:
    """Vol multipliers (>= 0) of the linear and the absolute rotation of the smile."""
    sqrt_years = jnp.sqrt(unit.expiry_years)
    vol_param = parameters.skew_vol_param_static + rounded(sqrt_years * parameters.skew_vol_param_scale)
    k_star = jnp.maximum(parameters.skew_min_k_star, sqrt_years * parameters.skew_width_scale * vol_param)
    k_star = jnp.maximum(k_star, _LEAST_K_STAR)
    forward = jnp.where(unit.expiry_forward > 0, unit.expiry_forward, 1.0)
    log_moneyness = jnp.log(unit.option_strike / forward[unit.option_expiry])

    def multiplier(k: Array, base_cap: Array, c_base: Array) -> Array:
        cap = (rounded(c_base * sqrt_years) + base_cap)[unit.option_expiry]
        tilt = k * cap / k_star[unit.option_expiry]
        # As the venue does it: a negative cap bounds the other side, so its tilt grows without limit.
        return jnp.maximum(0.0, 1.0 + jnp.where(k >= 0, jnp.minimum(cap, tilt), jnp.maximum(-cap, tilt)))

    return (
        multiplier(log_moneyness, parameters.skew_linear_base_cap, parameters.skew_linear_c_base),
        multiplier(jnp.abs(log_moneyness), parameters.skew_abs_base_cap, parameters.skew_abs_c_base),
    )


def _grid_profits(unit: RiskUnit, parameters: GridParameters, values: _ExpiryValues) -> Float[Array, " G"]:
    years, rate = unit.expiry_years, jnp.maximum(unit.expiry_rate, 0.0)
    long_discount = parameters.long_base * jnp.exp(
        -years * (rounded(rate * parameters.long_rate_mult) + parameters.long_rate_add)
    )
    short_mark_up = jnp.minimum(
        1.0 / discount_factors(unit),
        parameters.short_base
        * jnp.exp(years * (rounded(rate * parameters.short_rate_mult) + parameters.short_rate_add)),
    )
    discount = jnp.where(values.grid >= 0, long_discount[None, :], short_mark_up[None, :])
    expiry_profit = (rounded(discount * values.grid) - values.today[None, :]) * parameters.dampening[:, None]
    is_skew = (parameters.vol_direction == SKEW_LINEAR) | (parameters.vol_direction == SKEW_ABS)
    # A rotation the other way round would turn an expiry's gain into its loss: each expiry takes the worse one.
    expiry_profit = jnp.where(is_skew[:, None], -jnp.abs(expiry_profit), expiry_profit)

    spot_move = parameters.dampening * (parameters.spot - 1.0)
    in_grid = ordered_sum(collateral_values(unit) * unit.collateral_in_grid)
    delta_one = rounded(unit.perp_quantity * unit.perp_price) + in_grid
    return ordered_sum(expiry_profit) + rounded(spot_move * delta_one)


def _basis_contingency(unit: RiskUnit, parameters: GridParameters, values: _ExpiryValues) -> Float[Array, ""]:
    worse = jnp.minimum(values.basis_up - values.today, values.basis_down - values.today)
    factor = parameters.basis_add_factor + rounded(parameters.basis_mult_factor * unit.expiry_years)
    return ordered_sum(jnp.minimum(worse, 0.0) * factor)
