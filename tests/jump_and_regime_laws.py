"""Jump diffusion, regime switching and a mixture with their laws of one step, for the common suite and their own tests.

Given the counts of jumps, the regime or the component, every factor is normal or t; the laws here are the mixtures of
those, written anew from the formulas and not from the generators.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from aggregator.generators.merton_jumps import CommonJumps, FactorJumps, MertonJumps, merton_jumps
from aggregator.generators.mixture import Component, Mixture, mixture
from aggregator.generators.multivariate_t import MultivariateT, multivariate_t
from aggregator.generators.regime_switching import RegimeLaw, RegimeSwitching, regime_switching
from tests.generator_entry import Entry, JointTail, KnownLaw

FACTORS = ("peg:USDC", "price:BTC", "price:ETH", "vol:BTC")
STD = {"peg:USDC": 0.0005, "price:BTC": 0.03, "price:ETH": 0.04, "vol:BTC": 0.05}
MEAN = {"peg:USDC": 0.0, "price:BTC": 0.001, "price:ETH": -0.002, "vol:BTC": 0.003}
PAIR = ("price:BTC", "price:ETH")
CORRELATION = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.8, -0.3], [0.0, 0.8, 1.0, -0.25], [0.0, -0.3, -0.25, 1.0]])
DAYS_PER_YEAR = 365.0
TAIL_LEVELS = (0.05, 0.01, 0.002)
MISSING_MASS = 1e-10  # of the counts of jumps that the laws here leave out


class Normal(NamedTuple):
    """One normal member of a mixture: probability, mean [factors], covariance [factors, factors]."""

    weight: float
    mean: np.ndarray
    covariance: np.ndarray


def mixed_law(factors: Sequence[str], members: Sequence[Normal], pair: tuple[str, str]) -> KnownLaw:
    """Moments, quantiles and joint tails of a mixture of normals."""
    weights = np.array([m.weight for m in members])
    means, covariances = np.array([m.mean for m in members]), np.array([m.covariance for m in members])
    mean = weights @ means
    off = means - mean
    covariance = np.einsum("k,kij->ij", weights, covariances) + np.einsum("k,ki,kj->ij", weights, off, off)

    def quantile_of(place: int) -> Callable[[float], float]:
        std = np.sqrt(covariances[:, place, place])

        def below(x: float) -> float:
            return float(weights @ stats.norm.cdf(x, means[:, place], std))

        width = 60.0 * math.sqrt(covariance[place, place])
        return lambda p: float(optimize.brentq(lambda x: below(x) - p, mean[place] - width, mean[place] + width))

    places = [factors.index(name) for name in pair]
    quantiles = {name: quantile_of(place) for place, name in enumerate(factors) if not name.startswith("depth:")}
    tails = []
    for level in TAIL_LEVELS:
        bounds = (quantiles[pair[0]](level), quantiles[pair[1]](level))
        joint = [
            stats.multivariate_normal.cdf(bounds, m.mean[places], m.covariance[np.ix_(places, places)]) for m in members
        ]
        tails.append(JointTail(pair, bounds, float(weights @ joint)))
    return KnownLaw(mean, covariance, quantiles, tails)


# ---- jumps -----------------------------------------------------------------------------------------------------------

COMMON = CommonJumps(per_year=0.2 * DAYS_PER_YEAR, mean=-0.05, std=0.03)
JUMPS = {
    "price:BTC": FactorJumps(beta=0.8, per_year=0.1 * DAYS_PER_YEAR, mean=0.02, std=0.05),
    "price:ETH": FactorJumps(beta=1.1, per_year=0.3 * DAYS_PER_YEAR, mean=-0.03, std=0.02),
    "vol:BTC": FactorJumps(beta=-2.0, per_year=0.0, mean=0.0, std=0.0),
}


def desk_jumps(**options: Any) -> MertonJumps:
    """The jump diffusion of the suite."""
    figures: dict[str, Any] = {"correlation": CORRELATION, "common": COMMON, "location": MEAN}
    return merton_jumps(FACTORS, STD, JUMPS, **(figures | options))


PRICES = ("price:BTC", "price:ETH")


def price_jumps(names: tuple[str, ...] = PRICES) -> MertonJumps:
    """Martingales over half a day with an uncorrelated diffusion: only the common jumps join them."""
    jumps = {name: JUMPS.get(name, JUMPS["price:BTC"]) for name in names}
    std = dict.fromkeys(names, 0.05) | {name: STD[name] for name in names if name in STD}
    correlation = np.eye(len(names))
    return merton_jumps(names, std, jumps, correlation=correlation, common=COMMON, step_days=0.5, location="martingale")


def jump_members() -> list[Normal]:
    """The law of `desk_jumps` given its three counts."""
    std = np.array([STD[name] for name in FACTORS])
    diffusion = CORRELATION * np.outer(std, std)
    beta = np.array([JUMPS[name].beta if name in JUMPS else 0.0 for name in FACTORS])
    own = [(FACTORS.index(name), law) for name, law in JUMPS.items() if law.per_year > 0.0]
    rates = [COMMON.per_year / DAYS_PER_YEAR, *(law.per_year / DAYS_PER_YEAR for _, law in own)]
    counts = [range(int(stats.poisson.isf(MISSING_MASS, rate)) + 2) for rate in rates]
    drift = np.array([MEAN[name] for name in FACTORS]) - beta * rates[0] * COMMON.mean
    for rate, (place, law) in zip(rates[1:], own, strict=True):
        drift[place] -= rate * law.mean
    members = []
    for numbers in itertools.product(*counts):
        weight = math.prod(stats.poisson.pmf(n, rate) for n, rate in zip(numbers, rates, strict=True))
        if weight < MISSING_MASS:
            continue
        mean = drift + beta * numbers[0] * COMMON.mean
        covariance = diffusion + np.outer(beta, beta) * numbers[0] * COMMON.std**2
        for n, (place, law) in zip(numbers[1:], own, strict=True):
            mean[place] += n * law.mean
            covariance[place, place] += n * law.std**2
        members.append(Normal(weight, mean, covariance))
    return members


JUMPS_REFUSED = (
    (lambda: desk_jumps(location=MEAN | {"vol:BTC": math.inf}), "location of vol:BTC is inf"),
    (lambda: desk_jumps(step_days=math.nan), "step_days is nan"),
    (lambda: desk_jumps(common=COMMON._replace(mean=math.nan)), "mean of the common jumps is nan"),
    (lambda: desk_jumps(common=COMMON._replace(per_year=-1.0)), "per_year of the common jumps is -1.0"),
    (lambda: desk_jumps(common=COMMON._replace(per_year=2e4)), "common jumps: 54.7945 are expected in a step"),
    (lambda: desk_jumps(correlation=np.full((4, 4), math.nan)), "correlation of peg:USDC and peg:USDC is nan"),
    (
        lambda: merton_jumps(FACTORS, STD | {"price:ETH": 0.0}, JUMPS, correlation=CORRELATION),
        "diffusive_std of price:ETH is 0.0",
    ),
    (
        lambda: merton_jumps(FACTORS, STD, {"price:SOL": JUMPS["price:BTC"]}, correlation=CORRELATION),
        "jumps of price:SOL: it is not a factor",
    ),
    (
        lambda: merton_jumps(
            FACTORS, STD, {"price:BTC": JUMPS["price:BTC"]._replace(std=math.inf)}, correlation=CORRELATION
        ),
        "std of the jumps of price:BTC is inf",
    ),
    (
        lambda: merton_jumps(
            FACTORS, STD, {"price:BTC": JUMPS["price:BTC"]._replace(beta=math.nan)}, correlation=CORRELATION
        ),
        "jump beta of price:BTC is nan",
    ),
    (
        lambda: merton_jumps(
            FACTORS,
            STD,
            {"price:BTC": JUMPS["price:BTC"]._replace(std=40.0)},
            correlation=CORRELATION,
            location="martingale",
        ),
        "jumps of price:BTC lift its price",
    ),
)


# ---- regimes ---------------------------------------------------------------------------------------------------------

TRANSITION = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.4, 0.6]])
FILTERED = (0.6, 0.3, 0.1)
REGIME_FACTORS = (*FACTORS[:1], "depth:BTC", *FACTORS[1:])
WILD = np.where(np.eye(4) > 0.0, 1.0, np.where(CORRELATION > 0.5, 0.95, CORRELATION))
REGIMES = {
    "calm": RegimeLaw(STD, CORRELATION),
    "ordinary": RegimeLaw({name: 2.0 * std for name, std in STD.items()}, np.eye(4), MEAN, 0.5),
    "wild": RegimeLaw(
        {name: 4.0 * std for name, std in STD.items()}, WILD, {name: -5.0 * mean for name, mean in MEAN.items()}, 0.1
    ),
}


def desk_regimes(**options: Any) -> RegimeSwitching:
    """The regime switching of the suite."""
    figures: dict[str, Any] = {"transition": TRANSITION, "filtered": FILTERED}
    return regime_switching(REGIME_FACTORS, REGIMES, **(figures | options))


def regime_members() -> list[Normal]:
    """The law of `desk_regimes` given the regimes of today and of the step."""
    laws = list(REGIMES.values())
    members = []
    depth = REGIME_FACTORS.index("depth:BTC")
    for before, after in itertools.product(range(3), range(3)):
        law = laws[after]
        std = np.array([law.daily_std[name] for name in FACTORS])
        mean = np.array([0.0 if law.location is None else law.location[name] for name in FACTORS])
        covariance = np.insert(law.correlation * np.outer(std, std), depth, 0.0, axis=0)
        members.append(
            Normal(
                FILTERED[before] * TRANSITION[before, after],
                np.insert(mean, depth, math.log(law.depth / laws[before].depth)),
                np.insert(covariance, depth, 0.0, axis=1),
            )
        )
    return members


def _with_regime(name: str, **changes: Any) -> dict[str, RegimeLaw]:
    return REGIMES | {name: REGIMES[name]._replace(**changes)}


def _regimes(regimes: dict[str, RegimeLaw], factors: tuple[str, ...] = REGIME_FACTORS) -> RegimeSwitching:
    return regime_switching(factors, regimes, transition=TRANSITION, filtered=FILTERED)


REGIMES_REFUSED = (
    (
        lambda: _regimes(_with_regime("wild", daily_std=STD | {"price:ETH": math.nan})),
        "regime wild of price:ETH is nan",
    ),
    (lambda: _regimes(_with_regime("wild", daily_std={"price:ETH": 1.0})), "regime wild has no figure for peg:USDC"),
    (lambda: _regimes(_with_regime("calm", daily_std=STD | {"price:ETH": -1.0})), "price:ETH in regime calm is -1.0"),
    (lambda: _regimes(_with_regime("wild", location=MEAN | {"vol:BTC": math.inf})), "regime wild of vol:BTC is inf"),
    (lambda: _regimes(_with_regime("calm", depth=0.0)), "depth in regime calm is 0.0"),
    (lambda: _regimes(_with_regime("wild", correlation=2.0 * np.eye(4))), "regime wild: correlation of peg:USDC"),
    (lambda: _regimes({"calm": REGIMES["calm"]}), "1 regimes; expected 2 or 3"),
    (lambda: _regimes(REGIMES, ("depth:BTC",)), "needs a factor beside depths"),
    (lambda: desk_regimes(filtered=(0.5, 0.5, 0.5)), "filtered adds up to 1.5"),
    (lambda: desk_regimes(filtered=(0.5, 0.5)), "filtered has shape"),
    (lambda: desk_regimes(transition=TRANSITION[:2]), "transition has shape"),
    (lambda: desk_regimes(transition=TRANSITION * 1.01), "transition from calm adds up to 1.01"),
    (lambda: desk_regimes(transition=-TRANSITION), "transition from calm: the probability of calm is -0.9"),
    (lambda: desk_regimes(nu=2.0), "nu is 2.0"),
    (lambda: desk_regimes(step_days=math.inf), "step_days is inf"),
)


# ---- mixtures --------------------------------------------------------------------------------------------------------

WEIGHTS = {"current": 0.75, "stressed": 0.25}
NU = 9.0
STRESSED = 2.5


def desk_t(widening: float = 1.0, factors: Sequence[str] = FACTORS) -> MultivariateT:
    """A t law; the stressed one is wider and uncorrelated."""
    places = [FACTORS.index(name) for name in factors]
    correlation = CORRELATION if widening == 1.0 else np.eye(4)
    std = {name: widening * value for name, value in STD.items()}
    return multivariate_t(factors, std, correlation=correlation[np.ix_(places, places)], nu=NU, location=MEAN)


def desk_mixture() -> Mixture:
    """The mixture of the suite."""
    return mixture(
        {
            "current": Component(WEIGHTS["current"], desk_t()),
            "stressed": Component(WEIGHTS["stressed"], desk_t(STRESSED)),
        }
    )


def _mixture_law() -> KnownLaw:
    std = np.array([STD[name] for name in FACTORS])
    outer = np.outer(std, std)
    covariance = WEIGHTS["current"] * CORRELATION * outer + WEIGHTS["stressed"] * STRESSED**2 * np.diag(std**2)

    def quantile_of(name: str) -> Callable[[float], float]:
        scale = STD[name] * math.sqrt((NU - 2.0) / NU)

        def below(x: float) -> float:
            off = (x - MEAN[name]) / scale
            return float(
                WEIGHTS["current"] * stats.t.cdf(off, NU) + WEIGHTS["stressed"] * stats.t.cdf(off / STRESSED, NU)
            )

        return lambda p: float(optimize.brentq(lambda x: below(x) - p, -100.0 * scale, 100.0 * scale))

    return KnownLaw(np.array([MEAN[name] for name in FACTORS]), covariance, {n: quantile_of(n) for n in FACTORS})


def _blend(second: Component, first: Component | None = None) -> Mixture:
    return mixture({"current": first or Component(0.5, desk_t()), "other": second})


MIXTURE_REFUSED = (
    (lambda: _blend(Component(math.nan, desk_t())), "weight of component other is nan"),
    (lambda: _blend(Component(0.0, desk_t())), "weight of component other is 0.0"),
    (lambda: _blend(Component(0.6, desk_t())), "add up to 1.1"),
    (lambda: mixture({"current": Component(1.0, desk_t())}), "a mixture of 1 components"),
    (lambda: _blend(Component(0.5, desk_t(factors=FACTORS[:3]))), "other lacks vol:BTC$"),
    (
        lambda: _blend(Component(0.5, desk_regimes())),
        "current and other move different factors: other has depth:BTC more",
    ),
    (lambda: _blend(Component(0.5, desk_t(factors=FACTORS[::-1]))), "other has them in another order, vol:BTC"),
)


JUMP_AND_REGIME_ENTRIES: dict[str, Entry] = {
    "merton_jumps": Entry(
        lambda key: desk_jumps(),
        mixed_law(FACTORS, jump_members(), PAIR),
        lambda key: (price_jumps(), price_jumps(("price:AAVE", *PRICES, "price:SOL"))),
        JUMPS_REFUSED,
    ),
    "regime_switching": Entry(
        lambda key: desk_regimes(), mixed_law(REGIME_FACTORS, regime_members(), PAIR), None, REGIMES_REFUSED
    ),
    "mixture": Entry(lambda key: desk_mixture(), _mixture_law(), None, MIXTURE_REFUSED),
}
