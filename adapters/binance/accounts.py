"""One owner's accounts of one futures product: which accounts there are, what is in them, which rule set each has.

USD-M in single-asset mode and COIN-M: an account per margin asset, and one per isolated position. USD-M in multi-assets
mode: one account in USD.
A failure that concerns the owner as a whole (an answer that is missing, unreadable or doubled) falls on every account
of the owner that is not isolated, or on a placeholder account when nothing could be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason
from aggregator.rule_forms import component_rows

from ..account_rows import add_balance, spread_failures
from ..amounts import FieldError, member, members
from ..fields import flag_of, records_of
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from ..uncounted import Uncounted, tell_uncounted, worth_nothing
from .contracts import COINM, Product, any_market_of, is_coin_symbol
from .market import VENUE, BinanceCatalog, MarketData
from .parse import (
    AssetLine,
    PositionLine,
    SymbolSetting,
    Totals,
    asset_line,
    order_line,
    symbol_setting,
    totals,
    unique_lines,
)
from .position_columns import PlainPositions, Question, plain_positions
from .positions import Holder, PositionKey, add_position, check_one_moment, merged, position_lines
from .rule_sets import RULE_SOURCES, RuleSets
from .rules import MULTI_ASSETS, futures_components, rule_set_id

MULTI = "multi"
OTHER_PARTS = ("portfolio",)
"""First words of account parts that no futures product has."""

# walletBalance = crossWalletBalance + isolated wallets, each rounded by the venue to 8 decimals.
_WALLET_TOLERANCE = Decimal("0.000001")


@dataclass
class _Account:
    """An account under construction; `part` names it among the owner's."""

    part: str
    settlement: str
    margin_mode: str = "cross"
    parent: str | None = None
    order_initial: Decimal = Decimal(0)
    order_basis: str = ""
    reported_equity: Decimal | None = None
    reported_initial: Decimal | None = None
    reported_maintenance: Decimal | None = None
    symbols: set[str] = field(default_factory=set)


class OwnerReader:
    """Reads the answers of one owner and product, in the order mode, account, positions, orders, rule sets."""

    def __init__(
        self,
        rows: Rows,
        owner: str,
        product: Product,
        payloads: Mapping[str, Sequence[Payload]],
        *,
        catalog: BinanceCatalog,
        market: MarketData,
        rule_sets: RuleSets,
        multi_assets_default: bool,
        plain: PlainPositions | None = None,
    ) -> None:
        self.rows, self.owner, self.product, self.payloads = rows, owner, product, payloads
        self.catalog, self.market, self.rule_sets = catalog, market, rule_sets
        self.whole = account_id(VENUE, owner, product.part)
        self.multi = multi_assets_default and not product.inverse
        self.accounts: dict[str, _Account] = {}
        self.holder = Holder(rows, owner, catalog, market)
        self.plain = plain
        """All positions of this owner where they were read by columns."""

    def read(self) -> None:
        """Adds everything that the owner's answers say."""
        with self._guard("multiAssetsMargin") as payload:
            if payload is not None:
                self.multi = flag_of(member(payload.body, "multiAssetsMargin"), "multiAssetsMargin")
        settings = self._settings()
        stated, wallet, sums = self._account_answer()
        risk = self._risk_answer()
        isolated = self._positions(stated, risk, settings) if self.plain is None else {}
        if self.plain is not None:
            self.rows.add_table("positions", self.plain.positions)
            for home, symbols in self.plain.symbols.items():
                self._open(home).symbols |= symbols
        self._orders()
        if self.multi:
            self._multi_assets(wallet, sums)
        else:
            self._single_asset(wallet, stated or {}, isolated)
        self._spread_failures()
        self._write_accounts()

    # answers

    def _request(self, name: str) -> str:
        return f"{self.product.api}/{name}"

    def _payload(self, name: str) -> Payload | None:
        return next(iter(self.payloads.get(self._request(name), ())), None)

    @contextmanager
    def _guard(self, name: str) -> Iterator[Payload | None]:
        payload = self._payload(name)
        with self.rows.guard(payload.name if payload else "", subject=self.owner, account_id=self.whole):
            yield payload

    def _fail_whole(self, reason: FailureReason, message: str, *, payload: str = "", path: str = "") -> None:
        self.rows.fail(reason, message, payload=payload, path=path, subject=self.owner, account_id=self.whole)

    def _settings(self) -> dict[str, SymbolSetting]:
        settings: dict[str, SymbolSetting] = {}
        with self._guard("symbolConfig") as payload:
            if payload is not None:
                lines = unique_lines(
                    self.rows,
                    payload.name,
                    records_of(payload.body),
                    symbol_setting,
                    key=lambda line: line.symbol,
                )
                settings = {line.symbol: line for line in lines}
        return settings

    def _account_answer(self) -> tuple[dict[PositionKey, PositionLine] | None, dict[str, AssetLine], Totals | None]:
        """Positions (None where the answer has no such list), assets and USD totals of `fapi/account`."""
        stated: dict[PositionKey, PositionLine] | None = None
        wallet: dict[str, AssetLine] = {}
        sums: Totals | None = None
        payload = self._payload("account")
        if payload is None:
            self._fail_whole(
                FailureReason.MISSING_FIELD,
                f"no {self._request('account')} answer of this owner that can be used",
                path="assets",
            )
            return stated, wallet, sums
        with self._guard("account"):
            records = members(payload.body, "assets")
            sums = totals(payload.body)
            lines = unique_lines(
                self.rows,
                payload.name,
                records,
                asset_line,
                key=lambda x: x.asset,
                path="assets",
                account=self._asset_home,
            )
            wallet = {line.asset: line for line in lines}
            if self.plain is None and "positions" in payload.body:
                stated = self._position_lines(payload, members(payload.body, "positions"), "positions")
        return stated, wallet, sums

    def _risk_answer(self) -> dict[PositionKey, PositionLine]:
        with self._guard("positionRisk") as payload:
            if payload is not None and self.plain is None:
                return self._position_lines(payload, records_of(payload.body), "")
        return {}

    def _position_lines(self, payload: Payload, records: Sequence[Any], path: str) -> dict[PositionKey, PositionLine]:
        return position_lines(self.rows, payload, records, self.product, path=path, account=self._position_home)

    # where things belong

    def _cross_id(self, asset: str) -> str:
        return account_id(VENUE, self.owner, MULTI) if self.multi else f"{self.whole}:{asset}"

    def _asset_home(self, record: Any) -> str:
        asset = record.get("asset") if isinstance(record, Mapping) else None
        if self.multi or (isinstance(asset, str) and asset):
            return self._cross_id(str(asset))
        return self.whole

    def _position_home(self, record: Any) -> str:
        """Account of a record that may be unreadable otherwise; the whole owner when even the symbol says nothing."""
        try:
            market = self.product.market_of(str(record["symbol"]), "")
        except (FieldError, KeyError, TypeError):
            return self.whole
        if self.multi:
            return self._cross_id(market.margin_asset)
        if str(record.get("marginType", "")).lower() == "isolated" or record.get("isolated") in (True, "true"):
            side = str(record.get("positionSide", "BOTH"))
            return self._isolated_id(market.symbol, {"LONG": "long", "SHORT": "short"}.get(side, "net"))
        return self._cross_id(market.margin_asset)

    def _order_home(self, record: Any) -> str:
        """Account of an order: the cross account also for isolated symbols, for its wallet reserves the margin."""
        return self._position_home({"symbol": record.get("symbol")} if isinstance(record, Mapping) else None)

    def _isolated_id(self, symbol: str, side_mode: str) -> str:
        part = f"isolated:{symbol}" + ("" if side_mode == "net" else f":{side_mode.upper()}")
        return account_id(VENUE, self.owner, part)

    def _open(self, account: str) -> _Account:
        """The account of an id, begun if it is new."""
        if account not in self.accounts:
            part = account.removeprefix(f"{VENUE}:{self.owner}").removeprefix(":")
            own = part.removeprefix(self.product.part).removeprefix(":") if self.product.part else part
            if part.startswith("isolated:"):
                asset = self.product.market_of(part.split(":")[1], "").margin_asset
                self.accounts[account] = _Account(part, asset, "isolated", self._cross_id(asset))
            else:
                self.accounts[account] = _Account(part, "USD" if own in (MULTI, "") else own)
        return self.accounts[account]

    def _is_ours(self, account: str) -> bool:
        """Whether an account id is one of this reader's, and not the other product's or a portfolio."""
        part = account.removeprefix(f"{VENUE}:{self.owner}:")
        if part == account or part.partition(":")[0] in OTHER_PARTS:
            return False
        if part.startswith("isolated:"):
            return is_coin_symbol(part.split(":")[1]) == self.product.inverse
        return (part.partition(":")[0] == COINM.part) == self.product.inverse

    # positions

    def _positions(
        self,
        stated: Mapping[PositionKey, PositionLine] | None,
        risk: Mapping[PositionKey, PositionLine],
        settings: Mapping[str, SymbolSetting],
    ) -> dict[str, PositionLine]:
        """Adds all positions that are not zero; gives the isolated ones by account id."""
        isolated: dict[str, PositionLine] = {}
        for key in sorted({*(stated or {}), *risk}):
            first, second = risk.get(key), (stated or {}).get(key)
            lines = [line for line in (first, second) if line is not None]
            if all(line.quantity == 0 for line in lines):
                continue
            line = merged(lines, settings.get(key[0]))
            answer = "positionRisk" if first is not None else "account"
            payload = self._payload(answer)
            name = payload.name if payload else ""
            home = self._cross_id(line.market.margin_asset)
            if line.isolated and not self.multi:
                home = self._isolated_id(*key)
                isolated[home] = line
            self._open(home)
            with self.rows.guard(name, subject=line.market.symbol, account_id=home):
                if line.isolated and self.multi:
                    raise FieldError(
                        line.path,
                        FailureReason.INCONSISTENT,
                        "an isolated position cannot be held in multi-assets mode",
                    )
                names = self._request("positionRisk"), self._request("account")
                check_one_moment(line, first, second, account_listed=stated is not None, names=names)
                self._position(home, line, payload)
        return isolated

    def _position(self, home: str, line: PositionLine, payload: Payload | None) -> None:
        account = self.accounts[home]
        if account.margin_mode == "isolated":
            if line.isolated_wallet is None:
                message = f"no isolatedWallet of {line.market.symbol}"
                raise FieldError(f"{line.path}.isolatedWallet", FailureReason.MISSING_FIELD, message)
            self.catalog.instrument(line.market, f"{line.path}.symbol")
            self._balance(home, line.market.margin_asset, line.isolated_wallet)
            account.reported_equity = line.isolated_margin
            account.reported_initial, account.reported_maintenance = line.initial, line.maintenance
        add_position(
            self.holder,
            home,
            line,
            payload=payload.name if payload else "",
            source=self._request("positionRisk"),
            moment=getattr(self._payload("positionRisk"), "received_at", None),
        )
        account.symbols.add(line.market.symbol)

    # balances

    def _balance(self, home: str, asset: str, quantity: Decimal, *, enabled: bool = True, path: str = "") -> None:
        """A row of `balances`, of side liability when negative; raises unknown_asset. Zero is no row."""
        if quantity == 0:
            return
        if not self.catalog.named.asset(asset):
            raise FieldError(path, FailureReason.UNKNOWN_ASSET, f"{asset[:40]!r} is not in the asset book")
        add_balance(self.rows, home, asset, quantity, enabled=enabled)

    def _single_asset(
        self,
        wallet: Mapping[str, AssetLine],
        stated: Mapping[PositionKey, PositionLine],
        isolated: Mapping[str, PositionLine],
    ) -> None:
        payload = self._payload("account")
        name = payload.name if payload else ""
        for asset, line in wallet.items():
            home = self._cross_id(asset)
            if line.empty and home not in self.accounts:
                continue
            account = self._open(home)
            if not self.product.inverse and self.market.states_indices and asset not in self.market.indices:
                message = f"no usable index of {asset} in fapi/assetIndex"
                self.rows.fail(FailureReason.MISSING_MARK, message, payload=name, subject=asset, account_id=home)
            account.order_initial, account.order_basis = line.order_initial, f"openOrderInitialMargin of {asset}"
            own = [position for position in isolated.values() if position.market.margin_asset == asset]
            if own:
                # The venue's figures of the asset hold the isolated positions too.
                parts = [stated.get((position.market.symbol, position.side_mode)) for position in own]
                account.reported_equity = None if line.cross_profit is None else line.cross_wallet + line.cross_profit
                account.reported_initial = _less(line.initial, parts, lambda part: part.initial)
                account.reported_maintenance = _less(line.maintenance, parts, lambda part: part.maintenance)
            else:
                account.reported_equity = line.margin_balance
                account.reported_initial, account.reported_maintenance = line.initial, line.maintenance
            with self.rows.guard(name, subject=asset, account_id=home):
                self._balance(home, asset, line.cross_wallet, path=f"{line.path}.asset")
            if payload is not None and "positions" in payload.body:
                own = [p for p in stated.values() if p.market.margin_asset == asset and p.quantity != 0]
                wallets = [p.isolated_wallet for p in own] if self.plain is None else self.plain.wallets.get(asset, [])
                self._check_wallets(line, wallets, name)
        if payload is not None:
            for home, account in self.accounts.items():
                if account.margin_mode == "cross" and account.settlement not in wallet:
                    message = (
                        f"{self._request('account')} has no usable row of {account.settlement}, "
                        "in which positions or orders are held"
                    )
                    self.rows.fail(
                        FailureReason.MISSING_FIELD, message, payload=name, path="assets", subject=home, account_id=home
                    )

    def _check_wallets(self, line: AssetLine, wallets: Sequence[Decimal | None], payload: str) -> None:
        known = sum((w for w in wallets if w is not None), Decimal(0))
        gap = line.wallet - line.cross_wallet - known
        if all(w is not None for w in wallets) and abs(gap) > _WALLET_TOLERANCE:
            self.rows.fail(
                FailureReason.INCONSISTENT,
                f"walletBalance {line.wallet} of {line.asset} is not crossWalletBalance {line.cross_wallet} "
                f"and isolated wallets {known}",
                payload=payload,
                path=f"{line.path}.walletBalance",
                subject=line.asset,
            )

    def _multi_assets(self, wallet: Mapping[str, AssetLine], sums: Totals | None) -> None:
        payload = self._payload("account")
        home = account_id(VENUE, self.owner, MULTI)
        if payload is None or sums is None:
            return
        account = self._open(home)
        needed = {any_market_of(symbol).margin_asset for symbol in account.symbols}
        for asset, line in wallet.items():
            with self.rows.guard(payload.name, subject=asset, account_id=home):
                if self._counts_for_nothing(home, line, payload):
                    continue
                self._balance(home, asset, line.wallet, enabled=line.margin_available, path=f"{line.path}.asset")
                if line.wallet:
                    needed.add(asset)
        for asset in sorted(needed - set(self.market.indices)):
            message = f"no usable index of {asset} in fapi/assetIndex, by which multi-assets mode counts it"
            self.rows.fail(FailureReason.MISSING_MARK, message, payload=payload.name, subject=asset, account_id=home)
        account.reported_equity, account.reported_initial = sums.margin_balance, sums.initial
        account.reported_maintenance = sums.maintenance
        account.order_basis = "totalOpenOrderInitialMargin"
        if sums.order_initial is None:
            self.rows.fail(
                FailureReason.MISSING_FIELD,
                "field 'totalOpenOrderInitialMargin' is missing",
                payload=payload.name,
                path="totalOpenOrderInitialMargin",
                subject=home,
                account_id=home,
            )
        else:
            account.order_initial = sums.order_initial

    def _counts_for_nothing(self, home: str, line: AssetLine, payload: Payload) -> bool:
        """Whether an asset is unknown and adds nothing in multi-assets mode by the venue's own words: a finding."""
        if not line.wallet or self.catalog.named.asset(line.asset):
            return False
        index = self.market.indices.get(line.asset)
        found = worth_nothing(
            "walletBalance", None if index is None else line.wallet * index.price, owed=line.wallet < 0
        )
        if found is None and line.wallet > 0 and not line.margin_available:
            found = Uncounted("marginAvailable", "marginAvailable is false")
        if found is not None:
            name, path = payload.name, line.path
            tell_uncounted(
                self.rows, found, account=home, asset=line.asset, quantity=line.wallet, payload=name, path=path
            )
        return found is not None

    # orders, failures, accounts

    def _orders(self) -> None:
        with self._guard("openOrders") as payload:
            if payload is None:
                return
            for line in unique_lines(
                self.rows,
                payload.name,
                records_of(payload.body),
                lambda record, place: order_line(record, place, self.product),
                key=lambda line: f"{line.market.symbol} {line.order_id}",
                account=self._order_home,
            ):
                home = self._cross_id(line.market.margin_asset)
                if line.remaining == 0:
                    continue
                self._open(home)
                with self.rows.guard(payload.name, subject=line.market.symbol, account_id=home):
                    self.rows.add(
                        "open_orders",
                        order_id=f"{VENUE}:{self.owner}:{line.market.symbol}:{line.order_id}",
                        account_id=home,
                        instrument_id=self.catalog.instrument(line.market, "symbol"),
                        side=line.side,
                        remaining_quantity=line.remaining,
                        limit_price=line.limit_price,
                        reduce_only=line.reduce_only,
                    )

    def _spread_failures(self) -> None:
        """Failures of the owner as a whole fall on its accounts, and every account that failed has a row."""
        for failure in self.rows.failures:
            account = failure.account_id or ""
            if account != self.whole and self._is_ours(account):
                self._open(account)
        if not any(failure.account_id == self.whole for failure in self.rows.failures):
            return
        targets = [home for home, account in self.accounts.items() if account.margin_mode != "isolated"]
        if not targets:
            self._open(self.whole)
            targets = [self.whole]
        spread_failures(self.rows, self.whole, sorted(targets))

    def _write_accounts(self) -> None:
        payload = self._payload("account") or self._payload("positionRisk") or self._payload("openOrders")
        for home, account in sorted(self.accounts.items()):
            if account.settlement != "USD":
                self.catalog.named.asset(account.settlement)
            self.rows.add(
                "accounts",
                account_id=home,
                parent_account_id=account.parent if account.parent in self.accounts else None,
                node=home,
                venue=VENUE,
                owner=self.owner,
                margin_mode=account.margin_mode,
                rule_set=self._rule_set(account),
                settlement_asset=account.settlement,
                multi_assets_mode=None if self.product.inverse else self.multi,
                received_at=payload.received_at if payload else None,
                reported_equity=account.reported_equity,
                reported_initial_margin=account.reported_initial,
                reported_maintenance_margin=account.reported_maintenance,
            )
        self.holder.write_marks()
        if self.plain is not None:
            self.rows.add_table("marks", self.plain.marks)

    def _rule_set(self, account: _Account) -> str:
        """The shared rule set, or one of the account's own when it has order margin or brackets of its own."""
        name = MULTI_ASSETS if self.multi else self.product.rules
        own = bool(account.order_initial) or bool(self.market.brackets.by_owner.get(self.owner))
        rule_set = rule_set_id(name, f"{self.owner}:{account.part}".rstrip(":") if own else "")
        self.rule_sets.symbols.setdefault(rule_set, set()).update(account.symbols)
        if own:
            components = futures_components(
                multi_assets=self.multi, order_initial=account.order_initial, order_basis=account.order_basis
            )
            source = RULE_SOURCES[name]
            if account.order_initial:
                source += f"; orders as {self._request('account')} reports them"
            self.rule_sets.components[rule_set] = component_rows(rule_set, components, source=source)
            self.rule_sets.owners[rule_set] = self.owner
        else:
            self.rule_sets.share(name)
        return rule_set


def plain_owners(
    answers: Mapping[str, Mapping[str, Sequence[Payload]]],
    product: Product,
    *,
    catalog: BinanceCatalog,
    market: MarketData,
    multi_assets_default: bool,
) -> dict[str, PlainPositions]:
    """By owner the positions that columns can read, of those owners whose other answers leave no doubt about them."""
    questions = []
    for owner, by_request in sorted(answers.items()):
        found = {
            name: by_request.get(f"{product.api}/{name}", ())
            for name in ("positionRisk", "account", "multiAssetsMargin", "symbolConfig")
        }
        if any(len(payloads) > 1 for payloads in found.values()) or found["symbolConfig"]:
            continue
        risk, account, mode = (
            next(iter(found[name]), None) for name in ("positionRisk", "account", "multiAssetsMargin")
        )
        multi = multi_assets_default and not product.inverse
        try:
            if mode is not None:
                multi = flag_of(member(mode.body, "multiAssetsMargin"))
            if account is not None:
                members(account.body, "assets")
                totals(account.body)
                if "positions" in account.body:
                    members(account.body, "positions")
            if risk is not None:
                records_of(risk.body)
        except FieldError:
            continue
        home = account_id(VENUE, owner, MULTI) if multi else account_id(VENUE, owner, product.part)
        questions.append(Question(owner, risk, account, home, not multi))
    return plain_positions(questions, product, catalog, market)


def _less(
    total: Decimal | None, parts: Sequence[PositionLine | None], figure: Callable[[PositionLine], Decimal | None]
) -> Decimal | None:
    """`total` less a figure of every part; None when any of them is not stated."""
    figures = [None if part is None else figure(part) for part in parts]
    if total is None or any(value is None for value in figures):
        return None
    return total - sum((value for value in figures if value is not None), Decimal(0))
