"""A run in the store from its start to its outcome: begun or resumed, committed by its row, told to whoever asked.

The same for every kind of run. The clock only stamps a run and finds one to resume: no figure depends on it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from . import __version__
from .conditions import Condition, exit_code
from .config import Configuration, Resolved
from .errors import ExitCode
from .run_identity import digest_of_run, file_hashes, new_run_id
from .run_inputs import Inputs
from .store import ResultStore

_VERSIONS = ("jax", "jaxlib", "equinox", "numpy", "pyarrow", "deltalake", "pydantic")


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
        return exit_code(self.conditions)


class RunRecord(NamedTuple):
    """A run that has an identity and a store to go to."""

    resolved: Resolved
    inputs: Inputs
    kind: str
    store: ResultStore
    run_id: str
    run_digest: str
    started: datetime
    shards: int
    devices: int
    resumed: bool


class Findings(NamedTuple):
    """What a run found, as far as its row tells it: counts, conditions, and what it leaves out."""

    scenarios: int
    portfolios: int
    incomplete: int
    accounts: int
    failures: int
    conditions: tuple[Condition, ...]
    notes: tuple[str, ...]


def devices_of(configuration: Configuration) -> int:
    """How many devices a run uses."""
    wanted = configuration.engine.host_devices
    available = len(jax.devices())
    return min(wanted, available) if wanted else available


def new_run(resolved: Resolved, inputs: Inputs, *, kind: str, started: datetime, shards: int) -> RunRecord:
    """A run of `kind` (`sweep`, `screen`) that began to read at `started`; nothing is written yet."""
    run_digest = digest_of_run(resolved, inputs, kind)
    path = resolved.configuration.store.path
    store = ResultStore(path if "://" in path else resolved.path(path))
    devices = devices_of(resolved.configuration)
    run_id = new_run_id(started, run_digest)
    return RunRecord(resolved, inputs, kind, store, run_id, run_digest, started, shards, devices, resumed=False)


def start_run(run: RunRecord) -> None:
    """Write down that `run` begins, before its first shard, so that it can be found again if it is killed."""
    run.store.start_run(run.run_id, run_digest=run.run_digest, started_at=run.started, shards=run.shards)


def resumed_or_started(run: RunRecord) -> RunRecord:
    """The newest uncommitted run of the same digest that a kill left behind, within the configuration's
    `resume_within_s` before this one; without any, `run` itself, started.
    """
    within = timedelta(seconds=run.resolved.configuration.store.resume_within_s)
    pending = run.store.pending_run(run.run_digest, now=run.started, within=within)
    if pending is None:
        start_run(run)
        return run
    return run._replace(run_id=pending.run_id, started=pending.started_at, shards=pending.shards, resumed=True)


def commit_run(run: RunRecord, found: Findings) -> None:
    """Write the row of a run that ends now, after which readers see it."""
    configuration, finished = run.resolved.configuration, datetime.now(UTC)
    payloads = [
        {"venue": venue, "request": p.request, "name": p.name, "sha256": p.sha256} for venue, p in run.inputs.payloads
    ]
    run.store.write_run(
        {
            "run_id": run.run_id,
            "kind": run.kind,
            "started_at": run.started,
            "finished_at": finished,
            "duration_s": (finished - run.started).total_seconds(),
            "as_of": run.inputs.as_of,
            "snapshot_hash": run.inputs.digest,
            "configuration_digest": run.resolved.digest(),
            "run_digest": run.run_digest,
            "configuration": run.resolved.text(),
            "inputs": json.dumps([*payloads, *file_hashes(run.resolved)]),
            "code_version": __version__,
            "versions": json.dumps(
                {"python": platform.python_version()} | {name: metadata.version(name) for name in _VERSIONS}
            ),
            "device": f"{jax.devices()[0].device_kind} x {run.devices}",
            "seed": configuration.run.seed,
            "generator": configuration.scenarios.generator,
            "scenarios": found.scenarios,
            "horizon_days": configuration.run.horizon_days,
            "shards": run.shards,
            "portfolios": found.portfolios,
            "portfolios_incomplete": found.incomplete,
            "accounts": found.accounts,
            "failures": found.failures,
            "conditions": json.dumps([condition._asdict() for condition in found.conditions]),
            "notes": json.dumps(found.notes),
        }
    )


def outcome_of(
    run: RunRecord, found: Findings, portfolios: Iterable[dict[str, Any]], *, report: Path | None = None
) -> Outcome:
    """What is told of a committed run now, with these headline rows and the report that was written."""
    return Outcome(
        run_id=run.run_id,
        store=str(run.store.root),
        report=None if report is None else str(report),
        conditions=found.conditions,
        notes=found.notes,
        portfolios=tuple(portfolios),
        resumed=run.resumed,
        duration_s=(datetime.now(UTC) - run.started).total_seconds(),
    )
