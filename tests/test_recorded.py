"""The recorded payloads end to end: what is computed equals the venue's figures, what is lacking is said row by row.

Needs the folder of recorded material, see `conftest.recorded`. The table below is the whole of what the samples lack.
"""

import json
import shutil
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from aggregator.store import ResultStore
from tests.sample_desk import CONFIGS, Run, command

# The venue's own figures are rounded to 6 decimals of amounts in the hundreds and thousands.
NATIVE = 1e-9
RECORDED_EQUITY = 1182.312496
ISOLATED_EQUITY = 7.525754
NOT_OURS = {"lighter"}
"""Venues with samples but without an adapter."""


class Lacking(NamedTuple):
    """A failure by its place and reason; `why` says what of the sample explains it."""

    venue: str
    payload: str
    path: str
    reason: str
    account_id: str | None
    why: str


AAVE = "aave_v3:aave-v3-constructed:ethereum-core"
BYBIT = "bybit:bybit-{}:unified"
DERIBIT = "deribit:deribit-{}:cross"
DERIVE = "derive:derive-positions:42"
DRIFT = "drift_v2:drift-v2-examples:0"
DYDX = "dydx_v4:dydx-v4-{}:0"
GMX = f"gmx_v2:gmx-v2-constructed:0x{2:040x}:0x{3:040x}:long"
OKX = "okx:okx-{}:cross"
OKX_ISOLATED = "okx:okx-isolated:isolated:ETH-USD-210430:long"
PARADEX = "paradex:paradex-positions"
SPOT = "hyperliquid:hyperliquid-spot-state:spot"
LACKING = (
    Lacking("aave_v3", "user_reserves_constructed.json", "userReserves[0].underlyingAsset", "unknown_asset", AAVE,
            "the constructed user holds a token TEST6, which is none"),
    Lacking("aave_v3", "user_reserves_constructed.json", "userReserves[1].underlyingAsset", "unknown_asset", AAVE,
            "and another one, TEST18"),
    Lacking("binance", "", "assets", "missing_field", "binance:binance-usdm-position-risk",
            "position risk without the account's wallet"),
    Lacking("binance", "", "balance", "missing_field", "binance:binance-portfolio-margin:portfolio",
            "a portfolio-margin account's totals without its balances"),
    Lacking("binance", "usdm_account_v3.json", "positions[0].notional", "inconsistent",
            "binance:binance-usdm-account:USDT", "the documentation's sample holds 1 BTC with a notional of 0"),
    Lacking("bybit", "", "list", "missing_field", BYBIT.format("account-info"),
            "the settings of an account without its wallet"),
    Lacking("bybit", "", "list", "missing_field", BYBIT.format("inverse-position"), "a position without a wallet"),
    Lacking("bybit", "inverse_position.json", "result.list[0]", "missing_parameter", BYBIT.format("inverse-position"),
            "and without the risk limits of its market"),
    Lacking("bybit", "uta_wallet_balance.json", "result.list[0].totalEquity", "inconsistent", BYBIT.format("wallet"),
            "the sample was cut to one coin, of which it holds none; its totals are of more"),
    Lacking("bybit", "uta_wallet_spot_borrow.json", "result.list[0].totalEquity", "inconsistent",
            BYBIT.format("wallet-borrow"), "totals of 3,000 made up beside one coin worth 1,000"),
    Lacking("bybit", "uta_wallet_spot_borrow.json", "result.list[0].coin[0].coin", "missing_parameter",
            BYBIT.format("wallet-borrow"), "a wallet without the collateral ratio of its coin"),
    Lacking("deribit", "", "summaries", "missing_field", "deribit:deribit-simulation",
            "a simulated portfolio without the account's summaries"),
    Lacking("deribit", "account_summaries_cross_pm.json", "summaries", "inconsistent", DERIBIT.format("cross"),
            "the sample was cut to four currencies, which lack 0.03 USD of the account's equity"),
    Lacking("deribit", "ws_portfolio.json", "summaries", "inconsistent", DERIBIT.format("message"),
            "a message of one currency, which is 0.03 USD above the account's equity"),
    Lacking("derive", "option_ticker.json", "option_details", "inconsistent", None,
            "the sample's expiry is not that of its instrument's name"),
    Lacking("derive", "positions_eth.json", "", "missing_field", DERIVE,
            "positions without the subaccount's collateral"),
    Lacking("derive", "subaccount_usdc_pm.json", "initial_margin", "inconsistent", None,
            "1,000 USDC and no position, but a net initial margin of 0 instead of 1,000"),
    Lacking("derive", "subaccount_usdc_pm.json", "maintenance_margin", "inconsistent", None,
            "and a net maintenance margin of 0"),
    Lacking("drift_v2", "gateway_examples.json", "user", "missing_parameter", DRIFT,
            "the gateway's answers do not show what a user's own account does"),
    Lacking("drift_v2", "gateway_examples.json", "GET /v2/positions.spot[0].marketIndex", "unknown_market", DRIFT,
            "the examples list a perpetual market alone, no spot market"),
    Lacking("drift_v2", "gateway_examples.json", "GET /v2/positions.spot[1].marketIndex", "unknown_market", DRIFT,
            "of the second spot market neither"),
    Lacking("drift_v2", "gateway_examples.json", "GET /v2/positionInfo/0.amount", "inconsistent", DRIFT,
            "the example of a position is of another account than the list of positions, which is empty"),
    Lacking("dydx_v4", "subaccount_with_position_constructed.json", "subaccount.openPerpetualPositions.BTC-USD",
            "missing_parameter", DYDX.format("constructed"), "a position without a list of markets"),
    Lacking("dydx_v4", "ws_markets_subscribed.json", "contents.markets.BTC-USD.openInterestLowerCap", "missing_field",
            DYDX.format("channels"), "the message states no caps on open interest, by which initial margin may scale"),
    Lacking("gmx_v2", "position_constructed.json", "market", "unknown_market", GMX,
            "the constructed position's market and tokens are addresses that no chain has"),
    Lacking("hyperliquid", "", "", "missing_mark", "hyperliquid:hyperliquid-spot-balances:spot",
            "a wallet of HYPE in a snapshot without a market payload"),
    Lacking("hyperliquid", "clearinghouse_state_summary_only.json", "crossMarginSummary.totalNtlPos", "inconsistent",
            "hyperliquid:hyperliquid-summary-only:cross", "the sample was cut to its summary, its positions are gone"),
    Lacking("hyperliquid", "spot_clearinghouse_state.json", "balances[3].coin", "unknown_asset", SPOT,
            "the wallet holds an outcome token, +10, which no price factor moves"),
    Lacking("okx", "", "data", "missing_field", OKX.format("builder"),
            "a simulated portfolio without the account's balance"),
    Lacking("okx", "position_builder_doc.json", "data[0].totalMmr", "inconsistent", OKX.format("builder"),
            "the sample was cut to one risk unit; its total is of more"),
    Lacking("okx", "account_balance.json", "data[0].adjEq", "inconsistent", OKX.format("balance"),
            "the sample was cut to one currency; its totals are of more"),
    Lacking("okx", "account_balance.json", "data[0].totalEq", "inconsistent", OKX.format("balance"),
            "the total without discounts as well"),
    Lacking("okx", "account_balance.json", "data[0].details[0].upl", "missing_field", OKX.format("balance"),
            "a profit without the position that makes it"),
    Lacking("okx", "account_position_risk.json", "data[0].adjEq", "inconsistent", OKX.format("position-risk"),
            "the sample was cut to two currencies; its total is of more"),
    Lacking("okx", "account_position_risk.json", "", "missing_parameter", OKX.format("position-risk"),
            "without the discount of BTC"),
    Lacking("okx", "account_position_risk.json", "", "missing_parameter", OKX.format("position-risk"),
            "and of USDT"),
    Lacking("okx", "positions_future_isolated.json", "data[0].instId", "missing_parameter", OKX_ISOLATED,
            "a position without its contract, which expired in 2021"),
    Lacking("okx", "positions_future_isolated.json", "data[0].instId", "missing_parameter", OKX_ISOLATED,
            "and without the tiers of its market"),
    Lacking("paradex", "positions.json", "", "missing_field", PARADEX, "a position without the account's balance"),
    Lacking("paradex", "positions.json", "results[0].market", "unknown_market", PARADEX,
            "in a market that the recorded markets do not list"),
)  # fmt: skip
POSITIONS = ("compound-v3-constructed", "hyperliquid-2023", "hyperliquid-2025", "hyperliquid-isolated")
DOLLARS_ALONE = ("derive-subaccount", "dydx-v4-http", "dydx-v4-raw")
INCOMPLETE = {
    "aave-v3-constructed": "no_complete_account",
    "binance-portfolio-margin": "no_complete_account",
    "binance-usdm-account": "incomplete",  # its USDC wallet can be computed
    "binance-usdm-position-risk": "no_complete_account",
    "bybit-account-info": "no_complete_account",
    "bybit-inverse-position": "no_complete_account",
    "bybit-wallet": "no_complete_account",
    "bybit-wallet-borrow": "no_complete_account",
    "deribit-cross": "no_complete_account",
    "deribit-message": "no_complete_account",
    "deribit-simulation": "no_complete_account",
    "derive-positions": "no_complete_account",
    "drift-v2-examples": "no_complete_account",
    "dydx-v4-channels": "no_complete_account",
    "dydx-v4-constructed": "no_complete_account",
    "gmx-v2-constructed": "no_complete_account",
    "hyperliquid-spot-balances": "no_complete_account",
    "hyperliquid-spot-state": "no_complete_account",
    "hyperliquid-summary-only": "no_complete_account",
    "okx-balance": "no_complete_account",
    "okx-builder": "no_complete_account",
    "okx-isolated": "no_complete_account",
    "okx-position-risk": "no_complete_account",
    "paradex-positions": "no_complete_account",
}
# Ratios to a requirement or a risk of zero: some samples hold dollars alone.
MAY_BE_NULL = {"health_minimum", "health_minimum_account", "pooled_to_silo_99", "equity_to_es_99", "left_out_gross_usd",
               "p_liquidation_largest_account", "p_liquidation_path", "hours_to_liquidation", "hours_to_liquidation_10",
               "hours_to_liquidation_50", "funding_paid_path_usd", "capital_cost_usd"}  # fmt: skip
# The samples are apart from each other: the configuration names no routes between them.
OF_ROUTES = {"deadlines", "transfer_method", "es_99_fungible_usd", "es_99_transfer_usd", "es_99_transfer_gap_usd",
             "es_99_transfer_error_usd", "es_99_alone_usd", "fungibility_99", "fungibility_995", "usable_saving",
             "p_uncovered", "uncovered_mean_usd", "uncovered_es_99_usd", "uncovered_transit_usd", "stranded_usd",
             "top_up_usd", "top_up_total_usd", "binding_failure", "binding_failure_usd"}  # fmt: skip


@pytest.fixture(scope="module")
def configuration(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped configuration with the folder of recorded material wherever it is."""
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copy(CONFIGS / "assets.toml", folder)
    shutil.copytree(CONFIGS / "venues", folder / "venues")
    text = (CONFIGS / "recorded.toml").read_text(encoding="utf-8")
    assert "../../shared/" in text
    path = folder / "recorded.toml"
    path.write_text(text.replace("../../shared/", f"{recorded.resolve()}/"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(configuration: Path) -> Run:
    answer = command(
        "sweep", str(configuration), "--json", "--set", "engine.host_devices=1",
        "--set", "store.path=results", "--set", "report.path=reports",
    )  # fmt: skip
    return Run(answer.exit_code, answer.stdout, answer.stderr, ResultStore(configuration.parent / "results"))


def test_every_sample_of_our_venues_is_read_once(recorded: Path) -> None:
    document = tomllib.loads((CONFIGS / "recorded.toml").read_text(encoding="utf-8"))
    read = [Path(payload["file"]).parts[-2:] for source in document["sources"] for payload in source["payloads"]]
    there = {path.parts[-2:] for path in (recorded / "payloads").glob("*/*.json")}
    assert sorted(read) == sorted(sample for sample in there if sample[0] not in NOT_OURS)
    owners = [f"{source['venue']}:{source['owner']}" for source in document["sources"] if "owner" in source]
    assert sorted(owners) == sorted(one for members in document["portfolios"].values() for one in members)


def test_the_run_ends_with_incomplete_data(run: Run) -> None:
    assert run.exit_code == 3, run.stderr
    assert run.conditions() == ["failures", "incomplete"]
    counts = sorted(Counter(case.reason for case in LACKING).items())
    assert run.document["conditions"][0]["message"] == (
        f"{len(LACKING)} rows could not be used: " + ", ".join(f"{count} {reason}" for reason, count in counts)
    )
    assert Path(run.document["report"]).is_file()


def test_everything_that_is_lacking_is_said_and_nothing_else(run: Run) -> None:
    found = [(r["venue"], r["payload"], r["path"], r["reason"], r["account_id"]) for r in run.rows("failures")]
    assert sorted(found, key=str) == sorted((case[:5] for case in LACKING), key=str)


def test_who_is_complete(run: Run) -> None:
    rows = {row["portfolio_id"]: row for row in run.rows("portfolio_margin")}
    assert {name for name, row in rows.items() if row["complete"]} == {*POSITIONS, *DOLLARS_ALONE}
    assert {name: row["status"] for name, row in rows.items() if not row["complete"]} == INCOMPLETE
    lost = {case.account_id for case in LACKING} - {None}
    assert {account for row in rows.values() for account in json.loads(row["accounts_left_out"])} == lost
    for name in (*POSITIONS, *DOLLARS_ALONE):
        nulls = {column for column, value in rows[name].items() if value is None}
        assert nulls - MAY_BE_NULL == OF_ROUTES, name
        assert rows[name]["es_99_pooled_usd"] > 0, name
    assert {name for name in POSITIONS if not rows[name]["health_minimum"] > 1} == {"compound-v3-constructed"}
    assert {rows[name]["health_minimum"] for name in DOLLARS_ALONE} == {None}


def test_the_constructed_borrower_is_under_water(run: Run) -> None:
    (row,) = [row for row in run.rows("account_margin") if row["venue"] == "compound_v3"]
    # 10 COMP at 175 and 1 WETH at 3,000 against a debt of a million USDC, with a factor of 1.
    assert row["equity"] == 4_750 - 1_000_000
    assert row["health"] == pytest.approx(0.00475, rel=NATIVE)
    assert row["liquidatable"] is True
    assert row["p_liquidation_at_horizon"] == 1


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
            if difference is None:
                continue
            compared[name] += 1
            assert abs(difference) <= NATIVE * abs(row[reported]), row["account_id"]
    # Nine complete accounts report an equity; three of them, all without a position, a maintenance margin of 0.
    assert compared == {"equity": 9, "maintenance": 3}


def test_reconciliation_leaves_nothing_unexplained(configuration: Path) -> None:
    answer = command("reconcile", str(configuration), "--json", "--set", "engine.host_devices=1")
    assert answer.exit_code == 3, answer.stderr  # accounts are incomplete
    document = json.loads(answer.stdout)
    assert [row for row in document["rows"] if row["status"] == "unexplained"] == []
    assert {row["account_id"] for row in document["rows"] if row["status"] == "explained"} == {
        "hyperliquid:recorded-2023:cross"  # the venue rounds every position's margin
    }


def test_the_history_covers_every_factor(run: Run) -> None:
    factors = {row["factor"]: row for row in run.rows("factors")}
    assert {row["source"] for row in factors.values()} <= {"history", "proxy", "figures"}
    assert factors["price:HYPE"]["source"] == "proxy"
    assert factors["price:BTC"]["filled_share"] == 0.0
    assert all(row["std_horizon"] > 0 for row in factors.values())
    assert run.rows("runs")[0]["scenarios"] == 4096
