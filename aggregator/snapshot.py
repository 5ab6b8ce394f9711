"""Every venue's tables at one instant: merged, checked, each finding named, with a content hash.

What a check rejects is taken out of the tables and recorded as a failure; a failure that concerns an account makes that
account incomplete, and so does a rejected row that the account needs. Nothing is repaired and nothing is guessed. `now`
is the snapshot's as-of, never the clock.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from .errors import DataError, Failure, FailureReason
from .rule_forms import parse_parameters
from .schema.canonical import CANONICAL, KEYS, MARK_FIELDS
from .schema.casting import cast_table

Row = dict[str, Any]

_ACCOUNT_TABLES = ("accounts", "balances", "positions", "open_orders")
_REFERENCE_TABLES = ("assets", "instruments", "rule_sets", "margin_tiers", "collateral_tiers", "marks", "market_state")
_POSITIVE_MARKS = frozenset(
    {
        "mark",
        "index",
        "oracle",
        "oracle_twap",
        "stable_price",
        "price_min",
        "price_max",
        "bid",
        "ask",
        "forward",
        "implied_vol",
    }
)
_PRICE_MARKS = ("index", "oracle", "mark", "stable_price")
# A clock a few minutes ahead of ours is a clock; further ahead it is a mistake.
_CLOCK_TOLERANCE = timedelta(minutes=5)
_CLOSED: Mapping[tuple[str, str], frozenset[str | None]] = {
    ("accounts", "margin_mode"): frozenset({"cross", "isolated", "portfolio", "lending"}),
    ("balances", "side"): frozenset({"asset", "liability"}),
    ("positions", "side_mode"): frozenset({"net", "long", "short"}),
    ("open_orders", "side"): frozenset({"buy", "sell"}),
    ("collateral_tiers", "floor_in"): frozenset({"tokens", "value", None}),
    ("instruments", "kind"): frozenset({"spot", "perp", "future", "option"}),
    ("instruments", "payoff"): frozenset({"linear", "inverse"}),
    ("instruments", "option_type"): frozenset({"call", "put", None}),
    ("marks", "field"): frozenset(MARK_FIELDS),
    ("rule_sets", "side"): frozenset({"equity", "requirement", "verdict"}),
    ("rule_sets", "level"): frozenset({"initial", "maintenance", "both"}),
    ("rule_sets", "group_by"): frozenset(
        {"position", "instrument", "expiry", "underlying", "settlement_asset", "risk_unit", "account"}
    ),
    ("margin_tiers", "source"): frozenset({"venue", "model"}),
}


@dataclass(frozen=True)
class Snapshot:
    """Checked rows by canonical table, sorted by key; `failures` of reading and checking; `content_hash` of the tables.

    `incomplete` holds the accounts that must not be computed. `as_of` is None only for a snapshot without any time.
    """

    tables: Mapping[str, tuple[Row, ...]]
    failures: tuple[Failure, ...]
    incomplete: frozenset[str]
    as_of: datetime | None
    content_hash: str


def take_snapshot(
    batches: Sequence[Mapping[str, pa.Table]],
    failures: Iterable[Failure] = (),
    *,
    as_of: datetime | None = None,
    max_age: timedelta | None = None,
    max_mark_gap: float | None = None,
) -> Snapshot:
    """Merge the batches of all venues into one checked snapshot.

    Checked in this order, each with its own failure reason: schema (malformed, missing_field), closed lists and signs
    (malformed, out_of_range, not_a_number), duplicates (duplicate: all copies go; rows of shared reference tables that
    agree in full are one row), references across tables (unknown_market, unknown_asset, missing_parameter,
    inconsistent), freshness against `as_of` (stale, inconsistent for the future), accounts that need a rejected row
    (missing_parameter, missing_mark), marks of one asset that differ between venues by more than `max_mark_gap`
    (inconsistent, a finding that stops nobody). `as_of` None: the newest receive or event time of an account.
    """
    check = _Check([*failures])
    tables: dict[str, list[Row]] = {}
    for name in CANONICAL:
        if name != "failures":
            tables[name] = check.values(name, [row for batch in batches for row in check.rows(name, batch)])
        if name == "instruments":
            check.options = {row["instrument_id"] for row in tables[name] if row["kind"] == "option"}
    for name in tables:
        tables[name] = check.duplicates(name, tables[name])
    check.references(tables)
    now = as_of or _newest(tables["accounts"])
    if now is not None:
        tables["marks"] = check.freshness(tables, now, max_age)
    check.dependents(tables)
    ordered = {name: tuple(sorted(rows, key=_key_of(name))) for name, rows in tables.items()}
    if max_mark_gap is not None:
        check.mark_gaps(ordered, max_mark_gap)
    return Snapshot(
        tables=ordered,
        failures=tuple(check.failures),
        incomplete=frozenset(f.account_id for f in check.failures if f.account_id),
        as_of=now,
        content_hash=_content_hash(ordered, check.failures),
    )


def _key_of(name: str) -> Any:
    columns = KEYS[name]
    return lambda row: tuple((row[c] is not None, "" if row[c] is None else row[c]) for c in columns)


def _newest(accounts: Sequence[Row]) -> datetime | None:
    times = [t for row in accounts for t in (row["received_at"], row["event_at"]) if t is not None]
    return max(times, default=None)


def _content_hash(tables: Mapping[str, Sequence[Row]], failures: Sequence[Failure]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tables):
        digest.update(name.encode())
        for row in tables[name]:
            digest.update(_line(row).encode())
    for line in sorted(json.dumps([f.reason, f.venue, f.payload, f.path, f.subject, f.account_id]) for f in failures):
        digest.update(line.encode())
    return digest.hexdigest()


def _line(row: Row) -> str:
    return json.dumps(row, sort_keys=True, default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Decimal):
        # As the schema holds it, with 18 decimals: normalize() would round to 28 digits.
        return str(value)
    raise TypeError(type(value).__name__)


def _texts(batch: Mapping[str, pa.Table], tables: Sequence[str], column: str) -> set[str]:
    """Distinct texts of `column` in tables that nobody has checked yet."""
    found = (
        batch[t].column(column).to_pylist() for t in tables if t in batch and batch[t].column_names.count(column) == 1
    )
    return {str(value) for values in found for value in values if value}


class _Check:
    """Collects failures while the tables go through the checks."""

    def __init__(self, failures: list[Failure]) -> None:
        self.failures = failures
        self.rejected: list[tuple[str, Row]] = []
        self.options: set[str] = set()
        """Option instruments, whose marks may be 0."""

    def fail(self, reason: FailureReason, message: str, row: Row | None = None, *, table: str = "") -> None:
        row = row or {}
        account = row.get("account_id")
        subject = (
            row.get("instrument_id") or row.get("asset_id") or row.get("subject") or row.get("rule_set") or account
        )
        venue = (
            row.get("venue")
            or (str(account or row.get("instrument_id") or row.get("rule_set") or "").partition(":")[0])
        )
        self.failures.append(Failure(reason, message, str(venue), "", table, str(subject or ""), account))

    def rows(self, name: str, batch: Mapping[str, pa.Table]) -> list[Row]:
        """Rows of one batch's table; a table of the wrong shape is refused whole."""
        if name not in batch:
            return []
        try:
            return cast_table(name, batch[name]).to_pylist()
        except DataError as error:
            venue = min(_texts(batch, ("accounts", "instruments", "marks"), "venue"), default="")
            self.failures.append(replace(error.failure, venue=venue))
            # Whoever has rows in a refused table cannot be computed from what is left; a table without accounts of its
            # own concerns all accounts of the batch.
            of_accounts = _texts(batch, (name,), "account_id") if name in _ACCOUNT_TABLES else set()
            for account in sorted(of_accounts or _texts(batch, ("accounts",), "account_id")):
                self.fail(error.failure.reason, f"table {name!r} was refused", {"account_id": account}, table=name)
            return []

    def values(self, name: str, rows: list[Row]) -> list[Row]:
        """Closed lists, signs and rule parameters."""
        kept = []
        for row in rows:
            problem = self._problem(name, row)
            if problem is None:
                kept.append(row)
            else:
                self.fail(problem[0], problem[1], row, table=name)
                self.rejected.append((name, row))
        return kept

    def _problem(self, name: str, row: Row) -> tuple[FailureReason, str] | None:
        for (table, column), allowed in _CLOSED.items():
            if table == name and row[column] not in allowed:
                return (
                    FailureReason.MALFORMED,
                    f"{column} {row[column]!r} is none of {sorted(text for text in allowed if text is not None)}",
                )
        if name == "marks":
            worthless = row["field"] == "mark" and row["value"] == 0 and row["subject"] in self.options
            if row["field"] in _POSITIVE_MARKS and not row["value"] > 0 and not worthless:
                return FailureReason.OUT_OF_RANGE, f"{row['field']} {row['value']} of {row['subject']} must be positive"
            if row["confidence"] is not None and not 0 <= row["confidence"] <= 1:
                return (
                    FailureReason.OUT_OF_RANGE,
                    f"confidence {row['confidence']} of {row['subject']} must lie in 0..1",
                )
        if name == "balances" and row["quantity"] < 0:
            return FailureReason.OUT_OF_RANGE, "quantity must be positive: a debt is a row of side liability"
        if name == "open_orders" and row["remaining_quantity"] < 0:
            return FailureReason.OUT_OF_RANGE, "remaining_quantity must be positive: the side says which way"
        if name == "positions" and row["leverage"] is not None and row["leverage"] <= 0:
            return FailureReason.OUT_OF_RANGE, f"leverage {row['leverage']} must be positive"
        if name == "instruments":
            if row["contract_size"] <= 0:
                return FailureReason.OUT_OF_RANGE, "contract_size must be positive"
            if row["kind"] == "option" and (
                row["strike"] is None or row["expiry"] is None or row["option_type"] is None
            ):
                return FailureReason.MISSING_FIELD, "an option needs strike, expiry and option_type"
            if row["strike"] is not None and row["strike"] <= 0:
                return FailureReason.OUT_OF_RANGE, "strike must be positive"
        if name == "collateral_tiers":
            for level in ("initial", "maintenance"):
                if not 0 <= row[f"asset_weight_{level}"] <= 1 or row[f"liability_weight_{level}"] < 0:
                    return FailureReason.OUT_OF_RANGE, f"weights of {row['asset_id']}: assets in 0..1, liabilities >= 0"
        if name == "margin_tiers" and not (0 <= row["maintenance_rate"] <= 1 and 0 < row["initial_rate"] <= 1):
            return FailureReason.OUT_OF_RANGE, f"rates of tier {row['tier']} of {row['market']} must lie in 0..1"
        if name == "rule_sets":
            try:
                parse_parameters(row["form"], row["parameters"])
            except KeyError:
                return FailureReason.UNSUPPORTED, f"unknown rule form {row['form']!r}"
            except ValidationError as error:
                return FailureReason.MALFORMED, f"parameters of {row['form']}: {error.error_count()} errors"
        return None

    def duplicates(self, name: str, rows: list[Row]) -> list[Row]:
        """One row per key; copies of a reference row that agree in full are one row, all other copies are rejected."""
        groups: dict[Any, list[Row]] = defaultdict(list)
        key = _key_of(name)
        for row in rows:
            groups[key(row)].append(row)
        kept = []
        for copies in groups.values():
            if len(copies) == 1 or (name in _REFERENCE_TABLES and all(copy == copies[0] for copy in copies)):
                kept.append(copies[0])
            else:
                names = ", ".join(f"{c}={copies[0][c]}" for c in KEYS[name] if copies[0][c] is not None)
                message = f"{len(copies)} rows of {name} with {names}; all rejected"
                # One failure per account that the copies name; in an order that the order of the rows does not change.
                for row in {copy.get("account_id"): copy for copy in sorted(copies, key=_line)}.values():
                    self.fail(FailureReason.DUPLICATE, message, row, table=name)
                self.rejected += [(name, copy) for copy in copies]
        return kept

    def references(self, tables: Mapping[str, list[Row]]) -> None:
        """Every id that a row names exists; a row with a broken reference stays, and its account is incomplete."""
        accounts = {row["account_id"]: row for row in tables["accounts"]}
        assets = {row["asset_id"] for row in tables["assets"]}
        instruments = {row["instrument_id"]: row for row in tables["instruments"]}
        verdicts = {row["rule_set"] for row in tables["rule_sets"] if row["side"] == "verdict"}
        for name in ("balances", "positions", "open_orders"):
            for row in tables[name]:
                if row["account_id"] not in accounts:
                    self.fail(
                        FailureReason.INCONSISTENT, f"{name} row of an account that is not there", row, table=name
                    )
        for row in tables["balances"]:
            if row["asset_id"] not in assets:
                self.fail(FailureReason.UNKNOWN_ASSET, f"asset {row['asset_id']!r} is not known", row, table="balances")
        for name in ("positions", "open_orders"):
            for row in tables[name]:
                instrument = instruments.get(row["instrument_id"])
                if instrument is None:
                    self.fail(
                        FailureReason.UNKNOWN_MARKET, f"market {row['instrument_id']!r} is not known", row, table=name
                    )
                    continue
                for column in ("underlying", "settlement_asset"):
                    if instrument[column] not in assets:
                        self.fail(
                            FailureReason.UNKNOWN_ASSET,
                            f"{column} {instrument[column]!r} of {row['instrument_id']} is not known",
                            row,
                            table=name,
                        )
        for row in tables["accounts"]:
            if row["rule_set"] not in verdicts:
                self.fail(
                    FailureReason.MISSING_PARAMETER,
                    f"rule set {row['rule_set']!r} has no verdict",
                    row,
                    table="accounts",
                )
            if row["settlement_asset"] != "USD" and row["settlement_asset"] not in assets:
                self.fail(
                    FailureReason.UNKNOWN_ASSET, f"settlement asset {row['settlement_asset']!r}", row, table="accounts"
                )

    def freshness(self, tables: Mapping[str, list[Row]], now: datetime, max_age: timedelta | None) -> list[Row]:
        """Fresh marks; stale accounts and marks are failures, and a time in the future is inconsistent."""
        for row in tables["accounts"]:
            moment = row["event_at"] or row["received_at"]
            self._aged(moment, now, max_age, f"account {row['account_id']}", row, "accounts")
        fresh = []
        for row in tables["marks"]:
            if self._aged(row["as_of"], now, max_age, f"{row['field']} of {row['subject']}", row, "marks"):
                self.rejected.append(("marks", row))
            else:
                fresh.append(row)
        return fresh

    def _aged(
        self, moment: datetime | None, now: datetime, max_age: timedelta | None, what: str, row: Row, table: str
    ) -> bool:
        if moment is None:
            return False
        if moment > now + _CLOCK_TOLERANCE:
            self.fail(
                FailureReason.INCONSISTENT,
                f"{what} is of {moment:%Y-%m-%dT%H:%M:%SZ}, after the run's as-of",
                row,
                table=table,
            )
            return True
        if max_age is not None and now - moment > max_age:
            age = (now - moment).total_seconds()
            message = f"{what} is {age:.0f} s old, allowed are {max_age.total_seconds():.0f} s"
            self.fail(FailureReason.STALE, message, row, table=table)
            return True
        return False

    def dependents(self, tables: Mapping[str, list[Row]]) -> None:
        """Accounts that need a rejected row are incomplete: without it they would be computed by other rules.

        A rule set without one of its components, a ladder of tiers without one of its steps and an asset without its
        weight are not the venue's. A rejected price is not replaced by another field of the asset, nor by par.
        """
        lost: dict[tuple[str, str], set[str]] = defaultdict(set)
        assets = {row["asset_id"] for row in tables["assets"]}
        priced = {(r["venue"], r["subject"], r["field"]) for r in tables["marks"] if self._venue_price(r)}
        for table, row in self.rejected:
            if table == "rule_sets":
                lost[table, row["rule_set"]].add(row["rule_set"])
            elif table == "margin_tiers":
                lost[table, row["rule_set"]].add(row["market"])
            elif table == "collateral_tiers":
                lost[table, row["rule_set"]].add(row["asset_id"])
            elif (
                table == "marks"
                and self._venue_price(row)
                and row["subject"] in assets
                and (row["venue"], row["subject"], row["field"]) not in priced
            ):
                lost[table, row["venue"]].add(row["subject"])
        if not any(lost.values()):
            return
        settlement = {row["instrument_id"]: row["settlement_asset"] for row in tables["instruments"]}
        needed: dict[str, set[str]] = defaultdict(set)
        for row in tables["balances"]:
            needed[row["account_id"]].add(row["asset_id"])
        for row in [*tables["positions"], *tables["open_orders"]]:
            needed[row["account_id"]] |= {row["instrument_id"], settlement.get(row["instrument_id"], "")}
        for account in tables["accounts"]:
            account_id, rule_set = account["account_id"], account["rule_set"]
            names = needed[account_id] | {rule_set, account["settlement_asset"]}
            for table, owner, reason in (
                ("rule_sets", rule_set, FailureReason.MISSING_PARAMETER),
                ("margin_tiers", rule_set, FailureReason.MISSING_PARAMETER),
                ("collateral_tiers", rule_set, FailureReason.MISSING_PARAMETER),
                ("marks", account["venue"], FailureReason.MISSING_MARK),
            ):
                for name in sorted(lost.get((table, owner), set()) & names):
                    row = {"account_id": account_id, "subject": name}
                    self.fail(reason, f"a row of {table} for {name} was rejected", row, table=table)

    @staticmethod
    def _venue_price(row: Row) -> bool:
        """Whether a mark is a price that the venue states for everybody."""
        return row["account_id"] is None and row["field"] in _PRICE_MARKS

    def mark_gaps(self, tables: Mapping[str, Sequence[Row]], largest: float) -> None:
        """Prices of one asset, in whatever venue, account and price field, that lie further apart than `largest`
        (relative to the lowest).
        """
        symbols = {row["asset_id"]: row["symbol"] for row in tables["assets"]}
        perps = {
            row["instrument_id"]: symbols.get(row["underlying"])
            for row in tables["instruments"]
            if row["kind"] == "perp"
        }
        prices: dict[str, dict[str, float]] = defaultdict(dict)
        for row in tables["marks"]:
            symbol = symbols.get(row["subject"]) or perps.get(row["subject"])
            if row["field"] in _PRICE_MARKS and symbol is not None:
                prices[symbol][f"{row['account_id'] or row['venue']} {row['field']}"] = row["value"]
        for symbol, by_place in sorted(prices.items()):
            (low, lowest), (high, highest) = (
                pick((value, place) for place, value in by_place.items()) for pick in (min, max)
            )
            if high > low * (1 + largest):
                seen = f"{lowest} {low:.6g}, {highest} {high:.6g}"
                self.failures.append(
                    Failure(
                        FailureReason.INCONSISTENT,
                        f"prices of {symbol} differ by {high / low - 1:.1%} ({seen}), allowed are {largest:.1%}",
                        path="marks",
                        subject=symbol,
                    )
                )
