"""The rows of a cube in many scenarios: values today, and changes in tiles of scenarios."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from .cube import CubeRows
from .device_mesh import AXIS, SPLIT, WHOLE, dealt_out, on_every_device, split_over
from .scenarios import TILE
from .sweep_scenarios import SweepScenarios, even_chunk
from .weighted_tail import LANES

_DAYS_PER_YEAR = 365.0


class PricedCube(NamedTuple):
    """What all portfolios of a sweep share, on the host; rows that pad the cube are zeros.

    `change` of the rows in every scenario [rows, scenarios] and `weights` [scenarios], padded to whole lanes with
    zeros; `scenarios` have a positive weight, come first, and weigh the same if `equal`. `today`: the rows' values;
    `lowest`, `highest` and `mean` changes of each [rows].
    """

    change: np.ndarray
    weights: np.ndarray
    scenarios: int
    equal: bool
    today: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    mean: np.ndarray


def priced_cube(rows: CubeRows, scenarios: SweepScenarios, *, horizon_days: float) -> PricedCube:
    """Every row of the cube in every scenario; all devices share the work."""
    total, horizon_years = len(scenarios.weights), horizon_days / _DAYS_PER_YEAR
    chunk, devices = even_chunk(total)
    products, options = rows.exponent_factor.shape[0], rows.forward.shape[0]
    rows = padded_rows(rows)
    # Where the rows of the cube are among the padded ones: products first, then options.
    behind = rows.exponent_factor.shape[0]
    held = products + options
    count = rounded_up(held)
    values = np.asarray(rows_today(rows))
    today = np.concatenate([values[:products], values[behind : behind + options], np.zeros(count - held)])
    change = np.zeros((count, -(-total // LANES) * LANES), np.float32)
    blocks = []
    rows = on_every_device(rows, devices)
    for first in range(0, total, chunk):
        part = scenarios.shocks[first : first + chunk]
        if len(part) < chunk:
            part = np.pad(part, ((0, chunk - len(part)), (0, 0)))
        blocks.append(_changes(rows, dealt_out(part, devices), horizon_years, devices))
    for first, block in zip(range(0, total, chunk), blocks, strict=True):
        for of_device in block.addressable_shards:
            at = first + (of_device.index[1].start or 0)
            to = change[:, at : min(at + of_device.data.shape[1], total)]
            found = np.asarray(of_device.data)[:, : to.shape[1]]
            to[:products] = found[:products]
            to[products:held] = found[behind : behind + options]
    change[:, scenarios.positive :] = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # of rows that overflow; netting finds whom they concern
        mean = np.einsum("rs,s->r", change[:, :total], scenarios.weights)
    weights = np.pad(scenarios.weights, (0, change.shape[1] - total))
    return PricedCube(
        change, weights, scenarios.positive, scenarios.equal, today, change.min(axis=1), change.max(axis=1), mean
    )


@functools.partial(jax.jit, static_argnames="horizon_years")
def price_rows(
    rows: CubeRows, shocks: Float[Array, "scenarios factors"], *, horizon_years: float
) -> Float[Array, "rows scenarios"]:
    """Changes of all rows in every scenario, tile by tile: the compiled body never sees the length of the request.

    The number of scenarios is a multiple of the tile.
    """
    tiles = shocks.reshape(-1, TILE, shocks.shape[1])
    changes = lax.map(lambda tile: rows.changes_in_tile(tile, horizon_years=horizon_years), tiles)
    return changes.transpose(1, 0, 2).reshape(-1, shocks.shape[0])


@eqx.filter_jit
def rows_today(rows: CubeRows) -> Float[Array, " rows"]:
    """Today's value of every row (`CubeRows.today`)."""
    return rows.today()


def rounded_up(count: int) -> int:
    """A few sizes that counts are rounded up to, at most an eighth more (or 16): each size is a compilation."""
    step = max(16, 1 << max((count - 1).bit_length() - 3, 0))
    return -(-count // step) * step


def padded_rows(rows: CubeRows) -> CubeRows:
    """The rows with as many constants, and as many options that are worth nothing, as `rounded_up` says."""
    products, options = rows.exponent_factor.shape[0], rows.forward.shape[0]
    more_products, more_options = rounded_up(products) - products, rounded_up(options) - options

    def padded(name: str) -> np.ndarray:
        column = np.asarray(getattr(rows, name))
        more = more_products if name.startswith("exponent") else more_options
        return np.pad(column, ((0, more), *((0, 0),) * (column.ndim - 1)))

    columns: dict[str, Any] = {field.name: padded(field.name) for field in dataclasses.fields(rows)}
    return jax.device_put(CubeRows(**columns))


@eqx.filter_jit
def _changes(
    rows: CubeRows, shocks: Float[Array, "scenarios factors"], horizon_years: float, devices: int
) -> Float[Array, "rows scenarios"]:
    def block(rows: CubeRows, shocks: Array) -> Array:
        return price_rows(rows, shocks, horizon_years=horizon_years)

    outputs = PartitionSpec(None, AXIS)
    changes: Array = split_over(devices, block, inputs=(WHOLE, SPLIT), outputs=outputs)(rows, shocks)
    return changes
