"""Facts that several payloads may state: an error that knows its payload, and whom it stops.

Where an account is read from its own payload and the market's, a fact that cannot be used may stand in either. A
failure makes its account incomplete; a finding stops nobody by itself, because whoever needs the fact fails on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from aggregator.errors import FailureReason

from .amounts import FieldError
from .rows import Rows

_T = TypeVar("_T")


class Problem(NamedTuple):
    """Why something that accounts share cannot be used; whoever needs it becomes incomplete for this reason."""

    reason: FailureReason
    message: str


class PlacedError(FieldError):
    """A field that cannot be used, with the name of the payload that it stands in."""

    def __init__(self, payload: str, error: FieldError) -> None:
        super().__init__(error.path, error.reason, error.message)
        self.payload = payload


def fail_account(rows: Rows, error: PlacedError, account_id: str) -> None:
    """A failure of one account."""
    rows.refuse(error, payload=error.payload, subject=account_id, account_id=account_id)


def find_wrong(rows: Rows, error: PlacedError, subject: str) -> None:
    """A finding, said once however many need the fact."""
    said = {(f.payload, f.path, f.reason) for f in rows.failures}
    if (error.payload, error.path, error.reason) not in said:
        rows.refuse(error, payload=error.payload, subject=subject)


def or_failure(rows: Rows, step: Callable[[], _T], account_id: str) -> _T | None:
    """What `step` gives, or None and a failure of the account."""
    try:
        return step()
    except PlacedError as error:
        fail_account(rows, error, account_id)
        return None


def or_finding(rows: Rows, step: Callable[[], _T], subject: str) -> _T | None:
    """What `step` gives, or None and a finding."""
    try:
        return step()
    except PlacedError as error:
        find_wrong(rows, error, subject)
        return None


@contextmanager
def noted(rows: Rows, subject: str) -> Iterator[None]:
    """Turns a `PlacedError` of the block into a finding; what the block added before it stays."""
    try:
        yield
    except PlacedError as error:
        find_wrong(rows, error, subject)
