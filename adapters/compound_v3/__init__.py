"""Compound v3 (Comet): an owner's base balance and collateral in one market are one account.

Requests, each with `:<market>` behind it where the payload's body does not tell its market (a label of the parameter
file; else the body's `comet` address, else the file's default market):

- `account` per owner: one snapshot of the contract's view functions for the owner (`userBasic`, balances of the
  collateral), usually with the market's own (`totalsBasic`, `baseScale`, `basePrice`, `assets` with prices); or a list
  of such snapshots of several markets;
- `market`: the same without an owner, for all accounts whose snapshots lack it;
- `configuration`: a deployment file, or the `Configuration` of the `Configurator`; fills what the others lack.

A snapshot may add what other getters return: `supplyKink` and its seven companions (or `supplyRate` and `borrowRate`),
`baseBorrowMin`, `targetReserves`, `storeFrontPriceFactor`, `reserves`, `balanceOf`, `borrowBalanceOf`,
`isLiquidatable`, `isBorrowCollateralized`; and, where the market's feeds do not quote dollars, `numerairePrice`: the
dollars (1e8) of what they quote. Base balances are accrued to the second at which the owner's payload was received.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError
from ..facts import VenueFacts
from ..findings import PlacedError
from ..questions import in_order, owner_of
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .accounts import add_account, add_account_row
from .markets import Found, Reading, add_market, add_market_prices
from .sections import (
    ACCOUNT,
    CONFIGURATION,
    MARKET,
    REQUESTS,
    VENUE,
    Section,
    as_getters,
    deployments_of,
    sections_of,
)


@dataclass(frozen=True)
class CompoundV3Adapter:
    """Adapter of the Comet markets that the parameter file names."""

    venue: str = VENUE
    requests: tuple[str, ...] = REQUESTS

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables and failures of all payloads; `ConfigurationError` when the parameters name no market.

        The order of the payloads does not matter. Collateral whose token the asset book does not know is left out, and
        is a failure of whoever holds it.
        """
        reading = Reading(Rows(VENUE), context, deployments_of(context.parameters))
        _sort(reading, payloads)
        reading.read_dollar_prices()
        markets = [(reading.deployments.markets[label], found) for label, found in sorted(reading.found.items())]
        for deployment, found in markets:
            for owner in sorted(found.accounts):
                add_account(reading, deployment, owner, found)
        for label, owner in sorted(reading.lost):
            if owner not in reading.found.get(label, Found({}, [], [])).accounts:
                add_account_row(reading, reading.deployments.markets[label], owner, None)
        for deployment, found in markets:
            add_market(reading, deployment, found)
        add_market_prices(reading)
        reading.add_tokens()
        return Normalized(reading.rows.batches(), reading.rows.failures)


ADAPTER = CompoundV3Adapter()


def _sort(reading: Reading, payloads: Sequence[Payload]) -> None:
    """Sections by market and owner. Several answers to one question are all rejected."""
    rows = reading.rows
    groups: dict[tuple[str, str, str], list[Section]] = defaultdict(list)
    for payload in in_order(payloads):
        kind = payload.request.partition(":")[0].strip("/ ")
        with rows.guard(payload.name, subject=payload.account or payload.request):
            owner = owner_of(payload, kind, requests=REQUESTS, owned=(ACCOUNT,))
            for section in sections_of(payload):
                try:
                    if isinstance(section, PlacedError):
                        raise section
                    label = reading.deployments.of(payload, section.body, section.path).label
                    groups[label, kind, owner].append(as_getters(section) if kind == CONFIGURATION else section)
                except FieldError as error:
                    _lose(reading, payload, error, owner)
    for (label, kind, owner), copies in sorted(groups.items()):
        found = reading.found.setdefault(label, Found({}, [], []))
        if len(copies) == 1:
            if kind == ACCOUNT:
                found.accounts[owner] = copies[0]
            else:
                (found.market if kind == MARKET else found.configuration).append(copies[0])
            continue
        if owner:
            reading.lost.add((label, owner))
        for copy in copies:
            rows.fail(
                FailureReason.DUPLICATE,
                f"{len(copies)} answers to {kind} of {label}" + (f" for {owner}" if owner else "") + "; all rejected",
                payload=copy.payload.name,
                path=copy.path,
                subject=owner or label,
                account_id=account_id(VENUE, owner, label) if owner else None,
            )


def _lose(reading: Reading, payload: Payload, error: FieldError, owner: str) -> None:
    """A snapshot that cannot be used at all: of the market that the request names, else as if of the default one."""
    label = payload.request.partition(":")[2] or reading.deployments.default or ""
    if owner and label in reading.deployments.markets:
        reading.lost.add((label, owner))
    reading.rows.refuse(
        error,
        payload=payload.name,
        subject=owner or payload.request,
        account_id=account_id(VENUE, owner, label) if owner else None,
    )


FACTS = VenueFacts(
    title="Compound v3 (Comet)",
    accounts=("an owner's base balance and collateral in one market: one account and one node per market",),
    equity="collateral plus base supply less base debt at the market's oracle prices, in what its feeds quote: "
    "dollars, or ether in the WETH markets",
    requirement="weighted_value with the market's factors: initial 1 - borrow factor, maintenance 1 - liquidation "
    "factor of each collateral's value; base supply and debt count in full",
    verdict="absorbed when liquidity at the liquidation factors is below 0; healthy at 0; never without debt",
    cross_or_isolated="cross within a market, isolated between markets",
    orders="there are none",
    liquidation="exact: accrual, both collateral checks, absorption, sale of collateral, reserves, borrow gate, and "
    "the price of one collateral below which the account can be absorbed",
    rules=("compound-finance/comet, CometCore.sol, Comet.sol, CometWithExtendedAssetList.sol, read 2026-11-21",),
    parameters="everything from payloads; configs/venues/compound_v3.toml names markets, tokens behind addresses and "
    "what the feeds quote",
    gaps=(
        "partial liquidation of the later CometWithPartialLiquidation is not modeled",
        "extended pause flags and deactivated collateral of the later contracts are not read",
        "rewards (tracking indices) are not valued",
        "without an interest curve a base balance stays as stored, with a finding",
        "the dollar price of what a market quotes must be in its own snapshot or in a dollar market of the chain",
    ),
)
