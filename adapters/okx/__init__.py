"""OKX: swaps, futures and options, linear and inverse, in the venue's account modes.

Requests (REST v5; a leading `/api/v5/` is ignored, a part may stand behind a colon, `{code, data}` may be absent; the
channel names of the same objects in messages are understood too):

- per owner: `account/balance`, `account/positions`, `account/account-position-risk`, `account/position-builder`,
  `account/config` (the account mode; without it an adjusted equity means multi-currency margin), `account/trade-fee`,
  `trade/orders-pending`;
- market-wide: `public/instruments` (contract values, without which nothing held in a contract can be counted),
  `public/mark-price`, `market/index-tickers`, `market/tickers`, `market/ticker`, `public/funding-rate`,
  `public/opt-summary`, `public/open-interest`, `public/position-tiers:SWAP` (or `:FUTURES`, `:MARGIN:<currency>`: the
  answer does not name its type), `public/discount-rate-interest-free-quota`.

Accounts. Multi-currency margin: `okx:<owner>:cross` in USD; portfolio margin: `okx:<owner>:portfolio` in USD;
single-currency margin: `okx:<owner>:<currency>`; each isolated position
`okx:<owner>:isolated:<instrument>[:long|:short]` in its settlement currency. Every account is its own node.

The venue's ratio is `adjusted equity / (maintenance margin + liquidation fees)`, below 1 it liquidates. The fees (taker
rate times notional) are part of the maintenance requirement here, so that health is the reported ratio; the reported
maintenance margin is without them. Equity is every currency's net value in marginal discount slices, debts in full.

Portfolio margin per risk unit (coin): MR1, MR4, MR6 and MR7 computed; MR2, MR3, MR5 and MR9 as the position builder
reports them; units with options, whose vol moves are not public, on the reported parts of today. The position builder's
own `marginRatio` has a fee term that its answer does not give, and is kept as reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapter import Context, Normalized
from ..catalog import Catalog
from ..facts import VenueFacts
from ..questions import Answers, Question, by_question, owner_of, single_answers
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .accounts import BALANCE, BUILDER, CONFIG, FEES, ORDERS, POSITIONS, RISK, OwnerReader
from .market import (
    DISCOUNTS,
    FUNDING,
    INDEX_TICKERS,
    INSTRUMENTS,
    MARK_PRICE,
    OPEN_INTEREST,
    OPTION_SUMMARY,
    TICKERS,
    TIERS,
    OkxCatalog,
    expiry_marks,
    read_market,
)
from .rules import VENUE, read_rule_book

OWNER_REQUESTS = (BALANCE, POSITIONS, RISK, BUILDER, CONFIG, FEES, ORDERS)
MARKET_REQUESTS = (
    *INSTRUMENTS,
    MARK_PRICE,
    INDEX_TICKERS,
    *TICKERS,
    FUNDING,
    OPTION_SUMMARY,
    OPEN_INTEREST,
    TIERS,
    DISCOUNTS,
)
# A message's channel, and other calls that answer the same question.
_ALIASES = {
    "account": BALANCE,
    "positions": POSITIONS,
    "orders": ORDERS,
    "account/subaccount/balances": BALANCE,
    "instruments": INSTRUMENTS[0],
    "mark-price": MARK_PRICE,
    "index-tickers": INDEX_TICKERS,
    "tickers": TICKERS[0],
    "funding-rate": FUNDING,
    "opt-summary": OPTION_SUMMARY,
    "open-interest": OPEN_INTEREST,
}


def request_name(request: str) -> tuple[str, str]:
    """(name, part) of a request: no leading slash or `api/v5/`; a message's channel is its request's name."""
    path, _, part = request.strip().partition(":")
    path = path.strip("/").removeprefix("api/v5/").strip("/")
    return _ALIASES.get(path, path), part.strip()


@dataclass(frozen=True)
class Okx:
    """The adapter."""

    venue: str = VENUE
    requests: tuple[str, ...] = (*OWNER_REQUESTS, *MARKET_REQUESTS, *_ALIASES)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of all owners' accounts and of the markets, and what could not be read.

        The order of `payloads` does not matter. Raises `ConfigurationError` when the parameter file is not of the
        documented shape.
        """
        rows, book = Rows(self.venue), read_rule_book(context.parameters)
        catalog = OkxCatalog(Catalog(VENUE, context.assets))
        market_wide, owners = _grouped(rows, payloads)
        market = read_market(rows, market_wide, catalog, book)
        held: set[str] = set()
        for owner in sorted(owners):
            reader = OwnerReader(rows, owner, owners[owner], catalog=catalog, market=market, book=book)
            reader.read()
            held |= reader.held
        expiry_marks(rows, catalog, market, held)
        catalog.named.write(rows)
        return Normalized(rows.batches(), rows.failures)


ADAPTER = Okx()


def _grouped(rows: Rows, payloads: Sequence[Payload]) -> tuple[Answers, dict[str, Answers]]:
    """Usable answers by request: market-wide ones, and by owner. Unknown requests and duplicates are failures."""

    def question_of(payload: Payload) -> Question:
        name, part = request_name(payload.request)
        owner = owner_of(payload, name, requests=ADAPTER.requests, owned=OWNER_REQUESTS)
        return Question(name, owner, "" if owner and name != FEES else part)

    def account_of(question: Question) -> str | None:
        return account_id(VENUE, question.owner) if question.owner else None

    return single_answers(rows, by_question(rows, payloads, question_of), account_of=account_of)


FACTS = VenueFacts(
    title="OKX v5",
    accounts=(
        "trading account in multi-currency or portfolio margin, in USD, its own node",
        "one account per currency in single-currency margin, in that currency, its own node",
        "each isolated position, in its settlement currency, its own node",
    ),
    equity=(
        "adjusted equity: every currency's net value (profit included) in marginal discount slices at its index, debts "
        "in full, less the reported loss of open orders"
    ),
    requirement=(
        "tiered_notional: the rate of the tier of the family's size on the whole position, and the taker fee of "
        "closing it; initial notional over leverage; debt_charge on debts (MR8); portfolio margin: price_vol_grid per "
        "risk unit with roll shock (MR4) and minimum charge (MR7), initial a dated factor of maintenance"
    ),
    verdict="liquidated when adjusted equity over maintenance and liquidation fees is below 1",
    cross_or_isolated="cross in every mode; isolated positions are accounts of their own",
    orders=(
        "margin frozen for orders is taken as reported, initial level only; their loss as reported, off equity; under "
        "portfolio margin a finding with their size where ordFroz states none"
    ),
    liquidation="liquidation price of an isolated linear or inverse position; the venue's own price is kept",
    rules=(
        "API v5, position builder with its example (read 2026-11-21): risk units, MR1, MR4, MR6, MR7, MR8, totals",
        "announcements of December 2021, May 2024 and January 2025 (read 2026-11-21): scaling and parameters",
        "help center, Multi-currency margin mode: cross margin trading (read 2026-11-21): equity, tiers, ratio",
    ),
    parameters=(
        "contract values, tiers and discount slices live from public answers; fees live, else dated; groups of "
        "portfolio margin and borrowing rates dated (configs/venues/okx.toml)"
    ),
    gaps=(
        "MR2, MR3, MR5, MR9 and the vol moves of MR1 are not public: taken as the position builder reports them",
        "growth of MR4 with time to expiry is not public: as reported, else linear in time",
        "the venue's grid moves the index, this one the mark: 0.06 % apart in the documented example",
        "the position builder's marginRatio has a fee term that its answer does not give; kept as reported",
        "short options outside of portfolio margin take the position's own reported margin",
        "an unknown token that the venue counts for nothing is a finding; one that counts fails its account",
        "leveraged spot positions are unsupported",
    ),
)
"""What this adapter covers."""

__all__ = ["ADAPTER", "FACTS", "Okx", "request_name"]
