"""Deribit: recorded payloads, read where the folder of recorded material is at hand."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from adapters.deribit import mechanics
from adapters.transport import Payload
from tests.desk_deribit import exact, fetched, matrix_parameters, normalized
from tests.normalized_rows import only, rows_of


def recorded_payload(recorded: Path, file: str, request: str, owner: str = "") -> Payload:
    return fetched(file, root=recorded / "payloads" / "deribit", request=request, owner=owner)


def test_recorded_cross_account_is_cut_to_four_currencies(recorded: Path) -> None:
    payload = recorded_payload(recorded, "account_summaries_cross_pm.json", "private/get_account_summaries", "a")
    result = normalized([payload])
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        ("inconsistent", "summaries", "deribit:a:cross")
    ]
    account = only(result, "accounts")
    assert account["reported_equity"] == Decimal("25.710502678")  # once, not four times
    assert account["reported_maintenance_margin"] == Decimal("0.2671726792")
    # its matrix is that of the coins it holds: 16 % of the BTC and 18 % of the ETH, to the digits of the equities
    index = {r["subject"]: exact(r["value"]) for r in rows_of(result, "marks", field="index")}
    total = Fraction(0)
    for row in rows_of(result, "balances"):
        if row["asset_id"] in ("BTC", "ETH"):
            coin = row["asset_id"]
            matrix = mechanics.cross_risk_matrix(
                [], Fraction(row["quantity"]), matrix_parameters(coin.lower()), index_price=index[coin]
            )
            total += matrix.margin
    assert float(exact("0.8") * total) == pytest.approx(0.2671726792, rel=1e-3)
    usdt = exact("23.61869") * index["USDT"]
    assert float(total + exact("0.02") * usdt) == pytest.approx(0.806292412, rel=1e-3)


def test_recorded_message_of_a_cross_account(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "ws_portfolio.json", "user.portfolio", "a")])
    assert [(f.reason, f.path) for f in result.failures] == [("inconsistent", "summaries")]  # one currency of several
    assert only(result, "accounts")["reported_initial_margin"] == Decimal("1.099130991")


def test_recorded_simulation(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "pme_simulate_doc.json", "private/pme/simulate:BTC", "a")])
    assert [(f.reason, f.account_id) for f in result.failures] == [("missing_field", "deribit:a")]  # no summary
    marks = {(r["subject"], r["field"]): r["value"] for r in rows_of(result, "marks")}
    assert marks["deribit:BTC-28JUN24", "mark"] == 67371.75
    assert marks["BTC", "index"] == 65666.19


def test_recorded_market_answers(recorded: Path) -> None:
    result = normalized(
        [
            recorded_payload(recorded, "ws_ticker.json", "ticker.BTC-PERPETUAL.100ms"),
            recorded_payload(recorded, "instrument_option.json", "public/get_instrument"),
        ]
    )
    assert result.failures == []
    option = only(result, "instruments", kind="option")
    # the sample's hour is noon, and its answer knows better than its name
    assert option["expiry"].isoformat() == "2024-12-27T12:00:00+00:00"
    marks = {r["field"]: r["value"] for r in rows_of(result, "marks", subject="deribit:BTC-PERPETUAL")}
    assert (marks["mark"], marks["depth_ask"]) == (92281.78, 186520.0)
    assert only(result, "market_state")["value"] == pytest.approx(1132329370 / 92281.78, rel=1e-12)
