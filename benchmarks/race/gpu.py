"""The sweep on an accelerator: the same figures as on the CPU, then its time at the sizes that the targets name.

Needs JAX, Equinox, NumPy, SciPy (which JAX brings) and pyarrow, nothing else. Without an accelerator that JAX can see
it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from .books import option_heavy
from .figures import differences

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu_sweep.json"


class Size(NamedTuple):
    """A book and a number of scenarios."""

    name: str
    portfolios: int
    instruments: int
    scenarios: int


PARITY = Size("parity", 500, 500, 4_096)
SIZES = (
    Size("small", 1_000, 500, 10_000),
    Size("10,000 portfolios", 10_000, 2_000, 10_000),
    Size("medium", 100_000, 2_000, 10_000),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--largest", type=int, default=SIZES[-1].portfolios, help="leave out sizes above it")
    chosen = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    device = jax.devices()[0]
    if device.platform == "cpu":
        print("no accelerator that JAX can see: nothing was compared and nothing was measured", file=sys.stderr)
        return 3

    problems = parity(chosen.seed)
    for problem in problems:
        print(f"parity: {problem}", file=sys.stderr)
    report: dict[str, Any] = {
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "equinox", "numpy", "pyarrow")
        },
        "seed": chosen.seed,
        "parity": problems or "equal to the CPU within the race's tolerances",
        "sizes": [],
    }
    if not problems:
        for size in SIZES:
            if size.portfolios <= chosen.largest:
                report["sizes"].append(timed(size, chosen.seed, chosen.rounds))
                print(json.dumps(report["sizes"][-1]))
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if problems else 0


def parity(seed: int) -> list[str]:
    """What differs between the first accelerator and the CPU, each with its own body, on one book; empty where nothing
    does.
    """
    from .engine import end_to_end

    book = option_heavy(PARITY.portfolios, PARITY.instruments, seed)
    there = end_to_end(book, PARITY.scenarios, seed)
    with jax.default_device(jax.devices("cpu")[0]):
        here = end_to_end(book, PARITY.scenarios, seed, dense=False)
    return differences(there, here, PARITY.scenarios)


def timed(size: Size, seed: int, rounds: int) -> dict[str, Any]:
    """Seconds of one size at both stages: the first call with its compilation, the best and the median round."""
    from .engine import end_to_end, kernel

    book = option_heavy(size.portfolios, size.instruments, seed)
    figures: dict[str, Any] = size._asdict() | {"accounts": book.tables["accounts"].num_rows}
    figures["end_to_end"] = _rounds(lambda: end_to_end(book, size.scenarios, seed), rounds)
    figures["kernel"] = _rounds(kernel(book, size.scenarios, seed), rounds)
    stats = jax.devices()[0].memory_stats() or {}
    figures["device_peak_bytes"] = stats.get("peak_bytes_in_use")
    best = figures["kernel"]["wall_best_s"]
    figures["portfolio_scenarios_per_s"] = size.portfolios * size.scenarios / best
    return figures


def _rounds(call: Callable[[], object], rounds: int) -> dict[str, float]:
    walls = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        walls.append(time.perf_counter() - start)
    return {
        "first_call_s": walls[0],
        "wall_best_s": min(walls[1:]),
        "wall_median_s": statistics.median(walls[1:]),
    }


if __name__ == "__main__":
    sys.exit(main())
