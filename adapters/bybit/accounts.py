"""One owner's accounts on Bybit: which accounts there are, what is in them, which rule set each has.

Cross and portfolio margin: one account, `bybit:<owner>:unified`, in dollars. Isolated margin: an account per position,
and the wallet beside them in the unified one. What concerns the owner as a whole (an answer that is missing, unreadable
or doubled) falls on the unified account.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import FieldError, joined
from ..fields import text_at
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from ..uncounted import tell_uncounted
from . import mechanics
from .catalog import VENUE, BybitCatalog, lines_of
from .market import MarketData, collateral_switches, flat_table
from .parse import (
    CoinLine,
    CollateralLine,
    Market,
    OrderLine,
    PositionLine,
    answer_of,
    fee_line,
    is_flat,
    market_of,
    order_line,
    place_of,
    position_line,
)
from .position_columns import PlainPositions, Question, plain_positions
from .positions import check_option, check_tiers, initial_rate
from .prices import category_of, derivatives_of, moment_of
from .rule_sets import RuleSets
from .rules import (
    CROSS,
    ISOLATED,
    PORTFOLIO,
    WALLET,
    Amounts,
    CollateralTable,
    cross_components,
    decimal_from,
    isolated_components,
    portfolio_components,
    rule_set_id,
    wallet_components,
)
from .uncounted import uncounted
from .wallet import Loans, Wallet, counts_as_collateral, in_dollars, loan_margins, order_initial, read_wallet

UNIFIED = "unified"
WALLET_BALANCE, INFO, POSITIONS, ORDERS, FEES, COLLATERAL = (
    "account/wallet-balance",
    "account/info",
    "position/list",
    "order/realtime",
    "account/fee-rate",
    "account/collateral-info",
)
MODES: Mapping[str, str] = {"REGULAR_MARGIN": CROSS, "ISOLATED_MARGIN": ISOLATED, "PORTFOLIO_MARGIN": PORTFOLIO}
"""Rules by the venue's margin mode."""

_ZERO = Decimal(0)
# Wallet and positions are asked for within seconds; their margins differ by what prices move in between.
_COVERAGE_TOLERANCE = Decimal("0.05")


@dataclass
class _Isolated:
    """An isolated position's account; `margin` None where it could not be read."""

    settle: str
    symbol: str
    margin: Decimal | None = None
    reported_equity: Decimal | None = None
    reported_initial: Decimal | None = None
    reported_maintenance: Decimal | None = None


def plain_owners(
    answers: Mapping[str, Mapping[str, Sequence[Payload]]], *, catalog: BybitCatalog, market: MarketData, mode: str
) -> dict[str, PlainPositions]:
    """By owner the positions that columns can read, of those owners whose other answers leave no doubt about them."""
    questions = []
    for owner, found in sorted(answers.items()):
        if found.get(FEES):
            continue  # rates of its own
        try:
            modes = [_mode_of(payload) for payload in found.get(INFO, ())]
            lists = [(answer_of(payload.body).records, moment_of(payload)) for payload in found.get(POSITIONS, ())]
        except FieldError:
            continue
        if (modes or [mode])[-1] == CROSS:
            questions.append(Question(owner, account_id(VENUE, owner, UNIFIED), lists))
    return plain_positions(questions, catalog, market, source=POSITIONS)


def _mode_of(payload: Payload) -> str:
    """Rules of the margin mode that `account/info` states; raises `FieldError`."""
    answer = answer_of(payload.body)
    if not answer.records:
        raise FieldError(answer.path, FailureReason.MISSING_FIELD, "the answer has no rows")
    path = place_of(answer, 0)
    word = text_at(answer.records[0], "marginMode", path)
    if word not in MODES:
        raise FieldError(
            joined(path, "marginMode"), FailureReason.UNSUPPORTED, f"margin mode {word[:40]!r} is not known"
        )
    return MODES[word]


class OwnerReader:
    """Reads the answers of one owner: mode, wallet, positions, orders, then rule sets."""

    def __init__(
        self,
        rows: Rows,
        owner: str,
        payloads: Mapping[str, Sequence[Payload]],
        *,
        catalog: BybitCatalog,
        market: MarketData,
        rule_sets: RuleSets,
        mode: str,
        plain: PlainPositions | None = None,
    ) -> None:
        self.rows, self.owner, self.payloads = rows, owner, payloads
        self.catalog, self.market, self.rule_sets, self.mode = catalog, market, rule_sets, mode
        self.home = account_id(VENUE, owner, UNIFIED)
        self.wallet: Wallet | None = None
        self.held: set[str] = set()
        self.isolated: dict[str, _Isolated] = {}
        self.marks: dict[tuple[str, str], tuple[Decimal, datetime | None]] = {}
        self.fees: dict[str, Decimal] = {}
        self.plain = plain
        """All positions of this owner where they were read by columns."""

    def read(self) -> None:
        """Adds everything that the owner's answers say."""
        self._read_mode()
        switches = collateral_switches(self.rows, self.payloads.get(COLLATERAL, ()), self.home)
        fees = lines_of(
            self.rows,
            derivatives_of(self.payloads.get(FEES, ())),
            fee_line,
            key=lambda line: line[0],
            account=lambda record: self.home,
            whole=self.home,
        )
        self.fees = {name: rate for name, ((_, rate), _, _) in fees.items()}
        self.wallet = read_wallet(
            self.rows,
            self.payloads.get(WALLET_BALANCE, ()),
            self.home,
            market_prices=self.market.usd_prices,
            catalog=self.catalog,
        )
        positions, orders = self._read_positions() if self.plain is None else [], self._read_orders()
        maintenance: dict[str, list[Decimal | None]] = {} if self.plain is None else self.plain.maintenance
        for line, _ in positions:
            maintenance.setdefault(line.market.settle, []).append(line.maintenance)
        self._check_coverage(maintenance)
        for line, payload in positions:
            with self.rows.guard(payload.name, subject=line.market.symbol, account_id=self._position_home(line)):
                self._position(line, payload)
        if self.plain is not None:
            self.rows.add_table("positions", self.plain.positions)
            self.rows.add_table("market_state", self.plain.states)
            self.held |= self.plain.symbols
        tables = self._balances(switches)
        losses = [self._order(line, payload) for line, payload in orders]
        self._write_unified(self._amounts(sum(losses, _ZERO)), tables)
        self._write_isolated()
        self._write_marks()

    # answers

    def _read_mode(self) -> None:
        for payload in self.payloads.get(INFO, ()):
            with self.rows.guard(payload.name, subject=self.owner, account_id=self.home):
                self.mode = _mode_of(payload)

    def _read_positions(self) -> list[tuple[PositionLine, Payload]]:
        found = lines_of(
            self.rows,
            self.payloads.get(POSITIONS, ()),
            position_line,
            key=lambda line: f"{line.market.symbol} {line.side_mode}",
            account=self._record_home,
            whole=self.home,
            skip=is_flat,
        )
        return [(line, payload) for _, (line, payload, _) in sorted(found.items())]

    def _read_orders(self) -> list[tuple[OrderLine, Payload]]:
        derivatives = []
        for payload in self.payloads.get(ORDERS, ()):
            with self.rows.guard(payload.name, subject=self.owner, account_id=self.home):
                answer = answer_of(payload.body)
                if category_of(payload, answer) != "spot":
                    derivatives.append(payload)
                elif answer.records:
                    message = "spot orders: the collateral that they would turn into a lesser one is not computed"
                    self.rows.fail(FailureReason.UNSUPPORTED, message, payload=payload.name, subject=self.owner)
        found = lines_of(
            self.rows,
            derivatives,
            order_line,
            key=lambda line: line.order_id,
            account=lambda record: self.home,
            whole=self.home,
        )
        return [(line, payload) for _, (line, payload, _) in sorted(found.items())]

    def _check_coverage(self, maintenance: Mapping[str, Sequence[Decimal | None]]) -> None:
        """The positions that were read must be those that the wallet holds margin for: a page or category that nobody
        asked for would leave the account looking safer than it is. `maintenance`: of each position by settlement coin.
        """
        failed = any(f.account_id and f.account_id.startswith(f"{VENUE}:{self.owner}:") for f in self.rows.failures)
        if self.wallet is None or failed:
            return
        for coin, line in self.wallet.coins.items():
            stated, total = maintenance.get(coin, ()), line.position_maintenance or _ZERO
            held = sum((value for value in stated if value is not None), _ZERO)
            if total and not stated:
                reason, message = FailureReason.MISSING_FIELD, f"but no position/list answer has a {coin} position"
            elif None not in stated and self.mode != PORTFOLIO and abs(held - total) > _COVERAGE_TOLERANCE * total:
                reason, message = FailureReason.INCONSISTENT, f"but the {coin} positions that were read {held}"
            else:
                continue
            self.rows.fail(
                reason,
                f"the wallet holds a maintenance margin of {total} {coin} for positions, {message}",
                payload=self.wallet.payload.name,
                path=joined(line.path, "totalPositionMM"),
                subject=coin,
                account_id=self.home,
            )

    # where things belong

    def _is_isolated(self, line: PositionLine) -> bool:
        return self.mode == ISOLATED or line.isolated

    def _isolated_id(self, symbol: str, side_mode: str) -> str:
        part = f"isolated:{symbol}" + ("" if side_mode == "net" else f":{side_mode.upper()}")
        return account_id(VENUE, self.owner, part)

    def _position_home(self, line: PositionLine) -> str:
        return self._isolated_id(line.market.symbol, line.side_mode) if self._is_isolated(line) else self.home

    def _record_home(self, record: Any) -> str:
        """Account of a position that may be unreadable otherwise; the unified one when even the symbol says nothing."""
        try:
            market = market_of(str(record["symbol"]))
        except (FieldError, KeyError, TypeError):
            return self.home
        if self.mode != ISOLATED and str(record.get("tradeMode")) != "1":
            return self.home
        side_mode = {"1": "long", "2": "short"}.get(str(record.get("positionIdx")), "net")
        home = self._isolated_id(market.symbol, side_mode)
        self.isolated.setdefault(home, _Isolated(market.settle, market.symbol))
        return home

    # rows

    def _position(self, line: PositionLine, payload: Payload) -> None:
        market, home = line.market, self._position_home(line)
        isolated = self._is_isolated(line)
        if isolated:
            equity = None if line.margin is None or line.profit is None else line.margin + line.profit
            self.isolated[home] = _Isolated(
                market.settle, market.symbol, line.margin, equity, line.initial, line.maintenance
            )
        instrument = self.catalog.instrument(market, joined(line.path, "symbol"))
        margined = market.kind != "option" and (isolated or self.mode != PORTFOLIO)
        if margined and line.leverage is None:
            raise FieldError(joined(line.path, "leverage"), FailureReason.MISSING_FIELD, "field 'leverage' is missing")
        if isolated and line.margin is None:
            raise FieldError(
                joined(line.path, "positionBalance"), FailureReason.MISSING_FIELD, "field 'positionBalance' is missing"
            )
        override = None
        if margined and line.leverage is not None:
            override = initial_rate(self.rows, self.market, self.fees, line, payload=payload, home=home)
        self.rows.add(
            "positions",
            account_id=home,
            instrument_id=instrument,
            side_mode=line.side_mode,
            quantity=line.quantity,
            entry_price=line.entry_price,
            leverage=line.leverage,
            initial_rate_override=override,
            isolated_collateral=line.margin if isolated else None,
            reported_initial_margin=line.initial,
            reported_maintenance_margin=line.maintenance,
            reported_liquidation_price=line.liquidation_price,
        )
        if isolated and line.margin:
            self._balance(home, market.settle, line.margin, path=joined(line.path, "positionBalance"))
        if not isolated:
            self.held.add(market.symbol)
        if line.bankruptcy_price is not None:
            side = "" if line.side_mode == "net" else f":{line.side_mode.upper()}"
            held, price = f"{home}/{instrument}{side}", line.bankruptcy_price
            add_market_state(self.rows, held, "bankruptcy_price", price, as_of=moment_of(payload), source=POSITIONS)
        mark = self._mark(home, line, instrument, payload)
        if margined:
            check_tiers(self.rows, self.market, line, mark, payload=payload, home=home)
        if market.kind == "option":
            check_option(
                self.rows, self.market, line, self.catalog, payload=payload, home=home, cross=self.mode == CROSS
            )

    def _mark(self, home: str, line: PositionLine, instrument: str, payload: Payload) -> Decimal | None:
        """Mark of a position: its own answer's, else the market's; written when it is its own."""
        if line.mark_price is None:
            ticker = self.market.tickers.get(line.market.symbol)
            if ticker is not None and ticker.mark_price is not None:
                return ticker.mark_price
            self.rows.fail(
                FailureReason.MISSING_MARK,
                f"no mark of {line.market.symbol} in position/list or market/tickers",
                payload=payload.name,
                path=joined(line.path, "markPrice"),
                subject=instrument,
                account_id=home,
            )
            return None
        earlier = self.marks.setdefault((home, instrument), (line.mark_price, moment_of(payload)))[0]
        if earlier != line.mark_price:
            message = f"marks {earlier} and {line.mark_price} of {line.market.symbol} in one account"
            raise FieldError(joined(line.path, "markPrice"), FailureReason.INCONSISTENT, message)
        return line.mark_price

    def _balance(self, home: str, coin: str, quantity: Decimal, *, enabled: bool = True, **columns: Any) -> None:
        """A row of `balances`, of side liability when negative; raises unknown_asset. Zero is no row."""
        path = columns.pop("path", "")
        if quantity == 0:
            return
        if not self.catalog.named.asset(coin):
            raise FieldError(path, FailureReason.UNKNOWN_ASSET, f"{coin[:40]!r} is not in the asset book")
        self.rows.add(
            "balances",
            account_id=home,
            asset_id=coin,
            side="asset" if quantity > 0 else "liability",
            quantity=abs(quantity),
            collateral_enabled=enabled,
            **columns,
        )

    def _balances(self, switches: Mapping[str, CollateralLine]) -> dict[str, CollateralTable]:
        """Balances of the unified account, beside isolated positions less their margin; gives the collateral tables.

        The venue counts a coin net of what was borrowed of it for spot trading. Both sides are shown where the coin
        counts in full, so that it comes to the same, else the net. Interest that has accrued but is not yet charged is
        no part of the venue's equity and none of ours.
        """
        tables: dict[str, CollateralTable] = {}
        if self.wallet is None:
            return tables
        for coin, line in sorted(self.wallet.coins.items()):
            with self.rows.guard(self.wallet.payload.name, subject=coin, account_id=self.home):
                net = line.net - self._isolated_margins(coin, line)
                if self._counts_for_nothing(line, net, switches):
                    continue
                enabled = self.mode == ISOLATED or counts_as_collateral(
                    line, (switches.get(coin), self.market.switches.get(coin))
                )
                table = None if self.mode == ISOLATED else self._table(coin, switches)
                in_full = self.mode == ISOLATED or table is None or all(ratio == 1 for _, ratio in table.tiers)
                path = joined(line.path, "coin")
                if enabled and in_full and net > 0 and line.spot_borrow:
                    self._balance(self.home, coin, -line.spot_borrow, path=path)
                    self._balance(self.home, coin, net + line.spot_borrow, locked=line.locked, path=path)
                else:
                    self._balance(self.home, coin, net, enabled=enabled, locked=line.locked, path=path)
                if net != 0 and coin not in self.wallet.prices:
                    message = f"no dollar price of {coin} in the wallet or in market/tickers"
                    self._lacks(FailureReason.MISSING_MARK, message, joined(line.path, "usdValue"), coin)
                if table is not None:
                    tables[coin] = table
                elif net > 0 and enabled and self.mode != ISOLATED:
                    message = f"no collateral ratio of {coin} in spot-margin-trade/collateral or elsewhere"
                    self._lacks(FailureReason.MISSING_PARAMETER, message, path, coin)
        return tables

    def _counts_for_nothing(self, line: CoinLine, net: Decimal, switches: Mapping[str, CollateralLine]) -> bool:
        """Whether a coin is unknown and adds nothing to the account by the venue's own words, which is a finding."""
        if self.wallet is None or net == 0 or self.catalog.named.asset(line.coin):
            return False
        found = uncounted(
            line,
            net,
            answers=(switches, self.market.switches),
            tables=self.market.collateral,
            others=[coin for coin in self.wallet.coins if self.catalog.named.asset(coin)],
            as_collateral=self.mode != ISOLATED,
        )
        if found is not None:
            name = self.wallet.payload.name
            tell_uncounted(
                self.rows, found, account=self.home, asset=line.coin, quantity=net, payload=name, path=line.path
            )
        return found is not None

    def _lacks(self, reason: FailureReason, message: str, path: str, coin: str) -> None:
        name = self.wallet.payload.name if self.wallet else ""
        self.rows.fail(reason, message, payload=name, path=path, subject=coin, account_id=self.home)

    def _isolated_margins(self, coin: str, line: CoinLine) -> Decimal:
        own = [account for account in self.isolated.values() if account.settle == coin]
        if any(account.margin is None for account in own):
            message = f"the margin of an isolated {coin} position is not known, nor what is left beside it"
            raise FieldError(joined(line.path, "walletBalance"), FailureReason.INCONSISTENT, message)
        return sum((account.margin or _ZERO for account in own), _ZERO)

    def _table(self, coin: str, switches: Mapping[str, CollateralLine]) -> CollateralTable | None:
        if coin in self.market.collateral:
            return self.market.collateral[coin]
        own = switches.get(coin)
        return flat_table(own) if own is not None and own.ratio is not None else None

    def _order(self, line: OrderLine, payload: Payload) -> Decimal:
        """Adds an order; gives what it would lose at the mark, in dollars (0 or negative), in cross margin."""
        market, loss = line.market, _ZERO
        if line.remaining == 0:
            return loss
        with self.rows.guard(payload.name, subject=market.symbol, account_id=self.home):
            instrument = self.catalog.instrument(market, joined(line.path, "symbol"))
            self.rows.add(
                "open_orders",
                order_id=f"{self.home}:{line.order_id}",
                account_id=self.home,
                instrument_id=instrument,
                side=line.side,
                remaining_quantity=line.remaining,
                limit_price=line.limit_price,
                reduce_only=line.reduce_only,
            )
            if self.mode == CROSS and self.wallet is not None and line.limit_price is not None and not line.reduce_only:
                mark = self._order_mark(market, instrument, line)
                profit = mechanics.order_loss(
                    1 if line.side == "buy" else -1, line.remaining, line.limit_price, mark, inverse=market.inverse
                )
                loss = in_dollars(self.wallet, market.settle, decimal_from(profit))
        return loss

    def _order_mark(self, market: Market, instrument: str, line: OrderLine) -> Decimal:
        own = self.marks.get((self.home, instrument))
        if own is not None:
            return own[0]
        text = self.plain.mark_texts.get(market.symbol) if self.plain is not None else None
        if text not in (None, ""):
            return Decimal(str(text))
        ticker = self.market.tickers.get(market.symbol)
        if ticker is None or ticker.mark_price is None:
            message = f"no mark of {market.symbol}, at which the loss of its order is counted"
            raise FieldError(joined(line.path, "symbol"), FailureReason.MISSING_MARK, message)
        return ticker.mark_price

    def _amounts(self, order_loss: Decimal) -> Amounts:
        """What the unified account's requirement holds beyond its formulas."""
        if self.wallet is None or self.mode == PORTFOLIO:
            return Amounts()
        orders, loans = _ZERO, Loans(_ZERO, _ZERO)
        with self.rows.guard(self.wallet.payload.name, subject=self.owner, account_id=self.home):
            orders = order_initial(self.wallet)
            if self.mode == CROSS:
                loans = loan_margins(self.wallet)
        return Amounts(orders, loans.initial, loans.maintenance, order_loss)

    # accounts

    def _write_unified(self, amounts: Amounts, tables: Mapping[str, CollateralTable]) -> None:
        line = None if self.wallet is None else self.wallet.line
        totals = self.mode != ISOLATED and line is not None
        payload = self.wallet.payload if self.wallet else next((p for ps in self.payloads.values() for p in ps), None)
        self.rows.add(
            "accounts",
            account_id=self.home,
            node=self.home,
            venue=VENUE,
            owner=self.owner,
            margin_mode="portfolio" if self.mode == PORTFOLIO else "cross",
            rule_set=self._unified_rules(amounts, tables),
            settlement_asset="USD",
            event_at=answer_of(self.wallet.payload.body).time if self.wallet else None,
            received_at=payload.received_at if payload else None,
            reported_equity=line.margin_balance if totals and line else None,
            reported_initial_margin=line.initial if totals and line else None,
            reported_maintenance_margin=line.maintenance if totals and line else None,
            reported_health=line.maintenance_rate if totals and line else None,
        )

    def _unified_rules(self, amounts: Amounts, tables: Mapping[str, CollateralTable]) -> str:
        """The shared rule set, or one of the account's own when it has amounts or collateral ratios of its own."""
        if self.mode == PORTFOLIO:
            return self._portfolio_rules(tables)
        if self.mode == ISOLATED:
            rule_set = rule_set_id(WALLET, self.owner if amounts.own else "")
            self.rule_sets.add(rule_set, wallet_components(amounts), symbols=set())
            return rule_set
        own = amounts.own or any(table != self.market.collateral.get(coin) for coin, table in tables.items())
        rule_set = rule_set_id(CROSS, self.owner if own else "")
        self.rule_sets.add(rule_set, cross_components(amounts, self.market.options), symbols=self.held)
        if own:
            self.rule_sets.collateral[rule_set] = dict(tables)
        return rule_set

    def _portfolio_rules(self, tables: Mapping[str, CollateralTable]) -> str:
        rule_set = rule_set_id(PORTFOLIO, self.owner)
        initial = maintenance = _ZERO
        if self.wallet is not None:
            line = self.wallet.line
            for key, value in (("totalInitialMargin", line.initial), ("totalMaintenanceMargin", line.maintenance)):
                if value is None:
                    self.rows.fail(
                        FailureReason.MISSING_FIELD,
                        f"field {key!r} is missing, by which portfolio margin is taken as reported",
                        payload=self.wallet.payload.name,
                        path=joined(line.path, key),
                        subject=self.owner,
                        account_id=self.home,
                    )
            initial, maintenance = line.initial or _ZERO, line.maintenance or _ZERO
        self.rule_sets.add(rule_set, portfolio_components(initial, maintenance), symbols=self.held)
        self.rule_sets.collateral[rule_set] = dict(tables)
        return rule_set

    def _write_isolated(self) -> None:
        payload = next(iter(self.payloads.get(POSITIONS, ())), None)
        for home, account in sorted(self.isolated.items()):
            self.catalog.named.asset(account.settle)
            rule_set = rule_set_id(ISOLATED)
            self.rule_sets.add(rule_set, isolated_components(), symbols=self._isolated_symbols(account))
            self.rows.add(
                "accounts",
                account_id=home,
                parent_account_id=self.home,
                node=home,
                venue=VENUE,
                owner=self.owner,
                margin_mode="isolated",
                rule_set=rule_set,
                settlement_asset=account.settle,
                event_at=moment_of(payload) if payload else None,
                received_at=payload.received_at if payload else None,
                reported_equity=account.reported_equity,
                reported_initial_margin=account.reported_initial,
                reported_maintenance_margin=account.reported_maintenance,
            )

    def _isolated_symbols(self, account: _Isolated) -> set[str]:
        return {account.symbol} if self.catalog.known(account.symbol) is not None else set()

    def _write_marks(self) -> None:
        if self.plain is not None:
            self.rows.add_table("marks", self.plain.marks)
        for (home, instrument), (value, moment) in sorted(self.marks.items()):
            add_mark(self.rows, instrument, "mark", value, as_of=moment, source=POSITIONS, account_id=home)
        if self.wallet is None:
            return
        for coin in sorted(self.wallet.own_prices):
            if self.catalog.named.asset(coin):
                price, as_of = self.wallet.prices[coin], moment_of(self.wallet.payload)
                add_mark(self.rows, coin, "index", price, as_of=as_of, source=WALLET_BALANCE, account_id=self.home)
