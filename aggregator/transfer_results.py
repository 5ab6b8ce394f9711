"""Result columns and rows of the transfer model: what can arrive in time, and what it is worth that it can."""

from __future__ import annotations

import json
import math

import numpy as np

from .policy import Requirement
from .portfolio import PackedPortfolio
from .requirement import effective_requirement, initial_requirement
from .results import Evaluated, Row
from .transfer_detail import TransferDetail
from .transfer_run import TransferLaw, Transfers
from .unified_results import is_measured, unified_equity

_NOTICED = 1e-6
"""A failure that raises the TCES by less than this share of it costs nothing but the solver's last digits."""


ALL_ROUTES = "all routes"
"""The failure of everything at once; binding where nothing arrives in any scenario that matters."""


def transfer_columns(evaluated: Evaluated, found: Transfers | None, policy: Requirement) -> Row:
    """Columns of `portfolio_margin`; the requirement is that of the whole stack with the fungibility found.

    Empty without a transfer model or figures: then the offset cap alone limits the benefit.
    """
    portfolio, headline = evaluated
    if found is None or headline is None or headline.unified is None or not is_measured(headline):
        return {}
    unified, figures = headline.unified, found.figures
    ideal, silo = np.asarray(unified.components.requirement[-1]), np.asarray(unified.silo)
    effective = [
        float(effective_requirement(i, s, offset_cap=policy.offset_cap, fungibility=phi).requirement)
        for i, s, phi in zip(ideal, silo, figures.fungibility, strict=True)
    ]
    saving, whole = float(silo[0] - ideal[0]), effective[0]
    apart = float(figures.siloed[0] - figures.pooled[0])
    nothing_arrives = bool(found.network.routes) and apart > 0.0 and float(figures.fungibility[0]) < 1e-9
    worst = int(np.argmax(figures.without_channel)) if len(figures.without_channel) else 0
    rise = float(figures.without_channel[worst] - figures.constrained[0]) if len(figures.without_channel) else 0.0
    binds = rise > _NOTICED * float(figures.constrained[0])
    some = float(figures.p_uncovered) > 0.0
    return {
        "requirement_effective_usd": whole,
        "requirement_initial_usd": float(initial_requirement(whole, effective[-1], scale=policy.initial_scale)),
        "offset_share": min(policy.offset_cap, float(figures.fungibility[0])),
        "offset_benefit_usd": float(silo[0]) - whole,
        "margin_efficiency": whole / float(silo[0]) if silo[0] > 0 else None,
        "health_unified": unified_equity(portfolio, unified, policy) / whole if whole > 0 else None,
        "deadlines": found.deadlines,
        "transfer_method": found.method,
        "es_99_fungible_usd": float(figures.pooled[0]),
        "es_99_transfer_usd": float(figures.constrained[0]),
        "es_99_transfer_gap_usd": float(figures.gap[0]),
        "es_99_transfer_error_usd": None if math.isnan(figures.error) else float(figures.error),
        "es_99_alone_usd": float(figures.siloed[0]),
        "fungibility_99": float(figures.fungibility[0]),
        "fungibility_995": float(figures.fungibility[1]),
        "usable_saving": (float(silo[0]) - whole) / saving if saving > 0 else None,
        "p_uncovered": float(figures.p_uncovered),
        "uncovered_mean_usd": float(figures.uncovered_mean) if some else None,
        "uncovered_es_99_usd": float(figures.uncovered_shortfall[0]),
        "uncovered_transit_usd": float(figures.transit_mean),
        "stranded_usd": float(figures.stranded) if some else None,
        "top_up_usd": math.fsum(np.asarray(figures.top_up).tolist()),
        "top_up_total_usd": float(figures.top_up_total),
        "binding_failure": ALL_ROUTES if nothing_arrives else found.channels[worst] if binds else None,
        "binding_failure_usd": apart if nothing_arrives else rise if binds else None,
    }


def route_point_rows(portfolio: PackedPortfolio, detail: TransferDetail) -> list[Row]:
    """Rows of `nodes`: every node, withdrawal limit and broker of a portfolio."""
    network, figures = detail.transfers.network, detail.transfers.figures
    moves = np.zeros(len(network.points))
    for route, amount in zip(network.routes, detail.move_now, strict=True):
        moves[route.source] -= amount
        moves[route.target] += amount * (1.0 - route.fee)
    rows = []
    for point, name in enumerate(network.points):
        row: Row = {
            "portfolio_id": portfolio.portfolio_id,
            "point": name,
            "kind": network.kinds[point],
            "placement_usd": float(figures.collateral[point]),
        }
        if point < network.nodes:
            reactive, broken = detail.prefunding, float(detail.hedge_break[point])
            needs = None if reactive is None or math.isinf(reactive.total) else reactive.total * detail.split[point]
            row |= {
                "venue": network.venues[point],
                "equity_usd": float(detail.node_equity[point]),
                "surplus_usd": detail.now[point].surplus,
                "withdrawable_usd": detail.now[point].withdrawable,
                "es_99_alone_usd": float(figures.alone[point]),
                "p_deficit": float(figures.p_deficit[point]),
                "top_up_usd": float(figures.top_up[point]),
                "buffer_value": float(figures.buffer_value[point]),
                "prefunding_usd": None if needs is None else float(needs),
                "reactive_buffer_usd": None if needs is None or reactive is None else needs * reactive.buffer_share,
                "hedge_break_usd": None if math.isnan(broken) else broken,
                "move_now_usd": float(moves[point]),
            }
        rows.append(row)
    return rows


def route_rows(portfolio: PackedPortfolio, detail: TransferDetail, law: TransferLaw) -> list[Row]:
    """Rows of `routes`: every route of a portfolio, every channel one of them leads through, and all channels at once.

    What a failure asks for is a bound: the best placement of before stays where it is.
    """
    network, figures = detail.transfers.network, detail.transfers.figures
    rows: list[Row] = []
    for number, route in enumerate(network.routes):
        rows.append(
            {
                "portfolio_id": portfolio.portfolio_id,
                "kind": "route",
                "name": route.name,
                "source": network.points[route.source],
                "target": network.points[route.target],
                "asset": route.asset or None,
                "through": json.dumps(route.through),
                "median_hours": route.median_hours,
                "p99_hours": route.p99_hours,
                "capacity_usd": None if math.isinf(route.capacity_usd) else route.capacity_usd,
                "fee": route.fee,
                "p_open": float(figures.route_open[number]),
                "value": float(figures.route_value[number]),
                "worst_flow_usd": float(detail.worst_flow[number]),
                "move_now_usd": float(detail.move_now[number]),
                "without_usd": float(figures.without_route[number]),
                "without_increase_usd": float(figures.without_route[number] - figures.constrained[0]),
            }
        )
    used = {name for route in network.routes for name in route.through}
    failures = [
        ("channel", name, float(figures.channel_up[at]), float(figures.without_channel[at]))
        for at, name in enumerate(law.channels)
        if name in used
    ]
    failures.append(("all", ALL_ROUTES, math.nan, float(figures.siloed[0])))
    for kind, name, chance, without in failures:
        rows.append(
            {
                "portfolio_id": portfolio.portfolio_id,
                "kind": kind,
                "name": name,
                "p_open": None if math.isnan(chance) else chance,
                "without_usd": without,
                "without_increase_usd": without - float(figures.constrained[0]),
            }
        )
    return rows
