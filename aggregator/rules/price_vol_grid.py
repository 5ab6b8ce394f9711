"""The scenario grid form: the worst profit of one risk unit over a grid of spot and vol moves.

Profits are signed (a loss is negative), requirements positive. Both are in the account's own unit; profits of a grid in
coin are in units of the underlying until the worst of them is turned into the account's unit. Letters: G grid points,
X expiries, O options, C collaterals, F further delta-one holdings. Options are valued by Black-76 on their forward,
discounted at max(rate, 0).

Sources of the rule: derivexyz/v2-core @7736900d, PMRM_2.sol and PMRMLib_2.sol (rules only); Deribit API reference of
private/pme/simulate (profits in coin, dampener, rounding); Paradex documentation and SDK (profits against the mark).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..pricing import DAYS_PER_YEAR, black76_price
from ..rounding import rounded
from ..rule_forms import GridPoint, PriceVolGrid
from .delta_charges import (
    DeltaCharges,
    delta_floor,
    delta_shock,
    minimum_charge,
    pack_delta_charges,
    roll_shock,
    slices_of,
    unit_deltas,
)
from .risk_unit import DeltaOne, Requirement, RiskUnit, expiry_sums, ordered_sum

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
    vol_move: Float[Array, " G"]
    """The point's own relative move of the vol; 0 where its direction decides."""
    dampening: Float[Array, " G"]
    dampener: Float[Array, " G"]
    """Dollars that a profit or loss moves towards zero."""

    vol_range_up: Float[Array, ""]
    vol_range_down: Float[Array, ""]
    short_term_power: Float[Array, ""]
    long_term_power: Float[Array, ""]
    dte_floor_days: Float[Array, ""]
    min_vol_up: Float[Array, ""]
    short_below_30_days: Bool[Array, ""]

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
    settlement_scales_profit: Bool[Array, ""]
    in_coin: Bool[Array, ""]
    rounding: Float[Array, ""]
    """Ten to the number of digits of the worst profit; 0 where it is not rounded."""
    against_mark: Bool[Array, ""]
    forward_on_spot: Bool[Array, ""]
    reported_worst: Float[Array, ""]
    reported_add_on: Float[Array, ""]
    look_ahead_years: Float[Array, ""] | None
    """None where no time passes in any grid of the book, which spares a square root per option and point."""
    charges: DeltaCharges | None


class _ExpiryValues(NamedTuple):
    """Value of each expiry's options, one row per grid point and at today's and the two basis prices; in coin where the
    grid is.
    """

    grid: Float[Array, "G X"]
    basis_up: Float[Array, " X"]
    basis_down: Float[Array, " X"]
    today: Float[Array, " X"]
    reference: Float[Array, " X"]
    """What the profit of a grid point is measured against: `today`, or what the venue's marks say of it."""


def pack_grid(
    parameters: PriceVolGrid, points: int, *, slices: int | None = None, looks_ahead: bool | None = None
) -> GridParameters:
    """`parameters` as NumPy float64 arrays with `points` grid points.

    An absent skew, basis or peg rule is packed as one that charges nothing, and so are the charges by delta in a book
    that has some, with room for `slices` (0: none has any), and the look-ahead in one that `looks_ahead`; left out,
    both are as this grid needs them. Raises `ValueError` when the grid needs more than what is reserved, or its minimum
    charge has no proper slices.
    """
    count = len(parameters.scenarios)
    if count > points:
        raise ValueError(f"the grid has {count} points, more than the {points} that were reserved")
    ahead = float(parameters.look_ahead_days) / DAYS_PER_YEAR
    if looks_ahead is False and ahead:
        raise ValueError("the grid looks ahead, for which nothing was reserved")
    shock, discount, skew, basis, peg = (
        parameters.vol_shock,
        parameters.discount,
        parameters.skew,
        parameters.basis,
        parameters.peg_loss,
    )

    def number(value: Decimal | float) -> Any:
        return np.asarray(float(value), np.float64)

    look_ahead: Any = number(ahead) if (ahead if looks_ahead is None else looks_ahead) else None

    def flag(value: bool) -> Any:
        return np.asarray(value, np.bool_)

    def points_of(values: list[Any], fill: float, dtype: type) -> Any:
        return np.array(values + [fill] * (points - count), dtype)

    return GridParameters(
        spot=points_of([float(p.spot) for p in parameters.scenarios], 1.0, np.float64),
        vol_direction=points_of([_direction(p) for p in parameters.scenarios], VOL_NONE, np.int32),
        vol_move=points_of([float(p.vol_move or 0) for p in parameters.scenarios], 0.0, np.float64),
        dampening=points_of([float(p.dampening) for p in parameters.scenarios], 0.0, np.float64),
        dampener=points_of([float(p.dampener) for p in parameters.scenarios], 0.0, np.float64),
        vol_range_up=number(shock.range_up),
        vol_range_down=number(shock.range_down),
        short_term_power=number(shock.short_term_power),
        long_term_power=number(shock.long_term_power),
        dte_floor_days=number(shock.dte_floor_days),
        min_vol_up=number(shock.min_vol_up),
        short_below_30_days=flag(shock.short_below_30_days),
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
        settlement_scales_profit=flag(parameters.settlement_scales_profit),
        in_coin=flag(parameters.profit_in == "coin"),
        rounding=number(0 if parameters.round_digits is None else Decimal(10) ** parameters.round_digits),
        against_mark=flag(parameters.value_today == "mark"),
        forward_on_spot=flag(parameters.forward == "spot"),
        reported_worst=number(parameters.reported_worst),
        reported_add_on=number(parameters.reported_add_on),
        look_ahead_years=look_ahead,
        charges=pack_delta_charges(parameters, slices_of(parameters) if slices is None else slices),
    )


def _direction(point: GridPoint) -> int:
    """Code of the point's vol direction; a point with a vol move of its own keeps only a rotation."""
    if point.vol_move is not None and not point.vol.startswith("skew"):
        return VOL_NONE
    return _VOL_CODES[point.vol]


def discount_factors(unit: RiskUnit) -> Float[Array, " X"]:
    """Discount factor of each expiry: exp(-max(rate, 0) T)."""
    return jnp.exp(-jnp.maximum(unit.expiry_rate, 0.0) * unit.expiry_years)


def option_model_prices(unit: RiskUnit) -> Float[Array, " O"]:
    """Discounted Black-76 price of each option, in the money of its forward per unit of the underlying."""
    expiry = unit.option_expiry
    return jax.vmap(_price)(
        unit.expiry_forward[expiry],
        unit.option_strike,
        unit.expiry_years[expiry],
        unit.option_vol,
        unit.option_is_call,
        discount_factors(unit)[expiry],
    )


def mark_offsets(unit: RiskUnit) -> Float[Array, " O"]:
    """What the venue's mark adds to each option's model price, in the money of its forward; 0 without quotes."""
    quotes = unit.option_quotes
    if quotes is None:
        return jnp.zeros_like(unit.option_quantity)
    forward = unit.expiry_forward[unit.option_expiry]
    return rounded(jnp.where(quotes.is_inverse, quotes.mark_offset * forward, quotes.mark_offset))


def option_mark_values(unit: RiskUnit) -> Float[Array, " O"]:
    """Signed value of each option position, account unit: quantity times price; 0 for padding.

    The price is discounted Black-76 plus the offset to the venue's mark, if any. An inverse option is worth its coins,
    the price over the forward, at the index.
    """
    price = option_model_prices(unit)
    if unit.option_quotes is not None:
        quotes = unit.option_quotes
        price = rounded(price + mark_offsets(unit)) * unit.in_account_unit(quotes.money_usd)
        over_forward = unit.spot / _safe(unit.expiry_forward)
        price = jnp.where(quotes.is_inverse, price * over_forward[unit.option_expiry], price)
    return rounded(unit.option_quantity * price)


def option_mark_value(unit: RiskUnit) -> Float[Array, ""]:
    """Signed value of all options of the unit, account unit."""
    return ordered_sum(expiry_sums(option_mark_values(unit), unit))


def collateral_values(unit: RiskUnit) -> Float[Array, " C"]:
    """Value of each collateral in the account's unit: quantity * price / stable price."""
    return unit.collateral_quantity * unit.collateral_price / unit.stable_price


def grid_profits(unit: RiskUnit, parameters: GridParameters) -> Float[Array, " G"]:
    """Profit of the unit at each grid point, dampened; 0 at padded points. Account unit, or coins of a grid in coin.

    expiry: dampening * (discount(sign of the shocked value) * shocked value - value today), minus its size if skewed;
    perp: dampening * quantity * price * (spot - 1); collateral in the grid and futures likewise on their values. In
    coin an option is worth its value over the (moved) forward, a linear or spot profit counts at the moved spot, and an
    inverse contract gains quantity * (1 - 1 / spot). The total then moves towards zero by the dampener.
    """
    return _grid_profits(unit, parameters, _expiry_values(unit, parameters))


def basis_contingency(unit: RiskUnit, parameters: GridParameters) -> Float[Array, ""]:
    """Loss (<= 0) of each expiry's worse forward move alone, without vol shock or static discount; unit as the profits.

    sum over expiries of min(V(up) - V, V(down) - V, 0) * (add factor + mult factor * T)
    """
    return _basis_contingency(unit, parameters, _expiry_values(unit, parameters))


def grid_requirement(unit: RiskUnit, parameters: GridParameters) -> Requirement:
    """Requirement of the grid: the factor of the level times its loss with all charges (see `rule_forms.PriceVolGrid`).

    The loss is the worst of the grid (rounded where the venue rounds it), the basis contingency, the delta floor and
    what the venue reports; roll shock, delta shock and the reported add-on come on top, the minimum charge bounds the
    total from below. The initial factor grows by max(0, peg threshold - stable price) * peg factor.
    """
    values = _expiry_values(unit, parameters)
    worst = jnp.minimum(jnp.min(_grid_profits(unit, parameters, values)), 0.0)
    digits = jnp.where(parameters.rounding > 0, parameters.rounding, 1.0)
    worst = jnp.where(parameters.rounding > 0, jnp.round(worst * digits) / digits, worst)
    worst = jnp.minimum(worst, _basis_contingency(unit, parameters, values))
    loss = rounded(-worst * jnp.where(parameters.in_coin, unit.coin_price(), 1.0))
    loss = jnp.maximum(loss, parameters.reported_worst)
    if parameters.charges is None:
        total = loss + parameters.reported_add_on
    else:
        charges, deltas = (
            parameters.charges,
            unit_deltas(unit, discount_factors(unit), on_spot=parameters.charges.on_spot),
        )
        loss = jnp.maximum(loss, delta_floor(unit, deltas, charges))
        added = rounded(roll_shock(unit, deltas, charges)) + rounded(delta_shock(unit, deltas, charges))
        total = jnp.maximum(loss + added + parameters.reported_add_on, minimum_charge(unit, deltas, charges))
    peg_loss = rounded(jnp.maximum(0.0, parameters.peg_threshold - unit.stable_price) * parameters.peg_factor)
    return Requirement(
        initial=(parameters.initial_factor + peg_loss) * total,
        maintenance=parameters.maintenance_factor * total,
    )


def _safe(price: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A divisor: 1 in place of the prices of 0 of empty units."""
    return jnp.where(price > 0, price, 1.0)


def _price(forward: Array, strike: Array, years: Array, vol: Array, is_call: Array, discount: Array) -> Array:
    return black76_price(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)


def _expiry_values(unit: RiskUnit, parameters: GridParameters) -> _ExpiryValues:
    spot = jnp.concatenate(
        [parameters.spot, jnp.stack([parameters.basis_spot_up, parameters.basis_spot_down, jnp.float64(1.0)])]
    )
    points, options = spot.shape[0], unit.option_quantity.shape[0]

    forward = _shocked_forward(unit, parameters, spot)
    vol = _shocked_vol(unit, parameters)
    expiry = unit.option_expiry
    ahead = parameters.look_ahead_years
    if ahead is None:
        years, discount, each = unit.expiry_years[expiry], discount_factors(unit)[expiry], None
    else:
        passed = jnp.concatenate([jnp.full(points - 3, ahead), jnp.zeros(3, jnp.float64)])
        left = jnp.maximum(unit.expiry_years[None, :] - passed[:, None], 0.0)
        rate = jnp.maximum(unit.expiry_rate, 0.0)
        spent = unit.expiry_years[None, :] - left
        forward = jnp.where(parameters.forward_on_spot, forward * jnp.exp(-rate[None, :] * spent), forward)
        years, discount, each = left[:, expiry], jnp.exp(-rate[None, :] * left)[:, expiry], 0
    across_options = jax.vmap(_price, in_axes=(0, 0, 0, 0, 0, 0))
    across_points = jax.vmap(across_options, in_axes=(0, None, each, 0, None, each))
    prices = across_points(forward[:, expiry], unit.option_strike, years, vol, unit.option_is_call, discount)
    quantity = unit.option_quantity
    if unit.option_quotes is not None:
        money = unit.in_account_unit(unit.option_quotes.money_usd)
        quantity = jnp.where(parameters.in_coin, quantity, rounded(quantity * money))
    values = expiry_sums(jnp.broadcast_to(quantity, (points, options)) * prices, unit)
    reference = values[-1]
    if unit.option_quotes is not None:
        beside_model = expiry_sums(quantity * mark_offsets(unit), unit)
        reference = reference + jnp.where(parameters.against_mark, beside_model, 0.0)
    values = jnp.where(parameters.in_coin, values / _safe(forward), values)
    reference = jnp.where(parameters.in_coin, reference / _safe(unit.expiry_forward), reference)
    return _ExpiryValues(values[:-3], values[-3], values[-2], values[-1], reference)


def _open_share(unit: RiskUnit, parameters: GridParameters) -> Float[Array, " X"]:
    """Share of each expiry's settlement average that is still open; 1 outside of its window."""
    window = parameters.settlement_window_s
    seconds = unit.expiry_years * (DAYS_PER_YEAR * _SECONDS_PER_DAY)
    return jnp.where(window > 0, jnp.clip(seconds / jnp.where(window > 0, window, 1.0), 0.0, 1.0), 1.0)


def _shares(unit: RiskUnit, parameters: GridParameters) -> tuple[Float[Array, " X"], Float[Array, " X"]]:
    """(share of a spot move that reaches each expiry's forward, share of its profit that counts)."""
    open_share, whole = _open_share(unit, parameters), jnp.ones_like(unit.expiry_years)
    scales = parameters.settlement_scales_profit
    return jnp.where(scales, whole, open_share), jnp.where(scales, open_share, whole)


def _shocked_forward(unit: RiskUnit, parameters: GridParameters, spot: Float[Array, " P"]) -> Float[Array, "P X"]:
    """Forward of each expiry with its open share moved; the share that is already averaged into settlement stays."""
    moving, _ = _shares(unit, parameters)
    return rounded(unit.expiry_forward[None, :] * (1.0 + rounded(moving[None, :] * (spot[:, None] - 1.0))))


def _shocked_vol(unit: RiskUnit, parameters: GridParameters) -> Float[Array, "P O"]:
    """Vol of each option at every grid point, and unmoved at the three points of basis and today."""
    expiry = unit.option_expiry
    days = unit.expiry_years * DAYS_PER_YEAR
    # A floor of 0 on an expired option would divide by 0; the venue's clock counts whole seconds.
    tau = _TERM_DAYS / jnp.maximum(jnp.maximum(days, parameters.dte_floor_days), _ONE_SECOND_DAYS)
    is_short = jnp.where(parameters.short_below_30_days, days < _TERM_DAYS, days <= _TERM_DAYS)
    move = tau ** jnp.where(is_short, parameters.short_term_power, parameters.long_term_power)
    up = jnp.maximum(parameters.min_vol_up, unit.option_vol * (1.0 + rounded(parameters.vol_range_up * move))[expiry])
    down = unit.option_vol * jnp.maximum(0.0, 1.0 - rounded(parameters.vol_range_down * move))[expiry]
    linear, absolute = _skew_multipliers(unit, parameters)
    by_direction = jnp.stack([up, down, unit.option_vol, unit.option_vol * linear, unit.option_vol * absolute])

    unmoved = jnp.zeros(3, jnp.float64)
    own_move = jnp.concatenate([parameters.vol_move, unmoved])[:, None]
    direction = jnp.concatenate([parameters.vol_direction, jnp.full(3, VOL_NONE, parameters.vol_direction.dtype)])
    growth = jnp.maximum(0.0, 1.0 + rounded(own_move * move[None, :]))[:, expiry]
    vol = rounded(by_direction[direction]) * growth
    return rounded(jnp.where(own_move > 0, jnp.maximum(parameters.min_vol_up, vol), vol))


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
    _, counting = _shares(unit, parameters)
    expiry_profit = rounded((rounded(discount * values.grid) - values.reference[None, :]) * counting[None, :])
    expiry_profit = expiry_profit * parameters.dampening[:, None]
    is_skew = (parameters.vol_direction == SKEW_LINEAR) | (parameters.vol_direction == SKEW_ABS)
    # A rotation the other way round would turn an expiry's gain into its loss: each expiry takes the worse one.
    expiry_profit = jnp.where(is_skew[:, None], -jnp.abs(expiry_profit), expiry_profit)

    spot_move = parameters.dampening * (parameters.spot - 1.0)
    in_grid = ordered_sum(collateral_values(unit) * unit.collateral_in_grid)
    delta_one = rounded(unit.perp_quantity * unit.perp_price) + in_grid
    profit = ordered_sum(expiry_profit) + rounded(spot_move * delta_one * _per_profit_money(unit, parameters))
    if unit.delta_one is not None:
        further = ordered_sum(_delta_one_profits(unit, unit.delta_one, parameters))
        profit = profit + rounded(parameters.dampening * further)
    return _towards_zero(
        profit, parameters.dampener / _safe(jnp.where(parameters.in_coin, unit.spot, unit.stable_price))
    )


def _per_profit_money(unit: RiskUnit, parameters: GridParameters) -> Float[Array, " G"]:
    """What a profit in the account's unit is in that of the grid: 1, or one over the moved price of the coin."""
    return jnp.where(parameters.in_coin, 1.0 / _safe(unit.coin_price() * parameters.spot), 1.0)


def _delta_one_profits(unit: RiskUnit, held: DeltaOne, parameters: GridParameters) -> Float[Array, "G F"]:
    """Profit of each further delta-one holding at each grid point, before dampening.

    A dated one moves and counts in the settlement window as the options of its expiry do.
    """
    moving, counting = _shares(unit, parameters)
    dated = held.expiry >= 0
    row = jnp.maximum(held.expiry, 0)
    move = rounded((parameters.spot - 1.0)[:, None] * jnp.where(dated, moving[row], 1.0)[None, :])
    value = rounded(held.quantity * held.price * unit.in_account_unit(held.money_usd))
    in_money = value[None, :] * move * _per_profit_money(unit, parameters)[:, None]
    in_coins = held.quantity[None, :] * move / _safe(1.0 + move)
    profit = jnp.where(parameters.in_coin & held.is_inverse[None, :], in_coins, in_money)
    return profit * jnp.where(dated, counting[row], 1.0)[None, :]


def _towards_zero(value: Float[Array, " G"], amount: Float[Array, " G"]) -> Float[Array, " G"]:
    return jnp.where(value > 0, jnp.maximum(value - amount, 0.0), jnp.minimum(value + amount, 0.0))


def _basis_contingency(unit: RiskUnit, parameters: GridParameters, values: _ExpiryValues) -> Float[Array, ""]:
    worse = jnp.minimum(values.basis_up - values.today, values.basis_down - values.today)
    factor = parameters.basis_add_factor + rounded(parameters.basis_mult_factor * unit.expiry_years)
    return ordered_sum(jnp.minimum(worse, 0.0) * factor)
