"""Bodies of OKX's v5 answers as typed lines: exact decimals, paths of every field, no account logic.

An answer is `{code, msg, data}`, a subscription message `{arg, data}`, or the list of `data` alone. Numbers are texts,
and an empty text is a number that does not apply. Every reader raises `FieldError` with the path inside of `data`.
Sizes are contracts. Fee rates are negative where they are charged.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import (
    FieldError,
    decimal_at,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    optional_time_at,
    positive_at,
    time_of,
)
from ..fields import text_at
from ..symbols import expiry_of

_NAME = re.compile(
    r"(?P<base>[A-Z0-9]+)-(?P<quote>[A-Z0-9]+)"
    r"(?:-(?P<term>SWAP|\d{6})(?:-(?P<strike>\d+(?:\.\d+)?)-(?P<side>[CP]))?)?"
)
_KINDS: Mapping[str, Literal["perp", "future", "option", "spot"]] = {
    "SWAP": "perp",
    "FUTURES": "future",
    "OPTION": "option",
    "SPOT": "spot",
    "MARGIN": "spot",
}
SIDES: Mapping[str, Literal["net", "long", "short"]] = {"net": "net", "long": "long", "short": "short"}


class Name(NamedTuple):
    """An instrument id in parts; `quote` is USD for inverse contracts. `family` is what tiers are stated for."""

    inst_id: str
    base: str
    quote: str
    kind: Literal["perp", "future", "option", "spot"]
    expiry: datetime | None
    strike: Decimal | None
    option_type: Literal["call", "put"] | None

    @property
    def family(self) -> str:
        """Instrument family: `BTC-USDT`."""
        return f"{self.base}-{self.quote}"

    @property
    def inverse(self) -> bool:
        """Whether it settles in its base coin."""
        return self.quote == "USD"

    @property
    def settlement(self) -> str:
        """Currency of profit and loss."""
        return self.base if self.inverse else self.quote


class Contract(NamedTuple):
    """What an instruments answer adds to a name: units per contract (USD for an inverse one), expiry with its hour."""

    name: Name
    size: Decimal
    expiry: datetime | None


class DetailLine(NamedTuple):
    """One currency of a balance. `cash` = cash balance, strategy equity less accrued interest; may be negative.

    `equity` holds isolated equity as well. `initial`, `maintenance` and `ratio` are stated per currency under
    single-currency margin alone; `is_collateral` matters in accounts in USD, where currencies are margin for each
    other. `order_frozen` is None where it is not stated.
    """

    path: str
    currency: str
    equity: Decimal
    cash: Decimal
    interest: Decimal
    isolated_equity: Decimal
    unrealized: Decimal
    equity_usd: Decimal | None
    discounted_usd: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    ratio: Decimal | None
    order_frozen: Decimal | None
    is_collateral: bool = True

    @property
    def counted_usd(self) -> Decimal | None:
        """What it adds to the adjusted equity: its discounted equity, of a coin that is no collateral only a debt."""
        if self.is_collateral:
            return self.discounted_usd
        return Decimal(0) if self.equity >= 0 else self.discounted_usd

    @property
    def empty(self) -> bool:
        """Nothing in it and nothing required of it."""
        return not (self.equity or self.cash or self.maintenance or self.isolated_equity)


class BalanceLine(NamedTuple):
    """A balance answer. USD figures are None where the account mode has no such figure or the answer does not say.

    `states_mode` is whether the answer has the field `adjEq`, empty or not: it is empty under single-currency margin.
    """

    path: str
    details: tuple[Any, ...]
    adjusted: Decimal | None
    total: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    ratio: Decimal | None
    order_frozen: Decimal | None
    notional: Decimal | None
    time: datetime | None
    states_mode: bool


class PositionLine(NamedTuple):
    """One position, `contracts` signed; `margin` is the collateral of an isolated one in its settlement currency."""

    path: str
    name: Name
    side_mode: Literal["net", "long", "short"]
    contracts: Decimal
    isolated: bool
    average_price: Decimal
    mark_price: Decimal | None
    index_price: Decimal | None
    leverage: Decimal | None
    margin: Decimal | None
    unrealized: Decimal | None
    initial: Decimal | None
    maintenance: Decimal | None
    ratio: Decimal | None
    liquidation_price: Decimal | None
    time: datetime | None


class OrderLine(NamedTuple):
    """One pending order in contracts (coins for spot); `limit_price` None for a market-type order."""

    path: str
    order_id: str
    name: Name
    isolated: bool
    side_mode: Literal["net", "long", "short"]
    side: Literal["buy", "sell"]
    remaining: Decimal
    limit_price: Decimal | None
    reduce_only: bool


class PriceLine(NamedTuple):
    """Marks of one subject (an instrument id or an index pair) by field."""

    subject: str
    values: Mapping[str, Decimal]
    time: datetime | None


class TierLine(NamedTuple):
    """One tier of position size: up to `cap` contracts (coins of a loan) inclusive, None without end."""

    family: str
    tier: int
    floor: Decimal
    cap: Decimal | None
    initial_rate: Decimal
    maintenance_rate: Decimal
    max_leverage: Decimal | None
    is_loan: bool


class DiscountLine(NamedTuple):
    """Discount slices of one currency: (floor, cap, rate), ascending from 0; bounds count coins or USD value."""

    currency: str
    tiers: tuple[tuple[Decimal, Decimal | None, Decimal], ...]
    in_coins: bool


class RiskUnitLine(NamedTuple):
    """A risk unit as the venue reports it, in USD; `amounts` contracts by instrument."""

    path: str
    unit: str
    delta: Decimal
    initial: Decimal
    maintenance: Decimal
    parts: Mapping[str, Decimal]
    amounts: Mapping[str, Decimal]


class BuilderLine(NamedTuple):
    """A position-builder answer in USD; `spot_in_use` by currency."""

    path: str
    equity: Decimal
    initial: Decimal
    maintenance: Decimal
    borrow_maintenance: Decimal
    borrow_initial: Decimal
    ratio: Decimal | None
    units: tuple[RiskUnitLine, ...]
    spot_in_use: Mapping[str, Decimal]
    time: datetime | None


def records_of(body: Any) -> list[Any]:
    """The rows of an answer; raises `FieldError(malformed)` for an error answer and for anything without rows."""
    if isinstance(body, list):
        return body
    if not isinstance(body, Mapping):
        raise FieldError("", FailureReason.MALFORMED, f"expected an answer, found {type(body).__name__}")
    if str(body.get("code", "0")) not in ("0", ""):
        message = f"the venue answered with error {str(body['code'])[:20]}"
        raise FieldError("code", FailureReason.MALFORMED, message)
    if "data" in body:
        return members(body, "data")
    return [body]


def data_path(body: Any, number: int) -> str:
    """Path of a row of an answer."""
    if isinstance(body, Mapping):
        return f"data[{number}]" if "data" in body else ""
    return f"[{number}]"


def name_of(inst_id: str, path: str = "") -> Name:
    """`BTC-USDT-SWAP`, `BTC-USD-240927`, `BTC-USD-240927-70000-C`, `BTC-USDT` in parts.

    Raises `FieldError(unknown_market)` for any other shape and malformed for a date that is none.
    """
    name = _parsed(inst_id)
    if name is not None:
        return name
    match = _NAME.fullmatch(inst_id)
    if match is not None and match["term"] not in (None, "SWAP"):
        expiry_of(match["term"], path)
    raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{inst_id[:60]!r} is no instrument id")


@functools.lru_cache(maxsize=65_536)
def _parsed(inst_id: str) -> Name | None:
    """An id stands in many rows of many answers; None for one that is no instrument's."""
    match = _NAME.fullmatch(inst_id)
    if match is None or (match["strike"] and match["term"] == "SWAP"):
        return None
    term = match["term"]
    kind: Literal["perp", "future", "option", "spot"] = (
        "spot" if term is None else "perp" if term == "SWAP" else "option" if match["strike"] else "future"
    )
    expiry = _expiry(term) if kind in ("future", "option") else None
    if kind in ("future", "option") and expiry is None:
        return None
    return Name(
        inst_id=inst_id,
        base=match["base"],
        quote=match["quote"],
        kind=kind,
        expiry=expiry,
        strike=Decimal(match["strike"]) if match["strike"] else None,
        option_type=None if match["side"] is None else "call" if match["side"] == "C" else "put",
    )


@functools.lru_cache(maxsize=1024)
def _expiry(term: str) -> datetime | None:
    try:
        return expiry_of(term)
    except FieldError:
        return None


def contract(record: Any, path: str = "") -> Contract:
    """A row of public/instruments; raises inconsistent where it contradicts its own id.

    Contract size = ctVal x ctMult, in coins for linear contracts and options, in USD for inverse futures and swaps.
    """
    name = name_of(text_at(record, "instId", path), joined(path, "instId"))
    stated = record.get("instType")
    if stated is not None and _KINDS.get(str(stated)) != name.kind:
        raise FieldError(
            joined(path, "instType"), FailureReason.INCONSISTENT, f"{str(stated)[:20]!r} for {name.inst_id}"
        )
    if name.kind == "spot":
        return Contract(name, Decimal(1), None)
    member(record, "ctMult", path)
    size = positive_at(record, "ctVal", path) * (_positive(record, "ctMult", path) or Decimal(1))
    unit = name.base if name.kind == "option" or not name.inverse else "USD"
    expected = {
        "ctType": None if name.kind == "option" else "inverse" if name.inverse else "linear",
        "settleCcy": name.settlement,
        "ctValCcy": unit,
    }
    for key, value in expected.items():
        if value is not None and record.get(key) not in (None, "", value):
            message = f"{key} {str(record[key])[:20]!r} of {name.inst_id}, not {value!r}"
            raise FieldError(joined(path, key), FailureReason.INCONSISTENT, message)
    strike = optional_decimal_at(record, "stk", path)
    if name.strike is not None and strike not in (None, name.strike):
        raise FieldError(joined(path, "stk"), FailureReason.INCONSISTENT, f"strike {strike} of {name.inst_id}")
    expiry = name.expiry
    if expiry is not None and record.get("expTime") not in (None, ""):
        moment = time_of(record["expTime"], joined(path, "expTime"))
        if moment.date() != expiry.date():
            message = f"expiry {moment:%Y-%m-%dT%H:%M:%SZ} of {name.inst_id}"
            raise FieldError(joined(path, "expTime"), FailureReason.INCONSISTENT, message)
        expiry = moment
    return Contract(name, size, expiry)


def _positive(record: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    """A number > 0, None where it is absent or empty."""
    value = optional_decimal_at(record, key, path)
    if value is not None and value <= 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} must be positive")
    return value


def _non_negative(record: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    value = optional_decimal_at(record, key, path)
    if value is not None and value < 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{value} must not be negative")
    return value


def _or_zero(record: Mapping[str, Any], key: str, path: str) -> Decimal:
    return optional_decimal_at(record, key, path) or Decimal(0)


def _applicable(record: Any, key: str, path: str) -> Decimal:
    """A number whose field must be there; empty, it does not apply and is 0."""
    value = member(record, key, path)
    return Decimal(0) if value == "" else decimal_at(record, key, path)


def balance_line(record: Any, path: str = "") -> BalanceLine:
    """A row of account/balance (its details unread, see `detail_line`)."""
    return BalanceLine(
        path=path,
        details=tuple(members(record, "details", path)),
        adjusted=optional_decimal_at(record, "adjEq", path),
        total=optional_decimal_at(record, "totalEq", path),
        initial=_non_negative(record, "imr", path),
        maintenance=_non_negative(record, "mmr", path),
        ratio=optional_decimal_at(record, "mgnRatio", path),
        order_frozen=_non_negative(record, "ordFroz", path),
        notional=optional_decimal_at(record, "notionalUsd", path),
        time=optional_time_at(record, "uTime", path),
        states_mode=record.get("adjEq") is not None,
    )


def detail_line(record: Any, path: str = "") -> DetailLine:
    """One currency of `details` in account/balance."""
    interest = _applicable(record, "interest", path)
    if interest < 0:
        raise FieldError(joined(path, "interest"), FailureReason.OUT_OF_RANGE, f"{interest} must not be negative")
    return DetailLine(
        path=path,
        currency=text_at(record, "ccy", path),
        equity=decimal_at(record, "eq", path),
        cash=decimal_at(record, "cashBal", path) + _applicable(record, "stgyEq", path) - interest,
        interest=interest,
        isolated_equity=_applicable(record, "isoEq", path),
        unrealized=_applicable(record, "upl", path),
        equity_usd=optional_decimal_at(record, "eqUsd", path),
        discounted_usd=optional_decimal_at(record, "disEq", path),
        initial=_non_negative(record, "imr", path),
        maintenance=_non_negative(record, "mmr", path),
        ratio=optional_decimal_at(record, "mgnRatio", path),
        order_frozen=_non_negative(record, "ordFrozen", path),
        is_collateral=_is_collateral(record, path),
    )


def _is_collateral(record: Mapping[str, Any], path: str) -> bool:
    """`collateralEnabled`, true where it is absent or empty; raises malformed for any other word."""
    value = record.get("collateralEnabled")
    if value is None or value == "" or isinstance(value, bool):
        return value is not False
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    message = f"{str(value)[:20]!r} is neither true nor false"
    raise FieldError(joined(path, "collateralEnabled"), FailureReason.MALFORMED, message)


def risk_balance(record: Any, path: str = "") -> tuple[BalanceLine, list[DetailLine]]:
    """The balances of an account-position-risk row: equities alone, which are cash where no position is held."""
    details = []
    for number, entry in enumerate(members(record, "balData", path)):
        place = f"{joined(path, 'balData')}[{number}]"
        equity = decimal_at(entry, "eq", place)
        details.append(
            DetailLine(
                place,
                text_at(entry, "ccy", place),
                equity,
                equity,
                Decimal(0),
                Decimal(0),
                Decimal(0),
                None,
                optional_decimal_at(entry, "disEq", place),
                None,
                None,
                None,
                None,
            )
        )
    line = BalanceLine(
        path,
        (),
        optional_decimal_at(record, "adjEq", path),
        None,
        None,
        None,
        None,
        None,
        None,
        optional_time_at(record, "ts", path),
        record.get("adjEq") is not None,
    )
    return line, details


def no_position(record: Any) -> bool:
    """Whether a row says that nothing is held."""
    return isinstance(record, Mapping) and record.get("pos") in ("0", "", "0.0", "-0")


def position_line(record: Any, path: str = "") -> PositionLine:
    """A row of account/positions (or of posData) whose size is not zero.

    Raises unsupported for a leveraged spot position, inconsistent for a side that its size contradicts.
    """
    name = name_of(text_at(record, "instId", path), joined(path, "instId"))
    if name.kind == "spot":
        raise FieldError(joined(path, "instType"), FailureReason.UNSUPPORTED, f"a margin position in {name.inst_id}")
    side = text_at(record, "posSide", path)
    if side not in SIDES:
        raise FieldError(joined(path, "posSide"), FailureReason.MALFORMED, f"{side[:20]!r} is no position side")
    contracts = decimal_at(record, "pos", path)
    if side == "long" and contracts < 0:
        raise FieldError(joined(path, "pos"), FailureReason.INCONSISTENT, f"{contracts} contracts on the side {side}")
    if side == "short":
        contracts = -abs(contracts)
    mode = text_at(record, "mgnMode", path)
    if mode not in ("cross", "isolated"):
        raise FieldError(joined(path, "mgnMode"), FailureReason.MALFORMED, f"{mode[:20]!r} is no margin mode")
    return PositionLine(
        path=path,
        name=name,
        side_mode=SIDES[side],
        contracts=contracts,
        isolated=mode == "isolated",
        average_price=positive_at(record, "avgPx", path),
        mark_price=_positive(record, "markPx", path),
        index_price=_positive(record, "idxPx", path),
        leverage=_positive(record, "lever", path),
        margin=optional_decimal_at(record, "margin", path),
        unrealized=optional_decimal_at(record, "upl", path),
        initial=_non_negative(record, "imr", path),
        maintenance=_non_negative(record, "mmr", path),
        ratio=optional_decimal_at(record, "mgnRatio", path),
        liquidation_price=optional_decimal_at(record, "liqPx", path) or None,
        time=optional_time_at(record, "uTime", path),
    )


def order_line(record: Any, path: str = "") -> OrderLine:
    """A row of trade/orders-pending."""
    name = name_of(text_at(record, "instId", path), joined(path, "instId"))
    side = text_at(record, "side", path)
    if side not in ("buy", "sell"):
        raise FieldError(joined(path, "side"), FailureReason.MALFORMED, f"{side[:20]!r} is neither buy nor sell")
    remaining = non_negative_at(record, "sz", path) - _applicable(record, "accFillSz", path)
    if remaining < 0:
        raise FieldError(joined(path, "accFillSz"), FailureReason.INCONSISTENT, "more is filled than was ordered")
    position_side = str(record.get("posSide", "net") or "net")
    return OrderLine(
        path=path,
        order_id=text_at(record, "ordId", path),
        name=name,
        isolated=text_at(record, "tdMode", path) == "isolated",
        side_mode=SIDES.get(position_side, "net"),
        side="buy" if side == "buy" else "sell",
        remaining=remaining,
        limit_price=_positive(record, "px", path),
        reduce_only=str(record.get("reduceOnly", "false")).lower() == "true",
    )


_MARKS = {
    "markPx": "mark",
    "idxPx": "index",
    "bidPx": "bid",
    "askPx": "ask",
}


def price_line(record: Any, path: str = "", required: Sequence[str] = ()) -> PriceLine:
    """A row of mark-price, index-tickers, tickers, funding-rate or opt-summary, as the marks that it states; fields in
    `required` must be there (an empty one is an empty side of a book).

    An option's vol is `markVol`, a fraction; its forward `fwdPx`. Sizes of the best bid and ask are `bid_size` and
    `ask_size` in contracts.
    """
    subject = text_at(record, "instId", path)
    for key in required:
        member(record, key, path)
    values: dict[str, Decimal] = {}
    for key, field in _MARKS.items():
        if key in record and (value := _positive_or_none(record, key, path)) is not None:
            values[field] = value
    for key, field in (("markVol", "implied_vol"), ("fwdPx", "forward")):
        if key in record and (value := _positive_or_none(record, key, path)) is not None:
            values[field] = value
    for key, field in (("bidSz", "bid_size"), ("askSz", "ask_size")):
        if key in record and (value := _non_negative(record, key, path)) is not None:
            values[field] = value
    if "fundingRate" in record and (value := optional_decimal_at(record, "fundingRate", path)) is not None:
        values["funding_rate"] = value
    return PriceLine(subject, values, optional_time_at(record, "ts", path))


def _positive_or_none(record: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    """A price > 0; 0 is an empty side of a book."""
    return _non_negative(record, key, path) or None


def open_interest_line(record: Any, path: str = "") -> tuple[str, Decimal, datetime | None]:
    """(instrument id, open interest in coins, time) of a row of public/open-interest."""
    return text_at(record, "instId", path), non_negative_at(record, "oiCcy", path), optional_time_at(record, "ts", path)


def tier_line(record: Any, path: str = "") -> TierLine:
    """A row of public/position-tiers. A row that states loan limits is one of margin trading (a loan)."""
    family = (
        next((str(record[key]) for key in ("instFamily", "uly", "ccy", "instId") if record.get(key)), "")
        if isinstance(record, Mapping)
        else ""
    )
    if not family:
        raise FieldError(joined(path, "instFamily"), FailureReason.MISSING_FIELD, "a tier of no instrument family")
    number = decimal_at(record, "tier", path)
    rates = {"imr": positive_at(record, "imr", path), "mmr": non_negative_at(record, "mmr", path)}
    for key, rate in rates.items():
        if rate > 1:
            raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{rate} is above 1")
    return TierLine(
        family=family.removesuffix("-SWAP"),
        tier=int(number),
        floor=non_negative_at(record, "minSz", path),
        cap=_positive(record, "maxSz", path),
        initial_rate=rates["imr"],
        maintenance_rate=rates["mmr"],
        max_leverage=_positive(record, "maxLever", path),
        is_loan=bool(record.get("baseMaxLoan") or record.get("quoteMaxLoan") or record.get("ccy")),
    )


def check_ladder(tiers: Sequence[TierLine]) -> None:
    """Raises inconsistent unless tiers are numbered from 1 on and ascend from 0 without overlap, with maintenance rates
    that do not fall.

    The venue states caps inclusively, so the floor of a tier may be the cap of the one below or one step above it.
    """
    cap, rate = Decimal(0), Decimal(0)
    for number, tier in enumerate(tiers):
        problem = None
        if tier.tier != number + 1:
            problem = f"tier {number + 1} is missing"
        elif number == 0 and tier.floor != 0:
            problem = f"the first tier begins at {tier.floor}"
        elif tier.floor < cap:
            problem = f"tier {tier.tier} begins at {tier.floor} below the cap {cap}"
        elif tier.cap is not None and tier.cap <= tier.floor:
            problem = f"tier {tier.tier} ends at {tier.cap}, where it begins"
        elif tier.maintenance_rate < rate:
            problem = f"the rate {tier.maintenance_rate} of tier {tier.tier} falls"
        if problem:
            raise FieldError("", FailureReason.INCONSISTENT, f"tiers of {tier.family}: {problem}")
        if tier.cap is None and number < len(tiers) - 1:
            message = f"tiers of {tier.family}: tier {tier.tier} has no end"
            raise FieldError("maxSz", FailureReason.INCONSISTENT, message)
        cap, rate = tier.cap if tier.cap is not None else cap, tier.maintenance_rate


def discount_line(record: Any, path: str = "") -> DiscountLine:
    """A row of discount-rate-interest-free-quota. Today's list `details` counts coins; the older `discountInfo` counted
    USD, as its documented sample of LTC up to 2,000,000 shows.

    Raises inconsistent unless the slices are contiguous from 0 and only the last is open, out_of_range for a rate
    outside 0..1.
    """
    currency = text_at(record, "ccy", path)
    key = "details" if isinstance(record.get("details"), list) and record["details"] else "discountInfo"
    tiers: list[tuple[Decimal, Decimal | None, Decimal]] = []
    entries = members(record, key, path)
    for number, entry in enumerate(entries):
        place = f"{joined(path, key)}[{number}]"
        rate = non_negative_at(entry, "discountRate", place)
        if rate > 1:
            raise FieldError(joined(place, "discountRate"), FailureReason.OUT_OF_RANGE, f"{rate} is above 1")
        floor, cap = non_negative_at(entry, "minAmt", place), _positive(entry, "maxAmt", place)
        before = tiers[-1][1] if tiers else Decimal(0)
        if floor != before or (cap is not None and cap <= floor):
            message = f"slices of {currency}: {floor} to {cap} does not continue at {before}"
            raise FieldError(place, FailureReason.INCONSISTENT, message)
        tiers.append((floor, cap, rate))
    if not tiers:
        raise FieldError(joined(path, key), FailureReason.MISSING_FIELD, f"no slices of {currency}")
    return DiscountLine(currency, tuple(tiers), in_coins=key == "details")


class FeeLine(NamedTuple):
    """Taker rates of an instrument type by settlement, as positive fractions of the notional."""

    inst_type: str
    coin: Decimal | None
    usdt: Decimal | None
    usdc: Decimal | None


def fee_line(record: Any, path: str = "") -> FeeLine:
    """A row of account/trade-fee; the venue states a charge as a negative rate and a rebate as a positive one."""

    def rate(key: str) -> Decimal | None:
        value = optional_decimal_at(record, key, path)
        return None if value is None else max(-value, Decimal(0))

    return FeeLine(text_at(record, "instType", path), rate("taker"), rate("takerU"), rate("takerUSDC"))


_PARTS = ("mr1", "mr2", "mr3", "mr4", "mr5", "mr6", "mr7", "mr8", "mr9")
_LATER_PARTS = ("mr8", "mr9")
# Sums of one answer agree but for their digits.
_RELATIVE, _CENT = Decimal("1e-6"), Decimal("0.01")


def _part(entry: Any, key: str, path: str) -> Decimal:
    """A part of a risk unit's margin, which the documented answer states as "0" where it is 0; older answers lack the
    last ones.
    """
    if key in _LATER_PARTS and isinstance(entry, Mapping) and key not in entry:
        return Decimal(0)
    return non_negative_at(entry, key, path)


def _check_sum(stated: Decimal, expected: Sequence[Decimal], words: str, path: str) -> None:
    """Raises inconsistent unless a total is one of the sums that its parts may give."""
    if all(abs(stated - value) > _RELATIVE * abs(stated) + _CENT for value in expected):
        message = f"{stated} is not the {expected[0]:f} of {words}"
        raise FieldError(path, FailureReason.INCONSISTENT, message)


def _check_unit(unit: RiskUnitLine) -> None:
    """That a unit's maintenance margin is that of its parts: max(max(MR1, MR2, MR6) + MR3 + MR4 + MR5, MR7).

    MR9 is taken to stand beside it; whether `mmr` holds it no page says, so that either sum agrees.
    """
    parts = unit.parts
    core = max(parts["mr1"], parts["mr2"], parts["mr6"]) + parts["mr3"] + parts["mr4"] + parts["mr5"]
    margin = max(core, parts["mr7"])
    words = "max(mr1, mr2, mr6) + mr3 + mr4 + mr5, at least mr7"
    _check_sum(unit.maintenance, (margin, margin + parts["mr9"]), words, joined(unit.path, "mmr"))


def builder_line(record: Any, path: str = "") -> BuilderLine:
    """A row of account/position-builder; raises inconsistent where a unit's margin is not that of its parts."""
    units = []
    for number, entry in enumerate(members(record, "riskUnitData", path)):
        place = f"{joined(path, 'riskUnitData')}[{number}]"
        amounts: dict[str, Decimal] = {}
        for index, held in enumerate(members(entry, "portfolios", place)):
            spot = f"{joined(place, 'portfolios')}[{index}]"
            inst_id = text_at(held, "instId", spot)
            amounts[inst_id] = amounts.get(inst_id, Decimal(0)) + decimal_at(held, "amt", spot)
        units.append(
            RiskUnitLine(
                path=place,
                unit=text_at(entry, "riskUnit", place),
                delta=_or_zero(entry, "delta", place),
                initial=non_negative_at(entry, "imr", place),
                maintenance=non_negative_at(entry, "mmr", place),
                parts={key: _part(entry, key, place) for key in _PARTS},
                amounts=amounts,
            )
        )
        _check_unit(units[-1])
    in_use: dict[str, Decimal] = {}
    borrowed = Decimal(0)
    assets = record.get("assets") or []
    if not isinstance(assets, list):
        raise FieldError(joined(path, "assets"), FailureReason.MALFORMED, "expected a list")
    for number, entry in enumerate(assets):
        place = f"{joined(path, 'assets')}[{number}]"
        in_use[text_at(entry, "ccy", place)] = _or_zero(entry, "spotInUse", place)
        borrowed += _or_zero(entry, "borrowImr", place)
    return BuilderLine(
        path=path,
        equity=decimal_at(record, "eq", path),
        initial=non_negative_at(record, "totalImr", path),
        maintenance=non_negative_at(record, "totalMmr", path),
        borrow_maintenance=_or_zero(record, "borrowMmr", path),
        borrow_initial=borrowed,
        ratio=optional_decimal_at(record, "marginRatio", path),
        units=tuple(units),
        spot_in_use=in_use,
        time=optional_time_at(record, "ts", path),
    )


def check_builder_total(line: BuilderLine) -> None:
    """Raises inconsistent unless the total maintenance margin is that of the risk units and of what is borrowed."""
    units = sum((unit.maintenance for unit in line.units), line.borrow_maintenance)
    depeg = sum((unit.parts["mr9"] for unit in line.units), Decimal(0))
    words = "the mmr of its risk units and borrowMmr"
    _check_sum(line.maintenance, (units, units + depeg), words, joined(line.path, "totalMmr"))
