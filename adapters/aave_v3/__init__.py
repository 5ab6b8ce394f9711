"""Aave v3 markets: an owner's supplies and debts in one market are one account.

Requests: `getReservesData` and `getEModes` once per market, `getUserReservesData` and, where the venue's own figures
are wanted beside ours, `getUserAccountData` per owner. Which market they come from is in the parameter file. Balances
are accrued to the second at which the user's payload was received (else the market's; else they stay as stored). Prices
are the market's oracle prices in dollars.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Asset, Context, Normalized
from ..amounts import FieldError, joined, members, token_amount
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .mechanics import EMode, effective_parameters, owed_amount, supplied_amount
from .parse import (
    BaseCurrency,
    Deployment,
    Reported,
    Reserve,
    deployment_of,
    read_account_data,
    read_base_currency,
    read_emode,
    read_reserve,
    read_state,
    read_user_reserve,
    repeated_addresses,
    unsigned_at,
    user_records,
)
from .rules import collateral_tier_rows, rule_set_id, rule_set_rows

_RESERVES, _EMODES = "getReservesData", "getEModes"
_USER_RESERVES, _ACCOUNT_DATA = "getUserReservesData", "getUserAccountData"
_OF_A_USER = (_USER_RESERVES, _ACCOUNT_DATA)


class _Market(NamedTuple):
    """What the market-wide payloads say. `unreadable` keeps why a reserve could not be used, for those who hold it."""

    payload: Payload
    base: BaseCurrency
    reserves: Mapping[str, Reserve]
    unreadable: Mapping[str, FieldError]


@dataclass(frozen=True)
class AaveV3Adapter:
    """Adapter of one Aave v3 market."""

    venue: str = "aave_v3"
    requests: tuple[str, ...] = (_RESERVES, _EMODES, _USER_RESERVES, _ACCOUNT_DATA)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables and failures of all payloads; `ConfigurationError` when the parameters name no market.

        Reserves whose token the asset book does not know are left out, and are a failure of whoever holds them.
        """
        deployment = deployment_of(context.parameters)
        rows = Rows(self.venue)
        single = _single_payloads(payloads, rows, deployment)
        market = _read_market(single.get((_RESERVES, "")), rows, deployment)
        emodes = _read_emodes(single.get((_EMODES, "")), rows)
        rows.rows["rule_sets"].extend(rule_set_rows(deployment))
        used: set[int] = set()
        for owner in sorted({p.account for p in payloads if p.request in _OF_A_USER and p.account}):
            account = _Account(owner, account_id(self.venue, owner, deployment.market), deployment, context)
            used.add(account.read(rows, single, market, emodes))
        if market is not None:
            chosen = [emode for category, emode in emodes.items() if category in used]
            for reserve in market.reserves.values():
                asset = _asset(context, reserve)
                if asset is not None:
                    _add_asset(rows, reserve, asset, market, deployment)
                    rows.rows["collateral_tiers"].extend(collateral_tier_rows(reserve, chosen, deployment=deployment))
        return Normalized(rows.batches(), rows.failures)


ADAPTER = AaveV3Adapter()


def _single_payloads(payloads: Sequence[Payload], rows: Rows, deployment: Deployment) -> dict[tuple[str, str], Payload]:
    """The payload of each (request, owner); where there are several, none, and each is a failure."""
    groups: dict[tuple[str, str], list[Payload]] = defaultdict(list)
    for payload in payloads:
        if payload.request not in ADAPTER.requests:
            rows.fail(
                FailureReason.UNSUPPORTED, f"unknown request {payload.request!r}", payload=payload.name, path="request"
            )
        elif payload.request in _OF_A_USER and not payload.account:
            rows.fail(
                FailureReason.MISSING_FIELD, f"{payload.request} without an owner", payload=payload.name, path="account"
            )
        else:
            groups[payload.request, payload.account if payload.request in _OF_A_USER else ""].append(payload)
    for (request, owner), copies in groups.items():
        if len(copies) > 1:
            account = account_id(rows.venue, owner, deployment.market) if owner else None
            for copy in copies:
                rows.fail(
                    FailureReason.DUPLICATE,
                    f"{len(copies)} payloads of {request}" + (f" for {owner}" if owner else "") + "; all rejected",
                    payload=copy.name,
                    subject=owner or request,
                    account_id=account,
                )
    return {key: copies[0] for key, copies in groups.items() if len(copies) == 1}


# The market -----------------------------------------------------------------------------------------------------------


def _read_market(payload: Payload | None, rows: Rows, deployment: Deployment) -> _Market | None:
    """All reserves that can be read; None without a usable payload. Several of one address or token are refused."""
    if payload is None:
        return None
    try:
        base = read_base_currency(payload.body)
        records = members(payload.body, "reserves")
    except FieldError as error:
        rows.fail(error.reason, error.message, payload=payload.name, path=error.path, subject=payload.request)
        return None
    read: list[Reserve] = []
    unreadable: dict[str, FieldError] = {}
    twice = repeated_addresses(records)
    for position, record in enumerate(records):
        path = joined("reserves", position)
        address = str(record.get("underlyingAsset", "")).lower() if isinstance(record, Mapping) else ""
        try:
            if address in twice:
                raise FieldError(path, FailureReason.DUPLICATE, f"several reserves with the address {address}")
            read.append(read_reserve(record, position, path, deployment=deployment))
        except FieldError as error:
            unreadable[address] = error
            rows.fail(error.reason, error.message, payload=payload.name, path=error.path, subject=address)
    by_asset: dict[str, list[Reserve]] = defaultdict(list)
    for reserve in read:
        by_asset[reserve.asset_id].append(reserve)
    for asset_id, copies in by_asset.items():
        for reserve in copies if len(copies) > 1 else ():
            shared = FieldError(
                "reserves",
                FailureReason.DUPLICATE,
                f"{len(copies)} reserves are {asset_id}; name them apart under [symbols] of the parameter file",
            )
            unreadable[reserve.address] = shared
            rows.fail(shared.reason, shared.message, payload=payload.name, path=shared.path, subject=reserve.address)
    kept = {copies[0].address: copies[0] for copies in by_asset.values() if len(copies) == 1}
    for position, record in enumerate(records):
        address = str(record.get("underlyingAsset", "")).lower() if isinstance(record, Mapping) else ""
        if address in kept:
            _add_state(rows, record, kept[address], joined("reserves", position), payload)
    return _Market(payload, base, kept, unreadable)


def _add_state(rows: Rows, record: Any, reserve: Reserve, path: str, payload: Payload) -> None:
    with rows.guard(payload.name, subject=reserve.asset_id):
        for field, value in read_state(record, reserve, path).items():
            is_text = isinstance(value, str)
            rows.add(
                "market_state",
                venue=rows.venue,
                market=reserve.asset_id,
                field=field,
                value=None if is_text else value,
                text=value if is_text else None,
                as_of=payload.received_at,
                source=payload.request,
            )


def _read_emodes(payload: Payload | None, rows: Rows) -> dict[int, EMode]:
    """Categories by number; one that cannot be read or occurs twice is a failure and missing."""
    if payload is None:
        return {}
    found: dict[int, list[EMode]] = defaultdict(list)
    with rows.guard(payload.name, subject=payload.request):
        for i, entry in enumerate(members(payload.body, "eModes")):
            with rows.guard(payload.name, subject=payload.request):
                emode = read_emode(entry, joined("eModes", i))
                found[emode.category].append(emode)
    for category, copies in found.items():
        if len(copies) > 1:
            rows.fail(
                FailureReason.DUPLICATE,
                f"{len(copies)} entries of e-mode category {category}; all rejected",
                payload=payload.name,
                path="eModes",
                subject=str(category),
            )
    return {category: copies[0] for category, copies in found.items() if len(copies) == 1}


def _asset(context: Context, reserve: Reserve) -> Asset | None:
    # Not `resolve`: that unfolds contract names such as kPEPE, and a token on a chain (kBTC) is no multiple of another.
    return context.assets.assets.get(reserve.symbol)


def _add_asset(rows: Rows, reserve: Reserve, asset: Asset, market: _Market, deployment: Deployment) -> None:
    rows.add(
        "assets",
        asset_id=reserve.asset_id,
        symbol=reserve.symbol,
        chain=deployment.chain,
        decimals=reserve.decimals,
        risk_factor=asset.risk_factor,
        multiplier=asset.multiplier,
        peg_of=asset.peg_of,
        issuer=asset.issuer,
    )
    rows.add(
        "marks",
        venue=rows.venue,
        subject=reserve.asset_id,
        field="oracle",
        value=float(market.base.usd(reserve.price)),
        as_of=market.payload.received_at,
        source=market.payload.request,
    )


# An account -----------------------------------------------------------------------------------------------------------


class _Account(NamedTuple):
    """One owner in the market."""

    owner: str
    account_id: str
    deployment: Deployment
    context: Context

    def read(
        self,
        rows: Rows,
        single: Mapping[tuple[str, str], Payload],
        market: _Market | None,
        emodes: Mapping[int, EMode],
    ) -> int:
        """Adds the account and its balances; returns its e-mode category (0 when none, or not known)."""
        user, data = single.get((_USER_RESERVES, self.owner)), single.get((_ACCOUNT_DATA, self.owner))
        category = 0
        if user is None:
            self._fail(rows, FailureReason.MISSING_FIELD, f"no usable payload of {_USER_RESERVES}", _USER_RESERVES)
        else:
            with rows.guard(user.name, subject=self.owner, account_id=self.account_id):
                category = unsigned_at(user.body, "userEmodeCategoryId", largest=255)
        if market is None:
            self._fail(rows, FailureReason.MISSING_MARK, f"no usable payload of {_RESERVES}", _RESERVES)
        if category and category not in emodes:
            self._fail(rows, FailureReason.MISSING_PARAMETER, f"e-mode category {category} is not known", _EMODES)
        if user is not None and market is not None:
            self._add_balances(rows, user, market, emodes.get(category))
        reported = self._reported(rows, data, market)
        newest = user or data
        rows.add(
            "accounts",
            account_id=self.account_id,
            node=self.account_id,
            venue=rows.venue,
            chain=self.deployment.chain,
            owner=self.owner,
            margin_mode="lending",
            rule_set=rule_set_id(self.deployment),
            settlement_asset="USD",
            emode=str(category) if category else None,
            received_at=newest.received_at if newest else None,
            reported_equity=reported.equity if reported else None,
            reported_maintenance_margin=reported.maintenance_margin if reported else None,
            reported_health=reported.health if reported else None,
        )
        return category

    def _fail(self, rows: Rows, reason: FailureReason, message: str, request: str) -> None:
        rows.fail(reason, message, path=request, subject=self.owner, account_id=self.account_id)

    def _reported(self, rows: Rows, data: Payload | None, market: _Market | None) -> Reported | None:
        """The venue's own figures. They are for comparison: an unreadable one is a finding and stops nobody."""
        if data is None or market is None:
            return None
        with rows.guard(data.name, subject=self.account_id):
            return read_account_data(data.body, market.base, self.deployment.generation)
        return None

    def _add_balances(self, rows: Rows, user: Payload, market: _Market, emode: EMode | None) -> None:
        with rows.guard(user.name, subject=self.owner, account_id=self.account_id):
            records = user_records(user.body)
            twice = repeated_addresses(records)
            for i, record in enumerate(records):
                path = joined("userReserves", i)
                with rows.guard(user.name, subject=self.owner, account_id=self.account_id):
                    self._add_balance(rows, record, path, user=user, market=market, emode=emode, twice=twice)

    def _add_balance(
        self,
        rows: Rows,
        record: Any,
        path: str,
        *,
        user: Payload,
        market: _Market,
        emode: EMode | None,
        twice: set[str],
    ) -> None:
        held = read_user_reserve(record, path)
        if held.address in twice:
            raise FieldError(path, FailureReason.DUPLICATE, f"several entries of {held.address}; all rejected")
        if held.scaled_supply == held.scaled_debt == 0:
            return
        reserve = self._reserve(held.address, path, market)
        generation = self.deployment.generation
        liquidity_index, borrow_index = reserve.indices_at(user.received_at or market.payload.received_at)
        effective = effective_parameters(reserve.parameters, reserve.reserve_id, emode, generation=generation)
        if supplied := supplied_amount(held.scaled_supply, liquidity_index, generation):
            rows.add(
                "balances",
                account_id=self.account_id,
                asset_id=reserve.asset_id,
                side="asset",
                quantity=token_amount(supplied, reserve.decimals),
                collateral_enabled=held.is_collateral and effective.liquidation_threshold > 0,
            )
        if owed := owed_amount(held.scaled_debt, borrow_index, generation):
            rows.add(
                "balances",
                account_id=self.account_id,
                asset_id=reserve.asset_id,
                side="liability",
                quantity=token_amount(owed, reserve.decimals),
                collateral_enabled=True,
            )

    def _reserve(self, address: str, path: str, market: _Market) -> Reserve:
        where = joined(path, "underlyingAsset")
        if address in market.unreadable:
            error = market.unreadable[address]
            raise FieldError(where, error.reason, f"reserve {address} cannot be used: {error.message}")
        reserve = market.reserves.get(address)
        if reserve is None:
            raise FieldError(where, FailureReason.UNKNOWN_MARKET, f"no reserve {address} in {_RESERVES}")
        if _asset(self.context, reserve) is None:
            raise FieldError(where, FailureReason.UNKNOWN_ASSET, f"token {reserve.symbol!r} is not in the asset book")
        return reserve
