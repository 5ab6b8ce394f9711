"""Published tiers and the coverage guard: against slow loops, at their bounds, and when a coin collapses."""

import math

import numpy as np
import pytest

from models.coverage_guard import coverage_factor
from models.published_tiers import aimed, bounded, on_grid, smoothed
from models.tier_model_settings import Guard
from tests.small_tier_market import SETTINGS

PUBLISHED = SETTINGS.published
EXACT = 1e-12


def walk(seed: int, days: int = 300) -> np.ndarray:
    return np.cumsum(0.1 * np.random.default_rng(seed).standard_normal((days, 2)), axis=0) - 2.0


def test_smoothing_is_the_mean_at_first_and_then_the_exponential_average() -> None:
    values = np.array([0.0, 3.0, 6.0, 6.0, 0.0])
    found = smoothed(values[:, None], weight=0.4, windows_per_day=1.0)[:, 0]
    # steps 1, 1/2, then 0.4
    assert found == pytest.approx([0.0, 1.5, 1.5 + 0.4 * 4.5, 3.3 + 0.4 * 2.7, 4.38 * 0.6], rel=EXACT)
    thrice = smoothed(np.full((9, 1), 2.0), weight=0.4, windows_per_day=3.0)
    assert np.allclose(thrice, 2.0, rtol=EXACT)


def test_smoothing_keeps_over_a_short_gap_and_starts_anew_after_a_long_one() -> None:
    values = np.array([1.0, 1.0, np.nan, np.nan, np.nan, 5.0])
    assert smoothed(values[:, None], weight=0.1, windows_per_day=1.0)[-1, 0] == pytest.approx(1.0 + 4.0 / 3.0)
    longer = np.array([1.0, 1.0, np.nan, np.nan, np.nan, np.nan, 5.0])
    found = smoothed(longer[:, None], weight=0.1, windows_per_day=1.0)[:, 0]
    assert found[-1] == 5.0
    assert np.isnan(found[2:6]).all()


def test_aiming_moves_less_than_smoothing_alone_and_agrees_on_a_constant() -> None:
    noise = np.random.default_rng(3).standard_normal((400, 3))
    plain = smoothed(noise, weight=PUBLISHED.weight, windows_per_day=1.0)
    aim = aimed(noise, windows_per_day=1.0, settings=PUBLISHED)
    assert np.diff(aim, axis=0).std() < 0.8 * np.diff(plain, axis=0).std()
    flat = aimed(np.full((50, 1), -1.3), windows_per_day=1.0, settings=PUBLISHED)
    assert np.allclose(flat, -1.3, rtol=EXACT)


@pytest.mark.parametrize("per_day", [1.0, 3.0])
def test_bounds_hold_on_every_five_and_thirty_days(per_day: float) -> None:
    raw = walk(1)
    kept = bounded(raw, np.full(raw.shape, -np.inf), windows_per_day=per_day, settings=PUBLISHED)
    five, thirty = round(5 * per_day), round(30 * per_day)
    rise = kept[five:] - kept[:-five]
    assert rise.max() <= math.log1p(PUBLISHED.largest_rise_5_days) + EXACT
    windows = [kept[begin : begin + thirty] for begin in range(len(kept) - thirty)]
    spread = max(float((one.max(axis=0) - one.min(axis=0)).max()) for one in windows)
    assert spread <= math.log(PUBLISHED.largest_ratio_30_days) + EXACT
    assert not np.allclose(kept, raw)
    calm = 0.01 * raw
    assert np.array_equal(bounded(calm, calm, windows_per_day=per_day, settings=PUBLISHED), calm)


def test_a_collapsing_coin_gets_its_way_out() -> None:
    """The margin of the day rises twentyfold: bounds alone would hold the tier at 2.2 times for a month."""
    wanted = np.full((60, 1), np.log(0.05))
    wanted[40:] = np.log(0.99)
    slow = aimed(wanted, windows_per_day=1.0, settings=PUBLISHED)
    held = np.exp(bounded(slow, np.full(slow.shape, -np.inf), windows_per_day=1.0, settings=PUBLISHED))
    free = np.exp(bounded(slow, wanted, windows_per_day=1.0, settings=PUBLISHED))
    assert held[45, 0] < 0.12
    assert free[40, 0] >= 0.99 / PUBLISHED.way_out - EXACT
    assert np.array_equal(free[:40], held[:40])


def test_openings_without_a_window_stay_empty() -> None:
    raw = walk(2)
    raw[100:110, 0] = np.nan
    kept = bounded(raw, raw, windows_per_day=1.0, settings=PUBLISHED)
    assert np.array_equal(np.isnan(kept), np.isnan(raw))


def test_the_grid_rounds_up_and_leaves_its_own_rates_alone() -> None:
    rates = np.array([0.00011, 0.0002, 0.01, 0.0101, 0.0105, 0.05, 0.0501, 0.137, 0.3, np.nan])
    expected = [0.0002, 0.0002, 0.01, 0.0105, 0.0105, 0.05, 0.051, 0.137, 0.3, np.nan]
    assert on_grid(rates) == pytest.approx(expected, nan_ok=True, abs=EXACT)
    assert np.array_equal(on_grid(on_grid(rates)), on_grid(rates), equal_nan=True)


GUARD = Guard(window_days=60, least_days=30, strength=1.0, smallest_factor=0.5, largest_factor=2.0)


def ratios(factor: float, days: int = 200, assets: int = 40) -> np.ndarray:
    """ln(loss / margin) of exponential losses whose margin is `factor` times the true 90 % quantile."""
    loss = np.random.default_rng(0).exponential(size=(days, assets))
    return np.log(loss) - np.log(factor * np.log(10.0))


def test_the_guard_gives_back_the_coverage_that_was_missing() -> None:
    found = coverage_factor(ratios(0.8), level=0.9, windows_per_day=1.0, settings=GUARD, strength=1.0)
    assert len(found) == 201
    assert np.all(found[:30] == 0.0)
    # 60 days of 40 losses: the standard error of the log quantile is 0.027
    assert found[-1] == pytest.approx(-np.log(0.8), abs=0.08)
    half = coverage_factor(ratios(0.8), level=0.9, windows_per_day=1.0, settings=GUARD, strength=0.5)
    assert half[-1] == pytest.approx(0.5 * found[-1], rel=EXACT)
    past = ratios(0.8)
    held = np.sort(past[140:200].ravel())[math.ceil(0.9 * 2400) - 1]
    assert found[200] == pytest.approx(held, rel=EXACT)


def test_the_guard_is_bounded_and_sees_nothing_of_the_future() -> None:
    far = coverage_factor(ratios(0.01), level=0.9, windows_per_day=1.0, settings=GUARD, strength=1.0)
    assert far[-1] == pytest.approx(np.log(2.0), rel=EXACT)
    changed = ratios(0.8)
    changed[150:] += 3.0
    before, after = (
        coverage_factor(one, level=0.9, windows_per_day=1.0, settings=GUARD, strength=1.0)
        for one in (ratios(0.8), changed)
    )
    assert np.array_equal(before[:151], after[:151])
    assert after[-1] > before[-1]


def test_unknown_losses_do_not_count_and_losses_below_zero_do() -> None:
    some = ratios(0.8)
    some[:, 20:] = np.nan
    wide = coverage_factor(some, level=0.9, windows_per_day=1.0, settings=GUARD, strength=1.0)
    narrow = coverage_factor(some[:, :20], level=0.9, windows_per_day=1.0, settings=GUARD, strength=1.0)
    assert np.array_equal(wide, narrow)
    gains = np.where(np.isfinite(some), -np.inf, np.nan)
    none = coverage_factor(gains, level=0.9, windows_per_day=1.0, settings=GUARD, strength=1.0)
    assert none[-1] == pytest.approx(np.log(0.5), rel=EXACT)
