"""A venue's dated tiers against needed ladders and against what happened."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aggregator.errors import ConfigurationError
from models.market_files import TIER_COLUMNS
from models.market_history import PERP, Windows, read_market, windows
from models.tier_comparison import COVERAGE, compare_ladders, tier_coverage, venue_ladders
from models.tier_ladder import Ladder, Tier

FIRST, SECOND = datetime(2022, 1, 10), datetime(2022, 1, 20)


def tiers_table(*rows: tuple[datetime, str, int, float, float | None, float, float]) -> pa.Table:
    names = ("snapshot", "asset", "tier", "min_notional", "max_notional", "maintenance_margin_rate", "max_leverage")
    content = [{**dict(zip(names, row, strict=True)), "quote": "USDT"} for row in rows]
    return pa.Table.from_pylist(content, schema=pa.schema(list(TIER_COLUMNS.items())))


TIERS = tiers_table(
    # the oldest snapshots of the venue's table have no brackets
    (FIRST, "BTC", 1, 0.0, None, 0.02, 25.0),
    (FIRST, "BTC", 2, 0.0, None, 0.06, 10.0),
    (FIRST, "ETH", 1, 0.0, None, 0.03, 20.0),
    (SECOND, "BTC", 1, 0.0, 1000.0, 0.01, 50.0),
    (SECOND, "BTC", 2, 1000.0, 4000.0, 0.05, 10.0),
)


def market(moves: np.ndarray) -> Windows:
    """Daily windows from 2022-01-01 of BTC, ETH and an asset without tiers, all with the same simple returns."""
    returns = np.repeat(moves[:, None], 3, axis=1)
    opening = np.datetime64("2022-01-01", "us") + np.arange(len(moves)) * np.timedelta64(1, "D")
    blank = np.full(returns.shape, np.nan)
    kinds = np.full(returns.shape, PERP, dtype=np.int8)
    up, down = np.maximum(returns, 0.0), np.maximum(-returns, 0.0)
    prices = (blank,) * 4
    return Windows("1d", opening, ("BTC", "ETH", "XYZ"), kinds, *prices, returns, down, up, blank, blank)


def twin(moves: np.ndarray, sign: float, rates: list[tuple[datetime, datetime, float]]) -> tuple[int, int, float]:
    """Windows, breaches and mean excess, one day at a time."""
    count, breaches, excess = 0, 0, 0.0
    for day, move in enumerate(moves.tolist()):
        at = datetime(2022, 1, 1 + day)
        for begin, end, rate in rates:
            if begin <= at < end and not np.isnan(move):
                count += 1
                breaches += sign * move > rate
                excess += max(0.0, sign * move - rate)
    return count, breaches, excess / count


def test_coverage_is_that_of_the_tiers_in_force() -> None:
    rng = np.random.default_rng(5)
    moves = 0.05 * rng.standard_normal(30)
    moves[12] = np.nan
    found = tier_coverage(TIERS, market(moves), loss="close", quote="USDT")
    assert found.schema.equals(COVERAGE, check_metadata=True)
    end = datetime(2022, 2, 10)
    # with brackets the second tier asks (1000 x 1 % + 3000 x 5 %) / 4000 = 4 % of its largest position
    expected = {
        ("BTC", 1, "maintenance"): [(FIRST, SECOND, 0.02), (SECOND, end, 0.01)],
        ("BTC", 1, "initial"): [(FIRST, SECOND, 0.04), (SECOND, end, 0.02)],
        ("BTC", 2, "maintenance"): [(FIRST, SECOND, 0.06), (SECOND, end, 0.04)],
        ("BTC", 2, "initial"): [(FIRST, SECOND, 0.1), (SECOND, end, 0.1)],
        # not in the second snapshot: no tier in force from then on
        ("ETH", 1, "maintenance"): [(FIRST, SECOND, 0.03)],
        ("ETH", 1, "initial"): [(FIRST, SECOND, 0.05)],
    }
    rows = found.to_pylist()
    assert len(rows) == 2 * len(expected)
    for row in rows:
        rates = expected[row["asset"], row["tier"], row["level"]]
        count, breaches, excess = twin(moves, -1.0 if row["side"] == "long" else 1.0, rates)
        assert (row["windows"], row["breaches"]) == (count, breaches), row
        assert row["coverage"] == pytest.approx(1.0 - breaches / count, rel=1e-15)
        assert row["mean_excess"] == pytest.approx(excess, rel=1e-12)


def test_what_comes_later_is_not_seen() -> None:
    moves = np.full(30, -0.03)
    later = tiers_table(
        *[tuple(row[name] for name in _NAMES) for row in TIERS.to_pylist()],
        (datetime(2022, 3, 1), "BTC", 1, 0.0, 1000.0, 0.5, 1.0),
    )
    assert tier_coverage(later, market(moves), loss="close", quote="USDT").equals(
        tier_coverage(TIERS, market(moves), loss="close", quote="USDT")
    )


_NAMES = ("snapshot", "asset", "tier", "min_notional", "max_notional", "maintenance_margin_rate", "max_leverage")


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"'USDC' is unknown .did you mean 'USDT'"):
        tier_coverage(TIERS, market(np.zeros(30)), loss="close", quote="USDC")
    with pytest.raises(ConfigurationError, match="no asset and window in common"):
        tier_coverage(TIERS, market(np.zeros(5)), loss="close", quote="USDT")
    with pytest.raises(ConfigurationError, match="BTC has a tier below 1"):
        tier_coverage(
            tiers_table((FIRST, "BTC", 0, 0.0, 1.0, 0.1, 2.0)), market(np.zeros(30)), loss="close", quote="USDT"
        )


def test_ladders_of_a_snapshot() -> None:
    ladders = venue_ladders(TIERS, np.datetime64(SECOND), quote="USDT")
    assert ladders == {"BTC": Ladder("BTC", (Tier(0.0, 1000.0, 100, 200), Tier(1000.0, 4000.0, 500, 1000)))}
    with pytest.raises(ConfigurationError, match="states no brackets for BTC"):
        venue_ladders(TIERS, np.datetime64(FIRST), quote="USDT")
    with pytest.raises(ConfigurationError, match="no snapshot of 2020"):
        venue_ladders(TIERS, np.datetime64("2020-01-01"), quote="USDT")
    falling = tiers_table((SECOND, "A", 1, 0.0, 5.0, 0.1, 5.0), (SECOND, "A", 2, 5.0, 9.0, 0.05, 5.0))
    with pytest.raises(ConfigurationError, match="tier 2 of A: its rates"):
        venue_ladders(falling, np.datetime64(SECOND), quote="USDT")


def test_verdicts_compare_whole_margins() -> None:
    venue = Ladder("BTC", (Tier(0.0, 1000.0, 100, 200), Tier(1000.0, 4000.0, 500, 1000)))
    needed = Ladder("BTC", (Tier(0.0, 1000.0, 110, 300), Tier(1000.0, 4000.0, 300, 1300)))
    found = [
        (one.tier, one.level, one.asked_bps, one.needed_bps, one.verdict) for one in compare_ladders(venue, needed)
    ]
    assert [row[0] for row in found] == [1, 1, 2, 2]
    assert [row[4] for row in found] == ["adequate", "under", "over", "under"]
    # the second tier's slice at 5 % makes 4 % of the whole; needed are (1000 x 1.1 % + 3000 x 3 %) / 4000
    assert found[2][2:4] == pytest.approx((400.0, 252.5), rel=1e-13)
    assert found[3][2:4] == pytest.approx((1000.0, 1300.0), rel=1e-13)
    with pytest.raises(ConfigurationError, match="other brackets"):
        compare_ladders(venue, Ladder("BTC", needed.tiers[:1]))
    single = Ladder("BTC", (Tier(0.0, None, 100, 200),))
    with pytest.raises(ConfigurationError, match="no size to compare at"):
        compare_ladders(single, single)


@pytest.mark.slow
def test_the_recorded_tiers_are_read_and_covered(recorded: Path) -> None:
    history = read_market(recorded / "market")
    assert history.tiers is not None
    snapshots: Any = np.unique(history.tiers["snapshot"].to_numpy())
    ladders = venue_ladders(history.tiers, snapshots[-1], quote="USDT")
    assert ladders["BTC"].tiers[0] == Tier(0.0, 50_000.0, 40, 80)
    coverage = tier_coverage(history.tiers, windows(history, "1d"), loss="adverse", quote="USDT")
    by_key = {(row["asset"], row["tier"], row["side"], row["level"]): row for row in coverage.to_pylist()}
    for (asset, tier, side, level), row in by_key.items():
        assert 0 <= row["breaches"] <= row["windows"]
        if level == "maintenance":
            assert row["coverage"] <= by_key[asset, tier, side, "initial"]["coverage"]
