"""The verb `backtest-margin`: which history, which days, which books and generators, and the answer as table and JSON.

A configuration is a TOML file with a section [backtest]; what that leaves out of history, context, markets and anchors
is taken from a section [scenarios] of a filtered history in the same file. Paths are relative to the file.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from pydantic import Field, ValidationError, field_validator
from rich.table import Table
from rich.text import Text

from .backtest_books import BOOKS, named_books
from .backtest_laws import generators
from .backtest_margin import (
    BLEND,
    Forecasts,
    Progress,
    Verdict,
    forecast_table,
    judged,
    verdict_rows,
    walk_forward,
)
from .backtest_market import Market, build_market, implied_levels
from .config import FilteredHistoryFigures, VolRule
from .errors import ConfigurationError, ExitCode, Failure, FailureReason, nearest_name
from .headline import plain_text
from .history import FLOOR_FRACTION, VolatilityRule
from .history_tables import implied_vol_changes, read_history_table, return_panel
from .section import Section

GENERATORS = (*generators(None), BLEND)
"""Names of everything that can be tested."""

SHARED_KEYS = {
    "history": "history",
    "context": "context",
    "market_preference": "markets",
    "splice": "splice",
    "anchors": "anchors",
    "ewma_lambda": "decay",
    "half_life_days": "half_life_days",
}
"""Keys of [scenarios] that stand in for keys of [backtest]; their defaults are those of [scenarios] too, so that what
is tested is what a sweep does."""

_OF_A_SWEEP = {SHARED_KEYS[key]: FilteredHistoryFigures.model_fields[key].default for key in SHARED_KEYS}

VOL_RULES = {"BTC": VolRule(beta=0.08, eta=0.054), "ETH": VolRule(beta=0.08, eta=0.054)}
"""Least squares of the daily changes of BTC's DVOL on its returns, 2022-11-07 .. 2024-06-30 (602 days), rounded. ETH
has no series: ASSUMED equal."""


class Backtest(Section):
    """What is tested; every default lives here or, for keys that a sweep has too, with the filtered history there.

    `start` and `end` are the first and last day of a loss (default: 400 days after the history begins, and its last
    day). `vol_rules` move implied volatilities without a series.
    """

    history: str
    context: str | None = None
    markets: tuple[str, ...] = _OF_A_SWEEP["markets"]
    anchors: tuple[str, ...] = _OF_A_SWEEP["anchors"]
    start: date | None = None
    end: date | None = None
    step_days: int = Field(default=1, ge=1, le=30)
    confidence: float = Field(default=0.99, gt=0.5, lt=1)
    refit_days: int = Field(default=20, ge=1)
    generators: tuple[str, ...] = GENERATORS
    books: tuple[str, ...] = tuple(BOOKS)
    seed: int = Field(default=0, ge=0, lt=2**63)
    decay: float = Field(default=_OF_A_SWEEP["decay"], gt=0.5, lt=1)
    floor_fraction: float = Field(default=FLOOR_FRACTION, ge=0, le=1)
    half_life_days: float = Field(default=_OF_A_SWEEP["half_life_days"], ge=0)
    splice: bool = _OF_A_SWEEP["splice"]
    vol_rules: dict[str, VolRule] = Field(default=VOL_RULES)

    @field_validator("generators")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in GENERATORS:
                raise ValueError(
                    f"no generator {name!r}{nearest_name(name, GENERATORS)}; known: {', '.join(GENERATORS)}"
                )
        if not names or len(set(names)) != len(names):
            raise ValueError("expected at least one generator, each once")
        return names


@dataclass(frozen=True, slots=True)
class Tested:
    """Verdicts and daily forecasts on `dates`, and every row of the history that could not be used."""

    figures: Backtest
    dates: np.ndarray
    verdicts: tuple[Verdict, ...]
    forecasts: tuple[Forecasts, ...]
    failures: tuple[Failure, ...]

    @property
    def exit_code(self) -> ExitCode:
        """BAD_DATA when a row of the history was rejected or a book could not be tested, else OK."""
        return ExitCode.BAD_DATA if self.failures else ExitCode.OK


# ---- what is asked -------------------------------------------------------------------------------------------------


def load_backtest(path: Path, *, overrides: Sequence[str] = ()) -> tuple[Backtest, Path]:
    """The section [backtest] of a TOML file with `backtest.key=value` overrides, and the folder its paths start from.

    Raises ConfigurationError with one sentence per mistake.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration {path.name!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path.name} is not valid TOML: {error}") from None
    shared, own = document.get("scenarios", {}), document.get("backtest", {})
    if not isinstance(shared, dict) or not isinstance(own, dict):
        raise ConfigurationError(f"{path.name}: [backtest] and [scenarios] are sections")
    figures: dict[str, Any] = {SHARED_KEYS[key]: shared[key] for key in SHARED_KEYS if key in shared} | own
    for override in overrides:
        key, separator, text = override.partition("=")
        section, _, name = key.strip().partition(".")
        if not separator or section != "backtest" or not name:
            raise ConfigurationError(f"--set {override!r}: expected backtest.key=value")
        _set(figures, name.split("."), _value(text.strip()), override)
    if "history" not in figures:
        raise ConfigurationError(f"{path.name}: neither [backtest] nor [scenarios] names a history")
    try:
        return Backtest.model_validate(figures), path.resolve().parent
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: " + "; ".join(_sentences(error))) from None


def _set(figures: dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        figures = figures.setdefault(key, {})
        if not isinstance(figures, dict):
            raise ConfigurationError(f"--set {override!r}: {key!r} is no section")
    figures[keys[-1]] = value


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _sentences(error: ValidationError) -> list[str]:
    out = []
    for entry in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(("backtest", *(str(part) for part in entry["loc"])))
        if entry["type"] == "extra_forbidden":
            known = Backtest.model_fields if len(entry["loc"]) == 1 else VolRule.model_fields
            out.append(f"unknown key {place}{nearest_name(str(entry['loc'][-1]), known)}")
        elif entry["type"] == "missing":
            out.append(f"missing key {place}")
        else:
            out.append(f"{place}: {entry['msg'].removeprefix('Value error, ')}")
    return out


# ---- what is answered ----------------------------------------------------------------------------------------------


def read_market(figures: Backtest, folder: Path) -> tuple[Market, tuple[Failure, ...]]:
    """The market of the books' factors, cut after `end`, and what was rejected on the way.

    Raises ConfigurationError for a file that is not there or an underlying without a rule, DataError for a table that
    cannot be used.
    """
    books = named_books(figures.books)
    assets = sorted({asset for book in books for asset in book.prices})
    implied = sorted({asset for book in books for asset in book.implied})
    for asset in implied:
        if asset not in figures.vol_rules:
            raise ConfigurationError(f"backtest.vol_rules has no rule for {asset}, and a book holds options on it")
    cut = None if figures.end is None else datetime.combine(figures.end + timedelta(days=1), datetime.min.time(), UTC)
    panel, rejected = return_panel(
        read_history_table((folder / figures.history).resolve()),
        assets,
        as_of=cut,
        anchors=figures.anchors,
        markets=figures.markets,
        splice=figures.splice,
    )
    changes: dict[str, np.ndarray] = {}
    levels: dict[str, np.ndarray] = {}
    failures = list(rejected)
    if figures.context is not None and implied:
        context = read_history_table((folder / figures.context).resolve())
        changes, vol_failures = implied_vol_changes(context, implied, dates=panel.dates, as_of=cut)
        levels = implied_levels(context, implied, dates=panel.dates)
        failures.extend(vol_failures)
    rules = {a: VolatilityRule(f"price:{a}", figures.vol_rules[a].beta, figures.vol_rules[a].eta) for a in implied}
    market = build_market(
        panel, changes, levels, rules, decay=figures.decay, floor_fraction=figures.floor_fraction, seed=figures.seed
    )
    return market, tuple(failures)


def run_backtest(figures: Backtest, folder: Path, *, progress: Progress | None = None) -> Tested:
    """Walk forward and judge; a book that a generator could forecast on too few days is a failure, not a verdict."""
    market, failures = read_market(figures, folder)
    start = market.dates[0] + np.timedelta64(400, "D") if figures.start is None else np.datetime64(figures.start)
    first = int(np.searchsorted(market.dates, start))
    laws = generators(figures.half_life_days or None)
    wanted = {name: law for name, law in laws.items() if name in figures.generators}
    blend = BLEND in figures.generators
    if blend:
        wanted.setdefault("filtered_history", laws["filtered_history"])
    forecasts = walk_forward(
        market,
        named_books(figures.books),
        wanted,
        first=first,
        step=figures.step_days,
        confidence=figures.confidence,
        refit_days=figures.refit_days,
        blend_on="filtered_history" if blend else None,
        progress=progress,
    )
    verdicts, unjudged = [], []
    for found in (f for f in forecasts if f.generator in figures.generators):
        try:
            verdicts.append(
                judged(
                    found,
                    market.dates,
                    confidence=figures.confidence,
                    step=figures.step_days,
                    seed=figures.seed,
                )
            )
        except ConfigurationError as error:
            unjudged.append(Failure(FailureReason.MISSING_PARAMETER, str(error), path="history", subject=found.book))
    kept = tuple(f for f in forecasts if f.generator in figures.generators)
    return Tested(figures, market.dates, tuple(verdicts), kept, (*failures, *unjudged))


def backtest_document(tested: Tested) -> dict[str, Any]:
    """Everything but the daily rows, JSON-ready: figures in use, verdicts, failures."""
    return {
        "figures": tested.figures.model_dump(mode="json", exclude={"history", "context"}),
        "history": {"first_date": str(tested.dates[0]), "last_date": str(tested.dates[-1]), "days": len(tested.dates)},
        "verdicts": verdict_rows(tested.verdicts),
        "failures": [
            {"reason": str(f.reason), "message": f.message, "path": f.path, "subject": f.subject}
            for f in tested.failures
        ],
    }


def write_forecasts(tested: Tested, path: Path) -> None:
    """The daily rows as .parquet or .csv; ConfigurationError for another suffix or a place that cannot be written."""
    table = forecast_table(tested.forecasts, tested.dates)
    try:
        if path.suffix.lower() == ".parquet":
            pa.parquet.write_table(table, path)
        elif path.suffix.lower() == ".csv":
            pa.csv.write_csv(table, path)
        else:
            raise ConfigurationError(f"--out {path.name!r}: expected a name that ends in .parquet or .csv")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path.name!r}: {error.strerror}") from None


def backtest_table(tested: Tested) -> Table:
    """One row per generator and book; requirement and its moves as shares of notional."""
    table = Table(title=f"Margin backtest at {tested.figures.confidence:.1%}, 1 day", title_justify="left")
    table.add_column("generator", no_wrap=True)
    table.add_column("book", no_wrap=True)
    for name in (
        "days", "exc.", "on recorded vol", "cover", "Kupiec", "Christ.", "joint", "Z2", "p(Z2)", "green", "worst",
        "breach/ES", "largest", "margin", "+1d", "+5d", "+20d", "p/t 30d", "kept",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for row in tested.verdicts:
        table.add_row(
            row.generator,
            Text(plain_text(row.book)),
            str(row.forecasts),
            str(row.exceptions),
            "" if row.recorded_forecasts == row.forecasts else f"{row.recorded_exceptions}/{row.recorded_forecasts}",
            f"{row.coverage:.2%}",
            f"{row.kupiec_p:.3f}",
            f"{row.christoffersen_p:.3f}",
            f"{row.joint_p:.3f}",
            f"{row.shortfall_z2:+.2f}",
            f"{row.shortfall_p:.3f}",
            _shown(row.green, ".0%"),
            _shown(row.most_in_250, "d"),
            _shown(row.breach_mean_to_es, ".2f"),
            _shown(row.breach_largest_to_es, ".2f"),
            f"{row.requirement_mean:.2%}",
            _shown(row.increase_1d, ".0%"),
            _shown(row.increase_5d, ".0%"),
            _shown(row.increase_20d, ".0%"),
            _shown(row.peak_to_trough_30d, ".2f"),
            "yes" if row.kept else "no",
        )
    return table


def _shown(value: float | None, form: str) -> str:
    return "n/a" if value is None or math.isnan(value) else format(value, form)


def failing(verdicts: Sequence[Verdict]) -> Mapping[str, tuple[str, ...]]:
    """Books on which each generator misses the target, generators in order, only those that miss one."""
    found: dict[str, list[str]] = {}
    for verdict in verdicts:
        if not verdict.kept:
            found.setdefault(verdict.generator, []).append(verdict.book)
    return {name: tuple(books) for name, books in found.items()}
