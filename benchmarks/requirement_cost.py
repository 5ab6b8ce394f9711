"""What the requirement costs on top of the bare sweep: shortfalls alone, with the stack, with the stresses as well.

    .venv/bin/python -m benchmarks.requirement_cost [--copies 8] [--rounds 5] [--write]

The quickstart desk, several times over, on its own scenarios; headline figures of all portfolios, compiled before the
clock runs. Rounds alternate over the contenders, processor time and wall clock, medians; the ratio is to the bare sweep
of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from adapters.adapter import adapter_names
from adapters.asset_book import read_asset_book
from aggregator.config import load_configuration
from aggregator.engine import Cube, evaluate_headlines
from aggregator.factors import build_generator
from aggregator.portfolio import PackedPortfolio, pack_book
from aggregator.run_inputs import read_inputs
from aggregator.run_market import run_market
from aggregator.stress import check_names, read_stress_library

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "requirement_cost.json"


def contenders(copies: int) -> tuple[list[PackedPortfolio], dict[str, Callable[[], Any]]]:
    """The portfolios, and what computes their headlines without and with the requirement."""
    resolved = load_configuration(ROOT / "configs" / "quickstart.toml")
    configuration = resolved.configuration
    inputs = read_inputs(resolved, lambda stage, done, total: None)
    book, _ = pack_book(inputs.snapshots, configuration.portfolios, as_of=inputs.as_of)
    generation = build_generator(resolved, book.factors(), inputs.as_of)
    library = read_stress_library(resolved.path(configuration.stress or "stress.toml"))
    assets = read_asset_book(resolved.path(configuration.assets)).assets
    named = {*assets, *(a.risk_factor for a in assets.values()), *(a.peg_of for a in assets.values())}
    check_names(library, assets=[name for name in named if name], venues=adapter_names())
    market = run_market(resolved, book, generation, library)
    desk = book.portfolios[0]
    portfolios = [replace(desk, portfolio_id=f"{desk.portfolio_id}-{number}") for number in range(copies)]

    def headlines(cube: Cube) -> Callable[[], Any]:
        return lambda: evaluate_headlines(
            portfolios,
            generation.factors,
            cube,
            devices=len(jax.devices()),
            policy=configuration.requirement,
            venues=market.venues,
        )

    whole = market.cube
    without_stress = eqx.tree_at(lambda c: c.stress, whole, None, is_leaf=lambda leaf: leaf is None)
    bare = eqx.tree_at(lambda c: c.unified, without_stress, None, is_leaf=lambda leaf: leaf is None)
    cubes = {"bare": bare, "stack": without_stress, "stack_and_stresses": whole}
    return portfolios, {name: headlines(cube) for name, cube in cubes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    portfolios, runs = contenders(arguments.copies)
    shortfalls = {name: [float(h.pooled_es[0]) for h in run()] for name, run in runs.items()}
    assert len({tuple(of) for of in shortfalls.values()}) == 1, "the contenders disagree on the pooled shortfall"
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    found = {
        name: {
            "wall_s": round(statistics.median(wall[name]), 4),
            "processor_s": round(statistics.median(processor[name]), 4),
            "ratio_to_bare": round(statistics.median(processor[name]) / statistics.median(processor["bare"]), 3),
        }
        for name in runs
    }
    result = {
        "portfolios": len(portfolios),
        "rounds": arguments.rounds,
        "load": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "contenders": found,
    }
    print(json.dumps(result, indent=2))
    if arguments.write:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
