"""The adapter protocol, and finding adapters by name.

An adapter is an object with a `venue` and a pure `normalize`: payloads and dated parameters in, canonical Arrow tables
and failures out. No network, no clock, no JAX, no state. It is found through the entry-point group
`crossmargin.adapters`, so a venue in another distribution joins by installing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol, runtime_checkable

from aggregator.errors import ConfigurationError, Failure, nearest_name

from .asset_book import Asset, AssetBook
from .rows import Batches
from .transport import Payload

GROUP = "crossmargin.adapters"


@dataclass(frozen=True)
class Context:
    """What an adapter may know beside its payloads: the asset book, and the venue's parameter file as parsed TOML."""

    assets: AssetBook
    parameters: Mapping[str, Any]


def parameter_table(parameters: Mapping[str, Any], key: str, *, venue: str) -> Mapping[str, Any]:
    """The table `[key]` of a venue's parameter file, empty when absent; `ConfigurationError` for anything else."""
    table = parameters.get(key, {})
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{venue} parameters: expected a table [{key}], found {type(table).__name__}")
    return table


class Normalized(NamedTuple):
    """An adapter's answer: canonical tables and the rows that could not be read."""

    batches: Batches
    failures: list[Failure]


@runtime_checkable
class Adapter(Protocol):
    """One venue. `requests` names the payload requests that it understands."""

    venue: str
    requests: tuple[str, ...]

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized: ...


def find_adapter(venue: str) -> Adapter:
    """The adapter registered under `venue`.

    Raises `ConfigurationError` for an unknown name (with the nearest known one), for two distributions that claim the
    same name, and for an object that cannot be imported or is no adapter.
    """
    found = [point for point in entry_points(group=GROUP) if point.name == venue]
    if not found:
        known = adapter_names()
        raise ConfigurationError(f"unknown venue {venue!r}{nearest_name(venue, known)}; known: {', '.join(known)}")
    if len({point.value for point in found}) > 1:
        raise ConfigurationError(f"venue {venue!r} is claimed by {', '.join(sorted(p.value for p in found))}")
    try:
        adapter = found[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"venue {venue!r}: cannot import {found[0].value}: {error}") from error
    if not isinstance(adapter, Adapter):
        raise ConfigurationError(f"{found[0].value} is no adapter: it lacks venue, requests or normalize")
    return adapter


def adapter_names() -> list[str]:
    """Names of all registered adapters, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


__all__ = [
    "GROUP",
    "Adapter",
    "Asset",
    "AssetBook",
    "Context",
    "Normalized",
    "adapter_names",
    "find_adapter",
    "parameter_table",
]
