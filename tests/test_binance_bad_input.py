"""Binance: every way for a payload to be wrong, and whom it concerns."""

from pathlib import Path
from typing import Any

import pytest

from adapters.binance import request_name
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import Failure, FailureReason
from aggregator.snapshot import take_snapshot
from tests.desk_binance import (
    PAYLOADS,
    RECEIVED,
    answer,
    edited,
    load,
    marks_of,
    normalized,
    north,
    position,
    reasons,
    south,
    version_2,
    whole_desk,
    without,
)
from tests.junk_answers import junk_results
from tests.normalized_rows import failures_of, only, rows_of

CROSS = "binance:north:USDT"
ISOLATED = "binance:north:isolated:SOLUSDT"

POSITION_EDITS: list[tuple[str, dict[str, Any], str, FailureReason, str]] = [
    ("BTCUSDT", {"positionAmt": "NaN"}, CROSS, FailureReason.NOT_A_NUMBER, "[0].positionAmt"),
    ("BTCUSDT", {"positionAmt": None}, CROSS, FailureReason.MISSING_FIELD, "[0].positionAmt"),
    ("BTCUSDT", {"positionAmt": "1e21"}, CROSS, FailureReason.OUT_OF_RANGE, "[0].positionAmt"),
    ("BTCUSDT", {"entryPrice": None}, CROSS, FailureReason.MISSING_FIELD, "[0].entryPrice"),
    ("BTCUSDT", {"entryPrice": "0.0"}, CROSS, FailureReason.OUT_OF_RANGE, "[0].entryPrice"),
    ("BTCUSDT", {"markPrice": "-64000"}, CROSS, FailureReason.OUT_OF_RANGE, "[0].markPrice"),
    ("BTCUSDT", {"leverage": "twenty"}, CROSS, FailureReason.NOT_A_NUMBER, "[0].leverage"),
    ("BTCUSDT", {"leverage": "0"}, CROSS, FailureReason.OUT_OF_RANGE, "[0].leverage"),
    ("BTCUSDT", {"leverage": None}, CROSS, FailureReason.MISSING_FIELD, "[0].leverage"),
    ("BTCUSDT", {"notional": "0"}, CROSS, FailureReason.INCONSISTENT, "[0].notional"),
    ("BTCUSDT", {"positionSide": "SHORT"}, CROSS, FailureReason.INCONSISTENT, "[0].positionAmt"),
    ("ETHUSDT", {"positionSide": "LONG"}, CROSS, FailureReason.INCONSISTENT, "[1].positionAmt"),
    ("BTCUSDT", {"positionSide": "UP"}, CROSS, FailureReason.MALFORMED, "[0].positionSide"),
    ("BTCUSDT", {"positionAmt": "0.9"}, CROSS, FailureReason.INCONSISTENT, "[0].positionAmt"),
    ("BTCUSDT", {"marginType": "sideways"}, CROSS, FailureReason.MALFORMED, "[0].marginType"),
    ("BTCUSDT", {"marginAsset": "BNFCR"}, CROSS, FailureReason.UNSUPPORTED, "[0].marginAsset"),
    ("BTCUSDT", {"symbol": "DOGEUSDT"}, CROSS, FailureReason.UNKNOWN_MARKET, "positions[0].symbol"),
    ("SOLUSDT", {"isolatedWallet": "x"}, ISOLATED, FailureReason.NOT_A_NUMBER, "[2].isolatedWallet"),
]


@pytest.mark.parametrize(("symbol", "edit", "account", "reason", "path"), POSITION_EDITS)
def test_a_bad_position_makes_its_account_incomplete_and_no_other(
    symbol: str, edit: dict[str, Any], account: str, reason: FailureReason, path: str
) -> None:
    def change(body: Any) -> None:
        record = position(body if isinstance(body, list) else body["positions"], symbol)
        if isinstance(body, list) or "symbol" in edit:
            record.update(edit)

    payloads = edited(north(), "fapi/positionRisk", change)
    if "symbol" in edit:
        payloads = edited(payloads, "fapi/account", change)
    result = normalized(payloads)
    found = [f for f in failures_of(result, account) if f.reason == reason]
    assert found, result.failures
    assert {f.path for f in found} & {path, path.removeprefix("positions")}
    assert {f.account_id for f in result.failures} <= {account, None}
    # the account's row and its other rows stay
    assert rows_of(result, "accounts", account_id=account)
    assert len(rows_of(result, "positions")) >= 5
    bad = "binance:DOGEUSDT" if "symbol" in edit else f"binance:{symbol}"
    own = [
        r for r in rows_of(result, "positions", instrument_id=bad) if r["leverage"] is None or r["entry_price"] is None
    ]
    assert own == []


ASSET_EDITS: list[tuple[dict[str, Any], FailureReason, str]] = [
    ({"crossWalletBalance": "NaN"}, FailureReason.NOT_A_NUMBER, "assets[0].crossWalletBalance"),
    ({"crossWalletBalance": None}, FailureReason.MISSING_FIELD, "assets[0].crossWalletBalance"),
    ({"walletBalance": True}, FailureReason.NOT_A_NUMBER, "assets[0].walletBalance"),
    ({"openOrderInitialMargin": "-1"}, FailureReason.OUT_OF_RANGE, "assets[0].openOrderInitialMargin"),
    ({"openOrderInitialMargin": None}, FailureReason.MISSING_FIELD, "assets[0].openOrderInitialMargin"),
    ({"marginBalance": "Infinity"}, FailureReason.NOT_A_NUMBER, "assets[0].marginBalance"),
    ({"marginAvailable": "perhaps"}, FailureReason.MALFORMED, "assets[0].marginAvailable"),
]


@pytest.mark.parametrize(("edit", "reason", "path"), ASSET_EDITS)
def test_a_bad_balance_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, path: str
) -> None:
    result = normalized(edited(north(), "fapi/account", lambda body: body["assets"][0].update(edit)))
    assert (reason, path) in {(f.reason, f.path) for f in failures_of(result, CROSS)}
    assert {f.account_id for f in result.failures} == {CROSS}
    assert len(rows_of(result, "accounts", owner="north")) == 3
    assert not rows_of(result, "balances", account_id=CROSS)


def test_an_unknown_asset_fails_its_account_only() -> None:
    def edit(body: Any) -> None:
        body["assets"].append(dict(body["assets"][2], asset="XAUT", walletBalance="2", crossWalletBalance="2"))

    result = normalized(edited(north(), "fapi/account", edit))
    assert [(f.reason, f.account_id, f.path) for f in result.failures] == [
        (FailureReason.UNKNOWN_ASSET, "binance:north:XAUT", "assets[3].asset")
    ]
    assert only(result, "accounts", account_id="binance:north:XAUT")["settlement_asset"] == "XAUT"
    multi = normalized(edited(south(), "fapi/account", lambda body: body["assets"][3].update(asset="XAUT")))
    assert FailureReason.UNKNOWN_ASSET in {f.reason for f in failures_of(multi, "binance:south:multi")}


def test_no_entry_price_anywhere_and_no_mark_anywhere() -> None:
    no_entry = normalized(without(north(), "fapi/positionRisk"))
    assert reasons(no_entry, CROSS) == {"missing_field"}
    assert {f.path for f in failures_of(no_entry, CROSS)} >= {"positions[0].entryPrice"}
    assert reasons(no_entry, "binance:north:USDC") == {"missing_field"}
    no_mark = normalized(without(edited(north(), "fapi/account", version_2), "fapi/positionRisk", "fapi/premiumIndex"))
    assert reasons(no_mark, CROSS) == {"missing_mark"}
    assert reasons(no_mark, ISOLATED) == {"missing_mark"}
    assert len(rows_of(no_mark, "positions")) == 6


def test_a_bad_market_row_is_a_finding_and_whoever_needs_it_has_no_mark() -> None:
    payloads = without(edited(north(), "fapi/account", version_2), "fapi/positionRisk")
    bad = edited(payloads, "fapi/premiumIndex", lambda body: position(body, "ETHUSDT").update(markPrice="-3562.18"))
    result = normalized(bad)
    (finding,) = failures_of(result, None)
    assert (finding.reason, finding.path, finding.subject) == (FailureReason.OUT_OF_RANGE, "[3].markPrice", "ETHUSDT")
    needs = {(f.reason, f.subject) for f in failures_of(result, CROSS)}
    assert needs == {(FailureReason.MISSING_MARK, "binance:ETHUSDT")}
    twice = edited(payloads, "fapi/premiumIndex", lambda body: body.append(position(body, "ETHUSDT")))
    result = normalized(twice)
    assert [(f.reason, f.subject) for f in failures_of(result, None)] == [(FailureReason.DUPLICATE, "ETHUSDT")]
    assert not rows_of(result, "marks", subject="binance:ETHUSDT")


def test_markets_that_nobody_holds_and_the_book_does_not_know_are_left_out() -> None:
    result = normalized(whole_desk())
    assert not [row for row in rows_of(result, "instruments") if "FOO" in row["symbol"]]
    assert not [row for row in rows_of(result, "assets") if row["symbol"] == "FOO"]


def test_missing_index_in_multi_assets_mode() -> None:
    result = normalized(without(south(), "fapi/assetIndex"))
    assert {(f.reason, f.subject) for f in failures_of(result, "binance:south:multi")} == {
        (FailureReason.MISSING_MARK, asset) for asset in ("USDT", "USDC", "BTC", "BNB")
    }
    assert len(rows_of(result, "balances")) == 4


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"bidRate": "70000"}, FailureReason.INCONSISTENT),
        ({"askRate": "60000"}, FailureReason.INCONSISTENT),
        ({"bidBuffer": "0.2"}, FailureReason.INCONSISTENT),
        ({"index": "0"}, FailureReason.OUT_OF_RANGE),
        ({"index": None}, FailureReason.MISSING_FIELD),
        ({"symbol": "BTCEUR"}, FailureReason.UNKNOWN_ASSET),
    ],
)
def test_bad_asset_indices(edit: dict[str, Any], reason: FailureReason) -> None:
    result = normalized(edited(south(), "fapi/assetIndex", lambda body: body[0].update(edit)))
    assert [f.reason for f in failures_of(result, None)] == [reason]
    assert {(f.reason, f.subject) for f in failures_of(result, "binance:south:multi")} == {
        (FailureReason.MISSING_MARK, "BTC")
    }


def test_an_isolated_position_contradicts_multi_assets_mode() -> None:
    def edit(body: Any) -> None:
        body[0] |= {"isolatedWallet": "500", "isolatedMargin": "510"}

    result = normalized(edited(south(), "fapi/positionRisk", edit))
    assert reasons(result, "binance:south:multi") == {"inconsistent"}
    assert {row["account_id"] for row in rows_of(result, "accounts")} == {"binance:south:multi"}


def test_answers_of_different_moments() -> None:
    gone = normalized(edited(north(), "fapi/account", lambda body: body["positions"].__delitem__(0)))
    assert reasons(gone, CROSS) == {"inconsistent"}
    assert not rows_of(gone, "positions", instrument_id="binance:BTCUSDT")
    closed = normalized(
        edited(north(), "fapi/positionRisk", lambda body: body[0].update(positionAmt="0.000", notional="0"))
    )
    assert reasons(closed, CROSS) == {"inconsistent"}


def test_two_marks_of_one_symbol_in_one_answer() -> None:
    result = normalized(edited(south(), "fapi/positionRisk", lambda body: body[1].update(markPrice="3562.19")))
    assert reasons(result, "binance:south:multi") == {"inconsistent"}


def test_wallets_that_do_not_add_up_are_a_finding() -> None:
    result = normalized(edited(north(), "fapi/account", lambda body: body["assets"][0].update(walletBalance="53443")))
    (finding,) = result.failures
    assert (finding.reason, finding.account_id) == (FailureReason.INCONSISTENT, None)
    assert finding.path == "assets[0].walletBalance"


@pytest.mark.parametrize(
    "request_text", ["fapi/account", "fapi/positionRisk", "fapi/openOrders", "fapi/multiAssetsMargin"]
)
def test_two_answers_to_one_request_are_both_rejected(request_text: str) -> None:
    payloads = north()
    (copied,) = [p for p in payloads if request_name(p.request)[0] == request_text]
    again = Payload("/fapi/v9/" + request_text.partition("/")[2], "again.json", "north", RECEIVED, "", copied.body)
    result = normalized([*payloads, again])
    duplicates = [f for f in result.failures if f.reason == FailureReason.DUPLICATE]
    assert "again.json" in duplicates[0].message
    assert {f.account_id for f in duplicates} >= {"binance:north" if request_text == "fapi/account" else CROSS} - (
        {"binance:north"} if rows_of(result, "accounts", account_id=CROSS) else set()
    )
    assert {f.account_id for f in duplicates} <= {row["account_id"] for row in rows_of(result, "accounts")}
    if request_text == "fapi/account":
        assert not [row for row in rows_of(result, "balances") if row["account_id"] != ISOLATED]


def test_two_market_answers_to_one_request_are_both_rejected() -> None:
    result = normalized([*south(), *load("asset_index.json")])
    assert [(f.reason, f.subject) for f in failures_of(result, None)] == [(FailureReason.DUPLICATE, "fapi/assetIndex")]
    assert reasons(result, "binance:south:multi") == {"missing_mark"}
    books = [answer("fapi/depth:BTCUSDT", {}), answer("fapi/depth:ETHUSDT", {})]
    assert {f.reason for f in normalized(books).failures} == {FailureReason.MISSING_FIELD}


def test_rows_that_occur_twice_are_rejected() -> None:
    assets = normalized(edited(north(), "fapi/account", lambda body: body["assets"].append(body["assets"][0])))
    assert FailureReason.DUPLICATE in {f.reason for f in failures_of(assets, CROSS)}
    assert not rows_of(assets, "balances", account_id=CROSS)
    risk = normalized(edited(north(), "fapi/positionRisk", lambda body: body.append(body[0])))
    assert FailureReason.DUPLICATE in {f.reason for f in failures_of(risk, CROSS)}
    assert not rows_of(risk, "positions", instrument_id="binance:BTCUSDT")
    orders = normalized(edited(north(), "fapi/openOrders", lambda body: body.append(body[0])))
    assert reasons(orders, CROSS) == {"duplicate"}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"side": "HOLD"}, FailureReason.MALFORMED),
        ({"price": "-1"}, FailureReason.OUT_OF_RANGE),
        ({"executedQty": "1"}, FailureReason.INCONSISTENT),
        ({"origQty": None}, FailureReason.MISSING_FIELD),
        ({"symbol": "DOGEUSDT"}, FailureReason.UNKNOWN_MARKET),
        ({"reduceOnly": 3}, FailureReason.MALFORMED),
    ],
)
def test_bad_orders(edit: dict[str, Any], reason: FailureReason) -> None:
    result = normalized(edited(north(), "fapi/openOrders", lambda body: body[0].update(edit)))
    assert [(f.reason, f.account_id) for f in result.failures] == [(reason, CROSS)]
    assert len(rows_of(result, "open_orders")) == 1


@pytest.mark.parametrize(
    ("body", "reason", "path"),
    [
        ({"bids": [["2", "1"]], "asks": [["1", "1"]]}, FailureReason.INCONSISTENT, "bids"),
        ({"bids": [], "asks": [["1", "1"]]}, FailureReason.MISSING_MARK, "bids"),
        ({"bids": [["1", "1"]]}, FailureReason.MISSING_FIELD, "asks"),
        ({"bids": [["-1", "1"]], "asks": [["1", "1"]]}, FailureReason.OUT_OF_RANGE, "bids[0]"),
        ({"bids": [["1", "1"], "x"], "asks": [["2", "1"]]}, FailureReason.MALFORMED, "bids[1]"),
        ({"bids": [["1", "NaN"]], "asks": [["2", "1"]]}, FailureReason.NOT_A_NUMBER, "bids[0][1]"),
    ],
)
def test_bad_books(body: Any, reason: FailureReason, path: str) -> None:
    (failure,) = normalized([answer("fapi/depth:BTCUSDT", body)]).failures
    assert (failure.reason, failure.path, failure.account_id) == (reason, path, None)


def test_a_book_without_a_symbol() -> None:
    (failure,) = normalized([answer("fapi/depth", load("depth_btcusdt.json")[0].body)]).failures
    assert (failure.reason, failure.path) == (FailureReason.MISSING_FIELD, "symbol")
    (failure,) = normalized([answer("fapi/depth:DOGEUSDT", load("depth_btcusdt.json")[0].body)]).failures
    assert failure.reason == FailureReason.UNKNOWN_MARKET


@pytest.mark.parametrize("body", [None, [], "maintenance", 7, {}, {"assets": {}}, {"assets": [None]}])
def test_an_account_answer_of_the_wrong_shape_leaves_an_incomplete_account(body: Any) -> None:
    result = normalized([answer("fapi/account", body, owner="north")])
    assert [row["account_id"] for row in rows_of(result, "accounts")] == ["binance:north"]
    assert {f.account_id for f in result.failures} == {"binance:north"}
    with_positions = normalized(edited(north(), "fapi/account", lambda _: {} if body is None else body))
    cross = {row["account_id"] for row in rows_of(with_positions, "accounts", margin_mode="cross")}
    assert cross == {CROSS, "binance:north:USDC"}
    assert cross <= {f.account_id for f in with_positions.failures}


def test_positions_without_an_account_answer() -> None:
    result = normalized(without(north(), "fapi/account"))
    assert reasons(result, CROSS) == {"missing_field"}
    assert reasons(result, "binance:north:USDC") == {"missing_field"}
    assert not failures_of(result, ISOLATED)  # its wallet stands in positionRisk


def test_an_unreadable_mode_leaves_no_account_complete() -> None:
    result = normalized(edited(north(), "fapi/multiAssetsMargin", lambda body: body.update(multiAssetsMargin="maybe")))
    assert {f.account_id for f in result.failures} == {CROSS, "binance:north:USDC"}
    assert {f.reason for f in result.failures} == {FailureReason.MALFORMED}


def test_requests_that_are_not_understood() -> None:
    unknown = normalized([answer("eapi/v1/account", {}, owner="north")])
    assert [(f.reason, f.subject) for f in unknown.failures] == [(FailureReason.UNSUPPORTED, "north")]
    nobody = normalized([answer("fapi/account", {"assets": []})])
    assert [(f.reason, f.path) for f in nobody.failures] == [(FailureReason.MISSING_FIELD, "account")]


def test_truncated_and_missing_files_are_said_by_the_transport(tmp_path: Path) -> None:
    text = (PAYLOADS / "north_account.json").read_text(encoding="utf-8")
    (tmp_path / "cut.json").write_text(text[: len(text) // 2], encoding="utf-8")
    transport = RecordedTransport(tmp_path)
    cut = transport.fetch("binance", PayloadRequest("fapi/account", "cut.json", "north"))
    gone = transport.fetch("binance", PayloadRequest("fapi/account", "gone.json", "north"))
    assert isinstance(cut, Failure)
    assert isinstance(gone, Failure)
    assert (cut.reason, gone.reason) == (FailureReason.MALFORMED, FailureReason.UNREACHABLE)


def test_mutated_answers_never_raise_and_never_leave_an_unflagged_gap() -> None:
    for result in junk_results(normalized, whole_desk(), seed=20240620, count=60):
        incomplete = take_snapshot([result.batches], result.failures).incomplete
        for row in rows_of(result, "positions"):
            if row["account_id"] not in incomplete:
                assert row["instrument_id"] in marks_of(result, row["account_id"])
