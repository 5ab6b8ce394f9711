"""Products of powers of factor prices, by the names of the factors: what moves a token, a contract, a conversion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

USD = "USD"
"""The dollar itself: nothing moves it."""


def combined(*parts: tuple[Mapping[str, float], float]) -> dict[str, float]:
    """Sum of exponents, each part times its sign."""
    out: dict[str, float] = defaultdict(float)
    for exponents, sign in parts:
        for name, power in exponents.items():
            out[name] += sign * power
    return dict(out)
