"""Multivariate Student-t scenarios: every factor shares one mixing variable, so all have their extremes together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

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
from ..sobol_points import ScenarioPoints, SobolDesign, principal_root, sobol_points
from .column_sums import column_sum

_FIRST_STEP = np.bool_(True)


class MultivariateT(eqx.Module):
    """Multivariate Student-t law: x = location + sqrt(W) A Z with W = nu / chi2_nu and A A' the scale matrix.

    All factors share W, so they have their extremes together (tail dependence; S. Demarta, A. J. McNeil, "The t copula
    and related copulas", 2005). Build it with `multivariate_t`; the fields are over the length of a step, and the steps
    of a path are independent. With `points` the first step of scenario s is row s of their table and carries its
    weight; the later steps of a path come from the streams, so the weights stay those of the paths.
    """

    factors: tuple[str, ...] = eqx.field(static=True)
    location: Float[Array, " factors"]
    columns: Float[Array, "factors factors"]
    """Row j is the j-th column of A: lower triangular, or with points the principal components, largest first."""
    degrees_of_freedom: Float[Array, ""]
    points: ScenarioPoints | None = None

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        return None if self.points is None else self.points.weights

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Any:
        """Nothing, or with points whether the next step is the first."""
        return () if self.points is None else _FIRST_STEP

    def normals(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Float[Array, " factors"]:
        """The independent standard normal of each factor in scenario `index`."""
        return standard_normals(named_streams(key, self.factors, index))

    def step(self, state: Any, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, Float[Array, " factors"]]:
        """Log-changes of the factors over one step of scenario `index`."""
        z, width = self._drivers(state, key, index)
        count = len(self.factors)
        # Lower triangular unless they are principal components.
        reach = np.arange(1, count + 1) if self.points is None else np.full(count, count)
        mixed = column_sum(self.columns, jnp.asarray(reach), z)
        after = state if self.points is None else jnp.zeros((), bool)
        return after, self.location + rounded(width * mixed)

    def _drivers(
        self, state: Any, key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[Float[Array, " factors"], Float[Array, ""]]:
        """The independent normals and sqrt(W) of one step."""
        if self.points is not None and isinstance(state, np.bool_):
            return self.points.row(index)  # known without running: a single step needs no streams
        streams = named_streams(key, (*self.factors, MIXTURE_STREAM), index)
        z = standard_normals(streams[:-1])
        width = jnp.sqrt(self.degrees_of_freedom / chi_square(streams[-1], self.degrees_of_freedom))
        if self.points is None:
            return z, width
        of_points, width_of_points = self.points.row(index)
        return jnp.where(state, of_points, z), jnp.where(state, width_of_points, width)


def multivariate_t(
    factors: Sequence[str],
    daily_std: Mapping[str, float],
    *,
    correlation: np.ndarray,
    nu: float,
    horizon_days: float = 1.0,
    location: Mapping[str, float] | None = None,
    points: SobolDesign | None = None,
) -> MultivariateT:
    """A `MultivariateT` from daily standard deviations, a correlation matrix [factors, factors] and nu > 2.

    `daily_std` are standard deviations, not scales: the scale matrix is (nu - 2) / nu times the covariance. The
    standard deviation grows with sqrt(horizon_days), the daily `location` (default 0) with horizon_days. A correlation
    matrix that is not positive definite is repaired (`repaired_correlation`). `points` makes a weighted scenario set of
    its own for the first step (`sobol_points`). Raises ConfigurationError naming the factor otherwise.
    """
    names = checked_factors(factors, reserved=(MIXTURE_STREAM,))
    require_positive("horizon_days", horizon_days)
    if not (math.isfinite(nu) and nu > 2.0):
        raise ConfigurationError(f"nu is {nu!r}; a t law with a standard deviation needs a finite nu above 2")
    std = np.array([figure(daily_std, name, "daily_std") for name in names])
    for name, value in zip(names, std, strict=True):
        if value <= 0.0:
            raise ConfigurationError(f"daily_std of {name} is {value}; expected a positive number")
    drift = np.zeros(len(names))
    if location is not None:
        drift = np.array([figure(location, name, "location") for name in names])
    scale = std * math.sqrt((nu - 2.0) / nu * horizon_days)
    matrix = repaired_correlation(names, correlation)
    root = scale[:, None] * (cholesky_factor(matrix) if points is None else principal_root(matrix))
    return MultivariateT(
        factors=names,
        location=float64(drift * horizon_days),
        columns=float64(root.T),
        degrees_of_freedom=float64(nu),
        points=None if points is None else sobol_points(points, components=len(names), degrees_of_freedom=nu),
    )
