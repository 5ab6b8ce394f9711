"""Texts, flags and nested objects of a payload's records.

Numbers and times are read by `amounts`. Every function raises `FieldError` with the path of the field; a field that is
absent or null is missing_field, anything of another kind is malformed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.errors import FailureReason

from .amounts import FieldError, joined, member


def text_of(value: Any, path: str = "") -> str:
    """A text that is not empty."""
    if isinstance(value, str) and value:
        return value
    found = "an empty one" if value == "" else type(value).__name__
    raise FieldError(path, FailureReason.MALFORMED, f"expected a text, found {found}")


def text_at(record: Any, key: str, path: str = "") -> str:
    """`text_of` the required member `key`."""
    value = member(record, key, path)
    # Most texts are fine, and nobody asks for their paths.
    return value if isinstance(value, str) and value else text_of(value, joined(path, key))


def flag_at(record: Any, key: str, path: str = "") -> bool:
    """The required truth value under `key`; 0, 1 and words are none."""
    value = member(record, key, path)
    if isinstance(value, bool):
        return value
    raise FieldError(joined(path, key), FailureReason.MALFORMED, f"{str(value)[:40]!r} is neither true nor false")


def flag_of(value: Any, path: str = "") -> bool:
    """A truth value, or one of the words true and false, where a venue sends both."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise FieldError(path, FailureReason.MALFORMED, f"{str(value)[:40]!r} is neither true nor false")


def optional_flag_at(record: Mapping[str, Any], key: str, path: str = "") -> bool | None:
    """`flag_of` the member `key`, or None where it is absent, null or an empty text."""
    value = record.get(key)
    return None if value is None or value == "" else flag_of(value, joined(path, key))


def mapping_at(record: Any, key: str, path: str = "") -> Mapping[str, Any]:
    """The required object under `key`."""
    value = member(record, key, path)
    if isinstance(value, Mapping):
        return value
    raise FieldError(joined(path, key), FailureReason.MALFORMED, f"expected an object, found {type(value).__name__}")


def optional_mapping_at(record: Mapping[str, Any], key: str, path: str = "") -> Mapping[str, Any]:
    """The object under `key`, empty where it is absent or null."""
    return {} if record.get(key) is None else mapping_at(record, key, path)


def struct_of(value: Any, names: Sequence[str], path: str = "") -> Mapping[str, Any]:
    """A contract's struct by member: an object, or a list of its members in order, as clients decode it."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list) and len(value) == len(names):
        return dict(zip(names, value, strict=True))
    what = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
    raise FieldError(path, FailureReason.MALFORMED, f"expected an object with {', '.join(names)}; found {what}")


def records_of(content: Any) -> list[Any]:
    """The records of an answer that is a list, or that is one record alone."""
    if isinstance(content, list):
        return content
    if isinstance(content, Mapping):
        return [content]
    raise FieldError("", FailureReason.MALFORMED, f"expected a list or an object, found {type(content).__name__}")
