"""What all portfolios of a run share, built once: scenarios, priced cube, grid, stressed laws, named stresses.

With a target for the standard error, scenarios are added until it is reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .config import TILE, FilteredHistoryFigures, Resolved
from .engine import CONFIDENCES, Cube, draw_cube, evaluate_headlines, price_rows
from .errors import ConfigurationError
from .factors import Generation, build_generator
from .portfolio import Book
from .stress import StressLibrary
from .stress_margin import StressCube, stress_cube, stress_views
from .unified_market import priced_grid, unified_market

MOST_SCENARIOS = 1_048_576
"""No run adds scenarios beyond this."""

MOST_CUBE_BYTES = 4 << 30
"""Largest cube that scenarios are added for: rows times scenarios, in single precision."""


class RunMarket(NamedTuple):
    """The cube with everything in it, and the names behind its numbers."""

    generation: Generation
    cube: Cube
    grid_labels: tuple[str, ...]
    venues: tuple[str, ...]
    stresses: tuple[str, ...]


class TargetOutcome(NamedTuple):
    """The largest relative standard error of a pooled expected shortfall, whose it is, and why it is no smaller."""

    reached: bool
    error: float
    portfolio_id: str
    reason: str


def run_market(resolved: Resolved, book: Book, generation: Generation, library: StressLibrary | None) -> RunMarket:
    """The market of a run on a book whose factors the generation covers."""
    configuration, factors = resolved.configuration, generation.factors
    seed, chunk = configuration.run.seed, configuration.engine.scenario_chunk
    horizon = configuration.run.horizon_days
    rows = book.cube.build(factors)
    cube = draw_cube(
        rows, generation.generator, seed=seed, scenarios=generation.scenarios, chunk=chunk, horizon_days=horizon
    )
    grid = priced_grid(rows, factors, configuration.requirement)
    market = unified_market(
        rows,
        factors,
        grid,
        configuration.requirement,
        stressed=generation.stressed,
        sizes=generation.sizes,
        basis=generation.basis,
        seed=seed,
        chunk=chunk,
        horizon_days=horizon,
    )
    venues = tuple(sorted({info.venue for portfolio in book.portfolios for info in portfolio.accounts}))
    names = () if library is None else tuple(library.stress)
    both = (market, None if library is None else _stressed(library, names, cube, factors, venues))
    whole = eqx.tree_at(lambda c: (c.unified, c.stress), cube, both, is_leaf=lambda leaf: leaf is None)
    return RunMarket(generation, whole, grid.labels, venues, names)


def _stressed(
    library: StressLibrary, names: Sequence[str], cube: Cube, factors: Sequence[str], venues: Sequence[str]
) -> StressCube:
    views = stress_views(library, names, factors, venues, tile=TILE)
    change = price_rows(cube.rows, jnp.asarray(views.shocks), horizon_years=0.0)
    return stress_cube(library, names, views, change, venues)


def market_with_target(
    resolved: Resolved,
    book: Book,
    generation: Generation,
    library: StressLibrary | None,
    as_of: datetime,
    *,
    devices: int,
    note: Callable[[int], None],
) -> tuple[RunMarket, TargetOutcome]:
    """The market with as many scenarios as the target of the configuration takes, doubling from the configured number.

    `note` hears of every number that is tried. The target counts as missed when a generator has a scenario set of its
    own, when the cube or the number of scenarios would grow beyond its bound, or when no error can be estimated; the
    outcome says which. The last market is returned in any case.
    """
    target = resolved.configuration.run.target_error
    if target is None:
        raise ConfigurationError("run.target_error is not set")
    while True:
        market = run_market(resolved, book, generation, library)
        note(int(np.count_nonzero(np.asarray(market.cube.weights))))
        error, worst = _largest_error(resolved, book, market, devices)
        if not math.isfinite(error):
            return market, TargetOutcome(False, error, worst, "no portfolio has an error estimate: too few scenarios")
        if error <= target:
            return market, TargetOutcome(True, error, worst, "")
        figures = resolved.configuration.scenarios
        if isinstance(figures, FilteredHistoryFigures) and not figures.scenarios:
            reason = "every date of the history is a scenario already; more need scenarios.scenarios or longer history"
            return market, TargetOutcome(False, error, worst, reason)
        more = 2 * figures.scenarios
        size = 4 * more * int(market.cube.today.shape[0])
        if more > MOST_SCENARIOS or size > MOST_CUBE_BYTES:
            bound = f"{MOST_SCENARIOS:,} scenarios" if more > MOST_SCENARIOS else f"{MOST_CUBE_BYTES >> 30} GiB of cube"
            return market, TargetOutcome(False, error, worst, f"{more:,} scenarios are beyond the bound of {bound}")
        changed = figures.model_copy(update={"scenarios": more})
        configuration = resolved.configuration.model_copy(update={"scenarios": changed})
        resolved = resolved.model_copy(update={"configuration": configuration})
        generation = build_generator(resolved, book.factors(), as_of)


def _largest_error(resolved: Resolved, book: Book, market: RunMarket, devices: int) -> tuple[float, str]:
    """The largest ratio of standard error to pooled expected shortfall at 99 % over the portfolios, and whose it is."""
    headlines = evaluate_headlines(
        book.portfolios,
        market.generation.factors,
        market.cube,
        devices=devices,
        policy=resolved.configuration.requirement,
        venues=market.venues,
    )
    level = CONFIDENCES.index(0.99)
    found = [
        (float(h.unified.es_error[level]) / float(h.pooled_es[level]), p.portfolio_id)
        for p, h in zip(book.portfolios, headlines, strict=True)
        if h is not None and h.unified is not None and h.finite and float(h.pooled_es[level]) > 0.0
    ]
    known = [pair for pair in found if math.isfinite(pair[0])]
    return max(known, default=(math.nan, ""))
