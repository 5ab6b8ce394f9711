"""Market-wide answers of Binance: prices, buffered indices, books, brackets; what they name, which tiers they give.

A row of a market or asset that is not in the asset book and that nobody holds is left out without a word: a full
premiumIndex lists hundreds of them. A row that cannot be read is a failure of no account; whoever needs it is then
without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from aggregator.errors import FailureReason

from ..adapter import parameter_table
from ..amounts import FieldError, members, positive_at
from ..catalog import Catalog
from ..fields import records_of, text_at
from ..market_rows import add_mark
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .contracts import COINM, USDM, CoinMarket, Market, Product, is_coin_symbol
from .mechanics import Bracket
from .parse import AssetIndexLine, PremiumLine, asset_index_line, depth_of, premium_line, unique_lines
from .rules import (
    BracketBook,
    symbol_brackets,
)

VENUE = "binance"
PARAMETER_FILE = "configs/venues/binance.toml"

Line = TypeVar("Line")


@dataclass
class BinanceCatalog:
    """What the tables name, and the instruments of both futures products in it."""

    named: Catalog
    contract_sizes: dict[str, Decimal] = field(default_factory=dict)
    """Dollars per COIN-M contract by symbol or pair."""

    def contract_size(self, market: Market, path: str = "") -> Decimal:
        """Units (USD-M) or dollars (COIN-M) of one contract; raises missing_parameter where nothing says it."""
        if not isinstance(market, CoinMarket):
            return Decimal(1)
        for name in (market.symbol, market.pair):
            if name in self.contract_sizes:
                return self.contract_sizes[name]
        message = f"no contract size of {market.symbol} in dapi/exchangeInfo or the parameter file"
        raise FieldError(path, FailureReason.MISSING_PARAMETER, message)

    def known(self, market: Market) -> bool:
        """Whether base and margin asset are in the asset book."""
        return self.named.knows(market.base, market.margin_asset)

    def instrument(self, market: Market, path: str = "") -> str:
        """Takes a market in and gives its instrument id.

        Raises `FieldError`: unknown_market, unknown_asset, missing_parameter (a COIN-M contract of unknown size).
        """
        base, settlement = self.named.pair(market.base, market.margin_asset, of=market.symbol, path=path)
        return self.named.instrument(
            market.symbol,
            kind="future" if market.expiry else "perp",
            underlying=base,
            settlement_asset=settlement,
            inverse=market.inverse,
            contract_size=self.contract_size(market, path),
            expiry=market.expiry,
        )


class MarketData(NamedTuple):
    """What market-wide answers say: prices by symbol, indices by asset, brackets."""

    premiums: Mapping[str, PremiumLine]
    indices: Mapping[str, AssetIndexLine]
    states_indices: bool
    """Whether `fapi/assetIndex` was answered: then an asset without a usable row has no price, and not that of par."""
    brackets: BracketBook
    dollars: Mapping[str, Decimal]
    """USD per asset: its index, or that of its COIN-M perpetual."""


def read_market(
    rows: Rows, payloads: Mapping[str, Sequence[Payload]], catalog: BinanceCatalog, *, parameters: Mapping[str, Any]
) -> MarketData:
    """Reads all market-wide answers, writes their marks, and gives what accounts need from them."""
    catalog.contract_sizes |= _contract_sizes(rows, payloads.get("dapi/exchangeInfo", ()), parameters)
    premiums: dict[str, PremiumLine] = {}
    dollar_indices: dict[str, tuple[PremiumLine, Payload]] = {}
    dollars: dict[str, Decimal] = {}
    for product in (USDM, COINM):
        request = f"{product.api}/premiumIndex"
        found = _lines(rows, payloads.get(request, ()), premium_line, key=lambda line: line.symbol)
        for line, payload in found.values():
            with rows.guard(payload.name, subject=line.symbol):
                _premium_marks(rows, line, payload, catalog, product)
        premiums |= {symbol: line for symbol, (line, _) in found.items() if is_coin_symbol(symbol) == product.inverse}
        dollar_indices |= {symbol: entry for symbol, entry in found.items() if symbol.endswith("USD_PERP")}
    indices = _lines(rows, payloads.get("fapi/assetIndex", ()), asset_index_line, key=lambda line: line.asset)
    for index, payload in indices.values():
        dollars[index.asset] = index.price
        if catalog.named.asset(index.asset):
            moment = index.time or payload.received_at
            add_mark(rows, index.asset, "index", index.price, as_of=moment, source="fapi/assetIndex")
    for symbol, (line, payload) in dollar_indices.items():
        # The index of a COIN-M contract is its coin in dollars.
        coin = symbol.removesuffix("USD_PERP")
        if coin not in indices and line.index_price is not None and catalog.named.asset(coin):
            dollars[coin] = line.index_price
            moment = line.time or payload.received_at
            add_mark(rows, coin, "index", line.index_price, as_of=moment, source="dapi/premiumIndex")
    for product in (USDM, COINM):
        for payload in payloads.get(f"{product.api}/depth", ()):
            with rows.guard(payload.name):
                _depth_marks(rows, payload, catalog, product)
    brackets = [*payloads.get("fapi/leverageBracket", ()), *payloads.get("dapi/leverageBracket", ())]
    return MarketData(
        premiums,
        {asset: line for asset, (line, _) in indices.items()},
        bool(payloads.get("fapi/assetIndex")),
        _bracket_book(rows, brackets, parameters),
        dollars,
    )


def _contract_sizes(rows: Rows, payloads: Sequence[Payload], parameters: Mapping[str, Any]) -> dict[str, Decimal]:
    """Dollars per COIN-M contract: by symbol from `dapi/exchangeInfo`, by pair from the parameter file."""
    sizes: dict[str, Decimal] = {}
    for pair, size in parameter_table(parameters, "contract_sizes", venue=VENUE).items():
        with rows.guard(PARAMETER_FILE, subject=pair):
            sizes[pair] = positive_at({pair: size}, pair, "contract_sizes")

    def read(record: Any, path: str) -> tuple[str, Decimal]:
        return text_at(record, "symbol", path), positive_at(record, "contractSize", path)

    for payload in payloads:
        with rows.guard(payload.name):
            entries = members(payload.body, "symbols")
            sizes |= dict(unique_lines(rows, payload.name, entries, read, key=lambda line: line[0], path="symbols"))
    return sizes


def _lines(
    rows: Rows,
    payloads: Sequence[Payload],
    read: Callable[[Any, str], Line],
    *,
    key: Callable[[Line], str],
    account: str | None = None,
) -> dict[str, tuple[Line, Payload]]:
    """Readable lines by key over several answers; a key that two answers name is rejected in both.

    An answer that is unreadable as a whole fails `account`.
    """
    found: dict[str, list[tuple[Line, Payload]]] = {}
    for payload in payloads:
        with rows.guard(payload.name, account_id=account):
            for line in unique_lines(rows, payload.name, records_of(payload.body), read, key=key):
                found.setdefault(key(line), []).append((line, payload))
    out = {}
    for name, copies in found.items():
        if len(copies) == 1:
            out[name] = copies[0]
        else:
            names = ", ".join(payload.name for _, payload in copies)
            rows.fail(
                FailureReason.DUPLICATE, f"{name} in {names}; all rejected", payload=copies[-1][1].name, subject=name
            )
    return out


def _premium_marks(rows: Rows, line: PremiumLine, payload: Payload, catalog: BinanceCatalog, product: Product) -> None:
    try:
        market = product.market_of(line.symbol, "")
    except FieldError:
        return  # no symbol of this product: an index or a contract of another kind
    if not catalog.known(market):
        return
    instrument = catalog.instrument(market)
    for name, value in (("mark", line.mark_price), ("index", line.index_price), ("funding_rate", line.funding_rate)):
        if value is not None:
            as_of = line.time or payload.received_at
            add_mark(rows, instrument, name, value, as_of=as_of, source=f"{product.api}/premiumIndex")


def _depth_marks(rows: Rows, payload: Payload, catalog: BinanceCatalog, product: Product) -> None:
    symbol = payload.request.partition(":")[2].strip()
    if not symbol:
        raise FieldError(
            "symbol",
            FailureReason.MISSING_FIELD,
            "an order book does not name its symbol: give the request as 'fapi/depth:BTCUSDT' or the like",
        )
    market = product.market_of(symbol, "symbol")
    instrument = catalog.instrument(market, "symbol")
    depth = depth_of(payload.body, contract_size=catalog.contract_size(market) if market.inverse else None)
    for name, value in (
        ("bid", depth.bid),
        ("ask", depth.ask),
        ("depth_bid", depth.bid_notional),
        ("depth_ask", depth.ask_notional),
    ):
        add_mark(rows, instrument, name, value, as_of=depth.time or payload.received_at, source=f"{product.api}/depth")


def is_of(payload: Payload, product: Product) -> bool:
    """Whether an answer is of a product, by the path of its request."""
    inverse = "dapi/" in payload.request or ("papi/" in payload.request and "/cm/" in payload.request)
    return inverse == product.inverse


def _bracket_book(rows: Rows, payloads: Sequence[Payload], parameters: Mapping[str, Any]) -> BracketBook:
    by_owner: dict[str, dict[str, tuple[Bracket, ...]]] = {}
    rejected: set[tuple[str, str]] = set()
    for owner in sorted({payload.account for payload in payloads}):
        answers = [payload for payload in payloads if payload.account == owner]
        by_owner[owner] = {}
        for product in (USDM, COINM):
            whole = account_id(VENUE, owner, product.part) if owner else None
            own = [payload for payload in answers if is_of(payload, product)]
            lines = _lines(rows, own, symbol_brackets, key=lambda line: line.symbol, account=whole)
            by_owner[owner] |= {symbol: line.brackets for symbol, (line, _) in lines.items()}
        named = {
            str(record.get("symbol", record.get("pair")))
            for payload in answers
            for record in (payload.body if isinstance(payload.body, list) else [payload.body])
            if isinstance(record, Mapping) and ("symbol" in record or "pair" in record)
        }
        rejected |= {(owner, symbol) for symbol in named - set(by_owner[owner])}
    dated: dict[str, tuple[Bracket, ...]] = {}
    for symbol, brackets in parameter_table(parameters, "brackets", venue=VENUE).items():
        with rows.guard(PARAMETER_FILE, subject=symbol):
            dated[symbol] = symbol_brackets({"symbol": symbol, "brackets": brackets}, "brackets").brackets
    return BracketBook(by_owner, by_owner.pop("", {}), dated, frozenset(rejected))
