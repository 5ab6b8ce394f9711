"""OKX's margin rules as exact plain functions: discounted equity, position tiers, borrowing, risk units, margin ratio.

Money is USD unless a function says otherwise; rates are fractions; tiers are marginal only where a function says so.

Sources (read 2026-11-21): API v5 documentation, POST account/position-builder with its example; announcements "OKEx
adjusts scaling-factor logic in Portfolio Margin mode" (December 2021: marginal scaling of MR7 by its own raw amount),
"OKX to enhance new features in portfolio margin mode" (May 2024), "OKX will further adjust portfolio margin parameters"
(January 2025: moves of MR1 and MR6, tiers of MR7, annualized moves of MR4); help center "Multi-currency margin mode:
cross margin trading". MR2, MR3, MR5 and MR9 have no published formula: they are taken from the venue's own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

ZERO = Fraction(0)


class DiscountTier(NamedTuple):
    """Slice (floor, cap] of a currency's equity and the rate at which it counts; a cap of None is open."""

    floor: Fraction
    cap: Fraction | None
    rate: Fraction


class PositionTier(NamedTuple):
    """Tier of position size (contracts, or coins of a loan): it holds up to `cap` inclusive, None is open."""

    cap: Fraction | None
    initial_rate: Fraction
    maintenance_rate: Fraction
    max_leverage: Fraction


class Margin(NamedTuple):
    """Initial and maintenance margin requirement."""

    initial: Fraction
    maintenance: Fraction


# ---------------------------------------------------------------------------------------------------------------------
# Multi-currency margin: equity


def discounted(equity: Fraction, tiers: Sequence[DiscountTier]) -> Fraction:
    """Discounted equity in the unit of `equity` and of the tiers: each slice at its own rate.

    Negative equity counts in full. What lies above the last cap counts nothing.
    """
    if equity <= 0:
        return equity
    total = ZERO
    for tier in tiers:
        top = equity if tier.cap is None else min(equity, tier.cap)
        total += tier.rate * max(top - tier.floor, ZERO)
    return total


def discounted_usd(
    quantity: Fraction, index_price: Fraction, tiers: Sequence[DiscountTier], *, tiers_in_usd: bool
) -> Fraction:
    """Discounted USD value of `quantity` coins, with tier bounds in coins (the live feed) or in USD value."""
    if tiers_in_usd:
        return discounted(quantity * index_price, tiers)
    return discounted(quantity, tiers) * index_price


def adjusted_equity(
    discounted_values: Mapping[str, Fraction],
    *,
    isolated: Fraction = ZERO,
    order_loss: Fraction = ZERO,
    fees: Fraction = ZERO,
) -> Fraction:
    """`adjEq` in USD: `sum of discounted equities - isolated equity - open-order loss - fees`.

    `isolated` is 0 where the currencies' equities leave isolated margin out already.
    """
    return sum(discounted_values.values(), ZERO) - isolated - order_loss - fees


# ---------------------------------------------------------------------------------------------------------------------
# Positions and loans


def linear_notional(contracts: Fraction, contract_value: Fraction, multiplier: Fraction, mark: Fraction) -> Fraction:
    """Notional of a linear contract in its settlement currency: `|contracts| * ctVal * ctMult * mark`."""
    return abs(contracts) * contract_value * multiplier * mark


def inverse_notional(contracts: Fraction, contract_value: Fraction, multiplier: Fraction, mark: Fraction) -> Fraction:
    """Notional of an inverse contract in its coin: `|contracts| * ctVal * ctMult / mark`, ctVal in USD."""
    return abs(contracts) * contract_value * multiplier / mark


def linear_profit(
    contracts: Fraction, contract_value: Fraction, multiplier: Fraction, *, entry: Fraction, mark: Fraction
) -> Fraction:
    """Unrealized profit in the settlement currency: `contracts * ctVal * ctMult * (mark - entry)`."""
    return contracts * contract_value * multiplier * (mark - entry)


def inverse_profit(
    contracts: Fraction, contract_value: Fraction, multiplier: Fraction, *, entry: Fraction, mark: Fraction
) -> Fraction:
    """Unrealized profit in the coin: `contracts * ctVal * ctMult * (1 / entry - 1 / mark)`."""
    return contracts * contract_value * multiplier * (1 / entry - 1 / mark)


def tier_of(size: Fraction, tiers: Sequence[PositionTier]) -> PositionTier:
    """The tier of an absolute size: the first whose cap it does not pass, the last one beyond all caps."""
    return next((tier for tier in tiers if tier.cap is None or size <= tier.cap), tiers[-1])


def position_margin(
    notional: Fraction, family_size: Fraction, tiers: Sequence[PositionTier], *, leverage: Fraction
) -> Margin:
    """Margin of a position in the unit of its notional: `notional / leverage` and `notional * rate of the tier`.

    The tier is that of the whole size held in the instrument family, and its rate falls on all of the notional.
    """
    return Margin(notional / leverage, notional * tier_of(abs(family_size), tiers).maintenance_rate)


def borrow_margin(liability: Fraction, initial_rate: Fraction, maintenance_rate: Fraction) -> Margin:
    """MR8 in the unit of `liability` (>= 0): `liability * rate`; 10 % and 2 % at 10x in the documented example."""
    return Margin(liability * initial_rate, liability * maintenance_rate)


def margin_ratio(adjusted: Fraction, maintenance: Fraction, liquidation_fees: Fraction) -> Fraction | None:
    """`mgnRatio = adjusted equity / (maintenance + liquidation fees)`; None without a requirement. Below 1 liquidates.

    Fees are the taker rate times the notional: with 0.05 % this is the published ratio of the documented balance
    (143682.5978) and of the documented isolated position (11.7317), to the last digit.
    """
    requirement = maintenance + liquidation_fees
    return adjusted / requirement if requirement else None


def inverse_liquidation_price(
    contracts_usd: Fraction, *, entry: Fraction, margin: Fraction, maintenance_rate: Fraction, fee_rate: Fraction
) -> Fraction | None:
    """Price at which an isolated inverse position's ratio is 1; `contracts_usd` signed. None where no price > 0 is.

    `margin + Q (1/entry - 1/P) = |Q| / P * (maintenance_rate + fee_rate)`. The documented liquidation price lies one
    price step nearer to the mark than this zero.
    """
    held = margin + contracts_usd / entry
    owed = contracts_usd + abs(contracts_usd) * (maintenance_rate + fee_rate)
    if held == 0:
        return None
    price = owed / held
    return price if price > 0 else None


def linear_liquidation_price(
    quantity: Fraction, *, entry: Fraction, margin: Fraction, maintenance_rate: Fraction, fee_rate: Fraction
) -> Fraction | None:
    """Price at which an isolated linear position's ratio is 1; `quantity` in coins, signed. None where no price > 0 is.

    `margin + q (P - entry) = |q| * P * (maintenance_rate + fee_rate)`.
    """
    denominator = quantity - abs(quantity) * (maintenance_rate + fee_rate)
    if denominator == 0:
        return None
    price = (quantity * entry - margin) / denominator
    return price if price > 0 else None


# ---------------------------------------------------------------------------------------------------------------------
# Portfolio margin


class RiskParts(NamedTuple):
    """Parts of one risk unit in USD, MR7 after scaling."""

    mr1: Fraction
    mr2: Fraction
    mr3: Fraction
    mr4: Fraction
    mr5: Fraction
    mr6: Fraction
    mr7: Fraction
    mr9: Fraction = ZERO


def spot_shock(profits: Sequence[Fraction]) -> Fraction:
    """MR1: the largest loss over the grid of spot and vol moves, at least 0."""
    return max((-profit for profit in profits), default=ZERO) if profits and min(profits) < 0 else ZERO


def spot_shock_of_delta(delta: Fraction, moves: Sequence[Fraction]) -> Fraction:
    """MR1 of a unit without options: `max over moves of -delta * move`, delta in USD."""
    return spot_shock([delta * move for move in moves])


def basis_risk(deltas: Sequence[Fraction], rates: Sequence[Fraction]) -> Fraction:
    """MR4: `sum over expiries of |delta| * rate`; perpetual and spot legs have the unit's minimum rate (0.2 % BTC)."""
    return sum((abs(delta) * rate for delta, rate in zip(deltas, rates, strict=True)), ZERO)


def extreme_move(loss: Fraction) -> Fraction:
    """MR6: half of the loss at twice the largest move, at least 0."""
    return max(loss, ZERO) / 2


def minimum_charge(delta: Fraction, rate: Fraction, short_options: Fraction = ZERO) -> Fraction:
    """Raw MR7: `rate * |delta|` (0.45 % BTC, 0.70 % LTC in the documented example) plus the charge of short options."""
    return abs(delta) * rate + short_options


def scaled_minimum_charge(raw: Fraction, tiers: Sequence[tuple[Fraction | None, Fraction]]) -> Fraction:
    """MR7: the raw charge in marginal slices (upper bound of the raw charge, multiplier), the last bound None.

    What lies above a finite last bound keeps its multiplier.
    """
    total, floor = ZERO, ZERO
    for number, (cap, multiplier) in enumerate(tiers):
        last = number == len(tiers) - 1
        top = raw if cap is None or last else min(raw, cap)
        total += multiplier * max(top - floor, ZERO)
        floor = top if cap is None else cap
    return total if tiers else raw


def unit_maintenance(parts: RiskParts) -> Fraction:
    """Maintenance of a risk unit: `max(max(MR1, MR2, MR6) + MR3 + MR4 + MR5, MR7) + MR9`.

    Where MR9 enters is from memory of the venue's rules; it is 0 in every published example.
    """
    core = max(parts.mr1, parts.mr2, parts.mr6) + parts.mr3 + parts.mr4 + parts.mr5
    return max(core, parts.mr7) + parts.mr9


def unit_initial(maintenance: Fraction, factor: Fraction) -> Fraction:
    """Initial requirement of a risk unit: `factor * maintenance`."""
    return maintenance * factor


class PortfolioTotals(NamedTuple):
    """Requirements of a portfolio-margin account."""

    derivatives: Margin
    borrowing: Margin

    @property
    def total(self) -> Margin:
        """Sum of both."""
        return Margin(
            self.derivatives.initial + self.borrowing.initial, self.derivatives.maintenance + self.borrowing.maintenance
        )


def portfolio_totals(
    units: Sequence[Margin], liabilities: Fraction, *, borrow_initial: Fraction, borrow_maintenance: Fraction
) -> PortfolioTotals:
    """Sum of the risk units, and MR8 of the liabilities (USD, >= 0)."""
    derivatives = Margin(sum((unit.initial for unit in units), ZERO), sum((unit.maintenance for unit in units), ZERO))
    return PortfolioTotals(derivatives, borrow_margin(liabilities, borrow_initial, borrow_maintenance))
