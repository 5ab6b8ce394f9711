"""What a path moves besides prices: marks that are not the price, and funding that is not today's.

Such factors stand behind those of the run in a generator of paths. Venues judge an account at their marks, so that the
move of a price as triggers see it is its own plus that of its oracle (`oracle:BTC` to `price:BTC`). What a perpetual
pays in a step beyond today's rate is `funding:BTC` less what the rate of the law's last interval would have paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .overlays.added_factors import layers
from .overlays.funding import Funding
from .scenarios import ScenarioGenerator

VIEW_KINDS = ("oracle", "funding")
"""Kinds of factors that paths read and a scenario of one step does not."""


class SeenMoves(NamedTuple):
    """Of a tile of paths by factor of the run: moves as triggers see them, and funding beyond today's rate, a fraction
    of the notional of each step (0 for what is no price or has no law of funding).
    """

    moves: Float[Array, "scenarios steps factors"]
    funding: Float[Array, "scenarios steps factors"]


def seen_moves(
    generator: ScenarioGenerator, factors: Sequence[str], drawn: Float[Array, "scenarios steps columns"]
) -> SeenMoves:
    """The moves of a tile of paths `drawn` from `generator`, whose first columns are `factors`."""
    count = len(factors)
    moves = drawn[..., :count]
    oracle, funding = (_column_of(generator, factors, kind) for kind in VIEW_KINDS)
    today = np.zeros(len(generator.factors) + 1)
    for layer in layers(generator):
        if isinstance(layer, Funding):
            paid = np.asarray(layer.latest) * np.asarray(layer.intervals)
            today[[generator.factors.index(name) for name in layer.names]] = paid
    with_nothing = jnp.concatenate([drawn, jnp.zeros((*drawn.shape[:2], 1), drawn.dtype)], axis=2)
    if (oracle < len(generator.factors)).any():
        moves = moves + with_nothing[..., oracle]
    return SeenMoves(moves, with_nothing[..., funding] - today[None, None, funding])


def _column_of(generator: ScenarioGenerator, factors: Sequence[str], kind: str) -> np.ndarray:
    """Column [factors] of the view of each price of `factors` in the generator, or the one behind its last."""
    place = {name: column for column, name in enumerate(generator.factors)}
    names = [name.replace("price:", f"{kind}:", 1) if name.startswith("price:") else "" for name in factors]
    return np.array([place.get(name, len(place)) for name in names])
