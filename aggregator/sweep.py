"""One scheduled run, end to end: payloads, snapshot, book, scenarios, shards of results, report.

Nothing here reads the clock but to stamp the run and to find one to resume: numbers depend on the snapshot, the
configuration, the seed and the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .capital_cost import borrow_rates
from .conditions import Condition, data_conditions, limit_conditions, missed_target
from .config import Configuration, Resolved
from .errors import ConfigurationError, Failure, FailureReason, StoreError, ordered_failures
from .evidence import Evidence
from .factors import Generation, build_generator, build_path_generator
from .path_margin import PathLaw
from .portfolio import Book, pack_book
from .progress import Progress, silent
from .route_network import given_routes
from .routes import Routes
from .run_inputs import read_inputs, routes, stress_library, with_forecast
from .run_market import RunMarket, TargetOutcome, market_with_target, requirement_gaps, run_market
from .run_record import Findings, Outcome, RunRecord, commit_run, new_run, outcome_of, resumed_or_started, start_run
from .stress import StressLibrary
from .sweep_detail import write_detail_shard
from .sweep_shards import write_portfolio_shards
from .sweep_work import SweepWork
from .transfer_run import TransferLaw, transfer_law
from .withdrawal_shares import withdrawal_shares


def run_sweep(resolved: Resolved, *, fresh: bool = False, progress: Progress | None = None) -> Outcome:
    """Run `resolved` to the end, or finish the uncommitted run of equal digest that a kill left behind.

    `fresh` starts anew whatever lies there. Raises `ConfigurationError` before anything is written when the
    configuration cannot be run; every problem with data becomes a failure row and a condition instead.
    """
    say = progress or silent
    started = datetime.now(UTC)
    library = stress_library(resolved)
    inputs = read_inputs(resolved, say)
    resolved = with_forecast(resolved, inputs.as_of)
    configuration = resolved.configuration
    say("book", 0, 1)
    book, unclaimed = pack_book(inputs.snapshots, configuration.portfolios, as_of=inputs.as_of)
    if unclaimed:
        raise ConfigurationError(f"accounts that no portfolio maps: {', '.join(unclaimed)}; add them to [portfolios]")
    known_routes = routes(resolved, _nodes(book))
    generation = build_generator(resolved, book.factors(), inputs.as_of)
    if generation.missing:
        book, _ = pack_book(inputs.snapshots, configuration.portfolios, as_of=inputs.as_of, missing=generation.missing)
    shards = -(-len(book.portfolios) // configuration.engine.shard_portfolios) + 1
    run = new_run(resolved, inputs, kind="sweep", started=started, shards=shards)
    if fresh:
        start_run(run)
    else:
        run = resumed_or_started(run)
    market, missed = _market(run, book, generation, library, say)
    work, of_inputs = _work(run, book, market, library, known_routes, say)
    in_detail, details = write_portfolio_shards(work)
    write_detail_shard(work, in_detail, details, of_inputs)

    # From the store, not from memory: a resumed run did not compute the shards that were there.
    failures = [_failure_of(row) for row in run.store.rows_in_progress("failures", run.run_id).to_pylist()]
    rows = run.store.rows_in_progress("portfolio_margin", run.run_id).to_pylist()
    accounts = run.store.rows_in_progress("account_margin", run.run_id).to_pylist()
    conditions = _conditions(configuration, rows, accounts, failures)
    if missed is not None:
        conditions = (*conditions, missed_target(missed, configuration.run.target_error))
    found = Findings(
        scenarios=int(np.count_nonzero(np.asarray(market.cube.weights))),
        portfolios=len(book.portfolios),
        incomplete=sum(not row["complete"] for row in rows),
        accounts=len(accounts),
        failures=len(failures),
        conditions=conditions,
        # No fault of the data and no reason to stop a schedule, but whoever reads the requirement has to know.
        notes=requirement_gaps(market.generation),
    )
    commit_run(run, found)
    say("report", 0, 1)
    report = _written_report(run) if configuration.report.path else None
    say("report", 1, 1)
    return outcome_of(run, found, sorted(rows, key=lambda row: row["portfolio_id"]), report=report)


def _market(
    run: RunRecord, book: Book, generation: Generation, library: StressLibrary | None, say: Progress
) -> tuple[RunMarket, TargetOutcome | None]:
    """The market of the run, and by what it misses the standard error that was asked for; None where it does not."""
    if run.resolved.configuration.run.target_error is None:
        return run_market(run.resolved, book, generation, library), None
    market, outcome = market_with_target(
        run.resolved,
        book,
        generation,
        library,
        run.inputs.as_of,
        devices=run.devices,
        note=lambda scenarios: say(f"{scenarios} scenarios", 0, 1),
    )
    return market, None if outcome.reached else outcome


def _work(
    run: RunRecord,
    book: Book,
    market: RunMarket,
    library: StressLibrary | None,
    known_routes: Routes | None,
    say: Progress,
) -> tuple[SweepWork, list[Failure]]:
    """What the shards are computed from, and the failures of everything that was read."""
    configuration, inputs, generation = run.resolved.configuration, run.inputs, market.generation
    path_law = _path_law(run.resolved, generation, inputs.as_of)
    transfer, of_routes = _transfer_law(run, known_routes, book, market, path_law)
    of_inputs = ordered_failures([*inputs.failures, *book.failures, *generation.failures, *of_routes])
    work = SweepWork(
        store=run.store,
        run_id=run.run_id,
        shards=run.shards - 1,
        book=book,
        generation=generation,
        cube=market.cube,
        paths=path_law,
        transfer=transfer,
        devices=run.devices,
        run=configuration.run,
        policy=configuration.requirement,
        grid_labels=market.grid_labels,
        venues=market.venues,
        library=library,
        stresses=market.stresses,
        evidence=Evidence(inputs.snapshots, of_inputs, inputs.as_of),
        rates=borrow_rates(inputs.snapshots),
        leaving=withdrawal_shares(
            inputs.snapshots.values(), {a.account_id: p.portfolio_id for p in book.portfolios for a in p.accounts}
        ),
        bound=configuration.reconcile,
        say=say,
    )
    return work, of_inputs


def _nodes(book: Book) -> set[str]:
    return {node for portfolio in book.portfolios for node, _ in portfolio.nodes}


def _written_report(run: RunRecord) -> Path:
    # Only now: a run without a report needs no template engine.
    from .report import write_report

    folder = run.resolved.path(run.resolved.configuration.report.path)
    try:
        return write_report(run.store.read_run(run.run_id), folder / f"{run.run_id}.html")
    except OSError as error:
        raise StoreError(
            f"run {run.run_id} is stored, but its report cannot be written to {folder}: {error.strerror}"
        ) from None


def _path_law(resolved: Resolved, generation: Generation, as_of: datetime) -> PathLaw | None:
    """The paths of the run; None where none are configured."""
    run, paths = resolved.configuration.run, resolved.configuration.paths
    if not paths.scenarios:
        return None
    of_step = build_path_generator(resolved, generation.factors, as_of)
    return PathLaw(of_step.generator, run.seed, of_step.scenarios, paths.steps, run.horizon_days / paths.steps)


def _transfer_law(
    run: RunRecord, known_routes: Routes | None, book: Book, market: RunMarket, paths: PathLaw | None
) -> tuple[TransferLaw | None, list[Failure]]:
    """The transfer model of the run, and what was wrong with routes that its payloads brought."""
    if known_routes is None:
        return None, []
    rows = [row for snapshot in run.inputs.snapshots.values() for row in snapshot.tables["routes"]]
    given, failures = given_routes(rows, _nodes(book))
    law = transfer_law(
        known_routes,
        given,
        market.generation.factors,
        market.cube,
        paths,
        venues=sorted({venue for portfolio in book.portfolios for _, venue in portfolio.nodes}),
        seed=run.resolved.configuration.run.seed,
        horizon_days=run.resolved.configuration.run.horizon_days,
    )
    return law, failures


def _failure_of(row: Mapping[str, Any]) -> Failure:
    stored = {field.name: row[field.name] for field in fields(Failure)}
    return Failure(**stored | {"reason": FailureReason(row["reason"])})


def _conditions(
    configuration: Configuration,
    portfolios: Sequence[Mapping[str, Any]],
    accounts: Sequence[Mapping[str, Any]],
    failures: Sequence[Failure],
) -> tuple[Condition, ...]:
    of_limits = [c for limit in configuration.limits for c in limit_conditions(limit, portfolios, accounts)]
    return (*of_limits, *data_conditions([row["portfolio_id"] for row in portfolios if not row["complete"]], failures))
