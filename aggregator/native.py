"""Every account's equity and requirements at current prices, without a single scenario.

The law of no factor is needed for it, so neither is market history. The figures are those of the sweep's headlines.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from .batch import bucketed
from .engine import native_of_bucket
from .errors import ConfigurationError
from .margin import NativeMargin
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
        arrays = bucket.arrays
        found: Any = native_of_bucket(arrays, rows, factors=len(factors), devices=1, count=len(bucket.members))
        for place, position in enumerate(bucket.members):
            figures: list[Any] = [np.asarray(values[place]) for values in found]
            out[position] = NativeMargin(*figures)
    return out
