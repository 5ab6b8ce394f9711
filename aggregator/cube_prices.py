"""The rows of a cube in many scenarios: values today, and changes in tiles of scenarios, drawn or given."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from .cube import CubeRows
from .rounding import rounded
from .scenarios import TILE, ScenarioGenerator, draw_scenarios

_AXIS = "scenarios"


@functools.partial(jax.jit, static_argnames="horizon_years")
def price_rows(
    rows: CubeRows, shocks: Float[Array, "scenarios factors"], *, horizon_years: float
) -> Float[Array, "rows scenarios"]:
    """Changes of all rows in every scenario, tile by tile: the compiled body never sees the length of the request.

    The number of scenarios is a multiple of the tile.
    """
    tiles = shocks.reshape(-1, TILE, shocks.shape[1])
    changes = lax.map(jax.vmap(lambda s: rows.changes(s, horizon_years=horizon_years)), tiles)
    return changes.reshape(shocks.shape[0], -1).T


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

    def padded(name: str, column: Array) -> Array:
        more = more_products if name.startswith("exponent") else more_options
        return jnp.asarray(np.pad(np.asarray(column), ((0, more), *((0, 0),) * (column.ndim - 1))))

    columns = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    return CubeRows(**{name: padded(name, column) for name, column in columns.items()})


class Priced(NamedTuple):
    """Changes of the rows, and the sum of the squared log-changes of all factors in each scenario."""

    change: Float[Array, "rows scenarios"]
    size: Float[Array, " scenarios"]


@eqx.filter_jit
def drawn_changes(
    rows: CubeRows,
    generator: ScenarioGenerator,
    key: PRNGKeyArray,
    first: UInt32[Array, ""],
    count: int,
    horizon_years: float,
    devices: int,
) -> Priced:
    """All rows in the scenarios `first` .. `first + count - 1` of a generator.

    `count` is a multiple of `TILE * devices`; every device draws and prices its share, in one program for all.
    """
    figures, structure = eqx.partition((rows, generator), eqx.is_array)
    share = count // devices

    def block(figures: Any, key: PRNGKeyArray, first: UInt32[Array, ""]) -> Priced:
        cube, source = eqx.combine(figures, structure)
        own = first if devices == 1 else first + lax.axis_index(_AXIS).astype(jnp.uint32) * jnp.uint32(share)
        return _priced(cube, draw_scenarios(source, key, own, share), horizon_years)

    return _over_devices(block, devices, PartitionSpec(), PartitionSpec(), PartitionSpec())(figures, key, first)


@eqx.filter_jit
def given_changes(
    rows: CubeRows, shocks: Float[Array, "scenarios factors"], horizon_years: float, devices: int
) -> Priced:
    """All rows in given scenarios, as many as in `drawn_changes`."""

    def block(cube: CubeRows, shocks: Array) -> Priced:
        return _priced(cube, shocks, horizon_years)

    return _over_devices(block, devices, PartitionSpec(), PartitionSpec(_AXIS))(rows, shocks)


def _priced(rows: CubeRows, shocks: Array, horizon_years: float) -> Priced:
    by_factor = shocks.T

    def add(factor: Array, total: Array) -> Array:
        return total + rounded(by_factor[factor] * by_factor[factor])

    # One by one: a reduction would leave the order, and so the bits, to the compiler.
    size = lax.fori_loop(0, by_factor.shape[0], add, jnp.zeros(by_factor.shape[1], by_factor.dtype))
    return Priced(price_rows(rows, shocks, horizon_years=horizon_years), size)


def _over_devices(block: Callable[..., Priced], devices: int, *inputs: PartitionSpec) -> Callable[..., Priced]:
    """`block` on every device; what they give lies side by side along the scenarios."""
    if devices == 1:
        return block
    mesh = jax.make_mesh((devices,), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    specs: tuple[Any, Any] = PartitionSpec(None, _AXIS), PartitionSpec(_AXIS)
    return jax.shard_map(block, mesh=mesh, in_specs=inputs, out_specs=Priced(*specs), check_vma=False)
