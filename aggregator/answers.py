"""The answer of each verb: a JSON document for machines, a table and lines for people.

Names and messages come from data: whatever a terminal would obey in them is shown as plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from .errors import ConfigurationError, nearest_name
from .terminal import result_console
from .verb import Answer

if TYPE_CHECKING:
    from rich.table import Table

    from .backtest_request import Tested
    from .calibrate import Written
    from .conditions import Condition
    from .doctor import Check
    from .errors import Failure
    from .reconcile import Reconciled
    from .run_record import Outcome


def outcome_answer(outcome: Outcome, table: Callable[[Sequence[Mapping[str, Any]]], Table]) -> Answer:
    """A finished run, with its headline rows in the `table` of its kind."""

    def document() -> dict[str, Any]:
        return {
            "run_id": outcome.run_id,
            "store": outcome.store,
            "report": outcome.report,
            "conditions": [condition._asdict() for condition in outcome.conditions],
            "notes": list(outcome.notes),
            "portfolios": [{k: v for k, v in row.items() if k != "run_id"} for row in outcome.portfolios],
        }

    def show() -> None:
        result_console().print(table(outcome.portfolios))
        _say_conditions(outcome.conditions)
        for note in outcome.notes:
            typer.echo(f"note: {note}", err=True)
        resumed = " (resumed)" if outcome.resumed else ""
        typer.echo(f"run      {outcome.run_id}{resumed} in {outcome.duration_s:.1f} s")
        typer.echo(f"results  {outcome.store}")
        if outcome.report:
            typer.echo(f"report   {outcome.report}")

    return Answer(document, show, outcome.exit_code)


def reconciled_answer(found: Reconciled) -> Answer:
    """Every figure beside the venue's own."""

    def document() -> dict[str, Any]:
        return {
            "as_of": found.as_of.isoformat(),
            "conditions": [condition._asdict() for condition in found.conditions],
            "counts": found.counts,
            "rows": found.rows,
        }

    def show() -> None:
        from .reconcile import reconciliation_table

        result_console().print(reconciliation_table(found.rows))
        _say_conditions(found.conditions)
        counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in found.counts.items() if count)
        typer.echo(f"figures  {counts or 'none'}, as of {found.as_of:%Y-%m-%dT%H:%M:%SZ}")

    return Answer(document, show, found.exit_code)


def calibrated_answer(written: Written) -> Answer:
    """The file that was written: its factors and laws, and what was refused."""
    file, failures = written.calibrated

    def document() -> dict[str, Any]:
        return {
            "path": str(written.path),
            "as_of": file.calibration.as_of.isoformat(),
            "factors": list(file.factors),
            "laws": {name: {"days": law.days, "nu": law.nu} for name, law in file.laws.items()},
            "refused": file.refused,
            "failures": [
                {"reason": f.reason, "message": f.message, "payload": f.payload, "subject": f.subject} for f in failures
            ],
        }

    def show() -> None:
        from .headline import plain_text

        for asset, reason in file.refused.items():
            typer.echo(plain_text(f"refused: {asset} {reason}"), err=True)
        for failure in failures:
            typer.echo(plain_text(f"{failure.reason}: {failure.message}"), err=True)
        used = file.calibration
        laws = ", ".join(f"{name} (nu {law.nu:g})" for name, law in file.laws.items())
        typer.echo(f"factors  {len(file.factors)}, {used.days} days to {used.last_date}")
        typer.echo(f"laws     {laws}")
        typer.echo(f"file     {written.path}")

    return Answer(document, show, written.exit_code)


def tested_answer(tested: Tested) -> Answer:
    """Every generator's margin held against what happened, and the books where it misses its target."""

    def document() -> Any:
        from .backtest_request import backtest_document

        return backtest_document(tested)

    def show() -> None:
        from .backtest_request import backtest_table, failing

        result_console(width=230).print(backtest_table(tested))
        say_failures(tested.failures)
        for generator, books in failing(tested.verdicts).items():
            typer.echo(f"misses   {generator}: {', '.join(books)}")

    return Answer(document, show, tested.exit_code)


def checked_answer(checks: Sequence[Check]) -> Answer:
    """What the doctor found."""
    from .doctor import checks_table, exit_code

    return Answer(
        lambda: {"checks": [check._asdict() for check in checks]},
        lambda: result_console().print(checks_table(checks)),
        exit_code(checks),
    )


def schema_answer(table: str | None) -> Answer:
    """Canonical tables and result tables, or those of one name; raises ConfigurationError for a name of neither."""
    from .schema.canonical import CANONICAL
    from .schema.fields import describe, table_version
    from .schema.results import RESULTS

    kinds = {"canonical": CANONICAL, "result": RESULTS}
    tables = [(kind, name, s) for kind, of in kinds.items() for name, s in of.items() if table in (None, name)]
    if not tables:
        known = [*CANONICAL, *RESULTS]
        raise ConfigurationError(
            f"no table {table!r}{nearest_name(table or '', known)}; known: {', '.join(dict.fromkeys(known))}"
        )

    def show() -> None:
        for kind, name, schema in tables:
            typer.echo(f"{name} ({kind}, version {table_version(schema)[1]})")
            for column in describe(schema):
                null = ", nullable" if column["nullable"] else ""
                typer.echo(f"  {column['name']:<32} {column['type']}{null}  [{column['unit']}]")
            typer.echo("")

    return Answer(
        lambda: [{"kind": kind, "table": name, "columns": describe(schema)} for kind, name, schema in tables],
        show,
        indent=2,
    )


def lines_answer(document: Any, lines: Iterable[str]) -> Answer:
    """A document whose text is a few lines."""

    def show() -> None:
        for line in lines:
            typer.echo(line)

    return Answer(lambda: document, show)


def say_failures(failures: Iterable[Failure]) -> None:
    """One line on stderr for each."""
    from .headline import plain_text

    for failure in failures:
        typer.echo(f"{failure.reason}: {plain_text(failure.message)}", err=True)


def _say_conditions(conditions: Iterable[Condition]) -> None:
    from .headline import plain_text

    for condition in conditions:
        typer.echo(f"{condition.condition}: {plain_text(condition.message)}", err=True)
