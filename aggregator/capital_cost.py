"""What the capital of a portfolio costs a year at today's rates: locked margin, debts, perpetuals. USD, costs positive.

A rate that no payload states is unknown and makes the cost of its node unknown: it never counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from .account import Line
from .policy import Requirement
from .portfolio import PackedPortfolio
from .results import Evaluated
from .snapshot import Snapshot

_HOURS_PER_YEAR = 8760.0


class NodeCost(NamedTuple):
    """Of one node, USD a year; None for debts or perpetuals that it lacks or of which a rate is unknown.

    `uncosted` is the USD value of the debts and perpetuals without a rate; `total` is None where there are any.
    """

    locked: float
    opportunity: float
    borrow: float | None
    funding: float | None
    uncosted: float

    @property
    def total(self) -> float | None:
        if self.uncosted > 0.0:
            return None
        return math.fsum([self.opportunity, self.borrow or 0.0, self.funding or 0.0])


def borrow_rates(snapshots: Mapping[str, Snapshot]) -> dict[str, float]:
    """Rate a year by key of the line, of every debt whose payload states one; NaN of every perpetual without a rate.

    The account's own mark goes before that of the venue, as for prices.
    """
    out: dict[str, float] = {}
    for snapshot in snapshots.values():
        tables = snapshot.tables
        venue = {row["account_id"]: row["venue"] for row in tables["accounts"]}
        marks = {
            (row["venue"], row["account_id"], row["subject"], row["field"]): row["value"]
            for row in tables["marks"]
            if row["field"] in ("borrow_rate", "funding_rate")
        }

        def rate(account: str, subject: str, field: str) -> float | None:
            own = marks.get((venue.get(account), account, subject, field))  # noqa: B023 - called at once
            return marks.get((venue.get(account), None, subject, field)) if own is None else own  # noqa: B023

        for row in tables["balances"]:
            if row["side"] == "liability":
                found = rate(row["account_id"], row["asset_id"], "borrow_rate")
                if found is not None:
                    out[f"{row['account_id']}/{row['asset_id']}/debt"] = found
        perpetuals = {row["instrument_id"] for row in tables["instruments"] if row["kind"] == "perp"}
        for row in tables["positions"]:
            account, instrument = row["account_id"], row["instrument_id"]
            if instrument in perpetuals and rate(account, instrument, "funding_rate") is None:
                side = "" if row["side_mode"] == "net" else f"/{row['side_mode']}"
                out[f"{account}/{instrument}{side}"] = math.nan
    return out


def node_costs(evaluated: Evaluated, policy: Requirement, rates: Mapping[str, float]) -> list[NodeCost]:
    """Costs of every node of a portfolio with figures, in order; `rates` are `borrow_rates`."""
    portfolio = evaluated.portfolio
    return [_node_cost(evaluated, policy, rates, node) for node in range(len(portfolio.nodes))]


def _node_cost(evaluated: Evaluated, policy: Requirement, rates: Mapping[str, float], node: int) -> NodeCost:
    locked = _locked(evaluated, node)
    paid: dict[str, list[float]] = {"debt": [], "linear": []}
    uncosted = []
    for line in _held(evaluated.portfolio, node):
        rate = _yearly_rate(line, policy, rates)
        if rate is None:
            continue
        if math.isfinite(rate):
            # A debt has a negative value and pays; a long perpetual pays a positive rate.
            paid[line.kind].append(-line.value_usd * rate if line.kind == "debt" else line.value_usd * rate)
        else:
            uncosted.append(abs(line.value_usd))
            paid[line.kind].append(math.nan)
    borrow, funding = (_sum_if_known(paid[kind]) for kind in ("debt", "linear"))
    return NodeCost(locked, policy.opportunity_rate * locked, borrow, funding, math.fsum(uncosted))


def _held(portfolio: PackedPortfolio, node: int) -> list[Line]:
    return [line for line, at in zip(portfolio.lines, portfolio.line_node, strict=True) if at == node]


def _yearly_rate(line: Line, policy: Requirement, rates: Mapping[str, float]) -> float | None:
    """What a line pays a year as a fraction of its value; None where it pays nothing, NaN where that is not known."""
    if line.funding_rate is not None:
        return line.funding_rate * _HOURS_PER_YEAR / policy.venue(line.venue).funding_hours
    if line.kind == "debt":
        return rates.get(line.key, math.nan)
    return rates.get(line.key) if line.kind == "linear" else None


def _sum_if_known(paid: list[float]) -> float | None:
    if not paid or any(math.isnan(amount) for amount in paid):
        return None
    return math.fsum(paid)


def _locked(evaluated: Evaluated, node: int) -> float:
    """Initial margin that the venue asks of the accounts of a node, USD."""
    figures, name = evaluated.headline, evaluated.portfolio.nodes[node]
    assert figures is not None
    return math.fsum(
        max(float(figures.native.initial[a]), 0.0) * info.unit_price_usd
        for a, info in enumerate(evaluated.portfolio.accounts)
        if (info.node, info.venue) == name
    )
