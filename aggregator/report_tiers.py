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
    """One market: its ladder, the figures that move, why they move no further, and whom they liquidate today."""

    ladder: LadderView
    figures: tuple[FigureView, ...]
    reasons: tuple[str, ...]
    requirement: float | None
    history_days: int
    accounts: tuple[str, ...]
    value_usd: float


class TiersView(NamedTuple):
    """Everything on the page; `kept` are (market, reason) of what stays as it is."""

    title: str
    reference_id: str
    as_of: datetime
    expires_at: datetime
    model: str
    markets: tuple[MarketView, ...]
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
    environment.filters.update(full=full, moment=moment, percent=percent, short=short)
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
