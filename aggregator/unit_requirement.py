"""What one dollar of each price factor needs by itself: the floor under margin rates that are recommended for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .config import TILE
from .factors import Generation
from .risk import tail_rows
from .scenarios import draw_scenarios, padded_count, scenario_weights

CONFIDENCE = 0.99


def unit_requirements(generation: Generation, *, seed: int, chunk: int) -> dict[str, float]:
    """Expected shortfall at 99 % of holding one dollar of each price factor, long or short, whichever is larger.

    A fraction of notional over the horizon of the generation, by factor name (`price:ETH`); never below 0. A long
    position loses 1 - exp(x) and a short one exp(x) - 1 of a log move x. Other factors have none. `chunk` is a multiple
    of the tile and changes no bit.
    """
    prices = [column for column, name in enumerate(generation.factors) if name.startswith("price:")]
    if not prices:
        return {}
    weights = scenario_weights(generation.generator, generation.scenarios)
    key, total = jax.random.key(seed), padded_count(len(weights))
    step = max(TILE, min(chunk, total))
    parts = [
        np.asarray(draw_scenarios(generation.generator, key, first, step))[:, prices] for first in range(0, total, step)
    ]
    rise = np.expm1(np.concatenate(parts)[:total]).T.astype(np.float32)
    _, shortfall = tail_rows(jnp.asarray(np.concatenate([-rise, rise])), weights, (CONFIDENCE,))
    both = np.asarray(shortfall, dtype=np.float64)[:, 0].reshape(2, len(prices))
    worst = np.maximum(both.max(axis=0), 0.0)
    return {generation.factors[column]: float(value) for column, value in zip(prices, worst, strict=True)}
