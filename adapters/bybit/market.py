"""What Bybit's market-wide answers say beside prices: risk tiers, collateral ratios, fees, contracts' own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from aggregator.errors import FailureReason

from ..adapter import parameter_table
from ..amounts import FieldError, decimal_at, joined, optional_time_at
from ..fields import text_at
from ..market_rows import add_market_state
from ..rows import Rows
from ..transport import Payload
from . import mechanics
from .catalog import PARAMETER_FILE, VENUE, BybitCatalog, lines_of
from .parse import CollateralLine, Market, TickerLine, answer_of, collateral_line, fee_line, place_of
from .prices import derivatives_of, moment_of, read_tickers, usd_prices, write_depths, write_funding, write_marks
from .rules import CollateralTable, RiskLimit, RiskTable, collateral_table, option_rates, risk_limit, risk_table


@dataclass
class MarketData:
    """What market-wide answers and the parameter file say, for the accounts to use."""

    tickers: dict[str, TickerLine] = field(default_factory=dict)
    usd_prices: dict[str, Decimal] = field(default_factory=dict)
    risk_tables: dict[str, RiskTable] = field(default_factory=dict)
    collateral: dict[str, CollateralTable] = field(default_factory=dict)
    switches: dict[str, CollateralLine] = field(default_factory=dict)
    fees: dict[str, Decimal] = field(default_factory=dict)
    options: dict[str, mechanics.OptionRates] = field(default_factory=dict)
    taker_rate: Decimal | None = None


def read_market(
    rows: Rows, payloads: Mapping[str, Sequence[Payload]], catalog: BybitCatalog, *, parameters: Mapping[str, Any]
) -> MarketData:
    """Reads all market-wide answers, writes their marks and states, and gives what accounts need of them.

    Raises `ConfigurationError` for a parameter file whose tables are none.
    """
    data = MarketData()
    tickers = read_tickers(rows, payloads.get("market/tickers", ()))
    data.tickers = {symbol: line for (category, symbol), (line, _, _) in tickers.items() if category != "spot"}
    data.usd_prices = usd_prices(tickers)
    for symbol, line in data.tickers.items():
        if line.delivery is not None:
            catalog.deliveries[symbol] = line.delivery
    _contracts(rows, derivatives_of(payloads.get("market/instruments-info", ())), catalog)
    books = write_depths(rows, payloads.get("market/orderbook", ()), catalog)
    write_marks(rows, tickers, data.usd_prices, books, catalog)
    write_funding(rows, payloads.get("market/funding/history", ()), catalog)
    data.risk_tables = _risk_tables(rows, payloads.get("market/risk-limit", ()), parameters)
    data.switches = collateral_switches(rows, payloads.get("account/collateral-info", ()))
    data.collateral = _collateral(
        rows, payloads.get("spot-margin-trade/collateral", ()), parameters, flat=data.switches
    )
    data.fees = {
        name: rate
        for name, ((_, rate), _, _) in lines_of(
            rows, derivatives_of(payloads.get("account/fee-rate", ())), fee_line, key=lambda line: line[0]
        ).items()
    }
    fees = parameter_table(parameters, "fees", venue=VENUE)
    if "taker_rate" in fees:
        with rows.guard(PARAMETER_FILE, subject="fees"):
            data.taker_rate = decimal_at(fees, "taker_rate", "fees")
    for coin, entry in parameter_table(parameters, "options", venue=VENUE).items():
        with rows.guard(PARAMETER_FILE, subject=coin):
            data.options[coin] = option_rates(entry, f"options.{coin}")
    return data


def _contracts(rows: Rows, payloads: Sequence[Payload], catalog: BybitCatalog) -> None:
    """Delivery times and status words of `market/instruments-info`."""

    def read(record: Any, path: str) -> tuple[str, datetime | None, str]:
        status = record.get("status") if isinstance(record, Mapping) else None
        return text_at(record, "symbol", path), optional_time_at(record, "deliveryTime", path), str(status or "")

    for (symbol, delivery, status), payload, _ in lines_of(rows, payloads, read, key=lambda line: line[0]).values():
        market = catalog.known(symbol)
        if market is None:
            continue
        if delivery is not None:
            catalog.deliveries[symbol] = delivery
        instrument = catalog.instrument(market)
        if status:
            as_of = moment_of(payload)
            add_market_state(rows, instrument, "status", status, as_of=as_of, source="market/instruments-info")


def _risk_tables(rows: Rows, payloads: Sequence[Payload], parameters: Mapping[str, Any]) -> dict[str, RiskTable]:
    """Tiers by symbol. A symbol with a row that cannot be used has none: an older table does not stand in for it."""
    named: set[str] = set()
    bad: set[str] = set()
    groups: dict[str, list[tuple[RiskLimit, Payload]]] = {}
    for payload in payloads:
        with rows.guard(payload.name, subject=payload.request):
            answer = answer_of(payload.body)
            for number, record in enumerate(answer.records):
                symbol = str(record.get("symbol") or "") if isinstance(record, Mapping) else ""
                named.add(symbol)
                try:
                    line = risk_limit(record, place_of(answer, number))
                except FieldError as error:
                    bad.add(symbol)
                    rows.refuse(error, payload=payload.name, subject=symbol)
                    continue
                groups.setdefault(line.symbol, []).append((line, payload))
    out: dict[str, RiskTable] = {}
    for symbol, found in groups.items():
        payload = found[-1][1]
        if len({id(source) for _, source in found}) > 1:
            names = ", ".join(sorted({source.name for _, source in found}))
            message = f"tiers of {symbol} in several answers ({names}); all rejected"
            rows.fail(FailureReason.DUPLICATE, message, payload=payload.name, subject=symbol)
        elif symbol not in bad:
            with rows.guard(payload.name, subject=symbol):
                out[symbol] = risk_table([line for line, _ in found])
    for symbol, entries in parameter_table(parameters, "risk_limits", venue=VENUE).items():
        if symbol not in named:
            with rows.guard(PARAMETER_FILE, subject=symbol):
                path = f"risk_limits.{symbol}"
                if not isinstance(entries, list) or not entries:
                    raise FieldError(path, FailureReason.MALFORMED, "expected a list of tiers")
                tiers = [risk_limit(entry, joined(path, number), symbol) for number, entry in enumerate(entries)]
                out[symbol] = risk_table(tiers)
    return out


def collateral_switches(rows: Rows, payloads: Sequence[Payload], whole: str | None = None) -> dict[str, CollateralLine]:
    """Rows of `account/collateral-info` by coin."""
    found = lines_of(
        rows, payloads, collateral_line, key=lambda line: line.coin, whole=whole, account=lambda record: whole
    )
    return {coin: line for coin, (line, _, _) in found.items()}


def _collateral(
    rows: Rows,
    payloads: Sequence[Payload],
    parameters: Mapping[str, Any],
    *,
    flat: Mapping[str, CollateralLine],
) -> dict[str, CollateralTable]:
    """Ratios by coin: tiers where an answer has them, else the dated ones, else the flat ratio of `collateral-info`."""
    tiered = lines_of(rows, payloads, collateral_table, key=lambda line: line.coin)
    out = {coin: table for coin, (table, _, _) in tiered.items()}
    named = {coin for payload in payloads for coin in _named(payload, "currency")}
    for coin, entries in parameter_table(parameters, "collateral", venue=VENUE).items():
        if coin not in named:
            with rows.guard(PARAMETER_FILE, subject=coin):
                record = {"collateralRatioList": entries}
                out[coin] = collateral_table(record, f"collateral.{coin}", coin)
    for coin, line in flat.items():
        if line.ratio is not None and coin not in named:
            out.setdefault(coin, flat_table(line))
    return out


def flat_table(line: CollateralLine) -> CollateralTable:
    """One ratio for any quantity of a coin."""
    return CollateralTable(line.coin, ((Decimal(0), line.ratio or Decimal(0)),))


def _named(payload: Payload, key: str) -> set[str]:
    """What an answer names, readable otherwise or not."""
    try:
        records = answer_of(payload.body).records
    except FieldError:
        return set()
    return {str(record[key]) for record in records if isinstance(record, Mapping) and key in record}


def taker_rate(data: MarketData, fees: Mapping[str, Decimal], market: Market) -> Fraction | None:
    """Taker rate of a market: the owner's, the market-wide answer's, the dated one; None where none is known."""
    for rate in (fees.get(market.symbol), data.fees.get(market.symbol), data.taker_rate):
        if rate is not None:
            return Fraction(rate)
    return None
