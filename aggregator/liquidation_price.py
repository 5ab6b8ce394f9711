"""Liquidation prices: how far one price must move, all else as it is today, for a venue to liquidate an account.

For every account and every price factor that moves something of its rules: the smallest log move down and up at which
the venue's own verdict changes, found on the engine's margin itself, in float64, without time passing. A factor moves
everything that depends on it: collateral in the same coin, every position, options of the underlying.

An account under one factor is a small portfolio of its own: what the factor does not move is summed on the host to
constants, so the search costs what the factor moves, however large the account and the book. A search works in columns
of log moves: a geometric grid on both sides at first, then evenly spaced points inside the step in which the verdict
changes, until that step is narrower than 1e-13; the secant of its ends is the answer. One traced evaluation serves all
passes, and whatever depends on more than one column is a selection, so padding and neighbors change no bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .account import AccountInfo, TierEntry, ValueGroup
from .batch import PortfolioArrays, bucketed
from .cube import TERMS, CubeRows
from .engine import Cube, map_bucket
from .margin import liquidated, scenario_margin
from .market import IncompleteAccountError, Market
from .portfolio import PackedPortfolio
from .risk_units import UnitRow
from .rounding import rounded
from .snapshot import Row
from .unit_batch import rounded_up

LARGEST_MOVE = math.log(1e6)
"""Log move up to which a liquidation price is looked for, on both sides."""
SMALLEST_STEP = 1e-4
"""First step of the grid of log moves; the others grow geometrically, by 4.8 % each."""
BRACKET = 1e-13
"""Width, as a log move, of the step that holds the answer."""

_POINTS = 256  # columns of one side; both sides are whole tiles, which risk units are computed in
_MOST_PASSES = 12
_POWERS = 8  # powers of one factor that rows can have: of -3 .. 3, padded
_STILL, _MOVED = "still", "moved"
_PRICE = "price:"
_SEARCHES_PER_SHAPE = 64
_MOST_BUCKETS = 6


class Moves(NamedTuple):
    """Log moves of one price factor at which the verdict on an account changes; None where it does not change within
    `LARGEST_MOVE`.
    """

    liquidatable_now: bool
    """Today's verdict. Where it is true, the moves are those that cure the account."""
    down: float | None
    up: float | None


class Subject(NamedTuple):
    """Something with a price that one factor moves in proportion: what a liquidation price is stated of."""

    name: str
    """Instrument (with `/long` or `/short` where an account holds both sides), or asset."""
    kind: str
    """position, balance, or underlying: that of options, whose own price no factor moves in proportion."""
    factor: str
    price: float | None
    """Today's: an instrument's mark in its quote, an asset's price in USD."""
    reported: float | None
    """Liquidation price that the venue states of the position."""


# ---- what the account holds ------------------------------------------------------------------------------------------


def account_subjects(market: Market, account_id: str) -> list[Subject]:
    """Positions, balances and underlyings of options of one account whose price a price factor moves, by name."""
    row = market.accounts[account_id]
    found: dict[str, Subject] = {}

    def add(name: str, kind: str, asset_id: str, price: float | None, reported: float | None = None) -> None:
        factor = next((f for f in market.exponents(asset_id) if f.startswith(_PRICE)), None)
        if factor is not None:
            found.setdefault(name, Subject(name, kind, factor, price, reported))

    def usd(asset_id: str) -> float | None:
        try:
            return market.asset_price(row["venue"], account_id, asset_id)[0]
        except IncompleteAccountError:
            return None

    for balance in market.balances.get(account_id, ()):
        add(balance["asset_id"], "balance", balance["asset_id"], usd(balance["asset_id"]))
    for position in market.positions.get(account_id, ()):
        instrument = market.instruments[position["instrument_id"]]
        underlying = instrument["underlying"]
        if instrument["kind"] == "option":
            add(underlying, "underlying", underlying, usd(underlying))
            continue
        mark = market.mark(row["venue"], account_id, position["instrument_id"], "mark")
        add(
            _position_name(position),
            "position",
            underlying,
            None if mark is None else mark["value"],
            _number(position["reported_liquidation_price"]),
        )
    return [found[name] for name in sorted(found)]


def _position_name(position: Row) -> str:
    side = position["side_mode"]
    return str(position["instrument_id"]) + ("" if side == "net" else f"/{side}")


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


# ---- one account under one factor ------------------------------------------------------------------------------------


class _Book(NamedTuple):
    """The book's cube on the host (NumPy leaves) and its factors."""

    factors: Sequence[str]
    rows: CubeRows
    today: np.ndarray

    @property
    def factor_rows(self) -> int:
        return int(self.rows.exponent_factor.shape[0])

    def _products(self, row: int) -> Iterable[tuple[str, float]]:
        """Factors of a row's product: of the row itself, or of an option's conversion."""
        option = row - self.factor_rows
        factor, weight = (
            (self.rows.exponent_factor[row], self.rows.exponent_weight[row])
            if option < 0
            else (self.rows.conversion_factor[option], self.rows.conversion_weight[option])
        )
        return ((self.factors[int(f)], float(w)) for f, w in zip(factor, weight, strict=True) if w != 0.0)

    def factors_of(self, row: int) -> set[str]:
        """Factors that move a row, implied vols aside."""
        names = {name for name, _ in self._products(row)}
        if row >= self.factor_rows:
            names.add(self.factors[int(self.rows.price_factor[row - self.factor_rows])])
        return names

    def power(self, row: int, factor: str) -> float:
        """Power of a factor in a row's product."""
        return math.fsum(weight for name, weight in self._products(row) if name == factor)


class _Account(NamedTuple):
    """One account's rows; rows are those of the book's cube."""

    info: AccountInfo
    groups: list[tuple[ValueGroup, list[tuple[int, float]]]]
    """(group, its legs as (row, coefficient))"""
    requirements: list[tuple[int, float]]
    tiers: list[TierEntry]
    units: list[UnitRow]
    maintenance: float
    equity: float

    def rows(self) -> set[int]:
        """Every row that the account's rules refer to."""
        out = {row for _, legs in self.groups for row, _ in legs} | {row for row, _ in self.requirements}
        out |= {group.floor_row for group, _ in self.groups}
        out |= {row for tier in self.tiers for row in (tier.row, tier.conversion_row)}
        return out | {token[4] for unit in self.units for token in unit.collateral}

    def price_factors(self, exposed: Mapping[int, set[str]]) -> list[str]:
        """Price factors that move something of the account, sorted; `exposed` are the factors of its rows."""
        names = {name for of_row in exposed.values() for name in of_row}
        for unit in self.units:
            names |= {name for name, power in unit.stable_exponents if power}
            names |= {unit.price_factor} if unit.price_factor else set()
        return sorted(name for name in names if name.startswith(_PRICE))


def _accounts(portfolio: PackedPortfolio) -> list[_Account]:
    legs: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for group, row, coefficient in portfolio.native_legs:
        legs[group].append((row, coefficient))
    out = [
        _Account(info, [], [], [], [], fixed[1], fixed[2])
        for info, fixed in zip(portfolio.accounts, portfolio.fixed, strict=True)
    ]
    for number, (account, value_group) in enumerate(portfolio.groups):
        out[account].groups.append((value_group, legs[number]))
    for account, row, _, maintenance in portfolio.requirements:
        out[account].requirements.append((row, maintenance))
    for account, tier in portfolio.tiers:
        out[account].tiers.append(tier)
    for unit in portfolio.units:
        out[unit.account].units.append(unit)
    return out


class _Search(NamedTuple):
    """One account under one factor: its condensed portfolio, and the cube rows that the factor moves."""

    place: tuple[int, int, str]
    """(portfolio, account, factor)"""
    portfolio: PackedPortfolio
    powers: list[float]
    options: list[int]
    """Rows of the book's cube."""


def _search(
    book: _Book, account: _Account, exposed: Mapping[int, set[str]], factor: str, place: tuple[int, int, str]
) -> _Search:
    """What the factor moves as rows of a small cube, everything else as constants.

    The small cube has the powers of the factor in its first rows, power 0 first, and behind them the options that it
    moves; row 0 stands for whatever stays.
    """
    moving = {row for row, factors in exposed.items() if factor in factors}
    options = sorted(row for row in moving if row >= book.factor_rows)
    powers = [0.0, *sorted({book.power(row, factor) for row in moving if row < book.factor_rows} - {0.0})]
    if len(powers) > _POWERS:
        raise ValueError(f"{factor} in {len(powers)} different powers, at most {_POWERS} are possible")
    number = {row: _POWERS + place for place, row in enumerate(options)}

    def local(row: int) -> int:
        if row not in moving:
            return 0
        return number[row] if row in number else powers.index(book.power(row, factor))

    def summed(rows: Iterable[tuple[int, float]]) -> dict[int, float]:
        """Coefficients by local row; what stays is its worth today, on row 0."""
        parts: dict[int, list[float]] = defaultdict(list)
        for row, coefficient in rows:
            at = local(row)
            parts[at].append(coefficient if at else coefficient * float(book.today[row]))
        return {at: math.fsum(of) for at, of in sorted(parts.items())}

    equity, maintenance = [account.equity], [account.maintenance]
    small = PackedPortfolio("", accounts=[account.info])
    for group, rows in account.groups:
        legs = summed(rows)
        if any(legs) or local(group.floor_row):
            small.native_legs += [(len(small.groups), at, coefficient) for at, coefficient in legs.items()]
            small.groups.append((0, group._replace(floor_row=local(group.floor_row))))
        else:
            equity.append(_counted(group, legs.get(0, 0.0)))
            maintenance.append(group.debt_maintenance * max(-legs.get(0, 0.0), 0.0))
    required = summed(account.requirements)
    maintenance.append(required.pop(0, 0.0))
    small.requirements = [(0, at, 0.0, coefficient) for at, coefficient in required.items()]
    for tier in account.tiers:
        moved = tier._replace(row=local(tier.row), conversion_row=local(tier.conversion_row))
        if moved.row or moved.conversion_row:
            small.tiers.append((0, moved))
        else:
            maintenance.append(_tier_maintenance(tier))
    small.units = [_unit(unit, factor, local) for unit in account.units]
    small.fixed = [(0.0, math.fsum(maintenance), math.fsum(equity))]
    return _Search(place, small, powers, options)


def _counted(group: ValueGroup, net: float) -> float:
    """What a constant net value counts; `rules.weighted_value` in plain numbers."""
    steps = np.diff((0.0, *group.maintenance_weights))
    parts = [float(step) * max(net - floor, 0.0) for floor, step in zip(group.floors, steps, strict=True)]
    return math.fsum([*parts, min(net, 0.0) * group.liability_maintenance])


def _tier_maintenance(tier: TierEntry) -> float:
    """Requirement of a position that nothing moves; `rules.tiered_notional` in plain numbers."""
    tables = tier.tables
    above = np.maximum(tier.notional - tables.floor, 0.0)
    parts = [*(tables.step * above), *np.where(above > 0.0, tables.jump, 0.0)]
    return max(math.fsum(parts), tier.minimum) * tier.conversion


def _unit(unit: UnitRow, factor: str, local: Callable[[int], int]) -> UnitRow:
    return unit._replace(
        account=0,
        price_factor=None if unit.price_factor is None else _renamed(unit.price_factor, factor),
        vol_factor=_STILL,
        stable_exponents=tuple((_renamed(name, factor), power) for name, power in unit.stable_exponents),
        collateral=tuple((*token[:4], local(token[4])) for token in unit.collateral),
    )


def _renamed(name: str, factor: str) -> str:
    return _MOVED if name == factor else _STILL


# ---- on the device ---------------------------------------------------------------------------------------------------


class _Task(eqx.Module):
    """One search (a leading axis over searches is added by the bucket)."""

    portfolio: PortfolioArrays
    rows: CubeRows
    today: Float[Array, " rows"]


class _Found(NamedTuple):
    """Answer of one search, both sides (down, up)."""

    gone_today: Bool[Array, ""]
    exists: Bool[Array, " sides"]
    move: Float[Array, " sides"]
    """0 where there is none."""


class _State(NamedTuple):
    passes: Int[Array, ""]
    gone_today: Bool[Array, ""]
    found: Bool[Array, " sides"]
    near: Float[Array, " sides"]
    far: Float[Array, " sides"]
    near_distance: Float[Array, " sides"]
    far_distance: Float[Array, " sides"]


def _grid() -> np.ndarray:
    """Log moves of the first pass, (sides, points): today itself, then outward."""
    outward = SMALLEST_STEP * (LARGEST_MOVE / SMALLEST_STEP) ** (np.arange(_POINTS - 1) / (_POINTS - 2))
    outward[-1] = LARGEST_MOVE
    side = np.concatenate([[0.0], outward])
    return np.stack([-side, side])


_GRID = _grid()
_FRACTIONS = np.arange(1, _POINTS + 1) / (_POINTS + 1)


def _distance(task: _Task, moves: Float[Array, "sides points"]) -> tuple[Array, Array]:
    """(distance to liquidation in the account's unit, verdict) at every move; a nonfinite distance has no verdict."""
    columns = moves.reshape(-1)
    shocks = jnp.stack([jnp.zeros_like(columns), columns], axis=1)
    change = jax.vmap(lambda s: task.rows.changes(s, horizon_years=0.0, dtype=jnp.float64))(shocks).T
    margin = scenario_margin(task.portfolio, task.today, change, shocks, task.rows, horizon_years=0.0)
    gone = liquidated(task.portfolio, margin)[0]
    needed = rounded(task.portfolio.trigger[0] * jnp.maximum(margin.maintenance[0], 0.0))
    return (margin.equity[0] - needed).reshape(moves.shape), gone.reshape(moves.shape)


def _find(task: _Task, _: None) -> _Found:
    """The first change of the verdict outward from today, on both sides."""

    def is_open(state: _State) -> Array:
        return state.found & (jnp.abs(state.far - state.near) > BRACKET)

    def again(state: _State) -> Array:
        return (state.passes < _MOST_PASSES) & jnp.any(is_open(state))

    def narrower(state: _State) -> _State:
        first_pass = state.passes == 0
        inside = state.near[:, None] + rounded((state.far - state.near)[:, None] * jnp.asarray(_FRACTIONS)[None, :])
        moves = jnp.where(first_pass, jnp.asarray(_GRID), inside)
        distance, gone = _distance(task, moves)
        gone_today = jnp.where(first_pass, gone[0, 0], state.gone_today)
        turned = (gone != gone_today) & jnp.isfinite(distance)
        turns = jnp.any(turned, axis=1)
        at = jnp.where(turns, jnp.argmax(turned, axis=1), _POINTS)

        def before(values: Array, otherwise: Array) -> Array:
            held = jnp.take_along_axis(values, jnp.maximum(at - 1, 0)[:, None], axis=1)[:, 0]
            return jnp.where(at > 0, held, otherwise)

        def there(values: Array, otherwise: Array) -> Array:
            held = jnp.take_along_axis(values, jnp.minimum(at, _POINTS - 1)[:, None], axis=1)[:, 0]
            return jnp.where(turns, held, otherwise)

        held = is_open(state)
        near_distance = before(distance, state.near_distance)
        return _State(
            passes=state.passes + 1,
            gone_today=gone_today,
            found=jnp.where(first_pass, turns & jnp.isfinite(near_distance), state.found),
            near=jnp.where(held, before(moves, state.near), state.near),
            far=jnp.where(held, there(moves, state.far), state.far),
            near_distance=jnp.where(held, near_distance, state.near_distance),
            far_distance=jnp.where(held, there(distance, state.far_distance), state.far_distance),
        )

    nothing = jnp.zeros(2, jnp.float64)
    start = _State(
        passes=jnp.zeros((), jnp.int32),
        gone_today=jnp.zeros((), bool),
        found=jnp.ones(2, bool),
        near=nothing,
        far=jnp.asarray(_GRID[:, -1]),
        near_distance=nothing,
        far_distance=nothing,
    )
    end = lax.while_loop(again, narrower, start)
    # Where the rule jumps over zero, or the verdict turns at zero itself, the secant stays inside the step.
    fall = end.near_distance - end.far_distance
    share = jnp.where(fall == 0.0, 1.0, end.near_distance / jnp.where(fall == 0.0, 1.0, fall))
    move = end.near + rounded((end.far - end.near) * jnp.clip(share, 0.0, 1.0))
    return _Found(end.gone_today, end.found, jnp.where(end.found, move, 0.0))


# ---- the book --------------------------------------------------------------------------------------------------------


def liquidation_moves(
    portfolios: Sequence[PackedPortfolio], factors: Sequence[str], cube: Cube, *, devices: int = 1
) -> list[list[dict[str, Moves]]]:
    """Moves by price factor of every account of every portfolio, in their order.

    `factors` are those of the cube. A factor that moves nothing of an account's rules has no entry.
    """
    book = _Book(tuple(factors), jax.tree.map(np.asarray, cube.rows), np.asarray(cube.today))
    out: list[list[dict[str, Moves]]] = []
    searches: list[_Search] = []
    for number, portfolio in enumerate(portfolios):
        accounts = _accounts(portfolio)
        out.append([{} for _ in accounts])
        for place, account in enumerate(accounts):
            exposed = {row: book.factors_of(row) for row in account.rows()}
            searches += [
                _search(book, account, exposed, factor, (number, place, factor))
                for factor in account.price_factors(exposed)
            ]
    # A shape costs seconds to trace and compile: few searches share one, however unlike they are.
    parts = [searches]
    if len(searches) > _SEARCHES_PER_SHAPE:
        parts = [[s for s in searches if bool(s.portfolio.units) == with_units] for with_units in (False, True)]
    for part in parts:
        for search, found in zip(part, _searched(part, book, devices), strict=True):
            number, place, factor = search.place
            out[number][place][factor] = found
    return out


def _searched(searches: Sequence[_Search], book: _Book, devices: int) -> list[Moves]:
    out: list[Moves | None] = [None] * len(searches)
    portfolios = [search.portfolio for search in searches]
    most_buckets = max(1, min(_MOST_BUCKETS, len(searches) // _SEARCHES_PER_SHAPE))
    for bucket in bucketed(portfolios, (_STILL, _MOVED), multiple=devices, most_buckets=most_buckets):
        count = len(bucket.arrays.trigger)
        members = [searches[position] for position in bucket.members]
        rows, today = _small_cubes(members, book, count)
        # From the host: splitting what lies on one device takes a small program for every shape of an array.
        task = _Task(jax.tree.map(np.asarray, bucket.arrays), rows, today)
        found: _Found = jax.device_get(map_bucket(task, None, _find, devices))
        for place, position in enumerate(bucket.members):
            down, up = (
                float(move) if exists else None
                for move, exists in zip(found.move[place], found.exists[place], strict=True)
            )
            out[position] = Moves(bool(found.gone_today[place]), down, up)
    return [moves for moves in out if moves is not None]


def _small_cubes(searches: Sequence[_Search], book: _Book, count: int) -> tuple[CubeRows, Any]:
    """The cubes of all searches of a bucket and their rows today (NumPy), padded to `count` searches and to one number
    of options.
    """
    options = rounded_up(max(len(search.options) for search in searches))
    neutral: Mapping[str, tuple[float, type]] = {
        "forward": (1.0, np.float64),
        "strike": (1.0, np.float64),
        "years": (0.1, np.float64),
        "vol": (0.5, np.float64),
        "discount": (1.0, np.float64),
        "is_call": (True, np.bool_),
        "conversion_today": (0.0, np.float64),
    }
    # Any: host arrays stand where the module declares device arrays.
    columns: dict[str, Any] = {name: np.full((count, options), fill, kind) for name, (fill, kind) in neutral.items()}
    own = tuple(columns)
    columns |= {
        "exponent_factor": np.ones((count, _POWERS, TERMS), np.int32),
        "exponent_weight": np.zeros((count, _POWERS, TERMS)),
        "price_factor": np.zeros((count, options), np.int32),
        "vol_factor": np.zeros((count, options), np.int32),
        "conversion_factor": np.ones((count, options, TERMS), np.int32),
        "conversion_weight": np.zeros((count, options, TERMS)),
    }
    today = np.concatenate([np.ones((count, _POWERS)), np.zeros((count, options))], axis=1)
    moved_by = np.asarray(book.rows.price_factor)
    for number, search in enumerate(searches):
        factor, held = search.place[2], len(search.options)
        columns["exponent_weight"][number, : len(search.powers), 0] = search.powers
        at = np.array(search.options, np.int64) - book.factor_rows
        for name in own:
            columns[name][number, :held] = np.asarray(getattr(book.rows, name))[at]
        columns["price_factor"][number, :held] = [book.factors[int(f)] == factor for f in moved_by[at]]
        columns["conversion_weight"][number, :held, 0] = [book.power(row, factor) for row in search.options]
        today[number, _POWERS : _POWERS + held] = book.today[search.options]
    return CubeRows(**columns), today
