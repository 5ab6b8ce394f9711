"""Where payloads come from: recorded files now, live read-only calls in a later release.

A payload file is an envelope `{request, received_at, sha256, body}`, or a bare body, or a body under `raw` (then what
else stands beside it is provenance). The SHA-256 is that of the file's bytes and enters the run's input hash.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from aggregator.errors import Failure, FailureReason

from .amounts import FieldError, parse_json, time_of


@dataclass(frozen=True, slots=True)
class PayloadRequest:
    """What to read: the venue's own name of the request, where it is, and whose it is (empty: market-wide)."""

    request: str
    location: str
    account: str = ""


@dataclass(frozen=True, slots=True)
class Payload:
    """One answer of a venue: `body` is parsed JSON with exact numbers, `received_at` None when nobody wrote it down."""

    request: str
    name: str
    account: str
    received_at: datetime | None
    sha256: str
    body: Any


class Transport(Protocol):
    """Brings payloads; never raises for one that cannot be brought, but says why."""

    def fetch(self, venue: str, request: PayloadRequest) -> Payload | Failure: ...


@dataclass(frozen=True)
class RecordedTransport:
    """Payloads from files below `root`; a location is a path relative to it (or absolute)."""

    root: Path

    def fetch(self, venue: str, request: PayloadRequest) -> Payload | Failure:
        """The payload of one file, or a failure.

        Reasons: unreachable (no such file), malformed (truncated, not JSON, bad envelope), missing_field (nobody names
        the request), and those of `time_of` for the receive time.
        """
        path = self.root / request.location
        name = Path(request.location).name
        try:
            data = path.read_bytes()
        except OSError as error:
            return Failure(
                FailureReason.UNREACHABLE,
                f"cannot read the payload file: {error.strerror}",
                venue=venue,
                payload=name,
                subject=request.account or request.request,
            )
        try:
            return _opened(parse_json(data), request, name, hashlib.sha256(data).hexdigest())
        except FieldError as error:
            return Failure(
                error.reason,
                error.message,
                venue=venue,
                payload=name,
                path=error.path,
                subject=request.account or request.request,
            )


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
