"""The Aave v3 adapter and its exact mechanics.

The payloads in `tests/payloads/aave_v3` have the shape of the view contracts `UiPoolDataProviderV3` and `Pool`; their
figures are made up. `getUserAccountData` there holds what the contracts would answer for the same reserves.
"""

import copy
import json
import math
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.aave_v3 import ADAPTER, mechanics
from adapters.adapter import Adapter, Context, Normalized
from adapters.asset_book import Asset, AssetBook
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, Failure
from aggregator.schema.canonical import CANONICAL
from aggregator.snapshot import take_snapshot
from tests.normalized_rows import rows_of
from tests.payload_files import put

HERE = Path(__file__).resolve().parent
PAYLOADS = HERE / "payloads" / "aave_v3"
EXPECTED = HERE / "expected" / "aave_v3"
ROOT = HERE.parent

OWNERS = ("basis", "staking", "treasury")
WETH, WSTETH, WBTC, USDC, DAI, GHO, SZZZ = range(7)
# The contracts floor each collateral and ceil each debt to 1e-8 dollars; nobody here holds more than four of them.
BASE_ROUNDING = Fraction(4, 10**8)
# A mark is the float64 nearest to the oracle's price: 2^-53 relative, on a few hundred thousand dollars.
MARK_ROUNDING = Fraction(1, 2**53)

Body = dict[str, Any]


def _wrapped(symbol: str, of: str) -> Asset:
    return Asset(symbol, of, Decimal(1), symbol, "issuer")


BOOK = AssetBook(
    {
        "WETH": Asset("WETH", "ETH", Decimal(1), None, None),
        "wstETH": _wrapped("wstETH", "ETH"),
        "WBTC": _wrapped("WBTC", "BTC"),
        "BTC": Asset("BTC", "BTC", Decimal(1), None, None),
        "USDC": Asset("USDC", None, Decimal(1), "USDC", "circle"),
        "DAI": Asset("DAI", None, Decimal(1), "DAI", "maker"),
        "GHO": Asset("GHO", None, Decimal(1), "GHO", "aave"),
    }
)


def _parameters(**changes: Any) -> dict[str, Any]:
    return tomllib.loads((ROOT / "configs" / "venues" / "aave_v3.toml").read_text(encoding="utf-8")) | changes


def _context(**changes: Any) -> Context:
    return Context(BOOK, _parameters(**changes))


def _fetch(name: str, request: str = "", account: str = "", root: Path = PAYLOADS) -> Payload | Failure:
    return RecordedTransport(root).fetch("aave_v3", PayloadRequest(request, f"{name}.json", account))


def _payload(name: str, account: str = "") -> Payload:
    fetched = _fetch(name, account=account)
    assert isinstance(fetched, Payload), fetched
    return fetched


def _desk() -> dict[str, Payload]:
    names = {"reserves": "", "emodes": ""}
    names |= {f"user_{owner}": owner for owner in OWNERS} | {f"data_{owner}": owner for owner in OWNERS}
    return {name: _payload(name, account) for name, account in names.items()}


def _normalize(payloads: dict[str, Payload] | list[Payload], **changes: Any) -> Normalized:
    listed = list(payloads.values()) if isinstance(payloads, dict) else payloads
    return ADAPTER.normalize(listed, _context(**changes))


def _changed(payload: Payload, change: Callable[[Body], None]) -> Payload:
    body = copy.deepcopy(payload.body)
    change(body)
    return Payload(payload.request, payload.name, payload.account, payload.received_at, payload.sha256, body)


def _account(owner: str) -> str:
    return f"aave_v3:{owner}:ethereum-core"


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return value.isoformat() if isinstance(value, datetime) else value


# What the tables say --------------------------------------------------------------------------------------------------


def test_the_object_is_an_adapter_and_answers_nothing_with_its_rule_set_alone() -> None:
    assert isinstance(ADAPTER, Adapter)
    normalized = _normalize([])
    assert normalized.failures == []
    assert set(normalized.batches) == set(CANONICAL) - {"failures"}
    assert {name for name, table in normalized.batches.items() if table.num_rows} == {"rule_sets"}


def test_the_desk_becomes_the_expected_tables() -> None:
    normalized = _normalize(_desk())
    assert normalized.failures == []
    expected = json.loads((EXPECTED / "tables.json").read_text(encoding="utf-8"))
    assert set(expected) == {name for name, table in normalized.batches.items() if table.num_rows}
    for table, rows in expected.items():
        found = [
            {key: _plain(value) for key, value in row.items() if value is not None}
            for row in rows_of(normalized, table)
        ]
        assert found == rows, table


def test_a_debt_costs_its_reserves_variable_rate_a_year() -> None:
    normalized = _normalize(_desk())
    rates = {(r["account_id"], r["subject"]): r["value"] for r in rows_of(normalized, "marks", field="borrow_rate")}
    owed = {(r["account_id"], r["asset_id"]) for r in rows_of(normalized, "balances", side="liability")}
    assert set(rates) == owed
    states = rows_of(normalized, "market_state", field="variable_borrow_rate")
    of_reserve = {row["market"]: row["value"] for row in states}
    assert {key: of_reserve[key[1]] for key in rates} == pytest.approx(rates, rel=1e-15)


def test_the_desk_makes_a_complete_snapshot() -> None:
    normalized = _normalize(_desk())
    snapshot = take_snapshot([normalized.batches], normalized.failures)
    assert snapshot.failures == ()
    assert snapshot.incomplete == frozenset()
    assert snapshot.as_of == datetime(2024, 6, 14, 12, 0, 2, tzinfo=UTC)


def _margin_form(normalized: Normalized, account: str) -> tuple[Fraction, Fraction, Fraction]:
    """(equity, maintenance, initial) of an account from its rows: what the margin form says, in plain fractions."""
    (row,) = rows_of(normalized, "accounts", account_id=account)
    prices = {mark["subject"]: Fraction(mark["value"]) for mark in rows_of(normalized, "marks", field="oracle")}
    tiers = {(t["asset_id"], t["emode"]): t for t in rows_of(normalized, "collateral_tiers", rule_set=row["rule_set"])}
    equity = maintenance = initial = Fraction(0)
    for balance in rows_of(normalized, "balances", account_id=account):
        value = Fraction(balance["quantity"]) * prices[balance["asset_id"]]
        if not balance["collateral_enabled"]:
            continue
        if balance["side"] == "liability":
            equity -= value
            continue
        tier = tiers.get((balance["asset_id"], row["emode"] or "")) or tiers[balance["asset_id"], ""]
        equity += value
        maintenance += value * (1 - Fraction(tier["asset_weight_maintenance"]))
        initial += value * (1 - Fraction(tier["asset_weight_initial"]))
    return equity, maintenance, initial


@pytest.mark.parametrize("owner", OWNERS)
def test_value_is_quantity_times_price_and_equals_what_the_venue_reports(owner: str) -> None:
    normalized = _normalize(_desk())
    equity, maintenance, initial = _margin_form(normalized, _account(owner))
    (row,) = rows_of(normalized, "accounts", account_id=_account(owner))
    gross = 10**6
    tolerance = BASE_ROUNDING + gross * MARK_ROUNDING
    assert abs(Fraction(row["reported_equity"]) - equity) <= tolerance
    assert abs(Fraction(row["reported_maintenance_margin"]) - maintenance) <= tolerance
    assert row["reported_initial_margin"] is None
    # available borrows = equity - initial margin, the average LTV floored to a basis point of the collateral
    available = Fraction(_desk()[f"data_{owner}"].body["availableBorrowsBase"]) / 10**8
    collateral = Fraction(_desk()[f"data_{owner}"].body["totalCollateralBase"]) / 10**8
    assert -tolerance <= equity - initial - available <= collateral / 10**4 + tolerance
    weighted = equity - maintenance + Fraction(_desk()[f"data_{owner}"].body["totalDebtBase"]) / 10**8
    debt = Fraction(_desk()[f"data_{owner}"].body["totalDebtBase"]) / 10**8
    assert abs(Fraction(row["reported_health"]) - weighted / debt) <= 2 * tolerance / debt + Fraction(1, 10**18)


def test_a_balance_is_accrued_to_the_second_it_was_received_and_rounded_against_the_user() -> None:
    desk = _desk()
    weth = desk["reserves"].body["reserves"][WETH]
    elapsed = 26  # last update 24 s before the market's payload, which came 2 s before the user's
    growth = 10**27 + int(weth["liquidityRate"]) * elapsed // 31_536_000
    index = (growth * int(weth["liquidityIndex"]) + 10**27 // 2) // 10**27
    scaled = int(desk["user_treasury"].body["userReserves"][WETH]["scaledATokenBalance"])
    (row,) = rows_of(_normalize(desk), "balances", account_id=_account("treasury"), asset_id="WETH@ethereum")
    assert row["quantity"] == Decimal(scaled * index // 10**27).scaleb(-18)

    dai = desk["reserves"].body["reserves"][DAI]
    # in real numbers: the venue's own rounding of the index is a few parts in 1e27, far below a unit of this debt
    x = Fraction(int(dai["variableBorrowRate"]) * (96 + 2), 31_536_000 * 10**27)
    factor = 1 + x + x**2 / 2 + x**3 / 6
    scaled = int(desk["user_treasury"].body["userReserves"][DAI]["scaledVariableDebt"])
    owed = math.ceil(scaled * factor * int(dai["variableBorrowIndex"]) / 10**27)
    (row,) = rows_of(_normalize(desk), "balances", account_id=_account("treasury"), asset_id="DAI@ethereum")
    assert row["quantity"] == Decimal(owed).scaleb(-18)
    assert row["side"] == "liability"


def test_balances_without_a_receive_time_stay_as_stored() -> None:
    desk = _desk()
    timed = (desk["reserves"], desk["emodes"], desk["user_treasury"])
    timeless = [Payload(p.request, p.name, p.account, None, p.sha256, p.body) for p in timed]
    (row,) = rows_of(_normalize(timeless), "balances", asset_id="USDC@ethereum")
    index = int(desk["reserves"].body["reserves"][USDC]["liquidityIndex"])
    assert row["quantity"] == Decimal(9_218_900_123 * index // 10**27).scaleb(-6)
    assert rows_of(_normalize(timeless), "accounts")[0]["received_at"] is None


def test_an_older_release_rounds_balances_half_up() -> None:
    def unit_index(body: Body) -> None:
        for reserve in body["reserves"]:
            reserve |= {"liquidityIndex": str(15 * 10**26), "variableBorrowIndex": str(14 * 10**26)}
            reserve |= {"liquidityRate": "0", "variableBorrowRate": "0"}

    def one_each(body: Body) -> None:
        for record in body["userReserves"]:
            record |= {"scaledATokenBalance": "0", "scaledVariableDebt": "0"}
        body["userReserves"][USDC] |= {"scaledATokenBalance": "3", "scaledVariableDebt": "3"}

    desk = _desk()
    payloads = [_changed(desk["reserves"], unit_index), _changed(desk["user_treasury"], one_each)]
    for rules, supply, debt in (("v3.4", "5", "4"), ("v3.5", "4", "5"), ("v3.7", "4", "5")):
        rows = rows_of(_normalize(payloads, rules=rules), "balances")
        found = {row["side"]: row["quantity"] for row in rows}
        assert found == {"asset": Decimal(supply).scaleb(-6), "liability": Decimal(debt).scaleb(-6)}, rules


def test_emode_rows_exist_where_a_used_category_changes_the_reserve() -> None:
    rows = {(r["asset_id"], r["emode"]): r for r in rows_of(_normalize(_desk()), "collateral_tiers")}
    tokens = ("WETH", "wstETH", "WBTC", "USDC", "DAI", "GHO")
    # category 1 changes its two members, the isolated category 2 its one member and the LTV of all others that have one
    assert set(rows) == (
        {(f"{token}@ethereum", "") for token in tokens}
        | {(f"{token}@ethereum", "1") for token in ("WETH", "wstETH")}
        | {(f"{token}@ethereum", "2") for token in tokens if token != "GHO"}
    )
    weights = {
        key: (r["asset_weight_initial"], r["asset_weight_maintenance"], r["liquidation_bonus"])
        for key, r in rows.items()
    }
    assert weights["WETH@ethereum", ""] == (Decimal("0.805"), Decimal("0.83"), Decimal("0.05"))
    assert weights["WETH@ethereum", "1"] == (Decimal("0.93"), Decimal("0.95"), Decimal("0.01"))
    assert weights["wstETH@ethereum", "2"] == (Decimal("0.79"), Decimal("0.82"), Decimal("0.06"))
    assert weights["WETH@ethereum", "2"] == (0, Decimal("0.83"), Decimal("0.05"))
    assert weights["GHO@ethereum", ""] == (0, 0, None)
    assert all(r["liability_weight_initial"] == r["liability_weight_maintenance"] == 1 for r in rows.values())
    alone = {key: p for key, p in _desk().items() if key in ("reserves", "emodes", "user_treasury")}
    assert {r["emode"] for r in rows_of(_normalize(alone), "collateral_tiers")} == {""}


def test_collateral_that_is_disabled_or_has_no_threshold_stays_a_balance() -> None:
    rows = rows_of(_normalize(_desk()), "balances", account_id=_account("treasury"), asset_id="USDC@ethereum")
    assert [row["collateral_enabled"] for row in rows] == [False]

    def supply_gho(body: Body) -> None:
        body["userReserves"][GHO] |= {"scaledATokenBalance": "1000", "usageAsCollateralEnabledOnUser": True}

    desk = _desk()
    desk["user_treasury"] = _changed(desk["user_treasury"], supply_gho)
    rows = rows_of(_normalize(desk), "balances", account_id=_account("treasury"), asset_id="GHO@ethereum", side="asset")
    assert [row["collateral_enabled"] for row in rows] == [False]


def test_flags_caps_and_grace_period_are_market_state() -> None:
    state = {(r["market"], r["field"]): r for r in rows_of(_normalize(_desk()), "market_state")}
    assert state["WETH@ethereum", "status"]["text"] == "active"
    assert state["DAI@ethereum", "status"]["text"] == "active frozen"
    assert state["sZZZ@ethereum", "status"]["text"] == "active paused"
    assert state["sZZZ@ethereum", "liquidation_grace_until"]["value"] == 1718370000.0
    assert state["WBTC@ethereum", "supply_cap"]["value"] == 43000.0
    assert ("GHO@ethereum", "supply_cap") not in state
    assert ("WETH@ethereum", "liquidation_grace_until") not in state


def test_prices_in_another_base_currency_become_dollars() -> None:
    def in_ether(body: Body) -> None:
        body["baseCurrencyInfo"] |= {"marketReferenceCurrencyUnit": str(10**18)}
        body["baseCurrencyInfo"] |= {"marketReferenceCurrencyPriceInUsd": str(2500 * 10**8)}
        body["reserves"][USDC]["priceInMarketReferenceCurrency"] = str(4 * 10**14)

    desk = _desk()
    desk["reserves"] = _changed(desk["reserves"], in_ether)
    (mark,) = rows_of(_normalize(desk), "marks", subject="USDC@ethereum")
    assert mark["value"] == 1.0


def test_a_symbol_override_tells_two_tokens_of_one_name_apart() -> None:
    def same_name(body: Body) -> None:
        body["reserves"][DAI]["symbol"] = "USDC"

    desk = _desk()
    desk["reserves"] = _changed(desk["reserves"], same_name)
    refused = _normalize(desk)
    assert [f.reason for f in refused.failures if f.account_id is None] == ["duplicate", "duplicate"]
    assert {f.account_id for f in refused.failures if f.account_id} == {_account("treasury")}
    address = desk["reserves"].body["reserves"][DAI]["underlyingAsset"].upper().replace("0X", "0x")
    assert _normalize(desk, symbols={address: "DAI"}).failures == []


def test_reserve_ids_go_before_positions_in_bitmaps() -> None:
    def with_ids(body: Body) -> None:
        for position, reserve in enumerate(body["reserves"]):
            reserve["id"] = position or 40

    desk = _desk()
    desk["reserves"] = _changed(desk["reserves"], with_ids)
    changed = {r["asset_id"] for r in rows_of(_normalize(desk), "collateral_tiers", emode="1")}
    assert changed == {"wstETH@ethereum"}  # the category has bits 0 and 1, and no reserve has the id 0 any more


# Margin form and health factor ----------------------------------------------------------------------------------------


@st.composite
def _accounts(draw: st.DrawFn) -> tuple[list[mechanics.ReserveHolding], mechanics.EMode | None]:
    bps = st.integers(0, 10_000)

    def parameters() -> mechanics.CollateralParameters:
        ltv, threshold = sorted((draw(bps), draw(bps)))
        return mechanics.CollateralParameters(ltv, threshold, 10_500)

    holdings = [
        mechanics.ReserveHolding(
            reserve_id=number,
            decimals=draw(st.sampled_from((2, 6, 8))),
            price=draw(st.integers(1, 5000)) * 10**8,  # whole dollars: no value is rounded to the base unit
            parameters=parameters(),
            scaled_supply=draw(st.integers(0, 10**8)),
            is_collateral=draw(st.booleans()),
            scaled_debt=draw(st.integers(0, 10**8)),
        )
        for number in range(draw(st.integers(1, 4)))
    ]
    if draw(st.booleans()):
        return holdings, None
    bits = st.integers(0, 2 ** len(holdings) - 1)
    return holdings, mechanics.EMode(1, parameters(), draw(bits), draw(bits), draw(st.booleans()))


def _as_payloads(holdings: list[mechanics.ReserveHolding], emode: mechanics.EMode | None) -> list[Payload]:
    symbols = ("WETH", "WBTC", "USDC", "DAI")
    template = _payload("reserves").body
    reserves, held = [], []
    for holding in holdings:
        address = f"0x{holding.reserve_id:040x}"
        reserves.append(
            template["reserves"][WETH]
            | {
                "underlyingAsset": address,
                "symbol": symbols[holding.reserve_id],
                "decimals": str(holding.decimals),
                "priceInMarketReferenceCurrency": str(holding.price),
                "baseLTVasCollateral": str(holding.parameters.ltv),
                "reserveLiquidationThreshold": str(holding.parameters.liquidation_threshold),
                "liquidityIndex": str(holding.liquidity_index),
                "variableBorrowIndex": str(holding.borrow_index),
            }
        )
        held.append(
            {
                "underlyingAsset": address,
                "scaledATokenBalance": str(holding.scaled_supply),
                "usageAsCollateralEnabledOnUser": holding.is_collateral,
                "scaledVariableDebt": str(holding.scaled_debt),
            }
        )
    category = emode.category if emode else 0
    bodies: dict[str, Body] = {
        "getReservesData": template | {"reserves": reserves},
        "getUserReservesData": {"userReserves": held, "userEmodeCategoryId": category},
    }
    if emode:
        names: Body = {"ltv": emode.parameters.ltv, "liquidationThreshold": emode.parameters.liquidation_threshold}
        names |= {
            "liquidationBonus": 10_500,
            "collateralBitmap": str(emode.collateral_bitmap),
            "isolated": emode.isolated,
        }
        bodies["getEModes"] = {"eModes": [{"id": 1, "eMode": names | {"ltvzeroBitmap": str(emode.ltvzero_bitmap)}}]}
    return [
        Payload(request, request, "one" if "User" in request else "", None, "", body)
        for request, body in bodies.items()
    ]


@given(_accounts())
def test_equity_falls_below_maintenance_exactly_when_health_falls_below_one(
    account: tuple[list[mechanics.ReserveHolding], mechanics.EMode | None],
) -> None:
    holdings, emode = account
    data = mechanics.account_data(holdings, emode)
    normalized = _normalize(_as_payloads(holdings, emode))
    assert normalized.failures == []
    equity, maintenance, initial = _margin_form(normalized, _account("one"))
    unhealthy = data.health_factor is not None and data.health_factor < mechanics.WAD
    assert (equity - maintenance < 0) == unhealthy
    # equity - maintenance is the weighted collateral less the debt, to the last base unit
    assert (equity - maintenance) * 10**12 == data.weighted_collateral - data.total_debt * 10**4
    # the initial margin allows what the venue allows, up to the flooring of the average LTV
    slack = Fraction(data.total_collateral, 10**4 * 10**8) + Fraction(1, 10**8)
    free = max(equity - initial, Fraction(0))
    assert 0 <= free - Fraction(data.available_borrows, 10**8) <= slack


# Far above any account: the half-up division of the health factor can lift a deficit of one part in 2e22 to exactly 1.
LARGEST_DEBT = 2 * 10**18


@given(
    weighted=st.integers(0, 10**22), debt=st.integers(1, LARGEST_DEBT - 1), shift=st.integers(-2, 2), near=st.booleans()
)
def test_the_two_verdicts_agree_on_integers_up_to_the_boundary(
    weighted: int, debt: int, shift: int, near: bool
) -> None:
    weighted = max(debt * 10**4 + shift, 0) if near else weighted
    health = mechanics.health_factor(weighted, debt)
    assert health is not None
    assert (health < mechanics.WAD) == (weighted - debt * 10**4 < 0)


@given(weighted=st.integers(0, 10**20), debt=st.integers(1, 10**17))
def test_the_weighted_collateral_follows_from_the_health_factor_or_is_not_given(weighted: int, debt: int) -> None:
    health = mechanics.health_factor(weighted, debt)
    assert health is not None
    found = mechanics.weighted_collateral_of(health, debt)
    assert found in (weighted, None)
    if debt < 10**14:
        assert found == weighted


def test_the_reported_maintenance_margin_is_left_out_where_it_does_not_follow() -> None:
    def large(body: Body) -> None:
        body |= {
            "totalCollateralBase": str(4 * 10**17),
            "totalDebtBase": str(2 * 10**17),
            "healthFactor": str(16 * 10**17),
        }

    def debt_free(body: Body) -> None:
        body |= {"totalDebtBase": "0", "healthFactor": str(2**256 - 1)}

    def contradictory(body: Body) -> None:
        body["currentLiquidationThreshold"] = "8100"

    desk = _desk()
    for change, equity, health in ((large, "2000000000", "1.6"), (debt_free, "87002.21708296", None)):
        normalized = _normalize(desk | {"data_treasury": _changed(desk["data_treasury"], change)})
        (row,) = rows_of(normalized, "accounts", account_id=_account("treasury"))
        assert row["reported_equity"] == Decimal(equity)
        assert row["reported_maintenance_margin"] is None
        assert row["reported_health"] == (None if health is None else Decimal(health))
    normalized = _normalize(desk | {"data_treasury": _changed(desk["data_treasury"], contradictory)})
    assert [(f.reason, f.path, f.account_id) for f in normalized.failures] == [("inconsistent", "healthFactor", None)]
    assert rows_of(normalized, "accounts", account_id=_account("treasury"))[0]["reported_equity"] is None


# Mechanics ------------------------------------------------------------------------------------------------------------


def test_roundings_differ_where_they_should() -> None:
    ray = mechanics.RAY
    assert [f(3, ray + ray // 2) for f in (mechanics.ray_mul_floor, mechanics.ray_mul, mechanics.ray_mul_ceil)] == [
        4,
        5,
        5,
    ]
    assert [f(1, 3 * ray) for f in (mechanics.ray_div_floor, mechanics.ray_div_ceil)] == [0, 1]
    percents = (mechanics.percent_mul_floor, mechanics.percent_mul, mechanics.percent_mul_ceil)
    assert [f(1, 4999) for f in percents] == [0, 0, 1]
    assert [f(1, 5000) for f in percents] == [0, 1, 1]
    assert [f(10, 10_500) for f in (mechanics.percent_div_floor, mechanics.percent_div_ceil)] == [9, 10]
    assert mechanics.wad_div(2, 3) == 666_666_666_666_666_667


def test_interest_of_a_year_and_of_no_time() -> None:
    ten_percent, year = 10**26, 31_536_000
    assert mechanics.linear_interest(ten_percent, year) == 11 * 10**26
    # 1 + 0.1 + 0.005 + 0.000166..., each product half up
    assert mechanics.compounded_interest(ten_percent, year) == 1_105_166_666_666_666_666_666_666_667
    assert mechanics.accrued_liquidity_index(123_456, ten_percent, 0) == 123_456
    assert mechanics.accrued_borrow_index(123_456, ten_percent, 0) == 123_456


BASE, ZERO_BASE = mechanics.CollateralParameters(7500, 8000, 10_500), mechanics.CollateralParameters(0, 0, 0)
CATEGORY = mechanics.CollateralParameters(9000, 9300, 10_100)


@pytest.mark.parametrize(
    ("base", "member", "ltvzero", "isolated", "release", "expected"),
    [
        (BASE, True, False, False, "v3.7", CATEGORY),
        (BASE, True, True, False, "v3.7", CATEGORY._replace(ltv=0)),
        (BASE, True, False, True, "v3.7", CATEGORY),
        (BASE, False, False, False, "v3.7", BASE),
        (BASE, False, True, False, "v3.7", BASE),
        (BASE, False, False, True, "v3.7", BASE._replace(ltv=0)),
        (ZERO_BASE, True, False, False, "v3.7", CATEGORY),
        (ZERO_BASE, True, False, False, "v3.5", ZERO_BASE),
        (BASE._replace(ltv=0), True, False, False, "v3.6", CATEGORY),
        (BASE._replace(ltv=0), True, False, False, "v3.4", CATEGORY._replace(ltv=0)),
    ],
)
def test_effective_parameters(
    base: mechanics.CollateralParameters,
    member: bool,
    ltvzero: bool,
    isolated: bool,
    release: str,
    expected: mechanics.CollateralParameters,
) -> None:
    emode = mechanics.EMode(3, CATEGORY, member << 5, ltvzero << 5, isolated)
    generation = mechanics.GENERATIONS[release]
    assert mechanics.effective_parameters(base, 5, emode, generation=generation) == expected
    assert mechanics.effective_parameters(base, 5, None, generation=generation) == base
    assert mechanics.effective_parameters(base, 5, emode._replace(category=0), generation=generation) == base


def test_account_data_by_hand_and_rounded_by_release() -> None:
    # 3 shares at index 1.5 are 4 tokens down, 5 half up; 3 at 1.4 are 5 up, 4 half up; a tenth of a unit per token
    holding = mechanics.ReserveHolding(
        0, 1, 1, BASE, 3, 15 * 10**26, is_collateral=True, scaled_debt=3, borrow_index=14 * 10**26
    )
    new = mechanics.account_data([holding])
    assert (new.total_collateral, new.total_debt, new.health_factor) == (0, 1, 0)
    old = mechanics.account_data([holding], generation=mechanics.GENERATIONS["v3.4"])
    assert (old.total_collateral, old.total_debt, old.health_factor) == (0, 0, None)
    assert mechanics.account_data([]) == mechanics.AccountData(0, 0, 0, 0, 0, None, 0)
    # two collaterals of 300 and 100 at LT 80 % and 60 %: health by the sum 300, not by the floored average of 75 %
    second = mechanics.CollateralParameters(3333, 6001, 10_500)
    pair = [
        mechanics.ReserveHolding(0, 0, 1, BASE, 300, is_collateral=True, scaled_debt=200),
        mechanics.ReserveHolding(1, 0, 1, second, 100, is_collateral=True),
        mechanics.ReserveHolding(2, 0, 1, BASE, 999, is_collateral=False),
    ]
    data = mechanics.account_data(pair)
    assert (data.total_collateral, data.total_debt) == (400, 200)
    assert (data.liquidation_threshold, data.ltv) == (7500, 6458)
    assert data.health_factor == (300 * 8000 + 100 * 6001) * 10**18 // 200 // 10**4
    assert data.available_borrows == 400 * 6458 // 10**4 - 200


DOLLAR = 10**8


def _liquidate(**changes: Any) -> mechanics.Liquidation:
    """10 ether at 1780 dollars against 15 000 dollars of debt, threshold 82.5 %: health 0.979."""
    collateral = mechanics.CollateralSide(18, 1780 * DOLLAR, 10**19, mechanics.RAY, 10_500, 1000)
    debt = mechanics.DebtSide(6, DOLLAR, 15_000 * 10**6, mechanics.RAY)
    totals = {
        "total_collateral": 17_800 * DOLLAR,
        "total_debt": 15_000 * DOLLAR,
        "health": 979_000_000_000_000_000,
        "debt_to_cover": mechanics.UINT256_MAX,
    }
    sides = {"collateral": collateral, "debt": debt}
    for key, value in changes.items():
        side, _, field = key.partition("__")
        if field:
            sides[side] = sides[side]._replace(**{field: value})  # type: ignore[attr-defined]
        else:
            totals[key] = value
    return mechanics.liquidation(sides["collateral"], sides["debt"], **totals)  # type: ignore[arg-type]


def test_a_partial_liquidation_by_hand() -> None:
    done = _liquidate()
    base = 7500 * 10**18 // 1780
    taken = base * 105 // 100
    bonus = taken - taken * 100 // 105
    fee = -(-bonus // 10)
    assert done == mechanics.Liquidation(True, 7500 * 10**6, taken - fee, fee, fee, 10**19 - taken, False, 0)
    assert round(taken / 1e18, 4) == 4.4242


def test_a_liquidation_of_everything_writes_the_rest_of_the_debt_off() -> None:
    done = _liquidate(collateral__price=1400 * DOLLAR, total_collateral=14_000 * DOLLAR, health=770_000_000_000_000_000)
    repaid = -(-14_000 * 10**6 * 100 // 105)
    assert (done.half_close_factor, done.debt_repaid, done.deficit) == (False, repaid, 15_000 * 10**6 - repaid)
    assert done.no_collateral_left
    assert done.scaled_collateral_left == 0
    assert done.collateral_to_liquidator + done.protocol_fee == 10**19
    # with other collateral left nothing is written off
    other = _liquidate(collateral__price=1400 * DOLLAR, total_collateral=14_001 * DOLLAR, health=77 * 10**16)
    assert (other.no_collateral_left, other.deficit, other.debt_repaid) == (False, 0, repaid)


def test_the_close_factor_is_half_of_the_whole_account() -> None:
    # 15 000 of 40 000 dollars of debt: all of it may go although the factor is one half
    done = _liquidate(total_debt=40_000 * DOLLAR, total_collateral=47_000 * DOLLAR)
    assert (done.half_close_factor, done.debt_repaid) == (True, 15_000 * 10**6)
    assert not _liquidate(health=95 * 10**16).half_close_factor
    assert _liquidate(health=95 * 10**16 + 1).half_close_factor
    small = {"debt__scaled_debt": 1999 * 10**6, "total_debt": 1999 * DOLLAR}
    assert not _liquidate(**small).half_close_factor
    assert _liquidate(**small | {"debt__scaled_debt": 2000 * 10**6}).half_close_factor


def test_a_fee_that_finds_too_few_shares_is_cut() -> None:
    # balance floor(3 * 1.9) = 5 tokens, all taken: bonus 2 is all fee; shares ceil(3/1.9) + ceil(2/1.9) = 2 + 2 > 3
    done = _liquidate(
        collateral__decimals=0,
        collateral__price=2000 * DOLLAR,
        collateral__scaled_balance=3,
        collateral__liquidity_index=19 * 10**26,
        collateral__liquidation_bonus=15_000,
        collateral__protocol_fee=10_000,
        total_collateral=10_000 * DOLLAR,
        health=60 * 10**16,
    )
    assert (done.collateral_to_liquidator, done.protocol_fee, done.protocol_fee_moved) == (3, 2, 1)
    assert done.scaled_collateral_left == 0
    assert done.no_collateral_left


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"health": 10**18}, "HealthFactorNotBelowThreshold"),
        ({"collateral__scaled_balance": 0}, "CollateralCannotBeLiquidated"),
        ({"debt__scaled_debt": 0}, "SpecifiedCurrencyNotBorrowedByUser"),
        ({"debt_to_cover": 0}, "InvalidBurnAmount"),
        ({"debt_to_cover": 14_001 * 10**6, "health": 94 * 10**16}, "MustNotLeaveDust"),
        # 14 000 dollars of 14 999 repaid: 999 are left; of the collateral more
        (
            {"debt__scaled_debt": 14_999 * 10**6, "debt_to_cover": 14_000 * 10**6, "health": 94 * 10**16},
            "MustNotLeaveDust",
        ),
        # 1000 dollars of debt stay, of the collateral 15 500 - 14 700
        (
            {"collateral__price": 1550 * DOLLAR, "debt_to_cover": 14_000 * 10**6, "health": 94 * 10**16},
            "MustNotLeaveDust",
        ),
    ],
)
def test_a_liquidation_reverts(changes: dict[str, int], error: str) -> None:
    with pytest.raises(mechanics.LiquidationRevertedError) as reverted:
        _liquidate(**changes)
    assert reverted.value.error == error


def test_a_liquidation_may_leave_exactly_a_thousand_dollars() -> None:
    assert _liquidate(debt_to_cover=14_000 * 10**6, health=94 * 10**16).debt_repaid == 14_000 * 10**6


@given(
    shares=st.integers(1, 10**12),
    index=st.integers(10**27, 3 * 10**27),
    owed=st.integers(1, 10**12),
    prices=st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)),
    bonus=st.integers(10_000, 12_000),
    fee=st.integers(0, 10_000),
    cover=st.integers(1, 2 * 10**12),
    health=st.integers(1, 10**18 - 1),
)
def test_a_liquidation_never_takes_more_than_there_is_nor_than_it_pays_for(
    shares: int, index: int, owed: int, prices: tuple[int, int], bonus: int, fee: int, cover: int, health: int
) -> None:
    collateral = mechanics.CollateralSide(8, prices[0], shares, index, bonus, fee)
    debt = mechanics.DebtSide(6, prices[1], owed, mechanics.RAY)
    balance = mechanics.ray_mul_floor(shares, index)
    total = balance * prices[0] // 10**8
    debt_value = mechanics.ceil_div(owed * prices[1], 10**6)
    try:
        done = mechanics.liquidation(
            collateral, debt, total_collateral=total, total_debt=debt_value, health=health, debt_to_cover=cover
        )
    except mechanics.LiquidationRevertedError:
        return
    taken = done.collateral_to_liquidator + done.protocol_fee
    assert 0 <= done.debt_repaid <= min(cover, owed)
    assert taken <= balance
    assert 0 <= done.scaled_collateral_left < shares
    paid = Fraction(done.debt_repaid * prices[1], 10**6)
    # the seized value is at most the payment and its bonus; a repayment cut to the balance is floored once, by less
    # than one unit of debt, before it is rounded up
    assert Fraction(taken * prices[0], 10**8) <= (paid + Fraction(prices[1], 10**6)) * bonus / 10**4
    assert done.no_collateral_left == (done.deficit == owed - done.debt_repaid) or done.debt_repaid == owed
    left = mechanics.ray_mul_floor(done.scaled_collateral_left, index)
    if done.debt_repaid < owed and done.scaled_collateral_left and not done.no_collateral_left:
        assert (left + 2) * prices[0] // 10**8 >= mechanics.MIN_LEFTOVER_BASE - 2 * prices[0]


# What cannot be read --------------------------------------------------------------------------------------------------


def _drop(*path: Any) -> Callable[[Body], None]:
    def change(body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        del body[path[-1]]

    return change


ALL = frozenset(_account(owner) for owner in OWNERS)
TREASURY, STAKING, BASIS = (frozenset({_account(owner)}) for owner in ("treasury", "staking", "basis"))


@pytest.mark.parametrize(
    ("name", "change", "reason", "path", "incomplete"),
    [
        ("reserves", _drop("reserves"), "missing_field", "reserves", ALL),
        ("reserves", put("reserves", to={}), "malformed", "reserves", ALL),
        ("reserves", _drop("baseCurrencyInfo"), "missing_field", "baseCurrencyInfo", ALL),
        (
            "reserves",
            put("baseCurrencyInfo", "marketReferenceCurrencyUnit", to="0"),
            "out_of_range",
            "baseCurrencyInfo.marketReferenceCurrencyUnit",
            ALL,
        ),
        (
            "reserves",
            _drop("reserves", DAI, "priceInMarketReferenceCurrency"),
            "missing_field",
            "reserves[4].priceInMarketReferenceCurrency",
            TREASURY,
        ),
        (
            "reserves",
            put("reserves", DAI, "priceInMarketReferenceCurrency", to="-99981234"),
            "out_of_range",
            "reserves[4].priceInMarketReferenceCurrency",
            TREASURY,
        ),
        (
            "reserves",
            put("reserves", DAI, "priceInMarketReferenceCurrency", to="0"),
            "out_of_range",
            "reserves[4].priceInMarketReferenceCurrency",
            TREASURY,
        ),
        (
            "reserves",
            put("reserves", DAI, "variableBorrowIndex", to=Decimal("NaN")),
            "not_a_number",
            "reserves[4].variableBorrowIndex",
            TREASURY,
        ),
        (
            "reserves",
            put("reserves", WBTC, "reserveLiquidationThreshold", to="10001"),
            "out_of_range",
            "reserves[2].reserveLiquidationThreshold",
            TREASURY | STAKING,
        ),
        (
            "reserves",
            put("reserves", WBTC, "baseLTVasCollateral", to="7900"),
            "inconsistent",
            "reserves[2]",
            TREASURY | STAKING,
        ),
        ("reserves", put("reserves", SZZZ, "decimals", to="many"), "not_a_number", "reserves[6].decimals", frozenset()),
        ("reserves", put("reserves", WBTC, "isPaused", to=0), "malformed", "reserves[2].isPaused", frozenset()),
        ("reserves", put("reserves", SZZZ, to="usdc"), "malformed", "reserves[6]", frozenset()),
        ("emodes", _drop("eModes"), "missing_field", "eModes", STAKING | BASIS),
        (
            "emodes",
            _drop("eModes", 0, "eMode", "collateralBitmap"),
            "missing_field",
            "eModes[0].eMode.collateralBitmap",
            STAKING,
        ),
        ("emodes", put("eModes", 1, "eMode", "ltv", to="8300"), "inconsistent", "eModes[1].eMode", BASIS),
        ("emodes", put("eModes", 1, "id", to=1), "duplicate", "eModes", STAKING | BASIS),
        ("emodes", put("eModes", 1, "eMode", "isolated", to="no"), "malformed", "eModes[1].eMode.isolated", BASIS),
        ("user_treasury", _drop("userReserves"), "missing_field", "userReserves", TREASURY),
        ("user_treasury", _drop("userEmodeCategoryId"), "missing_field", "userEmodeCategoryId", TREASURY),
        ("user_treasury", put("userEmodeCategoryId", to=9), "missing_parameter", "getEModes", TREASURY),
        (
            "user_treasury",
            _drop("userReserves", WETH, "scaledATokenBalance"),
            "missing_field",
            "userReserves[0].scaledATokenBalance",
            TREASURY,
        ),
        (
            "user_treasury",
            put("userReserves", WETH, "scaledATokenBalance", to="-1"),
            "out_of_range",
            "userReserves[0].scaledATokenBalance",
            TREASURY,
        ),
        (
            "user_treasury",
            put("userReserves", WETH, "scaledVariableDebt", to=Decimal("NaN")),
            "not_a_number",
            "userReserves[0].scaledVariableDebt",
            TREASURY,
        ),
        (
            "user_treasury",
            put("userReserves", WETH, "usageAsCollateralEnabledOnUser", to="true"),
            "malformed",
            "userReserves[0].usageAsCollateralEnabledOnUser",
            TREASURY,
        ),
        (
            "user_treasury",
            put("userReserves", WETH, "underlyingAsset", to="0x00000000000000000000000000000000000000ff"),
            "unknown_market",
            "userReserves[0].underlyingAsset",
            TREASURY,
        ),
        (
            "user_treasury",
            put("userReserves", SZZZ, "scaledATokenBalance", to="1000000000000000000"),
            "unknown_asset",
            "userReserves[6].underlyingAsset",
            TREASURY,
        ),
        (
            "user_treasury",
            put("userReserves", WETH, "principalStableDebt", to="1"),
            "unsupported",
            "userReserves[0].principalStableDebt",
            TREASURY,
        ),
        ("user_treasury", put("userReserves", WETH, to=None), "malformed", "userReserves[0]", TREASURY),
        ("data_treasury", _drop("healthFactor"), "missing_field", "healthFactor", frozenset()),
        ("data_treasury", put("totalDebtBase", to="0"), "inconsistent", "healthFactor", frozenset()),
        ("data_treasury", put("totalCollateralBase", to=str(10**30)), "inconsistent", "healthFactor", frozenset()),
    ],
)
def test_an_unreadable_field_is_named_and_stops_only_who_needs_it(
    name: str, change: Callable[[Body], None], reason: str, path: str, incomplete: frozenset[str]
) -> None:
    desk = _desk()
    desk[name] = _changed(desk[name], change)
    normalized = _normalize(desk)
    assert any((f.reason, f.path) == (reason, path) for f in normalized.failures), normalized.failures
    assert {f.account_id for f in normalized.failures if f.account_id} == incomplete
    assert all(f.venue == "aave_v3" and f.message for f in normalized.failures)
    # everybody keeps the account row, and whoever is complete keeps every figure
    assert {row["account_id"] for row in rows_of(normalized, "accounts")} == ALL
    good = _normalize(_desk())
    for account in ALL - incomplete:
        assert rows_of(normalized, "balances", account_id=account) == rows_of(good, "balances", account_id=account)


def test_the_other_rows_of_an_incomplete_account_stay() -> None:
    desk = _desk()
    desk["reserves"] = _changed(desk["reserves"], _drop("reserves", DAI, "decimals"))
    rows = rows_of(_normalize(desk), "balances", account_id=_account("treasury"))
    assert {row["asset_id"] for row in rows} == {"WETH@ethereum", "USDC@ethereum", "WBTC@ethereum"}


def test_repeated_rows_are_all_rejected() -> None:
    def repeat_user(body: Body) -> None:
        body["userReserves"].append(body["userReserves"][WETH])

    def repeat_reserve(body: Body) -> None:
        again = dict(body["reserves"][DAI])
        again["underlyingAsset"] = again["underlyingAsset"].upper().replace("0X", "0x")
        body["reserves"].append(again)

    desk = _desk()
    user = _normalize(desk | {"user_treasury": _changed(desk["user_treasury"], repeat_user)})
    assert [(f.reason, f.path) for f in user.failures] == [
        ("duplicate", "userReserves[0]"),
        ("duplicate", "userReserves[7]"),
    ]
    assert {f.account_id for f in user.failures} == TREASURY
    assert rows_of(user, "balances", account_id=_account("treasury"), asset_id="WETH@ethereum") == []
    market = _normalize(desk | {"reserves": _changed(desk["reserves"], repeat_reserve)})
    assert [f.reason for f in market.failures] == [
        "duplicate"
    ] * 3  # both reserves, and the account that owes the token
    assert {f.account_id for f in market.failures if f.account_id} == TREASURY
    assert rows_of(market, "marks", subject="DAI@ethereum") == []


@pytest.mark.parametrize(
    ("name", "incomplete"),
    [("reserves", ALL), ("emodes", STAKING | BASIS), ("user_treasury", TREASURY), ("data_treasury", TREASURY)],
)
def test_two_payloads_of_one_request_are_both_rejected(name: str, incomplete: frozenset[str]) -> None:
    desk = _desk()
    normalized = _normalize([*desk.values(), desk[name]])
    assert sum(f.reason == "duplicate" for f in normalized.failures) == 2
    assert {f.account_id for f in normalized.failures if f.account_id} == incomplete
    assert {row["account_id"] for row in rows_of(normalized, "accounts")} == ALL


def test_payloads_without_owner_and_unknown_requests_are_refused() -> None:
    desk = _desk()
    user = desk["user_treasury"]
    nobody = Payload(user.request, user.name, "", user.received_at, user.sha256, user.body)
    strange = Payload("getReserveData", user.name, "", user.received_at, user.sha256, user.body)
    failures = _normalize([desk["reserves"], nobody, strange]).failures
    assert [(f.reason, f.path) for f in failures] == [("missing_field", "account"), ("unsupported", "request")]


def test_an_owner_without_reserves_of_its_own_is_incomplete_but_there() -> None:
    desk = _desk()
    normalized = _normalize([desk["reserves"], desk["data_treasury"]])
    assert [(f.reason, f.account_id) for f in normalized.failures] == [("missing_field", _account("treasury"))]
    (row,) = rows_of(normalized, "accounts")
    assert row["reported_health"] == Decimal("1.703837676466195170")


def test_a_truncated_file_is_malformed_and_a_missing_one_unreachable(tmp_path: Path) -> None:
    text = (PAYLOADS / "user_treasury.json").read_bytes()
    (tmp_path / "user_treasury.json").write_bytes(text[: len(text) // 2])
    truncated = _fetch("user_treasury", account="treasury", root=tmp_path)
    assert isinstance(truncated, Failure)
    assert (truncated.reason, truncated.subject) == ("malformed", "treasury")
    missing = _fetch("user_nobody", account="nobody", root=tmp_path)
    assert isinstance(missing, Failure)
    assert missing.reason == "unreachable"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chain": None}, "'chain' is missing"),
        ({"market": ""}, "'market' is missing"),
        ({"rules": "v3.8"}, "unknown rules 'v3.8'"),
        ({"rules": "v2"}, "known: v3.0, v3.1, .*, v3.6, v3.7"),
        ({"symbols": ["USDC"]}, "'symbols' must map"),
        ({"as_of": "yesterday"}, "as_of"),
    ],
)
def test_parameters_that_name_no_market_are_a_configuration_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _normalize(_desk(), **changes)


def test_a_token_on_a_chain_is_no_contract_multiple() -> None:
    def kraken(body: Body) -> None:
        body["reserves"][WBTC]["symbol"] = "kBTC"

    desk = _desk()
    normalized = _normalize(desk | {"reserves": _changed(desk["reserves"], kraken)})
    assert {f.reason for f in normalized.failures} == {"unknown_asset"}
    assert {f.account_id for f in normalized.failures} == TREASURY | STAKING


# The built material ---------------------------------------------------------------------------------------------------


def test_the_sample_of_the_material_has_tokens_that_nobody_knows(recorded: Path) -> None:
    root = recorded / "payloads" / "aave_v3"
    reserves = _fetch("reserves_constructed", "getReservesData", root=root)
    user = _fetch("user_reserves_constructed", "getUserReservesData", "sample", root=root)
    assert isinstance(reserves, Payload)
    assert isinstance(user, Payload)
    unknown = _normalize([reserves, user])
    assert [(f.reason, f.path) for f in unknown.failures] == [
        ("unknown_asset", "userReserves[0].underlyingAsset"),
        ("unknown_asset", "userReserves[1].underlyingAsset"),
    ]
    assert {f.account_id for f in unknown.failures} == {_account("sample")}
    known = AssetBook({name: Asset(name, "ETH", Decimal(1), None, None) for name in ("TEST6", "TEST18")})
    normalized = ADAPTER.normalize([reserves, user], Context(known, _parameters()))
    assert normalized.failures == []
    form = _margin_form(normalized, _account("sample"))
    # 200 of each token at 10 base coins of 10 dollars, 100 of each owed; LTV 50 %, threshold 60 %
    assert form == (Fraction(20_000), Fraction(16_000), Fraction(20_000))
    assert isinstance(normalized.batches["balances"], pa.Table)
