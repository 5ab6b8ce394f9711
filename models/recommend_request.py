"""The verb `recommend`: forecasts become tiers, the tiers go back through the engine, and both are written.

What is read of the venues is passed in; the clock is not read, a recommendation is dated with the instant of the run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.config import Resolved
from aggregator.cube import CubeRows
from aggregator.engine import Cube, draw_cube
from aggregator.errors import ConfigurationError, DataError, Failure
from aggregator.factors import Generation, build_generator, build_path_generator
from aggregator.path_margin import PathLaw
from aggregator.portfolio import Book, pack_book
from aggregator.report_tiers import write_tiers_page
from aggregator.schema import TIME
from aggregator.snapshot import Snapshot
from aggregator.tier_paths import PricedPaths, priced_paths
from aggregator.tier_tables import RECOMMENDATIONS_TABLE, TRIAL_TABLE, append_once, read_table, trial_table
from aggregator.tier_trial import TrialRow, repacked, trial_rows, with_margin_tiers
from aggregator.unit_requirement import unit_requirements

from .market_files import BAR_FILES
from .market_history import read_market
from .market_outlooks import EIGHT_HOURS, ONE_DAY, latest_forecast, market_outlooks
from .markets_in_force import MarketInForce, markets_in_force, with_ladders
from .recommendation import Kind, MarketOutlook, Outcome, Recommendation, applied, recommend
from .recommendation_files import (
    RECOMMENDATIONS,
    Origin,
    governance_document,
    read_document,
    recommendation_rows,
    standings,
)
from .recommendation_page import tiers_view
from .recommended import MODEL, MarketChange, Recommended
from .tier_ladder import Ladder
from .tier_model_settings import SHIPPED, read_tier_model_settings
from .tier_policy import GovernancePolicy, read_policy

REFERENCE = Path(__file__).parent / "reference"
"""Checkpoints that are shipped."""

Progress = Callable[[str, int, int], None]


def run_recommend(
    resolved: Resolved,
    snapshots: Mapping[str, Snapshot],
    *,
    as_of: datetime,
    digest: str,
    market: Path | None = None,
    progress: Progress | None = None,
) -> Recommended:
    """Recommend rates and position limits of every market with tiers in `snapshots`, try them on the book, write both.

    `digest` is the hash of the snapshots; `market` overrides `tiers.market`. Raises ConfigurationError naming the key
    when there is no market history, checkpoint, policy or settings to read, and DataError when no market at all can be
    recommended.
    """
    say = progress or (lambda stage, done, total: None)
    configuration = resolved.configuration
    tiers = configuration.tiers
    folder = market or (resolved.path(tiers.market) if tiers.market else None)
    if folder is None:
        raise ConfigurationError("tiers.market: no folder of market history; set the key or give --market DIR")
    checkpoints = resolved.path(tiers.checkpoints) if tiers.checkpoints else REFERENCE
    policy = read_policy(resolved.path(tiers.governance))
    settings = read_tier_model_settings(SHIPPED if tiers.settings is None else resolved.path(tiers.settings))

    book, generation = _book(resolved, snapshots, as_of)
    in_force, failures = markets_in_force(snapshots)
    say("forecast", 0, 1)
    forecast = latest_forecast(read_market(folder), checkpoints, settings=settings, as_of=as_of)
    outlooks, unforeseen = market_outlooks(in_force, forecast, as_of=as_of, max_age_days=tiers.max_age_days)
    say("forecast", 1, 1)
    say("requirement", 0, 1)
    floors = _requirements(resolved, in_force, as_of)
    say("requirement", 1, 1)

    told = {failure.subject for failure in (*failures, *unforeseen)}
    current = {name: in_force[name].ladder for name in in_force if name not in told}
    store = _location(resolved)
    known = _standings(store, current, policy, as_of)
    made = recommend(current, outlooks, floors, known, policy, now=as_of)
    outcome = Outcome(made.recommendations, (*failures, *unforeseen, *made.failures))
    if not outcome.recommendations:
        raise _nothing(outcome)
    after = _ladders_after(current, outcome.recommendations, as_of)

    say("trial", 0, 1)
    trial = _trial(resolved, snapshots, book, generation, after, as_of)
    say("trial", 1, 1)

    origin = Origin(MODEL, _digest_of(checkpoints / name for name in (EIGHT_HOURS, ONE_DAY)), {
        "configuration": resolved.digest(),
        "market_history": _digest_of(folder / name for name in (*BAR_FILES.values(), "context.parquet")),
        "scenario_inputs": _digest_of([resolved.path(configuration.assets)]),
        "snapshot": digest,
    })  # fmt: skip
    document = governance_document(outcome, origin, policy)
    reference = str(read_document(document, now=as_of)["reference_id"])
    changes = _changes(book, snapshots, current, after, outlooks, trial)
    recommended = Recommended(
        reference,
        as_of,
        outcome,
        changes,
        tuple(trial),
        _conditions(outcome, snapshots, trial),
        resolved.path(tiers.output) / f"{reference}.json",
        resolved.path(tiers.output) / f"{reference}.html",
        str(store),
    )
    append_once(store, TRIAL_TABLE, trial_table(trial, reference_id=reference, created_at=as_of), transaction=reference)
    append_once(store, RECOMMENDATIONS_TABLE, recommendation_rows(outcome, origin, policy), transaction=reference)
    _write(recommended.document, document)
    write_tiers_page(tiers_view(recommended, policy, title=configuration.title), recommended.report)
    return recommended


def _requirements(resolved: Resolved, markets: Mapping[str, MarketInForce], as_of: datetime) -> dict[str, float]:
    """The engine's requirement of a dollar of each market's underlying; markets without a law for it are left out."""
    factors = sorted({market.factor for market in markets.values()})
    if not factors:
        return {}
    generation = build_generator(resolved, factors, as_of)
    configuration = resolved.configuration
    found = unit_requirements(generation, seed=configuration.run.seed, chunk=configuration.engine.scenario_chunk)
    return {name: found[market.factor] for name, market in markets.items() if market.factor in found}


def _standings(store: str | Path, current: Mapping[str, Ladder], policy: GovernancePolicy, as_of: datetime) -> Any:
    """What earlier recommendations say; those of this very instant do not count, so that a repeated run is the same."""
    rows = read_table(store, RECOMMENDATIONS_TABLE, RECOMMENDATIONS)
    earlier = rows.filter(pc.less(rows["created_at"], pa.scalar(as_of, TIME)))
    in_force: dict[tuple[str, Kind], Sequence[int]] = {}
    for market, ladder in current.items():
        rates = [tier.maintenance_bps for tier in ladder.tiers] + [tier.initial_bps for tier in ladder.tiers]
        in_force[market, "rates"] = rates
        cap = ladder.tiers[-1].notional_cap
        if cap is not None:
            in_force[market, "position_limits"] = [round(cap)]
    return standings(earlier, in_force, policy.review, now=as_of)


def _ladders_after(
    current: Mapping[str, Ladder], recommendations: Sequence[Recommendation], now: datetime
) -> dict[str, Ladder]:
    after: dict[str, Ladder] = {}
    for one in recommendations:
        after[one.market] = applied(after.get(one.market, current[one.market]), one, now=now)
    return after


def _book(resolved: Resolved, snapshots: Mapping[str, Snapshot], as_of: datetime) -> tuple[Book, Generation]:
    """The book of the run and what moves it, as the sweep has them."""
    portfolios = resolved.configuration.portfolios
    book, unclaimed = pack_book(snapshots, portfolios, as_of=as_of)
    if unclaimed:
        raise ConfigurationError(f"accounts that no portfolio maps: {', '.join(unclaimed)}; add them to [portfolios]")
    generation = build_generator(resolved, book.factors(), as_of)
    if generation.missing:
        book, _ = pack_book(snapshots, portfolios, as_of=as_of, missing=generation.missing)
    return book, generation


def _trial(
    resolved: Resolved,
    snapshots: Mapping[str, Snapshot],
    book: Book,
    generation: Generation,
    after: Mapping[str, Ladder],
    as_of: datetime,
) -> list[TrialRow]:
    configuration = resolved.configuration
    changed = with_margin_tiers(
        snapshots, {name: with_ladders(s.tables["margin_tiers"], after) for name, s in snapshots.items()}
    )
    other = repacked(book, changed, configuration.portfolios, as_of=as_of, missing=generation.missing)
    cube = _cube(resolved, book, generation)
    return trial_rows(
        book,
        other,
        generation.factors,
        cube,
        paths=_paths(resolved, cube.rows, generation, as_of),
        devices=_devices(resolved),
    )


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


def _changes(
    book: Book,
    snapshots: Mapping[str, Snapshot],
    current: Mapping[str, Ladder],
    after: Mapping[str, Ladder],
    outlooks: Sequence[MarketOutlook],
    trial: Sequence[TrialRow],
) -> tuple[MarketChange, ...]:
    gone = {account for row in trial if not row.venue for account in row.accounts_liquidated}
    held = _held(snapshots)
    lines = [line for portfolio in book.portfolios for line in portfolio.lines]
    by_market = {outlook.market: outlook for outlook in outlooks}
    changes = []
    for market in sorted(after):
        accounts = tuple(sorted(gone & held.get(market, set())))
        # A line's key is account/instrument, with the side behind it where the account has both.
        keys = [f"{account}/{market}" for account in accounts]
        own = {*keys, *(f"{key}/{side}" for key in keys for side in ("long", "short"))}
        value = math.fsum(line.gross_usd for line in lines if line.key in own)
        changes.append(MarketChange(current[market], after[market], by_market[market], accounts, value))
    return tuple(changes)


def _held(snapshots: Mapping[str, Snapshot]) -> dict[str, set[str]]:
    """Accounts by the market that they hold a position in."""
    held: dict[str, set[str]] = {}
    for snapshot in snapshots.values():
        for row in snapshot.tables["positions"]:
            held.setdefault(row["instrument_id"], set()).add(row["account_id"])
    return held


def _conditions(outcome: Outcome, snapshots: Mapping[str, Snapshot], trial: Sequence[TrialRow]) -> tuple[str, ...]:
    held = _held(snapshots)
    kept = [failure.message for failure in outcome.failures if failure.subject in held]
    short = [f"portfolio {row.portfolio_id} is incomplete" for row in trial if not row.venue and not row.complete]
    return (*kept, *short)


def _nothing(outcome: Outcome) -> DataError:
    """The error of a run in which no market could be recommended: the first reason stands for all."""
    if not outcome.failures:
        raise ConfigurationError("no market of the run has margin tiers: there is nothing to recommend")
    first = outcome.failures[0]
    message = f"none of {len(outcome.failures)} markets can be recommended; {first.message}"
    return DataError(Failure(first.reason, message, subject=first.subject))


def _location(resolved: Resolved) -> str | Path:
    path = resolved.configuration.store.path
    return path if "://" in path else resolved.path(path)


def _digest_of(paths: Any) -> str:
    """SHA-256 over the contents of the files that are there, in order."""
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise ConfigurationError(f"tiers.output: cannot write {path}: {error.strerror}") from None
