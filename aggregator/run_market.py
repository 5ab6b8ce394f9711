"""What all portfolios of a run share, built once: scenarios, priced cube, grid, stressed laws, named stresses.

With a target for the standard error, scenarios are added until it is reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .calibrated_overlays import drought_law
from .config import TILE, CalibratedFigures, FilteredHistoryFigures, MultivariateTFigures, Resolved
from .engine import CONFIDENCES, Cube, draw_cube, evaluate_headlines, priced
from .errors import ConfigurationError
from .factors import Generation, MarketSize, build_generator
from .overlays.liquidity_drought import tail_depth
from .portfolio import Book
from .stress import StressLibrary
from .stress_margin import StressCube, joined_columns, stress_cube, stress_views
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
        sizes=thinned_sizes(resolved.configuration.scenarios, generation, cube),
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


def thinned_sizes(
    figures: MultivariateTFigures | FilteredHistoryFigures | CalibratedFigures, generation: Generation, cube: Cube
) -> Mapping[str, MarketSize]:
    """Sizes of markets by price factor; with the overlay `liquidity_drought` those that are left when it matters.

    What is liquidated is liquidated after a wide move: volume is multiplied and spread divided by the mean depth over
    the widest 1 % of the asset's moves, up or down.
    """
    if not isinstance(figures, CalibratedFigures) or "liquidity_drought" not in figures.overlays:
        return generation.sizes
    shocks, weights = np.asarray(cube.shocks), np.asarray(cube.weights)
    out = dict(generation.sizes)
    for column, name in enumerate(generation.factors):
        size = out.get(name)
        if size is not None:
            law = drought_law(figures, size.daily_vol)
            depth = tail_depth(law, shocks[:, column], weights, tail=1.0 - CONFIDENCES[0])
            out[name] = MarketSize(size.daily_volume * depth, size.daily_vol, size.spread / depth)
    return out


def _stressed(
    library: StressLibrary, names: Sequence[str], cube: Cube, factors: Sequence[str], venues: Sequence[str]
) -> StressCube:
    views = stress_views(library, names, factors, venues, tile=TILE)
    change = priced(cube.rows, jnp.asarray(views.shocks), horizon_years=0.0)
    joined = joined_columns(cube.change, cube.shocks, cube.horizon_years, change, views)
    return stress_cube(library, names, views, change, joined, venues)


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
        found = _relative_errors(resolved, book, market, devices)
        if not found:
            reason = "no portfolio has a pooled expected shortfall above 0, so there is no error to bring down"
            return market, TargetOutcome(False, math.nan, "", reason)
        # One without an estimate is not below the target, whatever the others are: more scenarios may give it one.
        error, worst = max(found, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
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


def _relative_errors(resolved: Resolved, book: Book, market: RunMarket, devices: int) -> list[tuple[float, str]]:
    """Ratio of standard error to expected shortfall at 99 % by portfolio, NaN without an estimate.

    Of the shortfall that is shown, of all lines pooled, and of the requirement's, in which collateral at a haircut
    stands still. Portfolios without such a shortfall above 0 have none.
    """
    headlines = evaluate_headlines(
        book.portfolios,
        market.generation.factors,
        market.cube,
        devices=devices,
        policy=resolved.configuration.requirement,
        venues=market.venues,
    )
    level = CONFIDENCES.index(0.99)
    out = []
    for portfolio, h in zip(book.portfolios, headlines, strict=True):
        if h is None or h.unified is None or not h.finite:
            continue
        shown = float(h.unified.es_error[level]), float(h.pooled_es[level])
        moving = float(h.unified.es_current_error[level]), float(h.unified.components.es_current[-1, level])
        out += [(error / figure, portfolio.portfolio_id) for error, figure in (shown, moving) if figure > 0.0]
    return out


def requirement_gaps(generation: Generation) -> tuple[str, ...]:
    """What the scenarios of a run leave out of its requirement, a sentence each.

    Without a stressed law there is no stressed shortfall, without any sizes of markets no charge for liquidity and
    concentration: both make the requirement smaller than it is meant to be.
    """
    out = []
    if not generation.stressed:
        out.append(
            "the scenarios have no stressed law: the requirement has no stressed expected shortfall; use a calibration "
            "with its stressed laws"
        )
    if not generation.sizes:
        out.append(
            "no market has a known size: nothing is charged for liquidity and concentration; use a calibration, or "
            "give sizes under requirement.liquidity.assets"
        )
    return tuple(out)
