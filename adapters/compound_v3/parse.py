"""Reads what the sections of one Compound v3 market say: totals, curves, collateral assets, and one account.

Integers stay integers (smallest units, 1e8 prices, 1e15 indices, 1e18 factors) until they become rows. Every function
raises `PlacedError`, which names payload and field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, integer_at, joined, member, members
from ..fields import text_at
from ..findings import PlacedError
from .mechanics import (
    Base,
    Collateral,
    Curve,
    Indices,
    Rates,
    Totals,
    accrued_indices,
    assets_in,
    present_value,
)
from .sections import (
    CONFIGURATION,
    FACTORS,
    Deployment,
    Section,
    View,
    factor_at,
    positive_at,
    struct_at,
    uint64_at,
    unsigned_at,
)

_TOTALS = struct_at(
    (
        "baseSupplyIndex",
        "baseBorrowIndex",
        "trackingSupplyIndex",
        "trackingBorrowIndex",
        "totalSupplyBase",
        "totalBorrowBase",
        "lastAccrualTime",
        "pauseFlags",
    )
)
_USER = struct_at(("principal", "baseTrackingIndex", "baseTrackingAccrued", "assetsIn", "_reserved"))
_BALANCE = struct_at(("balance", "_reserved"))
_LATEST_S = 2**40
_CLOCK_TOLERANCE_S = 300


def _principal_at(record: Any, key: str, path: str = "") -> int:
    value = integer_at(record, key, path)
    if abs(value) >= 2**103:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{str(value)[:60]} is no int104")
    return value


def _index_at(record: Any, key: str, path: str = "") -> int:
    positive_at(record, key, path)
    return uint64_at(record, key, path)


# The market -----------------------------------------------------------------------------------------------------------


class MarketState(NamedTuple):
    """Totals and flags of a market as stored at `updated_at_s` (epoch seconds; 0 when the payload does not say)."""

    totals: Totals
    updated_at_s: int
    pause_flags: int
    rates: Rates | None

    def indices_at(self, moment: datetime | None) -> Indices:
        """Indices accrued to `moment`; as stored without a time on either side, or without a curve.

        A receive time just before the block of the last accrual is another clock, not a time to go back to.
        """
        elapsed = self.elapsed(moment)
        return self.totals.indices if self.rates is None else accrued_indices(self.totals, self.rates, elapsed)

    def elapsed(self, moment: datetime | None) -> int:
        """Seconds from the last accrual to `moment`, at least 0."""
        if moment is None or self.updated_at_s == 0:
            return 0
        return max(int(moment.timestamp()) - self.updated_at_s, 0)


def read_state(view: View) -> MarketState:
    """Totals, pause flags and interest curves. Totals of 0 are read where only the indices are given."""
    section = view.having("totalsBasic") or view.sections[0]
    stored = section.inside("totalsBasic", section.read(_TOTALS, "totalsBasic"))
    indices = Indices(stored.read(_index_at, "baseSupplyIndex"), stored.read(_index_at, "baseBorrowIndex"))
    rates = read_rates(view)
    needed = rates is not None
    totals = Totals(indices, _optional(stored, "totalSupplyBase", needed), _optional(stored, "totalBorrowBase", needed))
    updated = _optional(stored, "lastAccrualTime", needed)
    if updated >= _LATEST_S:
        raise stored.error("lastAccrualTime", FailureReason.OUT_OF_RANGE, f"{updated} is no uint40")
    return MarketState(totals, updated, _optional(stored, "pauseFlags"), rates)


def _optional(section: Section, key: str, required: bool = False) -> int:
    return section.read(unsigned_at, key) if required or section.body.get(key) is not None else 0


def read_rates(view: View) -> Rates | None:
    """The two curves from the getters, or the two rates of the stored utilization as flat curves; None without either.

    Some of the eight getters without the others are a failure.
    """
    if view.having("borrowPerSecondInterestRateBase") or view.having("borrowKink"):
        return Rates(_curve(view, "supply"), _curve(view, "borrow"))
    if view.having("borrowRate") is not None:
        supply, borrow = view.read(uint64_at, "supplyRate"), view.read(uint64_at, "borrowRate")
        return Rates(Curve(0, 0, 0, supply), Curve(0, 0, 0, borrow))
    return None


def _curve(view: View, side: str) -> Curve:
    rate = f"{side}PerSecondInterestRate"
    return Curve(
        kink=view.read(uint64_at, f"{side}Kink"),
        slope_low=view.read(uint64_at, f"{rate}SlopeLow"),
        slope_high=view.read(uint64_at, f"{rate}SlopeHigh"),
        base=view.read(uint64_at, f"{rate}Base"),
    )


def read_base(view: View) -> Base:
    """Price and scale of the base asset."""
    return Base(view.read(positive_at, "basePrice"), view.read(positive_at, "baseScale"))


def digits_of(scale: int, section: Section, key: str) -> int:
    """Decimals of a scale; `PlacedError` unless it is a power of ten."""
    digits = len(str(scale)) - 1
    if scale != 10**digits or digits > 36:
        raise section.error(key, FailureReason.INCONSISTENT, f"scale {str(scale)[:40]} is no power of ten")
    return digits


# Collateral assets ----------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """One collateral asset: its records in the sections that name it, the most specific first."""

    symbol: str
    view: View


def read_assets(view: View, deployment: Deployment) -> tuple[dict[str, Listed], list[PlacedError]]:
    """Collateral by symbol, in the order of the sections, and what could not be told apart.

    Snapshots say which assets there are; a configuration adds what they leave out of these, and lists the assets only
    where no snapshot does. An asset that stands twice in one section is in no result.
    """
    records: dict[str, list[tuple[int, Section]]] = {}
    errors: list[PlacedError] = []
    twice: set[str] = set()
    for section in view.sections:
        if section.body.get("assets") is None:
            continue
        try:
            found = section.read(members, "assets")
        except PlacedError as error:
            errors.append(error)
            continue
        only_adds = bool(records) and section.payload.request.startswith(CONFIGURATION)
        seen: set[str] = set()
        for number, record in enumerate(found):
            inner = Section(section.payload, joined(joined(section.path, "assets"), number), record)
            try:
                symbol = _symbol(inner, deployment)
            except PlacedError as error:
                errors.append(error)
                continue
            if symbol in seen:
                twice.add(symbol)
                errors.append(inner.error("", FailureReason.DUPLICATE, f"{symbol} is listed twice; all rejected"))
            seen.add(symbol)
            if symbol in records or not only_adds:
                records.setdefault(symbol, []).append((number, inner))
    return {symbol: _listed(symbol, found) for symbol, found in records.items() if symbol not in twice}, errors


def _listed(symbol: str, records: list[tuple[int, Section]]) -> Listed:
    """An asset whose offset is its place in the first list, where no record states one."""
    number, first = records[0]
    if all(section.body.get("offset") is None for _, section in records):
        first = first._replace(body={**first.body, "offset": number})
    return Listed(symbol, View((first, *(section for _, section in records[1:]))))


def _symbol(section: Section, deployment: Deployment) -> str:
    """The asset book's symbol of a record: its own `symbol`, else that of its address, else `asset` as it stands."""
    if isinstance(section.body, Mapping) and section.body.get("symbol") is not None:
        return section.read(text_at, "symbol")
    named = section.read(text_at, "asset")
    return deployment.tokens.get(named.lower(), named)


class Terms(NamedTuple):
    """What the market says of one collateral asset, prices aside."""

    offset: int
    scale: int
    digits: int
    borrow_factor: int
    liquidate_factor: int
    liquidation_factor: int


class Listings:
    """Assets of each combination of sections, read once: most owners have no list of their own."""

    def __init__(self) -> None:
        self._listings: dict[tuple[str, tuple[int, ...]], tuple[dict[str, Listed], list[PlacedError]]] = {}
        self._terms: dict[int, Terms | PlacedError] = {}
        self._kept: list[View] = []

    def assets(self, view: View, deployment: Deployment) -> tuple[dict[str, Listed], list[PlacedError]]:
        """As `read_assets`."""
        key = deployment.label, tuple(id(s.body) for s in view.sections if s.body.get("assets") is not None)
        if key not in self._listings:
            self._kept.append(view)  # an id speaks of an object only while that lives
            self._listings[key] = read_assets(view, deployment)
        return self._listings[key]

    def terms(self, listed: Listed) -> Terms:
        """As `read_terms`, of an asset of these listings."""
        found = self._terms.get(id(listed))
        if found is None:
            try:
                found = read_terms(listed)
            except PlacedError as error:
                found = error
            self._terms[id(listed)] = found
        if isinstance(found, PlacedError):
            raise PlacedError(found.payload, found)
        return found


def read_terms(listed: Listed) -> Terms:
    """Scale and factors of an asset. The borrow factor must be below the liquidation factor, or both 0."""
    view = listed.view
    borrow, liquidate, penalty = (view.read(factor_at, key) for key in FACTORS)
    if borrow >= liquidate and (borrow or liquidate):
        raise view.sections[0].error(
            FACTORS[0], FailureReason.INCONSISTENT, f"borrow factor {borrow} is not below {FACTORS[1]} {liquidate}"
        )
    scale = view.read(positive_at, "scale")
    digits = digits_of(scale, view.having("scale") or view.sections[0], "scale")
    return Terms(view.read(unsigned_at, "offset"), scale, digits, borrow, liquidate, penalty)


def read_price(listed: Listed) -> tuple[int, datetime | None]:
    """Price (1e8 of the numeraire) of an asset, and when the payload that states it was received."""
    section = listed.view.having("price")
    if section is None:
        first = listed.view.sections[0]
        raise first.error("price", FailureReason.MISSING_MARK, f"no price of {listed.symbol}")
    return section.read(positive_at, "price"), section.payload.received_at


# An account -----------------------------------------------------------------------------------------------------------


class Holding(NamedTuple):
    """What an account has of one collateral asset."""

    symbol: str
    balance: int
    price: int
    priced_at: datetime | None
    terms: Terms

    @property
    def collateral(self) -> Collateral:
        """As the mechanics take it."""
        terms = self.terms
        return Collateral(
            self.balance,
            self.price,
            terms.scale,
            terms.borrow_factor,
            terms.liquidate_factor,
            terms.liquidation_factor,
        )


class User(NamedTuple):
    """`userBasic`: the signed principal, and the offsets of the collateral held (None when the payload lacks them)."""

    principal: int
    offsets: frozenset[int] | None


def read_user(section: Section) -> User:
    """The account's own struct."""
    stored = section.inside("userBasic", section.read(_USER, "userBasic"))
    offsets = None
    if stored.body.get("assetsIn") is not None:
        offsets = assets_in(stored.read(unsigned_at, "assetsIn"), _optional(stored, "_reserved"))
    return User(stored.read(_principal_at, "principal"), offsets)


def read_holdings(
    section: Section, user: User, assets: Mapping[str, Listed], deployment: Deployment, listings: Listings
) -> tuple[list[Holding], list[PlacedError]]:
    """Collateral of an account, by offset, and what of it cannot be used.

    Balances stand in the records of the assets (`userCollateral`), or under `userCollateral` of the snapshot by token.
    They must agree with the account's bits; without bits every listed asset needs a balance.
    """
    holdings: list[Holding] = []
    errors: list[PlacedError] = []
    offsets: set[int] = set()
    try:
        own = _own_balances(section, assets, deployment)
    except PlacedError as error:
        return [], [error]
    for symbol in own.keys() - assets.keys():
        try:
            if own[symbol].read(balance_at, "balance"):
                message = f"{symbol} is no collateral of {deployment.label}"
                raise own[symbol].error("", FailureReason.UNKNOWN_MARKET, message)
        except PlacedError as error:
            errors.append(error)
    for symbol, listed in assets.items():
        try:
            offset = listed.view.read(unsigned_at, "offset")
            held_by_bit = None if user.offsets is None else offset in user.offsets
            if held_by_bit is not None and offset in offsets:
                raise listed.view.sections[0].error(
                    "offset", FailureReason.INCONSISTENT, f"another asset has the offset {offset} too"
                )
            offsets.add(offset)
            balance = _balance(listed, own.get(symbol), section)
            if balance is None and held_by_bit is not False:
                raise listed.view.sections[0].error(
                    "userCollateral", FailureReason.MISSING_FIELD, f"no balance of {symbol}"
                )
            if held_by_bit is not None and balance is not None and (balance > 0) != held_by_bit:
                raise listed.view.sections[0].error(
                    "userCollateral", FailureReason.INCONSISTENT, f"balance {balance} against the bit of assetsIn"
                )
            if balance:
                price, priced_at = read_price(listed)
                holdings.append(Holding(symbol, balance, price, priced_at, listings.terms(listed)))
        except PlacedError as error:
            errors.append(error)
    for offset in sorted((user.offsets or frozenset()) - offsets):
        message = f"assetsIn has the bit of asset {offset}, which no payload lists"
        errors.append(section.error("userBasic.assetsIn", FailureReason.MISSING_FIELD, message))
    return sorted(holdings, key=lambda held: held.terms.offset), errors


def balance_at(record: Any, key: str, path: str = "") -> int:
    """A balance that stands as a struct `UserCollateral`, or as the bare number of `collateralBalanceOf`."""
    if isinstance(member(record, key, path), Mapping | list):
        return unsigned_at(_BALANCE(record, key, path), "balance", joined(path, key))
    return unsigned_at(record, key, path)


def _own_balances(section: Section, assets: Mapping[str, Listed], deployment: Deployment) -> dict[str, Section]:
    """`userCollateral` of the snapshot by symbol, each as a section with the one key `balance`."""
    names: dict[str, str] = dict(deployment.tokens)
    for symbol, listed in assets.items():
        for record in listed.view.sections:
            address = record.body.get("asset")
            if isinstance(address, str):
                names[address.lower()] = symbol
    stated = section.body.get("userCollateral")
    if stated is None:
        return {}
    if not isinstance(stated, Mapping):
        raise section.error("userCollateral", FailureReason.MALFORMED, "expected balances by token")
    inner = section.inside("userCollateral", stated)
    out: dict[str, Section] = {}
    for token, value in stated.items():
        symbol = names.get(str(token).lower()) or str(token)
        if symbol in out:
            raise inner.error(token, FailureReason.DUPLICATE, f"{symbol} stands twice; all rejected")
        out[symbol] = inner.inside(token, {"balance": value})
    return out


def _balance(listed: Listed, own: Section | None, section: Section) -> int | None:
    if own is not None:
        return own.read(balance_at, "balance")
    for record in listed.view.sections:
        # a market's answer has no balances of anybody
        if record.payload is section.payload and record.body.get("userCollateral") is not None:
            return record.read(balance_at, "userCollateral")
    return None


def read_reported_balance(section: Section, principal: int) -> int | None:
    """The venue's own base balance on the side of the principal, signed, accrued by it; None when not stated.

    `borrowBalanceOf` of a debt, `balanceOf` of a supply.
    """
    key, sign = ("borrowBalanceOf", -1) if principal < 0 else ("balanceOf", 1)
    return None if section.body.get(key) is None else sign * section.read(unsigned_at, key)


def contradiction(section: Section, principal: int, state: MarketState, moment: datetime | None) -> PlacedError | None:
    """Why the balance that the venue states cannot be that of the principal at any time around the snapshot, or None.

    It lies between that of the stored indices and that of a few minutes past the receive time; without a curve nothing
    bounds it from above.
    """
    stated = read_reported_balance(section, principal)
    if stated is None:
        return None
    least = abs(present_value(principal, state.totals.indices))
    most = abs(stated)
    if state.rates is not None:
        latest = accrued_indices(state.totals, state.rates, state.elapsed(moment) + _CLOCK_TOLERANCE_S)
        most = abs(present_value(principal, latest))
    if least <= abs(stated) <= most:
        return None
    return section.error(
        "borrowBalanceOf" if principal < 0 else "balanceOf",
        FailureReason.INCONSISTENT,
        f"the venue states {abs(stated)}, the principal is worth at least {least}"
        + (f" and at most {most}" if state.rates is not None else ""),
    )


def sections_in_order(sections: Sequence[Section]) -> list[Section]:
    """Newest first; of equal age by name and path, so that the order of the payloads does not matter."""

    def key(section: Section) -> tuple[float, str, str]:
        moment = section.payload.received_at
        return (-moment.timestamp() if moment is not None else 0.0, section.payload.name, section.path)

    return sorted(sections, key=key)
