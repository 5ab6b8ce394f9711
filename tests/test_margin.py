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
from aggregator.margin import ScenarioMargin, accumulate, line_changes, liquidated, scenario_margin
from aggregator.pricing import DAYS_PER_YEAR
from tests import margin_twin
from tests.engine_book import (
    AS_OF,
    FACTORS,
    SCENARIOS,
    SPOT,
    TestBook,
    account,
    amount,
    balance,
    cube_of,
    desk,
    market_rows,
    merged,
    packed,
    position,
    rows,
    rule_rows,
    snapshot_of,
)

NATIVE_RTOL = 1e-9  # contract: native figures at current prices are the venue's to 1e-9
BAND = 1e-4  # contract: requirement in scenarios within 1e-4, verdicts equal outside a band of 1e-4 of the requirement
# A leg in a scenario: coefficient, change and their product are each rounded to float32 once, and so is every addition
# of a leg to its line; lines have at most four legs.
FLOAT32_ROUNDINGS = 8 * 2.0**-24


class InScenarios(NamedTuple):
    """One portfolio's figures in the scenarios that count, padding cut off."""

    line_profit: np.ndarray
    leg_size: np.ndarray
    """Sum of the sizes of each line's legs, the yardstick of its rounding."""
    equity: np.ndarray
    maintenance: np.ndarray
    liquidated: np.ndarray


@jax.jit
def _in_scenarios(arrays: PortfolioArrays, cube: Cube) -> tuple[jax.Array, ScenarioMargin, jax.Array]:
    def one(portfolio: PortfolioArrays) -> tuple[jax.Array, ScenarioMargin, jax.Array]:
        margin = scenario_margin(
            portfolio, cube.today, cube.change, cube.shocks, cube.rows, horizon_years=1.0 / DAYS_PER_YEAR
        )
        return line_changes(portfolio, cube.change), margin, liquidated(portfolio, margin)

    return lax.map(one, arrays)


@functools.cache
def in_scenarios() -> dict[str, InScenarios]:
    """Every portfolio of the desk in every scenario."""
    of = desk()
    change = np.asarray(of.cube.change, np.float64)[:, :SCENARIOS]
    out = {}
    for bucket in bucketed(of.book.portfolios, FACTORS):
        profit, margin, gone = jax.device_get(_in_scenarios(bucket.arrays, of.cube))
        for place, member in enumerate(bucket.members):
            portfolio = of.book.portfolios[member]
            lines, accounts = len(portfolio.lines), len(portfolio.accounts)
            size = np.zeros((lines, SCENARIOS))
            for line, row, coefficient in portfolio.legs:
                size[line] += np.abs(coefficient * change[row])
            out[portfolio.portfolio_id] = InScenarios(
                line_profit=profit[place, :lines, :SCENARIOS],
                leg_size=size,
                equity=margin.equity[place, :accounts, :SCENARIOS],
                maintenance=margin.maintenance[place, :accounts, :SCENARIOS],
                liquidated=gone[place, :accounts, :SCENARIOS],
            )
    return out


@functools.cache
def world(seed: int = 2) -> margin_twin.World:
    of = desk(seed)
    shocks = np.asarray(of.cube.shocks)[:SCENARIOS]
    return margin_twin.World(snapshot_of(of.tables).tables, FACTORS, shocks, as_of=AS_OF, horizon_days=1.0)


@functools.cache
def twin(account_id: str) -> margin_twin.Account:
    return margin_twin.account_twin(world(), account_id)


# The account of `bad` that float32 cannot hold is a case of test_engine.
ACCOUNTS = [
    (portfolio.portfolio_id, place, info.account_id)
    for portfolio in packed(TestBook(desk().tables, {p.portfolio_id: tuple(a.account_id for a in p.accounts) for p in desk().book.portfolios})).portfolios
    for place, info in enumerate(portfolio.accounts)
    if portfolio.portfolio_id != "bad"
]
