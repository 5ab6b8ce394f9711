"""Morpho Blue: an owner's position in one isolated market is one account, in the market's loan token.

Requests, per owner:

- `position`: a snapshot of the contract, or a list of several markets': `id`, `position` (`position(id, user)`), and
  usually what the market's own snapshot has;
- `userByAddress`, `marketPositions`, `marketPosition`: answers of the venue's GraphQL API;
- `positions`: rows of its REST API (`/v0/blue/users/{address}/positions`); `position` takes one such row too.

Market-wide:

- `market`: `id`, `market` (`market(id)`), `marketParams` (`idToMarketParams(id)`), `price` (the oracle's), `borrowRate`
  (the interest model's `borrowRateView`); tokens may be named by `loanToken` and `collateralToken`;
- `markets`, `marketById`, `marketByUniqueKey`, `assets`: answers of the GraphQL API;
- `tokens`: what tokens are, and their dollar prices: `address`, `symbol`, `decimals`, `priceUsd`.

A request may name its market behind a colon, by the parameter file's name or by id, where the body does not. An owner
may come with the contract's snapshot and the API's at once: the contract's counts, the API adds what it lacks and its
own health factor. The contract's totals are accrued to the second at which the owner's payload was received; the API's
are accrued by the venue. What an owner lends out is a balance that backs no debt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError
from ..facts import VenueFacts
from ..fields import text_of
from ..findings import PlacedError
from ..questions import in_order, owner_of
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .accounts import MarketKey, Reading, add_account, add_account_row, add_market
from .settings import settings_of
from .snapshots import (
    POSITION,
    REQUESTS,
    TOKENS,
    USER_REQUESTS,
    VENUE,
    Snapshot,
    kind_of,
    snapshots_of,
)

_SOURCES = ("contract", "rest", "api")
_OF_TOKENS = (TOKENS, "assets")


@dataclass(frozen=True)
class MorphoBlueAdapter:
    """Adapter of Morpho Blue markets."""

    venue: str = VENUE
    requests: tuple[str, ...] = REQUESTS

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables and failures of all payloads; `ConfigurationError` for an unusable parameter file.

        The order of the payloads does not matter.
        """
        reading = Reading(Rows(VENUE), context, settings_of(context.parameters))
        lost = _sort(reading, payloads)
        for key, owner in sorted(reading.positions):
            add_account(reading, key, owner)
        for key, owner in sorted(lost - set(reading.positions)):
            add_account_row(reading, key, owner, "USD")
        for key in sorted({*reading.markets, *(key for key, _ in reading.positions)}):
            owned = [s for (of, _), found in reading.positions.items() if of == key for s in found]
            add_market(reading, key, _newest([*reading.markets.get(key, ()), *owned]))
        reading.add_rules()
        reading.add_tokens()
        return Normalized(reading.rows.batches(), reading.rows.failures)


ADAPTER = MorphoBlueAdapter()


def _newest(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Newest first, the contract's before the API's of equal age, then by name: whatever order the payloads have."""

    def age(snapshot: Snapshot) -> tuple[float, int, str, str]:
        moment = snapshot.payload.received_at
        since = -moment.timestamp() if moment is not None else 0.0
        return since, _SOURCES.index(snapshot.source), snapshot.payload.name, snapshot.path

    return sorted(snapshots, key=age)


def _sort(reading: Reading, payloads: Sequence[Payload]) -> set[tuple[MarketKey, str]]:
    """Snapshots by market and owner; returns the accounts that no usable snapshot speaks of.

    Several answers to one question are all rejected.
    """
    rows = reading.rows
    lost: set[tuple[MarketKey, str]] = set()
    groups: dict[tuple[MarketKey, str, str], list[Snapshot]] = defaultdict(list)
    tokens: dict[tuple[str, str], list[Snapshot]] = defaultdict(list)
    for payload in in_order(payloads):
        kind = kind_of(payload)
        with rows.guard(payload.name, subject=payload.account or payload.request):
            owner = owner_of(payload, kind, requests=REQUESTS, owned=USER_REQUESTS)
            for snapshot in snapshots_of(payload):
                try:
                    if isinstance(snapshot, PlacedError):
                        raise snapshot
                    if kind in _OF_TOKENS:
                        address = snapshot.read(text_of, "token").lower()
                        tokens[reading.settings.chain_of(snapshot), address].append(snapshot)
                        continue
                    key = _market_of(reading, snapshot)
                    if owner and kind != POSITION and _is_empty(snapshot):
                        continue  # lists hold positions that were closed long ago
                    groups[key, owner, snapshot.source].append(snapshot)
                except FieldError as error:
                    _fail_unread(reading, payload, error, owner, lost)
    for address_key, found in sorted(tokens.items()):
        if len(found) == 1:
            reading.tokens[address_key] = found[0]
        else:
            reading.refused_tokens[address_key] = found[0]
        for copy in found if len(found) > 1 else ():
            message = f"{len(found)} entries of the token {address_key[1][:60]}; all rejected"
            rows.fail(FailureReason.DUPLICATE, message, payload=copy.payload.name, path=copy.path)
    for (key, owner, _), copies in sorted(groups.items(), key=lambda g: (g[0][:2], _SOURCES.index(g[0][2]))):
        label = reading.label(key)
        if len(copies) == 1:
            target = reading.positions.setdefault((key, owner), []) if owner else reading.markets.setdefault(key, [])
            target.append(copies[0])
            continue
        if owner:
            lost.add((key, owner))
        for copy in copies:
            rows.fail(
                FailureReason.DUPLICATE,
                f"{len(copies)} answers on {label}" + (f" for {owner}" if owner else "") + "; all rejected",
                payload=copy.payload.name,
                path=copy.path,
                subject=owner or label,
                account_id=account_id(VENUE, owner, label) if owner else None,
            )
    return lost


def _market_of(reading: Reading, snapshot: Snapshot) -> MarketKey:
    """The market that a snapshot names, or its request behind the colon; raises `PlacedError` without either."""
    named = snapshot.payload.request.partition(":")[2]
    behind = reading.settings.market_id(named) if named else None
    if not snapshot.has("id") and behind is not None:
        return MarketKey(reading.settings.chain_of(snapshot), behind)
    stated = reading.settings.market_id(snapshot.read(text_of, "id"))
    if behind is not None and stated != behind:
        raise snapshot.error("id", FailureReason.INCONSISTENT, f"{stated[:70]} in an answer on {named[:70]}")
    return MarketKey(reading.settings.chain_of(snapshot), stated)


def _is_empty(snapshot: Snapshot) -> bool:
    stated = (snapshot.facts.get(name, ("", None))[1] for name in ("supply_shares", "borrow_shares", "collateral"))
    return all(str(value) == "0" for value in stated)


def _fail_unread(
    reading: Reading, payload: Payload, error: FieldError, owner: str, lost: set[tuple[MarketKey, str]]
) -> None:
    """A snapshot that cannot be used at all; of the market that the request names, or of one that nobody knows."""
    named = payload.request.partition(":")[2]
    account = None
    if owner and named:
        key = MarketKey(reading.settings.chain, reading.settings.market_id(named))
        account = account_id(VENUE, owner, reading.label(key))
        lost.add((key, owner))
    elif owner:
        account = account_id(VENUE, owner)
    reading.rows.refuse(error, payload=payload.name, subject=owner or payload.request, account_id=account)


FACTS = VenueFacts(
    title="Morpho Blue",
    accounts=("an owner's position in one isolated market: one account and one node per market",),
    equity="collateral at the oracle's price less debt, in the loan token; what the owner lends out backs no debt and "
    "counts in the market equity alone",
    requirement="weighted_value: 1 - LLTV of the collateral's value, initial and maintenance alike",
    verdict="liquidated when the debt exceeds collateral times LLTV; healthy at equality; never without debt",
    cross_or_isolated="isolated: one collateral and one loan token per market",
    orders="there are none",
    liquidation="exact: shares, accrual, incentive factor, liquidation by collateral or by shares, bad debt, and the "
    "oracle price below which the position can be liquidated",
    rules=("morpho-org/morpho-blue, Morpho.sol, SharesMathLib.sol, MathLib.sol, ConstantsLib.sol, read 2026-11-21",),
    parameters="everything from payloads; configs/venues/morpho_blue.toml names chains, markets and tokens",
    gaps=(
        "no recorded payload was at hand: shapes are those of the contract's structs and of docs.morpho.org",
        "the API's state.price is taken as the oracle's price, as public clients of the API use it",
        "the rate of an interest model is read (borrowRateView), not computed; without it totals stay as stored",
        "the dollar price of a loan token that is no stable must be in a payload",
        "vaults (MetaMorpho) and pre-liquidation contracts are not read",
    ),
)
