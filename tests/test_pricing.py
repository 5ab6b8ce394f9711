"""Revaluation against mpmath, finite differences and identities that a person can check."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.typing import ArrayLike

from aggregator import pricing

# float64 against 40-digit arithmetic, relative to the forward: a few units in the last place of the two terms.
PRICE_TOLERANCE = 1e-14
# Closed-form Greeks against forward-mode autodiff of the price: the same numbers by another order of operations.
AUTODIFF_TOLERANCE = 1e-10

FORWARDS = st.floats(1e-3, 1e6)
MONEYNESS = st.floats(-2.0, 2.0)
YEARS = st.floats(1e-5, 3.0)
VOLS = st.floats(0.01, 4.0)


class Option(NamedTuple):
    forward: float
    strike: float
    years: float
    vol: float
    is_call: bool
    discount: float


OPTIONS = st.builds(
    lambda f, k, t, s, c, d: Option(f, f * math.exp(k), t, s, c, d),
    FORWARDS,
    MONEYNESS,
    YEARS,
    VOLS,
    st.booleans(),
    st.floats(0.8, 1.05),
)


@jax.jit
def _greeks(forward, strike, years, vol, is_call, discount):  # type: ignore[no-untyped-def]
    return pricing.black76_greeks(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)


@jax.jit
def _price(forward, strike, years, vol, is_call, discount):  # type: ignore[no-untyped-def]
    return pricing.black76_price(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)


def _price_mpmath(option: Option) -> float:
    with mpmath.workdps(40):
        f, k, t, s = (mpmath.mpf(x) for x in option[:4])
        v = s * mpmath.sqrt(t)
        d1 = mpmath.log(f / k) / v + v / 2
        side = 1 if option.is_call else -1
        return float(option.discount * side * (f * mpmath.ncdf(side * d1) - k * mpmath.ncdf(side * (d1 - v))))


@given(option=OPTIONS)
def test_price_equals_forty_digits(option: Option) -> None:
    scale = max(option.forward, option.strike)
    assert float(_price(*option)) == pytest.approx(_price_mpmath(option), abs=PRICE_TOLERANCE * scale, rel=1e-12)


@given(option=OPTIONS)
def test_parity_and_bounds(option: Option) -> None:
    call, put = (float(_price(*option._replace(is_call=side))) for side in (True, False))
    forward_value = option.discount * (option.forward - option.strike)
    assert call - put == pytest.approx(forward_value, abs=PRICE_TOLERANCE * max(option.forward, option.strike))
    assert 0.0 <= call <= option.discount * option.forward * (1 + 1e-15)
    assert 0.0 <= put <= option.discount * option.strike * (1 + 1e-15)


# At most 60 total volatilities from the money: there the price and all its derivatives are below 1e-300.
GREEK_OPTIONS = st.builds(
    lambda f, z, t, s, c, d: Option(f, f * math.exp(z * s * math.sqrt(t)), t, s, c, d),
    st.floats(1.0, 1e5),
    st.floats(-6.0, 6.0),
    st.floats(1e-3, 2.0),
    st.floats(0.05, 3.0),
    st.booleans(),
    st.floats(0.8, 1.05),
)


@jax.jit
def _autodiff(forward, strike, years, vol, is_call, rate):  # type: ignore[no-untyped-def]
    def price(f, k, t, s):  # type: ignore[no-untyped-def]
        return pricing.black76_price(f, k, years=t, vol=s, is_call=is_call, discount=jnp.exp(-rate * t))

    first = [jax.grad(price, i)(forward, strike, years, vol) for i in range(4)]
    gamma = jax.grad(jax.grad(price, 0), 0)(forward, strike, years, vol)
    vanna = jax.grad(jax.grad(price, 0), 3)(forward, strike, years, vol)
    volga = jax.grad(jax.grad(price, 3), 3)(forward, strike, years, vol)
    return first[0], gamma, first[3], -first[2], vanna, volga, first[1]


@given(option=GREEK_OPTIONS)
def test_autodiff_greeks_equal_the_closed_forms(option: Option) -> None:
    rate = -math.log(option.discount) / option.years
    greeks = _greeks(*option)
    by_autodiff = _autodiff(*option[:4], option.is_call, rate)
    f, total_vol = option.forward, option.vol * math.sqrt(option.years)
    # What one unit of rounding in the price (1e-16 F) is worth in each derivative.
    scales = (1.0, 1 / (f * total_vol), f, f / option.years, 1 / option.vol, f / option.vol**2, 1.0)
    for name, closed, derived, scale in zip(greeks._fields[1:], greeks[1:], by_autodiff, scales, strict=True):
        assert float(closed) == pytest.approx(float(derived), rel=1e-9, abs=AUTODIFF_TOLERANCE * scale), name


EDGES = [
    (100.0, 90.0, 0.0, 0.5),
    (100.0, 100.0, 0.0, 0.5),
    (100.0, 110.0, -0.1, 0.5),
    (100.0, 90.0, 0.5, 0.0),
    (100.0, 100.0, 0.5, 0.0),
    (100.0, 110.0, 0.5, -0.2),
    (100.0, 110.0, 1e-300, 1e-300),
    (100.0, 100.0, 1e-40, 0.5),
    (0.0, 110.0, 0.5, 0.5),
    (100.0, 0.0, 0.5, 0.5),
    (0.0, 0.0, 0.0, 0.0),
    (-5.0, 110.0, 0.5, 0.5),
    (1e-300, 1e300, 1e-3, 0.01),
    (1e300, 1e-300, 1e-3, 0.01),
]


@jax.jit
def _gradient(x: jax.Array, is_call: bool) -> jax.Array:
    return jax.grad(lambda y: pricing.black76_price(y[0], y[1], years=y[2], vol=y[3], is_call=is_call))(x)


@pytest.mark.parametrize("is_call", [True, False])
@pytest.mark.parametrize("edge", EDGES)
def test_without_optionality_the_price_is_discounted_intrinsic_and_gradients_are_finite(
    edge: tuple[float, float, float, float], is_call: bool
) -> None:
    forward, strike, _, _ = edge
    intrinsic = max(forward - strike, 0.0) if is_call else max(strike - forward, 0.0)
    assert float(_price(*edge, is_call, 0.95)) == pytest.approx(0.95 * intrinsic, rel=1e-12)
    greeks = _greeks(*edge, is_call, 0.95)
    assert all(math.isfinite(float(value)) for value in greeks)
    assert np.all(np.isfinite(_gradient(jnp.asarray(edge), is_call)))


@jax.jit
def _value_change(forward, strike, years, vol, is_call, log_return, log_vol, horizon):  # type: ignore[no-untyped-def]
    return pricing.option_value_change(
        forward,
        strike,
        years=years,
        vol=vol,
        is_call=is_call,
        log_return=log_return,
        log_vol_change=log_vol,
        horizon_years=horizon,
    )


@given(option=OPTIONS, log_return=st.floats(-1.0, 1.0), log_vol=st.floats(-1.0, 1.0), horizon=st.floats(0.0, 0.05))
def test_value_change_is_scenario_less_today(option: Option, log_return: float, log_vol: float, horizon: float) -> None:
    forward, strike, years, vol, is_call, _ = option
    change = _value_change(forward, strike, years, vol, is_call, log_return, log_vol, horizon)
    moved = forward * math.exp(log_return)
    left = years - horizon
    if left > 0:
        then = _price_mpmath(Option(moved, strike, left, vol * math.exp(log_vol), is_call, 1.0))
    else:
        then = max(moved - strike, 0.0) if is_call else max(strike - moved, 0.0)
    today = _price_mpmath(Option(forward, strike, years, vol, is_call, 1.0))
    scale = max(forward, strike, moved)
    # sqrt(T - h) of a difference of times: the rounding of T - h moves the price of an option about to expire.
    assert float(change) == pytest.approx(then - today, abs=1e-11 * scale)


def test_small_moves_keep_their_digits_and_theta_is_the_change_over_a_short_horizon() -> None:
    option = Option(60_000.0, 66_000.0, 0.1, 0.7, True, 0.99)
    greeks = _greeks(*option)
    common = {"years": 0.1, "vol": 0.7, "is_call": True, "discount": 0.99}
    small = pricing.option_value_change(60_000.0, 66_000.0, log_return=1e-7, **common)
    assert float(small) == pytest.approx(float(greeks.delta) * 60_000.0 * math.expm1(1e-7), rel=1e-5)
    hour = 1e-6
    decay = pricing.option_value_change(60_000.0, 66_000.0, log_return=0.0, horizon_years=hour, **common)
    assert float(decay) == pytest.approx(float(greeks.theta) * hour, rel=1e-4)


def test_an_option_that_expires_inside_the_horizon_is_its_intrinsic() -> None:
    today = float(_price(100.0, 100.0, 0.002, 0.6, True, 0.99))
    change = pricing.option_value_change(
        100.0, 100.0, years=0.002, vol=0.6, is_call=True, discount=0.99, log_return=0.1, horizon_years=1 / 365
    )
    assert float(change) == pytest.approx(100.0 * math.expm1(0.1) - today, rel=1e-14)
    assert float(pricing.expiring_payoff(90.0, 100.0, is_call=False)) == 10.0
    assert float(pricing.expiring_payoff(90.0, 100.0, is_call=True)) == 0.0


def test_vmapped_over_scenarios_equals_one_by_one() -> None:
    returns = np.linspace(-0.3, 0.3, 7)
    options = np.array([[100.0, 80.0, 0.1], [100.0, 100.0, 0.0], [100.0, 130.0, 0.5]])

    def change(option: jax.Array, log_return: jax.Array) -> jax.Array:
        return pricing.option_value_change(
            option[0],
            option[1],
            years=option[2],
            vol=0.5,
            is_call=False,
            log_return=log_return,
            horizon_years=1 / 365,
        )

    batched = jax.jit(jax.vmap(jax.vmap(change, (None, 0)), (0, None)))(options, returns)
    alone = [[float(change(jnp.asarray(option), jnp.asarray(r))) for r in returns] for option in options]
    np.testing.assert_allclose(batched, alone, rtol=0, atol=1e-13 * 100)


def test_discount_and_volatility_at_the_horizon() -> None:
    # df = e^{-0.05 * 0.5}; after 0.2 years e^{-0.05 * 0.3} is left.
    left = pricing.discount_at_horizon(math.exp(-0.025), 0.5, horizon_years=0.2)
    assert float(left) == pytest.approx(math.exp(-0.015), rel=1e-14)
    assert float(pricing.discount_at_horizon(0.9, 0.1, horizon_years=0.2)) == 1.0
    assert float(pricing.discount_at_horizon(0.9, 0.0, horizon_years=0.0)) == 1.0
    scaled = pricing.term_scaled_log_vol_change
    assert float(scaled(0.1, 30 / 365)) == pytest.approx(0.1, rel=1e-12)
    assert float(scaled(0.1, 120 / 365)) == pytest.approx(0.05, rel=1e-12)
    assert float(scaled(0.1, 0.2 / 365)) == pytest.approx(0.1 * math.sqrt(30.0), rel=1e-12)
    assert float(scaled(-1.0, 1 / 365)) == -2.0


def test_coins_against_a_short_of_their_value_are_a_synthetic_dollar() -> None:
    coins, entry = 2.0, 50_000.0
    for mark in (20_000.0, 50_000.0, 1e6):
        value = pricing.inverse_perp_value(-coins * entry, entry, mark=mark)
        assert (coins + float(value.pnl_coin)) * mark == pytest.approx(coins * entry, rel=1e-14)
        assert float(value.pnl_usd) == pytest.approx(float(value.pnl_coin) * mark, rel=1e-14)
    found = pricing.inverse_liquidation_price(coins, -coins * entry, entry=entry, maintenance_rate=0.01)
    assert not bool(found.exists)
    assert float(found.price) == 0.0


_inverse_value = jax.jit(lambda notional, entry, mark: pricing.inverse_perp_value(notional, entry, mark=mark))
_inverse_change = jax.jit(
    lambda notional, entry, mark, log_return: pricing.inverse_perp_value_change(
        notional, entry, mark=mark, log_return=log_return
    )
)


def _pnl_coin(mark: jax.Array, notional: float, entry: float) -> jax.Array:
    return notional * (1 / entry - 1 / mark)


_pnl_slope = jax.jit(jax.grad(_pnl_coin))
_pnl_curvature = jax.jit(jax.grad(jax.grad(_pnl_coin)))


@given(mark=st.floats(1.0, 1e5), entry=st.floats(1.0, 1e5), notional=st.floats(-1e6, 1e6), log_return=st.floats(-1, 1))
def test_inverse_perp_derivatives_and_change(mark: float, entry: float, notional: float, log_return: float) -> None:
    value = _inverse_value(notional, entry, mark)
    # The compiler makes zeros of numbers around the smallest normal one.
    slope, curvature = float(_pnl_slope(mark, notional, entry)), float(_pnl_curvature(mark, notional, entry))
    assert float(value.pnl_coin_slope) == pytest.approx(slope, rel=1e-12, abs=1e-300)
    assert float(value.pnl_coin_curvature) == pytest.approx(curvature, rel=1e-12, abs=1e-300)
    then = _inverse_value(notional, entry, mark * math.exp(log_return))
    change = _inverse_change(notional, entry, mark, log_return)
    scale = abs(notional) * (1 + mark / entry * (1 + math.exp(log_return)))
    assert float(change) == pytest.approx(float(then.pnl_usd - value.pnl_usd), abs=1e-14 * scale)


@given(
    coins=st.floats(0.1, 100.0), notional=st.floats(-1e6, 1e6), entry=st.floats(10.0, 1e5), rate=st.floats(0.001, 0.2)
)
def test_at_the_inverse_liquidation_price_equity_is_maintenance(
    coins: float, notional: float, entry: float, rate: float
) -> None:
    found = pricing.inverse_liquidation_price(coins, notional, entry=entry, maintenance_rate=rate)
    price = float(found.price)
    if bool(found.exists) and price < 1e12:
        equity = coins + notional * (1 / entry - 1 / price)
        scale = coins + abs(notional) * (1 / entry + 1 / price)
        assert equity == pytest.approx(rate * abs(notional) / price, abs=1e-12 * scale)


def test_inverse_option_in_coin_follows_the_usd_price() -> None:
    greeks = pricing.inverse_option_greeks(60_000.0, 63_000.0, years=0.25, vol=0.6, is_call=True)

    def coin(f: ArrayLike, s: ArrayLike) -> jax.Array:
        return pricing.black76_price(f, 63_000.0, years=0.25, vol=s, is_call=True) / f

    assert float(greeks.price_coin) == pytest.approx(float(coin(60_000.0, 0.6)), rel=1e-14)
    assert float(greeks.price_coin_slope) == pytest.approx(float(jax.grad(coin, 0)(60_000.0, 0.6)), rel=1e-10)
    assert float(greeks.vega_coin) == pytest.approx(float(jax.grad(coin, 1)(60_000.0, 0.6)), rel=1e-10)
    # Valued in USD the change is index/forward of the undiscounted option's.
    change = pricing.inverse_option_value_change(
        60_000.0, 63_000.0, years=0.25, vol=0.6, is_call=True, index=59_400.0, log_return=0.1
    )
    moved = 60_000.0 * math.exp(0.1)
    by_coin = float(coin(moved, 0.6)) * 59_400.0 * math.exp(0.1) - float(coin(60_000.0, 0.6)) * 59_400.0
    assert float(change) == pytest.approx(by_coin, rel=1e-12)


A, B, RHO, M, SIGMA = 0.01, 0.1, -0.3, 0.05, 0.2
SVI = pricing.SviParameters(A, B, RHO, M, SIGMA)


def _svi_vol_plain(strike: float, forward: float, tau: float) -> float:
    bound = 4 * math.sqrt(A + B * SIGMA)
    k = min(max(math.log(strike / forward), -bound), bound)
    w = A + B * (RHO * (k - M) + math.sqrt((k - M) ** 2 + SIGMA**2))
    return math.sqrt(min(w, 144.0) / tau)


@given(strike=st.floats(1e-6, 1e9), tau=st.floats(1e-4, 3.0))
def test_svi_vol_equals_the_plain_formula(strike: float, tau: float) -> None:
    vol = float(pricing.svi_vol(strike, 3000.0, svi=SVI, fit_years=tau))
    assert vol == pytest.approx(_svi_vol_plain(strike, 3000.0, tau), rel=1e-12)


def test_svi_edges_are_zero_and_the_wings_are_flat() -> None:
    def vol(strike: float, forward: float, tau: float) -> float:
        return float(pricing.svi_vol(strike, forward, svi=SVI, fit_years=tau))

    assert vol(3000.0, 3000.0, 0.0) == vol(0.0, 3000.0, 0.5) == vol(3000.0, 0.0, 0.5) == 0.0
    assert vol(1e7, 3000.0, 0.5) == vol(1e9, 3000.0, 0.5)
    negative = pricing.SviParameters(a=-1.0, b=0.1, rho=0.0, m=0.0, sigma=0.1)
    assert float(pricing.svi_vol(3000.0, 3000.0, svi=negative, fit_years=0.5)) == 0.0
    slope = jax.grad(lambda k: pricing.svi_vol(k, 3000.0, svi=negative, fit_years=0.5))(3000.0)
    assert math.isfinite(float(slope))
    wide = pricing.SviParameters(a=200.0, b=0.1, rho=0.0, m=0.0, sigma=0.1)
    assert float(pricing.svi_vol(3000.0, 3000.0, svi=wide, fit_years=1.0)) == 12.0
