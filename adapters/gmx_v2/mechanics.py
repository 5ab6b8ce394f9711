"""Exact rules of a GMX v2 position: profit, pool cap, fees, collateral left, liquidation check, liquidation price.

A position (account, market, collateral token, side) is margined alone. Integers of the contracts: USD and factors with
30 decimals, token amounts raw, prices in USD with 30 decimals per raw unit (ETH at 5000 USD: 5000e12). Sources:
gmx-io/gmx-synthetics @a5c0c88, contracts `position/PositionUtils.sol`, `pricing/PositionPricingUtils.sol`,
`market/MarketUtils.sol`; the liquidation price as the venue's interface computes it. Price impact is in `impact`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from .impact import (
    FLOAT,
    ImpactParameters,
    OpenInterest,
    PriceImpact,
    applied,
    capped_positive_impact,
    ceil_div,
    pending_impact_usd,
    price_impact,
)

FUNDING_SCALE = 10**45
"""Funding amounts per size carry 30 decimals of USD and 15 of their own."""


class Position(NamedTuple):
    """What the liquidation check reads of a position; `pending_impact_amount` in index tokens, signed."""

    is_long: bool
    size_in_usd: int
    size_in_tokens: int
    collateral_amount: int
    pending_impact_amount: int = 0
    borrowing_factor: int = 0
    funding_fee_amount_per_size: int = 0


class Prices(NamedTuple):
    """Prices per raw unit that the check uses."""

    index_min: int
    index_max: int
    collateral_min: int


class Pool(NamedTuple):
    """The pool token of the position's side: amount, lowest price, profit of the whole side, its largest share.

    In a market with one token for both sides the amount is half of the pool.
    """

    token_amount: int
    token_price_min: int
    pnl: int
    max_pnl_factor: int


class Fees(NamedTuple):
    """Costs of closing in raw collateral tokens; the liquidation fee is no part of the check."""

    position: int = 0
    borrowing: int = 0
    funding: int = 0
    interface: int = 0
    discount: int = 0

    @property
    def total(self) -> int:
        """Tokens that are taken from the collateral."""
        return self.position + self.borrowing + self.funding + self.interface - self.discount


class Check(NamedTuple):
    """Result of the liquidation check; `reason` is empty for a healthy position."""

    is_liquidatable: bool
    reason: str
    remaining_collateral_usd: int
    pnl_usd: int
    minimum_usd: int


class Sufficiency(NamedTuple):
    """Whether collateral may be taken out or size added, and the factor that decided."""

    sufficient: bool
    remaining_collateral_usd: int
    min_collateral_factor: int


class Settlement(NamedTuple):
    """What a forced close leaves: USD to the trader, fee that was due, and loss that the pool bears."""

    to_trader_usd: int
    liquidation_fee_usd: int
    shortfall_usd: int


# ---------------------------------------------------------------------------------------------------------------------
# Profit


def uncapped_pnl(position: Position, *, index_min: int, index_max: int) -> int:
    """Profit at the price against the trader: tokens × min − size for a long, size − tokens × max for a short."""
    if position.is_long:
        return position.size_in_tokens * index_min - position.size_in_usd
    return position.size_in_usd - position.size_in_tokens * index_max


def side_pnl(interest_usd: int, interest_tokens: int, price: int, *, is_long: bool) -> int:
    """Profit of all traders of one side at `price`; 0 without open interest."""
    if interest_usd == 0 or interest_tokens == 0:
        return 0
    value = interest_tokens * price
    return value - interest_usd if is_long else interest_usd - value


def capped_side_pnl(pool: Pool) -> int:
    """Profit of the side that the pool pays: at most floor(pool USD × maximum factor); a loss is not capped."""
    return min(pool.pnl, applied(pool.token_amount * pool.token_price_min, pool.max_pnl_factor))


def capped_pnl(pnl: int, pool: Pool | None) -> int:
    """Profit of a position when its side's profit exceeds the cap: floor(pnl × cap / side's profit).

    Unchanged for a loss, without a pool, and where the cap does not bind.
    """
    if pool is None or pnl <= 0:
        return pnl
    cap = capped_side_pnl(pool)
    return pnl * cap // pool.pnl if 0 < cap < pool.pnl else pnl


def pnl_to_pool_factor(pool: Pool) -> int:
    """Profit of a side over the pool's value, 30 decimals, toward zero; above its limit positions are deleveraged.

    0 for an empty pool.
    """
    value = pool.token_amount * pool.token_price_min
    if not value:
        return 0
    factor = abs(pool.pnl) * FLOAT // value
    return factor if pool.pnl >= 0 else -factor


# ---------------------------------------------------------------------------------------------------------------------
# Fees and indices


def position_fee_amount(size_delta_usd: int, fee_factor: int, collateral_min: int) -> int:
    """Tokens of the fee on size, rounded down twice: floor(floor(size × factor) / lowest collateral price)."""
    return applied(size_delta_usd, fee_factor) // collateral_min


def borrowing_fee_usd(size_in_usd: int, cumulative_factor: int, position_factor: int) -> int:
    """USD of accrued borrowing: floor(size × (cumulative − the position's)).

    Raises `ValueError` for a position that is ahead of the market's factor, where the contract reverts.
    """
    if cumulative_factor < position_factor:
        raise ValueError("the position's borrowing factor exceeds the market's cumulative one")
    return applied(size_in_usd, cumulative_factor - position_factor)


def next_borrowing_factor(cumulative_factor: int, factor_per_second: int, seconds: int) -> int:
    """Cumulative borrowing factor after `seconds` at a constant rate."""
    return cumulative_factor + factor_per_second * seconds


def funding_fee_amount(size_in_usd: int, latest_per_size: int, position_per_size: int) -> int:
    """Tokens of funding owed: ceil(size × (latest − the position's) / 1e45)."""
    return ceil_div(size_in_usd * (latest_per_size - position_per_size), FUNDING_SCALE)


def claimable_funding_amount(size_in_usd: int, latest_per_size: int, position_per_size: int) -> int:
    """Tokens of funding that may be claimed: floor(size × (latest − the position's) / 1e45); not collateral."""
    return size_in_usd * (latest_per_size - position_per_size) // FUNDING_SCALE


def liquidation_fee_amount(size_in_usd: int, fee_factor: int, collateral_min: int) -> int:
    """Tokens of the liquidation fee, rounded as the position fee; taken when liquidated, never in the check."""
    return position_fee_amount(size_in_usd, fee_factor, collateral_min)


# ---------------------------------------------------------------------------------------------------------------------
# Price impact of closing the whole position


def full_close_impact(
    position: Position, parameters: ImpactParameters, interest: OpenInterest, *, virtual_inventory: int | None = None
) -> PriceImpact:
    """Impact of closing all of a position, its positive part capped; without what is pending."""
    found = price_impact(
        parameters, interest, -position.size_in_usd, is_long=position.is_long, virtual_inventory=virtual_inventory
    )
    return found._replace(usd=capped_positive_impact(found.usd, position.size_in_usd, parameters))


def impact_for_check(
    position: Position, close_impact_usd: int, prices: Prices, max_factor_for_liquidations: int
) -> int:
    """Impact that the liquidation check takes off the collateral, never positive.

    The impact of the full close plus the pending one, at most 0, not below −floor(size × factor for liquidations).
    """
    total = close_impact_usd + pending_impact_usd(position.pending_impact_amount, prices.index_min, prices.index_max)
    return max(min(total, 0), -applied(position.size_in_usd, max_factor_for_liquidations))


# ---------------------------------------------------------------------------------------------------------------------
# Liquidation


def remaining_collateral_usd(position: Position, prices: Prices, *, pnl: int, impact_usd: int, fees: Fees) -> int:
    """collateral × min price + profit + impact − fees, in USD; negative when the position owes more than it has."""
    return (position.collateral_amount - fees.total) * prices.collateral_min + pnl + impact_usd


def minimum_collateral_usd(size_in_usd: int, min_collateral_factor: int, min_collateral_usd: int = 0) -> int:
    """Requirement of a position: the larger of the fixed minimum and floor(size × factor); constant in price."""
    return max(min_collateral_usd, applied(size_in_usd, min_collateral_factor))


def liquidation_check(
    position: Position,
    prices: Prices,
    *,
    min_collateral_factor: int,
    min_collateral_usd: int | None,
    impact_usd: int = 0,
    fees: Fees | None = None,
    pool: Pool | None = None,
) -> Check:
    """Whether the venue may close the position: remaining collateral against its three bounds, in this order.

    Below `min_collateral_usd` (None: not checked); at or below 0; below floor(size × factor). The factor is the one
    for liquidation, or the one for opening where a trade is validated. Equality with a minimum is healthy.
    """
    pnl = capped_pnl(uncapped_pnl(position, index_min=prices.index_min, index_max=prices.index_max), pool)
    remaining = remaining_collateral_usd(position, prices, pnl=pnl, impact_usd=impact_usd, fees=fees or Fees())
    leverage_minimum = applied(position.size_in_usd, min_collateral_factor)
    reason = ""
    if min_collateral_usd is not None and remaining < min_collateral_usd:
        reason = "min collateral"
    elif remaining <= 0:
        reason = "< 0"
    elif remaining < leverage_minimum:
        reason = "min collateral for leverage"
    return Check(bool(reason), reason, remaining, pnl, max(leverage_minimum, min_collateral_usd or 0))


def open_interest_collateral_factor(
    min_collateral_factor: int, open_interest: int, open_interest_delta: int, multiplier: int
) -> int:
    """Factor that opens and withdraws: the larger of the market's and open interest after the change × multiplier.

    Raises `ValueError` for a change beyond the open interest, where the contract reverts.
    """
    following = open_interest + open_interest_delta
    if following < 0:
        raise ValueError("the change exceeds the open interest")
    return max(min_collateral_factor, applied(following, multiplier))


def collateral_sufficiency(
    collateral_amount: int, collateral_min: int, *, realized_pnl_usd: int, size_usd: int, min_collateral_factor: int
) -> Sufficiency:
    """Gate of opening and withdrawing: collateral and a realized loss against floor(size × factor); no fees, no
    unrealized profit. `min_collateral_factor` is that of `open_interest_collateral_factor`.
    """
    remaining = collateral_amount * collateral_min + min(realized_pnl_usd, 0)
    sufficient = remaining >= max(applied(size_usd, min_collateral_factor), 0)
    return Sufficiency(sufficient, remaining, min_collateral_factor)


def liquidation_settlement(remaining_usd: int, liquidation_fee_usd: int) -> Settlement:
    """A liquidation closes the whole position: collateral left after the fee goes to the trader, a lack to the pool.

    `remaining_usd` is remaining collateral at the close, which the impact enters in full (not only for the check).
    """
    left = remaining_usd - liquidation_fee_usd
    return Settlement(max(left, 0), liquidation_fee_usd, max(-left, 0))


def liquidation_price(
    position: Position,
    *,
    requirement_usd: int,
    costs_usd: int,
    collateral_usd: int,
    collateral_is_index: bool,
) -> Fraction | None:
    """Index price per raw token at which remaining collateral equals `requirement_usd`; None where there is none.

    `costs_usd` is fees minus impact, taken as constant. Collateral in another token keeps `collateral_usd`; collateral
    in the index token moves along, so that the slope is tokens ± collateral. The venue's interface cuts the result to
    a whole number per raw unit. With requirement 0 it is the bankruptcy price. A profit that the pool caps plays no
    part: at this price the position is at a loss or near it.
    """
    side = 1 if position.is_long else -1
    slope = side * position.size_in_tokens + (position.collateral_amount if collateral_is_index else 0)
    fixed = (0 if collateral_is_index else collateral_usd) - side * position.size_in_usd - costs_usd
    if slope == 0:
        return None
    price = Fraction(requirement_usd - fixed, slope)
    return price if price > 0 else None
