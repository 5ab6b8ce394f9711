"""The rule set of one Drift v2 account: spot, perpetuals and open orders in one inequality, as components and tiers.

    equity      = total collateral: deposits and profits at maintenance weights, losses in full; a debt counts 0 here
    maintenance = requirement: weighted debts (`debt_charge`) + perpetuals at a rate of their size (`rate_of_size`)
    initial     = initial requirement + what initial weights take off the collateral

so that equity and maintenance are the program's own two figures, and equity - initial its initial free collateral. An
account has a rule set of its own, because weights depend on the size of what it holds. What no form holds is computed
by the exact mechanics today (`fixed`): 0.01 USDC per open order, and for the initial level strict prices (5-minute
means). Open spot orders make a requirement that moves with the token's price, and a constant on both sides of the
inequality, so that both sides are the program's.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.rule_forms import (
    Component,
    DebtCharge,
    Fixed,
    RateOfSize,
    Verdict,
    WeightedValue,
    component_rows,
)

from ..collateral import weight_row
from .markets import Perp, Spot
from .mechanics import (
    BASE,
    MAX_INITIAL_PROFIT,
    PRICE,
    QUOTE,
    QUOTE_SPOT_MARKET,
    WEIGHT,
    Margin,
    MarginType,
    PerpPosition,
    SpotPosition,
    StrictPrice,
    account_margin,
    asset_weight,
    liability_weight,
    margin_ratio,
    profit_weight,
    worst_liability,
    worst_spot_fill,
)

SOURCE = "drift-labs/protocol-v2 0ae3e3b: math/margin.rs, state/user.rs, state/spot_market.rs, state/perp_market.rs"
_EXACT_DIGITS = 400  # products of four numbers of 128 bits
_DIGITS = Decimal(1).scaleb(-18)
_DUST = Decimal(1).scaleb(-6)


class HeldSpot(NamedTuple):
    """A balance with its market, and the instrument of its orders where it has some."""

    spot: Spot
    position: SpotPosition
    orders_on: str | None = None

    @property
    def order_size(self) -> int:
        """The larger of both sides' orders, token units."""
        return max(self.position.open_bids, -self.position.open_asks) if self.orders_on else 0


class HeldPerp(NamedTuple):
    """A perpetual position with its market, and the price that its profit is counted from."""

    perp: Perp
    position: PerpPosition
    entry_price: Decimal


class Holdings(NamedTuple):
    """What one account holds, for its rules; `max_margin_ratio` is the account's own."""

    spots: Sequence[HeldSpot]
    perps: Sequence[HeldPerp]
    quote: Spot
    max_margin_ratio: int

    @property
    def has_spot_orders(self) -> bool:
        """Whether an order rests on a spot market."""
        return any(held.orders_on for held in self.spots)


def _decimal(value: Fraction, digits: Decimal = _DIGITS) -> Decimal:
    with localcontext(prec=_EXACT_DIGITS):
        return (Decimal(value.numerator) / Decimal(value.denominator)).quantize(digits)


def exact_margin(holdings: Holdings, margin_type: MarginType, *, strict: bool | None = None) -> Margin:
    """The program's figures, strict for the initial level unless told otherwise; an isolated account's own."""
    quote = StrictPrice(holdings.quote.market.price, holdings.quote.market.twap_5min)
    # An isolated deposit stands among the spots here, where it counts the same.
    perps = [held.position._replace(isolated_amount=None) for held in holdings.perps]
    return account_margin(
        [held.position for held in holdings.spots],
        perps,
        margin_type,
        quote_price=quote,
        strict=margin_type == "initial" if strict is None else strict,
        max_margin_ratio=holdings.max_margin_ratio,
    ).cross


# Weights and rates ----------------------------------------------------------------------------------------------------


def spot_weights(held: HeldSpot, margin_type: MarginType, max_margin_ratio: int) -> tuple[int, int]:
    """(asset weight, liability weight) of a balance at its size and at the oracle price."""
    market, amount = held.position.market, held.position.amount
    if market.market_index == QUOTE_SPOT_MARKET:
        return WEIGHT, WEIGHT
    custom = max_margin_ratio if margin_type == "initial" else 0
    asset = asset_weight(market, amount, market.price, margin_type)
    debt = liability_weight(market, amount, margin_type)
    return (min(asset, max(WEIGHT - custom, 0)), max(debt, WEIGHT + custom)) if custom else (asset, debt)


def _profit(held: HeldPerp) -> Fraction:
    position, market = held.position, held.position.market
    value = Fraction(position.base_asset_amount * max(market.price, 0), BASE)
    return value + position.quote_asset_amount + position.unsettled_funding


def _profit_weights(held: HeldPerp) -> tuple[int, int]:
    """(initial, maintenance) weight of today's profit."""
    market, profit = held.position.market, max(int(_profit(held)), 1)
    return profit_weight(market, profit, "initial"), profit_weight(market, profit, "maintenance")


def initial_rate_override(held: HeldPerp, max_margin_ratio: int) -> Decimal | None:
    """The larger of the account's and the position's own margin ratio; None without one."""
    ratio = max(max_margin_ratio, held.position.max_margin_ratio)
    return Decimal(ratio) / WEIGHT if ratio else None


def _order_rate(held: HeldSpot, margin_type: MarginType) -> Fraction:
    """What filling the worse side of its spot orders costs, per value of the larger side, within [0, 1]."""
    position = held.position
    bare = worst_spot_fill(position._replace(open_bids=0, open_asks=0), margin_type)
    worst = worst_spot_fill(position, margin_type)
    value = Fraction(held.order_size * position.market.price, 10**position.market.decimals)
    rate = Fraction(bare.contribution - worst.contribution) / value if value else Fraction(0)
    return min(max(rate, Fraction(0)), Fraction(1))


# Rows -----------------------------------------------------------------------------------------------------------------


def collateral_tier_rows(rule_set: str, holdings: Holdings) -> list[dict[str, Any]]:
    """Weights of what is held: tokens, and under the instrument's id the profit of a position.

    A debt weighs 0: it is charged in the requirement. Of a profit at most 100 USDC count for the initial level.
    """
    rows = []
    for held in holdings.spots:
        initial, _ = spot_weights(held, "initial", holdings.max_margin_ratio)
        maintenance, _ = spot_weights(held, "maintenance", 0)
        rows.append(_weights(rule_set, held.spot.asset_id, initial, maintenance, debt=0))
    for perp in holdings.perps:
        initial, maintenance = _profit_weights(perp)
        name = perp.perp.instrument_id
        rows.append(_weights(rule_set, name, initial, maintenance, debt=1, floor_in="value"))
        if initial:
            floor = _decimal(Fraction(MAX_INITIAL_PROFIT * WEIGHT, initial * QUOTE))
            rows.append(_weights(rule_set, name, 0, maintenance, debt=1, tier=2, floor=floor, floor_in="value"))
    return rows


def _weights(
    rule_set: str,
    asset_id: str,
    initial: int,
    maintenance: int,
    *,
    debt: int,
    tier: int = 1,
    floor: Decimal = Decimal(0),
    floor_in: str | None = None,
) -> dict[str, Any]:
    return weight_row(
        rule_set,
        asset_id,
        Decimal(initial) / WEIGHT,
        Decimal(maintenance) / WEIGHT,
        liability=(Decimal(debt), Decimal(debt)),
        tier=tier,
        floor=floor,
        floor_in=floor_in,
    )


def _perp_rates(held: HeldPerp, holdings: Holdings) -> tuple[Decimal, Decimal, Decimal | None]:
    """(initial rate, maintenance rate, size coefficient) of a position's row of `margin_tiers`.

    Beside spot orders all rates of the account are plain numbers, because a rule set has one law of size.
    """
    market = held.position.market
    if not holdings.has_spot_orders:
        rates = (market.margin_ratio_initial, market.margin_ratio_maintenance)
        return Decimal(rates[0]) / WEIGHT, Decimal(rates[1]) / WEIGHT, Decimal(market.imf_factor).scaleb(-6)
    unsettled = market._replace(expiry_price=None)
    size = abs(worst_liability(held.position)[0])
    initial, maintenance = (min(margin_ratio(unsettled, size, t), WEIGHT) for t in ("initial", "maintenance"))
    return Decimal(initial) / WEIGHT, Decimal(maintenance) / WEIGHT, None


def margin_tier_rows(rule_set: str, holdings: Holdings) -> list[dict[str, Any]]:
    """One row per perpetual, and per spot market on which orders rest."""
    rows = [_tier(rule_set, held.perp.instrument_id, *_perp_rates(held, holdings)) for held in holdings.perps]
    for held in holdings.spots:
        if held.orders_on:
            initial, maintenance = _spot_order_rates(held)
            rows.append(_tier(rule_set, held.orders_on, initial, maintenance, None))
    return rows


def _spot_order_rates(held: HeldSpot) -> tuple[Decimal, Decimal]:
    # A rate of exactly 0 is no initial rate; the constant of the rule set takes what this adds.
    return max(_decimal(_order_rate(held, "initial")), _DIGITS), _decimal(_order_rate(held, "maintenance"))


def _tier(
    rule_set: str, market: str, initial: Decimal, maintenance: Decimal, coefficient: Decimal | None
) -> dict[str, Any]:
    return {
        "rule_set": rule_set,
        "market": market,
        "tier": 1,
        "notional_floor": Decimal(0),
        "initial_rate": initial,
        "maintenance_rate": maintenance,
        "deduction": Decimal(0),
        "size_coefficient": coefficient,
        "source": "venue",
    }


def rule_set_rows(rule_set: str, holdings: Holdings | None) -> list[dict[str, Any]]:
    """Rows of `rule_sets`; for holdings that are not known completely what does not depend on them."""
    components = [Component(side="equity", parameters=WeightedValue(weights="collateral_tiers"))]
    plain = holdings is not None and holdings.has_spot_orders
    sized = RateOfSize(law="linear" if plain else "integer_sqrt", orders="worst_side")
    components.append(Component(side="requirement", parameters=sized, group_by="position"))
    if holdings is not None:
        components += _of_holdings(holdings)
    components.append(Component(side="verdict", parameters=Verdict(liquidates_when="below", trigger=Decimal(1))))
    return component_rows(rule_set, components, source=SOURCE)


def _of_holdings(holdings: Holdings) -> list[Component]:
    found = []
    debts = [held for held in holdings.spots if held.position.amount < 0]
    if debts:
        initial, maintenance = (
            {
                held.spot.asset_id: Decimal(spot_weights(held, level, holdings.max_margin_ratio)[1]) / WEIGHT
                for held in debts
            }
            for level in ("initial", "maintenance")
        )
        found.append(
            Component(side="requirement", parameters=DebtCharge(initial_rates=initial, maintenance_rates=maintenance))
        )
    rest = remainder(holdings)
    if rest.equity:
        basis = "computed value of what open spot orders pay or receive, beside the same requirement"
        found.append(Component(side="equity", parameters=Fixed(equity=rest.equity, basis=basis)))
    if rest.initial or rest.maintenance:
        basis = "computed open orders; for the initial level also strict oracle prices"
        fixed = Fixed(initial=rest.initial, maintenance=rest.maintenance, basis=basis)
        found.append(Component(side="requirement", parameters=fixed))
    return found


# What the forms leave -------------------------------------------------------------------------------------------------


class Amounts(NamedTuple):
    """Equity and both requirements in dollars."""

    equity: Decimal
    initial: Decimal
    maintenance: Decimal


def remainder(holdings: Holdings) -> Amounts:
    """The program's figures of today less what the forms give for them, in whole 1e-6 dollars."""
    forms = form_figures(holdings)
    initial, maintenance = exact_margin(holdings, "initial"), exact_margin(holdings, "maintenance")
    total = Fraction(maintenance.total_collateral, QUOTE)
    needed = _needed(initial, maintenance)
    orders = sum(h.position.open_orders for h in holdings.spots) + sum(h.position.open_orders for h in holdings.perps)
    if not holdings.has_spot_orders:  # the forms hold both sides but for the charge per order
        return Amounts(Decimal(0), _decimal(needed - forms[1], _DUST), Decimal(orders).scaleb(-2))
    required = Fraction(maintenance.requirement, QUOTE)
    return Amounts(
        _decimal(total - forms[0], _DUST), _decimal(needed - forms[1], _DUST), _decimal(required - forms[2], _DUST)
    )


def _needed(initial: Margin, maintenance: Margin) -> Fraction:
    """The initial requirement with what initial weights take off the collateral, in dollars."""
    return Fraction(initial.requirement - initial.total_collateral + maintenance.total_collateral, QUOTE)


def beyond_the_requirement(holdings: Holdings) -> Decimal:
    """What our initial requirement holds beyond the one that the gateway states (weights of collateral, strict prices),
    in dollars.
    """
    needed = _needed(exact_margin(holdings, "initial"), exact_margin(holdings, "maintenance"))
    stated = Fraction(exact_margin(holdings, "initial", strict=False).requirement, QUOTE)
    return abs(_decimal(needed - stated, _DUST))


def form_figures(holdings: Holdings) -> tuple[Fraction, Fraction, Fraction]:
    """(equity, initial, maintenance) in dollars of the components without `fixed`, in real numbers."""
    equity = initial = maintenance = Fraction(0)
    for held in holdings.spots:
        market = held.position.market
        value = Fraction(held.position.amount * market.price, 10**market.decimals * PRICE)
        weights = [
            spot_weights(held, level, holdings.max_margin_ratio)[0 if value > 0 else 1]
            for level in ("initial", "maintenance")
        ]
        if value < 0:
            initial -= value * Fraction(weights[0], WEIGHT)
            maintenance -= value * Fraction(weights[1], WEIGHT)
        elif held.position.is_counted:
            equity += value * Fraction(weights[1], WEIGHT)
            initial += value * Fraction(weights[1] - weights[0], WEIGHT)
        if held.orders_on:
            size = Fraction(held.order_size * market.price, 10**market.decimals * PRICE)
            rates = _spot_order_rates(held)
            initial += size * Fraction(rates[0])
            maintenance += size * Fraction(rates[1])
    quote = Fraction(holdings.quote.market.price, PRICE)
    for perp in holdings.perps:
        profit = _profit(perp) * quote / QUOTE
        if profit > 0:
            weight_initial, weight_maintenance = _profit_weights(perp)
            counted = min(profit * Fraction(weight_initial, WEIGHT), Fraction(MAX_INITIAL_PROFIT, QUOTE))
            equity += profit * Fraction(weight_maintenance, WEIGHT)
            initial += profit * Fraction(weight_maintenance, WEIGHT) - (counted if weight_initial else 0)
        else:
            equity += profit
        rates_of = _form_rates(perp, holdings)
        base, _ = worst_liability(perp.position)
        price = 0 if perp.perp.is_settled else perp.position.market.oracle_price
        notional = Fraction(abs(base) * price, BASE * PRICE) * quote
        initial += notional * rates_of[0]
        maintenance += notional * rates_of[1]
    return equity, initial, maintenance


def _form_rates(held: HeldPerp, holdings: Holdings) -> tuple[Fraction, Fraction]:
    market, size = held.position.market._replace(expiry_price=None), abs(worst_liability(held.position)[0])
    rates = [margin_ratio(market, size, level) for level in ("initial", "maintenance")]
    if holdings.has_spot_orders:
        rates = [min(rate, WEIGHT) for rate in rates]
    own = max(holdings.max_margin_ratio, held.position.max_margin_ratio)
    return Fraction(max(rates[0], own), WEIGHT), Fraction(rates[1], WEIGHT)
