"""The sweep of whole books has the same bits for every shard, order, padding and number of devices; few programs."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aggregator import netted_kernel
from aggregator.book_columns import BookColumns, book_columns
from aggregator.cube_prices import priced_cube
from aggregator.netted_arrays import tiled_cube
from aggregator.netted_dense import evaluate_dense
from aggregator.netted_kernel import evaluate_shard
from aggregator.netted_shards import buckets
from aggregator.netted_sweep import SweepTables, headline_sweep, sweep_columns
from aggregator.netting import netted_book
from aggregator.sweep_scenarios import sweep_scenarios
from tests.engine_accounts import AccountBook, book_of
from tests.engine_book import FACTORS, generator_of
from tests.engine_markets import AS_OF
from tests.netted_books import arrow_tables

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = 900
KINDS = ("lend:plain", "perps:cross", "wallet:spot", "perps:thin", "lend:emode", "coin:margined", "coin:options")
# CPU and dense body add the accounts' losses in another order; a verdict may turn in one scenario of them.
DENSE_RTOL = 1e-5
ONE_VERDICT = 1.5 / SCENARIOS


@functools.cache
def book() -> AccountBook:
    # So few that a shard of one, a half and the whole are padded to the same shapes: each compiles for seconds.
    rng = np.random.default_rng(4)
    members = {f"p{n:02}": tuple(rng.choice(KINDS, size=rng.integers(1, 5))) for n in range(14)}
    assert set(KINDS) == {kind for of_one in members.values() for kind in of_one}
    members["p14"] = tuple(["perps:cross"] * 9)
    return book_of(members, seed=5)


@functools.cache
def mapping() -> pa.Table:
    pairs = [(name, account) for name, ids in book().portfolios.items() for account in ids]
    return pa.table({"portfolio_id": [p for p, _ in pairs], "account_id": [a for _, a in pairs]})


def sweep(
    tables: dict[str, pa.Table] | None = None,
    portfolios: pa.Table | None = None,
    *,
    devices: int = 1,
    shard: int = 4096,
) -> SweepTables:
    return headline_sweep(
        arrow_tables(book().tables) if tables is None else tables,
        mapping() if portfolios is None else portfolios,
        generator_of(FACTORS, scale=2.0),
        as_of=AS_OF,
        seed=3,
        scenarios=SCENARIOS,
        devices=devices,
        shard=shard,
    )


def content(found: SweepTables) -> dict[str, str]:
    """Every column as hexadecimal text, by table and name."""
    out = {}
    for table in (found.portfolios, found.nodes):
        for name in table.column_names:
            values = table[name].to_pylist()
            out[f"{table.num_columns} {name}"] = " ".join(v if isinstance(v, str) else float(v).hex() for v in values)
    return out


@functools.cache
def reference() -> dict[str, str]:
    return content(sweep())


@pytest.mark.parametrize("shard", [1, 7, 15])
def test_the_size_of_the_shard_changes_no_bit(shard: int) -> None:
    assert content(sweep(shard=shard)) == reference()


def test_the_order_of_the_rows_changes_no_bit() -> None:
    rng = np.random.default_rng(8)
    tables = arrow_tables(book().tables)
    mixed = {name: table.take(pa.array(rng.permutation(table.num_rows))) for name, table in tables.items()}
    other = mapping().take(pa.array(rng.permutation(mapping().num_rows)))
    assert content(sweep(mixed, other)) == reference()


def test_other_portfolios_of_the_shard_change_no_bit() -> None:
    """Half the portfolios, in the same cube: every row of the halves stands in the whole."""
    cube, columns = packed()
    half = [columns.portfolios(first, last) for first, last in ((0, 7), (7, 15))]
    whole = content(sweep_columns(columns, cube, devices=1, shard=4096))
    parts = [content(sweep_columns(part, cube, devices=1, shard=4096)) for part in half]
    assert {name: " ".join(part[name] for part in parts) for name in whole} == whole


def test_the_size_of_a_block_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    cube, columns = packed()
    whole = content(sweep_columns(columns, cube, devices=1, shard=4096))
    evaluate_shard.clear_cache()  # type: ignore[attr-defined]
    monkeypatch.setattr(netted_kernel, "_together", lambda size, slots, tiles: 4)
    try:
        assert content(sweep_columns(columns, cube, devices=1, shard=4096)) == whole
    finally:
        evaluate_shard.clear_cache()  # type: ignore[attr-defined]


@functools.cache
def packed():  # type: ignore[no-untyped-def]
    generator = generator_of(FACTORS, scale=2.0)
    columns: BookColumns = book_columns(
        arrow_tables(book().tables), mapping(), as_of=AS_OF, known=frozenset(generator.factors)
    )
    rows = columns.cube.build(generator.factors)
    drawn = sweep_scenarios(generator, seed=3, scenarios=SCENARIOS)
    return priced_cube(rows, drawn, horizon_days=1.0), columns


@pytest.mark.slow
def test_two_devices_in_another_process_change_no_bit() -> None:
    code = (
        "import jax, json\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "jax.config.update('jax_num_cpu_devices', 2)\n"
        "from tests.test_same_bits_sweep import content, sweep\n"
        "found = [sweep(devices=2), sweep(devices=2, shard=6), sweep(devices=1)]\n"
        "print(json.dumps([content(tables) for tables in found]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for found in json.loads(done.stdout.splitlines()[-1]):
        assert found == reference()


def test_a_second_sweep_compiles_nothing_and_a_first_one_few_programs() -> None:
    evaluate_shard.clear_cache()  # type: ignore[attr-defined]
    sweep()
    # One program for up to 8 accounts and one for up to 64.
    assert evaluate_shard._cache_size() == 2  # type: ignore[attr-defined]
    sweep()
    assert evaluate_shard._cache_size() == 2  # type: ignore[attr-defined]


def test_what_ranges_decide_is_what_scenarios_say() -> None:
    """With the scenarios mixed less is decided by ranges: the same verdicts, and losses to rounding."""
    cube, columns = packed()
    order = np.arange(cube.change.shape[1])
    order[:SCENARIOS] = np.random.default_rng(2).permutation(SCENARIOS)
    netted = netted_book(columns, cube.today, cube.lowest, cube.highest)
    how = {"scenarios": cube.scenarios, "equal": cube.equal, "devices": 1}
    for bucket in buckets(netted, columns.accounts.portfolio, devices=1):
        one, other = (
            evaluate_shard(bucket.arrays, tiled_cube(cube.change[:, columns_of]), cube.weights, **how)
            for columns_of in (np.arange(len(order)), order)
        )
        for name in ("p_any", "p_unified", "p_account"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-12, atol=0, err_msg=name)
        scale = float(np.abs(np.asarray(one.worst)).max())
        for name in ("var", "es", "worst", "bad_debt"):
            np.testing.assert_allclose(
                getattr(other, name), getattr(one, name), rtol=DENSE_RTOL, atol=1e-7 * scale, err_msg=name
            )


def test_the_dense_body_agrees() -> None:
    cube, columns = packed()
    netted = netted_book(columns, cube.today, cube.lowest, cube.highest)
    for bucket in buckets(netted, columns.accounts.portfolio, devices=1):
        change, weights = cube.change, cube.weights
        how = {"scenarios": cube.scenarios, "equal": cube.equal}
        one = evaluate_shard(bucket.arrays, tiled_cube(change), weights, **how, devices=1)
        other = evaluate_dense(bucket.arrays, change, weights, **how, tile=512)
        scale = float(np.abs(np.asarray(one.worst)).max())
        for name in ("var", "es", "worst", "bad_debt"):
            np.testing.assert_allclose(
                getattr(other, name), getattr(one, name), rtol=DENSE_RTOL, atol=1e-7 * scale, err_msg=name
            )
        for name in ("p_any", "p_unified", "p_account"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), atol=ONE_VERDICT, err_msg=name)


def test_a_sweep_by_the_dense_body_has_the_same_tables() -> None:
    cube, columns = packed()
    one = sweep_columns(columns, cube, devices=1, shard=4096)
    other = sweep_columns(columns, cube, devices=1, shard=4096, dense=True)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.schema == theirs.schema
        for name in mine.column_names:
            a, b = mine[name].to_numpy(), theirs[name].to_numpy()
            if not name.endswith("_usd") and not name.startswith("p_"):
                assert a.tolist() == b.tolist(), name
                continue
            atol = (
                ONE_VERDICT
                if name.startswith("p_")
                else 1e-7 * float(one.portfolios["worst_loss_usd"].to_numpy().max())
            )
            np.testing.assert_allclose(b, a, rtol=DENSE_RTOL, atol=atol, err_msg=name)
