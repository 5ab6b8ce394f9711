"""The rules of one account at OKX, put together from what is known: ladders, slices, debts, risk units.

Raises `FieldError` where a rule lacks something, so that the account is incomplete and never computed without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import FailureReason
from aggregator.rule_forms import Component

from ..amounts import FieldError, joined
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .market import DISCOUNTS, LOANS, TIERS, MarketData, OkxCatalog
from .mechanics import DiscountTier, PositionTier, discounted, tier_of
from .parse import BalanceLine, BuilderLine, DetailLine, FeeLine, PositionLine, RiskUnitLine
from .rules import (
    PARAMETER_FILE,
    VENUE,
    RuleBook,
    account_components,
    computed_unit_grid,
    debt_component,
    multi_currency_equity,
    options_beside_tiers,
    reported,
    reported_cost,
    reported_unit_grid,
    single_unit_equity,
    slice_rows,
    tier_rows,
)

# A discount of the venue is that of our slices but for digits and the moment at which it was computed.
_RELATIVE, _CENT = Fraction(1, 10_000), Fraction(1, 100)
_SLACK = Decimal("1.000001")


@dataclass
class Account:
    """An account under construction; `part` names it among the owner's, `mode` is its margin mode."""

    owner: str
    part: str
    unit: str
    mode: str
    payload: Payload | None = None
    time: datetime | None = None
    details: dict[str, DetailLine] = field(default_factory=dict)
    positions: list[PositionLine] = field(default_factory=list)
    leading: dict[str, PositionLine] = field(default_factory=dict)
    """The larger side of every instrument."""
    families: dict[tuple[str, str], Decimal] = field(default_factory=dict)
    """Contracts by kind and instrument family, both sides added."""
    reported_equity: Decimal | None = None
    reported_initial: Decimal | None = None
    reported_maintenance: Decimal | None = None
    reported_ratio: Decimal | None = None
    order_margin: Decimal = Decimal(0)

    def add(self, line: PositionLine) -> None:
        """Takes a position in, with what it adds to the size of its family and its place among the sides."""
        self.positions.append(line)
        self.leading.setdefault(line.name.inst_id, line)
        if abs(line.contracts) > abs(self.leading[line.name.inst_id].contracts):
            self.leading[line.name.inst_id] = line
        family = (line.name.kind, line.name.family)
        self.families[family] = self.families.get(family, Decimal(0)) + abs(line.contracts)


class Sources(NamedTuple):
    """Where rules come from: what the markets say, the parameter file, and the owner's own answers."""

    rows: Rows
    catalog: OkxCatalog
    market: MarketData
    book: RuleBook
    fees: Mapping[str, FeeLine]
    balance: BalanceLine | None
    builder: BuilderLine | None


class AccountRules(NamedTuple):
    """Components of one account, its rows of `margin_tiers` and `collateral_tiers`, and what its figures differ by from
    the venue's own: (figure, size in its unit, words).
    """

    components: list[Component]
    tiers: list[dict[str, Any]]
    weights: list[dict[str, Any]]
    notes: list[tuple[str, Decimal, str]]


def rule_set_of(owner: str, account: Account) -> str:
    """Id of an account's own rule set."""
    return f"{VENUE}:{account.mode}:{owner}:{account.part}".rstrip(":")


def account_rules(home: str, account: Account, of: Sources, builder_payload: Payload | None) -> AccountRules:
    """The rules of one account; raises `FieldError`."""
    rule_set, multi = rule_set_of(account.owner, account), account.unit == "USD"
    weights = _slices(home, account, of, rule_set) if multi else []
    tiers: list[dict[str, Any]] = []
    requirements: list[Component] = []
    extra_equity: list[Component] = []
    if account.mode == "portfolio":
        requirements = _risk_units(home, account, of, builder_payload)
    else:
        for line in account.positions:
            if line.name.kind == "option":
                requirements += _option_margin(account, line, of)
            else:
                tiers += _ladder(account, line, of, rule_set)
        if any(line.name.kind == "option" for line in account.positions):
            requirements += options_beside_tiers()
    if multi:
        requirements += debt_component(_debts(account, of))
        extra_equity = _order_loss(home, account, of)
    if account.order_margin and account.mode in ("single", "multi", "portfolio"):
        requirements += reported(account.order_margin, Decimal(0), "ordFroz")
    equity = multi_currency_equity() if multi else single_unit_equity()
    components = account_components(equity, extra_equity, requirements, positions=bool(tiers))
    return AccountRules(components, tiers, weights, _notes(account, of))


def _notes(account: Account, of: Sources) -> list[tuple[str, Decimal, str]]:
    """The fees of liquidation: in our maintenance margin and not in the venue's; in the venue's ratio of portfolio
    margin and, without a published formula, not in ours.
    """
    if account.mode == "portfolio":
        equity, margin, ratio = account.reported_equity, account.reported_maintenance, account.reported_ratio
        if equity is None or not margin or ratio is None:
            return []
        return [("health", abs(equity / margin - ratio), "the venue's ratio adds fees to the maintenance margin")]
    fees = Decimal(0)
    for line in account.positions:
        found = of.catalog.contracts.get(line.name.inst_id)
        mark = line.mark_price or of.market.marks.get(line.name.inst_id, {}).get("mark")
        price = _price(account, line.name.settlement, of) if account.unit == "USD" else Decimal(1)
        if line.name.kind == "option" or found is None or mark is None or price is None:
            continue
        notional = abs(line.contracts) * found.size * (1 / mark if line.name.inverse else mark)
        fees += notional * price * _fee(line, of)
    words = "the venue's maintenance margin is without the fees of liquidation, which its ratio adds"
    return [("maintenance_margin", fees * _SLACK, words)] if fees else []


def _fee(line: PositionLine, of: Sources) -> Decimal:
    """Taker rate of closing a position: the owner's own, else the dated one; raises missing_parameter."""
    kind = {"perp": "SWAP", "future": "FUTURES", "option": "OPTION"}[line.name.kind]
    own = of.fees.get(kind)
    if own is not None:
        rate = {"USDT": own.usdt, "USDC": own.usdc}.get(line.name.settlement, own.coin)
        if rate is not None:
            return rate
    if kind in of.book.fees:
        return of.book.fees[kind]
    message = f"no taker rate of {kind} in account/trade-fee or {PARAMETER_FILE}"
    raise FieldError(joined(line.path, "instId"), FailureReason.MISSING_PARAMETER, message)


def _ladder(account: Account, line: PositionLine, of: Sources, rule_set: str) -> list[dict[str, Any]]:
    """The ladder of one position; the family's other positions count for its tier."""
    ladder = of.market.ladder(line.name)
    if ladder is None:
        message = f"no usable tiers of {line.name.family} in {TIERS}"
        raise FieldError(joined(line.path, "instId"), FailureReason.MISSING_PARAMETER, message)
    if line is not account.leading[line.name.inst_id]:
        return []  # both sides of one instrument share its rows, and the larger one decides
    others = account.families[line.name.kind, line.name.family] - abs(line.contracts)
    market = instrument_id(VENUE, line.name.inst_id)
    return tier_rows(rule_set, market, ladder.tiers, others=others, fee=_fee(line, of))


def _option_margin(account: Account, line: PositionLine, of: Sources) -> list[Component]:
    """A short option outside of portfolio margin: the position's own figures; a long one needs none."""
    if line.contracts > 0:
        return []
    if line.initial is None or line.maintenance is None:
        message = f"a short option without imr and mmr: no margin of {line.name.inst_id}"
        raise FieldError(joined(line.path, "mmr"), FailureReason.UNSUPPORTED, message)
    price = _price(account, line.name.settlement, of) if account.unit == "USD" else Decimal(1)
    if price is None:
        raise FieldError(line.path, FailureReason.MISSING_MARK, f"no index of {line.name.settlement}")
    basis = f"imr and mmr of {line.name.inst_id}"
    return reported(line.initial * price, line.maintenance * price, basis)


def _price(account: Account, currency: str, of: Sources) -> Decimal | None:
    if currency in of.market.index:
        return of.market.index[currency]
    detail = account.details.get(currency)
    if detail is None or not detail.equity or detail.equity_usd is None:
        return None
    return detail.equity_usd / detail.equity


def _slices(home: str, account: Account, of: Sources, rule_set: str) -> list[dict[str, Any]]:
    """Discount slices of every currency in the account; the reported discount where no slices are at hand."""
    out: list[dict[str, Any]] = []
    currencies = {c for c, detail in account.details.items() if detail.cash or detail.equity}
    currencies |= {line.name.settlement for line in account.positions}
    for currency in sorted(currencies):
        asset = of.catalog.named.asset(currency)
        if asset is None:
            continue  # its balance has failed already
        detail, line = account.details.get(currency), of.market.slices.get(currency)
        if detail is not None and not detail.is_collateral:
            # Profit that settles in it is no collateral either; a loss counts in full.
            nothing = ((Decimal(0), None, Decimal(0)),)
            out += slice_rows(rule_set, asset, nothing, floor_in="tokens", source="collateralEnabled false")
            continue
        if line is not None:
            unit = _slice_unit(account, currency, detail, of)
            out += slice_rows(rule_set, asset, line.tiers, floor_in=unit, source=DISCOUNTS)
            continue
        rate = _reported_rate(detail)
        if rate is None:
            message = f"no discount of {currency} in public/discount-rate-interest-free-quota or the balance"
            name = account.payload.name if account.payload else ""
            of.rows.fail(FailureReason.MISSING_PARAMETER, message, payload=name, subject=currency, account_id=home)
            continue
        out += slice_rows(
            rule_set, asset, ((Decimal(0), None, rate),), floor_in="tokens", source="reported disEq over eqUsd"
        )
    return out


def _reported_rate(detail: DetailLine | None) -> Decimal | None:
    if detail is None or detail.discounted_usd is None or not detail.equity_usd:
        return None
    rate = detail.discounted_usd / detail.equity_usd
    # Debts count in full, and what is above 1 is no discount.
    return Decimal(1) if detail.equity_usd < 0 else rate if 0 <= rate <= 1 else None


def _slice_unit(account: Account, currency: str, detail: DetailLine | None, of: Sources) -> str:
    """What the bounds of slices count: as the answer's version says, unless only the other unit gives the reported
    discount.
    """
    stated = "tokens" if of.market.slices[currency].in_coins else "value"
    price = _price(account, currency, of)
    if detail is None or detail.discounted_usd is None or price is None or detail.equity <= 0:
        return stated
    tiers = [
        DiscountTier(Fraction(floor), None if cap is None else Fraction(cap), Fraction(rate))
        for floor, cap, rate in of.market.slices[currency].tiers
    ]
    equity, worth = Fraction(detail.equity), Fraction(price)
    by_unit = {
        "tokens": discounted(equity, tiers) * worth,
        "value": discounted(equity * worth, tiers),
    }
    target = Fraction(detail.discounted_usd)

    def fits(value: Fraction) -> bool:
        return abs(value - target) <= _RELATIVE * abs(target) + _CENT

    if fits(by_unit[stated]):
        return stated
    other = "value" if stated == "tokens" else "tokens"
    return other if fits(by_unit[other]) else stated


def _debts(account: Account, of: Sources) -> dict[str, tuple[Decimal, Decimal]]:
    """Rates on what may be owed, by asset id: of the loan tier of today's debt, else the dated ones."""
    out: dict[str, tuple[Decimal, Decimal]] = {}
    for currency, detail in sorted(account.details.items()):
        ladder = of.market.ladders.get((LOANS, currency))
        asset = of.catalog.named.asset(currency)
        if asset is None:
            continue
        if ladder is not None:
            owed = Fraction(max(-detail.equity, Decimal(0)))
            tiers = [
                PositionTier(
                    None if tier.cap is None else Fraction(tier.cap),
                    Fraction(tier.initial_rate),
                    Fraction(tier.maintenance_rate),
                    Fraction(1),
                )
                for tier in ladder.tiers
            ]
            number = tiers.index(tier_of(owed, tiers))
            out[asset] = (ladder.tiers[number].initial_rate, ladder.tiers[number].maintenance_rate)
        elif of.book.borrow is not None:
            out[asset] = (of.book.borrow.initial, of.book.borrow.maintenance)
        elif detail.equity < 0:
            message = f"no borrowing rate of {currency} in public/position-tiers:MARGIN or {PARAMETER_FILE}"
            raise FieldError(joined(detail.path, "ccy"), FailureReason.MISSING_PARAMETER, message)
    return out


def _order_loss(home: str, account: Account, of: Sources) -> list[Component]:
    """What the venue takes off equity for pending orders: adjusted equity less the discounted equities."""
    line = of.balance
    if line is None or line.adjusted is None or not account.order_margin:
        return []
    if any(detail.isolated_equity for detail in account.details.values()):
        return []  # the reported discounts hold isolated equity, which the adjusted equity leaves out
    total = Decimal(0)
    for detail in account.details.values():
        counted = detail.counted_usd
        if counted is None:
            of.rows.fail(
                FailureReason.MISSING_FIELD,
                f"field 'disEq' of {detail.currency} is missing: the loss of open orders is not known",
                payload=account.payload.name if account.payload else "",
                path=joined(detail.path, "disEq"),
                subject=home,
            )
            return []
        total += counted
    gap = line.adjusted - total
    return reported_cost(gap, "adjEq less disEq of the currencies") if gap < 0 else []


def _risk_units(home: str, account: Account, of: Sources, payload: Payload | None) -> list[Component]:
    """Requirements of the risk units; MR8 is the charge on debts."""
    units: dict[str, list[PositionLine]] = {}
    for position in account.positions:
        units.setdefault(position.name.base, []).append(position)
    lines = _unit_lines(home, of, units, payload)
    out: list[Component] = []
    for coin, held in sorted(units.items()):
        asset = of.catalog.named.asset(coin)
        if asset is None:
            continue  # its position has failed already
        group, line = of.book.group(coin), lines.get(coin)
        if group is None:
            message = f"no group of {coin} in {PARAMETER_FILE}"
            raise FieldError("", FailureReason.MISSING_PARAMETER, message)
        options = any(one.name.kind == "option" for one in held)
        hedged = of.builder is not None and bool(of.builder.spot_in_use.get(coin))
        if options and line is None:
            message = (
                f"options of {coin} without an account/position-builder answer: the vol moves of MR1 are not public"
            )
            raise FieldError("", FailureReason.UNSUPPORTED, message)
        if hedged and line is not None:
            out += reported(line.initial, line.maintenance, f"riskUnitData of {coin}, which spot hedges")
            continue
        symbol = of.catalog.named.risk_symbol(coin)
        factor = of.book.initial_factor
        if factor is None:
            message = f"no initial_factor in {PARAMETER_FILE}, by which the initial requirement of {coin} is known"
            raise FieldError("initial_factor", FailureReason.MISSING_PARAMETER, message)
        if options and line is not None:
            grid = reported_unit_grid(group, underlying=symbol, initial_factor=factor, line=line)
        else:
            dated = any(one.name.kind == "future" for one in held)
            found = computed_unit_grid(group, coin, underlying=symbol, initial_factor=factor, line=line, dated=dated)
            if found is None:
                message = f"rates of MR4 and MR7 of {coin} neither in {PARAMETER_FILE} nor in a position-builder answer"
                raise FieldError("", FailureReason.MISSING_PARAMETER, message)
            grid = found
        out.append(Component(side="requirement", parameters=grid, group_by="risk_unit"))
        if line is not None and line.parts["mr9"]:
            depeg = line.parts["mr9"]
            out += reported(depeg * factor, depeg, f"mr9 of {coin}")
    return out


def _unit_lines(
    home: str, of: Sources, units: Mapping[str, Sequence[PositionLine]], payload: Payload | None
) -> dict[str, RiskUnitLine]:
    """The reported risk units, where the answer holds just what the account holds; else a finding and none."""
    if of.builder is None:
        return {}
    lines = {line.unit.partition("-")[0]: line for line in of.builder.units if any(line.amounts.values())}
    held = {coin: _amounts(positions) for coin, positions in units.items()}
    if {coin: {k: v for k, v in line.amounts.items() if v} for coin, line in lines.items()} == held:
        return lines
    of.rows.fail(
        FailureReason.INCONSISTENT,
        "the position builder holds other positions than the account, so its parts are not taken",
        payload=payload.name if payload else "",
        path=joined(of.builder.path, "riskUnitData"),
        subject=home,
    )
    return {}


def _amounts(positions: Sequence[PositionLine]) -> dict[str, Decimal]:
    out: dict[str, Decimal] = {}
    for line in positions:
        out[line.name.inst_id] = out.get(line.name.inst_id, Decimal(0)) + line.contracts
    return {name: amount for name, amount in out.items() if amount}
