"""The markets of a run that have margin tiers in force: whose ladder it is, and which asset's forecast it needs.

A market is recommended as one: rule sets of a venue that share it have to agree on its tiers. What a ladder in dollars
cannot say (tiers that count contracts or coins, rates that grow with size) is a failure with a reason, and stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa

from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.rule_forms import TieredNotional, parse_parameters
from aggregator.schema.canonical import CANONICAL
from aggregator.snapshot import Snapshot

from .tier_ladder import Ladder, ladders_of, rates_in_table

Rows = Sequence[Mapping[str, Any]]

_READ_TIERS = ("tiered_notional", "rate_of_size")
"""Rule forms whose rates stand in the table `margin_tiers`."""


class MarketInForce(NamedTuple):
    """One market: its venue and ladder, the price factor (`price:SHIB`) and multiplier of its underlying."""

    market: str
    venue: str
    ladder: Ladder
    factor: str
    multiplier: Decimal

    @property
    def history_names(self) -> tuple[str, ...]:
        """Names that a market history may have for it, the nearest first; rates are the same for all of them."""
        name = self.factor.removeprefix("price:")
        thousand = f"1000{name}"
        return (thousand, name) if self.multiplier == 1000 else (name, thousand)


def markets_in_force(snapshots: Mapping[str, Snapshot]) -> tuple[dict[str, MarketInForce], list[Failure]]:
    """Every market with tiers that can be recommended, by its name in the tables, and why others cannot."""
    found: dict[str, list[tuple[str, Snapshot, str]]] = {}
    for name, snapshot in sorted(snapshots.items()):
        pairs = {(row["market"], row["rule_set"]) for row in snapshot.tables["margin_tiers"]}
        for market, rule_set in sorted(pairs):
            found.setdefault(market, []).append((name, snapshot, rule_set))
    markets: dict[str, MarketInForce] = {}
    failures: list[Failure] = []
    for market, places in sorted(found.items()):
        made = _market(market, places)
        if isinstance(made, Failure):
            failures.append(made)
        else:
            markets[market] = made
    return markets, failures


def with_ladders(rows: Rows, ladders: Mapping[str, Ladder]) -> list[dict[str, Any]]:
    """Rows of `margin_tiers` with the rates of `ladders` (by market) in every rule set; others as they are."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["rule_set"], row["market"]), []).append(row)
    out: list[dict[str, Any]] = []
    for (rule_set, market), of_market in groups.items():
        if market in ladders:
            out += rates_in_table(_table(of_market), rule_set, [ladders[market]]).to_pylist()
        else:
            out += [dict(row) for row in of_market]
    return sorted(out, key=lambda row: (row["rule_set"], row["market"], row["tier"]))


def _market(market: str, places: Sequence[tuple[str, Snapshot, str]]) -> MarketInForce | Failure:
    ladders: dict[str, Ladder] = {}
    for _, snapshot, rule_set in places:
        problem = _unlike_a_ladder(snapshot, rule_set, market)
        if problem is not None:
            return problem
        rows = [r for r in snapshot.tables["margin_tiers"] if (r["rule_set"], r["market"]) == (rule_set, market)]
        try:
            ladder = ladders_of(_table(rows), rule_set)[market]
        except ConfigurationError as error:
            return _failure(FailureReason.INCONSISTENT, market, f"its tiers are no ladder: {error}")
        if ladders and ladder not in ladders.values():
            known = ", ".join([*ladders, rule_set])
            return _failure(FailureReason.INCONSISTENT, market, f"its tiers differ between {known}")
        ladders[rule_set] = ladder
    _, snapshot, rule_set = places[0]
    instrument = _row(snapshot, "instruments", "instrument_id", market)
    assert instrument is not None
    underlying = _row(snapshot, "assets", "asset_id", instrument["underlying"])
    if underlying is None or underlying["risk_factor"] is None:
        message = f"no price factor moves its underlying {instrument['underlying']}"
        return _failure(FailureReason.UNKNOWN_ASSET, market, message)
    factor, multiplier = f"price:{underlying['risk_factor']}", Decimal(underlying["multiplier"] or 1)
    return MarketInForce(market, instrument["venue"], ladders[rule_set], factor, multiplier)


def _unlike_a_ladder(snapshot: Snapshot, rule_set: str, market: str) -> Failure | None:
    """Why the tiers of a market in a rule set cannot be read as brackets of dollars; None when they can."""
    components = [
        row for row in snapshot.tables["rule_sets"] if row["rule_set"] == rule_set and row["form"] in _READ_TIERS
    ]
    if not components:
        return _failure(FailureReason.UNSUPPORTED, market, f"no component of {rule_set} reads its tiers")
    for row in components:
        form = parse_parameters(row["form"], row["parameters"])
        if not isinstance(form, TieredNotional):
            return _failure(FailureReason.UNSUPPORTED, market, f"its rates in {rule_set} grow with size, not by tiers")
        if form.floors == "quantity":
            return _failure(FailureReason.UNSUPPORTED, market, f"its tiers in {rule_set} count contracts, not dollars")
    instrument = _row(snapshot, "instruments", "instrument_id", market)
    if instrument is None:
        return _failure(FailureReason.UNKNOWN_MARKET, market, "no instrument of that name was read")
    settlement = instrument["settlement_asset"]
    asset = _row(snapshot, "assets", "asset_id", settlement)
    # A coin with a peg and no price of its own is worth its peg: its brackets are dollars.
    if settlement != "USD" and (asset is None or asset["risk_factor"] is not None or asset["peg_of"] is None):
        return _failure(FailureReason.UNSUPPORTED, market, f"its tiers in {rule_set} count {settlement}, not dollars")
    return None


def _row(snapshot: Snapshot, table: str, key: str, name: str) -> Mapping[str, Any] | None:
    return next((row for row in snapshot.tables[table] if row[key] == name), None)


def _table(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=CANONICAL["margin_tiers"])


def _failure(reason: FailureReason, market: str, message: str) -> Failure:
    return Failure(reason, f"{market}: {message}; its tiers stay as they are", subject=market)
