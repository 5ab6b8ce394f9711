"""Market-wide answers of OKX: contracts, prices, vols, funding, tiers, discount slices; what they name, their marks.

A row of a market or currency that is not in the asset book and that nobody holds is left out without a word. A row that
cannot be read is a failure of no account; whoever needs it is then without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason
from aggregator.rule_forms import component_rows

from ..amounts import FieldError
from ..catalog import Catalog
from ..lines import Line, unique_lines
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import expiry_subject, instrument_id
from ..transport import Payload
from .parse import (
    Contract,
    DiscountLine,
    Name,
    PriceLine,
    TierLine,
    check_ladder,
    contract,
    data_path,
    discount_line,
    name_of,
    open_interest_line,
    price_line,
    records_of,
    tier_line,
)
from .rules import (
    SHARED,
    VENUE,
    Ladder,
    RuleBook,
    account_components,
    multi_currency_equity,
    slice_rows,
    tier_rows,
)

INSTRUMENTS = ("public/instruments", "account/instruments")
MARK_PRICE, INDEX_TICKERS, OPTION_SUMMARY = "public/mark-price", "market/index-tickers", "public/opt-summary"
TICKERS = ("market/tickers", "market/ticker")
FUNDING, OPEN_INTEREST = "public/funding-rate", "public/open-interest"
TIERS, DISCOUNTS = "public/position-tiers", "public/discount-rate-interest-free-quota"
PRICES = (MARK_PRICE, INDEX_TICKERS, *TICKERS, FUNDING, OPTION_SUMMARY)
STABLE_QUOTES = ("USDT", "USDC")
# An older version of the option summary states no forward.
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    MARK_PRICE: ("markPx",),
    INDEX_TICKERS: ("idxPx",),
    FUNDING: ("fundingRate",),
    OPTION_SUMMARY: ("markVol",),
}
LOANS = "MARGIN"

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_RELATIVE_ROUNDING = Decimal("1e-9")


@dataclass
class OkxCatalog:
    """What the tables name, and OKX's instruments in it, whose contract values an instruments answer states."""

    named: Catalog
    contracts: dict[str, Contract] = field(default_factory=dict)

    def known(self, name: Name) -> bool:
        """Whether base and settlement currency are in the asset book."""
        return self.named.knows(name.base, name.settlement)

    def instrument(self, name: Name, path: str = "") -> Contract:
        """Takes an instrument in and gives its contract; raises `FieldError` (unknown_market, unknown_asset, and
        missing_parameter where no instruments answer states what a contract is worth).
        """
        base, settlement = self.named.pair(name.base, name.settlement, of=name.inst_id, path=path)
        found = self.contracts.get(name.inst_id)
        if found is None:
            if name.kind != "spot":
                message = f"no row of {name.inst_id} in {INSTRUMENTS[0]}: its contract value is unknown"
                raise FieldError(path, FailureReason.MISSING_PARAMETER, message)
            found = Contract(name, Decimal(1), None)
        self.named.instrument(
            name.inst_id,
            kind=name.kind,
            underlying=base,
            settlement_asset=settlement,
            inverse=name.inverse,
            contract_size=found.size,
            strike=name.strike,
            expiry=found.expiry,
            option_type=name.option_type,
        )
        return found


@dataclass
class MarketData:
    """What market-wide answers say: marks by instrument id and field, USD index by currency, ladders, slices.

    Ladders are keyed by instrument type (SWAP, FUTURES, MARGIN, or empty for both of the first) and family.
    """

    marks: dict[str, dict[str, Decimal]] = field(default_factory=dict)
    index: dict[str, Decimal] = field(default_factory=dict)
    times: dict[tuple[str, str], datetime | None] = field(default_factory=dict)
    ladders: dict[tuple[str, str], Ladder] = field(default_factory=dict)
    slices: dict[str, DiscountLine] = field(default_factory=dict)

    def ladder(self, name: Name) -> Ladder | None:
        """Tiers of an instrument's family."""
        kind = {"perp": "SWAP", "future": "FUTURES", "option": "OPTION"}.get(name.kind, "")
        return self.ladders.get((kind, name.family)) or self.ladders.get(("", name.family))


class _Quote(NamedTuple):
    time: datetime
    rank: int
    value: Decimal
    payload: str
    source: str


def request_part(payload: Payload) -> str:
    """What stands behind the colon of a request."""
    return payload.request.partition(":")[2].strip()


def read_market(
    rows: Rows, answers: Mapping[str, Sequence[Payload]], catalog: OkxCatalog, book: RuleBook
) -> MarketData:
    """Reads all market-wide answers and writes their marks, shared ladders and slices."""
    data = MarketData()
    for request in INSTRUMENTS:
        for payload in answers.get(request, ()):
            for found, _ in unique(rows, payload, contract, key=lambda line: line.name.inst_id):
                known = catalog.contracts.setdefault(found.name.inst_id, found)
                if known != found:
                    message = f"{found.name.inst_id} with another contract value or expiry in another answer"
                    rows.fail(FailureReason.INCONSISTENT, message, payload=payload.name, subject=found.name.inst_id)
                if catalog.known(found.name):
                    catalog.instrument(found.name)
    _prices(rows, answers, catalog, data)
    _open_interest(rows, answers, catalog)
    _ladders(rows, answers, data)
    for payload in answers.get(DISCOUNTS, ()):
        for line, path in unique(rows, payload, discount_line, key=lambda line: line.currency):
            if line.currency in data.slices:
                message = f"discount slices of {line.currency} in another answer too; the first in name holds"
                rows.fail(FailureReason.DUPLICATE, message, payload=payload.name, path=path, subject=line.currency)
            data.slices.setdefault(line.currency, line)
    _shared_rules(rows, catalog, data, book)
    return data


def unique(
    rows: Rows, payload: Payload, read: Callable[[Any, str], Line], *, key: Callable[[Line], str]
) -> Iterator[tuple[Line, str]]:
    """Readable rows of an answer with their paths; a key that stands twice is rejected in both."""
    records = list[tuple[str, Any]]()
    with rows.guard(payload.name):
        records += ((data_path(payload.body, number), row) for number, row in enumerate(records_of(payload.body)))
    return unique_lines(rows, payload.name, records, read, key=key, subject=_subject)


def _subject(record: Any) -> str:
    return str(record.get("instId") or record.get("ccy") or "") if isinstance(record, Mapping) else ""


def _prices(rows: Rows, answers: Mapping[str, Sequence[Payload]], catalog: OkxCatalog, data: MarketData) -> None:
    """Marks: of several answers the newest, at equal times the request that stands first in `PRICES`."""
    quotes: dict[tuple[str, str], list[_Quote]] = {}
    for rank, request in enumerate(PRICES):
        for payload in answers.get(request, ()):
            read = functools.partial(price_line, required=_REQUIRED.get(request, ("bidPx", "askPx")))
            for line, _ in unique(rows, payload, read, key=lambda line: line.subject):
                time = line.time or payload.received_at or _EARLIEST
                for name, value in _fields(request, line).items():
                    quote = _Quote(time, -rank, value, payload.name, request)
                    quotes.setdefault((line.subject, name), []).append(quote)
    indices: dict[str, _Quote] = {}
    for (subject, name), found in sorted(quotes.items()):
        best = max(found, key=lambda quote: (quote.time, quote.rank, quote.payload))
        rivals = [quote for quote in found if (quote.time, quote.rank) == (best.time, best.rank)]
        if any(abs(quote.value - best.value) > _RELATIVE_ROUNDING * abs(best.value) for quote in rivals):
            names = ", ".join(sorted(quote.payload for quote in rivals))
            message = f"different {name} of {subject} at one time in {names}"
            rows.fail(FailureReason.INCONSISTENT, message, payload=best.payload, subject=subject)
            continue
        with rows.guard(best.payload, subject=subject):
            parsed = name_of(subject, "instId")
            if best.source == INDEX_TICKERS:
                indices[subject] = best
            elif catalog.known(parsed):
                _instrument_mark(rows, parsed, name, best, catalog=catalog, data=data)
    _index_marks(rows, indices, catalog, data)


def _fields(request: str, line: PriceLine) -> Mapping[str, Decimal]:
    """The marks that an answer is asked for: a ticker of an option states no vol, an index ticker no mark."""
    wanted = {
        MARK_PRICE: ("mark",),
        INDEX_TICKERS: ("index",),
        FUNDING: ("funding_rate",),
        OPTION_SUMMARY: ("implied_vol", "forward"),
    }.get(request, ("bid", "ask", "bid_size", "ask_size"))
    return {name: value for name, value in line.values.items() if name in wanted}


def _instrument_mark(
    rows: Rows, name: Name, mark: str, quote: _Quote, *, catalog: OkxCatalog, data: MarketData
) -> None:
    data.marks.setdefault(name.inst_id, {})[mark] = quote.value
    data.times[name.inst_id, mark] = _time(quote)
    value = quote.value
    if mark == "forward":
        return  # a mark of the expiry, written once for those that are held
    if mark in ("bid_size", "ask_size"):
        depth = _depth(name, mark, quote.value, catalog=catalog, data=data)
        if depth is None:
            return
        mark, value = f"depth_{mark.removesuffix('_size')}", depth
    _mark(rows, instrument_id(VENUE, name.inst_id), mark, value, quote)


def _depth(name: Name, mark: str, size: Decimal, *, catalog: OkxCatalog, data: MarketData) -> Decimal | None:
    """Notional of the best level in the quote currency; None where no contract value is at hand."""
    contract_size = Decimal(1) if name.kind == "spot" else getattr(catalog.contracts.get(name.inst_id), "size", None)
    price = data.marks[name.inst_id].get(mark.removesuffix("_size"))
    if contract_size is None or price is None or (name.kind == "option" and name.inverse):
        return None
    return size * contract_size * (Decimal(1) if name.inverse and name.kind != "spot" else price)


def _mark(rows: Rows, subject: str, name: str, value: Decimal, quote: _Quote) -> None:
    add_mark(rows, subject, name, value, as_of=_time(quote), source=quote.source)


def _time(quote: _Quote) -> datetime | None:
    return None if quote.time == _EARLIEST else quote.time


def _index_marks(rows: Rows, indices: Mapping[str, _Quote], catalog: OkxCatalog, data: MarketData) -> None:
    """USD prices of currencies; an index in a stable is the price of that pair, and of the coin where no other is."""
    for pair, quote in indices.items():
        base, _, unit = pair.partition("-")
        if unit == "USD":
            _asset_index(rows, base, quote.value, quote, catalog=catalog, data=data)
        else:
            _mark(rows, f"{base}/{unit}", "index", quote.value, quote)
    for pair, quote in indices.items():
        base, _, unit = pair.partition("-")
        if base not in data.index and unit in STABLE_QUOTES:
            price = quote.value * data.index.get(unit, Decimal(1))
            _asset_index(rows, base, price, quote, catalog=catalog, data=data)


def _asset_index(
    rows: Rows, currency: str, price: Decimal, quote: _Quote, *, catalog: OkxCatalog, data: MarketData
) -> None:
    asset = catalog.named.asset(currency)
    if asset is not None:
        data.index[currency] = price
        _mark(rows, asset, "index", price, quote)


def expiry_marks(rows: Rows, catalog: OkxCatalog, data: MarketData, held: set[str]) -> None:
    """Forward of every expiry in which an option is held, by the newest summary of the held ones."""
    best: dict[str, tuple[datetime, str]] = {}
    for inst_id in sorted(held):
        found, marks = catalog.contracts.get(inst_id), data.marks.get(inst_id, {})
        if found is None or found.expiry is None or "forward" not in marks:
            continue
        subject = expiry_subject(found.name.base, found.expiry)
        time = data.times.get((inst_id, "forward")) or _EARLIEST
        if subject not in best or time > best[subject][0]:
            best[subject] = (time, inst_id)
    for subject, (time, inst_id) in sorted(best.items()):
        quote = _Quote(time, 0, data.marks[inst_id]["forward"], "", OPTION_SUMMARY)
        _mark(rows, subject, "forward", quote.value, quote)


def _open_interest(rows: Rows, answers: Mapping[str, Sequence[Payload]], catalog: OkxCatalog) -> None:
    for payload in answers.get(OPEN_INTEREST, ()):
        for (inst_id, coins, time), path in unique(rows, payload, open_interest_line, key=lambda line: line[0]):
            with rows.guard(payload.name, subject=inst_id):
                if catalog.known(name_of(inst_id, f"{path}.instId")):
                    as_of, market = time or payload.received_at, instrument_id(VENUE, inst_id)
                    add_market_state(rows, market, "open_interest", coins, as_of=as_of, source=OPEN_INTEREST)


def _ladders(rows: Rows, answers: Mapping[str, Sequence[Payload]], data: MarketData) -> None:
    """Ladders by instrument type and family. The type is the request's (`public/position-tiers:SWAP`); without it a row
    that states loan limits is of margin trading and any other holds for swaps and futures.
    """
    found: dict[tuple[str, str], list[tuple[TierLine, Payload]]] = {}
    spoiled: set[tuple[str, str]] = set()
    for payload in answers.get(TIERS, ()):
        with rows.guard(payload.name):
            stated, _, family_of_request = request_part(payload).partition(":")
            for number, record in enumerate(records_of(payload.body)):
                path = data_path(payload.body, number)
                family = ""
                if isinstance(record, Mapping):
                    family = str(record.get("instFamily") or record.get("uly") or record.get("instId") or "")
                before = len(rows.failures)
                with rows.guard(payload.name, subject=family):
                    tier = tier_line(record, path)
                    kind = stated.upper() or (LOANS if tier.is_loan else "")
                    name = family_of_request if kind == LOANS and family_of_request else tier.family
                    found.setdefault((kind, name), []).append((tier, payload))
                if len(rows.failures) > before:
                    spoiled.add((stated.upper(), family.removesuffix("-SWAP")))
    for key, entries in sorted(found.items()):
        payload = entries[0][1]
        with rows.guard(payload.name, subject=key[1]):
            tiers = tuple(sorted((tier for tier, _ in entries), key=lambda tier: tier.tier))
            if key in spoiled:
                raise FieldError("", FailureReason.INCONSISTENT, f"tiers of {key[1]}: a step could not be read")
            if len({tier.tier for tier in tiers}) < len(tiers):
                raise FieldError("", FailureReason.DUPLICATE, f"tiers of {key[1]} stand twice; all rejected")
            check_ladder(tiers)
            data.ladders[key] = Ladder(tiers, TIERS)


def _shared_rules(rows: Rows, catalog: OkxCatalog, data: MarketData, book: RuleBook) -> None:
    """Ladders of every known instrument and slices of every known currency, under the shared rule set."""
    before = len(rows.rows["margin_tiers"]) + len(rows.rows["collateral_tiers"])
    for inst_id in sorted(catalog.contracts):
        name = catalog.contracts[inst_id].name
        ladder = data.ladder(name) if name.kind in ("perp", "future") and catalog.known(name) else None
        if ladder is not None:
            rows.rows["margin_tiers"].extend(
                tier_rows(SHARED, instrument_id(VENUE, inst_id), ladder.tiers, others=Decimal(0), fee=Decimal(0))
            )
    for currency, line in sorted(data.slices.items()):
        asset = catalog.named.asset(currency)
        if asset is not None:
            unit = "tokens" if line.in_coins else "value"
            rows.rows["collateral_tiers"].extend(slice_rows(SHARED, asset, line.tiers, floor_in=unit, source=DISCOUNTS))
    if len(rows.rows["margin_tiers"]) + len(rows.rows["collateral_tiers"]) > before:
        components = account_components(multi_currency_equity(), (), (), positions=True)
        rows.rows["rule_sets"].extend(component_rows(SHARED, components, source=book.source))
