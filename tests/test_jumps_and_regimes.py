"""Jump diffusion, regime switching and mixtures: what the common suite does not ask of every generator."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from aggregator import scenario_laws
from aggregator.errors import ConfigurationError
from aggregator.generators.merton_jumps import (
    LARGEST_COUNT_MEAN,
    TRUNCATED_MASS,
    FactorJumps,
    merton_jumps,
)
from aggregator.generators.mixture import Component, mixture
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.generators.regime_switching import LARGEST_MISS, RegimeLaw, regime_switching, transition_over
from aggregator.scenarios import draw_paths, draw_scenarios
from tests.jump_and_regime_laws import (
    COMMON,
    FACTORS,
    JUMPS,
    PRICES,
    REGIME_FACTORS,
    REGIMES,
    STD,
    TRANSITION,
    desk_mixture,
    desk_regimes,
    desk_t,
    price_jumps,
)

STANDARD_ERRORS = 4.0  # of a Monte Carlo estimate at a fixed seed
RTOL = 1e-12  # float64 against float64
SEED = 5
KEY = jax.random.key(SEED)
PATHS = 16_384
DAYS_PER_YEAR = 365.0


def assert_mean(values: np.ndarray, expected: float, what: object) -> None:
    """The mean of independent values [n] is the expected one within four standard errors."""
    error = float(np.std(values)) / math.sqrt(len(values))
    assert abs(float(np.mean(values)) - expected) <= STANDARD_ERRORS * error, (what, np.mean(values), expected, error)


# ---- jumps -----------------------------------------------------------------------------------------------------------

STEPS = 3


@functools.cache
def jump_paths() -> np.ndarray:
    """Log-changes [PATHS, STEPS, 2] of the prices above."""
    return np.asarray(draw_paths(price_jumps(), KEY, 0, PATHS, steps=STEPS))


def _central(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


@pytest.mark.parametrize("name", PRICES)
def test_cumulants_are_those_of_merton_over_any_number_of_steps(name: str) -> None:
    common, own = COMMON, JUMPS[name]
    m, s = own.beta * common.mean, own.beta * common.std
    for steps in (1, STEPS):
        x = jump_paths()[:, :steps, PRICES.index(name)].sum(axis=1)
        years = 0.5 * steps / DAYS_PER_YEAR
        third = years * (
            common.per_year * (m**3 + 3.0 * m * s**2) + own.per_year * (own.mean**3 + 3.0 * own.mean * own.std**2)
        )
        fourth = years * (
            common.per_year * (m**4 + 6.0 * m**2 * s**2 + 3.0 * s**4)
            + own.per_year * (own.mean**4 + 6.0 * own.mean**2 * own.std**2 + 3.0 * own.std**4)
        )
        variance = 0.5 * steps * STD[name] ** 2 + years * (
            common.per_year * (m**2 + s**2) + own.per_year * (own.mean**2 + own.std**2)
        )
        c = _central(x)
        assert_mean(c**2, variance, (name, steps, "variance"))
        # the estimation of the mean adds -3 sigma^2 c to the influence of the third moment
        assert_mean(c**3 - 3.0 * variance * c, third, (name, steps, "third cumulant"))
        moment = fourth + 3.0 * variance**2
        assert_mean(c**4 - 4.0 * third * c, moment, (name, steps, "fourth moment"))


def test_jumps_of_one_factor_are_the_closed_form_of_the_scenario_laws() -> None:
    """The same law through `scenario_laws`, which is held to outside figures by the vectors."""
    law = FactorJumps(beta=0.0, per_year=0.4 * DAYS_PER_YEAR, mean=-0.04, std=0.05)
    generator = merton_jumps(
        ("price:BTC",), {"price:BTC": 0.03}, {"price:BTC": law}, correlation=np.eye(1), location="martingale"
    )
    x = np.asarray(draw_scenarios(generator, KEY, 0, 2 * PATHS))[:, 0]
    known = scenario_laws.merton_jump_moments(
        intensity=law.per_year,
        jump_mean=law.mean,
        jump_deviation=law.std,
        vol=0.03 * math.sqrt(DAYS_PER_YEAR),
        years=1.0 / DAYS_PER_YEAR,
    )
    c = x - known.mean
    assert_mean(x, known.mean, "mean")
    assert_mean(c**2, known.variance, "variance")
    assert_mean(c**3, known.skewness * known.variance**1.5, "third moment")
    assert_mean(c**4, (3.0 + known.excess_kurtosis) * known.variance**2, "fourth moment")
    assert_mean(np.exp(x), 1.0, "martingale")


def test_prices_are_martingales_together_and_steps_are_independent() -> None:
    paths = jump_paths()
    for column, name in enumerate(PRICES):
        assert_mean(np.exp(paths[:, :, column].sum(axis=1)), 1.0, name)
        size = np.abs(paths[:, :, column])
        c = size - size.mean(axis=0)
        assert_mean(c[:, 0] * c[:, 1], 0.0, (name, "sizes of consecutive steps"))
    both = paths[:, 0] - paths[:, 0].mean(axis=0)
    rate = 0.5 * COMMON.per_year / DAYS_PER_YEAR
    betas = JUMPS["price:BTC"].beta * JUMPS["price:ETH"].beta
    assert_mean(both[:, 0] * both[:, 1], rate * betas * (COMMON.mean**2 + COMMON.std**2), "covariance by common jumps")


def test_counts_are_poisson_up_to_a_mass_that_no_uniform_can_reach() -> None:
    for rate in (1e-6, 0.2, 7.0, LARGEST_COUNT_MEAN):
        law = FactorJumps(0.0, rate * DAYS_PER_YEAR, 0.0, 0.1)
        generator = merton_jumps(("price:BTC",), {"price:BTC": 0.03}, {"price:BTC": law}, correlation=np.eye(1))
        table = np.asarray(generator.own_counts)[0]
        counts = np.arange(len(table))
        np.testing.assert_allclose(table[:-1], stats.poisson.cdf(counts[:-1], rate), rtol=RTOL)
        assert table[-1] == 1.0
        assert stats.poisson.sf(counts[-1], rate) < TRUNCATED_MASS


def test_without_jumps_the_law_is_normal() -> None:
    generator = merton_jumps(FACTORS, STD, {}, correlation=np.eye(4), step_days=4.0)
    x = np.asarray(draw_scenarios(generator, KEY, 0, PATHS))
    for column, name in enumerate(FACTORS):
        assert stats.kstest(x[:, column], "norm", (0.0, 2.0 * STD[name])).pvalue > 1e-3, name


# ---- regimes ---------------------------------------------------------------------------------------------------------

CHAIN = np.array([[0.8, 0.2], [0.3, 0.7]])
CHAIN_MEAN, CHAIN_STD = (0.002, -0.01), (0.01, 0.05)


@functools.cache
def chain_paths() -> np.ndarray:
    """Moves [PATHS, 4, 2] of a price and a depth over a stationary chain of two regimes."""
    regimes = {
        name: RegimeLaw({"price:BTC": std}, np.eye(1), {"price:BTC": mean}, depth)
        for name, mean, std, depth in zip(("calm", "wild"), CHAIN_MEAN, CHAIN_STD, (1.0, 0.1), strict=True)
    }
    stationary = scenario_laws.stationary_distribution(CHAIN)
    generator = regime_switching(("price:BTC", "depth:BTC"), regimes, transition=CHAIN, filtered=tuple(stationary))
    return np.asarray(draw_paths(generator, KEY, 0, PATHS, steps=4))


def test_a_stationary_chain_has_the_moments_and_the_memory_of_the_closed_form() -> None:
    known = scenario_laws.markov_switching_moments(CHAIN, CHAIN_MEAN, CHAIN_STD)
    x = chain_paths()[:, :, 0]
    for step in range(4):
        c = x[:, step] - known.mean
        assert_mean(x[:, step], known.mean, step)
        assert_mean(c**2, known.variance, step)
        assert_mean(c**4, known.kurtosis * known.variance**2, step)
    for lag in (1, 3):
        known = scenario_laws.markov_switching_moments(CHAIN, CHAIN_MEAN, CHAIN_STD, lag=lag)
        c, squares = x - known.mean, x**2 - (known.variance + known.mean**2)
        assert_mean(c[:, 0] * c[:, lag], known.autocovariance, lag)
        assert_mean(squares[:, 0] * squares[:, lag], known.autocovariance_of_squares, lag)


def test_depth_says_the_regime_and_adds_up_along_a_path() -> None:
    depth = chain_paths()[:, :, 1]
    thin = math.log(0.1)
    stationary = scenario_laws.stationary_distribution(CHAIN)
    assert set(np.round(np.unique(depth), 9)) == set(np.round([thin, 0.0, -thin], 9))
    # relative to today: thinner than today only where today is calm
    assert_mean((depth[:, 0] < -1.0).astype(float), stationary[0] * CHAIN[0, 1], "calm to wild")
    assert_mean((depth[:, 0] > 1.0).astype(float), stationary[1] * CHAIN[1, 0], "wild to calm")
    level = np.cumsum(depth, axis=1)
    assert np.abs(level).max() <= -thin * (1.0 + RTOL)
    over_four = np.linalg.matrix_power(CHAIN, 4)
    assert_mean((level[:, -1] < -1.0).astype(float), stationary[0] * over_four[0, 1], "calm to wild in four steps")


def test_the_moves_are_those_of_the_regime_of_the_step() -> None:
    x, depth = chain_paths()[:, 0, 0], chain_paths()[:, 0, 1]
    for regime, hit in ((1, depth < -1.0), (0, depth > 1.0)):
        assert_mean(x[hit], CHAIN_MEAN[regime], regime)
        assert_mean((x[hit] - CHAIN_MEAN[regime]) ** 2, CHAIN_STD[regime] ** 2, regime)


def test_a_path_starts_from_the_filtered_probabilities_and_draws_nothing_impossible() -> None:
    generator = regime_switching(REGIME_FACTORS, REGIMES, transition=np.eye(3), filtered=(0.0, 1.0, 0.0))
    depth = np.asarray(draw_paths(generator, KEY, 0, 1024, steps=2))[:, :, REGIME_FACTORS.index("depth:BTC")]
    assert not depth.any()  # the second regime holds for good
    cumulative = np.asarray(desk_regimes(filtered=(0.5, 0.5, 0.0)).cumulative_today)
    np.testing.assert_array_equal(cumulative, [0.5, 1.0, 1.0])


def test_t_innovations_keep_the_standard_deviation() -> None:
    law = RegimeLaw({"price:BTC": 0.03}, np.eye(1))
    generator = regime_switching(
        ("price:BTC",), {"a": law, "b": law}, transition=CHAIN, filtered=(0.5, 0.5), nu=9.0, step_days=2.0
    )
    x = np.asarray(draw_scenarios(generator, KEY, 0, PATHS))[:, 0]
    assert_mean(x**2, 2.0 * 0.03**2, "variance")
    scale = 0.03 * math.sqrt(2.0 * 7.0 / 9.0)
    for p in (0.001, 0.01, 0.05, 0.5, 0.99):
        assert_mean((x <= scale * stats.t.ppf(p, 9.0)).astype(float), p, p)


def test_a_chain_over_other_steps_has_the_daily_law() -> None:
    names = ("calm", "ordinary", "wild")
    two = np.array([[0.9, 0.1], [0.3, 0.7]])
    hourly = transition_over(two, 1.0 / 24.0, names[:2])
    np.testing.assert_allclose(np.linalg.matrix_power(hourly, 24), two, rtol=1e-10)
    np.testing.assert_allclose(
        transition_over(TRANSITION, 3.0, names), np.linalg.matrix_power(TRANSITION, 3), rtol=RTOL
    )
    # no direct switch from calm to wild within a day: no chain in continuous time does that, the nearest one nearly
    slow = np.array([[0.95, 0.05, 0.0], [0.05, 0.92, 0.03], [0.0, 0.2, 0.8]])
    half = transition_over(slow, 0.5, names)
    np.testing.assert_allclose(half.sum(axis=1), 1.0, rtol=RTOL)
    assert (half >= 0.0).all()
    assert 0.0 < np.abs(half @ half - slow).max() <= LARGEST_MISS


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (np.full((2, 2), 0.5), "no logarithm"),
        (np.array([[0.2, 0.8], [0.7, 0.3]]), "no logarithm"),
        (np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]]), "misses a daily probability"),
    ],
)
def test_a_chain_without_a_law_over_fractions_of_a_day_is_refused(transition: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        transition_over(transition, 0.25, ("calm", "ordinary", "wild")[: len(transition)])


# ---- mixtures --------------------------------------------------------------------------------------------------------


def test_every_path_of_a_mixture_is_that_of_one_component_from_start_to_end() -> None:
    mixed = np.asarray(draw_paths(desk_mixture(), KEY, 0, 2048, steps=3))
    parts = [np.asarray(draw_paths(part, KEY, 0, 2048, steps=3)) for part in (desk_t(), desk_t(2.5))]
    same = np.array([(mixed == part).all(axis=(1, 2)) for part in parts])
    assert (same.sum(axis=0) == 1).all()
    assert_mean(same[1].astype(float), 0.25, "share of the stressed component")


def test_components_carry_states_of_their_own() -> None:
    plain = multivariate_t(REGIME_FACTORS, STD | {"depth:BTC": 0.1}, correlation=np.eye(5), nu=4.0)
    blend = mixture({"regimes": Component(0.5, desk_regimes()), "plain": Component(0.5, plain)})
    mixed = np.asarray(draw_paths(blend, KEY, 0, 512, steps=3))
    regimes = np.asarray(draw_paths(desk_regimes(), KEY, 0, 512, steps=3))
    same = (mixed == regimes).all(axis=(1, 2))
    assert_mean(same.astype(float), 0.5, "share of the paths with regimes")


def test_a_generator_with_its_own_scenario_set_is_no_component() -> None:
    points = desk_t()
    weights = jax.numpy.ones(4) / 4.0

    class Exact:
        """A generator with four scenarios."""

        factors = points.factors
        own_weights = weights
        start = points.start
        step = points.step

    with pytest.raises(ConfigurationError, match="component exact has a scenario set of its own"):
        mixture({"current": Component(0.5, points), "exact": Component(0.5, Exact())})
