"""Hyperliquid: every way for a payload to be wrong, and whom it concerns."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Context
from adapters.asset_book import AssetBook
from adapters.hyperliquid import ADAPTER
from adapters.transport import PayloadRequest, RecordedTransport
from aggregator.errors import Failure, FailureReason
from tests.desk_hyperliquid import (
    ASSETS,
    CROSS,
    EQUITY_TOLERANCE,
    PARAMETERS,
    PAYLOADS,
    PERP,
    SOL,
    WALLET,
    desk,
    equity_of,
    fetched,
    normalized,
    perp_payload,
)
from tests.normalized_rows import failures_of, only, rows_of
from tests.payload_files import changed, put


def position(number: int, *path: Any, value: Any) -> Callable[[Any], None]:
    return put("assetPositions", number, "position", *path, to=value)


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
    (put("assetPositions", 0, "type", to="hedge"), FailureReason.UNSUPPORTED, "assetPositions[0].type", CROSS),
    (put("assetPositions", 0, to="BTC"), FailureReason.MALFORMED, "assetPositions[0]", CROSS),
    (put("assetPositions", to=...), FailureReason.MISSING_FIELD, "assetPositions", CROSS),
    (put("assetPositions", to={}), FailureReason.MALFORMED, "assetPositions", CROSS),
    (put("assetPositions", to=[]), FailureReason.INCONSISTENT, "crossMarginSummary.totalNtlPos", CROSS),
    (put("crossMarginSummary", to=...), FailureReason.MISSING_FIELD, "crossMarginSummary", CROSS),
    (
        put("crossMarginSummary", "totalRawUsd", to="25000.2"),
        FailureReason.INCONSISTENT,
        "crossMarginSummary.accountValue",
        CROSS,
    ),
    (
        put("crossMarginSummary", "totalMarginUsed", to="14166.4"),
        FailureReason.INCONSISTENT,
        "crossMarginSummary.totalMarginUsed",
        CROSS,
    ),
    (
        put("crossMarginSummary", "totalNtlPos", to="-1"),
        FailureReason.OUT_OF_RANGE,
        "crossMarginSummary.totalNtlPos",
        CROSS,
    ),
    (put("crossMaintenanceMarginUsed", to="x"), FailureReason.NOT_A_NUMBER, "crossMaintenanceMarginUsed", CROSS),
    (put("marginSummary", "totalRawUsd", to="31480"), FailureReason.INCONSISTENT, "marginSummary.totalRawUsd", CROSS),
    (put("marginSummary", "accountValue", to="1"), FailureReason.INCONSISTENT, "marginSummary.accountValue", CROSS),
    (put("time", to="2024-06-25 14:00"), FailureReason.MALFORMED, "time", CROSS),
    (put("time", to=10**18), FailureReason.OUT_OF_RANGE, "time", CROSS),
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
    markets = changed(fetched("meta_and_asset_ctxs.json"), put(0, "universe", 2, "isDelisted", to=True))
    result = normalized(perp_payload(), markets)
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.UNKNOWN_MARKET, SOL)]
    assert "delisted" in result.failures[0].message
    assert rows_of(result, "instruments", symbol="SOL") == rows_of(result, "marks", subject="hyperliquid:SOL") == []


def test_a_body_that_is_no_object_leaves_an_empty_account() -> None:
    result = normalized(replace(perp_payload(), body=None))
    assert {f.account_id for f in result.failures} == {CROSS}
    assert only(result, "accounts", account_id=CROSS)["reported_equity"] is None


def test_rounding_of_the_venue_is_no_contradiction() -> None:
    within = put("crossMarginSummary", "totalMarginUsed", to="14166.499998")
    beyond = put("crossMarginSummary", "totalMarginUsed", to="14166.499996")
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
    empty = changed(fetched("clearinghouse_state_km.json", account="desk"), put("assetPositions", to=[]))
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
        (put(1, 0, "markPx", to="-1"), FailureReason.OUT_OF_RANGE, "[1][0].markPx"),
        (put(1, 0, "oraclePx", to="NaN"), FailureReason.NOT_A_NUMBER, "[1][0].oraclePx"),
        (put(1, 0, "openInterest", to=...), FailureReason.MISSING_FIELD, "[1][0].openInterest"),
        (put(0, "universe", 0, "maxLeverage", to=0), FailureReason.OUT_OF_RANGE, "[0].universe[0]"),
        (put(0, "universe", 0, "name", to=...), FailureReason.MISSING_FIELD, "[0].universe[0].name"),
        (put(0, "collateralToken", to="USDC"), FailureReason.NOT_A_NUMBER, "[0].collateralToken"),
        (put(0, "universe", 6, "isDelisted", to="yes"), FailureReason.MALFORMED, "[0].universe[6].isDelisted"),
        (put(0, "universe", 1, "name", to="BTC"), FailureReason.DUPLICATE, "[0].universe[1]"),
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
        (put("balances", to=...), FailureReason.MISSING_FIELD, "balances"),
        (put("balances", 1, "total", to="-1"), FailureReason.OUT_OF_RANGE, "balances[1].total"),
        (put("balances", 1, "total", to="Infinity"), FailureReason.NOT_A_NUMBER, "balances[1].total"),
        (put("balances", 1, "hold", to="400"), FailureReason.OUT_OF_RANGE, "balances[1].hold"),
        (put("balances", 1, "coin", to=["HYPE"]), FailureReason.MALFORMED, "balances[1].coin"),
        (put("balances", 1, "coin", to="+10"), FailureReason.INCONSISTENT, "balances[1].coin"),
        (put("balances", 1, "token", to=9999), FailureReason.INCONSISTENT, "balances[1].coin"),
        (put("balances", 1, to={"coin": "PIP", "total": "1"}), FailureReason.UNKNOWN_ASSET, "balances[1].coin"),
        (put("balances", 1, to={"coin": "USDC", "total": "1"}), FailureReason.DUPLICATE, "balances[0]"),
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
