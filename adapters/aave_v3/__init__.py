"""Aave v3 markets: an owner's supplies and debts in one market are one account.

Requests, each with `:<market>` behind it where the parameter file describes several markets and the payload is of none
but the default (see `deployments`):

- `getReservesData` and `getEModes` once per market (v3.0 and v3.1 state e-mode categories in their reserves),
- `getLiquidationGracePeriod` of a reserve, where it is wanted,
- `getUserReservesData` and, where the venue's own figures are wanted beside ours, `getUserAccountData` per owner.

Bodies may be objects with the names of the interfaces or tuples in ABI order, bare or wrapped (see `shapes`). Balances
are accrued to the second at which the user's payload was received (else the market's; else they stay as stored). Prices
are the market's oracle prices in dollars.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError
from ..facts import VenueFacts
from ..questions import owner_of
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .accounts import ACCOUNT_DATA, USER_RESERVES, Account
from .deployments import VENUE, Deployments, deployments_of
from .markets import (
    EMODES,
    GRACE,
    RESERVES,
    add_assets,
    add_market,
    add_prices,
    read_emodes,
    read_market,
    refuse_namesakes,
)
from .rules import rule_set_rows

_OF_A_USER = (USER_RESERVES, ACCOUNT_DATA)
_REQUESTS = (RESERVES, EMODES, GRACE, *_OF_A_USER)


class _Sorted(NamedTuple):
    """Payloads by market, owner (empty: market-wide) and request; several of one question are none of them here."""

    single: dict[tuple[str, str], dict[str, Payload]]
    graces: dict[str, list[Payload]]
    owners: dict[str, set[str]]
    """Every owner who has a payload of the market, usable or not."""


@dataclass(frozen=True)
class AaveV3Adapter:
    """Adapter of the Aave v3 markets that the parameter file describes."""

    venue: str = VENUE
    requests: tuple[str, ...] = _REQUESTS

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables and failures of all payloads; `ConfigurationError` when the parameters name no market.

        Reserves whose token the asset book does not know are left out, and are a failure of whoever holds them.
        """
        deployments = deployments_of(context.parameters)
        rows = Rows(VENUE)
        found = _sort(payloads, rows, deployments)
        touched = {name for name, _ in found.single} | found.graces.keys() | found.owners.keys()
        names = [name for name in deployments.markets if name in touched or name == deployments.default]
        markets = []
        for name in names:
            answers = found.single.get((name, ""), {})
            markets.append(read_market(deployments.markets[name], answers.get(RESERVES), rows))
            rows.rows["rule_sets"].extend(rule_set_rows(deployments.markets[name]))
        refuse_namesakes(markets, rows)
        account_markets: dict[str, str] = {}
        for name, market in zip(names, markets, strict=True):
            read_emodes(market, found.single.get((name, ""), {}).get(EMODES), rows)
            used = set()
            for owner in sorted(found.owners.get(name, ())):
                account = Account(owner, account_id(VENUE, owner, name), market, context)
                account_markets[account.account_id] = name
                used.add(account.read(rows, found.single.get((name, owner), {})))
            add_market(market, used, found.graces.get(name, []), rows, context)
        add_assets(markets, rows, context)
        add_prices(markets, account_markets, rows, context)
        return Normalized(rows.batches(), rows.failures)


ADAPTER = AaveV3Adapter()


def _sort(payloads: Sequence[Payload], rows: Rows, deployments: Deployments) -> _Sorted:
    """The one payload of each question; where there are several answers, none, and each is a failure."""
    groups: dict[tuple[str, str, str], list[Payload]] = defaultdict(list)
    found = _Sorted({}, defaultdict(list), defaultdict(set))
    for payload in payloads:
        request = payload.request.partition(":")[0].strip().rpartition("/")[2]
        try:
            owner = owner_of(payload, request, requests=_REQUESTS, owned=_OF_A_USER)
        except FieldError as error:
            subject = payload.account or payload.request
            rows.refuse(error, payload=payload.name, subject=subject)
            continue
        try:
            market = deployments.of(payload).market
        except FieldError as error:
            part = payload.request.partition(":")[2].strip()
            rows.refuse(
                error,
                payload=payload.name,
                subject=owner or request,
                account_id=account_id(VENUE, owner, part) if owner else None,
            )
            continue
        if request == GRACE:
            found.graces[market].append(payload)
        else:
            groups[market, owner, request].append(payload)
        if owner:
            found.owners[market].add(owner)
    for (market, owner, request), copies in groups.items():
        if len(copies) == 1:
            found.single.setdefault((market, owner), {})[request] = copies[0]
            continue
        several = len(deployments.markets) > 1
        message = f"{len(copies)} payloads of {request}" + (f" of {market}" if several else "")
        for copy in copies:
            rows.fail(
                FailureReason.DUPLICATE,
                message + (f" for {owner}" if owner else "") + "; all rejected",
                payload=copy.name,
                subject=owner or request,
                account_id=account_id(VENUE, owner, market) if owner else None,
            )
    return found


FACTS = VenueFacts(
    title="Aave v3",
    accounts=(
        "all supplies and debts of an owner in one market: `aave_v3:<owner>:<market>`, a node of its own, in USD",
        "an owner may be in several markets of one run, on one chain (Core, Prime) or on several",
    ),
    equity="collateral less debt at the market's oracle prices",
    requirement="the part of each collateral beyond its LTV (initial) or liquidation threshold (maintenance), of the "
    "reserve or of the account's e-mode category",
    verdict="health factor below 1; at exactly 1 the account is healthy",
    cross_or_isolated="one cross account per market; isolated e-mode categories zero the LTV of other collateral",
    orders="the venue has none",
    liquidation="account data, health factor, index accrual, close factor, bonus, protocol fee, dust rule, bad debt "
    "exactly as the contracts of the deployment's release (v3.0 to v3.7) compute them; liquidation price of every "
    "collateral and debt, at which the health factor is exactly 1",
    rules=(
        "aave-dao/aave-v3-origin fd1fbd9 (v3.7, 2026-06): GenericLogic, LiquidationLogic, ValidationLogic, math",
        "aave-dao/aave-v3-origin docs/3.1 to docs/3.7, and the same contracts of v3.1 to v3.6",
        "aave/aave-v3-core, v3.0.2: GenericLogic, LiquidationLogic, MathUtils",
        "aave/aave-v3-periphery: `eModeCategoryId` and its companions in `AggregatedReserveData` (e-mode before v3.2)",
    ),
    parameters="reserves, prices, thresholds, caps and e-mode categories from `getReservesData` and `getEModes`; "
    "chain, market and release from the dated parameter file",
    gaps=(
        "stable-rate debt (gone since v3.2) and an e-mode category with its own price oracle (before v3.2) are refused",
        "the price-oracle sentinel (gone in v3.7) is in no payload: it delays liquidations after a sequencer's outage",
        "siloed borrowing and isolation mode (gone in v3.7) limit new debt alone and change no requirement here",
        "before v3.5 the venue floors the average threshold to a basis point: its health is that much below ours",
        "GHO debts before v3.4 are taken without the discount of stkAAVE holders",
        "liquidations of a receiver of aTokens, and by whom, are not told apart from those of the underlying",
        "a paused reserve or a grace period is in `market_state` and does not change the verdict",
    ),
)
