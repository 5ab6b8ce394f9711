"""Reads the payloads of Aave v3's view contracts: reserves, e-mode categories, a user's reserves and account data.

Integers stay integers (token units, ray, basis points, base currency) until they become rows. Every function raises
`FieldError` with the path of the field; addresses are compared in lower case. Records have the names of the interfaces
(see `shapes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, integer_at, integer_of, joined, member, members, token_amount
from ..fields import flag_at, text_at
from . import shapes
from .deployments import Deployment
from .mechanics import (
    PERCENTAGE_FACTOR,
    UINT256_MAX,
    WAD,
    CollateralParameters,
    EMode,
    Generation,
    accrued_borrow_index,
    accrued_liquidity_index,
    average_health_factor,
    weighted_collateral_of,
)

_USD_DECIMALS = 8
_MOST_DECIMALS = 36
_LARGEST_DECIMAL = 10**20
_NO_ADDRESS = "0x" + "0" * 40


# Fields ---------------------------------------------------------------------------------------------------------------


def unsigned_at(record: Any, key: str, path: str = "", *, largest: int = UINT256_MAX) -> int:
    """The required integer under `key`, 0 to `largest`."""
    value = integer_at(record, key, path)
    if not 0 <= value <= largest:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} must lie in 0..{largest}")
    return value


def positive_integer_at(record: Any, key: str, path: str = "") -> int:
    """The required integer under `key`, above 0."""
    value = unsigned_at(record, key, path)
    if value == 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, "0 must be positive")
    return value


def address_of(record: Any) -> str:
    """Underlying address of a record in lower case, empty where it has none: for telling records apart before reading
    them.
    """
    value = record.get("underlyingAsset") if isinstance(record, Mapping) else None
    return value.lower() if isinstance(value, str) else ""


def repeated_addresses(records: Iterable[Any]) -> set[str]:
    """Underlying addresses, in lower case, that occur in more than one record."""
    counts = Counter(address_of(record) for record in records)
    return {address for address, count in counts.items() if address and count > 1}


def _parameters(ltv: int, threshold: int, bonus: int, path: str) -> CollateralParameters:
    if ltv > threshold:
        raise FieldError(path, FailureReason.INCONSISTENT, f"LTV {ltv} above the liquidation threshold {threshold}")
    if 0 < bonus < PERCENTAGE_FACTOR:
        raise FieldError(
            path, FailureReason.OUT_OF_RANGE, f"liquidation bonus {bonus} is below {PERCENTAGE_FACTOR} (none)"
        )
    return CollateralParameters(ltv, threshold, bonus)


def _parameters_at(record: Any, keys: tuple[str, str, str], path: str) -> CollateralParameters:
    ltv, threshold, bonus = keys
    return _parameters(
        unsigned_at(record, ltv, path, largest=PERCENTAGE_FACTOR),
        unsigned_at(record, threshold, path, largest=PERCENTAGE_FACTOR),
        unsigned_at(record, bonus, path, largest=2 * PERCENTAGE_FACTOR),
        path,
    )


# Reserves -------------------------------------------------------------------------------------------------------------


class BaseCurrency(NamedTuple):
    """Units of one base currency coin, and its dollar price with 8 decimals."""

    unit: int
    price_usd: int

    def usd(self, amount: int) -> Fraction:
        """Dollars of `amount` in units of the base currency, exactly."""
        return Fraction(amount * self.price_usd, self.unit * 10**_USD_DECIMALS)


class ReserveEMode(NamedTuple):
    """The e-mode category that a reserve of v3.0 or v3.1 belongs to, as its own record states it."""

    category: int
    parameters: CollateralParameters
    price_source: str
    """Address of the category's own oracle in lower case, empty where its reserves keep theirs."""


class Reserve(NamedTuple):
    """One token of the market as `getReservesData` gives it."""

    reserve_id: int
    """Bit of the reserve in e-mode bitmaps."""
    address: str
    symbol: str
    asset_id: str
    decimals: int
    price: int
    parameters: CollateralParameters
    liquidity_index: int
    borrow_index: int
    liquidity_rate: int
    borrow_rate: int
    updated_at_s: int
    emode: ReserveEMode | None = None

    def indices_at(self, moment: datetime | None, generation: Generation) -> tuple[int, int]:
        """(liquidity index, borrow index) in ray, accrued to `moment`; as stored when it is None or earlier.

        A receive time just before the block of the last update is another clock, not a time to go back to.
        """
        elapsed = max(int(moment.timestamp()) - self.updated_at_s, 0) if moment is not None else 0
        return (
            accrued_liquidity_index(self.liquidity_index, self.liquidity_rate, elapsed),
            accrued_borrow_index(self.borrow_index, self.borrow_rate, elapsed, generation),
        )


class ReservesAnswer(NamedTuple):
    """`getReservesData`: the unit of account, the records by name, and where they stand in the body."""

    base: BaseCurrency
    records: list[Any]
    path: str


def read_reserves_answer(body: Any) -> ReservesAnswer:
    """The outputs of `getReservesData`, records still unread."""
    answer, path = shapes.outputs(body, shapes.RESERVES_OUTPUTS)
    inner = joined(path, "baseCurrencyInfo")
    currency = shapes.struct(member(answer, "baseCurrencyInfo", path), (shapes.BASE_CURRENCY,), inner)
    base = BaseCurrency(
        positive_integer_at(currency, "marketReferenceCurrencyUnit", inner),
        positive_integer_at(currency, "marketReferenceCurrencyPriceInUsd", inner),
    )
    records = shapes.structs(members(answer, "reserves", path), shapes.RESERVE)
    return ReservesAnswer(base, records, joined(path, "reserves"))


def read_reserve(record: Any, position: int, path: str, *, deployment: Deployment) -> Reserve:
    """One reserve. Its id is its own `id` where the payload has one, else its place in the list."""
    record = shapes.struct(record, shapes.RESERVE, path)
    address = text_at(record, "underlyingAsset", path).lower()
    symbol = deployment.symbols.get(address) or text_at(record, "symbol", path)
    return Reserve(
        reserve_id=unsigned_at(record, "id", path, largest=127) if record.get("id") is not None else position,
        address=address,
        symbol=symbol,
        asset_id=f"{symbol}@{deployment.chain}",
        decimals=unsigned_at(record, "decimals", path, largest=_MOST_DECIMALS),
        price=positive_integer_at(record, "priceInMarketReferenceCurrency", path),
        parameters=_parameters_at(
            record, ("baseLTVasCollateral", "reserveLiquidationThreshold", "reserveLiquidationBonus"), path
        ),
        liquidity_index=positive_integer_at(record, "liquidityIndex", path),
        borrow_index=positive_integer_at(record, "variableBorrowIndex", path),
        liquidity_rate=unsigned_at(record, "liquidityRate", path),
        borrow_rate=unsigned_at(record, "variableBorrowRate", path),
        updated_at_s=unsigned_at(record, "lastUpdateTimestamp", path),
        emode=_reserve_emode(record, path) if deployment.generation.emode_of_reserves else None,
    )


def _reserve_emode(record: Any, path: str) -> ReserveEMode | None:
    category = unsigned_at(record, "eModeCategoryId", path, largest=255)
    if category == 0:
        return None
    parameters = _parameters_at(record, ("eModeLtv", "eModeLiquidationThreshold", "eModeLiquidationBonus"), path)
    source = text_at(record, "eModePriceSource", path).lower()
    return ReserveEMode(category, parameters, "" if source == _NO_ADDRESS else source)


# E-mode categories ----------------------------------------------------------------------------------------------------


def emode_entries(body: Any) -> tuple[list[Any], str]:
    """(entries of `getEModes` by name, their path)."""
    answer, path = shapes.outputs(body, shapes.EMODES_OUTPUTS)
    return members(answer, "eModes", path), joined(path, "eModes")


def read_emode(entry: Any, path: str) -> EMode:
    """One entry `{id, eMode}` of `getEModes`; the LTV-zero bitmap and `isolated` are absent before v3.6 and v3.7."""
    entry = shapes.struct(entry, shapes.EMODE_ENTRY, path)
    category = unsigned_at(entry, "id", path, largest=255)
    inner = joined(path, "eMode")
    record = shapes.struct(member(entry, "eMode", path), shapes.EMODE, inner)
    return EMode(
        category=category,
        parameters=_parameters_at(record, ("ltv", "liquidationThreshold", "liquidationBonus"), inner),
        collateral_bitmap=_bitmap(record, "collateralBitmap", inner),
        ltvzero_bitmap=_bitmap(record, "ltvzeroBitmap", inner) if record.get("ltvzeroBitmap") is not None else 0,
        isolated=flag_at(record, "isolated", inner) if record.get("isolated") is not None else False,
    )


def _bitmap(record: Any, key: str, path: str) -> int:
    return unsigned_at(record, key, path, largest=2**128 - 1)


def emode_of_reserves(category: int, reserves: Iterable[Reserve]) -> EMode | None:
    """The category that reserves of v3.0 or v3.1 state; None where no reserve is in it.

    Raises inconsistent where they do not agree, and unsupported for a category with a price oracle of its own: what it
    says is in no payload.
    """
    stated = [(r, r.emode) for r in reserves if r.emode is not None and r.emode.category == category]
    if not stated:
        return None
    _, first = stated[0]
    path = "reserves.eModeCategoryId"
    if any(emode != first for _, emode in stated):
        raise FieldError(path, FailureReason.INCONSISTENT, f"reserves differ about the e-mode category {category}")
    if first.price_source:
        message = f"e-mode category {category} has a price oracle of its own, {first.price_source}"
        raise FieldError("reserves.eModePriceSource", FailureReason.UNSUPPORTED, message)
    return EMode(category, first.parameters, sum(1 << reserve.reserve_id for reserve, _ in stated))


# A user ---------------------------------------------------------------------------------------------------------------


class UserReserve(NamedTuple):
    """What a user has in one reserve, in scaled units."""

    address: str
    scaled_supply: int
    scaled_debt: int
    is_collateral: bool


def user_answer(body: Any) -> tuple[Mapping[str, Any], str]:
    """(outputs of `getUserReservesData` by name, their path)."""
    return shapes.outputs(body, shapes.USER_OUTPUTS)


def user_records(answer: Mapping[str, Any], path: str) -> list[Any]:
    """The entries of `getUserReservesData` by name."""
    return shapes.structs(members(answer, "userReserves", path), shapes.USER_RESERVE)


def read_user_reserve(record: Any, path: str) -> UserReserve:
    """One entry of `getUserReservesData`. Raises unsupported for a stable-rate debt (gone since v3.2)."""
    record = shapes.struct(record, shapes.USER_RESERVE, path)
    stable = record.get("principalStableDebt") if isinstance(record, Mapping) else None
    if stable is not None and integer_of(stable, joined(path, "principalStableDebt")) != 0:
        raise FieldError(
            joined(path, "principalStableDebt"), FailureReason.UNSUPPORTED, "stable-rate debt is not supported"
        )
    supply = unsigned_at(record, "scaledATokenBalance", path)
    return UserReserve(
        address=text_at(record, "underlyingAsset", path).lower(),
        scaled_supply=supply,
        scaled_debt=unsigned_at(record, "scaledVariableDebt", path),
        is_collateral=supply > 0 and flag_at(record, "usageAsCollateralEnabledOnUser", path),
    )


class Reported(NamedTuple):
    """The venue's own figures in dollars; None where the venue's answer does not hold them."""

    equity: Decimal
    maintenance_margin: Decimal | None
    health: Decimal | None
    health_slack: float = 0.0
    """How far the health is below that of the unrounded threshold at most: a basis point of collateral over debt before
    v3.5, nothing since.
    """


def read_account_data(body: Any, base: BaseCurrency, generation: Generation) -> Reported:
    """Equity, maintenance margin and health from `getUserAccountData`.

    The maintenance margin (collateral less collateral times threshold) is given only where it follows exactly: the
    reported average threshold is floored to a basis point; the health factor of a debt below a million dollars is fine
    enough since v3.5, and never before, when it is of that average. The initial margin never follows, because the
    average LTV is floored too. Health is None without debt. Raises inconsistent when the health factor and the average
    threshold contradict each other.
    """
    record, path = shapes.outputs(body, shapes.ACCOUNT_OUTPUTS)
    collateral = unsigned_at(record, "totalCollateralBase", path)
    debt = unsigned_at(record, "totalDebtBase", path)
    threshold = unsigned_at(record, "currentLiquidationThreshold", path, largest=PERCENTAGE_FACTOR)
    health = unsigned_at(record, "healthFactor", path)
    where = joined(path, "healthFactor")
    if debt == 0 or health == UINT256_MAX:
        if debt != 0 or health != UINT256_MAX:
            raise FieldError(where, FailureReason.INCONSISTENT, f"health factor {health} with debt {debt}")
        return Reported(_decimal(base.usd(collateral), joined(path, "totalCollateralBase")), None, None)
    weighted = None
    if generation.health_of_average:
        expected = average_health_factor(collateral, threshold, debt)
        if health != expected:
            message = f"{health}, but collateral, threshold and debt give {expected}"
            raise FieldError(where, FailureReason.INCONSISTENT, message)
    else:
        weighted = weighted_collateral_of(health, debt)
    if weighted is not None and weighted // max(collateral, 1) != threshold:
        raise FieldError(
            where,
            FailureReason.INCONSISTENT,
            f"implies an average threshold of {weighted // max(collateral, 1)} bps, reported are {threshold} bps",
        )
    maintenance = None if weighted is None else base.usd(collateral) - base.usd(weighted) / PERCENTAGE_FACTOR
    return Reported(
        equity=_decimal(base.usd(collateral) - base.usd(debt), joined(path, "totalCollateralBase")),
        maintenance_margin=None if maintenance is None else _decimal(maintenance, where),
        health=_decimal(Fraction(health, WAD), where),
        health_slack=collateral / debt / PERCENTAGE_FACTOR if generation.health_of_average else 0.0,
    )


def _decimal(value: Fraction, path: str) -> Decimal:
    """`value` to 18 decimals, half to even; exact for what the contracts send in a dollar market."""
    if abs(value) >= _LARGEST_DECIMAL:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, f"|{float(value):.3e}| is not below 1e20")
    return token_amount(round(value * 10**18), 18)
