"""Bybit: requests, symbols, messages and partial answers that are read alike."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from adapters.bybit import request_name
from adapters.bybit.parse import market_of
from aggregator.errors import ConfigurationError, FailureReason
from tests.desk_bybit import EAST, PARAMETERS, answer, body_of, desk, edited, fetched, listed, normalized, without
from tests.normalized_rows import failures_of, only, rows_of, tables_as_json


def replaced(body: Any) -> Callable[[Any], Any]:
    return lambda _: body


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("position/list", ("position/list", "")),
        ("/v5/position/list:linear:USDC", ("position/list", "linear:USDC")),
        ("v5/market/tickers", ("market/tickers", "")),
    ],
)
def test_requests_are_named_without_version(text: str, expected: tuple[str, str]) -> None:
    assert request_name(text) == expected


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("BTCUSDT", ("BTC", "USDT", "perp", False, None)),
        ("ETHPERP", ("ETH", "USDC", "perp", False, None)),
        ("1000PEPEUSDT", ("1000PEPE", "USDT", "perp", False, None)),
        ("SHIB1000USDT", ("1000SHIB", "USDT", "perp", False, None)),
        ("USDCUSDT", ("USDC", "USDT", "perp", False, None)),
        ("BTC-27JUN25", ("BTC", "USDC", "future", False, datetime(2025, 6, 27, 8, tzinfo=UTC))),
        ("BTCUSDT-4JUL25", ("BTC", "USDT", "future", False, datetime(2025, 7, 4, 8, tzinfo=UTC))),
        ("BTCUSD", ("BTC", "BTC", "perp", True, None)),
        ("BTCUSDM25", ("BTC", "BTC", "future", True, datetime(2025, 6, 27, 8, tzinfo=UTC))),
        ("ETHUSDZ24", ("ETH", "ETH", "future", True, datetime(2024, 12, 27, 8, tzinfo=UTC))),
        ("BTC-30DEC22-18000-C", ("BTC", "USDC", "option", False, datetime(2022, 12, 30, 8, tzinfo=UTC))),
        ("SOL-5JUL24-140-P-USDT", ("SOL", "USDT", "option", False, datetime(2024, 7, 5, 8, tzinfo=UTC))),
    ],
)
def test_symbols_in_parts(symbol: str, expected: Any) -> None:
    market = market_of(symbol)
    assert (market.base, market.settle, market.kind, market.inverse, market.expiry) == expected


@pytest.mark.parametrize(
    "symbol", ["", "USDT", "BTC", "BTC-31FEB25", "BTC-30DEC22-0-C", "BTC-30XXX22-1-C", "btcusdt", "BTCEUR"]
)
def test_other_symbols_are_no_market(symbol: str) -> None:
    with pytest.raises(ValueError, match="no derivative"):
        market_of(symbol)


def test_delivery_times_of_the_venue_go_before_those_of_the_name() -> None:
    late = {"symbol": "BTCUSDM25", "deliveryTime": "1751011200000", "status": "PreLaunch"}
    result = normalized([answer("market/instruments-info", listed(late, category="inverse"))])
    assert only(result, "instruments")["expiry"] == datetime(2025, 6, 27, 8, tzinfo=UTC)
    late["deliveryTime"] = "1751097600000"
    result = normalized([answer("market/instruments-info", listed(late, category="inverse"))])
    assert only(result, "instruments")["expiry"] == datetime(2025, 6, 28, 8, tzinfo=UTC)
    assert only(result, "market_state")["text"] == "PreLaunch"


def test_messages_and_bare_bodies_read_like_answers() -> None:
    expected = tables_as_json(normalized(desk()))
    wallet = body_of("wallet_south.json")
    for body in (
        {"topic": "wallet", "creationTime": 1719705597000, "data": wallet},
        {"list": wallet, "time": 1719705597000},
        {"result": wallet[0], "time": "1719705597000"},
    ):
        assert tables_as_json(normalized(edited(desk(), "wallet_south.json", replaced(body)))) == expected
    tickers = body_of("tickers_linear.json")
    message = [
        answer(f"market/tickers:linear:{t['symbol']}", {"topic": "tickers", "ts": 1719705596000, "data": t})
        for t in tickers
    ]
    rest = without(desk(), "tickers_linear.json")
    assert tables_as_json(normalized([*message, *rest])) == expected


def test_names_that_messages_spell_otherwise() -> None:
    def rename(pairs: dict[str, str], records: list[Any]) -> None:
        for record in records:
            for old, new in pairs.items():
                if old in record:
                    record[new] = record.pop(old)

    expected = tables_as_json(normalized(desk()))
    positions = edited(
        desk(), "positions_south_linear.json", lambda b: rename({"avgPrice": "entryPrice"}, b["result"]["list"])
    )
    assert tables_as_json(normalized(positions)) == expected
    names = {"markIv": "markPriceIv", "bid1Price": "bidPrice", "ask1Price": "askPrice"}
    options = edited(desk(), "tickers_option.json", lambda b: rename(names, b["result"]["list"]))
    assert tables_as_json(normalized(options)) == expected


def test_spot_answers_of_the_same_names_are_not_taken_for_derivatives() -> None:
    expected = tables_as_json(normalized(desk()))
    fees = listed({"symbol": "ETHUSDT", "takerFeeRate": "0.01", "makerFeeRate": "0.01"}, category="spot")
    pairs = listed({"symbol": "ETHUSDT", "status": "Closed", "deliveryTime": "1"}, category="spot")
    more = [
        answer("account/fee-rate:spot", fees, "south"),
        answer("account/fee-rate:spot", fees),
        answer("market/instruments-info:spot", pairs),
    ]
    assert tables_as_json(normalized([*desk(), *more])) == expected


def test_numbers_may_be_json_numbers_and_rows_may_lack_what_is_optional() -> None:
    def plain(body: Any) -> None:
        for record in body["result"]["list"]:
            record.update(
                size=Decimal(record["size"]), leverage=int(record["leverage"]), avgPrice=Decimal(record["avgPrice"])
            )
            for key in ("positionIMByMp", "positionMMByMp", "bustPrice", "liqPrice", "tradeMode", "sessionAvgPrice"):
                del record[key]

    result = normalized(edited(desk(), "positions_south_inverse.json", plain))
    assert tables_as_json(result)["positions"] == tables_as_json(normalized(desk()))["positions"]


def test_a_book_gives_best_prices_and_notional_of_its_levels() -> None:
    result = normalized([fetched("orderbook_btcusdt.json"), fetched("tickers_linear.json")])
    values = {row["field"]: row["value"] for row in rows_of(result, "marks", subject="bybit:BTCUSDT")}
    assert (values["bid"], values["ask"]) == (60990.0, 60990.1)
    assert values["depth_bid"] == float(Decimal("60990.00") * Decimal("4.120") + Decimal("60989.80") * Decimal("0.75"))
    inverse = {"s": "BTCUSD", "b": [["60960", "1000"]], "a": [["60970", "500"], ["60980", "0"]]}
    result = normalized([answer("market/orderbook", {"result": inverse})])
    values = {row["field"]: row["value"] for row in rows_of(result, "marks", subject="bybit:BTCUSD")}
    assert (values["depth_bid"], values["depth_ask"]) == (1000.0, 500.0)


def test_the_last_settled_funding_is_kept() -> None:
    row = only(normalized([fetched("funding_history.json")]), "market_state", field="funding_rate")
    assert (row["value"], row["as_of"]) == (0.0001, datetime(2024, 6, 29, 16, tzinfo=UTC))


def test_the_mode_comes_from_the_answer_then_the_parameters_then_the_venues_default() -> None:
    bare = without(desk("east"), "info_east.json")
    # without a word of the mode, the positions' own trade mode keeps them apart, but the blank totals do not
    assert {f.reason for f in failures_of(normalized(bare), EAST)} <= {
        FailureReason.MISSING_FIELD,
        FailureReason.INCONSISTENT,
    }
    configured = PARAMETERS | {"accounts": {"margin_mode": "ISOLATED_MARGIN"}}
    assert (
        tables_as_json(normalized(bare, configured))["accounts"] == tables_as_json(normalized(desk("east")))["accounts"]
    )
    assert only(normalized(desk("west"), configured), "accounts")["margin_mode"] == "portfolio"
    odd = normalized([], {"accounts": {"margin_mode": ["x"]}})
    assert [(f.reason, f.path) for f in odd.failures] == [(FailureReason.MALFORMED, "accounts.margin_mode")]
    with pytest.raises(ConfigurationError, match=r"expected a table \[fees\]"):
        normalized([], {"fees": 3})
