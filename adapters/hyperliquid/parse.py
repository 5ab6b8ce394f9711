"""Payloads of Hyperliquid to canonical rows.

Accounts of an owner: the cross account (`cross`, or `cross:<dex>` on a builder dex), each isolated position
(`isolated:<coin>`, its own node below the cross account) and the spot wallet (`spot`, in the cross account's node,
since collateral moves at once between the two). Numbers are decimal strings in the dex's collateral token. What is
parsed is exact; `marks` are float64.

The cash of an account is chosen so that it plus the profit of its positions is the venue's own equity to the last
digit: cash = raw USD + sum of szi * entryPx, so that cash + sum of szi * (mark - entryPx) = raw USD + sum of szi *
mark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..account_rows import add_balance
from ..amounts import (
    FieldError,
    decimal_at,
    decimal_of,
    integer_at,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    optional_time_at,
    positive_at,
)
from ..market_rows import add_mark
from ..symbols import account_id, instrument_id
from ..transport import Payload
from .markets import VENUE, Claim, Reading, dex_of, held_tiers
from .position_columns import EXACT_DIGITS, MARK_SOURCE, PlainPositions, Sums, plain_positions
from .rules import (
    NO_DATED_PARAMETERS,
    PERP_RULES,
    SOURCE,
    SPOT_RULES,
    DatedParameters,
    MarketTiers,
    dated_parameters,
    perp_rule_set,
)

ROUNDING = Decimal("0.000001")
"""The venue states amounts in its collateral token to 6 decimals, truncated position by position."""


class HeldPosition(NamedTuple):
    """One entry of `assetPositions`; `raw_usd` is set for an isolated one. Optional figures are the venue's own."""

    coin: str
    path: str
    szi: Decimal
    entry_price: Decimal
    value: Decimal
    leverage: Decimal
    raw_usd: Decimal | None
    margin_used: Decimal | None
    max_leverage: Decimal | None
    liquidation_price: Decimal | None

    @property
    def signed_value(self) -> Decimal:
        """Notional at the mark with the sign of the position."""
        return self.value if self.szi > 0 else self.value.copy_negate()


class Totals(NamedTuple):
    """`crossMarginSummary` or `marginSummary`."""

    account_value: Decimal
    notional: Decimal
    raw_usd: Decimal
    margin_used: Decimal


@dataclass
class PerpAccount:
    """A cross account or an isolated position while its payload is read; `cash` is None when it cannot be known."""

    account_id: str
    margin_mode: str
    positions: list[HeldPosition] = field(default_factory=list)
    plain: PlainPositions | None = None
    """All its positions where they were read by columns; then `positions` is empty."""
    tiers: dict[str, MarketTiers] = field(default_factory=dict)
    cash: Decimal | None = None
    reported: dict[str, Decimal | None] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------------------
# Perpetual accounts


def dex_of_account(payload: Payload) -> str:
    """Builder dex of a `clearinghouseState` payload, from its request (`clearinghouseState:<dex>`), else its coins."""
    named = payload.request.partition(":")[2]
    if named or not isinstance(payload.body, Mapping):
        return named
    entries = payload.body.get("assetPositions")
    held = [entry.get("position") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    coins = [position.get("coin") for position in held if isinstance(position, dict)]
    dexes = {dex_of(coin) for coin in coins if isinstance(coin, str)}
    return dexes.pop() if len(dexes) == 1 else ""


def cross_account_id(owner: str, dex: str) -> str:
    """Id of an owner's cross account on a dex, which is also its node."""
    return account_id(VENUE, owner, f"cross:{dex}" if dex else "cross")


def plain_perp_positions(
    reading: Reading, payloads: Sequence[Payload], *, but: Collection[str]
) -> list[PlainPositions | None]:
    """The positions of each `clearinghouseState` payload where columns can read all of them, else None.

    `but`: owners whose positions are needed as single rows.
    """

    dexes = [dex_of_account(payload) for payload in payloads]
    homes = [cross_account_id(payload.account, dex) for payload, dex in zip(payloads, dexes, strict=True)]
    return plain_positions(reading, payloads, dexes=dexes, homes=homes, but=but)


def read_perp_accounts(reading: Reading, payload: Payload, plain: PlainPositions | None = None) -> None:
    """The cross account and the isolated positions of one `clearinghouseState` payload.

    `plain` are its positions where they have been read already.
    """
    rows, owner = reading.rows, payload.account
    dex = dex_of_account(payload) if plain is None else plain.dex
    cross = PerpAccount(cross_account_id(owner, dex), "cross", plain=plain, tiers=plain.tiers if plain else {})
    accounts, event_at, totals = [cross], None, None

    before = len(rows.failures)
    with rows.guard(payload.name, subject=owner, account_id=cross.account_id):
        entries = members(payload.body, "assetPositions")
        if plain is None:
            accounts += _read_positions(reading, payload, entries, cross=cross, dex=dex)
    unread = {failure.account_id for failure in rows.failures[before:]}
    with rows.guard(payload.name, subject=owner, account_id=cross.account_id):
        event_at = optional_time_at(payload.body, "time") if isinstance(payload.body, Mapping) else None
    with rows.guard(payload.name, subject=owner, account_id=cross.account_id):
        totals = _totals(payload.body, "crossMarginSummary")
        cross.reported = {
            "reported_equity": totals.account_value,
            "reported_initial_margin": totals.margin_used,
            "reported_maintenance_margin": optional_decimal_at(payload.body, "crossMaintenanceMarginUsed"),
        }
    if totals is not None and cross.account_id not in unread:
        with rows.guard(payload.name, subject=owner, account_id=cross.account_id), localcontext(prec=EXACT_DIGITS):
            sums = plain.sums if plain else _sums(cross.positions)
            _check_totals("crossMarginSummary", totals, sums, raw_usd=totals.raw_usd)
            cross.cash = totals.raw_usd + sums.entry_cost
            if not unread and payload.body.get("marginSummary") is not None:  # absent from trimmed payloads
                held = [p for account in accounts for p in account.positions]
                raw_usd = totals.raw_usd + sum((p.raw_usd or Decimal(0) for p in held), Decimal(0))
                sums = plain.sums if plain else _sums(held)
                _check_totals("marginSummary", _totals(payload.body, "marginSummary"), sums, raw_usd=raw_usd)

    for account in accounts:
        with rows.guard(payload.name, subject=owner, account_id=account.account_id):
            reading.settlement(dex)
        _add_perp_account(reading, payload, account, parent=cross, dex=dex, event_at=event_at)


def add_bare_account(reading: Reading, payload: Payload) -> str:
    """The accounts row alone of a payload (one rejected as a whole is still shown); returns the account's id."""
    is_spot, dex = payload.request == "spotClearinghouseState", dex_of_account(payload)
    identity = account_id(VENUE, payload.account, "spot") if is_spot else cross_account_id(payload.account, dex)
    rule_set = SPOT_RULES if is_spot else PERP_RULES
    _add_account(reading, payload, identity, mode="cross", rule_set=rule_set, dex="" if is_spot else dex)
    return identity


def _totals(body: Any, key: str) -> Totals:
    summary = member(body, key)
    return Totals(
        decimal_at(summary, "accountValue", key),
        non_negative_at(summary, "totalNtlPos", key),
        decimal_at(summary, "totalRawUsd", key),
        non_negative_at(summary, "totalMarginUsed", key),
    )


def _read_positions(
    reading: Reading, payload: Payload, entries: list[Any], *, cross: PerpAccount, dex: str
) -> list[PerpAccount]:
    """The isolated accounts among the entries; cross positions go into `cross`. Positions of size 0 are passed over."""
    rows, isolated = reading.rows, dict[str, PerpAccount]()
    held = [entry.get("position") for entry in entries if isinstance(entry, Mapping)]
    names = Counter(str(position.get("coin")) for position in held if isinstance(position, Mapping))
    for i, entry in enumerate(entries):
        path = joined("assetPositions", i)
        with rows.guard(payload.name, subject=path, account_id=cross.account_id):
            position, coin, mode = _position_head(entry, path, dex=dex)
            if _is_zero(position.get("szi")):
                continue
            account = cross
            if mode == "isolated":
                identity = account_id(VENUE, payload.account, f"isolated:{coin}")
                account = isolated.setdefault(identity, PerpAccount(identity, "isolated"))
            with rows.guard(payload.name, subject=instrument_id(VENUE, coin), account_id=account.account_id):
                place = joined(path, "position")
                if names[coin] > 1:
                    message = f"{coin} is listed {names[coin]} times, all copies are rejected"
                    raise FieldError(place, FailureReason.DUPLICATE, message)
                account.positions.append(_held_position(position, coin, mode, path=place))
                if mode == "isolated":
                    _take_isolated_margin(account, account.positions[-1])
    return list(isolated.values())


def _is_zero(value: Any) -> bool:
    try:
        return decimal_of(value) == 0
    except FieldError:
        return False  # whoever reads the field says what is wrong with it


def _position_head(entry: Any, path: str, *, dex: str) -> tuple[Any, str, str]:
    if member(entry, "type", path) != "oneWay":
        raise FieldError(joined(path, "type"), FailureReason.UNSUPPORTED, f"{entry['type']!r}: only oneWay is known")
    position = member(entry, "position", path)
    place = joined(path, "position")
    coin = member(position, "coin", place)
    mode = member(member(position, "leverage", place), "type", joined(place, "leverage"))
    if not isinstance(coin, str) or not coin:
        raise FieldError(joined(place, "coin"), FailureReason.MALFORMED, "expected the name of a coin")
    if dex_of(coin) != dex:
        message = f"{coin} is not of dex {dex!r}, as the payload's request or its other positions are"
        raise FieldError(joined(place, "coin"), FailureReason.INCONSISTENT, message)
    if mode not in ("cross", "isolated"):
        raise FieldError(joined(place, "leverage.type"), FailureReason.UNSUPPORTED, f"margin mode {mode!r} is unknown")
    return position, coin, mode


def _held_position(position: Any, coin: str, mode: str, *, path: str) -> HeldPosition:
    leverage, place = member(position, "leverage", path), joined(path, "leverage")
    liquidation_price = optional_decimal_at(position, "liquidationPx", path)
    if liquidation_price is not None and liquidation_price < 0:
        raise FieldError(joined(path, "liquidationPx"), FailureReason.OUT_OF_RANGE, f"{liquidation_price} is negative")
    stated = position.get("maxLeverage") is not None
    return HeldPosition(
        coin,
        path,
        decimal_at(position, "szi", path),
        positive_at(position, "entryPx", path),
        positive_at(position, "positionValue", path),
        positive_at(leverage, "value", place),
        decimal_at(leverage, "rawUsd", place) if mode == "isolated" else None,
        optional_decimal_at(position, "marginUsed", path),
        positive_at(position, "maxLeverage", path) if stated else None,
        liquidation_price,
    )


def _take_isolated_margin(account: PerpAccount, held: HeldPosition) -> None:
    raw_usd = held.raw_usd if held.raw_usd is not None else Decimal(0)
    with localcontext(prec=EXACT_DIGITS):
        account.reported = {"reported_equity": held.margin_used}
        if held.margin_used is not None:
            _check_sum("marginUsed", held.margin_used, raw_usd + held.signed_value, path=held.path, rounded=1)
        account.cash = raw_usd + held.szi * held.entry_price


def _sums(held: list[HeldPosition]) -> Sums:
    zero = Decimal(0)
    return Sums(
        len(held),
        sum((p.value for p in held), zero),
        sum((p.signed_value for p in held), zero),
        sum((_margin_used(p) for p in held), zero),
        sum((p.szi * p.entry_price for p in held), zero),
    )


def _check_totals(key: str, totals: Totals, held: Sums, *, raw_usd: Decimal) -> None:
    """Raises `FieldError(inconsistent)` when a summary and the position rows of a payload contradict each other."""
    if totals.notional > 0 and not held.number:
        message = f"totalNtlPos is {totals.notional}, but no position is listed"
        raise FieldError(joined(key, "totalNtlPos"), FailureReason.INCONSISTENT, message)
    sums = {
        "totalRawUsd": (totals.raw_usd, raw_usd),
        "totalNtlPos": (totals.notional, held.value),
        "accountValue": (totals.account_value, raw_usd + held.signed_value),
        "totalMarginUsed": (totals.margin_used, held.margin_used),
    }
    for name, (stated, summed) in sums.items():
        _check_sum(name, stated, summed, path=key, rounded=held.number)


def _margin_used(held: HeldPosition) -> Decimal:
    return held.value / held.leverage if held.margin_used is None else held.margin_used


def _check_sum(name: str, stated: Decimal, summed: Decimal, *, path: str, rounded: int) -> None:
    if abs(stated - summed) > ROUNDING * max(rounded, 1):
        message = f"{name} is {stated}, the positions add up to {summed.normalize():f}"
        raise FieldError(joined(path, name), FailureReason.INCONSISTENT, message)


def _add_perp_account(
    reading: Reading,
    payload: Payload,
    account: PerpAccount,
    *,
    parent: PerpAccount,
    dex: str,
    event_at: datetime | None,
) -> None:
    dated = NO_DATED_PARAMETERS
    if account.plain is not None:  # of listed markets, which go before dated parameters
        reading.rows.add_table("positions", account.plain.positions)
        reading.rows.add_table("marks", account.plain.marks)
    else:
        dated = dated_parameters(reading.context.parameters, payload.account)
        for held in account.positions:
            _add_position(reading, payload, account, held, dated=dated, event_at=event_at)
    rule_set = perp_rule_set(account.tiers.values())
    reading.rule_sets.setdefault(rule_set, SOURCE if rule_set == PERP_RULES else f"{SOURCE}; {dated.source}")
    for coin, tiers in account.tiers.items():
        identity = instrument_id(VENUE, coin)
        reading.claims.append(Claim(rule_set, identity, tiers, account.account_id, payload))
    _add_account(
        reading,
        payload,
        account.account_id,
        mode=account.margin_mode,
        rule_set=rule_set,
        dex=dex,
        parent=None if account is parent else parent.account_id,
        event_at=event_at,
        reported=account.reported,
    )
    if account.cash:
        with suppress(FieldError):  # an unknown collateral has already made the account incomplete
            add_balance(reading.rows, account.account_id, reading.settlement(dex), account.cash)


def _add_position(
    reading: Reading,
    payload: Payload,
    account: PerpAccount,
    held: HeldPosition,
    *,
    dated: DatedParameters,
    event_at: datetime | None,
) -> None:
    rows, identity, placed = reading.rows, instrument_id(VENUE, held.coin), False
    # An owner with dated parameters of its own is of another time than the market payloads: they say nothing about it.
    market = None if dated.for_owner else reading.markets.get(held.coin)
    with rows.guard(payload.name, subject=identity, account_id=account.account_id):
        if market is not None and market.is_delisted:
            message = f"{held.coin} is delisted ({market.payload.name})"
            raise FieldError(joined(held.path, "coin"), FailureReason.UNKNOWN_MARKET, message)
        reading.instrument(held.coin, path=joined(held.path, "coin"))
        rows.add(
            "positions",
            account_id=account.account_id,
            instrument_id=identity,
            side_mode="net",
            quantity=held.szi,
            entry_price=held.entry_price,
            unsettled_funding=Decimal(0),  # funding is paid every hour into the raw USD
            leverage=held.leverage,
            # of an isolated position the venue's marginUsed is its equity
            reported_initial_margin=held.margin_used if account.margin_mode == "cross" else None,
            reported_liquidation_price=held.liquidation_price,
        )
        with localcontext(prec=EXACT_DIGITS):
            mark = held.value / abs(held.szi)
        add_mark(
            rows,
            identity,
            "mark",
            mark,
            as_of=event_at or payload.received_at,
            source=MARK_SOURCE,
            account_id=account.account_id,
        )
        placed = True
    if placed:
        with rows.guard(payload.name, subject=identity, account_id=account.account_id):
            account.tiers[held.coin] = held_tiers(
                held.coin, held.max_leverage, market=market, dated=dated, path=held.path
            )


def _add_account(
    reading: Reading,
    payload: Payload,
    identity: str,
    *,
    mode: str,
    rule_set: str,
    dex: str,
    parent: str | None = None,
    event_at: datetime | None = None,
    reported: Mapping[str, Decimal | None] | None = None,
) -> None:
    owner = payload.account
    reading.rule_sets.setdefault(rule_set, SOURCE)
    with suppress(FieldError):  # the account's reader has said so; here the asset is only noted
        reading.settlement(dex)
    reading.rows.add(
        "accounts",
        account_id=identity,
        parent_account_id=parent,
        node=cross_account_id(owner, "") if rule_set == SPOT_RULES else identity,
        venue=VENUE,
        chain=VENUE,
        owner=owner,
        margin_mode=mode,
        rule_set=rule_set,
        settlement_asset=reading.collateral_token(dex),
        event_at=event_at,
        received_at=payload.received_at,
        **(reported or {}),
    )


# ----------------------------------------------------------------------------------------------------------------------
# Spot wallet


def read_spot_account(reading: Reading, payload: Payload) -> None:
    """The spot wallet of one `spotClearinghouseState` payload: balances, no positions, no requirement."""
    rows = reading.rows
    identity = add_bare_account(reading, payload)
    with rows.guard(payload.name, subject=identity, account_id=identity):
        reading.settlement("")
    with rows.guard(payload.name, subject=identity, account_id=identity):
        balances = members(payload.body, "balances")
        names = Counter(str(entry.get("coin")) for entry in balances if isinstance(entry, Mapping))
        for i, entry in enumerate(balances):
            path = joined("balances", i)
            with rows.guard(payload.name, subject=path, account_id=identity):
                _add_spot_balance(reading, entry, identity, path=path, names=names)


def _add_spot_balance(reading: Reading, entry: Any, identity: str, *, path: str, names: Mapping[Any, int]) -> None:
    coin = member(entry, "coin", path)
    if not isinstance(coin, str) or not coin:
        raise FieldError(joined(path, "coin"), FailureReason.MALFORMED, "expected the name of a token")
    if names[coin] > 1:
        raise FieldError(
            path, FailureReason.DUPLICATE, f"{coin} is listed {names[coin]} times, all copies are rejected"
        )
    total = non_negative_at(entry, "total", path)
    hold = optional_decimal_at(entry, "hold", path)
    if hold is not None and not 0 <= hold <= total:
        raise FieldError(joined(path, "hold"), FailureReason.OUT_OF_RANGE, f"hold {hold} is not in [0, {total}]")
    if entry.get("token") is not None:
        token = integer_at(entry, "token", path)
        # A coin may carry the name of a better-known one; the token index tells them apart.
        if reading.tokens.get(token, coin) != coin or (token not in reading.tokens and coin in reading.tokens.values()):
            message = f"token {token} is called {coin!r}, which the list of tokens contradicts"
            raise FieldError(joined(path, "coin"), FailureReason.INCONSISTENT, message)
    if total:
        reading.rows.add(
            "balances",
            account_id=identity,
            asset_id=reading.catalog.known_asset(coin, path=joined(path, "coin")),
            side="asset",
            quantity=total,
            collateral_enabled=True,
            locked=hold,
        )
