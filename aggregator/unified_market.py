"""What the unified requirement reads from the market, built once per run: stressed laws, grid, sizes of markets."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from .cube import CubeRows
from .cube_prices import padded_rows
from .engine import draw_cube, row_order
from .factors import MarketSize, StressedLaw
from .greeks import row_sensitivities
from .policy import Requirement
from .risk import SCENARIO_TILE
from .scenario_grid import GridRule, GridVolRule, grid_points, row_changes
from .unified import Stack, UnifiedMarket

_FACTORS_TOGETHER = 8


class Grid(NamedTuple):
    """The grid's changes [rows, points] (padded) with the weight of each loss, and the words for its real points."""

    change: Float[Array, "rows points"]
    weight: Float[Array, " points"]
    labels: tuple[str, ...]


def unified_market(
    rows: CubeRows,
    factors: Sequence[str],
    grid: Grid,
    policy: Requirement,
    *,
    stressed: Sequence[StressedLaw],
    sizes: Mapping[str, MarketSize],
    basis: Mapping[str, float],
    seed: int,
    chunk: int,
    horizon_days: float,
) -> UnifiedMarket:
    """The market of a run. `sizes` and `basis` by price factor; an asset in neither has no figures (NaN).

    `basis` is the expected shortfall of the relative gap between venues; the policy's floors apply to it, and stand for
    an asset without one.
    """
    drawn = [
        draw_cube(rows, law.generator, seed=seed, scenarios=law.scenarios, chunk=chunk, horizon_days=horizon_days)
        for law in stressed
    ]
    # Laws may have different numbers of scenarios: the shorter ones are padded with weight 0.
    longest = max((cube.weights.shape[0] for cube in drawn), default=SCENARIO_TILE)

    def padded(values: Array) -> Array:
        return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, longest - values.shape[-1])])

    none = (jnp.zeros((0, *grid.change.shape[:1], longest), jnp.float32), jnp.zeros((0, longest), jnp.float64))
    change = jnp.stack([padded(cube.change) for cube in drawn]) if drawn else none[0]
    weights = jnp.stack([padded(cube.weights) for cube in drawn]) if drawn else none[1]
    exposure = row_exposures(rows, factors)
    # Further factors that nothing is exposed to, so that books of nearly as many share a program.
    more = -len(factors) % _FACTORS_TOGETHER
    known = [sizes.get(name, MarketSize(np.nan, np.nan, np.nan)) for name in factors]
    known += [MarketSize(np.nan, np.nan, np.nan)] * more
    gaps = [_basis_rate(name, basis, policy) for name in factors] + [0.0] * more
    return UnifiedMarket(
        stressed_change=change,
        stressed_weights=weights,
        grid_change=grid.change,
        grid_weight=grid.weight,
        exposure=jax.device_put(np.pad(exposure, ((0, grid.change.shape[0] - len(exposure)), (0, more)))),
        daily_volume=jnp.asarray([size.daily_volume for size in known], jnp.float64),
        daily_vol=jnp.asarray([size.daily_vol for size in known], jnp.float64),
        spread=jnp.asarray([size.spread for size in known], jnp.float64),
        basis=jnp.asarray(gaps, jnp.float64),
        stack=stack_of(policy, horizon_days=horizon_days),
    )


def stack_of(policy: Requirement, *, horizon_days: float) -> Stack:
    """The policy's numbers; liquidity horizons that are no longer than that of the run drop out."""
    liquidity = policy.liquidity
    return Stack(
        stress_weight=policy.stress_weight,
        offset_cap=policy.offset_cap,
        floor_rate=policy.floor_rate,
        initial_scale=policy.initial_scale,
        impact=liquidity.impact,
        participation=liquidity.participation,
        horizons=(horizon_days, *(days for days in liquidity.horizons if days > horizon_days)),
        concentration_share=liquidity.concentration_share,
    )


def priced_grid(rows: CubeRows, factors: Sequence[str], policy: Requirement) -> Grid:
    """The policy's grid over `factors`, priced."""
    grid = policy.grid
    points = grid_points(
        factors,
        GridRule(
            spot_points=tuple(np.linspace(-1.0, 1.0, grid.points).tolist()),
            scan_moves=grid.scan,
            default_scan_move=grid.default_scan,
            peg_moves=grid.peg,
            default_peg_move=grid.default_peg,
            extreme_multiple=grid.extreme,
            extreme_weight=grid.extreme_weight,
        ),
    )
    count = len(points.weights)
    missing = -count % SCENARIO_TILE if count else SCENARIO_TILE
    vol = GridVolRule(grid.vol_up, grid.vol_down, grid.vol_power, grid.vol_floor_days, grid.vol_minimum)
    logs = jax.device_put(np.pad(points.log_moves, ((0, missing), (0, 0))))
    steps = jax.device_put(np.pad(points.vol_steps, ((0, missing), (0, 0))))
    weight = jax.device_put(np.pad(points.weights, (0, missing)))
    return Grid(_grid_changes(padded_rows(rows), row_order(rows), logs, steps, vol), weight, points.labels)


@functools.partial(jax.jit, static_argnames="vol")
def _grid_changes(
    rows: CubeRows,
    order: Int[Array, " padded"],
    logs: Float[Array, "points F"],
    steps: Float[Array, "points F"],
    vol: GridVolRule,
) -> Float[Array, "padded points"]:
    changes = lax.map(lambda point: row_changes(rows, point[0], point[1], vol), (logs, steps))
    return changes.T.astype(jnp.float32)[order]


def row_exposures(rows: CubeRows, factors: Sequence[str]) -> np.ndarray:
    """USD per unit of a row's coefficient and 100 % of a price [rows, factors]; 0 for factors that are no price."""
    number = {name.removeprefix("price:"): at for at, name in enumerate(factors) if name.startswith("price:")}
    out = np.zeros((rows.exponent_factor.shape[0] + rows.forward.shape[0], len(factors)))
    for row, sensitivities in enumerate(row_sensitivities(rows, factors)):
        for s in sensitivities:
            if s.underlying in number:
                out[row, number[s.underlying]] += s.delta
    return out


def _basis_rate(factor: str, basis: Mapping[str, float], policy: Requirement) -> float:
    asset = factor.removeprefix("price:")
    floor = policy.basis.floor_majors if asset in policy.basis.majors else policy.basis.floor_others
    return max(policy.basis.assets.get(asset, basis.get(factor, floor)), floor)
