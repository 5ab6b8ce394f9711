"""A filtered history brought to a forecast: quantiles exact, dependence kept, fallback and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from aggregator.config import Configuration, FilteredHistoryFigures, Resolved, ScenarioForecast
from aggregator.errors import ConfigurationError, FailureReason
from aggregator.factors import Generation, build_generator, build_path_generator
from aggregator.generators.filtered_historical import FilteredHistorical, filtered_historical
from aggregator.history import age_weights
from aggregator.scenarios import draw_scenarios, scenario_weights
from aggregator.tail_scale import TailForecast, conditioned, weighted_quantile
from tests.generator_suite import PEGS, small_history

RTOL = 1e-12  # float64 against float64
KEY = jax.random.key(3)
FACTORS = ("peg:USDC", "price:BTC", "price:ETH", "price:SOL", "vol:BTC", "vol:ETH")
FORECASTS = {"price:BTC": TailForecast(0.99, 0.11, 0.07), "price:SOL": TailForecast(0.99, 0.30, 0.41)}


def generator(**options: Any) -> FilteredHistorical:
    return filtered_historical(FACTORS, small_history(), key=KEY, pegs=PEGS, **options)


def quantile_by_loop(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """inf{x : P(X <= x) >= level}: every value is tried, mass added with math.fsum."""
    reached = [x for x in values if math.fsum(weights[values <= x]) >= level - 1e-12]
    return float(min(reached))


def law(made: FilteredHistorical) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Shocks by factor and weights of a law that has every date once."""
    weights = np.asarray(scenario_weights(made))
    shocks = np.asarray(draw_scenarios(made, KEY, 0, len(weights)))
    kept = weights > 0.0
    return {name: shocks[kept, place] for place, name in enumerate(made.factors)}, weights[kept]


@pytest.mark.parametrize("half_life_days", [None, 90.0])
@pytest.mark.parametrize("horizon_days", [1.0, 1.0 / 3.0])
def test_both_tail_quantiles_are_the_forecast(half_life_days: float | None, horizon_days: float) -> None:
    weights = age_weights(small_history().dates, half_life_days)
    shocks, mass = law(generator(forecasts=FORECASTS, date_weights=weights, horizon_days=horizon_days))
    root = math.sqrt(horizon_days)
    for name, forecast in FORECASTS.items():
        down = quantile_by_loop(-shocks[name], mass, forecast.level)
        up = quantile_by_loop(shocks[name], mass, forecast.level)
        np.testing.assert_allclose([down, up], [forecast.down * root, forecast.up * root], rtol=RTOL)


def test_only_the_scale_of_what_is_forecast_changes() -> None:
    plain, _ = law(generator())
    moved, _ = law(generator(forecasts=FORECASTS))
    for name in ("price:ETH", "vol:BTC", "vol:ETH", "peg:USDC"):
        assert (plain[name] == moved[name]).all(), name
    for name in FORECASTS:
        falls = plain[name] < 0.0
        assert (falls == (moved[name] < 0.0)).all()
        for side in (falls, ~falls):
            ratio = moved[name][side] / plain[name][side]
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_a_proxied_factor_follows_the_forecast_of_its_source_unless_it_has_one() -> None:
    history = small_history()
    history = replace(history, columns={**history.columns, "price:NEW": (0, 1.5)})
    names = ("price:BTC", "price:ETH", "price:NEW")
    followed = filtered_historical(names, history, key=KEY, forecasts=FORECASTS)
    shocks, mass = law(followed)
    np.testing.assert_allclose(shocks["price:NEW"], 1.5 * shocks["price:BTC"], rtol=RTOL)
    own = filtered_historical(
        names, history, key=KEY, forecasts={**FORECASTS, "price:NEW": TailForecast(0.99, 0.5, 0.6)}
    )
    shocks, mass = law(own)
    assert quantile_by_loop(-shocks["price:NEW"], mass, 0.99) == pytest.approx(0.5, rel=RTOL)
    assert quantile_by_loop(shocks["price:NEW"], mass, 0.99) == pytest.approx(0.6, rel=RTOL)


def test_a_forecast_below_the_floor_holds_for_the_first_step_of_a_path() -> None:
    calm = {"price:BTC": TailForecast(0.99, 0.001, 0.001)}
    made = generator(mode="draw", forecasts=calm, horizon_days=1.0 / 12.0)
    place = made.historical.index("price:BTC")
    assert float(made.floor[place]) <= float(made.sigma_next[place]) * math.sqrt(12.0) * (1.0 + RTOL)
    start = made.start(KEY, jnp.uint32(0))
    assert float(start.variance[place]) == pytest.approx(float(made.sigma_next[place]) ** 2 * 12.0, rel=RTOL)


def test_drawn_dates_keep_the_contract_of_tiles_and_follow_the_forecast() -> None:
    prices = ("price:BTC", "price:ETH", "price:SOL")
    made = filtered_historical(prices, small_history(), key=KEY, mode="draw", forecasts=FORECASTS)
    whole = np.asarray(draw_scenarios(made, KEY, 0, 4096))
    part = np.asarray(draw_scenarios(made, KEY, 256, 512))
    assert (whole[256:768] == part).all()
    for name, forecast in FORECASTS.items():
        falls = np.mean(whole[:, made.factors.index(name)] < -forecast.down * (1.0 + RTOL))
        # at most 1 % of the mass lies beyond the quantile, at least that less the date on it (one of 300)
        error = 4.0 * math.sqrt(0.01 * 0.99 / 4096)
        assert 0.01 - 1.0 / 300.0 - error <= falls <= 0.01 + error


def test_weighted_quantile_is_that_of_the_loop() -> None:
    random = np.random.default_rng(5)
    values, weights = random.standard_normal(400), random.uniform(size=400)
    values[::7] = values[0]
    weights /= weights.sum()
    for level in (0.9, 0.975, 0.99, 0.995):
        assert weighted_quantile(values, weights, level) == quantile_by_loop(values, weights, level)


@pytest.mark.parametrize(
    ("forecast", "message"),
    [
        (TailForecast(0.99, math.nan, 0.1), "forecast of price:BTC: down is nan"),
        (TailForecast(0.99, 0.1, math.inf), "forecast of price:BTC: up is inf"),
        (TailForecast(0.99, 0.0, 0.1), "down is 0.0"),
        (TailForecast(0.99, 0.1, -0.1), "up is -0.1"),
        (TailForecast(math.nan, 0.1, 0.1), "the level is nan"),
        (TailForecast(1.0, 0.1, 0.1), "the level is 1.0"),
    ],
)
def test_a_bad_forecast_is_refused_by_name(forecast: TailForecast, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        generator(forecasts={"price:BTC": forecast})


def test_a_history_that_never_fell_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="history of price:X has no falls"):
        conditioned("price:X", np.linspace(0.1, 2.0, 50), np.full(50, 0.02), TailForecast(0.99, 0.1, 0.1))


# ---- from a configuration --------------------------------------------------------------------------------------------

DAYS = 500
FIRST_DAY = datetime(2022, 1, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(11)
    rows = [
        (asset, "perp", FIRST_DAY + timedelta(days=day), float(close))
        for asset in ("BTC", "ETH")
        for day, close in enumerate(100.0 * np.exp(np.cumsum(0.03 * random.standard_t(4.0, DAYS))))
    ]
    columns = dict(zip(("asset", "market", "ts", "close"), zip(*rows, strict=True), strict=True))
    times = pa.array(columns["ts"], type=pa.timestamp("us", tz="UTC"))
    pa.parquet.write_table(pa.table({**columns, "ts": times}), tmp_path / "bars.parquet")
    return tmp_path


def resolved_in(folder: Path, **figures: Any) -> Resolved:
    document = {
        "scenarios": {"generator": "filtered_history", "history": "bars.parquet", **figures},
        "paths": {"scenarios": 256, "steps": 4},
        "portfolios": {"desk": ("hyperliquid:north",)},
        "sources": ({"venue": "hyperliquid", "payloads": ({"file": "north.json"},)},),
    }
    return Resolved(configuration=Configuration.model_validate(document), folder=folder)


def generation(folder: Path, **figures: Any) -> Generation:
    return build_generator(resolved_in(folder, **figures), ["price:BTC", "price:ETH"], FIRST_DAY + timedelta(days=DAYS))


def test_moves_of_a_configuration_condition_the_law_and_the_other_price_is_reported(folder: Path) -> None:
    made = generation(folder, forecast={"moves": {"price:BTC": {"down": 0.2, "up": 0.15}}})
    plain = generation(folder)
    assert [(f.reason, f.subject) for f in made.failures] == [(FailureReason.MISSING_PARAMETER, "price:ETH")]
    assert "volatility of its own history" in made.failures[0].message
    assert plain.failures == ()
    assert isinstance(made.generator, FilteredHistorical)
    assert isinstance(plain.generator, FilteredHistorical)
    shocks, mass = law(made.generator)
    assert quantile_by_loop(-shocks["price:BTC"], mass, 0.99) == pytest.approx(0.2, rel=RTOL)
    unmoved, _ = law(plain.generator)
    assert (shocks["price:ETH"] == unmoved["price:ETH"]).all()
    again, _ = law(generation(folder, forecast={"moves": {"price:BTC": {"down": 0.2, "up": 0.15}}}).generator)  # type: ignore[arg-type]
    assert all((again[name] == shocks[name]).all() for name in shocks)


def test_paths_start_from_the_forecast(folder: Path) -> None:
    as_of = FIRST_DAY + timedelta(days=DAYS)
    moves = {name: {"down": 0.2, "up": 0.2} for name in ("price:BTC", "price:ETH")}
    steps = [
        build_path_generator(resolved_in(folder, **figures), ("price:BTC", "price:ETH"), as_of).generator
        for figures in ({"forecast": {"moves": moves}}, {})
    ]
    day = [
        build_generator(resolved_in(folder, **figures), ("price:BTC", "price:ETH"), as_of).generator
        for figures in ({"forecast": {"moves": moves}}, {})
    ]
    for one, of_day in zip(steps, day, strict=True):
        assert isinstance(one, FilteredHistorical)
        assert isinstance(of_day, FilteredHistorical)
        np.testing.assert_allclose(np.asarray(one.sigma_next) * 2.0, np.asarray(of_day.sigma_next), rtol=RTOL)
    assert (np.asarray(steps[0].sigma_next) != np.asarray(steps[1].sigma_next)).all()  # type: ignore[attr-defined]


def test_a_market_folder_that_nobody_read_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"forecast\.market is not read by this verb"):
        generation(folder, forecast={"market": "somewhere"})


@pytest.mark.parametrize(
    ("forecast", "message"),
    [
        ({}, "needs moves, or a market folder"),
        ({"moves": {"price:BTC": {"down": 0.1, "up": 0.1}}, "checkpoint": "x.tail"}, "read with a market folder alone"),
        ({"moves": {"BTC": {"down": 0.1, "up": 0.1}}}, "expected a factor price:"),
        ({"moves": {"price:BTC": {"down": math.nan, "up": 0.1}}}, "finite number"),
        ({"moves": {"price:BTC": {"down": -0.1, "up": 0.1}}}, "greater than 0"),
        ({"level": 0.4, "market": "m"}, "greater than 0.5"),
    ],
)
def test_a_forecast_that_says_nothing_or_nonsense_is_refused(forecast: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilteredHistoryFigures.model_validate({"generator": "filtered_history", "history": "h", "forecast": forecast})
    if "market" in forecast:
        assert ScenarioForecast(market="m").level == 0.99
