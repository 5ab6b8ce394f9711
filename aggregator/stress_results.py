"""Rows of the result table `stress`: each portfolio under each named stress."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from .engine import Headline
from .portfolio import PackedPortfolio
from .results import Evaluated, Row
from .stress import Stress, StressLibrary

_DRIVERS = 6


def stress_rows(evaluated: Evaluated, library: StressLibrary, names: Sequence[str]) -> list[Row]:
    """One row per stress, in the order of `names`; none where the portfolio has no finite figures."""
    portfolio, figures = evaluated
    if figures is None or not figures.finite or figures.stress is None:
        return []
    stress, count = figures.stress, len(portfolio.nodes)
    equity = _by_node(portfolio)
    rows = []
    for k, name in enumerate(names):
        parts = library.parts(name)
        losses = [float(value) for value in stress.node_loss[:count, k]]
        left = [e - loss for e, loss in zip(equity, losses, strict=True)]
        shut = any(part.transfers == "shut" for part in parts)
        unavailable = [
            max(value, 0.0)
            for value, (node, venue) in zip(left, portfolio.nodes, strict=True)
            if shut or any(_is_halted(portfolio, node, venue, part) for part in parts)
        ]
        rows.append(
            {
                "portfolio_id": portfolio.portfolio_id,
                "stress": name,
                "description": parts[0].description,
                "binding": parts[0].binding,
                "loss_usd": math.fsum(losses),
                "price_loss_usd": math.fsum(float(value) for value in stress.node_price_loss[:count, k]),
                "liquidity_usd": _liquidity(figures, math.prod(part.depth for part in parts)),
                "equity_after_usd": math.fsum(left),
                "unavailable_usd": math.fsum(unavailable),
                "uncovered_usd": math.fsum(max(-value, 0.0) for value in left),
                "uncovered_pooled_usd": max(-math.fsum(left), 0.0),
                "transfers": "shut" if shut else "open",
                "liquidated": json.dumps(_accounts(portfolio, np.asarray(stress.liquidated)[:, k])),
                "insolvent": json.dumps(_accounts(portfolio, np.asarray(stress.insolvent)[:, k])),
                "drivers": json.dumps(_drivers(portfolio, np.asarray(stress.line_loss)[:, k])),
            }
        )
    return rows


def _by_node(portfolio: PackedPortfolio) -> list[float]:
    values: list[list[float]] = [[] for _ in portfolio.nodes]
    for value, node in zip(portfolio.line_equity, portfolio.line_node, strict=True):
        values[node].append(value)
    return [math.fsum(of_node) for of_node in values]


def _liquidity(figures: Headline, depth: float) -> float | None:
    """Liquidation cost of everything where the book holds `depth` of today's: spreads widen by its inverse, and the
    impact grows by the root of it. None where the market of something held is unknown.
    """
    if figures.unified is None or float(figures.unified.components.unmeasured[-1, 0]) > 0.0:
        return None
    whole, spread = float(figures.unified.components.liquidity[-1, 0]), float(figures.unified.spread_cost[-1])
    return spread / depth + (whole - spread) / math.sqrt(depth)


def _is_halted(portfolio: PackedPortfolio, node: str, venue: str, part: Stress) -> bool:
    if venue in part.venues and not part.venues[venue].withdrawals:
        return True
    chains = {info.chain for info in portfolio.accounts if (info.node, info.venue) == (node, venue)}
    return bool(chains & set(part.chains_halted))


def _accounts(portfolio: PackedPortfolio, hit: np.ndarray) -> list[str]:
    return [info.account_id for info, is_hit in zip(portfolio.accounts, hit, strict=False) if is_hit]


def _drivers(portfolio: PackedPortfolio, losses: np.ndarray) -> list[dict[str, object]]:
    found = sorted(zip(portfolio.lines, losses, strict=False), key=lambda pair: (-abs(float(pair[1])), pair[0].key))
    return [{"key": line.key, "loss_usd": float(loss)} for line, loss in found[:_DRIVERS] if loss]
