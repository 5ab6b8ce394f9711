"""Binance: requests, symbols and answers of every version that are read alike."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from adapters.binance import request_name
from adapters.binance.parse import market_of
from aggregator.errors import FailureReason
from tests.desk_binance import (
    PARAMETERS,
    answer,
    edited,
    load,
    normalized,
    north,
    position,
    reasons,
    south,
    version_2,
    without,
)
from tests.normalized_rows import only, rows_of


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("fapi/account", ("fapi/account", "")),
        ("/fapi/v3/account", ("fapi/account", "")),
        ("fapi/v2/positionRisk", ("fapi/positionRisk", "")),
        ("/sapi/v1/portfolio/account", ("portfolio/account", "")),
        ("v1/portfolio/collateralRate", ("portfolio/collateralRate", "")),
        ("/fapi/v1/depth:BTCUSDT", ("fapi/depth", "BTCUSDT")),
    ],
)
def test_requests_are_named_without_version(request_text: str, expected: tuple[str, str]) -> None:
    assert request_name(request_text) == expected


@pytest.mark.parametrize(
    ("symbol", "base", "quote", "expiry"),
    [
        ("BTCUSDT", "BTC", "USDT", None),
        ("BTCUSDC", "BTC", "USDC", None),
        ("1000SHIBUSDT", "1000SHIB", "USDT", None),
        ("USDCUSDT", "USDC", "USDT", None),
        ("BTCFDUSD", "BTC", "FDUSD", None),
        ("ETHBTC", "ETH", "BTC", None),
        ("BTCUSDT_240628", "BTC", "USDT", datetime(2024, 6, 28, 8, tzinfo=UTC)),
    ],
)
def test_symbols_in_parts(symbol: str, base: str, quote: str, expiry: datetime | None) -> None:
    assert market_of(symbol) == (symbol, base, quote, expiry)


@pytest.mark.parametrize("symbol", ["", "USDT", "BTCUSD_PERP", "BTCUSDT_999999", "BTCEUR", "BTC USDT"])
def test_other_symbols_are_no_market(symbol: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        market_of(symbol)


def test_a_version_2_account_and_market_marks_give_the_same_accounts() -> None:
    full = normalized(north())
    payloads = without(edited(north(), "fapi/account", version_2), "fapi/positionRisk")
    premium = {
        "symbol": "SOLUSDT",
        "markPrice": "134.22",
        "indexPrice": "134.28",
        "lastFundingRate": "0",
        "time": 1718884798000,
    }
    payloads.append(answer("fapi/premiumIndex:SOLUSDT", premium))
    result = normalized(payloads)
    assert result.failures == []
    drop = ("reported_initial_margin", "reported_liquidation_price")
    for table in ("balances", "positions"):
        left = [{k: v for k, v in row.items() if k not in drop} for row in rows_of(full, table)]
        assert [{k: v for k, v in row.items() if k not in drop} for row in rows_of(result, table)] == left
    assert not [row for row in rows_of(result, "marks") if row["account_id"]]


def test_version_3_leverage_is_implied_or_configured() -> None:
    result = normalized(south())
    assert {(r["instrument_id"], r["side_mode"]): r["leverage"] for r in rows_of(result, "positions")} == {
        ("binance:ETHUSDT", "long"): 25,
        ("binance:ETHUSDT", "short"): 25,
        ("binance:BTCUSDT", "short"): 20,
        ("binance:BTCUSDC", "long"): 15,
    }

    def blur(body: Any) -> None:
        for entry in body:
            entry["positionInitialMargin"] = str(Decimal(entry["positionInitialMargin"]) * Decimal("0.985"))

    payloads = edited(south(), "fapi/positionRisk", blur)
    assert reasons(normalized(payloads), "binance:south:multi") == {"missing_field"}
    settings = [
        {
            "symbol": s,
            "marginType": "CROSSED",
            "isAutoAddMargin": "false",
            "leverage": 21,
            "maxNotionalValue": "1000000",
        }
        for s in ("ETHUSDT", "BTCUSDT", "BTCUSDC")
    ]
    result = normalized([*payloads, answer("/fapi/v1/symbolConfig", settings, owner="south")])
    assert result.failures == []
    assert {row["leverage"] for row in rows_of(result, "positions")} == {Decimal(21)}


def test_isolated_positions_of_a_hedged_symbol_are_accounts_of_their_own() -> None:
    def hedge(body: Any) -> None:
        record = position(body if isinstance(body, list) else body["positions"], "SOLUSDT")
        record["positionSide"] = "LONG"
        other = dict(record, positionSide="SHORT", positionAmt="-10", notional="-1342.2", isolatedWallet="300")
        other |= {"isolatedMargin": "300", "maintMargin": "6.711"}
        (body if isinstance(body, list) else body["positions"]).append(other)

    result = normalized(edited(edited(north(), "fapi/positionRisk", hedge), "fapi/account", hedge))
    isolated = {row["account_id"] for row in rows_of(result, "accounts", margin_mode="isolated")}
    assert isolated == {"binance:north:isolated:SOLUSDT:LONG", "binance:north:isolated:SOLUSDT:SHORT"}
    assert only(result, "positions", account_id="binance:north:isolated:SOLUSDT:SHORT")["side_mode"] == "short"
    # the wallet of the answer now misses the second isolated wallet, which is a finding and stops nobody
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.INCONSISTENT, None)]


def test_one_object_reads_like_a_list_of_one() -> None:
    record = {
        "symbol": "BTCUSDT",
        "markPrice": "65000.1",
        "indexPrice": "65010",
        "lastFundingRate": "-0.0001",
        "time": 1718884798000,
    }
    one, many = (normalized([answer("fapi/premiumIndex", body)]) for body in (record, [record]))
    assert rows_of(one, "marks") == rows_of(many, "marks")
    assert {row["field"]: row["value"] for row in rows_of(one, "marks")} == {
        "mark": 65000.1,
        "index": 65010.0,
        "funding_rate": -0.0001,
    }
    bracket = {"symbol": "BTCUSDT", "brackets": PARAMETERS["brackets"]["BTCUSDT"]}
    one, many = (normalized([answer("fapi/leverageBracket", body)]) for body in (bracket, [bracket]))
    assert rows_of(one, "margin_tiers") == rows_of(many, "margin_tiers")
    assert len(rows_of(one, "margin_tiers")) == 12


def test_negative_wallets_are_liabilities() -> None:
    result = normalized(south())
    assert only(result, "balances", asset_id="USDT")["side"] == "liability"
    assert only(result, "balances", asset_id="USDT")["quantity"] == Decimal("1800.25")


def test_assets_that_are_no_margin_do_not_count_as_collateral() -> None:
    def edit(body: Any) -> None:
        for entry in body["assets"]:
            entry["marginAvailable"] = entry["asset"] != "BNB"

    result = normalized(edited(south(), "fapi/account", edit))
    assert {row["asset_id"]: row["collateral_enabled"] for row in rows_of(result, "balances")} == {
        "USDT": True,
        "USDC": True,
        "BTC": True,
        "BNB": False,
    }


def test_mode_comes_from_the_answer_then_the_parameters_then_the_venues_default() -> None:
    bare = [answer("fapi/account", load("north_account.json")[0].body | {"positions": []}, owner="north")]
    single = normalized(bare, parameters={})
    assert {row["multi_assets_mode"] for row in rows_of(single, "accounts")} == {False}
    configured = {"accounts": {"multi_assets_mode": True}}
    multi = normalized(bare, parameters=configured)
    assert [row["account_id"] for row in rows_of(multi, "accounts")] == ["binance:north:multi"]
    stated = normalized([*bare, *load("north_multi_assets.json")], parameters=configured)
    assert {row["multi_assets_mode"] for row in rows_of(stated, "accounts")} == {False}


def test_closing_orders_without_quantity_and_flat_positions_are_no_rows() -> None:
    result = normalized(north())
    assert {row["order_id"] for row in rows_of(result, "open_orders")} == {
        "binance:north:BTCUSDT:8886774",
        "binance:north:SOLUSDT:8886776",
    }
    partly = only(result, "open_orders", side="buy")
    assert (partly["remaining_quantity"], partly["limit_price"]) == (Decimal("0.08"), Decimal(61000))
    assert only(result, "open_orders", side="sell")["limit_price"] is None
    assert len(rows_of(result, "positions")) == 6
    assert result.failures == []


def test_depth_gives_best_prices_and_notional_of_the_levels() -> None:
    result = normalized(load("depth_btcusdt.json"))
    values = {row["field"]: row["value"] for row in rows_of(result, "marks", subject="binance:BTCUSDT")}
    assert values == {
        "bid": 64987.2,
        "ask": 64987.3,
        "depth_bid": float(Decimal("64987.20") * Decimal("4.120") + Decimal("64987.10") * Decimal("0.5")),
        "depth_ask": float(Decimal("64987.30") * Decimal("3.001") + Decimal("64988") * Decimal("1.25")),
    }
