"""Bodies of Deribit's answers as typed lines: exact decimals, paths of every field, no account logic.

An answer is JSON-RPC with its content under `result`, a subscription message with it under `params.data`, or the
content alone. Every reader raises `FieldError` with the path inside that content. Sizes: USD for inverse futures and
perpetuals, coins for everything else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import (
    FieldError,
    decimal_at,
    joined,
    member,
    non_negative_at,
    optional_decimal_at,
    optional_time_at,
    positive_at,
    time_of,
)
from ..fields import mapping_at, optional_mapping_at, text_at
from ..symbols import EXPIRY_HOUR_UTC

_NAME = re.compile(
    r"(?P<base>[A-Z0-9]+)(?:_(?P<quote>[A-Z0-9]+))?"
    r"(?:-(?P<term>PERPETUAL|\d{1,2}[A-Z]{3}\d{2})(?:-(?P<strike>\d+(?:d\d+)?)-(?P<side>[CP]))?)?"
)
_MONTHS = {
    name: number
    for number, name in enumerate(
        ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"), start=1
    )
}
_PERCENT = Decimal(100)

Kind = Literal["perp", "future", "option", "spot"]


class Instrument(NamedTuple):
    """An instrument by its name; `quote` is USD for inverse contracts."""

    name: str
    base: str
    quote: str
    kind: Kind
    expiry: datetime | None
    strike: Decimal | None
    option_type: Literal["call", "put"] | None

    @property
    def inverse(self) -> bool:
        """Whether it settles in its base coin."""
        return self.quote == "USD"

    @property
    def settlement(self) -> str:
        """Currency of profit and loss."""
        return self.base if self.inverse else self.quote

    @property
    def price_index(self) -> str:
        """Name of its index: `btc_usd`, `sol_usdc`."""
        return f"{self.base}_{self.quote}".lower()


class Model(NamedTuple):
    """Margin model of a currency: X or S, PM or SM."""

    cross: bool
    portfolio: bool


class SummaryLine(NamedTuple):
    """One currency of an account summary, in that currency; `total_*` in USD and the same in every currency's row.

    `options_value` and `futures_unrealized` (the session's) are None where the answer is of a version without them,
    which matters to a currency that holds options or futures.
    """

    currency: str
    path: str
    model: Model
    equity: Decimal
    margin_balance: Decimal | None
    options_value: Decimal | None
    futures_unrealized: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    total_equity: Decimal | None
    total_margin_balance: Decimal | None
    total_initial: Decimal | None
    total_maintenance: Decimal | None
    holds_positions: bool

    @property
    def empty(self) -> bool:
        """Nothing in it and nothing required of it."""
        return not (self.equity or self.holds_positions or self.initial or self.maintenance)

    @property
    def cash(self) -> Decimal:
        """Equity without the value of options and the unrealized profit of futures; what is not stated counts 0."""
        return self.equity - (self.options_value or 0) - (self.futures_unrealized or 0)


class PositionLine(NamedTuple):
    """One position. `floating` is the unrealized profit of the session, which is what stands outside of the balance
    (None for an option); `order_margin` None where the answer does not state it.
    """

    path: str
    instrument: Instrument
    size: Decimal
    average_price: Decimal
    mark_price: Decimal
    index_price: Decimal | None
    floating: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    order_margin: Decimal | None
    leverage: Decimal | None
    liquidation_price: Decimal | None


class IdleLine(NamedTuple):
    """Margin of the orders in an instrument that no position is held in, in its settlement currency."""

    path: str
    instrument: Instrument
    order_margin: Decimal


class OrderLine(NamedTuple):
    """One resting order; `limit_price` None for a market-type order."""

    path: str
    order_id: str
    instrument: Instrument
    side: Literal["buy", "sell"]
    remaining: Decimal
    limit_price: Decimal | None
    reduce_only: bool


class TickerLine(NamedTuple):
    """Prices of one instrument: a ticker, an order book or a book summary. Vols and rates as fractions."""

    instrument: Instrument
    mark_price: Decimal | None
    index_price: Decimal | None
    bid: Decimal | None
    ask: Decimal | None
    bid_amount: Decimal | None
    ask_amount: Decimal | None
    funding_8h: Decimal | None
    open_interest: Decimal | None
    implied_vol: Decimal | None
    underlying_price: Decimal | None
    interest_rate: Decimal | None
    time: datetime | None


def content_of(body: Any) -> Any:
    """The answer itself; raises `FieldError(malformed)` for an error answer."""
    if not isinstance(body, Mapping):
        return body
    if body.get("error") is not None:
        raise FieldError("error", FailureReason.MALFORMED, "the venue answered with an error")
    if "result" in body:
        return body["result"]
    if isinstance(body.get("params"), Mapping) and "data" in body["params"]:
        return body["params"]["data"]
    return body


def answered_at(body: Any) -> datetime | None:
    """The server's time of the answer (`usOut`), None where the wrapper is not there."""
    return optional_time_at(body, "usOut") if isinstance(body, Mapping) else None


def instrument_of(name: str, path: str = "") -> Instrument:
    """`BTC-PERPETUAL`, `BTC-5JUL24`, `ETH-27DEC24-4000-C`, `XRP_USDC-27DEC24-0d55-P`, `BTC_USDC` in parts.

    Raises `FieldError(unknown_market)` for any other shape and a date that is none.
    """
    instrument = _parsed(name)
    if instrument is None:
        raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{name[:60]!r} is no instrument name")
    return instrument


@functools.lru_cache(maxsize=65_536)
def _parsed(name: str) -> Instrument | None:
    """A name stands in many rows of many answers; None for one that is no instrument's."""
    match = _NAME.fullmatch(name)
    if match is None or (match["term"] is None and match["quote"] is None):
        return None
    term, strike = match["term"], match["strike"]
    kind: Kind = "option" if strike else "spot" if term is None else "perp" if term == "PERPETUAL" else "future"
    expiry = None if term in (None, "PERPETUAL") else _expiry(term)
    if (kind == "option" and term == "PERPETUAL") or (kind in ("future", "option") and expiry is None):
        return None
    return Instrument(
        name=name,
        base=match["base"],
        quote=match["quote"] or "USD",
        kind=kind,
        expiry=expiry,
        strike=Decimal(strike.replace("d", ".")) if strike else None,
        option_type=None if strike is None else "call" if match["side"] == "C" else "put",
    )


def _expiry(term: str) -> datetime | None:
    try:
        return datetime(2000 + int(term[-2:]), _MONTHS[term[-5:-2]], int(term[:-5]), EXPIRY_HOUR_UTC, tzinfo=UTC)
    except (KeyError, ValueError):
        return None


def _flag(record: Any, key: str, path: str) -> bool | None:
    value = record.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise FieldError(joined(path, key), FailureReason.MALFORMED, f"{str(value)[:40]!r} is neither true nor false")


_MODELS = {
    "segregated_sm": Model(cross=False, portfolio=False),
    "segregated_pm": Model(cross=False, portfolio=True),
    "cross_sm": Model(cross=True, portfolio=False),
    "cross_pm": Model(cross=True, portfolio=True),
}
_POSITION_FIGURES = (
    "delta_total",
    "options_delta",
    "options_value",
    "options_vega",
    "futures_session_upl",
    "options_session_upl",
    "session_upl",
    "futures_pl",
    "options_pl",
)


def model_of(record: Any, path: str = "") -> Model:
    """Margin model of a summary: `margin_model`, or the two flags of answers that are older than it.

    Raises missing_field without either, inconsistent where they contradict each other, malformed for an unknown word.
    """
    word = record.get("margin_model")
    cross, portfolio = (
        _flag(record, "cross_collateral_enabled", path),
        _flag(record, "portfolio_margining_enabled", path),
    )
    if word is None:
        if portfolio is None:
            raise FieldError(joined(path, "margin_model"), FailureReason.MISSING_FIELD, "no margin model")
        return Model(bool(cross), portfolio)
    if not isinstance(word, str) or word not in _MODELS:
        raise FieldError(
            joined(path, "margin_model"), FailureReason.MALFORMED, f"{str(word)[:40]!r} is no margin model"
        )
    model = _MODELS[word]
    if cross not in (None, model.cross) or portfolio not in (None, model.portfolio):
        raise FieldError(
            joined(path, "margin_model"),
            FailureReason.INCONSISTENT,
            f"{word} with cross_collateral_enabled {cross} and portfolio_margining_enabled {portfolio}",
        )
    return model


def summary_line(record: Any, path: str = "") -> SummaryLine:
    """One currency's summary. Raises out_of_range for a negative margin."""
    currency = text_at(record, "currency", path)
    equity = decimal_at(record, "equity", path)
    figures = {
        key: optional_decimal_at(record, key, path)
        for key in (
            "initial_margin",
            "maintenance_margin",
            "total_initial_margin_usd",
            "total_maintenance_margin_usd",
        )
    }
    for key, value in figures.items():
        if value is not None and value < 0:
            raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} must not be negative")
    held = [optional_decimal_at(record, key, path) for key in _POSITION_FIGURES]
    unrealized = optional_decimal_at(record, "futures_session_upl", path)
    if unrealized is None:
        session, of_options = (optional_decimal_at(record, key, path) for key in ("session_upl", "options_session_upl"))
        if session is not None:
            unrealized = session - (of_options or Decimal(0))
    return SummaryLine(
        currency=currency,
        path=path,
        model=model_of(record, path),
        equity=equity,
        margin_balance=optional_decimal_at(record, "margin_balance", path),
        options_value=optional_decimal_at(record, "options_value", path),
        futures_unrealized=unrealized,
        initial=figures["initial_margin"],
        maintenance=figures["maintenance_margin"],
        total_equity=optional_decimal_at(record, "total_equity_usd", path),
        total_margin_balance=optional_decimal_at(record, "total_margin_balance_usd", path),
        total_initial=figures["total_initial_margin_usd"],
        total_maintenance=figures["total_maintenance_margin_usd"],
        holds_positions=any(held),
    )


def position_line(record: Any, path: str = "") -> PositionLine:
    """One position of `get_positions` or `get_position`; its size must not be zero (see `no_position`).

    Raises inconsistent where the direction contradicts the sign of the size.
    """
    instrument = instrument_of(text_at(record, "instrument_name", path), joined(path, "instrument_name"))
    if instrument.kind == "spot":
        raise FieldError(
            joined(path, "instrument_name"), FailureReason.UNSUPPORTED, f"a position in the spot pair {instrument.name}"
        )
    size = decimal_at(record, "size", path)
    direction = record.get("direction")
    if direction not in (None, "buy" if size > 0 else "sell" if size < 0 else ""):
        message = f"direction {str(direction)[:20]!r} with size {size}"
        raise FieldError(joined(path, "direction"), FailureReason.INCONSISTENT, message)
    price = non_negative_at if instrument.kind == "option" else positive_at
    leverage = optional_decimal_at(record, "leverage", path)
    order_margin = _order_margin(record, path)
    return PositionLine(
        path=path,
        instrument=instrument,
        size=size,
        average_price=price(record, "average_price", path),
        mark_price=price(record, "mark_price", path),
        index_price=_price(record, "index_price", path),
        floating=None if instrument.kind == "option" else decimal_at(record, "floating_profit_loss", path),
        initial=optional_decimal_at(record, "initial_margin", path),
        maintenance=optional_decimal_at(record, "maintenance_margin", path),
        order_margin=order_margin,
        leverage=leverage or None,
        liquidation_price=optional_decimal_at(record, "estimated_liquidation_price", path) or None,
    )


def no_position(record: Any) -> bool:
    """Whether a row says that nothing is held."""
    if not isinstance(record, Mapping) or isinstance(record.get("size"), bool):
        return False
    return record.get("direction") in (None, "zero") and record.get("size") in (0, "0")


def _order_margin(record: Any, path: str) -> Decimal | None:
    margin = optional_decimal_at(record, "open_orders_margin", path)
    if margin is not None and margin < 0:
        raise FieldError(
            joined(path, "open_orders_margin"), FailureReason.OUT_OF_RANGE, f"{margin} must not be negative"
        )
    return margin


def idle_line(record: Any, path: str = "") -> IdleLine | None:
    """What a row without a position says of the orders in its instrument; None where it says nothing."""
    margin = _order_margin(record, path)
    if margin is None:
        return None
    instrument = instrument_of(text_at(record, "instrument_name", path), joined(path, "instrument_name"))
    return IdleLine(path, instrument, margin)


def order_line(record: Any, path: str = "") -> OrderLine:
    """One order of `get_open_orders` and its variants."""
    instrument = instrument_of(text_at(record, "instrument_name", path), joined(path, "instrument_name"))
    side = text_at(record, "direction", path)
    if side not in ("buy", "sell"):
        raise FieldError(joined(path, "direction"), FailureReason.MALFORMED, f"{side[:20]!r} is neither buy nor sell")
    filled = non_negative_at(record, "filled_amount", path)
    remaining = non_negative_at(record, "amount", path) - filled
    if remaining < 0:
        raise FieldError(joined(path, "filled_amount"), FailureReason.INCONSISTENT, f"filled {filled} of the amount")
    limit = record.get("price")
    return OrderLine(
        path=path,
        order_id=str(member(record, "order_id", path)),
        instrument=instrument,
        side="buy" if side == "buy" else "sell",
        remaining=remaining,
        # market-type orders carry the text "market_price"
        limit_price=None if limit in (None, "market_price") else positive_at(record, "price", path),
        reduce_only=bool(_flag(record, "reduce_only", path)),
    )


def _price(record: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    """A price > 0, None where it is absent, null or 0 (an empty side of a book)."""
    value = optional_decimal_at(record, key, path)
    if value is not None and value < 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} must be positive")
    return value or None


_EVERY_TICKER = ("mark_price", "index_price", "best_bid_price", "best_ask_price")
_EVERY_OPTION = ("mark_iv", "underlying_price")


def ticker_line(record: Any, path: str = "") -> TickerLine:
    """A record of ticker or get_order_book, or a ticker message; raises missing_field where a price has no field (an
    empty side of a book is a null).
    """
    line = price_line(record, path)
    for key in _EVERY_TICKER + (_EVERY_OPTION if line.instrument.kind == "option" else ()):
        if key not in record:
            raise FieldError(joined(path, key), FailureReason.MISSING_FIELD, f"field {key!r} is missing")
    return line


def summary_price_line(record: Any, path: str = "") -> TickerLine:
    """A record of get_book_summary_by_*; raises missing_field where it has no mark price field."""
    line = price_line(record, path)
    if "mark_price" not in record:
        raise FieldError(joined(path, "mark_price"), FailureReason.MISSING_FIELD, "field 'mark_price' is missing")
    return line


def price_line(record: Any, path: str = "") -> TickerLine:
    """Whatever prices a record states of its instrument. Vols come in percent."""
    instrument = instrument_of(text_at(record, "instrument_name", path), joined(path, "instrument_name"))
    vol = _price(record, "mark_iv", path)
    is_option = instrument.kind == "option"
    return TickerLine(
        instrument=instrument,
        mark_price=_price(record, "mark_price", path),
        index_price=_price(record, "index_price", path),
        bid=_price(record, "best_bid_price", path) or _price(record, "bid_price", path),
        ask=_price(record, "best_ask_price", path) or _price(record, "ask_price", path),
        bid_amount=optional_decimal_at(record, "best_bid_amount", path),
        ask_amount=optional_decimal_at(record, "best_ask_amount", path),
        funding_8h=optional_decimal_at(record, "funding_8h", path),
        open_interest=optional_decimal_at(record, "open_interest", path),
        implied_vol=None if vol is None or not is_option else vol / _PERCENT,
        underlying_price=_price(record, "underlying_price", path) if is_option else None,
        interest_rate=optional_decimal_at(record, "interest_rate", path) if is_option else None,
        time=optional_time_at(record, "timestamp", path) or optional_time_at(record, "creation_timestamp", path),
    )


def check_instrument(record: Any, path: str = "") -> Instrument:
    """The instrument of a record of get_instrument(s), whose fields must say what its name says; it knows the hour of
    the expiry, of which the name has the day.

    Raises inconsistent where base, settlement currency, strike, side, day of expiry or instrument type contradict the
    name, unsupported for combinations.
    """
    kind = str(record.get("kind", "")) if isinstance(record, Mapping) else ""
    if kind.endswith("combo"):
        raise FieldError(
            joined(path, "kind"), FailureReason.UNSUPPORTED, f"{kind} {str(record.get('instrument_name'))[:60]}"
        )
    instrument = instrument_of(text_at(record, "instrument_name", path), joined(path, "instrument_name"))
    stated: dict[str, Any] = {
        "base_currency": instrument.base,
        "settlement_currency": None if instrument.kind == "spot" else instrument.settlement,
        "option_type": instrument.option_type,
        "instrument_type": "reversed" if instrument.inverse else "linear",
    }
    for key, expected in stated.items():
        value = record.get(key)
        if value is not None and expected is not None and value != expected:
            message = f"{key} {str(value)[:20]!r} of {instrument.name}, not {expected!r}"
            raise FieldError(joined(path, key), FailureReason.INCONSISTENT, message)
    strike = optional_decimal_at(record, "strike", path)
    if instrument.strike is not None and strike not in (None, instrument.strike):
        raise FieldError(joined(path, "strike"), FailureReason.INCONSISTENT, f"strike {strike} of {instrument.name}")
    if instrument.expiry is not None and record.get("expiration_timestamp") is not None:
        moment = time_of(record["expiration_timestamp"], joined(path, "expiration_timestamp"))
        if moment.date() != instrument.expiry.date():
            message = f"expiry {moment:%Y-%m-%dT%H:%M:%SZ} of {instrument.name}"
            raise FieldError(joined(path, "expiration_timestamp"), FailureReason.INCONSISTENT, message)
        return instrument._replace(expiry=moment)
    return instrument


class IndexLine(NamedTuple):
    """Price of an index by its name (`btc_usd`)."""

    name: str
    price: Decimal
    time: datetime | None


def index_line(content: Any, name: str) -> IndexLine:
    """An answer of get_index_price (which does not name its index) or a price-index message (which does)."""
    name = str(content.get("index_name") or name) if isinstance(content, Mapping) else name
    if not name:
        raise FieldError(
            "index_name",
            FailureReason.MISSING_FIELD,
            "an index price does not say of what: give the request as 'public/get_index_price:btc_usd' or the like",
        )
    key = "price" if isinstance(content, Mapping) and "index_price" not in content else "index_price"
    return IndexLine(name.lower(), positive_at(content, key), optional_time_at(content, "timestamp"))


class OtherMargin(NamedTuple):
    """What a simulation states beside the risk matrix, in the unit of its currency; `positions` in base coins."""

    key: str
    spot: Decimal
    market_maker_protection: Decimal
    open_orders: Decimal
    correlation: Decimal
    positions: Mapping[str, Decimal]


def other_margins(content: Any) -> list[OtherMargin]:
    """The margins of a private/pme/simulate answer by its currency keys."""
    margins = mapping_at(content, "margins")
    held = optional_mapping_at(optional_mapping_at(content, "portfolio"), "position", "portfolio")
    positions = {str(name): decimal_at(held, name, "portfolio.position") for name in held}
    out = []
    for key in margins:
        path = joined(joined("margins", key), "initial_margin_details")
        details = mapping_at(mapping_at(margins, key, "margins"), "initial_margin_details", joined("margins", key))
        matrix = optional_mapping_at(details, "risk_matrix_margin_details", path)
        contingency = optional_decimal_at(matrix, "correlation_contingency", joined(path, "risk_matrix_margin_details"))
        out.append(
            OtherMargin(
                str(key),
                non_negative_at(details, "spot_margin", path),
                non_negative_at(details, "mmp_margin", path),
                non_negative_at(details, "open_orders_margin", path),
                contingency or Decimal(0),
                positions,
            )
        )
    return out
