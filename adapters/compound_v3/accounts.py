"""One account of Compound v3: base balance, collateral, the prices it is valued at, and what the venue says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import TypeVar

from aggregator.errors import FailureReason

from ..amounts import token_amount
from ..fields import flag_at
from ..findings import fail_account, noted, or_failure
from ..market_rows import add_mark
from ..symbols import account_id
from . import mechanics
from .markets import Found, Reading, mark_row
from .mechanics import PRICE_SCALE, Base, Indices
from .parse import (
    Holding,
    MarketState,
    User,
    contradiction,
    digits_of,
    read_base,
    read_holdings,
    read_reported_balance,
    read_state,
    read_user,
)
from .sections import USD, VENUE, Deployment, Section, View

_T = TypeVar("_T")
_VERDICTS = (
    ("isLiquidatable", mechanics.is_liquidatable),
    ("isBorrowCollateralized", mechanics.is_borrow_collateralized),
)


def add_account_row(reading: Reading, deployment: Deployment, owner: str, received_at: datetime | None) -> str:
    """The account's row, whatever else can be read of it; returns its id."""
    account = account_id(VENUE, owner, deployment.label)
    reading.rows.add(
        "accounts",
        account_id=account,
        node=account,
        venue=VENUE,
        chain=deployment.chain,
        owner=owner,
        margin_mode="lending",
        rule_set=deployment.rule_set,
        settlement_asset=deployment.settlement_asset,
        received_at=received_at,
    )
    if deployment.numeraire != USD:
        reading.names(deployment, deployment.numeraire)
    return account


def add_account(reading: Reading, deployment: Deployment, owner: str, found: Found) -> None:
    """Rows of one owner in one market; what is unreadable makes the account incomplete, the rest of it stays."""
    section = found.accounts[owner]
    account = add_account_row(reading, deployment, owner, section.payload.received_at)
    _Account(reading, deployment, account, section, View((section, *found.shared))).read()


@dataclass(frozen=True)
class _Account:
    """Reads one account; its failures carry its id."""

    reading: Reading
    deployment: Deployment
    account: str
    section: Section
    """The owner's own snapshot."""
    view: View
    """The snapshot, and what the market's payloads add."""

    def read(self) -> None:
        deployment = self.deployment
        user = self._tried(lambda: read_user(self.section))
        unit = self._tried(lambda: self.reading.dollar_price(deployment, self.view).value)
        if user is None:
            return
        listings = self.reading.listings
        assets, listing = listings.assets(self.view, deployment)
        holdings, holding = read_holdings(self.section, user, assets, deployment, listings)
        for error in (*listing, *holding):
            fail_account(self.reading.rows, error, self.account)
        # a stated base price must be usable even where the account has no base balance
        needed = user.principal != 0 or self.view.having("basePrice") is not None
        base = self._tried(lambda: read_base(self.view)) if needed else None
        state = self._tried(lambda: read_state(self.view)) if user.principal else None
        prices: dict[str, int] = {}
        if base is not None and self._tried(lambda: self._token(deployment.base, base.scale, self.view, "baseScale")):
            prices[deployment.base] = base.price
            if state is not None:
                self._tried(lambda: self._add_base(user, state, base, holdings))
        for held in holdings:
            if self._tried(lambda: self._add_holding(held, assets[held.symbol].view)):  # noqa: B023 - called at once
                prices[held.symbol] = held.price
        if unit is not None:
            self._tried(lambda: self._add_marks(prices, unit))

    def _tried(self, step: Callable[[], _T]) -> _T | None:
        return or_failure(self.reading.rows, step, self.account)

    def _token(self, symbol: str, scale: int, view: View, key: str) -> bool:
        """Notes a token that the account has; raises `PlacedError` for one that the asset book does not know."""
        where = view.having(key) or view.sections[0]
        if not self.reading.names(self.deployment, symbol, digits_of(scale, where, key)):
            stated = "" if key == "baseScale" else "asset"
            message = f"token {symbol[:60]!r} is not in the asset book"
            raise view.sections[0].error(stated, FailureReason.UNKNOWN_ASSET, message)
        return True

    def _balance(self, symbol: str, side: str, amount: int, digits: int, counts: bool) -> None:
        self.reading.rows.add(
            "balances",
            account_id=self.account,
            asset_id=self.deployment.asset_id(symbol),
            side=side,
            quantity=token_amount(amount, digits),
            collateral_enabled=counts,
        )

    def _add_holding(self, held: Holding, record: View) -> bool:
        terms = held.terms
        self._token(held.symbol, terms.scale, record, "scale")
        self._balance(held.symbol, "asset", held.balance, terms.digits, counts=terms.liquidate_factor > 0)
        return True

    def _add_base(self, user: User, state: MarketState, base: Base, holdings: Sequence[Holding]) -> None:
        """The base balance, accrued to the receive time; the venue's own figures are held against it."""
        moment, principal = self.section.payload.received_at, user.principal
        indices = state.indices_at(moment)
        present = mechanics.present_value(principal, indices)
        with noted(self.reading.rows, self.account):
            wrong = contradiction(self.section, principal, state, moment)
            if wrong is not None:
                raise wrong
            if state.rates is None and state.elapsed(moment):
                stated = read_reported_balance(self.section, principal)
                if stated is None:
                    message = f"no interest curve: the base balance is {state.elapsed(moment)} s old"
                    where = self.view.having("totalsBasic") or self.section
                    raise where.error("totalsBasic.lastAccrualTime", FailureReason.MISSING_PARAMETER, message)
                present = stated
        if present:
            digits = digits_of(base.scale, self.view.sections[0], "baseScale")
            side = "asset" if present > 0 else "liability"
            self._balance(self.deployment.base, side, abs(present), digits, counts=True)
            if present < 0 and state.rates is not None:
                self._add_borrow_rate(mechanics.yearly_rate(state.rates.borrow, state.totals))
        self._compare(principal, indices, base, holdings)

    def _add_borrow_rate(self, rate: Fraction) -> None:
        where = self.view.having("totalsBasic") or self.section
        add_mark(
            self.reading.rows,
            self.deployment.asset_id(self.deployment.base),
            "borrow_rate",
            rate,
            as_of=where.payload.received_at,
            source=where.payload.request,
            account_id=self.account,
        )

    def _compare(self, principal: int, indices: Indices, base: Base, holdings: Sequence[Holding]) -> None:
        """Findings where the venue's own verdicts are not ours."""
        held = [holding.collateral for holding in holdings]
        for key, verdict in _VERDICTS:
            with noted(self.reading.rows, self.account):
                if self.section.body.get(key) is None:
                    continue
                stated, own = self.section.read(flag_at, key), verdict(principal, indices, base, held)
                if stated != own:
                    message = f"the venue says {stated}, its rule gives {own}"
                    raise self.section.error(key, FailureReason.INCONSISTENT, message)

    def _add_marks(self, prices: dict[str, int], unit: Fraction) -> None:
        """Dollar prices of what the account has, and of its unit."""
        deployment = self.deployment
        if deployment.numeraire != USD and prices.setdefault(deployment.numeraire, PRICE_SCALE) != PRICE_SCALE:
            message = f"{deployment.numeraire} is quoted at {prices[deployment.numeraire]} of itself"
            raise self.section.error("basePrice", FailureReason.INCONSISTENT, message)
        for symbol, price in prices.items():
            dollars = Fraction(price, PRICE_SCALE) * unit
            mark = mark_row(deployment.asset_id(symbol), dollars, self.section, self.account)
            self.reading.rows.rows["marks"].append(mark)
