"""Payloads of a venue's tests: read from a file of the suite or of the recorded material, and changed in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.transport import Payload, PayloadRequest, RecordedTransport


def read_payload(venue: str, folder: Path, request: str, file: str, account: str = "") -> Payload:
    """The answer to `request` for `account` that stands in `file` of `folder`, which must be readable."""
    payload = RecordedTransport(folder).fetch(venue, PayloadRequest(request, file, account))
    assert isinstance(payload, Payload), payload
    return payload


def changed(payload: Payload, change: Callable[[Any], Any]) -> Payload:
    """The payload with a body of its own, changed in place by `change`."""
    body = copy.deepcopy(payload.body)
    change(body)
    return replace(payload, body=body)


def put(*path: Any, to: Any) -> Callable[[Any], None]:
    """A change of a body: `to` at the end of `path` (keys and positions); `...` takes the key away."""

    def change(body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        if to is ...:
            del body[path[-1]]
        else:
            body[path[-1]] = to

    return change


def setting(pick: Callable[[Any], Any], key: str, value: Any) -> Callable[[Any], None]:
    """A change that gives `key` a value in the object that `pick` finds in a body."""
    return lambda body: pick(body).update({key: value})


def dropping(pick: Callable[[Any], Any], key: str) -> Callable[[Any], None]:
    """A change that takes `key` out of the object that `pick` finds in a body."""
    return lambda body: pick(body).pop(key)
