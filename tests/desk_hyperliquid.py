"""Hyperliquid: the desk of `payloads/hyperliquid`, written for this suite in the venue's format, and the adapter."""

import tomllib
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa

from adapters.adapter import Context, Normalized
from adapters.asset_book import Asset, AssetBook
from adapters.hyperliquid import ADAPTER
from adapters.transport import Payload
from tests.normalized_rows import only, rows_of
from tests.payload_files import changed, read_payload

TESTS = Path(__file__).resolve().parent
PAYLOADS = TESTS / "payloads" / "hyperliquid"
PARAMETERS = tomllib.loads((TESTS.parent / "configs" / "venues" / "hyperliquid.toml").read_text(encoding="utf-8"))

PERP, SPOT, CONTEXTS = "clearinghouseState", "spotClearinghouseState", "metaAndAssetCtxs"
CROSS = "hyperliquid:desk:cross"
SOL = "hyperliquid:desk:isolated:SOL"
WALLET = "hyperliquid:desk:spot"
# Marks are float64; an equity of 1e5 summed from them is good to about 1e-11.
EQUITY_TOLERANCE = Decimal("1e-9")
# Liquidation prices are reported with 8 to 10 decimals.
PRICE_RELATIVE = Fraction(1, 10**9)

FACTORS = ("BTC", "ETH", "SOL", "PEPE", "HYPE", "ATOM", "MATIC", "DYDX", "AVAX", "BNB", "APE", "OP", "LTC", "ARB")
STABLES = {"USDC": "circle", "USDH": "native-markets"}
ASSETS = AssetBook(
    {symbol: Asset(symbol, symbol, Decimal(1), None, None) for symbol in FACTORS}
    | {symbol: Asset(symbol, None, Decimal(1), symbol, issuer) for symbol, issuer in STABLES.items()}
)


def fetched(file: str, request: str = "", account: str = "", *, root: Path = PAYLOADS) -> Payload:
    return read_payload("hyperliquid", root, request, file, account)


def normalized(*payloads: Payload, parameters: dict[str, Any] | None = None) -> Normalized:
    return ADAPTER.normalize(payloads, Context(ASSETS, PARAMETERS if parameters is None else parameters))


def desk() -> list[Payload]:
    return [
        fetched("clearinghouse_state.json", account="desk"),
        fetched("clearinghouse_state_km.json", account="desk"),
        fetched("spot_clearinghouse_state.json", account="desk"),
        fetched("meta_and_asset_ctxs.json"),
        fetched("all_perp_metas.json"),
        fetched("spot_meta.json"),
    ]


def perp_payload(change: Callable[[Any], None] = lambda body: None, *, account: str = "desk") -> Payload:
    return changed(fetched("clearinghouse_state.json", account=account), change)


def equity_of(result: Normalized, account: str) -> Decimal:
    """Cash plus the profit of every position at the account's own mark."""
    cash = sum(
        (b["quantity"] * (1 if b["side"] == "asset" else -1) for b in rows_of(result, "balances", account_id=account)),
        Decimal(0),
    )
    profit = Decimal(0)
    for held in rows_of(result, "positions", account_id=account):
        mark = only(result, "marks", account_id=account, subject=held["instrument_id"], field="mark")
        profit += held["quantity"] * (Decimal(mark["value"]) - held["entry_price"])
    return cash + profit


def maintenance_of(result: Normalized, account: str) -> Decimal:
    """Sum over positions of the integral of the marginal rates of the account's own tier rows."""
    rule_set, total = only(result, "accounts", account_id=account)["rule_set"], Decimal(0)
    for held in rows_of(result, "positions", account_id=account):
        mark = only(result, "marks", account_id=account, subject=held["instrument_id"], field="mark")
        notional = abs(held["quantity"]) * Decimal(mark["value"])
        tiers = rows_of(result, "margin_tiers", rule_set=rule_set, market=held["instrument_id"])
        assert tiers
        for tier in tiers:
            top = notional if tier["notional_cap"] is None else min(notional, tier["notional_cap"])
            total += tier["maintenance_rate"] * max(top - tier["notional_floor"], Decimal(0))
    return total


def as_json(tables: dict[str, pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """Tables as JSON values: decimals as plain strings, times as ISO text, without nulls and form parameters."""

    def plain(value: Any) -> Any:
        if isinstance(value, Decimal):
            return format(value.normalize(), "f")
        return value.isoformat() if hasattr(value, "isoformat") else value

    return {
        name: [
            {key: plain(value) for key, value in row.items() if value is not None and key != "parameters"}
            for row in table.to_pylist()
        ]
        for name, table in tables.items()
    }
