"""One owner's accounts at Deribit: a segregated account per currency, and one cross-collateral account of the others.

A failure that concerns the owner as a whole (an answer that is missing, unreadable or doubled) falls on every account
of the owner, or on a placeholder when nothing could be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

from aggregator.errors import FailureReason
from aggregator.rule_forms import Component, component_rows

from ..account_rows import add_balance, spread_failures
from ..amounts import FieldError, joined
from ..fields import records_of
from ..market_rows import add_mark
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from ..uncounted import tell_uncounted, worth_nothing
from .account_rules import CROSS, Account, Sources, account_rules, implied_index, rule_set_of
from .market import SIMULATE, DeribitCatalog, MarketData
from .parse import (
    IdleLine,
    Instrument,
    Model,
    OrderLine,
    OtherMargin,
    PositionLine,
    SummaryLine,
    answered_at,
    content_of,
    idle_line,
    no_position,
    order_line,
    other_margins,
    position_line,
    summary_line,
)
from .rules import (
    VENUE,
    ModelParameters,
    RuleBook,
    merged_parameters,
    model_parameters,
    standard_components,
)

SUMMARIES, SUMMARY, PORTFOLIO_MESSAGE = "private/get_account_summaries", "private/get_account_summary", "user.portfolio"
POSITIONS, POSITION = "private/get_positions", "private/get_position"
ORDERS = (
    "private/get_open_orders",
    "private/get_open_orders_by_currency",
    "private/get_open_orders_by_instrument",
)
_EARLIEST = datetime.min.replace(tzinfo=UTC)
# Figures of one answer agree but for the digits in which each is given; those of a cross account are repeated per
# currency in that currency's own digits.
_RELATIVE = Decimal("1e-4")
_DIGIT, _BTC_DIGIT = Decimal("1e-6"), Decimal("1e-8")


class OwnerReader:
    """Reads the answers of one owner: summaries, positions, orders, simulations; then writes accounts and rules."""

    def __init__(
        self,
        rows: Rows,
        owner: str,
        answers: Mapping[str, Sequence[Payload]],
        *,
        catalog: DeribitCatalog,
        market: MarketData,
        book: RuleBook,
    ) -> None:
        self.rows, self.owner, self.answers = rows, owner, answers
        self.catalog, self.market, self.book = catalog, market, book
        self.whole = account_id(VENUE, owner)
        self.accounts: dict[str, Account] = {}
        self.models: dict[str, Model] = {}
        self.held: set[str] = set()
        self.ruled: set[str] = set()
        self.without_order_margin: set[str] = set()
        self.index_marks: dict[str, dict[str, tuple[Decimal, Payload]]] = {}

    def read(self) -> None:
        """Adds everything that the owner's answers say."""
        self._summaries()
        positions = self._positions()
        for line, payload in positions:
            self._place(line, payload)
        parameters, simulated = self._simulations()
        for home in sorted(self.accounts):
            account = self.accounts[home]
            self._check_positions(home, account, bool(positions))
            for line, payload in account.positions:
                with self.rows.guard(payload.name, subject=line.instrument.name, account_id=home):
                    self._position(home, line, payload)
            self._balances(home, account)
            self._rules(home, account, parameters, simulated)
        self._orders()
        self._spread_failures()
        for home, account in sorted(self.accounts.items()):
            self._write(home, account)

    # what there is

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

    def _home(self, currency: str) -> str:
        model = self.models.get(currency)
        return account_id(VENUE, self.owner, CROSS if model is not None and model.cross else currency)

    def _open(self, currency: str, model: Model) -> Account:
        home = account_id(VENUE, self.owner, CROSS if model.cross else currency)
        if home not in self.accounts:
            part = CROSS if model.cross else currency
            self.accounts[home] = Account(self.owner, part, "USD" if model.cross else currency, model)
        return self.accounts[home]

    def _summaries(self) -> None:
        """Summaries by currency: the newest answer of several, a list before a single one at equal times."""
        found: dict[str, list[tuple[datetime, int, SummaryLine, Payload]]] = {}
        for rank, request in enumerate((PORTFOLIO_MESSAGE, SUMMARY, SUMMARIES)):
            for payload in self.answers.get(request, ()):
                with self.rows.guard(payload.name, subject=self.owner, account_id=self.whole):
                    content = content_of(payload.body)
                    inside = isinstance(content, Mapping) and "summaries" in content
                    records = records_of(content["summaries"] if inside else content)
                    if not records and not inside:
                        raise FieldError("", FailureReason.MISSING_FIELD, "an answer without an account summary")
                    moment = answered_at(payload.body) or payload.received_at or _EARLIEST
                    seen = set()
                    for number, record in enumerate(records):
                        path = joined("summaries", number) if inside else ""
                        currency = str(record.get("currency", "")) if isinstance(record, Mapping) else ""
                        with self.rows.guard(payload.name, subject=currency, account_id=self.whole):
                            line = summary_line(record, path)
                            if line.currency in seen:
                                message = f"{line.currency} stands twice"
                                raise FieldError(joined(path, "currency"), FailureReason.DUPLICATE, message)
                            seen.add(line.currency)
                            found.setdefault(line.currency, []).append((moment, rank, line, payload))
        if not any(self.answers.get(request) for request in (PORTFOLIO_MESSAGE, SUMMARY, SUMMARIES)):
            self._fail(
                FailureReason.MISSING_FIELD,
                "no account summary of this owner that can be used: balances and margin model are unknown",
                account=self.whole,
                path="summaries",
            )
        for currency in sorted(found):
            _, _, line, payload = max(found[currency], key=lambda entry: entry[:2])
            self.models[currency] = line.model
            if line.empty and not line.model.cross:
                continue
            account = self._open(currency, line.model)
            account.lines[currency], account.payload = line, payload
            if account.model != line.model:
                message = f"{currency} is {line.model}, the other currencies of the cross account are {account.model}"
                self._fail(FailureReason.INCONSISTENT, message, account=self._home(currency), payload=payload)

    def _positions(self) -> list[tuple[PositionLine, Payload]]:
        found: dict[str, list[tuple[PositionLine, Payload]]] = {}
        idle: dict[str, IdleLine] = {}
        for request in (POSITIONS, POSITION):
            for payload in self.answers.get(request, ()):
                with self.rows.guard(payload.name, subject=self.owner, account_id=self.whole):
                    content = content_of(payload.body)
                    for number, record in enumerate(records_of(content)):
                        path = joined("", number) if isinstance(content, list) else ""
                        if no_position(record):
                            with self.rows.guard(payload.name, subject=self.owner, account_id=self.whole):
                                none = idle_line(record, path)
                                if none is not None:
                                    known = idle.setdefault(none.instrument.name, none)
                                    if known.order_margin != none.order_margin:
                                        message = f"two margins of the orders in {none.instrument.name}"
                                        raise FieldError(path, FailureReason.DUPLICATE, message)
                            continue
                        name = str(record.get("instrument_name", "")) if isinstance(record, Mapping) else ""
                        with self.rows.guard(payload.name, subject=name, account_id=self.whole):
                            line = position_line(record, path)
                            found.setdefault(line.instrument.name, []).append((line, payload))
        out = []
        for name, copies in sorted(found.items()):
            line, payload = copies[-1]
            if len(copies) == 1:
                out.append(copies[0])
                continue
            message = f"{len(copies)} rows of {name}; all rejected"
            home = self._home(line.instrument.settlement)
            self._fail(FailureReason.DUPLICATE, message, account=home, payload=payload, path=line.path, subject=name)
            self._mention(line.instrument)
        for name, none in sorted(idle.items()):
            if name in found:
                continue
            if none.order_margin:
                self._mention(none.instrument)
            home = self._home(none.instrument.settlement)
            if home in self.accounts:
                self.accounts[home].idle.append(none)
        return out

    def _mention(self, instrument: Instrument) -> None:
        """An account that must have a row although nothing of it could be taken in."""
        model = self.models.get(instrument.settlement, Model(cross=False, portfolio=False))
        self._open(instrument.settlement, model).mentioned = True

    def _place(self, line: PositionLine, payload: Payload) -> None:
        currency = line.instrument.settlement
        self._mention(line.instrument)
        account = self.accounts[self._home(currency)]
        if currency not in account.lines:
            self._fail(
                FailureReason.MISSING_FIELD,
                f"{line.instrument.name} settles in {currency}, of which there is no usable account summary",
                account=self._home(currency),
                payload=payload,
                path=joined(line.path, "instrument_name"),
                subject=line.instrument.name,
            )
        account.positions.append((line, payload))

    def _simulations(self) -> tuple[ModelParameters | None, list[tuple[OtherMargin, Payload]]]:
        """Matrix parameters that hold for the owner, and the margins that simulations state."""
        own: ModelParameters | None = None
        simulated = []
        for payload in self.answers.get(SIMULATE, ()):
            with self.rows.guard(payload.name, subject=self.owner):
                content = content_of(payload.body)
                read = model_parameters(content, SIMULATE)
                margins = other_margins(content)
                own = merged_parameters(own, read)
                simulated += [(margin, payload) for margin in margins]
        return merged_parameters(merged_parameters(own, self.market.parameters), self.market.dated), simulated

    # checks

    def _check_positions(self, home: str, account: Account, any_positions: bool) -> None:
        """Summaries that speak of positions need them; the profit of both must agree (a finding)."""
        for currency, line in sorted(account.lines.items()):
            own = [p for p, _ in account.positions if p.instrument.settlement == currency]
            if line.holds_positions and not own:
                self._fail(
                    FailureReason.MISSING_FIELD,
                    f"the summary of {currency} speaks of positions, but {POSITIONS} has none of them",
                    account=home,
                    payload=account.payload,
                    path=joined(line.path, "currency"),
                )
            futures = [p for p in own if p.instrument.kind != "option"]
            for key, value, needed in (
                ("options_value", line.options_value, len(own) > len(futures)),
                ("futures_session_upl", line.futures_unrealized, bool(futures)),
            ):
                if needed and value is None:
                    self._fail(
                        FailureReason.MISSING_FIELD,
                        f"field {key!r} of {currency} is missing, without which its cash is not known",
                        account=home,
                        payload=account.payload,
                        path=joined(line.path, key),
                    )
            known = sum((p.floating for p in futures if p.floating is not None), Decimal(0))
            worth = sum((p.size * p.mark_price for p in own if p.instrument.kind == "option"), Decimal(0))
            for key, ours, stated in (
                ("futures_session_upl", known, line.futures_unrealized),
                ("options_value", worth, line.options_value),
            ):
                gap = abs(ours - (stated or 0))
                if own and stated is not None and gap > max(_RELATIVE * abs(line.equity), 2 * _digit(currency)):
                    message = f"the positions come to {ours:f} {currency}, the summary says {stated:f}"
                    self._fail(
                        FailureReason.INCONSISTENT,
                        message,
                        account=None,
                        payload=account.payload,
                        path=joined(line.path, key),
                        subject=home,
                    )
        if account.model.cross and account.lines:
            self._check_cross(home, account)

    def _check_cross(self, home: str, account: Account) -> None:
        """The rows of a cross account repeat one USD total, which the currencies' own equities must add up to."""
        totals = [line.total_equity for line in account.lines.values() if line.total_equity is not None]
        if not totals:
            return
        if max(totals) - min(totals) > _RELATIVE * abs(max(totals)):
            message = f"total_equity_usd between {min(totals)} and {max(totals)} in one account"
            self._fail(FailureReason.INCONSISTENT, message, account=home, payload=account.payload)
            return
        value, slack = Decimal(0), _RELATIVE * abs(totals[0])
        for currency, line in account.lines.items():
            index = implied_index(line) or self.market.index.get(currency)
            if index is None:
                if line.equity:
                    return
                continue
            value += line.equity * index
            slack += _digit(currency) * index if line.equity else 0
        if abs(value - totals[0]) > slack:
            self._fail(
                FailureReason.INCONSISTENT,
                f"the equities are worth {value:.6f} USD, the account says {totals[0]}: a currency is missing",
                account=home,
                payload=account.payload,
                path="summaries",
            )

    # rows

    def _position(self, home: str, line: PositionLine, payload: Payload) -> None:
        instrument = line.instrument
        subject = self.catalog.instrument(instrument, joined(line.path, "instrument_name"))
        realized = None
        if instrument.kind != "option" and line.floating is not None:
            # Settled daily: only the session's profit is outside of the balance, whatever the average price says.
            realized = line.floating - _profit(line)
        self.rows.add(
            "positions",
            account_id=home,
            instrument_id=subject,
            side_mode="net",
            quantity=line.size,
            entry_price=line.average_price or None,
            realized_pnl=realized,
            leverage=line.leverage,
            reported_initial_margin=line.initial,
            reported_maintenance_margin=line.maintenance,
            reported_liquidation_price=line.liquidation_price,
        )
        self.held.add(instrument.name)
        source, as_of = payload.request.partition(":")[0], answered_at(payload.body) or payload.received_at
        marks: dict[str, Decimal | None] = {"mark": line.mark_price, "index": line.index_price}
        for name, value in marks.items():
            if value is not None:
                self._mark(home, subject, name, value, as_of=as_of, source=source)
        if instrument.kind == "option":
            self._option_marks(home, line, payload)
        if line.index_price is not None:
            known = self.index_marks.setdefault(home, {})
            # An inverse contract states its index in USD, a linear one in its stable.
            if instrument.inverse or instrument.base not in known:
                known[instrument.base] = (line.index_price, payload)

    def _option_marks(self, home: str, line: PositionLine, payload: Payload) -> None:
        ticker = self.market.tickers.get(line.instrument.name)
        missing = [
            word
            for word, value in (
                ("implied vol", ticker and ticker.implied_vol),
                ("underlying price", ticker and ticker.underlying_price),
            )
            if value is None
        ]
        if missing:
            message = f"no {' and '.join(missing)} of {line.instrument.name} in any ticker"
            raise FieldError(joined(line.path, "instrument_name"), FailureReason.MISSING_MARK, message)

    def _mark(self, home: str, subject: str, name: str, value: Decimal, *, as_of: datetime | None, source: str) -> None:
        add_mark(self.rows, subject, name, value, as_of=as_of, source=source, account_id=home)

    def _balances(self, home: str, account: Account) -> None:
        payload = account.payload
        name = payload.name if payload else ""
        for currency, line in sorted(account.lines.items()):
            with self.rows.guard(name, subject=currency, account_id=home):
                needed = line.cash != 0 or currency == account.unit
                if not needed:
                    continue
                asset = self.catalog.named.asset(currency)
                if asset is None and self._counts_for_nothing(home, account, line, name):
                    continue
                if asset is None:
                    message = f"{currency!r} is not in the asset book"
                    raise FieldError(joined(line.path, "currency"), FailureReason.UNKNOWN_ASSET, message)
                if line.cash:
                    add_balance(self.rows, home, asset, line.cash)
                self._own_index(home, currency, asset, line, payload)

    def _counts_for_nothing(self, home: str, account: Account, line: SummaryLine, payload: str) -> bool:
        """Whether an unknown currency of a cross account is worth below a cent at the venue's own rate: a finding.

        A haircut takes nothing off maintenance, so that a currency with value counts whatever its haircut is.
        """
        index = implied_index(line) if account.model.cross and not line.holds_positions else None
        found = worth_nothing("equity", None if index is None else line.equity * index, owed=line.equity < 0)
        if found is not None:
            tell_uncounted(
                self.rows,
                found,
                account=home,
                asset=line.currency,
                quantity=line.equity,
                payload=payload,
                path=line.path,
            )
        return found is not None

    def _own_index(self, home: str, currency: str, asset: str, line: SummaryLine, payload: Payload | None) -> None:
        """The price of a currency where no market answer states it: the account's own positions', else implied."""
        if currency in self.market.index or payload is None:
            return
        known = self.index_marks.get(home, {}).get(currency)
        if known is not None:
            value, source = known[0], POSITIONS
        else:
            implied = implied_index(line)
            if implied is None:
                return
            value, source = implied, "total_margin_balance_usd over margin_balance"
        as_of = answered_at(payload.body) or payload.received_at
        self._mark(home, asset, "index", value, as_of=as_of, source=source)

    # rules

    def _rules(
        self,
        home: str,
        account: Account,
        parameters: ModelParameters | None,
        simulated: Sequence[tuple[OtherMargin, Payload]],
    ) -> None:
        """The account's rule set, margin tiers and weights; without them it is incomplete by a failure."""
        payload = account.payload.name if account.payload else ""
        with self.rows.guard(payload, subject=home, account_id=home):
            of = Sources(self.rows, self.catalog, self.market, self.book, parameters, simulated)
            found = account_rules(home, account, of)
            if not found.has_order_margin:
                self.without_order_margin.add(home)
            self._add_rules(rule_set_of(self.owner, account), found.components, found.source)
            self.rows.rows["margin_tiers"].extend(found.tiers)
            self.rows.rows["collateral_tiers"].extend(found.weights)

    def _add_rules(self, rule_set: str, components: Sequence[Component], source: str) -> None:
        self.ruled.add(rule_set)
        rows = component_rows(rule_set, components, source=source, valid_from=self.book.valid_from)
        self.rows.rows["rule_sets"].extend(rows)

    # orders, failures, accounts

    def _orders(self) -> None:
        seen: dict[str, str] = {}
        for request in ORDERS:
            for payload in self.answers.get(request, ()):
                with self.rows.guard(payload.name, subject=self.owner, account_id=self.whole):
                    content = content_of(payload.body)
                    for number, record in enumerate(records_of(content)):
                        path = joined("", number) if isinstance(content, list) else ""
                        name = str(record.get("instrument_name", "")) if isinstance(record, Mapping) else ""
                        with self.rows.guard(payload.name, subject=name, account_id=self.whole):
                            line = order_line(record, path)
                            if line.order_id in seen:
                                message = f"order {line.order_id} stands in {seen[line.order_id]} too"
                                raise FieldError(joined(path, "order_id"), FailureReason.DUPLICATE, message)
                            seen[line.order_id] = payload.name
                            if line.remaining:
                                self._order(line, payload)

    def _order(self, line: OrderLine, payload: Payload) -> None:
        currency = line.instrument.settlement
        self._mention(line.instrument)
        home = self._home(currency)
        self._order_margin(home, line, payload)
        self.rows.add(
            "open_orders",
            order_id=f"{self.whole}:{line.order_id}",
            account_id=home,
            instrument_id=self.catalog.instrument(line.instrument, joined(line.path, "instrument_name")),
            side=line.side,
            remaining_quantity=line.remaining,
            limit_price=line.limit_price,
            reduce_only=line.reduce_only,
        )

    def _order_margin(self, home: str, line: OrderLine, payload: Payload) -> None:
        """Under standard margin only the row of an instrument states the margin of its orders: it must be there."""
        account, name = self.accounts[home], line.instrument.name
        if account.model.portfolio and not line.reduce_only and home in self.without_order_margin:
            message = (
                f"an order of {line.remaining:f} {name} is not in the initial margin: neither a simulation of this "
                "portfolio nor the summary says what orders need"
            )
            path = joined(line.path, "instrument_name")
            self._fail(FailureReason.MISSING_FIELD, message, account=None, payload=payload, path=path, subject=home)
        if account.model.portfolio or line.reduce_only or line.instrument.kind == "spot":
            return
        stated = {position.instrument.name for position, _ in account.positions}
        if name in stated | {idle.instrument.name for idle in account.idle}:
            return
        if any(failure.account_id in (home, self.whole) for failure in self.rows.failures):
            return  # it is incomplete for a reason that may be the same
        self._fail(
            FailureReason.MISSING_FIELD,
            f"an order in {name}, of which {POSITIONS} states no 'open_orders_margin'",
            account=home,
            payload=payload,
            path=joined(line.path, "instrument_name"),
            subject=name,
        )

    def _spread_failures(self) -> None:
        """Failures of the owner as a whole fall on its accounts, and every account that failed has a row."""
        for failure in self.rows.failures:
            account = failure.account_id or ""
            if account.startswith(f"{self.whole}:") and account not in self.accounts:
                part = account.removeprefix(f"{self.whole}:")
                unit = "USD" if part == CROSS else part
                self.accounts[account] = Account(self.owner, part, unit, Model(cross=part == CROSS, portfolio=False))
        if not any(failure.account_id == self.whole for failure in self.rows.failures):
            return
        if not self.accounts:
            self.accounts[self.whole] = Account(self.owner, "", "USD", Model(cross=True, portfolio=False))
        targets = sorted(self.accounts)
        spread_failures(self.rows, self.whole, targets)

    def _write(self, home: str, account: Account) -> None:
        rule_set = rule_set_of(self.owner, account)
        if rule_set not in self.ruled:
            components = standard_components(cross=account.model.cross, options=(), order_margin=Decimal(0))
            self._add_rules(rule_set, components, self.book.source)
        first = next(iter(account.lines.values()), None)
        payload = account.payload or next((p for _, p in account.positions), None)
        unit = account.unit
        if unit != "USD":
            unit = self.catalog.named.asset(unit) or unit
        reported: tuple[Decimal | None, ...] = (None, None, None)
        if first is not None and account.model.cross:
            reported = (first.total_margin_balance, first.total_initial, first.total_maintenance)
        elif first is not None:
            reported = (first.margin_balance, first.initial, first.maintenance)
        self.rows.add(
            "accounts",
            account_id=home,
            node=home,
            venue=VENUE,
            owner=self.owner,
            margin_mode="portfolio" if account.model.portfolio else "cross",
            rule_set=rule_set,
            settlement_asset=unit,
            event_at=answered_at(payload.body) if payload else None,
            received_at=payload.received_at if payload else None,
            reported_equity=reported[0],
            reported_initial_margin=reported[1],
            reported_maintenance_margin=reported[2],
        )


def _digit(currency: str) -> Decimal:
    return _BTC_DIGIT if currency == "BTC" else _DIGIT


def _profit(line: PositionLine) -> Decimal:
    """Profit of a future since its average price, in its settlement currency, to 18 decimals."""
    size, entry, mark = Fraction(line.size), Fraction(line.average_price), Fraction(line.mark_price)
    profit = size * (1 / entry - 1 / mark) if line.instrument.inverse else size * (mark - entry)
    return Decimal(round(profit * 10**18)).scaleb(-18)
