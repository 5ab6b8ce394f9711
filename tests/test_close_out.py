"""What selling a position takes, and the brackets that follow from it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.errors import DataError, FailureReason
from aggregator.factors import MarketSize
from models.close_out import bracket_caps, close_out_terms, trailing_volume
from models.tier_policy import read_policy

RULES = read_policy(Path(__file__).parent.parent / "configs" / "governance.toml").close_out
SIZE = MarketSize(daily_volume=2e8, daily_vol=0.05, spread=0.0004)


def test_terms_are_the_formula() -> None:
    terms = close_out_terms("SOL", np.array([1e4, 2e7, 8e7]), SIZE, RULES)
    # a tenth of 200 million a day; half the spread and a square root of the share of the volume
    np.testing.assert_allclose(terms.days, [0.0005, 1.0, 4.0], rtol=1e-14)
    by_hand = [0.0002 + 0.05 * math.sqrt(share) for share in (5e-5, 0.1, 0.4)]
    np.testing.assert_allclose(terms.cost_rate, by_hand, rtol=1e-14)


def test_volume_is_that_of_a_typical_day() -> None:
    quiet = np.full(90, 100.0)
    assert trailing_volume(quiet) == 100.0
    panic = quiet.copy()
    panic[-1] = 1e6
    assert trailing_volume(panic) == 100.0
    drying = np.concatenate([quiet, np.full(7, 10.0)])
    assert trailing_volume(drying) == 10.0
    # liquidity that came this week is not trusted yet
    assert trailing_volume(np.concatenate([quiet, np.full(7, 900.0)])) == 100.0


def test_volume_of_a_young_a_halted_and_an_unknown_market() -> None:
    assert trailing_volume(np.arange(1.0, 31.0)) == 15.5
    halted = np.concatenate([np.full(80, 50.0), np.zeros(5)])
    assert trailing_volume(halted) == 0.0
    gap = np.full(30, 5.0)
    gap[-3:] = np.nan
    assert trailing_volume(gap) == 5.0
    gap[-7:] = np.nan
    assert math.isnan(trailing_volume(gap))
    assert math.isnan(trailing_volume(np.zeros(0)))
    with pytest.raises(DataError, match="negative or infinite"):
        trailing_volume(np.array([1.0, -1.0]))


def test_brackets_end_at_close_out_times() -> None:
    caps = bracket_caps("SOL", SIZE, RULES)
    assert caps == (1e5, 2e5, 6e5, 2e6, 6e6, 2e7, 6e7)
    # 1 % more volume moves no cap: each stands on a preferred figure
    assert bracket_caps("SOL", SIZE._replace(daily_volume=2.02e8), RULES) == caps
    assert bracket_caps("SOL", SIZE, RULES, depth=35_000.0)[:2] == (30_000.0, 2e5)
    assert bracket_caps("SOL", SIZE, RULES, depth=1e9) == caps


def test_a_thin_market_has_fewer_brackets() -> None:
    thin = bracket_caps("TINY", SIZE._replace(daily_volume=30_000.0), RULES)
    assert thin == (1_000.0, 3_000.0, 8_000.0)
    assert bracket_caps("DUST", SIZE._replace(daily_volume=10.0), RULES) == (1_000.0,)


@given(volume=st.floats(1.0, 1e12), factor=st.floats(1.0, 1e3))
@settings(max_examples=200)
def test_caps_rise_and_grow_with_volume(volume: float, factor: float) -> None:
    small = bracket_caps("A", SIZE._replace(daily_volume=volume), RULES)
    large = bracket_caps("A", SIZE._replace(daily_volume=volume * factor), RULES)
    assert list(small) == sorted(set(small))
    assert large[-1] >= small[-1]
    limit = max(RULES.least_bracket_usd, volume * RULES.participation * RULES.bracket_days[-1])
    assert small[-1] <= limit * (1.0 + 1e-9)
    assert small[-1] >= limit / 1.34


@pytest.mark.parametrize(
    ("size", "reason", "message"),
    [
        (SIZE._replace(daily_volume=0.0), FailureReason.MISSING_MARK, "LUNA does not trade"),
        (SIZE._replace(daily_volume=math.nan), FailureReason.MISSING_MARK, "daily_volume of LUNA is not known"),
        (SIZE._replace(daily_vol=math.nan), FailureReason.MISSING_MARK, "daily_vol of LUNA is not known"),
        (SIZE._replace(spread=-0.1), FailureReason.OUT_OF_RANGE, "spread of LUNA is -0.1"),
        (SIZE._replace(daily_volume=math.inf), FailureReason.OUT_OF_RANGE, "daily_volume of LUNA is inf"),
    ],
)
def test_a_market_without_liquidity_is_a_failure(size: MarketSize, reason: FailureReason, message: str) -> None:
    for ask in (lambda: bracket_caps("LUNA", size, RULES), lambda: close_out_terms("LUNA", np.ones(2), size, RULES)):
        with pytest.raises(DataError, match=message) as caught:
            ask()
        assert (caught.value.failure.reason, caught.value.failure.subject) == (reason, "LUNA")


@pytest.mark.parametrize("notional", [-1.0, 0.0, math.nan, math.inf])
def test_a_notional_must_be_positive(notional: float) -> None:
    with pytest.raises(DataError, match="not positive and finite"):
        close_out_terms("SOL", np.array([1.0, notional]), SIZE, RULES)


def test_a_depth_must_be_positive() -> None:
    with pytest.raises(DataError, match="depth of SOL is 0"):
        bracket_caps("SOL", SIZE, RULES, depth=0.0)
