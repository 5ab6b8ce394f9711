"""Assets and instruments that Bybit's tables name, and rows of several answers read by key.

A row of a market or coin that is not in the asset book and that nobody holds is left out without a word: a full list of
tickers names hundreds of them. A row that cannot be read is a failure of no account; whoever needs it is then without
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from aggregator.errors import FailureReason

from ..adapter import AssetBook
from ..amounts import FieldError
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .parse import Market, answer_of, market_of, place_of

VENUE = "bybit"
PARAMETER_FILE = "configs/venues/bybit.toml"

Line = TypeVar("Line")
Found = tuple[Line, Payload, str]
"""A line, the answer it came in, and its path there."""


class Catalog:
    """Assets and instruments that the tables name, each once."""

    def __init__(self, book: AssetBook) -> None:
        self._book = book
        self._assets: dict[str, dict[str, Any]] = {}
        self._instruments: dict[str, dict[str, Any]] = {}
        self.deliveries: dict[str, datetime] = {}
        """Delivery times that the venue states, by symbol; they go before those that a symbol implies."""

    def asset(self, symbol: str) -> bool:
        """Takes an asset in; False when the asset book does not know it."""
        if symbol in self._assets:
            return True
        asset = self._book.resolve(symbol)
        if asset is None:
            return False
        self._assets[symbol] = {
            "asset_id": symbol,
            "symbol": asset.symbol,
            "risk_factor": asset.risk_factor,
            "multiplier": asset.multiplier,
            "peg_of": asset.peg_of,
            "issuer": asset.issuer,
        }
        return True

    def is_stable(self, symbol: str) -> bool:
        """Whether a coin is moved by no price factor, so that it counts at par where nobody states its price."""
        asset = self._book.resolve(symbol)
        return asset is not None and asset.risk_factor is None

    def known(self, symbol: str) -> Market | None:
        """The market of a name whose base and settlement coin are in the asset book, else None."""
        try:
            market = market_of(symbol)
        except FieldError:
            return None
        known = self._book.resolve(market.base) is not None and self._book.resolve(market.settle) is not None
        return market if known else None

    def expiry(self, market: Market) -> datetime | None:
        """When a market ends, by the venue's own word where it has said it."""
        return self.deliveries.get(market.symbol, market.expiry)

    def instrument(self, market: Market, path: str = "") -> str:
        """Takes a market in and gives its instrument id; raises `FieldError` (unknown_market, unknown_asset)."""
        name = instrument_id(VENUE, market.symbol)
        if name in self._instruments:
            return name
        if not self.asset(market.base):
            message = f"{market.base!r} of {market.symbol} is not in the asset book"
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, message)
        if not self.asset(market.settle):
            message = f"{market.settle!r} of {market.symbol} is not in the asset book"
            raise FieldError(path, FailureReason.UNKNOWN_ASSET, message)
        self._instruments[name] = {
            "instrument_id": name,
            "venue": VENUE,
            "symbol": market.symbol,
            "kind": market.kind,
            "underlying": market.base,
            "settlement_asset": market.settle,
            "payoff": "inverse" if market.inverse else "linear",
            "contract_size": Decimal(1),
            "strike": market.strike,
            "expiry": self.expiry(market),
            "option_type": market.option_type,
        }
        return name

    def write(self, rows: Rows) -> None:
        """Adds the rows of `assets` and `instruments`."""
        rows.rows["assets"].extend(self._assets[name] for name in sorted(self._assets))
        rows.rows["instruments"].extend(self._instruments[name] for name in sorted(self._instruments))


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
                    rows.fail(
                        error.reason,
                        error.message,
                        payload=payload.name,
                        path=error.path,
                        subject=_subject(record),
                        account_id=owner,
                    )
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
