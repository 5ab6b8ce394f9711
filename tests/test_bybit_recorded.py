"""Bybit: recorded payloads, read where the folder of recorded material is at hand."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.transport import Payload
from tests.desk_bybit import fetched, normalized
from tests.normalized_rows import only, rows_of


def recorded_payload(recorded: Path, name: str, request: str, owner: str = "") -> Payload:
    return fetched(name, request, owner, root=recorded / "payloads" / "bybit")


@pytest.mark.parametrize(
    ("name", "request_text", "owner", "expected"),
    [
        ("account_info.json", "v5/account/info", "doc", {("missing_field", "list")}),
        ("collateral_info.json", "v5/account/collateral-info", "", set()),
        ("funding_history.json", "v5/market/funding/history", "", set()),
        # a position without its owner's wallet and without tiers
        (
            "inverse_position.json",
            "v5/position/list",
            "doc",
            {("missing_field", "list"), ("missing_parameter", "result.list[0]")},
        ),
        ("linear_inverse_tickers.json", "v5/market/tickers", "", set()),
        ("option_ticker.json", "v5/market/tickers", "", set()),
        ("risk_limit.json", "v5/market/risk-limit", "", set()),
        # the samples' totals are of more coins than they list
        (
            "uta_wallet_balance.json",
            "v5/account/wallet-balance",
            "doc",
            {("inconsistent", "result.list[0].totalEquity")},
        ),
        (
            "uta_wallet_spot_borrow.json",
            "v5/account/wallet-balance",
            "doc",
            {("inconsistent", "result.list[0].totalEquity"), ("missing_parameter", "result.list[0].coin[0].coin")},
        ),
    ],
)  # fmt: skip
def test_recorded_payloads_are_read(recorded: Path, name: str, request_text: str, owner: str, expected: Any) -> None:
    result = normalized([recorded_payload(recorded, name, request_text, owner)])
    assert {(str(f.reason), f.path) for f in result.failures} == expected


def test_recorded_values(recorded: Path) -> None:
    result = normalized(
        [
            recorded_payload(recorded, "risk_limit.json", "market/risk-limit"),
            recorded_payload(recorded, "inverse_position.json", "position/list", "doc"),
            recorded_payload(recorded, "option_ticker.json", "market/tickers"),
            recorded_payload(recorded, "uta_wallet_spot_borrow.json", "account/wallet-balance", "doc"),
        ]
    )
    tier = only(result, "margin_tiers", rule_set="bybit:cross")
    assert (tier["maintenance_rate"], tier["initial_rate"], tier["notional_cap"]) == (
        Decimal("0.005"),
        Decimal("0.01"),
        150,
    )
    held = only(result, "positions")
    profit = held["quantity"] * (1 / held["entry_price"] - 1 / Decimal("28224.50"))
    assert abs(profit - Decimal("-0.00029413")) < Decimal("1e-8")
    forward = only(result, "marks", field="forward")
    assert (forward["subject"], forward["value"]) == ("BTC@2022-12-30T08:00:00Z", 16590.42)
    sides = {row["side"]: row["quantity"] for row in rows_of(result, "balances", asset_id="USDT")}
    assert sides == {"asset": 1200, "liability": 200}
