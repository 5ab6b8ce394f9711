"""GMX v2: every way for a payload to be wrong, and whom it concerns."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.asset_book import AssetBook
from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.rule_forms import Fixed, parse_parameters
from aggregator.snapshot import take_snapshot
from tests.desk_gmx_v2 import (
    ACCOUNTS,
    AS_OF,
    BTC_MARKET,
    BTC_SHORT,
    ETH_LONG,
    ETH_MARKET,
    ETH_SHORT,
    SOL_LONG,
    SOL_MARKET,
    SOL_SHORT,
    Change,
    desk,
    fetched,
    normalized,
    only_reason,
    usd,
    without,
)
from tests.normalized_rows import incomplete, only, rows_of
from tests.payload_files import put

WETH, USDC = f"0x{0xA1:040x}", f"0x{0xA2:040x}"
AT_ETH, AT_BTC = ("markets", ETH_MARKET), ("markets", BTC_MARKET)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("numbers", "sizeInUsd"), ..., FailureReason.MISSING_FIELD),
        (("numbers", "pendingImpactAmount"), ..., FailureReason.MISSING_FIELD),
        (("numbers", "sizeInTokens"), "12.5", FailureReason.NOT_A_NUMBER),
        (("numbers", "collateralAmount"), "NaN", FailureReason.NOT_A_NUMBER),
        (("numbers", "collateralAmount"), "-1", FailureReason.OUT_OF_RANGE),
        (("numbers", "collateralAmount"), str(2**256), FailureReason.OUT_OF_RANGE),
        (("numbers", "sizeInTokens"), "0", FailureReason.INCONSISTENT),
        (("numbers", "borrowingFactor"), True, FailureReason.NOT_A_NUMBER),
        (("flags", "isLong"), 1, FailureReason.MALFORMED),
        (("flags",), [], FailureReason.MISSING_FIELD),
        (("numbers",), ["1"], FailureReason.MALFORMED),
        (("addresses", "market"), "0x12", FailureReason.MALFORMED),
        (("addresses", "collateralToken"), None, FailureReason.MISSING_FIELD),
    ],
)
def test_an_unreadable_position_makes_the_owner_incomplete(
    path: tuple[Any, ...], value: Any, reason: FailureReason
) -> None:
    result = normalized(desk(put(1, *path, to=value), "getAccountPositions", "kestrel"))
    assert only_reason(result, "gmx_v2:kestrel") == reason
    assert next(f for f in result.failures if f.account_id).path.startswith("[1]")
    assert {row["account_id"] for row in rows_of(result, "accounts")} == ACCOUNTS - {BTC_SHORT}


@pytest.mark.parametrize(
    ("request_", "path", "value", "reason", "accounts"),
    [
        ("dataStore", (*AT_ETH, "minCollateralFactor"), ..., FailureReason.MISSING_PARAMETER, {ETH_LONG}),
        ("dataStore", (*AT_ETH, "openInterest_long"), "x", FailureReason.NOT_A_NUMBER, {ETH_LONG}),
        ("dataStore", (*AT_ETH, "openInterest_long"), "5", FailureReason.INCONSISTENT, {ETH_LONG}),
        ("dataStore", (*AT_ETH, "cumulativeBorrowingFactor_long"), "5", FailureReason.INCONSISTENT, {ETH_LONG}),
        ("dataStore", (*AT_ETH, "fundingFeeAmountPerSize_long_longToken"), "5", FailureReason.INCONSISTENT, {ETH_LONG}),
        ("dataStore", (*AT_ETH, "poolAmount_longToken"), ..., FailureReason.MISSING_PARAMETER, {ETH_LONG}),
        ("dataStore", (*AT_ETH, "positionFeeFactor_positive"), "-1", FailureReason.OUT_OF_RANGE, {ETH_LONG}),
        ("dataStore", (*AT_BTC, "maxPositionImpactFactor_positive"), ..., FailureReason.MISSING_PARAMETER, {BTC_SHORT}),
        ("dataStore", AT_BTC, [], FailureReason.MALFORMED, {BTC_SHORT}),
        ("dataStore", ("global", "MIN_COLLATERAL_USD"), ..., FailureReason.MISSING_PARAMETER, ACCOUNTS),
        ("dataStore", ("markets",), 5, FailureReason.MALFORMED, ACCOUNTS),
        ("tickers", (0, "minPrice"), "0", FailureReason.OUT_OF_RANGE, {ETH_LONG, ETH_SHORT}),
        ("tickers", (0, "minPrice"), "9" * 30, FailureReason.INCONSISTENT, {ETH_LONG, ETH_SHORT}),
        ("tickers", (0, "tokenAddress"), "0xb9", FailureReason.MALFORMED, {ETH_LONG, ETH_SHORT}),
        ("tickers", (2, "maxPrice"), ..., FailureReason.MISSING_FIELD, {BTC_SHORT}),
        ("tokens", ("tokens", 0, "decimals"), "37", FailureReason.OUT_OF_RANGE, {ETH_LONG, ETH_SHORT}),
        ("tokens", ("tokens", 2, "symbol"), "NOPE", FailureReason.UNKNOWN_ASSET, {BTC_SHORT}),
        ("tokens", ("tokens", 2, "symbol"), 5, FailureReason.MALFORMED, {BTC_SHORT}),
        ("getMarkets", (1, "longToken"), "x", FailureReason.MALFORMED, {BTC_SHORT}),
        ("getMarketInfoList", (0, "market", "longToken"), WETH, FailureReason.INCONSISTENT, {SOL_LONG, SOL_SHORT}),
    ],
)  # fmt: skip
def test_a_bad_market_value_stops_only_those_who_need_it(
    request_: str, path: tuple[Any, ...], value: Any, reason: FailureReason, accounts: set[str]
) -> None:
    result = normalized(desk(put(*path, to=value), request_))
    assert reason in {failure.reason for failure in result.failures}
    stopped = {
        (f.account_id or "").rsplit(":", 1)[-1] + (f.account_id or "").split(":")[1]
        for f in result.failures
        if f.account_id
    }
    assert len({f.account_id for f in result.failures if f.account_id}) == len(accounts), result.failures
    assert stopped == {account.rsplit(":", 1)[-1] + account.split(":")[1] for account in accounts}
    assert len(rows_of(result, "accounts")) == len(ACCOUNTS)
    # Four components of a position with its figures; the verdict alone of one without.
    assert len(rows_of(result, "rule_sets")) == 4 * len(ACCOUNTS) - 3 * len(accounts)


def test_without_prices_markets_or_tokens_nothing_can_be_computed_and_everything_says_why() -> None:
    for request, reason in (
        ("tickers", FailureReason.MISSING_MARK),
        ("getMarkets", FailureReason.UNKNOWN_MARKET),
        ("tokens", FailureReason.UNKNOWN_ASSET),
        ("dataStore", FailureReason.MISSING_PARAMETER),
    ):
        result = normalized(without(request, "getMarketInfoList", "isPositionLiquidatable", "getAccountOrders"))
        assert {f.reason for f in result.failures} == {reason}
        assert len(result.failures) == len(rows_of(result, "accounts")) == len(ACCOUNTS)
        # Nor does the snapshot find more: that a position without figures has no rules is no second failure.
        snapshot = take_snapshot([result.batches], result.failures, as_of=AS_OF)
        assert snapshot.failures == tuple(result.failures)
        assert len(snapshot.incomplete) == len(ACCOUNTS)


def test_two_answers_to_one_question_are_both_rejected() -> None:
    payloads = desk()
    positions = fetched("getAccountPositions", "kestrel_positions.json", "kestrel")
    result = normalized([*payloads, replace(positions, name="again.json")])
    duplicates = [f for f in result.failures if f.reason == FailureReason.DUPLICATE]
    assert {f.payload for f in duplicates} == {"kestrel_positions.json", "again.json"}
    assert {f.account_id for f in duplicates} == {"gmx_v2:kestrel"}
    assert {row["owner"] for row in rows_of(result, "accounts")} == {"osprey"}
    result = normalized([*payloads, fetched("tickers", "tickers.json")])
    assert {f.reason for f in result.failures} == {FailureReason.DUPLICATE, FailureReason.MISSING_MARK}
    assert incomplete(result) == {None, *ACCOUNTS}


def test_a_position_that_stands_twice_is_rejected_and_two_that_differ_are_inconsistent() -> None:
    result = normalized(desk(lambda body: body.append(body[0]), "getAccountPositions", "kestrel"))
    assert (only_reason(result), incomplete(result)) == (FailureReason.DUPLICATE, {ETH_LONG})
    assert only(result, "accounts", account_id=ETH_LONG)
    infos = fetched("getAccountPositionInfoList", "osprey_position_infos.json", "osprey")
    plain = replace(
        infos, request="getAccountPositions", name="plain.json", body=[copy.deepcopy(i["position"]) for i in infos.body]
    )
    assert normalized([*desk(), plain]).failures == []
    plain.body[0]["numbers"]["collateralAmount"] = "1"
    result = normalized([*desk(), plain])
    assert (only_reason(result), len(incomplete(result))) == (FailureReason.INCONSISTENT, 1)


def test_a_contradiction_between_payloads_is_a_failure_of_those_who_need_the_value() -> None:
    other = fetched("dataStore", "data_store.json")
    body = {"markets": {SOL_MARKET: {"minCollateralFactor": str(usd("0.02"))}}}
    result = normalized([*desk(), replace(other, request="dataStore:late", name="late.json", body=body)])
    assert only_reason(result) == FailureReason.INCONSISTENT
    assert incomplete(result) == {None, SOL_LONG, SOL_SHORT}


def test_wrong_collateral_unknown_requests_and_payloads_of_nobody() -> None:
    result = normalized(
        desk(put(0, "addresses", "collateralToken", to=f"0x{0xA5:040x}"), "getAccountPositions", "kestrel")
    )
    # The position is then another one, of which the venue's own answer says nothing.
    assert {f.reason for f in result.failures if f.account_id} == {FailureReason.INCONSISTENT}
    result = normalized([replace(desk()[0], request="getMarketz")])
    assert only_reason(result) == FailureReason.UNSUPPORTED
    result = normalized([replace(p, account="") for p in desk() if p.request == "getAccountPositions"])
    assert (only_reason(result), result.failures[0].path) == (FailureReason.MISSING_FIELD, "account")


@pytest.mark.parametrize(
    "body", [None, 5, "x", [5], [None], [[1, 2]], {"positions": 5}, {"position": 5}, {"positionInfo": 5}]
)
def test_a_body_of_another_type_makes_the_owner_incomplete(body: Any) -> None:
    result = normalized([replace(p, body=body) if p.request == "getAccountPositions" else p for p in desk()])
    assert {f.reason for f in result.failures if f.account_id} <= {FailureReason.MALFORMED, FailureReason.MISSING_FIELD}
    assert {f.account_id for f in result.failures if f.account_id} == {"gmx_v2:kestrel"}


@pytest.mark.parametrize("request_", ["tokens", "getMarkets", "tickers", "dataStore", "getMarketInfoList"])
@pytest.mark.parametrize("body", [None, 5, "x", [5], [None], {}])
def test_a_market_wide_body_of_another_type_is_no_exception(request_: str, body: Any) -> None:
    result = normalized([replace(p, body=body) if p.request == request_ else p for p in desk()])
    assert result.failures
    assert len(rows_of(result, "accounts")) == len(ACCOUNTS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(0, "fees", "totalCostAmount", to=...), FailureReason.MISSING_FIELD),
        (put(0, "fees", "ui", "uiFeeAmount", to="9" * 30), FailureReason.INCONSISTENT),
        (put(0, "executionPriceResult", to=...), FailureReason.MISSING_FIELD),
        (put(0, "basePnlUsd", to=str(usd("99999999"))), FailureReason.INCONSISTENT),
        (put(0, "fees", "collateralTokenPrice", "min", to="0"), FailureReason.OUT_OF_RANGE),
    ],
)
def test_an_unreadable_info_makes_the_owner_incomplete(change: Change, reason: FailureReason) -> None:
    result = normalized(desk(change, "getAccountPositionInfoList", "osprey"))
    assert only_reason(result, "gmx_v2:osprey") == reason
    # The venue's own answer about a position that could not be read is a finding of its own.
    assert {f.reason for f in result.failures if f.account_id is None} <= {FailureReason.INCONSISTENT}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(0, "info", to=...), FailureReason.MISSING_FIELD),
        (put(0, "isLiquidatable", to="no"), FailureReason.MALFORMED),
        (put(0, "market", to=SOL_MARKET), FailureReason.INCONSISTENT),
        (put(0, "info", "remainingCollateralUsd", to="1.5"), FailureReason.NOT_A_NUMBER),
    ],
)
def test_an_unreadable_answer_of_the_venue_stops_nobody(change: Change, reason: FailureReason) -> None:
    result = normalized(desk(change, "isPositionLiquidatable", "kestrel"))
    assert (only_reason(result), incomplete(result)) == (reason, {None})
    assert only(result, "accounts", account_id=ETH_LONG)["reported_equity"] is None
    assert only(result, "accounts", account_id=SOL_LONG)["reported_equity"] is not None


def test_parameters_may_hold_tokens_markets_and_values() -> None:
    tokens, markets, store = (p.body for p in desk() if p.request in ("tokens", "getMarkets", "dataStore"))
    parameters = {
        "chain": "arbitrum",
        "tokens": {t["address"]: {"symbol": t["symbol"], "decimals": t["decimals"]} for t in tokens["tokens"]},
        "markets": {m["marketToken"]: m | store["markets"][m["marketToken"]] for m in markets},
        "global": store["global"],
    }
    result = normalized(without("tokens", "getMarkets", "dataStore", "getMarketInfoList"), parameters)
    assert result.failures == []
    assert rows_of(result, "rule_sets") == rows_of(normalized(desk()), "rule_sets")
    # A payload goes before the file.
    parameters["global"] = {"MIN_COLLATERAL_USD": "7"}
    assert rows_of(normalized(desk(), parameters), "rule_sets") == rows_of(result, "rule_sets")


@pytest.mark.parametrize(
    "parameters",
    [
        {"chain": 5},
        {"tokens": {"0x12": {"symbol": "A", "decimals": 18}}},
        {"tokens": {WETH: 5}},
        {"markets": {ETH_MARKET: {"minCollateralFactor": "x"}}},
        {"symbols": {WETH: 5}},
        {"global": 5},
    ],
)
def test_a_parameter_file_that_cannot_be_read_is_a_configuration_error(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="gmx_v2"):
        normalized(desk(), parameters)


def test_without_a_chain_the_assets_are_those_of_the_venue() -> None:
    result = normalized(desk(), {})
    assert result.failures == []
    assert {row["chain"] for row in rows_of(result, "accounts")} == {"gmx_v2"}
    renamed = normalized(desk(), {"symbols": {WETH: "ETH"}})
    assert only(renamed, "instruments", symbol="ETH/USD[ETH-USDC]")["underlying"] == "ETH@gmx_v2"


def test_the_constructed_sample_says_what_it_lacks(recorded: Path) -> None:
    root = recorded / "payloads" / "gmx_v2"
    sample = fetched("getAccountPositions", "position_constructed.json", "desk", root=root)
    result = normalized([sample])
    assert {f.reason for f in result.failures} == {FailureReason.UNKNOWN_MARKET}
    assert len(rows_of(result, "accounts")) == 1
    market, index = f"0x{2:040x}", f"0x{3:040x}"
    parameters: dict[str, Any] = {
        "chain": "hardhat",
        "tokens": {
            index: {"symbol": "WETH", "decimals": 18},
            USDC: {"symbol": "USDC", "decimals": 6},
        },
        "markets": {market: {"indexToken": index, "longToken": index, "shortToken": USDC}},
    }
    found = normalized([sample], parameters)
    assert {f.reason for f in found.failures} == {FailureReason.MISSING_PARAMETER}
    # What the hardhat configuration of its source states besides: no fees, 2 % at most of a positive impact.
    parameters["markets"][market] |= {
        "maxPositionImpactFactor_positive": str(usd("0.02")),
        "positionFeeFactor": "0",
        "cumulativeBorrowingFactor_long": "0",
        "fundingFeeAmountPerSize_long_longToken": "0",
    }
    found = normalized([sample], parameters)
    assert found.failures == []
    rule_set = only(found, "accounts")["rule_set"]
    fixed = parse_parameters("fixed", only(found, "rule_sets", rule_set=rule_set, form="fixed")["parameters"])
    assert isinstance(fixed, Fixed)
    # Closing gains A(200k) = 200 USD of impact; 0.08 ETH are pending at 4200: -336.
    assert float(fixed.equity) == pytest.approx(200 - 335.9999999999999958, rel=1e-12)


def test_failures_are_rows_of_the_closed_list_with_a_place() -> None:
    result = normalized([replace(p, body={"data": [5]}) for p in desk()])
    assert result.failures
    assert all(isinstance(f, Failure) and f.venue == "gmx_v2" and f.payload for f in result.failures)
    assert AssetBook({}).resolve("WETH") is None
