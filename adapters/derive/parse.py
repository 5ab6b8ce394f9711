"""Derive's subaccounts to canonical rows: balances, positions, orders, the rule set, the venue's own figures.

Quantities are exact. A perpetual's profit is settled into cash now and then: what is still outside the balance is
`unrealized_pnl - net_settlements + pending_funding` (API reference of private/get_positions), so the position carries
the entry price that gives `unrealized_pnl` and the settled part as a negative `realized_pnl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import (
    FieldError,
    decimal_at,
    decimal_of,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    positive_at,
)
from ..symbols import account_id, expiry_subject, instrument_id
from ..transport import Payload
from .markets import VENUE, Instrument, Reading, result_of
from .rules import SETTLEMENT, RuleSet, cash_rules, portfolio_rules, standard_class, standard_rules

# Average prices come with up to 34 digits and profits with 18: what differs by less is rounding.
_ROUNDING = Decimal("1e-6")
_RELATIVE_ROUNDING = Decimal("1e-9")


class _Position(NamedTuple):
    instrument: Instrument
    quantity: Decimal
    values: dict[str, Any]
    mark_price: Decimal
    index_price: Decimal


def read_subaccount(
    reading: Reading, payload: Payload, positions_payload: Payload | None, orders_payload: Payload | None = None
) -> None:
    """Everything of one subaccount; what cannot be read leaves the account incomplete and its other rows in place."""
    rows = reading.rows
    subaccount = result_of(payload)
    account = account_id(VENUE, payload.account, str(subaccount["subaccount_id"]))
    positions, marked_by = _read_positions(reading, payload, subaccount, account), payload
    if positions_payload is not None:
        fresher = _read_positions(reading, positions_payload, result_of(positions_payload), account)
        if _held(fresher) != _held(positions):
            rows.fail(
                FailureReason.INCONSISTENT,
                f"{positions_payload.name} holds other positions than {payload.name}",
                payload=positions_payload.name,
                subject=account,
                account_id=account,
            )
        positions, marked_by = fresher, positions_payload
    for position in positions:
        common: dict[str, Any] = {"as_of": marked_by.received_at, "source": marked_by.request, "payload": marked_by}
        subject = instrument_id(VENUE, position.instrument.name)
        reading.mark(subject, "mark", position.mark_price, account=account, **common)
        reading.mark(position.instrument.underlying, "index", position.index_price, account=account, **common)
    if orders_payload is None:
        _read_orders(reading, payload, "open_orders", subaccount.get("open_orders"), account)
    else:
        _read_orders(reading, orders_payload, "orders", result_of(orders_payload).get("orders"), account)

    collateral = _read_collaterals(reading, payload, subaccount, account)
    margin_type = subaccount.get("margin_type")
    rules = cash_rules(reading.book)
    with rows.guard(payload.name, subject=account, account_id=account):
        rules = _rules_of(reading, subaccount, positions, collateral)
        _add_static_rates(reading, payload, rules, positions, account)
        missing = [s for s in collateral if s != SETTLEMENT and s not in rules.collateral]
        if missing:
            raise FieldError(
                "collaterals", FailureReason.MISSING_PARAMETER, f"no weight of {', '.join(missing)} in {rules.name}"
            )
    for position in positions:
        rows.add("positions", account_id=account, **position.values)

    reported: dict[str, Decimal | None] = {}
    with rows.guard(payload.name, subject=account, account_id=account):
        reported = _reported(reading, payload, subaccount, account, has_positions=bool(positions))
    rows.add(
        "accounts",
        account_id=account,
        node=account,
        venue=VENUE,
        owner=payload.account,
        margin_mode="cross" if margin_type == "SM" else "portfolio",
        rule_set=reading.use(rules),
        settlement_asset=SETTLEMENT,
        received_at=payload.received_at,
        **reported,
    )


def _held(positions: list[_Position]) -> dict[str, Decimal]:
    return {position.instrument.name: position.quantity for position in positions}


def _read_collaterals(
    reading: Reading, payload: Payload, subaccount: Mapping[str, Any], account: str
) -> dict[str, Decimal]:
    """Signed balance by asset id, zero ones left out; balances and the account's own prices as rows and marks."""
    rows = reading.rows
    held: dict[str, Decimal] = {}
    with rows.guard(payload.name, subject=account, account_id=account):
        for number, entry in enumerate(members(subaccount, "collaterals")):
            path = joined("collaterals", number)
            with rows.guard(payload.name, subject=account, account_id=account):
                amount = decimal_at(entry, "amount", path)
                interest = optional_decimal_at(entry, "pending_interest", path)
                if not amount and not interest:
                    continue
                asset = reading.catalog.known_asset(
                    str(member(entry, "asset_name", path)), path=joined(path, "asset_name")
                )
                if asset in held:
                    raise FieldError(path, FailureReason.DUPLICATE, f"{asset} is listed twice")
                held[asset] = amount
                if amount < 0 and asset != SETTLEMENT:
                    raise FieldError(
                        joined(path, "amount"), FailureReason.OUT_OF_RANGE, f"a debt of {asset}: only cash is borrowed"
                    )
                sign = -1 if amount < 0 else 1
                price = positive_at(entry, "mark_price", path)
                name = "stable_price" if asset == SETTLEMENT else "index"
                # A held market's index is the same feed, and one account has one price of it: the positions'.
                if (account, asset, name) not in reading.marks:
                    common: dict[str, Any] = {"as_of": payload.received_at, "source": payload.request}
                    reading.mark(asset, name, price, payload=payload, account=account, **common)
                rows.add(
                    "balances",
                    account_id=account,
                    asset_id=asset,
                    side="asset" if sign > 0 else "liability",
                    quantity=sign * amount,
                    accrued_interest=None if interest is None else sign * interest,
                    collateral_enabled=True,
                )
    return held


def _read_positions(reading: Reading, payload: Payload, result: Mapping[str, Any], account: str) -> list[_Position]:
    """Positions that are not zero; one that cannot be read becomes a failure of the account."""
    rows = reading.rows
    positions: list[_Position] = []
    listed = set[str]()
    with rows.guard(payload.name, subject=account, account_id=account):
        for number, entry in enumerate(members(result, "positions")):
            path = joined("positions", number)
            with rows.guard(payload.name, subject=account, account_id=account):
                quantity = decimal_at(entry, "amount", path)
                if not quantity:
                    continue
                name_path = joined(path, "instrument_name")
                instrument = reading.instrument(member(entry, "instrument_name", path), path=name_path)
                if instrument.name in listed:
                    raise FieldError(path, FailureReason.DUPLICATE, f"{instrument.name} is listed twice")
                positions.append(_position(entry, path, instrument, quantity))
                listed.add(instrument.name)
    return positions


def _position(entry: Mapping[str, Any], path: str, instrument: Instrument, quantity: Decimal) -> _Position:
    is_perp = instrument.kind == "perp"
    mark = positive_at(entry, "mark_price", path) if is_perp else non_negative_at(entry, "mark_price", path)
    index = positive_at(entry, "index_price", path)
    values: dict[str, Any] = {
        "instrument_id": instrument_id(VENUE, instrument.name),
        "side_mode": "net",
        "quantity": quantity,
    }
    if is_perp:
        values |= {
            "entry_price": _entry_price(entry, path, quantity, mark),
            "unsettled_funding": decimal_at(entry, "pending_funding", path),
            "realized_pnl": -(optional_decimal_at(entry, "net_settlements", path) or Decimal(0)),
        }
    values |= {
        "leverage": optional_decimal_at(entry, "leverage", path),
        "reported_initial_margin": optional_decimal_at(entry, "initial_margin", path),
        "reported_maintenance_margin": optional_decimal_at(entry, "maintenance_margin", path),
        "reported_liquidation_price": optional_decimal_at(entry, "liquidation_price", path),
    }
    return _Position(instrument, quantity, values, mark, index)


def _entry_price(entry: Mapping[str, Any], path: str, quantity: Decimal, mark: Decimal) -> Decimal:
    """The average price where it gives the venue's unrealized profit, else the price that does."""
    average = positive_at(entry, "average_price", path)
    unrealized = decimal_at(entry, "unrealized_pnl", path)
    if abs(quantity * (mark - average) - unrealized) <= _ROUNDING + _RELATIVE_ROUNDING * abs(quantity * mark):
        return average
    price = mark - unrealized / quantity
    if price <= 0:
        message = f"an unrealized profit of {unrealized} on {quantity} at {mark} has no positive entry price"
        raise FieldError(joined(path, "unrealized_pnl"), FailureReason.INCONSISTENT, message)
    return price


def _read_orders(reading: Reading, payload: Payload, key: str, orders: Any, account: str) -> None:
    """Open orders as rows; one that cannot be read is a finding only, since no requirement has orders.

    What has been filled or cancelled meanwhile, and what waits for its trigger, does not rest.
    """
    rows = reading.rows
    if orders is not None and not isinstance(orders, list):
        message = f"expected a list, found {type(orders).__name__}"
        rows.fail(FailureReason.MALFORMED, message, payload=payload.name, path=key, subject=account)
    for number, entry in enumerate(orders if isinstance(orders, list) else []):
        path = joined(key, number)
        with rows.guard(payload.name, subject=account):
            if isinstance(entry, Mapping) and entry.get("order_status") not in (None, "open"):
                continue
            instrument = reading.instrument(member(entry, "instrument_name", path), path=path)
            remaining = positive_at(entry, "amount", path) - non_negative_at(entry, "filled_amount", path)
            if remaining < 0:
                message = f"{-remaining} more filled than ordered"
                raise FieldError(joined(path, "filled_amount"), FailureReason.INCONSISTENT, message)
            side = member(entry, "direction", path)
            if side not in ("buy", "sell"):
                raise FieldError(joined(path, "direction"), FailureReason.OUT_OF_RANGE, f"{side!r} is no direction")
            rows.add(
                "open_orders",
                order_id=str(member(entry, "order_id", path)),
                account_id=account,
                instrument_id=instrument_id(VENUE, instrument.name),
                side=side,
                remaining_quantity=remaining,
                limit_price=optional_decimal_at(entry, "limit_price", path),
                reduce_only=bool(entry.get("reduce_only", False)),
            )


def _rules_of(
    reading: Reading, subaccount: Mapping[str, Any], positions: list[_Position], collateral: Mapping[str, Decimal]
) -> RuleSet:
    """The rule set of an account from its margin type, markets and currency; raises `FieldError`."""
    book = reading.book
    margin_type = member(subaccount, "margin_type")
    markets = sorted({position.instrument.underlying for position in positions})
    tokens = sorted(set(collateral) - {SETTLEMENT})
    if margin_type not in ("PM", "PM2", "SM"):
        raise FieldError("margin_type", FailureReason.UNSUPPORTED, f"margin type {margin_type!r}")
    if not markets and not tokens:
        return cash_rules(book)
    if margin_type == "SM":
        classes = {market: standard_class(book.sm, market) for market in markets}
        unknown = [market for market, name in classes.items() if name is None]
        if unknown:
            raise FieldError(
                "positions", FailureReason.MISSING_PARAMETER, f"no standard margin of {', '.join(unknown)}"
            )
        names = sorted({name for name in classes.values() if name} or {next(iter(book.sm.classes))})
        if len(names) > 1:
            raise FieldError(
                "positions", FailureReason.UNSUPPORTED, f"one account with markets of the classes {', '.join(names)}"
            )
        return standard_rules(book.sm, names[0])
    if len(markets) > 1:
        raise FieldError(
            "positions", FailureReason.INCONSISTENT, f"portfolio margin over several universes: {', '.join(markets)}"
        )
    universe = markets[0] if markets else str(subaccount.get("currency"))
    manager, parameters = ("pm2", book.pm2) if margin_type == "PM2" else ("pm", book.pm)
    rules = portfolio_rules(manager, parameters, universe)
    if rules is None:
        raise FieldError(
            "currency", FailureReason.MISSING_PARAMETER, f"no parameters of the {manager} universe {universe!r}"
        )
    return rules


def _add_static_rates(
    reading: Reading, payload: Payload, rules: RuleSet, positions: list[_Position], account: str
) -> None:
    """The dated static rate, as the account's own mark, of each expiry whose tickers state no discount.

    Raises `FieldError(missing_mark)` for an option without an implied vol. Standard margin marks undiscounted, as its
    rule form says, and needs no rate.
    """
    for position in positions:
        instrument = position.instrument
        if instrument.expiry is None:
            continue
        if (None, instrument_id(VENUE, instrument.name), "implied_vol") not in reading.marks:
            raise FieldError("positions", FailureReason.MISSING_MARK, f"no implied vol of {instrument.name}")
        subject = expiry_subject(instrument.underlying, instrument.expiry)
        if rules.static_rate is not None and (None, subject, "rate") not in reading.marks:
            reading.mark(
                subject,
                "rate",
                rules.static_rate,
                as_of=payload.received_at,
                source=rules.source,
                payload=payload,
                account=account,
            )


def _reported(
    reading: Reading, payload: Payload, subaccount: Mapping[str, Any], account: str, *, has_positions: bool
) -> dict[str, Decimal | None]:
    """The venue's own equity, and its net margins turned into requirements (equity minus net).

    Without positions the net margin is what the collateral is credited; a payload that says otherwise states no net
    margin that could be compared, which is a finding.
    """
    equity = decimal_at(subaccount, "subaccount_value")
    out: dict[str, Decimal | None] = {"reported_equity": equity}
    for level in ("initial", "maintenance"):
        net = decimal_at(subaccount, f"{level}_margin")
        credit = optional_decimal_at(subaccount, f"collaterals_{level}_margin")
        orders = decimal_of(subaccount.get("open_orders_margin") or 0, "open_orders_margin")
        unexplained = credit is not None and abs(net - credit) > _ROUNDING + abs(orders)
        if not has_positions and unexplained:
            reading.rows.fail(
                FailureReason.INCONSISTENT,
                f"net {level} margin {net} without positions, but the collateral is credited {credit}",
                payload=payload.name,
                path=f"{level}_margin",
                subject=account,
            )
        else:
            out[f"reported_{level}_margin"] = equity - net
    return out
