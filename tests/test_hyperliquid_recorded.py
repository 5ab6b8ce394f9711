"""Hyperliquid: recorded payloads, read where the folder of recorded material is at hand."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from adapters.hyperliquid import mechanics
from adapters.hyperliquid.mechanics import SummedPosition
from aggregator.errors import FailureReason
from tests.desk_hyperliquid import (
    CONTEXTS,
    CROSS,
    EQUITY_TOLERANCE,
    PARAMETERS,
    PERP,
    PRICE_RELATIVE,
    SPOT,
    WALLET,
    equity_of,
    fetched,
    maintenance_of,
    normalized,
)
from tests.normalized_rows import only, rows_of


@pytest.fixture(scope="module")
def recorded_payloads(recorded: Path) -> Path:
    return recorded / "payloads" / "hyperliquid"


def test_the_recorded_account_of_2023(recorded_payloads: Path) -> None:
    payload = fetched("clearinghouse_state_2023.json", PERP, "recorded-2023", root=recorded_payloads)
    account = "hyperliquid:recorded-2023:cross"
    result = normalized(payload)
    assert result.failures == []
    assert len(rows_of(result, "positions", account_id=account)) == 12
    assert abs(equity_of(result, account) - Decimal("1182.312496")) < EQUITY_TOLERANCE
    assert abs(maintenance_of(result, account) - Decimal("34.34815334")) < EQUITY_TOLERANCE

    # no source of tiers under another label: the dated parameters of another time are not taken
    other = normalized(replace(payload, account="desk"))
    assert {(f.reason, f.account_id) for f in other.failures} == {(FailureReason.MISSING_PARAMETER, CROSS)}
    chosen = normalized(replace(payload, account="desk"), parameters={**PARAMETERS, "selected": "recorded-2023"})
    assert chosen.failures == []


def test_the_liquidation_prices_of_2023(recorded_payloads: Path) -> None:
    body = fetched("clearinghouse_state_2023.json", PERP, "x", root=recorded_payloads).body
    entries = [entry["position"] for entry in body["assetPositions"]]
    held = [
        SummedPosition(Fraction(p["szi"]), Fraction(p["positionValue"]), Fraction(p["leverage"]["value"]))
        for p in entries
    ]
    raw_usd = Fraction(body["crossMarginSummary"]["totalRawUsd"])
    for number, p in enumerate(entries):
        found = mechanics.liquidation_price_2023(number, raw_usd, positions=held, max_leverages=[50] * len(held))
        if p["liquidationPx"] is None:
            assert found is None
        else:
            assert found is not None
            assert abs(found - Fraction(p["liquidationPx"])) < 10 * PRICE_RELATIVE * found


@pytest.mark.parametrize("file", ["clearinghouse_state_2025_isolated.json", "clearinghouse_state_isolated.json"])
def test_the_recorded_isolated_position_of_2025(recorded_payloads: Path, file: str) -> None:
    result = normalized(fetched(file, PERP, "desk", root=recorded_payloads))
    assert result.failures == []
    account = "hyperliquid:desk:isolated:HYPE"
    row = only(result, "accounts", account_id=account)
    assert (row["reported_equity"], row["parent_account_id"]) == (Decimal("7.525754"), CROSS)
    assert abs(equity_of(result, account) - Decimal("7.525754")) < EQUITY_TOLERANCE
    assert abs(equity_of(result, CROSS) - Decimal("75.781884")) < EQUITY_TOLERANCE
    assert abs(maintenance_of(result, account) - Decimal("3.7826")) < EQUITY_TOLERANCE
    held = only(result, "positions", account_id=account)
    equity, price = Fraction("7.525754"), Fraction("37.826")
    found = mechanics.liquidation_price(1, price, size=2, equity=equity, tiers=mechanics.single_tier(10))
    assert found is not None
    assert abs(found - Fraction(held["reported_liquidation_price"])) < PRICE_RELATIVE * found


def test_the_recorded_summary_without_positions_is_inconsistent(recorded_payloads: Path) -> None:
    result = normalized(fetched("clearinghouse_state_summary_only.json", PERP, "desk", root=recorded_payloads))
    assert [(f.reason, f.account_id, f.path) for f in result.failures] == [
        (FailureReason.INCONSISTENT, CROSS, "crossMarginSummary.totalNtlPos")
    ]
    assert only(result, "accounts", account_id=CROSS)["reported_equity"] == Decimal("1736.030875")
    assert rows_of(result, "balances") == []


@pytest.mark.parametrize(
    ("file", "request_name", "coins"),
    [
        ("meta_sample.json", "meta", {"BTC", "ETH", "ATOM"}),
        ("meta_perp_sample.json", "meta", {"BTC", "ETH", "ATOM"}),
        ("meta_flags.json", "meta", {"BTC", "ETH"}),
        ("meta_margin_tables_constructed.json", "meta", {"BTC", "DYDX"}),
        ("meta_and_asset_ctxs.json", "metaAndAssetCtxs", {"BTC", "ETH"}),
    ],
)
def test_recorded_market_payloads(recorded_payloads: Path, file: str, request_name: str, coins: set[str]) -> None:
    result = normalized(fetched(file, request_name, root=recorded_payloads))
    assert result.failures == []
    assert {row["symbol"] for row in rows_of(result, "instruments")} == coins
    assert {row["market"] for row in rows_of(result, "margin_tiers")} == {f"hyperliquid:{coin}" for coin in coins}
    prices = rows_of(result, "marks", field="mark")
    assert len(prices) == (len(coins) if request_name == CONTEXTS else 0)


def test_recorded_builder_dexes_and_wallets(recorded_payloads: Path) -> None:
    metas = normalized(fetched("all_perp_metas_collateral_tokens.json", "allPerpMetas", root=recorded_payloads))
    assert metas.failures == []
    # km:US500 has an underlying and hyna:BTC a collateral (USDE) that the asset book of this suite does not know
    assert {row["symbol"] for row in rows_of(metas, "instruments")} == {"BTC"}

    small = normalized(fetched("spot_balances.json", SPOT, "desk", root=recorded_payloads))
    assert small.failures == []
    assert only(small, "balances", asset_id="HYPE")["quantity"] == Decimal("0.00959057")
    large = normalized(fetched("spot_clearinghouse_state.json", SPOT, "desk", root=recorded_payloads))
    assert {(f.reason, f.path, f.account_id) for f in large.failures} == {
        (FailureReason.UNKNOWN_ASSET, "balances[1].coin", WALLET),
        (FailureReason.UNKNOWN_ASSET, "balances[3].coin", WALLET),
    }
    assert {row["asset_id"] for row in rows_of(large, "balances")} == {"USDC", "HYPE"}
