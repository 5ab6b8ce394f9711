"""OKX: the desk of `payloads/okx`, written for this suite (see its SOURCE.md), and the adapter run on it."""

import tomllib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from adapters.adapter import Context, Normalized
from adapters.asset_book import read_asset_book
from adapters.okx import ADAPTER
from adapters.okx.mechanics import PositionTier
from adapters.transport import Payload
from tests.payload_files import changed, read_payload
from tests.sample_okx import PAYLOADS

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS / "payloads" / "okx"
CONFIGS = TESTS.parent / "configs"
PARAMETERS = tomllib.loads((CONFIGS / "venues" / "okx.toml").read_text(encoding="utf-8"))
ASSETS = read_asset_book(CONFIGS / "assets.toml")
REQUESTS = {file: (request, owner) for request, file, owner in PAYLOADS}

NORTH, SOUTH_BTC, SOUTH_USDT = "okx:north:cross", "okx:south:BTC", "okx:south:USDT"
EAST, WEST, QUAY = "okx:east:portfolio", "okx:west:cross", "okx:quay:cross"
ISOLATED_SOL = "okx:north:isolated:SOL-USDT-SWAP:short"
ISOLATED_ETH = "okx:north:isolated:ETH-USD-240927:long"
ACCOUNTS = (NORTH, SOUTH_BTC, SOUTH_USDT, EAST, WEST, QUAY, ISOLATED_SOL, ISOLATED_ETH)


def fetched(file: str, *, root: Path = FOLDER, request: str = "", owner: str = "") -> Payload:
    stated = REQUESTS.get(file, (request, owner)) if root == FOLDER else (request, owner)
    return read_payload("okx", root, stated[0], file, stated[1])


def desk() -> list[Payload]:
    return [fetched(file) for file in REQUESTS]


def normalized(payloads: list[Payload], parameters: Any = None) -> Normalized:
    return ADAPTER.normalize(payloads, Context(ASSETS, PARAMETERS if parameters is None else parameters))


def desk_with(file: str, change: Callable[[Any], None]) -> list[Payload]:
    return [changed(payload, change) if payload.name == file else payload for payload in desk()]


def desk_without(*files: str) -> list[Payload]:
    return [payload for payload in desk() if payload.name not in files]


def exact(value: Any) -> Fraction:
    return Fraction(str(value))


def reported_unit(name: str) -> dict[str, Any]:
    units = fetched("east_position_builder.json").body["data"][0]["riskUnitData"]
    return next(unit for unit in units if unit["riskUnit"] == name)


def ladder(kind: str, family: str) -> list[PositionTier]:
    key = "ccy" if kind == "MARGIN" else "instFamily"
    out = []
    for request, file, _ in PAYLOADS:
        if request.startswith(f"public/position-tiers:{kind}"):
            for entry in fetched(file).body["data"]:
                if entry[key] == family:
                    cap = exact(entry["maxSz"]) if entry["maxSz"] else None
                    out.append(PositionTier(cap, exact(entry["imr"]), exact(entry["mmr"]), exact(entry["maxLever"])))
    return out
