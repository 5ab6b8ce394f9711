"""A risk unit: one account's options, perpetual and collateral of one underlying, as the grid and contract forms see
it.

All money is in the account's own unit (its settlement stable), times in years of 365 days. Rows are padded; a padded
option has quantity 0, strike 1 and sits in expiry 0, a padded expiry holds no option, a padded collateral has quantity
0.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..pricing import term_scaled_log_vol_change
from ..rounding import rounded


class Requirement(NamedTuple):
    """What a rule form demands, positive when it needs equity, in the account's own unit."""

    initial: Float[Array, "..."]
    maintenance: Float[Array, "..."]


def ordered_sum(values: Float[Array, "*rest n"]) -> Float[Array, " *rest"]:
    """Sum over the last axis from first to last; 0 for an empty one. Zeros appended by padding change no bit.

    A loop and not a reduction, because the order of a reduction is the compiler's choice.
    """
    start = jnp.zeros(values.shape[:-1], values.dtype)
    return lax.scan(lambda total, value: (total + value, None), start, jnp.moveaxis(rounded(values), -1, 0))[0]


def expiry_sums(values: Float[Array, "*rest O"], unit: RiskUnit) -> Float[Array, "*rest X"]:
    """Sum of per-option `values` for each expiry of `unit`, added in the order of the options; padding adds zeros
    only.
    """
    expiries = jnp.arange(unit.expiry_years.shape[0], dtype=unit.option_expiry.dtype)

    def add(total: Array, option: tuple[Array, Array]) -> tuple[Array, None]:
        value, expiry = option
        holds = jnp.broadcast_to(expiry == expiries, total.shape)
        return total + jnp.where(holds, jnp.broadcast_to(value[..., None], total.shape), 0.0), None

    # A loop, because a fused sum would compute each option's price anew for every expiry that might select it.
    start = jnp.zeros((*values.shape[:-1], expiries.shape[0]), values.dtype)
    return lax.scan(add, start, (jnp.moveaxis(rounded(values), -1, 0), unit.option_expiry), unroll=4)[0]


class RiskUnit(eqx.Module):
    """One account × one underlying at one instant. Letters: O options, X expiries, C collaterals (all padded)."""

    spot: Float[Array, ""]
    """Index price of the underlying in USD."""
    spot_confidence: Float[Array, ""]
    stable_price: Float[Array, ""]
    """USD per unit of the settlement stable."""

    perp_quantity: Float[Array, ""]
    perp_price: Float[Array, ""]
    perp_confidence: Float[Array, ""]

    collateral_quantity: Float[Array, " C"]
    collateral_price: Float[Array, " C"]
    """USD per unit."""
    collateral_confidence: Float[Array, " C"]
    collateral_in_grid: Float[Array, " C"]
    """1 where the collateral moves with spot inside the grid (risk-cancelling), else 0."""

    option_quantity: Float[Array, " O"]
    option_strike: Float[Array, " O"]
    option_is_call: Bool[Array, " O"]
    option_vol: Float[Array, " O"]
    option_expiry: Int[Array, " O"]
    """Index into the expiry rows."""

    expiry_years: Float[Array, " X"]
    """Time to expiry, >= 0."""
    expiry_forward: Float[Array, " X"]
    expiry_rate: Float[Array, " X"]
    expiry_confidence: Float[Array, " X"]
    """Lowest confidence of the expiry's own feeds (forward, rate, vol)."""


class UnitMove(eqx.Module):
    """How a scenario moves a risk unit."""

    price: Float[Array, ""]
    """Log change of the underlying (spot, perp, forwards and collateral in the grid keep their ratios)."""
    collateral_price: Float[Array, " C"]
    """Log change of each collateral's USD price."""
    vol: Float[Array, ""]
    """Log change of the 30-day implied vol of the underlying."""
    stable: Float[Array, ""]
    """Log change of the settlement stable's USD price."""


def moved(unit: RiskUnit, move: UnitMove, *, elapsed_years: float) -> RiskUnit:
    """`unit` after `move` and `elapsed_years`: prices scaled, vols moved, expiries nearer (never below 0).

    Sticky strike: an option keeps its own vol, moved with its underlying's 30-day vol. Confidences, rates and
    quantities stay as of today.
    """
    growth = jnp.exp(move.price)
    own_vol = term_scaled_log_vol_change(move.vol, unit.expiry_years[unit.option_expiry])
    return eqx.tree_at(
        lambda u: (
            u.spot,
            u.stable_price,
            u.perp_price,
            u.collateral_price,
            u.option_vol,
            u.expiry_years,
            u.expiry_forward,
        ),
        unit,
        (
            rounded(unit.spot * growth),
            rounded(unit.stable_price * jnp.exp(move.stable)),
            rounded(unit.perp_price * growth),
            rounded(unit.collateral_price * jnp.exp(move.collateral_price)),
            rounded(unit.option_vol * jnp.exp(own_vol)),
            jnp.maximum(unit.expiry_years - elapsed_years, 0.0),
            rounded(unit.expiry_forward * growth),
        ),
    )
