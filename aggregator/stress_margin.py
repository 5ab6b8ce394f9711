"""What the named stresses do to every portfolio: losses by node, and which accounts are liquidated or end below zero.

Losses are taken at the market's prices. The triggers of a venue may read others: its own wrong marks, or the prices of
before. Every such view is a column of one small cube; lines read the market's, an account that of its venue's triggers.
Moves are instantaneous: no time passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .batch import Bucket, PortfolioArrays
from .cube import CubeRows
from .margin import accumulate, is_liquidated, line_changes, scenario_margin
from .policy import Requirement
from .portfolio import PackedPortfolio
from .rounding import rounded
from .stress import Stress, StressLibrary, stress_moves
from .unit_batch import column


class StressArrays(eqx.Module):
    """One portfolio (a bucket has a leading axis), USD; venues are numbers of the run's list of venues."""

    account_venue: Int[Array, " A"]
    node_venue: Int[Array, " N"]
    node_equity: Float[Array, " N"]
    node_perpetuals: Float[Array, " N"]
    """Signed notional of the perpetuals: what funding is paid on."""
    node_loss_given_default: Float[Array, " N"]


class StressCube(eqx.Module):
    """The views of all stresses over the cube's rows; K stresses, C views (padded to whole tiles), V venues."""

    change: Float[Array, "rows C"]
    shocks: Float[Array, "C factors"]
    market_view: Int[Array, " K"]
    trigger_view: Int[Array, "V K"]
    funding: Float[Array, " K"]
    fails: Bool[Array, "V K"]
    binding: Bool[Array, " K"]


class StressFigures(NamedTuple):
    """One portfolio under every stress. Losses in USD: of the prices, and with funding and failures of venues."""

    node_price_loss: Float[Array, "N K"]
    node_loss: Float[Array, "N K"]
    line_loss: Float[Array, "L K"]
    liquidated: Bool[Array, "A K"]
    insolvent: Bool[Array, "A K"]
    """Whether the account's equity, as the venue counts it, ends below zero."""


def stress_arrays(
    bucket: Bucket, portfolios: Sequence[PackedPortfolio], venues: Sequence[str], policy: Requirement
) -> StressArrays:
    """The arrays (NumPy) of a bucket; `portfolios` is the sequence that its members refer to."""
    count, accounts = bucket.arrays.trigger.shape
    nodes = bucket.arrays.node_is_real.shape[1]
    number = {venue: at for at, venue in enumerate(venues)}

    def arrays(portfolio: PackedPortfolio) -> StressArrays:
        equity: list[list[float]] = [[] for _ in portfolio.nodes]
        perpetuals: list[list[float]] = [[] for _ in portfolio.nodes]
        for line, node, value in zip(portfolio.lines, portfolio.line_node, portfolio.line_equity, strict=True):
            equity[node].append(value)
            if line.funding_rate is not None:
                perpetuals[node].append(line.value_usd)
        losses = [policy.venue(venue).loss_given_default for _, venue in portfolio.nodes]
        return StressArrays(
            account_venue=column([number[info.venue] for info in portfolio.accounts], accounts, np.int32),
            node_venue=column([number[venue] for _, venue in portfolio.nodes], nodes, np.int32),
            node_equity=column([math.fsum(values) for values in equity], nodes, np.float64),
            node_perpetuals=column([math.fsum(values) for values in perpetuals], nodes, np.float64),
            node_loss_given_default=column(losses, nodes, np.float64),
        )

    members = [arrays(portfolios[position]) for position in bucket.members]
    members += [arrays(PackedPortfolio(""))] * (count - len(members))
    stacked: StressArrays = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    return stacked


class StressViews(NamedTuple):
    """Host side of a `StressCube`: the distinct log-moves [C, factors] and which venue reads which under a stress."""

    shocks: np.ndarray
    market_view: np.ndarray
    trigger_view: np.ndarray


def stress_views(
    library: StressLibrary, names: Sequence[str], factors: Sequence[str], venues: Sequence[str], *, tile: int
) -> StressViews:
    """Views of the stresses `names` over `factors`; their number is padded with zeros to a multiple of `tile`."""
    found: dict[bytes, int] = {}
    shocks: list[np.ndarray] = []

    def view(moves: np.ndarray) -> int:
        key = moves.tobytes()
        if key not in found:
            found[key] = len(shocks)
            shocks.append(moves)
        return found[key]

    market = np.zeros(len(names), np.int32)
    triggers = np.zeros((len(venues), len(names)), np.int32)
    for k, name in enumerate(names):
        moves = stress_moves(library.parts(name), factors, venues)
        market[k] = view(moves.market)
        for v, venue in enumerate(venues):
            triggers[v, k] = view(moves.triggers.get(venue, moves.marks.get(venue, moves.market)))
    table = np.array(shocks).reshape(-1, len(factors))
    missing = -len(table) % tile if len(table) else tile
    return StressViews(np.pad(table, ((0, missing), (0, 0))), market, triggers)


def stress_cube(
    library: StressLibrary,
    names: Sequence[str],
    views: StressViews,
    change: Float[Array, "rows C"],
    venues: Sequence[str],
) -> StressCube:
    """The cube of the views, priced (`change`), with what else happens under each stress."""
    parts: Mapping[str, Sequence[Stress]] = {name: library.parts(name) for name in names}
    fails = [[any(_fails(part, venue) for part in parts[name]) for name in names] for venue in venues]
    return StressCube(
        change=change,
        shocks=jnp.asarray(views.shocks),
        market_view=jnp.asarray(views.market_view),
        trigger_view=jnp.asarray(views.trigger_view),
        funding=jnp.asarray([math.fsum(part.funding for part in parts[name]) for name in names], jnp.float64),
        fails=jnp.asarray(np.array(fails, bool).reshape(len(venues), len(names))),
        binding=jnp.asarray([library.stress[name].binding for name in names], bool),
    )


def _fails(stress: Stress, venue: str) -> bool:
    return venue in stress.venues and stress.venues[venue].fails


def stress_figures(
    portfolio: PortfolioArrays, stress: StressArrays, cube: StressCube, rows: CubeRows, today: Float[Array, " rows"]
) -> StressFigures:
    """One portfolio under every stress."""
    losses = -line_changes(portfolio, cube.change)
    line_loss = losses[:, cube.market_view].astype(jnp.float64)
    nodes, count = portfolio.node_is_real.shape[0], cube.funding.shape[0]
    price_loss = accumulate(portfolio.line_node, lambda n: line_loss[n], jnp.zeros((nodes, count), jnp.float64))
    funding = rounded(stress.node_perpetuals[:, None] * cube.funding[None, :])
    left = jnp.maximum(stress.node_equity[:, None] - price_loss - funding, 0.0)
    lost = jnp.where(cube.fails[stress.node_venue], rounded(stress.node_loss_given_default[:, None] * left), 0.0)
    margin = scenario_margin(portfolio, today, cube.change, cube.shocks, rows, horizon_years=0.0)

    def seen(values: Float[Array, "A C"]) -> Float[Array, "A K"]:
        """What the triggers of each account's venue see."""
        return jnp.take_along_axis(values, cube.trigger_view[stress.account_venue], axis=1)

    verdict = is_liquidated(
        seen(margin.equity),
        seen(margin.maintenance),
        trigger=portfolio.trigger[:, None],
        at_or_below=portfolio.at_or_below[:, None],
        needs_requirement=portfolio.needs_requirement[:, None],
    )
    real = portfolio.account_is_real[:, None]
    insolvent = margin.equity[:, cube.market_view] < 0.0
    return StressFigures(price_loss, price_loss + funding + lost, line_loss, verdict & real, insolvent & real)


def binding_loss(figures: StressFigures, cube: StressCube) -> Float[Array, " scopes"]:
    """The largest loss under a binding stress by scope (nodes, then everything together), at least 0."""
    nodes = figures.node_loss
    total = jnp.zeros_like(nodes[0])
    for n in range(nodes.shape[0]):
        total = total + nodes[n]
    losses = jnp.concatenate([nodes, total[None]])
    return jnp.max(jnp.where(cube.binding[None, :], jnp.maximum(losses, 0.0), 0.0), axis=1)
