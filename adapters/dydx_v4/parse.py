"""Subaccounts of dYdX v4: positions, USDC, orders and chosen leverage, from the indexer or from a node.

Every subaccount is an account of its own: 0 to 127 cross, the others isolated children of `number mod 128`. USDC is the
only collateral. The cash of an account is its USDC plus, for every position, size times entry price, so that cash plus
profit is the venue's equity, USDC plus the notional at the oracle price, to the last digit. The indexer's USDC has
unsettled funding applied already; of a node's quantums it is settled here, with one rounding for the whole account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..account_rows import add_balance
from ..amounts import (
    FieldError,
    decimal_at,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    positive_at,
    token_amount,
)
from ..market_rows import add_mark, add_reconciliation_note
from ..symbols import account_id
from ..transport import Payload
from .bodies import field_of, number_of, signed_quantums, subaccount_number
from .markets import CHAIN, USDC, VENUE, Reading, repeated
from .mechanics import PPM, QUOTE_DECIMALS, is_isolated, parent_number, settled_funding, settlement_ppm
from .position_columns import PlainPositions, plain_positions, question_of
from .rules import RULES

_EXACT_DIGITS = 80
USDC_ASSET_ID = 0
OPEN_STATUSES = ("OPEN", "BEST_EFFORT_OPENED")
"""Orders that rest on the book; an untriggered or finished one is none."""


class Answer(NamedTuple):
    """One record that tells all or a part of a subaccount: `part` is indexer, node, positions or assets."""

    owner: str
    number: int
    part: str
    record: Any
    path: str
    payload: Payload
    event_at: datetime | None = None


@dataclass
class Account:
    """A subaccount while it is read; `usdc` is None while it is not known."""

    owner: str
    number: int
    payload: Payload
    event_at: datetime | None = None
    usdc: Decimal | None = None
    entry_cost: Decimal = Decimal(0)
    reported: dict[str, Decimal | None] = field(default_factory=dict)
    isolated_markets: list[str] = field(default_factory=list)
    held: int = 0
    beyond_base: Decimal = Decimal(0)
    """What the positions need initially beyond their markets' base fractions, USDC."""

    @property
    def account_id(self) -> str:
        """Canonical id."""
        return account_id(VENUE, self.owner, str(self.number))


# ----------------------------------------------------------------------------------------------------------------------
# Records of a payload


def record_number(record: Any, path: str, *, stated: int | None) -> int:
    """Number of an indexer's subaccount record; what the request's name states must agree."""
    if not isinstance(record, Mapping) or record.get("subaccountNumber") is None:
        if stated is not None:
            return subaccount_number(stated, path)
        member(record, "subaccountNumber", path)
    place = joined(path, "subaccountNumber")
    number = subaccount_number(record["subaccountNumber"], place)
    if stated not in (None, number):
        message = f"subaccount {number}, but the request names {stated}"
        raise FieldError(place, FailureReason.INCONSISTENT, message)
    return number


def child_records(body: Any, path: str) -> list[tuple[str, Any]]:
    """(path, record) of the children in a parent's answer; each must belong to the parent."""
    parent = member(body, "subaccount", path)
    place = joined(path, "subaccount")
    listed = members(parent, "childSubaccounts", place)
    if parent.get("parentSubaccountNumber") is not None:
        number = subaccount_number(parent["parentSubaccountNumber"], joined(place, "parentSubaccountNumber"))
        for i, child in enumerate(listed):
            of_child = child.get("subaccountNumber") if isinstance(child, Mapping) else None
            if isinstance(of_child, int) and parent_number(of_child) != number:
                message = f"subaccount {of_child} is no child of {number}"
                raise FieldError(f"{place}.childSubaccounts[{i}]", FailureReason.INCONSISTENT, message)
    return [(joined(joined(place, "childSubaccounts"), i), child) for i, child in enumerate(listed)]


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def plain_accounts(
    reading: Reading, answers: Mapping[tuple[str, int], list[Answer]], *, but: Collection[tuple[str, int]]
) -> dict[str, PlainPositions]:
    """By account id the positions that columns can read; `but`: subaccounts that have chosen their leverage."""
    questions = []
    for (owner, number), found in answers.items():
        own = [answer for answer in found if answer.part != "assets"]
        if len(own) == 1 and (owner, number) not in but:
            account = Account(owner, number, found[0].payload, found[0].event_at)
            as_of = account.event_at or own[0].payload.received_at
            question = question_of(account.account_id, own[0].record, own[0].part, as_of)
            questions += [] if question is None else [question]
    return plain_positions(reading, questions)


def read_account(
    reading: Reading,
    account: Account,
    answers: list[Answer],
    *,
    leverage: Mapping[str, Decimal] | None,
    plain: PlainPositions | None = None,
) -> None:
    """All rows of one subaccount from its answers, which do not overlap. `leverage`: initial rates by ticker.

    `plain` are its positions where they have been read already.
    """
    rows, identity = reading.rows, account.account_id
    parts = {answer.part for answer in answers}
    for answer in answers:
        with rows.guard(answer.payload.name, subject=identity, account_id=identity):
            if answer.part == "node":
                _read_node(reading, account, answer, leverage=leverage or {})
            elif answer.part != "assets" and plain is not None:
                _take_plain(reading, account, plain)
            elif answer.part != "assets":
                _read_positions(reading, account, answer, leverage=leverage or {})
        if answer.part in ("indexer", "assets"):
            with rows.guard(answer.payload.name, subject=identity, account_id=identity):
                account.usdc = _indexer_usdc(answer)
        if answer.part == "indexer":
            _read_reported(reading, account, answer)
    for part, what in (("positions", "assets"), ("assets", "positions")):
        if part in parts and what not in parts:
            message = f"the {part} of subaccount {account.number} came without its {what}"
            rows.fail(FailureReason.MISSING_FIELD, message, path=what, subject=identity, account_id=identity)
    if account.isolated_markets and account.held > 1:
        message = f"{account.isolated_markets[0]} is an isolated market, but {account.held} positions are held"
        rows.fail(FailureReason.INCONSISTENT, message, payload=answers[0].payload.name, subject=identity)
    add_account(reading, account)


def _take_plain(reading: Reading, account: Account, plain: PlainPositions) -> None:
    reading.rows.add_table("positions", plain.positions)
    reading.rows.add_table("marks", plain.marks)
    account.held += plain.held
    with localcontext(prec=_EXACT_DIGITS):
        account.entry_cost += plain.entry_cost
        account.beyond_base += plain.beyond_base


def _read_reported(reading: Reading, account: Account, answer: Answer) -> None:
    """The indexer's own figures: its initial requirement is equity less free collateral, at base fractions."""
    with reading.rows.guard(answer.payload.name, subject=account.account_id):
        equity = optional_decimal_at(answer.record, "equity", answer.path)
        free = optional_decimal_at(answer.record, "freeCollateral", answer.path)
        account.reported["reported_equity"] = equity
        if equity is not None and free is not None:
            account.reported["reported_initial_margin"] = equity - free
            _note_base_fractions(reading, account, answer)


def _note_base_fractions(reading: Reading, account: Account, answer: Answer) -> None:
    """A note for the reconciliation where the chain asks for more than the indexer's figure."""
    if account.beyond_base:
        add_reconciliation_note(
            reading.rows,
            account.account_id,
            "initial_margin",
            account.beyond_base,
            "the indexer counts base fractions, whatever open interest and chosen leverage ask for",
            as_of=account.event_at or answer.payload.received_at,
            source=answer.payload.request,
        )


def add_account(reading: Reading, account: Account) -> None:
    """The account's row, and its cash where it is known."""
    number, settlement = account.number, f"{USDC}@{CHAIN}"
    with reading.rows.guard(account.payload.name, subject=account.account_id, account_id=account.account_id):
        settlement = reading.settlement()
    isolated = is_isolated(number)
    parent = account_id(VENUE, account.owner, str(parent_number(number))) if isolated else None
    reading.rows.add(
        "accounts",
        account_id=account.account_id,
        parent_account_id=parent,
        node=account.account_id,
        venue=VENUE,
        chain=CHAIN,
        owner=account.owner,
        margin_mode="isolated" if isolated else "cross",
        rule_set=RULES,
        settlement_asset=settlement,
        event_at=account.event_at,
        received_at=account.payload.received_at,
        **account.reported,
    )
    if account.usdc is None:
        return
    with localcontext(prec=_EXACT_DIGITS):
        cash = account.usdc + account.entry_cost
    if cash:
        add_balance(reading.rows, account.account_id, settlement, cash)


def _add_position(
    reading: Reading,
    account: Account,
    ticker: str,
    size: Decimal,
    *,
    entry_price: Decimal | None,
    own_price: Decimal | None,
    leverage: Mapping[str, Decimal],
    answer: Answer,
    path: str,
) -> None:
    """A position. Without an entry price it is entered at the oracle price, so that its profit is in the cash."""
    instrument = reading.instrument(ticker, path=path)
    market = reading.held_market(ticker, path=path)
    if entry_price is None:
        if market is None:
            raise FieldError(path, FailureReason.MISSING_MARK, f"no oracle price of {ticker}")
        entry_price = market.price
    reading.rows.add(
        "positions",
        account_id=account.account_id,
        instrument_id=instrument,
        side_mode="net",
        quantity=size,
        entry_price=entry_price,
        unsettled_funding=Decimal(0),
        initial_rate_override=leverage.get(ticker),
    )
    if own_price is not None:
        as_of = account.event_at or answer.payload.received_at
        source = "entryPrice + unrealizedPnl / size"
        add_mark(reading.rows, instrument, "mark", own_price, as_of=as_of, source=source, account_id=account.account_id)
    if market is None:
        message = f"no list of markets says how {ticker} is margined"
        reading.rows.fail(
            FailureReason.MISSING_PARAMETER,
            message,
            payload=answer.payload.name,
            path=path,
            subject=instrument,
            account_id=account.account_id,
        )
    elif market.is_isolated:
        account.isolated_markets.append(ticker)
    account.held += 1
    with localcontext(prec=_EXACT_DIGITS):
        account.entry_cost += size * entry_price
        if market is not None:
            base = Decimal(market.base_imf_ppm) / PPM
            rate = max(Decimal(market.effective_imf_ppm) / PPM, leverage.get(ticker) or base)
            account.beyond_base += abs(size) * (own_price or market.price) * (rate - base)


# ----------------------------------------------------------------------------------------------------------------------
# The indexer's records


def _read_positions(reading: Reading, account: Account, answer: Answer, *, leverage: Mapping[str, Decimal]) -> None:
    rows, identity = reading.rows, account.account_id
    listed = _position_records(answer)
    names = Counter(str(record.get("market")) for _, record in listed if _is_open(record))
    for path, record in listed:
        with rows.guard(answer.payload.name, subject=path, account_id=identity):
            status = record.get("status", "OPEN") if isinstance(record, Mapping) else "OPEN"
            if status in ("CLOSED", "LIQUIDATED"):
                continue
            ticker = member(record, "market", path)
            if not isinstance(ticker, str) or not ticker:
                raise FieldError(joined(path, "market"), FailureReason.MALFORMED, "expected the name of a market")
            if status != "OPEN":
                raise FieldError(joined(path, "status"), FailureReason.UNSUPPORTED, f"status {status!r:.40}")
            repeated(names, ticker, path)
            size = _signed(record, path)
            if size == 0:
                continue
            entry = positive_at(record, "entryPrice", path)
            _add_position(
                reading,
                account,
                ticker,
                size,
                entry_price=entry,
                own_price=_implied_price(record, path, size=size, entry=entry),
                leverage=leverage,
                answer=answer,
                path=path,
            )


def _is_open(record: Any) -> bool:
    return isinstance(record, Mapping) and record.get("status", "OPEN") == "OPEN"


def _position_records(answer: Answer) -> list[tuple[str, Any]]:
    """(path, record) of the open positions of a subaccount: a map by market, or a list."""
    if answer.part == "positions":
        return [(joined(answer.path, i), record) for i, record in enumerate(answer.record)]
    place = joined(answer.path, "openPerpetualPositions")
    listed = member(answer.record, "openPerpetualPositions", answer.path)
    if not isinstance(listed, Mapping):
        message = f"expected an object of positions, found {type(listed).__name__}"
        raise FieldError(place, FailureReason.MALFORMED, message)
    for ticker, record in listed.items():
        if isinstance(record, Mapping) and record.get("market") not in (None, ticker):
            message = f"the position listed under {ticker} is of {record['market']!r:.40}"
            raise FieldError(joined(place, ticker), FailureReason.INCONSISTENT, message)
    return [(joined(place, ticker), record) for ticker, record in listed.items()]


def _signed(record: Any, path: str, key: str = "size") -> Decimal:
    """Size with the sign of its side; the indexer writes a short with a minus or without."""
    size, side = decimal_at(record, key, path), member(record, "side", path)
    if side not in ("LONG", "SHORT"):
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"{side!r:.40} is neither LONG nor SHORT")
    if side == "LONG" and size < 0:
        raise FieldError(joined(path, key), FailureReason.INCONSISTENT, f"a long of {size}")
    return size if side == "LONG" else size.copy_abs().copy_negate()  # a minus sign would round to 28 digits


def _implied_price(record: Any, path: str, *, size: Decimal, entry: Decimal) -> Decimal | None:
    """Oracle price at which the indexer valued the position; None where it states no profit."""
    profit = optional_decimal_at(record, "unrealizedPnl", path)
    if profit is None:
        return None
    with localcontext(prec=_EXACT_DIGITS):
        price = entry + profit / size
    if price <= 0:
        message = f"a profit of {profit} on {size} entered at {entry} needs an oracle price of {price:.6g}"
        raise FieldError(joined(path, "unrealizedPnl"), FailureReason.INCONSISTENT, message)
    return price


def _indexer_usdc(answer: Answer) -> Decimal:
    """Signed USDC; no asset positions at all are 0. Raises `FieldError(unsupported)` for another asset."""
    if answer.part == "assets":
        listed = [(joined(answer.path, i), record) for i, record in enumerate(answer.record)]
    else:
        place = joined(answer.path, "assetPositions")
        found = member(answer.record, "assetPositions", answer.path)
        if not isinstance(found, Mapping):
            message = f"expected an object of assets, found {type(found).__name__}"
            raise FieldError(place, FailureReason.MALFORMED, message)
        listed = [(joined(place, symbol), record) for symbol, record in found.items()]
    usdc = Decimal(0)
    for number, (path, record) in enumerate(listed):
        symbol = member(record, "symbol", path)
        if symbol != USDC:
            message = f"{symbol!r:.40}: only USDC is collateral on this venue"
            raise FieldError(joined(path, "symbol"), FailureReason.UNSUPPORTED, message)
        if number:
            raise FieldError(path, FailureReason.DUPLICATE, "USDC is listed several times, all copies are rejected")
        usdc = _signed(record, path)
    return usdc


# ----------------------------------------------------------------------------------------------------------------------
# A node's record


def _read_node(reading: Reading, account: Account, answer: Answer, *, leverage: Mapping[str, Decimal]) -> None:
    """Positions in base quantums, and USDC with the funding that all of them have not settled yet."""
    rows, record = reading.rows, answer.record
    listed = _node_list(record, "perpetual_positions", "perpetualPositions", answer.path)
    ids = Counter(number_of(held, "perpetual_id", "perpetualId", path=path) for path, held in listed)
    settlements, balance, before = list[int](), _node_usdc(record, answer.path), len(rows.failures)
    for path, held in listed:
        with rows.guard(answer.payload.name, subject=path, account_id=account.account_id):
            identity = number_of(held, "perpetual_id", "perpetualId", path=path)
            repeated(ids, identity, path)
            if identity in reading.broken_perpetuals:
                raise FieldError(path, *reading.broken_perpetuals[identity])
            perpetual = reading.perpetuals.get(identity)
            if perpetual is None:
                message = f"perpetual {identity} is in no node's list of perpetuals"
                raise FieldError(path, FailureReason.UNKNOWN_MARKET, message)
            quantums = _held_quantums(held, path)
            entry_index = signed_quantums(held, "funding_index" if "funding_index" in held else "fundingIndex", path)
            settlements.append(settlement_ppm(quantums, current_index=perpetual.funding_index, entry_index=entry_index))
            balance += signed_quantums(held, "quote_balance" if "quote_balance" in held else "quoteBalance", path)
            if quantums:
                _add_position(
                    reading,
                    account,
                    perpetual.ticker,
                    token_amount(quantums, -perpetual.atomic_resolution),
                    entry_price=None,
                    own_price=None,
                    leverage=leverage,
                    answer=answer,
                    path=path,
                )
    if len(rows.failures) > before:
        return
    # The notional that is entered here at the oracle price is what the account's cash lacks to its net collateral.
    with localcontext(prec=_EXACT_DIGITS):
        account.usdc = token_amount(balance + settled_funding(settlements), QUOTE_DECIMALS)


def _held_quantums(held: Any, path: str) -> int:
    """Quantums of what a subaccount holds; a node that leaves zeros out does not list what is not held."""
    if member(held, "quantums", path) == "":
        raise FieldError(joined(path, "quantums"), FailureReason.MISSING_FIELD, "a position without its quantums")
    return signed_quantums(held, "quantums", path)


def _node_list(record: Any, snake: str, camel: str, path: str) -> list[tuple[str, Any]]:
    key = camel if isinstance(record, Mapping) and camel in record else snake
    if isinstance(record, Mapping) and record.get(key) is None:
        return []  # a node does not write out an empty list
    return [(joined(joined(path, key), i), held) for i, held in enumerate(members(record, key, path))]


def _node_usdc(record: Any, path: str) -> int:
    balance = 0
    for number, (place, held) in enumerate(_node_list(record, "asset_positions", "assetPositions", path)):
        identity = number_of(held, "asset_id", "assetId", path=place)
        if identity != USDC_ASSET_ID:
            message = f"asset {identity}: only USDC, asset 0, is collateral on this venue"
            raise FieldError(place, FailureReason.UNSUPPORTED, message)
        if number:
            raise FieldError(place, FailureReason.DUPLICATE, "USDC is listed several times, all copies are rejected")
        balance = _held_quantums(held, place)
    return balance


def leverage_rates(reading: Reading, payload: Payload, body: Any, path: str) -> dict[str, Decimal]:
    """Initial rates by ticker that an account has chosen for itself; raises `FieldError`."""
    key = "clob_pair_leverage" if isinstance(body, Mapping) and "clob_pair_leverage" in body else "clobPairLeverage"
    rates: dict[str, Decimal] = {}
    for i, record in enumerate(members(body, key, path)):
        place = joined(joined(path, key), i)
        pair = number_of(record, "clob_pair_id", "clobPairId", path=place)
        ticker = reading.pairs.get(pair)
        if ticker is None:
            raise FieldError(place, FailureReason.UNKNOWN_MARKET, f"no list of markets names the pair {pair}")
        if ticker in rates:
            raise FieldError(place, FailureReason.DUPLICATE, f"pair {pair} is listed several times")
        stated = field_of(record, "custom_imf_ppm", "customImfPpm", path=place)
        ppm = number_of({"custom_imf_ppm": stated}, "custom_imf_ppm", path=place)
        if ppm > PPM:
            raise FieldError(place, FailureReason.OUT_OF_RANGE, f"a margin fraction of {ppm} ppm")
        rates[ticker] = Decimal(ppm) / PPM
    return rates


# ----------------------------------------------------------------------------------------------------------------------
# Orders


def add_order(reading: Reading, payload: Payload, record: Any, path: str, *, owner: str, number: int | None) -> None:
    """One order that rests on the book. Orders reserve no margin: it is checked when they are placed and matched.

    `number` is the subaccount where the record itself does not state it.
    """
    status = member(record, "status", path)
    if status not in OPEN_STATUSES:
        return
    side = member(record, "side", path)
    if side not in ("BUY", "SELL"):
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"{side!r:.40} is neither BUY nor SELL")
    held = record_number(record, path, stated=None if record.get("subaccountNumber") is not None else number)
    ticker, identity = member(record, "ticker", path), member(record, "id", path)
    if not isinstance(identity, str):
        raise FieldError(joined(path, "id"), FailureReason.MALFORMED, "expected the id of an order")
    size = positive_at(record, "size", path)
    remaining = optional_decimal_at(record, "remainingSize", path)
    if remaining is None or record.get("totalFilled") is not None:
        filled = non_negative_at(record, "totalFilled", path)
    else:
        filled = size - remaining
    remaining = size - filled if remaining is None else remaining
    if not 0 <= remaining <= size:
        raise FieldError(path, FailureReason.INCONSISTENT, f"{filled} of {size} is filled, {remaining} remain")
    if remaining:
        reading.rows.add(
            "open_orders",
            order_id=f"{VENUE}:{identity}",
            account_id=account_id(VENUE, owner, str(held)),
            instrument_id=reading.instrument(str(ticker), path=path),
            side=side.lower(),
            remaining_quantity=remaining,
            limit_price=optional_decimal_at(record, "price", path),
            reduce_only=record.get("reduceOnly") is True,
        )
