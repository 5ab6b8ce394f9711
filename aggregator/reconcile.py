"""The verb `reconcile`: is the venue's number our number, today, for every account of a configuration.

Inputs are read, checked and packed as a sweep does. No scenario is drawn, so no factor needs a law and no market
history is read; nothing is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .conditions import Condition, exit_code
from .config import Resolved
from .differences import Native, reconciliation_rows
from .errors import ConfigurationError, ExitCode, FailureReason
from .evidence import Evidence
from .headline import plain_text
from .native import native_today
from .portfolio import pack_book
from .progress import Progress, silent
from .reconciliation import Status, by_size, worth_showing
from .run_inputs import read_inputs


@dataclass(frozen=True)
class Reconciled:
    """Rows of `reconciliation` without a run, biggest difference first, and what holds of them."""

    as_of: datetime
    rows: tuple[dict[str, Any], ...]
    conditions: tuple[Condition, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Figures by status, every status named."""
        found = Counter(row["status"] for row in self.rows)
        return {str(status): found[status] for status in Status}

    @property
    def exit_code(self) -> ExitCode:
        """The first code of the precedence that some condition carries; OK when none does."""
        return exit_code(self.conditions)


def run_reconcile(resolved: Resolved, *, progress: Progress | None = None) -> Reconciled:
    """Every account's figures of today beside the venue's own.

    Raises `ConfigurationError` when the configuration cannot be run; a problem with data becomes a row and a condition.
    """
    say = progress or silent
    configuration = resolved.configuration
    inputs = read_inputs(resolved, say)
    say("accounts", 0, 1)
    book, unclaimed = pack_book(inputs.snapshots, configuration.portfolios, as_of=inputs.as_of)
    if unclaimed:
        raise ConfigurationError(f"accounts that no portfolio maps: {', '.join(unclaimed)}; add them to [portfolios]")
    computed = []
    for portfolio, figures in zip(book.portfolios, native_today(book), strict=True):
        finite = () if figures is None else np.logical_and.reduce([np.isfinite(values) for values in figures]).tolist()
        computed.append(Native(portfolio, figures, finite))
    evidence = Evidence(inputs.snapshots, [*inputs.failures, *book.failures], inputs.as_of)
    rows = by_size(reconciliation_rows(computed, evidence, configuration.reconcile))
    say("accounts", 1, 1)
    unreachable = [f.message for f in inputs.failures if f.reason == FailureReason.UNREACHABLE]
    return Reconciled(inputs.as_of, tuple(rows), _conditions(rows, unreachable))


def _conditions(rows: Sequence[Mapping[str, Any]], unreachable: Sequence[str]) -> tuple[Condition, ...]:
    out = []
    beyond = [row for row in rows if row["beyond_bound"] and row["status"] == Status.UNEXPLAINED]
    if beyond:
        first = beyond[0]
        message = (
            f"{len(beyond)} differences beyond [reconcile] bounds that nothing explains, the largest "
            f"{abs(first['difference_usd']):,.2f} USD: {first['figure'].replace('_', ' ')} of {first['account_id']}"
        )
        out.append(Condition("unexplained", ExitCode.LIMIT_BREACHED, message))
    if unreachable:
        message = f"{len(unreachable)} payloads could not be brought: {unreachable[0]}"
        out.append(Condition("unreachable", ExitCode.VENUE_UNREACHABLE, message))
    incomplete = sorted({row["account_id"] for row in rows if row["status"] == Status.INCOMPLETE})
    if incomplete:
        message = f"{len(incomplete)} accounts are incomplete: {', '.join(incomplete)}"
        out.append(Condition("incomplete", ExitCode.BAD_DATA, message))
    return tuple(out)


def reconciliation_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table for the terminal, figures that no venue reports aside."""
    table = Table(title="Reconciliation (ours minus reported)", title_justify="left")
    table.add_column("account", overflow="fold", min_width=20)
    table.add_column("figure", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name in ("ours", "reported", "difference", "relative", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("why", overflow="fold", min_width=24)
    for row in worth_showing(rows):
        reason = row["reason"].replace("_", " ") + ": " if row["reason"] else ""
        table.add_row(
            Text(plain_text(row["account_id"])),
            row["figure"].replace("_margin", ""),
            Text(plain_text(row["unit"])),
            _amount(row["ours"]),
            _amount(row["reported"]),
            _small(row["difference"]),
            _small(row["difference_relative"]),
            _dollars(row["difference_usd"]),
            Text(row["status"], style="bold red" if row["beyond_bound"] else ""),
            Text(plain_text(reason + row["message"])),
        )
    return table


def _amount(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.6f}"


def _small(value: float | None) -> str:
    return "n/a" if value is None else "0" if value == 0 else f"{value:.2e}" if abs(value) < 1e-2 else f"{value:,.4f}"


def _dollars(value: float | None) -> str:
    return "n/a" if value is None else f"{round(value, 2) + 0.0:,.2f}"
