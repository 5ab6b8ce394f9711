"""Result columns and rows of the unified requirement and of what the locked capital costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .add_ons import volatility_haircut
from .engine import Headline
from .errors import Failure, FailureReason
from .policy import Requirement
from .portfolio import PackedPortfolio
from .results import Evaluated, Row
from .unified_batch import is_at_haircut, is_own_token

LEVELS = ("maintenance", "initial")
UNIFIED_SCOPE = "unified"
_HOURS_PER_YEAR = 8760.0


def is_measured(figures: Headline | None) -> bool:
    """Whether the portfolio has a unified requirement, and every component of it is finite."""
    if figures is None or not figures.finite or figures.unified is None:
        return False
    parts = (*figures.unified.components, figures.unified.silo, figures.unified.effective)
    return all(bool(np.isfinite(part).all()) for part in parts)


def requirement_columns(evaluated: Evaluated, policy: Requirement, daily_vols: Mapping[str, float]) -> Row:
    """What `portfolio_margin` says of the unified requirement; empty where it was not computed."""
    portfolio, figures = evaluated
    if not is_measured(figures):
        return {}
    assert figures is not None
    assert figures.unified is not None
    unified = figures.unified
    silo, effective = (float(values[0]) for values in (unified.silo, unified.effective))
    ideal = float(unified.components.requirement[-1, 0])
    initial = float(unified.initial)
    equity = unified_equity(portfolio, policy, daily_vols)
    row: Row = {
        "unified_equity_usd": equity,
        "requirement_silo_usd": silo,
        "requirement_ideal_usd": ideal,
        "requirement_effective_usd": effective,
        "requirement_initial_usd": initial,
        "offset_share": policy.offset_cap,
        "offset_benefit_usd": silo - effective,
        "margin_efficiency": effective / silo if silo > 0 else None,
        "health_unified": equity / effective if effective > 0 else None,
        "unmeasured_usd": float(unified.components.unmeasured[-1, 0]),
        "capital_cost_usd": math.fsum(_costs(portfolio, evaluated, policy, n) for n in range(len(portfolio.nodes))),
    }
    for level, name in enumerate(("99", "995")):
        for measure, errors in (("var", unified.var_error), ("es", unified.es_error)):
            value = float(errors[level])
            row[f"{measure}_{name}_pooled_error_usd"] = None if math.isnan(value) else value
    return row


def unified_equity(portfolio: PackedPortfolio, policy: Requirement, daily_vols: Mapping[str, float]) -> float:
    """Equity at market value, USD; collateral that is not simulated counts less by its volatility-adjusted haircut."""
    if policy.collateral == "simulated":
        return math.fsum(portfolio.line_equity)
    haircut = policy.haircut
    values = []
    for line, value in zip(portfolio.lines, portfolio.line_equity, strict=True):
        share = 0.0
        if is_at_haircut(line) and not is_own_token(line, policy):
            share = float(
                volatility_haircut(
                    haircut.static,
                    daily_vol=daily_vols.get(line.factor, math.nan),
                    quantile=haircut.z,
                    horizon_days=haircut.days,
                    liquidity=haircut.liquidity,
                )
            )
        values.append((1.0 - share) * value)
    return math.fsum(values)


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
            if not stressed:
                row["es_stressed_usd"] = None
            if row["unmeasured_usd"] > 0:
                # What was measured of it is in the requirement; a charge that lacks a part is no figure of its own.
                row |= {name: row[name] or None for name in ("liquidity_usd", "concentration_usd")}
            if scope == UNIFIED_SCOPE and row["grid_usd"] > 0:
                row["grid_point"] = grid_labels[int(figures.unified.grid_point)]
            rows.append(row)
    return rows


def node_columns(evaluated: Evaluated, policy: Requirement) -> list[Row]:
    """What `node_margin` says of each node's requirement and of the cost of what is locked there, in order of nodes."""
    portfolio, figures = evaluated
    if figures is None or not figures.finite:
        return []
    out = []
    for number in range(len(portfolio.nodes)):
        requirement = None
        if is_measured(figures) and figures.unified is not None:
            requirement = float(figures.unified.components.requirement[number, 0])
        locked = _locked(portfolio, evaluated, number)
        out.append(
            {
                "requirement_usd": requirement,
                "locked_usd": locked,
                "opportunity_cost_usd": policy.opportunity_rate * locked,
                "borrow_cost_usd": None,
                "funding_cost_usd": _funding(portfolio, policy, number),
            }
        )
    return out


def _costs(portfolio: PackedPortfolio, evaluated: Evaluated, policy: Requirement, node: int) -> float:
    return policy.opportunity_rate * _locked(portfolio, evaluated, node) + (_funding(portfolio, policy, node) or 0.0)


def _locked(portfolio: PackedPortfolio, evaluated: Evaluated, node: int) -> float:
    """Initial margin that the venue asks of the accounts of a node, USD."""
    figures, name = evaluated.headline, portfolio.nodes[node]
    assert figures is not None
    return math.fsum(
        max(float(figures.native.initial[a]), 0.0) * info.unit_price_usd
        for a, info in enumerate(portfolio.accounts)
        if (info.node, info.venue) == name
    )


def _funding(portfolio: PackedPortfolio, policy: Requirement, node: int) -> float | None:
    """USD a year at today's funding rates; None where no perpetual of the node states one."""
    paid = [
        line.value_usd * line.funding_rate * _HOURS_PER_YEAR / policy.venue(line.venue).funding_hours
        for line, at in zip(portfolio.lines, portfolio.line_node, strict=True)
        if at == node and line.funding_rate is not None
    ]
    return math.fsum(paid) if paid else None


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
