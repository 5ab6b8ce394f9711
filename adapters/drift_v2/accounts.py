"""Accounts of Drift v2 from decoded `User` accounts: a cross account per sub-account, and each isolated perpetual.

A sub-account's spot balances and cross perpetuals are one account; an isolated perpetual with its deposit is an account
and a node of its own. A position's entry price is its average entry (its profit from it is `realized_pnl`, positive or
negative, to the last digit), so that equity is the program's whichever price is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, joined, members, token_amount
from ..symbols import account_id
from ..transport import Payload
from .decoded import camel, has, integer, unsigned, variant
from .markets import VENUE, Perp, Reading, note_initial_margin, note_usdc, usd
from .mechanics import BASE, PRICE, QUOTE, QUOTE_SPOT_MARKET, PerpPosition, SpotPosition, funding_payment
from .mechanics import token_amount as tokens_of
from .rules import (
    HeldPerp,
    HeldSpot,
    Holdings,
    beyond_the_requirement,
    collateral_tier_rows,
    initial_rate_override,
    margin_tier_rows,
    rule_set_rows,
)

SIDES = ("deposit", "borrow")
MODES = ("default", "highleverage", "highleveragemaintenance")
ISOLATED_FLAG = 1
MAX_SUB_ACCOUNT = 65_535
USDC_IGNORING_POOL = 1
"""An account of this pool may hold USDC, which does not count as its collateral."""
_OF_A_SPOT = ("scaled_balance", "open_orders")
_OF_A_PERP = ("base_asset_amount", "quote_asset_amount", "open_bids", "open_asks", "open_orders")
_OF_SOME_PERPS = ("lp_shares", "isolated_position_scaled_balance")
"""By the age of the program's layout a position states one of these or both."""
_BASE_DIGITS, _QUOTE_DIGITS, _ENTRY = 9, 6, Decimal("0.000001")
_EXACT_DIGITS = 80


class User(NamedTuple):
    """One decoded `User` and where it stands."""

    owner: str
    number: int
    record: Any
    path: str
    payload: Payload

    @property
    def account_id(self) -> str:
        """Id of the cross account, also its node."""
        return account_id(VENUE, self.owner, str(self.number))


@dataclass
class Account:
    """A cross or isolated account while it is read; incomplete once a part of it could not be."""

    account_id: str
    mode: str
    parent: str | None = None
    spots: list[HeldSpot] = field(default_factory=list)
    perps: list[HeldPerp] = field(default_factory=list)
    complete: bool = True
    reported: Mapping[str, Decimal | None] = field(default_factory=dict)
    liquidation_prices: Mapping[int, Decimal] = field(default_factory=dict)
    """The gateway's, by market."""


def sub_account_of(record: Any, path: str) -> int:
    """Number of a decoded user's sub-account; raises `FieldError`."""
    number = unsigned(record, "sub_account_id", path)
    if number > MAX_SUB_ACCOUNT:
        raise FieldError(joined(path, "sub_account_id"), FailureReason.OUT_OF_RANGE, f"no sub-account {number}")
    return number


def rule_set_of(account: str) -> str:
    """Id of an account's own rule set."""
    return account.replace(VENUE, f"{VENUE}:margin", 1)


def read_user(
    reading: Reading,
    user: User,
    *,
    reported: Mapping[str, Decimal | None],
    liquidation_prices: Mapping[int, Decimal],
) -> None:
    """The cross account and the isolated positions of one sub-account, with the gateway's figures of it."""
    rows, record, path = reading.rows, user.record, user.path
    cross = Account(user.account_id, "cross", reported=reported, liquidation_prices=liquidation_prices)
    accounts = {cross.account_id: cross}
    ratio, pool, mode = 0, 0, "default"
    before = len(rows.failures)
    with rows.guard(user.payload.name, subject=user.account_id, account_id=user.account_id):
        ratio = unsigned(record, "max_margin_ratio", path)
        pool = unsigned(record, "pool_id", path)
        mode = variant(record, "margin_mode", path, known=MODES)

    def each(name: str, read: Callable[[Any, str], None]) -> None:
        with rows.guard(user.payload.name, subject=user.account_id, account_id=user.account_id):
            key = name if isinstance(record, Mapping) and name in record else camel(name)
            key = key if isinstance(record, Mapping) and key in record else name
            listed = members(record, key, path)
            held = [(joined(joined(path, key), i), entry) for i, entry in enumerate(listed)]
            held = [(place, entry) for place, entry in held if not _is_free(entry)]
            indices = Counter(_index(entry) for _, entry in held)
            for place, entry in held:
                with rows.guard(user.payload.name, subject=place, account_id=user.account_id):
                    if indices[_index(entry)] > 1:
                        raise FieldError(place, FailureReason.DUPLICATE, "several entries of one market; all rejected")
                    read(entry, place)

    each("spot_positions", lambda entry, place: cross.spots.append(_spot(reading, entry, place, pool=pool)))

    def add_perp(entry: Any, place: str) -> None:
        held, symbol = _perp(reading, entry, place, pool=pool, mode=mode)
        if held.position.isolated_amount is None:
            cross.perps.append(held)
            return
        identity = account_id(VENUE, user.owner, f"{user.number}:isolated:{symbol}")
        isolated = Account(identity, "isolated", parent=cross.account_id, liquidation_prices=liquidation_prices)
        accounts[identity] = isolated
        isolated.perps.append(held)
        deposit = SpotPosition(reading.quote(place).market, held.position.isolated_amount)
        isolated.spots.append(HeldSpot(reading.quote(place), deposit))

    each("perp_positions", add_perp)
    # What cannot be read of a sub-account may belong to its cross account, so that this one alone is incomplete.
    cross.complete = len(rows.failures) == before
    for account in accounts.values():
        _add_account(reading, user, account, max_margin_ratio=ratio)


def _is_free(entry: Any) -> bool:
    """Whether a slot of the account holds nothing, as the program tells; what cannot be read is not free."""
    if not isinstance(entry, Mapping):
        return False
    names: tuple[str, ...] = _OF_A_SPOT
    if has(entry, "base_asset_amount"):
        names = (*_OF_A_PERP, *(name for name in _OF_SOME_PERPS if has(entry, name) or _states_isolation(entry)))
    try:
        return all(integer(entry, name, "", default=0 if name == "lp_shares" else None) == 0 for name in names)
    except FieldError:
        return False


def _states_isolation(entry: Any) -> bool:
    """Whether a perpetual position is of a layout that says if it is isolated; those with `lp_shares` need not be."""
    return has(entry, "position_flag") or has(entry, "isolated_position_scaled_balance") or not has(entry, "lp_shares")


def _index(entry: Any) -> Any:
    return repr(entry.get("market_index", entry.get("marketIndex"))) if isinstance(entry, Mapping) else id(entry)


# Positions ------------------------------------------------------------------------------------------------------------


def _orders(entry: Any, path: str) -> tuple[int, int, int]:
    bids, asks = integer(entry, "open_bids", path), integer(entry, "open_asks", path)
    if bids < 0 or asks > 0:
        message = f"bids of {bids} and asks of {asks}: bids are positive, asks negative"
        raise FieldError(joined(path, "open_bids"), FailureReason.OUT_OF_RANGE, message)
    return bids, asks, unsigned(entry, "open_orders", path)


def _check_pool(pool: int, of_market: int, path: str) -> None:
    if pool != of_market:
        message = f"the account is of pool {pool}, the market of pool {of_market}"
        raise FieldError(joined(path, "market_index"), FailureReason.INCONSISTENT, message)


def _spot(reading: Reading, entry: Any, path: str, *, pool: int) -> HeldSpot:
    index = unsigned(entry, "market_index", path)
    spot = reading.spot(index, joined(path, "market_index"))
    side = variant(entry, "balance_type", path, known=SIDES)
    scaled = unsigned(entry, "scaled_balance", path)
    interest = spot.borrow_interest if side == "borrow" else spot.deposit_interest
    amount = tokens_of(scaled, interest, spot.market.decimals, is_borrow=side == "borrow")
    is_counted = not (pool == USDC_IGNORING_POOL and index == QUOTE_SPOT_MARKET and side == "deposit")
    if is_counted:
        _check_pool(pool, spot.pool_id, path)
    bids, asks, count = _orders(entry, path)
    has_orders = (bids != 0 or asks != 0) and index != QUOTE_SPOT_MARKET
    instrument = reading.spot_instrument(spot, path) if has_orders else None
    return HeldSpot(spot, SpotPosition(spot.market, amount, bids, asks, count, is_counted), instrument)


def _perp(reading: Reading, entry: Any, path: str, *, pool: int, mode: str) -> tuple[HeldPerp, str]:
    index = unsigned(entry, "market_index", path)
    perp = reading.perp(index, joined(path, "market_index"))
    _check_pool(pool, perp.pool_id, path)
    _check_supported(entry, path, perp, mode)
    base, quote = integer(entry, "base_asset_amount", path), integer(entry, "quote_asset_amount", path)
    last = integer(entry, "last_cumulative_funding_rate", path, default=0 if base == 0 else None)
    rate = perp.funding_long if base > 0 else perp.funding_short
    bids, asks, count = _orders(entry, path)
    absent = None if _states_isolation(entry) else 0
    flags = unsigned(entry, "position_flag", path, default=absent)
    deposit = unsigned(entry, "isolated_position_scaled_balance", path, default=absent)
    isolated = None
    if flags & ISOLATED_FLAG:
        spot = reading.quote(path)
        isolated = tokens_of(deposit, spot.deposit_interest, spot.market.decimals, is_borrow=False)
    elif deposit:
        message = f"a deposit of {deposit}, but the position's flags {flags} do not say that it is isolated"
        raise FieldError(joined(path, "isolated_position_scaled_balance"), FailureReason.INCONSISTENT, message)
    position = PerpPosition(
        perp.market,
        base,
        quote,
        bids,
        asks,
        count,
        funding_payment(rate, last, base) if base else 0,
        unsigned(entry, "max_margin_ratio", path, default=absent),
        isolated,
    )
    return HeldPerp(perp, position, _entry_price(entry, perp, base, path)), perp.symbol


def _check_supported(entry: Any, path: str, perp: Perp, mode: str) -> None:
    """Raises `FieldError(unsupported)` for what no rule form states or nothing could be checked against."""
    if integer(entry, "lp_shares", path, default=0):
        raise FieldError(joined(path, "lp_shares"), FailureReason.UNSUPPORTED, "shares of the market maker's liquidity")
    if perp.market.is_prediction:
        message = f"{perp.symbol} is a prediction market, whose shorts owe 1 less the price"
        raise FieldError(joined(path, "market_index"), FailureReason.UNSUPPORTED, message)
    if mode != "default" and perp.market.high_leverage_ratio_initial and perp.market.high_leverage_ratio_maintenance:
        message = f"high-leverage margin of {perp.symbol}: no figure of the venue's was at hand to check it against"
        raise FieldError("margin_mode", FailureReason.UNSUPPORTED, message)


def _entry_price(entry: Any, perp: Perp, base: int, path: str) -> Decimal:
    """Average entry price to 1e-6, of which profit is counted; the oracle price where there is none."""
    price = Decimal(0)
    if base and has(entry, "quote_entry_amount"):
        quote = integer(entry, "quote_entry_amount", path)
        with localcontext(prec=_EXACT_DIGITS):
            price = (Decimal(-quote * BASE) / Decimal(base) / QUOTE).quantize(_ENTRY)
    return price if price > 0 else usd(perp.market.oracle_price)


# Rows -----------------------------------------------------------------------------------------------------------------


def _add_account(reading: Reading, user: User, account: Account, *, max_margin_ratio: int) -> None:
    rows, identity = reading.rows, account.account_id
    rule_set = rule_set_of(identity)
    holdings: Holdings | None = None
    with rows.guard(user.payload.name, subject=identity, account_id=identity):
        quote = reading.quote("")
        if account.complete:
            holdings = Holdings(account.spots, account.perps, quote, max_margin_ratio)
        for held in account.spots:
            _add_spot(reading, account, held)
        for perp in account.perps:
            _add_perp(reading, account, perp, max_margin_ratio)
        if holdings is not None:
            rows.rows["collateral_tiers"] += collateral_tier_rows(rule_set, holdings)
            rows.rows["margin_tiers"] += margin_tier_rows(rule_set, holdings)
            if account.reported.get("reported_initial_margin") is not None:
                note_initial_margin(reading, identity, beyond_the_requirement(holdings), user.payload)
    rows.rows["rule_sets"] += rule_set_rows(rule_set, holdings)
    add_account_row(
        reading,
        user.payload,
        identity,
        owner=user.owner,
        mode=account.mode,
        parent=account.parent,
        reported=account.reported,
    )


def add_account_row(
    reading: Reading,
    payload: Payload,
    identity: str,
    *,
    owner: str,
    mode: str = "cross",
    parent: str | None = None,
    reported: Mapping[str, Decimal | None] | None = None,
) -> None:
    """The account's row; its own figures are dollars by the oracle's price of USDC."""
    note_usdc(reading)
    reading.rows.add(
        "accounts",
        account_id=identity,
        parent_account_id=parent,
        node=identity,
        venue=VENUE,
        chain=reading.chain,
        owner=owner,
        margin_mode=mode,
        rule_set=rule_set_of(identity),
        settlement_asset="USD",
        received_at=payload.received_at,
        **(reported or {}),
    )


def _add_spot(reading: Reading, account: Account, held: HeldSpot) -> None:
    position, decimals = held.position, held.spot.market.decimals
    if position.amount:
        reading.rows.add(
            "balances",
            account_id=account.account_id,
            asset_id=held.spot.asset_id,
            side="asset" if position.amount > 0 else "liability",
            quantity=token_amount(abs(position.amount), decimals),
            collateral_enabled=position.is_counted,
        )
    if held.orders_on:
        _add_orders(reading, account, held.orders_on, position.open_bids, position.open_asks, digits=decimals)


def _add_perp(reading: Reading, account: Account, held: HeldPerp, max_margin_ratio: int) -> None:
    position, perp = held.position, held.perp
    # In settlement a position is worth what the expiry price makes of it, whatever the oracle does.
    base = 0 if perp.is_settled else position.base_asset_amount
    quantity = token_amount(base, _BASE_DIGITS)
    with localcontext(prec=_EXACT_DIGITS):
        realized = token_amount(position.quote_asset_amount, _QUOTE_DIGITS) + quantity * held.entry_price
        if perp.is_settled:
            price = Decimal(max(perp.market.price, 0)) / PRICE
            realized += token_amount(position.base_asset_amount, _BASE_DIGITS) * price
    override = initial_rate_override(held, max_margin_ratio)
    # An order alone has no row to carry a margin ratio of the account's own: an empty position does.
    if position.base_asset_amount or position.quote_asset_amount or (override and position.open_orders):
        reading.rows.add(
            "positions",
            account_id=account.account_id,
            instrument_id=perp.instrument_id,
            side_mode="net",
            quantity=quantity,
            entry_price=held.entry_price,
            unsettled_funding=token_amount(position.unsettled_funding, _QUOTE_DIGITS),
            realized_pnl=realized,
            initial_rate_override=override,
            reported_liquidation_price=account.liquidation_prices.get(perp.market_index),
        )
    if not perp.is_settled:
        bids, asks = position.open_bids, position.open_asks
        _add_orders(reading, account, perp.instrument_id, bids, asks, digits=_BASE_DIGITS)


def _add_orders(reading: Reading, account: Account, instrument: str, bids: int, asks: int, *, digits: int) -> None:
    """The two sums of resting orders that margin counts; single orders add nothing to them."""
    for side, amount in (("buy", bids), ("sell", -asks)):
        if amount:
            reading.rows.add(
                "open_orders",
                order_id=f"{account.account_id}:{instrument}:{side}",
                account_id=account.account_id,
                instrument_id=instrument,
                side=side,
                remaining_quantity=token_amount(amount, digits),
                reduce_only=False,
            )
