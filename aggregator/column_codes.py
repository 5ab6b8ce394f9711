"""Arrow columns as numbers: codes of texts, distinct combinations of codes, and orders that rows have by their keys.

The same content gives the same numbers whatever the order of the table: texts are numbered as they sort, and rows with
equal keys keep the order that they had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BITS = 63
_DIGIT = 16
_LEAST_TABLE = 1 << 16


class Codes(NamedTuple):
    """A text column as numbers into its sorted distinct texts; -1 for null."""

    texts: list[str]
    code: np.ndarray


def encoded(values: pa.ChunkedArray | pa.Array) -> Codes:
    """The codes of a text column."""
    codes = pc.dictionary_encode(whole(values))
    texts = codes.dictionary.to_pylist()
    order = sorted(range(len(texts)), key=texts.__getitem__)
    place = np.full(len(texts) + 1, -1, np.int64)
    place[order] = np.arange(len(texts))
    found = codes.indices
    found = found.fill_null(len(texts)) if found.null_count else found
    return Codes([texts[number] for number in order], place[found.to_numpy(zero_copy_only=False)])


def whole(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def numbers(table: pa.Table, name: str, missing: float = 0.0) -> np.ndarray:
    """A column as float64, with `missing` for nulls."""
    values = whole(table[name]).cast(pa.float64())
    values = values.fill_null(missing) if values.null_count else values
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def places(values: pa.ChunkedArray | pa.Array, among: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Position of each value among the texts, -1 where it is none of them (or null)."""
    found = pc.index_in(whole(values), value_set=whole(among))
    found = found.fill_null(-1) if found.null_count else found
    return np.asarray(found.to_numpy(zero_copy_only=False)).astype(np.int64)


class Distinct(NamedTuple):
    """The distinct combinations of codes: a row that has each [combinations], and the combination of each row [rows].

    They are in the order of their codes, the first code counting most.
    """

    example: np.ndarray
    number: np.ndarray


def distinct(*codes: np.ndarray) -> Distinct:
    """The distinct combinations in rows of codes that are at least -1."""
    rows = len(codes[0])
    if not rows:
        return Distinct(np.zeros(0, np.int64), np.zeros(0, np.int64))
    joined, span = _joined(codes)
    if joined is None:
        _, example, number = np.unique(np.stack(codes), axis=1, return_index=True, return_inverse=True)
        return Distinct(example, number.reshape(rows))
    if span > max(4 * rows, _LEAST_TABLE):
        _, example, number = np.unique(joined, return_index=True, return_inverse=True)
        return Distinct(example, number)
    # A table of all combinations is faster than a sort. Written backwards, so that the first row of each stays.
    first = np.full(span, -1, np.int64)
    first[joined[::-1]] = np.arange(rows - 1, -1, -1)
    there = np.flatnonzero(first >= 0)
    place = np.zeros(span, np.int64)
    place[there] = np.arange(len(there))
    return Distinct(first[there], place[joined])


def order_by(*codes: np.ndarray) -> np.ndarray:
    """The stable order of rows by codes that are at least -1, the first counting most."""
    joined, span = _joined(codes)
    if joined is None:
        return np.lexsort(codes[::-1])
    if (joined[1:] >= joined[:-1]).all():
        return np.arange(len(joined))
    # Digit by digit from the last: NumPy sorts 16 bits in linear time.
    order: np.ndarray | None = None
    for shift in range(0, (span - 1).bit_length(), _DIGIT):
        digit = (joined >> shift).astype(np.uint16)
        by_digit = np.argsort(digit if order is None else digit[order], kind="stable")
        order = by_digit if order is None else order[by_digit]
    return np.arange(len(joined)) if order is None else order


def repeated(order: np.ndarray, *codes: np.ndarray) -> np.ndarray:
    """The rows whose combination of codes stands more than once, given their order by these codes."""
    same = np.ones(max(len(order) - 1, 0), bool)
    for code in codes:
        in_order = code[order]
        same &= in_order[1:] == in_order[:-1]
    at = np.flatnonzero(same)
    return np.unique(order[np.concatenate([at, at + 1])])


def _joined(codes: Sequence[np.ndarray]) -> tuple[np.ndarray | None, int]:
    """One number for each combination, from 0, and the number of possible ones; None where they need too many bits."""
    spans = [int(code.max(initial=-1)) + 2 for code in codes]
    span = 1
    for of_one in spans:
        span *= of_one
    if span.bit_length() > _BITS:
        return None, span
    joined = codes[0].astype(np.int64) + 1
    for code, of_one in zip(codes[1:], spans[1:], strict=True):
        joined = joined * of_one + (code + 1)
    return joined, span
