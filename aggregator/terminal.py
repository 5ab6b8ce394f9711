"""Talk on the terminal while a verb works: progress as bars where somebody watches, as plain lines on stderr elsewhere.

What is imported for a terminal is imported when there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


def result_console(width: int = 200) -> Console:
    """Where tables of results go: stdout as wide as the terminal is, or `width` columns where it is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


class Lines:
    """Progress as plain lines on stderr, one per stage."""

    def __init__(self) -> None:
        self._stage = ""

    def note(self, text: str) -> None:
        """A line of its own; control characters in it have no effect."""
        from .headline import plain_text

        typer.echo(plain_text(text), err=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or done == total:
            self._stage = stage
            typer.echo(f"{stage}: {done}/{total}", err=True)


class Bars:
    """Progress as rich bars on a terminal."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def note(self, text: str) -> None:
        """A line of its own above the bars; a title is no markup."""
        from .headline import plain_text

        self._progress.console.print(plain_text(text), markup=False, highlight=False)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)


@contextmanager
def shown_progress() -> Iterator[Lines | Bars]:
    """What a verb tells of its progress, shown until the block ends."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress)
