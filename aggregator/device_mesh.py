"""The devices of a process that share a sweep, as one mesh: work split over them, arrays put on all or dealt out.

What a program finds on one device alone it copies to the others in every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
"""The name of the mesh's only axis."""

WHOLE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)
"""Of arrays that every device has whole, and of those whose first axis is dealt out."""

Values = TypeVar("Values")


def split_over(devices: int, block: Callable[..., Any], *, inputs: tuple[Any, ...], outputs: Any) -> Callable[..., Any]:
    """`block` on every device, of arguments that are whole or split as `inputs` says; `outputs` likewise."""
    if devices == 1:
        return block
    return jax.shard_map(block, mesh=_mesh(devices), in_specs=inputs, out_specs=outputs, check_vma=False)


def on_every_device(values: Values, devices: int) -> Values:
    """All arrays of `values` on every device, for the calls to come; one device is JAX's default one."""
    found: Values = jax.device_put(values, None if devices == 1 else NamedSharding(_mesh(devices), WHOLE))
    return found


def dealt_out(values: Any, devices: int) -> jax.Array:
    """An equal share of the first axis of `values` on every device; one device is JAX's default one."""
    found: jax.Array = jax.device_put(values, None if devices == 1 else NamedSharding(_mesh(devices), SPLIT))
    return found


def _mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
