"""The book under two sets of tiers: the engine's own figures, a slow twin of bad debt, and accounts that are closed."""

from __future__ import annotations

import functools
import math
from decimal import Decimal
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from aggregator.config import load_configuration
from aggregator.engine import Cube, draw_cube, evaluate_headlines
from aggregator.errors import DataError
from aggregator.factors import build_generator, build_path_generator
from aggregator.path_margin import PathLaw, path_figures
from aggregator.portfolio import Book, pack_book
from aggregator.run_inputs import Inputs, read_inputs
from aggregator.scenarios import draw_scenarios, scenario_weights
from aggregator.tier_paths import PricedPaths, priced_paths
from aggregator.tier_trial import TrialRow, repacked, trial_rows, with_rows
from aggregator.unit_requirement import unit_requirements
from tests.quickstart_book import QUICKSTART

pytestmark = pytest.mark.slow

RTOL = 1e-12
"""float64 against float64."""

OVERRIDES = ("scenarios.scenarios=4096", "paths.scenarios=512", "paths.steps=3", "engine.host_devices=1")
HYPERLIQUID = "hyperliquid:perp"
PORTFOLIOS = {"north-desk": ("hyperliquid:north", "binance:north")}
"""Two venues of the desk: options and lenders would be compiled too, and have no tiers."""


class Setting(NamedTuple):
    inputs: Inputs
    book: Book
    factors: tuple[str, ...]
    cube: Cube
    law: PathLaw
    paths: PricedPaths


@functools.cache
def setting() -> Setting:
    resolved = load_configuration(QUICKSTART, overrides=OVERRIDES)
    configuration = resolved.configuration
    inputs = read_inputs(resolved, lambda stage, done, total: None)
    book, _ = pack_book(inputs.snapshots, PORTFOLIOS, as_of=inputs.as_of)
    generation = build_generator(resolved, book.factors(), inputs.as_of)
    cube = draw_cube(
        book.cube.build(generation.factors),
        generation.generator,
        seed=configuration.run.seed,
        scenarios=generation.scenarios,
        chunk=4096,
        horizon_days=1.0,
    )
    step = build_path_generator(resolved, generation.factors, inputs.as_of)
    law = PathLaw(step.generator, configuration.run.seed, step.scenarios, 3, 1.0 / 3.0)
    paths = priced_paths(cube.rows, generation.factors, law)
    return Setting(inputs, book, generation.factors, cube, law, paths)


def tiers_times(factor: str) -> dict[str, list[dict[str, Any]]]:
    """Hyperliquid's maintenance rates of ETH times `factor` (deductions with them), other rows as they are."""
    rows = [dict(row) for row in setting().inputs.snapshots["main"].tables["margin_tiers"]]
    for row in rows:
        if (row["rule_set"], row["market"]) == (HYPERLIQUID, "hyperliquid:ETH"):
            row["maintenance_rate"] *= Decimal(factor)
            row["deduction"] *= Decimal(factor)
            row["initial_rate"] = max(row["initial_rate"], row["maintenance_rate"])
    return {"main": rows}


@functools.cache
def tried(factor: str, *, with_paths: bool = False) -> tuple[TrialRow, ...]:
    s = setting()
    after = repacked(
        s.book, with_rows(s.inputs.snapshots, "margin_tiers", tiers_times(factor)), PORTFOLIOS, as_of=s.inputs.as_of
    )
    paths = s.paths if with_paths else None
    return tuple(trial_rows(s.book, after, s.factors, s.cube, paths=paths, devices=1))


def row_of(rows: tuple[TrialRow, ...], portfolio: str, venue: str = "") -> TrialRow:
    [found] = [row for row in rows if (row.portfolio_id, row.venue) == (portfolio, venue)]
    return found


def test_equal_tiers_change_nothing() -> None:
    for row in tried("1", with_paths=True):
        for name in ("initial", "maintenance", "bad_debt"):
            assert getattr(row, f"{name}_before_usd") == getattr(row, f"{name}_after_usd")
        assert (row.p_liquidation_before, row.p_path_before) == (row.p_liquidation_after, row.p_path_after)
        assert (row.accounts_liquidated, row.value_liquidated_usd) == ((), 0.0)
        assert row.complete


def test_before_are_the_figures_of_the_engine() -> None:
    s = setting()
    headlines = evaluate_headlines(s.book.portfolios, s.factors, s.cube, devices=1)
    for portfolio, headline in zip(s.book.portfolios, headlines, strict=True):
        assert headline is not None
        whole = row_of(tried("1"), portfolio.portfolio_id)
        assert whole.p_liquidation_before == float(headline.p_any)
        maintenance = [
            float(headline.native.maintenance[n]) * info.unit_price_usd for n, info in enumerate(portfolio.accounts)
        ]
        assert whole.maintenance_before_usd == pytest.approx(math.fsum(maintenance), rel=RTOL)
        for venue in {info.venue for info in portfolio.accounts}:
            alone = row_of(tried("1"), portfolio.portfolio_id, venue)
            places = [n for n, info in enumerate(portfolio.accounts) if info.venue == venue]
            assert alone.maintenance_before_usd == pytest.approx(math.fsum(maintenance[n] for n in places), rel=RTOL)
            largest = max(float(headline.p_liquidation[n]) for n in places)
            assert alone.p_liquidation_before is not None
            assert alone.p_liquidation_before >= largest
            if len(places) == 1:
                assert alone.p_liquidation_before == largest


def test_probabilities_on_the_way_are_those_of_the_paths() -> None:
    s = setting()
    found = path_figures(s.book.portfolios, s.factors, s.cube.rows, s.law, [[] for _ in s.book.portfolios])
    for portfolio, figures in zip(s.book.portfolios, found, strict=True):
        assert figures is not None
        whole = row_of(tried("1", with_paths=True), portfolio.portfolio_id)
        assert whole.p_path_before == pytest.approx(float(np.sum(figures.passage_any)), rel=RTOL, abs=1e-15)


def test_higher_rates_of_one_venue_liquidate_more_and_owe_less() -> None:
    rows = tried("2", with_paths=True)
    hit = row_of(rows, "north-desk", "hyperliquid")
    assert hit.maintenance_after_usd is not None
    assert hit.maintenance_before_usd is not None
    assert hit.maintenance_after_usd > hit.maintenance_before_usd
    assert hit.p_path_after is not None
    assert hit.p_path_before is not None
    assert hit.p_path_after > hit.p_path_before > 0.0
    assert hit.bad_debt_after_usd is not None
    assert hit.bad_debt_before_usd is not None
    assert 0.0 <= hit.bad_debt_after_usd < hit.bad_debt_before_usd
    other = row_of(rows, "north-desk", "binance")
    assert other.maintenance_after_usd == other.maintenance_before_usd
    assert other.bad_debt_after_usd == other.bad_debt_before_usd
    assert other.p_path_after == other.p_path_before


def test_an_account_that_is_liquidatable_today_is_counted_with_its_value() -> None:
    """Health of the short is 3.1: four times the rate leaves it below 1."""
    s = setting()
    hit = row_of(tried("4"), "north-desk", "hyperliquid")
    assert (hit.liquidatable_before, hit.liquidatable_after) == (0, 1)
    [account] = hit.accounts_liquidated
    [portfolio] = [p for p in s.book.portfolios if p.portfolio_id == "north-desk"]
    own = [n for n, line in enumerate(portfolio.lines) if line.account_id == account]
    assert hit.value_liquidated_usd == pytest.approx(math.fsum(portfolio.lines[n].gross_usd for n in own), rel=RTOL)
    assert hit.equity_liquidated_usd == pytest.approx(math.fsum(portfolio.line_equity[n] for n in own), rel=RTOL)
    # closed today with equity left, it owes nothing later
    assert hit.bad_debt_after_usd is not None
    assert hit.bad_debt_before_usd is not None
    assert hit.bad_debt_after_usd < hit.bad_debt_before_usd
    whole = row_of(tried("4"), "north-desk")
    assert whole.accounts_liquidated == hit.accounts_liquidated
    assert hit.p_liquidation_after is not None


def test_bad_debt_at_the_horizon_is_the_mean_of_negative_equity() -> None:
    """Against a loop over the legs of the one account at Binance, whose equity is linear in what its rows are worth."""
    s = setting()
    [portfolio] = [p for p in s.book.portfolios if p.portfolio_id == "north-desk"]
    weights, change = np.asarray(s.cube.weights), np.asarray(s.cube.change, dtype=np.float64)
    total = 0.0
    for number, info in enumerate(portfolio.accounts):
        if info.venue != "hyperliquid":
            continue
        groups = [g for g, (account, _) in enumerate(portfolio.groups) if account == number]
        moved = np.zeros(change.shape[1])
        worth = portfolio.fixed[number][2]
        today = np.asarray(s.cube.today)
        for group, row, coefficient in portfolio.native_legs:
            if group in groups:
                moved += coefficient * change[row]
                worth += coefficient * float(today[row])
        total += float(np.sum(weights * np.maximum(-(worth + moved), 0.0))) * info.unit_price_usd
    hit = row_of(tried("1"), "north-desk", "hyperliquid")
    # the engine keeps changes as float32
    assert hit.bad_debt_before_usd == pytest.approx(total, rel=1e-4)
    assert total > 0.0


def test_an_account_that_cannot_be_packed_under_new_tiers_is_an_error() -> None:
    s = setting()
    rows = [row for row in tiers_times("1")["main"] if row["market"] != "hyperliquid:ETH"]
    without = with_rows(s.inputs.snapshots, "margin_tiers", {"main": rows})
    with pytest.raises(DataError, match=r"cannot be computed under the recommended tiers: hyperliquid:north"):
        repacked(s.book, without, PORTFOLIOS, as_of=s.inputs.as_of)


def test_unit_requirements_are_the_tail_means_of_both_sides() -> None:
    resolved = load_configuration(QUICKSTART, overrides=OVERRIDES)
    generation = build_generator(resolved, ["price:ETH", "price:SOL"], setting().inputs.as_of)
    holdings = {
        "ETH": ("price:ETH",),
        "SOL": ("price:SOL",),
        "wstETH": ("price:ETH", "peg:wstETH"),
        "USDC": ("peg:USDC",),
        "SNX": ("price:SNX",),
        "nothing": (),
    }
    found = unit_requirements(generation, holdings, seed=3, chunk=1024)
    assert found == unit_requirements(generation, holdings, seed=3, chunk=4096)
    assert set(found) == {"ETH", "SOL", "wstETH", "USDC"}
    weights = np.asarray(scenario_weights(generation.generator, generation.scenarios))
    shocks = np.asarray(draw_scenarios(generation.generator, jax.random.key(3), 0, len(weights)))
    for name, shortfall in found.items():
        move = np.expm1(sum(shocks[:, generation.factors.index(factor)] for factor in holdings[name]))
        assert shortfall.long == pytest.approx(tail_mean(-move, weights), rel=1e-6)
        assert shortfall.short == pytest.approx(tail_mean(move, weights), rel=1e-6)
    assert found["wstETH"].long > found["ETH"].long


def tail_mean(loss: np.ndarray, weights: np.ndarray) -> float:
    """Mean of the worst 1 %, the scenario at its edge in part."""
    order = np.argsort(-loss)
    left, total = 0.01, 0.0
    for place in order:
        part = min(left, float(weights[place]))
        total += part * float(loss[place])
        left -= part
        if left <= 0.0:
            break
    return total / 0.01
