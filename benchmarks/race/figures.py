"""What every contender answers, how a table is made of it, and when two answers are the same."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .book_rows import BookRows

LEVELS = (0.99, 0.995)

RELATIVE = 1e-5
"""Money may differ by this share of equity, ES, worst loss or bad debt, whichever is largest: float32 sums against
float64. An account has no ES of its own: of one with little equity and large positions the bad debt is the scale."""
COUNT = 1e-4
"""Probabilities may differ by one scenario in ten thousand, or by one scenario: float32 where equity meets margin."""

_MONEY = (
    "equity_usd",
    "mean_loss_usd",
    "worst_loss_usd",
    "var_99_usd",
    "es_99_usd",
    "var_995_usd",
    "es_995_usd",
    "equity_mean_usd",
    "equity_minimum_usd",
    "equity_es_99_usd",
    "bad_debt_usd",
)
_PROBABILITIES = ("p_liquidation_any", "p_liquidation_unified")


class Figures(NamedTuple):
    """Figures of every portfolio [portfolios] and account [accounts] in the order of the rows; money in USD."""

    worst_loss: np.ndarray
    var: np.ndarray
    """[portfolios, levels]"""
    es: np.ndarray
    """[portfolios, levels]"""
    any_liquidated: np.ndarray
    """Scenarios in which some account is liquidated."""
    unified_liquidated: np.ndarray
    liquidated: np.ndarray
    """Scenarios in which each account is liquidated [accounts]."""
    mean_change: np.ndarray
    """Expected change of the equity of each account."""
    bad_debt: np.ndarray
    """Expected, of what the equity of each account lacks to zero."""


def empty_figures(portfolios: int, accounts: int) -> Figures:
    """Room for the figures."""
    levels = (portfolios, len(LEVELS))
    return Figures(
        worst_loss=np.zeros(portfolios),
        var=np.zeros(levels),
        es=np.zeros(levels),
        any_liquidated=np.zeros(portfolios, np.int64),
        unified_liquidated=np.zeros(portfolios, np.int64),
        liquidated=np.zeros(accounts, np.int64),
        mean_change=np.zeros(accounts),
        bad_debt=np.zeros(accounts),
    )


def rank_of(level: float, scenarios: int) -> int:
    """Place from 0 of the value at risk among the losses in rising order: the smallest with mass `level` at or below.

    Masses within 1e-9 of the level count as reaching it, so that 0.99 of 10,000 is 9,900.
    """
    return max(math.ceil(level * scenarios - 1e-9 * scenarios), 1) - 1


class RaceTables(NamedTuple):
    """The answer in Arrow: one row per portfolio, one row per account."""

    portfolios: pa.Table
    nodes: pa.Table


def to_tables(rows: BookRows, figures: Figures, scenarios: int) -> RaceTables:
    """Result tables, sorted by id."""
    equity, change, bad_debt = (
        np.add.reduceat(of_account, rows.first_account[:-1])
        for of_account in (rows.equity_today, figures.mean_change, figures.bad_debt)
    )
    columns = {
        "portfolio_id": rows.portfolio_id,
        "equity_usd": equity,
        "mean_loss_usd": -change,
        "worst_loss_usd": figures.worst_loss,
        "var_99_usd": figures.var[:, 0],
        "es_99_usd": figures.es[:, 0],
        "var_995_usd": figures.var[:, 1],
        "es_995_usd": figures.es[:, 1],
        "equity_mean_usd": equity + change,
        "equity_minimum_usd": equity - figures.worst_loss,
        "equity_es_99_usd": equity - figures.es[:, 0],
        "p_liquidation_any": figures.any_liquidated / scenarios,
        "p_liquidation_unified": figures.unified_liquidated / scenarios,
        "bad_debt_usd": bad_debt,
    }
    owner = rows.portfolio_id.take(pa.array(np.repeat(np.arange(equity.size), np.diff(rows.first_account))))
    nodes = {
        "portfolio_id": owner,
        "node": rows.node,
        "account_id": rows.account_id,
        "venue": rows.venue,
        "equity_usd": rows.equity_today,
        "equity_mean_usd": rows.equity_today + figures.mean_change,
        "bad_debt_usd": figures.bad_debt,
        "p_liquidation": figures.liquidated / scenarios,
    }
    return RaceTables(pa.table(columns), pa.table(nodes))


def differences(found: RaceTables, expected: RaceTables, scenarios: int) -> list[str]:
    """What differs beyond the tolerances, in words; empty where the two answers are the same.

    Money against `RELATIVE` of the largest of the row's equity today, ES, worst loss and bad debt (at least of a
    dollar), counts against `COUNT`. Rows that only one of them has are a difference, and so is a NaN.
    """
    out = []
    for name, key in (("portfolios", "portfolio_id"), ("nodes", "account_id")):
        ours, theirs = (getattr(side, name).sort_by(key) for side in (found, expected))
        if not ours[key].combine_chunks().equals(theirs[key].combine_chunks()):
            return [f"{name}: {ours.num_rows} rows against {theirs.num_rows}, or other ids"]
        scale = RELATIVE * _scale(theirs)
        for column in _MONEY:
            if column in theirs.column_names:
                out += _beyond(name, column, ours, theirs, scale)
        for column in (*_PROBABILITIES, "p_liquidation"):
            if column in theirs.column_names:
                slack = max(COUNT, 1.0 / scenarios) * (1 + 1e-9)
                out += _beyond(name, column, ours, theirs, np.full(ours.num_rows, slack))
    return out


def _scale(table: pa.Table) -> np.ndarray:
    columns = [c for c in ("equity_usd", "es_995_usd", "worst_loss_usd", "bad_debt_usd") if c in table.column_names]
    return np.max([np.abs(table[c].to_numpy()) for c in columns] + [np.ones(table.num_rows)], axis=0)


def _beyond(name: str, column: str, found: pa.Table, expected: pa.Table, slack: np.ndarray) -> list[str]:
    ours, theirs = found[column].to_numpy(), expected[column].to_numpy()
    # Not "above the slack": a NaN on either side is a difference too.
    wrong = ~(np.abs(ours - theirs) <= slack)
    if not wrong.any():
        return []
    worst = int(np.argmax(np.where(wrong, np.nan_to_num(np.abs(ours - theirs) / slack, nan=np.inf), 0.0)))
    what = f"{ours[worst]!r} against {theirs[worst]!r}, tolerance {slack[worst]:.3g}"
    return [f"{name}.{column}: {wrong.sum()} of {len(wrong)} rows differ; worst in row {worst}: {what}"]
