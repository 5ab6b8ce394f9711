"""The verb `screen` on the sample desk against the sweep of the same configuration: same portfolios, same figures."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from aggregator.screen_tables import account_tables
from aggregator.snapshot import take_snapshot
from tests.engine_accounts import book_of
from tests.engine_markets import AS_OF
from tests.netted_books import arrow_tables
from tests.sample_desk import SCENARIOS, Desk, Run, command, sample_desk

pytestmark = pytest.mark.slow

# Both engines add rows of float32 in their own order: a portfolio has at most two dozen, a contract is a value and the
# cost of it, each as large as its notional, and either engine rounds.
OF_GROSS = 2 * 2 * 24 * 2.0**-24
# Where equity meets the requirement float32 decides either way, and other sums decide otherwise: one scenario.
OF_PROBABILITY = 1.0 / SCENARIOS

MONEY = (
    "mean_loss_usd",
    "worst_loss_usd",
    "var_99_pooled_usd",
    "es_99_pooled_usd",
    "var_995_pooled_usd",
    "es_995_pooled_usd",
)
NETTED = {"lender", "perps", "whale"}
GENERAL = {
    "fund": "needs the factor price:PEPE, which nothing moves",
    "south": "netted with profits",
    "torn": "missing or incomplete",
}


class Both(NamedTuple):
    desk: Desk
    screen: Run
    sweep: Run


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Three portfolios that net, their payloads with marks of their own, and three that do not: one with an account
    whose factor has no law, multi-assets, and one with an account too few.
    """
    desk = sample_desk(tmp_path_factory.mktemp("screen") / "desk")
    del desk.document["scenarios"]["daily_std"]["price:PEPE"]
    desk.add_owner("aave_v3", "treasury", "second", portfolio="lender")
    desk.add_owner("hyperliquid", "trader", "large", portfolio="whale", change={"clearinghouse_state": _larger})
    desk.add_owner("binance", "north", "third", portfolio="perps")
    desk.add_owner("binance", "north", "fourth", portfolio="torn")
    desk.document["portfolios"]["torn"].append("binance:nobody")
    # What the sweep would show in detail is not compared, and takes longest to compile.
    desk.document["run"]["detail_top"] = 0
    screen = command("screen", str(desk.write()), "--json", "--top", "2")
    return Both(desk, Run(*screen, desk.store()), desk.sweep())


def _larger(state: Any) -> None:
    """Positions of three times the size, and none in what no law moves."""
    body = state["body"]
    (dropped,) = (held for held in body["assetPositions"] if held["position"]["coin"] == "kPEPE")
    body["assetPositions"].remove(dropped)
    gone = {
        "totalNtlPos": "positionValue",
        "accountValue": "positionValue",
        "totalMarginUsed": "marginUsed",
    }
    for name in ("marginSummary", "crossMarginSummary"):
        for total, of in gone.items():
            body[name][total] = str(Decimal(body[name][total]) - Decimal(dropped["position"][of]))
    for held in body["assetPositions"]:
        held["position"]["szi"] = str(3 * float(held["position"]["szi"]))


def rows(run: Run, table: str, *keys: str) -> dict[Any, dict[str, Any]]:
    found = {tuple(row[key] for key in keys): row for row in run.rows(table)}
    return {key[0] if len(keys) == 1 else key: row for key, row in found.items()}


def test_every_portfolio_has_a_row_that_names_its_engine(both: Both) -> None:
    found = rows(both.screen, "screen_portfolios", "portfolio_id")
    assert set(found) == {row["portfolio_id"] for row in both.sweep.rows("portfolio_margin")}
    assert {name for name, row in found.items() if row["engine"] == "netted"} == NETTED
    for name, reason in GENERAL.items():
        assert found[name]["engine"] == "general"
        assert reason in found[name]["engine_reason"]
    assert all(found[name]["engine_reason"] is None for name in NETTED)


@pytest.mark.parametrize("name", sorted({*NETTED, *GENERAL}))
def test_figures_of_a_portfolio_are_those_of_the_sweep(both: Both, name: str) -> None:
    row = rows(both.screen, "screen_portfolios", "portfolio_id")[name]
    swept = rows(both.sweep, "portfolio_margin", "portfolio_id")[name]
    for column in ("complete", "accounts_left_out", "left_out_gross_usd", "status", "accounts"):
        assert row[column] == swept[column], column
    assert row["p_liquidation_largest_account"] == swept["p_liquidation_largest_account"]
    bound = OF_GROSS * swept["gross_notional_usd"]
    assert row["equity_usd"] == pytest.approx(swept["equity_usd"], rel=1e-12)
    for column in MONEY:
        assert row[column] == pytest.approx(swept[column], abs=bound), column
    assert row["equity_to_es_99"] == pytest.approx(swept["equity_to_es_99"], rel=bound / swept["es_99_pooled_usd"])
    for column in ("p_liquidation_any_at_horizon", "p_liquidation_largest"):
        assert row[column] == pytest.approx(swept[column], abs=OF_PROBABILITY), column


def test_figures_of_accounts_are_those_of_the_sweep(both: Both) -> None:
    keys = ("portfolio_id", "account_id")
    found, swept = rows(both.screen, "screen_accounts", *keys), rows(both.sweep, "account_margin", *keys)
    assert set(found) == set(swept)
    assert sum((row["p_liquidation_at_horizon"] or 0.0) > 0.0 for row in found.values()) > 1
    assert [key for key, row in found.items() if row["status"] != "ok"] == [("fund", "hyperliquid:trader:cross")]
    for key, row in found.items():
        of = swept[key]
        assert (row["node"], row["venue"]) == (of["node"], of["venue"])
        if row["status"] == "incomplete":
            assert row["equity_usd"] is row["p_liquidation_at_horizon"] is None
            continue
        assert row["equity_usd"] == pytest.approx(of["equity_usd"], rel=1e-12, abs=1e-9), key
        assert row["p_liquidation_at_horizon"] == pytest.approx(of["p_liquidation_at_horizon"], abs=OF_PROBABILITY)


def test_expected_equity_and_bad_debt_add_up_over_accounts(both: Both) -> None:
    accounts = both.screen.rows("screen_accounts")
    for name, row in rows(both.screen, "screen_portfolios", "portfolio_id").items():
        own = [account for account in accounts if account["portfolio_id"] == name]
        if row["engine"] == "general":
            assert row["bad_debt_usd"] is row["p_liquidation_unified_at_horizon"] is None
            assert all(a["bad_debt_usd"] is a["equity_mean_usd"] is None for a in own)
            continue
        assert row["bad_debt_usd"] == pytest.approx(sum(a["bad_debt_usd"] for a in own), rel=1e-12)
        mean = sum(a["equity_mean_usd"] for a in own)
        assert mean == pytest.approx(row["equity_usd"] - row["mean_loss_usd"], rel=1e-12)
        # Accounts as one are liquidated in no more scenarios than any of them.
        assert 0.0 <= row["p_liquidation_unified_at_horizon"] <= row["p_liquidation_any_at_horizon"]


def test_failures_and_exit_code_are_those_of_the_sweep(both: Both) -> None:
    def of_inputs(run: Run) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "run_id"} for row in run.rows("failures")]

    assert both.screen.exit_code == both.sweep.exit_code == 3
    assert {row["reason"] for row in of_inputs(both.screen)} == {"missing_field", "missing_parameter"}
    assert [row for row in of_inputs(both.screen) if row not in of_inputs(both.sweep)] == []
    assert "incomplete" in both.screen.conditions()
    assert both.screen.stderr.splitlines()[-1] == "store: 1/1"


def test_top_prints_the_largest_tails_and_stores_all(both: Both) -> None:
    found = [{k: v for k, v in row.items() if k != "run_id"} for row in both.screen.rows("screen_portfolios")]
    largest = sorted(found, key=lambda row: (-row["es_99_pooled_usd"], row["portfolio_id"]))[:2]
    assert both.screen.document["portfolios"] == largest
    assert both.screen.document["report"] is None
    assert len(found) == 6


def test_the_run_row_says_what_kind_of_run_it_was(both: Both) -> None:
    (screen,), (sweep,) = both.screen.rows("runs"), both.sweep.rows("runs")
    assert (screen["kind"], sweep["kind"]) == ("screen", "sweep")
    for column in ("seed", "generator", "scenarios", "horizon_days", "snapshot_hash", "configuration_digest", "inputs"):
        assert screen[column] == sweep[column], column
    assert (screen["portfolios"], screen["portfolios_incomplete"]) == (6, 2)
    assert screen["run_digest"] != sweep["run_digest"]
    store = both.desk.store()
    assert store.committed_runs("screen") == [both.screen.run_id]
    assert store.committed_runs("sweep") == [both.sweep.run_id]
    assert store.committed_runs() == sorted([both.screen.run_id, both.sweep.run_id])
    # The report is one of sweeps: the newest run is not always one.
    refused = command("report", both.screen.run_id, "--store", store.root)
    assert refused.exit_code == 2
    assert "no finished run" in refused.stderr


def test_a_second_screen_prints_a_table_and_the_same_figures(both: Both) -> None:
    again = command("screen", str(both.desk.write()), "--top", "1")
    assert again.exit_code == 3
    assert again.stdout.startswith("Largest ES 99 %")
    (largest,) = both.screen.document["portfolios"][:1]
    line = next(line for line in again.stdout.splitlines() if largest["portfolio_id"] in line)
    assert f"{largest['es_99_pooled_usd']:,.0f}" in line
    store = both.desk.store()
    for name in ("screen_portfolios", "screen_accounts"):
        first, second = (store.read(name, run).drop_columns(["run_id"]) for run in store.committed_runs("screen"))
        assert first.equals(second)


def test_a_screen_that_cannot_run_leaves_nothing(both: Both) -> None:
    refused = command("screen", str(both.desk.write()), "--json", "--set", "portfolios.south=[]", "--set", "run.sead=1")
    assert refused.exit_code == 2
    assert json.loads(refused.stdout)["run_id"] is None


# ---- the tables that the fast engine reads ---------------------------------------------------------------------------


def test_marks_of_an_account_s_own_go_before_those_of_its_venue() -> None:
    book = book_of({"p": ("perps:cross", "perps:rates")}, seed=3)
    plain_id, own_id = book.portfolios["p"]
    plain = arrow_tables(book.tables)
    market = min(row["instrument_id"] for row in plain["positions"].to_pylist() if row["account_id"] == own_id)
    marks = plain["marks"].to_pylist()
    venue = next(row for row in marks if (row["subject"], row["field"]) == (market, "mark"))
    own = {**venue, "account_id": own_id, "value": 1.5 * venue["value"]}
    seen = take_snapshot([{**plain, "marks": pa.Table.from_pylist([*marks, own], plain["marks"].schema)}], as_of=AS_OF)
    assert not seen.failures
    tables = account_tables(seen, {own_id, plain_id})
    venues = {row["account_id"]: row["venue"] for row in tables["accounts"].to_pylist()}
    assert venues[plain_id] == venue["venue"] != venues[own_id]
    values = {(r["venue"], r["subject"], r["field"]): r["value"] for r in tables["marks"].to_pylist()}
    assert all(row["account_id"] is None for row in tables["marks"].to_pylist())
    assert values[venues[own_id], market, "mark"] == own["value"]
    assert values[venue["venue"], market, "mark"] == venue["value"]
    # What the account does not see by itself it sees as its venue does.
    of_venue = {(s, f): v for (name, s, f), v in values.items() if name == venue["venue"]}
    others = {(s, f): v for (name, s, f), v in values.items() if name == venues[own_id] and s != market}
    assert {row["asset_id"] for row in tables["balances"].to_pylist()} & {s for s, _ in others}
    assert others.items() <= of_venue.items()
