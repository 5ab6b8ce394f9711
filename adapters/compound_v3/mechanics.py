"""Exact integer mechanics of Compound v3 (Comet): accrual, collateral checks, absorption, sale of collateral.

Units: base amounts and collateral balances in smallest units, scales 10^decimals, indices 1e15, prices 1e8 in the
market's own numeraire (dollars, or ether in a market whose feeds quote ether), factors, utilization and rates per
second 1e18. Quotients are cut towards zero unless a function says otherwise.
Source: github.com/compound-finance/comet, `CometCore.sol`, `Comet.sol` and `CometWithExtendedAssetList.sol` (read
2026-11-21). The later `CometWithPartialLiquidation.sol` liquidates in parts and is not modeled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

INDEX_SCALE = 10**15
FACTOR_SCALE = 10**18
PRICE_SCALE = 10**8
SECONDS_PER_YEAR = 31_536_000

MAX_ASSETS = 24
"""Collateral assets of one market: 15 in `Comet.sol`, 24 with the extended asset list."""

PAUSE_FLAGS = ("supply", "transfer", "withdraw", "absorb", "buy")
"""Action that each bit of `pauseFlags` stops, from the lowest bit."""

Factor = Literal["borrow_factor", "liquidate_factor"]


class CometRevertedError(Exception):
    """The call fails on chain; `error` is the contract's error name."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


# Base balances --------------------------------------------------------------------------------------------------------


class Indices(NamedTuple):
    """Supply and borrow index of the base asset, 1e15."""

    supply: int = INDEX_SCALE
    borrow: int = INDEX_SCALE


def present_value(principal: int, indices: Indices) -> int:
    """Base tokens of a principal, signed like it: supply at the supply index, debt at the borrow index, both cut."""
    if principal >= 0:
        return principal * indices.supply // INDEX_SCALE
    return -(-principal * indices.borrow // INDEX_SCALE)


def principal_value(present: int, indices: Indices) -> int:
    """Principal of base tokens: a supply rounded down, a debt rounded up in size."""
    if present >= 0:
        return present * INDEX_SCALE // indices.supply
    return -_ceil_div(-present * INDEX_SCALE, indices.borrow)


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


# Accrual --------------------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One interest curve: rates per second, slopes per unit of utilization, all 1e18."""

    kink: int
    slope_low: int
    slope_high: int
    base: int


class Rates(NamedTuple):
    """The market's two curves."""

    supply: Curve
    borrow: Curve


class Totals(NamedTuple):
    """`totalsBasic` as far as accrual needs it: stored indices, and principal of all supplies and of all debts."""

    indices: Indices
    supply: int
    borrow: int


def per_second(per_year: int) -> int:
    """A yearly rate or slope per second, cut, as the constructor stores it."""
    return per_year // SECONDS_PER_YEAR


def utilization(totals: Totals) -> int:
    """Borrowed over supplied at the stored indices, 1e18; 0 without supply, may exceed 1."""
    supplied = present_value(totals.supply, totals.indices)
    return -present_value(-totals.borrow, totals.indices) * FACTOR_SCALE // supplied if supplied else 0


def interest_rate(curve: Curve, used: int) -> int:
    """Rate per second at a utilization: `base + low * min(u, kink) + high * (u - kink)^+`, each product cut."""
    rate = curve.base + curve.slope_low * min(used, curve.kink) // FACTOR_SCALE
    return rate + curve.slope_high * (used - curve.kink) // FACTOR_SCALE if used > curve.kink else rate


def yearly_rate(curve: Curve, totals: Totals) -> Fraction:
    """What a curve asks for at the stored utilization, a fraction a year, not compounded."""
    return Fraction(interest_rate(curve, utilization(totals)) * SECONDS_PER_YEAR, FACTOR_SCALE)


def accrued_indices(totals: Totals, rates: Rates, elapsed_s: int) -> Indices:
    """The stored indices grown over `elapsed_s` seconds at the rates of the stored utilization; simple interest.

    `index + index * (rate * elapsed) / 1e18`, cut. Zero seconds leave them as they are.
    """
    used = utilization(totals)
    supply, borrow = totals.indices
    return Indices(
        supply + supply * (interest_rate(rates.supply, used) * elapsed_s) // FACTOR_SCALE,
        borrow + borrow * (interest_rate(rates.borrow, used) * elapsed_s) // FACTOR_SCALE,
    )


# Collateral checks ----------------------------------------------------------------------------------------------------


class Base(NamedTuple):
    """Price and scale of the base asset."""

    price: int
    scale: int


class Collateral(NamedTuple):
    """What an account has of one collateral asset, with what the market says of it."""

    balance: int
    price: int
    scale: int
    borrow_factor: int
    liquidate_factor: int
    liquidation_factor: int = FACTOR_SCALE


def value_of(collateral: Collateral) -> int:
    """`balance * price / scale`, cut, 1e8. Raises `CometRevertedError` BadPrice for a price that is not positive."""
    if collateral.price <= 0:
        raise CometRevertedError("BadPrice")
    return collateral.balance * collateral.price // collateral.scale


def base_value(present: int, base: Base) -> int:
    """Signed value of base tokens, 1e8, cut towards zero."""
    value = abs(present) * base.price // base.scale
    return value if present >= 0 else -value


def liquidity(present: int, base: Base, collaterals: Iterable[Collateral], factor: Factor) -> int:
    """Base value plus the weighted value of all collateral, 1e8; each value and each product is cut."""
    return base_value(present, base) + sum(
        value_of(held) * getattr(held, factor) // FACTOR_SCALE for held in collaterals
    )


def _is_covered(principal: int, indices: Indices, base: Base, held: Iterable[Collateral], factor: Factor) -> bool:
    """Whether collateral covers a debt. Stops at the first asset that does, so later feeds are not even asked."""
    if principal >= 0:
        return True
    total = base_value(present_value(principal, indices), base)
    for collateral in held:
        if not collateral.balance:
            continue  # the account's `assetsIn` has no bit for it
        if total >= 0:
            return True
        total += value_of(collateral) * getattr(collateral, factor) // FACTOR_SCALE
    return total >= 0


def is_borrow_collateralized(principal: int, indices: Indices, base: Base, held: Iterable[Collateral]) -> bool:
    """Whether the account may borrow or take collateral out: no debt, or liquidity at the borrow factors >= 0."""
    return _is_covered(principal, indices, base, held, "borrow_factor")


def is_liquidatable(principal: int, indices: Indices, base: Base, held: Iterable[Collateral]) -> bool:
    """Whether the account can be absorbed: a debt, and liquidity at the liquidation factors strictly below 0."""
    return not _is_covered(principal, indices, base, held, "liquidate_factor")


def health(present: int, base: Base, held: Iterable[Collateral]) -> Fraction | None:
    """Weighted collateral over debt in real numbers, at the liquidation factors; None without debt."""
    if present >= 0:
        return None
    weighted = sum(
        (Fraction(c.balance * c.price * c.liquidate_factor, c.scale * FACTOR_SCALE) for c in held), Fraction(0)
    )
    return weighted / Fraction(-present * base.price, base.scale)


def liquidation_price(present: int, base: Base, held: Sequence[Collateral], asset: int) -> int | None:
    """Smallest price of collateral number `asset` (1e8) at which the account cannot be absorbed, all else equal.

    The account is liquidatable exactly below it. None where no price of this asset decides: no debt, nothing held of
    it or a factor of 0, or a debt that the other collateral covers alone.
    """
    own = held[asset]
    others = [collateral for number, collateral in enumerate(held) if number != asset]
    missing = -liquidity(present, base, others, "liquidate_factor")
    if present >= 0 or missing <= 0 or not own.balance or not own.liquidate_factor:
        return None
    # both cuts are monotone in the price, so each is undone by rounding up
    value = _ceil_div(missing * FACTOR_SCALE, own.liquidate_factor)
    return _ceil_div(value * own.scale, own.balance)


# Absorption and sale --------------------------------------------------------------------------------------------------


class Absorption(NamedTuple):
    """What absorbing one account does; the account keeps no collateral.

    `new_balance` base tokens (never negative, the shortfall falls on the reserves) and `new_principal` of the account,
    `base_paid_out` the base tokens that the reserves pay, `value_paid_out` and `collateral_values` in price units.
    """

    collateral_values: tuple[int, ...]
    new_balance: int
    new_principal: int
    base_paid_out: int
    value_paid_out: int


def absorption(principal: int, indices: Indices, base: Base, held: Sequence[Collateral]) -> Absorption:
    """The whole account taken over at the liquidation factors; whether it may be is for `absorb` to say."""
    present = present_value(principal, indices)
    # The contract visits only what the account holds: an asset without balance needs no price.
    values = tuple(value_of(collateral) if collateral.balance else 0 for collateral in held)
    credited = sum(v * c.liquidation_factor // FACTOR_SCALE for v, c in zip(values, held, strict=True))
    balance = max(present + credited * base.scale // base.price, 0)
    paid = balance - present
    return Absorption(values, balance, principal_value(balance, indices), paid, paid * base.price // base.scale)


def absorb(
    principal: int, indices: Indices, base: Base, held: Sequence[Collateral], *, pause_flags: int = 0
) -> Absorption:
    """`absorb` of one account on accrued indices. Raises `CometRevertedError`: Paused, NotLiquidatable."""
    if "absorb" in paused_actions(pause_flags):
        raise CometRevertedError("Paused")
    if not is_liquidatable(principal, indices, base, held):
        raise CometRevertedError("NotLiquidatable")
    return absorption(principal, indices, base, held)


def quote_collateral(
    base_amount: int, base: Base, *, price: int, scale: int, liquidation_factor: int, store_front_factor: int
) -> int:
    """Collateral that the protocol sells for base tokens: at its price less a part of the liquidation penalty.

    discount = store front factor * (1 - liquidation factor); the discounted price and both divisions are cut.
    """
    discount = store_front_factor * (FACTOR_SCALE - liquidation_factor) // FACTOR_SCALE
    discounted = price * (FACTOR_SCALE - discount) // FACTOR_SCALE
    return base.price * base_amount * scale // discounted // base.scale


def reserves(balance: int, totals: Totals, indices: Indices) -> int:
    """Base tokens of the protocol itself, may be negative: token balance - supplied + borrowed at accrued indices."""
    return balance - present_value(totals.supply, indices) - present_value(-totals.borrow, indices)


def collateral_is_for_sale(own_reserves: int, target: int) -> bool:
    """Whether absorbed collateral is sold: only while the reserves are below their target."""
    return own_reserves < 0 or own_reserves < target


# Borrowing ------------------------------------------------------------------------------------------------------------


def withdrawn(
    principal: int, amount: int, indices: Indices, base: Base, held: Sequence[Collateral], *, borrow_minimum: int
) -> int:
    """Principal after `amount` base tokens were withdrawn, borrowing what the supply lacks.

    Raises `CometRevertedError`: BorrowTooSmall when the debt is below the minimum, NotCollateralized when the borrow
    factors do not carry it. A debt from before stays as it is until the account borrows again.
    """
    present = present_value(principal, indices) - amount
    after = principal_value(present, indices)
    if present < 0:
        if -present < borrow_minimum:
            raise CometRevertedError("BorrowTooSmall")
        if not is_borrow_collateralized(after, indices, base, held):
            raise CometRevertedError("NotCollateralized")
    return after


def paused_actions(flags: int) -> tuple[str, ...]:
    """Names of the actions that `pauseFlags` stops, in the order of the bits; unknown bits are ignored."""
    return tuple(action for bit, action in enumerate(PAUSE_FLAGS) if flags >> bit & 1)


def assets_in(bits: int, extended: int = 0) -> frozenset[int]:
    """Offsets of the collateral that an account holds: 16 bits of `assetsIn`, then 8 of `_reserved`."""
    joined = (bits & 0xFFFF) | (extended & 0xFF) << 16
    return frozenset(offset for offset in range(MAX_ASSETS) if joined >> offset & 1)
