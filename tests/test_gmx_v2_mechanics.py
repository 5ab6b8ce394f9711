"""GMX v2: profit, fees and liquidation, in exact integers."""

import copy
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adapters.gmx_v2 import mechanics
from adapters.gmx_v2.impact import FLOAT, ImpactParameters, OpenInterest
from adapters.gmx_v2.mechanics import Fees, Pool, Position, Prices
from aggregator.rule_forms import Fixed, parse_parameters
from tests.desk_gmx_v2 import BTC_MARKET, desk, normalized, usd
from tests.normalized_rows import only, rows_of


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
