"""Binance USD-M margin rules as rule sets, margin tiers and collateral tiers.

Rates are fractions, notionals and deductions in the quote asset of the contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason
from aggregator.rule_forms import Component, Fixed, TieredNotional, Verdict, WeightedValue

from ..amounts import FieldError, decimal_at, joined, members, non_negative_at, optional_decimal_at, positive_at
from .mechanics import Bracket, bracket_of, deductions
from .parse import AssetIndexLine, text_at

SINGLE_ASSET = "usdm"
MULTI_ASSETS = "multi_assets"
PORTFOLIO_MARGIN = "portfolio_margin"
PORTFOLIO_MARGIN_TRIGGER = Decimal("1.05")
"""uniMMR at which the venue liquidates a portfolio-margin account."""

# Published deductions carry few decimals, and 0.02 of a quote unit is what their rounding can leave.
_CUM_TOLERANCE = Decimal("0.02")
_CUM_RELATIVE_TOLERANCE = Decimal("1e-9")


class SymbolBrackets(NamedTuple):
    """All brackets of one symbol, ascending, in the quote asset."""

    symbol: str
    brackets: tuple[Bracket, ...]


def rule_set_id(name: str, suffix: str = "") -> str:
    """`binance:<name>` for the rules that all accounts share, `binance:<name>:<suffix>` for an account's own."""
    return f"binance:{name}" + (f":{suffix}" if suffix else "")


def symbol_brackets(record: Any, path: str) -> SymbolBrackets:
    """Brackets of a row of `fapi/leverageBracket` (numbers or texts), scaled by its `notionalCoef` where it has one.

    Raises inconsistent unless floors start at 0 and are contiguous and ascending, maintenance rates ascend and stay
    at or below 1, leverages do not ascend, and each `cum` is what the recursion over floors and rates gives within
    its rounding (before or after scaling). The venue's own `cum` is kept where no coefficient applies.
    """
    symbol = text_at(record, "symbol", path)
    coefficient = optional_decimal_at(record, "notionalCoef", path)
    if coefficient is None:
        coefficient = Decimal(1)
    if coefficient <= 0:
        raise FieldError(joined(path, "notionalCoef"), FailureReason.OUT_OF_RANGE, f"{coefficient} must be positive")
    entries = members(record, "brackets", path)
    if not entries:
        raise FieldError(joined(path, "brackets"), FailureReason.MISSING_FIELD, "no brackets")
    sent = [_bracket(entry, joined(joined(path, "brackets"), number)) for number, entry in enumerate(entries)]
    _check_order(sent, joined(path, "brackets"))
    recursion = deductions([b.floor for b in sent], [b.rate for b in sent])
    out = []
    for number, (bracket, expected) in enumerate(zip(sent, recursion, strict=True)):
        if not (_close(bracket.cum, expected) or _close(bracket.cum, expected * coefficient)):
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


def _bracket(entry: Any, path: str) -> Bracket:
    return Bracket(
        floor=non_negative_at(entry, "notionalFloor", path),
        cap=positive_at(entry, "notionalCap", path),
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


def _close(a: Decimal, b: Decimal) -> bool:
    return abs(a - b) <= max(_CUM_TOLERANCE, _CUM_RELATIVE_TOLERANCE * abs(b))


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


def portfolio_collateral_rows(rule_set: str, asset: str, rate: Decimal) -> list[dict[str, Any]]:
    """Weights of portfolio margin: the collateral rate when held, no haircut when owed."""
    return _weight_rows(rule_set, asset, asset=rate, liability=Decimal(1))


def _weight_rows(rule_set: str, asset_id: str, *, asset: Decimal, liability: Decimal) -> list[dict[str, Any]]:
    return [
        {
            "rule_set": rule_set,
            "asset_id": asset_id,
            "emode": "",
            "tier": 1,
            "floor": Decimal(0),
            "asset_weight_initial": asset,
            "asset_weight_maintenance": asset,
            "liability_weight_initial": liability,
            "liability_weight_maintenance": liability,
            "source": "venue",
        }
    ]


def usdm_components(*, multi_assets: bool, order_initial: Decimal, order_basis: str) -> list[Component]:
    """A USD-M account: (weighted) balances and profit against tiered maintenance, `notional / leverage` initially.

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


def portfolio_margin_components() -> list[Component]:
    """The verdict alone: this release has no rule for portfolio margin, so its accounts are not computed."""
    verdict = Verdict(liquidates_when="at_or_below", trigger=PORTFOLIO_MARGIN_TRIGGER)
    return [Component(side="verdict", parameters=verdict)]


class BracketBook(NamedTuple):
    """Brackets by symbol from where they may come: an owner's own answer, the market's, the dated parameter file.

    The first that names the symbol decides. A symbol in `rejected` has an answer that could not be used; an older
    figure does not stand in for it.
    """

    by_owner: Mapping[str, Mapping[str, tuple[Bracket, ...]]]
    market: Mapping[str, tuple[Bracket, ...]]
    dated: Mapping[str, tuple[Bracket, ...]]
    rejected: frozenset[tuple[str, str]]

    def find(self, symbol: str, owner: str = "") -> tuple[Bracket, ...] | None:
        """Brackets of a symbol for an owner (empty: for everybody), or None."""
        own = self.by_owner.get(owner, {}).get(symbol)
        if own is not None or (owner, symbol) in self.rejected:
            return own
        if symbol in self.market or ("", symbol) in self.rejected:
            return self.market.get(symbol)
        return self.dated.get(symbol)
