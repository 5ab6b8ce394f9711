"""One sweep in a process of its own: how long until its first shard computes, how much memory it adds.

    python -m benchmarks.race.one_sweep BOOK PORTFOLIOS SCENARIOS [--started SECONDS]

Prints one line of JSON. The book is made in the process; the time that takes is not counted. `--started` is the time of
day at which the process was asked for. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    began = time.time()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race.one_sweep", description=__doc__.splitlines()[0])
    parser.add_argument("book", choices=("option_heavy", "perp_heavy"))
    parser.add_argument("portfolios", type=int)
    parser.add_argument("scenarios", type=int)
    parser.add_argument("--shard", type=int, default=4096)
    parser.add_argument("--started", type=float, default=began)
    chosen = parser.parse_args()

    import jax

    jax.config.update("jax_enable_x64", True)
    import aggregator.netted_sweep as sweep

    from . import books
    from .engine import generator_of

    at = time.time()
    book = getattr(books, chosen.book)(chosen.portfolios)
    gc.collect()
    of_book = time.time() - at
    computing: list[float] = []
    evaluate: Any = vars(sweep)["evaluate_shard"]

    def noted(*arguments: object, **options: object) -> object:
        found = evaluate(*arguments, **options)
        computing.append(time.time())
        return found

    vars(sweep)["evaluate_shard"] = noted
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    begins = time.time()
    found = sweep.headline_sweep(
        book.tables,
        book.portfolios,
        generator_of(book.law),
        as_of=book.as_of,
        seed=1,
        scenarios=chosen.scenarios,
        shard=chosen.shard,
    )
    report = {
        "book": chosen.book,
        "portfolios": found.portfolios.num_rows,
        "scenarios": chosen.scenarios,
        "input_bytes": sum(table.nbytes for table in book.tables.values()) + book.portfolios.nbytes,
        "peak_bytes_above_input": _resident("VmHWM") - before,
        "start_to_first_shard_s": computing[0] - chosen.started - of_book,
        "sweep_to_first_shard_s": computing[0] - begins,
        "sweep_s": time.time() - begins,
        "processor_s": time.process_time(),
    }
    print(json.dumps(report))
    return 0


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name + ":")).split()[1])


if __name__ == "__main__":
    sys.exit(main())
