"""The governance file, and the steps that it allows."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.errors import ConfigurationError
from models.bounded_step import SENTENCES, Reason, Standing, bounded_step
from models.tier_policy import BPS, Bound, Bounds, Review, Rounding, read_policy

FILE = Path(__file__).parent.parent / "configs" / "governance.toml"
POLICY = read_policy(FILE)
NOW = datetime(2024, 6, 30, 12, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
BOUNDS = Bounds(
    least=10,
    largest=BPS,
    tighten=Bound(largest_step_bps=200, delay_s=86_400),
    loosen=Bound(largest_step_bps=100, delay_s=604_800),
)
REVIEW = Review(
    expiry_s=21_600,
    dead_band_bps=1_000,
    longest_hold_s=259_200,
    way_out_ratio=1.6,
    way_out_window_s=432_000,
    least_history_days=60,
)
RULES: dict[str, Any] = {"bounds": BOUNDS, "review": REVIEW, "now": NOW}
FRESH = Standing()


def step(current: int, wish: int, **changes: Any) -> tuple[int, tuple[Reason, ...]]:
    if "requirement" in changes:
        changes["requirement"] = (changes["requirement"],)
    made = bounded_step((current,), (wish,), **{**RULES, "standing": FRESH, **changes})
    return made.values[0], made.reasons


# ---- the file --------------------------------------------------------------------------------------------------------


def test_the_shipped_file_says_what_the_mission_asks() -> None:
    assert POLICY.review.expiry_s == 6 * 3600
    assert POLICY.rates.least > 0
    assert POLICY.digest() == read_policy(FILE).digest()
    assert len(POLICY.digest()) == 64


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = FILE.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path = tmp_path / "governance.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("expiry_s = 21_600", "expiry = 21_600", r"review.expiry_s: .*required; review.expiry: .*not permitted"),
        ("expiry_s = 21_600", "expiry_s = 0", "review.expiry_s: .*greater than 0"),
        ("least = 10\n", "least = 0\n", "rates.least: .*greater than 0"),
        ("least = 10\n", "least = 10_001\n", "rates: .*largest is below least"),
        ("[pegs]", "[peg]", "pegs: .*required; peg: .*not permitted"),
        ("dead_band_bps = 1_000", "dead_band_bps = 10_000", "review.dead_band_bps: .*less than 10000"),
        ("impact = 1.0", "impact = nan", "close_out.impact: "),
        ("[100, 1], [500, 5]", "[102, 1], [500, 5]", "rounding.steps: .*multiple of the steps on both sides"),
        ("[10000, 10]", "[9000, 10]", "rounding.steps: .*must reach 10000"),
        ("1.0, 3.0] #", "1.0, 1.0] #", "close_out.bracket_days: .*rise strictly"),
        ("maintenance_days = 7.0", "maintenance_days = 70.0", "pegs: .*initial_days is below maintenance_days"),
        (
            'initial = { level = 0.99, measure = "shortfall", least_days = 1.0 }',
            'initial = { level = 0.98, measure = "shortfall", least_days = 1.0 }',
            "ladder: .*initial has a lower level",
        ),
        (
            'initial = { level = 0.99, measure = "shortfall", least_days = 1.0 }',
            'initial = { level = 0.99, measure = "worst", least_days = 1.0 }',
            "ladder.initial.measure: ",
        ),
        ("[review]", "[review", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_policy(edited(tmp_path, old, new))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")


def test_a_change_of_a_figure_changes_the_digest(tmp_path: Path) -> None:
    assert read_policy(edited(tmp_path, "impact = 1.0", "impact = 1.1")).digest() != POLICY.digest()


# ---- rounding --------------------------------------------------------------------------------------------------------

ROUNDING = Rounding(steps=((100, 1), (500, 5), (10_000, 10)))


def test_rates_are_rounded_up_to_the_grid() -> None:
    rates = [0.0, 1e-9, 0.00401, 0.01, 0.0101, 0.05, 0.0501, 0.9999, 1.0, 7.0, math.inf]
    assert [ROUNDING.up(rate) for rate in rates] == [0, 1, 41, 100, 105, 500, 510, 10_000, 10_000, 10_000, 10_000]
    # what is on the grid stays there, whatever its last bits say
    assert [ROUNDING.up(bps / BPS) for bps in (3, 29, 57, 115, 580)] == [3, 29, 57, 115, 580]


@given(rate=st.floats(0.0, 1.0), more=st.floats(0.0, 0.1))
@settings(max_examples=300)
def test_rounding_never_lowers_a_rate_and_keeps_order(rate: float, more: float) -> None:
    bps = ROUNDING.up(rate)
    assert rate * BPS - 1e-6 <= bps <= rate * BPS + 10
    assert ROUNDING.up(rate + more) >= bps


# ---- one figure ------------------------------------------------------------------------------------------------------


def test_a_small_difference_changes_nothing() -> None:
    assert step(500, 500) == (500, (Reason.AT_WISH,))
    assert step(500, 550) == (500, (Reason.DEAD_BAND,))
    assert step(500, 450) == (500, (Reason.DEAD_BAND,))
    assert step(500, 551) == (551, (Reason.AT_WISH,))
    assert step(500, 449) == (449, (Reason.AT_WISH,))


def test_a_large_difference_is_walked_in_steps() -> None:
    assert step(500, 900) == (700, (Reason.STEP_LIMITED,))
    assert step(500, 100) == (400, (Reason.STEP_LIMITED,))
    weights: dict[str, Any] = {"safe_side": -1}
    assert step(9_000, 8_000, **weights) == (8_800, (Reason.STEP_LIMITED,))
    assert step(8_000, 9_500, **weights) == (8_100, (Reason.STEP_LIMITED,))
    limits: dict[str, Any] = {"safe_side": -1, "relative": True}
    limits["bounds"] = BOUNDS.model_copy(update={"largest": 10**10})
    assert step(5_000_000, 1_000_000, **limits) == (4_900_000, (Reason.STEP_LIMITED,))
    assert step(20, 40, **limits) == (21, (Reason.STEP_LIMITED,))


def test_the_last_change_has_to_cool_down() -> None:
    def after(age: timedelta) -> Standing:
        return Standing(changed_at=NOW - age)

    assert step(500, 600, standing=after(23 * HOUR)) == (500, (Reason.COOLING_DOWN,))
    assert step(500, 600, standing=after(24 * HOUR)) == (600, (Reason.AT_WISH,))
    assert step(500, 400, standing=after(6 * DAY)) == (500, (Reason.COOLING_DOWN,))
    assert step(500, 400, standing=after(7 * DAY)) == (400, (Reason.AT_WISH,))


def test_a_young_market_is_tightened_and_not_loosened() -> None:
    assert step(500, 600, may_loosen=False) == (600, (Reason.AT_WISH,))
    assert step(500, 400, may_loosen=False) == (500, (Reason.SHORT_HISTORY,))


def test_the_requirement_is_a_floor() -> None:
    assert step(500, 300, requirement=480) == (500, (Reason.REQUIREMENT_FLOOR, Reason.DEAD_BAND))
    assert step(800, 300, requirement=650) == (700, (Reason.REQUIREMENT_FLOOR, Reason.STEP_LIMITED))
    assert step(710, 300, requirement=620) == (620, (Reason.REQUIREMENT_FLOOR,))
    # what lies below it moves towards it even within the dead band, and says that it is not there yet
    assert step(500, 500, requirement=520) == (520, (Reason.REQUIREMENT_FLOOR,))
    value, reasons = step(40, 500, requirement=900)
    assert value == 240
    assert reasons == (Reason.REQUIREMENT_FLOOR, Reason.STEP_LIMITED, Reason.BELOW_REQUIREMENT)


def test_policy_bounds_hold_the_wish() -> None:
    assert step(9_900, 12_000) == (9_900, (Reason.POLICY_BOUND, Reason.DEAD_BAND))
    assert step(30, 1) == (10, (Reason.POLICY_BOUND,))


def test_a_collapsing_coin_is_not_held_by_steps_and_delays() -> None:
    yesterday = Standing(changed_at=NOW - HOUR, calmest=500)
    assert step(500, 799, standing=yesterday) == (500, (Reason.COOLING_DOWN,))
    assert step(500, 2_000, standing=yesterday) == (2_000, (Reason.WAY_OUT,))
    # a tier that was too low before rises in the proportion of the danger, not to the wish at once
    value, reasons = step(100, 2_000, standing=yesterday)
    assert value == 400
    assert reasons == (Reason.WAY_OUT, Reason.STEP_LIMITED)
    # collateral that loses its value: weights and limits go down the same way
    value, reasons = step(8_000, 100, safe_side=-1, standing=Standing(NOW - HOUR, None, 8_000))
    assert (value, reasons) == (100, (Reason.WAY_OUT,))


def test_danger_that_has_passed_is_no_emergency() -> None:
    assert step(2_000, 1_000, standing=Standing(NOW - HOUR, None, 500)) == (2_000, (Reason.COOLING_DOWN,))


@pytest.mark.parametrize(
    ("current", "wish", "changes", "message"),
    [
        ((), (), {}, "0 figures in force"),
        ((1,), (1, 2), {}, "1 figures in force and 2 wishes"),
        ((0,), (1,), {}, "figure in force is 0"),
        ((5,), (0,), {}, "wish is 0"),
        ((5,), (-3,), {}, "wish is -3"),
        ((5,), (True,), {}, "wish is True"),
        ((5,), (5.5,), {}, "wish is 5.5"),
        ((5,), (6,), {"now": datetime(2024, 6, 30)}, "a time needs its zone"),
        ((5,), (6,), {"standing": Standing(NOW + HOUR)}, "changed_at .* lies after now"),
        ((5,), (6,), {"standing": Standing(None, NOW + HOUR)}, "short_since .* lies after now"),
    ],
)
def test_wrong_figures_are_refused(current: Any, wish: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        bounded_step(current, wish, **{**RULES, "standing": FRESH, **changes})


def test_every_reason_has_a_sentence() -> None:
    assert set(SENTENCES) == set(Reason)


# ---- all figures of a market -----------------------------------------------------------------------------------------


def _ladder(steps: list[tuple[int, int]]) -> tuple[int, ...]:
    """Maintenance rates that rise, and initial rates that rise and lie above them."""
    maintenance, initial, low, high = [], [], 1, 1
    for more, gap in steps:
        low += more
        high = max(high, low + gap)
        maintenance.append(low)
        initial.append(high)
    return (*maintenance, *initial)


ladders = st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 2_000)), min_size=3, max_size=3).map(_ladder)
standings = st.builds(
    Standing,
    changed_at=st.none() | st.integers(0, 20 * 86_400).map(lambda s: NOW - timedelta(seconds=s)),
    short_since=st.none() | st.integers(0, 20 * 86_400).map(lambda s: NOW - timedelta(seconds=s)),
    calmest=st.none() | st.integers(1, 5_000),
)


@given(current=ladders, wish=ladders, standing=standings, requirement=st.none() | st.integers(1, 3_000))
@settings(max_examples=500)
def test_a_step_stays_within_bounds_and_keeps_the_ladder_in_order(
    current: tuple[int, ...], wish: tuple[int, ...], standing: Standing, requirement: int | None
) -> None:
    made = bounded_step(
        current,
        wish,
        **RULES,
        standing=standing,
        requirement=None if requirement is None else (requirement,) * len(current),
    )
    maintenance, initial = made.values[:3], made.values[3:]
    assert list(maintenance) == sorted(maintenance)
    assert list(initial) == sorted(initial)
    assert all(high >= low for high, low in zip(initial, maintenance, strict=True))
    urgency = 1.0 if standing.calmest is None else made.wish[0] / standing.calmest
    for before, wanted, value in zip(current, made.wish, made.values, strict=True):
        assert min(before, wanted) <= value <= max(before, wanted)
        assert before - 100 <= value
        if Reason.WAY_OUT in made.reasons:
            assert value <= max(before + 200, math.ceil(before * urgency))
        else:
            assert value <= before + 200
        if requirement is not None:
            assert wanted >= requirement
            assert value >= min(before, requirement)
    is_short = any(before < wanted for before, wanted in zip(current, made.wish, strict=True))
    assert is_short == (made.short_since is not None)
    # once they are in force, the same wish is at rest or cooling down
    after = bounded_step(
        made.values,
        wish,
        **RULES,
        standing=Standing(NOW, made.short_since),
        requirement=None if requirement is None else (requirement,) * len(current),
    )
    assert after.values == made.values


@given(current=st.integers(10, 5_000), more=st.integers(1, 3_000), seed=st.integers(0, 1_000))
@settings(max_examples=60)
def test_a_rise_in_danger_is_never_held_longer_than_the_policy_says(current: int, more: int, seed: int) -> None:
    """Runs every 6 hours, the last change at any time: the first move comes after hold or delay at the latest."""
    wish = min(current + more, BPS)
    standing = Standing(changed_at=NOW - timedelta(seconds=seed * 97))
    longest = timedelta(seconds=max(REVIEW.longest_hold_s, BOUNDS.tighten.delay_s))
    at = NOW
    while True:
        made = bounded_step((current,), (wish,), **{**RULES, "standing": standing, "now": at})
        if made.values[0] > current:
            break
        assert at - NOW < longest
        standing = standing._replace(short_since=made.short_since)
        at += 6 * HOUR


def test_the_policy_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        POLICY.review.expiry_s = 1
