"""Bybit: every way for a payload to be wrong, and whom it concerns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.transport import PayloadRequest, RecordedTransport
from aggregator.errors import Failure, FailureReason
from tests.desk_bybit import (
    EAST,
    FOLDER,
    HARBOR,
    NORTH,
    PARAMETERS,
    SOUTH,
    WEST,
    answer,
    desk,
    edited,
    listed,
    normalized,
    without,
)
from tests.junk_answers import check_junk
from tests.normalized_rows import failures_of, rows_of

POSITION_EDITS: list[tuple[dict[str, Any], FailureReason, str]] = [
    ({"size": "NaN"}, FailureReason.NOT_A_NUMBER, "size"),
    ({"size": None}, FailureReason.MISSING_FIELD, "size"),
    ({"size": "1e21"}, FailureReason.OUT_OF_RANGE, "size"),
    ({"size": "-1"}, FailureReason.OUT_OF_RANGE, "size"),
    ({"avgPrice": "0"}, FailureReason.OUT_OF_RANGE, "avgPrice"),
    ({"avgPrice": "x"}, FailureReason.NOT_A_NUMBER, "avgPrice"),
    ({"markPrice": "-60000"}, FailureReason.OUT_OF_RANGE, "markPrice"),
    ({"leverage": "0.5"}, FailureReason.OUT_OF_RANGE, "leverage"),
    ({"leverage": ""}, FailureReason.MISSING_FIELD, "leverage"),
    ({"side": "Up"}, FailureReason.MALFORMED, "side"),
    ({"side": ""}, FailureReason.MALFORMED, "side"),
    ({"positionIdx": 2}, FailureReason.INCONSISTENT, "side"),
    ({"positionIdx": 3}, FailureReason.MALFORMED, "positionIdx"),
    ({"positionIdx": True}, FailureReason.MALFORMED, "positionIdx"),
    ({"symbol": "BTCEUR"}, FailureReason.UNKNOWN_MARKET, "symbol"),
    ({"symbol": "WIFUSDT"}, FailureReason.UNKNOWN_MARKET, "symbol"),
    ({"symbol": 5}, FailureReason.MALFORMED, "symbol"),
    ({"liqPrice": "-1"}, FailureReason.OUT_OF_RANGE, "liqPrice"),
]


@pytest.mark.parametrize(("edit", "reason", "field"), POSITION_EDITS)
def test_a_bad_position_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, field: str
) -> None:
    payloads = edited(desk(), "positions_north_linear.json", lambda body: body["result"]["list"][0].update(edit))
    result = normalized(payloads)
    found = [f for f in failures_of(result, NORTH) if f.reason == reason and f.path == f"result.list[0].{field}"]
    assert [f.payload for f in found] == ["positions_north_linear.json"]
    assert {f.account_id for f in result.failures} == {NORTH}
    assert not rows_of(result, "positions", account_id=NORTH, instrument_id="bybit:BTCUSDT")
    assert len(rows_of(result, "positions", account_id=NORTH)) == 6  # the others stay


COIN_EDITS: list[tuple[dict[str, Any], FailureReason, str]] = [
    ({"walletBalance": "NaN"}, FailureReason.NOT_A_NUMBER, "walletBalance"),
    ({"walletBalance": None}, FailureReason.MISSING_FIELD, "walletBalance"),
    ({"walletBalance": True}, FailureReason.NOT_A_NUMBER, "walletBalance"),
    ({"spotBorrow": "-3"}, FailureReason.OUT_OF_RANGE, "spotBorrow"),
    ({"totalOrderIM": None}, FailureReason.MISSING_FIELD, "totalOrderIM"),
    ({"collateralSwitch": "perhaps"}, FailureReason.MALFORMED, "collateralSwitch"),
    ({"collateralSwitch": None}, FailureReason.MISSING_FIELD, "collateralSwitch"),
    ({"coin": "WAGMI"}, FailureReason.UNKNOWN_ASSET, "coin"),
    ({"usdValue": "1"}, FailureReason.INCONSISTENT, "totalEquity"),
]


@pytest.mark.parametrize(("edit", "reason", "field"), COIN_EDITS)
def test_a_bad_coin_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, field: str
) -> None:
    payloads = edited(desk(), "wallet_north.json", lambda body: body["result"]["list"][0]["coin"][0].update(edit))
    result = normalized(payloads)
    place = "result.list[0]." if field == "totalEquity" else "result.list[0].coin[0]."
    assert (reason, place + field) in {(f.reason, f.path) for f in failures_of(result, NORTH)}
    assert {f.account_id for f in result.failures} == {NORTH}
    assert rows_of(result, "accounts", account_id=NORTH)


@pytest.mark.parametrize(
    "name",
    ["wallet_north.json", "positions_north_linear.json", "orders_north.json", "info_north.json", "fee_rate_north.json"],
)
@pytest.mark.parametrize("body", [None, "x", {}, {"retCode": 10001, "retMsg": "params error", "result": {}}, 7])
def test_an_unreadable_answer_makes_its_account_incomplete_and_no_other(name: str, body: Any) -> None:
    result = normalized([replace(p, body=body) if p.name == name else p for p in desk()])
    assert {f.account_id for f in result.failures} == {NORTH}
    assert all(f.payload == name for f in result.failures if f.path == "retCode")


@pytest.mark.parametrize(
    ("gone", "account", "reason"),
    [
        ("wallet_north.json", NORTH, FailureReason.MISSING_FIELD),
        ("positions_north_option.json", NORTH, FailureReason.MISSING_FIELD),
        ("risk_limit_linear.json", NORTH, FailureReason.MISSING_PARAMETER),
        ("risk_limit_inverse.json", NORTH, FailureReason.MISSING_PARAMETER),
        ("collateral_tiers.json", NORTH, FailureReason.MISSING_PARAMETER),
        ("tickers_option.json", NORTH, FailureReason.MISSING_MARK),
        ("positions_east_linear.json", EAST, FailureReason.MISSING_FIELD),
    ],
)
def test_what_an_account_needs_and_nobody_sent(gone: str, account: str, reason: FailureReason) -> None:
    payloads = without(desk(), gone)
    if gone == "positions_north_option.json":
        payloads = without(payloads, "positions_north_linear.json")  # then nothing explains the margin in USDT
    result = normalized(payloads)
    assert reason in {f.reason for f in failures_of(result, account)}


def test_a_short_option_without_factors_and_a_position_without_a_fee_are_not_computed() -> None:
    result = normalized(desk(), {key: value for key, value in PARAMETERS.items() if key not in ("options", "fees")})
    messages = {f.message for f in failures_of(result, NORTH)}
    assert any("factors of short BTC options" in message for message in messages)
    assert any("no taker rate of ETHUSDT" in message for message in messages)
    assert not any("taker rate of BTCUSDT" in message for message in messages)  # its owner's own is known


def test_two_answers_to_one_question_are_both_rejected() -> None:
    for name, account in (
        ("wallet_north.json", NORTH),
        ("positions_north_linear.json", NORTH),
        ("tickers_linear.json", None),
    ):
        again = [p for p in desk() if p.name == name]
        for order in ([*desk(), *again], [*again, *desk()]):
            result = normalized(order)
            assert [f.account_id for f in result.failures if f.reason == FailureReason.DUPLICATE] == [account]
    twice = edited(desk(), "positions_north_linear.json", lambda b: b["result"]["list"].append(b["result"]["list"][0]))
    result = normalized(twice)
    assert [(f.reason, f.path) for f in failures_of(result, NORTH)] == [(FailureReason.DUPLICATE, "result.list[3]")]
    assert not rows_of(result, "positions", account_id=NORTH, instrument_id="bybit:BTCUSDT")
    both = listed({"symbol": "BTCUSDT", "markPrice": "1", "indexPrice": "1"}, category="linear")
    contradicted = normalized([*desk(), answer("market/tickers:linear:BTCUSDT", both)])
    assert [(f.reason, f.subject, f.account_id) for f in contradicted.failures] == [
        (FailureReason.DUPLICATE, "BTCUSDT", None)
    ]


def test_requests_that_are_not_understood_and_owners_that_are_not_named() -> None:
    unknown = normalized([answer("v5/asset/coin/query-info", {}, "north")])
    assert [(f.reason, f.subject) for f in unknown.failures] == [(FailureReason.UNSUPPORTED, "north")]
    nobody = normalized([answer("position/list", listed())])
    assert [(f.reason, f.path) for f in nobody.failures] == [(FailureReason.MISSING_FIELD, "account")]


def test_a_coin_that_stands_twice_and_totals_below_their_parts() -> None:
    def twice(body: Any) -> None:
        coins = body["result"]["list"][0]["coin"]
        coins.append(coins[0])

    result = normalized(edited(desk("south"), "wallet_south.json", twice))
    assert (FailureReason.DUPLICATE, "result.list[0].coin[4]") in {
        (f.reason, f.path) for f in failures_of(result, SOUTH)
    }

    def shrink(body: Any) -> None:
        body["result"]["list"][0].update(totalMaintenanceMargin="100", totalMaintenanceMarginByMp="100")

    result = normalized(edited(desk("north"), "wallet_north.json", shrink))
    assert [(f.reason, f.path) for f in failures_of(result, NORTH)] == [
        (FailureReason.INCONSISTENT, "result.list[0].totalMaintenanceMargin")
    ]

    def silence(body: Any) -> None:
        del body["result"]["list"][0]["coin"][3]["totalPositionMM"]

    result = normalized(edited(desk("north"), "wallet_north.json", silence))
    assert [(f.reason, f.path) for f in failures_of(result, NORTH)] == [
        (FailureReason.MISSING_FIELD, "result.list[0].coin[3]")
    ]


def test_positions_that_do_not_explain_the_wallets_margin() -> None:
    def shorten(body: Any) -> None:
        del body["result"]["list"][0]

    result = normalized(edited(desk("south"), "positions_south_linear.json", shorten))
    assert [(f.reason, f.path) for f in failures_of(result, SOUTH)] == [
        (FailureReason.INCONSISTENT, "result.list[0].coin[0].totalPositionMM")
    ]


def test_wallets_of_other_types_and_modes_that_nobody_knows() -> None:
    def classic(body: Any) -> None:
        body["result"]["list"].append(dict(body["result"]["list"][0], accountType="CONTRACT"))

    result = normalized(edited(desk("harbor"), "wallet_harbor.json", classic))
    assert [(f.reason, f.path) for f in failures_of(result, HARBOR)] == [
        (FailureReason.UNSUPPORTED, "result.list[1].accountType")
    ]
    odd = edited(desk("west"), "info_west.json", lambda body: body["result"].update(marginMode="NEW_MARGIN"))
    assert (FailureReason.UNSUPPORTED, "result.marginMode") in {
        (f.reason, f.path) for f in failures_of(normalized(odd), WEST)
    }


def test_spot_orders_are_a_finding() -> None:
    spot = listed({"orderId": "1", "symbol": "BTCUSDT", "side": "Buy", "qty": "1", "price": "5"}, category="spot")
    result = normalized([*desk("south"), answer("order/realtime:spot", spot, "south")])
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.UNSUPPORTED, None)]


def test_more_leverage_than_the_tier_allows_is_a_finding() -> None:
    payloads = edited(desk(), "positions_north_linear.json", lambda b: b["result"]["list"][0].update(leverage="80"))
    (finding,) = normalized(payloads).failures  # 40.5 BTC are 2.47 million: the second tier, up to 66.67
    assert (finding.reason, finding.account_id) == (FailureReason.INCONSISTENT, None)
    assert "at most 66.67" in finding.message


def test_truncated_and_missing_files_are_said_by_the_transport(tmp_path: Path) -> None:
    text = (FOLDER / "wallet_north.json").read_text(encoding="utf-8")
    (tmp_path / "cut.json").write_text(text[: len(text) // 2], encoding="utf-8")
    transport = RecordedTransport(tmp_path)
    reasons = []
    for name in ("cut.json", "gone.json"):
        failure = transport.fetch("bybit", PayloadRequest("account/wallet-balance", name, "north"))
        assert isinstance(failure, Failure)
        reasons.append(failure.reason)
    assert reasons == [FailureReason.MALFORMED, FailureReason.UNREACHABLE]


def test_mutated_answers_never_raise_and_never_leave_an_unflagged_gap() -> None:
    check_junk(normalized, desk(), seed=20240630, count=80)
