"""Paradex: the sample of `payloads/paradex`, written for this suite in the venue's format, and the adapter on it."""

import copy
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from adapters.adapter import Context, Normalized
from adapters.asset_book import AssetBook, read_asset_book
from adapters.paradex import ADAPTER
from adapters.paradex.mechanics import OptionFractions
from adapters.transport import Payload
from aggregator.errors import FailureReason
from tests.normalized_rows import only
from tests.payload_files import read_payload

from .sample_paradex import PAYLOADS as SAMPLE

TESTS = Path(__file__).resolve().parent
PAYLOADS = TESTS / "payloads" / "paradex"
PARAMETERS = tomllib.loads((TESTS.parent / "configs" / "venues" / "paradex.toml").read_text(encoding="utf-8"))
ASSETS = read_asset_book(TESTS.parent / "configs" / "assets.toml")

DESK, SOL, GRID = "paradex:desk", "paradex:desk:isolated:SOL-USD-PERP", "paradex:grid"
SUBACCOUNT = "0x0b0c22"
BTC_PERP, ETH_PERP = "paradex:BTC-USD-PERP", "paradex:ETH-USD-PERP"
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)


def fetched(file: str, request: str = "", account: str = "", *, root: Path = PAYLOADS) -> Payload:
    return read_payload("paradex", root, request, file, account)


def sample() -> dict[str, Payload]:
    """The whole sample by file name without suffix."""
    return {file.removesuffix(".json"): fetched(file, request, owner) for request, file, owner in SAMPLE}


def normalized(*payloads: Payload, parameters: Any = PARAMETERS, assets: AssetBook = ASSETS) -> Normalized:
    return ADAPTER.normalize(payloads, Context(assets, parameters))


def with_change(file: str, change: Callable[[Any], Any], *, without: tuple[str, ...] = ()) -> Normalized:
    """The sample, one body changed in place by `change`, some payloads left out."""
    payloads = {name: payload for name, payload in sample().items() if name not in without}
    body = copy.deepcopy(payloads[file].body)
    change(body)
    payloads[file] = replace(payloads[file], body=body)
    return normalized(*payloads.values())


def mark(result: Normalized, subject: str, field: str, account: str | None = None) -> Any:
    return only(result, "marks", account_id=account, subject=subject, field=field)["value"]


R = FailureReason

LEVEL = OptionFractions(Fraction(1), Fraction(1, 5), Fraction(3, 20), Fraction(1, 10), Fraction(1, 2))
