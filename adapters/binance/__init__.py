"""Binance USD-M futures: leverage brackets, single-asset and multi-assets mode, isolated positions.

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
- `portfolio/account` (owner): read and kept as reported, but failed as unsupported: no rule for portfolio margin yet.
- `portfolio/collateralRate` (market-wide): weights of the portfolio-margin rule set.

A market-wide request, and one asked per symbol, may be given several times with `:<symbol>` behind it. Two answers to
one request of one owner are both rejected.

Accounts. Single-asset mode: `binance:<owner>:<asset>` per margin asset, equity = crossWalletBalance + unrealized
profit of its cross positions; each isolated position is `binance:<owner>:isolated:<symbol>[:LONG|:SHORT]`, equity =
isolatedWallet + profit. Multi-assets mode: `binance:<owner>:multi` in USD. Every account is its own node: margin of
one does not defend another. Binance liquidates when the margin balance is at or below the sum of maintenance margins;
maintenance of a position is `notional * rate - cum` of its bracket, initial margin notional over the chosen leverage,
plus the reported margin of orders.

Times: `updateTime` of an account or position is the time of its last change, not of the answer, so `event_at` stays
null and the receive time dates the account and the marks that came with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized, parameter_table
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .accounts import OwnerReader
from .market import PARAMETER_FILE, VENUE, Catalog, RuleSets, read_market
from .parse import flag_of
from .portfolio_margin import PORTFOLIO, PORTFOLIO_ACCOUNT, read_collateral_rates, read_portfolio_margin

OWNER_REQUESTS = (
    "fapi/account",
    "fapi/positionRisk",
    "fapi/symbolConfig",
    "fapi/multiAssetsMargin",
    "fapi/openOrders",
    PORTFOLIO_ACCOUNT,
)
MARKET_REQUESTS = ("fapi/premiumIndex", "fapi/assetIndex", "fapi/depth", "portfolio/collateralRate")
BRACKET_REQUEST = "fapi/leverageBracket"

_VERSION = re.compile(r"(^|/)v\d+(?=/)")

Grouped = dict[str, list[Payload]]


def request_name(request: str) -> tuple[str, str]:
    """(name, symbol behind the colon) of a request: no leading slash, no version, no `sapi/`."""
    path, _, symbol = request.strip().partition(":")
    path = _VERSION.sub("", path.strip("/")).strip("/")
    return path.removeprefix("sapi/"), symbol.strip()


@dataclass(frozen=True)
class Binance:
    """The adapter."""

    venue: str = VENUE
    requests: tuple[str, ...] = (*OWNER_REQUESTS, BRACKET_REQUEST, *MARKET_REQUESTS)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of all owners' accounts and of the markets, and what could not be read."""
        rows, catalog, rule_sets = Rows(self.venue), Catalog(context.assets), RuleSets()
        market_wide, owners = _grouped(rows, payloads)
        default = _multi_assets_default(rows, context.parameters)
        market = read_market(rows, market_wide, catalog, parameters=context.parameters)
        for owner in sorted(owners):
            answers = owners[owner]
            if PORTFOLIO_ACCOUNT in answers:
                read_portfolio_margin(rows, owner, next(iter(answers[PORTFOLIO_ACCOUNT]), None), rule_sets=rule_sets)
            if set(answers) - {PORTFOLIO_ACCOUNT} or any(
                f.account_id == account_id(VENUE, owner) for f in rows.failures
            ):
                reader = OwnerReader(
                    rows,
                    owner,
                    answers,
                    catalog=catalog,
                    market=market,
                    rule_sets=rule_sets,
                    multi_assets_default=default,
                )
                reader.read()
        read_collateral_rates(rows, market_wide.get("portfolio/collateralRate", []), catalog, rule_sets=rule_sets)
        rule_sets.write(rows, market, catalog)
        catalog.write(rows)
        return Normalized(rows.batches(), rows.failures)


ADAPTER = Binance()


def _grouped(rows: Rows, payloads: Sequence[Payload]) -> tuple[Grouped, dict[str, Grouped]]:
    """Usable answers by request: market-wide ones, and by owner. Unknown requests and duplicates are failures."""
    found: dict[tuple[str, str, str], list[Payload]] = {}
    for payload in payloads:
        name, symbol = request_name(payload.request)
        if name not in ADAPTER.requests:
            rows.fail(
                FailureReason.UNSUPPORTED,
                f"request {payload.request[:60]!r} is not one of {', '.join(ADAPTER.requests)}",
                payload=payload.name,
                path="request",
                subject=payload.account,
            )
        elif name in OWNER_REQUESTS and not payload.account:
            rows.fail(
                FailureReason.MISSING_FIELD,
                f"{name} needs the label of its owner",
                payload=payload.name,
                path="account",
            )
        else:
            owner = "" if name in MARKET_REQUESTS else payload.account
            found.setdefault((name, owner, symbol), []).append(payload)
    market_wide: Grouped = {}
    owners: dict[str, Grouped] = {}
    for (name, owner, symbol), copies in found.items():
        target = owners.setdefault(owner, {}) if owner and name != BRACKET_REQUEST else market_wide
        answers = target.setdefault(name, [])
        if len(copies) == 1:
            answers.append(copies[0])
            continue
        request = f"{name}:{symbol}" if symbol else name
        part = PORTFOLIO if name == PORTFOLIO_ACCOUNT else ""
        if owner:
            owners.setdefault(owner, {})
        rows.fail(
            FailureReason.DUPLICATE,
            f"{len(copies)} answers to {request}; all rejected: {', '.join(c.name for c in copies)}",
            payload=copies[-1].name,
            path="request",
            subject=owner or name,
            account_id=account_id(VENUE, owner, part) if owner else None,
        )
    return market_wide, owners


def _multi_assets_default(rows: Rows, parameters: Mapping[str, Any]) -> bool:
    accounts = parameter_table(parameters, "accounts", venue=VENUE)
    with rows.guard(PARAMETER_FILE, subject="accounts"):
        return flag_of(accounts.get("multi_assets_mode", False), "accounts.multi_assets_mode")
    return False


__all__ = ["ADAPTER", "Binance", "request_name"]
