"""Checks of `venues/morpho_blue.json` by the exact integer mechanics of the adapter."""

from typing import Any

from adapters.morpho_blue import mechanics as morpho

Case = dict[str, Any]
Cases = list[Case]


def _liquidation(case: Case) -> Case:
    market = morpho.Market(0, 0, int(case["total_borrow_assets"]), int(case["total_borrow_shares"]))
    collateral, shares = int(case["collateral"]), int(case["borrow_shares"])
    price, lltv = int(case["collateral_price"]), int(case["lltv"])
    done = morpho.liquidation(
        collateral,
        shares,
        market,
        price=price,
        lltv=lltv,
        seized_assets=int(case["seized_assets"]),
        repaid_shares=int(case["repaid_shares"]),
    )
    return {
        "seized_assets": done.seized_assets,
        "repaid_assets": done.repaid_assets,
        "is_healthy": morpho.is_healthy(collateral, shares, market, price=price, lltv=lltv),
        "bad_debt_assets": done.bad_debt_assets,
    }


def _lif(case: Case) -> Case:
    return {"liquidation_incentive_factor": morpho.liquidation_incentive_factor(int(case["lltv"]))}


CHECKS = {
    "liquidation": lambda inputs: [_liquidation(case) for case in inputs],
    "lif": lambda inputs: [_lif(case) for case in inputs],
}
