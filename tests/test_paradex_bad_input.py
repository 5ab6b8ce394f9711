"""Paradex: every way for a payload to be wrong, and whom it concerns."""

import copy
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.asset_book import Asset, AssetBook
from adapters.transport import PayloadRequest, RecordedTransport
from aggregator.errors import Failure, FailureReason
from tests.desk_paradex import DESK, GRID, PAYLOADS, SOL, SUBACCOUNT, R, normalized, sample, with_change
from tests.normalized_rows import incomplete, only, rows_of
from tests.payload_files import changed


def setter(index: int, **values: Any) -> Callable[[Any], None]:
    return lambda body: body["results"][index].update(values)


def remover(index: int, key: str) -> Callable[[Any], None]:
    return lambda body: body["results"][index].pop(key)


BAD_ACCOUNTS = [
    ("grid_positions", remover(0, "size"), R.MISSING_FIELD, "results[0].size", GRID),
    ("grid_positions", remover(0, "side"), R.MISSING_FIELD, "results[0].side", GRID),
    ("grid_positions", remover(0, "market"), R.MISSING_FIELD, "results[0].market", GRID),
    ("grid_positions", remover(0, "average_entry_price"), R.MISSING_FIELD, "results[0].average_entry_price", GRID),
    ("grid_positions", setter(0, size="NaN"), R.NOT_A_NUMBER, "results[0].size", GRID),
    ("grid_positions", setter(0, size="three"), R.NOT_A_NUMBER, "results[0].size", GRID),
    ("grid_positions", setter(0, size=True), R.NOT_A_NUMBER, "results[0].size", GRID),
    ("grid_positions", setter(0, average_entry_price="-5"), R.OUT_OF_RANGE, "results[0].average_entry_price", GRID),
    ("grid_positions", setter(0, market="FOO-USD-PERP"), R.UNKNOWN_MARKET, "results[0].market", GRID),
    ("grid_positions", setter(0, market=["x"]), R.MALFORMED, "results[0].market", GRID),
    ("grid_positions", setter(0, side="SIDEWAYS"), R.MALFORMED, "results[0].side", GRID),
    ("grid_positions", setter(0, side="LONG"), R.INCONSISTENT, "results[0].size", GRID),
    ("grid_positions", setter(0, status="HALF"), R.UNSUPPORTED, "results[0].status", GRID),
    ("grid_positions", setter(0, unrealized_pnl="9e9"), R.INCONSISTENT, "results[0].unrealized_pnl", GRID),
    ("grid_positions", setter(0, liquidation_price="-1"), R.OUT_OF_RANGE, "results[0].liquidation_price", GRID),
    ("grid_positions", setter(0, unrealized_funding_pnl="x"), R.NOT_A_NUMBER, None, GRID),
    ("grid_positions", setter(0, account="0xffff"), R.MISSING_FIELD, None, None),
    ("grid_positions", lambda b: b.update(results="none"), R.MALFORMED, "results", GRID),
    ("grid_positions", lambda b: b.clear(), R.MISSING_FIELD, "results", GRID),
    ("grid_positions", lambda b: b["results"].append(b["results"][0]), R.DUPLICATE, "results[5]", GRID),
    ("grid_positions", lambda b: b["results"].append(7), R.MALFORMED, "results[5]", GRID),
    ("grid_balance", setter(0, size="much"), R.NOT_A_NUMBER, "results[0].size", GRID),
    ("grid_balance", setter(0, token="PUMPKIN"), R.UNKNOWN_ASSET, "results[0].token", GRID),
    ("grid_balance", remover(0, "token"), R.MISSING_FIELD, "results[0].token", GRID),
    ("grid_balance", lambda b: b["results"].append(b["results"][0]), R.DUPLICATE, "results[1]", GRID),
    ("grid_orders", setter(0, price="cheap"), R.NOT_A_NUMBER, "results[0].price", GRID),
    ("grid_orders", setter(0, price="-1"), R.OUT_OF_RANGE, "results[0].price", GRID),
    ("grid_orders", setter(0, side=""), R.MALFORMED, "results[0].side", GRID),
    ("grid_orders", setter(0, market="FOO"), R.UNKNOWN_MARKET, "results[0].market", GRID),
    ("grid_orders", lambda b: b.update(next="eyJ"), R.MISSING_FIELD, "next", GRID),
    ("grid_orders", lambda b: b["results"].append(b["results"][0]), R.DUPLICATE, "results[3]", GRID),
    ("grid_account", lambda b: b.pop("account_value"), R.MISSING_FIELD, "account_value", GRID),
    ("grid_account", lambda b: b.update(account_value="x"), R.NOT_A_NUMBER, "account_value", GRID),
    ("grid_account", lambda b: b.update(settlement_asset="USDT"), R.UNSUPPORTED, "settlement_asset", GRID),
    ("grid_account", lambda b: b.pop("maintenance_margin_requirement"), R.MISSING_FIELD, None, GRID),
    ("grid_info", lambda b: b["fees"].update(taker_rate="2"), R.OUT_OF_RANGE, "fees.taker_rate", GRID),
    ("grid_info", lambda b: b.update(fees="none"), R.MALFORMED, "fees", GRID),
    ("grid_margin", lambda b: b.update(margin_methodology="guess"), R.UNSUPPORTED, "margin_methodology", GRID),
    ("grid_margin", lambda b: b.update(configs=7), R.MALFORMED, "configs", GRID),
    ("desk_margin", lambda b: b["configs"][0].update(leverage=0), R.OUT_OF_RANGE, "configs[0].leverage", DESK),
    ("desk_positions", setter(0, account="0xdead"), R.MISSING_FIELD, None, None),
]


@pytest.mark.parametrize(("file", "change", "reason", "path", "account"), BAD_ACCOUNTS)
def test_a_bad_field_makes_its_account_incomplete_and_no_other(
    file: str, change: Callable[[Any], Any], reason: FailureReason, path: str | None, account: str | None
) -> None:
    result = with_change(file, change)
    assert result.failures, "nothing failed"
    if account is not None:
        assert incomplete(result) == {account}, result.failures
        assert any(f.reason == reason and f.payload == f"{file}.json" for f in result.failures), result.failures
        if path is not None:
            assert any(f.path == path for f in result.failures), result.failures
    # Every account is still shown, and the other ones are computed as before.
    shown = {row["account_id"] for row in rows_of(result, "accounts")}
    assert {DESK, SOL, GRID} <= shown


BAD_MARKETS = [
    ("markets", setter(0, asset_kind="LOTTERY"), {DESK, GRID}),
    ("markets", lambda b: b["results"][0].pop("delta1_cross_margin_params"), {DESK, GRID}),
    ("markets", lambda b: b["results"][0]["delta1_cross_margin_params"].update(imf_base="-1"), {DESK, GRID}),
    ("markets", lambda b: b["results"][0]["delta1_cross_margin_params"].update(imf_base="1.5"), {DESK, GRID}),
    ("markets", lambda b: b["results"].append(b["results"][2]), {DESK, SOL}),
    ("markets", setter(4, strike_price="0"), {DESK, GRID}),
    ("markets", setter(4, option_type="CALL"), {DESK, GRID}),
    ("markets", lambda b: b["results"][4]["option_cross_margin_params"]["imf"].pop("short_otm"), {DESK, GRID}),
    ("markets", lambda b: b["results"].append("nonsense"), set()),
    ("markets", setter(8, asset_kind="LOTTERY"), set()),
    ("markets_summary", setter(0, mark_price="-1"), {GRID}),
    ("markets_summary", setter(0, underlying_price="NaN"), {GRID}),
    ("markets_summary", setter(2, mark_price="x"), {DESK}),
    ("markets_summary", setter(1, underlying_price="1E-300"), {GRID}),
    ("markets_summary", setter(1, interest_rate="40"), {GRID}),
    ("margin_config", lambda b: b["results"][1]["vol_shock_params"].update(dte_floor_days=0), {GRID}),
    ("margin_config", lambda b: b["results"][1]["vol_shock_params"].update(vega_power_long_dte=99), {GRID}),
    ("margin_config", lambda b: b["results"][0]["scenarios"][3].pop("weight"), {GRID}),
    ("margin_config", lambda b: b["results"][0]["scenarios"][3].update(spot_shock=-1), {GRID}),
    ("margin_config", lambda b: b["results"][0].update(mmf_factor="half"), {GRID}),
    ("system_config", lambda b: b.update(liquidation_fee="x"), set()),
    ("bbo_btc", lambda b: b.update(market="FOO-USD-PERP"), set()),
    ("bbo_btc", lambda b: b.update(bid="-2"), set()),
]


@pytest.mark.parametrize(("file", "change", "accounts"), BAD_MARKETS)
def test_a_bad_market_row_concerns_its_holders_only(
    file: str, change: Callable[[Any], Any], accounts: set[str]
) -> None:
    result = with_change(file, change)
    assert result.failures
    assert incomplete(result) - {None} == accounts, result.failures


def test_positions_or_balance_that_are_not_there() -> None:
    for name in ("grid_positions", "grid_balance"):
        result = normalized(*(payload for file, payload in sample().items() if file != name))
        assert {(f.reason, f.account_id) for f in result.failures} == {(R.MISSING_FIELD, GRID)}


def test_a_list_speaks_for_whom_it_was_asked_and_whom_it_names() -> None:
    """Without its row in the owner's list and without a list of its own, the isolated account is unknown, not flat."""

    def without_isolated(body: Any) -> None:
        body["results"] = [row for row in body["results"] if row["account"] != SUBACCOUNT]

    result = with_change("desk_positions", without_isolated)
    assert {(f.reason, f.account_id) for f in result.failures} == {(R.MISSING_FIELD, SOL)}
    payloads = sample()
    body = copy.deepcopy(payloads["desk_positions"].body)
    own = [row for row in body["results"] if row["account"] == SUBACCOUNT]
    without_isolated(body)
    payloads["desk_positions"] = replace(payloads["desk_positions"], body=body)
    asked = replace(payloads["desk_positions"], request=f"v1/positions:{SUBACCOUNT}", body={"results": own}, name="own")
    result = normalized(*payloads.values(), asked)
    assert result.failures == []
    assert only(result, "positions", account_id=SOL)["quantity"] == -120


def test_two_margin_payloads_that_contradict_each_other() -> None:
    other = replace(
        sample()["grid_margin"],
        request="v1/account/margin:ETH-USD-PERP",
        name="other.json",
        body={"margin_methodology": "cross_margin", "configs": [{"market": "ETH-USD-PERP", "leverage": 5}]},
    )
    result = normalized(*sample().values(), other)
    assert {(f.reason, f.account_id) for f in result.failures} == {(R.INCONSISTENT, GRID)}


def test_two_answers_to_one_question_are_both_rejected() -> None:
    payloads = list(sample().values())
    twice = replace(sample()["grid_positions"], name="again.json", sha256="other")
    result = normalized(*payloads, twice)
    assert {f.payload for f in result.failures if f.reason == R.DUPLICATE} == {"grid_positions.json", "again.json"}
    assert incomplete(result) == {GRID}
    market = replace(sample()["markets"], name="again.json")
    result = normalized(*payloads, market)
    assert {f.reason for f in result.failures} >= {R.DUPLICATE, R.UNKNOWN_MARKET}
    lone = replace(sample()["grid_account"], account="alone")
    result = normalized(lone, replace(lone, name="again.json"))
    assert only(result, "accounts")["account_id"] == "paradex:alone"


def test_errors_of_the_venue_and_truncated_files(tmp_path: Path) -> None:
    result = with_change("grid_positions", lambda b: (b.clear(), b.update(error="NOT_ONBOARDED", message="no")))
    assert (R.MALFORMED, GRID) in {(f.reason, f.account_id) for f in result.failures}
    (tmp_path / "cut.json").write_text((PAYLOADS / "grid_positions.json").read_text()[:200])
    failure = RecordedTransport(tmp_path).fetch("paradex", PayloadRequest("v1/positions", "cut.json", "grid"))
    assert isinstance(failure, Failure)
    assert failure.reason == R.MALFORMED


def test_requests_and_owners_that_are_not_there() -> None:
    unknown = replace(sample()["markets"], request="v1/vaults")
    assert [f.reason for f in normalized(unknown).failures] == [R.UNSUPPORTED]
    nobody = replace(sample()["grid_positions"], account="")
    assert [f.reason for f in normalized(nobody).failures] == [R.MISSING_FIELD]
    market = replace(sample()["grid_positions"], request="v1/positions:BTC-USD-PERP")
    assert R.UNSUPPORTED in {f.reason for f in normalized(market).failures}


def test_an_asset_book_without_the_settlement_asset() -> None:
    book = AssetBook({"BTC": Asset("BTC", "BTC", Decimal(1), None, None)})
    result = normalized(*sample().values(), assets=book)
    assert {DESK, SOL, GRID} <= incomplete(result)


def configs(value: Any) -> Callable[[Any], None]:
    return lambda body: body.update(configs=value)


@pytest.mark.parametrize(
    ("file", "account"), [("desk_margin", DESK), ("desk_margin_isolated", SOL), ("grid_margin", GRID)]
)
def test_without_its_margin_answer_the_method_of_an_account_is_not_known(file: str, account: str) -> None:
    """Cross margin at the largest leverage is no stand-in: an isolated account would need half, a portfolio another."""
    result = normalized(*(payload for name, payload in sample().items() if name != file))
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        (R.MISSING_FIELD, "margin_methodology", account)
    ]
    assert "v1/account/margin" in result.failures[0].message


@pytest.mark.parametrize(("file", "account"), [("desk_margin", DESK), ("desk_margin_isolated", SOL)])
@pytest.mark.parametrize("change", [configs(None), configs([]), lambda body: body.pop("configs")])
def test_a_perpetual_whose_leverage_is_not_stated(file: str, account: str, change: Callable[[Any], Any]) -> None:
    result = with_change(file, change)
    assert [(f.reason, f.path, f.account_id, f.payload) for f in result.failures] == [
        (R.MISSING_FIELD, "configs", account, f"{file}.json")
    ]
    assert "SOL-USD-PERP" in result.failures[0].message


def test_an_account_that_holds_nothing_needs_no_margin_answer() -> None:
    def flat(body: Any) -> None:
        body["results"] = []

    payloads = sample()
    del payloads["grid_margin"]
    for name in ("grid_positions", "grid_orders"):
        payloads[name] = changed(payloads[name], flat)
    assert normalized(*payloads.values()).failures == []


def test_an_unknown_token_is_a_note_of_its_worth_in_the_venues_figures() -> None:
    """The desk's account value is 375 above what is known of it, which is what its 250 unknown tokens are worth."""

    def hold(body: Any) -> None:
        body["results"].append({"token": "NOBODY", "size": "250", "last_updated_at": 1})

    def count(body: Any) -> None:
        (own,) = [row for row in body["results"] if row["account"] != SUBACCOUNT]
        for key in ("account_value", "initial_margin_requirement", "maintenance_margin_requirement"):
            own[key] = str(Decimal(own[key]) + 375)

    payloads = sample()
    payloads["desk_balance"] = changed(payloads["desk_balance"], hold)
    payloads["desk_account"] = changed(payloads["desk_account"], count)
    result = normalized(*payloads.values())
    (finding,) = result.failures
    assert (finding.reason, finding.subject, finding.account_id) == (R.UNKNOWN_ASSET, DESK, None)
    assert "counts for nothing" not in finding.message
    notes = {r["field"]: r["value"] for r in rows_of(result, "market_state", market=DESK)}
    assert notes == {
        f"reconciliation_note.{figure}": pytest.approx(375, abs=0.01)
        for figure in ("equity", "initial_margin", "maintenance_margin")
    }
