"""Value at risk, expected shortfall and their allocation, over weighted scenarios.

Losses are positive, in USD; `confidence` is a fraction such as 0.99. Every function takes one row of losses with one
row of scenario weights and is vmapped over portfolios by its caller. The scenario axis is last, and its length a
multiple of `SCENARIO_TILE` (256): pad with weight 0 (`padded_scenarios` on the host does it). Any other length raises
`ValueError`, before anything is compiled.

Weights are float64 and sum to 1. A scenario of weight 0 never matters, whatever its loss, NaN included. With positive
weight a NaN loss counts as +inf and shows as an infinite result: nothing here returns NaN.

The same bits. Floating-point sums over scenarios go through `tile_sum`, whose order of additions is fixed. Which loss
is the value at risk is decided by counting probability mass in integers, where the order of additions cannot matter; so
the result is the same under jit, vmap, any batch size and any number of devices, and (the sums' last bits aside) any
order of the scenarios.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, UInt

from .rounding import rounded

SCENARIO_TILE = 256

# Probability mass is counted in units of 2^-60: the total stays below 2^63, and rounding each of N weights to a unit
# moves a sum by less than N 2^-61, which for a million scenarios is 4e-13.
_MASS_SCALE = 2.0**60

# P(L <= x) >= a is decided with this slack. It must exceed the rounding of N weights like 1/N (above) and may not reach
# a real difference of mass, which is at least one scenario's weight: 1e-7 at the largest sizes in use.
MASS_SLACK = 1e-12


class TailRisk(NamedTuple):
    """Value at risk and expected shortfall of one loss row, USD, loss positive."""

    value_at_risk: Float[Array, ""]
    expected_shortfall: Float[Array, ""]


def padded_scenarios(losses: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """`losses` [..., S] and `weights` [S] as NumPy arrays, padded with zeros to the next multiple of `SCENARIO_TILE`.

    Host side. Raises `ValueError` if the lengths differ, no scenario is given, a weight is negative or not finite, or
    the weights do not sum to 1 within 1e-9.
    """
    loss_rows = np.asarray(losses)
    weight_row = np.asarray(weights, dtype=np.float64)
    if weight_row.ndim != 1 or weight_row.size == 0 or loss_rows.shape[-1:] != weight_row.shape:
        raise ValueError(
            f"expected losses [..., S] and weights [S], S > 0, found shapes {loss_rows.shape} and {weight_row.shape}"
        )
    if not np.all(np.isfinite(weight_row)) or np.any(weight_row < 0):
        raise ValueError("scenario weights must be finite and not negative")
    total = float(np.sum(weight_row))
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"scenario weights must sum to 1, found {total!r}")
    missing = -weight_row.size % SCENARIO_TILE
    widths = [(0, 0)] * (loss_rows.ndim - 1) + [(0, missing)]
    return np.pad(loss_rows, widths), np.pad(weight_row, (0, missing))


def tile_sum(values: Float[Array, "*rows scenarios"]) -> Float[Array, "*rows"]:
    """Sum over the last axis with a fixed order of additions, so that its bits depend on the values alone.

    Each tile of 256 values is folded by halves (element j to element j + n/2, eight times), then the tile sums are
    added in index order. Both steps are elementwise additions, which XLA does not reassociate; a library reduction or
    a matrix product may change its order with the shape of the batch. The dtype of `values` is kept. Raises
    `ValueError` if the last axis is empty or not a multiple of `SCENARIO_TILE`.
    """
    count = values.shape[-1] if values.ndim else 0
    if count == 0 or count % SCENARIO_TILE:
        raise ValueError(
            f"the scenario axis must be a positive multiple of {SCENARIO_TILE}, found shape {values.shape}: "
            "pad with scenarios of weight 0"
        )
    tiles = rounded(values).reshape(*values.shape[:-1], count // SCENARIO_TILE, SCENARIO_TILE)
    width = SCENARIO_TILE
    while width > 1:
        width //= 2
        tiles = tiles[..., :width] + tiles[..., width:]
    in_order = jnp.moveaxis(tiles[..., 0], -1, 0)
    total, _ = lax.scan(_added, jnp.zeros_like(in_order[0]), in_order)
    return total


# A function of the module and no lambda: outside of a compiled function each new one would be compiled again.
def _added(total: Array, tile: Array) -> tuple[Array, None]:
    return total + tile, None


def _check_inputs(losses: Array, weights: Array, confidence: ArrayLike) -> None:
    if losses.ndim != 1 or losses.shape != weights.shape:
        raise ValueError(
            f"expected one row of losses and one of weights, found shapes {losses.shape} and {weights.shape}; "
            "vmap over portfolios"
        )
    if losses.shape[0] == 0 or losses.shape[0] % SCENARIO_TILE:
        raise ValueError(
            f"the number of scenarios must be a positive multiple of {SCENARIO_TILE}, found {losses.shape[0]}: "
            "pad with scenarios of weight 0"
        )
    if losses.dtype not in (jnp.float32, jnp.float64) or weights.dtype != jnp.float64:
        raise ValueError(
            f"expected losses in float32 or float64 and weights in float64, found {losses.dtype} and {weights.dtype}"
        )
    if isinstance(confidence, (int, float)) and not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, found {confidence!r}")


def _usable_losses(losses: Array, weights: Array) -> Array:
    """Losses without NaN, without -inf and without the sign of zero; 0 in scenarios of weight 0."""
    losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
    losses = jnp.maximum(losses, jnp.finfo(losses.dtype).min)
    return jnp.where((weights > 0) & (losses != 0), losses, jnp.zeros_like(losses))


def _ordered_keys(losses: Array) -> UInt[Array, " scenarios"]:
    """Unsigned integers in the order of the (finite or infinite) losses: sign bit flipped, negatives reversed."""
    unsigned = jnp.uint32 if losses.dtype == jnp.float32 else jnp.uint64
    bits = lax.bitcast_convert_type(losses, unsigned)
    sign = unsigned(1 << (jnp.iinfo(unsigned).bits - 1))
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _loss_of_key(key: Array, dtype: jnp.dtype) -> Array:
    unsigned = key.dtype.type
    sign = unsigned(1 << (jnp.iinfo(unsigned).bits - 1))
    return lax.bitcast_convert_type(jnp.where(key >= sign, key ^ sign, ~key), dtype)


def _probability_mass(weights: Array) -> Int[Array, " scenarios"]:
    return jnp.round(weights * _MASS_SCALE).astype(jnp.int64)


def _quantile(losses: Array, weights: Array, confidence: ArrayLike) -> Array:
    """The smallest usable loss x with P(L <= x) >= confidence, in the dtype of the losses.

    Bisection over the ordered integer images of the floats: 32 or 64 counting passes whatever the data, exact because
    the counts are integers and the answer is a loss that occurs. Sorting would take longer and move more memory.
    """
    keys = _ordered_keys(losses)
    mass = _probability_mass(weights)
    total = jnp.sum(mass)
    confidence = jnp.asarray(confidence, dtype=jnp.float64)
    # The total stands for probability 1, so weights that sum to 1 + 1e-10 do not shift the quantile.
    target = jnp.ceil((confidence - MASS_SLACK) * total.astype(jnp.float64)).astype(jnp.int64)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(keys <= middle, mass, 0)) >= target
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # Scenarios of weight 0 carry loss 0 here, so they may only widen the first bracket, never become the answer.
    _, key = lax.fori_loop(0, jnp.iinfo(keys.dtype).bits, halve, (jnp.min(keys), jnp.max(keys)))
    return _loss_of_key(key, losses.dtype)


def value_at_risk(
    losses: Float[Array, " scenarios"], weights: Float[Array, " scenarios"], *, confidence: ArrayLike
) -> Float[Array, ""]:
    """VaR_a = inf{x : P(L <= x) >= a}: the smallest loss with at least mass a at or below it, in USD, float64.

    Always one of the losses that occur with positive weight, never an interpolation. With N equal weights and a = 0.99
    it is the ceil(0.99 N)-th smallest; masses within 1e-12 of `confidence` count as reaching it, so that rounding in
    weights like 1/N cannot push it one scenario further. Edge cases: module docstring. Raises `ValueError` for wrong
    shapes or dtypes, or a Python `confidence` outside (0, 1).
    """
    _check_inputs(losses, weights, confidence)
    return _quantile(_usable_losses(losses, weights), weights, confidence).astype(jnp.float64)


def tail_risk(
    losses: Float[Array, " scenarios"], weights: Float[Array, " scenarios"], *, confidence: ArrayLike
) -> TailRisk:
    """Value at risk and expected shortfall of one loss row, USD, float64.

        ES_a = VaR_a + E[(L - VaR_a)+] / (1 - a)

    exact for laws with atoms, where the mean of the losses beyond VaR would be wrong. Otherwise as `value_at_risk`.

    Source: Rockafellar and Uryasev, "Conditional value-at-risk for general loss distributions" (2002).
    """
    _check_inputs(losses, weights, confidence)
    losses = _usable_losses(losses, weights)
    quantile = _quantile(losses, weights, confidence).astype(jnp.float64)
    losses = losses.astype(jnp.float64)
    # `where` before the product: inf - inf and 0 * inf would both be NaN.
    excess = jnp.where((losses > quantile) & (weights > 0), losses - quantile, 0.0)
    # The reciprocal is written out, because the compiler replaces a division by a constant but not one by an argument.
    per_tail = 1.0 / (1.0 - jnp.asarray(confidence, dtype=jnp.float64))
    return TailRisk(quantile, quantile + rounded(tile_sum(weights * excess) * per_tail))


def expected_shortfall(
    losses: Float[Array, " scenarios"], weights: Float[Array, " scenarios"], *, confidence: ArrayLike
) -> Float[Array, ""]:
    """Expected shortfall of one loss row, USD, float64; `tail_risk` gives both measures for the same work."""
    return tail_risk(losses, weights, confidence=confidence).expected_shortfall


def tail_rows(
    losses: Float[Array, "rows scenarios"], weights: Float[Array, " scenarios"], levels: Sequence[float]
) -> tuple[Float[Array, "rows levels"], Float[Array, "rows levels"]]:
    """(VaR, ES) of every row at every level; one row at a time keeps the temporaries small."""

    confidences = jnp.asarray(levels, jnp.float64)

    def one(row: Array) -> tuple[Array, Array]:
        return tuple(lax.map(lambda level: tail_risk(row, weights, confidence=level), confidences))

    return lax.map(one, losses)


def tail_weights(
    losses: Float[Array, " scenarios"], weights: Float[Array, " scenarios"], *, confidence: ArrayLike
) -> Float[Array, " scenarios"]:
    """Weights [S], not negative and summing to 1, with expected shortfall = sum_s w_s L_s.

    A scenario beyond VaR has p_s / (1 - a). The mass that is then left of the tail, 1 - a - P(L > VaR), is split among
    the scenarios tied at VaR in proportion to their weight, so equally if these are equal. Scenarios of weight 0 get 0.

    Source: Tasche, "Risk contributions and performance measurement" (1999), with the boundary atom made explicit.
    """
    _check_inputs(losses, weights, confidence)
    losses = _usable_losses(losses, weights)
    quantile = _quantile(losses, weights, confidence)
    tail = 1.0 - jnp.asarray(confidence, dtype=jnp.float64)
    beyond = jnp.where(losses > quantile, weights, 0.0)
    tied = jnp.where(losses == quantile, weights, 0.0)
    tied_mass = tile_sum(tied)
    boundary = jnp.clip(tail - tile_sum(beyond), 0.0, tied_mass)
    share = boundary / jnp.where(tied_mass > 0, tied_mass, 1.0)
    chosen = beyond + tied * share
    # Dividing by the sum instead of 1 - a makes it a weighting even after the clip, and differs by rounding only.
    mass = tile_sum(chosen)
    return chosen / jnp.where(mass > 0, mass, 1.0)


def euler_allocation(
    component_losses: Float[Array, "components scenarios"], tail_weights: Float[Array, " scenarios"]
) -> Float[Array, " components"]:
    """Contributions ES_i = sum_s w_s L_si of any partition of the loss, USD, with `tail_weights` of the total loss.

    They add up to the expected shortfall of the total to rounding if the components add up to its losses. Components
    may be venues, assets or positions, in float32 or float64. Scenarios of tail weight 0 do not matter, NaN included.
    """

    def contribution(row: Array) -> Array:
        in_tail = jnp.where(tail_weights > 0, row.astype(jnp.float64), 0.0)
        return tile_sum(tail_weights * in_tail)

    return jax.vmap(contribution)(component_losses)
