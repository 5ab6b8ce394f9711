"""Every account's equity and requirements at current prices, without a single scenario.

The law of no factor is needed for it, so neither is market history. The figures are those of the sweep's headlines.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .batch import PortfolioArrays, bucketed
from .cube import CubeRows
from .errors import ConfigurationError
from .margin import NativeMargin, native_margin_today
from .portfolio import Book

_MOST_BUCKETS = 6
_PORTFOLIOS_PER_SHAPE = 64


def native_today(book: Book) -> list[NativeMargin | None]:
    """Figures (NumPy, float64, each account's own unit) of every portfolio, None where it has no complete account.

    Entries behind a portfolio's accounts are padding. Raises `ConfigurationError` unless JAX computes in float64.
    """
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ConfigurationError("a venue's figures are float64: set jax_enable_x64 before computing them")
    factors = book.factors()
    rows = book.cube.build(factors)
    out: list[Any] = [None] * len(book.portfolios)
    # Compiling a shape takes longer than computing many portfolios of it.
    most_buckets = max(1, min(_MOST_BUCKETS, len(out) // _PORTFOLIOS_PER_SHAPE))
    for bucket in bucketed(book.portfolios, factors, multiple=1, most_buckets=most_buckets):
        found: Any = jax.device_get(_of_bucket(bucket.arrays, rows, factors=max(1, len(factors))))
        for place, position in enumerate(bucket.members):
            figures: list[Any] = [np.asarray(values[place]) for values in found]
            out[position] = NativeMargin(*figures)
    return out


@functools.partial(jax.jit, static_argnames="factors")
def _of_bucket(arrays: PortfolioArrays, rows: CubeRows, *, factors: int) -> NativeMargin:
    today, unmoved = rows.today(), jnp.zeros(factors, jnp.float64)
    return lax.map(lambda portfolio: native_margin_today(portfolio, today, unmoved, rows), arrays)
