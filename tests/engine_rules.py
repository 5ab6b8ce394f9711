"""Rule sets, margin tiers and collateral tiers of the made-up venues: every rule form with parameters of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from aggregator.rule_forms import (
    BasisContingency,
    Component,
    Confidence,
    Contingency,
    DebtCharge,
    ExpiryMaxLoss,
    Fixed,
    GridPoint,
    OptionFormula,
    PegLoss,
    PriceVolGrid,
    RateOfSize,
    StaticDiscount,
    TieredNotional,
    Verdict,
    VolShock,
    WeightedValue,
    component_rows,
)
from tests.engine_markets import NO_FIXED_FIGURE, Rows, rows


def _verdict(at: str = "below", trigger: str = "1", health: str = "equity_over_requirement") -> Component:
    return Component(
        side="verdict",
        parameters=Verdict(liquidates_when=at, trigger=Decimal(trigger), health=health),  # type: ignore[arg-type]
    )


def _numbers(model: type, **values: str) -> Any:
    return model(**{name: Decimal(value) for name, value in values.items()})


def _grid() -> PriceVolGrid:
    points = [
        (spot, vol, "1") for spot in ("0.85", "0.9", "0.95", "1", "1.05", "1.1", "1.15") for vol in ("up", "down")
    ]
    points += [("0.65", "none", "0.35"), ("1.4", "none", "0.4")]
    return PriceVolGrid(
        scenarios=tuple(GridPoint(spot=Decimal(s), vol=v, dampening=Decimal(d)) for s, v, d in points),  # type: ignore[arg-type]
        vol_shock=_numbers(
            VolShock,
            range_up="0.45",
            range_down="0.3",
            short_term_power="0.3",
            long_term_power="0.13",
            dte_floor_days="1",
            min_vol_up="0.3",
        ),
        discount=_numbers(
            StaticDiscount,
            long_base="0.98",
            long_rate_mult="1",
            long_rate_add="0.01",
            short_base="1.01",
            short_rate_mult="1",
            short_rate_add="0.01",
        ),
        initial_factor=Decimal("1.3"),
        maintenance_factor=Decimal("1.05"),
        basis=_numbers(BasisContingency, spot_up="1.05", spot_down="0.95", add_factor="0.25", mult_factor="0.01"),
        peg_loss=_numbers(PegLoss, threshold="0.98", factor="4"),
        settlement_window_s=Decimal(1800),
        grid_collateral=("ETH", "wstETH"),
    )


def _contingencies() -> list[Contingency]:
    confidence = _numbers(Confidence, threshold="0.98", factor="0.4")
    return [
        Contingency(measure="gross_perp", maintenance_rate=Decimal("0.015"), initial_rate=Decimal("0.025")),
        Contingency(measure="naked_short_options", maintenance_rate=Decimal("0.01"), initial_rate=Decimal("0.015")),
        Contingency(measure="gross_options", confidence=confidence),
        Contingency(measure="collateral", confidence=confidence),
    ]


_PER_CONTRACT = _numbers(
    OptionFormula,
    max_spot_rate="0.15",
    min_spot_rate="0.13",
    mm_call_spot_rate="0.09",
    mm_put_spot_rate="0.09",
    mm_put_mark_rate="0.075",
    mm_offset_scale="1.05",
)


def _requirement(parameters: Any, group_by: Any = "account") -> Component:
    return Component(side="requirement", parameters=parameters, group_by=group_by)


def _equity(**parameters: Any) -> Component:
    return Component(side="equity", parameters=WeightedValue(**parameters))


RULES: Mapping[str, tuple[Component, ...]] = {
    "lend": (
        _equity(),
        _requirement(WeightedValue(weights="collateral_tiers")),
        _verdict(health="weighted_collateral_over_debt"),
    ),
    "perps": (_equity(), _requirement(TieredNotional(), "position"), _verdict()),
    "perps_tier_rate": (
        _equity(),
        _requirement(TieredNotional(initial="tier_rate"), "position"),
        _verdict("at_or_below"),
    ),
    "multi": (
        _equity(weights="collateral_tiers", net_by_asset=True),
        _requirement(TieredNotional(), "position"),
        _verdict("at_or_below", trigger="1.05"),
    ),
    "coin": (_equity(), _requirement(TieredNotional(), "position"), _verdict()),
    "coin_options": (
        _equity(),
        _requirement(Fixed(initial=Decimal("0.9"), maintenance=Decimal("0.6"), basis=NO_FIXED_FIGURE)),
        _verdict(),
    ),
    "portfolio": (
        _equity(),
        _requirement(WeightedValue(weights="collateral_tiers", weighted_at="usd")),
        _requirement(_grid(), "risk_unit"),
        *(_requirement(form, "risk_unit") for form in _contingencies()),
        _verdict(),
    ),
    "standard": (
        _equity(),
        _requirement(WeightedValue(weights="collateral_tiers")),
        _requirement(
            ExpiryMaxLoss(
                per_contract=_PER_CONTRACT,
                unpaired_initial_scale=Decimal("0.2"),
                unpaired_maintenance_scale=Decimal("0.1"),
            ),
            "expiry",
        ),
        _requirement(
            Contingency(
                measure="gross_perp", price="perp_mark", initial_rate=Decimal("0.1"), maintenance_rate=Decimal("0.065")
            ),
            "risk_unit",
        ),
        _requirement(
            Contingency(
                measure="gross_perp_and_short_options", depeg=_numbers(PegLoss, threshold="0.99", factor="1.2")
            ),
            "risk_unit",
        ),
        _verdict(),
    ),
    "wallet": (_equity(), _verdict()),
    # Weights in slices, a charge on what is owed, tiers of the whole notional, and open orders that count.
    "slices": (
        _equity(weights="collateral_tiers", net_by_asset=True, liabilities="unit"),
        _requirement(
            TieredNotional(
                initial="tier_rate",
                orders="worst_side",
                per_order=Decimal("0.25"),
                minimum=Decimal(400),
                initial_at_least_maintenance=True,
            ),
            "position",
        ),
        _requirement(
            DebtCharge(
                net_by_asset=True,
                initial_rate=Decimal("0.1"),
                maintenance_rate=Decimal("0.02"),
                maintenance_rates={"ETH": Decimal("0.05")},
            )
        ),
        _verdict("at_or_below"),
    ),
    # Profit at a weight of its own, rates by the root of the size, tiers at entry, and costs against equity.
    "sized": (
        _equity(weights="collateral_tiers"),
        Component(side="equity", parameters=Fixed(equity=Decimal("-12.5"), basis="computed closing cost")),
        _requirement(RateOfSize(law="integer_sqrt", orders="worst_side_initial"), "position"),
        _requirement(DebtCharge(initial_rate=Decimal("0.2"), maintenance_rate=Decimal("0.1"))),
        _verdict(),
    ),
    "entry": (
        _equity(),
        _requirement(TieredNotional(initial="tier_integral", basis="entry", minimum=Decimal(1)), "position"),
        _verdict(),
    ),
    "contracts": (
        _equity(),
        _requirement(TieredNotional(initial="tier_rate", floors="quantity"), "position"),
        _verdict(),
    ),
}

# notional floor, maintenance rate, initial rate; in the settlement asset
USD_TIERS = (("0", "0.005", "0.01"), ("50000", "0.01", "0.02"), ("250000", "0.025", "0.05"), ("1000000", "0.05", "0.1"))
COIN_TIERS = (("0", "0.004", "0.01"), ("5", "0.01", "0.02"), ("20", "0.025", "0.05"))
# asset: initial and maintenance weight, in the e-mode of ETH too
LENDER_WEIGHTS = {
    "": {
        "BTC": ("0.73", "0.78"),
        "ETH": ("0.8", "0.83"),
        "wstETH": ("0.78", "0.81"),
        "USDC": ("0.75", "0.78"),
        "USDT": ("0.7", "0.75"),
    },
    "eth": {"ETH": ("0.93", "0.95"), "wstETH": ("0.92", "0.945")},
}
MULTI_WEIGHTS = {
    "BTC": ("0.95", "0.97"),
    "ETH": ("0.93", "0.95"),
    "SOL": ("0.8", "0.85"),
    "USDC": ("0.98", "1"),
    "USDT": ("1", "1"),
}
MANAGER_WEIGHTS = {"ETH": ("0.8", "0.85"), "wstETH": ("0.75", "0.82"), "USDT": ("0.9", "0.95")}


def tier_rows(
    rule_set: str, market: str, steps: Sequence[tuple[str, str, str]], *, whole: bool = False, **columns: Any
) -> list[dict[str, Any]]:
    """Rows of `margin_tiers`, with the deductions that continue the tier below, or none (`whole`)."""
    out, deduction, before = [], Decimal(0), Decimal(0)
    for number, (floor, maintenance, initial) in enumerate(steps):
        if not whole:
            deduction += Decimal(floor) * (Decimal(maintenance) - before)
        before = Decimal(maintenance)
        out.append(
            {
                "rule_set": rule_set,
                "market": market,
                "tier": number + 1,
                "notional_floor": floor,
                "initial_rate": initial,
                "maintenance_rate": maintenance,
                "deduction": str(deduction),
                "source": "venue",
            }
            | columns
        )
    return out


def _weights(
    rule_set: str, emode: str, weights: Mapping[str, tuple[str, str]], debt: str = "1"
) -> list[dict[str, Any]]:
    return [
        {
            "rule_set": rule_set,
            "asset_id": asset,
            "emode": emode,
            "tier": 1,
            "floor": "0",
            "asset_weight_initial": initial,
            "asset_weight_maintenance": maintenance,
            "liability_weight_initial": debt,
            "liability_weight_maintenance": debt,
            "source": "test",
        }
        for asset, (initial, maintenance) in weights.items()
    ]


CONTRACT_TIERS = (("0", "0.004", "0.01"), ("1000", "0.01", "0.02"), ("4000", "0.025", "0.05"))
SLICES = {
    "BTC": (("0", "0.95", "0.96"), ("1.5", "0.9", "0.92"), ("4", "0.5", "0.6"), ("9", "0", "0.1")),
    "ETH": (("0", "0.9", "0.9"), ("20", "0.7", "0.75")),
    "USDT": (("0", "1", "1"), ("2000", "0.9", "0.95")),
}


def _slices(
    rule_set: str, asset: str, slices: Sequence[tuple[str, str, str]], *, debt: str = "1", floor_in: str | None = None
) -> list[dict[str, Any]]:
    """Rows of `collateral_tiers` by floor, initial and maintenance weight."""
    return [
        row | {"tier": number + 1, "floor": floor, "floor_in": floor_in}
        for number, (floor, initial, maintenance) in enumerate(slices)
        for row in _weights(rule_set, "", {asset: (initial, maintenance)}, debt)
    ]


def rule_rows() -> Rows:
    """Rule sets, margin tiers and collateral tiers of every venue."""
    components = [row for name, of in RULES.items() for row in component_rows(name, of, source="test")]
    tiers = []
    for symbol in ("BTC", "ETH", "SOL"):
        for rule_set in ("perps", "perps_tier_rate"):
            tiers += tier_rows(rule_set, f"perps:{symbol}-PERP", USD_TIERS)
        tiers += tier_rows("multi", f"multi:{symbol}-PERP", USD_TIERS[:3])
    tiers += tier_rows("multi", "multi:ETH-JUN", (("0", "0.02", "0.04"),))
    for symbol in ("BTC", "ETH"):
        for suffix in ("PERP", "JUN"):
            tiers += tier_rows("coin", f"coin:{symbol}-{suffix}", COIN_TIERS)
    weights = [row for emode, of in LENDER_WEIGHTS.items() for row in _weights("lend", emode, of)]
    for symbol in ("BTC", "ETH", "SOL"):
        tiers += tier_rows("slices", f"multi:{symbol}-PERP", USD_TIERS, whole=True)
        tiers += tier_rows("entry", f"perps:{symbol}-PERP", USD_TIERS)
        tiers += tier_rows("sized", f"perps:{symbol}-PERP", (("0", "0.03", "0.05"),), size_coefficient="0.002")
    for suffix in ("PERP", "JUN"):
        tiers += tier_rows("contracts", f"coin:BTC-{suffix}", CONTRACT_TIERS)
    weights += [row for asset, slices in SLICES.items() for row in _slices("slices", asset, slices)]
    weights += _slices("sized", "USDC", (("0", "1", "1"),))
    weights += _slices("sized", "ETH", (("0", "0.7", "0.8"),), debt="1.1")
    # The profit of SOL counts in part, and initially up to 100.
    weights += _slices("sized", "perps:SOL-PERP", (("0", "0.8", "0.9"), ("125", "0", "0.9")), floor_in="value")
    # A debt in a multi-asset account counts for more than it is worth.
    weights += _weights("multi", "", MULTI_WEIGHTS, debt="1.02")
    for manager in ("portfolio", "standard"):
        weights += _weights(manager, "", MANAGER_WEIGHTS)
    return rows(rule_sets=components, margin_tiers=tiers, collateral_tiers=weights)
