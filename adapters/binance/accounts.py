"""One owner's USD-M accounts: which accounts there are, what is in them, which rule set each has.

Single-asset mode: an account per margin asset, and one per isolated position. Multi-assets mode: one account in USD.
A failure that concerns the owner as a whole (an answer that is missing, unreadable or doubled) falls on every account
of the owner that is not isolated, or on a placeholder account when nothing could be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason
from aggregator.rule_forms import component_rows

from ..amounts import FieldError, member, members
from ..rows import Rows
from ..symbols import account_id, instrument_id
from ..transport import Payload
from .market import RULE_SOURCE, VENUE, Catalog, MarketData, RuleSets
from .parse import (
    AssetLine,
    PositionLine,
    SymbolSetting,
    Totals,
    asset_line,
    flag_of,
    listed,
    market_of,
    no_position,
    order_line,
    position_line,
    symbol_setting,
    totals,
    unique_lines,
)
from .portfolio_margin import PORTFOLIO, PORTFOLIO_ACCOUNT
from .rules import MULTI_ASSETS, SINGLE_ASSET, leverage_problem, rule_set_id, usdm_components

MULTI = "multi"

# walletBalance = crossWalletBalance + isolated wallets, each rounded by the venue to 8 decimals.
_WALLET_TOLERANCE = Decimal("0.000001")

PositionKey = tuple[str, str]


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
    """Reads the USD-M answers of one owner, in the order mode, account, positions, orders, rule sets."""

    def __init__(
        self,
        rows: Rows,
        owner: str,
        payloads: Mapping[str, Sequence[Payload]],
        *,
        catalog: Catalog,
        market: MarketData,
        rule_sets: RuleSets,
        multi_assets_default: bool,
    ) -> None:
        self.rows, self.owner, self.payloads = rows, owner, payloads
        self.catalog, self.market, self.rule_sets = catalog, market, rule_sets
        self.whole = account_id(VENUE, owner)
        self.multi = multi_assets_default
        self.accounts: dict[str, _Account] = {}
        self.marks: dict[tuple[str, str], Decimal] = {}

    def read(self) -> None:
        """Adds everything that the owner's answers say."""
        with self._guard("fapi/multiAssetsMargin") as payload:
            if payload is not None:
                self.multi = flag_of(member(payload.body, "multiAssetsMargin"), "multiAssetsMargin")
        settings = self._settings()
        stated, wallet, sums = self._account_answer()
        risk = self._risk_answer()
        if PORTFOLIO_ACCOUNT in self.payloads:
            self._fail_whole(
                FailureReason.UNSUPPORTED,
                "the owner's futures are under portfolio margin, whose rule is not in this release",
            )
        isolated = self._positions(stated, risk, settings)
        self._orders()
        if self.multi:
            self._multi_assets(wallet, sums)
        else:
            self._single_asset(wallet, stated or {}, isolated)
        self._spread_failures()
        self._write_accounts()

    # answers

    def _payload(self, request: str) -> Payload | None:
        return next(iter(self.payloads.get(request, ())), None)

    @contextmanager
    def _guard(self, request: str) -> Iterator[Payload | None]:
        payload = self._payload(request)
        with self.rows.guard(payload.name if payload else "", subject=self.owner, account_id=self.whole):
            yield payload

    def _fail_whole(self, reason: FailureReason, message: str, *, payload: str = "", path: str = "") -> None:
        self.rows.fail(reason, message, payload=payload, path=path, subject=self.owner, account_id=self.whole)

    def _settings(self) -> dict[str, SymbolSetting]:
        settings: dict[str, SymbolSetting] = {}
        with self._guard("fapi/symbolConfig") as payload:
            if payload is not None:
                lines = unique_lines(
                    self.rows,
                    payload.name,
                    listed(payload.body),
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
        payload = self._payload("fapi/account")
        if payload is None:
            self._fail_whole(
                FailureReason.MISSING_FIELD, "no fapi/account answer of this owner that can be used", path="assets"
            )
            return stated, wallet, sums
        with self._guard("fapi/account"):
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
            if "positions" in payload.body:
                stated = self._position_lines(payload, members(payload.body, "positions"), "positions")
        return stated, wallet, sums

    def _risk_answer(self) -> dict[PositionKey, PositionLine]:
        with self._guard("fapi/positionRisk") as payload:
            if payload is not None:
                return self._position_lines(payload, listed(payload.body), "")
        return {}

    def _position_lines(self, payload: Payload, records: Sequence[Any], path: str) -> dict[PositionKey, PositionLine]:
        lines = unique_lines(
            self.rows,
            payload.name,
            records,
            position_line,
            key=lambda line: f"{line.market.symbol} {line.side_mode}",
            path=path,
            account=self._position_home,
            skip=no_position,
        )
        return {(line.market.symbol, line.side_mode): line for line in lines}

    # where things belong

    def _asset_home(self, record: Any) -> str:
        asset = record.get("asset") if isinstance(record, Mapping) else None
        if self.multi:
            return account_id(VENUE, self.owner, MULTI)
        return account_id(VENUE, self.owner, asset) if isinstance(asset, str) and asset else self.whole

    def _position_home(self, record: Any) -> str:
        """Account of a record that may be unreadable otherwise; the whole owner when even the symbol says nothing."""
        try:
            market = market_of(str(record["symbol"]))
        except (FieldError, KeyError, TypeError):
            return self.whole
        if self.multi:
            return account_id(VENUE, self.owner, MULTI)
        if str(record.get("marginType", "")).lower() == "isolated" or record.get("isolated") in (True, "true"):
            side = str(record.get("positionSide", "BOTH"))
            return self._isolated_id(market.symbol, {"LONG": "long", "SHORT": "short"}.get(side, "net"))
        return account_id(VENUE, self.owner, market.quote)

    def _order_home(self, record: Any) -> str:
        """Account of an order: the cross account also for isolated symbols, for its wallet reserves the margin."""
        return self._position_home({"symbol": record.get("symbol")} if isinstance(record, Mapping) else None)

    def _isolated_id(self, symbol: str, side_mode: str) -> str:
        part = f"isolated:{symbol}" + ("" if side_mode == "net" else f":{side_mode.upper()}")
        return account_id(VENUE, self.owner, part)

    def _open(self, account: str) -> _Account:
        """The account of an id, begun if it is new."""
        if account not in self.accounts:
            part = account.removeprefix(self.whole).removeprefix(":")
            if part.startswith("isolated:"):
                quote = market_of(part.split(":")[1]).quote
                self.accounts[account] = _Account(part, quote, "isolated", account_id(VENUE, self.owner, quote))
            else:
                self.accounts[account] = _Account(part, "USD" if part in (MULTI, "") else part)
        return self.accounts[account]

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
            line = _merged(lines, settings.get(key[0]))
            payload = self._payload("fapi/positionRisk" if first is not None else "fapi/account")
            name = payload.name if payload else ""
            home = account_id(VENUE, self.owner, MULTI if self.multi else line.market.quote)
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
                quantities = {other.quantity for other in lines}
                if len(quantities) > 1 or (second is None and stated is not None):
                    raise FieldError(
                        f"{line.path}.positionAmt",
                        FailureReason.INCONSISTENT,
                        f"quantity {first.quantity if first else 0} in fapi/positionRisk, "
                        f"{second.quantity if second else 0} in fapi/account: the answers are not of one moment",
                    )
                self._position(home, line, name)
        return isolated

    def _position(self, home: str, line: PositionLine, payload: str) -> None:
        account = self.accounts[home]
        instrument = self.catalog.instrument(line.market, f"{line.path}.symbol")
        for key, value in (("entryPrice", line.entry_price), ("leverage", line.leverage)):
            if value is None:
                message = f"no {key} of {line.market.symbol} in any answer of this owner"
                raise FieldError(f"{line.path}.{key}", FailureReason.MISSING_FIELD, message)
        if account.margin_mode == "isolated":
            if line.isolated_wallet is None:
                message = f"no isolatedWallet of {line.market.symbol}"
                raise FieldError(f"{line.path}.isolatedWallet", FailureReason.MISSING_FIELD, message)
            self._balance(home, line.market.quote, line.isolated_wallet)
            account.reported_equity = line.isolated_margin
            account.reported_initial, account.reported_maintenance = line.initial, line.maintenance
        self.rows.add(
            "positions",
            account_id=home,
            instrument_id=instrument,
            side_mode=line.side_mode,
            quantity=line.quantity,
            entry_price=line.entry_price,
            leverage=line.leverage,
            reported_initial_margin=line.initial,
            reported_maintenance_margin=line.maintenance,
            reported_liquidation_price=line.liquidation_price,
        )
        account.symbols.add(line.market.symbol)
        self._margins(home, line, payload, self._mark(home, line, instrument, payload))

    def _mark(self, home: str, line: PositionLine, instrument: str, payload: str) -> Decimal | None:
        """Mark of a position: its own answer's, else the market's; written when it is its own."""
        if line.mark_price is None:
            premium = self.market.premiums.get(line.market.symbol)
            if premium is not None:
                return premium.mark_price
            self.rows.fail(
                FailureReason.MISSING_MARK,
                f"no mark of {line.market.symbol} in fapi/positionRisk or fapi/premiumIndex",
                payload=payload,
                path=f"{line.path}.markPrice",
                subject=instrument,
                account_id=home,
            )
            return None
        earlier = self.marks.setdefault((home, instrument), line.mark_price)
        if earlier != line.mark_price:
            message = f"marks {earlier} and {line.mark_price} of {line.market.symbol} in one answer"
            raise FieldError(f"{line.path}.markPrice", FailureReason.INCONSISTENT, message)
        return line.mark_price

    def _margins(self, home: str, line: PositionLine, payload: str, mark: Decimal | None) -> None:
        """Failures of a position without brackets, and the finding of one with more leverage than they allow."""
        brackets = self.market.brackets.find(line.market.symbol, self.owner)
        instrument = instrument_id(VENUE, line.market.symbol)
        if brackets is None:
            self.rows.fail(
                FailureReason.MISSING_PARAMETER,
                f"no usable brackets of {line.market.symbol} in fapi/leverageBracket or the parameter file",
                payload=payload,
                path=line.path,
                subject=instrument,
                account_id=home,
            )
        elif mark is not None and line.leverage is not None:
            problem = leverage_problem(abs(line.quantity) * mark, line.leverage, brackets)
            if problem:
                self.rows.fail(
                    FailureReason.INCONSISTENT,
                    f"{home}: {problem}",
                    payload=payload,
                    path=f"{line.path}.leverage",
                    subject=instrument,
                )

    # balances

    def _balance(self, home: str, asset: str, quantity: Decimal, *, enabled: bool = True, path: str = "") -> None:
        """A row of `balances`, of side liability when negative; raises unknown_asset. Zero is no row."""
        if quantity == 0:
            return
        if not self.catalog.asset(asset):
            raise FieldError(path, FailureReason.UNKNOWN_ASSET, f"{asset[:40]!r} is not in the asset book")
        self.rows.add(
            "balances",
            account_id=home,
            asset_id=asset,
            side="asset" if quantity > 0 else "liability",
            quantity=abs(quantity),
            collateral_enabled=enabled,
        )

    def _single_asset(
        self,
        wallet: Mapping[str, AssetLine],
        stated: Mapping[PositionKey, PositionLine],
        isolated: Mapping[str, PositionLine],
    ) -> None:
        payload = self._payload("fapi/account")
        name = payload.name if payload else ""
        for asset, line in wallet.items():
            home = account_id(VENUE, self.owner, asset)
            if line.empty and home not in self.accounts:
                continue
            account = self._open(home)
            if self.market.states_indices and asset not in self.market.indices:
                message = f"no usable index of {asset} in fapi/assetIndex"
                self.rows.fail(FailureReason.MISSING_MARK, message, payload=name, subject=asset, account_id=home)
            account.order_initial, account.order_basis = line.order_initial, f"openOrderInitialMargin of {asset}"
            own = [position for position in isolated.values() if position.market.quote == asset]
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
                self._check_wallets(line, [p for p in stated.values() if p.market.quote == asset], name)
        if payload is not None:
            for home, account in self.accounts.items():
                if account.margin_mode == "cross" and account.settlement not in wallet:
                    message = (
                        f"fapi/account has no usable row of {account.settlement}, in which positions or orders are held"
                    )
                    self.rows.fail(
                        FailureReason.MISSING_FIELD, message, payload=name, path="assets", subject=home, account_id=home
                    )

    def _check_wallets(self, line: AssetLine, positions: Sequence[PositionLine], payload: str) -> None:
        wallets = [p.isolated_wallet for p in positions if p.quantity != 0]
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
        payload = self._payload("fapi/account")
        home = account_id(VENUE, self.owner, MULTI)
        if payload is None or sums is None:
            return
        account = self._open(home)
        needed = {market_of(symbol).quote for symbol in account.symbols}
        for asset, line in wallet.items():
            with self.rows.guard(payload.name, subject=asset, account_id=home):
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

    # orders, failures, accounts

    def _orders(self) -> None:
        with self._guard("fapi/openOrders") as payload:
            if payload is None:
                return
            for line in unique_lines(
                self.rows,
                payload.name,
                listed(payload.body),
                order_line,
                key=lambda line: f"{line.market.symbol} {line.order_id}",
                account=self._order_home,
            ):
                home = account_id(VENUE, self.owner, MULTI if self.multi else line.market.quote)
                if line.remaining == 0:
                    continue
                self._open(home)
                with self.rows.guard(payload.name, subject=line.market.symbol, account_id=home):
                    self.rows.add(
                        "open_orders",
                        order_id=f"{self.whole}:{line.market.symbol}:{line.order_id}",
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
            if account.startswith(f"{self.whole}:") and account != account_id(VENUE, self.owner, PORTFOLIO):
                self._open(account)
        if not any(failure.account_id == self.whole for failure in self.rows.failures):
            return
        targets = [home for home, account in self.accounts.items() if account.margin_mode != "isolated"]
        if not targets:
            self._open(self.whole)
            targets = [self.whole]
        self.rows.failures[:] = [
            spread
            for failure in self.rows.failures
            for spread in (
                [replace(failure, account_id=home) for home in sorted(targets)]
                if failure.account_id == self.whole
                else [failure]
            )
        ]

    def _write_accounts(self) -> None:
        payload = (
            self._payload("fapi/account") or self._payload("fapi/positionRisk") or self._payload("fapi/openOrders")
        )
        marked_at = getattr(self._payload("fapi/positionRisk"), "received_at", None)
        for home, account in sorted(self.accounts.items()):
            if account.settlement != "USD":
                self.catalog.asset(account.settlement)
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
                multi_assets_mode=self.multi,
                received_at=payload.received_at if payload else None,
                reported_equity=account.reported_equity,
                reported_initial_margin=account.reported_initial,
                reported_maintenance_margin=account.reported_maintenance,
            )
        for (home, instrument), value in sorted(self.marks.items()):
            self.rows.add(
                "marks",
                venue=VENUE,
                account_id=home,
                subject=instrument,
                field="mark",
                value=float(value),
                as_of=marked_at,
                source="fapi/positionRisk",
            )

    def _rule_set(self, account: _Account) -> str:
        """The shared rule set, or one of the account's own when it has order margin or brackets of its own."""
        name = MULTI_ASSETS if self.multi else SINGLE_ASSET
        own = bool(account.order_initial) or bool(self.market.brackets.by_owner.get(self.owner))
        rule_set = rule_set_id(name, f"{self.owner}:{account.part}".rstrip(":") if own else "")
        self.rule_sets.symbols.setdefault(rule_set, set()).update(account.symbols)
        if own:
            components = usdm_components(
                multi_assets=self.multi, order_initial=account.order_initial, order_basis=account.order_basis
            )
            source = f"{RULE_SOURCE}; orders as fapi/account reports them" if account.order_initial else RULE_SOURCE
            self.rule_sets.components[rule_set] = component_rows(rule_set, components, source=source)
            self.rule_sets.owners[rule_set] = self.owner
        else:
            self.rule_sets.share(name)
        return rule_set


def _merged(lines: Sequence[PositionLine], setting: SymbolSetting | None) -> PositionLine:
    """One line from those of several answers, the first that states a field winning, and the owner's setting last."""

    def first(name: str) -> Any:
        return next((value for line in lines if (value := getattr(line, name)) is not None), None)

    isolated = first("isolated")
    if isolated is None:
        # Version 3 does not say: only an isolated position has an isolated wallet.
        isolated = setting.isolated if setting else any(line.isolated_wallet or line.isolated_margin for line in lines)
    leverage = first("leverage")
    return lines[0]._replace(
        quantity=next(line.quantity for line in lines if line.quantity != 0),
        entry_price=first("entry_price"),
        mark_price=first("mark_price"),
        leverage=setting.leverage if leverage is None and setting else leverage,
        isolated=isolated,
        isolated_wallet=first("isolated_wallet"),
        isolated_margin=first("isolated_margin"),
        initial=first("initial"),
        maintenance=first("maintenance"),
        liquidation_price=first("liquidation_price"),
    )


def _less(
    total: Decimal | None, parts: Sequence[PositionLine | None], figure: Callable[[PositionLine], Decimal | None]
) -> Decimal | None:
    """`total` less a figure of every part; None when any of them is not stated."""
    figures = [None if part is None else figure(part) for part in parts]
    if total is None or any(value is None for value in figures):
        return None
    return total - sum((value for value in figures if value is not None), Decimal(0))
