"""Exact margin mechanics of Hyperliquid: margin tiers, account summaries, liquidation prices and amounts.

Everything is a `Fraction`, so that 1/30 stays 1/30; amounts in the collateral token of the dex (USDC on the main one),
prices per unit of the coin, `side` +1 long and -1 short, `size` positive. Formulas: Hyperliquid docs, pages "Margin
tiers", "Margining" and "Liquidations" (hyperliquid.gitbook.io, read 2026-11-21), checked against recorded account
states.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

Exact = int | Decimal | Fraction

BACKSTOP_SHARE = Fraction(2, 3)
TRANSFER_SHARE = Fraction(1, 10)


class PartialLiquidation(NamedTuple):
    """Governed terms: above `notional` the first market liquidation order closes `share` of a position only; every
    further one within `cooldown_s` seconds is for the whole.
    """

    notional: Fraction
    share: Fraction
    cooldown_s: int


class MarginTier(NamedTuple):
    """A venue's tier: from `lower_bound` of notional on, at most `max_leverage`."""

    lower_bound: Fraction
    max_leverage: Fraction


class Bracket(NamedTuple):
    """A tier with what follows from it: `maintenance = notional * rate - deduction` for notional in [floor, cap]."""

    floor: Fraction
    cap: Fraction | None
    max_leverage: Fraction
    rate: Fraction
    deduction: Fraction


class SummedPosition(NamedTuple):
    """What a position adds to its account's totals: `position_value` = |szi| * mark, `szi` signed."""

    szi: Fraction
    position_value: Fraction
    leverage: Fraction


class CrossSummary(NamedTuple):
    """Totals of a cross account."""

    account_value: Fraction
    total_notional: Fraction
    total_margin_used: Fraction
    withdrawable: Fraction


def single_tier(max_leverage: Exact) -> tuple[MarginTier, ...]:
    """The tiers of a market whose maximum leverage does not depend on notional."""
    return (MarginTier(Fraction(0), Fraction(max_leverage)),)


def tier_table(tiers: Sequence[MarginTier]) -> tuple[Bracket, ...]:
    """Brackets by rising notional: rate_n = 1 / (2 * max_leverage_n), half the initial rate at the tier's maximum
    leverage.

    deduction_0 = 0, deduction_n = deduction_{n-1} + lower_bound_n * (rate_n - rate_{n-1}), which makes maintenance
    margin continuous. Raises `ValueError` for no tiers, two tiers of one lower bound or a leverage that is not
    positive.
    """
    ordered = sorted(tiers)
    if not ordered:
        raise ValueError("a margin table needs at least one tier")
    if any(tier.max_leverage <= 0 for tier in ordered):
        raise ValueError("the maximum leverage of a tier must be positive")
    if any(low.lower_bound == high.lower_bound for low, high in pairwise(ordered)):
        raise ValueError("two tiers have the same lower bound")
    brackets: list[Bracket] = []
    for number, (lower_bound, max_leverage) in enumerate(ordered):
        rate = 1 / (2 * max_leverage)
        deduction = Fraction(0)
        if brackets:
            deduction = brackets[-1].deduction + lower_bound * (rate - brackets[-1].rate)
        cap = ordered[number + 1].lower_bound if number + 1 < len(ordered) else None
        brackets.append(Bracket(lower_bound, cap, max_leverage, rate, deduction))
    return tuple(brackets)


def maintenance_margin(notional: Exact, tiers: Sequence[MarginTier]) -> Fraction:
    """Maintenance margin of |notional|, by marginal tiers; 0 for notional 0."""
    size = abs(Fraction(notional))
    table = tier_table(tiers)
    bracket = next((bracket for bracket in reversed(table) if bracket.floor <= size), table[0])
    return size * bracket.rate - bracket.deduction


def cross_summary(total_raw_usd: Exact, positions: Sequence[SummedPosition]) -> CrossSummary:
    """Totals of a cross account: value = raw USD + signed notional, margin used = sum of notional / chosen leverage.

    Nothing is withdrawable below the margin used. The venue truncates its own margin figures to 1e-6 per position;
    these are not truncated. Whether withdrawals also respect `transfer_margin_required` is open: recorded states do
    not show it.
    """
    value = Fraction(total_raw_usd)
    notional = margin_used = Fraction(0)
    for position in positions:
        value += position.position_value if position.szi > 0 else -position.position_value if position.szi else 0
        notional += position.position_value
        margin_used += position.position_value / position.leverage
    return CrossSummary(value, notional, margin_used, max(Fraction(0), value - margin_used))


def isolated_margin(raw_usd: Exact, side: int, position_value: Exact) -> Fraction:
    """Margin (equity) of an isolated position: its raw USD plus its signed notional at the mark."""
    return Fraction(raw_usd) + side * Fraction(position_value)


def transfer_margin_required(initial_margin: Exact, total_position_value: Exact) -> Fraction:
    """Margin that must remain after a transfer out: the initial margin, at least a tenth of all notional."""
    return max(Fraction(initial_margin), TRANSFER_SHARE * Fraction(total_position_value))


def liquidation_price(
    side: int, price: Exact, *, size: Exact, equity: Exact, tiers: Sequence[MarginTier]
) -> Fraction | None:
    """Price at which `equity`, moving with this position alone, equals its maintenance margin; None if that is no
    price > 0.

    `equity` is at `price`: an isolated position's margin, or for a cross position the account value minus the
    maintenance margin of the account's other positions. Each tier has one candidate, p = (side * price - (equity +
    deduction) / size) / (side - rate), which for one tier is the documented price - side * margin_available / size /
    (1 - l * side). The candidate whose notional lies in its own tier is the answer; equity less maintenance margin is
    strictly monotone in the price, so there is exactly one such root on the whole line.
    """
    quantity, at = Fraction(size), Fraction(price)
    for bracket in tier_table(tiers):
        root = (side * at - (Fraction(equity) + bracket.deduction) / quantity) / (side - bracket.rate)
        notional = root * quantity
        if notional >= bracket.floor and (bracket.cap is None or notional <= bracket.cap):
            return root if root > 0 else None
    return None


def liquidation_price_2023(
    coin: int, total_raw_usd: Exact, *, positions: Sequence[SummedPosition], max_leverages: Sequence[Exact]
) -> Fraction | None:
    """The liquidation price that the venue reported in 2023 for `positions[coin]` of a cross account; None if not > 0.

    price - side * (account value - sum of notional / (2 * max leverage)) / size: one tier, and without the division by
    (1 - l * side) that the present formula has. For recorded states of that time only.
    """
    maintenance = sum(
        (p.position_value / (2 * Fraction(leverage)) for p, leverage in zip(positions, max_leverages, strict=True)),
        Fraction(0),
    )
    held = positions[coin]
    size, side = abs(held.szi), 1 if held.szi > 0 else -1
    available = cross_summary(total_raw_usd, positions).account_value - maintenance
    root = held.position_value / size - side * available / size
    return root if root > 0 else None


def is_liquidatable(equity: Exact, maintenance: Exact) -> bool:
    """Whether equity is below maintenance margin; at equality the account stands."""
    return Fraction(equity) < Fraction(maintenance)


def is_backstop_liquidated(equity: Exact, maintenance: Exact) -> bool:
    """Whether equity is below 2/3 of maintenance margin: the liquidator vault takes over, margin included."""
    return Fraction(equity) < BACKSTOP_SHARE * Fraction(maintenance)


def liquidation_order_size(
    size: Exact, price: Exact, terms: PartialLiquidation, *, in_cooldown: bool = False
) -> Fraction:
    """Quantity of the next market liquidation order of a position: a share of it above a notional, else the whole.

    `in_cooldown`: another position of the user was partially liquidated within the last `terms.cooldown_s` seconds.
    """
    quantity = abs(Fraction(size))
    partial = quantity * Fraction(price) > terms.notional and not in_cooldown
    return quantity * terms.share if partial else quantity
