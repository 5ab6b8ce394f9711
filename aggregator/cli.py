"""The command line: verbs parse arguments, call and print; no logic. Heavy imports happen inside a verb.

Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 internal error, 2 usage or configuration (nothing ran), 3 bad
or incomplete data, 4 limit breached, 5 venue unreachable; of several conditions the first of 4, 5, 3 decides, and
`--json` lists all.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .errors import ConfigurationError, CrossmarginError, ExitCode, nearest_name

if TYPE_CHECKING:
    from rich.table import Table

    from models.recommended import Recommended

    from .backtest_request import Tested
    from .calibrate import Written
    from .doctor import Adapters, Check
    from .reconcile import Reconciled
    from .sweep import Outcome

app = typer.Typer(
    name="crossmargin",
    help="Unified margin across lenders, perpetuals, exchanges and option venues.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_ConfigArgument = Annotated[Path, typer.Argument(help="Configuration of the run (TOML).", show_default=False)]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")]
_SettingsOption = Annotated[
    Path | None, typer.Option("--settings", help="Hyper-parameters (TOML); default: the shipped ones.")
]
_CheckpointsOption = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder that keeps every refit, so that a cut run can go on.")
]
_SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override one key; repeatable.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Unified margin across lenders, perpetuals, exchanges and option venues."""


@app.command()
def sweep(
    config: _ConfigArgument,
    as_json: _JsonOption = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew even if an unfinished run of equal digest lies there.")
    ] = False,
    target_error: Annotated[
        float | None,
        typer.Option(
            "--target-error", help="Add scenarios until the relative standard error of ES 99 % is this small."
        ),
    ] = None,
    overrides: _SetOption = None,
) -> None:
    """Run one margin sweep: ingest, compute, store, report."""
    with _exit_codes(as_json):
        from .config import load_configuration

        wanted = [*(overrides or ()), *([] if target_error is None else [f"run.target_error={target_error!r}"])]
        resolved = load_configuration(config, overrides=wanted, environment=os.environ)
        _start_engine(resolved.configuration.engine.host_devices)
        from .sweep import run_sweep

        with _progress() as say:
            say.note(f"{resolved.configuration.title}: configuration {resolved.digest()[:12]}")
            outcome = run_sweep(resolved, fresh=fresh, progress=say)
        from .headline import headline_table

        _print_outcome(outcome, as_json, headline_table)
    raise typer.Exit(int(outcome.exit_code))


@app.command()
def screen(
    config: _ConfigArgument,
    top: Annotated[int, typer.Option("--top", min=0, help="Portfolios to print, largest ES 99 % first.")] = 20,
    as_json: _JsonOption = False,
    overrides: _SetOption = None,
) -> None:
    """Screen whole books: tail and liquidation probability of every portfolio, without the requirement stack."""
    with _exit_codes(as_json):
        from .config import load_configuration

        resolved = load_configuration(config, overrides=overrides or (), environment=os.environ)
        _start_engine(resolved.configuration.engine.host_devices)
        from .headline import screen_table
        from .screen import run_screen

        with _progress() as say:
            say.note(f"{resolved.configuration.title}: configuration {resolved.digest()[:12]}")
            outcome = run_screen(resolved, top=top, progress=say)
        _print_outcome(outcome, as_json, screen_table)
    raise typer.Exit(int(outcome.exit_code))


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run id, or `latest`.", show_default=False)],
    store: Annotated[str, typer.Option("--store", help="Result store: folder or URL.")] = "results",
    output: Annotated[
        Path | None, typer.Option("--output", help="HTML file to write; default <store>/reports/<run>.html.")
    ] = None,
    as_json: _JsonOption = False,
) -> None:
    """Write the HTML report of a run that is in the store."""
    with _exit_codes(as_json):
        from .report import write_report
        from .store import ResultStore

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
            path = write_report(results.read_run(run), output)
        except OSError as error:
            raise ConfigurationError(f"cannot write the report to {str(output)!r}: {error.strerror}") from None
        typer.echo(json.dumps({"run_id": run, "report": str(path)}) if as_json else str(path))


@app.command()
def reconcile(config: _ConfigArgument, as_json: _JsonOption = False, overrides: _SetOption = None) -> None:
    """Hold today's figures of every account against the venue's own; nothing is stored."""
    with _exit_codes(as_json):
        from .config import load_configuration

        resolved = load_configuration(config, overrides=overrides or (), environment=os.environ)
        _start_engine(1)
        from .reconcile import run_reconcile

        with _progress() as say:
            outcome = run_reconcile(resolved, progress=say)
        _print_reconciled(outcome, as_json)
    raise typer.Exit(int(outcome.exit_code))


@app.command()
def calibrate(
    config: Annotated[Path, typer.Argument(help="What to calibrate (TOML).", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default calibrated/<as_of date>.toml beside CONFIG.")
    ] = None,
    as_json: _JsonOption = False,
) -> None:
    """Fit the scenario figures to a market history and write them to a dated TOML file."""
    with _exit_codes(as_json):
        from .calibrate import run_calibrate

        written = run_calibrate(config, out=out)
        _print_calibrated(written, as_json)
    raise typer.Exit(int(written.exit_code))


@app.command(name="backtest-margin")
def backtest_margin(
    config: Annotated[Path, typer.Argument(help="What to test (TOML with a section [backtest]).", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Daily forecasts and losses as .parquet or .csv; default none.")
    ] = None,
    as_json: _JsonOption = False,
    overrides: _SetOption = None,
) -> None:
    """Hold every generator's margin against what happened the next day, over the whole history."""
    with _exit_codes(as_json):
        from .backtest_request import load_backtest, run_backtest, write_forecasts

        figures, folder = load_backtest(config, overrides=overrides or ())
        with _progress() as say:
            tested = run_backtest(figures, folder, progress=say)
        if out is not None:
            write_forecasts(tested, out)
        _print_tested(tested, as_json)
    raise typer.Exit(int(tested.exit_code))


@app.command()
def train(
    market: Annotated[Path, typer.Option("--market", help="Folder of market history.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoints.", show_default=False)],
    until: Annotated[
        datetime | None, typer.Option("--until", formats=["%Y-%m-%d"], help="Train on what ended before this day.")
    ] = None,
    settings: _SettingsOption = None,
    checkpoints: _CheckpointsOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Fit the learned margin tiers to a market history and write their checkpoints."""
    with _exit_codes(as_json):
        _start_engine(1)
        from models.tier_model_settings import SHIPPED
        from models.train_request import run_training

        with _progress() as say:
            trained = run_training(
                market,
                out=out,
                settings=settings or SHIPPED,
                until=None if until is None else until.date(),
                checkpoints=checkpoints,
                progress=say,
            )
        if as_json:
            typer.echo(json.dumps([{**made._asdict(), "path": str(made.path)} for made in trained]))
        else:
            for made in trained:
                typer.echo(f"{made.path}: {made.horizon}, {made.loss}, trained on what ended before {made.until}")


@app.command()
def backtest(
    market: Annotated[Path, typer.Option("--market", help="Folder of market history.", show_default=False)],
    start: Annotated[datetime, typer.Option("--start", formats=["%Y-%m-%d"], help="First day.", show_default=False)],
    end: Annotated[
        datetime, typer.Option("--end", formats=["%Y-%m-%d"], help="Last day, included.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Forecast table to write (.parquet).", show_default=False)],
    horizon: Annotated[str, typer.Option("--horizon", help="1d or 8h.")] = "1d",
    loss: Annotated[str, typer.Option("--loss", help="close or adverse.")] = "close",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Forecast with the classical baselines as well.")
    ] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Print the scores of what was forecast.")] = False,
    settings: _SettingsOption = None,
    checkpoints: _CheckpointsOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Forecast margin rates walk-forward over a market history: each row knows what was known at its opening."""
    with _exit_codes(as_json):
        _start_engine(1)
        from models.backtest_request import run_backtest
        from models.tier_model_settings import SHIPPED

        with _progress() as say:
            outcome = run_backtest(
                market,
                start=start.date(),
                end=end.date(),
                horizon=horizon,
                loss=loss,
                out=out,
                settings=settings or SHIPPED,
                checkpoints=checkpoints,
                baselines=baselines,
                progress=say,
            )
        if scores:
            typer.echo(_scores_text(out, market), err=as_json)
        if as_json:
            typer.echo(json.dumps({**outcome._asdict(), "path": str(outcome.path)}))
        else:
            typer.echo(f"{outcome.path}: {outcome.rows} rows, {outcome.first} to {outcome.last}")


@app.command()
def score(
    forecasts: Annotated[Path, typer.Argument(help="Forecast table (.parquet).", show_default=False)],
    market: Annotated[Path, typer.Option("--market", help="Folder of market history.", show_default=False)],
) -> None:
    """Score any forecast table of one horizon, level and loss against a market history, on its common rows."""
    with _exit_codes(False):
        typer.echo(_scores_text(forecasts, market))


def _scores_text(forecasts: Path, market: Path) -> str:
    from models.forecast_scores import score, scores_text
    from models.forecast_table import read_forecasts
    from models.market_history import read_market

    return scores_text(score(read_forecasts(forecasts), read_market(market)))


@app.command()
def recommend(
    config: _ConfigArgument,
    market: Annotated[
        Path | None, typer.Option("--market", help="Folder of market history; default: tiers.market of CONFIG.")
    ] = None,
    as_json: _JsonOption = False,
    overrides: _SetOption = None,
) -> None:
    """Recommend margin tiers from the learned model's forecasts and try them on the book before they are written."""
    with _exit_codes(as_json):
        from .config import load_configuration

        resolved = load_configuration(config, overrides=overrides or (), environment=os.environ)
        _start_engine(resolved.configuration.engine.host_devices)
        from models.recommend_request import run_recommend

        from .sweep import read_inputs

        with _progress() as say:
            inputs = read_inputs(resolved, say)
            recommended = run_recommend(
                resolved, inputs.snapshots, as_of=inputs.as_of, digest=inputs.digest, market=market, progress=say
            )
        _print_recommended(recommended, as_json)
    raise typer.Exit(int(recommended.exit_code))


@app.command()
def doctor(
    store: Annotated[str, typer.Option("--store", help="Result store to look at: folder or URL.")] = "results",
    as_json: _JsonOption = False,
) -> None:
    """Check installation, devices, store, clock and files; write nothing."""
    with _exit_codes(as_json):
        from .doctor import examine, exit_code

        checks = examine(store, _registered_adapters)
        _print_checks(checks, as_json)
    raise typer.Exit(int(exit_code(checks)))


@app.command()
def schema(
    table: Annotated[str | None, typer.Argument(help="One table; default all.", show_default=False)] = None,
    as_json: _JsonOption = False,
) -> None:
    """Print the canonical tables and the result tables: columns, types, units."""
    with _exit_codes(as_json):
        from .schema import CANONICAL, RESULTS, describe

        kinds = {"canonical": CANONICAL, "result": RESULTS}
        tables = [(kind, name, s) for kind, of in kinds.items() for name, s in of.items() if table in (None, name)]
        if not tables:
            known = [*CANONICAL, *RESULTS]
            raise ConfigurationError(
                f"no table {table!r}{nearest_name(table or '', known)}; known: {', '.join(dict.fromkeys(known))}"
            )
        if as_json:
            typer.echo(
                json.dumps(
                    [{"kind": kind, "table": name, "columns": describe(s)} for kind, name, s in tables], indent=2
                )
            )
            return
        for kind, name, s in tables:
            typer.echo(f"{name} ({kind}, version {s.metadata[b'crossmargin.version'].decode()})")
            for column in describe(s):
                null = ", nullable" if column["nullable"] else ""
                typer.echo(f"  {column['name']:<32} {column['type']}{null}  [{column['unit']}]")
            typer.echo("")


def _registered_adapters() -> Adapters:
    from adapters.adapter import adapter_names, find_adapter

    from .doctor import Adapters

    return Adapters(adapter_names(), find_adapter)


def _start_engine(host_devices: int) -> None:
    """Switch on x64 and split the CPU into devices, if JAX has not looked at its devices yet."""
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


@contextmanager
def _exit_codes(as_json: bool) -> Iterator[None]:
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


def _fail(as_json: bool, code: ExitCode, kind: str, message: str) -> None:
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


def _print_outcome(outcome: Outcome, as_json: bool, table: Callable[[Sequence[Mapping[str, Any]]], Table]) -> None:
    if as_json:
        document = {
            "run_id": outcome.run_id,
            "store": outcome.store,
            "report": outcome.report,
            "conditions": [condition._asdict() for condition in outcome.conditions],
            "notes": list(outcome.notes),
            "portfolios": [{k: v for k, v in row.items() if k != "run_id"} for row in outcome.portfolios],
        }
        typer.echo(json.dumps(document, default=str))
        return
    from rich.console import Console

    from .headline import plain_text

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(outcome.portfolios))
    for condition in outcome.conditions:
        typer.echo(f"{condition.condition}: {plain_text(condition.message)}", err=True)
    for note in outcome.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"run      {outcome.run_id}{' (resumed)' if outcome.resumed else ''} in {outcome.duration_s:.1f} s")
    typer.echo(f"results  {outcome.store}")
    if outcome.report:
        typer.echo(f"report   {outcome.report}")


def _print_reconciled(outcome: Reconciled, as_json: bool) -> None:
    if as_json:
        document = {
            "as_of": outcome.as_of.isoformat(),
            "conditions": [condition._asdict() for condition in outcome.conditions],
            "counts": outcome.counts,
            "rows": outcome.rows,
        }
        typer.echo(json.dumps(document))
        return
    from rich.console import Console

    from .headline import plain_text
    from .reconcile import reconciliation_table

    Console(width=None if sys.stdout.isatty() else 200).print(reconciliation_table(outcome.rows))
    for condition in outcome.conditions:
        typer.echo(f"{condition.condition}: {plain_text(condition.message)}", err=True)
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in outcome.counts.items() if count)
    typer.echo(f"figures  {counts or 'none'}, as of {outcome.as_of:%Y-%m-%dT%H:%M:%SZ}")


def _print_calibrated(written: Written, as_json: bool) -> None:
    file, failures = written.calibrated
    if as_json:
        document = {
            "path": str(written.path),
            "as_of": file.calibration.as_of.isoformat(),
            "factors": list(file.factors),
            "laws": {name: {"days": law.days, "nu": law.nu} for name, law in file.laws.items()},
            "refused": file.refused,
            "failures": [
                {"reason": f.reason, "message": f.message, "payload": f.payload, "subject": f.subject} for f in failures
            ],
        }
        typer.echo(json.dumps(document))
        return
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


def _print_tested(tested: Tested, as_json: bool) -> None:
    from .backtest_request import backtest_document, backtest_table, failing

    if as_json:
        typer.echo(json.dumps(backtest_document(tested)))
        return
    from rich.console import Console

    from .headline import plain_text

    Console(width=None if sys.stdout.isatty() else 230).print(backtest_table(tested))
    for failure in tested.failures:
        typer.echo(f"{failure.reason}: {plain_text(failure.message)}", err=True)
    for generator, books in failing(tested.verdicts).items():
        typer.echo(f"misses   {generator}: {', '.join(books)}")


def _print_recommended(recommended: Recommended, as_json: bool) -> None:
    from models.recommendation_table import changes_table, recommendation_document, trial_table_text

    if as_json:
        typer.echo(json.dumps(recommendation_document(recommended)))
        return
    from rich.console import Console

    from .headline import plain_text

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(changes_table(recommended))
    console.print(trial_table_text(recommended))
    if recommended.early_warning is not None:
        from models.early_warning import early_warning_table

        console.print(early_warning_table(recommended.early_warning))
        for note in recommended.early_warning.notes:
            typer.echo(note, err=True)
    for failure in recommended.outcome.failures:
        typer.echo(f"{failure.reason}: {plain_text(failure.message)}", err=True)
    typer.echo(f"reference  {recommended.reference_id}, as of {recommended.as_of:%Y-%m-%dT%H:%M:%SZ}")
    typer.echo(f"document   {recommended.document}")
    typer.echo(f"results    {recommended.store}")
    typer.echo(f"report     {recommended.report}")


def _print_checks(checks: Sequence[Check], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"checks": [check._asdict() for check in checks]}))
        return
    from rich.console import Console

    from .doctor import checks_table

    Console(width=None if sys.stdout.isatty() else 200).print(checks_table(checks))


class _Lines:
    """Progress as plain lines on stderr, one per stage."""

    def __init__(self) -> None:
        self._stage = ""

    def note(self, text: str) -> None:
        from .headline import plain_text

        typer.echo(plain_text(text), err=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or done == total:
            self._stage = stage
            typer.echo(f"{stage}: {done}/{total}", err=True)


class _Bars:
    """Progress as rich bars on a terminal."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def note(self, text: str) -> None:
        from .headline import plain_text

        # A title is no markup.
        self._progress.console.print(plain_text(text), markup=False, highlight=False)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)


@contextmanager
def _progress() -> Iterator[_Lines | _Bars]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(console=Console(stderr=True), transient=True) as progress:
        yield _Bars(progress)


def main() -> None:
    """Entry point of the console script."""
    app()
