"""Filtered historical simulation: volatility times the standardised residuals of past dates, step after step.

The volatility of a factor follows its own recursion along a path: a wide move makes the next day wide. In a step of
another length than the day of the residuals every move is scaled by sqrt(length); a shorter one moves the variance by
that share of the day's step, (length) (omega + (alpha + gamma 1[x < 0]) x^2 + (beta - 1) sigma2), so that a day of many
steps leads as far as one step of a day; a longer one counts as one day.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from ..errors import ConfigurationError
from ..history import FactorHistory
from ..rounding import rounded
from ..scenarios import (
    PegDistribution,
    checked_factors,
    chi_square,
    float64,
    mixture_names,
    named_streams,
    require_positive,
    standard_normals,
    stream_number,
)
from ..tail_scale import TailForecast, conditioned, forecast_of
from ..volatility_filter import VolatilityRecursion

_DATE_STREAM = "date"
_BLOCK_STREAM = "block"
_NO_DATE = -1
_DAYS_TOGETHER = 512


class PathState(NamedTuple):
    """Where a path stands before a step."""

    sigma: Float[Array, " historical"]
    """Volatility of the step."""
    variance: Float[Array, " historical"]
    """Of the recursion, per day, before the floor."""
    date: Int32[Array, ""]
    """Position of the date that the last step replayed; -1 before the first."""


class FilteredHistorical(eqx.Module):
    """Filtered historical simulation: the volatility of the step times the standardised residuals of one past date.

    x_i = sigma_i z_{D,i}: all factors with a history take the same date D, so the dependence is that of the date
    (G. Barone-Adesi, K. Giannopoulos, L. Vosper, "VaR without correlations", 1999). After a step
    sigma2_i' = omega_i + (alpha_i + gamma_i 1[x_i < 0]) x_i^2 + beta_i sigma2_i, and sigma_i is its root or the floor.

    In mode "every_date" scenario s begins with date s, which is the law of one step itself; in mode "draw" D is drawn
    with replacement by `date_weights`. Later steps draw theirs anew in both modes, or go on to the following date
    (after the last one the first) until a block ends: lengths are geometric with mean 1 / `restart` (D. N. Politis,
    J. P. Romano, "The stationary bootstrap", 1994), and a block begins by `date_weights`. Factors without a history are
    parametric and drawn anew in every step: implied volatility by beta r + eta Z on its underlying, pegs by a t law.
    Build it with `filtered_historical`.
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
    """Volatility of the first step, over its length."""
    variance_next: Float[Array, " historical"]
    floor: Float[Array, " historical"]
    """Least volatility, per day."""
    omega: Float[Array, " historical"]
    alpha: Float[Array, " historical"]
    beta: Float[Array, " historical"]
    gamma: Float[Array, " historical"]
    root_step: Float[Array, ""]
    """Square root of the length of a step in days."""
    restart: Float[Array, ""] | None
    """Probability that a step begins a new block; None when every step does."""
    date_weights: Float[Array, " dates"]
    cumulative_weights: Float[Array, " dates"]
    rule_beta: Float[Array, " rules"]
    rule_eta: Float[Array, " rules"]
    peg_scale: Float[Array, " pegs"]
    peg_degrees_of_freedom: Float[Array, " pegs"]

    @property
    def own_weights(self) -> Float[Array, " dates"] | None:
        return self.date_weights if self.mode == "every_date" else None

    def start(self, key: PRNGKeyArray, index: UInt32[Array, ""]) -> PathState:
        """Tomorrow's volatility, and no date yet."""
        return PathState(self.sigma_next, self.variance_next, jnp.int32(_NO_DATE))

    def step(
        self, state: PathState, key: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> tuple[PathState, Float[Array, " factors"]]:
        """The state after one step of scenario `index`, and the log-changes of the factors over it."""
        rules, pegs = len(self.rules), len(self.pegs)
        names = (_DATE_STREAM, *self.rules, *self.pegs, *mixture_names(self.pegs))
        if self.restart is not None:
            names = (*names, _BLOCK_STREAM)
        streams = named_streams(key, names, index)  # in one call: every separate one costs compile time
        date = self._date(state.date, streams[0], streams[-1], index)
        moves = rounded(state.sigma * self.residuals[date])
        parts = [moves]
        if rules + pegs:
            z = standard_normals(streams[1 : 1 + rules + pegs])
        if rules:
            of_underlyings = moves[np.array(self.underlyings)]
            parts.append(rounded(self.rule_beta * of_underlyings) + rounded(self.rule_eta * z[:rules]))
        if pegs:
            mixture = jax.vmap(chi_square)(
                streams[1 + rules + pegs : 1 + rules + 2 * pegs], self.peg_degrees_of_freedom
            )
            parts.append(rounded(self.peg_scale * z[rules:]) * jnp.sqrt(self.peg_degrees_of_freedom / mixture))
        after = self._after(state.variance, moves, date)
        return after, jnp.concatenate(parts)[np.array(self.order)]

    def _after(
        self, variance: Float[Array, " historical"], moves: Float[Array, " historical"], date: Int32[Array, ""]
    ) -> PathState:
        daily = moves / self.root_step
        pull = self.alpha + jnp.where(daily < 0.0, self.gamma, 0.0)
        variance = rounded(self.beta * variance) + rounded(pull * rounded(daily * daily)) + self.omega
        sigma = rounded(self.root_step * jnp.maximum(jnp.sqrt(variance), self.floor))
        return PathState(sigma, variance, date)

    def _date(
        self, previous: Int32[Array, ""], stream: PRNGKeyArray, block: PRNGKeyArray, index: UInt32[Array, ""]
    ) -> Int32[Array, ""]:
        last = self.residuals.shape[0] - 1
        is_first = previous == _NO_DATE
        u = jax.random.uniform(stream, (), jnp.float64)
        date = jnp.minimum(jnp.searchsorted(self.cumulative_weights, u, side="right"), last).astype(jnp.int32)
        if self.restart is not None:
            ends = is_first | (jax.random.uniform(block, (), jnp.float64) < self.restart)
            date = jnp.where(ends, date, jnp.where(previous == last, 0, previous + 1))
        if self.mode == "every_date":  # scenarios beyond the last date are padding and have weight 0
            date = jnp.where(is_first, jnp.minimum(index.astype(jnp.int32), last), date)
        return date


def filtered_historical(
    factors: Sequence[str],
    history: FactorHistory,
    *,
    key: PRNGKeyArray,
    pegs: Mapping[str, PegDistribution] | None = None,
    mode: Literal["every_date", "draw"] = "every_date",
    horizon_days: float = 1.0,
    date_weights: np.ndarray | None = None,
    mean_block_steps: float = 1.0,
    forecasts: Mapping[str, TailForecast] | None = None,
) -> FilteredHistorical:
    """A `FilteredHistorical` over `factors` from a `FactorHistory` and the laws of the pegs.

    Cells that the history lacks (before a listing, across a gap) are filled here, once: a price takes its loading on
    the anchors' residuals of that date plus one of its own residuals, drawn by `fold_in(key, "fill:" + asset, date)`;
    an implied volatility takes beta times its underlying's move of that date plus eta Z. One date therefore has one
    fill under one key, however often it is drawn. A step of `horizon_days` scales every shock by sqrt(horizon_days).
    `date_weights` [dates] default to equal ones and are normalised. `mean_block_steps` (at least 1) is the mean length
    of the blocks of dates along a path; 1 draws every date anew.

    `forecasts` by factor take the place of the history's own volatility of today (see `tail_scale`): a factor has its
    own, or that of the source that it follows; one without keeps the volatility of its history. Raises
    ConfigurationError for a factor that neither the history nor `pegs` covers, whose volatility is not finite, or whose
    forecast is no pair of positive moves.
    """
    pegs = {} if pegs is None else pegs
    forecasts = {} if forecasts is None else forecasts
    if mode not in ("every_date", "draw"):
        raise ConfigurationError(f"mode is {mode!r}; expected 'every_date' or 'draw'")
    names = checked_factors(factors, reserved=(_DATE_STREAM, _BLOCK_STREAM, *mixture_names(tuple(pegs))))
    require_positive("horizon_days", horizon_days)
    if not (math.isfinite(mean_block_steps) and mean_block_steps >= 1.0):
        raise ConfigurationError(f"mean_block_steps is {mean_block_steps!r}; expected a finite number of at least 1")
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
        require_positive(f"daily_std of {name}", law.daily_std)
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
    volatility = np.asarray(float64(history.sigma_next))  # without float64 this is where it is said, not in the draws
    table = _filled_residuals(key, history)
    picked = [history.columns[name] for name in historical]
    residuals = table[:, [column for column, _ in picked]]
    root_horizon = math.sqrt(horizon_days)
    sources_of = np.array([column for column, _ in picked])
    scale = np.array([factor_scale for _, factor_scale in picked])
    weights = _normalised(date_weights, len(residuals))
    sigma = volatility[sources_of] * scale
    variance = history.variance_next[sources_of] * scale**2
    floor = history.floor[sources_of] * scale
    for place, (name, column) in enumerate(zip(historical, sources_of, strict=True)):
        forecast = forecast_of(name, history.sources[column], float(scale[place]), forecasts)
        if forecast is not None:
            residuals[:, place], sigma[place] = conditioned(name, residuals[:, place], weights, forecast)
            variance[place] = sigma[place] ** 2
            floor[place] = min(floor[place], sigma[place])  # a calm forecast holds until the path itself moves
    sigma = sigma * root_horizon
    for name, values in zip(historical, np.stack([sigma, variance, *residuals], axis=1), strict=True):
        if not np.isfinite(values).all():
            raise ConfigurationError(f"history of {name} has a volatility or residual that is not a finite number")
    share = min(horizon_days, 1.0)
    recursions = [
        VolatilityRecursion(share * r.omega, share * r.alpha, 1.0 - share * (1.0 - r.beta), share * r.gamma)
        for r in (history.recursions[column] for column in sources_of)
    ]
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
        residuals=float64(residuals),
        sigma_next=float64(sigma),
        variance_next=float64(variance),
        floor=float64(floor),
        omega=float64([recursion.omega for recursion in recursions] * scale**2),
        alpha=float64([recursion.alpha for recursion in recursions]),
        beta=float64([recursion.beta for recursion in recursions]),
        gamma=float64([recursion.gamma for recursion in recursions]),
        root_step=float64(root_horizon),
        restart=None if mean_block_steps == 1.0 else float64(1.0 / mean_block_steps),
        date_weights=float64(weights),
        cumulative_weights=float64(cumulative / cumulative[-1]),  # a uniform below 1 always finds a date
        rule_beta=float64([history.rules[name].beta for name in rules]),
        rule_eta=float64(root_horizon * np.array([history.rules[name].eta for name in rules])),
        peg_scale=float64(root_horizon * peg_std * np.sqrt((peg_nu - 2.0) / peg_nu)),
        peg_degrees_of_freedom=float64(peg_nu),
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
    numbers = jnp.asarray([stream_number("fill:" + name) for name in history.sources], dtype=jnp.uint32)
    # A day more is no new program; what is drawn for the padded days is not looked at.
    padded = np.pad(days.astype(np.uint32), (0, -len(days) % _DAYS_TOGETHER))
    uniforms, normals = (np.asarray(draw)[: len(days)] for draw in _cell_draws(key, numbers, jax.device_put(padded)))
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
