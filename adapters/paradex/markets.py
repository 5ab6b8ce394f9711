"""Markets of Paradex and what is shared while one snapshot is read, with the rows that all accounts share.

A market whose base asset the asset book does not know is passed over without a word; whoever holds it becomes
incomplete. So does the holder of a market that cannot be read, or that two payloads state differently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Context
from ..amounts import FieldError
from ..catalog import Catalog
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import expiry_subject, instrument_id
from ..transport import Payload
from .rules import ParameterFile, PortfolioParameters

VENUE = "paradex"
USDC = "USDC"
YEAR_S = 365 * 86400
FUNDING_HOURS = Decimal(8)

_TAKER_FEES = {"option": ("dated_option_taker_rate", "option_taker_rate", "taker_rate")}


class Problem(NamedTuple):
    """Why a market cannot be used; whoever holds it becomes incomplete for this reason."""

    reason: FailureReason
    message: str
    path: str = ""


class OptionLevel(NamedTuple):
    """Fractions of one level (`imf`, `mmf`) of `option_cross_margin_params`."""

    premium_multiplier: Decimal
    long_itm: Decimal
    short_itm: Decimal
    short_otm: Decimal
    short_put_cap: Decimal


class Spec(NamedTuple):
    """One market of `/v1/markets`; exactly one of `imf` and `option` is set, by kind, and none for spot."""

    symbol: str
    base: str
    kind: str
    expiry: datetime | None = None
    strike: Decimal | None = None
    option_type: str | None = None
    imf: Decimal | None = None
    mmf_factor: Decimal | None = None
    option: tuple[OptionLevel, OptionLevel] | None = None
    taker_fee: Decimal | None = None
    interest_rate: Decimal | None = None
    funding_hours: Decimal = FUNDING_HOURS


class Summary(NamedTuple):
    """One market of `/v1/markets/summary`; `funding_rate` per funding period of the market."""

    symbol: str
    mark: Decimal
    underlying: Decimal | None
    delta: Decimal | None
    vol: Decimal | None
    funding_rate: Decimal | None
    interest_rate: Decimal | None
    bid: Decimal | None
    ask: Decimal | None
    open_interest: Decimal | None
    as_of: datetime | None


class Base(NamedTuple):
    """Marks of a base asset: spot, interest rate, and of its perpetual mark and 8-hour funding rate where listed."""

    spot: Decimal
    rate: Decimal
    perp_mark: Decimal | None
    funding_rate_8h: Decimal | None


class _Read(NamedTuple):
    """What was read for a key, and the payload that said so."""

    value: Any
    payload: Payload


@dataclass
class Reading:
    """What is shared while one snapshot is read."""

    rows: Rows
    context: Context
    catalog: Catalog
    parameters: ParameterFile
    specs: dict[str, _Read] = field(default_factory=dict)
    summaries: dict[str, _Read] = field(default_factory=dict)
    configurations: dict[str, _Read] = field(default_factory=dict)
    problems: dict[tuple[str, str], Problem] = field(default_factory=dict)
    """By table (`specs`, `summaries`, `configurations`) and key."""
    bases: dict[str, Base | None] = field(default_factory=dict)
    symbols_by_base: dict[str, list[str]] = field(default_factory=dict)

    def put(self, table: str, key: str, value: Any, payload: Payload) -> None:
        """Keeps what a payload says of a key; two payloads that say different things leave a problem."""
        held: dict[str, _Read] = getattr(self, table)
        known = held.get(key)
        if known is not None and known.value != value:
            message = f"{key}: {known.payload.name} and {payload.name} say different things"
            self.problems[table, key] = Problem(FailureReason.INCONSISTENT, message)
            self.rows.fail(FailureReason.INCONSISTENT, message, payload=payload.name, subject=key)
        else:
            held[key] = _Read(value, payload)

    def _get(self, table: str, key: str, *, path: str, absent: Problem) -> Any:
        problem = self.problems.get((table, key))
        held: dict[str, _Read] = getattr(self, table)
        if problem is not None or key not in held:
            reason, message, _ = problem or absent
            raise FieldError(path, reason, message)
        return held[key].value

    def spec(self, symbol: Any, *, path: str) -> Spec:
        """The market of a symbol, noted for the table `instruments`; raises `FieldError`, also unknown_market."""
        if not isinstance(symbol, str) or not symbol:
            raise FieldError(path, FailureReason.MALFORMED, "expected the symbol of a market")
        absent = Problem(FailureReason.UNKNOWN_MARKET, f"{symbol[:60]!r} is in no /v1/markets payload")
        spec: Spec = self._get("specs", symbol, path=path, absent=absent)
        if spec.kind == "spot":
            raise FieldError(path, FailureReason.UNSUPPORTED, f"{symbol} is a spot market, which has no positions")
        self.catalog.instrument(
            symbol,
            kind=spec.kind,
            underlying=self.catalog.known_asset(spec.base, path=path, reason=FailureReason.UNKNOWN_MARKET),
            settlement_asset=self.catalog.known_asset(USDC, path=path),
            strike=spec.strike,
            expiry=spec.expiry,
            option_type=spec.option_type,
        )
        return spec

    def summary(self, symbol: str, *, path: str) -> Summary:
        """Marks of a market; raises `FieldError(missing_mark)` or the reason why they cannot be used."""
        absent = Problem(FailureReason.MISSING_MARK, f"{symbol} is in no /v1/markets/summary payload")
        summary: Summary = self._get("summaries", symbol, path=path, absent=absent)
        return summary

    def configuration(self, base: str, *, path: str) -> PortfolioParameters:
        """Portfolio-margin configuration of a base asset, of a payload or the parameter file; raises `FieldError`."""
        is_named = base in self.configurations or ("configurations", base) in self.problems
        if not is_named and base in self.parameters.portfolio_margin:
            return self.parameters.portfolio_margin[base]
        message = f"no portfolio-margin configuration of {base}"
        absent = Problem(FailureReason.MISSING_PARAMETER, message)
        found: PortfolioParameters = self._get("configurations", base, path=path, absent=absent)
        return found

    def base(self, symbol: str, *, path: str) -> Base:
        """Marks of a base asset; raises `FieldError(missing_mark)` where no summary states its spot price."""
        if symbol not in self.bases:
            self.bases[symbol] = self._base(symbol)
        known = self.bases[symbol]
        if known is None:
            raise FieldError(path, FailureReason.MISSING_MARK, f"no market summary states the spot price of {symbol}")
        return known

    def _base(self, symbol: str) -> Base | None:
        summary, spec = self.spot_source(symbol)
        if summary is None or spec is None:
            return None
        rate = summary.interest_rate if summary.interest_rate is not None else spec.interest_rate
        perp = spec.kind == "perp"
        funding = None
        if perp and summary.funding_rate is not None:
            funding = summary.funding_rate * FUNDING_HOURS / spec.funding_hours
        spot = summary.underlying if summary.underlying is not None else summary.mark
        return Base(spot, rate or Decimal(0), summary.mark if perp else None, funding)

    def spot_source(self, base: str) -> tuple[Summary | None, Spec | None]:
        """The summary whose underlying price is the spot of `base`: of its perpetual, else a spot market (whose mark
        serves), else the newest of its other markets.
        """
        if not self.symbols_by_base:
            for name, read in self.specs.items():
                self.symbols_by_base.setdefault(read.value.base, []).append(name)
        found: list[tuple[int, float, str]] = []
        for name in self.symbols_by_base.get(base, ()):
            spec: Spec = self.specs[name].value
            if name not in self.summaries or ("summaries", name) in self.problems:
                continue
            summary: Summary = self.summaries[name].value
            if summary.underlying is None and spec.kind != "spot":
                continue
            rank = {"perp": 0, "spot": 1}.get(spec.kind, 2)
            found.append((rank, -summary.as_of.timestamp() if summary.as_of else 0.0, name))
        if not found:
            return None, None
        name = min(found)[2]
        return self.summaries[name].value, self.specs[name].value

    def taker_fee(self, spec: Spec, fees: Mapping[str, Decimal], *, path: str) -> Decimal:
        """Fee rate of the provision: the account's own taker rate, else the market's, else the parameter file's.

        Raises `FieldError(missing_parameter)`.
        """
        kind = "option" if spec.kind == "option" else "perp"
        for name in _TAKER_FEES.get(kind, ("taker_rate",)):
            if name in fees:
                return fees[name]
        if spec.taker_fee is not None:
            return spec.taker_fee
        dated = self.parameters.fees.get(kind)
        if dated is None:
            raise FieldError(path, FailureReason.MISSING_PARAMETER, f"nothing states the taker fee of {spec.symbol}")
        return dated


# ----------------------------------------------------------------------------------------------------------------------
# Rows that all accounts share


def add_market_rows(reading: Reading) -> None:
    """Marks and state of every market whose base asset is known, and the spot of each base asset."""
    for symbol in sorted(reading.summaries):
        summary, payload = reading.summaries[symbol]
        read = reading.specs.get(symbol)
        if read is None or ("summaries", symbol) in reading.problems or ("specs", symbol) in reading.problems:
            continue
        spec: Spec = read.value
        if spec.kind == "spot" or not reading.catalog.knows(spec.base):
            continue
        with suppress(FieldError):  # without the settlement asset every holder is incomplete, here it is only noted
            reading.spec(symbol, path="symbol")
        _add_marks(reading, spec, summary, payload)
    for base in sorted({read.value.base for read in reading.specs.values()}):
        summary, _ = reading.spot_source(base)
        if summary is None or not reading.catalog.knows(base):
            continue
        spot = summary.underlying if summary.underlying is not None else summary.mark
        if spot <= 0:
            continue
        reading.catalog.asset(base)
        payload = reading.summaries[summary.symbol].payload
        as_of = summary.as_of or payload.received_at
        add_mark(reading.rows, base, "index", spot, as_of=as_of, source=payload.request)
        _add_expiries(reading, base, as_of=as_of, source=payload.request)


def _add_marks(reading: Reading, spec: Spec, summary: Summary, payload: Payload) -> None:
    identity = instrument_id(VENUE, spec.symbol)
    as_of = summary.as_of or payload.received_at
    values = {
        "mark": summary.mark or None,
        "bid": summary.bid,
        "ask": summary.ask,
        "delta": summary.delta,
        "implied_vol": summary.vol if spec.kind == "option" else None,
        "funding_rate": summary.funding_rate if spec.kind == "perp" else None,
    }
    for name, value in values.items():
        if value is not None:
            add_mark(reading.rows, identity, name, value, as_of=as_of, source=payload.request)
    if summary.open_interest is not None:
        add_market_state(
            reading.rows, identity, "open_interest", summary.open_interest, as_of=as_of, source=payload.request
        )
    if spec.kind == "perp":
        add_market_state(
            reading.rows, identity, "funding_period_hours", spec.funding_hours, as_of=as_of, source=payload.request
        )


def _add_expiries(reading: Reading, base: str, *, as_of: datetime | None, source: str) -> None:
    """Forward and rate of each expiry of a base asset: the venue prices on the spot with one interest rate."""
    marks = reading.base(base, path="")
    expiries = {
        reading.specs[name].value.expiry for name in reading.symbols_by_base[base] if reading.specs[name].value.option
    }
    for expiry in sorted(expiry for expiry in expiries if expiry is not None):
        subject = expiry_subject(base, expiry)
        years = max(0.0, (expiry - as_of).total_seconds() / YEAR_S) if as_of is not None else 0.0
        forward = Decimal(repr(float(marks.spot) * math.exp(float(marks.rate) * years)))
        add_mark(reading.rows, subject, "forward", forward, as_of=as_of, source=source)
        add_mark(reading.rows, subject, "rate", marks.rate, as_of=as_of, source=source)
