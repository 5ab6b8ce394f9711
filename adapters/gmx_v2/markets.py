"""What all positions of a GMX v2 deployment share: tokens, markets, prices, DataStore values; from payloads or from the
dated parameter file.

A payload goes before the file; two payloads that contradict each other are a failure and leave nothing. A market or
token that nobody holds may be unknown to the asset book without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import ConfigurationError, FailureReason

from ..adapter import Context, parameter_table
from ..amounts import FieldError, joined, token_amount
from ..catalog import Catalog
from ..findings import Problem
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .parse import (
    GLOBAL_KEYS,
    MARKET_KEYS,
    Market,
    Price,
    Token,
    address_of,
    read_market,
    read_market_info,
    read_ticker,
    read_token,
    read_values,
    records,
    unwrapped,
)

VENUE = "gmx_v2"
USD = "USD"
USD_DECIMALS = 30


class Value(NamedTuple):
    """A DataStore value, and where it was read."""

    number: int
    source: str
    as_of: datetime | None


@dataclass
class Deployment:
    """One snapshot of the deployment while it is read."""

    rows: Rows
    catalog: Catalog
    chain: str
    tokens: dict[str, Token | Problem] = field(default_factory=dict)
    markets: dict[str, Market | Problem] = field(default_factory=dict)
    prices: dict[str, Price | Problem] = field(default_factory=dict)
    values: dict[str, dict[str, Value | Problem]] = field(default_factory=dict)
    """DataStore values by market address; those of the whole deployment under the empty one."""
    accrued: dict[str, dict[str, Value | Problem]] = field(default_factory=dict)
    """The same as the Reader computes them for the moment; they go before what the store last held."""
    dated: dict[str, dict[str, Value]] = field(default_factory=dict)
    """The same from the parameter file."""
    renamed: Mapping[str, str] = field(default_factory=dict)

    # -- lookups: each raises `FieldError` for what is not there --------------------------------------------------

    def token(self, address: str, path: str) -> Token:
        """The token at an address; unknown_asset when no list names it."""
        found = self.tokens.get(address)
        if found is None:
            raise FieldError(path, FailureReason.UNKNOWN_ASSET, f"no list of tokens names {address}")
        return _usable(found, path)

    def market(self, address: str, path: str) -> Market:
        """The market at an address; unknown_market when no list names it."""
        found = self.markets.get(address)
        if found is None:
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"no list of markets names {address}")
        return _usable(found, path)

    def price(self, address: str, path: str) -> Price:
        """Price of a token for everybody; missing_mark without one."""
        found = self.prices.get(address)
        if found is None:
            raise FieldError(path, FailureReason.MISSING_MARK, f"no price of {self.symbol(address)}")
        return _usable(found, path)

    def value(self, market: str, name: str, own: Mapping[str, int]) -> int | None:
        """A DataStore value: of the payload itself, else of the market, else of the deployment; None if nowhere."""
        if name in own:
            return own[name]
        for values in (self.accrued, self.values, self.dated):
            for address in (market, ""):
                if name in values.get(address, {}):
                    number: int = _usable(values[address][name], name).number
                    return number
        return None

    def note(
        self, into: dict[str, dict[str, Value | Problem]], market: str, values: Mapping[str, int], payload: Payload
    ) -> None:
        """Takes values of a payload; raises inconsistent for one that another payload states differently."""
        known = into.setdefault(market, {})
        for name, number in values.items():
            before = known.get(name)
            if isinstance(before, Problem):
                continue
            if before is not None and before.number != number:
                message = (
                    f"{name} of {market or 'the deployment'} differs between {before.source} and {payload.request}"
                )
                known[name] = Problem(FailureReason.INCONSISTENT, message)
                raise FieldError(name, FailureReason.INCONSISTENT, message)
            known[name] = Value(number, payload.request, payload.received_at)

    def symbol(self, address: str) -> str:
        """Symbol of a token if a list names it, else its address."""
        found = self.tokens.get(address)
        return found.symbol if isinstance(found, Token) else address

    def market_name(self, market: Market) -> str:
        """Name of a market as the venue writes it, without blanks: ETH/USD[WETH-USDC]."""
        index, long, short = (self.symbol(address) for address in market[1:])
        return f"{index}/USD[{long}-{short}]"

    def asset(self, address: str, path: str) -> str:
        """Asset id of a token, noted for the table `assets`; unknown_asset if the asset book lacks its symbol."""
        token = self.token(address, path)
        return self.catalog.token(token.symbol, self.chain, token.decimals, path=path)

    def instrument(self, market: Market, path: str) -> str:
        """Instrument id of a market's perpetual, noted for the table `instruments`; raises as `asset` does.

        Profit counts in plain dollars: it is paid in the market's tokens at their price of that moment.
        """
        name = self.market_name(market)
        identity = instrument_id(VENUE, name)
        if identity in self.catalog.instruments:
            return identity
        underlying, dollar = self.asset(market.index_token, path), self.catalog.dollar()
        return self.catalog.instrument(name, kind="perp", underlying=underlying, settlement_asset=dollar)

    def usd_price(self, address: str, price: int) -> Decimal:
        """USD per whole token of a raw price."""
        return token_amount(price, USD_DECIMALS - self.token(address, "").decimals)


def _usable(found: Any, path: str) -> Any:
    if isinstance(found, Problem):
        raise FieldError(path, *found)
    return found


def deployment_of(rows: Rows, context: Context) -> Deployment:
    """A deployment with what the parameter file says: `chain`, `[global]`, and by address `[symbols]`, `[tokens.*]`,
    `[markets.*]`.

    Raises `ConfigurationError` for entries that cannot be read. Without `chain` the assets are those of the venue.
    """
    parameters = context.parameters
    chain = parameters.get("chain", VENUE)
    if not isinstance(chain, str) or not chain:
        raise ConfigurationError(f"{VENUE} parameters: chain is {chain!r}, expected a text")
    deployment = Deployment(rows, Catalog(VENUE, context.assets), chain)
    try:
        symbols = parameter_table(parameters, "symbols", venue=VENUE)
        if not all(isinstance(symbol, str) for symbol in symbols.values()):
            raise FieldError("symbols", FailureReason.MALFORMED, "must map addresses to symbols")
        deployment.renamed = {address_of(address, "symbols"): symbol for address, symbol in symbols.items()}
        for address, entry in parameter_table(parameters, "tokens", venue=VENUE).items():
            token = read_token({**_table(entry, "tokens"), "address": address}, joined("tokens", address))
            deployment.tokens[token.address] = _renamed(deployment, token)
        for address, entry in parameter_table(parameters, "markets", venue=VENUE).items():
            path, record = joined("markets", address), _table(entry, "markets")
            market = address_of(address, path)
            if "indexToken" in record:
                deployment.markets[market] = read_market({**record, "marketToken": address}, path)
            deployment.dated[market] = _dated(read_values(record, MARKET_KEYS, path))
        everywhere = parameter_table(parameters, "global", venue=VENUE)
        deployment.dated[""] = _dated(read_values(everywhere, GLOBAL_KEYS, "global"))
    except FieldError as error:
        raise ConfigurationError(f"{VENUE} parameters, {error.path}: {error.message}") from None
    return deployment


def _dated(values: Mapping[str, int]) -> dict[str, Value]:
    return {name: Value(number, "dated parameters", None) for name, number in values.items()}


def _table(entry: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise FieldError(path, FailureReason.MALFORMED, "expected a table for each address")
    return entry


def _renamed(deployment: Deployment, token: Token) -> Token:
    return token._replace(symbol=deployment.renamed.get(token.address, token.symbol))


# ---- payloads --------------------------------------------------------------------------------------------------------


def read_tokens(deployment: Deployment, payload: Payload) -> None:
    """The API's list of tokens."""
    _read_each(
        deployment,
        payload,
        "tokens",
        lambda record, path: ((token := _renamed(deployment, read_token(record, path))).address, token),
        into=deployment.tokens,
    )


def read_markets(deployment: Deployment, payload: Payload) -> None:
    """`Reader.getMarkets`."""
    _read_each(
        deployment,
        payload,
        "markets",
        lambda record, path: ((market := read_market(record, path)).address, market),
        into=deployment.markets,
    )


def read_tickers(deployment: Deployment, payload: Payload) -> None:
    """The API's price list."""
    _read_each(
        deployment,
        payload,
        "tickers",
        lambda record, path: read_ticker(record, path, payload.received_at),
        into=deployment.prices,
    )


def _read_each(deployment: Deployment, payload: Payload, key: str, read: Any, *, into: dict[str, Any]) -> None:
    """Takes every record of a list by its address; one that stands twice or cannot be read leaves a problem."""
    rows, seen = deployment.rows, set[str]()
    with rows.guard(payload.name, subject=payload.request):
        for path, record in records(payload.body, key):
            try:
                address, found = read(record, path)
                if address in seen:
                    message = f"{address} stands twice; all rejected"
                    into[address] = Problem(FailureReason.DUPLICATE, message)
                    raise FieldError(path, FailureReason.DUPLICATE, message)
                seen.add(address)
                into[address] = found
            except FieldError as error:
                _note_problem(record, error, into)
                rows.refuse(error, payload=payload.name, subject=payload.request)


def _note_problem(record: Any, error: FieldError, into: dict[str, Any]) -> None:
    if isinstance(record, Mapping):
        for key in ("address", "tokenAddress", "marketToken"):
            address = record.get(key)
            if isinstance(address, str) and not isinstance(into.get(address.lower()), Problem):
                into[address.lower()] = Problem(error.reason, error.message)


def read_data_store(deployment: Deployment, payload: Payload) -> None:
    """DataStore values: `{"global": {...}, "markets": {<address>: {...}}}`, both optional."""
    with deployment.rows.guard(payload.name, subject=payload.request):
        body, path = unwrapped(payload.body)
        if not isinstance(body, Mapping):
            raise FieldError(path, FailureReason.MALFORMED, f"expected an object, found {type(body).__name__}")
        _read_store(deployment, payload, "", body.get("global", {}), joined(path, "global"))
        markets = body.get("markets", {})
        if not isinstance(markets, Mapping):
            raise FieldError(joined(path, "markets"), FailureReason.MALFORMED, "expected an object by market address")
        for address, record in markets.items():
            _read_store(deployment, payload, address, record, joined(joined(path, "markets"), address))


def _read_store(deployment: Deployment, payload: Payload, address: str, record: Any, path: str) -> None:
    keys = MARKET_KEYS if address else GLOBAL_KEYS
    with deployment.rows.guard(payload.name, subject=address or payload.request):
        market = address_of(address, path) if address else ""
        if not isinstance(record, Mapping):
            raise FieldError(path, FailureReason.MALFORMED, f"expected an object, found {type(record).__name__}")
        for key in record:
            # One by one: an unreadable value is a problem of those who need it, the others stay.
            with deployment.rows.guard(payload.name, subject=market or "global"):
                try:
                    deployment.note(deployment.values, market, read_values({key: record[key]}, keys, path), payload)
                except FieldError as error:
                    deployment.values.setdefault(market, {})[keys[key]] = Problem(error.reason, error.message)
                    raise


def read_market_infos(deployment: Deployment, payload: Payload) -> None:
    """`Reader.getMarketInfo` and its list: markets, virtual inventory, borrowing rates, funding per size."""
    rows = deployment.rows
    with rows.guard(payload.name, subject=payload.request):
        for path, record in records(payload.body, "marketInfoList", "marketInfos", "markets"):
            with rows.guard(payload.name, subject=payload.request):
                market, values = read_market_info(record, path)
                known = deployment.markets.setdefault(market.address, market)
                if known != market:
                    message = f"market {market.address} has other tokens in another payload"
                    deployment.markets[market.address] = Problem(FailureReason.INCONSISTENT, message)
                    raise FieldError(joined(path, "market"), FailureReason.INCONSISTENT, message)
                if isinstance(disabled := record.get("isDisabled"), bool):
                    values["is_disabled"] = int(disabled)
                deployment.note(deployment.accrued, market.address, values, payload)


# ---- market-wide rows ------------------------------------------------------------------------------------------------

_PLAIN = ("is_disabled", "use_open_interest_in_tokens")
_FUNDING_DECIMALS = 15
"""Funding per size: 45 decimals, of which 30 are those of the size in USD."""


def add_shared_rows(deployment: Deployment) -> None:
    """Assets, instruments, prices and market state of what the asset book knows, at the end of the reading.

    State is in USD, fractions, or whole tokens; funding per size in whole collateral tokens per USD of size.
    """
    for market in deployment.markets.values():
        if isinstance(market, Market):
            with suppress(FieldError):
                identity = deployment.instrument(market, "")
                for address in (market.long_token, market.short_token):
                    deployment.asset(address, "")
                _add_index_marks(deployment, market, identity)
    _add_token_prices(deployment)
    deployment.catalog.write(deployment.rows)
    for address in sorted({*deployment.values, *deployment.accrued}):
        stated = deployment.values.get(address, {}) | deployment.accrued.get(address, {})
        for name, value in sorted(stated.items()):
            if isinstance(value, Value):
                with suppress(FieldError):
                    _add_state(deployment, address, name, value)


def _add_index_marks(deployment: Deployment, market: Market, identity: str) -> None:
    """The market's mark for everybody: the middle of the index token's prices (an account's own is against it)."""
    price = deployment.price(market.index_token, "")
    middle = deployment.usd_price(market.index_token, price.min + price.max) / 2
    add_mark(deployment.rows, identity, "mark", middle, as_of=price.as_of, source="prices of the index token")


def _add_token_prices(deployment: Deployment) -> None:
    by_asset: dict[str, list[tuple[str, Price]]] = {}
    for address, token in deployment.tokens.items():
        if isinstance(token, Token) and isinstance(price := deployment.prices.get(address), Price):
            by_asset.setdefault(f"{token.symbol}@{deployment.chain}", []).append((address, price))
    for identity, found in sorted(by_asset.items()):
        # A synthetic index token may share its symbol with the token in the pool: then neither speaks for the asset.
        if identity not in deployment.catalog.assets or len(found) > 1:
            continue
        address, price = found[0]
        prices = {
            "price_min": deployment.usd_price(address, price.min),
            "price_max": deployment.usd_price(address, price.max),
            "oracle": deployment.usd_price(address, price.min + price.max) / 2,
        }
        for name, value in prices.items():
            add_mark(deployment.rows, identity, name, value, as_of=price.as_of, source="price list")


def _add_state(deployment: Deployment, address: str, name: str, value: Value) -> None:
    market = deployment.markets.get(address)
    if isinstance(market, Market):
        identity = instrument_id(VENUE, deployment.market_name(market))
    else:
        identity = instrument_id(VENUE, address) if address else VENUE
    number = _scaled(deployment, market, name, value.number)
    add_market_state(deployment.rows, identity, name, number, as_of=value.as_of, source=value.source)


def _scaled(deployment: Deployment, market: Any, name: str, number: int) -> Decimal:
    """A value in USD, as a fraction, or in whole tokens of a market; raises `FieldError` for an unknown token."""
    if name in _PLAIN:
        return Decimal(number)
    tokens = {
        "pool_amount_long_token": "long_token",
        "pool_amount_short_token": "short_token",
        "virtual_inventory_in_tokens": "index_token",
        "open_interest_in_tokens_long": "index_token",
        "open_interest_in_tokens_short": "index_token",
    }
    if name.startswith("funding_fee_per_size"):
        token = name.removeprefix("funding_fee_per_size_").partition("_")[2]
        return token_amount(number, _FUNDING_DECIMALS + _decimals(deployment, market, token))
    if name in tokens:
        return token_amount(number, _decimals(deployment, market, tokens[name]))
    return token_amount(number, USD_DECIMALS)


def _decimals(deployment: Deployment, market: Any, token: str) -> int:
    if not isinstance(market, Market):
        raise FieldError("", FailureReason.UNKNOWN_MARKET, "the market is not known")
    return deployment.token(getattr(market, token), "").decimals
