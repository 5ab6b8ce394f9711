"""Drift v2: spot deposits and borrows, perpetuals and open orders of a sub-account in one margin, on Solana.

Requests understood:

- decoded program accounts (integers, see `decoded`): `user` per owner, one sub-account or several; `spotMarkets`,
  `perpMarkets` and `state` market-wide, one account or several;
- the self-hosted gateway, per owner: `/v2/positions`, `/v2/positionInfo/<market>`, `/v2/collateral`,
  `/v2/user/marginInfo`, `/v2/leverage` (`?subAccountId=<n>` or `:<n>`, else sub-account 0); market-wide: `/v2/markets`,
  `/v2/marketInfo/<market>`; `gateway` for a map of such answers.

An account is computed from its decoded `User` and its markets; the gateway's figures stand beside it as reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..catalog import Catalog
from ..facts import VenueFacts
from ..questions import in_order, owner_of, reject_copies
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from . import gateway
from .accounts import User, add_account_row, read_user, sub_account_of
from .decoded import accounts_in
from .gateway import Answer, Figures, add_reported_account, answers_in, read_figures, read_market_answers
from .markets import VENUE, Reading, add_shared_rows, read_markets, read_state
from .rules import rule_set_rows

USER = "user"
SPOT_MARKETS = "spotMarkets"
PERP_MARKETS = "perpMarkets"
STATE = "state"
DECODED = (USER, SPOT_MARKETS, PERP_MARKETS, STATE)
_OWNED = (USER, *gateway.OF_AN_OWNER, gateway.EVERYTHING)


@dataclass(frozen=True)
class DriftV2Adapter:
    """Normalizes payloads of Drift v2; see the package's docstring for the requests."""

    venue: str = VENUE
    requests: tuple[str, ...] = (*DECODED, *gateway.REQUESTS)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter.

        Raises `ConfigurationError` for a parameter file of another shape.
        """
        rows = Rows(VENUE)
        reading = Reading(rows, context, Catalog(VENUE, context.assets))
        decoded, answers = _sorted_out(rows, payloads)
        for request in (SPOT_MARKETS, PERP_MARKETS, STATE):  # USDC before what settles in it
            payload = _single(rows, decoded, request)
            if payload is not None and request == STATE:
                read_state(reading, payload)
            elif payload is not None:
                read_markets(reading, payload, "spot" if request == SPOT_MARKETS else "perp")

        of_owners, market_wide = _by_account(rows, answers)
        symbols = read_market_answers(reading, market_wide)
        figures = {key: read_figures(reading, *key, *found) for key, found in sorted(of_owners.items())}
        users = _users(reading, decoded)
        for key, found in sorted(users.items()):
            told = figures.get(key)
            if len(found) > 1:
                _reject(reading, found, told)
            else:
                prices = told.liquidation_prices if told else {}
                read_user(reading, found[0], reported=told.reported if told else {}, liquidation_prices=prices)
        for key, told in figures.items():
            if key not in users:
                add_reported_account(reading, *key, told, symbols)
        _add_missing_rules(rows)
        add_shared_rows(reading)
        return Normalized(rows.batches(), rows.failures)


def _sorted_out(rows: Rows, payloads: Sequence[Payload]) -> tuple[list[Payload], list[Answer]]:
    """(payloads of decoded accounts, answers of the gateway); anything else is a failure."""
    decoded, answers = list[Payload](), list[Answer]()
    for payload in in_order(payloads):
        with rows.guard(payload.name, subject=payload.account or payload.request):
            question = gateway.question_of(payload.request)
            request = payload.request if question is None else question.kind
            owner_of(payload, request, requests=(*DECODED, *gateway.REQUESTS), owned=_OWNED)
            if question is None:
                decoded.append(payload)
            else:
                answers += answers_in(payload, question)
    return decoded, answers


def _single(rows: Rows, payloads: Sequence[Payload], request: str) -> Payload | None:
    """The payload of a market-wide request; where there are several, none, and each is a failure."""
    copies = [payload for payload in payloads if payload.request == request]
    if len(copies) == 1:
        return copies[0]
    reject_copies(rows, copies)
    return None


def _by_account(
    rows: Rows, answers: Sequence[Answer]
) -> tuple[dict[tuple[str, int], tuple[Payload, list[Answer]]], list[Answer]]:
    """The gateway's answers by (owner, sub-account) with one of their payloads, and the market-wide ones.

    Of several answers to one question all are rejected.
    """

    def key(answer: Answer) -> tuple[str, gateway.Question]:
        wide = answer.question.kind in gateway.MARKET_WIDE
        return "" if wide else answer.payload.account, answer.question

    counts = Counter(key(answer) for answer in answers)
    of_owners: dict[tuple[str, int], tuple[Payload, list[Answer]]] = {}
    market_wide = []
    for answer in answers:
        owner, question = key(answer)
        if counts[key(answer)] > 1:
            rows.fail(
                FailureReason.DUPLICATE,
                f"{question.kind} came {counts[key(answer)]} times, all copies are rejected",
                payload=answer.payload.name,
                path=answer.path,
                subject=owner or question.kind,
            )
        if question.kind in gateway.MARKET_WIDE:
            market_wide += [answer] if counts[key(answer)] == 1 else []
        else:
            _, found = of_owners.setdefault((owner, question.number), (answer.payload, []))
            found += [answer] if counts[key(answer)] == 1 else []
    return of_owners, market_wide


def _users(reading: Reading, decoded: Sequence[Payload]) -> dict[tuple[str, int], list[User]]:
    """Decoded users by (owner, sub-account).

    One whose number cannot be read is a failure of the owner alone, and falls on whoever maps a part of it.
    """
    users: dict[tuple[str, int], list[User]] = {}
    for payload in decoded:
        if payload.request != USER:
            continue
        bare = account_id(VENUE, payload.account)
        with reading.rows.guard(payload.name, subject=bare, account_id=bare):
            for path, record in accounts_in(payload.body):
                with reading.rows.guard(payload.name, subject=bare, account_id=bare):
                    number = sub_account_of(record, path)
                    user = User(payload.account, number, record, path, payload)
                    users.setdefault((payload.account, number), []).append(user)
    return users


def _reject(reading: Reading, found: Sequence[User], told: Figures | None) -> None:
    first = found[0]
    reported = told.reported if told else {}
    add_account_row(reading, first.payload, first.account_id, owner=first.owner, reported=reported)
    for user in found:
        reading.rows.fail(
            FailureReason.DUPLICATE,
            f"sub-account {user.number} of {user.owner} is told {len(found)} times, all copies are rejected",
            payload=user.payload.name,
            path=user.path,
            subject=user.account_id,
            account_id=user.account_id,
        )


def _add_missing_rules(rows: Rows) -> None:
    """A rule set for accounts that could not be read, whose failures then stand alone."""
    with_rules = {row["rule_set"] for row in rows.rows["rule_sets"]}
    for row in rows.rows["accounts"]:
        if row["rule_set"] not in with_rules:
            rows.rows["rule_sets"] += rule_set_rows(row["rule_set"], None)


ADAPTER = DriftV2Adapter()

FACTS = VenueFacts(
    title="Drift v2",
    accounts=(
        "cross: spot balances, borrows and cross perpetuals of a sub-account, a node of its own",
        "isolated: one perpetual with its own USDC deposit, a node of its own",
    ),
    equity="total collateral in dollars: deposits and profits at maintenance weights (that of a deposit falls with its "
    "size), losses in full; borrows stand in the requirement",
    requirement="rate_of_size for perpetuals (integer square root of the size, worst side of open orders), debt_charge "
    "for borrows at liability weights; fixed for 0.01 USDC per open order and for strict prices of initial margin",
    verdict="liquidated when total collateral is below the maintenance requirement; at equality it stands",
    cross_or_isolated="both; the isolated positions of a sub-account are accounts of their own",
    orders="perpetuals: the larger position after all bids or all asks; spot: the worse of both fills, at the oracle "
    "price; 0.01 USDC each",
    liquidation="exact: amounts to close or transfer, liquidator and insurance-fund fees, share per slot, buffer, "
    "bankruptcy; liquidation price of a perpetual in real numbers",
    rules=(
        "drift-labs/protocol-v2 0ae3e3b (2026-04): margin, positions, balances, funding, liquidation",
        "drift-labs/gateway 1008ca0: answers of the gateway",
    ),
    parameters="weights, ratios, indices, prices and totals from decoded SpotMarket, PerpMarket and State accounts",
    gaps=(
        "high-leverage mode is refused where a held market has it: the mechanics hold a rule without a figure to check",
        "prediction markets and shares of the market maker's liquidity are refused",
        "a gateway's answers alone leave an account incomplete, with its reported figures",
        "oracle validity is not known from decoded accounts: every price counts as valid",
        "a liquidation that has begun ends only with the margin buffer, which the mechanics hold and results do not",
    ),
)
