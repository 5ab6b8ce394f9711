"""SPAN-type margin of a clearing house: risk arrays, scanning risk, spreads, minimum, option value, total.

Losses are positive, quantities signed (long positive), money in the combined commodity's currency. Arrays of futures
and everything summed from arrays are exact fractions; an option's array is float64 where the model needs logarithms.
No rounding: a house that rounds its arrays sends them rounded. Scenario definition: CME Group, "Components of SPAN"
and "Risk Arrays"; the figures that houses choose (ranges, extreme cover, charges, credits, delta weights) are inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

Exact = int | Decimal | Fraction
DAYS_PER_YEAR = 365
SCENARIO_COUNT = 16
SCAN_POINTS = tuple(Fraction(step, 3) for step in (0, 1, -1, 2, -2, 3, -3))
"""Price moves of the regular scenarios in price scan ranges, each once with the vol up and once with it down."""


class Scenario(NamedTuple):
    """One point: price move in scan ranges, direction of the vol, and the share of the loss that counts."""

    price: Fraction
    vol: int
    cover: Fraction


class Option(NamedTuple):
    """A European option on a future, quoted per unit like the future."""

    strike: float
    vol: float
    days_to_expiry: float
    is_call: bool


class Scan(NamedTuple):
    """Result of a scan: losses by scenario, the largest one (not below 0), and the number (1 to 16) of the first
    scenario that has it.
    """

    losses: tuple[Fraction, ...]
    risk: Fraction
    active: int


class PriceRisk(NamedTuple):
    """A scan risk split: what the vol makes of it, what a day makes of it, and the rest per unit of net delta."""

    volatility_risk: Fraction
    time_risk: Fraction
    price_risk: Fraction
    weighted: Fraction


class MonthDelta(NamedTuple):
    """Net composite delta of one contract month, and its tier for spreads; `month` as the house names it."""

    month: str
    tier: int
    delta: Fraction


class CalendarLeg(NamedTuple):
    """One leg of a calendar spread: deltas per spread from a tier, on market side A or B."""

    tier: int
    side: str
    delta: Fraction


class CalendarSpread(NamedTuple):
    """Charge per spread of two or more legs; a lower priority number is formed first."""

    priority: int
    charge: Fraction
    legs: tuple[CalendarLeg, ...]


class DeliveryMonth(NamedTuple):
    """Charges of a contract month near delivery: per delta that spreads use, and per delta that is left."""

    month: str
    spread_charge: Fraction
    outright_charge: Fraction


class IntraCommodity(NamedTuple):
    """Calendar charge, and per month the deltas that spreads used and left (both positive)."""

    charge: Fraction
    used: Mapping[str, Fraction]
    left: Mapping[str, Fraction]


class InterLeg(NamedTuple):
    """One leg of a spread between commodities: deltas per spread, market side, share of the price risk credited."""

    commodity: str
    side: str
    delta: Fraction
    credit_rate: Fraction


class InterSpread(NamedTuple):
    """A spread between combined commodities; a lower priority number is formed first."""

    priority: int
    legs: tuple[InterLeg, ...]


class InterCredit(NamedTuple):
    """Credit by combined commodity, and the deltas that no spread used (signed)."""

    credits: Mapping[str, Fraction]
    left: Mapping[str, Fraction]


class Requirement(NamedTuple):
    """A portfolio's total, and what of the net option value was used."""

    total: Fraction
    risk: Fraction
    net_option_value: Fraction


# ---------------------------------------------------------------------------------------------------------------------
# Risk arrays


def scenarios(extreme_multiple: Exact | float, extreme_cover: Exact | float) -> tuple[Scenario, ...]:
    """The 16 scenarios in their standard order.

    1 to 14: each of `SCAN_POINTS` with the vol up, then down, full loss. 15 and 16: `extreme_multiple` ranges up and
    down with the vol unchanged, of which `extreme_cover` counts.
    """
    regular = [Scenario(point, vol, Fraction(1)) for point in SCAN_POINTS for vol in (1, -1)]
    far, cover = Fraction(extreme_multiple), Fraction(extreme_cover)
    return (*regular, Scenario(far, 0, cover), Scenario(-far, 0, cover))


def future_array(price_scan_range: Exact | float, points: Sequence[Scenario]) -> tuple[Fraction, ...]:
    """Losses of one long future per unit: −move × range × cover; time and vol do not touch it."""
    return tuple(-point.price * Fraction(price_scan_range) * point.cover for point in points)


def option_array(
    option: Option,
    future_price: float,
    *,
    price_scan_range: float,
    vol_scan_range: float,
    look_ahead_days: float,
    points: Sequence[Scenario],
) -> tuple[Fraction, ...]:
    """Losses of one long option per unit: (value today − value in the scenario) × cover.

    In a scenario the future has moved, the vol is multiplied by 1 ± `vol_scan_range`, and `look_ahead_days` have
    passed. Values are Black-76, undiscounted, in years of 365 days.
    """
    today = black76(option, future_price, vol=option.vol, days=option.days_to_expiry)
    days = option.days_to_expiry - look_ahead_days
    losses = []
    for point in points:
        price = future_price + float(point.price) * price_scan_range
        vol = option.vol * (1 + point.vol * vol_scan_range)
        losses.append(Fraction((today - black76(option, price, vol=vol, days=days)) * float(point.cover)))
    return tuple(losses)


def black76(option: Option, future_price: float, *, vol: float, days: float) -> float:
    """Undiscounted value per unit; intrinsic value at expiry, without vol, or at a price of 0 or less."""
    strike, sign = option.strike, 1.0 if option.is_call else -1.0
    if days <= 0 or vol <= 0 or future_price <= 0:
        return max(sign * (future_price - strike), 0.0)
    spread = vol * math.sqrt(days / DAYS_PER_YEAR)
    d1 = math.log(future_price / strike) / spread + spread / 2
    return sign * (future_price * _normal(sign * d1) - strike * _normal(sign * (d1 - spread)))


def option_delta(option: Option, future_price: float, *, vol: float, days: float) -> float:
    """Change of `black76` per change of the future's price; at expiry 0 or ±1, one half at the strike."""
    sign = 1.0 if option.is_call else -1.0
    if days <= 0 or vol <= 0 or future_price <= 0:
        moneyness = sign * (future_price - option.strike)
        return sign * (1.0 if moneyness > 0 else 0.5 if moneyness == 0 else 0.0)
    spread = vol * math.sqrt(days / DAYS_PER_YEAR)
    return sign * _normal(sign * (math.log(future_price / option.strike) / spread + spread / 2))


def composite_delta(
    option: Option,
    future_price: float,
    *,
    price_scan_range: float,
    look_ahead_days: float,
    weights: Sequence[Exact | float],
) -> Fraction:
    """Weighted mean of an option's deltas over the seven price points of the scan, a look-ahead later.

    `weights` belong to `SCAN_POINTS` in their order and are divided by their sum; raises `ValueError` for another
    number of them, a negative one, or a sum of 0. The vol is today's.
    """
    shares = [Fraction(weight) for weight in weights]
    if len(shares) != len(SCAN_POINTS) or min(shares) < 0 or not sum(shares):
        raise ValueError(f"composite delta needs {len(SCAN_POINTS)} weights, none negative, not all 0")
    days = option.days_to_expiry - look_ahead_days
    deltas = [
        Fraction(option_delta(option, future_price + float(point) * price_scan_range, vol=option.vol, days=days))
        for point in SCAN_POINTS
    ]
    return sum((share * delta for share, delta in zip(shares, deltas, strict=True)), Fraction(0)) / sum(shares)


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


# ---------------------------------------------------------------------------------------------------------------------
# Scanning


def total_losses(holdings: Iterable[tuple[Exact | float, Sequence[Exact | float]]]) -> tuple[Fraction, ...]:
    """Losses by scenario of (quantity, array of one long contract) pairs; zeros for none.

    Raises `ValueError` for an array that has not 16 entries.
    """
    total = [Fraction(0)] * SCENARIO_COUNT
    for quantity, array in holdings:
        if len(array) != SCENARIO_COUNT:
            raise ValueError(f"a risk array has {SCENARIO_COUNT} entries, not {len(array)}")
        size = Fraction(quantity)
        total = [sum_ + size * Fraction(loss) for sum_, loss in zip(total, array, strict=True)]
    return tuple(total)


def scan(losses: Sequence[Fraction]) -> Scan:
    """Scanning risk: the largest loss, or 0 when no scenario loses; the first scenario with the largest loss."""
    worst = max(losses)
    return Scan(tuple(losses), max(worst, Fraction(0)), list(losses).index(worst) + 1)


def paired_scenario(number: int) -> int:
    """Scenario of equal price and opposite vol; an extreme one, whose vol does not move, is its own pair."""
    if not 1 <= number <= SCENARIO_COUNT:
        raise ValueError(f"scenario {number} is none of 1 to {SCENARIO_COUNT}")
    return number if number > 14 else number + 1 if number % 2 else number - 1


def price_risk(found: Scan, net_delta: Exact) -> PriceRisk:
    """The scan risk without its vol and time parts, also per unit of |net delta|.

    volatility risk = (active − paired loss) / 2; time risk = mean loss of scenarios 1 and 2, in which the price stays;
    price risk = scan risk − both; weighted futures price risk = price risk / |net delta|, 0 without a net delta. A
    portfolio that loses in no scenario has no risk to split.
    """
    zero = Fraction(0)
    if found.risk == 0:
        return PriceRisk(zero, zero, zero, zero)
    volatility = (found.losses[found.active - 1] - found.losses[paired_scenario(found.active) - 1]) / 2
    time = (found.losses[0] + found.losses[1]) / 2
    rest = found.risk - volatility - time
    return PriceRisk(volatility, time, rest, rest / abs(Fraction(net_delta)) if net_delta else zero)


# ---------------------------------------------------------------------------------------------------------------------
# Spreads


def intra_commodity(months: Sequence[MonthDelta], spreads: Sequence[CalendarSpread]) -> IntraCommodity:
    """Charge for offsetting deltas in different months, whose prices need not move together.

    By priority, each spread is formed as often as its legs allow, first with side A long and B short, then the other
    way round: number = min over legs of (deltas of the tier on the leg's side / deltas per spread). Long and short
    months of one tier may be the two sides of a spread within it. Deltas are taken from a tier's months in their order.
    """
    rest = {month.month: month.delta for month in months}
    if len(rest) < len(months):
        raise ValueError("a contract month is listed twice")
    start, charge = dict(rest), Fraction(0)
    for spread in sorted(spreads, key=lambda s: s.priority):
        needs: dict[tuple[int, str], Fraction] = {}
        for leg in spread.legs:
            needs[leg.tier, leg.side] = needs.get((leg.tier, leg.side), Fraction(0)) + leg.delta
        for long_side in ("A", "B"):
            formed = min(
                _available(rest, months, tier, long=side == long_side) / delta for (tier, side), delta in needs.items()
            )
            charge += formed * spread.charge
            for (tier, side), delta in needs.items():
                _take(rest, months, tier, long=side == long_side, amount=formed * delta)
    left = {month: abs(delta) for month, delta in rest.items()}
    return IntraCommodity(charge, {month: abs(start[month]) - left[month] for month in left}, left)


def _available(rest: Mapping[str, Fraction], months: Sequence[MonthDelta], tier: int, *, long: bool) -> Fraction:
    deltas = (rest[month.month] for month in months if month.tier == tier)
    return sum((abs(delta) for delta in deltas if (delta > 0) == long), Fraction(0))


def _take(rest: dict[str, Fraction], months: Sequence[MonthDelta], tier: int, *, long: bool, amount: Fraction) -> None:
    for month in months:
        held = rest[month.month]
        if month.tier == tier and amount and held and (held > 0) == long:
            part = min(abs(held), amount)
            rest[month.month] = held - part if held > 0 else held + part
            amount -= part


def delivery_charge(intra: IntraCommodity, months: Sequence[DeliveryMonth]) -> Fraction:
    """Charge of months near delivery: deltas in spreads × spread charge + deltas left × outright charge."""
    return sum(
        (
            intra.used.get(month.month, Fraction(0)) * month.spread_charge
            + intra.left.get(month.month, Fraction(0)) * month.outright_charge
            for month in months
        ),
        Fraction(0),
    )


def inter_commodity(
    deltas: Mapping[str, Fraction], weighted_risks: Mapping[str, Fraction], spreads: Sequence[InterSpread]
) -> InterCredit:
    """Credit for offsetting deltas of different commodities.

    By priority, a spread is formed when its legs lie on opposite market sides as listed (or all the other way round):
    number = min over legs of |delta left| / deltas per spread; each leg is credited weighted futures price risk ×
    number × deltas per spread × credit rate. A spread with a leg that is not held forms nothing.
    """
    rest = {commodity: Fraction(delta) for commodity, delta in deltas.items()}
    found = {commodity: Fraction(0) for commodity in deltas}
    for spread in sorted(spreads, key=lambda s: s.priority):
        signs = {(1 if leg.side == "A" else -1) * (1 if rest.get(leg.commodity, 0) > 0 else -1) for leg in spread.legs}
        if len(signs) != 1 or not all(rest.get(leg.commodity) for leg in spread.legs):
            continue
        formed = min(abs(rest[leg.commodity]) / leg.delta for leg in spread.legs)
        for leg in spread.legs:
            used = formed * leg.delta
            found[leg.commodity] += weighted_risks[leg.commodity] * used * leg.credit_rate
            rest[leg.commodity] -= used if rest[leg.commodity] > 0 else -used
    return InterCredit(found, rest)


# ---------------------------------------------------------------------------------------------------------------------
# Totals


def short_option_minimum(short_calls: Exact, short_puts: Exact, rate: Exact, *, count: str = "sum") -> Fraction:
    """Least charge for short options: rate × their number, calls and puts together or (`"larger"`) the larger of the
    two; both numbers positive.
    """
    calls, puts = Fraction(short_calls), Fraction(short_puts)
    return Fraction(rate) * (max(calls, puts) if count == "larger" else calls + puts)


def commodity_risk(
    scan_risk: Exact, *, intra: Exact = 0, delivery: Exact = 0, inter_credit: Exact = 0, option_minimum: Exact = 0
) -> Fraction:
    """Risk of a combined commodity: max(scan + calendar + delivery charge − credit, short option minimum)."""
    charged = Fraction(scan_risk) + Fraction(intra) + Fraction(delivery) - Fraction(inter_credit)
    return max(charged, Fraction(option_minimum))


def net_option_value(holdings: Iterable[tuple[Exact, Exact, Exact]]) -> Fraction:
    """Value of long minus short options, of (quantity, price, multiplier): options whose premium is paid up front."""
    return sum((Fraction(q) * Fraction(price) * Fraction(size) for q, price, size in holdings), Fraction(0))


def total_requirement(risk: Exact, option_value: Exact) -> Requirement:
    """max(0, risk − net option value): long options pay for risk, short ones must be covered beside it."""
    needed, value = Fraction(risk), Fraction(option_value)
    return Requirement(max(needed - value, Fraction(0)), needed, value)
