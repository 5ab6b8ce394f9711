"""Deribit: the desk becomes canonical tables, and instrument names are read in their parts."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from adapters.adapter import Adapter, find_adapter
from adapters.deribit import ADAPTER, FACTS
from adapters.deribit.parse import instrument_of
from aggregator.rule_forms import ContractMargin, Fixed, PriceVolGrid, RateOfSize, WeightedValue
from aggregator.snapshot import take_snapshot
from tests.desk_deribit import (
    EAST,
    FOLDER,
    NORTH_BTC,
    NORTH_USDC,
    QUAY,
    REQUESTS,
    SOUTH,
    WEST,
    desk,
    fetched,
    normalized,
)
from tests.normalized_rows import forms_of, only, rows_of
from tests.sample_deribit import PAYLOADS


def test_the_adapter_is_registered() -> None:
    found: Any = find_adapter("deribit")
    assert found is ADAPTER
    assert isinstance(found, Adapter)
    assert FACTS.title == "Deribit"
    assert {file for _, file, _ in PAYLOADS} == {path.name for path in FOLDER.glob("*.json")}


def test_the_desk_is_read_whole() -> None:
    result = normalized(desk())
    assert result.failures == []
    snapshot = take_snapshot([result.batches], result.failures)
    assert (snapshot.failures, snapshot.incomplete) == ((), frozenset())
    accounts = {r["account_id"]: r for r in rows_of(result, "accounts")}
    assert set(accounts) == {NORTH_BTC, NORTH_USDC, SOUTH, EAST, WEST, QUAY}
    assert {name: (r["settlement_asset"], r["margin_mode"]) for name, r in accounts.items()} == {
        NORTH_BTC: ("BTC", "cross"),
        NORTH_USDC: ("USDC", "cross"),
        SOUTH: ("USD", "cross"),
        EAST: ("BTC", "portfolio"),
        WEST: ("USD", "portfolio"),
        QUAY: ("USDT", "cross"),
    }
    assert all(r["node"] == name for name, r in accounts.items())
    assert accounts[EAST]["event_at"].isoformat() == "2024-06-29T23:59:59.600000+00:00"
    assert accounts[QUAY]["event_at"] is None  # a message states no time


def test_exact_rows_of_north() -> None:
    result = normalized(desk())
    # 4.21875 of balance less 0.00041 realized in the session
    assert only(result, "balances", account_id=NORTH_BTC)["quantity"] == Decimal("4.21834")
    held = {r["instrument_id"]: r for r in rows_of(result, "positions", account_id=NORTH_BTC)}
    assert set(held) == {
        "deribit:BTC-PERPETUAL",
        "deribit:BTC-27SEP24",
        "deribit:BTC-27SEP24-70000-C",
        "deribit:BTC-27SEP24-55000-P",
        "deribit:BTC-26JUL24-65000-C",
    }
    assert held["deribit:BTC-PERPETUAL"]["quantity"] == 250_000
    assert held["deribit:BTC-27SEP24-55000-P"]["quantity"] == -2
    option = only(result, "instruments", instrument_id="deribit:BTC-27SEP24-55000-P")
    assert (option["kind"], option["payoff"], option["strike"], option["option_type"]) == (
        "option",
        "inverse",
        55_000,
        "put",
    )
    assert option["expiry"].isoformat() == "2024-09-27T08:00:00+00:00"
    linear = only(result, "instruments", instrument_id="deribit:SOL_USDC-PERPETUAL")
    assert (linear["payoff"], linear["settlement_asset"], linear["underlying"]) == ("linear", "USDC", "SOL")
    orders = rows_of(result, "open_orders", account_id=NORTH_BTC)
    assert {(o["side"], o["remaining_quantity"], o["reduce_only"]) for o in orders} == {
        ("buy", Decimal(37_500), False),
        ("buy", Decimal(1), True),
    }
    tier = only(result, "margin_tiers", rule_set="deribit:sm:north:USDC", market="deribit:SOL_USDC-PERPETUAL")
    # charged at the index, valued at the mark
    assert abs(tier["maintenance_rate"] - Decimal("0.02") * Decimal("140.21") / Decimal("140.25")) < Decimal("1e-17")
    marks = {(r["subject"], r["field"]): r["value"] for r in rows_of(result, "marks", account_id=None)}
    assert marks["BTC", "index"] == 60970.12
    assert marks["USDT", "index"] == 0.9992
    assert marks["deribit:BTC-27SEP24-70000-C", "implied_vol"] == 0.524
    assert marks["BTC@2024-09-27T08:00:00Z", "forward"] == 62310.25
    assert marks["deribit:BTC-PERPETUAL", "funding_rate"] == 0.00003125
    assert marks["deribit:BTC-PERPETUAL", "depth_bid"] == 84210.0


def test_profit_outside_of_the_balance_is_the_session_s() -> None:
    result = normalized(desk())
    for account in (NORTH_BTC, NORTH_USDC, SOUTH, EAST, WEST):
        for row in rows_of(result, "positions", account_id=account):
            instrument = only(result, "instruments", instrument_id=row["instrument_id"])
            if instrument["kind"] == "option":
                assert row["realized_pnl"] is None
                continue
            mark = Fraction(
                str(only(result, "marks", account_id=account, subject=row["instrument_id"], field="mark")["value"])
            )
            entry, size = Fraction(row["entry_price"]), Fraction(row["quantity"])
            inverse = instrument["payoff"] == "inverse"
            profit = size * (1 / entry - 1 / mark) if inverse else size * (mark - entry)
            floating = profit + Fraction(row["realized_pnl"])
            stated = floating_of(account, row["instrument_id"])
            assert abs(floating - stated) <= Fraction(1, 10**18)


def floating_of(account: str, instrument: str) -> Fraction:
    owner = account.split(":")[1]
    for file, (request, of) in REQUESTS.items():
        if of == owner and request.startswith("private/get_positions"):
            for record in fetched(file).body["result"]:
                if f"deribit:{record['instrument_name']}" == instrument:
                    return Fraction(record["floating_profit_loss"])
    raise AssertionError(instrument)


def test_rule_sets_of_the_four_models() -> None:
    result = normalized(desk())
    assert forms_of(result, NORTH_BTC, WeightedValue)[0].options == "excluded"
    assert forms_of(result, EAST, WeightedValue)[0].options == "mark"
    assert forms_of(result, SOUTH, WeightedValue)[0].weights == "collateral_tiers"
    assert {form.underlyings for form in forms_of(result, SOUTH, ContractMargin)} == {("BTC",), ("ETH",)}
    assert [form.law for form in forms_of(result, NORTH_USDC, RateOfSize)] == ["linear"]
    grid = forms_of(result, EAST, PriceVolGrid)[0]
    assert (len(grid.scenarios), grid.profit_in, grid.round_digits) == (35, "coin", 9)
    assert grid.scenarios[0].spot == Decimal("0.84")
    # -66 %: 1 * 0.16/0.66 * 0.34/0.84, dampened by (0.66/0.16 - 1) * 100 000 / 0.84
    tail = grid.scenarios[27]
    assert float(tail.dampening) == pytest.approx(0.16 / 0.66 * 0.34 / 0.84, rel=1e-15)
    assert float(tail.dampener) == pytest.approx(3.125 * 100_000 / 0.84, rel=1e-15)
    assert {form.underlyings: form.grid_collateral for form in forms_of(result, WEST, PriceVolGrid)} == {
        ("BTC",): ("BTC",),
        ("ETH",): ("ETH",),
    }
    assert [form.initial for form in forms_of(result, EAST, Fixed)] == [Decimal("0.078212")]
    assert [form.basis.split()[0] for form in forms_of(result, NORTH_BTC, Fixed)] == ["reported"]
    weights = {
        r["asset_id"]: (r["asset_weight_initial"], r["asset_weight_maintenance"])
        for r in rows_of(result, "collateral_tiers", rule_set="deribit:sm:south:cross")
    }
    assert weights["USDT"] == (Decimal("0.98"), 1)
    assert weights["BTC"] == (1, 1)


@pytest.mark.parametrize(
    ("name", "base", "settlement", "kind", "strike"),
    [
        ("BTC-PERPETUAL", "BTC", "BTC", "perp", None),
        ("ETH-5JUL24", "ETH", "ETH", "future", None),
        ("XRP_USDC-27DEC24-0d55-P", "XRP", "USDC", "option", Decimal("0.55")),
        ("BTC_USDT-PERPETUAL", "BTC", "USDT", "perp", None),
        ("ETH_BTC", "ETH", "BTC", "spot", None),
    ],
)
def test_instrument_names(name: str, base: str, settlement: str, kind: str, strike: Decimal | None) -> None:
    instrument = instrument_of(name)
    assert (instrument.base, instrument.settlement, instrument.kind, instrument.strike) == (
        base,
        settlement,
        kind,
        strike,
    )


@pytest.mark.parametrize(
    "name", ["BTC", "BTC-31FEB25", "BTC-27XYZ24", "BTC-PERPETUAL-1-C", "BTC-FS-28JUN24_PERP", "btc-perpetual", ""]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"no instrument name|no expiry date"):
        instrument_of(name)
