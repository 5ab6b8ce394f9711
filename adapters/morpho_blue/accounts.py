"""Rows of Morpho Blue: an owner's position in one market is one account, valued in the market's loan token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

from aggregator.errors import FailureReason
from aggregator.schema.decimals import quantize

from ..adapter import Asset, Context
from ..amounts import time_of, token_amount
from ..catalog import asset_row
from ..fields import text_of
from ..findings import fail_account, find_wrong, or_failure, or_finding
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import account_id
from . import mechanics
from .mechanics import ORACLE_PRICE_SCALE, WAD, Market
from .rules import collateral_tier_row, rule_set_id, rule_set_rows
from .settings import Settings, Token
from .snapshots import (
    VENUE,
    Snapshot,
    decimals,
    non_negative_decimal,
    positive256,
    positive_decimal,
    uint128,
    uint256,
    wad_fraction,
)

_T = TypeVar("_T")
_NOBODY = "0x" + "0" * 40
_SECONDS_PER_YEAR = 31_536_000


class MarketKey(NamedTuple):
    """A market is its chain and its id."""

    chain: str
    market_id: str


@dataclass
class Reading:
    """One call of `normalize`: what it collects."""

    rows: Rows
    context: Context
    settings: Settings
    positions: dict[tuple[MarketKey, str], list[Snapshot]] = field(default_factory=dict)
    """(market, owner) -> the owner's own snapshots, the contract's first"""
    markets: dict[MarketKey, list[Snapshot]] = field(default_factory=dict)
    """market -> snapshots of nobody, the contract's first"""
    tokens: dict[tuple[str, str], Snapshot] = field(default_factory=dict)
    """(chain, address) -> what a list of tokens says"""
    refused_tokens: dict[tuple[str, str], Snapshot] = field(default_factory=dict)
    """(chain, address) of tokens with several entries, all rejected; what they said is not replaced by par"""
    named: dict[str, set[tuple[str, str, int | None]]] = field(default_factory=dict)
    """asset id -> (symbol, chain, decimals) of the tokens that rows name"""
    weights: dict[tuple[str, str], dict[int, None]] = field(default_factory=dict)
    """(market's label, collateral) -> LLTVs that payloads state"""

    def label(self, key: MarketKey) -> str:
        """Name of a market in ids."""
        return self.settings.label(*key)

    def add_tokens(self) -> None:
        """Rows of `assets`; payloads that contradict each other give several, which the snapshot rejects."""
        for _, entries in sorted(self.named.items()):
            for symbol, chain, digits in sorted(entries, key=str):
                asset = self.context.assets.assets[symbol]
                self.rows.add("assets", **asset_row(asset, chain=chain, decimals=digits))

    def add_rules(self) -> None:
        """Rule sets and weights of the markets that accounts or payloads name."""
        keys = {*self.markets, *(key for key, _ in self.positions)}
        for label in sorted({self.label(key) for key in keys}):
            rule_set = rule_set_rows(label, source=self.settings.source, read_at=self.settings.as_of)
            self.rows.rows["rule_sets"].extend(rule_set)
        for (label, asset_id), stated in sorted(self.weights.items()):
            # several: the snapshot rejects them, and whoever holds the collateral is incomplete
            self.rows.rows["collateral_tiers"].extend(collateral_tier_row(label, asset_id, lltv) for lltv in stated)


class _Held(NamedTuple):
    """A token of a market, with what moves it."""

    asset_id: str
    digits: int
    asset: Asset


@dataclass(frozen=True)
class View:
    """All snapshots that speak of one market, the most specific first; never empty."""

    reading: Reading
    key: MarketKey
    snapshots: tuple[Snapshot, ...]

    def having(self, name: str) -> Snapshot | None:
        """The first snapshot that states a fact."""
        return next((snapshot for snapshot in self.snapshots if snapshot.has(name)), None)

    def read(self, reader: Callable[[Any, str], _T], name: str) -> _T:
        """The fact of the first snapshot that states it; `PlacedError` where none does."""
        return (self.having(name) or self.snapshots[0]).read(reader, name)

    def token(self, side: str) -> _Held:
        """The loan or the collateral token. Raises `PlacedError` (unknown_asset, inconsistent) for an unknown one."""
        where = self.having(f"{side}_token") or self.snapshots[0]
        address = where.read(text_of, f"{side}_token").lower()
        configured = self.reading.settings.tokens.get((self.key.chain, address), Token(None, None))
        listed = self.reading.tokens.get((self.key.chain, address))
        symbol, digits = configured
        stated: int | None = None
        stating, fact = self.having(f"{side}_decimals"), f"{side}_decimals"
        if stating is None and listed is not None and listed.has("decimals"):
            stating, fact = listed, "decimals"
        if stating is not None:
            stated = stating.read(decimals, fact)
        if symbol is None and self.having(f"{side}_symbol") is not None:
            symbol = self.read(text_of, f"{side}_symbol")
        elif symbol is None and listed is not None and listed.has("symbol"):
            symbol = listed.read(text_of, "symbol")
        if stating is not None and digits is not None and digits != stated:
            message = f"{stated} decimals, the parameter file says {digits}"
            raise stating.error(fact, FailureReason.INCONSISTENT, message)
        digits = stated if digits is None else digits
        # Not `resolve`: that unfolds contract names such as kPEPE, and a token on a chain is no multiple of another.
        asset = self.reading.context.assets.assets.get(symbol) if symbol is not None else None
        if asset is None or symbol is None:
            named = (
                f"token {symbol[:60]!r}" if symbol else f"no payload and no parameter names the token {address[:60]}"
            )
            message = f"{named} is not in the asset book" if symbol else named
            raise where.error(f"{side}_token", FailureReason.UNKNOWN_ASSET, message)
        if digits is None:
            raise where.error(f"{side}_decimals", FailureReason.MISSING_FIELD, f"no decimals of {symbol}")
        asset_id = f"{symbol}@{self.key.chain}"
        self.reading.named.setdefault(asset_id, set()).add((symbol, self.key.chain, digits))
        return _Held(asset_id, digits, asset)

    def loan_dollars(self, loan: _Held) -> tuple[Fraction, Snapshot] | None:
        """Dollars of a loan token and who says so; None for a stable token without a price, which counts at par."""
        stated = self.having("loan_usd")
        if stated is not None:
            return Fraction(stated.read(positive_decimal, "loan_usd")), stated
        where = self.having("loan_token") or self.snapshots[0]
        token = self.key.chain, where.read(text_of, "loan_token").lower()
        listed, refused = self.reading.tokens.get(token), self.reading.refused_tokens.get(token)
        if refused is not None:
            raise refused.error("usd", FailureReason.DUPLICATE, f"several prices of {loan.asset_id}; all rejected")
        if listed is not None and listed.has("usd"):
            return Fraction(listed.read(positive_decimal, "usd")), listed
        if loan.asset.risk_factor is None:
            return None
        message = f"the oracle quotes {loan.asset_id}, and no payload has its price in dollars"
        raise where.error("loan_usd", FailureReason.MISSING_MARK, message)

    def totals(self) -> tuple[Market, Snapshot] | None:
        """The market's totals as stated, of the first snapshot that has all four; None where none has."""
        where = next((snapshot for snapshot in self.snapshots if snapshot.has_totals()), None)
        if where is None:
            return None
        fee = where.read(uint128, "fee") if where.has("fee") else 0
        return (
            Market(
                total_supply_assets=where.read(uint128, "total_supply_assets"),
                total_supply_shares=where.read(uint128, "total_supply_shares"),
                total_borrow_assets=where.read(uint128, "total_borrow_assets"),
                total_borrow_shares=where.read(uint128, "total_borrow_shares"),
                fee=fee,
            ),
            where,
        )

    def borrow_rate(self) -> int | None:
        """Rate per second, wad; 0 in a market without an interest model, None where nobody says."""
        irm = self.having("irm")
        if irm is not None and irm.read(text_of, "irm").lower() == _NOBODY:
            return 0
        return None if self.having("borrow_rate") is None else self.read(uint128, "borrow_rate")

    def elapsed(self, where: Snapshot, moment: datetime | None) -> int:
        """Seconds of interest that totals of the contract lack at `moment`; 0 for totals of the API."""
        if where.source != "contract" or moment is None:
            return 0
        return max(int(moment.timestamp()) - where.read(uint128, "last_update"), 0)

    def oracle_price(self, loan: _Held, collateral: _Held) -> Fraction:
        """Loan tokens per collateral token."""
        price = self.read(positive256, "price")
        return Fraction(price * 10**collateral.digits, ORACLE_PRICE_SCALE * 10**loan.digits)


def add_account_row(reading: Reading, key: MarketKey, owner: str, unit: str, **columns: Any) -> str:
    """The account's row, whatever else can be read of it; returns its id."""
    label = reading.label(key)
    account = account_id(VENUE, owner, label)
    reading.rows.add(
        "accounts",
        account_id=account,
        node=account,
        venue=VENUE,
        chain=key.chain,
        owner=owner,
        margin_mode="lending",
        rule_set=rule_set_id(label),
        settlement_asset=unit,
        **columns,
    )
    return account


def add_account(reading: Reading, key: MarketKey, owner: str) -> None:
    """Rows of one position; what is unreadable makes the account incomplete, the rest of it stays."""
    own = reading.positions[key, owner]
    # the contract's facts before the API's, of equal source the owner's before the market's
    view = View(
        reading, key, tuple(sorted((*own, *reading.markets.get(key, ())), key=lambda s: s.source != "contract"))
    )
    _Account(reading, account_id(VENUE, owner, reading.label(key)), owner, own, view).read()


@dataclass(frozen=True)
class _Account:
    """Reads one account; its failures carry its id."""

    reading: Reading
    account: str
    owner: str
    own: Sequence[Snapshot]
    view: View

    def read(self) -> None:
        view, reading = self.view, self.reading
        first = self.own[0]
        moment = first.payload.received_at
        shares = self._tried(lambda: view.read(uint128, "borrow_shares"))
        collateral = self._tried(lambda: view.read(uint128, "collateral"))
        loan = self._tried(lambda: view.token("loan"))
        totals = self._tried(view.totals) if shares or self._lends() else None
        health = self._tried_finding(lambda: self._reported_health(shares))
        stated_at = self._tried_finding(lambda: self._stated_at(totals))
        add_account_row(
            reading,
            view.key,
            self.owner,
            loan.asset_id if loan else "USD",
            received_at=moment,
            event_at=stated_at,
            reported_health=health,
        )
        if loan is None or shares is None or collateral is None:
            return
        dollars = self._tried(lambda: _Dollars(view.loan_dollars(loan)))
        market = None if totals is None else self._tried(lambda: self._accrued(*totals, moment, shares))
        debt = self._tried(lambda: self._amount(shares, market, "borrow")) if shares else 0
        lent = self._tried(lambda: self._lent(market))
        held = self._tried(lambda: view.token("collateral")) if collateral else None
        if held is not None and held.asset_id == loan.asset_id and lent:
            message = "the collateral is the loan token, and the owner lends it too: one asset twice on one side"
            fail_account(self.reading.rows, first.error("collateral", FailureReason.UNSUPPORTED, message), self.account)
            return
        if dollars is not None and dollars.found is not None:
            value, source = dollars.found
            self._mark(loan.asset_id, "index", value, source)
        if debt:
            self._balance(loan, "liability", debt, counts=True)
            rate = self._tried_finding(view.borrow_rate)
            if rate is not None:
                yearly = Fraction(rate * _SECONDS_PER_YEAR, WAD)
                self._mark(loan.asset_id, "borrow_rate", yearly, view.having("borrow_rate") or first)
        if lent:
            self._balance(loan, "asset", lent, counts=False)
        if held is not None:
            self._tried(lambda: self._add_collateral(held, loan, collateral, dollars))

    def _add_collateral(self, held: _Held, loan: _Held, amount: int, dollars: _Dollars | None) -> None:
        self._balance(held, "asset", amount, counts=True)
        lltv = self.view.read(wad_fraction, "lltv")
        self.reading.weights.setdefault((self.reading.label(self.view.key), held.asset_id), {})[lltv] = None
        price = self.view.oracle_price(loan, held)
        if dollars is not None:
            unit = dollars.found[0] if dollars.found is not None else Fraction(1)
            self._mark(held.asset_id, "oracle", price * unit, self.view.having("price") or self.own[0])

    def _accrued(self, market: Market, where: Snapshot, moment: datetime | None, shares: int) -> Market:
        """Totals accrued to the receive time where the rate is known; else as stored, which is a finding."""
        elapsed, rate = self.view.elapsed(where, moment), self.view.borrow_rate()
        if rate is not None:
            return mechanics.accrued(market, rate, elapsed)
        if elapsed and market.total_borrow_assets:
            message = f"no borrow rate: the totals are {elapsed} s old"
            wrong = where.error("last_update", FailureReason.MISSING_PARAMETER, message)
            find_wrong(self.reading.rows, wrong, self.account)
        return market

    def _amount(self, shares: int, market: Market | None, side: str) -> int:
        """Tokens of shares by the market's totals, else what the venue states."""
        if market is not None:
            of_shares = mechanics.borrowed_assets if side == "borrow" else mechanics.supplied_assets
            return of_shares(shares, market)
        if any(snapshot.has(f"{side}_assets") for snapshot in self.own):
            return self.view.read(uint128, f"{side}_assets")
        raise self.own[0].error(
            f"total_{side}_assets", FailureReason.MISSING_FIELD, "no payload has the market's totals"
        )

    def _lends(self) -> bool:
        return any(snapshot.has("supply_shares") for snapshot in self.own)

    def _lent(self, market: Market | None) -> int:
        if not self._lends():
            return self.view.read(uint128, "supply_assets")
        shares = self.view.read(uint256, "supply_shares")
        return self._amount(shares, market, "supply") if shares else 0

    def _reported_health(self, shares: int | None) -> Decimal | None:
        where = next((snapshot for snapshot in self.own if snapshot.has("health")), None)
        return quantize(where.read(non_negative_decimal, "health")) if where is not None and shares else None

    @staticmethod
    def _stated_at(totals: tuple[Market, Snapshot] | None) -> datetime | None:
        where = totals[1] if totals is not None else None
        return where.read(time_of, "stated_at") if where is not None and where.has("stated_at") else None

    def _balance(self, token: _Held, side: str, amount: int, *, counts: bool) -> None:
        self.reading.rows.add(
            "balances",
            account_id=self.account,
            asset_id=token.asset_id,
            side=side,
            quantity=token_amount(amount, token.digits),
            collateral_enabled=counts,
        )

    def _mark(self, subject: str, name: str, dollars: Fraction, source: Snapshot) -> None:
        rows, payload = self.reading.rows, source.payload
        as_of, request = payload.received_at, payload.request
        add_mark(rows, subject, name, dollars, as_of=as_of, source=request, account_id=self.account)

    def _tried(self, step: Callable[[], _T]) -> _T | None:
        return or_failure(self.reading.rows, step, self.account)

    def _tried_finding(self, step: Callable[[], _T]) -> _T | None:
        # The venue's own figures are for comparison.
        return or_finding(self.reading.rows, step, self.account)


class _Dollars(NamedTuple):
    """Dollars of the loan token and who says so; None where it counts at par."""

    found: tuple[Fraction, Snapshot] | None


# Markets --------------------------------------------------------------------------------------------------------------


def add_market(reading: Reading, key: MarketKey, snapshots: Sequence[Snapshot]) -> None:
    """A market's weight and its rows of `market_state`, from the newest snapshots; what is wrong is a finding.

    Totals in loan tokens, utilization, rate per year, LLTV, fee on interest, and the oracle's price in loan tokens per
    collateral token.
    """
    view, label = View(reading, key, tuple(snapshots)), reading.label(key)

    def noted(step: Callable[[], _T]) -> _T | None:
        return or_finding(reading.rows, step, label)

    def add(name: str, value: Fraction | float, source: Snapshot) -> None:
        payload = source.payload
        add_market_state(reading.rows, label, name, value, as_of=payload.received_at, source=payload.request)

    loan = noted(lambda: view.token("loan"))
    stated = view.having("collateral_token")
    is_idle = stated is None or noted(lambda: stated.read(text_of, "collateral_token")) == _NOBODY
    held = None if is_idle else noted(lambda: view.token("collateral"))
    found = noted(view.totals)
    if found is not None and loan is not None:
        market, where = found
        rate = noted(view.borrow_rate)
        elapsed = noted(lambda: view.elapsed(where, where.payload.received_at)) or 0
        market = mechanics.accrued(market, rate or 0, elapsed)
        add("total_supply", Fraction(market.total_supply_assets, 10**loan.digits), where)
        add("total_borrow", Fraction(market.total_borrow_assets, 10**loan.digits), where)
        if market.total_supply_assets:
            add("utilization", Fraction(market.total_borrow_assets, market.total_supply_assets), where)
        if where.has("fee"):
            add("fee", Fraction(market.fee, WAD), where)
        if rate is not None:
            add("borrow_rate", Fraction(rate * _SECONDS_PER_YEAR, WAD), view.having("borrow_rate") or where)
    if is_idle:
        return
    lltv, source = noted(lambda: view.read(wad_fraction, "lltv")), view.having("lltv")
    if lltv is not None and source is not None:
        add("lltv", Fraction(lltv, WAD), source)
        if held is not None:
            reading.weights.setdefault((label, held.asset_id), {})[lltv] = None
    priced = view.having("price")
    if priced is not None and loan is not None and held is not None:
        price = noted(lambda: view.oracle_price(loan, held))
        if price is not None:
            add("oracle_price", price, priced)
