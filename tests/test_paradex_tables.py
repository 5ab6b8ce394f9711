"""Paradex: the sample becomes canonical tables whose equity and requirements are the venue's own."""

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from adapters.adapter import Adapter, Normalized, find_adapter
from adapters.paradex import ADAPTER, FACTS
from adapters.paradex import portfolio_margin as pm
from aggregator.rule_forms import (
    Contingency,
    ContractMargin,
    Fixed,
    PriceVolGrid,
    TieredNotional,
    Verdict,
    WeightedValue,
)
from tests.desk_paradex import AS_OF, BTC_PERP, DESK, ETH_PERP, GRID, SOL, mark, normalized, sample
from tests.normalized_rows import check_canonical, components_of, only, rows_of

PUT, CALL = "paradex:BTC-USD-26JUL24-56000-P", "paradex:BTC-USD-27SEP24-70000-C"

# Marks are float64: an equity of some 1e5 agrees to about 1e-10.
EQUITY_TOLERANCE = 1e-8


def test_the_sample_is_read_whole() -> None:
    assert isinstance(ADAPTER, Adapter)
    assert find_adapter("paradex") is ADAPTER
    assert FACTS.title
    result = normalized(*sample().values())
    assert result.failures == []
    check_canonical(result)


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
    forms = components_of(result, only(result, "accounts", account_id=DESK)["rule_set"])
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
    [fixed] = [form for _, form in components_of(result, "paradex:cross:desk") if isinstance(form, Fixed)]
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
    forms = [form for _, form in components_of(result, "paradex:portfolio:grid")]
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
