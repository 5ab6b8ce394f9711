"""What a run reads: the payloads of every source, normalised by their venue's adapter and checked snapshot by snapshot,
and what else its configuration names: the library of stresses, the routes, the scale that a model forecasts.

The only module (with the command line) where adapters, models and engine meet.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from adapters.adapter import AssetBook, Context, Normalized, adapter_names, find_adapter
from adapters.asset_book import read_asset_book
from adapters.transport import Payload, PayloadRequest, RecordedTransport

from .config import CalibratedFigures, Resolved, Source
from .errors import ConfigurationError, Failure, FailureReason, nearest_name
from .history_tables import read_history_table
from .progress import Progress
from .replay import closes_on, replayed
from .routes import Routes, read_routes
from .snapshot import Snapshot, take_snapshot
from .stress import StressLibrary, check_kinds, check_names, read_stress_library

_UNCOUNTED_SEGMENT = re.compile(r"v?\d+")


class Inputs(NamedTuple):
    """All payloads, read: checked snapshots by name, what lies behind them, the instant of the run."""

    snapshots: dict[str, Snapshot]
    payloads: list[tuple[str, Payload]]
    failures: list[Failure]
    as_of: datetime
    digest: str


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


def _by_venue(sources: Iterable[Source]) -> dict[str, list[Source]]:
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
) -> Normalized:
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


def with_forecast(resolved: Resolved, as_of: datetime) -> Resolved:
    """The configuration with the scale that a model forecasts, where the scenarios ask for one."""
    scenarios = resolved.configuration.scenarios
    history = scenarios.history if isinstance(scenarios, CalibratedFigures) else scenarios
    if getattr(history, "forecast", None) is None:
        return resolved
    # Only now: the models take longer to import than a sweep without them takes to start.
    from models import scenario_forecast

    return scenario_forecast.with_forecast(resolved, as_of)


def stress_library(resolved: Resolved) -> StressLibrary | None:
    """The library of stresses of the configuration with every name in it checked; None without one."""
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


def routes(resolved: Resolved, nodes: Collection[str]) -> Routes | None:
    """The routes file of the configuration with every name in it checked, of nodes those of the book; None without."""
    path = resolved.configuration.routes
    if path is None:
        return None
    return read_routes(resolved.path(path), venues=adapter_names(), nodes=nodes)
