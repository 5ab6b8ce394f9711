"""Derive: payloads to canonical tables, every way to be wrong, and the venue's own equity from the rows.

The payloads in `payloads/derive` are written for this suite in the venue's format, and what they must become is in
`expected/derive/desk.json`. Recorded payloads are read where the folder of recorded material is at hand.
"""

import copy
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized
from adapters.asset_book import Asset, AssetBook
from adapters.derive import ADAPTER, FACTS, POSITIONS, SUBACCOUNT, TICKER
from adapters.derive.rules import read_rule_book
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import (
    Contingency,
    ExpiryMaxLoss,
    PriceVolGrid,
    Verdict,
    WeightedValue,
)
from aggregator.snapshot import take_snapshot
from tests.normalized_rows import check_canonical, components_of, failures_of, only, rows_of
from tests.payload_files import read_payload

from .sample_derive import PAYLOADS as SAMPLE

TESTS = Path(__file__).resolve().parent
PAYLOADS = TESTS / "payloads" / "derive"
EXPECTED = TESTS / "expected" / "derive"
PARAMETERS = tomllib.loads((TESTS.parent / "configs" / "venues" / "derive.toml").read_text(encoding="utf-8"))

NORTH, SOUTH, EAST = "derive:north:9001", "derive:south:9002", "derive:east:9003"
NOW = datetime(2024, 5, 15, 12, tzinfo=UTC)
SECONDS_PER_YEAR = 365 * 86400

# Rates are rounded to 1e-12 and option prices are float64: equities of some 1e4 agree to about 1e-7.
EQUITY_TOLERANCE = 1e-6
# What rounding the rate to 12 digits leaves of a discount factor.
DISCOUNT_TOLERANCE = 1e-11

# Decimal columns have 18 decimals.
COLUMN_ROUNDING = Decimal("1e-18")

FACTORS = ("BTC", "ETH", "SOL", "DOGE", "SNX")
STABLES = {"USDC": "circle", "USDT": "tether", "DAI": "maker"}
ASSETS = AssetBook(
    {symbol: Asset(symbol, symbol, Decimal(1), None, None) for symbol in FACTORS}
    | {symbol: Asset(symbol, None, Decimal(1), symbol, issuer) for symbol, issuer in STABLES.items()}
    | {"weETH": Asset("weETH", "ETH", Decimal(1), "weETH", "etherfi")}
)


def fetched(file: str, account: str = "", *, request: str = "", root: Path = PAYLOADS) -> Payload:
    return read_payload("derive", root, request, file, account)


def tickers() -> list[Payload]:
    return [fetched(path.name) for path in sorted(PAYLOADS.glob("ticker_*.json"))]


def north() -> Payload:
    return fetched("north_subaccount.json", "north")


def south() -> Payload:
    return fetched("south_subaccount.json", "south")


def east() -> Payload:
    return fetched("east_subaccount.json", "east")


def desk() -> list[Payload]:
    return [north(), fetched("north_positions.json", "north"), south(), east(), *tickers()]


def normalized(*payloads: Payload, parameters: Any = PARAMETERS) -> Normalized:
    return ADAPTER.normalize(payloads, Context(ASSETS, parameters))


def changed(payload: Payload, change: Callable[[Any], Any]) -> Payload:
    """The payload with its result changed in place by `change`."""
    body = copy.deepcopy(payload.body)
    change(body["result"])
    return replace(payload, body=body)


def the_failure(result: Normalized, account: str | None) -> Failure:
    found = failures_of(result, account)
    assert len(found) == 1, result.failures
    return found[0]


def mark_of(result: Normalized, account: str, subject: str, field: str) -> float:
    own = rows_of(result, "marks", account_id=account, subject=subject, field=field)
    return (own or rows_of(result, "marks", account_id=None, subject=subject, field=field))[0]["value"]


def black(forward: float, strike: float, years: float, vol: float, rate: float, *, is_call: bool) -> float:
    deviation = vol * math.sqrt(years)
    d1 = math.log(forward / strike) / deviation + deviation / 2
    call = forward * math.erfc(-d1 / math.sqrt(2)) / 2 - strike * math.erfc((deviation - d1) / math.sqrt(2)) / 2
    return math.exp(-rate * years) * (call if is_call else call - forward + strike)


def equity_of(result: Normalized, account: str) -> float:
    """Balances at their price, perpetuals at mark, options at their model price: the account's own marks first.

    South is under standard margin, which marks options undiscounted.
    """
    total = 0.0
    for balance in rows_of(result, "balances", account_id=account):
        amount = float(balance["quantity"] + (balance["accrued_interest"] or 0))
        field = "stable_price" if balance["asset_id"] == "USDC" else "index"
        price = mark_of(result, account, balance["asset_id"], field)
        total += amount * price * (1 if balance["side"] == "asset" else -1)
    for held in rows_of(result, "positions", account_id=account):
        instrument = only(result, "instruments", instrument_id=held["instrument_id"])
        quantity = float(held["quantity"])
        if instrument["kind"] == "perp":
            mark = mark_of(result, account, held["instrument_id"], "mark")
            total += quantity * (mark - float(held["entry_price"]))
            total += float(held["unsettled_funding"] + held["realized_pnl"])
        else:
            expiry = f"{instrument['underlying']}@{instrument['expiry']:%Y-%m-%dT%H:%M:%SZ}"
            total += quantity * black(
                mark_of(result, account, expiry, "forward"),
                float(instrument["strike"]),
                (instrument["expiry"] - NOW).total_seconds() / SECONDS_PER_YEAR,
                mark_of(result, account, held["instrument_id"], "implied_vol"),
                mark_of(result, account, expiry, "rate") if account != SOUTH else 0.0,
                is_call=instrument["option_type"] == "call",
            )
    return total


# ---------------------------------------------------------------------------------------------------------------------
# The desk


def as_json(tables: dict[str, pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """Tables as JSON values: decimals as plain strings, times as ISO text, without nulls and form parameters."""

    def plain(value: Any) -> Any:
        if isinstance(value, Decimal):
            return format(value.normalize(), "f")
        return value.isoformat() if hasattr(value, "isoformat") else value

    return {
        name: [
            {key: plain(value) for key, value in row.items() if value is not None and key != "parameters"}
            for row in table.to_pylist()
        ]
        for name, table in tables.items()
    }


def test_the_desk_becomes_the_expected_tables() -> None:
    result = normalized(*desk())
    assert result.failures == []
    expected = json.loads((EXPECTED / "desk.json").read_text(encoding="utf-8"))
    got = as_json(result.batches)
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name] == expected[name], name


def test_the_order_of_payloads_does_not_matter() -> None:
    first, second = normalized(*desk()), normalized(*reversed(desk()))
    assert as_json(first.batches) == as_json(second.batches)


def test_the_tables_are_canonical_and_their_keys_unique() -> None:
    assert isinstance(ADAPTER, Adapter)
    result = normalized(*desk())
    check_canonical(result)
    assets = {row["asset_id"] for row in rows_of(result, "assets")}
    used = {row["asset_id"] for name in ("balances", "collateral_tiers") for row in rows_of(result, name)}
    used |= {row["settlement_asset"] for row in rows_of(result, "accounts")}
    used |= {row[key] for row in rows_of(result, "instruments") for key in ("underlying", "settlement_asset")}
    assert used <= assets


@pytest.mark.parametrize("account", [NORTH, SOUTH, EAST])
def test_equity_is_the_venues_own(account: str) -> None:
    result = normalized(*desk())
    reported = float(only(result, "accounts", account_id=account)["reported_equity"])
    assert equity_of(result, account) == pytest.approx(reported, abs=EQUITY_TOLERANCE)


def test_net_margins_become_requirements() -> None:
    result = normalized(*desk())
    for payload, account in ((north(), NORTH), (south(), SOUTH), (east(), EAST)):
        row, stated = only(result, "accounts", account_id=account), payload.body["result"]
        for level in ("initial", "maintenance"):
            net = Decimal(stated[f"{level}_margin"])
            difference = row[f"reported_{level}_margin"] - (Decimal(stated["subaccount_value"]) - net)
            assert abs(difference) <= COLUMN_ROUNDING


def test_discount_factors_become_rates() -> None:
    result = normalized(*desk())
    for day, discount in (("2024-06-28", 0.99281), ("2024-09-27", 0.97764)):
        rate = only(result, "marks", subject=f"ETH@{day}T08:00:00Z", field="rate", account_id=None)["value"]
        years = (datetime.fromisoformat(f"{day}T08:00:00+00:00") - NOW).total_seconds() / SECONDS_PER_YEAR
        assert math.exp(-rate * years) == pytest.approx(discount, abs=DISCOUNT_TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------------
# Rule sets


def test_portfolio_margin_2_has_the_grid_of_33_points_and_its_charges() -> None:
    result = normalized(*desk())
    assert only(result, "accounts", account_id=NORTH)["rule_set"] == "derive:pm2:ETH"
    forms = components_of(result, "derive:pm2:ETH")
    assert forms[0] == ("equity", WeightedValue(weights="unit"))
    assert forms[-1] == ("verdict", Verdict(liquidates_when="below", trigger=Decimal(1)))
    grid = forms[1][1]
    assert isinstance(grid, PriceVolGrid)
    spots = [float(point.spot) for point in grid.scenarios]
    assert len(spots) == 33
    assert (min(spots), max(spots)) == (0.34, 6.0)
    assert {"ETH", "weETH"} <= set(grid.grid_collateral)
    assert "BTC" not in grid.grid_collateral
    perp, options, *doubts = [form for _, form in forms[2:-2] if isinstance(form, Contingency)]
    assert (perp.initial_rate, perp.maintenance_rate) == (Decimal("0.04"), Decimal("0.03"))
    assert (options.initial_rate, options.maintenance_rate) == (Decimal("0.005"), Decimal("0.003"))
    assert [doubt.measure for doubt in doubts] == ["gross_perp", "gross_options", "collateral"]
    tier = only(result, "collateral_tiers", rule_set="derive:pm2:ETH", asset_id="weETH")
    assert (tier["asset_weight_maintenance"], tier["asset_weight_initial"]) == (Decimal("0.95"), Decimal("0.94"))


def test_standard_margin_has_the_expiry_form_and_dollar_weights() -> None:
    result = normalized(*desk())
    assert only(result, "accounts", account_id=SOUTH)["rule_set"] == "derive:sm:major"
    forms = [form for _, form in components_of(result, "derive:sm:major")]
    assert isinstance(forms[1], ExpiryMaxLoss)
    assert WeightedValue(weights="collateral_tiers", weighted_at="usd") in forms
    tier = only(result, "collateral_tiers", rule_set="derive:sm:major", asset_id="ETH")
    assert (tier["asset_weight_maintenance"], tier["asset_weight_initial"]) == (Decimal("0.8"), Decimal("0.75"))


def test_the_first_portfolio_margin_scales_its_static_charges() -> None:
    def older(result: Any) -> None:
        result["margin_type"] = "PM"
        result["collaterals"] = result["collaterals"][:1]

    result = normalized(changed(north(), older), *tickers())
    assert result.failures == []
    forms = [form for _, form in components_of(result, "derive:pm:ETH")]
    grid, charges = forms[1], [form for form in forms if isinstance(form, Contingency)]
    assert isinstance(grid, PriceVolGrid)
    assert len(grid.scenarios) == 23
    for charge in charges[:2]:
        assert charge.maintenance_rate is not None
        assert charge.initial_rate == grid.initial_factor * charge.maintenance_rate
    # A negative value is not marked up: 1 / discount is at least the short factor of 1.
    shorts = (grid.discount.short_base, grid.discount.short_rate_mult, grid.discount.short_rate_add)
    assert shorts == (Decimal(1), Decimal(0), Decimal(0))


def test_cash_alone_needs_nothing() -> None:
    result = normalized(*desk())
    assert only(result, "accounts", account_id=EAST)["rule_set"] == "derive:cash"
    assert [side for side, _ in components_of(result, "derive:cash")] == ["equity", "verdict"]


def test_collateral_alone_takes_the_universe_from_the_currency() -> None:
    def bare(result: Any) -> None:
        result["positions"] = []

    result = normalized(changed(north(), bare))
    assert only(result, "accounts", account_id=NORTH)["rule_set"] == "derive:pm2:ETH"
    unknown = normalized(changed(north(), lambda r: r.update(positions=[], currency="USDC")))
    assert the_failure(unknown, NORTH).reason == FailureReason.MISSING_PARAMETER


def test_static_rate_where_no_ticker_states_a_discount() -> None:
    def silent(result: Any) -> None:
        if result["option_pricing"]:
            del result["option_pricing"]["discount_factor"]

    result = normalized(north(), *[changed(ticker, silent) for ticker in tickers()])
    assert result.failures == []
    rates = rows_of(result, "marks", account_id=NORTH, field="rate")
    assert [row["value"] for row in rates] == [0.05, 0.05]


# ---------------------------------------------------------------------------------------------------------------------
# Positions


def test_settled_profit_is_taken_off_and_funding_added() -> None:
    result = normalized(*desk())
    held = only(result, "positions", account_id=NORTH, instrument_id="derive:ETH-PERP")
    assert held["entry_price"] == Decimal("2950.25")
    assert (held["unsettled_funding"], held["realized_pnl"]) == (Decimal("-1.75"), Decimal("210.5"))


def test_the_venues_profit_wins_over_its_average_price() -> None:
    def off(result: Any) -> None:
        result["positions"][0]["average_price"] = "2900"

    held = only(normalized(changed(north(), off), *tickers()), "positions", instrument_id="derive:ETH-PERP")
    assert held["entry_price"] == Decimal("2950.25")


def test_a_profit_that_no_entry_price_gives() -> None:
    def impossible(result: Any) -> None:
        result["positions"][0]["unrealized_pnl"] = "-1000000"

    failure = the_failure(normalized(changed(north(), impossible), *tickers()), NORTH)
    assert (failure.reason, failure.path) == (FailureReason.INCONSISTENT, "positions[0].unrealized_pnl")


def test_fresher_positions_give_the_marks() -> None:
    def moved(result: Any) -> None:
        result["positions"][0] |= {"mark_price": "2990", "unrealized_pnl": "-258.375"}

    later = replace(changed(fetched("north_positions.json", "north"), moved), received_at=NOW + timedelta(seconds=5))
    result = normalized(north(), later, *tickers())
    assert result.failures == []
    mark = only(result, "marks", account_id=NORTH, subject="derive:ETH-PERP", field="mark")
    assert (mark["value"], mark["as_of"]) == (2990.0, NOW + timedelta(seconds=5))


def test_positions_that_contradict_the_subaccount() -> None:
    def traded(result: Any) -> None:
        result["positions"][1]["amount"] = "9"

    result = normalized(north(), changed(fetched("north_positions.json", "north"), traded), *tickers())
    assert the_failure(result, NORTH).reason == FailureReason.INCONSISTENT
    assert only(result, "accounts", account_id=NORTH)


def test_positions_without_their_subaccount() -> None:
    failure = the_failure(normalized(fetched("north_positions.json", "north")), NORTH)
    assert failure.reason == FailureReason.MISSING_FIELD


def test_zero_positions_and_balances_are_dropped() -> None:
    def closed(result: Any) -> None:
        result["positions"][0]["amount"] = "0"
        result["collaterals"].append({"amount": "0", "asset_name": "NOSUCH", "mark_price": "0"})

    result = normalized(changed(north(), closed), *tickers())
    assert result.failures == []
    assert len(rows_of(result, "positions")) == 3


def test_an_order_that_cannot_be_read_is_a_finding() -> None:
    def odd(result: Any) -> None:
        result["open_orders"].append({"order_id": "x", "instrument_name": "ETH-PERP", "direction": "up"})

    result = normalized(changed(north(), odd), *tickers())
    assert failures_of(result, NORTH) == []
    assert [failure.subject for failure in failures_of(result, None)] == [NORTH]
    assert only(result, "open_orders")["remaining_quantity"] == Decimal("1.5")


# ---------------------------------------------------------------------------------------------------------------------
# Wrong input: the failure names the account, whose accounts row and other rows stay


def set_path(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(result: Any) -> None:
        for key in path[:-1]:
            result = result[key]
        if value is None:
            del result[path[-1]]
        else:
            result[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason", "path"),
    [
        (set_path("collaterals", 1, "amount", value=None), FailureReason.MISSING_FIELD, "collaterals[1].amount"),
        (set_path("collaterals", 1, "amount", value="NaN"), FailureReason.NOT_A_NUMBER, "collaterals[1].amount"),
        (set_path("collaterals", 1, "mark_price", value="-1"), FailureReason.OUT_OF_RANGE, "collaterals[1].mark_price"),
        (set_path("collaterals", 1, "amount", value="-1"), FailureReason.OUT_OF_RANGE, "collaterals[1].amount"),
        (
            set_path("collaterals", 1, "asset_name", value="NOSUCH"),
            FailureReason.UNKNOWN_ASSET,
            "collaterals[1].asset_name",
        ),
        (set_path("collaterals", 1, "asset_name", value="USDC"), FailureReason.DUPLICATE, "collaterals[1]"),
        (set_path("collaterals", 1, "asset_name", value="SOL"), FailureReason.MISSING_PARAMETER, "collaterals"),
        (set_path("collaterals", value=None), FailureReason.MISSING_FIELD, "collaterals"),
        (set_path("positions", value=None), FailureReason.MISSING_FIELD, "positions"),
        (set_path("positions", value={}), FailureReason.MALFORMED, "positions"),
        (set_path("positions", 0, "amount", value="1e400"), FailureReason.OUT_OF_RANGE, "positions[0].amount"),
        (set_path("positions", 0, "mark_price", value="0"), FailureReason.OUT_OF_RANGE, "positions[0].mark_price"),
        (set_path("positions", 0, "mark_price", value=True), FailureReason.NOT_A_NUMBER, "positions[0].mark_price"),
        (
            set_path("positions", 0, "pending_funding", value=None),
            FailureReason.MISSING_FIELD,
            "positions[0].pending_funding",
        ),
        (
            set_path("positions", 0, "instrument_name", value="NOSUCH-PERP"),
            FailureReason.UNKNOWN_MARKET,
            "positions[0].instrument_name",
        ),
        (
            set_path("positions", 0, "instrument_name", value="ETH-20241301-1000-C"),
            FailureReason.MALFORMED,
            "positions[0].instrument_name",
        ),
        (set_path("positions", 1, "instrument_name", value="ETH-PERP"), FailureReason.DUPLICATE, "positions[1]"),
        (
            set_path("positions", 1, "instrument_name", value="ETH-20240628-9000-C"),
            FailureReason.MISSING_MARK,
            "positions",
        ),
        (set_path("positions", 0, "instrument_name", value="BTC-PERP"), FailureReason.INCONSISTENT, "positions"),
        (set_path("margin_type", value="PM9"), FailureReason.UNSUPPORTED, "margin_type"),
        (set_path("margin_type", value=None), FailureReason.MISSING_FIELD, "margin_type"),
        (set_path("subaccount_value", value="much"), FailureReason.NOT_A_NUMBER, "subaccount_value"),
        (set_path("maintenance_margin", value=None), FailureReason.MISSING_FIELD, "maintenance_margin"),
    ],
)
def test_a_wrong_subaccount_is_incomplete(change: Callable[[Any], None], reason: FailureReason, path: str) -> None:
    result = normalized(changed(north(), change), south(), *tickers())
    failure = failures_of(result, NORTH)[0]
    assert (failure.reason, failure.path, failure.payload) == (reason, path, "north_subaccount.json")
    assert only(result, "accounts", account_id=NORTH)
    assert failures_of(result, SOUTH) == []


def test_standard_margin_over_several_classes_is_unsupported() -> None:
    def other(result: Any) -> None:
        result["positions"][0]["instrument_name"] = "SOL-PERP"

    failure = the_failure(normalized(changed(south(), other), *tickers()), SOUTH)
    assert failure.reason == FailureReason.UNSUPPORTED
    assert "major, perpetual" in failure.message


def test_markets_without_parameters() -> None:
    changes = {NORTH: (north(), 0), SOUTH: (south(), 0)}
    for account, (payload, _) in changes.items():
        only_perp = changed(
            payload, lambda r: r.update(positions=[r["positions"][0] | {"instrument_name": "XRP-PERP"}])
        )
        context = Context(AssetBook({**ASSETS.assets, "XRP": Asset("XRP", "XRP", Decimal(1), None, None)}), PARAMETERS)
        failure = the_failure(ADAPTER.normalize([only_perp], context), account)
        assert failure.reason == FailureReason.MISSING_PARAMETER


def test_two_payloads_of_one_subaccount_are_both_rejected() -> None:
    result = normalized(north(), replace(north(), name="copy.json"), south(), *tickers())
    failure = the_failure(result, NORTH)
    assert failure.reason == FailureReason.DUPLICATE
    assert "copy.json" in failure.message
    assert rows_of(result, "balances", account_id=NORTH) == []
    assert only(result, "accounts", account_id=SOUTH)


def test_two_tickers_of_one_market_are_both_rejected() -> None:
    ticker = fetched("ticker_btc_perp.json")
    result = normalized(ticker, replace(ticker, name="copy.json"))
    assert the_failure(result, None).reason == FailureReason.DUPLICATE
    assert rows_of(result, "marks") == []


def test_owner_and_request_must_be_known() -> None:
    failure = the_failure(normalized(fetched("north_subaccount.json")), None)
    assert (failure.reason, failure.path) == (FailureReason.MISSING_FIELD, "account")
    failure = the_failure(normalized(replace(north(), request="private/get_orders")), None)
    assert failure.reason == FailureReason.UNSUPPORTED


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([1, 2], FailureReason.MALFORMED),
        ({"error": {"code": -32000, "message": "rate limit"}}, FailureReason.MALFORMED),
        ({"result": None}, FailureReason.MALFORMED),
        ({"result": {}}, FailureReason.MISSING_FIELD),
    ],
)
def test_an_answer_that_is_none(body: Any, reason: FailureReason) -> None:
    for payload, lost in ((north(), "derive:north"), (fetched("ticker_btc_perp.json"), None)):
        result = normalized(replace(payload, body=body))
        assert the_failure(result, lost).reason == reason
        assert rows_of(result, "accounts") == []


def test_truncated_json(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_bytes((PAYLOADS / "north_subaccount.json").read_bytes()[:500])
    failure = RecordedTransport(tmp_path).fetch("derive", PayloadRequest(SUBACCOUNT, "cut.json", "north"))
    assert isinstance(failure, Failure)
    assert failure.reason == FailureReason.MALFORMED


# ---------------------------------------------------------------------------------------------------------------------
# Tickers


@pytest.mark.parametrize(
    ("change", "reason", "path"),
    [
        (set_path("timestamp", value=None), FailureReason.MISSING_FIELD, "timestamp"),
        (set_path("index_price", value="-3000"), FailureReason.OUT_OF_RANGE, "index_price"),
        (set_path("mark_price", value="NaN"), FailureReason.NOT_A_NUMBER, "mark_price"),
        (set_path("instrument_type", value="perp"), FailureReason.INCONSISTENT, "instrument_type"),
        (set_path("instrument_name", value="XYZ-20240628-3200-C"), FailureReason.UNKNOWN_MARKET, "instrument_name"),
        (set_path("option_details", "strike", value="3100"), FailureReason.INCONSISTENT, "option_details"),
        (set_path("option_details", "expiry", value=1719550000), FailureReason.INCONSISTENT, "option_details"),
        (set_path("option_pricing", value=None), FailureReason.MISSING_FIELD, "option_pricing"),
        (set_path("option_pricing", "iv", value="-0.1"), FailureReason.OUT_OF_RANGE, "option_pricing.iv"),
        (
            set_path("option_pricing", "discount_factor", value="0"),
            FailureReason.OUT_OF_RANGE,
            "option_pricing.discount_factor",
        ),
    ],
)
def test_a_wrong_option_ticker_leaves_its_holders_without_a_vol(
    change: Callable[[Any], None], reason: FailureReason, path: str
) -> None:
    call = "ticker_eth_20240628_3200_c.json"
    wrong = [changed(t, change) if t.name == call else t for t in tickers()]
    result = normalized(north(), south(), *wrong)
    finding = next(failure for failure in result.failures if failure.payload == call)
    assert (finding.reason, finding.path, finding.account_id) == (reason, path, None)
    assert the_failure(result, NORTH).reason == FailureReason.MISSING_MARK
    assert failures_of(result, SOUTH) == []


def test_the_newer_forward_of_an_expiry_holds() -> None:
    def later(result: Any) -> None:
        result["timestamp"] += 1000
        result["option_pricing"]["forward_price"] = "3030"

    newer = [changed(t, later) if "2800" in t.name else t for t in tickers()]
    for payloads in (newer, newer[::-1]):
        forward = only(normalized(*payloads), "marks", subject="ETH@2024-06-28T08:00:00Z", field="forward")
        assert forward["value"] == 3030.0


def test_two_forwards_at_one_time_contradict_each_other() -> None:
    def other(result: Any) -> None:
        result["option_pricing"]["forward_price"] = "3030"

    result = normalized(*[changed(t, other) if "2800" in t.name else t for t in tickers()])
    assert the_failure(result, None).reason == FailureReason.INCONSISTENT
    assert rows_of(result, "marks", subject="ETH@2024-06-28T08:00:00Z", field="forward") == []


# ---------------------------------------------------------------------------------------------------------------------
# Parameters and recorded payloads


def test_the_parameter_file_is_checked() -> None:
    for section, key, value in (("pm2", "initial_factor", "high"), ("sm", "nosuch", "1")):
        wrong = copy.deepcopy(PARAMETERS)
        wrong[section][key] = value
        with pytest.raises(ConfigurationError, match=rf"{section}\.{key}"):
            normalized(parameters=wrong)
    assert set(read_rule_book(PARAMETERS).pm2.universes) == {"BTC", "ETH"}


def test_recorded_tickers(recorded: Path) -> None:
    root = recorded / "payloads" / "derive"
    result = normalized(
        fetched("ccxt_perp_ticker_btc.json", request=TICKER, root=root),
        fetched("option_ticker.json", request=TICKER, root=root),
    )
    mark = only(result, "marks", subject="derive:BTC-PERP", field="mark")
    assert mark["value"] == pytest.approx(99031.92750003036, rel=1e-15)
    rate = only(result, "marks", subject="derive:BTC-PERP", field="funding_rate")
    assert rate["value"] == pytest.approx(-0.000016101766457197, rel=1e-15)
    # The recorded option ticker is test data whose expiry is not that of its name.
    assert the_failure(result, None).reason == FailureReason.INCONSISTENT


def test_recorded_subaccount(recorded: Path) -> None:
    root = recorded / "payloads" / "derive"
    subaccount = fetched("subaccount_usdc_pm.json", "desk", request=SUBACCOUNT, root=root)
    result = normalized(subaccount)
    account = only(result, "accounts", account_id="derive:desk:42")
    assert account["reported_equity"] == 1000
    # It states a net margin of 0 for 1000 in cash, which is a finding and no figure to compare with.
    assert account["reported_initial_margin"] is None
    assert account["reported_maintenance_margin"] is None
    assert {failure.reason for failure in failures_of(result, None)} == {FailureReason.INCONSISTENT}
    assert failures_of(result, "derive:desk:42") == []

    positions = fetched("positions_eth.json", "desk", request=POSITIONS, root=root)
    contradicted = normalized(subaccount, positions)
    assert the_failure(contradicted, "derive:desk:42").reason == FailureReason.INCONSISTENT

    def with_perp(body: Any) -> None:
        body["positions"] = positions.body["positions"]

    body = copy.deepcopy(subaccount.body)
    with_perp(body)
    joint = normalized(replace(subaccount, body=body), positions)
    held = only(joint, "positions", account_id="derive:desk:42")
    assert (held["instrument_id"], held["entry_price"]) == ("derive:ETH-PERP", Decimal(3500))
    assert only(joint, "accounts", account_id="derive:desk:42")["rule_set"] == "derive:pm:ETH"


# ---------------------------------------------------------------------------------------------------------------------
# The sample of 2024-06-30: engine against the venue's figures, feeds, orders


JUNE_AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
PM2, SM, CASH, PM = (f"derive:june:{number}" for number in (7001, 7002, 7003, 7004))
PUT_EXPIRY = "ETH@2024-07-26T08:00:00Z"


def june() -> dict[str, Payload]:
    """The sample by file name without prefix and suffix."""
    return {
        file.removeprefix("june_").removesuffix(".json"): fetched(file, owner, request=request)
        for request, file, owner in SAMPLE
    }


def june_with(file: str, change: Callable[[Any], Any], *, without: tuple[str, ...] = ()) -> Normalized:
    payloads = {name: payload for name, payload in june().items() if name not in without}
    payloads[file] = changed(payloads[file], change)
    return normalized(*payloads.values())


def native(result: Normalized) -> dict[str, tuple[float, float, float]]:
    """(equity, initial, maintenance) of every account by the engine, in its unit."""
    snapshot = take_snapshot([result.batches], result.failures, as_of=JUNE_AS_OF)
    assert snapshot.failures == ()
    book, _ = pack_book({"": snapshot}, {"all": ["derive:june"]}, as_of=JUNE_AS_OF)
    [figures] = native_today(book)
    assert figures is not None
    return {
        info.account_id: (float(figures.equity[i]), float(figures.initial[i]), float(figures.maintenance[i]))
        for i, info in enumerate(book.portfolios[0].accounts)
    }


def test_the_sample_is_read_whole_and_of_one_instant() -> None:
    result = normalized(*june().values())
    assert result.failures == []
    accounts = {row["account_id"]: row for row in rows_of(result, "accounts")}
    assert accounts.keys() == {PM2, SM, CASH, PM}
    assert {row["received_at"] for row in accounts.values()} == {JUNE_AS_OF}
    assert {row["rule_set"] for row in accounts.values()} == {
        "derive:pm2:ETH",
        "derive:sm:major",
        "derive:cash",
        "derive:pm:BTC",
    }
    reordered = normalized(*list(june().values())[::-1])
    assert as_json(reordered.batches) == as_json(result.batches)
    assert FACTS.title.startswith("Derive")


def test_the_engine_reproduces_the_venues_figures() -> None:
    """The reported requirements are of the plain Python twins, confidences of the feeds included."""
    result = normalized(*june().values())
    for account, figures in native(result).items():
        row = only(result, "accounts", account_id=account)
        names = ("reported_equity", "reported_initial_margin", "reported_maintenance_margin")
        for name, ours in zip(names, figures, strict=True):
            assert ours == pytest.approx(float(row[name]), rel=1e-9, abs=1e-7), (account, name)


def test_confidences_of_the_feeds_stand_beside_their_marks() -> None:
    result = normalized(*june().values())

    def confidence(subject: str, field: str) -> set[float | None]:
        return {row["confidence"] for row in rows_of(result, "marks", subject=subject, field=field)}

    # The account's own index and mark come from the same feeds as the tickers'.
    assert confidence("ETH", "index") == {0.98}
    assert confidence("weETH", "index") == {0.97}
    assert confidence("derive:BTC-PERP", "mark") == {0.97}
    assert confidence(PUT_EXPIRY, "forward") == {0.96}
    assert confidence(PUT_EXPIRY, "rate") == {0.99}
    assert confidence("derive:ETH-20240726-3100-P", "implied_vol") == {0.5}
    assert confidence("USDC", "stable_price") == {None}


def test_doubt_costs_initial_margin_alone_and_exactly() -> None:
    """The July vol feed of ETH is below the threshold: half of 18 contracts' notional under portfolio margin."""
    sure = june_with("latest_signed_feeds", lambda r: r["vol_data"]["ETH"]["1721980800"].update(confidence="0.55"))
    before, after = native(sure), native(normalized(*june().values()))
    assert after[PM2][1] - before[PM2][1] == pytest.approx(0.5 * 18 * 3377)
    assert after[SM][1] - before[SM][1] == pytest.approx(0.5 * 2 * 3377)
    assert after[PM2][2] == pytest.approx(before[PM2][2], rel=1e-12)
    assert after[PM] == pytest.approx(before[PM], rel=1e-12)
    without = normalized(*(payload for name, payload in june().items() if name != "latest_signed_feeds"))
    assert native(without)[PM2][1] == pytest.approx(before[PM2][1], rel=1e-12)


@pytest.mark.parametrize("value", ["1.2", "-0.1", "sure", None, True])
def test_a_confidence_that_cannot_be_read_takes_its_mark_along(value: Any) -> None:
    result = june_with("latest_signed_feeds", lambda r: r["spot_data"]["BTC"].update(confidence=value))
    assert [failure.subject for failure in result.failures] == ["BTC"]
    assert not rows_of(result, "marks", subject="BTC", field="index")
    assert rows_of(result, "marks", subject="ETH", field="index")


def test_feeds_in_several_payloads_and_feeds_that_are_none() -> None:
    payloads = june()
    whole = payloads.pop("latest_signed_feeds")
    parts = [replace(whole, sha256=key, body={"result": {key: value}}) for key, value in whole.body["result"].items()]
    result = normalized(*payloads.values(), *parts)
    assert result.failures == []
    assert as_json(result.batches) == as_json(normalized(*june().values()).batches)
    wrapped = normalized(*payloads.values(), replace(whole, body={"result": whole.body}))
    assert [(failure.reason, failure.path) for failure in wrapped.failures] == [(FailureReason.MISSING_FIELD, "result")]
    broken = june_with("latest_signed_feeds", lambda r: r.update(vol_data=7, spot_data=None))
    assert [failure.reason for failure in broken.failures] == [FailureReason.MALFORMED]
    odd = june_with("latest_signed_feeds", lambda r: r["fwd_data"]["ETH"].update(soon={"confidence": "1"}))
    assert [failure.path for failure in odd.failures] == ["fwd_data.ETH.soon"]


def test_a_failed_ticker_names_its_instrument() -> None:
    result = june_with("ticker_eth_20240726_3100_p", lambda r: r.update(index_price="x"))
    assert {failure.subject for failure in result.failures if failure.account_id is None} == {"ETH-20240726-3100-P"}
    late = june_with("ticker_btc_perp", lambda r: r.pop("timestamp"))
    assert [failure.subject for failure in late.failures] == ["BTC-PERP"]


def test_the_list_of_open_orders_stands_for_the_subaccounts_own() -> None:
    def less(result: Any) -> None:
        result["orders"][0]["filled_amount"] = "1.5"

    result = june_with("pm2_open_orders", less)
    orders = {row["order_id"]: row for row in rows_of(result, "open_orders")}
    assert {number: row["remaining_quantity"] for number, row in orders.items()} == {
        "7d0c": Decimal("0.5"),
        "7d0d": Decimal(3),
    }  # the one that waits for its trigger does not rest
    figures, without = native(result), native(normalized(*(p for n, p in june().items() if n != "pm2_open_orders")))
    assert figures == without
    orphan = normalized(june()["pm2_open_orders"])
    assert [(f.reason, f.account_id) for f in orphan.failures] == [(FailureReason.MISSING_FIELD, None)]
    for change in (
        lambda r: r["orders"][0].update(amount="-2"),
        lambda r: r["orders"][0].update(filled_amount="9"),
        lambda r: r["orders"][0].update(direction="up"),
        lambda r: r.update(orders="none"),
    ):
        found = june_with("pm2_open_orders", change).failures
        assert [failure.account_id for failure in found] == [None]


# ---------------------------------------------------------------------------------------------------------------------
# Properties of generated accounts


OPTION_NAMES = ("ETH-20240726-3600-C", "ETH-20240726-3100-P", "ETH-20240927-4200-C")
HELD_NAMES = ("ETH-PERP", *OPTION_NAMES)
# A net of four risk numbers, each a float64 sum of some hundred products of 1e5.
PROPERTY_RELATIVE, PROPERTY_ABSOLUTE = 1e-9, 1e-6


def subaccounts(books: list[dict[str, Decimal]], margin_type: str) -> list[Payload]:
    """One subaccount per book of sizes by instrument, with the sample's prices."""
    template = {p["instrument_name"]: p for p in june()["pm2_subaccount"].body["result"]["positions"]}
    out = []
    for number, sizes in enumerate(books):
        positions = []
        for name, size in sizes.items():
            record = {**template[name], "amount": str(size), "net_settlements": "0", "pending_funding": "0"}
            if name.endswith("PERP"):
                record["unrealized_pnl"] = str(
                    size * (Decimal(record["mark_price"]) - Decimal(record["average_price"]))
                )
            positions.append(record)
        body = {**june()["pm2_subaccount"].body["result"], "subaccount_id": number, "margin_type": margin_type}
        body |= {"positions": positions, "open_orders": [], "collaterals": body["collaterals"][:1]}
        payload = june()["pm2_subaccount"]
        out.append(replace(payload, name=str(number), sha256=str(number), body={"result": body}))
    return out


def requirements(books: list[dict[str, Decimal]], margin_type: str) -> list[tuple[float, float]]:
    market = [p for n, p in june().items() if n.startswith("ticker") or n == "latest_signed_feeds"]
    figures = native(normalized(*subaccounts(books, margin_type), *market))
    return [figures[f"derive:june:{number}"][1:] for number in range(len(books))]


sizes = st.dictionaries(
    st.sampled_from(HELD_NAMES),
    st.integers(-2000, 2000).filter(bool).map(lambda n: Decimal(n) / 100),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("margin_type", ["PM2", "SM"])
@settings(max_examples=2)
@given(books=st.lists(sizes, min_size=24, max_size=24))
def test_initial_covers_maintenance_and_both_scale_with_size(margin_type: str, books: list[dict[str, Decimal]]) -> None:
    """More of the same never needs less: everything is proportional, for all books at once in one program.

    More of one instrument alone may need less, where it hedges the others.
    """
    doubled = [{name: 2 * size for name, size in book.items()} for book in books]
    reordered = [dict(reversed(book.items())) for book in books]
    found = requirements([*books, *doubled, *reordered], margin_type)
    ones, twos, others = found[:24], found[24:48], found[48:]
    for one, two, other in zip(ones, twos, others, strict=True):
        assert one[0] >= one[1] - PROPERTY_ABSOLUTE
        assert one[1] >= -PROPERTY_ABSOLUTE
        assert two == pytest.approx((2 * one[0], 2 * one[1]), rel=PROPERTY_RELATIVE, abs=PROPERTY_ABSOLUTE)
        assert other == pytest.approx(one, rel=PROPERTY_RELATIVE, abs=PROPERTY_ABSOLUTE)
