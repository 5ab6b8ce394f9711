"""The command line: verbs parse arguments, call and answer; no logic. Heavy imports happen inside a verb."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .answers import (
    calibrated_answer,
    checked_answer,
    lines_answer,
    outcome_answer,
    reconciled_answer,
    say_failures,
    schema_answer,
    tested_answer,
)
from .terminal import result_console, shown_progress
from .verb import Answer, configured, exit_codes, give, start_engine

if TYPE_CHECKING:
    from models.recommended import Recommended

    from .config import Resolved
    from .doctor import Adapters

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
    with exit_codes(as_json):
        wanted = [*(overrides or ()), *([] if target_error is None else [f"run.target_error={target_error!r}"])]
        resolved = configured(config, wanted)
        from .headline import headline_table
        from .sweep import run_sweep

        with shown_progress() as say:
            say.note(_title(resolved))
            outcome = run_sweep(resolved, fresh=fresh, progress=say)
        give(outcome_answer(outcome, headline_table), as_json)


@app.command()
def screen(
    config: _ConfigArgument,
    top: Annotated[int, typer.Option("--top", min=0, help="Portfolios to print, largest ES 99 % first.")] = 20,
    as_json: _JsonOption = False,
    overrides: _SetOption = None,
) -> None:
    """Screen whole books: tail and liquidation probability of every portfolio, without the requirement stack."""
    with exit_codes(as_json):
        resolved = configured(config, overrides)
        from .headline import screen_table
        from .screen import run_screen

        with shown_progress() as say:
            say.note(_title(resolved))
            outcome = run_screen(resolved, top=top, progress=say)
        give(outcome_answer(outcome, screen_table), as_json)


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
    with exit_codes(as_json):
        from .report_request import run_report

        written = run_report(run, store=store, output=output)
        give(lines_answer({"run_id": written.run_id, "report": str(written.path)}, [str(written.path)]), as_json)


@app.command()
def reconcile(config: _ConfigArgument, as_json: _JsonOption = False, overrides: _SetOption = None) -> None:
    """Hold today's figures of every account against the venue's own; nothing is stored."""
    with exit_codes(as_json):
        resolved = configured(config, overrides, host_devices=1)
        from .reconcile import run_reconcile

        with shown_progress() as say:
            found = run_reconcile(resolved, progress=say)
        give(reconciled_answer(found), as_json)


@app.command()
def calibrate(
    config: Annotated[Path, typer.Argument(help="What to calibrate (TOML).", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default calibrated/<as_of date>.toml beside CONFIG.")
    ] = None,
    as_json: _JsonOption = False,
) -> None:
    """Fit the scenario figures to a market history and write them to a dated TOML file."""
    with exit_codes(as_json):
        from .calibrate import run_calibrate

        written = run_calibrate(config, out=out)
        give(calibrated_answer(written), as_json)


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
    with exit_codes(as_json):
        from .backtest_request import load_backtest, run_backtest, write_forecasts

        figures, folder = load_backtest(config, overrides=overrides or ())
        with shown_progress() as say:
            tested = run_backtest(figures, folder, progress=say)
        if out is not None:
            write_forecasts(tested, out)
        give(tested_answer(tested), as_json)


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
    with exit_codes(as_json):
        start_engine(1)
        from models.tier_model_settings import SHIPPED
        from models.train_request import run_training

        with shown_progress() as say:
            trained = run_training(
                market,
                out=out,
                settings=settings or SHIPPED,
                until=None if until is None else until.date(),
                checkpoints=checkpoints,
                progress=say,
            )
        document = [{**made._asdict(), "path": str(made.path)} for made in trained]
        lines = [
            f"{made.path}: {made.horizon}, {made.loss}, trained on what ended before {made.until}" for made in trained
        ]
        give(lines_answer(document, lines), as_json)


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
    with exit_codes(as_json):
        start_engine(1)
        from models.backtest_request import run_backtest
        from models.tier_model_settings import SHIPPED

        with shown_progress() as say:
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
        line = f"{outcome.path}: {outcome.rows} rows, {outcome.first} to {outcome.last}"
        give(lines_answer({**outcome._asdict(), "path": str(outcome.path)}, [line]), as_json)


@app.command()
def score(
    forecasts: Annotated[Path, typer.Argument(help="Forecast table (.parquet).", show_default=False)],
    market: Annotated[Path, typer.Option("--market", help="Folder of market history.", show_default=False)],
) -> None:
    """Score any forecast table of one horizon, level and loss against a market history, on its common rows."""
    with exit_codes(False):
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
    with exit_codes(as_json):
        resolved = configured(config, overrides)
        from models.recommend_request import run_recommend

        from .run_inputs import read_inputs

        with shown_progress() as say:
            inputs = read_inputs(resolved, say)
            recommended = run_recommend(
                resolved, inputs.snapshots, as_of=inputs.as_of, digest=inputs.digest, market=market, progress=say
            )
        give(_recommended_answer(recommended), as_json)


@app.command()
def doctor(
    store: Annotated[str, typer.Option("--store", help="Result store to look at: folder or URL.")] = "results",
    as_json: _JsonOption = False,
) -> None:
    """Check installation, devices, store, clock and files; write nothing."""
    with exit_codes(as_json):
        from .doctor import examine

        give(checked_answer(examine(store, _registered_adapters)), as_json)


@app.command()
def schema(
    table: Annotated[str | None, typer.Argument(help="One table; default all.", show_default=False)] = None,
    as_json: _JsonOption = False,
) -> None:
    """Print the canonical tables and the result tables: columns, types, units."""
    with exit_codes(as_json):
        give(schema_answer(table), as_json)


def _title(resolved: Resolved) -> str:
    return f"{resolved.configuration.title}: configuration {resolved.digest()[:12]}"


def _registered_adapters() -> Adapters:
    from adapters.adapter import adapter_names, find_adapter

    from .doctor import Adapters

    return Adapters(adapter_names(), find_adapter)


def _recommended_answer(recommended: Recommended) -> Answer:
    def document() -> Any:
        from models.recommendation_table import recommendation_document

        return recommendation_document(recommended)

    def show() -> None:
        from models.recommendation_table import changes_table, trial_table_text

        console = result_console()
        console.print(changes_table(recommended))
        console.print(trial_table_text(recommended))
        if recommended.early_warning is not None:
            from models.early_warning import early_warning_table

            console.print(early_warning_table(recommended.early_warning))
            for note in recommended.early_warning.notes:
                typer.echo(note, err=True)
        say_failures(recommended.outcome.failures)
        typer.echo(f"reference  {recommended.reference_id}, as of {recommended.as_of:%Y-%m-%dT%H:%M:%SZ}")
        typer.echo(f"document   {recommended.document}")
        typer.echo(f"results    {recommended.store}")
        typer.echo(f"report     {recommended.report}")

    return Answer(document, show, recommended.exit_code)


def main() -> None:
    """Entry point of the console script."""
    app()
