"""Bodies of Binance's futures answers as typed lines: exact decimals, paths of every field, no account logic.

Every reader raises `FieldError` with the path inside the body. Times are epoch milliseconds at Binance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from aggregator.errors import FailureReason

from .. import lines
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
from ..fields import flag_of, text_at
from ..lines import Line
from ..rows import Rows
from .contracts import USDM, Market, Product
from .contracts import market_of as market_of

SIDE_MODES: Mapping[str, Literal["net", "long", "short"]] = {"BOTH": "net", "LONG": "long", "SHORT": "short"}
LARGEST_LEVERAGE = 150

# Venue figures carry 8 decimals, so implied leverage misses its integer by rounding only; a wrong formula misses by
# far more.
_LEVERAGE_TOLERANCE = Decimal("0.001")


class AssetLine(NamedTuple):
    """One asset of the futures wallet, in that asset; `profit` fields are unrealized."""

    asset: str
    path: str
    wallet: Decimal
    cross_wallet: Decimal
    cross_profit: Decimal | None
    margin_balance: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    order_initial: Decimal
    margin_available: bool

    @property
    def empty(self) -> bool:
        """Nothing in it and nothing required of it."""
        figures = (
            self.wallet,
            self.cross_wallet,
            self.margin_balance,
            self.initial,
            self.maintenance,
            self.order_initial,
        )
        return not any(figures)


class Totals(NamedTuple):
    """USD totals of an account in multi-assets mode: the margin of open orders, the others for comparison."""

    margin_balance: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    order_initial: Decimal | None


class PositionLine(NamedTuple):
    """One symbol and side; None where the answer (or its version) does not carry the field."""

    path: str
    market: Market
    side_mode: Literal["net", "long", "short"]
    quantity: Decimal
    entry_price: Decimal | None
    mark_price: Decimal | None
    leverage: Decimal | None
    isolated: bool | None
    isolated_wallet: Decimal | None
    isolated_margin: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    liquidation_price: Decimal | None
    notional: Decimal | None


class SymbolSetting(NamedTuple):
    """What an owner chose for a symbol."""

    symbol: str
    leverage: Decimal
    isolated: bool


class PremiumLine(NamedTuple):
    """Prices of one symbol in its quote asset, and the last funding rate (None for a dated future)."""

    symbol: str
    mark_price: Decimal
    index_price: Decimal | None
    funding_rate: Decimal | None
    time: datetime | None


class AssetIndexLine(NamedTuple):
    """USD index of an asset and the buffered rates at which multi-assets mode counts it (bid: held, ask: owed)."""

    asset: str
    price: Decimal
    bid_rate: Decimal
    ask_rate: Decimal
    time: datetime | None


class OrderLine(NamedTuple):
    """One resting order; `limit_price` None for a market-type order."""

    market: Market
    order_id: str
    side: Literal["buy", "sell"]
    remaining: Decimal
    limit_price: Decimal | None
    reduce_only: bool


class Depth(NamedTuple):
    """Best prices and the quote-asset notional of all received levels of each side."""

    bid: Decimal
    ask: Decimal
    bid_notional: Decimal
    ask_notional: Decimal
    time: datetime | None


def unique_lines(
    rows: Rows,
    payload: str,
    records: Sequence[Any],
    read: Callable[[Any, str], Line],
    *,
    key: Callable[[Line], str],
    path: str = "",
    account: Callable[[Any], str | None] = lambda record: None,
    skip: Callable[[Any], bool] = lambda record: False,
) -> Iterator[Line]:
    """Lines of `records` that can be read and whose key occurs once; the others fail `account(record)`.

    Records that `skip` accepts are left out without a failure.
    """
    wanted = ((joined(path, number), record) for number, record in enumerate(records) if not skip(record))
    return (
        line for line, _ in lines.unique_lines(rows, payload, wanted, read, key=key, subject=_subject, account=account)
    )


def _subject(record: Any) -> str:
    return str(record.get("symbol") or record.get("asset") or "") if isinstance(record, Mapping) else ""


def asset_line(record: Any, path: str) -> AssetLine:
    """A row of `assets` in `fapi/account`, version 2 or 3."""
    return AssetLine(
        asset=text_at(record, "asset", path),
        path=path,
        wallet=decimal_at(record, "walletBalance", path),
        cross_wallet=decimal_at(record, "crossWalletBalance", path),
        cross_profit=optional_decimal_at(record, "crossUnPnl", path),
        margin_balance=optional_decimal_at(record, "marginBalance", path),
        initial=optional_decimal_at(record, "initialMargin", path),
        maintenance=optional_decimal_at(record, "maintMargin", path),
        order_initial=non_negative_at(record, "openOrderInitialMargin", path),
        # version 3 lists no flag: what is listed there counts
        margin_available=flag_of(record.get("marginAvailable", True), joined(path, "marginAvailable")),
    )


def totals(body: Any) -> Totals:
    """The USD totals of `fapi/account`."""
    order_initial = optional_decimal_at(body, "totalOpenOrderInitialMargin")
    if order_initial is not None and order_initial < 0:
        raise FieldError(
            "totalOpenOrderInitialMargin", FailureReason.OUT_OF_RANGE, f"{order_initial} must not be negative"
        )
    return Totals(
        margin_balance=optional_decimal_at(body, "totalMarginBalance"),
        initial=optional_decimal_at(body, "totalInitialMargin"),
        maintenance=optional_decimal_at(body, "totalMaintMargin"),
        order_initial=order_initial,
    )


def position_line(record: Any, path: str, product: Product = USDM) -> PositionLine:
    """A row of `positions` in an account answer or of a `positionRisk`, of either product, whatever version.

    The sign must fit the side (LONG >= 0, SHORT <= 0), and a quantity that is not zero must have prices > 0 and a
    notional that is not zero. A leverage that the version does not carry is implied by `|notional| /
    positionInitialMargin`, which is an integer at Binance; where that is none, it stays None.
    """
    market = product.market_of(text_at(record, "symbol", path), joined(path, "symbol"))
    side = str(record.get("positionSide", "BOTH"))
    if side not in SIDE_MODES:
        raise FieldError(joined(path, "positionSide"), FailureReason.MALFORMED, f"{side[:20]!r} is no position side")
    quantity = decimal_at(record, "positionAmt", path)
    if (side == "LONG" and quantity < 0) or (side == "SHORT" and quantity > 0):
        raise FieldError(
            joined(path, "positionAmt"), FailureReason.INCONSISTENT, f"quantity {quantity} does not fit the side {side}"
        )
    if record.get("marginAsset") not in (None, "", market.margin_asset):
        raise FieldError(
            joined(path, "marginAsset"),
            FailureReason.UNSUPPORTED,
            f"{market.symbol} is margined in {str(record['marginAsset'])[:20]}, not in its quote asset",
        )
    held = quantity != 0
    key = "notionalValue" if product.inverse else "notional"
    notional = optional_decimal_at(record, key, path)
    if held and notional == 0:
        raise FieldError(joined(path, key), FailureReason.INCONSISTENT, f"quantity {quantity} with notional 0")
    return PositionLine(
        path=path,
        market=market,
        side_mode=SIDE_MODES[side],
        quantity=quantity,
        entry_price=_price(record, "entryPrice", path) if held else None,
        mark_price=_price(record, "markPrice", path) if held else None,
        leverage=_leverage(record, notional, path) if held else None,
        isolated=_isolated(record, path) if held else None,
        isolated_wallet=_isolated_wallet(record, path) if held else None,
        isolated_margin=optional_decimal_at(record, "isolatedMargin", path) if held else None,
        # version 3 of the account states the position's margin with that of its orders only
        initial=first_decimal_at(record, ("positionInitialMargin", "initialMargin"), path) if held else None,
        maintenance=optional_decimal_at(record, "maintMargin", path) if held else None,
        liquidation_price=(optional_decimal_at(record, "liquidationPrice", path) or None) if held else None,
        notional=notional,
    )


def no_position(record: Any, product: Product = USDM) -> bool:
    """Whether a row says quantity 0 of a symbol that is no contract of a known shape: nothing is held in it."""
    try:
        if decimal_at(record, "positionAmt") != 0:
            return False
        product.market_of(str(record.get("symbol")), "")
    except FieldError as error:
        return error.reason == FailureReason.UNKNOWN_MARKET
    return False


def _price(record: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    return None if record.get(key) in (None, "") else positive_at(record, key, path)


def _leverage(record: Mapping[str, Any], notional: Decimal | None, path: str) -> Decimal | None:
    if record.get("leverage") not in (None, ""):
        return positive_at(record, "leverage", path)
    initial = optional_decimal_at(record, "positionInitialMargin", path)
    if not notional or not initial or initial < 0:
        return None
    implied = abs(notional) / initial
    whole = Decimal(round(implied))
    near = abs(implied - whole) <= _LEVERAGE_TOLERANCE * whole
    return whole if 1 <= whole <= LARGEST_LEVERAGE and near else None


def _isolated(record: Mapping[str, Any], path: str) -> bool | None:
    """Margin type where the version states it (positionRisk 2: marginType, account 2: isolated), else None."""
    if record.get("marginType") not in (None, ""):
        return _margin_type(record["marginType"], joined(path, "marginType"))
    if record.get("isolated") is not None:
        return flag_of(record["isolated"], joined(path, "isolated"))
    return None


def _margin_type(value: Any, path: str) -> bool:
    word = str(value).lower()
    if word not in ("isolated", "cross", "crossed"):
        raise FieldError(path, FailureReason.MALFORMED, f"{word[:20]!r} is no margin type")
    return word == "isolated"


def _isolated_wallet(record: Mapping[str, Any], path: str) -> Decimal | None:
    wallet = optional_decimal_at(record, "isolatedWallet", path)
    if wallet is not None:
        return wallet
    # isolatedMargin = isolatedWallet + unrealized profit, in the same answer
    margin = optional_decimal_at(record, "isolatedMargin", path)
    key = "unRealizedProfit" if "unRealizedProfit" in record else "unrealizedProfit"
    profit = optional_decimal_at(record, key, path)
    if not margin:
        return margin
    return None if profit is None else margin - profit


def symbol_setting(record: Any, path: str) -> SymbolSetting:
    """A row of `fapi/symbolConfig`."""
    return SymbolSetting(
        text_at(record, "symbol", path),
        positive_at(record, "leverage", path),
        _margin_type(member(record, "marginType", path), joined(path, "marginType")),
    )


def premium_line(record: Any, path: str) -> PremiumLine:
    """A row of `premiumIndex`."""
    return PremiumLine(
        symbol=text_at(record, "symbol", path),
        mark_price=positive_at(record, "markPrice", path),
        index_price=_price(record, "indexPrice", path),
        funding_rate=optional_decimal_at(record, "lastFundingRate", path),
        time=optional_time_at(record, "time", path),
    )


# The venue rounds the buffered rates to 8 decimals.
_RATE_TOLERANCE = Decimal("0.000001")


def asset_index_line(record: Any, path: str) -> AssetIndexLine:
    """A row of `fapi/assetIndex`; raises inconsistent unless the rates are the index with its buffers."""
    symbol = text_at(record, "symbol", path)
    if not symbol.endswith("USD") or symbol == "USD":
        raise FieldError(joined(path, "symbol"), FailureReason.UNKNOWN_ASSET, f"{symbol[:40]!r} is no USD index")
    index = positive_at(record, "index", path)
    bid, ask = positive_at(record, "bidRate", path), positive_at(record, "askRate", path)
    if not bid <= index <= ask:
        raise FieldError(
            joined(path, "bidRate"),
            FailureReason.INCONSISTENT,
            f"rates {bid} and {ask} do not enclose the index {index}",
        )
    for key, rate, sign in (("bidBuffer", bid, -1), ("askBuffer", ask, 1)):
        buffer = optional_decimal_at(record, key, path)
        if buffer is not None and abs(rate - index * (1 + sign * buffer)) > _RATE_TOLERANCE * max(index, Decimal(1)):
            raise FieldError(
                joined(path, key),
                FailureReason.INCONSISTENT,
                f"buffer {buffer} of index {index} does not give the rate {rate}",
            )
    return AssetIndexLine(symbol.removesuffix("USD"), index, bid, ask, optional_time_at(record, "time", path))


def order_line(record: Any, path: str, product: Product = USDM) -> OrderLine:
    """A row of `openOrders`; price 0 is a market-type order, a close-position order has quantity 0."""
    side = text_at(record, "side", path)
    if side not in ("BUY", "SELL"):
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"{side[:20]!r} is no order side")
    remaining = non_negative_at(record, "origQty", path) - non_negative_at(record, "executedQty", path)
    if remaining < 0:
        raise FieldError(joined(path, "executedQty"), FailureReason.INCONSISTENT, "more executed than ordered")
    reduce_only = flag_of(record.get("reduceOnly", False), joined(path, "reduceOnly"))
    closes = flag_of(record.get("closePosition", False), joined(path, "closePosition"))
    return OrderLine(
        market=product.market_of(text_at(record, "symbol", path), joined(path, "symbol")),
        order_id=str(member(record, "orderId", path)),
        side="buy" if side == "BUY" else "sell",
        remaining=remaining,
        limit_price=non_negative_at(record, "price", path) or None,
        reduce_only=reduce_only or closes,
    )


def depth_of(body: Any, *, contract_size: Decimal | None = None) -> Depth:
    """The answer of `depth`; raises missing_mark for an empty side and inconsistent for a crossed book.

    With a contract size (COIN-M) quantities are contracts and the notional is in dollars.
    """
    bids, asks = _levels(body, "bids"), _levels(body, "asks")
    bid, ask = max(price for price, _ in bids), min(price for price, _ in asks)
    if bid >= ask:
        raise FieldError("bids", FailureReason.INCONSISTENT, f"best bid {bid} is not below best ask {ask}")

    def notional(levels: list[tuple[Decimal, Decimal]]) -> Decimal:
        per_unit = ((price if contract_size is None else contract_size) * quantity for price, quantity in levels)
        return sum(per_unit, Decimal(0))

    return Depth(
        bid,
        ask,
        notional(bids),
        notional(asks),
        optional_time_at(body, "T") or optional_time_at(body, "E"),
    )


def _levels(body: Any, key: str) -> list[tuple[Decimal, Decimal]]:
    levels = []
    for number, level in enumerate(members(body, key)):
        path = joined(key, number)
        if not isinstance(level, list) or len(level) < 2:
            raise FieldError(path, FailureReason.MALFORMED, "expected [price, quantity]")
        price, quantity = decimal_of(level[0], joined(path, 0)), decimal_of(level[1], joined(path, 1))
        if price <= 0 or quantity < 0:
            raise FieldError(path, FailureReason.OUT_OF_RANGE, f"level {price} x {quantity}")
        if quantity > 0:
            levels.append((price, quantity))
    if not levels:
        raise FieldError(key, FailureReason.MISSING_MARK, f"no {key} in the book")
    return levels
