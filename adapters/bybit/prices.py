"""Prices of Bybit's market-wide answers: tickers of every category, order books, settled funding, dollar indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import FieldError, decimal_at, joined, optional_time_at
from ..fields import text_at
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import expiry_subject
from ..transport import Payload
from . import mechanics
from .catalog import BybitCatalog, Found, lines_of
from .parse import Answer, Depth, TickerLine, answer_of, depth_of, market_of, ticker_line
from .rules import decimal_from

Tickers = Mapping[tuple[str, str], Found[TickerLine]]
"""Tickers by (`spot` or nothing, symbol): a spot pair and a perpetual may have one name."""

# Tickers of one expiry state its forward each; they are of one instant and agree.
_FORWARD_TOLERANCE = Decimal("0.001")


def category_of(payload: Payload, answer: Answer) -> str:
    """Category of an answer: its own word, else what stands behind the colon of its request, else nothing."""
    stated = answer.category or payload.request.partition(":")[2].partition(":")[0].strip()
    return stated if stated in ("spot", "linear", "inverse", "option") else ""


def derivatives_of(payloads: Sequence[Payload]) -> list[Payload]:
    """The answers that are not of the spot category, whose pairs have names of perpetuals."""

    def is_spot(payload: Payload) -> bool:
        try:
            return category_of(payload, answer_of(payload.body)) == "spot"
        except FieldError:
            return False  # said when the rows are read

    return [payload for payload in payloads if not is_spot(payload)]


def read_tickers(rows: Rows, payloads: Sequence[Payload]) -> dict[tuple[str, str], Found[TickerLine]]:
    """Readable rows of `market/tickers`."""
    others = derivatives_of(payloads)
    taken = {id(payload) for payload in others}
    spot = [payload for payload in payloads if id(payload) not in taken]
    return {
        (kind, symbol): entry
        for kind, group in (("spot", spot), ("", others))
        for symbol, entry in lines_of(rows, group, ticker_line, key=lambda line: line.symbol).items()
    }


def usd_prices(tickers: Tickers) -> dict[str, Decimal]:
    """Dollars per coin by the venue's chain: index in USDT times USDT's rate, index of BTCUSD over that of BTCUSDT.

    A spot ticker that states the dollar index of its base coin goes first. Without the two indices the USDT rate is
    unknown, and a coin has a dollar price only where an inverse contract states one.
    """

    def index(symbol: str) -> Decimal | None:
        entry = tickers.get(("", symbol))
        return None if entry is None else entry[0].index_price

    out: dict[str, Decimal] = {}
    dollars, tethers = index("BTCUSD"), index("BTCUSDT")
    rate = None if dollars is None or tethers is None else mechanics.usdt_usd(dollars, tethers)
    for (category, symbol), (line, _, _) in tickers.items():
        if category == "spot":
            continue
        try:
            market = market_of(symbol)
        except FieldError:
            continue
        if market.kind != "perp" or line.index_price is None:
            continue
        if market.inverse:
            out.setdefault(market.base, line.index_price)
        elif rate is not None and market.settle == "USDT":
            out[market.base] = decimal_from(mechanics.coin_usd(line.index_price, rate))
    if rate is not None:
        out["USDT"] = decimal_from(rate)
    for (category, symbol), (line, _, _) in tickers.items():
        base = next((symbol.removesuffix(quote) for quote in ("USDT", "USDC") if symbol.endswith(quote)), "")
        if category == "spot" and line.usd_index is not None and base:
            out[base] = line.usd_index
    return out


def moment_of(payload: Payload) -> datetime | None:
    """The time that an answer states, else that of its receipt."""
    try:
        return answer_of(payload.body).time or payload.received_at
    except FieldError:
        return payload.received_at


def write_marks(
    rows: Rows, tickers: Tickers, prices: Mapping[str, Decimal], books: set[str], catalog: BybitCatalog
) -> None:
    """Marks and open interest of every known market, and dollar prices of coins.

    Best prices of a market in `books` come from its order book, not from its ticker.
    """
    moments: dict[int, datetime | None] = {}
    forwards: dict[str, Found[TickerLine]] = {}
    for (category, symbol), (line, payload, place) in sorted(tickers.items()):
        if id(payload) not in moments:
            moments[id(payload)] = moment_of(payload)
        market = catalog.known(symbol) if category != "spot" else None
        if market is None:
            continue
        columns: dict[str, Any] = {"as_of": moments[id(payload)], "source": "market/tickers"}
        instrument = catalog.instrument(market)
        for name, value in (
            ("mark", line.mark_price),
            ("index", line.index_price),
            ("bid", None if symbol in books else line.bid),
            ("ask", None if symbol in books else line.ask),
            ("funding_rate", line.funding_rate),
            ("implied_vol", line.implied_vol),
            ("delta", line.delta if market.kind == "option" else None),
        ):
            if value is not None:
                add_mark(rows, instrument, name, value, **columns)
        if line.open_interest is not None:
            add_market_state(rows, instrument, "open_interest", line.open_interest, **columns)
        expiry = catalog.expiry(market)
        if market.kind == "option" and line.forward is not None and expiry is not None:
            _forward(rows, forwards, expiry_subject(market.base, expiry), (line, payload, place), columns)
    oldest = min((moment for moment in moments.values() if moment is not None), default=None)
    for coin, price in sorted(prices.items()):
        if catalog.named.asset(coin):
            add_mark(rows, coin, "index", price, as_of=oldest, source="market/tickers")


def _forward(
    rows: Rows, forwards: dict[str, Found[TickerLine]], subject: str, entry: Found[TickerLine], columns: dict[str, Any]
) -> None:
    """The forward of an expiry, from its first option by name; another one that contradicts it is a finding."""
    line, payload, place = entry
    assert line.forward is not None
    if subject not in forwards:
        forwards[subject] = entry
        add_mark(rows, subject, "forward", line.forward, **columns)
        return
    first = forwards[subject][0].forward
    assert first is not None
    if abs(line.forward - first) > _FORWARD_TOLERANCE * first:
        rows.fail(
            FailureReason.INCONSISTENT,
            f"forwards {first} and {line.forward} of {subject}",
            payload=payload.name,
            path=joined(place, "underlyingPrice"),
            subject=subject,
        )


def write_depths(rows: Rows, payloads: Sequence[Payload], catalog: BybitCatalog) -> set[str]:
    """Marks of `market/orderbook` answers; gives the symbols that have a usable book."""

    def read(record: Any, path: str) -> Depth:
        depth = depth_of(record, path)
        catalog.instrument(market_of(depth.symbol), joined(path, "s"))
        return depth

    derivatives = []
    for payload in payloads:
        if payload.request.partition(":")[2].startswith("spot"):
            message = "a book of a spot pair: no position is closed in it"
            rows.fail(FailureReason.UNSUPPORTED, message, payload=payload.name, path="request")
        else:
            derivatives.append(payload)
    found = lines_of(rows, derivatives, read, key=lambda depth: depth.symbol)
    for depth, payload, _ in found.values():
        instrument = catalog.instrument(market_of(depth.symbol))
        columns: dict[str, Any] = {"as_of": depth.time or moment_of(payload), "source": "market/orderbook"}
        for name, value in (
            ("bid", depth.bid),
            ("ask", depth.ask),
            ("depth_bid", depth.bid_notional),
            ("depth_ask", depth.ask_notional),
        ):
            add_mark(rows, instrument, name, value, **columns)
    return set(found)


def write_funding(rows: Rows, payloads: Sequence[Payload], catalog: BybitCatalog) -> None:
    """The last settled funding rate of each market; what a ticker states is the one to come."""
    latest: dict[str, tuple[datetime, Decimal]] = {}

    def read(record: Any, path: str) -> tuple[str, datetime, Decimal]:
        symbol = text_at(record, "symbol", path)
        moment = optional_time_at(record, "fundingRateTimestamp", path)
        if moment is None:
            raise FieldError(joined(path, "fundingRateTimestamp"), FailureReason.MISSING_FIELD, "no time of settlement")
        return symbol, moment, decimal_at(record, "fundingRate", path)

    for (symbol, moment, rate), _, _ in lines_of(
        rows, payloads, read, key=lambda line: f"{line[0]} {line[1]:%Y-%m-%dT%H:%M:%S}"
    ).values():
        if symbol not in latest or moment > latest[symbol][0]:
            latest[symbol] = moment, rate
    for symbol, (moment, rate) in latest.items():
        market = catalog.known(symbol)
        if market is not None:
            instrument = catalog.instrument(market)
            add_market_state(rows, instrument, "funding_rate", rate, as_of=moment, source="market/funding/history")
