"""Binance futures, USD-M and COIN-M, in single-asset and multi-assets mode, isolated, and under portfolio margin.

Requests (named by their path without version; `/fapi/v2/account` and `fapi/account` are one):

- `fapi/account` (owner): wallet by asset, positions; versions 2 and 3.
- `fapi/positionRisk` (owner): entry price, mark, leverage, margin type, isolated wallet; versions 2 and 3. Version 3
  has no leverage and no margin type: they come from `fapi/symbolConfig`, or are implied by `positionInitialMargin`
  (notional over leverage) and by an isolated wallet that is not zero.
- `fapi/symbolConfig` (owner): leverage and margin type by symbol.
- `fapi/multiAssetsMargin` (owner): the account mode. Without it `[accounts] multi_assets_mode` of the parameter file
  holds, without that single-asset mode, the venue's default.
- `fapi/openOrders` (owner): resting orders, for the record; their initial margin is the venue's own figure.
- `fapi/leverageBracket` (market-wide, or an owner's when a coefficient or limit is the owner's own).
- `fapi/premiumIndex` (market-wide): mark, index, funding rate; one object or a list.
- `fapi/assetIndex` (market-wide): USD index of assets and the buffered rates of multi-assets mode: an asset counts at
  `bidRate` when held and at `askRate` when owed. They enter as collateral weights `rate / index` beside the index.
  From the venue's documentation, not yet checked against an account [M].
- `fapi/depth:<symbol>` (market-wide): best bid and ask and the notional of the received levels per side; an order
  book does not name its symbol, so the request must.
- `dapi/account`, `dapi/positionRisk`, `dapi/openOrders` (owner), `dapi/leverageBracket` (by symbol or by pair),
  `dapi/premiumIndex`, `dapi/depth:<symbol>`, `dapi/exchangeInfo` (contract sizes): the same of COIN-M.
- Portfolio margin: `papi/account` or `portfolio/account`, `papi/balance` or `portfolio/balance`, positions of both
  products (`papi/um/account`, `papi/um/positionRisk`, `papi/cm/account`, `papi/cm/positionRisk`, or the `fapi/` and
  `dapi/` ones), `papi/um/openOrders`, `papi/cm/openOrders`, `papi/um/symbolConfig`, `papi/um/leverageBracket`,
  `papi/cm/leverageBracket` (owner); `portfolio/collateralRate` (one rate by asset, or tiers of it),
  `portfolio/asset-index-price` (market-wide); `portfolio/margin-asset-leverage` (owner, or market-wide).

A market-wide request, and one asked per symbol, may be given several times with `:<symbol>` behind it. Two answers to
one request of one owner are both rejected.

Accounts. Single-asset mode: `binance:<owner>:<asset>` per margin asset, equity = crossWalletBalance + unrealized
profit of its cross positions; each isolated position is `binance:<owner>:isolated:<symbol>[:LONG|:SHORT]`, equity =
isolatedWallet + profit. Multi-assets mode: `binance:<owner>:multi` in USD. COIN-M: `binance:<owner>:coinm:<coin>` in
coins, isolated positions as in USD-M. Every account is its own node: margin of one does not defend another. Binance
liquidates when the margin balance is at or below the sum of maintenance margins; maintenance of a position is
`notional * rate - cum` of its bracket (COIN-M: in coins, `contracts * size / mark`), initial margin notional over the
chosen leverage, plus the reported margin of orders. Both sides of a hedge are margined apart.

Portfolio margin: `binance:<owner>:portfolio` in USD holds everything of its owner, see `portfolio_margin`.

Times: `updateTime` of an account or position is the time of its last change, not of the answer, so `event_at` stays
null and the receive time dates the account and the marks that came with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapter import Context, Normalized, parameter_table
from ..catalog import Catalog
from ..facts import VenueFacts
from ..fields import flag_of
from ..questions import Answers, Question, by_question, owner_of, single_answers
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .accounts import OwnerReader, plain_owners
from .contracts import COINM, USDM
from .market import PARAMETER_FILE, VENUE, BinanceCatalog, read_market
from .portfolio_margin import OWN_REQUESTS as PORTFOLIO_REQUESTS
from .portfolio_margin import PORTFOLIO, PortfolioReader
from .portfolio_market import INDEX, LEVERAGE, RATES, read_portfolio_market
from .rule_sets import RuleSets

USDM_REQUESTS = (
    "fapi/account",
    "fapi/positionRisk",
    "fapi/symbolConfig",
    "fapi/multiAssetsMargin",
    "fapi/openOrders",
)
COINM_REQUESTS = ("dapi/account", "dapi/positionRisk", "dapi/openOrders")
OWNER_REQUESTS = (*USDM_REQUESTS, *COINM_REQUESTS, *PORTFOLIO_REQUESTS)
MARKET_REQUESTS = (
    "fapi/premiumIndex",
    "fapi/assetIndex",
    "fapi/depth",
    "dapi/premiumIndex",
    "dapi/depth",
    "dapi/exchangeInfo",
    RATES,
    INDEX,
)
BRACKET_REQUESTS = ("fapi/leverageBracket", "dapi/leverageBracket")
ALIASES: Mapping[str, str] = {
    "papi/um/leverageBracket": "fapi/leverageBracket",
    "papi/cm/leverageBracket": "dapi/leverageBracket",
}
"""Requests of portfolio margin that say what those of a product say."""

_VERSION = re.compile(r"(^|/)v\d+(?=/)")


def request_name(request: str) -> tuple[str, str]:
    """(name, symbol behind the colon) of a request: no leading slash, no version, no `sapi/`."""
    path, _, symbol = request.strip().partition(":")
    path = _VERSION.sub("", path.strip("/")).strip("/").removeprefix("sapi/")
    return ALIASES.get(path, path), symbol.strip()


@dataclass(frozen=True)
class Binance:
    """The adapter."""

    venue: str = VENUE
    requests: tuple[str, ...] = (*OWNER_REQUESTS, *BRACKET_REQUESTS, *MARKET_REQUESTS, LEVERAGE)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of all owners' accounts and of the markets, and what could not be read."""
        rows, catalog, rule_sets = Rows(self.venue), BinanceCatalog(Catalog(VENUE, context.assets)), RuleSets()
        market_wide, owners = _grouped(rows, payloads)
        default = _multi_assets_default(rows, context.parameters)
        market = read_market(rows, market_wide, catalog, parameters=context.parameters)
        portfolio = read_portfolio_market(rows, market_wide, context.parameters)
        futures = {owner: found for owner, found in owners.items() if not set(found) & set(PORTFOLIO_REQUESTS)}
        plain = {
            product.api: plain_owners(futures, product, catalog=catalog, market=market, multi_assets_default=default)
            for product in (USDM, COINM)
        }
        for owner in sorted(owners):
            answers = owners[owner]
            if owner not in futures:
                PortfolioReader(
                    rows, owner, answers, catalog=catalog, market=market, portfolio=portfolio, rule_sets=rule_sets
                ).read()
                continue
            for product, requests in ((USDM, USDM_REQUESTS), (COINM, COINM_REQUESTS)):
                whole = account_id(VENUE, owner, product.part)
                if set(answers) & set(requests) or any(f.account_id == whole for f in rows.failures):
                    OwnerReader(
                        rows,
                        owner,
                        product,
                        answers,
                        catalog=catalog,
                        market=market,
                        rule_sets=rule_sets,
                        multi_assets_default=default,
                        plain=plain[product.api].get(owner),
                    ).read()
        rule_sets.write(rows, market, portfolio, catalog)
        catalog.named.write(rows)
        return Normalized(rows.batches(), rows.failures)


ADAPTER = Binance()


def _grouped(rows: Rows, payloads: Sequence[Payload]) -> tuple[Answers, dict[str, Answers]]:
    """Usable answers by request: market-wide ones, and by owner. Unknown requests and duplicates are failures."""

    def question_of(payload: Payload) -> Question:
        name, symbol = request_name(payload.request)
        either = (*BRACKET_REQUESTS, LEVERAGE)
        owner = owner_of(payload, name, requests=ADAPTER.requests, owned=OWNER_REQUESTS, either=either)
        return Question(name, owner, symbol)

    groups = by_question(rows, payloads, question_of)
    under_portfolio = {question.owner for question in groups if question.request in PORTFOLIO_REQUESTS}

    def account_of(question: Question) -> str | None:
        name, owner, _ = question
        part = PORTFOLIO if owner in under_portfolio else COINM.part if name.startswith(COINM.api) else ""
        return account_id(VENUE, owner, part) if owner else None

    def market_wide(question: Question) -> bool:
        return not question.owner or question.request in BRACKET_REQUESTS

    return single_answers(rows, groups, account_of=account_of, market_wide=market_wide)


def _multi_assets_default(rows: Rows, parameters: Mapping[str, Any]) -> bool:
    accounts = parameter_table(parameters, "accounts", venue=VENUE)
    with rows.guard(PARAMETER_FILE, subject="accounts"):
        return flag_of(accounts.get("multi_assets_mode", False), "accounts.multi_assets_mode")
    return False


FACTS = VenueFacts(
    title="Binance (USD-M and COIN-M futures, portfolio margin)",
    accounts=(
        "USD-M, single-asset mode: one account per margin asset, each a node",
        "USD-M, multi-assets mode: one account in USD, a node",
        "COIN-M: one account per coin, in that coin, each a node",
        "every isolated position of either product, a node of its own",
        "portfolio margin: one account in USD of the margin wallet and both futures products, a node",
    ),
    equity=(
        "wallet and unrealized profit; multi-assets mode at the buffered rates of each asset; portfolio margin every "
        "coin net at its collateral rate, by tiers where the venue has them, less the reported loss of open orders"
    ),
    requirement=(
        "tiered_notional: notional x rate - cum of the bracket (COIN-M in coins), initial by leverage; fixed for the "
        "reported margin of orders; debt_charge for loans under portfolio margin, by leverage of the loan"
    ),
    verdict="at or below 1 (margin balance over maintenance); portfolio margin at or below a dated uniMMR",
    cross_or_isolated="cross and isolated in USD-M and COIN-M, one-way and hedge mode; portfolio margin is cross only",
    orders="initial margin as reported by asset; the formula for the worst side is not rebuilt",
    liquidation=(
        "liquidation price of linear and inverse positions, brackets, uniMMR with its status words, exact in decimals; "
        "liquidation fees and auto-deleveraging are not modeled"
    ),
    rules=(
        "Binance, leverage and margin of USD-M futures; published brackets of October 2024",
        "Binance, leverage and margin of COIN-M futures; API documentation of dapi, read 2026-11-21",
        "Binance FAQ, portfolio margin pro maintenance margin ratio calculation",
        "API documentation of papi and portfolio, read 2026-11-21",
    ),
    parameters=(
        "leverageBracket, assetIndex, collateralRate, asset-index-price, margin-asset-leverage, exchangeInfo; dated in "
        "configs/venues/binance.toml: brackets of three symbols, contract sizes, loan rates, the default loan leverage"
    ),
    gaps=(
        "multi-assets mode counts an asset at bidRate when held and askRate when owed: documented, not checked",
        "whether collateral tiers of portfolio margin count tokens or value is not said; tokens unless configured",
        "whether COIN-M brackets hold coins at the mark is taken from the documentation",
        "interest of a margin loan is taken off equity and needs no margin of its own",
        "an unknown asset that the venue counts for nothing is a finding; one that counts fails its account",
        "portfolio margin by scenarios (SPAN) and options under portfolio margin are refused",
    ),
)

__all__ = ["ADAPTER", "FACTS", "Binance", "request_name"]
