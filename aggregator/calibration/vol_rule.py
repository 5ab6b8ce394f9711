"""How implied volatility answers to price: the change of its log on the return and on the size of the return.

dln sigma = beta r + beta_abs (|r| - E|r|) + eta Z. The linear term alone misses that implied volatility rises on large
moves of either sign.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class VolRule(NamedTuple):
    """Least squares with and without the |r| term; `eta` and `eta_linear` are the residuals' standard deviations.

    `standard_errors` are those of (beta, beta_abs), ordinary least squares.
    """

    beta: float
    beta_abs: float
    mean_abs: float
    eta: float
    r_squared: float
    beta_linear: float
    eta_linear: float
    r_squared_linear: float
    standard_errors: tuple[float, float]
    days: int


def vol_rule_fit(changes: np.ndarray, returns: np.ndarray, *, minimum_days: int = 30) -> VolRule:
    """Regression of log implied volatility changes [dates] on returns [dates], over the dates that have both.

    Through the origin: |r| is taken about its mean, and a drift of implied volatility is not carried into scenarios.
    Raises ValueError with fewer than `minimum_days` dates or returns that do not vary.
    """
    both = np.isfinite(changes) & np.isfinite(returns)
    days = int(np.count_nonzero(both))
    if days < minimum_days:
        raise ValueError(
            f"{days} days with both a return and a change of implied volatility; {minimum_days} are needed"
        )
    y, r = changes[both], returns[both]
    mean_abs = float(np.mean(np.abs(r)))
    design = np.stack([r, np.abs(r) - mean_abs], axis=1)
    gram = design.T @ design
    if not np.linalg.det(gram) > 0.0:
        raise ValueError("the returns do not vary in size")
    coefficients = np.linalg.solve(gram, design.T @ y)
    rest = y - design @ coefficients
    linear = float(np.sum(r * y) / np.sum(r * r))
    rest_linear = y - linear * r
    total = float(np.mean(y**2))
    eta, eta_linear = float(np.sqrt(np.mean(rest**2))), float(np.sqrt(np.mean(rest_linear**2)))
    errors = eta * np.sqrt(np.diag(np.linalg.inv(gram)))
    return VolRule(
        beta=float(coefficients[0]),
        beta_abs=float(coefficients[1]),
        mean_abs=mean_abs,
        eta=eta,
        r_squared=max(1.0 - eta**2 / total, 0.0) if total > 0.0 else 0.0,
        beta_linear=linear,
        eta_linear=eta_linear,
        r_squared_linear=max(1.0 - eta_linear**2 / total, 0.0) if total > 0.0 else 0.0,
        standard_errors=(float(errors[0]), float(errors[1])),
        days=days,
    )
