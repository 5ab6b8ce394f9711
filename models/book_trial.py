"""The book of a run and its trial: the same positions under the tiers in force and under the recommended ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import jax

from aggregator.config import Resolved
from aggregator.cube import CubeRows
from aggregator.engine import Cube, draw_cube
from aggregator.errors import ConfigurationError
from aggregator.factors import Generation, build_generator, build_path_generator
from aggregator.path_margin import PathLaw
from aggregator.portfolio import Book, pack_book
from aggregator.snapshot import Snapshot
from aggregator.tier_paths import PricedPaths, priced_paths
from aggregator.tier_trial import TrialRow, repacked, trial_rows, with_rows

from .collateral_in_force import with_weights
from .early_warning import EarlyWarning, early_warning
from .markets_in_force import with_ladders
from .scenario_forecast import without_forecast
from .tier_ladder import Ladder


def book_of_run(resolved: Resolved, snapshots: Mapping[str, Snapshot], as_of: datetime) -> tuple[Book, Generation]:
    """The book of the run and what moves it, as the sweep has them."""
    portfolios = resolved.configuration.portfolios
    book, unclaimed = pack_book(snapshots, portfolios, as_of=as_of)
    if unclaimed:
        raise ConfigurationError(f"accounts that no portfolio maps: {', '.join(unclaimed)}; add them to [portfolios]")
    generation = build_generator(resolved, book.factors(), as_of)
    if generation.missing:
        book, _ = pack_book(snapshots, portfolios, as_of=as_of, missing=generation.missing)
    return book, generation


def trial_of_book(
    resolved: Resolved,
    snapshots: Mapping[str, Snapshot],
    book: Book,
    generation: Generation,
    ladders: Mapping[str, Ladder],
    weights: Mapping[str, Sequence[tuple[int, int]]],
    as_of: datetime,
) -> list[TrialRow]:
    """Every portfolio and venue under the tiers in force and under `ladders` (by market) and `weights` (by name)."""
    changed: Mapping[str, Snapshot] = snapshots
    for table, rows_after in (
        ("margin_tiers", lambda rows: with_ladders(rows, ladders)),
        ("collateral_tiers", lambda rows: with_weights(rows, weights)),
    ):
        changed = with_rows(changed, table, {name: rows_after(s.tables[table]) for name, s in snapshots.items()})
    portfolios = resolved.configuration.portfolios
    other = repacked(book, changed, portfolios, as_of=as_of, missing=generation.missing)
    cube = _cube(resolved, book, generation)
    paths = _paths(resolved, cube.rows, generation, as_of)
    return trial_rows(book, other, generation.factors, cube, paths=paths, devices=_devices(resolved))


def warning_of_book(
    resolved: Resolved, book: Book, generation: Generation, trial: Sequence[TrialRow], as_of: datetime
) -> EarlyWarning | None:
    """The book by the scale of its own history beside `trial`; None where the scenarios have no forecast."""
    plain = without_forecast(resolved)
    if plain is None:
        return None
    other = build_generator(plain, book.factors(), as_of)
    cube = _cube(plain, book, other)
    paths = _paths(plain, cube.rows, other, as_of)
    rows = trial_rows(book, book, other.factors, cube, paths=paths, devices=_devices(plain))
    return early_warning(rows, trial, generation)


def _cube(resolved: Resolved, book: Book, generation: Generation) -> Cube:
    configuration = resolved.configuration
    return draw_cube(
        book.cube.build(generation.factors),
        generation.generator,
        seed=configuration.run.seed,
        scenarios=generation.scenarios,
        chunk=configuration.engine.scenario_chunk,
        horizon_days=configuration.run.horizon_days,
    )


def _paths(resolved: Resolved, rows: CubeRows, generation: Generation, as_of: datetime) -> PricedPaths | None:
    """The paths of the run; None where none are configured."""
    run, paths = resolved.configuration.run, resolved.configuration.paths
    if not paths.scenarios:
        return None
    step = build_path_generator(resolved, generation.factors, as_of)
    law = PathLaw(step.generator, run.seed, step.scenarios, paths.steps, run.horizon_days / paths.steps)
    return priced_paths(rows, generation.factors, law)


def _devices(resolved: Resolved) -> int:
    wanted, available = resolved.configuration.engine.host_devices, len(jax.devices())
    return min(wanted, available) if wanted else available
