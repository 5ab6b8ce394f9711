"""Exact margin mechanics of Bybit's unified trading account: tiers, collateral, short options, rates, liquidation.

Everything is a `Fraction`. Position values are in the settlement coin of the contract (USDT or USDC for a linear one,
the coin for an inverse one), `_usd` figures in dollars; `side` is +1 long and -1 short, sizes are positive. Sources:
Bybit help center, "Maintenance Margin (USDT/USDC/Inverse Contract)", "Understanding Collateral Value Ratios in UTA",
"Comparison of Spread Strategies in Cross Margin and Portfolio Margin", "Liquidation Price Calculation under Isolated
Mode (Unified Trading Account)", and the margin-parameters page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

Exact = int | Decimal | Fraction

ZERO = Fraction(0)
ONE = Fraction(1)


class RiskTier(NamedTuple):
    """One risk-limit tier: position values above the tier before and up to `limit` (None: open) at `rate`."""

    limit: Fraction | None
    rate: Fraction


class CollateralTier(NamedTuple):
    """Coins above the tier before and up to `limit` (None: open) count at `ratio` of their value."""

    limit: Fraction | None
    ratio: Fraction


class OptionRates(NamedTuple):
    """Factors of the short-option formula; `initial` falls with the distance out of the money down to `initial_floor`.

    Defaults are not given: they are per coin and change (BTC and ETH: 0.15, 0.10, 0.03, 0.002).
    """

    initial: Fraction
    initial_floor: Fraction
    maintenance: Fraction
    liquidation_fee: Fraction


class OptionMargin(NamedTuple):
    """Margins of one option position in the quote currency."""

    initial: Fraction
    maintenance: Fraction


def _ascending(limits: Sequence[Fraction | None], what: str) -> None:
    if not limits:
        raise ValueError(f"no {what}")
    for low, high in pairwise(limits):
        if low is None or (high is not None and high <= low):
            raise ValueError(f"{what} do not ascend")


def deductions(tiers: Sequence[RiskTier]) -> list[Fraction]:
    """Deduction of each tier: `d_1 = 0, d_n = limit_{n-1} * (rate_n - rate_{n-1}) + d_{n-1}`.

    It makes `value * rate - deduction` continuous at every limit. Raises `ValueError` for tiers that do not ascend.
    """
    _ascending([tier.limit for tier in tiers], "risk tiers")
    out = [ZERO]
    for low, high in pairwise(tiers):
        assert low.limit is not None
        out.append(low.limit * (high.rate - low.rate) + out[-1])
    return out


def maintenance_margin(position_value: Exact, tiers: Sequence[RiskTier]) -> Fraction:
    """`value * rate - deduction` in the tier of the absolute position value.

    At a limit the lower tier applies (both give the same), above the last limit the last tier. Raises `ValueError`
    for tiers that do not ascend.
    """
    table, value = deductions(tiers), abs(Fraction(position_value))
    number = next((n for n, tier in enumerate(tiers) if tier.limit is None or value <= tier.limit), len(tiers) - 1)
    return value * tiers[number].rate - table[number]


def position_value(size: Exact, price: Exact, *, inverse: bool = False) -> Fraction:
    """`size * price` of a linear contract (size in coins), `size / price` coins of an inverse one (size in USD).

    Raises `ValueError` for a price that is not positive.
    """
    if price <= 0:
        raise ValueError(f"price {price} must be positive")
    return Fraction(size) / Fraction(price) if inverse else Fraction(size) * Fraction(price)


def closing_fee_rate(leverage: Exact, side: int, taker_rate: Exact, *, inverse: bool = False) -> Fraction:
    """Estimated fee of closing at the bankruptcy price, as a fraction of the position value.

    The bankruptcy price lies one initial margin away: at `price * (1 - side / leverage)` for a linear contract, where
    the fee is `value * (1 - side / leverage) * taker`; for an inverse one, whose value is size over price, at `price *
    leverage / (leverage + side)`, so that the fee is `value * (1 + side / leverage) * taker`. Raises `ValueError` for a
    leverage below 1.
    """
    if leverage < 1:
        raise ValueError(f"leverage {leverage} must be at least 1")
    share = Fraction(side) / Fraction(leverage)
    return Fraction(taker_rate) * (1 + share if inverse else 1 - share)


def initial_margin(
    position_value: Exact, leverage: Exact, *, side: int = 1, taker_rate: Exact = 0, inverse: bool = False
) -> Fraction:
    """`value / leverage` plus the estimated closing fee (none at a taker rate of 0).

    Raises `ValueError` for a leverage below 1.
    """
    fee = closing_fee_rate(leverage, side, taker_rate, inverse=inverse)
    return abs(Fraction(position_value)) * (1 / Fraction(leverage) + fee)


def collateral_value(quantity: Exact, usd_price: Exact, tiers: Sequence[CollateralTier]) -> Fraction:
    """What a coin counts in dollars: each slice of the quantity at its own ratio; a debt counts in full.

    What lies above the last limit of a table without an open tier counts 0. Raises `ValueError` for tiers that do not
    ascend.
    """
    amount, price = Fraction(quantity), Fraction(usd_price)
    if amount <= 0:
        return amount * price
    _ascending([tier.limit for tier in tiers], "collateral tiers")
    counted, floor = ZERO, ZERO
    for tier in tiers:
        top = amount if tier.limit is None else min(amount, tier.limit)
        if top > floor:
            counted += (top - floor) * tier.ratio
        if tier.limit is None or tier.limit >= amount:
            break
        floor = tier.limit
    return counted * price


def haircut_loss(quantity: Exact, usd_price: Exact, tiers: Sequence[CollateralTier]) -> Fraction:
    """Dollars of a coin's value that do not count as collateral; 0 for a debt."""
    return Fraction(quantity) * Fraction(usd_price) - collateral_value(quantity, usd_price, tiers)


def usdt_usd(btc_usd_index: Exact, btc_usdt_index: Exact) -> Fraction:
    """Dollars per USDT by the venue's chain: index of BTCUSD over index of BTCUSDT.

    Raises `ValueError` for an index that is not positive.
    """
    if btc_usd_index <= 0 or btc_usdt_index <= 0:
        raise ValueError("an index must be positive")
    return Fraction(btc_usd_index) / Fraction(btc_usdt_index)


def coin_usd(coin_usdt_index: Exact, usdt_rate: Exact) -> Fraction:
    """Dollars per coin: its index in USDT times the dollars per USDT."""
    return Fraction(coin_usdt_index) * Fraction(usdt_rate)


def profit(side: int, size: Exact, entry_price: Exact, mark_price: Exact, *, inverse: bool = False) -> Fraction:
    """Unrealized profit in the settlement coin: `size * (mark - entry)`, inverse `size * (1/entry - 1/mark)`."""
    entry, mark = Fraction(entry_price), Fraction(mark_price)
    return side * Fraction(size) * ((1 / entry - 1 / mark) if inverse else mark - entry)


def order_loss(side: int, size: Exact, limit_price: Exact, mark_price: Exact, *, inverse: bool = False) -> Fraction:
    """What an open order would lose at the mark if it filled, 0 or negative: a buy above or a sell below the mark."""
    return min(ZERO, profit(side, size, limit_price, mark_price, inverse=inverse))


def option_margin(
    size: Exact,
    *,
    is_call: bool,
    index_price: Exact,
    strike: Exact,
    entry_price: Exact,
    mark_price: Exact,
    rates: OptionRates,
) -> OptionMargin:
    """Margins of one option position in cross margin; a long one needs none (its premium is paid).

    Short, per contract with index S, mark m, entry e and OTM = max(0, K - S) for a call, max(0, S - K) for a put:

        maintenance = max(rate * S, rate * m) + m + liquidation fee * S
        initial     = max( max(initial * S - OTM, floor * S) + max(e, m), maintenance )
    """
    quantity = Fraction(size)
    if quantity >= 0:
        return OptionMargin(ZERO, ZERO)
    spot, mark, K = Fraction(index_price), Fraction(mark_price), Fraction(strike)
    out_of_the_money = max(ZERO, K - spot if is_call else spot - K)
    maintenance = max(rates.maintenance * spot, rates.maintenance * mark) + mark + rates.liquidation_fee * spot
    initial = max(rates.initial * spot - out_of_the_money, rates.initial_floor * spot)
    initial = max(initial + max(Fraction(entry_price), mark), maintenance)
    return OptionMargin(-quantity * initial, -quantity * maintenance)


def margin_balance(
    coin_values_usd: Iterable[Exact], profits_usd: Iterable[Exact], option_value_usd: Exact = 0
) -> Fraction:
    """Margin balance in dollars: coins at their collateral value, profit of perpetuals and futures in full.

    In portfolio margin the value of options is added, in cross margin it is not.
    """
    total = sum((Fraction(value) for value in (*coin_values_usd, *profits_usd)), ZERO)
    return total + Fraction(option_value_usd)


def margin_rate(
    requirement_usd: Exact, balance_usd: Exact, *, haircut_loss_usd: Exact = 0, order_loss_usd: Exact = 0
) -> Fraction | None:
    """`requirement / (margin balance - haircut loss + order loss)`, the account's IM or MM rate; losses of orders are
    0 or negative.

    0 without a requirement; None (beyond any rate) when a requirement meets nothing or less.
    """
    denominator = Fraction(balance_usd) - Fraction(haircut_loss_usd) + Fraction(order_loss_usd)
    if requirement_usd == 0:
        return ZERO
    return Fraction(requirement_usd) / denominator if denominator > 0 else None


def is_liquidated(maintenance_usd: Exact, balance_usd: Exact) -> bool:
    """Whether the maintenance rate is at or above 100 %; never without a requirement and with a balance above 0."""
    return Fraction(balance_usd) <= Fraction(maintenance_usd) and not maintenance_usd == balance_usd == 0


def portfolio_initial_margin(maintenance: Exact, factor: Exact) -> Fraction:
    """Initial margin of a portfolio-margin unit: its maintenance (maximum loss and contingency) times the IM factor."""
    return Fraction(maintenance) * Fraction(factor)


def bankruptcy_price(
    side: int, size: Exact, entry_price: Exact, margin: Exact, *, inverse: bool = False
) -> Fraction | None:
    """Price at which an isolated position has lost its margin; None where no price takes all of it.

    Linear `entry - side * margin / size`; inverse `size / (size / entry + side * margin)`.
    """
    quantity, entry = Fraction(size), Fraction(entry_price)
    if quantity == 0:
        return None
    if inverse:
        coins = quantity / entry + side * Fraction(margin)
        return quantity / coins if coins > 0 else None
    price = entry - side * Fraction(margin) / quantity
    return price if price > 0 else None


def liquidation_price(
    side: int,
    size: Exact,
    entry_price: Exact,
    tiers: Sequence[RiskTier],
    *,
    margin: Exact,
    inverse: bool = False,
) -> Fraction | None:
    """Mark price at which `margin + profit` of one position equals its maintenance margin; None if there is none.

    In the tier of rate r and deduction d, with s the side:
    linear  `P = (s * size * entry - margin - d) / (size * (s - r))`,
    inverse `P = size * (s + r) / (s * size / entry + margin + d)`.
    The excess is monotone in the price, so at most one tier holds its own solution. `margin` is what is put behind the
    position, without its profit. Closing fees are left out, as in the venue's formula. Size 0: None.
    """
    quantity, entry, held = Fraction(size), Fraction(entry_price), Fraction(margin)
    if quantity == 0:
        return None
    floor = ZERO
    table = deductions(tiers)
    for number, tier in enumerate(tiers):
        if inverse:
            top, bottom = quantity * (side + tier.rate), side * quantity / entry + held + table[number]
        else:
            top, bottom = side * quantity * entry - held - table[number], quantity * (side - tier.rate)
        if bottom != 0 and top / bottom > 0:
            price = top / bottom
            value = position_value(quantity, price, inverse=inverse)
            last = number == len(tiers) - 1
            if value >= floor and (last or tier.limit is None or value <= tier.limit):
                return price
        floor = tier.limit if tier.limit is not None else floor
    return None
