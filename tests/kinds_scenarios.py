"""Checks of `scenarios.json`: the closed forms of the scenario laws."""

from typing import Any

from aggregator import heston, scenario_laws

Cases = list[dict[str, Any]]


def t_copula_tail_dependence(inputs: Cases) -> Cases:
    found = [
        scenario_laws.t_copula_tail_dependence(degrees_of_freedom=case["nu"], correlation=case["rho"])
        for case in inputs
    ]
    return [{"lambda_lower": f.lower, "lambda_upper": f.upper, "kendall_tau": f.kendall_tau} for f in found]


def _moments(found: scenario_laws.ReturnMoments) -> dict[str, Any]:
    return {
        "kappa": found.drift_correction,
        "mean": found.mean,
        "var": found.variance,
        "skew": found.skewness,
        "exkurt": found.excess_kurtosis,
    }


class _Calls(dict[str, float]):
    """Prices by the strike as the case writes it, computed when they are asked for."""

    def __init__(self, price: Any) -> None:
        super().__init__()
        self._price = price

    def __contains__(self, strike: object) -> bool:
        return True

    def __missing__(self, strike: str) -> float:
        self[strike] = self._price(float(strike))
        return self[strike]


def merton_jump(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        law = {
            "intensity": case["lam"],
            "jump_mean": case["mu_J"],
            "jump_deviation": case["sigma_J"],
            "vol": case["sigma"],
            "years": case["T"],
        }

        def price(strike: float, forward: float = case["F0"], law: dict[str, float] = law) -> float:
            return scenario_laws.merton_jump_option(forward, strike, **law).call

        rows.append({**_moments(scenario_laws.merton_jump_moments(**law)), "call_prices": _Calls(price)})
    return rows


def kou_jump(inputs: Cases) -> Cases:
    return [
        _moments(
            scenario_laws.kou_jump_moments(
                intensity=case["lam"],
                up_probability=case["p_up"],
                up_rate=case["eta_up"],
                down_rate=case["eta_dn"],
                vol=case["sigma"],
                years=case["T"],
            )
        )
        for case in inputs
    ]


def ghskewt_moments(inputs: Cases) -> Cases:
    found = [
        scenario_laws.skewed_t_moments(case["gamma"], case["scale"], degrees_of_freedom=case["nu"]) for case in inputs
    ]
    return [{"mean": f.mean.tolist(), "cov": f.covariance.tolist()} for f in found]


def markov_switching(inputs: Cases) -> Cases:
    found = [scenario_laws.markov_switching_moments(case["P"], case["mu"], case["sigma"]) for case in inputs]
    return [
        {
            "stationary": f.stationary.tolist(),
            "mean": f.mean,
            "var": f.variance,
            "kurtosis": f.kurtosis,
            "autocov_r_lag1": f.autocovariance,
            "autocov_r2_lag1": f.autocovariance_of_squares,
        }
        for f in found
    ]


def ou_exact_step(inputs: Cases) -> Cases:
    found = [
        scenario_laws.mean_reverting_step(
            case["x0"], reversion=case["kappa"], level=case["theta"], deviation=case["sigma"], step=case["dt"]
        )
        for case in inputs
    ]
    return [
        {
            "mean": f.mean,
            "var": f.variance,
            "stationary_var": f.stationary_variance,
            "integral_mean": f.integral_mean,
        }
        for f in found
    ]


def heston_bates_call(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        model = heston.HestonModel(
            initial_variance=case["v0"],
            reversion=case["kappa"],
            level=case["theta"],
            vol_of_variance=case["sigma_v"],
            correlation=case["rho"],
        )
        given = case.get("jump")
        jumps = heston.NormalJumps(given["lam"], given["mu_J"], given["sigma_J"]) if given else None

        def price(
            strike: float,
            case: dict[str, Any] = case,
            model: heston.HestonModel = model,
            jumps: heston.NormalJumps | None = jumps,
        ) -> float:
            return heston.heston_option(case["F0"], strike, model=model, years=case["T"], jumps=jumps).options.call

        rows.append({"calls": _Calls(price), "var_mean": heston.mean_variance(model, years=case["T"])})
    return rows


CHECKS = {
    "t_copula_tail_dependence": t_copula_tail_dependence,
    "merton_jump": merton_jump,
    "kou_jump": kou_jump,
    "ghskewt_moments": ghskewt_moments,
    "markov_switching": markov_switching,
    "ou_exact_step": ou_exact_step,
    "heston_bates_call": heston_bates_call,
}
