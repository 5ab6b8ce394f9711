"""The DuckDB peer: rows, tiers and a long cube as tables, the sweep as one SQL statement, for a few portfolios."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa

from .book_rows import BookRows
from .figures import LEVELS, Figures, empty_figures, rank_of

_ACCOUNTS = """
CREATE TEMP TABLE of_accounts AS
WITH moved AS (
  SELECT legs.account, moves.scenario, sum(legs.equity_weight * moves.x) AS change,
         sum(legs.headroom_weight * moves.x) AS headroom
  FROM legs JOIN moves ON legs.cube_row = moves.cube_row GROUP BY ALL
), needed AS (
  SELECT legs.leg, legs.account, legs.conversion, moves.scenario, max(tiers.slope * moves.x + tiers.level) AS required
  FROM legs JOIN tiers ON tiers.leg = legs.leg JOIN moves ON legs.cube_row = moves.cube_row GROUP BY ALL
), required AS (
  SELECT needed.account, needed.scenario, sum(needed.required * (1 + moves.x)) AS required
  FROM needed JOIN moves ON moves.cube_row = needed.conversion AND moves.scenario = needed.scenario GROUP BY ALL
)
SELECT accounts.portfolio, accounts.account, scenario,
       coalesce(moved.change, 0) AS change,
       accounts.headroom_base + coalesce(moved.headroom, 0) - coalesce(required.required, 0) AS headroom,
       greatest(-(accounts.equity_today + coalesce(moved.change, 0)), 0) AS lacking,
       accounts.at_or_below
FROM accounts CROSS JOIN (SELECT DISTINCT scenario FROM moves WHERE cube_row = 0)
LEFT JOIN moved USING (account, scenario) LEFT JOIN required USING (account, scenario)
"""
_OF_ACCOUNTS = """
SELECT account, count(*) FILTER (headroom < 0 OR (at_or_below AND headroom = 0)) AS liquidated,
       avg(change) AS mean_change, avg(lacking) AS bad_debt
FROM of_accounts GROUP BY account ORDER BY account
"""
_POOLED = """
CREATE TEMP TABLE pooled AS
SELECT portfolio, scenario, -sum(change) AS loss, sum(headroom) AS headroom,
       bool_or(headroom < 0 OR (at_or_below AND headroom = 0)) AS gone
FROM of_accounts GROUP BY ALL
"""
_PORTFOLIOS = """
SELECT portfolio, max(loss) AS worst_loss,
       count(*) FILTER (gone) AS any_liquidated, count(*) FILTER (headroom < 0) AS unified_liquidated
FROM pooled GROUP BY portfolio ORDER BY portfolio
"""
_TAIL = """
SELECT portfolio, min(loss) AS quantile, sum(loss) AS total
FROM (SELECT portfolio, loss, row_number() OVER (PARTITION BY portfolio ORDER BY loss DESC) AS place FROM pooled)
WHERE place <= ? GROUP BY portfolio ORDER BY portfolio
"""


def sweep(rows: BookRows, cube: np.ndarray) -> Figures:
    """Figures of all portfolios from the cube [rows, scenarios]; for slices, the joins grow with rows x scenarios."""
    scenarios = cube.shape[1]
    accounts, portfolios = len(rows.account_id), len(rows.portfolio_id)
    used = np.unique(np.concatenate([[0], rows.row, rows.conversion]))
    tiers = np.diff(rows.first_tier)
    with duckdb.connect() as database:
        database.register(
            "legs",
            pa.table(
                {
                    "leg": np.arange(rows.row.size),
                    "account": np.repeat(np.arange(accounts), np.diff(rows.first_row)),
                    "cube_row": rows.row,
                    "equity_weight": rows.equity_weight,
                    "headroom_weight": rows.headroom_weight,
                    "conversion": rows.conversion,
                }
            ),
        )
        database.register(
            "tiers",
            pa.table({"leg": np.repeat(np.arange(rows.row.size), tiers), "slope": rows.slope, "level": rows.level}),
        )
        database.register(
            "accounts",
            pa.table(
                {
                    "account": np.arange(accounts),
                    "portfolio": np.repeat(np.arange(portfolios), np.diff(rows.first_account)),
                    "equity_today": rows.equity_today,
                    "headroom_base": rows.headroom_base,
                    "at_or_below": rows.at_or_below,
                }
            ),
        )
        database.register(
            "moves",
            pa.table(
                {
                    "cube_row": np.repeat(used, scenarios),
                    "scenario": np.tile(np.arange(scenarios, dtype=np.int32), used.size),
                    "x": cube[used].ravel().astype(np.float64),
                }
            ),
        )
        database.execute(_ACCOUNTS)
        of_accounts = database.execute(_OF_ACCOUNTS).fetchnumpy()
        database.execute(_POOLED)
        of_portfolios = database.execute(_PORTFOLIOS).fetchnumpy()
        out = empty_figures(portfolios, accounts)._replace(
            **{
                name: np.asarray(values)
                for name, values in (of_accounts | of_portfolios).items()
                if name not in ("account", "portfolio")
            }
        )
        for number, confidence in enumerate(LEVELS):
            beyond = scenarios - rank_of(confidence, scenarios)
            tail = database.execute(_TAIL, [beyond]).fetchnumpy()
            out.var[:, number] = tail["quantile"]
            excess = tail["total"] - beyond * tail["quantile"]
            out.es[:, number] = tail["quantile"] + excess / scenarios / (1.0 - confidence)
    return out
