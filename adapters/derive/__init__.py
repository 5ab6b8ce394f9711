"""Derive: options, perpetuals and collateral in subaccounts under portfolio or standard margin, settled in USDC.

Requests understood (JSON-RPC; the result alone or wrapped in `result`):

- per owner: `private/get_subaccount` (collateral, positions, open orders, net margins), `private/get_positions`
  (which must hold the same positions as the subaccount, and then gives the fresher marks) and
  `private/get_open_orders` (which then stands for the subaccount's own list of orders);
- market-wide: `public/get_ticker` (perpetuals: mark and index; options: implied vol, forward, discount; tokens: index)
  and `public/get_latest_signed_feeds` (oracle confidences; a feed that no payload states has a confidence of 1).

A subaccount is one account. Its risk parameters are not in any payload: they come from the dated parameter file.
Open orders are rows and no requirement: the venue states their margin apart (`open_orders_margin`), counts it when an
order is placed, and neither its net margins nor its liquidation know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError, member
from ..catalog import Catalog
from ..facts import VenueFacts
from ..questions import Question, in_order, owner_of
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .feeds import read_feeds
from .markets import VENUE, Reading, read_ticker, result_of
from .parse import read_subaccount
from .rules import read_rule_book

SUBACCOUNT = "private/get_subaccount"
POSITIONS = "private/get_positions"
ORDERS = "private/get_open_orders"
TICKER = "public/get_ticker"
FEEDS = "public/get_latest_signed_feeds"


@dataclass(frozen=True)
class DeriveAdapter:
    """Normalizes payloads of Derive; see the package's docstring for the requests."""

    venue: str = VENUE
    requests: tuple[str, ...] = (SUBACCOUNT, POSITIONS, ORDERS, TICKER, FEEDS)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter.

        Raises `ConfigurationError` when the parameter file is not of the documented shape.
        """
        book = read_rule_book(context.parameters)
        reading = Reading(Rows(VENUE), Catalog(VENUE, context.assets, book.aliases), book)
        answers = _sorted_out(reading, payloads)
        for (request, _, part), payload in answers.items():
            if request in (TICKER, FEEDS):
                with reading.rows.guard(payload.name, subject=part or payload.request):
                    read_ticker(reading, payload) if request == TICKER else read_feeds(reading, payload)
        for (request, owner, part), payload in answers.items():
            if request == SUBACCOUNT:
                read_subaccount(
                    reading,
                    payload,
                    answers.get(Question(POSITIONS, owner, part)),
                    answers.get(Question(ORDERS, owner, part)),
                )
            elif request in (POSITIONS, ORDERS) and Question(SUBACCOUNT, owner, part) not in answers:
                account = account_id(VENUE, owner, part)
                what = "positions" if request == POSITIONS else "orders"
                reading.rows.fail(
                    FailureReason.MISSING_FIELD,
                    f"{what} without {SUBACCOUNT}: collateral and margin type are unknown",
                    payload=payload.name,
                    subject=account,
                    account_id=account if request == POSITIONS else None,
                )
        reading.add_shared_rows()
        return Normalized(reading.rows.batches(), reading.rows.failures)


def _sorted_out(reading: Reading, payloads: Sequence[Payload]) -> dict[Question, Payload]:
    """Payload by question, whose part is a subaccount or instrument; copies of one question are all rejected."""
    groups: dict[Question, list[Payload]] = {}
    for payload in in_order(payloads):
        # Which subaccount an unreadable answer speaks of nobody knows: some account of the owner is lost.
        lost = account_id(VENUE, payload.account) if payload.request == SUBACCOUNT and payload.account else None
        subject = payload.account or _instrument_named(payload) or payload.request
        with reading.rows.guard(payload.name, subject=subject, account_id=lost):
            groups.setdefault(_question(payload), []).append(payload)
    for (request, owner, part), copies in groups.items():
        if len(copies) > 1:
            account = account_id(VENUE, owner, part) if owner else None
            reading.rows.fail(
                FailureReason.DUPLICATE,
                f"{len(copies)} payloads of {request} for {owner or part}: {', '.join(p.name for p in copies)}",
                payload=copies[0].name,
                subject=account or part,
                account_id=account,
            )
    return {key: copies[0] for key, copies in groups.items() if len(copies) == 1}


def _question(payload: Payload) -> Question:
    request = payload.request
    owner = owner_of(payload, request, requests=ADAPTER.requests, owned=(SUBACCOUNT, POSITIONS, ORDERS))
    result = result_of(payload)
    if request == TICKER:
        return Question(TICKER, "", str(member(result, "instrument_name")))
    if request == FEEDS:
        return Question(FEEDS, "", payload.sha256 or payload.name)  # any number of currencies and expiries
    part = member(result, "subaccount_id")
    if isinstance(part, bool) or not isinstance(part, str | int):
        message = f"expected the number of a subaccount, found {type(part).__name__}"
        raise FieldError("subaccount_id", FailureReason.MALFORMED, message)
    return Question(request, owner, str(part))


def _instrument_named(payload: Payload) -> str:
    """Instrument of a ticker as far as it says, for the subject of a failure."""
    body = payload.body.get("result", payload.body) if isinstance(payload.body, Mapping) else None
    name = body.get("instrument_name") if isinstance(body, Mapping) else None
    return name if isinstance(name, str) and payload.request == TICKER else ""


ADAPTER = DeriveAdapter()

FACTS = VenueFacts(
    title="Derive (v2)",
    accounts=(
        "subaccount under portfolio margin 2 or 1: one underlying, a node of its own",
        "subaccount under standard margin: several markets, a node of its own",
        "subaccount with cash alone: no requirement",
    ),
    equity="subaccount value in USDC: collateral, perpetual profit with funding, options at their model price",
    requirement=(
        "portfolio margin: price_vol_grid (33 points in version 2), contingency charges by size and oracle confidence, "
        "collateral haircuts; standard margin: expiry_max_loss, contingency charges, collateral at plain dollars"
    ),
    verdict="liquidated when the net maintenance margin is below zero: equity below the requirement",
    cross_or_isolated="every subaccount is cross within itself",
    orders="rows only: their margin is stated apart, counts when an order is placed and is in no net margin",
    liquidation="Dutch auction, not modeled; positions state the venue's own liquidation price where it has one",
    rules=("derivexyz/v2-core @7736900d: PMRM_2.sol, PMRMLib_2.sol, PMRM.sol, StandardManager.sol (read 2026-11-21)",),
    parameters="dated file configs/venues/derive.toml; no payload carries risk parameters",
    gaps=(
        "several classes of markets in one standard-margin subaccount are unsupported",
        "confidences only where the signed feeds are given; else 1",
        "the venue's version 3 publishes other parameter names and figures: the file holds those of version 2",
    ),
)
