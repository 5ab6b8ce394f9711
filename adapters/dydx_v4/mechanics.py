"""Exact integer margin mechanics of dYdX v4: margin fractions, risk of a subaccount, funding, liquidation.

Units: a USDC quote quantum is 1e-6 USDC, a base quantum 10^`atomic_resolution` coins, an oracle price
`price` * 10^`exponent` USD per coin, ppm 1e-6. Positions, notionals and deltas are signed, long positive; margin
requirements are positive. Sources: dydxprotocol/v4-chain (read at 84d4664), `x/perpetuals/types/liquidity_tier.go`,
`x/perpetuals/lib/lib.go`, `x/subaccounts/lib/updates.go`, `lib/margin/risk.go`, `x/clob/keeper/liquidations.go`,
`x/clob/keeper/deleveraging.go`; the indexer's figures from `indexer/services/comlink/src/lib/helpers.ts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

Exact = int | Decimal | Fraction

PPM = 10**6
QUOTE_DECIMALS = 6
"""USDC has 6 decimals: a quote quantum is 10^-6 USDC."""
PARENT_SUBACCOUNTS = 128
"""Subaccounts 0 to 127 are cross accounts; n above is isolated and a child of n mod 128."""


class LiquidityTier(NamedTuple):
    """Margin parameters of a market; caps on open interest in quote quantums, an upper cap of 0 switches scaling
    off.
    """

    initial_margin_ppm: int
    maintenance_fraction_ppm: int
    open_interest_lower_cap: int = 0
    open_interest_upper_cap: int = 0


class PerpPosition(NamedTuple):
    """A position with its market's price and tier; `open_interest` in base quantums, `custom_imf_ppm` 0 for none."""

    quantums: int
    atomic_resolution: int
    price: int
    exponent: int
    tier: LiquidityTier
    open_interest: int = 0
    custom_imf_ppm: int = 0


class Risk(NamedTuple):
    """Net collateral, initial and maintenance margin requirement in quote quantums."""

    nc: int
    imr: int
    mmr: int


# Rounding -------------------------------------------------------------------------------------------------------------


def truncated(value: Fraction) -> int:
    """The integer toward zero."""
    return -(-value.numerator // value.denominator) if value < 0 else value.numerator // value.denominator


def _ceil_ppm(value: int, ppm: int) -> int:
    return -(-value * ppm // PPM)


# Margin ---------------------------------------------------------------------------------------------------------------


def net_notional(quantums: int, *, atomic_resolution: int, price: int, exponent: int) -> int:
    """Signed notional in quote quantums, rounded toward zero: quantums * price * 10^(exponent + resolution + 6)."""
    power = exponent + atomic_resolution + QUOTE_DECIMALS
    return truncated(quantums * price * Fraction(10) ** power)


def adjusted_imf_ppm(tier: LiquidityTier, open_interest_notional: int) -> int:
    """Initial margin fraction in ppm at an open interest of that many quote quantums.

    The base fraction up to the lower cap and without an upper cap, 1e6 from the upper cap on, linear between, rounded
    down.
    """
    base, lower, upper = tier.initial_margin_ppm, tier.open_interest_lower_cap, tier.open_interest_upper_cap
    if upper == 0 or open_interest_notional <= lower:
        return base
    if open_interest_notional >= upper:
        return PPM
    return base + (PPM - base) * (open_interest_notional - lower) // (upper - lower)


def initial_margin(notional: int, tier: LiquidityTier, *, open_interest_notional: int, custom_imf_ppm: int = 0) -> int:
    """Initial margin of |notional|, rounded up; an account's own fraction counts where it is the larger one."""
    return _ceil_ppm(abs(notional), max(adjusted_imf_ppm(tier, open_interest_notional), custom_imf_ppm))


def maintenance_margin(notional: int, tier: LiquidityTier) -> int:
    """Maintenance margin of |notional|, rounded up twice; neither open interest nor chosen leverage changes it."""
    return _ceil_ppm(_ceil_ppm(abs(notional), tier.initial_margin_ppm), tier.maintenance_fraction_ppm)


def notional_of(position: PerpPosition, quantums: int | None = None) -> int:
    """Net notional of the position, or of `quantums` in its market."""
    return net_notional(
        position.quantums if quantums is None else quantums,
        atomic_resolution=position.atomic_resolution,
        price=position.price,
        exponent=position.exponent,
    )


def position_risk(position: PerpPosition) -> Risk:
    """Notional and both requirements of one position."""
    notional = notional_of(position)
    open_interest = notional_of(position, position.open_interest)
    initial = initial_margin(
        notional, position.tier, open_interest_notional=open_interest, custom_imf_ppm=position.custom_imf_ppm
    )
    return Risk(notional, initial, maintenance_margin(notional, position.tier))


def subaccount_risk(usdc_quantums: int, positions: Sequence[PerpPosition]) -> Risk:
    """Sums over an account: USDC (funding settled) plus notionals, and the requirements of its positions."""
    risks = [position_risk(position) for position in positions]
    return Risk(usdc_quantums + sum(r.nc for r in risks), sum(r.imr for r in risks), sum(r.mmr for r in risks))


def settlement_ppm(quantums: int, *, current_index: int, entry_index: int) -> int:
    """Unsettled funding of one position in 1e-6 quote quantums: -(index now - index at entry) * quantums."""
    return -(current_index - entry_index) * quantums


def settled_funding(settlements_ppm: Sequence[int]) -> int:
    """Quote quantums that settle into USDC: one rounding to minus infinity, after the sum over all positions."""
    return sum(settlements_ppm) // PPM


def meets_initial(risk: Risk) -> bool:
    """Whether an account may increase its risk: net collateral covers the initial requirement."""
    return risk.nc >= risk.imr


def is_liquidatable(risk: Risk) -> bool:
    """Whether the maintenance requirement exceeds net collateral; without a requirement an account never is."""
    return risk.mmr > 0 and risk.mmr > risk.nc


def is_valid_update(before: Risk, after: Risk) -> bool:
    """Whether an update is accepted: initial margin holds afterwards, or the account gets no riskier by it.

    No riskier: the maintenance requirement does not grow and NC/MMR does not fall; with no requirement on both sides
    net collateral must rise, with none only afterwards the update needs NC >= 0 (which meets the initial margin).
    """
    if meets_initial(after):
        return True
    if after.mmr > before.mmr:
        return False
    if after.mmr == 0:
        return before.mmr == 0 and after.nc > before.nc
    return after.nc * before.mmr >= before.nc * after.mmr


# Liquidation ----------------------------------------------------------------------------------------------------------


def fillable_price(
    usdc_quantums: int,
    positions: Sequence[PerpPosition],
    index: int,
    *,
    bankruptcy_adjustment_ppm: int,
    spread_to_mmr_ppm: int,
) -> Fraction | None:
    """Limit price of the liquidation order of `positions[index]`, in quote quantums per base quantum.

    (notional - ABR * spread * MMR of the position) / quantums, ABR = adjustment * (1 - NC/MMR) within [0, 1]. None for
    an account without a maintenance requirement or an empty position, which is never liquidated.
    """
    held, total = positions[index], subaccount_risk(usdc_quantums, positions)
    if total.mmr == 0 or held.quantums == 0:
        return None
    rating = Fraction(bankruptcy_adjustment_ppm, PPM) * (1 - Fraction(total.nc, total.mmr))
    rating = min(max(rating, Fraction(0)), Fraction(1))
    risk = position_risk(held)
    return (risk.nc - rating * Fraction(spread_to_mmr_ppm, PPM) * risk.mmr) / held.quantums


def bankruptcy_price(usdc_quantums: int, positions: Sequence[PerpPosition], index: int, delta_quantums: int) -> int:
    """Quote quantums that the account must receive (negative: pay) for `delta_quantums` to end with its share of NC.

    -(change of notional) - floor(NC * |change of the position's MMR| / MMR), so the result rounds up. Raises
    `ValueError` unless the delta reduces the position without crossing zero.
    """
    held, total = positions[index], subaccount_risk(usdc_quantums, positions)
    if held.quantums * delta_quantums >= 0 or abs(delta_quantums) > abs(held.quantums):
        raise ValueError(f"delta {delta_quantums} does not reduce a position of {held.quantums} quantums")
    before = position_risk(held)
    after = position_risk(held._replace(quantums=held.quantums + delta_quantums))
    released = abs(after.mmr - before.mmr)
    return -(after.nc - before.nc) - (total.nc * released // total.mmr if total.mmr else 0)


def fill_quote_quantums(subticks: int, base_quantums: int, quantum_conversion_exponent: int) -> int:
    """Quote quantums of a fill at a price in subticks, rounded toward zero."""
    return truncated(subticks * base_quantums * Fraction(10) ** quantum_conversion_exponent)


def insurance_fund_delta(
    usdc_quantums: int,
    positions: Sequence[PerpPosition],
    index: int,
    *,
    is_buy: bool,
    fill_amount: int,
    quote_quantums: int,
    max_liquidation_fee_ppm: int,
) -> int:
    """What a liquidation fill pays to the insurance fund, in quote quantums; negative when the fund pays.

    Proceeds above the bankruptcy price, at most `max_liquidation_fee_ppm` of the fill; `quote_quantums` is the fill's
    size in quote quantums, positive.
    """
    delta, proceeds = (fill_amount, -quote_quantums) if is_buy else (-fill_amount, quote_quantums)
    surplus = proceeds - bankruptcy_price(usdc_quantums, positions, index, delta)
    return surplus if surplus <= 0 else min(abs(proceeds) * max_liquidation_fee_ppm // PPM, surplus)


class BlockLimits(NamedTuple):
    """Smallest and largest notional of one position that may be liquidated in a block, in quote quantums."""

    minimum: int
    maximum: int


def position_limits(notional: int, *, min_notional: int, max_portion_ppm: int) -> BlockLimits:
    """Block limits of one position: a portion of it, but never less than the minimum nor the whole if that is less."""
    minimum = min(min_notional, abs(notional))
    return BlockLimits(minimum, max(minimum, abs(notional) * max_portion_ppm // PPM))


def liquidation_delta(
    position: PerpPosition, limits: BlockLimits, *, subaccount_limit: int, step_base_quantums: int
) -> int:
    """Change of the position's quantums by the next liquidation order, with the opposite sign of the position.

    All of it when its notional is within both limits or it is no larger than a step, else the limit's worth in base
    quantums, rounded down to whole steps, at least one. `subaccount_limit` is what the account's block limit leaves.
    """
    held, limit = abs(position.quantums), min(limits.maximum, subaccount_limit)
    size = held
    if abs(notional_of(position)) > limit and held > step_base_quantums:
        power = position.exponent + position.atomic_resolution + QUOTE_DECIMALS
        base = truncated(limit / (position.price * Fraction(10) ** power))
        size = min(max(base // step_base_quantums * step_base_quantums, step_base_quantums), held)
    return -size if position.quantums > 0 else size


Deleveraging = Literal["bankruptcy_price", "oracle_price"]


def deleveraging_price(risk: Risk, *, in_final_settlement: bool = False) -> Deleveraging | None:
    """Price at which an account may be deleveraged against others: bankruptcy with NC < 0, else oracle while one of
    its markets settles for good, else not at all.
    """
    if risk.nc < 0:
        return "bankruptcy_price"
    return "oracle_price" if in_final_settlement else None


# Subaccount numbers ---------------------------------------------------------------------------------------------------


def parent_number(subaccount: int) -> int:
    """The parent of a subaccount; its own number for 0 to 127."""
    return subaccount % PARENT_SUBACCOUNTS


def is_isolated(subaccount: int) -> bool:
    """Whether the number is a child's: 128 and above hold isolated positions."""
    return subaccount >= PARENT_SUBACCOUNTS


# Real numbers: the indexer's figures ----------------------------------------------------------------------------------


class IndexerRisk(NamedTuple):
    """One position as the indexer states it, in USD: real numbers, and the base fraction whatever open interest is."""

    signed_notional: Fraction
    initial: Fraction
    maintenance: Fraction


def indexer_risk(size: Exact, oracle_price: Exact, initial_fraction: Exact, maintenance_fraction: Exact) -> IndexerRisk:
    """Signed notional and the indexer's two requirements; `maintenance_fraction` is of notional."""
    notional = Fraction(size) * Fraction(oracle_price)
    return IndexerRisk(
        notional, abs(notional) * Fraction(initial_fraction), abs(notional) * Fraction(maintenance_fraction)
    )


def indexer_equity(usdc: Exact, risks: Sequence[IndexerRisk]) -> Fraction:
    """Equity in USD: USDC with unsettled funding, plus signed notionals."""
    return Fraction(usdc) + sum((risk.signed_notional for risk in risks), Fraction(0))


def indexer_free_collateral(usdc: Exact, risks: Sequence[IndexerRisk]) -> Fraction:
    """Equity less the initial requirements at base fractions."""
    return indexer_equity(usdc, risks) - sum((risk.initial for risk in risks), Fraction(0))


def liquidation_price(
    size: Exact, oracle_price: Exact, *, equity: Exact, other_maintenance: Exact, maintenance_fraction: Exact
) -> Fraction | None:
    """Price of one market at which equity equals the maintenance requirement, all other prices fixed; None if not > 0.

    (equity - size * price - other maintenance) / (|size| * fraction - size), in real numbers; `size` is signed. It
    follows from the account condition; the chain itself knows no liquidation price.
    """
    quantity = Fraction(size)
    slope = abs(quantity) * Fraction(maintenance_fraction) - quantity
    if slope == 0:
        return None
    root = (Fraction(equity) - quantity * Fraction(oracle_price) - Fraction(other_maintenance)) / slope
    return root if root > 0 else None
