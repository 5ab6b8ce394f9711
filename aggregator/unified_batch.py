"""What the unified requirement needs to know of portfolios beside their rows: arrays in the shapes of their bucket."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .account import Line
from .batch import Bucket
from .policy import Requirement
from .portfolio import PackedPortfolio
from .unit_batch import column

_POSITIONS = ("linear", "option")


class UnifiedArrays(eqx.Module):
    """One portfolio (a bucket has a leading axis). Money in USD; L lines, N nodes, padded like the bucket."""

    line_factor: Int[Array, " L"]
    """Number of the price factor that moves the line; 0 where none does."""
    line_has_factor: Bool[Array, " L"]
    line_simulated: Bool[Array, " L"]
    """Whether the line moves in the scenarios. Collateral at a haircut does not (a stablecoin's peg always does), and
    neither does a token that falls with its own venue: it counts for nothing there, so it may not hedge either.
    """
    line_at_haircut: Bool[Array, " L"]
    """Whether the line counts at a haircut of its own volatility, because it does not move in the scenarios."""
    line_value: Float[Array, " L"]
    """What a balance is worth today, debts negative; 0 for positions."""
    line_falls_with: Bool[Array, "L venues"]
    """Whether the line is worth less when the venue of that number fails; own tokens posted there, which count for
    nothing anyway, are not among them.
    """
    node_venue: Int[Array, " N"]
    """Nodes of equal number are at one venue, where an asset has one price."""
    node_gross: Float[Array, " N"]
    """Gross value of what has a price of its own: dollars need no floor."""
    node_wrong_way: Float[Array, " N"]
    """Collateral in tokens that fall with their own venue."""
    node_equity: Float[Array, " N"]
    node_hazard: Float[Array, " N"]
    """Failures of the venue per year."""
    node_loss_given_default: Float[Array, " N"]
    venue_loss_given_default: Float[Array, " venues"]
    """By the number of `node_venue`; as many as there may be nodes."""


def unified_arrays(
    bucket: Bucket,
    portfolios: Sequence[PackedPortfolio],
    factors: Sequence[str],
    policy: Requirement,
) -> UnifiedArrays:
    """The arrays (NumPy) of a bucket; `portfolios` is the sequence that its members refer to."""
    count, lines = bucket.arrays.line_node.shape
    nodes = bucket.arrays.node_is_real.shape[1]
    index = {name: number for number, name in enumerate(factors)}
    one = [_arrays(portfolios[position], lines, nodes, index, policy) for position in bucket.members]
    empty = _arrays(PackedPortfolio(""), lines, nodes, index, policy)
    members = one + [empty] * (count - len(one))
    stacked: UnifiedArrays = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    return stacked


def is_of_group(line: Line, own_tokens: Sequence[str]) -> bool:
    """Whether a line is a token of the group, a wrapping of one, or a position in one."""
    names = {line.asset} if line.kind in _POSITIONS else {line.symbol, line.asset}
    return not names.isdisjoint(own_tokens)


def is_own_token(line: Line, policy: Requirement) -> bool:
    """Whether a line is collateral in a token of the venue that holds it, or of its group."""
    return line.kind == "collateral" and is_of_group(line, policy.venue(line.venue).own_tokens)


def is_at_haircut(line: Line) -> bool:
    """Whether a line is collateral with a price of its own, which a policy of haircuts holds still."""
    return line.kind == "collateral" and bool(line.factor)


def _arrays(
    portfolio: PackedPortfolio,
    lines: int,
    nodes: int,
    index: Mapping[str, int],
    policy: Requirement,
) -> UnifiedArrays:
    held = portfolio.lines
    venues = sorted({venue for _, venue in portfolio.nodes})
    gross: list[list[float]] = [[] for _ in portfolio.nodes]
    equity: list[list[float]] = [[] for _ in portfolio.nodes]
    wrong_way: list[list[float]] = [[] for _ in portfolio.nodes]
    for line, node, value in zip(held, portfolio.line_node, portfolio.line_equity, strict=True):
        if line.factor:
            gross[node].append(line.gross_usd)
        equity[node].append(value)
        if is_own_token(line, policy):
            wrong_way[node].append(max(value, 0.0))
    failures = [policy.venue(venue) for _, venue in portfolio.nodes]
    own = [is_own_token(line, policy) for line in held]
    at_haircut = policy.collateral == "haircut"
    fixed = [at_haircut and is_at_haircut(line) and not mine for line, mine in zip(held, own, strict=True)]
    groups = [policy.venue(venue).own_tokens for venue in venues]
    falls = np.zeros((lines, nodes), np.bool_)
    for number, line in enumerate(held):
        falls[number, : len(groups)] = [not own[number] and is_of_group(line, tokens) for tokens in groups]
    worth = [
        value if line.kind not in _POSITIONS else 0.0 for line, value in zip(held, portfolio.line_equity, strict=True)
    ]
    return UnifiedArrays(
        line_factor=column([index.get(line.factor, 0) for line in held], lines, np.int32),
        line_has_factor=column([line.factor in index for line in held], lines, np.bool_),
        line_simulated=column([not (o or f) for o, f in zip(own, fixed, strict=True)], lines, np.bool_),
        line_at_haircut=column(fixed, lines, np.bool_),
        line_value=column(worth, lines, np.float64),
        line_falls_with=falls,  # type: ignore[arg-type]  # a host array until the bucket is stacked, like the others
        node_venue=column([venues.index(venue) for _, venue in portfolio.nodes], nodes, np.int32),
        node_gross=column([math.fsum(g) for g in gross], nodes, np.float64),
        node_wrong_way=column([math.fsum(w) for w in wrong_way], nodes, np.float64),
        node_equity=column([math.fsum(e) for e in equity], nodes, np.float64),
        node_hazard=column([f.hazard_per_year for f in failures], nodes, np.float64),
        node_loss_given_default=column([f.loss_given_default for f in failures], nodes, np.float64),
        venue_loss_given_default=column([policy.venue(v).loss_given_default for v in venues], nodes, np.float64),
    )
