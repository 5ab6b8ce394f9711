"""Empirical tails of the last losses of a series: linear-interpolation quantile and mean of the losses beyond it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Tail(NamedTuple):
    """Quantile and mean of what is not below it; [N], NaN before the first forecast."""

    quantile: np.ndarray
    mean: np.ndarray


def tail(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantile and tail mean over the last axis of `values` [..., n], n >= 1.

    The quantile interpolates linearly between order statistics k and k + 1 with k = (n - 1) level (definition 7 of
    R. J. Hyndman, Y. Fan, "Sample quantiles in statistical packages", The American Statistician 50, 1996); the tail
    mean is that of the values that are not below the quantile, and never less than the quantile.
    """
    count = values.shape[-1]
    position = (count - 1) * level
    lower = int(np.floor(position + 1e-9))
    top = np.sort(np.partition(values, lower, axis=-1)[..., lower:], axis=-1)
    upper = top[..., min(1, top.shape[-1] - 1)]
    weight = max(position - lower, 0.0)
    quantile = top[..., 0] + weight * (upper - top[..., 0])
    beyond = top >= quantile[..., None]
    mean = np.sum(np.where(beyond, top, 0.0), axis=-1) / np.maximum(beyond.sum(axis=-1), 1)
    return quantile, np.maximum(np.where(beyond.any(axis=-1), mean, quantile), quantile)


def trailing_tail(losses: np.ndarray, *, length: int, start: int, level: float) -> Tail:
    """At each i >= start the tail of losses [i - length, i), fewer while the series [N] is younger than that."""
    quantile, mean = np.full(len(losses), np.nan), np.full(len(losses), np.nan)
    for i in range(start, min(length, len(losses))):
        quantile[i], mean[i] = tail(losses[:i], level)
    first = max(start, length)
    if len(losses) > first:
        views = np.lib.stride_tricks.sliding_window_view(losses[first - length : -1], length)
        quantile[first:], mean[first:] = tail(views, level)
    return Tail(quantile, mean)
