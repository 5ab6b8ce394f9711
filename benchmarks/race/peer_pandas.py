"""The pandas peer: one long frame of (row, scenario) for a few portfolios, grouped to accounts and to portfolios."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .book_rows import BookRows
from .figures import LEVELS, Figures, empty_figures, rank_of


def sweep(rows: BookRows, cube: np.ndarray) -> Figures:
    """Figures of all portfolios from the cube [rows, scenarios]; for slices, memory grows with rows x scenarios."""
    scenarios = cube.shape[1]
    accounts, portfolios = len(rows.account_id), len(rows.portfolio_id)
    account_of_row = np.repeat(np.arange(accounts), np.diff(rows.first_row))
    portfolio_of_account = np.repeat(np.arange(portfolios), np.diff(rows.first_account))
    count = rows.row.size
    moves = cube[rows.row].ravel()
    required = np.full(moves.shape, -np.inf, np.float32)
    has_tiers = np.diff(rows.first_tier) > 0
    tiers = np.diff(rows.first_tier)
    for tier in range(int(tiers.max(initial=0))):
        # The k-th tier of every row that has so many; the others keep what they have.
        there = tiers > tier
        line = rows.first_tier[:-1][there] + tier
        needed = rows.slope[line, None] * cube[rows.row[there]] + rows.level[line, None]
        mask = np.repeat(there, scenarios)
        required[mask] = np.maximum(required[mask], needed.ravel())
    required[np.repeat(~has_tiers, scenarios)] = 0.0
    legs = pd.DataFrame(
        {
            "account": np.repeat(account_of_row, scenarios),
            "scenario": np.tile(np.arange(scenarios), count),
            "change": np.repeat(rows.equity_weight, scenarios) * moves,
            "headroom": np.repeat(rows.headroom_weight, scenarios) * moves
            - required * (1.0 + cube[rows.conversion].ravel()),
        }
    )
    held = legs.groupby(["account", "scenario"], sort=True)[["change", "headroom"]].sum()
    everything = pd.MultiIndex.from_product([range(accounts), range(scenarios)], names=["account", "scenario"])
    frame = held.reindex(everything, fill_value=0.0).reset_index()
    account = frame["account"].to_numpy()
    frame["headroom"] += rows.headroom_base[account]
    frame["lacking"] = (-(frame["change"] + rows.equity_today[account])).clip(lower=0.0)
    frame["gone"] = (frame["headroom"] < 0.0) | (rows.at_or_below[account] & (frame["headroom"] == 0.0))
    frame["portfolio"] = portfolio_of_account[account]

    out = empty_figures(portfolios, accounts)
    of_accounts = frame.groupby("account").agg({"gone": "sum", "change": "mean", "lacking": "mean"})
    out.liquidated[:] = of_accounts["gone"]
    out.mean_change[:] = of_accounts["change"]
    out.bad_debt[:] = of_accounts["lacking"]
    pooled = (
        frame.groupby(["portfolio", "scenario"]).agg({"change": "sum", "headroom": "sum", "gone": "any"}).reset_index()
    )
    pooled["loss"] = -pooled["change"]
    pooled["unified"] = pooled["headroom"] < 0.0
    grouped = pooled.groupby("portfolio")
    out.worst_loss[:] = grouped["loss"].max()
    out.any_liquidated[:] = grouped["gone"].sum()
    out.unified_liquidated[:] = grouped["unified"].sum()
    for number, confidence in enumerate(LEVELS):
        place = rank_of(confidence, scenarios)
        largest = pooled.sort_values(["portfolio", "loss"]).groupby("portfolio")["loss"].tail(scenarios - place)
        tail = largest.to_numpy().reshape(portfolios, -1)
        out.var[:, number] = tail[:, 0]
        out.es[:, number] = tail[:, 0] + (tail - tail[:, :1]).sum(axis=1) / scenarios / (1.0 - confidence)
    return out
