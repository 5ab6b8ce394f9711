"""The race: its books are valid canonical tables, its peers compute what a slow twin does, its lines can be read."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import jax
import numpy as np
import pyarrow as pa
import pytest

from aggregator.schema.canonical import CANONICAL
from aggregator.schema.casting import cast_table
from aggregator.snapshot import take_snapshot
from benchmarks.race import gpu
from benchmarks.race.book_rows import BookRows, first_portfolios, read_rows
from benchmarks.race.books import CASH, RaceBook, decimals, option_heavy, perp_heavy
from benchmarks.race.figures import Figures, RaceTables, differences, rank_of, to_tables
from benchmarks.race.peer_cube import cube_changes, draw_shocks
from benchmarks.race.peer_numpy import sweep as numpy_sweep
from benchmarks.race.plot import race_plot
from benchmarks.race.quickstart_books import quickstart
from tests.race_twin import twin_figures

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = 400
MAKERS: dict[str, Callable[[], RaceBook]] = {
    "option_heavy": lambda: option_heavy(6, 60, 3),
    "perp_heavy": lambda: perp_heavy(6, 60, 3),
    "quickstart": lambda: quickstart(4, 3),
}


def rows_and_cube(book: RaceBook, scenarios: int = SCENARIOS) -> tuple[BookRows, np.ndarray, np.ndarray]:
    rows = read_rows(book.tables, book.portfolios, book.law.factors, book.as_of)
    # Wide enough that tiers change and accounts are liquidated.
    shocks = 3.0 * draw_shocks(book.law, scenarios, 5)
    return rows, cube_changes(rows.cube, shocks), shocks


def peer(name: str) -> Callable[[BookRows, np.ndarray], Figures]:
    """A peer's sweep; skips where its library is not installed."""
    module, function, library = {
        "numpy": ("peer_numpy", "sweep", "numpy"),
        "numba_ordinary": ("peers_numba", "sweep_ordinary", "numba"),
        "numba_strong": ("peers_numba", "sweep_strong", "numba"),
        "pandas": ("peer_pandas", "sweep", "pandas"),
        "duckdb": ("peer_duckdb", "sweep", "duckdb"),
    }[name]
    needed(library)
    found: Callable[[BookRows, np.ndarray], Figures] = getattr(_module(module), function)
    return found


def needed(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: `make bench` installs it")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.race.{name}")


@pytest.mark.parametrize("name", MAKERS)
def test_a_book_passes_the_checks_of_a_snapshot(name: str) -> None:
    book = MAKERS[name]()
    snapshot = take_snapshot([book.tables], as_of=book.as_of)
    assert snapshot.failures == ()
    assert not snapshot.incomplete
    for table in CANONICAL:
        if table != "failures":
            assert cast_table(table, book.tables[table]).schema.equals(CANONICAL[table], check_metadata=True)
    owners = book.portfolios["portfolio_id"].to_pylist()
    assert sorted(book.portfolios["account_id"].to_pylist()) == sorted(
        book.tables["accounts"]["account_id"].to_pylist()
    )
    assert len(set(owners)) == (4 if name == "quickstart" else 6)


def test_a_book_is_a_function_of_its_seed() -> None:
    first, again, other = option_heavy(20, 100, 1), option_heavy(20, 100, 1), option_heavy(20, 100, 2)
    assert all(first.tables[name].equals(again.tables[name]) for name in first.tables)
    assert not first.tables["positions"].equals(other.tables["positions"])


def test_the_mix_of_holdings_is_about_the_stated_one() -> None:
    book = option_heavy(2_000, 1_000)
    kind = dict(zip(*(book.tables["instruments"][c].to_pylist() for c in ("instrument_id", "kind")), strict=True))
    held = Counter(kind[i] for i in book.tables["positions"]["instrument_id"].to_pylist())
    held["spot"] = sum(asset != CASH for asset in book.tables["balances"]["asset_id"].to_pylist())
    total = sum(held.values())
    assert 17 < total / 2_000 < 23
    assert 2.7 < book.portfolios.num_rows / 2_000 < 3.3
    for name, share in (("spot", 0.15), ("perp", 0.30), ("future", 0.10), ("option", 0.45)):
        assert held[name] / total == pytest.approx(share, abs=0.03), name


def test_too_small_a_book_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 and 40"):
        option_heavy(0)
    with pytest.raises(ValueError, match="at least 1 and 40"):
        perp_heavy(5, 10)


def test_decimals_are_those_of_the_numbers() -> None:
    values = np.array([0.0, -1.5, 123456.789012, 8e12, -1e-6])
    assert [float(d) for d in decimals(values).to_pylist()] == values.tolist()


@pytest.mark.parametrize("book_name", MAKERS)
@pytest.mark.parametrize("name", ["numpy", "numba_ordinary", "numba_strong", "pandas", "duckdb"])
def test_a_peer_answers_what_the_slow_twin_does(book_name: str, name: str) -> None:
    sweep = peer(name)
    book = MAKERS[book_name]()
    rows, cube, shocks = rows_and_cube(book)
    found = to_tables(rows, sweep(rows, cube), SCENARIOS)
    moves = [dict(zip(book.law.factors, shocks[:, s].tolist(), strict=True)) for s in range(SCENARIOS)]
    for name_of_vol in [f.replace("price:", "vol:") for f in book.law.factors]:
        for move in moves:
            move.setdefault(name_of_vol, 0.0)
    twin = twin_figures(book, moves)
    portfolios = found.portfolios
    columns = [c for c in portfolios.column_names if c != "portfolio_id"]
    ids = portfolios["portfolio_id"].to_pylist()
    expected_portfolios = {"portfolio_id": ids} | {c: [twin.portfolios[i][c] for i in ids] for c in columns}
    accounts = found.nodes["account_id"].to_pylist()
    figures_of_nodes = ("equity_usd", "equity_mean_usd", "p_liquidation", "bad_debt_usd")
    expected_nodes = {"account_id": accounts} | {c: [twin.nodes[a][c] for a in accounts] for c in figures_of_nodes}
    expected = RaceTables(pa.table(expected_portfolios), pa.table(expected_nodes))
    assert differences(found, expected, SCENARIOS) == []
    assert 0 < sum(node["p_liquidation"] for node in twin.nodes.values()) < len(accounts)


def test_a_difference_is_found_and_named() -> None:
    rows, cube, _ = rows_and_cube(option_heavy(6, 60, 3))
    figures = numpy_sweep(rows, cube)
    right = to_tables(rows, figures, SCENARIOS)
    wrong = to_tables(rows, figures._replace(es=figures.es * 1.01), SCENARIOS)
    assert any("es_99_usd" in text for text in differences(wrong, right, SCENARIOS))
    nothing = to_tables(rows, figures._replace(mean_change=figures.mean_change * np.nan), SCENARIOS)
    assert any("mean_loss_usd" in text for text in differences(nothing, right, SCENARIOS))
    fewer = first_portfolios(rows, 3)
    assert differences(to_tables(fewer, numpy_sweep(fewer, cube), SCENARIOS), right, SCENARIOS)


def test_a_slice_answers_what_the_whole_does() -> None:
    rows, cube, _ = rows_and_cube(option_heavy(6, 60, 3))
    whole, part = numpy_sweep(rows, cube), numpy_sweep(first_portfolios(rows, 4), cube)
    np.testing.assert_array_equal(part.es, whole.es[:4])
    np.testing.assert_array_equal(part.any_liquidated, whole.any_liquidated[:4])


def test_what_lies_outside_the_rules_is_refused() -> None:
    book = option_heavy(6, 60, 3)

    def changed(table: str, column: str, values: list[object]) -> RaceBook:
        old = book.tables[table]
        place = old.column_names.index(column)
        new = old.set_column(place, old.schema.field(column), pa.array(values, old.schema.field(column).type))
        return book._replace(tables={**book.tables, table: new})

    forms = book.tables["rule_sets"]["form"].to_pylist()
    rates = book.tables["margin_tiers"]["maintenance_rate"].to_pylist()
    assets = book.tables["balances"]["asset_id"].to_pylist()
    for table, column, values, message in (
        ("rule_sets", "form", ["rate_of_size" if f == "tiered_notional" else f for f in forms], "outside the race"),
        ("margin_tiers", "maintenance_rate", rates[::-1], "rising rates"),
        ("balances", "asset_id", ["NOBODY", *assets[1:]], "unknown asset"),
    ):
        wrong = changed(table, column, values)
        with pytest.raises(ValueError, match=message):
            read_rows(wrong.tables, wrong.portfolios, wrong.law.factors, wrong.as_of)


def test_the_rank_of_a_value_at_risk_counts_mass_at_or_below() -> None:
    assert rank_of(0.99, 10_000) == 9_899
    assert rank_of(0.99, 10_001) == 9_900
    assert rank_of(0.995, 400) == 397
    assert rank_of(0.99, 1) == 0


def test_quantlib_prices_what_the_cube_does() -> None:
    needed("QuantLib")
    rows, cube, shocks = rows_and_cube(option_heavy(6, 60, 3), 64)
    options = min(6, len(rows.cube.strike))
    found = _module("peer_quantlib").option_changes(rows.cube, shocks, options)
    expected = cube[len(rows.cube.factors) :][:options]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(rows.cube.strike.max()))


def test_ratio_lines_and_rounds() -> None:
    needed("numba")
    needed("QuantLib")
    harness, contenders = _module("harness"), _module("contenders")
    calls: dict[str, int] = defaultdict(int)

    def counted(name: str) -> Callable[[], object]:
        def run() -> object:
            calls[name] += 1
            return sum(range(20_000))

        return run

    runs = [
        contenders.Run("engine", "kernel", None, counted("engine"), 1.0),
        contenders.Run("numpy", "kernel", counted("fixed"), counted("scaled"), 5.0),
    ]
    clocked = harness.clock(runs, 3)
    # A first call, one for its memory, and the rounds.
    assert calls == {"engine": 5, "fixed": 5, "scaled": 5}
    result = {"book": "option_heavy", "ratios": harness.ratios(clocked)}
    (line,) = harness.ratio_lines(result)
    assert re.fullmatch(r"ratio numpy kernel option_heavy \d[\d.e+]*", line)
    assert result["ratios"][0]["ratio"] > 1.0


def test_answers_that_differ_stop_the_race_before_any_time() -> None:
    for library in ("numba", "pandas", "duckdb", "QuantLib"):
        needed(library)
    harness, contenders = _module("harness"), _module("contenders")
    book = option_heavy(6, 60, 3)
    rows, _, shocks = rows_and_cube(book, 64)
    field = contenders.field_of(book, shocks)
    figures = numpy_sweep(rows, field.cube)

    # The constant, then the options, as the engine's own pricing has them.
    priced = np.concatenate([np.zeros((1, 64)), field.cube[len(rows.cube.factors) :]])

    def engine(answer: Figures, options: np.ndarray = priced) -> object:
        tables = to_tables(rows, answer, 64)
        return harness.Engine(lambda *_: shocks, lambda *_: tables, lambda *_: None, lambda *_: lambda: options)

    harness.check_equal(field, engine(figures), seed=1)
    dearer = priced + 1e-3 * np.abs(priced).max()
    with pytest.raises(harness.UnequalAnswersError, match="quantlib: options are priced differently"):
        harness.check_equal(field, engine(figures, dearer), seed=1)
    wrong = figures._replace(var=figures.var + 0.01 * np.abs(figures.var) + 100.0)
    with pytest.raises(harness.UnequalAnswersError, match="var_99_usd"):
        harness.check_equal(field, engine(wrong), seed=1)


def test_without_an_accelerator_the_gpu_script_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("there is an accelerator here")
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path / "gpu.json")])
    assert gpu.main() == 3
    assert "no accelerator" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


def test_the_plot_is_well_formed_and_shows_every_ratio() -> None:
    ratios = [
        {"peer": "numba_strong", "stage": "kernel", "ratio": 1.25},
        {"peer": "pandas & co", "stage": "end_to_end", "ratio": 310.0},
    ]
    growth = [
        {"contender": name, "axis": "portfolios", "sizes": [1.0, 2.0], "wall_best_s": [1.0, 2.1], "slope": 1.07}
        for name in ("engine", "numba_strong")
    ]
    markup = race_plot([{"book": "option_heavy", "ratios": ratios}], growth)
    texts = [node.text or "" for node in ElementTree.fromstring(markup).iter() if node.tag.endswith("text")]
    assert {"1.25×", "310×"} <= set(texts)
    assert any("pandas & co" in text for text in texts)
    assert any("1.07" in text for text in texts)
    assert race_plot([{"book": "b", "ratios": []}], []) == race_plot([{"book": "b", "ratios": []}], [])


@pytest.mark.long
def test_memory_does_not_grow_with_portfolios_times_scenarios() -> None:
    """Each size in a process of its own: what the fourth adds is what the second and the third do."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not say how much memory a process had")

    def peak(portfolios: int, scenarios: int) -> int:
        arguments = ["perp_heavy", str(portfolios), str(scenarios), "--shard", "256"]
        command = [sys.executable, "-m", "benchmarks.race.one_sweep", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found: int = json.loads(done.stdout)["peak_bytes_above_input"]
        return found

    few, many, short, long = 512, 4_096, 1_024, 8_192
    peak(few, long)  # so that no later one compiles
    extra = (peak(many, long) - peak(few, long)) - (peak(many, short) - peak(few, short))
    whole = 4 * (many - few) * (long - short)  # one float32 for each
    assert extra < whole / 2
