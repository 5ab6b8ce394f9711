"""The general engine apart from the race: what the sweep of whole books leaves to it, and what it takes for the rest.

    .venv/bin/python -m benchmarks.general_engine [--rounds 3] [--write]

- `tier_and_lending`: the portfolios of the race's quickstart book, by both engines on the same draws. Their figures are
  compared first, by the race's tolerances; a difference ends the run before anything is timed. The sweep of whole books
  is timed on a book of the size that it is made for as well.
- `scenario_grids`: the two Derive subaccounts of the quickstart desk (one of portfolio margin, one of standard margin)
  as one portfolio, on the desk's own law.
- `isolated_accounts`: every isolated position of the venues' sample payloads, each a portfolio, in turn. The sweep of
  whole books refuses them all; its reasons are in the results.
- `paths`: the quickstart's two portfolios along paths of the configured number of steps, with verdicts after every step
  and funding.

The last three are the same portfolios again and again. Headline figures or figures of paths, from packed portfolios and
a priced cube (paths draw and price their own), compiled before the clock runs. Rounds alternate over all kinds and
sizes; processor time of all threads and wall clock, medians. Growth is the slope of the logarithm of the processor time
over that of the size, between the first size and four times as many portfolios, or scenarios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from aggregator.book_columns import book_columns
from aggregator.compiler_flags import set_compiler_flags
from aggregator.config import load_configuration
from aggregator.cube_prices import priced_cube
from aggregator.engine import Cube, Headline, draw_cube, evaluate_headlines
from aggregator.evidence import Evidence
from aggregator.factors import build_generator, build_path_generator
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.netted_sweep import sweep_columns
from aggregator.path_margin import PathLaw, funded_legs, path_figures
from aggregator.portfolio import Book, PackedPortfolio, pack_book
from aggregator.run_inputs import Inputs, read_inputs
from aggregator.schema.casting import table_from_rows
from aggregator.snapshot import take_snapshot
from aggregator.sweep_scenarios import ScenarioSet, sweep_scenarios
from tests.payload_mutations import AS_OF, has_sample, sample, venues

from .race.books import RaceBook
from .race.engine import SHARD, generator_of
from .race.figures import RaceTables, differences
from .race.quickstart_books import quickstart

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "general_engine.json"
SEED = 1
CHUNK = 2_048
"""Scenarios drawn at a time."""
TIMES = 4
"""How much larger than the first the larger size is."""
HORIZON_DAYS = 1.0
# Made up: a day of price, of implied volatility and of a peg. What an account moves by changes no time.
DAILY_STD = {"price": 0.03, "vol": 0.05, "peg": 0.001}
CORRELATION = 0.5


class UnequalFiguresError(Exception):
    """The two engines computed different figures: the ratio of their times means nothing."""


class Size(NamedTuple):
    """How much one call computes; of paths `scenarios` is their number."""

    portfolios: int
    scenarios: int


FIRST_SIZES: Mapping[str, Size] = {
    "tier_and_lending": Size(128, 4_096),
    "scenario_grids": Size(4, 2_048),
    "isolated_accounts": Size(64, 4_096),
    "paths": Size(8, 256),
}
"""First size of every kind; portfolios are powers of two, scenarios whole tiles."""
LARGE_BOOK = 8_192
"""Portfolios of the book on which the sweep of whole books is timed a second time: fixed costs hide in it."""


class Kind(NamedTuple):
    """What is timed: a call for a size, the first size, facts for the results, and the steps of a path."""

    call: Callable[[Size], Callable[[], Any]]
    first: Size
    facts: Mapping[str, Any]
    steps: int = 0

    def larger(self, axis: str) -> Size:
        """The first size with more portfolios, or more scenarios."""
        return self.first._replace(**{axis: TIMES * getattr(self.first, axis)})

    def sizes(self) -> list[Size]:
        return [self.first, *map(self.larger, Size._fields)]


# ---- portfolios of tiers and lending, by both engines ----------------------------------------------------------------


def general_tables(portfolios: Sequence[PackedPortfolio], headlines: Sequence[Headline | None]) -> RaceTables:
    """Figures of the general engine that the sweep of whole books has too, in its columns.

    Raises `UnequalFiguresError` for a portfolio without figures.
    """
    rows, nodes = [], []
    for portfolio, h in zip(portfolios, headlines, strict=True):
        if h is None or portfolio.accounts_left_out:
            raise UnequalFiguresError(f"portfolio {portfolio.portfolio_id} is not complete in the general engine")
        equity: dict[str, float] = {info.account_id: 0.0 for info in portfolio.accounts}
        for line, amount in zip(portfolio.lines, portfolio.line_equity, strict=True):
            equity[line.account_id] += amount
        rows.append(
            {
                "portfolio_id": portfolio.portfolio_id,
                "equity_usd": math.fsum(portfolio.line_equity),
                "mean_loss_usd": float(h.mean_loss),
                "worst_loss_usd": float(h.worst_loss),
                "var_99_usd": float(h.pooled_var[0]),
                "es_99_usd": float(h.pooled_es[0]),
                "var_995_usd": float(h.pooled_var[1]),
                "es_995_usd": float(h.pooled_es[1]),
                "p_liquidation_any": float(h.p_any),
            }
        )
        nodes += [
            {
                "account_id": info.account_id,
                "equity_usd": equity[info.account_id],
                "p_liquidation": float(h.p_liquidation[number]),
            }
            for number, info in enumerate(portfolio.accounts)
        ]
    return RaceTables(pa.Table.from_pylist(rows), pa.Table.from_pylist(nodes))


def require_equal(fast: RaceTables, general: RaceTables, scenarios: int) -> int:
    """Raises `UnequalFiguresError` where the figures differ beyond the race's tolerances; else how many it compared."""
    problems = differences(fast, general, scenarios)
    if problems:
        raise UnequalFiguresError("; ".join(problems))
    return sum(table.num_rows * (table.num_columns - 1) for table in general)


class FastSweep(NamedTuple):
    """A race book packed for the sweep of whole books, from columns and a priced cube to tables."""

    run: Callable[[], RaceTables]
    pack_processor_s: float


def fast_sweep(book: RaceBook, scenarios: ScenarioSet) -> FastSweep:
    started = time.process_time()
    columns = book_columns(book.tables, book.portfolios, as_of=book.as_of, known=frozenset(scenarios.factors))
    packed = time.process_time() - started
    ordered = sweep_scenarios(scenarios, seed=SEED, scenarios=None)
    priced = priced_cube(columns.cube.build(scenarios.factors), ordered, horizon_days=HORIZON_DAYS)

    def run() -> RaceTables:
        found = sweep_columns(columns, priced, devices=len(jax.devices()), shard=SHARD)
        return RaceTables(found.portfolios, found.nodes)

    return FastSweep(run, packed)


class GeneralBook(NamedTuple):
    """A race book packed for the general engine, and its cube."""

    portfolios: Sequence[PackedPortfolio]
    factors: tuple[str, ...]
    cube: Cube
    pack_processor_s: float

    def scenario_set(self, count: int) -> ScenarioSet:
        """The first scenarios of the cube, for the sweep of whole books."""
        cut = first_scenarios(self.cube, count)
        return ScenarioSet(self.factors, np.asarray(cut.shocks), np.asarray(cut.weights))


def general_book(book: RaceBook, scenarios: int) -> GeneralBook:
    generator = generator_of(book.law)
    started = time.process_time()
    members: dict[str, list[str]] = {}
    for row in book.portfolios.to_pylist():
        members.setdefault(row["portfolio_id"], []).append(row["account_id"])
    packed, _ = pack_book({"book": take_snapshot([book.tables], as_of=book.as_of)}, members, as_of=book.as_of)
    seconds = time.process_time() - started
    rows = packed.cube.build(generator.factors)
    cube = draw_cube(rows, generator, seed=SEED, scenarios=scenarios, chunk=CHUNK, horizon_days=HORIZON_DAYS)
    return GeneralBook(packed.portfolios, generator.factors, cube, seconds)


# ---- what the sweep of whole books does not cover --------------------------------------------------------------------


def first_scenarios(cube: Cube, count: int) -> Cube:
    """The cube with its first scenarios alone, their weights scaled to 1."""
    weights = cube.weights[:count]
    cut = (cube.change[:, :count], cube.shocks[:count], weights / jnp.sum(weights))
    return eqx.tree_at(lambda c: (c.change, c.shocks, c.weights), cube, cut)


def headlines_of(
    portfolios: Sequence[PackedPortfolio], factors: tuple[str, ...], cube: Cube
) -> Callable[[Size], Callable[[], list[Headline | None]]]:
    """Calls that evaluate `size.portfolios` of the portfolios, spread evenly over them, by the general engine."""

    def call(size: Size) -> Callable[[], list[Headline | None]]:
        part = portfolios[:: len(portfolios) // size.portfolios][: size.portfolios]
        cut = first_scenarios(cube, size.scenarios)
        return lambda: evaluate_headlines(part, factors, cut, devices=len(jax.devices()))

    return call


def repeated(portfolios: Sequence[PackedPortfolio], count: int) -> list[PackedPortfolio]:
    """The portfolios in turn, `count` in all, ids numbered."""
    found = itertools.islice(itertools.cycle(portfolios), count)
    return [replace(p, portfolio_id=f"{p.portfolio_id}-{number}") for number, p in enumerate(found)]


class Desk(NamedTuple):
    """The quickstart's configuration and what it reads."""

    resolved: Any
    inputs: Inputs


def scenario_grids(desk: Desk, first: Size) -> Kind:
    """The Derive subaccounts of the desk, as one portfolio, again and again."""
    snapshots, as_of = desk.inputs.snapshots, desk.inputs.as_of
    book, _ = pack_book(snapshots, {"derive": ["derive:north"]}, as_of=as_of)
    generation = build_generator(desk.resolved, book.factors(), as_of)
    (portfolio,) = book.portfolios
    cube = draw_cube(
        book.cube.build(generation.factors),
        generation.generator,
        seed=SEED,
        scenarios=generation.scenarios,
        chunk=desk.resolved.configuration.engine.scenario_chunk,
        horizon_days=HORIZON_DAYS,
    )
    facts = {
        "accounts_per_portfolio": len(portfolio.accounts),
        "positions_per_portfolio": len(portfolio.lines),
        "rule_sets": sorted(row["rule_set"] for row in _rows(snapshots, "accounts") if row["venue"] == "derive"),
    }
    many = repeated(book.portfolios, first.portfolios * TIMES)
    return Kind(headlines_of(many, generation.factors, cube), first, facts)


def isolated_book() -> tuple[Book, dict[str, Any]]:
    """Every isolated account of the venues' samples as a portfolio, and facts: venues, and why the sweep of whole books
    refuses them.
    """
    samples = [sample(venue) for venue in venues() if has_sample(venue)]
    batches = [of.adapter.normalize(list(of.payloads), of.context).batches for of in samples]
    snapshot = take_snapshot(batches, as_of=AS_OF)
    every = [row["account_id"] for row in snapshot.tables["accounts"]]
    isolated = [row for row in snapshot.tables["accounts"] if row["margin_mode"] == "isolated"]
    book, _ = pack_book({"samples": snapshot}, {r["account_id"]: [r["account_id"]] for r in isolated}, as_of=AS_OF)
    assert not book.failures, book.failures
    tables = {name: table_from_rows(name, list(snapshot.tables[name])) for name in snapshot.tables}
    alone = pa.table({"portfolio_id": every, "account_id": every})
    refused = {r["account_id"]: r["reason"] for r in book_columns(tables, alone, as_of=AS_OF).not_covered.to_pylist()}
    facts = {
        "accounts": len(isolated),
        "venues": sorted({row["venue"] for row in isolated}),
        "refused_by_the_sweep_of_whole_books": dict(Counter(refused[row["account_id"]] for row in isolated)),
    }
    return book, facts


def isolated_accounts(first: Size) -> Kind:
    """The isolated accounts in turn."""
    book, facts = isolated_book()
    factors = book.factors()
    generator = multivariate_t(
        factors,
        {name: DAILY_STD[name.partition(":")[0]] for name in factors},
        correlation=np.where(np.eye(len(factors)) > 0, 1.0, CORRELATION),
        nu=4.0,
    )
    cube = draw_cube(
        book.cube.build(factors),
        generator,
        seed=SEED,
        scenarios=first.scenarios * TIMES,
        chunk=CHUNK,
        horizon_days=HORIZON_DAYS,
    )
    return Kind(headlines_of(repeated(book.portfolios, first.portfolios * TIMES), factors, cube), first, facts)


def paths(desk: Desk, first: Size) -> Kind:
    """The desk's portfolios along its paths, of the configured number of steps."""
    configuration, (snapshots, as_of) = desk.resolved.configuration, (desk.inputs.snapshots, desk.inputs.as_of)
    book, _ = pack_book(snapshots, configuration.portfolios, as_of=as_of)
    generation = build_generator(desk.resolved, book.factors(), as_of)
    factors, steps = generation.factors, configuration.paths.steps
    cube = book.cube.build(factors)
    evidence = Evidence(snapshots, (), as_of)
    portfolios = repeated(book.portfolios, first.portfolios * TIMES)
    units = {a.account_id: evidence.market(a.account_id).exponents(a.unit) for p in book.portfolios for a in p.accounts}
    funding = [funded_legs(p, cube, factors, configuration.requirement, units) for p in portfolios]

    def call(size: Size) -> Callable[[], object]:
        # Strata of rare jumps have their weights: a law of paths is built for their number.
        number = configuration.paths.model_copy(update={"scenarios": size.scenarios})
        of_number = configuration.model_copy(update={"paths": number})
        resolved = desk.resolved.model_copy(update={"configuration": of_number})
        generator = build_path_generator(resolved, factors, as_of).generator
        law = PathLaw(generator, SEED, size.scenarios, steps, HORIZON_DAYS / steps)
        count, devices = size.portfolios, len(jax.devices())
        return lambda: path_figures(portfolios[:count], factors, cube, law, funding[:count], devices=devices)

    facts = {"steps": steps, "accounts_per_portfolio": len(units) / len(book.portfolios)}
    return Kind(call, first, facts, steps)


def _rows(snapshots: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
    return [row for snapshot in snapshots.values() for row in snapshot.tables[table]]


# ---- the clock -------------------------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """Medians of the rounds, seconds."""

    wall: float
    processor: float


def timed(calls: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, Timing]:
    """Every call once to compile, then `rounds` over all of them in turn."""
    for name, call in calls.items():
        used = time.process_time()
        call()
        print(f"{name}: first call {time.process_time() - used:.1f} s of processor time", file=sys.stderr)
    found: dict[Any, list[Timing]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started, used = time.perf_counter(), time.process_time()
            call()
            found[name].append(Timing(time.perf_counter() - started, time.process_time() - used))
    return {name: Timing(*map(statistics.median, zip(*of, strict=True))) for name, of in found.items()}


def seconds_of(timing: Timing) -> dict[str, float]:
    return {"wall_s": round(timing.wall, 4), "processor_s": round(timing.processor, 4)}


def summary(kind: Kind, timings: Mapping[Size, Timing]) -> dict[str, Any]:
    """Figures of one kind: seconds by size, and of the size with the most portfolios what one unit of work takes."""
    largest = kind.larger("portfolios")
    portfolio_scenarios = largest.portfolios * largest.scenarios
    if kind.steps:
        unit, count = "portfolio_path_and_step", float(portfolio_scenarios * kind.steps)
    else:
        unit, count = "portfolio_and_1000_scenarios", portfolio_scenarios / 1_000
    timing = timings[largest]
    return {
        **kind.facts,
        "sizes": [{**size._asdict(), **seconds_of(timings[size])} for size in kind.sizes()],
        f"wall_us_per_{unit}": round(1e6 * timing.wall / count, 2),
        f"processor_us_per_{unit}": round(1e6 * timing.processor / count, 2),
        **{
            f"slope_{axis}": round(
                math.log(timings[kind.larger(axis)].processor / timings[kind.first].processor) / math.log(TIMES), 3
            )
            for axis in Size._fields
        },
    }


def measured(first: Mapping[str, Size], rounds: int) -> dict[str, Any]:
    """Everything, by kind. Raises `UnequalFiguresError` before anything is timed."""
    of_both = first["tier_and_lending"]
    book = quickstart(of_both.portfolios * TIMES, SEED)
    general = general_book(book, of_both.scenarios * TIMES)
    scenarios = general.scenario_set(of_both.scenarios)
    fast = fast_sweep(book, scenarios)
    either = Kind(headlines_of(general.portfolios, general.factors, general.cube), of_both, {})
    whole = either.larger("portfolios")
    answer = general_tables(general.portfolios, either.call(whole)())
    compared = require_equal(fast.run(), answer, of_both.scenarios)
    large = fast_sweep(quickstart(LARGE_BOOK, SEED), scenarios)
    resolved = load_configuration(ROOT / "configs" / "quickstart.toml")
    desk = Desk(resolved, read_inputs(resolved, lambda stage, done, total: None))
    kinds = {
        "tier_and_lending": either,
        "scenario_grids": scenario_grids(desk, first["scenario_grids"]),
        "isolated_accounts": isolated_accounts(first["isolated_accounts"]),
        "paths": paths(desk, first["paths"]),
    }
    calls: dict[Any, Callable[[], object]] = {
        (name, size): kind.call(size) for name, kind in kinds.items() for size in kind.sizes()
    }
    timings = timed({"fast": fast.run, "fast_large": large.run, **calls}, rounds)
    out = {name: summary(kind, {s: timings[name, s] for s in kind.sizes()}) for name, kind in kinds.items()}
    ours = timings["tier_and_lending", whole]
    for name, portfolios in (("fast", whole.portfolios), ("fast_large", LARGE_BOOK)):
        theirs = timings[name]
        # Per portfolio, since one of the books is larger.
        times = portfolios / whole.portfolios
        out["tier_and_lending"][name] = {
            **Size(portfolios, of_both.scenarios)._asdict(),
            **seconds_of(theirs),
            "general_to_it_wall": round(times * ours.wall / theirs.wall, 1),
            "general_to_it_processor": round(times * ours.processor / theirs.processor, 1),
        }
    out["tier_and_lending"] |= {
        "figures_compared": compared,
        "pack_processor_s": {"fast": round(fast.pack_processor_s, 3), "general": round(general.pack_processor_s, 3)},
    }
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    # Compiled as the command line does it: in two thirds of the time.
    set_compiler_flags()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    started = time.perf_counter()
    facts = {
        "architecture": platform.machine(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
    try:
        found = measured(FIRST_SIZES, options.rounds)
    except UnequalFiguresError as problem:
        print(f"figures differ, nothing is timed: {problem}", file=sys.stderr)
        return 1
    facts["load_after"] = round(os.getloadavg()[0], 2)
    text = json.dumps({"machine": facts, "rounds": options.rounds, **found}, indent=1) + "\n"
    print(text)
    print(f"{time.perf_counter() - started:.0f} s, processor {time.process_time():.0f} s", file=sys.stderr)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
