"""t copula: the laws of the margins and their tables, the tails, the dependence, refused laws."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy import integrate, special, stats

from aggregator.errors import ConfigurationError
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.generators.t_copula import (
    MarginLaw,
    ParetoTail,
    TCopula,
    margin_quantile,
    standardised_margin,
    t_copula,
)
from aggregator.scenarios import draw_all, draw_scenarios
from aggregator.sobol_points import SobolDesign
from tests.generator_suite import FACTORS, MARGINS, PROBABILITIES, desk_copula, joint_tail, skewed_margin

RTOL_FLOAT64 = 1e-12  # float64 against float64, a few operations
TABLE_ERROR = 1e-3  # of a standard deviation: what the module states of linear interpolation up to the 0.1 % quantiles
RTOL_TAIL_TABLE = 2e-4  # the same further out, where values are large
STANDARD_ERRORS = 4.0  # of a Monte Carlo estimate at a fixed seed
QUADRATURE = 1e-8  # absolute error that the quadrature asks for
NAMES = ("price:BTC", "price:ETH")
STD = dict.fromkeys(NAMES, 1.0)


class GivenValues(eqx.Module):
    """Stands for the t: scenario s has the value s of a list for every factor."""

    factors: tuple[str, ...] = eqx.field(static=True)
    listed: Array
    degrees_of_freedom: Array

    def start(self, key: Array, index: Array) -> tuple[()]:
        return ()

    def step(self, state: tuple[()], key: Array, index: Array) -> tuple[tuple[()], Array]:
        return state, jnp.full(len(self.factors), self.listed[index])


def one_law(law: MarginLaw, nu: float, *, rho: float = 0.0, **options: Any) -> TCopula:
    """Two factors with the same margin and standard deviation 1."""
    correlation = np.array([[1.0, rho], [rho, 1.0]])
    return t_copula(NAMES, STD, dict.fromkeys(NAMES, law), correlation=correlation, nu=nu, **options)


def at_probabilities(generator: TCopula, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """X of the first factor where T_nu(Y) and 1 - T_nu(Y) are `lower` (256 of them)."""
    nu = generator.dependence.degrees_of_freedom
    y = special.stdtrit(float(nu), lower)
    found = []
    for values in (y, -y):
        given = GivenValues(generator.factors, jnp.asarray(values), nu)
        replaced = eqx.tree_at(lambda g: g.dependence, generator, given)
        found.append(np.asarray(draw_scenarios(replaced, jax.random.key(0), 0, 256))[:, 0])
    return found[0], found[1]


def tail_value(tail: ParetoTail, beyond: float, u: np.ndarray) -> np.ndarray:
    """How far beyond the threshold the law is exceeded with probability `u` <= `beyond`."""
    if tail.shape == 0.0:
        return -tail.scale * np.log(u / beyond)
    return tail.scale * ((u / beyond) ** -tail.shape - 1.0) / tail.shape


@pytest.mark.parametrize("factor", FACTORS)
def test_a_margin_is_brought_to_mean_zero_and_variance_one(factor: str) -> None:
    law = standardised_margin(MARGINS[factor], factor)

    def moment(power: int) -> float:
        def below(s: float) -> float:  # u = exp(-s) takes the infinite end away
            return float(margin_quantile(law, np.exp(-s))) ** power * math.exp(-s)

        def above(s: float) -> float:
            return float(law.upper.threshold + tail_value(law.upper, 0.05, np.exp(-s))) ** power * math.exp(-s)

        tails = sum(integrate.quad(side, -math.log(0.05), 150.0, limit=200)[0] for side in (below, above))
        left, right = np.asarray(law.quantiles)[:-1], np.asarray(law.quantiles)[1:]
        middle = (left + right) / 2.0
        # Simpson's rule is exact: the quantiles are linear between the nodes
        return tails + float(np.diff(PROBABILITIES) @ (left**power + 4.0 * middle**power + right**power)) / 6.0

    assert abs(moment(1)) < QUADRATURE
    assert abs(moment(2) - 1.0) < QUADRATURE
    raw, moved = (margin_quantile(x, PROBABILITIES) for x in (MARGINS[factor], law))
    slopes = np.diff(raw) / np.diff(moved)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-9)  # the shape of the law is left as it was


def test_moments_of_a_margin_that_is_known_exactly() -> None:
    # uniform body between two exponential tails: F(-1) = 0.1, F(1) = 0.9, excesses with mean 1/2
    law = MarginLaw((0.1, 0.9), (-1.0, 1.0), ParetoTail(-1.0, 0.0, 0.5), ParetoTail(1.0, 0.0, 0.5))
    second = 0.8 / 3.0 + 2.0 * 0.1 * (1.0 + 2.0 * 0.5 + 2.0 * 0.25)
    moved = standardised_margin(law, "price:BTC")
    np.testing.assert_allclose(moved.quantiles, np.array([-1.0, 1.0]) / math.sqrt(second), rtol=RTOL_FLOAT64)
    assert math.isclose(moved.upper.scale, 0.5 / math.sqrt(second), rel_tol=RTOL_FLOAT64)
    assert math.isclose(float(margin_quantile(law, np.float64(0.99))), 1.0 + 0.5 * math.log(10.0), rel_tol=1e-9)


@pytest.mark.parametrize("nu", [2.5, 4.0, 30.0])
def test_tables_follow_the_law_from_the_body_into_the_tails(nu: float) -> None:
    law = standardised_margin(skewed_margin(-3.0, 0.25, -0.1), "price:BTC")
    generator = one_law(law, nu)
    middle = np.linspace(1e-3, 0.999, 256)
    below, above = at_probabilities(generator, middle)
    np.testing.assert_allclose(below, margin_quantile(law, middle), rtol=0.0, atol=TABLE_ERROR)
    np.testing.assert_allclose(above, margin_quantile(law, 1.0 - middle), rtol=0.0, atol=TABLE_ERROR)
    assert (np.diff(below) > 0.0).all()
    # far out; beyond 1e-10 only the power law of T_nu is approximate, and better the smaller nu
    for far, rtol in ((np.geomspace(1e-9, 1e-3, 256), RTOL_TAIL_TABLE), (np.geomspace(1e-12, 1e-10, 256), 1e-2)):
        below, above = at_probabilities(generator, far)
        np.testing.assert_allclose(below, law.lower.threshold - tail_value(law.lower, 0.05, far), rtol=rtol)
        np.testing.assert_allclose(above, law.upper.threshold + tail_value(law.upper, 0.05, far), rtol=rtol)
        assert (np.diff(below) > 0.0).all()
        assert (np.diff(above) < 0.0).all()


def test_t_margins_give_the_multivariate_t() -> None:
    nu, key = 4.0, jax.random.key(3)
    probabilities = np.concatenate([np.geomspace(1e-6, 0.01, 300), np.linspace(0.011, 0.5, 300)])
    probabilities = np.concatenate([probabilities, 1.0 - probabilities[-2::-1]])
    quantiles = stats.t.ppf(probabilities, nu)
    # beyond 1e-6 a t is a Pareto law with shape 1 / nu to three digits
    tail = ParetoTail(float(quantiles[-1]), 1.0 / nu, float(quantiles[-1]) / nu)
    law = MarginLaw(probabilities, quantiles, tail._replace(threshold=float(quantiles[0])), tail)
    copula = np.asarray(draw_scenarios(one_law(law, nu, rho=0.7), key, 0, 4096))
    correlation = np.array([[1.0, 0.7], [0.7, 1.0]])
    plain = np.asarray(draw_scenarios(multivariate_t(NAMES, STD, correlation=correlation, nu=nu), key, 0, 4096))
    np.testing.assert_allclose(copula, plain, rtol=2e-3, atol=1e-4)  # linear in the probability between 600 nodes


def test_the_step_scales_the_spread_and_the_location() -> None:
    key = jax.random.key(2)
    day, four = (np.asarray(draw_scenarios(desk_copula(step_days=h, location=None), key, 0, 256)) for h in (1.0, 4.0))
    np.testing.assert_allclose(four, 2.0 * day, rtol=RTOL_FLOAT64)
    drift = dict.fromkeys(FACTORS, 0.01)
    moved = np.asarray(draw_scenarios(desk_copula(step_days=4.0, location=drift), key, 0, 256))
    np.testing.assert_allclose(moved, four + 0.04, rtol=RTOL_FLOAT64, atol=1e-15)


def test_tail_dependence_far_out() -> None:
    nu, rho, q = 4.0, 0.6, 1e-3
    limit = 2.0 * stats.t.cdf(-math.sqrt((nu + 1.0) * (1.0 - rho) / (1.0 + rho)), nu + 1.0)
    law = standardised_margin(MARGINS["price:BTC"], "price:BTC")
    design = SobolDesign(jax.random.key(4), 14)
    drawn = draw_all(one_law(law, nu, rho=rho, points=design), jax.random.key(0))
    shocks, weights = np.asarray(drawn.shocks), np.asarray(drawn.weights)
    for sign, bound in ((1.0, margin_quantile(law, np.float64(q))), (-1.0, margin_quantile(law, np.float64(1.0 - q)))):
        hit = (sign * shocks <= sign * bound).all(axis=1)
        error = math.sqrt(weights**2 @ (hit - weights @ hit) ** 2)
        assert abs(weights @ hit - joint_tail(q, rho, nu)) <= STANDARD_ERRORS * error
        assert error / q < 0.01
        assert abs(weights @ hit / q - limit) < 0.03 + STANDARD_ERRORS * error / q  # the bias is of order q^(2 / nu)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": (0.05, 0.5)}, "two equal rows"),
        ({"probabilities": (0.05, 0.5, math.nan)}, "not a finite number"),
        ({"quantiles": (-1.0, math.inf, 1.0)}, "not a finite number"),
        ({"probabilities": (0.05, 0.5, 0.5)}, "ascend strictly"),
        ({"probabilities": (0.0, 0.5, 0.95)}, "ascend strictly"),
        ({"probabilities": (1e-11, 0.5, 0.95)}, "a probability above"),
        ({"quantiles": (-1.0, -1.5, 1.0)}, "must not descend"),
        ({"lower": ParetoTail(-1.0, math.nan, 1.0)}, "lower tail .* not a finite number"),
        ({"lower": ParetoTail(-1.0, 0.5, 1.0)}, "shape of the lower tail is 0.5"),
        ({"upper": ParetoTail(1.0, 0.2, 0.0)}, "scale of the upper tail is 0.0"),
        ({"upper": ParetoTail(1.1, 0.2, 1.0)}, "threshold of the upper tail is 1.1, and the quantile there 1.0"),
    ],
)
def test_a_margin_that_is_no_law_is_refused(change: dict[str, Any], message: str) -> None:
    law = MarginLaw((0.05, 0.5, 0.95), (-1.0, 0.0, 1.0), ParetoTail(-1.0, 0.2, 1.0), ParetoTail(1.0, 0.2, 1.0))
    with pytest.raises(ConfigurationError, match=f"margin of price:BTC.*{message}"):
        one_law(law._replace(**change), 4.0)


def test_figures_of_the_copula_are_checked() -> None:
    law = MARGINS["price:BTC"]
    for nu in (2.0, math.inf):
        with pytest.raises(ConfigurationError, match=f"nu is {nu}"):
            one_law(law, nu)
    with pytest.raises(ConfigurationError, match="margins has no law for price:ETH"):
        t_copula(NAMES, STD, {"price:BTC": law}, correlation=np.eye(2), nu=4.0)
    with pytest.raises(ConfigurationError, match=r"daily_std of price:ETH is 0\.0"):
        t_copula(NAMES, STD | {"price:ETH": 0.0}, dict.fromkeys(NAMES, law), correlation=np.eye(2), nu=4.0)
    with pytest.raises(ConfigurationError, match=r"step_days is -1\.0"):
        one_law(law, 4.0, step_days=-1.0)
