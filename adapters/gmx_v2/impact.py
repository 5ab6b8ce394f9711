"""Price impact of GMX v2 on a position's size: own open interest, virtual inventory, caps, impact tokens, price.

Units of the contracts, all integers: USD and factors with 30 decimals, token amounts raw, prices in USD with 30
decimals per raw token unit. A positive impact is paid to the trader. Sources: gmx-io/gmx-synthetics @a5c0c88,
contracts `pricing/PricingUtils.sol`, `pricing/PositionPricingUtils.sol`, `market/MarketUtils.sol`,
`position/PositionUtils.sol`, `utils/Precision.sol`.
"""

from __future__ import annotations

from typing import NamedTuple

from .power import power

FLOAT = 10**30
"""1 USD, and a factor of 1."""
_WEI = 10**12
"""Between 30 and 18 decimals."""


class ImpactParameters(NamedTuple):
    """A market's position impact factors; `max_negative_factor` also bounds the positive cap from above."""

    positive_factor: int
    negative_factor: int
    positive_exponent: int
    negative_exponent: int
    max_positive_factor: int
    max_negative_factor: int | None = None


class OpenInterest(NamedTuple):
    """USD open interest of both sides; at entry prices, or tokens at the mid price where the market balances so."""

    long: int
    short: int


class PriceImpact(NamedTuple):
    """USD of an impact, and whether the change brings the two sides closer (it decides the position fee)."""

    usd: int
    balance_was_improved: bool


class Execution(NamedTuple):
    """Price of an order per raw index token, and the impact in index tokens that is stored until the close."""

    price: int
    impact_amount: int
    size_in_tokens: int


def applied(value: int, factor: int) -> int:
    """value × factor rounded toward zero; both may be negative."""
    product = abs(value * factor) // FLOAT
    return product if (value < 0) == (factor < 0) else -product


def ceil_div(value: int, divisor: int) -> int:
    """value / divisor for a positive divisor, rounded away from zero."""
    quotient = -(-abs(value) // divisor)
    return quotient if value >= 0 else -quotient


def applied_impact_factor(diff_usd: int, impact_factor: int, exponent_factor: int) -> int:
    """A(d, f, e) = floor(d^e × f): USD of an imbalance d, 0 below 1 USD.

    The power works on d and e cut to 18 decimals; with e = 1 it is d itself.
    """
    if diff_usd < FLOAT:
        return 0
    raised = diff_usd if exponent_factor == FLOAT else power(diff_usd // _WEI, exponent_factor // _WEI) * _WEI
    return raised * impact_factor // FLOAT


def next_open_interest(now: OpenInterest, usd_delta: int, is_long: bool) -> OpenInterest:
    """Open interest after one side has changed by `usd_delta`.

    Raises `ValueError` for a decrease beyond the side's open interest, where the contract reverts.
    """
    following = now._replace(long=now.long + usd_delta) if is_long else now._replace(short=now.short + usd_delta)
    if min(following) < 0:
        raise ValueError(f"a decrease of {-usd_delta} exceeds the side's open interest {now}")
    return following


def impact_of_balance(parameters: ImpactParameters, now: OpenInterest, following: OpenInterest) -> PriceImpact:
    """USD of moving the two sides from `now` to `following`.

    With d = |long − short| and A of `applied_impact_factor`: on one side of the balance ±|A(d0) − A(d1)|, + with the
    positive factor and exponent where d falls, else − with the negative ones; across it
    A(d0, positive) − A(d1, negative). The positive factor is at most the negative one.
    """
    positive_factor = min(parameters.positive_factor, parameters.negative_factor)
    before, after = abs(now.long - now.short), abs(following.long - following.short)
    if (now.long <= now.short) == (following.long <= following.short):
        improved = after < before
        factor = positive_factor if improved else parameters.negative_factor
        exponent = parameters.positive_exponent if improved else parameters.negative_exponent
        change = abs(applied_impact_factor(before, factor, exponent) - applied_impact_factor(after, factor, exponent))
        return PriceImpact(change if improved else -change, improved)
    gain = applied_impact_factor(before, positive_factor, parameters.positive_exponent)
    cost = applied_impact_factor(after, parameters.negative_factor, parameters.negative_exponent)
    return PriceImpact(gain - cost, after < before)


def virtual_open_interest(virtual_inventory: int, usd_delta: int) -> OpenInterest:
    """The two sides that a signed virtual inventory stands for (positive: tokens sold to the pool, short interest).

    A decrease lifts both sides by its size, which keeps them from becoming negative and does not change the balance.
    """
    lift = max(-usd_delta, 0)
    return OpenInterest(max(-virtual_inventory, 0) + lift, max(virtual_inventory, 0) + lift)


def capped_positive_impact(impact_usd: int, usd_delta: int, parameters: ImpactParameters) -> int:
    """A positive impact is at most |usd_delta| × the smaller of the two maximum factors; a negative one is kept."""
    factor = parameters.max_positive_factor
    if parameters.max_negative_factor is not None:
        factor = min(factor, parameters.max_negative_factor)
    return min(impact_usd, applied(abs(usd_delta), factor))


def price_impact(
    parameters: ImpactParameters,
    now: OpenInterest,
    usd_delta: int,
    *,
    is_long: bool,
    virtual_inventory: int | None = None,
) -> PriceImpact:
    """Impact of changing one side by `usd_delta` USD, uncapped.

    A negative impact is replaced by that on the virtual inventory where one exists and is worse. Raises `ValueError`
    for a decrease beyond the side's open interest.
    """
    own = impact_of_balance(parameters, now, next_open_interest(now, usd_delta, is_long))
    if own.usd >= 0 or virtual_inventory is None:
        return own
    virtual = virtual_open_interest(virtual_inventory, usd_delta)
    other = impact_of_balance(parameters, virtual, next_open_interest(virtual, usd_delta, is_long))
    return min(own, other, key=lambda impact: impact.usd)


def impact_amount(impact_usd: int, index_min: int, index_max: int) -> int:
    """Index tokens of an impact: a positive one at the highest price rounded down, a negative one at the lowest
    rounded away from zero.
    """
    return impact_usd // index_max if impact_usd > 0 else ceil_div(impact_usd, index_min)


def pending_impact_usd(amount: int, index_min: int, index_max: int) -> int:
    """USD of a stored impact in tokens: a positive one at the lowest price, a negative one at the highest."""
    return amount * (index_min if amount > 0 else index_max)


def execution_of_increase(
    impact_usd: int, size_delta_usd: int, *, index_min: int, index_max: int, is_long: bool
) -> Execution:
    """Price of an increase: size over the tokens that its impact leaves.

    Long: floor(size / max) + impact tokens; short: ceil(size / min) − impact tokens; price = floor(size / tokens). The
    price informs: `size_in_tokens` of the position is taken without the impact, which is stored as a pending amount.
    Without size the price is the maximum for a long, the minimum for a short. Raises `ValueError` where the impact
    leaves no tokens.
    """
    if size_delta_usd == 0:
        return Execution(index_max if is_long else index_min, 0, 0)
    amount = impact_amount(impact_usd, index_min, index_max)
    tokens = size_delta_usd // index_max if is_long else ceil_div(size_delta_usd, index_min)
    priced = tokens + amount if is_long else tokens - amount
    if priced <= 0:
        raise ValueError("the price impact is larger than the order")
    return Execution(size_delta_usd // priced, amount, tokens)


def execution_of_decrease(
    impact_usd: int,
    size_delta_usd: int,
    *,
    position_usd: int,
    position_tokens: int,
    index_min: int,
    index_max: int,
    is_long: bool,
) -> int:
    """Price of a decrease: minimum for a long, maximum for a short, moved by the impact at the position's entry price.

    price ± trunc(trunc(position USD × impact / position tokens) / size). Raises `ValueError` where an unfavorable move
    exceeds the order or makes the price negative.
    """
    price = index_min if is_long else index_max
    if size_delta_usd == 0 or position_tokens == 0:
        return price
    signed = impact_usd if is_long else -impact_usd
    if -signed > size_delta_usd:
        raise ValueError("the price impact is larger than the order")
    move = position_usd * abs(signed) // position_tokens // size_delta_usd
    price += move if signed >= 0 else -move
    if price < 0:
        raise ValueError("the price impact makes the execution price negative")
    return price
