"""OKX: the desk becomes canonical tables, and instrument ids are read in their parts."""

from decimal import Decimal
from typing import Any

import pytest

from adapters.adapter import Adapter, find_adapter
from adapters.okx import ADAPTER, FACTS
from adapters.okx.parse import name_of
from aggregator.rule_forms import DebtCharge, Fixed, PriceVolGrid, TieredNotional, WeightedValue
from aggregator.snapshot import take_snapshot
from tests.desk_okx import (
    ACCOUNTS,
    EAST,
    FOLDER,
    ISOLATED_ETH,
    ISOLATED_SOL,
    NORTH,
    QUAY,
    SOUTH_BTC,
    SOUTH_USDT,
    WEST,
    desk,
    desk_with,
    normalized,
    reported_unit,
)
from tests.normalized_rows import forms_of, only, rows_of
from tests.payload_files import changed
from tests.sample_okx import PAYLOADS


def test_the_adapter_is_registered() -> None:
    found: Any = find_adapter("okx")
    assert found is ADAPTER
    assert isinstance(found, Adapter)
    assert FACTS.title == "OKX v5"
    assert {file for _, file, _ in PAYLOADS} == {path.name for path in FOLDER.glob("*.json")}


def test_the_desk_is_read_whole() -> None:
    result = normalized(desk())
    assert result.failures == []
    snapshot = take_snapshot([result.batches], result.failures)
    assert (snapshot.failures, snapshot.incomplete) == ((), frozenset())
    accounts = {r["account_id"]: r for r in rows_of(result, "accounts")}
    assert set(accounts) == set(ACCOUNTS)
    assert {name: (r["margin_mode"], r["settlement_asset"]) for name, r in accounts.items()} == {
        NORTH: ("cross", "USD"),
        SOUTH_BTC: ("cross", "BTC"),
        SOUTH_USDT: ("cross", "USDT"),
        EAST: ("portfolio", "USD"),
        WEST: ("cross", "USD"),
        QUAY: ("cross", "USD"),
        ISOLATED_SOL: ("isolated", "USDT"),
        ISOLATED_ETH: ("isolated", "ETH"),
    }
    assert accounts[ISOLATED_SOL]["parent_account_id"] == NORTH
    assert all(r["node"] == name for name, r in accounts.items())


def test_exact_rows_of_north() -> None:
    result = normalized(desk())
    held = {r["instrument_id"]: r for r in rows_of(result, "positions", account_id=NORTH)}
    assert {name: (r["quantity"], r["side_mode"], r["leverage"]) for name, r in held.items()} == {
        "okx:BTC-USDT-SWAP": (850, "long", 10),
        "okx:BTC-USDT-240927": (-300, "short", 5),
        "okx:ETH-USD-SWAP": (-2400, "short", 8),
    }
    contracts = {r["instrument_id"]: r for r in rows_of(result, "instruments")}
    assert (contracts["okx:ETH-USD-SWAP"]["payoff"], contracts["okx:ETH-USD-SWAP"]["contract_size"]) == ("inverse", 10)
    assert contracts["okx:BTC-USDT-240927"]["expiry"].isoformat() == "2024-09-27T08:00:00+00:00"
    option = contracts["okx:ETH-USD-240927-4000-C"]
    assert (option["kind"], option["contract_size"], option["strike"], option["payoff"]) == (
        "option",
        Decimal("0.1"),
        4000,
        "inverse",
    )
    balances = {r["asset_id"]: r for r in rows_of(result, "balances", account_id=NORTH)}
    assert balances["USDT"]["quantity"] == Decimal("48360.25")  # with 150 of strategy equity
    owed = balances["USDC"]
    assert (owed["side"], owed["quantity"], owed["accrued_interest"]) == ("liability", 12_000, Decimal("14.75"))
    assert only(result, "balances", account_id=ISOLATED_ETH)["quantity"] == Decimal("0.45")
    orders = {r["order_id"]: r for r in rows_of(result, "open_orders")}
    assert orders["okx:north:91"]["remaining_quantity"] == 48
    assert orders["okx:north:92"]["account_id"] == ISOLATED_SOL
    assert orders["okx:north:93"]["instrument_id"] == "okx:ETH-USDT"
    marks = {(r["subject"], r["field"]): r["value"] for r in rows_of(result, "marks", account_id=None)}
    assert marks["BTC", "index"] == 60968.4
    assert marks["BTC/USDT", "index"] == 61021.1
    assert marks["okx:BTC-USDT-SWAP", "depth_bid"] == pytest.approx(251.5 * 0.01 * 61012.3)
    assert marks["okx:ETH-USD-SWAP", "depth_ask"] == 9120.0
    assert marks["okx:BTC-USDT-SWAP", "funding_rate"] == 0.0001012
    assert marks["ETH@2024-09-27T08:00:00Z", "forward"] == 3456.2
    assert only(result, "market_state", field="open_interest")["value"] == 24123.0


def test_ladders_hold_the_fee_and_the_family() -> None:
    result = normalized(desk())
    rule_set = only(result, "accounts", account_id=NORTH)["rule_set"]
    swap = rows_of(result, "margin_tiers", rule_set=rule_set, market="okx:BTC-USDT-SWAP")
    assert [(t["notional_floor"], t["notional_cap"], t["maintenance_rate"], t["deduction"]) for t in swap] == [
        (0, 1000, Decimal("0.0045"), 0),
        (1000, 5000, Decimal("0.0055"), 0),
        (5000, 10_000, Decimal("0.0105"), 0),
        (10_000, None, Decimal("0.0205"), 0),
    ]

    # 300 more contracts of another expiry count for the tier of the first
    def with_another(body: Any) -> None:
        body["data"].append({**body["data"][1], "instId": "BTC-USDT-241227", "posId": "7"})

    def with_its_contract(body: Any) -> None:
        body["data"].append({**body["data"][0], "instId": "BTC-USDT-241227", "expTime": ""})

    files = {"north_positions.json": with_another, "instruments_futures.json": with_its_contract}
    both = normalized([changed(p, files[p.name]) if p.name in files else p for p in desk()])
    shifted = rows_of(both, "margin_tiers", rule_set=rule_set, market="okx:BTC-USDT-240927")
    assert [(t["notional_floor"], t["notional_cap"]) for t in shifted][:2] == [(0, 700), (700, 4700)]
    shared = rows_of(both, "margin_tiers", rule_set="okx:multi_currency", market="okx:BTC-USDT-241227")
    assert [t["maintenance_rate"] for t in shared][:2] == [Decimal("0.004"), Decimal("0.005")]


def test_discount_slices_in_both_units() -> None:
    result = normalized(desk())
    rule_set = only(result, "accounts", account_id=NORTH)["rule_set"]
    slices: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows_of(result, "collateral_tiers", rule_set=rule_set):
        entry = (row["floor_in"], row["floor"], row["asset_weight_maintenance"])
        slices.setdefault(row["asset_id"], []).append(entry)
    assert slices["BTC"] == [
        ("tokens", 0, Decimal("0.98")),
        ("tokens", 20, Decimal("0.975")),
        ("tokens", 25, Decimal("0.95")),
    ]
    assert slices["SOL"] == [
        ("value", 0, Decimal("0.95")),
        ("value", 2_000_000, Decimal("0.5")),
        ("value", 8_000_000, 0),
    ]

    # the same slices stated in the older list, but a discount that only coins give
    def older(body: Any) -> None:
        for entry in body["data"]:
            entry["discountInfo"] = entry.pop("details")

    again = normalized(desk_with("discounts.json", older))
    units = {r["asset_id"]: r["floor_in"] for r in rows_of(again, "collateral_tiers", rule_set=rule_set)}
    assert units["BTC"] == "tokens"
    assert units["SOL"] == "value"


def test_rules_of_the_modes() -> None:
    result = normalized(desk())
    assert [(form.floors, form.initial) for form in forms_of(result, NORTH, TieredNotional)] == [
        ("quantity", "leverage")
    ]
    charge = forms_of(result, NORTH, DebtCharge)[0]
    assert (charge.initial_rates["USDC"], charge.maintenance_rates["USDC"]) == (Decimal("0.11"), Decimal("0.03"))
    assert charge.maintenance_rates["BTC"] == Decimal("0.02")  # dated
    assert [form.initial for form in forms_of(result, NORTH, Fixed)] == [Decimal("412.5")]
    loss = next(form for form in forms_of(result, WEST, Fixed) if form.equity)
    assert loss.equity == pytest.approx(Decimal("-35.2"), abs=Decimal("1e-9"))
    assert loss.basis.startswith("reported")
    assert forms_of(result, SOUTH_BTC, WeightedValue)[0].weights == "unit"
    grids = {form.underlyings[0]: form for form in forms_of(result, EAST, PriceVolGrid)}
    assert [float(point.spot) for point in grids["BTC"].scenarios] == [
        1,
        0.96,
        1.04,
        0.92,
        1.08,
        0.88,
        1.12,
        0.76,
        1.24,
    ]
    assert [float(point.dampening) for point in grids["BTC"].scenarios[-2:]] == [0.5, 0.5]
    assert grids["BTC"].roll.minimum == Decimal("0.002")
    assert grids["BTC"].minimum.delta_rate == Decimal("0.0045")
    assert grids["BTC"].reported_worst == 0
    eth = reported_unit("ETH")
    assert grids["ETH"].reported_worst == max(Decimal(eth["mr1"]), Decimal(eth["mr6"]))
    assert grids["ETH"].reported_worst + grids["ETH"].reported_add_on == Decimal(eth["mmr"])
    notes = {r["market"]: r for r in rows_of(result, "market_state") if r["field"].startswith("reconciliation_note")}
    assert set(notes) == {NORTH, SOUTH_BTC, SOUTH_USDT, EAST, WEST, ISOLATED_SOL, ISOLATED_ETH}
    assert notes[EAST]["field"] == "reconciliation_note.health"


@pytest.mark.parametrize(
    ("inst_id", "base", "settlement", "kind", "family"),
    [
        ("BTC-USDT-SWAP", "BTC", "USDT", "perp", "BTC-USDT"),
        ("ETH-USD-240927", "ETH", "ETH", "future", "ETH-USD"),
        ("BTC-USD-240927-70000-C", "BTC", "BTC", "option", "BTC-USD"),
        ("SOL-USDC", "SOL", "USDC", "spot", "SOL-USDC"),
    ],
)
def test_instrument_ids(inst_id: str, base: str, settlement: str, kind: str, family: str) -> None:
    name = name_of(inst_id)
    assert (name.base, name.settlement, name.kind, name.family) == (base, settlement, kind, family)


@pytest.mark.parametrize("inst_id", ["BTC", "BTC-USDT-PERP", "BTC-USD-241399", "BTC-USDT-SWAP-1-C", "btc-usdt", ""])
def test_instrument_ids_that_are_none(inst_id: str) -> None:
    with pytest.raises(ValueError, match=r"no instrument id|no expiry date"):
        name_of(inst_id)
