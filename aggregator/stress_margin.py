"""What the named stresses do to every portfolio: losses by node, and which accounts are liquidated or end below zero.

Losses are taken at the market's prices. The triggers of a venue may read others: its own wrong marks, or the prices of
before. Every such view is a column of one small cube; lines read the market's, an account that of its venue's triggers.
Moves are instantaneous: no time passes.

What is reported counts everything that is held. What binds the requirement counts the lines that the requirement
simulates and no other: collateral at a haircut is charged by its haircut, a venue's own token by its full value, and
neither may be charged twice or hedge. Funding, failures of venues and depth concern whatever lies there or is sold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from . import add_ons
from .account import Line
from .batch import Bucket, PortfolioArrays
from .margin import ScenarioMargin, accumulate, is_liquidated, line_changes
from .policy import Requirement
from .portfolio import PackedPortfolio
from .rounding import rounded
from .rules.risk_unit import ordered_sum
from .stress import Stress, StressLibrary, stress_moves
from .unified import UnifiedMarket
from .unified_batch import is_at_haircut, is_own_token
from .unit_batch import column

_HOURS_PER_DAY = 24.0


class StressArrays(eqx.Module):
    """One portfolio (a bucket has a leading axis), USD; venues are numbers of the run's list of venues."""

    account_venue: Int[Array, " A"]
    node_venue: Int[Array, " N"]
    node_equity: Float[Array, " N"]
    node_perpetuals: Float[Array, " N"]
    """Signed notional of the perpetuals: what funding is paid on."""
    node_funding_times: Float[Array, " N"]
    """How often a day the venue's funding rate is paid."""
    node_loss_given_default: Float[Array, " N"]
    line_binds: Bool[Array, " L"]
    """Whether the requirement simulates the line."""
    node_binding_equity: Float[Array, " N"]
    """Equity without tokens that fall with their own venue: their whole value is charged as wrong-way collateral."""


class StressCube(eqx.Module):
    """The views of all stresses over the cube's rows; K stresses, C views (padded to whole tiles), V venues.

    `funding` is a share of notional, `funding_rate` the venues' own rates times the days that they are paid for.
    """

    change: Float[Array, "rows C"]
    joined: JoinedColumns
    market_view: Int[Array, " K"]
    trigger_view: Int[Array, "V K"]
    funding: Float[Array, "V K"]
    funding_rate: Float[Array, "V K"]
    depth: Float[Array, " K"]
    fails: Bool[Array, "V K"]
    binding: Bool[Array, " K"]


class JoinedColumns(NamedTuple):
    """The run's scenarios and behind them the views: the rules of the venues are compiled once for both."""

    change: Float[Array, "rows columns"]
    shocks: Float[Array, "columns factors"]
    elapsed_years: Float[Array, " columns"]


class StressFigures(NamedTuple):
    """One portfolio under every stress. Losses in USD: of the prices, and with funding and failures of venues.

    A scope is a node, or (the last one) everything together, as in `unified`.
    """

    node_price_loss: Float[Array, "N K"]
    node_loss: Float[Array, "N K"]
    line_loss: Float[Array, "L K"]
    liquidated: Bool[Array, "A K"]
    insolvent: Bool[Array, "A K"]
    """Whether the account's equity, as the venue counts it, ends below zero."""
    depth_loss: Float[Array, "scopes K"]
    """What liquidating everything would cost more than today at the depth of the stress; of known markets alone."""
    binding_loss: Float[Array, "scopes K"]
    """Loss of what the requirement simulates, depth included."""


def stress_arrays(
    bucket: Bucket, portfolios: Sequence[PackedPortfolio], venues: Sequence[str], policy: Requirement
) -> StressArrays:
    """The arrays (NumPy) of a bucket; `portfolios` is the sequence that its members refer to."""
    count, accounts = bucket.arrays.trigger.shape
    nodes, lines = bucket.arrays.node_is_real.shape[1], bucket.arrays.line_node.shape[1]
    number = {venue: at for at, venue in enumerate(venues)}

    def arrays(portfolio: PackedPortfolio) -> StressArrays:
        equity: list[list[float]] = [[] for _ in portfolio.nodes]
        binding: list[list[float]] = [[] for _ in portfolio.nodes]
        perpetuals: list[list[float]] = [[] for _ in portfolio.nodes]
        for line, node, value in zip(portfolio.lines, portfolio.line_node, portfolio.line_equity, strict=True):
            equity[node].append(value)
            if not is_own_token(line, policy):
                binding[node].append(value)
            # Not every venue's payload states a rate; the perpetual pays one all the same.
            if line.is_perpetual:
                perpetuals[node].append(line.value_usd)
        policies = [policy.venue(venue) for _, venue in portfolio.nodes]
        return StressArrays(
            account_venue=column([number[info.venue] for info in portfolio.accounts], accounts, np.int32),
            node_venue=column([number[venue] for _, venue in portfolio.nodes], nodes, np.int32),
            node_equity=column([math.fsum(values) for values in equity], nodes, np.float64),
            node_perpetuals=column([math.fsum(values) for values in perpetuals], nodes, np.float64),
            node_funding_times=column([_HOURS_PER_DAY / of.funding_hours for of in policies], nodes, np.float64),
            node_loss_given_default=column([of.loss_given_default for of in policies], nodes, np.float64),
            line_binds=column([_binds(line, policy) for line in portfolio.lines], lines, np.bool_),
            node_binding_equity=column([math.fsum(values) for values in binding], nodes, np.float64),
        )

    members = [arrays(portfolios[position]) for position in bucket.members]
    members += [arrays(PackedPortfolio(""))] * (count - len(members))
    stacked: StressArrays = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    return stacked


def _binds(line: Line, policy: Requirement) -> bool:
    return not (is_own_token(line, policy) or (policy.collateral == "haircut" and is_at_haircut(line)))


def joined_columns(
    change: Float[Array, "rows scenarios"],
    shocks: Float[Array, "scenarios factors"],
    horizon_years: float,
    views_change: Float[Array, "rows C"],
    views: StressViews,
) -> JoinedColumns:
    """The scenarios at the horizon of the run and the views of the stresses, in which no time passes."""
    elapsed = np.repeat([horizon_years, 0.0], [len(shocks), len(views.shocks)])
    return JoinedColumns(
        jnp.concatenate([change, views_change], axis=1),
        jnp.concatenate([shocks, jnp.asarray(views.shocks)]),
        jnp.asarray(elapsed),
    )


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
    joined: JoinedColumns,
    venues: Sequence[str],
) -> StressCube:
    """The cube of the views, priced (`change`), with what else happens under each stress."""
    parts: Mapping[str, Sequence[Stress]] = {name: library.parts(name) for name in names}
    fails = [[any(_fails(part, venue) for part in parts[name]) for name in names] for venue in venues]

    def funding(paid: Callable[[Stress, float | None], float]) -> Float[Array, "V K"]:
        """What a part of a stress makes the longs of a venue pay, given the venue's own rate if it states one."""
        sums = [
            [math.fsum(paid(part, _own_funding(part, venue)) for part in parts[name]) for name in names]
            for venue in venues
        ]
        return jnp.asarray(np.array(sums, np.float64).reshape(len(venues), len(names)))

    return StressCube(
        change=change,
        joined=joined,
        market_view=jnp.asarray(views.market_view),
        trigger_view=jnp.asarray(views.trigger_view),
        funding=funding(lambda part, own: part.funding if own is None else 0.0),
        funding_rate=funding(lambda part, own: 0.0 if own is None else own * part.funding_days),
        depth=jnp.asarray([math.prod(part.depth for part in parts[name]) for name in names], jnp.float64),
        fails=jnp.asarray(np.array(fails, bool).reshape(len(venues), len(names))),
        binding=jnp.asarray([library.stress[name].binding for name in names], bool),
    )


def _fails(stress: Stress, venue: str) -> bool:
    return venue in stress.venues and stress.venues[venue].fails


def _own_funding(stress: Stress, venue: str) -> float | None:
    return stress.venues[venue].funding if venue in stress.venues else None


def stress_figures(
    portfolio: PortfolioArrays,
    stress: StressArrays,
    cube: StressCube,
    margin: ScenarioMargin,
    market: UnifiedMarket | None = None,
) -> StressFigures:
    """One portfolio under every stress, given its accounts under every view (`margin`).

    Without a `market` the loss of depth is 0, for nothing is known of any.
    """
    losses = -line_changes(portfolio, cube.change)
    line_loss = losses[:, cube.market_view].astype(jnp.float64)
    nodes, count = portfolio.node_is_real.shape[0], cube.depth.shape[0]
    nothing = jnp.zeros((nodes, count), jnp.float64)
    rate = cube.funding[stress.node_venue] + rounded(
        stress.node_funding_times[:, None] * cube.funding_rate[stress.node_venue]
    )
    funding = rounded(stress.node_perpetuals[:, None] * rate)
    fails, given_default = cube.fails[stress.node_venue], stress.node_loss_given_default[:, None]

    def lost(equity: Float[Array, " N"], price_loss: Float[Array, "N K"]) -> Float[Array, "N K"]:
        """What is lost of `equity`: prices and funding, and a share of what is left then where the venue fails."""
        so_far = price_loss + funding
        left = jnp.maximum(equity[:, None] - so_far, 0.0)
        return so_far + jnp.where(fails, rounded(given_default * left), 0.0)

    price_loss = accumulate(portfolio.line_node, lambda n: line_loss[n], nothing)
    simulated = jnp.where(stress.line_binds[:, None], line_loss, 0.0)
    binding = lost(stress.node_binding_equity, accumulate(portfolio.line_node, lambda n: simulated[n], nothing))
    depth = jnp.zeros((nodes + 1, count), jnp.float64) if market is None else depth_loss(portfolio, market, cube.depth)

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
    return StressFigures(
        node_price_loss=price_loss,
        node_loss=lost(stress.node_equity, price_loss),
        line_loss=line_loss,
        liquidated=verdict & real,
        insolvent=insolvent & real,
        depth_loss=depth,
        binding_loss=_with_whole(binding) + depth,
    )


def depth_loss(
    portfolio: PortfolioArrays, market: UnifiedMarket, depth: Float[Array, " K"]
) -> Float[Array, "scopes K"]:
    """What liquidating all of a scope would cost more than today, USD, where books hold `depth` of today's; below 0
    where they hold more. Today's sizes; assets whose market is unknown count for nothing (the requirement says how much
    is unmeasured).

    Half the spread is paid at spread / depth. The impact grows with the root of the size over the daily volume, and so
    with the root of 1 / depth.
    """
    exposure = accumulate(
        portfolio.line_node[portfolio.leg_line],
        lambda leg: rounded(portfolio.leg_coefficient[leg] * market.exposure[portfolio.leg_row[leg]]),
        jnp.zeros((portfolio.node_is_real.shape[0], market.exposure.shape[1]), jnp.float64),
    )
    spread, whole = _liquidation(exposure, market, 0.0), _liquidation(exposure, market, market.stack.impact)
    wider = rounded(spread[:, None] * (1.0 / depth - 1.0)[None, :])
    return wider + rounded((whole - spread)[:, None] * (1.0 / jnp.sqrt(depth) - 1.0)[None, :])


def _liquidation(
    exposure: Float[Array, "N F"], market: UnifiedMarket, impact: float | Float[Array, ""]
) -> Float[Array, " scopes"]:
    """Cost of liquidating each node alone, and all of them at once in the depth that they share."""
    volume, vol, spread = market.daily_volume, market.daily_vol, market.spread
    alone = jax.vmap(
        lambda of_node: add_ons.liquidity_cost(of_node, volume, daily_vol=vol, spread=spread, impact=impact)
    )(exposure)
    pool = jnp.zeros(exposure.shape[0], jnp.int32)
    whole = add_ons.pooled_liquidity_cost(
        exposure, pool, volume[None, :], daily_vol=vol, spread=spread, impact=impact, nets=False
    )
    amount = jnp.concatenate([alone.amount, whole.amount[None]])
    return ordered_sum(jnp.where(jnp.concatenate([alone.measured, whole.measured[None]]), amount, 0.0))


def _with_whole(nodes: Float[Array, "N K"]) -> Float[Array, "scopes K"]:
    """The nodes' losses and behind them their sum, in order."""
    whole = jnp.zeros_like(nodes[0])
    for n in range(nodes.shape[0]):
        whole = whole + nodes[n]
    return jnp.concatenate([nodes, whole[None]])


def binding_loss(figures: StressFigures, cube: StressCube) -> Float[Array, " scopes"]:
    """The largest loss under a binding stress by scope, at least 0."""
    return jnp.max(jnp.where(cube.binding[None, :], jnp.maximum(figures.binding_loss, 0.0), 0.0), axis=1)
