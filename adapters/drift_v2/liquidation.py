"""Exact integer mechanics of a liquidation on Drift v2: how much is closed, what it costs, who gets it.

Units as in `mechanics.py`; fees and multipliers 1e6, `pct` 1e4. None stands for the program's largest integer: all of
it. Sources: drift-labs/protocol-v2 (read at 0ae3e3b), `math/liquidation.rs`, `controller/liquidation.rs`.
"""

from __future__ import annotations

from fractions import Fraction

from .mechanics import (
    BASE,
    OPEN_ORDER_REQUIREMENT,
    PRICE,
    QUOTE,
    WEIGHT,
    PerpPosition,
    ceil_div,
    margin_ratio,
    worst_liability,
)

FEE = 10**6
RATIO_TO_FEE = FEE // WEIGHT
SMALL_SHORTAGE = 50 * QUOTE
"""A shortage below 50 USDC is liquidated in one go."""
FEE_GRACE_SLOTS = 1_500
"""Slots without the account's own activity before the liquidator's fee starts to grow, about 10 minutes."""
MAX_FEE_MULTIPLIER = 3
"""The liquidator's fee grows to at most three times its base, within the maintenance ratio."""


def liquidation_fee(base_fee: int, max_fee: int, *, last_active_slot: int, current_slot: int) -> int:
    """Liquidator's fee: 1e-6 more per slot since the account was last active, once the grace period is over."""
    elapsed = current_slot - last_active_slot
    return base_fee if elapsed < FEE_GRACE_SLOTS else min(base_fee + elapsed, max_fee)


def max_liquidation_fee(base_fee: int, margin_ratio_maintenance: int) -> int:
    """Upper bound of a perpetual market's liquidator fee."""
    return min(base_fee * MAX_FEE_MULTIPLIER, margin_ratio_maintenance * RATIO_TO_FEE)


def base_liquidator_fee(liquidator_fee: int, high_leverage_ratio_maintenance: int = 0) -> int:
    """A market's liquidator fee; for an account in high-leverage mode at most 4/5 of that mode's maintenance ratio."""
    bound = high_leverage_ratio_maintenance * RATIO_TO_FEE
    return min(liquidator_fee, bound - bound // 5) if bound else liquidator_fee


def max_pct_to_liquidate(
    margin_shortage: int,
    *,
    slot: int,
    last_active_slot: int,
    initial_pct: int,
    duration: int,
    margin_freed: int = 0,
) -> int:
    """Share of the shortage that may be freed now: `initial_pct` at once, the rest over `duration` slots.

    What this liquidation has freed already counts against it; everything where the shortage is small, or the duration
    0. `duration` and slots in slots.
    """
    if margin_shortage < SMALL_SHORTAGE:
        return WEIGHT
    ramp = (slot - last_active_slot) * WEIGHT // duration if duration else WEIGHT
    freeable = (margin_shortage + margin_freed) * min(ramp + initial_pct, WEIGHT) // WEIGHT
    return max(freeable - margin_freed, 0) * WEIGHT // margin_shortage


def base_to_cover_shortage(
    margin_shortage: int,
    *,
    margin_ratio: int,
    liquidation_fee: int,
    if_liquidation_fee: int,
    oracle_price: int,
    quote_oracle_price: int = PRICE,
) -> int | None:
    """Base to close so that the margin it frees, less both fees, is the shortage; None where no amount does that."""
    ratio = margin_ratio * RATIO_TO_FEE
    if oracle_price <= 0 or ratio <= liquidation_fee:
        return None
    freed = oracle_price * quote_oracle_price // PRICE * (ratio - liquidation_fee) // FEE
    per_base = freed - oracle_price * if_liquidation_fee // FEE
    return margin_shortage * BASE // per_base if per_base > 0 else None


def perp_if_fee(
    margin_shortage: int,
    *,
    base_asset_amount: int,
    margin_ratio: int,
    liquidator_fee: int,
    oracle_price: int,
    quote_oracle_price: int,
    max_if_fee: int,
) -> int:
    """Insurance-fund fee: 95 % of what the ratio leaves beyond liquidator fee and shortage per notional, capped.

    0 for a position without size or price.
    """
    price = oracle_price * quote_oracle_price // PRICE
    if price <= 0 or base_asset_amount == 0:
        return 0
    missing = margin_shortage * BASE // abs(base_asset_amount) * PRICE // price
    implied = max(margin_ratio * RATIO_TO_FEE - liquidator_fee - missing, 0)
    return min(max_if_fee, implied * 19 // 20)


def spot_if_fee(
    margin_shortage: int,
    *,
    token_amount: int,
    asset_weight: int,
    asset_multiplier: int,
    liability_weight: int,
    liability_multiplier: int,
    liability_decimals: int,
    liability_price: int,
    max_if_fee: int,
) -> int:
    """Insurance-fund fee of a spot liquidation, as a share of the transferred liability, capped.

    0 where the asset's weight reaches the liability's, or without liability or price.
    """
    if asset_weight >= liability_weight or liability_price <= 0 or token_amount == 0:
        return 0
    owed, backed = liability_weight * RATIO_TO_FEE, asset_weight * RATIO_TO_FEE
    left = max(owed - backed * asset_multiplier // liability_multiplier, 0)
    missing = margin_shortage * FEE * 10**liability_decimals // abs(token_amount) // liability_price
    return min(max_if_fee, max(left - missing, 0) * FEE // owed)


def liability_to_cover_shortage(
    margin_shortage: int,
    *,
    asset_weight: int,
    asset_multiplier: int,
    liability_weight: int,
    liability_multiplier: int,
    liability_decimals: int,
    liability_price: int,
    if_fee: int,
) -> int | None:
    """Tokens of the liability to transfer so that the weights they free, less fees, are the shortage; at least 1.

    None where the weighted asset given for it reaches the weighted liability: no amount covers the shortage.
    """
    owed, given = liability_weight * 10, asset_weight * 10 * asset_multiplier // liability_multiplier
    if asset_weight >= liability_weight or given >= owed:
        return None
    freed = liability_price * (owed - given) - liability_price * if_fee // FEE * liability_weight * 10
    if freed <= 0:
        return None
    scale = 10 ** max(liability_decimals - 6, 0)
    transfer = margin_shortage * scale * PRICE * WEIGHT * 10 // freed // 10 ** max(6 - liability_decimals, 0)
    return max(transfer, 1)


def asset_for_liability(
    asset_amount: int,
    *,
    asset_multiplier: int,
    asset_decimals: int,
    asset_price: int,
    liability_amount: int,
    liability_multiplier: int,
    liability_decimals: int,
    liability_price: int,
) -> int:
    """Tokens of the asset that a liquidator gets for `liability_amount`, at least 1.

    All of `asset_amount` where the two are less than a dollar apart (as the program counts a dollar of a token with
    more than 6 decimals: by too many zeros, so that only smaller remainders are rounded away there).
    """
    up, down = 10 ** max(asset_decimals - liability_decimals, 0), 10 ** max(liability_decimals - asset_decimals, 0)
    paid = liability_amount * up * liability_price * asset_multiplier
    transfer = max(paid // (asset_price * liability_multiplier) // down, 1)
    apart = abs(transfer - asset_amount) * asset_price // PRICE
    apart = apart * 10 ** max(asset_decimals - 6, 0) // 10 ** max(6 - asset_decimals, 0)
    return asset_amount if apart < QUOTE else transfer


def liability_for_asset(
    asset_amount: int,
    *,
    asset_multiplier: int,
    asset_decimals: int,
    asset_price: int,
    liability_multiplier: int,
    liability_decimals: int,
    liability_price: int,
) -> int:
    """Tokens of the liability that `asset_amount` of the asset pays for, rounded up."""
    up, down = 10 ** max(liability_decimals - asset_decimals, 0), 10 ** max(asset_decimals - liability_decimals, 0)
    worth = asset_amount * up * asset_price * liability_multiplier
    return ceil_div(ceil_div(worth, liability_price * asset_multiplier), down)


def bankruptcy_funding_delta(loss: int, *, base_long: int, base_short: int) -> int:
    """Cumulative funding rate (1e9) by which all positions of a market share a bankrupt account's loss, rounded up.

    Raises `ValueError` for a market without positions.
    """
    total = abs(base_long) + abs(base_short)
    if total == 0:
        raise ValueError("no position is left to share the loss")
    return ceil_div(abs(loss) * BASE, total) * 1_000


def bankruptcy_deposit_interest_delta(borrow: int, *, cumulative_deposit_interest: int, deposits: int) -> int:
    """Cumulative deposit interest (1e10) that depositors lose to a bankrupt borrow in tokens, rounded up; 0 without
    deposits.
    """
    return ceil_div(cumulative_deposit_interest * borrow, deposits) if deposits else 0


def perp_liquidation_price(
    position: PerpPosition, *, other_free_collateral: int, quote_price: int = PRICE, high_leverage: bool = False
) -> Fraction | None:
    """Oracle price (1e6) at which maintenance collateral equals the requirement, all else fixed; None if not > 0.

    `other_free_collateral` is collateral less requirement of the rest of the account (the deposit of an isolated
    position). Real numbers, without the program's roundings. Of two solutions (a profit counts for less than a loss)
    the nearer to the current price. None for a prediction market, which is not linear in its price, and in settlement.
    """
    market = position.market
    if market.is_prediction or market.expiry_price is not None:
        return None
    base, worst = Fraction(position.base_asset_amount, BASE), abs(worst_liability(position)[0])
    ratio = Fraction(margin_ratio(market, worst, "maintenance", high_leverage=high_leverage), WEIGHT)
    quote = Fraction(quote_price, PRICE)
    fixed = position.quote_asset_amount + position.unsettled_funding
    orders = OPEN_ORDER_REQUIREMENT * position.open_orders
    profit_weight = Fraction(market.unrealized_pnl_maintenance_asset_weight, WEIGHT)
    roots = set()
    for weight, is_profit in ((Fraction(1), False), (profit_weight, True)):
        slope = (base * weight - Fraction(worst, BASE) * ratio) * quote
        if slope:
            root = (orders - other_free_collateral - fixed * weight * quote) / slope
            profit = base * root + fixed
            if root > 0 and (profit >= 0 if is_profit else profit <= 0):
                roots.add(root)
    return min(roots, key=lambda root: abs(root - market.oracle_price), default=None)
