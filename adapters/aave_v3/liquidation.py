"""One liquidation call of Aave v3, exactly: close factor, seizure, protocol fee, dust rule, bad debt.

Units as in `health`. The size limits of v3.3 and later assume a dollar base of 8 decimals, as the contracts do.
Source: `LiquidationLogic`, `ValidationLogic` of the release (see `releases`), docs/3.3, docs/3.5, docs/3.7.
"""

from __future__ import annotations

from typing import NamedTuple

from .arithmetic import (
    PERCENTAGE_FACTOR,
    WAD,
    percent_div,
    percent_div_ceil,
    percent_div_floor,
    percent_mul,
    percent_mul_ceil,
    percent_mul_floor,
    ray_div,
    ray_div_ceil,
    ray_div_floor,
    ray_mul_floor,
)
from .health import debt_value, owed_amount, supplied_amount
from .releases import LATEST, Generation

CLOSE_FACTOR_HEALTH = 95 * WAD // 100
DEFAULT_CLOSE_FACTOR = 5000
MIN_BASE_MAX_CLOSE_FACTOR = 2000 * 10**8
MIN_LEFTOVER_BASE = MIN_BASE_MAX_CLOSE_FACTOR // 2


class LiquidationRevertedError(Exception):
    """The call fails on chain; `error` is the contracts' error name (before v3.4 they say a number in its place)."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class CollateralSide(NamedTuple):
    """The collateral reserve of a liquidation: the borrower's shares, and the bonus in the borrower's e-mode."""

    decimals: int
    price: int
    scaled_balance: int
    liquidity_index: int
    liquidation_bonus: int
    protocol_fee: int
    """Basis points of the bonus."""


class DebtSide(NamedTuple):
    """The debt reserve of a liquidation."""

    decimals: int
    price: int
    scaled_debt: int
    borrow_index: int


class Liquidation(NamedTuple):
    """What one liquidation call moves, in tokens of the collateral and of the debt reserve.

    `no_collateral_left` is the contracts' own test, which no release before v3.3 makes (False then). `deficit` is the
    debt of this reserve that is written off because of it; the account's other debts are written off in full in the
    same call.
    """

    half_close_factor: bool
    debt_repaid: int
    collateral_to_liquidator: int
    protocol_fee: int
    """As the rule computes it."""
    protocol_fee_moved: int
    """What of it is transferred: less where too few shares of the balance are left."""
    scaled_collateral_left: int
    no_collateral_left: bool
    deficit: int


def liquidation(
    collateral: CollateralSide,
    debt: DebtSide,
    *,
    total_collateral: int,
    total_debt: int,
    health: int,
    debt_to_cover: int,
    generation: Generation = LATEST,
) -> Liquidation:
    """One `liquidationCall` for the underlying, on accrued indices; totals in base currency, health factor in wad.

    Since v3.3 half of the whole account's debt can be repaid when both sides are worth at least 2000 dollars and health
    is above 0.95, else all of the reserve's debt; what is left on both sides must be worth at least 1000 dollars unless
    one side is gone. Before, half of the reserve's debt above a health of 0.95, else all of it, and any rest may stay.
    Paused or inactive reserves, grace periods and sentinels are the caller's to check. Raises
    `LiquidationRevertedError`.
    """
    if health >= WAD:
        raise LiquidationRevertedError("HealthFactorNotBelowThreshold")
    balance = supplied_amount(collateral.scaled_balance, collateral.liquidity_index, generation)
    owed = owed_amount(debt.scaled_debt, debt.borrow_index, generation)
    if collateral.scaled_balance == 0:
        raise LiquidationRevertedError("CollateralCannotBeLiquidated")
    if owed == 0:
        raise LiquidationRevertedError("SpecifiedCurrencyNotBorrowedByUser")

    limit, half = _largest_repayment(collateral, debt, balance, owed, total_debt, health, generation)
    taken, repaid = _seizure(collateral, debt, balance, min(debt_to_cover, limit), generation)
    fee = _protocol_fee(collateral, taken, generation)
    if generation.closes_by_account and repaid < owed and taken < balance:
        debt_left = debt_value(owed - repaid, debt.price, debt.decimals, generation)
        collateral_left = (balance - taken) * collateral.price // 10**collateral.decimals
        if debt_left < MIN_LEFTOVER_BASE or collateral_left < MIN_LEFTOVER_BASE:
            raise LiquidationRevertedError("MustNotLeaveDust")

    # Shares are burned once for the liquidator and once for the fee: rounded up (half up before v3.5), they may use up
    # the balance together although amounts predict a rest. The second transfer is then cut to what is there.
    to_shares = ray_div_ceil if generation.rounds_against_user else ray_div
    seized_shares = to_shares(taken - fee, collateral.liquidity_index)
    fee_shares = to_shares(fee, collateral.liquidity_index)
    fee_moved = fee
    if fee_shares > collateral.scaled_balance - seized_shares:
        fee_shares = collateral.scaled_balance - seized_shares
        fee_moved = supplied_amount(fee_shares, collateral.liquidity_index, generation)
    used_shares = seized_shares + fee_shares
    no_collateral_left = _none_left(collateral, taken, used_shares, total_collateral, generation)
    burned_debt = owed if no_collateral_left else repaid
    to_debt_shares = ray_div_floor if generation.rounds_against_user else ray_div
    if seized_shares == 0 or to_debt_shares(burned_debt, debt.borrow_index) == 0:
        raise LiquidationRevertedError("InvalidBurnAmount")
    return Liquidation(
        half_close_factor=half,
        debt_repaid=repaid,
        collateral_to_liquidator=taken - fee,
        protocol_fee=fee,
        protocol_fee_moved=fee_moved,
        scaled_collateral_left=collateral.scaled_balance - used_shares,
        no_collateral_left=no_collateral_left,
        deficit=owed - repaid if no_collateral_left else 0,
    )


def _largest_repayment(
    collateral: CollateralSide,
    debt: DebtSide,
    balance: int,
    owed: int,
    total_debt: int,
    health: int,
    generation: Generation,
) -> tuple[int, bool]:
    """Tokens of debt that one call may repay, and whether the close factor of one half applies."""
    half = health > CLOSE_FACTOR_HEALTH
    if not generation.closes_by_account:
        return percent_mul(owed, DEFAULT_CLOSE_FACTOR if half else PERCENTAGE_FACTOR), half
    collateral_value = balance * collateral.price // 10**collateral.decimals
    value = debt_value(owed, debt.price, debt.decimals, generation)
    half = half and min(collateral_value, value) >= MIN_BASE_MAX_CLOSE_FACTOR
    allowed = percent_mul(total_debt, DEFAULT_CLOSE_FACTOR)
    if half and value > allowed:
        return allowed * 10**debt.decimals // debt.price, True
    return owed, half


def _seizure(
    collateral: CollateralSide, debt: DebtSide, balance: int, repay: int, generation: Generation
) -> tuple[int, int]:
    """(collateral taken with its bonus, debt repaid): the repayment shrinks when the balance cannot pay the bonus.

    The bonus floors in v3.7, half up before; the smaller repayment ceils since v3.5, half up before.
    """
    collateral_unit, debt_unit = 10**collateral.decimals, 10**debt.decimals
    base = debt.price * repay * collateral_unit // (collateral.price * debt_unit)
    with_bonus = percent_mul_floor if generation.seizes_by_floor else percent_mul
    taken = with_bonus(base, collateral.liquidation_bonus)
    if taken <= balance:
        return taken, repay
    worth = collateral.price * balance * debt_unit // (debt.price * collateral_unit)
    without_bonus = percent_div_ceil if generation.rounds_against_user else percent_div
    return balance, without_bonus(worth, collateral.liquidation_bonus)


def _protocol_fee(collateral: CollateralSide, taken: int, generation: Generation) -> int:
    """The protocol's part of the bonus in what was taken; 0 without a fee."""
    if collateral.protocol_fee == 0:
        return 0
    if generation.seizes_by_floor:
        bonus = taken - percent_div_floor(taken, collateral.liquidation_bonus)
        return percent_mul_ceil(bonus, collateral.protocol_fee)
    return percent_mul(taken - percent_div(taken, collateral.liquidation_bonus), collateral.protocol_fee)


def _none_left(
    collateral: CollateralSide, taken: int, used_shares: int, total_collateral: int, generation: Generation
) -> bool:
    """Whether the release takes the account to be without collateral after the call."""
    if not generation.closes_by_account:
        return False
    used = ray_mul_floor(used_shares, collateral.liquidity_index) if generation.seizes_by_floor else taken
    return used * collateral.price // 10**collateral.decimals == total_collateral
