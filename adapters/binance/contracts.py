"""Futures of Binance by their names: linear USD-M and inverse COIN-M contracts, and the two products' differences."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError
from ..symbols import expiry_of

QUOTE_ASSETS = ("FDUSD", "BNFCR", "USDT", "USDC", "BUSD", "USD1", "BTC", "ETH", "BNB")
"""Assets that USD-M contracts are quoted and margined in, matched at the end of a symbol, longest first."""

_SYMBOL = re.compile(r"([^\s_:]+?)(?:_(\d{6}))?")
_COIN_SYMBOL = re.compile(r"([A-Z0-9]+)USD_(PERP|\d{6})", re.ASCII)
_COIN_PAIR = re.compile(r"([A-Z0-9]+)USD", re.ASCII)


class Market(NamedTuple):
    """A USD-M symbol in parts; `expiry` None for a perpetual."""

    symbol: str
    base: str
    margin_asset: str
    """Quote asset, in which margin and profit are counted."""
    expiry: datetime | None

    @property
    def inverse(self) -> bool:
        """Whether the contract pays in its base coin."""
        return False


class CoinMarket(Market):
    """A COIN-M symbol in parts: its margin asset is the base coin, its price in dollars."""

    __slots__ = ()

    @property
    def inverse(self) -> bool:
        """Whether the contract pays in its base coin."""
        return True

    @property
    def pair(self) -> str:
        """`BTCUSD` of `BTCUSD_PERP`, by which contract sizes and brackets are published."""
        return self.symbol.partition("_")[0]


def market_of(symbol: str, path: str = "") -> Market:
    """`BTCUSDT`, `1000SHIBUSDT`, `BTCUSDT_240628` in parts; raises `FieldError(unknown_market)` for any other shape."""
    match = _SYMBOL.fullmatch(symbol)
    if match:
        for quote in sorted(QUOTE_ASSETS, key=len, reverse=True):
            base = match[1].removesuffix(quote)
            if base and base != match[1]:
                return Market(symbol, base, quote, expiry_of(match[2], path) if match[2] else None)
    raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{symbol[:60]!r} is no USD-M symbol")


def coin_market_of(symbol: str, path: str = "") -> CoinMarket:
    """`BTCUSD_PERP`, `ETHUSD_240927` in parts; raises `FieldError(unknown_market)` for any other shape."""
    match = _COIN_SYMBOL.fullmatch(symbol)
    if match is None:
        raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{symbol[:60]!r} is no COIN-M symbol")
    expiry = None if match[2] == "PERP" else expiry_of(match[2], path)
    return CoinMarket(symbol, match[1], match[1], expiry)


def any_market_of(symbol: str, path: str = "") -> Market:
    """A contract of either product."""
    return coin_market_of(symbol, path) if is_coin_symbol(symbol) else market_of(symbol, path)


def is_coin_symbol(symbol: str) -> bool:
    """Whether a name, or the pair that stands for all contracts of a coin, is of COIN-M."""
    return bool(_COIN_SYMBOL.fullmatch(symbol) or _COIN_PAIR.fullmatch(symbol))


class Product(NamedTuple):
    """What tells the two futures products apart: path of the requests, reader of symbols, rule set, account ids."""

    api: str
    inverse: bool
    market_of: Callable[[str, str], Market]
    rules: str
    part: str
    """What stands before the asset in the part of an account id."""
    bracket_keys: tuple[str, str]
    """Keys of a bracket's floor and cap; a floor may also be spelled as the venue misspells it."""


USDM = Product("fapi", False, market_of, "usdm", "", ("notionalFloor", "notionalCap"))
COINM = Product("dapi", True, coin_market_of, "coinm", "coinm", ("qtyFloor", "qtyCap"))
