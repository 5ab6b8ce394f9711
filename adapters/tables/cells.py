"""Rows of a canonical table from cells without types: lines of a CSV file, objects of a JSON list.

Every cell takes the type that the schema gives its column: numbers exactly from their text, times as ISO-8601 with an
offset or Z (or epoch numbers), flags as true or false. A cell that cannot be read names its row and column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from aggregator.errors import DataError, FailureReason, nearest_name
from aggregator.schema.canonical import CANONICAL
from aggregator.schema.casting import cast_table

from ..amounts import FieldError, decimal_of, integer_of, joined, time_of
from ..transport import CsvLines

_INTEGER = r"^ *[+-]?[0-9]+ *$"
_NUMBER = r"^ *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? *$"
_FLAGS = {"true": True, "false": False}
_MAY_BE_EMPTY = ("emode",)
"""Text columns whose empty text says something; elsewhere an empty cell is an absent one."""


class ReadRow(NamedTuple):
    """One row: its number, its values (those that could be read), and why it cannot be used if it cannot."""

    number: int
    values: dict[str, Any]
    error: FieldError | None


def csv_rows(name: str, source: CsvLines) -> Iterator[ReadRow]:
    """Typed rows of a CSV file; row 0 is the line after the header.

    Raises `FieldError` for a header with an unknown, missing or repeated column.
    """
    header = [column.strip() for column in source.header]
    check_columns(name, header)
    readers = [_reader(field) for field in (CANONICAL[name].field(column) for column in header)]
    for number, cells in enumerate(source.lines):
        row: dict[str, Any] = {}
        error = None
        if len(cells) != len(header):
            message = f"{len(cells)} cells under a header of {len(header)}"
            error = FieldError(joined("", number), FailureReason.MALFORMED, message)
        for column, read, cell in zip(header, readers, cells, strict=False):
            try:
                row[column] = read(cell)
            except FieldError as problem:
                error = error or FieldError(joined(joined("", number), column), problem.reason, problem.message)
        yield ReadRow(number, row, error)


def csv_table(name: str, source: CsvLines) -> pa.Table | None:
    """The canonical table of a CSV file without a single bad cell, column by column; None where `csv_rows` must say
    which cell is bad.

    Raises `FieldError` for the header as `csv_rows` does.
    """
    header = [column.strip() for column in source.header]
    check_columns(name, header)
    if any(len(line) != len(header) for line in source.lines):
        return None
    cells = zip(*source.lines, strict=True) if source.lines else (() for _ in header)
    try:
        columns = {
            column: _column(CANONICAL[name].field(column), pa.array(values, pa.string()))
            for column, values in zip(header, cells, strict=True)
        }
        return cast_table(name, pa.table(columns))
    except (DataError, FieldError, pa.ArrowException, UnicodeEncodeError):
        return None


def _column(field: pa.Field, texts: pa.Array) -> pa.Array:
    """A column ready for the schema's cast; raises `FieldError` or Arrow's error for any bad cell."""
    if field.name not in _MAY_BE_EMPTY:
        texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    if pa.types.is_boolean(field.type):
        words = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
        # Arrow reads 1 and yes as flags too; here only the two words are.
        _all_match(words, "^(true|false)$")
        return words.cast(pa.bool_())
    if pa.types.is_timestamp(field.type):
        coded = texts.dictionary_encode()
        times = pa.array([time_of(text) for text in coded.dictionary.to_pylist()], field.type)
        return times.take(coded.indices)
    if pa.types.is_string(field.type):
        return texts
    _all_match(texts, _INTEGER if pa.types.is_integer(field.type) else _NUMBER)
    words = pc.utf8_trim_whitespace(texts)
    return words if pa.types.is_decimal(field.type) else words.cast(field.type)


def _all_match(texts: pa.Array, pattern: str) -> None:
    if pc.all(pc.match_substring_regex(texts, pattern)).as_py() is False:
        raise FieldError("", FailureReason.NOT_A_NUMBER, "some cell is not of its column's type")


def json_rows(name: str, records: Sequence[Any]) -> Iterator[ReadRow]:
    """Typed rows of a list of objects with the table's columns as keys."""
    schema = CANONICAL[name]
    readers = {field.name: _reader(field) for field in schema}
    for number, record in enumerate(records):
        row: dict[str, Any] = {}
        path, error = joined("", number), None
        if not isinstance(record, Mapping):
            error = FieldError(path, FailureReason.MALFORMED, f"expected an object, found {type(record).__name__}")
            yield ReadRow(number, row, error)
            continue
        for field in schema:
            try:
                row[field.name] = readers[field.name](record.get(field.name))
            except FieldError as problem:
                error = error or FieldError(joined(path, field.name), problem.reason, problem.message)
        for key in record:
            if key not in readers:
                hint = nearest_name(str(key), schema.names)
                error = error or FieldError(
                    joined(path, str(key)[:60]), FailureReason.MALFORMED, f"no column {str(key)[:60]!r}{hint}"
                )
        yield ReadRow(number, row, error)


def check_columns(name: str, columns: Sequence[str]) -> None:
    """Raises `FieldError`: malformed for a column that is unknown or stands twice, missing_field for one that lacks."""
    schema = CANONICAL[name]
    for column in columns:
        if column not in schema.names:
            hint = nearest_name(column, schema.names)
            raise FieldError(
                column[:60], FailureReason.MALFORMED, f"table {name!r} has no column {column[:60]!r}{hint}"
            )
        if columns.count(column) > 1:
            raise FieldError(column, FailureReason.MALFORMED, f"column {column!r} stands twice")
    missing = [field.name for field in schema if not field.nullable and field.name not in columns]
    if missing:
        raise FieldError(missing[0], FailureReason.MISSING_FIELD, f"table {name!r}: missing columns {missing}")


def _reader(field: pa.Field) -> Callable[[Any], Any]:
    """The function from a raw cell to a value of the field's type; raises `FieldError` without a path."""
    convert = _converter(field.type)
    keeps_empty = field.name in _MAY_BE_EMPTY
    nullable = field.nullable

    def read(cell: Any) -> Any:
        if cell is None or (cell == "" and not keeps_empty):
            if nullable:
                return None
            raise FieldError("", FailureReason.MISSING_FIELD, f"{field.name!r} is empty")
        return convert(cell)

    return read


def _converter(kind: pa.DataType) -> Callable[[Any], Any]:
    if pa.types.is_string(kind):
        return _text
    if pa.types.is_boolean(kind):
        return _flag
    if pa.types.is_timestamp(kind):
        return _time
    if pa.types.is_integer(kind):
        return integer_of
    return decimal_of if pa.types.is_decimal(kind) else _float


def _text(cell: Any) -> str:
    if not isinstance(cell, str):
        raise FieldError("", FailureReason.MALFORMED, f"expected a text, found {type(cell).__name__}")
    return cell


def _flag(cell: Any) -> bool:
    if isinstance(cell, bool):
        return cell
    if isinstance(cell, str) and cell.strip().lower() in _FLAGS:
        return _FLAGS[cell.strip().lower()]
    raise FieldError("", FailureReason.MALFORMED, f"{str(cell)[:40]!r} is neither true nor false")


def _time(cell: Any) -> datetime:
    # Rows in memory may hold times already; one without a zone is refused as its text is.
    return time_of(cell.isoformat() if isinstance(cell, datetime) else cell)


def _float(cell: Any) -> float:
    return float(decimal_of(str(cell) if isinstance(cell, float) else cell))
