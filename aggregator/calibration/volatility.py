"""GARCH(1,1) and GJR-GARCH by Gaussian quasi maximum likelihood.

sigma2_{t+1} = omega + (alpha + gamma 1{r_t < 0}) r_t^2 + beta sigma2_t, started at the mean square of the sample.
Bollerslev, Generalized autoregressive conditional heteroskedasticity, J. Econometrics 31 (1986); Glosten, Jagannathan
and Runkle, J. Finance 48 (1993). Returns are taken about zero, as everywhere in this project: a day's drift is far
below its standard deviation and would only add noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.signal import lfilter

LARGEST_PERSISTENCE = 0.999
"""Bound of alpha + gamma/2 + beta, so that a long-run variance exists."""

MINIMUM_RETURNS = 100

_STARTS = ((0.95, 0.10), (0.99, 0.04))
"""Persistence and news share that the search starts from; the better end wins."""


class GarchFit(NamedTuple):
    """Fitted recursion; `log_likelihood` is Gaussian, `form` garch (gamma 0) or gjr, `returns` how many were used."""

    form: str
    omega: float
    alpha: float
    gamma: float
    beta: float
    log_likelihood: float
    returns: int

    @property
    def persistence(self) -> float:
        """alpha + gamma/2 + beta: the factor by which an excess variance shrinks per day."""
        return self.alpha + self.gamma / 2.0 + self.beta

    @property
    def long_run_variance(self) -> float:
        """omega / (1 - persistence), per day."""
        return self.omega / (1.0 - self.persistence)


def garch_variance(
    returns: np.ndarray, *, omega: float, alpha: float, gamma: float, beta: float, start: float
) -> np.ndarray:
    """Variance [dates + 1] known before each date, from `start` on; the last entry is that of the next day.

    Missing returns are not allowed: drop them first.
    """
    news = omega + (alpha + gamma * (returns < 0.0)) * returns**2
    later, _ = lfilter([1.0], [1.0, -beta], news, zi=np.array([beta * start]))
    return np.concatenate([[start], later])


def garch_log_likelihood(
    returns: np.ndarray, *, omega: float, alpha: float, gamma: float, beta: float, start: float
) -> float:
    """Gaussian log-likelihood of the returns [dates] under the recursion."""
    variance = garch_variance(returns, omega=omega, alpha=alpha, gamma=gamma, beta=beta, start=start)[:-1]
    return float(-0.5 * np.sum(math.log(2.0 * math.pi) + np.log(variance) + returns**2 / variance))


def garch_fit(returns: np.ndarray, *, leverage: bool | None = None) -> GarchFit:
    """Quasi maximum likelihood on the returns [dates] that are not NaN, taken as consecutive.

    `leverage` False fits GARCH, True GJR; None fits both and takes GJR only if it has the lower Bayesian information
    criterion. Parameters obey omega > 0, alpha >= 0, alpha + gamma >= 0, beta >= 0, persistence <= 0.999. Raises
    ValueError with fewer than `MINIMUM_RETURNS` returns or when all are zero.
    """
    sample = returns[np.isfinite(returns)]
    if len(sample) < MINIMUM_RETURNS:
        raise ValueError(f"{len(sample)} returns; at least {MINIMUM_RETURNS} are needed for GARCH")
    size = float(np.sqrt(np.mean(sample**2)))
    if not size > 0.0:
        raise ValueError("the returns are all zero")
    scaled = sample / size
    if leverage is not None:
        return _rescaled(_best(scaled, leverage), size)
    plain, tilted = _best(scaled, False), _best(scaled, True)
    # one parameter more has to earn half the logarithm of the sample size
    gain = tilted.log_likelihood - plain.log_likelihood
    return _rescaled(tilted if gain > 0.5 * math.log(len(sample)) else plain, size)


def _best(scaled: np.ndarray, leverage: bool) -> GarchFit:
    fits = [_searched(scaled, leverage, persistence, share) for persistence, share in _STARTS]
    return max(fits, key=lambda fit: fit.log_likelihood)


def _searched(scaled: np.ndarray, leverage: bool, persistence: float, share: float) -> GarchFit:
    """Search over log long-run variance, persistence, its news share, and the share of alpha in that (1: gamma = 0)."""
    symmetry = (0.0, 2.0) if leverage else (1.0, 1.0)
    bounds = [(-3.0, 3.0), (0.0, LARGEST_PERSISTENCE), (1e-4, 1.0), symmetry]
    begin = np.array([0.0, persistence, share, 1.0])
    # SLSQP because the linear algebra inside L-BFGS-B starts threads for four variables and takes 40 times as long
    found = minimize(
        _cost, begin, args=(scaled,), jac=True, method="SLSQP", bounds=bounds, options={"maxiter": 200, "ftol": 1e-11}
    )
    omega, alpha, gamma, beta = _parameters(found.x)
    form = "gjr" if leverage else "garch"
    return GarchFit(
        form, omega, alpha, gamma, beta, _log_likelihood_of_cost(float(found.fun), len(scaled)), len(scaled)
    )


def _cost(point: np.ndarray, scaled: np.ndarray) -> tuple[float, np.ndarray]:
    """Half the mean of log sigma2 + r^2 / sigma2, and its gradient in the four search variables."""
    omega, alpha, gamma, beta = _parameters(point)
    squares = scaled**2
    fallen = squares * (scaled < 0.0)
    variance = garch_variance(scaled, omega=omega, alpha=alpha, gamma=gamma, beta=beta, start=1.0)[:-1]
    # the derivatives of the variance obey the recursion of the variance, each with a source of its own, from 0
    sources = np.stack([np.ones_like(squares), squares, fallen, variance])
    slopes = np.zeros_like(sources)
    slopes[:, 1:] = lfilter([1.0], [1.0, -beta], sources[:, :-1], axis=1)
    outer = 0.5 * (1.0 / variance - squares / variance**2)
    inner = (slopes * outer).mean(axis=1)
    cost = 0.5 * float(np.mean(np.log(variance) + squares / variance))
    level, persistence, share, symmetry = (float(value) for value in point)
    news = persistence * share
    chain = np.array(
        [
            [omega, 0.0, 0.0, 0.0],
            [-math.exp(level), share * symmetry, 2.0 * share * (1.0 - symmetry), 1.0 - share],
            [0.0, persistence * symmetry, 2.0 * persistence * (1.0 - symmetry), -persistence],
            [0.0, news, -2.0 * news, 0.0],
        ]
    )
    return cost, (chain * inner).sum(axis=1)


def _log_likelihood_of_cost(cost: float, returns: int) -> float:
    return -returns * (cost + 0.5 * math.log(2.0 * math.pi))


def _parameters(point: np.ndarray) -> tuple[float, float, float, float]:
    level, persistence, share, symmetry = (float(value) for value in point)
    news = persistence * share
    omega = math.exp(level) * (1.0 - persistence)
    return omega, news * symmetry, 2.0 * news * (1.0 - symmetry), persistence * (1.0 - share)


def _rescaled(fit: GarchFit, size: float) -> GarchFit:
    shift = fit.returns * math.log(size)
    return fit._replace(omega=fit.omega * size**2, log_likelihood=fit.log_likelihood - shift)
