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
from aggregator.rule_forms import component_rows

from ..adapter import AssetBook, parameter_table
from ..amounts import FieldError
from ..rows import Rows
from ..symbols import account_id, instrument_id
from ..transport import Payload
from .mechanics import Bracket
from .parse import (
    AssetIndexLine,
    Market,
    PremiumLine,
    asset_index_line,
    depth_of,
    listed,
    market_of,
    premium_line,
    unique_lines,
)
from .rules import (
    MULTI_ASSETS,
    SINGLE_ASSET,
    BracketBook,
    collateral_tier_rows,
    margin_tier_rows,
    rule_set_id,
    symbol_brackets,
    usdm_components,
)

VENUE = "binance"
RULE_SOURCE = "Binance, leverage and margin of USD-M futures"
PARAMETER_FILE = "configs/venues/binance.toml"

Line = TypeVar("Line")


class Catalog:
    """Assets and instruments that the tables name, each once."""

    def __init__(self, book: AssetBook) -> None:
        self._book = book
        self._assets: dict[str, dict[str, Any]] = {}
        self._instruments: dict[str, dict[str, Any]] = {}

    def asset(self, symbol: str) -> bool:
        """Takes an asset in; False when the asset book does not know it."""
        asset = self._book.resolve(symbol)
        if asset is None:
            return False
        self._assets[symbol] = {
            "asset_id": symbol,
            "symbol": asset.symbol,
            "risk_factor": asset.risk_factor,
            "multiplier": asset.multiplier,
            "peg_of": asset.peg_of,
            "issuer": asset.issuer,
        }
        return True

    def known(self, market: Market) -> bool:
        """Whether base and quote asset are in the asset book."""
        return self._book.resolve(market.base) is not None and self._book.resolve(market.quote) is not None

    def instrument(self, market: Market, path: str = "") -> str:
        """Takes a market in and gives its instrument id; raises `FieldError` (unknown_market, unknown_asset)."""
        if self._book.resolve(market.base) is None:
            raise FieldError(
                path, FailureReason.UNKNOWN_MARKET, f"{market.base!r} of {market.symbol} is not in the asset book"
            )
        if self._book.resolve(market.quote) is None:
            raise FieldError(
                path, FailureReason.UNKNOWN_ASSET, f"{market.quote!r} of {market.symbol} is not in the asset book"
            )
        self.asset(market.base)
        self.asset(market.quote)
        name = instrument_id(VENUE, market.symbol)
        self._instruments[name] = {
            "instrument_id": name,
            "venue": VENUE,
            "symbol": market.symbol,
            "kind": "future" if market.expiry else "perp",
            "underlying": market.base,
            "settlement_asset": market.quote,
            "payoff": "linear",
            "contract_size": Decimal(1),
            "expiry": market.expiry,
        }
        return name

    def write(self, rows: Rows) -> None:
        """Adds the rows of `assets` and `instruments`."""
        rows.rows["assets"].extend(self._assets[name] for name in sorted(self._assets))
        rows.rows["instruments"].extend(self._instruments[name] for name in sorted(self._instruments))


class MarketData(NamedTuple):
    """What market-wide answers say: prices by symbol, indices by asset, brackets."""

    premiums: Mapping[str, PremiumLine]
    indices: Mapping[str, AssetIndexLine]
    states_indices: bool
    """Whether `fapi/assetIndex` was answered: then an asset without a usable row has no price, and not that of par."""
    brackets: BracketBook


def read_market(
    rows: Rows, payloads: Mapping[str, Sequence[Payload]], catalog: Catalog, *, parameters: Mapping[str, Any]
) -> MarketData:
    """Reads all market-wide answers, writes their marks, and gives what accounts need from them."""
    premiums = _lines(rows, payloads.get("fapi/premiumIndex", ()), premium_line, key=lambda line: line.symbol)
    for line, payload in premiums.values():
        with rows.guard(payload.name, subject=line.symbol):
            _premium_marks(rows, line, payload, catalog)
    indices = _lines(rows, payloads.get("fapi/assetIndex", ()), asset_index_line, key=lambda line: line.asset)
    for index, payload in indices.values():
        if catalog.asset(index.asset):
            _mark(
                rows,
                index.asset,
                "index",
                index.price,
                as_of=index.time or payload.received_at,
                source="fapi/assetIndex",
            )
    for payload in payloads.get("fapi/depth", ()):
        with rows.guard(payload.name):
            _depth_marks(rows, payload, catalog)
    return MarketData(
        {symbol: line for symbol, (line, _) in premiums.items()},
        {asset: line for asset, (line, _) in indices.items()},
        bool(payloads.get("fapi/assetIndex")),
        _bracket_book(rows, payloads.get("fapi/leverageBracket", ()), parameters),
    )


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
            for line in unique_lines(rows, payload.name, listed(payload.body), read, key=key):
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


def _mark(rows: Rows, subject: str, field: str, value: Decimal, **columns: Any) -> None:
    rows.add("marks", venue=VENUE, subject=subject, field=field, value=float(value), **columns)


def _premium_marks(rows: Rows, line: PremiumLine, payload: Payload, catalog: Catalog) -> None:
    try:
        market = market_of(line.symbol)
    except FieldError:
        return  # no USD-M symbol: an index or a contract of another kind
    if not catalog.known(market):
        return
    instrument = catalog.instrument(market)
    for name, value in (("mark", line.mark_price), ("index", line.index_price), ("funding_rate", line.funding_rate)):
        if value is not None:
            as_of = line.time or payload.received_at
            _mark(rows, instrument, name, value, as_of=as_of, source="fapi/premiumIndex")


def _depth_marks(rows: Rows, payload: Payload, catalog: Catalog) -> None:
    symbol = payload.request.partition(":")[2].strip()
    if not symbol:
        raise FieldError(
            "symbol",
            FailureReason.MISSING_FIELD,
            "an order book does not name its symbol: give the request as 'fapi/depth:BTCUSDT' or the like",
        )
    instrument = catalog.instrument(market_of(symbol, "symbol"), "symbol")
    depth = depth_of(payload.body)
    for name, value in (
        ("bid", depth.bid),
        ("ask", depth.ask),
        ("depth_bid", depth.bid_notional),
        ("depth_ask", depth.ask_notional),
    ):
        _mark(rows, instrument, name, value, as_of=depth.time or payload.received_at, source="fapi/depth")


def _bracket_book(rows: Rows, payloads: Sequence[Payload], parameters: Mapping[str, Any]) -> BracketBook:
    by_owner: dict[str, dict[str, tuple[Bracket, ...]]] = {}
    rejected: set[tuple[str, str]] = set()
    for owner in sorted({payload.account for payload in payloads}):
        answers = [payload for payload in payloads if payload.account == owner]
        whole = account_id(VENUE, owner) if owner else None
        lines = _lines(rows, answers, symbol_brackets, key=lambda line: line.symbol, account=whole)
        by_owner[owner] = {symbol: line.brackets for symbol, (line, _) in lines.items()}
        named = {
            str(record["symbol"])
            for payload in answers
            for record in (payload.body if isinstance(payload.body, list) else [payload.body])
            if isinstance(record, Mapping) and "symbol" in record
        }
        rejected |= {(owner, symbol) for symbol in named - set(lines)}
    dated: dict[str, tuple[Bracket, ...]] = {}
    for symbol, brackets in parameter_table(parameters, "brackets", venue=VENUE).items():
        with rows.guard(PARAMETER_FILE, subject=symbol):
            dated[symbol] = symbol_brackets({"symbol": symbol, "brackets": brackets}, "brackets").brackets
    return BracketBook(by_owner, by_owner.pop("", {}), dated, frozenset(rejected))


@dataclass
class RuleSets:
    """Rule sets in use, with the symbols that each needs tiers for."""

    symbols: dict[str, set[str]] = field(default_factory=dict)
    components: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)

    def share(self, name: str) -> None:
        """Takes in the rule set that all accounts of a mode share."""
        rule_set = rule_set_id(name)
        if rule_set not in self.components:
            components = usdm_components(multi_assets=name == MULTI_ASSETS, order_initial=Decimal(0), order_basis="")
            self.components[rule_set] = component_rows(rule_set, components, source=RULE_SOURCE)

    def write(self, rows: Rows, market: MarketData, catalog: Catalog) -> None:
        """Adds rule sets, margin and collateral tiers. A shared rule set has the tiers of every known market."""
        if market.brackets.market:
            self.share(SINGLE_ASSET)
        if market.indices:
            self.share(MULTI_ASSETS)
        for name in sorted(self.components):
            rows.rows["rule_sets"].extend(self.components[name])
            symbols = set(self.symbols.get(name, ()))
            owner = self.owners.get(name, "")
            if name in (rule_set_id(SINGLE_ASSET), rule_set_id(MULTI_ASSETS)):
                symbols |= {symbol for symbol in market.brackets.market if _is_known(symbol, catalog)}
            for symbol in sorted(symbols):
                brackets = market.brackets.find(symbol, owner)
                if brackets is not None:
                    catalog.instrument(market_of(symbol))
                    rows.rows["margin_tiers"].extend(margin_tier_rows(name, instrument_id(VENUE, symbol), brackets))
            if name.startswith(rule_set_id(MULTI_ASSETS)):
                for asset in sorted(market.indices):
                    if catalog.asset(asset):
                        rows.rows["collateral_tiers"].extend(collateral_tier_rows(name, market.indices[asset]))


def _is_known(symbol: str, catalog: Catalog) -> bool:
    try:
        return catalog.known(market_of(symbol))
    except FieldError:
        return False
