"""Exact decimal columns: values of any kind as `decimal128(38, 18)`, and no overflow in silence."""

from __future__ import annotations

import decimal
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataError, Failure, FailureReason
from .fields import DECIMAL

# Arrow casts decimals without noticing an overflow; beyond this bound decimal128(38, 18) is garbage.
_BOUND = Decimal(10) ** 20
_QUANTUM = Decimal(1).scaleb(-18)
# Its own, not the caller's: Arrow ends the process on some exponents that no quantization has taken away.
_EXACT = decimal.Context(prec=60, rounding=decimal.ROUND_HALF_EVEN, traps=[decimal.InvalidOperation])


def exact_decimals(values: Iterable[Any], *, where: str) -> pa.Array:
    """`decimal128(38, 18)` from decimals, integers, floats or decimal strings; null stays null.

    Digits beyond the 18th decimal are rounded half to even. Raises `DataError` (not_a_number, out_of_range) instead of
    the silent garbage that a cast of an overlong string or an overflowing value would give.
    """

    def refusal(reason: FailureReason, message: str) -> DataError:
        return DataError(Failure(reason, f"{where}: {message}", subject=where.partition(".")[0]))

    listed = list(values)
    # Most columns hold nothing to refuse; which value is wrong, and why, is only asked of those that do.
    if (found := _quickly(listed)) is not None:
        return found
    out: list[Decimal | None] = []
    for value in listed:
        if value is None:
            out.append(None)
            continue
        try:
            number = value if isinstance(value, Decimal) else Decimal(str(value))
        except ArithmeticError:
            raise refusal(FailureReason.NOT_A_NUMBER, f"{str(value)[:40]!r} is not a number") from None
        if not number.is_finite():
            raise refusal(FailureReason.NOT_A_NUMBER, f"{number} is not finite")
        if _reaches_bound(number) or _reaches_bound(rounded := quantize(number)):
            raise refusal(FailureReason.OUT_OF_RANGE, f"|{number:.3e}| is not below 1e20")
        out.append(rounded)
    return pa.array(out, DECIMAL)


def _quickly(values: Sequence[Any]) -> pa.Array | None:
    """`exact_decimals` of values that are all fit for it, otherwise None."""
    try:
        array = pa.array(
            [
                None
                if value is None
                else (value if type(value) is Decimal else Decimal(str(value))).quantize(_QUANTUM, context=_EXACT)
                for value in values
            ],
            DECIMAL,
        )
    except (ArithmeticError, pa.ArrowInvalid):
        return None
    return array if within_bound(array) else None


def within_bound(decimals: pa.Array | pa.ChunkedArray) -> bool:
    """Whether every value of a decimal column, as wide as it may be, is below 1e20 in size; nulls are."""
    ends = pc.min_max(decimals).as_py()
    return not any(_reaches_bound(end) for end in ends.values() if end is not None)


def _reaches_bound(number: Decimal) -> bool:
    # By the exponent: abs() would round to the context's 28 digits and raises on exponents beyond its range.
    return bool(number) and number.adjusted() >= _BOUND.adjusted()


def quantize(number: Decimal) -> Decimal:
    """`number` with exactly 18 decimals, rounded half to even; |number| must be below 1e20."""
    return number.quantize(_QUANTUM, context=_EXACT)
