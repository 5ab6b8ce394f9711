"""Rule set of one clearing-house account as canonical data.

    equity      = cash + collateral after haircuts + variation of futures + value of options
    requirement = risk of the combined commodities (initial: times each one's initial ratio)

so that equity − requirement is what the house calls cash and collateral over `max(0, risk − net option value)` as long
as the options are worth no more than the risk. A commodity whose contracts are scanned by one rate of the price keeps
its scan as a grid that moves with the scenario; what is published as arrays, and all charges, credits and minimums,
stay as they are today.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from aggregator.rule_forms import (
    Component,
    Fixed,
    GridPoint,
    PriceVolGrid,
    Verdict,
    VolShock,
    WeightedValue,
    component_rows,
)

from ..collateral import weight_row
from .margin import CommodityMargin, PortfolioMargin, scan_points, vol_range
from .parse import Collateral, Commodity, House

SOURCE = "CME Group, Components of SPAN and Risk Arrays; the house's margin parameters of the day"
_DIGITS = 18
# A point states its own vol move, so the law of the shock plays no part.
_NO_SHOCK = VolShock(
    short_term_power=Decimal(0),
    long_term_power=Decimal(0),
    dte_floor_days=Decimal(1),
    min_vol_up=Decimal(0),
)


def decimal_from(value: Fraction) -> Decimal:
    """`value` rounded half to even at the 18th decimal."""
    return Decimal(round(value * 10**_DIGITS)).scaleb(-_DIGITS)


def rule_rows(
    rule_set: str,
    house: House,
    margin: PortfolioMargin,
    *,
    risk_symbols: Mapping[str, str],
    collateral: Sequence[tuple[str, Collateral]],
) -> dict[str, list[dict[str, Any]]]:
    """Rows of `rule_sets` and `collateral_tiers` by table; `risk_symbols` names each commodity's price factor.

    `collateral` holds (asset id, entry).
    """
    grids = {
        entry.commodity.code: scan_grid(house, entry, risk_symbols[entry.commodity.code])
        for entry in margin.commodities
        if is_scanned_by_rate(house, entry, risk_symbols, margin.commodities)
    }
    scanned = [entry for entry in margin.commodities if entry.commodity.code in grids]
    # Beside a grid the engine wants to hear of every underlying; those whose amount is fixed have a grid of no move.
    others = sorted({risk_symbols[e.commodity.code] for e in margin.commodities if e.commodity.code not in grids})
    still = [_unmoved_grid(others)] if grids and others else []
    fixed = Fixed(
        initial=decimal_from(
            margin.initial - sum((e.scan.risk * e.commodity.initial_ratio for e in scanned), Fraction(0))
        ),
        maintenance=decimal_from(margin.maintenance - sum((e.scan.risk for e in scanned), Fraction(0))),
        basis="computed from risk arrays, spreads and minimums of the day",
    )
    components = [
        Component(
            side="equity",
            parameters=WeightedValue(weights="collateral_tiers" if collateral else "unit", options="mark"),
        ),
        *(
            Component(side="requirement", parameters=grid, group_by="risk_unit")
            for grid in [*(grids[code] for code in sorted(grids)), *still]
        ),
        Component(side="requirement", parameters=fixed),
        Component(side="verdict", parameters=Verdict(liquidates_when="below")),
    ]
    return {
        "rule_sets": component_rows(rule_set, components, source=SOURCE, read_at=house.as_of),
        "collateral_tiers": [
            weight_row(rule_set, asset_id, 1 - entry.haircut, source=house.code) for asset_id, entry in collateral
        ],
    }


def is_scanned_by_rate(
    house: House, entry: CommodityMargin, risk_symbols: Mapping[str, str], all_of: Sequence[CommodityMargin]
) -> bool:
    """Whether the engine's grid gives this commodity's scan: one rate of the price and one vol range for all contracts,
    none with an array of its own, no other commodity of the account on the same price factor, and index prices.
    """
    commodity = entry.commodity
    if commodity.price_scan_rate is None or house.extreme_multiple is None:
        return False
    # A grid is counted at the price of its underlying, and every underlying of the account needs one.
    if any(other.commodity.index_price is None for other in all_of):
        return False
    shared = Counter(risk_symbols[other.commodity.code] for other in all_of)
    contracts = [held.contract for held in entry.holdings]
    options = [contract for contract in contracts if contract.kind == "option"]
    return (
        shared[risk_symbols[commodity.code]] == 1
        and all(c.risk_array is None and c.price_scan_range is None for c in contracts)
        and len({vol_range(commodity, contract) for contract in options}) <= 1
        and commodity.price_scan_rate * house.extreme_multiple < 1
    )


def scan_grid(house: House, entry: CommodityMargin, risk_symbol: str) -> PriceVolGrid:
    """The scan of one commodity as a grid over the price factor `risk_symbol`."""
    commodity = entry.commodity
    options = [held.contract for held in entry.holdings if held.contract.kind == "option"]
    vol_scan = vol_range(commodity, options[0]) if options else Fraction(0)
    return PriceVolGrid(
        scenarios=tuple(
            GridPoint(
                spot=decimal_from(1 + point.price * _rate(commodity)),
                vol_move=decimal_from(point.vol * vol_scan),
                dampening=decimal_from(point.cover),
            )
            for point in scan_points(house)
        ),
        vol_shock=_NO_SHOCK,
        initial_factor=decimal_from(commodity.initial_ratio),
        maintenance_factor=Decimal(1),
        look_ahead_days=decimal_from(house.look_ahead_days or Fraction(0)),
        underlyings=(risk_symbol,),
    )


def _unmoved_grid(risk_symbols: Sequence[str]) -> PriceVolGrid:
    return PriceVolGrid(
        scenarios=(GridPoint(spot=Decimal(1)),),
        vol_shock=_NO_SHOCK,
        initial_factor=Decimal(0),
        maintenance_factor=Decimal(0),
        underlyings=tuple(risk_symbols),
    )


def _rate(commodity: Commodity) -> Fraction:
    return commodity.price_scan_rate or Fraction(0)
