"""The last shard of a sweep: what only the portfolios with the largest pooled requirement have, and the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .engine import Cube, Detail, Headline
from .errors import Failure
from .factors import Generation
from .greeks import greeks_by_underlying, row_sensitivities
from .liquidation_price import Moves, account_subjects, liquidation_moves
from .portfolio import PackedPortfolio
from .results import Evaluated, allocation_rows, histogram_rows, liquidation_price_rows, worst_rows
from .reverse_results import reverse_stress_rows
from .reverse_stress import nearest_moves, weighted_covariance
from .sweep_transfers import paths_and_transfers
from .sweep_work import SweepWork, figures_in_detail, write_rows
from .transfer_detail import TransferDetail
from .transfer_results import route_point_rows, route_rows


def write_detail_shard(
    work: SweepWork,
    in_detail: Mapping[str, tuple[Headline, Detail]],
    details: dict[str, TransferDetail],
    failures: Sequence[Failure],
) -> None:
    """The last shard: detail of the portfolios with the largest pooled requirement, the factors, and the failures of
    the inputs.
    """
    if work.shards in work.store.shards_written(work.run_id):
        return
    rows = work.store.rows_in_progress("portfolio_margin", work.run_id).to_pylist()
    rows = [row for row in rows if row["es_99_pooled_usd"] is not None]
    rows.sort(key=lambda r: (-r["es_99_pooled_usd"], r["portfolio_id"]))
    chosen = {row["portfolio_id"] for row in rows[: work.run.detail_top]}
    work.say("details", 0, 1)
    missing = [p for p in work.book.portfolios if p.portfolio_id in chosen - in_detail.keys()]
    found = {**in_detail, **figures_in_detail(work, missing)}
    sensitivities = row_sensitivities(work.cube.rows, work.generation.factors)
    names = (
        "allocation",
        "scenarios_worst",
        "greeks",
        "loss_histogram",
        "liquidation_prices",
        "reverse_stress",
        "nodes",
        "routes",
    )
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for portfolio in work.book.portfolios:
        if portfolio.portfolio_id not in chosen:
            continue
        headline, detail = found[portfolio.portfolio_id]
        evaluated = Evaluated(portfolio, headline)
        tables["allocation"] += allocation_rows(evaluated, detail)
        tables["scenarios_worst"] += worst_rows(evaluated, detail, work.cube, work.generation.factors)
        tables["loss_histogram"] += histogram_rows(evaluated, detail)
        tables["greeks"] += _greek_rows(portfolio, sensitivities)
    shown = [p for p in work.book.portfolios if p.portfolio_id in chosen]
    if work.transfer is not None:
        without = [Evaluated(p, found[p.portfolio_id][0]) for p in shown if p.portfolio_id not in details]
        paths_and_transfers(work, without, details)
        for portfolio in shown:
            if portfolio.portfolio_id in details:
                tables["nodes"] += route_point_rows(portfolio, details[portfolio.portfolio_id])
                tables["routes"] += route_rows(portfolio, details[portfolio.portfolio_id], work.transfer)
    moves = liquidation_moves(shown, work.generation.factors, work.cube, devices=work.devices)
    tables["liquidation_prices"] = _liquidation_price_rows(work, shown, found, moves)
    tables["reverse_stress"] = _reverse_stress_rows(work, shown, found, moves)
    tables["factors"] = _factor_rows(work.generation, work.cube)
    tables["failures"] = [asdict(failure) for failure in failures]
    write_rows(work, work.shards, tables)
    work.say("details", 1, 1)


def _greek_rows(portfolio: PackedPortfolio, sensitivities: Any) -> list[dict[str, Any]]:
    return [
        {
            "portfolio_id": portfolio.portfolio_id,
            "underlying": name,
            "delta_usd": delta,
            "gamma_usd": gamma,
            "vega_usd": vega,
            "theta_usd": theta,
        }
        for name, (delta, gamma, vega, theta) in greeks_by_underlying(portfolio.legs, sensitivities).items()
    ]


def _liquidation_price_rows(
    work: SweepWork,
    portfolios: Sequence[PackedPortfolio],
    figures: Mapping[str, tuple[Headline, Detail]],
    moves: Sequence[Sequence[Mapping[str, Moves]]],
) -> list[dict[str, Any]]:
    rows = []
    for portfolio, of_portfolio in zip(portfolios, moves, strict=True):
        ids = [info.account_id for info in portfolio.accounts]
        subjects = [account_subjects(work.evidence.market(account_id), account_id) for account_id in ids]
        evaluated = Evaluated(portfolio, figures[portfolio.portfolio_id][0])
        rows += liquidation_price_rows(evaluated, of_portfolio, subjects)
    return rows


def _reverse_stress_rows(
    work: SweepWork,
    portfolios: Sequence[PackedPortfolio],
    figures: Mapping[str, tuple[Headline, Detail]],
    moves: Sequence[Sequence[Mapping[str, Moves]]],
) -> list[dict[str, Any]]:
    factors = work.generation.factors
    shocks, weights = np.asarray(work.cube.shocks), np.asarray(work.cube.weights)
    covariance = weighted_covariance(shocks, weights)
    nearest = nearest_moves(portfolios, factors, work.cube, covariance, devices=work.devices)
    rows = []
    for portfolio, of_portfolio, alone in zip(portfolios, nearest, moves, strict=True):
        evaluated = Evaluated(portfolio, figures[portfolio.portfolio_id][0])
        rows += reverse_stress_rows(evaluated, of_portfolio, alone, factors, shocks, weights)
    return rows


def _factor_rows(generation: Generation, cube: Cube) -> list[dict[str, Any]]:
    shocks, weights = np.asarray(cube.shocks), np.asarray(cube.weights)
    # Sums down the scenarios, not a matrix product: its order of additions is the library's own choice.
    mean = np.sum(weights[:, None] * shocks, axis=0)
    spread = np.sqrt(np.maximum(np.sum(weights[:, None] * (shocks - mean) ** 2, axis=0), 0.0))
    return [
        {
            "factor": name,
            "std_horizon": float(spread[number]),
            "filled_share": generation.origins[name].filled_share,
            "source": generation.origins[name].source,
        }
        for number, name in enumerate(generation.factors)
    ]
