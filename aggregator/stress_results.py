"""Rows of the result table `stress`: each portfolio under each named stress."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from .cube import CubeRows
from .engine import Headline
from .portfolio import PackedPortfolio
from .results import Evaluated, Row
from .stress import Held, Stress, StressLibrary, without_effect

_DRIVERS = 6


def stress_rows(
    evaluated: Evaluated, library: StressLibrary, names: Sequence[str], held: Held | None = None
) -> list[Row]:
    """One row per stress, in the order of `names`; none where the portfolio has no finite figures.

    With what is `held` a row also says what of the stress acts on nothing of it.
    """
    portfolio, figures = evaluated
    if figures is None or not figures.finite or figures.stress is None:
        return []
    stress, count = figures.stress, len(portfolio.nodes)
    measured = _is_measured(figures)
    equity = _by_node(portfolio)
    rows = []
    for k, name in enumerate(names):
        parts = library.parts(name)
        depth_losses = _shared(np.asarray(stress.depth_loss)[:count, k], float(stress.depth_loss[-1, k]))
        losses = [float(loss) + more for loss, more in zip(stress.node_loss[:count, k], depth_losses, strict=True)]
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
                # A loss that lacks a part is no figure of its own, see `requirement_rows`.
                "depth_loss_usd": math.fsum(depth_losses) if measured else math.fsum(depth_losses) or None,
                "liquidity_usd": _liquidity(figures, math.prod(part.depth for part in parts)) if measured else None,
                "equity_after_usd": math.fsum(left),
                "unavailable_usd": math.fsum(unavailable),
                "uncovered_usd": math.fsum(max(-value, 0.0) for value in left),
                "uncovered_pooled_usd": max(-math.fsum(left), 0.0),
                "transfers": "shut" if shut else "open",
                "liquidated": json.dumps(_accounts(portfolio, np.asarray(stress.liquidated)[:, k])),
                "insolvent": json.dumps(_accounts(portfolio, np.asarray(stress.insolvent)[:, k])),
                "without_effect": None if held is None else json.dumps(without_effect(library.stress[name], held)),
                "drivers": json.dumps(_drivers(portfolio, np.asarray(stress.line_loss)[:, k])),
            }
        )
    return rows


def held_by(portfolio: PackedPortfolio, rows: CubeRows, factors: Sequence[str]) -> Held:
    """What a stress can act on in a portfolio: `rows` are the cube's over `factors`."""
    terms, weights = np.asarray(rows.exponent_factor), np.asarray(rows.exponent_weight)
    conversions, powers = np.asarray(rows.conversion_factor), np.asarray(rows.conversion_weight)
    price, vol = np.asarray(rows.price_factor), np.asarray(rows.vol_factor)
    used: set[int] = set()
    for row in {row for _, row, _ in (*portfolio.legs, *portfolio.native_legs)}:
        at = row - len(terms)
        if at < 0:
            used |= {int(f) for f, power in zip(terms[row], weights[row], strict=True) if power != 0.0}
        else:
            used |= {int(price[at]), int(vol[at])}
            used |= {int(f) for f, power in zip(conversions[at], powers[at], strict=True) if power != 0.0}
    return Held(
        factors=frozenset(factors[f] for f in used),
        venues=frozenset(info.venue for info in portfolio.accounts),
        funded=frozenset(line.venue for line in portfolio.lines if line.is_perpetual),
        chains=frozenset(info.chain for info in portfolio.accounts if info.chain),
    )


def _by_node(portfolio: PackedPortfolio) -> list[float]:
    values: list[list[float]] = [[] for _ in portfolio.nodes]
    for value, node in zip(portfolio.line_equity, portfolio.line_node, strict=True):
        values[node].append(value)
    return [math.fsum(of_node) for of_node in values]


def _shared(alone: np.ndarray, whole: float) -> list[float]:
    """The whole's cost of depth by node, in proportion to what each would pay alone: they meet the same books."""
    total = math.fsum(float(value) for value in alone)
    return [whole * (float(value) / total) if total else 0.0 for value in alone]


def _is_measured(figures: Headline) -> bool:
    """Whether the market of everything that is held is known."""
    return figures.unified is not None and not float(figures.unified.components.unmeasured[-1, 0]) > 0.0


def _liquidity(figures: Headline, depth: float) -> float:
    """Liquidation cost of everything where the book holds `depth` of today's: spreads widen by its inverse, and the
    impact grows by the root of it.
    """
    assert figures.unified is not None
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
