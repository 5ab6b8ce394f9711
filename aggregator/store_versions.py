"""Whether the rows of a schema fit a Delta table that may have been made with another version of that schema.

A table carries the version that it was made with as a table property. One that lacks nullable columns fits: it is read
as it is and gets them with the next append.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa

from .errors import ConfigurationError
from .schema.fields import table_version

if TYPE_CHECKING:
    from deltalake import DeltaTable, Field

_PROPERTY = "crossmargin.version"


def version_property(schema: pa.Schema) -> dict[str, str]:
    """The table property of a new table; "1" for a schema that states no version."""
    return {_PROPERTY: _version(schema)}


def misfits(schema: pa.Schema, opened: DeltaTable) -> list[str]:
    """Why an append of rows of `schema` would fail on the table as it is, column by column; empty when it would not."""
    from deltalake import Schema

    ours = {f.name: f for f in Schema.from_arrow(schema).fields}
    out = []
    for there in opened.schema().fields:
        here = ours.get(there.name)
        if here is None:
            if not there.nullable:
                out.append(f"its column {there.name!r} is unknown here and may not be null")
        elif here.type != there.type:
            out.append(f"its column {there.name!r} is {_type(there)}, here it is {_type(here)}")
        elif here.nullable and not there.nullable:
            out.append(f"its column {there.name!r} may not be null, here it may")
    return out


def refuse_version(name: str, location: str, schema: pa.Schema, opened: DeltaTable, reasons: Sequence[str]) -> NoReturn:
    """Raise the `ConfigurationError` that names table `name` at `location`, both versions, and what to do."""
    stated = opened.metadata().configuration.get(_PROPERTY)
    found = f"version {stated}" if stated else "a version that it does not state"
    raise ConfigurationError(
        f"{location} holds table {name!r} in {found}, this program writes version {_version(schema)}: "
        f"{'; '.join(reasons)}. Set store.path to another folder, or move the old one away"
    )


def _version(schema: pa.Schema) -> str:
    return table_version(schema)[1] or "1"


def _type(column: Field) -> str:
    return str(getattr(column.type, "type", column.type))
