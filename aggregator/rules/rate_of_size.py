"""Rates that grow with the size of a position, in units of its underlying: linear, or by an integer square root.

Quantities stay in a scenario, so the rate is a number of today and the requirement is that rate times notional.

Source of the integer law: drift-labs/protocol-v2 @0ae3e3b, math/margin.rs (rules only); of the linear one: Deribit,
"Linear Perpetual" (margin that grows by a slope per coin).
"""

from __future__ import annotations

from decimal import Decimal
from math import isqrt

_RATE_SCALE = 10**4
_SIZE_SCALE = 10**9
_COEFFICIENT_SCALE = 10**6
_DIVISOR = 10**7  # 100,000 * 1e6 / 1e4: square-root scale, coefficient scale, rate scale


def rate_of_size(law: str, rate: Decimal, coefficient: Decimal, size: Decimal) -> float:
    """Rate of a position of absolute `size` (units of the underlying), as a fraction of its notional.

    `"linear"`: rate + coefficient * size. `"integer_sqrt"`: with w, c, q the integers of rate (1e-4), coefficient
    (1e-6) and size (1e-9), `max(w, w - w // 5 + isqrt(10 q + 1) * c // 1e7)` ten-thousandths; w alone where c is 0.
    Raises `ValueError` for another law.
    """
    if law == "linear":
        return float(rate + coefficient * size)
    if law != "integer_sqrt":
        raise ValueError(f"unknown law {law!r} of a rate of size")
    w, c, q = int(rate * _RATE_SCALE), int(coefficient * _COEFFICIENT_SCALE), int(size * _SIZE_SCALE)
    if c == 0:
        return w / _RATE_SCALE
    return max(w, w - w // 5 + isqrt(10 * q + 1) * c // _DIVISOR) / _RATE_SCALE
