"""What becomes of input that cannot be used: a failure that says where and why, and nobody else's figures change.

Every case breaks the payloads of one owner (or of one market) in one place. All of them are read by one run, each owner
a portfolio of its own, and compared with a run in which nothing is broken.
"""

import io
import json
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from rich.progress import Progress

import adapters.adapter
from adapters.adapter import GROUP, Context, Normalized
from adapters.rows import Rows
from adapters.transport import Payload
from aggregator.terminal import Bars
from tests.sample_desk import AS_OF, Change, Desk, Run, command, sample_desk

pytestmark = pytest.mark.slow

_GONE = object()


def at(path: str, value: Any = _GONE) -> Change:
    """Sets what stands at a dotted path of the body, or takes it away."""

    def change(content: Any) -> None:
        place = content["body"]
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
        for key in parents:
            place = place[key]
        if value is _GONE:
            del place[last]
        else:
            place[last] = value

    return change


def twice(path: str) -> Change:
    """Repeats the entry of a list at a dotted path of the body at the end of the list."""

    def change(content: Any) -> None:
        place = content["body"]
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
        for key in parents:
            place = place[key]
        place.append(place[last])

    return change


def text(old: str = "", new: str = "", *, keep: float = 1.0) -> Change:
    """The file as text with `old` replaced once, cut to a part of its length."""

    def change(content: Any) -> str:
        written = json.dumps(content)
        assert old in written
        written = written.replace(old, new, 1)
        return written[: round(len(written) * keep)]

    return change


def instead(written: str) -> Change:
    """A file that holds something else altogether."""
    return lambda content: written


def renamed(request: str) -> Change:
    """An envelope that names another request."""
    return lambda content: content.update(request=request)


def unchanged(content: Any) -> None:
    """Nothing is wrong with the content."""


class Case(NamedTuple):
    """One broken payload of an owner: the file `stem` of the sample owner `like` is changed.

    Its failure has this reason, path and message (a part of it). `lost` is the part of an account id behind the owner
    ("" for the owner as a whole, whose accounts nobody knows); `kept` those that keep the figures of the clean run.
    """

    name: str
    venue: str
    like: str
    stem: str
    change: Change
    reason: str
    path: str
    message: str
    lost: str
    kept: tuple[str, ...] = ()


HL, STATE, SPOT = ("hyperliquid", "trader"), "clearinghouse_state", "spot_clearinghouse_state"
NORTH, ACCOUNT, RISK = ("binance", "north"), "north_account", "north_position_risk"
SOUTH, MULTI = ("binance", "south"), "south_account"
AAVE, USER = ("aave_v3", "treasury"), "user_treasury"
SUB, SUBACCOUNT = ("derive", "south"), "south_subaccount"
BTC, ETH, SOL = (f"assetPositions.{n}.position" for n in range(3))
NO_CROSS, NO_SPOT = ("isolated:SOL", "spot"), ("cross", "isolated:SOL")
NO_USDT = ("USDC", "isolated:SOLUSDT")

CASES = (
    # A whole file that cannot be read: what it would have told of its owner is unknown.
    Case("hl-truncated", *HL, STATE, text(keep=0.6), "malformed", "", "not readable as JSON", "", ("spot",)),
    Case("hl-empty", *HL, STATE, instead(""), "malformed", "", "not readable as JSON", "", ("spot",)),
    Case("hl-html", *HL, STATE, instead("<html>502 Bad Gateway</html>"), "malformed", "", "JSON", "", ("spot",)),
    Case("hl-nested", *HL, STATE, instead("[" * 200_000), "malformed", "", "recursion", "", ("spot",)),
    Case("hl-digits", *HL, STATE, text('"1.2"', "9" * 5000), "malformed", "", "digits", "", ("spot",)),
    Case("bn-truncated", *NORTH, ACCOUNT, text(keep=0.4), "malformed", "", "JSON", "", ("isolated:SOLUSDT",)),
    Case("aa-truncated", *AAVE, USER, text(keep=0.5), "malformed", "", "not readable as JSON", ""),
    Case("de-truncated", *SUB, SUBACCOUNT, text(keep=0.5), "malformed", "", "not readable as JSON", ""),
    Case("hl-request", *HL, SPOT, renamed("spotClearinghouse"), "unsupported", "request",
         "did you mean 'spotClearinghouseState'?", "", NO_SPOT),
    # Hyperliquid: the account that holds the row is lost, its isolated position and its wallet are not.
    Case("hl-list", *HL, STATE, at("assetPositions", {}), "malformed", "assetPositions", "expected a list", "cross",
         ("spot",)),
    Case("hl-field", *HL, STATE, at(f"{BTC}.entryPx"), "missing_field", "assetPositions[0].position.entryPx",
         "'entryPx' is missing", "cross", NO_CROSS),
    Case("hl-null", *HL, STATE, at(f"{ETH}.szi", None), "missing_field", "assetPositions[1].position.szi",
         "'szi' is missing", "cross", NO_CROSS),
    Case("hl-nan", *HL, STATE, text('"1.2"', "NaN"), "not_a_number", "assetPositions[0].position.szi",
         "NaN is not finite", "cross", NO_CROSS),
    Case("hl-infinite", *HL, STATE, text('"1.2"', "-Infinity"), "not_a_number", "assetPositions[0].position.szi",
         "-Infinity is not finite", "cross", NO_CROSS),
    Case("hl-nan-text", *HL, STATE, at(f"{BTC}.szi", "NaN"), "not_a_number", "assetPositions[0].position.szi",
         "NaN is not finite", "cross", NO_CROSS),
    Case("hl-word", *HL, STATE, at(f"{BTC}.szi", "twelve"), "not_a_number", "assetPositions[0].position.szi",
         "'twelve' is not a number", "cross", NO_CROSS),
    Case("hl-object", *HL, STATE, at(f"{BTC}.szi", {"a": 1}), "not_a_number", "assetPositions[0].position.szi",
         "found dict", "cross", NO_CROSS),
    Case("hl-huge", *HL, STATE, at(f"{BTC}.szi", "1e30"), "out_of_range", "assetPositions[0].position.szi",
         "not below 1e20", "cross", NO_CROSS),
    Case("hl-price", *HL, STATE, at(f"{ETH}.entryPx", "-3405.2"), "out_of_range", "assetPositions[1].position.entryPx",
         "-3405.2 must be positive", "cross", NO_CROSS),
    Case("hl-market", *HL, STATE, at(f"{BTC}.coin", "NOSUCH"), "unknown_market", "assetPositions[0].position.coin",
         "'NOSUCH' is not in the asset book", "cross", NO_CROSS),
    Case("hl-row", *HL, STATE, twice("assetPositions.1"), "duplicate", "assetPositions[1].position",
         "ETH is listed 2 times", "cross", NO_CROSS),
    Case("hl-sum", *HL, STATE, at("crossMarginSummary.accountValue", "99999.0"), "inconsistent",
         "crossMarginSummary.accountValue", "the positions add up to 24887.123456", "cross", NO_CROSS),
    Case("hl-isolated", *HL, STATE, at(f"{SOL}.leverage.rawUsd"), "missing_field",
         "assetPositions[2].position.leverage.rawUsd", "'rawUsd' is missing", "isolated:SOL", ("cross", "spot")),
    Case("hl-asset", *HL, SPOT, at("balances.1.coin", "NOSUCH"), "unknown_asset", "balances[1].coin",
         "'NOSUCH' is not in the asset book", "spot", NO_SPOT),
    Case("hl-debt", *HL, SPOT, at("balances.0.total", "-5"), "out_of_range", "balances[0].total",
         "-5 must not be negative", "spot", NO_SPOT),
    # Binance: single-asset mode has one account per margin asset and per isolated position, multi-assets mode one.
    Case("bn-field", *NORTH, ACCOUNT, at("assets.0.crossWalletBalance"), "missing_field",
         "assets[0].crossWalletBalance", "'crossWalletBalance' is missing", "USDT", NO_USDT),
    Case("bn-price", *NORTH, RISK, at("0.markPrice", "-64987.3"), "out_of_range", "[0].markPrice",
         "-64987.3 must be positive", "USDT", NO_USDT),
    Case("bn-nan", *SOUTH, MULTI, at("assets.1.walletBalance", "NaN"), "not_a_number", "assets[1].walletBalance",
         "NaN is not finite", "multi"),
    Case("bn-market", *SOUTH, MULTI, at("positions.0.symbol", "NOSUCHUSDT"), "unknown_market", "positions[0].symbol",
         "NOSUCHUSDT is not in the asset book", "multi"),
    Case("bn-asset", *SOUTH, MULTI, at("assets.3.asset", "NOSUCH"), "unknown_asset", "assets[3].asset",
         "'NOSUCH' is not in the asset book", "multi"),
    Case("bn-row", *SOUTH, MULTI, twice("positions.0"), "duplicate", "positions[4]", "2 rows of ETHUSDT", "multi"),
    # Aave: a user's positions in a market are one account.
    Case("aa-field", *AAVE, USER, at("userReserves.0.scaledATokenBalance"), "missing_field",
         "userReserves[0].scaledATokenBalance", "is missing", "ethereum-core"),
    Case("aa-nan", *AAVE, USER, at("userReserves.0.scaledATokenBalance", "NaN"), "not_a_number",
         "userReserves[0].scaledATokenBalance", "'NaN' is not an integer", "ethereum-core"),
    Case("aa-debt", *AAVE, USER, at("userReserves.2.scaledVariableDebt", "-1"), "out_of_range",
         "userReserves[2].scaledVariableDebt", "-1 must lie in", "ethereum-core"),
    Case("aa-market", *AAVE, USER, at("userReserves.0.underlyingAsset", "0x" + "1" * 40), "unknown_market",
         "userReserves[0].underlyingAsset", "no reserve 0x1111", "ethereum-core"),
    Case("aa-row", *AAVE, USER, twice("userReserves.0"), "duplicate", "userReserves[0]", "all rejected",
         "ethereum-core"),
    # Derive: a subaccount is an account.
    Case("de-field", *SUB, SUBACCOUNT, at("result.positions.0.amount"), "missing_field", "positions[0].amount",
         "'amount' is missing", "9002"),
    Case("de-nan", *SUB, SUBACCOUNT, at("result.collaterals.0.amount", "NaN"), "not_a_number",
         "collaterals[0].amount", "NaN is not finite", "9002"),
    Case("de-market", *SUB, SUBACCOUNT, at("result.positions.1.instrument_name", "NOSUCH-PERP"), "unknown_market",
         "positions[1].instrument_name", "'NOSUCH' is not in the asset book", "9002"),
    Case("de-mark", *SUB, SUBACCOUNT, at("result.positions.1.instrument_name", "ETH-20240628-9900-P"), "missing_mark",
         "positions", "no implied vol of ETH-20240628-9900-P", "9002"),
    Case("de-manager", *SUB, SUBACCOUNT, at("result.margin_type", "XX"), "unsupported", "margin_type",
         "margin type 'XX'", "9002"),
    Case("de-row", *SUB, SUBACCOUNT, twice("result.positions.0"), "duplicate", "positions[2]",
         "BTC-PERP is listed twice", "9002"),
)  # fmt: skip


class Market(NamedTuple):
    """One broken market-wide payload, in a snapshot of its own with one owner for each of `owners`.

    `reason`, `path` and `message` are those of the failure that names the file. `lost` and `kept` are parts of account
    ids behind `<snapshot>-<owner>`, `why` the reason with which the lost ones are lost.
    """

    name: str
    venue: str
    stem: str
    change: Change
    reason: str
    path: str
    message: str
    owners: tuple[str, ...]
    lost: tuple[str, ...]
    why: str
    kept: tuple[str, ...] = ()


MARKETS = (
    Market("m-hl-price", "hyperliquid", "meta_and_asset_ctxs", at("1.4.oraclePx", "-7.852"), "out_of_range",
           "[1][4].oraclePx", "-7.852 must be positive", ("trader",), ("trader:spot",), "missing_mark",
           ("trader:cross", "trader:isolated:SOL")),
    Market("m-hl-tiers", "hyperliquid", "meta_and_asset_ctxs", at("0.marginTables.2.1.marginTiers", []), "inconsistent",
           "[0].marginTables[2]", "a margin table must start", ("trader",), ("trader:cross",), "inconsistent",
           ("trader:isolated:SOL", "trader:spot")),
    Market("m-bn-bracket", "binance", "leverage_bracket", at("0.brackets.0.maintMarginRatio", "NaN"), "not_a_number",
           "[0].brackets[0].maintMarginRatio", "NaN is not finite", ("north", "south"),
           ("north:USDT", "south:multi"), "missing_parameter", ("north:USDC", "north:isolated:SOLUSDT")),
    Market("m-aa-truncated", "aave_v3", "reserves", text(keep=0.5), "malformed", "", "not readable as JSON",
           ("treasury",), ("treasury:ethereum-core",), "missing_mark"),
    Market("m-aa-price", "aave_v3", "reserves", at("reserves.0.priceInMarketReferenceCurrency", "-1"), "out_of_range",
           "reserves[0].priceInMarketReferenceCurrency", "-1 must", ("treasury",), ("treasury:ethereum-core",),
           "out_of_range"),
    Market("m-de-vol", "derive", "ticker_eth_20240628_2800_p", at("result.option_pricing.iv", "NaN"), "not_a_number",
           "option_pricing.iv", "NaN is not finite", ("south",), ("south:9002",), "missing_mark"),
)  # fmt: skip

# Whole payloads that are listed twice: neither copy counts, even where they agree.
COPIES = (
    Case("hl-twice", *HL, STATE, unchanged, "duplicate", "", "clearinghouseState came 2 times", "cross", ("spot",)),
    Case("bn-twice", *SOUTH, MULTI, unchanged, "duplicate", "request", "2 answers to fapi/account", "multi"),
    Case("aa-twice", *AAVE, USER, unchanged, "duplicate", "", "2 payloads of getUserReservesData", "ethereum-core"),
    Case("de-twice", *SUB, SUBACCOUNT, unchanged, "duplicate", "", "2 payloads of private/get_subaccount", "9002"),
)
OWNERS = (*CASES, *COPIES)
HEALTHY = (HL, NORTH, SOUTH, AAVE, SUB)


def case_desk(folder: Path, *, broken: bool) -> Desk:
    """Every case and, beside the owners of the main snapshot, a healthy owner of each kind; all well or all broken."""
    desk = Desk(folder)
    desk.document["run"]["detail_top"] = 0
    for venue in ("aave_v3", "binance", "derive", "hyperliquid"):
        desk.add_market(venue)
    for venue, like in HEALTHY:
        desk.add_owner(venue, like, f"healthy-{venue}-{like}")
    for case in OWNERS:
        desk.add_owner(case.venue, case.like, case.name, change={case.stem: case.change} if broken else None)
    for case in COPIES if broken else ():
        listed = desk.source(case.venue, case.name)["payloads"]
        listed += [entry for entry in listed if entry["file"] == f"payloads/{case.name}_{case.stem}.json"]
    for market in MARKETS:
        desk.add_market(market.venue, snapshot=market.name, change={market.stem: market.change} if broken else None)
        for like in market.owners:
            desk.add_owner(market.venue, like, f"{market.name}-{like}", snapshot=market.name)
    return desk


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return case_desk(tmp_path_factory.mktemp("desks") / "clean", broken=False).sweep()


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return case_desk(tmp_path_factory.mktemp("desks") / "broken", broken=True).sweep()


def account(case: Case | Market, part: str) -> str:
    """Id of an account of the case's owner."""
    separator = "-" if isinstance(case, Market) else ":"
    return f"{case.venue}:{case.name}{separator}{part}" if part else f"{case.venue}:{case.name}"


def row_of(rows: list[dict[str, Any]], **key: str) -> dict[str, Any] | None:
    found = [row for row in rows if all(row[column] == value for column, value in key.items())]
    assert len(found) <= 1, key
    return {name: value for name, value in found[0].items() if name != "run_id"} if found else None


def test_without_a_fault_nothing_is_reported(clean: Run) -> None:
    assert clean.exit_code == 0, clean.stderr
    assert clean.document["conditions"] == []
    assert clean.rows("failures") == []
    assert {row["status"] for row in clean.rows("portfolio_margin")} == {"ok"}
    assert {row["status"] for row in clean.rows("account_margin")} <= {"ok", "no_requirement"}


@pytest.mark.parametrize("case", OWNERS, ids=lambda case: case.name)
def test_the_failure_names_the_place(broken: Run, case: Case) -> None:
    found = broken.failures(venue=case.venue, reason=case.reason, path=case.path, account_id=account(case, case.lost))
    assert len(found) == 1, [row for row in broken.rows("failures") if case.name in str(row)]
    assert found[0]["payload"] == f"{case.name}_{case.stem}.json"
    assert case.message in found[0]["message"]
    assert found[0]["subject"]


@pytest.mark.parametrize("case", OWNERS, ids=lambda case: case.name)
def test_the_portfolio_is_incomplete_and_the_rest_of_it_unchanged(clean: Run, broken: Run, case: Case) -> None:
    portfolio = row_of(broken.rows("portfolio_margin"), portfolio_id=case.name)
    assert portfolio is not None
    assert portfolio["complete"] is False
    assert account(case, case.lost) in json.loads(portfolio["accounts_left_out"])
    assert portfolio["status"] == ("incomplete" if case.kept else "no_complete_account")
    assert portfolio["accounts"] == len(case.kept)
    assert (portfolio["equity_usd"] is None) == (not case.kept)
    check_accounts(clean, broken, lost=[account(case, case.lost)], kept=[account(case, part) for part in case.kept])


def check_accounts(clean: Run, broken: Run, *, lost: list[str], kept: list[str]) -> None:
    """No figure of a lost account, every figure of a kept one as in the clean run."""
    before, after = clean.rows("account_margin"), broken.rows("account_margin")
    for account_id in lost:
        row = row_of(after, account_id=account_id)
        if row is not None:  # an account whose payload could not be opened has no row at all
            assert row["status"] == "incomplete"
            computed = ("equity", "initial_requirement", "maintenance_requirement", "health", "equity_usd",
                        "p_liquidation_at_horizon", "liquidatable", "gross_notional_usd")  # fmt: skip
            assert {name: row[name] for name in computed} == dict.fromkeys(computed)
    for account_id in kept:
        row = row_of(after, account_id=account_id)
        assert row is not None
        assert row["status"] in ("ok", "no_requirement")
        expected = row_of(before, account_id=account_id)
        assert expected is not None
        # What the venue had reported of the account may have stood in the payload that is lost.
        reported = {name for name in row if row[name] is None and name.startswith(("reported_", "maintenance_diff"))}
        assert {**row, **{name: expected[name] for name in reported}} == expected


@pytest.mark.parametrize("market", MARKETS, ids=lambda market: market.name)
def test_a_broken_market_takes_those_who_need_it(clean: Run, broken: Run, market: Market) -> None:
    payload_name = f"{market.name}_{market.stem}.json"
    found = broken.failures(venue=market.venue, payload=payload_name, reason=market.reason, path=market.path)
    assert found, [row for row in broken.rows("failures") if market.name in str(row)]
    assert all(market.message in row["message"] for row in found)
    for part in market.lost:
        assert market.why in {row["reason"] for row in broken.failures(account_id=account(market, part))}
    check_accounts(
        clean,
        broken,
        lost=[account(market, part) for part in market.lost],
        kept=[account(market, part) for part in market.kept],
    )
    for owner in market.owners:
        row = row_of(broken.rows("portfolio_margin"), portfolio_id=f"{market.name}-{owner}")
        assert row is not None
        assert row["complete"] is False


@pytest.mark.parametrize("table", ["portfolio_margin", "account_margin", "node_margin"])
def test_the_healthy_keep_every_bit(clean: Run, broken: Run, table: str) -> None:
    def healthy(run: Run) -> list[dict[str, Any]]:
        rows = [row for row in run.rows(table) if row["portfolio_id"].startswith("healthy-")]
        return [{name: value for name, value in row.items() if name != "run_id"} for row in rows]

    assert len({row["portfolio_id"] for row in healthy(clean)}) == len(HEALTHY)
    assert healthy(broken) == healthy(clean)


def test_every_failure_belongs_to_a_case(broken: Run) -> None:
    names = [case.name for case in (*OWNERS, *MARKETS)]
    strangers = [row for row in broken.rows("failures") if not any(name in str(row) for name in names)]
    assert strangers == []


def test_the_exit_code_and_the_conditions_count_them(broken: Run) -> None:
    assert broken.exit_code == 3
    document = broken.document
    assert [(c["condition"], c["code"]) for c in document["conditions"]] == [("failures", 3), ("incomplete", 3)]
    message = document["conditions"][0]["message"]
    counted = {reason: int(count) for count, reason in re.findall(r"(\d+) ([a-z_]+)(?=,|$)", message)}
    rows = broken.rows("failures")
    assert counted == {reason: len(broken.failures(reason=reason)) for reason in {row["reason"] for row in rows}}
    incomplete = {row["portfolio_id"] for row in document["portfolios"] if not row["complete"]}
    assert incomplete == {case.name for case in OWNERS} | {f"{m.name}-{owner}" for m in MARKETS for owner in m.owners}
    assert document["conditions"][1]["message"].startswith(f"{len(incomplete)} portfolios are incomplete: ")
    run = broken.rows("runs")[0]
    assert (run["failures"], run["portfolios_incomplete"]) == (len(rows), len(incomplete))
    assert json.loads(run["conditions"]) == document["conditions"]


# ---- ages ------------------------------------------------------------------------------------------------------------


def moved(days: int) -> Mapping[str, Change]:
    """Both payloads of the sample trader received, and said to be of a time, that many days later."""

    def change(content: Any) -> None:
        moment = datetime.fromisoformat(content["received_at"]) + timedelta(days=days)
        content["received_at"] = moment.isoformat()
        if "time" in content["body"]:
            content["body"]["time"] += days * 86_400_000

    return {STATE: change, SPOT: change}


def traders(folder: Path, **changes: Mapping[str, Change]) -> Desk:
    """Copies of the sample trader, by owner, in one snapshot of Hyperliquid alone."""
    desk = Desk(folder)
    desk.document["run"]["detail_top"] = 0
    desk.add_market("hyperliquid")
    for owner, change in changes.items():
        desk.add_owner(*HL, owner, change=change)
    return desk


def test_accounts_and_marks_of_another_time(tmp_path: Path) -> None:
    desk = traders(tmp_path / "desk", today={}, late=moved(-1), early=moved(1))
    fresh = desk.sweep()
    assert fresh.conditions() == ["failures", "incomplete"]  # a time in the future is wrong at any age limit
    assert {row["account_id"] for row in fresh.failures(reason="inconsistent")} == {
        "hyperliquid:early:cross", "hyperliquid:early:isolated:SOL", "hyperliquid:early:spot",
    }  # fmt: skip
    assert all("after the run's as-of" in row["message"] for row in fresh.failures(reason="inconsistent"))

    desk.document["data"]["max_age_s"] = 3600.0
    aged = desk.sweep()
    assert aged.exit_code == 3
    ahead = [[row["message"] for row in run.failures(reason="inconsistent")] for run in (fresh, aged)]
    assert ahead[0] == ahead[1]
    stale = aged.failures(reason="stale")
    assert {row["account_id"] for row in stale} == {
        "hyperliquid:late:cross", "hyperliquid:late:isolated:SOL", "hyperliquid:late:spot",
    }  # fmt: skip
    assert "account hyperliquid:late:spot is 86400 s old, allowed are 3600 s" in {row["message"] for row in stale}
    assert any(re.match(r"mark of hyperliquid:BTC is 8640\d s old", row["message"]) for row in stale)
    complete = {row["portfolio_id"]: row["complete"] for row in aged.rows("portfolio_margin")}
    assert complete == {"today": True, "late": False, "early": False}
    assert row_of(aged.rows("account_margin"), account_id="hyperliquid:today:cross") == row_of(
        fresh.rows("account_margin"), account_id="hyperliquid:today:cross"
    )


def test_a_stale_market_price_takes_those_who_need_it(tmp_path: Path) -> None:
    desk = traders(tmp_path / "desk", today={})
    desk.add_market(
        "hyperliquid", change={"meta_and_asset_ctxs": lambda c: c.update(received_at="2024-06-20T00:00:00Z")}
    )
    desk.document["data"]["max_age_s"] = 3600.0
    run = desk.sweep()
    assert run.exit_code == 3
    stale = run.failures(reason="stale")
    assert stale
    assert {row["account_id"] for row in stale} == {None}
    assert any(row["subject"] == "HYPE" and "allowed are 3600 s" in row["message"] for row in stale)
    (missing,) = run.failures(reason="missing_mark")
    assert (missing["account_id"], missing["subject"]) == ("hyperliquid:today:spot", "HYPE")
    statuses = {row["account_id"]: row["status"] for row in run.rows("account_margin")}
    assert statuses == {
        "hyperliquid:today:cross": "ok",  # its marks came with its own payload
        "hyperliquid:today:isolated:SOL": "ok",
        "hyperliquid:today:spot": "incomplete",
    }


def test_prices_that_differ_between_venues_are_a_finding_that_stops_nobody(tmp_path: Path) -> None:
    desk = traders(tmp_path / "desk", today={})
    desk.add_market("binance")
    desk.document["data"]["max_mark_gap"] = 0.02
    run = desk.sweep()
    assert run.exit_code == 3
    assert run.conditions() == ["failures"]
    gaps = {row["subject"]: row["message"] for row in run.failures(reason="inconsistent")}
    assert gaps.keys() == {"BTC", "ETH"}
    assert gaps["BTC"] == (
        "prices of BTC differ by 4.1% (hyperliquid mark 62480, binance index 65011.6), allowed are 2.0%"
    )
    assert all(row["complete"] for row in run.rows("portfolio_margin"))


# ---- nothing left to compute -----------------------------------------------------------------------------------------


def test_without_a_readable_account_the_run_still_reports(tmp_path: Path) -> None:
    desk = traders(tmp_path / "desk", lost={STATE: instead("{"), SPOT: instead("{")})
    desk.document["report"]["path"] = "reports"
    run = desk.sweep()
    assert run.exit_code == 3
    assert run.conditions() == ["failures", "incomplete"]
    (row,) = run.document["portfolios"]
    assert (row["status"], row["complete"], row["accounts"]) == ("no_complete_account", False, 0)
    assert {value for name, value in row.items() if name.endswith("_usd")} == {None}
    page = Path(run.document["report"]).read_text(encoding="utf-8")
    assert "No portfolio of this run could be computed" in page


def test_a_venue_that_cannot_be_read_leaves_the_others_alone(tmp_path: Path) -> None:
    desk = sample_desk(tmp_path / "desk")
    clean = desk.sweep()
    for file in ("trader_clearinghouse_state", "trader_spot_clearinghouse_state", "meta_and_asset_ctxs"):
        (desk.folder / "payloads" / f"{file}.json").write_bytes(b"\xff\xfe\x00")
    run = desk.sweep()
    assert run.exit_code == 3
    assert {(row["venue"], row["reason"]) for row in run.rows("failures")} == {("hyperliquid", "malformed")}
    assert len(run.rows("failures")) == 3
    fund, south = run.rows("portfolio_margin")
    assert (fund["portfolio_id"], fund["complete"]) == ("fund", False)
    assert json.loads(fund["accounts_left_out"]) == ["hyperliquid:trader"]
    assert south["complete"] is True
    others = [row["account_id"] for row in clean.rows("account_margin") if row["venue"] != "hyperliquid"]
    assert len(others) == 5
    check_accounts(clean, run, lost=["hyperliquid:trader:cross"], kept=others)


def test_an_account_without_anything_in_it_is_complete_and_zero(tmp_path: Path) -> None:
    def emptied(content: Any) -> None:
        zero = dict.fromkeys(("accountValue", "totalNtlPos", "totalRawUsd", "totalMarginUsed"), "0.0")
        content["body"] |= {"assetPositions": [], "marginSummary": zero, "crossMarginSummary": zero}
        content["body"]["crossMaintenanceMarginUsed"] = "0.0"

    desk = traders(tmp_path / "desk", empty={STATE: emptied, SPOT: at("balances", [])}, full={})
    run = desk.sweep()
    assert run.exit_code == 0, run.stderr
    row = row_of(run.rows("portfolio_margin"), portfolio_id="empty")
    assert row is not None
    assert (row["complete"], row["status"], row["equity_usd"], row["es_99_pooled_usd"]) == (True, "ok", 0.0, 0.0)
    assert (row["health_minimum"], row["pooled_to_silo_99"], row["equity_to_es_99"]) == (None, None, None)


def test_figures_that_overflow_are_an_own_status(tmp_path: Path) -> None:
    desk = traders(tmp_path / "desk", wallet={}, bare={SPOT: at("balances.1.total", "0.0")})
    desk.document["scenarios"]["daily_std"]["price:HYPE"] = 500.0  # e^500 is beyond float32, e^2000 beyond float64
    run = desk.sweep()
    assert run.exit_code == 3
    assert run.conditions() == ["failures", "incomplete"]
    (failure,) = run.rows("failures")
    assert (failure["reason"], failure["subject"]) == ("calculation", "wallet")
    assert "are not finite" in failure["message"]
    wallet, bare = (row_of(run.rows("portfolio_margin"), portfolio_id=name) for name in ("wallet", "bare"))
    assert wallet is not None
    assert bare is not None
    assert (wallet["status"], wallet["complete"], wallet["es_99_pooled_usd"]) == ("calculation", False, None)
    assert (bare["status"], bare["complete"]) == ("ok", True)
    statuses = {row["account_id"]: row["status"] for row in run.rows("account_margin")}
    assert statuses["hyperliquid:wallet:cross"] == statuses["hyperliquid:bare:cross"] == "ok"
    assert statuses["hyperliquid:wallet:spot"] == "calculation"
    figures = ("equity", "maintenance_requirement", "health", "p_liquidation_at_horizon")
    one, other = (
        row_of(run.rows("account_margin"), account_id=f"hyperliquid:{name}:cross") for name in ("wallet", "bare")
    )
    assert one is not None
    assert other is not None
    assert {name: one[name] for name in figures} == {name: other[name] for name in figures}


# ---- tables of another distribution ----------------------------------------------------------------------------------


class Elsewhere:
    """A venue of another distribution: every owner has an account with 1,000 USDC; `spoil` changes its tables."""

    venue = "elsewhere"
    requests = ("cash",)

    def __init__(self, table: str, spoil: Callable[[pa.Table], pa.Table]) -> None:
        self.table, self.spoil = table, spoil

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        rows = Rows(self.venue)
        stable = context.assets.assets["USDC"]
        rows.add("assets", asset_id="USDC@elsewhere", symbol="USDC", multiplier=stable.multiplier, peg_of=stable.peg_of)
        rows.add("rule_sets", rule_set="elsewhere:cash", component_no=1, form="verdict", side="verdict", level="both",
                 group_by="account", parameters='{"liquidates_when": "below"}', source="test")  # fmt: skip
        for payload in payloads:
            account_id = f"elsewhere:{payload.account}"
            rows.add("accounts", account_id=account_id, node=account_id, venue=self.venue, owner=payload.account,
                     margin_mode="cross", rule_set="elsewhere:cash", settlement_asset="USDC@elsewhere",
                     received_at=payload.received_at)  # fmt: skip
            rows.add("balances", account_id=account_id, asset_id="USDC@elsewhere", side="asset",
                     quantity=payload.body["cash"], collateral_enabled=True)  # fmt: skip
        batches = rows.batches()
        return Normalized(batches | {self.table: self.spoil(batches[self.table])}, rows.failures)


def version_two(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"crossmargin.version": b"2"})


@pytest.mark.parametrize(
    ("table", "spoil", "reason", "message"),
    [
        ("accounts", version_two, "malformed",
         "schema says table 'accounts' version '2', expected 'accounts' version '1'"),
        ("balances", lambda t: t.drop_columns(["quantity"]), "missing_field", "missing columns ['quantity']"),
        ("balances", lambda t: t.rename_columns([c.replace("quantity", "quantty") for c in t.column_names]),
         "missing_field", "unknown 'quantty' (did you mean 'quantity'?)"),
        ("balances", lambda t: t.append_column("side", t["side"]), "malformed", "columns ['side'] stand twice"),
    ],
    ids=["version", "column", "name", "twice"],
)  # fmt: skip
def test_tables_of_another_shape_are_refused_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    spoil: Callable[[pa.Table], pa.Table],
    reason: str,
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "elsewhere_venue", types.SimpleNamespace(ADAPTER=Elsewhere(table, spoil)))
    own = entry_points(group=GROUP)
    points = EntryPoints([*own, EntryPoint("elsewhere", "elsewhere_venue:ADAPTER", GROUP)])
    monkeypatch.setattr(adapters.adapter, "entry_points", lambda *, group: points.select(group=group))
    desk = traders(tmp_path / "desk", healthy={})
    cash = {"request": "cash", "received_at": AS_OF, "body": {"cash": 1000}}
    desk.add_file("foreign_cash.json", cash, "elsewhere", "foreign")
    desk.document["portfolios"]["foreign"] = ["elsewhere:foreign"]
    del desk.source("elsewhere", "foreign")["parameters"]
    run = desk.sweep()
    assert run.exit_code == 3, run.stderr
    said = run.failures(venue="elsewhere", reason=reason)
    assert any(message in row["message"] and row["subject"] == table for row in said), said
    (lost,) = run.failures(account_id="elsewhere:foreign", path=table)
    assert lost["message"] == f"table {table!r} was refused"
    complete = {row["portfolio_id"]: row["complete"] for row in run.rows("portfolio_margin")}
    assert complete == {"foreign": False, "healthy": True}


# ---- market history --------------------------------------------------------------------------------------------------

HISTORY_END = date(2024, 6, 24)
HISTORY_DAYS = 400


def history_rows() -> list[list[str]]:
    """asset, market, ts, close of BTC, ETH, SOL and PEPE: 400 days of a random walk; PEPE the last 100 days only."""
    generator = np.random.default_rng(5)
    common = generator.standard_normal(HISTORY_DAYS)
    rows = []
    for asset, first, spread, days in (
        ("BTC", 40_000.0, 0.02, 400), ("ETH", 2_000.0, 0.025, 400), ("SOL", 60.0, 0.04, 400), ("PEPE", 1e-6, 0.06, 100),
    ):  # fmt: skip
        own = generator.standard_normal(HISTORY_DAYS)
        closes = first * np.exp(np.cumsum(spread * (0.8 * common + 0.6 * own)))
        for number in range(HISTORY_DAYS - days, HISTORY_DAYS):
            day = HISTORY_END - timedelta(days=HISTORY_DAYS - 1 - number)
            rows.append([asset, "perp", f"{day}T00:00:00Z", repr(float(closes[number]))])
    return rows


def history_desk(folder: Path, rows: list[list[str]], **scenarios: Any) -> Desk:
    """The sample trader under filtered historical simulation, 512 draws; HYPE has neither history nor proxy."""
    desk = traders(folder, trader={})
    desk.document["scenarios"] = {
        "generator": "filtered_history",
        "scenarios": 512,
        "history": "history.csv",
        "pegs": {"USDC": {"daily_std": 0.0005}},
        "proxies": {"price:PEPE": {"factor": "price:ETH", "scale": 2.0}},
    } | scenarios
    lines = ["asset,market,ts,close", *(",".join(row) for row in rows)]
    (folder / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return desk


def test_gaps_duplicates_and_bad_closes_of_a_history(tmp_path: Path) -> None:
    rows = history_rows()
    of_sol = [n for n, row in enumerate(rows) if row[0] == "SOL"]
    of_eth = [n for n, row in enumerate(rows) if row[0] == "ETH"]
    rows[of_eth[300]][3] = "NaN"
    rows[of_eth[310]][3] = "-1"
    rows[of_eth[320]][3] = "much"
    rows.append(list(rows[of_sol[200]]))
    gone = set(of_sol[100:110])
    desk = history_desk(tmp_path / "desk", [row for n, row in enumerate(rows) if n not in gone])
    run = desk.sweep()
    assert run.exit_code == 3, run.stderr
    days = [str(HISTORY_END - timedelta(days=HISTORY_DAYS - 1 - n)) for n in range(HISTORY_DAYS)]
    of_history = {(row["path"], row["reason"]) for row in run.failures(payload="market history")}
    assert of_history == {
        (f"ETH/perp/{days[300]}", "missing_field"),  # the reader of CSV takes NaN for an empty cell
        (f"ETH/perp/{days[310]}", "out_of_range"),
        (f"ETH/perp/{days[320]}", "not_a_number"),
        (f"SOL/perp/{days[200]}", "duplicate"),
    }
    assert {row["account_id"] for row in run.failures(payload="market history")} == {None}
    factors = {row["factor"]: row for row in run.rows("factors")}
    assert factors["price:PEPE"]["source"] == "proxy"
    assert factors["price:BTC"]["filled_share"] == 0.0
    # 369 days have residuals: a gap of ten closes costs 11 returns, a rejected close two. Days without ETH, an anchor,
    # are no days of the panel at all.
    assert factors["price:SOL"]["filled_share"] == pytest.approx(
        (11 + 2) / (HISTORY_DAYS - 1 - 30 - 6), rel=0, abs=1e-12
    )


@pytest.mark.parametrize("proxied", [False, True])
def test_an_asset_without_history_needs_a_proxy(tmp_path: Path, proxied: bool) -> None:
    proxies = {"price:PEPE": {"factor": "price:ETH", "scale": 2.0}}
    if proxied:
        proxies["price:HYPE"] = {"factor": "price:SOL", "scale": 1.5}
    run = history_desk(tmp_path / "desk", history_rows(), proxies=proxies).sweep()
    factors = {row["factor"]: row for row in run.rows("factors")}
    if proxied:
        assert run.exit_code == 0, run.stderr
        assert factors["price:HYPE"]["source"] == "proxy"
        ratio = factors["price:HYPE"]["std_horizon"] / factors["price:SOL"]["std_horizon"]
        assert ratio == pytest.approx(1.5, rel=1e-12)
        return
    assert run.exit_code == 3
    assert "price:HYPE" not in factors
    said = {row["subject"]: row["message"] for row in run.failures(reason="missing_parameter")}
    assert said["price:HYPE"] == "price:HYPE has no price history and no proxy"
    (lost,) = run.failures(account_id="hyperliquid:trader:spot")
    assert lost["message"] == "HYPE needs the factor price:HYPE, which nothing moves"
    statuses = {row["account_id"]: row["status"] for row in run.rows("account_margin")}
    assert statuses["hyperliquid:trader:spot"] == "incomplete"
    assert statuses["hyperliquid:trader:cross"] == "ok"


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda rows: [row for row in rows if row[0] != "ETH"], 3, "anchor ETH has no daily returns"),
        (lambda rows: [], 3, "anchor BTC has no daily returns"),
        (
            lambda rows: [row for row in rows if row[2] >= "2024-06-10"],
            3,
            "common daily returns; more than 30 are needed",
        ),
        (
            lambda rows: [[*row[:2], row[2].replace("T00", "T07"), row[3]] for row in rows],
            3,
            "do not open at 00:00 UTC",
        ),
    ],
    ids=["anchor", "empty", "short", "hours"],
)
def test_a_history_without_its_anchors_stops_the_run(
    tmp_path: Path, spoil: Callable[[list[list[str]]], list[list[str]]], code: int, message: str
) -> None:
    run = history_desk(tmp_path / "desk", spoil(history_rows())).sweep()
    assert run.exit_code == code
    (condition,) = run.document["conditions"]
    assert (condition["condition"], condition["code"]) == ("DataError", code)
    assert message in condition["message"]
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert run.document["run_id"] is None
    assert not (tmp_path / "desk" / "results").exists()


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("history.parquet", "no Parquet", "Parquet"),
        ("history.csv", "asset,market,ts,close\nBTC,perp\n", "CSV parse error: Expected 4 columns, got 2"),
        ("history.csv", "asset,market,ts,close\nBTC,perp,yesterday,5\n", "'yesterday'"),
        ("history.csv", "asset,market,close\nBTC,perp,5\n", "the table has no column ts"),
    ],
    ids=["parquet", "ragged", "time", "column"],
)
def test_a_history_that_cannot_be_read_stops_the_run(tmp_path: Path, name: str, written: str, message: str) -> None:
    desk = history_desk(tmp_path / "desk", history_rows(), history=name)
    (desk.folder / name).write_text(written, encoding="utf-8")
    run = desk.sweep()
    assert run.exit_code == 3
    (condition,) = run.document["conditions"]
    assert (condition["condition"], condition["code"]) == ("DataError", 3)
    assert message in condition["message"]
    assert "Traceback" not in run.stderr
    desk.document["scenarios"]["history"] = "nowhere.csv"
    assert "nowhere.csv does not exist" in desk.sweep().stderr


# ---- names that mean something to a machine --------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>../../x'; drop table runs; --[red]\u001b[31m\nPWNED\u202eü"


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    def hostile_coin(content: Any) -> None:
        content["body"]["assetPositions"][2]["position"]["coin"] = HOSTILE

    desk = traders(tmp_path / "desk", plain={}, marked={STATE: hostile_coin, SPOT: at("balances.1.coin", HOSTILE)})
    desk.document["title"] = HOSTILE
    desk.document["report"]["path"] = "reports"
    desk.document["run"]["detail_top"] = 5
    desk.document["portfolios"][HOSTILE] = desk.document["portfolios"].pop("marked")
    desk.document["limits"] = [{"metric": "equity_usd", "scope": HOSTILE, "minimum": 1.0}]
    run = desk.sweep()
    assert run.exit_code == 3, run.stderr
    portfolios = {row["portfolio_id"]: row for row in run.rows("portfolio_margin")}
    assert portfolios.keys() == {"plain", HOSTILE}
    assert f"hyperliquid:marked:isolated:{HOSTILE}" in json.loads(portfolios[HOSTILE]["accounts_left_out"])
    reasons = {row["reason"] for row in run.rows("failures") if HOSTILE in row["message"] or HOSTILE in row["subject"]}
    assert reasons >= {"unknown_market"}

    report = Path(run.document["report"])
    page = report.read_text(encoding="utf-8")
    assert "<script" not in page.lower()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    again = command(
        "report", run.run_id, "--store", str(desk.folder / "results"), "--output", str(tmp_path / "again.html")
    )
    assert again.exit_code == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page

    assert report.name == f"{run.run_id}.html"
    assert {path.name for path in desk.folder.iterdir()} == {
        "assets.toml", "desk.toml", "payloads", "reports", "results", "venues",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"desk", "again.html"}
    written = [path.name for path in desk.folder.rglob("*")]
    assert not [name for name in written if "script" in name or "drop" in name]

    plain = command("sweep", str(desk.write()), "--fresh")
    assert plain.exit_code == 3
    for stream in (plain.stdout, plain.stderr):
        assert "\u001b" not in stream
        assert "\u202e" not in stream
        assert not [line for line in stream.splitlines() if line.startswith("PWNED")]
    assert "[red]" in plain.stderr  # the title as it is, not a colour
    assert "<script>" in plain.stdout


def test_a_title_is_no_markup_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with Progress(console=Console(file=stream, force_terminal=True, width=200, color_system=None)) as progress:
        Bars(progress).note("[/red] not closed \u001b[31m [bold]")
    assert r"[/red] not closed \x1b[31m [bold]" in stream.getvalue()


def test_half_a_surrogate_pair_is_a_failure_and_not_a_crash(tmp_path: Path) -> None:
    broken_name = text('"coin": "SOL"', r'"coin": "\ud800"')
    run = traders(tmp_path / "desk", plain={}, marked={STATE: broken_name}).sweep()
    assert run.exit_code == 3, run.stderr
    complete = {row["portfolio_id"]: row["complete"] for row in run.rows("portfolio_margin")}
    assert complete == {"plain": True, "marked": False}
    request = text('"request": "spotClearinghouseState"', r'"request": "\ud800"')
    run = traders(tmp_path / "other", plain={}, marked={SPOT: request}).sweep()
    assert run.exit_code == 3, run.stderr
    (failure,) = run.failures(account_id="hyperliquid:marked")
    assert failure["reason"] == "unsupported"


@pytest.mark.parametrize("owner", ["<script>", "../../x", "a b", "a'b", "a:b", "x" * 65, "ü"])
def test_an_owner_label_is_a_plain_word(tmp_path: Path, owner: str) -> None:
    desk = traders(tmp_path / "desk", plain={})
    desk.document["sources"][1]["owner"] = owner
    run = desk.sweep()
    assert run.exit_code == 2
    assert "sources.1.owner" in run.stderr
    assert not (tmp_path / "desk" / "results").exists()
