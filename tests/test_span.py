"""Clearing houses by SPAN: documents to canonical tables, bad input, the mechanics, and the engine against them.

The documents in `payloads/span` are written for this suite; their reported figures follow from the rules, in cents.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.asset_book import read_asset_book
from adapters.span import ADAPTER, mechanics
from adapters.span.margin import PortfolioMargin, portfolio_margin
from adapters.span.mechanics import (
    CalendarLeg,
    CalendarSpread,
    DeliveryMonth,
    InterLeg,
    InterSpread,
    MonthDelta,
    Option,
    Scan,
)
from adapters.span.parse import House, read_house, read_lines
from adapters.transport import Payload
from aggregator.errors import FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import Fixed, PriceVolGrid, Verdict, WeightedValue
from aggregator.snapshot import take_snapshot
from tests import sample_span
from tests.normalized_rows import check_canonical, forms_of, only, rows_of
from tests.payload_files import put, read_payload

ROOT = Path(__file__).resolve().parent.parent
PAYLOADS = ROOT / "tests" / "payloads" / "span"
ASSETS = read_asset_book(ROOT / "configs" / "assets.toml")
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)

HERON, PLOVER, WREN = "span:heron:XCH:0417", "span:plover:XCH", "span:wren:XCH"
ACCOUNTS = {HERON, PLOVER, WREN}
BTC, ETH, SOL = 0, 1, 2

ENGINE_RELATIVE = 1e-9  # float64 of the engine against fractions
CENT = Decimal("0.005")

Change = Callable[[Any], None]


def fetched(request: str, file: str, account: str = "") -> Payload:
    return read_payload("span", PAYLOADS, request, file, account)


def desk(change: Change | None = None, request: str = "parameters", owner: str = "") -> list[Payload]:
    payloads = [fetched(*entry) for entry in sample_span.PAYLOADS]
    if change is None:
        return payloads
    number = next(i for i, p in enumerate(payloads) if p.request == request and p.account == owner)
    body = copy.deepcopy(payloads[number].body)
    change(body)
    payloads[number] = replace(payloads[number], body=body)
    return payloads


def normalized(payloads: list[Payload]) -> Normalized:
    return ADAPTER.normalize(payloads, Context(ASSETS, {}))


def house_of(change: Change | None = None) -> House:
    payload = desk(change)[0]

    def refuse(error: Exception, subject: str) -> None:
        raise AssertionError(subject) from error

    return read_house(payload.body, payload.received_at, refuse)


def margin_of(owner: str, change: Change | None = None, house: House | None = None) -> PortfolioMargin:
    payload = next(p for p in desk(change, "positions", owner) if p.request == "positions" and p.account == owner)
    failures: list[Any] = []
    lines = read_lines(payload.body, lambda error, subject: failures.append(error))
    assert not failures
    return portfolio_margin(house or house_of(), lines)


@pytest.fixture(scope="module")
def whole() -> Normalized:
    return normalized(desk())


# ---------------------------------------------------------------------------------------------------------------------
# The desk


def test_the_desk_is_read_without_a_failure(whole: Normalized) -> None:
    assert whole.failures == []
    check_canonical(whole)
    snapshot = take_snapshot([whole.batches], as_of=AS_OF, max_age=timedelta(hours=1), max_mark_gap=0.02)
    assert snapshot.failures == ()
    accounts = rows_of(whole, "accounts")
    assert {row["account_id"] for row in accounts} == ACCOUNTS == {row["node"] for row in accounts}
    assert {(row["margin_mode"], row["settlement_asset"]) for row in accounts} == {("portfolio", "USD")}


def test_contracts_positions_and_marks_are_those_of_the_documents(whole: Normalized) -> None:
    option = only(whole, "instruments", instrument_id="span:XCH:BTCN4 P55000")
    assert (option["kind"], option["option_type"], option["strike"]) == ("option", "put", 55_000)
    assert (option["underlying"], option["settlement_asset"], option["contract_size"]) == ("BTC", "USD", 5)
    assert option["expiry"] == datetime(2024, 7, 26, 15, tzinfo=UTC)
    future = only(whole, "positions", account_id=HERON, instrument_id="span:XCH:BTCN4")
    assert (future["quantity"], future["entry_price"]) == (12, 60_890)
    settled = only(whole, "positions", account_id=PLOVER, instrument_id="span:XCH:SOLU4")
    assert settled["entry_price"] == Decimal("143.1")
    assert only(whole, "positions", account_id=HERON, instrument_id="span:XCH:BTCN4 C65000")["entry_price"] is None
    assert only(whole, "marks", account_id=HERON, subject="BTC@2024-07-26T15:00:00Z")["value"] == 61_210
    assert only(whole, "marks", subject="span:XCH:SOLN4 C160", field="implied_vol")["value"] == 0.82
    assert only(whole, "balances", account_id=WREN, asset_id="USD")["side"] == "liability"
    assert only(whole, "collateral_tiers", rule_set="span:XCH:wren")["asset_weight_maintenance"] == Decimal("0.6")
    assert only(whole, "market_state", market="span:XCH:SOL", field="price_scan_rate")["value"] == 0.14


def test_rules_are_a_grid_where_a_rate_scans_and_fixed_elsewhere(whole: Normalized) -> None:
    equity, fixed, verdict = forms_of(whole, HERON)
    assert equity == WeightedValue(weights="collateral_tiers", options="mark")
    assert isinstance(fixed, Fixed)
    assert (fixed.basis.split()[0], verdict) == ("computed", Verdict(liquidates_when="below"))
    _, grid, rest, _ = forms_of(whole, PLOVER)
    assert isinstance(grid, PriceVolGrid)
    assert (len(grid.scenarios), grid.underlyings, grid.look_ahead_days) == (16, ("SOL",), Decimal(1))
    assert (grid.initial_factor, grid.maintenance_factor) == (Decimal("1.25"), Decimal(1))
    assert {point.spot for point in grid.scenarios[14:]} == {Decimal("1.42"), Decimal("0.58")}
    assert (rest.initial, rest.maintenance) == (0, 0)
    _, scanned, unmoved, short_minimum, _ = forms_of(whole, WREN)
    assert (scanned.underlyings, unmoved.underlyings, unmoved.maintenance_factor) == (("SOL",), ("BTC",), 0)
    assert short_minimum.maintenance == 14 * 250


def test_engine_and_mechanics_agree(whole: Normalized) -> None:
    snapshot = take_snapshot([whole.batches], as_of=AS_OF)
    owners = {owner: [f"span:{owner}"] for owner in ("heron", "plover", "wren")}
    book, unclaimed = pack_book({"main": snapshot}, owners, as_of=AS_OF)
    assert (unclaimed, book.failures) == ([], ())
    for portfolio, native in zip(book.portfolios, native_today(book), strict=True):
        assert native is not None
        margin = margin_of(portfolio.portfolio_id)
        (account,) = portfolio.accounts
        assert native.maintenance[0] == pytest.approx(float(margin.maintenance), rel=ENGINE_RELATIVE)
        assert native.initial[0] == pytest.approx(float(margin.initial), rel=ENGINE_RELATIVE)
        assert native.equity[0] == pytest.approx(account.reported["reported_equity"], abs=float(CENT) + 1e-6)
        assert native.maintenance[0] == pytest.approx(
            account.reported["reported_maintenance_margin"], abs=float(CENT) + 1e-6
        )
        assert not account.reported_parts


def test_equity_is_cash_collateral_variation_and_options(whole: Normalized) -> None:
    account = only(whole, "accounts", account_id=HERON)
    marks = {r["subject"]: Decimal(str(r["value"])) for r in rows_of(whole, "marks", field="mark")}
    total = Decimal("412500.75") + Decimal("3.25") * 60970 * Decimal("0.65") + 150_000 * Decimal("0.98")
    for held in rows_of(whole, "positions", account_id=HERON):
        size = held["quantity"] * only(whole, "instruments", instrument_id=held["instrument_id"])["contract_size"]
        total += size * (marks[held["instrument_id"]] - (held["entry_price"] or 0))
    assert abs(total - account["reported_equity"]) <= CENT


def test_the_order_of_payloads_does_not_matter(whole: Normalized) -> None:
    other = normalized(desk()[::-1])
    assert (other.failures, other.batches) == ([], whole.batches)


def test_the_adapter_is_registered() -> None:
    assert isinstance(find_adapter("span"), Adapter)


def test_an_option_that_settles_at_nothing_is_worth_nothing() -> None:
    def worthless(body: Any) -> None:
        body["combined_commodities"][BTC]["contracts"][4]["price"] = "0"

    result = normalized(desk(worthless))
    assert result.failures == []
    assert only(result, "marks", subject="span:XCH:BTCN4 C140000", field="mark")["value"] == 0.0


def test_numbers_may_be_json_numbers_and_requests_have_paths(whole: Normalized) -> None:
    def plain(payload: Payload) -> Payload:
        if payload.request != "positions":
            return replace(payload, request=f"v1/span/{payload.request}")
        lines = [line | {"quantity": int(line["quantity"])} for line in payload.body["positions"]]
        return replace(payload, body=payload.body | {"positions": lines})

    result = normalized([plain(payload) for payload in desk()])
    assert result.failures == []
    assert rows_of(result, "positions") == rows_of(whole, "positions")


def test_two_commodities_on_one_factor_are_not_scanned_as_one() -> None:
    def split(body: Any) -> None:
        sol = body["combined_commodities"][SOL]
        body["combined_commodities"].append(sol | {"code": "SOLM", "contracts": [sol["contracts"].pop()]})

    result = normalized(desk(split))
    assert result.failures == []
    assert [type(form) for form in forms_of(result, PLOVER)] == [WeightedValue, Fixed, Verdict]
    margin = margin_of("plover", house=house_of(split))
    assert len(margin.commodities) == 2
    assert margin.maintenance >= margin_of("plover").maintenance


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("path", "value", "reason", "accounts"),
    [
        ((BTC, "contracts", 0, "price"), "NaN", FailureReason.NOT_A_NUMBER, {HERON}),
        ((BTC, "contracts", 0, "price"), "-5", FailureReason.OUT_OF_RANGE, {HERON}),
        ((BTC, "contracts", 0, "kind"), "swap", FailureReason.UNSUPPORTED, {HERON}),
        ((BTC, "contracts", 2, "implied_vol"), ..., FailureReason.MISSING_FIELD, {HERON}),
        ((BTC, "contracts", 2, "option_type"), "straddle", FailureReason.MALFORMED, {HERON}),
        ((BTC, "contracts", 2, "expiry"), "2024-06-29T00:00:00Z", FailureReason.OUT_OF_RANGE, {HERON}),
        ((BTC, "contracts", 2, "expiry"), "2024-07-26", FailureReason.MALFORMED, {HERON}),
        ((BTC, "contracts", 2, "premium"), "daily", FailureReason.UNSUPPORTED, {HERON}),
        ((BTC, "contracts", 2, "strike"), "0", FailureReason.OUT_OF_RANGE, {HERON}),
        ((BTC, "contracts", 4, "future_price"), ..., FailureReason.MISSING_FIELD, {WREN}),
        ((BTC, "contracts", 0, "month"), "2024-13", FailureReason.MALFORMED, {HERON}),
        ((BTC, "price_scan_range"), ..., FailureReason.MISSING_PARAMETER, {HERON, WREN}),
        ((BTC, "price_scan_range"), "-1", FailureReason.OUT_OF_RANGE, {HERON, WREN}),
        ((BTC, "price_scan_rate"), "0.1", FailureReason.INCONSISTENT, {HERON, WREN}),
        ((BTC, "vol_scan_range"), ..., FailureReason.MISSING_PARAMETER, {HERON, WREN}),
        ((BTC, "vol_scan_range"), "1.5", FailureReason.OUT_OF_RANGE, {HERON, WREN}),
        ((BTC, "underlying"), "NOPE", FailureReason.UNKNOWN_MARKET, {HERON, WREN}),
        ((BTC, "currency"), "EUR", FailureReason.UNSUPPORTED, {HERON, WREN}),
        ((BTC, "short_option_count"), "many", FailureReason.MALFORMED, {HERON, WREN}),
        ((BTC, "initial_ratio"), "0.9", FailureReason.OUT_OF_RANGE, {HERON, WREN}),
        ((BTC, "calendar", "tiers", 1, "last"), "2024-09", FailureReason.MISSING_PARAMETER, set()),
        ((BTC, "calendar", "tiers", 1, "first"), "2024-10", FailureReason.MISSING_PARAMETER, {HERON}),
        ((BTC, "calendar", "tiers", 1, "tier"), 1, FailureReason.DUPLICATE, {HERON, WREN}),
        ((BTC, "calendar", "spreads", 0, "legs", 0, "tier"), 7, FailureReason.MISSING_PARAMETER, {HERON, WREN}),
        ((BTC, "calendar", "spreads", 0, "legs"), [], FailureReason.MALFORMED, {HERON, WREN}),
        ((BTC, "calendar", "spreads", 0, "legs", 0, "side"), "C", FailureReason.MALFORMED, {HERON, WREN}),
        ((ETH, "contracts", 0, "risk_array"), ["1"] * 15, FailureReason.MALFORMED, {HERON}),
        ((ETH, "contracts", 0, "risk_array", 3), "x", FailureReason.NOT_A_NUMBER, {HERON}),
        ((ETH, "contracts", 0, "risk_array"), ..., FailureReason.MISSING_PARAMETER, {HERON}),
        ((ETH, "contracts", 2, "composite_delta"), "1.5", FailureReason.OUT_OF_RANGE, {HERON}),
        ((ETH, "contracts", 2, "composite_delta"), ..., FailureReason.MISSING_PARAMETER, {HERON}),
        ((ETH, "delivery", 0, "month"), "July", FailureReason.MALFORMED, {HERON}),
        ((SOL, "price_scan_rate"), ..., FailureReason.MISSING_PARAMETER, {PLOVER, WREN}),
        ((SOL, "code"), ..., FailureReason.MISSING_FIELD, {PLOVER, WREN}),
        ((SOL, "code"), "ETH", FailureReason.DUPLICATE, {HERON, PLOVER, WREN}),
    ],
)
def test_a_bad_parameter_stops_those_who_hold_it(
    path: tuple[Any, ...], value: Any, reason: FailureReason, accounts: set[str]
) -> None:
    result = normalized(desk(put("combined_commodities", *path, to=value)))
    assert {f.account_id for f in result.failures if f.account_id} == accounts
    assert {f.reason for f in result.failures if f.account_id} == ({reason} if accounts else set())
    assert {row["account_id"] for row in rows_of(result, "accounts")} == ACCOUNTS
    for account in accounts:
        rule_set = only(result, "accounts", account_id=account)["rule_set"]
        assert rows_of(result, "rule_sets", rule_set=rule_set) == []


@pytest.mark.parametrize(
    ("path", "value", "reason", "accounts"),
    [
        (("scan", "extreme_cover"), ..., FailureReason.MISSING_PARAMETER, ACCOUNTS),
        (("scan", "extreme_multiple"), "0.5", FailureReason.OUT_OF_RANGE, ACCOUNTS),
        (("scan", "look_ahead_days"), ..., FailureReason.MISSING_PARAMETER, ACCOUNTS),
        (("scan", "delta_weights"), ..., FailureReason.MISSING_PARAMETER, {HERON, WREN}),
        (("scan", "delta_weights"), ["1"] * 6, FailureReason.MALFORMED, ACCOUNTS),
        (("scan", "delta_weights"), ["0"] * 7, FailureReason.OUT_OF_RANGE, ACCOUNTS),
        (("scan",), 5, FailureReason.MALFORMED, ACCOUNTS),
        (("clearing_house",), ..., FailureReason.MISSING_PARAMETER, ACCOUNTS),
        (("as_of",), "noon", FailureReason.MALFORMED, ACCOUNTS),
        (("combined_commodities",), {}, FailureReason.MALFORMED, ACCOUNTS),
        (("inter_commodity_spreads", 0, "legs", 0, "credit_rate"), "1.2", FailureReason.OUT_OF_RANGE, {HERON, WREN}),
        (("inter_commodity_spreads", 0, "legs", 0, "commodity"), "ETH", FailureReason.MALFORMED, {HERON}),
        (("inter_commodity_spreads", 0, "legs"), 5, FailureReason.MALFORMED, ACCOUNTS),
    ],
)
def test_a_bad_house_stops_its_accounts(
    path: tuple[Any, ...], value: Any, reason: FailureReason, accounts: set[str]
) -> None:
    result = normalized(desk(put(*path, to=value)))
    assert {f.account_id for f in result.failures if f.account_id} == accounts
    assert {f.reason for f in result.failures if f.account_id} == {reason}


@pytest.mark.parametrize(
    ("request_", "path", "value", "reason"),
    [
        ("positions", ("positions", 0, "symbol"), "NOPE", FailureReason.UNKNOWN_MARKET),
        ("positions", ("positions", 0, "symbol"), 5, FailureReason.MALFORMED),
        ("positions", ("positions", 0, "quantity"), "many", FailureReason.NOT_A_NUMBER),
        ("positions", ("positions", 0, "settlement_price"), "0", FailureReason.OUT_OF_RANGE),
        ("positions", ("positions", 1, "symbol"), "BTCN4", FailureReason.DUPLICATE),
        ("positions", ("positions", 1), None, FailureReason.MALFORMED),
        ("positions", ("positions",), None, FailureReason.MISSING_FIELD),
        ("account", ("cash",), "x", FailureReason.NOT_A_NUMBER),
        ("account", ("cash",), ..., FailureReason.MISSING_FIELD),
        ("account", ("currency",), "USDC", FailureReason.UNSUPPORTED),
        ("account", ("collateral", 0, "asset"), "NOPE", FailureReason.UNKNOWN_ASSET),
        ("account", ("collateral", 0, "asset"), "USD", FailureReason.INCONSISTENT),
        ("account", ("collateral", 0, "price"), ..., FailureReason.MISSING_MARK),
        ("account", ("collateral", 0, "haircut"), "1.1", FailureReason.OUT_OF_RANGE),
        ("account", ("collateral", 0, "quantity"), "-1", FailureReason.OUT_OF_RANGE),
        ("account", ("collateral", 1, "asset"), "BTC", FailureReason.DUPLICATE),
        ("account", ("reported",), 5, FailureReason.MALFORMED),
        ("account", ("reported", "equity"), "?", FailureReason.NOT_A_NUMBER),
    ],
)
def test_a_bad_document_makes_its_account_incomplete(
    request_: str, path: tuple[Any, ...], value: Any, reason: FailureReason
) -> None:
    result = normalized(desk(put(*path, to=value), request_, "heron"))
    assert {f.account_id for f in result.failures} == {HERON}
    assert reason in {f.reason for f in result.failures}
    # The currency is stated by the account and contradicted by what it holds.
    document = "positions" if path == ("currency",) else request_
    assert {f.payload for f in result.failures if f.reason == reason} == {f"heron_{document}.json"}
    assert {row["account_id"] for row in rows_of(result, "accounts")} == ACCOUNTS


@pytest.mark.parametrize("body", [None, 5, "x", [5], {}])
@pytest.mark.parametrize("request_", ["parameters", "positions", "account"])
def test_a_body_of_another_type_is_no_exception(request_: str, body: Any) -> None:
    payloads = [replace(p, body=body) if p.request == request_ and p.account in ("", "heron") else p for p in desk()]
    result = normalized(payloads)
    lost = {f.account_id for f in result.failures if f.account_id}
    assert lost == (ACCOUNTS if request_ == "parameters" else {"span:heron", HERON})


def test_two_answers_to_one_question_are_both_rejected() -> None:
    for request, account, lost in (
        ("parameters", "", ACCOUNTS),
        ("positions", "heron", {HERON}),
        ("account", "heron", {HERON}),
    ):
        file = f"{account}_{request}.json" if account else f"{request}.json"
        again = replace(fetched(request, file, account), name="again.json", request=f"{request}:again")
        result = normalized([*desk(), again])
        duplicates = [f for f in result.failures if f.reason == FailureReason.DUPLICATE and f.payload]
        assert {f.payload for f in duplicates} == {file, "again.json"}
        assert {f.account_id for f in result.failures if f.account_id} == lost


def test_accounts_of_other_houses_and_numbers_are_apart() -> None:
    def other(payload: Payload, **changes: Any) -> Payload:
        return replace(payload, name="b.json", body=payload.body | changes)

    plover = [p for p in desk() if p.account == "plover"]
    result = normalized([*desk(), *(other(p, account="2") for p in plover)])
    assert result.failures == []
    assert rows_of(result, "accounts", account_id="span:plover:XCH:2")
    result = normalized([*desk(), *(other(p, clearing_house="YCH") for p in plover)])
    assert {f.account_id for f in result.failures} == {"span:plover:YCH"}
    assert {f.reason for f in result.failures} == {FailureReason.MISSING_PARAMETER}


def test_unknown_requests_and_documents_of_nobody() -> None:
    result = normalized([replace(desk()[0], request="parametres")])
    assert [f.reason for f in result.failures] == [FailureReason.UNSUPPORTED]
    result = normalized([replace(fetched("account", "wren_account.json"), account="")])
    assert [(f.reason, f.path) for f in result.failures] == [(FailureReason.MISSING_FIELD, "account")]


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics: arrays and scans

POINTS = mechanics.scenarios(3, Fraction(33, 100))


def test_the_sixteen_scenarios_in_their_order() -> None:
    assert [(float(p.price), p.vol) for p in POINTS[:4]] == [(0, 1), (0, -1), (1 / 3, 1), (1 / 3, -1)]
    assert [(float(p.price), p.vol) for p in POINTS[10:14]] == [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    assert [(int(p.price), p.vol, float(p.cover)) for p in POINTS[14:]] == [(3, 0, 0.33), (-3, 0, 0.33)]
    older = mechanics.scenarios(2, Fraction(35, 100))
    assert float(-mechanics.future_array(100, older)[14]) == 70


def test_a_published_table_of_a_covered_write() -> None:
    """L. McMillan, Options as a Strategic Investment, chapter on SPAN: the long future and short call of its table."""
    future = [0, 0, 3330, 3330, -3330, -3330, 6670, 6670, -6670, -6670, 10000, 10000, -10000, -10000, 7000, -7000]
    call = [-460, 610, -2640, -1730, 1270, 2340, -5210, -4540, 2540, 3430, -8060, -7640, 3380, 3990, -3130, 1500]
    found = mechanics.scan(mechanics.total_losses([(-1, future), (-1, call)]))
    assert found.risk == 6620
    assert found.active == 13
    # A share of the largest loss is that of the vol: scenarios 13 and 14 share the price.
    split = mechanics.price_risk(found, Fraction(1, 2))
    assert split.volatility_risk == Fraction(6620 - 6010, 2)
    assert split.time_risk == Fraction(460 - 610, 2)
    assert split.weighted == 2 * (6620 - 305 + 75)


def test_a_portfolio_that_cannot_lose_has_no_risk() -> None:
    found = mechanics.scan(tuple(Fraction(-n) for n in range(1, 17)))
    assert found.risk == 0
    assert found.active == 1
    assert set(mechanics.price_risk(found, 1)) == {0}
    assert mechanics.scan(mechanics.total_losses([])).risk == 0
    with pytest.raises(ValueError, match="16 entries"):
        mechanics.total_losses([(1, [1, 2])])


def test_scenarios_are_paired_by_price() -> None:
    pairs = [mechanics.paired_scenario(number) for number in range(1, 17)]
    assert pairs == [2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 15, 16]
    for number, pair in enumerate(pairs, start=1):
        assert POINTS[number - 1].price == POINTS[pair - 1].price
    with pytest.raises(ValueError, match="17"):
        mechanics.paired_scenario(17)


def test_black_76_at_its_edges_and_in_parity() -> None:
    call, put = Option(100, 0.4, 30, True), Option(100, 0.4, 30, False)
    worth = [mechanics.black76(o, 104.0, vol=0.4, days=30) for o in (call, put)]
    assert worth[0] - worth[1] == pytest.approx(4, rel=1e-12)
    assert mechanics.black76(call, 104.0, vol=0.4, days=0) == 4
    assert mechanics.black76(put, 104.0, vol=0.0, days=30) == 0
    assert mechanics.black76(put, -5.0, vol=0.4, days=30) == 105
    deltas = [mechanics.option_delta(o, 104.0, vol=0.4, days=30) for o in (call, put)]
    assert deltas[0] - deltas[1] == pytest.approx(1, rel=1e-12)
    assert mechanics.option_delta(call, 100.0, vol=0.4, days=0) == 0.5
    assert mechanics.option_delta(put, 99.0, vol=0.4, days=0) == -1
    step = 1e-4
    slope = [mechanics.black76(call, 104.0 + move, vol=0.4, days=30) for move in (step, -step)]
    assert deltas[0] == pytest.approx((slope[0] - slope[1]) / (2 * step), rel=1e-6)


def test_an_option_array_against_a_plain_loop() -> None:
    option = Option(65_000, 0.53, 26.625, True)
    found = mechanics.option_array(
        option, 61_210, price_scan_range=6_500, vol_scan_range=0.25, look_ahead_days=1, points=POINTS
    )

    def worth(price: float, vol: float, days: float) -> float:
        deviation = vol * math.sqrt(days / 365)
        d1 = (math.log(price / 65_000) + deviation**2 / 2) / deviation
        normal = [(1 + math.erf(d / math.sqrt(2))) / 2 for d in (d1, d1 - deviation)]
        return price * normal[0] - 65_000 * normal[1]

    moves = [0, 1 / 3, -1 / 3, 2 / 3, -2 / 3, 1, -1]
    expected = [worth(61_210 + 6_500 * m, 0.53 * (1 + v * 0.25), 25.625) for m in moves for v in (1, -1)]
    expected += [worth(61_210 + 19_500 * m, 0.53, 25.625) for m in (1, -1)]
    today = worth(61_210, 0.53, 26.625)
    cover = [1.0] * 14 + [0.33] * 2
    assert [float(loss) for loss in found] == pytest.approx(
        [(today - value) * share for value, share in zip(expected, cover, strict=True)], rel=1e-9, abs=1e-6
    )


def test_composite_delta_is_the_weighted_mean_over_the_points() -> None:
    option = Option(100, 0.5, 40, True)
    weights = [Fraction(weight) for weight in ("27", "21.7", "21.7", "11", "11", "3.7", "3.7")]
    found = mechanics.composite_delta(option, 100, price_scan_range=12, look_ahead_days=1, weights=weights)
    deltas = [mechanics.option_delta(option, 100 + 12 * float(p), vol=0.5, days=39) for p in mechanics.SCAN_POINTS]
    expected = sum(float(w) * d for w, d in zip(weights, deltas, strict=True)) / float(sum(weights))
    assert float(found) == pytest.approx(expected, rel=1e-12)
    same = mechanics.composite_delta(
        option, 100, price_scan_range=12, look_ahead_days=1, weights=[w * 7 for w in weights]
    )
    assert float(same) == pytest.approx(float(found), rel=1e-12)
    for bad in ([1] * 6, [-1, *[1] * 6], [0] * 7):
        with pytest.raises(ValueError, match="weights"):
            mechanics.composite_delta(option, 100, price_scan_range=12, look_ahead_days=1, weights=bad)


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics: spreads and totals


def months(*deltas: tuple[str, int, int]) -> list[MonthDelta]:
    return [MonthDelta(month, tier, Fraction(delta)) for month, tier, delta in deltas]


def spread(priority: int, charge: int, *legs: tuple[int, str, int]) -> CalendarSpread:
    return CalendarSpread(priority, Fraction(charge), tuple(CalendarLeg(t, s, Fraction(d)) for t, s, d in legs))


def test_calendar_spreads_are_formed_by_priority_and_either_way_round() -> None:
    held = months(("07", 1, 10), ("08", 1, -4), ("09", 2, -9), ("12", 3, 2))
    within, across = spread(1, 100, (1, "A", 1), (1, "B", 1)), spread(2, 250, (1, "A", 1), (2, "B", 1))
    far = spread(3, 400, (2, "A", 1), (3, "B", 1))
    found = mechanics.intra_commodity(held, [far, across, within])
    # 4 within tier 1, then 6 of tier 1 against tier 2, then 2 of the 3 left against the far month.
    assert found.charge == 4 * 100 + 6 * 250 + 2 * 400
    assert found.left == {"07": 0, "08": 0, "09": 1, "12": 0}
    assert found.used == {"07": 10, "08": 4, "09": 8, "12": 2}
    assert mechanics.intra_commodity(held, []).charge == 0
    assert mechanics.intra_commodity(months(("07", 1, 5), ("09", 2, 5)), [across]).charge == 0
    with pytest.raises(ValueError, match="twice"):
        mechanics.intra_commodity(months(("07", 1, 5), ("07", 1, 5)), [])


def test_a_butterfly_takes_two_of_the_middle() -> None:
    held = months(("07", 1, 3), ("08", 2, -10), ("09", 3, 4))
    fly = spread(1, 90, (1, "A", 1), (2, "B", 2), (3, "A", 1))
    found = mechanics.intra_commodity(held, [fly])
    assert found.charge == 270
    assert found.left == {"07": 0, "08": 4, "09": 1}


def test_delivery_charges_what_spreads_use_and_what_is_left() -> None:
    intra = mechanics.intra_commodity(months(("07", 1, 10), ("09", 2, -6)), [spread(1, 0, (1, "A", 1), (2, "B", 1))])
    charge = mechanics.delivery_charge(
        intra, [DeliveryMonth("07", Fraction(3), Fraction(7)), DeliveryMonth("10", Fraction(1), Fraction(1))]
    )
    assert charge == 6 * 3 + 4 * 7


def inter(priority: int, *legs: tuple[str, str, str, str]) -> InterSpread:
    return InterSpread(priority, tuple(InterLeg(c, s, Fraction(d), Fraction(r)) for c, s, d, r in legs))


def test_credit_between_commodities_is_price_risk_times_deltas_times_rate() -> None:
    deltas = {"A": Fraction(10), "B": Fraction(-36), "C": Fraction(5)}
    risks = {"A": Fraction(100), "B": Fraction(30), "C": Fraction(7)}
    first = inter(1, ("A", "A", "1", "0.5"), ("B", "B", "3", "0.4"))
    second = inter(2, ("B", "A", "1", "1"), ("C", "B", "1", "1"))
    found = mechanics.inter_commodity(deltas, risks, [second, first])
    assert found.credits["A"] == 100 * 10 * Fraction(1, 2)
    # 30 deltas against A at 0.4, then 5 of the 6 left against C in full.
    assert found.credits["B"] == 30 * 30 * Fraction(2, 5) + 30 * 5
    assert found.credits["C"] == 35
    assert found.left == {"A": 0, "B": -1, "C": 0}
    same_side = mechanics.inter_commodity({"A": Fraction(1), "B": Fraction(1)}, risks, [first])
    assert set(same_side.credits.values()) == {0}
    assert mechanics.inter_commodity({"A": Fraction(1)}, risks, [first]).credits == {"A": 0}


def test_minimum_option_value_and_total() -> None:
    assert mechanics.short_option_minimum(3, 5, 10) == 80
    assert mechanics.short_option_minimum(3, 5, 10, count="larger") == 50
    assert mechanics.commodity_risk(100, intra=10, delivery=5, inter_credit=60, option_minimum=70) == 70
    assert mechanics.commodity_risk(100, intra=10, delivery=5, inter_credit=60, option_minimum=50) == 55
    assert mechanics.net_option_value([(2, Decimal("1.5"), 100), (-1, 4, 100)]) == -100
    assert mechanics.total_requirement(500, -100).total == 600
    assert mechanics.total_requirement(500, 200).total == 300
    assert mechanics.total_requirement(500, 800).total == 0


def test_the_house_of_the_fixtures_by_hand() -> None:
    margin = margin_of("heron")
    btc, eth = margin.commodities
    assert (btc.commodity.code, eth.commodity.code) == ("BTC", "ETH")
    # Seven September futures stand against July's deltas, at 1750 each.
    assert btc.intra == 7 * 1750
    # 14 short futures, 25 long calls and 30 short puts in the delivery month, no spread among them.
    eth_delta = -14 + 25 * Fraction("0.2841") + 30 * Fraction("0.1712")
    assert (eth.net_delta, eth.delivery) == (eth_delta, abs(eth_delta) * 650)
    formed = min(btc.net_delta, abs(eth_delta) / Fraction("1.8"))
    assert btc.inter_credit == btc.price_risk.weighted * formed * Fraction("0.55")
    assert eth.inter_credit == eth.price_risk.weighted * formed * Fraction("1.8") * Fraction("0.55")
    assert btc.option_minimum == 35 * 250
    assert eth.option_minimum == 30 * 60
    assert margin.initial == margin.maintenance * Fraction("1.1")
    assert mechanics.total_requirement(margin.maintenance, margin.net_option_value).total > margin.maintenance


# ---------------------------------------------------------------------------------------------------------------------
# Properties

ARRAYS = st.lists(st.integers(-10_000, 10_000), min_size=16, max_size=16)
HOLDINGS = st.lists(st.tuples(st.integers(-50, 50), ARRAYS), max_size=5)


@settings(max_examples=60, deadline=None)
@given(HOLDINGS, HOLDINGS)
def test_pooling_never_needs_more_than_the_sum(one: list[Any], other: list[Any]) -> None:
    risks = [mechanics.scan(mechanics.total_losses(held)).risk for held in (one, other, one + other)]
    assert 0 <= risks[2] <= risks[0] + risks[1]


@settings(max_examples=60, deadline=None)
@given(HOLDINGS, st.integers(1, 20))
def test_the_scan_scales_and_ignores_order_and_splits(held: list[Any], times: int) -> None:
    whole_scan = mechanics.scan(mechanics.total_losses(held))
    assert (
        mechanics.scan(mechanics.total_losses([(times * q, array) for q, array in held])).risk
        == times * whole_scan.risk
    )
    assert mechanics.scan(mechanics.total_losses(held[::-1])) == whole_scan
    split = [(part, array) for q, array in held for part in (q // 2, q - q // 2)]
    assert mechanics.scan(mechanics.total_losses(split)) == whole_scan


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(-20, 20)), max_size=6), st.integers(0, 500))
def test_calendar_charges_never_touch_what_cannot_offset(entries: list[tuple[int, int]], charge: int) -> None:
    held = [MonthDelta(str(n), tier, Fraction(delta)) for n, (tier, delta) in enumerate(entries)]
    spreads = [spread(n, charge, (a, "A", 1), (b, "B", 1)) for n, (a, b) in enumerate([(1, 1), (1, 2), (2, 3), (1, 3)])]
    found = mechanics.intra_commodity(held, spreads)
    longs, shorts = sum(max(d, 0) for _, d in entries), sum(max(-d, 0) for _, d in entries)
    assert 0 <= found.charge <= min(longs, shorts) * charge
    assert all(found.used[m.month] + found.left[m.month] == abs(m.delta) for m in held)
    net = sum(found.left[m.month] * (1 if m.delta > 0 else -1) for m in held)
    assert net == longs - shorts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=3, max_size=3), st.lists(st.integers(0, 100), min_size=3, max_size=3))
def test_credit_never_exceeds_the_price_risk(deltas: list[int], risks: list[int]) -> None:
    names = ("A", "B", "C")
    spreads = [
        inter(1, ("A", "A", "1", "0.8"), ("B", "B", "2", "0.8")),
        inter(2, ("B", "A", "1", "1"), ("C", "B", "1.5", "1")),
        inter(3, ("A", "A", "1", "1"), ("C", "B", "1", "0.9")),
    ]
    found = mechanics.inter_commodity(
        dict(zip(names, map(Fraction, deltas), strict=True)),
        dict(zip(names, map(Fraction, risks), strict=True)),
        spreads,
    )
    for name, delta, risk in zip(names, deltas, risks, strict=True):
        assert 0 <= found.credits[name] <= abs(delta) * risk
        assert abs(found.left[name]) <= abs(delta)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=7, max_size=7), st.integers(2, 5))
def test_any_account_keeps_initial_above_maintenance_and_scales(quantities: list[int], times: int) -> None:
    house = house_of()

    def held(factor: int) -> Change:
        def change(body: Any) -> None:
            for line, quantity in zip(body["positions"], quantities, strict=True):
                line["quantity"] = str(quantity * factor)

        return change

    one, many = margin_of("heron", held(1), house), margin_of("heron", held(times), house)
    assert 0 <= one.maintenance <= one.initial
    # Every part is homogeneous: losses, deltas and numbers of contracts all scale.
    assert many.maintenance == times * one.maintenance
    assert many.net_option_value == times * one.net_option_value
    for commodity in one.commodities:
        assert commodity.risk >= commodity.option_minimum
        assert commodity.inter_credit <= max(commodity.price_risk.price_risk, Fraction(0))


def test_one_more_contract_on_the_same_side_never_needs_less_without_offsets() -> None:
    """With offsets it may: a hedge lowers the scan, and a spread may earn more credit than it costs."""

    def long(count: int) -> Change:
        return lambda body: body.__setitem__("positions", [{"symbol": "BTCN4 C65000", "quantity": str(-count)}])

    risks = [margin_of("wren", long(count)).maintenance for count in range(8)]
    assert risks == sorted(risks)
    assert risks[0] == 0


def test_a_scan_says_which_scenario_is_worst() -> None:
    assert isinstance(margin_of("plover").commodities[0].scan, Scan)
    assert margin_of("plover").commodities[0].scan.active == 11
