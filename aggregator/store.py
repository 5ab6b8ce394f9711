"""The result store: one Delta table per result table, every shard of a run in it exactly once, the run row last.

Layout: `<root>/<table>` for every name of `RESULTS`, and two tables of the store's own, `run_starts` (one row per run
that was begun) and `run_shards` (one row per shard whose tables are all there, with their row counts). The root is a
local folder or the URL of an object store.

Exactly once: every append carries the Delta application transaction `<run_id>/<shard>`. Delta keeps only the last
version per application id, and shards of a resumed run arrive in any order, so the shard stands in the id and the
version is always 1. The transaction is looked up in the very snapshot that the append is then based on: a writer that
was overtaken by another one gets a conflict from Delta instead of a second copy. A failed or lost append may leave a
Parquet file that no commit names; readers never see it.

Visible or not: rows of a run count once the run has a row in `runs`. Everything else is work in progress.

Older and newer: a table of another version of its schema that this version's rows do not fit is refused before a run
starts (`store_versions`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from .errors import StoreError, nearest_name
from .schema.fields import TIME
from .schema.results import RESULT_KEYS, RESULTS
from .store_versions import misfits, refuse_version, version_property

if TYPE_CHECKING:
    # deltalake takes about 0.3 s to import: it is imported where a table is touched, never with this module
    from deltalake import DeltaTable

RUN_STARTS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("run_digest", pa.string(), nullable=False),
        pa.field("started_at", TIME, nullable=False),
        pa.field("shards", pa.int32(), nullable=False),
    ]
)
RUN_SHARDS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("rows", pa.string(), nullable=False, metadata={"unit": "JSON of table to row count"}),
    ]
)
_SCHEMAS: Mapping[str, pa.Schema] = {**RESULTS, "run_starts": RUN_STARTS, "run_shards": RUN_SHARDS}

SHARD_TABLES = tuple(name for name in RESULTS if name != "runs")
"""The tables that `write_shard` takes, in the order in which it appends them."""

# A lost race is decided within milliseconds; 8 tries wait 5 s in total before the store is called broken.
_ATTEMPTS = 8
_FIRST_WAIT_S = 0.02
# Ids stand in Delta transactions and in SQL predicates.
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]*")
_PERCENT_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


class PendingRun(NamedTuple):
    """A run that was begun and has no run row: what a resume needs to know about it."""

    run_id: str
    run_digest: str
    started_at: datetime
    shards: int
    written: frozenset[int]


class ResultStore:
    """Result tables of many runs under `root`, a local folder (created on first write) or the URL of an object store.

    `storage_options` go to deltalake as they are (credentials and region of an object store). Every method raises
    `StoreError` when the folder or a table is not what it should be, and `ConfigurationError` when a table of another
    version of its schema lies there that this version cannot go on with. Several processes may write and read at once.
    """

    def __init__(self, root: str | Path, *, storage_options: Mapping[str, str] | None = None) -> None:
        self._is_url = isinstance(root, str) and "://" in root
        self.root = str(root).rstrip("/") if self._is_url else str(Path(root).expanduser().absolute())
        self._storage_options = dict(storage_options) if storage_options else None
        self._opened: dict[str, DeltaTable] = {}
        if not self._is_url:
            if _PERCENT_ESCAPE.search(self.root):
                # deltalake decodes it on one path and not on the other, and then looks for the log in another folder
                raise StoreError(
                    f"result store {self.root}: the path holds a percent escape; choose a plain folder name"
                )
            if Path(self.root).exists() and not Path(self.root).is_dir():
                raise StoreError(f"result store {self.root}: expected a folder, found a file")

    # -- writing ---------------------------------------------------------------------------------------------------

    def start_run(self, run_id: str, *, run_digest: str, started_at: datetime, shards: int) -> bool:
        """Record that a run begins, before its first shard, so that a killed run can be found again.

        True when the row was written now, False when the run had been started before with the same digest and shards.
        Raises `ConfigurationError`, with nothing written, when some table of the store is of a version of its schema
        that this run's rows would not fit.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise StoreError(f"run id {run_id!r}: expected letters, digits and _ . : + - only")
        if shards < 1:
            raise StoreError(f"run {run_id}: expected at least one shard, found {shards}")
        for name in _SCHEMAS:
            if (opened := self._open(name)) is not None:
                self._refuse_misfit(name, opened)
        row = {"run_id": run_id, "run_digest": run_digest, "started_at": started_at, "shards": shards}
        if self._append_once("run_starts", _one_row("run_starts", row), f"{run_id}/start"):
            return True
        started = self._start_of(run_id)
        if (started["run_digest"], started["shards"]) != (run_digest, shards):
            raise StoreError(
                f"run {run_id} was started with digest {started['run_digest']} in {started['shards']} shards, "
                f"and cannot be started again with digest {run_digest} in {shards}"
            )
        return False

    def write_shard(self, run_id: str, shard: int, tables: Mapping[str, pa.Table]) -> tuple[str, ...]:
        """Append each of `tables` (names of `SHARD_TABLES`; one left out has no rows in this shard) exactly once.

        Returns the names appended by this call, in order; a table that already has this shard is skipped, so the call
        may be repeated after a kill at any point. The rows of a repeated call must be those of the first: the row
        counts are recorded and `read` checks them. Raises `StoreError` for a run that was not started, an unknown
        table, columns that are not canonical, nulls where none may be, numbers that are not finite, or another run id
        in the rows; nothing is appended then.
        """
        started = self._start_of(run_id)
        if not 0 <= shard < started["shards"]:
            raise StoreError(f"run {run_id} has shards 0 to {started['shards'] - 1}, found shard {shard}")
        for name in tables:
            if name not in SHARD_TABLES:
                raise StoreError(f"{name!r} is no table of a shard{nearest_name(name, SHARD_TABLES)}")
        checked = {name: _canonical(name, tables[name], run_id) for name in SHARD_TABLES if name in tables}
        if shard in self.shards_written(run_id):
            return ()
        transaction = f"{run_id}/{shard}"
        written = tuple(name for name, table in checked.items() if self._append_once(name, table, transaction))
        rows = json.dumps({name: table.num_rows for name, table in checked.items()}, sort_keys=True)
        done = _one_row("run_shards", {"run_id": run_id, "shard": shard, "rows": rows})
        self._append_once("run_shards", done, transaction)
        return written

    def write_run(self, run_row: Mapping[str, Any] | pa.Table) -> bool:
        """Append the run row, which makes the run visible; True when it was written now, False when it was there.

        Raises `StoreError` when a shard of the run is missing: the run row comes last.
        """
        table = run_row if isinstance(run_row, pa.Table) else _one_row("runs", run_row)
        if table.num_rows != 1:
            raise StoreError(f"expected one run row, found {table.num_rows}")
        run_id = table.column("run_id")[0].as_py()
        table = _canonical("runs", table, run_id)
        shards = table.column("shards")[0].as_py()
        started = self._start_of(run_id)
        if shards != started["shards"] or table.column("run_digest")[0].as_py() != started["run_digest"]:
            raise StoreError(f"run {run_id}: the run row has other shards or another digest than the start of the run")
        if missing := sorted(set(range(shards)) - self.shards_written(run_id)):
            raise StoreError(f"run {run_id}: shards {missing} of {shards} are not written; the run row comes last")
        return self._append_once("runs", table, f"{run_id}/run")

    # -- reading ---------------------------------------------------------------------------------------------------

    def shards_written(self, run_id: str) -> frozenset[int]:
        """Shards of a run whose tables are all in the store, whether or not the run is committed."""
        return frozenset(self._rows_where("run_shards", "run_id", run_id).column("shard").to_pylist())

    def pending_run(
        self, run_digest: str, *, now: datetime, within: timedelta = timedelta(days=1)
    ) -> PendingRun | None:
        """The newest uncommitted run of this digest that was started less than `within` before `now`; None if none."""
        committed = set(self.committed_runs())
        candidates = [
            row
            for row in self._rows_where("run_starts", "run_digest", run_digest).to_pylist()
            if row["run_id"] not in committed and now - row["started_at"] < within
        ]
        if not candidates:
            return None
        newest = max(candidates, key=lambda row: (row["started_at"], row["run_id"]))
        return PendingRun(**newest, written=self.shards_written(newest["run_id"]))

    def committed_runs(self, kind: str | None = None) -> list[str]:
        """Ids of the runs that have a run row, of every kind or of one (`sweep`, `screen`), oldest first (an id begins
        with its UTC start); none without a store.
        """
        rows = self._select("runs", ("run_id", "kind")).to_pylist()
        return sorted(row["run_id"] for row in rows if kind in (None, row["kind"] or "sweep"))

    def read(self, table: str, run_id: str) -> pa.Table:
        """The rows of one committed run in the canonical schema of `table`, sorted by its `RESULT_KEYS`.

        Raises `StoreError` for an unknown table, a run without a run row, or row counts that differ from the recorded
        ones (data files were lost or changed).
        """
        if table not in RESULTS:
            raise StoreError(f"{table!r} is no result table{nearest_name(table, RESULTS)}")
        return self._read_committed((table,), run_id)[table]

    def read_run(self, run_id: str) -> dict[str, pa.Table]:
        """Every result table of one committed run, by name; see `read`."""
        return self._read_committed(tuple(RESULTS), run_id)

    def rows_in_progress(self, table: str, run_id: str) -> pa.Table:
        """The rows of `table` that a run has written so far, committed or not: for the run itself, which goes on from
        them.
        """
        if table not in SHARD_TABLES:
            raise StoreError(f"{table!r} is no table of a shard{nearest_name(table, SHARD_TABLES)}")
        rows = self._rows_where(table, "run_id", run_id)
        return rows.sort_by([(column, "ascending") for column in _sort_columns(table)])

    def _read_committed(self, names: tuple[str, ...], run_id: str) -> dict[str, pa.Table]:
        runs = self._rows_where("runs", "run_id", run_id)
        if runs.num_rows == 0:
            committed = self.committed_runs()
            state = "was started but has no run row, it never finished" if self._started(run_id) else "is not known"
            raise StoreError(
                f"run {run_id!r} {state} in the result store {self.root} of {len(committed)} runs"
                + (nearest_name(run_id, committed) or (f"; the newest is {committed[-1]}" if committed else ""))
            )
        recorded = [
            json.loads(rows) for rows in self._rows_where("run_shards", "run_id", run_id).column("rows").to_pylist()
        ]
        out = {}
        for name in names:
            rows = runs if name == "runs" else self._rows_where(name, "run_id", run_id)
            expected = 1 if name == "runs" else sum(shard.get(name, 0) for shard in recorded)
            if rows.num_rows != expected:
                raise StoreError(
                    f"table {self._location(name)} has {rows.num_rows} rows of run {run_id}, {expected} were written"
                )
            out[name] = rows.sort_by([(column, "ascending") for column in _sort_columns(name)])
        return out

    def _started(self, run_id: str) -> list[dict[str, Any]]:
        return self._rows_where("run_starts", "run_id", run_id).to_pylist()

    def _start_of(self, run_id: str) -> dict[str, Any]:
        starts = self._started(run_id)
        if not starts:
            raise StoreError(f"run {run_id!r} was not started in {self.root}: start_run comes before its first shard")
        return starts[0]

    # -- Delta -----------------------------------------------------------------------------------------------------

    def _location(self, name: str) -> str:
        return f"{self.root}/{name}" if self._is_url else str(Path(self.root) / name)

    def _open(self, name: str) -> DeltaTable | None:
        """The table at its newest version; None when it does not exist yet."""
        location = self._location(name)
        if (known := self._opened.get(name)) is not None:
            with _reported(location):
                known.update_incremental()
            return known
        from deltalake import DeltaTable

        with _reported(location):
            if not DeltaTable.is_deltatable(location, self._storage_options):
                self._refuse_foreign_folder(location)
                return None
            opened = DeltaTable(location, storage_options=self._storage_options)
            columns = [f.name for f in opened.schema().fields]
        if missing := [f.name for f in _SCHEMAS[name] if not f.nullable and f.name not in columns]:
            if "run_id" in columns:
                reasons = [f"it has no column {column!r}" for column in missing]
                refuse_version(name, location, _SCHEMAS[name], opened, reasons)
            raise StoreError(
                f"{location} is a Delta table of something else or of another version of this program: "
                f"it has no columns {missing}; choose another folder for the result store"
            )
        self._opened[name] = opened
        return opened

    def _refuse_misfit(self, name: str, opened: DeltaTable) -> None:
        if reasons := misfits(_SCHEMAS[name], opened):
            refuse_version(name, self._location(name), _SCHEMAS[name], opened, reasons)

    def _refuse_foreign_folder(self, location: str) -> None:
        if self._is_url or not Path(location).exists():
            return
        # a kill while the table was being created leaves a log folder without a commit: that one is ours
        if not Path(location).is_dir() or (any(Path(location).iterdir()) and not Path(location, "_delta_log").is_dir()):
            raise StoreError(f"{location} exists and is no Delta table; choose another folder for the result store")

    def _open_or_create(self, name: str) -> DeltaTable:
        if (opened := self._open(name)) is not None:
            self._refuse_misfit(name, opened)
            return opened
        from deltalake import DeltaTable

        DeltaTable.create(
            self._location(name),
            schema=_SCHEMAS[name],
            mode="error",  # a table that another process created in this moment is opened by the next try
            storage_options=self._storage_options,
            configuration=version_property(_SCHEMAS[name]),
            raise_if_key_not_exists=False,
        )
        opened = self._open(name)
        if opened is None:
            raise StoreError(f"{self._location(name)}: the table that was just created is not there")
        return opened

    def _append_once(self, name: str, table: pa.Table, transaction: str) -> bool:
        """Append `table` unless `transaction` is in the log already; False when it was. Bounded tries on conflicts."""

        def attempt() -> bool:
            from deltalake import CommitProperties, Transaction, write_deltalake

            opened = self._open_or_create(name)
            if opened.transaction_version(transaction) is not None:
                return False
            present = {f.name for f in opened.schema().fields}
            write_deltalake(
                opened,  # not its address: Delta compares with the snapshot in which the transaction was missing
                table,
                mode="append",
                # nullable columns of a newer schema join an older table
                schema_mode=None if present.issuperset(table.column_names) else "merge",
                commit_properties=CommitProperties(app_transactions=[Transaction(transaction, 1)]),
            )
            return True

        return self._tried(name, attempt)

    def _tried(self, name: str, attempt: Callable[[], bool]) -> bool:
        from deltalake.exceptions import CommitFailedError, DeltaError

        for number in range(_ATTEMPTS):
            try:
                return attempt()
            except CommitFailedError as error:
                lost: Exception = error
            except DeltaError as error:
                if "already exists" not in str(error):
                    raise StoreError(f"{self._location(name)}: {_first_line(error)}") from error
                lost = error
            except OSError as error:
                raise StoreError(f"{self._location(name)}: {_first_line(error)}") from error
            time.sleep(_FIRST_WAIT_S * 2**number)
        raise StoreError(
            f"{self._location(name)}: no append after {_ATTEMPTS} tries; other writers came first, or the log is "
            f"damaged: {_first_line(lost)}"
        ) from lost

    def _rows_where(self, name: str, column: str, value: str) -> pa.Table:
        """Rows with `column` = `value` in the table's own schema, in no order; file statistics skip other runs."""
        quoted = value.replace("'", "''")
        return self._select(name, tuple(_SCHEMAS[name].names), f"WHERE {column} = '{quoted}'")

    def _select(self, name: str, columns: tuple[str, ...], where: str = "") -> pa.Table:
        schema = pa.schema([_SCHEMAS[name].field(column) for column in columns], metadata=_SCHEMAS[name].metadata)
        opened = self._open(name)
        if opened is None:
            return schema.empty_table()
        from deltalake import QueryBuilder

        with _reported(self._location(name)):
            present = {f.name for f in opened.schema().fields}
            listed = ", ".join(column for column in columns if column in present)
            rows = pa.table(QueryBuilder().register("stored", opened).execute(f"SELECT {listed} FROM stored {where}"))
            arrays = [
                # string views come back as string; a column younger than the table is null
                rows.column(f.name).cast(f.type)
                if f.name in present
                else pa.chunked_array([pa.nulls(rows.num_rows, f.type)])
                for f in schema
            ]
            return pa.Table.from_arrays(arrays, schema=schema)


@contextmanager
def _reported(location: str) -> Iterator[None]:
    """Turn what deltalake, Arrow and the file system raise into a `StoreError` that names the place."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise StoreError(f"{location}: cannot be read as a Delta table: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What happened, without the native stack that deltalake appends to its messages."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _sort_columns(name: str) -> tuple[str, ...]:
    # failures may share their whole key; the account tells them apart
    return (*RESULT_KEYS[name], "account_id") if name == "failures" else RESULT_KEYS[name]


def _one_row(name: str, row: Mapping[str, Any]) -> pa.Table:
    schema = _SCHEMAS[name]
    if unknown := sorted(set(row) - set(schema.names)):
        raise StoreError(f"table {name!r} has no columns {unknown}")
    if missing := [f.name for f in schema if not f.nullable and row.get(f.name) is None]:
        raise StoreError(f"table {name!r}: the row has no {missing}")
    try:
        return pa.Table.from_pylist([dict(row)], schema=schema)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise StoreError(f"table {name!r}: {_first_line(error)}") from error


def _canonical(name: str, table: pa.Table, run_id: str) -> pa.Table:
    """`table` in the canonical schema: columns by name, types cast, no null where none may be, every number finite."""
    schema = RESULTS[name]
    unknown = [column for column in table.column_names if column not in schema.names]
    missing = [column for column in schema.names if column not in table.column_names]
    if unknown or missing:
        raise StoreError(f"result table {name!r}: missing columns {missing}, unknown columns {unknown}")
    columns = []
    for f in schema:
        try:
            column = table.column(f.name).cast(f.type)
        except pa.ArrowException as error:
            raise StoreError(f"result table {name!r}, column {f.name!r}: {_first_line(error)}") from error
        if not f.nullable and column.null_count:
            raise StoreError(f"result table {name!r}, column {f.name!r}: {column.null_count} rows are null")
        if pa.types.is_floating(f.type) and pc.all(pc.is_finite(column)).as_py() is False:
            raise StoreError(f"result table {name!r}, column {f.name!r}: not every number is finite")
        columns.append(column)
    out = pa.Table.from_arrays(columns, schema=schema)
    if others := set(pc.unique(out.column("run_id")).to_pylist()) - {run_id}:
        raise StoreError(f"result table {name!r}: rows of run {sorted(others)} among those of run {run_id!r}")
    return out
