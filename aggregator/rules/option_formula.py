"""The per-contract option form: standard margin of each short option, in place of its value.

Net margins here are signed (negative where equity is needed) and requirements positive, in the account's own unit.
Letters: O options.

Source of the rule: derivexyz/v2-core @7736900d, StandardManager.sol (rules only).
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..rounding import rounded
from ..rule_forms import OptionFormula
from .price_vol_grid import option_mark_values
from .risk_unit import Requirement, RiskUnit, expiry_sums, ordered_sum


class OptionFormulaParameters(eqx.Module):
    """`rule_forms.OptionFormula` as float64 scalars."""

    max_spot_rate: Float[Array, ""]
    min_spot_rate: Float[Array, ""]
    mm_call_spot_rate: Float[Array, ""]
    mm_put_spot_rate: Float[Array, ""]
    mm_put_mark_rate: Float[Array, ""]
    mm_offset_scale: Float[Array, ""]


def pack_option_formula(parameters: OptionFormula) -> OptionFormulaParameters:
    """`parameters` as NumPy float64 scalars."""
    numbers: dict[str, Any] = {
        name: np.asarray(float(getattr(parameters, name)), np.float64) for name in OptionFormula.model_fields
    }
    return OptionFormulaParameters(**numbers)


def contract_net_margins(
    unit: RiskUnit, parameters: OptionFormulaParameters, *, mark_values: Float[Array, " O"]
) -> Requirement:
    """Net margin (<= 0) of each option position alone, by level; 0 for long and padded options.

    `mark_values` are the signed values of the positions (`option_mark_values`), negative for a short one. With quantity
    a < 0, value m and spot S: call m + mm_call S a, initial m + a S max(min, max - OTM/S); put m + min(mm_put S a,
    mm_put_mark m), initial at most `mm_offset_scale` times that.
    """
    quantity, spot, strike = unit.option_quantity, unit.spot, unit.option_strike
    out_of_the_money = jnp.maximum(0.0, jnp.where(unit.option_is_call, strike - spot, spot - strike))
    # Multiplied through by S, so that a spot of 0 (an empty padded unit) divides nothing.
    spot_part = jnp.maximum(
        parameters.min_spot_rate * spot, rounded(parameters.max_spot_rate * spot) - out_of_the_money
    )
    initial = mark_values + rounded(quantity * spot_part)
    call_maintenance = mark_values + rounded(quantity * (parameters.mm_call_spot_rate * spot))
    put_maintenance = mark_values + jnp.minimum(
        quantity * (parameters.mm_put_spot_rate * spot), parameters.mm_put_mark_rate * mark_values
    )
    put_initial = jnp.minimum(initial, parameters.mm_offset_scale * put_maintenance)
    is_short = quantity < 0
    return Requirement(
        initial=jnp.where(is_short, jnp.where(unit.option_is_call, initial, put_initial), 0.0),
        maintenance=jnp.where(is_short, jnp.where(unit.option_is_call, call_maintenance, put_maintenance), 0.0),
    )


def option_requirement(unit: RiskUnit, parameters: OptionFormulaParameters) -> Requirement:
    """Value of the options minus their net margins, so that equity minus requirement is the net margin."""
    values = option_mark_values(unit)
    net = contract_net_margins(unit, parameters, mark_values=values)
    return Requirement(
        initial=ordered_sum(expiry_sums(values - net.initial, unit)),
        maintenance=ordered_sum(expiry_sums(values - net.maintenance, unit)),
    )
