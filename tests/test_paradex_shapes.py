"""Paradex: spellings of requests, older and partial answers, and where fee rates and bases come from."""

import copy
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from adapters.adapter import Normalized
from adapters.paradex import request_of
from adapters.transport import Payload
from aggregator.errors import ConfigurationError, FailureReason
from aggregator.rule_forms import Fixed, PriceVolGrid
from tests.desk_paradex import BTC_PERP, DESK, GRID, PARAMETERS, SUBACCOUNT, normalized, sample, with_change
from tests.normalized_rows import components_of, incomplete, only, rows_of


@pytest.mark.parametrize(
    ("text", "path", "part"),
    [
        ("/v1/positions", "positions", ""),
        ("positions", "positions", ""),
        ("https://api.prod.paradex.trade/v1/markets/summary?market=ALL", "markets/summary", "ALL"),
        ("v1/balance:0x1", "balance", "0x1"),
        ("v1/bbo/BTC-USD-PERP", "bbo", "BTC-USD-PERP"),
        ("/v1/system/margin-config?base_asset=BTC", "system/margin-config", "BTC"),
    ],
)
def test_spellings_of_a_request(text: str, path: str, part: str) -> None:
    assert request_of(text) == (path, part)


def test_bare_lists_single_objects_and_json_numbers_say_the_same() -> None:
    expected = normalized(*sample().values())

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            plain = ("symbol", "id", "market", "account", "token", "base_asset", "option_type", "last_fill_id")
            return {k: v if k in plain else numbers(v) for k, v in value.items()}
        if isinstance(value, list):
            return [numbers(entry) for entry in value]
        try:
            return Decimal(value) if isinstance(value, str) else value
        except ArithmeticError:
            return value

    payloads = sample()
    for name in ("desk_positions", "markets_summary", "margin_config"):
        payloads[name] = replace(payloads[name], body=numbers(payloads[name].body["results"]))
    payloads["grid_balance"] = replace(payloads["grid_balance"], body=payloads["grid_balance"].body["results"][0])
    payloads["grid_account"] = replace(payloads["grid_account"], body={"results": [payloads["grid_account"].body]})
    result = normalized(*payloads.values())
    assert result.failures == []
    assert {n: t.to_pylist() for n, t in result.batches.items()} == {
        n: t.to_pylist() for n, t in expected.batches.items()
    }


def test_markets_by_query_join_and_the_older_configuration_path_serves() -> None:
    payloads = sample()
    whole = payloads.pop("markets_summary")
    halves = [
        replace(whole, request=f"v1/markets/summary:{n}", name=str(n), body={"results": whole.body["results"][n::2]})
        for n in range(2)
    ]
    older = replace(payloads.pop("margin_config"), request="v1/system/portfolio-margin-config?base_asset=BTC")
    result = normalized(*payloads.values(), *halves, older)
    assert result.failures == []


def test_two_payloads_that_contradict_each_other() -> None:
    payloads = sample()
    other = copy.deepcopy(payloads["markets_summary"].body)
    other["results"][0]["mark_price"] = "61000"
    second = replace(payloads["markets_summary"], request="v1/markets/summary:BTC", name="other", body=other)
    result = normalized(*payloads.values(), second)
    assert FailureReason.INCONSISTENT in {failure.reason for failure in result.failures}
    assert not rows_of(result, "marks", account_id=None, subject=BTC_PERP, field="mark")
    assert GRID in incomplete(result)  # its spot and funding were that summary's


def test_an_account_without_address_and_info() -> None:
    """Only positions and balance, nothing names an address: one account, fees of the markets."""

    def bare(payload: Payload, keys: tuple[str, ...]) -> Payload:
        body = copy.deepcopy(payload.body)
        for record in body["results"]:
            for key in keys:
                record.pop(key, None)
        return replace(payload, account="lone", body=body)

    payloads = sample()
    market = [payloads[name] for name in ("markets", "markets_summary")]
    own = [bare(payloads["grid_positions"], ("account",)), bare(payloads["grid_balance"], ("account",))]
    leverages = [{"market": f"{coin}-USD-PERP", "leverage": 50} for coin in ("BTC", "ETH")]
    body = {"margin_methodology": "cross_margin", "configs": leverages}
    result = normalized(*market, *own, replace(payloads["grid_margin"], account="lone", body=body))
    assert result.failures == []
    account = only(result, "accounts")
    assert (account["account_id"], account["margin_mode"]) == ("paradex:lone", "cross")
    assert account["reported_equity"] is None


def test_fee_rates_come_from_the_account_then_the_market_then_the_file() -> None:
    def rate(result: Normalized) -> Decimal:
        row = only(result, "margin_tiers", rule_set="paradex:cross:desk", market=BTC_PERP)
        return row["maintenance_rate"] - Decimal("0.01")

    def dearer(body: Any) -> None:
        body["results"][0]["fees"]["taker_rate"] = "0.0009"

    def market_fee(body: Any) -> None:
        body["results"][0]["fee_config"]["rpi_fee"]["taker_fee"]["fee"] = "0.0007"

    def without_fees(body: Any) -> None:
        for record in body["results"]:
            record.pop("fee_config", None)

    assert rate(with_change("desk_info", dearer)) == Decimal("0.0009")

    others = ("desk_info", "desk_account", "desk_balance_isolated", "desk_margin_isolated")
    payloads = {name: payload for name, payload in sample().items() if name not in others}
    positions = copy.deepcopy(payloads["desk_positions"].body)
    positions["results"] = [row for row in positions["results"] if row["account"] != SUBACCOUNT]
    payloads["desk_positions"] = replace(payloads["desk_positions"], body=positions)

    def without_info(change: Callable[[Any], None], parameters: Any = PARAMETERS) -> Normalized:
        body = copy.deepcopy(payloads["markets"].body)
        change(body)
        changed = payloads | {"markets": replace(payloads["markets"], body=body)}
        return normalized(*changed.values(), parameters=parameters)

    assert rate(without_info(market_fee)) == Decimal("0.0007")
    assert rate(without_info(without_fees)) == Decimal("0.0003")
    silent = without_info(without_fees, {})
    assert FailureReason.MISSING_PARAMETER in {f.reason for f in silent.failures if f.account_id == DESK}


def test_a_dated_configuration_serves_where_no_payload_names_the_base() -> None:
    payloads = sample()
    result = normalized(*(payload for name, payload in payloads.items() if name != "margin_config"))
    assert result.failures == []
    grids = [form for _, form in components_of(result, "paradex:portfolio:grid") if isinstance(form, PriceVolGrid)]
    assert len(grids[0].scenarios) == 24
    without = {key: value for key, value in PARAMETERS.items() if key != "portfolio_margin"}
    rest = [payload for name, payload in payloads.items() if name != "margin_config"]
    result = normalized(*rest, parameters=without)
    assert {(f.reason, f.account_id) for f in result.failures} == {(FailureReason.MISSING_PARAMETER, GRID)}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tariffs": {}}, "tariffs"),
        ({"fees": {"as_of": "2026-01-01", "source": "x", "perp": "2"}}, "fees.perp"),
        ({"portfolio_margin": {"BTC": {"as_of": "2026-01-01"}}}, "portfolio_margin.BTC"),
    ],
)
def test_a_parameter_file_that_cannot_be(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        normalized(parameters=parameters)


def test_a_portfolio_account_holds_no_future_and_needs_a_funding_rate() -> None:
    def silent(body: Any) -> None:
        body["results"][0]["funding_rate"] = ""

    result = with_change("markets_summary", silent)
    assert {(f.reason, f.account_id) for f in result.failures} == {(FailureReason.MISSING_MARK, GRID)}

    def future(body: Any) -> None:
        body["results"][0] |= {"asset_kind": "FUTURE", "expiry_at": 1727424000000}

    result = with_change("markets", future)
    assert {(f.reason, f.account_id) for f in result.failures} == {(FailureReason.UNSUPPORTED, GRID)}
    assert only(result, "instruments", instrument_id=BTC_PERP)["kind"] == "future"


def test_market_orders_and_reduce_only_flags() -> None:
    def change(body: Any) -> None:
        body["results"][1] |= {"price": "0", "type": "MARKET", "flags": ["REDUCE_ONLY"]}

    result = with_change("desk_orders", change)
    order = only(result, "open_orders", account_id=DESK, side="sell", instrument_id=BTC_PERP)
    assert order["limit_price"] is None
    assert order["reduce_only"]
    [fixed] = [form for _, form in components_of(result, "paradex:cross:desk") if isinstance(form, Fixed)]
    [before] = [
        form
        for _, form in components_of(normalized(*sample().values()), "paradex:cross:desk")
        if isinstance(form, Fixed)
    ]
    assert before.initial - fixed.initial == 2 * (Decimal("60985.4") - 60500)


def test_closed_and_empty_rows_change_nothing() -> None:
    def change(body: Any) -> None:
        body["results"].append({**body["results"][0], "market": "SOL-USD-PERP", "size": "0"})

    result = with_change("grid_positions", change)
    assert result.failures == []
    assert len(rows_of(result, "positions", account_id=GRID)) == 5


def test_a_liability_and_the_sign_of_a_size() -> None:
    def owes(body: Any) -> None:
        body["results"][0]["size"] = "-12.5"

    result = with_change("grid_balance", owes)
    balance = only(result, "balances", account_id=GRID)
    assert (balance["side"], balance["quantity"]) == ("liability", Decimal("12.5"))

    def unsigned(body: Any) -> None:
        for record in body["results"]:
            record["size"] = record["size"].lstrip("-")

    result = with_change("grid_positions", unsigned)
    assert result.failures == []
    assert only(result, "positions", account_id=GRID, instrument_id=BTC_PERP)["quantity"] == -3
