"""Every portfolio along paths of several steps: when each account is liquidated first, and the funding paid on the way.

A path is a scenario of several steps: moves add up over them, options lose time, and after every step the venue judges
the account by its own rules. Liquidation is absorbing: the first verdict counts, whatever the later steps bring back.
Time is discrete, so what happens and passes between two steps is not seen.

Paths outside in chunks of one tile, portfolios inside: rows are priced once per chunk and step for all portfolios, and
of a portfolio only sums of weights by step are kept. Which device computes one and how many share its bucket changes no
bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .batch import PortfolioArrays, bucketed
from .config import TILE
from .cube import TERMS, CubeRows, Exponents
from .cube_prices import rows_today
from .engine import map_bucket, native_of_bucket
from .margin import (
    NativeMargin,
    ScenarioMargin,
    accumulate,
    is_liquidated,
    liquidated,
    scenario_margin,
)
from .market import combined
from .node_scenarios import NEVER, NodeRows, NodeRules, NodeScenarios, NodeStep, node_rows, node_step, without_padding
from .path_views import seen_moves
from .policy import Requirement
from .portfolio import PackedPortfolio
from .risk import tile_sum
from .rounding import rounded
from .scenarios import ScenarioGenerator, draw_paths, scenario_weights, stream_number
from .unit_batch import column, rounded_up

_HOURS_PER_DAY, _DAYS_PER_YEAR = 24.0, 365.0


class PathLaw(NamedTuple):
    """The paths of a run: `generator` built for `step_days`, how many paths (None: its own set) of how many steps."""

    generator: ScenarioGenerator
    seed: int
    scenarios: int | None
    steps: int
    step_days: float

    @property
    def step_hours(self) -> float:
        return self.step_days * _HOURS_PER_DAY


class PathFigures(NamedTuple):
    """One portfolio along the paths, NumPy; accounts without padding. Entry k of the last axis is after k steps.

    `passage` is the probability that the venue liquidates the account after that step and not before; entry 0 stands
    for an account that is liquidatable today. `passage_any` is that of the first of all accounts. `last` is the
    probability of a verdict after the last step, whatever came before. `funding_paid` is the expected funding in the
    account's unit until liquidation, negative where it is received.
    """

    passage: Float[np.ndarray, "accounts passages"]
    passage_any: Float[np.ndarray, " passages"]
    last: Float[np.ndarray, " accounts"]
    funding_paid: Float[np.ndarray, " accounts"]
    account_is_finite: Bool[np.ndarray, " accounts"]
    step_hours: float
    nodes: NodeScenarios | None = None
    """Every node on every path, where it was asked for."""


class FundedLeg(NamedTuple):
    """One perpetual: what it pays an hour at today's price and rate, in the account's unit, and what moves that."""

    account: int
    per_hour: float
    exponents: Exponents
    notional: float = 0.0
    """In the account's unit, signed; 0 where the rate stays at today's."""
    price: str = ""
    """Price factor whose law of funding the rate follows."""


def funded_legs(
    portfolio: PackedPortfolio,
    rows: CubeRows,
    factors: Sequence[str],
    policy: Requirement,
    units: Mapping[str, Exponents],
) -> list[FundedLeg]:
    """Perpetuals with a funding rate. `units` are the factors that move each account's unit in USD, by account id.

    A venue states its rate for `policy.venue(...).funding_hours`; on the path it changes as the rate of its underlying
    does under the law of funding, and stays at today's without one. The notional moves with the path. A perpetual
    without a stated rate pays nothing here (its account says so: see `path_results`).
    """
    exponent_factor, exponent_weight = np.asarray(rows.exponent_factor), np.asarray(rows.exponent_weight)
    number = {info.account_id: at for at, info in enumerate(portfolio.accounts)}
    # The first leg of a position is its value, the cash that its entry left behind follows.
    value_row: dict[int, int] = {}
    for of_line, row, _ in portfolio.legs:
        value_row.setdefault(of_line, row)
    out = []
    for at, line in enumerate(portfolio.lines):
        if line.funding_rate is None:
            continue
        account = number[line.account_id]
        row = value_row[at]
        powers = {
            factors[f]: float(w) for f, w in zip(exponent_factor[row], exponent_weight[row], strict=True) if w != 0.0
        }
        exponents = combined((powers, 1.0), (units[line.account_id], -1.0))
        amount = line.value_usd / portfolio.accounts[account].unit_price_usd
        per_hour = amount * line.funding_rate / policy.venue(line.venue).funding_hours
        price = next((name for name in powers if name.startswith("price:")), "")
        moved_by = {name: power for name, power in exponents.items() if power}
        out.append(FundedLeg(account, per_hour, moved_by, amount if price else 0.0, price))
    return out


class _FundingArrays(eqx.Module):
    """Funded legs of one portfolio (a bucket has a leading axis), padded with legs that pay nothing."""

    account: Int[Array, " D"]
    per_hour: Float[Array, " D"]
    notional: Float[Array, " D"]
    """0 for a leg whose rate stays at today's."""
    price: Int[Array, " D"]
    factor: Int[Array, "D terms"]
    weight: Float[Array, "D terms"]


class _Member(NamedTuple):
    rows: PortfolioArrays
    native: NativeMargin
    funding: _FundingArrays
    nodes: NodeRows | None


class _Chunk(eqx.Module):
    """One tile of paths: moves since today and changes of all rows after every step."""

    rows: CubeRows
    today: Float[Array, " rows"]
    shocks: Float[Array, "steps scenarios factors"]
    change: Float[Array, "steps rows scenarios"]
    funding: Float[Array, "steps scenarios factors"]
    """Paid in each step beyond today's rate, a fraction of the notional: see `path_views`."""
    elapsed_years: Float[Array, " steps"]
    step_hours: Float[Array, ""]
    weights: Float[Array, " scenarios"]


class _Sums(NamedTuple):
    """Weights of one tile of paths by what happens in them, and weighted sums."""

    passage: Float[Array, "A passages"]
    passage_any: Float[Array, " passages"]
    last: Float[Array, " A"]
    funding: Float[Array, " A"]
    mass: Float[Array, ""]


class _NodeWalk(NamedTuple):
    """Nodes between two steps: smallest figures so far, first steps of liquidation and warning."""

    surplus: Float[Array, "N scenarios"]
    withdrawable: Float[Array, "N scenarios"]
    passage: Int[Array, "N scenarios"]
    warned: Int[Array, " scenarios"]


class _Walk(NamedTuple):
    """State between two steps."""

    first: Int[Array, "A scenarios"]
    paid: Float[Array, "A scenarios"]
    gone: Bool[Array, "A scenarios"]
    is_finite: Bool[Array, " A"]
    nodes: _NodeWalk | None


def path_figures(
    portfolios: Sequence[PackedPortfolio],
    factors: Sequence[str],
    rows: CubeRows,
    law: PathLaw,
    funding: Sequence[Sequence[FundedLeg]],
    *,
    devices: int = 1,
    nodes: NodeRules | None = None,
) -> list[PathFigures | None]:
    """Figures of every portfolio along the paths of `law`, None where it has no complete account.

    `rows` is the cube over `factors`, which are those of the law; `funding` has the funded legs of every portfolio.
    With `nodes` every node's scenarios are kept as well: 4 bytes for each portfolio, node, path and step.
    """
    weights = scenario_weights(law.generator, law.scenarios)
    # Streams of their own: paths are not the run's scenarios over again, but further evidence beside them.
    key = jax.random.fold_in(jax.random.key(law.seed), stream_number("paths"))
    elapsed = jnp.arange(1, law.steps + 1, dtype=jnp.float64) * (law.step_days / _DAYS_PER_YEAR)
    today = rows_today(rows)
    buckets = bucketed(portfolios, factors, multiple=devices)
    members = [
        _Member(
            bucket.arrays,
            native_of_bucket(bucket.arrays, rows, factors=len(factors), devices=devices, count=len(bucket.members)),
            _funding_arrays([funding[at] for at in bucket.members], len(bucket.arrays.trigger), factors),
            None if nodes is None else node_rows(bucket, portfolios, factors, nodes),
        )
        for bucket in buckets
    ]
    totals: list[Any] = [None] * len(buckets)
    traces: list[list[Any]] = [[] for _ in buckets]
    for first in range(0, weights.shape[0], TILE):
        drawn = draw_paths(law.generator, key, first, TILE, steps=law.steps)
        seen = seen_moves(law.generator, factors, drawn)
        shocks, change = priced_steps(rows, seen.moves, elapsed)
        chunk = _Chunk(
            rows=rows,
            today=today,
            shocks=shocks,
            change=change,
            funding=jnp.moveaxis(seen.funding, 1, 0),
            elapsed_years=elapsed,
            step_hours=jnp.asarray(law.step_hours, jnp.float64),
            weights=weights[first : first + TILE],
        )
        for number, (bucket, member) in enumerate(zip(buckets, members, strict=True)):
            *found, trace = jax.device_get(map_bucket(member, chunk, _walk, devices, len(bucket.members)))
            traces[number].append(trace)
            totals[number] = found if totals[number] is None else _added(totals[number], found)
    out: list[PathFigures | None] = [None] * len(portfolios)
    for bucket, (sums, is_finite), of_tiles in zip(buckets, totals, traces, strict=True):
        of_nodes = None if nodes is None else jax.tree.map(lambda *t: np.concatenate(t, axis=-1), *of_tiles)
        for place, position in enumerate(bucket.members):
            count = len(portfolios[position].accounts)
            mass = sums.mass[place]
            out[position] = PathFigures(
                passage=sums.passage[place, :count] / mass,
                passage_any=sums.passage_any[place] / mass,
                last=sums.last[place, :count] / mass,
                funding_paid=sums.funding[place, :count] / mass,
                account_is_finite=np.asarray(is_finite[place, :count]),
                step_hours=law.step_hours,
                nodes=None if of_nodes is None else without_padding(of_nodes, place, len(portfolios[position].nodes)),
            )
    return out


def _added(total: Any, more: Any) -> tuple[_Sums, np.ndarray]:
    return _Sums(*(a + b for a, b in zip(total[0], more[0], strict=True))), total[1] & more[1]


def _funding_arrays(legs: Sequence[Sequence[FundedLeg]], count: int, factors: Sequence[str]) -> _FundingArrays:
    """Arrays (NumPy) of a bucket of `count` portfolios, the last ones padding."""
    size = rounded_up(max(1, *(len(of_one) for of_one in legs)))
    index = {name: number for number, name in enumerate(factors)}
    factor, weight = np.zeros((count, size, TERMS), np.int32), np.zeros((count, size, TERMS))
    padded = [*legs, *[[]] * (count - len(legs))]
    for portfolio, of_one in enumerate(padded):
        for number, leg in enumerate(of_one):
            for term, (name, power) in enumerate(sorted(leg.exponents.items())):
                factor[portfolio, number, term], weight[portfolio, number, term] = index[name], power
    account: Any = np.stack([column([leg.account for leg in of_one], size, np.int32) for of_one in padded])
    per_hour: Any = np.stack([column([leg.per_hour for leg in of_one], size, np.float64) for of_one in padded])
    # Any: host arrays stand where the module declares device arrays.
    tables: Any = (factor, weight)
    notional: Any = np.stack([column([leg.notional for leg in of_one], size, np.float64) for of_one in padded])
    price: Any = np.stack([column([index.get(leg.price, 0) for leg in of_one], size, np.int32) for of_one in padded])
    return _FundingArrays(account, per_hour, notional, price, *tables)


@jax.jit
def priced_steps(
    rows: CubeRows, moves: Float[Array, "scenarios steps factors"], elapsed_years: Float[Array, " steps"]
) -> tuple[Float[Array, "steps scenarios factors"], Float[Array, "steps rows scenarios"]]:
    """Moves since today and changes of all rows after every step of one tile of paths."""

    def advance(total: Array, step: tuple[Array, Any]) -> tuple[Array, tuple[Array, Array]]:
        move, years = step
        total = total + move
        return total, (total, rows.changes_in_tile(total, horizon_years=years))

    start = jnp.zeros((moves.shape[0], moves.shape[2]), jnp.float64)
    return lax.scan(advance, start, (jnp.moveaxis(moves, 1, 0), elapsed_years))[1]


def _walk(member: _Member, chunk: _Chunk) -> tuple[_Sums, Bool[Array, " A"], NodeScenarios | None]:
    """One portfolio along one tile of paths, whether each account's figures are finite all the way, and its nodes."""
    portfolio, native, funding, nodes = member
    accounts, scenarios = portfolio.trigger.shape[0], chunk.weights.shape[0]
    real = chunk.weights > 0
    today = portfolio.account_is_real & is_liquidated(
        native.equity,
        native.maintenance,
        trigger=portfolio.trigger,
        at_or_below=portfolio.at_or_below,
        needs_requirement=portfolio.needs_requirement,
    )

    def advance(walk: _Walk, step: tuple[Array, Array, Array, Array, Any]) -> tuple[_Walk, Array | None]:
        number, shocks, change, beyond, years = step
        margin = scenario_margin(portfolio, chunk.today, change, shocks, chunk.rows, horizon_years=years)
        alive = walk.first == NEVER
        due = _funding_due(funding, shocks, beyond, chunk.step_hours, accounts)
        paid = walk.paid + jnp.where(alive, due, 0.0)
        margin = margin._replace(equity=margin.equity - paid)
        gone = liquidated(portfolio, margin)
        # Counted here because a comparison with NaN is a verdict of "not liquidated" that nobody would notice.
        finite = jnp.isfinite(margin.equity) & jnp.isfinite(margin.maintenance) & jnp.isfinite(paid)
        is_finite = walk.is_finite & jnp.all(finite | ~real[None, :], axis=1)
        first = jnp.where(alive & gone, number, walk.first)
        if nodes is None or walk.nodes is None:
            return _Walk(first, paid, gone, is_finite, None), None
        of_nodes = node_step(portfolio, nodes, margin, shocks, change)
        return _Walk(first, paid, gone, is_finite, _later(walk.nodes, of_nodes, number)), of_nodes.loss.astype(
            jnp.float32
        )

    nobody = jnp.zeros((accounts, scenarios), bool)
    start = _Walk(
        first=jnp.where(today[:, None] | nobody, 0, NEVER).astype(jnp.int32),
        paid=jnp.zeros((accounts, scenarios), jnp.float64),
        gone=nobody,
        is_finite=jnp.isfinite(native.equity) & jnp.isfinite(native.maintenance),
        nodes=None if nodes is None else _nodes_today(portfolio, nodes, native, chunk),
    )
    numbers = jnp.arange(1, chunk.change.shape[0] + 1, dtype=jnp.int32)
    end, losses = lax.scan(advance, start, (numbers, chunk.shocks, chunk.change, chunk.funding, chunk.elapsed_years))
    passages = jnp.arange(chunk.change.shape[0] + 1, dtype=jnp.int32)
    first_any = jnp.min(end.first, axis=0)
    sums = _Sums(
        passage=_mass(end.first[:, None, :] == passages[None, :, None], chunk.weights),
        passage_any=_mass(first_any[None, :] == passages[:, None], chunk.weights),
        last=_mass(end.gone, chunk.weights),
        funding=tile_sum(chunk.weights[None, :] * jnp.where(real[None, :], end.paid, 0.0)),
        mass=tile_sum(chunk.weights),
    )
    if end.nodes is None or losses is None:
        return sums, end.is_finite, None
    trace = NodeScenarios(
        losses=jnp.moveaxis(losses, 0, 1),
        surplus=end.nodes.surplus.astype(jnp.float32),
        withdrawable=end.nodes.withdrawable.astype(jnp.float32),
        passage=end.nodes.passage,
        warned=end.nodes.warned,
    )
    return sums, end.is_finite, trace


def _nodes_today(portfolio: PortfolioArrays, nodes: NodeRows, native: NativeMargin, chunk: _Chunk) -> _NodeWalk:
    """Nodes before the first step, the same on every path."""
    factors, scenarios = chunk.shocks.shape[2], chunk.weights.shape[0]
    margin = ScenarioMargin(native.equity[:, None], native.maintenance[:, None])
    unmoved = jnp.zeros((chunk.today.shape[0], 1), chunk.change.dtype)
    step = node_step(portfolio, nodes, margin, jnp.zeros((1, factors), jnp.float64), unmoved)
    never = _NodeWalk(
        surplus=jnp.full(step.surplus.shape, jnp.inf),
        withdrawable=jnp.full(step.surplus.shape, jnp.inf),
        passage=jnp.full(step.surplus.shape, NEVER, jnp.int32),
        warned=jnp.full(1, NEVER, jnp.int32),
    )
    today = _later(never, step, jnp.zeros((), jnp.int32))
    return _NodeWalk(*(jnp.broadcast_to(values, (*values.shape[:-1], scenarios)) for values in today))


def _later(walk: _NodeWalk, step: NodeStep, number: Array) -> _NodeWalk:
    return _NodeWalk(
        surplus=jnp.minimum(walk.surplus, step.surplus),
        withdrawable=jnp.minimum(walk.withdrawable, step.withdrawable),
        passage=jnp.where((walk.passage == NEVER) & step.gone, number, walk.passage),
        warned=jnp.where((walk.warned == NEVER) & step.warned, number, walk.warned),
    )


def _mass(events: Bool[Array, "*rows scenarios"], weights: Float[Array, " scenarios"]) -> Float[Array, "*rows"]:
    return tile_sum(jnp.where(events, weights.reshape((1,) * (events.ndim - 1) + weights.shape), 0.0))


def _funding_due(
    funding: _FundingArrays,
    shocks: Float[Array, "scenarios factors"],
    paid: Float[Array, "scenarios factors"],
    hours: Float[Array, ""],
    accounts: int,
) -> Float[Array, "A scenarios"]:
    """Funding of one step by account, in its unit, on the notional at the end of the step."""

    def due(leg: Array) -> Array:
        power = rounded(funding.weight[leg, 0] * shocks[:, funding.factor[leg, 0]])
        for term in range(1, TERMS):
            power = power + rounded(funding.weight[leg, term] * shocks[:, funding.factor[leg, term]])
        today = rounded(funding.per_hour[leg] * hours)
        beyond = rounded(funding.notional[leg] * paid[:, funding.price[leg]])
        return rounded((today + beyond) * jnp.exp(power))

    return accumulate(funding.account, due, jnp.zeros((accounts, shocks.shape[0]), jnp.float64))
