"""The scenario protocol, the multivariate t and one-step filtered history: closed forms, streams, refused inputs.

What every generator must do is in `test_generators.py`.
"""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aggregator.correlation import correlation_matrix, repaired_correlation
from aggregator.errors import ConfigurationError
from aggregator.generators.filtered_historical import filtered_historical
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.scenarios import (
    TILE,
    PegDistribution,
    chi_square,
    draw_all,
    draw_scenarios,
    padded_count,
    scenario_stream,
    scenario_weights,
)
from tests.generator_suite import (
    DAILY_STD,
    FACTORS,
    HISTORY_FACTORS,
    PAIRS,
    PEGS,
    desk_history,
    desk_t,
    joint_tail,
    small_history,
)

STANDARD_ERRORS = 4.0  # of a Monte Carlo estimate at a fixed seed
RTOL_FLOAT64 = 1e-12  # float64 against float64, a few operations
SAMPLE = 65_536
KEY = jax.random.key(3)


# ---- every generator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenarios", [1, 255, 256, 257, 10_000])
def test_weights_sum_to_one_and_padding_weighs_nothing(scenarios: int) -> None:
    weights = np.asarray(scenario_weights(desk_t(), scenarios))
    assert len(weights) == padded_count(scenarios)
    assert len(weights) % TILE == 0
    assert math.isclose(math.fsum(weights), 1.0, rel_tol=RTOL_FLOAT64)
    assert (weights[:scenarios] == 1.0 / scenarios).all()
    assert not weights[scenarios:].any()


def test_a_request_off_the_tiles_is_refused() -> None:
    for first, count in ((0, 100), (128, 256), (-256, 256), (0, -256), (0, 0)):
        with pytest.raises(ConfigurationError, match="multiples of 256"):
            draw_scenarios(desk_t(), jax.random.key(0), first, count)


def test_number_of_scenarios_must_fit_the_generator() -> None:
    with pytest.raises(ConfigurationError, match="positive number"):
        scenario_weights(desk_t(), None)
    with pytest.raises(ConfigurationError, match="exactly 300"):
        scenario_weights(desk_history(KEY, "every_date"), 1000)
    assert len(scenario_weights(desk_history(KEY, "every_date"))) == 512


# ---- multivariate t ------------------------------------------------------------------------------------------------


def test_t_mean_and_covariance_are_those_of_the_figures() -> None:
    nu, horizon = 9.0, 2.0  # nu above 8 so that the standard error of a covariance is itself well estimated
    location = {"peg:USDC": 0.0, "price:BTC": 0.001, "price:ETH": -0.002, "vol:BTC": 0.003}
    generator = desk_t(nu, horizon_days=horizon, location=location)
    x = np.asarray(draw_scenarios(generator, jax.random.key(5), 0, SAMPLE))
    mean = horizon * np.array([location[name] for name in FACTORS])
    std = np.array([DAILY_STD[name] for name in FACTORS])
    covariance = horizon * correlation_matrix(FACTORS, PAIRS) * np.outer(std, std)
    assert (np.abs(x.mean(axis=0) - mean) <= STANDARD_ERRORS * np.sqrt(np.diag(covariance) / SAMPLE)).all()
    estimate = (x - mean).T @ (x - mean) / SAMPLE
    variance = np.outer(np.diag(covariance), np.diag(covariance))
    fourth = (nu - 2.0) / (nu - 4.0) * (variance + 2.0 * covariance**2)  # E[x_i^2 x_j^2] of a multivariate t
    error = np.sqrt((fourth - covariance**2) / SAMPLE)
    assert (np.abs(estimate - covariance) <= STANDARD_ERRORS * error).all()


@pytest.mark.parametrize("nu", [2.5, 4.0, 30.0])
def test_t_marginals_have_the_quantiles_of_their_law(nu: float) -> None:
    x = np.asarray(draw_scenarios(desk_t(nu), jax.random.key(6), 0, SAMPLE))
    for column, name in enumerate(FACTORS):
        scale = DAILY_STD[name] * math.sqrt((nu - 2.0) / nu)
        for p in (0.0005, 0.01, 0.25, 0.5, 0.95, 0.99, 0.999):
            share = np.mean(x[:, column] <= scale * stats.t.ppf(p, nu))
            error = math.sqrt(p * (1.0 - p) / SAMPLE)
            assert abs(share - p) <= STANDARD_ERRORS * error, (name, p, share)


@pytest.mark.parametrize("nu", [2.75, 5.0])
def test_t_factors_crash_together(nu: float) -> None:
    rho = PAIRS["price:BTC", "price:ETH"]
    limit = 2.0 * stats.t.cdf(-math.sqrt((nu + 1.0) * (1.0 - rho) / (1.0 + rho)), nu + 1.0)
    assert math.isclose(joint_tail(1e-10, rho, nu) / 1e-10, limit, rel_tol=1e-3)  # the twin tends to the closed form
    x = np.asarray(draw_scenarios(desk_t(nu), jax.random.key(8), 0, SAMPLE))
    for q in (0.05, 0.01, 0.002):
        together = np.ones(SAMPLE, bool)
        for name in ("price:BTC", "price:ETH"):
            bound = DAILY_STD[name] * math.sqrt((nu - 2.0) / nu) * stats.t.ppf(q, nu)
            together &= x[:, FACTORS.index(name)] <= bound
        p = joint_tail(q, rho, nu)
        assert p > 3.0 * q * q  # far from independent
        assert abs(together.mean() - p) <= STANDARD_ERRORS * math.sqrt(p * (1.0 - p) / SAMPLE), (q, p, together.mean())


@pytest.mark.parametrize("nu", [2.0, 3.0, 40.0])
def test_chi_square_follows_its_law(nu: float) -> None:
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(9), i))(jnp.arange(20_000))
    draws = np.asarray(jax.vmap(lambda k: chi_square(k, jnp.float64(nu)))(keys))
    assert stats.kstest(draws, stats.chi2(nu).cdf).pvalue > 1e-4
    assert abs(draws.mean() - nu) <= STANDARD_ERRORS * math.sqrt(2.0 * nu / len(draws))


def test_t_horizon_scales_the_spread_and_the_location() -> None:
    key = jax.random.key(2)
    day, four_days = (draw_scenarios(desk_t(horizon_days=h), key, 0, 256) for h in (1.0, 4.0))
    np.testing.assert_allclose(four_days, 2.0 * day, rtol=RTOL_FLOAT64)
    drift = dict.fromkeys(FACTORS, 0.01)
    moved = draw_scenarios(desk_t(horizon_days=4.0, location=drift), key, 0, 256)
    np.testing.assert_allclose(moved, four_days + 0.04, rtol=RTOL_FLOAT64, atol=1e-15)


def test_t_shock_is_the_mixed_normals_of_its_streams() -> None:
    generator, key = desk_t(), jax.random.key(21)
    x = np.asarray(draw_scenarios(generator, key, 0, 256))
    root = np.linalg.cholesky(correlation_matrix(FACTORS, PAIRS))
    std = np.array([DAILY_STD[name] for name in FACTORS]) * math.sqrt(2.0 / 4.0)
    for index in (0, 1, 255):
        number = jnp.uint32(index)
        z = [float(jax.random.normal(scenario_stream(key, name, number), (), jnp.float64)) for name in FACTORS]
        w = 4.0 / float(chi_square(scenario_stream(key, "chi-square", number), jnp.float64(4.0)))
        np.testing.assert_allclose(x[index], std * math.sqrt(w) * (root @ z), rtol=RTOL_FLOAT64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": ()}, "at least one factor"),
        ({"factors": ("price:BTC", "price:BTC")}, "price:BTC is listed twice"),
        ({"factors": ("price:BTC", "chi-square")}, "chi-square is listed twice"),
        ({"daily_std": {"price:BTC": 0.02}}, "daily_std has no figure for price:ETH"),
        ({"daily_std": {"price:BTC": 0.02, "price:ETH": 0.0}}, "daily_std of price:ETH is 0.0"),
        ({"daily_std": {"price:BTC": math.nan, "price:ETH": 0.1}}, "daily_std of price:BTC is nan"),
        ({"nu": 2.0}, "nu is 2.0"),
        ({"nu": math.inf}, "nu is inf"),
        ({"horizon_days": 0.0}, "horizon_days is 0.0"),
        ({"location": {"price:BTC": 0.0}}, "location has no figure for price:ETH"),
        ({"correlation": np.eye(3)}, "shape"),
        ({"correlation": np.array([[1.0, math.nan], [math.nan, 1.0]])}, "price:BTC and price:ETH is nan"),
        ({"correlation": np.array([[1.0, 0.5], [0.4, 1.0]])}, "price:BTC and price:ETH is 0.5 one way and 0.4"),
        ({"correlation": np.array([[1.0, 1.2], [1.2, 1.0]])}, "price:BTC and price:ETH is 1.2"),
        ({"correlation": np.array([[1.0, 0.5], [0.5, 0.9]])}, "price:ETH with itself is 0.9"),
    ],
)
def test_degenerate_figures_of_the_t_are_refused(change: dict[str, Any], message: str) -> None:
    figures: dict[str, Any] = {
        "factors": ("price:BTC", "price:ETH"),
        "daily_std": {"price:BTC": 0.02, "price:ETH": 0.03},
        "correlation": np.array([[1.0, 0.5], [0.5, 1.0]]),
        "nu": 4.0,
    } | change
    with pytest.raises(ConfigurationError, match=message):
        multivariate_t(figures.pop("factors"), figures.pop("daily_std"), **figures)


def test_correlation_pairs_are_checked() -> None:
    names = ("price:BTC", "price:ETH", "price:SOL")
    matrix = correlation_matrix(names, {("price:ETH", "price:BTC"): 0.8})
    np.testing.assert_array_equal(matrix, [[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for pairs, message in (
        ({("price:BTC", "price:XRP"): 0.5}, "price:XRP is not a factor"),
        ({("price:BTC", "price:BTC"): 1.0}, "with itself"),
        ({("price:BTC", "price:ETH"): 0.8, ("price:ETH", "price:BTC"): 0.7}, "given twice: 0.8 and 0.7"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            correlation_matrix(names, pairs)


def test_a_matrix_that_is_a_little_indefinite_is_repaired() -> None:
    names = ("price:BTC", "price:ETH", "price:SOL")
    matrix = np.array([[1.0, 0.9, 0.55], [0.9, 1.0, 0.86], [0.55, 0.86, 1.0]])
    assert np.linalg.eigvalsh(matrix)[0] < 0.0
    repaired = repaired_correlation(names, matrix)
    assert np.linalg.eigvalsh(repaired)[0] > 0.0
    np.testing.assert_array_equal(np.diag(repaired), 1.0)
    np.testing.assert_array_equal(repaired, repaired.T)
    assert np.abs(repaired - matrix).max() < 0.05
    assert multivariate_t(names, dict.fromkeys(names, 0.1), correlation=matrix, nu=4.0).factors == names
    np.testing.assert_array_equal(repaired_correlation(names, np.eye(3)), np.eye(3))
    # perfectly dependent factors sit on the border
    twins = repaired_correlation(names[:2], np.ones((2, 2)))
    assert 1.0 - 1e-6 < twins[0, 1] < 1.0


def test_contradictory_correlations_are_refused_by_name() -> None:
    names = ("price:BTC", "price:ETH", "price:SOL")
    matrix = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    with pytest.raises(ConfigurationError, match=r"inconsistent.*price:.* and price:"):
        repaired_correlation(names, matrix)


# ---- filtered historical -------------------------------------------------------------------------------------------


def test_every_date_is_exactly_the_law() -> None:
    history = small_history(gaps=False)
    names = ("price:BTC", "price:ETH", "price:SOL", "vol:BTC")
    weights = np.linspace(1.0, 3.0, 300)
    generator = filtered_historical(names, history, key=jax.random.key(0), date_weights=weights)
    drawn = draw_all(generator, jax.random.key(1))
    assert drawn.shocks.shape == (512, 4)
    np.testing.assert_array_equal(drawn.shocks[:300], history.sigma_next * history.residuals)
    np.testing.assert_allclose(drawn.weights[:300], weights / weights.sum(), rtol=RTOL_FLOAT64)
    assert math.isclose(math.fsum(np.asarray(drawn.weights)), 1.0, rel_tol=RTOL_FLOAT64)
    assert not np.asarray(drawn.weights[300:]).any()
    assert np.isfinite(np.asarray(drawn.shocks)).all()


def test_drawn_scenarios_keep_the_vector_of_a_date_whole() -> None:
    dates = 300
    history = small_history(gaps=False)
    marked = np.arange(dates, dtype=np.float64)[:, None] + np.array([0.1, 0.2, 0.3, 0.4])
    history = replace(history, residuals=marked)
    names = ("price:BTC", "price:ETH", "price:SOL", "vol:BTC")
    weights = np.ones(dates)
    weights[100:200] = 3.0
    weights[[0, 299]] = 0.0
    generator = filtered_historical(names, history, key=jax.random.key(0), mode="draw", date_weights=weights)
    z = np.asarray(draw_scenarios(generator, jax.random.key(2), 0, SAMPLE)) / history.sigma_next
    date = np.floor(z[:, 0] + 1e-9).astype(int)
    np.testing.assert_allclose(z, marked[date], rtol=RTOL_FLOAT64)
    count = np.bincount(date, minlength=dates)
    assert not count[[0, 299]].any()
    p = weights / weights.sum()
    error = np.sqrt(SAMPLE * p * (1.0 - p))
    assert (np.abs(count - SAMPLE * p) <= (STANDARD_ERRORS + 0.5) * error).all()  # 300 dates at once: a little wider


def test_horizon_scales_every_shock_of_the_history() -> None:
    key = jax.random.key(2)
    day, four = (draw_scenarios(desk_history(KEY, horizon_days=h), key, 0, 256) for h in (1.0, 4.0))
    np.testing.assert_allclose(four, 2.0 * np.asarray(day), rtol=RTOL_FLOAT64)


def test_missing_prices_are_loaded_on_the_anchors_of_their_date() -> None:
    history = small_history()
    names = ("price:BTC", "price:ETH", "price:SOL")
    generator = filtered_historical(names, history, key=jax.random.key(3))
    sol = np.asarray(generator.residuals[:, 2])
    there = np.isfinite(history.residuals[:, 2])
    np.testing.assert_array_equal(sol[there], history.residuals[there, 2])
    drawn = sol[~there] - history.anchor_residuals[~there] @ np.array([0.5, 0.3])
    pool = history.own_residuals[2]
    nearest = np.abs(drawn[:, None] - pool).argmin(axis=1)
    np.testing.assert_allclose(drawn, pool[nearest], rtol=0.0, atol=1e-14)  # one of its own residuals, nothing else
    assert len(np.unique(nearest)) > 60  # 120 draws with replacement out of 180
    again = filtered_historical(names, history, key=jax.random.key(3))
    other = filtered_historical(names, history, key=jax.random.key(4))
    np.testing.assert_array_equal(again.residuals, generator.residuals)
    assert not np.array_equal(other.residuals[:, 2], sol)
    # the fill of an asset does not depend on which others are there
    fewer = filtered_historical(names[:1] + names[2:], small_history(assets=("BTC", "SOL")), key=jax.random.key(3))
    np.testing.assert_array_equal(fewer.residuals[:, 1], sol)


def test_missing_implied_volatility_follows_its_rule() -> None:
    history = small_history(dates=20_000)
    generator = filtered_historical(("price:BTC", "vol:BTC"), history, key=jax.random.key(3))
    shocks = np.asarray(generator.sigma_next) * np.asarray(generator.residuals)[:10_000]
    noise = (shocks[:, 1] + 0.5 * shocks[:, 0]) / 0.04
    assert abs(noise.mean()) <= STANDARD_ERRORS / 100.0
    assert abs(noise.std() - 1.0) <= STANDARD_ERRORS / math.sqrt(2.0 * len(noise))
    assert abs(np.corrcoef(noise, shocks[:, 0])[0, 1]) <= STANDARD_ERRORS / 100.0


def test_parametric_factors_are_drawn_in_every_scenario() -> None:
    x = np.asarray(draw_scenarios(desk_history(KEY, factors=HISTORY_FACTORS), jax.random.key(12), 0, SAMPLE))
    column = HISTORY_FACTORS.index
    noise = (x[:, column("vol:ETH")] + 0.4 * x[:, column("price:ETH")]) / 0.05
    assert stats.kstest(noise, stats.norm.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(noise, x[:, column("price:ETH")])[0, 1]) <= STANDARD_ERRORS / math.sqrt(SAMPLE)
    peg = x[:, column("peg:USDC")] / (0.0005 * math.sqrt(4.0 / 6.0))
    assert stats.kstest(peg, stats.t(6.0).cdf).pvalue > 1e-4


def test_a_proxy_moves_with_its_asset() -> None:
    history = small_history()
    columns = dict(history.columns) | {"price:WIF": (history.sources.index("price:SOL"), 1.5)}
    history = replace(history, columns=columns)
    generator = filtered_historical(("price:SOL", "price:WIF"), history, key=jax.random.key(3), mode="draw")
    x = np.asarray(draw_scenarios(generator, jax.random.key(0), 0, 256))
    np.testing.assert_allclose(x[:, 1], 1.5 * x[:, 0], rtol=RTOL_FLOAT64)


@pytest.mark.parametrize(
    ("factors", "options", "message"),
    [
        (("price:XRP",), {}, "price:XRP has no history"),
        (("price:BTC", "peg:DAI"), {}, "peg:DAI has no history, volatility rule or peg law"),
        (("price:BTC", "vol:ETH"), {}, "vol:ETH moves with price:ETH"),
        (("peg:USDC",), {}, "no factor of this run has a history"),
        (("price:BTC", "price:BTC"), {}, "price:BTC is listed twice"),
        (("price:BTC",), {"mode": "sometimes"}, "sometimes"),
        (("price:BTC",), {"horizon_days": math.nan}, "horizon_days is nan"),
        (("price:BTC",), {"date_weights": np.ones(3)}, "300 dates"),
        (("price:BTC",), {"date_weights": -np.ones(300)}, "non-negative"),
        (("price:BTC",), {"date_weights": np.zeros(300)}, "positive sum"),
        (("price:BTC",), {"date_weights": np.full(300, math.nan)}, "finite"),
        (("peg:USDC", "price:BTC"), {"pegs": {"peg:USDC": PegDistribution(0.0, 3.0)}}, "daily_std of peg:USDC"),
        (("peg:USDC", "price:BTC"), {"pegs": {"peg:USDC": PegDistribution(0.001, 2.0)}}, "freedom of peg:USDC"),
        (("price:BTC",), {"pegs": {"price:BTC": PegDistribution(0.001, 3.0)}}, "price:BTC is defined twice"),
    ],
)
def test_degenerate_histories_are_refused(factors: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        filtered_historical(factors, small_history(), key=jax.random.key(0), **({"pegs": PEGS} | options))
