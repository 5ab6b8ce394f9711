"""The sweep of whole books at speed: headline figures of every portfolio that `book_columns` covers.

Tables in, tables out: the rows of accounts become netted coefficients (`book_columns`, `netting`), the cube is priced
once, and the portfolios are evaluated in all scenarios shard by shard (`netted_kernel`). Which shard, device, bucket or
padding a portfolio has changes no bit of its figures. Money in USD, losses positive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa

from .book_columns import NOT_COVERED, BookColumns, columns_of, read_book
from .cube_prices import PricedCube, priced_cube
from .device_mesh import on_every_device
from .errors import ConfigurationError
from .netted_arrays import tiled_cube
from .netted_dense import evaluate_dense
from .netted_kernel import Figures, evaluate_shard
from .netted_shards import Bucket, buckets
from .netting import NettedBook, netted_book
from .scenarios import ScenarioGenerator
from .sweep_scenarios import ScenarioSet, sweep_scenarios


class SweepTables(NamedTuple):
    """One row per portfolio and one per account, sorted by id, and the accounts because of which a portfolio is in
    neither table: not covered, or with a figure that is no finite number.
    """

    portfolios: pa.Table
    nodes: pa.Table
    not_covered: pa.Table


def headline_sweep(
    tables: Mapping[str, Any],
    portfolios: pa.Table,
    source: ScenarioGenerator | ScenarioSet,
    *,
    as_of: datetime,
    seed: int = 0,
    scenarios: int | None = None,
    horizon_days: float = 1.0,
    devices: int | None = None,
    shard: int = 4096,
    dense: bool | None = None,
) -> SweepTables:
    """Headline figures of every portfolio of a book, from canonical tables (see `book_columns`).

    `source` draws the scenarios (with `seed` and `scenarios` as `engine.draw_cube`), or is a `ScenarioSet`; what needs
    a factor that it lacks is not covered. `devices` are host devices, all by default; of accelerators a process takes
    one. At most `shard` portfolios are netted and evaluated at a time, the next ones netted while these compute.
    `dense` as in `sweep_columns`. Raises `ConfigurationError` unless JAX computes in float64, and for a size, a
    horizon, a time without its zone or scenarios that mean nothing.
    """
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ConfigurationError("today's figures are float64: set jax_enable_x64 before the sweep")
    most = len(jax.local_devices()) if jax.default_backend() == "cpu" else 1
    count = most if devices is None else devices
    if not 1 <= count <= most or shard < 1:
        raise ConfigurationError(f"devices {count}, shard {shard}: expected 1 to {most} and above 0")
    if not (math.isfinite(horizon_days) and horizon_days >= 0.0) or as_of.tzinfo is None:
        raise ConfigurationError(f"horizon_days {horizon_days}, as_of {as_of}: expected 0 or more, and a time zone")
    with ThreadPoolExecutor(1) as beside:
        # The tables are read, without JAX, while the devices draw and price.
        reading = beside.submit(read_book, tables, portfolios, as_of=as_of, known=frozenset(source.factors))
        drawn = sweep_scenarios(source, seed=seed, scenarios=scenarios)
        read = reading.result()
        packing = beside.submit(columns_of, read)
        priced = priced_cube(read.cube.build(source.factors), drawn, horizon_days=horizon_days)
        book = packing.result()
    return sweep_columns(book, priced, devices=count, shard=shard, dense=dense)


def sweep_columns(
    book: BookColumns, priced: PricedCube, *, devices: int, shard: int, dense: bool | None = None
) -> SweepTables:
    """Headline figures of a packed book in a priced cube.

    `dense`: whether by the body of accelerators (`netted_dense`), which takes one device; by default where one is.
    """
    if dense is None:
        dense = jax.default_backend() != "cpu"
    owner = book.accounts.portfolio
    total = int(owner[-1]) + 1 if len(owner) else 0
    # Shards of one size, so that the last one needs no program of its own.
    size = -(-total // max(-(-total // shard), 1))
    bounds = [(first, min(first + size, total)) for first in range(0, total, size)] if total else []

    def prepared(bound: tuple[int, int]) -> tuple[BookColumns, NettedBook, list[Bucket]]:
        part = book.portfolios(*bound)
        netted = netted_book(part, priced.today, priced.lowest, priced.highest)
        return part, netted, list(buckets(netted, part.accounts.portfolio, devices=devices))

    def evaluated(bucket: Bucket) -> Figures:
        how: dict[str, Any] = {"scenarios": priced.scenarios, "equal": priced.equal}
        if dense:
            return evaluate_dense(bucket.arrays, cube, weights, **how)
        return evaluate_shard(bucket.arrays, cube, weights, **how, devices=devices)

    found: list[SweepTables] = []
    running: list[tuple[BookColumns, NettedBook, list[Bucket], list[Figures]]] = []

    def finish() -> None:
        part, netted, parts, figures = running.pop(0)
        on_host = [jax.tree.map(np.asarray, figure) for figure in figures]
        found.append(_tables(part, netted, priced.mean, parts, on_host))

    # While a shard computes, the next one is netted and the tables of the last one are made.
    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(prepared, bound) for bound in bounds[:1]]
        shared = (priced.change if dense else tiled_cube(priced.change), priced.weights)
        cube, weights = on_every_device(shared, 1 if dense else devices)
        for number in range(len(bounds)):
            part, netted, parts = waiting.pop(0).result()
            if number + 1 < len(bounds):
                waiting.append(ahead.submit(prepared, bounds[number + 1]))
            running.append((part, netted, parts, [evaluated(bucket) for bucket in parts]))
            if len(running) > 1:
                finish()
        while running:
            finish()
    parts_of = {name: [getattr(tables, name) for tables in found] for name in SweepTables._fields}
    not_covered = pa.concat_tables([book.not_covered, *parts_of["not_covered"]])
    return SweepTables(
        pa.concat_tables(parts_of["portfolios"] or [PORTFOLIOS.empty_table()]),
        pa.concat_tables(parts_of["nodes"] or [NODES.empty_table()]),
        not_covered.sort_by([(name, "ascending") for name in NOT_COVERED.names]),
    )


def _usd(name: str) -> pa.Field:
    return pa.field(name, pa.float64(), nullable=False, metadata={"unit": "USD"})


def _probability(name: str) -> pa.Field:
    return pa.field(name, pa.float64(), nullable=False, metadata={"unit": "probability"})


PORTFOLIOS = pa.schema(
    [
        pa.field("portfolio_id", pa.string(), nullable=False),
        *map(
            _usd,
            (
                "equity_usd",
                "mean_loss_usd",
                "worst_loss_usd",
                "var_99_usd",
                "es_99_usd",
                "var_995_usd",
                "es_995_usd",
                "equity_mean_usd",
                "equity_minimum_usd",
                "equity_es_99_usd",
            ),
        ),
        *map(_probability, ("p_liquidation_any", "p_liquidation_unified")),
        _usd("bad_debt_usd"),
    ]
)
"""Equity at market value; `bad_debt_usd` is the expected sum over accounts of what their equity falls below zero."""

NODES = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("portfolio_id", "node", "account_id", "venue")),
        *map(_usd, ("equity_usd", "equity_mean_usd")),
        _probability("p_liquidation"),
        _usd("bad_debt_usd"),
    ]
)
"""One row per account, the unit that a venue liquidates."""


def _tables(
    book: BookColumns,
    netted: NettedBook,
    mean: np.ndarray,
    parts: Sequence[Bucket],
    figures: Sequence[Figures],
) -> SweepTables:
    accounts, owner = book.accounts, book.accounts.portfolio
    count = int(owner[-1]) + 1
    held = np.bincount(owner)
    first = np.cumsum(held) - held
    of_portfolio = {name: np.zeros((count, *getattr(figures[0], name).shape[2:3])) for name in ("var", "es")}
    of_portfolio |= {name: np.zeros(count) for name in ("worst", "p_any", "p_unified")}
    of_account = {name: np.zeros(len(owner)) for name in ("p_account", "bad_debt")}
    for bucket, figure in zip(parts, figures, strict=True):
        there = bucket.members >= 0
        members = bucket.members[there]
        for name, column in of_portfolio.items():
            column[members] = getattr(figure, name)[there]
        slot = np.arange(figure.p_account.shape[2])
        real = slot < held[members][:, None]
        account = (first[members][:, None] + slot)[real]
        for name, column in of_account.items():
            column[account] = getattr(figure, name)[there][real]
    rows = netted.rows
    mean_change = np.bincount(rows.account, weights=rows.market * mean[rows.row], minlength=len(owner))
    equity = np.bincount(owner, weights=netted.equity)
    mean_loss = 0.0 - np.bincount(owner, weights=mean_change)
    var, es, worst = of_portfolio["var"], of_portfolio["es"], of_portfolio["worst"]
    figures_of = [equity, mean_loss, worst, var[:, 0], es[:, 0], var[:, 1], es[:, 1]]
    figures_of += [equity - mean_loss, equity - worst, equity - es[:, 0], of_portfolio["p_any"]]
    figures_of += [of_portfolio["p_unified"], np.bincount(owner, weights=of_account["bad_debt"])]
    node_figures = [netted.equity, netted.equity + mean_change, of_account["p_account"], of_account["bad_debt"]]
    # The finite ones: all of a portfolio, or nothing of it.
    wrong = ~netted.finite | ~np.isfinite(np.sum(node_figures, axis=0))
    of_whole = ~np.isfinite(np.sum(figures_of, axis=0))
    lost = of_whole | (np.bincount(owner, weights=wrong) > 0)
    kept, kept_nodes = np.flatnonzero(~lost), np.flatnonzero(~lost[owner])
    refused = np.flatnonzero(wrong | (of_whole & (np.bincount(owner, weights=wrong) == 0))[owner])
    texts = (accounts.portfolio_id, accounts.node, accounts.account_id, accounts.venue)
    return SweepTables(
        _table(PORTFOLIOS, [accounts.portfolio_id[first][kept], *(column[kept] for column in figures_of)]),
        _table(NODES, [column[kept_nodes] for column in (*texts, *node_figures)]),
        _table(
            NOT_COVERED,
            [
                accounts.portfolio_id[refused],
                accounts.account_id[refused],
                np.full(len(refused), "a figure that is no finite number", object),
            ],
        ),
    )


def _table(schema: pa.Schema, columns: Sequence[np.ndarray]) -> pa.Table:
    # A zero has no sign in a table.
    columns = [column if column.dtype == object else column + 0.0 for column in columns]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
