"""Market-wide payloads of Paradex: market specifications, summaries, book tops, margin and system configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import (
    FieldError,
    joined,
    member,
    non_negative_at,
    optional_decimal_at,
    optional_time_at,
    positive_at,
)
from ..market_rows import add_mark, add_market_state
from ..symbols import EXPIRY_HOUR_UTC, instrument_id
from ..transport import Payload
from .markets import FUNDING_HOURS, USDC, VENUE, OptionLevel, Problem, Reading, Spec, Summary
from .rules import PortfolioParameters, portfolio_parameters

_MONTHS = {
    name: number
    for number, name in enumerate(
        ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"), start=1
    )
}
_DATE = re.compile(r"(\d{1,2})([A-Z]{3})(\d{2})")
_KINDS = {"PERP": "perp", "FUTURE": "future", "OPTION": "option", "SPOT": "spot"}
_FEE_PROFILES = ("interactive_fee", "api_fee", "rpi_fee")
_LEAST_PRICE = Decimal("1e-18")  # the last digit of the tables: what is below is no price
_LARGEST_RATE = 10  # of interest per year; beyond it is another unit


def results_of(payload: Payload, key: str = "") -> list[tuple[str, Any]]:
    """(path, record) of a list answer: `{"results": [...]}`, a bare list, or one bare record, which has `key` (any key
    where none is named).

    Raises `FieldError`: malformed for an error answer or another shape, missing_field for a list that goes on.
    """
    body = payload.body
    if isinstance(body, Mapping) and "results" not in body and body.get("error") is not None:
        raise FieldError("error", FailureReason.MALFORMED, "the venue answered with an error")
    if isinstance(body, Mapping) and body.get("next"):
        raise FieldError("next", FailureReason.MISSING_FIELD, "the list goes on behind `next`, which is not here")
    path, found = "", body
    if isinstance(body, Mapping) and ("results" in body or (key not in body and (key or not body))):
        path, found = "results", member(body, "results")
    if isinstance(found, Mapping) and (key in found or not key):
        return [(path, found)]
    if not isinstance(found, list):
        raise FieldError(path, FailureReason.MALFORMED, f"expected a list, found {type(found).__name__}")
    return [(joined(path, i), record) for i, record in enumerate(found)]


def read_markets(reading: Reading, payload: Payload) -> None:
    """Markets of a `/v1/markets` payload, or of specifications and marks joined by symbol (`market_specs`,
    `market_data`).
    """
    body = payload.body
    if isinstance(body, Mapping) and isinstance(body.get("market_specs"), Mapping):
        specs = [(joined("market_specs", s), {"symbol": s, **_object(v)}) for s, v in body["market_specs"].items()]
        data = body.get("market_data")
        marks = [
            (joined("market_data", s), {"symbol": s, **_object(v)})
            for s, v in (data.items() if isinstance(data, Mapping) else ())
        ]
        _read_records(reading, payload, "specs", specs)
        _read_records(reading, payload, "summaries", marks)
        return
    with reading.rows.guard(payload.name, subject=payload.request):
        _read_records(reading, payload, "specs", results_of(payload, "symbol"))


def read_summaries(reading: Reading, payload: Payload) -> None:
    """Market summaries of a `/v1/markets/summary` payload."""
    with reading.rows.guard(payload.name, subject=payload.request):
        _read_records(reading, payload, "summaries", results_of(payload, "symbol"))


def read_configurations(reading: Reading, payload: Payload) -> None:
    """Portfolio-margin configurations of a `/v1/system/margin-config` payload or of its older path.

    A base asset without scenarios has none: the newer path also lists assets for their other parameters.
    """
    with reading.rows.guard(payload.name, subject=payload.request):
        _read_records(reading, payload, "configurations", results_of(payload, "base_asset"))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read_records(reading: Reading, payload: Payload, table: str, records: list[tuple[str, Any]]) -> None:
    read = {"specs": _spec, "summaries": _summary, "configurations": _configuration}[table]
    key = "base_asset" if table == "configurations" else "symbol"
    names = [record.get(key) if isinstance(record, Mapping) else None for _, record in records]
    counts: dict[Any, int] = {}
    for name in names:
        if isinstance(name, str):
            counts[name] = counts.get(name, 0) + 1
    for (path, record), name in zip(records, names, strict=True):
        try:
            if not isinstance(name, str) or not name:
                member(record, key, path)
                raise FieldError(joined(path, key), FailureReason.MALFORMED, "expected a name")
            if counts[name] > 1:
                message = f"{name} is listed {counts[name]} times, all copies are rejected"
                raise FieldError(path, FailureReason.DUPLICATE, message)
            value = read(record, name, path)
            if value is not None:
                reading.put(table, name, value, payload)
        except FieldError as error:
            if isinstance(name, str):
                reading.problems[table, name] = Problem(error.reason, f"{name}: {error.message}", error.path)
            reading.rows.refuse(error, payload=payload.name, subject=str(name or table))


def expiry_of_symbol(digits: str, path: str = "") -> datetime:
    """Expiry of a date such as `8MAY26`, at 08:00 UTC; raises `FieldError(malformed)`."""
    found = _DATE.fullmatch(digits)
    try:
        if found is not None:
            return datetime(2000 + int(found[3]), _MONTHS[found[2]], int(found[1]), EXPIRY_HOUR_UTC, tzinfo=UTC)
    except (KeyError, ValueError):
        pass
    raise FieldError(path, FailureReason.MALFORMED, f"{digits[:20]!r} is no expiry date")


def _spec(record: Mapping[str, Any], symbol: str, path: str) -> Spec:
    parts = symbol.split("-")
    named = member(record, "asset_kind", path)
    kind = _KINDS.get(named) if isinstance(named, str) else None
    if kind is None:
        # A perpetual option has no expiry, which no canonical option can do without.
        raise FieldError(joined(path, "asset_kind"), FailureReason.UNSUPPORTED, f"asset kind {str(named)[:40]!r}")
    base = record.get("base_currency") or parts[0]
    if not isinstance(base, str):
        raise FieldError(joined(path, "base_currency"), FailureReason.MALFORMED, "expected the symbol of an asset")
    for key, expected in (("quote_currency", "USD"), ("settlement_currency", USDC)):
        if kind != "spot" and record.get(key) not in (None, "", expected):
            message = f"{symbol} in {str(record[key])[:20]!r}, known is {expected}"
            raise FieldError(joined(path, key), FailureReason.UNSUPPORTED, message)
    spec = Spec(symbol, base, kind)
    if kind == "spot":
        return spec
    hours = optional_decimal_at(record, "funding_period_hours", path)
    if hours is not None and hours < 0:
        raise FieldError(joined(path, "funding_period_hours"), FailureReason.OUT_OF_RANGE, f"{hours} is negative")
    spec = spec._replace(
        taker_fee=_market_fee(record, path),
        interest_rate=_interest_rate(record, path),
        funding_hours=hours or FUNDING_HOURS,
    )
    if kind == "option":
        return _option_spec(record, spec, parts, path)
    parameters = member(record, "delta1_cross_margin_params", path)
    place = joined(path, "delta1_cross_margin_params")
    expiry = optional_time_at(record, "expiry_at", path)
    if kind == "future" and expiry is None:
        raise FieldError(joined(path, "expiry_at"), FailureReason.MISSING_FIELD, f"no expiry of the future {symbol}")
    return spec._replace(
        expiry=expiry if kind == "future" else None,
        imf=_fraction(parameters, "imf_base", place),
        mmf_factor=_fraction(parameters, "mmf_factor", place),
    )


def _option_spec(record: Mapping[str, Any], spec: Spec, parts: list[str], path: str) -> Spec:
    option_type = str(member(record, "option_type", path)).lower()
    if option_type not in ("call", "put"):
        raise FieldError(joined(path, "option_type"), FailureReason.MALFORMED, f"option type {option_type[:20]!r}")
    if parts[-1] in ("C", "P") and parts[-1].lower() != option_type[0]:
        message = f"{spec.symbol} as a {option_type}"
        raise FieldError(joined(path, "option_type"), FailureReason.INCONSISTENT, message)
    expiry = optional_time_at(record, "expiry_at", path)
    if expiry is None:
        dates = [part for part in parts if _DATE.fullmatch(part)]
        expiry = expiry_of_symbol(dates[0] if dates else "", joined(path, "expiry_at"))
    parameters = member(record, "option_cross_margin_params", path)
    place = joined(path, "option_cross_margin_params")
    return spec._replace(
        expiry=expiry,
        strike=_price(record, "strike_price", path),
        option_type=option_type,
        option=(_level(parameters, "imf", place), _level(parameters, "mmf", place)),
    )


def _level(parameters: Any, name: str, path: str) -> OptionLevel:
    level, place = member(parameters, name, path), joined(path, name)
    return OptionLevel(*(non_negative_at(level, key, place) for key in OptionLevel._fields))


def _fraction(record: Any, key: str, path: str) -> Decimal:
    value = positive_at(record, key, path)
    if value > 1:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} is above 1")
    return value


def _market_fee(record: Mapping[str, Any], path: str) -> Decimal | None:
    """The highest taker fee of a market's `fee_config`; None where it has none."""
    config = record.get("fee_config")
    if not isinstance(config, Mapping):
        return None
    place, fees = joined(path, "fee_config"), list[Decimal]()
    for profile in _FEE_PROFILES:
        taker = _object(_object(config.get(profile)).get("taker_fee"))
        fee = optional_decimal_at(taker, "fee", joined(place, f"{profile}.taker_fee"))
        if fee is not None:
            fees.append(fee)
    return max(Decimal(0), *fees) if fees else None


def _summary(record: Mapping[str, Any], symbol: str, path: str) -> Summary:
    greeks = _object(record.get("greeks"))
    delta = optional_decimal_at(greeks, "delta", joined(path, "greeks"))
    return Summary(
        symbol=symbol,
        mark=(_price if symbol.endswith("-PERP") else non_negative_at)(record, "mark_price", path),
        underlying=_positive(record, "underlying_price", path),
        delta=delta if delta is not None else optional_decimal_at(record, "delta", path),
        vol=_positive(record, "mark_iv", path),
        funding_rate=optional_decimal_at(record, "funding_rate", path),
        interest_rate=_interest_rate(record, path),
        bid=_positive(record, "bid", path),
        ask=_positive(record, "ask", path),
        open_interest=optional_decimal_at(record, "open_interest", path),
        as_of=optional_time_at(record, "created_at", path),
    )


def _price(record: Any, key: str, path: str) -> Decimal:
    value = positive_at(record, key, path)
    if value < _LEAST_PRICE:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} is no price")
    return value


def _positive(record: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    """An optional price or vol; the venue sends "" and 0 for a side of the book or a vol that is not there."""
    value = optional_decimal_at(record, key, path)
    if value and value < _LEAST_PRICE:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} is no price")
    return value or None


def _interest_rate(record: Mapping[str, Any], path: str) -> Decimal | None:
    rate = optional_decimal_at(record, "interest_rate", path)
    if rate is not None and abs(rate) > _LARGEST_RATE:
        raise FieldError(joined(path, "interest_rate"), FailureReason.OUT_OF_RANGE, f"an interest rate of {rate}")
    return rate


def _configuration(record: Mapping[str, Any], base: str, path: str) -> PortfolioParameters | None:
    if not record.get("scenarios"):
        return None
    return portfolio_parameters(record, path=path, source="system/margin-config")


def read_book_top(reading: Reading, payload: Payload) -> None:
    """Best bid and ask of a `/v1/bbo` payload and what stands there, in base coins as market state."""
    rows = reading.rows
    with rows.guard(payload.name, subject=payload.request):
        body = payload.body
        symbol = member(body, "market")
        read = reading.specs.get(symbol) if isinstance(symbol, str) else None
        if read is None:
            raise FieldError(
                "market", FailureReason.UNKNOWN_MARKET, f"{str(symbol)[:60]!r} is in no /v1/markets payload"
            )
        if read.value.kind == "spot" or not reading.catalog.knows(read.value.base):
            return
        identity = instrument_id(VENUE, symbol)
        as_of = optional_time_at(body, "last_updated_at") or payload.received_at
        sides = {name: (_positive(body, name, ""), _positive(body, f"{name}_size", "")) for name in ("bid", "ask")}
        listed = reading.summaries.get(symbol)
        for name, (price, size) in sides.items():
            if price is not None and (listed is None or getattr(listed.value, name) is None):
                add_mark(reading.rows, identity, name, price, as_of=as_of, source=payload.request)
            if price is not None and size is not None:
                add_mark(reading.rows, identity, f"depth_{name}", price * size, as_of=as_of, source=payload.request)


def read_system_config(reading: Reading, payload: Payload) -> None:
    """The liquidation parameters of `/v1/system/config` as market state of the venue."""
    with reading.rows.guard(payload.name, subject=payload.request):
        member(payload.body, "liquidation_fee")
        for name in ("liquidation_fee", "partial_liquidation_buffer", "partial_liquidation_share_increment"):
            value = optional_decimal_at(payload.body, name)
            if value is not None:
                non_negative_at(payload.body, name)
                add_market_state(reading.rows, VENUE, name, value, as_of=payload.received_at, source=payload.request)
