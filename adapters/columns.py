"""Long lists of flat records read by columns: one pass over each field instead of one over each record.

A venue's answer may list a hundred thousand positions of one shape. `Columns` takes one field of all of them at a time
and turns it into one Arrow array, exactly: texts and JSON numbers become `decimal128(38, 18)` without binary floating
point. What it accepts is less than what `amounts` accepts, and never more: a record that is missing something, that
has a number in an unusual spelling, or that is wrong in any way is only marked as not plain. It is then read by the
adapter's row path, which says what is wrong with it, so that failures and rare shapes have one implementation.

    columns = Columns([payload.body for payload in payloads])
    size, price = columns.decimal("size"), columns.positive("price")
    columns.reject(...)              # what the venue's own rules refuse
    columns.plain_lists()            # lists whose every record is plain: their rows go to `Rows.add_table`

The methods have the meaning of their namesakes in `amounts`. `canonical_table` puts arrays and constants together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import chain, compress
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.schema.canonical import CANONICAL
from aggregator.schema.casting import cast_table
from aggregator.schema.fields import DECIMAL, TIME

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
Item = TypeVar("Item")

WORTHWHILE = 64
"""Records from which on columns are faster than rows; below it an adapter reads row by row."""

# Digits that surely fit, 20 before the point and 18 behind it; other spellings of a number are the row path's.
_PLAIN_NUMBER = r"^-?[0-9]{1,20}(\.[0-9]{1,18})?$"
# A text no longer than this has no more digits before its point; Arrow's cast wraps around silently above them.
_LONGEST_NUMBER = 20
# Arrow's cast also knows exponents, and stops at a zero byte.
_NUMBER_BYTES = np.isin(np.arange(256), np.frombuffer(b"0123456789.-", dtype=np.uint8))
_TOO_LARGE = 10**20
# float64 products and quotients of two factors are off by less.
_NEAR = 1e-12
_EMPTY: Mapping[str, Any] = {}
_ZERO = pa.scalar(Decimal(0), DECIMAL)


class Columns:
    """The records of several lists, in order, with a flag for each whether it has been plain so far.

    `bounds[i]:bounds[i + 1]` are the records of list i. `plain` is narrowed by every read, in place.
    """

    def __init__(self, lists: Sequence[Sequence[Any]]) -> None:
        self.bounds: Numbers = np.cumsum([0, *(len(entries) for entries in lists)], dtype=np.int64)
        records = list(chain.from_iterable(lists))
        self.plain: Flags = np.ones(len(records), dtype=np.bool_)
        self._take(records)

    def _take(self, records: list[Any]) -> None:
        if not set(map(type, records)) <= {dict}:
            self.reject(np.fromiter((type(r) is not dict for r in records), np.bool_, len(records)))
            records = [r if type(r) is dict else _EMPTY for r in records]
        self.records: list[Mapping[str, Any]] = records
        self._values: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def inner(self, key: str) -> Columns:
        """The objects under `key`, one per record, which share the flags of their records."""
        out = object.__new__(Columns)
        out.bounds, out.plain = self.bounds, self.plain
        out._take(self.values(key))
        return out

    def chosen(self, flags: Flags) -> Columns:
        """The records that are flagged, plain again, in lists of the same numbers."""
        out = object.__new__(Columns)
        out.bounds = np.concatenate([[0], np.cumsum(flags)])[self.bounds]
        out.plain = np.ones(int(flags.sum()), dtype=np.bool_)
        out._take(self.records if flags.all() else list(compress(self.records, flags.tolist())))
        return out

    def values(self, key: str) -> list[Any]:
        """What stands under `key`, None where nothing does."""
        if key not in self._values:
            try:
                self._values[key] = list(map(itemgetter(key), self.records))
            except KeyError:
                self._values[key] = [record.get(key) for record in self.records]
        return self._values[key]

    def states(self, key: str) -> bool:
        """Whether any record has something under `key`."""
        return any(value is not None for value in self.values(key))

    def reject(self, flags: Flags | pa.Array | pa.ChunkedArray) -> None:
        """Marks records as not plain; a null flag marks nothing."""
        self.plain &= ~_flags(flags)

    def text(self, key: str) -> list[str]:
        """Texts that are not empty; what is none is empty here and not plain."""
        values = self.values(key)
        try:
            texts = pa.array(values, pa.string())
            if not texts.null_count and not _any(pc.equal(texts, "")):
                return values
        except (pa.ArrowException, TypeError, UnicodeEncodeError):
            pass  # one of them is no text, or holds half of a surrogate pair
        values = [value if _is_text(value) else "" for value in values]
        self.reject(~np.array(list(map(bool, values)), np.bool_))
        return values

    def among(self, key: str, words: Collection[Any]) -> list[Any]:
        """Values that must each be one of `words` (None for absent) and of its type; others are None and not plain."""
        values = self.values(key)
        kinds = {type(word) for word in words}
        if set(map(type, values)) <= kinds and set(values) <= set(words):
            return values
        # 0 equals False, and what has no hash is in no set.
        fits = [type(value) in kinds and value in words for value in values]
        self.reject(~np.array(fits, np.bool_))
        return [value if fit else None for value, fit in zip(values, fits, strict=True)]

    def decimal(self, key: str, *, optional: bool = False, blank: bool = True) -> pa.Array:
        """Exact numbers from decimal texts, JSON integers or JSON decimals.

        Null where the record is not plain; with `optional` also where the value is absent or null or, unless `blank`
        is False, an empty text, which then is plain.
        """
        array = _texts(self.values(key))
        absent = array.is_null()
        if optional and blank and _any(empty := pc.equal(array, "")):
            absent = pc.or_(absent, pc.fill_null(empty, False))
            array = pc.if_else(absent, pa.scalar(None, pa.string()), array)
        numbers = _decimals(array)
        if numbers.null_count:
            wrong = numbers.is_null()
            self.reject(pc.and_not(wrong, absent) if optional else wrong)
        return numbers

    def positive(self, key: str, *, optional: bool = False, blank: bool = True) -> pa.Array:
        """Numbers above 0."""
        numbers = self.decimal(key, optional=optional, blank=blank)
        self.reject(pc.less_equal(numbers, _ZERO))
        return numbers

    def non_negative(self, key: str, *, optional: bool = False, blank: bool = True) -> pa.Array:
        """Numbers of 0 or more."""
        numbers = self.decimal(key, optional=optional, blank=blank)
        self.reject(pc.less(numbers, _ZERO))
        return numbers

    def exact(self, key: str, rows: slice) -> list[Decimal]:
        """The numbers under `key` of plain records, for arithmetic with more digits than Arrow has."""
        return list(map(Decimal, self.values(key)[rows]))

    def list_numbers(self) -> Numbers:
        """Number of the list that each record stands in."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))

    def plain_lists(self) -> Flags:
        """Lists all of whose records are plain; an empty list is."""
        bad = np.concatenate([[0], np.cumsum(~self.plain)])
        flags: Flags = bad[self.bounds[1:]] == bad[self.bounds[:-1]]
        return flags

    def reject_repeated(self, codes: Numbers) -> None:
        """Marks records of one list that have equal codes."""
        if not len(self):
            return
        keys = self.list_numbers() * (int(codes.max()) + 1) + codes
        _, where, counts = np.unique(keys, return_inverse=True, return_counts=True)
        self.reject(counts[where] > 1)


def encoded(values: Sequence[Item]) -> tuple[Numbers, list[Item]]:
    """(number of each value among the different ones, the different ones in order of appearance)."""
    numbers: dict[Item, int] = {}
    codes = [numbers.setdefault(value, len(numbers)) for value in values]
    return np.array(codes, dtype=np.int64), list(numbers)


def spread(codes: Numbers, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """`values[code]` for each code as one Arrow array."""
    return pa.array(values, kind).take(pa.array(codes))


def coalesced(first: pa.Array, second: pa.Array) -> pa.Array:
    """`first`, and `second` where it is null."""
    return pc.coalesce(first, second) if first.null_count else first


def lacks(array: pa.Array) -> Flags:
    """Where an array is null."""
    return _flags(array.is_null())


def is_zero(numbers: pa.Array) -> Flags:
    """Where a number is 0; not where there is none."""
    return _flags(pc.equal(numbers, _ZERO))


def floats(numbers: pa.Array) -> npt.NDArray[np.float64]:
    """Numbers as float64 for a comparison with a margin, NaN for null; they may be off by some last digits."""
    return np.asarray(numbers.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def not_surely_within(
    codes: Numbers,
    amounts: npt.NDArray[np.float64],
    values: pa.Array,
    tiers: Mapping[int, Sequence[tuple[Decimal | None, Decimal]]],
) -> Flags:
    """Rows whose value may be above what their tier allows, or is missing.

    `tiers` by code: (upper end of the amount, largest value), ascending; above the last end the last tier holds.
    Amounts may be off by some last digits: what lies near an end is said to be in doubt. Values are compared exactly.
    """
    allowed = np.zeros(len(codes), dtype=np.int64)
    largest: list[Decimal] = [Decimal(-1)]
    doubt = np.zeros(len(codes), np.bool_)
    if not len(codes):
        return doubt
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    for code, rows in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
        own = tiers.get(code, ())
        if not own or any(_has_many_digits(value) for _, value in own):
            doubt[rows] = True
            continue
        ends = np.array([np.inf if end is None else float(end) for end, _ in own[:-1]])
        number = np.searchsorted(ends, amounts[rows], side="left")
        if len(ends):
            near = ends[np.clip(np.stack([number - 1, number]), 0, len(ends) - 1)]
            doubt[rows] = (np.abs(near - amounts[rows]) <= _NEAR * near).any(axis=0)
        allowed[rows] = len(largest) + number
        largest += [value for _, value in own]
    return doubt | ~_flags(pc.less_equal(values, spread(allowed, largest, DECIMAL)))


def _has_many_digits(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    return not isinstance(exponent, int) or exponent < -18 or number.adjusted() >= 20


def nearest_floats(numbers: pa.Array) -> pa.Array:
    """Numbers as the float64 nearest to each, as Python's `float` gives it."""
    return numbers.cast(pa.string()).cast(pa.float64())


def canonical_table(name: str, length: int, **columns: Any) -> pa.Table:
    """A table of `length` rows from Arrow or NumPy arrays and constants by column; columns that are not given are null.

    Raises `KeyError` for an unknown column, and `DataError` as `cast_table` does.
    """
    schema = CANONICAL[name]
    if unknown := set(columns) - set(schema.names):
        raise KeyError(f"table {name!r} has no column {sorted(unknown)}")
    arrays = [_column(columns.get(f.name), f.type, length) for f in schema]
    return cast_table(name, pa.Table.from_arrays(arrays, schema=schema))


def own_marks(
    venue: str, accounts: pa.Array, instruments: pa.Array, values: Any, *, as_of: pa.Array, source: str
) -> pa.Table:
    """Rows of `marks` of positions, each at its own account's mark; all arrays have the length of the table."""
    return canonical_table(
        "marks",
        len(accounts),
        venue=venue,
        account_id=accounts,
        subject=instruments,
        field="mark",
        value=values,
        as_of=as_of,
        source=source,
    )


def _column(value: Any, kind: pa.DataType, length: int) -> pa.Array:
    if value is None:
        return pa.nulls(length, kind)
    if isinstance(value, pa.Array):
        return value if value.type == kind else value.cast(kind)
    if isinstance(value, np.ndarray | list):
        return pa.array(value, kind)
    if isinstance(value, datetime):
        kind = TIME
    return pa.repeat(pa.scalar(value, kind), length)


def _flags(flags: Flags | pa.Array | pa.ChunkedArray) -> Flags:
    if isinstance(flags, np.ndarray):
        return flags
    return np.asarray(pc.fill_null(flags, False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _any(flags: pa.Array) -> bool:
    return bool(pc.any(flags).as_py())


def _is_text(value: Any) -> bool:
    try:
        return type(value) is str and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _texts(values: list[Any]) -> pa.Array:
    """Numbers and texts as texts, null for None; what is neither becomes a text that is no number."""
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowException, TypeError, UnicodeEncodeError):
        return pa.array(list(map(_number_text, values)), pa.string())


def _number_text(value: Any) -> str | None:
    if (type(value) is int and abs(value) < _TOO_LARGE) or type(value) is Decimal:
        return str(value)
    if value is None or (type(value) is str and value.isascii()):
        return value
    return "?"


def _decimals(texts: pa.Array) -> pa.Array:
    """The numbers in plain decimal texts, null for everything else."""
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    if longest <= _LONGEST_NUMBER and _NUMBER_BYTES[_bytes(texts)].all():
        try:
            return texts.cast(DECIMAL)
        except pa.ArrowException:
            pass  # which of them is none, only the pattern says
    fits = pc.match_substring_regex(texts, _PLAIN_NUMBER)
    return pc.if_else(fits, texts, pa.scalar(None, pa.string())).cast(DECIMAL)


def _bytes(texts: pa.Array) -> npt.NDArray[np.uint8]:
    _, offsets, data = texts.buffers()
    if data is None:
        return np.empty(0, dtype=np.uint8)
    ends = np.frombuffer(offsets, dtype=np.int32)[[texts.offset, texts.offset + len(texts)]]
    return np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[1]]
