"""Decoded program accounts of Drift v2 as JSON: fields in snake or camel case, integers, enums, names, lists.

An account is an object of its struct's fields; numbers are integers, as JSON numbers or as decimal text. A body holds
one account, a list of them, or either under `result`, `data` or `accounts`; an entry may wrap its account in
`account` beside a public key. Bytes that nobody decoded are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import FieldError, integer_of, joined, member

_LARGEST = 2**127
_WRAPPINGS = ("result", "value", "data", "accounts")


@lru_cache(maxsize=256)
def camel(name: str) -> str:
    """`last_oracle_price_twap_5min` as the program's TypeScript client writes it: `lastOraclePriceTwap5Min`."""
    first, *rest = name.split("_")
    words = [word[:1].upper() + word[1:] if word[:1].isalpha() else word[:1] + word[1:].capitalize() for word in rest]
    return first + "".join(words)


def has(record: Any, name: str) -> bool:
    """Whether the field is there, under either of its names."""
    return isinstance(record, Mapping) and (record.get(name) is not None or record.get(camel(name)) is not None)


def field(record: Any, name: str, path: str) -> Any:
    """The field under either of its names; raises `FieldError` as `amounts.member` does."""
    if isinstance(record, Mapping) and record.get(name) is None and record.get(camel(name)) is not None:
        return record[camel(name)]
    return member(record, name, path)


def integer(record: Any, name: str, path: str, *, default: int | None = None) -> int:
    """An integer field; `default` where it is absent (fields that older accounts do not have)."""
    if default is not None and isinstance(record, Mapping) and not has(record, name):
        return default
    number = integer_of(field(record, name, path), joined(path, name))
    if abs(number) >= _LARGEST:
        raise FieldError(joined(path, name), FailureReason.OUT_OF_RANGE, "larger than any number of the program")
    return number


def unsigned(record: Any, name: str, path: str, *, default: int | None = None) -> int:
    """An integer field that the program stores without a sign."""
    number = integer(record, name, path, default=default)
    if number < 0:
        raise FieldError(joined(path, name), FailureReason.OUT_OF_RANGE, f"{number} must not be negative")
    return number


def positive(record: Any, name: str, path: str) -> int:
    """An integer field above 0 (a price)."""
    number = integer(record, name, path)
    if number <= 0:
        raise FieldError(joined(path, name), FailureReason.OUT_OF_RANGE, f"{number} must be positive")
    return number


def variant(record: Any, name: str, path: str, *, known: Sequence[str], default: str | None = None) -> str:
    """An enum field as the entry of `known` (lower case) that it names: by text, by number or as `{"name": {}}`."""
    if default is not None and isinstance(record, Mapping) and not has(record, name):
        return default
    value, place = field(record, name, path), joined(path, name)
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(known):
        return known[value]
    text = value.replace("_", "").lower() if isinstance(value, str) else ""
    if text not in known:
        raise FieldError(place, FailureReason.UNSUPPORTED, f"{value!r:.60} is none of {', '.join(known)}")
    return text


def name_of(record: Any, path: str) -> str:
    """The `name` of a market: text, or the program's bytes padded with spaces."""
    value, place = field(record, "name", path), joined(path, "name")
    if isinstance(value, list) and not any(isinstance(byte, bool) for byte in value):
        try:
            value = bytes(value).decode("ascii")
        except (TypeError, ValueError):
            raise FieldError(place, FailureReason.MALFORMED, "expected the bytes of a name") from None
    if not isinstance(value, str) or not value.strip(" \0"):
        raise FieldError(place, FailureReason.MALFORMED, "expected the name of a market")
    return value.strip(" \0")


def accounts_in(body: Any, path: str = "") -> list[tuple[str, Any]]:
    """(path, account) of every program account in a body; raises `FieldError`, unsupported for undecoded bytes."""
    for wrapping in _WRAPPINGS:
        inside = body.get(wrapping) if isinstance(body, Mapping) else None
        is_bytes = isinstance(inside, list) and any(isinstance(entry, str) for entry in inside)
        if isinstance(inside, Mapping | list) and not is_bytes:
            return accounts_in(inside, joined(path, wrapping))
    listed = [(path, body)] if isinstance(body, Mapping) else None
    if isinstance(body, list):
        listed = [(joined(path, i), entry) for i, entry in enumerate(body)]
    if listed is None:
        raise FieldError(path, FailureReason.MALFORMED, f"expected program accounts, found {type(body).__name__}")
    return [_unwrapped(entry, place) for place, entry in listed]


def _unwrapped(entry: Any, path: str) -> tuple[str, Any]:
    if isinstance(entry, Mapping) and isinstance(entry.get("account"), Mapping):
        entry, path = entry["account"], joined(path, "account")
    if isinstance(entry, Mapping) and isinstance(entry.get("data"), list | str):
        message = "bytes of an account; the adapter reads decoded accounts"
        raise FieldError(joined(path, "data"), FailureReason.UNSUPPORTED, message)
    return path, entry
