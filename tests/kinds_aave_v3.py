"""Checks of `venues/aave_v3.json` by the exact integer mechanics of the adapter."""

from typing import Any

from adapters.aave_v3 import mechanics as aave

Case = dict[str, Any]
Cases = list[Case]


def _account_data(case: Case) -> Case:
    emode = None
    if case.get("user_emode"):
        bits = sum(1 << i for i, reserve in enumerate(case["reserves"]) if reserve["in_emode_collateral_bitmap"])
        category = case["user_emode"]
        emode = aave.EMode(
            category=int(category.get("id") or 1),
            parameters=aave.CollateralParameters(int(category["ltv"]), int(category["liquidation_threshold"])),
            collateral_bitmap=bits,
            isolated=bool(category.get("isolated", False)),
        )
    holdings = [
        aave.ReserveHolding(
            reserve_id=i,
            decimals=int(reserve["decimals"]),
            price=int(reserve["price"]),
            parameters=aave.CollateralParameters(int(reserve["ltv"]), int(reserve["liquidation_threshold"])),
            scaled_supply=int(reserve["scaled_atoken_balance"]),
            liquidity_index=int(reserve["liquidity_index"]),
            is_collateral=reserve["usage_as_collateral"],
            scaled_debt=int(reserve.get("scaled_variable_debt") or 0),
            borrow_index=int(reserve.get("variable_borrow_index") or aave.RAY),
        )
        for i, reserve in enumerate(case["reserves"])
    ]
    data = aave.account_data(holdings, emode)
    return {
        "total_collateral_base": data.total_collateral,
        "total_debt_base": data.total_debt,
        "ltv_bps": data.ltv,
        "liquidation_threshold_bps": data.liquidation_threshold,
        "health_factor_wad": data.health_factor,
        "available_borrows_base": data.available_borrows,
    }


def _health_factor(case: Case) -> Case:
    health = aave.real_health_factor(
        int(case["collateral_base"]), int(case["debt_base"]), int(case["liquidation_threshold_bps"])
    )
    return {"health_factor": None if health is None else float(health)}


def _index_accrual_supply(case: Case) -> Case:
    index = aave.accrued_liquidity_index(
        int(case["liquidity_index"]), int(case["liquidity_rate"]), int(case["now"]) - int(case["last_update"])
    )
    return {"balance": aave.supplied_amount(int(case["scaled_balance"]), index)}


def _index_accrual_borrow(case: Case) -> Case:
    elapsed = int(case["now"]) - int(case["last_update"])
    return {"factor_ray": aave.compounded_interest(int(case["variable_borrow_rate"]), elapsed)}


def _liquidation(case: Case) -> Case:
    collateral, debt = case["collateral"], case["debt"]
    try:
        done = aave.liquidation(
            aave.CollateralSide(
                decimals=int(collateral["decimals"]),
                price=int(collateral["price"]),
                scaled_balance=int(collateral["scaled_balance"]),
                liquidity_index=int(collateral["liquidity_index"]),
                liquidation_bonus=int(collateral["liquidation_bonus"]),
                protocol_fee=int(collateral["liquidation_protocol_fee"]),
            ),
            aave.DebtSide(
                decimals=int(debt["decimals"]),
                price=int(debt["price"]),
                scaled_debt=int(debt["scaled_debt"]),
                borrow_index=int(debt["variable_borrow_index"]),
            ),
            total_collateral=int(case["total_collateral_base"]),
            total_debt=int(case["total_debt_base"]),
            health=int(case["health_factor_wad"]),
            debt_to_cover=int(case["debt_to_cover"]),
        )
    except aave.LiquidationRevertedError as reverted:
        return {"reverts": reverted.error}
    return {
        "reverts": None,
        "close_factor": "half" if done.half_close_factor else "full",
        "debt_repaid": done.debt_repaid,
        "collateral_to_liquidator": done.collateral_to_liquidator,
        "protocol_fee_collateral": done.protocol_fee,
        "collateral_scaled_left": done.scaled_collateral_left,
        "has_no_collateral_left": done.no_collateral_left,
        "deficit_debt": done.deficit,
    }


CHECKS = {
    "account_data": lambda inputs: [_account_data(case) for case in inputs],
    "health_factor": lambda inputs: [_health_factor(case) for case in inputs],
    "index_accrual_supply": lambda inputs: [_index_accrual_supply(case) for case in inputs],
    "index_accrual_borrow": lambda inputs: [_index_accrual_borrow(case) for case in inputs],
    "liquidation": lambda inputs: [_liquidation(case) for case in inputs],
}
