"""Drift v2: payloads to canonical tables, every way to be wrong, and the exact mechanics against slow twins.

The payloads in `payloads/drift_v2` are written for this suite: decoded program accounts and answers of the gateway.
Recorded payloads are read where the folder of recorded material is at hand.
"""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.asset_book import read_asset_book
from adapters.drift_v2 import ADAPTER, FACTS, liquidation, mechanics
from adapters.drift_v2.decoded import camel
from adapters.drift_v2.mechanics import PerpMarket, PerpPosition, SpotMarket, SpotPosition, StrictPrice
from adapters.transport import Payload
from aggregator.errors import FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import DebtCharge, Fixed, RateOfSize, Verdict, WeightedValue, parse_parameters
from aggregator.schema.casting import table_from_rows
from aggregator.snapshot import take_snapshot
from tests.normalized_rows import check_canonical, failures_of, only, rows_of
from tests.payload_files import changed, read_payload
from tests.sample_drift_v2 import PARAMETERS, PAYLOADS

TESTS = Path(__file__).resolve().parent
BOOK = read_asset_book(TESTS.parent / "configs" / "assets.toml")
DATED = tomllib.loads((TESTS.parent / PARAMETERS).read_text(encoding="utf-8"))
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
NORTH, ISOLATED, ORDERS, SOUTH = (
    "drift_v2:north:0",
    "drift_v2:north:0:isolated:ETH-PERP",
    "drift_v2:north:1",
    "drift_v2:south:3",
)

# The program rounds every value and requirement to 1e-6 dollars; the engine does not. About a dozen of them here.
DUST = 12e-6
# float64 against exact rationals.
FLOAT = 1e-12

Body = Any


def fetched(request: str, file: str, owner: str, *, root: Path = TESTS / "payloads" / "drift_v2") -> Payload:
    return read_payload("drift_v2", root, request, file, owner)


def desk() -> dict[str, Payload]:
    return {file.removesuffix(".json"): fetched(request, file, owner) for request, file, owner in PAYLOADS}


def normalized(payloads: dict[str, Payload] | list[Payload]) -> Normalized:
    listed = list(payloads.values()) if isinstance(payloads, dict) else payloads
    return ADAPTER.normalize(listed, Context(BOOK, DATED))


def with_user(change: Callable[[Body], Any], *, file: str = "north_users", entry: int = 0) -> dict[str, Payload]:
    """The desk with one decoded user changed."""
    found = desk()
    user = (lambda body: body[entry]["account"]) if file == "north_users" else (lambda body: body)
    found[file] = changed(found[file], lambda body: change(user(body)))
    return found


def with_market(change: Callable[[Body], Any], kind: str, index: int) -> dict[str, Payload]:
    """The desk with one market's account changed."""
    found = desk()

    def of(body: Body) -> Body:
        listed = body if kind == "spot_markets" else [entry["account"] for entry in body["result"]]
        return next(market for market in listed if market["market_index"] == index)

    found[kind] = changed(found[kind], lambda body: change(of(body)))
    return found


def figures(result: Normalized, *, moved: float = 1.0) -> dict[str, tuple[float, float, float]]:
    """(equity, initial, maintenance) of every account that the engine computes, with all coins `moved` in price."""
    marks = result.batches["marks"].to_pylist()
    for mark in marks:
        if mark["subject"] != "USDC@solana" and mark["field"] in ("mark", "oracle", "index"):
            mark["value"] *= moved
    tables = result.batches | {"marks": table_from_rows("marks", marks)}
    snapshot = take_snapshot([tables], result.failures)
    accounts = sorted(row["account_id"] for row in snapshot.tables["accounts"])
    # An account's id is a prefix of its isolated ones' ids, so that all are one portfolio.
    book, _ = pack_book({"drift": snapshot}, {"desk": ["drift_v2:north", "drift_v2:south"]}, as_of=AS_OF)
    assert book.failures == ()
    [found] = native_today(book)
    assert found is not None
    assert set(accounts) >= {info.account_id for info in book.portfolios[0].accounts}
    return {
        info.account_id: (float(found.equity[i]), float(found.initial[i]), float(found.maintenance[i]))
        for i, info in enumerate(book.portfolios[0].accounts)
    }


# ----------------------------------------------------------------------------------------------------------------------
# The desk


def test_the_adapter_is_registered_and_says_what_it_covers() -> None:
    found = find_adapter("drift_v2")
    assert isinstance(found, Adapter)
    assert found.venue == "drift_v2"
    assert FACTS.title == "Drift v2"


def test_the_desk_is_read_without_a_failure_into_canonical_tables() -> None:
    result = normalized(desk())
    assert result.failures == []
    check_canonical(result)
    snapshot = take_snapshot([result.batches], result.failures, max_mark_gap=0.0)
    assert snapshot.failures == ()


def test_accounts_nodes_and_reported_figures() -> None:
    result = normalized(desk())
    accounts = {row["account_id"]: row for row in rows_of(result, "accounts")}
    assert set(accounts) == {NORTH, ISOLATED, ORDERS, SOUTH}
    for identity, row in accounts.items():
        assert (row["node"], row["settlement_asset"], row["chain"]) == (identity, "USD", "solana")
        assert (row["margin_mode"], row["parent_account_id"]) == (
            ("isolated", NORTH) if identity == ISOLATED else ("cross", None)
        )
    collateral, margin = desk()["north_collateral"].body, desk()["north_margin_info"].body
    assert accounts[NORTH]["reported_equity"] == Decimal(collateral["total"])
    assert accounts[NORTH]["reported_initial_margin"] == Decimal(margin["initial"])
    assert accounts[NORTH]["reported_maintenance_margin"] == Decimal(margin["maintenance"])
    assert accounts[ORDERS]["reported_equity"] is None
    price = only(result, "positions", account_id=NORTH, instrument_id="drift_v2:SOL-PERP")["reported_liquidation_price"]
    assert price == Decimal(desk()["north_position_info_0"].body["liquidationPrice"])


def test_balances_are_scaled_by_the_markets_indices() -> None:
    result = normalized(desk())
    held = {r["asset_id"]: (r["side"], r["quantity"]) for r in rows_of(result, "balances", account_id=NORTH)}
    assert held == {
        "USDC@solana": ("asset", Decimal(52_000)),
        "SOL@solana": ("asset", Decimal(350)),
        # a borrow rounds up: 4 wETH needed 3.976143140 of scaled balance at an index of 1.0060000007
        "WETH@solana": ("liability", Decimal("4.00000001")),
    }
    assert only(result, "balances", account_id=ISOLATED)["quantity"] == Decimal(6_000)
    assert only(result, "assets", asset_id="WETH@solana")["risk_factor"] == "ETH"


def test_a_position_is_counted_from_its_average_entry() -> None:
    result = normalized(desk())
    row = only(result, "positions", account_id=NORTH, instrument_id="drift_v2:BTC-PERP")
    assert (row["quantity"], row["entry_price"]) == (Decimal("1.2"), Decimal("60416.666667"))
    # quote amount of -72 478.765433 in all
    assert row["realized_pnl"] - row["quantity"] * row["entry_price"] == Decimal("-72478.765433")
    # (3 100 000 000 123 - 3 098 765 432 100) * 1.2 / 1e9, to the longs' cost, toward zero
    assert row["unsettled_funding"] == Decimal("-1.481481")
    settled = only(result, "positions", account_id=SOUTH, instrument_id="drift_v2:SOL-PERP")
    assert (settled["quantity"], settled["realized_pnl"]) == (0, Decimal(-310))


def test_rules_are_the_accounts_own() -> None:
    result = normalized(desk())

    def forms(account: str) -> list[Any]:
        rule_set = only(result, "accounts", account_id=account)["rule_set"]
        return [parse_parameters(r["form"], r["parameters"]) for r in rows_of(result, "rule_sets", rule_set=rule_set)]

    north = forms(NORTH)
    assert [type(form) for form in north] == [WeightedValue, RateOfSize, DebtCharge, Fixed, Verdict]
    assert north[1] == RateOfSize(law="integer_sqrt", orders="worst_side")
    assert north[3].maintenance == Decimal("0.03")  # three open orders at a cent
    assert north[4] == Verdict(liquidates_when="below")
    # 4 wETH at an imf factor of 0.07: 0.88 + sqrt(4) * 0.07 < 1.1 for maintenance, 0.96 + 0.14 = 1.1 < 1.2
    assert north[2].maintenance_rates == {"WETH@solana": Decimal("1.1")}
    assert north[2].initial_rates == {"WETH@solana": Decimal("1.2")}
    assert forms(ORDERS)[1].law == "linear"
    assert [type(form) for form in forms(ISOLATED)] == [WeightedValue, RateOfSize, Fixed, Verdict]


def test_weights_and_rates_of_what_is_held() -> None:
    result = normalized(desk())
    tiers = {
        (r["asset_id"], r["tier"]): (r["asset_weight_initial"], r["asset_weight_maintenance"])
        for r in rows_of(result, "collateral_tiers", rule_set="drift_v2:margin:north:0")
    }
    # 350 SOL at an imf factor of 0.024: 1.1 / (1 + sqrt(350) * 0.024) = 0.7591 is below both weights
    assert tiers["SOL@solana", 1] == (Decimal("0.7591"), Decimal("0.7591"))
    assert tiers["USDC@solana", 1] == (1, 1)
    assert tiers["drift_v2:SOL-PERP", 1][1] == Decimal("0.95")
    assert tiers["drift_v2:SOL-PERP", 2] == (0, Decimal("0.95"))  # profits beyond 100 USDC are no initial collateral
    # deposits of 10 001.23 BTC are worth 609.8 million, the weight starts to fall at 50 million
    btc = only(result, "collateral_tiers", rule_set="drift_v2:margin:south:3", asset_id="WBTC@solana")
    deposits = only(result, "market_state", market="WBTC@solana", field="deposits")["value"]
    scaled = floor(8_000 * 50_000_000 / (deposits * 60_970))
    assert btc["asset_weight_initial"] == min(Decimal(scaled) / 10**4, Decimal("0.75"))
    rates = only(result, "margin_tiers", rule_set="drift_v2:margin:north:0", market="drift_v2:BTC-PERP")
    assert (rates["initial_rate"], rates["size_coefficient"]) == (Decimal("0.1"), Decimal("0.03"))


def test_markets_that_the_asset_book_does_not_know_are_passed_over() -> None:
    result = normalized(desk())
    assert rows_of(result, "marks", subject="drift_v2:ELECTION-2024-BET") == []
    assert {r["asset_id"] for r in rows_of(result, "assets") if r["chain"]} == {
        f"{symbol}@solana" for symbol in ("USDC", "SOL", "WBTC", "WETH", "USDT")
    }
    assert only(result, "market_state", market="drift_v2", field="liquidation_margin_buffer_ratio")["value"] == 0.02
    assert only(result, "market_state", market="drift_v2:SOL-PERP", field="open_interest_long")["value"] == 410_000
    assert only(result, "marks", subject="USDC@solana", field="oracle")["value"] == 0.9999


def test_the_order_of_payloads_changes_nothing() -> None:
    forward, backward = normalized(list(desk().values())), normalized(list(desk().values())[::-1])
    assert forward.failures == backward.failures
    assert {n: t.to_pylist() for n, t in forward.batches.items()} == {
        n: t.to_pylist() for n, t in backward.batches.items()
    }


# ----------------------------------------------------------------------------------------------------------------------
# Engine and mechanics


def spots_of(user: Body, markets: Body) -> list[SpotPosition]:
    by_index, found = {market["market_index"]: market for market in markets}, []
    for held in user["spot_positions"]:
        if held["scaled_balance"] == "0" and not held["open_orders"]:
            continue
        market = by_index[held["market_index"]]
        history, borrow = market["historical_oracle_data"], held["balance_type"] == "Borrow"
        deposit_index, decimals = int(market["cumulative_deposit_interest"]), market["decimals"]
        spot = SpotMarket(
            held["market_index"],
            decimals,
            int(history["last_oracle_price"]),
            int(history["last_oracle_price_twap_5min"]),
            market["initial_asset_weight"],
            market["maintenance_asset_weight"],
            market["initial_liability_weight"],
            market["maintenance_liability_weight"],
            market["imf_factor"],
            int(market["scale_initial_asset_weight_start"]),
            int(market["deposit_balance"]) * deposit_index // 10 ** (19 - decimals),
        )
        index = int(market["cumulative_borrow_interest"]) if borrow else deposit_index
        amount = mechanics.token_amount(int(held["scaled_balance"]), index, decimals, is_borrow=borrow)
        orders = int(held["open_bids"]), int(held["open_asks"]), held["open_orders"]
        found.append(SpotPosition(spot, amount, *orders))
    return found


def perps_of(user: Body, markets: Body, usdc_index: int) -> list[PerpPosition]:
    by_index, found = {market["market_index"]: market for market in markets}, []
    for held in user["perp_positions"]:
        base, quote = int(held["base_asset_amount"]), int(held["quote_asset_amount"])
        if not (base or quote or held["open_orders"] or held["open_asks"] != "0" or held["open_bids"] != "0"):
            continue
        market = by_index[held["market_index"]]
        amm = market["amm"]
        price = int(amm["historical_oracle_data"]["last_oracle_price"])
        pnl = int(amm["base_asset_amount_with_amm"]) * price // 10**9 + int(amm["quote_asset_amount"])
        perp = PerpMarket(
            price,
            market["margin_ratio_initial"],
            market["margin_ratio_maintenance"],
            market["imf_factor"],
            market["unrealized_pnl_initial_asset_weight"],
            market["unrealized_pnl_maintenance_asset_weight"],
            market["unrealized_pnl_imf_factor"],
            int(market["unrealized_pnl_max_imbalance"]),
            pnl,
        )
        rate = int(amm["cumulative_funding_rate_long" if base > 0 else "cumulative_funding_rate_short"])
        funding = mechanics.funding_payment(rate, int(held["last_cumulative_funding_rate"]), base) if base else 0
        orders = int(held["open_bids"]), int(held["open_asks"]), held["open_orders"]
        deposit = int(held["isolated_position_scaled_balance"]) * usdc_index // 10**13
        isolated = deposit if held["position_flag"] & 1 else None
        found.append(PerpPosition(perp, base, quote, *orders, funding, held["max_margin_ratio"], isolated))
    return found


def snake(value: Any) -> Any:
    """A body with the field names that the other payloads have, of one in camel case."""
    names = {camel(name): name for name in SNAKES}
    if isinstance(value, dict):
        return {names.get(key, key): snake(entry) for key, entry in value.items()}
    return [snake(entry) for entry in value] if isinstance(value, list) else value


SNAKES = (
    "spot_positions", "perp_positions", "scaled_balance", "open_bids", "open_asks", "open_orders", "market_index",
    "balance_type", "base_asset_amount", "quote_asset_amount", "last_cumulative_funding_rate", "max_margin_ratio",
    "isolated_position_scaled_balance", "position_flag", "sub_account_id",
)  # fmt: skip


def program_margin(found: dict[str, Payload], account: str, level: str) -> mechanics.Margin:
    """An account's figures by the program's integers; strict for the initial level."""
    _, owner, number, *isolated = account.split(":")
    body = found["north_users"].body if owner == "north" else [{"account": snake(found["south_user"].body)}]
    user = next(entry["account"] for entry in body if entry["account"]["sub_account_id"] == int(number))
    spots, markets = found["spot_markets"].body, [entry["account"] for entry in found["perp_markets"].body["result"]]
    usdc = spots[0]["historical_oracle_data"]
    margin = mechanics.account_margin(
        spots_of(user, spots),
        perps_of(user, markets, int(spots[0]["cumulative_deposit_interest"])),
        "initial" if level == "initial" else "maintenance",
        quote_price=StrictPrice(int(usdc["last_oracle_price"]), int(usdc["last_oracle_price_twap_5min"])),
        strict=level == "initial",
        max_margin_ratio=user["max_margin_ratio"],
    )
    return next(iter(margin.isolated.values())) if isolated else margin.cross


def assert_engine_is_the_program(found: dict[str, Payload]) -> None:
    result = normalized(found)
    assert result.failures == []
    of_engine = figures(result)
    assert set(of_engine) == {NORTH, ISOLATED, ORDERS, SOUTH}
    for account, (equity, initial, needed) in of_engine.items():
        maintenance, first = (program_margin(found, account, level) for level in ("maintenance", "initial"))
        assert equity == pytest.approx(maintenance.total_collateral / 1e6, rel=FLOAT, abs=DUST), account
        assert needed == pytest.approx(maintenance.requirement / 1e6, rel=FLOAT, abs=DUST), account
        free = (first.total_collateral - first.requirement) / 1e6
        assert equity - initial == pytest.approx(free, rel=FLOAT, abs=DUST), account


def test_the_engine_agrees_with_the_program() -> None:
    assert_engine_is_the_program(desk())


def at_prices(factor: int) -> dict[str, Payload]:
    """The desk with the oracle prices of everything but USDC at `factor` thousandths."""
    found = desk()

    def moved(body: Body) -> None:
        markets = body if isinstance(body, list) else [entry["account"]["amm"] for entry in body["result"]]
        for market in markets:
            history = market["historical_oracle_data"]
            if market.get("market_index", 1):
                history["last_oracle_price"] = str(int(history["last_oracle_price"]) * factor // 1000)

    found["spot_markets"] = changed(found["spot_markets"], moved)
    found["perp_markets"] = changed(found["perp_markets"], moved)
    return found


@pytest.mark.parametrize("factor", [700, 1300])
def test_the_engine_agrees_with_the_program_at_other_prices(factor: int) -> None:
    # the account's rule set is built anew, with other weights, worst sides and signs of profits
    assert_engine_is_the_program(at_prices(factor))


@pytest.mark.parametrize("factor", [600, 900, 1100, 1500])
def test_todays_rules_hold_when_prices_move(factor: int) -> None:
    # the rule sets of today on moved prices, as in a scenario: what is free of maintenance is the program's there
    result, there = normalized(desk()), at_prices(factor)
    for account, (equity, _, needed) in figures(result, moved=factor / 1000).items():
        margin = program_margin(there, account, "maintenance")
        free = (margin.total_collateral - margin.requirement) / 1e6
        assert equity - needed == pytest.approx(free, rel=FLOAT, abs=DUST), account


def test_the_gateways_figures_are_those_of_the_decoded_account() -> None:
    equity, _, maintenance = figures(normalized(desk()))[NORTH]
    row = only(normalized(desk()), "accounts", account_id=NORTH)
    assert equity == pytest.approx(float(row["reported_equity"]), abs=DUST)
    assert maintenance == pytest.approx(float(row["reported_maintenance_margin"]), abs=DUST)


def test_a_position_in_settlement_is_worth_its_expiry_price_and_needs_no_margin() -> None:
    def expired(market: Body) -> None:
        market.update(status={"settlement": {}}, expiry_price="3000000000")

    result = normalized(with_market(expired, "perp_markets", 2))
    assert result.failures == []
    row = only(result, "positions", account_id=ISOLATED)
    # -49 500 + 15 * 3000 in quote
    assert (row["quantity"], row["realized_pnl"]) == (0, Decimal(-4_500))
    equity, _, maintenance = figures(result)[ISOLATED]
    assert equity == pytest.approx((6_000 - 4_500 - 7.314814) * 0.9999, abs=DUST)
    assert maintenance == pytest.approx(0.01)  # the charge for an open order stays
    assert rows_of(result, "open_orders", account_id=SOUTH) == []


def test_usdc_of_an_account_of_pool_one_does_not_count() -> None:
    def pooled(user: Body) -> None:
        user["pool_id"] = 1
        user["spot_positions"] = user["spot_positions"][:1]
        user["perp_positions"] = []

    result = normalized(with_user(pooled))
    assert result.failures == []
    assert only(result, "balances", account_id=NORTH)["collateral_enabled"] is False
    assert figures(result)[NORTH] == (0, 0, 0)
    others = normalized(with_user(lambda user: user.update(pool_id=1)))
    assert {f.reason for f in failures_of(others, NORTH)} == {FailureReason.INCONSISTENT}


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        (lambda u: u.pop("spot_positions"), "spot_positions", "missing_field"),
        (lambda u: u.update(perp_positions={}), "perp_positions", "malformed"),
        (lambda u: u["spot_positions"].append(3), "spot_positions[8]", "malformed"),
        (lambda u: u["spot_positions"][1].update(scaled_balance="x"), "spot_positions[1].scaled_balance",
         "not_a_number"),
        (lambda u: u["spot_positions"][1].update(scaled_balance="-5"), "spot_positions[1].scaled_balance",
         "out_of_range"),
        (lambda u: u["spot_positions"][1].update(scaled_balance=1.5), "spot_positions[1].scaled_balance",
         "not_a_number"),
        (lambda u: u["spot_positions"][1].pop("balance_type"), "spot_positions[1].balance_type", "missing_field"),
        (lambda u: u["spot_positions"][1].update(balance_type={"pledge": {}}), "spot_positions[1].balance_type",
         "unsupported"),
        (lambda u: u["spot_positions"][1].update(market_index=77), "spot_positions[1].market_index",
         "unknown_market"),
        (lambda u: u["spot_positions"][1].update(market_index=12), "spot_positions[1].market_index",
         "unknown_asset"),
        (lambda u: u["spot_positions"][1].update(open_bids="-5", open_orders=1), "spot_positions[1].open_bids",
         "out_of_range"),
        (lambda u: u["perp_positions"][0].pop("quote_asset_amount"), "perp_positions[0].quote_asset_amount",
         "missing_field"),
        (lambda u: u["perp_positions"][0].update(base_asset_amount="NaN"), "perp_positions[0].base_asset_amount",
         "not_a_number"),
        (lambda u: u["perp_positions"][0].pop("last_cumulative_funding_rate"),
         "perp_positions[0].last_cumulative_funding_rate", "missing_field"),
        (lambda u: u["perp_positions"][0].update(market_index=99), "perp_positions[0].market_index",
         "unknown_market"),
        (lambda u: u["perp_positions"][0].update(market_index=36), "perp_positions[0].market_index",
         "unknown_market"),
        (lambda u: u["perp_positions"][0].update(lp_shares="5"), "perp_positions[0].lp_shares", "unsupported"),
        (lambda u: u["perp_positions"][0].update(isolated_position_scaled_balance="5"),
         "perp_positions[0].isolated_position_scaled_balance", "inconsistent"),
        (lambda u: u.update(margin_mode="Turbo"), "margin_mode", "unsupported"),
        (lambda u: u.update(pool_id="one"), "pool_id", "not_a_number"),
        (lambda u: u.update(max_margin_ratio=None), "max_margin_ratio", "missing_field"),
        (lambda u: u.pop("max_margin_ratio"), "max_margin_ratio", "missing_field"),
        (lambda u: u.pop("margin_mode"), "margin_mode", "missing_field"),
        (lambda u: u.pop("pool_id"), "pool_id", "missing_field"),
        (lambda u: u["perp_positions"][0].update(base_asset_amount="0", quote_asset_amount=None, open_orders=0,
                                                 open_bids="0", open_asks="0"),
         "perp_positions[0].quote_asset_amount", "missing_field"),
        (lambda u: u["perp_positions"][0].pop("isolated_position_scaled_balance"),
         "perp_positions[0].isolated_position_scaled_balance", "missing_field"),
        (lambda u: u["perp_positions"][0].pop("position_flag"), "perp_positions[0].position_flag", "missing_field"),
        (lambda u: u["perp_positions"][0].pop("max_margin_ratio"), "perp_positions[0].max_margin_ratio",
         "missing_field"),
        (lambda u: u["perp_positions"][0].update(position_flag=1, isolated_position_scaled_balance=None),
         "perp_positions[0].isolated_position_scaled_balance", "missing_field"),
    ],
)  # fmt: skip
def test_a_bad_field_makes_the_account_incomplete(change: Callable[[Body], Any], path: str, reason: str) -> None:
    result = normalized(with_user(change))
    assert [(f.reason, f.path) for f in failures_of(result, NORTH)] == [(reason, f"[0].account.{path}")]
    assert len(result.failures) == 1
    assert only(result, "accounts", account_id=NORTH)["reported_equity"] is not None
    assert take_snapshot([result.batches], result.failures).incomplete == {NORTH}


@pytest.mark.parametrize(
    ("kind", "index", "key"),
    [
        *(("spot_markets", 1, key) for key in ("status", "pool_id")),
        *(
            ("perp_markets", 0, key)
            for key in (
                "status",
                "contract_type",
                "pool_id",
                "quote_spot_market_index",
                "high_leverage_margin_ratio_initial",
                "high_leverage_margin_ratio_maintenance",
            )
        ),
    ],
)
def test_a_market_that_does_not_say_what_it_always_says(kind: str, index: int, key: str) -> None:
    """One in settlement would be valued as an active one, a prediction market as a perpetual."""
    result = normalized(with_market(lambda market: market.pop(key), kind, index))
    findings = [f for f in failures_of(result, None) if f.reason == FailureReason.MISSING_FIELD]
    assert [f.path.rpartition(".")[2] for f in findings] == [key]
    assert failures_of(result, NORTH)


def test_a_position_of_the_older_layout_does_not_say_whether_it_is_isolated() -> None:
    def older(user: Body) -> None:
        for position in user["perp_positions"]:
            if int(position["position_flag"]) or int(position["max_margin_ratio"]):
                continue
            position["lp_shares"] = "0"
            for key in ("position_flag", "isolated_position_scaled_balance", "max_margin_ratio"):
                position.pop(key)

    before, after = normalized(desk()), normalized(with_user(older))
    assert failures_of(after, NORTH) == []
    assert figures(after)[NORTH] == figures(before)[NORTH]


def test_entries_of_one_market_that_come_twice_are_rejected() -> None:
    result = normalized(with_user(lambda u: u["spot_positions"].append(u["spot_positions"][1])))
    assert [f.reason for f in failures_of(result, NORTH)] == [FailureReason.DUPLICATE] * 2
    assert {r["asset_id"] for r in rows_of(result, "balances", account_id=NORTH)} == {"USDC@solana", "WETH@solana"}


def test_high_leverage_mode_is_refused_where_a_held_market_has_it() -> None:
    refused = normalized(with_user(lambda u: u.update(margin_mode={"highLeverage": {}})))
    assert [(f.reason, f.path) for f in failures_of(refused, NORTH)] == [(FailureReason.UNSUPPORTED, "margin_mode")]
    # the other sub-account holds ETH-PERP alone, which has no such mode
    plain = normalized(with_user(lambda u: u.update(margin_mode="HighLeverage"), entry=1))
    assert plain.failures == []


@pytest.mark.parametrize("number", [None, "two", -1, 70_000, 0.5])
def test_a_user_without_a_usable_number_is_a_failure_of_its_owner(number: Any) -> None:
    # without a row of its own the failure falls on every portfolio that maps one of the owner's accounts
    result = normalized(with_user(lambda u: u.update(subAccountId=number), file="south_user"))
    assert [f.account_id for f in result.failures] == ["drift_v2:south"]
    assert rows_of(result, "accounts", owner="south") == []
    assert take_snapshot([result.batches], result.failures).incomplete == {"drift_v2:south"}


@pytest.mark.parametrize("body", [None, "text", 3, [7], {"data": ["AAAA", "base64"]}, [{"account": {"data": "AA=="}}]])
def test_a_body_of_another_shape_is_a_failure_of_its_account(body: Any) -> None:
    found = desk()
    found["south_user"] = replace(found["south_user"], body=body)
    result = normalized(found)
    assert [f.account_id for f in result.failures] == ["drift_v2:south"]
    assert result.failures[0].reason in (
        FailureReason.MALFORMED,
        FailureReason.UNSUPPORTED,
        FailureReason.MISSING_FIELD,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("decimals"), "missing_field"),
        (lambda m: m.update(decimals=40), "out_of_range"),
        (lambda m: m.update(name=[300]), "malformed"),
        (lambda m: m.update(name=" "), "malformed"),
        (lambda m: m["historical_oracle_data"].update(last_oracle_price="0"), "out_of_range"),
        (lambda m: m["historical_oracle_data"].update(last_oracle_price_twap_5min="-2"), "out_of_range"),
        (lambda m: m.pop("historical_oracle_data"), "missing_field"),
        (lambda m: m.update(initial_asset_weight=10_001), "out_of_range"),
        (lambda m: m.update(cumulative_deposit_interest="x"), "not_a_number"),
        (lambda m: m.update(status="Dancing"), "unsupported"),
    ],
)
def test_a_bad_spot_market_fails_itself_and_whoever_holds_it(change: Callable[[Body], Any], reason: str) -> None:
    result = normalized(with_market(change, "spot_markets", 3))
    assert [f.reason for f in failures_of(result, None)] == [reason]
    for account in (ORDERS, SOUTH):
        assert [f.reason for f in failures_of(result, account)] == [reason]
    assert failures_of(result, NORTH) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("amm"), "missing_field"),
        (lambda m: m["amm"].pop("cumulative_funding_rate_long"), "missing_field"),
        (lambda m: m["amm"]["historical_oracle_data"].update(last_oracle_price="-1"), "out_of_range"),
        (lambda m: m.update(margin_ratio_initial=0), "inconsistent"),
        (lambda m: m.update(margin_ratio_maintenance=2000), "inconsistent"),
        (lambda m: m.update(margin_ratio_initial=20_000), "out_of_range"),
        (lambda m: m.update(quote_spot_market_index=5), "unsupported"),
        (lambda m: m.update(contract_type={"prediction": {}}), "unsupported"),
        (lambda m: m.update(contract_type=9), "unsupported"),
    ],
)
def test_a_bad_perpetual_market_fails_whoever_holds_it(change: Callable[[Body], Any], reason: str) -> None:
    result = normalized(with_market(change, "perp_markets", 1))
    for account in (NORTH, SOUTH):
        assert [f.reason for f in failures_of(result, account)] == [reason]
    assert failures_of(result, ORDERS) == []


def test_markets_that_come_twice_are_rejected() -> None:
    found = desk()
    found["perp_markets"] = changed(found["perp_markets"], lambda body: body["result"].append(body["result"][0]))
    result = normalized(found)
    assert {f.reason for f in result.failures} == {FailureReason.DUPLICATE}
    assert {f.account_id for f in result.failures} == {None, NORTH, SOUTH}


def test_without_the_market_of_usdc_nothing_settles() -> None:
    found = desk()
    found["spot_markets"] = changed(found["spot_markets"], lambda body: body.pop(0))
    result = normalized(found)
    assert {f.account_id for f in result.failures} == {NORTH, ORDERS, SOUTH}
    assert {f.reason for f in result.failures} == {FailureReason.UNKNOWN_MARKET}


def test_two_answers_to_one_question_are_both_rejected() -> None:
    found = desk()
    again = replace(found["south_user"], name="again.json")
    users = normalized([*found.values(), again])
    assert [(f.reason, f.account_id) for f in users.failures] == [(FailureReason.DUPLICATE, SOUTH)] * 2
    assert len(rows_of(users, "accounts", account_id=SOUTH)) == 1
    assert take_snapshot([users.batches], users.failures).incomplete == {SOUTH}
    told = replace(found["north_collateral"], name="again.json", request="collateral?subAccountId=0")
    gateway = normalized([*found.values(), told])
    assert [(f.reason, f.account_id) for f in gateway.failures] == [(FailureReason.DUPLICATE, None)] * 2
    assert only(gateway, "accounts", account_id=NORTH)["reported_equity"] is None
    markets = normalized([*found.values(), replace(found["spot_markets"], name="again.json")])
    assert [f.reason for f in failures_of(markets, None)][:2] == [FailureReason.DUPLICATE] * 2


def test_unknown_requests_and_missing_owners_are_named() -> None:
    found = desk()
    stray = [replace(found["south_user"], account=""), replace(found["south_user"], request="orders")]
    result = normalized([*found.values(), *stray])
    assert {(f.reason, f.path) for f in result.failures} == {
        (FailureReason.MISSING_FIELD, "account"),
        (FailureReason.UNSUPPORTED, "request"),
    }


def test_bad_figures_of_the_gateway_stop_nobody() -> None:
    found = desk()
    found["north_collateral"] = replace(found["north_collateral"], body={"total": "NaN"})
    found["north_margin_info"] = replace(found["north_margin_info"], body={"initial": "5"})
    found["north_position_info_0"] = replace(found["north_position_info_0"], body={"marketIndex": 4})
    found["markets"] = replace(found["markets"], body={"spot": 3})
    result = normalized(found)
    assert {(f.reason, f.account_id) for f in result.failures} == {
        (FailureReason.NOT_A_NUMBER, None),
        (FailureReason.MISSING_FIELD, None),
        (FailureReason.INCONSISTENT, None),
        (FailureReason.MALFORMED, None),
    }
    assert set(figures(result)) == {NORTH, ISOLATED, ORDERS, SOUTH}


def test_the_gateway_alone_leaves_an_account_incomplete_with_what_it_holds() -> None:
    found = desk()
    holdings = {
        "spot": [{"amount": "0.5", "type": "deposit", "marketIndex": 3}, {"amount": "9", "type": "borrow"}],
        "perp": [{"amount": "-3.3", "averageEntry": "102.2629", "marketIndex": 0}],
    }
    positions = replace(found["north_collateral"], account="west", request="/v2/positions:2", body=holdings)
    collateral = replace(found["north_collateral"], account="west", request="/v2/collateral:2")
    result = normalized([found["markets"], found["spot_markets"], positions, collateral])
    assert [(f.reason, f.path) for f in failures_of(result, "drift_v2:west:2")] == [
        (FailureReason.MISSING_PARAMETER, "user"),
        (FailureReason.MISSING_FIELD, "spot[1].marketIndex"),
    ]
    assert only(result, "balances", account_id="drift_v2:west:2")["asset_id"] == "WBTC@solana"
    assert only(result, "positions", account_id="drift_v2:west:2")["instrument_id"] == "drift_v2:SOL-PERP"
    assert only(result, "accounts")["reported_equity"] == Decimal(found["north_collateral"].body["total"])
    snapshot = take_snapshot([result.batches], result.failures)
    assert snapshot.incomplete == {"drift_v2:west:2"}


# ----------------------------------------------------------------------------------------------------------------------
# Recorded payloads


def test_recorded_payloads_are_read(recorded: Path) -> None:
    root = recorded / "payloads" / "drift_v2"
    assert {path.name for path in root.glob("*.json")} == {"gateway_examples.json"}
    result = normalized([fetched("gateway", "gateway_examples.json", "examples", root=root)])
    account = "drift_v2:examples:0"
    # The examples are of several accounts: a position whose list is empty, and markets that nothing else names.
    assert {(f.reason, f.path, f.account_id) for f in result.failures} == {
        (FailureReason.MISSING_PARAMETER, "user", account),
        (FailureReason.UNKNOWN_MARKET, "GET /v2/positions.spot[0].marketIndex", account),
        (FailureReason.UNKNOWN_MARKET, "GET /v2/positions.spot[1].marketIndex", account),
        (FailureReason.INCONSISTENT, "GET /v2/positionInfo/0.amount", account),
    }
    row = only(result, "accounts")
    assert (row["reported_equity"], row["reported_initial_margin"], row["reported_maintenance_margin"]) == (
        Decimal("1661.195815"),
        Decimal("141.414685"),
        Decimal("132.522189"),
    )
    assert only(result, "market_state", field="open_interest")["value"] == 662_876


# ----------------------------------------------------------------------------------------------------------------------
# Mechanics

SIZES = st.integers(0, 10**15)
FACTORS = st.just(0) | st.integers(1, 100_000)


@given(SIZES, FACTORS, st.integers(0, 20_000))
@settings(max_examples=100)
def test_premium_and_discount_are_their_rational_twins(size: int, factor: int, weight: int) -> None:
    root = 0
    while (root + 1) ** 2 <= min(10 * size + 1, 10**6):  # the integer root by counting, where that is quick
        root += 1
    if 10 * size + 1 <= 10**6:
        assert mechanics.size_root(size) == root
    root = mechanics.size_root(size)
    assert root**2 <= 10 * size + 1 < (root + 1) ** 2
    premium = weight if factor == 0 else max(weight, weight - weight // 5 + floor(Fraction(root * factor, 10**7)))
    assert mechanics.size_premium(size, factor, weight) == premium
    shrunk = floor(Fraction(1_100_000 * 10**4, 10**6 + floor(Fraction(root * factor, 10**5))))
    assert mechanics.size_discount(size, factor, weight) == (weight if factor == 0 else min(weight, shrunk))


@given(SIZES, SIZES, FACTORS, st.integers(1, 10_000), st.integers(1, 10_000))
@settings(max_examples=100)
def test_rates_never_fall_with_size_and_weights_never_rise(
    size: int, more: int, factor: int, high: int, low: int
) -> None:
    high, low = max(high, low), min(high, low)
    market = PerpMarket(10**6, high, low, factor)
    for level in ("initial", "fill", "maintenance"):
        assert mechanics.margin_ratio(market, size + more, level) >= mechanics.margin_ratio(market, size, level)
    ratios = [mechanics.margin_ratio(market, size, level) for level in ("initial", "fill", "maintenance")]
    assert ratios == sorted(ratios, reverse=True)
    assert mechanics.size_discount(size + more, factor, high) <= mechanics.size_discount(size, factor, high)


def slow_worst_fill(position: SpotPosition, level: Any) -> Fraction:
    """Free collateral of the worse of both fills, before rounding."""
    market, contributions = position.market, []
    unit = Fraction(market.price, 10**market.decimals)
    for orders in (position.open_bids, position.open_asks):
        amount = position.amount + orders
        weight = (
            mechanics.asset_weight(market, amount, market.price, level)
            if amount > 0
            else mechanics.liability_weight(market, amount, level)
        )
        contributions.append(amount * unit * Fraction(weight, 10**4) - orders * unit)
    return min(contributions)


SPOTS = st.builds(
    SpotPosition,
    st.builds(
        SpotMarket,
        st.integers(1, 9),
        st.sampled_from([5, 6, 8, 9, 11]),
        st.integers(1, 10**12),
        st.none(),
        st.integers(0, 9_000),
        st.integers(9_000, 10_000),
        st.integers(11_000, 20_000),
        st.integers(10_000, 11_000),
        FACTORS,
        st.just(0) | st.integers(1, 10**14),
        st.integers(0, 10**15),
    ),
    st.integers(-(10**14), 10**14),
    st.just(0) | st.integers(0, 10**14),
    st.just(0) | st.integers(-(10**14), 0),
    st.integers(0, 5),
    st.just(True),
)


@given(SPOTS, st.sampled_from(["initial", "fill", "maintenance"]))
@settings(max_examples=100)
def test_the_worst_fill_is_its_slow_twin(position: SpotPosition, level: Any) -> None:
    worst = mechanics.worst_spot_fill(position, level)
    assert abs(worst.contribution - slow_worst_fill(position, level)) <= 4
    # orders only ever take from free collateral
    bare = mechanics.worst_spot_fill(position._replace(open_bids=0, open_asks=0), level)
    assert worst.contribution <= bare.contribution + 4


PERPS = st.builds(
    PerpPosition,
    st.builds(
        PerpMarket,
        st.integers(1, 10**11),
        st.integers(500, 10_000),
        st.integers(1, 500),
        FACTORS,
        st.integers(0, 10_000),
        st.integers(0, 10_000),
        FACTORS,
        st.just(0) | st.integers(1, 10**12),
        st.integers(-(10**13), 10**13),
        st.just(False),
        st.none(),
        st.just(0),
        st.just(0),
    ),
    st.integers(-(10**13), 10**13),
    st.integers(-(10**15), 10**15),
    st.just(0) | st.integers(0, 10**13),
    st.just(0) | st.integers(-(10**13), 0),
    st.integers(0, 5),
    st.integers(-(10**9), 10**9),
    st.just(0),
    st.none(),
)
QUOTE = StrictPrice(10**6)


@given(PERPS)
@settings(max_examples=100)
def test_initial_margin_is_at_least_maintenance_margin(position: PerpPosition) -> None:
    initial, maintenance = (mechanics.perp_margin(position, level, QUOTE) for level in ("initial", "maintenance"))
    assert initial.requirement >= maintenance.requirement
    assert initial.weighted_pnl <= mechanics.MAX_INITIAL_PROFIT
    assert maintenance.weighted_pnl <= max(maintenance.unrealized_pnl, 0)
    if maintenance.unrealized_pnl <= 0:
        assert initial.weighted_pnl == maintenance.weighted_pnl == maintenance.unrealized_pnl
    # orders only ever add
    bare = mechanics.perp_margin(position._replace(open_bids=0, open_asks=0, open_orders=0), "maintenance", QUOTE)
    assert maintenance.requirement >= bare.requirement


@given(st.lists(SPOTS, max_size=3), st.lists(PERPS, max_size=3), st.integers(0, 2_000), st.permutations(range(3)))
@settings(max_examples=60)
def test_sums_do_not_depend_on_order_and_the_buffer_only_asks_for_more(
    spots: list[SpotPosition], perps: list[PerpPosition], buffer: int, order: list[int]
) -> None:
    one = mechanics.account_margin(spots, perps, "maintenance", quote_price=QUOTE, buffer=buffer).cross
    turned = [spots[i] for i in order if i < len(spots)], [perps[i] for i in order if i < len(perps)]
    assert mechanics.account_margin(*turned, "maintenance", quote_price=QUOTE, buffer=buffer).cross == one
    assert one.requirement_plus_buffer >= one.requirement
    assert one.total_collateral_plus_buffer <= one.total_collateral
    without = mechanics.account_margin(spots, perps, "maintenance", quote_price=QUOTE).cross
    assert (without.total_collateral, without.requirement) == (one.total_collateral, one.requirement)
    assert without.exits_liquidation == without.meets_requirement
    assert one.shortage >= without.shortage
    assert one.free_collateral == max(one.total_collateral - one.requirement, 0)


@given(st.integers(0, 10**18), st.integers(10**10, 10**12), st.integers(0, 18))
@settings(max_examples=60)
def test_borrows_round_up_and_deposits_down(scaled: int, interest: int, decimals: int) -> None:
    exact = Fraction(scaled * interest, 10 ** (19 - decimals))
    deposit = mechanics.token_amount(scaled, interest, decimals, is_borrow=False)
    borrow = mechanics.token_amount(scaled, interest, decimals, is_borrow=True)
    assert 0 <= exact - deposit < 1
    assert 0 <= -borrow - exact < 1
    price = 123_456
    assert mechanics.token_value(borrow, decimals, price) <= -mechanics.token_value(deposit, decimals, price)


@given(PERPS, st.integers(-(10**14), 10**14))
@settings(max_examples=100)
def test_the_liquidation_price_is_where_collateral_meets_the_requirement(position: PerpPosition, other: int) -> None:
    price = liquidation.perp_liquidation_price(position, other_free_collateral=other)
    if price is None:
        return
    assert price > 0
    market = position.market
    base, fixed = Fraction(position.base_asset_amount, 10**9), position.quote_asset_amount + position.unsettled_funding
    profit = base * price + fixed
    weighted = profit * Fraction(market.unrealized_pnl_maintenance_asset_weight, 10**4) if profit > 0 else profit
    worst = Fraction(abs(mechanics.worst_liability(position)[0]), 10**9) * price
    ratio = mechanics.margin_ratio(market, int(worst / price * 10**9), "maintenance")
    assert other + weighted == worst * Fraction(ratio, 10**4) + 10_000 * position.open_orders


def test_high_leverage_ratios_between_the_mode_and_the_ordinary_ones() -> None:
    # perp_market.rs get_margin_ratio: ordinary 20 %, mode 10 % / 5 %; by hand, no figure of the venue was at hand
    market = PerpMarket(10**8, 2_000, 1_000, 1_000, high_leverage_ratio_initial=1_000,
                        high_leverage_ratio_maintenance=500)  # fmt: skip

    def ratio(size: int, level: Any = "initial") -> int:
        return mechanics.margin_ratio(market, size, level, high_leverage=True)

    assert ratio(0) == 1_000  # unbounded premium 1600, 100 % of the discount
    # sqrt(10 * 1e11) = 1e6: premium 1600 + 100 = 1700, so 1 - 300 / 400 of the way from 1000 to 2000
    assert ratio(10**11) == 1_250
    assert ratio(10**12) == 1_000 + 1_000 * 790_000 // 10**6  # 1600 + 316
    assert ratio(16 * 10**11) == 1_000  # exactly the ordinary ratio: the mode's own
    assert ratio(10**13) == 2_600
    assert ratio(10**11, "maintenance") == 500
    assert mechanics.margin_ratio(market, 10**11, "initial") == 2_000
    assert liquidation.base_liquidator_fee(50_000, 500) == 40_000
    assert liquidation.base_liquidator_fee(30_000, 500) == 30_000
    assert liquidation.max_liquidation_fee(20_000, 500) == 50_000


def test_prediction_markets_and_settlement() -> None:
    market = PerpMarket(250_000, 10_000, 9_999, is_prediction=True)
    assert mechanics.perp_liability(-(10**9), 250_000, is_prediction=True) == 750_000
    assert mechanics.perp_liability(10**9, 250_000, is_prediction=True) == 250_000
    # two bids of one each make a short of one a long of one: 0.25 against 0.75 as it stands
    position = PerpPosition(market, -(10**9), 750_000, open_bids=2 * 10**9)
    assert mechanics.worst_liability(position) == (-(10**9), 750_000)
    settled = market._replace(is_prediction=False, expiry_price=0)
    margin = mechanics.perp_margin(PerpPosition(settled, 10**9, -(10**6)), "maintenance", QUOTE)
    assert (margin.requirement, margin.weighted_pnl) == (0, -(10**6))
    assert liquidation.perp_liquidation_price(position, other_free_collateral=0) is None


def test_shares_and_fees_of_a_liquidation() -> None:
    share = {"last_active_slot": 1_000, "initial_pct": 1_000, "duration": 150}
    million = 10**12
    assert liquidation.max_pct_to_liquidate(million, slot=1_000, **share) == 1_000
    assert liquidation.max_pct_to_liquidate(million, slot=1_075, **share) == 6_000
    assert liquidation.max_pct_to_liquidate(million, slot=2_000, **share) == 10_000
    # half of it is freed already: of 2 million in all 60 % may be, 20 % of what is left
    assert liquidation.max_pct_to_liquidate(million, slot=1_075, margin_freed=million, **share) == 2_000
    assert liquidation.max_pct_to_liquidate(million, slot=1_000, margin_freed=million, **share) == 0
    assert liquidation.max_pct_to_liquidate(49_999_999, slot=1_000, **share) == 10_000
    assert liquidation.max_pct_to_liquidate(million, slot=1_000, **(share | {"duration": 0})) == 10_000
    slots = {"last_active_slot": 0}
    assert liquidation.liquidation_fee(100, 10_000, current_slot=1_499, **slots) == 100
    assert liquidation.liquidation_fee(100, 10_000, current_slot=1_500, **slots) == 1_600


def test_amounts_that_no_liquidation_can_cover() -> None:
    terms = {"margin_ratio": 500, "liquidation_fee": 50_000, "if_liquidation_fee": 0, "oracle_price": 10**8}
    assert liquidation.base_to_cover_shortage(10**7, **terms) is None
    assert liquidation.base_to_cover_shortage(10**7, **(terms | {"liquidation_fee": 0, "oracle_price": 0})) is None
    fees = terms | {"liquidation_fee": 0, "if_liquidation_fee": 60_000}
    assert liquidation.base_to_cover_shortage(10**7, **fees) is None
    weights = {"asset_weight": 9_000, "asset_multiplier": 10**6, "liability_weight": 9_000, "if_fee": 0}
    weights |= {"liability_multiplier": 10**6, "liability_decimals": 6, "liability_price": 10**6}
    assert liquidation.liability_to_cover_shortage(10**6, **weights) is None
    assert liquidation.liability_to_cover_shortage(0, **(weights | {"liability_weight": 12_000})) == 1
    costly = weights | {"liability_weight": 9_100, "asset_multiplier": 1_020_000}
    assert liquidation.liability_to_cover_shortage(10**6, **costly) is None


@given(st.integers(1, 10**15), st.integers(1, 10**12), st.integers(1, 10**12), st.sampled_from([5, 6, 8, 9]))
@settings(max_examples=60)
def test_a_liquidators_exchange_is_never_to_the_accounts_gain(
    liability: int, asset_price: int, liability_price: int, decimals: int
) -> None:
    rate = {"asset_multiplier": 1_010_000, "asset_price": asset_price, "liability_multiplier": 990_000,
            "liability_price": liability_price}  # fmt: skip
    got = liquidation.asset_for_liability(
        0, asset_decimals=decimals, liability_amount=liability, liability_decimals=9, **rate
    )
    worth = Fraction(liability * liability_price, 10**9) * Fraction(1_010_000, 990_000)
    if got > 1:
        assert got * Fraction(asset_price, 10**decimals) <= worth
        back = liquidation.liability_for_asset(got, asset_decimals=decimals, liability_decimals=9, **rate)
        assert back <= liability + 1


def test_bankruptcies_are_shared_rounded_up() -> None:
    assert liquidation.bankruptcy_funding_delta(-1_000_000, base_long=3 * 10**9, base_short=-4 * 10**9) == 142_858_000
    with pytest.raises(ValueError, match="no position"):
        liquidation.bankruptcy_funding_delta(-1, base_long=0, base_short=0)
    assert liquidation.bankruptcy_deposit_interest_delta(10, cumulative_deposit_interest=10**10, deposits=30) == (
        3_333_333_334
    )
    assert liquidation.bankruptcy_deposit_interest_delta(10, cumulative_deposit_interest=10**10, deposits=0) == 0
