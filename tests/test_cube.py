"""The instrument cube: rows and their changes against NumPy and the twin, and the builder's numbering."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.cube import TERMS, CubeBuilder, CubeRows, OptionTerms, years_until
from aggregator.pricing import DAYS_PER_YEAR
from tests.margin_twin import black76

FACTORS = ("peg:USDC", "price:BTC", "price:ETH", "vol:BTC")
HORIZON_YEARS = 1.0 / DAYS_PER_YEAR
ROUNDING_FLOAT32 = 2.0**-24  # one rounding of a float64 change to float32
PRICE_RTOL = 1e-13  # Black-76 in float64 relative to the forward: erfc and scipy's ndtr differ in the last digits


def terms(**changes: Any) -> OptionTerms:
    base = OptionTerms(
        forward=62_500.0,
        strike=60_000.0,
        years=28 / 365,
        vol=0.55,
        discount=0.9965,
        is_call=True,
        price_factor="price:BTC",
        vol_factor="vol:BTC",
        conversion=(("peg:USDC", 1.0),),
        conversion_today=1.0003,
    )
    return base._replace(**changes)


OPTIONS = (
    terms(),
    terms(is_call=False, strike=50_000.0),
    terms(years=0.4 / 365, discount=1.0),  # expires inside the horizon
    terms(years=0.0, discount=1.0),  # expired
    terms(years=1.0 / 365, is_call=False),  # expires at the horizon itself
    terms(vol=0.0),
    terms(years=2.0, strike=250_000.0),
    # Inverse: coins, worth the coin's own price; and in coins themselves.
    terms(conversion=(), conversion_today=62_000.0 / 62_500.0, discount=1.0),
    terms(conversion=(("price:BTC", -1.0),), conversion_today=1.0 / 62_500.0, discount=1.0, is_call=False),
)
EXPONENTS: tuple[dict[str, float], ...] = (
    {},
    {"price:BTC": 1.0},
    {"price:ETH": 1.0, "peg:USDC": 1.0},
    {"price:BTC": -1.0},
    {"price:BTC": 3.0, "peg:USDC": -1.0},
)


def cube() -> CubeRows:
    builder = CubeBuilder()
    for exponents in EXPONENTS:
        builder.factor_row(exponents)
    for option in OPTIONS:
        builder.option_row(option)
    return builder.build(FACTORS)


def shocks(count: int = 256, *, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(6).standard_t(4, (count, 4)) * [0.002, 0.04, 0.05, 0.08] * scale


def changes(rows: CubeRows, moves: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda s: rows.changes(s, horizon_years=HORIZON_YEARS)))(moves))


def test_factor_rows_are_products_of_powers() -> None:
    moves = shocks()
    got = changes(cube(), moves)[:, : len(EXPONENTS)]
    for number, exponents in enumerate(EXPONENTS):
        total = np.zeros(len(moves))
        for name, power in exponents.items():
            total += power * moves[:, FACTORS.index(name)]
        np.testing.assert_allclose(got[:, number], np.expm1(total), rtol=2 * ROUNDING_FLOAT32, atol=0.0)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:, 0], 0.0)  # the constant


def test_a_tiny_move_keeps_all_its_digits() -> None:
    got = changes(cube(), shocks(scale=1e-9))[:, 1]
    # exp(x) - 1 in float64 would keep seven digits of these, in float32 none.
    np.testing.assert_allclose(got, np.expm1(shocks(scale=1e-9)[:, 1]), rtol=ROUNDING_FLOAT32, atol=0.0)


def value(option: OptionTerms, moves: np.ndarray, elapsed: float) -> np.ndarray:
    """Value of one option at the moves, in its row's money."""
    left = np.full(len(moves), max(option.years - elapsed, 0.0))
    scale = (30.0 / max(option.years * DAYS_PER_YEAR, 1.0)) ** 0.5
    vol = option.vol * np.exp(np.clip(moves[:, FACTORS.index(option.vol_factor)] * scale, -2.0, 2.0))
    forward = option.forward * np.exp(moves[:, FACTORS.index(option.price_factor)])
    discount = option.discount ** (left / option.years) if option.years > 0 else np.ones(len(moves))
    conversion = np.full(len(moves), option.conversion_today)
    for name, power in option.conversion:
        conversion = conversion * np.exp(power * moves[:, FACTORS.index(name)])
    return black76(forward, option.strike, left, vol, discount, call=option.is_call) * conversion


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_option_rows_are_revalued_in_full(scale: float) -> None:
    moves = shocks(scale=scale)
    got = changes(cube(), moves)[:, len(EXPONENTS) :]
    for number, option in enumerate(OPTIONS):
        expected = value(option, moves, HORIZON_YEARS) - value(option, np.zeros((1, 4)), 0.0)
        size = option.forward * option.conversion_today * np.exp(np.abs(moves).max(axis=1))
        bound = 2 * ROUNDING_FLOAT32 * np.abs(expected) + PRICE_RTOL * size
        assert np.all(np.abs(got[:, number] - expected) <= bound), option


def test_today_is_one_for_a_factor_and_the_price_for_an_option() -> None:
    got = np.asarray(cube().today())
    np.testing.assert_array_equal(got[: len(EXPONENTS)], 1.0)
    for number, option in enumerate(OPTIONS):
        expected = value(option, np.zeros((1, 4)), 0.0)[0]
        assert got[len(EXPONENTS) + number] == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_an_expired_option_is_its_intrinsic_and_a_vol_move_is_bounded() -> None:
    moves = np.zeros((256, 4))
    moves[:, 1] = np.linspace(-0.4, 0.4, 256)
    got = changes(cube(), moves)[:, len(EXPONENTS) + 2]
    option = OPTIONS[2]
    today = value(option, np.zeros((1, 4)), 0.0)
    intrinsic = np.maximum(option.forward * np.exp(moves[:, 1]) - option.strike, 0.0) * option.conversion_today
    np.testing.assert_allclose(got, intrinsic - today, rtol=2 * ROUNDING_FLOAT32, atol=PRICE_RTOL * option.forward)
    wild = np.zeros((256, 4))
    wild[:, 3] = np.linspace(2.5, 80.0, 256)  # all beyond the limit of e^2
    bounded = changes(cube(), wild)[:, len(EXPONENTS)]
    np.testing.assert_array_equal(bounded, bounded[0])


def test_every_product_of_exponents_is_rounded_before_it_is_added() -> None:
    moves = shocks(1024)
    weights = np.array([0.3, -1.7, 2.1, 0.9])
    builder = CubeBuilder()
    row = builder.factor_row(dict(zip(FACTORS, weights, strict=True)))
    rows = builder.build(FACTORS)
    got = jax.jit(jax.vmap(lambda s: rows.log_change(s, jnp.int32(row))))(moves)
    total = moves[:, 0] * weights[0]
    for number in range(1, 4):
        total = total + moves[:, number] * weights[number]
    np.testing.assert_array_equal(got, total)


def test_equal_rows_are_one_and_zero_powers_are_dropped() -> None:
    builder = CubeBuilder()
    first = builder.factor_row({"price:BTC": 1.0, "peg:USDC": -1.0})
    assert builder.factor_row({"peg:USDC": -1.0, "price:ETH": 0.0, "price:BTC": 1.0}) == first == 1
    assert builder.factor_row({}) == builder.factor_row({"price:BTC": 0.0}) == 0
    one, other = builder.option_row(terms()), builder.option_row(terms(strike=1.0))
    assert builder.option_row(terms()) == one == -1
    assert builder.factor_row({"price:ETH": 1.0}) == 2
    # Options lie behind all factor rows, also those that came later.
    assert [builder.finished_row(row) for row in (0, 1, 2, one, other)] == [0, 1, 2, 3, 4]
    assert builder.factors() == ("peg:USDC", "price:BTC", "price:ETH", "vol:BTC")


def test_a_cube_without_options() -> None:
    builder = CubeBuilder()
    builder.factor_row({"price:ETH": 1.0})
    rows = builder.build(FACTORS)
    np.testing.assert_array_equal(rows.today(), [1.0, 1.0])
    assert changes(rows, shocks()).shape == (256, 2)


def test_more_factors_than_a_row_holds_are_refused() -> None:
    names = {f"price:{number}": 1.0 for number in range(TERMS + 1)}
    with pytest.raises(ValueError, match=f"product of {TERMS + 1} factors, at most {TERMS}"):
        CubeBuilder().factor_row(names)
    with pytest.raises(ValueError, match=f"conversion by {TERMS + 1} factors"):
        CubeBuilder().option_row(terms(conversion=tuple(names.items())))


def test_years_until() -> None:
    assert years_until(365 * 86_400.0) == 1.0
    assert years_until(-5.0) == 0.0
