"""Lookups over one checked snapshot: assets, instruments, marks, tiers, rule sets, and the factors that move an
asset.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from .cube import CubeBuilder, years_until
from .errors import FailureReason
from .exponents import USD as USD
from .exponents import combined as combined
from .rule_forms import Form, parse_parameters
from .snapshot import Row, Snapshot

_ASSET_PRICE_FIELDS = ("oracle", "index", "stable_price", "mark")


class IncompleteAccountError(Exception):
    """An account cannot be computed; carries the failure that says why."""

    def __init__(self, reason: FailureReason, message: str, subject: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.subject = subject


class Market:
    """Lookups over one snapshot: assets, instruments, marks, tiers, rule sets."""

    def __init__(self, snapshot: Snapshot, cube: CubeBuilder, as_of: datetime, missing: frozenset[str]) -> None:
        tables = snapshot.tables
        self.snapshot, self.cube, self.as_of, self.missing = snapshot, cube, as_of, missing
        self.accounts = {row["account_id"]: row for row in tables["accounts"]}
        self.assets = {row["asset_id"]: row for row in tables["assets"]}
        self.instruments = {row["instrument_id"]: row for row in tables["instruments"]}
        self.marks = {(r["venue"], r["account_id"], r["subject"], r["field"]): r for r in tables["marks"]}
        self.balances = grouped(tables["balances"], "account_id")
        self.positions = grouped(tables["positions"], "account_id")
        self.open_orders = grouped(tables["open_orders"], "account_id")
        self.rules: dict[str, list[tuple[Row, Form]]] = defaultdict(list)
        for row in sorted(tables["rule_sets"], key=lambda r: (r["rule_set"], r["component_no"])):
            self.rules[row["rule_set"]].append((row, parse_parameters(row["form"], row["parameters"])))
        self.margin_tiers: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in sorted(tables["margin_tiers"], key=lambda r: (r["rule_set"], r["market"], r["tier"])):
            self.margin_tiers[row["rule_set"], row["market"]].append(row)
        self.collateral_tiers: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
        for row in tables["collateral_tiers"]:
            self.collateral_tiers[row["rule_set"], row["asset_id"], row["emode"]].append(row)

    def at(self, moment: datetime) -> Market:
        """The same lookups at another instant, from which the time to an expiry is counted."""
        out = copy.copy(self)
        out.as_of = moment
        return out

    def account_ids(self) -> list[str]:
        """Every account that has a row or a failure of its own."""
        return sorted(set(self.accounts) | set(self.snapshot.incomplete))

    def mark(self, venue: str, account_id: str, subject: str, name: str) -> Row | None:
        """The account's own mark if its payload carried one, else the venue's."""
        return self.marks.get((venue, account_id, subject, name)) or self.marks.get((venue, None, subject, name))

    def asset_price(self, venue: str, account_id: str, asset_id: str) -> tuple[float, float]:
        """(USD per unit, confidence) of an asset; a stable without a price of its own counts at par, one that earns in
        its own price at its configured index (both `multiplier`). Raises `IncompleteAccountError`.
        """
        if asset_id == USD:
            return 1.0, 1.0
        row = self.asset_mark(venue, account_id, asset_id)
        if row is not None:
            return row["value"], 1.0 if row["confidence"] is None else row["confidence"]
        if self.assets[asset_id]["risk_factor"] is None:
            return float(self.assets[asset_id]["multiplier"]), 1.0
        raise IncompleteAccountError(FailureReason.MISSING_MARK, f"no price of {asset_id} on {venue}", asset_id)

    def asset_mark(self, venue: str, account_id: str, asset_id: str) -> Row | None:
        """The mark that prices an asset, by the first of its fields that is there."""
        found = (self.mark(venue, account_id, asset_id, name) for name in _ASSET_PRICE_FIELDS)
        return next((row for row in found if row is not None), None)

    def years(self, instrument: Row) -> float:
        """Years of 365 days until the instrument expires, never negative."""
        return years_until((instrument["expiry"] - self.as_of).total_seconds())

    def expiry(self, venue: str, account_id: str, instrument: Row) -> tuple[float, float, float]:
        """(forward, rate, lowest confidence of the two) of an option's expiry; an absent rate feed is a rate of 0."""
        subject = f"{instrument['underlying']}@{instrument['expiry']:%Y-%m-%dT%H:%M:%SZ}"
        forward = self.mark(venue, account_id, subject, "forward")
        if forward is None:
            raise IncompleteAccountError(FailureReason.MISSING_MARK, f"no forward of {subject}", subject)
        rate = self.mark(venue, account_id, subject, "rate")
        confidences = [m["confidence"] for m in (forward, rate) if m is not None and m["confidence"] is not None]
        return forward["value"], rate["value"] if rate is not None else 0.0, min(confidences, default=1.0)

    def implied_vol(self, venue: str, account_id: str, instrument_id: str) -> Row:
        """The mark row of an option's implied vol."""
        row = self.mark(venue, account_id, instrument_id, "implied_vol")
        if row is None:
            raise IncompleteAccountError(
                FailureReason.MISSING_MARK, f"no implied vol of {instrument_id}", instrument_id
            )
        return row

    def exponents(self, asset_id: str) -> dict[str, float]:
        """Factors that move the USD price of an asset."""
        if asset_id == USD:
            return {}
        asset = self.assets[asset_id]
        out = {}
        if asset["risk_factor"]:
            out[f"price:{asset['risk_factor']}"] = 1.0
        if asset["peg_of"]:
            out[f"peg:{asset['peg_of']}"] = 1.0
        for name in out:
            self.require(name, asset_id)
        return out

    def require(self, factor: str, subject: str) -> None:
        """Raises `IncompleteAccountError` for a factor that nothing moves."""
        if factor in self.missing:
            raise IncompleteAccountError(
                FailureReason.MISSING_PARAMETER, f"{subject} needs the factor {factor}, which nothing moves", subject
            )

    def risk_symbol(self, asset_id: str) -> str:
        """The asset's name in risk reports: its price factor, or its peg."""
        asset = self.assets[asset_id]
        return asset["risk_factor"] or asset["peg_of"] or asset["symbol"]

    def last_known_gross(self, account_id: str) -> float | None:
        """Gross USD value of whatever of an incomplete account can be valued; None when nothing can."""
        row = self.accounts.get(account_id)
        if row is None:
            return None
        total, found = 0.0, False
        for balance in self.balances.get(account_id, ()):
            try:
                price, _ = self.asset_price(row["venue"], account_id, balance["asset_id"])
            except (IncompleteAccountError, KeyError):
                continue
            total, found = total + abs(float(balance["quantity"])) * price, True
        for position in self.positions.get(account_id, ()):
            instrument = self.instruments.get(position["instrument_id"])
            mark = self.mark(row["venue"], account_id, position["instrument_id"], "mark")
            if instrument is not None and mark is not None:
                size = abs(float(position["quantity"])) * float(instrument["contract_size"])
                total, found = total + (size if instrument["payoff"] == "inverse" else size * mark["value"]), True
        return total if found else None


def grouped(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        out[row[column]].append(row)
    return out
