"""Liquidation prices: closed forms, a slow twin, the venue's own figures, and the same answer in any company."""

from __future__ import annotations

import functools
import importlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import ndtr

from adapters.adapter import Context, find_adapter
from adapters.asset_book import read_asset_book
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.batch import bucketed
from aggregator.condensed import BookCube, accounts_of, condensed
from aggregator.config import TILE
from aggregator.cube import CubeBuilder
from aggregator.engine import Cube, evaluate_headlines, map_bucket
from aggregator.liquidation_price import LARGEST_MOVE, Moves, Subject, account_subjects, liquidation_moves
from aggregator.margin import is_liquidated, liquidated, scenario_margin
from aggregator.market import Market
from aggregator.native import native_today
from aggregator.portfolio import Book, pack_book
from aggregator.report import _liquidation_prices, render_report
from aggregator.results import Evaluated, liquidation_price_rows, result_table
from aggregator.rule_forms import Component, DebtCharge, Fixed, TieredNotional, Verdict, WeightedValue, component_rows
from aggregator.snapshot import Snapshot, take_snapshot
from tests import margin_twin, report_samples
from tests.engine_accounts import BUILDERS, AccountBook, account, balance, book_of, coin_options, position
from tests.engine_book import FACTORS, cube_of, packed, snapshot_of
from tests.engine_markets import AS_OF, EXPIRIES, SPOT, Rows, mark, market_rows, merged, option_id, rows
from tests.engine_rules import rule_rows

ROOT = Path(__file__).resolve().parent.parent
ROOT_RTOL = 2e-13  # the bracket is 1e-13 wide, and closed forms round a few times themselves


class Moved(NamedTuple):
    """A packed book and the moves of its accounts by id."""

    book: Book
    cube: Cube
    moves: dict[str, dict[str, Moves]]


def moved(book: Book) -> Moved:
    cube = cube_of(book, scenarios=256)
    found = liquidation_moves(book.portfolios, FACTORS, cube)
    by_id = {
        info.account_id: of
        for portfolio, accounts in zip(book.portfolios, found, strict=True)
        for info, of in zip(portfolio.accounts, accounts, strict=True)
    }
    return Moved(book, cube, by_id)


# ---- closed forms ----------------------------------------------------------------------------------------------------

MARK = 3000.0
USDC = SPOT["USDC"]  # what an account in USDC is worth in dollars; it never enters its own figures
TIERS = ((0.0, 0.01, 0.0), (50_000.0, 0.02, 500.0), (200_000.0, 0.05, 6_500.0))
"""floor, rate, deduction"""


def _own_rules() -> Rows:
    """Rule sets and markets of venue `own`: one tier, three tiers, whole-notional tiers, coins, a fixed requirement."""

    def perp(symbol: str, underlying: str, settlement: str, **columns: Any) -> dict[str, Any]:
        return {
            "instrument_id": f"own:{symbol}",
            "venue": "own",
            "symbol": symbol,
            "kind": "perp",
            "underlying": underlying,
            "settlement_asset": settlement,
            "payoff": "linear",
            "contract_size": "1",
        } | columns

    def tiers(rule_set: str, market: str, steps: Sequence[tuple[float, float, float]]) -> list[dict[str, Any]]:
        return [
            {
                "rule_set": rule_set,
                "market": f"own:{market}",
                "tier": number,
                "notional_floor": str(floor),
                "initial_rate": str(2 * rate),
                "maintenance_rate": str(rate),
                "deduction": str(deduction),
                "source": "venue",
            }
            for number, (floor, rate, deduction) in enumerate(steps, start=1)
        ]

    def rules(name: str, *requirements: Any, **verdict: Any) -> list[dict[str, Any]]:
        parts = [
            Component(side="equity", parameters=WeightedValue()),
            *(Component(side="requirement", parameters=r, group_by="position") for r in requirements),
            Component(side="verdict", parameters=Verdict(**({"liquidates_when": "below"} | verdict))),
        ]
        return component_rows(name, parts, source="test")

    tiered = TieredNotional(initial="tier_rate")
    fixed = Fixed(initial=Decimal(700), maintenance=Decimal(500), basis="computed for the test")
    whole = ((0.0, 0.01, 0.0), (50_000.0, 0.02, 0.0))
    return rows(
        instruments=[
            perp("ETH", "ETH", "USDC"),
            perp("BTC", "BTC", "USDC"),
            perp("BTC-COIN", "BTC", "BTC", payoff="inverse", contract_size="100"),
        ],
        marks=[
            mark("own", "ETH", "index", MARK * 1.001),
            mark("own", "BTC", "index", SPOT["BTC"]),
            mark("own", "USDC", "index", USDC),
            mark("own", "own:ETH", "mark", MARK),
            mark("own", "own:BTC", "mark", 60_000.0),
            mark("own", "own:BTC-COIN", "mark", 60_000.0),
        ],
        rule_sets=[
            *rules("one", tiered),
            *rules("three", tiered),
            *rules("whole", tiered),
            *rules("coins", tiered),
            *rules("trigger", tiered, trigger=Decimal("1.5"), liquidates_when="at_or_below"),
            *rules("fixed", fixed),
            *rules(
                "debts", DebtCharge(net_by_asset=True, initial_rate=Decimal("0.1"), maintenance_rate=Decimal("0.02"))
            ),
        ],
        margin_tiers=[
            *tiers("one", "ETH", TIERS[:1]),
            *tiers("one", "BTC", TIERS[:1]),
            *tiers("one", "BTC-COIN", TIERS[:1]),
            *tiers("trigger", "ETH", TIERS[:1]),
            *tiers("three", "ETH", TIERS),
            *tiers("whole", "ETH", whole),
            *tiers("coins", "BTC-COIN", TIERS[:1]),
        ],
    )


CALL = option_id("options", "ETH", 2, 3700, "call")


def _cases() -> Rows:
    """One account per closed form."""

    def perp(name: str, rule_set: str, cash: float, *held: tuple[str, float, float]) -> Rows:
        return rows(
            accounts=[account(f"own:{name}", rule_set, "USDC")],
            balances=[balance(f"own:{name}", "USDC", cash)],
            positions=[
                position(f"own:{name}", f"own:{symbol}", quantity, entry_price=str(entry))
                for symbol, quantity, entry in held
            ],
        )

    coins = rows(
        accounts=[account(f"own:coins:{side}", "coins", "BTC") for side in ("long", "short")],
        balances=[balance("own:coins:long", "BTC", 0.5), balance("own:coins:short", "BTC", 0.5)],
        positions=[
            position("own:coins:long", "own:BTC-COIN", 1200, entry_price="61000"),
            position("own:coins:short", "own:BTC-COIN", -1200, entry_price="61000"),
        ],
    )
    lenders = rows(
        accounts=[account(f"lend:{name}", "lend", "USD", margin_mode="lending") for name in ("eth", "usdc", "under")],
        balances=[
            balance("lend:eth", "ETH", 10),
            balance("lend:eth", "BTC", 0.1),
            balance("lend:eth", "USDC", -20_000),
            balance("lend:usdc", "USDC", 50_000),
            balance("lend:usdc", "ETH", -7),
            balance("lend:under", "ETH", 10),
            balance("lend:under", "USDC", -30_000),
        ],
    )
    others = rows(
        accounts=[
            account("options:call", "fixed", "USDC"),
            account("options:idle", "fixed", "USDC"),
            account("wallet:coins", "wallet", "USD"),
            account("wallet:dollars", "wallet", "USD"),
            account("own:hedged", "one", "USDC"),
            account("own:collateral", "one", "USDC"),
            account("own:isolated", "one", "USDC", margin_mode="isolated"),
            account("own:inverse", "one", "USDC"),
            account("own:basis", "one", "USDC"),
            account("own:debtor", "debts", "USDC"),
        ],
        balances=[
            balance("options:call", "USDC", 9_000),
            balance("options:idle", "USDC", 501),
            balance("options:idle", "ETH", 1, enabled=False),
            balance("wallet:coins", "ETH", 3),
            balance("wallet:dollars", "USDC", 5),
            balance("own:hedged", "USDC", 4_000),
            balance("own:collateral", "USDC", 2_000),
            balance("own:collateral", "ETH", 4),
            balance("own:isolated", "ETH", 1.5),
            balance("own:inverse", "USDC", 4_000),
            balance("own:basis", "USDC", 5_000),
            balance("own:debtor", "ETH", 10),
            balance("own:debtor", "USDC", -20_000),
            balance("own:debtor", "BTC", -0.1),
        ],
        positions=[
            position("options:call", CALL, -4),
            position("own:collateral", "own:ETH", -5, entry_price="2900"),
            position("own:isolated", "own:ETH", -5, entry_price="2900"),
            position("own:inverse", "own:BTC-COIN", 1200, entry_price="61000"),
            position("own:basis", "own:BTC", 2, entry_price="60000"),
            position("own:basis", "own:BTC-COIN", -1200, entry_price="60000"),
            position("own:hedged", "own:ETH", 10, side_mode="long", entry_price="3000"),
            position(
                "own:hedged",
                "own:ETH",
                -4,
                side_mode="short",
                entry_price="3100",
                reported_liquidation_price="4100.5",
            ),
        ],
    )
    return merged(
        perp("long", "one", 1_500, ("ETH", 5, 3100)),
        perp("short", "one", 1_500, ("ETH", -5, 2900)),
        perp("trigger", "trigger", 1_500, ("ETH", 5, 3100)),
        perp("three", "three", 60_000, ("ETH", -50, 3000)),
        perp("whole", "whole", 5_750, ("ETH", -15, 3000)),
        perp("cross", "one", 20_000, ("ETH", -30, 2950), ("BTC", 2, 61_000)),
        perp("rich", "one", 10_000, ("ETH", 2, 3000)),
        coins,
        lenders,
        others,
    )


@functools.cache
def case_tables() -> Rows:
    return merged(market_rows(), rule_rows(), _own_rules(), _cases())


@functools.cache
def cases() -> Moved:
    """Each account is a portfolio of its own."""
    tables = case_tables()
    names = [row["account_id"] for row in tables["accounts"]]
    return moved(packed(AccountBook(tables, {name: (name,) for name in names})))


def price(account_id: str, factor: str, today: float) -> tuple[float | None, float | None]:
    """(price below, price above) that liquidates, from the log moves."""
    found = cases().moves[account_id][f"price:{factor}"]
    below, above = (None if move is None else today * math.exp(move) for move in (found.down, found.up))
    assert below is None or below < today
    assert above is None or above > today
    return below, above


def exactly(value: float) -> Any:
    return pytest.approx(value, rel=ROOT_RTOL, abs=0.0)


@pytest.mark.parametrize(("name", "side", "entry"), [("own:long", 1, 3100.0), ("own:short", -1, 2900.0)])
def test_one_linear_perp_has_the_formula_of_its_venue(name: str, side: int, entry: float) -> None:
    # https://hyperliquid.gitbook.io, "Liquidations": price - side * margin_available / size / (1 - l * side)
    size, rate = 5.0, 0.01
    available = 1_500.0 + side * size * (MARK - entry) - rate * size * MARK
    expected = MARK - side * available / size / (1 - rate * side)
    below, above = price(name, "ETH", MARK)
    assert (below, above) == ((exactly(expected), None) if side > 0 else (None, exactly(expected)))


def test_a_trigger_scales_the_requirement() -> None:
    # 1500 + 5 (p - 3100) = 1.5 * 0.01 * 5 p
    assert price("own:trigger", "ETH", MARK) == (exactly((5 * 3100 - 1500) / (5 - 0.075)), None)


def test_tiers_change_on_the_way() -> None:
    # 60,000 - 50 (p - 3000) = rate * 50 p - deduction, with the tier of the root and not with today's.
    roots = [(210_000 + deduction) / (50 * (1 + rate)) for _, rate, deduction in TIERS]
    tiers = [sum(floor < 50 * root for floor, _, _ in TIERS) - 1 for root in roots]
    (consistent,) = [root for number, root in enumerate(roots) if tiers[number] == number]
    today = sum(floor < 50 * MARK for floor, _, _ in TIERS) - 1
    assert roots[today] != consistent
    assert price("own:three", "ETH", MARK) == (None, exactly(consistent))


def test_a_rule_that_jumps_over_zero_liquidates_where_it_jumps() -> None:
    # At 50,000 of notional equity is 750; needed are 500 there, and 1,000 as soon as the whole is charged at 2 %.
    assert 0.01 * 50_000 < 5_750 + 15 * 3000 - 50_000 < 0.02 * 50_000
    assert price("own:whole", "ETH", MARK) == (None, exactly(50_000 / 15))


def test_an_inverse_perp_in_coins() -> None:
    # 0.5 + N (1/61000 - 1/p) = 0.01 |N| / p with N dollars
    for name, dollars in (("own:coins:long", 120_000.0), ("own:coins:short", -120_000.0)):
        root = (dollars + 0.01 * abs(dollars)) / (0.5 + dollars / 61_000)
        assert root > 0
        below, above = price(name, "BTC", 60_000.0)
        assert (below, above) == ((exactly(root), None) if dollars > 0 else (None, exactly(root)))


def test_a_lender_by_its_collateral_and_by_its_debt() -> None:
    weighted_btc = 0.1 * SPOT["BTC"] * 0.78
    owed = 20_000 * USDC
    assert price("lend:eth", "ETH", SPOT["ETH"]) == (exactly((owed - weighted_btc) / (10 * 0.83)), None)
    # Without its bitcoin the account still stands.
    assert price("lend:eth", "BTC", SPOT["BTC"]) == (None, None)
    assert price("lend:usdc", "ETH", SPOT["ETH"]) == (None, exactly(50_000 * USDC * 0.78 / 7))


def test_a_charge_on_what_is_owed() -> None:
    eth, btc = MARK * 1.001, SPOT["BTC"]
    # In USDC: what is held less 1.02 of what is owed, of which one moves and the other stays.
    below = 1.02 * (20_000 + 0.1 * btc / USDC) / 10 * USDC
    assert price("own:debtor", "ETH", eth) == (exactly(below), None)
    above = (10 * eth / USDC - 1.02 * 20_000) / 0.102 * USDC
    assert price("own:debtor", "BTC", btc) == (None, exactly(above))


def test_a_cross_account_moves_one_price_at_a_time() -> None:
    eth, btc = -30 * (MARK - 2950), 2 * (60_000.0 - 61_000)
    cash = 20_000.0
    up = (cash + btc - 0.01 * 120_000 + 30 * 2950) / (30 * 1.01)
    assert price("own:cross", "ETH", MARK) == (None, exactly(up))
    down = (2 * 61_000 - cash - eth + 0.01 * 30 * MARK) / (2 * 0.99)
    assert price("own:cross", "BTC", 60_000.0) == (exactly(down), None)


def by_mark(account_id: str, symbol: str, today: float) -> tuple[float | None, float | None]:
    """(price below, price above) of one instrument's mark alone."""
    found = cases().moves[account_id][f"mark:own:{symbol}"]
    below, above = (None if move is None else today * math.exp(move) for move in (found.down, found.up))
    return below, above


def test_the_mark_alone_leaves_collateral_in_the_coin_where_it_is() -> None:
    # 4 ETH at their index, 2,000 USDC and a short of 5 ETH: equity 2000 + 4 i + 5 (2900 - p) against 0.01 * 5 p.
    index = MARK * 1.001 / USDC
    root = (2_000 + 4 * index + 5 * 2900) / (5 * 1.01)
    assert by_mark("own:collateral", "ETH", MARK) == (None, exactly(root))
    # With the coin moving along a rise takes a loss of 1 ETH alone.
    both = (2_000 + 5 * 2900) / (5 * 1.01 - 4 * 1.001 / USDC)
    assert price("own:collateral", "ETH", MARK) == (None, exactly(both))


def test_the_mark_alone_of_an_inverse_contract_leaves_its_coin_at_its_index() -> None:
    # An account in USDC: (1200 * 100 (1/61000 - 1/p)) S + 4000 = 0.01 * 120,000 / p * S with S the coin in USDC.
    coin, dollars = SPOT["BTC"] / USDC, 120_000.0
    root = dollars * 1.01 * coin / (dollars / 61_000 * coin + 4_000)
    assert by_mark("own:inverse", "BTC-COIN", 60_000.0) == (exactly(root), None)


def test_the_mark_of_one_contract_leaves_the_other_of_the_same_coin_where_it_is() -> None:
    # Long 2 BTC in one contract, short 2 coins' worth in the other: together next to nothing moves.
    assert by_mark("own:basis", "BTC", 60_000.0)[0] is not None
    assert by_mark("own:basis", "BTC-COIN", 60_000.0)[1] is not None
    assert price("own:basis", "BTC", 60_000.0)[0] is None
    inverse = -2 * 60_000 * (1 / 60_000 - 1 / 60_000) * SPOT["BTC"] / USDC
    required = 0.01 * 2 * SPOT["BTC"] / USDC
    root = (2 * 60_000 - 5_000 - inverse + required) / (2 * 0.99)
    assert by_mark("own:basis", "BTC", 60_000.0) == (exactly(root), None)


def test_both_sides_of_one_market_move_with_its_mark() -> None:
    # 10 long from 3000, 4 short from 3100: 4000 + 10 (p - 3000) - 4 (p - 3100) = 0.01 * 14 p
    assert by_mark("own:hedged", "ETH", MARK) == (exactly((30_000 - 12_400 - 4_000) / (6 - 0.14)), None)


def test_a_mark_that_moves_all_of_its_asset_is_the_same_search() -> None:
    moves = cases().moves["own:cross"]
    assert moves.keys() == {"price:ETH", "price:BTC", "mark:own:ETH", "mark:own:BTC"}
    assert moves["mark:own:ETH"] is moves["price:ETH"]
    assert moves["mark:own:BTC"] is moves["price:BTC"]


def test_the_mark_of_an_isolated_position_does_not_move_alone() -> None:
    # 1.5 coins as collateral of a short of 5: both move, so that a rise loses 3.5 each.
    assert cases().moves["own:isolated"].keys() == {"price:ETH"}
    coins = 1.5 * 1.001 / USDC
    assert price("own:isolated", "ETH", MARK) == (None, exactly(5 * 2900 / (5 * 1.01 - coins)))


def test_a_sold_call_is_liquidated_above() -> None:
    years = (EXPIRIES[2] - AS_OF).total_seconds() / (365 * 86400)
    forward = SPOT["ETH"] * (1.0 + 0.0004 + 0.011 * 2)
    vol, discount = 0.5 + 0.02 * (3 - 2) ** 2 + 0.03 * 2, math.exp(-0.045 * years)

    def condition(move: float) -> float:
        f, total = forward * math.exp(move), vol * math.sqrt(years)
        d1 = math.log(f / 3700) / total + total / 2
        # The quote is USDC: at its own price in an account in USDC.
        return float(9_000 - 4 * discount * (f * ndtr(d1) - 3700 * ndtr(d1 - total)) - 500)

    found = cases().moves["options:call"]["price:ETH"]
    assert found.down is None
    assert not found.liquidatable_now
    assert found.up == pytest.approx(brentq(condition, 0.0, 2.0, xtol=1e-15), rel=1e-11)


def test_without_debt_or_with_enough_cash_there_is_none() -> None:
    assert cases().moves["wallet:coins"] == {"price:ETH": Moves(False, None, None)}
    # 10,000 against 2 ETH that cannot lose more than 6,000
    nothing = Moves(False, None, None)
    assert cases().moves["own:rich"] == {"price:ETH": nothing, "mark:own:ETH": nothing}
    assert cases().moves["wallet:dollars"] == {}
    assert cases().moves["options:idle"] == {}, "a balance that does not count moves nothing of the rules"


def test_an_account_that_is_liquidatable_now_has_the_price_that_cures_it() -> None:
    found = cases().moves["lend:under"]["price:ETH"]
    assert found.liquidatable_now
    assert price("lend:under", "ETH", SPOT["ETH"]) == (None, exactly(30_000 * USDC / (10 * 0.83)))


# ---- the twin --------------------------------------------------------------------------------------------------------

PORTFOLIOS = ("p0", "p1")
SEED = 47
IN_COINS = "coin:grid"
KINDS = (*BUILDERS, IN_COINS)
WHOLE_NOTIONAL = "multi:slices"


class Drawn(NamedTuple):
    snapshot: Snapshot
    found: Moved


def in_coins(account_id: str, rng: np.random.Generator) -> Rows:
    """Options in coins under the grid, in an account whose unit is the coin: the twin has no such grid."""
    part = coin_options(account_id, rng)
    part["accounts"][0] |= {"rule_set": "portfolio", "venue": "coin"}
    return part


@functools.cache
def drawn() -> Drawn:
    """Two accounts of every kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUILDERS, IN_COINS, in_coins)
        book = book_of(dict.fromkeys(PORTFOLIOS, KINDS), seed=SEED)
    return Drawn(snapshot_of(book.tables), moved(packed(book)))


def twin(account_id: str, factor: str, log_moves: Sequence[float]) -> margin_twin.Account:
    shocks = np.zeros((len(log_moves), len(FACTORS)))
    shocks[:, FACTORS.index(factor)] = log_moves
    world = margin_twin.World(drawn().snapshot.tables, FACTORS, shocks, as_of=AS_OF, horizon_days=0.0)
    return margin_twin.account_twin(world, account_id)


def test_every_outcome_is_drawn() -> None:
    found = [moves for of in drawn().found.moves.values() for moves in of.values()]
    assert any(m.liquidatable_now and m.up is not None for m in found)
    assert any(m.down is not None and m.up is not None for m in found)
    assert any(m == Moves(False, None, None) for m in found)
    assert sum(m.down is not None for m in found) > 12
    assert sum(m.up is not None for m in found) > 12


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != IN_COINS])
@settings(max_examples=3)
@given(portfolio=st.sampled_from(PORTFOLIOS), shares=st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=30))
def test_the_condition_of_the_twin_is_zero_there_and_nowhere_nearer(
    kind: str, portfolio: str, shares: list[float]
) -> None:
    account_id = f"{kind}:{portfolio}:{KINDS.index(kind)}"
    for factor, found in drawn().found.moves[account_id].items():
        if factor.startswith("price:"):
            check_against_twin(account_id, factor, found, shares)


def check_against_twin(account_id: str, factor: str, found: Moves, shares: Sequence[float]) -> None:
    for side, move in ((-1, found.down), (1, found.up)):
        end = side * LARGEST_MOVE if move is None else move
        near = sorted({share * end for share in [*shares, *np.linspace(0.01, 0.99, 99)]})
        step = 1e-10 * max(abs(end), 1e-3)
        expected = twin(account_id, factor, [0.0, *near, end, end - side * step, end + side * step])
        today, *between, at, inside, outside = expected.liquidated.tolist()
        assert today == found.liquidatable_now
        assert between == [today] * len(near), (account_id, factor, move)
        if move is None:
            assert at == today
            continue
        scale = max(expected.maintenance[0], expected.maintenance[-3])
        if abs(expected.distance[-3]) <= 1e-9 * scale:
            continue
        assert account_id.startswith(WHOLE_NOTIONAL), (account_id, factor, move, expected.distance[-3], scale)
        assert (inside, outside) == (today, not today), (account_id, factor, move)


def test_the_verdict_of_the_account_packed_anew_at_the_mark_found_turns_there() -> None:
    """Independent of how a mark is moved: the snapshot with another mark of the account's own, packed and judged."""
    snapshot, (book, _, by_id) = drawn()
    found = {
        account_id: [
            (mover.removeprefix("mark:"), move, of.liquidatable_now)
            for mover, of in moves.items()
            if mover.startswith("mark:")
            for move in (of.down, of.up)
            if move is not None
        ]
        for account_id, moves in by_id.items()
    }
    assert sum(map(len, found.values())) > 10
    marks = Market(snapshot, CubeBuilder(), AS_OF, frozenset())
    portfolios = {p.portfolio_id: [info.account_id for info in p.accounts] for p in book.portfolios}
    for number in range(max(map(len, found.values()))):
        # One move of each account at a time, so that all are judged in one book.
        now = [(account_id, of[number]) for account_id, of in found.items() if len(of) > number]
        for share, turned in ((1 - 1e-9, False), (1 + 1e-9, True)):
            own = []
            for account_id, (instrument, move, _) in now:
                row = marks.mark(marks.accounts[account_id]["venue"], account_id, instrument, "mark")
                assert row is not None
                own.append(row | {"account_id": account_id, "value": row["value"] * math.exp(move * share)})
            tables = dict(snapshot.tables)
            taken = {(row["account_id"], row["subject"]) for row in own}
            kept = [r for r in tables["marks"] if r["field"] != "mark" or (r["account_id"], r["subject"]) not in taken]
            again, _ = pack_book(
                {"": replace(snapshot, tables=tables | {"marks": (*kept, *own)})}, portfolios, as_of=AS_OF
            )
            verdicts = {}
            for portfolio, native in zip(again.portfolios, native_today(again), strict=True):
                assert native is not None
                for n, info in enumerate(portfolio.accounts):
                    verdicts[info.account_id] = is_liquidated(
                        native.equity[n],
                        native.maintenance[n],
                        trigger=info.trigger,
                        at_or_below=info.at_or_below,
                        needs_requirement=info.needs_requirement,
                    )
            for account_id, (instrument, move, today) in now:
                assert verdicts[account_id] == (today != turned), (account_id, instrument, move)


def test_what_is_left_of_an_account_under_a_factor_is_the_whole_account() -> None:
    """The verdict of the whole portfolio, on the book's own cube, turns at the moves found."""
    book, cube, by_id = drawn().found
    portfolio = book.portfolios[0]
    arrays = jax.tree.map(lambda leaf: jax.device_put(leaf[0]), bucketed([portfolio], FACTORS)[0].arrays)

    @jax.jit
    def verdicts(shocks: jax.Array) -> jax.Array:
        change = jax.vmap(lambda s: cube.rows.changes(s, horizon_years=0.0, dtype=jnp.float64))(shocks).T
        margin = scenario_margin(arrays, cube.today, change, shocks, cube.rows, horizon_years=0.0)
        return liquidated(arrays, margin)

    turned = 0
    for number, factor in enumerate(FACTORS):
        if not factor.startswith("price:"):
            continue
        columns = np.zeros((TILE, len(FACTORS)))
        for place, info in enumerate(portfolio.accounts):
            found = by_id[info.account_id].get(factor, Moves(False, None, None))
            for side, move in ((0, found.down), (1, found.up)):
                if move is not None:
                    at = 1 + 4 * place + 2 * side
                    columns[at : at + 2, number] = move * (1 - 1e-9), move * (1 + 1e-9)
        gone = np.asarray(verdicts(jnp.asarray(columns)))
        for place, info in enumerate(portfolio.accounts):
            for at in (1 + 4 * place, 3 + 4 * place):
                if columns[at, number] != 0.0:
                    expected = [gone[place, 0], not gone[place, 0]]
                    assert gone[place, at : at + 2].tolist() == expected, (info.account_id, factor)
                    turned += 1
    assert turned > 20


def test_a_unit_of_an_account_in_coins_keeps_the_move_of_its_money() -> None:
    book, cube, _ = drawn().found
    host = BookCube(FACTORS, jax.tree.map(np.asarray, cube.rows), np.asarray(cube.today))
    (account,) = [of for of in accounts_of(book.portfolios[0]) if of.info.account_id.startswith(IN_COINS)]
    exposed = {row: host.factors_of(row) for row in account.rows()}
    assert account.price_factors(exposed) == ["price:BTC"]
    for factor, name in (("price:BTC", "moved"), ("price:ETH", "still")):
        (unit,) = condensed(host, account, exposed, factor).portfolio.units
        assert unit.stable_exponents == ((name, 1.0),)
        assert unit.price_factor == name
        assert unit.vol_factor == "still"


# ---- what the venue says ---------------------------------------------------------------------------------------------


class Stated(NamedTuple):
    reported: float
    ours: float | None
    with_the_asset: float | None
    """Where everything moves that depends on the price."""


def stated(venue: str, folder: Path, files: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str], Stated]:
    """Ours by both definitions and the venue's liquidation price, by account and subject."""
    adapter = find_adapter(venue)
    transport = RecordedTransport(folder)
    answers = [transport.fetch(venue, PayloadRequest(*file)) for file in files]
    brought = [answer for answer in answers if isinstance(answer, Payload)]
    assert brought == answers
    dated = ROOT / f"configs/venues/{venue}.toml"
    parameters = tomllib.loads(dated.read_text()) if dated.is_file() else {}
    context = Context(read_asset_book(ROOT / "configs/assets.toml"), parameters)
    result = adapter.normalize(brought, context)
    snapshot = take_snapshot([result.batches], result.failures)
    held = snapshot.tables["positions"]
    ids = sorted({row["account_id"] for row in held if row["reported_liquidation_price"] is not None})
    as_of = max(row["received_at"] or row["event_at"] for row in snapshot.tables["accounts"])
    book, _ = pack_book({"": snapshot}, {"desk": ids}, as_of=as_of)
    factors = book.factors()
    rows_of_cube = book.cube.build(factors)
    cube = Cube(
        rows=rows_of_cube,
        today=rows_of_cube.today(),
        change=jnp.zeros((1, 1)),
        shocks=jnp.zeros((1, 1)),
        weights=jnp.ones(1),
        horizon_years=0.0,
    )
    (found,) = liquidation_moves(book.portfolios, factors, cube)
    market = Market(snapshot, CubeBuilder(), as_of, frozenset())
    out = {}
    for info, moves in zip(book.portfolios[0].accounts, found, strict=True):
        for subject in account_subjects(market, info.account_id):
            if subject.reported is None:
                continue
            price, reported = subject.price, subject.reported
            assert price is not None

            def there(found: Moves, price: float = price, reported: float = reported) -> float | None:
                side = found.down if reported < price else found.up
                return None if side is None else price * math.exp(side)

            by_factor = moves[subject.factor]
            by_mark = moves.get(subject.mark or "", by_factor)
            out[info.account_id, subject.name] = Stated(reported, there(by_mark), there(by_factor))
    return out


def test_the_prices_that_hyperliquid_states() -> None:
    files = [
        ("metaAndAssetCtxs", "meta_and_asset_ctxs.json", ""),
        ("clearinghouseState", "clearinghouse_state_north.json", "north"),
        ("spotClearinghouseState", "spot_clearinghouse_state_north.json", "north"),
    ]
    found = stated("hyperliquid", ROOT / "configs/quickstart/hyperliquid", files)
    assert {name for _, name in found} == {"hyperliquid:ETH", "hyperliquid:SOL"}
    for price in found.values():
        # Cash and two markets: nothing but the position itself depends on its price.
        assert price.ours == price.with_the_asset == pytest.approx(price.reported, rel=1e-12)


@pytest.mark.parametrize("venue", ["binance", "bybit", "drift_v2", "okx", "paradex"])
def test_the_prices_that_venues_state_are_those_of_the_mark_alone(venue: str) -> None:
    sample = importlib.import_module(f"tests.sample_{venue}")
    found = stated(venue, ROOT / f"tests/payloads/{venue}", sample.PAYLOADS)
    assert found
    for price in found.values():
        # Half a unit of the last of two decimals, half of one of six or more.
        assert price.ours == pytest.approx(price.reported, abs=0.005 if venue == "bybit" else 1e-6, rel=1e-12)
    apart = {name for name, price in found.items() if price.with_the_asset != price.ours}
    expected = {
        "drift_v2": {("drift_v2:north:0", "drift_v2:SOL-PERP")},  # lends SOL beside its perpetual
        "paradex": {("paradex:desk", "paradex:BTC-USD-PERP")},  # holds options of it
    }
    assert apart == expected.get(venue, set())


def test_the_price_of_an_account_in_several_assets_is_that_of_the_mark_alone() -> None:
    files = [
        (
            json.loads((ROOT / "configs" / payload["file"]).read_text())["request"],
            payload["file"],
            source.get("owner", ""),
        )
        for source in tomllib.loads((ROOT / "configs/quickstart.toml").read_text())["sources"]
        if source["venue"] == "binance" and source.get("owner") in (None, "north")
        for payload in source["payloads"]
    ]
    found = stated("binance", ROOT / "configs", files)
    bitcoin = found["binance:north:multi", "binance:BTCUSDT"]
    assert bitcoin.ours == pytest.approx(bitcoin.reported, abs=1e-8)
    # Its bitcoin is collateral too and gains what the short loses: together they stand a rise of 2,000 times.
    assert bitcoin.with_the_asset is not None
    assert bitcoin.with_the_asset > 100 * bitcoin.reported


# ---- in any company --------------------------------------------------------------------------------------------------


def test_neighbors_and_order_change_no_bit() -> None:
    book, cube, together = drawn().found
    backwards = book.portfolios[::-1]
    found = liquidation_moves(backwards, FACTORS, cube)
    for portfolio, of in zip(backwards, found, strict=True):
        assert {i.account_id: m for i, m in zip(portfolio.accounts, of, strict=True)}.items() <= together.items()
    # Few searches share one program, many are parted by whether they have risk units.
    (alone,) = liquidation_moves(book.portfolios[:1], FACTORS, cube)
    for info, moves in zip(book.portfolios[0].accounts, alone, strict=True):
        assert moves == together[info.account_id]


def test_equal_shapes_are_compiled_once() -> None:
    found = cases()
    compiled: Any = map_bucket
    before = compiled._cache_size()
    liquidation_moves(found.book.portfolios, FACTORS, found.cube)
    assert compiled._cache_size() == before


def test_nothing_gives_nothing() -> None:
    assert liquidation_moves([], FACTORS, cases().cube) == []


# ---- rows and report -------------------------------------------------------------------------------------------------


@functools.cache
def case_figures() -> list[Evaluated]:
    found = cases()
    headlines = evaluate_headlines(found.book.portfolios, FACTORS, found.cube, devices=1)
    return [Evaluated(p, h) for p, h in zip(found.book.portfolios, headlines, strict=True)]


@functools.cache
def case_rows() -> list[dict[str, Any]]:
    found = cases()
    market = Market(snapshot_of(case_tables()), CubeBuilder(), AS_OF, frozenset())
    out = []
    for evaluated in case_figures():
        ids = [info.account_id for info in evaluated.portfolio.accounts]
        moves = [found.moves[account_id] for account_id in ids]
        subjects = [account_subjects(market, account_id) for account_id in ids]
        out += liquidation_price_rows(evaluated, moves, subjects)
    return result_table("liquidation_prices", "run", out).to_pylist()


def row_of(account_id: str, subject: str) -> Mapping[str, Any]:
    (row,) = [r for r in case_rows() if (r["account_id"], r["subject"]) == (account_id, subject)]
    return row


def test_every_subject_has_a_row_and_its_status() -> None:
    keys = [(r["account_id"], r["subject"]) for r in case_rows()]
    assert len(set(keys)) == len(keys)
    assert not [name for name, _ in keys if name == "wallet:dollars"], "dollars are no subject of a price factor"
    assert row_of("wallet:coins", "ETH")["status"] == "none"
    assert row_of("options:idle", "ETH")["status"] == "none"
    under = row_of("lend:under", "ETH")
    assert (under["status"], under["kind"], under["price_down"]) == ("liquidatable_now", "balance", None)
    assert under["price_up"] == exactly(30_000 * USDC / (10 * 0.83))
    market, asset = row_of("own:basis", "own:BTC"), row_of("own:basis", "BTC")
    assert [(row["kind"], row["factor"]) for row in (market, asset)] == [
        ("position", "mark:own:BTC"),
        ("factor", "price:BTC"),
    ]
    assert (market["price"], asset["price"]) == (60_000.0, SPOT["BTC"])
    # A price that moves no more than one market does is not said twice.
    assert [r["subject"] for r in case_rows() if r["account_id"] == "own:cross"] == ["own:BTC", "own:ETH"]
    assert [r["subject"] for r in case_rows() if r["account_id"] == "own:isolated"] == ["ETH", "own:ETH"]
    call = row_of("options:call", "ETH")
    assert (call["kind"], call["factor"], call["price"]) == ("underlying", "price:ETH", SPOT["ETH"])
    assert call["price_up"] == call["price"] * math.exp(call["log_move_up"])


def test_both_sides_of_a_market_are_two_subjects_with_their_own_reported_price() -> None:
    long, short = row_of("own:hedged", "own:ETH/long"), row_of("own:hedged", "own:ETH/short")
    assert long["price_down"] == short["price_down"] is not None
    assert (long["reported_liquidation_price"], long["difference"]) == (None, None)
    assert short["reported_liquidation_price"] == 4100.5
    # Net long: no rise liquidates, so there is nothing to hold against the reported price above.
    assert short["price_up"] is None
    assert short["difference"] is None


def test_the_difference_is_on_the_side_of_the_reported_price() -> None:
    (long,) = [of for of in case_figures() if of.portfolio.portfolio_id == "own:long"]
    moves = [{"price:ETH": Moves(False, -0.5, 0.25)}]
    rows_of = [
        liquidation_price_rows(long, moves, [[Subject("x", "position", "price:ETH", None, 100.0, reported)]])[0]
        for reported in (60.0, 130.0)
    ]
    assert [row["difference"] for row in rows_of] == [
        100 * math.exp(-0.5) - 60.0,
        100 * math.exp(0.25) - 130.0,
    ]
    both = moves[0] | {"mark:x": Moves(False, -0.125, None)}
    subjects = [
        Subject("x", "position", "price:ETH", "mark:x", 100.0, 60.0),
        Subject("ETH", "factor", "price:ETH", None, 99.0, None),
    ]
    alone, along = liquidation_price_rows(long, [both], [subjects])
    assert (alone["factor"], alone["price_down"], alone["price_up"]) == ("mark:x", 100 * math.exp(-0.125), None)
    assert alone["difference"] == 100 * math.exp(-0.125) - 60.0
    assert (along["factor"], along["price_up"]) == ("price:ETH", 99 * math.exp(0.25))
    unpriced = liquidation_price_rows(long, moves, [[Subject("x", "underlying", "price:ETH", None, None, None)]])[0]
    assert (unpriced["price_down"], unpriced["log_move_down"]) == (None, -0.5)


def test_an_account_without_finite_figures_has_no_price() -> None:
    (long,) = [of for of in case_figures() if of.portfolio.portfolio_id == "own:long"]
    assert long.headline is not None
    nothing: Any = np.zeros_like(long.headline.account_is_finite)
    broken = long.headline._replace(account_is_finite=nothing)
    subject = Subject("x", "position", "price:ETH", None, 100.0, 60.0)
    (row,) = liquidation_price_rows(
        long._replace(headline=broken), [{"price:ETH": Moves(False, -0.5, None)}], [[subject]]
    )
    assert row["status"] == "calculation"
    assert (row["log_move_down"], row["price_down"], row["difference"]) == (None, None, None)


def test_the_report_shows_the_nearest_first() -> None:
    shown = _liquidation_prices(case_rows())
    assert [row["status"] for row in shown[:1]] == ["liquidatable_now"]
    nearest = [
        min(abs(row[name]) for name in ("log_move_down", "log_move_up") if row[name] is not None) for row in shown[1:]
    ]
    assert nearest == sorted(nearest)
    assert {row["status"] for row in shown} == {"ok", "liquidatable_now"}

    tables = dict(report_samples.one_desk())
    desk = tables["portfolio_margin"].column("portfolio_id")[0].as_py()
    mine = [row | {"portfolio_id": desk} for row in case_rows()]
    tables["liquidation_prices"] = result_table("liquidation_prices", report_samples.RUN, mine)
    page = render_report(tables)
    section = page[page.index("<h3>Liquidation prices</h3>") : page.index("<h3>Positions: alone")]
    accounts = [row["account_id"] for row in shown]
    places = [section.index(f">{name}") for name in dict.fromkeys(accounts)]
    assert places == sorted(places)
    below = price("own:long", "ETH", MARK)[0]
    assert below is not None
    assert f"{below:,.2f}" in section
    assert "nan" not in section.lower().replace("finance", "")
    assert "underlying of options" in section
