"""Rows that all accounts of a Compound v3 market share: rules, weights, tokens, state, prices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Context
from ..amounts import integer_at
from ..catalog import asset_row
from ..findings import PlacedError, find_wrong, noted
from ..market_rows import add_market_state
from ..rows import Rows
from . import mechanics
from .mechanics import FACTOR_SCALE, INDEX_SCALE, PRICE_SCALE
from .parse import Listed, Listings, digits_of, read_price, read_state, sections_in_order
from .rules import base_tier_row, collateral_tier_row, rule_set_rows
from .sections import (
    USD,
    VENUE,
    Deployment,
    Deployments,
    Section,
    View,
    factor_at,
    positive_at,
    unsigned_at,
)


class Found(NamedTuple):
    """The sections of one market: an owner's only one, and those of nobody."""

    accounts: dict[str, Section]
    market: list[Section]
    configuration: list[Section]

    @property
    def shared(self) -> tuple[Section, ...]:
        """What holds for every owner, where the own snapshot does not say."""
        return (*self.market, *self.configuration)


class DollarPrice(NamedTuple):
    """Dollars of a token, and when the payload that states it was received."""

    value: Fraction
    received_at: datetime | None
    request: str


@dataclass
class Reading:
    """One call of `normalize`: what it collects."""

    rows: Rows
    context: Context
    deployments: Deployments
    found: dict[str, Found] = field(default_factory=dict)
    listings: Listings = field(default_factory=Listings)
    tokens: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """(chain, symbol) of the tokens that rows name -> their decimals as payloads state them"""
    lost: set[tuple[str, str]] = field(default_factory=set)
    """(market, owner) of accounts whose payload says nothing that can be used"""
    dollars: dict[tuple[str, str], DollarPrice] = field(default_factory=dict)
    """(chain, symbol) -> the newest price in a market that quotes dollars"""

    def knows(self, symbol: str) -> bool:
        """Whether the asset book has the token. Contract prefixes are not unfolded: kBTC is no multiple of BTC."""
        return symbol in self.context.assets.assets

    def names(self, deployment: Deployment, symbol: str, digits: int | None = None) -> bool:
        """Notes that rows name the token; whether the asset book has it."""
        if self.knows(symbol):
            known = self.tokens.setdefault((deployment.chain, symbol), set())
            known |= set() if digits is None else {digits}
        return self.knows(symbol)

    def add_tokens(self) -> None:
        """Rows of `assets`. Payloads that contradict each other give several, which the snapshot rejects."""
        for (chain, symbol), digits in sorted(self.tokens.items()):
            asset = self.context.assets.assets[symbol]
            stated: list[int | None] = [*sorted(digits)]
            for decimals in stated or [None]:
                self.rows.add("assets", **asset_row(asset, chain=chain, decimals=decimals))

    def dollar_price(self, deployment: Deployment, view: View) -> DollarPrice:
        """Dollars of what the market's feeds quote: the snapshot's own, else the newest of the chain's dollar markets.

        Raises `PlacedError` (missing_mark) where no payload says.
        """
        first = view.sections[0].payload
        if deployment.numeraire == USD:
            return DollarPrice(Fraction(1), first.received_at, first.request)
        section = view.having("numerairePrice")
        if section is not None:
            value = Fraction(section.read(positive_at, "numerairePrice"), PRICE_SCALE)
            return DollarPrice(value, section.payload.received_at, section.payload.request)
        elsewhere = self.dollars.get((deployment.chain, deployment.numeraire))
        if elsewhere is None:
            message = f"the market quotes {deployment.numeraire}, and no payload has its price in dollars"
            raise view.sections[0].error("numerairePrice", FailureReason.MISSING_MARK, message)
        return elsewhere

    def read_dollar_prices(self) -> None:
        """Prices of all tokens in markets that quote dollars, the newest of each."""
        for label, found in self.found.items():
            deployment = self.deployments.markets[label]
            if deployment.numeraire != USD:
                continue
            # oldest first, so that the newest stays
            for section in reversed(sections_in_order([*found.accounts.values(), *found.market])):
                for symbol, listed in self.listings.assets(View((section,)), deployment)[0].items():
                    self._note_price(deployment, symbol, listed)

    def _note_price(self, deployment: Deployment, symbol: str, listed: Listed) -> None:
        try:
            price, received_at = read_price(listed)
        except PlacedError:
            return  # whoever needs it says so
        key, request = (deployment.chain, symbol), listed.view.sections[0].payload.request
        known = self.dollars.get(key)
        if known is None or (known.received_at is None or received_at is None or received_at >= known.received_at):
            self.dollars[key] = DollarPrice(Fraction(price, PRICE_SCALE), received_at, request)


def base_digits(view: View) -> int:
    """Decimals of the base asset; raises `PlacedError`."""
    scale = view.read(positive_at, "baseScale")
    return digits_of(scale, view.having("baseScale") or view.sections[0], "baseScale")


def add_market(reading: Reading, deployment: Deployment, found: Found) -> None:
    """Rules, weights, state and prices of one market; what is wrong with them is a finding."""
    rows = reading.rows
    rows.rows["rule_sets"].extend(rule_set_rows(deployment))
    owned = sections_in_order(list(found.accounts.values()))
    views = [View((section, *found.shared)) for section in owned]
    if found.market or (found.configuration and not views):
        views.append(View(found.shared))
    _add_weights(reading, deployment, views)
    newest = sections_in_order([*owned, *found.market])
    _add_state(reading, deployment, View((*newest, *found.configuration)))
    for view in views:
        if view.having("baseScale") is not None:
            with noted(reading.rows, deployment.label):
                reading.names(deployment, deployment.base, base_digits(view))


def _add_weights(reading: Reading, deployment: Deployment, views: Iterable[View]) -> None:
    """Rows of `collateral_tiers`; snapshots that disagree give several of one asset, which the snapshot rejects."""
    tiers: list[dict[str, Any]] = []
    if reading.names(deployment, deployment.base):
        tiers.append(base_tier_row(deployment))
    if deployment.numeraire != USD:
        reading.names(deployment, deployment.numeraire)
    listings = {id(found): found for found in (reading.listings.assets(view, deployment) for view in views)}
    for assets, errors in listings.values():
        for error in errors:
            find_wrong(reading.rows, error, deployment.label)
        for symbol, listed in assets.items():
            with noted(reading.rows, deployment.asset_id(symbol)):
                terms = reading.listings.terms(listed)
                if reading.names(deployment, symbol, terms.digits):
                    row = collateral_tier_row(symbol, terms, deployment)
                    tiers += [row] if row not in tiers else []
    reading.rows.rows["collateral_tiers"].extend(tiers)


def _add_state(reading: Reading, deployment: Deployment, view: View) -> None:
    """Rows of `market_state`: flags as words, indices, totals, rates per year, reserves and limits in base tokens.

    Per collateral, under `<market>:<asset>`: supply cap, what is supplied and what the protocol has to sell, in tokens.
    """
    label = deployment.label

    def add(market: str, name: str, value: float | str, source: Section) -> None:
        payload = source.payload
        add_market_state(reading.rows, market, name, value, as_of=payload.received_at, source=payload.request)

    scale = None
    with noted(reading.rows, label):
        scale = view.optional(positive_at, "baseScale")
    stored = view.having("totalsBasic")
    if stored is not None:
        with noted(reading.rows, label):
            state = read_state(view)
            stopped = mechanics.paused_actions(state.pause_flags)
            indices = state.indices_at(stored.payload.received_at)
            add(label, "status", " ".join(f"{action}_paused" for action in stopped) or "active", stored)
            add(label, "supply_index", indices.supply / INDEX_SCALE, stored)
            add(label, "borrow_index", indices.borrow / INDEX_SCALE, stored)
            if scale:
                add(label, "total_supply", mechanics.present_value(state.totals.supply, indices) / scale, stored)
                add(label, "total_borrow", -mechanics.present_value(-state.totals.borrow, indices) / scale, stored)
            if state.rates is not None:
                used = mechanics.utilization(state.totals)
                add(label, "utilization", used / FACTOR_SCALE, stored)
                for side, curve in (("supply", state.rates.supply), ("borrow", state.rates.borrow)):
                    add(label, f"{side}_rate", float(mechanics.yearly_rate(curve, state.totals)), stored)
    for key, name, reader in _MARKET_STATE:
        section = view.having(key)
        with noted(reading.rows, label):
            unit = FACTOR_SCALE if reader is factor_at else scale
            if section is not None and unit:
                add(label, name, section.read(reader, key) / unit, section)
    for symbol, listed in reading.listings.assets(view, deployment)[0].items():
        market = f"{label}:{deployment.asset_id(symbol)}"
        for key, name in _ASSET_STATE if reading.knows(symbol) else ():
            section = listed.view.having(key)
            with noted(reading.rows, market):
                if section is not None:
                    add(market, name, section.read(unsigned_at, key) / listed.view.read(positive_at, "scale"), section)


_MARKET_STATE: Sequence[tuple[str, str, Callable[[Any, str, str], int]]] = (
    ("baseBorrowMin", "base_borrow_min", unsigned_at),
    ("targetReserves", "target_reserves", unsigned_at),
    ("reserves", "reserves", integer_at),
    ("storeFrontPriceFactor", "store_front_price_factor", factor_at),
)
_ASSET_STATE: Sequence[tuple[str, str]] = (
    ("supplyCap", "supply_cap"),
    ("totalSupplyAsset", "total_supply"),
    ("collateralReserves", "collateral_reserves"),
)


def add_market_prices(reading: Reading) -> None:
    """Prices of market-wide payloads as marks of the venue, where its markets agree; accounts carry their own."""
    prices: dict[str, list[dict[str, Any]]] = {}
    for label, found in sorted(reading.found.items()):
        deployment = reading.deployments.markets[label]
        if not found.market:
            continue
        view = View(found.shared)
        with noted(reading.rows, label):
            unit = reading.dollar_price(deployment, view)
            stated: dict[str, int] = {}
            if view.having("basePrice") is not None:
                stated[deployment.base] = view.read(positive_at, "basePrice")
            for symbol, listed in reading.listings.assets(view, deployment)[0].items():
                if listed.view.having("price") is not None:
                    with noted(reading.rows, deployment.asset_id(symbol)):
                        stated[symbol] = read_price(listed)[0]
            for symbol in filter(reading.knows, stated):
                asset_id = deployment.asset_id(symbol)
                mark = mark_row(asset_id, Fraction(stated[symbol], PRICE_SCALE) * unit.value, view.sections[0])
                prices.setdefault(asset_id, []).append(mark)
    for marks in prices.values():
        if len({mark["value"] for mark in marks}) == 1:
            reading.rows.rows["marks"].append(marks[0])


def mark_row(subject: str, dollars: Fraction, section: Section, account: str | None = None) -> dict[str, Any]:
    """One row of `marks`: an oracle price in dollars."""
    return {
        "venue": VENUE,
        "account_id": account,
        "subject": subject,
        "field": "oracle",
        "value": float(dollars),
        "as_of": section.payload.received_at,
        "source": section.payload.request,
    }
