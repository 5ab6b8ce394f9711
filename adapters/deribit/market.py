"""Market-wide answers of Deribit: instruments, tickers, books, indices, matrix parameters; what they name, their marks.

A row of a market or currency that is not in the asset book and that nobody holds is left out without a word: a book
summary lists hundreds of them. A row that cannot be read is a failure of no account; whoever needs it is then without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, joined, optional_time_at, positive_at
from ..catalog import Catalog
from ..fields import mapping_at, optional_mapping_at, records_of
from ..lines import Line, unique_lines
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import expiry_subject, instrument_id
from ..transport import Payload
from .parse import (
    IndexLine,
    Instrument,
    TickerLine,
    check_instrument,
    content_of,
    index_line,
    instrument_of,
    price_line,
    summary_price_line,
    ticker_line,
)
from .rules import PARAMETER_FILE, VENUE, ModelParameters, RuleBook, merged_parameters, model_parameters

SIMULATE = "private/pme/simulate"
PARAMETERS = "public/pme/get_params"
INDEX = "public/get_index_price"
INDEX_MESSAGE = "deribit_price_index"
INSTRUMENT, INSTRUMENTS = "public/get_instrument", "public/get_instruments"
# In the order in which they are believed at equal times.
TICKERS = (
    "public/ticker",
    "ticker",
    "public/get_order_book",
    "public/get_book_summary_by_instrument",
    "public/get_book_summary_by_currency",
)

STABLE_QUOTES = ("USDC", "USDT")

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_RELATIVE_ROUNDING = Decimal("1e-9")


@dataclass
class DeribitCatalog:
    """What the tables name, with the venue's aliases of symbols, and Deribit's instruments in it."""

    named: Catalog

    def known(self, instrument: Instrument) -> bool:
        """Whether base and settlement currency are in the asset book."""
        return self.named.knows(instrument.base, instrument.settlement)

    def instrument(self, instrument: Instrument, path: str = "") -> str:
        """Takes an instrument in and gives its id; raises `FieldError` (unknown_market, unknown_asset)."""
        name = instrument_id(VENUE, instrument.name)
        if name in self.named.instruments:
            return name
        base, settlement = self.named.pair(instrument.base, instrument.settlement, of=instrument.name, path=path)
        return self.named.instrument(
            instrument.name,
            kind=instrument.kind,
            underlying=base,
            settlement_asset=settlement,
            inverse=instrument.inverse,
            # Sizes come in coins, or in USD where an inverse future or perpetual is meant: one unit each.
            contract_size=Decimal(1),
            strike=instrument.strike,
            expiry=instrument.expiry,
            option_type=instrument.option_type,
        )

    def expiry(self, instrument: Instrument) -> datetime | None:
        """Expiry of an instrument: what an instrument answer says, else its name's day at the usual hour."""
        row = self.named.instruments.get(instrument_id(VENUE, instrument.name))
        return instrument.expiry if row is None else row["expiry"]


@dataclass
class MarketData:
    """What market-wide answers say: index prices in USD by currency, tickers by instrument, matrix parameters."""

    index: dict[str, Decimal] = field(default_factory=dict)
    tickers: dict[str, TickerLine] = field(default_factory=dict)
    parameters: ModelParameters | None = None
    dated: ModelParameters | None = None


class _Quote(NamedTuple):
    """A value with what decides between two of them: its time, then how far its request is believed."""

    time: datetime
    rank: int
    payload: str
    source: str
    value: Any


def read_market(
    rows: Rows, answers: Mapping[str, Sequence[Payload]], catalog: DeribitCatalog, book: RuleBook
) -> MarketData:
    """Reads all market-wide answers (and the prices inside of simulations), and writes their marks."""
    data = MarketData()
    for request in (INSTRUMENT, INSTRUMENTS):
        for payload in answers.get(request, ()):
            for instrument, _ in lines(rows, payload, check_instrument, key=lambda found: found.name):
                if catalog.known(instrument):
                    catalog.instrument(instrument)
    quotes: dict[str, list[_Quote]] = {}
    for rank, request in enumerate(TICKERS):
        for payload in answers.get(request, ()):
            read = summary_price_line if "summary" in request else ticker_line
            for ticker, _ in lines(rows, payload, read, key=lambda line: line.instrument.name):
                time = ticker.time or payload.received_at
                quotes.setdefault(ticker.instrument.name, []).append(
                    _Quote(time or _EARLIEST, -rank, payload.name, request, ticker)
                )
    indices = _index_quotes(rows, answers)
    for payload in answers.get(SIMULATE, ()):
        with rows.guard(payload.name):
            _simulated_prices(payload, quotes, indices)
    for name in sorted(quotes):
        best = _newest(rows, quotes[name], name)
        if best is not None and catalog.known(best.value.instrument):
            data.tickers[name] = best.value
            _ticker_marks(rows, best, catalog, data.tickers[name])
            instrument = best.value.instrument
            if best.value.index_price is not None:
                quote = best._replace(rank=best.rank - len(TICKERS), value=best.value.index_price)
                indices.setdefault(instrument.price_index, []).append(quote)
    _index_marks(rows, indices, catalog, data)
    _read_parameters(rows, answers, book, data)
    return data


def lines(
    rows: Rows, payload: Payload, read: Callable[[Any, str], Line], *, key: Callable[[Line], str]
) -> Iterator[tuple[Line, str]]:
    """Readable records of an answer with their paths; an instrument that stands twice is rejected in both."""
    records = list[tuple[str, Any]]()
    with rows.guard(payload.name):
        content = content_of(payload.body)
        is_list = isinstance(content, list)
        records += ((joined("", n) if is_list else "", record) for n, record in enumerate(records_of(content)))
    return unique_lines(rows, payload.name, records, read, key=key, subject=_subject)


def _subject(record: Any) -> str:
    return str(record.get("instrument_name", "")) if isinstance(record, Mapping) else ""


def _index_quotes(rows: Rows, answers: Mapping[str, Sequence[Payload]]) -> dict[str, list[_Quote]]:
    indices: dict[str, list[_Quote]] = {}
    for rank, request in enumerate((INDEX, INDEX_MESSAGE)):
        for payload in answers.get(request, ()):
            with rows.guard(payload.name):
                line: IndexLine = index_line(content_of(payload.body), payload.request.partition(":")[2].strip())
                time = line.time or optional_time_at(_wrapper(payload.body), "usOut") or payload.received_at
                quote = _Quote(time or _EARLIEST, -rank, payload.name, request, line.price)
                indices.setdefault(line.name, []).append(quote)
    return indices


def _wrapper(body: Any) -> Mapping[str, Any]:
    return body if isinstance(body, Mapping) else {}


def _simulated_prices(payload: Payload, quotes: dict[str, list[_Quote]], indices: dict[str, list[_Quote]]) -> None:
    """Marks and indices that a simulation was computed with, believed least at equal times."""
    content = content_of(payload.body)
    if not isinstance(content, Mapping):
        raise FieldError("", FailureReason.MALFORMED, f"expected an object, found {type(content).__name__}")
    general = optional_mapping_at(optional_mapping_at(content, "model_params"), "general", "model_params")
    time = optional_time_at(general, "timestamp", "model_params.general") or payload.received_at or _EARLIEST
    found: list[tuple[dict[str, list[_Quote]], str, Any]] = []
    tickers = optional_mapping_at(content, "ticker")
    for name in tickers:
        record = {**mapping_at(tickers, name, "ticker"), "instrument_name": name}
        found.append((quotes, name, price_line(record, f"ticker.{name}")))
    prices = optional_mapping_at(content, "index_price")
    for name in prices:
        found.append((indices, str(name).lower(), positive_at(prices, name, "index_price")))
    # Only now, so that a simulation that is wrong anywhere leaves nothing behind.
    for target, name, value in found:
        target.setdefault(name, []).append(_Quote(time, -3 * len(TICKERS), payload.name, SIMULATE, value))


def _newest(rows: Rows, quotes: Sequence[_Quote], subject: str) -> _Quote | None:
    """The newest quote; of two different ones of one request and one time neither."""
    best = max(quotes, key=lambda quote: (quote.time, quote.rank, quote.payload))
    rivals = [quote for quote in quotes if (quote.time, quote.rank) == (best.time, best.rank)]
    if all(_same(quote.value, best.value) for quote in rivals):
        return best
    names = ", ".join(sorted(quote.payload for quote in rivals))
    rows.fail(
        FailureReason.INCONSISTENT, f"different prices at one time in {names}", payload=best.payload, subject=subject
    )
    return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Decimal) and isinstance(b, Decimal):
        return abs(a - b) <= _RELATIVE_ROUNDING * abs(b)
    return bool(a == b)


def _time(quote: _Quote) -> datetime | None:
    return None if quote.time == _EARLIEST else quote.time


def _mark(rows: Rows, subject: str, name: str, value: Decimal, quote: _Quote) -> None:
    add_mark(rows, subject, name, value, as_of=_time(quote), source=quote.source)


def _ticker_marks(rows: Rows, quote: _Quote, catalog: DeribitCatalog, line: TickerLine) -> None:
    instrument = line.instrument
    subject = catalog.instrument(instrument)
    values: dict[str, Decimal | None] = {
        "mark": line.mark_price,
        "index": line.index_price,
        "bid": line.bid,
        "ask": line.ask,
        "depth_bid": _depth(line, line.bid, line.bid_amount),
        "depth_ask": _depth(line, line.ask, line.ask_amount),
        "funding_rate": line.funding_8h,
        # The greeks' delta has five decimals; the matrix is computed with the delta of the implied vol itself.
        "implied_vol": line.implied_vol,
    }
    for name, value in values.items():
        if value is not None:
            _mark(rows, subject, name, value, quote)
    if line.open_interest is not None:
        price = line.mark_price if instrument.inverse and instrument.kind in ("perp", "future") else Decimal(1)
        if price:
            coins = line.open_interest / price
            add_market_state(rows, subject, "open_interest", coins, as_of=_time(quote), source=quote.source)


def _depth(line: TickerLine, price: Decimal | None, amount: Decimal | None) -> Decimal | None:
    """Notional of the best level in the quote currency: an inverse future's amount is in USD already."""
    instrument = line.instrument
    if price is None or amount is None or amount < 0:
        return None
    if instrument.kind == "option" and instrument.inverse:
        return None if line.index_price is None else amount * price * line.index_price
    return amount if instrument.inverse else amount * price


def expiry_marks(rows: Rows, tickers: Mapping[str, TickerLine], catalog: DeribitCatalog, held: set[str]) -> None:
    """Forward and rate of every expiry in which an option is held, from the option's own ticker.

    Options of one expiry share their underlying's price; the newest ticker of the held ones states it.
    """
    best: dict[str, TickerLine] = {}
    for name in sorted(held):
        line = tickers.get(name)
        expiry = None if line is None else catalog.expiry(line.instrument)
        if line is None or expiry is None or line.underlying_price is None:
            continue
        subject = expiry_subject(catalog.named.symbol(line.instrument.base), expiry)
        if subject not in best or (line.time or _EARLIEST) > (best[subject].time or _EARLIEST):
            best[subject] = line
    for subject, line in sorted(best.items()):
        assert line.underlying_price is not None
        quote = _Quote(line.time or _EARLIEST, 0, "", "underlying_price of an option", None)
        _mark(rows, subject, "forward", line.underlying_price, quote)
        if line.interest_rate is not None:
            _mark(rows, subject, "rate", line.interest_rate, quote)


def _index_marks(
    rows: Rows, indices: Mapping[str, Sequence[_Quote]], catalog: DeribitCatalog, data: MarketData
) -> None:
    """Prices of assets from indices in USD; an index in another currency is the price of that pair."""
    in_stables: dict[str, tuple[str, _Quote]] = {}
    for name in sorted(indices):
        best = _newest(rows, indices[name], name)
        if best is None:
            continue
        base, _, quote = name.upper().partition("_")
        if quote == "USD":
            _asset_index(rows, base, best.value, best, catalog=catalog, data=data)
        elif quote:
            _mark(rows, f"{base}/{quote}", "index", best.value, best)
            in_stables.setdefault(base, (quote, best))
    for base, (quote, best) in in_stables.items():
        # A coin that only linear contracts state a price of: a stable without a price of its own counts at par.
        if base not in data.index and quote in STABLE_QUOTES:
            price = best.value * data.index.get(quote, Decimal(1))
            _asset_index(rows, base, price, best, catalog=catalog, data=data)


def _asset_index(
    rows: Rows, currency: str, price: Decimal, quote: _Quote, *, catalog: DeribitCatalog, data: MarketData
) -> None:
    asset = catalog.named.asset(currency)
    if asset is not None:
        data.index[currency] = price
        _mark(rows, asset, "index", price, quote)


def _read_parameters(rows: Rows, answers: Mapping[str, Sequence[Payload]], book: RuleBook, data: MarketData) -> None:
    for payload in answers.get(PARAMETERS, ()):
        with rows.guard(payload.name):
            read = model_parameters(content_of(payload.body), PARAMETERS)
            data.parameters = merged_parameters(data.parameters, read)
    if book.portfolio_margin:
        with rows.guard(PARAMETER_FILE):
            source = f"{PARAMETER_FILE} of {book.as_of}"
            data.dated = model_parameters(book.portfolio_margin, source, "portfolio_margin")


__all__ = ["DeribitCatalog", "MarketData", "expiry_marks", "instrument_of", "lines", "read_market"]
