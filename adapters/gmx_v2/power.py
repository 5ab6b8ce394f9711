"""Powers as the contracts compute them: 18-decimal fixed point, by binary logarithm and binary exponential.

The venue takes a power as `2^(exponent * log2(base))` with the rounding of the 60.18-digit fixed-point library that its
contracts link (PRBMath, version 2): the result differs from the real power by some 1e-17 of it, which a difference of
two nearly equal powers makes visible. What is here gives the library's integers, digit by digit: the figures that the
venue's own tests assert come out equal.
"""

from __future__ import annotations

from functools import cache
from math import isqrt

UNIT = 10**18
_FRACTION_BITS = 64
_GUARD_BITS = 256


@cache
def _roots_of_two() -> tuple[int, ...]:
    # 2^(2^-k) for k = 1..64 with 64 fractional bits, rounded to nearest; by repeated integer square roots.
    roots, root = [], 2 << _GUARD_BITS
    drop = _GUARD_BITS - _FRACTION_BITS
    for _ in range(_FRACTION_BITS):
        root = isqrt(root << _GUARD_BITS)
        roots.append((root + (1 << (drop - 1))) >> drop)
    return tuple(roots)


def binary_logarithm(value: int) -> int:
    """log2 of `value`, both with 18 decimals, rounded down bit by bit; raises `ValueError` below 1.0."""
    if value < UNIT:
        raise ValueError("the logarithm is defined from 1.0 up")
    whole = (value // UNIT).bit_length() - 1
    result, rest, step = whole * UNIT, value >> whole, UNIT // 2
    if rest == UNIT:
        return result
    while step:
        rest = rest * rest // UNIT
        if rest >= 2 * UNIT:
            result += step
            rest >>= 1
        step >>= 1
    return result


def binary_exponential(value: int) -> int:
    """2^value, both with 18 decimals; raises `OverflowError` from 192.0 up, where the contract reverts."""
    if value >= 192 * UNIT:
        raise OverflowError("2^x does not fit the contract's integers from x = 192 up")
    binary = (value << _FRACTION_BITS) // UNIT
    result = 1 << 191
    for number, root in enumerate(_roots_of_two()):
        if binary >> (_FRACTION_BITS - 1 - number) & 1:
            result = result * root >> _FRACTION_BITS
    return result * UNIT >> (191 - (binary >> _FRACTION_BITS))


def power(base: int, exponent: int) -> int:
    """base^exponent, all with 18 decimals, for a base of 1.0 or more; the product in the exponent rounds half up."""
    product = (binary_logarithm(base) * exponent + UNIT // 2) // UNIT
    return binary_exponential(product)
