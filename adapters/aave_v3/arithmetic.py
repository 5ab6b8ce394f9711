"""Integer arithmetic of the contracts of Aave v3: ray (1e27), wad (1e18) and basis points (1e4), rounded as they round.

Source: github.com/aave-dao/aave-v3-origin, `libraries/math/WadRayMath`, `PercentageMath`, `MathUtils.mulDivCeil`. All
arguments are non-negative; a division by zero raises `ZeroDivisionError` where the contracts revert.
"""

from __future__ import annotations

RAY = 10**27
WAD = 10**18
PERCENTAGE_FACTOR = 10**4
SECONDS_PER_YEAR = 31_536_000
UINT256_MAX = 2**256 - 1
"""What the contracts return as the health factor of an account without debt."""


def ceil_div(numerator: int, denominator: int) -> int:
    """Quotient of non-negative integers, rounded up."""
    return -(-numerator // denominator)


def half_up_div(numerator: int, denominator: int) -> int:
    """Quotient of non-negative integers, rounded to nearest, halves up, as the contracts add half the divisor first."""
    return (numerator + denominator // 2) // denominator


def ray_mul(a: int, b: int) -> int:
    """a * b / 1e27, half up."""
    return half_up_div(a * b, RAY)


def ray_mul_floor(a: int, b: int) -> int:
    """a * b / 1e27, rounded down."""
    return a * b // RAY


def ray_mul_ceil(a: int, b: int) -> int:
    """a * b / 1e27, rounded up."""
    return ceil_div(a * b, RAY)


def ray_div(a: int, b: int) -> int:
    """a * 1e27 / b, half up."""
    return half_up_div(a * RAY, b)


def ray_div_floor(a: int, b: int) -> int:
    """a * 1e27 / b, rounded down."""
    return a * RAY // b


def ray_div_ceil(a: int, b: int) -> int:
    """a * 1e27 / b, rounded up."""
    return ceil_div(a * RAY, b)


def percent_mul(value: int, bps: int) -> int:
    """value * bps / 1e4, half up."""
    return half_up_div(value * bps, PERCENTAGE_FACTOR)


def percent_mul_floor(value: int, bps: int) -> int:
    """value * bps / 1e4, rounded down."""
    return value * bps // PERCENTAGE_FACTOR


def percent_mul_ceil(value: int, bps: int) -> int:
    """value * bps / 1e4, rounded up."""
    return ceil_div(value * bps, PERCENTAGE_FACTOR)


def percent_div(value: int, bps: int) -> int:
    """value * 1e4 / bps, half up."""
    return half_up_div(value * PERCENTAGE_FACTOR, bps)


def percent_div_floor(value: int, bps: int) -> int:
    """value * 1e4 / bps, rounded down."""
    return value * PERCENTAGE_FACTOR // bps


def percent_div_ceil(value: int, bps: int) -> int:
    """value * 1e4 / bps, rounded up."""
    return ceil_div(value * PERCENTAGE_FACTOR, bps)


def wad_div(a: int, b: int) -> int:
    """a * 1e18 / b, half up."""
    return half_up_div(a * WAD, b)
