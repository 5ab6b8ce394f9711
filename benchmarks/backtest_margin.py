"""The margin backtest on a recorded market history, and how much the choice of the filtered history's rule matters.

    .venv/bin/python -m benchmarks.backtest_margin HISTORY CONTEXT [--start DATE] [--only backtest|study] [--write]

Runs `crossmargin backtest-margin` with its defaults, then counts the exceptions of BTC and ETH, both sides, under many
rules of filtered historical simulation from several start dates. How often a perfect model would keep the target on all
of them is simulated, because with that many cells one of them misses by chance. `--write` puts everything into
`benchmarks/results/backtest_margin.json`; with `--only` the other part stays there as it is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from aggregator.backtest_margin import LEAST_CHRISTOFFERSEN, LEAST_KUPIEC, tail_of
from aggregator.backtest_request import Backtest, backtest_document, run_backtest
from aggregator.backtest_statistics import christoffersen_independence, kupiec, largest_increase, peak_to_trough
from aggregator.history import age_weights, ewma_volatility
from aggregator.history_tables import ReturnPanel, read_history_table, return_panel

RESULTS = Path(__file__).resolve().parent / "results" / "backtest_margin.json"
CONFIDENCE = 0.99
LEAST_DAYS = 250

DECAYS = (0.94, 0.95, 0.96, 0.97, 0.98)
FLOORS = (0.0, 0.5, 0.7)
WEIGHTINGS = (
    ("all", 0), ("window", 365), ("window", 730), ("window", 1000),
    ("half_life", 365), ("half_life", 600), ("half_life", 730), ("half_life", 1000), ("half_life", 1500),
)  # fmt: skip
STARTS = {
    "perp": ("2021-01-01", "2021-07-01", "2022-01-01", "2022-07-01"),
    "perp+spot": ("2019-01-01", "2020-01-01", "2021-01-01", "2021-07-01", "2022-01-01", "2022-07-01"),
}
"""The perpetuals begin in 2020, and a year of residuals has to lie before the first forecast."""


def kept(hits: np.ndarray) -> bool:
    """The target: Kupiec, Christoffersen and the share of exceptions, as in `aggregator.backtest_margin`."""
    count, exceptions = len(hits), int(np.count_nonzero(hits))
    share = kupiec(exceptions, count, confidence=CONFIDENCE).p_value >= LEAST_KUPIEC
    spacing = christoffersen_independence(hits).p_value >= LEAST_CHRISTOFFERSEN
    return share and spacing and 0.005 <= exceptions / count <= 0.015


def forecasts(
    panel: ReturnPanel, column: int, side: float, decay: float, floor: float, weighting: tuple[str, int], first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exceptions and expected shortfalls from position `first` on of one asset held long (1) or short (-1)."""
    returns = panel.returns[:, column]
    volatility = ewma_volatility(panel.returns[:, [column]], decay=decay, floor_fraction=floor)[:, 0]
    residuals = returns / volatility[:-1]
    begin = int(np.flatnonzero(np.isfinite(residuals))[0])
    kind, length = weighting
    hits, shortfalls = [], []
    for t in range(first, len(returns)):
        since = max(begin, t - length) if kind == "window" else begin
        losses = -side * np.expm1(volatility[t] * residuals[since:t])
        weights = age_weights(panel.dates[since:t], length if kind == "half_life" else None)
        tail = tail_of(losses, weights, CONFIDENCE)
        hits.append(-side * np.expm1(returns[t]) > tail.value_at_risk)
        shortfalls.append(float(tail.points.mean()))
    return np.array(hits), np.array(shortfalls)


def rule_figures(panel: ReturnPanel, history: str, decay: float, floor: float, weighting: tuple[str, int]) -> Any:
    """Which cells (asset, side, start) a rule misses, and how its requirement moves from 2021 on."""
    starts = STARTS[history]
    first = int(np.searchsorted(panel.dates, np.datetime64(starts[0])))
    since_2021 = int(np.searchsorted(panel.dates, np.datetime64("2021-01-01"))) - first
    missed, increases, swings, levels = [], [], [], []
    for column, asset in enumerate(("BTC", "ETH")):
        for side, name in ((1.0, "long"), (-1.0, "short")):
            hits, shortfalls = forecasts(panel, column, side, decay, floor, weighting, first)
            for start in starts:
                begin = int(np.searchsorted(panel.dates, np.datetime64(start))) - first
                if not kept(hits[begin:]):
                    missed.append(f"{asset} {name} from {start}: {int(hits[begin:].sum())} in {len(hits) - begin}")
            increases.append(largest_increase(shortfalls[since_2021:], 5))
            swings.append(peak_to_trough(shortfalls[since_2021:], 30))
            levels.append(float(shortfalls[since_2021:].mean()))
    return {
        "history": history,
        "decay": decay,
        "floor_fraction": floor,
        "weighting": " ".join(str(part) for part in weighting if part),
        "cells": 4 * len(starts),
        "missed": missed,
        "increase_5d": max(increases),
        "peak_to_trough_30d": max(swings),
        "requirement_mean": float(np.mean(levels)),
    }


def perfect_model(dates: np.ndarray, starts: tuple[str, ...], draws: int = 4000) -> float:
    """Probability that a model whose exceptions are independent with probability 1 % keeps every cell."""
    first = int(np.searchsorted(dates, np.datetime64(starts[0])))
    begins = [int(np.searchsorted(dates, np.datetime64(start))) - first for start in starts]
    generator = np.random.Generator(np.random.Philox(key=1))
    good = 0
    for _ in range(draws):
        hits = generator.random(len(dates) - first) < 1.0 - CONFIDENCE
        good += all(kept(hits[begin:]) for begin in begins)
    # four series, taken as independent: the real ones depend on each other, so that they miss together more often
    return (good / draws) ** 4


def study(path: Path) -> dict[str, Any]:
    """Every rule of the grid on both histories."""
    table = read_history_table(path)
    rows, chance = [], {}
    for history, starts in STARTS.items():
        markets = tuple(history.split("+"))
        panel, _ = return_panel(table, ["BTC", "ETH"], markets=markets, splice=len(markets) > 1)
        chance[history] = perfect_model(panel.dates, starts)
        for decay, floor, weighting in itertools.product(DECAYS, FLOORS, WEIGHTINGS):
            rows.append(rule_figures(panel, history, decay, floor, weighting))
    return {
        "confidence": CONFIDENCE,
        "starts": STARTS,
        "variants": len(rows),
        "kept_everywhere": sum(not row["missed"] for row in rows),
        "perfect_model_keeps_everywhere": chance,
        "rules": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("history", type=Path)
    parser.add_argument("context", type=Path)
    parser.add_argument("--start", default="2021-01-01")
    parser.add_argument("--only", choices=("backtest", "study"))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if arguments.only and RESULTS.exists() else {}
    found["machine"] = {
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "cpu_count": os.cpu_count(),
    }
    if arguments.only != "study":
        figures = Backtest(
            history=str(arguments.history.resolve()),
            context=str(arguments.context.resolve()),
            start=date.fromisoformat(arguments.start),
        )
        before = time.process_time()
        tested = run_backtest(figures, Path.cwd())
        found["processor_seconds"] = round(time.process_time() - before, 1)
        found["backtest"] = backtest_document(tested)
    if arguments.only != "backtest":
        found["study"] = study(arguments.history)
    text = json.dumps(found, indent=1)
    if arguments.write:
        RESULTS.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
