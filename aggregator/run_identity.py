"""Identity of a run: the digest of everything that decides its numbers, and the id that starts with its time."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

from . import __version__
from .config import CalibratedFigures, FilteredHistoryFigures, Resolved
from .run_inputs import Inputs


def digest_of_run(resolved: Resolved, inputs: Inputs, kind: str) -> str:
    """What a run is identified by: snapshot, files, configuration, seed, code version, instant, and its kind: a sweep
    resumes no screen of the same inputs.
    """
    parts = (
        inputs.digest,
        json.dumps(file_hashes(resolved)),
        resolved.digest(),
        str(resolved.configuration.run.seed),
        __version__,
        inputs.as_of.isoformat(),
    )
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()
    # A sweep's carries no word of its kind: runs that wait in stores are known by it.
    return digest if kind == "sweep" else hashlib.sha256(f"{kind}|{digest}".encode()).hexdigest()


def new_run_id(started: datetime, run_digest: str) -> str:
    """The id of a run: its start in UTC and the first digits of its digest."""
    return f"{started:%Y%m%dT%H%M%S}.{started.microsecond // 1000:03d}Z-{run_digest[:8]}"


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
