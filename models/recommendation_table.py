"""A recommendation for people and for machines: the tables on the terminal, and one JSON object."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from aggregator.headline import plain_text

from .early_warning import early_warning_document
from .monitoring_text import all_trips, monitoring_lines, monitoring_table, verdict
from .recommendation import Figure
from .recommended import Recommended


def changes_table(recommended: Recommended) -> Group:
    """What changes, whether the model that asks for it holds, and a sentence for every bound that it breaks."""
    trips = [Text(plain_text(trip.message)) for trip in all_trips(recommended.models)]
    lines = [Text(plain_text(line)) for line in monitoring_lines(recommended.models)]
    said = Text(verdict(recommended.models, recommended.outcome.recommendations), style="bold")
    return Group(figures_table(recommended), monitoring_table(recommended.models), *lines, *trips, said, Text())


def figures_table(recommended: Recommended) -> Table:
    """One row per market or collateral and figure that moves: current, recommended, change, what today's liquidates.

    Accounts and value stand on the first row of a market: they are liquidated by all its figures together.
    """
    table = Table(title="Recommended margin tiers", title_justify="left")
    table.add_column("market", overflow="fold", min_width=16)
    table.add_column("figure", no_wrap=True)
    for name in ("current", "recommended", "change", "forecast asks", "accounts liquidated", "value liquidated"):
        table.add_column(name, justify="right")
    table.add_column("model")
    shown: set[str] = set()
    accounts = {change.before.market: len(change.accounts) for change in recommended.markets}
    accounts |= {change.recommendation.market: len(change.accounts) for change in recommended.collateral}
    values = {change.before.market: f"{change.value_usd:,.0f}" for change in recommended.markets}
    for one in recommended.outcome.recommendations:
        for figure in one.changes:
            first = one.market not in shown
            shown.add(one.market)
            table.add_row(
                Text(plain_text(one.market)) if first else "",
                f"{figure.parameter.replace('_', ' ')}, tier {figure.tier}",
                _amount(figure, figure.previous),
                _amount(figure, figure.value),
                _amount(figure, figure.value - figure.previous, signed=True),
                _amount(figure, figure.wish),
                str(accounts[one.market]) if first else "",
                values.get(one.market, "") if first else "",
                one.model if first else "",
            )
    return table


def trial_table_text(recommended: Recommended) -> Table:
    """The book before and after, by portfolio and venue; money in USD."""
    table = Table(title="The book before and after (USD)", title_justify="left")
    table.add_column("portfolio", overflow="fold", min_width=12)
    table.add_column("venue")
    for name in ("maintenance", "p(liquidation)", "on the way", "expected bad debt", "liquidated", "value"):
        table.add_column(name, justify="right")
    for row in recommended.trial:
        table.add_row(
            Text(plain_text(row.portfolio_id)) if not row.venue else "",
            Text(plain_text(row.venue)) if row.venue else "all",
            _pair(row.maintenance_before_usd, row.maintenance_after_usd, ",.0f"),
            _pair(row.p_liquidation_before, row.p_liquidation_after, ".2%"),
            _pair(row.p_path_before, row.p_path_after, ".2%"),
            _pair(row.bad_debt_before_usd, row.bad_debt_after_usd, ",.0f"),
            str(len(row.accounts_liquidated)),
            f"{row.value_liquidated_usd:,.0f}",
        )
    return table


def recommendation_document(recommended: Recommended) -> dict[str, Any]:
    """Everything as one object: the governance document beside what the trial found."""
    return {
        "reference_id": recommended.reference_id,
        "as_of": recommended.as_of.isoformat(),
        "document": str(recommended.document),
        "report": str(recommended.report),
        "store": recommended.store,
        "conditions": list(recommended.conditions),
        "verdict": verdict(recommended.models, recommended.outcome.recommendations),
        "recommendation": json.loads(recommended.document.read_bytes()),
        "markets": [
            {
                "market": change.before.market,
                "accounts_liquidated": list(change.accounts),
                "value_liquidated_usd": change.value_usd,
            }
            for change in recommended.markets
        ],
        "collateral": [
            {"market": change.recommendation.market, "accounts_liquidated": list(change.accounts)}
            for change in recommended.collateral
        ],
        "early_warning": early_warning_document(recommended.early_warning),
        "trial": [row._asdict() for row in recommended.trial],
    }


def _amount(figure: Figure, value: int, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if figure.unit == "usd":
        return f"{value:{sign},}"
    return f"{value / 100:{sign}.2f} %"


def _pair(before: float | None, after: float | None, form: str) -> str:
    if before is None or after is None:
        return "n/a"
    old, new = f"{before:{form}}", f"{after:{form}}"
    return old if old == new else f"{old} → {new}"
