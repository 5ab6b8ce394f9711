"""How far a run is, told while it works."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while the run goes on."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody hears of."""
