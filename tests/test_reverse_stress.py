"""Reverse stress against closed forms, brute force over a plain twin, and what must hold of any answer."""

from __future__ import annotations

import functools
import json
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.engine import Cube, Headline, evaluate_headlines
from aggregator.liquidation_price import Moves, liquidation_moves
from aggregator.portfolio import Book
from aggregator.results import Evaluated, result_table
from aggregator.reverse_results import reverse_stress_rows
from aggregator.reverse_stress import (
    FARTHEST,
    NearestMove,
    nearest_moves,
    semidefinite_root,
    weighted_covariance,
)
from aggregator.schema.results import RESULT_KEYS
from tests import margin_twin
from tests.engine_accounts import EVERY_KIND, AccountBook, account, balance, book_of, isolated, position
from tests.engine_book import FACTORS, cube_of, packed, snapshot_of
from tests.engine_markets import AS_OF, SPOT, Rows, market_rows, merged, option_id, rows
from tests.engine_rules import rule_rows

pytestmark = pytest.mark.slow

FLAT = 2e-4  # a search ends when a round gains 1e-4 of the distance; the last one may leave as much again
CURVED = 1e-3  # a margin surplus of 1e-4 of the notional: the logarithm bends by less than the move itself
GRID = 0.01  # of a standard deviation: half the spacing of the brute force


class Searched(NamedTuple):
    """A book, its cube and covariance, and the answers of all its accounts."""

    tables: Rows
    book: Book
    cube: Cube
    covariance: np.ndarray
    nearest: list[list[NearestMove]]

    def of(self, account_id: str) -> NearestMove:
        return next(
            move
            for portfolio, moves in zip(self.book.portfolios, self.nearest, strict=True)
            for info, move in zip(portfolio.accounts, moves, strict=True)
            if info.account_id == account_id
        )


QUANTITIES = {"BTC": 0.4, "ETH": -9.0, "SOL": 150.0}
LINEAR, STRADDLE, SINGLE = "perps:linear", "standard:straddle", "perps:single"


def linear(surplus: float) -> Rows:
    """Perps at their entry prices in the first bracket, with `surplus` USDC above the maintenance requirement."""
    notional = {s: q * SPOT[s] * BASIS[s] for s, q in QUANTITIES.items()}
    needed = sum(0.005 * abs(n) for n in notional.values())
    positions = [
        position(LINEAR, f"perps:{s}-PERP", q, entry_price=repr(SPOT[s] * BASIS[s]), leverage="10")
        for s, q in QUANTITIES.items()
    ]
    # The account's unit is USDC, marked in USDC.
    return rows(
        accounts=[account(LINEAR, "perps", "USDC")],
        balances=[balance(LINEAR, "USDC", needed + surplus)],
        positions=positions,
    )


BASIS = {"BTC": 1.0008, "ETH": 0.9995, "SOL": 1.0021}
SURPLUS = 10.0


def straddle(cash: float) -> Rows:
    positions = [position(STRADDLE, option_id("standard", "ETH", 2, 3300, kind), -10.0) for kind in ("call", "put")]
    return rows(
        accounts=[account(STRADDLE, "standard", "USDC")],
        balances=[balance(STRADDLE, "USDC", cash)],
        positions=positions,
    )


@functools.cache
def searched() -> Searched:
    some = book_of({name: EVERY_KIND[name] for name in ("n1", "n2", "u1")}, seed=2)
    tables = merged(some.tables, linear(SURPLUS), straddle(14_000.0), isolated(SINGLE, np.random.default_rng(4)))
    book = packed(AccountBook(tables, some.portfolios | {"own": (LINEAR, STRADDLE, SINGLE)}))
    cube = cube_of(book)
    covariance = weighted_covariance(np.asarray(cube.shocks), np.asarray(cube.weights))
    return Searched(tables, book, cube, covariance, nearest_moves(book.portfolios, FACTORS, cube, covariance))


ACCOUNTS = sorted({f"{kind}:{p}:{n}" for p in ("n1", "n2", "u1") for n, kind in enumerate(EVERY_KIND[p])})


def twin(account_id: str, shocks: np.ndarray) -> margin_twin.Account:
    """The plain twin after instantaneous moves [n, factors]."""
    world = margin_twin.World(snapshot_of(searched().tables).tables, FACTORS, shocks, as_of=AS_OF, horizon_days=0.0)
    return margin_twin.account_twin(world, account_id)


def full(moves: dict[str, float] | Any) -> np.ndarray:
    return np.array([moves.get(name, 0.0) for name in FACTORS])


def local(found: NearestMove) -> list[int]:
    return [FACTORS.index(name) for name in found.moves]


# ---- the covariance --------------------------------------------------------------------------------------------------


def test_the_covariance_is_weighted() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=(512, 5)) * [1, 2, 3, 4, 5], rng.random(512)
    weights /= weights.sum()
    np.testing.assert_allclose(
        weighted_covariance(values, weights), np.cov(values.T, aweights=weights, ddof=0), rtol=1e-12, atol=1e-14
    )


def test_the_root_of_a_singular_matrix_leaves_dependent_factors_without_a_column() -> None:
    root = np.array([[2.0, 0.0, 0.0], [1.0, 3.0, 0.0], [3.0, 3.0, 0.0]])  # the third is the sum of the others
    found = semidefinite_root(root @ root.T)
    np.testing.assert_allclose(found, root, rtol=1e-12, atol=1e-12)
    assert not semidefinite_root(np.zeros((2, 2))).any()


# ---- the nearest move ------------------------------------------------------------------------------------------------


def test_a_linear_account_has_a_closed_form() -> None:
    """Surplus over the standard deviation of what it depends on: positions less their maintenance, all of it linear."""
    found = searched().of(LINEAR)
    sensitivity = np.zeros(len(FACTORS))
    for symbol, quantity in QUANTITIES.items():
        notional = quantity * SPOT[symbol] * BASIS[symbol]
        sensitivity[FACTORS.index(f"price:{symbol}")] = notional - 0.005 * abs(notional)
    spread = math.sqrt(sensitivity @ searched().covariance @ sensitivity)
    assert found.status == "ok"
    assert found.distance == pytest.approx(SURPLUS / spread, rel=CURVED)
    at = local(found)
    expected = -searched().covariance @ sensitivity * SURPLUS / spread**2
    np.testing.assert_allclose(full(found.moves)[at], expected[at], rtol=1e-2)  # flat: see FLAT


def test_an_option_account_is_the_nearest_of_a_fine_grid() -> None:
    """The dollar stands still (a factor without variance), which leaves price and volatility."""
    still = np.array(searched().covariance)
    still[FACTORS.index("peg:USDC")] = still[:, FACTORS.index("peg:USDC")] = 0.0
    own = next(p for p in searched().book.portfolios if p.portfolio_id == "own")
    (nearest,) = nearest_moves([own], FACTORS, searched().cube, still)
    found = nearest[[info.account_id for info in own.accounts].index(STRADDLE)]
    assert found.status == "ok"
    assert found.distance is not None
    assert found.moves["peg:USDC"] == 0.0
    at = [FACTORS.index(name) for name in ("price:ETH", "vol:ETH")]
    assert set(found.moves) == {"peg:USDC", "price:ETH", "vol:ETH"}
    root = np.linalg.cholesky(still[np.ix_(at, at)])
    angle = np.linspace(0.0, 2.0 * math.pi, 720, endpoint=False)
    turns = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    length = np.arange(2 * GRID, FARTHEST, 2 * GRID)
    shocks = np.zeros((len(turns) * len(length), len(FACTORS)))
    shocks[:, at] = ((turns @ root.T)[:, None, :] * length[None, :, None]).reshape(-1, 2)
    gone = twin(STRADDLE, shocks).liquidated.reshape(len(turns), len(length))
    shortest = min(length[row.argmax()] for row in gone if row.any())
    assert shortest - 2 * GRID <= found.distance <= shortest + GRID


def test_one_factor_gives_its_liquidation_price() -> None:
    seen = 0
    book, moves = searched().book.portfolios, moves_of_one_factor()
    for portfolio, nearest, alone in zip(book, searched().nearest, moves, strict=True):
        for info, found, of in zip(portfolio.accounts, nearest, alone, strict=True):
            if len(found.moves) != 1 or found.status != "ok":
                continue
            (factor,) = found.moves
            spread = math.sqrt(searched().covariance[FACTORS.index(factor), FACTORS.index(factor)])
            sides = [abs(move) / spread for move in (of[factor].down, of[factor].up) if move is not None]
            assert found.distance == pytest.approx(min(sides), rel=1e-6), info.account_id
            seen += 1
    assert seen


@pytest.mark.parametrize("account_id", [*ACCOUNTS, LINEAR, STRADDLE, SINGLE])
def test_the_verdict_turns_at_the_move(account_id: str) -> None:
    found = searched().of(account_id)
    if found.status == "liquidatable_now":
        today = twin(account_id, np.zeros((1, len(FACTORS))))
        assert today.liquidated[0]
        assert (found.distance, found.moves) == (0.0, {})
        return
    if found.status == "none":
        assert found.distance is None
        return
    assert found.status == "ok"
    assert found.distance is not None
    assert 0.0 < found.distance <= FARTHEST
    sides = np.array([0.999, 1.001])[:, None] * full(found.moves)
    assert twin(account_id, sides).liquidated.tolist() == [False, True]
    at = local(found)
    move, inverse = full(found.moves)[at], np.linalg.inv(searched().covariance[np.ix_(at, at)])
    assert found.distance == pytest.approx(math.sqrt(move @ inverse @ move), rel=1e-9)
    np.testing.assert_allclose(
        [found.normal[name] for name in found.moves], inverse @ move / found.distance, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("account_id", [*ACCOUNTS, LINEAR, STRADDLE, SINGLE])
def test_nothing_nearer_is_found_at_random(account_id: str) -> None:
    """Thousands of random moves nearer than the answer, many of them near its direction, liquidate nothing."""
    found = searched().of(account_id)
    if found.status == "liquidatable_now":
        return
    rng = np.random.default_rng(3)
    root = np.linalg.cholesky(searched().covariance)
    turns = rng.normal(size=(3000, len(FACTORS)))
    if found.distance is not None:
        turns[:1500] = np.linalg.solve(root, nearest_full(found)) / found.distance * 3.0 + turns[:1500] * 0.5
    turns /= np.linalg.norm(turns, axis=1)[:, None]
    farthest = FARTHEST if found.distance is None else found.distance * (1.0 - FLAT)
    lengths = farthest * np.array([0.25, 0.5, 0.75, 0.9, 0.97, 1.0])
    shocks = (lengths[:, None, None] * (turns @ root.T)[None]).reshape(-1, len(FACTORS))
    gone = twin(account_id, shocks).liquidated
    assert not gone.any(), f"{found.status} {found.distance}: {lengths[np.flatnonzero(gone) // len(turns)].min()}"


def nearest_full(found: NearestMove) -> np.ndarray:
    """The move of all factors: the account's own, and the others as they move beside these on average."""
    at = local(found)
    covariance = searched().covariance
    move = full(found.moves)[at]
    return covariance[:, at] @ np.linalg.solve(covariance[np.ix_(at, at)], move)


def test_every_status_occurs() -> None:
    seen = {move.status for of in searched().nearest for move in of}
    assert seen == {"ok", "none", "liquidatable_now"}


def test_a_smaller_surplus_is_nearer_and_none_beyond_the_reach() -> None:
    distances = []
    for surplus in (10.0, 100.0, 1e6):
        book = packed(AccountBook(merged(market_rows(), rule_rows(), linear(surplus)), {"own": (LINEAR,)}))
        (found,) = nearest_moves(book.portfolios, FACTORS, cube_of(book), searched().covariance)[0]
        distances.append(found)
    assert 0.0 < float(distances[0].distance or 0.0) < float(distances[1].distance or 0.0)
    assert distances[2] == NearestMove("none", None, {}, {})


def test_the_same_bits_whatever_else_is_searched() -> None:
    for portfolio, expected in zip(searched().book.portfolios, searched().nearest, strict=True):
        if portfolio.portfolio_id == "u1":
            continue  # a bucket of its own either way, and a compilation more
        alone = nearest_moves([portfolio], FACTORS, searched().cube, searched().covariance)
        assert alone == [expected]


# ---- rows ------------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    evaluated: Evaluated
    nearest: list[NearestMove]
    moves: list[dict[str, Moves]]


@functools.cache
def headlines() -> list[Headline | None]:
    """Of all portfolios at once: every shape is a program of its own."""
    return evaluate_headlines(searched().book.portfolios, FACTORS, searched().cube, devices=1)


@functools.cache
def moves_of_one_factor() -> list[list[dict[str, Moves]]]:
    return liquidation_moves(searched().book.portfolios, FACTORS, searched().cube)


def shown(portfolio_id: str) -> Shown:
    of = searched()
    place = [p.portfolio_id for p in of.book.portfolios].index(portfolio_id)
    headline = headlines()[place]
    assert isinstance(headline, Headline)
    return Shown(Evaluated(of.book.portfolios[place], headline), of.nearest[place], moves_of_one_factor()[place])


def rows_of(one: Shown) -> list[dict[str, Any]]:
    shocks, weights = np.asarray(searched().cube.shocks), np.asarray(searched().cube.weights)
    return reverse_stress_rows(one.evaluated, one.nearest, one.moves, FACTORS, shocks, weights)


def test_the_portfolio_goes_with_its_nearest_account() -> None:
    one = shown("n2")
    found = rows_of(one)
    (joint,) = [row for row in found if row["kind"] == "joint"]
    accounts = [row for row in found if row["kind"] == "account"]
    assert [row["subject"] for row in accounts] == [a.account_id for a in one.evaluated.portfolio.accounts]
    first = min((row for row in accounts if row["distance"] is not None), key=lambda row: row["distance"])
    same = ("account_id", "venue", "status", "distance", "moves", "probability")
    assert [joint[name] for name in same] == [first[name] for name in same]
    table = result_table("reverse_stress", "run", found)
    keys = list(zip(*(table.column(name).to_pylist() for name in RESULT_KEYS["reverse_stress"]), strict=True))
    assert len(set(keys)) == len(keys)


def test_the_probability_is_that_of_the_half_space() -> None:
    """A linear account: exactly the scenarios whose linear loss exceeds the surplus."""
    (row,) = [r for r in rows_of(shown("own")) if r["subject"] == LINEAR]
    shocks, weights = np.asarray(searched().cube.shocks), np.asarray(searched().cube.weights)
    found = searched().of(LINEAR)
    at = local(found)
    move = full(found.moves)[at]
    assert found.distance is not None
    score = shocks[:, at] @ np.linalg.solve(searched().covariance[np.ix_(at, at)], move) / found.distance
    assert row["probability"] == pytest.approx(weights[score >= found.distance].sum(), abs=2e-3)
    assert 0.3 < row["probability"] < 0.7  # next to nothing liquidates it
    moved = json.loads(row["moves"])
    assert moved == pytest.approx({name: math.expm1(x) for name, x in found.moves.items()}, rel=1e-12)


def test_each_price_alone_names_the_first_account_and_the_side() -> None:
    one = shown("n2")
    shocks, weights = np.asarray(searched().cube.shocks), np.asarray(searched().cube.weights)
    seen = 0
    for row in rows_of(one):
        if row["kind"] != "asset":
            continue
        values = shocks[:, FACTORS.index(row["subject"])]
        spread = math.sqrt(weights @ (values - weights @ values) ** 2)
        candidates = [
            (abs(move) / spread, info.account_id, move)
            for info, moves in zip(one.evaluated.portfolio.accounts, one.moves, strict=True)
            if row["subject"] in moves
            for move in (moves[row["subject"]].down, moves[row["subject"]].up)
            if move is not None
        ]
        if not candidates:
            assert (row["status"], row["distance"], row["account_id"]) == ("none", None, None)
            continue
        distance, account_id, move = min(candidates)
        assert (row["status"], row["account_id"]) == ("ok", account_id)
        assert row["distance"] == pytest.approx(distance, rel=1e-9)
        assert json.loads(row["moves"]) == pytest.approx({row["subject"]: math.expm1(move)}, rel=1e-12)
        beyond = values >= move if move > 0 else values <= move
        assert row["probability"] == pytest.approx(weights[beyond].sum(), abs=2e-3)
        seen += 1
    assert seen >= 2


def test_figures_that_are_not_finite_say_so() -> None:
    one = shown("n2")
    assert one.evaluated.headline is not None
    finite = jnp.zeros(len(one.evaluated.headline.account_is_finite), bool)
    wild = one._replace(
        evaluated=Evaluated(one.evaluated.portfolio, one.evaluated.headline._replace(account_is_finite=finite))
    )
    found = rows_of(wild)
    assert {row["status"] for row in found} == {"calculation"}
    assert all(row["distance"] is None for row in found)
