"""The page of one recommendation: ladders before and after, what they do to the book, and what was left as it is.

One HTML file without script or remote resource, like the report of a run; equal input gives equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from .report_ladders import LadderView, ladder_lines
from .report_words import finished, full, moment, percent, short
from .tier_trial import TrialRow


class FigureView(NamedTuple):
    """One figure that moves, as it is read: a rate in per cent or an amount in USD."""

    name: str
    current: str
    recommended: str
    wished: str


class MarketView(NamedTuple):
    """One market: its ladder, the figures that move, why they move no further, and whom they liquidate today.

    `model` made the forecast; `requirement` are the engine's maintenance and initial rate of the first tier.
    """

    ladder: LadderView
    figures: tuple[FigureView, ...]
    reasons: tuple[str, ...]
    requirement: tuple[float, float] | None
    history_days: int
    accounts: tuple[str, ...]
    value_usd: float
    model: str


class WeightView(NamedTuple):
    """One slice of one collateral, its weights as shares of value: (maintenance, initial) in force, recommended, asked
    for, and the largest that the engine leaves room for; `upto` is where the slice ends, None for the last one."""

    asset: str
    upto: float | None
    before: tuple[float, float]
    after: tuple[float, float]
    wish: tuple[float, float]
    largest: tuple[float, float]
    reasons: tuple[str, ...]
    accounts: tuple[str, ...]
    model: str


class CoverageView(NamedTuple):
    """How often margins of a model held: `ratio` of exceptions to those allowed, `seen` in training already."""

    model: str
    assets: str
    level: float
    days: int
    windows: int
    exceptions: int
    ratio: float
    p_value: float
    seen: float


class MonitoringView(NamedTuple):
    """Whether the guard rail of the model holds, what broke it, how its inputs have drifted, and its coverage."""

    holds: bool
    verdict: str
    trips: tuple[str, ...]
    drift: tuple[str, ...]
    coverage: tuple[CoverageView, ...]


class WarningView(NamedTuple):
    """Probability of a liquidation by the scale of the history and by that of the forecast, of one portfolio."""

    portfolio_id: str
    by_history: float | None
    by_forecast: float | None


class TiersView(NamedTuple):
    """Everything on the page; `kept` are (market, reason) of what stays as it is."""

    title: str
    reference_id: str
    as_of: datetime
    expires_at: datetime
    model: str
    markets: tuple[MarketView, ...]
    weights: tuple[WeightView, ...]
    monitoring: MonitoringView
    warnings: tuple[WarningView, ...]
    trial: tuple[TrialRow, ...]
    kept: tuple[tuple[str, str], ...]


def write_tiers_page(view: TiersView, path: Path) -> Path:
    """Write the page to `path` (its folder is created, the file replaced whole) and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(render_tiers_page(view), encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def render_tiers_page(view: TiersView) -> str:
    """The HTML text of the page."""
    environment = Environment(
        loader=PackageLoader("aggregator", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finished,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        capitalized=lambda text: text[:1].upper() + text[1:], full=full, moment=moment, percent=percent, short=short
    )
    charts = [(ladder_lines(m.ladder), ladder_lines(m.ladder, initial=True)) for m in view.markets]
    whole = [row for row in view.trial if not row.venue]
    return environment.get_template("tiers.html").render(
        view=view,
        markets=list(zip(view.markets, charts, strict=True)),
        liquidated=sum(len(row.accounts_liquidated) for row in whole),
        value=sum(row.value_liquidated_usd for row in whole),
        with_paths=any(row.p_path_before is not None for row in view.trial),
        has_gaps=_has_gaps(whole),
    )


def _has_gaps(rows: Sequence[TrialRow]) -> bool:
    return not all(row.complete for row in rows)
