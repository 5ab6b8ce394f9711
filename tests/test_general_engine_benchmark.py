"""The general engine's benchmark: figures are compared before they are timed, and the results are whole."""

from __future__ import annotations

import json
from collections.abc import Callable

import jax.numpy as jnp
import pytest

from aggregator.engine import Headline
from benchmarks.general_engine import (
    FIRST_SIZES,
    RESULTS,
    GeneralBook,
    Kind,
    Size,
    Timing,
    UnequalFiguresError,
    fast_sweep,
    general_book,
    general_tables,
    headlines_of,
    isolated_book,
    require_equal,
    summary,
)
from benchmarks.race.books import RaceBook
from benchmarks.race.figures import RaceTables
from benchmarks.race.quickstart_books import quickstart

SCENARIOS = 256


@pytest.fixture(scope="module")
def book() -> RaceBook:
    return quickstart(2, 3)


@pytest.fixture(scope="module")
def general(book: RaceBook) -> GeneralBook:
    return general_book(book, SCENARIOS)


@pytest.fixture(scope="module")
def answers(book: RaceBook, general: GeneralBook) -> tuple[RaceTables, list[Headline | None]]:
    fast = fast_sweep(book, general.scenario_set(SCENARIOS)).run()
    return fast, headlines_of(general.portfolios, general.factors, general.cube)(Size(2, SCENARIOS))()


def test_the_engines_have_the_same_figures(
    general: GeneralBook, answers: tuple[RaceTables, list[Headline | None]]
) -> None:
    fast, found = answers
    tables = general_tables(general.portfolios, found)
    assert tables.portfolios.num_rows == 2
    assert require_equal(fast, tables, SCENARIOS) == 8 * tables.portfolios.num_rows + 2 * tables.nodes.num_rows


def _more_loss(h: Headline) -> Headline:
    return h._replace(pooled_es=h.pooled_es * 1.001)


def _liquidated(h: Headline) -> Headline:
    return h._replace(p_liquidation=h.p_liquidation + 2.0 / SCENARIOS)


def _no_number(h: Headline) -> Headline:
    return h._replace(worst_loss=jnp.asarray(jnp.nan))


@pytest.mark.parametrize(
    ("change", "column"),
    [(_more_loss, "es_99_usd"), (_liquidated, "nodes.p_liquidation"), (_no_number, "worst_loss_usd")],
)
def test_a_difference_is_found(
    general: GeneralBook,
    answers: tuple[RaceTables, list[Headline | None]],
    change: Callable[[Headline], Headline],
    column: str,
) -> None:
    fast, found = answers
    assert found[0] is not None
    wrong = general_tables(general.portfolios, [change(found[0]), *found[1:]])
    with pytest.raises(UnequalFiguresError, match=column):
        require_equal(fast, wrong, SCENARIOS)


def test_a_portfolio_without_figures_is_no_equal_one(general: GeneralBook) -> None:
    with pytest.raises(UnequalFiguresError, match=r"is not complete"):
        general_tables(general.portfolios, [None] * len(general.portfolios))


def test_the_summary_of_known_times() -> None:
    first = Size(2, 1_000)
    kind = Kind(lambda size: lambda: None, first, {"accounts": 3})
    # Twice the time for four times the portfolios, four times for the scenarios.
    timings = {first: Timing(1.0, 2.0), Size(8, 1_000): Timing(2.0, 4.0), Size(2, 4_000): Timing(3.0, 8.0)}
    found = summary(kind, timings)
    assert (found["slope_portfolios"], found["slope_scenarios"]) == (0.5, 1.0)
    assert found["processor_us_per_portfolio_and_1000_scenarios"] == 4e6 / 8
    assert found["accounts"] == 3
    of_paths = summary(kind._replace(steps=10), timings)
    assert of_paths["wall_us_per_portfolio_path_and_step"] == 2e6 / 8 / 1_000 / 10


def test_isolated_accounts_are_of_many_venues_and_none_is_covered() -> None:
    book, facts = isolated_book()
    assert len(book.portfolios) == facts["accounts"]
    assert len(facts["venues"]) >= 5
    assert sum(facts["refused_by_the_sweep_of_whole_books"].values()) == facts["accounts"] >= 10


def test_the_results_have_every_part() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {"machine", "rounds", *FIRST_SIZES} == set(results)
    for name, first in FIRST_SIZES.items():
        sizes = [{k: row[k] for k in Size._fields} for row in results[name]["sizes"]]
        assert sizes == [size._asdict() for size in Kind(lambda size: lambda: None, first, {}).sizes()]
        times = [row[k] for row in results[name]["sizes"] for k in ("wall_s", "processor_s")]
        assert all(value > 0 for value in times)
        assert {"slope_portfolios", "slope_scenarios"} <= set(results[name])
    assert results["tier_and_lending"]["figures_compared"] > 0
    assert results["paths"]["steps"] > 1
    assert {"cores", "jax", "load_before", "load_after"} <= set(results["machine"])
