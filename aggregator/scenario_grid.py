"""The deterministic scenario grid: worst loss over joint moves of prices and volatilities, in the shape of SPAN.

The host lays out the points for a list of factors (`grid_points`); the device reprices a cube's rows at each of them
(`row_changes`) and takes the worst (`worst_loss`). Moves are instantaneous: no time passes on the grid.

    F' = F (1 + u);   sigma' = sigma max(m_min, 1 +- range (30 / max(DTE, floor))^p)
    loss(u, d) = -sum_i q_i (V_i(F', sigma') - V_i(F, sigma));   G = max(0, max loss, w_ext loss(extreme u, vol kept))

Across underlyings both (i) all prices in the same direction, each by its beta, and (ii) each underlying alone. Letters:
G points, F factors, S spot moves, V directions of volatility, E extreme moves, n positions. USD, losses positive.

Sources of the shape: derivexyz/v2-core @7736900d, PMRMLib_2.sol (term scaling of volatility); CME SPAN (extreme moves
counted in part). This grid is the engine's own; the venues' are rule forms in `rules.price_vol_grid`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from .cube import CubeRows
from .errors import ConfigurationError
from .pricing import DAYS_PER_YEAR, black76_price, linear_value_change
from .rounding import rounded
from .rules.risk_unit import ordered_sum

_TERM_DAYS = 30.0
_PRICE, _VOL, _PEG = "price", "vol", "peg"


class GridVolRule(NamedTuple):
    """How one step of volatility moves an option's own: ranges up and down at 30 days, and how they change with term.

    Short-dated volatilities move by (30 / max(DTE, `floor_days`))^`power` as much; none falls below `least_multiplier`
    of itself.
    """

    up: ArrayLike = 0.45
    down: ArrayLike = 0.30
    power: ArrayLike = 0.3
    floor_days: ArrayLike = 1.0
    least_multiplier: ArrayLike = 0.05


@dataclass(frozen=True, slots=True)
class GridRule:
    """The points of the grid. Moves are fractions of a price, points fractions of the underlying's scan move.

    `betas` are moves of an underlying in proportion to `market_move` when all move together; one without a beta then
    moves by its own scan move. The default scan move is the largest that the method proposes for a small coin: whoever
    has nothing of his own is not given the figures of a major. A fall is never deeper than `deepest_fall`.
    """

    spot_points: tuple[float, ...] = (-1.0, -2 / 3, -1 / 3, 0.0, 1 / 3, 2 / 3, 1.0)
    vol_directions: tuple[int, ...] = (-1, 0, 1)
    scan_moves: Mapping[str, float] = field(default_factory=lambda: {"BTC": 0.15, "ETH": 0.15})
    default_scan_move: float = 0.50
    peg_moves: Mapping[str, float] = field(default_factory=dict)
    default_peg_move: float = 0.05
    betas: Mapping[str, float] = field(default_factory=dict)
    market_move: float = 0.15
    extreme_multiple: float = 3.0
    extreme_weight: float = 1 / 3
    deepest_fall: float = 0.95

    def __post_init__(self) -> None:
        moves = {"default_scan_move": self.default_scan_move, "default_peg_move": self.default_peg_move}
        moves |= {f"scan_moves.{name}": move for name, move in self.scan_moves.items()}
        moves |= {f"peg_moves.{name}": move for name, move in self.peg_moves.items()}
        moves |= {"market_move": self.market_move, "extreme_multiple": self.extreme_multiple}
        for name, move in moves.items():
            if not (math.isfinite(move) and move > 0.0):
                raise ConfigurationError(f"grid: {name} must be finite and positive, found {move!r}")
        for name, beta in self.betas.items():
            if not math.isfinite(beta):
                raise ConfigurationError(f"grid: betas.{name} must be finite, found {beta!r}")
        if not 0.0 < self.deepest_fall < 1.0:
            raise ConfigurationError(
                f"grid: deepest_fall must lie strictly between 0 and 1, found {self.deepest_fall!r}"
            )
        if not 0.0 <= self.extreme_weight <= 1.0:
            raise ConfigurationError(f"grid: extreme_weight must lie within 0..1, found {self.extreme_weight!r}")
        if not self.spot_points or any(not -1.0 <= point <= 1.0 for point in self.spot_points):
            raise ConfigurationError(f"grid: spot_points must lie within -1..1, found {self.spot_points!r}")
        if not self.vol_directions or any(step not in (-1, 0, 1) for step in self.vol_directions):
            raise ConfigurationError(f"grid: vol_directions are -1, 0 and 1, found {self.vol_directions!r}")


class GridPoints(NamedTuple):
    """The points over `factors`, host arrays: log moves of prices and pegs, steps of volatility (-1, 0, 1), weights.

    `unmoved` are factors that the grid has no move for; what depends on them has no loss from them here.
    """

    factors: tuple[str, ...]
    log_moves: np.ndarray
    """[G, F] float64; 0 for volatilities."""
    vol_steps: np.ndarray
    """[G, F] float64; 0 for prices and pegs."""
    weights: np.ndarray
    """[G] float64: 1, or the extreme weight."""
    labels: tuple[str, ...]
    unmoved: tuple[str, ...]


class WorstLoss(NamedTuple):
    """Largest weighted loss, USD, never below 0, and the first point that has it; -1 where no point loses."""

    amount: Float[Array, ""]
    point: Int[Array, ""]


class GridBook(NamedTuple):
    """Futures and options of one underlying, one row each; what an option alone has is ignored for a future."""

    quantity: Float[Array, " n"]
    forward: Float[Array, " n"]
    strike: Float[Array, " n"]
    years: Float[Array, " n"]
    vol: Float[Array, " n"]
    is_call: Bool[Array, " n"]
    is_option: Bool[Array, " n"]


class BookLosses(NamedTuple):
    """Losses of a book over its grid, USD: unweighted on the grid, weighted at the extreme moves, and the worst."""

    grid: Float[Array, "S V"]
    extreme: Float[Array, " E"]
    worst: WorstLoss


@dataclass(frozen=True, slots=True)
class _Move:
    """What one underlying or all of them do at one point: moves of prices by name, one step for all their vols."""

    label: str
    prices: Mapping[str, float]
    pegs: Mapping[str, float]
    vol_step: int
    weight: float


def _names(factors: Sequence[str], kind: str) -> list[str]:
    return [name.partition(":")[2] for name in factors if name.partition(":")[0] == kind]


_WHO = {"all": "all prices"}


def _label(who: str, multiple: float, step: int) -> str:
    vol = {-1: ", vol down", 0: "", 1: ", vol up"}[step]
    return f"{who} at {multiple:+.3g} of the scan{vol}"


def _moves(factors: Sequence[str], rule: GridRule) -> list[_Move]:
    underlyings = sorted({*_names(factors, _PRICE), *_names(factors, _VOL)})
    alone = {name: rule.scan_moves.get(name, rule.default_scan_move) for name in underlyings}
    together = {n: rule.betas[n] * rule.market_move if n in rule.betas else move for n, move in alone.items()}
    groups = [("all", together)] if len(underlyings) > 1 or any(together[n] != alone[n] for n in alone) else []
    groups += [(name, {name: move}) for name, move in alone.items()]
    moves = []
    with_vol = set(_names(factors, _VOL))
    for who, sizes in groups:
        steps = rule.vol_directions if with_vol.intersection(sizes) else (0,)
        for point in rule.spot_points:
            moved = {name: point * size for name, size in sizes.items()}
            moves += [_Move(_label(_WHO.get(who, f"{who} alone"), point, step), moved, {}, step, 1.0) for step in steps]
        for multiple in (-rule.extreme_multiple, rule.extreme_multiple):
            moved = {name: multiple * size for name, size in sizes.items()}
            moves.append(_Move(_label(_WHO.get(who, f"{who} alone"), multiple, 0), moved, {}, 0, rule.extreme_weight))
    for name in sorted(_names(factors, _PEG)):
        size = rule.peg_moves.get(name, rule.default_peg_move)
        for point in rule.spot_points:
            moves.append(_Move(_label(f"peg of {name}", point, 0), {}, {name: point * size}, 0, 1.0))
    return moves


def grid_points(factors: Sequence[str], rule: GridRule) -> GridPoints:
    """Points for `factors` (`price:X`, `vol:X`, `peg:X`): all prices together, each underlying and each peg alone.

    At a point the volatilities of the underlyings that move take one common step; extreme moves keep them. Pegs move
    alone, up and down by their own move. Points equal to an earlier one are left out. Raises `ConfigurationError` for a
    factor that is listed twice.
    """
    names = tuple(factors)
    if len(set(names)) != len(names):
        raise ConfigurationError(f"grid: a factor is listed twice in {', '.join(names)}")
    seen: set[bytes] = set()
    log_moves, vol_steps, weights, labels = [], [], [], []
    for move in _moves(names, rule):
        logs, steps = np.zeros(len(names)), np.zeros(len(names))
        for column, factor in enumerate(names):
            kind, _, name = factor.partition(":")
            if kind == _VOL and name in move.prices:
                steps[column] = move.vol_step
            elif kind in (_PRICE, _PEG):
                size = (move.prices if kind == _PRICE else move.pegs).get(name, 0.0)
                logs[column] = math.log1p(max(size, -rule.deepest_fall))
        key = np.concatenate([logs, steps, [move.weight]]).tobytes()
        if key not in seen:
            seen.add(key)
            log_moves.append(logs)
            vol_steps.append(steps)
            weights.append(move.weight)
            labels.append(move.label)
    return GridPoints(
        factors=names,
        log_moves=np.array(log_moves, np.float64).reshape(len(labels), len(names)),
        vol_steps=np.array(vol_steps, np.float64).reshape(len(labels), len(names)),
        weights=np.array(weights, np.float64),
        labels=tuple(labels),
        unmoved=tuple(name for name in names if name.partition(":")[0] not in (_PRICE, _VOL, _PEG)),
    )


def vol_multiplier(step: ArrayLike, years: ArrayLike, rule: GridVolRule) -> Float[Array, ""]:
    """sigma' / sigma of an option of `years` when volatilities take `step` (-1 down, 0 none, 1 up)."""
    step = jnp.asarray(step, dtype=jnp.float64)
    days = jnp.maximum(jnp.asarray(years, dtype=jnp.float64) * DAYS_PER_YEAR, rule.floor_days)
    scale = (_TERM_DAYS / days) ** jnp.asarray(rule.power, dtype=jnp.float64)
    size = jnp.where(step > 0.0, jnp.asarray(rule.up), jnp.where(step < 0.0, jnp.asarray(rule.down), 0.0))
    return jnp.maximum(1.0 + rounded(step * size * scale), rule.least_multiplier)


def option_change(
    forward: ArrayLike,
    strike: ArrayLike,
    *,
    years: ArrayLike,
    vol: ArrayLike,
    is_call: ArrayLike,
    log_move: ArrayLike,
    vol_step: ArrayLike,
    rule: GridVolRule,
    discount: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """Change in USD of one long option at one point: forward times e^`log_move`, volatility moved by `vol_step`."""
    forward = jnp.asarray(forward, dtype=jnp.float64)
    today = black76_price(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)
    moved = black76_price(
        rounded(forward * jnp.exp(jnp.asarray(log_move, dtype=jnp.float64))),
        strike,
        years=years,
        vol=rounded(jnp.asarray(vol, dtype=jnp.float64) * vol_multiplier(vol_step, years, rule)),
        is_call=is_call,
        discount=discount,
    )
    return moved - today


def row_changes(
    cube: CubeRows, log_moves: Float[Array, " F"], vol_steps: Float[Array, " F"], rule: GridVolRule
) -> Float[Array, " rows"]:
    """Change of every row of the cube at one grid point, float64: what `CubeRows.changes` is for a scenario.

    The columns are the cube's factors. Factor rows move by the log moves; volatility factors have none, so a row that
    is a power of one (none exists today) would stand still. Option rows are repriced with their own volatility moved by
    its underlying's step, and converted at the moved conversion.
    """
    factor = jnp.expm1(jax.vmap(lambda row: cube.log_change(log_moves, row))(jnp.arange(cube.exponent_factor.shape[0])))

    if cube.forward.shape[0] == 0:
        return factor

    def option(i: Array) -> Array:
        forward, strike, years, vol = cube.forward[i], cube.strike[i], cube.years[i], cube.vol[i]
        is_call, discount = cube.is_call[i], cube.discount[i]
        today = black76_price(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)
        change = option_change(
            forward,
            strike,
            years=years,
            vol=vol,
            is_call=is_call,
            discount=discount,
            log_move=log_moves[cube.price_factor[i]],
            vol_step=vol_steps[cube.vol_factor[i]],
            rule=rule,
        )
        # c' V' - c V = c' (V' - V) + (c' - c) V
        weighted = rounded(cube.conversion_weight[i] * log_moves[cube.conversion_factor[i]])
        drift = rounded(cube.conversion_today[i] * jnp.expm1(ordered_sum(weighted)))
        return rounded((cube.conversion_today[i] + drift) * change) + rounded(drift * today)

    return jnp.concatenate([factor, jax.vmap(option)(jnp.arange(cube.forward.shape[0]))])


def worst_loss(losses: Float[Array, " G"], weights: Float[Array, " G"]) -> WorstLoss:
    """G = max(0, max_g w_g L_g). A point of weight 0 never matters; a loss that is NaN counts as +inf."""
    if losses.shape[0] == 0:
        return WorstLoss(jnp.zeros((), jnp.float64), jnp.asarray(-1))
    counted = jnp.where(jnp.isnan(losses), jnp.inf, losses)
    weighted = jnp.where(weights > 0.0, jnp.where(weights > 0.0, counted, 0.0) * weights, 0.0)
    point = jnp.argmax(weighted)
    worst = weighted[point]
    return WorstLoss(jnp.maximum(worst, 0.0), jnp.where(worst > 0.0, point, -1))


def book_losses(
    book: GridBook,
    *,
    spot_moves: Float[Array, " S"],
    vol_steps: Float[Array, " V"],
    extreme_moves: Float[Array, " E"],
    extreme_weight: ArrayLike,
    rule: GridVolRule,
) -> BookLosses:
    """Losses of one underlying's book over every pair of price move and volatility step, and at the extreme moves.

    Moves are fractions of the price, at least -1 (a price of 0). The worst is numbered along the grid row by row, then
    the extreme moves. A book that is empty or flat loses nothing.
    """

    def loss(spot: Array, step: Array) -> Array:
        def change(position: GridBook) -> Array:
            log_move = jnp.log1p(spot)
            linear = linear_value_change(position.forward, log_move)
            option = option_change(
                position.forward,
                position.strike,
                years=position.years,
                vol=position.vol,
                is_call=position.is_call,
                log_move=log_move,
                vol_step=step,
                rule=rule,
            )
            return rounded(-position.quantity * jnp.where(position.is_option, option, linear))

        return ordered_sum(jax.vmap(change)(book))

    grid = jax.vmap(lambda spot: jax.vmap(lambda step: loss(spot, step))(vol_steps))(spot_moves)
    weight = jnp.asarray(extreme_weight, dtype=jnp.float64)
    extreme = jax.vmap(lambda spot: loss(spot, jnp.zeros((), jnp.float64)))(extreme_moves)
    flat = jnp.concatenate([grid.reshape(-1), extreme])
    weights = jnp.concatenate([jnp.ones(grid.size, jnp.float64), jnp.full(extreme.shape, weight)])
    return BookLosses(grid, rounded(weight * extreme), worst_loss(flat, weights))
