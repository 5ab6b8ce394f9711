"""The NumPy peer: every portfolio in a dozen array expressions over its rows and all scenarios, on one core."""

from __future__ import annotations

import numpy as np

from .book_rows import BookRows
from .figures import LEVELS, Figures, empty_figures, rank_of


def sweep(rows: BookRows, cube: np.ndarray) -> Figures:
    """Figures of all portfolios from the cube [rows, scenarios]."""
    scenarios = cube.shape[1]
    out = empty_figures(len(rows.portfolio_id), len(rows.account_id))
    has_tiers = np.diff(rows.first_tier) > 0
    weights = np.stack([rows.equity_weight, rows.headroom_weight]).astype(np.float32)
    slope, level = rows.slope.astype(np.float32), rows.level.astype(np.float32)
    for portfolio in range(len(rows.portfolio_id)):
        total = np.zeros(scenarios, np.float32)
        room = np.zeros(scenarios, np.float32)
        gone = np.zeros(scenarios, bool)
        for account in range(rows.first_account[portfolio], rows.first_account[portfolio + 1]):
            first, last = rows.first_row[account], rows.first_row[account + 1]
            moves = cube[rows.row[first:last]]
            change, headroom = weights[:, first:last] @ moves
            headroom += np.float32(rows.headroom_base[account])
            for row in np.flatnonzero(has_tiers[first:last]) + first:
                tiers = slice(rows.first_tier[row], rows.first_tier[row + 1])
                required = (np.outer(slope[tiers], moves[row - first]) + level[tiers, None]).max(axis=0)
                headroom -= required * (1.0 + cube[rows.conversion[row]])
            liquidated = headroom <= 0.0 if rows.at_or_below[account] else headroom < 0.0
            out.liquidated[account] = np.count_nonzero(liquidated)
            lacking = np.maximum(-(change + np.float32(rows.equity_today[account])), 0.0)
            out.bad_debt[account] = lacking.mean(dtype=np.float64)
            out.mean_change[account] = change.mean(dtype=np.float64)
            gone |= liquidated
            room += headroom
            total += change
        loss = -total
        out.any_liquidated[portfolio] = np.count_nonzero(gone)
        out.unified_liquidated[portfolio] = np.count_nonzero(room < 0.0)
        out.worst_loss[portfolio] = loss.max()
        places = [rank_of(level, scenarios) for level in LEVELS]
        ordered = np.partition(loss, places)
        for number, (place, confidence) in enumerate(zip(places, LEVELS, strict=True)):
            tail = ordered[place:].astype(np.float64)
            out.var[portfolio, number] = tail[0]
            out.es[portfolio, number] = tail[0] + np.sum(tail - tail[0]) / scenarios / (1.0 - confidence)
    return out
