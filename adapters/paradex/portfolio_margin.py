"""Portfolio margin of Paradex for one base asset, in plain Python: the slow twin of the engine's grid form.

Money in USD, sizes in base coins and signed, times in seconds or days, float64 because of the normal distribution.
Source: the venue's SDK tradeparadex/paradex-py @334a7f81 (paradex_py/margin/portfolio_margin.py, black_scholes.py; MIT,
read for the rules), and tradeparadex/paradex-docs @9b82a75a (risk-system/portfolio-margin). The venue approximates
the normal distribution by a polynomial that is good to 1.5e-7 (`venue_normal_cdf`); the engine's is exact, as is the
default here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

SETTLEMENT_WINDOW_S = 1800.0
"""An option settles at the average price of its last half hour; what of that is over does not move any more."""
DAYS_PER_YEAR = 365.0
SECONDS_PER_DAY = 86400.0
FUNDING_RATE_HOURS = 8.0
_REFERENCE_DAYS = 30.0


class Scenario(NamedTuple):
    """One scenario: relative moves of spot and vol, and the weight of its profit or loss."""

    spot_shock: float
    vol_shock: float
    weight: float


class VolShockParameters(NamedTuple):
    """How a vol move depends on the time to expiry, and the lowest vol after a move up."""

    power_short: float
    power_long: float
    dte_floor_days: float
    min_vol_up: float


class Configuration(NamedTuple):
    """One base asset of the venue's portfolio-margin configuration."""

    scenarios: tuple[Scenario, ...]
    vol: VolShockParameters
    hedged_factor: float
    unhedged_factor: float
    mmf_factor: float
    funding_hours: float


class OptionTerms(NamedTuple):
    """What makes an instrument an option; `dte` in days, `mark_iv` annual as a fraction, `fee_cap` the largest fee as a
    share of its mark (none by default).
    """

    strike: float
    is_call: bool
    dte: float
    mark_iv: float
    fee_cap: float = math.inf


class Leg(NamedTuple):
    """A position, or an order when `price` (its limit) is set; `option` is None for the perpetual."""

    size: float
    mark: float
    delta: float
    fee_rate: float
    option: OptionTerms | None = None
    price: float | None = None


class Underlying(NamedTuple):
    """Marks of the base asset: spot, mark and 8-hour funding rate of its perpetual, interest rate."""

    spot: float
    perp_mark: float
    funding_rate: float
    rate: float


class PortfolioMargin(NamedTuple):
    """The requirement and its parts; `worst_scenario` is the first index of the largest loss."""

    imr: float
    mmr: float
    worst_loss: float
    worst_scenario: int
    min_delta: float
    funding_provision: float
    fee_provision_imr: float
    fee_provision_mmr: float


def normal_cdf(x: float) -> float:
    """Distribution function of the standard normal, accurate in both tails."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def venue_normal_cdf(x: float) -> float:
    """The same as the venue computes it: a polynomial, accurate to 1.5e-7.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26. Two scenarios whose losses differ by less than
    its error may change places.
    """
    z = abs(x) / math.sqrt(2.0)
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = 0.0
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + coefficient) * t
    return 0.5 * (1.0 + math.copysign(1.0 - series * math.exp(-z * z), x))


def black_scholes(
    spot: float,
    strike: float,
    *,
    years: float,
    rate: float,
    vol: float,
    is_call: bool,
    cdf: Callable[[float], float] = normal_cdf,
) -> float:
    """Price of a European option on the spot; the undiscounted intrinsic value where time or vol is 0, as at the
    venue.
    """
    sign = 1.0 if is_call else -1.0
    if years <= 0 or vol <= 0 or spot <= 0:
        return max(0.0, sign * (spot - strike))
    deviation = vol * math.sqrt(years)
    d1 = (math.log(spot / strike) + (rate + 0.5 * vol * vol) * years) / deviation
    discounted = strike * math.exp(-rate * years)
    return sign * (spot * cdf(sign * d1) - discounted * cdf(sign * (d1 - deviation)))


def shocked_vol(vol: float, shock: float, dte: float, *, parameters: VolShockParameters) -> float:
    """vol * (1 + shock * (30 / max(floor, DTE))^power), power by DTE below 30 or not; a move up ends at the floor or
    above, a move down at 0 or above.
    """
    power = parameters.power_short if dte < _REFERENCE_DAYS else parameters.power_long
    scale = (_REFERENCE_DAYS / max(parameters.dte_floor_days, dte)) ** power
    moved = vol * (1.0 + shock * scale)
    return max(moved, parameters.min_vol_up) if shock > 0 else max(moved, 0.0)


def live_share(option: OptionTerms | None) -> float:
    """Share of the settlement average that is still open: 1 until the last half hour, then falling to 0."""
    if option is None:
        return 1.0
    return min(1.0, max(0.0, option.dte * SECONDS_PER_DAY / SETTLEMENT_WINDOW_S))


def scenario_price(
    option: OptionTerms | None,
    scenario: Scenario,
    *,
    underlying: Underlying,
    parameters: VolShockParameters,
    cdf: Callable[[float], float] = normal_cdf,
) -> float:
    """Price under one scenario: the perpetual keeps its relative basis, an option is priced on the shocked spot."""
    spot = underlying.spot * (1.0 + scenario.spot_shock)
    if option is None:
        return spot * (underlying.perp_mark / underlying.spot)
    return black_scholes(
        spot,
        option.strike,
        years=option.dte / DAYS_PER_YEAR,
        rate=underlying.rate,
        vol=shocked_vol(option.mark_iv, scenario.vol_shock, option.dte, parameters=parameters),
        is_call=option.is_call,
        cdf=cdf,
    )


def scenario_profit(leg: Leg, price: float) -> float:
    """Profit of a leg at a shocked price, before its weight: of a position in full, of an order only a loss."""
    if leg.price is None:
        return live_share(leg.option) * leg.size * (price - leg.mark)
    return live_share(leg.option) * min(0.0, leg.size * (price - leg.price))


def fee_provision(leg: Leg, spot: float) -> float:
    """rate * |size| * mark, of an option min(rate * spot, cap * mark) * |size|."""
    per_unit = leg.fee_rate * leg.mark
    if leg.option is not None:
        per_unit = leg.fee_rate * spot
        if math.isfinite(leg.option.fee_cap):
            per_unit = min(per_unit, leg.option.fee_cap * leg.mark)
    return abs(leg.size) * per_unit


def min_delta(positions: Sequence[float], orders: Sequence[float], configuration: Configuration) -> float:
    """Charge on deltas, in base coins: hedged factor * H + unhedged factor * U.

    With L, S the sums of long and of short deltas and a bar for "orders included": U = max(0, barL - S, barS - L),
    H = max(0, max(barL, barS) - U). Without orders U is the net and H the matched delta.
    """
    long, short = sum(d for d in positions if d > 0), -sum(d for d in positions if d < 0)
    most_long = long + sum(d for d in orders if d > 0)
    most_short = short - sum(d for d in orders if d < 0)
    unhedged = max(0.0, most_long - short, most_short - long)
    hedged = max(0.0, max(most_long, most_short) - unhedged)
    return configuration.hedged_factor * hedged + configuration.unhedged_factor * unhedged


def funding_provision(
    positions: Sequence[Leg], orders: Sequence[Leg] = (), *, underlying: Underlying, hours: float
) -> float:
    """Funding that the perpetuals would pay together over `hours`; never below 0.

    rate * (positions - orders) * spot: the venue's own code nets orders against positions with the opposite sign, so
    that an order which would close the position adds to the provision. That is followed here as published.
    """
    net = _perp_size(positions) - _perp_size(orders)
    return max(0.0, underlying.funding_rate * net * underlying.spot * hours / FUNDING_RATE_HOURS)


def _perp_size(legs: Sequence[Leg]) -> float:
    return sum(leg.size for leg in legs if leg.option is None)


def portfolio_margin(
    positions: Sequence[Leg],
    orders: Sequence[Leg],
    *,
    underlying: Underlying,
    configuration: Configuration,
    spot_tokens: float = 0.0,
    cdf: Callable[[float], float] = normal_cdf,
) -> PortfolioMargin:
    """Requirement of an account's legs in one base asset; `cdf` is the normal distribution that prices the options.

    IMR = max(worst loss, minimum delta) + funding and fee provision of positions and orders + spot tokens.
    MMR = mmf factor * max(worst loss, minimum delta of the positions) + both provisions of the positions + spot tokens.
    """
    worst_loss, worst_scenario, worst_of_positions = 0.0, 0, 0.0
    for number, scenario in enumerate(configuration.scenarios):
        prices = {
            option: scenario_price(option, scenario, underlying=underlying, parameters=configuration.vol, cdf=cdf)
            for option in {leg.option for leg in (*positions, *orders)}
        }
        of_positions = sum(scenario_profit(leg, prices[leg.option]) for leg in positions) * scenario.weight
        of_orders = sum(scenario_profit(leg, prices[leg.option]) for leg in orders) * scenario.weight
        worst_of_positions = max(worst_of_positions, -of_positions)
        if -(of_positions + of_orders) > worst_loss:
            worst_loss, worst_scenario = -(of_positions + of_orders), number

    deltas = [leg.delta * leg.size for leg in positions]
    floor = min_delta(deltas, [leg.delta * leg.size for leg in orders], configuration) * underlying.spot
    floor_of_positions = min_delta(deltas, (), configuration) * underlying.spot
    hours = configuration.funding_hours
    funding = funding_provision(positions, orders, underlying=underlying, hours=hours)
    funding_of_positions = funding_provision(positions, underlying=underlying, hours=hours)
    fees_of_positions = sum(fee_provision(leg, underlying.spot) for leg in positions)
    fees = fees_of_positions + sum(fee_provision(leg, underlying.spot) for leg in orders)
    return PortfolioMargin(
        imr=max(worst_loss, floor) + funding + fees + spot_tokens,
        mmr=configuration.mmf_factor * max(worst_of_positions, floor_of_positions)
        + funding_of_positions
        + fees_of_positions
        + spot_tokens,
        worst_loss=worst_loss,
        worst_scenario=worst_scenario,
        min_delta=floor,
        funding_provision=funding,
        fee_provision_imr=fees,
        fee_provision_mmr=fees_of_positions,
    )
