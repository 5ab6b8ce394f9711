"""Jump diffusion: correlated normal moves, a Poisson number of jumps that all factors share, and jumps of their own.

R. Merton, "Option pricing when underlying stock returns are discontinuous" (1976), with a common jump factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32
from scipy import special

from ..correlation import cholesky_factor, repaired_correlation
from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import (
    checked_factors,
    figure,
    float64,
    named_streams,
    require_positive,
    standard_normals,
)

TRUNCATED_MASS = 2.0**-53
"""Counts of jumps end where the Poisson law has less than this left, half of the spacing of the uniforms."""

LARGEST_COUNT_MEAN = 50.0
"""Expected jumps in a step above which the law is refused: so many of them are a diffusion."""

_DAYS_PER_YEAR = 365.0
_COMMON_COUNT = "common jumps"
_COMMON_SIZE = "common jump size"
_LARGEST_EXPONENT = 700.0


class CommonJumps(NamedTuple):
    """Jumps that all factors share: expected number per year (365 days), mean and standard deviation of one."""

    per_year: float
    mean: float
    std: float


class FactorJumps(NamedTuple):
    """Of one factor: its `beta` on the common jumps, and the jumps of its own, per year, with mean and std of one."""

    beta: float
    per_year: float
    mean: float
    std: float


class MertonJumps(eqx.Module):
    """Merton's law with a common jump factor; the steps of a path are independent. Build it with `merton_jumps`.

    x_i = location_i + (A z)_i + b_i (N_c m_c + sqrt(N_c) s_c xi_c) + N_i m_i + sqrt(N_i) s_i xi_i, where A A' is the
    covariance of the diffusion and N are Poisson counts, independent of each other. The fields are over the length of a
    step. Counts come from one uniform by the inverse of a distribution function that ends after finitely many jumps.
    """

    factors: tuple[str, ...] = eqx.field(static=True)
    own: tuple[int, ...] = eqx.field(static=True)
    """Positions of the factors that have jumps of their own."""
    location: Float[Array, " factors"]
    """What is added to the diffusion and the jumps; not the mean of the law, which jumps move as well."""
    columns: Float[Array, "factors factors"]
    """Row j is the j-th column of A."""
    beta: Float[Array, " factors"]
    common_counts: Float[Array, " counts"] | None
    """P(N_c <= count) for 0, 1, ...; the last is 1. None without common jumps."""
    common_mean: Float[Array, ""]
    common_std: Float[Array, ""]
    own_counts: Float[Array, "own counts"]
    own_mean: Float[Array, " own"]
    own_std: Float[Array, " own"]

    @property
    def own_weights(self) -> None:
        return None

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[()]:
        """Nothing: steps are independent."""
        return ()

    def step(
        self, state: tuple[()], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[()], Float[Array, " factors"]]:
        """Log-changes of the factors over one step of scenario `index`."""
        count = len(self.factors)
        jumping = tuple(self.factors[i] for i in self.own)
        common = () if self.common_counts is None else (_COMMON_SIZE,)
        normal = (*self.factors, *(_size_stream(name) for name in jumping), *common)
        uniform = (*(_count_stream(name) for name in jumping), *(() if not common else (_COMMON_COUNT,)))
        streams = named_streams(key, (*normal, *uniform), index)  # one call: every separate one costs compile time
        z = rounded(standard_normals(streams[: len(normal)]))  # a normal is a product: its factors must stay together

        def add_column(j: Array, total: Array) -> Array:
            return total + rounded(self.columns[j] * z[j])

        moves = self.location + lax.fori_loop(0, count, add_column, jnp.zeros(count, jnp.float64))
        if uniform:
            u = jax.vmap(lambda stream: jax.random.uniform(stream, (), jnp.float64))(streams[len(normal) :])
        if self.common_counts is not None:
            size = _jumps(u[-1], z[-1], self.common_counts, self.common_mean, self.common_std)
            moves = moves + rounded(self.beta * size)
        if jumping:
            last = len(jumping)
            sizes = jax.vmap(_jumps)(u[:last], z[count : count + last], self.own_counts, self.own_mean, self.own_std)
            places = np.full(count, last)
            places[list(self.own)] = np.arange(last)
            moves = moves + jnp.concatenate([sizes, jnp.zeros(1, jnp.float64)])[places]
        return state, moves


def merton_jumps(
    factors: Sequence[str],
    diffusive_std: Mapping[str, float],
    jumps: Mapping[str, FactorJumps],
    *,
    correlation: np.ndarray,
    common: CommonJumps | None = None,
    step_days: float = 1.0,
    location: Mapping[str, float] | Literal["martingale"] | None = None,
) -> MertonJumps:
    """A `MertonJumps` from daily standard deviations without jumps, their correlation [factors, factors], and jumps.

    Factors without an entry in `jumps` only diffuse. `location` is the mean daily log-change with the jumps included,
    default 0, which is what margin asks for; "martingale" makes E[e^x] = 1 instead, which is what prices ask for. Mean
    and variance grow with `step_days`. A correlation matrix that is not positive definite is repaired
    (`repaired_correlation`). Raises ConfigurationError naming the factor when a figure is wrong, or for more than
    `LARGEST_COUNT_MEAN` expected jumps in a step.
    """
    require_positive("step_days", step_days)
    for name in jumps:
        if name not in factors:
            raise ConfigurationError(f"jumps of {name}: it is not a factor of this generator")
    jumping = tuple(name for name in factors if name in jumps and jumps[name].per_year != 0.0)
    reserved = (_COMMON_COUNT, _COMMON_SIZE, *map(_count_stream, jumping), *map(_size_stream, jumping))
    names = checked_factors(factors, reserved=reserved)
    std = np.array([figure(diffusive_std, name, "diffusive_std") for name in names])
    for name, value in zip(names, std, strict=True):
        require_positive(f"diffusive_std of {name}", value)
    shared = CommonJumps(0.0, 0.0, 0.0) if common is None else common
    _check("common jumps", shared.per_year, shared.mean, shared.std)
    of_factor = {name: jumps.get(name, FactorJumps(0.0, 0.0, 0.0, 0.0)) for name in names}
    for name, law in of_factor.items():
        if not math.isfinite(law.beta):
            raise ConfigurationError(f"jump beta of {name} is {law.beta}; expected a finite number")
        _check(f"jumps of {name}", law.per_year, law.mean, law.std)
    own = [of_factor[name] for name in jumping]
    mean = _means(names, std, of_factor, shared, location)
    tables = [_counts(f"jumps of {name}", of_factor[name].per_year, step_days) for name in jumping]
    longest = max((len(table) for table in tables), default=1)
    root = std[:, None] * math.sqrt(step_days) * cholesky_factor(repaired_correlation(names, correlation))
    return MertonJumps(
        factors=names,
        own=tuple(names.index(name) for name in jumping),
        location=float64(mean * step_days),
        columns=float64(root.T),
        beta=float64([of_factor[name].beta for name in names]),
        common_counts=float64(_counts("common jumps", shared.per_year, step_days)) if shared.per_year else None,
        common_mean=float64(shared.mean),
        common_std=float64(shared.std),
        own_counts=float64(
            np.array([np.pad(t, (0, longest - len(t)), mode="edge") for t in tables]).reshape(-1, longest)
        ),
        own_mean=float64([law.mean for law in own]),
        own_std=float64([law.std for law in own]),
    )


def _count_stream(name: str) -> str:
    return f"{name} jumps"


def _size_stream(name: str) -> str:
    return f"{name} jump size"


def _jumps(
    u: Float[Array, ""], z: Float[Array, ""], counts: Float[Array, " counts"], mean: Array, std: Array
) -> Float[Array, ""]:
    """Sum of the jumps of a step: their number by the inverse of its distribution function at `u`."""
    count = jnp.sum((u >= counts).astype(jnp.int32)).astype(jnp.float64)
    return rounded(count * mean) + rounded(rounded(jnp.sqrt(count) * std) * z)


def _check(what: str, per_year: float, mean: float, std: float) -> None:
    for part, value, least in (("per_year", per_year, 0.0), ("mean", mean, -math.inf), ("std", std, 0.0)):
        if not (math.isfinite(value) and value >= least):
            expected = "a finite number" if least < 0.0 else "a finite number of at least 0"
            raise ConfigurationError(f"{part} of the {what} is {value}; expected {expected}")


def _counts(what: str, per_year: float, step_days: float) -> np.ndarray:
    """P(N <= count) for 0, 1, ... up to the count that all rarer ones are taken for."""
    expected = per_year * step_days / _DAYS_PER_YEAR
    if expected > LARGEST_COUNT_MEAN:
        raise ConfigurationError(
            f"{what}: {expected:g} are expected in a step; at most {LARGEST_COUNT_MEAN:g} are drawn"
        )
    counts = np.arange(200.0)
    last = int(np.flatnonzero(special.pdtrc(counts, expected) < TRUNCATED_MASS)[0])
    return np.append(special.pdtr(counts[:last], expected), 1.0)


def _means(
    names: tuple[str, ...],
    std: np.ndarray,
    jumps: Mapping[str, FactorJumps],
    common: CommonJumps,
    location: Mapping[str, float] | Literal["martingale"] | None,
) -> np.ndarray:
    """Per day: what must be added to the diffusion and the jumps for the mean that is asked for."""
    if location == "martingale":
        lift = [_lift(name, jumps[name], common) for name in names]
        return -0.5 * std**2 - np.array(lift) / _DAYS_PER_YEAR
    wanted = np.zeros(len(names))
    if location is not None:
        wanted = np.array([figure(location, name, "location") for name in names])
    by_jumps = [
        jumps[name].beta * common.per_year * common.mean + jumps[name].per_year * jumps[name].mean for name in names
    ]
    return wanted - np.array(by_jumps) / _DAYS_PER_YEAR


def _lift(name: str, law: FactorJumps, common: CommonJumps) -> float:
    """Rate per year by which jumps lift the price: the sum of intensity times E[e^J] - 1."""
    total = 0.0
    for per_year, mean, std in (
        (common.per_year, law.beta * common.mean, law.beta * common.std),
        (law.per_year, law.mean, law.std),
    ):
        exponent = mean + 0.5 * std * std
        if exponent > _LARGEST_EXPONENT:
            raise ConfigurationError(f"jumps of {name} lift its price by the factor e^{exponent:g}, which is no number")
        total += per_year * math.expm1(exponent)
    return total
