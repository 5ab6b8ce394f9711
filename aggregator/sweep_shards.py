"""The portfolio shards of a sweep: headline, accounts, nodes, requirement, stresses and reconciliation of everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .differences import Native, reconciliation_rows
from .engine import Detail, Headline, evaluate_headlines
from .factors import Generation
from .path_results import path_account_columns, path_failures, path_portfolio_columns
from .reconciliation import reconciliation_findings
from .results import Evaluated, account_rows, calculation_failures, node_rows, portfolio_row
from .stress_results import held_by, stress_rows
from .sweep_transfers import paths_and_transfers
from .sweep_work import SweepWork, figures_in_detail, shard_of, write_rows
from .transfer_detail import TransferDetail
from .transfer_results import transfer_columns
from .unified_results import (
    node_columns,
    requirement_columns,
    requirement_failures,
    requirement_rows,
    unmeasured_failures,
)


def write_portfolio_shards(
    work: SweepWork,
) -> tuple[dict[str, tuple[Headline, Detail]], dict[str, TransferDetail]]:
    """Write every portfolio shard that is not there yet; figures in detail by portfolio id where they were computed.

    A book that is shown in detail as a whole is computed in detail at once: one pass, one compiled program.
    """
    written = work.store.shards_written(work.run_id)
    at_once = len(work.book.portfolios) <= work.run.detail_top
    in_detail: dict[str, tuple[Headline, Detail]] = {}
    details: dict[str, TransferDetail] = {}
    for shard in range(work.shards):
        work.say("portfolios", shard, work.shards)
        if shard in written:
            continue
        members = [p for p in work.book.portfolios if shard_of(p.portfolio_id, work.shards) == shard]
        if at_once:
            both = figures_in_detail(work, members)
            in_detail |= both
            headlines = [both[p.portfolio_id][0] if p.portfolio_id in both else None for p in members]
        else:
            headlines = evaluate_headlines(
                members,
                work.generation.factors,
                work.cube,
                devices=work.devices,
                policy=work.policy,
                venues=work.venues,
            )
        evaluated = [Evaluated(p, h) for p, h in zip(members, headlines, strict=True)]
        paths, moved = paths_and_transfers(work, evaluated, details if at_once else None)
        stressed = bool(work.generation.stressed)
        rows = {
            "portfolio_margin": [
                portfolio_row(e)
                | requirement_columns(e, work.policy, work.rates)
                | transfer_columns(e, of_portfolio, work.policy)
                | path_portfolio_columns(e, walked)
                for e, walked, of_portfolio in zip(evaluated, paths, moved, strict=True)
            ],
            "account_margin": [
                row | more
                for e, walked in zip(evaluated, paths, strict=True)
                for row, more in zip(account_rows(e), path_account_columns(e, walked), strict=True)
            ],
            "node_margin": [
                row | more
                for e in evaluated
                for row, more in zip(node_rows(e), node_columns(e, work.policy, work.rates), strict=True)
            ],
            "requirement": [row for e in evaluated for row in requirement_rows(e, work.grid_labels, stressed=stressed)],
            "stress": _stress_rows(work, evaluated),
            "reconciliation": reconciliation_rows([_native(e) for e in evaluated], work.evidence, work.bound),
        }
        found = [
            *calculation_failures(evaluated),
            *path_failures(evaluated, paths),
            *requirement_failures(evaluated),
            *unmeasured_failures(evaluated, _without_market(work.generation)),
            *reconciliation_findings(rows["reconciliation"]),
        ]
        rows["failures"] = [asdict(failure) for failure in found]
        write_rows(work, shard, rows)
    work.say("portfolios", work.shards, work.shards)
    return in_detail, details


def _stress_rows(work: SweepWork, evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
    if work.library is None:
        return []
    rows, factors = work.cube.rows, work.generation.factors
    return [
        row
        for e in evaluated
        for row in stress_rows(e, work.library, work.stresses, held_by(e.portfolio, rows, factors))
    ]


def _native(evaluated: Evaluated) -> Native:
    portfolio, figures = evaluated
    if figures is None:
        return Native(portfolio, None, ())
    return Native(portfolio, figures.native, np.asarray(figures.account_is_finite).tolist())


def _without_market(generation: Generation) -> frozenset[str]:
    """Price factors without market figures, where others have some; without any the add-ons are left out as a whole."""
    if not generation.sizes:
        return frozenset()
    return frozenset(f for f in generation.factors if f.startswith("price:") and f not in generation.sizes)
