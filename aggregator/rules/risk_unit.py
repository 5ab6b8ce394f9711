"""A risk unit: one account's options, perpetuals, futures and collateral of one underlying, as the grid and contract
forms see it.

All money is in the account's own unit (its settlement stable or its coin) unless a name says otherwise, times in years
of 365 days. Rows are padded; a padded option has quantity 0, strike 1 and sits in expiry 0, a padded expiry holds no
option, a padded collateral or delta-one holding has quantity 0.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

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
    return lax.scan(_added, start, jnp.moveaxis(rounded(values), -1, 0))[0]


# A function of the module and no lambda: outside of a compiled function each new one would be compiled again.
def _added(total: Array, value: Array) -> tuple[Array, None]:
    return total + value, None


def expiry_sums(values: Float[Array, "*rest O"], unit: RiskUnit) -> Float[Array, "*rest X"]:
    """Sum of per-option `values` for each expiry of `unit`, added in the order of the options; padding adds zeros
    only.
    """
    return sums_by(values, unit.option_expiry, size=unit.expiry_years.shape[0])


def sums_by(values: Float[Array, "*rest n"], group: Int[Array, " n"], *, size: int) -> Float[Array, "*rest groups"]:
    """Sum of `values` over the last axis by group 0..size-1, in order; a negative group counts nowhere."""
    groups = jnp.arange(size, dtype=group.dtype)

    def add(total: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        value, own = row
        holds = jnp.broadcast_to(own == groups, total.shape)
        return total + jnp.where(holds, jnp.broadcast_to(value[..., None], total.shape), 0.0), None

    # A loop, because a fused sum would compute each option's price anew for every expiry that might select it.
    start = jnp.zeros((*values.shape[:-1], size), values.dtype)
    return lax.scan(add, start, (jnp.moveaxis(rounded(values), -1, 0), group), unroll=4)[0]


class DeltaOne(eqx.Module):
    """Perpetuals beyond the unit's first linear one, inverse ones, and futures of both kinds. Letter: F rows."""

    quantity: Float[Array, " F"]
    """Units of the underlying, signed; of an inverse contract its USD notional over its price."""
    price: Float[Array, " F"]
    """Quote money per unit."""
    confidence: Float[Array, " F"]
    is_inverse: Bool[Array, " F"]
    money_usd: Float[Array, " F"]
    """USD per unit of the money of `price`; 0 where that is the account's own unit."""
    expiry: Int[Array, " F"]
    """Index into the expiry rows; -1 for a perpetual."""
    delta: Float[Array, " F"] | None = None
    """Delta of one unit as the venue states it; None: 1."""


class OptionQuotes(eqx.Module):
    """What the venue says of each option beside the model's inputs, and how it is quoted; neutral where it is 0."""

    mark_offset: Float[Array, " O"]
    """The venue's mark less the model's price today, in the option's own price unit: quote money, inverse: coins."""
    delta_offset: Float[Array, " O"]
    """The venue's delta less the model's today."""
    entry_price: Float[Array, " O"]
    """In the option's own price unit."""
    is_inverse: Bool[Array, " O"]
    money_usd: Float[Array, " O"]
    """USD per unit of the money of its forward; 0 where that is the account's own unit."""


class RiskUnit(eqx.Module):
    """One account × one underlying at one instant. Letters: O options, X expiries, C collaterals, F further delta-one
    holdings (all padded).
    """

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

    delta_one: DeltaOne | None = None
    """None: there are none."""
    option_quotes: OptionQuotes | None = None
    """None: every option is linear, in the account's unit, and worth its model price."""

    def in_account_unit(self, money_usd: Float[Array, " n"]) -> Float[Array, " n"]:
        """Account units per unit of a money that costs `money_usd`; exactly 1 where that is 0, the account's own."""
        return jnp.where(money_usd > 0, money_usd / self.stable_price, 1.0)

    def coin_price(self) -> Float[Array, ""]:
        """Account units per unit of the underlying at the index; exactly 1 where the account's unit is that coin."""
        return self.spot / self.stable_price


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


def moved(unit: RiskUnit, move: UnitMove, *, elapsed_years: ArrayLike) -> RiskUnit:
    """`unit` after `move` and `elapsed_years`: prices scaled, vols moved, expiries nearer (never below 0).

    Sticky strike: an option keeps its own vol, moved with its underlying's 30-day vol. Confidences, rates, what the
    venue says beside the model, and quantities stay as of today; only the coins of an inverse contract become fewer as
    the price rises, because its dollars stay.
    """
    growth = jnp.exp(move.price)
    own_vol = term_scaled_log_vol_change(move.vol, unit.expiry_years[unit.option_expiry])
    if unit.delta_one is not None:
        held = unit.delta_one
        unit = eqx.tree_at(
            lambda u: (u.delta_one.quantity, u.delta_one.price),
            unit,
            (
                rounded(jnp.where(held.is_inverse, held.quantity * jnp.exp(-move.price), held.quantity)),
                rounded(held.price * growth),
            ),
        )
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
