"""What a position of Bybit needs beside its own row: initial rate, risk tiers, an option's volatility and factors."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from aggregator.errors import FailureReason

from ..amounts import joined
from ..rows import Rows
from ..symbols import expiry_subject, instrument_id
from ..transport import Payload
from . import mechanics
from .catalog import VENUE, BybitCatalog
from .market import MarketData, taker_rate
from .parse import PositionLine
from .rules import decimal_from, leverage_problem


def initial_rate(
    rows: Rows, market: MarketData, fees: Mapping[str, Decimal], line: PositionLine, *, payload: Payload, home: str
) -> Decimal | None:
    """Initial margin as a fraction of the position value: 1 over the leverage, and the estimated fee of closing.

    None, and a failure of the account, where no taker rate is known.
    """
    rate = taker_rate(market, fees, line.market)
    if rate is None:
        rows.fail(
            FailureReason.MISSING_PARAMETER,
            f"no taker rate of {line.market.symbol} in account/fee-rate or the parameter file",
            payload=payload.name,
            path=line.path,
            subject=line.market.symbol,
            account_id=home,
        )
        return None
    assert line.leverage is not None
    side = 1 if line.quantity > 0 else -1
    return decimal_from(
        mechanics.initial_margin(1, line.leverage, side=side, taker_rate=rate, inverse=line.market.inverse)
    )


def check_tiers(
    rows: Rows, market: MarketData, line: PositionLine, mark: Decimal | None, *, payload: Payload, home: str
) -> None:
    """A position without tiers fails its account; one with more leverage than they allow is a finding."""
    instrument = instrument_id(VENUE, line.market.symbol)
    table = market.risk_tables.get(line.market.symbol)
    if table is None:
        rows.fail(
            FailureReason.MISSING_PARAMETER,
            f"no usable tiers of {line.market.symbol} in market/risk-limit or the parameter file",
            payload=payload.name,
            path=line.path,
            subject=instrument,
            account_id=home,
        )
    elif mark is not None and line.leverage is not None:
        value = mechanics.position_value(abs(line.quantity), mark, inverse=line.market.inverse)
        problem = leverage_problem(decimal_from(value), line.leverage, table)
        if problem:
            rows.fail(
                FailureReason.INCONSISTENT,
                f"{home}: {problem}",
                payload=payload.name,
                path=joined(line.path, "leverage"),
                subject=instrument,
            )


def check_option(
    rows: Rows,
    market: MarketData,
    line: PositionLine,
    catalog: BybitCatalog,
    *,
    payload: Payload,
    home: str,
    cross: bool,
) -> None:
    """An option moves with its volatility and forward, which its ticker states; a short one in cross margin needs the
    factors of its coin.
    """
    option = line.market
    ticker, expiry = market.tickers.get(option.symbol), catalog.expiry(option)
    if ticker is None or ticker.implied_vol is None or ticker.forward is None or expiry is None:
        rows.fail(
            FailureReason.MISSING_MARK,
            f"no volatility and forward of {option.symbol} in market/tickers",
            payload=payload.name,
            path=line.path,
            subject=option.symbol if expiry is None else expiry_subject(option.base, expiry),
            account_id=home,
        )
    if cross and line.quantity < 0 and option.base not in market.options:
        rows.fail(
            FailureReason.MISSING_PARAMETER,
            f"no factors of short {option.base} options in the parameter file",
            payload=payload.name,
            path=line.path,
            subject=option.symbol,
            account_id=home,
        )
