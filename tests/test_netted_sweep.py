"""The sweep of whole books against the float64 twin, with equal and with other weights; what it imports."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from aggregator.errors import ConfigurationError
from aggregator.netted_sweep import SweepTables, headline_sweep
from aggregator.risk import tail_rows
from aggregator.sweep_scenarios import ScenarioSet
from aggregator.weighted_tail import LANES, NO_LOSS, equal_tails, folded, larger
from tests import margin_twin
from tests.engine_accounts import AccountBook, book_of
from tests.engine_book import FACTORS, generator_of, snapshot_of
from tests.engine_markets import AS_OF
from tests.netted_books import arrow_tables

SCENARIOS = 700
BAND = 1e-4  # contract: verdicts may differ within 1e-4 of the requirement
# Rows are float32 and so are their sums: two dozen roundings of the gross value of the legs.
OF_GROSS = 24 * 2.0**-24

MEMBERS = {
    "p1": ("lend:plain", "perps:cross", "wallet:spot"),
    "p2": ("lend:emode", "perps:thin", "perps:zero", "coin:options"),
    "p3": ("perps:rates", "perps:isolated", "coin:margined"),
    "p4": ("wallet:spot",),
    "p5": tuple(["perps:thin"] * 9),
}
"""The last one needs more slots than the others."""


class Expected(NamedTuple):
    """The twin's figures of one portfolio in every scenario, and the bound of what float32 may change."""

    loss: np.ndarray
    accounts: list[margin_twin.Account]
    market: list[np.ndarray]
    bound: float


@functools.cache
def book() -> AccountBook:
    return book_of(MEMBERS, seed=11)


@functools.cache
def mapping() -> pa.Table:
    pairs = [(name, account) for name, ids in book().portfolios.items() for account in ids]
    return pa.table({"portfolio_id": [p for p, _ in pairs], "account_id": [a for _, a in pairs]})


@functools.cache
def shocks() -> np.ndarray:
    rng = np.random.default_rng(7)
    std = np.array([0.1 if name.startswith("price") else 0.2 if name.startswith("vol") else 0.01 for name in FACTORS])
    # Every third scenario a wide one, so that tiers change and accounts are liquidated.
    wide = np.where(np.arange(SCENARIOS) % 3 == 0, 3.0, 1.0)[:, None]
    return rng.standard_normal((SCENARIOS, len(FACTORS))) * std * wide


def weights(equal: bool) -> np.ndarray:
    found = np.full(SCENARIOS, 1.0) if equal else np.random.default_rng(9).exponential(size=SCENARIOS) + 0.01
    return found / found.sum()


@functools.cache
def swept(equal: bool) -> SweepTables:
    found = headline_sweep(
        arrow_tables(book().tables), mapping(), ScenarioSet(FACTORS, shocks(), weights(equal)), as_of=AS_OF, devices=1
    )
    assert found.not_covered.num_rows == 0, found.not_covered.to_pylist()
    return found


@functools.cache
def world() -> margin_twin.World:
    return margin_twin.World(snapshot_of(book().tables).tables, FACTORS, shocks(), as_of=AS_OF, horizon_days=1.0)


@functools.cache
def expected(name: str) -> Expected:
    accounts = [margin_twin.account_twin(world(), account_id) for account_id in book().portfolios[name]]
    market = [np.sum(list(a.line_values.values()), axis=0) for a in accounts]
    total = np.sum(market, axis=0)
    # A position is a value and its cost, each as large as its notional.
    gross = sum(float(np.abs(v).max()) for a in accounts for v in a.line_values.values())
    gross += sum(float(a.maintenance.max()) * a.unit_price / 0.005 for a in accounts)
    return Expected(total[0] - total[1:], accounts, market, OF_GROSS * gross)


def row_of(name: str, equal: bool) -> dict[str, float]:
    (row,) = (r for r in swept(equal).portfolios.to_pylist() if r["portfolio_id"] == name)
    return row


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", MEMBERS)
def test_losses_of_a_portfolio(name: str, equal: bool) -> None:
    of, row, w = expected(name), row_of(name, equal), weights(equal)
    today = sum(values[0] for values in of.market)
    assert row["equity_usd"] == pytest.approx(today, abs=of.bound)
    for level, column in ((0.99, "99"), (0.995, "995")):
        var, es = margin_twin.value_at_risk(of.loss, w, level), margin_twin.expected_shortfall(of.loss, w, level)
        assert row[f"var_{column}_usd"] == pytest.approx(var, abs=of.bound)
        assert row[f"es_{column}_usd"] == pytest.approx(es, abs=of.bound)
    assert row["mean_loss_usd"] == pytest.approx(float(w @ of.loss), abs=of.bound)
    assert row["worst_loss_usd"] == pytest.approx(of.loss.max(), abs=of.bound)
    assert row["equity_minimum_usd"] == pytest.approx(today - of.loss.max(), abs=of.bound)
    assert row["equity_mean_usd"] == pytest.approx(today - float(w @ of.loss), abs=of.bound)
    missing = sum(float(w @ np.maximum(-values[1:], 0.0)) for values in of.market)
    assert row["bad_debt_usd"] == pytest.approx(missing, abs=of.bound)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", MEMBERS)
def test_liquidations(name: str, equal: bool) -> None:
    of, row, w = expected(name), row_of(name, equal), weights(equal)
    nodes = {r["account_id"]: r for r in swept(equal).nodes.to_pylist() if r["portfolio_id"] == name}
    assert sorted(nodes) == sorted(book().portfolios[name])
    anyone, doubtful = np.zeros(SCENARIOS, bool), np.zeros(SCENARIOS, bool)
    room, near_room = np.zeros(SCENARIOS), np.zeros(SCENARIOS)
    for account, market in zip(of.accounts, of.market, strict=True):
        near = np.abs(account.distance) <= BAND * account.maintenance[1:] + 1e-9
        got = nodes[account.account_id]
        assert got["p_liquidation"] == pytest.approx(w @ account.liquidated, abs=float(w @ near) + 1e-12)
        assert got["equity_usd"] == pytest.approx(market[0], abs=of.bound)
        assert got["equity_mean_usd"] == pytest.approx(float(w @ market[1:]), abs=of.bound)
        anyone |= account.liquidated
        doubtful |= near
        (unit,) = (r for r in world().tables["accounts"] if r["account_id"] == account.account_id)
        unit_usd = world().price(unit, unit["settlement_asset"])[1:]
        room += account.distance * unit_usd
        near_room += (BAND * account.maintenance[1:] + 1e-9) * unit_usd
    assert row["p_liquidation_any"] == pytest.approx(w @ anyone, abs=float(w @ doubtful) + 1e-12)
    slack = float(w @ (np.abs(room) <= near_room)) + 1e-12
    assert row["p_liquidation_unified"] == pytest.approx(w @ (room < 0), abs=slack)


def test_some_accounts_are_liquidated_and_some_lose_more_than_they_have() -> None:
    nodes = swept(True).nodes
    assert 0 < np.count_nonzero(nodes["p_liquidation"].to_numpy()) < nodes.num_rows
    assert nodes["bad_debt_usd"].to_numpy().max() > 0


@pytest.mark.parametrize("law", ["normal", "heavy", "tied", "zero", "shifted"])
def test_tails_of_a_row_have_the_bits_of_the_counting_search(law: str) -> None:
    rng = np.random.default_rng(3)
    for scenarios in (1000, 700, 150):
        values = {
            "normal": rng.standard_normal(scenarios),
            "heavy": 1e6 * rng.standard_t(2, scenarios),
            "tied": np.round(rng.standard_normal(scenarios), 1),
            "zero": np.zeros(scenarios),
            "shifted": 1e-3 * rng.standard_normal(scenarios) - 7.0,
        }[law].astype(np.float32)
        row = jnp.asarray(np.pad(values, (0, LANES - scenarios), constant_values=NO_LOSS))
        mass = jnp.asarray(np.pad(np.full(scenarios, 1.0 / scenarios), (0, LANES - scenarios)))
        var, es = tail_rows(row[None, :], mass, (0.99, 0.995))
        got = equal_tails(row, scenarios=scenarios, levels=(0.99, 0.995))
        # Equal bits but for the sign of a zero.
        assert np.array_equal(got[0], var[0])
        np.testing.assert_allclose(got[1], es[0], rtol=1e-12, atol=0)
        assert float(got[2]) == values.max()


def test_folded_adds_and_compares_everything() -> None:
    values = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3 * LANES)).astype(np.float32))
    np.testing.assert_allclose(folded(values), np.asarray(values, np.float64).sum(axis=1), rtol=1e-4, atol=1e-3)
    assert folded(values, larger).tolist() == np.asarray(values).max(axis=1).tolist()
    with pytest.raises(ValueError, match="multiple of 1024"):
        folded(values[:, :100])


def test_a_generator_draws_what_the_engine_draws() -> None:
    generator = generator_of(FACTORS)
    found = headline_sweep(
        arrow_tables(book().tables), mapping(), generator, as_of=AS_OF, seed=5, scenarios=700, devices=1
    )
    assert found.portfolios.num_rows == len(MEMBERS)
    assert np.isfinite(found.portfolios["es_99_usd"].to_numpy()).all()


def test_wrong_sizes_are_refused() -> None:
    source = ScenarioSet(FACTORS, shocks(), weights(True))
    for devices, shard in ((0, 10), (99, 10), (1, 0)):
        with pytest.raises(ConfigurationError, match="devices"):
            headline_sweep(arrow_tables(book().tables), mapping(), source, as_of=AS_OF, devices=devices, shard=shard)


def test_an_empty_book_has_empty_tables() -> None:
    tables = {name: table.slice(0, 0) for name, table in arrow_tables(book().tables).items()}
    nobody = mapping().slice(0, 0)
    found = headline_sweep(tables, nobody, ScenarioSet(FACTORS, shocks(), weights(True)), as_of=AS_OF, devices=1)
    assert found.portfolios.num_rows == found.nodes.num_rows == found.not_covered.num_rows == 0


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("netted_sweep", ("typer", "rich", "deltalake", "jinja2", "structlog", "optax")),
        ("netted_dense", ("typer", "rich", "deltalake", "jinja2", "structlog", "optax", "pydantic", "pyarrow")),
    ],
)
def test_it_imports_where_only_the_engine_s_packages_are(module: str, blocked: tuple[str, ...]) -> None:
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\nimport aggregator.{module}\nprint('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr[-2000:]
