"""Margin of accounts: the engine against the float64 twin, today and in every scenario, and the verdicts."""

from __future__ import annotations

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aggregator.batch import PortfolioArrays, bucketed
from aggregator.engine import Cube
from aggregator.margin import (
    NativeMargin,
    ScenarioMargin,
    accumulate,
    is_liquidated,
    line_changes,
    liquidated,
    native_margin_today,
    scenario_margin,
)
from aggregator.portfolio import Book
from aggregator.pricing import DAYS_PER_YEAR
from tests import margin_twin
from tests.engine_accounts import EVERY_KIND, VARIANTS, AccountBook, account, balance, position
from tests.engine_book import FACTORS, SCENARIOS, cube_of, desk, packed, snapshot_of
from tests.engine_markets import AS_OF, mark, market_rows, merged, rows
from tests.engine_rules import rule_rows

NATIVE_RTOL = 1e-9  # contract: native figures at current prices are the venue's to 1e-9
BAND = 1e-4  # contract: requirement in scenarios within 1e-4, verdicts equal outside a band of 1e-4 of the requirement
# A leg in a scenario: coefficient, change and their product are each rounded to float32 once, and so is every addition
# of a leg to its line; lines have at most two legs.
FLOAT32_ROUNDINGS = 6 * 2.0**-24

# `bad` holds what float32 cannot; it is a case of test_engine.
PORTFOLIOS = (*EVERY_KIND, *(name for name in VARIANTS if name != "bad"))


class InScenarios(NamedTuple):
    """One portfolio today and in the scenarios that count, padding cut off."""

    native: NativeMargin
    line_profit: np.ndarray
    leg_size: np.ndarray
    """Sum of the sizes of each line's legs, the yardstick of its rounding."""
    equity: np.ndarray
    maintenance: np.ndarray
    liquidated: np.ndarray


@jax.jit
def _in_scenarios(arrays: PortfolioArrays, cube: Cube) -> tuple[NativeMargin, jax.Array, ScenarioMargin, jax.Array]:
    def one(portfolio: PortfolioArrays) -> tuple[NativeMargin, jax.Array, ScenarioMargin, jax.Array]:
        margin = scenario_margin(
            portfolio, cube.today, cube.change, cube.shocks, cube.rows, horizon_years=1.0 / DAYS_PER_YEAR
        )
        native = native_margin_today(portfolio, cube.today, jnp.zeros(len(FACTORS)), cube.rows)
        return native, line_changes(portfolio, cube.change), margin, liquidated(portfolio, margin)

    return lax.map(one, arrays)


def in_scenarios_of(book: Book, cube: Cube) -> dict[str, InScenarios]:
    """Every portfolio of a book, by id."""
    change = np.asarray(cube.change, np.float64)[:, :SCENARIOS]
    out = {}
    for bucket in bucketed(book.portfolios, FACTORS, most_buckets=1):
        native, profit, margin, gone = jax.device_get(_in_scenarios(bucket.arrays, cube))
        for place, member in enumerate(bucket.members):
            portfolio = book.portfolios[member]
            lines, accounts = len(portfolio.lines), len(portfolio.accounts)
            size = np.zeros((lines, SCENARIOS))
            for line, row, coefficient in portfolio.legs:
                size[line] += np.abs(coefficient * change[row])
            out[portfolio.portfolio_id] = InScenarios(
                native=NativeMargin(*(figures[place, :accounts] for figures in native)),
                line_profit=profit[place, :lines, :SCENARIOS],
                leg_size=size,
                equity=margin.equity[place, :accounts, :SCENARIOS],
                maintenance=margin.maintenance[place, :accounts, :SCENARIOS],
                liquidated=gone[place, :accounts, :SCENARIOS],
            )
    return out


@functools.cache
def in_scenarios() -> dict[str, InScenarios]:
    return in_scenarios_of(desk().book, desk().cube)


@functools.cache
def world() -> margin_twin.World:
    shocks = np.asarray(desk().cube.shocks)[:SCENARIOS]
    return margin_twin.World(snapshot_of(desk().tables).tables, FACTORS, shocks, as_of=AS_OF, horizon_days=1.0)


@functools.cache
def twin(account_id: str) -> margin_twin.Account:
    return margin_twin.account_twin(world(), account_id)


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_native_figures_today_are_the_rule_sets(portfolio_id: str) -> None:
    native = desk().headline(portfolio_id).native
    for place, info in enumerate(desk().portfolio(portfolio_id).accounts):
        expected = twin(info.account_id)
        for name, got in native._asdict().items():
            today = getattr(expected, name)[0]
            assert got[place] == pytest.approx(today, rel=NATIVE_RTOL, abs=0.0), (info.account_id, name)


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_the_profit_of_every_line_is_the_revaluation(portfolio_id: str) -> None:
    got = in_scenarios()[portfolio_id]
    for line, row in enumerate(desk().portfolio(portfolio_id).lines):
        values = twin(row.account_id).line_values[row.key]
        error = np.abs(got.line_profit[line] - (values[1:] - values[0]))
        # The last term is the rounding of the twin's own difference of two values.
        allowed = FLOAT32_ROUNDINGS * got.leg_size[line] + 1e-12 * np.abs(values).max()
        worst = int(np.argmax(error - allowed))
        assert np.all(error <= allowed), (row.key, worst, error[worst], allowed[worst])


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_equity_and_requirement_in_scenarios(portfolio_id: str) -> None:
    got = in_scenarios()[portfolio_id]
    for place, info in enumerate(desk().portfolio(portfolio_id).accounts):
        expected = twin(info.account_id)
        needed = expected.maintenance[1:]
        np.testing.assert_allclose(got.maintenance[place], needed, rtol=BAND, atol=0.0, err_msg=info.account_id)
        # An account without requirement has no band: its own equity is the yardstick there.
        band = BAND * np.where(needed > 0, needed, np.abs(expected.equity[1:]))
        error = np.abs(got.equity[place] - expected.equity[1:])
        worst = int(np.argmax(error - band))
        assert np.all(error <= band), (info.account_id, worst, error[worst], band[worst])


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_verdicts_are_equal_outside_the_band(portfolio_id: str) -> None:
    got = in_scenarios()[portfolio_id]
    for place, info in enumerate(desk().portfolio(portfolio_id).accounts):
        expected = twin(info.account_id)
        clear = np.abs(expected.distance) > BAND * info.trigger * expected.maintenance[1:]
        assert clear.mean() > 0.99 or not expected.maintenance.any(), info.account_id
        np.testing.assert_array_equal(got.liquidated[place][clear], expected.liquidated[clear], info.account_id)


def test_the_desk_has_every_outcome() -> None:
    # Else the comparisons above might see nothing but zeros.
    shares = {
        info.account_id: float(got.liquidated[place].mean())
        for portfolio_id, got in in_scenarios().items()
        for place, info in enumerate(desk().portfolio(portfolio_id).accounts)
    }
    assert 1.0 in shares.values(), "no account that is liquidatable already"
    assert 0.0 in shares.values()
    between = {name.partition(":")[0] for name, share in shares.items() if 0.0 < share < 1.0}
    assert between >= {"lend", "perps", "multi", "options", "standard"}
    assert any(_usdt_changes_sign(name) for name in shares if name.startswith("multi:"))
    assert any(_crosses_a_floor(name) for name in shares if name.startswith("perps:"))


def _usdt_changes_sign(account_id: str) -> bool:
    in_usdt = [
        v for key, v in twin(account_id).line_values.items() if "USDT" in key or "multi:SOL" in key or "JUN" in key
    ]
    net = np.sum(in_usdt, axis=0)
    return bool(net.min() < 0.0 < net.max())


def _crosses_a_floor(account_id: str) -> bool:
    """Whether the maintenance rate of the account's positions differs between scenarios by more than a tenth."""
    found = twin(account_id)
    if not found.maintenance[0]:
        return False
    moved = found.maintenance[1:] / found.maintenance[0]
    return bool(moved.max() > 1.1)


# ---- accounts whose figures are known --------------------------------------------------------------------------------


@functools.cache
def special() -> tuple[Book, dict[str, InScenarios]]:
    """Small accounts whose figures need no twin; every portfolio holds one and has its id."""
    spot, entry, coins = 62000.0, 50_000.0, 2.0
    instrument = {
        "instrument_id": "flat:BTC-PERP",
        "venue": "flat",
        "symbol": "BTC-PERP",
        "kind": "perp",
        "underlying": "BTC",
        "settlement_asset": "BTC",
        "payoff": "inverse",
        "contract_size": "100",
    }
    tier = {
        "rule_set": "coin",
        "market": "flat:BTC-PERP",
        "tier": 1,
        "notional_floor": "0",
        "initial_rate": "0.02",
        "maintenance_rate": "0.01",
        "deduction": "0",
        "source": "venue",
    }
    own = rows(
        assets=[{"asset_id": "DOLLAR", "symbol": "DOLLAR", "multiplier": "1"}],
        instruments=[instrument],
        margin_tiers=[tier],
        marks=[mark("flat", "BTC", "index", spot), mark("flat", "flat:BTC-PERP", "mark", spot)],
        accounts=[
            account("flat:synthetic", "coin", "BTC"),
            account("multi:stable", "wallet", "USDT"),
            account("wallet:dollars", "wallet", "USD"),
            account("wallet:debtor", "wallet", "USD"),
        ],
        balances=[
            balance("flat:synthetic", "BTC", coins),
            balance("multi:stable", "USDT", 1234.5),
            balance("wallet:dollars", "DOLLAR", 777.25),
            balance("wallet:debtor", "DOLLAR", 3400.0),
            balance("wallet:debtor", "ETH", -1.0),
        ],
        positions=[
            position(
                "flat:synthetic",
                "flat:BTC-PERP",
                -coins * entry / 100.0,
                entry_price=str(entry),
                leverage="10",
            )
        ],
    )
    names = [row["account_id"] for row in own["accounts"]]
    book = packed(AccountBook(merged(market_rows(), rule_rows(), own), {name: (name,) for name in names}))
    return book, in_scenarios_of(book, cube_of(book))


def test_coins_and_a_short_inverse_of_equal_worth_at_entry_are_a_dollar() -> None:
    book, found = special()
    got = found["flat:synthetic"]
    portfolio = next(p for p in book.portfolios if p.portfolio_id == "flat:synthetic")
    # c coins + short N = -cE: c S + N (S/E - 1) = c E at every price.
    assert sum(portfolio.line_equity) == pytest.approx(100_000.0, rel=NATIVE_RTOL)
    net = got.line_profit.astype(np.float64).sum(axis=0)
    assert np.all(np.abs(net) <= FLOAT32_ROUNDINGS * got.leg_size.sum(axis=0))
    assert np.abs(got.line_profit).max() > 10_000.0
    # In coins the equity moves against the price, and the dollar is never liquidated.
    assert got.native.equity[0] == pytest.approx(100_000.0 / 62_000.0, rel=NATIVE_RTOL)
    assert got.native.initial[0] == pytest.approx(100_000.0 / 62_000.0 / 10.0, rel=NATIVE_RTOL)
    assert got.native.maintenance[0] == pytest.approx(0.01 * 100_000.0 / 62_000.0, rel=NATIVE_RTOL)
    assert not got.liquidated.any()


def test_an_account_in_its_own_stable_does_not_see_the_peg() -> None:
    _, found = special()
    got = found["multi:stable"]
    np.testing.assert_array_equal(got.equity, 1234.5)
    assert np.abs(got.line_profit).max() > 1.0  # in dollars it does


def test_plain_dollars_do_not_move() -> None:
    _, found = special()
    got = found["wallet:dollars"]
    np.testing.assert_array_equal(got.line_profit, 0.0)
    np.testing.assert_array_equal(got.equity, 777.25)
    assert not got.liquidated.any()


def test_without_requirement_negative_equity_is_the_verdict() -> None:
    _, found = special()
    got = found["wallet:debtor"]
    assert got.native.equity[0] == 0.0
    np.testing.assert_array_equal(got.maintenance, 0.0)
    np.testing.assert_array_equal(got.liquidated[0], got.equity[0] < 0.0)
    assert 0.3 < got.liquidated.mean() < 0.7


# ---- pieces ----------------------------------------------------------------------------------------------------------


def test_a_verdict_at_the_trigger_itself() -> None:
    arrays = jax.tree.map(lambda leaf: leaf[0], bucketed(special()[0].portfolios, FACTORS)[0].arrays)
    portfolio = eqx.tree_at(
        lambda p: (p.trigger, p.at_or_below, p.account_is_real),
        arrays,
        (jnp.array([1.0, 1.0, 1.5, 1.0]), jnp.array([False, True, True, True]), jnp.array([True, True, True, False])),
    )
    equity = jnp.array([[99.0, 100.0, 101.0], [99.0, 100.0, 101.0], [149.0, 150.0, 151.0], [0.0, 0.0, 0.0]])
    gone = liquidated(portfolio, ScenarioMargin(equity, jnp.full((4, 3), 100.0)))
    expected = [[True, False, False], [True, True, False], [True, True, False], [False, False, False]]
    np.testing.assert_array_equal(gone, expected)


def test_without_a_requirement_the_venue_decides_what_a_negative_equity_is() -> None:
    arrays = jax.tree.map(lambda leaf: leaf[0], bucketed(special()[0].portfolios, FACTORS)[0].arrays)
    assert not arrays.needs_requirement.any()
    portfolio = eqx.tree_at(
        lambda p: (p.trigger, p.at_or_below, p.needs_requirement, p.account_is_real),
        arrays,
        (jnp.ones(4), jnp.zeros(4, bool), jnp.array([False, True, True, True]), jnp.ones(4, bool)),
    )
    equity = jnp.array([[-5.0, 0.0, 5.0]] * 4)
    requirement = jnp.broadcast_to(jnp.array([[0.0], [0.0], [1e-9], [jnp.nan]]), (4, 3))
    gone = liquidated(portfolio, ScenarioMargin(equity, requirement))
    expected = [[True, False, False], [False, False, False], [True, True, False], [False, False, False]]
    np.testing.assert_array_equal(gone, expected)


@pytest.mark.parametrize("at_or_below", [False, True])
@pytest.mark.parametrize("needs_requirement", [False, True])
def test_the_verdict_on_one_account_is_that_on_many(at_or_below: bool, needs_requirement: bool) -> None:
    figures = [(e, r) for e in (-1.0, 0.0, 1.5, 3.0, np.nan) for r in (-1.0, 0.0, 1.0, np.nan)]
    rule = {"trigger": 1.5, "at_or_below": at_or_below, "needs_requirement": needs_requirement}
    many = is_liquidated(*np.array(figures).T, **{name: np.full(len(figures), value) for name, value in rule.items()})
    for (equity, requirement), verdict in zip(figures, many.tolist(), strict=True):
        assert is_liquidated(equity, requirement, **rule) is verdict
        needed = 1.5 * requirement
        if requirement > 0:
            assert verdict is (equity < needed or (at_or_below and equity == needed))
        else:
            assert verdict is (equity < 0 and not needs_requirement)


def test_rows_are_accumulated_in_order_onto_their_targets() -> None:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 5, 40)
    values = rng.standard_normal((40, 7)) * 10.0 ** rng.integers(-8, 8, (40, 1))
    expected = rng.standard_normal((5, 7))
    start = jnp.asarray(expected)
    for target, value in zip(targets, values, strict=True):
        expected[target] += value
    held = jnp.asarray(values)
    got = jax.jit(lambda t, total: accumulate(t, lambda row: held[row], total))(jnp.asarray(targets), start)
    np.testing.assert_array_equal(got, expected)
    nothing = accumulate(jnp.zeros(0, jnp.int32), lambda row: held[row], start)
    np.testing.assert_array_equal(nothing, start)
