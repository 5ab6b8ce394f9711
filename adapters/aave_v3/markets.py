"""The market-wide payloads: reserves, e-mode categories, grace periods, prices as marks.

A reserve that cannot be used is kept with its reason, for those who hold it. Two markets on one chain may hold the same
token: its prices are marks of the venue where the markets agree in value and time, else each account carries its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aggregator.errors import FailureReason

from ..adapter import Asset, Context
from ..amounts import FieldError, joined
from ..catalog import asset_row
from ..rows import Rows
from ..transport import Payload
from .deployments import Deployment
from .mechanics import EMode
from .parse import (
    BaseCurrency,
    Reserve,
    address_of,
    emode_entries,
    emode_of_reserves,
    read_emode,
    read_reserve,
    read_reserves_answer,
    repeated_addresses,
)
from .rules import collateral_tier_rows
from .state import Grace, add_state, read_graces

RESERVES, EMODES, GRACE = "getReservesData", "getEModes", "getLiquidationGracePeriod"


@dataclass
class Market:
    """What the market-wide payloads of one market say, while they are read.

    `payload` and `base` are None without a usable answer of `getReservesData`; `unreadable` keeps why a reserve could
    not be used, by address, and `bad_emodes` why a category could not.
    """

    deployment: Deployment
    payload: Payload | None = None
    base: BaseCurrency | None = None
    reserves: dict[str, Reserve] = field(default_factory=dict)
    unreadable: dict[str, FieldError] = field(default_factory=dict)
    emodes: dict[int, EMode] = field(default_factory=dict)
    bad_emodes: dict[int, FieldError] = field(default_factory=dict)
    records: list[tuple[str, Any]] = field(default_factory=list)
    """(path, record by name) of every reserve in the payload."""

    def places_tell(self, held: list[Any]) -> bool:
        """Whether the place of a reserve in the list is its bit in e-mode bitmaps, as far as a user's records tell.

        Both contracts list every reserve in order. True where reserves have ids or state their category themselves;
        False where a user lists a reserve that the market lacks, or in another order, and where a copy shifts others.
        """
        if self.deployment.generation.emode_of_reserves or self._have_ids:
            return True
        places, nameless = self._places
        if not places:
            return False
        twice = repeated_addresses(held)
        mine = [address for record in held if (address := address_of(record)) and address not in twice]
        known = [places[address] for address in mine if address in places]
        return len(mine) - len(known) <= nameless and known == sorted(known)

    @cached_property
    def _have_ids(self) -> bool:
        return all(isinstance(record, Mapping) and record.get("id") is not None for _, record in self.records)

    @cached_property
    def _places(self) -> tuple[dict[str, int], int]:
        """(place by address, none where a copy shifts others; records without an address).

        A record without an address holds its place, for one reserve that a user lists.
        """
        listed = [address_of(record) or f"#{place}" for place, (_, record) in enumerate(self.records)]
        counts = Counter(listed)
        places = {address: place for place, address in enumerate(dict.fromkeys(listed))}
        if any(listed[place] != address and counts[address] == 1 for address, place in places.items()):
            places = {}
        return places, sum(address.startswith("#") for address in listed)


def asset_of(context: Context, reserve: Reserve) -> Asset | None:
    """The asset of a reserve's token in the asset book."""
    # Not `resolve`: that unfolds contract names such as kPEPE, and a token on a chain (kBTC) is no multiple of another.
    return context.assets.assets.get(reserve.symbol)


def read_market(deployment: Deployment, payload: Payload | None, rows: Rows) -> Market:
    """All reserves that can be read. Several of one address are all refused."""
    market = Market(deployment)
    if payload is None:
        return market
    try:
        answer = read_reserves_answer(payload.body)
    except FieldError as error:
        rows.refuse(error, payload=payload.name, subject=payload.request)
        return market
    market.payload, market.base = payload, answer.base
    twice = repeated_addresses(answer.records)
    for position, record in enumerate(answer.records):
        path, address = joined(answer.path, position), address_of(record)
        market.records.append((path, record))
        try:
            if address in twice:
                raise FieldError(path, FailureReason.DUPLICATE, f"several reserves with the address {address}")
            market.reserves[address] = read_reserve(record, position, path, deployment=deployment)
        except FieldError as error:
            market.unreadable[address] = error
            rows.refuse(error, payload=payload.name, subject=address)
    return market


def refuse_namesakes(markets: Iterable[Market], rows: Rows) -> None:
    """Takes out reserves whose asset id several tokens of one chain claim: nobody knows which of them a balance is."""
    claims: dict[str, list[tuple[Market, Reserve]]] = defaultdict(list)
    for market in markets:
        for reserve in market.reserves.values():
            claims[reserve.asset_id].append((market, reserve))
    for asset_id, copies in claims.items():
        if len({reserve.address for _, reserve in copies}) == 1:
            continue
        message = f"{len(copies)} reserves are {asset_id}; name them apart under [symbols] of the parameter file"
        for market, reserve in copies:
            shared = FieldError("reserves", FailureReason.DUPLICATE, message)
            market.unreadable[reserve.address] = shared
            del market.reserves[reserve.address]
            name = market.payload.name if market.payload else ""
            rows.fail(shared.reason, shared.message, payload=name, path=shared.path, subject=reserve.address)


def read_emodes(market: Market, payload: Payload | None, rows: Rows) -> None:
    """Categories by number into the market; one that cannot be read or occurs twice is a failure and missing.

    Before v3.2 reserves state their category and an answer to `getEModes` is unsupported.
    """
    if market.deployment.generation.emode_of_reserves:
        if payload is not None:
            message = f"{market.deployment.market} runs {market.deployment.generation.name}, which has no {EMODES}"
            rows.fail(FailureReason.UNSUPPORTED, message, payload=payload.name, path="request")
        _emodes_of_reserves(market, rows)
        return
    if payload is None:
        return
    found: dict[int, list[EMode]] = defaultdict(list)
    path = ""
    with rows.guard(payload.name, subject=payload.request):
        entries, path = emode_entries(payload.body)
        for i, entry in enumerate(entries):
            with rows.guard(payload.name, subject=payload.request):
                emode = read_emode(entry, joined(path, i))
                found[emode.category].append(emode)
    for category, copies in found.items():
        if len(copies) > 1:
            message = f"{len(copies)} entries of e-mode category {category}; all rejected"
            rows.fail(FailureReason.DUPLICATE, message, payload=payload.name, path=path, subject=str(category))
        else:
            market.emodes[category] = copies[0]


def _emodes_of_reserves(market: Market, rows: Rows) -> None:
    reserves = list(market.reserves.values())
    name = market.payload.name if market.payload else ""
    for category in sorted({reserve.emode.category for reserve in reserves if reserve.emode is not None}):
        try:
            emode = emode_of_reserves(category, reserves)
        except FieldError as error:
            market.bad_emodes[category] = error
            rows.refuse(error, payload=name, subject=str(category))
        else:
            if emode is not None:
                market.emodes[category] = emode


def add_market(market: Market, used: set[int], graces: list[Payload], rows: Rows, context: Context) -> None:
    """Rows of `market_state` of every reserve, and of `collateral_tiers` with the categories that somebody is in."""
    payload = market.payload
    ends = read_graces(graces, rows)
    if payload is None:
        for address, grace in ends.items():
            message = f"no usable payload of {RESERVES}"
            rows.fail(
                FailureReason.MISSING_FIELD, message, payload=grace.payload.name, path=grace.path, subject=address
            )
        return
    for path, record in market.records:
        reserve = market.reserves.get(address_of(record))
        if reserve is not None:
            _add_reserve_state(market, record, reserve, path, ends, rows)
    for address, grace in ends.items():
        if address not in market.reserves and address not in market.unreadable:
            message = f"no reserve {address} in {RESERVES}"
            rows.fail(
                FailureReason.UNKNOWN_MARKET, message, payload=grace.payload.name, path=grace.path, subject=address
            )
    chosen = [emode for category, emode in market.emodes.items() if category in used]
    for reserve in market.reserves.values():
        if asset_of(context, reserve) is not None:
            rows.rows["collateral_tiers"].extend(collateral_tier_rows(reserve, chosen, deployment=market.deployment))


def _add_reserve_state(
    market: Market, record: Any, reserve: Reserve, path: str, ends: Mapping[str, Grace], rows: Rows
) -> None:
    assert market.payload is not None
    add_state(
        rows,
        record,
        reserve,
        path,
        payload=market.payload,
        deployment=market.deployment,
        grace=ends.get(reserve.address),
    )


def add_assets(markets: Iterable[Market], rows: Rows, context: Context) -> None:
    """Rows of `assets`, one per token of a chain; two that differ are left to the snapshot to reject."""
    for market in markets:
        for reserve in market.reserves.values():
            asset = asset_of(context, reserve)
            if asset is None:
                continue
            row = asset_row(asset, chain=market.deployment.chain, decimals=reserve.decimals)
            if row not in rows.rows["assets"]:
                rows.rows["assets"].append(row)


def add_prices(markets: Iterable[Market], account_markets: Mapping[str, str], rows: Rows, context: Context) -> None:
    """Oracle prices in dollars as marks: of the venue, or of the accounts that hold what the markets disagree about.

    `account_markets` names the market of each account.
    """
    quotes: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for market in markets:
        if market.payload is None or market.base is None:
            continue
        for reserve in market.reserves.values():
            if asset_of(context, reserve) is not None:
                quotes[reserve.asset_id][market.deployment.market] = {
                    "venue": rows.venue,
                    "subject": reserve.asset_id,
                    "field": "oracle",
                    "value": float(market.base.usd(reserve.price)),
                    "as_of": market.payload.received_at,
                    "source": market.payload.request,
                }
    own: dict[tuple[str, str], dict[str, Any]] = {}
    disputed = set()
    for asset_id, by_market in quotes.items():
        if len({(quote["value"], quote["as_of"]) for quote in by_market.values()}) == 1:
            rows.rows["marks"].append(next(iter(by_market.values())))
        else:
            disputed.add(asset_id)
    for balance in rows.rows["balances"]:
        account, asset_id = balance["account_id"], balance["asset_id"]
        if asset_id in disputed:
            quote = quotes[asset_id][account_markets[account]]
            own[account, asset_id] = quote | {"account_id": account}
    rows.rows["marks"].extend(own.values())
