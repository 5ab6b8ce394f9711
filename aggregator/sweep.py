"""One scheduled run, end to end: payloads, snapshot, book, scenarios, shards of results, report.

The only module (with the command line) where adapters and engine meet. Nothing here reads the clock but to stamp the
run and to find one to resume: numbers depend on the snapshot, the configuration, the seed and the code.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa

from adapters.adapter import AssetBook, Context, adapter_names, find_adapter
from adapters.asset_book import read_asset_book
from adapters.transport import Payload, PayloadRequest, RecordedTransport

from . import __version__
from .capital_cost import borrow_rates
from .config import (
    CalibratedFigures,
    Configuration,
    FilteredHistoryFigures,
    Limit,
    Reconcile,
    Resolved,
    Run,
    Source,
)
from .differences import Native, reconciliation_rows
from .engine import Cube, Detail, Headline, evaluate_details, evaluate_headlines
from .errors import PRECEDENCE, ConfigurationError, ExitCode, Failure, FailureReason, StoreError, nearest_name
from .evidence import Evidence
from .factors import Generation, build_generator, build_path_generator
from .greeks import greeks_by_underlying, row_sensitivities
from .history_tables import read_history_table
from .liquidation_price import Moves, account_subjects, liquidation_moves
from .node_scenarios import NodeRules, NodeScenarios, node_scenarios
from .path_margin import PathFigures, PathLaw, funded_legs, path_figures
from .path_results import path_account_columns, path_failures, path_portfolio_columns
from .policy import Requirement
from .portfolio import Book, PackedPortfolio, pack_book
from .reconciliation import reconciliation_findings
from .replay import closes_on, replayed
from .results import (
    Evaluated,
    account_rows,
    allocation_rows,
    calculation_failures,
    histogram_rows,
    liquidation_price_rows,
    node_rows,
    portfolio_row,
    result_table,
    worst_rows,
)
from .reverse_results import reverse_stress_rows
from .reverse_stress import nearest_moves, weighted_covariance
from .route_network import given_routes
from .routes import Routes, read_routes
from .run_market import RunMarket, TargetOutcome, market_with_target, requirement_gaps, run_market
from .snapshot import Snapshot, take_snapshot
from .store import ResultStore
from .stress import StressLibrary, check_kinds, check_names, read_stress_library
from .stress_results import held_by, stress_rows
from .transfer_detail import TransferDetail, transfer_detail
from .transfer_results import route_point_rows, route_rows, transfer_columns
from .transfer_run import TRACED_PORTFOLIOS, TransferLaw, Transfers, profit_leaves, transfer_law, transfers
from .unified_results import (
    node_columns,
    requirement_columns,
    requirement_failures,
    requirement_rows,
    unmeasured_failures,
)
from .withdrawal_shares import withdrawal_shares

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while the run goes on."""

_VERSIONS = ("jax", "jaxlib", "equinox", "numpy", "pyarrow", "deltalake", "pydantic")
_ACCOUNT_METRICS = ("health", "p_liquidation_at_horizon")
# Of a portfolio, that any account is liquidated, which bounds each; of an account when the scope names one.
_METRICS_OF_BOTH = ("p_liquidation_path",)
_UNCOUNTED_SEGMENT = re.compile(r"v?\d+")


class Condition(NamedTuple):
    """Something that holds after the run and that a scheduler must hear of."""

    condition: str
    code: int
    message: str


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves: where its results are, its headline rows, and every condition that holds."""

    run_id: str
    store: str
    report: str | None
    conditions: tuple[Condition, ...]
    notes: tuple[str, ...]
    """What the requirement of this run leaves out, and why."""
    portfolios: tuple[dict[str, Any], ...]
    resumed: bool
    duration_s: float

    @property
    def exit_code(self) -> ExitCode:
        """The first code of the precedence that some condition carries; OK when none does."""
        codes = {condition.code for condition in self.conditions}
        return next((code for code in PRECEDENCE if code in codes), ExitCode.OK)


class Inputs(NamedTuple):
    """Everything read: checked snapshots by name, the payloads behind them, the instant of the run."""

    snapshots: dict[str, Snapshot]
    payloads: list[tuple[str, Payload]]
    failures: list[Failure]
    as_of: datetime
    digest: str


def run_sweep(resolved: Resolved, *, fresh: bool = False, progress: Progress | None = None) -> Outcome:
    """Run `resolved` to the end, or finish the uncommitted run of equal digest that a kill left behind.

    `fresh` starts anew whatever lies there. Raises `ConfigurationError` before anything is written when the
    configuration cannot be run; every problem with data becomes a failure row and a condition instead.
    """
    say = progress or (lambda stage, done, total: None)
    started = datetime.now(UTC)
    library = _library(resolved)
    inputs = read_inputs(resolved, say)
    resolved = with_forecast(resolved, inputs.as_of)
    configuration = resolved.configuration
    say("book", 0, 1)
    book, unclaimed = pack_book(inputs.snapshots, configuration.portfolios, as_of=inputs.as_of)
    if unclaimed:
        raise ConfigurationError(f"accounts that no portfolio maps: {', '.join(unclaimed)}; add them to [portfolios]")
    routes = _routes(resolved, book)
    generation = build_generator(resolved, book.factors(), inputs.as_of)
    if generation.missing:
        book, _ = pack_book(inputs.snapshots, configuration.portfolios, as_of=inputs.as_of, missing=generation.missing)
    run_digest = digest_of_run(resolved, inputs, file_hashes(resolved))
    store = ResultStore(store_location(resolved, configuration.store.path))
    shards = -(-len(book.portfolios) // configuration.engine.shard_portfolios) + 1
    within = timedelta(seconds=configuration.store.resume_within_s)
    pending = None if fresh else store.pending_run(run_digest, now=started, within=within)
    if pending is not None:
        run_id, started, shards = pending.run_id, pending.started_at, pending.shards
    else:
        run_id = new_run_id(started, run_digest)
        store.start_run(run_id, run_digest=run_digest, started_at=started, shards=shards)

    devices = devices_of(configuration)
    missed = None
    if configuration.run.target_error is None:
        market = run_market(resolved, book, generation, library)
    else:
        market, outcome = market_with_target(
            resolved,
            book,
            generation,
            library,
            inputs.as_of,
            devices=devices,
            note=lambda scenarios: say(f"{scenarios} scenarios", 0, 1),
        )
        generation = market.generation
        missed = None if outcome.reached else outcome
    cube = market.cube
    path_law = _path_law(resolved, generation, inputs.as_of)
    transfer, of_routes = _transfer_law(resolved, routes, inputs, book, market, path_law)
    of_inputs = ordered_failures([*inputs.failures, *book.failures, *generation.failures, *of_routes])
    evidence = Evidence(inputs.snapshots, of_inputs, inputs.as_of)
    work = _Work(
        store=store,
        run_id=run_id,
        shards=shards - 1,
        book=book,
        generation=generation,
        cube=cube,
        paths=path_law,
        transfer=transfer,
        devices=devices,
        run=configuration.run,
        policy=configuration.requirement,
        grid_labels=market.grid_labels,
        venues=market.venues,
        library=library,
        stresses=market.stresses,
        evidence=evidence,
        rates=borrow_rates(inputs.snapshots),
        leaving=withdrawal_shares(
            inputs.snapshots.values(), {a.account_id: p.portfolio_id for p in book.portfolios for a in p.accounts}
        ),
        bound=configuration.reconcile,
        say=say,
    )
    in_detail, details = _write_portfolio_shards(work)
    _write_detail_shard(work, in_detail, details, of_inputs)

    # From the store, not from memory: a resumed run did not compute the shards that were there.
    failures = [_failure_of(row) for row in store.rows_in_progress("failures", run_id).to_pylist()]
    rows = store.rows_in_progress("portfolio_margin", run_id).to_pylist()
    accounts = store.rows_in_progress("account_margin", run_id).to_pylist()
    conditions = _conditions(configuration, rows, accounts, failures)
    if missed is not None:
        conditions = (*conditions, _missed_target(missed, configuration.run.target_error))
    # No fault of the data and no reason to stop a schedule, but whoever reads the requirement has to know.
    notes = requirement_gaps(generation)
    row = run_row(
        resolved,
        inputs,
        kind="sweep",
        run_id=run_id,
        run_digest=run_digest,
        started=started,
        devices=devices,
        scenarios=int(np.count_nonzero(np.asarray(cube.weights))),
        shards=shards,
        portfolios=len(book.portfolios),
        incomplete=sum(not row["complete"] for row in rows),
        accounts=len(accounts),
        failures=len(failures),
        conditions=conditions,
        notes=notes,
    )
    store.write_run(row)
    say("report", 0, 1)
    report = None
    if configuration.report.path:
        from .report import write_report

        folder = resolved.path(configuration.report.path)
        try:
            report = str(write_report(store.read_run(run_id), folder / f"{run_id}.html"))
        except OSError as error:
            raise StoreError(
                f"run {run_id} is stored, but its report cannot be written to {folder}: {error.strerror}"
            ) from None
    say("report", 1, 1)
    return Outcome(
        run_id=run_id,
        store=str(store.root),
        report=report,
        conditions=conditions,
        notes=notes,
        portfolios=tuple(sorted(rows, key=lambda row: row["portfolio_id"])),
        resumed=pending is not None,
        duration_s=(datetime.now(UTC) - started).total_seconds(),
    )


# ---- inputs ----------------------------------------------------------------------------------------------------------


def read_inputs(resolved: Resolved, say: Progress) -> Inputs:
    """Payloads of every source, normalised by its venue's adapter and checked snapshot by snapshot."""
    configuration = resolved.configuration
    assets = read_asset_book(resolved.path(configuration.assets))
    names = list(dict.fromkeys(source.snapshot for source in configuration.sources))
    payloads: list[tuple[str, Payload]] = []
    read: dict[str, tuple[list[Mapping[str, pa.Table]], list[Failure]]] = {}
    for number, name in enumerate(names):
        say("read", number, len(names))
        batches: list[Mapping[str, pa.Table]] = []
        failures: list[Failure] = []
        for venue, of_venue in _by_venue(s for s in configuration.sources if s.snapshot == name).items():
            normalized = _normalize(resolved, venue, of_venue, assets, payloads, failures)
            batches.append(normalized.batches)
            failures += normalized.failures
        read[name] = batches, failures
    say("read", len(names), len(names))
    as_of = configuration.run.as_of or _newest(
        [p for _, p in payloads], [b for batches, _ in read.values() for b in batches]
    )
    max_age = timedelta(seconds=configuration.data.max_age_s) if configuration.data.max_age_s else None
    snapshots = {
        name: take_snapshot(
            batches, failures, as_of=as_of, max_age=max_age, max_mark_gap=configuration.data.max_mark_gap or None
        )
        for name, (batches, failures) in read.items()
    }
    digest = hashlib.sha256(
        "".join(f"{n}:{s.content_hash};" for n, s in sorted(snapshots.items())).encode()
    ).hexdigest()
    failures = [failure for snapshot in snapshots.values() for failure in snapshot.failures]
    return Inputs(snapshots, payloads, failures, as_of, digest)


def _by_venue(sources: Any) -> dict[str, list[Source]]:
    out: dict[str, list[Source]] = {}
    for source in sources:
        out.setdefault(source.venue, []).append(source)
    return out


def _normalize(
    resolved: Resolved,
    venue: str,
    sources: Sequence[Source],
    assets: AssetBook,
    payloads: list[tuple[str, Payload]],
    failures: list[Failure],
) -> Any:
    """One venue's canonical tables of one snapshot; payloads that could not be brought become failures."""
    adapter = find_adapter(venue)
    transport = RecordedTransport(resolved.folder)
    brought: list[Payload] = []
    for source in sources:
        for file in source.payloads:
            answer = transport.fetch(venue, PayloadRequest(file.request, file.file, source.owner))
            # What a lost payload would have told of its owner is unknown: the owner's portfolio is incomplete.
            lost = f"{venue}:{source.owner}" if source.owner else None
            if isinstance(answer, Failure):
                failures.append(replace(answer, account_id=lost))
            elif not _is_known_request(answer.request, adapter.requests):
                hint, known = nearest_name(answer.request, adapter.requests), ", ".join(adapter.requests)
                message = f"unknown request {answer.request[:60]!r}{hint}; known: {known}"
                if file.request:
                    raise ConfigurationError(f"{venue}, {answer.name}: {message}")
                failures.append(
                    Failure(FailureReason.UNSUPPORTED, message, venue, answer.name, "request", source.owner, lost)
                )
            else:
                brought.append(answer)
                payloads.append((venue, answer))
    return adapter.normalize(brought, Context(assets, _parameters(resolved, venue, sources)))


def _is_known_request(request: str, known: Sequence[str]) -> bool:
    """Whether a request ends in the path of a known one; versions, numbers and what stands behind a colon do not count,
    nor does what follows a channel's name and a dot.

    Venues write one call in several ways: `fapi/account`, `/fapi/v2/account`, `positionInfo/0`,
    `ticker.BTC-PERPETUAL.100ms`.
    """

    def segments(text: str) -> list[str]:
        return [s for s in text.partition(":")[0].strip().split("/") if s and not _UNCOUNTED_SEGMENT.fullmatch(s)]

    path = segments(request)
    return any(path[-len(of) :] == of or request.strip().startswith(f"{of[-1]}.") for of in map(segments, known))


def _parameters(resolved: Resolved, venue: str, sources: Sequence[Source]) -> Mapping[str, Any]:
    files = sorted({source.parameters for source in sources if source.parameters})
    if len(files) > 1:
        raise ConfigurationError(f"{venue}: one snapshot, but several parameter files: {', '.join(files)}")
    if not files:
        return {}
    try:
        return tomllib.loads(resolved.path(files[0]).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{venue}: cannot read the parameter file {files[0]!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{venue}: parameter file {files[0]!r} is not valid TOML: {error}") from None


def _newest(payloads: Sequence[Payload], batches: Sequence[Mapping[str, pa.Table]]) -> datetime:
    """The newest receive time of a payload, else of an account (tables bring their own), else its event time."""
    times = [p.received_at for p in payloads if p.received_at is not None]
    for column in ("received_at", "event_at"):
        if not times:
            times = [t for batch in batches for t in batch["accounts"].column(column).to_pylist() if t is not None]
    if not times:
        raise ConfigurationError("no payload carries a time: set run.as_of, for example 2024-06-30T00:00:00Z")
    return max(times)


def _payload_hashes(inputs: Inputs) -> list[dict[str, str]]:
    return [{"venue": venue, "request": p.request, "name": p.name, "sha256": p.sha256} for venue, p in inputs.payloads]


def file_hashes(resolved: Resolved) -> list[dict[str, str]]:
    """Every file beside the payloads that decides numbers: asset book, venue parameters, market history."""
    configuration, figures = resolved.configuration, resolved.configuration.scenarios
    files = {("", "assets", configuration.assets)}
    files |= {(s.venue, "parameters", s.parameters) for s in configuration.sources if s.parameters}
    if configuration.stress is not None:
        files.add(("", "stress", configuration.stress))
    if configuration.stress_history is not None:
        files.add(("", "stress history", configuration.stress_history))
    if configuration.routes is not None:
        files.add(("", "routes", configuration.routes))
    if isinstance(figures, CalibratedFigures):
        files.add(("", "calibration", figures.calibration))
        if figures.history is not None:
            files.add(("", "history", figures.history.table))
            if figures.history.context is not None:
                files.add(("", "context", figures.history.context))
    if isinstance(figures, FilteredHistoryFigures):
        files.add(("", "history", figures.history))
        if figures.context is not None:
            files.add(("", "context", figures.context))
    return [
        {"venue": venue, "request": kind, "name": Path(name).name, "sha256": _sha256(resolved.path(name))}
        for venue, kind, name in sorted(files)
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_run(resolved: Resolved, inputs: Inputs, files: Sequence[Mapping[str, str]]) -> str:
    """What a run is identified by: snapshot, files, configuration, seed, code version and instant."""
    parts = (
        inputs.digest,
        json.dumps(files),
        resolved.digest(),
        str(resolved.configuration.run.seed),
        __version__,
        inputs.as_of.isoformat(),
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def new_run_id(started: datetime, run_digest: str) -> str:
    """The id of a run: its start in UTC and the first digits of its digest."""
    return f"{started:%Y%m%dT%H%M%S}.{started.microsecond // 1000:03d}Z-{run_digest[:8]}"


def run_row(
    resolved: Resolved,
    inputs: Inputs,
    *,
    kind: str,
    run_id: str,
    run_digest: str,
    started: datetime,
    devices: int,
    scenarios: int,
    shards: int,
    portfolios: int,
    incomplete: int,
    accounts: int,
    failures: int,
    conditions: Sequence[Condition],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Row of `runs` of a run that ends now."""
    configuration, finished = resolved.configuration, datetime.now(UTC)
    return {
        "run_id": run_id,
        "kind": kind,
        "started_at": started,
        "finished_at": finished,
        "duration_s": (finished - started).total_seconds(),
        "as_of": inputs.as_of,
        "snapshot_hash": inputs.digest,
        "configuration_digest": resolved.digest(),
        "run_digest": run_digest,
        "configuration": resolved.text(),
        "inputs": json.dumps([*_payload_hashes(inputs), *file_hashes(resolved)]),
        "code_version": __version__,
        "versions": json.dumps(
            {"python": platform.python_version()} | {name: metadata.version(name) for name in _VERSIONS}
        ),
        "device": f"{jax.devices()[0].device_kind} x {devices}",
        "seed": configuration.run.seed,
        "generator": configuration.scenarios.generator,
        "scenarios": scenarios,
        "horizon_days": configuration.run.horizon_days,
        "shards": shards,
        "portfolios": portfolios,
        "portfolios_incomplete": incomplete,
        "accounts": accounts,
        "failures": failures,
        "conditions": json.dumps([condition._asdict() for condition in conditions]),
        "notes": json.dumps(notes),
    }


def store_location(resolved: Resolved, path: str) -> str | Path:
    """Where a store is: a URL as it is, a folder relative to the configuration."""
    return path if "://" in path else resolved.path(path)


def devices_of(configuration: Configuration) -> int:
    """How many devices a run uses."""
    wanted = configuration.engine.host_devices
    available = len(jax.devices())
    return min(wanted, available) if wanted else available


# ---- shards ----------------------------------------------------------------------------------------------------------


def shard_of(portfolio_id: str, shards: int) -> int:
    """Shard of a portfolio: its hash range among `shards`, the same whatever else is in the book."""
    return int.from_bytes(hashlib.sha256(portfolio_id.encode()).digest()[:8], "big") * shards >> 64


class _Work(NamedTuple):
    """What the shards of one run are computed from and written to."""

    store: ResultStore
    run_id: str
    shards: int
    book: Book
    generation: Generation
    cube: Cube
    paths: PathLaw | None
    transfer: TransferLaw | None
    devices: int
    run: Run
    policy: Requirement
    grid_labels: tuple[str, ...]
    venues: Sequence[str]
    library: StressLibrary | None
    stresses: Sequence[str]
    evidence: Evidence
    rates: Mapping[str, float]
    """`borrow_rates` of what was read."""
    leaving: Mapping[str, float]
    """`withdrawal_shares` of what was read."""
    bound: Reconcile
    say: Progress


def _write_portfolio_shards(
    work: _Work,
) -> tuple[dict[str, tuple[Headline, Detail]], dict[str, TransferDetail]]:
    """Write every portfolio shard that is not there yet; figures in detail by portfolio id where they were computed.

    A book that is shown in detail as a whole is computed in detail at once: one pass, one compiled program.
    """
    written = work.store.shards_written(work.run_id)
    at_once = len(work.book.portfolios) <= work.run.detail_top
    in_detail: dict[str, tuple[Headline, Detail]] = {}
    details: dict[str, TransferDetail] = {}
    for shard in range(work.shards):
        work.say("portfolios", shard, work.shards)
        if shard in written:
            continue
        members = [p for p in work.book.portfolios if shard_of(p.portfolio_id, work.shards) == shard]
        if at_once:
            both = _in_detail(work, members)
            in_detail |= both
            headlines = [both[p.portfolio_id][0] if p.portfolio_id in both else None for p in members]
        else:
            headlines = evaluate_headlines(
                members,
                work.generation.factors,
                work.cube,
                devices=work.devices,
                policy=work.policy,
                venues=work.venues,
            )
        evaluated = [Evaluated(p, h) for p, h in zip(members, headlines, strict=True)]
        paths, moved = _paths_and_transfers(work, evaluated, details if at_once else None)
        stressed = bool(work.generation.stressed)
        rows = {
            "portfolio_margin": [
                portfolio_row(e)
                | requirement_columns(e, work.policy, work.rates)
                | transfer_columns(e, of_portfolio, work.policy)
                | path_portfolio_columns(e, walked)
                for e, walked, of_portfolio in zip(evaluated, paths, moved, strict=True)
            ],
            "account_margin": [
                row | more
                for e, walked in zip(evaluated, paths, strict=True)
                for row, more in zip(account_rows(e), path_account_columns(e, walked), strict=True)
            ],
            "node_margin": [
                row | more
                for e in evaluated
                for row, more in zip(node_rows(e), node_columns(e, work.policy, work.rates), strict=True)
            ],
            "requirement": [row for e in evaluated for row in requirement_rows(e, work.grid_labels, stressed=stressed)],
            "stress": _stress_rows(work, evaluated),
            "reconciliation": reconciliation_rows([_native(e) for e in evaluated], work.evidence, work.bound),
        }
        found = [
            *calculation_failures(evaluated),
            *path_failures(evaluated, paths),
            *requirement_failures(evaluated),
            *unmeasured_failures(evaluated, _without_market(work.generation)),
            *reconciliation_findings(rows["reconciliation"]),
        ]
        rows["failures"] = [asdict(failure) for failure in found]
        _write(work, shard, rows)
    work.say("portfolios", work.shards, work.shards)
    return in_detail, details


def _path_law(resolved: Resolved, generation: Generation, as_of: datetime) -> PathLaw | None:
    """The paths of the run; None where none are configured."""
    run, paths = resolved.configuration.run, resolved.configuration.paths
    if not paths.scenarios:
        return None
    of_step = build_path_generator(resolved, generation.factors, as_of)
    return PathLaw(of_step.generator, run.seed, of_step.scenarios, paths.steps, run.horizon_days / paths.steps)


def _paths_and_transfers(
    work: _Work, evaluated: Sequence[Evaluated], details: dict[str, TransferDetail] | None
) -> tuple[list[PathFigures | None], list[Transfers | None]]:
    """Paths and the transfer model of some portfolios, in groups whose node scenarios fit in memory.

    What those scenarios alone can tell in detail goes into `details`, by portfolio id, unless that is None.
    """
    step = len(evaluated) if work.transfer is None else TRACED_PORTFOLIOS
    paths: list[PathFigures | None] = []
    moved: list[Transfers | None] = []
    for first in range(0, len(evaluated), max(step, 1)):
        group = evaluated[first : first + step]
        rules = None if work.transfer is None else _node_rules(work, work.transfer, group)
        by_path = work.transfer is not None and work.transfer.deadlines == "path"
        walked = _path_figures(work, [e.portfolio for e in group], rules if by_path else None)
        nodes: list[NodeScenarios | None] = [None if w is None else w.nodes for w in walked]
        if work.transfer is None or rules is None:
            moved += [None] * len(group)
        else:
            if not by_path:
                members = [e.portfolio for e in group]
                nodes = node_scenarios(members, work.generation.factors, work.cube, rules, devices=work.devices)
            found = transfers([e.portfolio for e in group], nodes, work.transfer, devices=work.devices)
            for e, of_portfolio, of_nodes in zip(group, found, nodes, strict=True):
                if details is not None and of_portfolio is not None and of_nodes is not None:
                    details[e.portfolio.portfolio_id] = transfer_detail(e, of_portfolio, of_nodes, work.transfer, rules)
            moved += found
        # Node scenarios are large and used up; what is kept of a path are its sums.
        paths += [None if w is None else w._replace(nodes=None) for w in walked]
    return paths, moved


def _node_rules(work: _Work, law: TransferLaw, evaluated: Sequence[Evaluated]) -> NodeRules:
    """What the nodes of some portfolios are judged by; a portfolio without figures has none and is asked for none."""
    requirements = {}
    for portfolio, figures in evaluated:
        for number, info in enumerate(portfolio.accounts):
            known = figures is not None and figures.account_is_finite[number]
            native = figures.native if figures is not None and known else None
            requirements[info.account_id] = (
                (0.0, 0.0) if native is None else (float(native.initial[number]), float(native.maintenance[number]))
            )
    units = _unit_exponents(work, [e.portfolio for e in evaluated])
    rules = law.routes
    return NodeRules(units, requirements, rules.operator.warning_health, profit_leaves(rules), work.leaving)


def _unit_exponents(work: _Work, members: Sequence[PackedPortfolio]) -> dict[str, dict[str, float]]:
    return {
        info.account_id: work.evidence.market(info.account_id).exponents(info.unit)
        for portfolio in members
        for info in portfolio.accounts
    }


def _path_figures(work: _Work, members: Sequence[PackedPortfolio], nodes: NodeRules | None) -> list[PathFigures | None]:
    if work.paths is None:
        return [None] * len(members)
    factors, rows = work.generation.factors, work.cube.rows
    units = _unit_exponents(work, members)
    funding = [funded_legs(portfolio, rows, factors, work.policy, units) for portfolio in members]
    return path_figures(members, factors, rows, work.paths, funding, devices=work.devices, nodes=nodes)


def _routes(resolved: Resolved, book: Book) -> Routes | None:
    """The routes file of the configuration with every name in it checked; None without one."""
    path = resolved.configuration.routes
    if path is None:
        return None
    nodes = {node for portfolio in book.portfolios for node, _ in portfolio.nodes}
    return read_routes(resolved.path(path), venues=adapter_names(), nodes=nodes)


def _transfer_law(
    resolved: Resolved, routes: Routes | None, inputs: Inputs, book: Book, market: RunMarket, paths: PathLaw | None
) -> tuple[TransferLaw | None, list[Failure]]:
    """The transfer model of the run, and what was wrong with routes that its payloads brought."""
    if routes is None:
        return None, []
    nodes = {node for portfolio in book.portfolios for node, _ in portfolio.nodes}
    rows = [row for snapshot in inputs.snapshots.values() for row in snapshot.tables["routes"]]
    given, failures = given_routes(rows, nodes)
    law = transfer_law(
        routes,
        given,
        market.generation.factors,
        market.cube,
        paths,
        venues=sorted({venue for portfolio in book.portfolios for _, venue in portfolio.nodes}),
        seed=resolved.configuration.run.seed,
        horizon_days=resolved.configuration.run.horizon_days,
    )
    return law, failures


def with_forecast(resolved: Resolved, as_of: datetime) -> Resolved:
    """The configuration with the scale that a model forecasts, where the scenarios ask for one."""
    scenarios = resolved.configuration.scenarios
    history = scenarios.history if isinstance(scenarios, CalibratedFigures) else scenarios
    if getattr(history, "forecast", None) is None:
        return resolved
    # Only now: the models take longer to import than a sweep without them takes to start.
    from models import scenario_forecast

    return scenario_forecast.with_forecast(resolved, as_of)


def _library(resolved: Resolved) -> StressLibrary | None:
    """The library of the configuration with every name in it checked; None without one."""
    if resolved.configuration.stress is None:
        return None
    library = read_stress_library(resolved.path(resolved.configuration.stress))
    book = read_asset_book(resolved.path(resolved.configuration.assets)).assets
    prices = {a.risk_factor for a in book.values() if a.risk_factor}
    pegs = {a.peg_of for a in book.values() if a.peg_of}
    check_names(library, assets={*book, *prices, *pegs}, venues=adapter_names())
    check_kinds(library, prices=prices, pegs=pegs)
    history = resolved.configuration.stress_history
    if history is None:
        return library
    days = [day for s in library.stress.values() if s.replay is not None for day in (s.replay.first, s.replay.last)]
    closes = closes_on(read_history_table(resolved.path(history)), days, payload=Path(history).name)
    return replayed(library, closes, sorted(prices))


def _stress_rows(work: _Work, evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
    if work.library is None:
        return []
    rows, factors = work.cube.rows, work.generation.factors
    return [
        row
        for e in evaluated
        for row in stress_rows(e, work.library, work.stresses, held_by(e.portfolio, rows, factors))
    ]


def _native(evaluated: Evaluated) -> Native:
    portfolio, figures = evaluated
    if figures is None:
        return Native(portfolio, None, ())
    return Native(portfolio, figures.native, np.asarray(figures.account_is_finite).tolist())


def _in_detail(work: _Work, members: Sequence[PackedPortfolio]) -> dict[str, tuple[Headline, Detail]]:
    found = evaluate_details(
        members,
        work.generation.factors,
        work.cube,
        devices=work.devices,
        worst=work.run.worst_scenarios,
        policy=work.policy,
        venues=work.venues,
    )
    return {p.portfolio_id: both for p, both in zip(members, found, strict=True) if both is not None}


def _write_detail_shard(
    work: _Work,
    in_detail: Mapping[str, tuple[Headline, Detail]],
    details: dict[str, TransferDetail],
    failures: Sequence[Failure],
) -> None:
    """The last shard: detail of the portfolios with the largest pooled requirement, the factors, and the failures of
    the inputs.
    """
    if work.shards in work.store.shards_written(work.run_id):
        return
    rows = work.store.rows_in_progress("portfolio_margin", work.run_id).to_pylist()
    rows = [row for row in rows if row["es_99_pooled_usd"] is not None]
    rows.sort(key=lambda r: (-r["es_99_pooled_usd"], r["portfolio_id"]))
    chosen = {row["portfolio_id"] for row in rows[: work.run.detail_top]}
    work.say("details", 0, 1)
    missing = [p for p in work.book.portfolios if p.portfolio_id in chosen - in_detail.keys()]
    found = {**in_detail, **_in_detail(work, missing)}
    sensitivities = row_sensitivities(work.cube.rows, work.generation.factors)
    names = (
        "allocation",
        "scenarios_worst",
        "greeks",
        "loss_histogram",
        "liquidation_prices",
        "reverse_stress",
        "nodes",
        "routes",
    )
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for portfolio in work.book.portfolios:
        if portfolio.portfolio_id not in chosen:
            continue
        headline, detail = found[portfolio.portfolio_id]
        evaluated = Evaluated(portfolio, headline)
        tables["allocation"] += allocation_rows(evaluated, detail)
        tables["scenarios_worst"] += worst_rows(evaluated, detail, work.cube, work.generation.factors)
        tables["loss_histogram"] += histogram_rows(evaluated, detail)
        tables["greeks"] += _greek_rows(portfolio, sensitivities)
    shown = [p for p in work.book.portfolios if p.portfolio_id in chosen]
    if work.transfer is not None:
        without = [Evaluated(p, found[p.portfolio_id][0]) for p in shown if p.portfolio_id not in details]
        _paths_and_transfers(work, without, details)
        for portfolio in shown:
            if portfolio.portfolio_id in details:
                tables["nodes"] += route_point_rows(portfolio, details[portfolio.portfolio_id])
                tables["routes"] += route_rows(portfolio, details[portfolio.portfolio_id], work.transfer)
    moves = liquidation_moves(shown, work.generation.factors, work.cube, devices=work.devices)
    tables["liquidation_prices"] = _liquidation_price_rows(work, shown, found, moves)
    tables["reverse_stress"] = _reverse_stress_rows(work, shown, found, moves)
    tables["factors"] = _factor_rows(work.generation, work.cube)
    tables["failures"] = [asdict(failure) for failure in failures]
    _write(work, work.shards, tables)
    work.say("details", 1, 1)


def _write(work: _Work, shard: int, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    tables = {name: result_table(name, work.run_id, of) for name, of in rows.items()}
    work.store.write_shard(work.run_id, shard, tables)


def _greek_rows(portfolio: PackedPortfolio, sensitivities: Any) -> list[dict[str, Any]]:
    return [
        {
            "portfolio_id": portfolio.portfolio_id,
            "underlying": name,
            "delta_usd": delta,
            "gamma_usd": gamma,
            "vega_usd": vega,
            "theta_usd": theta,
        }
        for name, (delta, gamma, vega, theta) in greeks_by_underlying(portfolio.legs, sensitivities).items()
    ]


def _liquidation_price_rows(
    work: _Work,
    portfolios: Sequence[PackedPortfolio],
    figures: Mapping[str, tuple[Headline, Detail]],
    moves: Sequence[Sequence[Mapping[str, Moves]]],
) -> list[dict[str, Any]]:
    rows = []
    for portfolio, of_portfolio in zip(portfolios, moves, strict=True):
        ids = [info.account_id for info in portfolio.accounts]
        subjects = [account_subjects(work.evidence.market(account_id), account_id) for account_id in ids]
        evaluated = Evaluated(portfolio, figures[portfolio.portfolio_id][0])
        rows += liquidation_price_rows(evaluated, of_portfolio, subjects)
    return rows


def _reverse_stress_rows(
    work: _Work,
    portfolios: Sequence[PackedPortfolio],
    figures: Mapping[str, tuple[Headline, Detail]],
    moves: Sequence[Sequence[Mapping[str, Moves]]],
) -> list[dict[str, Any]]:
    factors = work.generation.factors
    shocks, weights = np.asarray(work.cube.shocks), np.asarray(work.cube.weights)
    covariance = weighted_covariance(shocks, weights)
    nearest = nearest_moves(portfolios, factors, work.cube, covariance, devices=work.devices)
    rows = []
    for portfolio, of_portfolio, alone in zip(portfolios, nearest, moves, strict=True):
        evaluated = Evaluated(portfolio, figures[portfolio.portfolio_id][0])
        rows += reverse_stress_rows(evaluated, of_portfolio, alone, factors, shocks, weights)
    return rows


def _without_market(generation: Generation) -> frozenset[str]:
    """Price factors without market figures, where others have some; without any the add-ons are left out as a whole."""
    if not generation.sizes:
        return frozenset()
    return frozenset(f for f in generation.factors if f.startswith("price:") and f not in generation.sizes)


def _factor_rows(generation: Generation, cube: Cube) -> list[dict[str, Any]]:
    shocks, weights = np.asarray(cube.shocks), np.asarray(cube.weights)
    # Sums down the scenarios, not a matrix product: its order of additions is the library's own choice.
    mean = np.sum(weights[:, None] * shocks, axis=0)
    spread = np.sqrt(np.maximum(np.sum(weights[:, None] * (shocks - mean) ** 2, axis=0), 0.0))
    return [
        {
            "factor": name,
            "std_horizon": float(spread[number]),
            "filled_share": generation.origins[name].filled_share,
            "source": generation.origins[name].source,
        }
        for number, name in enumerate(generation.factors)
    ]


def _failure_of(row: Mapping[str, Any]) -> Failure:
    stored = {field.name: row[field.name] for field in fields(Failure)}
    return Failure(**stored | {"reason": FailureReason(row["reason"])})


def ordered_failures(failures: Sequence[Failure]) -> list[Failure]:
    """Sorted and without exact repeats (a payload read for two accounts fails once for each)."""
    return sorted(
        dict.fromkeys(failures),
        key=lambda f: (f.venue, f.payload, f.path, f.subject, f.reason, f.message, f.account_id or ""),
    )


# ---- conditions ------------------------------------------------------------------------------------------------------


def _conditions(
    configuration: Configuration,
    portfolios: Sequence[Mapping[str, Any]],
    accounts: Sequence[Mapping[str, Any]],
    failures: Sequence[Failure],
) -> tuple[Condition, ...]:
    of_limits = [c for limit in configuration.limits for c in _limit_conditions(limit, portfolios, accounts)]
    return (*of_limits, *data_conditions([row["portfolio_id"] for row in portfolios if not row["complete"]], failures))


def data_conditions(incomplete: Sequence[str], failures: Sequence[Failure]) -> tuple[Condition, ...]:
    """What holds of a run with these failures and portfolios that are not complete."""
    out = []
    unreachable = [f for f in failures if f.reason == FailureReason.UNREACHABLE]
    others = [f for f in failures if f.reason != FailureReason.UNREACHABLE]
    if unreachable:
        out.append(
            Condition(
                "unreachable",
                ExitCode.VENUE_UNREACHABLE,
                f"{len(unreachable)} payloads could not be brought: {unreachable[0].message}",
            )
        )
    if others:
        counts: dict[str, int] = {}
        for failure in others:
            counts[failure.reason] = counts.get(failure.reason, 0) + 1
        text = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        out.append(Condition("failures", ExitCode.BAD_DATA, f"{len(others)} rows could not be used: {text}"))
    if incomplete:
        names = ", ".join(sorted(incomplete))
        message = f"{len(incomplete)} portfolios are incomplete: {names}"
        out.append(Condition("incomplete", ExitCode.BAD_DATA, message))
    return tuple(out)


def _missed_target(missed: TargetOutcome, target: float | None) -> Condition:
    """A target for the standard error that was not reached; the figures stand, less sure than they were asked to be."""
    error = "unknown" if math.isnan(missed.error) else f"{missed.error:.2%}"
    of_whom = f" of portfolio {missed.portfolio_id}" if missed.portfolio_id else ""
    message = f"relative standard error of ES 99 %{of_whom} is {error}, the target {target:.2%}: {missed.reason}"
    return Condition("target_error_missed", ExitCode.BAD_DATA, message)


def _limit_conditions(
    limit: Limit, portfolios: Sequence[Mapping[str, Any]], accounts: Sequence[Mapping[str, Any]]
) -> list[Condition]:
    chosen = _in_scope(limit, portfolios, accounts)
    out = []
    if not chosen:
        out.append(
            Condition(
                "limit_undecided",
                ExitCode.BAD_DATA,
                f"{limit.metric} of {limit.scope}: nothing of that name in this run",
            )
        )
    for name, row in chosen:
        value = row[limit.metric]
        if value is None or row.get("complete") is False:
            # A debt-free account has no health to fall short of; anything else without a number is undecided.
            if limit.metric != "health" or row["status"] != "no_requirement":
                computed = row["status"] in ("ok", "no_requirement")
                reason = "no value in this run" if value is None and computed else row["status"]
                message = f"{limit.metric} of {name} is undecided ({reason})"
                out.append(Condition("limit_undecided", ExitCode.BAD_DATA, message))
        elif limit.minimum is not None and value < limit.minimum:
            message = f"{limit.metric} of {name} is {value:.6g}, below the limit {limit.minimum:g}"
            out.append(Condition("limit_breached", ExitCode.LIMIT_BREACHED, message))
        elif limit.maximum is not None and value > limit.maximum:
            message = f"{limit.metric} of {name} is {value:.6g}, above the limit {limit.maximum:g}"
            out.append(Condition("limit_breached", ExitCode.LIMIT_BREACHED, message))
    return out


def _in_scope(
    limit: Limit, portfolios: Sequence[Mapping[str, Any]], accounts: Sequence[Mapping[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    """(id, row) of every portfolio and account that the limit is about, portfolios first."""
    scope, everything = limit.scope, limit.scope == "*"
    of_both = limit.metric in _METRICS_OF_BOTH
    chosen: list[tuple[str, Mapping[str, Any]]] = []
    if limit.metric not in _ACCOUNT_METRICS:
        chosen += [(r["portfolio_id"], r) for r in portfolios if everything or r["portfolio_id"] == scope]
    if limit.metric in _ACCOUNT_METRICS or (of_both and not everything):
        chosen += [
            (r["account_id"], r)
            for r in accounts
            if everything or r["account_id"] == scope or r["account_id"].startswith(scope + ":")
        ]
    return chosen
