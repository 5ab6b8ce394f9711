"""Bodies of Bybit's v5 answers as typed lines: exact decimals, paths of every field, no account logic.

An answer comes as `{retCode, result: {category, list}, time}`, as a websocket message `{topic, data, ts}`, or bare; its
rows are read alike. Numbers are texts, an empty text means none. Every reader raises `FieldError` with the path inside
the body. Times are epoch milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import (
    FieldError,
    decimal_at,
    decimal_of,
    first_decimal_at,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    optional_time_at,
    positive_at,
)
from ..fields import optional_flag_at, text_at
from ..symbols import EXPIRY_HOUR_UTC

SideMode = Literal["net", "long", "short"]
SIDE_MODES: Mapping[int, SideMode] = {0: "net", 1: "long", 2: "short"}
"""Side mode by `positionIdx`."""

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONTH_CODES = "FGHJKMNQUVXZ"
_OPTION = re.compile(r"([A-Z0-9]+)-(\d{1,2}[A-Z]{3}\d{2})-(\d+(?:\.\d+)?)-([CP])(?:-(USDT|USDC))?", re.ASCII)
_DATED = re.compile(r"([A-Z0-9]+)-(\d{1,2}[A-Z]{3}\d{2})", re.ASCII)
_INVERSE = re.compile(rf"([A-Z0-9]+)USD(?:([{_MONTH_CODES}])(\d{{2}}))?", re.ASCII)
_LINEAR = re.compile(r"([A-Z0-9]+?)(USDT|USDC|PERP)")
_MULTIPLE = re.compile(r"([A-Z]+?)(1000+)")


class Answer(NamedTuple):
    """The rows of an answer, the path to them, the category it states (empty for none) and its time."""

    records: list[Any]
    path: str
    category: str
    time: datetime | None


class Market(NamedTuple):
    """A derivative in parts; `settle` is the coin of margin and profit, `expiry` None for a perpetual."""

    symbol: str
    base: str
    settle: str
    kind: Literal["perp", "future", "option"]
    inverse: bool
    expiry: datetime | None = None
    strike: Decimal | None = None
    option_type: Literal["call", "put"] | None = None


class CoinLine(NamedTuple):
    """One coin of a wallet, in that coin (`usd_value` in dollars); None where the answer does not carry the field."""

    coin: str
    path: str
    wallet: Decimal
    spot_borrow: Decimal
    borrowed: Decimal
    equity: Decimal | None
    usd_value: Decimal | None
    profit: Decimal | None
    locked: Decimal | None
    order_initial: Decimal | None
    position_initial: Decimal | None
    position_maintenance: Decimal | None
    is_collateral: bool | None
    switched_on: bool | None

    @property
    def net(self) -> Decimal:
        """Coins that count: wallet balance less what was borrowed for spot trading."""
        return self.wallet - self.spot_borrow

    @property
    def empty(self) -> bool:
        """Nothing in it and nothing required of it."""
        return not any(
            (self.wallet, self.spot_borrow, self.order_initial, self.position_maintenance, self.usd_value, self.profit)
        )


class WalletLine(NamedTuple):
    """One account of `account/wallet-balance`: dollar totals (None where blank) and its coins as they came."""

    account_type: str
    path: str
    equity: Decimal | None
    margin_balance: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    maintenance_rate: Decimal | None
    coins: list[Any]


class PositionLine(NamedTuple):
    """One symbol and side. `quantity` signed; `margin` the coins behind an isolated position."""

    path: str
    market: Market
    side_mode: SideMode
    quantity: Decimal
    entry_price: Decimal
    mark_price: Decimal | None
    leverage: Decimal | None
    isolated: bool
    margin: Decimal | None
    profit: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    liquidation_price: Decimal | None
    bankruptcy_price: Decimal | None


class OrderLine(NamedTuple):
    """One resting order; `limit_price` None for a market-type order."""

    path: str
    market: Market
    order_id: str
    side: Literal["buy", "sell"]
    remaining: Decimal
    limit_price: Decimal | None
    reduce_only: bool


class TickerLine(NamedTuple):
    """Prices of one symbol in its quote asset; None where the category does not carry the field."""

    symbol: str
    mark_price: Decimal | None
    index_price: Decimal | None
    usd_index: Decimal | None
    bid: Decimal | None
    ask: Decimal | None
    funding_rate: Decimal | None
    open_interest: Decimal | None
    implied_vol: Decimal | None
    delta: Decimal | None
    forward: Decimal | None
    delivery: datetime | None


class CollateralLine(NamedTuple):
    """A coin as collateral: flat ratio, whether the venue takes it and whether its owner lets it count."""

    coin: str
    ratio: Decimal | None
    is_collateral: bool | None
    switched_on: bool | None


class Depth(NamedTuple):
    """Best prices and the quote-asset notional of all received levels of each side (linear), contracts (inverse)."""

    symbol: str
    bid: Decimal
    ask: Decimal
    bid_notional: Decimal
    ask_notional: Decimal
    time: datetime | None


def answer_of(body: Any) -> Answer:
    """The rows of a body; raises malformed for an answer that says an error, with the venue's own words."""
    if isinstance(body, Mapping) and body.get("retCode") not in (None, 0, "0"):
        words = str(body.get("retMsg"))[:80]
        raise FieldError("retCode", FailureReason.MALFORMED, f"the venue answered {body['retCode']}: {words}")
    moment = next((t for key in ("time", "ts", "creationTime") if (t := _time(body, key)) is not None), None)
    inner, path = body, ""
    for key in ("result", "data"):
        if isinstance(body, Mapping) and key in body:
            inner, path = body[key], key
            break
    category = str(inner.get("category") or "") if isinstance(inner, Mapping) else ""
    if isinstance(inner, Mapping) and "list" in inner:
        return Answer(members(inner, "list", path), joined(path, "list"), category, moment)
    if isinstance(inner, list):
        return Answer(inner, path, category, moment)
    if isinstance(inner, Mapping) and inner:
        return Answer([inner], path, category, moment)
    raise FieldError(path, FailureReason.MISSING_FIELD, "the answer has no rows")


def _time(body: Any, key: str) -> datetime | None:
    return optional_time_at(body, key) if isinstance(body, Mapping) else None


def place_of(answer: Answer, number: int) -> str:
    """Path of a row: an object that came alone has none of its own."""
    return joined(answer.path, number) if answer.path.endswith("list") or len(answer.records) > 1 else answer.path


def _optional_price(record: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    """A price above 0, or None where it is absent, blank or the 0 that the venue sends for none."""
    number = optional_decimal_at(record, key, path)
    if number is not None and number < 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{number} must be positive")
    return number or None


def _optional_amount(record: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    """A number of 0 or more, or None where it is absent or blank."""
    number = optional_decimal_at(record, key, path)
    if number is not None and number < 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{number} must not be negative")
    return number


# markets


def expiry_of(text: str) -> datetime | None:
    """`30DEC22` as its day at 08:00 UTC; None for a day that does not exist."""
    day, month, year = text[:-5], text[-5:-2], text[-2:]
    try:
        return datetime(2000 + int(year), _MONTHS.index(month) + 1, int(day), EXPIRY_HOUR_UTC, tzinfo=UTC)
    except ValueError:
        return None


def _last_friday(year: int, month: int) -> datetime:
    last = date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)
    day = last - timedelta(days=(last.weekday() - 4) % 7)
    return datetime(day.year, day.month, day.day, EXPIRY_HOUR_UTC, tzinfo=UTC)


def _base(text: str) -> str:
    # SHIB1000USDT is the contract on 1000 SHIB; elsewhere the number stands first.
    match = _MULTIPLE.fullmatch(text)
    return match[2] + match[1] if match else text


@lru_cache(maxsize=4096)
def _market(symbol: str) -> Market | None:
    if match := _OPTION.fullmatch(symbol):
        expiry = expiry_of(match[2])
        option_type: Literal["call", "put"] = "call" if match[4] == "C" else "put"
        strike = Decimal(match[3])
        if expiry is None or strike <= 0:
            return None
        return Market(symbol, match[1], match[5] or "USDC", "option", False, expiry, strike, option_type)
    if match := _DATED.fullmatch(symbol):
        expiry, pair = expiry_of(match[2]), _LINEAR.fullmatch(match[1])
        if expiry is None:
            return None
        if pair:
            return Market(symbol, _base(pair[1]), pair[2], "future", False, expiry)
        return Market(symbol, _base(match[1]), "USDC", "future", False, expiry)
    if match := _LINEAR.fullmatch(symbol):
        return Market(symbol, _base(match[1]), "USDC" if match[2] == "PERP" else match[2], "perp", False)
    if match := _INVERSE.fullmatch(symbol):
        if match[2] is None:
            return Market(symbol, match[1], match[1], "perp", True)
        expiry = _last_friday(2000 + int(match[3]), _MONTH_CODES.index(match[2]) + 1)
        return Market(symbol, match[1], match[1], "future", True, expiry)
    return None


def market_of(symbol: str, path: str = "") -> Market:
    """A derivative by its name; raises `FieldError(unknown_market)` for any other shape.

    `BTCUSDT` and `BTCPERP` (USDC) are linear perpetuals, `BTC-27JUN25` (USDC) and `BTCUSDT-27JUN25` linear futures,
    `BTCUSD` is the inverse perpetual, `BTCUSDM25` the inverse future that is delivered on the last Friday of June 2025,
    `BTC-30DEC22-18000-C[-USDT]` an option, settled in USDC where nothing else stands.
    """
    market = _market(symbol)
    if market is None:
        raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{symbol[:60]!r} is no derivative of this venue")
    return market


# owners


def wallet_line(record: Any, path: str) -> WalletLine:
    """A row of `account/wallet-balance`; totals by mark price go before those at the entry price where both stand."""
    return WalletLine(
        account_type=text_at(record, "accountType", path),
        path=path,
        equity=optional_decimal_at(record, "totalEquity", path),
        margin_balance=optional_decimal_at(record, "totalMarginBalance", path),
        initial=first_decimal_at(record, ("totalInitialMarginByMp", "totalInitialMargin"), path),
        maintenance=first_decimal_at(record, ("totalMaintenanceMarginByMp", "totalMaintenanceMargin"), path),
        maintenance_rate=first_decimal_at(record, ("accountMMRateByMp", "accountMMRate"), path),
        coins=members(record, "coin", path),
    )


def coin_line(record: Any, path: str) -> CoinLine:
    """A row of `coin` in a wallet."""
    return CoinLine(
        coin=text_at(record, "coin", path),
        path=path,
        wallet=decimal_at(record, "walletBalance", path),
        spot_borrow=_optional_amount(record, "spotBorrow", path) or Decimal(0),
        borrowed=_optional_amount(record, "borrowAmount", path) or Decimal(0),
        equity=optional_decimal_at(record, "equity", path),
        usd_value=optional_decimal_at(record, "usdValue", path),
        profit=optional_decimal_at(record, "unrealisedPnl", path),
        locked=_optional_amount(record, "locked", path),
        order_initial=_optional_amount(record, "totalOrderIM", path),
        position_initial=_optional_amount(record, "totalPositionIM", path),
        position_maintenance=_optional_amount(record, "totalPositionMM", path),
        is_collateral=optional_flag_at(record, "marginCollateral", path),
        switched_on=optional_flag_at(record, "collateralSwitch", path),
    )


def is_flat(record: Any) -> bool:
    """Whether a row of `position/list` says that nothing is held."""
    try:
        return decimal_at(record, "size") == 0
    except FieldError:
        return False


def position_line(record: Any, path: str) -> PositionLine:
    """A row of `position/list` that holds something.

    The side of a hedged position must be that of its index. A USDC contract is settled every session, so its profit
    runs from the session's average price where the answer states one.
    """
    market = market_of(text_at(record, "symbol", path), joined(path, "symbol"))
    index = member(record, "positionIdx", path) if "positionIdx" in record else 0
    if isinstance(index, bool) or index not in (0, 1, 2, "0", "1", "2"):
        raise FieldError(joined(path, "positionIdx"), FailureReason.MALFORMED, f"{str(index)[:20]!r} is no position")
    side_mode = SIDE_MODES[int(index)]
    side = text_at(record, "side", path)
    if side not in ("Buy", "Sell"):
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"{side[:20]!r} is no side")
    if side_mode != "net" and side_mode != ("long" if side == "Buy" else "short"):
        raise FieldError(
            joined(path, "side"), FailureReason.INCONSISTENT, f"side {side} in the {side_mode} position of a hedge"
        )
    size = positive_at(record, "size", path)
    mark = None if record.get("markPrice") in (None, "") else positive_at(record, "markPrice", path)
    profit = optional_decimal_at(record, "unrealisedPnl", path)
    leverage = _optional_price(record, "leverage", path)
    if leverage is not None and leverage < 1:
        raise FieldError(joined(path, "leverage"), FailureReason.OUT_OF_RANGE, f"leverage {leverage} is below 1")
    return PositionLine(
        path=path,
        market=market,
        side_mode=side_mode,
        quantity=size if side == "Buy" else size.copy_negate(),  # a minus sign would round to 28 digits
        entry_price=_entry_price(record, path, market),
        mark_price=mark,
        leverage=leverage,
        isolated=str(record.get("tradeMode")) == "1",
        margin=optional_decimal_at(record, "positionBalance", path),
        profit=profit,
        initial=first_decimal_at(record, ("positionIMByMp", "positionIM"), path),
        maintenance=first_decimal_at(record, ("positionMMByMp", "positionMM"), path),
        liquidation_price=_optional_price(record, "liqPrice", path),
        bankruptcy_price=_optional_price(record, "bustPrice", path),
    )


def _entry_price(record: Mapping[str, Any], path: str, market: Market) -> Decimal:
    """Price from which the open profit runs: the session's for a USDC contract, which is settled every session."""
    session = _optional_price(record, "sessionAvgPrice", path)
    if session is not None and market.settle == "USDC" and market.kind != "option":
        return session
    # a websocket message says entryPrice
    return positive_at(record, "avgPrice" if "avgPrice" in record else "entryPrice", path)


def order_line(record: Any, path: str) -> OrderLine:
    """A row of `order/realtime`; an order without a price of its own (market, conditional market) has none here."""
    side = text_at(record, "side", path)
    if side not in ("Buy", "Sell"):
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"{side[:20]!r} is no side")
    remaining = _optional_amount(record, "leavesQty", path)
    if remaining is None:
        remaining = non_negative_at(record, "qty", path) - (_optional_amount(record, "cumExecQty", path) or 0)
    if remaining < 0:
        raise FieldError(joined(path, "cumExecQty"), FailureReason.INCONSISTENT, "more executed than ordered")
    reduce_only = optional_flag_at(record, "reduceOnly", path) or optional_flag_at(record, "closeOnTrigger", path)
    return OrderLine(
        path=path,
        market=market_of(text_at(record, "symbol", path), joined(path, "symbol")),
        order_id=str(member(record, "orderId", path)),
        side="buy" if side == "Buy" else "sell",
        remaining=remaining,
        limit_price=_optional_price(record, "price", path) if record.get("orderType") != "Market" else None,
        reduce_only=bool(reduce_only),
    )


def fee_line(record: Any, path: str) -> tuple[str, Decimal]:
    """(symbol, taker rate) of a row of `account/fee-rate`; for options the symbol is blank and the base coin stands."""
    name = record.get("symbol") or record.get("baseCoin") if isinstance(record, Mapping) else None
    if not isinstance(name, str) or not name:
        raise FieldError(joined(path, "symbol"), FailureReason.MISSING_FIELD, "neither a symbol nor a base coin")
    rate = decimal_at(record, "takerFeeRate", path)
    if not -1 < rate < 1:
        raise FieldError(joined(path, "takerFeeRate"), FailureReason.OUT_OF_RANGE, f"{rate} is no rate")
    return name, rate


def collateral_line(record: Any, path: str) -> CollateralLine:
    """A row of `account/collateral-info`; raises out_of_range unless 0 <= ratio <= 1."""
    return CollateralLine(
        coin=text_at(record, "currency", path),
        ratio=None if record.get("collateralRatio") in (None, "") else ratio_at(record, "collateralRatio", path),
        is_collateral=optional_flag_at(record, "marginCollateral", path),
        switched_on=optional_flag_at(record, "collateralSwitch", path),
    )


def ratio_at(record: Any, key: str, path: str) -> Decimal:
    """A fraction between 0 and 1."""
    number = non_negative_at(record, key, path)
    if number > 1:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{number} is above 1")
    return number


# markets' answers


def ticker_line(record: Any, path: str) -> TickerLine:
    """A row of `market/tickers` of any category; option messages of the websocket spell a few names otherwise."""
    return TickerLine(
        symbol=text_at(record, "symbol", path),
        mark_price=None if record.get("markPrice") in (None, "") else positive_at(record, "markPrice", path),
        index_price=None if record.get("indexPrice") in (None, "") else positive_at(record, "indexPrice", path),
        usd_index=_optional_price(record, "usdIndexPrice", path),
        bid=_optional_price(record, "bid1Price" if "bid1Price" in record else "bidPrice", path),
        ask=_optional_price(record, "ask1Price" if "ask1Price" in record else "askPrice", path),
        funding_rate=optional_decimal_at(record, "fundingRate", path),
        open_interest=_optional_amount(record, "openInterest", path),
        implied_vol=_optional_price(record, "markIv" if "markIv" in record else "markPriceIv", path),
        delta=optional_decimal_at(record, "delta", path),
        forward=_optional_price(record, "underlyingPrice", path),
        delivery=optional_time_at(record, "deliveryTime", path),
    )


def depth_of(record: Any, path: str) -> Depth:
    """The answer of `market/orderbook`; raises missing_mark for an empty side and inconsistent for a crossed book."""
    bids, asks = _levels(record, "b", path), _levels(record, "a", path)
    bid, ask = max(price for price, _ in bids), min(price for price, _ in asks)
    if bid >= ask:
        raise FieldError(joined(path, "b"), FailureReason.INCONSISTENT, f"best bid {bid} is not below best ask {ask}")
    symbol = text_at(record, "s", path)
    inverse = market_of(symbol, joined(path, "s")).inverse
    totals = [
        sum((quantity if inverse else price * quantity for price, quantity in levels), Decimal(0))
        for levels in (bids, asks)
    ]
    return Depth(symbol, bid, ask, totals[0], totals[1], optional_time_at(record, "ts", path))


def _levels(record: Any, key: str, path: str) -> list[tuple[Decimal, Decimal]]:
    levels = []
    for number, level in enumerate(members(record, key, path)):
        place = joined(joined(path, key), number)
        if not isinstance(level, list) or len(level) < 2:
            raise FieldError(place, FailureReason.MALFORMED, "expected [price, quantity]")
        price, quantity = decimal_of(level[0], joined(place, 0)), decimal_of(level[1], joined(place, 1))
        if price <= 0 or quantity < 0:
            raise FieldError(place, FailureReason.OUT_OF_RANGE, f"level {price} x {quantity}")
        if quantity > 0:
            levels.append((price, quantity))
    if not levels:
        raise FieldError(joined(path, key), FailureReason.MISSING_MARK, f"no levels in {key!r}")
    return levels
