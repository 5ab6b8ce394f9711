"""Binance's own margin arithmetic in exact decimals: brackets, liquidation prices, portfolio margin and uniMMR.

Pure functions for one item. Money in the margin asset of the contract (the quote asset of USD-M, the coin of COIN-M),
or in USD where a name ends in `_usd`; long quantities positive. Sources: Binance, "Leverage and margin of USD-M
futures" and "of COIN-M futures" (brackets: maintenance amount `cum`; liquidation price); Binance FAQ "Portfolio Margin
Pro maintenance margin ratio calculation" (equity, maintenance and thresholds of the uniMMR).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

ZERO = Decimal(0)


class Bracket(NamedTuple):
    """One leverage bracket: notional in (floor, cap], maintenance rate and deduction `cum`, highest leverage.

    `cap` None: open above.
    """

    floor: Decimal
    cap: Decimal | None
    rate: Decimal
    max_leverage: Decimal
    cum: Decimal


class BracketMargin(NamedTuple):
    """Margins of one position in the quote asset and the highest leverage that its bracket allows."""

    maintenance_margin: Decimal
    max_leverage: Decimal
    initial_margin: Decimal


def deductions(floors: Sequence[Decimal], rates: Sequence[Decimal]) -> list[Decimal]:
    """`cum` of each bracket from floors and rates: `cum_1 = 0, cum_n = cum_{n-1} + floor_n * (rate_n - rate_{n-1})`.

    It makes `notional * rate - cum` continuous at every floor.
    """
    out: list[Decimal] = []
    for number, (floor, rate) in enumerate(zip(floors, rates, strict=True)):
        out.append(out[-1] + floor * (rate - rates[number - 1]) if number else ZERO)
    return out


def bracket_of(notional: Decimal, brackets: Sequence[Bracket]) -> Bracket:
    """The bracket of an absolute notional; at a cap the lower one, above the last cap the last, at zero the first.

    Brackets ascend. Raises `ValueError` when there is none.
    """
    if not brackets:
        raise ValueError("no brackets")
    for bracket in brackets:
        if bracket.cap is None or notional <= bracket.cap:
            return bracket
    return brackets[-1]


def bracket_margin(notional: Decimal, brackets: Sequence[Bracket], *, selected_leverage: Decimal) -> BracketMargin:
    """Maintenance `|N| * rate - cum` and initial `|N| / leverage` of a position of notional N.

    The leverage is the selected one, or the bracket's highest where the selection exceeds it. Raises `ValueError`
    without brackets or with a leverage that is not positive.
    """
    if selected_leverage <= 0:
        raise ValueError(f"leverage {selected_leverage} must be positive")
    size = abs(notional)
    bracket = bracket_of(size, sorted(brackets, key=lambda b: b.floor))
    return BracketMargin(
        size * bracket.rate - bracket.cum,
        bracket.max_leverage,
        size / min(selected_leverage, bracket.max_leverage),
    )


def liquidation_price(
    quantity: Decimal,
    entry_price: Decimal,
    brackets: Sequence[Bracket],
    *,
    wallet: Decimal,
    other_margin: Decimal = ZERO,
) -> Decimal | None:
    """Price at which the margin balance of one linear position falls to its maintenance margin; None if there is none.

    Solves `wallet + other_margin + q * (P - entry) = |q| * P * rate - cum` in the bracket that holds `|q| * P`; the
    balance less the maintenance margin is monotone in P, so the solution is unique. `wallet` is the isolated or cross
    wallet balance; `other_margin` is unrealized profit less maintenance margin of the account's other positions.
    Quantity 0: None.
    """
    if quantity == 0:
        return None
    size, last = abs(quantity), len(brackets) - 1
    for number, bracket in enumerate(brackets):
        slope = quantity - size * bracket.rate
        if slope == 0:
            continue
        price = (quantity * entry_price - wallet - other_margin - bracket.cum) / slope
        notional = size * price
        if (
            price > 0
            and notional >= bracket.floor
            and (number == last or bracket.cap is None or notional <= bracket.cap)
        ):
            return price
    return None


def coin_notional(contracts: Decimal, contract_size: Decimal, price: Decimal) -> Decimal:
    """Coins that COIN-M contracts of `contract_size` dollars are worth at a price, signed as the contracts."""
    return contracts * contract_size / price


def coin_profit(contracts: Decimal, contract_size: Decimal, entry_price: Decimal, mark_price: Decimal) -> Decimal:
    """Unrealized profit of COIN-M contracts in coins: `contracts * size * (1 / entry - 1 / mark)`."""
    return contracts * contract_size * (1 / entry_price - 1 / mark_price)


def coin_liquidation_price(
    contracts: Decimal,
    contract_size: Decimal,
    entry_price: Decimal,
    brackets: Sequence[Bracket],
    *,
    wallet: Decimal,
    other_margin: Decimal = ZERO,
) -> Decimal | None:
    """Price at which the balance of one COIN-M position falls to its maintenance margin; None if there is none.

    In the bracket that holds the coins `|q| * size / P`, of rate r and deduction cum:
    `P = size * (q + |q| * r) / (q * size / entry + wallet + other_margin + cum)`. Brackets, wallet and `other_margin`
    (unrealized profit less maintenance margin of the account's other positions) in coins. Quantity 0: None.
    """
    if contracts == 0:
        return None
    size, last = abs(contracts), len(brackets) - 1
    for number, bracket in enumerate(brackets):
        top = contract_size * (contracts + size * bracket.rate)
        bottom = contracts * contract_size / entry_price + wallet + other_margin + bracket.cum
        if bottom == 0 or top / bottom <= 0:
            continue
        price = top / bottom
        notional = coin_notional(size, contract_size, price)
        if notional >= bracket.floor and (number == last or bracket.cap is None or notional <= bracket.cap):
            return price
    return None


class MarginCoin(NamedTuple):
    """Cross-margin (spot) wallet of one coin in a portfolio-margin account: coins held and coins borrowed."""

    coin: str
    asset: Decimal
    loan: Decimal


class LinearPosition(NamedTuple):
    """USD-M position: signed quantity, prices in the quote asset, maintenance rate and deduction of its bracket."""

    symbol: str
    quantity: Decimal
    entry_price: Decimal
    mark_price: Decimal
    rate: Decimal
    cum: Decimal = ZERO


class InversePosition(NamedTuple):
    """COIN-M position: USD value of all contracts, side +1 long or -1 short, maintenance rate, deduction in coins."""

    symbol: str
    contract_usd: Decimal
    side: int
    entry_price: Decimal
    mark_price: Decimal
    rate: Decimal
    cum: Decimal = ZERO


class PortfolioMarginParts(NamedTuple):
    """Parts of a portfolio-margin account: USD-M in the quote asset, COIN-M and the margin wallet in coins."""

    linear_profit: tuple[Decimal, ...]
    linear_maintenance: tuple[Decimal, ...]
    inverse_profit: tuple[Decimal, ...]
    inverse_maintenance: tuple[Decimal, ...]
    margin_equity: dict[str, Decimal]
    margin_maintenance: dict[str, Decimal]


def portfolio_margin_parts(
    margin: Sequence[MarginCoin],
    linear: Sequence[LinearPosition],
    inverse: Sequence[InversePosition],
    *,
    loan_rate: Decimal,
) -> PortfolioMarginParts:
    """Unrealized profit and maintenance of each position, equity and loan maintenance of each margin coin.

    Linear: `q * (mark - entry)` and `|rate * q * mark| - cum`. Inverse: `side * usd * (1/entry - 1/mark)` and `rate *
    usd / mark - cum`. Coin: `asset - loan` and `loan * loan_rate`; several lines of one coin add up. `loan_rate` is
    0.10 (3x), 0.08 (5x) or 0.05 (10x).
    """
    equity: dict[str, Decimal] = {}
    maintenance: dict[str, Decimal] = {}
    for line in margin:
        equity[line.coin] = equity.get(line.coin, ZERO) + line.asset - line.loan
        maintenance[line.coin] = maintenance.get(line.coin, ZERO) + line.loan * loan_rate
    return PortfolioMarginParts(
        tuple(p.quantity * (p.mark_price - p.entry_price) for p in linear),
        tuple(abs(p.rate * p.quantity * p.mark_price) - p.cum for p in linear),
        tuple(p.side * p.contract_usd * (1 / p.entry_price - 1 / p.mark_price) for p in inverse),
        tuple(p.rate * abs(p.contract_usd) / p.mark_price - p.cum for p in inverse),
        equity,
        maintenance,
    )


class CollateralTier(NamedTuple):
    """From `floor` coins on, a slice counts at `rate` of its value."""

    floor: Decimal
    rate: Decimal


def collateral_value(quantity: Decimal, index_price: Decimal, tiers: Sequence[CollateralTier]) -> Decimal:
    """What a coin counts in USD: each slice of the quantity at its own rate; what is owed counts in full.

    Tiers ascend from a floor of 0. Raises `ValueError` otherwise.
    """
    floors = [tier.floor for tier in tiers]
    if not floors or floors[0] != 0 or any(low >= high for low, high in pairwise(floors)):
        raise ValueError("collateral tiers must ascend from 0")
    if quantity <= 0:
        return quantity * index_price
    counted, rate = ZERO, ZERO
    for tier in tiers:
        counted += (tier.rate - rate) * max(quantity - tier.floor, ZERO)
        rate = tier.rate
    return counted * index_price


def loan_initial_rate(leverage: Decimal) -> Decimal:
    """Initial margin of a margin loan as a fraction of it: `1 / (leverage - 1)`; raises `ValueError` unless above 1."""
    if leverage <= 1:
        raise ValueError(f"leverage {leverage} must be above 1")
    return 1 / (leverage - 1)


class PortfolioMarginCoin(NamedTuple):
    """One coin of a portfolio-margin account, in coins; `index_price` in USD, `collateral_rate` a fraction.

    `collateral_tiers`, where given, stand in place of the one rate.
    """

    margin_asset: Decimal
    margin_loan: Decimal
    futures_wallet: Decimal
    futures_profit: Decimal
    futures_maintenance: Decimal
    index_price: Decimal
    collateral_rate: Decimal
    collateral_tiers: tuple[CollateralTier, ...] = ()


class UniMmr(NamedTuple):
    """Adjusted equity and maintenance margin in USD, their ratio (None without a requirement), the venue's status."""

    equity_usd: Decimal
    maintenance_usd: Decimal
    ratio: Decimal | None
    status: str


def uni_mmr(
    coins: Mapping[str, PortfolioMarginCoin],
    *,
    loan_rate: Decimal,
    statuses: Sequence[tuple[str, Decimal]],
    open_loss_usd: Decimal = ZERO,
) -> UniMmr:
    """Unified maintenance margin ratio `(sum_c min(v_c, v_c * rate_c) - open loss) / MM` of a portfolio-margin account.

    `v_c = (asset - loan + futures wallet + futures profit) * index`: a coin owed on balance is not haircut. MM is the
    futures maintenance plus `loan * loan_rate`, both at the index. `open_loss_usd` is the loss that open orders would
    realize. A status of `statuses` (descending) holds while the ratio is above its figure; at or below the last one the
    account is bankrupt. Without a requirement the ratio is None and the status the first, or bankrupt when equity is
    negative.
    """
    equity, maintenance = -open_loss_usd, ZERO
    for coin in coins.values():
        net = coin.margin_asset - coin.margin_loan + coin.futures_wallet + coin.futures_profit
        tiers = coin.collateral_tiers or (CollateralTier(ZERO, coin.collateral_rate),)
        equity += collateral_value(net, coin.index_price, tiers)
        maintenance += (coin.futures_maintenance + coin.margin_loan * loan_rate) * coin.index_price
    if maintenance == 0:
        return UniMmr(equity, maintenance, None, statuses[0][0] if equity >= 0 else "bankrupt")
    # Compared as products: a quotient rounded to the context precision could tip a ratio over its threshold.
    status = next((name for name, above in statuses if equity > above * maintenance), "bankrupt")
    return UniMmr(equity, maintenance, equity / maintenance, status)
