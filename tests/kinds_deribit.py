"""Checks of `venues/deribit.json`, through `adapters.deribit.mechanics`; results are exact."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from adapters.deribit import mechanics
from adapters.deribit.mechanics import MatrixParameters, MatrixPosition, OptionRates

Case = dict[str, Any]
Cases = list[Case]

# m_inc of the documented example: the cases of the matrix state no figure, and it matters above the threshold only.
DELTA_INCREMENT = Fraction(5, 100_000)
# of every case: 15 %, at least 10 %, 7.5 % (doc.tslab.pro, "Deribit margin requirements calculation")
OPTION_RATES = OptionRates(Fraction("0.15"), Fraction("0.1"), Fraction("0.075"), Fraction("0.075"))


def _exact(value: Any) -> Fraction:
    return Fraction(str(value))


def _parameters(params: Case) -> MatrixParameters:
    return MatrixParameters(
        price_range=_exact(params["price_range"]),
        buckets_each_side=int(params["buckets_each_side"]),
        vol_scenarios=int(params["vol_scenarios"]),
        pnl_offset=_exact(params["pnl_offset"]),
        annualised_move_risk=_exact(params["annualised_move_risk"]),
        min_annualised_move=_exact(params["min_annualised_move"]),
        extended_dampener_usd=_exact(params["extended_dampener_usd"]),
        extended_table_factor=_exact(params["extended_table_factor"]),
        delta_threshold_usd=_exact(params["delta_total_liq_shock_threshold_usd"]),
        max_delta_shock=_exact(params["max_delta_shock"]),
        maintenance_factor=_exact(params["mm_factor"]),
        delta_increment=DELTA_INCREMENT,
    )


def deribit_pm_matrix(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        index, parameters = _exact(case["index_price"]), _parameters(case["params"])
        # The mark of a future drops out of its profit in coins, so any price does.
        held = [
            MatrixPosition(p["instrument"], _exact(p["size_base"]), index, _exact(p["years_to_expiry"]))
            for p in case["positions"]
        ]
        matrix = mechanics.risk_matrix(held, parameters, index_price=index, in_coin=True)
        other = case["other"]
        margin = mechanics.portfolio_margin(
            matrix.margin,
            parameters.maintenance_factor,
            spot=_exact(other["spot_margin"]),
            market_maker_protection=_exact(other["mmp_margin"]),
            open_orders=_exact(other["open_orders_margin"]),
        )
        result: Case = {
            "aggregated_standard_first": matrix.standard[0],
            "aggregated_extended": list(matrix.extended),
            "worst_case": matrix.worst.loss,
            "worst_case_index": matrix.worst.place,
            "delta_shock": matrix.delta_shock,
            "roll_shock": matrix.roll_shock,
            "risk_matrix_margin": matrix.margin,
            "initial_margin": margin.initial,
            "maintenance_margin": margin.maintenance,
        }
        for position in held:
            own = mechanics.standard_vector([position], parameters, in_coin=True)
            if position.years == 0 and "perp_extended" not in result:
                result |= {"perp_standard_first": own[0], "perp_standard_last": own[-1]}
                result["perp_extended"] = mechanics.extended_vector([position], parameters, in_coin=True)
            elif position.years > 0 and "future_standard_first" not in result:
                result["future_standard_first"] = own[0]
        out.append(result)
    return out


def deribit_sm_linear(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        margin = mechanics.linear_future_margin(
            _exact(case["size"]),
            _exact(case["index_price"]),
            initial=_exact(case["im_base"]),
            maintenance=_exact(case["mm_base"]),
            slope=_exact(case["slope_per_coin"]),
        )
        out.append({"im": margin.initial, "mm": margin.maintenance})
    return out


def deribit_sm_inverse_option(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        margin = mechanics.inverse_option_margin(
            case["is_call"],
            _exact(case["size"]),
            strike=_exact(case["strike"]),
            index_price=_exact(case["index_price"]),
            mark_price=_exact(case["mark_price_base"]),
            rates=OPTION_RATES,
        )
        out.append({"im_base": margin.initial, "mm_base": margin.maintenance})
    return out


CHECKS: dict[str, Callable[[Cases], Cases]] = {
    "deribit_pm_matrix": deribit_pm_matrix,
    "deribit_sm_linear": deribit_sm_linear,
    "deribit_sm_inverse_option": deribit_sm_inverse_option,
}
