"""The headline table of a run on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def plain_text(text: str) -> str:
    """`text` on one line and without anything that a terminal would obey: control and formatting characters become
    escapes.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def headline_table(portfolios: Sequence[Mapping[str, Any]]) -> Table:
    """One row per portfolio with the figures that a risk engineer looks at first; money in USD, n/a where nothing was
    computed.

    Names come from data and are shown as plain text: markup and control characters in them have no effect.
    """
    table = Table(title="Margin sweep (USD)", title_justify="left")
    table.add_column("portfolio", overflow="fold", min_width=18)
    for name in (
        "equity",
        "isolated ES 99",
        "native MM",
        "silo ES 99",
        "pooled ES 99",
        "unified MM",
        "lowest health",
    ):
        table.add_column(name, justify="right")
    table.add_column("p(liquidation)", justify="right", no_wrap=True)
    table.add_column("most likely", overflow="fold", min_width=24)
    table.add_column("status", overflow="fold", min_width=19)
    for row in portfolios:
        table.add_row(
            Text(plain_text(row["portfolio_id"])),
            _money(row["equity_usd"]),
            _money(row["es_99_isolated_sum_usd"]),
            _money(row["native_maintenance_usd"]),
            _money(row["es_99_silo_sum_usd"]),
            _money(row["es_99_pooled_usd"]),
            _money(row["requirement_effective_usd"]),
            _ratio(row["health_minimum"]),
            _probability(row["p_liquidation_any_at_horizon"]),
            Text(plain_text(row["p_liquidation_largest_account"] or "")),
            row["status"],
        )
    return table


def screen_table(portfolios: Sequence[Mapping[str, Any]]) -> Table:
    """One row per portfolio of a screen; money in USD, n/a where nothing was computed."""
    table = Table(title="Largest ES 99 % of the screen (USD)", title_justify="left")
    table.add_column("portfolio", overflow="fold", min_width=18)
    for name in ("equity", "VaR 99", "ES 99", "ES 99.5", "worst loss", "equity / ES 99"):
        table.add_column(name, justify="right")
    table.add_column("p(liquidation)", justify="right", no_wrap=True)
    table.add_column("most likely", overflow="fold", min_width=24)
    table.add_column("engine")
    table.add_column("status", overflow="fold", min_width=10)
    for row in portfolios:
        table.add_row(
            Text(plain_text(row["portfolio_id"])),
            _money(row["equity_usd"]),
            _money(row["var_99_pooled_usd"]),
            _money(row["es_99_pooled_usd"]),
            _money(row["es_995_pooled_usd"]),
            _money(row["worst_loss_usd"]),
            _ratio(row["equity_to_es_99"]),
            _probability(row["p_liquidation_any_at_horizon"]),
            Text(plain_text(row["p_liquidation_largest_account"] or "")),
            row["engine"],
            row["status"],
        )
    return table


def _money(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.0f}"


def _probability(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2%}"


def _ratio(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
