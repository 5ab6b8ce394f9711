"""Lists of Hyperliquid's markets: `universe` and margin tables of the market-wide payloads, merged to one per coin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, integer_at, joined, member, members, positive_at
from ..findings import Problem
from ..rows import Rows
from ..transport import Payload
from .markets import Market
from .mechanics import MarginTier, single_tier
from .rules import DatedParameters, MarketTiers, margin_table

SINGLE_TIER_IDS_BELOW = 50
"""Margin table ids below this are the maximum leverage of one tier (docs, Margin tiers)."""


class MarginTables(NamedTuple):
    """Margin tables by id, and why some ids cannot be used."""

    tables: Mapping[str, tuple[MarginTier, ...]]
    broken: Mapping[str, Problem]


NO_TABLES = MarginTables({}, {})


def read_margin_tables(rows: Rows, payloads: Iterable[Payload]) -> MarginTables:
    """Tables of `marginTable:<id>` payloads; the answer does not name its id, so the request must."""
    tables: dict[str, tuple[MarginTier, ...]] = {}
    broken: dict[str, Problem] = {}
    for payload in payloads:
        label = payload.request.partition(":")[2]
        try:
            if not label.isdigit():
                raise FieldError("request", FailureReason.MISSING_FIELD, "the request must be marginTable:<id>")
            tables[label] = margin_table(members(payload.body, "marginTiers"), "marginTiers")
        except FieldError as error:
            rows.refuse(error, payload=payload.name, subject=f"margin table {label}")
            broken[label] = Problem(error.reason, error.message)
    return MarginTables(tables, broken)


def read_markets(
    rows: Rows, payload: Payload, meta: Any, *, path: str, dated: DatedParameters, asked: MarginTables = NO_TABLES
) -> list[Market]:
    """The markets of one meta object; an unreadable entry becomes a failure, with a name also a problem.

    `asked`: tables that were requested by id, for those that the meta object does not list itself; one that it lists
    otherwise is inconsistent.
    """
    tables: dict[str, tuple[MarginTier, ...]] = dict(asked.tables)
    broken: dict[str, Problem] = dict(asked.broken)
    own: set[str] = set()
    listed: list[tuple[str, Any]] = []
    with rows.guard(payload.name, subject="universe"):
        entries = members(meta, "universe", path)
        listed = [(joined(joined(path, "universe"), i), entry) for i, entry in enumerate(entries)]
    pairs: list[Any] = []
    if isinstance(meta, Mapping) and meta.get("marginTables") is not None:  # older payloads have none
        with rows.guard(payload.name, subject="marginTables"):
            pairs = members(meta, "marginTables", path)
    for i, pair in enumerate(pairs):
        place = joined(joined(path, "marginTables"), i)
        label = str(pair[0]) if isinstance(pair, list) and pair else place
        try:
            if not isinstance(pair, list) or len(pair) != 2:
                raise FieldError(place, FailureReason.MALFORMED, "expected [id, table]")
            if label in own:
                raise FieldError(place, FailureReason.DUPLICATE, f"margin table {label} is listed twice")
            own.add(label)
            read = margin_table(members(pair[1], "marginTiers", joined(place, 1)), place)
            if tables.get(label, read) != read:
                message = f"margin table {label} differs from the answer to marginTable:{label}"
                raise FieldError(place, FailureReason.INCONSISTENT, message)
            tables[label] = read
        except FieldError as error:
            rows.refuse(error, payload=payload.name, subject=f"margin table {label}")
            broken[label] = Problem(error.reason, error.message)

    markets: dict[str, Market] = {}
    for place, entry in listed:
        with rows.guard(payload.name, subject="universe"):
            # Where no table is listed a market may be without the id of one, as recorded metas are.
            market = _market(payload, entry, place, tables=tables, broken=broken, dated=dated, has_tables=bool(pairs))
            if market.coin in markets:
                problem = Problem(FailureReason.DUPLICATE, f"{market.coin} is listed twice in {payload.name}")
                market = market._replace(tiers=None, problem=problem)
            if market.problem and not market.is_delisted:
                rows.fail(*market.problem, payload=payload.name, path=place, subject=market.coin)
            markets[market.coin] = market
    return list(markets.values())


def _market(
    payload: Payload,
    entry: Any,
    path: str,
    *,
    tables: Mapping[str, tuple[MarginTier, ...]],
    broken: Mapping[str, Problem],
    dated: DatedParameters,
    has_tables: bool,
) -> Market:
    coin = member(entry, "name", path)
    if not isinstance(coin, str) or not coin:
        raise FieldError(joined(path, "name"), FailureReason.MALFORMED, "expected the name of a coin")
    flags = {flag: entry.get(flag) for flag in ("onlyIsolated", "isDelisted")}
    for flag, value in flags.items():
        if value not in (None, True, False):
            raise FieldError(
                joined(path, flag), FailureReason.MALFORMED, f"expected true or false, found {value!r:.40}"
            )
    tiers, problem = None, None
    has_table = entry.get("marginTableId") is not None
    try:
        tiers = _listed_tiers(payload, entry, path, tables=tables, broken=broken, dated=dated, has_tables=has_tables)
    except FieldError as error:
        problem = Problem(error.reason, error.message)
    return Market(coin, tiers, problem, has_table, bool(flags["onlyIsolated"]), bool(flags["isDelisted"]), payload)


def _listed_tiers(
    payload: Payload,
    entry: Any,
    path: str,
    *,
    tables: Mapping[str, tuple[MarginTier, ...]],
    broken: Mapping[str, Problem],
    dated: DatedParameters,
    has_tables: bool,
) -> MarketTiers:
    """Tiers of one market; without a table's id the one of its maximum leverage, in payloads from before the tables."""
    max_leverage = positive_at(entry, "maxLeverage", path)
    if not has_tables and entry.get("marginTableId") is None:
        return MarketTiers(single_tier(max_leverage), f"{payload.request} maxLeverage {max_leverage}")
    number = integer_at(entry, "marginTableId", path)
    source = f"{payload.request} marginTableId {number}"
    if str(number) in broken:
        raise FieldError(path, broken[str(number)].reason, f"margin table {number}: {broken[str(number)].message}")
    if str(number) in tables:
        tiers = tables[str(number)]
    elif 0 < number < SINGLE_TIER_IDS_BELOW:
        tiers = single_tier(number)
    elif str(number) in dated.tables:
        tiers, source = dated.tables[str(number)], f"{source}, its table from {dated.source}"
    else:
        raise FieldError(
            joined(path, "marginTableId"),
            FailureReason.MISSING_PARAMETER,
            f"margin table {number} is neither in the payload nor in the selected dated parameters",
        )
    if tiers[0].max_leverage != max_leverage:
        raise FieldError(
            joined(path, "marginTableId"),
            FailureReason.INCONSISTENT,
            f"margin table {number} starts at {tiers[0].max_leverage}x, the market's maxLeverage is {max_leverage}",
        )
    return MarketTiers(tiers, source)


def merged_markets(rows: Rows, listed: Iterable[Market]) -> dict[str, Market]:
    """One market per coin from several market payloads: an entry with a margin table tells more than one without.

    Two entries that contradict each other in maximum leverage or table are a failure and leave a market with a problem.
    """
    merged: dict[str, Market] = {}
    for market in listed:
        known = merged.get(market.coin)
        merged[market.coin] = market if known is None else _merged(rows, known, market)
    return merged


def _merged(rows: Rows, known: Market, other: Market) -> Market:
    fuller, poorer = (other, known) if other.has_table and not known.has_table else (known, other)
    problem = known.problem or other.problem
    if fuller.tiers and poorer.tiers and not problem:
        same_kind = fuller.has_table == poorer.has_table
        agree = fuller.tiers.tiers[:1] == poorer.tiers.tiers[:1]
        if not agree or (same_kind and fuller.tiers.tiers != poorer.tiers.tiers):
            message = f"{known.coin}: {known.payload.name} and {other.payload.name} state different margin tiers"
            problem = Problem(FailureReason.INCONSISTENT, message)
            rows.fail(*problem, payload=other.payload.name, subject=known.coin)
    return fuller._replace(
        tiers=None if problem else fuller.tiers,
        problem=problem,
        only_isolated=known.only_isolated or other.only_isolated,
        is_delisted=known.is_delisted or other.is_delisted,
    )
