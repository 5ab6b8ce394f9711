"""Checks of `venues/okx.json`, through `adapters.okx.mechanics`; results are exact."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from adapters.okx import mechanics
from adapters.okx.mechanics import DiscountTier, Margin, RiskParts

Case = dict[str, Any]
Cases = list[Case]


def _exact(value: Any) -> Fraction:
    return Fraction(str(value))


def _bound(value: Any) -> Fraction | None:
    return None if value is None else _exact(value)


def okx_pm_unit(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        delta = _exact(case["delta_usd"])
        parts = RiskParts(
            mr1=mechanics.spot_shock([-_exact(case["mr1_loss_at_max_move"])]),
            mr2=Fraction(0),
            mr3=Fraction(0),
            mr4=mechanics.basis_risk([delta], [_exact(case["mr4_rate"])]),
            mr5=Fraction(0),
            mr6=mechanics.extreme_move(_exact(case["extreme_loss"])),
            mr7=mechanics.minimum_charge(delta, _exact(case["mr7_rate"])),
        )
        maintenance = mechanics.unit_maintenance(parts)
        result = parts._asdict() | {
            "mmr": maintenance,
            "imr": mechanics.unit_initial(maintenance, _exact(case["im_factor"])),
        }
        del result["mr9"]
        out.append(result)
    return out


def okx_pm_account(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        totals = mechanics.portfolio_totals(
            [Margin(_exact(unit["imr"]), _exact(unit["mmr"])) for unit in case["risk_units"]],
            _exact(case["liabilities_usd"]),
            borrow_initial=_exact(case["borrow_imr_rate"]),
            borrow_maintenance=_exact(case["borrow_mmr_rate"]),
        )
        out.append(
            {
                "deriv_mmr": totals.derivatives.maintenance,
                "borrow_mmr": totals.borrowing.maintenance,
                "borrow_imr": totals.borrowing.initial,
                "total_mmr": totals.total.maintenance,
                "total_imr": totals.total.initial,
            }
        )
    return out


def okx_pm_mr7(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        tiers = [(_bound(bound), _exact(multiplier)) for bound, multiplier in case["tiers"]]
        scaled = mechanics.scaled_minimum_charge(_exact(case["mr7_raw"]), tiers)
        before = _exact(case.get("mr_before_mr7", 0))
        out.append({"mr7_scaled": scaled, "mmr": max(before, scaled)})
    return out


def okx_pm_mmr(inputs: Cases) -> Cases:
    names = ("mr1", "mr2", "mr3", "mr4", "mr5", "mr6", "mr7")
    return [{"mmr": mechanics.unit_maintenance(RiskParts(*(_exact(case[name]) for name in names)))} for case in inputs]


def okx_mcm_discount(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        tiers = [DiscountTier(_exact(floor), _bound(cap), _exact(rate)) for floor, cap, rate in case["tiers"]]
        out.append({"discounted_usd": mechanics.discounted(_exact(case["equity_usd"]), tiers)})
    return out


CHECKS: dict[str, Callable[[Cases], Cases]] = {
    "okx_pm_unit": okx_pm_unit,
    "okx_pm_account": okx_pm_account,
    "okx_pm_mr7": okx_pm_mr7,
    "okx_pm_mmr": okx_pm_mmr,
    "okx_mcm_discount": okx_mcm_discount,
}
