"""Reads the three documents of a clearing house: margin parameters, positions, account.

The form is this project's own (clearing houses publish theirs in many); it is described in the package's docstring.
Numbers are exact `Fraction`s of their text. Every function raises `FieldError` with the path of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

from aggregator.errors import FailureReason

from ..amounts import (
    FieldError,
    decimal_at,
    decimal_of,
    integer_at,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    positive_at,
    time_of,
)
from ..findings import Problem
from .mechanics import (
    SCAN_POINTS,
    SCENARIO_COUNT,
    CalendarLeg,
    CalendarSpread,
    DeliveryMonth,
    InterLeg,
    InterSpread,
)

T = TypeVar("T")


class Contract(NamedTuple):
    """One future or option; money per unit of the underlying, arrays per contract."""

    symbol: str
    commodity: str
    kind: str
    expiry: datetime
    month: str
    multiplier: Decimal
    price: Decimal
    delta_scale: Fraction
    strike: Decimal | None
    option_type: str | None
    implied_vol: Decimal | None
    future_price: Decimal
    """Price of the future that an option is on; of a future its own."""
    composite_delta: Fraction | None
    risk_array: tuple[Fraction, ...] | None
    price_scan_range: Fraction | None
    vol_scan_range: Fraction | None


class Tier(NamedTuple):
    """Contract months of one tier for calendar spreads, first and last included."""

    tier: int
    first: str
    last: str


class Commodity(NamedTuple):
    """A combined commodity: what is scanned and netted together.

    The scan range is absolute (money per unit) or a rate of each contract's future price, never both.
    """

    code: str
    underlying: str
    currency: str
    price_scan_range: Fraction | None
    price_scan_rate: Fraction | None
    vol_scan_range: Fraction | None
    short_option_minimum: Fraction
    short_option_count: str
    initial_ratio: Fraction
    index_price: Decimal | None
    tiers: tuple[Tier, ...]
    calendar: tuple[CalendarSpread, ...]
    delivery: tuple[DeliveryMonth, ...]


class House(NamedTuple):
    """A clearing house's parameters of one day."""

    code: str
    as_of: datetime
    extreme_multiple: Fraction | None
    extreme_cover: Fraction | None
    look_ahead_days: Fraction | None
    delta_weights: tuple[Fraction, ...] | None
    commodities: Mapping[str, Commodity | Problem]
    contracts: Mapping[str, Contract | Problem]
    spreads: tuple[InterSpread, ...]


class Line(NamedTuple):
    """One position: signed contracts, and the price to which a future has been settled."""

    symbol: str
    quantity: Decimal
    settlement_price: Decimal | None
    path: str


class Collateral(NamedTuple):
    """Non-cash collateral with its haircut; `price` in the account's currency."""

    symbol: str
    quantity: Decimal
    price: Decimal | None
    haircut: Decimal


class Account(NamedTuple):
    """Cash, collateral, and the house's own figures."""

    currency: str
    cash: Decimal
    collateral: tuple[Collateral, ...]
    reported: Mapping[str, Decimal | None]


Note = Callable[[FieldError, str], None]
"""Told of what cannot be read inside a document whose rest goes on, with the subject that it concerns."""


# ---- margin parameters -----------------------------------------------------------------------------------------------


def read_house(body: Any, received_at: datetime | None, note: Note) -> House:
    """The margin parameters; commodities, contracts and spreads that cannot be read are noted and leave a problem."""
    code = text_at(body, "clearing_house")
    stated = body.get("as_of")
    as_of = received_at if stated is None else time_of(stated, "as_of")
    if as_of is None:
        raise FieldError("as_of", FailureReason.MISSING_FIELD, "neither the document nor its envelope states a time")
    scan, in_scan = body.get("scan", {}), "scan"
    if not isinstance(scan, Mapping):
        raise FieldError(in_scan, FailureReason.MALFORMED, f"expected an object, found {type(scan).__name__}")
    weights = scan.get("delta_weights")
    commodities: dict[str, Commodity | Problem] = {}
    contracts: dict[str, Contract | Problem] = {}
    for number, record in enumerate(members(body, "combined_commodities")):
        path = joined("combined_commodities", number)
        try:
            found = _read_commodity(record, path)
        except FieldError as error:
            _lose_commodity(record, error, path, commodities, contracts)
            note(error, _name_of(record, "code", path))
            continue
        if found.code in commodities:
            twice = FieldError(path, FailureReason.DUPLICATE, f"commodity {found.code} stands twice; all rejected")
            commodities[found.code] = Problem(twice.reason, twice.message)
            note(twice, found.code)
        else:
            commodities[found.code] = found
        _read_contracts(record, path, found.code, as_of, contracts, note)
    spreads = _read_spreads(body, commodities, note)
    return House(
        code=code,
        as_of=as_of,
        extreme_multiple=_optional_fraction(scan, "extreme_multiple", in_scan, least=Fraction(1)),
        extreme_cover=_optional_fraction(scan, "extreme_cover", in_scan, least=Fraction(0)),
        look_ahead_days=_optional_fraction(scan, "look_ahead_days", in_scan, least=Fraction(0)),
        delta_weights=None if weights is None else _weights(weights, joined(in_scan, "delta_weights")),
        commodities=commodities,
        contracts=contracts,
        spreads=spreads,
    )


def _weights(value: Any, path: str) -> tuple[Fraction, ...]:
    if not isinstance(value, list) or len(value) != len(SCAN_POINTS):
        raise FieldError(path, FailureReason.MALFORMED, f"expected a list of {len(SCAN_POINTS)} weights")
    weights = tuple(Fraction(decimal_of(entry, joined(path, i))) for i, entry in enumerate(value))
    if min(weights) < 0 or not sum(weights):
        raise FieldError(path, FailureReason.OUT_OF_RANGE, "weights must not be negative, nor all 0")
    return weights


def _name_of(record: Any, key: str, path: str) -> str:
    name = record.get(key) if isinstance(record, Mapping) else None
    return name if isinstance(name, str) and name else path


def _lose_commodity(
    record: Any,
    error: FieldError,
    path: str,
    commodities: dict[str, Commodity | Problem],
    contracts: dict[str, Contract | Problem],
) -> None:
    problem = Problem(error.reason, f"combined commodity: {error.message}")
    commodities[_name_of(record, "code", path)] = problem
    listed = record.get("contracts") if isinstance(record, Mapping) else None
    for contract in listed if isinstance(listed, list) else []:
        contracts[_name_of(contract, "symbol", "")] = problem


def _read_commodity(record: Any, path: str) -> Commodity:
    code = text_at(record, "code", path)
    price_range = _optional_fraction(record, "price_scan_range", path, least=Fraction(0))
    price_rate = _optional_fraction(record, "price_scan_rate", path, least=Fraction(0))
    if price_range is not None and price_rate is not None:
        message = "price_scan_range and price_scan_rate exclude each other"
        raise FieldError(joined(path, "price_scan_rate"), FailureReason.INCONSISTENT, message)
    vol_range = _optional_fraction(record, "vol_scan_range", path, least=Fraction(0))
    if vol_range is not None and vol_range > 1:
        raise FieldError(joined(path, "vol_scan_range"), FailureReason.OUT_OF_RANGE, f"{vol_range} exceeds the vol")
    count = record.get("short_option_count", "sum")
    if count not in ("sum", "larger"):
        message = f"{str(count)[:40]!r} is neither sum nor larger"
        raise FieldError(joined(path, "short_option_count"), FailureReason.MALFORMED, message)
    index = optional_decimal_at(record, "index_price", path)
    if index is not None and index <= 0:
        raise FieldError(joined(path, "index_price"), FailureReason.OUT_OF_RANGE, f"{index} must be positive")
    minimum = _optional_fraction(record, "short_option_minimum", path, least=Fraction(0))
    ratio = _optional_fraction(record, "initial_ratio", path, least=Fraction(1))
    calendar, in_calendar = record.get("calendar"), joined(path, "calendar")
    tiers: tuple[Tier, ...] = ()
    spreads: tuple[CalendarSpread, ...] = ()
    if calendar is not None:
        tiers = _listed(calendar, "tiers", in_calendar, _read_tier)
        spreads = _listed(calendar, "spreads", in_calendar, _read_calendar_spread)
        known = {tier.tier for tier in tiers}
        if len(known) < len(tiers):
            raise FieldError(joined(in_calendar, "tiers"), FailureReason.DUPLICATE, "a tier number stands twice")
        lost = sorted({leg.tier for spread in spreads for leg in spread.legs} - known)
        if lost:
            message = f"spreads name the tiers {lost}, which are not listed"
            raise FieldError(joined(in_calendar, "spreads"), FailureReason.MISSING_PARAMETER, message)
    delivery = _listed(record, "delivery", path, _read_delivery) if record.get("delivery") is not None else ()
    if len({month.month for month in delivery}) < len(delivery):
        raise FieldError(joined(path, "delivery"), FailureReason.DUPLICATE, "a delivery month stands twice")
    return Commodity(
        code=code,
        underlying=text_at(record, "underlying", path),
        currency=text_at(record, "currency", path),
        price_scan_range=price_range,
        price_scan_rate=price_rate,
        vol_scan_range=vol_range,
        short_option_minimum=minimum or Fraction(0),
        short_option_count=str(count),
        initial_ratio=Fraction(1) if ratio is None else ratio,
        index_price=index,
        tiers=tiers,
        calendar=spreads,
        delivery=delivery,
    )


def _listed(record: Any, key: str, path: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    entries = members(record, key, path)
    return tuple(read(entry, joined(joined(path, key), i)) for i, entry in enumerate(entries))


def _read_tier(record: Any, path: str) -> Tier:
    first, last = month_at(record, "first", path), month_at(record, "last", path)
    if first > last:
        raise FieldError(path, FailureReason.INCONSISTENT, f"first month {first} after the last, {last}")
    return Tier(integer_at(record, "tier", path), first, last)


def _read_calendar_spread(record: Any, path: str) -> CalendarSpread:
    charge = Fraction(non_negative_at(record, "charge", path))
    legs = _listed(record, "legs", path, _calendar_leg)
    if not legs:
        raise FieldError(joined(path, "legs"), FailureReason.MALFORMED, "a spread without legs")
    if len({(leg.tier, leg.side) for leg in legs}) < len(legs):
        raise FieldError(joined(path, "legs"), FailureReason.DUPLICATE, "two legs of one tier on one side")
    return CalendarSpread(integer_at(record, "priority", path), charge, legs)


def _calendar_leg(record: Any, path: str) -> CalendarLeg:
    delta = Fraction(positive_at(record, "delta", path))
    return CalendarLeg(integer_at(record, "tier", path), _side_at(record, path), delta)


def _read_delivery(record: Any, path: str) -> DeliveryMonth:
    return DeliveryMonth(
        month_at(record, "month", path),
        Fraction(non_negative_at(record, "spread_charge", path)),
        Fraction(non_negative_at(record, "outright_charge", path)),
    )


def _read_spreads(
    body: Mapping[str, Any], commodities: dict[str, Commodity | Problem], note: Note
) -> tuple[InterSpread, ...]:
    """Spreads between commodities; without one that cannot be read its commodities would get another credit."""
    if body.get("inter_commodity_spreads") is None:
        return ()
    found = []
    for number, record in enumerate(members(body, "inter_commodity_spreads")):
        path = joined("inter_commodity_spreads", number)
        try:
            found.append(_read_inter_spread(record, path))
        except FieldError as error:
            legs = record.get("legs") if isinstance(record, Mapping) else None
            named = {_name_of(leg, "commodity", "") for leg in legs} if isinstance(legs, list) else set()
            for code in commodities if not named or "" in named else named:
                commodities[code] = Problem(error.reason, f"inter-commodity spread: {error.message}")
            note(error, path)
    return tuple(found)


def _read_inter_spread(record: Any, path: str) -> InterSpread:
    spread = InterSpread(integer_at(record, "priority", path), _listed(record, "legs", path, _inter_leg))
    if len(spread.legs) < 2 or len({leg.commodity for leg in spread.legs}) < len(spread.legs):
        message = "a spread needs two or more legs, each of another commodity"
        raise FieldError(joined(path, "legs"), FailureReason.MALFORMED, message)
    return spread


def _inter_leg(record: Any, path: str) -> InterLeg:
    rate = Fraction(non_negative_at(record, "credit_rate", path))
    if rate > 1:
        raise FieldError(joined(path, "credit_rate"), FailureReason.OUT_OF_RANGE, f"{rate} is more than the whole risk")
    delta = Fraction(positive_at(record, "delta", path))
    return InterLeg(text_at(record, "commodity", path), _side_at(record, path), delta, rate)


def _side_at(record: Any, path: str) -> str:
    side = member(record, "side", path)
    if side not in ("A", "B"):
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"{str(side)[:40]!r} is neither A nor B")
    return str(side)


def _read_contracts(
    record: Any,
    path: str,
    commodity: str,
    as_of: datetime,
    contracts: dict[str, Contract | Problem],
    note: Note,
) -> None:
    try:
        listed = members(record, "contracts", path)
    except FieldError as error:
        note(error, commodity)
        return
    for number, entry in enumerate(listed):
        where = joined(joined(path, "contracts"), number)
        symbol = _name_of(entry, "symbol", where)
        try:
            found = _read_contract(entry, where, commodity, as_of)
            if symbol in contracts:
                raise FieldError(where, FailureReason.DUPLICATE, f"contract {symbol} stands twice; all rejected")
            contracts[symbol] = found
        except FieldError as error:
            contracts[symbol] = Problem(error.reason, error.message)
            note(error, symbol)


def _read_contract(record: Any, path: str, commodity: str, as_of: datetime) -> Contract:
    symbol, kind = text_at(record, "symbol", path), member(record, "kind", path)
    if kind not in ("future", "option"):
        message = f"{str(kind)[:40]!r} is neither future nor option"
        raise FieldError(joined(path, "kind"), FailureReason.UNSUPPORTED, message)
    expiry = time_of(member(record, "expiry", path), joined(path, "expiry"))
    if expiry <= as_of:
        raise FieldError(joined(path, "expiry"), FailureReason.OUT_OF_RANGE, f"{symbol} expired before {as_of}")
    if (premium := record.get("premium", "upfront")) != "upfront":
        message = f"premium {str(premium)[:40]!r}: only options whose premium is paid up front are supported"
        raise FieldError(joined(path, "premium"), FailureReason.UNSUPPORTED, message)
    month = month_at(record, "month", path) if record.get("month") is not None else f"{expiry:%Y-%m}"
    is_option = kind == "option"
    price = non_negative_at(record, "price", path) if is_option else positive_at(record, "price", path)
    option_type = member(record, "option_type", path) if is_option else None
    if option_type not in ("call", "put", None):
        message = f"{str(option_type)[:40]!r} is neither call nor put"
        raise FieldError(joined(path, "option_type"), FailureReason.MALFORMED, message)
    array = record.get("risk_array")
    delta = optional_decimal_at(record, "composite_delta", path)
    if delta is not None and abs(delta) > 1:
        raise FieldError(joined(path, "composite_delta"), FailureReason.OUT_OF_RANGE, f"|{delta}| is above 1")
    scale = _optional_fraction(record, "delta_scale", path, least=Fraction(0))
    return Contract(
        symbol=symbol,
        commodity=commodity,
        kind=str(kind),
        expiry=expiry,
        month=month,
        multiplier=positive_at(record, "multiplier", path),
        price=price,
        delta_scale=Fraction(1) if scale is None else scale,
        strike=positive_at(record, "strike", path) if is_option else None,
        option_type=option_type,
        implied_vol=positive_at(record, "implied_vol", path) if is_option else None,
        future_price=positive_at(record, "future_price", path) if is_option else price,
        composite_delta=None if delta is None else Fraction(delta),
        risk_array=None if array is None else _risk_array(array, joined(path, "risk_array")),
        price_scan_range=_optional_fraction(record, "price_scan_range", path, least=Fraction(0)),
        vol_scan_range=_optional_fraction(record, "vol_scan_range", path, least=Fraction(0)),
    )


def _risk_array(value: Any, path: str) -> tuple[Fraction, ...]:
    if not isinstance(value, list) or len(value) != SCENARIO_COUNT:
        found = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
        raise FieldError(path, FailureReason.MALFORMED, f"expected {SCENARIO_COUNT} losses, found {found}")
    return tuple(Fraction(decimal_of(entry, joined(path, i))) for i, entry in enumerate(value))


# ---- positions and account -------------------------------------------------------------------------------------------


def read_lines(body: Any, note: Note) -> list[Line]:
    """Positions of one account; those of quantity 0 are passed over, a symbol that stands twice is noted and left."""
    found: dict[str, list[Line]] = {}
    for number, record in enumerate(members(body, "positions")):
        path = joined("positions", number)
        try:
            price = record.get("settlement_price") if isinstance(record, Mapping) else None
            line = Line(
                text_at(record, "symbol", path),
                decimal_at(record, "quantity", path),
                None if price is None else positive_at(record, "settlement_price", path),
                path,
            )
            found.setdefault(line.symbol, []).append(line)
        except FieldError as error:
            note(error, _name_of(record, "symbol", path))
    for symbol, copies in found.items():
        if len(copies) > 1:
            message = f"{symbol} stands {len(copies)} times; all rejected"
            note(FieldError(copies[-1].path, FailureReason.DUPLICATE, message), symbol)
    return [copies[0] for copies in found.values() if len(copies) == 1 and copies[0].quantity]


def read_account(body: Any) -> Account:
    """Cash and collateral of one account."""
    collateral = _listed(body, "collateral", "", _read_collateral) if body.get("collateral") is not None else ()
    if len({entry.symbol for entry in collateral}) < len(collateral):
        raise FieldError("collateral", FailureReason.DUPLICATE, "an asset stands twice; all rejected")
    reported = body.get("reported")
    if reported is not None and not isinstance(reported, Mapping):
        raise FieldError("reported", FailureReason.MALFORMED, f"expected an object, found {type(reported).__name__}")
    names = ("equity", "initial_requirement", "maintenance_requirement")
    return Account(
        text_at(body, "currency"),
        decimal_at(body, "cash"),
        collateral,
        {name: optional_decimal_at(reported or {}, name, "reported") for name in names},
    )


def _read_collateral(record: Any, path: str) -> Collateral:
    haircut = non_negative_at(record, "haircut", path)
    if haircut > 1:
        raise FieldError(joined(path, "haircut"), FailureReason.OUT_OF_RANGE, f"{haircut} is above 1")
    price = None if record.get("price") is None else positive_at(record, "price", path)
    return Collateral(text_at(record, "asset", path), non_negative_at(record, "quantity", path), price, haircut)


# ---- fields ----------------------------------------------------------------------------------------------------------


def text_at(record: Any, key: str, path: str = "") -> str:
    """The required non-empty text under `key`."""
    value = member(record, key, path)
    if not isinstance(value, str) or not value.strip():
        raise FieldError(joined(path, key), FailureReason.MALFORMED, f"{key!r} must be a text")
    return value.strip()


def month_at(record: Any, key: str, path: str) -> str:
    """A contract month as YYYY-MM; raises malformed for another text."""
    value = text_at(record, key, path)
    year, _, month = value.partition("-")
    digits = year + month
    if len(year) == 4 and len(month) == 2 and digits.isascii() and digits.isdigit() and 1 <= int(month) <= 12:
        return value
    raise FieldError(joined(path, key), FailureReason.MALFORMED, f"{value[:40]!r} is no month YYYY-MM")


def _optional_fraction(record: Mapping[str, Any], key: str, path: str, *, least: Fraction) -> Fraction | None:
    value = optional_decimal_at(record, key, path)
    if value is None:
        return None
    if value < least:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} is below {least}")
    return Fraction(value)


def tier_of(month: str, tiers: Sequence[Tier]) -> int | None:
    """The tier of a contract month; None outside all of them."""
    return next((tier.tier for tier in tiers if tier.first <= month <= tier.last), None)
