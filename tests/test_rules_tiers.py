"""Rule forms of tiers and weights: as venues write them, their properties, their change without cancellation."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.rules.rate_of_size import rate_of_size
from aggregator.rules.tiered_notional import (
    PackedTiers,
    pack_tiers,
    rate_at_quantity,
    tiered_requirement,
    tiered_requirement_change,
)
from aggregator.rules.weighted_value import weighted_value, weighted_value_change

RTOL_FLOAT64 = 1e-12  # a dozen float64 operations of one sign
# A tier in float32: distance, increment, change and their product are rounded, and each addition of a tier once.
ROUNDINGS_FLOAT32 = 10 * 2.0**-24

FLOORS = np.array([0.0, 50_000.0, 250_000.0, 1_000_000.0])
RATES = np.array([0.005, 0.01, 0.025, 0.05])
INITIAL = np.array([0.01, 0.02, 0.05, 0.1])
SIZE = 8


DEDUCTIONS = np.array([0.0, 250.0, 4_000.0, 29_000.0])


def padded(packed: PackedTiers, size: int = SIZE) -> tuple[jax.Array, ...]:
    """The arrays of a table with tiers of step and jump 0 behind it."""
    floor, *others = (np.concatenate([leaf, np.zeros(size - len(leaf))]) for leaf in packed)
    floor[len(packed.floor) :] = packed.floor[-1]
    return tuple(jnp.asarray(leaf) for leaf in (floor, *others))


def tables(size: int = SIZE) -> tuple[jax.Array, ...]:
    return padded(pack_tiers(FLOORS, RATES, DEDUCTIONS, INITIAL, initial_is_integral=False), size)


def by_deduction(notional: float) -> float:
    """N * rate - deduction in the tier of N, with the deductions that make it continuous."""
    deduction, tier = 0.0, 0
    for number in range(1, len(FLOORS)):
        if notional > FLOORS[number]:
            deduction += FLOORS[number] * (RATES[number] - RATES[number - 1])
            tier = number
    return float(notional * RATES[tier] - deduction)


requirement = jax.jit(jax.vmap(lambda n: tiered_requirement(n, *tables()[:2])))
change = jax.jit(jax.vmap(lambda n, d: tiered_requirement_change(n, d, *tables()[:2])))


def test_marginal_brackets_are_a_rate_and_a_deduction() -> None:
    notionals = np.array([0.0, 1.0, 49_999.0, 50_000.0, 50_001.0, 250_000.0, 400_000.0, 1_000_000.0, 7.5e6])
    expected = [by_deduction(n) for n in notionals]
    np.testing.assert_allclose(requirement(notionals), expected, rtol=RTOL_FLOAT64)
    # 50,000 at 0.5 %, the next 200,000 at 1 %, 150,000 at 2.5 %: by hand.
    assert float(requirement(jnp.array([400_000.0]))[0]) == pytest.approx(250 + 2000 + 3750, rel=RTOL_FLOAT64)


def test_padding_changes_no_bit() -> None:
    notionals = np.linspace(0.0, 3e6, 997)
    for size in (4, 5, 16):
        floor, increment, *_ = tables(size)
        got = jax.jit(jax.vmap(lambda n, f=floor, i=increment: tiered_requirement(n, f, i)))(notionals)
        np.testing.assert_array_equal(got, requirement(notionals))


def test_every_product_is_rounded_before_it_is_added() -> None:
    rng = np.random.default_rng(4)
    notionals, moves = rng.uniform(0, 3e6, 4000), rng.normal(0, 2e5, 4000).astype(np.float32)
    floor, increment, *_ = (np.asarray(leaf) for leaf in tables())
    total = np.zeros_like(notionals)
    for f, g in zip(floor, increment, strict=True):
        total = total + g * np.maximum(notionals - f, 0.0)
    np.testing.assert_array_equal(requirement(notionals), total)
    single = np.zeros_like(moves)
    for f, g in zip(floor, increment.astype(np.float32), strict=True):
        distance = (notionals - f).astype(np.float32)
        single = single + g * (np.maximum(moves, -distance) - np.maximum(-distance, np.float32(0)))
    np.testing.assert_array_equal(change(notionals, moves), single)


def test_more_notional_never_needs_less_and_there_are_no_jumps() -> None:
    around = np.concatenate([[floor - 1e-6, floor, floor + 1e-6] for floor in FLOORS[1:]])
    found = np.asarray(requirement(around)).reshape(-1, 3)
    assert np.all(np.diff(found, axis=1) >= 0.0)
    assert np.all(np.diff(found, axis=1) <= 1e-6)
    grid = np.asarray(requirement(np.linspace(0, 5e6, 2000)))
    assert np.all(np.diff(grid) >= 0.0)


@given(st.floats(0, 5e6), st.floats(-2e6, 2e6, width=32))
def test_the_change_is_the_difference(notional: float, move: float) -> None:
    move = max(move, -notional)
    got = float(change(jnp.array([notional]), jnp.array([move], jnp.float32))[0])
    exact = _exact(Fraction(notional) + Fraction(float(np.float32(move)))) - _exact(Fraction(notional))
    # The distance to a floor is rounded once: a change that just reaches it may be off by that rounding.
    slack = (
        ROUNDINGS_FLOAT32 * (RATES.max() * (abs(move) + 0.1) + abs(float(exact))) + 2.0**-24 * RATES.max() * notional
    )
    assert abs(got - float(exact)) <= slack


def _exact(notional: Fraction) -> Fraction:
    increments = [Fraction(r) - Fraction(p) for r, p in zip(RATES, [0.0, *RATES[:-1]], strict=True)]
    return sum(
        (g * max(notional - Fraction(f), Fraction(0)) for g, f in zip(increments, FLOORS, strict=True)), Fraction(0)
    )


def test_a_tier_out_of_reach_takes_no_part_at_all() -> None:
    # Ten billion of notional in the first tier: in float32 a difference of requirements would lose every digit.
    far = jnp.array([1e10, 0.0])
    floor, increment = jnp.array([0.0, 1e12]), jnp.array([0.01, 0.5])
    got = jax.vmap(lambda n: tiered_requirement_change(n, jnp.float32(1.0), floor, increment))(far)
    np.testing.assert_array_equal(got, np.float32(0.01))


def test_a_table_that_continues_has_no_jumps_and_a_whole_rate_table_has() -> None:
    _, _, jump, _, initial_jump = tables()
    np.testing.assert_array_equal(jump, np.zeros(SIZE))
    np.testing.assert_allclose(initial_jump[:4], FLOORS * np.diff([0.0, *INITIAL]), rtol=RTOL_FLOAT64)


def test_the_initial_rate_holds_for_the_whole_notional_and_at_a_floor_the_lower_one() -> None:
    floor, _, _, step, jump = tables()
    notionals = np.array([0.0, 1.0, 50_000.0, 50_000.01, 250_000.0, 999_999.0, 1_000_000.5, 1e12])
    got = [float(tiered_requirement(jnp.float64(n), floor, step, jump)) for n in notionals]
    np.testing.assert_allclose(got, notionals * [0.01, 0.01, 0.01, 0.02, 0.02, 0.05, 0.1, 0.1], rtol=RTOL_FLOAT64)


def test_falling_and_repeated_rates_are_tiers_too() -> None:
    rates = [0.05, 0.02, 0.02, 0.03]
    deductions = np.cumsum(FLOORS * np.diff([0.0, *rates]))
    floor, step, jump, *_ = padded(pack_tiers(FLOORS, rates, deductions, INITIAL, initial_is_integral=True), 6)
    got = float(tiered_requirement(jnp.float64(2e6), floor, step, jump))
    assert got == pytest.approx(50_000 * 0.05 + 950_000 * 0.02 + 1e6 * 0.03, rel=RTOL_FLOAT64)


def test_published_deductions_count_as_they_stand() -> None:
    """A venue that rounds its deductions is followed to the last digit, with its jump at the floor."""
    deductions = [0.0, 250.3, 4_000.0, 28_999.99]
    floor, step, jump, *_ = padded(pack_tiers(FLOORS, RATES, deductions, INITIAL, initial_is_integral=True))
    for notional, tier in ((60_000.0, 1), (250_000.0, 1), (250_000.01, 2), (3e6, 3)):
        got = float(tiered_requirement(jnp.float64(notional), floor, step, jump))
        assert got == pytest.approx(notional * RATES[tier] - deductions[tier], rel=RTOL_FLOAT64)


@given(st.floats(1, 5e6), st.floats(-2e6, 2e6, width=32))
def test_the_change_over_a_jump_is_the_difference(notional: float, move: float) -> None:
    floor, _, _, step, jump = tables()
    move = max(move, -notional)
    moved = notional + float(np.float32(move))
    # At a floor itself float32 may fall on either side of the jump.
    if np.any(np.abs(FLOORS - moved) <= 2.0**-22 * (notional + abs(move))):
        return
    got = float(tiered_requirement_change(jnp.float64(notional), jnp.float32(move), floor, step, jump))

    def whole(value: float) -> float:
        return value * INITIAL[max(int(np.sum(value > FLOORS)) - 1, 0)]

    slack = 40 * 2.0**-24 * INITIAL.max() * (abs(move) + notional)
    assert abs(got - (whole(moved) - whole(notional))) <= slack


def test_a_quantity_decides_the_rate_where_floors_count_contracts() -> None:
    rows = [
        {"notional_floor": Decimal(f), "maintenance_rate": Decimal(r), "deduction": Decimal(d)}
        for f, r, d in ((0, "0.01", 0), (100, "0.02", 1), (500, "0.05", 16))
    ]
    assert rate_at_quantity(rows, Decimal(100)) == 0.01
    assert rate_at_quantity(rows, Decimal(200)) == pytest.approx(0.02 - 1 / 200)
    assert rate_at_quantity(rows, Decimal(1000)) == pytest.approx(0.05 - 16 / 1000)
    assert rate_at_quantity(rows, Decimal(1000), whole=True) == 0.05
    assert rate_at_quantity(rows, Decimal(0)) == 0.01


def test_rates_grow_with_size_by_the_venues_laws() -> None:
    assert rate_of_size("linear", Decimal("0.02"), Decimal("0.00005"), Decimal(50)) == pytest.approx(0.0225)
    # By hand: w = 500, isqrt(10 * 4e9 + 1) = 200000, times 3000 over 1e7 = 60: 500 - 100 + 60 < 500.
    assert rate_of_size("integer_sqrt", Decimal("0.05"), Decimal("0.003"), Decimal(4)) == 0.05
    # isqrt(10 * 400e9 + 1) = 2000000, times 3000 over 1e7 = 600: 500 - 100 + 600 = 1000.
    assert rate_of_size("integer_sqrt", Decimal("0.05"), Decimal("0.003"), Decimal(400)) == 0.1
    assert rate_of_size("integer_sqrt", Decimal("0.05"), Decimal(0), Decimal(400)) == 0.05
    with pytest.raises(ValueError, match="unknown law"):
        rate_of_size("cubic", Decimal(1), Decimal(1), Decimal(1))


# ---- weighted values -------------------------------------------------------------------------------------------------

ASSET, LIABILITY = 0.9, 1.02


NO_FLOOR = jnp.zeros(2)
ONE_WEIGHT = jnp.array([ASSET, 0.0])


def weighted_change(value: jax.Array, move: jax.Array) -> jax.Array:
    """Change at one asset weight (and a padded slice) and a liability weight."""
    return weighted_value_change(
        value, move, NO_FLOOR, ONE_WEIGHT, jnp.float64(LIABILITY), floor_change=jnp.zeros_like(move)
    )


def test_assets_and_debts_have_their_own_weight() -> None:
    values = jnp.array([-200.0, -0.0, 0.0, 50.0])
    got = jax.vmap(lambda v: weighted_value(v, NO_FLOOR, ONE_WEIGHT, jnp.float64(LIABILITY)))(values)
    np.testing.assert_allclose(got, [-204.0, 0.0, 0.0, 45.0], rtol=RTOL_FLOAT64)


def test_slices_count_at_their_own_weight() -> None:
    floor, step = jnp.array([0.0, 100.0, 300.0]), jnp.array([0.9, -0.2, -0.7])
    got = [float(weighted_value(jnp.float64(v), floor, step, jnp.float64(1.0))) for v in (50, 100, 200, 300, 1e6, -7)]
    np.testing.assert_allclose(got, [45.0, 90.0, 160.0, 230.0, 230.0, -7.0], rtol=RTOL_FLOAT64)


@given(st.floats(-500, 2000), st.floats(-900, 900, width=32), st.floats(-0.5, 0.5, width=32))
def test_the_change_over_moving_slices_is_the_difference(value: float, move: float, drift: float) -> None:
    floor, step, owed = np.array([0.0, 100.0, 300.0]), np.array([0.9, -0.2, -0.7]), 1.1

    def counted(v: float, f: np.ndarray) -> float:
        return float(np.sum(step * np.maximum(v - f, 0.0)) + owed * min(v, 0.0))

    got = weighted_value_change(
        jnp.float64(value),
        jnp.float32(move),
        jnp.asarray(floor),
        jnp.asarray(step),
        jnp.float64(owed),
        floor_change=jnp.float32(drift),
    )
    expected = counted(value + move, floor * (1.0 + drift)) - counted(value, floor)
    assert abs(float(got) - expected) <= 40 * 2.0**-24 * (abs(value) + abs(move) + 450.0)


def test_the_change_of_a_weighted_value_across_zero() -> None:
    rng = np.random.default_rng(8)
    today = np.concatenate([rng.normal(0, 1e4, 500), np.zeros(4), [1e9, -1e9]])
    moves = np.concatenate([rng.normal(0, 2e4, 500), [-3.0, 0.0, 4.0, 5.0], [1.0, 1.0]]).astype(np.float32)
    got = np.asarray(jax.jit(jax.vmap(weighted_change))(today, moves))
    assert got.dtype == np.float32

    def weighted(value: np.ndarray) -> np.ndarray:
        return np.where(value > 0, ASSET * value, LIABILITY * value)

    expected = weighted(today + moves) - weighted(today)
    # The turning point -v is rounded to float32 once.
    bound = ROUNDINGS_FLOAT32 * (np.abs(moves) + np.where(np.abs(moves) >= np.abs(today), np.abs(today), 0.0))
    assert np.all(np.abs(got - expected) <= bound)
    # Far from zero one dollar is one dollar times its weight, whatever the size of the balance.
    np.testing.assert_array_equal(got[-2:], np.array([ASSET, LIABILITY], np.float32))


def test_both_products_of_a_weighted_change_are_rounded() -> None:
    rng = np.random.default_rng(9)
    today, moves = rng.normal(0, 1e4, 4000), rng.normal(0, 3e4, 4000).astype(np.float32)
    got = jax.jit(jax.vmap(weighted_change))(today, moves)
    turn, zero = (-today).astype(np.float32), np.float32(0)
    gain = np.maximum(moves, turn) - np.maximum(turn, zero)
    loss = np.minimum(moves, turn) - np.minimum(turn, zero)
    np.testing.assert_array_equal(got, np.float32(ASSET) * gain + np.float32(LIABILITY) * loss)
