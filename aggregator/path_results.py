"""Columns of `portfolio_margin` and `account_margin` from the paths: first passage, time to liquidation, funding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .errors import Failure, FailureReason
from .path_margin import PathFigures
from .results import Evaluated, Row, is_calculated

_QUANTILES = {"hours_to_liquidation_10": 0.10, "hours_to_liquidation_50": 0.50}


def path_portfolio_columns(evaluated: Evaluated, paths: PathFigures | None) -> Row:
    """Columns of `portfolio_margin`: the first liquidation of any account. Empty without paths or finite figures."""
    portfolio = evaluated.portfolio
    if paths is None or not is_calculated(evaluated) or not paths.account_is_finite.all():
        return {}
    funding = [
        float(paths.funding_paid[number]) * info.unit_price_usd
        for number, info in enumerate(portfolio.accounts)
        if _states_funding(evaluated, info.account_id)
    ]
    return {
        "p_liquidation_path": passage_probability(paths.passage_any),
        **_hours(paths.passage_any, paths.step_hours),
        "funding_paid_path_usd": math.fsum(funding) if funding else None,
    }


def path_account_columns(evaluated: Evaluated, paths: PathFigures | None) -> list[Row]:
    """Columns of the rows of `account_margin`, in their order; empty where nothing finite was computed."""
    portfolio, headline = evaluated
    rows: list[Row] = []
    for number, info in enumerate(portfolio.accounts):
        if paths is None or headline is None:
            rows.append({})
            continue
        if not (headline.account_is_finite[number] and paths.account_is_finite[number]):
            rows.append({})
            continue
        stated = _states_funding(evaluated, info.account_id)
        rows.append(
            {
                "p_liquidation_path": passage_probability(paths.passage[number]),
                **_hours(paths.passage[number], paths.step_hours),
                "funding_paid_path": float(paths.funding_paid[number]) if stated else None,
            }
        )
    return rows + [{} for _ in portfolio.left_out]


def path_failures(evaluated: Sequence[Evaluated], paths: Sequence[PathFigures | None]) -> list[Failure]:
    """One failure for every account whose figures are finite at the horizon, but not along the paths."""
    return [
        Failure(
            FailureReason.CALCULATION,
            f"figures of account {info.account_id!r} are not finite along the paths; none of those is reported",
            venue=info.venue,
            subject=info.account_id,
        )
        for e, found in zip(evaluated, paths, strict=True)
        if found is not None and e.headline is not None
        for number, info in enumerate(e.portfolio.accounts)
        if e.headline.account_is_finite[number] and not found.account_is_finite[number]
    ]


def passage_probability(passage: np.ndarray) -> float:
    """Probability of a first passage at any step; `passage` [steps + 1] as in `PathFigures`."""
    return min(math.fsum(passage.tolist()), 1.0)


def _hours(passage: np.ndarray, step_hours: float) -> Row:
    """Mean and quantiles of the time to liquidation among the paths that end in one; null without any.

    A quantile is the earliest step by which at least that share of them is liquidated.
    """
    total = math.fsum(passage.tolist())
    if total <= 0.0:
        return {}
    hours = [number * step_hours for number in range(len(passage))]
    row: Row = {"hours_to_liquidation": math.fsum(h * float(p) for h, p in zip(hours, passage, strict=True)) / total}
    for name, share in _QUANTILES.items():
        # Half a unit of the sums' last digits, so that a share met exactly is met.
        reached = np.cumsum(passage) >= share * total - 1e-12
        row[name] = hours[int(np.argmax(reached))]
    return row


def _states_funding(evaluated: Evaluated, account_id: str) -> bool:
    """Whether a perpetual of the account states a funding rate: without any the figure is unknown, and not zero."""
    return any(line.funding_rate is not None for line in evaluated.portfolio.lines if line.account_id == account_id)
