"""How time grows: log-log slopes over portfolios, positions, scenarios and nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .books import RaceBook, option_heavy
from .contenders import Run
from .harness import clock


class Sizes(NamedTuple):
    """One size of the book: portfolios, mean holdings and mean nodes of one, scenarios."""

    portfolios: int = 2_000
    positions: float = 20.0
    nodes: float = 3.0
    scenarios: int = 5_120


AXES: Mapping[str, Sequence[float]] = {
    "portfolios": (2_000, 4_000, 8_000),
    "positions": (10.0, 20.0, 40.0),
    "scenarios": (2_560, 5_120, 10_240),
    "nodes": (1.5, 3.0, 6.0),
}


def growth(
    sweeps: Mapping[str, Callable[[RaceBook, int], Callable[[], object]]], *, rounds: int, base: Sizes | None = None
) -> list[dict[str, Any]]:
    """One entry per contender and axis: sizes as they came out, best seconds, and the slope of their logarithms.

    `sweeps` make a run of a book and a number of scenarios. Positions and nodes are what the book has on average, not
    what was asked of it.
    """
    base = base or Sizes()
    out = []
    for axis, values in AXES.items():
        sizes = [base._replace(**{axis: type(getattr(base, axis))(value)}) for value in values]
        books = [option_heavy(s.portfolios, positions=s.positions, nodes=s.nodes) for s in sizes]
        measured = [_measured(axis, book, s) for book, s in zip(books, sizes, strict=True)]
        for name, sweep in sweeps.items():
            runs = [
                Run(name, "growth", None, sweep(book, s.scenarios), 1.0) for book, s in zip(books, sizes, strict=True)
            ]
            best = [min(timing.wall for timing in one.rounds) for one in clock(runs, rounds)]
            slope = float(np.polyfit(np.log(measured), np.log(best), 1)[0])
            out.append({"contender": name, "axis": axis, "sizes": measured, "wall_best_s": best, "slope": slope})
    return out


def _measured(axis: str, book: RaceBook, sizes: Sizes) -> float:
    portfolios = sizes.portfolios
    if axis == "positions":
        coins = sum(asset != "USDC" for asset in book.tables["balances"]["asset_id"].to_pylist())
        return (book.tables["positions"].num_rows + coins) / portfolios
    if axis == "nodes":
        return book.tables["accounts"].num_rows / portfolios
    return float(getattr(sizes, axis))
