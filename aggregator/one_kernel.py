"""A function of small arrays as one kernel of the CPU, its loops included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

# Versions that were seen to be three times as fast with the mark, with the same bits; 0.12 is as fast without it.
_ONE_KERNEL = ("0.10.", "0.11.")


def one_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one kernel of the CPU, its loops included.

    The CPU's runtime starts every step of a loop by itself, which takes longer than a small step computes. The mark is
    the compiler's own for loops that it deems small; a GPU ignores it. Every argument must be used (the compiler ends
    the process otherwise), no temporary may be so large that it would be computed by several threads, and the body may
    call no library (no sort, no search for the largest).
    """
    if not jax.__version__.startswith(_ONE_KERNEL):
        return function

    def unmarked(*arguments: Any) -> Any:
        with set_xla_metadata(inlineable=None, xla_cpu_small_call=None):
            return function(*arguments)

    compiled = jax.jit(unmarked)

    def call(*arguments: Any) -> Any:
        with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
            return compiled(*arguments)

    return call
