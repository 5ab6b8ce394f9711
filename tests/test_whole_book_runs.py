"""The sweep of whole books as a run: what it imports and compiles, bits of other chunks and processes, bad figures."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest

from aggregator import rule_forms, sweep_scenarios
from aggregator.book_columns import book_columns
from aggregator.covered_rules import PARAMETERS, Text, covered_rule_sets
from aggregator.errors import ConfigurationError, DataError
from aggregator.netted_sweep import SweepTables, headline_sweep
from aggregator.sweep_scenarios import ScenarioSet
from tests.engine_accounts import AccountBook, book_of
from tests.engine_book import FACTORS, generator_of
from tests.engine_markets import AS_OF
from tests.netted_books import arrow_tables

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = 900
KINDS = ("lend:plain", "perps:cross", "wallet:spot", "perps:thin", "lend:emode", "coin:margined", "coin:options")
HALF = 6


@functools.cache
def book() -> AccountBook:
    rng = np.random.default_rng(14)
    members = {f"p{n:02}": tuple(rng.choice(KINDS, size=rng.integers(1, 4))) for n in range(2 * HALF)}
    return book_of(members, seed=6)


def mapping(only: range = range(2 * HALF)) -> pa.Table:
    """The portfolios with these numbers."""
    wanted = sorted(book().portfolios)[only.start : only.stop]
    pairs = [(name, account) for name in wanted for account in book().portfolios[name]]
    return pa.table({"portfolio_id": [p for p, _ in pairs], "account_id": [a for _, a in pairs]})


def tables_of(portfolios: pa.Table) -> dict[str, pa.Table]:
    """The book's tables with the rows of these portfolios' accounts alone."""
    tables = arrow_tables(book().tables)
    ids = portfolios["account_id"].combine_chunks()
    for name in ("accounts", "balances", "positions"):
        tables[name] = tables[name].filter(pa.compute.is_in(tables[name]["account_id"], value_set=ids))
    return tables


def swept(portfolios: pa.Table | None = None, **changes: pa.Table) -> SweepTables:
    whole = mapping() if portfolios is None else portfolios
    return headline_sweep(
        tables_of(whole) | changes,
        whole,
        generator_of(FACTORS, scale=2.0),
        as_of=AS_OF,
        seed=3,
        scenarios=SCENARIOS,
        devices=1,
    )


def content(found: SweepTables) -> str:
    """Every figure of every row as text, exactly."""
    rows = [*found.portfolios.to_pylist(), *found.nodes.to_pylist()]
    lines = (" ".join(v if isinstance(v, str) else float(v).hex() for v in row.values()) for row in rows)
    return "\n".join(sorted(lines))


@functools.cache
def reference() -> str:
    return content(swept())


# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [256, 512])
def test_the_chunks_of_scenarios_change_no_bit(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_scenarios, "_CHUNK", chunk)
    assert content(swept()) == reference()


def test_books_of_a_part_of_the_portfolios_have_the_same_bits() -> None:
    """As two machines would read and sweep them: neither sees the other's accounts."""
    parts = [content(swept(mapping(half))) for half in (range(HALF), range(HALF, 2 * HALF))]
    assert "\n".join(sorted("\n".join(parts).splitlines())) == reference()


def test_two_processes_give_the_same_bits() -> None:
    code = (
        "import jax\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "from tests.test_whole_book_runs import HALF, content, mapping, swept\n"
        "print(content(swept(mapping(range(HALF, 2 * HALF)))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.strip().splitlines()
    assert lines == [line for line in reference().splitlines() if line in set(lines)]
    assert len(lines) > HALF


# ---- programs --------------------------------------------------------------------------------------------------------


def programs(run: Callable[[], object]) -> Counter[str]:
    """How often each function was traced or compiled while something ran."""
    events: Counter[str] = Counter()

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith(("jaxpr_trace_duration", "backend_compile_duration")):
            events[str(kwargs.get("fun_name"))] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        run()
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    return events


def test_a_second_sweep_traces_and_compiles_nothing() -> None:
    swept()
    assert not programs(swept)


def test_a_mix_of_books_needs_few_programs() -> None:
    """Books of one market, from one portfolio to all: their sizes are rounded up, so most share a program."""
    mixed = [range(1), range(3), range(2, 7), range(5, 10), range(4, 12), range(2 * HALF)]

    def run() -> None:
        for part in mixed:
            headline_sweep(tables_of(mapping(part)), mapping(part), given, as_of=AS_OF, devices=1)

    rng = np.random.default_rng(2)
    given = ScenarioSet(FACTORS, 0.02 * rng.standard_normal((512, len(FACTORS))), np.full(512, 1 / 512))
    found = programs(run)
    assert 1 <= found["jit(evaluate_shard)"] <= 2
    assert not programs(run)


# ---- figures that are no numbers -------------------------------------------------------------------------------------


def test_a_portfolio_whose_figures_overflow_is_named_and_the_others_stay() -> None:
    tables = tables_of(mapping())
    positions = tables["positions"]
    bad = next(account for account in positions["account_id"].to_pylist() if account.startswith("perps:cross"))
    owner = next(name for name, accounts in book().portfolios.items() if bad in accounts)
    quantity = [
        "99999999999999999999" if account == bad else str(value)
        for account, value in zip(*(positions[c].to_pylist() for c in ("account_id", "quantity")), strict=True)
    ]
    place = positions.schema.get_field_index("quantity")
    field = positions.schema.field(place)
    huge = positions.set_column(place, field, pa.array(quantity, pa.string()).cast(field.type))
    marks = tables["marks"]
    held = {
        i for a, i in zip(*(positions[c].to_pylist() for c in ("account_id", "instrument_id")), strict=True) if a == bad
    }
    value = [
        1e25 if subject in held and name == "mark" else v
        for subject, name, v in zip(*(marks[c].to_pylist() for c in ("subject", "field", "value")), strict=True)
    ]
    place = marks.schema.get_field_index("value")
    absurd = marks.set_column(place, marks.schema.field(place), pa.array(value))
    found = swept(positions=huge, marks=absurd)
    reasons = {row["account_id"]: row for row in found.not_covered.to_pylist()}
    assert reasons[bad] == {
        "portfolio_id": owner,
        "account_id": bad,
        "reason": "a figure that is no finite number",
    }
    left = found.portfolios["portfolio_id"].to_pylist()
    assert owner not in left
    assert set(left) | {row["portfolio_id"] for row in reasons.values()} == set(book().portfolios)
    for table in (found.portfolios, found.nodes):
        assert owner not in table["portfolio_id"].to_pylist()
        for column in table.select([f.name for f in table.schema if f.type == pa.float64()]).columns:
            assert np.isfinite(column.to_numpy()).all()
    untouched = {line.split()[0] for line in content(found).splitlines()} - {
        name for name, accounts in book().portfolios.items() if any(a.startswith("perps") for a in accounts)
    }
    expected = [line for line in reference().splitlines() if line.split()[0] in untouched]
    assert expected
    assert set(expected) <= set(content(found).splitlines())


def with_marks(wrong: float) -> pa.Table:
    marks = tables_of(mapping())["marks"]
    is_mark = np.array([name == "mark" for name in marks["field"].to_pylist()])
    place = marks.schema.get_field_index("value")
    value = pa.array(np.where(is_mark, wrong, marks["value"].to_numpy()))
    return marks.set_column(place, marks.schema.field(place), value)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_marks_that_are_no_numbers_are_errors(wrong: float) -> None:
    with pytest.raises(DataError, match=r"marks\.value: not finite"):
        swept(marks=with_marks(wrong))


@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_marks_that_are_no_prices_are_refused_by_account(wrong: float) -> None:
    found = swept(marks=with_marks(wrong))
    reasons = {row["reason"] for row in found.not_covered.to_pylist()}
    assert any(f"is {wrong}" in reason for reason in reasons), reasons


def test_scenarios_that_are_no_numbers_are_errors() -> None:
    shocks, weights = np.zeros((256, len(FACTORS))), np.full(256, 1 / 256)
    wrong = shocks.copy()
    wrong[3, 1] = np.nan
    for given, message in (
        (ScenarioSet(FACTORS, wrong, weights), f"shocks of {FACTORS[1]}"),
        (ScenarioSet(FACTORS, shocks, -weights), "weights of scenarios"),
        (ScenarioSet(FACTORS, shocks[:-1], weights), "shocks have shape"),
        (ScenarioSet(FACTORS, shocks, weights[:, None]), r"weights \(256, 1\)"),
        (ScenarioSet(FACTORS, shocks, np.full(256, "much")), "must be numbers"),
        (ScenarioSet(FACTORS, shocks, 2.0 * weights), "weights of scenarios sum to 2.0; expected 1"),
        (ScenarioSet((*FACTORS[:-1], FACTORS[0]), shocks, weights), "a factor stands twice"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            headline_sweep(tables_of(mapping()), mapping(), given, as_of=AS_OF, devices=1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"horizon_days": float("nan")}, "horizon_days nan"),
        ({"horizon_days": -1.0}, "horizon_days -1.0"),
        ({"as_of": AS_OF.replace(tzinfo=None)}, "a time zone"),
        ({"seed": 2**70}, "seed 1180591620717411303424"),
        ({"scenarios": 2**25}, "33554432 scenarios: expected at most"),
        ({"scenarios": 0}, "scenarios is 0"),
    ],
)
def test_a_sweep_that_means_nothing_is_an_error(how: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"as_of": AS_OF, "scenarios": 256, "devices": 1} | how
    with pytest.raises(ConfigurationError, match=message):
        headline_sweep(tables_of(mapping()), mapping(), generator_of(FACTORS), **arguments)


# ---- rule sets without their models ----------------------------------------------------------------------------------


def test_parameters_are_those_of_the_models() -> None:
    for form, parameters in PARAMETERS.items():
        fields = rule_forms.FORMS[form].model_fields
        assert set(parameters) == set(fields), form
        for name, parameter in parameters.items():
            field = fields[name]
            if isinstance(parameter, Text):
                choices = getattr(field.annotation, "__args__", ())
                assert parameter.choices == choices, (form, name)
                assert (parameter.default is None) == field.is_required(), (form, name)
                assert field.is_required() or parameter.default == field.default, (form, name)
            else:
                default = field.get_default(call_default_factory=True)
                assert type(default)(parameter) == default, (form, name)


@pytest.mark.parametrize(
    ("form", "parameters", "message"),
    [
        ("fixed", "{", "no JSON"),
        ("fixed", '{"basis": "computed", "extra": 1}', "expected the parameters"),
        ("fixed", '{"basis": "computed", "equity": "much"}', "equity is 'much'"),
        ("fixed", '{"basis": "computed", "equity": "nan"}', "expected a finite number"),
        ("fixed", "{}", "basis is missing"),
        ("verdict", '{"liquidates_when": "never"}', "expected one of"),
        ("weighted_value", '{"net_by_asset": "no"}', "expected true or false"),
        ("debt_charge", '{"maintenance_rates": 3}', "expected rates by asset"),
    ],
)
def test_parameters_that_the_form_does_not_take_are_errors(form: str, parameters: str, message: str) -> None:
    columns = {"rule_set": "r", "component_no": 0, "form": form, "side": "equity", "level": "both"}
    with pytest.raises(ConfigurationError, match=message):
        covered_rule_sets(pa.Table.from_pylist([{**columns, "parameters": parameters}]))


# ---- where only the engine's packages are ----------------------------------------------------------------------------

_REFUSING = """
import importlib.abc, sys

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Refusing())
import {module}
print("imported")
"""


@pytest.mark.parametrize(
    "module", ["aggregator.netted_sweep", "aggregator.netted_dense", "benchmarks.race.gpu", "benchmarks.race.engine"]
)
def test_a_sweep_imports_without_the_packages_of_the_command_line(module: str) -> None:
    refused = (
        "pydantic", "pydantic_core", "typer", "rich", "click", "deltalake", "jinja2", "structlog", "optax", "httpx",
        "pandas", "numba", "duckdb", "matplotlib", "beartype",
    )  # fmt: skip
    code = _REFUSING.format(refused=refused, module=module)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr[-2000:]


def test_the_order_of_a_book_s_rows_and_texts_does_not_show() -> None:
    tables = tables_of(mapping())
    first = book_columns(tables, mapping(), as_of=AS_OF)
    backwards = {name: table.take(pa.array(range(table.num_rows), pa.int64())[::-1]) for name, table in tables.items()}
    other = book_columns(backwards, mapping(), as_of=AS_OF)
    assert [column.tobytes() for column in first.legs] == [column.tobytes() for column in other.legs]
    assert first.cube.factors() == other.cube.factors()
