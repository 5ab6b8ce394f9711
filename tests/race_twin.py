"""The race's work in plain Python, from the canonical rows: the oracle of every peer, slow and without an array."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.race.books import RaceBook

Row = dict[str, Any]
_SECONDS_PER_YEAR = 365.0 * 86_400.0


class TwinFigures(NamedTuple):
    """Figures by portfolio id, and by account id."""

    portfolios: dict[str, dict[str, float]]
    nodes: dict[str, dict[str, float]]


class _Market:
    def __init__(self, book: RaceBook) -> None:
        rows = {name: table.to_pylist() for name, table in book.tables.items()}
        self.rows, self.as_of = rows, book.as_of
        self.assets = {row["asset_id"]: row for row in rows["assets"]}
        self.instruments = {row["instrument_id"]: row for row in rows["instruments"]}
        self.marks = {(row["venue"], row["subject"], row["field"]): row["value"] for row in rows["marks"]}
        self.rules: dict[str, list[Row]] = defaultdict(list)
        for row in rows["rule_sets"]:
            self.rules[row["rule_set"]].append(row | {"given": json.loads(row["parameters"])})
        self.tiers: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in sorted(rows["margin_tiers"], key=lambda r: r["tier"]):
            self.tiers[row["rule_set"], row["market"]].append(row)
        self.weights = {(row["rule_set"], row["asset_id"]): row for row in rows["collateral_tiers"]}

    def price(self, venue: str, asset: str, move: Mapping[str, float]) -> float:
        """USD per unit after the move."""
        if asset == "USD":
            return 1.0
        found = [self.marks.get((venue, asset, f)) for f in ("oracle", "index", "stable_price", "mark")]
        today = next((value for value in found if value is not None), float(self.assets[asset]["multiplier"]))
        return today * math.exp(self.log_move(asset, move))

    def log_move(self, asset: str, move: Mapping[str, float]) -> float:
        row = self.assets[asset]
        out = move[f"price:{row['risk_factor']}"] if row["risk_factor"] else 0.0
        return out + (move[f"peg:{row['peg_of']}"] if row["peg_of"] else 0.0)

    def option(self, instrument: Row, move: Mapping[str, float] | None) -> float:
        """Price in the settlement asset: today without a move, a day later with one."""
        years = (instrument["expiry"] - self.as_of).total_seconds() / _SECONDS_PER_YEAR
        subject = f"{instrument['underlying']}@{instrument['expiry']:%Y-%m-%dT%H:%M:%SZ}"
        forward = self.marks[instrument["venue"], subject, "forward"]
        vol = self.marks[instrument["venue"], instrument["instrument_id"], "implied_vol"]
        if move is not None:
            factor = self.assets[instrument["underlying"]]["risk_factor"]
            forward *= math.exp(move[f"price:{factor}"])
            change = move[f"vol:{factor}"] * math.sqrt(30.0 / max(years * 365.0, 1.0))
            vol *= math.exp(min(max(change, -2.0), 2.0))
            years = max(years - 1.0 / 365.0, 0.0)
        strike, side = float(instrument["strike"]), 1.0 if instrument["option_type"] == "call" else -1.0
        spread = vol * math.sqrt(years)
        if spread == 0.0:
            return max(side * (forward - strike), 0.0)
        d1 = math.log(forward / strike) / spread + spread / 2.0
        return side * (forward * _cdf(side * d1) - strike * _cdf(side * (d1 - spread)))


def _cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2.0)) / 2.0


def _account(
    market: _Market, account: Row, balances: list[Row], positions: list[Row], move: Any
) -> tuple[float, float]:
    """(market equity, venue's equity less maintenance requirement), both USD, after `move`; None: today."""
    venue, rule_set, unit = account["venue"], account["rule_set"], account["settlement_asset"]
    moved = defaultdict(float) if move is None else move
    equity = headroom = 0.0
    components = market.rules[rule_set]
    for row in components:
        if row["form"] == "fixed":
            given = row["given"]
            amount = float(given.get("equity", 0)) - float(given.get("maintenance", 0))
            headroom += amount * market.price(venue, unit, moved)
    weighted = any(row["given"].get("weights") == "collateral_tiers" for row in components)
    tiered = any(row["form"] == "tiered_notional" for row in components)
    for balance in balances:
        owed = balance["side"] == "liability"
        amount = float(balance["quantity"] + (balance["accrued_interest"] or 0))
        value = (-1.0 if owed else 1.0) * amount * market.price(venue, balance["asset_id"], moved)
        equity += value
        weight = 1.0
        if weighted and balance["asset_id"] != unit:
            side = "liability" if owed else "asset"
            weight = float(market.weights[rule_set, balance["asset_id"]][f"{side}_weight_maintenance"])
        headroom += value * weight if balance["collateral_enabled"] or owed else 0.0
    for position in positions:
        instrument = market.instruments[position["instrument_id"]]
        size = float(position["quantity"]) * float(instrument["contract_size"])
        settled = market.price(venue, instrument["settlement_asset"], moved)
        if instrument["kind"] == "option":
            profit = size * market.option(instrument, move)
        else:
            mark = market.marks[venue, position["instrument_id"], "mark"]
            mark *= math.exp(market.log_move(instrument["underlying"], moved))
            profit = size * (mark - float(position["entry_price"]))
            profit += float((position["unsettled_funding"] or 0) + (position["realized_pnl"] or 0))
            if tiered:
                notional = abs(size) * mark
                held = [t for t in market.tiers[rule_set, position["instrument_id"]] if t["notional_floor"] < notional]
                headroom -= (notional * float(held[-1]["maintenance_rate"]) - float(held[-1]["deduction"])) * settled
        equity += profit * settled
        headroom += profit * settled
    return equity, headroom


def twin_figures(book: RaceBook, moves: Sequence[Mapping[str, float]]) -> TwinFigures:
    """Everything that the result tables of the race hold, over scenarios of equal weight."""
    market = _Market(book)
    accounts = {row["account_id"]: row for row in market.rows["accounts"]}
    balances: dict[str, list[Row]] = defaultdict(list)
    positions: dict[str, list[Row]] = defaultdict(list)
    for held, name in ((balances, "balances"), (positions, "positions")):
        for row in market.rows[name]:
            held[row["account_id"]].append(row)
    members = defaultdict(list)
    for row in book.portfolios.to_pylist():
        members[row["portfolio_id"]].append(row["account_id"])
    figures, nodes = {}, {}
    for portfolio, own in members.items():
        results = {
            a: [_account(market, accounts[a], balances[a], positions[a], move) for move in (None, *moves)] for a in own
        }
        at_or_below = {
            a: any(r["given"].get("liquidates_when") == "at_or_below" for r in market.rules[accounts[a]["rule_set"]])
            for a in own
        }
        gone = {a: [h < 0 or (h == 0 and at_or_below[a]) for _, h in results[a][1:]] for a in own}
        for a in own:
            after = [equity for equity, _ in results[a][1:]]
            nodes[a] = {
                "equity_usd": results[a][0][0],
                "equity_mean_usd": sum(after) / len(moves),
                "p_liquidation": sum(gone[a]) / len(moves),
                "bad_debt_usd": sum(max(-equity, 0.0) for equity in after) / len(moves),
            }
        today = sum(results[a][0][0] for a in own)
        count = len(moves)
        losses = [today - sum(results[a][s + 1][0] for a in own) for s in range(count)]
        ordered = sorted(losses)
        of = {
            "equity_usd": today,
            "mean_loss_usd": sum(losses) / count,
            "worst_loss_usd": ordered[-1],
            "p_liquidation_any": sum(any(gone[a][s] for a in own) for s in range(count)) / count,
            "p_liquidation_unified": sum(sum(results[a][s + 1][1] for a in own) < 0 for s in range(count)) / count,
            "bad_debt_usd": sum(max(-results[a][s + 1][0], 0.0) for a in own for s in range(count)) / count,
        }
        for name, level in (("99", 0.99), ("995", 0.995)):
            var = next(x for place, x in enumerate(ordered) if (place + 1) / count >= level - 1e-9)
            of[f"var_{name}_usd"] = var
            of[f"es_{name}_usd"] = var + sum(max(x - var, 0.0) for x in losses) / count / (1.0 - level)
        figures[portfolio] = of | {
            "equity_mean_usd": today - of["mean_loss_usd"],
            "equity_minimum_usd": today - of["worst_loss_usd"],
            "equity_es_99_usd": today - of["es_99_usd"],
        }
    return TwinFigures(figures, nodes)
