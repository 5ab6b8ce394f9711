"""Scenario points for t laws, made on the host: scrambled Sobol sequences, thicker where the large losses are.

A t law is x = location + width B z with independent standard normals z and width = sqrt(nu / chi2_nu). Here z and the
width of every scenario come from a table instead of random streams. `blocks` independent scrambles of 2^m points lie
behind each other, so that the spread of a figure over the blocks says how large its error is. Dimension 0 is z_0, the
coordinate of the largest principal component (B is `principal_root`); dimension 1 the chi-square; the other components
follow by size. (P. Glasserman, "Monte Carlo Methods in Financial Engineering", 2004, section 5.5.)

The two things that all factors share are not drawn from their own laws but from defensive mixtures with a wide member:
z_0 from (1 - a) N(0, 1) + a N(0, s^2), the chi-square x from (1 - b) f(x) + b c f(c x) with c = nu / (quantile of f),
so that widths typical of the wide member are far out in the law. A point weighs the ratio of the densities, at most
1 / ((1 - a)(1 - b)), and the weights of a block sum to 1 / blocks. Large losses are then hit more often, in whatever
direction of the market they lie. (T. Hesterberg, "Weighted average importance sampling and defensive mixture
distributions", 1995.) A mixture takes its wide member where the uniform of its dimension is below the share: strata of
the sequence, which stay even when the share is a power of 1/2.

The points are a function of the key, of the sizes and of the version of SciPy; nothing here reads a clock or a global
seed. Axis words: `points`, `components` (as many as factors).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32
from scipy import special

from .errors import ConfigurationError
from .scenarios import float64, stream_number

COMMON_SHARE = 0.25
COMMON_WIDENING = 2.5
"""Share of z_0 that is drawn wider, and how many times; chosen with `benchmarks/scenario_error.py --tune`."""

WIDTH_SHARE = 0.5
WIDTH_QUANTILE = 0.03
"""Share of the chi-squares that are drawn smaller, and the level of the quantile that becomes their mean."""

BLOCKS = 8
"""Independent scrambles: the fewest that give a standard error."""

_SOBOL_BITS = 30
_LEAST_UNIFORM = 2.0**-53
_STREAM = "sobol"


class SobolDesign(NamedTuple):
    """How many points, from which key (`blocks` scrambles of 2^`log2_points`), and how much thicker the tails.

    A share of 0 draws from the law itself; with both at 0 every point weighs the same.
    """

    key: PRNGKeyArray
    log2_points: int
    blocks: int = BLOCKS
    common_share: float = COMMON_SHARE
    common_widening: float = COMMON_WIDENING
    width_share: float = WIDTH_SHARE
    width_quantile: float = WIDTH_QUANTILE


class ScenarioPoints(eqx.Module):
    """A table of drivers: independent normals of the principal components, the width of the t, the weights (sum 1)."""

    normals: Float[Array, "points components"]
    widths: Float[Array, " points"]
    weights: Float[Array, " points"]

    def row(self, index: UInt32[Array, ""]) -> tuple[Float[Array, " components"], Float[Array, ""]]:
        """Normals and width of scenario `index`; beyond the last point (padding of weight 0) those of the last."""
        place = jnp.minimum(index.astype(jnp.int32), self.widths.shape[0] - 1)
        return self.normals[place], self.widths[place]


def sobol_points(design: SobolDesign, *, components: int, degrees_of_freedom: float) -> ScenarioPoints:
    """The points of a t law with `components` factors.

    Raises ConfigurationError for sizes or a widening that make no sense.
    """
    _check(design)
    uniforms = np.concatenate([_uniforms(design, components + 1, block) for block in range(design.blocks)])
    common, common_ratio = _common_factor(uniforms[:, 0], design.common_share, design.common_widening)
    chi_squares, width_ratio = _chi_squares(
        uniforms[:, 1], degrees_of_freedom, design.width_share, design.width_quantile
    )
    of_block = (1.0 / (common_ratio * width_ratio)).reshape(design.blocks, -1)
    sums = np.array([math.fsum(row) for row in of_block])  # exact, whatever the length
    weights = of_block / (design.blocks * sums)[:, None]
    return ScenarioPoints(
        normals=float64(np.concatenate([common[:, None], special.ndtri(uniforms[:, 2:])], axis=1)),
        widths=float64(np.sqrt(degrees_of_freedom / chi_squares)),
        weights=float64(weights.reshape(-1)),
    )


def principal_root(correlation: np.ndarray) -> np.ndarray:
    """B [factors, components] with B B' = `correlation`: eigenvectors by size, times the roots of their eigenvalues.

    Of the two signs of an eigenvector the one is taken that makes its largest entry (the first of equals) positive.
    """
    values, vectors = np.linalg.eigh(correlation)
    if not values[0] > 0.0:
        raise ConfigurationError(f"correlation matrix is not positive definite: its smallest eigenvalue is {values[0]}")
    values, vectors = values[::-1], vectors[:, ::-1]
    size = np.abs(vectors)
    largest = np.argmax(size >= (1.0 - 1e-6) * size.max(axis=0), axis=0)
    signs = np.where(vectors[largest, np.arange(len(values))] < 0.0, -1.0, 1.0)
    return vectors * (signs * np.sqrt(values))


def _check(design: SobolDesign) -> None:
    if not 5 <= design.log2_points <= 24:
        raise ConfigurationError(f"log2_points is {design.log2_points}; expected 5 to 24")
    if not 1 <= design.blocks <= 1024:
        raise ConfigurationError(f"blocks is {design.blocks}; expected 1 to 1024 scrambles")
    for what, share in (("common_share", design.common_share), ("width_share", design.width_share)):
        if not 0.0 <= share < 1.0:
            raise ConfigurationError(f"{what} is {share}; expected a share from 0 to below 1")
    if not (math.isfinite(design.common_widening) and design.common_widening >= 1.0):
        raise ConfigurationError(f"common_widening is {design.common_widening}; expected a finite factor of at least 1")
    if not 0.0 < design.width_quantile < 0.5:
        raise ConfigurationError(f"width_quantile is {design.width_quantile}; expected a level between 0 and 0.5")


def _uniforms(design: SobolDesign, dimensions: int, block: int) -> np.ndarray:
    """One scramble [points, dimensions], strictly between 0 and 1: the middles of the cells of the generator's grid."""
    # Here, because it loads all of SciPy's statistics, and most runs draw without points.
    from scipy.stats import qmc

    if dimensions > qmc.Sobol.MAXDIM:
        raise ConfigurationError(f"{dimensions} dimensions; Sobol points have at most {qmc.Sobol.MAXDIM}")
    words = [int(word) for word in np.asarray(jax.random.key_data(design.key)).ravel()]
    seed = np.random.SeedSequence([*words, int(stream_number(_STREAM)), block])
    engine = qmc.Sobol(dimensions, scramble=True, bits=_SOBOL_BITS, rng=np.random.Generator(np.random.PCG64(seed)))
    return engine.random_base2(design.log2_points) + 0.5 ** (_SOBOL_BITS + 1)


def _common_factor(u: np.ndarray, share: float, widening: float) -> tuple[np.ndarray, np.ndarray]:
    """z_0 [points] of the mixture, and the density of the mixture over that of the standard normal."""
    wide, rest = _split(u, share)
    z = np.where(wide, widening, 1.0) * special.ndtri(rest)
    return z, (1.0 - share) + share / widening * np.exp(0.5 * z * z * (1.0 - 1.0 / widening**2))


def _chi_squares(u: np.ndarray, degrees_of_freedom: float, share: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Chi-squares [points] of the mixture, and its density over that of the law."""
    shape = degrees_of_freedom / 2.0
    shrinking = shape / float(special.gammaincinv(shape, level))  # nu over the quantile: 7.5 for nu 4, 1.8 for nu 30
    wide, rest = _split(u, share)
    x = 2.0 * special.gammaincinv(shape, rest) / np.where(wide, shrinking, 1.0)
    return x, (1.0 - share) + share * np.exp(shape * math.log(shrinking) - 0.5 * (shrinking - 1.0) * x)


def _split(u: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Which uniforms take the wide member, and the uniforms of both members, strictly between 0 and 1."""
    wide = u < share
    rest = np.where(wide, u / (share if share > 0.0 else 1.0), (u - share) / (1.0 - share))
    return wide, np.clip(rest, _LEAST_UNIFORM, 1.0 - _LEAST_UNIFORM)
