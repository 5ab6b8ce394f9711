"""Checks of `venues/compound_v3.json` by the exact integer mechanics of the adapter."""

from typing import Any

from adapters.compound_v3 import mechanics as comet

Case = dict[str, Any]
Cases = list[Case]


class _State:
    """The account of a case."""

    def __init__(self, case: Case) -> None:
        self.principal = int(case["principal"])
        self.indices = comet.Indices(int(case["base_supply_index"]), int(case["base_borrow_index"]))
        self.base = comet.Base(int(case["base_price"]), int(case["base_scale"]))
        self.held = [
            comet.Collateral(
                balance=int(held["balance"]),
                price=int(held["price"]),
                scale=int(held["scale"]),
                borrow_factor=int(held["borrow_collateral_factor"]),
                liquidate_factor=int(held["liquidate_collateral_factor"]),
                liquidation_factor=int(held["liquidation_factor"]),
            )
            for held in case.get("collaterals") or []
        ]


def _account_state(case: Case) -> Case:
    state = _State(case)
    of = state.principal, state.indices, state.base, state.held
    return {
        "is_liquidatable": comet.is_liquidatable(*of),
        "is_borrow_collateralized": comet.is_borrow_collateralized(*of),
    }


def _present_value(case: Case) -> Case:
    state = _State(case)
    return {"present_value_base": comet.present_value(state.principal, state.indices)}


def _absorb(case: Case) -> Case:
    state = _State(case)
    done = comet.absorption(state.principal, state.indices, state.base, state.held)
    return {
        "base_paid_out": done.base_paid_out,
        "value_paid_out": done.value_paid_out,
        "new_principal": done.new_principal,
        "new_balance": done.new_balance,
        "collateral_usd_values": list(done.collateral_values),
    }


def _quote_collateral(case: Case) -> Case:
    amount = comet.quote_collateral(
        int(case["base_amount"]),
        comet.Base(int(case["base_price"]), int(case["base_scale"])),
        price=int(case["asset_price"]),
        scale=int(case["asset_scale"]),
        liquidation_factor=int(case["liquidation_factor"]),
        store_front_factor=int(case["store_front_price_factor"]),
    )
    return {"collateral_amount": amount}


CHECKS = {
    "account_state": lambda inputs: [_account_state(case) for case in inputs],
    "present_value": lambda inputs: [_present_value(case) for case in inputs],
    "absorb": lambda inputs: [_absorb(case) for case in inputs],
    "quote_collateral": lambda inputs: [_quote_collateral(case) for case in inputs],
}
