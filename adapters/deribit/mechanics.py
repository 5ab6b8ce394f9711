"""Deribit's margin rules as exact plain functions: standard margin, risk matrix of portfolio margin, liquidation price.

Units: sizes in base coins, long positive; prices in USD per coin (USDC or USDT for linear contracts); inverse margins
in the coin, linear and cross-collateral ones in the dollar unit. Rates are fractions, times years of 365 days. Rational
arithmetic is exact; `float` comes in only where a rule has exp, log or a fractional power, and its value is then taken
exactly as it stands.

Sources (read 2026-11-21): Deribit support, "Linear Perpetual", "Margin types and usage", "Portfolio Margin",
"11 January 2022" (slopes of BTC and ETH); API reference of private/pme/simulate with its BTC example, and a captured
ETH answer of February 2026; per-contract option margin from a third party's copy of the venue's rules (doc.tslab.pro).
Delta shock, the option branch of the matrix and roll shocks above the minimum come from third-party code and are not
confirmed by a published figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

EXTENDED_MOVES = tuple(Fraction(move, 100) for move in (-66, -33, 50, 100, 200, 300, 400, 500))
"""Moves of the extended table, in the venue's order."""

_SHORT_TERM_DAYS = 30
_DAYS_PER_YEAR = 365
_DECIMALS = 9

VolState = Literal["up", "same", "down"]
_VOL_STATES: tuple[VolState, ...] = ("up", "same", "down")


class Margin(NamedTuple):
    """Initial and maintenance margin in one unit."""

    initial: Fraction
    maintenance: Fraction


# ---------------------------------------------------------------------------------------------------------------------
# Standard margin


def futures_rates(size: Fraction, initial: Fraction, maintenance: Fraction, slope: Fraction) -> Margin:
    """Rates of a future or perpetual of `size` coins: `rate + slope * |size|` on both levels."""
    extra = slope * abs(size)
    return Margin(initial + extra, maintenance + extra)


def linear_future_margin(
    size: Fraction, index_price: Fraction, *, initial: Fraction, maintenance: Fraction, slope: Fraction
) -> Margin:
    """Standard margin of a linear perpetual or future in its settlement unit: `|size| * rate(size) * index`."""
    rates = futures_rates(size, initial, maintenance, slope)
    notional = abs(size) * index_price
    return Margin(notional * rates.initial, notional * rates.maintenance)


def inverse_future_margin(
    contracts_usd: Fraction, mark_price: Fraction, *, initial: Fraction, maintenance: Fraction, slope: Fraction
) -> Margin:
    """Standard margin of an inverse perpetual or future in the coin: `|size| * rate(size)`, size = USD / mark."""
    size = abs(contracts_usd) / mark_price
    rates = futures_rates(size, initial, maintenance, slope)
    return Margin(size * rates.initial, size * rates.maintenance)


class OptionRates(NamedTuple):
    """Per-contract option margin: fractions of the index (of the mark price for `put_mark_rate`)."""

    initial_rate: Fraction
    initial_floor: Fraction
    maintenance_rate: Fraction
    put_mark_rate: Fraction


def inverse_option_margin(
    is_call: bool,
    size: Fraction,
    *,
    strike: Fraction,
    index_price: Fraction,
    mark_price: Fraction,
    rates: OptionRates,
) -> Margin:
    """Standard margin of an inverse option position in the coin; a long position needs none.

    Per short contract, with `otm` the distance out of the money (max(0, K - S) for a call, max(0, S - K) for a put) and
    the mark price m in coins:
    call: maintenance = rate_mm + m, initial = max(rate_im - otm / S, floor) + m;
    put : maintenance = max(rate_mm, put_mark_rate * m) + m, initial = max(the call's formula, maintenance).
    """
    if size >= 0:
        return Margin(Fraction(0), Fraction(0))
    otm = max(strike - index_price if is_call else index_price - strike, Fraction(0))
    initial = max(rates.initial_rate - otm / index_price, rates.initial_floor) + mark_price
    if is_call:
        maintenance = rates.maintenance_rate + mark_price
    else:
        maintenance = max(rates.maintenance_rate, rates.put_mark_rate * mark_price) + mark_price
        initial = max(initial, maintenance)
    return Margin(-size * initial, -size * maintenance)


def linear_option_margin(
    is_call: bool,
    size: Fraction,
    *,
    strike: Fraction,
    index_price: Fraction,
    mark_price: Fraction,
    rates: OptionRates,
) -> Margin:
    """Standard margin of a linear option in its settlement unit: the coin formula at `mark / index`, times the index.

    `mark_price` is in the settlement unit. That linear options follow the inverse formula is from memory of the venue's
    rules and not confirmed by a published figure.
    """
    coin = inverse_option_margin(
        is_call, size, strike=strike, index_price=index_price, mark_price=mark_price / index_price, rates=rates
    )
    return Margin(coin.initial * index_price, coin.maintenance * index_price)


# ---------------------------------------------------------------------------------------------------------------------
# Balances


def equity_of(
    balance: Fraction, *, futures_unrealized: Fraction, futures_realized: Fraction, options_value: Fraction
) -> Fraction:
    """Equity of one currency: `balance + futures session profit (unrealized, realized) + value of the options`."""
    return balance + futures_unrealized + futures_realized + options_value


def margin_balance(equity: Fraction, options_value: Fraction, *, portfolio_margin: bool) -> Fraction:
    """What is compared with the margins: equity; under standard margin without the value of the options.

    Standard margin charges a short option its mark price inside the margin and lets a long one count nothing, so
    option value stands on neither side (API reference of private/get_account_summary: 302.62729214 = 302.61869214 +
    0.0086 of short options).
    """
    return equity if portfolio_margin else equity - options_value


def cross_margin_balance(equities: Mapping[str, Fraction], index: Mapping[str, Fraction]) -> Fraction:
    """USD value of all cross-collateral currencies at their index; every account-summary row repeats this one total."""
    return sum((amount * index[currency] for currency, amount in equities.items()), Fraction(0))


def haircut_margin(
    equities: Mapping[str, Fraction], index: Mapping[str, Fraction], haircuts: Mapping[str, Fraction]
) -> Fraction:
    """Initial margin for haircuts of cross collateral in USD: `sum haircut * max(equity, 0) * index`.

    It enters the initial level alone (a recorded cross account of 55.00055 USDT without positions has an initial
    margin of 1.100011 USDT, 2 %, and a maintenance margin of 0). A currency without a haircut counts in full.
    """
    charges = (
        haircuts.get(currency, Fraction(0)) * max(amount, Fraction(0)) * index[currency]
        for currency, amount in equities.items()
    )
    return sum(charges, Fraction(0))


def is_liquidated(balance: Fraction, maintenance: Fraction) -> bool:
    """Whether the venue liquidates: the margin balance lies below the maintenance margin."""
    return balance < maintenance


# ---------------------------------------------------------------------------------------------------------------------
# Portfolio margin


class MatrixParameters(NamedTuple):
    """Live parameters of one currency pair and currency (public/pme/get_params, private/pme/simulate).

    The vol parameters may be None where no option is held, `delta_increment` (the venue's `m_inc`) where the delta
    shock lies below its threshold.
    """

    price_range: Fraction
    buckets_each_side: int
    vol_scenarios: int
    pnl_offset: Fraction
    annualised_move_risk: Fraction
    min_annualised_move: Fraction
    extended_dampener_usd: Fraction
    extended_table_factor: Fraction
    delta_threshold_usd: Fraction
    max_delta_shock: Fraction
    maintenance_factor: Fraction
    delta_increment: Fraction | None = None
    volatility_range_up: Fraction | None = None
    volatility_range_down: Fraction | None = None
    min_volatility_for_shock_up: Fraction | None = None
    short_term_vega_power: Fraction | None = None
    long_term_vega_power: Fraction | None = None


class OptionTerms(NamedTuple):
    """What an option adds to a position: strike, side, implied vol (a fraction)."""

    strike: Fraction
    is_call: bool
    vol: float


class MatrixPosition(NamedTuple):
    """One position of a risk unit.

    `size` in base coins; `forward` the price of its future (the mark of a future or perpetual, an option's underlying
    price) in the account's dollar unit, so that a linear contract in a cross account counts at the price of its stable;
    `years` to expiry, 0 for a perpetual. `group` tells which positions of one expiry net for the roll shock:
    the venue nets within a currency pair (a captured account with an inverse and a linear ETH perpetual pays for both).
    """

    instrument: str
    size: Fraction
    forward: Fraction
    years: Fraction
    option: OptionTerms | None = None
    group: str = ""


class WorstCase(NamedTuple):
    """The largest loss over all buckets: unrounded, >= 0; where it is (1-based within its table)."""

    loss: Fraction
    source: Literal["standard", "extended"]
    place: int
    bucket: int


class RiskMatrix(NamedTuple):
    """Everything of one risk unit, in the unit of the account (coin or dollars)."""

    standard: tuple[Fraction, ...]
    extended: tuple[Fraction, ...]
    worst: WorstCase
    delta_shock: Fraction
    roll_shock: Fraction
    margin: Fraction


def price_moves(price_range: Fraction, buckets_each_side: int) -> list[Fraction]:
    """Moves of the standard table, low to high: `2 * buckets + 1` even steps from -range to +range."""
    return [price_range * step / buckets_each_side for step in range(-buckets_each_side, buckets_each_side + 1)]


def shocked_vol(vol: float, years: Fraction, state: VolState, parameters: MatrixParameters) -> float:
    """Implied vol of a scenario: `vol * (1 + range_up * (30 / DTE)^power)`, at least the minimum, on the way up;
    `vol * max(0, 1 - range_down * (30 / DTE)^power)` on the way down; power by DTE < 30 or not.

    Raises `ValueError` where a vol parameter is missing and for an expired option.
    """
    if state == "same":
        return vol
    p = parameters
    if (
        p.volatility_range_up is None
        or p.volatility_range_down is None
        or p.min_volatility_for_shock_up is None
        or p.short_term_vega_power is None
        or p.long_term_vega_power is None
    ):
        raise ValueError("the vol parameters of the risk matrix are needed for options")
    days = float(years) * _DAYS_PER_YEAR
    if days <= 0:
        raise ValueError("an expired option has no vol shock")
    power = p.short_term_vega_power if days < _SHORT_TERM_DAYS else p.long_term_vega_power
    tenor = (_SHORT_TERM_DAYS / days) ** float(power)
    if state == "up":
        return max(vol * (1 + tenor * float(p.volatility_range_up)), float(p.min_volatility_for_shock_up))
    return max(0.0, vol * (1 - tenor * float(p.volatility_range_down)))


def black76(forward: float, strike: float, years: float, vol: float, *, is_call: bool) -> float:
    """Undiscounted Black-76 price; the intrinsic value at zero time or vol."""
    deviation = vol * math.sqrt(max(years, 0.0))
    sign = 1.0 if is_call else -1.0
    if deviation <= 0 or forward <= 0:
        return max(sign * (forward - strike), 0.0)
    d1 = math.log(forward / strike) / deviation + deviation / 2
    return sign * (forward * _cdf(sign * d1) - strike * _cdf(sign * (d1 - deviation)))


def black76_delta(forward: float, strike: float, years: float, vol: float, *, is_call: bool) -> float:
    """Derivative of the undiscounted Black-76 price by the forward; at zero time or vol the intrinsic value's."""
    deviation = vol * math.sqrt(max(years, 0.0))
    sign = 1.0 if is_call else -1.0
    if deviation <= 0:
        return sign if sign * (forward - strike) > 0 else 0.0
    return sign * _cdf(sign * (math.log(forward / strike) / deviation + deviation / 2))


def _cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def scenario_profit(
    position: MatrixPosition,
    move: Fraction,
    state: VolState,
    parameters: MatrixParameters,
    *,
    in_coin: bool,
) -> Fraction:
    """Profit of a position under a price move and a vol state.

    In dollars a future gains `size * forward * move` and an option the difference of its Black-76 values. In the coin
    the dollar value of a scenario is divided by the moved price: a future of base size q gains `q * move / (1 + move)`
    (its mark drops out), an option `V'(F') / S' - V(F) / S`, with the forward standing for S, as the venue quotes an
    inverse option in its own future's coins.
    """
    shocked = 1 + move
    if position.option is None:
        return position.size * move / shocked if in_coin else position.size * position.forward * move
    option = position.option
    forward, strike, years = float(position.forward), float(option.strike), float(position.years)
    vol = shocked_vol(option.vol, position.years, state, parameters)
    before = Fraction(black76(forward, strike, years, option.vol, is_call=option.is_call))
    after = Fraction(black76(float(position.forward * shocked), strike, years, vol, is_call=option.is_call))
    if in_coin:
        return position.size * (after / (position.forward * shocked) - before / position.forward)
    return position.size * (after - before)


def standard_vector(
    positions: Sequence[MatrixPosition], parameters: MatrixParameters, *, in_coin: bool
) -> list[Fraction]:
    """Profits of the standard table: price buckets low to high, in each of them the vol states up, same, down."""
    has_options = any(position.option is not None for position in positions)
    if has_options and parameters.vol_scenarios != len(_VOL_STATES):
        raise ValueError(f"{parameters.vol_scenarios} vol scenarios of options: only 3 are known")
    flat: list[VolState] = ["same"] * parameters.vol_scenarios
    states = _VOL_STATES if has_options else flat
    return [
        _total(positions, move, state, parameters, in_coin=in_coin)
        for move in price_moves(parameters.price_range, parameters.buckets_each_side)
        for state in states
    ]


def extended_vector(
    positions: Sequence[MatrixPosition], parameters: MatrixParameters, *, in_coin: bool
) -> list[Fraction]:
    """Profits of the extended table before the dampener, all with vol up:
    `profit(m) * factor * range / |m| * (1 + m) / (1 + sign(m) * range)` in the coin, `profit(m) * factor * range / |m|`
    in dollars.

    A future's is its profit at +-range.
    """
    out = []
    for move in EXTENDED_MOVES:
        profit = _total(positions, move, "up", parameters, in_coin=in_coin)
        scaled = profit * parameters.extended_table_factor * parameters.price_range / abs(move)
        out.append(scaled * (1 + move) / _edge(move, parameters) if in_coin else scaled)
    return out


def _total(
    positions: Sequence[MatrixPosition],
    move: Fraction,
    state: VolState,
    parameters: MatrixParameters,
    *,
    in_coin: bool,
) -> Fraction:
    profits = (
        scenario_profit(
            position,
            move,
            state if position.option is not None else "same",
            parameters,
            in_coin=in_coin,
        )
        for position in positions
    )
    return sum(profits, Fraction(0))


def _edge(move: Fraction, parameters: MatrixParameters) -> Fraction:
    return 1 + parameters.price_range if move > 0 else 1 - parameters.price_range


def dampener(move: Fraction, parameters: MatrixParameters, *, index_price: Fraction, in_coin: bool) -> Fraction:
    """How much an extended bucket moves towards zero at most: `max(|m| / range - 1, 0) * dampener`, in the coin at the
    price of the edge of the standard table.
    """
    usd = max(abs(move) / parameters.price_range - 1, Fraction(0)) * parameters.extended_dampener_usd
    return usd / (_edge(move, parameters) * index_price) if in_coin else usd


def dampened(value: Fraction, amount: Fraction) -> Fraction:
    """`value` moved towards zero by `amount`, never past it."""
    return max(value - amount, Fraction(0)) if value > 0 else min(value + amount, Fraction(0))


def offset(value: Fraction, pnl_offset: Fraction) -> Fraction:
    """A bucket's profit as it counts: gains times `pnl_offset`, losses whole."""
    return value * pnl_offset if value > 0 else value


def worst_case(standard: Sequence[Fraction], extended: Sequence[Fraction], vol_scenarios: int) -> WorstCase:
    """The largest loss over both tables; the first bucket that has it, the standard table first. No loss gives 0."""
    lowest = min((*standard, *extended), default=Fraction(0))
    if lowest in standard:
        position = list(standard).index(lowest)
        return WorstCase(max(-lowest, Fraction(0)), "standard", position + 1, position // vol_scenarios + 1)
    position = list(extended).index(lowest) if extended else 0
    return WorstCase(max(-lowest, Fraction(0)), "extended", position + 1, position + 1)


def position_delta(position: MatrixPosition) -> Fraction:
    """Delta in coins: the size of a future, the size times the Black-76 delta of an option."""
    if position.option is None:
        return position.size
    option = position.option
    delta = black76_delta(
        float(position.forward), float(option.strike), float(position.years), option.vol, is_call=option.is_call
    )
    return position.size * Fraction(delta)


def roll_rate(years: Fraction, parameters: MatrixParameters) -> Fraction:
    """Rate of the roll shock of an expiry: `max(min_annualised_move, exp(annualised_move_risk * T) - 1)`."""
    move = Fraction(math.expm1(float(parameters.annualised_move_risk) * float(years))) if years > 0 else Fraction(0)
    return max(parameters.min_annualised_move, move)


def roll_shock(
    positions: Sequence[MatrixPosition], parameters: MatrixParameters, *, index_price: Fraction, in_coin: bool
) -> Fraction:
    """Charge for the curve: `sum over expiries of |net delta| * roll rate`; perpetuals are an expiry of their own.

    In dollars the deltas are valued at the index.
    """
    deltas: dict[tuple[str, Fraction], Fraction] = {}
    for position in positions:
        key = (position.group, position.years)
        deltas[key] = deltas.get(key, Fraction(0)) + position_delta(position)
    coins = sum((abs(delta) * roll_rate(years, parameters) for (_, years), delta in deltas.items()), Fraction(0))
    return coins if in_coin else coins * index_price


def exposed_delta(positions: Sequence[MatrixPosition]) -> Fraction:
    """Delta in coins that the delta shock counts: futures and short options, reduced towards zero by long options.

    Long options of the same sign change nothing, and they never turn the sign.
    """
    long_options = sum((position_delta(p) for p in positions if p.option and p.size > 0), Fraction(0))
    others = sum((position_delta(p) for p in positions if not (p.option and p.size > 0)), Fraction(0))
    if long_options * others >= 0:
        return others
    size = max(abs(others) - abs(long_options), Fraction(0))
    return size if others > 0 else -size


def delta_shock(
    positions: Sequence[MatrixPosition], parameters: MatrixParameters, *, index_price: Fraction, in_coin: bool
) -> Fraction:
    """Charge for a large delta D: `min(max(|D| * index - threshold, 0) * |D| * m_inc, max_shock * index * |D|)` USD.

    Raises `ValueError` when the threshold is passed and the parameters lack `m_inc`.
    """
    size = abs(exposed_delta(positions))
    excess = size * index_price - parameters.delta_threshold_usd
    if excess <= 0:
        return Fraction(0)
    if parameters.delta_increment is None:
        raise ValueError("m_inc is needed for a delta above the threshold of the delta shock")
    usd = min(excess * size * parameters.delta_increment, parameters.max_delta_shock * index_price * size)
    return usd / index_price if in_coin else usd


def risk_matrix(
    positions: Sequence[MatrixPosition], parameters: MatrixParameters, *, index_price: Fraction, in_coin: bool
) -> RiskMatrix:
    """The risk matrix of one unit: `worst case (rounded to 9 decimals) + delta shock + roll shock`.

    Buckets are those after dampener (extended) and profit offset (both), as the venue reports its aggregated vectors.
    """
    return _matrix(positions, positions, parameters, index_price=index_price, in_coin=in_coin)


def cross_risk_matrix(
    positions: Sequence[MatrixPosition], exposure: Fraction, parameters: MatrixParameters, *, index_price: Fraction
) -> RiskMatrix:
    """The risk matrix in USD of one coin of a cross-collateral account.

    `exposure` (see `currency_exposure`) is the currency's own equity in coins without the value of its options, which
    are revalued themselves. It moves with the index and bears neither roll nor delta shock: a recorded account of
    2.288e-05 BTC and 8.6e-05 ETH without positions has a matrix of 16 % and 18 % of their values and nothing more.
    """
    equity = MatrixPosition("equity", exposure, index_price, Fraction(0))
    return _matrix([*positions, equity], positions, parameters, index_price=index_price, in_coin=False)


def _matrix(
    valued: Sequence[MatrixPosition],
    positions: Sequence[MatrixPosition],
    parameters: MatrixParameters,
    *,
    index_price: Fraction,
    in_coin: bool,
) -> RiskMatrix:
    standard = [offset(value, parameters.pnl_offset) for value in standard_vector(valued, parameters, in_coin=in_coin)]
    raw = extended_vector(valued, parameters, in_coin=in_coin)
    extended = [
        offset(
            dampened(value, dampener(move, parameters, index_price=index_price, in_coin=in_coin)),
            parameters.pnl_offset,
        )
        for move, value in zip(EXTENDED_MOVES, raw, strict=True)
    ]
    worst = worst_case(standard, extended, parameters.vol_scenarios)
    delta = delta_shock(positions, parameters, index_price=index_price, in_coin=in_coin)
    roll = roll_shock(positions, parameters, index_price=index_price, in_coin=in_coin)
    margin = rounded(worst.loss) + delta + roll
    return RiskMatrix(tuple(standard), tuple(extended), worst, delta, roll, margin)


def rounded(value: Fraction, decimals: int = _DECIMALS) -> Fraction:
    """`value` at the venue's 9 decimals, halves to even."""
    return Fraction(round(value * 10**decimals), 10**decimals)


def portfolio_margin(
    risk_matrix_margin: Fraction,
    maintenance_factor: Fraction,
    *,
    spot: Fraction = Fraction(0),
    market_maker_protection: Fraction = Fraction(0),
    open_orders: Fraction = Fraction(0),
) -> Margin:
    """`initial = matrix + spot + MMP + open-order margin` at 9 decimals; `maintenance = factor * matrix`, unrounded."""
    initial = rounded(risk_matrix_margin + spot + market_maker_protection + open_orders)
    return Margin(initial, maintenance_factor * risk_matrix_margin)


def currency_exposure(equity: Fraction, side_impact: Literal["both", "positive", "negative", "none"]) -> Fraction:
    """Coins of a currency's own equity that stand in its cross-collateral risk matrix, by `equity_side_impact`."""
    if (
        side_impact == "none"
        or (side_impact == "positive" and equity < 0)
        or (side_impact == "negative" and equity > 0)
    ):
        return Fraction(0)
    return equity


# ---------------------------------------------------------------------------------------------------------------------
# Liquidation price of one future under standard margin


def linear_liquidation_price(
    size: Fraction, entry_price: Fraction, cash: Fraction, *, maintenance: Fraction, slope: Fraction
) -> Fraction | None:
    """Price at which `cash + size * (P - entry)` equals `|size| * rate(size) * P`; None where no price > 0 does.

    One position and an index equal to the mark; `rate(size)` does not move with the price.
    """
    rate = maintenance + slope * abs(size)
    denominator = size - abs(size) * rate
    if denominator == 0:
        return None
    price = (size * entry_price - cash) / denominator
    return price if price > 0 else None


def inverse_liquidation_price(
    contracts_usd: Fraction, entry_price: Fraction, cash: Fraction, *, maintenance: Fraction, slope: Fraction
) -> float | None:
    """Price at which `cash + Q (1/entry - 1/P)` equals `q (rate + slope q)`, q = |Q| / P; None where no price > 0 does.

    With x = 1/P: `slope Q^2 x^2 + (|Q| rate + Q) x - (cash + Q / entry) = 0`. Of two roots the smaller x: a long
    position dies as x rises to its only root, a short one as x falls to the smaller of its two (beyond the larger, far
    below today's price, its size in coins has outgrown the account).
    """
    size = abs(contracts_usd)
    roots = _positive_roots(
        float(slope * size * size),
        float(size * maintenance + contracts_usd),
        float(-(cash + contracts_usd / entry_price)),
    )
    return 1 / roots[0] if roots else None


def _positive_roots(a: float, b: float, c: float) -> list[float]:
    if a == 0:
        return [-c / b] if b != 0 and -c / b > 0 else []
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return []
    # The larger of the two in absolute value first, so that nothing cancels.
    q = -(b + math.copysign(math.sqrt(discriminant), b)) / 2
    roots = {q / a} | ({c / q} if q else set())
    return sorted(root for root in roots if root > 0)
