"""What a forecast of today's scale says of the book: probabilities of liquidation with it and without it.

Both are of the tiers in force, over the same number of scenarios; only the scale of today differs: the volatility of
each factor's own history, or the forecast that `scenario_forecast` brings the history to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from aggregator.factors import Generation
from aggregator.headline import plain_text
from aggregator.tier_trial import TrialRow

FORECAST_PATH = "scenarios.forecast"


class WarningRow(NamedTuple):
    """One portfolio, or one venue of it (empty: all); probabilities that some account of it is liquidatable.

    At the horizon, and on the way there (None without paths); by the own history's scale, and by the forecast's. None
    where an account's figures are not finite.
    """

    portfolio_id: str
    venue: str
    p_history: float | None
    p_forecast: float | None
    p_path_history: float | None
    p_path_forecast: float | None


class EarlyWarning(NamedTuple):
    """Rows in the order of the trial, and a sentence for every price that has no forecast."""

    rows: tuple[WarningRow, ...]
    notes: tuple[str, ...]


def early_warning(history: Sequence[TrialRow], forecast: Sequence[TrialRow], generation: Generation) -> EarlyWarning:
    """Trials of one book, by the history's own scale and by the forecast's, side by side before any change of tiers.

    `generation` is the one with the forecast. Raises ValueError when the trials are of different books.
    """
    keys = [[(row.portfolio_id, row.venue) for row in rows] for rows in (history, forecast)]
    if keys[0] != keys[1]:
        raise ValueError(f"trials of different books: {keys[0]} and {keys[1]}")
    rows = tuple(
        WarningRow(
            one.portfolio_id,
            one.venue,
            one.p_liquidation_before,
            other.p_liquidation_before,
            one.p_path_before,
            other.p_path_before,
        )
        for one, other in zip(history, forecast, strict=True)
    )
    return EarlyWarning(rows, tuple(f.message for f in generation.failures if f.path == FORECAST_PATH))


def early_warning_table(warning: EarlyWarning) -> Table:
    """For the terminal."""
    table = Table(title="Probability of liquidation by own volatility and by the forecast", title_justify="left")
    table.add_column("portfolio", overflow="fold", min_width=12)
    table.add_column("venue")
    for name in ("by own volatility", "by the forecast", "on the way", "on the way by the forecast"):
        table.add_column(name, justify="right")
    for row in warning.rows:
        table.add_row(
            Text(plain_text(row.portfolio_id)) if not row.venue else "",
            Text(plain_text(row.venue)) if row.venue else "all",
            *("n/a" if p is None else f"{p:.2%}" for p in row[2:]),
        )
    return table


def early_warning_document(warning: EarlyWarning | None) -> dict[str, Any] | None:
    """For machines; None without a forecast."""
    if warning is None:
        return None
    return {"rows": [row._asdict() for row in warning.rows], "notes": list(warning.notes)}
