"""What a dollar of an asset needs by itself: the floor under margin rates and haircuts that are recommended for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from .config import TILE
from .factors import Generation
from .risk import tail_rows
from .scenarios import draw_scenarios, padded_count, scenario_weights

CONFIDENCE = 0.99


class UnitShortfall(NamedTuple):
    """Expected shortfall at 99 % of a dollar held, and of a dollar owed or sold short; fractions, never below 0."""

    long: float
    short: float


def unit_requirements(
    generation: Generation, holdings: Mapping[str, tuple[str, ...]], *, seed: int, chunk: int
) -> dict[str, UnitShortfall]:
    """Shortfalls over the horizon of the generation, by name of `holdings`: each moves with the sum of its factors.

    A long position loses 1 - exp(x) and a short one exp(x) - 1 of a log move x. Names with a factor that the generation
    does not move, or with none, are left out. `chunk` is a multiple of the tile and changes no bit.
    """
    known = {name: of for name, of in holdings.items() if of and set(of) <= set(generation.factors)}
    if not known:
        return {}
    moving = sorted({factor for of in known.values() for factor in of})
    columns = [generation.factors.index(factor) for factor in moving]
    weights = scenario_weights(generation.generator, generation.scenarios)
    key, total = jax.random.key(seed), padded_count(len(weights))
    step = max(TILE, min(chunk, total))
    parts = [
        np.asarray(draw_scenarios(generation.generator, key, first, step))[:, columns]
        for first in range(0, total, step)
    ]
    moves = np.concatenate(parts)[:total].T
    logs = np.stack([moves[[moving.index(factor) for factor in of]].sum(axis=0) for of in known.values()])
    rise = np.expm1(logs).astype(np.float32)
    shortfall = _shortfalls(jax.device_put(np.concatenate([-rise, rise])), weights)
    both = np.maximum(np.asarray(shortfall, dtype=np.float64)[:, 0].reshape(2, len(known)), 0.0)
    return {name: UnitShortfall(float(both[0, n]), float(both[1, n])) for n, name in enumerate(known)}


@jax.jit
def _shortfalls(
    losses: Float[Array, "rows scenarios"], weights: Float[Array, " scenarios"]
) -> Float[Array, "rows levels"]:
    return tail_rows(losses, weights, (CONFIDENCE,))[1]
