"""The same bytes of every result table, however the work is cut: shards, shapes, chunks, devices, order of the rows.

Everything here is compared as the bytes of sorted Arrow tables or arrays, without any tolerance.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aggregator.portfolio import PackedPortfolio
from tests.engine_accounts import AccountBook, desk_book
from tests.engine_book import cube_of, desk, packed, result_tables, table_bytes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SEED = 2
DEVICES = 2


@functools.cache
def whole() -> dict[str, bytes]:
    """Result tables of the whole desk on one device, all portfolios in one shape."""
    return table_bytes(result_tables(desk(SEED).book.portfolios, desk(SEED).cube))


def of_portfolios(tables: Mapping[str, bytes], portfolios: Sequence[PackedPortfolio]) -> dict[str, bytes]:
    """The rows of some portfolios out of tables."""
    ids = pa.array([p.portfolio_id for p in portfolios])
    read = {name: pa.ipc.open_stream(data).read_all() for name, data in tables.items()}
    return table_bytes({name: t.filter(pc.is_in(t["portfolio_id"], value_set=ids)) for name, t in read.items()})


def assert_same(got: Mapping[str, bytes], expected: Mapping[str, bytes]) -> None:
    different = [name for name in expected if got[name] != expected[name]]
    assert not different, {name: _first_difference(got[name], expected[name]) for name in different}


def _first_difference(got: bytes, expected: bytes) -> object:
    tables = [pa.ipc.open_stream(data).read_all().to_pylist() for data in (got, expected)]
    for ours, theirs in zip(*tables, strict=False):
        if ours != theirs:
            return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}
    return [len(table) for table in tables]


def test_the_desk_exercises_what_could_differ() -> None:
    portfolios = desk(SEED).book.portfolios
    assert any(len(entry.tables.floor) > 1 for p in portfolios for _, entry in p.tiers)
    assert any(unit.grid is not None and unit.options for p in portfolios for unit in p.units)
    assert any(unit.max_loss is not None and unit.options for p in portfolios for unit in p.units)
    assert len(whole()) == 7
    assert all(pa.ipc.open_stream(data).read_all().num_rows > 0 for data in whole().values())


def test_run_again() -> None:
    assert_same(table_bytes(result_tables(desk(SEED).book.portfolios, desk(SEED).cube)), whole())


def test_in_a_shard_of_another_shape_and_length() -> None:
    shard = [p for p in desk(SEED).book.portfolios if not p.units]
    assert 0 < len(shard) < len(desk(SEED).book.portfolios)
    got = table_bytes(result_tables(shard, desk(SEED).cube))
    assert_same(got, of_portfolios(whole(), shard))


def test_scenarios_in_smaller_chunks() -> None:
    # All results are functions of these arrays alone; one chunk of everything is a part of the test on two devices.
    got, expected = cube_of(desk(SEED).book, chunk=256), desk(SEED).cube
    for name in ("today", "change", "shocks", "weights"):
        assert np.asarray(getattr(got, name)).tobytes() == np.asarray(getattr(expected, name)).tobytes(), name


def test_rows_in_another_order() -> None:
    book, rng = desk_book(seed=SEED), np.random.default_rng(17)
    shuffled = {name: [of[place] for place in rng.permutation(len(of))] for name, of in book.tables.items()}
    portfolios = dict(reversed(book.portfolios.items()))
    again = packed(AccountBook(shuffled, {name: ids[::-1] for name, ids in portfolios.items()}))
    assert_same(table_bytes(result_tables(again.portfolios, cube_of(again))), whole())


_ON_DEVICES = """
import sys
import jax
from aggregator.compiler_flags import set_compiler_flags

folder, cache, devices, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
set_compiler_flags()
jax.config.update("jax_num_cpu_devices", devices)
jax.config.update("jax_enable_x64", True)
if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

from pathlib import Path
from tests.engine_accounts import desk_book
from tests.engine_book import cube_of, packed, result_tables, table_bytes

assert len(jax.devices()) == devices
book = packed(desk_book(seed=seed))
cube = cube_of(book, chunk=1024)
plain = [p for p in book.portfolios if not p.units]
with_units = [p for p in book.portfolios if p.units]
for name, shard, detailed in (("plain", plain, True), ("with_units", with_units, False)):
    (Path(folder) / name).mkdir()
    for table, data in table_bytes(result_tables(shard, cube, devices=devices, detailed=detailed)).items():
        (Path(folder) / name / table).write_bytes(data)
"""


@pytest.mark.long
def test_on_two_devices_in_another_process(tmp_path: Path) -> None:
    # All at once, because every program costs seconds to compile: two devices, shards of other shapes, one chunk of
    # scenarios, and for the portfolios with options the program of headlines without detail.
    cache = jax.config.jax_compilation_cache_dir or ""  # type: ignore[attr-defined]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # a flag that sets the number of devices would win over the option
    command = [sys.executable, "-c", _ON_DEVICES, str(tmp_path), cache, str(DEVICES), str(SEED)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    portfolios = desk(SEED).book.portfolios
    for name, shard in (
        ("plain", [p for p in portfolios if not p.units]),
        ("with_units", [p for p in portfolios if p.units]),
    ):
        got = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert len(got) == (7 if name == "plain" else 3)
        expected = of_portfolios(whole(), shard)
        assert_same(got, {table: expected[table] for table in got})
