"""One book of every venue: their own sample payloads of one instant, portfolios across venues, one run from end to end.

What a venue's own tests cannot show: that all adapters meet in one snapshot without contradicting each other (assets,
instruments, marks within two percent), that accounts of every kind share portfolios, and that each gets numbers.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aggregator.config import load_configuration
from aggregator.portfolio import Book, pack_book
from aggregator.run_inputs import read_inputs
from aggregator.schema.results import RESULTS
from aggregator.store import ResultStore
from tests.payload_mutations import AS_OF, ROOT, has_sample, venues
from tests.sample_desk import Answer, Run, command, toml

pytestmark = pytest.mark.long

VENUES = [venue for venue in venues() if has_sample(venue)]
SCENARIOS = 512
PORTFOLIOS = 5
# Made up: a day of price, of implied volatility and of a peg.
DAILY_STD = {"price": 0.03, "vol": 0.05, "peg": 0.001}


class Mixed(NamedTuple):
    """The configuration, the book that it packs to, a sweep and a reconciliation of it."""

    path: Path
    book: Book
    run: Run
    reconciled: Answer


def document() -> dict[str, Any]:
    """All samples as one snapshot; owners go to the portfolios in turn, so that each portfolio mixes venues."""
    sources, owners = list[dict[str, Any]](), list[str]()
    for venue in VENUES:
        listed = importlib.import_module(f"tests.sample_{venue}")
        parameters = {"parameters": str(ROOT / listed.PARAMETERS)} if listed.PARAMETERS else {}
        by_owner: dict[str, list[dict[str, str]]] = {}
        for request, file, owner in listed.PAYLOADS:
            entry = {"file": str(ROOT / "tests" / "payloads" / venue / file), "request": request}
            by_owner.setdefault(owner, []).append(entry)
        for owner, payloads in by_owner.items():
            sources.append({"venue": venue, "payloads": payloads} | parameters | ({"owner": owner} if owner else {}))
        owners += [f"{venue}:{owner}" for owner in sorted(by_owner) if owner]
    return {
        "title": "Every venue",
        "assets": str(ROOT / "configs" / "assets.toml"),
        "run": {"as_of": AS_OF.isoformat(), "seed": 11, "detail_top": PORTFOLIOS},
        "scenarios": {"generator": "multivariate_t", "scenarios": SCENARIOS, "nu": 4.0, "daily_std": {}},
        "engine": {"host_devices": 1, "scenario_chunk": 512},
        "store": {"path": "results"},
        "report": {"path": "reports"},
        "sources": sources,
        "portfolios": {f"mixed-{place}": owners[place::PORTFOLIOS] for place in range(PORTFOLIOS)},
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    folder = tmp_path_factory.mktemp("mixed")
    path, wanted = folder / "desk.toml", document()
    path.write_text(toml(wanted), encoding="utf-8")
    resolved = load_configuration(path)
    inputs = read_inputs(resolved, lambda stage, done, total: None)
    book, unclaimed = pack_book(inputs.snapshots, resolved.configuration.portfolios, as_of=AS_OF)
    assert unclaimed == []
    assert inputs.failures == []
    wanted["scenarios"]["daily_std"] = {name: DAILY_STD[name.partition(":")[0]] for name in book.factors()}
    prices = [name for name in book.factors() if name.startswith("price:")]
    wanted["scenarios"]["default_correlation"] = 0.6 if len(prices) > 1 else 0.0
    path.write_text(toml(wanted), encoding="utf-8")
    swept = command("sweep", str(path), "--json")
    run = Run(swept.exit_code, swept.stdout, swept.stderr, ResultStore(folder / "results"))
    return Mixed(path, book, run, command("reconcile", str(path), "--json"))


def test_the_venues_do_not_contradict_each_other(mixed: Mixed) -> None:
    assert mixed.run.exit_code == 0, mixed.run.stderr
    assert mixed.run.document["conditions"] == []
    assert mixed.run.rows("failures") == []
    assert mixed.book.failures == ()


def test_every_portfolio_is_complete_and_holds_several_venues(mixed: Mixed) -> None:
    rows = mixed.run.rows("portfolio_margin")
    assert len(rows) == PORTFOLIOS
    accounts = mixed.run.rows("account_margin")
    for row in rows:
        assert (row["complete"], row["status"]) == (True, "ok"), row["portfolio_id"]
        of = {account["venue"] for account in accounts if account["portfolio_id"] == row["portfolio_id"]}
        assert len(of) > min(len(VENUES), PORTFOLIOS) // 2, row["portfolio_id"]


def test_every_account_of_every_venue_has_numbers(mixed: Mixed) -> None:
    rows = {row["account_id"]: row for row in mixed.run.rows("account_margin")}
    packed = {account.account_id for portfolio in mixed.book.portfolios for account in portfolio.accounts}
    assert set(rows) == packed
    assert {row["venue"] for row in rows.values()} == set(VENUES)
    for account, row in rows.items():
        assert row["status"] in ("ok", "no_requirement"), account
        numbers = ("equity", "equity_usd", "initial_requirement", "maintenance_requirement", "p_liquidation_at_horizon")
        assert None not in {row[name] for name in numbers}, account
        assert row["maintenance_requirement"] >= 0, account


def test_nothing_in_any_result_is_not_finite(mixed: Mixed) -> None:
    for name in RESULTS:
        for row in mixed.run.rows(name):
            for column, value in row.items():
                assert not isinstance(value, float) or math.isfinite(value), (name, column, row)


def test_risk_adds_up_over_venues(mixed: Mixed) -> None:
    for row in mixed.run.rows("portfolio_margin"):
        lines = mixed.run.rows("allocation")
        of = [line for line in lines if (line["portfolio_id"], line["level"]) == (row["portfolio_id"], "venue")]
        if of:  # portfolios in detail
            assert math.fsum(line["es_99_usd"] for line in of) == pytest.approx(row["es_99_pooled_usd"], rel=1e-6)
        assert row["es_99_isolated_sum_usd"] >= row["es_99_silo_sum_usd"] >= row["es_99_pooled_usd"] > 0


def test_the_report_shows_all_of_it(mixed: Mixed) -> None:
    page = Path(mixed.run.document["report"]).read_text(encoding="utf-8")
    for place in range(PORTFOLIOS):
        assert f"mixed-{place}" in page
    for venue in VENUES:
        assert venue in page


def _differences(mixed: Mixed) -> Iterator[dict[str, Any]]:
    yield from json.loads(mixed.reconciled.stdout)["rows"]


def test_our_figures_are_the_venues_own(mixed: Mixed) -> None:
    assert mixed.reconciled.exit_code == 0, mixed.reconciled.stderr
    rows = list(_differences(mixed))
    assert [row for row in rows if row["status"] == "incomplete"] == []
    beyond = [row for row in rows if row["beyond_bound"] and row["status"] == "unexplained"]
    assert beyond == []
    # Every venue but those that state no figure of their own has something to compare.
    compared = {row["venue"] for row in rows if row["status"] == "match"}
    assert compared >= {"binance", "bybit", "deribit", "okx", "hyperliquid"} & set(VENUES)
