"""Binance: recorded payloads, read where the folder of recorded material is at hand."""

from decimal import Decimal
from pathlib import Path

from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import FailureReason
from tests.desk_binance import PARAMETERS, normalized
from tests.normalized_rows import only, rows_of


def recorded_payload(recorded: Path, name: str, request: str, owner: str = "") -> Payload:
    transport = RecordedTransport(recorded / "payloads" / "binance")
    payload = transport.fetch("binance", PayloadRequest(request, name, owner))
    assert isinstance(payload, Payload)
    return payload


def test_recorded_account_contradicts_itself(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "usdm_account_v3.json", "fapi/account", "doc")])
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        (FailureReason.INCONSISTENT, "positions[0].notional", "binance:doc:USDT")
    ]
    assert {row["account_id"]: row["reported_equity"] for row in rows_of(result, "accounts")} == {
        "binance:doc:USDT": Decimal("23.72469206"),
        "binance:doc:USDC": Decimal("103.12345678"),
    }


def test_recorded_brackets_are_the_dated_ones(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "leverage_tiers_usdm.json", "fapi/leverageBracket")])
    assert result.failures == []
    assert {row["market"] for row in rows_of(result, "margin_tiers")} >= {"binance:BTCUSDT", "binance:BTCUSDC"}
    for symbol, brackets in PARAMETERS["brackets"].items():
        tiers = rows_of(result, "margin_tiers", market=f"binance:{symbol}")
        dated = [(Decimal(b["notionalFloor"]), Decimal(b["maintMarginRatio"]), Decimal(b["cum"])) for b in brackets]
        assert [(t["notional_floor"], t["maintenance_rate"], t["deduction"]) for t in tiers] == dated


def test_recorded_bracket_with_a_coefficient(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "usdm_brackets_doc.json", "fapi/leverageBracket")])
    tier = only(result, "margin_tiers")
    assert (tier["notional_cap"], tier["maintenance_rate"]) == (15000, Decimal("0.0065"))


def test_recorded_market_answers(recorded: Path) -> None:
    result = normalized(
        [
            recorded_payload(recorded, "usdm_mark_price.json", "fapi/premiumIndex"),
            recorded_payload(recorded, "usdm_depth.json", "fapi/depth:ETHUSDT"),
            recorded_payload(recorded, "portfolio_margin_collateral_rate.json", "portfolio/collateralRate"),
            recorded_payload(recorded, "portfolio_margin_account.json", "portfolio/account", "doc"),
            recorded_payload(recorded, "usdm_position_risk.json", "fapi/positionRisk", "doc"),
        ]
    )
    values = {(row["subject"], row["field"]): row["value"] for row in rows_of(result, "marks")}
    assert values["binance:BTCUSDT", "mark"] == 11793.63104562
    assert values["binance:ETHUSDT", "bid"] == 4.0
    assert values["binance:ETHUSDT", "depth_bid"] == 4.0 * 431
    assert only(result, "accounts", margin_mode="portfolio")["reported_health"] == Decimal("5167.92171923")
    assert [t["asset_id"] for t in rows_of(result, "collateral_tiers")] == ["USDC"]
