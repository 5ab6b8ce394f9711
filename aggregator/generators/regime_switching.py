"""Regime switching: a hidden Markov chain chooses the standard deviations, the correlations and the market's depth.

J. Hamilton, "A new approach to the economic analysis of nonstationary time series" (1989).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32
from scipy import linalg

from ..correlation import cholesky_factor, repaired_correlation
from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import (
    MIXTURE_STREAM,
    checked_factors,
    chi_square,
    figure,
    float64,
    named_streams,
    require_positive,
    standard_normals,
)

_TODAY_STREAM = "regime today"
_SWITCH_STREAM = "regime"
_DEPTH = "depth:"

LARGEST_MISS = 0.02
"""What a chain in continuous time may miss of a daily transition probability; more is another chain."""

_SUM_SLACK = 1e-6  # of probabilities written with six decimals


class RegimeLaw(NamedTuple):
    """What the factors do in one regime: daily standard deviation and mean by factor (default mean 0), correlation.

    `correlation` [moving, moving] is over the factors that are not depths, in their order. `depth` multiplies the depth
    of every `depth:` factor.
    """

    daily_std: Mapping[str, float]
    correlation: np.ndarray
    location: Mapping[str, float] | None = None
    depth: float = 1.0


class RegimeSwitching(eqx.Module):
    """Normal or t moves whose law is that of the regime of the step. Build it with `regime_switching`.

    A path draws today's regime from the filtered probabilities, each step then the next one from the row of the
    transition matrix, and its moves from the law of that regime; one step is therefore a mixture with weights
    filtered P. A `depth:` factor moves by ln(depth of the regime / depth of the one before). Fields are over a step.
    """

    factors: tuple[str, ...] = eqx.field(static=True)
    moving: tuple[str, ...] = eqx.field(static=True)
    """The factors that are not depths."""
    order: tuple[int, ...] = eqx.field(static=True)
    """Positions of `factors` in moving + depths."""
    location: Float[Array, "regimes moving"]
    columns: Float[Array, "regimes moving moving"]
    """Row j of a regime is the j-th column of the root of its scale matrix."""
    log_depth: Float[Array, " regimes"]
    cumulative_today: Float[Array, " regimes"]
    cumulative_transition: Float[Array, "regimes regimes"]
    degrees_of_freedom: Float[Array, ""] | None

    @property
    def own_weights(self) -> None:
        return None

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Int32[Array, ""]:
        """The regime that holds today."""
        stream = named_streams(key, (_TODAY_STREAM,), index)[0]
        return _drawn(jax.random.uniform(stream, (), jnp.float64), self.cumulative_today)

    def step(
        self, state: Int32[Array, ""], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[Int32[Array, ""], Float[Array, " factors"]]:
        """The regime of one step of scenario `index`, and the log-changes of the factors over it."""
        count = len(self.moving)
        streams = named_streams(key, (*self.moving, _SWITCH_STREAM, MIXTURE_STREAM), index)
        regime = _drawn(jax.random.uniform(streams[count], (), jnp.float64), self.cumulative_transition[state])
        z = rounded(standard_normals(streams[:count]))  # a normal is a product: its factors must stay together
        columns = self.columns[regime]

        def add_column(j: Array, total: Array) -> Array:
            return total + rounded(columns[j] * z[j])

        moves = lax.fori_loop(0, count, add_column, jnp.zeros(count, jnp.float64))
        if self.degrees_of_freedom is not None:
            width = jnp.sqrt(self.degrees_of_freedom / chi_square(streams[count + 1], self.degrees_of_freedom))
            moves = rounded(width * moves)
        moves = self.location[regime] + moves
        if depths := len(self.factors) - count:
            change = self.log_depth[regime] - self.log_depth[state]
            moves = jnp.concatenate([moves, jnp.broadcast_to(change, (depths,))])
        return regime, moves[np.array(self.order)]


def regime_switching(
    factors: Sequence[str],
    regimes: Mapping[str, RegimeLaw],
    *,
    transition: np.ndarray,
    filtered: Sequence[float],
    nu: float | None = None,
    step_days: float = 1.0,
) -> RegimeSwitching:
    """A `RegimeSwitching` over 2 or 3 regimes, in the order of `regimes`.

    `transition` [regimes, regimes] is per day, row from, column to; `filtered` are today's probabilities from data up
    to today. `nu` (above 2) makes t laws of the normal ones, with the same standard deviations. For another length of
    the step the chain is that of `transition_over`; a step as a whole has one regime, so that steps longer than a
    regime lasts are coarse. Raises ConfigurationError naming regime and factor when a figure is wrong.
    """
    require_positive("step_days", step_days)
    names = checked_factors(factors, reserved=(_TODAY_STREAM, _SWITCH_STREAM, MIXTURE_STREAM))
    if len(regimes) not in (2, 3):
        raise ConfigurationError(f"{len(regimes)} regimes; expected 2 or 3")
    if nu is not None and not (math.isfinite(nu) and nu > 2.0):
        raise ConfigurationError(f"nu is {nu!r}; a t law with a standard deviation needs a finite nu above 2")
    moving = tuple(name for name in names if not name.startswith(_DEPTH))
    if not moving:
        raise ConfigurationError("regime switching needs a factor beside depths")
    depths = tuple(name for name in names if name.startswith(_DEPTH))
    today = _probabilities("filtered", filtered, tuple(regimes))
    scale = math.sqrt(step_days if nu is None else step_days * (nu - 2.0) / nu)
    locations, columns = [], []
    for regime, law in regimes.items():
        std = np.array([figure(law.daily_std, name, f"daily_std in regime {regime}") for name in moving])
        for name, value in zip(moving, std, strict=True):
            require_positive(f"daily_std of {name} in regime {regime}", value)
        require_positive(f"depth in regime {regime}", law.depth)
        mean = np.zeros(len(moving))
        if law.location is not None:
            mean = np.array([figure(law.location, name, f"location in regime {regime}") for name in moving])
        locations.append(mean * step_days)
        try:
            root = cholesky_factor(repaired_correlation(moving, law.correlation))
        except ConfigurationError as error:
            raise ConfigurationError(f"regime {regime}: {error}") from None
        columns.append((scale * std[:, None] * root).T)
    chain = transition_over(transition, step_days, tuple(regimes))
    return RegimeSwitching(
        factors=names,
        moving=moving,
        order=tuple((*moving, *depths).index(name) for name in names),
        location=float64(locations),
        columns=float64(columns),
        log_depth=float64([math.log(law.depth) for law in regimes.values()]),
        cumulative_today=float64(_cumulative(today)),
        cumulative_transition=float64([_cumulative(row) for row in chain]),
        degrees_of_freedom=None if nu is None else float64(nu),
    )


def transition_over(transition: np.ndarray, step_days: float, regimes: tuple[str, ...]) -> np.ndarray:
    """Transition matrix over `step_days` of a chain with `transition` per day; rows sum to 1.

    Whole numbers of days give the power of the matrix, fractions exp(step_days Q) with Q = ln P. An estimated P need
    not belong to any chain in continuous time: rates below 0 in Q become 0 and their row gives them up on the diagonal
    (R. Israel, J. Rosenthal, J. Wei, "Finding generators for Markov chains via empirical transition matrices", 2001).
    Raises ConfigurationError for no transition matrix, or when the daily law of that chain misses P by more than
    `LARGEST_MISS`.
    """
    matrix = np.asarray(transition, dtype=np.float64)
    if matrix.shape != (len(regimes), len(regimes)):
        raise ConfigurationError(f"transition has shape {matrix.shape}; {len(regimes)} regimes need a square of them")
    rows = [_probabilities(f"transition from {name}", row, regimes) for name, row in zip(regimes, matrix, strict=True)]
    daily = np.array(rows)
    if step_days == round(step_days):
        return np.asarray(np.linalg.matrix_power(daily, int(step_days)))
    eigenvalues = np.linalg.eigvals(daily)
    if ((np.abs(eigenvalues) < _SUM_SLACK) | ((np.imag(eigenvalues) == 0.0) & (np.real(eigenvalues) < 0.0))).any():
        raise ConfigurationError(f"transition has no law over {step_days} days: its daily switches have no logarithm")
    rates = np.real(linalg.logm(daily))
    rates = np.where(np.eye(len(daily)) > 0.0, 0.0, np.maximum(rates, 0.0))
    rates -= np.diag(rates.sum(axis=1))
    miss = float(np.abs(linalg.expm(rates) - daily).max())
    if miss > LARGEST_MISS:
        raise ConfigurationError(
            f"transition has no law over {step_days} days: the nearest chain in continuous time misses a daily "
            f"probability by {miss:.3f}"
        )
    return np.asarray(linalg.expm(step_days * rates))


def _probabilities(what: str, row: Sequence[float] | np.ndarray, regimes: tuple[str, ...]) -> np.ndarray:
    """`row` made to sum to 1 exactly enough; ConfigurationError when it is no law over the regimes."""
    values = np.asarray(row, dtype=np.float64)
    if values.shape != (len(regimes),):
        raise ConfigurationError(
            f"{what} has shape {values.shape}; expected one figure for each of {', '.join(regimes)}"
        )
    for name, value in zip(regimes, values, strict=True):
        if not (math.isfinite(value) and value >= 0.0):
            raise ConfigurationError(f"{what}: the probability of {name} is {value}; expected a number in [0, 1]")
    total = math.fsum(values)
    if abs(total - 1.0) > _SUM_SLACK:
        raise ConfigurationError(f"{what} adds up to {total:.9g}; expected 1")
    return values / total


def _cumulative(probabilities: np.ndarray) -> np.ndarray:
    """Running sums whose last is 1, and all before it that are 1 but for rounding, so that no impossible is drawn."""
    sums = np.cumsum(probabilities)
    sums[np.flatnonzero(probabilities > 0.0)[-1] :] = 1.0
    return sums


def _drawn(u: Float[Array, ""], cumulative: Float[Array, " regimes"]) -> Int32[Array, ""]:
    return jnp.sum((u >= cumulative).astype(jnp.int32))
