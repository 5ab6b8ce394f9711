"""The records of an answer as typed lines by key, where a key may stand once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from aggregator.errors import FailureReason

from .rows import Rows

Line = TypeVar("Line")


def unique_lines(
    rows: Rows,
    payload: str,
    records: Iterable[tuple[str, Any]],
    read: Callable[[Any, str], Line],
    *,
    key: Callable[[Line], str],
    subject: Callable[[Any], str],
    account: Callable[[Any], str | None] = lambda record: None,
) -> Iterator[tuple[Line, str]]:
    """(line, path) of each of the (path, record) that can be read and whose key occurs once.

    The others are failures on `subject(record)`, which fail `account(record)`; of a key that stands several times all
    are rejected by one failure, at the last one's path.
    """
    groups: dict[str, list[tuple[Line, Any, str]]] = {}
    for path, record in records:
        with rows.guard(payload, subject=subject(record), account_id=account(record)):
            line = read(record, path)
            groups.setdefault(key(line), []).append((line, record, path))
    for name, copies in groups.items():
        line, record, path = copies[-1]
        if len(copies) == 1:
            yield line, path
        else:
            message = f"{len(copies)} rows of {name}; all rejected"
            rows.fail(
                FailureReason.DUPLICATE, message, payload=payload, path=path, subject=name, account_id=account(record)
            )
