"""A dollar that earns in its own price: at its payload's price, without one at the configured index, never at par."""

import tomllib
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Context, Normalized, find_adapter
from adapters.asset_book import Asset, AssetBook, Earnings, read_asset_book
from aggregator.snapshot import take_snapshot
from tests import sample_okx
from tests.native_figures import native_figures
from tests.normalized_rows import only
from tests.payload_files import changed, read_payload

TESTS = Path(__file__).resolve().parent
CONFIGS = TESTS.parent / "configs"
SHIPPED = read_asset_book(CONFIGS / "assets.toml")
INDEX = Decimal("1.25")
EARNINGS = Earnings(INDEX, date(2024, 5, 31), "a page")
BOOK = AssetBook({**SHIPPED.assets, "SUSDE": Asset("SUSDE", None, INDEX, "USDe", "ethena", EARNINGS)})
NOW = datetime(2024, 6, 30, tzinfo=UTC)
ACCOUNT = "okx:quay:cross"


def normalized(row: dict[str, Any] | None, book: AssetBook = BOOK) -> Normalized:
    payloads = []
    for request, file, owner in sample_okx.PAYLOADS:
        payload = read_payload("okx", TESTS / "payloads" / "okx", request, file, owner)
        if row is not None and file == "quay_position_risk.json":
            payload = changed(payload, lambda body: body["data"][0]["balData"].append(row))
        if row is not None and file == "discounts.json":
            payload = changed(payload, lambda body: body["data"].append(body["data"][0] | {"ccy": row["ccy"]}))
        payloads.append(payload)
    parameters = tomllib.loads((CONFIGS / "venues" / "okx.toml").read_text(encoding="utf-8"))
    return find_adapter("okx").normalize(payloads, Context(book, parameters))


def test_without_a_price_of_today_it_is_worth_its_index() -> None:
    """A position-risk answer states no dollars of a currency, and no index answer names this one."""
    before = native_figures(normalized(None), as_of=NOW)[ACCOUNT]
    result = normalized({"ccy": "SUSDE", "eq": "4", "disEq": ""})
    assert [failure for failure in result.failures if failure.account_id == ACCOUNT] == []
    (finding,) = [failure for failure in result.failures if failure.subject == ACCOUNT]
    assert (finding.reason, finding.account_id) == ("missing_mark", None)
    assert all(words in finding.message for words in ("SUSDE", "1.25", "2024-05-31", "a page"))
    row = only(result, "assets", asset_id="SUSDE")
    assert (row["risk_factor"], row["peg_of"], row["multiplier"]) == (None, "USDe", INDEX)
    (tier, *_) = [r for r in result.batches["collateral_tiers"].to_pylist() if r["asset_id"] == "SUSDE"]
    after = native_figures(result, as_of=NOW)[ACCOUNT]
    worth = 4 * 1.25 * float(tier["asset_weight_maintenance"])
    assert worth > 0
    assert after.equity - before.equity == pytest.approx(worth, rel=1e-9)


def test_without_a_price_and_without_an_index_the_account_is_incomplete() -> None:
    result = normalized({"ccy": "SUSDE", "eq": "4", "disEq": ""}, SHIPPED)
    (failure,) = [failure for failure in result.failures if failure.account_id == ACCOUNT]
    assert (failure.reason, failure.subject) == ("missing_mark", "SUSDE")
    assert ACCOUNT in take_snapshot([result.batches], result.failures).incomplete


def test_a_price_of_today_is_taken_and_nothing_is_told() -> None:
    row = {"ccy": "SUSDE", "eq": "4", "eqUsd": "4.84", "cashBal": "4", "disEq": "0", "interest": "0", "stgyEq": ""}
    row |= dict.fromkeys(("isoEq", "upl", "imr", "mmr", "mgnRatio", "ordFrozen"), "")
    payloads = []
    for request, file, owner in sample_okx.PAYLOADS:
        payload = read_payload("okx", TESTS / "payloads" / "okx", request, file, owner)
        if file == "west_balance.json":
            payload = changed(payload, lambda body: body["data"][0]["details"].append(row))
        payloads.append(payload)
    parameters = tomllib.loads((CONFIGS / "venues" / "okx.toml").read_text(encoding="utf-8"))
    result = find_adapter("okx").normalize(payloads, Context(SHIPPED, parameters))
    assert only(result, "balances", asset_id="SUSDE")["quantity"] == 4
    assert [failure for failure in result.failures if "earns" in failure.message or "index" in failure.message] == []


def test_stablecoins_at_par_stay_at_par() -> None:
    for symbol in ("USDC", "DAI", "BUIDL"):
        assert SHIPPED.assets[symbol].multiplier == 1
