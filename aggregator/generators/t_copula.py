"""t-copula scenarios: every factor has a law of its own, and all have their extremes together like a multivariate t.

Y is multivariate t with correlation R and nu degrees of freedom, U_i = T_nu(Y_i), X_i = location_i + s_i F_i^-1(U_i)
(S. Demarta, A. J. McNeil, "The t copula and related copulas", 2005). F_i is semi-parametric: quantiles linear in the
probability in the body, generalised Pareto tails beyond its first and last probability (A. J. McNeil, R. Frey,
"Estimation of tail-related risk measures for heteroscedastic financial time series", 2000). F_i is brought to mean 0
and variance 1 by its exact moments, so that `daily_std` is the standard deviation of the factor, whatever the law was
fitted to, and `location` its mean.

The host makes one table per factor of F_i^-1(T_nu(y)) over y; between its nodes x is linear in y (within 1e-3 of a
standard deviation up to the 0.1 % quantiles for the laws of the tests), and beyond the last node, at a probability of
1e-10, the Pareto tail is continued by the power law of T_nu.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32
from scipy import special

from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import figure, float64, require_positive
from ..sobol_points import SobolDesign
from .multivariate_t import MultivariateT, multivariate_t

_BODY_STEP = 0.02  # most between two nodes of the body, in y
_TAIL_NODES = 192  # evenly spaced in the logarithm of the probability
_LEAST_PROBABILITY = 1e-10
_LARGEST_SHAPE = 0.5
_CONTINUITY = 1e-9  # of the range of the body: thresholds written with fewer digits than the quantiles still fit


class ParetoTail(NamedTuple):
    """Generalised Pareto law of what lies beyond `threshold`: `shape` below 1/2 (finite variance), `scale` above 0.

    Both tails have a positive scale; the lower one extends downwards from its threshold.
    """

    threshold: float
    shape: float
    scale: float


class MarginLaw(NamedTuple):
    """Law of one factor in any unit: `quantiles` [nodes] at ascending `probabilities` [nodes], and both tails.

    The tails begin at the first and the last probability, and their thresholds are the quantiles there.
    """

    probabilities: Sequence[float] | np.ndarray
    quantiles: Sequence[float] | np.ndarray
    lower: ParetoTail
    upper: ParetoTail


class TCopula(eqx.Module):
    """t copula with semi-parametric margins; the steps of a path are independent. Build it with `t_copula`.

    The fields are over the length of a step; row i of the tables belongs to factor i. With points (`sobol_points`) they
    drive the underlying t, and its weights are those of the scenarios.
    """

    dependence: MultivariateT
    """Y: location 0 and a unit diagonal of the scale matrix."""
    location: Float[Array, " factors"]
    scale: Float[Array, " factors"]
    nodes: Float[Array, "factors nodes"]
    values: Float[Array, "factors nodes"]
    slopes: Float[Array, "factors nodes"]
    """Slope to the next node; that of the last node is not used."""
    tail_shape: Float[Array, "factors 2"]
    """Of the lower and the upper tail."""
    tail_scale: Float[Array, "factors 2"]
    """Pareto scale of what lies beyond the first and the last node."""

    @property
    def factors(self) -> tuple[str, ...]:
        return self.dependence.factors

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return self.dependence.own_weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Any:
        """That of the underlying t."""
        return self.dependence.start(key, index)

    def step(self, state: Any, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, Float[Array, " factors"]]:
        """Log-changes of the factors over one step of scenario `index`."""
        state, y = self.dependence.step(state, key, index)
        standard = jax.vmap(_standard_value, in_axes=(0, 0, 0, 0, 0, 0, None))(
            y, self.nodes, self.values, self.slopes, self.tail_shape, self.tail_scale,
            self.dependence.degrees_of_freedom,
        )  # fmt: skip
        return state, self.location + rounded(self.scale * standard)


def t_copula(
    factors: Sequence[str],
    daily_std: Mapping[str, float],
    margins: Mapping[str, MarginLaw],
    *,
    correlation: np.ndarray,
    nu: float,
    step_days: float = 1.0,
    location: Mapping[str, float] | None = None,
    points: SobolDesign | None = None,
) -> TCopula:
    """A `TCopula` from standard deviations, laws of the factors, the correlation [factors, factors] of Y and nu > 2.

    The standard deviation grows with sqrt(step_days), the daily `location` (default 0) with step_days; the shape of the
    margins is that of the daily law for every step. `points` makes a weighted scenario set of its own for the first
    step. Raises ConfigurationError naming the factor when a figure or a law is wrong.
    """
    require_positive("step_days", step_days)
    names = tuple(factors)
    if not (math.isfinite(nu) and nu > 2.0):
        raise ConfigurationError(f"nu is {nu!r}; a t copula is built for a finite nu above 2")
    unit_std = dict.fromkeys(names, math.sqrt(nu / (nu - 2.0)))
    dependence = multivariate_t(names, unit_std, correlation=correlation, nu=nu, points=points)
    std = np.array([figure(daily_std, name, "daily_std") for name in names])
    for name, value in zip(names, std, strict=True):
        require_positive(f"daily_std of {name}", value)
        if name not in margins:
            raise ConfigurationError(f"margins has no law for {name}")
    drift = np.zeros(len(names))
    if location is not None:
        drift = np.array([figure(location, name, "location") for name in names])
    laws = [standardised_margin(margins[name], name) for name in names]
    tables = [_table(law, nu) for law in laws]
    most = max(len(y) for y, _ in tables)
    # shorter tables end in copies of their last node: flat pieces of no width, which no y falls into
    nodes = np.array([np.pad(y, (0, most - len(y)), mode="edge") for y, _ in tables])
    values = np.array([np.pad(x, (0, most - len(x)), mode="edge") for _, x in tables])
    widths = np.diff(nodes, axis=1)
    slopes = np.where(widths > 0.0, np.diff(values, axis=1) / np.where(widths > 0.0, widths, 1.0), 0.0)
    ends = [(law.probabilities[0], 1.0 - law.probabilities[-1]) for law in laws]
    return TCopula(
        dependence=dependence,
        location=float64(drift * step_days),
        scale=float64(std * math.sqrt(step_days)),
        nodes=float64(nodes),
        values=float64(values),
        slopes=float64(np.pad(slopes, ((0, 0), (0, 1)))),
        tail_shape=float64([(law.lower.shape, law.upper.shape) for law in laws]),
        tail_scale=float64(
            [
                [
                    tail.scale * (_LEAST_PROBABILITY / end) ** -tail.shape
                    for tail, end in zip(law[2:], ends_of, strict=True)
                ]
                for law, ends_of in zip(laws, ends, strict=True)
            ]
        ),
    )


def standardised_margin(law: MarginLaw, name: str) -> MarginLaw:
    """`law` shifted and scaled to mean 0 and variance 1; ConfigurationError naming the factor when it is no law."""
    p, q = (np.asarray(row, dtype=np.float64) for row in law[:2])
    _check(law, p, q, name)
    mean, second = _moments(law, p, q)
    std = math.sqrt(second - mean * mean)

    def moved(tail: ParetoTail, threshold: float) -> ParetoTail:
        return ParetoTail(threshold, tail.shape, tail.scale / std)

    values = (q - mean) / std
    return MarginLaw(p, values, moved(law.lower, float(values[0])), moved(law.upper, float(values[-1])))


def margin_quantile(law: MarginLaw, u: np.ndarray | np.float64) -> np.ndarray:
    """F^-1 [...] of a margin at probabilities `u` strictly between 0 and 1; the twin of the table on the device."""
    p, q = (np.asarray(row, dtype=np.float64) for row in law[:2])
    u = np.asarray(u)
    below, above = np.minimum(u / p[0], 1.0), np.minimum((1.0 - u) / (1.0 - p[-1]), 1.0)
    return np.interp(u, p, q) - _excess(law.lower, below) + _excess(law.upper, above)


def _excess(tail: ParetoTail, survival: np.ndarray) -> np.ndarray:
    """How far beyond the threshold a value lies that is exceeded with `survival` among those beyond it."""
    distance = -np.log(survival)
    if tail.shape == 0.0:
        return tail.scale * distance
    return tail.scale * np.expm1(tail.shape * distance) / tail.shape


def _moments(law: MarginLaw, p: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """Mean and second moment: quantiles linear in p, and E[excess] = s / (1 - k), E[excess^2] = 2 s^2 / (1-k)(1-2k)."""
    mass = np.diff(p)
    mean = math.fsum(mass * (q[1:] + q[:-1]) / 2.0)
    second = math.fsum(mass * (q[1:] ** 2 + q[1:] * q[:-1] + q[:-1] ** 2) / 3.0)
    for tail, beyond, sign in ((law.lower, p[0], -1.0), (law.upper, 1.0 - p[-1], 1.0)):
        first = tail.scale / (1.0 - tail.shape)
        square = 2.0 * tail.scale**2 / ((1.0 - tail.shape) * (1.0 - 2.0 * tail.shape))
        mean += beyond * (tail.threshold + sign * first)
        second += beyond * (tail.threshold**2 + 2.0 * sign * tail.threshold * first + square)
    return mean, second


def _check(law: MarginLaw, p: np.ndarray, q: np.ndarray, name: str) -> None:
    where = f"margin of {name}"
    if p.ndim != 1 or p.shape != q.shape or len(p) < 2:
        raise ConfigurationError(f"{where}: {p.shape} probabilities and {q.shape} quantiles; expected two equal rows")
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise ConfigurationError(f"{where} has a probability or quantile that is not a finite number")
    if not (p[0] > 0.0 and p[-1] < 1.0 and (np.diff(p) > 0.0).all()):
        raise ConfigurationError(f"{where}: probabilities must ascend strictly between 0 and 1")
    if p[0] <= _LEAST_PROBABILITY or 1.0 - p[-1] <= _LEAST_PROBABILITY:
        raise ConfigurationError(f"{where}: each tail needs a probability above {_LEAST_PROBABILITY}")
    if (np.diff(q) < 0.0).any() or not q[-1] > q[0]:
        raise ConfigurationError(f"{where}: quantiles must not descend, and not all be equal")
    for side, tail, end in (("lower", law.lower, q[0]), ("upper", law.upper, q[-1])):
        if not all(math.isfinite(value) for value in tail):
            raise ConfigurationError(f"{where}: {side} tail {tuple(tail)} has a figure that is not a finite number")
        if not tail.scale > 0.0:
            raise ConfigurationError(f"{where}: scale of the {side} tail is {tail.scale}; expected a positive number")
        if not tail.shape < _LARGEST_SHAPE:
            raise ConfigurationError(
                f"{where}: shape of the {side} tail is {tail.shape}; a law with a variance needs one below 0.5"
            )
        if abs(tail.threshold - end) > _CONTINUITY * (q[-1] - q[0]):
            raise ConfigurationError(
                f"{where}: threshold of the {side} tail is {tail.threshold}, and the quantile there {end}"
            )


def _table(law: MarginLaw, nu: float) -> tuple[np.ndarray, np.ndarray]:
    """Ascending nodes y [nodes] and F^-1(T_nu(y)) [nodes]."""
    p = np.asarray(law.probabilities)
    q = np.asarray(law.quantiles)
    tail_p = np.geomspace(_LEAST_PROBABILITY, p[0], _TAIL_NODES)[:-1]
    tail_q = np.geomspace(_LEAST_PROBABILITY, 1.0 - p[-1], _TAIL_NODES)[:-1]
    y_of_p = special.stdtrit(nu, p)
    pieces = [
        np.linspace(first, second, math.ceil((second - first) / _BODY_STEP), endpoint=False)
        for first, second in pairwise(y_of_p)
    ]
    body_y = np.concatenate([*pieces, y_of_p[-1:]])
    body = np.interp(special.stdtr(nu, body_y), p, q)
    lower = q[0] - _excess(law.lower, tail_p / p[0])
    upper = q[-1] + _excess(law.upper, tail_q / (1.0 - p[-1]))
    y = np.concatenate([special.stdtrit(nu, tail_p), body_y, -special.stdtrit(nu, tail_q)[::-1]])
    return y, np.concatenate([lower, body, upper[::-1]])


def _standard_value(
    y: Float[Array, ""],
    nodes: Float[Array, " nodes"],
    values: Float[Array, " nodes"],
    slopes: Float[Array, " nodes"],
    shape: Float[Array, "2"],
    scale: Float[Array, "2"],
    degrees_of_freedom: Float[Array, ""],
) -> Float[Array, ""]:
    """F^-1(T_nu(y)): from the table, and beyond its ends with T_nu(y) in proportion to (nu + y^2)^(-nu / 2)."""
    last = nodes.shape[0] - 1
    place = jnp.clip(jnp.searchsorted(nodes, y, side="right") - 1, 0, last - 1)
    inside = values[place] + rounded(slopes[place] * (y - nodes[place]))
    above = y > nodes[last]
    side = above.astype(jnp.int32)
    end = jnp.where(above, last, 0)
    # the logarithm of the ratio of the probabilities, 0 inside of the table
    further = jnp.maximum(y * y, nodes[end] * nodes[end])
    ratio = (degrees_of_freedom + rounded(further)) / (degrees_of_freedom + rounded(nodes[end] * nodes[end]))
    distance = 0.5 * degrees_of_freedom * jnp.log(ratio)
    k = shape[side]
    is_exponential = k == 0.0
    safe = jnp.where(is_exponential, 1.0, k)
    excess = scale[side] * jnp.where(is_exponential, distance, jnp.expm1(rounded(safe * distance)) / safe)
    beyond = values[end] + jnp.where(above, 1.0, -1.0) * rounded(excess)
    return jnp.where(above | (y < nodes[0]), beyond, inside)
