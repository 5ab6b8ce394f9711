"""Derive's markets: instruments by name, tickers to marks, and what is shared while one snapshot is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, decimal_at, member, non_negative_at, optional_decimal_at, positive_at, time_of
from ..catalog import Catalog
from ..collateral import weight_row
from ..rows import Rows
from ..symbols import expiry_subject, instrument_id, option_symbol
from ..transport import Payload
from .rules import SETTLEMENT, RuleBook, RuleSet

VENUE = "derive"

_SECONDS_PER_YEAR = 365 * 86400
_RELATIVE_ROUNDING = Decimal("1e-9")
_PERP_SUFFIX = "-PERP"


class Instrument(NamedTuple):
    """A perpetual, or an option when `expiry` is set."""

    name: str
    underlying: str
    expiry: datetime | None = None
    strike: Decimal | None = None
    option_type: str | None = None

    @property
    def kind(self) -> str:
        """`perp` or `option`."""
        return "option" if self.expiry else "perp"


class _Mark(NamedTuple):
    value: Decimal
    as_of: datetime | None
    source: str
    payload: str


@dataclass
class Reading:
    """What is shared while one snapshot is read."""

    rows: Rows
    catalog: Catalog
    book: RuleBook
    instruments: dict[str, Instrument] = field(default_factory=dict)
    marks: dict[tuple[str | None, str, str], _Mark] = field(default_factory=dict)
    conflicts: set[tuple[str | None, str, str]] = field(default_factory=set)
    confidences: dict[tuple[str, str], Decimal | None] = field(default_factory=dict)
    """Oracle confidence of a feed by (subject, mark field); None for one that could not be read."""
    rule_sets: dict[str, RuleSet] = field(default_factory=dict)

    def instrument(self, name: Any, *, path: str) -> Instrument:
        """The instrument of a venue name; raises `FieldError(unknown_market)`."""
        if not isinstance(name, str):
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"expected an instrument name, found {name!r}")
        if name not in self.instruments:
            if name.endswith(_PERP_SUFFIX):
                base = name.removesuffix(_PERP_SUFFIX)
                known = Instrument(name, self._underlying(base, path))
            else:
                option = option_symbol(name, path)
                underlying = self._underlying(option.underlying, path)
                known = Instrument(name, underlying, option.expiry, option.strike, option.option_type)
            self.instruments[name] = known
            self.catalog.instrument(
                name,
                kind=known.kind,
                underlying=known.underlying,
                settlement_asset=SETTLEMENT,
                strike=known.strike,
                expiry=known.expiry,
                option_type=known.option_type,
            )
        return self.instruments[name]

    def _underlying(self, symbol: str, path: str) -> str:
        return self.catalog.known_asset(symbol, path=path, reason=FailureReason.UNKNOWN_MARKET)

    def mark(
        self,
        subject: str,
        name: str,
        value: Decimal,
        *,
        as_of: datetime | None,
        source: str,
        payload: Payload,
        account: str | None = None,
    ) -> None:
        """Keeps the newest value of a mark; of two different ones of equal time neither."""
        key = (account, subject, name)
        known = self.marks.get(key)
        new = _Mark(value, as_of, source, payload.name)
        if known is None or _age(new) > _age(known):
            self.marks[key] = new
            self.conflicts.discard(key)
        elif _age(new) == _age(known) and abs(value - known.value) > _RELATIVE_ROUNDING * abs(known.value):
            self.conflicts.add(key)
            self.rows.fail(
                FailureReason.INCONSISTENT,
                f"{name} of {subject} is {known.value} in {known.payload} and {value} here, at the same time",
                payload=payload.name,
                subject=subject,
                account_id=account,
            )

    def confidence(self, subject: str, name: str) -> tuple[Decimal | None, bool]:
        """(confidence of the feed behind a mark, whether it is readable); without any feed (None, True), which is 1.

        An option's vol has the confidence of its expiry's vol feed.
        """
        key = subject, name
        if name == "implied_vol":
            option = self.instruments.get(subject.partition(":")[2])
            if option is not None and option.expiry is not None:
                key = expiry_subject(option.underlying, option.expiry), "implied_vol"
        return (self.confidences[key], self.confidences[key] is not None) if key in self.confidences else (None, True)

    def use(self, rules: RuleSet) -> str:
        """Registers a rule set that an account has and returns its name."""
        self.rule_sets[rules.name] = rules
        return rules.name

    def add_shared_rows(self) -> None:
        """Assets, instruments, marks, rule sets and collateral weights of everything that was used."""
        rows = self.rows
        if self.catalog.asset(SETTLEMENT) is None:
            rows.fail(FailureReason.UNKNOWN_ASSET, f"{SETTLEMENT!r} is not in the asset book", subject=SETTLEMENT)
        for rules in self.rule_sets.values():
            for row in rules.rows():
                rows.add("rule_sets", **row)
            for symbol, weight in rules.collateral.items():
                if self.catalog.asset(symbol) is None:
                    continue  # a token that the asset book does not know is in no balance row either
                row = weight_row(rules.name, symbol, weight.initial, weight.maintenance, source=rules.source)
                rows.add("collateral_tiers", **row)
        for account, subject, name in sorted(self.marks, key=lambda key: (key[0] or "", key[1], key[2])):
            mark = self.marks[account, subject, name]
            confidence, is_readable = self.confidence(subject, name)
            if (account, subject, name) not in self.conflicts and is_readable:
                rows.add(
                    "marks",
                    venue=VENUE,
                    account_id=account,
                    subject=subject,
                    field=name,
                    value=float(mark.value),
                    confidence=None if confidence is None else float(confidence),
                    as_of=mark.as_of,
                    source=mark.source,
                )
        self.catalog.write(rows)


def result_of(payload: Payload) -> Mapping[str, Any]:
    """The answer itself, unwrapped from `result`; raises `FieldError(malformed)` for an error answer."""
    body = payload.body
    if isinstance(body, Mapping) and body.get("error") is not None:
        raise FieldError("error", FailureReason.MALFORMED, "the venue answered with an error")
    if isinstance(body, Mapping) and "result" in body:
        body = body["result"]
    if not isinstance(body, Mapping):
        raise FieldError("result", FailureReason.MALFORMED, f"expected an object, found {type(body).__name__}")
    return body


def read_ticker(reading: Reading, payload: Payload) -> None:
    """Marks of one `public/get_ticker`: mark and index; a perpetual's funding; of an option vol, forward and rate."""
    ticker = result_of(payload)
    as_of = time_of(member(ticker, "timestamp"), "timestamp")
    kind = member(ticker, "instrument_type")
    index = positive_at(ticker, "index_price")
    common: dict[str, Any] = {"as_of": as_of, "source": "public/get_ticker", "payload": payload}
    if kind == "erc20":
        base = reading.catalog.known_asset(str(member(ticker, "base_currency")), path="base_currency")
        reading.mark(base, "index", index, **common)
        return
    instrument = reading.instrument(member(ticker, "instrument_name"), path="instrument_name")
    if kind != instrument.kind:
        raise FieldError("instrument_type", FailureReason.INCONSISTENT, f"{instrument.name} as {kind!r}")
    price = non_negative_at if instrument.expiry else positive_at
    marks = [
        (instrument_id(VENUE, instrument.name), "mark", price(ticker, "mark_price")),
        (instrument.underlying, "index", index),
    ]
    if instrument.expiry is not None:
        marks += _option_marks(ticker, instrument, instrument.expiry, as_of)
    elif ticker.get("perp_details") is not None:
        # A rate an hour, like the bounds beside it (`max_rate_per_hour`).
        rate = decimal_at(member(ticker, "perp_details"), "funding_rate", "perp_details")
        marks.append((instrument_id(VENUE, instrument.name), "funding_rate", rate))
    # Only now, so that a ticker that is wrong anywhere leaves nothing behind.
    for subject, name, value in marks:
        reading.mark(subject, name, value, **common)


def _option_marks(
    ticker: Mapping[str, Any], instrument: Instrument, expiry: datetime, as_of: datetime
) -> list[tuple[str, str, Decimal]]:
    """(subject, field, value) of an option's vol and its expiry's forward and rate; raises `FieldError`."""
    details = member(ticker, "option_details")
    stated = time_of(member(details, "expiry", "option_details"), "option_details.expiry")
    strike = positive_at(details, "strike", "option_details")
    if stated != expiry or strike != instrument.strike:
        message = f"{instrument.name} with expiry {stated:%Y-%m-%dT%H:%M:%SZ} and strike {strike}"
        raise FieldError("option_details", FailureReason.INCONSISTENT, message)
    pricing = member(ticker, "option_pricing")
    subject = expiry_subject(instrument.underlying, expiry)
    marks = [
        (instrument_id(VENUE, instrument.name), "implied_vol", non_negative_at(pricing, "iv", "option_pricing")),
        (subject, "forward", positive_at(pricing, "forward_price", "option_pricing")),
    ]
    discount = optional_decimal_at(pricing, "discount_factor", "option_pricing")
    years = (expiry - as_of).total_seconds() / _SECONDS_PER_YEAR
    if discount is not None and years > 0:
        if float(discount) <= 0:
            path = "option_pricing.discount_factor"
            raise FieldError(path, FailureReason.OUT_OF_RANGE, f"{discount} must be positive")
        # Strikes of one expiry may differ in the last digits of the float logarithm, so it is rounded.
        marks.append((subject, "rate", Decimal(repr(round(-math.log(discount) / years, 12)))))
    return marks


def _age(mark: _Mark) -> float:
    return mark.as_of.timestamp() if mark.as_of else -math.inf
