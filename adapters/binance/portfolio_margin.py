"""Portfolio margin: one account of both futures products and the margin wallet, by the unified margin ratio (uniMMR).

`binance:<owner>:portfolio`, in USD: every coin net (margin wallet less loan, futures wallets and futures profit) at its
collateral rate, against the brackets of both products and the margin of loans. Liquidated at a dated uniMMR.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason
from aggregator.rule_forms import component_rows

from ..amounts import FieldError, joined, members
from ..fields import records_of
from ..market_rows import add_mark, add_market_state
from ..rows import Rows
from ..symbols import account_id, instrument_id
from ..transport import Payload
from ..uncounted import Uncounted, tell_uncounted, worth_nothing
from . import mechanics
from .contracts import COINM, USDM, Product
from .market import PARAMETER_FILE, VENUE, BinanceCatalog, MarketData
from .parse import PositionLine, SymbolSetting, order_line, symbol_setting, unique_lines
from .portfolio_market import INDEX, LEVERAGE, RATES, PortfolioMarket, loan_leverages
from .portfolio_parse import BalanceLine, PortfolioLine, balance_line, order_initial, portfolio_line
from .positions import Holder, PositionKey, add_position, check_one_moment, merged, position_lines
from .rule_sets import RULE_SOURCES, RuleSets
from .rules import PORTFOLIO_MARGIN, PortfolioAmounts, portfolio_components, rule_set_id

PORTFOLIO = "portfolio"
"""Part of the account id."""
ACCOUNTS = ("papi/account", "portfolio/account")
BALANCES = ("papi/balance", "portfolio/balance")
PRODUCTS: tuple[tuple[Product, str], ...] = ((USDM, "papi/um"), (COINM, "papi/cm"))
"""Futures products with the path of their own answers under portfolio margin."""
OWN_REQUESTS = (
    *ACCOUNTS,
    *BALANCES,
    *(f"{path}/{name}" for _, path in PRODUCTS for name in ("account", "positionRisk", "openOrders")),
    "papi/um/symbolConfig",
)
"""Requests that only a portfolio-margin owner has."""

_ZERO = Decimal(0)
# Which accounts are margined by scenarios (SPAN), whose risk arrays are not published here.
_SPAN = "PM_3"
_SMALLEST = Decimal("0.01")


class _Positions(NamedTuple):
    """What one product's answers say; `listed` whether any answer lists positions at all."""

    lines: list[tuple[PositionLine, Payload]]
    order_initial: dict[str, Decimal] | None
    listed: bool


class PortfolioReader:
    """Reads the answers of one portfolio-margin owner."""

    def __init__(
        self,
        rows: Rows,
        owner: str,
        payloads: Mapping[str, Sequence[Payload]],
        *,
        catalog: BinanceCatalog,
        market: MarketData,
        portfolio: PortfolioMarket,
        rule_sets: RuleSets,
    ) -> None:
        self.rows, self.owner, self.payloads = rows, owner, payloads
        self.catalog, self.market, self.portfolio, self.rule_sets = catalog, market, portfolio, rule_sets
        self.home = account_id(VENUE, owner, PORTFOLIO)
        self.holder = Holder(rows, owner, catalog, market)
        self.symbols: set[str] = set()
        self.coins: set[str] = set()
        """Coins that count: those of balances and of positions' profit."""

    def read(self) -> None:
        """Adds everything that the owner's answers say."""
        totals, totals_payload = self._totals()
        balances, balance_payload = self._balance_lines()
        settings = self._settings()
        products = [self._product(product, path, settings) for product, path in PRODUCTS]
        for line, payload in (entry for product in products for entry in product.lines):
            with self.rows.guard(payload.name, subject=line.market.symbol, account_id=self.home):
                self._position(line, payload)
        for product, path in PRODUCTS:
            self._orders(product, path)
        self._balances(balances, balance_payload)
        self._check_coverage(totals, balances, products, balance_payload)
        self._prices(balance_payload)
        self._write(self._amounts(totals, balances, products), totals, totals_payload or balance_payload)
        self.holder.write_marks()
        self._take_failures()

    # answers

    def _take_failures(self) -> None:
        """What failed one of the products of this owner before it was known to be under portfolio margin fails this."""
        wholes = {account_id(VENUE, self.owner, product.part) for product, _ in PRODUCTS}
        self.rows.failures[:] = [
            replace(failure, account_id=self.home) if failure.account_id in wholes else failure
            for failure in self.rows.failures
        ]

    def _fail(
        self, reason: FailureReason, message: str, *, payload: str = "", path: str = "", subject: str = ""
    ) -> None:
        self.rows.fail(reason, message, payload=payload, path=path, subject=subject or self.owner, account_id=self.home)

    def _one_of(self, requests: Sequence[str]) -> Payload | None:
        """The answer to any of some requests that ask for the same; two of them are a duplicate."""
        found = [payload for request in requests for payload in self.payloads.get(request, ())]
        if len(found) > 1:
            names = ", ".join(sorted(payload.name for payload in found))
            self._fail(
                FailureReason.DUPLICATE,
                f"{len(found)} answers to {' and '.join(requests)}; all rejected: {names}",
                payload=found[-1].name,
                path="request",
            )
            return None
        return found[0] if found else None

    def _totals(self) -> tuple[PortfolioLine | None, Payload | None]:
        payload = self._one_of(ACCOUNTS)
        if payload is None:
            return None, None
        with self.rows.guard(payload.name, subject=self.owner, account_id=self.home):
            line = portfolio_line(payload.body)
            if line.account_type == _SPAN:
                message = "portfolio margin by scenarios (SPAN), whose risk arrays are not published"
                self._fail(FailureReason.UNSUPPORTED, message, payload=payload.name, path="accountType")
            if line.status:
                as_of, source = payload.received_at, payload.request
                add_market_state(self.rows, self.home, "account_status", line.status, as_of=as_of, source=source)
            return line, payload
        return None, payload

    def _balance_lines(self) -> tuple[dict[str, BalanceLine], Payload | None]:
        payload = self._one_of(BALANCES)
        if payload is None:
            message = "no papi/balance answer of this owner that can be used"
            self._fail(FailureReason.MISSING_FIELD, message, path="balance")
            return {}, None
        with self.rows.guard(payload.name, subject=self.owner, account_id=self.home):
            lines = unique_lines(
                self.rows,
                payload.name,
                records_of(payload.body),
                balance_line,
                key=lambda line: line.asset,
                account=lambda record: self.home,
            )
            return {line.asset: line for line in lines}, payload
        return {}, payload

    def _settings(self) -> dict[str, SymbolSetting]:
        payload = self._one_of(("papi/um/symbolConfig", "fapi/symbolConfig"))
        if payload is None:
            return {}
        with self.rows.guard(payload.name, subject=self.owner, account_id=self.home):
            lines = unique_lines(
                self.rows, payload.name, records_of(payload.body), symbol_setting, key=lambda line: line.symbol
            )
            return {line.symbol: line for line in lines}
        return {}

    def _product(self, product: Product, path: str, settings: Mapping[str, SymbolSetting]) -> _Positions:
        """Positions of one product, from its account and risk answers of either path."""
        account = self._one_of((f"{path}/account", f"{product.api}/account"))
        risk = self._one_of((f"{path}/positionRisk", f"{product.api}/positionRisk"))
        stated: dict[PositionKey, PositionLine] | None = None
        lines: dict[PositionKey, PositionLine] = {}
        orders: dict[str, Decimal] | None = None
        if account is not None:
            with self.rows.guard(account.name, subject=self.owner, account_id=self.home):
                orders = self._order_margins(account)
                if "positions" in account.body:
                    stated = self._lines(account, members(account.body, "positions"), product, "positions")
        if risk is not None:
            with self.rows.guard(risk.name, subject=self.owner, account_id=self.home):
                lines = self._lines(risk, records_of(risk.body), product, "")
        found: list[tuple[PositionLine, Payload]] = []
        names = f"{product.api}/positionRisk", f"{product.api}/account"
        for key in sorted({*(stated or {}), *lines}):
            first, second = lines.get(key), (stated or {}).get(key)
            both = [line for line in (first, second) if line is not None]
            payload = risk if first is not None else account
            if payload is None or all(line.quantity == 0 for line in both):
                continue
            line = merged(both, settings.get(key[0]))
            with self.rows.guard(payload.name, subject=key[0], account_id=self.home):
                listed_in_account = stated is not None and risk is not None
                check_one_moment(line, first, second, account_listed=listed_in_account, names=names)
                found.append((line, payload))
        return _Positions(found, orders, stated is not None or risk is not None)

    def _lines(
        self, payload: Payload, records: Sequence[Any], product: Product, path: str
    ) -> dict[PositionKey, PositionLine]:
        return position_lines(self.rows, payload, records, product, path=path, account=lambda record: self.home)

    def _order_margins(self, payload: Payload) -> dict[str, Decimal]:
        lines = unique_lines(
            self.rows,
            payload.name,
            members(payload.body, "assets"),
            order_initial,
            key=lambda line: line[0],
            path="assets",
            account=lambda record: self.home,
        )
        return dict(lines)

    # rows

    def _position(self, line: PositionLine, payload: Payload) -> None:
        if line.isolated:
            message = "an isolated position cannot be held under portfolio margin"
            raise FieldError(line.path, FailureReason.INCONSISTENT, message)
        add_position(
            self.holder, self.home, line, payload=payload.name, source=payload.request, moment=payload.received_at
        )
        self.symbols.add(line.market.symbol)
        self.coins.add(line.market.margin_asset)

    def _orders(self, product: Product, path: str) -> None:
        payload = self._one_of((f"{path}/openOrders", f"{product.api}/openOrders"))
        if payload is None:
            return
        with self.rows.guard(payload.name, subject=self.owner, account_id=self.home):
            for line in unique_lines(
                self.rows,
                payload.name,
                records_of(payload.body),
                lambda record, place: order_line(record, place, product),
                key=lambda line: f"{line.market.symbol} {line.order_id}",
                account=lambda record: self.home,
            ):
                if line.remaining == 0:
                    continue
                with self.rows.guard(payload.name, subject=line.market.symbol, account_id=self.home):
                    self.rows.add(
                        "open_orders",
                        order_id=f"{VENUE}:{self.owner}:{line.market.symbol}:{line.order_id}",
                        account_id=self.home,
                        instrument_id=self.catalog.instrument(line.market, "symbol"),
                        side=line.side,
                        remaining_quantity=line.remaining,
                        limit_price=line.limit_price,
                        reduce_only=line.reduce_only,
                    )

    def _balances(self, balances: Mapping[str, BalanceLine], payload: Payload | None) -> None:
        name = payload.name if payload else ""
        for asset, line in sorted(balances.items()):
            if not (line.held or line.borrowed or line.interest or line.option_equity):
                continue
            with self.rows.guard(name, subject=asset, account_id=self.home):
                if line.option_equity:
                    message = "options under portfolio margin are not computed"
                    self._fail(FailureReason.UNSUPPORTED, message, payload=name, path=joined(line.path, "optionEquity"))
                if not self.catalog.named.asset(asset) and self._counts_for_nothing(line, name):
                    continue
                if not self.catalog.named.asset(asset):
                    message = f"{asset[:40]!r} is not in the asset book"
                    raise FieldError(joined(line.path, "asset"), FailureReason.UNKNOWN_ASSET, message)
                self.coins.add(asset)
                if line.held > 0:
                    self._balance(asset, "asset", line.held)
                if line.owed or line.interest:
                    self._balance(asset, "liability", line.owed, accrued_interest=line.interest)

    def _counts_for_nothing(self, line: BalanceLine, payload: str) -> bool:
        """Whether an unknown coin adds nothing to the equity by the venue's index or collateral rates: a finding."""
        net = line.held - line.borrowed - line.interest
        stated, rates = self.portfolio.indices.get(line.asset), self.portfolio.rates.get(line.asset)
        owed = bool(line.borrowed or line.interest or line.option_equity) or net < 0
        found = worth_nothing("asset", None if stated is None else net * stated[0], owed=owed)
        if found is None and not owed and rates is not None and not any(rate for _, rate in rates.tiers):
            found = Uncounted("asset", f"its rate in {RATES} is 0")
        if found is not None:
            tell_uncounted(
                self.rows,
                found,
                account=self.home,
                asset=line.asset,
                quantity=net,
                payload=payload,
                path=line.path,
            )
        return found is not None

    def _balance(self, asset: str, side: str, quantity: Decimal, **columns: Any) -> None:
        self.rows.add(
            "balances",
            account_id=self.home,
            asset_id=asset,
            side=side,
            quantity=quantity,
            collateral_enabled=True,
            **columns,
        )

    def _check_coverage(
        self,
        totals: PortfolioLine | None,
        balances: Mapping[str, BalanceLine],
        products: Sequence[_Positions],
        payload: Payload | None,
    ) -> None:
        """An account with futures profit, or with more margin than its loans need, has positions: somebody must list
        them.
        """
        name = payload.name if payload else ""
        for (product, path), found, profit in zip(PRODUCTS, products, ("linear_profit", "inverse_profit"), strict=True):
            if not found.listed and any(getattr(line, profit) for line in balances.values()):
                message = f"futures profit, but no answer of {path}/positionRisk or {product.api}/positionRisk"
                self._fail(FailureReason.MISSING_FIELD, message, payload=name, path="positions", subject=path)
        if payload is not None and totals is not None and not any(found.listed for found in products):
            owed = any(line.borrowed for line in balances.values())
            if totals.maintenance > _SMALLEST and not owed:
                message = f"a maintenance margin of {totals.maintenance} without a loan, and no answer lists positions"
                self._fail(FailureReason.MISSING_FIELD, message, payload=name, path="positions")

    def _prices(self, payload: Payload | None) -> None:
        """Own marks of the coins that count, by the index of portfolio margin, and what has no price or rate."""
        name = payload.name if payload else ""
        for asset in sorted(self.coins):
            stated = self.portfolio.indices.get(asset)
            if stated is not None:
                price, source = stated
                as_of = source.received_at
                add_mark(self.rows, asset, "index", price, as_of=as_of, source=INDEX, account_id=self.home)
            elif self._price(asset) is None:
                message = f"no usable index of {asset} in {INDEX} or fapi/assetIndex"
                self._fail(FailureReason.MISSING_MARK, message, payload=name, subject=asset)
            if asset not in self.portfolio.rates:
                message = f"no usable collateral rate of {asset} in {RATES}"
                self._fail(FailureReason.MISSING_PARAMETER, message, payload=name, subject=asset)

    def _price(self, asset: str) -> Decimal | None:
        """Dollars per coin: the index of portfolio margin, else the market's, else par for a stable nobody prices."""
        stated = self.portfolio.indices.get(asset)
        if stated is not None:
            return stated[0]
        if asset in self.market.dollars:
            return self.market.dollars[asset]
        answered = bool(self.portfolio.indices) or self.market.states_indices
        return Decimal(1) if not answered and self.catalog.named.is_stable(asset) else None

    # requirement

    def _amounts(
        self, totals: PortfolioLine | None, balances: Mapping[str, BalanceLine], products: Sequence[_Positions]
    ) -> PortfolioAmounts:
        leverages = self.portfolio.leverage | loan_leverages(self.rows, self.payloads.get(LEVERAGE, ()), self.home)
        initial: dict[str, Decimal] = {}
        maintenance: dict[str, Decimal] = {}
        for asset, line in sorted(balances.items()):
            if not line.borrowed:
                continue
            leverage = leverages.get(asset, self.portfolio.default_leverage)
            rate = None if leverage is None else self.portfolio.loan_rates.get(leverage)
            if leverage is None or rate is None:
                message = f"no maintenance rate of a loan of {asset} at leverage {leverage} in the parameter file"
                self._fail(FailureReason.MISSING_PARAMETER, message, subject=asset)
                continue
            # The charge falls on all that is owed of a coin; only the loan needs margin.
            share = line.borrowed / (line.owed + line.interest)
            initial[asset] = mechanics.loan_initial_rate(leverage) * share
            maintenance[asset] = rate * share
        orders, basis = self._order_initial(totals, balances, products, initial)
        return PortfolioAmounts(initial, maintenance, totals.open_loss if totals else _ZERO, orders, basis)

    def _order_initial(
        self,
        totals: PortfolioLine | None,
        balances: Mapping[str, BalanceLine],
        products: Sequence[_Positions],
        loan_rates: Mapping[str, Decimal],
    ) -> tuple[Decimal, str]:
        """Initial margin of futures orders in USD and where it comes from: the account answers by asset, else what the
        reported total holds beyond positions and loans.
        """
        if all(found.order_initial is not None for found in products if found.listed):
            total = _ZERO
            for found in products:
                for asset, amount in (found.order_initial or {}).items():
                    price = self._price(asset)
                    if amount and price is None:
                        message = f"no index of {asset}, at which the margin of its orders counts"
                        self._fail(FailureReason.MISSING_MARK, message, subject=asset)
                    total += amount * (price or _ZERO)
            return total, "openOrderInitialMargin"
        if totals is None or totals.initial is None:
            self._fail(
                FailureReason.MISSING_FIELD,
                "no answer says what open orders need: papi/um/account and papi/cm/account do, or accountInitialMargin",
                path="accountInitialMargin",
            )
            return _ZERO, ""
        known = self._initial_of_positions(products)
        for asset, rate in loan_rates.items():
            price = self._price(asset)
            known += (balances[asset].owed + balances[asset].interest) * rate * (price or _ZERO)
        rest = totals.initial - known
        # Marks and totals are not of one instant: what is within their difference is no order.
        return (rest if rest > _SMALLEST + totals.initial / 1000 else _ZERO), "accountInitialMargin less positions"

    def _initial_of_positions(self, products: Sequence[_Positions]) -> Decimal:
        total = _ZERO
        for line, _ in (entry for found in products for entry in found.lines):
            kept = self.holder.marks.get((self.home, instrument_id(VENUE, line.market.symbol)))
            premium = self.market.premiums.get(line.market.symbol)
            mark = kept[0] if kept else premium.mark_price if premium else None
            price = self._price(line.market.margin_asset)
            if mark is None or price is None or line.leverage is None or line.market.symbol not in self.symbols:
                continue  # said where the position was read
            size = self.catalog.contract_size(line.market)
            notional = abs(line.quantity) * size / mark if line.market.inverse else abs(line.quantity) * mark
            total += notional / line.leverage * price
        return total

    def _write(self, amounts: PortfolioAmounts, totals: PortfolioLine | None, payload: Payload | None) -> None:
        received: datetime | None = payload.received_at if payload else None
        self.rows.add(
            "accounts",
            account_id=self.home,
            node=self.home,
            venue=VENUE,
            owner=self.owner,
            margin_mode="portfolio",
            rule_set=self._rule_set(amounts),
            settlement_asset="USD",
            received_at=received,
            reported_equity=totals.equity if totals else None,
            reported_initial_margin=totals.initial if totals else None,
            reported_maintenance_margin=totals.maintenance if totals else None,
            reported_health=totals.uni_mmr if totals else None,
        )

    def _rule_set(self, amounts: PortfolioAmounts) -> str:
        """The shared rule set, or one of the account's own when it has loans, amounts or brackets of its own."""
        if self.portfolio.trigger is None:
            message = f"no uniMMR at which the venue liquidates: `trigger` of [portfolio_margin] in {PARAMETER_FILE}"
            self._fail(FailureReason.MISSING_PARAMETER, message, path="portfolio_margin.trigger")
        own = amounts.own or bool(self.market.brackets.by_owner.get(self.owner))
        rule_set = rule_set_id(PORTFOLIO_MARGIN, self.owner if own else "")
        self.rule_sets.symbols.setdefault(rule_set, set()).update(self.symbols)
        if own:
            components = portfolio_components(amounts, trigger=self.portfolio.trigger or Decimal(1))
            source = RULE_SOURCES[PORTFOLIO_MARGIN]
            self.rule_sets.components[rule_set] = component_rows(rule_set, components, source=source)
            self.rule_sets.owners[rule_set] = self.owner
            self.rule_sets.coins[rule_set] = self.coins
        else:
            self.rule_sets.share_portfolio(self.portfolio)
        return rule_set
