"""Binance's futures and portfolio-margin rules as rule sets, margin tiers and collateral tiers.

Rates are fractions, notionals and deductions in the margin asset of the contract: the quote asset of USD-M, coins of
COIN-M.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason
from aggregator.rule_forms import Component, DebtCharge, Fixed, TieredNotional, Verdict, WeightedValue

from ..amounts import FieldError, decimal_at, joined, members, non_negative_at, optional_decimal_at, positive_at
from ..collateral import weight_row
from ..fields import text_at
from .contracts import CoinMarket, Market, is_coin_symbol
from .mechanics import Bracket, bracket_of, deductions
from .parse import AssetIndexLine
from .portfolio_parse import CollateralRates

SINGLE_ASSET = "usdm"
MULTI_ASSETS = "multi_assets"
COIN_MARGINED = "coinm"
PORTFOLIO_MARGIN = "portfolio_margin"

# Published deductions carry few decimals, and 0.02 of a quote unit is what their rounding can leave; of a coin, whose
# deductions are some hundredths, a hundred thousandth.
_CUM_TOLERANCE = Decimal("0.02")
_COIN_CUM_TOLERANCE = Decimal("0.00001")
_CUM_RELATIVE_TOLERANCE = Decimal("1e-9")


class SymbolBrackets(NamedTuple):
    """All brackets of one symbol (or of all contracts of a pair), ascending, in the margin asset."""

    symbol: str
    brackets: tuple[Bracket, ...]


def rule_set_id(name: str, suffix: str = "") -> str:
    """`binance:<name>` for the rules that all accounts share, `binance:<name>:<suffix>` for an account's own."""
    return f"binance:{name}" + (f":{suffix}" if suffix else "")


def symbol_brackets(record: Any, path: str) -> SymbolBrackets:
    """Brackets of a row of `leverageBracket` (numbers or texts), scaled by its `notionalCoef` where it has one.

    USD-M rows name a symbol and give notionals; COIN-M rows name a symbol or a `pair` and give coins, under `qtyCap`
    and `qtyFloor`, which the venue also spells `qtylFloor`.

    Raises inconsistent unless floors start at 0 and are contiguous and ascending, maintenance rates ascend and stay
    at or below 1, leverages do not ascend, and each `cum` is what the recursion over floors and rates gives within
    its rounding (before or after scaling). The venue's own `cum` is kept where no coefficient applies.
    """
    symbol = text_at(
        record,
        "pair" if isinstance(record, Mapping) and "symbol" not in record and "pair" in record else "symbol",
        path,
    )
    coins = is_coin_symbol(symbol)
    tolerance = _COIN_CUM_TOLERANCE if coins else _CUM_TOLERANCE
    coefficient = optional_decimal_at(record, "notionalCoef", path)
    if coefficient is None:
        coefficient = Decimal(1)
    if coefficient <= 0:
        raise FieldError(joined(path, "notionalCoef"), FailureReason.OUT_OF_RANGE, f"{coefficient} must be positive")
    entries = members(record, "brackets", path)
    if not entries:
        raise FieldError(joined(path, "brackets"), FailureReason.MISSING_FIELD, "no brackets")
    sent = [_bracket(entry, joined(joined(path, "brackets"), number), coins) for number, entry in enumerate(entries)]
    _check_order(sent, joined(path, "brackets"))
    recursion = deductions([b.floor for b in sent], [b.rate for b in sent])
    out = []
    for number, (bracket, expected) in enumerate(zip(sent, recursion, strict=True)):
        if not any(_close(bracket.cum, candidate, tolerance) for candidate in (expected, expected * coefficient)):
            raise FieldError(
                f"{joined(joined(path, 'brackets'), number)}.cum",
                FailureReason.INCONSISTENT,
                f"deduction {bracket.cum} of {symbol} is not the {expected} that floors and rates give",
            )
        assert bracket.cap is not None
        out.append(
            bracket._replace(
                floor=bracket.floor * coefficient,
                cap=bracket.cap * coefficient,
                cum=bracket.cum if coefficient == 1 else expected * coefficient,
            )
        )
    return SymbolBrackets(symbol, tuple(out))


def _bracket(entry: Any, path: str, coins: bool) -> Bracket:
    floor_key = "qtyFloor" if coins else "notionalFloor"
    if coins and isinstance(entry, Mapping) and "qtylFloor" in entry:
        floor_key = "qtylFloor"
    return Bracket(
        floor=non_negative_at(entry, floor_key, path),
        cap=positive_at(entry, "qtyCap" if coins else "notionalCap", path),
        rate=non_negative_at(entry, "maintMarginRatio", path),
        max_leverage=positive_at(entry, "initialLeverage", path),
        cum=decimal_at(entry, "cum", path),
    )


def _check_order(brackets: Sequence[Bracket], path: str) -> None:
    cap, rate, leverage = Decimal(0), Decimal(0), brackets[0].max_leverage
    for number, bracket in enumerate(brackets):
        problem = None
        if bracket.floor != cap:
            problem = f"floor {bracket.floor} does not continue at {cap}"
        elif bracket.cap is None or bracket.cap <= bracket.floor:
            problem = f"cap {bracket.cap} is not above floor {bracket.floor}"
        elif not rate <= bracket.rate <= 1:
            problem = f"maintenance rate {bracket.rate} does not lie between {rate} and 1"
        elif not 1 <= bracket.max_leverage <= leverage:
            problem = f"leverage {bracket.max_leverage} does not lie between 1 and {leverage}"
        if problem:
            raise FieldError(joined(path, number), FailureReason.INCONSISTENT, problem)
        assert bracket.cap is not None
        cap, rate, leverage = bracket.cap, bracket.rate, bracket.max_leverage


def _close(a: Decimal, b: Decimal, tolerance: Decimal) -> bool:
    return abs(a - b) <= max(tolerance, _CUM_RELATIVE_TOLERANCE * abs(b))


def margin_tier_rows(rule_set: str, market: str, brackets: Sequence[Bracket]) -> list[dict[str, Any]]:
    """Rows of `margin_tiers` of one instrument; the initial rate of a tier is 1 / its highest leverage."""
    return [
        {
            "rule_set": rule_set,
            "market": market,
            "tier": number,
            "notional_floor": bracket.floor,
            "notional_cap": bracket.cap,
            "initial_rate": 1 / bracket.max_leverage,
            "maintenance_rate": bracket.rate,
            "deduction": bracket.cum,
            "source": "venue",
        }
        for number, bracket in enumerate(brackets, 1)
    ]


def leverage_problem(notional: Decimal, leverage: Decimal, brackets: Sequence[Bracket]) -> str | None:
    """What is wrong with a chosen leverage at this absolute notional, or None."""
    bracket = bracket_of(notional, brackets)
    if leverage <= bracket.max_leverage:
        return None
    return f"leverage {leverage} at notional {notional:.2f}: the bracket allows at most {bracket.max_leverage}"


def collateral_tier_rows(rule_set: str, line: AssetIndexLine) -> list[dict[str, Any]]:
    """Weights that value an asset at its buffered rate: `bidRate / index` when held, `askRate / index` when owed.

    Taken from the venue's documentation of multi-assets mode, not yet checked against an account [M].
    """
    return _weight_rows(rule_set, line.asset, asset=line.bid_rate / line.price, liability=line.ask_rate / line.price)


def _weight_rows(rule_set: str, asset_id: str, *, asset: Decimal, liability: Decimal) -> list[dict[str, Any]]:
    return [weight_row(rule_set, asset_id, asset, liability=(liability, liability))]


def futures_components(*, multi_assets: bool, order_initial: Decimal, order_basis: str) -> list[Component]:
    """A futures account: (weighted) balances and profit against tiered maintenance, `notional / leverage` initially.

    `order_initial` is the initial margin of open orders that the venue reports, in the account's unit; its formula
    (worst side of orders and position) is not rebuilt here.
    """
    equity = WeightedValue(weights="collateral_tiers", net_by_asset=True) if multi_assets else WeightedValue()
    components = [
        Component(side="equity", parameters=equity),
        Component(side="requirement", parameters=TieredNotional(initial="leverage"), group_by="position"),
    ]
    if order_initial:
        fixed = Fixed(initial=order_initial, basis=f"reported {order_basis}")
        components.append(Component(side="requirement", parameters=fixed, level="initial"))
    return [*components, Component(side="verdict", parameters=Verdict(liquidates_when="at_or_below"))]


def portfolio_collateral_rows(rule_set: str, rates: CollateralRates, *, floor_in: str) -> list[dict[str, Any]]:
    """Weights of portfolio margin: each slice of a coin at its rate when held, no haircut when owed.

    `floor_in` says whether the slices are of tokens or of value.
    """
    return [
        row | {"tier": number, "floor": floor, "floor_in": floor_in}
        for number, (floor, rate) in enumerate(rates.tiers, 1)
        for row in _weight_rows(rule_set, rates.asset, asset=rate, liability=Decimal(1))
    ]


class PortfolioAmounts(NamedTuple):
    """What of a portfolio-margin account is its own: rates of its loans by asset, and dollars that nothing moves."""

    loan_initial: Mapping[str, Decimal] = {}
    loan_maintenance: Mapping[str, Decimal] = {}
    open_loss: Decimal = Decimal(0)
    order_initial: Decimal = Decimal(0)
    order_basis: str = ""

    @property
    def own(self) -> bool:
        """Whether there is any of it, so that the account needs a rule set of its own."""
        return bool(self.loan_maintenance or self.open_loss or self.order_initial)


def portfolio_components(amounts: PortfolioAmounts, *, trigger: Decimal) -> list[Component]:
    """Portfolio margin: every coin net at its collateral rate, against both products' brackets and the margin of loans.

    Net of a coin is margin wallet less loan, futures wallets and futures profit; the loss that open orders of the
    margin wallet would realize is the venue's own figure.
    """
    equity = WeightedValue(weights="collateral_tiers", net_by_asset=True, liabilities="unit")
    components = [Component(side="equity", parameters=equity)]
    if amounts.open_loss:
        loss = Fixed(equity=-amounts.open_loss, basis="reported totalMarginOpenLoss")
        components.append(Component(side="equity", parameters=loss))
    tiers = TieredNotional(initial="leverage")
    components.append(Component(side="requirement", parameters=tiers, group_by="position"))
    if amounts.loan_maintenance:
        charge = DebtCharge(initial_rates=amounts.loan_initial, maintenance_rates=amounts.loan_maintenance)
        components.append(Component(side="requirement", parameters=charge))
    if amounts.order_initial:
        orders = Fixed(initial=amounts.order_initial, basis=f"reported {amounts.order_basis}")
        components.append(Component(side="requirement", parameters=orders, level="initial"))
    verdict = Verdict(liquidates_when="at_or_below", trigger=trigger)
    return [*components, Component(side="verdict", parameters=verdict)]


class BracketBook(NamedTuple):
    """Brackets by symbol or pair from where they may come: an owner's own answer, the market's, the dated file.

    The first that names the symbol decides. A symbol in `rejected` has an answer that could not be used; an older
    figure does not stand in for it.
    """

    by_owner: Mapping[str, Mapping[str, tuple[Bracket, ...]]]
    market: Mapping[str, tuple[Bracket, ...]]
    dated: Mapping[str, tuple[Bracket, ...]]
    rejected: frozenset[tuple[str, str]]

    def find(self, market: Market, owner: str = "") -> tuple[Bracket, ...] | None:
        """Brackets of a market for an owner (empty: for everybody), or None; its own name goes before its pair's."""
        names = [market.symbol] + ([market.pair] if isinstance(market, CoinMarket) else [])
        return next((found for name in names if (found := self._find(name, owner)) is not None), None)

    def _find(self, symbol: str, owner: str) -> tuple[Bracket, ...] | None:
        own = self.by_owner.get(owner, {}).get(symbol)
        if own is not None or (owner, symbol) in self.rejected:
            return own
        if symbol in self.market or ("", symbol) in self.rejected:
            return self.market.get(symbol)
        return self.dated.get(symbol)
