"""Error of the expected shortfall at equal run time: plain Monte Carlo against Sobol points with a widened factor.

    .venv/bin/python -m benchmarks.scenario_error [--points 1024] [--repetitions 64] [--tune] [--write]

Books of 40 options on BTC, ETH and SOL with perps against them, revalued in full by the engine's own cube under a
multivariate t (nu 4) of prices, implied volatilities and a stablecoin. The error is the root mean square of the
deviations of ES at 99 % from the truth, over independent keys; the truth comes from 4 million weighted Sobol points,
and its own standard error is given beside it. `--tune` prints the mean error of the tuning books over a grid of
mixtures; the measuring books are others (other seeds), so that the choice is not measured on what it was made on.

Short calls are covered far out: a log-change with the tails of a t has no exponential moment, so the expected shortfall
of an open upside is infinite and no number of scenarios finds it.

Run time is wall clock of everything that a run does per scenario set: points or random streams, revaluation of the
whole cube, ES of all books, without compiling; the median of the repetitions. At equal time, plain Monte Carlo gets
the square root of the ratio of the times off its error.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aggregator.correlation import correlation_matrix
from aggregator.cube import CubeBuilder, CubeRows, OptionTerms
from aggregator.generators.multivariate_t import MultivariateT, multivariate_t
from aggregator.risk import expected_shortfall
from aggregator.scenarios import TILE, draw_all
from aggregator.sobol_points import SobolDesign

RESULTS = Path(__file__).resolve().parent / "results" / "scenario_error.json"
CONFIDENCE = 0.99
NU = 4.0
BLOCKS = 8
TRUTH_LOG2_POINTS = 19
TRUTH_CHUNKS = 32
HORIZON_YEARS = 1.0 / 365.0

PRICES = {"BTC": 65_000.0, "ETH": 3_400.0, "SOL": 150.0}
VOLS = {"BTC": 0.55, "ETH": 0.65, "SOL": 0.85}
DAILY_STD = {
    "peg:USDC": 0.0005,
    "price:BTC": 0.028,
    "price:ETH": 0.035,
    "price:SOL": 0.05,
    "vol:BTC": 0.05,
    "vol:ETH": 0.05,
    "vol:SOL": 0.05,
}
FACTORS = tuple(sorted(DAILY_STD))
PAIRS = {
    ("price:BTC", "price:ETH"): 0.83,
    ("price:BTC", "price:SOL"): 0.70,
    ("price:ETH", "price:SOL"): 0.74,
    ("vol:BTC", "vol:ETH"): 0.85,
    ("vol:BTC", "vol:SOL"): 0.70,
    ("vol:ETH", "vol:SOL"): 0.75,
} | {(f"price:{a}", f"vol:{b}"): -0.3 for a in PRICES for b in PRICES}
DAYS_TO_EXPIRY = (3, 7, 14, 30, 90)
MONEYNESS = (0.75, 0.85, 0.93, 1.0, 1.08, 1.18, 1.35)

TUNING_SEEDS = (1, 2)
MEASURING_SEEDS = (101, 102)
COLLATERAL_USD = 1e6
DESIGN = ("common_share", "common_widening", "width_share", "width_quantile")
STYLES = ("short_strangles", "hedged_options", "mixed", "directional")


class Book(NamedTuple):
    """Quantities [rows] of the cube's rows, and what the book is called."""

    name: str
    quantity: np.ndarray


def cube() -> tuple[CubeRows, list[OptionTerms | str]]:
    """The cube of all contracts, and what each of its rows is (row 0 is the constant)."""
    builder = CubeBuilder()
    meaning: list[OptionTerms | str] = [""]
    for asset in PRICES:
        builder.factor_row({f"price:{asset}": 1.0})
        meaning.append(asset)
    builder.factor_row({"peg:USDC": 1.0})
    meaning.append("USDC")
    for asset, price in PRICES.items():
        for days in DAYS_TO_EXPIRY:
            for ratio in MONEYNESS:
                for is_call in (False, True):
                    # a plain skew, so that puts and calls are not the same
                    vol = VOLS[asset] * (
                        1.0 + 0.25 * math.log(ratio) ** 2 / (days / 365.0) ** 0.5 * 0.2 + 0.05 * (ratio < 1)
                    )
                    terms = OptionTerms(
                        forward=price, strike=price * ratio, years=days / 365.0, vol=vol, discount=1.0, is_call=is_call,
                        price_factor=f"price:{asset}", vol_factor=f"vol:{asset}", conversion=(), conversion_today=1.0,
                    )  # fmt: skip
                    builder.option_row(terms)
                    meaning.append(terms)
    return builder.build(FACTORS), meaning


def books(seeds: tuple[int, ...], meaning: list[OptionTerms | str]) -> list[Book]:
    """One book per seed and style: 40 options, and perps that leave a part of their delta."""
    out = []
    options = [row for row, terms in enumerate(meaning) if isinstance(terms, OptionTerms)]
    for seed in seeds:
        for number, style in enumerate(STYLES):
            rng = np.random.default_rng([seed, number])
            quantity = np.zeros(len(meaning))
            delta = dict.fromkeys(PRICES, 0.0)
            for row in rng.choice(options, 40, replace=False):
                terms = meaning[row]
                assert isinstance(terms, OptionTerms)
                side = {
                    "short_strangles": -1.0 if terms.is_call == (terms.strike > terms.forward) else 0.2,
                    "hedged_options": -1.0 if rng.random() < 0.7 else 1.0,
                    "mixed": rng.choice([-1.0, 1.0]),
                    "directional": 1.0 if terms.is_call else -1.0,
                }[style]
                quantity[row] = side * 1e6 * rng.uniform(0.5, 1.5) / terms.forward
                width = terms.vol * math.sqrt(terms.years)
                d1 = math.log(terms.forward / terms.strike) / width + width / 2.0
                below = 0.5 * (1.0 + math.erf(d1 / math.sqrt(2.0)))
                delta[terms.price_factor[6:]] += quantity[row] * (below if terms.is_call else below - 1.0)
            for row, asset in enumerate(PRICES, 1):  # perps: money at today's price
                hedged = {"short_strangles": 0.7, "hedged_options": 1.0, "mixed": 0.5, "directional": 0.3}[style]
                quantity[row] = -hedged * delta[asset] * PRICES[asset]
            quantity[meaning.index("USDC")] = COLLATERAL_USD
            for row, asset in enumerate(PRICES, 1):
                _bound_upside(quantity, meaning, row, asset)
            out.append(Book(f"{style}_{seed}", quantity))
    return out


def _bound_upside(quantity: np.ndarray, meaning: list[OptionTerms | str], perp: int, asset: str) -> None:
    """Buy the furthest call against a net short upside, in place: exp(t) has no mean, so without it ES is infinite."""
    calls = [
        row
        for row, terms in enumerate(meaning)
        if isinstance(terms, OptionTerms) and terms.is_call and terms.price_factor == f"price:{asset}"
    ]
    units = quantity[calls].sum() + quantity[perp] / PRICES[asset]
    quantity[calls[-1]] += max(-units, 0.0)


@jax.jit
def shortfalls(
    rows: CubeRows, quantities: Float[Array, "books rows"], shocks: Array, weights: Float[Array, " scenarios"]
) -> Float[Array, " books"]:
    """ES at 99 % of every book, full revaluation."""
    return jax.vmap(lambda row: expected_shortfall(row, weights, confidence=CONFIDENCE))(
        _losses(rows, quantities, shocks)
    )


@jax.jit
def _losses(rows: CubeRows, quantities: Float[Array, "books rows"], shocks: Array) -> Float[Array, "books scenarios"]:
    def of_tile(tile: Array) -> Array:
        changes = jax.vmap(lambda s: rows.changes(s, horizon_years=HORIZON_YEARS, dtype=jnp.float64))(tile)
        return changes @ quantities.T  # a benchmark needs no fixed order of additions

    return -lax.map(of_tile, shocks.reshape(-1, TILE, shocks.shape[1])).reshape(shocks.shape[0], -1).T


def generator(design: SobolDesign | None = None) -> MultivariateT:
    """The multivariate t of the benchmark, plain or with points."""
    return multivariate_t(FACTORS, DAILY_STD, correlation=correlation_matrix(FACTORS, PAIRS), nu=NU, points=design)


def one_run(
    rows: CubeRows, quantities: Array, seed: int, *, scenarios: int, design: Mapping[str, float] | None
) -> tuple[np.ndarray, float]:
    """ES of every book from one scenario set, and the seconds it took; `design` None for plain Monte Carlo."""
    started = time.perf_counter()
    key = jax.random.key(seed)
    if design is None:
        drawn = draw_all(generator(), key, scenarios)
    else:
        log2_points = (scenarios // BLOCKS).bit_length() - 1
        drawn = draw_all(generator(SobolDesign(key, log2_points, BLOCKS, **design)), key)
    figures = np.asarray(shortfalls(rows, quantities, drawn.shocks, drawn.weights))
    return figures, time.perf_counter() - started


def truth(rows: CubeRows, quantities: Array) -> tuple[np.ndarray, np.ndarray]:
    """ES of every book from 4 million weighted points, and its standard error from their scrambles."""
    figures = []
    for block in range(BLOCKS):
        design = SobolDesign(jax.random.key(10_000 + block), TRUTH_LOG2_POINTS, 1)
        drawn = draw_all(generator(design), design.key)
        losses = [np.asarray(_losses(rows, quantities, part)) for part in jnp.split(drawn.shocks, TRUTH_CHUNKS)]
        together = jnp.asarray(np.concatenate(losses, axis=1))
        figures.append([float(expected_shortfall(row, drawn.weights, confidence=CONFIDENCE)) for row in together])
    return np.mean(figures, axis=0), np.std(figures, axis=0, ddof=1) / math.sqrt(BLOCKS)


def relative_error(
    rows: CubeRows, quantities: Array, exact: np.ndarray, repetitions: int, first_seed: int, **options: Any
) -> tuple[np.ndarray, float]:
    """Relative RMSE of each book and the median seconds."""
    one_run(rows, quantities, 0, **options)  # compiles
    found = [one_run(rows, quantities, first_seed + i, **options) for i in range(repetitions)]
    deviation = np.array([figures for figures, _ in found]) / exact - 1.0
    return np.sqrt(np.mean(deviation**2, axis=0)), statistics.median(seconds for _, seconds in found)


def tune(points: int, repetitions: int) -> None:
    """Geometric mean of the relative errors of the tuning books over a grid of widenings."""
    rows, meaning = cube()
    chosen = books(TUNING_SEEDS, meaning)
    quantities = jnp.asarray(np.array([book.quantity for book in chosen]))
    exact, error = truth(rows, quantities)
    print("largest relative standard error of the truth", (error / exact).max())
    measure = functools.partial(relative_error, rows, quantities, exact, repetitions, 50_000, scenarios=BLOCKS * points)
    plain, _ = measure(design=None)
    for widths in ((0.0, 0.03), (0.25, 0.03), (0.5, 0.01), (0.5, 0.03), (0.5, 0.1), (0.75, 0.03)):
        for common in ((0.0, 1.0), (0.25, 2.0), (0.25, 2.5), (0.25, 3.0), (0.5, 2.0), (0.5, 2.5)):
            found, _ = measure(design=dict(zip(DESIGN, (*common, *widths), strict=True)))
            ratio = plain / found
            mean = np.exp(np.mean(np.log(ratio)))
            print(f"common {common} widths {widths}: {mean:.2f} {np.round(ratio, 1)}", flush=True)


def main() -> None:
    """Measure, print and keep the errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=1024, help="points per block, a power of two")
    parser.add_argument("--repetitions", type=int, default=64)
    parser.add_argument("--tune", action="store_true", help="print the grid of widenings on the tuning books")
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if arguments.tune:
        tune(arguments.points, arguments.repetitions)
        return
    rows, meaning = cube()
    chosen = books(MEASURING_SEEDS, meaning)
    quantities = jnp.asarray(np.array([book.quantity for book in chosen]))
    exact, error = truth(rows, quantities)
    scenarios = BLOCKS * arguments.points
    measure = functools.partial(
        relative_error, rows, quantities, exact, arguments.repetitions, 90_000, scenarios=scenarios
    )
    default = {name: SobolDesign._field_defaults[name] for name in DESIGN}
    ways: dict[str, Mapping[str, float] | None] = {
        "plain": None,
        "sobol": default | {"common_share": 0.0, "width_share": 0.0},
        "sobol_wide_common": default | {"width_share": 0.0},
        "default": default,
    }
    found = {name: measure(design=design) for name, design in ways.items()}
    plain, plain_seconds = found["plain"]
    record: dict[str, Any] = {
        "scenarios": scenarios,
        "blocks": BLOCKS,
        "repetitions": arguments.repetitions,
        "confidence": CONFIDENCE,
        "nu": NU,
        "factors": len(FACTORS),
        "cube_rows": len(meaning),
        "design": default,
        "truth_points": BLOCKS << TRUTH_LOG2_POINTS,
        "books": {},
        "ways": {},
    }
    for place, book in enumerate(chosen):
        record["books"][book.name] = {
            "es_99_usd": round(float(exact[place])),
            "truth_relative_standard_error": float(f"{error[place] / exact[place]:.2g}"),
            "relative_rmse": {name: float(f"{figures[place]:.3g}") for name, (figures, _) in found.items()},
        }
    for name, (figures, seconds) in found.items():
        at_equal_time = plain * math.sqrt(plain_seconds / seconds) / figures
        record["ways"][name] = {
            "seconds": float(f"{seconds:.3g}"),
            "error_of_plain_over_this_at_equal_time": {
                "geometric_mean": float(f"{np.exp(np.mean(np.log(at_equal_time))):.3g}"),
                "least": float(f"{at_equal_time.min():.3g}"),
                "largest": float(f"{at_equal_time.max():.3g}"),
            },
        }
    record["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(record, indent=2))
    if arguments.write:
        RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
