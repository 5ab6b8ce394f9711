"""Ids and symbols that venues share: canonical ids, dated instrument names.

Canonical ids: an asset is `<SYMBOL>` on a centralised venue and `<SYMBOL>@<chain>` on a chain; an instrument is
`<venue>:<venue symbol>`; an account is `<venue>:<owner label>[:<part>]`; an expiry's marks have the subject
`<underlying>@<YYYY-MM-DDTHH:MM:SSZ>`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from aggregator.errors import FailureReason

from .amounts import FieldError

EXPIRY_HOUR_UTC = 8
"""Listed crypto futures and options of the supported venues expire at 08:00 UTC."""


class OptionSymbol(NamedTuple):
    """`ETH-20260627-3500-C` in parts."""

    underlying: str
    expiry: datetime
    strike: Decimal
    option_type: str


def instrument_id(venue: str, symbol: str) -> str:
    """Canonical instrument id."""
    return f"{venue}:{symbol}"


def account_id(venue: str, owner: str, part: str = "") -> str:
    """Canonical account id; `part` tells a venue's accounts of one owner apart (cross, isolated:BTC, a subaccount)."""
    return f"{venue}:{owner}" + (f":{part}" if part else "")


def expiry_subject(underlying: str, expiry: datetime) -> str:
    """Subject of the marks of one expiry (forward, rate)."""
    return f"{underlying}@{expiry.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def expiry_of(digits: str, path: str = "") -> datetime:
    """Expiry time of a date as `YYYYMMDD` or `YYMMDD`, at 08:00 UTC; raises `FieldError(malformed)`."""
    for pattern in ("%Y%m%d", "%y%m%d"):
        if len(digits) == (8 if pattern.startswith("%Y") else 6) and digits.isdigit():
            try:
                return datetime.strptime(digits, pattern).replace(hour=EXPIRY_HOUR_UTC, tzinfo=UTC)
            except ValueError:
                break
    raise FieldError(path, FailureReason.MALFORMED, f"{digits!r} is no expiry date")


_OPTION = re.compile(r"([A-Z0-9]+)-(\d{8}|\d{6})-(\d+(?:[._]\d+)?)-([CP])")


def option_symbol(symbol: str, path: str = "") -> OptionSymbol:
    """Parts of an option name `<underlying>-<YYYYMMDD or YYMMDD>-<strike>-<C|P>`.

    Raises `FieldError`: unknown_market for another shape, malformed for a date that does not exist.
    """
    match = _OPTION.fullmatch(symbol)
    if match is None:
        raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{symbol[:60]!r} is no option name")
    return OptionSymbol(
        match[1],
        expiry_of(match[2], path),
        Decimal(match[3].replace("_", ".")),
        "call" if match[4] == "C" else "put",
    )
