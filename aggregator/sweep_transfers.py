"""Paths and the transfer model of some portfolios of a sweep, in groups whose node scenarios fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

from .node_scenarios import NodeRules, NodeScenarios, node_scenarios
from .path_margin import PathFigures, funded_legs, path_figures
from .portfolio import PackedPortfolio
from .results import Evaluated
from .sweep_work import SweepWork
from .transfer_detail import TransferDetail, transfer_detail
from .transfer_run import TRACED_PORTFOLIOS, TransferLaw, Transfers, profit_leaves, transfers


def paths_and_transfers(
    work: SweepWork, evaluated: Sequence[Evaluated], details: dict[str, TransferDetail] | None
) -> tuple[list[PathFigures | None], list[Transfers | None]]:
    """Paths and the transfer model of some portfolios, in groups whose node scenarios fit in memory.

    What those scenarios alone can tell in detail goes into `details`, by portfolio id, unless that is None.
    """
    step = len(evaluated) if work.transfer is None else TRACED_PORTFOLIOS
    paths: list[PathFigures | None] = []
    moved: list[Transfers | None] = []
    for first in range(0, len(evaluated), max(step, 1)):
        group = evaluated[first : first + step]
        rules = None if work.transfer is None else _node_rules(work, work.transfer, group)
        by_path = work.transfer is not None and work.transfer.deadlines == "path"
        walked = _path_figures(work, [e.portfolio for e in group], rules if by_path else None)
        nodes: list[NodeScenarios | None] = [None if w is None else w.nodes for w in walked]
        if work.transfer is None or rules is None:
            moved += [None] * len(group)
        else:
            if not by_path:
                members = [e.portfolio for e in group]
                nodes = node_scenarios(members, work.generation.factors, work.cube, rules, devices=work.devices)
            found = transfers([e.portfolio for e in group], nodes, work.transfer, devices=work.devices)
            for e, of_portfolio, of_nodes in zip(group, found, nodes, strict=True):
                if details is not None and of_portfolio is not None and of_nodes is not None:
                    details[e.portfolio.portfolio_id] = transfer_detail(e, of_portfolio, of_nodes, work.transfer, rules)
            moved += found
        # Node scenarios are large and used up; what is kept of a path are its sums.
        paths += [None if w is None else w._replace(nodes=None) for w in walked]
    return paths, moved


def _node_rules(work: SweepWork, law: TransferLaw, evaluated: Sequence[Evaluated]) -> NodeRules:
    """What the nodes of some portfolios are judged by; a portfolio without figures has none and is asked for none."""
    requirements = {}
    for portfolio, figures in evaluated:
        for number, info in enumerate(portfolio.accounts):
            known = figures is not None and figures.account_is_finite[number]
            native = figures.native if figures is not None and known else None
            requirements[info.account_id] = (
                (0.0, 0.0) if native is None else (float(native.initial[number]), float(native.maintenance[number]))
            )
    units = _unit_exponents(work, [e.portfolio for e in evaluated])
    rules = law.routes
    return NodeRules(units, requirements, rules.operator.warning_health, profit_leaves(rules), work.leaving)


def _unit_exponents(work: SweepWork, members: Sequence[PackedPortfolio]) -> dict[str, dict[str, float]]:
    return {
        info.account_id: work.evidence.market(info.account_id).exponents(info.unit)
        for portfolio in members
        for info in portfolio.accounts
    }


def _path_figures(
    work: SweepWork, members: Sequence[PackedPortfolio], nodes: NodeRules | None
) -> list[PathFigures | None]:
    if work.paths is None:
        return [None] * len(members)
    factors, rows = work.generation.factors, work.cube.rows
    units = _unit_exponents(work, members)
    funding = [funded_legs(portfolio, rows, factors, work.policy, units) for portfolio in members]
    return path_figures(members, factors, rows, work.paths, funding, devices=work.devices, nodes=nodes)
