"""The recorded payloads end to end: what is computed equals the venue's figures, what is lacking is said row by row.

Needs the folder of recorded material, see `conftest.recorded`. The table below is the whole of what the samples lack.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from aggregator.store import ResultStore
from tests.sample_desk import CONFIGS, Run, command

# The venue's own figures are rounded to 6 decimals of amounts in the hundreds and thousands.
NATIVE = 1e-9
RECORDED_EQUITY = 1182.312496
ISOLATED_EQUITY = 7.525754


class Lacking(NamedTuple):
    """A failure by its place and reason; `why` says what of the sample explains it."""

    venue: str
    payload: str
    path: str
    reason: str
    account_id: str | None
    why: str


AAVE = "aave_v3:aave-v3-constructed:ethereum-core"
SPOT = "hyperliquid:hyperliquid-spot-state:spot"
DERIVE = "derive:derive-positions:42"
LACKING = (
    Lacking("aave_v3", "user_reserves_constructed.json", "userReserves[0].underlyingAsset", "unknown_asset", AAVE,
            "the constructed user holds a token TEST6, which is none"),
    Lacking("aave_v3", "user_reserves_constructed.json", "userReserves[1].underlyingAsset", "unknown_asset", AAVE,
            "and another one, TEST18"),
    Lacking("binance", "", "assets", "missing_field", "binance:binance-usdm-position-risk",
            "position risk without the account's wallet"),
    Lacking("binance", "portfolio_margin_account.json", "", "unsupported",
            "binance:binance-portfolio-margin:portfolio", "no rule for portfolio margin in this release"),
    Lacking("binance", "usdm_account_v3.json", "positions[0].notional", "inconsistent",
            "binance:binance-usdm-account:USDT", "the documentation's sample holds 1 BTC with a notional of 0"),
    Lacking("derive", "option_ticker.json", "option_details", "inconsistent", None,
            "the sample's expiry is not that of its instrument's name"),
    Lacking("derive", "positions_eth.json", "", "missing_field", DERIVE,
            "positions without the subaccount's collateral"),
    Lacking("derive", "subaccount_usdc_pm.json", "initial_margin", "inconsistent", None,
            "1,000 USDC and no position, but a net initial margin of 0 instead of 1,000"),
    Lacking("derive", "subaccount_usdc_pm.json", "maintenance_margin", "inconsistent", None,
            "and a net maintenance margin of 0"),
    Lacking("hyperliquid", "", "", "missing_mark", "hyperliquid:hyperliquid-spot-balances:spot",
            "a wallet of HYPE in a snapshot without a market payload"),
    Lacking("hyperliquid", "clearinghouse_state_summary_only.json", "crossMarginSummary.totalNtlPos", "inconsistent",
            "hyperliquid:hyperliquid-summary-only:cross", "the sample was cut to its summary, its positions are gone"),
    Lacking("hyperliquid", "spot_clearinghouse_state.json", "balances[1].coin", "unknown_asset", SPOT,
            "the wallet holds PURR, which the asset book does not know"),
    Lacking("hyperliquid", "spot_clearinghouse_state.json", "balances[3].coin", "unknown_asset", SPOT,
            "and an outcome token, +10"),
)  # fmt: skip
COMPLETE = ("derive-subaccount", "hyperliquid-2023", "hyperliquid-2025", "hyperliquid-isolated")
INCOMPLETE = {
    "aave-v3-constructed": "no_complete_account",
    "binance-portfolio-margin": "no_complete_account",
    "binance-usdm-account": "incomplete",  # its USDC wallet can be computed
    "binance-usdm-position-risk": "no_complete_account",
    "derive-positions": "no_complete_account",
    "hyperliquid-spot-balances": "no_complete_account",
    "hyperliquid-spot-state": "no_complete_account",
    "hyperliquid-summary-only": "no_complete_account",
}
# Ratios to a requirement or a risk of zero: the derive sample holds dollars alone.
MAY_BE_NULL = {"health_minimum", "health_minimum_account", "pooled_to_silo_99", "equity_to_es_99", "left_out_gross_usd",
               "p_liquidation_largest_account"}  # fmt: skip


@pytest.fixture(scope="module")
def run(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copy(CONFIGS / "assets.toml", folder)
    shutil.copytree(CONFIGS / "venues", folder / "venues")
    text = (CONFIGS / "recorded.toml").read_text(encoding="utf-8")
    assert "../../shared/" in text
    (folder / "recorded.toml").write_text(text.replace("../../shared/", f"{recorded.resolve()}/"), encoding="utf-8")
    answer = command(
        "sweep", str(folder / "recorded.toml"), "--json", "--set", "engine.host_devices=1",
        "--set", "store.path=results", "--set", "report.path=reports",
    )  # fmt: skip
    return Run(answer.exit_code, answer.stdout, answer.stderr, ResultStore(folder / "results"))


def test_the_run_ends_with_incomplete_data(run: Run) -> None:
    assert run.exit_code == 3, run.stderr
    assert run.conditions() == ["failures", "incomplete"]
    assert run.document["conditions"][0]["message"] == (
        "13 rows could not be used: 5 inconsistent, 2 missing_field, 1 missing_mark, 4 unknown_asset, 1 unsupported"
    )
    assert Path(run.document["report"]).is_file()


def test_everything_that_is_lacking_is_said_and_nothing_else(run: Run) -> None:
    found = [(r["venue"], r["payload"], r["path"], r["reason"], r["account_id"]) for r in run.rows("failures")]
    assert sorted(found, key=str) == sorted((case[:5] for case in LACKING), key=str)


def test_who_is_complete(run: Run) -> None:
    rows = {row["portfolio_id"]: row for row in run.rows("portfolio_margin")}
    assert {name for name, row in rows.items() if row["complete"]} == set(COMPLETE)
    assert {name: row["status"] for name, row in rows.items() if not row["complete"]} == INCOMPLETE
    lost = {case.account_id for case in LACKING} - {None}
    assert {account for row in rows.values() for account in json.loads(row["accounts_left_out"])} == lost
    for name in COMPLETE:
        nulls = {column for column, value in rows[name].items() if value is None}
        assert nulls <= MAY_BE_NULL, name
    for name in COMPLETE[1:]:
        assert rows[name]["es_99_pooled_usd"] > 0
        assert rows[name]["health_minimum"] > 1


@pytest.mark.parametrize(
    ("account_id", "equity"),
    [
        ("hyperliquid:recorded-2023:cross", RECORDED_EQUITY),
        ("hyperliquid:hyperliquid-2025:isolated:HYPE", ISOLATED_EQUITY),
        ("hyperliquid:hyperliquid-isolated:isolated:HYPE", ISOLATED_EQUITY),
    ],
)
def test_equity_is_the_venue_s(run: Run, account_id: str, equity: float) -> None:
    (row,) = [row for row in run.rows("account_margin") if row["account_id"] == account_id]
    assert row["status"] == "ok"
    assert row["reported_equity"] == equity
    assert row["equity"] == pytest.approx(equity, rel=NATIVE, abs=0)
    assert row["equity_difference"] == row["equity"] - equity


def test_no_account_differs_from_what_its_venue_reports(run: Run) -> None:
    compared = {"equity": 0, "maintenance": 0}
    for row in run.rows("account_margin"):
        for name, reported in (("equity", "reported_equity"), ("maintenance", "reported_maintenance_margin")):
            difference = row[f"{name}_difference"]
            if difference is not None:
                assert abs(difference) <= NATIVE * abs(row[reported]), row["account_id"]
                compared[name] += 1
    # Seven complete accounts report an equity; three of them, all without a position, a maintenance margin of 0.
    assert compared == {"equity": 7, "maintenance": 3}


def test_the_history_covers_every_factor(run: Run) -> None:
    factors = {row["factor"]: row for row in run.rows("factors")}
    assert {row["source"] for row in factors.values()} <= {"history", "proxy", "figures"}
    assert factors["price:HYPE"]["source"] == "proxy"
    assert factors["price:BTC"]["filled_share"] == 0.0
    assert all(row["std_horizon"] > 0 for row in factors.values())
    assert run.rows("runs")[0]["scenarios"] == 4096
