"""Closed forms of the scenario laws against slow twins: 30-digit quadrature, exact fractions, differential equations.

The reference figures from outside are in `test_vectors.py`; the cases here are harder ones of the same kinds.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np
import pytest
from scipy import integrate

from aggregator.heston import (
    HestonModel,
    NormalJumps,
    expected_total_variance,
    explosion_time,
    heston_option,
    log_moment,
    mean_variance,
    strip_width,
)
from aggregator.pricing import black76_price
from aggregator.scenario_laws import (
    ReturnMoments,
    jump_counts,
    kou_jump_moments,
    markov_switching_moments,
    mean_reverting_step,
    merton_jump_moments,
    merton_jump_option,
    skewed_t_moments,
    stationary_distribution,
    t_copula_tail_dependence,
)

HOUR = 1 / (365 * 24)

# ---------------------------------------------------------------------------------------------------------------------
# Tail dependence


@pytest.mark.parametrize("nu", [0.5, 2.5, 4.0, 30.0])
@pytest.mark.parametrize("rho", [-0.95, -0.5, 0.0, 0.7, 0.95, 0.999])
def test_tail_dependence_is_the_integral_of_the_t_density(nu: float, rho: float) -> None:
    with mp.workdps(30):
        n = mp.mpf(nu) + 1
        x = mp.sqrt(n * (1 - mp.mpf(rho)) / (1 + mp.mpf(rho)))
        constant = mp.gamma((n + 1) / 2) / (mp.sqrt(n * mp.pi) * mp.gamma(n / 2))
        tail = mp.quad(lambda t: constant * (1 + t * t / n) ** (-(n + 1) / 2), [x, 2 * x + 1, 20 * x + 20, mp.inf])
        expected = float(2 * tail)
    found = t_copula_tail_dependence(degrees_of_freedom=nu, correlation=rho)
    assert found.lower == found.upper == pytest.approx(expected, rel=1e-11)
    assert math.sin(0.5 * math.pi * found.kendall_tau) == pytest.approx(rho, abs=1e-15)


def test_tail_dependence_at_its_ends() -> None:
    assert t_copula_tail_dependence(degrees_of_freedom=3, correlation=-1).lower == 0.0
    assert t_copula_tail_dependence(degrees_of_freedom=3, correlation=1).lower == pytest.approx(1.0, abs=1e-15)
    for nu, rho, name in (
        (0.0, 0.5, "degrees"),
        (math.inf, 0.5, "degrees"),
        (3.0, 1.01, "corr"),
        (3, math.nan, "corr"),
    ):
        with pytest.raises(ValueError, match=name):
            t_copula_tail_dependence(degrees_of_freedom=nu, correlation=rho)


# ---------------------------------------------------------------------------------------------------------------------
# Jumps


def _agrees_with_its_cumulants(
    found: ReturnMoments, jump: Callable[[Any], Any], lam: float, sigma: float, t: float
) -> None:
    """`jump(u)` = E[e^{uJ}]; the drift follows from E[e^X] = 1, the moments from derivatives of the log at 0."""
    with mp.workdps(40):
        drift = -(mp.mpf(sigma) ** 2 / 2 + lam * (jump(mp.mpf(1)) - 1))

        def cumulants(u: Any) -> Any:
            return t * (drift * u + mp.mpf(sigma) ** 2 * u * u / 2 + lam * (jump(u) - 1))

        first, second, third, fourth = (mp.diff(cumulants, 0, n) for n in (1, 2, 3, 4))
        expected = (float(jump(mp.mpf(1)) - 1), float(first), float(second))
        shape = (float(third / second**1.5), float(fourth / second**2))
    assert found[:3] == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert found[3:] == pytest.approx(shape, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("years", [HOUR, 0.25, 5.0])
@pytest.mark.parametrize(
    ("lam", "m", "s", "sigma"), [(12.0, -0.04, 0.06, 0.5), (0.1, -0.5, 0.0, 0.01), (300.0, 0.002, 0.3, 1.5)]
)
def test_merton_moments_are_derivatives_of_the_cumulants(
    lam: float, m: float, s: float, sigma: float, years: float
) -> None:
    found = merton_jump_moments(intensity=lam, jump_mean=m, jump_deviation=s, vol=sigma, years=years)
    _agrees_with_its_cumulants(found, lambda u: mp.exp(m * u + mp.mpf(s) ** 2 * u * u / 2), lam, sigma, years)


@pytest.mark.parametrize("years", [HOUR, 0.25, 5.0])
@pytest.mark.parametrize(("p", "up", "down"), [(0.4, 25.0, 20.0), (0.0, 25.0, 2.0), (1.0, 1.2, 3.0), (0.5, 500.0, 0.7)])
def test_kou_moments_are_derivatives_of_the_cumulants(p: float, up: float, down: float, years: float) -> None:
    found = kou_jump_moments(intensity=7.0, up_probability=p, up_rate=up, down_rate=down, vol=0.4, years=years)

    def up_part(u: Any) -> Any:
        return mp.mpf(p) * up / (up - u) if p else mp.mpf(0)

    _agrees_with_its_cumulants(found, lambda u: up_part(u) + (1 - mp.mpf(p)) * down / (down + u), 7.0, 0.4, years)


def test_a_law_without_variance_has_no_shape() -> None:
    still = merton_jump_moments(intensity=0.0, jump_mean=-0.1, jump_deviation=0.1, vol=0.0, years=1.0)
    assert still[1:] == (0.0, 0.0, 0.0, 0.0)
    assert (
        kou_jump_moments(
            intensity=5.0, up_probability=0.5, up_rate=10, down_rate=10, vol=0.3, years=0.0
        ).excess_kurtosis
        == 0.0
    )


MERTON = {"intensity": 12.0, "jump_mean": -0.04, "jump_deviation": 0.06, "vol": 0.5, "years": 0.1}
KOU = {"intensity": 5.0, "up_probability": 0.3, "up_rate": 10.0, "down_rate": 5.0, "vol": 0.6, "years": 1.0}


@pytest.mark.parametrize(
    ("function", "good", "change"),
    [
        (merton_jump_moments, MERTON, {"intensity": -1.0}),
        (merton_jump_moments, MERTON, {"jump_deviation": -0.1}),
        (merton_jump_moments, MERTON, {"jump_mean": math.nan}),
        (merton_jump_moments, MERTON, {"jump_mean": 800.0}),
        (merton_jump_moments, MERTON, {"vol": -0.1}),
        (merton_jump_moments, MERTON, {"years": math.inf}),
        (kou_jump_moments, KOU, {"up_rate": 1.0}),
        (kou_jump_moments, KOU, {"down_rate": 0.0}),
        (kou_jump_moments, KOU, {"up_probability": 1.1}),
        (kou_jump_moments, KOU, {"intensity": math.nan}),
    ],
)
def test_a_bad_jump_law_is_refused_by_name(function: Any, good: dict[str, float], change: dict[str, float]) -> None:
    function(**good)
    with pytest.raises(ValueError, match=next(iter(change))):
        function(**{**good, **change})


def _by_fourier(forward: float, strike: float, log_moments: Callable[[Any], Any]) -> Any:
    """Call by Lewis's integral on the line Re u = 1/2, with 30 digits; `log_moments(u)` = ln E[e^{uX}]."""
    k = mp.log(mp.mpf(strike) / mp.mpf(forward))

    def integrand(y: Any) -> Any:
        u = mp.mpc(0.5, y)
        return (mp.exp(log_moments(u) - u * k) / (u * (u - 1))).real

    end = mp.mpf(1)
    while abs(integrand(end)) > mp.mpf(10) ** -28 and end < 1e8:
        end *= 2
    points = [mp.mpf(0)]
    for a, b in itertools.pairwise([mp.mpf(0), *(end * mp.mpf(2) ** -n for n in range(12, -1, -1))]):
        pieces = int(min(200, max(1, mp.ceil(abs(k) * (b - a) / 20))))
        points += [a + (b - a) * (n + 1) / pieces for n in range(pieces)]
    return forward * (1 + mp.exp(k) * mp.quad(integrand, points) / mp.pi)


@pytest.mark.parametrize("strike", [40.0, 100.0, 260.0])
@pytest.mark.parametrize(
    ("lam", "m", "s", "sigma", "t"),
    [(12.0, -0.04, 0.06, 0.5, 0.1), (40.0, 0.02, 0.15, 0.3, 2.0), (0.2, -0.4, 0.1, 1.0, 1.0)],
)
def test_merton_options_are_the_inverse_of_their_characteristic_function(
    lam: float, m: float, s: float, sigma: float, t: float, strike: float
) -> None:
    found = merton_jump_option(100.0, strike, intensity=lam, jump_mean=m, jump_deviation=s, vol=sigma, years=t)
    with mp.workdps(30):

        def log_moments(u: Any) -> Any:
            jump = mp.exp(m * u + mp.mpf(s) ** 2 * u * u / 2) - 1
            correction = mp.exp(m + mp.mpf(s) ** 2 / 2) - 1
            return t * (mp.mpf(sigma) ** 2 / 2 * u * (u - 1) + lam * (jump - correction * u))

        call = _by_fourier(100.0, strike, log_moments)
        expected = float(call if strike >= 100 else call - 100 + strike)
    assert min(found) == pytest.approx(expected, rel=1e-12, abs=1e-25)
    assert found.call - found.put == pytest.approx(100.0 - strike, abs=1e-13)


@pytest.mark.parametrize("strike", [1.0, 90.0, 100.0, 111.0, 2000.0])
def test_jumps_that_are_none_leave_the_price_of_black(strike: float) -> None:
    black = float(black76_price(100.0, strike, years=0.3, vol=0.8, is_call=True))
    for law in (
        {"intensity": 0.0, "jump_mean": -0.5, "jump_deviation": 0.2},
        {"intensity": 40.0, "jump_mean": 0.0, "jump_deviation": 0.0},
    ):
        assert merton_jump_option(100.0, strike, **law, vol=0.8, years=0.3).call == pytest.approx(black, rel=1e-12)
    at_once = merton_jump_option(100.0, strike, intensity=40.0, jump_mean=-0.1, jump_deviation=0.1, vol=0.8, years=0.0)
    assert at_once == (max(100.0 - strike, 0.0), max(strike - 100.0, 0.0))


def test_the_mixture_keeps_probability_and_forward_for_few_and_very_many_jumps() -> None:
    for intensity in (1e-9, 0.3, 40.0, 5e4):
        counts = jump_counts(intensity=intensity, jump_mean=-0.02, jump_deviation=0.05, years=1.0)
        assert math.fsum(counts.probability) == pytest.approx(1.0, abs=1e-12)
        assert math.fsum(counts.probability * np.exp(counts.log_forward)) == pytest.approx(1.0, abs=1e-10)
    with pytest.raises(ValueError, match="intensity"):
        jump_counts(intensity=1e9, jump_mean=0.0, jump_deviation=0.1, years=1.0)


def test_normal_jumps_without_diffusion_are_priced() -> None:
    found = merton_jump_option(100.0, 100.0, intensity=2.0, jump_mean=-0.1, jump_deviation=0.0, vol=0.0, years=1.0)
    factor = 2.0 * -math.expm1(-0.1)
    terms = [
        math.exp(-2.0) * 2.0**n / math.factorial(n) * max(100.0 * math.exp(-0.1 * n + factor) - 100.0, 0.0)
        for n in range(40)
    ]
    assert found.call == pytest.approx(math.fsum(terms), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Skewed t


@pytest.mark.parametrize("nu", [4.001, 4.5, 6.0, 40.0])
def test_skewed_t_moments_follow_from_those_of_the_mixing_variable(nu: float) -> None:
    gamma, scale = np.array([-0.2, 0.5, 0.0]), np.array([[1.0, 0.5, 0.1], [0.5, 2.0, -0.3], [0.1, -0.3, 0.5]])
    with mp.workdps(25):
        half = mp.mpf(nu) / 2
        # E[W^p] = E[V^-p], V gamma distributed with shape and rate nu/2.
        first, second = (half**p * mp.gamma(half - p) / mp.gamma(half) for p in (1, 2))
        mean, spread = float(first), float(second - first**2)
    found = skewed_t_moments(gamma, scale, degrees_of_freedom=nu)
    np.testing.assert_allclose(found.mean, mean * gamma, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, mean * scale + spread * np.outer(gamma, gamma), rtol=1e-10)


def test_a_skewed_t_without_two_moments_is_refused() -> None:
    eye = np.eye(2)
    assert skewed_t_moments([0.0, 0.0], eye, degrees_of_freedom=3.0).covariance[0, 0] == pytest.approx(3.0)
    for gamma, scale, nu, name in (
        ([0.1, 0.0], eye, 4.0, "degrees_of_freedom must exceed 4"),
        ([0.0, 0.0], eye, 2.0, "degrees_of_freedom must exceed 2"),
        ([0.1, 0.0], [[1.0, 0.5], [0.4, 1.0]], 6.0, "scale"),
        ([0.1, 0.0], [[1.0, 2.0], [2.0, 1.0]], 6.0, "scale"),
        ([0.1], eye, 6.0, "expected gamma"),
        ([math.nan, 0.0], eye, 6.0, "finite"),
    ):
        with pytest.raises(ValueError, match=name):
            skewed_t_moments(gamma, scale, degrees_of_freedom=nu)


# ---------------------------------------------------------------------------------------------------------------------
# Regimes


def _exact_stationary(matrix: list[list[float]]) -> list[Fraction]:
    """Balance equations in fractions, from the entries off the diagonal; the last equation is that masses sum to 1."""
    n = len(matrix)
    flow = [[Fraction(matrix[i][j]) if i != j else Fraction(0) for j in range(n)] for i in range(n)]
    rows = [[flow[i][j] - (sum(flow[j]) if i == j else 0) for i in range(n)] + [Fraction(0)] for j in range(n - 1)]
    rows.append([Fraction(1)] * n + [Fraction(1)])
    for column in range(n):
        pivot = next(r for r in range(column, n) if rows[r][column] != 0)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for r in range(n):
            if r != column and rows[r][column] != 0:
                factor = rows[r][column] / rows[column][column]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[column], strict=True)]
    return [rows[r][n] / rows[r][r] for r in range(n)]


CHAINS = [
    [[0.98, 0.02], [0.1, 0.9]],
    [[1 - 1e-13, 1e-13], [0.3, 0.7]],
    [[0.9, 0.1, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]],
    [[1 - 2e-9, 1e-9, 1e-9], [1e-6, 1 - 2e-6, 1e-6], [0.4, 0.3, 0.3]],
    [[0.0, 1.0], [1.0, 0.0]],
    [[0.2, 0.8, 0.0], [0.0, 1 - 1e-7, 1e-7], [0.0, 0.5, 0.5]],
]


@pytest.mark.parametrize("matrix", CHAINS)
def test_a_stationary_law_keeps_its_digits_however_rare_a_state_is(matrix: list[list[float]]) -> None:
    expected = [float(x) for x in _exact_stationary(matrix)]
    np.testing.assert_allclose(stationary_distribution(matrix), expected, rtol=1e-13)


@pytest.mark.parametrize("lag", [1, 2, 7])
@pytest.mark.parametrize("matrix", CHAINS)
def test_switching_moments_are_sums_over_all_paths(matrix: list[list[float]], lag: int) -> None:
    n = len(matrix)
    mu, sigma = [0.001, -0.004, 0.02][:n], [0.02, 0.07, 0.0][:n]
    found = markov_switching_moments(matrix, mu, sigma, lag=lag)
    pi = stationary_distribution(matrix)

    def expectation(of: Callable[[int, int], float]) -> float:
        total = []
        for path in itertools.product(range(n), repeat=lag + 1):
            mass = float(pi[path[0]])
            for a, b in itertools.pairwise(path):
                mass *= matrix[a][b]
            total.append(mass * of(path[0], path[-1]))
        return math.fsum(total)

    mean = expectation(lambda i, j: mu[i])
    variance = expectation(lambda i, j: sigma[i] ** 2 + mu[i] ** 2) - mean**2
    squares = [sigma[i] ** 2 + mu[i] ** 2 for i in range(n)]
    level = expectation(lambda i, j: squares[i])
    fourth = expectation(lambda i, j: (mu[i] - mean) ** 4 + 6 * (mu[i] - mean) ** 2 * sigma[i] ** 2 + 3 * sigma[i] ** 4)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.variance == pytest.approx(variance, rel=1e-9)
    assert found.kurtosis == pytest.approx(fourth / variance**2, rel=1e-9)
    cross = expectation(lambda i, j: (mu[i] - mean) * (mu[j] - mean))
    assert found.autocovariance == pytest.approx(cross, rel=1e-8, abs=1e-18)
    of_squares = expectation(lambda i, j: (squares[i] - level) * (squares[j] - level))
    assert found.autocovariance_of_squares == pytest.approx(of_squares, rel=1e-8, abs=1e-18)


@pytest.mark.parametrize(
    ("matrix", "mu", "sigma", "complaint"),
    [
        ([[0.9, 0.2], [0.1, 0.9]], [0, 0], [1, 1], "transition row 0 sums to"),
        ([[1.1, -0.1], [0.1, 0.9]], [0, 0], [1, 1], "transition must hold"),
        ([[0.9, 0.1]], [0], [1], "square"),
        ([[1.0, 0.0], [0.0, 1.0]], [0, 0], [1, 1], "never meet"),
        ([[0.9, 0.1], [0.1, 0.9]], [0], [1, 1], "2 means"),
        ([[0.9, 0.1], [0.1, 0.9]], [0, 0], [1, -1], "deviation"),
        ([[0.9, 0.1], [0.1, 0.9]], [0, 0], [0, 0], "without variance"),
    ],
)
def test_a_bad_chain_is_refused(matrix: Any, mu: Any, sigma: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        markov_switching_moments(matrix, mu, sigma)


# ---------------------------------------------------------------------------------------------------------------------
# Mean reversion


@pytest.mark.parametrize("kappa", [1e-8, 0.02, 0.1, 3.0, 400.0])
@pytest.mark.parametrize("dt", [1e-4, 0.25, 2.0])
def test_a_mean_reverting_step_is_the_integral_of_its_kernel(kappa: float, dt: float) -> None:
    found = mean_reverting_step(0.03, reversion=kappa, level=-0.01, deviation=0.2, step=dt)
    with mp.workdps(40):
        k, t = mp.mpf(kappa), mp.mpf(dt)
        mean = float(-mp.mpf(0.01) + mp.mpf(0.04) * mp.exp(-k * t))
        variance = float(mp.mpf(0.2) ** 2 * mp.quad(lambda s: mp.exp(-2 * k * (t - s)), [0, t / 2, t]))
        # The integral of x weighs the noise at s by (1 - e^{-k (t - s)}) / k.
        of_integral = float(mp.mpf(0.2) ** 2 * mp.quad(lambda s: (mp.expm1(-k * (t - s)) / k) ** 2, [0, t / 2, t]))
        path = float(mp.quad(lambda s: -mp.mpf(0.01) + mp.mpf(0.04) * mp.exp(-k * s), [0, t / 2, t]))
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.variance == pytest.approx(variance, rel=1e-12)
    assert found.integral_mean == pytest.approx(path, rel=1e-12)
    assert found.integral_variance == pytest.approx(of_integral, rel=1e-10)
    assert found.stationary_variance == pytest.approx(0.02 / kappa, rel=1e-12)


def test_without_reversion_it_is_a_brownian_motion() -> None:
    found = mean_reverting_step(0.3, reversion=0.0, level=5.0, deviation=0.2, step=2.0)
    assert found == pytest.approx((0.3, 0.08, math.inf, 0.6, 0.04 * 8 / 3))
    for change, name in (({"reversion": -1.0}, "reversion"), ({"step": -1.0}, "step"), ({"level": math.nan}, "level")):
        with pytest.raises(ValueError, match=name):
            mean_reverting_step(0.0, **{"reversion": 1.0, "level": 0.0, "deviation": 1.0, "step": 1.0, **change})


# ---------------------------------------------------------------------------------------------------------------------
# Stochastic variance


def _heston_log_moments(model: HestonModel, years: float) -> Callable[[Any], Any]:
    """ln E[e^{uX}] in multiple precision, in the form with g = (b - d)/(b + d), unlike the code under test."""
    v0, kappa, theta, xi, rho = (
        mp.mpf(getattr(model, name))
        for name in ("initial_variance", "reversion", "level", "vol_of_variance", "correlation")
    )

    def log_moments(u: Any) -> Any:
        b = kappa - rho * xi * u
        d = mp.sqrt(b * b - xi * xi * u * (u - 1))
        g, decay = (b - d) / (b + d), mp.exp(-d * years)
        drift = kappa * theta / xi**2 * ((b - d) * years - 2 * mp.log((1 - g * decay) / (1 - g)))
        return drift + v0 / xi**2 * (b - d) * (1 - decay) / (1 - g * decay)

    return log_moments


HARD = [
    pytest.param(HestonModel(0.36, 3.0, 0.36, 0.8, -0.3), 30 / 365, 250.0, id="far strike"),
    pytest.param(HestonModel(0.5, 1.0, 0.3, 3.0, -0.95), 30 / 365, 130.0, id="strong correlation, strike beyond reach"),
    pytest.param(HestonModel(0.5, 1.0, 0.3, 3.0, 0.95), 30 / 365, 130.0, id="strong positive correlation"),
    pytest.param(HestonModel(0.04, 0.5, 0.04, 1.0, 0.9), 10.0, 60.0, id="long, moments explode at once"),
    pytest.param(HestonModel(0.36, 3.0, 0.36, 0.8, -0.3), HOUR, 101.0, id="one hour"),
    pytest.param(HestonModel(0.36, 2.0, 0.36, 5.0, 0.0), 0.5, 120.0, id="variance mostly at zero"),
    pytest.param(HestonModel(0.0, 3.0, 0.36, 0.8, -0.3), 0.1, 100.0, id="variance starts at zero"),
    pytest.param(HestonModel(0.36, 0.0, 0.36, 0.8, 0.5), 2.0, 100.0, id="no reversion"),
    pytest.param(HestonModel(0.36, 2.0, 0.3, 1e-4, 0.5), 0.5, 120.0, id="hardly any volatility of variance"),
    pytest.param(HestonModel(1.5, 8.0, 0.8, 6.0, -0.7), 0.25, 20.0, id="deep put"),
]


@pytest.mark.parametrize(("model", "years", "strike"), HARD)
def test_heston_options_keep_twelve_digits_in_hard_cases(model: HestonModel, years: float, strike: float) -> None:
    found = heston_option(100.0, strike, model=model, years=years)
    with mp.workdps(40 if model.vol_of_variance < 0.01 else 30):
        call = _by_fourier(100.0, strike, _heston_log_moments(model, years))
        expected = float(call if strike >= 100 else call - 100 + strike)
    assert min(found.options) == pytest.approx(expected, rel=1e-11, abs=1e-22)
    assert abs(min(found.options) - expected) <= found.quadrature_error + 1e-12 * expected
    assert found.options.call - found.options.put == pytest.approx(100.0 - strike, abs=1e-12)


@pytest.mark.parametrize("power", [-1.0, 0.4, 1.5, 0.5 + 7j, -2.0 + 30j, 1.2 - 4j])
def test_the_moment_solves_its_differential_equation(power: complex) -> None:
    model, years = HestonModel(0.2, 1.5, 0.4, 1.1, -0.6), 0.8
    xi = model.vol_of_variance

    def slope(_: float, state: Any) -> Any:
        loading = state[1]
        b = model.reversion - model.correlation * xi * power
        return [
            model.reversion * model.level * loading,
            0.5 * xi**2 * loading**2 - b * loading + 0.5 * power * (power - 1),
        ]

    path = integrate.solve_ivp(slope, (0.0, years), np.zeros(2, complex), method="DOP853", rtol=1e-12, atol=1e-14)
    expected = path.y[0, -1] + model.initial_variance * path.y[1, -1]
    # A path from the real axis to the power, as the logarithm is followed along it.
    line = (power.real + 1j * np.linspace(0.0, complex(power).imag, 50)).astype(np.complex128)
    assert log_moment(line, model, years=years)[-1] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("power", "model"),
    [
        (5.0, HestonModel(0.04, 0.5, 0.04, 1.0, 0.9)),
        (3.0, HestonModel(0.04, 0.5, 0.04, 2.0, 0.2)),
        (-8.0, HestonModel(0.04, 4.0, 0.04, 1.0, -0.3)),
        (1.5, HestonModel(0.04, 0.5, 0.04, 2.0, 1.0)),
    ],
)
def test_moments_explode_when_their_differential_equation_does(power: float, model: HestonModel) -> None:
    xi = model.vol_of_variance
    b = model.reversion - model.correlation * xi * power

    def slope(_: float, loading: Any) -> Any:
        return 0.5 * xi**2 * loading**2 - b * loading + 0.5 * power * (power - 1)

    def large(_: float, loading: Any) -> float:
        return float(loading[0]) - 1e7

    large.terminal = True  # type: ignore[attr-defined]
    path = integrate.solve_ivp(slope, (0.0, 100.0), [0.0], events=large, method="DOP853", rtol=1e-10, atol=1e-10)
    blown_up = float(path.t_events[0][0]) + 2.0 / (xi**2 * 1e7)
    assert explosion_time(power, model) == pytest.approx(blown_up, rel=1e-6)
    width = strip_width(model, years=blown_up, right=power > 1)
    assert width == pytest.approx(power - 1 if power > 1 else -power, rel=1e-5)


def test_without_volatility_of_variance_it_is_black_and_merton() -> None:
    steady = HestonModel(0.5, 2.0, 0.3, 0.0, -0.5)
    vol = math.sqrt(expected_total_variance(steady, years=0.7) / 0.7)
    black = float(black76_price(100.0, 130.0, years=0.7, vol=vol, is_call=True))
    assert heston_option(100.0, 130.0, model=steady, years=0.7).options.call == pytest.approx(black, rel=1e-13)
    nearly = HestonModel(0.5, 2.0, 0.3, 1e-7, -0.5)
    jumps = NormalJumps(6.0, -0.05, 0.08)
    with_jumps = [heston_option(100.0, 130.0, model=m, years=0.7, jumps=jumps).options.call for m in (steady, nearly)]
    assert with_jumps[0] == pytest.approx(with_jumps[1], rel=1e-6)
    merton = merton_jump_option(100.0, 130.0, intensity=6.0, jump_mean=-0.05, jump_deviation=0.08, vol=vol, years=0.7)
    assert with_jumps[0] == pytest.approx(merton.call, rel=1e-13)


@pytest.mark.parametrize("strike", [55.0, 190.0])
@pytest.mark.parametrize(
    "jumps", [NormalJumps(6.0, -0.05, 0.08), NormalJumps(1.0, -0.5, 0.0), NormalJumps(40.0, 0.1, 0.02)]
)
def test_bates_options_are_the_inverse_of_the_product_of_both_laws(jumps: NormalJumps, strike: float) -> None:
    model, years = HestonModel(0.3, 2.0, 0.5, 1.2, -0.7), 0.4
    found = heston_option(100.0, strike, model=model, years=years, jumps=jumps)
    with mp.workdps(30):
        diffusive = _heston_log_moments(model, years)
        correction = mp.exp(jumps.mean + mp.mpf(jumps.deviation) ** 2 / 2) - 1

        def log_moments(u: Any) -> Any:
            jump = mp.exp(jumps.mean * u + mp.mpf(jumps.deviation) ** 2 * u * u / 2) - 1
            return diffusive(u) + jumps.intensity * years * (jump - correction * u)

        call = _by_fourier(100.0, strike, log_moments)
        expected = float(call if strike >= 100 else call - 100 + strike)
    assert min(found.options) == pytest.approx(expected, rel=1e-11)


def test_null_jumps_leave_heston() -> None:
    model = HestonModel(0.36, 3.0, 0.36, 0.8, -0.3)
    plain = heston_option(100.0, 120.0, model=model, years=0.1).options
    for jumps in (NormalJumps(0.0, -0.5, 0.3), NormalJumps(9.0, 0.0, 0.0)):
        assert heston_option(100.0, 120.0, model=model, years=0.1, jumps=jumps).options == pytest.approx(
            plain, rel=1e-12
        )


def test_prices_fall_and_bend_with_the_strike_whatever_the_law() -> None:
    strikes = np.exp(np.linspace(-2.0, 2.0, 17)) * 100.0
    for model, years in itertools.product(
        (
            HestonModel(0.1, 0.3, 0.2, 4.0, 0.99),
            HestonModel(1.0, 5.0, 0.5, 2.0, -1.0),
            HestonModel(0.01, 0.0, 0.0, 1.0, 0.0),
        ),
        (1 / 365, 0.5, 20.0),
    ):
        calls = np.array([heston_option(100.0, float(k), model=model, years=years).options.call for k in strikes])
        slopes = np.diff(calls) / np.diff(strikes)
        assert np.all(slopes <= 1e-12)
        assert np.all(slopes >= -1.0 - 1e-12)
        assert np.all(np.diff(slopes) >= -1e-11)


def test_the_mean_variance_and_what_has_no_time_or_variance() -> None:
    model = HestonModel(0.49, 4.0, 0.4, 1.0, -0.4)
    assert mean_variance(model, years=0.0) == 0.49
    assert mean_variance(model, years=1e3) == pytest.approx(0.4)
    assert heston_option(100.0, 90.0, model=model, years=0.0).options == (10.0, 0.0)
    dead = HestonModel(0.0, 4.0, 0.0, 1.0, -0.4)
    assert heston_option(100.0, 90.0, model=dead, years=1.0).options == (10.0, 0.0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"initial_variance": -0.1}, "initial_variance"),
        ({"reversion": math.nan}, "reversion"),
        ({"level": -1.0}, "level"),
        ({"vol_of_variance": math.inf}, "vol_of_variance"),
        ({"correlation": 1.01}, "correlation"),
    ],
)
def test_a_bad_variance_law_is_refused_by_name(change: dict[str, float], name: str) -> None:
    good = {"initial_variance": 0.3, "reversion": 1.0, "level": 0.3, "vol_of_variance": 0.5, "correlation": 0.0}
    with pytest.raises(ValueError, match=name):
        HestonModel(**{**good, **change})
    for arguments, complaint in (((0.0, 100.0), "forward"), ((100.0, -1.0), "strike")):
        with pytest.raises(ValueError, match=complaint):
            heston_option(*arguments, model=HestonModel(**good), years=1.0)
    with pytest.raises(ValueError, match="intensity"):
        heston_option(100.0, 100.0, model=HestonModel(**good), years=1.0, jumps=NormalJumps(-1.0, 0.0, 0.1))
