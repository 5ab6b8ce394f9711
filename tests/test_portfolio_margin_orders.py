"""Pending orders under portfolio margin of OKX and Deribit: the venue's reported part, or a finding with their size."""

import json
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Context, Normalized, find_adapter
from adapters.asset_book import read_asset_book
from adapters.transport import Payload
from aggregator.rule_forms import Fixed
from tests import sample_deribit, sample_okx
from tests.native_figures import native_figures
from tests.normalized_rows import failures_of, forms_of, only
from tests.payload_files import changed, read_payload

TESTS = Path(__file__).resolve().parent
CONFIGS = TESTS.parent / "configs"
ASSETS = read_asset_book(CONFIGS / "assets.toml")
SAMPLES = {"okx": sample_okx.PAYLOADS, "deribit": sample_deribit.PAYLOADS}
NOW = datetime(2024, 6, 30, tzinfo=UTC)
OKX, SEGREGATED, CROSS = "okx:east:portfolio", "deribit:east:BTC", "deribit:west:cross"

# The summary gives margins to 9 digits of a coin, and the matrix of the engine is float64.
RELATIVE = 1e-8


def normalized(
    venue: str,
    *,
    without: Sequence[str] = (),
    change: dict[str, Callable[[Any], Any]] | None = None,
    more: Sequence[Payload] = (),
) -> Normalized:
    payloads = list(more)
    for request, file, owner in SAMPLES[venue]:
        if file not in without:
            payload = read_payload(venue, TESTS / "payloads" / venue, request, file, owner)
            payloads.append(changed(payload, change[file]) if change and file in change else payload)
    parameters = tomllib.loads((CONFIGS / "venues" / f"{venue}.toml").read_text(encoding="utf-8"))
    return find_adapter(venue).normalize(payloads, Context(ASSETS, parameters))


def okx_order(*, contracts: str = "300", reduce_only: str = "false") -> Payload:
    file = TESTS / "payloads" / "okx" / "west_orders.json"
    body = json.loads(file.read_text(encoding="utf-8"))["body"]
    body["data"][0] |= {"instId": "BTC-USDT-SWAP", "sz": contracts, "reduceOnly": reduce_only}
    return Payload("trade/orders-pending", "east_orders.json", "east", NOW, "", body)


def frozen(amount: str) -> dict[str, Callable[[Any], Any]]:
    return {"east_balance.json": lambda body: body["data"][0].update(ordFroz=amount)}


def test_okx_charges_what_is_frozen_for_orders_initially_and_not_in_maintenance() -> None:
    without = normalized("okx")
    result = normalized("okx", change=frozen("812.5"), more=[okx_order()])
    assert failures_of(result, OKX) == []
    before, now = (native_figures(found, as_of=NOW)[OKX] for found in (without, result))
    assert now.initial - before.initial == pytest.approx(812.5, rel=1e-9)
    assert now.maintenance == before.maintenance
    (charge,) = [form for form in forms_of(result, OKX, Fixed) if form.initial == Decimal("812.5")]
    assert charge.basis == "reported ordFroz"
    assert not [failure for failure in result.failures if "not in the requirement" in failure.message]


@pytest.mark.parametrize("amount", ["0", ""])
def test_okx_orders_without_a_stated_margin_are_a_finding_with_their_size(amount: str) -> None:
    result = normalized("okx", change=frozen(amount), more=[okx_order()])
    (finding,) = [failure for failure in result.failures if failure.subject == OKX]
    assert (finding.reason, finding.account_id) == ("missing_field", None)
    assert finding.path == "data[0].ordFroz"
    assert "300 BTC-USDT-SWAP" in finding.message
    assert "not in the requirement" in finding.message


@pytest.mark.parametrize("total", [None, "", "0"])
def test_okx_what_is_frozen_for_orders_that_nobody_lists_is_a_finding(total: str | None) -> None:
    def change(body: Any) -> None:
        body["data"][0]["ordFroz"] = total
        body["data"][0]["details"][0]["ordFrozen"] = "12.5"

    result = normalized("okx", change={"east_balance.json": change})
    (finding,) = [failure for failure in result.failures if failure.subject == OKX]
    assert (finding.reason, finding.path, finding.account_id) == ("missing_field", "data[0].ordFroz", None)
    first = read_payload("okx", TESTS / "payloads" / "okx", "account/balance", "east_balance.json", "east").body
    assert f"12.5 {first['data'][0]['details'][0]['ccy']} frozen" in finding.message


def test_okx_a_spot_order_is_sized_in_coins() -> None:
    order = okx_order(contracts="2")
    order.body["data"][0] |= {"instId": "BTC-USDT", "instType": "SPOT", "posSide": "net"}
    result = normalized("okx", change=frozen(""), more=[order])
    (finding,) = [failure for failure in result.failures if failure.subject == OKX]
    assert finding.message.endswith("2 BTC in BTC-USDT")


def test_okx_orders_that_only_reduce_need_nothing() -> None:
    result = normalized("okx", more=[okx_order(reduce_only="true")])
    assert [failure for failure in result.failures if failure.subject == OKX] == []


def test_deribit_without_a_simulation_the_summary_holds_what_orders_need() -> None:
    """1.02340542 less 0.7561547360711783 / 0.8: the simulation of the same portfolio says 0.018212 for orders and 0.06
    for market-maker protection.
    """
    with_simulation = native_figures(normalized("deribit"), as_of=NOW)[SEGREGATED]
    result = normalized("deribit", without=["east_simulation.json"])
    assert [failure for failure in result.failures if failure.subject == SEGREGATED] == []
    (charge,) = forms_of(result, SEGREGATED, Fixed)
    assert charge.basis == "reported initial_margin less maintenance_margin over mm_factor"
    assert charge.maintenance == 0
    assert float(charge.initial) == pytest.approx(0.078212, abs=1e-8)
    now = native_figures(result, as_of=NOW)[SEGREGATED]
    assert now == pytest.approx(with_simulation, rel=RELATIVE)
    account = only(result, "accounts", account_id=SEGREGATED)
    assert now.initial == pytest.approx(float(account["reported_initial_margin"]), rel=RELATIVE)


def test_deribit_a_cross_account_is_charged_beyond_its_haircuts() -> None:
    """The initial margin of `west` holds 2 % of its USDT and nothing for orders; 500 dollars more are theirs."""
    assert forms_of(normalized("deribit"), CROSS, Fixed) == []

    def more(body: Any) -> None:
        for row in body["result"]["summaries"]:
            row["total_initial_margin_usd"] += 500

    result = normalized("deribit", change={"west_summaries.json": more})
    (charge,) = forms_of(result, CROSS, Fixed)
    assert float(charge.initial) == pytest.approx(500, abs=1e-5)
    figures = native_figures(result, as_of=NOW)[CROSS]
    account = only(result, "accounts", account_id=CROSS)
    assert figures.initial == pytest.approx(float(account["reported_initial_margin"]), rel=RELATIVE)


def test_deribit_orders_of_which_nobody_states_a_margin_are_a_finding_with_their_size() -> None:
    unsaid = {"east_summary.json": lambda body: body["result"].pop("initial_margin")}
    result = normalized("deribit", without=["east_simulation.json"], change=unsaid)
    (finding,) = [failure for failure in result.failures if failure.subject == SEGREGATED]
    assert (finding.reason, finding.account_id) == ("missing_field", None)
    assert "90000.0 BTC-PERPETUAL" in finding.message
    assert forms_of(result, SEGREGATED, Fixed) == []
