"""Value at risk and expected shortfall in closed form, for laws where they are known: the engine's yardstick.

Host side, NumPy and SciPy in float64; nothing here is used by a sweep. L is the loss (positive = loss) over the
horizon, P&L = -L. `confidence` a is a fraction; z_a and q are quantiles of the standard normal and standard t; n, N
the normal density and distribution. USD unless the inputs are in another unit. All functions raise `ValueError` for
inputs outside of their domain.

Each result carries a `TailLaw`: beside the two measures, the density at VaR and the variance beyond it, which is what
the sampling error of a Monte Carlo estimate depends on (`monte_carlo_standard_error`).
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize, special, stats

FloatArray = NDArray[np.float64]

# Beyond this many standard deviations the normal density is 1e-88 of its peak: quadratures over a tail stop here.
_FAR = 20.0


class TailLaw(NamedTuple):
    """Tail of one loss law at one confidence; `density` of L at VaR (1/USD), `tail_variance` = Var(L | L > VaR)."""

    value_at_risk: float
    expected_shortfall: float
    density: float
    tail_variance: float


class LinearRisk(NamedTuple):
    """A linear book: its tail law, Euler contributions of each exposure, and the standard deviation of the loss."""

    tail: TailLaw
    euler_expected_shortfall: FloatArray
    euler_value_at_risk: FloatArray
    standard_deviation: float


class LongShortRisk(NamedTuple):
    """The same value held long and held short."""

    long: TailLaw
    short: TailLaw


class DeltaGammaRisk(NamedTuple):
    """A quadratic book: exact tail law, moments of the loss, and VaR by the Cornish-Fisher expansion for comparison."""

    tail: TailLaw
    mean: float
    standard_deviation: float
    skewness: float
    excess_kurtosis: float
    cornish_fisher_value_at_risk: float


class RevaluationRisk(NamedTuple):
    """An option book under full revaluation: today's value of one unit, and the tail law of the whole."""

    value_today: float
    tail: TailLaw


class StandardError(NamedTuple):
    """Asymptotic standard errors of the empirical VaR and ES of independent, equally weighted draws."""

    value_at_risk: float
    expected_shortfall: float


def _check_confidence(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, found {confidence!r}")
    return float(confidence)


def _exposures_and_matrix(exposures: ArrayLike, matrix: ArrayLike) -> tuple[FloatArray, FloatArray]:
    vector, square = np.asarray(exposures, dtype=np.float64), np.asarray(matrix, dtype=np.float64)
    if vector.ndim != 1 or square.shape != (vector.size, vector.size):
        raise ValueError(f"expected exposures [n] and a matrix [n, n], found {vector.shape} and {square.shape}")
    return vector, square


def _scaled(tail: TailLaw, *, scale: float, shift: float = 0.0) -> TailLaw:
    """Law of scale * L + shift, scale >= 0."""
    return TailLaw(
        scale * tail.value_at_risk + shift,
        scale * tail.expected_shortfall + shift,
        tail.density / scale if scale > 0 else math.inf,
        scale * scale * tail.tail_variance,
    )


def _normal_density(z: float) -> float:
    return math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def standard_normal_tail(confidence: float) -> TailLaw:
    """Tail of N(0, 1): VaR z_a, ES n(z_a)/(1-a), E[Z^2 | Z > z_a] = 1 + z_a n(z_a)/(1-a)."""
    a = _check_confidence(confidence)
    z = float(special.ndtri(a))
    density = _normal_density(z)
    shortfall = density / (1.0 - a)
    return TailLaw(z, shortfall, density, 1.0 + z * shortfall - shortfall**2)


def standard_t_tail(confidence: float, *, degrees_of_freedom: float) -> TailLaw:
    """Tail of Student's t with nu degrees of freedom: VaR q, ES t_nu(q)/(1-a) (nu + q^2)/(nu - 1).

    The second moment beyond q follows by parts, through the t law with nu - 2 degrees of freedom; nu must exceed 2.
    """
    a, nu = _check_confidence(confidence), float(degrees_of_freedom)
    if not nu > 2.0:
        raise ValueError(f"degrees of freedom must exceed 2 for a finite tail variance, found {nu!r}")
    q = float(stats.t.ppf(a, nu))
    density = float(stats.t.pdf(q, nu))
    shortfall = density / (1.0 - a) * (nu + q * q) / (nu - 1.0)
    # E[T^2; T > q] = nu/(nu-1) [ q t_nu(q) (1 + q^2/nu) + (nu-1)/(nu-2) P(T_{nu-2} > q sqrt((nu-2)/nu)) ]
    rest = float(stats.t.sf(q * math.sqrt((nu - 2.0) / nu), nu - 2.0)) * (nu - 1.0) / (nu - 2.0)
    second_moment = nu / (nu - 1.0) * (q * density * (1.0 + q * q / nu) + rest) / (1.0 - a)
    return TailLaw(q, shortfall, density, second_moment - shortfall**2)


def gaussian_linear(
    exposures: ArrayLike, covariance: ArrayLike, *, mean: ArrayLike | None = None, confidence: float
) -> LinearRisk:
    """Risk of P&L w'R, R ~ N(mu, S):  VaR = sd z_a - w'mu;  ES = sd n(z_a)/(1-a) - w'mu;  sd = sqrt(w'Sw).

    Euler contributions w_i ((Sw)_i / sd * k - mu_i), with k = z_a for VaR and n(z_a)/(1-a) for ES, add up to the total.
    """
    w, s = _exposures_and_matrix(exposures, covariance)
    mu = np.zeros_like(w) if mean is None else np.asarray(mean, dtype=np.float64)
    if mu.shape != w.shape:
        raise ValueError(f"expected a mean for each of {w.size} exposures, found shape {mu.shape}")
    return _elliptical(w, s, mu, standard_normal_tail(confidence))


def t_linear(exposures: ArrayLike, scale: ArrayLike, *, degrees_of_freedom: float, confidence: float) -> LinearRisk:
    """Risk of P&L w'R, R multivariate t with *scale* matrix (covariance = nu/(nu-2) scale), centered, nu > 2.

    ES = sc t_nu(q)/(1-a) (nu + q^2)/(nu - 1), sc = sqrt(w' scale w). `standard_deviation` is that of the loss, not sc.
    """
    w, s = _exposures_and_matrix(exposures, scale)
    tail = standard_t_tail(confidence, degrees_of_freedom=degrees_of_freedom)
    risk = _elliptical(w, s, np.zeros_like(w), tail)
    to_covariance = math.sqrt(degrees_of_freedom / (degrees_of_freedom - 2.0))
    return risk._replace(standard_deviation=risk.standard_deviation * to_covariance)


def _elliptical(w: FloatArray, s: FloatArray, mu: FloatArray, standard: TailLaw) -> LinearRisk:
    marginal = s @ w
    scale = math.sqrt(max(float(w @ marginal), 0.0))
    slope = marginal / scale if scale > 0 else np.zeros_like(w)
    return LinearRisk(
        tail=_scaled(standard, scale=scale, shift=-float(w @ mu)),
        euler_expected_shortfall=w * (slope * standard.expected_shortfall - mu),
        euler_value_at_risk=w * (slope * standard.value_at_risk - mu),
        standard_deviation=scale,
    )


def lognormal_long_short(value: float, *, log_mean: float, log_sd: float, confidence: float) -> LongShortRisk:
    """Risk of `value` USD of an asset with log-return X ~ N(mu, s^2), held long and held short.

    long   VaR = V (1 - e^{mu + s z_{1-a}}),  ES = V (1 - e^{mu + s^2/2} N(z_{1-a} - s) / (1-a))
    short  VaR = V (e^{mu + s z_a} - 1),      ES = V (e^{mu + s^2/2} N(s - z_a) / (1-a) - 1)
    """
    a = _check_confidence(confidence)
    if not (value > 0 and log_sd > 0):
        raise ValueError(f"value and log_sd must be positive, found {value!r} and {log_sd!r}")

    def side(sign: float) -> TailLaw:
        z = sign * float(special.ndtri(a))
        level = math.exp(log_mean + log_sd * z)
        first, second = (
            math.exp(k * log_mean + 0.5 * (k * log_sd) ** 2) * float(special.ndtr(sign * (k * log_sd - z))) / (1.0 - a)
            for k in (1, 2)
        )
        return TailLaw(
            value_at_risk=value * sign * math.expm1(log_mean + log_sd * z),
            expected_shortfall=value * sign * (first - 1.0),
            density=_normal_density(z) / (log_sd * level * value),
            tail_variance=value * value * (second - first * first),
        )

    return LongShortRisk(long=side(-1.0), short=side(1.0))


class _QuadraticLaw(NamedTuple):
    """L = -theta - sum_i (b_i z_i + lam_i z_i^2 / 2), z independent standard normal."""

    theta: float
    b: FloatArray
    lam: FloatArray

    def cumulant_generating(self, u: NDArray[np.complex128] | FloatArray) -> NDArray[np.complex128]:
        factor = 1.0 + np.multiply.outer(np.asarray(u, dtype=np.complex128), self.lam)
        squares = np.multiply.outer(np.asarray(u, dtype=np.complex128) ** 2, self.b**2)
        return -self.theta * u + np.sum(0.5 * squares / factor - 0.5 * np.log(factor), axis=-1)

    def saddle(self, level: float) -> float:
        """The u > 0 inside the strip of convergence where K(u) - u level - ln u is least."""
        falling = self.lam[self.lam < 0]
        end = float(np.min(-1.0 / falling)) if falling.size else math.inf

        def slope(u: float) -> float:
            factor = 1.0 + self.lam * u
            growth = np.sum(0.5 * self.b**2 * u * (2.0 + self.lam * u) / factor**2 - 0.5 * self.lam / factor)
            return float(-self.theta + growth - level - 1.0 / u)

        if math.isfinite(end):
            low, high = 1e-12 * end, (1.0 - 1e-12) * end
        else:
            unit = 1.0 / self.standard_deviation()
            low, high = 1e-12 * unit, unit
            while slope(high) < 0 and high < 1e12 * unit:
                high *= 2.0
        if slope(low) >= 0:
            return low
        if slope(high) <= 0:
            return high
        return float(optimize.brentq(slope, low, high, xtol=1e-15 * high, rtol=1e-12))

    def standard_deviation(self) -> float:
        return math.sqrt(float(np.sum(self.b**2 + 0.5 * self.lam**2)))

    def tail_integrals(self, level: float) -> FloatArray:
        """Density at `level`, P(L > level), E[(L - level)+] and E[(L - level)+^2], by inversion.

        Each is m! / (2 pi i) times the integral of e^{K(u) - u level} / u^{m+1}, m = -1..2 with (-1)! = 1, along a
        contour through the saddle point. On a vertical line the integrand of a short-gamma book falls only like a power
        of |u| while it oscillates, and a truncated integral is wrong in the first digits. Tilted by 30 degrees towards
        the side where e^{-u level} decays, it falls exponentially; all singularities lie on the real axis, so the
        contour may be tilted, and under 45 degrees the Gaussian factor of a linear direction keeps decaying too.
        """
        center = self.saddle(level)
        curved = self.lam != 0
        drift = level + self.theta - float(np.sum(0.5 * self.b[curved] ** 2 / self.lam[curved]))
        direction = np.exp(1j * np.pi * (1.0 / 3.0 if drift >= 0 else 2.0 / 3.0))
        factor = 1.0 + self.lam * center
        second = float(np.sum(self.b**2 / factor**3 + 0.5 * self.lam**2 / factor**2)) + 1.0 / center**2

        # Exp-sinh quadrature over the upper half line; the lower half is its mirror image.
        step = 1.0 / 64.0
        w = np.arange(-4.5, 4.5 + step / 2, step)
        t = np.exp(0.5 * np.pi * np.sinh(w)) / math.sqrt(second)
        dt = t * 0.5 * np.pi * np.cosh(w) * step
        u = center + direction * t
        with np.errstate(under="ignore"):
            kernel = np.exp(self.cumulant_generating(u) - u * level) * direction * dt / np.pi
            return np.array(
                [float(np.sum((factorial * kernel / u**power).imag)) for power, factorial in enumerate((1, 1, 1, 2))]
            )


def delta_gamma_normal(
    delta: ArrayLike, gamma: ArrayLike, *, covariance: ArrayLike, theta: float = 0.0, confidence: float
) -> DeltaGammaRisk:
    """Risk of P&L theta + d'x + x'Gx/2, x ~ N(0, S): the exact law, by inverting its characteristic function.

    With S = A A' and A'GA = Q diag(lam) Q', b = Q'A'd, the cumulant generating function of the loss is
    K(u) = -theta u + sum_i [ b_i^2 u^2 / (2 (1 + lam_i u)) - ln(1 + lam_i u)/2 ]; see `_QuadraticLaw.tail_integrals`.

        Cornish-Fisher  z' = z + (z^2-1) s/6 + (z^3-3z) k/24 - (2z^3-5z) s^2/36,  VaR = mean + sd z'

    Raises `ValueError` for a book without any risk, or a `confidence` so high or low that VaR is beyond the loss law's
    numerical support.
    """
    a = _check_confidence(confidence)
    d, g = _exposures_and_matrix(delta, gamma)
    _, s = _exposures_and_matrix(delta, covariance)
    variances, axes = np.linalg.eigh(0.5 * (s + s.T))
    root = axes * np.sqrt(np.maximum(variances, 0.0))
    lam, rotation = np.linalg.eigh(root.T @ (0.5 * (g + g.T)) @ root)
    # An eigenvalue that is zero but for rounding would put a spurious singularity far out; the law is linear there.
    lam = np.where(np.abs(lam) > 1e-14 * np.max(np.abs(lam), initial=0.0), lam, 0.0)
    law = _QuadraticLaw(float(theta), rotation.T @ (root.T @ d), lam)

    mean = -law.theta - 0.5 * float(np.sum(lam))
    sd = law.standard_deviation()
    if not sd > 0:
        raise ValueError("the book has no risk: delta and gamma vanish on the support of the covariance")
    skewness = -float(np.sum(lam**3 + 3.0 * law.b**2 * lam)) / sd**3
    kurtosis = float(np.sum(3.0 * lam**4 + 12.0 * law.b**2 * lam**2)) / sd**4

    def excess_probability(level: float) -> float:
        return float(law.tail_integrals(level)[1]) - (1.0 - a)

    low, high = mean - sd, mean + sd
    for _ in range(60):
        if excess_probability(low) >= 0:
            break
        low -= sd
    for _ in range(60):
        if excess_probability(high) <= 0:
            break
        high += sd
    level = float(optimize.brentq(excess_probability, low, high, xtol=1e-13 * sd, rtol=1e-14))
    density, _, first, second = (float(x) for x in law.tail_integrals(level))
    first, second = first / (1.0 - a), second / (1.0 - a)

    z = float(special.ndtri(a))
    expansion = (
        z
        + (z**2 - 1.0) * skewness / 6.0
        + (z**3 - 3.0 * z) * kurtosis / 24.0
        - (2.0 * z**3 - 5.0 * z) * skewness**2 / 36.0
    )
    return DeltaGammaRisk(
        tail=TailLaw(level, level + first, density, second - first**2),
        mean=mean,
        standard_deviation=sd,
        skewness=skewness,
        excess_kurtosis=kurtosis,
        cornish_fisher_value_at_risk=mean + sd * expansion,
    )


def _black_price(forward: float, strike: float, years: float, vol: float, *, is_call: bool) -> float:
    """Undiscounted Black-76 in plain floats, apart from the engine's own so that the two can be compared."""
    side = 1.0 if is_call else -1.0
    if years <= 0 or vol <= 0:
        return max(side * (forward - strike), 0.0)
    total_vol = vol * math.sqrt(years)
    d1 = math.log(forward / strike) / total_vol + 0.5 * total_vol
    price = side * (forward * float(special.ndtr(side * d1)) - strike * float(special.ndtr(side * (d1 - total_vol))))
    return max(price, 0.0)


class _ForwardLaw(NamedTuple):
    """F_h = F exp(-sigma^2 h/2 + sigma sqrt(h) z) over the part of the horizon in which the option still lives."""

    forward: float
    strike: float
    remaining_years: float
    vol: float
    horizon_years: float

    def at(self, z: float) -> float:
        total_vol = self.vol * math.sqrt(self.horizon_years)
        return self.forward * math.exp(-0.5 * total_vol**2 + total_vol * z)

    def option(self, z: float, *, is_call: bool) -> float:
        return _black_price(self.at(z), self.strike, self.remaining_years, self.vol, is_call=is_call)

    def z_at_strike(self) -> float:
        total_vol = self.vol * math.sqrt(self.horizon_years)
        return math.log(self.strike / self.forward) / total_vol + 0.5 * total_vol


def _forward_law(forward: float, strike: float, *, years: float, vol: float, horizon_years: float) -> _ForwardLaw:
    if not (forward > 0 and strike > 0 and years > 0 and vol > 0 and horizon_years > 0):
        raise ValueError("forward, strike, years, vol and horizon_years must all be positive")
    return _ForwardLaw(forward, strike, max(years - horizon_years, 0.0), vol, min(years, horizon_years))


def _tail_moments(loss: Callable[[float], float], level: float, low: float, high: float, kink: float) -> FloatArray:
    """E[(L - level)+] and E[(L - level)+^2] over low < z < high; `kink` splits the range where the payoff bends."""
    points = sorted({low, high, *(x for x in (kink - 0.5, kink, kink + 0.5) if low < x < high)})
    moments = np.zeros(2)
    for power in (1, 2):
        for left, right in itertools.pairwise(points):
            value, _ = integrate.quad(
                lambda z, power=power: max(loss(z) - level, 0.0) ** power * _normal_density(z),
                left,
                right,
                epsabs=0.0,
                epsrel=1e-12,
                limit=200,
            )
            moments[power - 1] += value
    return moments


def _slope(function: Callable[[float], float], z: float) -> float:
    """Central difference; its relative error of about 1e-9 only enters a standard error."""
    step = 1e-5
    return (function(z + step) - function(z - step)) / (2.0 * step)


def single_option_full_revaluation(
    forward: float,
    strike: float,
    *,
    years: float,
    vol: float,
    is_call: bool,
    quantity: float,
    horizon_years: float,
    confidence: float,
) -> RevaluationRisk:
    """Risk of `quantity` options revalued at T - h, same volatility, no discounting, driven by the forward alone.

    The value is monotone in the forward, so VaR is the loss at the normal quantile z_a or z_{1-a}; ES by quadrature
    over the tail. An option that expires within the horizon stops moving at its expiry and is worth its intrinsic.
    """
    a = _check_confidence(confidence)
    law = _forward_law(forward, strike, years=years, vol=vol, horizon_years=horizon_years)
    if quantity == 0:
        raise ValueError("quantity must not be 0: the loss would be 0 with certainty")
    value_today = _black_price(forward, strike, years, vol, is_call=is_call)

    def loss(z: float) -> float:
        return -quantity * (law.option(z, is_call=is_call) - value_today)

    loses_when_up = (quantity < 0) == is_call
    boundary = float(special.ndtri(a if loses_when_up else 1.0 - a))
    level = loss(boundary)
    low, high = (boundary, _FAR) if loses_when_up else (-_FAR, boundary)
    first, second = _tail_moments(loss, level, low, high, law.z_at_strike()) / (1.0 - a)
    slope = abs(_slope(loss, boundary))
    density = _normal_density(boundary) / slope if slope > 0 else math.inf
    return RevaluationRisk(value_today, TailLaw(level, level + float(first), density, float(second - first**2)))


def short_straddle_full_revaluation(
    forward: float, strike: float, *, years: float, vol: float, horizon_years: float, confidence: float
) -> RevaluationRisk:
    """Risk of one short call and one short put, conventions of `single_option_full_revaluation`.

    The loss is convex in the forward with one minimum: it exceeds a level below one root and above another, and VaR is
    the level at which the two tails hold 1 - a together.
    """
    a = _check_confidence(confidence)
    law = _forward_law(forward, strike, years=years, vol=vol, horizon_years=horizon_years)
    value_today = sum(_black_price(forward, strike, years, vol, is_call=side) for side in (True, False))

    def loss(z: float) -> float:
        return law.option(z, is_call=True) + law.option(z, is_call=False) - value_today

    bottom = float(
        optimize.minimize_scalar(loss, bracket=(law.z_at_strike() - 1.0, law.z_at_strike() + 1.0), tol=1e-12).x
    )

    def root(level: float, far: float) -> float:
        # The left branch is bounded (the forward stays positive), so the level may lie above all of it.
        if loss(far) <= level:
            return far
        return float(optimize.brentq(lambda z: loss(z) - level, bottom, far, xtol=1e-14, rtol=1e-14))

    def excess_probability(level: float) -> float:
        return float(special.ndtr(root(level, -_FAR)) + special.ndtr(-root(level, _FAR))) - (1.0 - a)

    lowest = loss(bottom)
    highest = max(loss(float(special.ndtri(0.5 * (1.0 - a)))), loss(float(special.ndtri(0.5 * (1.0 + a)))))
    level = float(
        optimize.brentq(excess_probability, lowest + 1e-12 * abs(lowest), highest, xtol=1e-13 * highest, rtol=1e-14)
    )
    left, right = root(level, -_FAR), root(level, _FAR)
    kink = law.z_at_strike()
    moments = _tail_moments(loss, level, -_FAR, left, kink) + _tail_moments(loss, level, right, _FAR, kink)
    first, second = moments / (1.0 - a)
    density = sum(_normal_density(z) / abs(_slope(loss, z)) for z in (left, right) if abs(z) < _FAR)
    return RevaluationRisk(value_today, TailLaw(level, level + float(first), density, float(second - first**2)))


def monte_carlo_standard_error(tail: TailLaw, *, confidence: float, count: int) -> StandardError:
    """Asymptotic standard errors of empirical VaR and ES from `count` independent, equally weighted draws.

    se(VaR) = sqrt(a (1-a) / n) / f(q);   se(ES) = sqrt( (Var(L | L > q) + a (ES - q)^2) / ((1-a) n) )
    """
    a = _check_confidence(confidence)
    if count <= 0:
        raise ValueError(f"the number of draws must be positive, found {count!r}")
    excess = tail.expected_shortfall - tail.value_at_risk
    return StandardError(
        value_at_risk=math.sqrt(a * (1.0 - a) / count) / tail.density,
        expected_shortfall=math.sqrt((tail.tail_variance + a * excess**2) / ((1.0 - a) * count)),
    )
