"""Which question each payload answers: a request, whose, and which part of it.

Two answers to one question are both rejected, because nobody knows which is right; what no adapter asked for, and an
owner's answer without an owner, is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from aggregator.errors import FailureReason

from .amounts import FieldError
from .rows import Rows
from .transport import Payload


class Question(NamedTuple):
    """A request by the adapter's name for it, the owner's label (empty: market-wide), and what else tells it apart."""

    request: str
    owner: str = ""
    part: str = ""


Answers = dict[str, list[Payload]]
"""Answers by request."""


def in_order(payloads: Iterable[Payload]) -> list[Payload]:
    """Payloads by request, account, name and content: whatever order they came in."""
    return sorted(payloads, key=lambda p: (p.request, p.account, p.name, p.sha256))


def owner_of(
    payload: Payload, request: str, *, requests: Collection[str], owned: Collection[str], either: Collection[str] = ()
) -> str:
    """Label of the owner whose answer this is; empty for a market-wide one.

    `request` is the adapter's name of the payload's request. Of `requests`, the `owned` are always of an owner, and
    those that are `either` wherever the payload has one. Raises `FieldError`: unsupported for a request that is none of
    `requests`, missing_field for an owned one without an owner.
    """
    if request not in requests:
        message = f"request {payload.request[:60]!r} is not one of {', '.join(requests)}"
        raise FieldError("request", FailureReason.UNSUPPORTED, message)
    if request in owned and not payload.account:
        message = f"{payload.request[:60]} needs the owner's label in the configuration"
        raise FieldError("account", FailureReason.MISSING_FIELD, message)
    return payload.account if request in owned or request in either else ""


def by_question(
    rows: Rows, payloads: Iterable[Payload], question_of: Callable[[Payload], Question]
) -> dict[Question, list[Payload]]:
    """Answers by question, in order; a payload for which `question_of` raises `FieldError` becomes a failure."""
    groups: dict[Question, list[Payload]] = {}
    for payload in in_order(payloads):
        with rows.guard(payload.name, subject=payload.account or payload.request):
            groups.setdefault(question_of(payload), []).append(payload)
    return groups


def reject_copies(
    rows: Rows, copies: Sequence[Payload], what: str = "", *, subject: str = "", account_id: str | None = None
) -> None:
    """A failure (duplicate) for each of several answers to one question, `what`; by default their own requests."""
    for payload in copies:
        rows.fail(
            FailureReason.DUPLICATE,
            f"{what or payload.request} came {len(copies)} times, all copies are rejected",
            payload=payload.name,
            subject=subject or payload.account or payload.request,
            account_id=account_id,
        )


def single_answers(
    rows: Rows,
    groups: Mapping[Question, Sequence[Payload]],
    *,
    account_of: Callable[[Question], str | None],
    market_wide: Callable[[Question], bool] = lambda question: not question.owner,
) -> tuple[Answers, dict[str, Answers]]:
    """The answers to questions that were answered once: market-wide ones, and by owner.

    A question with several answers is one failure that names them all and falls on the account `account_of` it. Its
    owner stays, and its request with no answer.
    """
    shared: Answers = {}
    owners: dict[str, Answers] = {}
    for question, copies in groups.items():
        target = shared if market_wide(question) else owners.setdefault(question.owner, {})
        answers = target.setdefault(question.request, [])
        if len(copies) == 1:
            answers.append(copies[0])
            continue
        if question.owner:
            owners.setdefault(question.owner, {})
        request = f"{question.request}:{question.part}" if question.part else question.request
        names = ", ".join(sorted(copy.name for copy in copies))
        rows.fail(
            FailureReason.DUPLICATE,
            f"{len(copies)} answers to {request}; all rejected: {names}",
            payload=max(copy.name for copy in copies),
            path="request",
            subject=question.owner or question.part or question.request,
            account_id=account_of(question),
        )
    return shared, owners
