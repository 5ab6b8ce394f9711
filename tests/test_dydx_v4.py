"""dYdX v4: payloads to canonical tables, every way to be wrong, and the exact mechanics against slow twins.

The payloads in `payloads/dydx_v4` are written for this suite in the formats of the indexer and of a node. Recorded
payloads are read where the folder of recorded material is at hand.
"""

import base64
import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.asset_book import read_asset_book
from adapters.dydx_v4 import ADAPTER, FACTS, mechanics
from adapters.dydx_v4.mechanics import LiquidityTier, PerpPosition, Risk
from adapters.transport import Payload
from aggregator.errors import FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.snapshot import take_snapshot
from tests.normalized_rows import check_canonical, failures_of, only, rows_of
from tests.payload_files import changed, read_payload
from tests.sample_dydx_v4 import PAYLOADS

TESTS = Path(__file__).resolve().parent
BOOK = read_asset_book(TESTS.parent / "configs" / "assets.toml")
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
NORTH, CHILD, EAST = "dydx_v4:north:0", "dydx_v4:north:128", "dydx_v4:east:0"

# float64 against exact rationals: marks and coefficients are rounded once each.
FLOAT = 1e-12
# The chain rounds each requirement up to a quote quantum, twice for maintenance.
QUANTUM = Fraction(1, 10**6)


def fetched(request: str, file: str, owner: str, *, root: Path = TESTS / "payloads" / "dydx_v4") -> Payload:
    return read_payload("dydx_v4", root, request, file, owner)


def desk() -> dict[str, Payload]:
    return {file.removesuffix(".json"): fetched(request, file, owner) for request, file, owner in PAYLOADS}


def normalized(payloads: dict[str, Payload] | list[Payload]) -> Normalized:
    listed = list(payloads.values()) if isinstance(payloads, dict) else payloads
    return ADAPTER.normalize(listed, Context(BOOK, {}))


def south(change: Callable[[dict[str, Any]], Any] = lambda account: None) -> list[Payload]:
    """Markets, and the single subaccount changed by `change`."""
    found = desk()
    return [
        found["perpetual_markets"],
        changed(found["south_subaccount"], lambda body: change(body["subaccount"])),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# The desk


def test_the_adapter_is_registered_and_says_what_it_covers() -> None:
    found = find_adapter("dydx_v4")
    assert isinstance(found, Adapter)
    assert found.venue == "dydx_v4"
    assert FACTS.title == "dYdX v4"


def test_the_desk_is_read_without_a_failure_into_canonical_tables() -> None:
    result = normalized(desk())
    assert result.failures == []
    check_canonical(result)
    snapshot = take_snapshot([result.batches], result.failures, max_mark_gap=0.0)
    assert snapshot.failures == ()


def test_accounts_are_the_subaccounts() -> None:
    result = normalized(desk())
    accounts = {row["account_id"]: row for row in rows_of(result, "accounts")}
    assert sorted(accounts) == sorted(
        f"dydx_v4:{part}" for part in ("east:0", "lists:0", "north:0", "north:128", "north:256", "south:2", "west:0")
    )
    for identity, row in accounts.items():
        assert (row["node"], row["settlement_asset"], row["chain"]) == (identity, "USDC@dydx", "dydx")
        assert (row["margin_mode"] == "isolated") == (identity in (CHILD, "dydx_v4:north:256"))
        assert row["parent_account_id"] == (NORTH if row["margin_mode"] == "isolated" else None)
        assert row["received_at"] == AS_OF
    assert accounts[NORTH]["reported_equity"] == Decimal("47763.75")
    # 1.5 * 60970 * 2 % + 20 * 3377 * 2 % + 300 * 140.2 * 5 %: the indexer's, at the base fraction of SOL-USD
    assert accounts[NORTH]["reported_initial_margin"] == Decimal("1829.1") + Decimal("1350.8") + Decimal("2103")
    assert accounts[EAST]["reported_equity"] is None


def test_positions_of_north_are_the_payloads_own() -> None:
    result = normalized(desk())
    held = {row["instrument_id"]: row for row in rows_of(result, "positions", account_id=NORTH)}
    assert {name: (row["quantity"], row["entry_price"]) for name, row in held.items()} == {
        "dydx_v4:BTC-USD": (Decimal("1.5"), Decimal("60100")),
        "dydx_v4:ETH-USD": (Decimal("-20"), Decimal("3425.5")),
        "dydx_v4:SOL-USD": (Decimal("300"), Decimal("138.4")),
    }
    # -18211.25 + 1.5 * 60100 - 20 * 3425.5 + 300 * 138.4
    assert only(result, "balances", account_id=NORTH)["quantity"] == Decimal("44948.75")
    assert only(result, "instruments", instrument_id="dydx_v4:BTC-USD")["underlying"] == "BTC"
    assert only(result, "assets", asset_id="USDC@dydx")["peg_of"] == "USDC"


def test_equity_is_the_indexers_to_the_last_digit() -> None:
    result = normalized(desk())
    for account in rows_of(result, "accounts"):
        if account["reported_equity"] is None:
            continue
        identity = account["account_id"]
        cash = sum(
            (
                row["quantity"] * (1 if row["side"] == "asset" else -1)
                for row in rows_of(result, "balances", account_id=identity)
            ),
            Decimal(0),
        )
        profit = Decimal(0)
        for row in rows_of(result, "positions", account_id=identity):
            mark = only(result, "marks", account_id=identity, subject=row["instrument_id"], field="mark")
            profit += row["quantity"] * (Decimal(str(mark["value"])) - row["entry_price"])
        assert cash + profit == account["reported_equity"], identity


def test_the_initial_rate_is_scaled_by_open_interest_and_maintenance_is_not() -> None:
    result = normalized(desk())
    rates = {r["market"]: (r["initial_rate"], r["maintenance_rate"]) for r in rows_of(result, "margin_tiers")}
    # 400 000 SOL * 140.2 = 56.08 million between 40 and 100: 0.05 + 0.95 * 16.08 / 60
    assert rates["dydx_v4:SOL-USD"] == (Decimal("0.3046"), Decimal("0.03"))
    assert rates["dydx_v4:BTC-USD"] == (Decimal("0.02"), Decimal("0.012"))
    assert rates["dydx_v4:DOGE-USD"] == (Decimal(1), Decimal("0.05"))  # beyond the upper cap
    state = {r["field"]: r["value"] for r in rows_of(result, "market_state", market="dydx_v4:SOL-USD") if not r["text"]}
    assert state["open_interest"] == 400_000
    assert state["open_interest_upper_cap"] == 1e8
    assert (state["base_initial_rate"], state["effective_initial_rate"]) == (0.05, 0.3046)
    assert only(result, "market_state", market="dydx_v4:SOL-USD", field="status")["text"] == "ACTIVE"


def test_a_market_that_the_asset_book_does_not_know_is_passed_over() -> None:
    result = normalized(desk())
    assert rows_of(result, "instruments", symbol="WAGMI-USD") == []
    assert rows_of(result, "marks", subject="dydx_v4:WAGMI-USD") == []


def test_a_nodes_quantums_settle_funding_with_one_rounding() -> None:
    result = normalized(desk())
    # ETH: 2880 * 4500123457 / 1e6, BTC: -72999 * 2e10 / 1e6, in sum -1447019644.44384
    floored = -90_000_000_000 - 1_447_019_645
    notional = Decimal("2") * 60970 - Decimal("4.500123457") * 3377
    assert only(result, "balances", account_id=EAST)["quantity"] == Decimal(floored) / 10**6 + notional
    held = {row["instrument_id"]: row for row in rows_of(result, "positions", account_id=EAST)}
    assert held["dydx_v4:ETH-USD"]["quantity"] == Decimal("-4.500123457")
    assert held["dydx_v4:BTC-USD"]["initial_rate_override"] == Decimal("0.1")
    assert held["dydx_v4:ETH-USD"]["initial_rate_override"] == Decimal("0.01")


def test_orders_that_rest_are_listed() -> None:
    result = normalized(desk())
    orders = {r["order_id"][-1]: r for r in rows_of(result, "open_orders")}
    assert set(orders) == {"1", "2", "5"}
    assert (orders["1"]["side"], orders["1"]["remaining_quantity"]) == ("sell", Decimal("7.5"))
    assert orders["1"]["reduce_only"]
    assert orders["5"]["account_id"] == "dydx_v4:west:0"


def test_lists_of_positions_and_assets_make_an_account() -> None:
    result = normalized(desk())
    held = only(result, "positions", account_id="dydx_v4:lists:0")
    assert (held["instrument_id"], held["quantity"]) == ("dydx_v4:SOL-USD", Decimal(-120))
    assert only(result, "balances", account_id="dydx_v4:lists:0")["quantity"] == 21000 - 120 * Decimal("146.5")


def test_the_order_of_payloads_changes_nothing() -> None:
    forward = normalized(list(desk().values()))
    backward = normalized(list(desk().values())[::-1])
    assert forward.failures == backward.failures
    assert {n: t.to_pylist() for n, t in forward.batches.items()} == {
        n: t.to_pylist() for n, t in backward.batches.items()
    }


# ----------------------------------------------------------------------------------------------------------------------
# Engine and mechanics


def chain_risk(result: Normalized, account: str) -> Risk:
    """The subaccount by the chain's integers, from the canonical rows; prices and sizes in quantums of 1e-12."""
    usdc = Fraction(0)
    for row in rows_of(result, "balances", account_id=account):
        usdc += Fraction(row["quantity"]) * (1 if row["side"] == "asset" else -1)
    positions = []
    for row in rows_of(result, "positions", account_id=account):
        usdc -= Fraction(row["quantity"]) * Fraction(row["entry_price"])
        marks = rows_of(result, "marks", subject=row["instrument_id"], field="mark")
        price = next(m["value"] for m in sorted(marks, key=lambda m: m["account_id"] is None))
        tier = only(result, "margin_tiers", market=row["instrument_id"])
        state = {r["field"]: r["value"] for r in rows_of(result, "market_state", market=row["instrument_id"])}
        base = round(state["base_initial_rate"] * 10**6)
        positions.append(
            PerpPosition(
                int(row["quantity"] * 10**12),
                -12,
                round(price * 10**9),
                -9,
                LiquidityTier(
                    base,
                    int(tier["maintenance_rate"] * 10**12 / base),
                    round(state["open_interest_lower_cap"] * 10**6),
                    round(state["open_interest_upper_cap"] * 10**6),
                ),
                round(state["open_interest"] * 10**12),
                int((row["initial_rate_override"] or 0) * 10**6),
            )
        )
    assert (usdc * 10**6).denominator == 1
    return mechanics.subaccount_risk(int(usdc * 10**6), positions)


def test_the_engine_agrees_with_the_chain() -> None:
    result = normalized(desk())
    snapshot = take_snapshot([result.batches], result.failures)
    accounts = sorted(row["account_id"] for row in snapshot.tables["accounts"])
    book, unclaimed = pack_book({"dydx": snapshot}, {name: [name] for name in accounts}, as_of=AS_OF)
    assert unclaimed == []
    assert book.failures == ()
    for portfolio, found in zip(book.portfolios, native_today(book), strict=True):
        assert found is not None
        identity = portfolio.accounts[0].account_id
        risk, count = chain_risk(result, identity), len(rows_of(result, "positions", account_id=identity))
        for ours, theirs in ((found.equity, risk.nc), (found.initial, risk.imr), (found.maintenance, risk.mmr)):
            allowed = float(2 * count * QUANTUM) + abs(theirs) * 1e-6 * FLOAT
            assert abs(float(ours[0]) - theirs / 10**6) <= allowed, identity


def test_the_chains_requirement_of_north_by_hand() -> None:
    risk = chain_risk(normalized(desk()), NORTH)
    assert risk.nc == 47_763_750_000
    # the same as reported, but 30.46 % of the SOL notional of 42 060 instead of 5 %
    assert risk.imr == 1_829_100_000 + 1_350_800_000 + 12_811_476_000
    assert risk.mmr == 1_097_460_000 + 810_480_000 + 1_261_800_000
    assert not mechanics.is_liquidatable(risk)


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        (lambda a: a.pop("openPerpetualPositions"), "subaccount.openPerpetualPositions", "missing_field"),
        (lambda a: a.update(openPerpetualPositions=[]), "subaccount.openPerpetualPositions", "malformed"),
        (lambda a: a.pop("assetPositions"), "subaccount.assetPositions", "missing_field"),
        (lambda a: a.update(assetPositions=7), "subaccount.assetPositions", "malformed"),
        (lambda a: a["assetPositions"]["USDC"].update(size="NaN"), "subaccount.assetPositions.USDC.size",
         "not_a_number"),
        (lambda a: a["assetPositions"]["USDC"].update(side="UP"), "subaccount.assetPositions.USDC.side", "malformed"),
        (lambda a: a["assetPositions"].update(TOKEN={"symbol": "TOKEN", "side": "LONG", "size": "1"}),
         "subaccount.assetPositions.TOKEN.symbol", "unsupported"),
        (lambda a: held(a).pop("size"), "subaccount.openPerpetualPositions.ETH-USD.size", "missing_field"),
        (lambda a: held(a).update(size="much"), "subaccount.openPerpetualPositions.ETH-USD.size", "not_a_number"),
        (lambda a: held(a).update(size="-40"), "subaccount.openPerpetualPositions.ETH-USD.size", "inconsistent"),
        (lambda a: held(a).update(size=True), "subaccount.openPerpetualPositions.ETH-USD.size", "not_a_number"),
        (lambda a: held(a).update(size="1e30"), "subaccount.openPerpetualPositions.ETH-USD.size", "out_of_range"),
        (lambda a: held(a).update(entryPrice="-1"), "subaccount.openPerpetualPositions.ETH-USD.entryPrice",
         "out_of_range"),
        (lambda a: held(a).update(unrealizedPnl="-1e9"), "subaccount.openPerpetualPositions.ETH-USD.unrealizedPnl",
         "inconsistent"),
        (lambda a: held(a).update(market="BTC-USD"), "subaccount.openPerpetualPositions.ETH-USD", "inconsistent"),
        (lambda a: held(a).update(status="HALF"), "subaccount.openPerpetualPositions.ETH-USD.status", "unsupported"),
        (lambda a: held(a).update(side=None), "subaccount.openPerpetualPositions.ETH-USD.side", "missing_field"),
        (lambda a: a["openPerpetualPositions"].update({"ETH-USD": 5}), "subaccount.openPerpetualPositions.ETH-USD",
         "malformed"),
        (lambda a: a["openPerpetualPositions"].update({"XYZ-USD": dict(held(a), market="XYZ-USD")}),
         "subaccount.openPerpetualPositions.XYZ-USD", "unknown_market"),
        (lambda a: a["openPerpetualPositions"].update({"LINK-USD": dict(held(a), market="LINK-USD")}),
         "subaccount.openPerpetualPositions.LINK-USD", "unknown_market"),
    ],
)  # fmt: skip
def test_a_bad_field_makes_the_account_incomplete(change: Callable[[Any], Any], path: str, reason: str) -> None:
    result = normalized(south(change))
    assert [(f.reason, f.path) for f in failures_of(result, "dydx_v4:south:2")] == [(reason, path)]
    assert failures_of(result, None) == []
    assert only(result, "accounts", account_id="dydx_v4:south:2")["reported_equity"] == Decimal("6679.25")


def held(account: dict[str, Any]) -> dict[str, Any]:
    return account["openPerpetualPositions"]["ETH-USD"]


@pytest.mark.parametrize("number", [None, "two", -1, 128_001, 1.5])
def test_a_subaccount_without_a_usable_number_is_a_failure_of_its_owner(number: Any) -> None:
    # without a row of its own the failure falls on every portfolio that maps one of the owner's subaccounts
    result = normalized(south(lambda a: a.update(subaccountNumber=number)))
    assert len(failures_of(result, "dydx_v4:south")) == 1
    assert rows_of(result, "accounts") == []


def test_an_unreadable_answer_whose_request_names_the_subaccount_is_shown() -> None:
    markets, account = south()
    result = normalized([markets, replace(account, request="subaccount:2", body="cut o")])
    assert [f.account_id for f in result.failures] == ["dydx_v4:south:2"]
    assert only(result, "accounts")["account_id"] == "dydx_v4:south:2"


@pytest.mark.parametrize("body", [None, "text", 3, [], {}, {"subaccount": []}, {"result": None}, {"contents": {}}])
def test_a_body_of_another_shape_is_a_failure_of_its_account(body: Any) -> None:
    markets, account = south()
    result = normalized([markets, replace(account, body=body)])
    [failure] = result.failures
    assert failure.account_id == "dydx_v4:south"
    assert failure.payload == "south_subaccount.json"


def test_the_request_may_name_the_subaccount() -> None:
    markets, account = south(lambda a: a.pop("subaccountNumber"))
    named = replace(account, request="GET /v4/addresses/dydx1south/subaccountNumber/2")
    assert normalized([markets, named]).failures == []
    other = replace(south()[1], request="subaccount:1")
    assert [f.reason for f in normalized([markets, other]).failures] == [FailureReason.INCONSISTENT]
    listed = fetched("perpetualPositions:0", "lists_perpetual_positions.json", "lists")
    empty = replace(listed, body={"positions": []})
    cash = desk()["lists_asset_positions"]
    assert normalized([markets, empty, cash]).failures == []
    nameless = replace(empty, request="perpetualPositions")
    assert {f.reason for f in normalized([markets, nameless, cash]).failures} == {FailureReason.MISSING_FIELD}


def test_two_answers_to_one_question_are_both_rejected() -> None:
    markets, account = south()
    twice = normalized([markets, account, replace(account, name="again.json")])
    assert [f.reason for f in twice.failures] == [FailureReason.DUPLICATE] * 2
    assert {f.account_id for f in twice.failures} == {"dydx_v4:south:2"}
    assert rows_of(twice, "positions") == []
    assert len(rows_of(twice, "accounts")) == 1
    both = normalized([*desk().values(), replace(desk()["lists_asset_positions"], name="again.json")])
    assert {f.account_id for f in both.failures} == {"dydx_v4:lists:0"}
    of_markets = normalized([markets, replace(markets, name="again.json"), account])
    assert {f.reason for f in failures_of(of_markets, None)} == {FailureReason.DUPLICATE}
    assert [f.reason for f in failures_of(of_markets, "dydx_v4:south:2")] == [FailureReason.MISSING_PARAMETER]


def test_positions_without_assets_are_incomplete() -> None:
    found = desk()
    result = normalized([found["perpetual_markets"], found["lists_perpetual_positions"]])
    assert [(f.reason, f.path) for f in result.failures] == [(FailureReason.MISSING_FIELD, "assets")]
    assert rows_of(result, "balances") == []


def test_the_same_market_twice_in_a_list_is_rejected() -> None:
    found = desk()
    found["lists_perpetual_positions"].body["positions"].append(found["lists_perpetual_positions"].body["positions"][0])
    result = normalized(found)
    assert [f.reason for f in failures_of(result, "dydx_v4:lists:0")] == [FailureReason.DUPLICATE] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("oraclePrice"), "missing_field"),
        (lambda m: m.update(oraclePrice=None), "missing_field"),
        (lambda m: m.update(oraclePrice="-3377"), "out_of_range"),
        (lambda m: m.update(oraclePrice="NaN"), "not_a_number"),
        (lambda m: m.update(initialMarginFraction="1.2"), "out_of_range"),
        (lambda m: m.update(initialMarginFraction="0.0200000001"), "out_of_range"),
        (lambda m: m.update(maintenanceMarginFraction="0.03"), "inconsistent"),
        (lambda m: m.update(openInterestLowerCap="5", openInterestUpperCap="3"), "inconsistent"),
        (lambda m: m.update(baseOpenInterest="-1"), "out_of_range"),
        (lambda m: m.update(ticker="BTC-USD"), "inconsistent"),
        (lambda m: m.update(status=3), "malformed"),
    ],
)
def test_a_bad_market_fails_itself_and_whoever_holds_it(change: Callable[[Any], Any], reason: str) -> None:
    markets, account = south()
    broken = changed(markets, lambda body: change(body["markets"]["ETH-USD"]))
    result = normalized([broken, account, desk()["west_ws_subaccounts"]])
    assert [f.reason for f in failures_of(result, None)] == [reason]
    assert [f.reason for f in failures_of(result, "dydx_v4:south:2")] == [reason]
    assert failures_of(result, "dydx_v4:west:0") == []
    assert len(result.failures) == 2


def test_markets_of_another_shape_leave_accounts_without_parameters() -> None:
    markets, account = south()
    bodies: list[Any] = [{"markets": []}, {}, [], "no", {"type": "channel_data", "contents": {}}]
    for body in bodies:
        result = normalized([replace(markets, body=body), account])
        assert len(failures_of(result, None)) == 1
        assert [f.reason for f in failures_of(result, "dydx_v4:south:2")] == [FailureReason.MISSING_PARAMETER]


def test_a_later_message_of_a_channel_is_refused() -> None:
    update = changed(desk()["west_ws_subaccounts"], lambda body: body.update(type="channel_data"))
    result = normalized([desk()["perpetual_markets"], update])
    assert [(f.reason, f.path) for f in result.failures] == [(FailureReason.UNSUPPORTED, "type")]


def test_unknown_requests_and_missing_owners_are_named() -> None:
    markets, account = south()
    result = normalized([markets, replace(account, account=""), replace(account, request="fills")])
    assert {(f.reason, f.path) for f in result.failures} == {
        (FailureReason.MISSING_FIELD, "account"),
        (FailureReason.UNSUPPORTED, "request"),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/v4/perpetualMarkets?limit=1", "perpetualMarkets"),
        ("v4/addresses/dydx1a", "addresses"),
        ("GET /v4/addresses/dydx1a/parentSubaccountNumber/0", "parentSubaccount"),
        ("/v4/orders?address=dydx1a&subaccountNumber=3", "orders"),
        ("dydxprotocol.subaccounts.Query/Subaccount", "Query/Subaccount"),
        ("/dydxprotocol/subaccounts/subaccount/dydx1a/7", "Query/Subaccount"),
        ("/dydxprotocol/perpetuals/liquidity_tiers", "Query/AllLiquidityTiers"),
    ],
)
def test_requests_may_be_named_by_their_paths(name: str, kind: str) -> None:
    from adapters.dydx_v4.bodies import question_of

    question = question_of(name)
    assert question.kind == kind
    assert question.number == {"parentSubaccount": 0, "orders": 3}.get(kind, 7 if name.endswith("/7") else None)


def test_all_subaccounts_of_an_address_and_wrapped_bodies() -> None:
    markets, account = south()
    several = {"subaccounts": [account.body["subaccount"]], "totalTradingRewards": "0"}
    wrapped = {"status": "success", "isoTimestamp": "2024-06-29T23:59:58Z", "result": several}
    result = normalized([markets, replace(account, request="addresses", body=wrapped)])
    assert result.failures == []
    assert only(result, "accounts")["event_at"] == datetime(2024, 6, 29, 23, 59, 58, tzinfo=UTC)


def test_children_belong_to_their_parent() -> None:
    found = desk()
    found["north_parent_subaccount"].body["subaccount"]["childSubaccounts"][1]["subaccountNumber"] = 129
    result = normalized(found)
    assert [f.reason for f in result.failures] == [FailureReason.INCONSISTENT]


def test_an_isolated_market_beside_another_is_a_finding_that_stops_nobody() -> None:
    found = desk()
    child = found["north_parent_subaccount"].body["subaccount"]["childSubaccounts"][1]
    other = copy.deepcopy(found["north_parent_subaccount"].body["subaccount"]["childSubaccounts"][2])
    child["openPerpetualPositions"] |= other["openPerpetualPositions"]
    result = normalized(found)
    assert [(f.reason, f.subject, f.account_id) for f in result.failures] == [(FailureReason.INCONSISTENT, CHILD, None)]


def test_bad_orders_are_findings_that_stop_nobody() -> None:
    found = desk()
    orders = found["south_orders"].body
    orders[0]["side"] = "HOLD"
    orders[1]["size"] = "0"
    orders += [dict(orders[1], id="x", size="1"), dict(orders[1], id="x", size="2"), "no order"]
    orders.append(dict(orders[1], id="y", size="1", subaccountNumber=9))
    result = normalized(found)
    assert len(result.failures) == 6
    assert {f.account_id for f in result.failures} == {None}
    assert len(rows_of(result, "open_orders")) == 1
    assert len(take_snapshot([result.batches], result.failures).failures) == 6


# ----------------------------------------------------------------------------------------------------------------------
# A node


@pytest.mark.parametrize(
    ("name", "change", "reasons"),
    [
        ("node_perpetuals", lambda b: b["perpetual"][1]["params"].update(market_id=9), {"missing_mark"}),
        ("node_perpetuals", lambda b: b["perpetual"][1]["params"].update(liquidity_tier=9), {"missing_parameter"}),
        ("node_perpetuals", lambda b: b["perpetual"][1].pop("params"), {"missing_field", "unknown_market"}),
        ("node_perpetuals", lambda b: b["perpetual"][1]["params"].update(atomic_resolution=4), {"out_of_range"}),
        ("node_perpetuals", lambda b: b["perpetual"][1].update(open_interest="-4"), {"out_of_range"}),
        ("node_perpetuals", lambda b: b["perpetual"].append(b["perpetual"][1]), {"duplicate"}),
        ("node_market_prices", lambda b: b["market_prices"][1].update(price="0"), {"out_of_range", "missing_mark"}),
        ("node_market_prices", lambda b: b["market_prices"].append(b["market_prices"][1]), {"duplicate"}),
        ("node_liquidity_tiers", lambda b: b["liquidity_tiers"][0].update(initial_margin_ppm=0),
         {"out_of_range", "missing_parameter"}),
        ("east_node_subaccount", lambda b: b["subaccount"]["perpetual_positions"][1].update(quantums="x"),
         {"not_a_number"}),
        ("east_node_subaccount", lambda b: b["subaccount"]["perpetual_positions"][1].update(perpetual_id=77),
         {"unknown_market"}),
        ("east_node_subaccount", lambda b: b["subaccount"]["asset_positions"][0].update(asset_id=1), {"unsupported"}),
        ("east_node_subaccount", lambda b: b["subaccount"].pop("id"), {"missing_field"}),
        ("east_leverage", lambda b: b["clob_pair_leverage"][0].update(clob_pair_id=99), {"unknown_market"}),
        ("east_leverage", lambda b: b["clob_pair_leverage"][0].update(custom_imf_ppm=2_000_000), {"out_of_range"}),
        ("east_leverage", lambda b: b.clear(), {"missing_field"}),
    ],
)  # fmt: skip
def test_a_nodes_bad_field_makes_its_account_incomplete(
    name: str, change: Callable[[Any], Any], reasons: set[str]
) -> None:
    found = desk()
    found[name] = changed(found[name], change)
    kept = ("perpetual_markets", "node_", "east_")
    result = normalized([payload for key, payload in found.items() if key.startswith(kept)])
    assert {f.reason for f in result.failures} == reasons
    failed = {f.account_id for f in result.failures} - {None}
    assert failed in ({EAST}, {"dydx_v4:east"})
    assert all(f.payload for f in result.failures)


def test_a_node_without_prices_needs_the_indexers_markets() -> None:
    found = desk()
    indexer = [found["perpetual_markets"], found["node_perpetuals"], found["east_node_subaccount"]]
    assert normalized(indexer).failures == []
    alone = normalized(indexer[1:])
    assert {f.reason for f in failures_of(alone, EAST)} == {FailureReason.MISSING_MARK}


def as_bytes(number: int) -> str:
    size = (abs(number).bit_length() + 7) // 8
    return base64.b64encode(bytes([3 if number < 0 else 2]) + abs(number).to_bytes(size, "big")).decode()


def test_quantums_may_be_bytes_and_names_in_camel_case() -> None:
    found = desk()
    plain = normalized(found)

    def camel(body: dict[str, Any]) -> None:
        account = body["subaccount"]
        account["assetPositions"] = [{"quantums": as_bytes(-90_000_000_000)}]
        account["perpetualPositions"] = [
            {
                "perpetualId": held.get("perpetual_id"),
                "quantums": as_bytes(int(held["quantums"])),
                "fundingIndex": as_bytes(int(held["funding_index"])),
            }
            for held in account.pop("perpetual_positions")
        ]
        account.pop("asset_positions")

    found["east_node_subaccount"] = changed(found["east_node_subaccount"], camel)
    result = normalized(found)
    assert result.failures == []
    assert rows_of(result, "balances") == rows_of(plain, "balances")
    assert rows_of(result, "positions") == rows_of(plain, "positions")


@pytest.mark.parametrize(
    ("name", "change", "reason", "path"),
    [
        ("node_perpetuals", lambda b: b["perpetual"][0].update(funding_index=None), "missing_field",
         "perpetual[0].funding_index"),
        ("node_perpetuals", lambda b: b["perpetual"][1].update(open_interest=None), "missing_field",
         "perpetual[1].open_interest"),
        ("node_liquidity_tiers", lambda b: b["liquidity_tiers"][0].update(initial_margin_ppm=None), "missing_field",
         "liquidity_tiers[0].initial_margin_ppm"),
        ("east_leverage", lambda b: b["clob_pair_leverage"][1].update(custom_imf_ppm="1.2.3"), "not_a_number",
         "clob_pair_leverage[1].custom_imf_ppm"),
    ],
)  # fmt: skip
def test_a_null_of_a_node_is_missing_and_failures_name_the_field(
    name: str, change: Callable[[Any], Any], reason: str, path: str
) -> None:
    found = desk()
    found[name] = changed(found[name], change)
    result = normalized(found)
    assert (reason, path) in {(f.reason, f.path) for f in result.failures}


# ----------------------------------------------------------------------------------------------------------------------
# Recorded payloads


def test_recorded_payloads_are_read(recorded: Path) -> None:
    root = recorded / "payloads" / "dydx_v4"
    of_file = {
        "http_get_perpetual_markets.json": ("perpetualMarkets", ""),
        "perpetual_markets.json": ("perpetualMarkets", ""),
        "ws_markets_subscribed.json": ("v4_markets", ""),
        "http_get_subaccount.json": ("subaccount", "http"),
        "subaccount.json": ("subaccount", "raw"),
        "subaccount_with_position_constructed.json": ("subaccount", "constructed"),
        "ws_subaccounts_subscribed.json": ("v4_subaccounts", "ws"),
    }
    assert {path.name for path in root.glob("*.json")} == set(of_file)
    read = {name: fetched(request, name, owner, root=root) for name, (request, owner) in of_file.items()}
    accounts = [payload for payload in read.values() if payload.account]
    for markets in (payload for payload in read.values() if not payload.account):
        result = normalized([markets, *accounts])
        # The channel's first message is of a version without caps on open interest.
        holders = {"dydx_v4:constructed:0", "dydx_v4:ws:0"} if markets.name == "ws_markets_subscribed.json" else set()
        found = {(failure.subject, failure.reason, failure.account_id) for failure in result.failures}
        assert found == {("dydx_v4:BTC-USD", FailureReason.MISSING_FIELD, account) for account in holders}
        assert len(rows_of(result, "accounts")) == 4
        snapshot = take_snapshot([result.batches], result.failures)
        assert snapshot.incomplete == holders
    # The constructed account's figures are those of the indexer's own test: equity 325 000, free collateral 317 500.
    row = only(result, "accounts", account_id="dydx_v4:constructed:0")
    assert (row["reported_equity"], row["reported_initial_margin"]) == (325_000, 7_500)
    mark = only(result, "marks", account_id="dydx_v4:constructed:0")
    assert mark["value"] == 15_000


# ----------------------------------------------------------------------------------------------------------------------
# Mechanics

QUANTUMS = st.integers(-(10**15), 10**15)
TIERS = st.builds(
    LiquidityTier,
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.just(0) | st.integers(0, 10**14),
    st.just(0) | st.integers(10**14, 10**15),
)
POSITIONS = st.builds(
    PerpPosition,
    QUANTUMS.filter(bool),
    st.integers(-10, -6),
    st.integers(1, 10**10),
    st.integers(-9, 1),
    TIERS.map(lambda t: t._replace(open_interest_lower_cap=min(t[2], t[3]))),
    st.integers(0, 10**16),
    st.integers(0, 10**6),
)
ACCOUNTS = st.tuples(st.integers(-(10**14), 10**14), st.lists(POSITIONS, min_size=1, max_size=4))


def slow_risk(usdc: int, positions: list[PerpPosition]) -> tuple[int, int, int]:
    """The three sums once more, in rationals and without sharing code."""
    nc, imr, mmr = usdc, 0, 0
    for held in positions:
        per_base = Fraction(held.price) * Fraction(10) ** (held.exponent + held.atomic_resolution + 6)
        size = int(abs(held.quantums) * per_base)  # of a positive rational: down
        nc += size if held.quantums > 0 else -size
        interest, tier = int(held.open_interest * per_base), held.tier
        share = Fraction(0)
        if tier.open_interest_upper_cap:
            width = tier.open_interest_upper_cap - tier.open_interest_lower_cap
            gone = Fraction(interest - tier.open_interest_lower_cap)
            share = Fraction(1) if interest >= tier.open_interest_upper_cap else gone / width if gone > 0 else share
        fraction = tier.initial_margin_ppm + int((10**6 - tier.initial_margin_ppm) * share)
        imr += ceil(Fraction(size * max(fraction, held.custom_imf_ppm), 10**6))
        base = ceil(Fraction(size * tier.initial_margin_ppm, 10**6))
        mmr += ceil(Fraction(base * tier.maintenance_fraction_ppm, 10**6))
    return nc, imr, mmr


@given(ACCOUNTS)
@settings(max_examples=100)
def test_risk_is_its_slow_twin(account: tuple[int, list[PerpPosition]]) -> None:
    assert mechanics.subaccount_risk(*account) == slow_risk(*account)


@given(POSITIONS, st.integers(1, 10**6))
@settings(max_examples=60)
def test_more_notional_never_needs_less_and_initial_is_at_least_maintenance(held: PerpPosition, more: int) -> None:
    risk = mechanics.position_risk(held)
    larger = mechanics.position_risk(held._replace(quantums=held.quantums + (more if held.quantums > 0 else -more)))
    assert larger.imr >= risk.imr >= 0
    assert larger.mmr >= risk.mmr
    assert risk.imr >= risk.mmr
    mirrored = mechanics.position_risk(held._replace(quantums=-held.quantums))
    assert mirrored == (-risk.nc, risk.imr, risk.mmr)


@given(TIERS, st.integers(0, 2 * 10**15), st.integers(0, 10**15))
@settings(max_examples=60)
def test_the_margin_fraction_rises_with_open_interest_within_its_bounds(
    tier: LiquidityTier, interest: int, more: int
) -> None:
    tier = tier._replace(open_interest_lower_cap=min(tier[2], tier[3]))
    fraction = mechanics.adjusted_imf_ppm(tier, interest)
    assert tier.initial_margin_ppm <= fraction <= 10**6
    assert mechanics.adjusted_imf_ppm(tier, interest + more) >= fraction


@given(st.lists(st.tuples(QUANTUMS, st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12)), max_size=5))
@settings(max_examples=60)
def test_funding_is_rounded_once(entries: list[tuple[int, int, int]]) -> None:
    parts = [mechanics.settlement_ppm(q, current_index=now, entry_index=then) for q, now, then in entries]
    exact = sum((Fraction((then - now) * q, 10**6) for q, now, then in entries), Fraction(0))
    assert 0 <= exact - mechanics.settled_funding(parts) < 1


@given(ACCOUNTS, st.integers(1, 10**6), st.data())
@settings(max_examples=60)
def test_bankruptcy_price_leaves_each_share_of_the_position_its_share_of_collateral(
    account: tuple[int, list[PerpPosition]], portion_ppm: int, data: st.DataObject
) -> None:
    usdc, positions = account
    index = data.draw(st.integers(0, len(positions) - 1))
    held, risk = positions[index], mechanics.subaccount_risk(usdc, positions)
    size = max(abs(held.quantums) * portion_ppm // 10**6, 1)
    delta = -size if held.quantums > 0 else size
    quote = mechanics.bankruptcy_price(usdc, positions, index, delta)
    rest = [*positions[:index], held._replace(quantums=held.quantums + delta), *positions[index + 1 :]]
    after = mechanics.subaccount_risk(usdc + quote, rest)
    if risk.mmr:  # NC after >= NC * MMR after / MMR: the ratio does not fall, and by at most a quantum does it rise
        assert 0 <= after.nc - Fraction(risk.nc * after.mmr, risk.mmr) < 1


def test_deltas_that_do_not_reduce_are_refused() -> None:
    held = PerpPosition(100, -8, 10**6, -2, LiquidityTier(50_000, 500_000))
    for delta in (0, 5, -101):
        with pytest.raises(ValueError, match="does not reduce"):
            mechanics.bankruptcy_price(0, [held], 0, delta)


@given(ACCOUNTS)
@settings(max_examples=60)
def test_fillable_price_lies_between_oracle_and_the_largest_spread(account: tuple[int, list[PerpPosition]]) -> None:
    usdc, positions = account
    held, risk = positions[0], mechanics.subaccount_risk(usdc, positions)
    price = mechanics.fillable_price(usdc, positions, 0, bankruptcy_adjustment_ppm=1_000_000, spread_to_mmr_ppm=100_000)
    if risk.mmr == 0:
        assert price is None
        return
    assert price is not None
    of_position = mechanics.position_risk(held)
    spread = abs(Fraction(of_position.mmr, 10 * held.quantums))
    oracle = Fraction(of_position.nc, held.quantums)
    low, high = (oracle - spread, oracle) if held.quantums > 0 else (oracle, oracle + spread)
    assert low <= price <= high
    if risk.nc >= risk.mmr:
        assert price == oracle
    if risk.nc <= 0:
        assert price == (low if held.quantums > 0 else high)


@given(ACCOUNTS, st.booleans())
@settings(max_examples=40)
def test_the_liquidation_price_is_where_equity_meets_the_requirement(
    account: tuple[int, list[PerpPosition]], long: bool
) -> None:
    usdc, positions = account
    size, price = Fraction(abs(positions[0].quantums), 10**9) * (1 if long else -1), Fraction(positions[0].price, 10**4)
    fraction, other = Fraction(positions[0].tier.initial_margin_ppm, 10**6), Fraction(len(positions))
    equity = Fraction(usdc, 10**6)
    found = mechanics.liquidation_price(
        size, price, equity=equity, other_maintenance=other, maintenance_fraction=fraction
    )
    if found is not None:
        assert found > 0
        assert equity + size * (found - price) == abs(size) * found * fraction + other


def test_updates_of_an_undercollateralized_account() -> None:
    # below initial margin only what makes the account no riskier is accepted; rule of x/subaccounts/lib/updates.go
    before = Risk(100, 200, 120)
    assert mechanics.is_valid_update(before, Risk(250, 200, 120))
    assert mechanics.is_valid_update(before, Risk(100, 190, 120))
    assert mechanics.is_valid_update(before, Risk(50, 100, 60))
    assert not mechanics.is_valid_update(before, Risk(49, 100, 60))
    assert not mechanics.is_valid_update(before, Risk(130, 210, 121))
    assert mechanics.is_valid_update(Risk(-5, 0, 0), Risk(-4, 0, 0))
    assert not mechanics.is_valid_update(Risk(-5, 0, 0), Risk(-5, 0, 0))


def test_without_a_requirement_nobody_is_liquidated_and_negative_collateral_is_deleveraged() -> None:
    assert not mechanics.is_liquidatable(Risk(-1, 0, 0))
    assert not mechanics.is_liquidatable(Risk(10, 20, 10))
    assert mechanics.is_liquidatable(Risk(9, 20, 10))
    assert mechanics.deleveraging_price(Risk(-1, 0, 0), in_final_settlement=True) == "bankruptcy_price"
    assert mechanics.deleveraging_price(Risk(0, 0, 0), in_final_settlement=True) == "oracle_price"
    assert mechanics.deleveraging_price(Risk(0, 0, 0)) is None


def test_the_size_of_the_next_liquidation_order() -> None:
    # one BTC of 1e10 quantums at 50 000: 50 000 USDC of notional
    held = PerpPosition(10**10, -10, 5_000_000_000, -5, LiquidityTier(50_000, 600_000))
    limits = mechanics.position_limits(mechanics.notional_of(held), min_notional=1_000_000_000, max_portion_ppm=250_000)
    assert limits == (1_000_000_000, 12_500_000_000)

    def delta(**changes: int) -> int:
        known = {"subaccount_limit": 10**15, "step_base_quantums": 1_000_000} | changes
        return mechanics.liquidation_delta(held, limits, **known)

    assert delta() == -(10**10) // 4
    assert delta(subaccount_limit=1_000_000_123) == -200_000_000  # rounded down to whole steps of 1e6
    assert delta(subaccount_limit=1) == -1_000_000  # at least one step
    assert delta(step_base_quantums=10**10) == -(10**10)
    short = held._replace(quantums=-(10**10))
    whole = limits._replace(maximum=50_000_000_000)
    assert mechanics.liquidation_delta(short, whole, subaccount_limit=10**15, step_base_quantums=1) == 10**10


def test_a_proceeds_surplus_is_the_fee_at_most() -> None:
    # TestGetLiquidationInsuranceFundDelta of the chain: a long of 0.1 BTC bought back at 0.561 of its price
    held = PerpPosition(10_000_000, -8, 5_000_000_000, -5, LiquidityTier(200_000, 500_000))
    quote = mechanics.fill_quote_quantums(56_100_000_000, 10_000_000, -8)
    delta = mechanics.insurance_fund_delta(
        -5_100_000_000, [held], 0, is_buy=False, fill_amount=10_000_000, quote_quantums=quote,
        max_liquidation_fee_ppm=5_000,
    )  # fmt: skip
    assert delta == 28_050_000
    assert mechanics.parent_number(4 * 128 + 3) == 3
    assert not mechanics.is_isolated(127)
