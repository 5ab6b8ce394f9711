"""One owner's accounts at OKX: the trading account in its mode, and every isolated position as an account of its own.

Modes (`acctLv` of account/config): single-currency margin (an account per currency), multi-currency margin and
portfolio margin (one account in USD). A failure that concerns the owner as a whole falls on every account that is not
isolated, or on a placeholder when nothing could be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason
from aggregator.rule_forms import Component, component_rows

from ..account_rows import spread_failures
from ..amounts import FieldError, joined, member
from ..market_rows import add_mark, add_reconciliation_note
from ..rows import Rows
from ..symbols import account_id, instrument_id
from ..transport import Payload
from ..uncounted import tell_uncounted
from .account_rules import Account, Sources, account_rules, rule_set_of
from .market import MarketData, OkxCatalog, unique
from .parse import (
    BalanceLine,
    BuilderLine,
    DetailLine,
    FeeLine,
    OrderLine,
    PositionLine,
    balance_line,
    builder_line,
    check_builder_total,
    data_path,
    detail_line,
    fee_line,
    name_of,
    no_position,
    order_line,
    position_line,
    records_of,
    risk_balance,
)
from .rules import (
    PARAMETER_FILE,
    VENUE,
    RuleBook,
    account_components,
    single_unit_equity,
)
from .uncounted import uncounted

BALANCE, POSITIONS, RISK = "account/balance", "account/positions", "account/account-position-risk"
BUILDER, CONFIG, FEES, ORDERS = (
    "account/position-builder",
    "account/config",
    "account/trade-fee",
    "trade/orders-pending",
)
CROSS, PORTFOLIO, ISOLATED = "cross", "portfolio", "isolated"

_MODES = {"1": "spot", "2": "single", "3": "multi", "4": "portfolio"}
# Figures of one answer agree but for their digits and the moment at which each is computed.
_RELATIVE = Decimal("1e-4")
_CENT = Decimal("0.01")


class OwnerReader:
    """Reads the answers of one owner: mode, fees, balance, positions, orders, position builder; then writes rules."""

    def __init__(
        self,
        rows: Rows,
        owner: str,
        answers: Mapping[str, Sequence[Payload]],
        *,
        catalog: OkxCatalog,
        market: MarketData,
        book: RuleBook,
    ) -> None:
        self.rows, self.owner, self.answers = rows, owner, answers
        self.catalog, self.market, self.book = catalog, market, book
        self.whole = account_id(VENUE, owner)
        self.accounts: dict[str, Account] = {}
        self.mode = ""
        self.balance: BalanceLine | None = None
        self.details: dict[str, DetailLine] = {}
        self.fees: dict[str, FeeLine] = {}
        self.builder: BuilderLine | None = None
        self.held: set[str] = set()
        self.ruled: set[str] = set()
        self.own_indices: set[tuple[str, str]] = set()
        self.charged: dict[str, OrderLine] = {}
        self.pending: dict[str, dict[str, Decimal]] = {}
        """Contracts (coins of a spot order) that pending orders may open, by account and instrument."""

    def read(self) -> None:
        """Adds everything that the owner's answers say."""
        with self._guard(CONFIG) as payload:
            if payload is not None:
                records = records_of(payload.body)
                level = str(member(records[0] if records else {}, "acctLv", data_path(payload.body, 0)))
                if level not in _MODES:
                    raise FieldError("data[0].acctLv", FailureReason.MALFORMED, f"{level[:20]!r} is no account mode")
                self.mode = _MODES[level]
        fees = self._payload(FEES)
        if fees is not None:
            self.fees = {
                line.inst_type: line for line, _ in unique(self.rows, fees, fee_line, key=lambda line: line.inst_type)
            }
        self._balance()
        positions = self._positions()
        if not self.mode:
            self.mode = self._mode_by_balance()
        self._builder()
        self._cross_accounts()
        for line, payload in positions:
            self._place(line, payload)
        self._orders()
        self._order_margins()
        only_isolated = bool(self.accounts) and all(a.mode == ISOLATED for a in self.accounts.values())
        if self._payload(BALANCE) is None and self._payload(RISK) is None and not only_isolated:
            message = f"no {BALANCE} answer of this owner that can be used"
            self._fail(FailureReason.MISSING_FIELD, message, account=self.whole, path="data")
        for home in sorted(self.accounts):
            account = self.accounts[home]
            self._check(home, account)
            self._balances(home, account)
            for line in account.positions:
                with self.rows.guard(self._positions_name(), subject=line.name.inst_id, account_id=home):
                    self._position(home, account, line)
            self._rules(home, account)
        self._spread_failures()
        for home in sorted(self.accounts):
            self._write(home, self.accounts[home])

    def _mode_by_balance(self) -> str:
        """The mode without a configuration answer: only the modes in USD state more than an empty adjEq."""
        line = self.balance
        if line is not None and not line.states_mode:
            message = f"field 'adjEq' is missing, which tells the account's mode without {CONFIG}"
            payload, path = self._payload(BALANCE) or self._payload(RISK), joined(line.path, "adjEq")
            self._fail(FailureReason.MISSING_FIELD, message, account=self.whole, payload=payload, path=path)
            return "multi"
        return "multi" if line is None or line.adjusted is not None else "single"

    # answers

    def _payload(self, request: str) -> Payload | None:
        return next(iter(self.answers.get(request, ())), None)

    def _guard(self, request: str) -> Any:
        return _Guard(self.rows, self._payload(request), self.owner, self.whole)

    def _fail(
        self,
        reason: FailureReason,
        message: str,
        *,
        account: str | None,
        payload: Payload | None = None,
        path: str = "",
        subject: str = "",
    ) -> None:
        name = payload.name if payload else ""
        self.rows.fail(
            reason, message, payload=name, path=path, subject=subject or account or self.owner, account_id=account
        )

    def _positions_name(self) -> str:
        payload = self._payload(POSITIONS) or self._payload(RISK)
        return payload.name if payload else ""

    def _balance(self) -> None:
        """The balance answer, or the equities of a position-risk answer where there is none."""
        payload = self._payload(BALANCE)
        with self._guard(BALANCE):
            if payload is not None:
                records = records_of(payload.body)
                path = data_path(payload.body, 0)
                if len(records) != 1:
                    raise FieldError("data", FailureReason.MALFORMED, f"{len(records)} rows of one balance")
                line = balance_line(records[0], path)
                for number, record in enumerate(line.details):
                    place = f"{joined(path, 'details')}[{number}]"
                    currency = str(record.get("ccy", "")) if isinstance(record, Mapping) else ""
                    with self.rows.guard(payload.name, subject=currency, account_id=self.whole):
                        detail = detail_line(record, place)
                        if detail.currency in self.details:
                            message = f"{detail.currency} stands twice"
                            raise FieldError(joined(place, "ccy"), FailureReason.DUPLICATE, message)
                        self.details[detail.currency] = detail
                self.balance = line
        risk = self._payload(RISK)
        if payload is None and risk is not None:
            with self._guard(RISK):
                records = records_of(risk.body)
                if len(records) != 1:
                    raise FieldError("data", FailureReason.MALFORMED, f"{len(records)} rows of one account")
                self.balance, details = risk_balance(records[0], data_path(risk.body, 0))
                self.details = {detail.currency: detail for detail in details}

    def _positions(self) -> list[tuple[PositionLine, Payload]]:
        """Positions of the positions answer, else of the position-risk answer; a key that stands twice is rejected."""
        payload = self._payload(POSITIONS) or self._payload(RISK)
        if payload is None:
            return []
        found: dict[tuple[str, str, bool], list[PositionLine]] = {}
        with self._guard(POSITIONS if self._payload(POSITIONS) else RISK):
            records, prefix = records_of(payload.body), ""
            if self._payload(POSITIONS) is None:
                prefix = joined(data_path(payload.body, 0), "posData")
                records = member(records[0] if records else {}, "posData", data_path(payload.body, 0))
                if not isinstance(records, list):
                    raise FieldError(prefix, FailureReason.MALFORMED, "expected a list")
            for number, record in enumerate(records):
                if no_position(record):
                    continue
                path = f"{prefix}[{number}]" if prefix else data_path(payload.body, number)
                name = str(record.get("instId", "")) if isinstance(record, Mapping) else ""
                with self.rows.guard(payload.name, subject=name, account_id=self._home_of_record(record)):
                    line = position_line(record, path)
                    if line.contracts:
                        key = (line.name.inst_id, line.side_mode, line.isolated)
                        found.setdefault(key, []).append(line)
        out = []
        for _, copies in sorted(found.items()):
            if len(copies) == 1:
                out.append((copies[0], payload))
                continue
            line = copies[-1]
            message = f"{len(copies)} rows of {line.name.inst_id} {line.side_mode}; all rejected"
            account = self._isolated_home(line) if line.isolated else self.whole
            self._fail(
                FailureReason.DUPLICATE,
                message,
                account=account,
                payload=payload,
                path=line.path,
                subject=line.name.inst_id,
            )
        return out

    def _home_of_record(self, record: Any) -> str:
        """The account that a row that cannot be read belongs to: its isolated one, or all others."""
        if isinstance(record, Mapping) and record.get("mgnMode") == ISOLATED and isinstance(record.get("instId"), str):
            side = record.get("posSide")
            part = f"{ISOLATED}:{record['instId']}" + (f":{side}" if side in ("long", "short") else "")
            return account_id(VENUE, self.owner, part)
        return self.whole

    def _isolated_home(self, line: PositionLine) -> str:
        side = "" if line.side_mode == "net" else f":{line.side_mode}"
        return account_id(VENUE, self.owner, f"{ISOLATED}:{line.name.inst_id}{side}")

    def _builder(self) -> None:
        with self._guard(BUILDER) as payload:
            if payload is not None:
                records = records_of(payload.body)
                if len(records) != 1:
                    raise FieldError("data", FailureReason.MALFORMED, f"{len(records)} rows of one portfolio")
                self.builder = builder_line(records[0], data_path(payload.body, 0))
                check_builder_total(self.builder)

    # accounts

    def _cross_home(self, currency: str) -> str:
        part = {"single": currency, "portfolio": PORTFOLIO, "spot": CROSS}.get(self.mode, CROSS)
        return account_id(VENUE, self.owner, part)

    def _open(self, home: str, unit: str, mode: str) -> Account:
        if home not in self.accounts:
            part = home.removeprefix(self.whole).removeprefix(":")
            self.accounts[home] = Account(self.owner, part, unit, mode)
        return self.accounts[home]

    def _cross_accounts(self) -> None:
        """The accounts of the balance, with the venue's own figures."""
        payload = self._payload(BALANCE) or self._payload(RISK)
        line = self.balance
        if self.mode == "single":
            for currency, detail in sorted(self.details.items()):
                if detail.empty:
                    continue
                account = self._open(self._cross_home(currency), currency, "single")
                account.details, account.payload = {currency: detail}, payload
                account.reported_equity = detail.equity - detail.isolated_equity
                account.reported_initial, account.reported_maintenance = detail.initial, detail.maintenance
                account.reported_ratio = detail.ratio
                account.order_margin = detail.order_frozen or Decimal(0)
                account.time = line.time if line else None
            return
        if line is None and self.builder is None:
            return
        account = self._open(self._cross_home(""), "USD", self.mode)
        account.details, account.payload = dict(self.details), payload
        if line is not None:
            account.reported_equity, account.reported_initial = line.adjusted, line.initial
            account.reported_maintenance, account.reported_ratio = line.maintenance, line.ratio
            account.order_margin, account.time = line.order_frozen or Decimal(0), line.time
        elif self.builder is not None:
            account.payload = self._payload(BUILDER)
            account.reported_equity, account.reported_initial = self.builder.equity, self.builder.initial
            account.reported_maintenance, account.reported_ratio = self.builder.maintenance, self.builder.ratio
            account.time = self.builder.time

    def _place(self, line: PositionLine, payload: Payload) -> None:
        if not line.isolated:
            account = self._open(
                self._cross_home(line.name.settlement),
                line.name.settlement if self.mode == "single" else "USD",
                self.mode,
            )
            if account.payload is None:
                account.payload = payload
            account.add(line)
            return
        home = self._isolated_home(line)
        account = self._open(home, line.name.settlement, ISOLATED)
        account.payload, account.time = payload, line.time
        account.add(line)
        account.reported_maintenance, account.reported_ratio = line.maintenance, line.ratio
        account.reported_initial = line.initial
        if line.margin is not None and line.unrealized is not None:
            account.reported_equity = line.margin + line.unrealized

    # checks

    def _check(self, home: str, account: Account) -> None:
        """Figures that must agree with each other; a currency that is missing makes the account incomplete."""
        if account.mode == ISOLATED:
            return
        line, payload = self.balance, account.payload
        if line is not None and line.total is not None and account.unit == "USD":
            worths = [detail.equity_usd for detail in account.details.values()]
            if None not in worths:
                total = sum((worth for worth in worths if worth is not None), Decimal(0))
                if abs(total - line.total) > _RELATIVE * abs(line.total) + _CENT:
                    message = f"currencies worth {total:.6f} USD, the account {line.total}: a currency is missing"
                    self._fail(
                        FailureReason.INCONSISTENT,
                        message,
                        account=home,
                        payload=payload,
                        path=joined(line.path, "totalEq"),
                    )
        if line is not None and account.unit == "USD":
            discounts = [detail.discounted_usd for detail in account.details.values()]
            if line.adjusted is not None and None not in discounts:
                total = sum((worth for worth in discounts if worth is not None), Decimal(0))
                if line.adjusted > total + _RELATIVE * abs(line.adjusted) + _CENT:
                    message = f"adjEq {line.adjusted} is above the {total:.6f} of its currencies: one is missing"
                    self._fail(
                        FailureReason.INCONSISTENT,
                        message,
                        account=home,
                        payload=payload,
                        path=joined(line.path, "adjEq"),
                    )
                else:
                    self._check_adjusted(home, account, line, line.adjusted)
        for currency, detail in sorted(account.details.items()):
            own = [p for p in account.positions if p.name.settlement == currency]
            self._check_profit(home, account, detail, own)
            if any(p.name.kind == "option" for p in own):
                continue  # how the venue splits an option's value is not public
            stated = detail.cash + detail.unrealized + detail.isolated_equity
            if abs(stated - detail.equity) > _RELATIVE * abs(detail.equity) + Decimal("1e-8"):
                message = f"eq {detail.equity} of {currency} is not the {stated} of its parts"
                self._fail(
                    FailureReason.INCONSISTENT,
                    message,
                    account=None,
                    payload=payload,
                    path=joined(detail.path, "eq"),
                    subject=home,
                )

    def _check_adjusted(self, home: str, account: Account, line: BalanceLine, adjusted: Decimal) -> None:
        """Without orders, which take a loss off, the adjusted equity is that of the currencies (a finding)."""
        details = account.details.values()
        if line.order_frozen != 0 or home in self.charged or any(detail.isolated_equity for detail in details):
            return  # isolated equity stands in the currencies alone
        total = sum((detail.counted_usd or Decimal(0) for detail in details), Decimal(0))
        if abs(adjusted - total) > _RELATIVE * abs(adjusted) + _CENT:
            message = f"adjEq {adjusted} is not the {total:.6f} of its currencies, and no order takes anything off"
            self._fail(
                FailureReason.INCONSISTENT,
                message,
                account=None,
                payload=account.payload,
                path=joined(line.path, "adjEq"),
                subject=home,
            )

    def _check_profit(self, home: str, account: Account, detail: DetailLine, own: Sequence[PositionLine]) -> None:
        """The profit of a currency must be that of its positions; without any position the account is incomplete."""
        path, payload = joined(detail.path, "upl"), account.payload
        if detail.unrealized and not own:
            message = f"a profit of {detail.unrealized} {detail.currency} without a position in {POSITIONS}"
            self._fail(
                FailureReason.MISSING_FIELD,
                message,
                account=home,
                payload=payload,
                path=path,
                subject=detail.currency,
            )
        profits = [p.unrealized for p in own]
        if own and None not in profits and all(p.name.kind != "option" for p in own):
            total = sum((profit for profit in profits if profit is not None), Decimal(0))
            if abs(total - detail.unrealized) > _RELATIVE * abs(detail.equity) + Decimal("1e-8"):
                message = f"the positions gain {total} {detail.currency}, the balance says {detail.unrealized}"
                self._fail(FailureReason.INCONSISTENT, message, account=None, payload=payload, path=path, subject=home)

    # rows

    def _balances(self, home: str, account: Account) -> None:
        name = account.payload.name if account.payload else ""
        if account.mode == ISOLATED:
            line = account.positions[0] if account.positions else None
            if line is None:
                return
            with self.rows.guard(name, subject=line.name.inst_id, account_id=home):
                if line.margin is None:
                    message = "an isolated position without its margin"
                    raise FieldError(joined(line.path, "margin"), FailureReason.MISSING_FIELD, message)
                self._add_balance(home, line.name.settlement, line.margin, path=joined(line.path, "ccy"))
            return
        for currency, detail in sorted(account.details.items()):
            with self.rows.guard(name, subject=currency, account_id=home):
                if self._counts_for_nothing(home, account, detail):
                    continue
                # A currency that only positions settle in needs its price all the same.
                if detail.cash or detail.equity:
                    self._add_balance(
                        home,
                        currency,
                        detail.cash,
                        interest=detail.interest,
                        path=joined(detail.path, "ccy"),
                        # Currencies that are margin for themselves alone have no such switch.
                        enabled=detail.is_collateral or account.unit != "USD",
                    )
                    self._own_index(home, currency, detail, account)

    def _counts_for_nothing(self, home: str, account: Account, detail: DetailLine) -> bool:
        """Whether a currency is unknown and adds nothing to the account by the venue's own words, which is a finding.

        Where currencies are margin for themselves alone each is an account of its own, which needs it.
        """
        if account.unit != "USD" or not (detail.cash or detail.equity) or self.catalog.named.asset(detail.currency):
            return False
        others = [currency for currency in account.details if self.catalog.named.asset(currency)]
        found = uncounted(detail, self.market.slices, others=others)
        if found is not None:
            tell_uncounted(
                self.rows,
                found,
                account=home,
                asset=detail.currency,
                quantity=detail.equity,
                payload=account.payload.name if account.payload else "",
                path=detail.path,
            )
        return found is not None

    def _add_balance(
        self,
        home: str,
        currency: str,
        quantity: Decimal,
        *,
        path: str,
        interest: Decimal = Decimal(0),
        enabled: bool = True,
    ) -> None:
        """A row of `balances`, of side liability when negative; its interest stands beside what is owed, which counts
        whether or not the coin is collateral.
        """
        asset = self.catalog.named.asset(currency)
        if asset is None:
            raise FieldError(path, FailureReason.UNKNOWN_ASSET, f"{currency[:40]!r} is not in the asset book")
        if quantity == 0:
            return
        owed = min(interest, -quantity) if quantity < 0 else Decimal(0)
        self.rows.add(
            "balances",
            account_id=home,
            asset_id=asset,
            side="asset" if quantity > 0 else "liability",
            quantity=abs(quantity) - owed,
            accrued_interest=owed or None,
            collateral_enabled=enabled or quantity < 0,
        )

    def _own_index(self, home: str, currency: str, detail: DetailLine, account: Account) -> None:
        """The price of a currency as the account states it, where no index does."""
        if currency in self.market.index or not detail.equity or detail.equity_usd is None:
            return
        price = detail.equity_usd / detail.equity
        if price > 0:
            self._mark(home, currency, "index", price, account, source="eqUsd over eq")

    def _mark(self, home: str, subject: str, name: str, value: Decimal, account: Account, *, source: str) -> None:
        payload = account.payload
        as_of = payload.received_at if payload else None
        add_mark(self.rows, subject, name, value, as_of=as_of, source=source, account_id=home)

    def _position(self, home: str, account: Account, line: PositionLine) -> None:
        name = line.name
        self.catalog.instrument(name, joined(line.path, "instId"))
        subject = instrument_id(VENUE, name.inst_id)
        marks = self.market.marks.get(name.inst_id, {})
        if line.mark_price is None and "mark" not in marks:
            message = f"no mark of {name.inst_id} in {POSITIONS} or public/mark-price"
            raise FieldError(joined(line.path, "markPx"), FailureReason.MISSING_MARK, message)
        if name.kind == "option":
            for mark in ("implied_vol", "forward"):
                if mark not in marks:
                    message = f"no {mark.replace('_', ' ')} of {name.inst_id} in public/opt-summary"
                    raise FieldError(joined(line.path, "instId"), FailureReason.MISSING_MARK, message)
        elif line.leverage is None and account.mode != "portfolio":
            message = "no leverage, which its initial margin is computed with"
            raise FieldError(joined(line.path, "lever"), FailureReason.MISSING_FIELD, message)
        self.held.add(name.inst_id)
        self.rows.add(
            "positions",
            account_id=home,
            instrument_id=subject,
            side_mode=line.side_mode,
            quantity=line.contracts,
            entry_price=line.average_price,
            leverage=line.leverage,
            isolated_collateral=line.margin if line.isolated else None,
            reported_initial_margin=line.initial,
            reported_maintenance_margin=line.maintenance,
            reported_liquidation_price=line.liquidation_price,
        )
        known = account.leading[name.inst_id]
        if line is known:
            # Both sides of one instrument share their marks.
            if line.mark_price is not None:
                self._mark(home, subject, "mark", line.mark_price, account, source=POSITIONS)
            if line.index_price is not None:
                self._mark(home, subject, "index", line.index_price, account, source=POSITIONS)
        elif line.mark_price != known.mark_price:
            message = f"marks {known.mark_price} and {line.mark_price} of {name.inst_id} in one answer"
            raise FieldError(joined(line.path, "markPx"), FailureReason.INCONSISTENT, message)
        self._needed_index(home, account, line)

    def _needed_index(self, home: str, account: Account, line: PositionLine) -> None:
        """The coin's price where no index answer states it: the position's own index, of an inverse contract in USD."""
        base = line.name.base
        if base in self.market.index or line.index_price is None or base in account.details:
            return
        if (home, base) not in self.own_indices:
            self.own_indices.add((home, base))
            stable = Decimal(1) if line.name.inverse else self.market.index.get(line.name.quote, Decimal(1))
            self._mark(home, base, "index", line.index_price * stable, account, source=POSITIONS)

    def _orders(self) -> None:
        payload = self._payload(ORDERS)
        if payload is None:
            return
        with self._guard(ORDERS):
            seen: set[str] = set()
            for number, record in enumerate(records_of(payload.body)):
                path = data_path(payload.body, number)
                name = str(record.get("instId", "")) if isinstance(record, Mapping) else ""
                line = None
                with self.rows.guard(payload.name, subject=name, account_id=self._stated_home(record)):
                    line = order_line(record, path)
                if line is None:
                    continue
                with self.rows.guard(payload.name, subject=name, account_id=self.whole):
                    if line.order_id in seen:
                        raise FieldError(joined(path, "ordId"), FailureReason.DUPLICATE, f"order {line.order_id}")
                    seen.add(line.order_id)
                    if line.remaining:
                        self._order(line, payload)

    def _stated_home(self, record: Any) -> str:
        """The account whose order a record is as far as it says: an isolated position's, else the whole."""
        if not isinstance(record, Mapping) or record.get("tdMode") != ISOLATED:
            return self.whole
        side = "" if record.get("posSide") in (None, "", "net") else f":{record['posSide']}"
        home = account_id(VENUE, self.owner, f"{ISOLATED}:{record.get('instId')}{side}")
        return home if home in self.accounts else self.whole

    def _order(self, line: OrderLine, payload: Payload) -> None:
        name = line.name
        side = "" if line.side_mode == "net" else f":{line.side_mode}"
        home = account_id(VENUE, self.owner, f"{ISOLATED}:{name.inst_id}{side}")
        # An isolated position that could not be read has an account all the same, which is incomplete.
        unread = any(failure.account_id == home for failure in self.rows.failures)
        if not line.isolated or (home not in self.accounts and not unread):
            # Margin of an isolated order that has no position yet is frozen in the trading account.
            unit = name.settlement if self.mode == "single" else "USD"
            home = self._cross_home(name.settlement)
            self._open(home, unit, self.mode)
            # Under single-currency margin a spot order freezes the coin that it sells, and no margin.
            if not line.reduce_only and (self.mode != "single" or name.kind != "spot"):
                self.charged.setdefault(home, line)
                sizes = self.pending.setdefault(home, {})
                sizes[name.inst_id] = sizes.get(name.inst_id, Decimal(0)) + line.remaining
        self.catalog.instrument(name, joined(line.path, "instId"))
        self.rows.add(
            "open_orders",
            order_id=f"{self.whole}:{line.order_id}",
            account_id=home,
            instrument_id=instrument_id(VENUE, name.inst_id),
            side=line.side,
            remaining_quantity=line.remaining,
            limit_price=line.limit_price,
            reduce_only=line.reduce_only,
        )

    def _order_margins(self) -> None:
        """What the account states for pending orders must be there when it has any: no other answer has it."""
        if self.mode == "spot":
            return  # nothing is required of such an account
        for home, account in sorted(self.accounts.items()):
            if account.mode == ISOLATED:
                continue
            if self.mode == "single":
                order = self.charged.get(home)
                detail = self.details.get(account.unit)
                stated = detail.order_frozen if detail is not None else None
                key, path = "ordFrozen", detail.path if detail is not None else ""
            elif self.balance is not None:
                order, stated, key, path = (
                    self.charged.get(home),
                    self.balance.order_frozen,
                    "ordFroz",
                    self.balance.path,
                )
            else:
                continue  # without a balance the owner has failed already
            if self.mode == "portfolio" and not stated:
                self._tell_uncharged(home, account)
                continue
            frozen = sorted(name for name, detail in account.details.items() if detail.order_frozen)
            if stated is not None or (order is None and not frozen):
                continue
            why = f"order {order.order_id} is pending" if order is not None else f"{', '.join(frozen)} is frozen"
            self._fail(
                FailureReason.MISSING_FIELD,
                f"field {key!r} is missing: {why}, of which no margin is known",
                account=home,
                payload=account.payload or self._payload(BALANCE),
                path=joined(path, key),
            )

    def _tell_uncharged(self, home: str, account: Account) -> None:
        """A finding with the size of pending orders under portfolio margin of which the balance states no margin, or
        with what is frozen for them: how they enter the risk units is not public.
        """
        pending = self.pending.get(home, {})
        frozen = {name: line.order_frozen for name, line in account.details.items() if line.order_frozen}
        if self.balance is None or not (pending or frozen):
            return
        sizes = [
            f"{size:f} {name_of(name).base} in {name}" if name_of(name).kind == "spot" else f"{size:f} {name} contracts"
            for name, size in sorted(pending.items())
        ]
        sizes += [f"{size:f} {currency} frozen" for currency, size in sorted(frozen.items())]
        what = ", ".join(sizes)
        message = f"ordFroz states no margin of pending orders, which are not in the requirement: {what}"
        path = joined(self.balance.path, "ordFroz")
        self._fail(FailureReason.MISSING_FIELD, message, account=None, payload=account.payload, path=path, subject=home)

    # rules

    def _rules(self, home: str, account: Account) -> None:
        """The account's rule set, ladders and slices; without them it is incomplete by a failure."""
        name = account.payload.name if account.payload else ""
        with self.rows.guard(name, subject=home, account_id=home):
            found = account_rules(
                home,
                account,
                Sources(self.rows, self.catalog, self.market, self.book, self.fees, self.balance, self.builder),
                self._payload(BUILDER),
            )
            self._add_rules(rule_set_of(self.owner, account), found.components)
            self.rows.rows["margin_tiers"].extend(found.tiers)
            self.rows.rows["collateral_tiers"].extend(found.weights)
            for figure, size, words in found.notes:
                add_reconciliation_note(
                    self.rows,
                    home,
                    figure,
                    size,
                    words,
                    as_of=account.payload.received_at if account.payload else None,
                    source=account.payload.request if account.payload else "",
                )

    def _add_rules(self, rule_set: str, components: Sequence[Component]) -> None:
        self.ruled.add(rule_set)
        source = f"{PARAMETER_FILE} of {self.book.as_of}: {self.book.source}"
        self.rows.rows["rule_sets"].extend(component_rows(rule_set, components, source=source))

    # failures, accounts

    def _spread_failures(self) -> None:
        """Failures of the owner as a whole fall on its accounts, and every account that failed has a row."""
        for failure in self.rows.failures:
            account = failure.account_id or ""
            if account.startswith(f"{self.whole}:") and account not in self.accounts:
                isolated = account.startswith(f"{self.whole}:{ISOLATED}:")
                self._open(account, "USD", ISOLATED if isolated else self.mode or "multi")
        if not any(failure.account_id == self.whole for failure in self.rows.failures):
            return
        targets = sorted(home for home, account in self.accounts.items() if account.mode != ISOLATED)
        if not targets:
            self._open(self.whole, "USD", self.mode or "multi")
            targets = [self.whole]
        spread_failures(self.rows, self.whole, targets)

    def _write(self, home: str, account: Account) -> None:
        rule_set = rule_set_of(self.owner, account)
        if rule_set not in self.ruled:
            # An account without rules of its own is incomplete by a failure; it needs a verdict all the same.
            self._add_rules(rule_set, account_components(single_unit_equity(), (), (), positions=False))
        isolated = account.mode == ISOLATED
        unit = account.unit if account.unit == "USD" else self.catalog.named.asset(account.unit) or account.unit
        parents = sorted(name for name, other in self.accounts.items() if other.mode != ISOLATED)
        self.rows.add(
            "accounts",
            account_id=home,
            parent_account_id=parents[0] if isolated and len(parents) == 1 else None,
            node=home,
            venue=VENUE,
            owner=self.owner,
            margin_mode={ISOLATED: "isolated", "portfolio": "portfolio"}.get(account.mode, "cross"),
            rule_set=rule_set,
            settlement_asset=unit,
            multi_assets_mode=account.unit == "USD",
            received_at=account.payload.received_at if account.payload else None,
            reported_equity=account.reported_equity,
            reported_initial_margin=account.reported_initial,
            reported_maintenance_margin=account.reported_maintenance,
            reported_health=account.reported_ratio,
        )


class _Guard:
    """`rows.guard` around one request's answer, which it hands over (None where there is none)."""

    def __init__(self, rows: Rows, payload: Payload | None, owner: str, account: str) -> None:
        self._payload = payload
        self._guard = rows.guard(payload.name if payload else "", subject=owner, account_id=account)

    def __enter__(self) -> Payload | None:
        self._guard.__enter__()
        return self._payload

    def __exit__(self, *error: Any) -> bool | None:
        return self._guard.__exit__(*error)
