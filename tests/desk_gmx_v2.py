"""GMX v2: the desk of `payloads/gmx_v2`, written for this suite in the venue's format, and the adapter run on it.

The answers of the venue's own check in the payloads follow from the contracts' rules.
"""

import copy
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from adapters.adapter import Context, Normalized
from adapters.asset_book import read_asset_book
from adapters.gmx_v2 import ADAPTER
from adapters.transport import Payload
from aggregator.errors import FailureReason
from tests import sample_gmx_v2
from tests.payload_files import read_payload

ROOT = Path(__file__).resolve().parent.parent
PAYLOADS = ROOT / "tests" / "payloads" / "gmx_v2"
ASSETS = read_asset_book(ROOT / "configs" / "assets.toml")
PARAMETERS = tomllib.loads((ROOT / sample_gmx_v2.PARAMETERS).read_text(encoding="utf-8"))
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)

ETH_LONG = "gmx_v2:kestrel:WETH/USD[WETH-USDC]:WETH:long"
BTC_SHORT = "gmx_v2:kestrel:BTC/USD[WBTC-USDC]:USDC:short"
SOL_LONG = "gmx_v2:kestrel:SOL/USD[SOL-USDC]:USDC:long"
SOL_SHORT = "gmx_v2:osprey:SOL/USD[SOL-USDC]:USDC:short"
ETH_SHORT = "gmx_v2:osprey:WETH/USD[WETH-WETH]:WETH:short"
ACCOUNTS = {ETH_LONG, BTC_SHORT, SOL_LONG, SOL_SHORT, ETH_SHORT}
KESTREL = {ETH_LONG, BTC_SHORT, SOL_LONG}
ETH_MARKET, BTC_MARKET, SOL_MARKET = (f"0x{number:040x}" for number in (0xB1, 0xB2, 0xB3))

Change = Callable[[Any], None]


def fetched(request: str, file: str, account: str = "", *, root: Path = PAYLOADS) -> Payload:
    return read_payload("gmx_v2", root, request, file, account)


def desk(change: Change | None = None, request: str = "", owner: str = "") -> list[Payload]:
    """All payloads, the body of one of them changed in place."""
    payloads = [fetched(*entry) for entry in sample_gmx_v2.PAYLOADS]
    if change is None:
        return payloads
    number = next(i for i, p in enumerate(payloads) if p.request == request and p.account == owner)
    body = copy.deepcopy(payloads[number].body)
    change(body)
    payloads[number] = replace(payloads[number], body=body)
    return payloads


def without(*requests: str) -> list[Payload]:
    return [payload for payload in desk() if payload.request not in requests]


def normalized(payloads: list[Payload], parameters: Mapping[str, Any] = PARAMETERS) -> Normalized:
    return ADAPTER.normalize(payloads, Context(ASSETS, parameters))


def only_reason(result: Normalized, account: str | None = None) -> FailureReason:
    found = {f.reason for f in result.failures if account is None or f.account_id == account}
    assert len(found) == 1, result.failures
    return found.pop()


def usd(text: str) -> int:
    return int(Decimal(text).scaleb(30))
