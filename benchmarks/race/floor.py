"""The floor of a machine: how many operations the work has, and how fast the cores multiply and add in float32."""

from __future__ import annotations

import time

import numba
import numpy as np

from .book_rows import BookRows

_LANES = 64
_STEPS = 4_000_000


def work_operations(rows: BookRows, scenarios: int) -> float:
    """Operations of the un-netted work, a multiplication, addition or comparison counting one each.

    A row: two multiply-adds (equity, headroom); a tier: a multiply-add and a maximum. An account: verdict, its count,
    mean, lacking equity and its sum, the two sums of the portfolio, and whether some account is gone (8). A portfolio:
    the two counts and the pooled verdict (3), and three passes of the tail over its losses (6).
    """
    tiers = rows.slope.size
    return scenarios * (4.0 * rows.row.size + 3.0 * tiers + 8.0 * len(rows.account_id) + 9.0 * len(rows.portfolio_id))


@numba.njit(fastmath=True)
def _multiply_adds(sums, factor, addend):  # type: ignore[no-untyped-def]
    # Enough independent chains to hide the latency of each, few enough for the registers.
    local = sums.copy()
    for _ in range(_STEPS):
        for lane in range(_LANES):
            local[lane] = local[lane] * factor + addend
    return local


def multiply_add_rate(repetitions: int = 15) -> float:
    """Operations per second in float32 over all threads, two for each multiply-add.

    The best of one thread times the threads: on a machine that others use too, all threads at once measure the others.
    """
    sums = np.zeros(_LANES, np.float32)
    best = np.inf
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        _multiply_adds(sums, np.float32(0.999), np.float32(1e-3))
        best = min(best, time.perf_counter() - start)
    return 2.0 * _STEPS * _LANES / best * numba.get_num_threads()
