"""The expiry form: per expiry the better of the summed per-contract margins and the worst payoff at settlement.

Net margins are signed (negative where equity is needed), requirements positive, in the account's own unit. Letters: O
options, X expiries.

Source of the rule: derivexyz/v2-core @7736900d, StandardManager.sol (rules only).
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..rounding import rounded
from ..rule_forms import ExpiryMaxLoss
from .option_formula import OptionFormulaParameters, contract_net_margins, pack_option_formula
from .price_vol_grid import option_mark_values
from .risk_unit import Requirement, RiskUnit, expiry_sums, ordered_sum


class ExpiryParameters(eqx.Module):
    """`rule_forms.ExpiryMaxLoss` as float64 scalars."""

    per_contract: OptionFormulaParameters
    unpaired_initial_scale: Float[Array, ""]
    unpaired_maintenance_scale: Float[Array, ""]


def pack_expiry(parameters: ExpiryMaxLoss) -> ExpiryParameters:
    """`parameters` as NumPy float64 scalars."""
    initial: Any = np.asarray(float(parameters.unpaired_initial_scale), np.float64)
    maintenance: Any = np.asarray(float(parameters.unpaired_maintenance_scale), np.float64)
    return ExpiryParameters(
        per_contract=pack_option_formula(parameters.per_contract),
        unpaired_initial_scale=initial,
        unpaired_maintenance_scale=maintenance,
    )


def worst_payoffs(unit: RiskUnit) -> Float[Array, " X"]:
    """Lowest payoff (<= 0) of each expiry over the settlement prices 0 and every strike held."""
    quantity, strike, is_call = unit.option_quantity, unit.option_strike, unit.option_is_call
    at_zero = expiry_sums(jnp.where(is_call, 0.0, quantity * strike), unit)

    # Rows: settlement at this option's strike; columns: what each option of the same expiry then pays.
    gain = strike[:, None] - strike[None, :]
    payoff = quantity[None, :] * jnp.maximum(0.0, jnp.where(is_call[None, :], gain, -gain))
    same = unit.option_expiry[:, None] == unit.option_expiry[None, :]
    at_strike = ordered_sum(jnp.where(same, payoff, 0.0))

    # A strike of which nothing is held is no settlement price: beyond the last one held, short calls lose without end.
    expiries = jnp.arange(unit.expiry_years.shape[0], dtype=unit.option_expiry.dtype)
    counts = (unit.option_expiry[None, :] == expiries[:, None]) & (quantity != 0)[None, :]
    lowest = jnp.min(jnp.where(counts, jnp.broadcast_to(at_strike, counts.shape), 0.0), axis=1, initial=0.0)
    return jnp.minimum(lowest, jnp.minimum(at_zero, 0.0))


def expiry_net_margins(unit: RiskUnit, parameters: ExpiryParameters) -> Requirement:
    """Net margin of each expiry by level: max(sum of per-contract margins, worst payoff less the unpaired calls)."""
    return _expiry_net_margins(unit, parameters, option_mark_values(unit))


def expiry_requirement(unit: RiskUnit, parameters: ExpiryParameters) -> Requirement:
    """Value of the options minus their net margin, so that equity minus requirement is the net margin."""
    values = option_mark_values(unit)
    by_expiry = expiry_sums(values, unit)
    net = _expiry_net_margins(unit, parameters, values)
    return Requirement(
        initial=ordered_sum(by_expiry - net.initial), maintenance=ordered_sum(by_expiry - net.maintenance)
    )


def _expiry_net_margins(unit: RiskUnit, parameters: ExpiryParameters, values: Float[Array, " O"]) -> Requirement:
    alone = contract_net_margins(unit, parameters.per_contract, mark_values=values)
    worst = worst_payoffs(unit)
    net_calls = expiry_sums(jnp.where(unit.option_is_call, unit.option_quantity, 0.0), unit)
    unpaired = unit.expiry_forward * jnp.minimum(net_calls, 0.0)
    initial_payoff = worst + rounded(parameters.unpaired_initial_scale * unpaired)
    maintenance_payoff = worst + rounded(parameters.unpaired_maintenance_scale * unpaired)
    return Requirement(
        initial=jnp.maximum(expiry_sums(alone.initial, unit), initial_payoff),
        maintenance=jnp.maximum(expiry_sums(alone.maintenance, unit), maintenance_payoff),
    )
