"""Assets and instruments that Bybit's tables name, and rows of several answers read by key.

A row of a market or coin that is not in the asset book and that nobody holds is left out without a word: a full list of
tickers names hundreds of them. A row that cannot be read is a failure of no account; whoever needs it is then without
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from aggregator.errors import FailureReason

from ..amounts import FieldError
from ..catalog import Catalog
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .parse import Market, answer_of, market_of, place_of

VENUE = "bybit"
PARAMETER_FILE = "configs/venues/bybit.toml"

Line = TypeVar("Line")
Found = tuple[Line, Payload, str]
"""A line, the answer it came in, and its path there."""


@dataclass
class BybitCatalog:
    """What the tables name, and Bybit's instruments in it."""

    named: Catalog
    deliveries: dict[str, datetime] = field(default_factory=dict)
    """Delivery times that the venue states, by symbol; they go before those that a symbol implies."""

    def known(self, symbol: str) -> Market | None:
        """The market of a name whose base and settlement coin are in the asset book, else None."""
        try:
            market = market_of(symbol)
        except FieldError:
            return None
        return market if self.named.knows(market.base, market.settle) else None

    def expiry(self, market: Market) -> datetime | None:
        """When a market ends, by the venue's own word where it has said it."""
        return self.deliveries.get(market.symbol, market.expiry)

    def instrument(self, market: Market, path: str = "") -> str:
        """Takes a market in and gives its instrument id; raises `FieldError` (unknown_market, unknown_asset)."""
        name = instrument_id(VENUE, market.symbol)
        if name in self.named.instruments:
            return name
        base, settlement = self.named.pair(market.base, market.settle, of=market.symbol, path=path)
        return self.named.instrument(
            market.symbol,
            kind=market.kind,
            underlying=base,
            settlement_asset=settlement,
            inverse=market.inverse,
            strike=market.strike,
            expiry=self.expiry(market),
            option_type=market.option_type,
        )


def lines_of(
    rows: Rows,
    payloads: Iterable[Payload],
    read: Callable[[Any, str], Line],
    *,
    key: Callable[[Line], str],
    account: Callable[[Any], str | None] = lambda record: None,
    whole: str | None = None,
    skip: Callable[[Any], bool] = lambda record: False,
    within: Callable[[str], str] = lambda place: place,
) -> dict[str, Found[Line]]:
    """Readable lines by key over several answers; a key that stands twice is rejected, wherever its copies stand.

    A bad row fails `account(record)`, an answer that is unreadable as a whole fails `whole`. `within` turns a row's
    path into the one that its answer has, for rows that stand deeper than at its head.
    """
    found: dict[str, list[Found[Line]]] = {}
    owners: dict[str, str | None] = {}
    for payload in payloads:
        with rows.guard(payload.name, subject=payload.account or payload.request, account_id=whole):
            answer = answer_of(payload.body)
            for number, record in enumerate(answer.records):
                if skip(record):
                    continue
                place, owner = within(place_of(answer, number)), account(record)
                try:
                    line = read(record, place)
                except FieldError as error:
                    rows.refuse(error, payload=payload.name, subject=_subject(record), account_id=owner)
                    continue
                found.setdefault(key(line), []).append((line, payload, place))
                owners[key(line)] = owner
    out = {}
    for name, copies in found.items():
        if len(copies) == 1:
            out[name] = copies[0]
            continue
        _, payload, place = copies[-1]
        names = ", ".join(sorted({copy.name for _, copy, _ in copies}))
        rows.fail(
            FailureReason.DUPLICATE,
            f"{len(copies)} rows of {name} in {names}; all rejected",
            payload=payload.name,
            path=place,
            subject=name,
            account_id=owners[name],
        )
    return out


def _subject(record: Any) -> str:
    if not isinstance(record, Mapping):
        return ""
    return str(next((record[key] for key in ("symbol", "coin", "currency") if record.get(key)), ""))
