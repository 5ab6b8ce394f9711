"""The result store: every shard exactly once, whatever is killed or run again; runs visible only with their run row.

Run as a program (`python tests/test_store.py ROOT RUN_ID SHARDS`) this file is the writer that the tests kill: it waits
for a line on its standard input, writes the shards of a run and says on its standard output what it appends next.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from aggregator.errors import ConfigurationError, StoreError
from aggregator.schema.fields import table_version
from aggregator.schema.results import RESULT_KEYS, RESULTS
from aggregator.store import SHARD_TABLES, PendingRun, ResultStore

ROOT = Path(__file__).resolve().parent.parent
RUN = "20260102T030405Z-0a1b2c3d"
OTHER_RUN = "20260102T040506Z-4e5f6a7b"
DIGEST = "d" * 64
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROWS = 3  # rows per table and shard
# Asked for: a small run is written in less than 2 s and read in less than 1 s. It takes about 0.3 s and 0.1 s here; the
# bound leaves room for a busy machine and still fails when something becomes quadratic.
WRITE_S = 2.0
READ_S = 1.0


def rows_of(name: str, run_id: str, shard: int, rows: int = ROWS) -> pa.Table:
    """Deterministic rows of a result table: every key unique over shards, every third nullable value null."""
    schema = RESULTS[name]
    columns = []
    for position, f in enumerate(schema):
        values: list[Any] = []
        for row in range(rows):
            number = 1000 * shard + row
            if f.name == "run_id":
                values.append(run_id)
            elif f.nullable and f.name not in RESULT_KEYS[name] and (number + position) % 3 == 0:
                values.append(None)
            elif pa.types.is_string(f.type):
                values.append(f"{f.name} {rows - row} of shard {shard} 'ü\" --")
            elif pa.types.is_floating(f.type):
                values.append(number / 7 + position)
            elif pa.types.is_boolean(f.type):
                values.append(row % 2 == 0)
            elif pa.types.is_timestamp(f.type):
                values.append(STARTED + timedelta(seconds=number))
            else:
                values.append(number)
        columns.append(pa.array(values, f.type))
    return pa.Table.from_arrays(columns, schema=schema)


def shard_of(run_id: str, shard: int) -> dict[str, pa.Table]:
    return {name: rows_of(name, run_id, shard) for name in SHARD_TABLES}


def run_row(run_id: str, shards: int, digest: str = DIGEST) -> dict[str, Any]:
    row = rows_of("runs", run_id, 0, 1).to_pylist()[0]
    return {**row, "shards": shards, "run_digest": digest, "started_at": STARTED, "configuration": '{"a": "ü"}'}


def write_whole_run(store: ResultStore, run_id: str, shards: int = 1, started: datetime = STARTED) -> None:
    store.start_run(run_id, run_digest=DIGEST, started_at=started, shards=shards)
    for shard in range(shards):
        store.write_shard(run_id, shard, shard_of(run_id, shard))
    store.write_run(run_row(run_id, shards))


def expected_rows(name: str, run_id: str, shards: int) -> list[Mapping[str, Any]]:
    """What a run must hold, sorted by key in plain Python."""
    rows = [row for shard in range(shards) for row in rows_of(name, run_id, shard).to_pylist()]
    return sorted(rows, key=lambda row: tuple(row[key] for key in RESULT_KEYS[name]))


def assert_exactly_once(root: Path, run_id: str, shards: int) -> None:
    stored = ResultStore(root).read_run(run_id)
    for name in SHARD_TABLES:
        assert stored[name].to_pylist() == expected_rows(name, run_id, shards), name
        # `read` compares counts; here the log itself is asked, over all commits
        raw = DeltaTable(str(root / name)).to_pyarrow_table()
        assert raw.filter(pa.compute.equal(raw["run_id"], run_id)).num_rows == shards * ROWS, name


class TalkingStore(ResultStore):
    """A store that says what it is about to append, so that a kill can be aimed at it."""

    def _append_once(self, name: str, table: pa.Table, transaction: str) -> bool:
        sys.stdout.write(f"{transaction} {name}\n")
        sys.stdout.flush()
        return super()._append_once(name, table, transaction)


def write_as_a_program(root: str, run_id: str, shards: int) -> None:
    sys.stdin.readline()
    store = TalkingStore(root)
    store.start_run(run_id, run_digest=DIGEST, started_at=STARTED, shards=shards)
    for shard in range(shards):
        store.write_shard(run_id, shard, shard_of(run_id, shard))
    store.write_run(run_row(run_id, shards))


def start_writer(root: Path, run_id: str, shards: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(root), run_id, str(shards)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """A store in a folder that does not exist yet and whose name needs quoting."""
    return ResultStore(tmp_path / "out" / "run's results & ü #1")


def test_a_run_comes_back_as_it_was_written(store: ResultStore) -> None:
    write_whole_run(store, RUN, shards=3)
    for reader in (store, ResultStore(store.root)):
        assert reader.committed_runs() == [RUN]
        for name, table in reader.read_run(RUN).items():
            assert table.schema.equals(RESULTS[name], check_metadata=True), name
            table.validate(full=True)
            if name != "runs":
                assert table.to_pylist() == expected_rows(name, RUN, 3), name
                assert reader.read(name, RUN).equals(table)
    assert store.read("runs", RUN).to_pylist() == [run_row(RUN, 3)]


def test_columns_may_come_in_any_order_and_in_related_types(store: ResultStore) -> None:
    table = rows_of("node_margin", RUN, 0)
    large = pa.table({name: table[name].cast(pa.large_string()) for name in ("portfolio_id", "node", "run_id")})
    for name in reversed([name for name in table.column_names if name not in large.column_names]):
        large = large.append_column(name, table[name])
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=1)
    store.write_shard(RUN, 0, {"node_margin": large})
    store.write_run(run_row(RUN, 1))
    assert store.read("node_margin", RUN).to_pylist() == expected_rows("node_margin", RUN, 1)
    assert store.read("greeks", RUN).num_rows == 0
    assert store.read("greeks", RUN).schema.equals(RESULTS["greeks"], check_metadata=True)


def test_an_empty_table_is_stored_and_read(store: ResultStore) -> None:
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=2)
    for shard in (1, 0):
        written = store.write_shard(RUN, shard, {"failures": RESULTS["failures"].empty_table()})
        assert written == ("failures",)
        assert store.write_shard(RUN, shard, {"failures": RESULTS["failures"].empty_table()}) == ()
    store.write_run(run_row(RUN, 2))
    assert store.read("failures", RUN).num_rows == 0


def test_writing_a_shard_again_changes_nothing(store: ResultStore) -> None:
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=2)
    assert store.start_run(RUN, run_digest=DIGEST, started_at=STARTED + timedelta(hours=1), shards=2) is False
    for shard in (1, 0, 1):  # shards of a resumed run arrive in any order
        store.write_shard(RUN, shard, shard_of(RUN, shard))
    assert ResultStore(store.root).write_shard(RUN, 0, shard_of(RUN, 0)) == ()
    assert store.shards_written(RUN) == {0, 1}
    assert store.write_run(run_row(RUN, 2)) is True
    assert store.write_run({**run_row(RUN, 2), "duration_s": 99.0}) is False
    assert_exactly_once(Path(store.root), RUN, 2)


@pytest.mark.parametrize("appended", range(len(SHARD_TABLES) + 1))
def test_a_kill_between_two_tables_of_a_shard_is_mended(tmp_path: Path, appended: int) -> None:
    """A shard of which the first `appended` tables are in, and no record of the shard: the state after a kill."""

    class KilledError(Exception):
        pass

    class DyingStore(ResultStore):
        left = appended

        def _append_once(self, name: str, table: pa.Table, transaction: str) -> bool:
            if transaction == f"{RUN}/1":
                if self.left == 0:
                    raise KilledError
                self.left -= 1
            return super()._append_once(name, table, transaction)

    store = DyingStore(tmp_path)
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=2)
    store.write_shard(RUN, 0, shard_of(RUN, 0))
    with pytest.raises(KilledError):
        store.write_shard(RUN, 1, shard_of(RUN, 1))

    again = ResultStore(tmp_path)
    assert again.shards_written(RUN) == {0}
    assert again.pending_run(DIGEST, now=STARTED) == PendingRun(RUN, DIGEST, STARTED, 2, frozenset({0}))
    assert again.write_shard(RUN, 1, shard_of(RUN, 1)) == SHARD_TABLES[appended:]
    again.write_run(run_row(RUN, 2))
    assert_exactly_once(tmp_path, RUN, 2)


def test_readers_see_no_run_without_its_run_row(store: ResultStore) -> None:
    write_whole_run(store, RUN)
    store.start_run(OTHER_RUN, run_digest="e" * 64, started_at=STARTED, shards=1)
    store.write_shard(OTHER_RUN, 0, shard_of(OTHER_RUN, 0))
    assert store.committed_runs() == [RUN]
    for name in RESULTS:
        with pytest.raises(StoreError, match=f"{OTHER_RUN}.*never finished"):
            store.read(name, OTHER_RUN)
        if name != "runs":
            assert store.read(name, RUN).to_pylist() == expected_rows(name, RUN, 1)
    store.write_run(run_row(OTHER_RUN, 1, digest="e" * 64))
    assert store.committed_runs() == [RUN, OTHER_RUN]
    assert store.read("greeks", OTHER_RUN).to_pylist() == expected_rows("greeks", OTHER_RUN, 1)


def test_a_run_sees_its_own_rows_before_it_is_committed(store: ResultStore) -> None:
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=3)
    assert store.rows_in_progress("greeks", RUN).num_rows == 0
    for shard in (2, 0):
        store.write_shard(RUN, shard, shard_of(RUN, shard))
    both = [row for shard in (0, 2) for row in rows_of("greeks", RUN, shard).to_pylist()]
    assert store.rows_in_progress("greeks", RUN).to_pylist() == sorted(both, key=lambda row: row["portfolio_id"])
    with pytest.raises(StoreError, match="'runs' is no table of a shard"):
        store.rows_in_progress("runs", RUN)


def test_the_run_row_waits_for_every_shard(store: ResultStore) -> None:
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=3)
    store.write_shard(RUN, 1, shard_of(RUN, 1))
    with pytest.raises(StoreError, match=r"shards \[0, 2\] of 3 are not written"):
        store.write_run(run_row(RUN, 3))
    with pytest.raises(StoreError, match="other shards or another digest"):
        store.write_run(run_row(RUN, 1))
    assert store.committed_runs() == []


def test_a_pending_run_is_found_by_digest_and_age(store: ResultStore) -> None:
    assert store.pending_run(DIGEST, now=STARTED) is None
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=2)
    store.start_run(OTHER_RUN, run_digest="e" * 64, started_at=STARTED, shards=1)
    day = timedelta(days=1)
    found = PendingRun(RUN, DIGEST, STARTED, 2, frozenset())
    assert store.pending_run(DIGEST, now=STARTED + day - timedelta(microseconds=1)) == found
    assert store.pending_run(DIGEST, now=STARTED + day) is None
    assert store.pending_run(DIGEST, now=STARTED + day, within=2 * day) == found
    assert store.pending_run("f" * 64, now=STARTED) is None

    newer = "20260102T050000Z-0a1b2c3d"
    store.start_run(newer, run_digest=DIGEST, started_at=STARTED + timedelta(hours=2), shards=2)
    store.write_shard(newer, 1, shard_of(newer, 1))
    resumed = store.pending_run(DIGEST, now=STARTED + timedelta(hours=3))
    assert resumed is not None
    assert (resumed.run_id, resumed.written) == (newer, frozenset({1}))
    store.write_shard(newer, 0, shard_of(newer, 0))
    store.write_run(run_row(newer, 2))
    resumed = store.pending_run(DIGEST, now=STARTED + timedelta(hours=3))
    assert resumed is not None
    assert resumed.run_id == RUN


def test_a_killed_writer_is_resumed_and_every_shard_is_there_once(tmp_path: Path) -> None:
    shards = 6
    appends_before_kill = (1, 5, 13, 24)  # in the start row, twice in the middle of a shard, later
    for kills, lines in enumerate(appends_before_kill):
        writer = start_writer(tmp_path / "store", RUN, shards)
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
        for _ in range(lines):
            assert writer.stdout.readline(), writer.communicate()[1]
        time.sleep(0.002 * kills)  # at another point of the append each time
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        assert writer.returncode == -signal.SIGKILL
        assert ResultStore(tmp_path / "store").committed_runs() == []
    store = ResultStore(tmp_path / "store")
    pending = store.pending_run(DIGEST, now=STARTED)
    assert pending is not None
    assert pending.run_id == RUN
    assert 0 < len(pending.written) < shards

    last = start_writer(tmp_path / "store", RUN, shards)
    output, errors = last.communicate("go\n")
    assert last.returncode == 0, errors
    appended_shards = {line.split()[0].rpartition("/")[2] for line in output.splitlines()}
    assert not appended_shards & {str(shard) for shard in pending.written}, "written shards are skipped"
    assert store.pending_run(DIGEST, now=STARTED) is None
    assert_exactly_once(tmp_path / "store", RUN, shards)


@pytest.mark.parametrize("run_ids", [(RUN, RUN), (RUN, OTHER_RUN)], ids=["same run", "two runs"])
def test_two_writers_at_once_do_not_harm_each_other(tmp_path: Path, run_ids: tuple[str, str]) -> None:
    shards = 3
    writers = [start_writer(tmp_path, run_id, shards) for run_id in run_ids]
    for writer in writers:  # both start on an empty folder: they race for creating every table, too
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    assert ResultStore(tmp_path).committed_runs() == sorted(set(run_ids))
    for run_id in run_ids:
        assert_exactly_once(tmp_path, run_id, shards)


def test_a_writer_that_was_overtaken_does_not_append_a_second_copy(tmp_path: Path) -> None:
    """Both have looked before either has written: the later commit is a conflict of transactions, then a skip."""
    first, second = ResultStore(tmp_path), ResultStore(tmp_path)
    first.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=1)
    table = rows_of("greeks", RUN, 0)

    class Overtaken(ResultStore):
        def _open_or_create(self, name: str) -> DeltaTable:
            opened = super()._open_or_create(name)
            first._append_once("greeks", table, f"{RUN}/0")
            return opened

    second = Overtaken(tmp_path)
    assert second._append_once("greeks", table, f"{RUN}/0") is False
    assert DeltaTable(str(tmp_path / "greeks")).count() == ROWS


def test_an_older_table_without_a_nullable_column_is_read_and_extended(tmp_path: Path) -> None:
    schema = RESULTS["portfolio_margin"]
    older = pa.schema([f for f in schema if f.name != "equity_to_es_99"], metadata=schema.metadata)
    DeltaTable.create(str(tmp_path / "portfolio_margin"), schema=older)
    store = ResultStore(tmp_path)
    write_whole_run(store, RUN)
    assert ResultStore(tmp_path).read("portfolio_margin", RUN).to_pylist() == expected_rows("portfolio_margin", RUN, 1)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda fields: [f.with_nullable(False) for f in fields], "its column 'liquidity_usd' may not be null"),
        (lambda fields: [f for f in fields if f.name != "base_usd"], "it has no column 'base_usd'"),
        (lambda fields: [*fields, pa.field("tail_usd", pa.float64(), nullable=False)], "'tail_usd' is unknown here"),
        (
            lambda fields: [f.with_type(pa.string()) if f.name == "grid_usd" else f for f in fields],
            "its column 'grid_usd' is string, here it is double",
        ),
    ],
)
@pytest.mark.parametrize(("stated", "found"), [("1", "version 1"), (None, "a version that it does not state")])
def test_a_table_of_another_version_is_refused_before_anything_is_written(
    tmp_path: Path, change: Any, difference: str, stated: str | None, found: str
) -> None:
    DeltaTable.create(
        str(tmp_path / "requirement"),
        schema=pa.schema(change(list(RESULTS["requirement"]))),
        configuration={"crossmargin.version": stated} if stated else {},
        raise_if_key_not_exists=False,
    )
    store = ResultStore(tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=1)
    message = str(refused.value)
    expected = table_version(RESULTS["requirement"])[1]
    assert message.startswith(
        f"{tmp_path / 'requirement'} holds table 'requirement' in {found}, this program writes version {expected}: "
    )
    assert difference in message
    assert message.endswith(". Set store.path to another folder, or move the old one away")
    assert [folder.name for folder in tmp_path.iterdir()] == ["requirement"]


def test_a_table_states_the_version_that_it_was_made_with(store: ResultStore) -> None:
    write_whole_run(store, RUN)
    for name, schema in RESULTS.items():
        properties = DeltaTable(f"{store.root}/{name}").metadata().configuration
        assert properties == {"crossmargin.version": table_version(schema)[1]}


def test_a_resumed_run_meets_a_table_of_another_version_with_the_same_sentence(store: ResultStore) -> None:
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=1)
    other = pa.schema([f.with_nullable(False) for f in RESULTS["requirement"]])
    DeltaTable.create(f"{store.root}/requirement", schema=other)
    with pytest.raises(ConfigurationError, match="'requirement' in a version that it does not state"):
        ResultStore(store.root).write_shard(RUN, 0, shard_of(RUN, 0))


def test_lost_data_files_are_noticed(store: ResultStore) -> None:
    write_whole_run(store, RUN)
    table = DeltaTable(f"{store.root}/greeks")
    table.delete(
        f"run_id = '{RUN}' and underlying = '{expected_rows('greeks', RUN, 1)[0]['underlying']}'".replace("'ü", "''ü")
    )
    with pytest.raises(StoreError, match=f"greeks has {ROWS - 1} rows of run {RUN}, {ROWS} were written"):
        store.read("greeks", RUN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["vega_usd"]), r"'greeks': missing columns \['vega_usd'\]"),
        (lambda t: t.append_column("rho_usd", t["vega_usd"]), r"unknown columns \['rho_usd'\]"),
        (lambda t: t.set_column(0, "run_id", pa.array([OTHER_RUN] * ROWS)), f"rows of run .*{OTHER_RUN}"),
        (lambda t: t.set_column(2, "underlying", pa.array(["a", None, "c"])), "'underlying': 1 rows are null"),
        (lambda t: t.set_column(3, "delta_usd", pa.array([1.0, float("nan"), 2.0])), "'delta_usd': not every number"),
        (lambda t: t.set_column(3, "delta_usd", pa.array([1.0, float("inf"), None])), "'delta_usd'"),
        (lambda t: t.set_column(3, "delta_usd", pa.array(["1", "2", "three"])), "'delta_usd'"),
    ],
)
def test_a_table_that_is_not_canonical_is_refused(store: ResultStore, change: Any, message: str) -> None:
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=1)
    tables = shard_of(RUN, 0)
    with pytest.raises(StoreError, match=message):
        store.write_shard(RUN, 0, {**tables, "greeks": change(tables["greeks"])})
    assert not (Path(store.root) / "allocation").exists(), "nothing is appended when one table is refused"


def test_wrong_names_and_numbers_are_refused(store: ResultStore) -> None:
    with pytest.raises(StoreError, match="was not started"):
        store.write_shard(RUN, 0, {})
    with pytest.raises(StoreError, match="at least one shard"):
        store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=0)
    with pytest.raises(StoreError, match="expected letters"):
        store.start_run("a/b", run_digest=DIGEST, started_at=STARTED, shards=1)
    store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=1)
    with pytest.raises(StoreError, match=f"digest {DIGEST} in 1 shards, and cannot be started again"):
        store.start_run(RUN, run_digest=DIGEST, started_at=STARTED, shards=2)
    with pytest.raises(StoreError, match="shards 0 to 0, found shard 1"):
        store.write_shard(RUN, 1, {})
    with pytest.raises(StoreError, match="did you mean 'greeks'"):
        store.write_shard(RUN, 0, {"greek": rows_of("greeks", RUN, 0)})
    with pytest.raises(StoreError, match="'runs' is no table of a shard"):
        store.write_shard(RUN, 0, {"runs": rows_of("runs", RUN, 0)})
    with pytest.raises(StoreError, match="did you mean 'failures'"):
        store.read("failure", RUN)
    with pytest.raises(StoreError, match=r"the row has no \['duration_s'\]"):
        store.write_run({**run_row(RUN, 1), "duration_s": None})
    with pytest.raises(StoreError, match=r"no columns \['durations'\]"):
        store.write_run({**run_row(RUN, 1), "durations": 1.0})


def test_an_unknown_run_is_named_with_the_nearest_one(store: ResultStore) -> None:
    with pytest.raises(StoreError, match=r"is not known in the result store .* of 0 runs"):
        store.read("runs", RUN)
    write_whole_run(store, RUN)
    with pytest.raises(StoreError, match=f"did you mean '{RUN}'"):
        store.read("greeks", RUN[:-1])
    with pytest.raises(StoreError, match=f"the newest is {RUN}"):
        store.read("greeks", "' OR 1 = 1 --")


def test_a_missing_store_is_empty_and_reading_creates_nothing(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "nowhere")
    assert store.committed_runs() == []
    assert store.shards_written(RUN) == frozenset()
    assert not (tmp_path / "nowhere").exists()


def test_broken_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StoreError, match="expected a folder, found a file"):
        ResultStore(tmp_path / "file")
    with pytest.raises(StoreError, match="percent escape"):
        ResultStore(tmp_path / "a%20b")

    foreign = tmp_path / "foreign"
    (foreign / "runs").mkdir(parents=True)
    (foreign / "runs" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match="is no Delta table; choose another folder"):
        ResultStore(foreign).committed_runs()

    other = tmp_path / "other"
    write_deltalake(str(other / "runs"), pa.table({"price": [1.0]}))
    with pytest.raises(StoreError, match="Delta table of something else"):
        ResultStore(other).committed_runs()

    damaged = tmp_path / "damaged"
    write_whole_run(ResultStore(damaged), RUN)
    log = sorted((damaged / "greeks" / "_delta_log").glob("*.json"))[-1]
    log.write_text("no JSON", encoding="utf-8")
    with pytest.raises(StoreError, match="greeks: cannot be read as a Delta table") as raised:
        ResultStore(damaged).read("greeks", RUN)
    assert "\n" not in str(raised.value)
    for file in (damaged / "allocation").glob("*.parquet"):
        file.unlink()
    with pytest.raises(StoreError, match="allocation: cannot be read"):
        ResultStore(damaged).read("allocation", RUN)


def test_a_kill_while_a_table_is_created_is_mended(tmp_path: Path) -> None:
    (tmp_path / "greeks" / "_delta_log").mkdir(parents=True)
    write_whole_run(ResultStore(tmp_path), RUN)
    assert_exactly_once(tmp_path, RUN, 1)


def test_the_log_says_which_transaction_wrote_what(store: ResultStore) -> None:
    write_whole_run(store, RUN, shards=2)
    for name in SHARD_TABLES:
        table = DeltaTable(f"{store.root}/{name}")
        assert [table.transaction_version(f"{RUN}/{shard}") for shard in (0, 1, 2)] == [1, 1, None]
    shards = DeltaTable(f"{store.root}/run_shards").to_pyarrow_table().to_pylist()
    assert [json.loads(row["rows"]) for row in shards] == [dict.fromkeys(SHARD_TABLES, ROWS)] * 2


def test_writing_and_reading_a_small_run_among_others_is_fast(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    runs = [f"20260102T0304{number:02d}Z-0a1b2c3d" for number in range(15)]
    for run_id in runs:
        write_whole_run(store, run_id)
    begun = time.perf_counter()
    tables = ResultStore(tmp_path).read_run(runs[7])
    assert time.perf_counter() - begun < READ_S
    assert tables["greeks"].to_pylist() == expected_rows("greeks", runs[7], 1)
    begun = time.perf_counter()
    write_whole_run(ResultStore(tmp_path), OTHER_RUN)
    assert time.perf_counter() - begun < WRITE_S


def test_importing_the_store_does_not_load_deltalake() -> None:
    code = "import sys, aggregator.store; sys.exit('deltalake' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False, env=environment).returncode == 0


if __name__ == "__main__":
    write_as_a_program(sys.argv[1], sys.argv[2], int(sys.argv[3]))
