"""Liquidation prices: how far one price must move, all else as it is today, for a venue to liquidate an account.

For every account and everything that moves its rules: the smallest log move down and up at which the venue's own
verdict changes, found on the engine's margin itself, in float64, without time passing. Two definitions stand side by
side. The mark of one instrument moves its own positions alone: the price that venues display of a position. A price
factor moves everything that depends on it: collateral in the same coin, every position, options of the underlying.

A search is over a small portfolio (condensed.py), in columns of log moves: a geometric grid on both sides at first,
then evenly spaced points inside the step in which the verdict changes, until that step is narrower than 1e-13; the
secant of its ends is the answer. One traced evaluation serves all passes, and whatever depends on more than one column
is a selection, so padding and neighbors change no bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .batch import PortfolioArrays, bucketed
from .condensed import MARK, MOVED, POWERS, PRICE, STILL, BookCube, Condensed, accounts_of, condensed
from .cube import TERMS, CubeRows
from .engine import Cube, map_bucket
from .margin import liquidated, scenario_margin
from .market import IncompleteAccountError, Market
from .portfolio import PackedPortfolio
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
_SEARCHES_PER_SHAPE = 64
_MOST_BUCKETS = 6


class Moves(NamedTuple):
    """Log moves of one price at which the verdict on an account changes; None where it does not change within
    `LARGEST_MOVE`.
    """

    liquidatable_now: bool
    """Today's verdict. Where it is true, the moves are those that cure the account."""
    down: float | None
    up: float | None


class Subject(NamedTuple):
    """Something with a price that one mover moves in proportion: what a liquidation price is stated of."""

    name: str
    """Instrument (with `/long` or `/short` where an account holds both sides), or asset."""
    kind: str
    """position: a perpetual or future, by its mark. balance: an asset that is held or owed. underlying: the asset under
    options, whose own price no mover moves in proportion. factor: the asset under perpetuals and futures."""
    factor: str
    """Price factor behind the price."""
    mark: str | None
    """Name in `liquidation_moves` of a position's own mark; the factor stands for it where no mark moves alone."""
    price: float | None
    """Today's: an instrument's mark in its quote, an asset's price in USD."""
    reported: float | None
    """Liquidation price that the venue states of the position."""


# ---- what the account holds ------------------------------------------------------------------------------------------


def account_subjects(market: Market, account_id: str) -> list[Subject]:
    """Positions, balances and underlyings of one account whose price a price factor moves, by name.

    An asset is one subject, however often it stands in the account: a balance before the underlying of options before
    that of other positions.
    """
    row = market.accounts[account_id]
    found: dict[str, Subject] = {}

    def add(
        name: str,
        kind: str,
        asset_id: str,
        price: float | None,
        mark: str | None = None,
        reported: float | None = None,
    ) -> None:
        factor = next((f for f in market.exponents(asset_id) if f.startswith(PRICE)), None)
        if factor is not None:
            found.setdefault(name, Subject(name, kind, factor, mark, price, reported))

    def usd(asset_id: str) -> float | None:
        try:
            return market.asset_price(row["venue"], account_id, asset_id)[0]
        except IncompleteAccountError:
            return None

    for balance in market.balances.get(account_id, ()):
        add(balance["asset_id"], "balance", balance["asset_id"], usd(balance["asset_id"]))
    underlyings: dict[str, list[str]] = {"underlying": [], "factor": []}
    for position in market.positions.get(account_id, ()):
        instrument = market.instruments[position["instrument_id"]]
        underlying = instrument["underlying"]
        underlyings["underlying" if instrument["kind"] == "option" else "factor"].append(underlying)
        if instrument["kind"] == "option":
            continue
        mark = market.mark(row["venue"], account_id, position["instrument_id"], "mark")
        add(
            _position_name(position),
            "position",
            underlying,
            None if mark is None else mark["value"],
            MARK + position["instrument_id"],
            _number(position["reported_liquidation_price"]),
        )
    for kind, assets in underlyings.items():
        for asset_id in assets:
            add(asset_id, kind, asset_id, usd(asset_id))
    return [found[name] for name in sorted(found)]


def _position_name(position: Row) -> str:
    side = position["side_mode"]
    return str(position["instrument_id"]) + ("" if side == "net" else f"/{side}")


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


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
    """Moves by mover (`price:ASSET`, `mark:INSTRUMENT`) of every account of every portfolio, in their order.

    `factors` are those of the cube. A factor that moves nothing of an account's rules has no entry, and neither has a
    mark that does not move alone.
    """
    book = BookCube(tuple(factors), jax.tree.map(np.asarray, cube.rows), np.asarray(cube.today))
    out: list[list[dict[str, Moves]]] = []
    searches: list[Condensed] = []
    # Where the answer of a search goes: the account's moves, and every mover that moves the same of it.
    places: list[tuple[dict[str, Moves], list[str]]] = []
    for portfolio in portfolios:
        accounts = accounts_of(portfolio)
        out.append([{} for _ in accounts])
        for account, moves in zip(accounts, out[-1], strict=True):
            exposed = {row: book.factors_of(row) for row in account.rows()}
            first = len(searches)
            for factor in account.price_factors(exposed):
                searches.append(condensed(book, account, exposed, factor))
                places.append((moves, [factor]))
            last = len(searches)
            for mark in account.marks():
                search = condensed(book, account, exposed, MARK + mark.instrument_id)
                same = next((n for n in range(first, last) if search.moves_the_same(searches[n])), None)
                if same is None:
                    searches.append(search)
                    places.append((moves, [search.mover]))
                else:
                    places[same][1].append(search.mover)
    # A shape costs seconds to trace and compile: few searches share one, however unlike they are.
    parts: list[Sequence[int]] = [range(len(searches))]
    if len(searches) > _SEARCHES_PER_SHAPE:
        numbers = range(len(searches))
        parts = [
            [n for n in numbers if bool(searches[n].portfolio.units) == with_units] for with_units in (False, True)
        ]
    for part in parts:
        for number, found in zip(part, _searched([searches[n] for n in part], book, devices), strict=True):
            moves, movers = places[number]
            moves |= dict.fromkeys(movers, found)
    return out


def _searched(searches: Sequence[Condensed], book: BookCube, devices: int) -> list[Moves]:
    out: list[Moves | None] = [None] * len(searches)
    portfolios = [search.portfolio for search in searches]
    most_buckets = max(1, min(_MOST_BUCKETS, len(searches) // _SEARCHES_PER_SHAPE))
    for bucket in bucketed(portfolios, (STILL, MOVED), multiple=devices, most_buckets=most_buckets):
        count = len(bucket.arrays.trigger)
        members = [searches[position] for position in bucket.members]
        rows, today = _small_cubes(members, book, count)
        task = _Task(bucket.arrays, rows, today)
        found: _Found = jax.device_get(map_bucket(task, None, _find, devices, len(members)))
        for place, position in enumerate(bucket.members):
            down, up = (
                float(move) if exists else None
                for move, exists in zip(found.move[place], found.exists[place], strict=True)
            )
            out[position] = Moves(bool(found.gone_today[place]), down, up)
    return [moves for moves in out if moves is not None]


def _small_cubes(searches: Sequence[Condensed], book: BookCube, count: int) -> tuple[CubeRows, Any]:
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
        "exponent_factor": np.ones((count, POWERS, TERMS), np.int32),
        "exponent_weight": np.zeros((count, POWERS, TERMS)),
        "price_factor": np.zeros((count, options), np.int32),
        "vol_factor": np.zeros((count, options), np.int32),
        "conversion_factor": np.ones((count, options, TERMS), np.int32),
        "conversion_weight": np.zeros((count, options, TERMS)),
    }
    today = np.concatenate([np.ones((count, POWERS)), np.zeros((count, options))], axis=1)
    moved_by = np.asarray(book.rows.price_factor)
    for number, search in enumerate(searches):
        factor, held = search.mover, len(search.options)
        columns["exponent_weight"][number, : len(search.powers), 0] = search.powers
        at = np.array(search.options, np.int64) - book.factor_rows
        for name in own:
            columns[name][number, :held] = np.asarray(getattr(book.rows, name))[at]
        columns["price_factor"][number, :held] = [book.factors[int(f)] == factor for f in moved_by[at]]
        columns["conversion_weight"][number, :held, 0] = [book.power(row, factor) for row in search.options]
        today[number, POWERS : POWERS + held] = book.today[search.options]
    return CubeRows(**columns), today
