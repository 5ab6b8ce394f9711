"""Collects canonical rows and failures while an adapter reads, and turns them into checked Arrow tables at the end.

An adapter reads row by row inside `with rows.guard(...)`: a row that cannot be read becomes a failure that names venue,
payload, path and reason, and the rest of the payload goes on.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import accumulate, compress
from types import TracebackType
from typing import Any

import pyarrow as pa

from aggregator.errors import DataError, Failure, FailureReason
from aggregator.schema.canonical import CANONICAL
from aggregator.schema.casting import cast_table, table_from_rows

from .amounts import FieldError

Batches = dict[str, pa.Table]
"""Canonical tables by name; every name of `aggregator.schema.canonical.CANONICAL` but `failures` is present."""

LONGEST_MESSAGE = 500
"""Characters of a failure's message; what a longer one says behind them is cut off."""


@dataclass
class Rows:
    """Rows of one venue's snapshot under construction."""

    venue: str
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in CANONICAL})
    failures: list[Failure] = field(default_factory=list)
    tables: dict[str, list[tuple[int, pa.Table]]] = field(default_factory=lambda: {name: [] for name in CANONICAL})
    """Whole tables of many rows, each with the number of single rows that stand before it."""
    tables_added: list[str] = field(default_factory=list)
    """Name of each whole table in the order in which they came."""

    def add_table(self, name: str, table: pa.Table) -> None:
        """Many rows of `name` at once, behind all that were added before.

        A table of the canonical schema has been checked by `columns.canonical_table`, of which it may be a slice; any
        other is checked here, which raises `DataError` as `cast_table` does.
        """
        if not table.schema.equals(CANONICAL[name], check_metadata=True):
            table = cast_table(name, table)
        if table.num_rows:
            self.tables[name].append((len(self.rows[name]), table))
            self.tables_added.append(name)

    def add(self, table: str, **values: Any) -> None:
        """One row of `table`; an absent column is null."""
        self.rows[table].append(values)

    def fail(
        self,
        reason: FailureReason,
        message: str,
        *,
        payload: str = "",
        path: str = "",
        subject: str = "",
        account_id: str | None = None,
    ) -> None:
        """One failure; with `account_id` it makes that account incomplete."""
        account = None if account_id is None else _storable(account_id)
        self.failures.append(
            Failure(reason, _told(message), self.venue, payload, _storable(path), _storable(subject), account)
        )

    def refuse(self, error: FieldError, *, payload: str, subject: str = "", account_id: str | None = None) -> None:
        """The failure that a `FieldError` tells of, in a payload."""
        where = {"payload": payload, "path": error.path, "subject": subject}
        self.fail(error.reason, error.message, account_id=account_id, **where)

    def guard(self, payload: str, *, subject: str = "", account_id: str | None = None) -> AbstractContextManager[None]:
        """Turns a `FieldError` of the block into a failure row, and takes back what the block added to the tables."""
        return _Guard(self, payload, subject, account_id)

    def batches(self) -> Batches:
        """The canonical tables (all but failures). A row that the schema refuses becomes a failure, the others stay."""
        out: Batches = {}
        for name in CANONICAL:
            if name == "failures":
                continue
            rows, places = self.rows[name], [place for place, _ in self.tables[name]]
            try:
                single = table_from_rows(name, rows)
            except DataError:
                accepted = [self._accepted(name, row) for row in rows]
                single = table_from_rows(name, list(compress(rows, accepted)))
                before = [0, *accumulate(accepted)]
                places = [before[place] for place in places]
            out[name] = _put_together(single, places, [table for _, table in self.tables[name]])
        return out

    def _accepted(self, name: str, row: dict[str, Any]) -> bool:
        try:
            table_from_rows(name, [row])
        except DataError as error:
            account = row.get("account_id")
            subject = str(row.get("instrument_id") or row.get("asset_id") or row.get("subject") or account or "")
            self.fail(error.failure.reason, error.failure.message, subject=subject, account_id=account)
            return False
        return True


class _Guard(AbstractContextManager[None]):
    # Not a generator: there is one for almost every record of every payload.
    __slots__ = ("account_id", "lengths", "payload", "rows", "subject", "tables")

    def __init__(self, rows: Rows, payload: str, subject: str, account_id: str | None) -> None:
        self.rows, self.payload, self.subject, self.account_id = rows, payload, subject, account_id

    def __enter__(self) -> None:
        self.lengths = tuple(map(len, self.rows.rows.values()))
        self.tables = len(self.rows.tables_added)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, FieldError):
            return False
        for of_rows, length in zip(self.rows.rows.values(), self.lengths, strict=True):
            del of_rows[length:]
        for name in self.rows.tables_added[self.tables :]:
            self.rows.tables[name].pop()
        del self.rows.tables_added[self.tables :]
        self.rows.refuse(error, payload=self.payload, subject=self.subject, account_id=self.account_id)
        return True


def _put_together(single: pa.Table, places: list[int], tables: list[pa.Table]) -> pa.Table:
    """`single` with each of `tables` behind as many of its rows as its place says."""
    if not tables:
        return single
    parts, start = [], 0
    for place, table in zip(places, tables, strict=True):
        if place > start:
            parts.append(single.slice(start, place - start))
            start = place
        parts.append(table)
    return pa.concat_tables([*parts, single.slice(start)]).combine_chunks()


def _told(message: str) -> str:
    # A value that a message quotes may be as long as its payload; the failure says where to find it.
    text = _storable(message)
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."


def _storable(text: str) -> str:
    # A JSON text may hold half of a surrogate pair, which is no Unicode and which neither Arrow nor a terminal takes.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
