"""Laws of the scenario generators in closed form: moments, option prices, tail dependence; their yardstick.

Host side, NumPy and SciPy in float64; nothing here is used by a sweep. Rates, intensities and volatilities are per
year, times in years, unless a function says otherwise; prices are undiscounted, in the unit of the forward. X is the
log-return over the horizon, ln(F_T / F_0). Arguments outside of their domain raise `ValueError`, which names them.
The law with stochastic variance has a module of its own, `heston`.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.sparse import csgraph, csr_array

FloatArray = NDArray[np.float64]

# Rows of a transition matrix may miss 1 by the rounding of figures that were typed with nine digits.
_ROW_SUM_SLACK = 1e-9


class TailDependence(NamedTuple):
    """Of a pair under a t copula: limits of P(both beyond their q-quantile) / q in either tail, and Kendall's tau."""

    lower: float
    upper: float
    kendall_tau: float


class ReturnMoments(NamedTuple):
    """Of a log-return: `drift_correction` is E[e^J] - 1 of one jump J, the rate by which jumps lift the price.

    Skewness and excess kurtosis are 0 for a law without variance.
    """

    drift_correction: float
    mean: float
    variance: float
    skewness: float
    excess_kurtosis: float


class OptionPair(NamedTuple):
    """Prices of a call and a put of one strike and expiry."""

    call: float
    put: float


class MeanAndCovariance(NamedTuple):
    """First two moments of a random vector, shapes [n] and [n, n]."""

    mean: FloatArray
    covariance: FloatArray


class SwitchingMoments(NamedTuple):
    """Of a return whose regime is a stationary Markov chain: `kurtosis` is the full one (3 for a normal law).

    The two autocovariances are those of the return and of its square, at the lag asked for.
    """

    stationary: FloatArray
    mean: float
    variance: float
    kurtosis: float
    autocovariance: float
    autocovariance_of_squares: float


class MeanRevertingStep(NamedTuple):
    """Law of an Ornstein-Uhlenbeck step: mean and variance at its end, and of the integral over it.

    `stationary_variance` is infinite for a process that does not revert.
    """

    mean: float
    variance: float
    stationary_variance: float
    integral_mean: float
    integral_variance: float


def required(name: str, value: float, *, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a float; raises `ValueError` with `name` unless it is finite and within [least, most]."""
    number = float(value)
    if not (math.isfinite(number) and least <= number <= most):
        raise ValueError(f"{name} must be finite and within [{least:g}, {most:g}], found {value!r}")
    return number


def required_positive(name: str, value: float) -> float:
    """`value` as a float; raises `ValueError` with `name` unless it is finite and above 0."""
    number = float(value)
    if not (math.isfinite(number) and number > 0.0):
        raise ValueError(f"{name} must be finite and positive, found {value!r}")
    return number


def t_copula_tail_dependence(*, degrees_of_freedom: float, correlation: float) -> TailDependence:
    """Tail dependence of two variables under a t copula; both tails alike.

        lambda = 2 T_{nu+1}( -sqrt((nu+1) (1-rho) / (1+rho)) );   tau = 2/pi arcsin(rho)

    `correlation` -1 gives 0 and 1 gives 1. Source: Demarta and McNeil, "The t copula and related copulas" (2005).
    """
    nu = required_positive("degrees_of_freedom", degrees_of_freedom)
    rho = required("correlation", correlation, least=-1.0, most=1.0)
    argument = -math.sqrt((nu + 1.0) * (1.0 - rho) / (1.0 + rho)) if rho > -1.0 else -math.inf
    tail = 2.0 * float(special.stdtr(nu + 1.0, argument)) if math.isfinite(argument) else 0.0
    return TailDependence(lower=tail, upper=tail, kendall_tau=2.0 / math.pi * math.asin(rho))


def _moments(correction: float, mean: float, cumulants: tuple[float, float, float]) -> ReturnMoments:
    variance, third, fourth = cumulants
    if variance <= 0.0:
        return ReturnMoments(correction, mean, 0.0, 0.0, 0.0)
    return ReturnMoments(correction, mean, variance, third / variance**1.5, fourth / variance**2)


def merton_jump_moments(
    *, intensity: float, jump_mean: float, jump_deviation: float, vol: float, years: float
) -> ReturnMoments:
    """Moments of X under normal jumps in the log-price, with the drift that makes the price a martingale.

        kappa = exp(m + s^2/2) - 1;   cumulant_k = T (lam E[J^k] + [k = 2] sigma^2);   mean = T (lam (m - kappa) - ...)

    Source: R. Merton, "Option pricing when underlying stock returns are discontinuous" (1976).
    """
    lam, m, s, sigma, t = _merton_terms(intensity, jump_mean, jump_deviation, vol, years)
    correction = _expm1("jump_mean and jump_deviation", m + 0.5 * s * s)
    raw = (m * m + s * s, m**3 + 3.0 * m * s * s, m**4 + 6.0 * m * m * s * s + 3.0 * s**4)
    return _moments(
        correction,
        t * (lam * (m - correction) - 0.5 * sigma * sigma),
        (t * (sigma * sigma + lam * raw[0]), t * lam * raw[1], t * lam * raw[2]),
    )


def kou_jump_moments(
    *, intensity: float, up_probability: float, up_rate: float, down_rate: float, vol: float, years: float
) -> ReturnMoments:
    """Moments of X under double-exponential jumps, with the drift that makes the price a martingale.

        kappa = p eta1/(eta1 - 1) + (1-p) eta2/(eta2 + 1) - 1;   E[J^k] = k! (p/eta1^k + (-1)^k (1-p)/eta2^k)

    A jump up has mean 1/`up_rate` and needs a rate above 1, or the price has no mean. Source: S. Kou, "A jump-diffusion
    model for option pricing" (2002).
    """
    lam = required("intensity", intensity, least=0.0)
    p = required("up_probability", up_probability, least=0.0, most=1.0)
    up, down = required_positive("up_rate", up_rate), required_positive("down_rate", down_rate)
    sigma, t = required("vol", vol, least=0.0), required("years", years, least=0.0)
    if p > 0.0 and not up > 1.0:
        raise ValueError(f"up_rate must exceed 1 for the price to have a mean, found {up_rate!r}")
    # p (eta1/(eta1-1) - 1) + (1-p) (eta2/(eta2+1) - 1), without the difference of two numbers near 1.
    correction = (p / (up - 1.0) if p > 0.0 else 0.0) - (1.0 - p) / (down + 1.0)
    first, second, third, fourth = (
        math.factorial(k) * (p / up**k + (-1.0) ** k * (1.0 - p) / down**k) for k in (1, 2, 3, 4)
    )
    return _moments(
        correction,
        t * (lam * (first - correction) - 0.5 * sigma * sigma),
        (t * (sigma * sigma + lam * second), t * lam * third, t * lam * fourth),
    )


def _expm1(name: str, exponent: float) -> float:
    if exponent > 700.0:
        raise ValueError(f"{name} give a jump whose mean factor e^{exponent:g} is not a number")
    return math.expm1(exponent)


def _merton_terms(
    intensity: float, jump_mean: float, jump_deviation: float, vol: float, years: float
) -> tuple[float, float, float, float, float]:
    return (
        required("intensity", intensity, least=0.0),
        required("jump_mean", jump_mean),
        required("jump_deviation", jump_deviation, least=0.0),
        required("vol", vol, least=0.0),
        required("years", years, least=0.0),
    )


class JumpCounts(NamedTuple):
    """What n = 0, 1, 2, ... jumps make of a price: probability, log of the forward's factor, added total variance."""

    probability: FloatArray
    log_forward: FloatArray
    variance: FloatArray


def jump_counts(*, intensity: float, jump_mean: float, jump_deviation: float, years: float) -> JumpCounts:
    """Poisson number of normal jumps in `years`: given n of them the log-price is normal with these moments added.

        probability e^{-lam T} (lam T)^n / n!;   ln(F_n/F) = n (m + s^2/2) - lam kappa T;   variance n s^2

    Counts are kept that matter to either side of a price, i.e. under the rate lam T or lam T (1 + kappa): 12 deviations
    and 60 counts around both, beyond which less than 1e-20 of either mass lies. Raises `ValueError` for more than ten
    million expected jumps.
    """
    lam, m, s, _, t = _merton_terms(intensity, jump_mean, jump_deviation, 0.0, years)
    correction = _expm1("jump_mean and jump_deviation", m + 0.5 * s * s)
    rates = (lam * t, lam * t * (1.0 + correction))
    if max(rates) > 1e7:
        raise ValueError(f"intensity: {max(rates):g} expected jumps are too many for a mixture")
    if lam * t == 0.0:
        return JumpCounts(np.ones(1), np.zeros(1), np.zeros(1))
    first = max(0, math.floor(min(rate - 12.0 * math.sqrt(rate) for rate in rates) - 60.0))
    last = math.ceil(max(rate + 12.0 * math.sqrt(rate) for rate in rates) + 60.0)
    n = np.arange(first, last + 1, dtype=np.float64)
    # From ratios of neighbors, because n ln(lam T) - lam T - ln n! loses digits to the size of its terms.
    logarithm = np.cumsum(np.concatenate([[0.0], np.log(lam * t / n[1:])]))
    with np.errstate(under="ignore"):
        mass = np.exp(logarithm - np.max(logarithm))
    return JumpCounts(mass / math.fsum(mass), n * (m + 0.5 * s * s) - lam * correction * t, n * s * s)


def black_prices(forward: ArrayLike, strike: float, total_variance: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Calls and puts of lognormal prices of mean `forward` [n] and log-variance `total_variance` [n], both [n].

    The one out of the money is computed and the other follows by parity; without variance both are intrinsic.
    """
    f, w = np.broadcast_arrays(np.asarray(forward, np.float64), np.asarray(total_variance, np.float64))
    deviation = np.sqrt(np.maximum(w, 0.0))
    alive = deviation > 0.0
    safe = np.where(alive, deviation, 1.0)
    with np.errstate(under="ignore", over="ignore"):
        d1 = np.log(f / strike) / safe + 0.5 * safe
        side = np.where(f > strike, -1.0, 1.0)
        outside = side * (f * special.ndtr(side * d1) - strike * special.ndtr(side * (d1 - safe)))
    outside = np.where(alive, np.maximum(outside, 0.0), 0.0)
    return outside + np.maximum(f - strike, 0.0), outside + np.maximum(strike - f, 0.0)


def merton_jump_option(
    forward: float,
    strike: float,
    *,
    intensity: float,
    jump_mean: float,
    jump_deviation: float,
    vol: float,
    years: float,
) -> OptionPair:
    """Call and put under normal jumps: a Poisson mixture of Black prices, all terms positive.

    Without jumps or with jumps of nothing this is Black's price, without variance at all the intrinsic value.
    """
    f, k = required_positive("forward", forward), required_positive("strike", strike)
    *_, sigma, t = _merton_terms(intensity, jump_mean, jump_deviation, vol, years)
    counts = jump_counts(intensity=intensity, jump_mean=jump_mean, jump_deviation=jump_deviation, years=t)
    with np.errstate(under="ignore", over="ignore"):
        forwards = f * np.exp(counts.log_forward)
    calls, puts = black_prices(np.clip(forwards, 1e-300, 1e300), k, counts.variance + sigma * sigma * t)
    return mixed_pair(f, k, counts.probability, calls, puts)


def mixed_pair(forward: float, strike: float, weights: FloatArray, calls: FloatArray, puts: FloatArray) -> OptionPair:
    """Weighted call and put, the one in the money from the other by parity, so that both keep their time value."""
    if strike >= forward:
        call = math.fsum(weights * calls)
        return OptionPair(call, call + (strike - forward))
    put = math.fsum(weights * puts)
    return OptionPair(put + (forward - strike), put)


def skewed_t_moments(gamma: ArrayLike, scale: ArrayLike, *, degrees_of_freedom: float) -> MeanAndCovariance:
    """Mean and covariance of X = gamma W + sqrt(W) A Z, AA' = scale, W inverse gamma (nu/2, nu/2).

        mean = gamma nu/(nu-2);   cov = nu/(nu-2) scale + 2 nu^2 / ((nu-2)^2 (nu-4)) gamma gamma'

    nu must exceed 4, or 2 where gamma is zero. Source: Demarta and McNeil, "The t copula and related copulas" (2005).
    """
    skew, matrix = np.asarray(gamma, np.float64), np.asarray(scale, np.float64)
    if skew.ndim != 1 or matrix.shape != (skew.size, skew.size):
        raise ValueError(f"expected gamma [n] and scale [n, n], found {skew.shape} and {matrix.shape}")
    if not (np.all(np.isfinite(skew)) and np.all(np.isfinite(matrix))):
        raise ValueError("gamma and scale must be finite")
    size = np.max(np.abs(matrix), initial=0.0)
    if np.any(np.abs(matrix - matrix.T) > 1e-12 * size) or np.min(np.linalg.eigvalsh(matrix), initial=0.0) < -(
        1e-10 * size
    ):
        raise ValueError("scale must be symmetric and without a negative eigenvalue")
    nu = required_positive("degrees_of_freedom", degrees_of_freedom)
    least = 4.0 if np.any(skew != 0.0) else 2.0
    if not nu > least:
        raise ValueError(f"degrees_of_freedom must exceed {least:g} for a finite covariance, found {nu!r}")
    ratio = nu / (nu - 2.0)
    spread = 2.0 * ratio * ratio / (nu - 4.0) if least == 4.0 else 0.0
    return MeanAndCovariance(ratio * skew, ratio * matrix + spread * np.outer(skew, skew))


def transition_matrix(transition: ArrayLike) -> FloatArray:
    """`transition` [n, n] checked: finite, no negative entry, every row summing to 1 within 1e-9."""
    matrix = np.asarray(transition, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"transition must be a square matrix, found shape {matrix.shape}")
    if not np.all(np.isfinite(matrix)) or np.any(matrix < 0.0):
        raise ValueError("transition must hold finite probabilities, none negative")
    for row, total in enumerate(np.sum(matrix, axis=1)):
        if abs(total - 1.0) > _ROW_SUM_SLACK:
            raise ValueError(f"transition row {row} sums to {float(total)!r}, not 1")
    return matrix


def stationary_distribution(transition: ArrayLike) -> FloatArray:
    """The distribution [n] that the chain keeps, 0 for states that it leaves for good.

    By eliminating state after state without a subtraction (Grassmann, Taksar and Heyman, 1985), so the probabilities of
    a nearly absorbing chain keep their relative precision. Raises `ValueError` where more than one distribution is
    kept, because the chain falls apart into classes that never meet.
    """
    matrix = transition_matrix(transition)
    count, label = csgraph.connected_components(csr_array(matrix > 0.0), connection="strong")
    closed = [c for c in range(count) if not np.any(matrix[label == c][:, label != c] > 0.0)]
    if len(closed) != 1:
        raise ValueError(f"transition has {len(closed)} classes of states that never meet: no single stationary law")
    inside = np.flatnonzero(label == closed[0])
    p = matrix[np.ix_(inside, inside)].copy()
    outflow = np.ones(inside.size)
    for last in range(inside.size - 1, 0, -1):
        outflow[last] = np.sum(p[last, :last])
        p[:last, :last] += np.outer(p[:last, last] / outflow[last], p[last, :last])
    mass = np.ones(inside.size)
    for state in range(1, inside.size):
        mass[state] = np.sum(mass[:state] * p[:state, state]) / outflow[state]
    stationary = np.zeros(matrix.shape[0])
    stationary[inside] = mass / np.sum(mass)
    return stationary


def markov_switching_moments(
    transition: ArrayLike, mean: ArrayLike, deviation: ArrayLike, *, lag: int = 1
) -> SwitchingMoments:
    """Moments of r_t | s_t ~ N(mu_s, sigma_s^2), s_t a stationary Markov chain; per step, as the figures given.

        Cov(r_t, r_{t+k})     = sum_ij pi_i (P^k)_ij (mu_i - m)(mu_j - m)
        Cov(r_t^2, r_{t+k}^2) = sum_ij pi_i (P^k)_ij (g_i - g)(g_j - g),   g_i = mu_i^2 + sigma_i^2

    Source: J. Hamilton, "A new approach to the economic analysis of nonstationary time series" (1989). Raises
    `ValueError` for shapes that disagree, a negative deviation, a `lag` below 1, or returns without any variance.
    """
    matrix = transition_matrix(transition)
    mu, sigma = np.asarray(mean, np.float64), np.asarray(deviation, np.float64)
    if mu.shape != (matrix.shape[0],) or sigma.shape != mu.shape:
        raise ValueError(f"expected {matrix.shape[0]} means and deviations, found shapes {mu.shape} and {sigma.shape}")
    if not np.all(np.isfinite(mu)) or not np.all(np.isfinite(sigma)) or np.any(sigma < 0.0):
        raise ValueError("mean and deviation must be finite and no deviation negative")
    if lag < 1:
        raise ValueError(f"lag must be at least 1, found {lag!r}")
    pi = stationary_distribution(matrix)
    center = float(pi @ mu)
    off = mu - center
    variance = float(pi @ (sigma**2 + off**2))
    if not variance > 0.0:
        raise ValueError("mean and deviation give a return without variance, which has no kurtosis")
    fourth = float(pi @ (off**4 + 6.0 * off**2 * sigma**2 + 3.0 * sigma**4))
    squares = mu**2 + sigma**2
    squares_off = squares - float(pi @ squares)
    ahead = np.linalg.matrix_power(matrix, lag)
    return SwitchingMoments(
        stationary=pi,
        mean=center,
        variance=variance,
        kurtosis=fourth / variance**2,
        autocovariance=float((pi * off) @ ahead @ off),
        autocovariance_of_squares=float((pi * squares_off) @ ahead @ squares_off),
    )


def mean_reverting_step(
    start: float, *, reversion: float, level: float, deviation: float, step: float
) -> MeanRevertingStep:
    """Exact law of dx = k (theta - x) dt + sigma dW after `step`, in whatever unit of time the rates are in.

        mean = theta + (x - theta) e,  e = e^{-k dt};   variance = sigma^2 (1 - e^2) / (2k)
        integral: mean theta dt + (x - theta)(1 - e)/k,  variance sigma^2/k^2 (dt - 2 (1-e)/k + (1-e^2)/(2k))

    `reversion` 0 is a Brownian motion.
    """
    x, theta = required("start", start), required("level", level)
    k, sigma = required("reversion", reversion, least=0.0), required("deviation", deviation, least=0.0)
    dt = required("step", step, least=0.0)
    decayed = -math.expm1(-k * dt) / k if k > 0.0 else dt
    decayed_twice = -math.expm1(-2.0 * k * dt) / (2.0 * k) if k > 0.0 else dt
    if k * dt > 1e-2:
        integral_variance = sigma * sigma / (k * k) * (dt - 2.0 * decayed + decayed_twice)
    else:
        # The three terms cancel to third order in k dt; their series does not.
        y = k * dt
        integral_variance = sigma * sigma * dt**3 * (1 / 3 - y / 4 + 7 * y**2 / 60 - y**3 / 24 + 31 * y**4 / 2520)
    if sigma == 0.0:
        stationary = 0.0
    else:
        stationary = sigma * sigma / (2.0 * k) if k > 0.0 else math.inf
    return MeanRevertingStep(
        mean=theta + (x - theta) * math.exp(-k * dt),
        variance=sigma * sigma * decayed_twice,
        stationary_variance=stationary,
        integral_mean=theta * dt + (x - theta) * decayed,
        integral_variance=integral_variance,
    )
