"""GMX v2 (gmx-synthetics): isolated perpetual positions against a market's pool, each an account of its own.

Requests understood (calls of the Reader contract by their names, lists of the venue's API, DataStore values):

- per owner: `getAccountPositions`, `getPosition` (the position structs), `getPositionInfo`, `getPositionInfoList`,
  `getAccountPositionInfoList` (the same with fees, impact and profit of a full close), `isPositionLiquidatable` (the
  venue's own figures, to compare with), `getAccountOrders`. Several calls of one name need a remark behind a colon
  (`getPositionInfo:eth`), or they answer one question twice;
- market-wide: `getMarkets`, `getMarketInfo`, `getMarketInfoList`, `dataStore` (values by the contract's key names, in
  `{"global": {...}, "markets": {<address>: {...}}}`), `tokens` and `tickers` of the venue's API.

The parameter file names the chain and may hold tokens, markets and DataStore values for those who have no such payload.

Not counted: collateral that orders hold (theirs, not a position's), claimable funding (paid out, not collateral),
referral and tier discounts where no `getPositionInfo` states them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError
from ..facts import VenueFacts
from ..questions import Question, by_question, owner_of, reject_copies
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .markets import (
    VENUE,
    Deployment,
    add_shared_rows,
    deployment_of,
    read_data_store,
    read_market_infos,
    read_markets,
    read_tickers,
    read_tokens,
)
from .orders import read_orders
from .positions import Key, Owned, add_account, read_positions, read_verdicts

_INFOS = ("getPositionInfo", "getPositionInfoList", "getAccountPositionInfoList")
_POSITIONS = ("getAccountPositions", "getPosition")
_LIQUIDATABLE = "isPositionLiquidatable"
_ORDERS = ("getAccountOrders",)
_BESIDE = (_LIQUIDATABLE, *_ORDERS)
_OF_OWNERS = (*_POSITIONS, *_INFOS, *_BESIDE)
# Tokens before what is named by them; lists of markets before what refers to them.
_MARKET_WIDE: dict[str, Callable[[Deployment, Payload], None]] = {
    "tokens": read_tokens,
    "getMarkets": read_markets,
    "getMarketInfo": read_market_infos,
    "getMarketInfoList": read_market_infos,
    "dataStore": read_data_store,
    "tickers": read_tickers,
}


@dataclass(frozen=True)
class GmxV2Adapter:
    """Adapter of one GMX v2 deployment; see the package's docstring."""

    venue: str = VENUE
    requests: tuple[str, ...] = (*_OF_OWNERS, *_MARKET_WIDE)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter.

        Raises `ConfigurationError` for a parameter file that cannot be read.
        """
        rows = Rows(VENUE)
        deployment = deployment_of(rows, context)
        kinds = _sorted_out(rows, payloads)
        for kind, read in _MARKET_WIDE.items():
            for payload in kinds.get(kind, ()):
                read(deployment, payload)
        by_owner: dict[str, list[tuple[str, Payload]]] = defaultdict(list)
        for kind in _OF_OWNERS:
            for payload in kinds.get(kind, ()):
                by_owner[payload.account].append((kind, payload))
        for owner, answers in sorted(by_owner.items()):
            _add_owner(deployment, owner, answers)
        add_shared_rows(deployment)
        return Normalized(rows.batches(), rows.failures)


ADAPTER = GmxV2Adapter()


def _kind(request: str) -> str:
    """The call's name: without a path or contract before it, and without a remark behind it."""
    return request.partition(":")[0].strip().rpartition("/")[2].rpartition(".")[2]


def _question(payload: Payload) -> Question:
    kind = _kind(payload.request)
    owner = owner_of(payload, kind, requests=ADAPTER.requests, owned=_OF_OWNERS)
    return Question(kind, owner, payload.request.partition(":")[2])


def _sorted_out(rows: Rows, payloads: Sequence[Payload]) -> dict[str, list[Payload]]:
    """Payloads to read by kind; what is unknown, of nobody, or answers one question twice becomes a failure."""
    kinds: dict[str, list[Payload]] = defaultdict(list)
    for (kind, owner, _), copies in by_question(rows, payloads, _question).items():
        if len(copies) == 1:
            kinds[kind].append(copies[0])
        else:
            # The venue's own figures are for comparison, and orders cost no margin: all can still be computed.
            account = account_id(VENUE, owner) if owner and kind not in _BESIDE else None
            reject_copies(rows, copies, account_id=account)
    return kinds


def _add_owner(deployment: Deployment, owner: str, answers: Sequence[tuple[str, Payload]]) -> None:
    """All positions of one owner as accounts."""
    of_owner = account_id(VENUE, owner)
    found: dict[Key, list[Owned]] = defaultdict(list)
    for kind, payload in answers:
        if kind not in _BESIDE:
            for owned in read_positions(deployment, payload, of_owner):
                found[owned.held.key].append(owned)
    chosen: dict[Key, tuple[Owned, FieldError | None]] = {}
    for key, copies in found.items():
        infos = sum(owned.info is not None for owned in copies)
        best = max(copies, key=lambda owned: owned.info is not None)
        problem = None
        if infos > 1 or len(copies) - infos > 1:
            message = f"the position is listed {len(copies)} times, all copies are rejected"
            problem = FieldError(best.path, FailureReason.DUPLICATE, message)
        elif len({owned.held for owned in copies}) > 1:
            message = f"the position differs between {' and '.join(sorted(owned.payload.name for owned in copies))}"
            problem = FieldError(best.path, FailureReason.INCONSISTENT, message)
        chosen[key] = best, problem
    listed = {key: owned for key, (owned, _) in chosen.items()}
    for kind, payload in answers:
        if kind == _LIQUIDATABLE:
            read_verdicts(deployment, payload, listed)
    for _, (owned, problem) in sorted(chosen.items(), key=lambda entry: entry[0]):
        add_account(deployment, owned, problem)
    for kind, payload in answers:
        if kind in _ORDERS:
            read_orders(deployment, payload, listed)


FACTS = VenueFacts(
    title="GMX v2",
    accounts=("Each position (market, collateral token, side) is an isolated account and a node of its own",),
    equity="Collateral at its lowest price, profit at the index price against the trader (the pool may cap it), minus "
    "fees and negative price impact of a full close",
    requirement="tiered_notional on the entry size, at least the minimum collateral: constant in price; the closing "
    "costs are a fixed equity component of today",
    verdict="Below the requirement; at exactly the requirement healthy, at 0 liquidatable",
    cross_or_isolated="Isolated only",
    orders="Cost nothing: an order holds its own collateral; those beside a position are listed",
    liquidation="Whole position; check, fees, price impact with virtual inventory and caps, pool cap, sufficiency, "
    "settlement and liquidation price exact in integers, powers as the contracts' fixed-point library gives them",
    rules=("gmx-io/gmx-synthetics @a5c0c88 (2026-03): PositionUtils, PositionPricingUtils, MarketUtils, Precision",),
    parameters="DataStore values, open interest, pool amounts and prices from payloads; or the dated parameter file",
    gaps=(
        "Closing costs and a capped share of the profit stay as they are today in every scenario",
        "A later contract version values pending impact and realizable profit otherwise; it is not implemented",
        "Discounts by referral or tier count only where getPositionInfo states the fees",
        "Claimable funding and the collateral of waiting orders are not counted",
        "An index token without a virtual inventory value is taken to have none",
    ),
)
