"""What happens to every node of a portfolio in every scenario or on every path: the material of the transfer model.

Losses at market value, and the node by its venues' own rules in USD: what it has above the level at which the venue
liquidates, what may be withdrawn, when somebody is warned and when the first account is lost. Along a path the smallest
surplus counts: collateral has to be there when it is needed.

The initial requirement in a scenario keeps today's ratio to the maintenance requirement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .account import Line
from .batch import Bucket, PortfolioArrays, bucketed
from .cube import TERMS, Exponents
from .engine import Cube, map_bucket
from .margin import ScenarioMargin, accumulate, line_changes, liquidated, scenario_margin
from .portfolio import PackedPortfolio
from .rounding import rounded
from .unit_batch import column

NEVER = np.iinfo(np.int32).max
"""Step of what does not happen within the horizon."""


class NodeRows(eqx.Module):
    """What the nodes' figures need beside a portfolio's rows; one portfolio (a bucket has a leading axis)."""

    account_node: Int[Array, " A"]
    unit_price: Float[Array, " A"]
    unit_factor: Int[Array, "A terms"]
    unit_weight: Float[Array, "A terms"]
    initial_ratio: Float[Array, " A"]
    """Initial over maintenance requirement today; 1 without a requirement."""
    warning_multiple: Float[Array, " A"]
    """Somebody is warned when equity falls below this multiple of the requirement, plus `warning_debt`."""
    warning_debt: Float[Array, " A"]
    line_is_balance: Bool[Array, " L"]
    line_equity: Float[Array, " L"]
    profit_leaves: Bool[Array, " N"]
    line_leaves: Float[Array, " L"]
    """Share of the line's value that the venue could pay out."""
    held_back: Bool[Array, " N"]
    """Whether the venue could not pay out everything that lies at the node."""


class NodeScenarios(NamedTuple):
    """One portfolio, N nodes, T steps (1: no path); on the host NumPy and without padding.

    `losses` after every step, USD, positive; `surplus` (equity less the level of liquidation, negative where it falls
    short) and `withdrawable` are the smallest on the way, USD; `passage` is the step after which the venue liquidates
    the first account of the node (0: it does today), `warned` that after which the operator acts.
    """

    losses: Float[Array, "N T S"]
    surplus: Float[Array, "N S"]
    withdrawable: Float[Array, "N S"]
    passage: Int[Array, "N S"]
    warned: Int[Array, " S"]


class NodeStep(NamedTuple):
    """Figures of one step, float64."""

    loss: Float[Array, "N S"]
    surplus: Float[Array, "N S"]
    withdrawable: Float[Array, "N S"]
    gone: Bool[Array, "N S"]
    warned: Bool[Array, " S"]


class NodeRules(NamedTuple):
    """What is known of accounts and venues outside the engine's rows.

    `units` are the factors that move each account's unit in USD, `requirements` its initial and maintenance requirement
    today, both by account id. `profit_leaves` says by venue whether unrealised profit can be withdrawn. `leaving_share`
    is how much of a balance its venue could pay out, by key of its line, see `withdrawal_shares`.
    """

    units: Mapping[str, Exponents]
    requirements: Mapping[str, tuple[float, float]]
    warning_health: float
    profit_leaves: Mapping[str, bool]
    leaving_share: Mapping[str, float] = MappingProxyType({})


def node_rows(
    bucket: Bucket, portfolios: Sequence[PackedPortfolio], factors: Sequence[str], rules: NodeRules
) -> NodeRows:
    """Rows (NumPy) of a bucket in the shapes of its arrays; `portfolios` is the sequence that its members refer to."""
    sizes = bucket.arrays
    count, accounts = sizes.trigger.shape
    lines, nodes = sizes.line_node.shape[1], sizes.node_is_real.shape[1]
    index = {name: number for number, name in enumerate(factors)}

    def rows(portfolio: PackedPortfolio) -> NodeRows:
        infos = portfolio.accounts
        number = {node: at for at, node in enumerate(portfolio.nodes)}
        factor, weight = np.zeros((accounts, TERMS), np.int32), np.zeros((accounts, TERMS))
        for at, info in enumerate(infos):
            for term, (name, power) in enumerate(sorted(rules.units[info.account_id].items())):
                factor[at, term], weight[at, term] = index[name], power
        lends = [info.lender for info in infos]
        debts = [portfolio.debts.get(at, 0.0) for at in range(len(infos))]
        needs = [rules.requirements[info.account_id] for info in infos]
        ratio = [initial / maintenance if maintenance > 0.0 else 1.0 for initial, maintenance in needs]
        warning = rules.warning_health
        shares = [leaving_share(line, rules) for line in portfolio.lines]
        restricted = {
            node
            for node, line in zip(portfolio.line_node, portfolio.lines, strict=True)
            if line.key in rules.leaving_share
        }
        # Any: host arrays stand where the module declares device arrays.
        tables: Any = (factor, weight)
        return NodeRows(
            account_node=column([number[info.node, info.venue] for info in infos], accounts, np.int32),
            unit_price=column([info.unit_price_usd for info in infos], accounts, np.float64),
            unit_factor=tables[0],
            unit_weight=tables[1],
            initial_ratio=column(ratio, accounts, np.float64, 1.0),
            warning_multiple=column(
                [1.0 if lender else warning * info.trigger for lender, info in zip(lends, infos, strict=True)],
                accounts,
                np.float64,
            ),
            warning_debt=column(
                [(warning - 1.0) * debt if lender else 0.0 for lender, debt in zip(lends, debts, strict=True)],
                accounts,
                np.float64,
            ),
            line_is_balance=column([line.kind in ("collateral", "debt") for line in portfolio.lines], lines, np.bool_),
            line_equity=column(portfolio.line_equity, lines, np.float64),
            profit_leaves=column([rules.profit_leaves.get(v, False) for _, v in portfolio.nodes], nodes, np.bool_),
            line_leaves=column(shares, lines, np.float64),
            held_back=column([node in restricted for node in range(len(portfolio.nodes))], nodes, np.bool_),
        )

    members = [rows(portfolios[position]) for position in bucket.members]
    members += [rows(PackedPortfolio(""))] * (count - len(members))
    stacked: NodeRows = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    return stacked


def leaving_share(line: Line, rules: NodeRules) -> float:
    """Share of a line's value that could leave its venue; nothing of a debt, of a position's profit where that can."""
    if line.kind == "collateral":
        return rules.leaving_share.get(line.key, 1.0)
    return 1.0 if line.kind != "debt" and rules.profit_leaves.get(line.venue, False) else 0.0


def node_step(
    portfolio: PortfolioArrays,
    rows: NodeRows,
    margin: ScenarioMargin,
    shocks: Float[Array, "S factors"],
    change: Float[Array, "rows S"],
) -> NodeStep:
    """Every node after one step, from its accounts' margin and the changes of the rows since today."""
    count = portfolio.node_is_real.shape[0]
    changes = line_changes(portfolio, change)
    nothing = jnp.zeros((count, change.shape[1]), jnp.float64)
    loss = accumulate(portfolio.line_node, lambda line: -changes[line].astype(jnp.float64), nothing)

    def balance(line: Array) -> Array:
        value = rows.line_equity[line] + changes[line].astype(jnp.float64)
        return jnp.where(rows.line_is_balance[line], value, 0.0)

    balances = accumulate(portfolio.line_node, balance, nothing)

    def leaves(line: Array) -> Array:
        value = rows.line_equity[line] + changes[line].astype(jnp.float64)
        return rounded(rows.line_leaves[line] * jnp.maximum(value, 0.0))

    there = accumulate(portfolio.line_node, leaves, nothing)

    def unit(account: Array) -> Array:
        power = rounded(rows.unit_weight[account, 0] * shocks[:, rows.unit_factor[account, 0]])
        for term in range(1, TERMS):
            power = power + rounded(rows.unit_weight[account, term] * shocks[:, rows.unit_factor[account, term]])
        return rounded(rows.unit_price[account] * jnp.exp(power))

    def above(account: Array, multiple: Array) -> Array:
        left = margin.equity[account] - rounded(multiple * jnp.maximum(margin.maintenance[account], 0.0))
        return jnp.where(portfolio.account_is_real[account], rounded(left * unit(account)), 0.0)

    surplus = accumulate(rows.account_node, lambda a: above(a, portfolio.trigger[a]), nothing)
    free = accumulate(
        rows.account_node, lambda a: above(a, jnp.maximum(rows.initial_ratio[a], portfolio.trigger[a])), nothing
    )
    paid_out = jnp.where(rows.profit_leaves[:, None], free, jnp.minimum(free, balances))
    paid_out = jnp.where(rows.held_back[:, None], jnp.minimum(paid_out, there), paid_out)
    gone = liquidated(portfolio, margin)
    node_gone = accumulate(rows.account_node, lambda a: jnp.where(gone[a], 1.0, 0.0), nothing) > 0.0
    needed = rounded(rows.warning_multiple[:, None] * jnp.maximum(margin.maintenance, 0.0))
    low = (margin.maintenance > 0.0) & (margin.equity < needed + rows.warning_debt[:, None])
    warned = jnp.any((low | gone) & portfolio.account_is_real[:, None], axis=0)
    return NodeStep(loss, surplus, jnp.maximum(paid_out, 0.0), node_gone, warned)


class _Member(NamedTuple):
    rows: PortfolioArrays
    nodes: NodeRows


def node_scenarios(
    portfolios: Sequence[PackedPortfolio],
    factors: Sequence[str],
    cube: Cube,
    rules: NodeRules,
    *,
    devices: int = 1,
) -> list[NodeScenarios | None]:
    """Nodes at the horizon of every scenario of the cube; None for a portfolio without a complete account.

    Memory: 20 bytes for each portfolio, node and scenario.
    """
    out: list[NodeScenarios | None] = [None] * len(portfolios)
    for bucket in bucketed(portfolios, factors, multiple=devices):
        rows = node_rows(bucket, portfolios, factors, rules)
        member = _Member(bucket.arrays, rows)
        found = jax.device_get(map_bucket(member, cube, _at_horizon, devices, len(bucket.members)))
        for place, position in enumerate(bucket.members):
            count = len(portfolios[position].nodes)
            out[position] = without_padding(found, place, count)
    return out


def without_padding(found: NodeScenarios, place: int, count: int) -> NodeScenarios:
    """The first `count` nodes of the portfolio at `place` of a bucket."""
    return NodeScenarios(
        losses=found.losses[place][:count],
        surplus=found.surplus[place][:count],
        withdrawable=found.withdrawable[place][:count],
        passage=found.passage[place][:count],
        warned=found.warned[place],
    )


def _at_horizon(member: _Member, cube: Cube) -> NodeScenarios:
    portfolio, rows = member
    margin = scenario_margin(
        portfolio, cube.today, cube.change, cube.shocks, cube.rows, horizon_years=cube.horizon_years
    )
    step = node_step(portfolio, rows, margin, cube.shocks, cube.change)
    return NodeScenarios(
        losses=step.loss[:, None, :].astype(jnp.float32),
        surplus=step.surplus.astype(jnp.float32),
        withdrawable=step.withdrawable.astype(jnp.float32),
        passage=jnp.where(step.gone, 1, NEVER).astype(jnp.int32),
        warned=jnp.where(step.warned, 1, NEVER).astype(jnp.int32),
    )
