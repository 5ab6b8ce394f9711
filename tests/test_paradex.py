"""Paradex: payloads to canonical tables, every way to be wrong, and the mechanics against the venue's worked figures.

The payloads in `payloads/paradex` are written for this suite in the venue's format. Recorded payloads are read where
the folder of recorded material is at hand.
"""

import copy
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.asset_book import Asset, AssetBook, read_asset_book
from adapters.paradex import ADAPTER, FACTS, mechanics, request_of
from adapters.paradex import portfolio_margin as pm
from adapters.paradex.accounts import portfolio_configuration
from adapters.paradex.market_payloads import expiry_of_symbol
from adapters.paradex.mechanics import OptionFractions, OptionMarket, Order, PerpMarket
from adapters.paradex.rules import portfolio_parameters
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.pricing import black76_price
from aggregator.rule_forms import (
    Contingency,
    ContractMargin,
    Fixed,
    PriceVolGrid,
    TieredNotional,
    Verdict,
    WeightedValue,
    parse_parameters,
)
from aggregator.schema import CANONICAL, KEYS
from aggregator.snapshot import take_snapshot

from .sample_paradex import PAYLOADS as SAMPLE

TESTS = Path(__file__).resolve().parent
PAYLOADS = TESTS / "payloads" / "paradex"
PARAMETERS = tomllib.loads((TESTS.parent / "configs" / "venues" / "paradex.toml").read_text(encoding="utf-8"))
ASSETS = read_asset_book(TESTS.parent / "configs" / "assets.toml")

DESK, SOL, GRID = "paradex:desk", "paradex:desk:isolated:SOL-USD-PERP", "paradex:grid"
SUBACCOUNT = "0x0b0c22"
BTC_PERP, ETH_PERP = "paradex:BTC-USD-PERP", "paradex:ETH-USD-PERP"
PUT, CALL = "paradex:BTC-USD-26JUL24-56000-P", "paradex:BTC-USD-27SEP24-70000-C"
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)

# Marks are float64: an equity of some 1e5 agrees to about 1e-10.
EQUITY_TOLERANCE = 1e-8


def fetched(file: str, request: str = "", account: str = "", *, root: Path = PAYLOADS) -> Payload:
    payload = RecordedTransport(root).fetch("paradex", PayloadRequest(request, file, account))
    assert isinstance(payload, Payload), payload
    return payload


def sample() -> dict[str, Payload]:
    """The whole sample by file name without suffix."""
    return {file.removesuffix(".json"): fetched(file, request, owner) for request, file, owner in SAMPLE}


def normalized(*payloads: Payload, parameters: Any = PARAMETERS, assets: AssetBook = ASSETS) -> Normalized:
    return ADAPTER.normalize(payloads, Context(assets, parameters))


def with_change(file: str, change: Callable[[Any], Any], *, without: tuple[str, ...] = ()) -> Normalized:
    """The sample, one body changed in place by `change`, some payloads left out."""
    payloads = {name: payload for name, payload in sample().items() if name not in without}
    body = copy.deepcopy(payloads[file].body)
    change(body)
    payloads[file] = replace(payloads[file], body=body)
    return normalized(*payloads.values())


def rows_of(result: Normalized, table: str, **where: Any) -> list[dict[str, Any]]:
    return [r for r in result.batches[table].to_pylist() if all(r[key] == value for key, value in where.items())]


def only(result: Normalized, table: str, **where: Any) -> dict[str, Any]:
    found = rows_of(result, table, **where)
    assert len(found) == 1, (table, where, found)
    return found[0]


def mark(result: Normalized, subject: str, field: str, account: str | None = None) -> Any:
    return only(result, "marks", account_id=account, subject=subject, field=field)["value"]


def incomplete(result: Normalized) -> set[str | None]:
    return {failure.account_id for failure in result.failures}


def forms_of(result: Normalized, rule_set: str) -> list[tuple[str, Any]]:
    rows = sorted(rows_of(result, "rule_sets", rule_set=rule_set), key=lambda row: row["component_no"])
    return [(row["side"], parse_parameters(row["form"], row["parameters"])) for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# The sample


def test_the_sample_is_read_whole() -> None:
    assert isinstance(ADAPTER, Adapter)
    assert find_adapter("paradex") is ADAPTER
    assert FACTS.title
    result = normalized(*sample().values())
    assert result.failures == []
    assert set(result.batches) == set(CANONICAL) - {"failures"}
    for name, table in result.batches.items():
        assert table.schema.equals(CANONICAL[name], check_metadata=True)
        keys = [tuple(row[key] for key in KEYS[name]) for row in table.to_pylist()]
        assert len(keys) == len(set(keys)), name


def test_accounts_modes_and_nodes() -> None:
    result = normalized(*sample().values())
    accounts = {row["account_id"]: row for row in rows_of(result, "accounts")}
    assert accounts.keys() == {DESK, SOL, GRID}
    assert {a: r["margin_mode"] for a, r in accounts.items()} == {DESK: "cross", SOL: "isolated", GRID: "portfolio"}
    assert {r["node"] for r in accounts.values()} == set(accounts)
    assert accounts[SOL]["parent_account_id"] == DESK
    assert accounts[DESK]["parent_account_id"] is None
    assert {r["settlement_asset"] for r in accounts.values()} == {"USD"}
    assert {r["received_at"] for r in accounts.values()} == {AS_OF}
    assert accounts[DESK]["reported_equity"] == Decimal("49116.7804225")
    assert accounts[SOL]["reported_maintenance_margin"] == Decimal("425.799")


def equity_of(result: Normalized, account: str) -> float:
    """USDC at par, tokens at the index, perpetuals by entry, options at the mark less their cost."""
    total = 0.0
    for balance in rows_of(result, "balances", account_id=account):
        price = 1.0 if balance["asset_id"] == "USDC" else mark(result, balance["asset_id"], "index")
        total += float(balance["quantity"]) * price * (1 if balance["side"] == "asset" else -1)
    for held in rows_of(result, "positions", account_id=account):
        kind = only(result, "instruments", instrument_id=held["instrument_id"])["kind"]
        price = mark(result, held["instrument_id"], "mark", account)
        entry = 0.0 if kind == "option" else float(held["entry_price"])
        total += float(held["quantity"]) * (price - entry) + float(held["unsettled_funding"])
        total += float(held["realized_pnl"] or 0)
    return total


@pytest.mark.parametrize("account", [DESK, SOL, GRID])
def test_equity_is_the_venues_own(account: str) -> None:
    result = normalized(*sample().values())
    reported = float(only(result, "accounts", account_id=account)["reported_equity"])
    assert equity_of(result, account) == pytest.approx(reported, abs=EQUITY_TOLERANCE)


def test_the_mark_of_a_position_is_the_summarys() -> None:
    result = normalized(*sample().values())
    for held in rows_of(result, "positions"):
        own = mark(result, held["instrument_id"], "mark", held["account_id"])
        assert own == pytest.approx(mark(result, held["instrument_id"], "mark"), rel=1e-12)


def test_positions_and_orders_are_exact() -> None:
    result = normalized(*sample().values())
    perp = only(result, "positions", account_id=DESK, instrument_id=BTC_PERP)
    assert (perp["quantity"], perp["entry_price"]) == (Decimal("1.25"), Decimal("59870.5"))
    assert (perp["unsettled_funding"], perp["realized_pnl"]) == (Decimal("-3.21"), None)
    assert perp["reported_liquidation_price"] == Decimal("33938.33197676")
    assert perp["initial_rate_override"] is None  # the chosen leverage is the market's own
    option = only(result, "positions", account_id=DESK, instrument_id=PUT)
    assert (option["quantity"], option["realized_pnl"]) == (Decimal(-2), Decimal("2621"))
    eth = only(result, "positions", account_id=DESK, instrument_id=ETH_PERP)
    assert (eth["leverage"], eth["initial_rate_override"]) == (Decimal(10), Decimal("0.1003"))
    isolated = only(result, "positions", account_id=SOL)
    assert (isolated["leverage"], isolated["quantity"]) == (Decimal(10), Decimal(-120))
    assert len(rows_of(result, "open_orders", account_id=DESK)) == 5  # not the one that waits for its trigger
    order = only(result, "open_orders", account_id=DESK, side="buy", instrument_id=BTC_PERP)
    assert (order["remaining_quantity"], order["limit_price"]) == (Decimal("0.5"), Decimal(61200))
    assert not order["reduce_only"]


def test_instruments_and_market_marks() -> None:
    result = normalized(*sample().values())
    option = only(result, "instruments", instrument_id=PUT)
    assert (option["kind"], option["underlying"], option["option_type"]) == ("option", "BTC", "put")
    assert (option["strike"], option["expiry"]) == (Decimal(56000), datetime(2024, 7, 26, 8, tzinfo=UTC))
    assert {row["settlement_asset"] for row in rows_of(result, "instruments")} == {"USDC"}
    assert not any("PUMPKIN" in row["symbol"] for row in rows_of(result, "instruments"))  # not in the asset book
    assert mark(result, "BTC", "index") == 60970.0
    assert mark(result, BTC_PERP, "mark") == 60985.4
    assert mark(result, BTC_PERP, "funding_rate") == 0.00008
    assert mark(result, PUT, "implied_vol") == 0.56
    assert mark(result, PUT, "delta") < 0
    assert mark(result, BTC_PERP, "depth_bid") == pytest.approx(60985.3 * 2.4)
    expiry = "BTC@2024-09-27T08:00:00Z"
    assert mark(result, expiry, "rate") == 0.04
    years = (datetime(2024, 9, 27, 8, tzinfo=UTC) - AS_OF).total_seconds() / (365 * 86400)
    assert mark(result, expiry, "forward") == pytest.approx(60970 * math.exp(0.04 * years), rel=1e-8)
    states = {(row["market"], row["field"]): row["value"] for row in rows_of(result, "market_state")}
    assert states["paradex", "liquidation_fee"] == 0.7
    assert states[BTC_PERP, "open_interest"] == 1520.777


def test_rules_of_a_cross_account() -> None:
    result = normalized(*sample().values())
    forms = forms_of(result, only(result, "accounts", account_id=DESK)["rule_set"])
    assert forms[0] == ("equity", WeightedValue(options="mark"))
    assert forms[1] == ("requirement", TieredNotional(initial="tier_rate"))
    [margin] = [form for _, form in forms if isinstance(form, ContractMargin)]
    assert margin.short_put_initial is not None
    assert margin.short_put_maintenance is not None
    assert margin.long_call_maintenance is not None
    assert margin.short_put_initial.cap_rate == Decimal("0.5")
    assert margin.short_put_maintenance.floor_rate == Decimal("0.05")
    assert (margin.long_call_maintenance.mark_rate, margin.long_call_maintenance.cap_rate) == (
        Decimal("0.5"),
        Decimal("0.1"),
    )
    assert margin.long_call_maintenance.fee_rate == Decimal("0.0002")
    assert margin.underlyings == ("BTC",)
    assert forms[-1][1] == Verdict(liquidates_when="below", health="requirement_over_equity")
    tiers = {row["market"]: row for row in rows_of(result, "margin_tiers", rule_set="paradex:cross:desk")}
    assert tiers.keys() == {BTC_PERP, ETH_PERP}
    assert tiers[BTC_PERP]["initial_rate"] == Decimal("0.0203")
    assert tiers[BTC_PERP]["maintenance_rate"] == Decimal("0.0103")
    weights = {row["asset_id"]: row for row in rows_of(result, "collateral_tiers", rule_set="paradex:cross:desk")}
    assert weights["ETH"]["asset_weight_maintenance"] == 0
    assert weights["USDC"]["asset_weight_maintenance"] == 1


def test_orders_enter_the_initial_requirement_alone() -> None:
    """Worked by hand from the payload: open sizes, fees and aggressive limits by market."""
    result = normalized(*sample().values())
    [fixed] = [form for _, form in forms_of(result, "paradex:cross:desk") if isinstance(form, Fixed)]
    # BTC: buys leave 1.75, sells 0.75, so 0.5 more than the position; both limits are aggressive.
    btc = Decimal("0.5") * Decimal("60985.4") * Decimal("0.0203")
    btc += Decimal("0.5") * (61200 - Decimal("60985.4")) + 2 * (Decimal("60985.4") - 60500)
    eth = 4 * Decimal("3376.2") * Decimal("0.1003")  # at the chosen leverage of 10
    sol = 30 * Decimal("140.25") * Decimal("0.0503")
    call = Decimal(str(mark(result, "paradex:BTC-USD-26JUL24-64000-C", "mark")))
    spot = Decimal(60970)
    option = Decimal("0.75") * max(Decimal("0.15") * spot - 3030, Decimal("0.1") * spot)
    option += Decimal("0.75") * min(Decimal("0.0002") * spot, Decimal("0.125") * call)
    option += Decimal("0.75") * max(Decimal(0), call - 1850)
    assert float(fixed.initial) == pytest.approx(float(btc + eth + sol + option), rel=1e-12)
    assert fixed.maintenance == 0
    assert fixed.basis.startswith("computed")


def test_rules_of_a_portfolio_margin_account() -> None:
    result = normalized(*sample().values())
    forms = [form for _, form in forms_of(result, "paradex:portfolio:grid")]
    btc, eth = (form for form in forms if isinstance(form, PriceVolGrid))
    assert (btc.underlyings, eth.underlyings) == (("BTC",), ("ETH",))
    assert len(btc.scenarios) == 24
    assert (btc.scenarios[16].spot, btc.scenarios[16].dampening) == (Decimal("0.34"), Decimal("0.18"))
    assert btc.scenarios[2].vol_move == Decimal("-0.22")
    assert (btc.initial_factor, btc.maintenance_factor) == (Decimal(1), Decimal("0.5"))
    assert btc.delta_floor is not None
    assert (btc.delta_floor.unhedged, btc.delta_floor.hedged) == (Decimal("0.02"), Decimal("0.01"))
    assert (btc.forward, btc.value_today, btc.settlement_scales_profit) == ("spot", "mark", True)
    assert btc.vol_shock.short_below_30_days
    charges = [form for form in forms if isinstance(form, Contingency)]
    # Both perpetuals have a fee; funding is paid by the long one alone, at a positive rate.
    assert [(c.underlyings[0], c.price, c.maintenance_rate) for c in charges] == [
        ("BTC", "perp_mark", Decimal("0.0003")),
        ("ETH", "perp_mark", Decimal("0.0003")),
        ("ETH", "spot", Decimal("0.00005")),
    ]
    assert not any(isinstance(form, TieredNotional) for form in forms)


def test_the_portfolio_requirement_is_the_venues_own() -> None:
    """The two grids by the plain-Python twin, from the payloads, are what the account reports."""
    payloads = sample()
    summaries = {row["symbol"]: row for row in payloads["markets_summary"].body["results"]}
    specs = {row["symbol"]: row for row in payloads["markets"].body["results"]}

    def leg(record: Any, size: float, price: float | None = None) -> pm.Leg:
        symbol, spec, summary = record["market"], specs[record["market"]], summaries[record["market"]]
        option = None
        if spec["asset_kind"] == "OPTION":
            days = (spec["expiry_at"] / 1000 - AS_OF.timestamp()) / 86400
            option = pm.OptionTerms(
                float(spec["strike_price"]), spec["option_type"] == "CALL", days, float(summary["mark_iv"])
            )
        fee = 0.0003 if symbol.endswith("PERP") else 0.0002
        return pm.Leg(size, float(summary["mark_price"]), float(summary["delta"]), fee, option, price)

    initial = maintenance = 0.0
    for base, record in zip(("BTC", "ETH"), payloads["margin_config"].body["results"], strict=False):
        perp, vol = summaries[f"{base}-USD-PERP"], record["vol_shock_params"]
        margin = pm.portfolio_margin(
            [
                leg(p, float(p["size"]))
                for p in payloads["grid_positions"].body["results"]
                if p["market"].startswith(base)
            ],
            [
                leg(o, float(o["size"]) * (1 if o["side"] == "BUY" else -1), float(o["price"]))
                for o in payloads["grid_orders"].body["results"]
                if o["market"].startswith(base)
            ],
            underlying=pm.Underlying(
                float(perp["underlying_price"]), float(perp["mark_price"]), float(perp["funding_rate"]), 0.04
            ),
            configuration=pm.Configuration(
                tuple(
                    pm.Scenario(float(s["spot_shock"]), float(s["vol_shock"]), float(s["weight"]))
                    for s in record["scenarios"]
                ),
                pm.VolShockParameters(float(vol["vega_power_short_dte"]), float(vol["vega_power_long_dte"]), 1.0, 0.4),
                0.01,
                0.02,
                0.5,
                8.0,
            ),
        )
        initial, maintenance = initial + margin.imr, maintenance + margin.mmr
    row = only(normalized(*payloads.values()), "accounts", account_id=GRID)
    assert float(row["reported_initial_margin"]) == pytest.approx(initial, abs=1e-8)
    assert float(row["reported_maintenance_margin"]) == pytest.approx(maintenance, abs=1e-8)


def test_the_order_of_payloads_does_not_matter() -> None:
    payloads = list(sample().values())
    first = normalized(*payloads)
    for other in (payloads[::-1], payloads[5:] + payloads[:5]):
        again = normalized(*other)
        assert {n: t.to_pylist() for n, t in again.batches.items()} == {
            n: t.to_pylist() for n, t in first.batches.items()
        }


# ---------------------------------------------------------------------------------------------------------------------
# Shapes of requests and answers


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
    result = normalized(
        *market, bare(payloads["grid_positions"], ("account",)), bare(payloads["grid_balance"], ("account",))
    )
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
    grids = [form for _, form in forms_of(result, "paradex:portfolio:grid") if isinstance(form, PriceVolGrid)]
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
    [fixed] = [form for _, form in forms_of(result, "paradex:cross:desk") if isinstance(form, Fixed)]
    [before] = [
        form for _, form in forms_of(normalized(*sample().values()), "paradex:cross:desk") if isinstance(form, Fixed)
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


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def setter(index: int, **values: Any) -> Callable[[Any], None]:
    return lambda body: body["results"][index].update(values)


def remover(index: int, key: str) -> Callable[[Any], None]:
    return lambda body: body["results"][index].pop(key)


R = FailureReason
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


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics: figures of the venue's pages


def perp(mark_price: str, imf: str, *, fee: str = "0") -> PerpMarket:
    return PerpMarket(Fraction(mark_price), Fraction(imf), Fraction(1, 2), Fraction(fee))


def test_open_sizes_of_the_documented_example() -> None:
    """Docs, cross-margin-requirement: short 1, buys of 3, sells of 2, IMF 2 %, mark 90 000."""
    orders = [Order(Fraction(3), Fraction(90000)), Order(Fraction(-2), Fraction(90000))]
    margin = mechanics.market_margin(perp("90000", "0.02"), -1, orders)
    assert list(margin[:3]) == [2, 3, 5400]
    assert margin.net_mmr == 900


def test_the_risk_check_example() -> None:
    """Docs, paradex-risk-checks: 10 at an entry of 100, mark 98, IMF 10 %, 100 of collateral."""
    assert mechanics.unrealized_pnl(10, 98, average_entry=100) == -20
    assert mechanics.account_value(100, -20) == 80
    assert mechanics.market_margin(perp("98", "0.1"), 10).imr == 98


def test_the_cost_of_a_position_is_in_usdc() -> None:
    """Docs, margin-term-reference: short 1 at 2 000 dollars with USDC at 0.80 costs -2 500 USDC."""
    assert mechanics.unrealized_pnl(-1, 2000, average_entry=2500, usdc_price=Decimal("0.8")) == 0
    assert mechanics.account_value(1000, 0, usdc_price=Decimal("0.8")) == 800


def test_the_liquidation_example() -> None:
    """Docs, liquidations: value 80, requirement 88.8; the page's table calculates with a fee of one half."""
    value, mmr = Fraction(80), Fraction("88.8")
    assert mechanics.is_liquidatable(mmr, value)
    assert not mechanics.is_liquidatable(value, value)
    found = mechanics.liquidation(value, mmr, fee=Fraction(1, 2))
    assert found is not None
    assert (found.share, found.penalty) == (Fraction(2, 5), Fraction("17.76"))
    assert (found.account_value, found.mmr) == (Fraction("62.24"), Fraction("53.28"))
    ratios = [
        round(float((1 - s) * mmr / (value - mechanics.liquidation_penalty(s, mmr, fee=Fraction(1, 2)))), 3)
        for s in (Fraction(n, 5) for n in range(1, 5))
    ]
    assert ratios == [0.999, 0.856, 0.666, 0.399]
    assert mechanics.liquidation(90, mmr) is None
    drained = mechanics.liquidation(10, mmr)
    assert drained is not None
    assert [drained.share, drained.account_value, drained.penalty] == [1, 0, 10]
    negative = mechanics.liquidation(-10, mmr)
    assert negative is not None
    assert [negative.penalty, negative.account_value] == [0, -10]


def test_the_funding_example() -> None:
    """Docs, funding-mechanism: +0.5 BTC, index up by 0.0375 within a minute."""
    assert mechanics.accrued_funding(Fraction(1, 2), Fraction("0.0375"), cached_index=0) == Fraction("-0.01875")
    assert mechanics.funding_provision(Fraction("0.0003"), Fraction(1, 2), spot=60000) == 9
    assert mechanics.funding_provision(Fraction("0.0003"), Fraction(-1, 2), spot=60000) == 0
    assert mechanics.funding_provision(Fraction("0.0003"), Fraction(1, 2), spot=60000, hours=24) == 27


def test_margin_ratio_is_the_inverse_of_health() -> None:
    assert mechanics.margin_ratio(50, 200) == Fraction(1, 4)
    assert mechanics.margin_ratio(50, 0) is None


@pytest.mark.parametrize(
    ("digits", "expected"),
    [("8MAY26", datetime(2026, 5, 8, 8, tzinfo=UTC)), ("31DEC25", datetime(2025, 12, 31, 8, tzinfo=UTC))],
)
def test_dates_in_symbols(digits: str, expected: datetime) -> None:
    assert expiry_of_symbol(digits) == expected


def test_the_reported_liquidation_prices_follow_from_the_payload() -> None:
    """Isolated: the mark at which 1850 - 120 * (p - 141.5) + 0.84 equals 120 * p * (0.05 / 2 + 0.0003)."""
    row = only(normalized(*sample().values()), "positions", account_id=SOL)
    price = row["reported_liquidation_price"]
    equity = 1850 - 120 * (price - Decimal("141.5")) + Decimal("0.84")
    assert abs(equity - 120 * price * Decimal("0.0253")) < Decimal("1e-5")


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics: properties


def fractions(low: str, high: str) -> Any:
    return st.decimals(Decimal(low), Decimal(high), allow_nan=False, places=4).map(Fraction)


LEVEL = OptionFractions(Fraction(1), Fraction(1, 5), Fraction(3, 20), Fraction(1, 10), Fraction(1, 2))
HALF = OptionFractions(Fraction(1, 2), Fraction(1, 10), Fraction(3, 40), Fraction(1, 20), Fraction(1, 4))


@st.composite
def markets(draw: Any) -> mechanics.Market:
    mark_price, fee = draw(fractions("0.01", "100000")), draw(fractions("0", "0.001"))
    if draw(st.booleans()):
        return PerpMarket(mark_price, draw(fractions("0.01", "0.5")), Fraction(1, 2), fee)
    spot, strike = draw(fractions("100", "100000")), draw(fractions("100", "100000"))
    return OptionMarket(mark_price, spot, strike, draw(st.booleans()), LEVEL, HALF, fee)


orders_strategy = st.lists(
    st.builds(Order, fractions("-20", "20"), fractions("0.01", "100000")), min_size=0, max_size=4
)


@settings(max_examples=60)
@given(market=markets(), size=fractions("-50", "50"), orders=orders_strategy)
def test_initial_covers_maintenance_and_orders_only_add(
    market: mechanics.Market, size: Fraction, orders: list[Order]
) -> None:
    alone, with_orders = mechanics.market_margin(market, size), mechanics.market_margin(market, size, orders)
    assert alone.imr >= alone.mmr >= 0
    assert with_orders.mmr == alone.mmr
    # An order that would reverse a position onto a cheaper side never takes away what the position asks for.
    assert with_orders.imr >= alone.imr


@settings(max_examples=60)
@given(market=markets(), size=fractions("-50", "50"), factor=fractions("1", "4"), orders=orders_strategy)
def test_requirements_are_homogeneous_in_size(
    market: mechanics.Market, size: Fraction, factor: Fraction, orders: list[Order]
) -> None:
    one = mechanics.market_margin(market, size, orders)
    more = mechanics.market_margin(market, size * factor, [Order(o.size * factor, o.price) for o in orders])
    assert (more.imr, more.mmr) == (one.imr * factor, one.mmr * factor)
    assert more.imr >= one.imr
    assert more.mmr >= one.mmr


@settings(max_examples=40)
@given(market=markets(), size=fractions("-9", "9"), order=st.builds(Order, fractions("-9", "9"), fractions("1", "1e5")))
def test_splitting_and_reordering_orders_changes_nothing(
    market: mechanics.Market, size: Fraction, order: Order
) -> None:
    parts = [Order(order.size / 3, order.price), Order(order.size * 2 / 3, order.price)]
    other = Order(Fraction(-1), Fraction(2))
    assert mechanics.market_margin(market, size, [order, other]) == mechanics.market_margin(
        market, size, [*parts[::-1], other]
    )


@settings(max_examples=60)
@given(
    size=fractions("-50", "50").filter(bool),
    mark_price=fractions("1", "100000"),
    value=fractions("-1000", "1000000"),
    other=fractions("0", "1000"),
)
def test_at_the_liquidation_price_value_is_requirement(
    size: Fraction, mark_price: Fraction, value: Fraction, other: Fraction
) -> None:
    market = PerpMarket(mark_price, Fraction(1, 50), Fraction(1, 2), Fraction(3, 10000))
    price = mechanics.liquidation_price(market, size, value=value, other_mmr=other)
    if price is None:
        return
    moved = mechanics.market_margin(market._replace(mark=price), size)
    assert value + size * (price - mark_price) == other + moved.mmr


@settings(max_examples=60)
@given(value=fractions("-100", "1000"), mmr=fractions("0.0001", "1000"))
def test_a_liquidation_ends_below_the_target_or_with_everything(value: Fraction, mmr: Fraction) -> None:
    found = mechanics.liquidation(value, mmr)
    assert (found is None) == (value >= mmr)
    if found is None:
        return
    assert (found.share * 5).denominator == 1
    if found.share < 1:
        assert found.mmr < mechanics.TARGET_MARGIN_RATIO * found.account_value
        previous = found.share - mechanics.SHARE_INCREMENT
        if previous:
            left = value - mechanics.liquidation_penalty(previous, mmr)
            assert left <= 0 or (1 - previous) * mmr >= mechanics.TARGET_MARGIN_RATIO * left
    else:
        assert found.account_value <= max(value, Fraction(0))


def test_roots_by_scan_see_both_sides() -> None:
    below, above = mechanics.spot_liquidation_prices(100.0, lambda s: (s - 50.0) * (s - 90.0) * (180.0 - s))
    assert below == pytest.approx(90.0, abs=1e-9)
    assert above == pytest.approx(180.0, abs=1e-9)
    assert mechanics.spot_liquidation_prices(100.0, lambda s: s) == (None, None)
    closed = mechanics.liquidation_price(perp("80000", "0.01"), 1, value=10000)
    assert closed is not None
    scanned, _ = mechanics.spot_liquidation_prices(80000.0, lambda s: 10000 + s - 80000 - 0.005 * s)
    assert scanned == pytest.approx(float(closed), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Portfolio margin: the plain-Python twin

CONFIGURATION = pm.Configuration(
    (pm.Scenario(0.16, 0.4, 1), pm.Scenario(-0.16, 0.4, 1), pm.Scenario(0.0, -0.22, 1), pm.Scenario(5.0, 0.4, 0.024)),
    pm.VolShockParameters(0.3, 0.13, 1.0, 0.4),
    0.01,
    0.02,
    0.5,
    8.0,
)
UNDERLYING = pm.Underlying(60000.0, 60030.0, 0.0001, 0.04)


def test_black_scholes_is_black_76_on_the_forward() -> None:
    for strike, years, vol, is_call in ((70000, 0.24, 0.55, True), (41000, 1.5, 0.8, False), (60000, 0.002, 0.3, True)):
        ours = pm.black_scholes(60000, strike, years=years, rate=0.04, vol=vol, is_call=is_call)
        theirs = black76_price(
            60000 * math.exp(0.04 * years),
            strike,
            years=years,
            vol=vol,
            is_call=is_call,
            discount=math.exp(-0.04 * years),
        )
        assert ours == pytest.approx(float(theirs), rel=1e-9, abs=1e-7)
    assert pm.black_scholes(100, 90, years=0, rate=0.04, vol=0.3, is_call=True) == 10
    assert pm.black_scholes(100, 90, years=1, rate=0.04, vol=0, is_call=False) == 0


def test_vol_shocks_have_a_floor_on_the_way_up_only() -> None:
    parameters = CONFIGURATION.vol
    assert pm.shocked_vol(0.05, 0.4, 16, parameters=parameters) == 0.4
    assert pm.shocked_vol(0.05, -0.22, 16, parameters=parameters) < 0.05
    assert pm.shocked_vol(0.5, 0.4, 30, parameters=parameters) == pytest.approx(0.7)  # at 30 days the scale is 1
    assert pm.shocked_vol(0.5, 0.4, 29.999, parameters=parameters) == pytest.approx(0.7, abs=1e-4)
    assert pm.shocked_vol(0.5, -1.0, 0.1, parameters=parameters) == 0
    short, floored = (pm.shocked_vol(0.5, 0.4, days, parameters=parameters) for days in (0.2, 1.0))
    assert short == floored == pytest.approx(0.5 * (1 + 0.4 * 30**0.3))


@pytest.mark.parametrize(("days", "share"), [(1.0, 1.0), (1800 / 86400, 1.0), (900 / 86400, 0.5), (0.0, 0.0), (-1, 0)])
def test_the_last_half_hour_settles(days: float, share: float) -> None:
    assert pm.live_share(pm.OptionTerms(100.0, True, days, 0.5)) == pytest.approx(share)
    assert pm.live_share(None) == 1


def option_leg(size: float, *, days: float = 40.0, price: float | None = None, strike: float = 62000.0) -> pm.Leg:
    terms = pm.OptionTerms(strike, True, days, 0.55)
    mark_price = pm.black_scholes(60000, strike, years=days / 365, rate=0.04, vol=0.55, is_call=True)
    return pm.Leg(size, mark_price, 0.48, 0.0002, terms, price)


def perp_leg(size: float, price: float | None = None) -> pm.Leg:
    return pm.Leg(size, 60030.0, 0.9997, 0.0003, None, price)


def portfolio(positions: list[pm.Leg], orders: list[pm.Leg]) -> pm.PortfolioMargin:
    return pm.portfolio_margin(positions, orders, underlying=UNDERLYING, configuration=CONFIGURATION)


def test_a_perpetual_alone_by_hand() -> None:
    margin = portfolio([perp_leg(2.0)], [])
    assert margin.worst_loss == pytest.approx(2 * 60030 * 0.16)
    assert margin.worst_scenario == 1
    assert margin.min_delta == pytest.approx(2 * 0.9997 * 0.02 * 60000)
    assert margin.funding_provision == pytest.approx(0.0001 * 2 * 60000)
    assert margin.imr == pytest.approx(2 * 60030 * 0.16 + 12 + 0.0003 * 2 * 60030)
    assert margin.mmr == pytest.approx(60030 * 0.16 + 12 + 0.0003 * 2 * 60030)


def test_an_option_order_far_from_the_market_costs_its_fee_and_delta_only() -> None:
    bid = option_leg(5.0, price=0.0001)
    margin = portfolio([], [bid])
    assert margin.worst_loss < 0.01
    assert margin.min_delta == pytest.approx(0.02 * 5 * 0.48 * 60000)
    assert margin.mmr == 0
    assert margin.fee_provision_imr == pytest.approx(5 * 0.0002 * 60000)


sizes = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))
books = st.lists(
    st.one_of(st.builds(perp_leg, sizes), st.builds(option_leg, sizes, days=st.sampled_from([0.01, 1.0, 29.0, 90.0]))),
    max_size=4,
)
order_books = st.lists(
    st.one_of(
        st.builds(perp_leg, sizes, st.floats(50000, 70000)),
        st.builds(option_leg, sizes, days=st.just(40.0), price=st.floats(10, 9000)),
    ),
    max_size=3,
)


@settings(max_examples=60)
@given(positions=books, orders=order_books)
def test_orders_never_lower_what_scenarios_and_deltas_ask(positions: list[pm.Leg], orders: list[pm.Leg]) -> None:
    alone, both = portfolio(positions, []), portfolio(positions, orders)
    assert both.worst_loss >= alone.worst_loss - 1e-9
    assert both.min_delta >= alone.min_delta - 1e-6
    assert both.mmr == alone.mmr
    # Initial covers maintenance but for funding, which orders net with the opposite sign.
    assert both.imr - both.funding_provision >= both.mmr - alone.funding_provision - 1e-6


@settings(max_examples=40)
@given(positions=books, orders=order_books, factor=st.floats(1, 5))
def test_portfolio_margin_is_homogeneous_and_blind_to_order(
    positions: list[pm.Leg], orders: list[pm.Leg], factor: float
) -> None:
    one = portfolio(positions, orders)
    scaled = [[leg._replace(size=leg.size * factor) for leg in legs] for legs in (positions, orders)]
    more = portfolio(*scaled)
    assert more.imr == pytest.approx(one.imr * factor, rel=1e-9, abs=1e-6)
    assert more.mmr == pytest.approx(one.mmr * factor, rel=1e-9, abs=1e-6)
    again = portfolio(positions[::-1], orders[::-1])
    assert again.imr == pytest.approx(one.imr, rel=1e-12, abs=1e-9)
    halves = [half for leg in positions for half in (leg._replace(size=leg.size / 2),) * 2]
    assert portfolio(halves, orders).mmr == pytest.approx(one.mmr, rel=1e-9, abs=1e-6)


def test_minimum_delta_of_the_documented_example_agrees_in_both_writings() -> None:
    """Docs, portfolio-margin: long 1, short 5 calls of 0.3 at 70 000."""
    exact = mechanics.min_delta_risk(
        [1, Fraction(-3, 2)], spot=70000, hedged=Fraction(1, 100), unhedged=Fraction(2, 100)
    )
    assert exact.min_delta_risk == 1400
    assert pm.min_delta([1.0, -1.5], [], CONFIGURATION) * 70000 == pytest.approx(1400)


# ---------------------------------------------------------------------------------------------------------------------
# The engine's forms against the mechanics

# Sums of some ten float64 products.
ENGINE_RELATIVE = 1e-9


def today(result: Normalized, as_of: datetime = AS_OF) -> dict[str, tuple[float, float, float]]:
    """(equity, initial, maintenance) of every account, packed and computed by the engine at current prices."""
    snapshot = take_snapshot([result.batches], result.failures, as_of=as_of)
    assert snapshot.failures == ()
    ids = [row["account_id"] for row in snapshot.tables["accounts"]]
    book, unclaimed = pack_book({"": snapshot}, {"all": ids}, as_of=as_of)
    assert (book.failures, unclaimed) == ((), [])
    [native] = native_today(book)
    assert native is not None
    return {
        info.account_id: (float(native.equity[i]), float(native.initial[i]), float(native.maintenance[i]))
        for i, info in enumerate(book.portfolios[0].accounts)
    }


def test_the_engine_reproduces_the_venues_figures() -> None:
    result = normalized(*sample().values())
    for account, figures in today(result).items():
        row = only(result, "accounts", account_id=account)
        names = ("reported_equity", "reported_initial_margin", "reported_maintenance_margin")
        for name, ours in zip(names, figures, strict=True):
            assert ours == pytest.approx(float(row[name]), rel=ENGINE_RELATIVE), (account, name)


class Books(NamedTuple):
    """Generated books over the sample's markets: positions and orders by owner, as (symbol, size, price)."""

    positions: dict[str, list[tuple[str, Decimal, Decimal]]]
    orders: dict[str, list[tuple[str, Decimal, Decimal]]]


def generated_books(seed: int, owners: int) -> Books:
    random = Random(seed)
    symbols = [row["symbol"] for row in sample()["markets"].body["results"] if row["base_currency"] in ("BTC", "ETH")]
    marks = {row["symbol"]: Decimal(row["mark_price"]) for row in sample()["markets_summary"].body["results"]}

    def entries(most: int) -> list[tuple[str, Decimal, Decimal]]:
        chosen = random.sample(symbols, random.randint(0, most))
        out = []
        for symbol in chosen:
            size = Decimal(random.randint(-4000, 4000)) / 1000
            if size:
                price = (marks[symbol] * Decimal(random.randint(800, 1250)) / 1000).quantize(Decimal("0.01"))
                out.append((symbol, size, max(price, Decimal("0.01"))))
        return out

    names = [f"book{number}" for number in range(owners)]
    return Books({name: entries(5) for name in names}, {name: entries(3) for name in names})


def payloads_of(books: Books, *, methodology: str) -> list[Payload]:
    out = []
    for owner, positions in books.positions.items():
        bodies = {
            "v1/positions": {
                "results": [
                    {
                        "market": m,
                        "side": "LONG" if q > 0 else "SHORT",
                        "size": str(q),
                        "average_entry_price": str(p),
                        "unrealized_funding_pnl": "0",
                    }
                    for m, q, p in positions
                ]
            },
            "v1/orders": {
                "results": [
                    {
                        "id": f"{owner}-{number}",
                        "market": m,
                        "side": "BUY" if q > 0 else "SELL",
                        "size": str(abs(q)),
                        "price": str(p),
                    }
                    for number, (m, q, p) in enumerate(books.orders[owner])
                ]
            },
            "v1/balance": {"results": [{"token": "USDC", "size": "1000"}]},
            "v1/account/margin": {"margin_methodology": methodology, "configs": []},
        }
        out += [Payload(request, f"{owner} {request}", owner, AS_OF, "", body) for request, body in bodies.items()]
    return out


def market_payloads(change: Callable[[Any, Any], None] = lambda specs, summaries: None) -> dict[str, Payload]:
    names = ("markets", "markets_summary", "margin_config")
    payloads = {name: replace(payload, body=copy.deepcopy(payload.body)) for name, payload in sample().items()}
    change(payloads["markets"].body["results"], payloads["markets_summary"].body["results"])
    return {name: payloads[name] for name in names}


def expected_cross(books: Books, owner: str, payloads: dict[str, Payload]) -> tuple[Fraction, Fraction]:
    specs = {row["symbol"]: row for row in payloads["markets"].body["results"]}
    marks = {row["symbol"]: row for row in payloads["markets_summary"].body["results"]}
    initial = maintenance = Fraction(0)
    for symbol in {entry[0] for entry in (*books.positions[owner], *books.orders[owner])}:
        spec, summary = specs[symbol], marks[symbol]
        market: mechanics.Market
        if spec["asset_kind"] == "PERP":
            rate = Fraction(spec["delta1_cross_margin_params"]["imf_base"])
            market = PerpMarket(Fraction(summary["mark_price"]), rate, Fraction(1, 2), Fraction("0.0003"))
        else:
            imf, mmf = (
                OptionFractions(**{n: Fraction(spec["option_cross_margin_params"][key][n]) for n in LEVEL._fields})
                for key in ("imf", "mmf")
            )
            market = OptionMarket(
                Fraction(summary["mark_price"]),
                Fraction(summary["underlying_price"]),
                Fraction(spec["strike_price"]),
                spec["option_type"] == "CALL",
                imf,
                mmf,
                Fraction("0.0002"),
            )
        size = sum((Fraction(q) for m, q, _ in books.positions[owner] if m == symbol), Fraction(0))
        orders = [Order(Fraction(q), Fraction(p)) for m, q, p in books.orders[owner] if m == symbol]
        margin = mechanics.market_margin(market, size, orders)
        initial, maintenance = initial + margin.imr, maintenance + margin.mmr
    return initial, maintenance


def expected_portfolio(books: Books, owner: str, payloads: dict[str, Payload]) -> tuple[float, float]:
    specs = {row["symbol"]: row for row in payloads["markets"].body["results"]}
    marks = {row["symbol"]: row for row in payloads["markets_summary"].body["results"]}
    configurations = {row["base_asset"]: row for row in payloads["margin_config"].body["results"]}

    def leg(symbol: str, size: Decimal, price: Decimal | None) -> pm.Leg:
        spec, summary, option = specs[symbol], marks[symbol], None
        if spec["asset_kind"] == "OPTION":
            days = (spec["expiry_at"] / 1000 - AS_OF.timestamp()) / 86400
            is_call = spec["option_type"] == "CALL"
            option = pm.OptionTerms(float(spec["strike_price"]), is_call, days, float(summary["mark_iv"]))
        fee = 0.0002 if option else 0.0003
        limit = None if price is None else float(price)
        return pm.Leg(float(size), float(summary["mark_price"]), float(summary["delta"]), fee, option, limit)

    initial = maintenance = 0.0
    for base in ("BTC", "ETH"):
        perp_row = marks[f"{base}-USD-PERP"]
        margin = pm.portfolio_margin(
            [leg(m, q, None) for m, q, _ in books.positions[owner] if m.startswith(base)],
            [leg(m, q, p) for m, q, p in books.orders[owner] if m.startswith(base)],
            underlying=pm.Underlying(
                float(perp_row["underlying_price"]),
                float(perp_row["mark_price"]),
                float(perp_row["funding_rate"]),
                float(perp_row["interest_rate"]),
            ),
            configuration=portfolio_configuration(
                portfolio_parameters(configurations[base], path="", source="payload")
            ),
        )
        initial, maintenance = initial + margin.imr, maintenance + margin.mmr
    return initial, maintenance


def test_the_minimum_delta_binds_in_the_engine_too() -> None:
    """Calls against a perpetual, with scenarios that hardly count: what is left is the charge on the venue's deltas."""

    def own_delta(specs: Any, summaries: Any) -> None:
        for summary in summaries:
            if summary["symbol"].endswith("-PERP"):
                summary |= {"delta": "0.9997", "greeks": {"delta": "0.9997"}}

    pair = [("BTC-USD-27SEP24-70000-C", Decimal(4), Decimal(2500)), ("BTC-USD-PERP", Decimal("-1.4"), Decimal(61000))]
    books, market = Books({"pair": pair}, {"pair": []}), market_payloads(own_delta)
    for record in market["margin_config"].body["results"][:2]:
        for scenario in record["scenarios"]:
            scenario["weight"] = Decimal(scenario["weight"]) / 1000
    _, ours, maintenance = today(normalized(*market.values(), *payloads_of(books, methodology="portfolio_margin")))[
        "paradex:pair"
    ]
    assert (ours, maintenance) == pytest.approx(expected_portfolio(books, "pair", market), rel=ENGINE_RELATIVE)


def near_expiry_and_cheap(specs: Any, summaries: Any) -> None:
    """One option expires in a quarter of an hour, one is worth less than its fee, longs pay funding on both bases."""
    soon = next(spec for spec in specs if spec["symbol"] == "BTC-USD-26JUL24-64000-C")
    soon["expiry_at"] = int(AS_OF.timestamp() * 1000) + 900_000
    for summary in summaries:
        if summary["symbol"] == soon["symbol"]:
            summary["mark_price"] = "0.75"
        if summary["symbol"] == "ETH-USD-26JUL24-3400-C":
            summary["mark_price"] = "2.5"


@pytest.mark.parametrize("change", [lambda specs, summaries: None, near_expiry_and_cheap], ids=["plain", "edges"])
@pytest.mark.parametrize("methodology", ["cross_margin", "portfolio_margin"])
def test_generated_books_are_the_same_in_engine_and_mechanics(
    methodology: str, change: Callable[[Any, Any], None]
) -> None:
    books, market = generated_books(20240630, 14), market_payloads(change)
    result = normalized(*market.values(), *payloads_of(books, methodology=methodology))
    assert result.failures == []
    figures = today(result)
    expected = expected_portfolio if methodology == "portfolio_margin" else expected_cross
    assert any(books.orders.values())
    for owner in books.positions:
        initial, maintenance = expected(books, owner, market)
        _, ours_initial, ours_maintenance = figures[f"paradex:{owner}"]
        assert ours_initial == pytest.approx(float(initial), rel=ENGINE_RELATIVE, abs=1e-7), owner
        assert ours_maintenance == pytest.approx(float(maintenance), rel=ENGINE_RELATIVE, abs=1e-7), owner


# ---------------------------------------------------------------------------------------------------------------------
# Recorded payloads


RECORDED = [
    ("markets.json", "/v1/markets", "", set()),
    ("market_specs_option.json", "/v1/markets", "", set()),
    ("tickers.json", "/v1/markets/summary", "", set()),
    ("portfolio_margin_config.json", "/v1/system/portfolio-margin-config", "", set()),
    # Neither the market of the position nor a balance is in the sample.
    ("positions.json", "/v1/positions", "trader", {R.UNKNOWN_MARKET, R.MISSING_FIELD}),
]


@pytest.mark.parametrize(("file", "request_name", "owner", "reasons"), RECORDED)
def test_recorded_payloads(
    recorded: Path, file: str, request_name: str, owner: str, reasons: set[FailureReason]
) -> None:
    payload = fetched(file, request_name, owner, root=recorded / "payloads" / "paradex")
    result = normalized(payload)
    assert {failure.reason for failure in result.failures} == reasons


def test_recorded_markets_with_their_marks(recorded: Path) -> None:
    folder = recorded / "payloads" / "paradex"
    joined_by_symbol = normalized(fetched("market_specs_option.json", "/v1/markets", root=folder))
    option = only(joined_by_symbol, "instruments", kind="option")
    assert option["expiry"] == datetime(2026, 5, 8, 8, tzinfo=UTC)  # from the symbol: the sample has no expiry_at
    assert mark(joined_by_symbol, option["instrument_id"], "implied_vol") == 0.42746687
    both = normalized(
        fetched("markets.json", "/v1/markets", root=folder), fetched("tickers.json", "/v1/markets/summary", root=folder)
    )
    assert both.failures == []
    assert mark(both, "BTC", "index") == 66806.71304318
    assert mark(both, BTC_PERP, "mark") == 67307.7225876


def test_every_recorded_file_is_read_by_some_request(recorded: Path) -> None:
    names = {path.name for path in (recorded / "payloads" / "paradex").glob("*.json")}
    assert names == {file for file, *_ in RECORDED}


def test_fixtures_are_of_one_instant() -> None:
    for path in PAYLOADS.glob("*.json"):
        envelope = json.loads(path.read_text(encoding="utf-8"))
        assert envelope["received_at"] == "2024-06-30T00:00:00Z", path.name
    assert {file for _, file, _ in SAMPLE} == {path.name for path in PAYLOADS.glob("*.json")}
