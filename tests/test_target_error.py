"""A target for the standard error: scenarios are doubled until it is reached, or the run says why it is not."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from aggregator import run_market
from aggregator.config import Resolved, load_configuration
from aggregator.factors import build_generator
from aggregator.portfolio import Book, PackedPortfolio
from aggregator.run_market import RunMarket, TargetOutcome, market_with_target
from tests.quickstart_book import QUICKSTART, quickstart_book

AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
FIRST = 2048


def run(target: float, book: Book | None = None) -> tuple[RunMarket, TargetOutcome, list[int]]:
    """The market of the treasury with that target, and every number of scenarios that was tried."""
    resolved: Resolved = load_configuration(
        QUICKSTART,
        overrides=[f"run.target_error={target}", f"scenarios.scenarios={FIRST}", "scenarios.overlays=[]"],
    )
    whole = quickstart_book()
    desk = book or dataclasses.replace(whole, portfolios=whole.portfolios[1:])
    generation = build_generator(resolved, desk.factors(), AS_OF)
    tried: list[int] = []
    market, outcome = market_with_target(resolved, desk, generation, None, AS_OF, devices=1, note=tried.append)
    return market, outcome, tried


def test_scenarios_are_doubled_until_the_target_is_reached() -> None:
    _, alone, first = run(0.9)
    assert alone.reached
    assert first == [FIRST]
    market, outcome, tried = run(alone.error / 1.8)
    assert outcome.reached
    assert outcome.error <= alone.error / 1.8
    assert outcome.portfolio_id == "treasury"
    assert tried == [FIRST * 2**number for number in range(len(tried))]
    assert len(tried) > 1
    assert np.count_nonzero(np.asarray(market.cube.weights)) == tried[-1]


def test_a_target_out_of_reach_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_market, "MOST_SCENARIOS", 2 * FIRST)
    market, outcome, tried = run(1e-9)
    assert not outcome.reached
    assert outcome.error > 1e-9
    assert "8,192 scenarios are beyond the bound of 4,096 scenarios" in outcome.reason
    assert tried == [FIRST, 2 * FIRST]
    assert np.count_nonzero(np.asarray(market.cube.weights)) == 2 * FIRST


def test_a_book_of_nothing_has_no_error_to_bring_down() -> None:
    whole = quickstart_book()
    _, outcome, tried = run(0.01, dataclasses.replace(whole, portfolios=(PackedPortfolio("empty"),)))
    assert not outcome.reached
    assert "no portfolio has a pooled expected shortfall above 0" in outcome.reason
    assert tried == [FIRST]
