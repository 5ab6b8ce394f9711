"""Transfers between venues: time of the closed form, and time and gap of transfer-constrained expected shortfall.

    .venv/bin/python -m benchmarks.transfer [--repetitions 5] [--write]

Losses are t with 4 degrees of freedom, mixed at random between 8 nodes; 60 % of the routes exist and each is open in
90 % of the scenarios. Times are wall clock of compiled programs, the median of the repetitions; the load of the machine
is recorded beside them. The gap is (value - lower bound) / value.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aggregator.transfer import uncovered_many
from aggregator.transfer_margin import PRECISION, SCENARIOS_USED
from aggregator.transfer_shortfall import transfer_shortfall

RESULTS = Path(__file__).resolve().parent / "results" / "transfer.json"
CONFIDENCE = 0.99
SCENARIOS = 102_400
NODES = 8


def portfolio(seed: int, scenarios: int, nodes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses [S, V], capacities [S, V, V] and weights [S]; seeds of odd number have unequal weights."""
    random = np.random.default_rng(seed)
    losses = random.standard_t(4, size=(scenarios, nodes)) @ random.normal(size=(nodes, nodes))
    losses *= np.exp(random.normal(size=nodes))
    level = random.exponential(1.0, (nodes, nodes)) * (random.random((nodes, nodes)) < 0.6) * np.exp(random.normal())
    capacity = level * (random.random((scenarios, nodes, nodes)) < 0.9)
    weights = random.random(scenarios) if seed % 2 else np.ones(scenarios)
    return jnp.asarray(losses), jnp.asarray(capacity), jnp.asarray(weights / weights.sum())


def seconds(call: Callable[[], Any], repetitions: int) -> float:
    jax.block_until_ready(call())
    taken = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def closed_form(repetitions: int) -> list[dict[str, Any]]:
    losses, capacity, _ = portfolio(100, SCENARIOS, NODES)
    many = jax.jit(uncovered_many)
    out = []
    for dtype in (jnp.float32, jnp.float64):
        for cuts, routes in (("per scenario", capacity), ("shared", capacity[0])):
            x, c = -losses.astype(dtype), routes.astype(dtype)
            taken = seconds(functools.partial(many, x, c), repetitions)
            out.append({"dtype": jnp.dtype(dtype).name, "cuts": cuts, "milliseconds": round(1e3 * taken, 1)})
    return out


def shortfalls() -> list[dict[str, Any]]:
    """Wall clock and processor seconds of one solve each; on a loaded machine only the latter mean anything.

    The last ones are solved as runs do it. The gap is over all scenarios, whatever the solver looked at: the error.
    """
    out = []
    for scenarios, nodes, used, precision, count in (
        (4096, 6, None, 1e-7, 50),
        (SCENARIOS, NODES, 8192, 1e-5, 3),
        (SCENARIOS, NODES, SCENARIOS_USED, PRECISION, 3),
    ):
        solve = jax.jit(
            functools.partial(transfer_shortfall, confidence=CONFIDENCE, scenarios_used=used, precision=precision)
        )
        jax.block_until_ready(solve(*portfolio(99, scenarios, nodes)))
        wall, processor, gaps, left = [], [], [], []
        for seed in range(100, 100 + count):
            case = jax.block_until_ready(portfolio(seed, scenarios, nodes))
            started, used_before = time.perf_counter(), time.process_time()
            found = jax.block_until_ready(solve(*case))
            wall.append(time.perf_counter() - started)
            processor.append(time.process_time() - used_before)
            gaps.append(float((found.value - found.lower_bound) / found.value))
            left.append(int(found.left_out))
        out.append(
            {
                "scenarios": scenarios,
                "nodes": nodes,
                "scenarios_used": used or scenarios,
                "precision": precision,
                "portfolios": count,
                "wall_seconds_median": round(statistics.median(wall), 3),
                "wall_seconds_most": round(max(wall), 3),
                "processor_seconds_median": round(statistics.median(processor), 3),
                "largest_gap": float(f"{max(gaps):.2g}"),
                "left_out_most": max(left),
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    load = os.getloadavg()[0]
    result = {
        "closed_form": closed_form(options.repetitions),
        "shortfall": shortfalls(),
        "machine": {
            "cores": os.cpu_count(),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "load_at_start": round(load, 1),
            "python": platform.python_version(),
        },
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
