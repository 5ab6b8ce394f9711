"""OKX: recorded payloads, read where the folder of recorded material is at hand."""

from decimal import Decimal
from pathlib import Path

from adapters.transport import Payload
from tests.desk_okx import fetched, normalized
from tests.normalized_rows import only, rows_of


def recorded_payload(recorded: Path, file: str, request: str, owner: str = "") -> Payload:
    return fetched(file, root=recorded / "payloads" / "okx", request=request, owner=owner)


def test_recorded_balance_is_cut_to_one_currency(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "account_balance.json", "account/balance", "a")])
    assert [(f.reason, f.path) for f in result.failures] == [
        ("inconsistent", "data[0].totalEq"),
        ("inconsistent", "data[0].adjEq"),
        ("missing_field", "data[0].details[0].upl"),  # no positions answer
    ]
    account = only(result, "accounts")
    assert (account["reported_health"], account["reported_equity"]) == (
        Decimal("143682.59776662575"),
        Decimal("55415.624719833286"),
    )
    assert only(result, "balances")["quantity"] == Decimal("5000.435693622894")


def test_recorded_isolated_position_lacks_its_contract(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "positions_future_isolated.json", "account/positions", "a")])
    assert {(f.reason, f.account_id) for f in result.failures} == {
        ("missing_parameter", "okx:a:isolated:ETH-USD-210430:long")
    }
    account = only(result, "accounts")
    assert account["reported_health"] == Decimal("11.731726509588816")


def test_recorded_position_builder(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "position_builder_doc.json", "account/position-builder", "a")])
    assert [(f.reason, f.path) for f in result.failures] == [
        ("inconsistent", "data[0].totalMmr"),  # the sample was cut to one risk unit, its total is of more
        ("missing_field", "data"),  # no balance
    ]
    account = only(result, "accounts")
    assert account["reported_health"] == Decimal("-25.95365779811705")
    assert account["reported_maintenance_margin"] == Decimal("2946.5480841048")


def test_recorded_position_risk_states_no_prices_and_not_all_currencies(recorded: Path) -> None:
    payload = recorded_payload(recorded, "account_position_risk.json", "account/account-position-risk", "a")
    result = normalized([payload])
    assert [(f.reason, f.path, f.subject) for f in result.failures] == [
        ("inconsistent", "data[0].adjEq", "okx:a:cross"),
        ("missing_parameter", "", "BTC"),
        ("missing_parameter", "", "USDT"),
    ]


def test_recorded_market_answers(recorded: Path) -> None:
    names = {
        "discount_info.json": "public/discount-rate-interest-free-quota",
        "funding_rate.json": "public/funding-rate",
        "option_summary.json": "public/opt-summary",
        "position_tiers.json": "public/position-tiers",
        "tickers.json": "market/tickers",
    }
    result = normalized([recorded_payload(recorded, file, request) for file, request in names.items()])
    assert result.failures == []
    marks = {(r["subject"], r["field"]): r["value"] for r in rows_of(result, "marks")}
    assert marks["okx:BTC-USDT-SWAP", "funding_rate"] == 0.0000792386885340
    assert marks["okx:BTC-USD-200103-6500-C", "implied_vol"] == 0.9987
    assert marks["okx:LTC-USD-SWAP", "bid"] == 8888.88
    slices = rows_of(result, "collateral_tiers", asset_id="LTC")
    assert [(r["floor_in"], r["floor"]) for r in slices] == [
        ("value", 0),
        ("value", 2_000_000),
        ("value", 4_000_000),
        ("value", 8_000_000),
    ]
