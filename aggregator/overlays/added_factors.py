"""What overlays share: where their factors go, streams of their own, what they refuse.

An overlay draws from a key of its own, so that no name of the wrapped generator can meet one of its streams and the
wrapped generator's draws keep their bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from ..errors import ConfigurationError
from ..rounding import rounded
from ..scenarios import ScenarioGenerator, checked_factors, named_streams, standard_normals, stream_number


def overlay_streams(key: PRNGKeyArray, overlay: str, names: tuple[str, ...], index: UInt32[Array, ""]) -> PRNGKeyArray:
    """The streams [names] of an overlay in scenario `index`, apart from those of all other overlays and generators."""
    return named_streams(jax.random.fold_in(key, stream_number(f"overlay {overlay}")), names, index)


def overlay_normals(streams: PRNGKeyArray) -> Float[Array, " names"]:
    """One standard normal of each stream.

    A normal is itself a product, sqrt(2) erf_inv(u): without rounding it the compiler puts the factors of a further
    product in another order in another program (seen with two devices: the last bit of a t draw).
    """
    return rounded(standard_normals(streams))


def appended_names(base: ScenarioGenerator, names: Iterable[str], *, overlay: str, kind: str) -> tuple[str, ...]:
    """`names` in order, checked: all of one kind ("depth:"), some, none moved by `base`; ConfigurationError if not."""
    own = _checked_names(names, overlay=overlay)
    for name in own:
        if not name.startswith(kind) or name == kind:
            raise ConfigurationError(f"{overlay}: {name} is no factor of its kind; expected {kind}NAME")
        if name in base.factors:
            raise ConfigurationError(f"{overlay}: {name} is moved by the generator already")
    return own


def added_places(base: ScenarioGenerator, names: Iterable[str], *, overlay: str) -> tuple[int, ...]:
    """Where the moves of `names` are added: the column of `base` that has the name, or a new one behind them.

    Raises ConfigurationError for no name, and for one that an overlay of the same kind below moves already: both would
    draw the same jumps.
    """
    own = _checked_names(names, overlay=overlay)
    for layer in layers(base):
        if getattr(layer, "overlay", None) == overlay:
            for name in own:
                if name in getattr(layer, "names", ()):
                    raise ConfigurationError(f"{overlay}: {name} has one already")
    new = [name for name in own if name not in base.factors]
    columns = (*base.factors, *new)
    return tuple(columns.index(name) for name in own)


def layers(base: ScenarioGenerator) -> Iterator[object]:
    """`base`, what it wraps, and so on down to the law."""
    layer: object = base
    while layer is not None:
        yield layer
        layer = getattr(layer, "base", None)


def factors_with(base: ScenarioGenerator, names: tuple[str, ...], places: tuple[int, ...]) -> tuple[str, ...]:
    """Factors of `base`, and behind them those of `names` whose places are beyond."""
    new = sorted((place, name) for place, name in zip(places, names, strict=True) if place >= len(base.factors))
    return (*base.factors, *(name for _, name in new))


def with_moves(
    moves: Float[Array, " base"], own: Float[Array, " names"], places: tuple[int, ...]
) -> Float[Array, " factors"]:
    """`moves` of the base with `own` added at their places; columns without a move of their own keep their bits."""
    count, last = moves.shape[0], len(places)
    source = np.full(max(count, 1 + max(places)), last)
    source[list(places)] = np.arange(last)
    extended = jnp.concatenate([moves, jnp.zeros(len(source) - count, jnp.float64)])
    added = jnp.concatenate([own, jnp.zeros(1, jnp.float64)])[source]
    return jnp.where(source < last, extended + added, extended)


def price_places(
    base: ScenarioGenerator, prices: Iterable[str], names: Iterable[str], *, overlay: str
) -> tuple[int, ...]:
    """Columns of the factors that `names` follow; ConfigurationError naming the one that `base` does not move."""
    places = []
    for name, price in zip(names, prices, strict=True):
        if price not in base.factors:
            raise ConfigurationError(f"{overlay}: {name} follows {price}, which the generator does not move")
        places.append(base.factors.index(price))
    return tuple(places)


def require_at_least(what: str, value: float, least: float) -> None:
    """Raise ConfigurationError unless `value` is finite and at least `least`."""
    if not (math.isfinite(value) and value >= least):
        raise ConfigurationError(f"{what} is {value}; expected a finite number of at least {least:g}")


def require_finite(what: str, value: float) -> None:
    """Raise ConfigurationError unless `value` is finite."""
    if not math.isfinite(value):
        raise ConfigurationError(f"{what} is {value}; expected a finite number")


def _checked_names(names: Iterable[str], *, overlay: str) -> tuple[str, ...]:
    own = tuple(names)
    if not own:
        raise ConfigurationError(f"{overlay}: no factor is given")
    return checked_factors(own, reserved=())
