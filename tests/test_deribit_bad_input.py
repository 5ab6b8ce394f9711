"""Deribit: every way for a payload to be wrong, and whom it concerns."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from adapters.transport import Payload
from aggregator.errors import ConfigurationError
from aggregator.rule_forms import Fixed
from aggregator.snapshot import take_snapshot
from tests.desk_deribit import (
    EAST,
    NORTH_BTC,
    NORTH_USDC,
    PARAMETERS,
    QUAY,
    SOUTH,
    WEST,
    desk,
    desk_with,
    desk_without,
    fetched,
    normalized,
)
from tests.normalized_rows import failures_of, forms_of, only, rows_of
from tests.payload_files import changed, dropping, setting


def result_of(body: Any) -> Any:
    return body["result"]


def first(body: Any) -> Any:
    return body["result"][0]


def summary(body: Any) -> Any:
    return body["result"]["summaries"][0]


BAD = [
    ("north_positions_btc.json", dropping(first, "size"), "[0].size", "missing_field", NORTH_BTC),
    ("north_positions_btc.json", setting(first, "size", "many"), "[0].size", "not_a_number", NORTH_BTC),
    ("north_positions_btc.json", setting(first, "size", Decimal("NaN")), "[0].size", "not_a_number", NORTH_BTC),
    ("north_positions_btc.json", setting(first, "size", True), "[0].size", "not_a_number", NORTH_BTC),
    ("north_positions_btc.json", setting(first, "direction", "sell"), "[0].direction", "inconsistent", NORTH_BTC),
    (
        "north_positions_btc.json",
        setting(first, "mark_price", Decimal(-1)),
        "[0].mark_price",
        "out_of_range",
        NORTH_BTC,
    ),
    ("north_positions_btc.json", setting(first, "mark_price", Decimal(0)), "[0].mark_price", "out_of_range", NORTH_BTC),
    (
        "north_positions_btc.json",
        setting(first, "average_price", None),
        "[0].average_price",
        "missing_field",
        NORTH_BTC,
    ),
    ("north_positions_btc.json", setting(first, "size", Decimal("1e30")), "[0].size", "out_of_range", NORTH_BTC),
    (
        "north_positions_btc.json",
        setting(first, "instrument_name", "BTC-PERP"),
        "[0].instrument_name",
        "unknown_market",
        NORTH_BTC,
    ),
    (
        "north_positions_btc.json",
        setting(first, "instrument_name", "NOSUCH-PERPETUAL"),
        "[0].instrument_name",
        "missing_field",
        "deribit:north:NOSUCH",
    ),
    ("north_positions_btc.json", lambda body: body.update(result=7), "", "malformed", NORTH_BTC),
    ("north_positions_btc.json", lambda body: body["result"].append("x"), "[6]", "malformed", NORTH_BTC),
    ("north_positions_btc.json", lambda body: body["result"].append(first(body)), "[6]", "duplicate", NORTH_BTC),
    (
        "north_positions_usdc.json",
        dropping(first, "index_price"),
        "[0].index_price",
        "missing_mark",
        NORTH_USDC,
    ),
    ("north_summaries.json", dropping(summary, "equity"), "summaries[0].equity", "missing_field", NORTH_BTC),
    ("north_summaries.json", setting(summary, "equity", "x"), "summaries[0].equity", "not_a_number", NORTH_BTC),
    (
        "north_summaries.json",
        setting(summary, "margin_model", "house"),
        "summaries[0].margin_model",
        "malformed",
        NORTH_BTC,
    ),
    (
        "north_summaries.json",
        setting(summary, "margin_model", ["segregated_sm"]),
        "summaries[0].margin_model",
        "malformed",
        NORTH_BTC,
    ),
    (
        "north_summaries.json",
        setting(summary, "margin_model", "cross_sm"),
        "summaries[0].margin_model",
        "inconsistent",
        NORTH_BTC,
    ),
    (
        "north_summaries.json",
        setting(summary, "initial_margin", Decimal(-1)),
        "summaries[0].initial_margin",
        "out_of_range",
        NORTH_BTC,
    ),
    (
        "north_summaries.json",
        lambda body: body["result"]["summaries"].append(summary(body)),
        "summaries[3].currency",
        "duplicate",
        NORTH_BTC,
    ),
    ("north_summaries.json", lambda body: body.update(error={"code": 13004}), "error", "malformed", NORTH_BTC),
    ("north_open_orders.json", setting(first, "direction", "up"), "[0].direction", "malformed", NORTH_BTC),
    ("north_open_orders.json", setting(first, "filled_amount", 9e9), "[0].filled_amount", "not_a_number", NORTH_BTC),
    (
        "north_open_orders.json",
        setting(first, "filled_amount", Decimal("9e9")),
        "[0].filled_amount",
        "inconsistent",
        NORTH_BTC,
    ),
    ("north_open_orders.json", setting(first, "order_id", "28611"), "[1].order_id", "duplicate", NORTH_BTC),
    ("south_summaries.json", lambda body: body["result"]["summaries"].pop(), "summaries", "inconsistent", SOUTH),
    (
        "ticker_btc_27sep24_70000_c.json",
        dropping(result_of, "mark_iv"),
        "[2].instrument_name",
        "missing_mark",
        NORTH_BTC,
    ),
    (
        "ticker_btc_27sep24_70000_c.json",
        dropping(result_of, "underlying_price"),
        "[2].instrument_name",
        "missing_mark",
        SOUTH,
    ),
]


@pytest.mark.parametrize(("file", "change", "path", "reason", "account"), BAD)
def test_bad_input_is_a_failure_of_its_account(
    file: str, change: Callable[[Any], None], path: str, reason: str, account: str
) -> None:
    result = normalized(desk_with(file, change))
    found = [f for f in failures_of(result, account) if f.reason == reason and f.payload]
    assert any(f.path == path or account == SOUTH for f in found), result.failures
    assert all(f.venue == "deribit" for f in result.failures)
    snapshot = take_snapshot([result.batches], result.failures)
    assert account in snapshot.incomplete
    # the other owners go on
    assert {EAST, WEST, QUAY} - snapshot.incomplete >= ({EAST, WEST, QUAY} if not file.startswith("ticker") else {QUAY})
    assert account in {row["account_id"] for row in rows_of(result, "accounts")}


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("ticker_btc_perpetual.json", dropping(result_of, "instrument_name"), "missing_field"),
        ("ticker_btc_perpetual.json", setting(result_of, "mark_price", Decimal(-1)), "out_of_range"),
        ("ticker_btc_perpetual.json", setting(result_of, "timestamp", 10**17), "out_of_range"),
        ("index_btc_usd.json", setting(result_of, "index_price", "cheap"), "not_a_number"),
        ("instruments_btc.json", setting(first, "settlement_currency", "ETH"), "inconsistent"),
        ("instruments_btc.json", setting(first, "kind", "future_combo"), "unsupported"),
        ("instruments_btc.json", lambda body: body["result"].append(first(body)), "duplicate"),
        ("pme_params.json", lambda body: result_of(body)["general"].pop("mm_factor"), "missing_field"),
        (
            "pme_params.json",
            lambda body: result_of(body)["currency_pair"]["btc_usd"].update(price_range=Decimal(1)),
            "out_of_range",
        ),
        ("east_simulation.json", lambda body: result_of(body).update(margins=[]), "malformed"),
        (
            "east_simulation.json",
            lambda body: result_of(body)["portfolio"]["position"].pop("BTC-PERPETUAL"),
            "inconsistent",
        ),
    ],
)
def test_bad_market_answers_leave_the_accounts_alone(file: str, change: Callable[[Any], None], reason: str) -> None:
    result = normalized(desk_with(file, change))
    assert [f.reason for f in result.failures if f.payload == file] == [reason]
    assert not any(f.account_id for f in result.failures)


def test_answers_that_are_missing() -> None:
    positions = normalized(desk_without("north_positions_btc.json"))
    assert [(f.reason, f.path) for f in failures_of(positions, NORTH_BTC)] == [
        ("missing_field", "summaries[0].currency")
    ]
    summaries = normalized(desk_without("north_summaries.json"))
    assert {f.reason for f in failures_of(summaries, NORTH_BTC)} == {"missing_field"}
    assert {row["account_id"] for row in rows_of(summaries, "accounts")} >= {NORTH_BTC, NORTH_USDC}
    # without live parameters the dated ones hold
    dated = normalized(desk_without("pme_params.json", "east_simulation.json"))
    assert dated.failures == []
    assert "configs/venues/deribit.toml" in rows_of(dated, "rule_sets", rule_set="deribit:pm:west:cross")[0]["source"]
    bare = normalized(desk_without("pme_params.json", "east_simulation.json"), {"as_of": "2024-01-01", "source": "-"})
    assert {f.reason for f in bare.failures} == {"missing_parameter"}
    assert {f.account_id for f in bare.failures} == {NORTH_BTC, NORTH_USDC, SOUTH, EAST, WEST}


@pytest.mark.parametrize(("number", "path"), [(1, "futures_session_upl"), (3, "options_value")])
def test_a_position_that_is_missing_is_a_finding(number: int, path: str) -> None:
    result = normalized(desk_with("north_positions_btc.json", lambda body: body["result"].pop(number)))
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        ("inconsistent", f"summaries[0].{path}", None)
    ]


def test_versions_of_a_summary_without_the_parts_of_equity() -> None:
    def older(body: Any) -> None:
        for key in ("futures_session_upl", "options_session_upl", "session_upl", "options_value"):
            summary(body).pop(key)

    result = normalized(desk_with("north_summaries.json", older))
    assert {(f.reason, f.path) for f in failures_of(result, NORTH_BTC)} == {
        ("missing_field", "summaries[0].options_value"),
        ("missing_field", "summaries[0].futures_session_upl"),
    }
    usdc = desk_with("north_summaries.json", lambda body: body["result"]["summaries"][1].pop("futures_session_upl"))
    assert normalized(usdc).failures == []  # session_upl less that of options is the same


@pytest.mark.parametrize("change", [setting(first, "open_orders_margin", None), dropping(first, "open_orders_margin")])
@pytest.mark.parametrize("orders", [True, False])
def test_a_margin_of_orders_that_is_not_stated_makes_the_account_incomplete(
    change: Callable[[Any], Any], orders: bool
) -> None:
    payloads = desk_with("north_positions_btc.json", change)
    result = normalized([p for p in payloads if orders or p.name != "north_open_orders.json"])
    assert [(f.reason, f.path, f.payload) for f in failures_of(result, NORTH_BTC)] == [
        ("missing_field", "[0].open_orders_margin", "north_positions_btc.json")
    ]
    assert take_snapshot([result.batches], result.failures).incomplete == {NORTH_BTC}


def test_an_order_without_a_row_that_states_its_margin() -> None:
    elsewhere = setting(first, "instrument_name", "ETH_USDC-PERPETUAL")
    result = normalized(desk_with("north_open_orders.json", elsewhere))
    assert [(f.reason, f.path, f.payload) for f in failures_of(result, NORTH_USDC)] == [
        ("missing_field", "[0].instrument_name", "north_open_orders.json")
    ]
    assert failures_of(result, NORTH_BTC) == []

    def reducing(body: Any) -> None:
        first(body).update(instrument_name="ETH_USDC-PERPETUAL", reduce_only=True)

    assert normalized(desk_with("north_open_orders.json", reducing)).failures == []

    # a row without a position states it as well
    def idle(body: Any) -> None:
        row = {"instrument_name": "ETH_USDC-PERPETUAL", "direction": "zero", "size": 0, "average_price": 0}
        body["result"].append({**row, "open_orders_margin": Decimal("17.5")})

    stated = [
        changed(p, idle) if p.name == "north_positions_usdc.json" else p
        for p in desk_with("north_open_orders.json", elsewhere)
    ]
    whole = normalized(stated)
    assert whole.failures == []
    assert [form.initial for form in forms_of(whole, NORTH_USDC, Fixed)] == [Decimal("17.5")]
    twice = replace(
        fetched("north_positions_usdc.json"),
        name="again.json",
        body={"result": [{"instrument_name": "ETH_USDC-PERPETUAL", "size": 0, "open_orders_margin": Decimal(3)}]},
    )
    assert "duplicate" in {f.reason for f in failures_of(normalized([*stated, twice]), NORTH_USDC)}
    # under portfolio margin no row states it
    assert (
        normalized(desk_with("east_open_orders.json", setting(first, "instrument_name", "BTC-26JUL24"))).failures == []
    )


def test_a_coin_without_rules() -> None:
    def held(body: Any) -> None:
        first(body).update(instrument_name="DOGE_USDC-PERPETUAL")

    result = normalized(desk_with("north_positions_usdc.json", held))
    assert [(f.reason, f.path) for f in failures_of(result, NORTH_USDC)] == [
        ("missing_parameter", "[0].instrument_name")
    ]


def test_two_answers_to_one_question() -> None:
    positions = fetched("north_positions_btc.json")
    result = normalized([*desk(), replace(positions, name="again.json")])
    assert {f.reason for f in failures_of(result, NORTH_BTC)} >= {"duplicate"}
    assert {f.account_id for f in result.failures} == {NORTH_BTC, NORTH_USDC}
    ticker = fetched("ticker_btc_perpetual.json")
    twice = normalized([*desk(), replace(ticker, name="again.json")])
    assert [(f.reason, f.account_id) for f in twice.failures] == [("duplicate", None)]


def test_requests_that_nobody_knows() -> None:
    odd = replace(fetched("pme_params.json"), request="public/get_time")
    mine = replace(fetched("north_summaries.json"), account="")
    result = normalized([odd, mine])
    assert [(f.reason, f.path) for f in result.failures] == [("missing_field", "account"), ("unsupported", "request")]


def test_a_wrong_parameter_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"futures\.BTC\.slope"):
        normalized([], {**PARAMETERS, "futures": {"BTC": {"initial": "0.02", "maintenance": "0.01"}}})


def test_the_newest_price_wins_and_two_of_one_time_are_none() -> None:
    older = changed(fetched("ticker_btc_perpetual.json"), setting(result_of, "mark_price", Decimal(1)))
    older.body["result"]["timestamp"] -= 5000
    message = replace(older, request="ticker.BTC-PERPETUAL.raw", name="message.json", body=older.body["result"])
    result = normalized([fetched("ticker_btc_perpetual.json"), message])
    mark = only(result, "marks", subject="deribit:BTC-PERPETUAL", field="mark")
    assert mark["value"] == 60975.5
    index = replace(fetched("index_btc_usd.json"), request="public/get_index_price:eth_usd", name="eth.json")
    clash = normalized(
        [fetched("index_eth_usd.json"), replace(index, name="b.json", request="/api/v2/public/get_index_price:ETH_usd")]
    )
    assert [f.reason for f in clash.failures] == ["inconsistent"]
    assert rows_of(clash, "marks", subject="ETH") == []


def test_the_order_of_payloads_does_not_matter() -> None:
    def tables(payloads: list[Payload]) -> Any:
        result = normalized(payloads)
        return {
            name: sorted(json.dumps(row, default=str, sort_keys=True) for row in table.to_pylist())
            for name, table in result.batches.items()
        }, sorted(str(failure) for failure in result.failures)

    bad = desk_with("north_positions_btc.json", setting(first, "size", "x"))
    for payloads in (desk(), bad):
        expected = tables(payloads)
        for seed in range(3):
            shuffled = payloads[:]
            random.Random(seed).shuffle(shuffled)
            assert tables(shuffled) == expected


def test_bare_results_and_other_requests_of_the_same_objects() -> None:
    bare = [replace(payload, body=payload.body.get("result", payload.body)) for payload in desk()]
    result = normalized(bare)
    assert result.failures == []
    single = fetched("north_positions_btc.json")
    singles = [
        replace(
            single,
            request="private/get_position",
            name=f"{number}.json",
            body={"result": record, "usOut": single.body["usOut"]},
        )
        for number, record in enumerate(single.body["result"])
    ]
    parts = normalized([*desk_without("north_positions_btc.json"), *singles])
    assert parts.failures == []
    assert rows_of(parts, "positions", account_id=NORTH_BTC) == rows_of(
        normalized(desk()), "positions", account_id=NORTH_BTC
    )
