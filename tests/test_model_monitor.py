"""What is watched of the model: drift of inputs, coverage with clustered exceptions, and what is said of it."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import chi2

from models.input_drift import SMALLEST_SHARE, drift_of
from models.model_monitor import MonitoredModel, Trip, TripReason, tripped
from models.monitoring_text import monitoring_document, monitoring_lines, verdict
from models.production_coverage import (
    Exceptions,
    asset_exceptions,
    clustered_kupiec,
    group_coverage,
)
from models.training import BINS, bin_shares, input_moments

LEVELS = (0.95, 0.99)
NAMES = ("calm", "wild")


def rows(seed: int, count: int = 4000, *, spread: float = 1.0, missing: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((count, 2)) * (1.0, spread)
    values[generator.uniform(size=(count, 2)) < (0.0, missing)] = np.nan
    return values.astype(np.float32)


# ---- drift -----------------------------------------------------------------------------------------------------------


def slow_index(now: np.ndarray, then: np.ndarray) -> float:
    """The index of one input, bin by bin; bins end at order statistics of `then`."""
    known = sorted(float(value) for value in then if not math.isnan(value))
    ends = [known[(number * (len(known) - 1)) // BINS] for number in range(1, BINS)]
    bounds = [-math.inf, *ends, math.inf]
    total = 0.0
    for low, high in pairwise(bounds):
        shares = [max(float(np.mean((of > low) & (of <= high))), SMALLEST_SHARE) for of in (now, then)]
        total += (shares[0] - shares[1]) * math.log(shares[0] / shares[1])
    lost = [max(float(np.mean(np.isnan(of))), SMALLEST_SHARE) for of in (now, then)]
    return total + (lost[0] - lost[1]) * math.log(lost[0] / lost[1])


def test_the_index_is_that_of_the_bins() -> None:
    then, now = rows(1), rows(2, 700, spread=3.0, missing=0.3)
    found = drift_of(NAMES, now, input_moments(then))
    for place in range(2):
        assert found.stability[place] == pytest.approx(slow_index(now[:, place], then[:, place]), rel=1e-9)
    assert found.stability[0] < 0.05 < 0.25 < found.stability[1]
    assert found.missing.tolist() == pytest.approx([0.0, float(np.isnan(now[:, 1]).mean())])
    assert found.outside[0] < 0.001 < 0.1 < found.outside[1]
    assert found.rows == 700


def test_the_same_rows_have_not_drifted_and_no_rows_say_nothing() -> None:
    then = rows(1, missing=0.2)
    moments = input_moments(then)
    assert drift_of(NAMES, then, moments).stability.tolist() == [0.0, 0.0]
    assert np.abs(drift_of(NAMES, then, moments).shift).max() < 1e-6
    nothing = drift_of(NAMES, then[:0], moments)
    assert nothing.rows == 0
    assert np.isnan(nothing.stability).all()


def test_shares_of_an_input_with_few_values_and_of_one_that_never_is() -> None:
    values = np.array([[0.0, np.nan], [0.0, np.nan], [0.0, np.nan], [1.0, np.nan]], dtype=np.float32)
    moments = input_moments(values)
    assert moments.shares.sum(axis=1).tolist() == pytest.approx([1.0, 1.0])
    assert moments.shares[0, 0] == 0.75
    assert moments.shares[1, -1] == 1.0
    assert np.array_equal(bin_shares(values, moments.edges), moments.shares)


# ---- coverage --------------------------------------------------------------------------------------------------------


def exceptions(exceeded: np.ndarray, *, before: int = 0) -> Exceptions:
    """Daily windows [T, 3 assets, 2 sides, 2 levels], all of them known but the first asset's first day."""
    known = np.ones(exceeded.shape, dtype=bool)
    known[0, 0] = False
    opening = np.datetime64("2024-01-01", "us") + np.arange(len(exceeded)) * np.timedelta64(1, "D")
    seen = np.arange(len(exceeded)) < before
    groups = {"perps": ("A", "B"), "pegged": ("C",), "spot": ()}
    return Exceptions(opening, ("A", "B", "C"), LEVELS, known, exceeded & known, seen, groups)


def test_groups_are_counted_over_the_last_days() -> None:
    exceeded = np.random.default_rng(3).uniform(size=(100, 3, 2, 2)) < (0.05, 0.01)
    found = exceptions(exceeded, before=40)
    by_key = {(row.group, row.level, row.days): row for days in (20, 100) for row in group_coverage(found, days=days)}
    assert {key[0] for key in by_key} == {"all", "perps", "pegged"}
    for (group, level, days), row in by_key.items():
        columns = {"all": [0, 1, 2], "perps": [0, 1], "pegged": [2]}[group]
        place, first = LEVELS.index(level), 100 - days
        pairs = [(t, a, s) for t in range(first, 100) for a in columns for s in range(2) if found.known[t, a, s, place]]
        assert row.windows == len(pairs)
        assert row.exceptions == sum(bool(found.exceeded[t, a, s, place]) for t, a, s in pairs)
        assert row.known_before == sum(t < 40 for t, _, _ in pairs)
        assert row.ratio == pytest.approx(row.exceptions / (len(pairs) * (1.0 - level)))
    own = {row.asset: row for row in asset_exceptions(found, level=0.95, days=100)}
    assert own["A"].windows == 198
    assert own["A"].exceptions == int(found.exceeded[:, 0, :, 0].sum())


def test_exceptions_of_one_day_count_for_less_than_as_many_on_as_many_days() -> None:
    """By the formula: the deviance of the counts over the variance of the days."""
    known = np.full(200, 50)
    days = np.arange(200)
    spread, burst = np.zeros(200), np.zeros(200)
    spread[:50], burst[0] = 4.0, 50.0
    burst[1:151] = 1.0
    assert spread.sum() == burst.sum() == 200
    n, x, p = 200 * 50, 200, 0.01
    deviance = 2.0 * ((n - x) * math.log((1 - x / n) / (1 - p)) + x * math.log(x / n / p))
    for hits in (spread, burst):
        effect = max(1.0, sum((hit - p * 50) ** 2 for hit in hits) / (n * p * (1 - p)))
        found = clustered_kupiec(hits, known, level=0.99, days=days)
        assert found == pytest.approx(float(chi2.sf(deviance / effect, 1)), rel=1e-9)
    assert clustered_kupiec(burst, known, level=0.99, days=days) > 100.0 * clustered_kupiec(
        spread, known, level=0.99, days=days
    )
    exact = np.where(days % 2 == 0, 1.0, 0.0)
    assert clustered_kupiec(exact, known, level=0.99, days=days) == pytest.approx(1.0)


def test_independent_exceptions_are_seldom_refused() -> None:
    generator = np.random.default_rng(7)
    known, days = np.full(250, 40), np.arange(250)
    found = [
        clustered_kupiec(generator.binomial(40, 0.01, 250).astype(float), known, level=0.99, days=days)
        for _ in range(400)
    ]
    assert 0.05 < np.mean(np.array(found) < 0.1) < 0.15


# ---- what is said ----------------------------------------------------------------------------------------------------


def monitored(*trips: Trip) -> MonitoredModel:
    then = rows(1)
    found = exceptions(np.zeros((30, 3, 2, 2), dtype=bool))
    drift = drift_of(NAMES, rows(2, 300), input_moments(then))
    return MonitoredModel("1d", (0.99,), "2024-01-01", 12.5, drift, tuple(group_coverage(found, days=30)), trips)


def test_trips_concern_their_assets_or_all() -> None:
    one = Trip(TripReason.COVERAGE, "1d", ("A",), "too many for A")
    every = Trip(TripReason.TOO_OLD, "1d", (), "too old")
    assert tripped([monitored(one)], "A") == (one,)
    assert tripped([monitored(one)], "B") == ()
    assert tripped([monitored(), monitored(one, every)], "B") == (every,)


def test_the_document_holds_integers_and_text_alone() -> None:
    one = Trip(TripReason.DRIFT, "1d", (), "far away")

    def no_float(text: str) -> float:
        raise AssertionError(f"a float: {text}")

    document = monitoring_document([monitored(one)], [])
    assert json.loads(json.dumps(document), parse_float=no_float) == document
    [model] = document["models"]
    assert model["age_days"] == 12
    assert model["trips"] == [{"reason": "drift", "assets": [], "message": "far away"}]
    assert [row["input"] for row in model["drift"]] == list(NAMES)
    assert document["verdict"] == verdict([monitored(one)], [])
    assert "tripped, for no market of this run" in document["verdict"]
    assert "holds" in verdict([monitored()], [])
    [line] = monitoring_lines([monitored()])
    assert "12 days old" in line


def test_a_fit_that_is_newer_than_the_run_says_so() -> None:
    known, line = monitoring_lines([monitored()._replace(age_days=-3.0)])
    assert "made for use from 2024-01-01 on, which is after this run" in known
    assert "0 days old" in line
    assert len(monitoring_lines([monitored()._replace(age_days=0.0)])) == 1
