"""Exact cross-margin mechanics of Paradex: requirements by market, open orders, fees, funding, partial liquidation.

Money in USD, sizes in base coins and signed (long and buy positive), rates as fractions; everything is a `Fraction`,
nothing is rounded. Portfolio margin, which needs option prices, is in `portfolio_margin`. Sources: tradeparadex/
paradex-docs @9b82a75a (risk-system: cross-margin-requirement, margin-term-reference, liquidations, funding-mechanism;
dated-options: margin-requirements) and the venue's SDK tradeparadex/paradex-py @334a7f81 (paradex_py/margin).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

Exact = int | Decimal | Fraction


class Order(NamedTuple):
    """What remains of a resting order: `size` positive for a buy and negative for a sell, and its limit price."""

    size: Fraction
    price: Fraction


class PerpMarket(NamedTuple):
    """A perpetual or dated future.

    `imf` is the market's initial margin fraction. `chosen_imf`, where the account has set a lower leverage, is one over
    that leverage; it raises the initial requirement only, because the chain, which enforces the maintenance
    requirement, knows the market's fraction alone.
    """

    mark: Fraction
    imf: Fraction
    mmf_factor: Fraction
    fee_rate: Fraction = Fraction(0)
    chosen_imf: Fraction | None = None


class OptionFractions(NamedTuple):
    """One level (`imf` or `mmf`) of a market's `option_cross_margin_params`."""

    premium_multiplier: Fraction
    long_itm: Fraction
    short_itm: Fraction
    short_otm: Fraction
    short_put_cap: Fraction


class OptionMarket(NamedTuple):
    """An option with its marks and its fractions for the initial and the maintenance level.

    Its fee is `fee_rate` of the spot, at most `fee_cap` of the mark (None for no such cap).
    """

    mark: Fraction
    spot: Fraction
    strike: Fraction
    is_call: bool
    imf: OptionFractions
    mmf: OptionFractions
    fee_rate: Fraction = Fraction(0)
    fee_cap: Fraction | None = None


Market = PerpMarket | OptionMarket


class LiquidationTerms(NamedTuple):
    """Governed terms of a liquidation: the penalty of a full one as a share of the maintenance requirement, the margin
    ratio that a partial one must go below, and the step of the share that it takes.

    The live penalty is `liquidation_fee` of system/config; the documentation's own example calculates with a half.
    """

    fee: Fraction
    target_margin_ratio: Fraction
    share_increment: Fraction


class MarketMargin(NamedTuple):
    """Requirement of one market of a cross account."""

    buy_open_size: Fraction
    sell_open_size: Fraction
    net_imr: Fraction
    fee_provision_imr: Fraction
    open_loss: Fraction
    net_mmr: Fraction
    fee_provision_mmr: Fraction

    @property
    def imr(self) -> Fraction:
        """Initial requirement, orders included."""
        return self.net_imr + self.fee_provision_imr + self.open_loss

    @property
    def mmr(self) -> Fraction:
        """Maintenance requirement; orders do not enter."""
        return self.net_mmr + self.fee_provision_mmr


# ----------------------------------------------------------------------------------------------------------------------
# Requirements of a cross account


def open_sizes(position: Exact, orders: Iterable[Order]) -> tuple[Fraction, Fraction]:
    """(buy, sell) open size: the largest position that either side's orders alone could make, never below 0."""
    held, sizes = Fraction(position), [order.size for order in orders]
    buys = sum((size for size in sizes if size > 0), Fraction(0))
    sells = -sum((size for size in sizes if size < 0), Fraction(0))
    return max(Fraction(0), buys + held), max(Fraction(0), sells - held)


def open_loss(mark: Exact, orders: Iterable[Order]) -> Fraction:
    """What orders that are aggressive against the mark would lose when filled: sum of size * max(0, limit - mark) for
    buys and of size * max(0, mark - limit) for sells.
    """
    at = Fraction(mark)
    return sum((max(Fraction(0), (order.price - at) * order.size) for order in orders), Fraction(0))


def option_margin(fractions: OptionFractions, market: OptionMarket, *, is_long: bool) -> Fraction:
    """Requirement of one option contract at one level.

    Long: min(mark * premium_multiplier, long_itm * spot). Short: max(short_itm * spot - OTM, short_otm * spot), for a
    put at most short_put_cap * spot; OTM is max(0, strike - spot) of a call and max(0, spot - strike) of a put.
    """
    if is_long:
        return min(market.mark * fractions.premium_multiplier, fractions.long_itm * market.spot)
    otm = max(Fraction(0), market.strike - market.spot if market.is_call else market.spot - market.strike)
    short = max(fractions.short_itm * market.spot - otm, fractions.short_otm * market.spot)
    return short if market.is_call else min(short, fractions.short_put_cap * market.spot)


def fee_per_unit(market: Market) -> Fraction:
    """Fee provision per unit of size: rate * mark, of an option min(rate * spot, cap * mark)."""
    if isinstance(market, PerpMarket):
        return market.fee_rate * market.mark
    fee = market.fee_rate * market.spot
    return fee if market.fee_cap is None else min(fee, market.fee_cap * market.mark)


def market_margin(market: Market, position: Exact, orders: Sequence[Order] = ()) -> MarketMargin:
    """Requirement of one market.

    Net initial requirement: the larger of the two sides, each its open size times the initial fraction and the mark, of
    an option its open size times the contract's margin of that side. Its fee provision covers the larger open size.
    Maintenance looks at the position alone.
    """
    held = Fraction(position)
    buy, sell = open_sizes(held, orders)
    size = abs(held)
    if isinstance(market, PerpMarket):
        fraction = market.imf if market.chosen_imf is None else max(market.imf, market.chosen_imf)
        net_imr = max(buy, sell) * market.mark * fraction
        net_mmr = size * market.mark * market.imf * market.mmf_factor
    else:
        long_imr = buy * option_margin(market.imf, market, is_long=True)
        short_imr = sell * option_margin(market.imf, market, is_long=False)
        net_imr = max(long_imr, short_imr)
        net_mmr = size * option_margin(market.mmf, market, is_long=held > 0)
    fee = fee_per_unit(market)
    return MarketMargin(buy, sell, net_imr, fee * max(buy, sell), open_loss(market.mark, orders), net_mmr, fee * size)


def account_margin(markets: Iterable[MarketMargin], spot_tokens: Exact = 0) -> tuple[Fraction, Fraction]:
    """(initial, maintenance) requirement of a cross account: the sum over its markets, and the whole value of its spot
    tokens other than USDC, which thus carry no position.
    """
    tokens = Fraction(spot_tokens)
    imr, mmr = tokens, tokens
    for margin in markets:
        imr, mmr = imr + margin.imr, mmr + margin.mmr
    return imr, mmr


# ----------------------------------------------------------------------------------------------------------------------
# Account value and funding


def unrealized_pnl(
    size: Exact, mark: Exact, *, average_entry: Exact, accrued_funding: Exact = 0, usdc_price: Exact = 1
) -> Fraction:
    """Unrealized profit of a position: size * mark - (size * average entry) * USDC price + accrued funding.

    The entry is in USDC, the mark and the funding in USD.
    """
    cost = Fraction(size) * Fraction(average_entry)
    return Fraction(size) * Fraction(mark) - cost * Fraction(usdc_price) + Fraction(accrued_funding)


def accrued_funding(size: Exact, index: Exact, *, cached_index: Exact, usdc_price: Exact = 1) -> Fraction:
    """Funding since the position's last trade, positive when owed to the account: -size * (index - cached) * USDC
    price.
    """
    return -Fraction(size) * (Fraction(index) - Fraction(cached_index)) * Fraction(usdc_price)


def account_value(usdc: Exact, unrealized: Exact, *, usdc_price: Exact = 1, spot_tokens: Exact = 0) -> Fraction:
    """Account value (margin balance): USDC at its price, the value of other tokens, and the unrealized profit."""
    return Fraction(usdc) * Fraction(usdc_price) + Fraction(spot_tokens) + Fraction(unrealized)


def margin_ratio(mmr: Exact, value: Exact) -> Fraction | None:
    """Maintenance requirement over account value; None without a positive account value."""
    return Fraction(mmr) / Fraction(value) if value > 0 else None


def is_liquidatable(mmr: Exact, value: Exact) -> bool:
    """Whether the margin ratio is above one; at equality the account stands. Without a requirement only a negative
    value is.
    """
    return Fraction(value) < Fraction(mmr)


def funding_provision(funding_rate: Exact, net_size: Exact, *, spot: Exact, hours: Exact = 8) -> Fraction:
    """Funding that the net perpetual size would pay over `hours`, at a rate per 8 hours; never below 0."""
    payment = Fraction(funding_rate) * Fraction(net_size) * Fraction(spot) * Fraction(hours) / 8
    return max(Fraction(0), payment)


# ----------------------------------------------------------------------------------------------------------------------
# Minimum delta requirement of portfolio margin


class DeltaRisk(NamedTuple):
    """Deltas in base coins, the charge in USD."""

    net_delta: Fraction
    gross_delta: Fraction
    hedged_delta: Fraction
    min_delta_risk: Fraction


def min_delta_risk(deltas: Iterable[Exact], *, spot: Exact, hedged: Exact, unhedged: Exact) -> DeltaRisk:
    """Charge on positions: (unhedged factor * |net| + hedged factor * (gross - |net|) / 2) * spot."""
    exact = [Fraction(delta) for delta in deltas]
    net, gross = sum(exact, Fraction(0)), sum((abs(delta) for delta in exact), Fraction(0))
    matched = (gross - abs(net)) / 2
    charge = (Fraction(unhedged) * abs(net) + Fraction(hedged) * matched) * Fraction(spot)
    return DeltaRisk(net, gross, matched, charge)


# ----------------------------------------------------------------------------------------------------------------------
# Liquidation


class Liquidation(NamedTuple):
    """A partial liquidation: share of every position, penalty in USD, and the account after it."""

    share: Fraction
    penalty: Fraction
    account_value: Fraction
    mmr: Fraction


def liquidation_penalty(share: Exact, mmr: Exact, *, fee: Exact) -> Fraction:
    """Share * fee * maintenance requirement, paid to the insurance fund."""
    return Fraction(share) * Fraction(fee) * Fraction(mmr)


def liquidation(value: Exact, mmr: Exact, terms: LiquidationTerms) -> Liquidation | None:
    """The venue's liquidation of an account of this value and maintenance requirement; None for one that stands.

    The smallest multiple of the share increment that brings the margin ratio below its target, at most all of it.
    Positions go to the insurance fund at the mark, so that the value falls by the penalty alone; a penalty beyond what
    is left takes all that is left. Raises `ValueError` for an increment that is not above 0, which never ends.
    """
    if terms.share_increment <= 0:
        raise ValueError(f"share increment {terms.share_increment} is not above 0")
    worth, required = Fraction(value), Fraction(mmr)
    if not is_liquidatable(required, worth):
        return None
    share = Fraction(0)
    while share < 1:
        share = min(Fraction(1), share + terms.share_increment)
        penalty = liquidation_penalty(share, required, fee=terms.fee)
        left, needed = worth - penalty, required * (1 - share)
        if left > 0 and needed < terms.target_margin_ratio * left:
            return Liquidation(share, penalty, left, needed)
    paid = min(liquidation_penalty(1, required, fee=terms.fee), max(Fraction(0), worth))
    return Liquidation(Fraction(1), paid, worth - paid, Fraction(0))


def liquidation_price(market: PerpMarket, position: Exact, *, value: Exact, other_mmr: Exact = 0) -> Fraction | None:
    """Mark of this perpetual, moving alone, at which account value equals maintenance requirement; None if not > 0.

    `value` is the account value at the market's mark, `other_mmr` the requirement of everything else. Linear in the
    mark: value + q * (p - mark) = other + |q| * p * (imf * mmf_factor + fee rate).
    """
    held = Fraction(position)
    slope = held - abs(held) * (market.imf * market.mmf_factor + market.fee_rate)
    if not slope:
        return None
    root = (held * market.mark - Fraction(value) + Fraction(other_mmr)) / slope
    return root if root > 0 else None


def spot_liquidation_prices(
    spot: float, condition: Callable[[float], float], *, lowest: float = 0.01, highest: float = 5.0, points: int = 300
) -> tuple[float | None, float | None]:
    """(nearest root below, nearest root at or above) `spot` of `condition`, account value minus maintenance requirement
    as a function of the underlying's spot.

    Scanned on `points` equally spaced spots from `lowest` to `highest` times the spot, as the venue's SDK does, then
    bisected to the last bit; with options the condition need not be monotone, and a pocket between two scanned spots is
    not seen. None where no root lies in the range.
    """
    low, high = spot * lowest, spot * highest
    grid = sorted({*(low + (high - low) * i / (points - 1) for i in range(points)), spot})
    values = [condition(x) for x in grid]
    roots = [x for x, value in zip(grid, values, strict=True) if value == 0]
    for (x, at_x), (y, at_y) in zip(
        zip(grid, values, strict=True), list(zip(grid, values, strict=True))[1:], strict=False
    ):
        if at_x * at_y < 0:
            roots.append(_bisected(condition, x, y))
    below, above = [r for r in roots if r < spot], [r for r in roots if r >= spot]
    return max(below, default=None), min(above, default=None)


def _bisected(condition: Callable[[float], float], low: float, high: float) -> float:
    rising = condition(low) < 0
    while low < (middle := (low + high) / 2) < high:
        if (condition(middle) < 0) == rising:
            low = middle
        else:
            high = middle
    return high
