"""Charges of the grid form on deltas: delta floor, roll shock, delta shock and minimum charge of one risk unit.

Charges positive, in the account's own unit; deltas signed, in units of the underlying. Letters: O options, X expiries,
F further delta-one holdings, C collaterals, B slices of the minimum charge. Dollar parameters (the threshold of the
delta shock, the floors of the minimum charge) are dollars; what they charge is turned into the account's unit.

Sources: Paradex documentation and SDK (delta floor); Deribit support, "Portfolio Margin", and API reference of
private/pme/simulate (roll and delta shock); OKX announcements of December 2021 and May 2024 (minimum charge).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..pricing import black76_greeks
from ..rounding import rounded
from ..rule_forms import MinimumCharge, PriceVolGrid
from .risk_unit import DeltaOne, RiskUnit, expiry_sums, ordered_sum, sums_by


class DeltaCharges(eqx.Module):
    """The charges of one grid as arrays; an absent one has rates of 0 and charges nothing."""

    on_spot: Bool[Array, ""]
    """Whether an option's delta is by the spot (Black-Scholes) and not by its discounted forward."""
    floor_unhedged: Float[Array, ""]
    floor_hedged: Float[Array, ""]
    roll_applies: Bool[Array, ""]
    roll_annual_move: Float[Array, ""]
    roll_minimum: Float[Array, ""]
    roll_is_linear: Bool[Array, ""]
    roll_counts_collateral: Bool[Array, ""]
    shock_threshold: Float[Array, ""]
    shock_increment: Float[Array, ""]
    shock_largest: Float[Array, ""]
    minimum_delta_rate: Float[Array, ""]
    minimum_short_option_rate: Float[Array, ""]
    slice_floor: Float[Array, " B"]
    slice_increment: Float[Array, " B"]
    """Factor of the slice less that of the slice below."""


class UnitDeltas(NamedTuple):
    """Deltas of a unit's holdings, one by one."""

    perp: Float[Array, ""]
    delta_one: Float[Array, " F"]
    options: Float[Array, " O"]
    collateral: Float[Array, " C"]
    """Of the collateral that moves with spot inside the grid; 0 for other."""


def has_delta_charges(parameters: PriceVolGrid) -> bool:
    """Whether the grid charges anything by delta."""
    charges = (parameters.delta_floor, parameters.roll, parameters.delta_shock, parameters.minimum)
    return any(charge is not None for charge in charges)


def slices_of(parameters: PriceVolGrid) -> int:
    """Slices that the grid's charges need: 0 without any charge by delta, else at least 1."""
    if not has_delta_charges(parameters):
        return 0
    return len(parameters.minimum.floors) if parameters.minimum else 1


def pack_delta_charges(parameters: PriceVolGrid, slices: int) -> DeltaCharges | None:
    """The charges of `parameters` as NumPy arrays with `slices` slices; None where `slices` is 0.

    Raises `ValueError` when the grid needs more slices, or its floors and factors do not make slices from 0 upwards.
    """
    needed = slices_of(parameters)
    if needed > slices:
        raise ValueError(f"the delta charges have {needed} slices, more than the {slices} that were reserved")
    if slices == 0:
        return None
    floor, roll, shock, minimum = parameters.delta_floor, parameters.roll, parameters.delta_shock, parameters.minimum
    floors, increments = _slices(minimum) if minimum else ([0.0], [0.0])

    def number(value: Decimal | int) -> Any:
        return np.asarray(float(value), np.float64)

    def flag(value: bool) -> Any:
        return np.asarray(value, np.bool_)

    def padded(values: Sequence[float]) -> Any:
        return np.array([*values, *[0.0] * (slices - len(values))], np.float64)

    return DeltaCharges(
        on_spot=flag(parameters.forward == "spot"),
        floor_unhedged=number(floor.unhedged if floor else 0),
        floor_hedged=number(floor.hedged if floor else 0),
        roll_applies=flag(roll is not None),
        roll_annual_move=number(roll.annual_move if roll else 0),
        roll_minimum=number(roll.minimum if roll else 0),
        roll_is_linear=flag(roll is not None and roll.law == "linear"),
        roll_counts_collateral=flag(roll is None or roll.collateral),
        shock_threshold=number(shock.threshold if shock else 0),
        shock_increment=number(shock.increment if shock else 0),
        shock_largest=number(shock.largest if shock else 0),
        minimum_delta_rate=number(minimum.delta_rate if minimum else 0),
        minimum_short_option_rate=number(minimum.short_option_rate if minimum else 0),
        slice_floor=padded(floors),
        slice_increment=padded(increments),
    )


def _slices(minimum: MinimumCharge) -> tuple[list[float], list[float]]:
    floors, factors = minimum.floors, minimum.factors
    ascending = all(low < high for low, high in itertools.pairwise(floors))
    if not floors or floors[0] != 0 or not ascending or len(factors) != len(floors):
        raise ValueError("the minimum charge needs floors that ascend from 0, and a factor for each")
    steps = (factor - below for factor, below in zip(factors, (Decimal(0), *factors), strict=False))
    return [float(f) for f in floors], [float(step) for step in steps]


def _further_deltas(held: DeltaOne | None) -> Float[Array, " F"]:
    if held is None:
        return jnp.zeros(0, jnp.float64)
    return held.quantity if held.delta is None else rounded(held.quantity * held.delta)


def unit_deltas(unit: RiskUnit, discount: Float[Array, " X"], *, on_spot: Bool[Array, ""]) -> UnitDeltas:
    """Deltas of the unit's holdings now; `discount` is the discount factor of each expiry.

    The first perpetual: its quantity. A further one or a future: its quantity times the venue's own delta of it. An
    option: quantity times (Black-76 delta by the forward, discounted, or by the spot; plus the venue's offset to it).
    Collateral in the grid: its value over spot, so that a wrapped token counts what it stands for.
    """
    expiry = unit.option_expiry
    factor = jnp.where(on_spot, jnp.ones_like(discount), discount)
    deltas = jax.vmap(_delta)(
        unit.expiry_forward[expiry],
        unit.option_strike,
        unit.expiry_years[expiry],
        unit.option_vol,
        unit.option_is_call,
        factor[expiry],
    )
    if unit.option_quotes is not None:
        deltas = rounded(deltas) + unit.option_quotes.delta_offset
    spot = jnp.where(unit.spot > 0, unit.spot, 1.0)
    return UnitDeltas(
        perp=unit.perp_quantity,
        delta_one=_further_deltas(unit.delta_one),
        options=rounded(unit.option_quantity * deltas),
        collateral=rounded(unit.collateral_in_grid * unit.collateral_quantity * (unit.collateral_price / spot)),
    )


def delta_floor(unit: RiskUnit, deltas: UnitDeltas, charges: DeltaCharges) -> Float[Array, ""]:
    """Least loss of the unit: unhedged rate on the net delta, hedged rate on each pair that offsets, at spot."""
    held = _all(deltas)
    net = jnp.abs(ordered_sum(held))
    hedged = 0.5 * (ordered_sum(jnp.abs(held)) - net)
    return unit.coin_price() * (rounded(charges.floor_unhedged * net) + rounded(charges.floor_hedged * hedged))


def roll_shock(unit: RiskUnit, deltas: UnitDeltas, charges: DeltaCharges) -> Float[Array, ""]:
    """Charge on the net delta of each expiry at spot; perpetuals (and the collateral, where it counts)
    are one expiry with no time left.
    """
    years = unit.expiry_years
    dated = expiry_sums(deltas.options, unit)
    undated = deltas.perp + jnp.where(charges.roll_counts_collateral, ordered_sum(deltas.collateral), 0.0)
    if unit.delta_one is not None:
        expiry = unit.delta_one.expiry
        dated = dated + sums_by(deltas.delta_one, expiry, size=years.shape[0])
        undated = undated + ordered_sum(jnp.where(expiry < 0, deltas.delta_one, 0.0))
    grown = rounded(charges.roll_annual_move * years)
    move = jnp.where(charges.roll_is_linear, grown, jnp.expm1(grown))
    total = ordered_sum(jnp.abs(dated) * jnp.maximum(charges.roll_minimum, move))
    total = total + rounded(jnp.abs(undated) * jnp.maximum(charges.roll_minimum, 0.0))
    return jnp.where(charges.roll_applies, unit.coin_price() * total, 0.0)


def delta_shock(unit: RiskUnit, deltas: UnitDeltas, charges: DeltaCharges) -> Float[Array, ""]:
    """Charge on a large delta of futures, perpetuals and short options, less what long options take off it.

    Long options of the same sign add nothing, and of the other sign they never turn it.
    """
    is_long = unit.option_quantity > 0
    long_options = ordered_sum(jnp.where(is_long, deltas.options, 0.0))
    others = deltas.perp + ordered_sum(deltas.delta_one) + ordered_sum(jnp.where(is_long, 0.0, deltas.options))
    offset = jnp.where(long_options * others < 0, jnp.abs(long_options), 0.0)
    delta = jnp.maximum(jnp.abs(others) - offset, 0.0)
    dollars = rounded(delta * unit.spot)
    excess = jnp.maximum(dollars - charges.shock_threshold, 0.0)
    charge = jnp.minimum(rounded(excess * delta) * charges.shock_increment, charges.shock_largest * dollars)
    return charge / unit.stable_price


def minimum_charge(unit: RiskUnit, deltas: UnitDeltas, charges: DeltaCharges) -> Float[Array, ""]:
    """Least requirement of the unit: the raw charge in dollars by slices, each at its factor.

    The raw charge counts derivatives alone: collateral that hedges them saves no cost of closing them.
    """
    net = deltas.perp + ordered_sum(deltas.delta_one) + ordered_sum(deltas.options)
    short = ordered_sum(jnp.maximum(0.0, -unit.option_quantity))
    raw = rounded(charges.minimum_delta_rate * jnp.abs(net)) + rounded(charges.minimum_short_option_rate * short)
    dollars = rounded(raw * unit.spot)
    sliced = ordered_sum(charges.slice_increment * jnp.maximum(dollars - charges.slice_floor, 0.0))
    return sliced / unit.stable_price


def _delta(forward: Array, strike: Array, years: Array, vol: Array, is_call: Array, discount: Array) -> Array:
    return black76_greeks(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount).delta


def _all(deltas: UnitDeltas) -> Float[Array, " N"]:
    return jnp.concatenate([deltas.perp[None], deltas.delta_one, deltas.options, deltas.collateral])
