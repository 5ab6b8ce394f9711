"""The Binance payloads of 2024-06-30 (`payloads/binance/book`) and the adapter run on them, for the tests of COIN-M and
portfolio margin.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from adapters.adapter import Context, Normalized
from adapters.asset_book import Asset, AssetBook
from adapters.binance import ADAPTER
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.rule_forms import Form, parse_parameters
from tests.normalized_rows import only, rows_of
from tests.sample_binance import PAYLOADS

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "payloads" / "binance"
PARAMETERS = tomllib.loads((HERE.parent / "configs" / "venues" / "binance.toml").read_text(encoding="utf-8"))
NOW = datetime(2024, 6, 30, tzinfo=UTC)

FACTORS = ("BTC", "ETH", "SOL", "BNB")
STABLES = ("USDT", "USDC")
BOOK = AssetBook(
    {symbol: Asset(symbol, symbol, Decimal(1), None, None) for symbol in FACTORS}
    | {symbol: Asset(symbol, None, Decimal(1), symbol, "issuer") for symbol in STABLES}
)

Row = dict[str, Any]


def book(*owners: str) -> list[Payload]:
    """The market's payloads and those of some owners, of all where none is named."""
    out = []
    for request, name, owner in PAYLOADS:
        if not (owners and owner) or owner in owners:
            payload = RecordedTransport(FOLDER).fetch("binance", PayloadRequest(request, name, owner))
            assert isinstance(payload, Payload), payload
            out.append(payload)
    return out


def normalized(payloads: Sequence[Payload], parameters: Any = None) -> Normalized:
    return ADAPTER.normalize(payloads, Context(BOOK, PARAMETERS if parameters is None else parameters))


def answer(request: str, body: Any, owner: str = "", name: str = "made.json") -> Payload:
    return Payload(request, name, owner, NOW, "", body)


def edited(payloads: Sequence[Payload], name: str, edit: Callable[[Any], Any]) -> list[Payload]:
    """The payloads with the body of one file changed in place."""
    assert any(payload.name == name for payload in payloads), name
    out = []
    for payload in payloads:
        body = copy.deepcopy(payload.body)
        if payload.name == name:
            edit(body)
        out.append(replace(payload, body=body))
    return out


def without(payloads: Sequence[Payload], *names: str) -> list[Payload]:
    return [payload for payload in payloads if payload.name not in names]


def body_of(name: str) -> Any:
    (payload,) = [payload for payload in book() if payload.name == name]
    return payload.body


def components(result: Normalized, account: str) -> list[tuple[str, Form]]:
    """(side, form) of an account's rule set, in order."""
    rule_set = only(result, "accounts", account_id=account)["rule_set"]
    rows = sorted(rows_of(result, "rule_sets", rule_set=rule_set), key=lambda row: row["component_no"])
    return [(row["side"], parse_parameters(row["form"], row["parameters"])) for row in rows]


def sets_of(result: Normalized) -> dict[str, set[str]]:
    """Rows by table without their order."""
    return {name: {repr(row) for row in table.to_pylist()} for name, table in result.batches.items()}
