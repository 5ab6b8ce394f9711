"""Canonical tables that a user brings: accounts of any venue or book, without an adapter of their own.

One payload is one canonical table and its request is the table's name. A body may be what the transport reads from a
Parquet, Arrow IPC or CSV file, a JSON list of row objects, or any object with the Arrow C stream interface (a
DataFrame of polars or pandas, a relation of DuckDB, a pyarrow table): `read_tables` takes such objects directly. The
`venue` column names any venue of the user's own.

A row that the schema refuses is a failure and the rest stays; rows of equal key are all rejected, shared reference
rows that agree in full count once. Whoever needs a row that is not there becomes incomplete: the account that it
names, the accounts of its rule set, those that hold what a mark prices; every account of the source where the row does
not say, or where a table cannot be read at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from aggregator.errors import DataError, Failure, FailureReason
from aggregator.schema.canonical import CANONICAL, KEYS
from aggregator.schema.casting import cast_table, table_from_rows

from ..adapter import AssetBook, Context, Normalized
from ..amounts import FieldError, joined
from ..facts import VenueFacts
from ..rows import Rows
from ..transport import CsvLines, Payload
from .cells import ReadRow, check_columns, csv_rows, csv_table, json_rows

VENUE = "tables"
TABLES = tuple(name for name in CANONICAL if name != "failures")
_OF_ACCOUNTS = ("accounts", "balances", "positions", "open_orders")
_SHARED = ("assets", "instruments", "rule_sets", "margin_tiers", "collateral_tiers", "marks", "market_state")
_OF_RULE_SETS = ("rule_sets", "margin_tiers", "collateral_tiers")
_NEEDED_BY_NOBODY = ("market_state", "routes")
_MOST_NAMED = 1000
"""Bad rows of one table that get a failure of their own; a file of garbage ends with one that counts the rest."""


class _Lost(NamedTuple):
    """A row or a whole table (`row` None) that cannot be used, and the failure that says why."""

    table: str
    row: Mapping[str, Any] | None
    failure: Failure


@dataclass
class _Reading:
    """Tables of one source while they are read."""

    parts: dict[str, list[pa.Table]] = field(default_factory=lambda: defaultdict(list))
    lost: list[_Lost] = field(default_factory=list)

    def lose(
        self,
        table: str,
        payload: str,
        error: tuple[FailureReason, str, str],
        row: Mapping[str, Any] | None = None,
    ) -> None:
        """Note what cannot be used; `error` is (reason, message, path)."""
        reason, message, path = error
        venue = str((row or {}).get("venue") or VENUE)
        self.lost.append(_Lost(table, row, Failure(reason, message, venue, payload, path, _subject(row) or table)))


@dataclass(frozen=True)
class TablesAdapter:
    """Adapter of canonical tables; see the package's docstring."""

    venue: str = VENUE
    requests: tuple[str, ...] = TABLES

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """The tables of all payloads, checked by the schema, and what of them could not be used.

        Asset book and parameters are not needed: the tables bring their assets and rule sets.
        """
        reading = _Reading()
        groups: dict[tuple[str, str], list[Payload]] = defaultdict(list)
        for payload in sorted(payloads, key=lambda p: (p.request, p.account, p.name, p.sha256)):
            # As configurations may write it: a path before the name, a remark behind a colon.
            request = payload.request.partition(":")[0].rpartition("/")[2].strip()
            groups[request, payload.account].append(replace(payload, request=request))
        for (request, _), copies in groups.items():
            for payload in copies:
                if request not in self.requests:
                    message = f"{request[:60]!r} is no canonical table; known: {', '.join(self.requests)}"
                    reading.lose("", payload.name, (FailureReason.UNSUPPORTED, message, "request"))
                elif len(copies) > 1:
                    message = f"{len(copies)} files of table {request!r}; all rejected (owners tell several apart)"
                    reading.lose(request, payload.name, (FailureReason.DUPLICATE, message, "request"))
                else:
                    _read(reading, payload)
        tables = {name: _single_rows(reading, name) for name in TABLES}
        rows = Rows(VENUE)
        rows.failures += _with_accounts(reading.lost, tables)
        return Normalized(tables, rows.failures)


ADAPTER = TablesAdapter()


def read_tables(tables: Mapping[str, Any], *, label: str = "memory") -> Normalized:
    """Canonical tables from objects in memory by table name: anything with the Arrow C stream interface.

    Also takes pyarrow tables and record batches, and lists of row objects. `label` names the source in failures. The
    result goes into `aggregator.snapshot.take_snapshot` beside that of other adapters. Raises `KeyError` for a name
    that is no canonical table.

    >>> import pyarrow as pa
    >>> found = read_tables({"routes": pa.table({"source_node": ["a"]})})
    >>> found.failures[0].reason.value
    'missing_field'
    """
    if unknown := sorted(set(tables) - set(TABLES)):
        raise KeyError(f"{unknown} are no canonical tables; known: {', '.join(TABLES)}")
    payloads = [Payload(name, label, "", None, "", body) for name, body in tables.items()]
    return ADAPTER.normalize(payloads, Context(AssetBook({}), {}))


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(reading: _Reading, payload: Payload) -> None:
    """Takes one payload's rows into `reading`."""
    name, body = payload.request, payload.body
    try:
        if isinstance(body, Failure):
            reading.lose(name, payload.name, (body.reason, body.message, body.path))
        elif isinstance(body, CsvLines):
            table = csv_table(name, body)
            if table is None:
                _read_rows(reading, payload, csv_rows(name, body))
            else:
                reading.parts[name].append(table)
        elif isinstance(body, list):
            _read_rows(reading, payload, json_rows(name, body))
        else:
            _read_arrow(reading, payload)
    except FieldError as error:
        reading.lose(name, payload.name, (error.reason, error.message, error.path))


def _read_rows(reading: _Reading, payload: Payload, found: Iterable[ReadRow]) -> None:
    """Typed rows: all at once, and by halves where the schema refuses some of them."""
    name = payload.request
    good: list[ReadRow] = []
    bad = _Counted(reading, payload)
    for row in found:
        if row.error is None:
            good.append(row)
        else:
            bad.add((row.error.reason, row.error.message, row.error.path), row.values)

    def cast(start: int, length: int) -> pa.Table:
        return table_from_rows(name, [row.values for row in good[start : start + length]])

    for start, part in _halves(cast, len(good), bad):
        bad.add((part.failure.reason, part.failure.message, joined("", good[start].number)), good[start].values)
    bad.close()


def _read_arrow(reading: _Reading, payload: Payload) -> None:
    """Rows of an Arrow source: all at once, and by halves where the schema refuses some of them."""
    name, body = payload.request, payload.body
    try:
        table = body if isinstance(body, pa.Table) else _arrow_table(body)
    except (pa.ArrowException, TypeError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0][:200]
        message = f"expected a table, a list of rows or Arrow data: {first}"
        raise FieldError("", FailureReason.MALFORMED, message) from None
    check_columns(name, table.column_names)
    try:
        cast_table(name, table.slice(0, 0))
    except DataError as error:  # refused without a single row: it is not the rows
        raise FieldError("", error.failure.reason, error.failure.message) from None
    bad = _Counted(reading, payload)

    def cast(start: int, length: int) -> pa.Table:
        return cast_table(name, table.slice(start, length))

    for start, part in _halves(cast, table.num_rows, bad):
        row = _plain_row(table.slice(start, 1))
        bad.add((part.failure.reason, part.failure.message, joined("", start)), row)
    bad.close()


def _arrow_table(body: Any) -> pa.Table:
    if not hasattr(body, "__arrow_c_stream__") and not hasattr(body, "__arrow_c_array__"):
        raise TypeError(f"found {type(body).__name__}")
    if hasattr(body, "__arrow_c_stream__"):
        return pa.table(body)
    return pa.Table.from_batches([pa.record_batch(body)])


def _halves(cast: Callable[[int, int], pa.Table], count: int, bad: _Counted) -> Iterator[tuple[int, DataError]]:
    """Keeps what `cast` (first row, number of rows) accepts; yields (row, refusal) for each single row it does not.

    k bad rows of n cost about k log n casts; after `_MOST_NAMED` of them the rest is refused unread.
    """
    waiting, refused = [(0, count)], 0
    while waiting:
        start, length = waiting.pop()
        if refused == _MOST_NAMED:
            bad.refuse(length)
            continue
        try:
            bad.keep(cast(start, length))
        except DataError as error:
            if length <= 1:
                refused += 1
                yield start, error
                continue
            half = length // 2
            waiting += [(start + half, length - half), (start, half)]


def _plain_row(row: pa.Table) -> dict[str, Any]:
    """What of a refused row can be shown; a column that Python cannot hold is left out."""
    values: dict[str, Any] = {}
    for column in row.column_names:
        try:
            values[column] = row.column(column)[0].as_py()
        except (pa.ArrowException, ValueError, OverflowError):
            continue
    return values


class _Counted:
    """Rows of one payload, kept and refused; after `_MOST_NAMED` refused ones the rest of those is only counted."""

    def __init__(self, reading: _Reading, payload: Payload) -> None:
        self.reading, self.payload, self.count, self.unread = reading, payload, 0, 0

    def keep(self, rows: pa.Table) -> None:
        self.reading.parts[self.payload.request].append(rows)

    def add(self, error: tuple[FailureReason, str, str], row: Mapping[str, Any]) -> None:
        self.count += 1
        if self.count <= _MOST_NAMED:
            self.reading.lose(self.payload.request, self.payload.name, error, row)
        else:
            self.unread += 1

    def refuse(self, count: int) -> None:
        self.unread += count

    def close(self) -> None:
        if self.unread:
            name = self.payload.request
            message = f"{self.unread} more rows of {name!r} were refused after {_MOST_NAMED} bad ones"
            self.reading.lose(name, self.payload.name, (FailureReason.MALFORMED, message, ""))


# ---- one row per key -------------------------------------------------------------------------------------------------


def _single_rows(reading: _Reading, name: str) -> pa.Table:
    """The table's rows without those whose key occurs twice; equal rows of a shared table count once."""
    schema = CANONICAL[name]
    parts = reading.parts.get(name, [])
    table = pa.concat_tables([schema.empty_table(), *parts]).combine_chunks()
    keys = list(KEYS[name])
    numbered = table.select(keys).append_column("row", pa.array(range(table.num_rows), pa.int64()))
    counted = numbered.group_by(keys, use_threads=False).aggregate([("row", "list")])
    repeated = counted.filter(pc.greater(pc.list_value_length(counted["row_list"]), 1))
    if not repeated.num_rows:
        return table
    dropped: set[int] = set()
    for numbers in repeated["row_list"].to_pylist():
        copies = table.take(numbers).to_pylist()
        if name in _SHARED and all(copy == copies[0] for copy in copies):
            dropped.update(numbers[1:])
            continue
        dropped.update(numbers)
        what = ", ".join(f"{key}={copies[0][key]}" for key in keys if copies[0][key] is not None)
        message = f"{len(copies)} rows of {name} with {what}; all rejected"
        reading.lose(name, "", (FailureReason.DUPLICATE, message, name), copies[0])
    return table.take([number for number in range(table.num_rows) if number not in dropped])


# ---- whom it concerns ------------------------------------------------------------------------------------------------


def _subject(row: Mapping[str, Any] | None) -> str:
    names = ("instrument_id", "asset_id", "subject", "market", "rule_set", "order_id", "account_id")
    return next((str(row[name]) for name in names if row.get(name)), "") if row else ""


def _with_accounts(lost: Sequence[_Lost], tables: Mapping[str, pa.Table]) -> list[Failure]:
    """The failures, each once per account that cannot be computed without what was lost, or once without an account."""
    out: list[Failure] = []
    if not lost:
        return out
    book = _Book(tables)
    for table, row, failure in lost:
        accounts: list[str | None] = [*sorted(book.accounts_of(table, row))]
        out += [replace(failure, account_id=account) for account in accounts or [None]]
    return out


class _Book:
    """Who holds what, for telling whom a lost row concerns."""

    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        self.rule_sets = _pairs(tables["accounts"], "rule_set")
        self.venues = _pairs(tables["accounts"], "venue")
        self.holders: dict[str, set[str]] = defaultdict(set)
        everyone = {account for accounts in self.rule_sets.values() for account in accounts}
        for name in ("balances", "positions", "open_orders"):
            everyone.update(tables[name]["account_id"].to_pylist())
        self.everyone = everyone
        for subject, holders in _pairs(tables["accounts"], "settlement_asset").items():
            self.holders[subject] |= holders
        for subject, holders in _pairs(tables["balances"], "asset_id").items():
            self.holders[subject] |= holders
        positions = _pairs(tables["positions"], "instrument_id")
        for subject, holders in positions.items():
            self.holders[subject] |= holders
        legs = tables["instruments"].select(["instrument_id", "underlying", "settlement_asset"]).to_pylist()
        for leg in legs:
            for asset in (leg["underlying"], leg["settlement_asset"]):
                self.holders[asset] |= positions.get(leg["instrument_id"], set())

    def accounts_of(self, table: str, row: Mapping[str, Any] | None) -> set[str]:
        """Accounts that cannot be computed without a row of `table`; without a row, all that need the table."""
        if table in _NEEDED_BY_NOBODY:
            return set()
        if row is None:
            return self.everyone
        if table in _OF_ACCOUNTS:
            return (
                {row["account_id"]} if isinstance(row.get("account_id"), str) and row["account_id"] else self.everyone
            )
        if table in _OF_RULE_SETS:
            rule_set = row.get("rule_set")
            return self.rule_sets.get(rule_set, set()) if isinstance(rule_set, str) and rule_set else self.everyone
        column = {"marks": "subject", "assets": "asset_id", "instruments": "instrument_id"}[table]
        subject = row.get(column)
        if not isinstance(subject, str) or not subject:
            return self.everyone
        found = self.holders.get(subject, set()) | self.holders.get(subject.partition("@")[0], set())
        if table == "marks" and isinstance(row.get("account_id"), str) and row["account_id"]:
            return found & {row["account_id"]}
        if table == "marks" and isinstance(row.get("venue"), str):
            return found & self.venues.get(row["venue"], set())
        return found


def _pairs(table: pa.Table, column: str) -> dict[str, set[str]]:
    """Account ids by the value of `column`."""
    out: dict[str, set[str]] = defaultdict(set)
    for value, account in zip(table[column].to_pylist(), table["account_id"].to_pylist(), strict=True):
        out[value].add(account)
    return out


FACTS = VenueFacts(
    title="Canonical tables of your own",
    accounts=("Whatever the table accounts says: one row per account, its node, its rule set, its settlement asset",),
    equity="By the equity components of the rule set that you bring",
    requirement="By the requirement components of the rule set that you bring: any rule form",
    verdict="As the rule set's verdict says",
    cross_or_isolated="As margin_mode and node of the accounts say",
    orders="Rows of open_orders; what they cost is said by the rule set",
    liquidation="The generic liquidation price; no mechanics of their own",
    rules=("The canonical schemas of this release, versions in the metadata of each table",),
    parameters="All in the tables: rule_sets, margin_tiers, collateral_tiers, marks, market_state",
    gaps=(
        "An Arrow timestamp without a time zone is taken as UTC; in CSV and JSON a time must state its offset",
        "One file per table and owner label; a table in several files needs several labels",
    ),
)
