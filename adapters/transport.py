"""Where payloads come from: recorded files now, live read-only calls in a later release.

A payload file is an envelope `{request, received_at, sha256, body}`, or a bare body, or a body under `raw` (then what
else stands beside it is provenance). A file whose name says that it is a table (`TABLE_SUFFIXES`) is one: Parquet,
Arrow IPC (file or stream) or CSV. The SHA-256 is that of the file's bytes and enters the run's input hash.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from aggregator.errors import Failure, FailureReason
from aggregator.schema.fields import table_version

from .amounts import FieldError, parse_json, time_of


@dataclass(frozen=True, slots=True)
class PayloadRequest:
    """What to read: the venue's own name of the request, where it is, and whose it is (empty: market-wide)."""

    request: str
    location: str
    account: str = ""


@dataclass(frozen=True, slots=True)
class Payload:
    """One answer of a venue: `body` is parsed JSON with exact numbers, `received_at` None when nobody wrote it down.

    Of a table file the body is a pyarrow table or `CsvLines`, or the `Failure` to read it: whose rows it would have
    held only the adapter can tell.
    """

    request: str
    name: str
    account: str
    received_at: datetime | None
    sha256: str
    body: Any


class CsvLines(NamedTuple):
    """Cells of a CSV file as text; a line may have more or fewer cells than the header."""

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


class Transport(Protocol):
    """Brings payloads; never raises for one that cannot be brought, but says why."""

    def fetch(self, venue: str, request: PayloadRequest) -> Payload | Failure: ...


@dataclass(frozen=True)
class RecordedTransport:
    """Payloads from files below `root`; a location is a path relative to it (or absolute)."""

    root: Path

    def fetch(self, venue: str, request: PayloadRequest) -> Payload | Failure:
        """The payload of one file, or a failure.

        Reasons: unreachable (no such file), malformed (truncated, not JSON, no table, bad envelope), missing_field
        (nobody names the request), and those of `time_of` for the receive time. A table file whose request is named
        always gives a payload; what is wrong with it is its body.
        """
        path = self.root / request.location
        name = Path(request.location).name
        read_table = TABLE_SUFFIXES.get(path.suffix.lower())

        def failure(reason: FailureReason, message: str, where: str = "") -> Failure:
            subject = request.account or request.request
            return Failure(reason, message, venue=venue, payload=name, path=where, subject=subject)

        sha256 = ""
        try:
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if read_table is None:
                return _opened(parse_json(data), request, name, sha256)
            table = read_table(data)
            stated = request.request or (table_version(table.schema)[0] if isinstance(table, pa.Table) else "")
            if stated:
                return Payload(stated, name, request.account, None, sha256, table)
            message = "the configuration names no request: that of a table is the table's name"
            return failure(FailureReason.MISSING_FIELD, message, "request")
        except OSError as error:
            lost = failure(FailureReason.UNREACHABLE, f"cannot read the payload file: {error.strerror}")
        except FieldError as error:
            lost = failure(error.reason, error.message, error.path)
        if read_table is not None and request.request:
            return Payload(request.request, name, request.account, None, sha256, lost)
        return lost


def _opened(document: Any, request: PayloadRequest, name: str, sha256: str) -> Payload:
    received_at, stated, body = None, request.request, document
    if isinstance(document, dict) and "body" in document and "request" in document:
        body = document["body"]
        if not isinstance(document["request"], str | None):
            raise FieldError("request", FailureReason.MALFORMED, "the envelope's request is no text")
        stated = request.request or document["request"] or ""
        if document.get("received_at") is not None:
            received_at = time_of(document["received_at"], "received_at")
    elif isinstance(document, dict) and "raw" in document:
        body = document["raw"]
    if not stated:
        raise FieldError(
            "request", FailureReason.MISSING_FIELD, "neither the file nor the configuration names the request"
        )
    return Payload(stated, name, request.account, received_at, sha256, body)


# ---- table files -----------------------------------------------------------------------------------------------------


def _parquet(data: bytes) -> pa.Table:
    import pyarrow.parquet  # slow to import, and needed by those who bring Parquet alone

    return _arrow(lambda: pyarrow.parquet.ParquetFile(pa.BufferReader(data)).read(), "Parquet")


def _ipc(data: bytes) -> pa.Table:
    opened = pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream
    return _arrow(lambda: opened(pa.BufferReader(data)).read_all(), "Arrow IPC")


def _arrow(read: Callable[[], pa.Table], kind: str) -> pa.Table:
    try:
        table = read()
        # A damaged file may hold offsets or texts that would only hurt later.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FieldError("", FailureReason.MALFORMED, f"not readable as {kind}: {first[:200]}") from None
    return table


def _csv(data: bytes) -> CsvLines:
    try:
        lines = tuple(
            tuple(line) for line in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        )
    except (csv.Error, UnicodeDecodeError) as error:
        raise FieldError("", FailureReason.MALFORMED, f"not readable as CSV: {error}") from None
    filled = tuple(line for line in lines if line)
    if not filled:
        raise FieldError("", FailureReason.MALFORMED, "not readable as CSV: no header")
    return CsvLines(filled[0], filled[1:])


TABLE_SUFFIXES: Mapping[str, Callable[[bytes], pa.Table | CsvLines]] = {
    ".parquet": _parquet,
    ".pq": _parquet,
    ".arrow": _ipc,
    ".arrows": _ipc,
    ".feather": _ipc,
    ".ipc": _ipc,
    ".csv": _csv,
}
"""How a file is read by the end of its name; every other file is JSON."""
