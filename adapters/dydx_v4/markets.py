"""Markets of dYdX v4: from the indexer's list in human units, or from a node's perpetuals, prices and tiers.

Where both name a market the node's figures are used: they are the chain's own. A market whose underlying the asset book
does not know is passed over; whoever holds it becomes incomplete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Context
from ..amounts import (
    FieldError,
    decimal_at,
    integer_at,
    integer_of,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    positive_at,
    token_amount,
)
from ..catalog import Catalog
from ..findings import Problem
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .bodies import field_of, number_of, opened, signed_quantums
from .mechanics import PPM, LiquidityTier, adjusted_imf_ppm, net_notional, truncated
from .rules import margin_tier_row

VENUE = "dydx_v4"
CHAIN = "dydx"
USDC = "USDC"
SETTLEMENT = f"{USDC}@{CHAIN}"
LOWER_CAP, UPPER_CAP = "openInterestLowerCap", "openInterestUpperCap"
_EXACT_DIGITS = 80


class Market(NamedTuple):
    """One market: price in USD per coin, open interest in coins, rates as fractions."""

    ticker: str
    price: Decimal
    effective_imf_ppm: int
    base_imf_ppm: int
    maintenance_rate: Decimal
    open_interest: Decimal
    lower_cap: Decimal
    upper_cap: Decimal
    is_isolated: bool
    status: str | None
    funding_rate: Decimal | None
    payload: Payload
    as_of: datetime | None
    unstated_caps: str = ""
    """Path of a record that names no cap on open interest: whether initial margin scales is then not known."""


class Perpetual(NamedTuple):
    """What a node's positions need of their market beside its margin."""

    ticker: str
    atomic_resolution: int
    funding_index: int


@dataclass
class Reading:
    """One snapshot of the venue while it is read: what all its payloads share, and the rows so far."""

    rows: Rows
    context: Context
    catalog: Catalog
    markets: dict[str, Market] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    pairs: dict[int, str] = field(default_factory=dict)
    """Tickers by number of the order book, which only the indexer's list states."""
    perpetuals: dict[int, Perpetual] = field(default_factory=dict)
    broken_perpetuals: dict[int, Problem] = field(default_factory=dict)

    def settlement(self) -> str:
        """Asset id of USDC on the chain, noted for the table `assets`; raises `FieldError(unknown_asset)`."""
        return self.catalog.token(USDC, CHAIN, 6, path="")

    def instrument(self, ticker: str, *, path: str) -> str:
        """Instrument id of a perpetual, noted for the table `instruments`; raises `FieldError(unknown_market)`."""
        identity = instrument_id(VENUE, ticker)
        if identity in self.catalog.instruments:
            return identity
        underlying, dash, quote = ticker.rpartition("-")
        if not dash or quote != "USD":
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{ticker!r:.60} is no market against USD")
        settlement = self.settlement()
        self.catalog.known_asset(underlying, path=path, reason=FailureReason.UNKNOWN_MARKET, of=ticker)
        return self.catalog.instrument(ticker, kind="perp", underlying=underlying, settlement_asset=settlement)

    def held_market(self, ticker: str, *, path: str) -> Market | None:
        """The market of a position; None where no payload lists markets. Raises `FieldError` with the market's own
        problem, or unknown_market where a list does not name it.
        """
        if ticker in self.problems:
            raise FieldError(path, *self.problems[ticker])
        if ticker not in self.markets and self.markets:
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{ticker!r:.60} is in no list of markets")
        return self.markets.get(ticker)


def ppm_at(record: Any, key: str, path: str) -> int:
    """A fraction of at most 1 as integer ppm; raises `FieldError(out_of_range)` otherwise."""
    value = Fraction(decimal_at(record, key, path)) * PPM
    if not 0 < value <= PPM or value.denominator != 1:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{record[key]} is no fraction in whole ppm")
    return int(value)


# The indexer's list ---------------------------------------------------------------------------------------------------


def read_indexer_markets(reading: Reading, payload: Payload) -> None:
    """Markets of one `perpetualMarkets` payload; what cannot be read becomes a failure and a problem of its market."""
    rows = reading.rows
    with rows.guard(payload.name, subject=payload.request):
        body = opened(payload)
        listed = member(body.body, "markets", body.path)
        if not isinstance(listed, Mapping):
            message = f"expected an object of markets, found {type(listed).__name__}"
            raise FieldError(joined(body.path, "markets"), FailureReason.MALFORMED, message)
        for ticker, record in listed.items():
            path = joined(joined(body.path, "markets"), ticker)
            try:
                as_of = payload.received_at or body.event_at
                reading.markets[ticker] = _indexer_market(payload, ticker, record, path, as_of=as_of)
                if record.get("clobPairId") is not None:
                    reading.pairs[integer_at(record, "clobPairId", path)] = ticker
            except FieldError as error:
                _market_fails(reading, payload, ticker, error)


def _market_fails(reading: Reading, payload: Payload, ticker: str, error: FieldError) -> None:
    reading.markets.pop(ticker, None)
    reading.problems[ticker] = Problem(error.reason, error.message)
    identity = instrument_id(VENUE, ticker)
    reading.rows.refuse(error, payload=payload.name, subject=identity)


def _indexer_market(payload: Payload, ticker: str, record: Any, path: str, *, as_of: datetime | None) -> Market:
    if member(record, "ticker", path) != ticker:
        message = f"the market listed as {ticker} calls itself {record['ticker']!r:.40}"
        raise FieldError(joined(path, "ticker"), FailureReason.INCONSISTENT, message)
    price = positive_at(record, "oraclePrice", path)
    base = ppm_at(record, "initialMarginFraction", path)
    maintenance = ppm_rate_at(record, "maintenanceMarginFraction", path)
    if maintenance * PPM > base:
        message = f"maintenance {maintenance} is above the initial fraction {record['initialMarginFraction']}"
        raise FieldError(joined(path, "maintenanceMarginFraction"), FailureReason.INCONSISTENT, message)
    # `baseOpenInterest` is the chain's, by which the margin scales; the other is the indexer's own sum of positions.
    key = "openInterest" if record.get("baseOpenInterest") is None else "baseOpenInterest"
    open_interest = non_negative_at(record, key, path)
    # Payloads from before the scaling have no caps; a market that does not scale has caps of 0.
    caps = (LOWER_CAP, UPPER_CAP)
    stated = any(record.get(name) is not None for name in caps)
    if stated:
        for name in caps:
            member(record, name, path)
    lower, upper = (_cap(record, name, path) for name in caps)
    _check_caps(lower, upper, path)
    tier = LiquidityTier(base, 0, _quantums(lower), _quantums(upper))
    notional = truncated(Fraction(open_interest) * Fraction(price) * PPM)
    return Market(
        ticker,
        price,
        adjusted_imf_ppm(tier, notional),
        base,
        maintenance,
        open_interest,
        lower,
        upper,
        is_isolated=record.get("marketType") == "ISOLATED",
        status=_status(record, path),
        funding_rate=optional_decimal_at(record, "nextFundingRate", path),
        payload=payload,
        as_of=as_of,
        unstated_caps="" if stated else path,
    )


def ppm_rate_at(record: Any, key: str, path: str) -> Decimal:
    """A positive fraction of at most 1, in any number of digits."""
    rate = positive_at(record, key, path)
    if rate > 1:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{rate} is no fraction")
    return rate


def _cap(record: Any, key: str, path: str) -> Decimal:
    return Decimal(0) if record.get(key) is None else non_negative_at(record, key, path)


def _check_caps(lower: Decimal, upper: Decimal, path: str) -> None:
    if lower > upper:
        message = f"the lower cap {lower} is above the upper cap {upper}"
        raise FieldError(joined(path, LOWER_CAP), FailureReason.INCONSISTENT, message)


def _quantums(usdc: Decimal) -> int:
    return truncated(Fraction(usdc) * PPM)


def _status(record: Any, path: str) -> str | None:
    status = record.get("status")
    if status is not None and not isinstance(status, str):
        raise FieldError(joined(path, "status"), FailureReason.MALFORMED, f"expected a word, found {status!r:.40}")
    return status


# A node's three lists -------------------------------------------------------------------------------------------------


class _Price(NamedTuple):
    price: int
    exponent: int

    @property
    def usd(self) -> Decimal:
        return Decimal(self.price).scaleb(self.exponent)


def read_node_markets(
    reading: Reading, perpetuals: Payload | None, prices: Payload | None, tiers: Payload | None
) -> None:
    """Markets of a node's perpetuals; without prices or tiers only what translates its positions."""
    if perpetuals is None:
        return
    by_id = _prices(reading, prices) if prices else {}
    margins = _tiers(reading, tiers) if tiers else {}
    with reading.rows.guard(perpetuals.name, subject=perpetuals.request):
        body = opened(perpetuals)
        listed = members(body.body, "perpetual", body.path)
        ids = [_id(record) for record in listed]
        for number, record in enumerate(listed):
            path = joined(joined(body.path, "perpetual"), number)
            with reading.rows.guard(perpetuals.name, subject=path):
                params = member(record, "params", path)
                place = joined(path, "params")
                identity, ticker = number_of(params, "id", path=place), member(params, "ticker", place)
                try:
                    if ids.count(str(identity)) > 1:
                        raise FieldError(path, FailureReason.DUPLICATE, f"perpetual {identity} is listed several times")
                    perpetual = Perpetual(
                        ticker,
                        integer_of(field_of(params, "atomic_resolution", "atomicResolution", path=place), place),
                        signed_quantums(record, "funding_index" if "funding_index" in record else "fundingIndex", path),
                    )
                    _check_resolution(perpetual, place)
                    reading.perpetuals[identity] = perpetual
                    if prices and tiers:
                        market = _node_market(perpetuals, perpetual, record, path, prices=by_id, tiers=margins)
                        if (known := reading.markets.get(ticker)) is not None:  # what only the indexer says
                            more = ("status", "funding_rate")
                            market = market._replace(**{name: getattr(known, name) for name in more})
                        reading.markets[ticker] = market
                        reading.problems.pop(ticker, None)
                except FieldError as error:
                    reading.perpetuals.pop(identity, None)
                    reading.broken_perpetuals[identity] = Problem(error.reason, error.message)
                    _market_fails(reading, perpetuals, str(ticker), error)


def _id(record: Any) -> Any:
    params = record.get("params") if isinstance(record, Mapping) else None
    # As text: numbers that are none do not compare.
    return str(params.get("id", 0)) if isinstance(params, Mapping) else None


def _check_resolution(perpetual: Perpetual, path: str) -> None:
    if not isinstance(perpetual.ticker, str) or not perpetual.ticker:
        raise FieldError(joined(path, "ticker"), FailureReason.MALFORMED, "expected the ticker of a market")
    if not -30 <= perpetual.atomic_resolution <= 0:
        message = f"a quantum of 10^{perpetual.atomic_resolution} coins"
        raise FieldError(joined(path, "atomic_resolution"), FailureReason.OUT_OF_RANGE, message)


def _prices(reading: Reading, payload: Payload) -> dict[int, _Price | Problem]:
    found: dict[int, _Price | Problem] = {}
    with reading.rows.guard(payload.name, subject=payload.request):
        body = opened(payload)
        key = "market_prices" if isinstance(body.body, Mapping) and "market_prices" in body.body else "marketPrices"
        for number, record in enumerate(members(body.body, key, body.path)):
            path = joined(joined(body.path, key), number)
            with reading.rows.guard(payload.name, subject=path):
                identity = number_of(record, "id", path=path)
                price = integer_of(member(record, "price", path), joined(path, "price"))
                exponent = integer_of(member(record, "exponent", path), joined(path, "exponent"))
                if price <= 0 or not -40 <= exponent <= 40:
                    raise FieldError(path, FailureReason.OUT_OF_RANGE, f"a price of {price} * 10^{exponent}")
                twice = Problem(FailureReason.DUPLICATE, f"market {identity} has several prices")
                found[identity] = twice if identity in found else _Price(price, exponent)
    return found


def _tiers(reading: Reading, payload: Payload) -> dict[int, LiquidityTier | Problem]:
    found: dict[int, LiquidityTier | Problem] = {}
    with reading.rows.guard(payload.name, subject=payload.request):
        body = opened(payload)
        key = (
            "liquidity_tiers"
            if isinstance(body.body, Mapping) and "liquidity_tiers" in body.body
            else ("liquidityTiers")
        )
        for number, record in enumerate(members(body.body, key, body.path)):
            path = joined(joined(body.path, key), number)
            with reading.rows.guard(payload.name, subject=path):
                identity = number_of(record, "id", path=path)
                tier = LiquidityTier(
                    number_of(record, "initial_margin_ppm", "initialMarginPpm", path=path),
                    number_of(record, "maintenance_fraction_ppm", "maintenanceFractionPpm", path=path),
                    number_of(record, "open_interest_lower_cap", "openInterestLowerCap", path=path),
                    number_of(record, "open_interest_upper_cap", "openInterestUpperCap", path=path),
                )
                if not 0 < tier.initial_margin_ppm <= PPM or not 0 < tier.maintenance_fraction_ppm <= PPM:
                    raise FieldError(path, FailureReason.OUT_OF_RANGE, f"margin fractions of tier {identity}: {tier}")
                if tier.open_interest_lower_cap > tier.open_interest_upper_cap:
                    raise FieldError(path, FailureReason.INCONSISTENT, f"caps of tier {identity}: {tier}")
                twice = Problem(FailureReason.DUPLICATE, f"liquidity tier {identity} is listed several times")
                found[identity] = twice if identity in found else tier
    return found


def _node_market(
    payload: Payload,
    perpetual: Perpetual,
    record: Any,
    path: str,
    *,
    prices: Mapping[int, _Price | Problem],
    tiers: Mapping[int, LiquidityTier | Problem],
) -> Market:
    params, place = record["params"], joined(path, "params")
    price = prices.get(number_of(params, "market_id", "marketId", path=place))
    tier = tiers.get(number_of(params, "liquidity_tier", "liquidityTier", path=place))
    for what, found, reason in (
        ("price", price, FailureReason.MISSING_MARK),
        ("liquidity tier", tier, FailureReason.MISSING_PARAMETER),
    ):
        if found is None or isinstance(found, Problem):
            problem = found or Problem(reason, f"no {what} of {perpetual.ticker} in the node's lists")
            raise FieldError(place, *problem)
    assert isinstance(price, _Price)
    assert isinstance(tier, LiquidityTier)
    open_interest = signed_quantums(record, "open_interest" if "open_interest" in record else "openInterest", path)
    if open_interest < 0:
        raise FieldError(joined(path, "open_interest"), FailureReason.OUT_OF_RANGE, f"{open_interest} is negative")
    resolution = perpetual.atomic_resolution
    notional = net_notional(open_interest, atomic_resolution=resolution, price=price.price, exponent=price.exponent)
    kind = params.get("market_type", params.get("marketType"))
    with localcontext(prec=_EXACT_DIGITS):
        maintenance = Decimal(tier.initial_margin_ppm * tier.maintenance_fraction_ppm) / PPM / PPM
        lower, upper = Decimal(tier.open_interest_lower_cap) / PPM, Decimal(tier.open_interest_upper_cap) / PPM
    return Market(
        perpetual.ticker,
        price.usd,
        adjusted_imf_ppm(tier, notional),
        tier.initial_margin_ppm,
        maintenance,
        token_amount(open_interest, -resolution),
        lower,
        upper,
        is_isolated=kind in ("PERPETUAL_MARKET_TYPE_ISOLATED", 2),
        status=None,
        funding_rate=None,
        payload=payload,
        as_of=payload.received_at,
    )


# Rows -----------------------------------------------------------------------------------------------------------------


def add_markets(reading: Reading) -> None:
    """Instruments, tiers, marks and state of all markets whose underlying the asset book knows."""
    prices: dict[str, tuple[Decimal, Market]] = {}
    for ticker, market in sorted(reading.markets.items()):
        with suppress(FieldError):
            identity = reading.instrument(ticker, path="")
            reading.rows.rows["margin_tiers"].append(
                margin_tier_row(
                    identity, effective_imf_ppm=market.effective_imf_ppm, maintenance_rate=market.maintenance_rate
                )
            )
            _add_market_rows(reading, identity, market)
            prices[reading.catalog.instruments[identity]["underlying"]] = market.price, market
    for underlying, (price, market) in prices.items():
        add_mark(reading.rows, underlying, "index", price, as_of=market.as_of, source=market.payload.request)


def _add_market_rows(reading: Reading, identity: str, market: Market) -> None:
    source = market.payload.request
    for name in ("mark", "oracle"):  # positions are valued at the oracle price
        add_mark(reading.rows, identity, name, market.price, as_of=market.as_of, source=source)
    if market.funding_rate is not None:
        add_mark(reading.rows, identity, "funding_rate", market.funding_rate, as_of=market.as_of, source=source)
    state: dict[str, Decimal | str | None] = {
        "open_interest": market.open_interest,
        "open_interest_lower_cap": None if market.unstated_caps else market.lower_cap,
        "open_interest_upper_cap": None if market.unstated_caps else market.upper_cap,
        "base_initial_rate": Decimal(market.base_imf_ppm) / PPM,
        "effective_initial_rate": Decimal(market.effective_imf_ppm) / PPM,
        "only_isolated": Decimal(market.is_isolated),
        "status": market.status,
    }
    for name, value in state.items():
        if value is not None:
            add_market_state(reading.rows, identity, name, value, as_of=market.as_of, source=source)


def tell_unstated_caps(reading: Reading) -> None:
    """A failure of every account that holds a market whose list names no caps on open interest: its initial margin is
    at least that of the base fraction, and nobody knows how far open interest scales it up.
    """
    unstated = {instrument_id(VENUE, ticker): ticker for ticker, m in reading.markets.items() if m.unstated_caps}
    if not unstated:
        return
    held = {(row["instrument_id"], row["account_id"]) for row in reading.rows.rows["positions"]}
    for _, table in reading.rows.tables["positions"]:
        held.update(zip(table["instrument_id"].to_pylist(), table["account_id"].to_pylist(), strict=True))
    for identity, account in sorted(held):
        if identity not in unstated:
            continue
        ticker = unstated[identity]
        market = reading.markets[ticker]
        reading.rows.fail(
            FailureReason.MISSING_FIELD,
            f"fields {LOWER_CAP!r} and {UPPER_CAP!r} of {ticker} are missing: its open interest may scale the initial "
            f"fraction above the base of {Decimal(market.base_imf_ppm) / PPM}",
            payload=market.payload.name,
            path=joined(market.unstated_caps, LOWER_CAP),
            subject=identity,
            account_id=account,
        )


def repeated(names: Counter[Any], name: Any, path: str) -> None:
    """Raises `FieldError(duplicate)` for a name that occurs more than once."""
    if names[name] > 1:
        message = f"{name!r:.60} is listed {names[name]} times, all copies are rejected"
        raise FieldError(path, FailureReason.DUPLICATE, message)
