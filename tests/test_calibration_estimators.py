"""Every estimator of the calibration recovers known parameters from simulated history, within its standard errors.

A standard error is the estimator's own formula, the curvature of the likelihood at the truth, or the spread over
independent samples, as the test says; four of them are allowed. Simple parts are compared with slow twins or by hand.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, stats

from aggregator.calibration import basis, jumps, laws, liquidity, pegs, regimes, tails, vol_rule, volatility
from aggregator.calibration.dependence import (
    NU_GRID,
    copula_fit,
    kendall_tau,
    rank_correlation,
    regular_correlation,
    spectrum,
)
from aggregator.calibration.mean_reversion import mean_reversion_fit

RTOL_FLOAT64 = 1e-12  # a few operations in float64 against the same in another order
RTOL_QUADRATURE = 1e-7  # closed form against adaptive quadrature at its default error
STANDARD_ERRORS = 4.0  # 6 in 100,000 for a Gaussian estimate


def assert_recovered(name: str, estimate: float, truth: float, standard_error: float) -> None:
    off = abs(estimate - truth) / standard_error
    assert off <= STANDARD_ERRORS, f"{name}: {estimate:.6g} for {truth:.6g}, {off:.1f} standard errors"


def curvature_errors(log_likelihood: Callable[[np.ndarray], float], point: np.ndarray, step: float) -> np.ndarray:
    """Standard errors from the matrix of second differences of a log-likelihood, `step` relative to each parameter."""
    size = len(point)
    moves = np.diag(step * np.abs(point))
    second = np.empty((size, size))
    for i, j in itertools.combinations_with_replacement(range(size), 2):
        corners = [log_likelihood(point + a * moves[i] + b * moves[j]) for a in (1, -1) for b in (1, -1)]
        difference = corners[0] - corners[1] - corners[2] + corners[3]
        second[i, j] = second[j, i] = difference / (4.0 * moves[i, i] * moves[j, j])
    return np.sqrt(np.diag(np.linalg.inv(-second)))


# ---- dependence -----------------------------------------------------------------------------------------------------


def t_copula_sample(rng: np.random.Generator, rows: int, correlation: np.ndarray, nu: float) -> np.ndarray:
    """Rows with a t copula; every margin is bent by a monotone map of its own, which ranks do not see."""
    normal = rng.standard_normal((rows, len(correlation))) @ np.linalg.cholesky(correlation).T
    values = normal * np.sqrt(nu / rng.chisquare(nu, rows))[:, None]
    values[:, 0] = np.exp(np.minimum(values[:, 0], 50.0))
    values[:, 1] = values[:, 1] ** 3
    return values


def test_rank_correlation_and_tail_index_of_a_t_copula_are_recovered_whatever_the_margins() -> None:
    truth = np.array([[1.0, 0.8, 0.4], [0.8, 1.0, 0.6], [0.4, 0.6, 1.0]])
    nu, samples = 4.0, 16
    rng = np.random.default_rng(1)
    found, nus, covered = [], [], 0
    for _ in range(samples):
        values = t_copula_sample(rng, 800, truth, nu)
        correlation = rank_correlation(values)
        fit = copula_fit(values, correlation)
        found.append(correlation)
        nus.append(math.log(fit.nu))
        covered += fit.interval[0] <= nu <= fit.interval[1]
    spread = np.std(found, axis=0, ddof=1) / math.sqrt(samples)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert_recovered(f"rho {i}{j}", float(np.mean(found, axis=0)[i, j]), truth[i, j], float(spread[i, j]))
    assert_recovered("log nu", float(np.mean(nus)), math.log(nu), float(np.std(nus, ddof=1)) / math.sqrt(samples))
    # a 95 % interval misses 5 of 16 with probability 0.001 or less
    assert covered >= samples - 4


def test_a_gaussian_copula_has_the_largest_tail_index_of_the_grid() -> None:
    normal = np.random.default_rng(2).standard_normal((3000, 3))
    fit = copula_fit(normal, np.eye(3))
    assert fit.nu == NU_GRID[-1]
    assert fit.log_likelihoods.shape == (len(NU_GRID),)


def test_kendall_tau_with_gaps_and_ties_is_that_of_each_pair_of_columns() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((300, 4)) @ np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    values[:50, 1] = np.nan
    values[200:220, 2] = np.nan
    values[:, 3] = np.round(values[:, 3])
    found = kendall_tau(values)
    for i, j in itertools.combinations(range(4), 2):
        both = np.isfinite(values[:, i]) & np.isfinite(values[:, j])
        twin = stats.kendalltau(values[both, i], values[both, j]).statistic
        assert found[i, j] == pytest.approx(twin, rel=RTOL_FLOAT64), (i, j)
        assert found[j, i] == found[i, j]


def test_kendall_tau_of_a_constant_column_is_missing() -> None:
    values = np.stack([np.arange(10.0), np.ones(10)], axis=1)
    assert np.isnan(kendall_tau(values)[0, 1])


def test_an_inconsistent_matrix_becomes_regular_and_a_regular_one_stays() -> None:
    wrong = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    mended = regular_correlation(wrong)
    assert np.linalg.eigvalsh(mended)[0] > 0.005
    np.testing.assert_array_equal(np.diag(mended), 1.0)
    right = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert regular_correlation(right) is right
    assert spectrum(right, 2) == pytest.approx((0.75, 0.25), rel=RTOL_FLOAT64)


def test_a_copula_needs_fifty_complete_dates() -> None:
    with pytest.raises(ValueError, match="49 complete dates of 2 columns"):
        copula_fit(np.random.default_rng(0).standard_normal((49, 2)), np.eye(2))


# ---- tails ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [-0.15, 0.0, 0.2, 0.35])
def test_pareto_shape_and_scale_are_recovered(shape: float) -> None:
    count, scale = 4000, 0.7
    excesses = stats.genpareto.rvs(shape, scale=scale, size=count, random_state=int(100 + 100 * shape))
    fit = tails.pareto_fit(excesses)
    # asymptotic errors of maximum likelihood (Smith, Biometrika 72, 1985)
    assert_recovered("shape", fit.shape, shape, (1.0 + shape) / math.sqrt(count))
    assert_recovered("scale", fit.scale, scale, scale * math.sqrt(2.0 * (1.0 + shape) / count))
    assert fit.log_likelihood >= float(np.sum(stats.genpareto.logpdf(excesses, shape, scale=scale)))
    own = float(np.sum(stats.genpareto.logpdf(excesses, fit.shape, scale=fit.scale)))
    assert fit.log_likelihood == pytest.approx(own, rel=1e-9)
    assert tails.pareto_tail_distance(excesses, fit) < 1.36 / math.sqrt(count)


def test_a_tail_without_variance_is_held_at_the_bound_and_says_so() -> None:
    fit = tails.pareto_fit(stats.genpareto.rvs(0.9, size=500, random_state=4))
    assert (fit.shape, fit.at_bound) == (tails.SHAPE_BOUNDS[1], True)


def test_a_tail_of_another_kind_is_told_by_its_distance() -> None:
    two_heaps = np.concatenate([np.full(200, 0.1) + np.linspace(0, 1e-3, 200), 5.0 + np.linspace(0, 1e-3, 200)])
    assert tails.pareto_tail_distance(two_heaps, tails.pareto_fit(two_heaps)) > 0.2


def test_hill_index_of_a_pareto_law_is_recovered() -> None:
    values = stats.pareto.rvs(3.0, size=20_000, random_state=5)
    assert_recovered("Hill", tails.hill(values), 3.0, 3.0 / math.sqrt(0.05 * len(values)))


@pytest.mark.parametrize(
    ("excesses", "message"),
    [
        (np.ones(9), "9 excesses"),
        (np.append(np.ones(20), -1.0), "not negative"),
        (np.append(np.ones(20), np.nan), "finite"),
    ],
)
def test_excesses_that_make_no_tail_are_refused(excesses: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tails.pareto_fit(excesses)


def test_the_semi_parametric_law_has_mean_zero_variance_one_and_the_shape_of_its_sample() -> None:
    sample = stats.t.rvs(4.0, loc=0.3, scale=2.0, size=20_000, random_state=6)
    law = tails.semi_parametric_law(sample)

    def moment(power: int) -> float:
        low, high = float(law.probabilities[0]), float(law.probabilities[-1])
        # tails over u = mass * exp(-t), where the integrand is smooth
        tail = [
            integrate.quad(
                lambda t, side=side, mass=mass: (
                    float(tails.law_quantile(law, np.array(side(mass * math.exp(-t))))) ** power * mass * math.exp(-t)
                ),
                0.0,
                28.0,  # beyond it 1 - u keeps too few digits, and lies less than 1e-10 of the second moment
                limit=400,
            )[0]
            for side, mass in ((lambda u: u, low), (lambda u: 1.0 - u, 1.0 - high))
        ]
        edges = zip(law.probabilities, law.probabilities[1:], strict=False)
        body = sum(
            integrate.quad(lambda u: float(tails.law_quantile(law, np.array(u))) ** power, float(a), float(b))[0]
            for a, b in edges
        )
        return tail[0] + tail[1] + body

    assert moment(1) == pytest.approx(0.0, abs=RTOL_QUADRATURE)
    assert moment(2) == pytest.approx(1.0, rel=1e-6)
    grid = np.linspace(1e-6, 1.0 - 1e-6, 20_001)
    assert np.all(np.diff(tails.law_quantile(law, grid)) > 0.0)
    np.testing.assert_array_equal(tails.law_quantile(law, law.probabilities), law.quantiles)
    # the 0.1 % quantile of a unit-variance t with four degrees of freedom; 20 exceedances of it are in the sample
    truth = float(stats.t.ppf(0.001, 4.0)) / math.sqrt(2.0)
    assert float(tails.law_quantile(law, np.array(0.001))) == pytest.approx(truth, rel=0.1)
    left, right = tails.tail_distances(sample, law)
    assert max(left, right) < 1.36 / math.sqrt(1000)


def test_residuals_that_repeat_one_value_have_no_law() -> None:
    with pytest.raises(ValueError, match="two quantiles of the residuals are equal"):
        tails.semi_parametric_law(np.concatenate([np.zeros(500), np.random.default_rng(0).standard_normal(300)]))


# ---- volatility -----------------------------------------------------------------------------------------------------


def garch_sample(
    rng: np.random.Generator, dates: int, omega: float, alpha: float, gamma: float, beta: float
) -> np.ndarray:
    variance, returns = omega / (1.0 - alpha - gamma / 2.0 - beta), []
    for z in rng.standard_normal(dates + 500):
        returns.append(math.sqrt(variance) * z)
        variance = omega + (alpha + gamma * (z < 0.0)) * returns[-1] ** 2 + beta * variance
    return np.array(returns[500:])


@pytest.mark.parametrize(
    ("omega", "alpha", "gamma", "beta", "form"),
    [(2e-5, 0.08, 0.0, 0.90, "garch"), (4e-5, 0.04, 0.12, 0.86, "gjr")],
)
def test_garch_parameters_are_recovered_and_the_form_is_told(
    omega: float, alpha: float, gamma: float, beta: float, form: str
) -> None:
    returns = garch_sample(np.random.default_rng(7), 12_000, omega, alpha, gamma, beta)
    fit = volatility.garch_fit(returns)
    assert fit.form == form
    truth = np.array([omega, alpha, beta] + ([gamma] if form == "gjr" else []))

    def log_likelihood(point: np.ndarray) -> float:
        return volatility.garch_log_likelihood(
            returns,
            omega=float(point[0]),
            alpha=float(point[1]),
            gamma=float(point[3]) if form == "gjr" else 0.0,
            beta=float(point[2]),
            start=float(np.mean(returns**2)),
        )

    errors = curvature_errors(log_likelihood, truth, 1e-3)
    estimates = [fit.omega, fit.alpha, fit.beta] + ([fit.gamma] if form == "gjr" else [])
    for name, estimate, true, error in zip(("omega", "alpha", "beta", "gamma"), estimates, truth, errors, strict=False):
        assert_recovered(name, estimate, float(true), float(error))
    assert fit.log_likelihood >= log_likelihood(truth)


def test_the_garch_recursion_is_that_of_a_plain_loop() -> None:
    returns = np.random.default_rng(8).standard_normal(200) * 0.03
    found = volatility.garch_variance(returns, omega=1e-5, alpha=0.05, gamma=0.1, beta=0.9, start=1e-3)
    slow = [1e-3]
    for r in returns:
        slow.append(1e-5 + (0.05 + 0.1 * (r < 0.0)) * r * r + 0.9 * slow[-1])
    np.testing.assert_allclose(found, slow, rtol=RTOL_FLOAT64)


def test_garch_does_not_depend_on_the_unit_and_leaves_gaps_out() -> None:
    returns = garch_sample(np.random.default_rng(9), 1500, 2e-5, 0.08, 0.0, 0.90)
    with_gaps = np.insert(returns, [3, 700, 1500], np.nan)
    fit, scaled = volatility.garch_fit(with_gaps, leverage=False), volatility.garch_fit(100.0 * returns, leverage=False)
    assert (scaled.alpha, scaled.beta) == pytest.approx((fit.alpha, fit.beta), rel=1e-6)
    assert scaled.omega == pytest.approx(1e4 * fit.omega, rel=1e-6)
    assert fit.returns == 1500
    with pytest.raises(ValueError, match="all zero"):
        volatility.garch_fit(np.zeros(200))
    with pytest.raises(ValueError, match="99 returns"):
        volatility.garch_fit(returns[:99])


# ---- jumps ----------------------------------------------------------------------------------------------------------


def test_merton_jumps_and_their_common_part_are_recovered() -> None:
    rng = np.random.default_rng(10)
    dates, sigma = 6000, 0.03
    beta = np.tile([0.8, 1.0, 1.2, 1.0, 1.0], 2)  # of mean 1, as the common jump is the mean over assets
    assets = len(beta)  # so many that own jumps of half of them never fall on one day
    returns = sigma * rng.standard_normal((dates, assets))
    common = rng.random(dates) < 6.0 / 365.0
    sizes = -0.30 + 0.04 * rng.standard_normal(dates)
    own = (rng.random((dates, assets)) < 5.0 / 365.0) & ~common[:, None]
    own_sizes = 0.35 + 0.04 * rng.standard_normal((dates, assets))
    returns += np.where(common[:, None], beta * sizes[:, None], 0.0) + np.where(own, own_sizes, 0.0)
    fit = jumps.jump_fit(returns)
    years = (dates - 60) / 365.0
    count = len(fit.common_dates)
    assert_recovered("common rate", fit.common_per_year, 6.0, math.sqrt(6.0 / years))
    assert_recovered(
        "common mean", fit.common_mean, -0.30, math.hypot(0.04, sigma / math.sqrt(assets)) / math.sqrt(count)
    )
    spread = math.hypot(0.04, sigma / math.sqrt(assets))
    assert_recovered("common std", fit.common_std, spread, spread / math.sqrt(2.0 * count))
    square = float(np.sum(sizes[common] ** 2))
    for i in range(assets):
        assert_recovered(f"beta {i}", float(fit.beta[i]), float(beta[i]), sigma / math.sqrt(square))
        assert_recovered(f"own rate {i}", float(fit.own_per_year[i]), 5.0, math.sqrt(5.0 / years))
        error = math.hypot(0.04, sigma) / math.sqrt(fit.own_events[i])
        assert_recovered(f"own mean {i}", float(fit.own_mean[i]), 0.35, error)
        assert_recovered(f"diffusive {i}", float(fit.diffusive_std[i]), sigma, sigma / math.sqrt(2.0 * dates))
    assert not fit.pooled.any()


def test_jumps_look_only_at_the_days_before() -> None:
    returns = 0.03 * np.random.default_rng(11).standard_normal((400, 2))
    changed = returns.copy()
    changed[300:] *= 10.0
    np.testing.assert_array_equal(jumps.bipower_std(returns)[:301], jumps.bipower_std(changed)[:301])
    # the 60 days before have 59 pairs of neighbours
    slow = math.sqrt(math.pi / 2.0 * np.mean([abs(returns[t, 0] * returns[t - 1, 0]) for t in range(141, 200)]))
    assert jumps.bipower_std(returns)[200, 0] == pytest.approx(slow, rel=1e-9)


def test_few_own_jumps_take_the_pooled_law() -> None:
    returns = 0.02 * np.random.default_rng(12).standard_normal((900, 3))
    for day in (200, 300, 400, 500, 600, 700):
        returns[day, 0] = 0.5
    returns[650, 1] = -0.4
    fit = jumps.jump_fit(returns)
    assert fit.own_events[0] >= 6
    assert list(fit.pooled) == [False, True, True]
    assert fit.own_mean[1] == fit.own_mean[2] == pytest.approx((6 * 0.5 - 0.4) / 7, abs=0.1)


# ---- regimes --------------------------------------------------------------------------------------------------------


def chain_sample(rng: np.random.Generator, dates: int, transition: np.ndarray, stds: np.ndarray) -> np.ndarray:
    state, out = 0, []
    for u, z in zip(rng.random(dates), rng.standard_normal(dates), strict=True):
        state = int(np.searchsorted(np.cumsum(transition[state]), u))
        out.append(stds[state] * z)
    return np.array(out)


def test_two_regimes_are_recovered_and_a_third_is_not_found() -> None:
    transition = np.array([[0.98, 0.02], [0.08, 0.92]])
    stds = np.array([0.02, 0.07])
    returns = chain_sample(np.random.default_rng(13), 1500, transition, stds)
    fit = regimes.regime_fit(returns, 2)

    def log_likelihood(point: np.ndarray) -> float:
        stay0, stay1, std0, std1 = (float(value) for value in point)
        moves = np.array([[stay0, 1.0 - stay0], [1.0 - stay1, stay1]])
        return regimes.filter_and_smooth(returns, fit.means, np.array([std0, std1]), moves, fit.start).log_likelihood

    truth = np.array([0.98, 0.92, 0.02, 0.07])
    errors = curvature_errors(log_likelihood, truth, 2e-3)
    estimates = [fit.transition[0, 0], fit.transition[1, 1], *fit.stds]
    for name, estimate, true, error in zip(
        ("stay 0", "stay 1", "std 0", "std 1"), estimates, truth, errors, strict=True
    ):
        assert_recovered(name, float(estimate), float(true), float(error))
    assert regimes.regime_fit(returns[:800], 3).bic > regimes.regime_fit(returns[:800], 2).bic
    np.testing.assert_allclose(regimes.stationary_law(transition), [0.8, 0.2], rtol=RTOL_FLOAT64)


def test_filter_and_smoother_are_those_of_all_paths_of_states() -> None:
    returns = np.array([0.01, -0.09, 0.05, 0.0, -0.02])
    means, stds = np.array([0.001, -0.01]), np.array([0.02, 0.08])
    transition, start = np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0.6, 0.4])
    weights = {}
    for path in itertools.product((0, 1), repeat=len(returns)):
        weight = start[path[0]]
        for t, state in enumerate(path):
            weight *= stats.norm.pdf(returns[t], means[state], stds[state])
            weight *= transition[path[t - 1], state] if t else 1.0
        weights[path] = float(weight)
    total = sum(weights.values())
    found = regimes.filter_and_smooth(returns, means, stds, transition, start)
    assert found.log_likelihood == pytest.approx(math.log(total), rel=RTOL_FLOAT64)
    for t in range(len(returns)):
        wild = sum(weight for path, weight in weights.items() if path[t] == 1) / total
        assert found.smoothed[t, 1] == pytest.approx(wild, rel=1e-10)
    jumped = sum(w * sum(a == 0 and b == 1 for a, b in itertools.pairwise(p)) for p, w in weights.items()) / total
    assert found.transitions[0, 1] == pytest.approx(jumped, rel=1e-10)
    assert found.filtered[-1] == pytest.approx(found.smoothed[-1], rel=RTOL_FLOAT64)
    earlier = regimes.filter_and_smooth(returns[:3], means, stds, transition, start)
    np.testing.assert_allclose(earlier.filtered, found.filtered[:3], rtol=RTOL_FLOAT64)


def test_the_filter_is_that_of_a_plain_loop_over_many_blocks() -> None:
    returns = chain_sample(np.random.default_rng(23), 333, np.array([[0.95, 0.05], [0.2, 0.8]]), np.array([0.01, 0.09]))
    returns[100] = 3.0  # far out in every state
    means, stds = np.array([0.0, -0.002]), np.array([0.011, 0.08])
    transition, start = np.array([[0.94, 0.06], [0.25, 0.75]]), np.array([0.5, 0.5])
    found = regimes.filter_and_smooth(returns, means, stds, transition, start)
    current, log_likelihood, slow = start, 0.0, []
    for r in returns:
        logs = stats.norm.logpdf(r, means, stds)
        joint = current * np.exp(logs - logs.max())
        log_likelihood += math.log(joint.sum()) + float(logs.max())
        slow.append(joint / joint.sum())
        current = slow[-1] @ transition
    assert found.log_likelihood == pytest.approx(log_likelihood, rel=RTOL_FLOAT64)
    np.testing.assert_allclose(found.filtered, slow, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("mean", [0.1, 0.45, 0.9])
def test_the_correlation_of_a_state_averages_as_asked_and_stays_regular(mean: float) -> None:
    rng = np.random.default_rng(14)
    factors = rng.standard_normal((6, 3))
    covariance = factors @ factors.T + 3.0 * np.ones((6, 6)) + np.eye(6)
    size = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(size, size)
    prices = np.array([True, True, True, True, False, False])
    moved = regimes.state_correlation(correlation, mean, prices=prices)
    block = moved[:4, :4][~np.eye(4, dtype=bool)]
    assert float(block.mean()) == pytest.approx(mean, rel=1e-10)
    assert np.linalg.eigvalsh(moved)[0] > 0.0
    np.testing.assert_array_equal(np.diag(moved), 1.0)


# ---- implied volatility, mean reversion ------------------------------------------------------------------------------


def test_the_vol_rule_is_recovered_and_its_gain_over_the_linear_one_is_told() -> None:
    rng = np.random.default_rng(15)
    returns = 0.03 * rng.standard_t(4.0, 2000)
    sizes = np.abs(returns) - np.mean(np.abs(returns))
    changes = -0.4 * returns + 1.1 * sizes + 0.04 * rng.standard_normal(2000)
    gaps = changes.copy()
    gaps[[5, 90]] = np.nan
    fit = vol_rule.vol_rule_fit(gaps, returns)
    assert fit.days == 1998
    assert_recovered("beta", fit.beta, -0.4, fit.standard_errors[0])
    assert_recovered("beta_abs", fit.beta_abs, 1.1, fit.standard_errors[1])
    assert_recovered("eta", fit.eta, 0.04, 0.04 / math.sqrt(2.0 * fit.days))
    assert fit.standard_errors[0] == pytest.approx(0.04 / math.sqrt(np.sum(returns**2)), rel=0.1)
    assert fit.r_squared > fit.r_squared_linear + 0.1
    assert fit.eta < fit.eta_linear


def test_mean_reversion_is_recovered() -> None:
    rng = np.random.default_rng(16)
    kappa, theta, sigma, steps = 0.2, 1e-4, 7e-5, 6000
    e = math.exp(-kappa)
    shock = sigma * math.sqrt((1.0 - e * e) / (2.0 * kappa))
    values = [theta]
    for z in rng.standard_normal(steps):
        values.append(theta + (values[-1] - theta) * e + shock * z)
    path = np.array(values)
    fit = mean_reversion_fit(path[:-1], path[1:])
    assert_recovered("e^-kappa", math.exp(-fit.kappa), e, math.sqrt((1.0 - e * e) / steps))
    assert_recovered("theta", fit.theta, theta, shock / (1.0 - e) / math.sqrt(steps))
    assert_recovered("residual", fit.residual_std, shock, shock / math.sqrt(2.0 * steps))
    assert fit.sigma == pytest.approx(fit.residual_std * math.sqrt(2 * fit.kappa / (1 - math.exp(-2 * fit.kappa))))
    assert not fit.bounded


def test_a_walk_that_does_not_revert_is_held_at_the_bound() -> None:
    trend = np.arange(100.0) + 0.01 * np.random.default_rng(17).standard_normal(100)
    fit = mean_reversion_fit(trend[:-1], 1.01 * trend[1:])
    assert fit.bounded
    assert math.isfinite(fit.sigma)


# ---- pegs, liquidity, basis ------------------------------------------------------------------------------------------


def test_the_law_of_a_peg_is_recovered() -> None:
    nu, std, count = 4.0, 5e-4, 6000
    moves = std * math.sqrt((nu - 2.0) / nu) * np.random.default_rng(18).standard_t(nu, count)
    found_std, found_nu = pegs.student_fit(moves)
    assert found_nu in (3.5, 4.0, 5.0)  # neighbours on the grid
    assert found_std == pytest.approx(std, rel=0.05)
    with pytest.raises(ValueError, match="all zero"):
        pegs.student_fit(np.zeros(100))


def test_a_depeg_is_found_with_depth_and_recovery_and_kept_out_of_ordinary_days() -> None:
    rng = np.random.default_rng(19)
    levels = np.exp(2e-4 * rng.standard_normal(400))
    levels[200:204] = [0.95, 0.90, 0.96, 0.985]
    levels[390:] = [0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1]
    history = pegs.peg_history(np.arange(400), levels)
    first, last = history.depegs
    assert (first.first, first.healed) == (200, True)
    assert first.depth == pytest.approx(0.10, rel=RTOL_FLOAT64)
    assert first.recovery_per_day > 0.5
    assert (last.first, last.healed) == (390, False)
    assert last.depth == pytest.approx(0.9)
    # moves into days 1 .. 199 and 206 .. 389: the day that heals, 204, still belongs to the depeg
    assert history.days == 199 + 184
    assert history.daily_std < 1e-3
    assert history.years == pytest.approx(400 / 365)
    assert pegs.peg_history(np.arange(400), levels, ordinary_days=150).days < 150
    with pytest.raises(ValueError, match="ordinary moves"):
        pegs.peg_history(np.arange(50), levels[:50])


def test_rates_and_depths_of_few_events() -> None:
    assert pegs.event_rate(2, 5.0) == 0.5
    count = 4000
    rng = np.random.default_rng(20)
    events = [
        pegs.Depeg(first=i, depth=float(0.4 * rng.beta(2.0, 5.0)), recovery_per_day=0.5, healed=i % 4 > 0)
        for i in range(count)
    ]
    law = pegs.depeg_law(events, 0.4)
    assert [law.depth_a, law.depth_b] == pytest.approx([2.0, 5.0], rel=0.1)
    assert law.recovery_per_day == 0.5
    assert_recovered("lost", law.absorbing_probability, 0.25, math.sqrt(0.25 * 0.75 / count))
    with pytest.raises(ValueError, match="4 depegs; at least 5"):
        pegs.depeg_law(events[:4], 0.4)
    with pytest.raises(ValueError, match="deeper than the cap"):
        pegs.depeg_law(events, 0.1)


def test_depth_by_hand() -> None:
    assert liquidity.median_volume(np.array([np.nan, 0.0, 3.0, 5.0, 4.0])) == 4.0
    assert liquidity.amihud(np.array([0.02, -0.04, np.nan]), np.array([2.0, 4.0, 5.0])) == pytest.approx(0.01)
    # the benchmark stock: 2 % a day on 40 million USD
    assert liquidity.invariance_spread(0.02, 40e6) == pytest.approx(2 * 8.21e-4, rel=RTOL_FLOAT64)
    assert liquidity.invariance_spread(0.02, 8 * 40e6) == pytest.approx(8.21e-4, rel=RTOL_FLOAT64)
    one = np.ones(4)
    highs, lows = np.array([1.01, 1.4, 1.0, np.nan]), np.array([0.99, 1.0, 0.01, 0.9])
    assert liquidity.wick_count(one, highs, lows, one, daily_std=0.05) == 2
    with pytest.raises(ValueError, match="no day with volume"):
        liquidity.median_volume(np.array([0.0, np.nan]))


def test_the_shortfall_of_a_gap_by_hand() -> None:
    # 1 % of 250 is the two largest and half of the third
    sizes = np.concatenate([[0.05, 0.04, 0.02], np.zeros(247)])
    assert basis.expected_shortfall(sizes) == pytest.approx((0.05 + 0.04 + 0.5 * 0.02) / 2.5, rel=RTOL_FLOAT64)
    rng = np.random.default_rng(21)
    gap = 1e-3 * rng.standard_normal(20_001)
    law = basis.gap_law(100.0 * np.exp(gap), np.full(20_001, 100.0))
    # the change of independent gaps is Gaussian with sqrt(2) their size; its 99 % shortfall of |x| is that of 99.5 %
    q = stats.norm.ppf(0.995)
    truth = math.sqrt(2.0) * 1e-3 * stats.norm.pdf(q) / 0.005
    assert law.es_99 == pytest.approx(truth, rel=0.05)
    with pytest.raises(ValueError, match="at least 250"):
        basis.gap_law(np.ones(200), np.ones(200))


# ---- laws with gaps --------------------------------------------------------------------------------------------------


def test_an_asset_without_the_window_gets_the_law_of_its_betas() -> None:
    rng = np.random.default_rng(22)
    dates = 3000
    anchors = 0.03 * rng.standard_normal((dates, 2)) @ np.array([[1.0, 0.7], [0.0, 0.7]])
    other = anchors @ np.array([0.5, 0.8]) + 0.02 * rng.standard_normal(dates)
    returns = np.column_stack([anchors, other])
    returns[:1000] *= 3.0  # a stormy window, in which anchors and residuals grow alike
    full = laws.window_price_law(returns[:1000], returns, (0, 1))
    assert not full.filled.any()
    short = returns.copy()
    short[:1000, 2] = np.nan
    filled = laws.window_price_law(short[:1000], short, (0, 1))
    assert list(filled.filled) == [False, False, True]
    np.testing.assert_array_equal(filled.std[:2], full.std[:2])
    assert filled.std[2] == pytest.approx(full.std[2], rel=STANDARD_ERRORS / math.sqrt(2 * 1000))
    np.testing.assert_allclose(filled.correlation, full.correlation, atol=STANDARD_ERRORS * 0.5 / math.sqrt(1000))
    assert np.linalg.eigvalsh(filled.correlation)[0] > 0.0
    short[:1000, 0] = np.nan
    with pytest.raises(ValueError, match="anchor"):
        laws.window_price_law(short[:1000], short, (0, 1))


def test_volatilities_without_history_follow_their_underlying() -> None:
    prices = np.array([[1.0, 0.8, 0.5], [0.8, 1.0, 0.6], [0.5, 0.6, 1.0]])
    observed = np.full((2, 5), np.nan)
    whole = laws.with_rule_vols(prices, observed, (0, 2), np.array([-0.3, -0.3]))
    assert whole[3, 0] == pytest.approx(-0.3)
    assert whole[3, 1] == pytest.approx(-0.3 * 0.8)
    assert whole[3, 4] == pytest.approx(0.5)
    assert np.linalg.eigvalsh(whole)[0] > 0.0
    observed[0, :3] = [-0.25, -0.2, -0.1]
    measured = laws.with_rule_vols(prices, observed, (0, 2), np.array([-0.25, -0.25]))
    np.testing.assert_array_equal(measured[3, :3], [-0.25, -0.2, -0.1])
    np.testing.assert_array_equal(measured, measured.T)
    rule = vol_rule.VolRule(-0.5, 1.0, 0.02, 0.05, 0.2, -0.5, 0.06, 0.1, (0.1, 0.1), 500)
    assert laws.rule_std(rule, 0.04, 0.6) == pytest.approx(math.sqrt(0.02**2 + 0.024**2 + 0.05**2))
