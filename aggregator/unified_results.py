"""Result columns and rows of the unified requirement and of what the locked capital costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from .add_ons import volatility_haircut
from .capital_cost import node_costs
from .engine import Headline
from .errors import Failure, FailureReason
from .policy import Requirement
from .portfolio import PackedPortfolio
from .results import Evaluated, Row
from .unified import Unified
from .unified_batch import is_at_haircut, is_own_token

LEVELS = ("maintenance", "initial")
UNIFIED_SCOPE = "unified"
_OF_MARKETS = ("liquidity_usd", "concentration_usd", "beyond_horizons_usd")


def is_measured(figures: Headline | None) -> bool:
    """Whether the portfolio has a unified requirement, and every component of it is finite."""
    if figures is None or not figures.finite or figures.unified is None:
        return False
    parts = (*figures.unified.components, figures.unified.silo, figures.unified.effective)
    return all(bool(np.isfinite(part).all()) for part in parts)


def requirement_columns(
    evaluated: Evaluated, policy: Requirement, rates: Mapping[str, float] = MappingProxyType({})
) -> Row:
    """What `portfolio_margin` says of the unified requirement; empty where it was not computed. `rates` are the
    `borrow_rates` of what was read.
    """
    portfolio, figures = evaluated
    if not is_measured(figures):
        return {}
    assert figures is not None
    assert figures.unified is not None
    unified = figures.unified
    silo, effective = (float(values[0]) for values in (unified.silo, unified.effective))
    ideal = float(unified.components.requirement[-1, 0])
    initial = float(unified.initial)
    equity = unified_equity(portfolio, unified, policy)
    costs = [cost.total for cost in node_costs(evaluated, policy, rates)]
    row: Row = {
        "unified_equity_usd": equity,
        "requirement_silo_usd": silo,
        "requirement_ideal_usd": ideal,
        "requirement_effective_usd": effective,
        "requirement_initial_usd": initial,
        "offset_share": float(unified.offset_share[0]),
        "offset_benefit_usd": float(unified.offset_benefit[0]),
        "margin_efficiency": float(unified.margin_efficiency[0]) if silo > 0 else None,
        "health_unified": equity / effective if effective > 0 else None,
        "unmeasured_usd": float(unified.components.unmeasured[-1, 0]),
        "capital_cost_usd": None if any(cost is None for cost in costs) else math.fsum(cost or 0.0 for cost in costs),
    }
    for level, name in enumerate(("99", "995")):
        for measure, errors in (("var", unified.var_error), ("es", unified.es_error)):
            value = float(errors[level])
            row[f"{measure}_{name}_pooled_error_usd"] = None if math.isnan(value) else value
    return row


def unified_equity(portfolio: PackedPortfolio, unified: Unified, policy: Requirement) -> float:
    """Equity at market value, USD; collateral that is not simulated counts less by its volatility-adjusted haircut.

    The volatility is that of the token in the scenarios: its price together with its discount.
    """
    if policy.collateral == "simulated":
        return math.fsum(portfolio.line_equity)
    haircut = policy.haircut
    shares = volatility_haircut(
        haircut.static,
        daily_vol=unified.line_daily_vol[: len(portfolio.lines)],
        quantile=haircut.z,
        horizon_days=haircut.days,
        liquidity=haircut.liquidity,
    )
    return math.fsum(
        (1.0 - (share if is_at_haircut(line) and not is_own_token(line, policy) else 0.0)) * value
        for line, value, share in zip(portfolio.lines, portfolio.line_equity, np.asarray(shares).tolist(), strict=True)
    )


def requirement_rows(evaluated: Evaluated, grid_labels: Sequence[str], *, stressed: bool) -> list[Row]:
    """Rows of `requirement`: every component of every scope and level."""
    portfolio, figures = evaluated
    if not is_measured(figures):
        return []
    assert figures is not None
    assert figures.unified is not None
    components = figures.unified.components
    scopes = [(number, node) for number, (node, _) in enumerate(portfolio.nodes)]
    rows = []
    for number, scope in [*scopes, (len(components.requirement) - 1, UNIFIED_SCOPE)]:
        for level, name in enumerate(LEVELS):
            row: Row = {"portfolio_id": portfolio.portfolio_id, "scope": scope, "level": name, "grid_point": None}
            row |= {f"{c}_usd": float(values[number, level]) for c, values in components._asdict().items()}
            error = float(figures.unified.es_current_error[level]) if scope == UNIFIED_SCOPE else math.nan
            row["es_current_error_usd"] = None if math.isnan(error) else error
            if not stressed:
                row["es_stressed_usd"] = None
            if row["unmeasured_usd"] > 0:
                # What was measured of it is in the requirement; a charge that lacks a part is no figure of its own.
                row |= {name: row[name] or None for name in _OF_MARKETS}
            if scope == UNIFIED_SCOPE and row["grid_usd"] > 0:
                row["grid_point"] = grid_labels[int(figures.unified.grid_point)]
            rows.append(row)
    return rows


def node_columns(
    evaluated: Evaluated, policy: Requirement, rates: Mapping[str, float] = MappingProxyType({})
) -> list[Row]:
    """What `node_margin` says of each node's requirement and of the cost of what is locked there, in order of nodes.

    `rates` are the `borrow_rates` of what was read.
    """
    figures = evaluated.headline
    if figures is None or not figures.finite:
        return []
    out = []
    for number, cost in enumerate(node_costs(evaluated, policy, rates)):
        requirement = None
        if is_measured(figures) and figures.unified is not None:
            requirement = float(figures.unified.components.requirement[number, 0])
        out.append(
            {
                "requirement_usd": requirement,
                "locked_usd": cost.locked,
                "opportunity_cost_usd": cost.opportunity,
                "borrow_cost_usd": cost.borrow,
                "funding_cost_usd": cost.funding,
                "uncosted_usd": cost.uncosted,
            }
        )
    return out


def requirement_failures(evaluated: Sequence[Evaluated]) -> list[Failure]:
    """One failure for every portfolio with figures whose unified requirement is not finite."""
    return [
        Failure(
            FailureReason.CALCULATION,
            f"the unified requirement of portfolio {e.portfolio.portfolio_id!r} is not finite; it is not reported",
            subject=e.portfolio.portfolio_id,
        )
        for e in evaluated
        if e.headline is not None and e.headline.finite and e.headline.unified is not None
        if not is_measured(e.headline)
    ]


def unmeasured_failures(evaluated: Sequence[Evaluated], unknown: frozenset[str]) -> list[Failure]:
    """One finding for every asset held whose market is unknown: its liquidity and concentration are not charged."""
    held: dict[str, float] = {}
    for portfolio, figures in evaluated:
        if figures is None or figures.unified is None:
            continue
        for line in portfolio.lines:
            if line.factor in unknown:
                held[line.factor] = held.get(line.factor, 0.0) + line.gross_usd
    return [
        Failure(
            FailureReason.MISSING_PARAMETER,
            f"{factor} has no daily volume, volatility and spread: {gross:,.0f} USD of positions are charged neither "
            "for liquidity nor for concentration; give them under requirement.liquidity.assets or in a calibration",
            path="requirement.liquidity.assets",
            subject=factor,
        )
        for factor, gross in sorted(held.items())
    ]
