"""What every verb does alike: configuration and engine before, one answer after, and an exit code in every case.

Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 internal error, 2 usage or configuration (nothing ran), 3 bad
or incomplete data, 4 limit breached, 5 venue unreachable; of several conditions the first of 4, 5, 3 decides, and
`--json` lists all. Nothing heavy is imported before it is needed: `--help` needs none of it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import typer

from .errors import CrossmarginError, ExitCode

if TYPE_CHECKING:
    from .config import Resolved


class Answer(NamedTuple):
    """What a verb found: a document for machines, the same shown to people, and the code to end with."""

    document: Callable[[], Any]
    show: Callable[[], None]
    code: ExitCode = ExitCode.OK
    indent: int | None = None
    """Of the document's JSON, which stands on one line without."""


@contextmanager
def exit_codes(as_json: bool) -> Iterator[None]:
    """Errors to one clear sentence on stderr and the right exit code (and one JSON object with `--json`)."""
    try:
        yield
    except CrossmarginError as error:
        _fail(as_json, error.exit_code, type(error).__name__, str(error))
    except (typer.Exit, KeyboardInterrupt):
        raise
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        _fail(as_json, ExitCode.INTERNAL, type(error).__name__, f"internal error: {error}")


def give(answer: Answer, as_json: bool) -> NoReturn:
    """Print the answer, as JSON or for people, and end with its code."""
    if as_json:
        typer.echo(json.dumps(answer.document(), indent=answer.indent))
    else:
        answer.show()
    raise typer.Exit(int(answer.code))


def configured(config: Path, overrides: Sequence[str] | None, *, host_devices: int | None = None) -> Resolved:
    """The configuration of a run with its overrides, and the engine started on as many devices as it says, or as
    `host_devices` says.
    """
    from .config import load_configuration

    resolved = load_configuration(config, overrides=overrides or (), environment=os.environ)
    start_engine(resolved.configuration.engine.host_devices if host_devices is None else host_devices)
    return resolved


def start_engine(host_devices: int) -> None:
    """Switch on x64 and split the CPU into devices (0: as many as cores), if JAX has not looked at its devices yet."""
    from .compiler_flags import set_compiler_flags

    set_compiler_flags()
    import jax

    jax.config.update("jax_enable_x64", True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", host_devices or cores)
    except RuntimeError:
        # A program that calls verbs in its own process has started JAX before. It keeps its devices, of which no
        # figure depends on; the run row says how many there were.
        typer.echo(f"JAX runs already: {len(jax.devices())} devices as they are", err=True)


def _fail(as_json: bool, code: ExitCode, kind: str, message: str) -> NoReturn:
    from .headline import plain_text

    typer.echo(f"crossmargin: {plain_text(message)}", err=True)
    if as_json:
        condition = {"condition": kind, "code": int(code), "message": message}
        typer.echo(
            json.dumps(
                {
                    "run_id": None,
                    "store": None,
                    "report": None,
                    "conditions": [condition],
                    "notes": [],
                    "portfolios": [],
                }
            )
        )
    raise typer.Exit(int(code))
