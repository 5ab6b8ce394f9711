"""The jitted evaluation: scenarios drawn, cube priced once, every portfolio of a shard mapped over it.

Portfolios outside, scenarios inside: the loss row of a portfolio is transient, so tails are exact and nothing of size
portfolios x scenarios is kept. Portfolios of one bucket are split over the host's devices by `shard_map`; which device
computes one, how many share its bucket and in which chunks the scenarios were drawn changes no bit of it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from .batch import Bucket, PortfolioArrays, bucketed
from .cube import CubeRows
from .cube_prices import padded_rows, price_rows, rounded_up, rows_today
from .device_mesh import AXIS, WHOLE, split_over
from .margin import (
    NativeMargin,
    ScenarioMargin,
    accumulate,
    line_changes,
    liquidated,
    native_margin_today,
    scenario_margin,
)
from .policy import Requirement
from .portfolio import PackedPortfolio
from .risk import euler_allocation, tail_rows, tail_weights, tile_sum
from .rounding import rounded
from .scenarios import ScenarioGenerator, draw_scenarios, padded_count, scenario_weights
from .stress_margin import (
    StressArrays,
    StressCube,
    StressFigures,
    binding_loss,
    stress_arrays,
    stress_figures,
)
from .unified import Unified, UnifiedMarket, unified_requirement
from .unified_batch import UnifiedArrays, unified_arrays

CONFIDENCES = (0.99, 0.995)
HISTOGRAM_BINS = 48
_DAYS_PER_YEAR = 365.0
_MOST_BUCKETS = 6
_PORTFOLIOS_PER_SHAPE = 64


class Cube(eqx.Module):
    """What all portfolios share: the rows, today's values, the changes in every scenario, the shocks and the weights.

    Values and changes have constants behind the rows, so that books of nearly as many rows share a program.
    """

    rows: CubeRows
    today: Float[Array, " padded"]
    change: Float[Array, "padded scenarios"]
    shocks: Float[Array, "scenarios factors"]
    weights: Float[Array, " scenarios"]
    horizon_years: float = eqx.field(static=True)
    unified: UnifiedMarket | None = None
    stress: StressCube | None = None


class Headline(NamedTuple):
    """Figures of one portfolio; risk measures have a trailing axis over `CONFIDENCES`. Money in USD but for
    `native`.
    """

    native: NativeMargin
    p_liquidation: Float[Array, " A"]
    p_any: Float[Array, ""]
    pooled_var: Float[Array, " levels"]
    pooled_es: Float[Array, " levels"]
    node_var: Float[Array, "N levels"]
    node_es: Float[Array, "N levels"]
    line_var: Float[Array, "L levels"]
    line_es: Float[Array, "L levels"]
    mean_loss: Float[Array, ""]
    worst_loss: Float[Array, ""]
    account_is_finite: Bool[Array, " A"]
    """Whether the account's own figures, today and in every scenario, are finite and within float32's range."""
    finite: Bool[Array, ""]
    """Whether all figures of the portfolio are."""
    unified: Unified | None = None
    stress: StressFigures | None = None


class Detail(NamedTuple):
    """What is kept for the portfolios that matter most."""

    line_euler: Float[Array, "L levels"]
    """Contribution of each line to the pooled ES; they sum to it."""
    worst_scenario: Int[Array, " worst"]
    worst_loss: Float[Array, " worst"]
    worst_line_loss: Float[Array, "worst L"]
    worst_liquidated: Bool[Array, "worst A"]
    histogram_edge: Float[Array, " edges"]
    histogram_probability: Float[Array, " bins"]


def draw_cube(
    rows: CubeRows,
    generator: ScenarioGenerator,
    *,
    seed: int,
    scenarios: int | None,
    chunk: int,
    horizon_days: float,
) -> Cube:
    """The cube of a run: scenarios drawn and rows priced in chunks of `chunk` (a multiple of the tile), same bits for
    any.
    """
    key = jax.random.key(seed)
    weights = scenario_weights(generator, scenarios)
    total = weights.shape[0]
    horizon_years = horizon_days / _DAYS_PER_YEAR
    shocks, changes = [], []
    for first in range(0, total, chunk):
        # A ragged last chunk is drawn whole and cut, so that one shape is compiled.
        block = draw_scenarios(generator, key, first, min(chunk, padded_count(total)))
        shocks.append(block)
        changes.append(priced(rows, block, horizon_years=horizon_years))
    shock = jnp.concatenate(shocks)[:total]
    return Cube(
        rows=rows,
        today=_today(rows),
        change=jnp.concatenate(changes, axis=1)[:, :total],
        shocks=shock,
        weights=weights,
        horizon_years=horizon_years,
    )


def priced(
    rows: CubeRows, shocks: Float[Array, "scenarios factors"], *, horizon_years: float
) -> Float[Array, "padded scenarios"]:
    """Changes of all rows, as `price_rows`, and of constants behind them."""
    change = price_rows(padded_rows(rows), shocks, horizon_years=horizon_years)
    return _in_order(change, row_order(rows))


def row_order(rows: CubeRows) -> np.ndarray:
    """Where among the padded rows each row of the cube lies, and behind them the constant, up to a rounded number."""
    products, options = rows.exponent_factor.shape[0], rows.forward.shape[0]
    order = np.zeros(rounded_up(products + options), np.int32)
    order[:products] = np.arange(products)
    order[products : products + options] = rounded_up(products) + np.arange(options)
    return order


def _today(rows: CubeRows) -> Float[Array, " padded"]:
    return _in_order(rows_today(padded_rows(rows)), row_order(rows))


@jax.jit
def _in_order(values: Float[Array, "rows *rest"], order: Int[Array, " padded"]) -> Float[Array, "padded *rest"]:
    return values[order]


class _Evaluation(NamedTuple):
    """One portfolio in every scenario; losses in USD, float32."""

    native: NativeMargin
    line_losses: Float[Array, "L scenarios"]
    node_losses: Float[Array, "N scenarios"]
    pooled: Float[Array, " scenarios"]
    margin: ScenarioMargin
    under_stress: ScenarioMargin | None
    liquidated: Bool[Array, "A scenarios"]


def _evaluate(member: Member, cube: Cube) -> _Evaluation:
    portfolio = member.rows
    losses = -line_changes(portfolio, cube.change)
    nodes = accumulate(
        portfolio.line_node,
        lambda line: losses[line],
        jnp.zeros((portfolio.node_is_real.shape[0], losses.shape[1]), losses.dtype),
    )
    pooled = lax.fori_loop(0, nodes.shape[0], lambda n, total: total + nodes[n], jnp.zeros_like(nodes[0]))
    margin, under_stress = _margins(member, cube)
    return _Evaluation(member.native, losses, nodes, pooled, margin, under_stress, liquidated(portfolio, margin))


def _margins(member: Member, cube: Cube) -> tuple[ScenarioMargin, ScenarioMargin | None]:
    """Every account in the scenarios, and under the views of the stresses where there are any."""
    if member.stress is None or cube.stress is None:
        return scenario_margin(
            member.rows, cube.today, cube.change, cube.shocks, cube.rows, horizon_years=cube.horizon_years
        ), None
    change, shocks, elapsed = cube.stress.joined
    found = scenario_margin(member.rows, cube.today, change, shocks, cube.rows, horizon_years=elapsed)
    count = cube.weights.shape[0]
    return (
        ScenarioMargin(found.equity[:, :count], found.maintenance[:, :count]),
        ScenarioMargin(found.equity[:, count:], found.maintenance[:, count:]),
    )


class Member(NamedTuple):
    """One portfolio of a bucket: its rows, what its accounts show today, and what unified requirement and stresses need
    beside them (or None).
    """

    rows: PortfolioArrays
    native: NativeMargin
    unified: UnifiedArrays | None
    stress: StressArrays | None


def headline(member: Member, cube: Cube) -> Headline:
    """All headline figures of one portfolio."""
    return _headline_of(member, _evaluate(member, cube), cube)


def _headline_of(member: Member, evaluation: _Evaluation, cube: Cube) -> Headline:
    native, losses, nodes, pooled, margin, under_stress, gone = evaluation
    rows = jnp.concatenate([losses, nodes, pooled[None, :]])
    var, es = tail_rows(rows, cube.weights, CONFIDENCES)
    unified, stress, binding = None, None, None
    if member.stress is not None and cube.stress is not None and under_stress is not None:
        stress = stress_figures(member.rows, member.stress, cube.stress, under_stress, cube.unified)
        binding = binding_loss(stress, cube.stress)
    if member.unified is not None and cube.unified is not None:
        # Without routes configured collateral is taken to arrive: the offset cap alone limits the benefit.
        unified = unified_requirement(
            member.rows,
            member.unified,
            cube.unified,
            losses,
            cube.weights,
            levels=CONFIDENCES,
            fungibility=1.0,
            binding_stress=binding,
        )
    lines, count = losses.shape[0], nodes.shape[0]
    real = cube.weights > 0
    # Counted here because a comparison with NaN is a verdict of "not liquidated" that nobody would notice.
    account_is_finite = jnp.ones(native.equity.shape, bool)
    for figures in native:
        account_is_finite = account_is_finite & jnp.isfinite(figures)
    for in_scenarios in margin:
        account_is_finite = account_is_finite & jnp.all(_in_range(in_scenarios) | ~real[None, :], axis=1)
    pooled_is_finite = jnp.all(_in_range(pooled) | ~real)
    lines_are_finite = jnp.all(_in_range(losses) | ~real[None, :])
    return Headline(
        native=native,
        p_liquidation=_probability(gone, cube.weights),
        p_any=_probability(jnp.any(gone, axis=0)[None, :], cube.weights)[0],
        pooled_var=var[lines + count],
        pooled_es=es[lines + count],
        node_var=var[lines : lines + count],
        node_es=es[lines : lines + count],
        line_var=var[:lines],
        line_es=es[:lines],
        mean_loss=tile_sum(cube.weights * jnp.where(real, pooled, 0.0).astype(jnp.float64)),
        worst_loss=jnp.max(jnp.where(real, pooled, -jnp.inf)).astype(jnp.float64),
        account_is_finite=account_is_finite,
        finite=jnp.all(account_is_finite) & lines_are_finite & pooled_is_finite,
        unified=unified,
        stress=stress,
    )


def _in_range(values: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Whether float32 holds the values; its lowest number is what `rounded` makes of a product of -inf."""
    return jnp.abs(values) < np.finfo(np.float32).max


def _probability(events: Bool[Array, "rows scenarios"], weights: Float[Array, " scenarios"]) -> Float[Array, " rows"]:
    # A certain event has probability 1, which a sum of 10,000 weights of 1e-4 misses by rounding.
    total = tile_sum(weights)
    return tile_sum(jnp.where(events, weights[None, :], 0.0)) / total


def _detail_of(evaluation: _Evaluation, cube: Cube, *, worst: int) -> Detail:
    _, losses, _, pooled, _, _, gone = evaluation
    euler = jnp.stack(
        [euler_allocation(losses, tail_weights(pooled, cube.weights, confidence=level)) for level in CONFIDENCES],
        axis=1,
    )
    real = cube.weights > 0
    ranked = jnp.where(real, pooled, -jnp.inf)
    worst_loss, scenario = lax.top_k(ranked, worst)
    low = jnp.min(jnp.where(real, pooled, jnp.inf)).astype(jnp.float64)
    high = jnp.max(ranked).astype(jnp.float64)
    width = jnp.maximum(high - low, 1e-9) / HISTOGRAM_BINS
    steps = jnp.arange(HISTOGRAM_BINS + 1, dtype=jnp.float64)
    place = jnp.clip(jnp.floor((pooled.astype(jnp.float64) - low) / width), 0, HISTOGRAM_BINS - 1)
    inside = place[None, :] == steps[:-1, None]
    return Detail(
        line_euler=euler,
        worst_scenario=scenario,
        worst_loss=worst_loss.astype(jnp.float64),
        worst_line_loss=losses[:, scenario].T.astype(jnp.float64),
        worst_liquidated=gone[:, scenario].T,
        histogram_edge=low + rounded(steps * width),
        histogram_probability=_probability(inside & real[None, :], cube.weights),
    )


def evaluate_headlines(
    portfolios: Sequence[PackedPortfolio],
    factors: Sequence[str],
    cube: Cube,
    *,
    devices: int,
    policy: Requirement | None = None,
    venues: Sequence[str] = (),
) -> list[Headline | None]:
    """Headline figures (NumPy) of every portfolio, None where it has no complete account.

    The unified requirement is among them where a `policy` is given and the cube knows the market for it, the stresses
    where the cube has them; `venues` are the numbers of the stress cube.
    """
    return _over_buckets(portfolios, factors, cube, devices, headline, policy, venues)


def evaluate_details(
    portfolios: Sequence[PackedPortfolio],
    factors: Sequence[str],
    cube: Cube,
    *,
    devices: int,
    worst: int,
    policy: Requirement | None = None,
    venues: Sequence[str] = (),
) -> list[tuple[Headline, Detail] | None]:
    """Headline and detail figures (NumPy) of every portfolio in one pass; `worst` scenarios at most as many as there
    are.
    """
    scenarios = int(np.count_nonzero(np.asarray(cube.weights)))
    return _over_buckets(portfolios, factors, cube, devices, _InDetail(min(worst, scenarios)), policy, venues)


class _InDetail(NamedTuple):
    """Headline and detail with a fixed number of worst scenarios, equal (and so compiled once) for equal numbers."""

    worst: int

    def __call__(self, member: Member, cube: Cube) -> tuple[Headline, Detail]:
        evaluation = _evaluate(member, cube)
        return _headline_of(member, evaluation, cube), _detail_of(evaluation, cube, worst=self.worst)


def _over_buckets(portfolios, factors, cube, devices, function, policy, venues):  # type: ignore[no-untyped-def]
    out = [None] * len(portfolios)
    # A shape costs seconds to trace and compile: few portfolios share one, however unlike they are.
    most_buckets = max(1, min(_MOST_BUCKETS, len(portfolios) // _PORTFOLIOS_PER_SHAPE))
    shared = eqx.tree_at(lambda c: c.rows, cube, padded_rows(cube.rows))
    for bucket in bucketed(portfolios, factors, multiple=devices, most_buckets=most_buckets):
        arrays = bucket.arrays
        unified, stress = None, None
        if policy is not None and cube.unified is not None:
            unified = unified_arrays(bucket, portfolios, factors, policy)
        if policy is not None and cube.stress is not None:
            stress = stress_arrays(bucket, portfolios, venues, policy)
        member = Member(
            arrays,
            native_of_bucket(
                arrays, cube.rows, factors=cube.shocks.shape[1], devices=devices, count=len(bucket.members)
            ),
            unified,
            stress,
        )
        results = jax.device_get(map_bucket(member, shared, function, devices, len(bucket.members)))
        for place, position in enumerate(bucket.members):
            out[position] = jax.tree.map(lambda leaf, place=place: np.asarray(leaf[place]), results)
    return out


def native_of_bucket(
    arrays: PortfolioArrays, rows: CubeRows, *, factors: int, devices: int, count: int
) -> NativeMargin:
    """Today's figures (NumPy) of the first `count` portfolios of a bucket, zeros behind them: a program of its own,
    shared by all who need them.
    """
    # Any: a host array stands where the tuple declares a device array.
    unmoved: Any = np.zeros(max(1, factors))
    today = _Today(padded_rows(rows), _today(rows), unmoved)
    found: NativeMargin = jax.device_get(map_bucket(arrays, today, _native, devices, count))
    return found


class _Today(NamedTuple):
    rows: CubeRows
    values: Float[Array, " padded"]
    shocks: Float[Array, " factors"]


def _native(portfolio: PortfolioArrays, today: _Today) -> NativeMargin:
    return native_margin_today(portfolio, today.values, today.shocks, today.rows)


@functools.partial(jax.jit, static_argnames=("function", "devices"))
def map_bucket(arrays: Any, cube: Any, function, devices: int, count: Any):  # type: ignore[no-untyped-def]
    """`function` of the first `count` portfolios of a bucket and what all of them share, split over the devices; zeros
    behind them.

    Any tree of arrays with a leading axis will do for the bucket, any tree for what is shared. `count` is an argument
    of the program and no part of it, so padding takes no time and few lengths of buckets are enough.
    """
    # Traced once, although both the shape of a result and the result are asked of it.
    of_one = jax.jit(lambda portfolio, shared: function(portfolio, shared))

    def block(part: Any, shared: Any, last: Any):  # type: ignore[no-untyped-def]
        def at(place: Array) -> Any:
            return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, place, keepdims=False), part)

        def add(place: Array, found: Any) -> Any:
            results = of_one(at(place), shared)
            return jax.tree.map(lambda rows, row: lax.dynamic_update_index_in_dim(rows, row, place, 0), found, results)

        length = jax.tree.leaves(part)[0].shape[0]
        one = jax.eval_shape(of_one, jax.eval_shape(at, jnp.int32(0)), shared)
        nothing = jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), one)
        return lax.fori_loop(jnp.int32(0), last, add, nothing)

    last = jnp.asarray(count, jnp.int32)
    if devices == 1:
        return block(arrays, cube, last)

    def of_device(part: Any, shared: Any, last: Any):  # type: ignore[no-untyped-def]
        # Every device has its share of the real ones, which come first.
        own = (last + devices - 1 - lax.axis_index(AXIS)) // devices
        found = block(jax.tree.map(lambda leaf: leaf[:, 0], part), shared, own)
        return jax.tree.map(lambda leaf: leaf[:, None], found)

    dealt = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] // devices, devices, *leaf.shape[1:]), arrays)
    of_places = PartitionSpec(None, AXIS)
    found = split_over(devices, of_device, inputs=(of_places, WHOLE, WHOLE), outputs=of_places)(dealt, cube, last)
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * devices, *leaf.shape[2:]), found)


__all__ = [
    "CONFIDENCES",
    "HISTOGRAM_BINS",
    "Bucket",
    "Cube",
    "Detail",
    "Headline",
    "Member",
    "draw_cube",
    "evaluate_details",
    "evaluate_headlines",
    "headline",
    "native_of_bucket",
]
