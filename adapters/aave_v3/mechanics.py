"""Exact integer mechanics of Aave v3: accrual, account data, liquidation.

Units: token amounts in smallest units, indices and rates in ray (1e27; rates per year), health factors in wad (1e18),
LTV, thresholds and bonuses in basis points (1e4; a bonus of 5 % is 10500), prices and values in the market's base
currency. The size limits of a liquidation assume a dollar base of 8 decimals, as the contracts do.
Source: github.com/aave-dao/aave-v3-origin, `GenericLogic`, `LiquidationLogic`, `ValidationLogic`, `libraries/math`,
`TokenMath`, and docs/3.3 to docs/3.7 (read 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

RAY = 10**27
WAD = 10**18
PERCENTAGE_FACTOR = 10**4
SECONDS_PER_YEAR = 31_536_000
UINT256_MAX = 2**256 - 1
"""What the contracts return as the health factor of an account without debt."""

CLOSE_FACTOR_HEALTH = 95 * WAD // 100
DEFAULT_CLOSE_FACTOR = 5000
MIN_BASE_MAX_CLOSE_FACTOR = 2000 * 10**8
MIN_LEFTOVER_BASE = MIN_BASE_MAX_CLOSE_FACTOR // 2


class Generation(NamedTuple):
    """What differs between the releases of the protocol that can be read."""

    name: str
    rounds_against_user: bool
    """Balances floor, debts and their values ceil (v3.5 on); before, tokens round half up and debt values floor."""
    emode_stands_alone: bool
    """A category applies whatever the base parameters are (v3.6 on); before, a base threshold or LTV of 0 stays 0."""


GENERATIONS: Mapping[str, Generation] = {
    "v3.4": Generation("v3.4", rounds_against_user=False, emode_stands_alone=False),
    "v3.5": Generation("v3.5", rounds_against_user=True, emode_stands_alone=False),
    "v3.6": Generation("v3.6", rounds_against_user=True, emode_stands_alone=True),
    "v3.7": Generation("v3.7", rounds_against_user=True, emode_stands_alone=True),
}
"""Releases by name. A flag or bitmap that a release does not know yet is absent from its payloads."""

LATEST = GENERATIONS["v3.7"]


# Rounding -------------------------------------------------------------------------------------------------------------


def ceil_div(numerator: int, denominator: int) -> int:
    """Quotient of non-negative integers, rounded up."""
    return -(-numerator // denominator)


def half_up_div(numerator: int, denominator: int) -> int:
    """Quotient of non-negative integers, rounded to nearest, halves up, as the contracts add half the divisor first."""
    return (numerator + denominator // 2) // denominator


def ray_mul(a: int, b: int) -> int:
    """a * b / 1e27, half up."""
    return half_up_div(a * b, RAY)


def ray_mul_floor(a: int, b: int) -> int:
    """a * b / 1e27, rounded down."""
    return a * b // RAY


def ray_mul_ceil(a: int, b: int) -> int:
    """a * b / 1e27, rounded up."""
    return ceil_div(a * b, RAY)


def ray_div_floor(a: int, b: int) -> int:
    """a * 1e27 / b, rounded down."""
    return a * RAY // b


def ray_div_ceil(a: int, b: int) -> int:
    """a * 1e27 / b, rounded up."""
    return ceil_div(a * RAY, b)


def percent_mul(value: int, bps: int) -> int:
    """value * bps / 1e4, half up."""
    return half_up_div(value * bps, PERCENTAGE_FACTOR)


def percent_mul_floor(value: int, bps: int) -> int:
    """value * bps / 1e4, rounded down."""
    return value * bps // PERCENTAGE_FACTOR


def percent_mul_ceil(value: int, bps: int) -> int:
    """value * bps / 1e4, rounded up."""
    return ceil_div(value * bps, PERCENTAGE_FACTOR)


def percent_div_floor(value: int, bps: int) -> int:
    """value * 1e4 / bps, rounded down."""
    return value * PERCENTAGE_FACTOR // bps


def percent_div_ceil(value: int, bps: int) -> int:
    """value * 1e4 / bps, rounded up."""
    return ceil_div(value * PERCENTAGE_FACTOR, bps)


def wad_div(a: int, b: int) -> int:
    """a * 1e18 / b, half up."""
    return half_up_div(a * WAD, b)


# Accrual and balances -------------------------------------------------------------------------------------------------


def linear_interest(rate: int, elapsed_s: int) -> int:
    """Growth factor in ray of a supply at `rate` (ray per year) over `elapsed_s` seconds: 1 + rate * t."""
    return RAY + rate * elapsed_s // SECONDS_PER_YEAR


def compounded_interest(rate: int, elapsed_s: int) -> int:
    """Growth factor in ray of a debt: 1 + x + x^2/2 + x^3/6 with x = rate * t, nested as in the contracts (v3.4 on)."""
    x = rate * elapsed_s // SECONDS_PER_YEAR
    return RAY + x + ray_mul(x, x // 2 + ray_mul(x, x // 6))


def accrued_liquidity_index(index: int, rate: int, elapsed_s: int) -> int:
    """Supply index in ray, `elapsed_s` seconds after it was stored."""
    return ray_mul(linear_interest(rate, elapsed_s), index)


def accrued_borrow_index(index: int, rate: int, elapsed_s: int) -> int:
    """Variable borrow index in ray, `elapsed_s` seconds after it was stored."""
    return ray_mul(compounded_interest(rate, elapsed_s), index)


def supplied_amount(scaled: int, liquidity_index: int, generation: Generation = LATEST) -> int:
    """Tokens of a scaled supply: rounded down since v3.5, half up before."""
    multiply = ray_mul_floor if generation.rounds_against_user else ray_mul
    return multiply(scaled, liquidity_index)


def owed_amount(scaled: int, borrow_index: int, generation: Generation = LATEST) -> int:
    """Tokens of a scaled variable debt: rounded up since v3.5, half up before."""
    multiply = ray_mul_ceil if generation.rounds_against_user else ray_mul
    return multiply(scaled, borrow_index)


# Account data ---------------------------------------------------------------------------------------------------------


class CollateralParameters(NamedTuple):
    """LTV, liquidation threshold and liquidation bonus in basis points; a bonus of 0 means none is configured."""

    ltv: int
    liquidation_threshold: int
    liquidation_bonus: int = 0


class EMode(NamedTuple):
    """One e-mode category; bit i of a bitmap speaks of the reserve with id i."""

    category: int
    parameters: CollateralParameters
    collateral_bitmap: int
    ltvzero_bitmap: int = 0
    isolated: bool = False


def effective_parameters(
    base: CollateralParameters, reserve_id: int, emode: EMode | None, *, generation: Generation = LATEST
) -> CollateralParameters:
    """Parameters that a reserve has for an account in `emode` (None: category 0).

    Inside the category's collateral bitmap they are the category's, with LTV 0 where its LTV-zero bitmap says so.
    Outside they are the reserve's own, with LTV 0 in an isolated category, where the threshold still counts.
    """
    if emode is None or emode.category == 0:
        return base
    if emode.collateral_bitmap >> reserve_id & 1:
        if not generation.emode_stands_alone and base.liquidation_threshold == 0:
            return base
        zero_ltv = emode.ltvzero_bitmap >> reserve_id & 1 or (not generation.emode_stands_alone and base.ltv == 0)
        return emode.parameters._replace(ltv=0) if zero_ltv else emode.parameters
    return base._replace(ltv=0) if emode.isolated else base


class ReserveHolding(NamedTuple):
    """What one account has in one reserve, with what the reserve says."""

    reserve_id: int
    decimals: int
    price: int
    parameters: CollateralParameters
    scaled_supply: int = 0
    liquidity_index: int = RAY
    is_collateral: bool = False
    scaled_debt: int = 0
    borrow_index: int = RAY


class AccountData(NamedTuple):
    """The six figures of `Pool.getUserAccountData`, and the sum they come from.

    `health_factor` is None without debt. `weighted_collateral` is the sum of collateral value times liquidation
    threshold, in base currency times 1e4: the health factor uses it, not the average threshold.
    """

    total_collateral: int
    total_debt: int
    available_borrows: int
    liquidation_threshold: int
    ltv: int
    health_factor: int | None
    weighted_collateral: int


def health_factor(weighted_collateral: int, total_debt: int) -> int | None:
    """Health factor in wad from the sum of value times threshold (base currency times 1e4); None without debt."""
    return wad_div(weighted_collateral, total_debt) // PERCENTAGE_FACTOR if total_debt else None


def real_health_factor(total_collateral: int, total_debt: int, liquidation_threshold: int) -> Fraction | None:
    """collateral * threshold / debt as a real number, without the contracts' truncation; None without debt."""
    if total_debt == 0:
        return None
    return Fraction(total_collateral * liquidation_threshold, total_debt * PERCENTAGE_FACTOR)


def account_data(
    holdings: Sequence[ReserveHolding], emode: EMode | None = None, *, generation: Generation = LATEST
) -> AccountData:
    """An account's totals, averages and health factor at the holdings' indices and prices.

    An account without holdings has all zeros and no health factor.
    """
    collateral = debt = ltv_sum = threshold_sum = 0
    for holding in holdings:
        unit = 10**holding.decimals
        effective = effective_parameters(holding.parameters, holding.reserve_id, emode, generation=generation)
        counts = generation.emode_stands_alone or holding.parameters.liquidation_threshold != 0
        if holding.is_collateral and counts:
            amount = supplied_amount(holding.scaled_supply, holding.liquidity_index, generation)
            value = amount * holding.price // unit
            collateral += value
            ltv_sum += value * effective.ltv
            threshold_sum += value * effective.liquidation_threshold
        if holding.scaled_debt:
            owed = owed_amount(holding.scaled_debt, holding.borrow_index, generation) * holding.price
            debt += ceil_div(owed, unit) if generation.rounds_against_user else owed // unit
    average_ltv = ltv_sum // collateral if collateral else 0
    average_threshold = threshold_sum // collateral if collateral else 0
    limit = percent_mul_floor if generation.rounds_against_user else percent_mul
    return AccountData(
        total_collateral=collateral,
        total_debt=debt,
        available_borrows=max(limit(collateral, average_ltv) - debt, 0),
        liquidation_threshold=average_threshold,
        ltv=average_ltv,
        health_factor=health_factor(threshold_sum, debt),
        weighted_collateral=threshold_sum,
    )


def weighted_collateral_of(health: int, total_debt: int) -> int | None:
    """The one sum of value times threshold (base currency times 1e4) that gives this health factor; None if several do.

    The average threshold that the contracts report is floored, so it cannot give the sum back; the health factor can,
    as long as the debt is below 1e14 base units (a million dollars at 8 decimals). None too where no sum fits.
    """
    if total_debt <= 0:
        return None
    # health = floor(floor((sum * 1e18 + debt // 2) / debt) / 1e4), solved for the sum
    low = ceil_div(max(health * PERCENTAGE_FACTOR * total_debt - total_debt // 2, 0), WAD)
    high = ((health + 1) * PERCENTAGE_FACTOR * total_debt - total_debt // 2 - 1) // WAD
    return low if low == high else None


# Liquidation ----------------------------------------------------------------------------------------------------------


class LiquidationRevertedError(Exception):
    """The call fails on chain; `error` is the contracts' error name."""

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

    `deficit` is the debt of this reserve that is written off because no collateral is left; the account's other debts
    are written off in full in the same call.
    """

    half_close_factor: bool
    debt_repaid: int
    collateral_to_liquidator: int
    protocol_fee: int
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
) -> Liquidation:
    """One `liquidationCall` by the rules of v3.7 on accrued indices; totals in base currency, health factor in wad.

    Half of the whole account's debt can be repaid when both sides are worth at least 2000 dollars and health is above
    0.95, else all of the reserve's debt. What is left on both sides must be worth at least 1000 dollars unless one side
    is gone. Paused or inactive reserves and grace periods are the caller's to check. Raises `LiquidationRevertedError`.
    """
    if health >= WAD:
        raise LiquidationRevertedError("HealthFactorNotBelowThreshold")
    balance = ray_mul_floor(collateral.scaled_balance, collateral.liquidity_index)
    owed = ray_mul_ceil(debt.scaled_debt, debt.borrow_index)
    if collateral.scaled_balance == 0:
        raise LiquidationRevertedError("CollateralCannotBeLiquidated")
    if owed == 0:
        raise LiquidationRevertedError("SpecifiedCurrencyNotBorrowedByUser")

    limit, half = _largest_repayment(collateral, debt, balance, owed, total_debt, health)
    taken, repaid = _seizure(collateral, debt, balance, min(debt_to_cover, limit))
    fee = 0
    if collateral.protocol_fee:
        bonus = taken - percent_div_floor(taken, collateral.liquidation_bonus)
        fee = percent_mul_ceil(bonus, collateral.protocol_fee)
    to_liquidator = taken - fee
    if repaid < owed and taken < balance:
        debt_left = ceil_div((owed - repaid) * debt.price, 10**debt.decimals)
        collateral_left = (balance - taken) * collateral.price // 10**collateral.decimals
        if debt_left < MIN_LEFTOVER_BASE or collateral_left < MIN_LEFTOVER_BASE:
            raise LiquidationRevertedError("MustNotLeaveDust")

    # Shares are burned rounded up, once for the liquidator and once for the fee: together they may use up the balance
    # although amounts predict a rest. The second transfer is then cut to what is there.
    seized_shares = ray_div_ceil(to_liquidator, collateral.liquidity_index)
    fee_shares = ray_div_ceil(fee, collateral.liquidity_index)
    if fee_shares > collateral.scaled_balance - seized_shares:
        fee_shares = collateral.scaled_balance - seized_shares
        fee = ray_mul_floor(fee_shares, collateral.liquidity_index)
    used_shares = seized_shares + fee_shares
    used_value = ray_mul_floor(used_shares, collateral.liquidity_index) * collateral.price // 10**collateral.decimals
    no_collateral_left = used_value == total_collateral
    burned_debt = owed if no_collateral_left else repaid
    if seized_shares == 0 or ray_div_floor(burned_debt, debt.borrow_index) == 0:
        raise LiquidationRevertedError("InvalidBurnAmount")
    return Liquidation(
        half_close_factor=half,
        debt_repaid=repaid,
        collateral_to_liquidator=to_liquidator,
        protocol_fee=fee,
        scaled_collateral_left=collateral.scaled_balance - used_shares,
        no_collateral_left=no_collateral_left,
        deficit=owed - repaid if no_collateral_left else 0,
    )


def _largest_repayment(
    collateral: CollateralSide, debt: DebtSide, balance: int, owed: int, total_debt: int, health: int
) -> tuple[int, bool]:
    """Tokens of debt that one call may repay, and whether the close factor of one half applies."""
    collateral_value = balance * collateral.price // 10**collateral.decimals
    debt_value = ceil_div(owed * debt.price, 10**debt.decimals)
    half = min(collateral_value, debt_value) >= MIN_BASE_MAX_CLOSE_FACTOR and health > CLOSE_FACTOR_HEALTH
    allowed = percent_mul(total_debt, DEFAULT_CLOSE_FACTOR)
    if half and debt_value > allowed:
        return allowed * 10**debt.decimals // debt.price, True
    return owed, half


def _seizure(collateral: CollateralSide, debt: DebtSide, balance: int, repay: int) -> tuple[int, int]:
    """(collateral taken with its bonus, debt repaid): the repayment shrinks when the balance cannot pay the bonus."""
    collateral_unit, debt_unit = 10**collateral.decimals, 10**debt.decimals
    base = debt.price * repay * collateral_unit // (collateral.price * debt_unit)
    taken = percent_mul_floor(base, collateral.liquidation_bonus)
    if taken <= balance:
        return taken, repay
    worth = collateral.price * balance * debt_unit // (debt.price * collateral_unit)
    return balance, percent_div_ceil(worth, collateral.liquidation_bonus)
