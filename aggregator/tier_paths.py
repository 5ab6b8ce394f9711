"""Every account along the paths of the run under given tiers: whether it is liquidated, and what it owes when it is.

A higher maintenance rate liquidates more accounts, and earlier, while they still have equity: this is where it pays.
Liquidation is at the prices after the step of the first verdict and absorbs; what is owed is the equity below 0 then,
or at the end of the path when there was none. Paths are those of `path_margin`, drawn from the same stream; funding
paid on the way is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from .batch import Bucket, PortfolioArrays
from .cube import CubeRows
from .cube_prices import rows_today
from .engine import map_bucket
from .margin import NativeMargin, is_liquidated, liquidated, scenario_margin
from .path_margin import PathLaw, priced_steps
from .path_views import seen_moves
from .risk import tile_sum
from .scenarios import draw_paths, scenario_weights, stream_number

_DAYS_PER_YEAR = 365.0


class PricedPaths(NamedTuple):
    """All paths with every row priced after every step, and what rows are worth today."""

    rows: CubeRows
    today: Float[Array, " rows"]
    shocks: Float[Array, "steps scenarios factors"]
    change: Float[Array, "steps rows scenarios"]
    elapsed_years: Float[Array, " steps"]
    weights: Float[Array, " scenarios"]


class PathOutcome(NamedTuple):
    """Of one portfolio; debt in each account's unit. `p_liquidation` by group of accounts."""

    p_liquidation: Float[Array, " V"]
    bad_debt: Float[Array, " A"]
    finite: Bool[Array, " A"]


def priced_paths(rows: CubeRows, factors: Sequence[str], law: PathLaw) -> PricedPaths:
    """The paths of `law` over `factors`; memory is 4 bytes for each row, path and step."""
    weights = scenario_weights(law.generator, law.scenarios)
    key = jax.random.fold_in(jax.random.key(law.seed), stream_number("paths"))
    elapsed = jnp.arange(1, law.steps + 1, dtype=jnp.float64) * (law.step_days / _DAYS_PER_YEAR)
    drawn = draw_paths(law.generator, key, 0, weights.shape[0], steps=law.steps)
    moves = seen_moves(law.generator, factors, drawn).moves
    shocks, change = priced_steps(rows, moves, elapsed)
    return PricedPaths(rows, rows_today(rows), shocks, change, elapsed, weights)


def path_outcomes(
    bucket: Bucket, native: NativeMargin, groups: Bool[np.ndarray, "P V A"], paths: PricedPaths, *, devices: int
) -> PathOutcome:
    """Outcomes (NumPy, with the leading axis of the bucket); `native` are today's figures, `groups` accounts by row."""
    arrays = bucket.arrays
    # Any: a host array stands where the member declares a device array
    of_groups: Any = groups
    found: PathOutcome = jax.device_get(
        map_bucket(_Member(arrays, native, of_groups), paths, _walk, devices, len(bucket.members))
    )
    return found


class _Member(NamedTuple):
    rows: PortfolioArrays
    native: NativeMargin
    groups: Bool[Array, "V A"]


def _walk(member: _Member, paths: PricedPaths) -> PathOutcome:
    portfolio, native, groups = member
    real, weights = paths.weights > 0, paths.weights
    today = portfolio.account_is_real & is_liquidated(
        native.equity,
        native.maintenance,
        trigger=portfolio.trigger,
        at_or_below=portfolio.at_or_below,
        needs_requirement=portfolio.needs_requirement,
    )
    shape = (portfolio.trigger.shape[0], weights.shape[0])

    def advance(
        state: tuple[Array, Array, Array], step: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        gone, owed, finite = state
        shocks, change, years = step
        margin = scenario_margin(portfolio, paths.today, change, shocks, paths.rows, horizon_years=years)
        # what an account owes is that of its last moment: of the first verdict, else of the end
        owed = jnp.where(gone, owed, jnp.maximum(-margin.equity, 0.0))
        known = jnp.isfinite(margin.equity) & jnp.isfinite(margin.maintenance)
        return (gone | liquidated(portfolio, margin), owed, finite & jnp.all(known | ~real[None, :], axis=1)), None

    start = (
        jnp.broadcast_to(today[:, None], shape),
        jnp.broadcast_to(jnp.maximum(-native.equity, 0.0)[:, None], shape),
        jnp.isfinite(native.equity) & jnp.isfinite(native.maintenance),
    )
    (gone, owed, finite), _ = lax.scan(advance, start, (paths.shocks, paths.change, paths.elapsed_years))
    total = tile_sum(weights)

    def probability(accounts: Array) -> Array:
        event = jnp.any(gone & accounts[:, None], axis=0)
        return tile_sum(jnp.where(event, weights, 0.0)) / total

    debt = tile_sum(weights[None, :] * jnp.where(real[None, :], owed, 0.0)) / total
    return PathOutcome(lax.map(probability, groups), debt, finite)
