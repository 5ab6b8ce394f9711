"""Paradex: portfolio margin in plain Python, figures by hand and properties."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.paradex import mechanics
from adapters.paradex import portfolio_margin as pm
from aggregator.pricing import black76_price

CONFIGURATION = pm.Configuration(
    (pm.Scenario(0.16, 0.4, 1), pm.Scenario(-0.16, 0.4, 1), pm.Scenario(0.0, -0.22, 1), pm.Scenario(5.0, 0.4, 0.024)),
    pm.VolShockParameters(0.3, 0.13, 1.0, 0.4),
    0.01,
    0.02,
    0.5,
    8.0,
)
UNDERLYING = pm.Underlying(60000.0, 60030.0, 0.0001, 0.04)


def test_black_scholes_is_black_76_on_the_forward() -> None:
    for strike, years, vol, is_call in ((70000, 0.24, 0.55, True), (41000, 1.5, 0.8, False), (60000, 0.002, 0.3, True)):
        ours = pm.black_scholes(60000, strike, years=years, rate=0.04, vol=vol, is_call=is_call)
        theirs = black76_price(
            60000 * math.exp(0.04 * years),
            strike,
            years=years,
            vol=vol,
            is_call=is_call,
            discount=math.exp(-0.04 * years),
        )
        assert ours == pytest.approx(float(theirs), rel=1e-9, abs=1e-7)
    assert pm.black_scholes(100, 90, years=0, rate=0.04, vol=0.3, is_call=True) == 10
    assert pm.black_scholes(100, 90, years=1, rate=0.04, vol=0, is_call=False) == 0


def test_vol_shocks_have_a_floor_on_the_way_up_only() -> None:
    parameters = CONFIGURATION.vol
    assert pm.shocked_vol(0.05, 0.4, 16, parameters=parameters) == 0.4
    assert pm.shocked_vol(0.05, -0.22, 16, parameters=parameters) < 0.05
    assert pm.shocked_vol(0.5, 0.4, 30, parameters=parameters) == pytest.approx(0.7)  # at 30 days the scale is 1
    assert pm.shocked_vol(0.5, 0.4, 29.999, parameters=parameters) == pytest.approx(0.7, abs=1e-4)
    assert pm.shocked_vol(0.5, -1.0, 0.1, parameters=parameters) == 0
    short, floored = (pm.shocked_vol(0.5, 0.4, days, parameters=parameters) for days in (0.2, 1.0))
    assert short == floored == pytest.approx(0.5 * (1 + 0.4 * 30**0.3))


@pytest.mark.parametrize(("days", "share"), [(1.0, 1.0), (1800 / 86400, 1.0), (900 / 86400, 0.5), (0.0, 0.0), (-1, 0)])
def test_the_last_half_hour_settles(days: float, share: float) -> None:
    assert pm.live_share(pm.OptionTerms(100.0, True, days, 0.5)) == pytest.approx(share)
    assert pm.live_share(None) == 1


def option_leg(size: float, *, days: float = 40.0, price: float | None = None, strike: float = 62000.0) -> pm.Leg:
    terms = pm.OptionTerms(strike, True, days, 0.55)
    mark_price = pm.black_scholes(60000, strike, years=days / 365, rate=0.04, vol=0.55, is_call=True)
    return pm.Leg(size, mark_price, 0.48, 0.0002, terms, price)


def perp_leg(size: float, price: float | None = None) -> pm.Leg:
    return pm.Leg(size, 60030.0, 0.9997, 0.0003, None, price)


def portfolio(positions: list[pm.Leg], orders: list[pm.Leg]) -> pm.PortfolioMargin:
    return pm.portfolio_margin(positions, orders, underlying=UNDERLYING, configuration=CONFIGURATION)


def test_a_perpetual_alone_by_hand() -> None:
    margin = portfolio([perp_leg(2.0)], [])
    assert margin.worst_loss == pytest.approx(2 * 60030 * 0.16)
    assert margin.worst_scenario == 1
    assert margin.min_delta == pytest.approx(2 * 0.9997 * 0.02 * 60000)
    assert margin.funding_provision == pytest.approx(0.0001 * 2 * 60000)
    assert margin.imr == pytest.approx(2 * 60030 * 0.16 + 12 + 0.0003 * 2 * 60030)
    assert margin.mmr == pytest.approx(60030 * 0.16 + 12 + 0.0003 * 2 * 60030)


def test_an_option_order_far_from_the_market_costs_its_fee_and_delta_only() -> None:
    bid = option_leg(5.0, price=0.0001)
    margin = portfolio([], [bid])
    assert margin.worst_loss < 0.01
    assert margin.min_delta == pytest.approx(0.02 * 5 * 0.48 * 60000)
    assert margin.mmr == 0
    assert margin.fee_provision_imr == pytest.approx(5 * 0.0002 * 60000)


sizes = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))
books = st.lists(
    st.one_of(st.builds(perp_leg, sizes), st.builds(option_leg, sizes, days=st.sampled_from([0.01, 1.0, 29.0, 90.0]))),
    max_size=4,
)
order_books = st.lists(
    st.one_of(
        st.builds(perp_leg, sizes, st.floats(50000, 70000)),
        st.builds(option_leg, sizes, days=st.just(40.0), price=st.floats(10, 9000)),
    ),
    max_size=3,
)


@settings(max_examples=60)
@given(positions=books, orders=order_books)
def test_orders_never_lower_what_scenarios_and_deltas_ask(positions: list[pm.Leg], orders: list[pm.Leg]) -> None:
    alone, both = portfolio(positions, []), portfolio(positions, orders)
    assert both.worst_loss >= alone.worst_loss - 1e-9
    assert both.min_delta >= alone.min_delta - 1e-6
    assert both.mmr == alone.mmr
    # Initial covers maintenance but for funding, which orders net with the opposite sign.
    assert both.imr - both.funding_provision >= both.mmr - alone.funding_provision - 1e-6


@settings(max_examples=40)
@given(positions=books, orders=order_books, factor=st.floats(1, 5))
def test_portfolio_margin_is_homogeneous_and_blind_to_order(
    positions: list[pm.Leg], orders: list[pm.Leg], factor: float
) -> None:
    one = portfolio(positions, orders)
    scaled = [[leg._replace(size=leg.size * factor) for leg in legs] for legs in (positions, orders)]
    more = portfolio(*scaled)
    assert more.imr == pytest.approx(one.imr * factor, rel=1e-9, abs=1e-6)
    assert more.mmr == pytest.approx(one.mmr * factor, rel=1e-9, abs=1e-6)
    again = portfolio(positions[::-1], orders[::-1])
    assert again.imr == pytest.approx(one.imr, rel=1e-12, abs=1e-9)
    halves = [half for leg in positions for half in (leg._replace(size=leg.size / 2),) * 2]
    assert portfolio(halves, orders).mmr == pytest.approx(one.mmr, rel=1e-9, abs=1e-6)


def test_minimum_delta_of_the_documented_example_agrees_in_both_writings() -> None:
    """Docs, portfolio-margin: long 1, short 5 calls of 0.3 at 70 000."""
    exact = mechanics.min_delta_risk(
        [1, Fraction(-3, 2)], spot=70000, hedged=Fraction(1, 100), unhedged=Fraction(2, 100)
    )
    assert exact.min_delta_risk == 1400
    assert pm.min_delta([1.0, -1.5], [], CONFIGURATION) * 70000 == pytest.approx(1400)
