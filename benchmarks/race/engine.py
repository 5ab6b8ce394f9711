"""The engine in the race: its public headline sweep, and the arrays of its kernel."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aggregator.book_columns import book_columns
from aggregator.cube import CubeBuilder, OptionTerms
from aggregator.cube_prices import price_rows, priced_cube
from aggregator.generators.multivariate_t import MultivariateT, multivariate_t
from aggregator.netted_sweep import headline_sweep, sweep_columns
from aggregator.scenarios import draw_scenarios, padded_count
from aggregator.sweep_scenarios import sweep_scenarios

from .book_rows import read_rows
from .books import MarketLaw, RaceBook
from .figures import RaceTables
from .peer_cube import HORIZON_YEARS

SHARD = 4096
"""Portfolios netted and evaluated at a time, the sweep's own default."""


def generator_of(law: MarketLaw) -> MultivariateT:
    """The law of a book as the engine's own generator."""
    std = dict(zip(law.factors, law.daily_std.tolist(), strict=True))
    return multivariate_t(law.factors, std, correlation=law.correlation, nu=law.degrees_of_freedom)


def engine_shocks(book: RaceBook, scenarios: int, seed: int) -> np.ndarray:
    """What the engine draws, as the peers take it: [factors, scenarios] in the order of the law."""
    generator = generator_of(book.law)
    drawn = draw_scenarios(generator, jax.random.key(seed), 0, padded_count(scenarios))
    order = [generator.factors.index(name) for name in book.law.factors]
    return np.ascontiguousarray(np.asarray(drawn)[:scenarios, order].T)


def end_to_end(
    book: RaceBook, scenarios: int, seed: int, devices: int | None = None, dense: bool | None = None
) -> RaceTables:
    """Record batches in, result tables out. A portfolio that it does not cover is an error: nobody else skips."""
    found = headline_sweep(
        book.tables,
        book.portfolios,
        generator_of(book.law),
        as_of=book.as_of,
        seed=seed,
        scenarios=scenarios,
        devices=devices,
        shard=SHARD,
        dense=dense,
    )
    if found.not_covered.num_rows:
        raise ValueError(f"not covered: {found.not_covered.slice(0, 3).to_pylist()}")
    return RaceTables(found.portfolios, found.nodes)


def kernel(book: RaceBook, scenarios: int, seed: int, devices: int | None = None) -> Callable[[], object]:
    """The sweep from packed columns and the priced cube to result tables; netting and all statistics are in it."""
    generator = generator_of(book.law)
    columns = book_columns(book.tables, book.portfolios, as_of=book.as_of, known=frozenset(generator.factors))
    rows = columns.cube.build(generator.factors)
    priced = priced_cube(rows, sweep_scenarios(generator, seed=seed, scenarios=scenarios), horizon_days=1.0)
    most = len(jax.local_devices()) if jax.default_backend() == "cpu" else 1
    count = most if devices is None else devices
    return lambda: sweep_columns(columns, priced, devices=count, shard=SHARD)


def pricing(book: RaceBook, scenarios: int, seed: int) -> Callable[[], object]:
    """Every option of the book in every scenario, as the engine fills its cube."""
    law, terms = book.law, read_rows(book.tables, book.portfolios, book.law.factors, book.as_of).cube
    cube = CubeBuilder()
    for option in range(len(terms.strike)):
        cube.option_row(
            OptionTerms(
                forward=float(terms.forward[option]),
                strike=float(terms.strike[option]),
                years=float(terms.years[option]),
                vol=float(terms.vol[option]),
                discount=1.0,
                is_call=bool(terms.is_call[option]),
                price_factor=law.factors[terms.price_factor[option]],
                vol_factor=law.factors[terms.vol_factor[option]],
                conversion=(),
                conversion_today=1.0,
            )
        )
    rows = cube.build(law.factors)
    padded = np.zeros((padded_count(scenarios), len(law.factors)))
    padded[:scenarios] = engine_shocks(book, scenarios, seed).T
    shocks = jnp.asarray(padded)
    return lambda: jax.block_until_ready(price_rows(rows, shocks, horizon_years=HORIZON_YEARS))
