"""The sweep of whole books on packed books made by hand: what happens always, and exposures beyond float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from aggregator.book_columns import NOT_COVERED, Accounts, BookColumns, Legs, TierEntries, TierTables
from aggregator.cube import CubeBuilder
from aggregator.cube_prices import PricedCube
from aggregator.netted_sweep import sweep_columns
from aggregator.weighted_tail import LANES

SCENARIOS = 1000


def columns(exposures: Sequence[Sequence[tuple[int, float]]]) -> BookColumns:
    """One account in each portfolio with exposures (row of the cube, USD), gone at nothing; row 0 is cash."""
    count = len(exposures)
    portfolio, node, account_id, venue = (
        np.array([f"{kind}{k}" for k in range(count)], object) for kind in ("portfolio", "node", "account", "venue")
    )
    yes, no = np.ones(count, bool), np.zeros(count, bool)
    account = np.repeat(np.arange(count), [len(of_one) for of_one in exposures])
    row = np.array([row for of_one in exposures for row, _ in of_one])
    usd = np.array([usd for of_one in exposures for _, usd in of_one])
    none = np.zeros(0, np.int64)
    empty = np.zeros(0)
    return BookColumns(
        Accounts(portfolio, node, account_id, venue, np.arange(count), np.ones(count), yes, no),
        Legs(account, row, usd, usd, np.zeros(len(row))),
        TierEntries(none, none, none, none, empty, empty, none, none, none),
        TierTables(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 1))),
        CubeBuilder(),
        NOT_COVERED.empty_table(),
    )


def priced(moves: np.ndarray, weights: np.ndarray) -> PricedCube:
    """A cube whose row 0 stands still and whose other rows move as given [rows, SCENARIOS]."""
    change = np.zeros((1 + len(moves), SCENARIOS + -SCENARIOS % LANES), np.float32)
    change[1:, :SCENARIOS] = moves
    padded = np.pad(weights, (0, change.shape[1] - SCENARIOS))
    equal = bool((weights == weights[0]).all())
    bounds = change.min(axis=1), change.max(axis=1)
    return PricedCube(change, padded, SCENARIOS, equal, np.ones(len(change)), *bounds, change @ padded)


@pytest.mark.parametrize("equal", [True, False])
def test_what_happens_in_every_scenario_has_probability_one(equal: bool) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        weights = np.ones(SCENARIOS) if equal else rng.exponential(size=SCENARIOS) + 0.01
        cube = priced(0.01 * rng.standard_normal((1, SCENARIOS)), weights / weights.sum())
        found = sweep_columns(columns([[(1, -100.0)], [(1, 100.0)]]), cube, devices=1, shard=8)
        assert found.nodes["p_liquidation"].to_pylist() == [1.0, 0.0]
        for name in ("p_liquidation_any", "p_liquidation_unified"):
            assert found.portfolios[name].to_pylist() == [1.0, 0.0]


def test_an_exposure_beyond_float32_is_not_covered_though_its_row_hardly_moves() -> None:
    moves = np.zeros((3, SCENARIOS))
    moves[1, 5] = 1e-12
    moves[2] = 0.1 * np.random.default_rng(1).standard_normal(SCENARIOS)
    cube = priced(moves, np.full(SCENARIOS, 1.0 / SCENARIOS))
    book = columns([[(0, -q), (row, q), (3, -1e4)] for row in (1, 2) for q in (1e33, 4e38, 1e300)] + [[(3, 1e5)]])
    found = sweep_columns(book, cube, devices=1, shard=8)
    assert found.not_covered["portfolio_id"].to_pylist() == ["portfolio1", "portfolio2", "portfolio4", "portfolio5"]
    assert found.portfolios["portfolio_id"].to_pylist() == ["portfolio0", "portfolio3", "portfolio6"]
    # In the one scenario in which it moves, the second gains 1e21 USD.
    assert found.portfolios["p_liquidation_any"].to_pylist() == [1.0, 0.999, 0.0]
    assert np.isfinite(found.portfolios["var_99_usd"].to_numpy()).all()
