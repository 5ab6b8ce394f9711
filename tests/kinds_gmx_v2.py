"""Checks of `venues/gmx_v2.json` by the exact integers of the adapter's mechanics."""

from typing import Any

from adapters.gmx_v2 import impact, mechanics
from adapters.gmx_v2.impact import ImpactParameters, OpenInterest
from adapters.gmx_v2.mechanics import Fees, Pool, Position, Prices

Case = dict[str, Any]
Cases = list[Case]


def apply_impact_factor(inputs: Cases) -> Cases:
    return [
        {
            "value": impact.applied_impact_factor(
                int(case["diff_usd"]), int(case["impact_factor"]), int(case["exponent_factor"])
            )
        }
        for case in inputs
    ]


def price_impact(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        parameters = ImpactParameters(
            int(case["positive_factor"]),
            int(case["negative_factor"]),
            int(case["positive_exponent"]),
            int(case["negative_exponent"]),
            int(case["max_positive_impact_factor"]),
        )
        interest, change = OpenInterest(int(case["long_oi"]), int(case["short_oi"])), int(case["usd_delta"])
        found = impact.price_impact(parameters, interest, change, is_long=case["is_long"])
        results.append({"price_impact_usd": impact.capped_positive_impact(found.usd, change, parameters)})
    return results


def execution_price_increase(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        found = impact.execution_of_increase(
            int(case["price_impact_usd"]),
            int(case["size_delta_usd"]),
            index_min=int(case["price_min"]),
            index_max=int(case["price_max"]),
            is_long=case["is_long"],
        )
        results.append({"execution_price": found.price, "price_impact_amount": found.impact_amount})
    return results


def liquidation_check(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        held, at = case["position"], case["prices"]
        position = Position(
            held["is_long"], *(int(held[key]) for key in ("size_in_usd", "size_in_tokens", "collateral_amount"))
        )
        prices = Prices(*(int(at[key]) for key in ("index_min", "index_max", "collateral_min")))
        pool = None
        if case.get("pool"):
            keys = ("pool_token_amount", "pool_token_price_min", "pool_pnl", "max_pnl_factor_for_traders")
            pool = Pool(*(int(case["pool"][key]) for key in keys))
        fee = mechanics.position_fee_amount(
            position.size_in_usd, int(case["position_fee_factor"]), prices.collateral_min
        )
        found = mechanics.liquidation_check(
            position,
            prices,
            min_collateral_factor=int(case["min_collateral_factor"]),
            min_collateral_usd=int(case["min_collateral_usd"]),
            impact_usd=mechanics.impact_for_check(
                position, 0, prices, int(case["max_position_impact_factor_for_liquidations"])
            ),
            fees=Fees(position=fee),
            pool=pool,
        )
        results.append(
            {
                "is_liquidatable": found.is_liquidatable,
                "remaining_collateral_usd": found.remaining_collateral_usd,
                "capped_pnl_usd": found.pnl_usd,
            }
        )
    return results


def collateral_sufficient(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        factor = mechanics.open_interest_collateral_factor(
            int(case["min_collateral_factor"]),
            int(case["open_interest"]),
            int(case["open_interest_delta"]),
            int(case["oi_multiplier"]),
        )
        found = mechanics.collateral_sufficiency(
            int(case["collateral_amount"]),
            int(case["collateral_price_min"]),
            realized_pnl_usd=int(case["realized_pnl_usd"]),
            size_usd=int(case["size_usd"]),
            min_collateral_factor=factor,
        )
        results.append({"sufficient": found.sufficient, "min_collateral_factor": found.min_collateral_factor})
    return results


CHECKS = {
    "apply_impact_factor": apply_impact_factor,
    "price_impact": price_impact,
    "execution_price_increase": execution_price_increase,
    "liquidation_check": liquidation_check,
    "collateral_sufficient": collateral_sufficient,
}
