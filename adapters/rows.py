"""Collects canonical rows and failures while an adapter reads, and turns them into checked Arrow tables at the end.

An adapter reads row by row inside `with rows.guard(...)`: a row that cannot be read becomes a failure that names venue,
payload, path and reason, and the rest of the payload goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from aggregator.errors import DataError, Failure, FailureReason
from aggregator.schema import CANONICAL, table_from_rows

from .amounts import FieldError

Batches = dict[str, pa.Table]
"""Canonical tables by name; every name of `aggregator.schema.CANONICAL` but `failures` is present."""


@dataclass
class Rows:
    """Rows of one venue's snapshot under construction."""

    venue: str
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in CANONICAL})
    failures: list[Failure] = field(default_factory=list)

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
            Failure(reason, _storable(message), self.venue, payload, _storable(path), _storable(subject), account)
        )

    @contextmanager
    def guard(self, payload: str, *, subject: str = "", account_id: str | None = None) -> Iterator[None]:
        """Turns a `FieldError` of the block into a failure row, and takes back what the block added to the tables."""
        before = {name: len(rows) for name, rows in self.rows.items()}
        try:
            yield
        except FieldError as error:
            for name, length in before.items():
                del self.rows[name][length:]
            self.fail(
                error.reason, error.message, payload=payload, path=error.path, subject=subject, account_id=account_id
            )

    def batches(self) -> Batches:
        """The canonical tables (all but failures). A row that the schema refuses becomes a failure, the others stay."""
        tables: Batches = {}
        for name in CANONICAL:
            if name == "failures":
                continue
            try:
                tables[name] = table_from_rows(name, self.rows[name])
            except DataError:
                tables[name] = table_from_rows(name, [row for row in self.rows[name] if self._accepted(name, row)])
        return tables

    def _accepted(self, name: str, row: dict[str, Any]) -> bool:
        try:
            table_from_rows(name, [row])
        except DataError as error:
            account = row.get("account_id")
            subject = str(row.get("instrument_id") or row.get("asset_id") or row.get("subject") or account or "")
            self.fail(error.failure.reason, error.failure.message, subject=subject, account_id=account)
            return False
        return True


def _storable(text: str) -> str:
    # A JSON text may hold half of a surrogate pair, which is no Unicode and which neither Arrow nor a terminal takes.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
