"""Hyperliquid: the desk becomes the tables of `expected/hyperliquid/desk.json`, with the venue's equity and margins."""

import copy
import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from adapters.adapter import Adapter, find_adapter
from adapters.transport import Payload
from aggregator.rule_forms import TieredNotional, Verdict, WeightedValue, parse_parameters
from tests.desk_hyperliquid import (
    CROSS,
    EQUITY_TOLERANCE,
    SOL,
    TESTS,
    WALLET,
    as_json,
    desk,
    equity_of,
    fetched,
    maintenance_of,
    normalized,
    perp_payload,
)
from tests.normalized_rows import check_canonical, only, rows_of

EXPECTED = TESTS / "expected" / "hyperliquid"

# The venue truncates amounts to 6 decimals position by position.
VENUE_ROUNDING = Decimal("1e-6")


def test_the_desk_becomes_the_expected_tables() -> None:
    result = normalized(*desk())
    assert result.failures == []
    expected = json.loads((EXPECTED / "desk.json").read_text(encoding="utf-8"))
    got = as_json(result.batches)
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name] == expected[name], name


def test_the_tables_are_canonical_and_their_keys_unique() -> None:
    result = normalized(*desk())
    check_canonical(result)
    assets = {row["asset_id"] for row in rows_of(result, "assets")}
    used = {row["asset_id"] for row in rows_of(result, "balances")}
    used |= {row["settlement_asset"] for row in rows_of(result, "accounts")}
    used |= {row[key] for row in rows_of(result, "instruments") for key in ("underlying", "settlement_asset")}
    assert used <= assets
    forms = {
        (r["rule_set"], r["side"]): parse_parameters(r["form"], r["parameters"]) for r in rows_of(result, "rule_sets")
    }
    assert forms["hyperliquid:perp", "equity"] == forms["hyperliquid:spot", "equity"] == WeightedValue(weights="unit")
    assert forms["hyperliquid:perp", "requirement"] == TieredNotional(initial="leverage")
    for rule_set in ("hyperliquid:perp", "hyperliquid:spot"):
        assert forms[rule_set, "verdict"] == Verdict(liquidates_when="below", trigger=Decimal(1))


def test_equity_is_the_venues_own() -> None:
    result = normalized(*desk())
    for account, equity in ((CROSS, "24887.123456"), (SOL, "726"), ("hyperliquid:desk:cross:km", "925.5")):
        assert only(result, "accounts", account_id=account)["reported_equity"] == Decimal(equity)
        assert abs(equity_of(result, account) - Decimal(equity)) < EQUITY_TOLERANCE


def test_maintenance_and_initial_margin_are_the_venues_own() -> None:
    result = normalized(*desk())
    account = only(result, "accounts", account_id=CROSS)
    assert account["reported_maintenance_margin"] == Decimal("3117.7")
    assert abs(maintenance_of(result, CROSS) - Decimal("3117.7")) < EQUITY_TOLERANCE
    assert abs(maintenance_of(result, SOL) - Decimal("143.85")) < EQUITY_TOLERANCE
    initial = Decimal(0)
    for held in rows_of(result, "positions", account_id=CROSS):
        mark = only(result, "marks", account_id=CROSS, subject=held["instrument_id"], field="mark")
        margin = abs(held["quantity"]) * Decimal(mark["value"]) / held["leverage"]
        assert abs(margin - held["reported_initial_margin"]) < VENUE_ROUNDING
        initial += margin
    assert abs(initial - account["reported_initial_margin"]) < EQUITY_TOLERANCE


def test_every_mark_of_an_account_is_value_over_size() -> None:
    result, body = normalized(*desk()), perp_payload().body
    for entry in body["assetPositions"]:
        position = entry["position"]
        mark = only(
            result,
            "marks",
            subject=f"hyperliquid:{position['coin']}",
            field="mark",
            account_id=CROSS if position["coin"] != "SOL" else SOL,
        )
        assert mark["value"] == pytest.approx(float(position["positionValue"]) / abs(float(position["szi"])), rel=1e-15)
        assert mark["as_of"].isoformat() == "2024-06-25T14:00:00.123000+00:00"


def test_nodes_parents_and_rule_sets() -> None:
    result = normalized(*desk())
    assert only(result, "accounts", account_id=CROSS)["node"] == CROSS
    isolated = only(result, "accounts", account_id=SOL)
    assert (isolated["node"], isolated["parent_account_id"], isolated["margin_mode"]) == (SOL, CROSS, "isolated")
    wallet = only(result, "accounts", account_id=WALLET)
    assert (wallet["node"], wallet["rule_set"], wallet["settlement_asset"]) == (CROSS, "hyperliquid:spot", "USDC")
    assert rows_of(result, "positions", account_id=WALLET) == []
    forms = {(r["rule_set"], r["form"], r["side"]) for r in rows_of(result, "rule_sets")}
    assert ("hyperliquid:spot", "tiered_notional", "requirement") not in forms
    assert ("hyperliquid:perp", "tiered_notional", "requirement") in forms
    assert {"hyperliquid:perp", "hyperliquid:spot"} == {rule_set for rule_set, _, side in forms if side == "verdict"}


def test_market_marks_index_prices_and_flags() -> None:
    result = normalized(*desk())
    kpepe = {r["field"]: r["value"] for r in rows_of(result, "marks", subject="hyperliquid:kPEPE", account_id=None)}
    assert kpepe == {"mark": 0.01212, "oracle": 0.012121, "funding_rate": 0.0000125}
    assert only(result, "marks", subject="kPEPE", field="index")["value"] == 0.012121
    assert only(result, "assets", asset_id="kPEPE")["multiplier"] == 1000
    assert only(result, "market_state", market="hyperliquid:BTC", field="open_interest")["value"] == 8841.25
    assert only(result, "market_state", market="hyperliquid:HPOS", field="only_isolated")["value"] == 1.0
    assert only(result, "market_state", market="hyperliquid:HPOS", field="is_delisted")["value"] == 1.0
    # nobody holds the coin that the asset book does not know, nor the delisted one
    for coin in ("BLZ", "HPOS"):
        assert rows_of(result, "instruments", symbol=coin) == []
        assert rows_of(result, "marks", subject=f"hyperliquid:{coin}") == []


def test_the_index_price_is_the_oracle_of_the_venues_own_dex_or_of_the_only_one() -> None:
    def other_dex(coins: list[str]) -> Payload:
        own = fetched("meta_and_asset_ctxs.json")
        contexts = [{**own.body[1][0], "oraclePx": "60000.0"} for _ in coins]
        universe = [{"name": coin, "maxLeverage": 20} for coin in coins]
        return replace(own, name="dex.json", body=[{"universe": universe, "collateralToken": 360}, contexts])

    both = normalized(fetched("meta_and_asset_ctxs.json"), other_dex(["km:BTC", "km:ATOM"]))
    assert both.failures == []
    assert only(both, "marks", subject="BTC", field="index")["value"] == 62495.5
    assert only(both, "marks", subject="hyperliquid:km:BTC", field="oracle")["value"] == 60000.0
    assert only(both, "marks", subject="ATOM", field="index")["value"] == 60000.0


def test_a_builder_dex_is_an_account_of_its_own_in_its_own_collateral() -> None:
    result = normalized(*desk())
    account = only(result, "accounts", account_id="hyperliquid:desk:cross:km")
    assert (account["settlement_asset"], account["node"]) == ("USDH", "hyperliquid:desk:cross:km")
    instrument = only(result, "instruments", instrument_id="hyperliquid:km:BTC")
    assert (instrument["underlying"], instrument["settlement_asset"]) == ("BTC", "USDH")
    assert only(result, "balances", account_id="hyperliquid:desk:cross:km")["asset_id"] == "USDH"


def test_the_order_of_payloads_does_not_matter() -> None:
    payloads = [*desk(), perp_payload(account="other")]
    one, two = normalized(*payloads), normalized(*reversed(payloads))
    assert one.failures == two.failures
    assert as_json(one.batches) == as_json(two.batches)


def test_the_adapter_is_registered() -> None:
    found = find_adapter("hyperliquid")
    assert isinstance(found, Adapter)
    assert found.venue == "hyperliquid"


def test_cash_may_be_a_liability() -> None:
    def short_of_cash(body: Any) -> None:
        body["assetPositions"] = body["assetPositions"][:1]
        del body["marginSummary"]
        body["crossMarginSummary"] = {
            "accountValue": "976.0",
            "totalNtlPos": "74976.0",
            "totalRawUsd": "-74000.0",
            "totalMarginUsed": "3748.8",
        }
        body["assetPositions"][0]["position"]["entryPx"] = "61000.0"

    result = normalized(perp_payload(short_of_cash))
    assert result.failures == []
    balance = only(result, "balances", account_id=CROSS)
    assert (balance["side"], balance["quantity"]) == ("liability", Decimal(800))
    assert abs(equity_of(result, CROSS) - 976) < EQUITY_TOLERANCE


def test_positions_of_size_zero_and_empty_balances_change_nothing() -> None:
    def with_zero(body: Any) -> None:
        empty = copy.deepcopy(body["assetPositions"][2])
        empty["position"] |= {"coin": "HYPE", "szi": "0.0", "positionValue": "0.0", "entryPx": None}
        body["assetPositions"].append(empty)

    plain, zero = normalized(perp_payload()), normalized(perp_payload(with_zero))
    assert zero.failures == []
    assert as_json(zero.batches) == as_json(plain.batches)


def test_numbers_stay_exact_to_the_last_digit() -> None:
    def long_numbers(body: Any) -> None:
        body["assetPositions"] = body["assetPositions"][:1]
        body["assetPositions"][0]["position"] |= {
            "szi": "12345678.12345",
            "entryPx": "98765.4321012345",
            "positionValue": "1219326311126.352681",
            "marginUsed": "60966315556.317634",
        }
        body["crossMarginSummary"] = {
            "accountValue": "1219326311126.352682",
            "totalNtlPos": "1219326311126.352681",
            "totalRawUsd": "0.000001",
            "totalMarginUsed": "60966315556.317634",
        }
        del body["marginSummary"]

    result = normalized(perp_payload(long_numbers))
    assert result.failures == []
    exact = Fraction("12345678.12345") * Fraction("98765.4321012345") + Fraction("0.000001")
    assert Fraction(only(result, "balances", account_id=CROSS)["quantity"]) == exact
