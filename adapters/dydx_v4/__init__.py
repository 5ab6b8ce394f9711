"""dYdX v4: perpetuals on a chain of their own, margined in USDC, by cross and isolated subaccounts.

Requests understood; `:<number>` behind a name states the subaccount where the body does not, and the path of the
endpoint serves as a name too:

- indexer, per owner: `subaccount`, `parentSubaccount`, `addresses`; in parts `perpetualPositions` with
  `assetPositions`; `orders`; first messages of the channels `v4_subaccounts` and `v4_parent_subaccounts`;
- indexer, market-wide: `perpetualMarkets`, first message of `v4_markets`;
- a node: `Query/Subaccount` and `Query/Leverage` per owner; `Query/AllPerpetuals`, `Query/AllMarketPrices`,
  `Query/AllLiquidityTiers` market-wide.

The indexer's equity and free collateral are kept as reported; its free collateral ignores the scaling of initial margin
by open interest, which the requirement here has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError, joined, member, members
from ..catalog import Catalog
from ..facts import VenueFacts
from ..questions import in_order, owner_of
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from . import bodies
from .bodies import Opened, Question, opened, question_of
from .markets import (
    VENUE,
    Reading,
    add_markets,
    read_indexer_markets,
    read_node_markets,
    tell_unstated_caps,
)
from .parse import (
    Account,
    Answer,
    add_account,
    add_order,
    child_records,
    leverage_rates,
    plain_accounts,
    read_account,
    record_number,
)
from .rules import rule_set_rows

_WHOLE = ("indexer", "node")
"""Answers that tell all of a subaccount; the lists of positions and of assets tell a part each."""


class _Asked(NamedTuple):
    payload: Payload
    question: Question


class _Orders(NamedTuple):
    asked: _Asked
    records: list[tuple[str, Any]]
    number: int | None


@dataclass(frozen=True)
class DydxV4Adapter:
    """Normalizes payloads of dYdX v4; see the package's docstring for the requests."""

    venue: str = VENUE
    requests: tuple[str, ...] = bodies.REQUESTS

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter."""
        rows = Rows(VENUE)
        reading = Reading(rows, context, Catalog(VENUE, context.assets))
        asked = _questions(rows, payloads)
        shared = _market_payloads(rows, asked)
        if (indexer := shared.get(bodies.MARKETS)) is not None:
            read_indexer_markets(reading, indexer)
        node = (shared.get(kind) for kind in (bodies.NODE_PERPETUALS, bodies.NODE_PRICES, bodies.NODE_TIERS))
        read_node_markets(reading, *node)
        add_markets(reading)

        answers: dict[tuple[str, int], list[Answer]] = {}
        orders: list[_Orders] = []
        for entry in asked:
            if entry.question.kind in bodies.OF_AN_OWNER:
                _collect(reading, entry, answers, orders)
        rates = _leverage(reading, asked)
        plain = plain_accounts(reading, answers, but=rates)
        for (owner, number), found in sorted(answers.items()):
            account = Account(owner, number, found[0].payload, found[0].event_at)
            if _overlap(found):
                _reject(reading, account, found)
            else:
                leverage = rates.get((owner, number))
                read_account(reading, account, found, leverage=leverage, plain=plain.get(account.account_id))
        _add_bare_accounts(reading, asked)
        _add_orders(reading, orders)
        tell_unstated_caps(reading)
        reading.catalog.write(rows)
        rows.rows["rule_sets"] += rule_set_rows()
        return Normalized(rows.batches(), rows.failures)


def _questions(rows: Rows, payloads: Sequence[Payload]) -> list[_Asked]:
    asked = []
    for payload in in_order(payloads):
        with rows.guard(payload.name, subject=payload.account or payload.request):
            question = question_of(payload.request)
            owner_of(payload, question.kind, requests=ADAPTER.requests, owned=bodies.OF_AN_OWNER)
            asked.append(_Asked(payload, question))
    return asked


def _market_payloads(rows: Rows, asked: Sequence[_Asked]) -> dict[str, Payload]:
    """The market-wide payload of each kind; where there are several, none, and each is a failure."""
    kinds = Counter(entry.question.kind for entry in asked)
    found: dict[str, Payload] = {}
    for payload, (kind, _) in asked:
        if kind in bodies.MARKET_WIDE:
            found[kind] = payload
            if kinds[kind] > 1:
                message = f"{kind} came {kinds[kind]} times, all copies are rejected"
                rows.fail(FailureReason.DUPLICATE, message, payload=payload.name, subject=payload.request)
    return {kind: payload for kind, payload in found.items() if kinds[kind] == 1}


def _collect(
    reading: Reading, entry: _Asked, answers: dict[tuple[str, int], list[Answer]], orders: list[_Orders]
) -> None:
    """Sorts a payload's records to the subaccounts that they tell of."""
    payload, (kind, number) = entry
    identity = account_id(VENUE, payload.account, "" if number is None else str(number))
    rows = reading.rows
    if kind == bodies.ORDERS:
        with rows.guard(payload.name, subject=identity):  # orders reserve no margin, so that nobody becomes incomplete
            body = opened(payload)
            listed = body.body if isinstance(body.body, list) else members(body.body, "orders", body.path)
            orders.append(_Orders(entry, [(joined(body.path, i), order) for i, order in enumerate(listed)], number))
        return
    if kind == bodies.NODE_LEVERAGE:
        return
    with rows.guard(payload.name, subject=identity, account_id=identity):
        body = opened(payload)
        for path, record in _records(kind, body):
            with rows.guard(payload.name, subject=path, account_id=identity):
                for answer in _answers(entry, body, record, path):
                    answers.setdefault((answer.owner, answer.number), []).append(answer)
        if kind in (bodies.SUBACCOUNT, bodies.PARENT) and isinstance(body.body, Mapping) and body.body.get("orders"):
            path = joined(body.path, "orders")
            listed = [(joined(path, i), order) for i, order in enumerate(members(body.body, "orders", body.path))]
            orders.append(_Orders(entry, listed, number))


def _records(kind: str, body: Opened) -> list[tuple[str, Any]]:
    if kind == bodies.PARENT:
        return child_records(body.body, body.path)
    if kind == bodies.ADDRESS:
        listed = members(body.body, "subaccounts", body.path)
        return [(joined(joined(body.path, "subaccounts"), i), record) for i, record in enumerate(listed)]
    if kind in (bodies.POSITIONS, bodies.ASSETS):
        return [(joined(body.path, "positions"), members(body.body, "positions", body.path))]
    return [(joined(body.path, "subaccount"), member(body.body, "subaccount", body.path))]


def _answers(entry: _Asked, body: Opened, record: Any, path: str) -> Iterator[Answer]:
    payload, (kind, number) = entry
    owner, event_at = payload.account, body.event_at
    if kind == bodies.NODE_SUBACCOUNT:
        identity = member(record, "id", path)
        stated = bodies.subaccount_number(bodies.number_of(identity, "number", path=joined(path, "id")), path)
        if number not in (None, stated):
            message = f"subaccount {stated}, but the request names {number}"
            raise FieldError(joined(path, "id"), FailureReason.INCONSISTENT, message)
        yield Answer(owner, stated, "node", record, path, payload, event_at)
    elif kind in (bodies.POSITIONS, bodies.ASSETS):
        part = "positions" if kind == bodies.POSITIONS else "assets"
        numbers = {record_number(held, joined(path, i), stated=number) for i, held in enumerate(record)}
        if number is not None:
            numbers.add(number)
        if not numbers:
            message = f"an empty list of {part}: name the subaccount in the request, {kind}:<number>"
            raise FieldError(path, FailureReason.MISSING_FIELD, message)
        for of in sorted(numbers):
            own = [held for i, held in enumerate(record) if record_number(held, joined(path, i), stated=number) == of]
            yield Answer(owner, of, part, own, path, payload, event_at)
    else:
        named = record_number(record, path, stated=number if kind == bodies.SUBACCOUNT else None)
        yield Answer(owner, named, "indexer", record, path, payload, event_at)


def _overlap(found: Sequence[Answer]) -> bool:
    parts = [answer.part for answer in found]
    return len(set(parts)) < len(parts) or (len(parts) > 1 and any(part in _WHOLE for part in parts))


def _reject(reading: Reading, account: Account, found: Sequence[Answer]) -> None:
    add_account(reading, account)
    for answer in found:
        message = f"subaccount {account.number} of {account.owner} is told {len(found)} times, all copies are rejected"
        reading.rows.fail(
            FailureReason.DUPLICATE,
            message,
            payload=answer.payload.name,
            path=answer.path,
            subject=account.account_id,
            account_id=account.account_id,
        )


def _add_bare_accounts(reading: Reading, asked: Sequence[_Asked]) -> None:
    """A row for every subaccount that a failure makes incomplete and that has none, so that results can show it.

    Where nobody knows the number the failure names the owner alone, and falls on whoever maps a part of it.
    """
    known = {row["account_id"] for row in reading.rows.rows["accounts"]}
    failed = {failure.account_id for failure in reading.rows.failures if failure.account_id}
    for payload, (_, number) in asked:
        if number is not None and payload.account:
            account = Account(payload.account, number, payload)
            if account.account_id in failed - known:
                known.add(account.account_id)
                add_account(reading, account)


def _leverage(reading: Reading, asked: Sequence[_Asked]) -> dict[tuple[str, int], dict[str, Decimal]]:
    """Chosen initial rates by (owner, subaccount); what cannot be read makes the subaccount incomplete."""
    rates: dict[tuple[str, int], dict[str, Decimal]] = {}
    entries = [entry for entry in asked if entry.question.kind == bodies.NODE_LEVERAGE]
    counts = Counter((entry.payload.account, entry.question.number) for entry in entries)
    for payload, (kind, number) in entries:
        identity = account_id(VENUE, payload.account, "" if number is None else str(number))
        with reading.rows.guard(payload.name, subject=identity, account_id=identity):
            if number is None:
                message = f"its body does not name the subaccount: {kind}:<number>"
                raise FieldError("request", FailureReason.MISSING_FIELD, message)
            if counts[payload.account, number] > 1:
                raise FieldError("", FailureReason.DUPLICATE, f"{payload.request} came several times, all are rejected")
            body = opened(payload)
            rates[payload.account, number] = leverage_rates(reading, payload, body.body, body.path)
    return rates


def _add_orders(reading: Reading, orders: Sequence[_Orders]) -> None:
    """Resting orders of the accounts that are there; an order that comes twice is rejected in all copies."""
    rows = reading.rows
    accounts = {row["account_id"] for row in rows.rows["accounts"]}
    ids = Counter(_order_id(record) for found in orders for _, record in found.records)
    for (payload, _), records, number in orders:
        for path, record in records:
            with rows.guard(payload.name, subject=payload.account):
                identity = _order_id(record)
                if identity and ids[identity] > 1:
                    message = f"order {identity:.60} comes {ids[identity]} times, all copies are rejected"
                    raise FieldError(path, FailureReason.DUPLICATE, message)
                length = len(rows.rows["open_orders"])
                add_order(reading, payload, record, path, owner=payload.account, number=number)
                for row in rows.rows["open_orders"][length:]:
                    if row["account_id"] not in accounts:
                        message = f"no payload tells of {row['account_id']}, whose order this is"
                        raise FieldError(path, FailureReason.INCONSISTENT, message)


def _order_id(record: Any) -> str:
    """Id of an order's record; empty where it has none, which its reader says."""
    identity = record.get("id") if isinstance(record, Mapping) else None
    return identity if isinstance(identity, str) else ""


ADAPTER = DydxV4Adapter()

FACTS = VenueFacts(
    title="dYdX v4",
    accounts=(
        "cross: subaccounts 0 to 127 of an address, each a node of its own",
        "isolated: subaccounts 128 and above, children of number mod 128, each a node of its own",
    ),
    equity="USDC with unsettled funding, plus signed notionals at the oracle price (the one that a position's "
    "own unrealized profit implies, where it states one); nothing else is collateral",
    requirement="tiered_notional with one tier per market: initial the margin fraction scaled by today's open interest "
    "(or the account's own, if larger), maintenance the base fraction times the maintenance fraction",
    verdict="liquidated when net collateral is below the maintenance requirement; at equality it stands",
    cross_or_isolated="both, by the subaccount's number; an isolated market's subaccount holds that market alone",
    orders="reserve no margin: collateral is checked when an order is placed and matched",
    liquidation="exact: fillable and bankruptcy price, insurance-fund delta, block limits, size of the next order, "
    "deleveraging condition; liquidation price in real numbers, which the chain itself does not define",
    rules=(
        "dydxprotocol/v4-chain 84d4664 (2026-03): liquidity tiers, notionals, funding, liquidations, indexer",
        "docs.dydx.exchange/concepts-trading/margin: open-interest-based margin fraction",
    ),
    parameters="margin fractions, caps and open interest from perpetualMarkets or from a node's tiers, prices and "
    "perpetuals; custom margin fractions from Query/Leverage",
    gaps=(
        "requirements are real numbers; the chain rounds each up to 1e-6 USDC",
        "the indexer's free collateral ignores scaling by open interest; it is shown as reported",
        "a market list without open-interest caps: whoever holds the market fails, its initial margin is not known",
        "in scenarios the initial fraction stays that of today's open interest",
        "the JSON names of node queries follow the protobuf files; no recorded payload of a node was at hand",
    ),
)
