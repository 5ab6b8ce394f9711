"""Open orders of Hyperliquid, and what a trader's settings in one coin say.

Orders reserve no margin in the account totals that decide over a liquidation, so that they are rows of `open_orders`
and no part of a requirement; one that cannot be read is a finding that leaves its account computable. A trigger order
does not rest in the book before its trigger and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import FieldError, joined, member, non_negative_at, positive_at
from ..market_rows import add_mark
from ..symbols import account_id
from ..transport import Payload
from .markets import VENUE, Reading, dex_of
from .parse import cross_account_id

_SIDES = {"B": "buy", "A": "sell"}


def read_open_orders(reading: Reading, payloads: list[Payload]) -> None:
    """Resting orders of `openOrders` and `frontendOpenOrders` payloads; an order that both list is one order.

    An order stands with the account that holds its coin: the isolated position, else the cross account of its dex; a
    spot order with the spot wallet.
    """
    known = {row["account_id"] for row in reading.rows.rows["accounts"]}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    contradicted: set[tuple[str, str]] = set()
    for payload in payloads:
        with reading.rows.guard(payload.name, subject=payload.account):
            if not isinstance(payload.body, list):
                raise FieldError("", FailureReason.MALFORMED, "expected a list of orders")
            seen: set[str] = set()
            for i, entry in enumerate(payload.body):
                path = joined("", i)
                with reading.rows.guard(payload.name, subject=payload.account):
                    row = _order(reading, payload, entry, path, known=known)
                    if row is None:
                        continue
                    key = payload.account, row["order_id"]
                    if row["order_id"] in seen or (key in found and not _same(found[key], row)):
                        contradicted.add(key)
                        message = f"order {row['order_id']} is stated twice, all copies are rejected"
                        raise FieldError(path, FailureReason.DUPLICATE, message)
                    seen.add(row["order_id"])
                    found.setdefault(key, row)
    reading.rows.rows["open_orders"] += [
        row for key, row in sorted(found.items(), key=lambda item: item[0]) if key not in contradicted
    ]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are of one order; the plain list need not say that it only reduces."""
    return one == other | {"reduce_only": one["reduce_only"]}


def _order(reading: Reading, payload: Payload, entry: Any, path: str, *, known: set[str]) -> dict[str, Any] | None:
    coin = member(entry, "coin", path)
    if not isinstance(coin, str) or not coin:
        raise FieldError(joined(path, "coin"), FailureReason.MALFORMED, "expected the name of a coin")
    size = non_negative_at(entry, "sz", path)
    if entry.get("isTrigger") is True or not size:
        return None
    side = member(entry, "side", path)
    if not isinstance(side, str) or side not in _SIDES:
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"{side!r:.20} is neither 'B' nor 'A'")
    number = member(entry, "oid", path)
    if isinstance(number, bool) or not isinstance(number, str | int):
        raise FieldError(joined(path, "oid"), FailureReason.MALFORMED, "expected the number of an order")
    reduces = entry.get("reduceOnly", False)
    if not isinstance(reduces, bool):
        raise FieldError(joined(path, "reduceOnly"), FailureReason.MALFORMED, f"expected a flag, found {reduces!r:.20}")
    place = joined(path, "coin")
    is_spot = coin in reading.pairs or coin.startswith("@") or "/" in coin
    identity = reading.pair(coin, path=place) if is_spot else reading.instrument(coin, path=place)
    owner = payload.account
    account = account_id(VENUE, owner, "spot") if is_spot else account_id(VENUE, owner, f"isolated:{coin}")
    if not is_spot and account not in known:
        account = cross_account_id(owner, dex_of(coin))
    if account not in known:
        message = f"the payloads hold no state of the account {account}, whose order this is"
        raise FieldError(place, FailureReason.MISSING_FIELD, message)
    return {
        "order_id": str(number),
        "account_id": account,
        "instrument_id": identity,
        "side": _SIDES[side],
        "remaining_quantity": size,
        "limit_price": positive_at(entry, "limitPx", path),
        "reduce_only": reduces,
    }


def read_active_assets(reading: Reading, payloads: list[Payload]) -> None:
    """`activeAssetData` payloads: a trader's leverage in a coin, which must be the held position's, and a mark.

    The mark is the market's where no `metaAndAssetCtxs` payload states one.
    """
    tables = reading.rows.rows
    held = {(row["account_id"], row["instrument_id"]): row["leverage"] for row in reversed(tables["positions"])}
    marked = {row["subject"] for row in tables["marks"] if row["field"] == "mark" and row["account_id"] is None}
    for payload in payloads:
        _read_active_asset(reading, payload, held, marked)


def _read_active_asset(
    reading: Reading, payload: Payload, leverages: Mapping[tuple[str, str], Decimal], marked: set[str]
) -> None:
    rows, owner = reading.rows, payload.account
    with rows.guard(payload.name, subject=owner):
        coin = member(payload.body, "coin")
        if not isinstance(coin, str) or not coin:
            raise FieldError("coin", FailureReason.MALFORMED, "expected the name of a coin")
        identity = reading.instrument(coin, path="coin")
        leverage = member(payload.body, "leverage")
        chosen, mode = positive_at(leverage, "value", "leverage"), member(leverage, "type", "leverage")
        if payload.body.get("markPx") is not None:
            price = positive_at(payload.body, "markPx")
            if identity not in marked:
                add_mark(rows, identity, "mark", price, as_of=payload.received_at, source=payload.request)
                marked.add(identity)
        isolated = account_id(VENUE, owner, f"isolated:{coin}")
        for account in (isolated, cross_account_id(owner, dex_of(coin))):
            held = leverages.get((account, identity))
            if held is not None and (held, account == isolated) != (chosen, mode == "isolated"):
                message = f"{coin} at {chosen}x {mode}, the position is at {held}x in {account}"
                rows.fail(
                    FailureReason.INCONSISTENT,
                    message,
                    payload=payload.name,
                    path="leverage",
                    subject=identity,
                    account_id=account,
                )
