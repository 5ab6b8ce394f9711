"""Hyperliquid: payloads to canonical tables, every way to be wrong, and the exact mechanics against slow twins.

The payloads in `payloads/hyperliquid` are written for this suite in the venue's format, and what they must become is in
`expected/hyperliquid/desk.json`. Recorded payloads are read where the folder of recorded material is at hand.
"""

import copy
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.amounts import parse_json
from adapters.asset_book import Asset, AssetBook
from adapters.hyperliquid import ADAPTER, FACTS, mechanics
from adapters.hyperliquid.mechanics import CrossSummary, MarginTier, SummedPosition
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import TieredNotional, Verdict, WeightedValue, parse_parameters
from aggregator.schema import CANONICAL, KEYS
from aggregator.snapshot import take_snapshot

from .sample_hyperliquid import PAYLOADS as SAMPLE

TESTS = Path(__file__).resolve().parent
PAYLOADS = TESTS / "payloads" / "hyperliquid"
EXPECTED = TESTS / "expected" / "hyperliquid"
PARAMETERS = tomllib.loads((TESTS.parent / "configs" / "venues" / "hyperliquid.toml").read_text(encoding="utf-8"))

PERP, SPOT, CONTEXTS = "clearinghouseState", "spotClearinghouseState", "metaAndAssetCtxs"
CROSS = "hyperliquid:desk:cross"
SOL = "hyperliquid:desk:isolated:SOL"
WALLET = "hyperliquid:desk:spot"

# The venue truncates amounts to 6 decimals position by position.
VENUE_ROUNDING = Decimal("1e-6")
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
    payload = RecordedTransport(root).fetch("hyperliquid", PayloadRequest(request, file, account))
    assert isinstance(payload, Payload), payload
    return payload


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


def changed(payload: Payload, change: Callable[[Any], None]) -> Payload:
    """The payload with its body changed in place by `change`."""
    body = copy.deepcopy(payload.body)
    change(body)
    return replace(payload, body=body)


def perp_payload(change: Callable[[Any], None] = lambda body: None, *, account: str = "desk") -> Payload:
    return changed(fetched("clearinghouse_state.json", account=account), change)


def rows_of(result: Normalized, table: str, **where: Any) -> list[dict[str, Any]]:
    return [r for r in result.batches[table].to_pylist() if all(r[key] == value for key, value in where.items())]


def only(result: Normalized, table: str, **where: Any) -> dict[str, Any]:
    found = rows_of(result, table, **where)
    assert len(found) == 1, (table, where, found)
    return found[0]


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


def failures_of(result: Normalized, account: str | None) -> list[Failure]:
    return [failure for failure in result.failures if failure.account_id == account]


# ---------------------------------------------------------------------------------------------------------------------
# The desk


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
    assert set(result.batches) == set(CANONICAL) - {"failures"}
    for name, table in result.batches.items():
        assert table.schema.equals(CANONICAL[name], check_metadata=True)
        keys = [tuple(row[key] for key in KEYS[name]) for row in table.to_pylist()]
        assert len(keys) == len(set(keys)), name
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


# ---------------------------------------------------------------------------------------------------------------------
# Where margin tiers come from


def tiers_of(result: Normalized, coin: str, account: str = CROSS) -> list[tuple[Any, ...]]:
    rule_set = only(result, "accounts", account_id=account)["rule_set"]
    rows = rows_of(result, "margin_tiers", rule_set=rule_set, market=f"hyperliquid:{coin}")
    return [(r["notional_floor"], r["maintenance_rate"], r["deduction"]) for r in rows]


def without_max_leverage(body: Any) -> None:
    for entry in body["assetPositions"]:
        del entry["position"]["maxLeverage"]


def meta_payload(universe: list[dict[str, Any]], tables: list[Any] | None = None, *, request: str = "meta") -> Payload:
    body = {"universe": universe, "marginTables": tables or []}
    return Payload(request, f"{request}.json", "", None, "", parse_json(json.dumps(body)))


def test_a_margin_table_gives_rates_and_deductions() -> None:
    result = normalized(*desk())
    assert tiers_of(result, "BTC") == [(0, Decimal("0.0125"), 0), (150_000_000, Decimal("0.025"), 1_875_000)]
    third = Decimal("0.033333333333333333")
    assert tiers_of(result, "ETH") == [
        (0, Decimal("0.02"), 0),
        (100_000_000, third, Decimal("1333333.333333333333333333")),
    ]
    text = only(result, "market_state", market="hyperliquid:BTC", field="margin_parameters")["text"]
    assert text == "metaAndAssetCtxs marginTableId 56"


def test_a_table_id_below_50_and_a_market_without_id_have_one_tier() -> None:
    result = normalized(
        meta_payload([{"name": "HYPE", "maxLeverage": 5, "marginTableId": 5}, {"name": "SOL", "maxLeverage": 20}])
    )
    assert result.failures == []
    rows = rows_of(result, "margin_tiers")
    assert [(r["market"], r["initial_rate"], r["maintenance_rate"], r["notional_cap"]) for r in rows] == [
        ("hyperliquid:HYPE", Decimal("0.2"), Decimal("0.1"), None),
        ("hyperliquid:SOL", Decimal("0.05"), Decimal("0.025"), None),
    ]


def test_without_market_payload_the_dated_tables_serve_where_the_account_agrees() -> None:
    result = normalized(perp_payload())
    assert result.failures == []
    account = only(result, "accounts", account_id=CROSS)
    assert account["rule_set"] == "hyperliquid:perp:docs-2026"
    assert tiers_of(result, "BTC")[1] == (150_000_000, Decimal("0.025"), 1_875_000)
    sources = {row["source"] for row in rows_of(result, "rule_sets", rule_set="hyperliquid:perp:docs-2026")}
    assert len(sources) == 1
    assert "'docs-2026' of 2026-11-21" in sources.pop()
    field = "margin_parameters:docs-2026"
    assert "Margin tiers" in only(result, "market_state", market="hyperliquid:BTC", field=field)["text"]


def test_without_any_table_the_accounts_own_maximum_leverage_is_one_tier() -> None:
    result = normalized(perp_payload(), parameters={})
    assert result.failures == []
    assert only(result, "accounts", account_id=CROSS)["rule_set"] == "hyperliquid:perp"
    assert tiers_of(result, "BTC") == [(0, Decimal("0.0125"), 0)]
    text = only(result, "market_state", market="hyperliquid:BTC", field="margin_parameters")["text"]
    assert text == "clearinghouseState maxLeverage 40, taken as one tier"
    assert abs(maintenance_of(result, CROSS) - Decimal("3117.7")) < EQUITY_TOLERANCE


def test_a_dated_table_that_the_account_contradicts_is_out_of_date() -> None:
    def newer(body: Any) -> None:
        body["assetPositions"][0]["position"]["maxLeverage"] = 50

    result = normalized(perp_payload(newer))
    assert result.failures == []
    assert tiers_of(result, "BTC") == [(0, Decimal("0.01"), 0)]


def test_no_source_of_tiers_leaves_the_account_incomplete_with_its_rows() -> None:
    # dated parameters for payloads that state maxLeverage do not serve one that does not: it is of another time
    result = normalized(perp_payload(without_max_leverage))
    reasons = {(f.reason, f.account_id) for f in result.failures}
    assert reasons == {(FailureReason.MISSING_PARAMETER, CROSS), (FailureReason.MISSING_PARAMETER, SOL)}
    assert "assetPositions[0].position.maxLeverage" in {f.path for f in result.failures}
    assert len(rows_of(result, "positions", account_id=CROSS)) == 3
    assert only(result, "accounts", account_id=CROSS)["reported_equity"] == Decimal("24887.123456")
    assert rows_of(result, "margin_tiers") == []


def test_an_owner_with_dated_parameters_of_its_own_does_not_look_at_todays_markets() -> None:
    def old(body: Any) -> None:
        without_max_leverage(body)
        del body["assetPositions"][3]  # kPEPE was not listed then
        for key, value in (("marginSummary", "9696"), ("crossMarginSummary", "9696")):
            summary = body[key]
            for name, sign in (("accountValue", 1), ("totalNtlPos", 1)):
                summary[name] = str(Decimal(summary[name]) - sign * Decimal(value))
            summary["totalMarginUsed"] = str(Decimal(summary["totalMarginUsed"]) - Decimal("1939.2"))

    owner = "recorded-2023"
    result = normalized(perp_payload(old, account=owner), *desk())
    assert result.failures == []
    account = f"hyperliquid:{owner}:cross"
    assert only(result, "accounts", account_id=account)["rule_set"] == "hyperliquid:perp:recorded-2023"
    assert tiers_of(result, "BTC", account) == [(0, Decimal("0.01"), 0)]
    assert tiers_of(result, "BTC", CROSS)[0] == (0, Decimal("0.0125"), 0)


def test_a_table_that_the_payload_refers_to_but_does_not_list() -> None:
    btc = [{"name": "BTC", "maxLeverage": 40, "marginTableId": 56}]
    listed = normalized(meta_payload(btc))
    assert listed.failures == []
    assert [r["notional_floor"] for r in rows_of(listed, "margin_tiers")] == [0, 150_000_000]
    assert "its table from dated parameters" in only(listed, "market_state", field="margin_parameters")["text"]

    missing = normalized(meta_payload(btc), perp_payload(), parameters={})
    assert failures_of(missing, None)[0].reason == FailureReason.MISSING_PARAMETER
    assert [f.reason for f in failures_of(missing, CROSS)] == [FailureReason.MISSING_PARAMETER]
    assert failures_of(missing, SOL) == []


def test_two_statements_of_the_venue_that_contradict_each_other() -> None:
    two_metas = normalized(meta_payload([{"name": "BTC", "maxLeverage": 50}]), *desk())
    assert [f.reason for f in failures_of(two_metas, None)] == [FailureReason.INCONSISTENT]
    assert [f.reason for f in failures_of(two_metas, CROSS)] == [FailureReason.INCONSISTENT]

    stale_meta = normalized(meta_payload([{"name": "BTC", "maxLeverage": 50}]), perp_payload())
    failure = failures_of(stale_meta, CROSS)[0]
    assert (failure.reason, failure.path) == (FailureReason.INCONSISTENT, "assetPositions[0].position.maxLeverage")

    def other(body: Any) -> None:
        body["assetPositions"][0]["position"]["maxLeverage"] = 50

    two_owners = normalized(perp_payload(), perp_payload(other, account="other"), parameters={})
    assert {(f.reason, f.account_id) for f in two_owners.failures} == {
        (FailureReason.INCONSISTENT, CROSS),
        (FailureReason.INCONSISTENT, "hyperliquid:other:cross"),
    }
    assert rows_of(two_owners, "margin_tiers", market="hyperliquid:BTC") == []
    assert len(rows_of(two_owners, "margin_tiers", market="hyperliquid:ETH")) == 1


@pytest.mark.parametrize(
    ("tiers", "reason"),
    [
        ([], FailureReason.INCONSISTENT),
        ([("10", 40), ("20", 20)], FailureReason.INCONSISTENT),
        ([("0", 40), ("0", 20)], FailureReason.INCONSISTENT),
        ([("0", 20), ("100", 40)], FailureReason.INCONSISTENT),
        ([("0", 40), ("-5", 20)], FailureReason.OUT_OF_RANGE),
        ([("0", 0)], FailureReason.OUT_OF_RANGE),
        ([("0", "NaN")], FailureReason.NOT_A_NUMBER),
        ([("0", 50)], FailureReason.INCONSISTENT),
    ],
)
def test_a_margin_table_that_cannot_be(tiers: list[tuple[str, Any]], reason: FailureReason) -> None:
    table = [[60, {"marginTiers": [{"lowerBound": low, "maxLeverage": leverage} for low, leverage in tiers]}]]
    universe = [{"name": "BTC", "maxLeverage": 40, "marginTableId": 60}, {"name": "ETH", "maxLeverage": 25}]
    result = normalized(meta_payload(universe, table), perp_payload())
    assert {f.reason for f in failures_of(result, None)} == {reason}
    assert [f.reason for f in failures_of(result, CROSS)] == [reason]
    assert rows_of(result, "margin_tiers", market="hyperliquid:BTC") == []
    assert rows_of(result, "margin_tiers", market="hyperliquid:ETH", rule_set="hyperliquid:perp") != []


def test_the_parameter_file_holds_what_it_selects() -> None:
    for key, entry in PARAMETERS["dated"].items():
        for owner in ("", "someone"):
            result = normalized(perp_payload(account=owner or "x"), parameters={**PARAMETERS, "selected": key})
            assert only(result, "accounts", account_id=f"hyperliquid:{owner or 'x'}:cross")
        assert entry["as_of"]
        assert entry["source"]
    assert set(PARAMETERS["selected_by_owner"].values()) | {PARAMETERS["selected"]} <= set(PARAMETERS["dated"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"selected": "docs-2062", "dated": {"docs-2026": {}}}, "did you mean 'docs-2026'"),
        ({"selected": "a", "dated": {"a": {"source": "s"}}}, "as_of"),
        ({"selected": "a", "dated": {"a": {"as_of": "1", "source": "s"}}}, "states_max_leverage"),
        (
            {"selected": "a", "dated": {"a": {"as_of": "1", "source": "s", "markets": {"BTC": {"margin_table": "x"}}}}},
            "no margin table 'x'",
        ),
        (
            {
                "selected": "a",
                "dated": {"a": {"as_of": "1", "source": "s", "margin_tables": {"1": [{"lowerBound": "0"}]}}},
            },
            "maxLeverage",
        ),
        ({"tokens": {"usdh": "USDH"}}, "tokens"),
    ],
)
def test_a_parameter_file_that_cannot_be(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        normalized(perp_payload(), parameters=parameters)


# ---------------------------------------------------------------------------------------------------------------------
# What can be wrong


def at(*path: Any, value: Any) -> Callable[[Any], None]:
    """A change that sets the member at `path`; deletes it for the value `...`."""

    def change(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        if value is ...:
            del body[path[-1]]
        else:
            body[path[-1]] = value

    return change


def position(number: int, *path: Any, value: Any) -> Callable[[Any], None]:
    return at("assetPositions", number, "position", *path, value=value)


BAD_ACCOUNTS = [
    (position(0, "szi", value=...), FailureReason.MISSING_FIELD, "assetPositions[0].position.szi", CROSS),
    (position(0, "szi", value="NaN"), FailureReason.NOT_A_NUMBER, "assetPositions[0].position.szi", CROSS),
    (position(0, "entryPx", value=...), FailureReason.MISSING_FIELD, "assetPositions[0].position.entryPx", CROSS),
    (position(0, "entryPx", value="-1"), FailureReason.OUT_OF_RANGE, "assetPositions[0].position.entryPx", CROSS),
    (
        position(0, "positionValue", value="0"),
        FailureReason.OUT_OF_RANGE,
        "assetPositions[0].position.positionValue",
        CROSS,
    ),
    (
        position(0, "positionValue", value="many"),
        FailureReason.NOT_A_NUMBER,
        "assetPositions[0].position.positionValue",
        CROSS,
    ),
    (
        position(0, "leverage", "value", value="0"),
        FailureReason.OUT_OF_RANGE,
        "assetPositions[0].position.leverage.value",
        CROSS,
    ),
    (
        position(0, "leverage", "type", value="portfolio"),
        FailureReason.UNSUPPORTED,
        "assetPositions[0].position.leverage.type",
        CROSS,
    ),
    (
        position(0, "maxLeverage", value="-3"),
        FailureReason.OUT_OF_RANGE,
        "assetPositions[0].position.maxLeverage",
        CROSS,
    ),
    (
        position(0, "liquidationPx", value="-3"),
        FailureReason.OUT_OF_RANGE,
        "assetPositions[0].position.liquidationPx",
        CROSS,
    ),
    (position(0, "coin", value="LUNA"), FailureReason.UNKNOWN_MARKET, "assetPositions[0].position.coin", CROSS),
    (position(0, "coin", value="HPOS"), FailureReason.UNKNOWN_MARKET, "assetPositions[0].position.coin", CROSS),
    (position(0, "coin", value="km:BTC"), FailureReason.INCONSISTENT, "assetPositions[0].position.coin", CROSS),
    (position(0, "coin", value=["BTC"]), FailureReason.MALFORMED, "assetPositions[0].position.coin", CROSS),
    (position(0, "coin", value="ETH"), FailureReason.DUPLICATE, "assetPositions[0].position", CROSS),
    (position(2, "szi", value="1e30"), FailureReason.OUT_OF_RANGE, "assetPositions[2].position.szi", SOL),
    (
        position(2, "leverage", "rawUsd", value=...),
        FailureReason.MISSING_FIELD,
        "assetPositions[2].position.leverage.rawUsd",
        SOL,
    ),
    (position(2, "marginUsed", value="727"), FailureReason.INCONSISTENT, "assetPositions[2].position.marginUsed", SOL),
    (at("assetPositions", 0, "type", value="hedge"), FailureReason.UNSUPPORTED, "assetPositions[0].type", CROSS),
    (at("assetPositions", 0, value="BTC"), FailureReason.MALFORMED, "assetPositions[0]", CROSS),
    (at("assetPositions", value=...), FailureReason.MISSING_FIELD, "assetPositions", CROSS),
    (at("assetPositions", value={}), FailureReason.MALFORMED, "assetPositions", CROSS),
    (at("assetPositions", value=[]), FailureReason.INCONSISTENT, "crossMarginSummary.totalNtlPos", CROSS),
    (at("crossMarginSummary", value=...), FailureReason.MISSING_FIELD, "crossMarginSummary", CROSS),
    (
        at("crossMarginSummary", "totalRawUsd", value="25000.2"),
        FailureReason.INCONSISTENT,
        "crossMarginSummary.accountValue",
        CROSS,
    ),
    (
        at("crossMarginSummary", "totalMarginUsed", value="14166.4"),
        FailureReason.INCONSISTENT,
        "crossMarginSummary.totalMarginUsed",
        CROSS,
    ),
    (
        at("crossMarginSummary", "totalNtlPos", value="-1"),
        FailureReason.OUT_OF_RANGE,
        "crossMarginSummary.totalNtlPos",
        CROSS,
    ),
    (at("crossMaintenanceMarginUsed", value="x"), FailureReason.NOT_A_NUMBER, "crossMaintenanceMarginUsed", CROSS),
    (at("marginSummary", "totalRawUsd", value="31480"), FailureReason.INCONSISTENT, "marginSummary.totalRawUsd", CROSS),
    (at("marginSummary", "accountValue", value="1"), FailureReason.INCONSISTENT, "marginSummary.accountValue", CROSS),
    (at("time", value="2024-06-25 14:00"), FailureReason.MALFORMED, "time", CROSS),
    (at("time", value=10**18), FailureReason.OUT_OF_RANGE, "time", CROSS),
]


@pytest.mark.parametrize(("change", "reason", "path", "account"), BAD_ACCOUNTS)
def test_a_bad_field_makes_its_account_incomplete_and_no_other(
    change: Callable[[Any], None], reason: FailureReason, path: str, account: str
) -> None:
    result = normalized(perp_payload(change), perp_payload(account="other"), fetched("meta_and_asset_ctxs.json"))
    assert result.failures
    found = failures_of(result, account)
    assert len(found) == len(result.failures), result.failures
    assert (found[0].reason, found[0].path, found[0].payload) == (reason, path, "clearinghouse_state.json")
    assert found[0].venue == "hyperliquid"
    only(result, "accounts", account_id=account)  # reports can still show it
    assert abs(equity_of(result, "hyperliquid:other:cross") - Decimal("24887.123456")) < EQUITY_TOLERANCE
    if account == SOL:  # the cross account is complete without the isolated one
        assert abs(equity_of(result, CROSS) - Decimal("24887.123456")) < EQUITY_TOLERANCE


def test_a_delisted_coin_makes_its_holder_incomplete() -> None:
    markets = changed(fetched("meta_and_asset_ctxs.json"), at(0, "universe", 2, "isDelisted", value=True))
    result = normalized(perp_payload(), markets)
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.UNKNOWN_MARKET, SOL)]
    assert "delisted" in result.failures[0].message
    assert rows_of(result, "instruments", symbol="SOL") == rows_of(result, "marks", subject="hyperliquid:SOL") == []


def test_a_body_that_is_no_object_leaves_an_empty_account() -> None:
    result = normalized(replace(perp_payload(), body=None))
    assert {f.account_id for f in result.failures} == {CROSS}
    assert only(result, "accounts", account_id=CROSS)["reported_equity"] is None


def test_rounding_of_the_venue_is_no_contradiction() -> None:
    within = at("crossMarginSummary", "totalMarginUsed", value="14166.499998")
    beyond = at("crossMarginSummary", "totalMarginUsed", value="14166.499996")
    spared = lambda change: perp_payload(lambda body: (change(body), body.pop("marginSummary"))[0])  # noqa: E731
    assert normalized(spared(within)).failures == []
    assert [f.reason for f in normalized(spared(beyond)).failures] == [FailureReason.INCONSISTENT]


def test_a_truncated_file_is_malformed(tmp_path: Path) -> None:
    text = (PAYLOADS / "clearinghouse_state.json").read_text(encoding="utf-8")
    (tmp_path / "cut.json").write_text(text[: len(text) // 2], encoding="utf-8")
    failure = RecordedTransport(tmp_path).fetch("hyperliquid", PayloadRequest(PERP, "cut.json", "desk"))
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.subject) == (FailureReason.MALFORMED, "desk")


@pytest.mark.parametrize(
    ("file", "account"), [("clearinghouse_state.json", CROSS), ("spot_clearinghouse_state.json", WALLET)]
)
def test_two_payloads_of_one_account_are_both_rejected(file: str, account: str) -> None:
    payload = fetched(file, account="desk")
    result = normalized(payload, replace(payload, name="again.json"))
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.DUPLICATE, account)] * 2
    assert {f.payload for f in result.failures} == {file, "again.json"}
    assert only(result, "accounts", account_id=account)["reported_equity"] is None
    assert rows_of(result, "positions") == rows_of(result, "balances") == []


def test_two_market_payloads_of_one_request_are_both_rejected() -> None:
    payload = fetched("meta_and_asset_ctxs.json")
    result = normalized(payload, replace(payload, name="again.json"))
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.DUPLICATE, None)] * 2
    assert all(table.num_rows == 0 for table in result.batches.values())


def test_accounts_of_one_owner_on_two_dexes_are_no_duplicates() -> None:
    empty = changed(fetched("clearinghouse_state_km.json", account="desk"), at("assetPositions", value=[]))
    zero = {"accountValue": "0.0", "totalNtlPos": "0.0", "totalRawUsd": "0.0", "totalMarginUsed": "0.0"}
    empty = changed(empty, lambda body: body.update(marginSummary=zero, crossMarginSummary=zero))
    named = replace(empty, request="clearinghouseState:km")
    rest = [fetched("all_perp_metas.json"), fetched("spot_meta.json")]
    assert normalized(perp_payload(), named, *rest).failures == []
    # without positions nothing but the request tells the dexes apart
    both_empty = [replace(empty, name="one.json"), replace(empty, name="two.json")]
    assert {f.reason for f in normalized(*both_empty, *rest).failures} == {FailureReason.DUPLICATE}


@pytest.mark.parametrize(
    ("payloads", "reason", "message"),
    [
        (
            ["clearinghouse_state_km.json"],
            FailureReason.MISSING_PARAMETER,
            "no market payload states its collateralToken",
        ),
        (
            ["clearinghouse_state_km.json", "all_perp_metas.json"],
            FailureReason.MISSING_PARAMETER,
            "nothing names token 360",
        ),
    ],
)
def test_collateral_that_nothing_names(payloads: list[str], reason: FailureReason, message: str) -> None:
    account = "hyperliquid:desk:cross:km"
    result = normalized(
        *(fetched(file, account="desk" if file.startswith("clearing") else "") for file in payloads), parameters={}
    )
    assert result.failures
    assert all((f.reason, f.account_id) == (reason, account) and message in f.message for f in result.failures)
    only(result, "accounts", account_id=account)
    assert rows_of(result, "balances") == rows_of(result, "positions") == []


def test_collateral_that_the_asset_book_does_not_know() -> None:
    book = AssetBook({symbol: asset for symbol, asset in ASSETS.assets.items() if symbol != "USDH"})
    result = ADAPTER.normalize(desk(), Context(book, PARAMETERS))
    assert {(f.reason, f.account_id) for f in result.failures} == {
        (FailureReason.UNKNOWN_ASSET, "hyperliquid:desk:cross:km")
    }


@pytest.mark.parametrize(
    ("change", "reason", "path"),
    [
        (at(1, 0, "markPx", value="-1"), FailureReason.OUT_OF_RANGE, "[1][0].markPx"),
        (at(1, 0, "oraclePx", value="NaN"), FailureReason.NOT_A_NUMBER, "[1][0].oraclePx"),
        (at(1, 0, "openInterest", value=...), FailureReason.MISSING_FIELD, "[1][0].openInterest"),
        (at(0, "universe", 0, "maxLeverage", value=0), FailureReason.OUT_OF_RANGE, "[0].universe[0]"),
        (at(0, "universe", 0, "name", value=...), FailureReason.MISSING_FIELD, "[0].universe[0].name"),
        (at(0, "collateralToken", value="USDC"), FailureReason.NOT_A_NUMBER, "[0].collateralToken"),
        (at(0, "universe", 6, "isDelisted", value="yes"), FailureReason.MALFORMED, "[0].universe[6].isDelisted"),
        (at(0, "universe", 1, "name", value="BTC"), FailureReason.DUPLICATE, "[0].universe[1]"),
    ],
)
def test_a_bad_market_row_concerns_no_account_that_does_not_hold_it(
    change: Callable[[Any], None], reason: FailureReason, path: str
) -> None:
    result = normalized(changed(fetched("meta_and_asset_ctxs.json"), change))
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [(reason, path, None)]
    assert only(result, "marks", subject="hyperliquid:SOL", field="mark")["value"] == 143.85
    if path.startswith("[1][0]"):
        assert rows_of(result, "marks", subject="hyperliquid:BTC") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body[1].pop(), FailureReason.INCONSISTENT),
        (lambda body: body[0]["universe"].pop(0), FailureReason.INCONSISTENT),
        (lambda body: body.pop(), FailureReason.MALFORMED),
        (lambda body: body[0].pop("universe"), FailureReason.MISSING_FIELD),
    ],
)
def test_markets_and_contexts_must_match(change: Callable[[Any], Any], reason: FailureReason) -> None:
    result = normalized(changed(fetched("meta_and_asset_ctxs.json"), change))
    assert [(f.reason, f.account_id) for f in result.failures] == [(reason, None)]
    assert rows_of(result, "marks") == rows_of(result, "margin_tiers") == []


@pytest.mark.parametrize(
    ("change", "reason", "path"),
    [
        (at("balances", value=...), FailureReason.MISSING_FIELD, "balances"),
        (at("balances", 1, "total", value="-1"), FailureReason.OUT_OF_RANGE, "balances[1].total"),
        (at("balances", 1, "total", value="Infinity"), FailureReason.NOT_A_NUMBER, "balances[1].total"),
        (at("balances", 1, "hold", value="400"), FailureReason.OUT_OF_RANGE, "balances[1].hold"),
        (at("balances", 1, "coin", value=["HYPE"]), FailureReason.MALFORMED, "balances[1].coin"),
        (at("balances", 1, "coin", value="+10"), FailureReason.INCONSISTENT, "balances[1].coin"),
        (at("balances", 1, "token", value=9999), FailureReason.INCONSISTENT, "balances[1].coin"),
        (at("balances", 1, value={"coin": "PIP", "total": "1"}), FailureReason.UNKNOWN_ASSET, "balances[1].coin"),
        (at("balances", 1, value={"coin": "USDC", "total": "1"}), FailureReason.DUPLICATE, "balances[0]"),
    ],
)
def test_a_bad_balance_makes_the_wallet_incomplete(
    change: Callable[[Any], None], reason: FailureReason, path: str
) -> None:
    wallet = changed(fetched("spot_clearinghouse_state.json", account="desk"), change)
    result = normalized(wallet, perp_payload(), fetched("spot_meta.json"))
    assert {f.account_id for f in result.failures} == {WALLET}
    assert (result.failures[0].reason, result.failures[0].path) == (reason, path)
    only(result, "accounts", account_id=WALLET)


def test_requests_and_owners_that_are_not_there() -> None:
    unknown = replace(perp_payload(), request="userFills")
    nobody = replace(perp_payload(), account="")
    result = normalized(unknown, nobody)
    assert {(f.reason, f.path) for f in result.failures} == {
        (FailureReason.UNSUPPORTED, "request"),
        (FailureReason.MISSING_FIELD, "account"),
    }
    assert all(table.num_rows == 0 for table in result.batches.values())


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics


def tier_strategy() -> st.SearchStrategy[list[MarginTier]]:
    bounds = st.lists(st.integers(1, 10**9), max_size=4, unique=True).map(sorted)
    leverages = st.lists(st.integers(1, 50), min_size=5, max_size=5, unique=True).map(lambda x: sorted(x, reverse=True))
    return st.builds(
        lambda low, high: [MarginTier(Fraction(b), Fraction(v)) for b, v in zip([0, *low], high, strict=False)],
        bounds,
        leverages,
    )


def integrated_margin(notional: Fraction, tiers: list[MarginTier]) -> Fraction:
    """The slow twin: the area under the rates, slice by slice, without deductions."""
    ends = [tier.lower_bound for tier in tiers[1:]] + [None]
    total = Fraction(0)
    for tier, end in zip(tiers, ends, strict=True):
        top = notional if end is None else min(notional, end)
        total += max(top - tier.lower_bound, Fraction(0)) / tier.max_leverage / 2
    return total


@given(tiers=tier_strategy(), notional=st.integers(0, 3 * 10**9))
def test_maintenance_margin_is_the_integral_of_its_rates(tiers: list[MarginTier], notional: int) -> None:
    exact = integrated_margin(Fraction(notional), tiers)
    assert mechanics.maintenance_margin(notional, tiers) == exact
    assert mechanics.maintenance_margin(-notional, list(reversed(tiers))) == exact


@given(
    tiers=tier_strategy(),
    side=st.sampled_from([1, -1]),
    price=st.integers(1, 10**6),
    size=st.fractions(Fraction(1, 1000), 10**4, max_denominator=1000),
    equity=st.integers(-(10**9), 10**10),
)
def test_at_the_liquidation_price_equity_is_maintenance_margin(
    tiers: list[MarginTier], side: int, price: int, size: Fraction, equity: int
) -> None:
    def excess(at_price: Fraction) -> Fraction:
        return equity + side * size * (at_price - price) - integrated_margin(size * at_price, tiers)

    found = mechanics.liquidation_price(side, price, size=size, equity=equity, tiers=tiers)
    if found is None:
        # a long loses at most its notional; equity less maintenance falls with the price for it and rises for a short
        assert excess(Fraction(0)) * side >= 0
    else:
        assert found > 0
        assert excess(found) == 0


def test_one_tier_is_the_documented_formula() -> None:
    # 1.2 BTC long at 62 480, 5 000 of isolated margin, 40x: l = 1/80
    available = 5000 - 1.2 * 62480 / 80
    expected = 62480 - available / 1.2 / (1 - 1 / 80)
    tiers = mechanics.single_tier(40)
    found = mechanics.liquidation_price(1, 62480, size=Decimal("1.2"), equity=5000, tiers=tiers)
    assert found is not None
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_the_tier_at_the_liquidation_price_decides() -> None:
    # 200 M long at 40x/20x: today's tier is the second, at the liquidation price the first
    tiers = [MarginTier(Fraction(0), Fraction(40)), MarginTier(Fraction(150_000_000), Fraction(20))]
    found = mechanics.liquidation_price(1, 50_000, size=4000, equity=60_000_000, tiers=tiers)
    # 60e6 + 4000 (p - 50000) = 4000 p / 80
    assert found == Fraction(140_000_000, 3950)
    assert 4000 * found < 150_000_000


def test_desk_liquidation_prices_follow_from_the_payload() -> None:
    body = perp_payload().body
    held = {e["position"]["coin"]: e["position"] for e in body["assetPositions"]}
    value, maintenance = (
        Fraction(body["crossMarginSummary"]["accountValue"]),
        Fraction(body["crossMaintenanceMarginUsed"]),
    )
    for coin, p in held.items():
        size, notional = abs(Fraction(p["szi"])), Fraction(p["positionValue"])
        side, tiers = (1 if Fraction(p["szi"]) > 0 else -1), mechanics.single_tier(p["maxLeverage"])
        if coin == "SOL":
            equity = mechanics.isolated_margin(Fraction(p["leverage"]["rawUsd"]), side, notional)
        else:
            equity = value - (maintenance - mechanics.maintenance_margin(notional, tiers))
        found = mechanics.liquidation_price(side, notional / size, size=size, equity=equity, tiers=tiers)
        if p["liquidationPx"] is None:
            assert found is None
        else:
            assert found is not None
            assert abs(found - Fraction(p["liquidationPx"])) < PRICE_RELATIVE * found


def test_summary_of_an_empty_and_of_a_drained_account() -> None:
    summary, value = mechanics.cross_summary, Fraction("12.5")
    assert summary(value, []) == CrossSummary(value, Fraction(0), Fraction(0), value)
    drained = summary(-90, [SummedPosition(Fraction(1), Fraction(100), Fraction(5))])
    assert drained == CrossSummary(Fraction(10), Fraction(100), Fraction(20), Fraction(0))


@pytest.mark.parametrize("tiers", [[], [(0, 0)], [(0, -5)], [(0, 10), (0, 5)]])
def test_tiers_that_cannot_be(tiers: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="tier"):
        mechanics.tier_table([MarginTier(Fraction(low), Fraction(leverage)) for low, leverage in tiers])


def test_liquidation_steps() -> None:
    assert not mechanics.is_liquidatable(100, 100)
    assert mechanics.is_liquidatable(Decimal("99.999999"), 100)
    assert not mechanics.is_backstop_liquidated(Fraction(200, 3), 100)
    assert mechanics.is_backstop_liquidated(66, 100)
    assert mechanics.liquidation_order_size(2, 50_000) == 2  # exactly 100 000 is not larger
    assert mechanics.liquidation_order_size(-3, 50_000) == Fraction(3, 5)
    assert mechanics.liquidation_order_size(3, 50_000, in_cooldown=True) == 3
    assert mechanics.transfer_margin_required(50, 1000) == 100
    assert mechanics.transfer_margin_required(500, 1000) == 500


# ---------------------------------------------------------------------------------------------------------------------
# Recorded payloads


@pytest.fixture(scope="module")
def recorded_payloads(recorded: Path) -> Path:
    return recorded / "payloads" / "hyperliquid"


def test_the_recorded_account_of_2023(recorded_payloads: Path) -> None:
    payload = fetched("clearinghouse_state_2023.json", PERP, "recorded-2023", root=recorded_payloads)
    account = "hyperliquid:recorded-2023:cross"
    result = normalized(payload)
    assert result.failures == []
    assert len(rows_of(result, "positions", account_id=account)) == 12
    assert abs(equity_of(result, account) - Decimal("1182.312496")) < EQUITY_TOLERANCE
    assert abs(maintenance_of(result, account) - Decimal("34.34815334")) < EQUITY_TOLERANCE

    # no source of tiers under another label: the dated parameters of another time are not taken
    other = normalized(replace(payload, account="desk"))
    assert {(f.reason, f.account_id) for f in other.failures} == {(FailureReason.MISSING_PARAMETER, CROSS)}
    chosen = normalized(replace(payload, account="desk"), parameters={**PARAMETERS, "selected": "recorded-2023"})
    assert chosen.failures == []


def test_the_liquidation_prices_of_2023(recorded_payloads: Path) -> None:
    body = fetched("clearinghouse_state_2023.json", PERP, "x", root=recorded_payloads).body
    entries = [entry["position"] for entry in body["assetPositions"]]
    held = [
        SummedPosition(Fraction(p["szi"]), Fraction(p["positionValue"]), Fraction(p["leverage"]["value"]))
        for p in entries
    ]
    raw_usd = Fraction(body["crossMarginSummary"]["totalRawUsd"])
    for number, p in enumerate(entries):
        found = mechanics.liquidation_price_2023(number, raw_usd, positions=held, max_leverages=[50] * len(held))
        if p["liquidationPx"] is None:
            assert found is None
        else:
            assert found is not None
            assert abs(found - Fraction(p["liquidationPx"])) < 10 * PRICE_RELATIVE * found


@pytest.mark.parametrize("file", ["clearinghouse_state_2025_isolated.json", "clearinghouse_state_isolated.json"])
def test_the_recorded_isolated_position_of_2025(recorded_payloads: Path, file: str) -> None:
    result = normalized(fetched(file, PERP, "desk", root=recorded_payloads))
    assert result.failures == []
    account = "hyperliquid:desk:isolated:HYPE"
    row = only(result, "accounts", account_id=account)
    assert (row["reported_equity"], row["parent_account_id"]) == (Decimal("7.525754"), CROSS)
    assert abs(equity_of(result, account) - Decimal("7.525754")) < EQUITY_TOLERANCE
    assert abs(equity_of(result, CROSS) - Decimal("75.781884")) < EQUITY_TOLERANCE
    assert abs(maintenance_of(result, account) - Decimal("3.7826")) < EQUITY_TOLERANCE
    held = only(result, "positions", account_id=account)
    equity, price = Fraction("7.525754"), Fraction("37.826")
    found = mechanics.liquidation_price(1, price, size=2, equity=equity, tiers=mechanics.single_tier(10))
    assert found is not None
    assert abs(found - Fraction(held["reported_liquidation_price"])) < PRICE_RELATIVE * found


def test_the_recorded_summary_without_positions_is_inconsistent(recorded_payloads: Path) -> None:
    result = normalized(fetched("clearinghouse_state_summary_only.json", PERP, "desk", root=recorded_payloads))
    assert [(f.reason, f.account_id, f.path) for f in result.failures] == [
        (FailureReason.INCONSISTENT, CROSS, "crossMarginSummary.totalNtlPos")
    ]
    assert only(result, "accounts", account_id=CROSS)["reported_equity"] == Decimal("1736.030875")
    assert rows_of(result, "balances") == []


@pytest.mark.parametrize(
    ("file", "request_name", "coins"),
    [
        ("meta_sample.json", "meta", {"BTC", "ETH", "ATOM"}),
        ("meta_perp_sample.json", "meta", {"BTC", "ETH", "ATOM"}),
        ("meta_flags.json", "meta", {"BTC", "ETH"}),
        ("meta_margin_tables_constructed.json", "meta", {"BTC", "DYDX"}),
        ("meta_and_asset_ctxs.json", "metaAndAssetCtxs", {"BTC", "ETH"}),
    ],
)
def test_recorded_market_payloads(recorded_payloads: Path, file: str, request_name: str, coins: set[str]) -> None:
    result = normalized(fetched(file, request_name, root=recorded_payloads))
    assert result.failures == []
    assert {row["symbol"] for row in rows_of(result, "instruments")} == coins
    assert {row["market"] for row in rows_of(result, "margin_tiers")} == {f"hyperliquid:{coin}" for coin in coins}
    prices = rows_of(result, "marks", field="mark")
    assert len(prices) == (len(coins) if request_name == CONTEXTS else 0)


def test_recorded_builder_dexes_and_wallets(recorded_payloads: Path) -> None:
    metas = normalized(fetched("all_perp_metas_collateral_tokens.json", "allPerpMetas", root=recorded_payloads))
    assert metas.failures == []
    # km:US500 has an underlying and hyna:BTC a collateral (USDE) that the asset book of this suite does not know
    assert {row["symbol"] for row in rows_of(metas, "instruments")} == {"BTC"}

    small = normalized(fetched("spot_balances.json", SPOT, "desk", root=recorded_payloads))
    assert small.failures == []
    assert only(small, "balances", asset_id="HYPE")["quantity"] == Decimal("0.00959057")
    large = normalized(fetched("spot_clearinghouse_state.json", SPOT, "desk", root=recorded_payloads))
    assert {(f.reason, f.path, f.account_id) for f in large.failures} == {
        (FailureReason.UNKNOWN_ASSET, "balances[1].coin", WALLET),
        (FailureReason.UNKNOWN_ASSET, "balances[3].coin", WALLET),
    }
    assert {row["asset_id"] for row in rows_of(large, "balances")} == {"USDC", "HYPE"}


# ---------------------------------------------------------------------------------------------------------------------
# Open orders, settings in one coin, margin tables by id: the sample of 2024-06-30


JUNE = "hyperliquid:june:cross"
JUNE_SOL, JUNE_LAB, JUNE_SPOT = "hyperliquid:june:isolated:SOL", "hyperliquid:june:cross:lab", "hyperliquid:june:spot"
JUNE_AS_OF = datetime(2024, 6, 30, tzinfo=UTC)


def june() -> dict[str, Payload]:
    """The sample by file name without prefix and suffix."""
    return {
        file.removeprefix("june_").removesuffix(".json"): fetched(file, request, owner)
        for request, file, owner in SAMPLE
    }


def june_with(file: str, change: Callable[[Any], Any], *, without: tuple[str, ...] = ()) -> Normalized:
    payloads = {name: payload for name, payload in june().items() if name not in without}
    payloads[file] = changed(payloads[file], change)
    return normalized(*payloads.values())


def test_the_sample_is_read_whole_and_of_one_instant() -> None:
    result = normalized(*june().values())
    assert result.failures == []
    accounts = {row["account_id"]: row for row in rows_of(result, "accounts")}
    assert accounts.keys() == {JUNE, JUNE_SOL, JUNE_LAB, JUNE_SPOT}
    assert {row["received_at"] for row in accounts.values()} == {JUNE_AS_OF}
    assert FACTS.title == "Hyperliquid"
    reordered = normalized(*list(june().values())[::-1])
    assert as_json(reordered.batches) == as_json(result.batches)


def test_the_engine_reproduces_the_venues_figures() -> None:
    result = normalized(*june().values())
    snapshot = take_snapshot([result.batches], result.failures, as_of=JUNE_AS_OF)
    assert snapshot.failures == ()
    book, _ = pack_book({"": snapshot}, {"all": ["hyperliquid:june"]}, as_of=JUNE_AS_OF)
    [native] = native_today(book)
    assert native is not None
    seen = set()
    for i, info in enumerate(book.portfolios[0].accounts):
        names = ("reported_equity", "reported_initial_margin", "reported_maintenance_margin")
        for name, ours in zip(names, (native.equity[i], native.initial[i], native.maintenance[i]), strict=True):
            reported = info.reported[name]
            if reported is not None:
                # The venue truncates every position's figure to 6 decimals.
                assert float(ours) == pytest.approx(reported, rel=1e-9, abs=4e-6), (info.account_id, name)
                seen.add((info.account_id, name))
    assert len(seen) == 7


def test_open_orders_stand_with_the_account_that_holds_their_coin() -> None:
    result = normalized(*june().values())
    orders = {row["order_id"]: row for row in rows_of(result, "open_orders")}
    assert {number: row["account_id"] for number, row in orders.items()} == {
        "91490942": JUNE,
        "91490943": JUNE,
        "91490944": JUNE_SOL,
        "91490945": JUNE_SPOT,
    }
    first = orders["91490942"]
    assert (first["side"], first["remaining_quantity"], first["limit_price"]) == ("buy", Decimal("0.3"), Decimal(60100))
    # What only reduces is said by the fuller list alone; the trigger order that it adds does not rest.
    assert [row["reduce_only"] for row in orders.values()] == [False, True, True, False]
    pair = only(result, "instruments", instrument_id="hyperliquid:@107")
    assert (pair["kind"], pair["underlying"], pair["settlement_asset"]) == ("spot", "HYPE", "USDC")


def test_orders_change_no_requirement() -> None:
    orders = ("open_orders", "frontend_open_orders")
    without = normalized(*(payload for name, payload in june().items() if name not in orders))
    whole = normalized(*june().values())
    for table in ("accounts", "positions", "rule_sets", "margin_tiers", "balances"):
        assert rows_of(without, table) == rows_of(whole, table)
    assert rows_of(without, "open_orders") == []


BAD_ORDERS = [
    (lambda b: b[0].pop("coin"), FailureReason.MISSING_FIELD, "[0].coin"),
    (lambda b: b[0].update(coin="NOSUCH"), FailureReason.UNKNOWN_MARKET, "[0].coin"),
    (lambda b: b[0].update(coin="@999"), FailureReason.UNKNOWN_MARKET, "[0].coin"),
    (lambda b: b[0].update(sz="much"), FailureReason.NOT_A_NUMBER, "[0].sz"),
    (lambda b: b[0].update(sz="-1"), FailureReason.OUT_OF_RANGE, "[0].sz"),
    (lambda b: b[0].update(limitPx="0"), FailureReason.OUT_OF_RANGE, "[0].limitPx"),
    (lambda b: b[0].update(side="buy"), FailureReason.MALFORMED, "[0].side"),
    (lambda b: b[0].update(oid=None), FailureReason.MISSING_FIELD, "[0].oid"),
    (lambda b: b[0].update(oid=True), FailureReason.MALFORMED, "[0].oid"),
    (lambda b: b[0].update(reduceOnly="no"), FailureReason.MALFORMED, "[0].reduceOnly"),
    (lambda b: b.append(b[1]), FailureReason.DUPLICATE, "[4]"),
    (lambda b: b.__setitem__(3, 7), FailureReason.MALFORMED, "[3]"),
]


@pytest.mark.parametrize(("change", "reason", "path"), BAD_ORDERS)
def test_an_order_that_cannot_be_read_is_a_finding(
    change: Callable[[Any], Any], reason: FailureReason, path: str
) -> None:
    result = june_with("open_orders", change, without=("frontend_open_orders",))
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [(reason, path, None)]
    assert len(rows_of(result, "open_orders")) == 3


def test_two_lists_that_contradict_each_other_and_orders_without_account() -> None:
    result = june_with("open_orders", lambda b: b[0].update(sz="0.4"))
    assert [f.reason for f in result.failures] == [FailureReason.DUPLICATE]
    assert "91490942" not in {row["order_id"] for row in rows_of(result, "open_orders")}
    result = june_with("open_orders", lambda b: None, without=("clearinghouse_state", "frontend_open_orders"))
    assert {f.reason for f in result.failures} == {FailureReason.MISSING_FIELD}
    assert [row["account_id"] for row in rows_of(result, "open_orders")] == [JUNE_SPOT]
    body = replace(june()["open_orders"], body={"orders": []})
    assert [f.reason for f in normalized(body).failures] == [FailureReason.MALFORMED]


def test_an_active_asset_confirms_the_leverage_and_gives_a_mark() -> None:
    result = normalized(*june().values())
    assert only(result, "marks", account_id=None, subject="hyperliquid:lab:BTC", field="mark")["value"] == 60980.0
    wrong = june_with("active_asset_data_btc", lambda b: b["leverage"].update(value=5))
    assert [(f.reason, f.account_id) for f in wrong.failures] == [(FailureReason.INCONSISTENT, JUNE)]
    isolated = june_with("active_asset_data_btc", lambda b: b["leverage"].update(type="isolated"))
    assert [(f.reason, f.account_id) for f in isolated.failures] == [(FailureReason.INCONSISTENT, JUNE)]
    for change in (lambda b: b.update(markPx="x"), lambda b: b.pop("leverage"), lambda b: b.update(coin="NOSUCH")):
        assert [f.account_id for f in june_with("active_asset_data_btc", change).failures] == [None]


def test_a_margin_table_asked_by_its_id() -> None:
    """BTC's table is in no meta payload of the sample: it comes from marginTable:56."""
    result = normalized(*june().values())
    tiers = rows_of(result, "margin_tiers", rule_set="hyperliquid:perp", market="hyperliquid:BTC")
    assert [row["notional_floor"] for row in tiers] == [0, 150_000_000]
    other = june_with("margin_table_56", lambda b: b["marginTiers"][0].update(maxLeverage=50))
    assert JUNE in {f.account_id for f in other.failures}  # the market says 40x
    broken = june_with("margin_table_56", lambda b: b["marginTiers"].pop(0))
    assert {f.account_id for f in broken.failures} == {None, JUNE}
    nameless = replace(june()["margin_table_56"], request="marginTable")
    assert FailureReason.MISSING_FIELD in {f.reason for f in normalized(nameless).failures}
    twice = normalized(*june().values(), replace(june()["margin_table_56"], name="again"))
    assert FailureReason.DUPLICATE in {f.reason for f in twice.failures}

    def listed_otherwise(body: Any) -> None:
        body[0]["marginTables"].append([56, {"marginTiers": [{"lowerBound": "0.0", "maxLeverage": 40}]}])

    clash = june_with("meta_and_asset_ctxs", listed_otherwise)
    assert FailureReason.INCONSISTENT in {f.reason for f in clash.failures}


# ---------------------------------------------------------------------------------------------------------------------
# Properties of generated accounts


@st.composite
def cross_books(draw: Any) -> tuple[Fraction, list[SummedPosition], list[list[MarginTier]]]:
    tiers = draw(st.lists(tier_strategy(), min_size=1, max_size=4))
    positions = []
    for table in tiers:
        size = draw(st.fractions(Fraction(1, 100), 1000, max_denominator=100)) * draw(st.sampled_from([1, -1]))
        price = draw(st.integers(1, 10**5))
        leverage = draw(st.integers(1, int(table[0].max_leverage)))
        positions.append(SummedPosition(size, abs(size) * price, Fraction(leverage)))
    return Fraction(draw(st.integers(-(10**8), 10**8))), positions, tiers


@settings(max_examples=80)
@given(book=cross_books(), factor=st.fractions(1, 5, max_denominator=10))
def test_a_cross_account_is_additive_ordered_and_monotone(
    book: tuple[Fraction, list[SummedPosition], list[list[MarginTier]]], factor: Fraction
) -> None:
    raw, positions, tiers = book
    summary = mechanics.cross_summary(raw, positions)
    # The order of rows, and one position in two fills, change nothing.
    assert mechanics.cross_summary(raw, positions[::-1]) == summary
    halves = [half for p in positions for half in (SummedPosition(p.szi / 2, p.position_value / 2, p.leverage),) * 2]
    assert mechanics.cross_summary(raw, halves) == summary
    assert summary.withdrawable == max(0, summary.account_value - summary.total_margin_used)
    scaled = [SummedPosition(p.szi * factor, p.position_value * factor, p.leverage) for p in positions]
    assert mechanics.cross_summary(raw * factor, scaled).account_value == summary.account_value * factor
    for held, table in zip(positions, tiers, strict=True):
        maintenance = mechanics.maintenance_margin(held.position_value, table)
        # More notional never needs less, and never less in proportion: the rates of the tiers rise.
        assert mechanics.maintenance_margin(held.position_value * factor, table) >= maintenance * factor >= maintenance
        # The chosen leverage is at most the first tier's: initial covers twice the maintenance within that tier.
        if len(table) == 1:
            assert held.position_value / held.leverage >= 2 * maintenance


@settings(max_examples=60)
@given(
    size=st.fractions(Fraction(1, 100), 1000, max_denominator=100),
    price=st.integers(1, 10**5),
    leverage=st.integers(1, 50),
)
def test_liquidation_orders_never_exceed_the_position(size: Fraction, price: int, leverage: int) -> None:
    for cooldown in (False, True):
        closed = mechanics.liquidation_order_size(size, price, in_cooldown=cooldown)
        assert 0 < closed <= size
    tiers = mechanics.single_tier(leverage)
    maintenance = mechanics.maintenance_margin(size * price, tiers)
    assert mechanics.is_liquidatable(maintenance - 1, maintenance)
    assert not mechanics.is_liquidatable(maintenance, maintenance)
    if mechanics.is_backstop_liquidated(maintenance - 1, maintenance):
        assert mechanics.is_liquidatable(maintenance - 1, maintenance)
