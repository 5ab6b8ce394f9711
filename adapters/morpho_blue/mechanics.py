"""Exact integer mechanics of Morpho Blue: shares, accrual, health, liquidation.

Units: token amounts and shares in smallest units, rates per second, LLTV, fees and incentive factors in wad (1e18), the
oracle's price as smallest units of the loan token per smallest unit of collateral, times 1e36.
Source: github.com/morpho-org/morpho-blue, `Morpho.sol`, `SharesMathLib.sol`, `MathLib.sol`, `ConstantsLib.sol` (read
2026-11-21); the contract cannot be changed once deployed.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

WAD = 10**18
ORACLE_PRICE_SCALE = 10**36
VIRTUAL_SHARES = 10**6
VIRTUAL_ASSETS = 1
LIQUIDATION_CURSOR = 3 * WAD // 10
MAX_LIQUIDATION_INCENTIVE_FACTOR = 115 * WAD // 100
MAX_FEE = WAD // 4


class MorphoRevertedError(Exception):
    """The call fails on chain; `error` is the contract's words, or the panic."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


# Shares ---------------------------------------------------------------------------------------------------------------


def to_shares_down(assets: int, total_assets: int, total_shares: int) -> int:
    """Shares worth `assets`, rounded down; the virtual share and asset keep an empty market well defined."""
    return assets * (total_shares + VIRTUAL_SHARES) // (total_assets + VIRTUAL_ASSETS)


def to_shares_up(assets: int, total_assets: int, total_shares: int) -> int:
    """Shares worth `assets`, rounded up."""
    return _ceil_div(assets * (total_shares + VIRTUAL_SHARES), total_assets + VIRTUAL_ASSETS)


def to_assets_down(shares: int, total_assets: int, total_shares: int) -> int:
    """Assets of `shares`, rounded down: what a supplier has."""
    return shares * (total_assets + VIRTUAL_ASSETS) // (total_shares + VIRTUAL_SHARES)


def to_assets_up(shares: int, total_assets: int, total_shares: int) -> int:
    """Assets of `shares`, rounded up: what a borrower owes."""
    return _ceil_div(shares * (total_assets + VIRTUAL_ASSETS), total_shares + VIRTUAL_SHARES)


# Accrual --------------------------------------------------------------------------------------------------------------


class Market(NamedTuple):
    """The totals of one market, and the fee on interest (wad)."""

    total_supply_assets: int
    total_supply_shares: int
    total_borrow_assets: int
    total_borrow_shares: int
    fee: int = 0


def compounded(rate: int, elapsed_s: int) -> int:
    """e^(rate * elapsed) - 1 to the third order, wad: x + x^2/2 + x^3/6, each product cut."""
    first = rate * elapsed_s
    second = first * first // (2 * WAD)
    return first + second + second * first // (3 * WAD)


def accrued(market: Market, borrow_rate: int, elapsed_s: int) -> Market:
    """The market after `elapsed_s` seconds at `borrow_rate` per second.

    Interest goes to the borrowed and to the supplied assets; the fee's part of it becomes new supply shares of the fee
    recipient, priced as if it had not been added. Nothing accrues without debt.
    """
    interest = market.total_borrow_assets * compounded(borrow_rate, elapsed_s) // WAD
    supplied = market.total_supply_assets + interest
    fee = interest * market.fee // WAD
    fee_shares = to_shares_down(fee, supplied - fee, market.total_supply_shares) if market.fee else 0
    return market._replace(
        total_supply_assets=supplied,
        total_supply_shares=market.total_supply_shares + fee_shares,
        total_borrow_assets=market.total_borrow_assets + interest,
    )


# Health ---------------------------------------------------------------------------------------------------------------


def borrowed_assets(borrow_shares: int, market: Market) -> int:
    """What a borrower owes, rounded up, at the market's accrued totals."""
    return to_assets_up(borrow_shares, market.total_borrow_assets, market.total_borrow_shares)


def supplied_assets(supply_shares: int, market: Market) -> int:
    """What a supplier has, rounded down, at the market's accrued totals."""
    return to_assets_down(supply_shares, market.total_supply_assets, market.total_supply_shares)


def max_borrow(collateral: int, price: int, lltv: int) -> int:
    """Most that the collateral carries, in loan tokens: its value at the oracle's price times LLTV, both cut."""
    return collateral * price // ORACLE_PRICE_SCALE * lltv // WAD


def is_healthy(collateral: int, borrow_shares: int, market: Market, *, price: int, lltv: int) -> bool:
    """Whether the position may borrow and cannot be liquidated: one test for both, healthy at equality."""
    return borrow_shares == 0 or max_borrow(collateral, price, lltv) >= borrowed_assets(borrow_shares, market)


def health(collateral: int, borrow_shares: int, market: Market, *, price: int, lltv: int) -> Fraction | None:
    """Collateral times LLTV over debt, the debt rounded as on chain, the collateral not; None without debt."""
    if borrow_shares == 0:
        return None
    owed = borrowed_assets(borrow_shares, market)
    return Fraction(collateral * price * lltv, ORACLE_PRICE_SCALE * WAD * owed)


def liquidation_price(collateral: int, borrow_shares: int, market: Market, *, lltv: int) -> int | None:
    """Smallest oracle price at which the position is healthy; it can be liquidated exactly below it.

    None without debt, and where no price helps (no collateral).
    """
    if borrow_shares == 0 or collateral == 0 or lltv == 0:
        return None
    # both cuts of the limit are monotone in the price, so each is undone by rounding up
    value = _ceil_div(borrowed_assets(borrow_shares, market) * WAD, lltv)
    return _ceil_div(value * ORACLE_PRICE_SCALE, collateral)


# Liquidation ----------------------------------------------------------------------------------------------------------


def liquidation_incentive_factor(lltv: int) -> int:
    """Collateral value that a liquidator gets per debt repaid, wad: min(1.15, 1 / (1 - 0.3 * (1 - LLTV)))."""
    return min(MAX_LIQUIDATION_INCENTIVE_FACTOR, WAD * WAD // (WAD - LIQUIDATION_CURSOR * (WAD - lltv) // WAD))


class Liquidation(NamedTuple):
    """What one call moves, and what is left of the position.

    The suppliers bear `bad_debt_assets`: it leaves the borrowed and the supplied assets of the market. The market's
    totals are after repayment and bad debt.
    """

    seized_assets: int
    repaid_assets: int
    repaid_shares: int
    bad_debt_assets: int
    bad_debt_shares: int
    collateral_left: int
    borrow_shares_left: int
    total_borrow_assets: int
    total_borrow_shares: int


def liquidation(
    collateral: int,
    borrow_shares: int,
    market: Market,
    *,
    price: int,
    lltv: int,
    seized_assets: int = 0,
    repaid_shares: int = 0,
) -> Liquidation:
    """One liquidation on accrued totals, by collateral to seize or by shares to repay; exactly one of them is not 0.

    There is no close factor. When no collateral is left the rest of the debt is written off, at most what the market
    has lent. Whether the position may be liquidated is for `liquidate` to say. Raises `MorphoRevertedError` for two or
    no amounts, and for more than the position has.
    """
    if (seized_assets == 0) == (repaid_shares == 0):
        raise MorphoRevertedError("inconsistent input")
    factor, assets, shares = liquidation_incentive_factor(lltv), market.total_borrow_assets, market.total_borrow_shares
    if seized_assets:
        quoted = _ceil_div(seized_assets * price, ORACLE_PRICE_SCALE)
        repaid_shares = to_shares_up(_ceil_div(quoted * WAD, factor), assets, shares)
    elif price == 0:
        raise MorphoRevertedError("division by zero")
    else:
        rewarded = to_assets_down(repaid_shares, assets, shares) * factor // WAD
        seized_assets = rewarded * ORACLE_PRICE_SCALE // price
    repaid_assets = to_assets_up(repaid_shares, assets, shares)
    if repaid_shares > borrow_shares or seized_assets > collateral:
        raise MorphoRevertedError("underflow")

    # rounding up may ask for one unit more than the market has lent
    assets, shares = max(assets - repaid_assets, 0), shares - repaid_shares
    left, bad_shares, bad_assets = borrow_shares - repaid_shares, 0, 0
    if seized_assets == collateral:
        bad_shares, left = left, 0
        bad_assets = min(assets, to_assets_up(bad_shares, assets, shares))
        assets, shares = assets - bad_assets, shares - bad_shares
    return Liquidation(
        seized_assets=seized_assets,
        repaid_assets=repaid_assets,
        repaid_shares=repaid_shares,
        bad_debt_assets=bad_assets,
        bad_debt_shares=bad_shares,
        collateral_left=collateral - seized_assets,
        borrow_shares_left=left,
        total_borrow_assets=assets,
        total_borrow_shares=shares,
    )


def liquidate(
    collateral: int,
    borrow_shares: int,
    market: Market,
    *,
    price: int,
    lltv: int,
    seized_assets: int = 0,
    repaid_shares: int = 0,
) -> Liquidation:
    """`liquidation` of a position that is not healthy; else `MorphoRevertedError`."""
    if is_healthy(collateral, borrow_shares, market, price=price, lltv=lltv):
        raise MorphoRevertedError("position is healthy")
    return liquidation(
        collateral,
        borrow_shares,
        market,
        price=price,
        lltv=lltv,
        seized_assets=seized_assets,
        repaid_shares=repaid_shares,
    )
