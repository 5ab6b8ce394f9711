"""Margin add-ons: what liquidation costs, concentration, basis, wrong-way collateral, venue failure; haircuts.

Pure functions in float64 for one portfolio, mapped by the caller. Amounts in USD, positive when they add to the
requirement; volatilities daily; rates fractions. Letters: a assets, n nodes (the portfolio's account at one venue), d
pools of depth (venues whose liquidity is one and the same for an asset). Shapes with `...` work element by element.

An amount that needs a figure which is missing (NaN), or a market volume that is not positive, cannot be measured: it is
+inf and its `measured` is False, so that it can neither pass for zero nor become NaN. A position of zero needs no
figures, is measured and costs 0. The host turns `measured` into a failure of the row and decides what remains.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from .rounding import rounded
from .rules.risk_unit import ordered_sum, sums_by


class AddOn(NamedTuple):
    """Amounts, USD, and whether each could be measured; +inf where not."""

    amount: Float[Array, "..."]
    measured: Bool[Array, "..."]


class CloseOut(NamedTuple):
    """Days that selling a position takes at the given participation, and the margin period that follows from it."""

    liquidation_days: Float[Array, "..."]
    margin_period_days: Float[Array, "..."]
    measured: Bool[Array, "..."]


class ForcedNotional(NamedTuple):
    """What would be sold and what bought back if every account of the portfolio were liquidated, USD, both >= 0."""

    sold: Float[Array, "..."]
    bought: Float[Array, "..."]


def _float64(value: ArrayLike) -> Array:
    return jnp.asarray(value, dtype=jnp.float64)


def _measured_amount(amount: Array, size: Array, known: Array) -> AddOn:
    """`amount` where it is `known`; 0 for a size of 0, +inf otherwise."""
    nothing = size == 0.0
    measured = nothing | (known & ~jnp.isnan(amount))
    return AddOn(jnp.where(nothing, 0.0, jnp.where(measured, amount, jnp.inf)), measured)


def _usable(*figures: Array) -> Array:
    known = jnp.asarray(True)
    for figure in figures:
        known = known & jnp.isfinite(figure) & (figure >= 0.0)
    return known


def total(add_on: AddOn) -> AddOn:
    """Sum over the last axis in order; measured if every part is."""
    return AddOn(ordered_sum(add_on.amount), jnp.all(add_on.measured, axis=-1))


def liquidity_cost(
    notional: ArrayLike, daily_volume: ArrayLike, *, daily_vol: ArrayLike, spread: ArrayLike, impact: ArrayLike
) -> AddOn:
    """Cost of liquidating |N| at once in a market of `daily_volume` USD: half the spread and square-root impact.

        LIQ = |N| (spread/2 + Y sigma_daily sqrt(|N| / ADV)),  Y = `impact`, about 1

    Grows like N^1.5. Not capped, for a position can be too large for its market. Sources: Almgren et al., "Direct
    estimation of equity market impact" (2005); Toth et al., "Anomalous price impact" (2011).
    """
    size = jnp.abs(_float64(notional))
    volume, vol, width, y = (_float64(x) for x in (daily_volume, daily_vol, spread, impact))
    known = _usable(size, vol, width, y) & jnp.isfinite(volume) & (volume > 0.0)
    share = size / jnp.where(known, volume, 1.0)
    rate = 0.5 * width + rounded(y * vol * jnp.sqrt(jnp.where(known, share, 0.0)))
    return _measured_amount(jnp.where(known, size * rate, jnp.inf), size, known)


def close_out(
    notional: ArrayLike, daily_volume: ArrayLike, *, participation: ArrayLike, least_days: ArrayLike
) -> CloseOut:
    """Days to sell |N| at `participation` (a fraction of the daily volume), and MPOR = max(`least_days`, those days).

    Both are +inf where the volume is missing; a position of zero takes none and has the least period.
    """
    size = jnp.abs(_float64(notional))
    pace = _float64(participation) * _float64(daily_volume)
    known = _usable(size, pace) & (pace > 0.0)
    days = _measured_amount(size / jnp.where(known, pace, 1.0), size, known)
    return CloseOut(days.amount, jnp.maximum(days.amount, _float64(least_days)), days.measured)


def forced_notional(notional: Float[Array, "n *rest"], *, nets: ArrayLike) -> ForcedNotional:
    """Sales and purchases of the nodes' signed `notional` if all of them are liquidated, over the first axis.

    Longs are sold and shorts bought back: they meet different sides of a book, so each side adds up by itself. Where
    `nets` (all nodes can be closed together: one venue, or full fungibility) only the net position is traded.
    """
    by_node = jnp.moveaxis(_float64(notional), 0, -1)
    sold, bought = ordered_sum(jnp.maximum(by_node, 0.0)), ordered_sum(jnp.maximum(-by_node, 0.0))
    net = ordered_sum(by_node)
    together = jnp.asarray(nets, dtype=bool)
    return ForcedNotional(
        jnp.where(together, jnp.maximum(net, 0.0), sold), jnp.where(together, jnp.maximum(-net, 0.0), bought)
    )


def pooled_liquidity_cost(
    notional: Float[Array, "n a"],
    pool: Int[Array, " n"],
    daily_volume: Float[Array, "d a"],
    *,
    daily_vol: Float[Array, " a"],
    spread: Float[Array, " a"],
    impact: ArrayLike,
    nets: ArrayLike,
) -> AddOn:
    """Liquidity cost of each asset over all nodes, [a]: positions that share depth are liquidated as one.

    `pool` says which depth a node's orders meet, 0..d-1, and `daily_volume` what trades there; a position on a node
    without one (negative) cannot be measured. Because the cost grows faster than the position, splitting a position
    over nodes of one pool leaves it unchanged, while the sum of their own costs falls: four equal parts have half the
    impact.

    Source: Glasserman, Moallemi and Yuan, "Hidden Illiquidity with Multiple Central Counterparties" (2016).
    """
    pools = daily_volume.shape[0]
    signed = _float64(notional).T
    sold = sums_by(jnp.maximum(signed, 0.0), pool, size=pools)
    bought = sums_by(jnp.maximum(-signed, 0.0), pool, size=pools)
    net = sums_by(signed, pool, size=pools)
    together = jnp.asarray(nets, dtype=bool)
    sold = jnp.where(together, jnp.maximum(net, 0.0), sold)
    bought = jnp.where(together, jnp.maximum(-net, 0.0), bought)

    def side(size: Float[Array, "a d"]) -> AddOn:
        return total(
            liquidity_cost(size, daily_volume.T, daily_vol=daily_vol[:, None], spread=spread[:, None], impact=impact)
        )

    sales, purchases = side(sold), side(bought)
    nowhere = jnp.any((signed != 0.0) & (pool < 0)[None, :], axis=1)
    amount = jnp.where(nowhere, jnp.inf, sales.amount + purchases.amount)
    return AddOn(amount, sales.measured & purchases.measured & ~nowhere)


def concentration_ratio(net_position: ArrayLike, threshold: ArrayLike) -> AddOn:
    """CR = max(1, sqrt(|S| / T)), a factor; +inf and unmeasured for a position without a positive threshold.

    Source: ISDA SIMM methodology, concentration risk factor.
    """
    size, limit = jnp.abs(_float64(net_position)), _float64(threshold)
    known = _usable(size) & jnp.isfinite(limit) & (limit > 0.0)
    ratio = jnp.sqrt(jnp.where(known, size / jnp.where(known, limit, 1.0), 0.0))
    found = _measured_amount(jnp.maximum(ratio, 1.0), size, known)
    return AddOn(jnp.maximum(found.amount, 1.0), found.measured)


def concentration(shortfall_contribution: ArrayLike, net_position: ArrayLike, threshold: ArrayLike) -> AddOn:
    """ES contribution (CR - 1), USD. A contribution below 0 (a hedge) is not credited with being concentrated."""
    ratio = concentration_ratio(net_position, threshold)
    contribution = _float64(shortfall_contribution)
    positive = jnp.maximum(contribution, 0.0)
    amount = jnp.where(positive > 0.0, positive * (ratio.amount - 1.0), 0.0)
    return AddOn(jnp.where(jnp.isnan(contribution), jnp.inf, amount), ratio.measured & ~jnp.isnan(contribution))


def matched_notional(notional: Float[Array, "n *rest"]) -> Float[Array, " *rest"]:
    """What longs and shorts on different nodes hedge of each other, USD: (sum |N_v| - |sum N_v|) / 2."""
    by_node = jnp.moveaxis(_float64(notional), 0, -1)
    # The smaller of the two sides is the same number, without the difference of two large ones.
    return jnp.minimum(ordered_sum(jnp.maximum(by_node, 0.0)), ordered_sum(jnp.maximum(-by_node, 0.0)))


def basis(matched: ArrayLike, basis_shortfall: ArrayLike, *, least_rate: ArrayLike = 0.0) -> AddOn:
    """Cost of the price gap between venues, USD: matched notional times max(b, `least_rate`), b its relative ES.

    The floor is 0.002 for majors and 0.01 for the others by default of the method; b missing is unmeasured.
    """
    size, rate = _float64(matched), _float64(basis_shortfall)
    known = ~jnp.isnan(rate) & jnp.isfinite(size)
    return _measured_amount(size * jnp.maximum(rate, _float64(least_rate)), size, known)


def wrong_way(
    collateral: ArrayLike, is_own_token: ArrayLike, *, exposure: ArrayLike, loss_given_default: ArrayLike
) -> AddOn:
    """Own-token and same-group collateral counted as nothing, and the loss given default on the rest, USD.

    `collateral` (USD) is lost where `is_own_token` holds: it is worth nothing when it is needed. `exposure` (USD) is
    what stands against assets whose default coincides with that of the venue; it adds `loss_given_default` times it.
    Amounts below 0 (debts) count as 0.
    """
    held, exposed = jnp.maximum(_float64(collateral), 0.0), jnp.maximum(_float64(exposure), 0.0)
    rate = _float64(loss_given_default)
    lost = jnp.where(jnp.asarray(is_own_token, dtype=bool), held, 0.0)
    known = _usable(lost, exposed) & (_usable(rate) | (exposed == 0.0))
    on_default = jnp.where(exposed > 0.0, rounded(rate * exposed), 0.0)
    amount = lost + on_default
    return AddOn(jnp.where(known, amount, jnp.inf), jnp.broadcast_to(known, amount.shape))


def venue_failure(
    hazard: ArrayLike, collateral: ArrayLike, *, loss_given_default: ArrayLike, horizon_years: ArrayLike
) -> AddOn:
    """Expected loss from failures of venues over the horizon, USD: min(lambda h, 1) LGD max(K, 0).

    `hazard` per year; `collateral` what lies at the venue, gains included.
    """
    held = jnp.maximum(_float64(collateral), 0.0)
    rate, loss = _float64(hazard), _float64(loss_given_default)
    known = _usable(held, rate, loss)
    probability = jnp.minimum(rate * _float64(horizon_years), 1.0)
    return _measured_amount(probability * loss * held, held, known)


def volatility_haircut(
    static: ArrayLike,
    *,
    daily_vol: ArrayLike,
    quantile: ArrayLike,
    horizon_days: ArrayLike,
    liquidity: ArrayLike = 0.0,
) -> Float[Array, "..."]:
    """Haircut of collateral that is not simulated, a fraction of its value within 0..1.

        min(1, max(static, 1 - exp(-z sigma_daily sqrt(h)) + liquidity))

    A missing figure gives 1: collateral of unknown risk counts for nothing.
    """
    depth = -jnp.expm1(-_float64(quantile) * _float64(daily_vol) * jnp.sqrt(_float64(horizon_days)))
    haircut = jnp.maximum(_float64(static), depth + _float64(liquidity))
    return jnp.clip(jnp.where(jnp.isnan(haircut), 1.0, haircut), 0.0, 1.0)
