"""The engine against what a good engineer writes by hand: equality, time, growth, share of the floor.

    make bench                              minutes: three books, growth with few rounds
    make bench-full                         more rounds
    python -m benchmarks.race --books option_heavy --portfolios 2000 --scenarios 2560 --rounds 3 --no-growth

Results go to benchmarks/results/engine_race.json and engine_race.svg. The last lines are `ratio <peer> <stage> <book>
<value>`: how many times longer the peer takes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from .books import RaceBook, option_heavy, perp_heavy
from .peer_cube import draw_shocks
from .peers_numba import sweep_strong
from .plot import race_plot
from .quickstart_books import quickstart

RESULTS = Path(__file__).resolve().parents[1] / "results"
BOOKS = ("option_heavy", "perp_heavy", "quickstart")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description=__doc__.splitlines()[0])
    parser.add_argument("--books", nargs="+", choices=BOOKS, default=list(BOOKS))
    parser.add_argument("--portfolios", type=int, default=10_000)
    parser.add_argument("--scenarios", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--growth-rounds", type=int, default=3)
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    if min(chosen.portfolios, chosen.scenarios, chosen.rounds, chosen.growth_rounds) < 1:
        parser.error("portfolios, scenarios and rounds must be positive")

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    from . import engine, harness
    from .contenders import field_of
    from .growth import growth

    makers: Mapping[str, Callable[..., RaceBook]] = {
        "option_heavy": option_heavy,
        "perp_heavy": perp_heavy,
        "quickstart": quickstart,
    }
    ours = harness.Engine(engine.engine_shocks, engine.end_to_end, engine.kernel, engine.pricing)
    machine = harness.machine()
    results = []
    for name in chosen.books:
        book = makers[name](chosen.portfolios, seed=chosen.seed)
        try:
            result = harness.race(book, ours, scenarios=chosen.scenarios, seed=chosen.seed, rounds=chosen.rounds)
        except harness.UnequalAnswersError as problem:
            print(f"answers differ, nothing is timed: {problem}", file=sys.stderr)
            return 1
        print(f"{name}: answers equal", *harness.table_lines(result), sep="\n")
        results.append(result)

    def peer_growth(book: RaceBook, scenarios: int) -> Callable[[], object]:
        field = field_of(book, draw_shocks(book.law, scenarios, chosen.seed))
        return lambda: sweep_strong(field.rows, field.cube)

    grown = []
    if not chosen.no_growth:
        sweeps: dict[str, Callable[[RaceBook, int], Callable[[], object]]] = {
            "engine kernel": lambda book, scenarios: engine.kernel(book, scenarios, chosen.seed),
            "engine end_to_end": lambda book, scenarios: functools.partial(
                engine.end_to_end, book, scenarios, chosen.seed
            ),
            "numba_strong kernel": peer_growth,
        }
        grown = growth(sweeps, rounds=chosen.growth_rounds)
        for entry in grown:
            print(f"slope {entry['contender']} {entry['axis']} {entry['slope']:.3f}")

    chosen.output.mkdir(parents=True, exist_ok=True)
    machine |= {"load_after": os.getloadavg()[0], "peak_resident_bytes": harness.peak_resident_bytes()}
    report = {"machine": machine, "seed": chosen.seed, "books": results, "growth": grown}
    (chosen.output / "engine_race.json").write_text(json.dumps(report, indent=1) + "\n")
    (chosen.output / "engine_race.svg").write_text(race_plot(results, grown))
    for result in results:
        print(*harness.ratio_lines(result), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
