"""Deribit: futures, perpetuals and options, inverse and linear, under the four margin models of the venue.

Requests (JSON-RPC; the result alone, wrapped in `result`, or a subscription message; a leading `api/v2/` is ignored and
a part may stand behind a colon, as in `private/get_positions:BTC`):

- per owner: `private/get_account_summaries`, `private/get_account_summary`, `user.portfolio` (balances, margin model,
  the venue's own figures), `private/get_positions`, `private/get_position`, `private/get_open_orders` and its variants
  `_by_currency` and `_by_instrument`, `private/pme/simulate` (live parameters, margins beside the matrix, prices);
- market-wide: `public/ticker`, `ticker` (message), `public/get_order_book`, `public/get_book_summary_by_currency` and
  `_by_instrument`, `public/get_instrument`, `public/get_instruments`, `public/get_index_price:<index>`,
  `deribit_price_index` (message), `public/pme/get_params`.

Accounts. Segregated: `deribit:<owner>:<currency>` in that currency, each its own node. Cross collateral: one account
`deribit:<owner>:cross` in USD of all currencies whose summaries say so; their `total_*_usd` repeat one figure and are
taken once. Equity is the venue's margin balance: cash and session profit, under portfolio margin with the value of the
options, under standard margin without it, because the margin of a short option holds its price. The account is
liquidated when this lies below the maintenance margin.

Standard margin: a rate of size per future, the contract formula per short option. Portfolio margin: the risk matrix per
base coin with live or dated parameters. Reported and not recomputed, for the initial level: margin of open orders, spot
and market-maker protection, by a simulation of the same portfolio or by what a summary's initial margin holds beyond
the matrix. See `mechanics` for the formulas and their sources.

A position's profit outside of the balance is that of the session since the daily settlement. The position keeps its
average price, and what is settled already stands in `realized_pnl` with the opposite sign.
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
from .accounts import ORDERS, PORTFOLIO_MESSAGE, POSITION, POSITIONS, SUMMARIES, SUMMARY, OwnerReader
from .market import (
    INDEX,
    INDEX_MESSAGE,
    INSTRUMENT,
    INSTRUMENTS,
    PARAMETERS,
    SIMULATE,
    TICKERS,
    DeribitCatalog,
    expiry_marks,
    read_market,
)
from .parse import content_of
from .rules import VENUE, read_rule_book

OWNER_REQUESTS = (SUMMARIES, SUMMARY, PORTFOLIO_MESSAGE, POSITIONS, POSITION, *ORDERS, SIMULATE)
MARKET_REQUESTS = (*TICKERS, INSTRUMENT, INSTRUMENTS, INDEX, INDEX_MESSAGE, PARAMETERS)
_MESSAGES = (PORTFOLIO_MESSAGE, "ticker", INDEX_MESSAGE)


def request_name(request: str) -> tuple[str, str]:
    """(name, part) of a request: no leading slash or `api/v2/`; a message's channel names its part after a dot."""
    path, _, part = request.strip().partition(":")
    path = path.strip("/").removeprefix("api/v2/").strip("/")
    for message in _MESSAGES:
        if path.startswith(f"{message}."):
            return message, path.removeprefix(f"{message}.")
    return path, part.strip()


@dataclass(frozen=True)
class Deribit:
    """The adapter."""

    venue: str = VENUE
    requests: tuple[str, ...] = (*OWNER_REQUESTS, *MARKET_REQUESTS)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of all owners' accounts and of the markets, and what could not be read.

        The order of `payloads` does not matter. Raises `ConfigurationError` when the parameter file is not of the
        documented shape.
        """
        rows, book = Rows(self.venue), read_rule_book(context.parameters)
        catalog = DeribitCatalog(Catalog(VENUE, context.assets, book.aliases))
        market_wide, owners = _grouped(rows, payloads)
        simulations = [payload for owner in sorted(owners) for payload in owners[owner].get(SIMULATE, ())]
        market = read_market(rows, {**market_wide, SIMULATE: simulations}, catalog, book)
        held: set[str] = set()
        for owner in sorted(owners):
            reader = OwnerReader(rows, owner, owners[owner], catalog=catalog, market=market, book=book)
            reader.read()
            held |= reader.held
        expiry_marks(rows, market.tickers, catalog, held)
        catalog.named.write(rows)
        return Normalized(rows.batches(), rows.failures)


ADAPTER = Deribit()


def _grouped(rows: Rows, payloads: Sequence[Payload]) -> tuple[Answers, dict[str, Answers]]:
    """Usable answers by request: market-wide ones, and by owner. Unknown requests and duplicates are failures."""

    def question_of(payload: Payload) -> Question:
        name, part = request_name(payload.request)
        owner = owner_of(payload, name, requests=ADAPTER.requests, owned=OWNER_REQUESTS)
        return Question(name, owner, _part(name, part, payload))

    def account_of(question: Question) -> str | None:
        return account_id(VENUE, question.owner) if question.owner and question.request != SIMULATE else None

    return single_answers(rows, by_question(rows, payloads, question_of), account_of=account_of)


def _part(name: str, part: str, payload: Payload) -> str:
    """What tells two answers to one request apart: what the answer says of itself, else the part in the request."""
    try:
        content = content_of(payload.body)
    except ValueError:
        return part
    if isinstance(content, dict):
        keys = {SUMMARY: "currency", PORTFOLIO_MESSAGE: "currency", POSITION: "instrument_name"}
        keys |= dict.fromkeys((*TICKERS, INSTRUMENT), "instrument_name") | {INDEX_MESSAGE: "index_name"}
        value = content.get(keys.get(name, ""))
        if isinstance(value, str):
            return value
        if name == SIMULATE and isinstance(content.get("margins"), dict):
            return ",".join(sorted(map(str, content["margins"])))
    return part


FACTS = VenueFacts(
    title="Deribit",
    accounts=(
        "segregated account per currency, settled in that currency, its own node",
        "cross-collateral account of all participating currencies, in USD, its own node",
    ),
    equity=(
        "margin balance: cash and session profit; with option value under portfolio margin, without it under standard "
        "margin; currencies of a cross account at their index"
    ),
    requirement=(
        "standard margin: rate_of_size per future (linear growth per coin), contract_margin per short option; "
        "portfolio margin: price_vol_grid per base coin (27 standard and 8 extended buckets, roll shock, delta shock); "
        "haircuts of a cross account on the initial level only"
    ),
    verdict="liquidated when the margin balance is below the maintenance margin; healthy at equality",
    cross_or_isolated="cross within a currency, or across currencies with cross collateral; nothing is isolated",
    orders=(
        "their margin is taken as reported, initial level only: standard margin, by positions; portfolio margin, by "
        "a simulation of the same portfolio, else what the summary's initial margin holds beyond the matrix"
    ),
    liquidation=(
        "price of one linear or inverse future under standard margin; the venue's own liquidation price is kept"
    ),
    rules=(
        "API reference, private/pme/simulate with example (read 2026-11-21): matrix of futures, margins, rounding",
        "support, Portfolio Margin, Margin types and usage, Linear Perpetual, 11 January 2022 (read 2026-11-21)",
        "API reference, private/get_account_summary (read 2026-11-21): equity, margin balance, repeated USD totals",
        "doc.tslab.pro, Deribit margin requirements calculation (read 2026-11-21): per-contract option margin",
    ),
    parameters=(
        "matrix parameters live from public/pme/get_params or private/pme/simulate, else dated; rates of standard "
        "margin and haircuts dated (configs/venues/deribit.toml)"
    ),
    gaps=(
        "delta shock, option branch and roll shocks above the minimum follow third-party code, unconfirmed by figures",
        "linear option margin follows the inverse formula from memory",
        "the coins of a cross account are added up: how gains of one offset losses of another is not public",
        "margin of open orders, spot and market-maker protection are taken as reported",
        "an unknown token that the venue counts for nothing is a finding; one that counts fails its account",
        "combination instruments are not read",
    ),
)
"""What this adapter covers."""

__all__ = ["ADAPTER", "FACTS", "Deribit", "request_name"]
