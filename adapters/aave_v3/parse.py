"""Reads the payloads of Aave v3's view contracts: reserves, e-mode categories, a user's reserves and account data.

Integers stay integers (token units, ray, basis points, base currency) until they become rows. Every function raises
`FieldError` with the path of the field; addresses are compared in lower case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import ConfigurationError, FailureReason, nearest_name

from ..amounts import FieldError, integer_at, integer_of, joined, member, members, time_of, token_amount
from .mechanics import (
    GENERATIONS,
    PERCENTAGE_FACTOR,
    RAY,
    UINT256_MAX,
    WAD,
    CollateralParameters,
    EMode,
    Generation,
    accrued_borrow_index,
    accrued_liquidity_index,
    weighted_collateral_of,
)

_USD_DECIMALS = 8
_MOST_DECIMALS = 36
_LARGEST_DECIMAL = 10**20


class Deployment(NamedTuple):
    """One market: where it is, which release it runs, and where the statement comes from."""

    chain: str
    market: str
    generation: Generation
    symbols: Mapping[str, str]
    """Underlying address in lower case -> the symbol to use in place of the token's own."""
    source: str
    as_of: datetime | None


def deployment_of(parameters: Mapping[str, Any]) -> Deployment:
    """The market that the parameter file describes; raises `ConfigurationError` for a missing or unknown entry."""
    for key in ("chain", "market", "rules"):
        if not isinstance(parameters.get(key), str) or not parameters[key]:
            raise ConfigurationError(f"parameters of aave_v3: {key!r} is missing or no text")
    rules = parameters["rules"]
    if rules not in GENERATIONS:
        hint = nearest_name(rules, GENERATIONS)
        raise ConfigurationError(
            f"parameters of aave_v3: unknown rules {rules!r}{hint}; known: {', '.join(GENERATIONS)}"
        )
    symbols = parameters.get("symbols", {})
    if not isinstance(symbols, Mapping) or not all(isinstance(symbol, str) for symbol in symbols.values()):
        raise ConfigurationError("parameters of aave_v3: 'symbols' must map addresses to symbols")
    as_of = parameters.get("as_of")
    try:
        moment = as_of if as_of is None or isinstance(as_of, datetime) else time_of(as_of, "as_of")
    except FieldError as error:
        raise ConfigurationError(f"parameters of aave_v3: as_of: {error.message}") from None
    return Deployment(
        chain=parameters["chain"],
        market=parameters["market"],
        generation=GENERATIONS[rules],
        symbols={address.lower(): symbol for address, symbol in symbols.items()},
        source=str(parameters.get("source", "")),
        as_of=moment,
    )


# Fields ---------------------------------------------------------------------------------------------------------------


def text_at(record: Any, key: str, path: str = "") -> str:
    """The required non-empty text under `key`."""
    value = member(record, key, path)
    if not isinstance(value, str) or not value:
        raise FieldError(joined(path, key), FailureReason.MALFORMED, f"{key!r} must be a text")
    return value


def flag_at(record: Any, key: str, path: str = "") -> bool:
    """The required boolean under `key`; 0 and 1 are not booleans here."""
    value = member(record, key, path)
    if not isinstance(value, bool):
        raise FieldError(joined(path, key), FailureReason.MALFORMED, f"{key!r} must be true or false")
    return value


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


def _parameters(ltv: int, threshold: int, bonus: int, path: str) -> CollateralParameters:
    if ltv > threshold:
        raise FieldError(path, FailureReason.INCONSISTENT, f"LTV {ltv} above the liquidation threshold {threshold}")
    if 0 < bonus < PERCENTAGE_FACTOR:
        raise FieldError(
            path, FailureReason.OUT_OF_RANGE, f"liquidation bonus {bonus} is below {PERCENTAGE_FACTOR} (none)"
        )
    return CollateralParameters(ltv, threshold, bonus)


# Reserves -------------------------------------------------------------------------------------------------------------


class BaseCurrency(NamedTuple):
    """Units of one base currency coin, and its dollar price with 8 decimals."""

    unit: int
    price_usd: int

    def usd(self, amount: int) -> Fraction:
        """Dollars of `amount` in units of the base currency, exactly."""
        return Fraction(amount * self.price_usd, self.unit * 10**_USD_DECIMALS)


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

    def indices_at(self, moment: datetime | None) -> tuple[int, int]:
        """(liquidity index, borrow index) in ray, accrued to `moment`; as stored when it is None or earlier.

        A receive time just before the block of the last update is another clock, not a time to go back to.
        """
        elapsed = max(int(moment.timestamp()) - self.updated_at_s, 0) if moment is not None else 0
        return (
            accrued_liquidity_index(self.liquidity_index, self.liquidity_rate, elapsed),
            accrued_borrow_index(self.borrow_index, self.borrow_rate, elapsed),
        )


def read_base_currency(body: Any) -> BaseCurrency:
    """The market's unit of account from the body of `getReservesData`."""
    record, path = member(body, "baseCurrencyInfo"), "baseCurrencyInfo"
    return BaseCurrency(
        positive_integer_at(record, "marketReferenceCurrencyUnit", path),
        positive_integer_at(record, "marketReferenceCurrencyPriceInUsd", path),
    )


def read_reserve(record: Any, position: int, path: str, *, deployment: Deployment) -> Reserve:
    """One reserve. Its id is its own `id` where the payload has one, else its place in the list."""
    address = text_at(record, "underlyingAsset", path).lower()
    symbol = deployment.symbols.get(address) or text_at(record, "symbol", path)
    return Reserve(
        reserve_id=unsigned_at(record, "id", path, largest=127) if "id" in record else position,
        address=address,
        symbol=symbol,
        asset_id=f"{symbol}@{deployment.chain}",
        decimals=unsigned_at(record, "decimals", path, largest=_MOST_DECIMALS),
        price=positive_integer_at(record, "priceInMarketReferenceCurrency", path),
        parameters=_parameters(
            unsigned_at(record, "baseLTVasCollateral", path, largest=PERCENTAGE_FACTOR),
            unsigned_at(record, "reserveLiquidationThreshold", path, largest=PERCENTAGE_FACTOR),
            unsigned_at(record, "reserveLiquidationBonus", path, largest=2 * PERCENTAGE_FACTOR),
            path,
        ),
        liquidity_index=positive_integer_at(record, "liquidityIndex", path),
        borrow_index=positive_integer_at(record, "variableBorrowIndex", path),
        liquidity_rate=unsigned_at(record, "liquidityRate", path),
        borrow_rate=unsigned_at(record, "variableBorrowRate", path),
        updated_at_s=unsigned_at(record, "lastUpdateTimestamp", path),
    )


def read_state(record: Any, reserve: Reserve, path: str) -> dict[str, float | str]:
    """The reserve's market state by field: `status` as words, indices and caps in tokens where the payload has them.

    Words: active or inactive, frozen, paused. A cap of 0 is no cap and left out. `liquidation_grace_until` is in epoch
    seconds: until then nobody can be liquidated over this reserve.
    """
    words = ["active" if flag_at(record, "isActive", path) else "inactive"]
    words += ["frozen"] if flag_at(record, "isFrozen", path) else []
    words += ["paused"] if flag_at(record, "isPaused", path) else []
    state: dict[str, float | str] = {
        "status": " ".join(words),
        "liquidity_index": reserve.liquidity_index / RAY,
        "variable_borrow_index": reserve.borrow_index / RAY,
    }
    for key, field in (
        ("supplyCap", "supply_cap"),
        ("borrowCap", "borrow_cap"),
        ("liquidationGracePeriodUntil", "liquidation_grace_until"),
    ):
        if key in record and (value := unsigned_at(record, key, path)):
            state[field] = float(value)
    if "availableLiquidity" in record:
        state["available_liquidity"] = unsigned_at(record, "availableLiquidity", path) / 10**reserve.decimals
    return state


# E-mode categories ----------------------------------------------------------------------------------------------------


def _bitmap(record: Any, key: str, path: str) -> int:
    return unsigned_at(record, key, path, largest=2**128 - 1)


def read_emode(entry: Any, path: str) -> EMode:
    """One entry `{id, eMode}` of `getEModes`; the LTV-zero bitmap and `isolated` are absent before v3.6 and v3.7."""
    category = unsigned_at(entry, "id", path, largest=255)
    record, inner = member(entry, "eMode", path), joined(path, "eMode")
    return EMode(
        category=category,
        parameters=_parameters(
            unsigned_at(record, "ltv", inner, largest=PERCENTAGE_FACTOR),
            unsigned_at(record, "liquidationThreshold", inner, largest=PERCENTAGE_FACTOR),
            unsigned_at(record, "liquidationBonus", inner, largest=2 * PERCENTAGE_FACTOR),
            inner,
        ),
        collateral_bitmap=_bitmap(record, "collateralBitmap", inner),
        ltvzero_bitmap=_bitmap(record, "ltvzeroBitmap", inner) if "ltvzeroBitmap" in record else 0,
        isolated=flag_at(record, "isolated", inner) if "isolated" in record else False,
    )


# A user ---------------------------------------------------------------------------------------------------------------


class UserReserve(NamedTuple):
    """What a user has in one reserve, in scaled units."""

    address: str
    scaled_supply: int
    scaled_debt: int
    is_collateral: bool


def read_user_reserve(record: Any, path: str) -> UserReserve:
    """One entry of `getUserReservesData`. Raises unsupported for a stable-rate debt (gone since v3.2)."""
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


def repeated_addresses(records: list[Any]) -> set[str]:
    """Underlying addresses, in lower case, that occur in more than one record."""
    counts = Counter(
        record["underlyingAsset"].lower()
        for record in records
        if isinstance(record, Mapping) and isinstance(record.get("underlyingAsset"), str)
    )
    return {address for address, count in counts.items() if count > 1}


class Reported(NamedTuple):
    """The venue's own figures in dollars; None where the venue's answer does not hold them."""

    equity: Decimal
    maintenance_margin: Decimal | None
    health: Decimal | None


def read_account_data(body: Any, base: BaseCurrency, generation: Generation) -> Reported:
    """Equity, maintenance margin and health from `getUserAccountData`.

    The maintenance margin (collateral less collateral times threshold) is given only where it follows exactly: the
    reported average threshold is floored to a basis point, the health factor of a debt below a million dollars is fine
    enough. The initial margin never follows, because the average LTV is floored too. Health is None without debt.
    Raises inconsistent when the health factor and the average threshold contradict each other.
    """
    collateral = unsigned_at(body, "totalCollateralBase")
    debt = unsigned_at(body, "totalDebtBase")
    threshold = unsigned_at(body, "currentLiquidationThreshold", largest=PERCENTAGE_FACTOR)
    health = unsigned_at(body, "healthFactor")
    if debt == 0 or health == UINT256_MAX:
        if debt != 0 or health != UINT256_MAX:
            raise FieldError("healthFactor", FailureReason.INCONSISTENT, f"health factor {health} with debt {debt}")
        return Reported(_decimal(base.usd(collateral), "totalCollateralBase"), None, None)
    weighted = weighted_collateral_of(health, debt) if generation.rounds_against_user else None
    if weighted is not None and weighted // max(collateral, 1) != threshold:
        raise FieldError(
            "healthFactor",
            FailureReason.INCONSISTENT,
            f"implies an average threshold of {weighted // max(collateral, 1)} bps, reported are {threshold} bps",
        )
    maintenance = None if weighted is None else base.usd(collateral) - base.usd(weighted) / PERCENTAGE_FACTOR
    return Reported(
        equity=_decimal(base.usd(collateral) - base.usd(debt), "totalCollateralBase"),
        maintenance_margin=None if maintenance is None else _decimal(maintenance, "healthFactor"),
        health=_decimal(Fraction(health, WAD), "healthFactor"),
    )


def _decimal(value: Fraction, path: str) -> Decimal:
    """`value` to 18 decimals, half to even; exact for what the contracts send in a dollar market."""
    if abs(value) >= _LARGEST_DECIMAL:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, f"|{float(value):.3e}| is not below 1e20")
    return token_amount(round(value * 10**18), 18)


def user_records(body: Any) -> list[Any]:
    """The entries of `getUserReservesData`."""
    return members(body, "userReserves")
