"""Assets, instruments and marks of the made-up venues that the engine is tested on, as canonical rows by table.

Prices are in USD, quantities in units or, for inverse contracts, in contracts of 100 USD (perps) or one coin (options).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

Rows = dict[str, list[dict[str, Any]]]

AS_OF = datetime(2024, 3, 1, 8, tzinfo=UTC)
SPOT = {"BTC": 62000.0, "ETH": 3400.0, "SOL": 130.0, "wstETH": 3951.25, "USDC": 1.0003}
USDT_OFF_PEG = 0.9712
DAILY_STD = {
    "peg:USDC": 0.002,
    "peg:USDT": 0.004,
    "peg:wstETH": 0.003,
    "price:BTC": 0.03,
    "price:ETH": 0.04,
    "price:SOL": 0.06,
    "vol:BTC": 0.05,
    "vol:ETH": 0.06,
}
CORRELATION = {
    ("price:BTC", "price:ETH"): 0.8,
    ("price:BTC", "price:SOL"): 0.65,
    ("price:ETH", "price:SOL"): 0.7,
    ("price:BTC", "vol:BTC"): -0.3,
    ("price:ETH", "vol:ETH"): -0.35,
    ("peg:USDC", "peg:USDT"): 0.4,
}
# One that ends inside the horizon of a day, and three behind it on both sides of 30 days.
EXPIRIES = tuple(AS_OF + timedelta(hours=h) for h in (12, 24 * 7, 24 * 28, 24 * 119))
NO_FIXED_FIGURE = "reported without a formula"


def rows(**tables: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows by table name."""
    return {name: [dict(row) for row in of] for name, of in tables.items()}


def merged(*parts: Rows) -> Rows:
    """All rows of several parts, table by table, in their order."""
    out: Rows = defaultdict(list)
    for part in parts:
        for name, of in part.items():
            out[name] += of
    return dict(out)


def asset_row(
    asset_id: str, *, factor: str | None = None, peg: str | None = None, multiplier: str = "1"
) -> dict[str, Any]:
    return {"asset_id": asset_id, "symbol": asset_id, "risk_factor": factor, "peg_of": peg, "multiplier": multiplier}


def instrument_row(instrument_id: str, kind: str, underlying: str, settlement: str, **columns: Any) -> dict[str, Any]:
    venue, _, symbol = instrument_id.partition(":")
    return {
        "instrument_id": instrument_id,
        "venue": venue,
        "symbol": symbol,
        "kind": kind,
        "underlying": underlying,
        "settlement_asset": settlement,
        "payoff": "linear",
        "contract_size": "1",
    } | columns


def mark(venue: str, subject: str, field: str, value: float, **columns: Any) -> dict[str, Any]:
    """One row of `marks`."""
    return {"venue": venue, "subject": subject, "field": field, "value": value, "source": "test"} | columns


def option_id(venue: str, underlying: str, expiry: int, strike: int, option_type: str) -> str:
    """Id of the option with the expiry of that number in `EXPIRIES`."""
    return f"{venue}:{underlying}-{expiry}-{strike}-{option_type}"


STRIKES = {"BTC": (45000, 55000, 60000, 66000, 80000), "ETH": (2400, 3000, 3300, 3700, 4500)}
VENUES = ("lend", "perps", "multi", "coin", "options", "standard", "wallet")


def market_rows() -> Rows:
    """Assets, instruments and marks of every venue. On `multi` USDT trades off its peg."""
    assets = [
        asset_row("BTC", factor="BTC"),
        asset_row("ETH", factor="ETH"),
        asset_row("SOL", factor="SOL"),
        asset_row("USDC", peg="USDC"),
        asset_row("USDT", peg="USDT"),
        asset_row("wstETH", factor="ETH", peg="wstETH", multiplier="1.162"),
    ]
    marks = [mark(venue, asset, "oracle", price) for venue in VENUES for asset, price in SPOT.items()]
    marks += [
        mark("multi", "USDT", "index", USDT_OFF_PEG),
        mark("wallet", "USDT", "index", USDT_OFF_PEG),
    ]
    instruments = []
    for symbol, basis in (("BTC", 1.0008), ("ETH", 0.9995), ("SOL", 1.0021)):
        for venue, settlement in (("perps", "USDC"), ("multi", "USDT"), ("options", "USDC"), ("standard", "USDC")):
            instruments.append(instrument_row(f"{venue}:{symbol}-PERP", "perp", symbol, settlement))
            marks.append(mark(venue, f"{venue}:{symbol}-PERP", "mark", SPOT[symbol] * basis))
    instruments.append(instrument_row("multi:ETH-JUN", "future", "ETH", "USDT", expiry=EXPIRIES[3]))
    marks.append(mark("multi", "multi:ETH-JUN", "mark", SPOT["ETH"] * 1.031))
    for symbol, size in (("BTC", "100"), ("ETH", "10")):
        for suffix, kind, basis in (("PERP", "perp", 1.0004), ("JUN", "future", 1.027)):
            name = f"coin:{symbol}-{suffix}"
            instruments.append(instrument_row(name, kind, symbol, symbol, payoff="inverse", contract_size=size))
            marks.append(mark("coin", name, "mark", SPOT[symbol] * basis))
    for venue, settled in (("options", "linear"), ("standard", "linear"), ("coin", "inverse")):
        part = _option_market(venue, settled)
        instruments += part["instruments"]
        marks += part["marks"]
    return rows(assets=assets, instruments=instruments, marks=marks)


def _option_market(venue: str, payoff: str) -> Rows:
    instruments, marks = [], []
    for underlying, strikes in STRIKES.items():
        for number, expiry in enumerate(EXPIRIES):
            subject = f"{underlying}@{expiry:%Y-%m-%dT%H:%M:%SZ}"
            forward = SPOT[underlying] * (1.0 + 0.0004 + 0.011 * number)
            marks.append(mark(venue, subject, "forward", forward, confidence=0.97 if number == 2 else 1.0))
            if payoff == "linear":
                marks.append(mark(venue, subject, "rate", 0.045))
            for place, strike in enumerate(strikes):
                for kind in ("call", "put"):
                    name = option_id(venue, underlying, number, strike, kind)
                    settlement = "USDC" if payoff == "linear" else underlying
                    columns = {"payoff": payoff, "strike": str(strike), "expiry": expiry, "option_type": kind}
                    instruments.append(instrument_row(name, "option", underlying, settlement, **columns))
                    marks.append(mark(venue, name, "implied_vol", 0.5 + 0.02 * (place - 2) ** 2 + 0.03 * number))
    return rows(instruments=instruments, marks=marks)
