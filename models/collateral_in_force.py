"""The collateral of a run that has weights in force: whose slices they are, and what moves the value of the asset.

Weights belong to a rule set, which may count an asset in slices of its amount or value. Weights of an e-mode category
hold only beside a debt that moves along, which no haircut of the asset alone can say: they stay, with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import Failure, FailureReason
from aggregator.rule_forms import WeightedValue, parse_parameters
from aggregator.snapshot import Snapshot

from .tier_policy import BPS

Rows = Sequence[Mapping[str, Any]]

_PRICE_FIELDS = ("oracle", "index", "mark", "stable_price")


class Slice(NamedTuple):
    """Value in USD from which a slice counts, and its weights in bps."""

    floor_usd: float
    maintenance_bps: int
    initial_bps: int


class CollateralInForce(NamedTuple):
    """One asset of one rule set: its slices, and what moves it.

    `symbol` names its price factor (`ETH`), `peg` the law of its price against that or against a dollar; either may be
    missing, not both. `discount` is how far it trades below its peg now. `bonus` is what a liquidator gets on top.
    """

    rule_set: str
    asset_id: str
    slices: tuple[Slice, ...]
    symbol: str | None
    peg: str | None
    multiplier: Decimal
    discount: float
    bonus: float
    held_usd: float

    @property
    def name(self) -> str:
        """What recommendations call it."""
        return f"{self.rule_set}/{self.asset_id}"

    @property
    def factors(self) -> tuple[str, ...]:
        """Factors whose sum of moves is that of the asset."""
        price = () if self.symbol is None else (f"price:{self.symbol}",)
        return price if self.peg is None else (*price, f"peg:{self.peg}")

    @property
    def history_names(self) -> tuple[str, ...]:
        """Names that a market history may have for its price."""
        if self.symbol is None:
            return ()
        return (self.symbol, f"1000{self.symbol}")


def collateral_in_force(
    snapshots: Mapping[str, Snapshot],
) -> tuple[dict[str, CollateralInForce], list[Failure]]:
    """Every asset that counts as collateral under some rule set, by name, and why others cannot be recommended."""
    found: dict[str, CollateralInForce] = {}
    failures: dict[str, Failure] = {}
    for _, snapshot in sorted(snapshots.items()):
        for rule_set in sorted(_weighted(snapshot)):
            rows = [row for row in snapshot.tables["collateral_tiers"] if row["rule_set"] == rule_set]
            for asset_id in sorted({row["asset_id"] for row in rows}):
                name = f"{rule_set}/{asset_id}"
                made = _asset(snapshot, rule_set, asset_id, [row for row in rows if row["asset_id"] == asset_id])
                if isinstance(made, CollateralInForce) and name in found:
                    if made.slices != found[name].slices:
                        made = _failure(FailureReason.INCONSISTENT, name, "its weights differ between two sources")
                    else:
                        made = made._replace(held_usd=made.held_usd + found[name].held_usd)
                if isinstance(made, Failure):
                    failures[name] = made
                elif made is not None:
                    found[name] = made
    return {name: one for name, one in found.items() if name not in failures}, list(failures.values())


def with_weights(rows: Rows, weights: Mapping[str, Sequence[tuple[int, int]]]) -> list[dict[str, Any]]:
    """Rows of `collateral_tiers` with the (maintenance, initial) weights in bps of each slice of the named collateral.

    A weight that is the same in whole bps keeps its last digit, e-mode categories keep their rows.
    """
    out = []
    for row in rows:
        new = dict(row)
        of_asset = weights.get(f"{row['rule_set']}/{row['asset_id']}")
        if of_asset is not None and not row["emode"]:
            for column, figure in zip(("maintenance", "initial"), of_asset[row["tier"] - 1], strict=True):
                if figure != _bps(row[f"asset_weight_{column}"]):
                    new[f"asset_weight_{column}"], new["source"] = Decimal(figure) / BPS, "model"
        out.append(new)
    return out


def _weighted(snapshot: Snapshot) -> set[str]:
    """Rule sets with a component that reads the weights."""
    return {
        row["rule_set"]
        for row in snapshot.tables["rule_sets"]
        if row["form"] == "weighted_value"
        and isinstance(form := parse_parameters(row["form"], row["parameters"]), WeightedValue)
        and form.weights == "collateral_tiers"
    }


def _asset(snapshot: Snapshot, rule_set: str, asset_id: str, rows: Rows) -> CollateralInForce | Failure | None:
    """One asset; None for what is no collateral: an instrument's own weight of profit, a weight of 0."""
    asset = next((row for row in snapshot.tables["assets"] if row["asset_id"] == asset_id), None)
    plain = sorted((row for row in rows if not row["emode"]), key=lambda row: row["tier"])
    if asset is None or not plain or any(_bps(row["asset_weight_maintenance"]) <= 0 for row in plain):
        return None
    name = f"{rule_set}/{asset_id}"
    if asset["risk_factor"] is None and asset["peg_of"] is None:
        return _failure(FailureReason.UNKNOWN_ASSET, name, "no factor moves its price")
    if len({row["tier"] for row in plain}) != len(plain):
        return _failure(FailureReason.INCONSISTENT, name, "a slice is there twice")
    accounts = {row["account_id"]: row["venue"] for row in snapshot.tables["accounts"] if row["rule_set"] == rule_set}
    multiplier = Decimal(asset["multiplier"] or 1)
    price = _price(snapshot, asset_id, set(accounts.values()) or {rule_set.partition(":")[0]})
    if price is None and asset["risk_factor"] is None:
        price = float(multiplier)
    slices = []
    for row in plain:
        floor = float(row["floor"])
        if floor > 0.0 and row["floor_in"] != "value":
            if price is None:
                return _failure(FailureReason.MISSING_MARK, name, "its slices count tokens, and it has no price")
            floor *= price
        weights = [min(_bps(row[f"asset_weight_{column}"]), BPS) for column in ("maintenance", "initial")]
        if weights[1] <= 0 or weights[1] > weights[0]:
            return _failure(FailureReason.UNSUPPORTED, name, "its initial weight is 0 or above the maintenance weight")
        slices.append(Slice(floor, *weights))
    held = [
        float(row["quantity"])
        for row in snapshot.tables["balances"]
        if row["account_id"] in accounts and row["asset_id"] == asset_id and row["side"] == "asset"
    ]
    is_dollar = asset["risk_factor"] is None
    discount = max(0.0, 1.0 - price / float(multiplier)) if is_dollar and price is not None else 0.0
    bonus = max((float(row["liquidation_bonus"] or 0) for row in plain), default=0.0)
    return CollateralInForce(
        rule_set,
        asset_id,
        tuple(slices),
        asset["risk_factor"],
        asset["peg_of"],
        multiplier,
        discount,
        bonus,
        sum(held) * (price or 0.0),
    )


def _price(snapshot: Snapshot, asset_id: str, venues: set[str]) -> float | None:
    """The lowest price that a venue of the rule set has for the asset."""
    values = [
        float(row["value"])
        for row in snapshot.tables["marks"]
        if row["subject"] == asset_id
        and row["field"] in _PRICE_FIELDS
        and row["venue"] in venues
        and row["value"] > 0.0
    ]
    return min(values, default=None)


def _bps(weight: Any) -> int:
    """Whole bps, down: a weight is never read as larger than it is."""
    return int(Decimal(weight) * BPS)


def _failure(reason: FailureReason, name: str, message: str) -> Failure:
    return Failure(reason, f"{name}: {message}; its weights stay as they are", subject=name)
