"""Binance: the payloads of 2024-06-20 in `payloads/binance` and the adapter run on them.

Owner `north` is in single-asset mode with an isolated position, a dated future and open orders; owner `south` in
multi-assets and hedge mode (version 3 answers); owner `east` has the account answer of portfolio margin alone. The
tests of COIN-M and portfolio margin have payloads of 2024-06-30 (`binance_book.py`). The reference figures of the
mechanics are checked by `test_vectors.py`.
"""

import copy
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from adapters.adapter import Asset, AssetBook, Context, Normalized
from adapters.binance import ADAPTER, request_name
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from tests.normalized_rows import failures_of, rows_of

HERE = Path(__file__).parent
PAYLOADS = HERE / "payloads" / "binance"
PARAMETERS = tomllib.loads((HERE.parent / "configs" / "venues" / "binance.toml").read_text(encoding="utf-8"))
OWNERS = ("north", "south", "east")
RECEIVED = datetime(2024, 6, 20, 12, tzinfo=UTC)

FACTORS = ("BTC", "ETH", "SOL", "BNB", "SHIB")
STABLES = ("USDT", "USDC")
BOOK = AssetBook(
    {symbol: Asset(symbol, symbol, Decimal(1), None, None) for symbol in FACTORS}
    | {symbol: Asset(symbol, None, Decimal(1), symbol, "issuer") for symbol in STABLES}
)
CONTEXT = Context(BOOK, PARAMETERS)

Row = dict[str, Any]


def load(*names: str) -> list[Payload]:
    """Payload files by name; the owner is the file's first word where it is one."""
    transport = RecordedTransport(PAYLOADS)
    out = []
    for name in names:
        owner = name.partition("_")[0]
        answer = transport.fetch("binance", PayloadRequest("", name, owner if owner in OWNERS else ""))
        assert isinstance(answer, Payload)
        out.append(answer)
    return out


def whole_desk() -> list[Payload]:
    return load(*sorted(path.name for path in PAYLOADS.glob("*.json")))


def north() -> list[Payload]:
    """Everything that `north` needs and nothing else."""
    return load(
        "north_account.json",
        "north_position_risk.json",
        "north_open_orders.json",
        "north_multi_assets.json",
        "leverage_bracket.json",
        "premium_index.json",
    )


def south() -> list[Payload]:
    return load(
        "south_account.json",
        "south_position_risk.json",
        "south_multi_assets.json",
        "leverage_bracket.json",
        "asset_index.json",
    )


def answer(request: str, body: Any, *, owner: str = "", name: str = "made.json") -> Payload:
    return Payload(request, name, owner, RECEIVED, "", body)


def edited(payloads: Sequence[Payload], request: str, edit: Callable[[Any], Any]) -> list[Payload]:
    """The payloads with the body of one request changed in place (or replaced by what `edit` returns)."""
    out = []
    for payload in payloads:
        if request_name(payload.request)[0] == request:
            body = copy.deepcopy(payload.body)
            replaced = edit(body)
            out.append(answer(payload.request, body if replaced is None else replaced, owner=payload.account))
        else:
            out.append(payload)
    assert len(out) == len(payloads)
    return out


def without(payloads: Sequence[Payload], *requests: str) -> list[Payload]:
    return [payload for payload in payloads if request_name(payload.request)[0] not in requests]


def normalized(payloads: Sequence[Payload], *, parameters: Any = None) -> Normalized:
    return ADAPTER.normalize(payloads, CONTEXT if parameters is None else Context(BOOK, parameters))


def reasons(result: Normalized, account: str | None) -> set[str]:
    return {str(failure.reason) for failure in failures_of(result, account)}


def position(body: list[Any], symbol: str) -> Any:
    (record,) = [entry for entry in body if entry["symbol"] == symbol]
    return record


def marks_of(result: Normalized, account: str) -> dict[str, Decimal]:
    rows = rows_of(result, "marks", field="mark")
    marks = {row["subject"]: Decimal(str(row["value"])) for row in rows if row["account_id"] is None}
    return marks | {row["subject"]: Decimal(str(row["value"])) for row in rows if row["account_id"] == account}


def version_2(body: Any) -> None:
    """The account answer of version 2: entry price, leverage and isolated flag in its positions."""
    (payload,) = load("north_position_risk.json")
    for entry in body["positions"]:
        risk = position(payload.body, entry["symbol"])
        entry |= {
            "leverage": risk["leverage"],
            "entryPrice": risk["entryPrice"],
            "isolated": risk["isolated"],
            "positionInitialMargin": entry["initialMargin"],
            "openOrderInitialMargin": "0",
            "maxNotional": "250000",
        }
    for entry in body["assets"]:
        entry["marginAvailable"] = True
