"""The Delta tables of recommendations beside those of runs: `tier_trial`, and `recommendations` in the caller's schema.

Layout: `<store>/<table>`, one table of rows keyed by the reference id of a recommendation. Every append carries that id
as its Delta application transaction, so that the same recommendation is there once however often it is written. The
rows of `recommendations` are written last: a reference without them was never finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from .errors import StoreError
from .schema.fields import TIME
from .tier_trial import TrialRow

if TYPE_CHECKING:
    # deltalake takes about 0.3 s to import
    from deltalake import DeltaTable

RECOMMENDATIONS_TABLE, TRIAL_TABLE = "recommendations", "tier_trial"


def _field(name: str, kind: pa.DataType, unit: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit})


def _both(name: str, kind: pa.DataType, unit: str) -> list[pa.Field]:
    stem, _, suffix = name.rpartition("_") if name.endswith("_usd") else (name, "", "")
    ending = f"_{suffix}" if suffix else ""
    return [
        _field(f"{stem}_{when}{ending}", kind, f"{unit}, {when} the change", nullable=True)
        for when in ("before", "after")
    ]


TIER_TRIAL = pa.schema(
    [
        _field("reference_id", pa.string(), "that of the recommendation"),
        _field("created_at", TIME, "UTC time"),
        _field("portfolio_id", pa.string(), "id"),
        _field("venue", pa.string(), "venue, empty for all of the portfolio"),
        _field("complete", pa.bool_(), "whether every account is in it"),
        _field("accounts", pa.int32(), "number"),
        *_both("initial_usd", pa.float64(), "USD, the venues' own initial requirement"),
        *_both("maintenance_usd", pa.float64(), "USD, the venues' own maintenance requirement"),
        *_both("p_liquidation", pa.float64(), "probability that some account is liquidatable at the horizon"),
        *_both("p_path", pa.float64(), "probability that some account is liquidated on the way to the horizon"),
        *_both("bad_debt_usd", pa.float64(), "USD, expected"),
        *_both("liquidatable", pa.int32(), "accounts that are liquidatable today"),
        _field("accounts_liquidated", pa.string(), "JSON list: liquidatable today by the change alone"),
        _field("value_liquidated_usd", pa.float64(), "USD, their gross notional"),
        _field("equity_liquidated_usd", pa.float64(), "USD, their equity"),
    ],
    metadata={"crossmargin.table": TRIAL_TABLE, "crossmargin.version": "1"},
)
"""One row per portfolio and venue of a trial; unique by reference_id, portfolio_id and venue."""


def trial_table(rows: Sequence[TrialRow], *, reference_id: str, created_at: datetime) -> pa.Table:
    """The rows of a trial as `TIER_TRIAL`."""
    common = {"reference_id": reference_id, "created_at": created_at}
    listed = [
        {**common, **row._asdict(), "accounts_liquidated": json.dumps(list(row.accounts_liquidated))} for row in rows
    ]
    return pa.Table.from_pylist(listed, schema=TIER_TRIAL)


def read_table(store: str | Path, name: str, schema: pa.Schema) -> pa.Table:
    """All rows of a table in `schema`, in no order; none where the table is not there yet.

    Raises StoreError for a table that cannot be read or has other columns.
    """
    from deltalake import QueryBuilder
    from deltalake.exceptions import DeltaError

    try:
        table = _opened(store, name)
        if table is None:
            return schema.empty_table()
        present = {field.name for field in table.schema().fields}
        if missing := [column for column in schema.names if column not in present]:
            raise StoreError(f"{_location(store, name)}: the table has no columns {missing}")
        query = f"SELECT {', '.join(schema.names)} FROM stored"
        rows = pa.table(QueryBuilder().register("stored", table).execute(query))
        return pa.Table.from_arrays([rows.column(f.name).cast(f.type) for f in schema], schema=schema)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise StoreError(f"{_location(store, name)}: cannot be read ({str(error).splitlines()[0]})") from error


def append_once(store: str | Path, name: str, rows: pa.Table, *, transaction: str) -> bool:
    """Append `rows` unless a commit of `transaction` is there; whether they were appended now.

    Raises StoreError when the table cannot be written.
    """
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    from deltalake.exceptions import DeltaError

    location = _location(store, name)
    try:
        table = _opened(store, name)
        if table is None:
            table = DeltaTable.create(location, schema=rows.schema, mode="error")
        if table.transaction_version(transaction) is not None:
            return False
        properties = CommitProperties(app_transactions=[Transaction(transaction, 1)])
        write_deltalake(table, rows, mode="append", commit_properties=properties)
    except (DeltaError, OSError) as error:
        raise StoreError(f"{location}: cannot be written ({str(error).splitlines()[0]})") from error
    return True


def _location(store: str | Path, name: str) -> str:
    text = str(store)
    return f"{text.rstrip('/')}/{name}" if "://" in text else str(Path(text) / name)


def _opened(store: str | Path, name: str) -> DeltaTable | None:
    from deltalake import DeltaTable

    location = _location(store, name)
    return DeltaTable(location) if DeltaTable.is_deltatable(location) else None
