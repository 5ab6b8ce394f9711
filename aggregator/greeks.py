"""First-order sensitivities of a portfolio by underlying, from the closed forms of its cube rows.

`delta_usd` is S dV/dS (profit per +100 %, linearised), `gamma_usd` 0.01 S^2 d2V/dS2 (change of the hedge per +1 %),
`vega_usd` per vol point of each option's own vol, `theta_usd` per day. A stable's or wrapped token's own peg is an
underlying of its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from .cube import CubeRows
from .pricing import DAYS_PER_YEAR, black76_greeks


class Sensitivity(NamedTuple):
    """Sensitivities of one cube row to one underlying, per unit of coefficient."""

    underlying: str
    delta: float
    gamma: float
    vega: float
    theta: float


def row_sensitivities(rows: CubeRows, factors: Sequence[str]) -> list[list[Sensitivity]]:
    """Sensitivities of every cube row; a power w of a price has delta w and gamma 0.01 w (w - 1)."""
    out: list[list[Sensitivity]] = []
    for factor, weight in zip(np.asarray(rows.exponent_factor), np.asarray(rows.exponent_weight), strict=True):
        out.append(_powers(factors, factor, weight, 1.0))
    greeks = jax.vmap(lambda f, k, t, s, c, d: black76_greeks(f, k, years=t, vol=s, is_call=c, discount=d))(
        rows.forward, rows.strike, rows.years, rows.vol, rows.is_call, rows.discount
    )
    for number, forward in enumerate(np.asarray(rows.forward)):
        conversion = float(rows.conversion_today[number])
        price, delta, gamma, vega, theta = (float(x[number]) * conversion for x in greeks[:5])
        name = _underlying(factors[int(rows.price_factor[number])])
        own = Sensitivity(name, delta * forward, 0.01 * gamma * forward**2, 0.01 * vega, theta / DAYS_PER_YEAR)
        factor, weight = np.asarray(rows.conversion_factor[number]), np.asarray(rows.conversion_weight[number])
        out.append([own, *_powers(factors, factor, weight, price)])
    return out


def _powers(factors: Sequence[str], factor: np.ndarray, weight: np.ndarray, value: float) -> list[Sensitivity]:
    return [
        Sensitivity(
            _underlying(factors[int(f)]), float(w) * value, 0.01 * float(w) * (float(w) - 1.0) * value, 0.0, 0.0
        )
        for f, w in zip(factor, weight, strict=True)
        if w != 0.0
    ]


def _underlying(factor: str) -> str:
    """`price:ETH` is ETH; a peg keeps its kind, because a depeg is not a price move."""
    return factor.removeprefix("price:")


def greeks_by_underlying(
    legs: Sequence[tuple[int, int, float]], sensitivities: Sequence[Sequence[Sensitivity]]
) -> dict[str, tuple[float, float, float, float]]:
    """(delta, gamma, vega, theta) in USD of each underlying of one portfolio's legs (line, row, coefficient)."""
    parts: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for _, row, coefficient in legs:
        for s in sensitivities[row]:
            parts[s.underlying].append(
                (coefficient * s.delta, coefficient * s.gamma, coefficient * s.vega, coefficient * s.theta)
            )
    return {
        name: (
            math.fsum(p[0] for p in of),
            math.fsum(p[1] for p in of),
            math.fsum(p[2] for p in of),
            math.fsum(p[3] for p in of),
        )
        for name, of in sorted(parts.items())
    }
