"""The requirement stack, the add-ons and the scenario grid: properties, edges and slow twins.

The reference figures from outside are in `test_vectors.py`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import add_ons, scenario_grid
from aggregator.cube import CubeBuilder, OptionTerms
from aggregator.errors import ConfigurationError
from aggregator.requirement import (
    NO_ADD_ONS,
    AddOnTotals,
    OffsetBenefit,
    RequirementStack,
    capped_offset,
    checked_horizons,
    effective_requirement,
    initial_requirement,
    liquidity_horizon_shortfall,
    requirement_stack,
)
from aggregator.scenario_grid import GridBook, GridRule, GridVolRule, book_losses, grid_points, row_changes, worst_loss

# Denormal numbers are flushed to zero on some devices; they have a test of their own.
AMOUNT = st.floats(0.0, 1e12, allow_subnormal=False)
SIGNED = st.floats(-1e12, 1e12, allow_subnormal=False)
SHARE = st.floats(0.0, 1.0, allow_subnormal=False)
COMPONENTS = ("current_shortfall", "stressed_shortfall", "grid", "floor", "silo", *AddOnTotals._fields)


@jax.jit
def _stack(figures: dict[str, jax.Array]) -> RequirementStack:
    parts = AddOnTotals(*(figures[name] for name in AddOnTotals._fields))
    rest = {name: value for name, value in figures.items() if name not in AddOnTotals._fields}
    return requirement_stack(**rest, add_ons=parts)


def _figures(**given: float) -> dict[str, jax.Array]:
    neutral = {**dict.fromkeys(COMPONENTS, 0.0), "stress_weight": 0.25, "offset_cap": 0.8, "fungibility": 1.0}
    return {name: jnp.asarray(value, jnp.float64) for name, value in {**neutral, **given}.items()}


STACKS = st.fixed_dictionaries(
    {
        "current_shortfall": SIGNED,
        "stressed_shortfall": SIGNED,
        "stress_weight": SHARE,
        "grid": AMOUNT,
        "floor": AMOUNT,
        "silo": AMOUNT,
        "offset_cap": SHARE,
        "fungibility": SHARE,
        **dict.fromkeys(AddOnTotals._fields, AMOUNT),
    }
)


@given(STACKS, st.sampled_from(COMPONENTS), st.floats(0.0, 1e9))
def test_no_component_that_grows_makes_the_requirement_smaller(
    figures: dict[str, float], name: str, more: float
) -> None:
    before = _stack(_figures(**figures))
    after = _stack(_figures(**{**figures, name: figures[name] + more}))
    assert after.effective >= before.effective
    assert after.ideal >= before.ideal


@given(STACKS, st.integers(-8, 8))
def test_without_add_ons_twice_the_risk_requires_twice_as_much(figures: dict[str, float], exponent: int) -> None:
    figures |= dict.fromkeys(AddOnTotals._fields, 0.0)
    scale = 2.0**exponent
    scaled = figures | {name: figures[name] * scale for name in COMPONENTS}
    one, many = _stack(_figures(**figures)), _stack(_figures(**scaled))
    assert float(many.effective) == pytest.approx(scale * float(one.effective), rel=1e-15)
    assert float(many.margin_efficiency) == pytest.approx(float(one.margin_efficiency), rel=1e-14)


@given(STACKS)
def test_the_benefit_lies_between_nothing_and_what_the_cap_grants(figures: dict[str, float]) -> None:
    stack = _stack(_figures(**figures))
    ideal, silo, effective = float(stack.ideal), float(stack.silo), float(stack.effective)
    share = min(figures["offset_cap"], figures["fungibility"])
    assert float(stack.offset_share) == share
    if ideal < silo:
        assert ideal <= effective <= silo
        assert 0.0 <= float(stack.offset_benefit) <= share * (silo - ideal) + 1e-15 * silo
        assert effective == pytest.approx(silo - share * (silo - ideal), rel=1e-14, abs=1e-15 * silo)
    else:
        assert effective == ideal
        assert float(stack.offset_benefit) <= 0.0


@given(STACKS)
def test_every_figure_of_finite_components_is_finite(figures: dict[str, float]) -> None:
    stack = _stack(_figures(**figures))
    silo = figures["silo"]
    # Without a silo, or with one so small that no float holds the ratio, the ratio alone is infinite.
    if silo == 0.0 or math.isinf(float(stack.effective) / silo):
        stack = stack._replace(margin_efficiency=jnp.zeros(()))
    assert all(np.isfinite(np.asarray(value)) for value in stack)


def test_an_empty_portfolio_requires_nothing_and_every_figure_is_finite() -> None:
    stack = _stack(_figures())
    assert all(np.isfinite(np.asarray(value)) for value in stack)
    assert float(stack.effective) == 0.0
    assert float(stack.margin_efficiency) == 1.0


def test_a_denormal_requirement_counts_as_none() -> None:
    stack = _stack(_figures(silo=1e-308))
    assert float(stack.margin_efficiency) == 1.0


def test_hidden_illiquidity_is_not_clipped_to_the_silo() -> None:
    stack = _stack(_figures(current_shortfall=100.0, liquidity=150.0, silo=200.0))
    assert float(stack.effective) == 250.0
    assert float(stack.offset_benefit) == -50.0
    assert float(stack.margin_efficiency) == 1.25


def test_a_calm_stressed_window_never_lowers_the_shortfall_and_a_profit_requires_nothing() -> None:
    assert float(_stack(_figures(current_shortfall=100.0, stressed_shortfall=-500.0)).blended_shortfall) == 100.0
    assert float(_stack(_figures(current_shortfall=-100.0, stressed_shortfall=-500.0, silo=5.0)).base) == 0.0


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_that_is_nan_shows_as_an_infinite_requirement(name: str) -> None:
    stack = _stack(_figures(**{"current_shortfall": 1.0, "silo": 3.0, name: math.nan}))
    assert not any(np.isnan(np.asarray(value)) for value in stack)
    assert float(stack.effective) == math.inf


def test_unknown_fungibility_grants_no_offset_and_shares_are_kept_within_their_range() -> None:
    for share in (math.nan, -1.0):
        assert float(_stack(_figures(current_shortfall=1.0, silo=3.0, fungibility=share)).effective) == 3.0
    assert float(_stack(_figures(current_shortfall=1.0, silo=3.0, offset_cap=7.0, fungibility=9.0)).effective) == 1.0
    everything = effective_requirement(1.0, math.inf, offset_cap=1.0, fungibility=1.0)
    assert float(everything.requirement) == 1.0


@given(st.lists(AMOUNT, min_size=5, max_size=5), AMOUNT, SHARE)
def test_a_capped_offset_lies_between_the_whole_and_its_parts(parts: list[float], combined: float, cap: float) -> None:
    found = _capped(jnp.asarray(parts), jnp.asarray(combined), jnp.asarray(cap))
    total = float(np.cumsum(parts)[-1])
    assert float(found.requirement) == pytest.approx(max(combined, total - cap * (total - combined)), rel=1e-14)
    if combined <= total:
        assert combined <= float(found.requirement) <= total
        assert float(found.capped) <= float(found.uncapped)


@jax.jit
def _capped(parts: jax.Array, combined: jax.Array, cap: jax.Array) -> OffsetBenefit:
    return capped_offset(parts, combined, cap=cap)


@given(STACKS)
def test_the_stack_has_the_same_bits_alone_mapped_and_without_jit(figures: dict[str, float]) -> None:
    alone = _stack(_figures(**figures))
    pair = {name: jnp.stack([value, value + 1.0]) for name, value in _figures(**figures).items()}
    mapped = jax.vmap(_stack)(pair)
    rest = {name: value for name, value in figures.items() if name not in AddOnTotals._fields}
    plain = requirement_stack(**rest, add_ons=AddOnTotals(*(figures[name] for name in AddOnTotals._fields)))
    for one, both, eager in zip(alone, mapped, plain, strict=True):
        assert float(one) == float(both[0]) == float(eager)


def test_the_initial_level_is_the_larger_of_two_and_never_below_maintenance() -> None:
    assert float(initial_requirement(100.0, 110.0, scale=1.25)) == 125.0
    assert float(initial_requirement(100.0, 140.0, scale=1.25)) == 140.0
    assert float(initial_requirement(100.0, 0.0, scale=0.5)) == 100.0
    assert float(initial_requirement(0.0, 0.0, scale=1.25)) == 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Liquidity horizons


@given(st.lists(AMOUNT, min_size=4, max_size=4), st.lists(st.floats(0.1, 50.0), min_size=4, max_size=4))
def test_liquidity_horizons_add_by_squares(shortfalls: list[float], gaps: list[float]) -> None:
    horizons = np.cumsum(gaps)
    found = _over_horizons(jnp.asarray(shortfalls), jnp.asarray(horizons))
    periods = np.diff(horizons, prepend=0.0) / horizons[0]
    scale = max(shortfalls) or 1.0
    expected = scale * math.sqrt(math.fsum((s / scale) ** 2 * p for s, p in zip(shortfalls, periods, strict=True)))
    assert float(found) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_a_bucket_with_the_horizon_of_the_one_before_adds_nothing() -> None:
    short = liquidity_horizon_shortfall(jnp.asarray([5.0, 3.0]), jnp.asarray([1.0, 4.0]), base_horizon=1.0)
    padded = _over_horizons(jnp.asarray([5.0, 3.0, 7.0, math.nan]), jnp.asarray([1.0, 4.0, 4.0, 4.0]))
    assert float(padded) == float(short) == pytest.approx(math.sqrt(25.0 + 9.0 * 3.0))


@jax.jit
def _over_horizons(shortfalls: jax.Array, horizons: jax.Array) -> jax.Array:
    return liquidity_horizon_shortfall(shortfalls, horizons, base_horizon=horizons[0])


def test_liquidity_horizons_at_their_edges() -> None:
    assert float(liquidity_horizon_shortfall(jnp.zeros(3), jnp.asarray([1.0, 3.0, 10.0]), base_horizon=1.0)) == 0.0
    assert float(liquidity_horizon_shortfall(jnp.asarray([math.nan]), jnp.asarray([1.0]), base_horizon=1.0)) == math.inf
    assert checked_horizons([1.0, 3.0], base_horizon=1.0) == (1.0, 3.0)
    for horizons in ([], [2.0, 3.0], [1.0, 1.0], [1.0, math.nan]):
        with pytest.raises(ConfigurationError, match="liquidity horizons"):
            checked_horizons(horizons, base_horizon=1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Add-ons


def _pooled(notional: Any, pool: Any, volume: Any, *, spread: float = 0.0, nets: bool = False) -> add_ons.AddOn:
    values = jnp.asarray(notional, jnp.float64)
    return add_ons.pooled_liquidity_cost(
        values,
        jnp.asarray(pool),
        jnp.asarray(volume, jnp.float64),
        daily_vol=jnp.full(values.shape[1], 0.04),
        spread=jnp.full(values.shape[1], spread),
        impact=1.0,
        nets=nets,
    )


def test_a_position_split_over_four_venues_costs_the_same_and_its_parts_half() -> None:
    whole = _pooled([[8e6]], [0], [[1e8]])
    parts = _pooled([[2e6]] * 4, [0] * 4, [[1e8]])
    assert float(whole.amount[0]) == pytest.approx(8e6 * 0.04 * math.sqrt(0.08), rel=1e-14)
    assert float(parts.amount[0]) == float(whole.amount[0])
    alone = add_ons.liquidity_cost(jnp.full(4, 2e6), 1e8, daily_vol=0.04, spread=0.0, impact=1.0)
    assert float(add_ons.total(alone).amount) == pytest.approx(float(whole.amount[0]) / 2.0, rel=1e-14)


def test_depth_that_is_not_shared_is_not_pooled() -> None:
    apart = _pooled([[2e6]] * 4, [0, 1, 2, 3], [[1e8]] * 4)
    shared = _pooled([[2e6]] * 4, [0, 0, 1, 1], [[1e8]] * 2)
    together = _pooled([[2e6]] * 4, [0] * 4, [[1e8]])
    assert float(apart.amount[0]) == pytest.approx(float(together.amount[0]) / 2.0, rel=1e-14)
    assert float(shared.amount[0]) == pytest.approx(float(together.amount[0]) / math.sqrt(2.0), rel=1e-14)


def test_opposite_legs_cost_each_their_own_side_and_net_only_where_they_close_together() -> None:
    apart = _pooled([[5e6], [-3e6]], [0, 0], [[1e8]])
    sides = [float(_pooled([[size]], [0], [[1e8]]).amount[0]) for size in (5e6, 3e6, 2e6)]
    assert float(apart.amount[0]) == pytest.approx(sides[0] + sides[1], rel=1e-14)
    assert float(_pooled([[5e6], [-3e6]], [0, 0], [[1e8]], nets=True).amount[0]) == sides[2]
    forced = add_ons.forced_notional(jnp.asarray([[5.0, -1.0], [-3.0, -1.0]]), nets=jnp.asarray([False, True]))
    assert forced.sold.tolist() == [5.0, 0.0]
    assert forced.bought.tolist() == [3.0, 2.0]


@given(st.lists(AMOUNT, min_size=5, max_size=5))
def test_pooling_depth_never_costs_less_than_the_parts(sizes: list[float]) -> None:
    pooled, alone = _pooled_and_alone(jnp.asarray(sizes))
    assert float(pooled) >= float(alone) * (1.0 - 1e-14)


@jax.jit
def _pooled_and_alone(sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
    pooled = _pooled(sizes[:, None], [0] * 5, [[1e8]], spread=0.001)
    alone = add_ons.total(add_ons.liquidity_cost(sizes, 1e8, daily_vol=0.04, spread=0.001, impact=1.0))
    return pooled.amount[0], alone.amount


@pytest.mark.parametrize("volume", [0.0, -1.0, math.nan, math.inf])
def test_a_position_without_a_market_volume_is_unmeasured_and_an_empty_one_is_not(volume: float) -> None:
    notional = jnp.asarray([1e6, 0.0, -2e6])
    cost = add_ons.liquidity_cost(notional, jnp.full(3, volume), daily_vol=0.04, spread=0.001, impact=1.0)
    assert cost.amount.tolist() == [math.inf, 0.0, math.inf]
    assert cost.measured.tolist() == [False, True, False]
    assert not bool(add_ons.total(cost).measured)
    days = add_ons.close_out(notional, jnp.full(3, volume), participation=0.1, least_days=2.0)
    assert days.liquidation_days.tolist() == [math.inf, 0.0, math.inf]
    assert days.margin_period_days.tolist() == [math.inf, 2.0, math.inf]
    assert days.measured.tolist() == [False, True, False]
    pooled = _pooled([[1e6, 0.0]], [0], [[volume, volume]])
    assert pooled.amount.tolist() == [math.inf, 0.0]
    assert pooled.measured.tolist() == [False, True]


def test_a_position_in_no_pool_or_without_a_figure_is_unmeasured() -> None:
    nowhere = _pooled([[1e6, 0.0], [0.0, 0.0]], [-1, 0], [[1e8, 1e8]])
    assert nowhere.amount.tolist() == [math.inf, 0.0]
    assert nowhere.measured.tolist() == [False, True]
    for figures in ({"daily_vol": math.nan}, {"spread": math.nan}, {"impact": math.nan}, {"daily_vol": -0.1}):
        cost = add_ons.liquidity_cost(1e6, 1e8, **{"daily_vol": 0.04, "spread": 0.001, "impact": 1.0, **figures})
        assert (float(cost.amount), bool(cost.measured)) == (math.inf, False)
    unknown = add_ons.liquidity_cost(math.nan, 1e8, daily_vol=0.04, spread=0.001, impact=1.0)
    assert (float(unknown.amount), bool(unknown.measured)) == (math.inf, False)


def test_concentration_charges_risk_that_is_larger_than_its_threshold_and_credits_no_hedge() -> None:
    found = add_ons.concentration(
        jnp.asarray([100.0, 100.0, -50.0, 100.0, 100.0, 0.0]),
        jnp.asarray([400.0, 50.0, 400.0, 10.0, 0.0, 400.0]),
        jnp.asarray([100.0, 100.0, 100.0, math.nan, math.nan, 0.0]),
    )
    assert found.amount.tolist() == [100.0, 0.0, 0.0, math.inf, 0.0, 0.0]
    assert found.measured.tolist() == [True, True, True, False, True, False]
    unknown = add_ons.concentration(math.nan, 400.0, 100.0)
    assert (float(unknown.amount), bool(unknown.measured)) == (math.inf, False)


@given(st.lists(SIGNED, min_size=6, max_size=6))
def test_the_matched_notional_is_half_of_what_netting_takes_away(quantities: list[float]) -> None:
    matched = float(_matched(jnp.asarray(quantities)))
    gross, net = math.fsum(map(abs, quantities)), abs(math.fsum(quantities))
    assert matched == pytest.approx((gross - net) / 2.0, abs=1e-14 * max(gross, 1e-300))
    assert matched >= 0.0


_matched = jax.jit(add_ons.matched_notional)


def test_the_basis_has_a_floor_and_a_missing_rate_is_unmeasured() -> None:
    found = add_ons.basis(
        jnp.asarray([1000.0, 1000.0, 0.0, 1000.0]), jnp.asarray([0.02, 0.0, math.nan, math.nan]), least_rate=0.002
    )
    assert found.amount.tolist() == [20.0, 2.0, 0.0, math.inf]
    assert found.measured.tolist() == [True, True, True, False]


def test_own_tokens_are_lost_whole_and_exposures_to_the_venue_by_what_is_lost_on_default() -> None:
    found = add_ons.wrong_way(
        jnp.asarray([[100.0, 50.0], [-20.0, 30.0]]),
        jnp.asarray([[True, False], [True, False]]),
        exposure=jnp.asarray([[0.0, 40.0], [0.0, -5.0]]),
        loss_given_default=jnp.asarray([[math.nan, 0.6], [0.6, 0.6]]),
    )
    assert found.amount.tolist() == [[100.0, 24.0], [0.0, 0.0]]
    assert found.measured.tolist() == [[True, True], [True, True]]
    unknown = add_ons.wrong_way(10.0, False, exposure=5.0, loss_given_default=math.nan)
    assert (float(unknown.amount), bool(unknown.measured)) == (math.inf, False)


def test_a_venue_costs_its_expected_loss_at_most_all_that_lies_there() -> None:
    found = add_ons.venue_failure(
        jnp.asarray([0.02, 0.02, 1e9, math.nan, math.nan]),
        jnp.asarray([1e6, -1e6, 1e6, 1e6, 0.0]),
        loss_given_default=jnp.full(5, 0.6),
        horizon_years=2.0 / 365.0,
    )
    assert found.amount.tolist() == pytest.approx([0.02 * 2.0 / 365.0 * 0.6 * 1e6, 0.0, 6e5, math.inf, 0.0], rel=1e-14)
    assert found.measured.tolist() == [True, True, True, False, True]


@given(SHARE, st.floats(0.0, 2.0), st.floats(0.0, 10.0), st.floats(0.0, 30.0), SHARE)
def test_a_haircut_is_a_share_and_grows_with_risk(
    static: float, vol: float, z: float, days: float, extra: float
) -> None:
    def haircut(vol: float) -> float:
        return float(_haircut(*(jnp.asarray(x) for x in (static, vol, z, days, extra))))

    assert static <= haircut(vol) <= 1.0
    assert haircut(vol) <= haircut(vol + 0.1)
    assert haircut(math.nan) == 1.0


@jax.jit
def _haircut(static: jax.Array, vol: jax.Array, z: jax.Array, days: jax.Array, extra: jax.Array) -> jax.Array:
    return add_ons.volatility_haircut(static, daily_vol=vol, quantile=z, horizon_days=days, liquidity=extra)


# ---------------------------------------------------------------------------------------------------------------------
# Scenario grid


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def _black(forward: float, strike: float, years: float, vol: float, is_call: bool) -> float:
    """Black's price in plain floats."""
    sign = 1.0 if is_call else -1.0
    deviation = vol * math.sqrt(max(years, 0.0))
    if deviation == 0.0 or forward <= 0.0:
        return max(sign * (forward - strike), 0.0)
    d1 = math.log(forward / strike) / deviation + deviation / 2
    return sign * (forward * _normal(sign * d1) - strike * _normal(sign * (d1 - deviation)))


def _plain_loss(book: list[dict[str, Any]], spot: float, step: int, rule: GridVolRule) -> float:
    up, down, power, floor_days, least = (float(np.asarray(figure)) for figure in rule)
    total = 0.0
    for row in book:
        forward = row["forward"]
        if not row["is_option"]:
            total -= row["quantity"] * forward * spot
            continue
        days = max(row["years"] * 365.0, floor_days)
        size = {-1: -down, 0: 0.0, 1: up}[step] * (30.0 / days) ** power
        moved = row["vol"] * max(least, 1.0 + size)
        after = _black(forward * (1.0 + spot), row["strike"], row["years"], moved, row["is_call"])
        before = _black(forward, row["strike"], row["years"], row["vol"], row["is_call"])
        total -= row["quantity"] * (after - before)
    return total


ROW = st.fixed_dictionaries(
    {
        "quantity": st.floats(-100.0, 100.0),
        "forward": st.just(100.0),
        "strike": st.floats(20.0, 400.0),
        "years": st.sampled_from([0.0, 1e-3, 1 / 365, 30 / 365, 1.5]),
        "vol": st.floats(0.05, 3.0),
        "is_call": st.booleans(),
        "is_option": st.booleans(),
    }
)
SPOTS, STEPS, EXTREMES = (-0.3, -0.1, 0.0, 0.1, 0.3), (-1, 0, 1), (-1.0, -0.6, 0.9)


@given(st.lists(ROW, min_size=1, max_size=4), st.sampled_from([0.0, 0.3, 0.5]))
def test_a_books_losses_are_those_of_plain_revaluation(rows: list[dict[str, Any]], power: float) -> None:
    rule = GridVolRule(power=power, floor_days=2.0)
    padded = [*rows, *[{**rows[0], "quantity": 0.0}] * (4 - len(rows))]
    book = GridBook(**{name: jnp.asarray([row[name] for row in padded]) for name in GridBook._fields})
    found = _losses(book, rule)
    plain = np.array([[_plain_loss(rows, u, d, rule) for d in STEPS] for u in SPOTS])
    extreme = np.array([_plain_loss(rows, u, 0, rule) for u in EXTREMES]) / 3.0
    np.testing.assert_allclose(found.grid, plain, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(found.extreme, extreme, rtol=1e-11, atol=1e-9)
    everything = np.concatenate([np.asarray(found.grid).reshape(-1), np.asarray(found.extreme)])
    assert float(found.worst.amount) == max(0.0, float(np.max(everything)))
    if found.worst.point >= 0:
        assert everything[int(found.worst.point)] == float(found.worst.amount)


@jax.jit
def _losses(book: GridBook, rule: GridVolRule) -> scenario_grid.BookLosses:
    return book_losses(
        book,
        spot_moves=jnp.asarray(SPOTS, jnp.float64),
        vol_steps=jnp.asarray(STEPS, jnp.float64),
        extreme_moves=jnp.asarray(EXTREMES, jnp.float64),
        extreme_weight=1.0 / 3.0,
        rule=rule,
    )


FACTORS = ("peg:USDC", "price:BTC", "price:DOGE", "vol:BTC", "funding:BTC")


def test_the_grid_moves_all_together_and_each_alone() -> None:
    rule = GridRule(scan_moves={"BTC": 0.15}, default_scan_move=0.4, betas={"DOGE": 1.5}, deepest_fall=0.9)
    points = grid_points(FACTORS, rule)
    where = {name: column for column, name in enumerate(points.factors)}
    moves = np.expm1(points.log_moves)
    by_label = {label: row for row, label in enumerate(points.labels)}
    assert len(by_label) == len(points.labels) == len(points.weights)

    together = by_label["all prices at -1 of the scan, vol up"]
    assert moves[together, where["price:BTC"]] == pytest.approx(-0.15)
    assert moves[together, where["price:DOGE"]] == pytest.approx(-0.225)
    assert points.vol_steps[together, where["vol:BTC"]] == 1.0
    alone = by_label["DOGE alone at -1 of the scan"]
    assert moves[alone, where["price:DOGE"]] == pytest.approx(-0.4)
    assert np.all(moves[alone, [where["price:BTC"], where["peg:USDC"], where["funding:BTC"]]] == 0.0)
    extreme = by_label["DOGE alone at -3 of the scan"]
    assert moves[extreme, where["price:DOGE"]] == pytest.approx(-0.9)
    assert points.weights[extreme] == pytest.approx(1 / 3)
    assert np.all(points.vol_steps[extreme] == 0.0)
    peg = by_label["peg of USDC at -1 of the scan"]
    assert moves[peg, where["peg:USDC"]] == pytest.approx(-0.05)
    assert np.count_nonzero(moves[peg]) == 1
    assert points.unmoved == ("funding:BTC",)
    assert not np.any(points.log_moves[:, where["vol:BTC"]])
    rows = np.column_stack([points.log_moves, points.vol_steps, points.weights])
    assert len(np.unique(rows, axis=0)) == len(rows)
    # All together 7 x 3 + 2, BTC alone 23, DOGE alone 7 + 2, the peg 7: each without the points that came before.
    assert len(rows) == 23 + (23 - 3) + (9 - 1) + (7 - 1)


def test_one_underlying_has_one_set_of_points_and_an_unnamed_one_the_default_move() -> None:
    points = grid_points(("price:XYZ", "vol:XYZ"), GridRule())
    assert len(points.labels) == 23
    assert np.expm1(points.log_moves[:, 0]).min() == pytest.approx(-0.95)
    assert np.expm1(points.log_moves[points.weights == 1.0, 0]).min() == pytest.approx(-0.5)
    nothing = grid_points((), GridRule())
    assert float(worst_loss(jnp.zeros(len(nothing.labels)), jnp.asarray(nothing.weights)).amount) == 0.0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"default_scan_move": 0.0}, "default_scan_move"),
        ({"scan_moves": {"BTC": -0.1}}, "scan_moves.BTC"),
        ({"peg_moves": {"USDC": math.nan}}, "peg_moves.USDC"),
        ({"betas": {"DOGE": math.inf}}, "betas.DOGE"),
        ({"deepest_fall": 1.0}, "deepest_fall"),
        ({"extreme_weight": 1.5}, "extreme_weight"),
        ({"spot_points": ()}, "spot_points"),
        ({"spot_points": (2.0,)}, "spot_points"),
        ({"vol_directions": (2,)}, "vol_directions"),
    ],
)
def test_a_bad_grid_is_refused_by_name(change: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        GridRule(**change)


def test_a_factor_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        grid_points(("price:BTC", "price:BTC"), GridRule())


def test_a_cubes_rows_are_repriced_at_every_point() -> None:
    rule = GridVolRule()
    terms = OptionTerms(3000.0, 3300.0, 0.05, 0.8, 0.99, True, "price:ETH", "vol:ETH", (("peg:USDC", 1.0),), 0.999)
    builder = CubeBuilder()
    held = [builder.factor_row({"price:ETH": 1.0, "peg:USDC": -1.0}), builder.option_row(terms)]
    factors = builder.factors()
    cube = builder.build(factors)
    token, option = (builder.finished_row(row) for row in held)
    points = grid_points(factors, GridRule())
    changes = jax.jit(jax.vmap(lambda m, s: row_changes(cube, m, s, rule)))(
        jnp.asarray(points.log_moves), jnp.asarray(points.vol_steps)
    )
    row_of = {name: column for column, name in enumerate(factors)}
    for point in range(len(points.labels)):
        price, peg = (float(np.exp(points.log_moves[point, row_of[name]])) for name in ("price:ETH", "peg:USDC"))
        step = int(points.vol_steps[point, row_of["vol:ETH"]])
        size = {-1: -0.30, 0: 0.0, 1: 0.45}[step] * (30.0 / (0.05 * 365.0)) ** 0.3
        moved = 0.99 * _black(3000.0 * price, 3300.0, 0.05, 0.8 * max(0.05, 1.0 + size), True)
        today = 0.99 * _black(3000.0, 3300.0, 0.05, 0.8, True)
        assert float(changes[point, token]) == pytest.approx(price / peg - 1.0, rel=1e-12, abs=1e-15)
        assert float(changes[point, option]) == pytest.approx(0.999 * (peg * moved - today), rel=1e-10, abs=1e-11)
    still = points.labels.index("ETH alone at +0 of the scan")
    assert float(changes[still, token]) == float(changes[still, option]) == 0.0


def test_the_worst_point_ignores_padding_and_shows_nan_as_infinite() -> None:
    found = worst_loss(jnp.asarray([5.0, 30.0, math.nan]), jnp.asarray([1.0, 1 / 3, 0.0]))
    assert float(found.amount) == pytest.approx(10.0)
    assert int(found.point) == 1
    bad = worst_loss(jnp.asarray([5.0, math.nan]), jnp.asarray([1.0, 1.0]))
    assert (float(bad.amount), int(bad.point)) == (math.inf, 1)
    gains = worst_loss(jnp.asarray([-5.0, -1.0]), jnp.asarray([1.0, 1.0]))
    assert (float(gains.amount), int(gains.point)) == (0.0, -1)
    assert NO_ADD_ONS == (0.0, 0.0, 0.0, 0.0, 0.0)
