"""Reads payloads of GMX v2: structs of the Reader contract, DataStore values, token and price lists of the venue's API.

Integers stay integers in the contract's units until they become rows. Structs are read as objects with the contract's
names or as lists in the contract's order; addresses are compared in lower case. Every function raises `FieldError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, integer_at, integer_of, joined, member, optional_time_at
from ..fields import flag_at, struct_of
from .mechanics import Position

LARGEST = 2**256 - 1
_MOST_DECIMALS = 36

_ADDRESSES = ("account", "market", "collateralToken")
_NUMBERS = (
    "sizeInUsd",
    "sizeInTokens",
    "collateralAmount",
    "pendingImpactAmount",
    "borrowingFactor",
    "fundingFeeAmountPerSize",
    "longTokenClaimableFundingAmountPerSize",
    "shortTokenClaimableFundingAmountPerSize",
    "increasedAtTime",
    "decreasedAtTime",
)
_FLAGS = ("isLong",)
_PROPS = ("addresses", "numbers", "flags")
_MARKET = ("marketToken", "indexToken", "longToken", "shortToken")
_PRICES = ("indexTokenPrice", "longTokenPrice", "shortTokenPrice")
_PRICE = ("min", "max")
_WRAPPERS = ("result", "data")


class Price(NamedTuple):
    """Lowest and highest price of a token in USD with 30 decimals per raw unit, and when it was so."""

    min: int
    max: int
    as_of: datetime | None


class Token(NamedTuple):
    """A token of the deployment; synthetic index tokens have an address and decimals as well."""

    address: str
    symbol: str
    decimals: int


class Market(NamedTuple):
    """Addresses of a market's tokens; its pool is in the long and the short token."""

    address: str
    index_token: str
    long_token: str
    short_token: str


class MarketPrices(NamedTuple):
    """Prices that a payload carries for one market."""

    index_token: Price
    long_token: Price
    short_token: Price


class Held(NamedTuple):
    """A position and where it is."""

    market: str
    collateral: str
    position: Position

    @property
    def key(self) -> tuple[str, str, bool]:
        """What tells an owner's positions apart."""
        return self.market, self.collateral, self.position.is_long


class Info(NamedTuple):
    """What the Reader computes of closing a position in full."""

    position_key: str
    cost_amount: int
    price_impact_usd: int
    pnl_usd: int
    uncapped_pnl_usd: int
    collateral_price: Price | None


class Verdict(NamedTuple):
    """Answer of `isPositionLiquidatable`; USD with 30 decimals."""

    is_liquidatable: bool
    remaining_collateral_usd: int
    min_collateral_usd: int
    min_collateral_usd_for_leverage: int


# ---- fields ----------------------------------------------------------------------------------------------------------


def unsigned_at(record: Any, key: str, path: str = "") -> int:
    """The required integer under `key`, 0 to 2^256 − 1."""
    value = integer_at(record, key, path)
    if not 0 <= value <= LARGEST:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} does not lie in 0..2^256-1")
    return value


def signed_at(record: Any, key: str, path: str = "") -> int:
    """The required integer under `key`, of a size that fits the contract's signed integers."""
    value = integer_at(record, key, path)
    if abs(value) > LARGEST // 2:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} does not fit 256 bits")
    return value


def address_of(value: Any, path: str) -> str:
    """An address in lower case; raises malformed unless it is 0x and 40 hexadecimal digits."""
    if isinstance(value, str) and len(value) == 42 and value[:2] in ("0x", "0X"):
        digits = value[2:].lower()
        if all(digit in "0123456789abcdef" for digit in digits):
            return "0x" + digits
    raise FieldError(path, FailureReason.MALFORMED, f"{str(value)[:44]!r} is no address")


def address_at(record: Any, key: str, path: str = "") -> str:
    """`address_of` the required member `key`."""
    return address_of(member(record, key, path), joined(path, key))


def unwrapped(body: Any) -> tuple[Any, str]:
    """The answer inside `result` or `data` wrappers, and the path to it."""
    path = ""
    while isinstance(body, Mapping):
        inner = next((key for key in _WRAPPERS if key in body), None)
        if inner is None:
            break
        body, path = body[inner], joined(path, inner)
    return body, path


def records(body: Any, *lists: str) -> Iterator[tuple[str, Any]]:
    """(path, record) of each record of a bare list, of a list under one of `lists`, or of a single object.

    Raises malformed for anything else.
    """
    body, path = unwrapped(body)
    if isinstance(body, Mapping):
        key = next((name for name in lists if name in body), None)
        if key is not None:
            body, path = body[key], joined(path, key)
    if isinstance(body, list):
        for number, record in enumerate(body):
            yield joined(path, number), record
    elif isinstance(body, Mapping):
        yield path, body
    else:
        raise FieldError(path, FailureReason.MALFORMED, f"expected a list of objects, found {type(body).__name__}")


# ---- tokens, markets, prices -----------------------------------------------------------------------------------------


def read_token(record: Any, path: str) -> Token:
    """A token of the list of tokens."""
    decimals = unsigned_at(record, "decimals", path)
    if decimals > _MOST_DECIMALS:
        raise FieldError(joined(path, "decimals"), FailureReason.OUT_OF_RANGE, f"{decimals} decimals")
    symbol = member(record, "symbol", path)
    if not isinstance(symbol, str) or not symbol:
        raise FieldError(joined(path, "symbol"), FailureReason.MALFORMED, "expected the symbol of a token")
    return Token(address_at(record, "address", path), symbol, decimals)


def read_market(record: Any, path: str) -> Market:
    """A market's tokens (`Market.Props`); further members do not matter."""
    fields = struct_of(record, _MARKET, path)
    return Market(*(address_at(fields, name, path) for name in _MARKET))


def read_ticker(record: Any, path: str, received_at: datetime | None) -> tuple[str, Price]:
    """(token address, price) of the API's price list; the time of the price, else that of the payload."""
    as_of = optional_time_at(record, "updatedAt", path) if isinstance(record, Mapping) else None
    lowest, highest = positive_at(record, "minPrice", path), positive_at(record, "maxPrice", path)
    if lowest > highest:
        raise FieldError(path, FailureReason.INCONSISTENT, f"minPrice {lowest} above maxPrice {highest}")
    return address_at(record, "tokenAddress", path), Price(lowest, highest, as_of or received_at)


def read_prices(value: Any, path: str, received_at: datetime | None) -> MarketPrices:
    """`MarketUtils.MarketPrices`: index, long and short token."""
    fields = struct_of(value, _PRICES, path)
    return MarketPrices(*(read_price(member(fields, name, path), joined(path, name), received_at) for name in _PRICES))


def read_price(value: Any, path: str, received_at: datetime | None) -> Price:
    """`Price.Props`: min and max."""
    fields = struct_of(value, _PRICE, path)
    lowest, highest = positive_at(fields, "min", path), positive_at(fields, "max", path)
    if lowest > highest:
        raise FieldError(path, FailureReason.INCONSISTENT, f"min {lowest} above max {highest}")
    return Price(lowest, highest, received_at)


def positive_at(record: Any, key: str, path: str = "") -> int:
    """The required integer under `key`, above 0."""
    value = unsigned_at(record, key, path)
    if value == 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, "0 must be positive")
    return value


# ---- positions -------------------------------------------------------------------------------------------------------


def read_position(record: Any, path: str) -> Held:
    """`Position.Props`, nested as the contract returns it or flat; raises inconsistent for a size in one unit alone."""
    fields = record if isinstance(record, Mapping) and "addresses" not in record else struct_of(record, _PROPS, path)
    parts = []
    for part, names in zip(_PROPS, (_ADDRESSES, _NUMBERS, _FLAGS), strict=True):
        nested = fields.get(part)
        parts.append((struct_of(nested, names, joined(path, part)), joined(path, part)) if nested else (fields, path))
    (addresses, in_addresses), (numbers, in_numbers), (flags, in_flags) = parts
    position = Position(
        is_long=flag_at(flags, "isLong", in_flags),
        size_in_usd=unsigned_at(numbers, "sizeInUsd", in_numbers),
        size_in_tokens=unsigned_at(numbers, "sizeInTokens", in_numbers),
        collateral_amount=unsigned_at(numbers, "collateralAmount", in_numbers),
        pending_impact_amount=signed_at(numbers, "pendingImpactAmount", in_numbers),
        borrowing_factor=unsigned_at(numbers, "borrowingFactor", in_numbers),
        funding_fee_amount_per_size=unsigned_at(numbers, "fundingFeeAmountPerSize", in_numbers),
    )
    if bool(position.size_in_usd) != bool(position.size_in_tokens):
        message = f"size {position.size_in_usd} in USD but {position.size_in_tokens} in tokens"
        raise FieldError(joined(in_numbers, "sizeInTokens"), FailureReason.INCONSISTENT, message)
    if position.collateral_amount and not position.size_in_usd:
        raise FieldError(joined(in_numbers, "sizeInUsd"), FailureReason.INCONSISTENT, "collateral without a position")
    market, collateral = (address_at(addresses, name, in_addresses) for name in _ADDRESSES[1:])
    return Held(market, collateral, position)


def read_info(record: Any, path: str, received_at: datetime | None) -> Info:
    """What `ReaderPositionUtils.PositionInfo` says of the costs and the profit of a full close.

    The cost is without the fee of an interface, which the liquidation check does not know.
    """
    fees, in_fees = member(record, "fees", path), joined(path, "fees")
    execution, in_execution = member(record, "executionPriceResult", path), joined(path, "executionPriceResult")
    cost = unsigned_at(fees, "totalCostAmount", in_fees)
    interface = fees.get("ui")
    if interface is not None:
        cost -= unsigned_at(interface, "uiFeeAmount", joined(in_fees, "ui"))
    if cost < 0:
        raise FieldError(joined(in_fees, "totalCostAmount"), FailureReason.INCONSISTENT, "below the interface's fee")
    price = fees.get("collateralTokenPrice")
    pnl, uncapped = signed_at(record, "basePnlUsd", path), signed_at(record, "uncappedBasePnlUsd", path)
    if pnl > uncapped or ((uncapped > 0) != (pnl > 0) and pnl != 0):
        message = f"{pnl} is no capped part of uncappedBasePnlUsd {uncapped}"
        raise FieldError(joined(path, "basePnlUsd"), FailureReason.INCONSISTENT, message)
    return Info(
        position_key=str(record.get("positionKey") or "").lower(),
        cost_amount=cost,
        price_impact_usd=signed_at(execution, "priceImpactUsd", in_execution),
        pnl_usd=pnl,
        uncapped_pnl_usd=uncapped,
        collateral_price=None
        if price is None
        else read_price(price, joined(in_fees, "collateralTokenPrice"), received_at),
    )


def read_verdict(record: Any, path: str) -> Verdict:
    """Answer of `isPositionLiquidatable`: flag, reason and `info` as an object or a list."""
    info = struct_of(
        member(record, "info", path),
        ("remainingCollateralUsd", "minCollateralUsd", "minCollateralUsdForLeverage"),
        joined(path, "info"),
    )
    where = joined(path, "info")
    return Verdict(
        flag_at(record, "isLiquidatable", path),
        signed_at(info, "remainingCollateralUsd", where),
        signed_at(info, "minCollateralUsd", where),
        signed_at(info, "minCollateralUsdForLeverage", where),
    )


# ---- DataStore values ------------------------------------------------------------------------------------------------

SIDES = ("long", "short")
GLOBAL_KEYS: Mapping[str, str] = {
    "MIN_COLLATERAL_USD": "min_collateral_usd",
    "minCollateralUsd": "min_collateral_usd",
    "MIN_POSITION_SIZE_USD": "min_position_size_usd",
    "minPositionSizeUsd": "min_position_size_usd",
    "USE_OPEN_INTEREST_IN_TOKENS_FOR_BALANCE": "use_open_interest_in_tokens",
    "useOpenInterestInTokensForBalance": "use_open_interest_in_tokens",
}
"""Values of the whole deployment: name in a payload to name here."""

MARKET_KEYS: Mapping[str, str] = {
    "minCollateralFactor": "min_collateral_factor",
    "minCollateralFactorForLiquidation": "min_collateral_factor_for_liquidation",
    "minCollateralFactorForOpenInterestMultiplier": "min_collateral_factor_multiplier",
    "maxPositionImpactFactorForLiquidations": "max_impact_factor_for_liquidations",
    "positionImpactFactor_positive": "impact_factor_positive",
    "positionImpactFactor_negative": "impact_factor_negative",
    "positionImpactExponentFactor": "impact_exponent",
    "positionImpactExponentFactor_positive": "impact_exponent_positive",
    "positionImpactExponentFactor_negative": "impact_exponent_negative",
    "maxPositionImpactFactor_positive": "max_impact_factor_positive",
    "maxPositionImpactFactor_negative": "max_impact_factor_negative",
    "positionFeeFactor": "position_fee_factor",
    "positionFeeFactor_positive": "position_fee_factor_positive",
    "positionFeeFactor_negative": "position_fee_factor_negative",
    "liquidationFeeFactor": "liquidation_fee_factor",
    "virtualInventoryForPositions": "virtual_inventory",
    "virtualInventoryForPositionsInTokens": "virtual_inventory_in_tokens",
    "poolAmount_longToken": "pool_amount_long_token",
    "poolAmount_shortToken": "pool_amount_short_token",
    **{
        f"{name}_{side}": f"{ours}_{side}"
        for side in SIDES
        for name, ours in (
            ("minCollateralFactorForOpenInterestMultiplier", "min_collateral_factor_multiplier"),
            ("openInterest", "open_interest"),
            ("openInterestInTokens", "open_interest_in_tokens"),
            ("cumulativeBorrowingFactor", "cumulative_borrowing_factor"),
            ("borrowingFactorPerSecond", "borrowing_factor_per_second"),
            ("maxPnlFactorForTraders", "max_pnl_factor"),
        )
    },
    **{
        f"fundingFeeAmountPerSize_{side}_{token}Token": f"funding_fee_per_size_{side}_{token}_token"
        for side in SIDES
        for token in SIDES
    },
}
"""Values of one market: name in a payload (the contract's key with its flag behind it) to name here."""

_SWITCHES = frozenset({"use_open_interest_in_tokens"})
_SIGNED = frozenset({"virtual_inventory", "virtual_inventory_in_tokens"})


def read_values(record: Mapping[str, Any], keys: Mapping[str, str], path: str) -> dict[str, int]:
    """Integers of `record` under `keys` by our names; a switch is 0 or 1, what stands under other names is left."""
    values: dict[str, int] = {}
    for key, ours in keys.items():
        value = record.get(key)
        if value is None:
            continue
        where = joined(path, key)
        number = int(value) if ours in _SWITCHES and isinstance(value, bool) else integer_of(value, where)
        if number > LARGEST or (number < 0 and ours not in _SIGNED):
            raise FieldError(where, FailureReason.OUT_OF_RANGE, f"{number} does not lie in 0..2^256-1")
        values[ours] = number
    return values


def read_market_info(record: Any, path: str) -> tuple[Market, dict[str, int]]:
    """(market, values) of `ReaderUtils.MarketInfo`: virtual inventory, borrowing rates, funding per size so far.

    What has accrued since the last update is added to the funding per size, as the Reader itself does.
    """
    market = read_market(member(record, "market", path), joined(path, "market"))
    values: dict[str, int] = {}
    for side in SIDES:
        key = f"borrowingFactorPerSecondFor{side.title()}s"
        if record.get(key) is not None:
            values[f"borrowing_factor_per_second_{side}"] = unsigned_at(record, key, path)
    inventory = record.get("virtualInventory")
    if isinstance(inventory, Mapping):
        where = joined(path, "virtualInventory")
        for key in ("virtualInventoryForPositions", "virtualInventoryForPositionsInTokens"):
            # The Reader answers 0 for an index token without virtual inventory as well.
            if inventory.get(key) is not None and (amount := signed_at(inventory, key, where)):
                values[MARKET_KEYS[key]] = amount
    base = record.get("baseFunding")
    if isinstance(base, Mapping):
        where = joined(joined(path, "baseFunding"), "fundingFeeAmountPerSize")
        latest = member(base, "fundingFeeAmountPerSize", joined(path, "baseFunding"))
        following = record.get("nextFunding")
        since = following.get("fundingFeeAmountPerSizeDelta") if isinstance(following, Mapping) else None
        # The two tokens of a single-token market are one, and what accrues to it is stated in halves.
        times = 2 if market.long_token == market.short_token else 1
        for side in SIDES:
            for token in SIDES:
                name = f"{token}Token"
                value = unsigned_at(member(latest, side, where), name, joined(where, side))
                if since is not None:
                    delta_path = joined(path, "nextFunding.fundingFeeAmountPerSizeDelta")
                    value += times * unsigned_at(member(since, side, delta_path), name, joined(delta_path, side))
                values[f"funding_fee_per_size_{side}_{token}_token"] = value
    return market, values
