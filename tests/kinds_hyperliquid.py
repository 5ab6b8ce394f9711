"""Checks of `venues/hyperliquid.json`, through `adapters.hyperliquid.mechanics`; results are exact."""

from fractions import Fraction
from typing import Any

from adapters.hyperliquid import mechanics
from adapters.hyperliquid.mechanics import MarginTier, SummedPosition

Case = dict[str, Any]
Cases = list[Case]


def _exact(value: Any) -> Fraction:
    return Fraction(str(value))


def _tiers(case: Case) -> list[MarginTier]:
    return [MarginTier(_exact(tier["lower_bound"]), _exact(tier["max_leverage"])) for tier in case["tiers"]]


def _positions(case: Case) -> list[SummedPosition]:
    return [
        SummedPosition(_exact(held["szi"]), _exact(held["position_value"]), _exact(held["leverage"]))
        for held in case["positions"]
    ]


def tier_table(inputs: Cases) -> Cases:
    tables = [mechanics.tier_table(_tiers(case)) for case in inputs]
    return [{"rates": [b.rate for b in table], "deductions": [b.deduction for b in table]} for table in tables]


def maintenance_margin(inputs: Cases) -> Cases:
    return [
        {"maintenance_margin": mechanics.maintenance_margin(_exact(case["notional"]), _tiers(case))} for case in inputs
    ]


def cross_summary(inputs: Cases) -> Cases:
    summaries = [mechanics.cross_summary(_exact(case["total_raw_usd"]), _positions(case)) for case in inputs]
    return [
        {
            "account_value": summary.account_value,
            "total_ntl_pos": summary.total_notional,
            "total_margin_used": summary.total_margin_used,
            "withdrawable": summary.withdrawable,
        }
        for summary in summaries
    ]


def liquidation_price_2023(inputs: Cases) -> Cases:
    return [
        {
            "liquidation_px": mechanics.liquidation_price_2023(
                [held["coin"] for held in case["positions"]].index(case["coin"]),
                _exact(case["total_raw_usd"]),
                positions=_positions(case),
                max_leverages=[_exact(held["max_leverage"]) for held in case["positions"]],
            )
        }
        for case in inputs
    ]


def isolated_position(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        side, size, value = int(case["side"]), abs(_exact(case["szi"])), _exact(case["position_value"])
        margin = mechanics.isolated_margin(_exact(case["raw_usd"]), side, value)
        tiers = mechanics.single_tier(_exact(case["max_leverage"]))
        price = mechanics.liquidation_price(side, value / size, size=size, equity=margin, tiers=tiers)
        results.append({"margin_used": margin, "liquidation_px": price})
    return results


def liquidation_price(inputs: Cases) -> Cases:
    return [
        {
            "liquidation_px": mechanics.liquidation_price(
                int(case["side"]),
                _exact(case["price"]),
                size=abs(_exact(case["size"])),
                equity=_exact(case["isolated_margin"]),
                tiers=mechanics.single_tier(_exact(case["max_leverage"])),
            )
        }
        for case in inputs
    ]


CHECKS = {
    "tier_table": tier_table,
    "maintenance_margin": maintenance_margin,
    "cross_summary": cross_summary,
    "liquidation_price_2023": liquidation_price_2023,
    "isolated_position": isolated_position,
    "liquidation_price": liquidation_price,
}
