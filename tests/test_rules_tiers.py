"""Rule forms of tiers and weights: as venues write them, their properties, their change without cancellation."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.rules.tiered_notional import (
    TierTable,
    pack_tiers,
    tier_initial_rate,
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


def tables(size: int = SIZE) -> tuple[jax.Array, jax.Array, jax.Array]:
    floor, increment, initial = pack_tiers(FLOORS, RATES, INITIAL, size=size)
    return jnp.asarray(floor), jnp.asarray(increment), jnp.asarray(initial)


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
        floor, increment, _ = tables(size)
        got = jax.jit(jax.vmap(lambda n, f=floor, i=increment: tiered_requirement(n, f, i)))(notionals)
        np.testing.assert_array_equal(got, requirement(notionals))


def test_every_product_is_rounded_before_it_is_added() -> None:
    rng = np.random.default_rng(4)
    notionals, moves = rng.uniform(0, 3e6, 4000), rng.normal(0, 2e5, 4000).astype(np.float32)
    floor, increment, _ = (np.asarray(leaf) for leaf in tables())
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


def test_the_initial_rate_is_that_of_the_tier_and_at_a_floor_of_the_lower_one() -> None:
    table = TierTable(*tables())
    notionals = [0.0, 1.0, 50_000.0, 50_000.01, 250_000.0, 999_999.0, 1_000_000.5, 1e12]
    got = [float(tier_initial_rate(jnp.float64(n), table)) for n in notionals]
    assert got == [0.01, 0.01, 0.01, 0.02, 0.02, 0.05, 0.1, 0.1]
    # Without rates of its own (a chosen leverage decides) the table says 0.
    silent = TierTable(table.floor, table.increment, jnp.zeros(SIZE))
    assert float(tier_initial_rate(jnp.float64(3e5), silent)) == 0.0


def test_falling_and_repeated_rates_are_tiers_too() -> None:
    floor, increment, _ = pack_tiers(FLOORS, np.array([0.05, 0.02, 0.02, 0.03]), INITIAL, size=6)
    got = float(tiered_requirement(jnp.float64(2e6), jnp.asarray(floor), jnp.asarray(increment)))
    assert got == pytest.approx(50_000 * 0.05 + 950_000 * 0.02 + 1e6 * 0.03, rel=RTOL_FLOAT64)


# ---- weighted values -------------------------------------------------------------------------------------------------

ASSET, LIABILITY = 0.9, 1.02


def test_assets_and_debts_have_their_own_weight() -> None:
    values = jnp.array([-200.0, -0.0, 0.0, 50.0])
    got = weighted_value(values, jnp.full(4, ASSET), jnp.full(4, LIABILITY))
    np.testing.assert_allclose(got, [-204.0, 0.0, 0.0, 45.0], rtol=RTOL_FLOAT64)


def test_the_change_of_a_weighted_value_across_zero() -> None:
    rng = np.random.default_rng(8)
    today = np.concatenate([rng.normal(0, 1e4, 500), np.zeros(4), [1e9, -1e9]])
    moves = np.concatenate([rng.normal(0, 2e4, 500), [-3.0, 0.0, 4.0, 5.0], [1.0, 1.0]]).astype(np.float32)
    got = np.asarray(
        jax.jit(jax.vmap(lambda v, d: weighted_value_change(v, d, jnp.float64(ASSET), jnp.float64(LIABILITY))))(
            today, moves
        )
    )
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
    got = jax.jit(jax.vmap(lambda v, d: weighted_value_change(v, d, jnp.float64(ASSET), jnp.float64(LIABILITY))))(
        today, moves
    )
    turn, zero = (-today).astype(np.float32), np.float32(0)
    gain = np.maximum(moves, turn) - np.maximum(turn, zero)
    loss = np.minimum(moves, turn) - np.minimum(turn, zero)
    np.testing.assert_array_equal(got, np.float32(ASSET) * gain + np.float32(LIABILITY) * loss)
