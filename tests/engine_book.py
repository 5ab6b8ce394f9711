"""From the books of `engine_accounts` to snapshots, packed portfolios, cubes and result tables.

Nothing here goes through a venue's adapter: the rows are those of `engine_markets`, `engine_rules` and
`engine_accounts`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa

from aggregator.correlation import correlation_matrix
from aggregator.engine import Cube, Detail, Headline, draw_cube, evaluate_details, evaluate_headlines
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.greeks import greeks_by_underlying, row_sensitivities
from aggregator.portfolio import Book, PackedPortfolio, pack_book
from aggregator.results import (
    Evaluated,
    account_rows,
    allocation_rows,
    histogram_rows,
    is_calculated,
    node_rows,
    portfolio_row,
    result_table,
    worst_rows,
)
from aggregator.scenarios import ScenarioGenerator
from aggregator.schema.canonical import CANONICAL
from aggregator.schema.casting import table_from_rows
from aggregator.schema.results import RESULT_KEYS, RESULTS
from aggregator.snapshot import Snapshot, take_snapshot
from tests.engine_accounts import AccountBook, desk_book
from tests.engine_markets import AS_OF, CORRELATION, DAILY_STD, Rows


def snapshot_of(tables: Rows, *, as_of: datetime | None = AS_OF) -> Snapshot:
    """The checked snapshot of canonical rows."""
    return take_snapshot(
        [{name: table_from_rows(name, tables.get(name, [])) for name in CANONICAL if name != "failures"}], as_of=as_of
    )


def packed(book: AccountBook, *, missing: frozenset[str] = frozenset()) -> Book:
    """The packed book; every account must be claimed and every row sound."""
    snapshot = snapshot_of(book.tables)
    out, unclaimed = pack_book({"main": snapshot}, book.portfolios, as_of=AS_OF, missing=missing)
    assert not unclaimed
    return out


def generator_of(factors: Sequence[str], *, scale: float = 1.0) -> ScenarioGenerator:
    """Multivariate t over `factors`, standard deviations times `scale`."""
    pairs = {pair: rho for pair, rho in CORRELATION.items() if set(pair) <= set(factors)}
    std = {name: DAILY_STD[name] * scale for name in factors}
    return multivariate_t(factors, std, correlation=correlation_matrix(factors, pairs), nu=4.0)


FACTORS = tuple(sorted(DAILY_STD))


def cube_of(book: Book, *, scenarios: int = 1000, chunk: int = 512, seed: int = 5, scale: float = 1.0) -> Cube:
    """The cube of a packed book over all factors of `DAILY_STD`, so that its draws do not depend on the book."""
    return draw_cube(
        book.cube.build(FACTORS),
        generator_of(FACTORS, scale=scale),
        seed=seed,
        scenarios=scenarios,
        chunk=chunk,
        horizon_days=1.0,
    )


def result_tables(
    portfolios: Sequence[PackedPortfolio], cube: Cube, *, devices: int = 1, detailed: bool = True
) -> dict[str, pa.Table]:
    """Result tables of the portfolios, sorted by key; with the detail of all of them, or without any."""
    figures: Sequence[Headline | None]
    if detailed:
        found = evaluate_details(portfolios, FACTORS, cube, devices=devices, worst=WORST)
        figures = [both[0] if both else None for both in found]
    else:
        figures = evaluate_headlines(portfolios, FACTORS, cube, devices=devices)
    evaluated = [Evaluated(p, h) for p, h in zip(portfolios, figures, strict=True)]
    out: Rows = {
        "portfolio_margin": [portfolio_row(e) for e in evaluated],
        "account_margin": [row for e in evaluated for row in account_rows(e)],
        "node_margin": [row for e in evaluated for row in node_rows(e)],
    }
    if detailed:
        out |= detail_rows(evaluated, [both[1] if both else None for both in found], cube)
    return {
        name: result_table(name, "run", of).sort_by([(key, "ascending") for key in RESULT_KEYS[name]])
        for name, of in out.items()
    }


def detail_rows(evaluated: Sequence[Evaluated], details: Sequence[Detail | None], cube: Cube) -> Rows:
    """Rows of the tables of detail, of the portfolios that have figures."""
    sensitivities = row_sensitivities(cube.rows, FACTORS)
    out: Rows = {name: [] for name in ("allocation", "scenarios_worst", "loss_histogram", "greeks")}
    for one, found in zip(evaluated, details, strict=True):
        if found is None or not is_calculated(one):
            continue
        out["allocation"] += allocation_rows(one, found)
        out["scenarios_worst"] += worst_rows(one, found, cube, FACTORS)
        out["loss_histogram"] += histogram_rows(one, found)
        columns = RESULTS["greeks"].names[2:]
        out["greeks"] += [
            {"portfolio_id": one.portfolio.portfolio_id} | dict(zip(columns, (name, *values), strict=True))
            for name, values in greeks_by_underlying(one.portfolio.legs, sensitivities).items()
        ]
    return out


class Desk(NamedTuple):
    """One book with everything that was computed of it; entries of the lists belong to the book's portfolios."""

    tables: Rows
    book: Book
    cube: Cube
    headlines: list[Headline]
    details: list[Detail]

    def place(self, portfolio_id: str) -> int:
        """Position of a portfolio."""
        return [p.portfolio_id for p in self.book.portfolios].index(portfolio_id)

    def portfolio(self, portfolio_id: str) -> PackedPortfolio:
        """A packed portfolio."""
        return self.book.portfolios[self.place(portfolio_id)]

    def headline(self, portfolio_id: str) -> Headline:
        """Headline figures of a portfolio."""
        return self.headlines[self.place(portfolio_id)]

    def detail(self, portfolio_id: str) -> Detail:
        """Detail figures of a portfolio."""
        return self.details[self.place(portfolio_id)]

    def evaluated(self, portfolio_id: str) -> Evaluated:
        """What the result tables are made of."""
        return Evaluated(self.portfolio(portfolio_id), self.headline(portfolio_id))


SCENARIOS = 1000
"""Not a multiple of the tile, so that there is padding of weight 0."""
WORST = 8


@functools.cache
def desk(seed: int = 2) -> Desk:
    """The desk book of a seed, computed once per process."""
    tables = desk_book(seed=seed)
    book = packed(tables)
    cube = cube_of(book)
    found = [both for both in evaluate_details(book.portfolios, FACTORS, cube, devices=1, worst=WORST) if both]
    assert len(found) == len(book.portfolios)
    return Desk(tables.tables, book, cube, [both[0] for both in found], [both[1] for both in found])


def table_bytes(tables: Mapping[str, pa.Table]) -> dict[str, bytes]:
    """Each table as the bytes of an Arrow stream."""
    out = {}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        out[name] = sink.getvalue().to_pybytes()
    return out
