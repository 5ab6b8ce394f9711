"""COIN-M futures of Binance: inverse contracts, brackets in coins, accounts per coin, and the engine against the venue.

Owner `charlie` of the payloads of 2024-06-30: hedge mode, two coins, a dated future, an isolated position, an order.
"""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.binance import ADAPTER, mechanics, request_name
from adapters.binance.contracts import any_market_of, coin_market_of
from aggregator.errors import FailureReason
from aggregator.rule_forms import Fixed, TieredNotional, Verdict, WeightedValue
from aggregator.snapshot import take_snapshot
from tests.binance_book import (
    NOW,
    PARAMETERS,
    answer,
    body_of,
    book,
    components,
    edited,
    normalized,
    sets_of,
    without,
)
from tests.junk_answers import check_junk
from tests.native_figures import native_figures
from tests.normalized_rows import failures_of, only, rows_of

BTC, ETH = "binance:charlie:coinm:BTC", "binance:charlie:coinm:ETH"
SHORT = "binance:charlie:isolated:ETHUSD_PERP:SHORT"
RISK, ACCOUNT = "charlie_position_risk.json", "charlie_account.json"

# Native figures today are the venue's to 1e-9, the contract of the engine.
NATIVE_RTOL = 1e-9
# The venue rounds to 8 decimals of a coin, and a sum has a few parts.
VENUE_ROUNDING = Fraction(5, 10**8)
SIZES = {"BTCUSD_PERP": 100, "BTCUSD_240927": 100, "ETHUSD_PERP": 10}


def test_the_whole_book_is_read_without_a_failure_in_any_order() -> None:
    result = normalized(book())
    assert result.failures == []
    snapshot = take_snapshot([result.batches], result.failures)
    assert (snapshot.failures, snapshot.incomplete) == ((), frozenset())
    assert sets_of(normalized(book()[::-1])) == sets_of(result)
    assert {row["account_id"] for row in rows_of(result, "accounts") if "charlie" in row["account_id"]} == {
        BTC,
        ETH,
        SHORT,
    }


@pytest.mark.parametrize(
    "account",
    [
        BTC,
        ETH,
        SHORT,
        "binance:alpha:USDT",
        "binance:alpha:USDC",
        "binance:alpha:isolated:SOLUSDT",
        "binance:bravo:multi",
    ],
)
def test_the_engine_computes_what_the_venue_reports(account: str) -> None:
    result = normalized(book())
    figures = native_figures(result, as_of=NOW)[account]
    row = only(result, "accounts", account_id=account)
    for name, got in zip(("equity", "initial_margin", "maintenance_margin"), figures, strict=True):
        assert got == pytest.approx(float(row[f"reported_{name}"]), rel=NATIVE_RTOL, abs=0.0), name


def test_positions_are_worth_contracts_times_dollars_over_the_mark() -> None:
    result = normalized(book("charlie"))
    for record in body_of(RISK):
        mode = {"LONG": "long", "SHORT": "short"}[record["positionSide"]]
        instrument = f"binance:{record['symbol']}"
        held = only(result, "positions", instrument_id=instrument, side_mode=mode)
        contract = only(result, "instruments", instrument_id=instrument)
        assert (contract["payoff"], contract["settlement_asset"]) == ("inverse", record["symbol"][:3])
        assert contract["contract_size"] == SIZES[record["symbol"]]
        dollars = Fraction(held["quantity"]) * Fraction(contract["contract_size"])
        mark = Fraction(record["markPrice"])
        assert abs(dollars / mark - Fraction(record["notionalValue"])) < VENUE_ROUNDING
        profit = dollars * (1 / Fraction(held["entry_price"]) - 1 / mark)
        assert abs(profit - Fraction(record["unRealizedProfit"])) < VENUE_ROUNDING
        rule_set = only(result, "accounts", account_id=held["account_id"])["rule_set"]
        needed, size = Fraction(0), abs(dollars / mark)
        for tier in rows_of(result, "margin_tiers", rule_set=rule_set, market=instrument):
            top = min(size, Fraction(tier["notional_cap"]))
            needed += max(top - Fraction(tier["notional_floor"]), Fraction(0)) * Fraction(tier["maintenance_rate"])
        (stated,) = [
            p
            for p in body_of(ACCOUNT)["positions"]
            if (p["symbol"], p["positionSide"]) == (record["symbol"], record["positionSide"])
        ]
        assert abs(needed - Fraction(stated["maintMargin"])) < VENUE_ROUNDING
        assert abs(size / Fraction(held["leverage"]) - Fraction(stated["initialMargin"])) < VENUE_ROUNDING


def test_accounts_are_per_coin_and_isolated_positions_apart() -> None:
    result = normalized(book("charlie"))
    accounts = {row["account_id"]: row for row in rows_of(result, "accounts")}
    assert {row["settlement_asset"] for row in accounts.values()} == {"BTC", "ETH"}
    assert {row["multi_assets_mode"] for row in accounts.values()} == {None}
    assert accounts[SHORT]["parent_account_id"] == ETH
    assert len({row["node"] for row in accounts.values()}) == 3
    (wallet,) = [a for a in body_of(ACCOUNT)["assets"] if a["asset"] == "ETH"]
    parts = [only(result, "balances", account_id=account)["quantity"] for account in (ETH, SHORT)]
    assert sum(parts) == Decimal(wallet["walletBalance"])
    assert {row["side_mode"] for row in rows_of(result, "positions", account_id=BTC)} == {"long", "short"}


def test_rule_sets() -> None:
    result = normalized(book("charlie"))
    shared = [WeightedValue(), TieredNotional(initial="leverage"), Verdict(liquidates_when="at_or_below")]
    assert only(result, "accounts", account_id=ETH)["rule_set"] == "binance:coinm"
    assert [form for _, form in components(result, ETH)] == shared
    (orders,) = [form for _, form in components(result, BTC) if isinstance(form, Fixed)]
    assert (orders.initial, orders.basis) == (Decimal("0.005"), "reported openOrderInitialMargin of BTC")
    order = only(result, "open_orders")
    assert (order["account_id"], order["remaining_quantity"]) == (BTC, 60)


def test_the_coins_price_is_the_asset_index_or_the_perpetuals_own() -> None:
    marks = {row["subject"]: row for row in rows_of(normalized(book("charlie")), "marks", field="index")}
    assert (marks["BTC"]["value"], marks["BTC"]["source"]) == (60970.0, "fapi/assetIndex")
    alone = without(book("charlie"), "fapi_asset_index.json")
    marks = {row["subject"]: row for row in rows_of(normalized(alone), "marks", field="index")}
    assert (marks["BTC"]["value"], marks["BTC"]["source"]) == (60970.0, "dapi/premiumIndex")
    assert native_figures(normalized(alone), as_of=NOW)[BTC] == native_figures(normalized(book()), as_of=NOW)[BTC]


def test_a_book_counts_contracts_in_dollars() -> None:
    result = normalized(book("charlie"))
    values = {row["field"]: row["value"] for row in rows_of(result, "marks", subject="binance:BTCUSD_PERP")}
    assert (values["bid"], values["ask"]) == (60959.9, 60960.0)
    assert (values["depth_bid"], values["depth_ask"]) == (125_000.0, 92_000.0)


# brackets


def brackets_of(*rows: tuple[str, str, str, str, str], name: str = "BTCUSD_PERP", **extra: Any) -> Any:
    keys = ("qtylFloor", "qtyCap", "maintMarginRatio", "initialLeverage", "cum")
    record = {"symbol": name, "brackets": [dict(zip(keys, row, strict=True)) for row in rows], **extra}
    return answer("dapi/v2/leverageBracket", [record], name="brackets.json")


GOOD = (("0", "5", "0.004", "125", "0"), ("5", "10", "0.005", "100", "0.005"))


def test_tiers_are_the_brackets_in_coins_under_either_spelling() -> None:
    tiers = rows_of(normalized([brackets_of(*GOOD)]), "margin_tiers", rule_set="binance:coinm")
    assert [(t["notional_floor"], t["notional_cap"], t["maintenance_rate"], t["deduction"]) for t in tiers] == [
        (0, 5, Decimal("0.004"), 0),
        (5, 10, Decimal("0.005"), Decimal("0.005")),
    ]
    right = brackets_of(*GOOD)
    for record in right.body[0]["brackets"]:
        record["qtyFloor"] = record.pop("qtylFloor")
    assert rows_of(normalized([right]), "margin_tiers") == rows_of(normalized([brackets_of(*GOOD)]), "margin_tiers")


def test_a_pairs_brackets_hold_for_all_its_contracts_unless_one_has_its_own() -> None:
    pair = answer("dapi/v1/leverageBracket", [{"pair": "BTCUSD", "brackets": brackets_of(*GOOD).body[0]["brackets"]}])
    payloads = [*without(book("charlie"), "dapi_leverage_bracket.json"), pair]
    result = normalized(payloads)
    assert failures_of(result, BTC) == []
    rule_set = only(result, "accounts", account_id=BTC)["rule_set"]
    for symbol in ("BTCUSD_PERP", "BTCUSD_240927"):
        rates = [
            t["maintenance_rate"]
            for t in rows_of(result, "margin_tiers", rule_set=rule_set, market=f"binance:{symbol}")
        ]
        assert rates == [Decimal("0.004"), Decimal("0.005")]
    own = (("0", "5", "0.02", "25", "0"),)
    result = normalized([*payloads, answer("dapi/v2/leverageBracket:BTCUSD_PERP", brackets_of(*own).body)])
    (tier,) = rows_of(result, "margin_tiers", rule_set=rule_set, market="binance:BTCUSD_PERP")
    assert tier["maintenance_rate"] == Decimal("0.02")


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        ([("0", "5", "0.004", "125", "0"), ("6", "10", "0.005", "100", "0.005")], "[0].brackets[1]"),
        ([GOOD[0], ("5", "10", "0.005", "100", "0.0052")], "[0].brackets[1].cum"),
        ([("0", "5", "0.004", "125", "0.001")], "[0].brackets[0].cum"),
    ],
)
def test_brackets_that_contradict_themselves_are_refused(rows: Any, path: str) -> None:
    result = normalized([*without(book("charlie"), "dapi_leverage_bracket.json"), brackets_of(*rows)])
    (finding,) = failures_of(result, None)
    assert (finding.reason, finding.path) == (FailureReason.INCONSISTENT, path)
    assert {(f.reason, f.subject) for f in failures_of(result, BTC)} == {
        (FailureReason.MISSING_PARAMETER, "binance:BTCUSD_PERP"),
        (FailureReason.MISSING_PARAMETER, "binance:BTCUSD_240927"),
    }


# contract sizes


def test_contract_sizes_come_from_the_exchange_then_the_parameters() -> None:
    dated = normalized(without(book("charlie"), "dapi_exchange_info.json"))
    assert dated.failures == []
    assert rows_of(dated, "instruments") == rows_of(normalized(book("charlie")), "instruments")
    sizes = PARAMETERS["contract_sizes"]
    assert (sizes["BTCUSD"], sizes["ETHUSD"]) == ("100", "10")
    nowhere = {key: value for key, value in PARAMETERS.items() if key != "contract_sizes"}
    result = normalized(without(book("charlie"), "dapi_exchange_info.json"), nowhere)
    for account in (BTC, SHORT):
        assert FailureReason.MISSING_PARAMETER in {f.reason for f in failures_of(result, account)}


def test_a_size_that_the_positions_contradict_is_no_size() -> None:
    def shrink(body: Any) -> None:
        body["symbols"][0]["contractSize"] = 10

    result = normalized(edited(book("charlie"), "dapi_exchange_info.json", shrink))
    found = failures_of(result, BTC)
    assert {(f.reason, f.path) for f in found} == {
        (FailureReason.INCONSISTENT, "[0].notionalValue"),
        (FailureReason.INCONSISTENT, "[1].notionalValue"),
    }
    assert failures_of(result, SHORT) == []


# bad input


@pytest.mark.parametrize(
    ("edit", "reason", "field"),
    [
        ({"positionAmt": "NaN"}, FailureReason.NOT_A_NUMBER, "positionAmt"),
        ({"positionAmt": "-4572"}, FailureReason.INCONSISTENT, "positionAmt"),
        ({"positionSide": "UP"}, FailureReason.MALFORMED, "positionSide"),
        ({"entryPrice": "0"}, FailureReason.OUT_OF_RANGE, "entryPrice"),
        ({"markPrice": "-1"}, FailureReason.OUT_OF_RANGE, "markPrice"),
        ({"leverage": "x"}, FailureReason.NOT_A_NUMBER, "leverage"),
        ({"notionalValue": "0"}, FailureReason.INCONSISTENT, "notionalValue"),
        ({"marginType": "sideways"}, FailureReason.MALFORMED, "marginType"),
        ({"markPrice": "60000"}, FailureReason.INCONSISTENT, "notionalValue"),
    ],
)
def test_a_bad_position_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, field: str
) -> None:
    result = normalized(edited(book(), RISK, lambda body: body[0].update(edit)))
    assert (reason, f"[0].{field}") in {(f.reason, f.path) for f in failures_of(result, BTC)}
    assert {f.account_id for f in result.failures} == {BTC}
    assert rows_of(result, "accounts", account_id=BTC)


def test_answers_that_are_missing_doubled_or_unreadable() -> None:
    gone = normalized(without(book("charlie"), ACCOUNT))
    assert {f.reason for f in failures_of(gone, BTC)} == {FailureReason.MISSING_FIELD}
    assert failures_of(gone, SHORT) == []  # its wallet stands in positionRisk
    twice = [*book(), *[p for p in book() if p.name == ACCOUNT]]
    result = normalized(twice)
    duplicates = {f.account_id for f in result.failures if f.reason == FailureReason.DUPLICATE}
    assert duplicates == {BTC}  # the coin that positions are held in, and nobody's USD-M account
    nothing = normalized([answer("dapi/account", None, "charlie")])
    assert [row["account_id"] for row in rows_of(nothing, "accounts")] == ["binance:charlie:coinm"]
    linear = normalized([answer("dapi/positionRisk", [{"symbol": "BTCUSDT", "positionAmt": "1"}], "charlie")])
    assert FailureReason.UNKNOWN_MARKET in {f.reason for f in linear.failures}


def test_an_owner_may_have_both_products() -> None:
    payloads = [p for p in book() if not p.account] + [
        answer(p.request, p.body, "desk", p.name) for p in book("alpha", "charlie") if p.account
    ]
    result = normalized(payloads)
    assert result.failures == []
    assert {row["account_id"].removeprefix("binance:desk:") for row in rows_of(result, "accounts")} == {
        "USDT",
        "USDC",
        "isolated:SOLUSDT",
        "coinm:BTC",
        "coinm:ETH",
        "isolated:ETHUSD_PERP:SHORT",
    }
    without_wallet = [p for p in payloads if p.name != "alpha_account.json"]
    assert {f.account_id for f in normalized(without_wallet).failures} == {"binance:desk:USDT", "binance:desk:USDC"}


def test_symbols_and_requests() -> None:
    market = coin_market_of("BTCUSD_PERP")
    assert (market.base, market.margin_asset, market.expiry, market.pair, market.inverse) == (
        "BTC",
        "BTC",
        None,
        "BTCUSD",
        True,
    )
    dated = any_market_of("ETHUSD_240927")
    assert dated.expiry is not None
    assert (dated.expiry.month, dated.expiry.day) == (9, 27)
    assert not any_market_of("BTCUSDT_240927").inverse
    for symbol in ("BTCUSD", "BTCUSD_999999", "BTCEUR_PERP", "btcusd_perp"):
        with pytest.raises(ValueError, match="is no"):
            coin_market_of(symbol)
    assert request_name("/dapi/v1/positionRisk") == ("dapi/positionRisk", "")
    assert request_name("/papi/v1/cm/leverageBracket") == ("dapi/leverageBracket", "")
    assert set(ADAPTER.requests) >= {"dapi/account", "papi/um/account", "portfolio/collateralRate"}


def test_mutated_answers_never_raise_and_never_leave_an_unflagged_gap() -> None:
    check_junk(normalized, book("charlie"), seed=20240630, count=50)


# mechanics


BRACKETS = [
    mechanics.Bracket(*(Decimal(text) for text in row))
    for row in (
        ("0", "5", "0.004", "125", "0"),
        ("5", "10", "0.005", "100", "0.005"),
        ("10", "20", "0.01", "50", "0.055"),
        ("20", "50", "0.025", "20", "0.355"),
    )
]
ENTRY, SIZE = Decimal(60_000), Decimal(100)
# 28 significant digits on balances of at most a hundred coins.
CANCELLATION = Decimal("1e-22")


def excess(contracts: Decimal, wallet: Decimal, at: Decimal) -> Decimal:
    coins = mechanics.coin_notional(contracts, SIZE, at)
    needed = mechanics.bracket_margin(coins, BRACKETS, selected_leverage=Decimal(1)).maintenance_margin
    return wallet + mechanics.coin_profit(contracts, SIZE, ENTRY, at) - needed


@settings(max_examples=80)
@given(st.integers(1, 20_000), st.sampled_from((1, -1)), st.decimals(Decimal("1.2"), 60, places=1, allow_nan=False))
def test_at_the_liquidation_price_balance_and_maintenance_meet(number: int, side: int, leverage: Decimal) -> None:
    contracts = Decimal(side * number)
    wallet = number * SIZE / ENTRY / leverage
    price = mechanics.coin_liquidation_price(contracts, SIZE, ENTRY, BRACKETS, wallet=wallet)
    if price is None:  # a short without a price at which it loses its coins, a long within any margin
        assert excess(contracts, wallet, ENTRY * 1000) > 0 or excess(contracts, wallet, ENTRY) <= 0
        return
    assert abs(excess(contracts, wallet, price)) <= CANCELLATION * number
    step = price / 1000
    assert (excess(contracts, wallet, price + step) > 0) == (side > 0)
    assert (excess(contracts, wallet, price - step) > 0) == (side < 0)


def test_positions_without_a_liquidation_price() -> None:
    assert mechanics.coin_liquidation_price(Decimal(0), SIZE, ENTRY, BRACKETS, wallet=Decimal(1)) is None
    short = mechanics.coin_liquidation_price(Decimal(-600), SIZE, ENTRY, BRACKETS, wallet=Decimal(1))
    assert short is None  # 1 BTC of shorts behind 1 BTC: no price takes it all


def test_an_isolated_position_reports_the_price_of_the_mechanics() -> None:
    (record,) = [r for r in body_of(RISK) if r["symbol"] == "ETHUSD_PERP"]
    entries = body_of("dapi_leverage_bracket_ethusd.json")[0]["brackets"]
    brackets = [
        mechanics.Bracket(
            *(Decimal(str(b[k])) for k in ("qtylFloor", "qtyCap", "maintMarginRatio", "initialLeverage", "cum"))
        )
        for b in entries
    ]
    price = mechanics.coin_liquidation_price(
        Decimal(record["positionAmt"]),
        Decimal(10),
        Decimal(record["entryPrice"]),
        brackets,
        wallet=Decimal(record["isolatedWallet"]),
    )
    assert price is not None
    held = only(normalized(book("charlie")), "positions", account_id=SHORT)
    assert abs(held["reported_liquidation_price"] - price) <= Decimal("1e-8")
