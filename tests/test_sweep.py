"""One sweep and the same sweep: equal inputs give equal bits, however the work is cut, ordered or spread.

Compared through the store, every column of every result table but those that say which run it was, on what machine, and
how it was configured to compute.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.config import TILE
from aggregator.store import ResultStore
from aggregator.sweep_work import shard_of
from tests.sample_desk import ROOT, Desk, Run, comparable, sample_desk, subprocess_environment

pytestmark = pytest.mark.slow

# The text of the configuration holds the engine's settings and the order of its sources; two digests are of that text.
OF_THE_CONFIGURATION = ("configuration", "configuration_digest", "run_digest", "shards")
COPIES = 5


def book(folder: Path) -> Desk:
    """Portfolios of several shapes: a fund on three venues, a desk of its own, and five traders."""
    desk = sample_desk(folder)
    desk.document["run"]["detail_top"] = 3
    for number in range(COPIES):
        desk.add_owner("hyperliquid", "trader", f"trader-{number}")
    return desk


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = book(tmp_path_factory.mktemp("sweep") / "desk").sweep()
    assert run.exit_code == 0, run.stderr
    return run


def results(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Every row that has to be the same; the inputs in an order of their own."""
    tables = comparable(run.store.read_run(run.run_id), without=OF_THE_CONFIGURATION)
    (row,) = tables["runs"]
    row["inputs"] = sorted(json.loads(row["inputs"]), key=json.dumps)
    return tables


def check_equal(one: Run, other: Run) -> None:
    mine, theirs = results(one), results(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name] == theirs[name], name
    filled = ("portfolio_margin", "account_margin", "node_margin", "allocation", "scenarios_worst", "greeks",
              "liquidation_prices", "loss_histogram", "factors", "runs")  # fmt: skip
    assert all(mine[name] for name in filled)


def test_the_same_sweep_twice(tmp_path: Path, undisturbed: Run) -> None:
    desk = book(tmp_path / "desk")
    first, second = desk.sweep(), desk.sweep()
    assert first.run_id != second.run_id
    assert first.store.committed_runs() == [first.run_id, second.run_id]
    check_equal(first, second)
    check_equal(first, undisturbed)
    digests = [run.rows("runs")[0]["run_digest"] for run in (first, second, undisturbed)]
    assert len(set(digests)) == 1
    assert first.run_id.endswith(digests[0][:8])


def engine(**settings: int) -> Callable[[Desk], None]:
    return lambda desk: desk.document["engine"].update(settings)


def reordered(desk: Desk) -> None:
    """Sources, their payloads, portfolios and their entries in another order."""
    order = random.Random(3)
    order.shuffle(desk.document["sources"])
    for source in desk.document["sources"]:
        order.shuffle(source["payloads"])
    portfolios = [*desk.document["portfolios"].items()]
    order.shuffle(portfolios)
    desk.document["portfolios"] = {name: order.sample(entries, len(entries)) for name, entries in portfolios}


def relabeled_files(desk: Desk) -> None:
    """JSON of another layout: the same content in other bytes (their hashes in the run row differ, nothing else)."""
    for path in (desk.folder / "payloads").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()), indent=3, sort_keys=True))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(engine(shard_portfolios=1), marks=pytest.mark.long),
        engine(shard_portfolios=2),
        engine(scenario_chunk=TILE),
        reordered,
    ],
    ids=["shards_of_one", "shards_of_two", "one_tile", "order"],
)
def test_how_the_work_is_cut_changes_no_bit(tmp_path: Path, undisturbed: Run, change: Callable[[Desk], None]) -> None:
    desk = book(tmp_path / "desk")
    change(desk)
    run = desk.sweep()
    assert run.exit_code == 0, run.stderr
    check_equal(run, undisturbed)


@pytest.mark.long
def test_a_smaller_detail_than_the_book_is_the_same_figures(tmp_path: Path, undisturbed: Run) -> None:
    """Headlines of a book that is shown in detail as a whole come from another program than those of a larger one."""
    desk = book(tmp_path / "desk")
    desk.document["run"]["detail_top"] = 100
    whole = desk.sweep()
    mine, theirs = results(whole), results(undisturbed)
    for name in ("portfolio_margin", "account_margin", "node_margin", "factors", "failures"):
        assert mine[name] == theirs[name], name
    shown = {row["portfolio_id"] for row in theirs["allocation"]}
    assert len(shown) == 3
    assert len({row["portfolio_id"] for row in mine["allocation"]}) == 2 + COPIES
    for name in ("allocation", "scenarios_worst", "greeks", "liquidation_prices", "loss_histogram"):
        assert [row for row in mine[name] if row["portfolio_id"] in shown] == theirs[name], name


def test_the_layout_of_a_payload_changes_only_its_hash(tmp_path: Path, undisturbed: Run) -> None:
    desk = book(tmp_path / "desk")
    relabeled_files(desk)
    run = desk.sweep()
    mine, theirs = results(run), results(undisturbed)
    entries, known = mine["runs"][0].pop("inputs"), theirs["runs"][0].pop("inputs")
    assert mine == theirs
    hashes, before = ({(e["venue"], e["request"], e["name"]): e["sha256"] for e in part} for part in (entries, known))
    assert hashes.keys() == before.keys()
    same = {key for key in hashes if hashes[key] == before[key]}
    assert {request for _, request, _ in same} == {"assets", "parameters"}
    assert len(same) == 1 + 3  # the asset book, and the parameter files of three venues
    assert run.rows("runs")[0]["run_digest"] == undisturbed.rows("runs")[0]["run_digest"]


def test_the_number_of_devices_changes_no_bit(tmp_path: Path, undisturbed: Run) -> None:
    """Two devices against the one of this process; they are split when JAX starts, hence a process of its own."""
    devices = 2
    desk = book(tmp_path / "desk")
    desk.document["engine"]["host_devices"] = devices
    done = subprocess.run(
        [sys.executable, "-P", "-m", "aggregator", "sweep", str(desk.write()), "--json"],
        env=subprocess_environment(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "JAX runs already" not in done.stderr
    run = Run(done.returncode, done.stdout, done.stderr, ResultStore(desk.folder / "results"))
    assert run.rows("runs")[0]["device"].endswith(f" x {devices}")
    check_equal(run, undisturbed)


def test_figures_of_one_do_not_depend_on_who_else_is_there(tmp_path: Path, undisturbed: Run) -> None:
    desk = sample_desk(tmp_path / "desk")
    desk.document["run"]["detail_top"] = 0
    del desk.document["portfolios"]["fund"]
    desk.document["sources"] = [s for s in desk.document["sources"] if s.get("owner", "south") == "south"]
    alone = desk.sweep()
    for name in ("portfolio_margin", "account_margin", "node_margin"):
        of_south = [row for row in results(undisturbed)[name] if row["portfolio_id"] == "south"]
        assert results(alone)[name] == of_south


def test_another_seed_gives_other_scenarios_and_the_same_accounts(tmp_path: Path, undisturbed: Run) -> None:
    other = book(tmp_path / "desk").sweep("--set", "run.seed=8")
    mine, theirs = results(other), results(undisturbed)
    for row, known in zip(mine["account_margin"], theirs["account_margin"], strict=True):
        assert (row["equity"], row["maintenance_requirement"]) == (known["equity"], known["maintenance_requirement"])
    assert [r["es_99_pooled_usd"] for r in mine["portfolio_margin"]] != [
        r["es_99_pooled_usd"] for r in theirs["portfolio_margin"]
    ]
    assert other.rows("runs")[0]["run_digest"] != undisturbed.rows("runs")[0]["run_digest"]


# ---- shards ----------------------------------------------------------------------------------------------------------


@given(names=st.sets(st.text(max_size=40), max_size=30), shards=st.integers(1, 50))
def test_the_shards_hold_every_portfolio_once(names: set[str], shards: int) -> None:
    held = [name for shard in range(shards) for name in names if shard_of(name, shards) == shard]
    assert sorted(held) == sorted(names)


@given(portfolio_id=st.text(max_size=40), shards=st.integers(1, 2**31))
def test_a_shard_is_one_of_those_there_are(portfolio_id: str, shards: int) -> None:
    assert 0 <= shard_of(portfolio_id, shards) < shards


@given(portfolio_id=st.text(max_size=40), shards=st.integers(1, 1000), factor=st.integers(1, 10))
def test_shards_are_ranges_of_the_hash(portfolio_id: str, shards: int, factor: int) -> None:
    """Cutting every shard into equal parts keeps each portfolio in a part of its shard."""
    assert shard_of(portfolio_id, shards * factor) // factor == shard_of(portfolio_id, shards)


def test_shards_are_about_equal() -> None:
    counts = [0] * 16
    for number in range(16_000):
        counts[shard_of(f"portfolio-{number}", 16)] += 1
    # Binomial with mean 1,000 and standard deviation 30.6: five of them.
    assert all(abs(count - 1000) < 153 for count in counts)
