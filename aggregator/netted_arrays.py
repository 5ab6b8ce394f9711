"""The arrays of netted portfolios and of the cube on the devices, as the bodies of the sweep's hot loop take them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

ROWS_TOGETHER = 4
"""Rows of the cube that are read together; an account's rows are padded to a multiple of it."""

KNEES_TOGETHER = 2
"""Knees of an account are padded to a multiple of it."""

SCENARIOS_TOGETHER = 512
"""Scenarios of a tile, a divisor of `LANES`."""


class TiledCube(NamedTuple):
    """The changes of a cube's rows in all scenarios, whole and in tiles of `SCENARIOS_TOGETHER`, and the least and the
    largest of every row in each tile.
    """

    change: Float[Array, "rows scenarios"]
    tiles: Float[Array, "tiles rows tile"]
    lowest: Float[Array, "rows tiles"]
    highest: Float[Array, "rows tiles"]


def tiled_cube(change: np.ndarray) -> TiledCube:
    """The tiles of changes [rows, scenarios], whose number of scenarios is a multiple of `SCENARIOS_TOGETHER`."""
    rows, scenarios = change.shape
    by_row = change.reshape(rows, scenarios // SCENARIOS_TOGETHER, SCENARIOS_TOGETHER)
    tiles: Any = np.ascontiguousarray(by_row.transpose(1, 0, 2))
    lowest: Any = by_row.min(axis=2)
    highest: Any = by_row.max(axis=2)
    whole: Any = change
    return TiledCube(whole, tiles, lowest, highest)


class ShardArrays(NamedTuple):
    """Portfolios of one number of account slots on every device (leading axis `devices`, left out below).

    The rows of an account are `groups` entries (at least one) from `first` on of `row` and `coefficient` (market,
    headroom); its knees and hinges likewise. A knee is a hinge in USD without a jump: where its row changes by x it
    takes `weight * (max(x, knee) - max(knee, 0))` off the headroom; `knee` holds weight and knee. `pooled` has the rows
    of all accounts of a portfolio together, as losses. The arrays are padded; `real` portfolios are computed.
    """

    real: Int[Array, ""]
    accounts: Int[Array, " P"]
    first: Int[Array, "P A"]
    groups: Int[Array, "P A"]
    limit: Float[Array, "P A"]
    equity: Float[Array, "P A"]
    unified_limit: Float[Array, " P"]
    pooled_first: Int[Array, " P"]
    pooled_groups: Int[Array, " P"]
    knee_first: Int[Array, "P A"]
    knee_groups: Int[Array, "P A"]
    hinge_first: Int[Array, "P A"]
    hinge_count: Int[Array, "P A"]
    row: Int[Array, "groups together"]
    coefficient: Float[Array, "groups two together"]
    pooled_row: Int[Array, "pooled together"]
    pooled: Float[Array, "pooled together"]
    knee_row: Int[Array, "knees few"]
    knee: Float[Array, "knees two few"]
    hinge_rows: Int[Array, "hinges two"]
    hinge_figures: Float[Array, "hinges figures"]


class Block(NamedTuple):
    """Portfolios that pass a tile together, fields as in the shard."""

    accounts: Array
    first: Array
    groups: Array
    limit: Array
    equity: Array
    unified_limit: Array
    knee_first: Array
    knee_groups: Array
    hinge_first: Array
    hinge_count: Array


class Entries(NamedTuple):
    """Rows, knees and hinges of all accounts of a shard, fields as there."""

    row: Array
    coefficient: Array
    knee_row: Array
    knee: Array
    hinge_rows: Array
    hinge_figures: Array
