"""Accounts of a checked snapshot as the tables that the sweep of whole books reads, each at the prices it sees.

A payload may carry marks of its own, which for its account go before those of the venue. The sweep looks prices up by
venue: an account with marks of its own becomes one of a venue that only it is at, with its marks and, where it has
none, the real venue's. No figure depends on what a venue is called.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import pyarrow as pa

from .schema.casting import table_from_rows
from .snapshot import Row, Snapshot

_SHARED = ("instruments", "assets", "rule_sets", "margin_tiers", "collateral_tiers")


def account_tables(snapshot: Snapshot, accounts: Collection[str]) -> dict[str, pa.Table]:
    """Canonical tables with these accounts of the snapshot and everything they refer to.

    The venue of an account with marks of its own is not the real one: take that from the snapshot.
    """
    chosen = {
        name: [row for row in snapshot.tables[name] if row["account_id"] in accounts]
        for name in ("accounts", "balances", "positions", "open_orders")
    }
    own: dict[str, list[Row]] = defaultdict(list)
    shared: list[Row] = []
    for row in snapshot.tables["marks"]:
        if row["account_id"] is None:
            shared.append(row)
        elif row["account_id"] in accounts:
            own[row["account_id"]].append(row)
    of_venue: dict[tuple[str, str], list[Row]] = defaultdict(list)
    if own:
        for row in shared:
            of_venue[row["venue"], row["subject"]].append(row)
    subjects = _subjects(snapshot, chosen, own.keys())
    marks = [*shared]
    for number, row in enumerate(chosen["accounts"]):
        if row["account_id"] not in own:
            continue
        venue = f"{row['venue']} as {row['account_id']} sees it"
        seen = {
            (mark["subject"], mark["field"]): mark
            for subject in sorted(subjects[row["account_id"]])
            for mark in of_venue.get((row["venue"], subject), ())
        }
        # A payload's marks of another venue are not what the account is valued at.
        seen |= {(m["subject"], m["field"]): m for m in own[row["account_id"]] if m["venue"] == row["venue"]}
        marks += [{**mark, "venue": venue, "account_id": None} for mark in seen.values()]
        chosen["accounts"][number] = {**row, "venue": venue}
    tables = {name: table_from_rows(name, rows) for name, rows in chosen.items()}
    tables |= {name: table_from_rows(name, list(snapshot.tables[name])) for name in _SHARED}
    return {**tables, "marks": table_from_rows("marks", marks)}


def _subjects(snapshot: Snapshot, chosen: dict[str, list[Row]], accounts: Collection[str]) -> dict[str, set[str]]:
    """Whatever of an account has a price or a volatility: its unit, assets, instruments, and what these settle in or
    expire with.
    """
    instruments = {row["instrument_id"]: row for row in snapshot.tables["instruments"]} if accounts else {}
    out: dict[str, set[str]] = defaultdict(set)
    for row in chosen["accounts"]:
        if row["account_id"] in accounts and row["settlement_asset"] is not None:
            out[row["account_id"]].add(row["settlement_asset"])
    for row in chosen["balances"]:
        if row["account_id"] in accounts:
            out[row["account_id"]].add(row["asset_id"])
    for row in chosen["positions"]:
        of = instruments.get(row["instrument_id"])
        if row["account_id"] in accounts and of is not None:
            out[row["account_id"]] |= {row["instrument_id"], of["settlement_asset"]}
            if of["expiry"] is not None:
                out[row["account_id"]].add(f"{of['underlying']}@{of['expiry']:%Y-%m-%dT%H:%M:%SZ}")
    return out
