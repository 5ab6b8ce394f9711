"""Sensitivities of portfolios against central differences of the twin's revaluation."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from aggregator.cube import CubeBuilder
from aggregator.greeks import greeks_by_underlying, row_sensitivities
from aggregator.portfolio import PackedPortfolio
from tests import margin_twin
from tests.engine_accounts import AccountBook, account, balance, desk_book, position
from tests.engine_book import FACTORS, packed, snapshot_of
from tests.engine_markets import AS_OF, SPOT, market_rows, merged, option_id, rows
from tests.engine_rules import rule_rows

BUMP = 1e-4  # of a logarithm
DAYS = 1e-3  # time step of theta, in days
# Central differences: the bump's square times the third derivative over the first, and rounding over the bump; both
# relative to the gross value of what is held, because the sensitivities of a hedged book cancel.
FIRST_ORDER = 1e-6
SECOND_ORDER = 1e-5
THETA = 1e-4  # the square of the step over the half day that the shortest option has

PORTFOLIOS = ("n1", "n2", "n3", "u1", "u2", "u3")


@functools.cache
def book() -> tuple[AccountBook, tuple[PackedPortfolio, ...], dict[str, dict[str, tuple[float, float, float, float]]]]:
    tables = desk_book(seed=2)
    of = packed(tables)
    sensitivities = row_sensitivities(of.cube.build(FACTORS), FACTORS)
    found = {p.portfolio_id: greeks_by_underlying(p.legs, sensitivities) for p in of.portfolios}
    return tables, of.portfolios, found


@functools.cache
def canonical() -> margin_twin.Tables:
    return snapshot_of(book()[0].tables).tables


def values(
    portfolio_id: str, *, moves: np.ndarray | None = None, days: float = 0.0, vol_shift: float = 0.0
) -> np.ndarray:
    """Market equity of a portfolio today and after each move (rows over FACTORS) and `days`, USD."""
    portfolios = book()[1]
    checked = dict(canonical())
    if vol_shift:
        checked["marks"] = tuple(
            row | {"value": row["value"] + vol_shift} if row["field"] == "implied_vol" else row
            for row in checked["marks"]
        )
    moves = np.zeros((1, len(FACTORS))) if moves is None else moves
    world = margin_twin.World(checked, FACTORS, moves, as_of=AS_OF, horizon_days=days)
    portfolio = next(p for p in portfolios if p.portfolio_id == portfolio_id)
    lines = [margin_twin.account_twin(world, info.account_id).line_values.values() for info in portfolio.accounts]
    return np.sum([value for of in lines for value in of], axis=0)


def gross(portfolio_id: str) -> float:
    (portfolio,) = (p for p in book()[1] if p.portfolio_id == portfolio_id)
    return sum(line.gross_usd for line in portfolio.lines)


def bumps(factor: str) -> np.ndarray:
    out = np.zeros((2, len(FACTORS)))
    out[:, FACTORS.index(factor)] = [BUMP, -BUMP]
    return out


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_delta_and_gamma_are_differences_of_the_value(portfolio_id: str) -> None:
    greeks = book()[2][portfolio_id]
    scale = gross(portfolio_id)
    for factor in FACTORS:
        name = factor.removeprefix("price:")
        if factor.startswith("vol:"):
            assert name not in greeks
            continue
        today, up, down = values(portfolio_id, moves=bumps(factor))
        slope = (up - down) / (2 * BUMP)
        curvature = (up - 2 * today + down) / BUMP**2
        delta, gamma, _, _ = greeks.get(name, (0.0, 0.0, 0.0, 0.0))
        assert delta == pytest.approx(slope, abs=FIRST_ORDER * scale), name
        # By the logarithm of S: S V' is the slope, and S^2 V'' the curvature less the slope.
        assert gamma == pytest.approx(0.01 * (curvature - slope), abs=0.01 * SECOND_ORDER * scale), name


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_vega_is_of_each_options_own_vol(portfolio_id: str) -> None:
    greeks = book()[2][portfolio_id]
    points = 1e-3  # a tenth of a vol point
    slope = (values(portfolio_id, vol_shift=points)[0] - values(portfolio_id, vol_shift=-points)[0]) / (2 * points)
    total = sum(vega for _, _, vega, _ in greeks.values())
    assert total == pytest.approx(0.01 * slope, abs=0.01 * FIRST_ORDER * gross(portfolio_id))
    assert (total != 0.0) == portfolio_id.startswith("u")
    assert all(not vega for name, (_, _, vega, _) in greeks.items() if name not in ("BTC", "ETH"))


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_theta_is_the_profit_of_a_day_without_a_move(portfolio_id: str) -> None:
    greeks = book()[2][portfolio_id]
    today, later = values(portfolio_id, days=DAYS)
    # One-sided, since nothing is valued in the past: the second derivative by time is what is left.
    further = values(portfolio_id, days=2 * DAYS)[1]
    slope = (4 * later - 3 * today - further) / (2 * DAYS)
    total = sum(theta for _, _, _, theta in greeks.values())
    # Relative: the twin's values are rounded to 1e-16 of the gross value, which a step of a thousandth day turns into
    # far less than a cent.
    assert total == pytest.approx(slope, rel=THETA, abs=1e-8 * gross(portfolio_id))
    assert (total != 0.0) == portfolio_id.startswith("u")


def test_underlyings_have_their_names_and_a_peg_keeps_its_kind() -> None:
    _, _, greeks = book()
    assert list(greeks["n1"]) == sorted(greeks["n1"])
    assert set(greeks["n1"]) == {"BTC", "ETH", "SOL", "peg:USDC", "peg:USDT", "peg:wstETH"}


def test_plain_holdings_by_hand() -> None:
    name = "coin:x"
    part = rows(
        accounts=[account(name, "coin", "BTC")],
        balances=[balance(name, "BTC", 2.0)],
        positions=[position(name, "coin:BTC-PERP", -1000.0, entry_price="62000", leverage="10")],
    )
    of = packed(AccountBook(merged(market_rows(), rule_rows(), part), {"desk": (name,)}))
    greeks = greeks_by_underlying(of.portfolios[0].legs, row_sensitivities(of.cube.build(FACTORS), FACTORS))
    # Two coins and what the inverse short made so far, in coins; the contract itself is worth dollars.
    coins = 2.0 - 1000.0 * 100 / 62000.0
    assert set(greeks) == {"BTC"}
    assert greeks["BTC"] == pytest.approx((coins * SPOT["BTC"], 0.0, 0.0, 0.0), rel=1e-12)


def test_a_power_of_a_price_has_its_curvature() -> None:
    builder = CubeBuilder()
    row = builder.factor_row({"price:BTC": -1.0})
    sensitivities = row_sensitivities(builder.build(FACTORS), FACTORS)
    found = greeks_by_underlying([(0, row, 10.0)], sensitivities)
    assert found["BTC"] == pytest.approx((-10.0, 0.2, 0.0, 0.0), rel=1e-12)
    assert greeks_by_underlying([(0, 0, 10.0)], sensitivities) == {}
    assert greeks_by_underlying([], sensitivities) == {}


def test_a_short_straddle_is_short_gamma_and_vega_and_earns_time() -> None:
    name = "options:x"
    legs = [position(name, option_id("options", "ETH", 2, 3300, kind), -1.0) for kind in ("call", "put")]
    part = rows(accounts=[account(name, "portfolio", "USDC")], balances=[], positions=legs)
    of = packed(AccountBook(merged(market_rows(), rule_rows(), part), {"desk": (name,)}))
    greeks = greeks_by_underlying(of.portfolios[0].legs, row_sensitivities(of.cube.build(FACTORS), FACTORS))
    _, gamma, vega, theta = greeks["ETH"]
    assert gamma < 0.0 < theta
    assert vega < 0.0
    # The premium is owed in a stable: its peg is an underlying too.
    assert greeks["peg:USDC"][0] == pytest.approx(
        of.portfolios[0].lines[0].value_usd + of.portfolios[0].lines[1].value_usd
    )
