"""Checks of `risk_measures.json`: closed forms, and the engine's own estimator for the empirical laws."""

from typing import Any

import jax
import numpy as np

from aggregator import closed_forms, risk

Cases = list[dict[str, Any]]


def gaussian_linear(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        found = closed_forms.gaussian_linear(case["w"], case["cov"], mean=case["mu"], confidence=case["alpha"])
        rows.append(
            {
                "VaR": found.tail.value_at_risk,
                "ES": found.tail.expected_shortfall,
                "euler_ES": found.euler_expected_shortfall.tolist(),
                "euler_VaR": found.euler_value_at_risk.tolist(),
                "sd": found.standard_deviation,
            }
        )
    return rows


def t_linear(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        found = closed_forms.t_linear(case["w"], case["scale"], degrees_of_freedom=case["nu"], confidence=case["alpha"])
        rows.append(
            {
                "VaR": found.tail.value_at_risk,
                "ES": found.tail.expected_shortfall,
                "euler_ES": found.euler_expected_shortfall.tolist(),
                "cov_sd": found.standard_deviation,
            }
        )
    return rows


def lognormal_long_short(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        found = closed_forms.lognormal_long_short(
            case["V"], log_mean=case["mu"], log_sd=case["s"], confidence=case["alpha"]
        )
        rows.append(
            {
                "VaR_long": found.long.value_at_risk,
                "ES_long": found.long.expected_shortfall,
                "VaR_short": found.short.value_at_risk,
                "ES_short": found.short.expected_shortfall,
            }
        )
    return rows


def delta_gamma_normal(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        found = closed_forms.delta_gamma_normal(
            case["delta"],
            case["gamma"],
            covariance=case["cov"],
            theta=case["theta"],
            confidence=case["alpha"],
        )
        rows.append(
            {
                "VaR": found.tail.value_at_risk,
                "ES": found.tail.expected_shortfall,
                "mean": found.mean,
                "sd": found.standard_deviation,
                "skew": found.skewness,
                "exkurt": found.excess_kurtosis,
                "CF_VaR": found.cornish_fisher_value_at_risk,
            }
        )
    return rows


def _revaluation(found: closed_forms.RevaluationRisk) -> dict[str, float]:
    return {"V0": found.value_today, "VaR": found.tail.value_at_risk, "ES": found.tail.expected_shortfall}


def single_option_full_reval(inputs: Cases) -> Cases:
    return [
        _revaluation(
            closed_forms.single_option_full_revaluation(
                case["F"],
                case["K"],
                years=case["T"],
                vol=case["sigma"],
                is_call=case["cp"] > 0,
                quantity=case["qty"],
                horizon_years=case["h"],
                confidence=case["alpha"],
            )
        )
        for case in inputs
    ]


def short_straddle_full_reval(inputs: Cases) -> Cases:
    return [
        _revaluation(
            closed_forms.short_straddle_full_revaluation(
                case["F"],
                case["K"],
                years=case["T"],
                vol=case["sigma"],
                horizon_years=case["h"],
                confidence=case["alpha"],
            )
        )
        for case in inputs
    ]


def empirical(inputs: Cases) -> Cases:
    count = max(len(case["losses"]) for case in inputs)
    losses, weights = np.zeros((len(inputs), count)), np.zeros((len(inputs), count))
    for row, case in enumerate(inputs):
        size = len(case["losses"])
        losses[row, :size] = case["losses"]
        weights[row, :size] = case["weights"] if case.get("weights") is not None else np.full(size, 1.0 / size)
    rows = [risk.padded_scenarios(*pair) for pair in zip(losses, weights, strict=True)]
    found = jax.jit(jax.vmap(lambda loss, weight, a: risk.tail_risk(loss, weight, confidence=a)))(
        np.stack([loss for loss, _ in rows]),
        np.stack([weight for _, weight in rows]),
        np.asarray([case["alpha"] for case in inputs], dtype=np.float64),
    )
    return [
        {"VaR": float(value), "ES": float(shortfall)}
        for value, shortfall in zip(found.value_at_risk, found.expected_shortfall, strict=True)
    ]


def mc_standard_error(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        if case["dist"] == "normal":
            tail = closed_forms.standard_normal_tail(case["alpha"])
        elif case["dist"].startswith("t"):
            tail = closed_forms.standard_t_tail(case["alpha"], degrees_of_freedom=float(case["dist"][1:]))
        else:
            raise ValueError(f"unknown law {case['dist']!r}: expected normal or t<degrees of freedom>")
        error = closed_forms.monte_carlo_standard_error(tail, confidence=case["alpha"], count=case["n"])
        rows.append(
            {
                "VaR": tail.value_at_risk,
                "ES": tail.expected_shortfall,
                "se_VaR": error.value_at_risk,
                "se_ES": error.expected_shortfall,
            }
        )
    return rows


CHECKS = {
    "gaussian_linear": gaussian_linear,
    "t_linear": t_linear,
    "lognormal_long_short": lognormal_long_short,
    "delta_gamma_normal": delta_gamma_normal,
    "single_option_full_reval": single_option_full_reval,
    "short_straddle_full_reval": short_straddle_full_reval,
    "empirical": empirical,
    "mc_standard_error": mc_standard_error,
}
