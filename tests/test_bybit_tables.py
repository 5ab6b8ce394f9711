"""Bybit: the desk becomes the tables of `expected/bybit/desk.json`, and what the rows say is what the venue says."""

import json
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from adapters.adapter import Adapter, Normalized
from adapters.bybit import ADAPTER, FACTS
from aggregator.snapshot import take_snapshot
from tests.desk_bybit import (
    BTC_SHORT,
    EAST,
    ETH_LONG,
    HARBOR,
    HERE,
    NORTH,
    NOW,
    SOUTH,
    VENUE_ROUNDING,
    WEST,
    body_of,
    desk,
    edited,
    fetched,
    normalized,
    price_of,
    wallet_of,
)
from tests.native_figures import native_figures
from tests.normalized_rows import only, rows_of, tables_as_json

# Native figures today are the venue's to 1e-9, the contract of the engine.
NATIVE_RTOL = 1e-9


def test_the_desk_becomes_the_expected_tables() -> None:
    expected = json.loads((HERE / "expected" / "bybit" / "desk.json").read_text(encoding="utf-8"))
    result = normalized(desk())
    found = tables_as_json(result)
    assert set(found) == set(expected)
    for name, rows in expected.items():
        assert found[name] == rows, name
    assert result.failures == []


def test_the_order_of_the_payloads_changes_no_row() -> None:
    def sets(result: Normalized) -> dict[str, set[str]]:
        return {name: {repr(row) for row in table.to_pylist()} for name, table in result.batches.items()}

    expected = sets(normalized(desk()))
    for seed in (1, 2):
        shuffled = desk()
        random.Random(seed).shuffle(shuffled)
        assert sets(normalized(shuffled)) == expected


def test_a_snapshot_takes_the_desk_without_a_failure() -> None:
    result = normalized(desk())
    snapshot = take_snapshot([result.batches], result.failures)
    assert snapshot.failures == ()
    assert snapshot.incomplete == frozenset()
    assert {name: len(rows) for name, rows in snapshot.tables.items()} == {
        name: table.num_rows for name, table in result.batches.items()
    }


def test_the_adapter_keeps_the_protocol_and_says_what_it_covers() -> None:
    assert isinstance(ADAPTER, Adapter)
    assert len(set(ADAPTER.requests)) == len(ADAPTER.requests)
    assert FACTS.gaps


@pytest.mark.parametrize("account", [NORTH, SOUTH, WEST, HARBOR, ETH_LONG, BTC_SHORT])
def test_the_engine_computes_what_the_venue_reports(account: str) -> None:
    result = normalized(desk())
    figures = native_figures(result, as_of=NOW)[account]
    row = only(result, "accounts", account_id=account)
    for name, got in zip(("equity", "initial_margin", "maintenance_margin"), figures, strict=True):
        assert got == pytest.approx(float(row[f"reported_{name}"]), rel=NATIVE_RTOL, abs=0.0), name


RATIOS = {entry["currency"]: entry["collateralRatioList"] for entry in body_of("collateral_tiers.json")}


def counted(coin: str, quantity: Fraction) -> Fraction:
    """Coins that count, slice by slice."""
    if quantity < 0:
        return quantity
    total = Fraction(0)
    for entry in RATIOS[coin]:
        low, high = Fraction(entry["minQty"]), Fraction(entry["maxQty"]) if entry["maxQty"] else quantity
        total += max(Fraction(0), min(quantity, high) - low) * Fraction(entry["collateralRatio"])
    return total


@pytest.mark.parametrize("owner", ["north", "south", "harbor"])
def test_the_margin_balance_is_collateral_by_tiers_and_profit_in_full(owner: str) -> None:
    total = Fraction(0)
    for coin in wallet_of(owner)["coin"]:
        net = Fraction(coin["walletBalance"]) - Fraction(coin["spotBorrow"])
        counts = counted(coin["coin"], net) if coin["collateralSwitch"] or net < 0 else Fraction(0)
        total += (counts + Fraction(coin["unrealisedPnl"])) * price_of(coin)
    assert abs(total - Fraction(wallet_of(owner)["totalMarginBalance"])) < VENUE_ROUNDING


@pytest.mark.parametrize(
    ("owner", "category"),
    [("north", "linear"), ("north", "inverse"), ("south", "linear"), ("south", "inverse"), ("east", "inverse")],
)
def test_each_position_is_margined_by_the_tier_rows_of_its_account(owner: str, category: str) -> None:
    result = normalized(desk())
    for record in body_of(f"positions_{owner}_{category}.json"):
        if record["size"] == "0":
            continue
        instrument = f"bybit:{record['symbol']}"
        mode = {0: "net", 1: "long", 2: "short"}[record["positionIdx"]]
        (held,) = [
            row
            for row in rows_of(result, "positions", instrument_id=instrument, side_mode=mode)
            if row["account_id"].startswith(f"bybit:{owner}:")
        ]
        size, mark = Fraction(record["size"]), Fraction(record["markPrice"])
        value = size / mark if category == "inverse" else size * mark
        rule_set = only(result, "accounts", account_id=held["account_id"])["rule_set"]
        maintenance = Fraction(0)
        for tier in rows_of(result, "margin_tiers", rule_set=rule_set, market=instrument):
            cap = value if tier["notional_cap"] is None else min(value, Fraction(tier["notional_cap"]))
            maintenance += Fraction(tier["maintenance_rate"]) * max(cap - Fraction(tier["notional_floor"]), Fraction(0))
        assert abs(maintenance - Fraction(record["positionMM"])) < Fraction(1, 10**8)
        initial = value * Fraction(held["initial_rate_override"])
        assert abs(initial - Fraction(record["positionIM"])) < Fraction(1, 10**8)
        assert held["initial_rate_override"] > 1 / held["leverage"]
        profit = Fraction(held["quantity"]) * (
            1 / Fraction(held["entry_price"]) - 1 / mark
            if category == "inverse"
            else mark - Fraction(held["entry_price"])
        )
        assert abs(profit - Fraction(record["unrealisedPnl"])) < Fraction(1, 10**8)


def test_dollar_prices_follow_the_venues_chain() -> None:
    marks = {
        row["subject"]: row["value"] for row in rows_of(normalized(desk()), "marks", account_id=None, field="index")
    }
    rate = 60970.0 / 60994.4
    assert marks["USDT"] == pytest.approx(rate, rel=1e-14)
    assert marks["BTC"] == pytest.approx(60970.0, rel=1e-14)
    assert marks["ETH"] == pytest.approx(3378.9 * rate, rel=1e-14)
    assert marks["USDC"] == 1.0  # a spot ticker states it
    alone = normalized([fetched("tickers_linear.json")])
    assert {row["subject"] for row in rows_of(alone, "marks", field="index")} == {
        f"bybit:{symbol}" for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT", "ETHPERP", "BTC-27SEP24")
    }


def test_a_wallets_own_prices_go_before_the_markets() -> None:
    result = normalized(desk())
    for coin in wallet_of("north")["coin"]:
        mark = only(result, "marks", account_id=NORTH, subject=coin["coin"], field="index")
        assert mark["value"] == pytest.approx(float(price_of(coin)), rel=1e-15)
    dust = edited(
        desk("harbor"), "wallet_harbor.json", lambda b: b["result"]["list"][0]["coin"][1].update(usdValue="0.5")
    )
    assert not rows_of(normalized(dust), "marks", account_id=HARBOR, subject="ETH")


def test_isolated_positions_take_their_margin_out_of_the_wallet() -> None:
    result = normalized(desk("east"))
    for coin, home, record in (
        ("USDT", ETH_LONG, body_of("positions_east_linear.json")[0]),
        ("BTC", BTC_SHORT, body_of("positions_east_inverse.json")[0]),
    ):
        (held,) = [c for c in wallet_of("east")["coin"] if c["coin"] == coin]
        margin = only(result, "balances", account_id=home, asset_id=coin)["quantity"]
        rest = only(result, "balances", account_id=EAST, asset_id=coin)["quantity"]
        assert (margin, margin + rest) == (Decimal(record["positionBalance"]), Decimal(held["walletBalance"]))
        account = only(result, "accounts", account_id=home)
        assert (account["node"], account["parent_account_id"], account["settlement_asset"]) == (home, EAST, coin)
        price = only(result, "positions", account_id=home)["reported_liquidation_price"]
        assert price == Decimal(record["liqPrice"])
    assert only(result, "accounts", account_id=EAST)["reported_equity"] is None


def test_both_sides_of_a_hedge_are_positions_of_their_own() -> None:
    held = rows_of(normalized(desk("south")), "positions", instrument_id="bybit:BTCUSDT")
    assert {(row["side_mode"], row["quantity"]) for row in held} == {
        ("long", Decimal("1.2")),
        ("short", Decimal("-0.8")),
    }


def test_a_usdc_contract_earns_from_its_session_price() -> None:
    held = only(normalized(desk("south")), "positions", instrument_id="bybit:ETHPERP")
    assert held["entry_price"] == Decimal("3381.44")


def test_coins_that_are_no_collateral_do_not_count_and_debts_do() -> None:
    result = normalized(desk())
    assert only(result, "balances", account_id=SOUTH, asset_id="SOL")["collateral_enabled"] is False
    owed = only(result, "balances", account_id=NORTH, asset_id="ETH")
    assert (owed["side"], owed["quantity"]) == ("liability", 5)


def test_a_spot_loan_shows_both_sides_where_its_coin_counts_in_full() -> None:
    result = normalized(desk("harbor"))
    assert {row["side"]: row["quantity"] for row in rows_of(result, "balances", asset_id="USDT")} == {
        "asset": 1200,
        "liability": 200,
    }

    def borrow_ether(body: Any) -> None:
        ether = body["result"]["list"][0]["coin"][1]
        ether.update(walletBalance="1.75", spotBorrow="1", borrowAmount="1")

    # 1.75 less 1 at 97 %: the venue weighs what is left, not both sides
    row = only(normalized(edited(desk("harbor"), "wallet_harbor.json", borrow_ether)), "balances", asset_id="ETH")
    assert (row["side"], row["quantity"]) == ("asset", Decimal("0.75"))
