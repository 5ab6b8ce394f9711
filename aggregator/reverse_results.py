"""Rows of the result table `reverse_stress`: what liquidates something of a portfolio, and what goes first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .condensed import PRICE
from .liquidation_price import Moves
from .results import Evaluated, Row
from .reverse_stress import NearestMove

_NOTHING = NearestMove("none", None, {}, {})


def reverse_stress_rows(
    evaluated: Evaluated,
    nearest: Sequence[NearestMove],
    liquidation: Sequence[Mapping[str, Moves]],
    factors: Sequence[str],
    shocks: np.ndarray,
    weights: np.ndarray,
) -> list[Row]:
    """One row for the portfolio (kind joint), one for each account, one for each price that liquidates alone (asset).

    `nearest` and `liquidation` (moves of one price alone, by mover) are those of the accounts; `shocks`
    [scenarios, factors] and `weights` [scenarios] are the run's. The probability of a row is the weight of the
    scenarios beyond the plane through its move, at right angles to the direction in which it is farthest out.
    """
    portfolio, headline = evaluated
    assert headline is not None
    index = {name: number for number, name in enumerate(factors)}
    of_accounts = []
    for number, (info, found) in enumerate(zip(portfolio.accounts, nearest, strict=True)):
        known = found if headline.account_is_finite[number] else NearestMove("calculation", None, {}, {})
        of_accounts.append((info.account_id, info.venue, known))
    rows = [
        _row(portfolio.portfolio_id, "account", account_id, account_id, venue, found, index, shocks, weights)
        for account_id, venue, found in of_accounts
    ]
    reached = [entry for entry in of_accounts if entry[2].distance is not None]
    first = min(reached, key=lambda entry: (entry[2].distance, entry[0]), default=None)
    if first is None:
        status = "calculation" if any(of[2].status == "calculation" for of in of_accounts) else "none"
        rows.append(
            _row(portfolio.portfolio_id, "joint", "portfolio", None, None, _NOTHING, index, shocks, weights)
            | {"status": status}
        )
    else:
        rows.append(_row(portfolio.portfolio_id, "joint", "portfolio", *first, index, shocks, weights))
    return rows + _asset_rows(evaluated, liquidation, index, shocks, weights)


def _asset_rows(
    evaluated: Evaluated,
    liquidation: Sequence[Mapping[str, Moves]],
    index: Mapping[str, int],
    shocks: np.ndarray,
    weights: np.ndarray,
) -> list[Row]:
    """A row for each price factor: the account that it liquidates first when it moves alone, and by how much."""
    portfolio, headline = evaluated
    assert headline is not None
    found: dict[str, list[tuple[float, str, str, float]]] = {}
    for number, (info, moves) in enumerate(zip(portfolio.accounts, liquidation, strict=True)):
        for factor, of in moves.items():
            if not factor.startswith(PRICE) or factor not in index or not headline.account_is_finite[number]:
                continue
            spread = _spread(shocks[:, index[factor]], weights)
            sides = [0.0] if of.liquidatable_now else [move for move in (of.down, of.up) if move is not None]
            entries = found.setdefault(factor, [])
            if spread > 0.0:
                entries += [(abs(move) / spread, info.account_id, info.venue, move) for move in sides]
    rows = []
    for factor, entries in sorted(found.items()):
        nearest, account_id, venue = _NOTHING, None, None
        if entries:
            distance, account_id, venue, move = min(entries)
            status = "ok" if distance > 0.0 else "liquidatable_now"
            scale = distance / move if move else 0.0
            nearest = NearestMove(status, distance, {factor: move} if move else {}, {factor: scale})
        rows.append(_row(portfolio.portfolio_id, "asset", factor, account_id, venue, nearest, index, shocks, weights))
    return rows


def _row(
    portfolio_id: str,
    kind: str,
    subject: str,
    account_id: str | None,
    venue: str | None,
    found: NearestMove,
    index: Mapping[str, int],
    shocks: np.ndarray,
    weights: np.ndarray,
) -> Row:
    moves = {name: math.expm1(move) for name, move in sorted(found.moves.items())}
    return {
        "portfolio_id": portfolio_id,
        "kind": kind,
        "subject": subject,
        "account_id": account_id,
        "venue": venue,
        "status": found.status,
        "distance": found.distance,
        "moves": json.dumps(moves) if moves else None,
        "probability": _beyond(found, index, shocks, weights),
    }


def _beyond(found: NearestMove, index: Mapping[str, int], shocks: np.ndarray, weights: np.ndarray) -> float | None:
    """Weight of the scenarios beyond the plane a'x = distance; None without a move."""
    if not found.moves or found.distance is None:
        return None
    score = np.zeros(len(shocks))
    for name, coefficient in sorted(found.normal.items()):
        score = score + coefficient * shocks[:, index[name]]
    return math.fsum(weights[score >= found.distance].tolist())


def _spread(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted standard deviation of one factor's log moves."""
    mean = math.fsum((weights * values).tolist())
    return math.sqrt(math.fsum((weights * (values - mean) ** 2).tolist()))
