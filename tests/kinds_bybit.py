"""Checks of `venues/bybit.json`, through `adapters.bybit.mechanics`; results are exact."""

from fractions import Fraction
from typing import Any

from adapters.bybit import mechanics
from adapters.bybit.mechanics import CollateralTier, OptionRates, RiskTier

Case = dict[str, Any]
Cases = list[Case]


def _exact(value: Any) -> Fraction:
    return Fraction(str(value))


def _limit(value: Any) -> Fraction | None:
    return None if value is None else _exact(value)


def bybit_option_cross(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        rates = OptionRates(*(_exact(case[key]) for key in ("im_factor_1", "im_factor_2", "mm_factor", "liq_fee_rate")))
        margin = mechanics.option_margin(
            _exact(case["size"]),
            is_call=case["is_call"],
            index_price=_exact(case["index_price"]),
            strike=_exact(case["strike"]),
            entry_price=_exact(case["entry_price"]),
            mark_price=_exact(case["mark_price"]),
            rates=rates,
        )
        out.append({"position_im": margin.initial, "position_mm": margin.maintenance})
    return out


def tiered_mm(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        tiers = [RiskTier(_limit(limit), _exact(rate)) for limit, rate in case["tiers"]]
        value = case.get("position_value")
        if value is None:
            value = mechanics.position_value(_exact(case["contracts"]), _exact(case["price"]), inverse=True)
        value = _exact(value)
        out.append(
            {
                "position_value": value,
                "im": mechanics.initial_margin(value, _exact(case["leverage"])),
                "mm": mechanics.maintenance_margin(value, tiers),
                "deductions": mechanics.deductions(tiers),
            }
        )
    return out


def collateral_tiers(inputs: Cases) -> Cases:
    return [
        {
            "margin_usd": mechanics.collateral_value(
                _exact(case["quantity"]),
                _exact(case["usd_index_price"]),
                [CollateralTier(_limit(limit), _exact(ratio)) for limit, ratio in case["tiers"]],
            )
        }
        for case in inputs
    ]


CHECKS = {
    "bybit_option_cross": bybit_option_cross,
    "tiered_mm": tiered_mm,
    "collateral_tiers": collateral_tiers,
}
