"""The packed book of the quickstart desk, for tests that need a real one without running a sweep."""

import functools
from pathlib import Path

from aggregator.config import load_configuration
from aggregator.portfolio import Book, pack_book
from aggregator.run_inputs import read_inputs

QUICKSTART = Path(__file__).resolve().parent.parent / "configs" / "quickstart.toml"
HORIZON_DAYS = 1.0


@functools.cache
def quickstart_book() -> Book:
    """Both portfolios of the desk over all their factors."""
    resolved = load_configuration(QUICKSTART)
    inputs = read_inputs(resolved, lambda stage, done, total: None)
    book, unclaimed = pack_book(inputs.snapshots, resolved.configuration.portfolios, as_of=inputs.as_of)
    assert not unclaimed
    return book


FACTORS = quickstart_book().factors()
"""Sorted names of what moves the desk."""
