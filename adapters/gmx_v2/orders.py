"""Open orders of GMX v2: rows beside the positions that they would change; none of them costs a position any margin.

An order holds collateral of its own. One that would open a position which is not there has no account to stand beside
and is passed over, and so are swaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import FieldError, joined, member, token_amount
from ..fields import flag_at, struct_of
from ..transport import Payload
from .markets import Deployment
from .parse import address_at, records, unsigned_at
from .positions import Key, Owned, position_account

_ADDRESSES = (
    "account",
    "receiver",
    "cancellationReceiver",
    "callbackContract",
    "uiFeeReceiver",
    "market",
    "initialCollateralToken",
    "swapPath",
)
_SWAPS, _INCREASES, _DECREASES = (0, 1), (2, 3, 8), (4, 5, 6, 7)
_DIGITS = 18


def read_orders(deployment: Deployment, payload: Payload, owned: Mapping[Key, Owned]) -> None:
    """Orders of `getAccountOrders`, each a struct, or a struct with its key (`orderKey`, `order`).

    One that cannot be read is a finding and stops nobody.
    """
    rows, seen = deployment.rows, set[str]()
    with rows.guard(payload.name, subject=payload.account):
        for number, (path, record) in enumerate(records(payload.body, "orders", "orderInfos")):
            with rows.guard(payload.name, subject=payload.account):
                key = record.get("orderKey") if isinstance(record, Mapping) else None
                order_id = key if isinstance(key, str) and key else f"{payload.account}:{payload.name}:{number}"
                if order_id in seen:
                    raise FieldError(path, FailureReason.DUPLICATE, f"order {order_id} stands twice")
                seen.add(order_id)
                nested = isinstance(record, Mapping) and "order" in record
                place = joined(path, "order") if nested else path
                _add_order(deployment, payload, record["order"] if nested else record, place, order_id, owned)


def _add_order(
    deployment: Deployment, payload: Payload, record: Any, path: str, order_id: str, owned: Mapping[Key, Owned]
) -> None:
    addresses = struct_of(member(record, "addresses", path), _ADDRESSES, joined(path, "addresses"))
    numbers, in_numbers = member(record, "numbers", path), joined(path, "numbers")
    kind = unsigned_at(numbers, "orderType", in_numbers)
    if kind in _SWAPS:
        return
    if kind not in _INCREASES + _DECREASES:
        raise FieldError(joined(in_numbers, "orderType"), FailureReason.UNSUPPORTED, f"order type {kind}")
    is_long = flag_at(member(record, "flags", path), "isLong", joined(path, "flags"))
    in_addresses = joined(path, "addresses")
    token = address_at(addresses, "initialCollateralToken", in_addresses)
    found = owned.get((address_at(addresses, "market", in_addresses), token, is_long))
    if found is None:
        return
    market = deployment.market(found.held.market, in_addresses)
    decimals = deployment.token(market.index_token, in_addresses).decimals
    size = unsigned_at(numbers, "sizeDeltaUsd", in_numbers)
    trigger = unsigned_at(numbers, "triggerPrice", in_numbers)
    position = found.held.position
    if kind in _DECREASES:
        tokens = Fraction(min(size, position.size_in_usd) * position.size_in_tokens, position.size_in_usd)
    else:
        tokens = Fraction(size, trigger or deployment.price(market.index_token, in_addresses).max)
    rounded = round(tokens / 10**decimals * 10**_DIGITS)
    deployment.rows.add(
        "open_orders",
        order_id=order_id,
        account_id=position_account(deployment, payload.account, found.held.key),
        instrument_id=deployment.instrument(market, in_addresses),
        side="buy" if is_long == (kind in _INCREASES) else "sell",
        remaining_quantity=Decimal(rounded).scaleb(-_DIGITS),
        limit_price=token_amount(trigger, 30 - decimals) if trigger else None,
        reduce_only=kind in _DECREASES,
    )
