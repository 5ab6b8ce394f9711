"""What a payload of dYdX v4 answers: the question behind a request's name, and the body inside its wrapping.

A request may be named by its short name, by the path of the endpoint (`/v4/addresses/dydx1.../subaccountNumber/0`) or
by the channel of a websocket; `<name>:<number>` states a subaccount that nothing in the body does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, integer_of, joined, member, optional_time_at
from ..transport import Payload

MARKETS = "perpetualMarkets"
SUBACCOUNT = "subaccount"
PARENT = "parentSubaccount"
ADDRESS = "addresses"
POSITIONS = "perpetualPositions"
ASSETS = "assetPositions"
ORDERS = "orders"
NODE_SUBACCOUNT = "Query/Subaccount"
NODE_PERPETUALS = "Query/AllPerpetuals"
NODE_PRICES = "Query/AllMarketPrices"
NODE_TIERS = "Query/AllLiquidityTiers"
NODE_LEVERAGE = "Query/Leverage"
CHANNELS = {"v4_markets": MARKETS, "v4_subaccounts": SUBACCOUNT, "v4_parent_subaccounts": PARENT}
MARKET_WIDE = (MARKETS, NODE_PERPETUALS, NODE_PRICES, NODE_TIERS)
OF_AN_OWNER = (SUBACCOUNT, PARENT, ADDRESS, POSITIONS, ASSETS, ORDERS, NODE_SUBACCOUNT, NODE_LEVERAGE)
REQUESTS = (*MARKET_WIDE, *OF_AN_OWNER, *CHANNELS)

MAX_SUBACCOUNT = 128_000
_NODE_PATHS = {
    "subaccounts/subaccount": NODE_SUBACCOUNT,
    "perpetuals/perpetual": NODE_PERPETUALS,
    "perpetuals/liquidity_tiers": NODE_TIERS,
    "prices/market": NODE_PRICES,
}
_NUMBER = re.compile(r"[Ss]ubaccountNumber[/=](\d+)")


class Question(NamedTuple):
    """A request of `REQUESTS` (channels as the endpoint they mirror), and the subaccount that its name states."""

    kind: str
    number: int | None


def question_of(request: str) -> Question:
    """The question of a request's name; raises `FieldError(unsupported)` for a name that is none."""
    text = request.strip().removeprefix("GET ").strip().strip("/").removeprefix("v4/")
    stated = _NUMBER.search(text)
    name, _, suffix = text.partition("?")[0].partition(":")
    number = int(stated[1]) if stated else int(suffix) if suffix.isdecimal() else None
    if name in CHANNELS:
        return Question(CHANNELS[name], number)
    if name in REQUESTS:
        return Question(name, number)
    if name.startswith("addresses/"):
        place = name.split("/")
        if len(place) == 2:
            return Question(ADDRESS, None)
        if len(place) == 4 and place[2] in ("subaccountNumber", "parentSubaccountNumber"):
            return Question(SUBACCOUNT if place[2] == "subaccountNumber" else PARENT, number)
    if "Query/" in name and (grpc := "Query/" + name.rpartition("Query/")[2]) in REQUESTS:
        return Question(grpc, number)
    for path, kind in _NODE_PATHS.items():
        if name.removeprefix("dydxprotocol/").startswith(path):
            last = name.rpartition("/")[2]
            return Question(kind, int(last) if kind == NODE_SUBACCOUNT and last.isdecimal() else number)
    raise FieldError("request", FailureReason.UNSUPPORTED, f"{request!r:.80} is none of {', '.join(REQUESTS)}")


class Opened(NamedTuple):
    """A body without its wrapping, the path to it, and the time that the wrapping states."""

    body: Any
    path: str
    event_at: datetime | None


def opened(payload: Payload) -> Opened:
    """The answer itself: bare, or under `result` of a client's log, or the `contents` of a websocket's first message.

    Raises `FieldError`: malformed for anything but an object or a list, unsupported for a later message of a channel,
    which changes a state that nobody sent.
    """
    body, path, event_at = payload.body, "", None
    if isinstance(body, Mapping):
        if "contents" in body:
            if body.get("type") != "subscribed":
                message = f"a message of type {body.get('type')!r:.40} is a change, only the first one is a state"
                raise FieldError("type", FailureReason.UNSUPPORTED, message)
            body, path = member(body, "contents"), "contents"
        elif "result" in body:
            event_at = optional_time_at(body, "isoTimestamp")
            body, path = member(body, "result"), "result"
    if not isinstance(body, Mapping | list):
        raise FieldError(path, FailureReason.MALFORMED, f"expected an object, found {type(body).__name__}")
    return Opened(body, path, event_at)


def field_of(record: Any, *names: str, path: str) -> Any:
    """The member of a node's record under the first of its names that is there (snake or camel case)."""
    if isinstance(record, Mapping):
        for name in names:
            if record.get(name) is not None:
                return record[name]
    return member(record, names[0], path)


def number_of(record: Any, *names: str, path: str) -> int:
    """A small non-negative integer; an absent one is 0, which a node does not write out, a null is missing."""
    name = next((name for name in names if isinstance(record, Mapping) and name in record), None)
    number = 0 if name is None else integer_of(member(record, name, path), joined(path, name))
    if number < 0:
        raise FieldError(joined(path, name or names[0]), FailureReason.OUT_OF_RANGE, f"{number} must not be negative")
    return number


def subaccount_number(value: Any, path: str) -> int:
    """A subaccount's number; raises `FieldError`, out_of_range outside 0 to 128 000."""
    number = integer_of(value, path)
    if not 0 <= number <= MAX_SUBACCOUNT:
        raise FieldError(path, FailureReason.OUT_OF_RANGE, f"{number} is no subaccount, they go to {MAX_SUBACCOUNT}")
    return number


def signed_quantums(record: Any, name: str, path: str) -> int:
    """A signed integer of a node: decimal text or JSON integer, or its bytes in base64.

    Absent or empty is 0, a null is missing. In bytes: 2 for a positive or 3 for a negative number, then the magnitude,
    most significant byte first.
    """
    if isinstance(record, Mapping) and name not in record:
        return 0
    value, place = member(record, name, path), joined(path, name)
    if value == "":
        return 0
    if isinstance(value, str) and value.startswith("A"):  # base64 of a first byte below 4
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if not data or data[0] not in (2, 3):
            raise FieldError(place, FailureReason.NOT_A_NUMBER, f"{value[:40]!r} is no signed integer in base64")
        magnitude = int.from_bytes(data[1:], "big")
        return magnitude if data[0] == 2 else -magnitude
    return integer_of(value, place)
