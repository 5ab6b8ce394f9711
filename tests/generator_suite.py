"""Every scenario generator with the law it must follow: what the common suite (`test_generators.py`) runs over.

A generator joins by one entry in `ENTRIES`. Its figures are chosen so that the moments which the suite checks exist up
to the fourth: without it their standard errors would not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import integrate, stats

from aggregator.correlation import correlation_matrix
from aggregator.generators.filtered_historical import FilteredHistorical, filtered_historical
from aggregator.generators.multivariate_t import MultivariateT, multivariate_t
from aggregator.generators.t_copula import (
    MarginLaw,
    ParetoTail,
    TCopula,
    margin_quantile,
    standardised_margin,
    t_copula,
)
from aggregator.history import FactorHistory, VolatilityRule
from aggregator.scenarios import PegDistribution
from aggregator.sobol_points import SobolDesign
from aggregator.volatility_filter import exponential_weighting
from tests.generator_entry import Entry, JointTail, Key, KnownLaw
from tests.jump_and_regime_laws import JUMP_AND_REGIME_ENTRIES
from tests.overlay_laws import OVERLAY_ENTRIES

# ---- t laws ----------------------------------------------------------------------------------------------------------

FACTORS = ("peg:USDC", "price:BTC", "price:ETH", "vol:BTC")
DAILY_STD = {"peg:USDC": 0.0005, "price:BTC": 0.03, "price:ETH": 0.04, "vol:BTC": 0.05}
PAIRS = {("price:BTC", "price:ETH"): 0.8, ("price:BTC", "vol:BTC"): -0.3, ("vol:BTC", "price:ETH"): -0.25}
LOCATION = {"peg:USDC": 0.0, "price:BTC": 0.001, "price:ETH": -0.002, "vol:BTC": 0.003}
MORE_FACTORS = tuple(sorted((*FACTORS, "price:AAVE", "price:DOGE")))
MORE_STD = DAILY_STD | {"price:AAVE": 0.05, "price:DOGE": 0.06}
NU = 9.0
PAIR = ("price:BTC", "price:ETH")
TAIL_LEVELS = (0.05, 0.01, 0.002)


def desk_t(nu: float = 4.0, **options: Any) -> MultivariateT:
    """A multivariate t over four factors."""
    return multivariate_t(FACTORS, DAILY_STD, correlation=correlation_matrix(FACTORS, PAIRS), nu=nu, **options)


def joint_tail(q: float, rho: float, nu: float) -> float:
    """P(X <= x_q, Y <= x_q) of a standard bivariate t: the conditional law of Y is a t with nu + 1."""
    bound = stats.t.ppf(q, nu)

    def density(u: float) -> float:  # substitution x = bound / u keeps the tail in (0, 1]
        x = bound / u
        spread = math.sqrt((nu + x * x) / (nu + 1.0) * (1.0 - rho * rho))
        return stats.t.pdf(x, nu) * stats.t.cdf((bound - rho * x) / spread, nu + 1.0) * -bound / (u * u)

    return integrate.quad(density, 0.0, 1.0, epsabs=0.0, epsrel=1e-10)[0]


def _covariance() -> np.ndarray:
    std = np.array([DAILY_STD[name] for name in FACTORS])
    return correlation_matrix(FACTORS, PAIRS) * np.outer(std, std)


def _mean() -> np.ndarray:
    return np.array([LOCATION[name] for name in FACTORS])


def _of_quantiles(
    mean: np.ndarray, covariance: np.ndarray, quantiles: Mapping[str, Callable[[float], float]]
) -> KnownLaw:
    """A law whose two prices are joined by the t copula with the correlation of the desk."""
    tails = [
        JointTail(PAIR, (quantiles[PAIR[0]](q), quantiles[PAIR[1]](q)), joint_tail(q, PAIRS[PAIR], NU))
        for q in TAIL_LEVELS
    ]
    return KnownLaw(mean, covariance, quantiles, tails)


def _t_quantile(name: str) -> Callable[[float], float]:
    scale = DAILY_STD[name] * math.sqrt((NU - 2.0) / NU)
    return lambda p: LOCATION[name] + scale * float(stats.t.ppf(p, NU))


T_LAW = _of_quantiles(_mean(), _covariance(), {name: _t_quantile(name) for name in FACTORS})


def located_t(key: Key, **options: Any) -> MultivariateT:
    """The multivariate t of the suite."""
    return desk_t(NU, location=LOCATION, **options)


def located_t_points(key: Key) -> MultivariateT:
    """The same law from 8 x 2,048 weighted points."""
    return located_t(key, points=SobolDesign(key, 11))


def _few_and_more_t(key: Key) -> tuple[MultivariateT, MultivariateT]:
    # uncorrelated factors: the mixing matrix does nothing, so not even the shocks may move
    few, more = (
        multivariate_t(names, MORE_STD, correlation=np.eye(len(names)), nu=NU) for names in (FACTORS, MORE_FACTORS)
    )
    return few, more


T_REFUSED: Sequence[tuple[Callable[[], object], str]] = (
    (lambda: multivariate_t(FACTORS, DAILY_STD | {"price:BTC": math.nan}, correlation=np.eye(4), nu=4.0), "price:BTC"),
    (lambda: desk_t(location=LOCATION | {"vol:BTC": math.inf}), "location of vol:BTC"),
    (lambda: desk_t(math.nan), "nu is nan"),
    (lambda: desk_t(horizon_days=math.inf), "horizon_days is inf"),
)


# ---- t copula --------------------------------------------------------------------------------------------------------

PROBABILITIES = np.linspace(0.05, 0.95, 37)


def skewed_margin(skew: float, lower_shape: float, upper_shape: float) -> MarginLaw:
    """Body of a skew normal with Pareto tails."""
    quantiles = stats.skewnorm.ppf(PROBABILITIES, skew)
    lower, upper = (ParetoTail(float(quantiles[i]), k, 0.7) for i, k in ((0, lower_shape), (-1, upper_shape)))
    return MarginLaw(PROBABILITIES, quantiles, lower, upper)


# shapes below 1/4: fourth moments exist
MARGINS = {
    "peg:USDC": skewed_margin(0.0, 0.2, 0.2),
    "price:BTC": skewed_margin(-3.0, 0.2, -0.1),
    "price:ETH": skewed_margin(-1.0, 0.15, 0.0),
    "vol:BTC": skewed_margin(4.0, -0.2, 0.2),
}


def desk_copula(**options: Any) -> TCopula:
    """The t copula of the suite."""
    figures: dict[str, Any] = {"correlation": correlation_matrix(FACTORS, PAIRS), "nu": NU, "location": LOCATION}
    return t_copula(FACTORS, DAILY_STD, MARGINS, **(figures | options))


def _copula_quantile(name: str) -> Callable[[float], float]:
    law = standardised_margin(MARGINS[name], name)
    return lambda p: LOCATION[name] + DAILY_STD[name] * float(margin_quantile(law, np.float64(p)))


def _copula_law() -> KnownLaw:
    # the correlations of X have no closed form; the variances are those asked for
    variances = np.array([DAILY_STD[name] ** 2 for name in FACTORS])
    covariance = np.where(np.eye(len(FACTORS)) > 0.0, variances, np.nan)
    return _of_quantiles(_mean(), covariance, {name: _copula_quantile(name) for name in FACTORS})


COPULA_LAW = _copula_law()


def _few_and_more_copula(key: Key) -> tuple[TCopula, TCopula]:
    margins = MARGINS | dict.fromkeys(("price:AAVE", "price:DOGE"), MARGINS["price:ETH"])
    few, more = (
        t_copula(names, MORE_STD, margins, correlation=np.eye(len(names)), nu=NU) for names in (FACTORS, MORE_FACTORS)
    )
    return few, more


COPULA_REFUSED: Sequence[tuple[Callable[[], object], str]] = (
    (lambda: desk_copula(nu=math.nan), "nu is nan"),
    (lambda: desk_copula(step_days=math.nan), "step_days is nan"),
    (lambda: desk_copula(location=LOCATION | {"vol:BTC": math.nan}), "location of vol:BTC"),
    (lambda: desk_copula(correlation=np.full((4, 4), math.nan)), "correlation of peg:USDC and peg:USDC is nan"),
)


# ---- filtered history ------------------------------------------------------------------------------------------------


def small_history(
    *, dates: int = 300, gaps: bool = True, assets: tuple[str, ...] = ("BTC", "ETH", "SOL")
) -> FactorHistory:
    """A history by hand: SOL lists after 40 % of the dates, the implied volatility of BTC after half of them."""
    values = np.random.default_rng(7).standard_normal((dates, 4))
    z = {"BTC": values[:, 0], "ETH": 0.6 * values[:, 0] + 0.8 * values[:, 1]}
    z["SOL"] = 0.5 * z["BTC"] + 0.3 * z["ETH"] + 0.7 * values[:, 2]
    sources = (*(f"price:{asset}" for asset in assets), "vol:BTC")
    table = np.stack([z[asset] for asset in assets] + [values[:, 3]], axis=1)
    if gaps:
        if "SOL" in assets:
            table[: dates * 2 // 5, assets.index("SOL")] = np.nan
        table[: dates // 2, -1] = np.nan
    own = {"BTC": np.zeros(0), "ETH": np.zeros(0), "SOL": 0.7 * values[dates * 2 // 5 :, 2]}
    betas = {"BTC": [1.0, 0.0], "ETH": [0.0, 1.0], "SOL": [0.5, 0.3]}
    sigma = {"BTC": 0.02, "ETH": 0.03, "SOL": 0.05}
    sigma_next = np.array([sigma[asset] for asset in assets] + [0.06])
    return FactorHistory(
        dates=np.datetime64("2023-01-01") + np.arange(dates),
        sources=sources,
        residuals=table,
        sigma_next=sigma_next,
        variance_next=sigma_next**2,
        floor=0.5 * sigma_next,
        recursions=(exponential_weighting(0.97),) * len(sources),
        anchor_residuals=np.stack([z["BTC"], z["ETH"]], axis=1),
        loadings=np.array([betas[asset] for asset in assets] + [[np.nan, np.nan]]),
        own_residuals=(*(own[asset] for asset in assets), np.zeros(0)),
        columns={name: (column, 1.0) for column, name in enumerate(sources)},
        rules={"vol:ETH": VolatilityRule("price:ETH", -0.4, 0.05)},
        fill_rules={"vol:BTC": VolatilityRule("price:BTC", -0.5, 0.04)},
        diagnostics=(),
        failures=(),
    )


PEGS = {"peg:USDC": PegDistribution(0.0005, 6.0)}
HISTORY_FACTORS = ("peg:USDC", "price:BTC", "price:ETH", "price:SOL", "vol:BTC", "vol:ETH")
FEW_HISTORY_FACTORS = ("peg:USDC", "price:BTC", "price:ETH", "vol:ETH")


def desk_history(
    key: Key, mode: Any = "draw", factors: tuple[str, ...] = FEW_HISTORY_FACTORS, **options: Any
) -> FilteredHistorical:
    """Filtered historical simulation of the history above."""
    return filtered_historical(factors, small_history(), key=key, pegs=PEGS, mode=mode, **options)


def _history_law() -> KnownLaw:
    """The equal mixture of the dates of two columns without gaps, a rule on one of them, a t."""
    history = small_history()
    moves = (history.sigma_next * history.residuals)[:, :2]
    rule = history.rules["vol:ETH"]
    mean = np.concatenate([[0.0], moves.mean(axis=0), [rule.beta * moves[:, 1].mean()]])
    covariance = np.zeros((4, 4))
    covariance[0, 0] = PEGS["peg:USDC"].daily_std ** 2
    load = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, rule.beta]])
    covariance[1:, 1:] = load @ np.cov(moves.T, bias=True) @ load.T
    covariance[3, 3] += rule.eta**2
    return KnownLaw(mean, covariance)


HISTORY_LAW = _history_law()

HISTORY_REFUSED: Sequence[tuple[Callable[[], object], str]] = (
    (lambda: desk_history(jax.random.key(0), horizon_days=math.nan), "horizon_days is nan"),
    (lambda: desk_history(jax.random.key(0), mean_block_steps=math.inf), "mean_block_steps is inf"),
    (lambda: desk_history(jax.random.key(0), date_weights=np.full(300, math.nan)), "date_weights must be finite"),
)


def _few_and_more_history(mode: Any, **options: Any) -> Callable[[Key], tuple[FilteredHistorical, FilteredHistorical]]:
    return lambda key: (desk_history(key, mode, **options), desk_history(key, mode, HISTORY_FACTORS, **options))


ENTRIES: dict[str, Entry] = {
    "multivariate_t": Entry(located_t, T_LAW, _few_and_more_t, T_REFUSED),
    "multivariate_t_points": Entry(located_t_points, T_LAW, None, T_REFUSED),
    "t_copula": Entry(lambda key: desk_copula(), COPULA_LAW, _few_and_more_copula, COPULA_REFUSED),
    "t_copula_points": Entry(lambda key: desk_copula(points=SobolDesign(key, 11)), COPULA_LAW, None, COPULA_REFUSED),
    "filtered_historical_every_date": Entry(
        lambda key: desk_history(key, "every_date"), HISTORY_LAW, _few_and_more_history("every_date"), HISTORY_REFUSED
    ),
    "filtered_historical_drawn": Entry(
        lambda key: desk_history(key, mean_block_steps=4.0),
        HISTORY_LAW,
        _few_and_more_history("draw", mean_block_steps=4.0),
        HISTORY_REFUSED,
    ),
    **JUMP_AND_REGIME_ENTRIES,
    **OVERLAY_ENTRIES,
}
