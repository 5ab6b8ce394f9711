"""Error of the expected shortfall with rare jumps: drawn as they come, and in strata with weights.

    .venv/bin/python -m benchmarks.rare_jump_error [--repetitions 24] [--tune] [--write]

The desk of `configs/quickstart.toml` (north-desk, pooled losses, 16,384 Sobol points, in full revaluation) under the
calibrated t copula, with jumps of its stablecoins and of staked ETH on top: a few in a thousand scenarios, several per
cent deep. Every repetition has another seed. The error of a way is the standard deviation of ES over the repetitions;
its bias is the mean over them against that of all jumps as they come with the standard error of the difference. In one
repetition all ways have the same points and differ in their jumps alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aggregator.config import load_configuration
from aggregator.engine import CONFIDENCES, Cube, draw_cube, evaluate_headlines
from aggregator.factors import build_generator
from aggregator.overlays.jump_strata import SHARE, JumpDesign, jump_strata
from aggregator.overlays.rare_jumps import RareJumps
from aggregator.portfolio import Book, pack_book
from aggregator.run_inputs import read_inputs
from aggregator.scenarios import ScenarioGenerator
from aggregator.sobol_points import BLOCKS

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "rare_jump_error.json"
QUICKSTART = ROOT.parent / "configs" / "quickstart.toml"
PORTFOLIO = "north-desk"
OVERLAYS = 'scenarios.overlays=["depeg", "lst_discount"]'
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


def with_share(generator: RareJumps, seed: int, scenarios: int, share: float) -> RareJumps:
    """The generator with another share of its scenarios for the jumps."""
    design = JumpDesign(jax.random.key(seed), scenarios, scenarios // BLOCKS, share=share)
    rates = generator.rates
    strata = jump_strata(design, np.asarray(rates.expected_jumps), np.asarray(rates.stress_loading))
    own = generator.base.own_weights
    assert own is not None
    weights = np.asarray(own) * np.asarray(strata.ratios)
    return dataclasses.replace(generator, strata=strata, weights=jnp.asarray(weights / math.fsum(weights)))


def shortfalls(book: Book, cube: Cube, factors: tuple[str, ...]) -> list[float]:
    """ES of the desk at every confidence."""
    found = evaluate_headlines(book.portfolios, factors, cube, devices=1)
    place = [portfolio.portfolio_id for portfolio in book.portfolios].index(PORTFOLIO)
    headline = found[place]
    assert headline is not None
    return [float(value) for value in headline.pooled_es]


def one_repetition(book: Book, as_of: datetime, seed: int, shares: tuple[float, ...]) -> dict[str, list[float]]:
    """ES of every way under one seed."""
    found: dict[str, list[float]] = {}
    for overlays in ((), (OVERLAYS,)):
        resolved = load_configuration(QUICKSTART, overrides=[*overlays, "scenarios.stressed=[]", f"run.seed={seed}"])
        run = resolved.configuration.run
        generation = build_generator(resolved, book.factors(), as_of)
        count = resolved.configuration.scenarios.scenarios
        ways: dict[str, ScenarioGenerator] = {"without": generation.generator}
        if isinstance(generation.generator, RareJumps):
            jumps = generation.generator
            plain = dataclasses.replace(jumps, strata=None, weights=None)
            ways = {"as_they_come": plain, "in_strata": jumps}
            ways |= {f"share {share:g}": with_share(jumps, seed, count, share) for share in shares}
        rows = book.cube.build(generation.factors)
        for name, generator in ways.items():
            cube = draw_cube(rows, generator, seed=seed, scenarios=None, chunk=4096, horizon_days=run.horizon_days)
            found[name] = shortfalls(book, cube, generation.factors)
    return found


def main() -> None:
    """Measure, print and keep the errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--tune", action="store_true", help="print the error for several shares")
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    resolved = load_configuration(QUICKSTART)
    inputs = read_inputs(resolved, lambda stage, done, total: None)
    book, _ = pack_book(inputs.snapshots, resolved.configuration.portfolios, as_of=inputs.as_of)
    shares = SHARES if arguments.tune else ()
    runs = [one_repetition(book, inputs.as_of, 1000 + number, shares) for number in range(arguments.repetitions)]
    record: dict[str, Any] = {
        "portfolio": PORTFOLIO,
        "scenarios": resolved.configuration.scenarios.scenarios,
        "repetitions": arguments.repetitions,
        "share": SHARE,
        "ways": {},
    }
    for name in runs[0]:
        figures = np.array([run[name] for run in runs])
        plain = np.array([run["as_they_come"] for run in runs])
        difference = np.std(figures - plain, axis=0, ddof=1) / math.sqrt(len(runs))
        record["ways"][name] = {
            f"es_{level:g}": {
                "mean_usd": round(float(figures[:, at].mean())),
                "standard_error_usd": round(float(np.std(figures[:, at], ddof=1))),
                "mean_over_as_they_come_usd": round(float((figures - plain)[:, at].mean())),
                "its_standard_error_usd": round(float(difference[at])),
            }
            for at, level in enumerate(CONFIDENCES)
        }
    record["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(record, indent=2))
    if arguments.write:
        RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
