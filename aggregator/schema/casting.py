"""Any Arrow source, or rows of Python, as a canonical table: what passed this door may be trusted to have its types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataError, Failure, FailureReason, nearest_name
from .canonical import CANONICAL
from .decimals import exact_decimals, within_bound
from .fields import DECIMAL, table_version


@dataclass(frozen=True)
class ArrowStream:
    """Anything that speaks the Arrow C stream interface, as one pyarrow table."""

    table: pa.Table

    @classmethod
    def of(cls, source: Any) -> ArrowStream:
        """Take a pyarrow table, a record batch, or any object with `__arrow_c_stream__` or `__arrow_c_array__`."""
        if isinstance(source, pa.Table):
            return cls(source)
        if hasattr(source, "__arrow_c_stream__"):
            return cls(pa.table(source))
        if hasattr(source, "__arrow_c_array__"):
            return cls(pa.Table.from_batches([pa.record_batch(source)]))
        raise TypeError(f"expected an object with the Arrow C interface, got {type(source).__name__}")


def cast_table(name: str, source: Any) -> pa.Table:
    """The canonical table `name` from any Arrow source: columns by name, types cast, metadata set.

    All missing and unknown columns are listed in one error. A source that states another table name or version than the
    canonical one is refused. Decimals are bound-checked, because Arrow overflows silently. Nullable columns may be
    absent. Raises `DataError` with reason malformed, missing_field, not_a_number or out_of_range.
    """
    schema = CANONICAL[name]
    table = ArrowStream.of(source).table
    if table.schema.equals(schema, check_metadata=True):
        for column, values in zip(_columns(name), table.columns, strict=True):
            if column.is_decimal and not within_bound(values):
                exact_decimals(values.to_pylist(), where=f"{name}.{column.name}")  # says which
            _check(name, column, values)
        return table
    stated = table_version(table.schema)
    if stated != ("", "") and stated != table_version(schema):
        raise DataError(
            Failure(
                FailureReason.MALFORMED,
                f"schema says table {stated[0]!r} version {stated[1]!r}, "
                f"expected {name!r} version {table_version(schema)[1]!r}",
                subject=name,
            )
        )
    names = table.column_names
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise DataError(Failure(FailureReason.MALFORMED, f"table {name!r}: columns {twice} stand twice", subject=name))
    unknown = [column for column in names if column not in schema.names]
    missing = [f.name for f in schema if f.name not in names and not f.nullable]
    if unknown or missing:
        problems = [f"missing columns {missing}"] if missing else []
        problems += [f"unknown {column!r}{nearest_name(column, schema.names)}" for column in unknown]
        raise DataError(
            Failure(
                FailureReason.MISSING_FIELD if missing else FailureReason.MALFORMED,
                f"table {name!r}: {'; '.join(problems)}",
                subject=name,
            )
        )
    columns = [_cast_column(name, table, column) for column in _columns(name)]
    return pa.Table.from_arrays(columns, schema=schema)


def table_from_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The canonical table `name` from Python rows (one mapping per row; absent keys are null), checked like any other.

    Raises `DataError` as `cast_table` does, malformed also for a value that its column cannot hold, and `KeyError` for
    a column that the table does not have.
    """
    schema = CANONICAL[name]
    if not rows:
        return schema.empty_table()
    present = set[str]().union(*rows)
    if unknown := present - set(schema.names):
        raise KeyError(f"table {name!r} has no column {sorted(unknown)}")
    arrays = []
    for column in _columns(name):
        if column.name not in present:
            arrays.append(pa.nulls(len(rows), column.type))
            continue
        values = [row.get(column.name) for row in rows]
        if column.is_decimal:
            arrays.append(exact_decimals(values, where=f"{name}.{column.name}"))
            continue
        try:
            # Given an integer type, pa.array would cut fractions off in silence; a cast does not.
            arrays.append(pa.array(values).cast(column.type) if column.is_integer else pa.array(values, column.type))
        except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError) as error:
            message = f"{name}.{column.name}: {error}"
            raise DataError(Failure(FailureReason.MALFORMED, message, subject=name)) from None
    for column, array in zip(_columns(name), arrays, strict=True):
        _check(name, column, array)
    return pa.Table.from_arrays(arrays, schema=schema)


class _Column(NamedTuple):
    """A field of a canonical table as it is asked for again and again: Arrow makes its answers anew each time."""

    name: str
    type: pa.DataType
    nullable: bool
    is_decimal: bool
    is_integer: bool
    is_floating: bool


@cache
def _columns(name: str) -> tuple[_Column, ...]:
    kinds = (pa.types.is_decimal, pa.types.is_integer, pa.types.is_floating)
    return tuple(_Column(f.name, f.type, f.nullable, *(kind(f.type) for kind in kinds)) for f in CANONICAL[name])


def _cast_column(name: str, table: pa.Table, target: _Column) -> pa.ChunkedArray:
    if target.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, target.type)])
    column = table.column(target.name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    where = f"{name}.{target.name}"
    try:
        if column.type == target.type == DECIMAL and within_bound(column):
            pass  # as exact as the door could make it
        elif target.is_decimal:
            column = pa.chunked_array([exact_decimals(column.to_pylist(), where=where)])
        elif column.type != target.type:
            column = column.cast(target.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(Failure(FailureReason.MALFORMED, f"{where}: {error}", subject=name)) from None
    _check(name, target, column)
    return column


def _check(name: str, target: _Column, column: pa.Array | pa.ChunkedArray) -> None:
    """No null where none may be, nothing but finite numbers."""
    nulls = column.null_count
    if nulls and not target.nullable:
        message = f"{name}.{target.name}: {nulls} rows are null"
        raise DataError(Failure(FailureReason.MISSING_FIELD, message, subject=name))
    if target.is_floating and nulls < len(column) and pc.all(pc.is_finite(column)).as_py() is False:
        raise DataError(Failure(FailureReason.NOT_A_NUMBER, f"{name}.{target.name}: not finite", subject=name))
