"""The verb `recommend`: forecasts to tiers, through the engine, to the document, the tables and the page."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import tempfile
import tomllib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from aggregator.config import Resolved, load_configuration
from aggregator.errors import ConfigurationError, DataError, ExitCode, FailureReason
from aggregator.report_ladders import BandPoint, Bracket, LadderView, ladder_lines
from aggregator.run_inputs import Inputs, read_inputs
from aggregator.snapshot import Snapshot
from aggregator.tier_tables import RECOMMENDATIONS_TABLE, TIER_TRIAL, TRIAL_TABLE, append_once, read_table, trial_table
from aggregator.tier_trial import TrialRow
from models.bounded_step import Reason
from models.collateral_in_force import with_weights
from models.market_history import read_market
from models.market_outlooks import (
    Forecast,
    daily_volatility,
    history_until,
    latest_forecast,
    market_outlooks,
    watched,
)
from models.markets_in_force import markets_in_force, with_ladders
from models.model_monitor import TripReason, monitor_checkpoint
from models.recommend_request import run_recommend
from models.recommendation import FALLBACK
from models.recommendation_files import RECOMMENDATIONS, read_document
from models.recommendation_table import changes_table, recommendation_document
from models.recommended import Recommended
from models.tier_model_settings import read_tier_model_settings
from models.tier_policy import read_policy
from tests.quickstart_book import QUICKSTART
from tests.recommend_market import columns, market_folder, settings_file, trained
from tests.sample_desk import command, toml

pytestmark = pytest.mark.slow

# Options and lenders have no tiers, and take longest to compile: the desk's two other venues.
SOURCES = [
    source
    for source in tomllib.loads(QUICKSTART.read_text(encoding="utf-8"))["sources"]
    if source["venue"] in ("binance", "hyperliquid") and source.get("owner", "north") == "north"
]
DESK = (
    toml({"sources": SOURCES}).strip(),
    'portfolios = { north-desk = ["hyperliquid:north", "binance:north"] }',
)
PEGS = ("binance:multi_assets/USDC", "binance:multi_assets/USDT")
QUIET = ("scenarios.scenarios=1024", "paths.scenarios=256", "paths.steps=2", "engine.host_devices=1")
GOVERNANCE = QUICKSTART.with_name("governance.toml")
NOW = datetime(2024, 6, 30, tzinfo=UTC)


class Place(NamedTuple):
    folder: Path
    market: Path
    settings: Path
    checkpoints: Path
    governance: Path


@functools.cache
def place() -> Place:
    """A made-up market with BTC, ETH and SOL, and checkpoints trained on it; one for all tests of this file."""
    folder = Path(tempfile.mkdtemp(prefix="recommend"))
    settings = settings_file(folder / "settings.toml")
    market = market_folder(folder / "market")
    # a year of three coins is no history of ten years of sixty: a month of it always looks new
    figures = tomllib.loads(GOVERNANCE.read_text(encoding="utf-8"))
    figures["monitoring"]["largest_stability_index"] = 5.0
    # and a network of twenty steps is no better for each of its coins than this
    figures["monitoring"]["asset_significance"] = 1e-6
    # nor for all: 1.6 to 1.8 times the exceptions that are allowed, so that one window decides whether it is beyond 1.8
    figures["monitoring"]["significance"] = 0.05
    governance = folder / "governance.toml"
    governance.write_text(toml(figures), encoding="utf-8")
    return Place(folder, market, settings, trained(market, folder / "checkpoints", settings), governance)


@pytest.fixture(scope="module", autouse=True)
def _swept() -> Any:
    yield
    if place.cache_info().currsize:
        shutil.rmtree(place().folder)


def overrides(folder: Path, *more: str) -> list[str]:
    p = place()
    return [
        *QUIET,
        *DESK,
        f"store.path={folder / 'results'}",
        f"tiers.output={folder / 'recommendations'}",
        f"tiers.settings={p.settings}",
        f"tiers.governance={p.governance}",
        f"tiers.checkpoints={p.checkpoints}",
        *more,
    ]


def resolved(folder: Path, *more: str) -> Resolved:
    return load_configuration(QUICKSTART, overrides=overrides(folder, *more))


@functools.cache
def inputs() -> Inputs:
    return read_inputs(load_configuration(QUICKSTART, overrides=DESK), lambda stage, done, total: None)


def recommended_in(folder: Path, *more: str, market: Path | None = None) -> Recommended:
    read = inputs()
    return run_recommend(
        resolved(folder, *more),
        read.snapshots,
        as_of=read.as_of,
        digest=read.digest,
        market=market or place().market,
    )


@functools.cache
def once() -> Recommended:
    return recommended_in(place().folder)


# ---- from end to end -------------------------------------------------------------------------------------------------


def test_every_market_of_the_desk_is_recommended_and_nothing_is_below_the_requirement() -> None:
    made = once()
    assert made.exit_code == ExitCode.OK
    markets = {one.market for one in made.outcome.recommendations}
    assert markets == {
        *("binance:BTCUSDT", "binance:ETHUSDT"),
        *("hyperliquid:BTC", "hyperliquid:ETH", "hyperliquid:SOL"),
        *(f"binance:multi_assets/{asset}" for asset in ("BTC", "ETH", "USDC", "USDT")),
    }
    for one in made.outcome.recommendations:
        if one.kind == "rates":
            assert all(figure.wish >= (figure.requirement or 10_001) for figure in one.figures)
        if one.kind == "collateral_weights":
            assert all(figure.wish <= (figure.requirement or 0) for figure in one.figures)


def test_document_tables_and_page_say_the_same() -> None:
    made = once()
    document = read_document(made.document.read_bytes(), now=NOW)
    assert document["reference_id"] == made.reference_id
    assert set(document["inputs"]) == {"configuration", "market_history", "scenario_inputs", "snapshot"}
    moves = sum(len(one.changes) for one in made.outcome.recommendations)
    assert len(document["updates"]) == moves > 0
    rows = read_table(made.store, RECOMMENDATIONS_TABLE, RECOMMENDATIONS).to_pylist()
    assert {row["reference_id"] for row in rows} == {made.reference_id}
    assert sum(row["new_value"] != row["previous_value"] for row in rows) == moves
    trial = read_table(made.store, TRIAL_TABLE, TIER_TRIAL).to_pylist()
    assert [(row["portfolio_id"], row["venue"]) for row in sorted(trial, key=key)] == sorted(
        (row.portfolio_id, row.venue) for row in made.trial
    )
    page = made.report.read_text(encoding="utf-8")
    assert made.reference_id in page
    assert "<script" not in page
    for market in {one.market for one in made.outcome.recommendations}:
        assert market in page
    assert "The guard rail of the learned model holds" in page
    assert (
        document["monitoring"]["verdict"]
        == "The guard rail of the learned model holds: its forecasts are used throughout."
    )
    assert {row["model"] for row in rows} == {"learned", "jump_law"}
    assert page.count("<svg") == 2 * len(made.markets)


def key(row: dict[str, Any]) -> tuple[str, str]:
    return row["portfolio_id"], row["venue"]


def test_again_is_the_same_reference_and_no_second_copy(tmp_path: Path) -> None:
    first = recommended_in(tmp_path)
    content = first.document.read_bytes()
    second = recommended_in(tmp_path)
    assert second.document.read_bytes() == content
    assert second.reference_id == first.reference_id
    rows = read_table(first.store, RECOMMENDATIONS_TABLE, RECOMMENDATIONS)
    assert rows.num_rows == sum(len(one.figures) for one in first.outcome.recommendations)
    assert read_table(first.store, TRIAL_TABLE, TIER_TRIAL).num_rows == len(first.trial)
    # the store is no part of what was recommended
    assert first.reference_id == once().reference_id


def test_the_trial_is_that_of_the_recommended_rates() -> None:
    made = once()
    for change in made.markets:
        for before, after in zip(change.before.tiers, change.after.tiers, strict=True):
            assert before.notional_floor == after.notional_floor
            assert abs(after.maintenance_bps - before.maintenance_bps) <= 200
    hit = next(row for row in made.trial if (row.portfolio_id, row.venue) == ("north-desk", "hyperliquid"))
    ether = next(change for change in made.markets if change.before.market == "hyperliquid:ETH")
    assert ether.after.tiers[0].maintenance_bps == 400
    assert hit.maintenance_before_usd is not None
    assert hit.maintenance_after_usd is not None
    # every position there is in the first bracket of its market, and each of those rises by 2 % of notional
    tables = inputs().snapshots["main"].tables
    marks = {row["subject"]: row["value"] for row in tables["marks"] if row["field"] == "mark"}
    held = [row for row in tables["positions"] if row["instrument_id"].startswith("hyperliquid:")]
    notional = sum(abs(float(row["quantity"])) * marks[row["instrument_id"]] for row in held)
    assert hit.maintenance_after_usd - hit.maintenance_before_usd == pytest.approx(0.02 * notional, rel=1e-9)


def test_collateral_is_weighed_and_tried_on_the_book() -> None:
    made = once()
    weights = {change.outlook.in_force.asset_id: change for change in made.collateral}
    assert {name: change.recommendation.model for name, change in weights.items()} == {
        **dict.fromkeys(("BTC", "ETH"), "learned"),
        **dict.fromkeys(("USDC", "USDT"), "jump_law"),
    }
    # the jump of a peg, by the law of the calibration: docs/tiers-and-governance.md has the same figures
    assert weights["USDC"].outlook.wish[0][2:] == (9440, 8400)
    # one step of 5 % down from 0.9999 and 0.95
    assert weights["USDC"].after == ((9499, 9499),)
    assert weights["BTC"].after == ((9000, 9000),)
    multi = next(row for row in made.trial if (row.portfolio_id, row.venue) == ("north-desk", "binance"))
    assert multi.initial_before_usd is not None
    document = read_document(made.document.read_bytes(), now=NOW)
    told = [u for u in document["updates"] if u["market"] == "binance:multi_assets/BTC"]
    assert {u["update_type"] for u in told} == {"maintenance_weight.tier_1", "initial_weight.tier_1"}
    rows = inputs().snapshots["main"].tables["collateral_tiers"]
    after = with_weights(rows, {"binance:multi_assets/BTC": weights["BTC"].after})
    assert [row["asset_weight_maintenance"] for row in after if row["asset_id"] == "BTC"] == [Decimal("0.9")]
    assert [row for row in after if row["asset_id"] != "BTC"] == [dict(r) for r in rows if r["asset_id"] != "BTC"]
    assert with_weights(rows, {}) == [dict(row) for row in rows]


def test_the_verb_prints_tables_and_one_object(tmp_path: Path) -> None:
    arguments = ["recommend", str(QUICKSTART), "--market", str(place().market)]
    arguments += [part for text in overrides(tmp_path) for part in ("--set", text)]
    shown = command(*arguments, environment={"COLUMNS": "200"})
    assert shown.exit_code == ExitCode.OK, shown.stderr
    for text in ("Recommended margin tiers", "hyperliquid:ETH", "The book before and after", "north-desk", "document"):
        assert text in shown.stdout
    answer = command(*arguments, "--json")
    document = json.loads(answer.stdout)
    assert document["reference_id"] == document["recommendation"]["reference_id"] == once().reference_id
    assert {row["portfolio_id"] for row in document["trial"]} == {"north-desk"}
    assert Path(document["report"]).exists()


# ---- the guard rail --------------------------------------------------------------------------------------------------


TREBLED_DAYS = 20


def trebled() -> dict[str, dict[str, np.ndarray]]:
    """The bars with every move of the last days three times as large."""
    out = {}
    bars = TREBLED_DAYS * 6
    for name, of_asset in columns().items():
        of = {column: values.copy() for column, values in of_asset.items()}
        opened, high, low, close = (np.log(of[column][-bars:]) for column in ("open", "high", "low", "close"))
        above, below = high - np.maximum(opened, close), np.minimum(opened, close) - low
        path = opened[0] + 3.0 * np.cumsum(close - opened)
        start = np.concatenate([opened[:1], path[:-1]])
        of["open"][-bars:], of["close"][-bars:] = np.exp(start), np.exp(path)
        of["high"][-bars:] = np.exp(np.maximum(start, path) + 3.0 * above)
        of["low"][-bars:] = np.exp(np.minimum(start, path) - 3.0 * below)
        out[name] = of
    return out


def test_with_trebled_volatility_the_classical_member_stands_in_and_everything_says_so(tmp_path: Path) -> None:
    market = market_folder(tmp_path / "market", trebled())
    made = recommended_in(tmp_path, market=market)
    trips = [trip for model in made.models for trip in model.trips]
    assert TripReason.COVERAGE in {trip.reason for trip in trips if not trip.assets}
    floating = [one for one in made.outcome.recommendations if one.market not in PEGS]
    assert {one.model for one in floating} == {FALLBACK}
    assert all(one.reasons[0] == Reason.FALLBACK for one in floating)
    settings = read_tier_model_settings(place().settings)
    forecast = latest_forecast(read_market(market), place().checkpoints, settings=settings, as_of=inputs().as_of)
    of_ether = next(change.outlook for change in made.markets if change.before.market == "hyperliquid:ETH")
    column = forecast.assets.index("ETH")
    for place_of_side, side in enumerate(of_ether.sides):
        assert np.array_equal(side.margin[1], forecast.one_day.classical_margin[column, place_of_side])
    document = read_document(made.document.read_bytes(), now=NOW)
    assert document["monitoring"]["fallback"] == {"model": FALLBACK, "markets": sorted({o.market for o in floating})}
    assert any(model["trips"] for model in document["monitoring"]["models"])
    rows = read_table(made.store, RECOMMENDATIONS_TABLE, RECOMMENDATIONS).to_pylist()
    assert {row["model"] for row in rows if row["market"] not in PEGS} == {FALLBACK}
    assert all(json.loads(row["reasons"])[0] == "fallback" for row in rows if row["market"] not in PEGS)
    said = "The guard rail of the learned model has tripped"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(changes_table(made))
    for text in (made.report.read_text(encoding="utf-8"), console.export_text()):
        assert said in text
        assert trips[0].message in " ".join(text.split())
    assert recommendation_document(made)["verdict"].startswith(said)


@functools.cache
def forecast_now() -> Forecast:
    p = place()
    settings = read_tier_model_settings(p.settings)
    return latest_forecast(read_market(p.market), p.checkpoints, settings=settings, as_of=NOW)


def trips_of(as_of: datetime = NOW, forecast: Forecast | None = None, **rules: Any) -> set[tuple[str, tuple[str, ...]]]:
    """What trips with other rules: (reason, assets)."""
    p = place()
    policy = read_policy(p.governance)
    policy = policy.model_copy(update={"monitoring": policy.monitoring.model_copy(update=rules)})
    settings = read_tier_model_settings(p.settings)
    found = watched(forecast or forecast_now(), ["ETH", "SOL"], settings=settings, policy=policy, as_of=as_of)
    return {(str(trip.reason), trip.assets) for model in found for trip in model.trips}


def test_one_checkpoint_can_be_watched_alone() -> None:
    p = place()
    settings, policy = read_tier_model_settings(p.settings), read_policy(p.governance)
    alone = monitor_checkpoint(
        history_until(read_market(p.market), NOW),
        p.checkpoints / "1d_adverse.tail",
        settings=settings,
        rules=policy.monitoring,
        levels=(0.99,),
        assets=("ETH", "SOL"),
        as_of=NOW,
    )
    _, in_run = watched(forecast_now(), ["ETH", "SOL"], settings=settings, policy=policy, as_of=NOW)
    assert alone.coverage == in_run.coverage
    assert (alone.age_days, alone.trips) == (in_run.age_days, ())
    assert np.array_equal(alone.drift.stability, in_run.drift.stability)


def test_every_bound_trips_what_it_should() -> None:
    assert trips_of() == set()
    assert trips_of(NOW + timedelta(days=198)) == set()
    assert trips_of(NOW + timedelta(days=203)) == {("too_old", ())}
    assert trips_of(largest_stability_index=0.01) == {("drift", ())}
    assert trips_of(largest_exceptions=1.1, significance=0.5) >= {("coverage", ())}
    latest = forecast_now().one_day
    column = latest.assets.index("SOL")
    finite, margin = latest.finite.copy(), latest.margin.copy()
    finite[column] = False
    lost = forecast_now()._replace(one_day=latest._replace(finite=finite))
    assert trips_of(forecast=lost) == {("not_finite", ("SOL",))}
    margin[column, 0, 0] = np.nan
    lost = forecast_now()._replace(one_day=latest._replace(margin=margin))
    assert trips_of(forecast=lost) == {("not_finite", ("SOL",))}
    eight_hours, one_day = forecast_now().models
    even = one_day.panel.even.copy()
    even[-1, column] = np.nan
    blind = one_day._replace(panel=one_day.panel._replace(even=even))
    assert trips_of(forecast=forecast_now()._replace(models=(eight_hours, blind))) == {("missing_inputs", ("SOL",))}
    even[-40:] = np.nan
    assert ("missing_inputs", ()) in trips_of(forecast=forecast_now()._replace(models=(eight_hours, blind)))


# ---- what is missing -------------------------------------------------------------------------------------------------


def test_without_market_or_checkpoint_the_key_is_named(tmp_path: Path) -> None:
    read = inputs()
    with pytest.raises(ConfigurationError, match=r"tiers\.market.*--market DIR"):
        run_recommend(resolved(tmp_path), read.snapshots, as_of=read.as_of, digest=read.digest)
    with pytest.raises(ConfigurationError, match=r"tiers\.checkpoints: .* has no 8h_adverse\.tail"):
        recommended_in(tmp_path, f"tiers.checkpoints={tmp_path}")
    with pytest.raises(ConfigurationError, match="no such folder"):
        recommended_in(tmp_path, market=tmp_path / "nowhere")
    swapped = tmp_path / "swapped"
    shutil.copytree(place().checkpoints, swapped)
    for suffix in ("tail", "json"):
        (swapped / f"8h_adverse.{suffix}").write_bytes((swapped / f"1d_adverse.{suffix}").read_bytes())
    with pytest.raises(ConfigurationError, match=r"8h_adverse\.tail is a fit of 1d adverse"):
        recommended_in(tmp_path, f"tiers.checkpoints={swapped}")
    assert not (tmp_path / "recommendations").exists()


def test_an_asset_without_forecast_stays_and_the_others_move(tmp_path: Path) -> None:
    bars = columns()
    del bars["SOL"]
    market = market_folder(tmp_path / "market", bars)
    made = recommended_in(tmp_path, market=market)
    [failure] = made.outcome.failures
    assert failure.subject == "hyperliquid:SOL"
    assert not [trip for model in made.models for trip in model.trips]
    assert "the market history has no SOL or 1000SOL; its tiers stay as they are" in failure.message
    assert "hyperliquid:SOL" not in {one.market for one in made.outcome.recommendations}
    assert "hyperliquid:ETH" in {one.market for one in made.outcome.recommendations}
    # the desk holds it: whoever schedules the run has to hear of it
    assert made.conditions == (failure.message,)
    assert made.exit_code == ExitCode.BAD_DATA
    assert failure.message in made.report.read_text(encoding="utf-8")


def test_a_history_that_ended_long_ago_is_no_forecast(tmp_path: Path) -> None:
    bars = {name: {n: values[:-60] for n, values in of.items()} for name, of in columns().items()}
    market = market_folder(tmp_path / "market", bars)
    with pytest.raises(DataError, match=r"none of 5 markets .* ended 10\.0 days before the run") as caught:
        recommended_in(tmp_path, market=market)
    assert caught.value.failure.reason == FailureReason.STALE


# ---- no look-ahead ---------------------------------------------------------------------------------------------------


def test_the_future_of_the_history_changes_nothing() -> None:
    p = place()
    settings = read_tier_model_settings(p.settings)
    as_of = NOW - timedelta(days=40)
    cut = {name: {n: v[: -40 * 6] for n, v in of.items()} for name, of in columns().items()}
    short = market_folder(p.folder / "short", cut)
    history = read_market(p.market)
    known = history_until(history, as_of)
    assert known.bars_4h.num_rows == read_market(short).bars_4h.num_rows < history.bars_4h.num_rows
    markets, _ = markets_in_force(inputs().snapshots)
    both = [
        market_outlooks(
            markets,
            latest_forecast(read_market(folder), p.checkpoints, settings=settings, as_of=as_of),
            as_of=as_of,
            max_age_days=3.0,
        )[0]
        for folder in (p.market, short)
    ]
    for one, other in zip(*both, strict=True):
        assert (one.market, one.size, one.history_days) == (other.market, other.size, other.history_days)
        for side, same in zip(one.sides, other.sides, strict=True):
            assert np.array_equal(side.margin, same.margin)
            assert np.array_equal(side.shortfall, same.shortfall)


def test_daily_volatility_is_that_of_the_returns() -> None:
    generator = np.random.default_rng(4)
    returns = np.expm1(0.03 * generator.standard_normal(4000))
    assert daily_volatility(returns) == pytest.approx(0.03, rel=0.3)
    returns[-1] = np.nan
    assert np.isfinite(daily_volatility(returns))
    assert np.isnan(daily_volatility(np.full(10, np.nan)))
    assert daily_volatility(np.expm1(np.array([0.05, -0.05, 0.05]))) == pytest.approx(0.05, rel=1e-12)


# ---- markets in force ------------------------------------------------------------------------------------------------


def changed(table: str, change: Any) -> dict[str, Snapshot]:
    """The snapshots of the desk with `change` done to the rows of a table (a list of dicts)."""
    snapshot = inputs().snapshots["main"]
    rows = [dict(row) for row in snapshot.tables[table]]
    change(rows)
    return {
        "main": Snapshot(
            {**snapshot.tables, table: tuple(rows)},
            snapshot.failures,
            snapshot.incomplete,
            snapshot.as_of,
            snapshot.content_hash,
        )
    }


def of(rows: list[dict[str, Any]], column: str, value: str) -> list[dict[str, Any]]:
    return [row for row in rows if row[column] == value]


def test_what_is_no_ladder_in_dollars_stays_with_a_reason() -> None:
    def contracts(rows: list[dict[str, Any]]) -> None:
        for row in of(rows, "rule_set", "hyperliquid:perp"):
            if row["form"] == "tiered_notional":
                row["parameters"] = json.dumps({"initial": "leverage", "floors": "quantity"})

    def grows(rows: list[dict[str, Any]]) -> None:
        for row in of(rows, "rule_set", "hyperliquid:perp"):
            if row["form"] == "tiered_notional":
                row["form"], row["parameters"] = "rate_of_size", json.dumps({"law": "linear"})

    def in_coins(rows: list[dict[str, Any]]) -> None:
        of(rows, "instrument_id", "hyperliquid:SOL")[0]["settlement_asset"] = "SOL"

    def unknown(rows: list[dict[str, Any]]) -> None:
        rows.remove(of(rows, "instrument_id", "hyperliquid:SOL")[0])

    def differs(rows: list[dict[str, Any]]) -> None:
        row = next(r for r in rows if r["rule_set"] == "binance:usdm" and r["market"] == "binance:BTCUSDT")
        row["maintenance_rate"] = Decimal("0.0045")

    def falls(rows: list[dict[str, Any]]) -> None:
        row = next(r for r in rows if r["market"] == "hyperliquid:SOL" and r["tier"] == 2)
        row["maintenance_rate"] = Decimal("0.001")

    def unmoved(rows: list[dict[str, Any]]) -> None:
        of(rows, "asset_id", "SOL")[0]["risk_factor"] = None

    for table, change, market, reason, words in (
        ("rule_sets", contracts, "hyperliquid:ETH", FailureReason.UNSUPPORTED, "count contracts, not dollars"),
        ("rule_sets", grows, "hyperliquid:ETH", FailureReason.UNSUPPORTED, "grow with size"),
        ("instruments", in_coins, "hyperliquid:SOL", FailureReason.UNSUPPORTED, "count SOL, not dollars"),
        ("instruments", unknown, "hyperliquid:SOL", FailureReason.UNKNOWN_MARKET, "no instrument of that name"),
        ("margin_tiers", differs, "binance:BTCUSDT", FailureReason.INCONSISTENT, "differ between"),
        ("margin_tiers", falls, "hyperliquid:SOL", FailureReason.INCONSISTENT, "are no ladder"),
        ("assets", unmoved, "hyperliquid:SOL", FailureReason.UNKNOWN_ASSET, "no price factor moves"),
    ):
        markets, failures = markets_in_force(changed(table, change))
        assert market not in markets
        [failure] = [one for one in failures if one.subject == market]
        assert failure.reason == reason
        assert re.search(f"{words}.*stay as they are", failure.message)


def test_a_contract_on_a_thousand_coins_is_looked_up_as_the_history_names_it() -> None:
    def thousand(rows: list[dict[str, Any]]) -> None:
        row = of(rows, "asset_id", "SOL")[0]
        row["risk_factor"], row["multiplier"] = "SHIB", Decimal(1000)

    markets, _ = markets_in_force(changed("assets", thousand))
    assert markets["hyperliquid:SOL"].factor == "price:SHIB"
    assert markets["hyperliquid:SOL"].history_names == ("1000SHIB", "SHIB")
    assert markets["hyperliquid:ETH"].history_names == ("ETH", "1000ETH")


def test_new_rates_reach_every_rule_set_of_a_market_and_no_other_row() -> None:
    rows = inputs().snapshots["main"].tables["margin_tiers"]
    markets, failures = markets_in_force(inputs().snapshots)
    assert not failures
    ladder = markets["binance:BTCUSDT"].ladder
    first = ladder.tiers[0]._replace(maintenance_bps=45)
    changed_rows = with_ladders(rows, {ladder.market: ladder._replace(tiers=(first, *ladder.tiers[1:]))})
    assert with_ladders(rows, {}) == [dict(row) for row in rows]
    assert len(changed_rows) == len(rows)
    moved = [new for old, new in zip(rows, changed_rows, strict=True) if old["source"] != new["source"]]
    assert [(row["rule_set"], row["tier"]) for row in moved] == [("binance:multi_assets", 1), ("binance:usdm", 1)]
    assert {row["maintenance_rate"] for row in moved} == {Decimal("0.0045")}
    for old, new in zip(rows, changed_rows, strict=True):
        if old["market"] != "binance:BTCUSDT":
            assert dict(old) == new


# ---- tables and charts -----------------------------------------------------------------------------------------------


def test_rows_of_one_transaction_are_there_once(tmp_path: Path) -> None:
    row = TrialRow(
        portfolio_id="desk",
        venue="",
        complete=True,
        accounts=1,
        initial_before_usd=1.0,
        initial_after_usd=1.0,
        maintenance_before_usd=0.5,
        maintenance_after_usd=0.6,
        p_liquidation_before=0.1,
        p_liquidation_after=0.2,
        p_path_before=None,
        p_path_after=None,
        bad_debt_before_usd=3.0,
        bad_debt_after_usd=2.0,
        liquidatable_before=0,
        liquidatable_after=1,
        accounts_liquidated=("binance:a",),
        value_liquidated_usd=5.0,
        equity_liquidated_usd=4.0,
    )
    table = trial_table([row], reference_id="r", created_at=NOW)
    assert read_table(tmp_path, TRIAL_TABLE, TIER_TRIAL).num_rows == 0
    assert append_once(tmp_path, TRIAL_TABLE, table, transaction="r")
    assert not append_once(tmp_path, TRIAL_TABLE, table, transaction="r")
    assert append_once(tmp_path, TRIAL_TABLE, table, transaction="another")
    assert read_table(tmp_path, TRIAL_TABLE, TIER_TRIAL).num_rows == 2
    [first, _] = read_table(tmp_path, TRIAL_TABLE, TIER_TRIAL).to_pylist()
    assert first["accounts_liquidated"] == '["binance:a"]'
    assert first["p_path_before"] is None


def test_ladders_are_drawn_within_the_chart_and_escaped() -> None:
    before = (Bracket(0.0, 1e5, 0.004, 0.01), Bracket(1e5, None, 0.02, 0.05))
    after = (Bracket(0.0, 1e5, 0.006, 0.02), Bracket(1e5, None, 0.04, 0.08))
    band = (BandPoint(1e4, 0.03, 0.05), BandPoint(4e5, 0.06, 0.09))
    view = LadderView("<b>&", before, after, after, band, "needed")
    for initial in (False, True):
        text = str(ladder_lines(view, initial=initial))
        tree = ElementTree.fromstring(text)
        assert "<b>" not in text
        left, top, width, height = (float(part) for part in tree.attrib["viewBox"].split())
        for shape in tree.iter():
            for corner in shape.attrib.get("points", "").split():
                x, y = (float(part) for part in corner.split(","))
                assert left <= x <= width
                assert top <= y <= height
        lines = [shape for shape in tree.iter() if shape.tag.endswith("polyline")]
        assert len(lines) == 3
        assert sum(shape.tag.endswith("polygon") for shape in tree.iter()) == (0 if initial else 1)
