"""Bybit's margin rules as rule sets, margin tiers and collateral tiers.

Rates are fractions; limits and deductions of a risk tier in the settlement coin of its contract; floors of collateral
tiers in coins. An account in cross and portfolio margin is in dollars, an isolated position in its settlement coin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import FailureReason
from aggregator.rule_forms import (
    Component,
    ContractMargin,
    ContractRate,
    Fixed,
    TieredNotional,
    Verdict,
    WeightedValue,
)

from ..amounts import FieldError, decimal_at, joined, members, non_negative_at, optional_decimal_at, positive_at
from ..collateral import weight_row
from ..fields import text_at
from . import mechanics
from .parse import ratio_at

CROSS, PORTFOLIO, ISOLATED, WALLET = "cross", "portfolio", "isolated", "wallet"
RULE_SOURCE = "Bybit help center: unified trading account, maintenance margin, collateral value ratios"

_ZERO = Decimal(0)
# A deduction is published rounded; what a wrong table misses is of the order of the tier's own margin.
_DEDUCTION_TOLERANCE = Decimal("1e-4")
# `initialMargin` is 1 / `maxLeverage` rounded to a few digits.
_SCALE_TOLERANCE = Decimal("0.03")


class RiskLimit(NamedTuple):
    """One row of `market/risk-limit` with its rates as fractions."""

    symbol: str
    path: str
    limit: Decimal
    maintenance_rate: Decimal
    initial_rate: Decimal
    max_leverage: Decimal
    deduction: Decimal | None


class RiskTable(NamedTuple):
    """All tiers of one symbol, ascending, and the deduction of each."""

    tiers: tuple[RiskLimit, ...]
    deductions: tuple[Decimal, ...]


class CollateralTable(NamedTuple):
    """Tiers of one coin as (floor in coins, ratio), ascending from 0."""

    coin: str
    tiers: tuple[tuple[Decimal, Decimal], ...]


class Amounts(NamedTuple):
    """What of an account's requirement is no formula here, in its unit."""

    order_initial: Decimal = _ZERO
    loan_initial: Decimal = _ZERO
    loan_maintenance: Decimal = _ZERO
    order_loss: Decimal = _ZERO
    """0 or negative."""

    @property
    def own(self) -> bool:
        """Whether there is any of it, so that the account needs a rule set of its own."""
        return any(self)


def rule_set_id(name: str, suffix: str = "") -> str:
    """`bybit:<name>` for the rules that all accounts of a mode share, `bybit:<name>:<suffix>` for an account's own."""
    return f"bybit:{name}" + (f":{suffix}" if suffix else "")


def decimal_from(number: Fraction) -> Decimal:
    """A fraction to 28 digits, more than any column keeps."""
    with localcontext(prec=28):
        return Decimal(number.numerator) / Decimal(number.denominator)


# risk tiers


def risk_limit(record: Any, path: str, symbol: str = "") -> RiskLimit:
    """A row of `market/risk-limit`; rates in percent, as the older answers have them, are brought to fractions.

    `initialMargin` is 1 over `maxLeverage`: where it is a hundred times that, both rates are percentages. Raises
    inconsistent where it is neither, or a maintenance rate is above the initial one.
    """
    symbol = symbol or text_at(record, "symbol", path)
    maintenance = non_negative_at(record, "maintenanceMargin", path)
    initial = positive_at(record, "initialMargin", path)
    leverage = positive_at(record, "maxLeverage", path)
    product = initial * leverage
    scale = next((s for s in (1, 100) if abs(product - s) <= _SCALE_TOLERANCE * s), None)
    if scale is None:
        raise FieldError(
            joined(path, "initialMargin"),
            FailureReason.INCONSISTENT,
            f"initial margin {initial} of {symbol} is neither 1 / {leverage} nor that in percent",
        )
    if not maintenance <= initial <= scale:
        raise FieldError(
            joined(path, "maintenanceMargin"),
            FailureReason.INCONSISTENT,
            f"rates {maintenance} and {initial} of {symbol} are no maintenance and initial rate",
        )
    return RiskLimit(
        symbol=symbol,
        path=path,
        limit=positive_at(record, "riskLimitValue", path),
        maintenance_rate=maintenance / scale,
        initial_rate=initial / scale,
        max_leverage=leverage,
        deduction=optional_decimal_at(record, "mmDeduction", path),
    )


def risk_table(limits: Sequence[RiskLimit]) -> RiskTable:
    """The tiers of one symbol in order; deductions as published, else from limits and rates.

    Raises inconsistent unless limits ascend, rates do not fall and each published deduction continues the tier below.
    """
    tiers = sorted(limits, key=lambda tier: tier.limit)
    rate = _ZERO
    for tier in tiers:
        if tier.maintenance_rate < rate:
            message = f"maintenance rate {tier.maintenance_rate} of {tier.symbol} falls above a limit"
            raise FieldError(joined(tier.path, "maintenanceMargin"), FailureReason.INCONSISTENT, message)
        rate = tier.maintenance_rate
    try:
        exact = [mechanics.RiskTier(Fraction(t.limit), Fraction(t.maintenance_rate)) for t in tiers]
        expected = [decimal_from(deduction) for deduction in mechanics.deductions(exact)]
    except ValueError as problem:
        raise FieldError(
            joined(tiers[-1].path, "riskLimitValue"), FailureReason.INCONSISTENT, f"{tiers[-1].symbol}: {problem}"
        ) from None
    out, floor = [], _ZERO
    for tier, deduction in zip(tiers, expected, strict=True):
        stated = tier.deduction
        if stated is not None and abs(stated - deduction) > _DEDUCTION_TOLERANCE * floor * tier.maintenance_rate:
            raise FieldError(
                joined(tier.path, "mmDeduction"),
                FailureReason.INCONSISTENT,
                f"deduction {stated} of {tier.symbol} is not the {deduction} that limits and rates give",
            )
        out.append(deduction if stated is None else stated)
        floor = tier.limit
    return RiskTable(tuple(tiers), tuple(out))


def exact_tiers(table: RiskTable) -> list[mechanics.RiskTier]:
    """The tiers as the mechanics take them, the last one open."""
    last = len(table.tiers) - 1
    return [
        mechanics.RiskTier(None if number == last else Fraction(tier.limit), Fraction(tier.maintenance_rate))
        for number, tier in enumerate(table.tiers)
    ]


def margin_tier_rows(rule_set: str, market: str, table: RiskTable) -> list[dict[str, Any]]:
    """Rows of `margin_tiers` of one instrument."""
    floor, rows = _ZERO, []
    for number, (tier, deduction) in enumerate(zip(table.tiers, table.deductions, strict=True), 1):
        rows.append(
            {
                "rule_set": rule_set,
                "market": market,
                "tier": number,
                "notional_floor": floor,
                "notional_cap": tier.limit,
                "initial_rate": tier.initial_rate,
                "maintenance_rate": tier.maintenance_rate,
                "deduction": deduction,
                "source": "venue",
            }
        )
        floor = tier.limit
    return rows


def leverage_problem(value: Decimal, leverage: Decimal, table: RiskTable) -> str | None:
    """What is wrong with a chosen leverage at this position value, or None."""
    tier = next((tier for tier in table.tiers if value <= tier.limit), table.tiers[-1])
    if leverage <= tier.max_leverage:
        return None
    return f"leverage {leverage} at position value {value:.6g}: the risk limit allows at most {tier.max_leverage}"


# collateral


def collateral_table(record: Any, path: str, coin: str = "") -> CollateralTable:
    """A row of `spot-margin-trade/collateral`: slices of a coin's quantity, each with its ratio.

    Raises inconsistent unless they begin at 0 and are contiguous and ascending, the last one alone open. A last slice
    that is not open is followed by one of ratio 0: above it nothing counts.
    """
    coin = coin or text_at(record, "currency", path)
    entries = members(record, "collateralRatioList", path)
    found = []
    for number, entry in enumerate(entries):
        place = joined(joined(path, "collateralRatioList"), number)
        cap = optional_decimal_at(entry, "maxQty", place)
        found.append((decimal_at(entry, "minQty", place), cap, ratio_at(entry, "collateralRatio", place), place))
    return _contiguous(coin, found, path)


def _contiguous(coin: str, found: Iterable[tuple[Decimal, Decimal | None, Decimal, str]], path: str) -> CollateralTable:
    tiers: list[tuple[Decimal, Decimal]] = []
    expected: Decimal | None = _ZERO
    for floor, cap, ratio, place in sorted(found, key=lambda entry: entry[0]):
        if expected is None or floor != expected or (cap is not None and cap <= floor):
            message = f"collateral slice from {floor} to {cap} of {coin} does not continue at {expected}"
            raise FieldError(place, FailureReason.INCONSISTENT, message)
        tiers.append((floor, ratio))
        expected = cap
    if not tiers:
        raise FieldError(path, FailureReason.MISSING_FIELD, f"no collateral ratio of {coin}")
    if expected is not None:
        tiers.append((expected, _ZERO))
    return CollateralTable(coin, tuple(tiers))


def collateral_tier_rows(rule_set: str, table: CollateralTable) -> list[dict[str, Any]]:
    """Rows of `collateral_tiers` of one coin; a debt counts in full."""
    return [
        _weight_row(rule_set, table.coin, ratio, tier=number, floor=floor)
        for number, (floor, ratio) in enumerate(table.tiers, 1)
    ]


def profit_weight_row(rule_set: str, instrument: str) -> dict[str, Any]:
    """The weight of an instrument's profit: it counts in full, whatever its coin counts as collateral."""
    return _weight_row(rule_set, instrument, Decimal(1), tier=1, floor=_ZERO)


def _weight_row(rule_set: str, asset_id: str, ratio: Decimal, *, tier: int, floor: Decimal) -> dict[str, Any]:
    return weight_row(rule_set, asset_id, ratio, tier=tier, floor=floor, floor_in="tokens")


# components


def option_rates(record: Any, path: str) -> mechanics.OptionRates:
    """One coin's factors in the parameter file."""
    return mechanics.OptionRates(
        *(
            Fraction(non_negative_at(record, key, path))
            for key in ("initial", "initial_floor", "maintenance", "liquidation_fee")
        )
    )


def short_option_form(rates: mechanics.OptionRates, coins: Sequence[str]) -> ContractMargin:
    """The short-option formula as a rule form: it holds the premium, so that equity must leave options out."""
    initial = ContractRate(
        spot_rate=decimal_from(rates.initial),
        otm_weight=Decimal(1),
        floor_rate=decimal_from(rates.initial_floor),
        premium="larger_of_entry_and_mark",
    )
    maintenance = ContractRate(
        spot_rate=decimal_from(rates.maintenance),
        mark_rate=decimal_from(rates.maintenance),
        premium="mark",
        fee_rate=decimal_from(rates.liquidation_fee),
    )
    return ContractMargin(
        short_call_initial=initial,
        short_call_maintenance=maintenance,
        short_put_initial=initial,
        short_put_maintenance=maintenance,
        at_least_maintenance=True,
        underlyings=tuple(coins),
    )


def cross_components(amounts: Amounts, options: Mapping[str, mechanics.OptionRates]) -> list[Component]:
    """Cross margin: collateral by tiers and profit in full, against tiers by position value and short options."""
    equity = WeightedValue(weights="collateral_tiers", liabilities="unit", options="excluded")
    components = [
        Component(side="equity", parameters=equity),
        Component(side="requirement", parameters=TieredNotional(initial="leverage"), group_by="position"),
    ]
    by_rates: dict[mechanics.OptionRates, list[str]] = {}
    for coin in sorted(options):
        by_rates.setdefault(options[coin], []).append(coin)
    for rates, coins in by_rates.items():
        form = short_option_form(rates, coins)
        components.append(Component(side="requirement", parameters=form, group_by="instrument"))
    return [*components, *_fixed(amounts), _verdict()]


def isolated_components() -> list[Component]:
    """An isolated position: its margin and profit against its tiers."""
    return [
        Component(side="equity", parameters=WeightedValue()),
        Component(side="requirement", parameters=TieredNotional(initial="leverage"), group_by="position"),
        _verdict(),
    ]


def wallet_components(amounts: Amounts) -> list[Component]:
    """What lies beside isolated positions: coins at their value, and the margin of orders."""
    return [Component(side="equity", parameters=WeightedValue()), *_fixed(amounts), _verdict()]


def portfolio_components(initial: Decimal, maintenance: Decimal) -> list[Component]:
    """Portfolio margin: collateral by tiers, options at their value, against the venue's own totals.

    The volatility steps of its scenario matrix are not published.
    """
    equity = WeightedValue(weights="collateral_tiers", liabilities="unit", options="mark")
    reported = Fixed(
        initial=initial, maintenance=maintenance, basis="reported totalInitialMargin and totalMaintenanceMargin"
    )
    return [
        Component(side="equity", parameters=equity),
        Component(side="requirement", parameters=reported),
        _verdict(),
    ]


def _fixed(amounts: Amounts) -> list[Component]:
    out = []
    if amounts.order_loss:
        loss = Fixed(equity=amounts.order_loss, basis="computed loss of open orders at the mark")
        out.append(Component(side="equity", parameters=loss))
    if amounts.loan_initial or amounts.loan_maintenance:
        loans = Fixed(
            initial=amounts.loan_initial,
            maintenance=amounts.loan_maintenance,
            basis="reported account totals less positions and orders: margin of loans",
        )
        out.append(Component(side="requirement", parameters=loans))
    if amounts.order_initial:
        orders = Fixed(initial=amounts.order_initial, basis="reported totalOrderIM")
        out.append(Component(side="requirement", parameters=orders, level="initial"))
    return out


def _verdict() -> Component:
    verdict = Verdict(liquidates_when="at_or_below", health="requirement_over_equity")
    return Component(side="verdict", parameters=verdict)
