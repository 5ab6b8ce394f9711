"""Exact integer margin mechanics of Drift v2: balances, weights, worst cases of open orders, an account's margin.

Units: prices, quote amounts, values and `imf_factor` 1e6; base amounts and sizes 1e9; weights, margin ratios and the
margin buffer 1e4; token amounts in the token's smallest units; `scaled_balance` 1e9, cumulative interest 1e10. Borrows
and shorts are negative. Roundings are the program's, and there is no float in it: sources drift-labs/protocol-v2 (read
at 0ae3e3b), `math/{margin,position,spot_balance,funding}.rs`, `state/{user,spot_market,perp_market}.rs`.
What happens in a liquidation is in `liquidation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Literal, NamedTuple

MarginType = Literal["initial", "fill", "maintenance"]

PRICE = 10**6
QUOTE = 10**6
BASE = 10**9
WEIGHT = 10**4
PERCENTAGE = 10**6
FUNDING_RATE_BUFFER = 10**3
QUOTE_SPOT_MARKET = 0
OPEN_ORDER_REQUIREMENT = 10_000
"""Requirement per open order: 0.01 USDC."""
MAX_INITIAL_PROFIT = 100 * QUOTE
"""At most 100 USDC of a position's profit count as initial collateral."""


# Rounding -------------------------------------------------------------------------------------------------------------


def trunc_div(numerator: int, denominator: int) -> int:
    """Quotient toward zero, as the program divides signed integers."""
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


def ceil_div(numerator: int, denominator: int) -> int:
    """Quotient of non-negative integers, rounded up."""
    return -(-numerator // denominator)


# Balances and values --------------------------------------------------------------------------------------------------


def token_amount(scaled_balance: int, cumulative_interest: int, decimals: int, *, is_borrow: bool) -> int:
    """Signed token amount of a scaled balance: a deposit rounds down, a borrow is negative and rounds up."""
    product, unit = scaled_balance * cumulative_interest, 10 ** (19 - decimals)
    return -ceil_div(product, unit) if is_borrow else product // unit


def token_value(amount: int, decimals: int, price: int) -> int:
    """Value in quote units of a signed token amount, rounded down (a debt away from zero)."""
    return amount * price // 10**decimals


class StrictPrice(NamedTuple):
    """An oracle price, and the 5-minute mean beside it in strict mode (checks before risk grows); None otherwise."""

    current: int
    twap_5min: int | None = None

    @property
    def low(self) -> int:
        """What an asset counts at."""
        return self.current if self.twap_5min is None else min(self.current, self.twap_5min)

    @property
    def high(self) -> int:
        """What a debt counts at."""
        return self.current if self.twap_5min is None else max(self.current, self.twap_5min)


def strict_token_value(amount: int, decimals: int, price: StrictPrice) -> int:
    """`token_value` at the lower price for an asset, at the higher one for a debt."""
    return token_value(amount, decimals, price.low if amount > 0 else price.high)


def funding_payment(cumulative_rate: int, last_cumulative_rate: int, base_asset_amount: int) -> int:
    """Unsettled funding in quote units, positive when owed to the position; rates 1e9 per unit of base.

    `cumulative_rate` is the market's long rate for a long position, else its short rate. Rounds toward zero.
    """
    delta = cumulative_rate - last_cumulative_rate
    payment = abs(delta) * abs(base_asset_amount) // PRICE // FUNDING_RATE_BUFFER
    sign = (-1 if base_asset_amount > 0 else 1) * (1 if delta > 0 else -1)
    return trunc_div(sign * payment, BASE // QUOTE)


# Size-dependent weights -----------------------------------------------------------------------------------------------


def size_root(size: int) -> int:
    """isqrt(10 * size + 1): the square root of a size of 1e9 units, in 1e5."""
    return isqrt(10 * size + 1)


def size_premium(size: int, imf_factor: int, weight: int, *, bounded: bool = True) -> int:
    """Liability weight or margin ratio at a size: 4/5 of it plus sqrt(size) * imf, not below `weight` when bounded."""
    if imf_factor == 0:
        return weight
    premium = weight - weight // 5 + size_root(size) * imf_factor // (100_000 * PRICE // WEIGHT)
    return max(weight, premium) if bounded else premium


def size_discount(size: int, imf_factor: int, weight: int) -> int:
    """Asset weight at a size: 1.1 / (1 + sqrt(size) * imf), at most `weight`."""
    if imf_factor == 0:
        return weight
    return min(weight, (PRICE + PRICE // 10) * WEIGHT // (PRICE + size_root(size) * imf_factor // 100_000))


class SpotMarket(NamedTuple):
    """What margin needs of a spot market; `deposits` are all deposits in token units, for the scaled initial weight."""

    market_index: int
    decimals: int
    price: int
    twap_5min: int | None = None
    initial_asset_weight: int = 0
    maintenance_asset_weight: int = 0
    initial_liability_weight: int = WEIGHT
    maintenance_liability_weight: int = WEIGHT
    imf_factor: int = 0
    scale_initial_asset_weight_start: int = 0
    deposits: int = 0


def _of_type(margin_type: MarginType, initial: int, maintenance: int) -> int:
    if margin_type == "fill":
        return (initial + maintenance) // 2
    return initial if margin_type == "initial" else maintenance


def _size_in_base(amount: int, decimals: int) -> int:
    unit = 10**decimals
    return abs(amount) // (unit // BASE) if unit > BASE else abs(amount) * BASE // unit


def scaled_initial_asset_weight(market: SpotMarket, price: int) -> int:
    """Initial asset weight, scaled down by start / value of all deposits once they reach the start; start 0: never."""
    start = market.scale_initial_asset_weight_start
    value = token_value(market.deposits, market.decimals, price)
    if start == 0 or value < start:
        return market.initial_asset_weight
    return market.initial_asset_weight * start // value


def asset_weight(market: SpotMarket, amount: int, price: int, margin_type: MarginType) -> int:
    """Weight of a deposit of `amount` tokens: initial (scaled), maintenance or their mean, discounted by size."""
    weight = market.maintenance_asset_weight
    if margin_type != "maintenance":
        weight = _of_type(margin_type, scaled_initial_asset_weight(market, price), weight)
    return size_discount(_size_in_base(amount, market.decimals), market.imf_factor, weight)


def liability_weight(market: SpotMarket, amount: int, margin_type: MarginType) -> int:
    """Weight of a borrow of `amount` tokens: initial, maintenance or their mean, with the premium for size."""
    weight = _of_type(margin_type, market.initial_liability_weight, market.maintenance_liability_weight)
    return size_premium(_size_in_base(amount, market.decimals), market.imf_factor, weight)


# Spot positions -------------------------------------------------------------------------------------------------------


class SpotPosition(NamedTuple):
    """A balance with its open orders: `amount` signed tokens, `open_bids` >= 0, `open_asks` <= 0 in token units.

    `is_counted` is False for what margin values at 0: a USDC deposit of an account of pool 1, a deposit whose oracle
    is invalid where the check ignores those.
    """

    market: SpotMarket
    amount: int
    open_bids: int = 0
    open_asks: int = 0
    open_orders: int = 0
    is_counted: bool = True


class SpotFill(NamedTuple):
    """A balance after its bids or asks are filled: tokens, and what was received or (negative) paid, `orders_value`."""

    amount: int
    orders_value: int
    value: int
    weighted_value: int

    @property
    def contribution(self) -> int:
        """Effect on free collateral."""
        return self.weighted_value + self.orders_value


def worst_spot_fill(
    position: SpotPosition, margin_type: MarginType, *, strict: bool = False, custom_ratio: int = 0
) -> SpotFill:
    """The riskier of all bids filled and all asks filled (asks on a tie), orders at the higher price.

    `custom_ratio` (an account's own maximum margin ratio, initial checks only) raises a liability weight to 1 + ratio
    and lowers an asset weight to 1 - ratio; it does not change which side is the riskier one.
    """
    market = position.market
    price = StrictPrice(market.price, market.twap_5min if strict else None)
    held = strict_token_value(position.amount, market.decimals, price)

    def weighted(amount: int, value: int) -> int:
        if value > 0:
            return value * asset_weight(market, amount, price.current, margin_type) // WEIGHT
        return -(-value * liability_weight(market, amount, margin_type) // WEIGHT)

    def filled(orders: int) -> SpotFill:
        paid = token_value(-orders, market.decimals, price.high)
        amount, value = position.amount + orders, held - paid
        return SpotFill(amount, paid, value, weighted(amount, value))

    bids, asks = filled(position.open_bids), filled(position.open_asks)
    worst = asks if asks.contribution <= bids.contribution else bids
    if custom_ratio and worst.weighted_value < 0:
        weight = max(liability_weight(market, worst.amount, "initial"), custom_ratio + WEIGHT)
        return worst._replace(weighted_value=-(-worst.value * weight // WEIGHT))
    if custom_ratio and worst.weighted_value > 0:
        weight = min(asset_weight(market, worst.amount, price.current, "initial"), max(WEIGHT - custom_ratio, 0))
        return worst._replace(weighted_value=worst.value * weight // WEIGHT)
    return worst


# Perpetual positions --------------------------------------------------------------------------------------------------


class PerpMarket(NamedTuple):
    """What margin needs of a perpetual market.

    `net_user_pnl` (all users' unsettled profit) scales the initial weight of profit once it exceeds
    `unrealized_pnl_max_imbalance` (0: never). With an `expiry_price` the market is in settlement: that is its price,
    and positions need no margin. High-leverage ratios of 0: the market has no such mode.
    """

    oracle_price: int
    margin_ratio_initial: int
    margin_ratio_maintenance: int
    imf_factor: int = 0
    unrealized_pnl_initial_asset_weight: int = 0
    unrealized_pnl_maintenance_asset_weight: int = 0
    unrealized_pnl_imf_factor: int = 0
    unrealized_pnl_max_imbalance: int = 0
    net_user_pnl: int = 0
    is_prediction: bool = False
    expiry_price: int | None = None
    high_leverage_ratio_initial: int = 0
    high_leverage_ratio_maintenance: int = 0

    @property
    def price(self) -> int:
        """What positions are valued at."""
        return self.oracle_price if self.expiry_price is None else self.expiry_price


class PerpPosition(NamedTuple):
    """A position: signed base and quote amounts, open orders in base units, unsettled funding in quote units.

    `isolated_amount` is the quote deposit of an isolated position, None for one of the cross account.
    """

    market: PerpMarket
    base_asset_amount: int
    quote_asset_amount: int
    open_bids: int = 0
    open_asks: int = 0
    open_orders: int = 0
    unsettled_funding: int = 0
    max_margin_ratio: int = 0
    isolated_amount: int | None = None


def perp_value(base_asset_amount: int, price: int) -> int:
    """Signed value in quote units of base at a price (a negative price counts as 0), rounded toward zero."""
    return trunc_div(base_asset_amount * max(price, 0), BASE)


def perp_liability(base_asset_amount: int, price: int, *, is_prediction: bool = False) -> int:
    """What a position can be worth against the account: its value; for a short of a prediction market 1 - price."""
    if not is_prediction:
        return abs(perp_value(base_asset_amount, price))
    per_unit = max(PRICE - abs(price), 0) if base_asset_amount < 0 else abs(price)
    return abs(base_asset_amount) * per_unit // BASE


def worst_liability(position: PerpPosition) -> tuple[int, int]:
    """(base amount, liability in quote units) of the larger of all asks filled and all bids filled; asks on a tie."""
    market = position.market
    sides = [
        (base, perp_liability(base, market.oracle_price, is_prediction=market.is_prediction))
        for base in (
            position.base_asset_amount + position.open_asks,
            position.base_asset_amount + position.open_bids,
        )
    ]
    return sides[0] if sides[0][1] >= sides[1][1] else sides[1]


def margin_ratio(market: PerpMarket, size: int, margin_type: MarginType, *, high_leverage: bool = False) -> int:
    """Margin ratio at a size of 1e9 base units, without any custom ratio; 0 in settlement.

    In high-leverage mode maintenance is the mode's own ratio with the premium for size. Initial and fill ratios go from
    the mode's ratio at no size to the ordinary one: with o the ordinary ratio and s its unbounded premium at the size,
    mode + max(o - mode, 1) * max(0, 1 - (o - s) / (o / 5)) below o, the mode's ratio at s = o, s above.
    """
    if market.expiry_price is not None:
        return 0
    mode = (market.high_leverage_ratio_initial, market.high_leverage_ratio_maintenance)
    ordinary = (market.margin_ratio_initial, market.margin_ratio_maintenance)
    in_mode = high_leverage and min(mode) > 0
    ratio = _of_type(margin_type, *(mode if in_mode else ordinary))
    if not in_mode or margin_type == "maintenance":
        return size_premium(size, market.imf_factor, ratio)
    full = _of_type(margin_type, *ordinary)
    adjusted = size_premium(size, market.imf_factor, full, bounded=False)
    if adjusted == full:
        return ratio
    if adjusted > full:
        return adjusted
    share = max(PERCENTAGE - (full - adjusted) * PERCENTAGE // (full // 5), 0)
    return ratio + max(full - ratio, 1) * share // PERCENTAGE


def profit_weight(market: PerpMarket, profit: int, margin_type: MarginType) -> int:
    """Weight of a position's unrealized profit in quote units; a loss counts in full."""
    if profit <= 0:
        return WEIGHT
    if margin_type == "maintenance":
        return market.unrealized_pnl_maintenance_asset_weight
    weight, imbalance = market.unrealized_pnl_initial_asset_weight, market.unrealized_pnl_max_imbalance
    if imbalance > 0 and market.net_user_pnl > imbalance:
        weight = weight * imbalance // market.net_user_pnl
    if weight == 0:
        return 0
    return size_discount(profit * (BASE // QUOTE), market.unrealized_pnl_imf_factor, weight)


class PerpMargin(NamedTuple):
    """Requirement, weighted profit, worst-case liability and unweighted profit of one position, in quote units."""

    requirement: int
    weighted_pnl: int
    liability: int
    unrealized_pnl: int


def perp_margin(
    position: PerpPosition,
    margin_type: MarginType,
    quote_price: StrictPrice,
    *,
    custom_ratio: int = 0,
    high_leverage: bool = False,
) -> PerpMargin:
    """Margin of one position; `custom_ratio` is the larger of the account's and the position's, initial checks only."""
    market = position.market
    value = perp_value(position.base_asset_amount, market.price) if position.base_asset_amount else 0
    profit = value + position.quote_asset_amount + position.unsettled_funding
    base, liability = worst_liability(position)
    liability = liability * quote_price.high // PRICE
    requirement = 0
    if market.expiry_price is None:
        ratio = max(custom_ratio, margin_ratio(market, abs(base), margin_type, high_leverage=high_leverage))
        requirement = liability * ratio // WEIGHT
    requirement += OPEN_ORDER_REQUIREMENT * position.open_orders

    weighted = trunc_div(profit * profit_weight(market, profit, margin_type), WEIGHT)
    weighted = trunc_div(weighted * (quote_price.low if profit > 0 else quote_price.high), PRICE)
    if margin_type == "initial":
        weighted = min(weighted, MAX_INITIAL_PROFIT)
    return PerpMargin(requirement, weighted, liability, profit)


# An account -----------------------------------------------------------------------------------------------------------


class Margin(NamedTuple):
    """Total collateral and requirement in quote units; `plus_buffer` figures are those that end a liquidation."""

    total_collateral: int = 0
    requirement: int = 0
    total_collateral_plus_buffer: int = 0
    requirement_plus_buffer: int = 0

    @property
    def meets_requirement(self) -> bool:
        """Whether collateral covers the requirement; at equality it does."""
        return self.total_collateral >= self.requirement

    @property
    def free_collateral(self) -> int:
        """Collateral beyond the requirement, at least 0."""
        return max(self.total_collateral - self.requirement, 0)

    @property
    def exits_liquidation(self) -> bool:
        """Whether a liquidation that has begun ends."""
        return self.total_collateral_plus_buffer >= self.requirement_plus_buffer

    @property
    def shortage(self) -> int:
        """What is missing to end a liquidation, at least 0."""
        return max(self.requirement_plus_buffer - self.total_collateral_plus_buffer, 0)

    def with_collateral(self, value: int, buffer: int) -> Margin:
        """After a contribution; the buffer makes a negative one worse."""
        extra = trunc_div(value * buffer, WEIGHT) if value < 0 else 0
        return self._replace(
            total_collateral=self.total_collateral + value,
            total_collateral_plus_buffer=self.total_collateral_plus_buffer + value + extra,
        )

    def with_requirement(self, requirement: int, liability: int, buffer: int) -> Margin:
        """After a requirement on a liability; the buffer is a share of the liability."""
        extra = liability * buffer // WEIGHT
        return self._replace(
            requirement=self.requirement + requirement,
            requirement_plus_buffer=self.requirement_plus_buffer + requirement + extra,
        )


class AccountMargin(NamedTuple):
    """Margin of the cross account, and of each isolated position by its place in the list of perpetual positions."""

    cross: Margin
    isolated: dict[int, Margin]

    @property
    def is_liquidatable(self) -> bool:
        """Whether any of them fails its requirement (meaningful for maintenance margin)."""
        return not all(margin.meets_requirement for margin in (self.cross, *self.isolated.values()))


def account_margin(
    spots: Sequence[SpotPosition],
    perps: Sequence[PerpPosition],
    margin_type: MarginType,
    *,
    quote_price: StrictPrice,
    strict: bool = False,
    max_margin_ratio: int = 0,
    high_leverage: bool = False,
    buffer: int = 0,
) -> AccountMargin:
    """Collateral and requirement of an account; spot, perpetuals and open orders share one inequality.

    `quote_price` is the price of spot market 0; outside strict mode its mean is ignored, like those of the spot
    markets. `max_margin_ratio` is the account's custom ratio, which only initial checks see. Without a buffer the
    figures with buffer equal those without.
    """
    quote = quote_price if strict else quote_price._replace(twap_5min=None)
    custom = max_margin_ratio if margin_type == "initial" else 0
    cross, isolated = Margin(), dict[int, Margin]()
    for spot in spots:
        cross = _with_spot(cross, spot, margin_type, strict=strict, custom_ratio=custom, buffer=buffer)
    for number, perp in enumerate(perps):
        own = perp.max_margin_ratio if margin_type == "initial" else 0
        margin = perp_margin(perp, margin_type, quote, custom_ratio=max(custom, own), high_leverage=high_leverage)
        if perp.isolated_amount is None:
            cross = _with_perp(cross, margin, buffer)
        else:
            deposit = strict_token_value(perp.isolated_amount, 6, quote)
            isolated[number] = _with_perp(Margin().with_collateral(deposit, buffer), margin, buffer)
    return AccountMargin(cross, isolated)


def _with_perp(total: Margin, margin: PerpMargin, buffer: int) -> Margin:
    return total.with_requirement(margin.requirement, margin.liability, buffer).with_collateral(
        margin.weighted_pnl, buffer
    )


def _with_spot(
    total: Margin, spot: SpotPosition, margin_type: MarginType, *, strict: bool, custom_ratio: int, buffer: int
) -> Margin:
    market = spot.market
    if market.market_index == QUOTE_SPOT_MARKET:  # USDC counts at weight 1, and has no orders of its own
        price = StrictPrice(market.price, market.twap_5min if strict else None)
        value = strict_token_value(spot.amount, market.decimals, price)
        if value < 0:
            return total.with_requirement(-value, -value, buffer)
        return total.with_collateral(value if spot.is_counted else 0, buffer)
    worst = worst_spot_fill(spot, margin_type, strict=strict, custom_ratio=custom_ratio)
    total = total.with_requirement(OPEN_ORDER_REQUIREMENT * spot.open_orders, 0, buffer)
    if worst.value > 0:
        total = total.with_collateral(worst.weighted_value if spot.is_counted else 0, buffer)
    elif worst.value < 0:
        total = total.with_requirement(-worst.weighted_value, -worst.value, buffer)
    if worst.orders_value > 0:
        return total.with_collateral(worst.orders_value if spot.is_counted else 0, buffer)
    return total.with_requirement(-worst.orders_value, -worst.orders_value, buffer)
