"""Spoilt payloads of every venue: whatever stands in them, the way to packed accounts neither raises nor invents.

A case is decided by its number: one place (in one of six cases two) of a venue's own sample is spoilt, then all
payloads are read, checked and packed. What must hold of the outcome is in `problems_of`. The suite runs the first
`CROSSMARGIN_FUZZ_CASES` cases of every venue; `.ci/fuzz` runs many more, and one case again by its number.
"""

from __future__ import annotations

import math
import os
import random
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from adapters.rows import LONGEST_MESSAGE
from aggregator.account import AccountInfo
from aggregator.errors import Failure, FailureReason
from aggregator.portfolio import PackedPortfolio, pack_book
from aggregator.schema.canonical import CANONICAL, KEYS
from aggregator.snapshot import Snapshot, take_snapshot
from tests.payload_mutations import AS_OF, GONE, Mutation, Place, has_sample, mutations, sample, spoilt, venues

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("CROSSMARGIN_FUZZ_CASES", "200"))
FIRST = int(os.environ.get("CROSSMARGIN_FUZZ_FIRST", "0"))
SHOWN = 25

_ID = re.compile(r"(?i:^o?id$|_id$)|Id$|ID$")
_MISSING = frozenset(
    (
        FailureReason.MISSING_FIELD,
        FailureReason.MISSING_MARK,
        FailureReason.MISSING_PARAMETER,
        FailureReason.UNKNOWN_MARKET,
    )
)
_NUMBERED = re.compile(r"\[\d+\]$")
ACCOUNT_TABLES = ("accounts", "balances", "positions", "open_orders")

Row = dict[str, Any]
Key = tuple[Any, ...]


class Reading(NamedTuple):
    """What became of a set of payloads."""

    batches: Mapping[str, pa.Table]
    failures: list[Failure]
    snapshot: Snapshot
    packed: PackedPortfolio | None
    packing: tuple[Failure, ...]


class Difference(NamedTuple):
    """A row that is gone or new (`column` empty), or a cell that changed."""

    table: str
    key: Key
    column: str
    before: Any
    after: Any


def read(venue: str, changes: Sequence[Mutation] = (), clean: Reading | None = None) -> Reading:
    """Payloads to packed accounts; where the tables are those of `clean`, checking and packing are not repeated."""
    of = sample(venue)
    normalized = of.adapter.normalize(spoilt(of.payloads, changes), of.context)
    if clean is not None and normalized.batches == clean.batches:
        if not normalized.failures:
            return clean
        lost = frozenset(failure.account_id for failure in normalized.failures if failure.account_id)
        snapshot = replace(clean.snapshot, failures=tuple(normalized.failures), incomplete=lost)
        return Reading(clean.batches, normalized.failures, snapshot, clean.packed, clean.packing)
    snapshot = take_snapshot([normalized.batches], normalized.failures, as_of=AS_OF)
    if clean is not None and snapshot.tables == clean.snapshot.tables and snapshot.incomplete == frozenset():
        return Reading(normalized.batches, normalized.failures, snapshot, clean.packed, clean.packing)
    book, unclaimed = pack_book({"": snapshot}, {"all": [venue]}, as_of=AS_OF)
    assert not unclaimed
    return Reading(normalized.batches, normalized.failures, snapshot, book.portfolios[0], book.failures)


@cache
def clean_reading(venue: str) -> Reading:
    return read(venue)


# ---- what must hold --------------------------------------------------------------------------------------------------


def problems_of(venue: str, number: int) -> tuple[list[Mutation], list[str]]:
    """The mutations of a case, and everything that is wrong with its outcome."""
    changes = mutations(venue, random.Random(f"{venue}:{number}"))
    clean = clean_reading(venue)
    try:
        found = read(venue, changes, clean)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        at = " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames))
        return changes, [f"raised {type(error).__name__}: {str(error)[:160]} at {at}"]
    if found is clean:
        return changes, []
    differences = list(differing(clean.batches, found.batches))
    problems = [
        *bad_failures(venue, found),
        *not_finite(found),
        *unaccounted(clean, found, changes),
        *changed_in_silence(venue, clean, found, changes, differences),
    ]
    return changes, problems


def differing(before: Mapping[str, pa.Table], after: Mapping[str, pa.Table]) -> Iterator[Difference]:
    """Rows by key and their cells, wherever the tables differ; rows of one key count as a list."""
    for name in CANONICAL:
        if name == "failures" or before[name].equals(after[name]):
            continue
        old, new = _by_key(name, before[name]), _by_key(name, after[name])
        for key in old.keys() | new.keys():
            ours, theirs = old.get(key, []), new.get(key, [])
            if len(ours) == len(theirs) == 1:
                for column, value in ours[0].items():
                    if value != theirs[0][column]:
                        yield Difference(name, key, column, value, theirs[0][column])
            elif ours != theirs:
                yield Difference(name, key, "", ours, theirs)


def _by_key(name: str, table: pa.Table) -> dict[Key, list[Row]]:
    out: dict[Key, list[Row]] = {}
    for row in table.to_pylist():
        out.setdefault(tuple(row[column] for column in KEYS[name]), []).append(row)
    return out


def bad_failures(venue: str, found: Reading) -> Iterator[str]:
    """Failures say a reason of the closed list, whose they are and where, in words that can be stored."""
    names = {payload.name for payload in sample(venue).payloads} | {""}
    for failure in (*found.snapshot.failures, *found.packing):
        if not isinstance(failure.reason, FailureReason):
            yield f"reason {failure.reason!r} is not of the closed list"
        if not failure.message or (failure in found.failures and len(failure.message) > LONGEST_MESSAGE + 4):
            yield f"a message of {len(failure.message)} characters: {failure.message[:80]!r}"
        if failure.payload not in names:
            yield f"a failure names a payload that there is not: {failure.payload!r}"
        for text in (failure.message, failure.path, failure.subject, failure.account_id or ""):
            try:
                text.encode()
            except UnicodeEncodeError:
                yield f"a failure whose text cannot be stored: {text[:80]!r}"
        if failure in found.failures and failure.venue != venue:
            yield f"a failure without its venue: {failure}"


def not_finite(found: Reading) -> Iterator[str]:
    """No packed coefficient is NaN or infinite."""
    packed = found.packed
    if packed is None:
        return
    numbers: Iterable[float] = (
        *(entry[2] for entry in packed.legs),
        *(entry[2] for entry in packed.native_legs),
        *(value for entry in packed.requirements for value in entry[2:]),
        *(value for entry in packed.fixed for value in entry),
        *(value for _, entry in packed.tiers for value in (entry.notional, entry.initial_notional, entry.conversion)),
        *packed.line_equity,
    )
    if not all(map(math.isfinite, numbers)):
        yield "a packed figure is not finite"


def unaccounted(clean: Reading, found: Reading, changes: Sequence[Mutation]) -> Iterator[str]:
    """Every account of the clean run is there, or something of its owner's is new or incomplete.

    Either way the owner's portfolio does not pass for complete, whatever the account is called that nobody could read.
    """
    if any(c.effect in ("fewer", "lost", "flag", "text") or _is_zero(c) or _is_id(c) for c in changes):
        return  # the payload may rightly tell of fewer accounts than before, or of others
    before = {row["account_id"]: row["owner"] for row in clean.snapshot.tables["accounts"]}
    there = {row["account_id"] for row in found.snapshot.tables["accounts"]}
    told_of = found.snapshot.incomplete | (there - before.keys())
    for account, owner in before.items():
        whole = f"{account.partition(':')[0]}:{owner}:"
        if account not in there and not any(f"{name}:".startswith(whole) for name in told_of):
            yield f"account {account} is gone without a word"


def alike(one: Any, other: Any) -> bool:
    """Whether two packed portfolios, or parts of them, hold the same but for what venues report; NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, AccountInfo):
        return one._replace(reported={}) == other._replace(reported={})
    if is_dataclass(one):
        return alike(vars(one), vars(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    return bool(one == other or (one != one and other != other))


def _is_zero(change: Mutation) -> bool:
    # Below the last digit of an exact column a number is 0.
    if change.effect != "number":
        return False
    number = Decimal(str(change.value))
    return not number or number.adjusted() < -18


def _is_id(change: Mutation) -> bool:
    """Whether the place holds a name made of digits: another text there is another name."""
    return _ID.search(change.field) is not None


def changed_in_silence(
    venue: str, clean: Reading, found: Reading, changes: Sequence[Mutation], differences: Sequence[Difference]
) -> Iterator[str]:
    """What an unusable value changes is explained by a failure, and that of a number by one that names it."""
    if not differences:
        return
    failures = (*found.snapshot.failures, *found.packing)
    effects = {change.effect for change in changes}
    same = alike(found.packed, clean.packed)
    # A text may be a name, and then another name is another thing: only its loss would be a wrong.
    fewer = not _as_many(clean.packed, found.packed)
    silent = {"invalid", "lost", "shape", "order", "copies"} if not same else {"text", "invalid"} if fewer else set()
    if any(map(_is_id, changes)):
        return  # another name is another thing
    if not failures and effects <= silent and not any(change.operation in ONE_OF for change in changes):
        yield f"no failure, but the accounts are others for {_told(differences)}"
    if len(changes) > 1 or not changes[0].numeric:
        return
    (change,) = changes
    left_open = change.effect == "absent" and (
        (venue, change.field) in OPTIONAL
        or all(map(_left_open, differences))
        or any(failure.reason in _MISSING for failure in failures)
    )
    if change.effect in ("invalid", "absent") and not left_open and not _named(change, failures):
        heard = [f"{failure.path}: {failure.message[:60]}" for failure in failures[:3]]
        yield f"no failure names {change.field!r}, but {_told(differences)}; failures: {heard}"
    if change.effect == "invalid" and not same:
        yield from _changed_accounts(clean, found)


# A list's first entry instead of the list is one answer instead of several.
ONE_OF = ("wrapper 6", "wrapper 7")
# What a record without field names calls its members, and what a reader calls one that several requests spell unlike.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "marginTables": ("margin table",),
    "position": ("supply_shares", "borrow_shares", "collateral"),
    "supply_shares": ("supply_assets",),
    "supplyShares": ("decimals",),
    "totalSupplyAssets": ("totals",),
}
# (venue, field): why its absence is a number, or another source, without a word.
OPTIONAL: Mapping[tuple[str, str], str] = {
    ("binance", "tierCap"): "the last tier has none, and one behind it is refused",
    ("binance", "totalMarginOpenLoss"): "one of two calls for the account's totals states it",
    ("drift_v2", "last_oracle_price_twap_5min"): "a feed without a mean has no strict price",
    ("drift_v2", "quote_entry_amount"): "the price at entry is shown only, profit is in the quote amount",
    ("dydx_v4", "funding_index"): "a node does not write zeros out",
    ("dydx_v4", "open_interest"): "a node does not write zeros out",
    ("dydx_v4", "open_interest_lower_cap"): "a node does not write zeros out",
    ("dydx_v4", "open_interest_upper_cap"): "a node does not write zeros out",
    ("morpho_blue", "lastUpdate"): "totals of the API are of the answer's time",
    ("morpho_blue", "priceUsd"): "a stable loan token counts at par",
    ("morpho_blue", "supplyShares"): "the API states the tokens lent as well",
    ("okx", "adjEq"): "without an answer on the configuration it says single-currency margin",
    ("okx", "ordFroz"): "empty where no order freezes anything",
    ("paradex", "created_at"): "the time of receipt stands in",
    ("paradex", "interest_rate"): "a market without a rate has none",
    ("paradex", "maker_rate"): "the standard fee of the dated file stands in",
    ("paradex", "option_taker_rate"): "the standard fee of the dated file stands in",
    ("span", "index_price"): "optional in the document, the contracts have their own prices",
    ("span", "initial_ratio"): "optional in the document, 1 where a house asks no more",
    ("span", "settlement_price"): "optional in the document, the contract's price of the day stands in",
    ("span", "short_option_minimum"): "optional in the document, 0 where a house has none",
}


def _as_many(before: PackedPortfolio | None, after: PackedPortfolio | None) -> bool:
    """Whether no packed account and no line of one is missing."""
    if before is None or after is None:
        return before is after
    return len(after.accounts) >= len(before.accounts) and len(after.lines) >= len(before.lines)


def _named(change: Mutation, failures: Iterable[Failure]) -> bool:
    """Whether a failure names the field, or its path the record that the field stands in, or one beside that."""
    # An entry that is named by an address is told by the list that it stands in.
    keys = [key for key in change.place if isinstance(key, str) and not key.startswith("0x")][-1:]
    names = [_spelled(name) for key in keys for name in (key, *ALIASES.get(key, ()))]
    words = _words(change.field)
    record = _spelled("".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in change.place[:-1]))
    return any(
        frozenset() < _words(failure.path.rpartition(".")[2]) <= words
        or any(name in _spelled(failure.path) or name in _spelled(failure.message) for name in names)
        or (failure.path and _NUMBERED.sub("", record).endswith(_NUMBERED.sub("", _spelled(failure.path))))
        for failure in failures
    )


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _words(name: str) -> frozenset[str]:
    """`max_pnl_factor`, `maxPnlFactorForTraders`: the words that a name is made of."""
    return frozenset(word.lower() for word in _WORD.findall(name))


def _spelled(name: str) -> str:
    # Some venues write one field in two ways: `marketIndex`, `market_index`.
    return name.replace("_", "").replace(" ", "").lower()


def _left_open(difference: Difference) -> bool:
    """Whether a difference is no more than a value that is not there, or another measured value in its stead.

    An account that needs a price that nobody states any more cannot be packed.
    """
    if difference.column:
        return difference.after is None or difference.column in ("as_of", "event_at", "source")
    return difference.table in ("marks", "market_state")


def _changed_accounts(clean: Reading, found: Reading) -> Iterator[str]:
    """Accounts whose rows an unusable number changed though they count as complete."""
    before, after = _of_accounts(clean.snapshot), _of_accounts(found.snapshot)
    lost = {*found.snapshot.incomplete, *(failure.account_id or "" for failure in found.packing)} - {""}
    for account in before.keys() & after.keys():
        if not any(f"{account}:".startswith(f"{name}:") for name in lost) and before[account] != after[account]:
            yield f"the rows of {account} changed and it counts as complete"


def _of_accounts(snapshot: Snapshot) -> dict[str, list[tuple[str, list[tuple[str, Any]]]]]:
    out: dict[str, list[tuple[str, list[tuple[str, Any]]]]] = {}
    for name in ACCOUNT_TABLES:
        for row in snapshot.tables[name]:
            cells = [(c, v) for c, v in row.items() if not c.startswith("reported_") and c != "event_at"]
            out.setdefault(row["account_id"], []).append((name, cells))
    return out


def _told(differences: Sequence[Difference]) -> str:
    first = differences[0]
    what = f"{first.column}: {first.before!r} -> {first.after!r}" if first.column else _counted(first)
    return f"{len(differences)} differences, first {first.table} {first.key} {what}"[:300]


def _counted(difference: Difference) -> str:
    return f"{len(difference.before)} -> {len(difference.after)} rows"


# ---- what was found --------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A mutation that once raised or changed figures in silence, and the failure that it has to give."""

    venue: str
    file: str
    place: Place
    value: Any
    reason: str
    path: str


ONCE_WRONG = (
    Found(
        "binance", "delta_balance.json", (2, "crossMarginInterest"), GONE, "missing_field", "[2].crossMarginInterest"
    ),
    Found(
        "compound_v3",
        "idle.json",
        ("userCollateral",),
        {"value": {}},
        "missing_field",
        "userCollateral.value.balance.balance",
    ),
    Found("deribit", "quay_portfolio_message.json", ("params", "data"), [], "missing_field", ""),
    Found("deribit", "index_usdc_usd.json", ("usOut",), False, "not_a_number", "usOut"),
    Found("derive", "june_pm_subaccount.json", ("result",), "text", "malformed", "result"),
    Found("derive", "june_pm_subaccount.json", ("result", "subaccount_id"), ["5"], "malformed", "subaccount_id"),
    Found(
        "derive", "june_latest_signed_feeds.json", ("result",), {"result": {"spot_data": {}}}, "missing_field", "result"
    ),
    Found(
        "drift_v2",
        "perp_markets.json",
        ("result", 1, "account", "imf_factor"),
        GONE,
        "missing_field",
        "result[1].account.imf_factor",
    ),
    Found(
        "drift_v2",
        "perp_markets.json",
        ("result", 1, "account", "unrealized_pnl_max_imbalance"),
        None,
        "missing_field",
        "result[1].account.unrealized_pnl_max_imbalance",
    ),
    Found(
        "drift_v2",
        "north_users.json",
        (0, "account", "perp_positions", 1, "open_orders"),
        GONE,
        "missing_field",
        "[0].account.perp_positions[1].open_orders",
    ),
    Found(
        "dydx_v4",
        "perpetual_markets.json",
        ("markets", "DOGE-USD", "openInterestLowerCap"),
        GONE,
        "missing_field",
        "markets.DOGE-USD.openInterestLowerCap",
    ),
    Found(
        "dydx_v4",
        "node_market_prices.json",
        ("market_prices", 1, "exponent"),
        GONE,
        "missing_field",
        "market_prices[1].exponent",
    ),
    Found(
        "dydx_v4",
        "east_node_subaccount.json",
        ("subaccount", "asset_positions", 0, "quantums"),
        GONE,
        "missing_field",
        "subaccount.asset_positions[0].quantums",
    ),
    Found("dydx_v4", "south_orders.json", (0, "totalFilled"), None, "missing_field", "[0].totalFilled"),
    Found(
        "gmx_v2",
        "data_store.json",
        ("markets", "0x00000000000000000000000000000000000000b3", "poolAmount_shortToken"),
        True,
        "not_a_number",
        "markets.0x00000000000000000000000000000000000000b3.poolAmount_shortToken",
    ),
    Found(
        "hyperliquid",
        "june_clearinghouse_state_lab.json",
        ("assetPositions", 0, "position", "szi"),
        "1e-9999999",
        "out_of_range",
        "assetPositions[0].position.szi",
    ),
    Found("morpho_blue", "markets.json", (0, "market", "lastUpdate"), GONE, "missing_field", "[0].last_update"),
    Found("okx", "position_tiers_loan_usdc.json", ("data", 1, "minSz"), GONE, "missing_field", "data[1].minSz"),
    Found(
        "okx",
        "east_position_builder.json",
        ("data", 0, "riskUnitData", 1, "mr6"),
        None,
        "missing_field",
        "data[0].riskUnitData[1].mr6",
    ),
    Found("paradex", "desk_info.json", ("results", 1, "account"), GONE, "missing_field", "results[1].account"),
    Found("paradex", "desk_margin.json", ("configs", 0, "market"), {}, "malformed", "configs[0].market"),
    Found("paradex", "grid_margin.json", ("margin_methodology",), GONE, "missing_field", "margin_methodology"),
    Found(
        "paradex",
        "desk_margin_isolated.json",
        ("configs", 0, "isolated_margin_leverage"),
        GONE,
        "missing_field",
        "configs[0].isolated_margin_leverage",
    ),
    Found(
        "span",
        "parameters.json",
        ("combined_commodities", 0, "calendar", "spreads", 0, "legs"),
        [{"tier": 1, "side": "A", "delta": "1"}] * 2,
        "duplicate",
        "combined_commodities[0].calendar.spreads[0].legs",
    ),
)


@pytest.mark.parametrize("found", ONCE_WRONG, ids=lambda found: f"{found.venue}-{found.path}")
def test_what_once_went_wrong(found: Found) -> None:
    names = [payload.name for payload in sample(found.venue).payloads]
    change = Mutation(names.index(found.file), found.place, "once wrong", "shape", False, found.value)
    failures = read(found.venue, [change]).failures
    assert (found.reason, found.path) in {(failure.reason, failure.path) for failure in failures}


# ---- the suite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("venue", venues())
def test_every_registered_venue_has_a_sample(venue: str) -> None:
    assert has_sample(venue), f"tests/sample_{venue}.py is missing"


@pytest.mark.parametrize("venue", [name for name in venues() if has_sample(name)])
def test_the_sample_itself_is_without_a_failure(venue: str) -> None:
    clean = clean_reading(venue)
    assert [*clean.snapshot.failures, *clean.packing] == []
    assert clean.packed is not None
    assert clean.packed.accounts
    times = [row["received_at"] for row in clean.snapshot.tables["accounts"]]
    assert all(AS_OF - timedelta(minutes=1) <= moment <= AS_OF for moment in times)


@pytest.mark.parametrize("venue", [name for name in venues() if has_sample(name)])
def test_spoilt_payloads(venue: str, capsys: pytest.CaptureFixture[str]) -> None:
    started, wrong, effects = time.perf_counter(), list[str](), Counter[str]()
    for number in range(FIRST, FIRST + CASES):
        changes, problems = problems_of(venue, number)
        effects.update(change.effect for change in changes)
        if problems:
            of = [sample(venue).payloads[change.payload] for change in changes]
            where = " and ".join(f"{p.request} ({p.name}), {change}" for p, change in zip(of, changes, strict=True))
            wrong.append(f"case {number}: {where}\n    " + "\n    ".join(problems[:4]))
    if "CROSSMARGIN_FUZZ_CASES" in os.environ:
        with capsys.disabled():
            counted = ", ".join(f"{count} {effect}" for effect, count in sorted(effects.items()))
            print(  # noqa: T201
                f"\n{venue}: cases {FIRST} to {FIRST + CASES - 1}, {len(wrong)} with problems, "
                f"{time.perf_counter() - started:.1f} s ({counted})"
            )
    again = f"once more: .ci/fuzz {venue} --case NUMBER"
    assert not wrong, "\n".join([f"{len(wrong)} of {CASES} cases; {again}", *wrong[:SHOWN]])
