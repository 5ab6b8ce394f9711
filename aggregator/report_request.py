"""The verb `report`: the HTML report of a run that is in a store, written again."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .errors import ConfigurationError, nearest_name
from .report import write_report
from .store import ResultStore


class StoredReport(NamedTuple):
    """A report that was written, and of which run."""

    run_id: str
    path: Path


def run_report(run: str, *, store: str, output: Path | None) -> StoredReport:
    """Write the report of `run` (an id, or `latest`) to `output`, or to `reports/<run>.html` in the folder `store`.

    Raises ConfigurationError for a run that the store does not hold, a file that cannot be written, and a remote store
    without `output`; StoreError for a store that cannot be read.
    """
    results = ResultStore(store)
    runs = results.committed_runs("sweep")
    if not runs:
        raise ConfigurationError(f"the store {store!r} holds no finished run")
    if run == "latest":
        run = runs[-1]
    elif run not in runs:
        raise ConfigurationError(
            f"the store {store!r} holds no finished run {run!r}{nearest_name(run, runs)}; the newest is {runs[-1]}"
        )
    if output is None:
        if "://" in store:
            raise ConfigurationError("give --output: the report of a remote store is written to a local file")
        output = Path(store) / "reports" / f"{run}.html"
    try:
        return StoredReport(run, write_report(results.read_run(run), output))
    except OSError as error:
        raise ConfigurationError(f"cannot write the report to {str(output)!r}: {error.strerror}") from None
