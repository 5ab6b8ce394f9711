"""Engine output to result tables: one function per table, rows as plain mappings, nothing computed that is not said
here.

Every row carries its keys (see schema.RESULT_KEYS). Nothing that was not computed becomes zero: it is null with a
status.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .account import AccountInfo
from .engine import Cube, Detail, Headline
from .errors import Failure, FailureReason
from .liquidation_price import Moves, Subject
from .margin import NativeMargin, is_liquidated
from .portfolio import PackedPortfolio
from .schema.results import RESULTS

Row = dict[str, Any]

NEAR_BOUNDARY = 1e-4
"""Relative band around the trigger in which a float32 scenario verdict and the float64 one may differ."""

_DRIVERS = 5
_MOVES = 6


class Evaluated(NamedTuple):
    """One portfolio with its figures; `headline` is None when no account of it is complete."""

    portfolio: PackedPortfolio
    headline: Headline | None


def result_table(name: str, run_id: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The result table `name` from rows without their run id; an absent nullable column is null."""
    schema = RESULTS[name]
    columns = [
        pa.array([run_id] * len(rows) if f.name == "run_id" else [row.get(f.name) for row in rows], f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def is_calculated(evaluated: Evaluated) -> bool:
    """Whether the engine gave finite figures for the portfolio."""
    return evaluated.headline is not None and bool(evaluated.headline.finite)


def calculation_failures(evaluated: Iterable[Evaluated]) -> list[Failure]:
    """One failure for every portfolio whose figures are not finite."""
    return [
        Failure(
            FailureReason.CALCULATION,
            f"figures of portfolio {e.portfolio.portfolio_id!r} are not finite; none of them is reported",
            subject=e.portfolio.portfolio_id,
        )
        for e in evaluated
        if e.headline is not None and not e.headline.finite
    ]


def _first_sum(values: Any, count: int) -> float:
    """Sum of the first `count` values: what lies behind them is padding."""
    # math.fsum: exactly rounded, so the order of lines cannot matter.
    return math.fsum(values[:count])


def portfolio_row(evaluated: Evaluated) -> Row:
    """Row of `portfolio_margin`. The native sum is in USD: each account's requirement at its unit's price."""
    portfolio, figures = evaluated
    row: Row = {
        "portfolio_id": portfolio.portfolio_id,
        "complete": not portfolio.accounts_left_out and is_calculated(evaluated),
        "accounts_left_out": json.dumps(sorted(portfolio.accounts_left_out)),
        "left_out_gross_usd": portfolio.left_out_gross_usd,
        "accounts": len(portfolio.accounts),
        "positions": len(portfolio.lines),
    }
    if figures is None:
        return row | {"status": "no_complete_account"}
    if not figures.finite:
        return row | {"status": "calculation"}
    lines, nodes = len(portfolio.lines), len(portfolio.nodes)
    native = [
        (
            float(figures.native.initial[a]) * info.unit_price_usd,
            float(figures.native.maintenance[a]) * info.unit_price_usd,
        )
        for a, info in enumerate(portfolio.accounts)
    ]
    health = [
        (h, a.account_id)
        for n, a in enumerate(portfolio.accounts)
        if (h := native_health(portfolio, figures.native, n)) is not None
    ]
    likeliest = min((-float(figures.p_liquidation[n]), a.account_id) for n, a in enumerate(portfolio.accounts))
    equity = math.fsum(portfolio.line_equity)
    pooled = [float(x) for x in figures.pooled_es]
    silo = [_first_sum(figures.node_es[:, level], nodes) for level in (0, 1)]
    silo_var = [_first_sum(figures.node_var[:, level], nodes) for level in (0, 1)]
    isolated = [_first_sum(figures.line_es[:, level], lines) for level in (0, 1)]
    row |= {
        "status": "ok" if row["complete"] else "incomplete",
        "equity_usd": equity,
        "gross_notional_usd": math.fsum(line.gross_usd for line in portfolio.lines),
        "native_initial_usd": math.fsum(pair[0] for pair in native),
        "native_maintenance_usd": math.fsum(pair[1] for pair in native),
        "health_minimum": min(health)[0] if health else None,
        "health_minimum_account": min(health)[1] if health else None,
        "p_liquidation_any_at_horizon": float(figures.p_any),
        "p_liquidation_largest": -likeliest[0],
        "p_liquidation_largest_account": likeliest[1] if likeliest[0] < 0 else None,
        "mean_loss_usd": float(figures.mean_loss),
        "worst_loss_usd": float(figures.worst_loss),
        "var_99_pooled_usd": float(figures.pooled_var[0]),
        "es_99_pooled_usd": pooled[0],
        "var_995_pooled_usd": float(figures.pooled_var[1]),
        "es_995_pooled_usd": pooled[1],
        "var_99_silo_sum_usd": silo_var[0],
        "es_99_silo_sum_usd": silo[0],
        "var_995_silo_sum_usd": silo_var[1],
        "es_995_silo_sum_usd": silo[1],
        "es_99_isolated_sum_usd": isolated[0],
        "es_995_isolated_sum_usd": isolated[1],
        "offset_within_nodes_99_usd": isolated[0] - silo[0],
        "offset_across_nodes_99_usd": silo[0] - pooled[0],
        "pooled_to_silo_99": pooled[0] / silo[0] if silo[0] > 0 else None,
        "equity_to_es_99": equity / pooled[0] if pooled[0] > 0 else None,
    }
    return row


def native_health(portfolio: PackedPortfolio, native: NativeMargin, account: int) -> float | None:
    """Health as the venue states it; None without a requirement (or, for a lender, without debt).

    A venue that states the inverse gets its ratio the right way up: the lowest is the worst everywhere.
    """
    info = portfolio.accounts[account]
    equity, maintenance = float(native.equity[account]), float(native.maintenance[account])
    if info.lender:
        debt = portfolio.debts.get(account, 0.0)
        return (equity + debt - maintenance) / debt if debt > 0 else None
    return equity / maintenance if maintenance > 0 else None


def account_rows(evaluated: Evaluated) -> list[Row]:
    """Rows of `account_margin`: complete accounts with their figures, the others with their status.

    An account whose own figures are finite keeps them when another one's are not.
    """
    portfolio, figures = evaluated
    rows = []
    for account, info in enumerate(portfolio.accounts):
        row = _account_base(portfolio, info)
        if figures is None or not figures.account_is_finite[account]:
            rows.append(row | {"status": "calculation"})
            continue
        equity, initial, maintenance = (float(x[account]) for x in figures.native)
        needed = info.trigger * maintenance
        health = native_health(portfolio, figures.native, account)
        reported = info.reported
        lines = [n for n, line in enumerate(portfolio.lines) if line.account_id == info.account_id]
        rows.append(
            row
            | {
                "status": "ok" if health is not None else "no_requirement",
                "equity": equity,
                "initial_requirement": initial,
                "maintenance_requirement": maintenance,
                "health": health,
                "liquidatable": _is_gone(info, equity, maintenance),
                "near_boundary": maintenance > 0 and abs(equity - needed) <= NEAR_BOUNDARY * needed,
                "p_liquidation_at_horizon": float(figures.p_liquidation[account]),
                "equity_usd": math.fsum(portfolio.line_equity[n] for n in lines),
                "gross_notional_usd": math.fsum(portfolio.lines[n].gross_usd for n in lines),
                "equity_difference": _difference(equity, reported["reported_equity"]),
                "maintenance_difference": _difference(maintenance, reported["reported_maintenance_margin"]),
            }
        )
    # Their rule set was not read, so what it would say of them is unknown.
    unread = {"status": "incomplete", "trigger": None, "reported_parts": None}
    rows += [_account_base(portfolio, info) | unread for info in portfolio.left_out]
    return rows


def _is_gone(info: AccountInfo, equity: float, maintenance: float) -> bool:
    """Whether the venue liquidates at these figures."""
    verdict = is_liquidated(
        equity,
        maintenance,
        trigger=info.trigger,
        at_or_below=info.at_or_below,
        needs_requirement=info.needs_requirement,
    )
    return bool(verdict)


def _account_base(portfolio: PackedPortfolio, info: Any) -> Row:
    return {
        "portfolio_id": portfolio.portfolio_id,
        "account_id": info.account_id,
        "node": info.node,
        "venue": info.venue,
        "margin_mode": info.margin_mode,
        "unit": info.unit,
        "unit_price_usd": None if math.isnan(info.unit_price_usd) else info.unit_price_usd,
        "trigger": info.trigger,
        "reported_parts": info.reported_parts,
        **info.reported,
    }


def _difference(own: float, reported: float | None) -> float | None:
    return None if reported is None else own - reported


def node_rows(evaluated: Evaluated) -> list[Row]:
    """Rows of `node_margin`."""
    portfolio, figures = evaluated
    if figures is None or not figures.finite:
        return []
    return [
        {
            "portfolio_id": portfolio.portfolio_id,
            "node": node,
            "venue": venue,
            "equity_usd": math.fsum(
                portfolio.line_equity[n] for n, at in enumerate(portfolio.line_node) if at == number
            ),
            "var_99_usd": float(figures.node_var[number, 0]),
            "es_99_usd": float(figures.node_es[number, 0]),
            "var_995_usd": float(figures.node_var[number, 1]),
            "es_995_usd": float(figures.node_es[number, 1]),
        }
        for number, (node, venue) in enumerate(portfolio.nodes)
    ]


def allocation_rows(evaluated: Evaluated, found: Detail) -> list[Row]:
    """Rows of `allocation`: Euler contributions by position, asset and venue, each level summing to the pooled ES."""
    portfolio, figures = evaluated
    assert figures is not None
    euler = found.line_euler
    rows: list[Row] = []
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, line in enumerate(portfolio.lines):
        groups["venue", line.venue].append(number)
        groups["asset", line.asset].append(number)
        rows.append(
            _allocation(portfolio, "position", line.key, [number], euler)
            | {
                "venue": line.venue,
                "asset": line.asset,
                "account_id": line.account_id,
                "es_99_isolated_usd": float(figures.line_es[number, 0]),
                "es_995_isolated_usd": float(figures.line_es[number, 1]),
                "var_99_isolated_usd": float(figures.line_var[number, 0]),
                "var_995_isolated_usd": float(figures.line_var[number, 1]),
            }
        )
    for (level, key), members in sorted(groups.items()):
        rows.append(_allocation(portfolio, level, key, members, euler) | {level: key})
    return rows


def _allocation(portfolio: PackedPortfolio, level: str, key: str, members: Sequence[int], euler: Any) -> Row:
    return {
        "portfolio_id": portfolio.portfolio_id,
        "level": level,
        "key": key,
        "value_usd": math.fsum(portfolio.lines[n].value_usd for n in members),
        "es_99_usd": math.fsum(float(euler[n, 0]) for n in members),
        "es_995_usd": math.fsum(float(euler[n, 1]) for n in members),
    }


def worst_rows(evaluated: Evaluated, found: Detail, cube: Cube, factors: Sequence[str]) -> list[Row]:
    """Rows of `scenarios_worst`: the largest pooled losses, the lines that drive them and the factor moves behind."""
    portfolio = evaluated.portfolio
    weights = np.asarray(cube.weights)
    rows = []
    for rank, scenario in enumerate(found.worst_scenario):
        by_line = found.worst_line_loss[rank]
        order = sorted(range(len(portfolio.lines)), key=lambda n: (-abs(float(by_line[n])), portfolio.lines[n].key))
        shock = np.asarray(cube.shocks[int(scenario)])
        moves = sorted(zip(factors, np.expm1(shock), strict=True), key=lambda m: (-abs(float(m[1])), m[0]))
        gone = [info.account_id for n, info in enumerate(portfolio.accounts) if found.worst_liquidated[rank, n]]
        rows.append(
            {
                "portfolio_id": portfolio.portfolio_id,
                "rank": rank + 1,
                "scenario": int(scenario),
                "weight": float(weights[scenario]),
                "loss_usd": float(found.worst_loss[rank]),
                "drivers": json.dumps(
                    [{"key": portfolio.lines[n].key, "loss_usd": float(by_line[n])} for n in order[:_DRIVERS]]
                ),
                "moves": json.dumps({name: float(move) for name, move in moves[:_MOVES]}),
                "liquidated": json.dumps(gone),
            }
        )
    return rows


def liquidation_price_rows(
    evaluated: Evaluated, moves: Sequence[Mapping[str, Moves]], subjects: Sequence[Sequence[Subject]]
) -> list[Row]:
    """Rows of `liquidation_prices`: `moves` by mover and `subjects` of every account of the portfolio.

    A subject of kind `factor` has a row only where its price moves more of the account than each of its markets alone.
    """
    portfolio, figures = evaluated
    assert figures is not None
    rows = []
    for account, info in enumerate(portfolio.accounts):
        finite = bool(figures.account_is_finite[account])
        by_mover = moves[account]
        gone = next((found.liquidatable_now for found in by_mover.values()), None)
        if gone is None:
            gone = _is_gone(info, float(figures.native.equity[account]), float(figures.native.maintenance[account]))
        movers = [_mover(subject, by_mover) for subject in subjects[account]]
        marks: dict[str, set[str]] = defaultdict(set)
        for subject, mover in zip(subjects[account], movers, strict=True):
            if subject.kind == "position":
                marks[subject.factor].add(mover)
        for subject, mover in zip(subjects[account], movers, strict=True):
            found = by_mover.get(mover, Moves(gone, None, None)) if finite else Moves(False, None, None)
            if subject.kind == "factor" and all(by_mover.get(mark) == by_mover.get(mover) for mark in marks[mover]):
                continue
            nothing = found.down is None and found.up is None
            prices = _moved(subject.price, found.down), _moved(subject.price, found.up)
            row: Row = {
                "portfolio_id": portfolio.portfolio_id,
                "account_id": info.account_id,
                "venue": info.venue,
                "subject": subject.name,
                "kind": subject.kind,
                "factor": mover,
                "status": "calculation" if not finite else "liquidatable_now" if gone else "none" if nothing else "ok",
                "price": subject.price,
                "log_move_down": found.down,
                "price_down": prices[0],
                "log_move_up": found.up,
                "price_up": prices[1],
                "reported_liquidation_price": subject.reported,
            }
            if subject.reported is not None and subject.price is not None:
                own = prices[0] if subject.reported <= subject.price else prices[1]
                row["difference"] = None if own is None else own - subject.reported
            rows.append(row)
    return rows


def _mover(subject: Subject, moves: Mapping[str, Moves]) -> str:
    return subject.mark if subject.mark is not None and subject.mark in moves else subject.factor


def _moved(price: float | None, log_move: float | None) -> float | None:
    return None if price is None or log_move is None else price * math.exp(log_move)


def histogram_rows(evaluated: Evaluated, found: Detail) -> list[Row]:
    """Rows of `loss_histogram`."""
    return [
        {
            "portfolio_id": evaluated.portfolio.portfolio_id,
            "bin": number,
            "loss_from_usd": float(found.histogram_edge[number]),
            "loss_to_usd": float(found.histogram_edge[number + 1]),
            "probability": float(probability),
        }
        for number, probability in enumerate(found.histogram_probability)
    ]
