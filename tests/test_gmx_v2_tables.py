"""GMX v2: the desk becomes canonical tables, and the engine's figures are the venue's to 1e-9."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from adapters.adapter import Adapter, Normalized, find_adapter
from adapters.transport import Payload
from aggregator.errors import FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import Fixed, TieredNotional, Verdict, WeightedValue, parse_parameters
from aggregator.snapshot import take_snapshot
from tests.desk_gmx_v2 import (
    ACCOUNTS,
    AS_OF,
    BTC_SHORT,
    ETH_LONG,
    ETH_SHORT,
    SOL_LONG,
    SOL_SHORT,
    desk,
    normalized,
    only_reason,
    usd,
    without,
)
from tests.normalized_rows import check_canonical, incomplete, only, rows_of
from tests.payload_files import put

ENGINE_RELATIVE = 1e-9  # float64 of the engine against the exact integers


@pytest.fixture(scope="module")
def whole() -> Normalized:
    return normalized(desk())


def test_the_desk_is_read_without_a_failure(whole: Normalized) -> None:
    assert whole.failures == []
    check_canonical(whole)
    snapshot = take_snapshot([whole.batches], as_of=AS_OF, max_age=timedelta(hours=1), max_mark_gap=0.02)
    assert snapshot.failures == ()


def test_each_position_is_an_isolated_account_of_its_own(whole: Normalized) -> None:
    accounts = rows_of(whole, "accounts")
    assert {row["account_id"] for row in accounts} == ACCOUNTS
    assert {row["node"] for row in accounts} == ACCOUNTS
    assert {(r["margin_mode"], r["settlement_asset"], r["chain"]) for r in accounts} == {
        ("isolated", "USD", "arbitrum")
    }
    assert len({row["rule_set"] for row in accounts}) == len(ACCOUNTS)


def test_position_collateral_and_prices_are_those_of_the_payload(whole: Normalized) -> None:
    held = only(whole, "positions", account_id=BTC_SHORT)
    assert (held["quantity"], held["side_mode"]) == (Decimal("-15.2"), "short")
    assert abs(held["quantity"] * held["entry_price"] + 910_000) < Decimal("1e-16")
    assert only(whole, "balances", account_id=ETH_LONG)["quantity"] == Decimal("36.5")
    # A long is valued at the lowest index price, a short at the highest; collateral always at its lowest.
    assert only(whole, "marks", account_id=ETH_LONG, field="mark")["value"] == 3376.85
    assert only(whole, "marks", account_id=BTC_SHORT, field="mark")["value"] == 60971.8
    assert only(whole, "marks", account_id=BTC_SHORT, field="oracle")["value"] == 0.99995
    assert only(whole, "marks", account_id=None, subject="SOL@arbitrum", field="oracle")["value"] == 140.2
    assert only(whole, "marks", account_id=None, subject="SOL@arbitrum", field="price_max")["value"] == 140.22


def test_the_rules_are_a_constant_requirement_and_fixed_closing_costs(whole: Normalized) -> None:
    rule_set = only(whole, "accounts", account_id=ETH_LONG)["rule_set"]
    forms = [parse_parameters(r["form"], r["parameters"]) for r in rows_of(whole, "rule_sets", rule_set=rule_set)]
    assert forms[0] == WeightedValue()
    assert isinstance(forms[1], Fixed)
    assert forms[1].equity < 0
    assert forms[2] == TieredNotional(initial="tier_rate", basis="entry", minimum=Decimal(1))
    assert forms[3] == Verdict(liquidates_when="below")
    tier = only(whole, "margin_tiers", rule_set=rule_set)
    # Open interest of 61.5 million times 2e-10 asks for more than the market's 1 %.
    assert (tier["initial_rate"], tier["maintenance_rate"]) == (Decimal("0.0123"), Decimal("0.005"))


def test_a_profit_above_what_the_pool_pays_counts_at_its_share(whole: Normalized) -> None:
    rule_set = only(whole, "accounts", account_id=SOL_LONG)["rule_set"]
    assert parse_parameters("weighted_value", rows_of(whole, "rule_sets", rule_set=rule_set)[0]["parameters"]) == (
        WeightedValue(weights="collateral_tiers")
    )
    weights = {
        r["asset_id"]: r["asset_weight_maintenance"] for r in rows_of(whole, "collateral_tiers", rule_set=rule_set)
    }
    cap = Fraction(18_000) * Fraction("140.18") / 2
    of_the_side = Fraction(40_000) * Fraction("140.22") - 3_200_000
    assert weights["USDC@arbitrum"] == 1
    assert abs(weights["gmx_v2:SOL/USD[SOL-USDC]"] - Decimal(float(cap / of_the_side))) < Decimal("1e-15")
    assert rows_of(whole, "collateral_tiers", rule_set=only(whole, "accounts", account_id=ETH_LONG)["rule_set"]) == []


def test_orders_stand_beside_their_positions_and_cost_nothing(whole: Normalized) -> None:
    orders = {row["account_id"]: row for row in rows_of(whole, "open_orders")}
    # A short of SOL that would open a new position and a swap have no account.
    assert orders.keys() == {ETH_LONG, BTC_SHORT}
    stop, limit = orders[ETH_LONG], orders[BTC_SHORT]
    assert (stop["side"], stop["reduce_only"], stop["limit_price"]) == ("sell", True, Decimal("3010.5"))
    assert stop["remaining_quantity"] == Decimal("401.25") / 2
    assert (limit["side"], limit["reduce_only"], limit["remaining_quantity"]) == ("sell", False, 2)
    others = normalized(without("getAccountOrders"))
    assert rows_of(others, "rule_sets") == rows_of(whole, "rule_sets")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ((0, "order", "numbers", "orderType"), "9", FailureReason.UNSUPPORTED),
        ((0, "order", "numbers", "sizeDeltaUsd"), "x", FailureReason.NOT_A_NUMBER),
        ((0, "order", "addresses", "market"), ..., FailureReason.MISSING_FIELD),
        ((0, "order", "flags"), [], FailureReason.MALFORMED),
        ((1, "orderKey"), "0x" + "71" * 32, FailureReason.DUPLICATE),
        ((1,), 5, FailureReason.MALFORMED),
    ],
)
def test_an_unreadable_order_stops_nobody(path: tuple[Any, ...], value: Any, reason: FailureReason) -> None:
    result = normalized(desk(put(*path, to=value), "getAccountOrders", "kestrel"))
    assert (only_reason(result), incomplete(result)) == (reason, {None})
    assert len(rows_of(result, "rule_sets")) == 4 * len(ACCOUNTS)


def test_market_state_is_in_usd_fractions_and_whole_tokens(whole: Normalized) -> None:
    def state(field: str, market: str = "WETH/USD[WETH-USDC]") -> float:
        return float(only(whole, "market_state", market=f"gmx_v2:{market}", field=field)["value"])

    assert state("open_interest_long") == 61_500_000
    assert state("open_interest_in_tokens_short") == 15_980.5
    assert state("pool_amount_short_token") == 47_500_000
    assert state("virtual_inventory") == -9_800_000
    assert state("impact_exponent_negative") == 1.75
    assert state("is_disabled", "SOL/USD[SOL-USDC]") == 0
    assert only(whole, "market_state", market="gmx_v2", field="min_collateral_usd")["value"] == 1


def test_engine_and_venue_agree(whole: Normalized) -> None:
    """Equity and requirement of the packed accounts are what `isPositionLiquidatable` answers."""
    snapshot = take_snapshot([whole.batches], as_of=AS_OF)
    book, unclaimed = pack_book({"main": snapshot}, {"desk": ["gmx_v2:kestrel", "gmx_v2:osprey"]}, as_of=AS_OF)
    assert (unclaimed, book.failures) == ([], ())
    (portfolio,), (native,) = book.portfolios, native_today(book)
    assert native is not None
    assert {account.account_id for account in portfolio.accounts} == ACCOUNTS
    for number, account in enumerate(portfolio.accounts):
        equity, maintenance = (account.reported[f"reported_{name}"] for name in ("equity", "maintenance_margin"))
        assert native.equity[number] == pytest.approx(equity, rel=ENGINE_RELATIVE)
        assert native.maintenance[number] == pytest.approx(maintenance, rel=ENGINE_RELATIVE)
        assert native.initial[number] >= native.maintenance[number]
        assert not account.reported_parts


def test_the_minimum_in_dollars_holds_where_it_is_larger() -> None:
    def raised(body: Any) -> None:
        body["global"]["MIN_COLLATERAL_USD"] = str(usd("5"))

    snapshot = take_snapshot([normalized(desk(raised, "dataStore")).batches], as_of=AS_OF)
    book, _ = pack_book({"main": snapshot}, {"desk": ["gmx_v2"]}, as_of=AS_OF)
    (portfolio,), (native,) = book.portfolios, native_today(book)
    assert native is not None
    number = [account.account_id for account in portfolio.accounts].index(SOL_SHORT)
    assert native.maintenance[number] == pytest.approx(5, rel=ENGINE_RELATIVE)


def test_the_order_of_payloads_does_not_matter(whole: Normalized) -> None:
    other = normalized(desk()[::-1])
    assert other.failures == whole.failures
    assert other.batches == whole.batches


def test_the_adapter_is_registered() -> None:
    assert isinstance(find_adapter("gmx_v2"), Adapter)


def test_position_infos_and_data_store_values_give_the_same_costs(whole: Normalized) -> None:
    """Without its infos osprey's positions are computed from values; only the discount of the fees is then unknown."""

    def plain(payload: Payload) -> Payload:
        if payload.request != "getAccountPositionInfoList":
            return payload
        return replace(payload, request="getAccountPositions", body=[info["position"] for info in payload.body])

    result = normalized([plain(p) for p in desk() if p.request != "isPositionLiquidatable"])
    assert result.failures == []
    for account, size, factor in ((SOL_SHORT, Decimal("150.5"), "0.0007"), (ETH_SHORT, Decimal(520_000), "0.0007")):
        costs = []
        for of in (whole, result):
            rule_set = only(of, "accounts", account_id=account)["rule_set"]
            fixed = parse_parameters("fixed", only(of, "rule_sets", rule_set=rule_set, form="fixed")["parameters"])
            assert isinstance(fixed, Fixed)
            costs.append(fixed.equity)
        discount = size * Decimal(factor) / 20
        assert abs(costs[0] - costs[1] - discount) < Decimal("2e-6") * max(size / 1000, Decimal(1))
