"""Error families of a run, the closed list of reasons why a row failed, and the exit codes.

    CrossmarginError
    ├── ConfigurationError     the run was asked for wrongly; nothing ran (exit 2)
    ├── DataError              an input cannot be used as it is (exit 3); carries a Failure
    ├── VenueUnreachableError  a venue did not answer (exit 5)
    └── StoreError             the result store refused or is inconsistent (exit 1)

A row that cannot be read never raises out of a run: it becomes a `Failure`, its account is marked incomplete and the
rest of the run goes on. Messages carry no secrets and no whole payloads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class FailureReason(StrEnum):
    """Why a row or a payload could not be used; closed, so that runs can be counted by reason."""

    MALFORMED = "malformed"
    MISSING_FIELD = "missing_field"
    NOT_A_NUMBER = "not_a_number"
    OUT_OF_RANGE = "out_of_range"
    UNKNOWN_MARKET = "unknown_market"
    UNKNOWN_ASSET = "unknown_asset"
    MISSING_PARAMETER = "missing_parameter"
    MISSING_MARK = "missing_mark"
    STALE = "stale"
    DUPLICATE = "duplicate"
    INCONSISTENT = "inconsistent"
    UNSUPPORTED = "unsupported"
    UNREACHABLE = "unreachable"
    CALCULATION = "calculation"


class ExitCode(IntEnum):
    """Process exit codes; when several conditions hold the first of `PRECEDENCE` wins."""

    OK = 0
    INTERNAL = 1
    CONFIGURATION = 2
    BAD_DATA = 3
    LIMIT_BREACHED = 4
    VENUE_UNREACHABLE = 5


PRECEDENCE = (
    ExitCode.INTERNAL,
    ExitCode.CONFIGURATION,
    ExitCode.LIMIT_BREACHED,
    ExitCode.VENUE_UNREACHABLE,
    ExitCode.BAD_DATA,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One row or payload that could not be used.

    `subject` names what is affected (an account id, an instrument, an asset); `account_id` is set when the failure
    makes that account incomplete, and stays None for findings that leave every account computable.
    """

    reason: FailureReason
    message: str
    venue: str = ""
    payload: str = ""
    path: str = ""
    subject: str = ""
    account_id: str | None = None


def ordered_failures(failures: Iterable[Failure]) -> list[Failure]:
    """Sorted and without exact repeats (a payload read for two accounts fails once for each)."""
    return sorted(
        dict.fromkeys(failures),
        key=lambda f: (f.venue, f.payload, f.path, f.subject, f.reason, f.message, f.account_id or ""),
    )


class CrossmarginError(Exception):
    """Root of every error that this project raises on purpose."""

    exit_code = ExitCode.INTERNAL


class ConfigurationError(CrossmarginError):
    """The configuration or the command line is wrong; nothing ran."""

    exit_code = ExitCode.CONFIGURATION


class DataError(CrossmarginError):
    """One input cannot be used; `failure` says which, where and why."""

    exit_code = ExitCode.BAD_DATA

    def __init__(self, failure: Failure) -> None:
        place = " ".join(part for part in (failure.venue, failure.payload, failure.path) if part)
        super().__init__(f"{failure.reason}: {failure.message}" + (f" ({place})" if place else ""))
        self.failure = failure


class VenueUnreachableError(CrossmarginError):
    """A venue or transport did not answer."""

    exit_code = ExitCode.VENUE_UNREACHABLE


class StoreError(CrossmarginError):
    """The result store cannot be read or written as the contract demands."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A hint such as " (did you mean 'scenarios'?)", or "" when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
