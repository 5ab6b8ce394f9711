"""Bybit: the payloads of `payloads/bybit`, written for this suite in the venue's format, and the adapter run on them.

Their owners: north (cross, with options, orders and a loan), south (hedge mode), east (isolated), west (portfolio
margin), harbor (a wallet with a spot loan).
"""

import copy
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from adapters.adapter import Context, Normalized
from adapters.asset_book import Asset, AssetBook
from adapters.bybit import ADAPTER
from adapters.transport import Payload
from tests.payload_files import read_payload
from tests.sample_bybit import PAYLOADS

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "payloads" / "bybit"
PARAMETERS = tomllib.loads((HERE.parent / "configs" / "venues" / "bybit.toml").read_text(encoding="utf-8"))
NOW = datetime(2024, 6, 30, tzinfo=UTC)

NORTH, SOUTH, EAST, WEST, HARBOR = (f"bybit:{owner}:unified" for owner in ("north", "south", "east", "west", "harbor"))
ETH_LONG, BTC_SHORT = "bybit:east:isolated:ETHUSDT", "bybit:east:isolated:BTCUSD"

# The venue rounds to 8 decimals of a coin; a coin is worth at most 61 thousand dollars, and a sum has a dozen parts.
VENUE_ROUNDING = Fraction(61_000 * 12, 10**8)

FACTORS = ("BTC", "ETH", "SOL", "SHIB", "PEPE")
STABLES = ("USDT", "USDC")
BOOK = AssetBook(
    {symbol: Asset(symbol, symbol, Decimal(1), None, None) for symbol in FACTORS}
    | {symbol: Asset(symbol, None, Decimal(1), symbol, "issuer") for symbol in STABLES}
)

Row = dict[str, Any]


def fetched(name: str, request: str = "", owner: str = "", *, root: Path = FOLDER) -> Payload:
    return read_payload("bybit", root, request, name, owner)


def desk(*owners: str) -> list[Payload]:
    """The market's payloads and those of some owners, of all where none is named."""
    return [
        fetched(name, request, owner) for request, name, owner in PAYLOADS if not (owners and owner) or owner in owners
    ]


def normalized(payloads: Sequence[Payload], parameters: Any = None) -> Normalized:
    return ADAPTER.normalize(payloads, Context(BOOK, PARAMETERS if parameters is None else parameters))


def answer(request: str, body: Any, owner: str = "", name: str = "made.json") -> Payload:
    return Payload(request, name, owner, NOW, "", body)


def listed(*records: Any, category: str = "", moment: int = 1719705590000) -> Any:
    result: Row = {"list": list(records)} | ({"category": category} if category else {})
    return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": moment}


def edited(payloads: Sequence[Payload], name: str, edit: Callable[[Any], Any]) -> list[Payload]:
    """The payloads with the body of one file changed in place (or replaced by what `edit` returns)."""
    out = []
    for payload in payloads:
        body = copy.deepcopy(payload.body)
        changed = edit(body) if payload.name == name else None
        out.append(replace(payload, body=body if changed is None else changed))
    assert any(payload.name == name for payload in payloads), name
    return out


def without(payloads: Sequence[Payload], *names: str) -> list[Payload]:
    return [payload for payload in payloads if payload.name not in names]


def body_of(name: str) -> Any:
    return fetched(name).body["result"]["list"]


def wallet_of(owner: str) -> Row:
    (record,) = body_of(f"wallet_{owner}.json")
    found: Row = record
    return found


def price_of(coin: Row) -> Fraction:
    return Fraction(coin["usdValue"]) / Fraction(coin["equity"])
