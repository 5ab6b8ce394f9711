"""Answers of the self-hosted gateway of Drift v2: the program's own figures of a sub-account, in decimal text.

Collateral and requirement are kept as reported beside what is computed from the decoded accounts. The gateway alone
does not make an account: it shows neither weights and sizes of markets nor orders and unsettled profit, so that such
an account stays incomplete, with what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, decimal_at, integer_at, joined, member, members, non_negative_at, positive_at
from ..symbols import account_id
from ..transport import Payload
from .accounts import add_account_row
from .markets import VENUE, Reading, add_state

POSITIONS = "/v2/positions"
POSITION_INFO = "/v2/positionInfo"
COLLATERAL = "/v2/collateral"
MARGIN_INFO = "/v2/user/marginInfo"
LEVERAGE = "/v2/leverage"
MARKETS = "/v2/markets"
MARKET_INFO = "/v2/marketInfo"
EVERYTHING = "gateway"
"""A map of answers by the request that each one answers."""
OF_AN_OWNER = (POSITIONS, POSITION_INFO, COLLATERAL, MARGIN_INFO, LEVERAGE)
MARKET_WIDE = (MARKETS, MARKET_INFO)
REQUESTS = (*OF_AN_OWNER, *MARKET_WIDE, EVERYTHING)

_SUB_ACCOUNT = re.compile(r"[?&]subAccountId=(\d+)")


class Question(NamedTuple):
    """A request of `REQUESTS`, the sub-account (0 where nothing names another) and the market that it asks for."""

    kind: str
    number: int
    market: int | None


def question_of(request: str) -> Question | None:
    """The question of a gateway request's name; None for a name that is none of them."""
    text = request.strip().removeprefix("GET ").strip()
    stated = _SUB_ACCOUNT.search(text)
    text, _, suffix = text.partition("?")[0].partition(" ")[0].partition(":")
    number = int(stated[1]) if stated else int(suffix) if suffix.isdecimal() else 0
    if text == EVERYTHING:
        return Question(EVERYTHING, number, None)
    name = "/v2/" + text.strip("/").removeprefix("v2/")
    if name == "/v2/marginInfo":
        name = MARGIN_INFO
    head, _, last = name.rpartition("/")
    if head in (POSITION_INFO, MARKET_INFO) and last.isdecimal():
        return Question(head, number, int(last))
    return Question(name, number, None) if name in REQUESTS else None


class Answer(NamedTuple):
    """One answer: its question, its body and where it stands."""

    question: Question
    body: Any
    path: str
    payload: Payload


@dataclass
class Figures:
    """What the gateway says of one sub-account."""

    payload: Payload
    reported: dict[str, Decimal | None] = field(default_factory=dict)
    liquidation_prices: dict[int, Decimal] = field(default_factory=dict)
    positions: Answer | None = None
    infos: dict[int, Answer] = field(default_factory=dict)


def answers_in(payload: Payload, question: Question) -> list[Answer]:
    """The answer of a payload, or those in its map; raises `FieldError` for a map of another shape."""
    if question.kind != EVERYTHING:
        return [Answer(question, payload.body, "", payload)]
    if not isinstance(payload.body, Mapping):
        raise FieldError("", FailureReason.MALFORMED, f"expected a map of answers, found {type(payload.body).__name__}")
    found = []
    for request, body in payload.body.items():
        asked = question_of(request)
        if asked is None or asked.kind == EVERYTHING:
            raise FieldError(request, FailureReason.UNSUPPORTED, f"{request!r:.60} is no request of the gateway")
        found.append(Answer(asked, body, request, payload))
    return found


def read_figures(reading: Reading, owner: str, number: int, payload: Payload, answers: Sequence[Answer]) -> Figures:
    """The gateway's figures of a sub-account; one that cannot be read is a finding and stops nobody."""
    figures = Figures(payload)
    identity = account_id(VENUE, owner, str(number))
    for answer in answers:
        kind, body, path = answer.question.kind, answer.body, answer.path
        with reading.rows.guard(answer.payload.name, subject=identity):
            if kind == COLLATERAL:
                figures.reported["reported_equity"] = decimal_at(body, "total", path)
            elif kind == MARGIN_INFO:
                initial, maintenance = (
                    non_negative_at(body, "initial", path),
                    non_negative_at(body, "maintenance", path),
                )
                figures.reported["reported_initial_margin"] = initial
                figures.reported["reported_maintenance_margin"] = maintenance
            elif kind == LEVERAGE:
                non_negative_at(body, "leverage", path)  # a ratio of the account's values, which no table holds
            elif kind == POSITIONS:
                figures.positions = answer
            elif kind == POSITION_INFO:
                market = integer_at(body, "marketIndex", path)
                if market != answer.question.market:
                    message = f"the position of market {market} answers a question for {answer.question.market}"
                    raise FieldError(joined(path, "marketIndex"), FailureReason.INCONSISTENT, message)
                figures.infos[market] = answer
                if body.get("liquidationPrice") is not None:
                    figures.liquidation_prices[market] = non_negative_at(body, "liquidationPrice", path)
    return figures


def read_market_answers(reading: Reading, answers: Sequence[Answer]) -> dict[tuple[str, int], str]:
    """Symbols by kind and index of market; adds open interest of the markets that are known by then."""
    symbols = {("spot", index): spot.symbol for index, spot in reading.spots.items()}
    symbols |= {("perp", index): perp.symbol for index, perp in reading.perps.items()}
    for answer in answers:
        if answer.question.kind == MARKETS:
            with reading.rows.guard(answer.payload.name, subject=answer.payload.request):
                for kind, path, entry in _listed(answer.body, answer.path):
                    symbol = member(entry, "symbol", path)
                    if not isinstance(symbol, str) or not symbol:
                        raise FieldError(joined(path, "symbol"), FailureReason.MALFORMED, "expected a market's symbol")
                    symbols.setdefault((kind, integer_at(entry, "marketIndex", path)), symbol)
    for answer in answers:
        symbol = symbols.get(("perp", answer.question.market or 0), "")
        if answer.question.kind == MARKET_INFO and symbol:
            with reading.rows.guard(answer.payload.name, subject=symbol):
                state = {
                    name: non_negative_at(answer.body, key, answer.path)
                    for name, key in (("open_interest", "openInterest"), ("open_interest_cap", "maxOpenInterest"))
                    if isinstance(answer.body, Mapping) and key in answer.body
                }
                identity = reading.perp_instrument(symbol, answer.path)
                known = {(r["market"], r["field"]) for r in reading.rows.rows["market_state"]}
                fresh = {name: value for name, value in state.items() if (identity, name) not in known}
                add_state(reading, identity, fresh, answer.payload)
    return symbols


def _listed(body: Any, path: str) -> list[tuple[str, str, Any]]:
    if isinstance(body, Mapping) and "marketIndex" in body:  # one entry alone
        is_perp = str(body.get("symbol", "")).endswith("-PERP")
        return [("perp" if is_perp else "spot", path, body)]
    found = []
    for kind in ("spot", "perp"):
        found += [(kind, joined(joined(path, kind), i), entry) for i, entry in enumerate(members(body, kind, path))]
    return found


# An account of the gateway alone --------------------------------------------------------------------------------------


def add_reported_account(
    reading: Reading, owner: str, number: int, figures: Figures, symbols: Mapping[tuple[str, int], str]
) -> None:
    """An account that the gateway alone tells of: its figures and holdings, and why it cannot be computed."""
    rows, identity, payload = reading.rows, account_id(VENUE, owner, str(number)), figures.payload
    message = "the gateway shows neither weights by size nor orders nor unsettled profit: a decoded user is needed"
    rows.fail(
        FailureReason.MISSING_PARAMETER, message, payload=payload.name, path="user", subject=identity,
        account_id=identity,
    )  # fmt: skip
    answer = figures.positions
    held: set[int] = set()
    if answer is not None:
        with rows.guard(answer.payload.name, subject=identity, account_id=identity):
            for i, entry in enumerate(members(answer.body, "spot", answer.path)):
                path = joined(joined(answer.path, "spot"), i)
                with rows.guard(answer.payload.name, subject=identity, account_id=identity):
                    _add_balance(reading, entry, path, identity, symbols)
            for i, entry in enumerate(members(answer.body, "perp", answer.path)):
                path = joined(joined(answer.path, "perp"), i)
                with rows.guard(answer.payload.name, subject=identity, account_id=identity):
                    held.add(integer_at(entry, "marketIndex", path))
                    _add_position(reading, entry, path, identity, symbols, figures)
    for market, info in figures.infos.items():
        if market not in held:
            with rows.guard(info.payload.name, subject=identity, account_id=identity):
                if answer is not None:
                    message = f"a position in market {market}, which the list of positions does not have"
                    raise FieldError(joined(info.path, "amount"), FailureReason.INCONSISTENT, message)
                _add_position(reading, info.body, info.path, identity, symbols, figures)
    add_account_row(reading, payload, identity, owner=owner, reported=figures.reported)


def _symbol(symbols: Mapping[tuple[str, int], str], kind: str, entry: Any, path: str) -> str:
    index = integer_at(entry, "marketIndex", path)
    if (kind, index) not in symbols:
        message = f"no payload names {kind} market {index}"
        raise FieldError(joined(path, "marketIndex"), FailureReason.UNKNOWN_MARKET, message)
    return symbols[kind, index]


def _add_balance(
    reading: Reading, entry: Any, path: str, identity: str, symbols: Mapping[tuple[str, int], str]
) -> None:
    side = member(entry, "type", path)
    if side not in ("deposit", "borrow"):
        raise FieldError(joined(path, "type"), FailureReason.MALFORMED, f"{side!r:.40} is neither deposit nor borrow")
    asset = reading.token(_symbol(symbols, "spot", entry, path), None, joined(path, "marketIndex"))
    reading.rows.add(
        "balances",
        account_id=identity,
        asset_id=asset,
        side="asset" if side == "deposit" else "liability",
        quantity=abs(decimal_at(entry, "amount", path)),
        collateral_enabled=True,
    )


def _add_position(
    reading: Reading,
    entry: Any,
    path: str,
    identity: str,
    symbols: Mapping[tuple[str, int], str],
    figures: Figures,
) -> None:
    symbol = _symbol(symbols, "perp", entry, path)
    amount = decimal_at(entry, "amount", path)
    if amount:
        reading.rows.add(
            "positions",
            account_id=identity,
            instrument_id=reading.perp_instrument(symbol, joined(path, "marketIndex")),
            side_mode="net",
            quantity=amount,
            entry_price=positive_at(entry, "averageEntry", path),
            reported_liquidation_price=figures.liquidation_prices.get(integer_at(entry, "marketIndex", path)),
        )
