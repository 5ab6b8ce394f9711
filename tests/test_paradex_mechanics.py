"""Paradex: the mechanics of cross margin against the venue's worked figures, and their properties."""

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.paradex import mechanics
from adapters.paradex.market_payloads import expiry_of_symbol
from adapters.paradex.mechanics import OptionFractions, OptionMarket, Order, PerpMarket
from adapters.paradex.rules import read_parameter_file
from tests.desk_paradex import LEVEL, PARAMETERS, SOL, normalized, sample
from tests.normalized_rows import only

# The documented terms, from the parameter file.
FOUND = read_parameter_file(PARAMETERS).liquidation
assert FOUND is not None
TERMS = FOUND


def perp(mark_price: str, imf: str, *, fee: str = "0") -> PerpMarket:
    return PerpMarket(Fraction(mark_price), Fraction(imf), Fraction(1, 2), Fraction(fee))


def test_open_sizes_of_the_documented_example() -> None:
    """Docs, cross-margin-requirement: short 1, buys of 3, sells of 2, IMF 2 %, mark 90 000."""
    orders = [Order(Fraction(3), Fraction(90000)), Order(Fraction(-2), Fraction(90000))]
    margin = mechanics.market_margin(perp("90000", "0.02"), -1, orders)
    assert list(margin[:3]) == [2, 3, 5400]
    assert margin.net_mmr == 900


def test_the_risk_check_example() -> None:
    """Docs, paradex-risk-checks: 10 at an entry of 100, mark 98, IMF 10 %, 100 of collateral."""
    assert mechanics.unrealized_pnl(10, 98, average_entry=100) == -20
    assert mechanics.account_value(100, -20) == 80
    assert mechanics.market_margin(perp("98", "0.1"), 10).imr == 98


def test_the_cost_of_a_position_is_in_usdc() -> None:
    """Docs, margin-term-reference: short 1 at 2 000 dollars with USDC at 0.80 costs -2 500 USDC."""
    assert mechanics.unrealized_pnl(-1, 2000, average_entry=2500, usdc_price=Decimal("0.8")) == 0
    assert mechanics.account_value(1000, 0, usdc_price=Decimal("0.8")) == 800


def test_the_liquidation_example() -> None:
    """Docs, liquidations: value 80, requirement 88.8; the page's table calculates with a fee of one half."""
    value, mmr = Fraction(80), Fraction("88.8")
    assert mechanics.is_liquidatable(mmr, value)
    assert not mechanics.is_liquidatable(value, value)
    found = mechanics.liquidation(value, mmr, TERMS._replace(fee=Fraction(1, 2)))
    assert found is not None
    assert (found.share, found.penalty) == (Fraction(2, 5), Fraction("17.76"))
    assert (found.account_value, found.mmr) == (Fraction("62.24"), Fraction("53.28"))
    ratios = [
        round(float((1 - s) * mmr / (value - mechanics.liquidation_penalty(s, mmr, fee=Fraction(1, 2)))), 3)
        for s in (Fraction(n, 5) for n in range(1, 5))
    ]
    assert ratios == [0.999, 0.856, 0.666, 0.399]
    assert mechanics.liquidation(90, mmr, TERMS) is None
    drained = mechanics.liquidation(10, mmr, TERMS)
    assert drained is not None
    assert [drained.share, drained.account_value, drained.penalty] == [1, 0, 10]
    negative = mechanics.liquidation(-10, mmr, TERMS)
    assert negative is not None
    assert [negative.penalty, negative.account_value] == [0, -10]


def test_the_funding_example() -> None:
    """Docs, funding-mechanism: +0.5 BTC, index up by 0.0375 within a minute."""
    assert mechanics.accrued_funding(Fraction(1, 2), Fraction("0.0375"), cached_index=0) == Fraction("-0.01875")
    assert mechanics.funding_provision(Fraction("0.0003"), Fraction(1, 2), spot=60000) == 9
    assert mechanics.funding_provision(Fraction("0.0003"), Fraction(-1, 2), spot=60000) == 0
    assert mechanics.funding_provision(Fraction("0.0003"), Fraction(1, 2), spot=60000, hours=24) == 27


def test_margin_ratio_is_the_inverse_of_health() -> None:
    assert mechanics.margin_ratio(50, 200) == Fraction(1, 4)
    assert mechanics.margin_ratio(50, 0) is None


@pytest.mark.parametrize(
    ("digits", "expected"),
    [("8MAY26", datetime(2026, 5, 8, 8, tzinfo=UTC)), ("31DEC25", datetime(2025, 12, 31, 8, tzinfo=UTC))],
)
def test_dates_in_symbols(digits: str, expected: datetime) -> None:
    assert expiry_of_symbol(digits) == expected


def test_the_reported_liquidation_prices_follow_from_the_payload() -> None:
    """Isolated: the mark at which 1850 - 120 * (p - 141.5) + 0.84 equals 120 * p * (0.05 / 2 + 0.0003)."""
    row = only(normalized(*sample().values()), "positions", account_id=SOL)
    price = row["reported_liquidation_price"]
    equity = 1850 - 120 * (price - Decimal("141.5")) + Decimal("0.84")
    assert abs(equity - 120 * price * Decimal("0.0253")) < Decimal("1e-5")


def fractions(low: str, high: str) -> Any:
    return st.decimals(Decimal(low), Decimal(high), allow_nan=False, places=4).map(Fraction)


HALF = OptionFractions(Fraction(1, 2), Fraction(1, 10), Fraction(3, 40), Fraction(1, 20), Fraction(1, 4))


@st.composite
def markets(draw: Any) -> mechanics.Market:
    mark_price, fee = draw(fractions("0.01", "100000")), draw(fractions("0", "0.001"))
    if draw(st.booleans()):
        return PerpMarket(mark_price, draw(fractions("0.01", "0.5")), Fraction(1, 2), fee)
    spot, strike = draw(fractions("100", "100000")), draw(fractions("100", "100000"))
    return OptionMarket(mark_price, spot, strike, draw(st.booleans()), LEVEL, HALF, fee, Fraction(1, 8))


orders_strategy = st.lists(
    st.builds(Order, fractions("-20", "20"), fractions("0.01", "100000")), min_size=0, max_size=4
)


@settings(max_examples=60)
@given(market=markets(), size=fractions("-50", "50"), orders=orders_strategy)
def test_initial_covers_maintenance_and_orders_only_add(
    market: mechanics.Market, size: Fraction, orders: list[Order]
) -> None:
    alone, with_orders = mechanics.market_margin(market, size), mechanics.market_margin(market, size, orders)
    assert alone.imr >= alone.mmr >= 0
    assert with_orders.mmr == alone.mmr
    # An order that would reverse a position onto a cheaper side never takes away what the position asks for.
    assert with_orders.imr >= alone.imr


@settings(max_examples=60)
@given(market=markets(), size=fractions("-50", "50"), factor=fractions("1", "4"), orders=orders_strategy)
def test_requirements_are_homogeneous_in_size(
    market: mechanics.Market, size: Fraction, factor: Fraction, orders: list[Order]
) -> None:
    one = mechanics.market_margin(market, size, orders)
    more = mechanics.market_margin(market, size * factor, [Order(o.size * factor, o.price) for o in orders])
    assert (more.imr, more.mmr) == (one.imr * factor, one.mmr * factor)
    assert more.imr >= one.imr
    assert more.mmr >= one.mmr


@settings(max_examples=40)
@given(market=markets(), size=fractions("-9", "9"), order=st.builds(Order, fractions("-9", "9"), fractions("1", "1e5")))
def test_splitting_and_reordering_orders_changes_nothing(
    market: mechanics.Market, size: Fraction, order: Order
) -> None:
    parts = [Order(order.size / 3, order.price), Order(order.size * 2 / 3, order.price)]
    other = Order(Fraction(-1), Fraction(2))
    assert mechanics.market_margin(market, size, [order, other]) == mechanics.market_margin(
        market, size, [*parts[::-1], other]
    )


@settings(max_examples=60)
@given(
    size=fractions("-50", "50").filter(bool),
    mark_price=fractions("1", "100000"),
    value=fractions("-1000", "1000000"),
    other=fractions("0", "1000"),
)
def test_at_the_liquidation_price_value_is_requirement(
    size: Fraction, mark_price: Fraction, value: Fraction, other: Fraction
) -> None:
    market = PerpMarket(mark_price, Fraction(1, 50), Fraction(1, 2), Fraction(3, 10000))
    price = mechanics.liquidation_price(market, size, value=value, other_mmr=other)
    if price is None:
        return
    moved = mechanics.market_margin(market._replace(mark=price), size)
    assert value + size * (price - mark_price) == other + moved.mmr


@settings(max_examples=60)
@given(value=fractions("-100", "1000"), mmr=fractions("0.0001", "1000"))
def test_a_liquidation_ends_below_the_target_or_with_everything(value: Fraction, mmr: Fraction) -> None:
    found = mechanics.liquidation(value, mmr, TERMS)
    assert (found is None) == (value >= mmr)
    if found is None:
        return
    assert (found.share * 5).denominator == 1
    if found.share < 1:
        assert found.mmr < TERMS.target_margin_ratio * found.account_value
        previous = found.share - TERMS.share_increment
        if previous:
            left = value - mechanics.liquidation_penalty(previous, mmr, fee=TERMS.fee)
            assert left <= 0 or (1 - previous) * mmr >= TERMS.target_margin_ratio * left
    else:
        assert found.account_value <= max(value, Fraction(0))


def test_roots_by_scan_see_both_sides() -> None:
    below, above = mechanics.spot_liquidation_prices(100.0, lambda s: (s - 50.0) * (s - 90.0) * (180.0 - s))
    assert below == pytest.approx(90.0, abs=1e-9)
    assert above == pytest.approx(180.0, abs=1e-9)
    assert mechanics.spot_liquidation_prices(100.0, lambda s: s) == (None, None)
    closed = mechanics.liquidation_price(perp("80000", "0.01"), 1, value=10000)
    assert closed is not None
    scanned, _ = mechanics.spot_liquidation_prices(80000.0, lambda s: 10000 + s - 80000 - 0.005 * s)
    assert scanned == pytest.approx(float(closed), rel=1e-12)
