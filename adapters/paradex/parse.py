"""Payloads of one owner of Paradex to accounts: which there are, their balances, positions, orders, fees, leverages.

One Starknet address is one account and shares collateral with no other. The address that an owner's payloads name (or
do not name) is the account `paradex:<owner>`; where they name several, the main one is, an isolated one is
`paradex:<owner>:isolated:<market>` and any other `paradex:<owner>:<address>`. Which is which is in `/v1/account/info`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import (
    FieldError,
    decimal_at,
    joined,
    member,
    non_negative_at,
    optional_decimal_at,
    positive_at,
)
from ..symbols import account_id
from ..transport import Payload
from .market_payloads import results_of
from .markets import USDC, VENUE, Reading, Spec

ACCOUNT, SUMMARIES, INFO, MARGIN = "account", "account/summary", "account/info", "account/margin"
POSITIONS, ORDERS, BALANCE = "positions", "orders", "balance"
OWNER_REQUESTS = (ACCOUNT, SUMMARIES, INFO, MARGIN, POSITIONS, ORDERS, BALANCE)

_EXACT_DIGITS = 80
_SIDES = {"LONG": 1, "BUY": 1, "SHORT": -1, "SELL": -1}
_RESTING = (None, "", "NEW", "OPEN")
_FEES = ("taker_rate", "option_taker_rate", "dated_option_taker_rate")


class Held(NamedTuple):
    """One open position; `entry` in USDC, `mark` the price that its stated profit implies."""

    spec: Spec
    quantity: Decimal
    entry: Decimal
    funding: Decimal
    mark: Decimal | None
    liquidation_price: Decimal | None


class Resting(NamedTuple):
    """One open order; `price` None for a market order, `size` signed."""

    order_id: str
    spec: Spec
    size: Decimal
    price: Decimal | None
    reduce_only: bool


@dataclass
class Account:
    """One account while its payloads are read."""

    address: str | None
    identity: str
    payload: Payload
    isolated_market: str | None = None
    positions: dict[str, Held] | None = None
    """By symbol; None until a payload lists them."""
    orders: dict[str, Resting] = field(default_factory=dict)
    """By order id."""
    rejected: set[str] = field(default_factory=set)
    """Symbols and order ids that are listed twice."""
    balances: dict[str, Decimal] | None = None
    unknown: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Held tokens that the asset book does not know, with payload and path of their record."""
    fees: dict[str, Decimal] = field(default_factory=dict)
    leverages: dict[str, Decimal] = field(default_factory=dict)
    methodology: str | None = None
    margin_payload: Payload | None = None
    """The last of the answers that state the methodology and chosen leverages."""
    reported: dict[str, Decimal | None] = field(default_factory=dict)
    received_at: datetime | None = None
    is_read: bool = True
    """Whether everything that the requirement needs could be read; else a failure has said why."""


# ----------------------------------------------------------------------------------------------------------------------
# Which accounts an owner has


def read_accounts(reading: Reading, owner: str, payloads: Mapping[tuple[str, str], Payload]) -> list[Account]:
    """All accounts of one owner, the main one first; `payloads` by (request, address or market that its name carries),
    at least one. What cannot be read becomes a failure of its account.
    """
    infos = _infos(reading, owner, payloads)
    accounts = _accounts(owner, payloads, infos, _addresses(payloads, infos))
    for (request, part), payload in sorted(payloads.items(), key=lambda item: item[0]):
        _read_payload(reading, request, part, payload, accounts)
    return list(accounts.values())


def _infos(
    reading: Reading, owner: str, payloads: Mapping[tuple[str, str], Payload]
) -> dict[str | None, tuple[Mapping[str, Any], Payload]]:
    """`/v1/account/info` records by address (None where a record does not state its own)."""
    infos: dict[str | None, tuple[Mapping[str, Any], Payload]] = {}
    for (request, _), payload in sorted(payloads.items(), key=lambda item: item[0]):
        if request != INFO:
            continue
        with reading.rows.guard(payload.name, subject=owner, account_id=account_id(VENUE, owner)):
            listed = results_of(payload)
            for path, record in listed:
                if not isinstance(record, Mapping):
                    raise FieldError(path, FailureReason.MALFORMED, "expected an object")
                if len(listed) > 1:
                    member(record, "account", path)
                if not isinstance(record.get("isolated_market"), str | None):
                    place = joined(path, "isolated_market")
                    raise FieldError(place, FailureReason.MALFORMED, "expected the name of a market")
                infos[_address(record, path)] = record, payload
    return infos


def _address(record: Any, path: str) -> str | None:
    address = record.get("account") if isinstance(record, Mapping) else None
    if address is not None and not isinstance(address, str):
        raise FieldError(joined(path, "account"), FailureReason.MALFORMED, "expected the address of an account")
    return address or None


def _is_address(part: str) -> bool:
    """Whether what tells a request from others is an account; else it is a market or an asset."""
    return part.startswith("0x")


def _addresses(
    payloads: Mapping[tuple[str, str], Payload], infos: Mapping[str | None, tuple[Mapping[str, Any], Payload]]
) -> list[str]:
    """Addresses that the payloads name, the main account's first."""
    found: dict[str, int] = {}
    for address, (record, _) in infos.items():
        if address is not None:
            found[address] = 0 if record.get("kind") == "main" else 2
    for (request, part), payload in payloads.items():
        if _is_address(part):
            found.setdefault(part, 2)
        body = payload.body
        records = body.get("results") if isinstance(body, Mapping) else body
        listed = records if isinstance(records, list) else [body]
        for record in listed:
            address = record.get("account") if isinstance(record, Mapping) else None
            if isinstance(address, str) and address:
                # The account that the plain summary is of is the one that asked.
                rank = 1 if request == ACCOUNT and not part else 3
                found[address] = min(found.get(address, rank), rank)
    return sorted(found, key=lambda address: (found[address], address))


def _accounts(
    owner: str,
    payloads: Mapping[tuple[str, str], Payload],
    infos: Mapping[str | None, tuple[Mapping[str, Any], Payload]],
    addresses: list[str],
) -> dict[str | None, Account]:
    """Accounts by address, the main one first; without any address one account with the key None."""
    first = payloads[min(payloads)]
    accounts: dict[str | None, Account] = {}
    for number, address in enumerate(addresses or [None]):
        record = infos[address][0] if address in infos else infos.get(None, ({}, first))[0] if number == 0 else {}
        market = record.get("isolated_market") if isinstance(record.get("isolated_market"), str) else None
        part = "" if number == 0 else f"isolated:{market}" if market else str(address)
        account = Account(address, account_id(VENUE, owner, part), first, isolated_market=market or None)
        accounts[address] = account
    return accounts


def _of(accounts: dict[str | None, Account], address: str | None, path: str) -> Account:
    """The account of an address; what names none is the main one's. Raises `FieldError(inconsistent)`."""
    if address is None:
        return next(iter(accounts.values()))
    if address not in accounts:
        raise FieldError(path, FailureReason.INCONSISTENT, f"account {address[:20]!r} is not among the owner's")
    return accounts[address]


# ----------------------------------------------------------------------------------------------------------------------
# Reading payloads


def _read_payload(
    reading: Reading, request: str, part: str, payload: Payload, accounts: dict[str | None, Account]
) -> None:
    key = {POSITIONS: "market", ORDERS: "market", BALANCE: "token"}.get(request, "")
    main = next(iter(accounts.values()))
    asked = part if _is_address(part) else None
    named = accounts[asked] if asked else main
    before = len(reading.rows.failures)
    with reading.rows.guard(payload.name, subject=named.identity, account_id=named.identity):
        if part and not asked and request in (POSITIONS, BALANCE):
            raise FieldError("request", FailureReason.UNSUPPORTED, f"{part[:40]!r} is no address of an account")
        if request == MARGIN:
            address = _address(payload.body, "") if isinstance(payload.body, Mapping) else None
            _read_margin(_of(accounts, address or asked, "account"), payload)
        elif request in (ACCOUNT, SUMMARIES, INFO):
            read = _read_info if request == INFO else _read_summary
            for path, record in results_of(payload, key):
                if not isinstance(record, Mapping):
                    raise FieldError(path, FailureReason.MALFORMED, "expected an object")
                account = _of(accounts, _address(record, path) or asked, joined(path, "account"))
                with reading.rows.guard(payload.name, subject=account.identity, account_id=account.identity):
                    read(account, record, path, payload)
        else:
            records = results_of(payload, key)
            _start_list(request, named, payload)
            for path, record in records:
                account = _of(accounts, _address(record, path) or asked, joined(path, "account"))
                _start_list(request, account, payload)
                with reading.rows.guard(payload.name, subject=account.identity, account_id=account.identity):
                    _read_record(reading, request, account, record, path, payload)
    broken = {failure.account_id for failure in reading.rows.failures[before:]}
    for account in accounts.values():
        if account.identity in broken:
            account.is_read = False


def _start_list(request: str, account: Account, payload: Payload) -> None:
    """That a list speaks for an account: what is not in it the account does not hold.

    A list speaks for whom it was asked and for every account that one of its rows names.
    """
    if account.received_at is None:
        account.received_at = payload.received_at
    if request == POSITIONS and account.positions is None:
        account.positions, account.payload = {}, payload
    if request == BALANCE and account.balances is None:
        account.balances = {}


def _read_record(reading: Reading, request: str, account: Account, record: Any, path: str, payload: Payload) -> None:
    if request == POSITIONS:
        held = _position(reading, record, path)
        positions = account.positions if account.positions is not None else {}
        if held is None:
            return
        if held.spec.symbol in positions or held.spec.symbol in account.rejected:
            account.rejected.add(held.spec.symbol)
            positions.pop(held.spec.symbol, None)
            raise FieldError(path, FailureReason.DUPLICATE, f"{held.spec.symbol} is listed twice, both are rejected")
        positions[held.spec.symbol] = held
    elif request == ORDERS:
        resting = _order(reading, record, path)
        if resting is None:
            return
        if resting.order_id in account.orders or resting.order_id in account.rejected:
            account.rejected.add(resting.order_id)
            account.orders.pop(resting.order_id, None)
            raise FieldError(path, FailureReason.DUPLICATE, f"order {resting.order_id} is listed twice")
        account.orders[resting.order_id] = resting
    else:
        balances = account.balances if account.balances is not None else {}
        token = member(record, "token", path)
        if not isinstance(token, str) or not token:
            raise FieldError(joined(path, "token"), FailureReason.MALFORMED, "expected the name of a token")
        size = decimal_at(record, "size", path)
        if token in balances:
            raise FieldError(path, FailureReason.DUPLICATE, f"{token} is listed twice")
        balances[token] = size
        if size > 0 and token != USDC and reading.context.assets.resolve(token) is None:
            account.unknown[token] = payload.name, path
        elif size:
            reading.catalog.known_asset(token, path=joined(path, "token"))


def _read_summary(account: Account, record: Any, path: str, payload: Payload) -> None:
    if record.get("settlement_asset") not in (None, "", USDC):
        asset = str(record["settlement_asset"])[:20]
        raise FieldError(joined(path, "settlement_asset"), FailureReason.UNSUPPORTED, f"settlement asset {asset!r}")
    account.received_at = payload.received_at
    account.reported = {
        "reported_equity": decimal_at(record, "account_value", path),
        "reported_initial_margin": non_negative_at(record, "initial_margin_requirement", path),
        "reported_maintenance_margin": non_negative_at(record, "maintenance_margin_requirement", path),
    }


def _read_info(account: Account, record: Any, path: str, payload: Payload) -> None:
    fees = record.get("fees")
    if fees is None:
        return
    place = joined(path, "fees")
    for name in _FEES:
        rate = optional_decimal_at(fees, name, place) if isinstance(fees, Mapping) else decimal_at(fees, name, place)
        if rate is None:
            continue
        if not 0 <= rate <= 1:
            raise FieldError(joined(place, name), FailureReason.OUT_OF_RANGE, f"a fee rate of {rate}")
        account.fees[name] = rate


def _read_margin(account: Account, payload: Payload) -> None:
    """Methodology and chosen leverages of `/v1/account/margin`."""
    body = payload.body
    if not isinstance(body, Mapping) or body.get("error") is not None:
        raise FieldError("", FailureReason.MALFORMED, "expected the margin configuration of an account")
    methodology = member(body, "margin_methodology")
    if methodology not in ("cross_margin", "portfolio_margin"):
        message = f"margin methodology {str(methodology)[:40]!r}"
        raise FieldError("margin_methodology", FailureReason.UNSUPPORTED, message)
    if account.methodology not in (None, methodology):
        message = f"{methodology} here, {account.methodology} in another payload"
        raise FieldError("margin_methodology", FailureReason.INCONSISTENT, message)
    account.methodology, account.margin_payload = methodology, payload
    configs = body["configs"] if body.get("configs") is not None else []
    if not isinstance(configs, list):
        raise FieldError("configs", FailureReason.MALFORMED, f"expected a list, found {type(configs).__name__}")
    for i, config in enumerate(configs):
        path = joined("configs", i)
        market = member(config, "market", path)
        if not isinstance(market, str) or not market:
            raise FieldError(joined(path, "market"), FailureReason.MALFORMED, f"{market!r:.20} is no name of a market")
        if account.isolated_market == market and config.get("margin_type") == "ISOLATED":
            member(config, "isolated_margin_leverage", path)
        own = optional_decimal_at(config, "isolated_margin_leverage", path)
        isolated = account.isolated_market is not None and own
        leverage = positive_at(config, "isolated_margin_leverage" if isolated else "leverage", path)
        if account.leverages.setdefault(market, leverage) != leverage:
            raise FieldError(path, FailureReason.INCONSISTENT, f"two chosen leverages of {market}")


def _position(reading: Reading, record: Any, path: str) -> Held | None:
    """An open position; None for a closed one. Raises `FieldError`."""
    status = record.get("status") if isinstance(record, Mapping) else None
    if status not in (None, "", "OPEN", "CLOSED"):
        raise FieldError(joined(path, "status"), FailureReason.UNSUPPORTED, f"status {str(status)[:20]!r}")
    size = decimal_at(record, "size", path)
    if status == "CLOSED" or not size:
        return None
    side = member(record, "side", path)
    sign = _SIDES.get(side) if isinstance(side, str) else None
    if sign is None:
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"side {str(side)[:20]!r}")
    if size < 0 < sign:
        raise FieldError(joined(path, "size"), FailureReason.INCONSISTENT, f"a {side} position of {size}")
    spec = reading.spec(member(record, "market", path), path=joined(path, "market"))
    quantity = size.copy_abs() * sign
    entry = positive_at(record, "average_entry_price", path)
    funding = decimal_at(record, "unrealized_funding_pnl", path)
    profit = optional_decimal_at(record, "unrealized_pnl", path)
    mark = None
    if profit is not None:
        with localcontext(prec=_EXACT_DIGITS):
            mark = entry + (profit - funding) / quantity
        if mark <= 0 and spec.kind != "option":
            message = f"a profit of {profit} on {quantity} at {entry} has no positive mark"
            raise FieldError(joined(path, "unrealized_pnl"), FailureReason.INCONSISTENT, message)
    liquidation = optional_decimal_at(record, "liquidation_price", path)
    if liquidation is not None and liquidation < 0:
        message = f"{liquidation} must not be negative"
        raise FieldError(joined(path, "liquidation_price"), FailureReason.OUT_OF_RANGE, message)
    return Held(spec, quantity, entry, funding, mark if mark is not None and mark > 0 else None, liquidation or None)


def _order(reading: Reading, record: Any, path: str) -> Resting | None:
    """A resting order; None for one that is closed or waits for its trigger. Raises `FieldError`."""
    status = record.get("status") if isinstance(record, Mapping) else None
    if status in ("UNTRIGGERED", "CLOSED"):
        return None
    if status not in _RESTING:
        raise FieldError(joined(path, "status"), FailureReason.UNSUPPORTED, f"status {str(status)[:20]!r}")
    remaining = optional_decimal_at(record, "remaining_size", path) if isinstance(record, Mapping) else None
    size = non_negative_at(record, "remaining_size" if remaining is not None else "size", path)
    if not size:
        return None
    side = member(record, "side", path)
    sign = _SIDES.get(side) if isinstance(side, str) else None
    if sign is None:
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"side {str(side)[:20]!r}")
    flags = record.get("flags") or []
    return Resting(
        str(member(record, "id", path)),
        reading.spec(member(record, "market", path), path=joined(path, "market")),
        size * sign,
        non_negative_at(record, "price", path) or None,
        isinstance(flags, list) and "REDUCE_ONLY" in flags,
    )
