"""Hyperliquid: where margin tiers come from, and what holds where two sources differ."""

import json
from decimal import Decimal
from typing import Any

import pytest

from adapters.adapter import Normalized
from adapters.amounts import parse_json
from adapters.transport import Payload
from aggregator.errors import ConfigurationError, FailureReason
from tests.desk_hyperliquid import (
    CROSS,
    EQUITY_TOLERANCE,
    PARAMETERS,
    SOL,
    desk,
    maintenance_of,
    normalized,
    perp_payload,
)
from tests.normalized_rows import failures_of, only, rows_of
from tests.payload_files import changed


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


def test_a_market_without_the_id_of_its_table_where_tables_are_listed() -> None:
    def without_id(body: Any) -> None:
        for entry in body[0]["universe"]:
            if entry["name"] == "BTC":
                entry.pop("marginTableId")

    payloads = [changed(p, without_id) if p.request == "metaAndAssetCtxs" else p for p in desk()]
    result = normalized(*payloads)
    (finding,) = failures_of(result, None)
    assert (finding.reason, finding.subject) == (FailureReason.MISSING_FIELD, "BTC")
    assert "marginTableId" in finding.message
    assert [f.reason for f in failures_of(result, CROSS)] == [FailureReason.MISSING_FIELD]
    assert rows_of(result, "margin_tiers", market="hyperliquid:BTC") == []


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
    universe = [
        {"name": "BTC", "maxLeverage": 40, "marginTableId": 60},
        {"name": "ETH", "maxLeverage": 25, "marginTableId": 25},
    ]
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
