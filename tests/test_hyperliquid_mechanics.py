"""Hyperliquid: the exact mechanics against slow twins, and properties of generated accounts."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.hyperliquid import mechanics
from adapters.hyperliquid.mechanics import CrossSummary, MarginTier, SummedPosition
from adapters.hyperliquid.rules import partial_liquidation
from tests.desk_hyperliquid import PARAMETERS, PRICE_RELATIVE, perp_payload

# The documented terms, from the parameter file.
FOUND = partial_liquidation(PARAMETERS)
assert FOUND is not None
TERMS = FOUND


def tier_strategy() -> st.SearchStrategy[list[MarginTier]]:
    bounds = st.lists(st.integers(1, 10**9), max_size=4, unique=True).map(sorted)
    leverages = st.lists(st.integers(1, 50), min_size=5, max_size=5, unique=True).map(lambda x: sorted(x, reverse=True))
    return st.builds(
        lambda low, high: [MarginTier(Fraction(b), Fraction(v)) for b, v in zip([0, *low], high, strict=False)],
        bounds,
        leverages,
    )


def integrated_margin(notional: Fraction, tiers: list[MarginTier]) -> Fraction:
    """The slow twin: the area under the rates, slice by slice, without deductions."""
    ends = [tier.lower_bound for tier in tiers[1:]] + [None]
    total = Fraction(0)
    for tier, end in zip(tiers, ends, strict=True):
        top = notional if end is None else min(notional, end)
        total += max(top - tier.lower_bound, Fraction(0)) / tier.max_leverage / 2
    return total


@given(tiers=tier_strategy(), notional=st.integers(0, 3 * 10**9))
def test_maintenance_margin_is_the_integral_of_its_rates(tiers: list[MarginTier], notional: int) -> None:
    exact = integrated_margin(Fraction(notional), tiers)
    assert mechanics.maintenance_margin(notional, tiers) == exact
    assert mechanics.maintenance_margin(-notional, list(reversed(tiers))) == exact


@given(
    tiers=tier_strategy(),
    side=st.sampled_from([1, -1]),
    price=st.integers(1, 10**6),
    size=st.fractions(Fraction(1, 1000), 10**4, max_denominator=1000),
    equity=st.integers(-(10**9), 10**10),
)
def test_at_the_liquidation_price_equity_is_maintenance_margin(
    tiers: list[MarginTier], side: int, price: int, size: Fraction, equity: int
) -> None:
    def excess(at_price: Fraction) -> Fraction:
        return equity + side * size * (at_price - price) - integrated_margin(size * at_price, tiers)

    found = mechanics.liquidation_price(side, price, size=size, equity=equity, tiers=tiers)
    if found is None:
        # a long loses at most its notional; equity less maintenance falls with the price for it and rises for a short
        assert excess(Fraction(0)) * side >= 0
    else:
        assert found > 0
        assert excess(found) == 0


def test_one_tier_is_the_documented_formula() -> None:
    # 1.2 BTC long at 62 480, 5 000 of isolated margin, 40x: l = 1/80
    available = 5000 - 1.2 * 62480 / 80
    expected = 62480 - available / 1.2 / (1 - 1 / 80)
    tiers = mechanics.single_tier(40)
    found = mechanics.liquidation_price(1, 62480, size=Decimal("1.2"), equity=5000, tiers=tiers)
    assert found is not None
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_the_tier_at_the_liquidation_price_decides() -> None:
    # 200 M long at 40x/20x: today's tier is the second, at the liquidation price the first
    tiers = [MarginTier(Fraction(0), Fraction(40)), MarginTier(Fraction(150_000_000), Fraction(20))]
    found = mechanics.liquidation_price(1, 50_000, size=4000, equity=60_000_000, tiers=tiers)
    # 60e6 + 4000 (p - 50000) = 4000 p / 80
    assert found == Fraction(140_000_000, 3950)
    assert 4000 * found < 150_000_000


def test_desk_liquidation_prices_follow_from_the_payload() -> None:
    body = perp_payload().body
    held = {e["position"]["coin"]: e["position"] for e in body["assetPositions"]}
    value, maintenance = (
        Fraction(body["crossMarginSummary"]["accountValue"]),
        Fraction(body["crossMaintenanceMarginUsed"]),
    )
    for coin, p in held.items():
        size, notional = abs(Fraction(p["szi"])), Fraction(p["positionValue"])
        side, tiers = (1 if Fraction(p["szi"]) > 0 else -1), mechanics.single_tier(p["maxLeverage"])
        if coin == "SOL":
            equity = mechanics.isolated_margin(Fraction(p["leverage"]["rawUsd"]), side, notional)
        else:
            equity = value - (maintenance - mechanics.maintenance_margin(notional, tiers))
        found = mechanics.liquidation_price(side, notional / size, size=size, equity=equity, tiers=tiers)
        if p["liquidationPx"] is None:
            assert found is None
        else:
            assert found is not None
            assert abs(found - Fraction(p["liquidationPx"])) < PRICE_RELATIVE * found


def test_summary_of_an_empty_and_of_a_drained_account() -> None:
    summary, value = mechanics.cross_summary, Fraction("12.5")
    assert summary(value, []) == CrossSummary(value, Fraction(0), Fraction(0), value)
    drained = summary(-90, [SummedPosition(Fraction(1), Fraction(100), Fraction(5))])
    assert drained == CrossSummary(Fraction(10), Fraction(100), Fraction(20), Fraction(0))


@pytest.mark.parametrize("tiers", [[], [(0, 0)], [(0, -5)], [(0, 10), (0, 5)]])
def test_tiers_that_cannot_be(tiers: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="tier"):
        mechanics.tier_table([MarginTier(Fraction(low), Fraction(leverage)) for low, leverage in tiers])


def test_liquidation_steps() -> None:
    assert not mechanics.is_liquidatable(100, 100)
    assert mechanics.is_liquidatable(Decimal("99.999999"), 100)
    assert not mechanics.is_backstop_liquidated(Fraction(200, 3), 100)
    assert mechanics.is_backstop_liquidated(66, 100)
    assert mechanics.liquidation_order_size(2, 50_000, TERMS) == 2  # exactly 100 000 is not larger
    assert mechanics.liquidation_order_size(-3, 50_000, TERMS) == Fraction(3, 5)
    assert mechanics.liquidation_order_size(3, 50_000, TERMS, in_cooldown=True) == 3
    assert mechanics.transfer_margin_required(50, 1000) == 100
    assert mechanics.transfer_margin_required(500, 1000) == 500


@st.composite
def cross_books(draw: Any) -> tuple[Fraction, list[SummedPosition], list[list[MarginTier]]]:
    tiers = draw(st.lists(tier_strategy(), min_size=1, max_size=4))
    positions = []
    for table in tiers:
        size = draw(st.fractions(Fraction(1, 100), 1000, max_denominator=100)) * draw(st.sampled_from([1, -1]))
        price = draw(st.integers(1, 10**5))
        leverage = draw(st.integers(1, int(table[0].max_leverage)))
        positions.append(SummedPosition(size, abs(size) * price, Fraction(leverage)))
    return Fraction(draw(st.integers(-(10**8), 10**8))), positions, tiers


@settings(max_examples=80)
@given(book=cross_books(), factor=st.fractions(1, 5, max_denominator=10))
def test_a_cross_account_is_additive_ordered_and_monotone(
    book: tuple[Fraction, list[SummedPosition], list[list[MarginTier]]], factor: Fraction
) -> None:
    raw, positions, tiers = book
    summary = mechanics.cross_summary(raw, positions)
    # The order of rows, and one position in two fills, change nothing.
    assert mechanics.cross_summary(raw, positions[::-1]) == summary
    halves = [half for p in positions for half in (SummedPosition(p.szi / 2, p.position_value / 2, p.leverage),) * 2]
    assert mechanics.cross_summary(raw, halves) == summary
    assert summary.withdrawable == max(0, summary.account_value - summary.total_margin_used)
    scaled = [SummedPosition(p.szi * factor, p.position_value * factor, p.leverage) for p in positions]
    assert mechanics.cross_summary(raw * factor, scaled).account_value == summary.account_value * factor
    for held, table in zip(positions, tiers, strict=True):
        maintenance = mechanics.maintenance_margin(held.position_value, table)
        # More notional never needs less, and never less in proportion: the rates of the tiers rise.
        assert mechanics.maintenance_margin(held.position_value * factor, table) >= maintenance * factor >= maintenance
        # The chosen leverage is at most the first tier's: initial covers twice the maintenance within that tier.
        if len(table) == 1:
            assert held.position_value / held.leverage >= 2 * maintenance


@settings(max_examples=60)
@given(
    size=st.fractions(Fraction(1, 100), 1000, max_denominator=100),
    price=st.integers(1, 10**5),
    leverage=st.integers(1, 50),
)
def test_liquidation_orders_never_exceed_the_position(size: Fraction, price: int, leverage: int) -> None:
    for cooldown in (False, True):
        closed = mechanics.liquidation_order_size(size, price, TERMS, in_cooldown=cooldown)
        assert 0 < closed <= size
    tiers = mechanics.single_tier(leverage)
    maintenance = mechanics.maintenance_margin(size * price, tiers)
    assert mechanics.is_liquidatable(maintenance - 1, maintenance)
    assert not mechanics.is_liquidatable(maintenance, maintenance)
    if mechanics.is_backstop_liquidated(maintenance - 1, maintenance):
        assert mechanics.is_liquidatable(maintenance - 1, maintenance)
