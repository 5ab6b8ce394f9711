"""Exact accrual and account data of Aave v3: indices, balances, e-mode, health factor, liquidation price.

Units: token amounts in smallest units, indices and rates in ray (1e27; rates per year), health factors in wad (1e18),
LTV, thresholds and bonuses in basis points (1e4; a bonus of 5 % is 10500), prices and values in the market's base
currency. Source: `GenericLogic`, `ReserveLogic`, `ValidationLogic`, `TokenMath` of the release (see `releases`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from .arithmetic import (
    PERCENTAGE_FACTOR,
    RAY,
    SECONDS_PER_YEAR,
    WAD,
    ceil_div,
    percent_mul,
    percent_mul_floor,
    ray_mul,
    ray_mul_ceil,
    ray_mul_floor,
    wad_div,
)
from .releases import LATEST, Generation

# Accrual and balances -------------------------------------------------------------------------------------------------


def linear_interest(rate: int, elapsed_s: int) -> int:
    """Growth factor in ray of a supply at `rate` (ray per year) over `elapsed_s` seconds: 1 + rate * t."""
    return RAY + rate * elapsed_s // SECONDS_PER_YEAR


def compounded_interest(rate: int, elapsed_s: int, generation: Generation = LATEST) -> int:
    """Growth factor in ray of a debt at `rate` (ray per year) over `elapsed_s` seconds.

    With x = rate * t it is 1 + x + x^2/2 + x^3/6, nested as in the contracts, since v3.4; before, three terms of
    (1 + rate per second)^n with n seconds: 1 + x + n(n-1)/2 * p^2 + n(n-1)(n-2)/6 * p^3, powers rounded first.
    """
    x = rate * elapsed_s // SECONDS_PER_YEAR
    if generation.series_interest:
        return RAY + x + ray_mul(x, x // 2 + ray_mul(x, x // 6))
    square = ray_mul(rate, rate) // SECONDS_PER_YEAR**2
    cube = ray_mul(square, rate) // SECONDS_PER_YEAR
    pairs = elapsed_s * max(elapsed_s - 1, 0)
    return RAY + x + pairs * square // 2 + pairs * max(elapsed_s - 2, 0) * cube // 6


def accrued_liquidity_index(index: int, rate: int, elapsed_s: int) -> int:
    """Supply index in ray, `elapsed_s` seconds after it was stored."""
    return ray_mul(linear_interest(rate, elapsed_s), index)


def accrued_borrow_index(index: int, rate: int, elapsed_s: int, generation: Generation = LATEST) -> int:
    """Variable borrow index in ray, `elapsed_s` seconds after it was stored."""
    return ray_mul(compounded_interest(rate, elapsed_s, generation), index)


def supplied_amount(scaled: int, liquidity_index: int, generation: Generation = LATEST) -> int:
    """Tokens of a scaled supply: rounded down since v3.5, half up before."""
    multiply = ray_mul_floor if generation.rounds_against_user else ray_mul
    return multiply(scaled, liquidity_index)


def owed_amount(scaled: int, borrow_index: int, generation: Generation = LATEST) -> int:
    """Tokens of a scaled variable debt: rounded up since v3.5, half up before."""
    multiply = ray_mul_ceil if generation.rounds_against_user else ray_mul
    return multiply(scaled, borrow_index)


def debt_value(owed: int, price: int, decimals: int, generation: Generation = LATEST) -> int:
    """Base currency units of `owed` tokens: rounded up since v3.5, down before."""
    value, unit = owed * price, 10**decimals
    return ceil_div(value, unit) if generation.rounds_against_user else value // unit


# Account data ---------------------------------------------------------------------------------------------------------


class CollateralParameters(NamedTuple):
    """LTV, liquidation threshold and liquidation bonus in basis points; a bonus of 0 means none is configured."""

    ltv: int
    liquidation_threshold: int
    liquidation_bonus: int = 0


class EMode(NamedTuple):
    """One e-mode category; bit i of a bitmap speaks of the reserve with id i.

    Before v3.2 reserves name their category instead: the bitmap then holds the reserves that name this one.
    """

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
    threshold, in base currency times 1e4; since v3.5 the health factor is of it, before of the average threshold.
    """

    total_collateral: int
    total_debt: int
    available_borrows: int
    liquidation_threshold: int
    ltv: int
    health_factor: int | None
    weighted_collateral: int


def health_factor(weighted_collateral: int, total_debt: int) -> int | None:
    """Health factor in wad from the sum of value times threshold (base currency times 1e4), since v3.5; None without
    debt.
    """
    return wad_div(weighted_collateral, total_debt) // PERCENTAGE_FACTOR if total_debt else None


def average_health_factor(total_collateral: int, liquidation_threshold: int, total_debt: int) -> int | None:
    """Health factor in wad from the average threshold in whole basis points, before v3.5; None without debt."""
    return wad_div(percent_mul(total_collateral, liquidation_threshold), total_debt) if total_debt else None


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
        effective = effective_parameters(holding.parameters, holding.reserve_id, emode, generation=generation)
        if _counts(holding, generation):
            amount = supplied_amount(holding.scaled_supply, holding.liquidity_index, generation)
            value = amount * holding.price // 10**holding.decimals
            collateral += value
            ltv_sum += value * effective.ltv
            threshold_sum += value * effective.liquidation_threshold
        if holding.scaled_debt:
            owed = owed_amount(holding.scaled_debt, holding.borrow_index, generation)
            debt += debt_value(owed, holding.price, holding.decimals, generation)
    average_ltv = ltv_sum // collateral if collateral else 0
    average_threshold = threshold_sum // collateral if collateral else 0
    limit = percent_mul_floor if generation.rounds_against_user else percent_mul
    return AccountData(
        total_collateral=collateral,
        total_debt=debt,
        available_borrows=max(limit(collateral, average_ltv) - debt, 0),
        liquidation_threshold=average_threshold,
        ltv=average_ltv,
        health_factor=average_health_factor(collateral, average_threshold, debt)
        if generation.health_of_average
        else health_factor(threshold_sum, debt),
        weighted_collateral=threshold_sum,
    )


def _counts(holding: ReserveHolding, generation: Generation) -> bool:
    """Whether the supply is collateral at all."""
    return holding.is_collateral and (generation.emode_stands_alone or holding.parameters.liquidation_threshold != 0)


def weighted_collateral_of(health: int, total_debt: int) -> int | None:
    """The one sum of value times threshold (base currency times 1e4) that gives this health factor; None if several do.

    For releases since v3.5: the average threshold that the contracts report is floored, so it cannot give the sum back;
    the health factor can, as long as the debt is below 1e14 base units (a million dollars at 8 decimals). None too
    where no sum fits.
    """
    if total_debt <= 0:
        return None
    # health = floor(floor((sum * 1e18 + debt // 2) / debt) / 1e4), solved for the sum
    low = ceil_div(max(health * PERCENTAGE_FACTOR * total_debt - total_debt // 2, 0), WAD)
    high = ((health + 1) * PERCENTAGE_FACTOR * total_debt - total_debt // 2 - 1) // WAD
    return low if low == high else None


# Liquidation price ----------------------------------------------------------------------------------------------------


def liquidation_prices(
    holdings: Sequence[ReserveHolding], emode: EMode | None = None, *, generation: Generation = LATEST
) -> dict[int, Fraction | None]:
    """By reserve id, the price of each collateral and each debt at which the health factor is exactly 1.

    Base currency per whole token, exact, all other prices as they are; token amounts are rounded as the release rounds
    them, values are not. With w = supply * threshold - debt in tokens of a reserve the condition is sum(w * price) = 0.
    Below the price of a reserve with w > 0 the account can be liquidated, of one with w < 0 above it. None where no
    positive price does it: without debt, where w is 0, or where the rest decides alone.
    """
    weights, total = dict[int, Fraction](), Fraction(0)
    prices = {holding.reserve_id: holding.price for holding in holdings}
    for holding in holdings:
        weight = _net_weight(holding, emode, generation)
        if weight is not None:
            weights[holding.reserve_id] = weight
            total += weight * holding.price
    found: dict[int, Fraction | None] = {}
    for reserve_id, weight in weights.items():
        price = prices[reserve_id] - total / weight if weight else Fraction(0)
        found[reserve_id] = price if price > 0 else None
    return found


def _net_weight(holding: ReserveHolding, emode: EMode | None, generation: Generation) -> Fraction | None:
    """Whole tokens that count for the account (supply times threshold) less those owed; None where neither is there."""
    weighted = 0
    collateral = holding.scaled_supply > 0 and _counts(holding, generation)
    if collateral:
        effective = effective_parameters(holding.parameters, holding.reserve_id, emode, generation=generation)
        supplied = supplied_amount(holding.scaled_supply, holding.liquidity_index, generation)
        weighted = supplied * effective.liquidation_threshold
    owed = owed_amount(holding.scaled_debt, holding.borrow_index, generation)
    if not collateral and owed == 0:
        return None
    return Fraction(weighted - owed * PERCENTAGE_FACTOR, PERCENTAGE_FACTOR * 10**holding.decimals)
