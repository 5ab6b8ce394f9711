"""Options under stochastic variance (Heston) with normal jumps in the price (Bates), by inversion with a known error.

    dS/S = sqrt(v) dW1 (+ jumps),  dv = kappa (theta - v) dt + xi sqrt(v) dW2,  d<W1, W2> = rho dt

Host side, NumPy and SciPy in float64; nothing here is used by a sweep. Rates and variances per year, times in years,
prices undiscounted in the unit of the forward. The variance may touch zero (2 kappa theta < xi^2). Arguments outside of
their domain raise `ValueError`, which names them.

With M(u) = E[e^{uX}] and k = ln(K/F), the option out of the money is an integral along a line in the strip where M
exists: to the right of u = 1 for a call, to the left of u = 0 for a put, between them for the smaller of price and
strike,

    (F e^k / 2 pi i)  integral of  M(u) e^{-uk} / (u (u - 1)) du.

The line goes through the saddle point of the integrand, so that a price of 1e-30 has as many digits as one of 10. It is
tilted towards where the integrand decays, all singularities of M lying on the real axis. Jumps enter as a Poisson
mixture, each count with a strike of its own.

Sources: S. Heston (1993); D. Bates (1996); A. Lewis, "Option Valuation under Stochastic Volatility" (2000) for the
integral; L. Andersen and V. Piterbarg, "Moment explosions in stochastic volatility models" (2007) for the strip; L.
Andersen and M. Lake, "Robust high-precision option pricing by Fourier transforms" (2018) for saddle point and tilt.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from .scenario_laws import (
    OptionPair,
    jump_counts,
    merton_jump_option,
    required,
    required_positive,
)

ComplexArray = NDArray[np.complex128]

# The contour may leave the vertical by this much: the Gaussian part of M then still decays on it.
_MOST_TILT = math.pi / 6.0

# Exp-sinh quadrature over w in +-4: t from 1e-19 to 1e+19 times its scale, where the integrand is flat or gone.
_REACH = 4.0
_FIRST_STEP = 1.0 / 16.0
_HALVINGS = 7

# Beyond this exponent a price is 0 in float64.
_UNDERFLOW = -740.0

# Where no power is known to explode, the search for a saddle point stops here; an option needs less than k / variance.
_FARTHEST_POWER = 1e12


class PricedPair(NamedTuple):
    """A call and a put, and a bound for the error of the quadrature in both, all in the unit of the forward."""

    options: OptionPair
    quadrature_error: float


@dataclass(frozen=True, slots=True)
class HestonModel:
    """Initial variance, its speed of reversion, its level, its own volatility and its correlation with the price."""

    initial_variance: float
    reversion: float
    level: float
    vol_of_variance: float
    correlation: float

    def __post_init__(self) -> None:
        for name in ("initial_variance", "reversion", "level", "vol_of_variance"):
            required(name, getattr(self, name), least=0.0)
        required("correlation", self.correlation, least=-1.0, most=1.0)


@dataclass(frozen=True, slots=True)
class NormalJumps:
    """Jumps of the log-price: `intensity` per year, normal with `mean` and `deviation`."""

    intensity: float
    mean: float
    deviation: float


def mean_variance(model: HestonModel, *, years: float) -> float:
    """Expected variance after `years`: theta + (v0 - theta) e^{-kappa T}."""
    decay = math.exp(-model.reversion * required("years", years, least=0.0))
    return model.level + (model.initial_variance - model.level) * decay


def expected_total_variance(model: HestonModel, *, years: float) -> float:
    """Expected integral of the variance over `years`: theta T + (v0 - theta)(1 - e^{-kappa T})/kappa."""
    t, k = required("years", years, least=0.0), model.reversion
    decayed = -math.expm1(-k * t) / k if k > 0.0 else t
    # Grouped so that neither term is negative.
    return model.level * (t - decayed) + model.initial_variance * decayed


def log_moment(power: ComplexArray, model: HestonModel, *, years: float) -> ComplexArray:
    """ln M(u), u [n] along a path that starts on or next to the real axis inside the strip; xi must be positive.

        d = sqrt(b^2 - xi^2 u(u-1)),  b = kappa - rho xi u,  m = (b - d)/xi^2,  q = (1 - e^{-dT})/(2d)
        ln M = kappa theta [ m T - (2/xi^2) ln(1 + xi^2 m q) ] + v0 u(u-1) q / (1 + xi^2 m q)

    The logarithm is followed along the path, so it stays on the right sheet for a contour that is not vertical.
    """
    u = np.asarray(power, np.complex128)
    squared = model.vol_of_variance**2
    b = model.reversion - model.correlation * model.vol_of_variance * u
    product = u * (u - 1.0)
    d = np.sqrt(b * b - squared * product)
    # b - d cancels where Re b > 0; there the product of the roots gives it.
    with np.errstate(divide="ignore", invalid="ignore"):
        m = np.where(b.real > 0.0, product / (b + d), (b - d) / squared)
    decay = -special.expm1(-d * years)
    tiny = np.abs(d) * years < 1e-9
    q = np.where(tiny, 0.5 * years, decay / np.where(tiny, 1.0, 2.0 * d))
    growth = squared * m * q
    logarithm = special.log1p(growth)
    followed = logarithm.real + 1j * np.unwrap(logarithm.imag)
    drift = model.reversion * model.level * (m * years - 2.0 / squared * followed)
    return drift + model.initial_variance * product * q / (1.0 + growth)


def explosion_time(power: float, model: HestonModel) -> float:
    """Years after which E[e^{uX}] is infinite for a real `power` u outside [0, 1]; infinite where it never is."""
    squared = model.vol_of_variance**2
    b = model.reversion - model.correlation * model.vol_of_variance * power
    discriminant = b * b - squared * power * (power - 1.0)
    if discriminant < 0.0:
        root = math.sqrt(-discriminant)
        return 2.0 / root * math.atan2(root, -b)
    if b >= 0.0:
        return math.inf
    root = math.sqrt(discriminant)
    # b + root < 0 as its product with b - root is positive; that product again avoids the cancellation.
    other = squared * power * (power - 1.0) / (b - root)
    return math.log1p(-2.0 * root / other) / root if root > 0.0 else -2.0 / b


def strip_width(model: HestonModel, *, years: float, right: bool) -> float:
    """How far M exists at `years` beyond 1 on the right or 0 on the left, within 1e-9 relative; at most 1e12."""

    def exists(distance: float) -> bool:
        return explosion_time(1.0 + distance if right else -distance, model) > years

    outer = 1.0
    while exists(outer):
        if outer >= _FARTHEST_POWER:
            return outer
        outer *= 4.0
    inner = outer
    while not exists(inner):
        inner /= 4.0
        if inner < 1e-15:
            return 0.0
        outer = 4.0 * inner
    for _ in range(40):
        middle = math.sqrt(inner * outer)
        inner, outer = (middle, outer) if exists(middle) else (inner, middle)
    return inner


@dataclass(frozen=True, slots=True)
class _Law:
    """X over `years`, plus an independent normal of variance `added_variance`; strip as `strip_width` has it."""

    model: HestonModel
    years: float
    added_variance: float
    right_width: float
    left_width: float

    def log_moment(self, power: ComplexArray) -> ComplexArray:
        own = log_moment(power, self.model, years=self.years)
        return own + 0.5 * self.added_variance * power * (power - 1.0)

    def height(self, center: float, log_strike: float) -> float:
        """Logarithm of the integrand's size at a point of the real axis; infinite where M does not exist."""
        with np.errstate(all="ignore"):
            moment = float(self.log_moment(np.array([center], np.complex128))[0].real)
        height = moment - center * log_strike - math.log(abs(center * (center - 1.0)))
        return height if math.isfinite(height) else math.inf


class _Saddle(NamedTuple):
    """A point of the real axis, and the logarithm of the integrand there."""

    center: float
    height: float


def _outer_saddle(log_strike: float, law: _Law) -> _Saddle | None:
    """Least of the integrand right of 1 (strike above the forward) or left of 0; None where the strip ends at once."""
    right = log_strike >= 0.0
    width = law.right_width if right else law.left_width
    if width < 1e-6:
        return None

    def center(log_distance: float) -> float:
        distance = math.exp(log_distance)
        return 1.0 + distance if right else -distance

    found = optimize.minimize_scalar(
        lambda x: law.height(center(x), log_strike),
        bounds=(math.log(1e-7), math.log(0.999 * width)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return _Saddle(center(float(found.x)), float(found.fun))


def _middle_saddle(log_strike: float, law: _Law) -> _Saddle:
    found = optimize.minimize_scalar(
        lambda x: law.height(x, log_strike), bounds=(1e-6, 1.0 - 1e-6), method="bounded", options={"xatol": 1e-3}
    )
    return _Saddle(float(found.x), float(found.fun))


class _Integral(NamedTuple):
    value: float
    error: float


def _contour_integral(saddle: _Saddle, log_strike: float, law: _Law) -> _Integral:
    """(1/pi) Im of the integrand along the upper half of the contour, in units of e^`saddle.height`.

    The step is halved until the result stands; since halving doubles the number of right digits, the last change is a
    bound for the error before it, to which the rounding of the sum is added.
    """
    model = law.model
    reach = (model.initial_variance + model.reversion * model.level * law.years) / model.vol_of_variance
    away = log_strike + model.correlation * reach
    across = math.sqrt(max(1.0 - model.correlation**2, 0.0)) * reach
    best = math.atan2(across, away) if away != 0.0 or across != 0.0 else 0.5 * math.pi
    direction = complex(np.exp(1j * min(max(best, 0.5 * math.pi - _MOST_TILT), 0.5 * math.pi + _MOST_TILT)))

    # As wide as its curvature says; where that is lost in rounding, as the distance to the nearer pole.
    to_pole = min(abs(saddle.center), abs(saddle.center - 1.0))
    step = 1e-2 * to_pole
    rise = law.height(saddle.center + step, log_strike) + law.height(saddle.center - step, log_strike)
    bend = (rise - 2.0 * saddle.height) / (step * step)
    scale = 1.0 / math.sqrt(bend) if math.isfinite(bend) and bend > 0.0 else to_pole

    def level(width: float) -> _Integral:
        w = np.arange(-_REACH, _REACH + 0.5 * width, width)
        t = scale * np.exp(0.5 * np.pi * np.sinh(w))
        u = saddle.center + direction * t
        with np.errstate(all="ignore"):
            exponent = law.log_moment(u) - u * log_strike - saddle.height
            terms = np.exp(exponent) / (u * (u - 1.0)) * direction * t * np.cosh(w) * (0.5 * np.pi * width)
            terms = terms[np.isfinite(terms)]
        # Only far out, where the integrand is 0 anyway, can the exponent leave the range of float64.
        return _Integral(math.fsum(terms.imag) / math.pi, 4e-16 * math.fsum(np.abs(terms)))

    width = _FIRST_STEP
    before = level(width)
    change = math.inf
    for _ in range(_HALVINGS):
        width *= 0.5
        now = level(width)
        change = abs(now.value - before.value)
        before = now
        if change <= max(1e-13 * abs(now.value), now.error):
            break
    return _Integral(before.value, change + before.error)


def _outside_price(log_strike: float, law: _Law) -> _Integral:
    """Price per unit of forward of the option out of the money (a call at the money), by the better of two lines."""
    right = log_strike >= 0.0
    outer = _outer_saddle(log_strike, law)
    is_narrow = (law.right_width if right else law.left_width) < 1.0
    middle = _middle_saddle(log_strike, law) if outer is None or is_narrow else None
    if outer is not None and (middle is None or outer.height <= middle.height):
        if outer.height + log_strike < _UNDERFLOW:
            return _Integral(0.0, 0.0)
        found = _contour_integral(outer, log_strike, law)
        size = math.exp(outer.height + log_strike)
        return _Integral(max(size * found.value, 0.0), size * found.error)
    assert middle is not None
    found = _contour_integral(middle, log_strike, law)
    size = math.exp(middle.height + log_strike)
    # Between the poles the integral is minus the smaller of price and strike.
    smaller = 1.0 if right else math.exp(log_strike)
    return _Integral(max(smaller + size * found.value, 0.0), size * found.error)


def _one_count(forward: float, strike: float, law: _Law) -> PricedPair:
    found = _outside_price(math.log(strike / forward), law)
    outside, error = forward * found.value, forward * found.error
    if strike >= forward:
        return PricedPair(OptionPair(outside, outside + (strike - forward)), error)
    return PricedPair(OptionPair(outside + (forward - strike), outside), error)


def _with_jumps(forward: float, strike: float, law: _Law, jumps: NormalJumps) -> PricedPair:
    """Mixture over the number of jumps, the likely ones first, until what is left cannot change the last digit."""
    counts = jump_counts(
        intensity=jumps.intensity, jump_mean=jumps.mean, jump_deviation=jumps.deviation, years=law.years
    )
    with np.errstate(under="ignore"):
        forwards = forward * np.exp(counts.log_forward)
    is_call = strike >= forward
    bounds = counts.probability * (forwards if is_call else strike)
    order = np.argsort(-bounds, kind="stable")
    left = np.cumsum(bounds[order][::-1])[::-1]
    outside, error = 0.0, 0.0
    for position, n in enumerate(order):
        if left[position] <= 1e-16 * outside or left[position] < 1e-300:
            break
        shifted = replace(law, added_variance=float(counts.variance[n]))
        priced = _one_count(float(forwards[n]), strike, shifted)
        weight = float(counts.probability[n])
        outside += weight * (priced.options.call if is_call else priced.options.put)
        error += weight * priced.quadrature_error
    if is_call:
        return PricedPair(OptionPair(outside, outside + (strike - forward)), error)
    return PricedPair(OptionPair(outside + (forward - strike), outside), error)


def heston_option(
    forward: float, strike: float, *, model: HestonModel, years: float, jumps: NormalJumps | None = None
) -> PricedPair:
    """Call and put on `forward` under `model`, with `jumps` if there are any, and a bound for the quadrature's error.

    Without variance of the variance this is Black's or Merton's price at the expected variance. Raises `ValueError` for
    arguments outside of their domain, and `ArithmeticError` where the quadrature does not settle within 1e-9 of the
    forward, which no known parameters do.
    """
    f, strike = required_positive("forward", forward), required_positive("strike", strike)
    t = required("years", years, least=0.0)
    variance = expected_total_variance(model, years=t)
    if model.vol_of_variance == 0.0 or variance == 0.0:
        jumping = jumps if jumps is not None else NormalJumps(0.0, 0.0, 0.0)
        vol = math.sqrt(variance / t) if t > 0.0 else 0.0
        options = merton_jump_option(
            f,
            strike,
            intensity=jumping.intensity,
            jump_mean=jumping.mean,
            jump_deviation=jumping.deviation,
            vol=vol,
            years=t,
        )
        return PricedPair(options, 0.0)
    law = _Law(
        model,
        t,
        added_variance=0.0,
        right_width=strip_width(model, years=t, right=True),
        left_width=strip_width(model, years=t, right=False),
    )
    priced = _one_count(f, strike, law) if jumps is None else _with_jumps(f, strike, law, jumps)
    if not priced.quadrature_error <= 1e-9 * f:
        raise ArithmeticError(
            f"the quadrature left an error of {priced.quadrature_error:g} on a forward of {f:g}: "
            f"strike {strike:g}, {t:g} years, {model}"
        )
    return priced
