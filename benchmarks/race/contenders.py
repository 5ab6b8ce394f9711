"""Who races: the engine and its peers, each with the kernel alone and from Arrow to Arrow, on equal work.

`kernel`: the cube and the book's arrays lie ready, the figures come back. `end_to_end`: the canonical record batches of
the book come in and the result tables go out; joining, scenarios, cube and whatever a contender prepares are its own.
Peers that would take hours do a slice of the portfolios; what grows with portfolios is then scaled, what does not is
not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import peer_cube, peer_duckdb, peer_numpy, peer_pandas, peer_quantlib, peers_numba
from .book_rows import BookRows, first_portfolios, read_rows
from .books import RaceBook
from .figures import Figures, RaceTables, to_tables

SLICES: Mapping[str, int] = {"numpy": 200, "pandas": 5, "duckdb": 5}
"""Portfolios that the slow peers do; the others do all."""
QUANTLIB_OPTIONS = 5

Sweep = Callable[[BookRows, np.ndarray], Figures]
_SWEEPS: Mapping[str, Sweep] = {
    "numba_ordinary": peers_numba.sweep_ordinary,
    "numba_strong": peers_numba.sweep_strong,
    "numpy": peer_numpy.sweep,
    "pandas": peer_pandas.sweep,
    "duckdb": peer_duckdb.sweep,
}


class Run(NamedTuple):
    """One thing to time: `fixed()` once and `scaled()` as often as `scale` says make up the whole work."""

    contender: str
    stage: str
    fixed: Callable[[], object] | None
    scaled: Callable[[], object]
    scale: float


class Field(NamedTuple):
    """A book read once by the peers, on the scenarios that everybody is compared on."""

    book: RaceBook
    rows: BookRows
    cube: np.ndarray
    shocks: np.ndarray

    @property
    def scenarios(self) -> int:
        """Number of scenarios."""
        return self.cube.shape[1]


def field_of(book: RaceBook, shocks: np.ndarray) -> Field:
    """The field from shocks [factors, scenarios]."""
    rows = read_rows(book.tables, book.portfolios, book.law.factors, book.as_of)
    return Field(book, rows, peers_numba.cube_changes(rows.cube, shocks), shocks)


def peer_answers(field: Field) -> dict[str, tuple[RaceTables, float]]:
    """What each peer answers, the slow ones for their slice, and the seconds that it took."""
    out = {}
    for name, sweep in _SWEEPS.items():
        rows = _own_rows(name, field.rows)
        start = time.perf_counter()
        answer = to_tables(rows, sweep(rows, field.cube), field.scenarios)
        out[name] = answer, time.perf_counter() - start
    return out


def restricted(tables: RaceTables, portfolio_ids: pa.Array) -> RaceTables:
    """The rows of some portfolios."""
    return RaceTables(*(table.filter(pc.is_in(table["portfolio_id"], value_set=portfolio_ids)) for table in tables))


def peer_runs(field: Field, *, seed: int) -> list[Run]:
    """Every peer at both stages; QuantLib prices options alone."""
    book, scenarios = field.book, field.scenarios
    portfolios = len(field.rows.portfolio_id)
    runs = []
    for name, sweep in _SWEEPS.items():
        rows = _own_rows(name, field.rows)
        scale = portfolios / len(rows.portfolio_id)
        runs.append(Run(name, "kernel", None, _kernel(sweep, rows, field.cube), scale))
        price = peers_numba.cube_changes if name.startswith("numba") else peer_cube.cube_changes
        if name in SLICES:
            runs.append(
                Run(
                    name,
                    "end_to_end",
                    _prepared(book, price, scenarios, seed),
                    _answered(sweep, rows, field.cube, scenarios),
                    scale,
                )
            )
        else:
            runs.append(Run(name, "end_to_end", None, _whole(book, sweep, price, scenarios, seed), 1.0))
    options = len(field.rows.cube.strike)
    if options:
        some = min(options, QUANTLIB_OPTIONS)
        runs.append(
            Run(
                "quantlib",
                "pricing",
                None,
                lambda: peer_quantlib.option_changes(field.rows.cube, field.shocks, some),
                options / some,
            )
        )
    return runs


def _own_rows(name: str, rows: BookRows) -> BookRows:
    return first_portfolios(rows, min(SLICES.get(name, len(rows.portfolio_id)), len(rows.portfolio_id)))


def _kernel(sweep: Sweep, rows: BookRows, cube: np.ndarray) -> Callable[[], object]:
    return lambda: sweep(rows, cube)


def _answered(sweep: Sweep, rows: BookRows, cube: np.ndarray, scenarios: int) -> Callable[[], object]:
    return lambda: to_tables(rows, sweep(rows, cube), scenarios)


Price = Callable[[peer_cube.CubeTerms, np.ndarray], np.ndarray]


def _prepared(book: RaceBook, price: Price, scenarios: int, seed: int) -> Callable[[], tuple[BookRows, np.ndarray]]:
    def prepare() -> tuple[BookRows, np.ndarray]:
        rows = read_rows(book.tables, book.portfolios, book.law.factors, book.as_of)
        return rows, price(rows.cube, peer_cube.draw_shocks(book.law, scenarios, seed))

    return prepare


def _whole(book: RaceBook, sweep: Sweep, price: Price, scenarios: int, seed: int) -> Callable[[], RaceTables]:
    prepare = _prepared(book, price, scenarios, seed)

    def answer() -> RaceTables:
        rows, cube = prepare()
        return to_tables(rows, sweep(rows, cube), scenarios)

    return answer
