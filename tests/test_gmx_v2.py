"""GMX v2: payloads to canonical tables, every way to be wrong, exact mechanics, and the engine against the mechanics.

The payloads in `payloads/gmx_v2` are written for this suite in the venue's format; the answers of the venue's own check
in them follow from the contracts' rules. The engine's figures must be these to 1e-9.
"""

import copy
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.asset_book import AssetBook, read_asset_book
from adapters.gmx_v2 import ADAPTER, impact, mechanics
from adapters.gmx_v2.impact import FLOAT, ImpactParameters, OpenInterest
from adapters.gmx_v2.mechanics import Fees, Pool, Position, Prices
from adapters.gmx_v2.power import UNIT, binary_exponential, binary_logarithm, power
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import Fixed, TieredNotional, Verdict, WeightedValue, parse_parameters
from aggregator.schema import CANONICAL, KEYS
from aggregator.snapshot import take_snapshot
from tests import sample_gmx_v2

ROOT = Path(__file__).resolve().parent.parent
PAYLOADS = ROOT / "tests" / "payloads" / "gmx_v2"
ASSETS = read_asset_book(ROOT / "configs" / "assets.toml")
PARAMETERS = tomllib.loads((ROOT / sample_gmx_v2.PARAMETERS).read_text(encoding="utf-8"))
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)

ETH_LONG = "gmx_v2:kestrel:WETH/USD[WETH-USDC]:WETH:long"
BTC_SHORT = "gmx_v2:kestrel:BTC/USD[WBTC-USDC]:USDC:short"
SOL_LONG = "gmx_v2:kestrel:SOL/USD[SOL-USDC]:USDC:long"
SOL_SHORT = "gmx_v2:osprey:SOL/USD[SOL-USDC]:USDC:short"
ETH_SHORT = "gmx_v2:osprey:WETH/USD[WETH-WETH]:WETH:short"
ACCOUNTS = {ETH_LONG, BTC_SHORT, SOL_LONG, SOL_SHORT, ETH_SHORT}
KESTREL = {ETH_LONG, BTC_SHORT, SOL_LONG}
ETH_MARKET, BTC_MARKET, SOL_MARKET = (f"0x{number:040x}" for number in (0xB1, 0xB2, 0xB3))
WETH, USDC = f"0x{0xA1:040x}", f"0x{0xA2:040x}"

ENGINE_RELATIVE = 1e-9  # float64 of the engine against the exact integers
POWER_RELATIVE = 1e-16  # PRBMath's pow against the real power

Change = Callable[[Any], None]
_ETH, _BTC = ("markets", ETH_MARKET), ("markets", BTC_MARKET)


def fetched(request: str, file: str, account: str = "", *, root: Path = PAYLOADS) -> Payload:
    payload = RecordedTransport(root).fetch("gmx_v2", PayloadRequest(request, file, account))
    assert isinstance(payload, Payload), payload
    return payload


def desk(change: Change | None = None, request: str = "", owner: str = "") -> list[Payload]:
    """All payloads, the body of one of them changed in place."""
    payloads = [fetched(*entry) for entry in sample_gmx_v2.PAYLOADS]
    if change is None:
        return payloads
    number = next(i for i, p in enumerate(payloads) if p.request == request and p.account == owner)
    body = copy.deepcopy(payloads[number].body)
    change(body)
    payloads[number] = replace(payloads[number], body=body)
    return payloads


def without(*requests: str) -> list[Payload]:
    return [payload for payload in desk() if payload.request not in requests]


def normalized(payloads: list[Payload], parameters: Mapping[str, Any] = PARAMETERS) -> Normalized:
    return ADAPTER.normalize(payloads, Context(ASSETS, parameters))


def rows_of(result: Normalized, table: str, **where: Any) -> list[dict[str, Any]]:
    return [r for r in result.batches[table].to_pylist() if all(r[key] == value for key, value in where.items())]


def only(result: Normalized, table: str, **where: Any) -> dict[str, Any]:
    found = rows_of(result, table, **where)
    assert len(found) == 1, (table, where, found)
    return found[0]


def incomplete(result: Normalized) -> set[str | None]:
    return {failure.account_id for failure in result.failures}


def only_reason(result: Normalized, account: str | None = None) -> FailureReason:
    found = {f.reason for f in result.failures if account is None or f.account_id == account}
    assert len(found) == 1, result.failures
    return found.pop()


def usd(text: str) -> int:
    return int(Decimal(text).scaleb(30))


@pytest.fixture(scope="module")
def whole() -> Normalized:
    return normalized(desk())


# ---------------------------------------------------------------------------------------------------------------------
# The desk


def test_the_desk_is_read_without_a_failure(whole: Normalized) -> None:
    assert whole.failures == []
    assert set(whole.batches) == set(CANONICAL) - {"failures"}
    for name, table in whole.batches.items():
        assert table.schema.equals(CANONICAL[name], check_metadata=True)
        keys = [tuple(row[key] for key in KEYS[name]) for row in table.to_pylist()]
        assert len(keys) == len(set(keys)), name
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
    result = normalized(desk(_set(*path, to=value), "getAccountOrders", "kestrel"))
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


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def _as_lists(props: Any) -> Any:
    return [list(props["addresses"].values()), list(props["numbers"].values()), list(props["flags"].values())]


def _flat(props: Any) -> Any:
    return {**props["addresses"], **props["numbers"], **props["flags"]}


@pytest.mark.parametrize(
    "shape",
    [
        lambda body: [_as_lists(props) for props in body],
        lambda body: [_flat(props) for props in body],
        lambda body: {"positions": body},
        lambda body: {"result": body},
        lambda body: {"data": {"positions": body}},
        lambda body: [{"position": props} for props in body],
        lambda body: [{**props, "numbers": {k: int(v) for k, v in props["numbers"].items()}} for props in body],
        lambda body: [
            {**props, "addresses": {k: v.upper().replace("0X", "0x") for k, v in props["addresses"].items()}}
            for props in body
        ],
    ],
)
def test_every_shape_of_positions_gives_the_same_tables(whole: Normalized, shape: Callable[[Any], Any]) -> None:
    payloads = [replace(p, body=shape(p.body)) if p.request == "getAccountPositions" else p for p in desk()]
    result = normalized(payloads)
    assert result.failures == []
    assert result.batches == whole.batches


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("getMarkets", "Reader.getMarkets"),
        ("getMarkets", "v2/getMarkets"),
        ("tickers", "prices/tickers"),
        ("tokens", "arbitrum/tokens"),
        ("getAccountPositionInfoList", "getAccountPositionInfoList:osprey"),
    ],
)
def test_requests_may_be_written_in_several_ways(whole: Normalized, before: str, after: str) -> None:
    result = normalized([replace(p, request=after) if p.request == before else p for p in desk()])
    assert result.failures == []
    for name in set(CANONICAL) - {"failures", "marks", "market_state"}:
        assert result.batches[name] == whole.batches[name]


def test_a_single_info_and_lists_of_tuples_are_read(whole: Normalized) -> None:
    def each(payload: Payload) -> list[Payload]:
        if payload.request == "getMarkets":
            return [replace(payload, body={"markets": [list(market.values()) for market in payload.body]})]
        if payload.request == "getAccountPositionInfoList":
            return [replace(payload, request=f"getPositionInfo:{i}", body=info) for i, info in enumerate(payload.body)]
        return [payload]

    result = normalized([one for payload in desk() for one in each(payload)])
    assert result.failures == []
    assert rows_of(result, "accounts") == rows_of(whole, "accounts")
    assert rows_of(result, "rule_sets") == rows_of(whole, "rule_sets")


def test_empty_positions_are_passed_over(whole: Normalized) -> None:
    def with_empty(body: Any) -> None:
        empty = copy.deepcopy(body[0])
        empty["numbers"] = dict.fromkeys(empty["numbers"], "0")
        empty["flags"]["isLong"] = False
        body.append(empty)

    assert normalized(desk(with_empty, "getAccountPositions", "kestrel")).batches == whole.batches
    assert normalized(desk(lambda body: body.clear(), "getAccountPositions", "kestrel")).failures[0].account_id is None


def test_accrued_values_of_a_market_info_go_before_those_of_the_store(whole: Normalized) -> None:
    def with_funding(body: Any) -> None:
        sides = {
            side: {"longToken": "987654321098765432", "shortToken": "987654321098765432"} for side in ("long", "short")
        }
        delta = {
            side: {"longToken": "100000000000000000", "shortToken": "200000000000000000"} for side in ("long", "short")
        }
        body[0] |= {
            "baseFunding": {"fundingFeeAmountPerSize": sides, "claimableFundingAmountPerSize": sides},
            "nextFunding": {"fundingFeeAmountPerSizeDelta": delta},
        }

    result = normalized(desk(with_funding, "getMarketInfoList"))
    assert result.failures == []
    rule_set = only(result, "accounts", account_id=SOL_LONG)["rule_set"]
    before, after = (
        parse_parameters("fixed", only(of, "rule_sets", rule_set=rule_set, form="fixed")["parameters"])
        for of in (whole, result)
    )
    assert isinstance(before, Fixed)
    assert isinstance(after, Fixed)
    # 2e17 / 1e45 raw units per raw dollar of 240 000: 48 USDC more at 0.99995.
    assert before.equity - after.equity == pytest.approx(
        Decimal(240_000 * 200 / 1e6) * Decimal("0.99995"), abs=Decimal("2e-6")
    )


def test_prices_and_values_beside_the_positions_go_first() -> None:
    def beside(payload: Payload) -> Payload:
        if payload.request != "getAccountPositions":
            return payload
        price = {"min": "3300000000000000", "max": "3301000000000000"}
        prices = {
            "indexTokenPrice": price,
            "longTokenPrice": price,
            "shortTokenPrice": {"min": str(10**24), "max": str(10**24)},
        }
        store = {"minCollateralFactorForLiquidation": str(usd("0.02"))}
        return replace(payload, body={"position": payload.body[0], "prices": prices, "dataStore": store})

    result = normalized([beside(p) for p in desk() if p.request != "isPositionLiquidatable"])
    assert result.failures == []
    assert only(result, "marks", account_id=ETH_LONG, field="mark")["value"] == 3300
    rule_set = only(result, "accounts", account_id=ETH_LONG)["rule_set"]
    assert only(result, "margin_tiers", rule_set=rule_set)["maintenance_rate"] == Decimal("0.02")


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def _set(*path: Any, to: Any) -> Change:
    def change(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        if to is ...:
            del body[path[-1]]
        else:
            body[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("numbers", "sizeInUsd"), ..., FailureReason.MISSING_FIELD),
        (("numbers", "pendingImpactAmount"), ..., FailureReason.MISSING_FIELD),
        (("numbers", "sizeInTokens"), "12.5", FailureReason.NOT_A_NUMBER),
        (("numbers", "collateralAmount"), "NaN", FailureReason.NOT_A_NUMBER),
        (("numbers", "collateralAmount"), "-1", FailureReason.OUT_OF_RANGE),
        (("numbers", "collateralAmount"), str(2**256), FailureReason.OUT_OF_RANGE),
        (("numbers", "sizeInTokens"), "0", FailureReason.INCONSISTENT),
        (("numbers", "borrowingFactor"), True, FailureReason.NOT_A_NUMBER),
        (("flags", "isLong"), 1, FailureReason.MALFORMED),
        (("flags",), [], FailureReason.MISSING_FIELD),
        (("numbers",), ["1"], FailureReason.MALFORMED),
        (("addresses", "market"), "0x12", FailureReason.MALFORMED),
        (("addresses", "collateralToken"), None, FailureReason.MISSING_FIELD),
    ],
)
def test_an_unreadable_position_makes_the_owner_incomplete(
    path: tuple[Any, ...], value: Any, reason: FailureReason
) -> None:
    result = normalized(desk(_set(1, *path, to=value), "getAccountPositions", "kestrel"))
    assert only_reason(result, "gmx_v2:kestrel") == reason
    assert next(f for f in result.failures if f.account_id).path.startswith("[1]")
    assert {row["account_id"] for row in rows_of(result, "accounts")} == ACCOUNTS - {BTC_SHORT}


@pytest.mark.parametrize(
    ("request_", "path", "value", "reason", "accounts"),
    [
        ("dataStore", (*_ETH, "minCollateralFactor"), ..., FailureReason.MISSING_PARAMETER, {ETH_LONG}),
        ("dataStore", (*_ETH, "openInterest_long"), "x", FailureReason.NOT_A_NUMBER, {ETH_LONG}),
        ("dataStore", (*_ETH, "openInterest_long"), "5", FailureReason.INCONSISTENT, {ETH_LONG}),
        ("dataStore", (*_ETH, "cumulativeBorrowingFactor_long"), "5", FailureReason.INCONSISTENT, {ETH_LONG}),
        ("dataStore", (*_ETH, "fundingFeeAmountPerSize_long_longToken"), "5", FailureReason.INCONSISTENT, {ETH_LONG}),
        ("dataStore", (*_ETH, "poolAmount_longToken"), ..., FailureReason.MISSING_PARAMETER, {ETH_LONG}),
        ("dataStore", (*_ETH, "positionFeeFactor_positive"), "-1", FailureReason.OUT_OF_RANGE, {ETH_LONG}),
        ("dataStore", (*_BTC, "maxPositionImpactFactor_positive"), ..., FailureReason.MISSING_PARAMETER, {BTC_SHORT}),
        ("dataStore", _BTC, [], FailureReason.MALFORMED, {BTC_SHORT}),
        ("dataStore", ("global", "MIN_COLLATERAL_USD"), ..., FailureReason.MISSING_PARAMETER, ACCOUNTS),
        ("dataStore", ("markets",), 5, FailureReason.MALFORMED, ACCOUNTS),
        ("tickers", (0, "minPrice"), "0", FailureReason.OUT_OF_RANGE, {ETH_LONG, ETH_SHORT}),
        ("tickers", (0, "minPrice"), "9" * 30, FailureReason.INCONSISTENT, {ETH_LONG, ETH_SHORT}),
        ("tickers", (0, "tokenAddress"), "0xb9", FailureReason.MALFORMED, {ETH_LONG, ETH_SHORT}),
        ("tickers", (2, "maxPrice"), ..., FailureReason.MISSING_FIELD, {BTC_SHORT}),
        ("tokens", ("tokens", 0, "decimals"), "37", FailureReason.OUT_OF_RANGE, {ETH_LONG, ETH_SHORT}),
        ("tokens", ("tokens", 2, "symbol"), "NOPE", FailureReason.UNKNOWN_ASSET, {BTC_SHORT}),
        ("tokens", ("tokens", 2, "symbol"), 5, FailureReason.MALFORMED, {BTC_SHORT}),
        ("getMarkets", (1, "longToken"), "x", FailureReason.MALFORMED, {BTC_SHORT}),
        ("getMarketInfoList", (0, "market", "longToken"), WETH, FailureReason.INCONSISTENT, {SOL_LONG, SOL_SHORT}),
    ],
)  # fmt: skip
def test_a_bad_market_value_stops_only_those_who_need_it(
    request_: str, path: tuple[Any, ...], value: Any, reason: FailureReason, accounts: set[str]
) -> None:
    result = normalized(desk(_set(*path, to=value), request_))
    assert reason in {failure.reason for failure in result.failures}
    stopped = {
        (f.account_id or "").rsplit(":", 1)[-1] + (f.account_id or "").split(":")[1]
        for f in result.failures
        if f.account_id
    }
    assert len({f.account_id for f in result.failures if f.account_id}) == len(accounts), result.failures
    assert stopped == {account.rsplit(":", 1)[-1] + account.split(":")[1] for account in accounts}
    assert len(rows_of(result, "accounts")) == len(ACCOUNTS)
    # Four components of a position with its figures; the verdict alone of one without.
    assert len(rows_of(result, "rule_sets")) == 4 * len(ACCOUNTS) - 3 * len(accounts)


def test_without_prices_markets_or_tokens_nothing_can_be_computed_and_everything_says_why() -> None:
    for request, reason in (
        ("tickers", FailureReason.MISSING_MARK),
        ("getMarkets", FailureReason.UNKNOWN_MARKET),
        ("tokens", FailureReason.UNKNOWN_ASSET),
        ("dataStore", FailureReason.MISSING_PARAMETER),
    ):
        result = normalized(without(request, "getMarketInfoList", "isPositionLiquidatable", "getAccountOrders"))
        assert {f.reason for f in result.failures} == {reason}
        assert len(result.failures) == len(rows_of(result, "accounts")) == len(ACCOUNTS)
        # Nor does the snapshot find more: that a position without figures has no rules is no second failure.
        snapshot = take_snapshot([result.batches], result.failures, as_of=AS_OF)
        assert snapshot.failures == tuple(result.failures)
        assert len(snapshot.incomplete) == len(ACCOUNTS)


def test_two_answers_to_one_question_are_both_rejected() -> None:
    payloads = desk()
    positions = fetched("getAccountPositions", "kestrel_positions.json", "kestrel")
    result = normalized([*payloads, replace(positions, name="again.json")])
    duplicates = [f for f in result.failures if f.reason == FailureReason.DUPLICATE]
    assert {f.payload for f in duplicates} == {"kestrel_positions.json", "again.json"}
    assert {f.account_id for f in duplicates} == {"gmx_v2:kestrel"}
    assert {row["owner"] for row in rows_of(result, "accounts")} == {"osprey"}
    result = normalized([*payloads, fetched("tickers", "tickers.json")])
    assert {f.reason for f in result.failures} == {FailureReason.DUPLICATE, FailureReason.MISSING_MARK}
    assert incomplete(result) == {None, *ACCOUNTS}


def test_a_position_that_stands_twice_is_rejected_and_two_that_differ_are_inconsistent() -> None:
    result = normalized(desk(lambda body: body.append(body[0]), "getAccountPositions", "kestrel"))
    assert (only_reason(result), incomplete(result)) == (FailureReason.DUPLICATE, {ETH_LONG})
    assert only(result, "accounts", account_id=ETH_LONG)
    infos = fetched("getAccountPositionInfoList", "osprey_position_infos.json", "osprey")
    plain = replace(
        infos, request="getAccountPositions", name="plain.json", body=[copy.deepcopy(i["position"]) for i in infos.body]
    )
    assert normalized([*desk(), plain]).failures == []
    plain.body[0]["numbers"]["collateralAmount"] = "1"
    result = normalized([*desk(), plain])
    assert (only_reason(result), len(incomplete(result))) == (FailureReason.INCONSISTENT, 1)


def test_a_contradiction_between_payloads_is_a_failure_of_those_who_need_the_value() -> None:
    other = fetched("dataStore", "data_store.json")
    body = {"markets": {SOL_MARKET: {"minCollateralFactor": str(usd("0.02"))}}}
    result = normalized([*desk(), replace(other, request="dataStore:late", name="late.json", body=body)])
    assert only_reason(result) == FailureReason.INCONSISTENT
    assert incomplete(result) == {None, SOL_LONG, SOL_SHORT}


def test_wrong_collateral_unknown_requests_and_payloads_of_nobody() -> None:
    result = normalized(
        desk(_set(0, "addresses", "collateralToken", to=f"0x{0xA5:040x}"), "getAccountPositions", "kestrel")
    )
    # The position is then another one, of which the venue's own answer says nothing.
    assert {f.reason for f in result.failures if f.account_id} == {FailureReason.INCONSISTENT}
    result = normalized([replace(desk()[0], request="getMarketz")])
    assert only_reason(result) == FailureReason.UNSUPPORTED
    result = normalized([replace(p, account="") for p in desk() if p.request == "getAccountPositions"])
    assert (only_reason(result), result.failures[0].path) == (FailureReason.MISSING_FIELD, "account")


@pytest.mark.parametrize(
    "body", [None, 5, "x", [5], [None], [[1, 2]], {"positions": 5}, {"position": 5}, {"positionInfo": 5}]
)
def test_a_body_of_another_type_makes_the_owner_incomplete(body: Any) -> None:
    result = normalized([replace(p, body=body) if p.request == "getAccountPositions" else p for p in desk()])
    assert {f.reason for f in result.failures if f.account_id} <= {FailureReason.MALFORMED, FailureReason.MISSING_FIELD}
    assert {f.account_id for f in result.failures if f.account_id} == {"gmx_v2:kestrel"}


@pytest.mark.parametrize("request_", ["tokens", "getMarkets", "tickers", "dataStore", "getMarketInfoList"])
@pytest.mark.parametrize("body", [None, 5, "x", [5], [None], {}])
def test_a_market_wide_body_of_another_type_is_no_exception(request_: str, body: Any) -> None:
    result = normalized([replace(p, body=body) if p.request == request_ else p for p in desk()])
    assert result.failures
    assert len(rows_of(result, "accounts")) == len(ACCOUNTS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(0, "fees", "totalCostAmount", to=...), FailureReason.MISSING_FIELD),
        (_set(0, "fees", "ui", "uiFeeAmount", to="9" * 30), FailureReason.INCONSISTENT),
        (_set(0, "executionPriceResult", to=...), FailureReason.MISSING_FIELD),
        (_set(0, "basePnlUsd", to=str(usd("99999999"))), FailureReason.INCONSISTENT),
        (_set(0, "fees", "collateralTokenPrice", "min", to="0"), FailureReason.OUT_OF_RANGE),
    ],
)
def test_an_unreadable_info_makes_the_owner_incomplete(change: Change, reason: FailureReason) -> None:
    result = normalized(desk(change, "getAccountPositionInfoList", "osprey"))
    assert only_reason(result, "gmx_v2:osprey") == reason
    # The venue's own answer about a position that could not be read is a finding of its own.
    assert {f.reason for f in result.failures if f.account_id is None} <= {FailureReason.INCONSISTENT}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(0, "info", to=...), FailureReason.MISSING_FIELD),
        (_set(0, "isLiquidatable", to="no"), FailureReason.MALFORMED),
        (_set(0, "market", to=SOL_MARKET), FailureReason.INCONSISTENT),
        (_set(0, "info", "remainingCollateralUsd", to="1.5"), FailureReason.NOT_A_NUMBER),
    ],
)
def test_an_unreadable_answer_of_the_venue_stops_nobody(change: Change, reason: FailureReason) -> None:
    result = normalized(desk(change, "isPositionLiquidatable", "kestrel"))
    assert (only_reason(result), incomplete(result)) == (reason, {None})
    assert only(result, "accounts", account_id=ETH_LONG)["reported_equity"] is None
    assert only(result, "accounts", account_id=SOL_LONG)["reported_equity"] is not None


def test_parameters_may_hold_tokens_markets_and_values() -> None:
    tokens, markets, store = (p.body for p in desk() if p.request in ("tokens", "getMarkets", "dataStore"))
    parameters = {
        "chain": "arbitrum",
        "tokens": {t["address"]: {"symbol": t["symbol"], "decimals": t["decimals"]} for t in tokens["tokens"]},
        "markets": {m["marketToken"]: m | store["markets"][m["marketToken"]] for m in markets},
        "global": store["global"],
    }
    result = normalized(without("tokens", "getMarkets", "dataStore", "getMarketInfoList"), parameters)
    assert result.failures == []
    assert rows_of(result, "rule_sets") == rows_of(normalized(desk()), "rule_sets")
    # A payload goes before the file.
    parameters["global"] = {"MIN_COLLATERAL_USD": "7"}
    assert rows_of(normalized(desk(), parameters), "rule_sets") == rows_of(result, "rule_sets")


@pytest.mark.parametrize(
    "parameters",
    [
        {"chain": 5},
        {"tokens": {"0x12": {"symbol": "A", "decimals": 18}}},
        {"tokens": {WETH: 5}},
        {"markets": {ETH_MARKET: {"minCollateralFactor": "x"}}},
        {"symbols": {WETH: 5}},
        {"global": 5},
    ],
)
def test_a_parameter_file_that_cannot_be_read_is_a_configuration_error(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="gmx_v2"):
        normalized(desk(), parameters)


def test_without_a_chain_the_assets_are_those_of_the_venue() -> None:
    result = normalized(desk(), {})
    assert result.failures == []
    assert {row["chain"] for row in rows_of(result, "accounts")} == {"gmx_v2"}
    renamed = normalized(desk(), {"symbols": {WETH: "ETH"}})
    assert only(renamed, "instruments", symbol="ETH/USD[ETH-USDC]")["underlying"] == "ETH@gmx_v2"


# ---------------------------------------------------------------------------------------------------------------------
# The constructed sample


def test_the_constructed_sample_says_what_it_lacks(recorded: Path) -> None:
    root = recorded / "payloads" / "gmx_v2"
    sample = fetched("getAccountPositions", "position_constructed.json", "desk", root=root)
    result = normalized([sample])
    assert {f.reason for f in result.failures} == {FailureReason.UNKNOWN_MARKET}
    assert len(rows_of(result, "accounts")) == 1
    market, index = f"0x{2:040x}", f"0x{3:040x}"
    parameters: dict[str, Any] = {
        "chain": "hardhat",
        "tokens": {
            index: {"symbol": "WETH", "decimals": 18},
            USDC: {"symbol": "USDC", "decimals": 6},
        },
        "markets": {market: {"indexToken": index, "longToken": index, "shortToken": USDC}},
    }
    found = normalized([sample], parameters)
    assert {f.reason for f in found.failures} == {FailureReason.MISSING_PARAMETER}
    # What the hardhat configuration of its source states besides: no fees, 2 % at most of a positive impact.
    parameters["markets"][market] |= {
        "maxPositionImpactFactor_positive": str(usd("0.02")),
        "positionFeeFactor": "0",
        "cumulativeBorrowingFactor_long": "0",
        "fundingFeeAmountPerSize_long_longToken": "0",
    }
    found = normalized([sample], parameters)
    assert found.failures == []
    rule_set = only(found, "accounts")["rule_set"]
    fixed = parse_parameters("fixed", only(found, "rule_sets", rule_set=rule_set, form="fixed")["parameters"])
    assert isinstance(fixed, Fixed)
    # Closing gains A(200k) = 200 USD of impact; 0.08 ETH are pending at 4200: -336.
    assert float(fixed.equity) == pytest.approx(200 - 335.9999999999999958, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics: powers and price impact


@pytest.mark.parametrize(
    ("base", "exponent"), [("2", "2"), ("10", "1.75"), ("123456.789", "2.2"), ("99999999.5", "1.5")]
)
def test_the_fixed_point_power_is_the_real_one_to_its_last_digits(base: str, exponent: str) -> None:
    raw = power(int(Decimal(base) * UNIT), int(Decimal(exponent) * UNIT))
    with mpmath.workdps(60):
        real = mpmath.power(mpmath.mpf(base), mpmath.mpf(exponent))
        assert abs(mpmath.mpf(raw) / UNIT / real - 1) < POWER_RELATIVE


def test_the_logarithm_and_the_exponential_at_their_edges() -> None:
    assert binary_logarithm(UNIT) == 0
    assert binary_logarithm(8 * UNIT) == 3 * UNIT
    assert binary_exponential(0) == UNIT
    assert binary_exponential(10 * UNIT) == 1024 * UNIT
    with pytest.raises(ValueError, match=r"1\.0"):
        binary_logarithm(UNIT - 1)
    with pytest.raises(OverflowError):
        binary_exponential(192 * UNIT)


@settings(max_examples=60, deadline=None)
@given(st.integers(UNIT, 10**12 * UNIT), st.integers(UNIT, 3 * UNIT))
def test_powers_grow_with_base_and_exponent(base: int, exponent: int) -> None:
    with mpmath.workdps(60):
        real = mpmath.power(mpmath.mpf(base) / UNIT, mpmath.mpf(exponent) / UNIT)
        assert abs(mpmath.mpf(power(base, exponent)) / UNIT / real - 1) < 2 * POWER_RELATIVE


FACTORS = ImpactParameters(5 * 10**21, 10**22, 2 * FLOAT, 2 * FLOAT, 2 * 10**28)


def test_below_a_dollar_there_is_no_impact_and_an_exponent_of_one_is_exact() -> None:
    assert impact.applied_impact_factor(FLOAT - 1, FLOAT, 2 * FLOAT) == 0
    assert impact.applied_impact_factor(FLOAT, FLOAT, FLOAT) == FLOAT
    assert impact.applied_impact_factor(3 * FLOAT + 7, FLOAT, FLOAT) == 3 * FLOAT + 7


def test_crossing_the_balance_earns_by_the_positive_and_pays_by_the_negative_factor() -> None:
    # Long 400k, short 100k; 500k more short: the imbalance of 300k goes to 200k on the other side.
    now = OpenInterest(usd("400000"), usd("100000"))
    found = impact.price_impact(FACTORS, now, usd("500000"), is_long=False)
    assert found.usd / FLOAT == pytest.approx(5e-9 * 300_000**2 - 1e-8 * 200_000**2, rel=1e-15)
    assert found.balance_was_improved
    # The positive factor never exceeds the negative one.
    generous = FACTORS._replace(positive_factor=10**24)
    assert impact.price_impact(generous, now, usd("500000"), is_long=False).usd / FLOAT == pytest.approx(
        1e-8 * (300_000**2 - 200_000**2), rel=1e-15
    )


def test_a_worse_virtual_inventory_replaces_a_negative_impact_alone() -> None:
    now = OpenInterest(usd("600000"), usd("600000"))
    own = impact.price_impact(FACTORS, now, usd("100000"), is_long=True)
    # Tokens bought virtually: 900k of long interest.
    worse = impact.price_impact(FACTORS, now, usd("100000"), is_long=True, virtual_inventory=-usd("900000"))
    assert worse.usd / FLOAT == pytest.approx(-1e-8 * (1_000_000**2 - 900_000**2), rel=1e-14)
    better = impact.price_impact(FACTORS, now, usd("100000"), is_long=True, virtual_inventory=usd("900000"))
    assert better == own
    gain = impact.price_impact(FACTORS, now._replace(short=usd("900000")), usd("100000"), is_long=True)
    assert gain.usd > 0
    again = impact.price_impact(
        FACTORS, now._replace(short=usd("900000")), usd("100000"), is_long=True, virtual_inventory=-usd("900000")
    )
    assert again == gain


def test_a_decrease_lifts_both_virtual_sides_and_never_exceeds_its_own() -> None:
    assert impact.virtual_open_interest(usd("5"), -usd("3")) == OpenInterest(usd("3"), usd("8"))
    assert impact.virtual_open_interest(-usd("5"), usd("3")) == OpenInterest(usd("5"), 0)
    with pytest.raises(ValueError, match="exceeds"):
        impact.price_impact(FACTORS, OpenInterest(usd("1"), 0), -usd("2"), is_long=True)


def test_a_positive_impact_is_capped_by_the_smaller_factor() -> None:
    assert impact.capped_positive_impact(usd("500"), -usd("10000"), FACTORS) == usd("200")
    assert impact.capped_positive_impact(usd("500"), usd("10000"), FACTORS._replace(max_negative_factor=10**28)) == usd(
        "100"
    )
    assert impact.capped_positive_impact(-usd("500"), usd("10000"), FACTORS) == -usd("500")


def test_impact_tokens_round_against_the_trader() -> None:
    assert impact.impact_amount(100, 6, 7) == 14
    assert impact.impact_amount(-100, 6, 7) == -17
    assert impact.impact_amount(0, 6, 7) == 0
    assert impact.pending_impact_usd(3, 6, 7) == 18
    assert impact.pending_impact_usd(-3, 6, 7) == -21


def test_execution_prices() -> None:
    free = impact.execution_of_increase(0, usd("1000"), index_min=4 * 10**15, index_max=5 * 10**15, is_long=True)
    assert (free.price, free.size_in_tokens) == (5 * 10**15, usd("1000") // (5 * 10**15))
    empty = impact.execution_of_increase(-5, 0, index_min=4, index_max=5, is_long=False)
    assert empty == (4, 0, 0)
    with pytest.raises(ValueError, match="larger than the order"):
        impact.execution_of_increase(-usd("2000"), usd("1000"), index_min=10**15, index_max=10**15, is_long=True)
    terms: dict[str, Any] = {
        "position_usd": usd("1000"),
        "position_tokens": 10**18,
        "index_min": 10**15,
        "index_max": 2 * 10**15,
    }
    assert impact.execution_of_decrease(-usd("10"), usd("1000"), **terms, is_long=True) == 10**15 - 10**13
    assert impact.execution_of_decrease(-usd("10"), usd("1000"), **terms, is_long=False) == 2 * 10**15 + 10**13
    assert impact.execution_of_decrease(-usd("10"), 0, **terms, is_long=True) == 10**15
    with pytest.raises(ValueError, match="larger than the order"):
        impact.execution_of_decrease(-usd("1001"), usd("1000"), **terms, is_long=True)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**8),
    st.integers(0, 10**8),
    st.integers(1, 10**7),
    st.booleans(),
    st.sampled_from([FLOAT, 17 * 10**29, 2 * FLOAT]),
)
def test_opening_and_closing_never_earns_impact(long: int, short: int, size: int, is_long: bool, exponent: int) -> None:
    """The positive factor is at most the negative one and exponents are equal: a round trip costs or is free."""
    parameters = ImpactParameters(5 * 10**19, 10**20, exponent, exponent, FLOAT)
    now, delta = OpenInterest(long * FLOAT, short * FLOAT), size * FLOAT
    opened = impact.price_impact(parameters, now, delta, is_long=is_long)
    after = impact.next_open_interest(now, delta, is_long)
    closed = impact.price_impact(parameters, after, -delta, is_long=is_long)
    # The powers are good to some 1e-17 of themselves.
    slack = impact.applied_impact_factor(2 * (long + short + size + 1) * FLOAT, 10**20, exponent) // 10**15 + 10
    assert opened.usd + closed.usd <= slack


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics: profit, fees, liquidation


def test_profit_is_valued_against_the_trader_and_losses_are_not_capped() -> None:
    long = Position(True, usd("1000"), 10, 0)
    assert mechanics.uncapped_pnl(long, index_min=usd("99"), index_max=usd("101")) == -usd("10")
    assert mechanics.uncapped_pnl(long._replace(is_long=False), index_min=usd("99"), index_max=usd("101")) == -usd("10")
    pool = Pool(token_amount=1, token_price_min=usd("100"), pnl=usd("90"), max_pnl_factor=FLOAT // 2)
    assert mechanics.capped_side_pnl(pool) == usd("50")
    assert mechanics.capped_pnl(usd("9"), pool) == usd("5")
    assert mechanics.capped_pnl(-usd("9"), pool) == -usd("9")
    assert mechanics.capped_pnl(usd("9"), pool._replace(pnl=usd("50"))) == usd("9")
    assert mechanics.capped_pnl(usd("9"), None) == usd("9")
    assert mechanics.pnl_to_pool_factor(pool) == 9 * FLOAT // 10
    assert mechanics.pnl_to_pool_factor(pool._replace(token_amount=0)) == 0
    assert mechanics.side_pnl(usd("10"), 0, 5, is_long=True) == 0


def test_fees_and_their_rounding() -> None:
    # 0.05 % of 1000.0000019 USD is 0.50000000095 USD: 500000 units of a token of 1.000001 USD round down to 499999.
    assert mechanics.position_fee_amount(usd("1000.0000019"), usd("0.0005"), 1000001 * 10**18) == 499999
    assert mechanics.borrowing_fee_usd(usd("1000"), usd("0.02"), usd("0.015")) == usd("5")
    with pytest.raises(ValueError, match="exceeds"):
        mechanics.borrowing_fee_usd(1, 1, 2)
    assert mechanics.funding_fee_amount(usd("1"), 10**15 + 1, 0) == 2
    assert mechanics.claimable_funding_amount(usd("1"), 10**15 + 1, 0) == 1
    assert mechanics.next_borrowing_factor(10, 3, 5) == 25
    assert mechanics.liquidation_fee_amount(usd("1000"), usd("0.002"), 10**24) == 2 * 10**6
    assert Fees(1, 2, 3, 4, 5).total == 5


def test_pending_impact_joins_that_of_the_close_before_the_caps() -> None:
    prices, held = Prices(90, 110, 1), Position(True, usd("1"), 1, 1, pending_impact_amount=-3)
    assert mechanics.impact_for_check(held, 200, prices, FLOAT) == -130
    assert mechanics.impact_for_check(held, 400, prices, FLOAT) == 0
    assert mechanics.impact_for_check(held._replace(pending_impact_amount=3), -300, prices, FLOAT) == -30
    assert mechanics.impact_for_check(held, -usd("5"), prices, usd("0.25")) == -usd("0.25")


def _check(collateral: int, minimum: int | None, factor: str = "0.1") -> mechanics.Check:
    held = Position(True, usd("100"), 1, collateral)
    return mechanics.liquidation_check(
        held, Prices(usd("100"), usd("100"), FLOAT), min_collateral_factor=usd(factor), min_collateral_usd=minimum
    )


def test_the_three_bounds_and_equality() -> None:
    assert _check(10, usd("1")) == (False, "", usd("10"), 0, usd("10"))
    assert _check(9, usd("1")).reason == "min collateral for leverage"
    assert _check(9, usd("10")).reason == "min collateral"
    assert _check(10, usd("10")).reason == ""
    assert _check(0, None, "0").reason == "< 0"
    assert _check(0, 0, "0").reason == "< 0"
    assert _check(1, None, "0").reason == ""


def test_the_gate_of_opening_follows_open_interest() -> None:
    factor = mechanics.open_interest_collateral_factor(usd("0.01"), usd("1000"), -usd("500"), usd("0.0001"))
    assert factor == usd("0.05")
    assert mechanics.open_interest_collateral_factor(usd("0.06"), usd("1000"), -usd("500"), usd("0.0001")) == usd(
        "0.06"
    )
    with pytest.raises(ValueError, match="exceeds"):
        mechanics.open_interest_collateral_factor(0, 1, -2, 0)
    gate: dict[str, Any] = {"size_usd": usd("100"), "min_collateral_factor": factor}
    assert mechanics.collateral_sufficiency(5, FLOAT, realized_pnl_usd=usd("9"), **gate).sufficient
    assert not mechanics.collateral_sufficiency(5, FLOAT, realized_pnl_usd=-1, **gate).sufficient
    assert not mechanics.collateral_sufficiency(
        0, FLOAT, realized_pnl_usd=-1, size_usd=0, min_collateral_factor=0
    ).sufficient


def test_a_liquidation_pays_the_trader_or_costs_the_pool() -> None:
    assert mechanics.liquidation_settlement(usd("10"), usd("3")) == (usd("7"), usd("3"), 0)
    assert mechanics.liquidation_settlement(usd("2"), usd("3")) == (0, usd("3"), usd("1"))


@settings(max_examples=100, deadline=None)
@given(
    is_long=st.booleans(),
    collateral_is_index=st.booleans(),
    size=st.integers(100, 10**7),
    tokens=st.integers(1, 10**6),
    collateral=st.integers(0, 10**5),
    costs=st.integers(0, 10**4),
    requirement=st.integers(0, 10**5),
)
def test_the_liquidation_price_is_the_zero_of_the_condition(
    is_long: bool, collateral_is_index: bool, size: int, tokens: int, collateral: int, costs: int, requirement: int
) -> None:
    held = Position(is_long, size * FLOAT, tokens, collateral)
    found = mechanics.liquidation_price(
        held,
        requirement_usd=requirement * FLOAT,
        costs_usd=costs * FLOAT,
        collateral_usd=collateral * FLOAT,
        collateral_is_index=collateral_is_index,
    )
    slope = (tokens if is_long else -tokens) + (collateral if collateral_is_index else 0)
    assume(slope)
    worth = collateral if collateral_is_index else 0
    rest = 0 if collateral_is_index else collateral * FLOAT
    if found is None:
        fixed = rest + (-size if is_long else size) * FLOAT - costs * FLOAT - requirement * FLOAT
        assert Fraction(-fixed, slope) <= 0
    else:
        pnl = tokens * found - size * FLOAT if is_long else size * FLOAT - tokens * found
        assert worth * found + rest + pnl - costs * FLOAT == requirement * FLOAT


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(0, FLOAT), st.integers(0, 10**9))
def test_a_larger_position_never_needs_less(size: int, more: int, factor: int, minimum: int) -> None:
    small, large = (
        mechanics.minimum_collateral_usd(usd_, factor, minimum * FLOAT)
        for usd_ in (size * FLOAT, (size + more) * FLOAT)
    )
    assert minimum * FLOAT <= small <= large


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 40_000_000), move=st.integers(-20, 20), collateral=st.integers(1, 10**6), is_long=st.booleans()
)
def test_the_tables_of_any_position_give_its_remaining_collateral(
    size: int, move: int, collateral: int, is_long: bool
) -> None:
    """Equity by the tables' own arithmetic against the exact check, for made-up positions in the BTC market."""
    tokens = size * 10**8 * 100 // (60_970 * (100 + move)) or 1

    def change(body: Any) -> None:
        body[:] = [copy.deepcopy(body[1])]
        body[0]["flags"]["isLong"] = is_long
        body[0]["numbers"] |= {
            "sizeInUsd": str(size * FLOAT),
            "sizeInTokens": str(tokens),
            "collateralAmount": str(collateral * 10**6),
            "borrowingFactor": "0",
            "fundingFeeAmountPerSize": "0",
        }

    payloads = [p for p in desk(change, "getAccountPositions", "kestrel") if p.request != "isPositionLiquidatable"]
    result = normalized(payloads)
    account = f"gmx_v2:kestrel:BTC/USD[WBTC-USDC]:USDC:{'long' if is_long else 'short'}"
    assert [f for f in result.failures if f.account_id] == []
    row = only(result, "accounts", account_id=account)
    held, balance = only(result, "positions", account_id=account), only(result, "balances", account_id=account)
    marks = {m["field"]: Decimal(str(m["value"])) for m in rows_of(result, "marks", account_id=account)}
    weights = {
        r["asset_id"]: r["asset_weight_maintenance"]
        for r in rows_of(result, "collateral_tiers", rule_set=row["rule_set"])
    }
    profit = held["quantity"] * (marks["mark"] - held["entry_price"])
    profit *= weights.get(held["instrument_id"], 1) if profit > 0 else 1
    fixed = parse_parameters("fixed", only(result, "rule_sets", rule_set=row["rule_set"], form="fixed")["parameters"])
    assert isinstance(fixed, Fixed)
    equity = balance["quantity"] * marks["oracle"] + profit + fixed.equity

    store = next(p.body for p in payloads if p.request == "dataStore")["markets"][BTC_MARKET]
    value = {key: int(text) for key, text in store.items()}
    side, token = ("long", "shortToken") if is_long else ("short", "shortToken")
    position = Position(is_long, size * FLOAT, tokens, collateral * 10**6, pending_impact_amount=40_000)
    prices = Prices(
        int(Decimal("60968.2").scaleb(22)), int(Decimal("60971.8").scaleb(22)), int(Decimal("0.99995").scaleb(24))
    )
    parameters = ImpactParameters(
        *(value[f"positionImpactFactor_{sign}"] for sign in ("positive", "negative")),
        *(value[f"positionImpactExponentFactor_{sign}"] for sign in ("positive", "negative")),
        *(value[f"maxPositionImpactFactor_{sign}"] for sign in ("positive", "negative")),
    )
    interest = OpenInterest(value["openInterest_long"], value["openInterest_short"])
    close = mechanics.full_close_impact(position, parameters, interest)
    fee_factor = value[f"positionFeeFactor_{'positive' if close.balance_was_improved else 'negative'}"]
    fees = Fees(
        position=mechanics.position_fee_amount(position.size_in_usd, fee_factor, prices.collateral_min),
        borrowing=mechanics.borrowing_fee_usd(position.size_in_usd, value[f"cumulativeBorrowingFactor_{side}"], 0)
        // prices.collateral_min,
        funding=mechanics.funding_fee_amount(position.size_in_usd, value[f"fundingFeeAmountPerSize_{side}_{token}"], 0),
    )
    pool = Pool(
        *(
            (
                value["poolAmount_longToken"],
                int(Decimal("60967.5").scaleb(22)),
                mechanics.side_pnl(
                    value["openInterest_long"], value["openInterestInTokens_long"], prices.index_max, is_long=True
                ),
                value["maxPnlFactorForTraders_long"],
            )
            if is_long
            else (
                value["poolAmount_shortToken"],
                prices.collateral_min,
                mechanics.side_pnl(
                    value["openInterest_short"], value["openInterestInTokens_short"], prices.index_min, is_long=False
                ),
                value["maxPnlFactorForTraders_short"],
            )
        )
    )
    check = mechanics.liquidation_check(
        position,
        prices,
        min_collateral_factor=value["minCollateralFactorForLiquidation"],
        min_collateral_usd=FLOAT,
        impact_usd=mechanics.impact_for_check(
            position, close.usd, prices, value["maxPositionImpactFactorForLiquidations"]
        ),
        fees=fees,
        pool=pool,
    )
    exact = Fraction(check.remaining_collateral_usd, FLOAT)
    assert abs(Fraction(equity) - exact) <= Fraction(1, 10**9) * max(abs(exact), Fraction(size))


def test_failures_are_rows_of_the_closed_list_with_a_place() -> None:
    result = normalized([replace(p, body={"data": [5]}) for p in desk()])
    assert result.failures
    assert all(isinstance(f, Failure) and f.venue == "gmx_v2" and f.payload for f in result.failures)
    assert AssetBook({}).resolve("WETH") is None
