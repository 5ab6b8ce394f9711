"""From a market folder and a checkpoint to the scale of scenarios: quantiles, no look-ahead, what is not forecast."""

from __future__ import annotations

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aggregator.config import Configuration, FilteredHistoryFigures, Resolved, TailMoves
from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.factors import Generation, build_generator
from aggregator.generators.filtered_historical import FilteredHistorical
from aggregator.tail_scale import weighted_quantile
from aggregator.tier_trial import TrialRow
from models.early_warning import early_warning, early_warning_document, early_warning_table
from models.learned import latest_rates
from models.market_history import read_market
from models.market_outlooks import history_until
from models.scenario_forecast import forecast_moves, log_moves, with_forecast, without_forecast
from models.tier_model_settings import read_tier_model_settings
from models.train_request import run_training
from tests.recommend_market import columns, market_folder, settings_file

pytestmark = pytest.mark.slow  # a model is trained

RTOL = 1e-12  # float64 against float64
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
LEVEL = 0.99


@functools.cache
def place() -> Path:
    """A folder with a made-up market of BTC, ETH and SOL, and a fit of a day on it; one for all tests of this file."""
    folder = Path(tempfile.mkdtemp(prefix="forecast"))
    bars = columns()
    bars["1000PEPE"] = bars.pop("SOL")
    market = market_folder(folder / "market", bars)
    settings = settings_file(folder / "settings.toml")
    run_training(market, out=folder, settings=settings, until=date(2024, 6, 20), targets=(("1d", "close"),))
    days = {asset: np.arange(5, len(of["close"]), 6) for asset, of in bars.items()}
    table = pa.concat_tables(
        pa.table(
            {
                "asset": [asset] * len(days[asset]),
                "market": ["perp"] * len(days[asset]),
                "ts": pa.array(of["ts"][days[asset]] - np.timedelta64(20, "h"), pa.timestamp("us", "UTC")),
                "close": of["close"][days[asset]],
            }
        )
        for asset, of in bars.items()
    )
    pq.write_table(table, folder / "days.parquet")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _swept() -> Iterator[None]:
    yield
    if place.cache_info().currsize:
        shutil.rmtree(place())


def moves(market: Path | None = None, *, as_of: datetime = AS_OF, level: float = LEVEL) -> dict[str, TailMoves]:
    settings = read_tier_model_settings(place() / "settings.toml")
    history = read_market(place() / "market" if market is None else market)
    return forecast_moves(
        history, place() / "1d_close.tail", settings=settings, as_of=as_of, level=level, max_age_days=3.0
    )


def resolved(**forecast: Any) -> Resolved:
    document = {
        "scenarios": {
            "generator": "filtered_history",
            "history": "days.parquet",
            "half_life_days": 90.0,
            "forecast": {
                "market": "market",
                "checkpoint": "1d_close.tail",
                "settings": "settings.toml",
                **forecast,
            },
        },
        "portfolios": {"desk": ("hyperliquid:north",)},
        "sources": ({"venue": "hyperliquid", "payloads": ({"file": "north.json"},)},),
    }
    return Resolved(configuration=Configuration.model_validate(document), folder=place())


def figures(of: Resolved) -> FilteredHistoryFigures:
    scenarios = of.configuration.scenarios
    assert isinstance(scenarios, FilteredHistoryFigures)
    return scenarios


def test_the_tails_of_a_law_are_the_margins_of_the_checkpoint() -> None:
    made = with_forecast(resolved(), AS_OF)
    generation = build_generator(made, ["price:BTC", "price:ETH"], AS_OF)
    assert generation.failures == ()
    law = generation.generator
    assert isinstance(law, FilteredHistorical)
    rates = latest_rates(
        history_until(read_market(place() / "market"), AS_OF),
        place() / "1d_close.tail",
        settings=read_tier_model_settings(place() / "settings.toml"),
        with_calendar=True,
    )
    level = rates.levels.index(LEVEL)
    shocks = np.asarray(law.sigma_next) * np.asarray(law.residuals)
    weights = np.asarray(law.date_weights)
    for column, name in enumerate(law.historical):
        long, short = rates.margin[rates.assets.index(name.removeprefix("price:")), :, level]
        # the loss of a position of one unit long, and of one short, in simple returns
        assert weighted_quantile(-np.expm1(shocks[:, column]), weights, LEVEL) == pytest.approx(long, rel=RTOL)
        assert weighted_quantile(np.expm1(shocks[:, column]), weights, LEVEL) == pytest.approx(short, rel=RTOL)


def test_nothing_after_the_instant_is_read(tmp_path: Path) -> None:
    instant = AS_OF - timedelta(days=20)
    bars = columns()
    bars["1000PEPE"] = bars.pop("SOL")
    cut = np.datetime64(instant.replace(tzinfo=None), "us")
    for of in bars.values():
        after = of["ts"] + np.timedelta64(4, "h") > cut
        assert after.sum() == 120
        for name in ("open", "high", "low", "close"):
            of[name][after] *= 0.25
    changed = moves(market_folder(tmp_path / "market", bars), as_of=instant)
    assert changed == moves(as_of=instant)
    assert changed != moves()


def test_the_same_inputs_give_the_same_configuration_and_a_given_move_stands() -> None:
    given = {"price:ETH": {"down": 0.4, "up": 0.5}}
    first, second = (with_forecast(resolved(moves=given), AS_OF) for _ in range(2))
    assert first.text() == second.text()
    forecast = figures(first).forecast
    assert forecast is not None
    assert forecast.market is None
    assert forecast.moves["price:ETH"] == TailMoves(down=0.4, up=0.5)
    assert forecast.moves["price:BTC"] == moves()["price:BTC"]
    assert with_forecast(first, AS_OF) is first
    plain = without_forecast(first)
    assert plain is not None
    assert figures(plain).forecast is None
    assert with_forecast(plain, AS_OF) is plain
    assert without_forecast(plain) is None


def test_the_last_instant_of_the_history_is_that_of_the_forecast_too() -> None:
    until = AS_OF - timedelta(days=20)
    of = resolved()
    changed = figures(of).model_copy(update={"until": until})
    of = of.model_copy(update={"configuration": of.configuration.model_copy(update={"scenarios": changed})})
    forecast = figures(with_forecast(of, AS_OF)).forecast
    assert forecast is not None
    assert forecast.moves == moves(as_of=until)


def test_a_contract_on_a_thousand_coins_stands_for_the_coin() -> None:
    made = moves()
    assert set(made) == {"price:BTC", "price:ETH", "price:1000PEPE", "price:PEPE"}
    assert made["price:PEPE"] == made["price:1000PEPE"]


def test_an_asset_that_stopped_keeps_its_own_volatility_and_is_reported(tmp_path: Path) -> None:
    bars = columns()
    del bars["SOL"]
    bars["ETH"] = {name: values[: -6 * 4] for name, values in bars["ETH"].items()}
    made = moves(market_folder(tmp_path / "market", bars))
    assert set(made) == {"price:BTC"}
    of = with_forecast(resolved(market=str(tmp_path / "market")), AS_OF)
    generation = build_generator(of, ["price:BTC", "price:ETH"], AS_OF)
    assert [(f.reason, f.subject, f.path) for f in generation.failures] == [
        (FailureReason.MISSING_PARAMETER, "price:ETH", "scenarios.forecast")
    ]
    plain = without_forecast(of)
    assert plain is not None
    own = build_generator(plain, ["price:BTC", "price:ETH"], AS_OF).generator
    law = generation.generator
    assert isinstance(own, FilteredHistorical)
    assert isinstance(law, FilteredHistorical)
    same = np.asarray(own.sigma_next) == np.asarray(law.sigma_next)
    assert dict(zip(law.historical, same.tolist(), strict=True)) == {"price:BTC": False, "price:ETH": True}


def test_what_cannot_be_forecast_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"forecast\.level is 0\.97; 1d_close\.tail has 0\.95, 0\.99, 0\.995"):
        moves(level=0.97)
    with pytest.raises(ConfigurationError, match="no asset whose history ended within 3 days"):
        moves(as_of=AS_OF + timedelta(days=30))
    with pytest.raises(ConfigurationError, match="nowhere"):
        with_forecast(resolved(market="nowhere"), AS_OF)
    with pytest.raises(ConfigurationError, match=r"1d_none\.json"):
        with_forecast(resolved(checkpoint="1d_none.tail"), AS_OF)


def test_log_moves_of_margins() -> None:
    assert log_moves(0.5, 1.0) == pytest.approx((math.log(2.0), math.log(2.0)), rel=RTOL)
    assert log_moves(1.3, 0.1)[0] == 3.0  # a margin above the whole notional


# ---- side by side ----------------------------------------------------------------------------------------------------


def trial_row(portfolio: str, venue: str, p: float | None, p_path: float | None) -> TrialRow:
    blank: dict[str, Any] = dict.fromkeys(TrialRow._fields)
    told = {"portfolio_id": portfolio, "venue": venue, "p_liquidation_before": p, "p_path_before": p_path}
    return TrialRow(**{**blank, **told})


def generation_with(*failures: Failure) -> Generation:
    return Generation(None, (), None, {}, frozenset(), failures)  # type: ignore[arg-type]


def test_probabilities_stand_side_by_side() -> None:
    history = [trial_row("desk", "", 0.01, None), trial_row("desk", "binance", 0.005, 0.02)]
    forecast = [trial_row("desk", "", 0.03, None), trial_row("desk", "binance", None, 0.04)]
    said = Failure(FailureReason.MISSING_PARAMETER, "price:X has no forecast", path="scenarios.forecast")
    other = Failure(FailureReason.STALE, "something else")
    found = early_warning(history, forecast, generation_with(said, other))
    assert [tuple(row) for row in found.rows] == [
        ("desk", "", 0.01, 0.03, None, None),
        ("desk", "binance", 0.005, None, 0.02, 0.04),
    ]
    assert found.notes == ("price:X has no forecast",)
    assert early_warning_table(found).row_count == 2
    document = early_warning_document(found)
    assert document is not None
    assert json.loads(json.dumps(document))["rows"][0]["p_forecast"] == 0.03
    assert early_warning_document(None) is None
    with pytest.raises(ValueError, match="different books"):
        early_warning(history[:1], forecast, generation_with())
