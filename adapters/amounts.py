"""Exact numbers from venue payloads: decimal strings, token integers with decimals, epoch times.

Nothing here goes through binary floating point unless the venue itself sent a JSON float. A payload is parsed with
`parse_json`, which keeps the digits of JSON numbers as `Decimal`. Every function raises `FieldError` with a reason of
the closed list; the caller turns it into a failure row that names venue, payload and path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from aggregator.errors import FailureReason

# Powers of ten of the largest and the smallest number that an amount may be. What lies far below every unit is refused
# too: it multiplies to 0, divides to infinity, and takes a fraction of millions of digits.
_LARGEST, _SMALLEST = 20, -100
_NUMBERS = (str, int, Decimal)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_S = 4_102_444_800  # 2100-01-01: a later time is a unit mistake, not a date


class FieldError(ValueError):
    """One field of a payload cannot be used: `path` inside the payload, closed-list `reason`, and what was found."""

    def __init__(self, path: str, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason
        self.message = message


def _refuse_constant(name: str) -> Decimal:
    # json calls this for NaN, Infinity and -Infinity, which are not JSON; kept so that the field is named later.
    return Decimal(name)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {repeated[:40]!r} stands twice in one object")
    return members


def parse_json(text: str | bytes) -> Any:
    """Python value of a JSON text with every number as int or exact `Decimal`; raises `FieldError(malformed)`.

    A key that stands twice in one object is malformed too: which of the two the venue meant is not ours to choose.
    """
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=_object_of)
    except (ValueError, InvalidOperation, RecursionError) as error:
        # ValueError: bad JSON, bad UTF-8, or an integer of thousands of digits; InvalidOperation: an absurd exponent.
        raise FieldError("", FailureReason.MALFORMED, f"not readable as JSON: {error}") from None


def member(record: Any, key: str, path: str = "") -> Any:
    """`record[key]`; raises `FieldError` when `record` is no object (malformed) or has no such key (missing_field)."""
    # Payloads hold plain objects; to ask whether something else is like one takes three times as long.
    if type(record) is not dict and not isinstance(record, Mapping):
        raise FieldError(path, FailureReason.MALFORMED, f"expected an object, found {type(record).__name__}")
    value = record.get(key)
    if value is None:
        raise FieldError(joined(path, key), FailureReason.MISSING_FIELD, f"field {key!r} is missing")
    return value


def _optional(record: Any, key: str, path: str) -> Any:
    return record.get(key) if type(record) is dict or isinstance(record, Mapping) else member(record, key, path)


def members(record: Any, key: str, path: str = "") -> list[Any]:
    """The list under `key`; raises `FieldError` when it is missing or no list."""
    value = member(record, key, path)
    if not isinstance(value, list):
        raise FieldError(joined(path, key), FailureReason.MALFORMED, f"expected a list, found {type(value).__name__}")
    return value


def joined(path: str, key: str | int) -> str:
    """Path of a child: `a.b` or `a[3]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _plain(text: str) -> str:
    # Python reads 1_000 and the digits of every script as numbers; a venue that sends such text means something else.
    return text.strip() if text.isascii() and "_" not in text else "?"


def decimal_of(value: Any, path: str = "") -> Decimal:
    """The exact number in a decimal string, JSON integer or JSON decimal.

    Raises `FieldError`: not_a_number for text, bool, NaN and infinity; out_of_range from 1e20 up, and below 1e-100 for
    what is not 0.
    """
    if type(value) not in _NUMBERS:  # a flag is no number
        raise FieldError(path, FailureReason.NOT_A_NUMBER, f"expected a number, found {type(value).__name__}")
    try:
        number = Decimal(_plain(value) if isinstance(value, str) else value)
    except InvalidOperation:
        raise FieldError(path, FailureReason.NOT_A_NUMBER, f"{str(value)[:40]!r} is not a number") from None
    if not number.is_finite():
        raise FieldError(path, FailureReason.NOT_A_NUMBER, f"{number} is not finite")
    # By the exponent: abs() would round to 28 digits and raises on exponents beyond the context's range.
    size = number.adjusted()
    if _SMALLEST <= size < _LARGEST:
        return number
    if not number:
        return Decimal(0)
    bound = f"below 1e{_LARGEST}" if size > 0 else f"0 or from 1e{_SMALLEST} up"
    raise FieldError(path, FailureReason.OUT_OF_RANGE, f"|{number:.3e}| is not {bound}")


def decimal_at(record: Any, key: str, path: str = "") -> Decimal:
    """`decimal_of` the required member `key`."""
    value = member(record, key, path)
    try:
        return decimal_of(value)
    except FieldError:
        # Only now: most numbers are fine, and nobody asks for their paths.
        return decimal_of(value, joined(path, key))


def optional_decimal_at(record: Mapping[str, Any], key: str, path: str = "") -> Decimal | None:
    """`decimal_of` the member `key`, or None where it is absent, null or an empty string."""
    value = _optional(record, key, path)
    return None if value is None or value == "" else decimal_of(value, joined(path, key))


def first_decimal_at(record: Mapping[str, Any], keys: Sequence[str], path: str = "") -> Decimal | None:
    """The first of `keys` that has a number, as `optional_decimal_at`: newer names of a field before older ones."""
    return next((number for key in keys if (number := optional_decimal_at(record, key, path)) is not None), None)


def positive_at(record: Any, key: str, path: str = "") -> Decimal:
    """A number > 0 (a price, a multiplier); raises out_of_range otherwise."""
    number = decimal_at(record, key, path)
    if number <= 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{number} must be positive")
    return number


def non_negative_at(record: Any, key: str, path: str = "") -> Decimal:
    """A number >= 0 (a balance, a rate); raises out_of_range otherwise."""
    number = decimal_at(record, key, path)
    if number < 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{number} must not be negative")
    return number


def integer_of(value: Any, path: str = "") -> int:
    """An exact integer of any size from a decimal string or JSON integer (token integers exceed 1e20)."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise FieldError(path, FailureReason.NOT_A_NUMBER, f"expected an integer, found {type(value).__name__}")
    try:
        return int(_plain(value)) if isinstance(value, str) else value
    except ValueError:
        raise FieldError(path, FailureReason.NOT_A_NUMBER, f"{str(value)[:40]!r} is not an integer") from None


def integer_at(record: Any, key: str, path: str = "") -> int:
    """`integer_of` the required member `key`."""
    return integer_of(member(record, key, path), joined(path, key))


def token_amount(raw: int, decimals: int) -> Decimal:
    """Tokens in `raw` smallest units of a token with `decimals` digits, exactly."""
    return Decimal(raw).scaleb(-decimals) if abs(raw) < 10**28 else _scaled(raw, decimals)


def _scaled(raw: int, decimals: int) -> Decimal:
    # scaleb rounds to the context precision of 28 digits; a tuple does not.
    sign = 1 if raw < 0 else 0
    return Decimal((sign, tuple(int(digit) for digit in str(abs(raw))), -decimals))


def time_of(value: Any, path: str = "") -> datetime:
    """UTC time from epoch seconds, milliseconds, microseconds (told apart by size) or ISO-8601 text with offset or Z.

    Raises `FieldError`: malformed for other text, not_a_number for other values, out_of_range outside 1970 to 2100.
    """
    if isinstance(value, str) and not value.strip().lstrip("-").isdigit():
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            raise FieldError(path, FailureReason.MALFORMED, f"{value[:40]!r} is not a time") from None
        if moment.tzinfo is None:
            raise FieldError(path, FailureReason.MALFORMED, f"{value[:40]!r} has no time zone")
        micros = (moment - _EPOCH) // timedelta(microseconds=1)
    else:
        number = integer_of(value, path)
        micros = number * (1_000_000 if number < 10**11 else 1_000 if number < 10**14 else 1)
    if not 0 <= micros < _LATEST_S * 1_000_000:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, f"{str(value)[:40]} does not lie between 1970 and 2100")
    return _EPOCH + timedelta(microseconds=micros)


def optional_time_at(record: Mapping[str, Any], key: str, path: str = "") -> datetime | None:
    """`time_of` the member `key`; None where it is absent, null or 0 (venues send 0 for never)."""
    value = _optional(record, key, path)
    is_never = value in (None, 0, "0", "") and value is not False  # which equals 0
    return None if is_never else time_of(value, joined(path, key))
