"""The columns that tables are made of: types, units and use of a field, name and version of a table.

Ids are strings; times `timestamp[us, UTC]`; exact quantities and money at the edge `decimal128(38, 18)`, measured and
computed values `float64`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

DECIMAL = pa.decimal128(38, 18)
TIME = pa.timestamp("us", tz="UTC")


def field(name: str, kind: pa.DataType, unit: str, *, nullable: bool = False) -> pa.Field:
    """A column of any type with its unit; the functions below are the types that nearly all columns have."""
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit})


def information(column: pa.Field) -> pa.Field:
    """The column marked as one that people and other programs may read and that no figure of a run looks at."""
    return column.with_metadata({**column.metadata, "use": "information"})


def text(name: str, unit: str = "id", *, nullable: bool = False) -> pa.Field:
    """A column of strings; ids where `unit` does not say otherwise."""
    return field(name, pa.string(), unit, nullable=nullable)


def exact(name: str, unit: str, *, nullable: bool = False) -> pa.Field:
    """A column of exact decimals."""
    return field(name, DECIMAL, unit, nullable=nullable)


def number(name: str, unit: str, *, nullable: bool = False) -> pa.Field:
    """A column of measured or computed values."""
    return field(name, pa.float64(), unit, nullable=nullable)


def time(name: str, *, nullable: bool = False) -> pa.Field:
    """A column of instants."""
    return field(name, TIME, "UTC time", nullable=nullable)


def flag(name: str, *, nullable: bool = False) -> pa.Field:
    """A column of truth values."""
    return field(name, pa.bool_(), "flag", nullable=nullable)


def table_schema(name: str, version: int, fields: Sequence[pa.Field]) -> pa.Schema:
    """The schema of table `name`, which carries the name and the version of its shape."""
    return pa.schema(list(fields), metadata={"crossmargin.table": name, "crossmargin.version": str(version)})


def result_schema(name: str, fields: Sequence[pa.Field], *, version: int = 1) -> pa.Schema:
    """The schema of a result table: every row says first which run it is of."""
    return table_schema(name, version, [text("run_id"), *fields])


def describe(schema: pa.Schema) -> list[dict[str, Any]]:
    """Name, type, unit and nullability of every column, and the use of one that is information alone, for people and
    for machines.
    """
    return [
        {
            "name": f.name,
            "type": str(f.type),
            "unit": (f.metadata or {}).get(b"unit", b"").decode(),
            "nullable": f.nullable,
        }
        | ({"use": f.metadata[b"use"].decode()} if b"use" in (f.metadata or {}) else {})
        for f in schema
    ]


def table_version(schema: pa.Schema) -> tuple[str, str]:
    """(table name, version) from a schema's metadata; empty strings when the schema carries none."""
    metadata = schema.metadata or {}
    return metadata.get(b"crossmargin.table", b"").decode(), metadata.get(b"crossmargin.version", b"").decode()
