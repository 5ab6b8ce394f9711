"""The rule of the filtered history in a sweep: splice and weights by age against a slow twin, and one rule for all.

The twin is a loop over days in plain Python on closes that the test makes itself.
"""

import math
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from aggregator.backtest_request import SHARED_KEYS, Backtest, run_backtest
from aggregator.config import Configuration, FilteredHistoryFigures, Resolved
from aggregator.factors import build_generator
from aggregator.generators.filtered_historical import FilteredHistorical
from aggregator.risk import tail_risk
from aggregator.scenarios import draw_all, scenario_weights

FIRST_DAY = date(2021, 1, 1)
SPOT_DAYS = 700
LISTED = 300
"""The day of the first close of the perpetuals."""
RTOL, ATOL = 1e-12, 1e-14  # float64 against float64; a return is a difference of logarithms near 5, each to 1e-15


def closes() -> dict[tuple[str, str], np.ndarray]:
    """Spot closes of BTC and ETH and, from `LISTED` on, those of perpetuals that are not equal to them."""
    rng = np.random.default_rng(11)
    found = {}
    for asset in ("BTC", "ETH"):
        spot = 100.0 * np.exp(np.cumsum(0.03 * rng.standard_t(4.0, SPOT_DAYS)))
        found[asset, "spot"] = spot
        found[asset, "perp"] = spot[LISTED:] * np.exp(1e-3 * rng.standard_normal(SPOT_DAYS - LISTED))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows: list[tuple[str, str, datetime, float]] = []
    for (asset, market), values in closes().items():
        for i, close in enumerate(values, start=SPOT_DAYS - len(values)):
            day = FIRST_DAY + timedelta(days=i)
            rows.append((asset, market, datetime(day.year, day.month, day.day, tzinfo=UTC), float(close)))
    columns = dict(zip(("asset", "market", "ts", "close"), zip(*rows, strict=True), strict=True))
    times = pa.array(columns["ts"], type=pa.timestamp("us", tz="UTC"))
    pa.parquet.write_table(pa.table({**columns, "ts": times}), tmp_path / "bars.parquet")
    return tmp_path


def generator_of(folder: Path, history: str, as_of: datetime, **figures: Any) -> FilteredHistorical:
    document = {
        "scenarios": {"generator": "filtered_history", "history": history, **figures},
        "portfolios": {"desk": ("hyperliquid:north",)},
        "sources": ({"venue": "hyperliquid", "payloads": ({"file": "north.json"},)},),
    }
    resolved = Resolved(configuration=Configuration.model_validate(document), folder=folder)
    generation = build_generator(resolved, ["price:BTC"], as_of)
    assert generation.failures == ()
    assert isinstance(generation.generator, FilteredHistorical)
    return generation.generator


def twin(*, splice: bool, half_life_days: float) -> tuple[list[float], list[float]]:
    """Shocks of BTC by date and their weights."""
    of_btc = closes()
    perp, spot = of_btc["BTC", "perp"], of_btc["BTC", "spot"]
    returns = []
    for i in range(1, SPOT_DAYS):
        if i > LISTED:
            returns.append(math.log(perp[i - LISTED] / perp[i - LISTED - 1]))
        elif splice:
            returns.append(math.log(spot[i] / spot[i - 1]))
    variance = sum(r * r for r in returns[:30]) / 30
    residuals = []
    for i in range(30, len(returns) + 1):
        year = returns[max(0, i - 365) : i]
        volatility = max(math.sqrt(variance), 0.5 * math.sqrt(sum(r * r for r in year) / len(year)))
        if i < len(returns):
            residuals.append(returns[i] / volatility)
            variance = 0.97 * variance + 0.03 * returns[i] ** 2
    ages = range(len(residuals) - 1, -1, -1)
    weights = [0.5 ** (age / half_life_days) if half_life_days else 1.0 for age in ages]
    return [volatility * z for z in residuals], [w / math.fsum(weights) for w in weights]


@pytest.mark.parametrize(
    ("told", "splice", "half_life_days"),
    [
        ({}, True, 730.0),
        ({"half_life_days": 90.0}, True, 90.0),
        ({"half_life_days": 0.0}, True, 0.0),
        ({"splice": False, "half_life_days": 0.0}, False, 0.0),
    ],
    ids=["default", "short memory", "all alike", "one market, all alike"],
)
def test_a_sweep_splices_and_weighs_as_told(
    folder: Path, told: dict[str, Any], splice: bool, half_life_days: float
) -> None:
    as_of = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC) + timedelta(days=SPOT_DAYS)
    generator = generator_of(folder, "bars.parquet", as_of, **told)
    shocks, weights = twin(splice=splice, half_life_days=half_life_days)
    assert len(shocks) == (SPOT_DAYS if splice else SPOT_DAYS - LISTED) - 1 - 30
    drawn = np.asarray(draw_all(generator, jax.random.key(1)).shocks)[: len(shocks)]
    np.testing.assert_allclose(drawn[:, generator.factors.index("price:BTC")], shocks, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(scenario_weights(generator)[: len(weights)], weights, rtol=RTOL, atol=0)
    assert float(np.asarray(scenario_weights(generator))[len(weights) :].sum()) == 0.0


def test_drawn_dates_follow_the_weights(folder: Path) -> None:
    as_of = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC) + timedelta(days=SPOT_DAYS)
    generator = generator_of(folder, "bars.parquet", as_of, scenarios=16_384, half_life_days=90.0)
    shocks, weights = twin(splice=True, half_life_days=90.0)
    drawn = np.asarray(draw_all(generator, jax.random.key(1), 16_384).shocks)[:, generator.factors.index("price:BTC")]
    order = np.argsort(shocks)
    between = np.convolve(np.array(shocks)[order], [0.5, 0.5], mode="valid")
    dates = order[np.searchsorted(between, drawn)]  # the date whose shock is nearest to the drawn one
    late = sum(weights[-90:])
    of_late = float(np.mean(dates >= len(shocks) - 90))
    assert late > 0.45
    assert of_late == pytest.approx(late, abs=4.0 * math.sqrt(late * (1.0 - late) / 16_384))


def test_defaults_of_a_sweep_and_of_the_backtest_are_the_same() -> None:
    tested, swept = Backtest(history="h"), FilteredHistoryFigures(generator="filtered_history", history="h")
    for key, name in SHARED_KEYS.items():
        assert getattr(tested, name) == getattr(swept, key), key


def test_a_sweep_asks_what_the_backtest_tested(recorded: Path) -> None:
    """The shortfall of a long BTC at the close of 2024-06-29, by both ways through the program."""
    history = recorded / "market" / "ohlcv_1d.parquet"
    tested = run_backtest(
        Backtest(
            history=str(history),
            start=date(2024, 6, 30),
            end=date(2024, 6, 30),
            generators=("filtered_history",),
            books=("BTC long",),
        ),
        recorded,
    )
    (forecast,) = tested.forecasts
    (shortfall,) = forecast.expected_shortfall
    generator = generator_of(recorded, str(history), datetime(2024, 6, 30, tzinfo=UTC))
    shocks = np.asarray(draw_all(generator, jax.random.key(1)).shocks)[:, generator.factors.index("price:BTC")]
    tail = tail_risk(-np.expm1(shocks), scenario_weights(generator), confidence=0.99)
    assert float(tail.expected_shortfall) == pytest.approx(float(shortfall), rel=1e-9)
    assert 0.05 < shortfall < 0.15
