"""Stochastic scenario generators: a key and a scenario index in, log-changes of the risk factors over the horizon out.

A scenario is a vector over `factors` (ordered names): `price:BTC` is the log-change of an asset's price, `vol:BTC` the
change of the logarithm of an underlying's 30-day implied volatility, `peg:USDC` the log-change of a stablecoin's USD
price relative to today. Everything is float64. Axis words: `factors`, `scenarios`, `dates`.

Randomness is counter-based. The stream of a name in a scenario is `fold_in(fold_in(key, crc32(name)), index)`, so a
draw depends on the key, its name and the scenario index alone: another factor, another chunk or another order changes
nothing. The same bits come from every split of the index range in multiples of `TILE`, because scenarios are always
generated in tiles of exactly `TILE`: the compiled arithmetic of a tile never sees the length of the request. Matrix
products are written as loops over columns: a GEMM changes its rounding with the size of the block.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt32

from .errors import ConfigurationError
from .history import FactorHistory
from .rounding import rounded

TILE = 256
"""Scenarios per tile; requests start and end on multiples of it."""

EIGENVALUE_FLOOR = 1e-8
"""Smallest eigenvalue that the repair of a correlation matrix leaves, as a fraction of the mean eigenvalue."""

LARGEST_REPAIR = 0.1
"""A repair that moves some correlation by more than this is refused: the matrix is wrong, not rounded."""

_SYMMETRY_TOLERANCE = 1e-12
_MIXTURE_STREAM = "chi-square"
_DATE_STREAM = "date"


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
    """What a generator offers: its factor order, the shocks of one scenario, and the law of its own scenario set."""

    @property
    def factors(self) -> tuple[str, ...]: ...

    @property
    def own_weights(self) -> Float[Array, " scenarios"] | None:
        """Weights of the exact scenario set of the generator, or None when any number can be drawn."""

    def shock(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Float[Array, " factors"]: ...


def scenario_stream(key: PRNGKeyArray, name: str, index: UInt32[Array, ""]) -> PRNGKeyArray:
    """The random stream of `name` in the scenario with number `index`."""
    return jax.random.fold_in(jax.random.fold_in(key, _stream_number(name)), index)


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
        return attempt + jnp.uint32(1), 2.0 * shape * v, accepted

    start = (jnp.uint32(0), jnp.zeros((), jnp.float64), jnp.zeros((), bool))
    return lax.while_loop(lambda state: ~state[2], propose, start)[1]


# ---- multivariate t ------------------------------------------------------------------------------------------------


class MultivariateT(eqx.Module):
    """Multivariate Student-t law: x = location + sqrt(W) A Z with W = nu / chi2_nu and A A' the scale matrix.

    All factors share W, so they have their extremes together (tail dependence; S. Demarta, A. J. McNeil, "The t copula
    and related copulas", 2005). Build it with `multivariate_t`; the fields are over the horizon.
    """

    factors: tuple[str, ...] = eqx.field(static=True)
    location: Float[Array, " factors"]
    columns: Float[Array, "factors factors"]
    """Row j is the j-th column of A, lower triangular."""
    degrees_of_freedom: Float[Array, ""]

    @property
    def own_weights(self) -> None:
        return None

    def normals(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Float[Array, " factors"]:
        """The independent standard normal of each factor in scenario `index`."""
        return _normals(_named_streams(key, self.factors, index))

    def shock(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Float[Array, " factors"]:
        """Log-changes of the factors in scenario `index`."""
        streams = _named_streams(key, (*self.factors, _MIXTURE_STREAM), index)
        z = _normals(streams[:-1])
        width = jnp.sqrt(self.degrees_of_freedom / chi_square(streams[-1], self.degrees_of_freedom))

        def add_column(j: Array, total: Array) -> Array:
            return total + rounded(self.columns[j] * z[j])

        mixed = lax.fori_loop(0, len(self.factors), add_column, jnp.zeros(len(self.factors), jnp.float64))
        return self.location + rounded(width * mixed)


def multivariate_t(
    factors: Sequence[str],
    daily_std: Mapping[str, float],
    *,
    correlation: np.ndarray,
    nu: float,
    horizon_days: float = 1.0,
    location: Mapping[str, float] | None = None,
) -> MultivariateT:
    """A `MultivariateT` from daily standard deviations, a correlation matrix [factors, factors] and nu > 2.

    `daily_std` are standard deviations, not scales: the scale matrix is (nu - 2) / nu times the covariance. The
    standard deviation grows with sqrt(horizon_days), the daily `location` (default 0) with horizon_days. A correlation
    matrix that is not positive definite is repaired (`repaired_correlation`). Raises ConfigurationError naming the
    factor otherwise.
    """
    names = _checked_factors(factors, reserved=(_MIXTURE_STREAM,))
    _require_positive("horizon_days", horizon_days)
    if not (math.isfinite(nu) and nu > 2.0):
        raise ConfigurationError(f"nu is {nu!r}; a t law with a standard deviation needs a finite nu above 2")
    std = np.array([_figure(daily_std, name, "daily_std") for name in names])
    for name, value in zip(names, std, strict=True):
        if value <= 0.0:
            raise ConfigurationError(f"daily_std of {name} is {value}; expected a positive number")
    drift = np.zeros(len(names))
    if location is not None:
        drift = np.array([_figure(location, name, "location") for name in names])
    scale = std * math.sqrt((nu - 2.0) / nu * horizon_days)
    root = scale[:, None] * _cholesky(repaired_correlation(names, correlation))
    return MultivariateT(
        factors=names,
        location=_float64(drift * horizon_days),
        columns=_float64(root.T),
        degrees_of_freedom=_float64(nu),
    )


def correlation_matrix(factors: Sequence[str], pairs: Mapping[tuple[str, str], float]) -> np.ndarray:
    """Correlation matrix [factors, factors] from the correlations of unordered pairs; a pair not given is 0.

    Raises ConfigurationError for a pair of one factor, an unknown factor, or a pair given twice with unequal figures.
    """
    position = {name: i for i, name in enumerate(factors)}
    matrix = np.eye(len(position))
    given: dict[frozenset[str], float] = {}
    for (first, second), value in pairs.items():
        for name in (first, second):
            if name not in position:
                raise ConfigurationError(f"correlation of {first} and {second}: {name} is not a factor of this run")
        pair = frozenset((first, second))
        if len(pair) == 1:
            raise ConfigurationError(f"correlation of {first} with itself is 1 and must not be given")
        if given.setdefault(pair, value) != value:
            raise ConfigurationError(f"correlation of {first} and {second} is given twice: {given[pair]} and {value}")
        matrix[position[first], position[second]] = matrix[position[second], position[first]] = value
    return matrix


def repaired_correlation(factors: Sequence[str], correlation: np.ndarray) -> np.ndarray:
    """`correlation` made positive definite: eigenvalues clipped at 1e-8 trace / d, then rescaled to a unit diagonal.

    A matrix whose smallest eigenvalue is above the floor comes back unchanged. Raises ConfigurationError when the
    matrix is no correlation matrix (shape, finite, symmetric, unit diagonal, |rho| <= 1) or when the repair moves an
    entry by more than `LARGEST_REPAIR`; the message names the factors.
    """
    names = tuple(factors)
    count = len(names)
    matrix = np.asarray(correlation, dtype=np.float64)
    if matrix.shape != (count, count):
        raise ConfigurationError(f"correlation has shape {matrix.shape}; {count} factors need ({count}, {count})")
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            value = matrix[i, j]
            where = f"correlation of {first} and {second}"
            if not math.isfinite(value):
                raise ConfigurationError(f"{where} is {value}; expected a finite number")
            if i == j and abs(value - 1.0) > _SYMMETRY_TOLERANCE:
                raise ConfigurationError(f"correlation of {first} with itself is {value}; expected 1")
            if abs(value) > 1.0 + _SYMMETRY_TOLERANCE:
                raise ConfigurationError(f"{where} is {value}; expected a number in [-1, 1]")
            if abs(value - matrix[j, i]) > _SYMMETRY_TOLERANCE:
                raise ConfigurationError(f"{where} is {value} one way and {matrix[j, i]} the other; expected symmetry")
    eigenvalues, vectors = np.linalg.eigh(matrix)
    floor = EIGENVALUE_FLOOR * float(np.trace(matrix)) / count
    if eigenvalues[0] >= floor:
        return matrix
    clipped = (vectors * np.maximum(eigenvalues, floor)) @ vectors.T
    size = np.sqrt(np.diag(clipped))
    repaired = clipped / np.outer(size, size)
    repaired = (repaired + repaired.T) / 2.0
    np.fill_diagonal(repaired, 1.0)
    moved = np.abs(repaired - matrix)
    if moved.max() > LARGEST_REPAIR:
        i, j = divmod(int(moved.argmax()), count)
        raise ConfigurationError(
            f"correlations are inconsistent with each other: the nearest valid matrix has {repaired[i, j]:.3f} "
            f"for {names[i]} and {names[j]} where {matrix[i, j]:.3f} is given"
        )
    return repaired


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    # written out because the bits of the library routine depend on the linear-algebra library and its threads
    root = np.zeros_like(matrix)
    for j in range(len(matrix)):
        below = matrix[j:, j] - (root[j:, :j] * root[j, :j]).sum(axis=1)
        if not below[0] > 0.0:
            raise ConfigurationError(f"correlation matrix is not positive definite at its row {j}")
        root[j:, j] = below / math.sqrt(below[0])
    return root


# ---- filtered historical simulation --------------------------------------------------------------------------------


class FilteredHistorical(eqx.Module):
    """One-step filtered historical simulation: tomorrow's volatility times the standardised residuals of one past date.

    x_i = sigma_next_i z_{D,i}: all factors with a history take the same date D, so the dependence is that of the date
    (G. Barone-Adesi, K. Giannopoulos, L. Vosper, "VaR without correlations", 1999). In mode "every_date" scenario s is
    date s, which is the law itself; in mode "draw" D is drawn with replacement by `date_weights`. Factors without a
    history are parametric and drawn anew in every scenario: implied volatility by beta r + eta Z on its underlying,
    pegs by a t law. Build it with `filtered_historical`.
    """

    factors: tuple[str, ...] = eqx.field(static=True)
    mode: Literal["every_date", "draw"] = eqx.field(static=True)
    historical: tuple[str, ...] = eqx.field(static=True)
    rules: tuple[str, ...] = eqx.field(static=True)
    pegs: tuple[str, ...] = eqx.field(static=True)
    underlyings: tuple[int, ...] = eqx.field(static=True)
    """For each of `rules` the position of its underlying among `historical`."""
    order: tuple[int, ...] = eqx.field(static=True)
    """Positions of `factors` in historical + rules + pegs."""
    residuals: Float[Array, "dates historical"]
    sigma_next: Float[Array, " historical"]
    """Volatility of the next step, over the horizon."""
    date_weights: Float[Array, " dates"]
    cumulative_weights: Float[Array, " dates"]
    rule_beta: Float[Array, " rules"]
    rule_eta: Float[Array, " rules"]
    peg_scale: Float[Array, " pegs"]
    peg_degrees_of_freedom: Float[Array, " pegs"]

    @property
    def own_weights(self) -> Float[Array, " dates"] | None:
        return self.date_weights if self.mode == "every_date" else None

    def date(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Integer[Array, ""]:
        """Position of the date that scenario `index` replays."""
        return self._date(scenario_stream(key, _DATE_STREAM, index), index)

    def shock(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> Float[Array, " factors"]:
        """Log-changes of the factors in scenario `index`."""
        rules, pegs = len(self.rules), len(self.pegs)
        names = (_DATE_STREAM, *self.rules, *self.pegs, *_mixture_names(self.pegs))
        streams = _named_streams(key, names, index)  # in one call: every separate one costs compile time
        parts = [self.sigma_next * self.residuals[self._date(streams[0], index)]]
        if rules + pegs:
            z = _normals(streams[1 : 1 + rules + pegs])
        if rules:
            moves = parts[0][np.array(self.underlyings)]
            parts.append(self.rule_beta * moves + self.rule_eta * z[:rules])
        if pegs:
            mixture = jax.vmap(chi_square)(streams[1 + rules + pegs :], self.peg_degrees_of_freedom)
            parts.append(self.peg_scale * z[rules:] * jnp.sqrt(self.peg_degrees_of_freedom / mixture))
        return jnp.concatenate(parts)[np.array(self.order)]

    def _date(self, stream: PRNGKeyArray, index: UInt32[Array, ""]) -> Integer[Array, ""]:
        last = self.residuals.shape[0] - 1
        if self.mode == "every_date":  # scenarios beyond the last date are padding and have weight 0
            return jnp.minimum(index.astype(jnp.int32), last)
        u = jax.random.uniform(stream, (), jnp.float64)
        return jnp.minimum(jnp.searchsorted(self.cumulative_weights, u, side="right"), last)


def filtered_historical(
    factors: Sequence[str],
    history: FactorHistory,
    *,
    key: PRNGKeyArray,
    pegs: Mapping[str, PegDistribution] | None = None,
    mode: Literal["every_date", "draw"] = "every_date",
    horizon_days: float = 1.0,
    date_weights: np.ndarray | None = None,
) -> FilteredHistorical:
    """A `FilteredHistorical` over `factors` from a `FactorHistory` and the laws of the pegs.

    Cells that the history lacks (before a listing, across a gap) are filled here, once: a price takes its loading on
    the anchors' residuals of that date plus one of its own residuals, drawn by `fold_in(key, "fill:" + asset, date)`;
    an implied volatility takes beta times its underlying's move of that date plus eta Z. One date therefore has one
    fill under one key, however often it is drawn. The horizon scales every shock by sqrt(horizon_days): the step is
    not repeated. `date_weights` [dates] default to equal ones and are normalised. Raises ConfigurationError for a
    factor that neither the history nor `pegs` covers.
    """
    pegs = {} if pegs is None else pegs
    if mode not in ("every_date", "draw"):
        raise ConfigurationError(f"mode is {mode!r}; expected 'every_date' or 'draw'")
    names = _checked_factors(factors, reserved=(_DATE_STREAM, *_mixture_names(tuple(pegs))))
    _require_positive("horizon_days", horizon_days)
    historical = tuple(name for name in names if name in history.columns)
    rules = tuple(name for name in names if name in history.rules)
    peg_names = tuple(name for name in names if name in pegs)
    sources = historical + rules + peg_names
    for name in names:
        if sources.count(name) != 1:
            state = "has no history, volatility rule or peg law" if name not in sources else "is defined twice"
            raise ConfigurationError(f"factor {name} {state}")
    for name in peg_names:
        law = pegs[name]
        _require_positive(f"daily_std of {name}", law.daily_std)
        if not (math.isfinite(law.degrees_of_freedom) and law.degrees_of_freedom > 2.0):
            raise ConfigurationError(f"degrees of freedom of {name} are {law.degrees_of_freedom!r}; expected above 2")
    positions = {name: i for i, name in enumerate(historical)}
    underlyings = []
    for name in rules:
        underlying = history.rules[name].underlying
        if underlying not in positions:
            raise ConfigurationError(f"factor {name} moves with {underlying}, which is not a factor of this run")
        underlyings.append(positions[underlying])

    if not historical:
        raise ConfigurationError("no factor of this run has a history; use the multivariate t generator")
    table = _filled_residuals(key, history)
    picked = [history.columns[name] for name in historical]
    residuals = table[:, [column for column, _ in picked]]
    root_horizon = math.sqrt(horizon_days)
    sigma = np.array([history.sigma_next[column] * scale for column, scale in picked]) * root_horizon
    weights = _normalised(date_weights, len(residuals))
    cumulative = np.cumsum(weights)
    peg_nu = np.array([pegs[name].degrees_of_freedom for name in peg_names])
    peg_std = np.array([pegs[name].daily_std for name in peg_names])
    return FilteredHistorical(
        factors=names,
        mode=mode,
        historical=historical,
        rules=rules,
        pegs=peg_names,
        underlyings=tuple(underlyings),
        order=tuple(sources.index(name) for name in names),
        residuals=_float64(residuals),
        sigma_next=_float64(sigma),
        date_weights=_float64(weights),
        cumulative_weights=_float64(cumulative / cumulative[-1]),  # a uniform below 1 always finds a date
        rule_beta=_float64([history.rules[name].beta for name in rules]),
        rule_eta=_float64(root_horizon * np.array([history.rules[name].eta for name in rules])),
        peg_scale=_float64(root_horizon * peg_std * np.sqrt((peg_nu - 2.0) / peg_nu)),
        peg_degrees_of_freedom=_float64(peg_nu),
    )


def _filled_residuals(key: PRNGKeyArray, history: FactorHistory) -> np.ndarray:
    """The residual table [dates, columns] of a history with every missing cell filled; host arrays."""
    table = history.residuals.copy()
    missing = np.isnan(table)
    if not missing.any():
        return table
    days = history.dates.astype("datetime64[D]").astype(np.int64)
    if days[0] < 0:
        raise ConfigurationError(f"history starts on {history.dates[0]}; dates before 1970 have no stream")
    numbers = jnp.asarray([_stream_number("fill:" + name) for name in history.sources], dtype=jnp.uint32)
    uniforms, normals = (np.asarray(draw) for draw in _cell_draws(key, numbers, jnp.asarray(days, dtype=jnp.uint32)))
    # prices first: the fill of an implied volatility needs the move of its underlying
    for column, name in enumerate(history.sources):
        gaps = missing[:, column]
        if not gaps.any() or name in history.fill_rules:
            continue
        own = history.own_residuals[column]
        drawn = own[np.minimum((uniforms[gaps, column] * len(own)).astype(np.int64), len(own) - 1)]
        loaded = np.zeros(len(drawn))
        for anchor, loading in enumerate(history.loadings[column]):
            loaded = loaded + loading * history.anchor_residuals[gaps, anchor]
        table[gaps, column] = loaded + drawn
    for column, name in enumerate(history.sources):
        gaps = missing[:, column]
        if not gaps.any() or name not in history.fill_rules:
            continue
        rule = history.fill_rules[name]
        underlying, scale = history.columns[rule.underlying]
        move = history.sigma_next[underlying] * scale * table[gaps, underlying]
        change = rule.beta * move + rule.eta * normals[gaps, column]
        table[gaps, column] = change / history.sigma_next[column]
    return table


@jax.jit
def _cell_draws(
    key: PRNGKeyArray, stream_numbers: UInt32[Array, " columns"], days: UInt32[Array, " dates"]
) -> tuple[Float[Array, "dates columns"], Float[Array, "dates columns"]]:
    def cell(day: Array, number: Array) -> tuple[Array, Array]:
        uniform_key, normal_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, number), day))
        return jax.random.uniform(uniform_key, (), jnp.float64), jax.random.normal(normal_key, (), jnp.float64)

    return jax.vmap(lambda day: jax.vmap(lambda number: cell(day, number))(stream_numbers))(days)


# ---- drawing -------------------------------------------------------------------------------------------------------


def draw_scenarios(
    generator: ScenarioGenerator, key: PRNGKeyArray, first: int | UInt32[Array, ""], count: int
) -> Float[Array, "scenarios factors"]:
    """Shocks [count, factors] of the scenarios `first` .. `first + count - 1`.

    `first` and `count` are multiples of `TILE`; the rows are bitwise the same for every such split of a range. `first`
    may be traced (then it is not checked), `count` is a shape. Pure; may be called inside a jitted function.
    """
    if count <= 0 or count % TILE or (isinstance(first, int) and (first < 0 or first % TILE)):
        raise ConfigurationError(f"scenarios {first} + {count}: expected multiples of {TILE}, the count above 0")
    return _draw_tiles(generator, key, jnp.asarray(first, dtype=jnp.uint32), count // TILE)


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
    return _float64(np.pad(weights, (0, padded_count(len(weights)) - len(weights))))


def padded_count(scenarios: int) -> int:
    """`scenarios` rounded up to a multiple of `TILE`."""
    return -(-scenarios // TILE) * TILE


def draw_all(generator: ScenarioGenerator, key: PRNGKeyArray, scenarios: int | None = None) -> Scenarios:
    """The whole padded scenario set in one piece, with its weights (see `scenario_weights`)."""
    weights = scenario_weights(generator, scenarios)
    return Scenarios(draw_scenarios(generator, key, 0, len(weights)), weights)


@eqx.filter_jit
def _draw_tiles(
    generator: ScenarioGenerator, key: PRNGKeyArray, first: UInt32[Array, ""], tiles: int
) -> Float[Array, "scenarios factors"]:
    # The barriers and the loop whose bounds the compiler cannot see keep it from folding constants, inlining a single
    # tile or fusing a tile with its surroundings: each of these could round differently in another program.
    figures, structure = eqx.partition(generator, eqx.is_array)
    figures, key, first = lax.optimization_barrier((figures, key, first))
    generator = eqx.combine(figures, structure)

    def write_tile(tile: Array, shocks: Array) -> Array:
        indices = first + tile * jnp.uint32(TILE) + jnp.arange(TILE, dtype=jnp.uint32)
        block = jax.vmap(generator.shock, in_axes=(None, 0))(key, indices)
        block = lax.optimization_barrier(block)
        return lax.dynamic_update_slice_in_dim(shocks, block, tile * jnp.uint32(TILE), axis=0)

    start = jnp.zeros((tiles * TILE, len(generator.factors)), jnp.float64)
    last = lax.optimization_barrier(jnp.uint32(tiles))
    return lax.fori_loop(jnp.uint32(0), last, write_tile, start)


def _named_streams(key: PRNGKeyArray, names: tuple[str, ...], index: UInt32[Array, ""]) -> PRNGKeyArray:
    numbers = jnp.asarray([_stream_number(name) for name in names], dtype=jnp.uint32)
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), index))(numbers)


def _normals(streams: PRNGKeyArray) -> Float[Array, " names"]:
    return jax.vmap(lambda stream: jax.random.normal(stream, (), jnp.float64))(streams)


def _mixture_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name} {_MIXTURE_STREAM}" for name in names)


def _stream_number(name: str) -> np.uint32:
    return np.uint32(zlib.crc32(name.encode()))


def _checked_factors(factors: Sequence[str], *, reserved: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(factors)
    if not names:
        raise ConfigurationError("a scenario generator needs at least one factor")
    seen: dict[int, str] = {}
    for name in reserved + names:
        other = seen.setdefault(int(_stream_number(name)), name)
        if other == name and (name in reserved) + names.count(name) > 1:
            raise ConfigurationError(f"factor {name} is listed twice")
        if other != name:
            raise ConfigurationError(f"factors {other} and {name} have the same stream number; rename one of them")
    return names


def _figure(figures: Mapping[str, float], name: str, what: str) -> float:
    if name not in figures:
        raise ConfigurationError(f"{what} has no figure for {name}")
    value = float(figures[name])
    if not math.isfinite(value):
        raise ConfigurationError(f"{what} of {name} is {value}; expected a finite number")
    return value


def _require_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigurationError(f"{what} is {value}; expected a positive number")


def _normalised(weights: np.ndarray | None, dates: int) -> np.ndarray:
    if weights is None:
        return np.full(dates, 1.0 / dates)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (dates,):
        raise ConfigurationError(f"date_weights has shape {values.shape}; the history has {dates} dates")
    total = math.fsum(values) if np.isfinite(values).all() else math.nan
    if not total > 0.0 or (values < 0.0).any():
        raise ConfigurationError("date_weights must be finite and non-negative with a positive sum")
    return values / total


def _float64(values: object) -> Array:
    array = jnp.asarray(np.asarray(values, dtype=np.float64))
    if array.dtype != jnp.float64:
        raise ConfigurationError("scenario generators work in float64: set jax_enable_x64 before building one")
    return array
