"""A sweep that is killed and started again: the same run, every shard once, the figures of an undisturbed run."""

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from aggregator.errors import StoreError
from aggregator.store import SHARD_TABLES, ResultStore
from aggregator.sweep_work import shard_of
from tests.sample_desk import ROOT, Desk, Run, command, comparable, subprocess_environment

pytestmark = pytest.mark.slow

PORTFOLIOS = 32
PER_SHARD = 4
SHARDS = PORTFOLIOS // PER_SHARD + 1
# A warm start takes seconds; on a machine that compiles everything anew and is busy, minutes.
PATIENCE_S = 240.0
POLL_S = 0.02


def many_traders(folder: Path) -> Desk:
    """32 portfolios of the same small account in nine shards, the last of them the detail."""
    desk = Desk(folder)
    desk.add_market("hyperliquid")
    for number in range(PORTFOLIOS):
        desk.add_owner("hyperliquid", "trader", f"trader-{number:02d}")
    desk.document["engine"] |= {"shard_portfolios": PER_SHARD}
    desk.document["run"]["detail_top"] = 5
    return desk


class Killed(NamedTuple):
    """A desk whose sweep was killed while it wrote its shards, and what the store held right after."""

    desk: Desk
    run_id: str
    written: frozenset[int]


def started_run(store: ResultStore) -> str | None:
    """Id of the only run that was begun; None before it is."""
    table = Path(store.root) / "run_starts"
    if not DeltaTable.is_deltatable(str(table)):
        return None
    started = DeltaTable(str(table)).to_pyarrow_table().column("run_id").to_pylist()
    assert len(started) <= 1
    return started[0] if started else None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = many_traders(tmp_path_factory.mktemp("resume") / "undisturbed").sweep()
    assert run.exit_code == 0, run.stderr
    return run


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A child process is killed by its own id as soon as the store holds its first shard."""
    desk = many_traders(tmp_path_factory.mktemp("resume") / "killed")
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "aggregator", "sweep", str(desk.write()), "--json"],
        env=subprocess_environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        run_id, deadline = None, time.monotonic() + PATIENCE_S
        while child.poll() is None and time.monotonic() < deadline:
            run_id = run_id or started_run(desk.store())
            if run_id is not None and desk.store().shards_written(run_id):
                break
            time.sleep(POLL_S)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        out, err = child.communicate()
    assert child.returncode == -signal.SIGKILL, err.decode()
    assert out == b""
    assert run_id is not None
    return Killed(desk, run_id, desk.store().shards_written(run_id))


@pytest.fixture
def desk(killed: Killed, tmp_path: Path) -> Desk:
    """The killed desk as it was left, in a folder of its own."""
    return killed.desk.copied(tmp_path / "desk")


def check_whole(run: Run, undisturbed: Run) -> None:
    """Every shard once, rows and figures as undisturbed."""
    assert run.exit_code == 0, run.stderr
    shards = DeltaTable(str(Path(run.store.root) / "run_shards")).to_pyarrow_table()
    mine = sorted(shards.filter(pc.equal(shards["run_id"], run.run_id)).column("shard").to_pylist())
    assert mine == list(range(SHARDS))
    tables = run.store.read_run(run.run_id)
    assert tables["portfolio_margin"].num_rows == PORTFOLIOS
    assert len(set(tables["portfolio_margin"].column("portfolio_id").to_pylist())) == PORTFOLIOS
    assert comparable(tables) == comparable(undisturbed.store.read_run(undisturbed.run_id))


def test_the_kill_came_in_the_middle(killed: Killed) -> None:
    assert 0 < len(killed.written) < SHARDS
    store = killed.desk.store()
    assert store.committed_runs() == []
    assert 0 < store.rows_in_progress("portfolio_margin", killed.run_id).num_rows < PORTFOLIOS


def test_started_again_it_finishes_the_same_run(killed: Killed, desk: Desk, undisturbed: Run) -> None:
    before = {name: desk.store().rows_in_progress(name, killed.run_id).num_rows for name in SHARD_TABLES}
    run = desk.sweep()
    assert run.run_id == killed.run_id
    check_whole(run, undisturbed)
    assert run.store.committed_runs() == [killed.run_id]
    assert sum(before.values()) < sum(run.store.read(name, run.run_id).num_rows for name in SHARD_TABLES)
    row = run.rows("runs")[0]
    assert row["duration_s"] == (row["finished_at"] - row["started_at"]).total_seconds()
    # Finished is finished: the next sweep is another run.
    assert desk.sweep().run_id != killed.run_id


def test_a_resumed_run_says_so(killed: Killed, desk: Desk) -> None:
    answer = command("sweep", str(desk.write()))
    assert answer.exit_code == 0
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("run ")]
    assert line.startswith(f"run      {killed.run_id} (resumed) in ")


def test_a_shard_of_which_one_table_was_written(killed: Killed, desk: Desk, undisturbed: Run) -> None:
    """As if the kill had fallen between the tables of a shard, before the row that says that the shard is whole."""
    store = desk.store()
    missing = min(set(range(SHARDS)) - store.shards_written(killed.run_id))
    whole = undisturbed.store.read_run(undisturbed.run_id)
    rows = whole["portfolio_margin"]
    names = rows.column("portfolio_id").to_pylist()
    of_shard = [name for name in names if shard_of(name, SHARDS - 1) == missing]
    rows = rows.filter(pc.is_in(rows["portfolio_id"], value_set=pa.array(of_shard)))
    rows = rows.set_column(0, rows.schema.field("run_id"), pa.array([killed.run_id] * rows.num_rows))
    assert rows.num_rows
    store._append_once("portfolio_margin", rows, f"{killed.run_id}/{missing}")
    run = desk.sweep()
    assert run.run_id == killed.run_id
    check_whole(run, undisturbed)


def test_another_cut_of_the_work_resumes_in_the_shards_of_the_start(
    killed: Killed, desk: Desk, undisturbed: Run
) -> None:
    desk.document["engine"] = {"host_devices": 1, "scenario_chunk": 256, "shard_portfolios": 1000}
    run = desk.sweep()
    assert run.run_id == killed.run_id
    tables = run.store.read_run(run.run_id)
    known = undisturbed.store.read_run(undisturbed.run_id)
    assert tables["runs"].column("shards").to_pylist() == [SHARDS]
    assert comparable(tables, without=["configuration"]) == comparable(known, without=["configuration"])


def test_fresh_starts_anew(killed: Killed, desk: Desk, undisturbed: Run) -> None:
    run = desk.sweep("--fresh")
    assert run.run_id != killed.run_id
    check_whole(run, undisturbed)
    assert run.store.committed_runs() == [run.run_id]
    assert run.store.shards_written(killed.run_id) == killed.written


# None of these is a number of the compiled program: another horizon would be, and cost a compilation to say the same.
@pytest.mark.parametrize("override", ["run.seed=8", "requirement.opportunity_rate=0.04", "scenarios.nu=5.0"])
def test_another_configuration_is_another_run(killed: Killed, desk: Desk, override: str) -> None:
    run = desk.sweep("--set", override)
    assert run.exit_code == 0, run.stderr
    assert run.run_id != killed.run_id
    assert run.rows("runs")[0]["run_digest"][:8] != killed.run_id[-8:]
    assert run.store.shards_written(killed.run_id) == killed.written


def test_another_payload_is_another_run(killed: Killed, desk: Desk) -> None:
    path = desk.folder / "payloads" / "trader-00_spot_clearinghouse_state.json"
    path.write_text(path.read_text().replace('"total": "1520.25"', '"total": "1520.26"'))
    run = desk.sweep()
    assert run.exit_code == 0, run.stderr
    assert run.run_id != killed.run_id


def test_a_run_of_long_ago_is_left_alone(killed: Killed, desk: Desk) -> None:
    run = desk.sweep("--set", "store.resume_within_s=0")
    assert run.exit_code == 0, run.stderr
    assert run.run_id != killed.run_id
    started = datetime.strptime(killed.run_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    assert datetime.now(UTC) - started < timedelta(hours=1)


def test_what_was_found_before_the_kill_is_reported_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that overflow are found while the shards are computed; the run that goes on does not compute them."""
    desk = Desk(tmp_path / "desk")
    desk.add_market("hyperliquid")
    for number in range(3):
        desk.add_owner("hyperliquid", "trader", f"trader-{number}")
    desk.document["engine"] |= {"shard_portfolios": 1}
    desk.document["run"]["detail_top"] = 0
    desk.document["scenarios"]["daily_std"]["price:HYPE"] = 500.0
    undisturbed = desk.copied(tmp_path / "undisturbed").sweep()
    assert [row["reason"] for row in undisturbed.rows("failures")] == ["calculation"] * 3

    def full_disk(self: ResultStore, run_row: object) -> bool:
        raise StoreError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ResultStore, "write_run", full_disk)
        cut = desk.sweep()
    assert cut.exit_code == 1
    assert "crossmargin: no space left on device" in cut.stderr
    assert "Traceback" not in cut.stderr
    run = desk.sweep()
    assert run.exit_code == undisturbed.exit_code == 3
    assert run.store.committed_runs() == [started_run(run.store)]
    assert run.document["conditions"] == undisturbed.document["conditions"]
    assert comparable(run.store.read_run(run.run_id)) == comparable(undisturbed.store.read_run(undisturbed.run_id))
