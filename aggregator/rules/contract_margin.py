"""The standard margin of every option contract by side, type and level, added up.

Requirements positive, in the account's own unit. Letters: O options, R = 4 rates (long call, long put, short call,
short put), L = 2 levels (initial, maintenance).

Sources of the rule: Bybit help center, "Comparison of Spread Strategies in Cross Margin and Portfolio Margin"; Paradex
documentation, dated-options/margin-requirements; a third party's copy of Deribit's rules (doc.tslab.pro).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..rounding import rounded
from ..rule_forms import ContractMargin, ContractRate
from .price_vol_grid import mark_offsets, option_model_prices
from .risk_unit import Requirement, RiskUnit, ordered_sum

NO_PREMIUM, MARK, LARGER_OF_ENTRY_AND_MARK = range(3)
_PREMIUM_CODES = {"none": NO_PREMIUM, "mark": MARK, "larger_of_entry_and_mark": LARGER_OF_ENTRY_AND_MARK}
_KINDS = ("long_call", "long_put", "short_call", "short_put")
_LEVELS = ("initial", "maintenance")
_NOTHING = ContractRate()


class ContractParameters(eqx.Module):
    """`ContractMargin` as arrays; an absent rate is one that charges nothing."""

    spot_rate: Float[Array, "R L"]
    otm_weight: Float[Array, "R L"]
    floor_rate: Float[Array, "R L"]
    mark_rate: Float[Array, "R L"]
    has_cap: Bool[Array, "R L"]
    cap_rate: Float[Array, "R L"]
    has_premium_cap: Bool[Array, "R L"]
    premium_cap: Float[Array, "R L"]
    premium: Int[Array, "R L"]
    fee_rate: Float[Array, "R L"]
    has_fee_cap: Bool[Array, "R L"]
    fee_cap: Float[Array, "R L"]
    at_least_maintenance: Bool[Array, ""]


def pack_contract_margin(parameters: ContractMargin) -> ContractParameters:
    """`parameters` as NumPy arrays."""

    def table(read: Callable[[ContractRate], Any], dtype: type = np.float64) -> Any:
        rates = [[getattr(parameters, f"{kind}_{level}") or _NOTHING for level in _LEVELS] for kind in _KINDS]
        return np.array([[read(rate) for rate in row] for row in rates], dtype)

    return ContractParameters(
        spot_rate=table(lambda r: float(r.spot_rate)),
        otm_weight=table(lambda r: float(r.otm_weight)),
        floor_rate=table(lambda r: float(r.floor_rate)),
        mark_rate=table(lambda r: float(r.mark_rate)),
        has_cap=table(lambda r: r.cap_rate is not None, np.bool_),
        cap_rate=table(lambda r: float(r.cap_rate or 0)),
        has_premium_cap=table(lambda r: r.premium_cap is not None, np.bool_),
        premium_cap=table(lambda r: float(r.premium_cap or 0)),
        premium=table(lambda r: _PREMIUM_CODES[r.premium], np.int32),
        fee_rate=table(lambda r: float(r.fee_rate)),
        has_fee_cap=table(lambda r: r.fee_cap is not None, np.bool_),
        fee_cap=table(lambda r: float(r.fee_cap or 0)),
        at_least_maintenance=np.asarray(parameters.at_least_maintenance, np.bool_),  # type: ignore[arg-type]
    )


def needs_entry_price(parameters: ContractMargin, *, is_call: bool, is_short: bool) -> bool:
    """Whether some level's charge on such a contract looks at the price it was entered at."""
    kind = ("short_" if is_short else "long_") + ("call" if is_call else "put")
    rates = [getattr(parameters, f"{kind}_{level}") for level in _LEVELS]
    return any(rate is not None and rate.premium == "larger_of_entry_and_mark" for rate in rates)


def contract_requirement(unit: RiskUnit, parameters: ContractParameters) -> Requirement:
    """Sum over options of |quantity| * charge (see `rule_forms.ContractRate`), each in its own money.

    The mark is the model's price and the offset to the venue's own. Of an inverse option the charge is in dollars, its
    coin prices valued at the index, so that in coins it is the same formula over the index.
    """
    spot, strike, is_call = unit.spot, unit.option_strike, unit.option_is_call
    quotes = unit.option_quotes
    mark = option_model_prices(unit) + mark_offsets(unit)
    entry = jnp.zeros_like(mark)
    in_unit = jnp.ones_like(mark)
    if quotes is not None:
        forward = unit.expiry_forward[unit.option_expiry]
        at_index = spot / jnp.where(forward > 0, forward, 1.0)
        mark = jnp.where(quotes.is_inverse, mark * at_index, mark)
        entry = jnp.where(quotes.is_inverse, quotes.entry_price * spot, quotes.entry_price)
        in_unit = unit.in_account_unit(quotes.money_usd)
    out_of_the_money = jnp.maximum(0.0, jnp.where(is_call, strike - spot, spot - strike))

    kind = 2 * (unit.option_quantity < 0).astype(jnp.int32) + (~is_call).astype(jnp.int32)

    def charge(level: int) -> Float[Array, " O"]:
        def rate(table: Array) -> Array:
            return table[kind, level]

        # A model price moved by the offset may fall below 0, and no charge does.
        price = jnp.maximum(mark, 0.0)
        risk = rounded(rate(parameters.spot_rate) * spot) - rounded(rate(parameters.otm_weight) * out_of_the_money)
        risk = jnp.maximum(risk, rate(parameters.floor_rate) * spot)
        risk = jnp.maximum(risk, rate(parameters.mark_rate) * price)
        risk = jnp.where(rate(parameters.has_cap), jnp.minimum(risk, rate(parameters.cap_rate) * spot), risk)
        premium_cap = rate(parameters.premium_cap) * price
        risk = jnp.where(rate(parameters.has_premium_cap), jnp.minimum(risk, premium_cap), risk)
        # Signed as it stands, so that it cancels against the value of a short option in the equity.
        code = rate(parameters.premium)
        premium = jnp.where(
            code == MARK, mark, jnp.where(code == LARGER_OF_ENTRY_AND_MARK, jnp.maximum(entry, mark), 0.0)
        )
        fee = rate(parameters.fee_rate) * spot
        fee = jnp.where(rate(parameters.has_fee_cap), jnp.minimum(fee, rate(parameters.fee_cap) * price), fee)
        return rounded(risk) + premium + rounded(fee)

    size = jnp.abs(unit.option_quantity)
    maintenance = rounded(size * (charge(1) * in_unit))
    initial = rounded(size * (charge(0) * in_unit))
    initial = jnp.where(parameters.at_least_maintenance, jnp.maximum(initial, maintenance), initial)
    return Requirement(initial=ordered_sum(initial), maintenance=ordered_sum(maintenance))
