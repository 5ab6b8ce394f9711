"""Snapshots of Morpho Blue markets and positions, whatever shape their source has.

Read are the structs of the contract (`Position`, `Market`, `MarketParams`, the oracle's `price`), entries of the
venue's GraphQL API, and rows of its REST API. Each becomes a `Snapshot`: facts by one common name, each with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypeVar

from aggregator.errors import FailureReason

from ..amounts import FieldError, decimal_of, integer_of, joined
from ..findings import PlacedError
from ..transport import Payload

VENUE = "morpho_blue"

POSITION, POSITIONS, MARKET, TOKENS = "position", "positions", "market", "tokens"
_OF_A_USER = {"userByAddress": "marketPositions", "marketPositions": "items", "marketPosition": ""}
_OF_ALL = {"markets": "items", "marketById": "", "marketByUniqueKey": ""}
_OF_TOKENS = {"assets": "items"}
USER_REQUESTS = (POSITION, POSITIONS, *_OF_A_USER)
REQUESTS = (*USER_REQUESTS, MARKET, *_OF_ALL, TOKENS, *_OF_TOKENS)

Source = Literal["contract", "rest", "api"]
_T = TypeVar("_T")


# Shapes ---------------------------------------------------------------------------------------------------------------

_STRUCTS: Mapping[str, Sequence[str]] = {
    "position": ("supplyShares", "borrowShares", "collateral"),
    "market": (
        "totalSupplyAssets",
        "totalSupplyShares",
        "totalBorrowAssets",
        "totalBorrowShares",
        "lastUpdate",
        "fee",
    ),
    "marketParams": ("loanToken", "collateralToken", "oracle", "irm", "lltv"),
    "idToMarketParams": ("loanToken", "collateralToken", "oracle", "irm", "lltv"),
}
"""Fields of the contract's structs in order: clients decode them to objects or to lists."""

Shape = Mapping[str, Sequence[str]]
"""Common name -> dotted places in a record; the first that holds something counts."""

_CONTRACT: Shape = {
    "id": ("id", "marketId"),
    "chain": ("chain", "chainId"),
    "supply_shares": ("position.supplyShares",),
    "borrow_shares": ("position.borrowShares",),
    "collateral": ("position.collateral",),
    "total_supply_assets": ("market.totalSupplyAssets",),
    "total_supply_shares": ("market.totalSupplyShares",),
    "total_borrow_assets": ("market.totalBorrowAssets",),
    "total_borrow_shares": ("market.totalBorrowShares",),
    "last_update": ("market.lastUpdate",),
    "fee": ("market.fee",),
    "loan_token": ("marketParams.loanToken", "idToMarketParams.loanToken"),
    "collateral_token": ("marketParams.collateralToken", "idToMarketParams.collateralToken"),
    "irm": ("marketParams.irm", "idToMarketParams.irm"),
    "lltv": ("marketParams.lltv", "idToMarketParams.lltv"),
    "price": ("price",),
    "borrow_rate": ("borrowRate",),
    "loan_symbol": ("loanToken.symbol",),
    "loan_decimals": ("loanToken.decimals",),
    "loan_usd": ("loanToken.priceUsd",),
    "collateral_symbol": ("collateralToken.symbol",),
    "collateral_decimals": ("collateralToken.decimals",),
}

_API_MARKET: Shape = {
    "id": ("uniqueKey", "marketId"),
    "chain": ("morphoBlue.chain.id", "chain.id", "loanAsset.chain.id"),
    "total_supply_assets": ("state.supplyAssets",),
    "total_supply_shares": ("state.supplyShares",),
    "total_borrow_assets": ("state.borrowAssets",),
    "total_borrow_shares": ("state.borrowShares",),
    "stated_at": ("state.timestamp",),
    "loan_token": ("loanAsset.address",),
    "loan_symbol": ("loanAsset.symbol",),
    "loan_decimals": ("loanAsset.decimals",),
    "loan_usd": ("loanAsset.priceUsd", "loanAsset.price.usd"),
    "collateral_token": ("collateralAsset.address",),
    "collateral_symbol": ("collateralAsset.symbol",),
    "collateral_decimals": ("collateralAsset.decimals",),
    "irm": ("irmAddress",),
    "lltv": ("lltv",),
    "price": ("state.price",),
}
"""A market of the GraphQL API; its `state.price` is the oracle's price as the contract sees it."""

_API_POSITION: Shape = {
    **{name: tuple(f"market.{place}" for place in places) for name, places in _API_MARKET.items()},
    "supply_shares": ("state.supplyShares", "supplyShares"),
    "borrow_shares": ("state.borrowShares", "borrowShares"),
    "collateral": ("state.collateral", "collateral"),
    "supply_assets": ("state.supplyAssets", "supplyAssets"),
    "borrow_assets": ("state.borrowAssets", "borrowAssets"),
    "health": ("healthFactor",),
}

_REST_POSITION: Shape = {
    "id": ("market_id",),
    "chain": ("chain_id",),
    "supply_shares": ("supply_shares",),
    "borrow_shares": ("borrow_shares",),
    "collateral": ("collateral_assets",),
}

_API_TOKEN: Shape = {
    "token": ("address",),
    "symbol": ("symbol",),
    "decimals": ("decimals",),
    "usd": ("priceUsd", "price.usd"),
    "chain": ("chain.id", "chainId", "chain"),
}

_TOTALS = ("total_supply_assets", "total_supply_shares", "total_borrow_assets", "total_borrow_shares")


class Snapshot(NamedTuple):
    """What one payload says of one market, position or token: facts by common name, each with its path."""

    payload: Payload
    path: str
    facts: Mapping[str, tuple[str, Any]]
    source: Source
    """The contract's totals must be accrued; the API accrues its own to `stated_at`; REST rows have none."""

    def has(self, name: str) -> bool:
        """Whether the payload states it."""
        return name in self.facts

    def has_totals(self) -> bool:
        """Whether the market's totals of both sides are here; totals of different sources do not belong together."""
        return all(name in self.facts for name in _TOTALS)

    def read(self, reader: Callable[[Any, str], _T], name: str) -> _T:
        """`reader(value, path)` of a fact; raises `PlacedError`, missing_field where it is not stated."""
        if name not in self.facts:
            raise self.error(name, FailureReason.MISSING_FIELD, f"{name.replace('_', ' ')} is missing")
        path, value = self.facts[name]
        try:
            return reader(value, path)
        except FieldError as error:
            raise PlacedError(self.payload.name, error) from None

    def error(self, name: str, reason: FailureReason, message: str) -> PlacedError:
        """What is wrong with a fact, at its place in the payload."""
        path = self.facts[name][0] if name in self.facts else joined(self.path, name) if name else self.path
        return PlacedError(self.payload.name, FieldError(path, reason, message))


def snapshots_of(payload: Payload) -> list[Snapshot | PlacedError]:
    """Every market, position or token that a payload speaks of; what is of no known shape is an error in its place."""
    try:
        records = _records(payload)
    except FieldError as error:
        return [PlacedError(payload.name, error)]
    out: list[Snapshot | PlacedError] = []
    for path, record in records:
        if not isinstance(record, Mapping):
            wrong = FieldError(path, FailureReason.MALFORMED, f"expected an object, found {type(record).__name__}")
            out.append(PlacedError(payload.name, wrong))
            continue
        shape, source = _shape_of(record, kind_of(payload))
        try:
            facts = {
                name: found for name, places in shape.items() if (found := _find(record, places, path)) is not None
            }
            out.append(Snapshot(payload, path, facts, source))
        except FieldError as error:
            out.append(PlacedError(payload.name, error))
    return out


def kind_of(payload: Payload) -> str:
    """The request without what stands behind its colon."""
    return payload.request.partition(":")[0].strip("/ ")


def _records(payload: Payload) -> list[tuple[str, Any]]:
    """(path, record) of all records of a body: one object or a list, bare or wrapped, or the answer of a query."""
    body, path = payload.body, ""
    roots = _OF_A_USER | _OF_ALL | _OF_TOKENS
    while isinstance(body, Mapping):
        root = next((name for name in roots if name in body), None)
        if root is not None:
            body, path = _member(body, root, path), joined(path, root)
            if roots[root] and isinstance(body, Mapping):
                body, path = _member(body, roots[root], path), joined(path, roots[root])
            break
        wrapper = next((name for name in ("data", "result") if name in body and "position" not in body), None)
        if wrapper is None:
            break
        body, path = _member(body, wrapper, path), joined(path, wrapper)
    if body == [] and not path:
        raise FieldError(path, FailureReason.MISSING_FIELD, "a list without a snapshot")  # the API's may be empty
    return [(joined(path, n), r) for n, r in enumerate(body)] if isinstance(body, list) else [(path, body)]


def _member(body: Mapping[str, Any], name: str, path: str) -> Any:
    if body.get(name) is None:
        raise FieldError(joined(path, name), FailureReason.MISSING_FIELD, f"the answer has no {name!r}")
    return body[name]


def _shape_of(record: Mapping[str, Any], kind: str) -> tuple[Shape, Source]:
    if kind in (TOKENS, *_OF_TOKENS):
        return _API_TOKEN, "api"
    if kind in (MARKET, *_OF_ALL):
        is_api = kind != MARKET or "loanAsset" in record or "uniqueKey" in record
        return (_API_MARKET, "api") if is_api else (_CONTRACT, "contract")
    if "market_id" in record:
        return _REST_POSITION, "rest"
    market = record.get("market")
    named = isinstance(market, Mapping) and ("uniqueKey" in market or "marketId" in market)
    is_api = kind in _OF_A_USER or (named and "position" not in record)
    return (_API_POSITION, "api") if is_api else (_CONTRACT, "contract")


def _find(record: Mapping[str, Any], places: Sequence[str], path: str) -> tuple[str, Any] | None:
    for place in places:
        value: Any = record
        where = path
        steps = place.split(".")
        for number, step in enumerate(steps):
            if isinstance(value, list) and number and steps[0] in _STRUCTS:
                names = _STRUCTS[steps[0]]
                if len(value) != len(names):
                    message = f"expected {len(names)} fields in order, found {len(value)}"
                    raise FieldError(where, FailureReason.MALFORMED, message)
                value, where = value[names.index(step)], joined(where, names.index(step))
            elif isinstance(value, Mapping):
                value, where = value.get(step), joined(where, step)
            elif value is None or (number and steps[0] in ("loanToken", "collateralToken", "chain", "price")):
                value = None  # an address, a number or a plain price where another shape has an object
            else:
                raise FieldError(where, FailureReason.MALFORMED, f"expected an object, found {type(value).__name__}")
            if value is None:
                break
        if value is not None:
            return where, value
    return None


# Values ---------------------------------------------------------------------------------------------------------------


def unsigned(bits: int) -> Callable[[Any, str], int]:
    """A reader of integers from 0 to 2^bits - 1; a JSON number with an exponent counts where it is whole."""

    def read(value: Any, path: str) -> int:
        if isinstance(value, Decimal) and value.is_finite() and value.adjusted() < 90 and value == int(value):
            value = int(value)
        number = integer_of(value, path)
        if not 0 <= number < 2**bits:
            raise FieldError(path, FailureReason.OUT_OF_RANGE, f"{str(number)[:60]} is no uint{bits}")
        return number

    return read


uint128, uint256 = unsigned(128), unsigned(256)


def positive256(value: Any, path: str) -> int:
    """An integer above 0."""
    number = uint256(value, path)
    if number == 0:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, "0 must be positive")
    return number


def wad_fraction(value: Any, path: str) -> int:
    """An integer of 1e18 below 1: an LLTV."""
    number = uint128(value, path)
    if number >= 10**18:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, f"{number} is not below 1e18, which is 1")
    return number


def decimals(value: Any, path: str) -> int:
    """Digits of a token, 0 to 36."""
    number = uint128(value, path)
    if number > 36:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, f"{number} decimals are no token's")
    return number


def positive_decimal(value: Any, path: str) -> Decimal:
    """A number above 0: a price."""
    number = decimal_of(value, path)
    if number <= 0:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, f"{number} must be positive")
    return number


def non_negative_decimal(value: Any, path: str) -> Decimal:
    """A number of at least 0: a ratio."""
    number = decimal_of(value, path)
    if number < 0:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, f"{number} must not be negative")
    return number
