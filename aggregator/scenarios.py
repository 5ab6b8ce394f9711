"""Stochastic scenarios: a generator, a key and a scenario index in, log-changes of the risk factors out.

A scenario is a vector over `factors` (ordered names): `price:BTC` is the log-change of an asset's price, `vol:BTC` the
change of the logarithm of an underlying's 30-day implied volatility, `peg:USDC` the log-change of a stablecoin's USD
price relative to today. A path is a sequence of such vectors, one per step, and every factor adds up along it. Further
kinds, from `overlays` or from columns of a history: `discount:wstETH`, the log-change of a token's price over its share
of the underlying; `basis:BTC`, the log-change of a perpetual or future over its underlying; `oracle:BTC` or
`oracle:VENUE`, the log-change of the oracle's mark over the price; `depth:BTC`, the log-change of the depth of an order
book; `funding:BTC`, what a long position pays over the step, a fraction of its notional. Everything is float64. Axis
words: `factors`, `scenarios`, `steps`, `dates`.

A generator (one law per module in `generators`) is built for the length of its step. `start` draws what a whole path
shares (a regime, a member of a mixture), `step` the changes of one step and what the next one starts from. A one-step
scenario is the first step of a path, with the same bits.

Randomness is counter-based. The stream of a name in a scenario is `fold_in(fold_in(key, crc32(name)), index)`, and each
step after the first has a key of its own (`step_keys`); so a draw depends on the key, its name, the scenario index and
the step alone: another factor, another chunk or another order changes nothing. The same bits come from every split of
the index range in multiples of `TILE`, because scenarios are always generated in tiles of exactly `TILE`: the compiled
arithmetic of a tile never sees the length of the request. Matrix products are written as loops over columns: a GEMM
changes its rounding with the size of the block.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from .errors import ConfigurationError
from .rounding import rounded

TILE = 256
"""Scenarios per tile; requests start and end on multiples of it."""

MIXTURE_STREAM = "chi-square"
_STEP_STREAM = "step"
_TILES_OF_SHOCKS = 16
_TILES_OF_PATHS = 1


class Scenarios(NamedTuple):
    """`shocks` [scenarios, factors], log-changes over the horizon; `weights` [scenarios], summing to 1.

    The number of scenarios is a multiple of `TILE`; the padded ones at the end have weight 0 and finite shocks.
    """

    shocks: Float[Array, "scenarios factors"]
    weights: Float[Array, " scenarios"]


class PegDistribution(NamedTuple):
    """Student-t law of a stablecoin's daily log-change: standard deviation and degrees of freedom (above 2)."""

    daily_std: float
    degrees_of_freedom: float


class ScenarioGenerator(Protocol):
    """What a generator offers: its factor order, the steps of one path, and the law of its own scenario set."""

    @property
    def factors(self) -> tuple[str, ...]: ...

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        """Weights of the exact scenario set of the generator, or None when any number can be drawn."""

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Any:
        """State before the first step of scenario `index`; an empty tuple when steps are independent."""

    def step(self, state: Any, key: PRNGKeyArray, index: UInt32[Array, ""]) -> tuple[Any, Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""


def shock(generator: ScenarioGenerator, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Float[Array, " factors"]:
    """Log-changes of the factors over the first step of scenario `index`."""
    return generator.step(generator.start(key, index), key, index)[1]


def path(
    generator: ScenarioGenerator, key: PRNGKeyArray, index: UInt32[Array, ""], steps: int
) -> Float[Array, "steps factors"]:
    """Log-changes of the factors over each of `steps` steps of scenario `index`; row 0 is `shock`."""

    def advance(state: Any, of_step: PRNGKeyArray) -> tuple[Any, Array]:
        return generator.step(state, of_step, index)

    return lax.scan(advance, generator.start(key, index), step_keys(key, steps))[1]


def step_keys(key: PRNGKeyArray, steps: int) -> PRNGKeyArray:
    """A key for each step [steps]: `key` itself for the first, `fold_in(fold_in(key, crc32("step")), number)` after."""
    of_steps = jax.random.fold_in(key, stream_number(_STEP_STREAM))
    later = jax.vmap(lambda number: jax.random.fold_in(of_steps, number))(jnp.arange(1, steps, dtype=jnp.uint32))
    return jnp.concatenate([key[None], later])


def scenario_stream(key: PRNGKeyArray, name: str, index: UInt32[Array, ""]) -> PRNGKeyArray:
    """The random stream of `name` in the scenario with number `index`."""
    return jax.random.fold_in(jax.random.fold_in(key, stream_number(name)), index)


def chi_square(key: PRNGKeyArray, degrees_of_freedom: Float[Array, ""]) -> Float[Array, ""]:
    """One chi-square draw, degrees of freedom >= 2 (the constructors see to it).

    Rejection from the cube of a normal: G. Marsaglia, W. W. Tsang, "A simple method for generating gamma variables",
    ACM TOMS 26 (2000). More than 95 % of the proposals are accepted, so a tile of scenarios needs few rounds;
    `jax.random.gamma` runs its samples one after another on a CPU.
    """
    shape = degrees_of_freedom / 2.0 - 1.0 / 3.0
    # Not 1 / sqrt: the compiler makes a reciprocal square root of that, whose last bits a folded constant has not.
    spread = jnp.sqrt(1.0 / (9.0 * shape))

    def propose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        attempt, _, _ = state
        uniforms = jax.random.uniform(jax.random.fold_in(key, attempt), (2,), jnp.float64)
        x = math.sqrt(2.0) * lax.erf_inv(2.0 * uniforms[0] - 1.0)
        u = uniforms[1]
        root = 1.0 + rounded(spread * x)
        positive = root > 0.0
        root = jnp.where(positive, root, 1.0)
        v = rounded(rounded(root * root) * root)
        accepted = positive & (uniforms[0] > 0.0) & (jnp.log(u) < 0.5 * x * x + shape * (1.0 - v + jnp.log(v)))
        return attempt + jnp.uint32(1), rounded(2.0 * shape * v), accepted

    start = (jnp.uint32(0), jnp.zeros((), jnp.float64), jnp.zeros((), bool))
    return lax.while_loop(lambda state: ~state[2], propose, start)[1]


def draw_scenarios(
    generator: ScenarioGenerator, key: PRNGKeyArray, first: int | UInt32[Array, ""], count: int
) -> Float[Array, "scenarios factors"]:
    """Shocks [count, factors] of the scenarios `first` .. `first + count - 1`.

    `first` and `count` are multiples of `TILE`; the rows are bitwise the same for every such split of a range. `first`
    may be traced (then it is not checked), `count` is a shape. Pure; may be called inside a jitted function.
    """
    if count <= 0 or count % TILE or (isinstance(first, int) and (first < 0 or first % TILE)):
        raise ConfigurationError(f"scenarios {first} + {count}: expected multiples of {TILE}, the count above 0")
    return _drawn(generator, key, first, count, None)


def draw_paths(
    generator: ScenarioGenerator, key: PRNGKeyArray, first: int | UInt32[Array, ""], count: int, *, steps: int
) -> Float[Array, "scenarios steps factors"]:
    """Log-changes [count, steps, factors] over each step of the paths `first` .. `first + count - 1`.

    Like `draw_scenarios`, which draws the first step of the same paths; so is what is asked of `first` and `count`.
    """
    if count <= 0 or count % TILE or (isinstance(first, int) and (first < 0 or first % TILE)):
        raise ConfigurationError(f"paths {first} + {count}: expected multiples of {TILE}, the count above 0")
    if steps < 1:
        raise ConfigurationError(f"{steps} steps asked of a path; expected at least 1")
    return _drawn(generator, key, first, count, steps)


def scenario_weights(generator: ScenarioGenerator, scenarios: int | None = None) -> Float[Array, " scenarios"]:
    """Weights [padded_count(scenarios)] of the first `scenarios` of a generator: they sum to 1, padding has 0.

    A generator with a scenario set of its own (every date once) takes its own weights and `scenarios` must be None or
    its number; any other needs a number and weighs them equally. Raises ConfigurationError otherwise.
    """
    own = generator.own_weights
    if own is not None:
        if scenarios not in (None, len(own)):
            raise ConfigurationError(f"{scenarios} scenarios asked of a generator that has exactly {len(own)}")
        weights = np.asarray(own)
    elif scenarios is None or scenarios < 1:
        raise ConfigurationError(f"scenarios is {scenarios!r}; expected a positive number")
    else:
        weights = np.full(scenarios, 1.0 / scenarios)
    return float64(np.pad(weights, (0, padded_count(len(weights)) - len(weights))))


def padded_count(scenarios: int) -> int:
    """`scenarios` rounded up to a multiple of `TILE`."""
    return -(-scenarios // TILE) * TILE


def draw_all(generator: ScenarioGenerator, key: PRNGKeyArray, scenarios: int | None = None) -> Scenarios:
    """The whole padded scenario set in one piece, with its weights (see `scenario_weights`)."""
    weights = scenario_weights(generator, scenarios)
    return Scenarios(draw_scenarios(generator, key, 0, len(weights)), weights)


def _drawn(
    generator: ScenarioGenerator, key: PRNGKeyArray, first: int | UInt32[Array, ""], count: int, steps: int | None
) -> Float[Array, "scenarios *steps factors"]:
    tiles, block = count // TILE, _TILES_OF_SHOCKS if steps is None else _TILES_OF_PATHS
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((generator, key, first))):
        # Inside of another program, whose number of scenarios is its own.
        return _draw_tiles(generator, key, jnp.asarray(first, jnp.uint32), jnp.asarray(tiles, jnp.uint32), tiles, steps)
    # A program is told how many tiles of its block to draw, because it takes seconds to compile: numbers of scenarios
    # share it.
    parts = []
    for done in range(0, tiles, block):
        wanted = min(block, tiles - done)
        numbers = jnp.asarray(int(first) + done * TILE, jnp.uint32), jnp.asarray(wanted, jnp.uint32)
        part = _draw_tiles(generator, key, *numbers, block, steps)
        parts.append(part if wanted == block else part[: wanted * TILE])
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


@eqx.filter_jit
def _draw_tiles(
    generator: ScenarioGenerator,
    key: PRNGKeyArray,
    first: UInt32[Array, ""],
    tiles: UInt32[Array, ""],
    block: int,
    steps: int | None,
) -> Float[Array, "scenarios *steps factors"]:
    """`tiles` tiles from scenario `first` on, in an array of `block` tiles."""
    # The barriers and the loop whose bounds the compiler cannot see keep it from folding constants, inlining a single
    # tile or fusing a tile with its surroundings: each of these could round differently in another program.
    figures, structure = eqx.partition(generator, eqx.is_array)
    figures, key, first = lax.optimization_barrier((figures, key, first))
    generator = eqx.combine(figures, structure)

    def draw(index: Array) -> Array:
        return shock(generator, key, index) if steps is None else path(generator, key, index, steps)

    def write_tile(tile: Array, shocks: Array) -> Array:
        indices = first + tile * jnp.uint32(TILE) + jnp.arange(TILE, dtype=jnp.uint32)
        block = jax.vmap(draw)(indices)
        block = lax.optimization_barrier(block)
        return lax.dynamic_update_slice_in_dim(shocks, block, tile * jnp.uint32(TILE), axis=0)

    of_one = (len(generator.factors),) if steps is None else (steps, len(generator.factors))
    start = jnp.zeros((block * TILE, *of_one), jnp.float64)
    last = lax.optimization_barrier(tiles)
    return lax.fori_loop(jnp.uint32(0), last, write_tile, start)


# ---- for the generators ----------------------------------------------------------------------------------------------


def named_streams(key: PRNGKeyArray, names: tuple[str, ...], index: UInt32[Array, ""]) -> PRNGKeyArray:
    """The streams of several names in scenario `index`; in one call, because every separate one costs compile time."""
    numbers = jnp.asarray([stream_number(name) for name in names], dtype=jnp.uint32)
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), index))(numbers)


def standard_normals(streams: PRNGKeyArray) -> Float[Array, " names"]:
    """One standard normal of each stream.

    Rounded, because a normal is a product itself: in a further product the compiler may regroup the factors.
    """
    return rounded(jax.vmap(lambda stream: jax.random.normal(stream, (), jnp.float64))(streams))


def mixture_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the streams of the mixing variables of factors that have one each."""
    return tuple(f"{name} {MIXTURE_STREAM}" for name in names)


def stream_number(name: str) -> np.uint32:
    """What `fold_in` takes for a name."""
    return np.uint32(zlib.crc32(name.encode()))


def checked_factors(factors: Sequence[str], *, reserved: tuple[str, ...]) -> tuple[str, ...]:
    """The factor names, distinct from each other and from the `reserved` stream names, also in their stream numbers."""
    names = tuple(factors)
    if not names:
        raise ConfigurationError("a scenario generator needs at least one factor")
    seen: dict[int, str] = {}
    for name in reserved + names:
        other = seen.setdefault(int(stream_number(name)), name)
        if other == name and (name in reserved) + names.count(name) > 1:
            raise ConfigurationError(f"factor {name} is listed twice")
        if other != name:
            raise ConfigurationError(f"factors {other} and {name} have the same stream number; rename one of them")
    return names


def figure(figures: Mapping[str, float], name: str, what: str) -> float:
    """The finite figure of a factor; ConfigurationError naming it otherwise."""
    if name not in figures:
        raise ConfigurationError(f"{what} has no figure for {name}")
    value = float(figures[name])
    if not math.isfinite(value):
        raise ConfigurationError(f"{what} of {name} is {value}; expected a finite number")
    return value


def require_positive(what: str, value: float) -> None:
    """Raise ConfigurationError unless `value` is finite and above 0."""
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigurationError(f"{what} is {value}; expected a positive number")


def float64(values: object) -> Array:
    """`values` on the device in float64; ConfigurationError when JAX would make float32 of them."""
    # Not `jnp.asarray`, which compiles a program for every shape that it is given.
    array = jax.device_put(np.asarray(values, dtype=np.float64))
    if array.dtype != jnp.float64:
        raise ConfigurationError("scenario generators work in float64: set jax_enable_x64 before building one")
    return array
