"""Where facts of a Compound v3 market stand: the markets of the parameter file, and what payloads say of each.

A `Section` is one market's part of one payload. Several sections may speak of one market (an owner's own snapshot, the
market's, a configuration); a `View` asks them in that order. A configuration is turned into the names and units of the
contract's getters first, so that every section is read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from aggregator.errors import ConfigurationError, FailureReason, nearest_name

from ..adapter import parameter_table
from ..amounts import FieldError, decimal_of, integer_of, joined, member, members, time_of
from ..fields import struct_of
from ..findings import PlacedError
from ..transport import Payload
from .mechanics import FACTOR_SCALE, per_second

VENUE = "compound_v3"
USD = "USD"
ACCOUNT, MARKET, CONFIGURATION = "account", "market", "configuration"
REQUESTS = (ACCOUNT, MARKET, CONFIGURATION)

_STORED_FACTOR = 10**14
_MOST_DIGITS = 60
_T = TypeVar("_T")


# Parameters -----------------------------------------------------------------------------------------------------------


class Deployment(NamedTuple):
    """One market as the parameter file names it. `tokens` maps addresses in lower case to symbols of the asset book."""

    label: str
    chain: str
    base: str
    comet: str
    numeraire: str
    tokens: Mapping[str, str]
    source: str
    as_of: datetime | None

    @property
    def rule_set(self) -> str:
        """Id of the market's rule set."""
        return f"{VENUE}:{self.label}"

    @property
    def settlement_asset(self) -> str:
        """Unit of the market's own figures: dollars, or the token that its feeds quote."""
        return USD if self.numeraire == USD else self.asset_id(self.numeraire)

    def asset_id(self, symbol: str) -> str:
        """Canonical id of a token of the market's chain."""
        return f"{symbol}@{self.chain}"


class Deployments(NamedTuple):
    """All markets of the parameter file, and the one of payloads that name none."""

    markets: Mapping[str, Deployment]
    default: str | None

    def of(self, payload: Payload, body: Mapping[str, Any], path: str) -> Deployment:
        """The market of a snapshot: behind the request's colon, else its `comet` address, else the default one.

        Raises `FieldError`: unknown_market for one that the parameter file does not have, missing_field where nothing
        says which, inconsistent where the request and the address disagree.
        """
        named = payload.request.partition(":")[2]
        address = body.get("comet")
        found = [d for d in self.markets.values() if isinstance(address, str) and d.comet == address.lower()]
        if named and named not in self.markets:
            hint = nearest_name(named, self.markets)
            raise FieldError("request", FailureReason.UNKNOWN_MARKET, f"no market {named[:60]!r} in the file{hint}")
        if address is not None and not found:
            where = joined(path, "comet")
            raise FieldError(where, FailureReason.UNKNOWN_MARKET, f"no market with the address {str(address)[:60]!r}")
        if named and found and found[0].label != named:
            where = joined(path, "comet")
            raise FieldError(where, FailureReason.INCONSISTENT, f"the address of {found[0].label} for {named}")
        label = named or (found[0].label if found else self.default)
        if label is None:
            raise FieldError(path, FailureReason.MISSING_FIELD, "nothing names the market: say `account:<market>`")
        return self.markets[label]


def deployments_of(parameters: Mapping[str, Any]) -> Deployments:
    """The markets of the parameter file; raises `ConfigurationError` for a missing or unusable entry."""
    source, as_of = str(parameters.get("source", "")), parameters.get("as_of")
    try:
        moment = as_of if as_of is None or isinstance(as_of, datetime) else time_of(as_of, "as_of")
    except FieldError as error:
        raise ConfigurationError(f"{VENUE} parameters: as_of: {error.message}") from None
    tokens = {
        chain: {address.lower(): symbol for address, symbol in parameter_table(table, chain, venue=VENUE).items()}
        for table in (parameter_table(parameters, "tokens", venue=VENUE),)
        for chain in table
    }
    if not all(isinstance(symbol, str) for known in tokens.values() for symbol in known.values()):
        raise ConfigurationError(f"{VENUE} parameters: [tokens.<chain>] must map addresses to symbols")
    listed = parameter_table(parameters, "markets", venue=VENUE)
    markets = {}
    for label in listed:
        entry = parameter_table(listed, label, venue=VENUE)
        for key in ("chain", "base", "comet", "numeraire"):
            if not isinstance(entry.get(key, "" if key == "comet" else None), str):
                raise ConfigurationError(f"{VENUE} parameters: market {label!r}: {key!r} is missing or no text")
        chain = entry["chain"]
        markets[label] = Deployment(
            label=label,
            chain=chain,
            base=entry["base"],
            comet=entry.get("comet", "").lower(),
            numeraire=entry["numeraire"],
            tokens=tokens.get(chain, {}),
            source=source,
            as_of=moment,
        )
    if not markets:
        raise ConfigurationError(f"{VENUE} parameters: no [markets.<label>]")
    default = parameters.get("default_market", next(iter(markets)) if len(markets) == 1 else None)
    if default is not None and default not in markets:
        raise ConfigurationError(f"{VENUE} parameters: default_market {default!r} is no market of the file")
    return Deployments(markets, default)


# Sections -------------------------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """What one payload says of one market, under `path` of its body."""

    payload: Payload
    path: str
    body: Mapping[str, Any]

    def read(self, reader: Callable[[Any, str, str], _T], key: str) -> _T:
        """`reader(body, key, path)`; raises `PlacedError`."""
        try:
            return reader(self.body, key, self.path)
        except FieldError as error:
            raise PlacedError(self.payload.name, error) from None

    def inside(self, key: str | int, body: Any) -> Section:
        """The part of this section under `key`."""
        return Section(self.payload, joined(self.path, key), body)

    def error(self, key: str, reason: FailureReason, message: str) -> PlacedError:
        """What is wrong with `key` of this section."""
        return PlacedError(self.payload.name, FieldError(joined(self.path, key) if key else self.path, reason, message))


class View(NamedTuple):
    """All sections that speak of one market, the most specific first; never empty."""

    sections: tuple[Section, ...]

    def having(self, key: str) -> Section | None:
        """The first section with a value under `key`."""
        return next((s for s in self.sections if s.body.get(key) is not None), None)

    def read(self, reader: Callable[[Any, str, str], _T], key: str) -> _T:
        """The value under `key` of the first section that has one; `PlacedError` where none has."""
        return (self.having(key) or self.sections[0]).read(reader, key)

    def optional(self, reader: Callable[[Any, str, str], _T], key: str) -> _T | None:
        """As `read`, but None where no section has the key."""
        section = self.having(key)
        return None if section is None else section.read(reader, key)


def sections_of(payload: Payload) -> list[Section | PlacedError]:
    """The snapshots in a payload: one object or a list of them, bare or under `result` or `data`.

    What is no object is an error in its place, and so is a list of nothing.
    """
    body, path = payload.body, ""
    while isinstance(body, Mapping) and (inner := _wrapped(body)) is not None:
        path, body = joined(path, inner[0]), inner[1]
    if body == []:
        return [PlacedError(payload.name, FieldError(path, FailureReason.MISSING_FIELD, "a list without a snapshot"))]
    records = [(joined(path, n), record) for n, record in enumerate(body)] if isinstance(body, list) else [(path, body)]
    return [
        Section(payload, where, record)
        if isinstance(record, Mapping)
        else PlacedError(
            payload.name,
            FieldError(where, FailureReason.MALFORMED, f"expected an object, found {type(record).__name__}"),
        )
        for where, record in records
    ]


def _wrapped(body: Mapping[str, Any]) -> tuple[str, Any] | None:
    if "userBasic" in body or "totalsBasic" in body:
        return None
    return next(((k, body[k]) for k in ("result", "data") if isinstance(body.get(k), Mapping | list)), None)


# Numbers --------------------------------------------------------------------------------------------------------------


def whole_of(value: Any, path: str) -> int:
    """An integer of any size, also written with an exponent (`100e6`, as deployment files do); raises `FieldError`."""
    if isinstance(value, Decimal) or (isinstance(value, str) and "e" in value.lower() and "0x" not in value.lower()):
        try:
            number = Decimal(value)
        except ArithmeticError:
            number = Decimal("NaN")
        if not number.is_finite() or abs(number.adjusted()) > _MOST_DIGITS or number != number.to_integral_value():
            raise FieldError(path, FailureReason.NOT_A_NUMBER, f"{str(value)[:40]!r} is not an integer")
        return int(number)
    return integer_of(value, path)


def unsigned_at(record: Any, key: str, path: str = "", *, bits: int = 128) -> int:
    """The required integer under `key`, 0 to 2^bits - 1."""
    value = whole_of(member(record, key, path), joined(path, key))
    if not 0 <= value < 2**bits:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{str(value)[:60]} is no uint{bits}")
    return value


def uint64_at(record: Any, key: str, path: str = "") -> int:
    """The required integer under `key`, 0 to 2^64 - 1."""
    return unsigned_at(record, key, path, bits=64)


def positive_at(record: Any, key: str, path: str = "") -> int:
    """The required integer under `key`, above 0."""
    value = unsigned_at(record, key, path)
    if value == 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, "0 must be positive")
    return value


def factor_at(record: Any, key: str, path: str = "") -> int:
    """The required factor under `key`, 0 to 1e18."""
    value = unsigned_at(record, key, path)
    if value > FACTOR_SCALE:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} is above 1e18, which is 1")
    return value


def struct_at(names: Sequence[str]) -> Callable[[Any, str, str], Mapping[str, Any]]:
    """A reader of a contract's struct: an object, or a list of its fields in order, as clients decode it."""

    def read(record: Any, key: str, path: str = "") -> Mapping[str, Any]:
        return struct_of(member(record, key, path), names, joined(path, key))

    return read


# Configurations -------------------------------------------------------------------------------------------------------

_CURVES = {
    "Kink": "Kink",
    "PerSecondInterestRateSlopeLow": "SlopeLow",
    "PerSecondInterestRateSlopeHigh": "SlopeHigh",
    "PerSecondInterestRateBase": "Base",
}


def as_getters(section: Section) -> Section:
    """A configuration in the names and units of the market's getters.

    Read are a deployment file of the repository (fractions, `100e6`, decimals) and the struct `Configuration` of the
    `Configurator` (integers per year, `assetConfigs`). The contract keeps four digits of an asset's factors. Raises
    `PlacedError`.
    """
    try:
        getters = _from_struct(section) if "assetConfigs" in section.body else _from_file(section)
    except PlacedError:
        raise
    except FieldError as error:
        raise PlacedError(section.payload.name, error) from None
    return section._replace(body=getters)


def _from_struct(section: Section) -> dict[str, Any]:
    body, path = section.body, section.path
    out = {
        key: value
        for key, value in body.items()
        if key in ("comet", "storeFrontPriceFactor", "baseBorrowMin", "targetReserves", "supplyKink", "borrowKink")
    }
    for side in ("supply", "borrow"):
        for getter, short in _CURVES.items():
            yearly = f"{side}PerYearInterestRate{short}"
            if getter != "Kink" and yearly in body:
                out[f"{side}{getter}"] = per_second(unsigned_at(body, yearly, path))
    out["assets"] = []
    for number, record in enumerate(members(body, "assetConfigs", path)):
        where = joined(joined(path, "assetConfigs"), number)
        asset = dict(record) if isinstance(record, Mapping) else {}
        factors = {key: factor_at(asset, key, where) // _STORED_FACTOR * _STORED_FACTOR for key in FACTORS}
        scale = 10 ** _decimals_at(asset, "decimals", where)
        out["assets"].append(asset | factors | {"offset": number, "scale": scale})
    return out


def _from_file(section: Section) -> dict[str, Any]:
    body, path = section.body, section.path
    out: dict[str, Any] = {key: body[key] for key in ("comet", "baseToken", "baseTokenAddress") if key in body}
    if "storeFrontPriceFactor" in body:
        out["storeFrontPriceFactor"] = _fraction_at(body, "storeFrontPriceFactor", path)
    for key, getter in (("borrowMin", "baseBorrowMin"), ("targetReserves", "targetReserves")):
        if key in body:
            out[getter] = unsigned_at(body, key, path)
    if "rates" in body:
        rates, inner = member(body, "rates", path), joined(path, "rates")
        for side in ("supply", "borrow"):
            for getter, short in _CURVES.items():
                yearly = _fraction_at(rates, f"{side}{short}", inner, largest=1000)
                out[f"{side}{getter}"] = yearly if short == "Kink" else per_second(yearly)
    assets = member(body, "assets", path)
    if not isinstance(assets, Mapping):
        raise FieldError(joined(path, "assets"), FailureReason.MALFORMED, "expected assets by symbol")
    out["assets"] = []
    for number, (symbol, record) in enumerate(assets.items()):
        where = joined(joined(path, "assets"), symbol)
        factors = {
            getter: _fraction_at(record, key, where) // _STORED_FACTOR * _STORED_FACTOR
            for getter, key in zip(FACTORS, ("borrowCF", "liquidateCF", "liquidationFactor"), strict=True)
        }
        scale = 10 ** _decimals_at(record, "decimals", where)
        caps = {"supplyCap": unsigned_at(record, "supplyCap", where)} if "supplyCap" in record else {}
        address = record.get("address", symbol)
        out["assets"].append({"offset": number, "symbol": symbol, "asset": address, "scale": scale} | factors | caps)
    return out


FACTORS = ("borrowCollateralFactor", "liquidateCollateralFactor", "liquidationFactor")
"""Getter names of an asset's three factors."""


def _fraction_at(record: Any, key: str, path: str, *, largest: int = 1) -> int:
    """A fraction as an integer of 1e18, cut."""
    value = decimal_of(member(record, key, path), joined(path, key))
    if not 0 <= value <= largest:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} must lie in 0..{largest}")
    return int(value.scaleb(18))


def _decimals_at(record: Any, key: str, path: str) -> int:
    value = unsigned_at(record, key, path)
    if value > 36:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} decimals are no token's")
    return value
