"""Bybit's unified trading account: cross, isolated and portfolio margin; linear and inverse contracts, options.

Requests (named by their path without `v5`):

- `account/wallet-balance` (owner): coins and dollar totals.
- `account/info` (owner): the margin mode. Without it `[accounts] margin_mode` of the parameter file holds.
- `position/list`, `order/realtime` (owner): asked per category and settlement coin.
- `account/collateral-info`, `account/fee-rate` (owner, or market-wide): flat ratios and switches, taker fees.
- `market/tickers`, `market/risk-limit`, `market/instruments-info`, `spot-margin-trade/collateral`, `market/orderbook`,
  `market/funding/history` (market-wide).

Bodies are REST answers (`{retCode, result, time}`), websocket messages (`{topic, data}`) or bare. What is asked several
times (per category, coin, symbol or page) is told apart by the category that an answer states, or by any text behind a
colon: `position/list:linear:USDC`. Two answers to one question of one owner are both rejected.

Accounts. Cross margin (`REGULAR_MARGIN`): `bybit:<owner>:unified`, in dollars. The margin balance counts each coin,
net of what was borrowed of it, by tiers of its quantity, a debt in full, and the profit of perpetuals and futures in
full. Maintenance of a position is `value * rate - deduction` of its tier at the mark, its initial margin value over
leverage and the estimated fee of closing at the bankruptcy price; short options have a formula that holds their
premium. The margin of orders and loans is the venue's own figure; an order above (buy) or below (sell) the mark costs
equity. Liquidated when the maintenance rate is at or above 100 %. Portfolio margin: the same account with options in
the balance and the venue's own totals as requirement, for its volatility steps are not published. Isolated margin:
`bybit:<owner>:isolated:<symbol>[:LONG|:SHORT]` per position in its settlement coin, and the wallet beside them.

Dollar prices of coins are those of the wallet (`usdValue` over `equity`), else the venue's chain: index in USDT times
the USDT rate, index of BTCUSD over that of BTCUSDT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized, parameter_table
from ..amounts import FieldError, joined
from ..catalog import Catalog
from ..facts import VenueFacts
from ..questions import Answers, Question, by_question, owner_of, single_answers
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .accounts import (
    COLLATERAL,
    FEES,
    INFO,
    MODES,
    ORDERS,
    POSITIONS,
    UNIFIED,
    WALLET_BALANCE,
    OwnerReader,
    plain_owners,
)
from .catalog import PARAMETER_FILE, VENUE, BybitCatalog
from .market import read_market
from .parse import answer_of
from .rule_sets import RuleSets

OWNER_REQUESTS = (WALLET_BALANCE, INFO, POSITIONS, ORDERS)
EITHER_REQUESTS = (COLLATERAL, FEES)
MARKET_REQUESTS = (
    "market/tickers",
    "market/risk-limit",
    "market/instruments-info",
    "market/orderbook",
    "market/funding/history",
    "spot-margin-trade/collateral",
)
_VERSION = re.compile(r"^v\d+/")


def request_name(request: str) -> tuple[str, str]:
    """(name, text behind the colon) of a request: no leading slash, no version."""
    path, _, detail = request.strip().partition(":")
    return _VERSION.sub("", path.strip("/")).strip("/"), detail.strip()


@dataclass(frozen=True)
class Bybit:
    """The adapter."""

    venue: str = VENUE
    requests: tuple[str, ...] = (*OWNER_REQUESTS, *EITHER_REQUESTS, *MARKET_REQUESTS)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of all owners' accounts and of the markets, and what could not be read.

        Raises `ConfigurationError` for a parameter file whose tables are none.
        """
        rows, catalog, rule_sets = Rows(self.venue), BybitCatalog(Catalog(VENUE, context.assets)), RuleSets()
        market_wide, owners = _grouped(rows, payloads)
        mode = _default_mode(rows, context.parameters)
        market = read_market(rows, market_wide, catalog, parameters=context.parameters)
        plain = plain_owners(owners, catalog=catalog, market=market, mode=mode)
        for owner in sorted(owners):
            OwnerReader(
                rows,
                owner,
                owners[owner],
                catalog=catalog,
                market=market,
                rule_sets=rule_sets,
                mode=mode,
                plain=plain.get(owner),
            ).read()
        rule_sets.write(rows, market, catalog)
        catalog.named.write(rows)
        return Normalized(rows.batches(), rows.failures)


ADAPTER = Bybit()


def _grouped(rows: Rows, payloads: Sequence[Payload]) -> tuple[Answers, dict[str, Answers]]:
    """Usable answers by request: market-wide ones, and by owner. Unknown requests and duplicates are failures."""

    def question_of(payload: Payload) -> Question:
        name, detail = request_name(payload.request)
        owner = owner_of(payload, name, requests=ADAPTER.requests, owned=OWNER_REQUESTS, either=EITHER_REQUESTS)
        return Question(name, owner, detail or _question(payload))

    groups = by_question(rows, payloads, question_of)
    # Switches and fees alone are no account.
    with_account = {question.owner for question in groups if question.request in OWNER_REQUESTS}

    def account_of(question: Question) -> str | None:
        return account_id(VENUE, question.owner, UNIFIED) if question.owner in with_account else None

    market_wide, owners = single_answers(rows, groups, account_of=account_of)
    return market_wide, {owner: answers for owner, answers in owners.items() if owner in with_account}


def _question(payload: Payload) -> str:
    """What an answer says it was asked for, where its request does not: its category, and a book's symbol."""
    try:
        answer = answer_of(payload.body)
    except FieldError:
        return ""
    first = answer.records[0] if answer.records else None
    book = str(first.get("s") or "") if isinstance(first, Mapping) else ""
    return answer.category or book


def _default_mode(rows: Rows, parameters: Mapping[str, Any]) -> str:
    accounts = parameter_table(parameters, "accounts", venue=VENUE)
    word = accounts.get("margin_mode", "REGULAR_MARGIN")
    if not isinstance(word, str) or word not in MODES:
        rows.fail(
            FailureReason.MALFORMED,
            f"margin mode {str(word)[:40]!r} is none of {', '.join(MODES)}",
            payload=PARAMETER_FILE,
            path=joined("accounts", "margin_mode"),
            subject="accounts",
        )
    return MODES.get(str(word), MODES["REGULAR_MARGIN"])


FACTS = VenueFacts(
    title="Bybit (unified trading account)",
    accounts=(
        "unified account in cross or portfolio margin, in dollars, a node of its own",
        "every isolated position, in its settlement coin, a node of its own; the wallet beside them",
    ),
    equity=(
        "margin balance: coins net of spot loans by collateral tiers of their quantity, debts in full, profit of "
        "perpetuals and futures in full; options count in portfolio margin only"
    ),
    requirement=(
        "tiered_notional at the mark with the venue's deductions, initial by leverage and the estimated closing fee; "
        "contract_margin for short options; fixed for the reported margin of orders and loans and for the totals of "
        "portfolio margin"
    ),
    verdict="at or below 1: the maintenance rate (requirement over margin balance) at or above 100 %",
    cross_or_isolated="cross, isolated and portfolio by the owner's margin mode; hedge mode keeps both sides apart",
    orders="initial margin as reported by coin; the loss of an order at the mark is taken off equity",
    liquidation=(
        "liquidation and bankruptcy price of an isolated position, linear and inverse; the venue's own prices travel "
        "with the positions"
    ),
    rules=(
        "Bybit help center, maintenance margin of USDT, USDC and inverse contracts, and the margin-parameters page",
        "Bybit help center, collateral value ratios in the unified account",
        "Bybit help center, comparison of spread strategies (short options)",
        "Bybit help center, liquidation price under isolated mode in the unified account, as of 2026-05-27",
        "Bybit API v5, wallet balance, position list, risk limit, tiered collateral ratio, read 2026-11-21",
    ),
    parameters=(
        "market/risk-limit, spot-margin-trade/collateral, account/collateral-info, account/fee-rate; the base taker "
        "rate and the factors of short options are dated in configs/venues/bybit.toml"
    ),
    gaps=(
        "portfolio margin is taken as reported: the volatility steps are not published",
        "the margin of loans is what the reported totals hold beyond positions and orders",
        "the estimated closing fee is in the initial margin only; a page of 2026 puts it into maintenance as well",
        "both sides of a hedge are margined apart, which is not verified",
        "a haircut that spot orders would cause is not computed",
        "classic wallets (CONTRACT, SPOT) are refused",
        "an unknown token that the venue counts for nothing is a finding; one that counts fails its account",
        "interest not yet charged is not in the venue's equity and not in ours",
    ),
)

__all__ = ["ADAPTER", "FACTS", "Bybit", "request_name"]
