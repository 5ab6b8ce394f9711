"""Multivariate Student-t scenarios: every factor shares one mixing variable, so all have their extremes together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
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


class MultivariateT(eqx.Module):
    """Multivariate Student-t law: x = location + sqrt(W) A Z with W = nu / chi2_nu and A A' the scale matrix.

    All factors share W, so they have their extremes together (tail dependence; S. Demarta, A. J. McNeil, "The t copula
    and related copulas", 2005). Build it with `multivariate_t`; the fields are over the horizon.
    """

    factors: tuple[str, ...] = eqx.field(static=True)
    location: Float[Array, " factors"]
    columns: Float[Array, "factors factors"]
    """Row j is the j-th column of A, lower triangular."""
    degrees_of_freedom: Float[Array, ""]

    @property
    def own_weights(self) -> None:
        return None

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[()]:
        """Steps are independent."""
        return ()

    def normals(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Float[Array, " factors"]:
        """The independent standard normal of each factor in scenario `index`."""
        return standard_normals(named_streams(key, self.factors, index))

    def step(
        self, state: tuple[()], key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[tuple[()], Float[Array, " factors"]]:
        """Log-changes of the factors over one step of scenario `index`."""
        streams = named_streams(key, (*self.factors, MIXTURE_STREAM), index)
        z = standard_normals(streams[:-1])
        width = jnp.sqrt(self.degrees_of_freedom / chi_square(streams[-1], self.degrees_of_freedom))

        def add_column(j: Array, total: Array) -> Array:
            return total + rounded(self.columns[j] * z[j])

        mixed = lax.fori_loop(0, len(self.factors), add_column, jnp.zeros(len(self.factors), jnp.float64))
        return state, self.location + rounded(width * mixed)


def multivariate_t(
    factors: Sequence[str],
    daily_std: Mapping[str, float],
    *,
    correlation: np.ndarray,
    nu: float,
    horizon_days: float = 1.0,
    location: Mapping[str, float] | None = None,
) -> MultivariateT:
    """A `MultivariateT` from daily standard deviations, a correlation matrix [factors, factors] and nu > 2.

    `daily_std` are standard deviations, not scales: the scale matrix is (nu - 2) / nu times the covariance. The
    standard deviation grows with sqrt(horizon_days), the daily `location` (default 0) with horizon_days. A correlation
    matrix that is not positive definite is repaired (`repaired_correlation`). Raises ConfigurationError naming the
    factor otherwise.
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
    root = scale[:, None] * cholesky_factor(repaired_correlation(names, correlation))
    return MultivariateT(
        factors=names,
        location=float64(drift * horizon_days),
        columns=float64(root.T),
        degrees_of_freedom=float64(nu),
    )
