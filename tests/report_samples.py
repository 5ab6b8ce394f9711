"""Runs whose reports are tested: one desk, many, one with hostile names, one without anything.

They are small desks simulated here with plain NumPy, so that their figures belong together: contributions add up to the
pooled expected shortfall, the histogram is the one that VaR and ES come from. Run as a program
(`python tests/report_samples.py FOLDER`) this file writes the sample reports into a folder, to be looked at.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aggregator.report import write_report
from aggregator.schema.results import RESULTS

RUN = "20240630T120000Z-0a1b2c3d"
SCENARIOS = 4096
SEED = 20240630
HOSTILE = "<script>alert(1)</script>"
HOSTILE_NAMES = (
    HOSTILE,
    "\"'><img src=x onerror=alert(1)>",
    "</title></svg></style><iframe src='https://evil.example/'>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript://alert(1)",
    "line\nbreak\x00\x1b and \u202egnp.exe",
    "x" * 400,
    "&lt;b&gt;",
)

VENUES = ("aave_v3", "binance", "deribit", "derive", "hyperliquid")
ASSETS = ("BTC", "ETH", "SOL", "USDC")
BATCHES = 8
PATH_STEPS = 4
FARTHEST = 10.0
OFFSET_CAP = 0.8
CONNECTED = ("binance", "derive", "hyperliquid")
"""Venues between which collateral passes in the samples."""
STRESSES: tuple[tuple[str, str, bool, dict[str, float]], ...] = (
    *((f"fall {k} %", f"Everything falls by {k} %", k == 30, dict.fromkeys(("BTC", "ETH", "SOL"), -k / 100))
      for k in range(5, 55, 5)),
    ("melt up", "Everything rises by 45 %", False, dict.fromkeys(("BTC", "ETH", "SOL"), 0.45)),
    ("spread", "BTC rises by 30 %, all others fall by 30 %", False, {"BTC": 0.3, "ETH": -0.3, "SOL": -0.3}),
    ("depeg", "USDC loses 5 %", False, {"USDC": -0.05}),
)  # fmt: skip
DAILY_VOL = {"BTC": 0.028, "ETH": 0.036, "SOL": 0.052, "USDC": 0.0004}


def _tail_mean(losses: np.ndarray, confidence: float, of: np.ndarray | None = None) -> float:
    """Mean over the worst scenarios of `losses`, of the losses themselves or of `of` (its Euler contribution)."""
    count = round(len(losses) * (1 - confidence))
    worst = np.argsort(-losses, kind="stable")[:count]
    return float((losses if of is None else of)[worst].mean())


def _quantile(losses: np.ndarray, confidence: float) -> float:
    return float(np.sort(losses)[::-1][round(len(losses) * (1 - confidence)) - 1])


def drawn_portfolio(name: str, rng: np.random.Generator, size_usd: float) -> dict[str, list[dict[str, Any]]]:
    """Result rows of one complete portfolio of about `size_usd` over all venues and assets."""
    common = rng.standard_t(4, SCENARIOS) / np.sqrt(2)
    moves = {
        asset: np.expm1(DAILY_VOL[asset] * (0.85 * common + 0.53 * rng.standard_t(4, SCENARIOS) / np.sqrt(2)))
        for asset in ASSETS
    }
    accounts = [(venue, f"{venue}:{name}-{k}") for venue in VENUES for k in range(1 if venue == "derive" else 2)]
    positions: list[tuple[str, str, str, float]] = []
    for number, (venue, account) in enumerate(accounts):
        positions.append((venue, account, "USDC", size_usd * float(rng.uniform(0.05, 0.2))))
        for asset in ASSETS[:3]:
            if rng.uniform() < 0.75:
                sign = 1 if (number + len(asset)) % 2 else -1
                positions.append((venue, account, asset, sign * size_usd * float(rng.lognormal(-2.2, 0.8))))
    losses = [-value * moves[asset] for _, _, asset, value in positions]
    total = np.sum(losses, axis=0)
    by_account = {
        a: np.sum([x for x, p in zip(losses, positions, strict=True) if p[1] == a], axis=0) for _, a in accounts
    }
    equity = {a: sum(p[3] for p in positions if p[1] == a and p[2] == "USDC") for _, a in accounts}
    maintenance = {a: 0.03 * sum(abs(p[3]) for p in positions if p[1] == a) for _, a in accounts}
    gross = {a: sum(abs(p[3]) for p in positions if p[1] == a) for _, a in accounts}
    liquidated = {a: by_account[a] > equity[a] - maintenance[a] for _, a in accounts}
    health = {a: equity[a] / maintenance[a] for _, a in accounts}
    weakest = min(health, key=lambda a: health[a])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in RESULTS}
    isolated = {c: sum(max(_tail_mean(x, c), 0.0) for x in losses) for c in (0.99, 0.995)}
    node_losses = list(by_account.values())
    silo = {c: sum(max(_tail_mean(x, c), 0.0) for x in node_losses) for c in (0.99, 0.995)}
    pooled = {c: _tail_mean(total, c) for c in (0.99, 0.995)}
    errors = {
        (measure, c): float(np.std([of(part, c) for part in np.split(total, BATCHES)], ddof=1) / np.sqrt(BATCHES))
        for measure, of in (("var", _quantile), ("es", _tail_mean))
        for c in (0.99, 0.995)
    }
    requirement = [_requirement(name, a, by_account[a], [p for p in positions if p[1] == a]) for _, a in accounts]
    whole = _requirement(name, "unified", total, positions)
    alone = sum(row["requirement_usd"] for row in requirement)
    ideal = whole["requirement_usd"]
    whole["es_current_error_usd"] = errors["es", 0.99]
    for row in (*requirement, whole):
        rows["requirement"] += [row, {**row, "level": "initial"}]
    transfers = _transfers(name, accounts, by_account, equity, maintenance)
    rows["nodes"], rows["routes"] = transfers.nodes, transfers.routes
    share = min(OFFSET_CAP, transfers.columns["fungibility_99"])
    effective = ideal if ideal >= alone else alone - share * (alone - ideal)
    rows["stress"] = [_stress(name, stress, positions, equity, maintenance) for stress in STRESSES]
    locked = {a: 1.6 * maintenance[a] for _, a in accounts}
    funding = {a: -0.02 * locked[a] if venue == "hyperliquid" else None for venue, a in accounts}
    passage = _first_passages({a: by_account[a] for a in equity}, {a: equity[a] - maintenance[a] for a in equity})
    paths = {a: _path_columns(hours) for a, hours in passage.items()}
    rows["reverse_stress"] = _nearest_moves(
        name, accounts, positions, {a: equity[a] - maintenance[a] for a in equity}, moves
    )
    likeliest = max(liquidated, key=lambda account: float(np.mean(liquidated[account])))
    rows["portfolio_margin"].append(
        {
            "portfolio_id": name,
            "complete": True,
            "accounts_left_out": "[]",
            "left_out_gross_usd": 0.0,
            "status": "ok",
            "accounts": len(accounts),
            "positions": len(positions),
            "equity_usd": sum(equity.values()),
            "gross_notional_usd": sum(gross.values()),
            "native_initial_usd": 1.6 * sum(maintenance.values()),
            "native_maintenance_usd": sum(maintenance.values()),
            "health_minimum": health[weakest],
            "health_minimum_account": weakest,
            "p_liquidation_any_at_horizon": float(np.mean(np.any(list(liquidated.values()), axis=0))),
            "p_liquidation_largest": float(np.mean(liquidated[likeliest])),
            "p_liquidation_largest_account": likeliest,
            "mean_loss_usd": float(total.mean()),
            "worst_loss_usd": float(total.max()),
            "var_99_pooled_usd": _quantile(total, 0.99),
            "es_99_pooled_usd": pooled[0.99],
            "var_995_pooled_usd": _quantile(total, 0.995),
            "es_995_pooled_usd": pooled[0.995],
            "var_99_silo_sum_usd": sum(_quantile(x, 0.99) for x in by_account.values()),
            "es_99_silo_sum_usd": silo[0.99],
            "var_995_silo_sum_usd": sum(_quantile(x, 0.995) for x in by_account.values()),
            "es_995_silo_sum_usd": silo[0.995],
            "es_99_isolated_sum_usd": isolated[0.99],
            "es_995_isolated_sum_usd": isolated[0.995],
            "offset_within_nodes_99_usd": isolated[0.99] - silo[0.99],
            "offset_across_nodes_99_usd": silo[0.99] - pooled[0.99],
            "pooled_to_silo_99": pooled[0.99] / silo[0.99],
            "equity_to_es_99": sum(equity.values()) / pooled[0.99],
            "var_99_pooled_error_usd": errors["var", 0.99],
            "es_99_pooled_error_usd": errors["es", 0.99],
            "var_995_pooled_error_usd": errors["var", 0.995],
            "es_995_pooled_error_usd": errors["es", 0.995],
            "unified_equity_usd": sum(equity.values()),
            "requirement_silo_usd": alone,
            "requirement_ideal_usd": ideal,
            "requirement_effective_usd": effective,
            "requirement_initial_usd": 1.25 * effective,
            "offset_share": share,
            "offset_benefit_usd": alone - effective,
            "margin_efficiency": effective / alone,
            "health_unified": sum(equity.values()) / effective,
            "unmeasured_usd": whole["unmeasured_usd"],
            "capital_cost_usd": sum(0.05 * locked[a] + (funding[a] or 0.0) for _, a in accounts),
            **_path_columns(np.min(list(passage.values()), axis=0)),
            **transfers.columns,
            "usable_saving": (alone - effective) / (alone - ideal) if alone > ideal else None,
        }
    )
    for venue, account in accounts:
        reports = venue in ("binance", "hyperliquid")
        rows["account_margin"].append(
            {
                "portfolio_id": name,
                "account_id": account,
                "node": account,
                "venue": venue,
                "margin_mode": "lending" if venue == "aave_v3" else "cross",
                "status": "ok",
                "unit": "USDC",
                "unit_price_usd": 1.0,
                "equity": equity[account],
                "initial_requirement": 1.6 * maintenance[account],
                "maintenance_requirement": maintenance[account],
                "health": health[account],
                "trigger": 1.05 if venue == "binance" else 1.0,
                "liquidatable": False,
                "near_boundary": False,
                "p_liquidation_at_horizon": float(np.mean(liquidated[account])),
                "equity_usd": equity[account],
                "gross_notional_usd": gross[account],
                "reported_equity": equity[account] if reports else None,
                "reported_maintenance_margin": maintenance[account] * 1.000021 if reports else None,
                "reported_parts": False if reports else None,
                "equity_difference": 0.0 if reports else None,
                "maintenance_difference": -0.000021 * maintenance[account] if reports else None,
                **paths[account],
            }
        )
        rows["reconciliation"] += [
            _compared(name, venue, account, "equity", equity[account], equity[account] if reports else None),
            _compared(
                name, venue, account, "maintenance_margin", maintenance[account],
                maintenance[account] * 1.000021 if reports else None,
            ),
        ]  # fmt: skip
        rows["node_margin"].append(
            {
                "portfolio_id": name,
                "node": account,
                "venue": venue,
                "equity_usd": equity[account],
                "var_99_usd": _quantile(by_account[account], 0.99),
                "es_99_usd": _tail_mean(by_account[account], 0.99),
                "var_995_usd": _quantile(by_account[account], 0.995),
                "es_995_usd": _tail_mean(by_account[account], 0.995),
                "requirement_usd": next(r["requirement_usd"] for r in requirement if r["scope"] == account),
                "locked_usd": locked[account],
                "opportunity_cost_usd": 0.05 * locked[account],
                "borrow_cost_usd": None,
                "funding_cost_usd": funding[account],
                "uncosted_usd": 0.0,
            }
        )
    for (venue, account, asset, value), own in zip(positions, losses, strict=True):
        rows["allocation"].append(
            {
                "portfolio_id": name,
                "level": "position",
                "key": f"{account} {asset}-PERP" if asset != "USDC" else f"{account} USDC",
                "venue": venue,
                "asset": asset,
                "account_id": account,
                "value_usd": value,
                "es_99_usd": _tail_mean(total, 0.99, own),
                "es_995_usd": _tail_mean(total, 0.995, own),
                "es_99_isolated_usd": _tail_mean(own, 0.99),
                "es_995_isolated_usd": _tail_mean(own, 0.995),
                "var_99_isolated_usd": _quantile(own, 0.99),
                "var_995_isolated_usd": _quantile(own, 0.995),
            }
        )
    for rank, scenario in enumerate(np.argsort(-total, kind="stable")[:10].tolist(), start=1):
        drivers = sorted(
            (
                {"key": f"{p[1]} {p[2]}-PERP", "loss_usd": float(x[scenario])}
                for p, x in zip(positions, losses, strict=True)
            ),
            key=lambda driver: -float(str(driver["loss_usd"])),
        )
        rows["scenarios_worst"].append(
            {
                "portfolio_id": name,
                "rank": rank,
                "scenario": scenario,
                "weight": 1 / SCENARIOS,
                "loss_usd": float(total[scenario]),
                "drivers": json.dumps(drivers[:5]),
                "moves": json.dumps(
                    {f"price:{a}": float(moves[a][scenario]) for a in ASSETS[:3]}
                    | {"vol:BTC": 0.31, "vol:ETH": 0.27, "peg:USDC": float(moves["USDC"][scenario])}
                ),
                "liquidated": json.dumps([a for _, a in accounts if liquidated[a][scenario]]),
            }
        )
    for asset in ASSETS[:3]:
        delta = sum(p[3] for p in positions if p[2] == asset)
        rows["greeks"].append(
            {
                "portfolio_id": name,
                "underlying": asset,
                "delta_usd": delta,
                "gamma_usd": 0.002 * delta,
                "vega_usd": -0.0011 * delta,
                "theta_usd": 0.0004 * delta,
            }
        )
    counts, edges = np.histogram(total, bins=60)
    for number, count in enumerate(counts.tolist()):
        rows["loss_histogram"].append(
            {
                "portfolio_id": name,
                "bin": number,
                "loss_from_usd": float(edges[number]),
                "loss_to_usd": float(edges[number + 1]),
                "probability": count / SCENARIOS,
            }
        )
    return rows


def _first_passages(losses: Mapping[str, np.ndarray], surplus: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Hours to the first verdict on each path, infinite without one: steps are the scenarios, permuted and scaled."""
    rng = np.random.default_rng(SEED)
    orders = [rng.permutation(SCENARIOS) for _ in range(PATH_STEPS)]
    hours = np.append(24.0 / PATH_STEPS * np.arange(1, PATH_STEPS + 1), np.inf)
    out = {}
    for account, own in losses.items():
        lost = np.cumsum([own[order] / np.sqrt(PATH_STEPS) for order in orders], axis=0) > surplus[account]
        out[account] = hours[np.where(lost.any(axis=0), lost.argmax(axis=0), PATH_STEPS)]
    return out


def _path_columns(hours: np.ndarray) -> dict[str, float | None]:
    """Columns of the paths from the hours to liquidation of each."""
    ended = hours[np.isfinite(hours)]
    row: dict[str, float | None] = {"p_liquidation_path": len(ended) / len(hours)}
    if len(ended):
        row["hours_to_liquidation"] = float(ended.mean())
        for share in (10, 50):
            row[f"hours_to_liquidation_{share}"] = float(np.quantile(ended, share / 100, method="inverted_cdf"))
    return row


def _nearest_moves(
    portfolio: str,
    accounts: Sequence[tuple[str, str]],
    positions: Sequence[tuple[str, str, str, float]],
    surplus: Mapping[str, float],
    moves: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Rows of `reverse_stress` of accounts whose losses are taken as linear in the log moves."""
    shocks = np.log1p(np.array([moves[asset] for asset in ASSETS]))
    covariance = np.cov(shocks, bias=True)

    def row(
        kind: str, subject: str, account: str, venue: str, values: np.ndarray, spread: np.ndarray
    ) -> dict[str, Any]:
        """The move along `spread` @ values at which what the values lose eats the surplus of the account."""
        variance = float(values @ spread @ values)
        distance = surplus[account] / np.sqrt(variance) if variance > 0 else np.inf
        found = {"portfolio_id": portfolio, "kind": kind, "subject": subject}
        if distance > FARTHEST:
            return found | {"status": "none", **({"account_id": account, "venue": venue} if kind == "account" else {})}
        found |= {"account_id": account, "venue": venue}
        if distance <= 0:
            return found | {"status": "liquidatable_now", "distance": 0.0}
        move = -spread @ values * surplus[account] / variance
        named = {f"price:{a}": float(np.expm1(x)) for a, x in zip(ASSETS, move, strict=True) if x}
        beyond = float(np.mean(-values @ (np.diag(spread.any(axis=0)) @ shocks) >= surplus[account]))
        return found | {
            "status": "ok", "distance": float(distance), "moves": json.dumps(named), "probability": beyond,
        }  # fmt: skip

    exposures = {
        a: np.array([sum(p[3] for p in positions if p[1:3] == (a, asset)) for asset in ASSETS]) for a in surplus
    }
    of_accounts = [row("account", a, a, venue, exposures[a], covariance) for venue, a in accounts]
    nearest = min(of_accounts, key=lambda found: found.get("distance", np.inf))
    whole = {"kind": "joint", "subject": "portfolio"} | (
        {} if "distance" in nearest else dict.fromkeys(("account_id", "venue"))
    )
    rows = [*of_accounts, nearest | whole]
    for number, asset in enumerate(ASSETS[:3]):
        alone = np.zeros_like(covariance)
        alone[number, number] = covariance[number, number]
        found = [row("asset", f"price:{asset}", a, venue, exposures[a], alone) for venue, a in accounts]
        rows.append(min(found, key=lambda of: of.get("distance", np.inf)))
    return rows


def _requirement(
    portfolio: str, scope: str, losses: np.ndarray, positions: Sequence[tuple[str, str, str, float]]
) -> dict[str, Any]:
    """A row of `requirement` at maintenance from the losses and (venue, account, asset, value) of a scope."""
    by_asset: dict[str, float] = {}
    for _, _, asset, value in positions:
        by_asset[asset] = by_asset.get(asset, 0.0) + value
    gross = sum(abs(p[3]) for p in positions)
    priced = sum(abs(value) for asset, value in by_asset.items() if asset != "USDC")
    current = max(_tail_mean(losses, 0.99), 0.0)
    stressed = 1.7 * current
    parts = {
        "es_blend_usd": 0.75 * current + 0.25 * stressed,
        "grid_usd": 0.12 * abs(sum(value for asset, value in by_asset.items() if asset != "USDC")),
        "stress_usd": 0.01 * priced,
        "floor_usd": 0.01 * gross,
    }
    add_ons = {
        "liquidity_usd": 1e-6 * priced**1.5 / 10,
        "concentration_usd": 0.0,
        "basis_usd": 0.002 * priced,
        "wrong_way_usd": 0.0,
        "venue_usd": 1e-5 * gross,
    }
    base = max(parts.values())
    return {
        "portfolio_id": portfolio,
        "scope": scope,
        "level": "maintenance",
        "es_current_usd": current,
        "es_horizon_usd": current,
        "es_stressed_usd": stressed,
        **parts,
        "base_usd": base,
        **add_ons,
        "requirement_usd": base + sum(add_ons.values()),
        "unmeasured_usd": abs(by_asset.get("SOL", 0.0)),
        "beyond_horizons_usd": 0.1 * abs(by_asset.get("SOL", 0.0)),
        "grid_point": "all prices at -1 of the scan" if scope == "unified" else None,
    }


class _Transfers(NamedTuple):
    """Columns of `portfolio_margin`, and rows of `nodes` and `routes`."""

    columns: dict[str, Any]
    nodes: list[dict[str, Any]]
    routes: list[dict[str, Any]]


def _transfers(
    portfolio: str,
    accounts: Sequence[tuple[str, str]],
    losses: Mapping[str, np.ndarray],
    equity: Mapping[str, float],
    maintenance: Mapping[str, float],
) -> _Transfers:
    """The transfer model where collateral passes at once and without a limit between `CONNECTED` venues, and nowhere
    else: then those nodes are one, and every other stands alone.
    """
    joined = [a for venue, a in accounts if venue in CONNECTED]
    apart = [a for venue, a in accounts if venue not in CONNECTED]

    def needs(members: Sequence[str], confidence: float) -> float:
        return max(_tail_mean(np.sum([losses[a] for a in members], axis=0), confidence), 0.0)

    everyone = [*joined, *apart]
    fungible, transfer, alone = (
        {c: sum(needs(group, c) for group in groups) for c in (0.99, 0.995)}
        for groups in ([everyone], [joined, *([a] for a in apart)], [[a] for a in everyone])
    )
    left = {a: equity[a] - losses[a] for a in everyone}
    lacking = np.maximum(-np.sum([left[a] for a in joined], axis=0), 0.0)
    lacking = lacking + np.sum([np.maximum(-left[a], 0.0) for a in apart], axis=0)
    surplus = np.sum([np.maximum(x, 0.0) for x in left.values()], axis=0)
    covered = np.sum([np.maximum(-x, 0.0) for x in left.values()], axis=0) - lacking
    short = lacking > 0
    p_deficit = {a: float(np.mean(left[a] < 0)) for a in everyone}
    top_up = {a: max(needs([a], 0.99) - equity[a], 0.0) if a in apart else 0.0 for a in everyone}
    giver, taker = max(joined, key=lambda a: equity[a]), max(joined, key=lambda a: p_deficit[a])
    sent = 0.1 * equity[giver] if giver != taker else 0.0
    share = {c: (alone[c] - transfer[c]) / (alone[c] - fungible[c]) for c in (0.99, 0.995)}
    more = alone[0.99] - transfer[0.99]
    columns = {
        "deadlines": "path",
        "transfer_method": "closed_form",
        "es_99_fungible_usd": fungible[0.99],
        "es_99_transfer_usd": transfer[0.99],
        "es_99_transfer_gap_usd": 1e-9 * transfer[0.99],
        "es_99_alone_usd": alone[0.99],
        "fungibility_99": share[0.99],
        "fungibility_995": share[0.995],
        "p_uncovered": float(short.mean()),
        "uncovered_mean_usd": float(lacking[short].mean()) if short.any() else None,
        "uncovered_es_99_usd": _tail_mean(lacking, 0.99),
        "uncovered_transit_usd": float(lacking.mean()),
        "stranded_usd": float((surplus - covered)[short].mean()) if short.any() else None,
        "top_up_usd": sum(top_up.values()),
        "binding_failure": "arbitrum" if more > 0 else None,
        "binding_failure_usd": more if more > 0 else None,
    }
    nodes: list[dict[str, Any]] = []
    routes: list[dict[str, Any]] = []
    for venue, account in accounts:
        nodes.append(
            {
                "portfolio_id": portfolio,
                "point": account,
                "kind": "node",
                "venue": venue,
                "equity_usd": equity[account],
                "surplus_usd": equity[account] - maintenance[account],
                "withdrawable_usd": max(equity[account] - 1.6 * maintenance[account], 0.0),
                "es_99_alone_usd": needs([account], 0.99),
                "placement_usd": needs([account], 0.99) if account in apart else needs(joined, 0.99) / len(joined),
                "p_deficit": p_deficit[account],
                "top_up_usd": top_up[account],
                "buffer_value": 100.0 * p_deficit[account],
                "prefunding_usd": 1.3 * needs([account], 0.99),
                "reactive_buffer_usd": 0.8 * 1.3 * needs([account], 0.99),
                "hedge_break_usd": 0.01 * equity[account] if p_deficit[account] else None,
                "move_now_usd": sent * ((account == taker) - (account == giver)),
            }
        )
        if venue == "binance":
            gate = f"{account} withdrawals"
            nodes.append({"portfolio_id": portfolio, "point": gate, "kind": "limit", "placement_usd": 0.0})
            routes.append(_route(portfolio, account, gate, "withdrawal limit", 0.0, capacity_usd=8e6))
        for other_venue, other in accounts:
            if account == other or {venue, other_venue} - set(CONNECTED):
                continue
            need = np.maximum(-left[other], 0.0)
            routes.append(
                _route(
                    portfolio, f"{account} withdrawals" if venue == "binance" else account, other, "arbitrum",
                    1.25 + 0.5 * CONNECTED.index(venue), capacity_usd=2e6 if venue == "derive" else None,
                    value=100.0 * p_deficit[other], worst_flow_usd=float(np.sort(need)[-16:].mean()) / len(joined),
                    move_now_usd=sent if (account, other) == (giver, taker) else 0.0,
                )
            )  # fmt: skip
    failures = [
        ("channel", "arbitrum", 0.9987, more),
        ("channel", "ethereum", 0.9991, 0.0),
        ("all", "all routes", None, more),
    ]
    routes += [
        {
            "portfolio_id": portfolio,
            "kind": kind,
            "name": channel,
            "p_open": chance,
            "without_usd": transfer[0.99] + increase,
            "without_increase_usd": increase,
        }
        for kind, channel, chance, increase in failures
    ]
    return _Transfers(columns, nodes, routes)


def _route(portfolio: str, source: str, target: str, name: str, hours: float, **columns: Any) -> dict[str, Any]:
    """A row of `routes` for a route; a step within the network leads through nothing."""
    inside = hours == 0
    row = {
        "portfolio_id": portfolio,
        "kind": "route",
        "name": name,
        "source": source,
        "target": target,
        "asset": None if inside else "USDC",
        "through": "[]" if inside else json.dumps([name]),
        "median_hours": 0.2 * hours,
        "p99_hours": hours,
        "capacity_usd": None,
        "fee": 0.0,
        "p_open": 1.0 if inside else 0.9312,
        "value": 0.0,
        "worst_flow_usd": 0.0,
        "move_now_usd": 0.0,
    }
    return row | columns


def _stress(
    portfolio: str,
    stress: tuple[str, str, bool, dict[str, float]],
    positions: Sequence[tuple[str, str, str, float]],
    equity: Mapping[str, float],
    maintenance: Mapping[str, float],
) -> dict[str, Any]:
    """A row of `stress`: (name, description, whether it binds, relative moves by asset)."""
    name, description, binding, moves = stress
    losses = {a: -sum(p[3] * moves.get(p[2], 0.0) for p in positions if p[1] == a) for a in equity}
    left = {a: equity[a] - losses[a] for a in equity}
    total = sum(losses.values())
    depth = 0.002 * abs(total) if binding else 0.0
    return {
        "portfolio_id": portfolio,
        "stress": name,
        "description": description,
        "binding": binding,
        "loss_usd": total + depth,
        "price_loss_usd": total,
        "depth_loss_usd": depth,
        "liquidity_usd": 0.001 * abs(total) + depth,
        "equity_after_usd": sum(left.values()) - depth,
        "unavailable_usd": sum(max(value, 0.0) for a, value in left.items() if a.startswith("binance")),
        "uncovered_usd": sum(max(-value, 0.0) for value in left.values()),
        "uncovered_pooled_usd": max(-sum(left.values()), 0.0),
        "transfers": "shut" if binding else "open",
        "liquidated": json.dumps([a for a, value in left.items() if value < maintenance[a]]),
        "insolvent": json.dumps([a for a, value in left.items() if value < 0]),
        "without_effect": json.dumps([f"marks.{asset}" for asset in sorted(moves) if asset == "USDC"]),
        "drivers": "[]",
    }


def _compared(
    portfolio: str, venue: str, account: str, figure: str, ours: float, reported: float | None
) -> dict[str, Any]:
    """A row of `reconciliation`: a difference is unexplained and beyond the bound from one dollar on."""
    difference = None if reported is None else ours - reported
    row = {
        "portfolio_id": portfolio,
        "account_id": account,
        "venue": venue,
        "figure": figure,
        "unit": "USDC",
        "ours": ours,
        "reported": reported,
        "difference": difference,
        "difference_relative": difference / reported if difference is not None and reported else None,
        "difference_usd": difference,
        "status": "match" if reported is not None else "not_reported",
        "message": "equal" if reported is not None else "no payload states it",
        "beyond_bound": difference is not None and abs(difference) > 1.0,
    }
    return row | ({"status": "unexplained", "message": "nothing accounts for it"} if difference else {})


def run_row(**changes: Any) -> dict[str, Any]:
    row = {
        "started_at": datetime(2024, 6, 30, 12, 0, 0, tzinfo=UTC),
        "finished_at": datetime(2024, 6, 30, 12, 0, 21, tzinfo=UTC),
        "duration_s": 21.4,
        "as_of": datetime(2024, 6, 30, 11, 59, 30, tzinfo=UTC),
        "snapshot_hash": "5" * 64,
        "configuration_digest": "c" * 64,
        "run_digest": "0a1b2c3d" * 8,
        "configuration": json.dumps(
            {"run": {"scenarios": SCENARIOS}, "venues": {"binance": "https://fapi.example/v2"}}
        ),
        "inputs": json.dumps(
            [
                {
                    "venue": v,
                    "request": f"GET https://{v}.example/account",
                    "name": f"{v}/account.json",
                    "sha256": "ab" * 32,
                }
                for v in VENUES
            ]
        ),
        "code_version": "0.1.0",
        "versions": json.dumps({"python": "3.11.2", "jax": "0.10.2", "pyarrow": "26.0.0"}),
        "device": "cpu x 2",
        "seed": SEED,
        "generator": "student_t_filtered",
        "scenarios": SCENARIOS,
        "horizon_days": 1.0,
        "shards": 1,
        "portfolios": 0,
        "portfolios_incomplete": 0,
        "accounts": 0,
        "failures": 0,
        "conditions": "[]",
    }
    return {**row, **changes}


def tables_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, pa.Table]:
    """Result tables from rows without run ids, in the canonical schemas."""
    out = {}
    for name, schema in RESULTS.items():
        full_rows = [{"run_id": RUN, **row} for row in rows.get(name, [])]
        unknown = {column for row in full_rows for column in row} - set(schema.names)
        assert not unknown, (name, unknown)
        out[name] = pa.Table.from_pylist(full_rows, schema=schema)
        for f in schema:
            assert f.nullable or out[name][f.name].null_count == 0, (name, f.name)
    return out


def merged_rows(*parts: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [row for part in parts for row in part.get(name, [])] for name in RESULTS}


def _factors() -> list[dict[str, Any]]:
    rows = [
        {"factor": f"price:{a}", "std_horizon": DAILY_VOL[a], "filled_share": 0.0, "source": "history"}
        for a in ASSETS[:3]
    ]
    rows.append({"factor": "vol:ETH", "std_horizon": 0.061, "filled_share": 0.31, "source": "proxy"})
    rows.append({"factor": "peg:USDC", "std_horizon": 0.0004, "filled_share": 0.0, "source": "figures"})
    return rows


@cache
def one_desk() -> dict[str, pa.Table]:
    """One complete portfolio without any condition."""
    rows = drawn_portfolio("quickstart", np.random.default_rng(SEED), 900_000.0)
    rows["runs"] = [run_row(portfolios=1, accounts=9)]
    rows["factors"] = _factors()
    return tables_of(rows)


def uncomputed_portfolio(name: str, account: str) -> dict[str, list[dict[str, Any]]]:
    """A portfolio whose only account could not be computed: no figure but what is left out."""
    portfolio = {
        "portfolio_id": name,
        "complete": False,
        "accounts_left_out": json.dumps([account]),
        "left_out_gross_usd": 1_234_567.0,
        "status": "no_complete_account",
        "accounts": 0,
        "positions": 0,
    }
    margin = {
        "portfolio_id": name,
        "account_id": account,
        "node": account,
        "venue": "deribit",
        "margin_mode": "portfolio",
        "status": "incomplete",
        "unit": "BTC",
    }
    return {"portfolio_margin": [portfolio], "account_margin": [margin]}


@cache
def many_desks(count: int = 15) -> dict[str, pa.Table]:
    """Portfolios of all sizes, one without any figure, one incomplete, one to be liquidated, a limit breached."""
    rng = np.random.default_rng(SEED)
    names = [f"desk {chr(ord('A') + k % 26)}{k // 26 or ''}" for k in range(count - 1)]
    parts = [drawn_portfolio(name, rng, float(10 ** rng.uniform(4.5, 7.5))) for name in names]
    parts[1]["account_margin"][0].update(liquidatable=True, health=0.97, near_boundary=True)
    gone = parts[1]["account_margin"][0]
    for row in parts[1]["reverse_stress"]:
        if row["kind"] == "joint" or row["subject"] == gone["account_id"]:
            row |= {
                "account_id": gone["account_id"], "venue": gone["venue"], "status": "liquidatable_now",
                "distance": 0.0, "moves": None, "probability": None,
            }  # fmt: skip
    parts[2]["portfolio_margin"][0].update(
        complete=False, status="incomplete", accounts_left_out='["okx:lost"]', left_out_gross_usd=310_000.0
    )
    parts[2]["account_margin"].append(
        {
            "portfolio_id": names[2],
            "account_id": "okx:lost",
            "node": "okx:lost",
            "venue": "okx",
            "margin_mode": "cross",
            "status": "incomplete",
            "unit": "USDT",
        }
    )
    for extra in range(60):  # a long list of positions that do not matter much
        parts[0]["allocation"].append(
            {
                **parts[0]["allocation"][-1],
                "key": f"small {extra:02d}",
                "es_99_usd": 0.5 - extra / 100,
                "value_usd": 10.0,
            }
        )
    rows = merged_rows(*parts, uncomputed_portfolio("desk without marks", "deribit:unknown"))
    conditions = [
        {"condition": "limit_breached", "code": 4, "message": "equity_to_es_99 of desk B is 0.9, the bound is 1.0"},
        {"condition": "bad_data", "code": 3, "message": "2 accounts are incomplete"},
    ]
    rows["runs"] = [
        run_row(portfolios=count, portfolios_incomplete=2, failures=2, conditions=json.dumps(conditions), shards=4)
    ]
    rows["factors"] = _factors()
    rows["failures"] = [
        {
            "venue": "okx",
            "payload": "okx/account.json",
            "path": "data[0].positions[3].markPx",
            "subject": "okx:lost",
            "account_id": "okx:lost",
            "reason": "missing_mark",
            "message": "no mark of WIF-USDT-SWAP and no proxy for it",
        },
        {
            "venue": None,
            "payload": None,
            "path": None,
            "subject": "SOL",
            "reason": "stale",
            "message": "mark is 3 h old",
        },
    ]
    return tables_of(rows)


@cache
def hostile_run() -> dict[str, pa.Table]:
    """Every text column of every table holds text that must not be believed."""
    rows = drawn_portfolio("p", np.random.default_rng(SEED), 50_000.0)
    rows = {name: list(part) for name, part in rows.items()}
    for k, name in enumerate(HOSTILE_NAMES):
        extra = drawn_portfolio(name, np.random.default_rng(k), 20_000.0)
        rows = merged_rows(rows, extra)
    rows["failures"] = [
        {"venue": n, "payload": n, "path": n, "subject": n, "account_id": n, "reason": "malformed", "message": n}
        for n in HOSTILE_NAMES
    ]
    rows["factors"] = [
        {"factor": f"price:{n}", "std_horizon": 0.1, "filled_share": 0.5, "source": "rule"} for n in HOSTILE_NAMES
    ]
    rows["runs"] = [
        run_row(
            configuration=json.dumps({n: n for n in HOSTILE_NAMES}),
            inputs=json.dumps([{"venue": n, "request": n, "name": n, "sha256": n} for n in HOSTILE_NAMES]),
            versions=json.dumps({n: n for n in HOSTILE_NAMES}),
            conditions=json.dumps([{"condition": n, "code": 99, "message": n} for n in HOSTILE_NAMES]),
            device=HOSTILE,
            generator=HOSTILE,
            code_version=HOSTILE,
        )
    ]
    for table, columns in {
        "allocation": ("venue", "asset", "key"),
        "greeks": ("underlying",),
        "account_margin": ("venue", "unit"),
        "reconciliation": ("account_id", "unit", "reason", "message"),
        "portfolio_margin": ("health_minimum_account",),
        "requirement": ("grid_point",),
        "stress": ("description",),
    }.items():
        for number, row in enumerate(rows[table]):
            row.update(dict.fromkeys(columns, HOSTILE_NAMES[number % len(HOSTILE_NAMES)]))
    for row in rows["scenarios_worst"]:
        row["drivers"] = json.dumps([{"key": n, "loss_usd": 1.0} for n in HOSTILE_NAMES])
        row["moves"] = json.dumps(dict.fromkeys(HOSTILE_NAMES, -0.5))
        row["liquidated"] = json.dumps(HOSTILE_NAMES)
    for number, row in enumerate(rows["reverse_stress"]):
        name = HOSTILE_NAMES[number % len(HOSTILE_NAMES)]
        row.update(subject=f"price:{name}", account_id=name, venue=name)
        row["moves"] = json.dumps(dict.fromkeys(HOSTILE_NAMES[number % 3 :], -0.5))
    for number, row in enumerate(rows["stress"]):
        row["stress"] = f"{number} {HOSTILE_NAMES[number % len(HOSTILE_NAMES)]}"
        row["liquidated"] = row["insolvent"] = row["without_effect"] = json.dumps(HOSTILE_NAMES)
    spoilt = {row["point"]: f"{HOSTILE_NAMES[k % 8]} {k}" for k, row in enumerate(rows["nodes"])}
    for row in rows["nodes"]:
        row.update(point=spoilt[row["point"]], venue=HOSTILE)
    for number, row in enumerate(rows["routes"]):
        row["name"] = f"{HOSTILE_NAMES[number % len(HOSTILE_NAMES)]} {number}"
        if row["kind"] == "route":
            row.update({end: spoilt[row[end]] for end in ("source", "target")}, asset=HOSTILE)
    for number, row in enumerate(rows["portfolio_margin"]):
        row.update(binding_failure=HOSTILE_NAMES[number % 8], transfer_method=f"{HOSTILE} of {HOSTILE} of {HOSTILE}")
    for row in (*rows["requirement"], *rows["node_margin"]):
        column = "scope" if "scope" in row else "node"
        row[column] = row[column] if row[column] == "unified" else f"{HOSTILE_NAMES[0]} {row[column]}"
    rows["portfolio_margin"][1].update(complete=False, status="incomplete", accounts_left_out=json.dumps(HOSTILE_NAMES))
    return tables_of(rows)


def empty_run() -> dict[str, pa.Table]:
    return tables_of({"runs": [run_row(inputs="[]", configuration="{}")]})


SAMPLES: dict[str, Callable[[], dict[str, pa.Table]]] = {
    "one desk": one_desk,
    "many desks": many_desks,
    "hostile": hostile_run,
    "empty": empty_run,
}


class Page(HTMLParser):
    """A page taken apart: tags must be balanced; text, tags and attributes are kept."""

    VOID = ("meta", "line", "rect", "polygon", "br")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.errors: list[str] = []
        self.feed(html)
        self.close()
        self.errors += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> at line {self.getpos()[0]} closes something else")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


if __name__ == "__main__":
    for label, sample in SAMPLES.items():
        write_report(sample(), Path(sys.argv[1]) / f"{label.replace(' ', '_')}.html")
