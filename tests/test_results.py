"""Rows of the result tables: every column filled or null as its schema says, statuses, sums, and valid JSON."""

from __future__ import annotations

import functools
import itertools
import json
import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from adapters.dydx_v4.rules import rule_set_rows
from aggregator.engine import Headline
from aggregator.errors import FailureReason
from aggregator.margin import NativeMargin
from aggregator.portfolio import PackedPortfolio, pack_book
from aggregator.results import (
    NEAR_BOUNDARY,
    Evaluated,
    account_rows,
    allocation_rows,
    calculation_failures,
    is_calculated,
    node_rows,
    portfolio_row,
    result_table,
)
from aggregator.rule_forms import Verdict, parse_parameters
from aggregator.schema.results import RESULT_KEYS, RESULTS
from tests.engine_accounts import EVERY_KIND, AccountBook, account, balance
from tests.engine_book import FACTORS, WORST, desk, detail_rows, packed, snapshot_of
from tests.engine_markets import AS_OF, market_rows, merged, rows
from tests.engine_rules import rule_rows

SUM_RTOL = 1e-12  # sums of a few float64 figures in another order
TABLES = (
    "account_margin",
    "allocation",
    "greeks",
    "loss_histogram",
    "node_margin",
    "portfolio_margin",
    "scenarios_worst",
)
JSON_COLUMNS = {
    "portfolio_margin": ("accounts_left_out",),
    "scenarios_worst": ("drivers", "moves", "liquidated"),
}
# What may be null for a complete, calculated row, and when.
NULL_WHEN = {
    "portfolio_margin": {
        "left_out_gross_usd": "nothing is left out",
        "health_minimum": "no account has a requirement",
        "health_minimum_account": "no account has a requirement",
        "p_liquidation_largest_account": "no account is liquidated in any scenario",
        "pooled_to_silo_99": "the silos need nothing",
        "equity_to_es_99": "the portfolio needs nothing",
    },
    "account_margin": {
        "health": "nothing is required",
        "reported_equity": "the venue says nothing",
        "reported_initial_margin": "the venue says nothing",
        "reported_maintenance_margin": "the venue says nothing",
        "reported_health": "the venue says nothing",
        "equity_difference": "the venue says nothing",
        "maintenance_difference": "the venue says nothing",
    },
    "allocation": dict.fromkeys(
        (
            "venue",
            "asset",
            "account_id",
            "es_99_isolated_usd",
            "es_995_isolated_usd",
            "var_99_isolated_usd",
            "var_995_isolated_usd",
        ),
        "a sum over positions",
    ),
}


@functools.cache
def evaluated() -> tuple[Evaluated, ...]:
    return tuple(desk().evaluated(p.portfolio_id) for p in desk().book.portfolios)


@functools.cache
def tables() -> dict[str, list[dict[str, Any]]]:
    """Rows of every table of the desk."""
    out = {
        "portfolio_margin": [portfolio_row(e) for e in evaluated()],
        "account_margin": [row for e in evaluated() for row in account_rows(e)],
        "node_margin": [row for e in evaluated() for row in node_rows(e)],
    }
    return out | detail_rows(evaluated(), desk().details, desk().cube)


def of(table: str, **match: Any) -> list[dict[str, Any]]:
    """The table's rows as readers see them, those that match."""
    found = result_table(table, "run", tables()[table]).to_pylist()
    return [row for row in found if all(row[k] == v for k, v in match.items())]


# ---- every table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_rows_fill_their_schema(table: str) -> None:
    schema = RESULTS[table]
    for row in tables()[table]:
        assert not set(row) - set(schema.names), "a column that the table does not have"
    got = result_table(table, "run", tables()[table])
    assert got.schema.equals(schema, check_metadata=True)
    assert got.num_rows > 0
    for field in schema:
        column = got.column(field.name)
        if not field.nullable:
            assert column.null_count == 0, field.name
        if pa.types.is_floating(field.type):
            assert np.isfinite(column.drop_null().to_numpy()).all(), field.name
    # A key is a key: readers sort and join by it.
    keys = list(zip(*(got.column(name).to_pylist() for name in RESULT_KEYS[table]), strict=True))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("table", ["portfolio_margin", "account_margin", "allocation"])
def test_only_what_says_why_is_null(table: str) -> None:
    # The unified requirement has its columns filled beside these rows: tests/test_unified.py and test_sweep.py.
    names = RESULTS[table].names
    beside = set(names[names.index("equity_to_es_99") + 1 :]) if table == "portfolio_margin" else set()
    # So have paths: tests/test_paths.py.
    beside |= {name for name in names if "_path" in name or name.startswith("hours_to_liquidation")}
    calculated = of(table, status="ok") + of(table, status="no_requirement") if table != "allocation" else of(table)
    seen_null = {name for row in calculated for name, value in row.items() if value is None}
    assert seen_null - beside <= set(NULL_WHEN[table])
    filled = {name for row in calculated for name, value in row.items() if value is not None}
    never = set(names) - filled - beside - {"left_out_gross_usd", "reported_initial_margin", "reported_health"}
    assert not never, "a column that nothing ever fills"


@pytest.mark.parametrize(("table", "column"), [(t, c) for t, of in JSON_COLUMNS.items() for c in of])
def test_json_columns_are_json(table: str, column: str) -> None:
    for row in of(table):
        text = row[column]
        assert json.dumps(json.loads(text)) == text
        assert "NaN" not in text
        assert "Infinity" not in text


# ---- portfolios ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("portfolio_id", EVERY_KIND)
def test_a_portfolio_is_the_sum_of_its_parts(portfolio_id: str) -> None:
    (row,) = of("portfolio_margin", portfolio_id=portfolio_id)
    accounts = of("account_margin", portfolio_id=portfolio_id)
    nodes = of("node_margin", portfolio_id=portfolio_id)
    lines = of("allocation", portfolio_id=portfolio_id, level="position")
    assert (row["status"], row["complete"], row["accounts_left_out"]) == ("ok", True, "[]")
    assert (row["accounts"], row["positions"]) == (len(accounts), len(lines))

    def total(of_rows: list[dict[str, Any]], name: str) -> float:
        return math.fsum(r[name] for r in of_rows)

    scale = row["gross_notional_usd"]
    for got, expected in (
        (row["equity_usd"], total(accounts, "equity_usd")),
        (row["equity_usd"], total(nodes, "equity_usd")),
        (row["gross_notional_usd"], total(accounts, "gross_notional_usd")),
        (
            row["native_maintenance_usd"],
            math.fsum(a["maintenance_requirement"] * a["unit_price_usd"] for a in accounts),
        ),
        (row["native_initial_usd"], math.fsum(a["initial_requirement"] * a["unit_price_usd"] for a in accounts)),
        (row["es_99_silo_sum_usd"], total(nodes, "es_99_usd")),
        (row["var_995_silo_sum_usd"], total(nodes, "var_995_usd")),
        (row["es_99_isolated_sum_usd"], total(lines, "es_99_isolated_usd")),
        (row["es_995_isolated_sum_usd"], total(lines, "es_995_isolated_usd")),
        (row["offset_within_nodes_99_usd"], row["es_99_isolated_sum_usd"] - row["es_99_silo_sum_usd"]),
        (row["offset_across_nodes_99_usd"], row["es_99_silo_sum_usd"] - row["es_99_pooled_usd"]),
        (row["pooled_to_silo_99"], row["es_99_pooled_usd"] / row["es_99_silo_sum_usd"]),
        (row["equity_to_es_99"], row["equity_usd"] / row["es_99_pooled_usd"]),
    ):
        assert got == pytest.approx(expected, rel=SUM_RTOL, abs=SUM_RTOL * scale)
    healths = {a["account_id"]: a["health"] for a in accounts if a["health"] is not None}
    assert row["health_minimum"] == min(healths.values())
    assert healths[row["health_minimum_account"]] == row["health_minimum"]
    assert row["worst_loss_usd"] >= row["es_995_pooled_usd"] >= row["es_99_pooled_usd"] >= row["var_99_pooled_usd"]
    likely = {a["account_id"]: a["p_liquidation_at_horizon"] for a in accounts}
    assert row["p_liquidation_largest"] == max(likely.values()) <= row["p_liquidation_any_at_horizon"] <= 1.0
    assert likely.get(row["p_liquidation_largest_account"], 0.0) == max(likely.values())


@pytest.mark.parametrize("level", ["position", "asset", "venue"])
def test_contributions_add_up_to_the_pooled_shortfall_at_every_level(level: str) -> None:
    for portfolio_id in EVERY_KIND:
        (row,) = of("portfolio_margin", portfolio_id=portfolio_id)
        parts = of("allocation", portfolio_id=portfolio_id, level=level)
        for name, total in (("es_99_usd", "es_99_pooled_usd"), ("es_995_usd", "es_995_pooled_usd")):
            # The contributions are summed in float64, the portfolio's losses in float32: 2^-24 for each of its lines.
            slack = row["positions"] * 2.0**-23 * row["gross_notional_usd"]
            assert math.fsum(part[name] for part in parts) == pytest.approx(row[total], abs=slack)
        value = math.fsum(part["value_usd"] for part in parts)
        lines = of("allocation", portfolio_id=portfolio_id, level="position")
        assert value == pytest.approx(math.fsum(line["value_usd"] for line in lines), rel=1e-9)
        assert len({part["key"] for part in parts}) == len(parts)


def test_levels_carry_what_they_are_grouped_by() -> None:
    for row in of("allocation", portfolio_id="u1"):
        carried = {name for name in ("venue", "asset", "account_id") if row[name] is not None}
        expected = {"position": {"venue", "asset", "account_id"}, "asset": {"asset"}, "venue": {"venue"}}
        assert carried == expected[row["level"]]
        assert row["level"] == "position" or row["key"] == row[row["level"]]


def test_the_worst_scenarios_are_ranked_and_explained() -> None:
    for portfolio_id in EVERY_KIND:
        found = of("scenarios_worst", portfolio_id=portfolio_id)
        assert [row["rank"] for row in found] == list(range(1, WORST + 1))
        losses = [row["loss_usd"] for row in found]
        assert losses == sorted(losses, reverse=True)
        (figures,) = of("portfolio_margin", portfolio_id=portfolio_id)
        assert losses[0] == figures["worst_loss_usd"]
        keys = {line.key for line in desk().portfolio(portfolio_id).lines}
        accounts = {info.account_id for info in desk().portfolio(portfolio_id).accounts}
        for row in found:
            drivers = json.loads(row["drivers"])
            sizes = [abs(driver["loss_usd"]) for driver in drivers]
            assert sizes == sorted(sizes, reverse=True)
            assert {driver["key"] for driver in drivers} <= keys
            assert set(json.loads(row["liquidated"])) <= accounts
            assert row["weight"] == pytest.approx(1e-3, rel=SUM_RTOL)
            moves = json.loads(row["moves"])
            shock = np.expm1(np.asarray(desk().cube.shocks)[row["scenario"]])
            assert all(moves[name] == shock[FACTORS.index(name)] for name in moves)
            assert min(map(abs, moves.values())) >= sorted(np.abs(shock))[-len(moves)]


def test_the_histogram_is_without_gaps() -> None:
    found = of("loss_histogram", portfolio_id="n1")
    assert [row["bin"] for row in found] == list(range(len(found)))
    for before, after in itertools.pairwise(found):
        assert before["loss_to_usd"] == after["loss_from_usd"]
    assert math.fsum(row["probability"] for row in found) == pytest.approx(1.0, rel=SUM_RTOL)


# ---- accounts --------------------------------------------------------------------------------------------------------


def test_own_and_reported_figures_side_by_side() -> None:
    (row,) = of("account_margin", account_id="perps:cross:n1:1")
    assert (row["reported_equity"], row["reported_maintenance_margin"]) == (1000.5, 12.25)
    assert row["reported_initial_margin"] is None
    assert row["equity_difference"] == row["equity"] - 1000.5
    assert row["maintenance_difference"] == row["maintenance_requirement"] - 12.25
    assert row["reported_parts"] is False
    (unreported,) = of("account_margin", account_id="wallet:spot:n1:3")
    assert unreported["equity_difference"] is unreported["reported_equity"] is None
    (fixed,) = of("account_margin", account_id="coin:options:u1:3")
    assert fixed["reported_parts"] is True
    assert (fixed["initial_requirement"], fixed["maintenance_requirement"]) == (0.9, 0.6)


def test_health_is_the_venues_own() -> None:
    (perps,) = of("account_margin", account_id="perps:cross:n1:1")
    assert perps["health"] == perps["equity"] / perps["maintenance_requirement"]
    (lender,) = of("account_margin", account_id="lend:plain:n1:0")
    tokens = desk().tables["balances"]
    weights = {"ETH": 0.83, "wstETH": 0.81, "USDC": 0.78, "USDT": 0.75}
    power = debt = 0.0
    for row in tokens:
        if row["account_id"] == "lend:plain:n1:0" and row["collateral_enabled"]:
            price = {"ETH": 3400.0, "wstETH": 3951.25, "USDC": 1.0003, "USDT": 1.0}[row["asset_id"]]
            value = (float(row["quantity"]) + float(row.get("accrued_interest") or 0)) * price
            power += weights[row["asset_id"]] * value if row["side"] == "asset" else 0.0
            debt += value if row["side"] == "liability" else 0.0
    assert lender["health"] == pytest.approx(power / debt, rel=1e-9)
    assert lender["liquidatable"] == (lender["health"] < 1.0)


def test_without_requirement_health_is_null_and_says_so() -> None:
    for name in ("wallet:spot:n1:3", "perps:zero:n2:3"):
        (row,) = of("account_margin", account_id=name)
        assert (row["status"], row["health"], row["maintenance_requirement"]) == ("no_requirement", None, 0.0)
        assert row["liquidatable"] is False
        assert row["near_boundary"] is False


def test_a_lender_without_debt_has_no_health() -> None:
    portfolio, figures = _one_account("lend", equity=1000.0, maintenance=200.0)
    (row,) = account_rows(Evaluated(portfolio, figures))
    assert (row["status"], row["health"], row["liquidatable"]) == ("no_requirement", None, False)
    assert portfolio_row(Evaluated(portfolio, figures))["health_minimum"] is None


def _one_account(rule_set: str, *, equity: float, maintenance: float) -> tuple[PackedPortfolio, Headline]:
    """A portfolio of one account without risk, and figures of it as the engine would give them."""
    name = f"{rule_set}:x"
    part = rows(accounts=[account(name, rule_set, "USD")], balances=[balance(name, "ETH", 1.0)])
    (portfolio,) = packed(AccountBook(merged(market_rows(), rule_rows(), part), {"desk": (name,)})).portfolios
    one, pair, matrix = jnp.zeros(1), jnp.zeros(2), jnp.zeros((1, 2))
    zero = jnp.zeros(())
    return portfolio, Headline(
        native=NativeMargin(jnp.array([equity]), jnp.array([maintenance]), jnp.array([maintenance])),
        p_liquidation=one,
        p_any=zero,
        pooled_var=pair,
        pooled_es=pair,
        node_var=matrix,
        node_es=matrix,
        line_var=matrix,
        line_es=matrix,
        mean_loss=zero,
        worst_loss=zero,
        account_is_finite=jnp.ones(1, bool),
        finite=jnp.array(True),
        unified=None,
        stress=None,
    )


@pytest.mark.parametrize(
    ("rule_set", "equity", "liquidatable", "near"),
    [
        ("perps", 200.0, False, True),  # at the requirement itself: the venue liquidates below
        ("perps", 199.999, True, True),
        ("perps", 200.0 * (1 + 2 * NEAR_BOUNDARY), False, False),
        ("multi", 210.0, True, True),  # trigger 1.05, at or below
        ("multi", 210.001, False, True),
        ("multi", 200.0, True, False),
        ("wallet", -1.0, True, False),
        ("wallet", 0.0, False, False),
    ],
)
def test_who_is_liquidatable_today(rule_set: str, equity: float, liquidatable: bool, near: bool) -> None:
    maintenance = 0.0 if rule_set == "wallet" else 200.0
    (row,) = account_rows(Evaluated(*_one_account(rule_set, equity=equity, maintenance=maintenance)))
    assert (row["liquidatable"], row["near_boundary"]) == (liquidatable, near)
    assert row["trigger"] == (1.05 if rule_set == "multi" else 1.0)


@pytest.mark.parametrize(("maintenance", "liquidatable"), [(0.0, False), (0.01, True)])
def test_a_venue_that_needs_a_requirement_leaves_an_account_without_one_alone(
    maintenance: float, liquidatable: bool
) -> None:
    form = rule_set_rows()[-1]
    verdict = parse_parameters(form["form"], form["parameters"])  # dYdX: v4-chain x/subaccounts, `IsLiquidatable`
    assert isinstance(verdict, Verdict)
    assert verdict.needs_requirement
    portfolio, figures = _one_account("wallet", equity=-100.0, maintenance=maintenance)
    (info,) = portfolio.accounts
    asked = replace(portfolio, accounts=[info._replace(needs_requirement=verdict.needs_requirement)])
    (row,) = account_rows(Evaluated(asked, figures))
    assert row["liquidatable"] is liquidatable
    (row,) = account_rows(Evaluated(portfolio, figures))
    assert row["liquidatable"] is True


def test_a_verdict_that_says_nothing_of_it_keeps_its_text() -> None:
    plain, asked = (Verdict(liquidates_when="below", needs_requirement=needs) for needs in (False, True))
    assert "needs_requirement" not in plain.model_dump_json()
    assert parse_parameters("verdict", plain.model_dump_json()) == plain
    assert parse_parameters("verdict", asked.model_dump_json()) == asked


def test_ratios_to_nothing_are_null() -> None:
    row = portfolio_row(Evaluated(*_one_account("wallet", equity=1.0, maintenance=0.0)))
    assert row["pooled_to_silo_99"] is None
    assert row["equity_to_es_99"] is None
    assert row["health_minimum"] is None
    assert row["es_99_pooled_usd"] == 0.0


# ---- what could not be computed --------------------------------------------------------------------------------------


def test_an_incomplete_account_is_null_with_a_status_and_its_portfolio_says_so() -> None:
    names = ("wallet:a", "wallet:b")
    part = rows(
        accounts=[account(name, "wallet", "USD", reported_equity="7") for name in names],
        balances=[balance("wallet:a", "ETH", 1.0), balance("wallet:b", "ETH", 2.0), balance("wallet:b", "BTC", 1.0)],
    )
    base = merged(market_rows(), rule_rows(), part)
    base["marks"] = [row for row in base["marks"] if (row["venue"], row["subject"]) != ("wallet", "BTC")]
    (portfolio,) = packed(AccountBook(base, {"desk": names})).portfolios
    _, figures = _one_account("wallet", equity=3400.0, maintenance=0.0)
    row = portfolio_row(Evaluated(portfolio, figures))
    assert (row["complete"], row["status"]) == (False, "incomplete")
    assert json.loads(row["accounts_left_out"]) == ["wallet:b"]
    assert row["left_out_gross_usd"] == 6800.0
    assert row["equity_usd"] == 3400.0
    kept, left_out = account_rows(Evaluated(portfolio, figures))
    assert kept["status"] == "no_requirement"
    assert left_out["status"] == "incomplete"
    known = {"portfolio_id", "account_id", "node", "venue", "margin_mode", "unit", "status", "reported_equity"}
    (shown,) = result_table("account_margin", "run", [left_out]).to_pylist()
    assert {name for name, value in shown.items() if value is not None} == known | {"run_id"}
    assert left_out["reported_equity"] == 7.0


def test_a_portfolio_without_complete_account_has_no_figures() -> None:
    base = merged(market_rows(), rule_rows())
    book, _ = pack_book({"main": snapshot_of(base)}, {"desk": ("wallet:lost",)}, as_of=AS_OF)
    nothing = Evaluated(book.portfolios[0], None)
    row = portfolio_row(nothing)
    assert (row["status"], row["complete"], row["accounts"], row["positions"]) == ("no_complete_account", False, 0, 0)
    (shown,) = result_table("portfolio_margin", "run", [row]).to_pylist()
    filled = {name for name, value in shown.items() if value is not None}
    assert filled == {"run_id", "portfolio_id", "complete", "accounts_left_out", "status", "accounts", "positions"}
    assert account_rows(nothing) == []
    assert node_rows(nothing) == []
    assert not is_calculated(nothing)
    assert calculation_failures([nothing]) == []


def test_what_is_not_finite_is_null_with_a_status_and_a_failure() -> None:
    bad = desk().evaluated("bad")
    (row,) = of("portfolio_margin", portfolio_id="bad")
    assert (row["status"], row["complete"]) == ("calculation", False)
    assert row["es_99_pooled_usd"] is row["equity_usd"] is row["native_maintenance_usd"] is None
    statuses = {r["account_id"]: r["status"] for r in of("account_margin", portfolio_id="bad")}
    assert statuses.pop("wallet:spot:bad:3") == "calculation"
    assert set(statuses.values()) == {"ok"}
    (spoiled,) = of("account_margin", account_id="wallet:spot:bad:3")
    assert spoiled["equity"] is spoiled["p_liquidation_at_horizon"] is spoiled["liquidatable"] is None
    (good,) = of("account_margin", account_id="perps:cross:bad:1")
    (base,) = of("account_margin", account_id="perps:cross:base:1")
    assert good["equity"] == base["equity"]
    assert good["p_liquidation_at_horizon"] == base["p_liquidation_at_horizon"]
    assert of("node_margin", portfolio_id="bad") == of("allocation", portfolio_id="bad") == []
    (failure,) = calculation_failures(evaluated())
    assert (failure.reason, failure.subject, failure.account_id) == (FailureReason.CALCULATION, "bad", None)
    assert not is_calculated(bad)


def test_an_absent_column_is_null_never_zero() -> None:
    row = allocation_rows(desk().evaluated("n1"), desk().detail("n1"))[-1]
    assert "es_99_isolated_usd" not in row
    (shown,) = result_table("allocation", "run-7", [row]).to_pylist()
    assert (shown["run_id"], shown["es_99_isolated_usd"]) == ("run-7", None)
    incomplete = {name: value for name, value in row.items() if name != "es_99_usd"}
    assert result_table("allocation", "run-7", [incomplete])["es_99_usd"].null_count == 1
