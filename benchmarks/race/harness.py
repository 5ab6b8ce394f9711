"""Rounds that alternate over contenders, after their answers were found equal; ratios and shares of the floor.

Everything runs in one process on warmed code. Wall clock and processor time of every round are kept; ratios are of the
best rounds, and the median of the rounds' own ratios stands beside them. What other processes do to the machine moves
wall clock by a factor of two: figures of different runs must not be compared.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .books import RaceBook
from .contenders import QUANTLIB_OPTIONS, Field, Run, field_of, peer_answers, peer_runs, restricted
from .figures import RaceTables, differences
from .floor import multiply_add_rate, work_operations
from .peer_cube import cube_changes
from .peer_quantlib import option_changes

ENGINE = "engine"
_STAGES = {"pricing": "kernel"}
"""The stage that a ratio line names."""


class UnequalAnswersError(Exception):
    """Two contenders computed different figures: no time of theirs means anything."""


class Engine(NamedTuple):
    """What the harness needs of an engine: its draws, its answer from Arrow to Arrow, its kernel and its pricing."""

    shocks: Callable[[RaceBook, int, int], np.ndarray]
    end_to_end: Callable[[RaceBook, int, int], RaceTables]
    kernel: Callable[[RaceBook, int, int], Callable[[], object]]
    pricing: Callable[[RaceBook, int, int], Callable[[], object]]


class Timing(NamedTuple):
    """Seconds of one run of the whole work (scaled up for slices): wall clock and processor time of all threads."""

    wall: float
    processor: float


class Clocked(NamedTuple):
    """All rounds of one contender at one stage, and the peak memory of a warm run before them."""

    run: Run
    peak_bytes: int | None
    rounds: list[Timing]

    def summary(self) -> dict[str, Any]:
        """Figures for the results file."""
        walls = [timing.wall for timing in self.rounds]
        processor = [timing.processor for timing in self.rounds]
        return {
            "contender": self.run.contender,
            "stage": self.run.stage,
            "scaled_by": self.run.scale,
            "wall_best_s": min(walls),
            "wall_median_s": statistics.median(walls),
            "processor_best_s": min(processor),
            "processor_median_s": statistics.median(processor),
            "cores_used": sum(processor) / sum(walls),
            "peak_bytes": self.peak_bytes,
        }


def race(book: RaceBook, engine: Engine, *, scenarios: int, seed: int, rounds: int) -> dict[str, Any]:
    """One book: equality first, then the rounds. Raises `UnequalAnswersError` before anything is timed."""
    field = field_of(book, engine.shocks(book, scenarios, seed))
    first_answers = check_equal(field, engine, seed=seed)
    runs = [
        Run(ENGINE, "kernel", None, engine.kernel(book, scenarios, seed), 1.0),
        Run(ENGINE, "end_to_end", None, lambda: engine.end_to_end(book, scenarios, seed), 1.0),
        *peer_runs(field, seed=seed),
    ]
    if any(run.contender == "quantlib" for run in runs):
        runs.append(Run(ENGINE, "pricing", None, engine.pricing(book, scenarios, seed), 1.0))
    clocked = clock(runs, rounds)
    operations = work_operations(field.rows, scenarios)
    rate = multiply_add_rate()
    summaries = [one.summary() for one in clocked]
    for summary in summaries:
        if summary["stage"] == "kernel":
            summary["floor_share"] = operations / rate / summary["wall_best_s"]
            # What a busy machine distorts least: operations of one core in the time that the work had of cores.
            cores = os.cpu_count() or 1
            summary["floor_share_of_processor_time"] = operations / (rate / cores) / summary["processor_best_s"]
            summary["account_scenarios_per_s"] = len(field.rows.portfolio_id) * scenarios / summary["wall_best_s"]
    return {
        "book": book.name,
        "portfolios": len(field.rows.portfolio_id),
        "accounts": len(field.rows.account_id),
        "rows": int(field.rows.row.size),
        "tiers": int(field.rows.slope.size),
        "cube_rows": field.rows.cube.rows,
        "scenarios": scenarios,
        "rounds": rounds,
        "operations": operations,
        "multiply_add_per_s": rate,
        "first_answer_s": first_answers,
        "contenders": summaries,
        "ratios": ratios(clocked),
    }


def check_equal(field: Field, engine: Engine, *, seed: int) -> dict[str, float]:
    """Raises `UnequalAnswersError` unless every peer answers what the engine does on the engine's own scenarios.

    Returns the wall clock of everybody's first answer, which contains what was compiled for it: the engine's from Arrow
    to Arrow, the peers' from their arrays on, of the slices where they do slices.
    """
    problems = []
    plain = cube_changes(field.rows.cube, field.shocks)
    scale = np.maximum(1.0, np.abs(plain).max(axis=1, keepdims=True))
    if not (np.abs(plain - field.cube) <= 1e-5 * scale).all():
        problems.append("cube: NumPy and Numba price differently")
    start = time.perf_counter()
    answer = engine.end_to_end(field.book, field.scenarios, seed)
    first_answers = {ENGINE: time.perf_counter() - start}
    for name, (found, seconds) in peer_answers(field).items():
        first_answers[name] = seconds
        expected = restricted(answer, found.portfolios["portfolio_id"].combine_chunks())
        problems += [f"{name}: {text}" for text in differences(found, expected, field.scenarios)]
    problems += _priced_apart(field, engine, seed)
    if problems:
        raise UnequalAnswersError(f"{field.book.name}:\n  " + "\n  ".join(problems))
    return first_answers


def _priced_apart(field: Field, engine: Engine, seed: int) -> list[str]:
    """A line if QuantLib prices some option in some scenario other than the engine's pricing alone."""
    terms = field.rows.cube
    some = min(len(terms.strike), QUANTLIB_OPTIONS)
    if not some:
        return []
    # The options come behind the constant.
    ours = np.asarray(engine.pricing(field.book, field.scenarios, seed)())[1 : some + 1, : field.scenarios]
    theirs = option_changes(terms, field.shocks, some)
    scale = np.maximum(1.0, np.abs(theirs).max(axis=1, keepdims=True))
    return [] if (np.abs(ours - theirs) <= 1e-5 * scale).all() else ["quantlib: options are priced differently"]


def clock(runs: Sequence[Run], rounds: int) -> list[Clocked]:
    """Warm every run, then time all of them in each round, beginning with another one every time."""
    out = []
    for run in runs:
        _whole(run)
        out.append(Clocked(run, _peak_of(run), []))
    for number in range(rounds):
        turn = number % len(out)
        for one in out[turn:] + out[:turn]:
            one.rounds.append(_timed(one.run))
    return out


def ratios(clocked: Sequence[Clocked]) -> list[dict[str, Any]]:
    """How many times longer each peer takes than the engine at the same stage."""
    ours = {one.run.stage: one for one in clocked if one.run.contender == ENGINE}
    out = []
    for one in clocked:
        if one.run.contender == ENGINE:
            continue
        engine = ours[one.run.stage]
        pairs = list(zip(one.rounds, engine.rounds, strict=True))
        out.append(
            {
                "peer": one.run.contender,
                "stage": _STAGES.get(one.run.stage, one.run.stage),
                "ratio": min(t.wall for t, _ in pairs) / min(e.wall for _, e in pairs),
                "ratio_median": statistics.median(t.wall / e.wall for t, e in pairs),
                "ratio_per_core": min(t.processor for t, _ in pairs) / min(e.processor for _, e in pairs),
            }
        )
    return out


def ratio_lines(result: dict[str, Any]) -> list[str]:
    """`ratio <peer> <kernel|end_to_end> <book> <value>`, one per comparison."""
    return [f"ratio {r['peer']} {r['stage']} {result['book']} {r['ratio']:.3g}" for r in result["ratios"]]


def table_lines(result: dict[str, Any]) -> list[str]:
    """The figures of one book as lines of a table for people."""
    lines = [
        f"{'':<16}{'stage':<12}{'best s':>10}{'median s':>10}{'cpu s':>10}{'cores':>7}{'peak MiB':>10}{'floor':>8}"
    ]
    for c in result["contenders"]:
        peak = "" if c["peak_bytes"] is None else f"{c['peak_bytes'] / 2**20:.0f}"
        floor = f"{c['floor_share']:.1%}" if "floor_share" in c else ""
        lines.append(
            f"{c['contender']:<16}{c['stage']:<12}{c['wall_best_s']:>10.3f}{c['wall_median_s']:>10.3f}"
            f"{c['processor_best_s']:>10.3f}{c['cores_used']:>7.2f}{peak:>10}{floor:>8}"
        )
    firsts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["first_answer_s"].items())
    return [*lines, f"first answers, compilation included: {firsts}"]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = ("jax", "jaxlib", "numpy", "numba", "pandas", "duckdb", "QuantLib", "pyarrow", "scipy")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _whole(run: Run) -> None:
    if run.fixed is not None:
        run.fixed()
    run.scaled()


def _timed(run: Run) -> Timing:
    fixed = _clocked(run.fixed) if run.fixed is not None else Timing(0.0, 0.0)
    scaled = _clocked(run.scaled)
    return Timing(fixed.wall + run.scale * scaled.wall, fixed.processor + run.scale * scaled.processor)


def _clocked(call: Callable[[], object]) -> Timing:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return Timing(time.perf_counter() - wall, time.process_time() - processor)


def _peak_of(run: Run) -> int | None:
    """Bytes that a warm run adds to what is resident before it, at its peak; None where the system cannot say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        _whole(run)
        return _status("VmHWM") - before
    except (OSError, StopIteration):
        _whole(run)
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name + ":")).split()[1])


def peak_resident_bytes() -> int:
    """Most that the whole process ever held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
