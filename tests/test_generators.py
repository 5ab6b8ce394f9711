"""One suite over all scenario generators of `generator_suite`: laws, weights, streams, bits and refusals."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.errors import ConfigurationError
from aggregator.scenarios import (
    TILE,
    ScenarioGenerator,
    draw_paths,
    draw_scenarios,
    padded_count,
    scenario_weights,
)
from tests.generator_suite import ENTRIES

ROOT = Path(__file__).resolve().parent.parent
STANDARD_ERRORS = 4.0  # of a Monte Carlo estimate at a fixed seed
RTOL_SUM = 1e-12  # weights in float64 against 1
EXACT = 1e-12  # of a standard deviation: what an exact law may miss by rounding
LEVELS = (0.002, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.998)
SEED = 11
DEVICES = 2
ON_DEVICES = 1024


class Drawn(NamedTuple):
    """A generator with its whole scenario set on the host."""

    generator: ScenarioGenerator
    shocks: np.ndarray
    weights: np.ndarray


@functools.cache
def drawn(name: str) -> Drawn:
    """The scenario set of an entry under the seed of this file."""
    entry, key = ENTRIES[name], jax.random.key(SEED)
    generator = entry.build(key)
    weights = scenario_weights(generator, None if generator.own_weights is not None else entry.scenarios)
    shocks = draw_scenarios(generator, key, 0, max(len(weights), 2048))
    return Drawn(generator, np.asarray(shocks), np.asarray(weights))


@pytest.mark.parametrize("name", ENTRIES)
def test_mean_and_covariance_are_those_of_the_law(name: str) -> None:
    generator, shocks, weights = drawn(name)
    law, x = ENTRIES[name].law, shocks[: len(weights)]
    centred = x - law.mean
    std = np.sqrt(np.diag(law.covariance))
    error = np.sqrt(weights**2 @ centred**2)
    deviation = np.abs(weights @ centred)
    assert (deviation <= STANDARD_ERRORS * error + EXACT * std).all(), dict(
        zip(generator.factors, deviation, strict=True)
    )
    for i, first in enumerate(generator.factors):
        for j, second in enumerate(generator.factors[: i + 1]):
            product = centred[:, i] * centred[:, j]
            if not math.isnan(expected := law.covariance[i, j]):
                got = weights @ product
                error_of_product = math.sqrt(weights**2 @ (product - expected) ** 2)
                bound = STANDARD_ERRORS * error_of_product + EXACT * std[i] * std[j]
                assert abs(got - expected) <= bound, (first, second, got, expected)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.law.quantiles])
def test_margins_have_the_quantiles_of_the_law(name: str) -> None:
    generator, shocks, weights = drawn(name)
    for factor, quantile in ENTRIES[name].law.quantiles.items():
        x = shocks[: len(weights), generator.factors.index(factor)]
        for p in LEVELS:
            hit = x <= quantile(p)
            error = math.sqrt(weights**2 @ (hit - p) ** 2)
            assert abs(weights @ hit - p) <= STANDARD_ERRORS * error, (factor, p, weights @ hit)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.law.joint_tails])
def test_factors_crash_together_as_often_as_the_law_says(name: str) -> None:
    generator, shocks, weights = drawn(name)
    for tail in ENTRIES[name].law.joint_tails:
        columns = [generator.factors.index(factor) for factor in tail.factors]
        hit = (shocks[: len(weights), columns] <= np.array(tail.bounds)).all(axis=1)
        error = math.sqrt(weights**2 @ (hit - tail.probability) ** 2)
        assert abs(weights @ hit - tail.probability) <= STANDARD_ERRORS * error, (tail, weights @ hit)


@pytest.mark.parametrize("name", ENTRIES)
def test_weights_sum_to_one_and_padding_weighs_nothing(name: str) -> None:
    generator, shocks, weights = drawn(name)
    assert shocks.dtype == np.float64
    assert np.isfinite(shocks).all()
    assert len(weights) % TILE == 0
    assert math.isclose(math.fsum(weights), 1.0, rel_tol=RTOL_SUM)
    assert (weights >= 0.0).all()
    own = generator.own_weights
    if own is not None:
        assert len(weights) == padded_count(len(own))
        assert not weights[len(own) :].any()
        with pytest.raises(ConfigurationError, match=f"exactly {len(own)}"):
            scenario_weights(generator, len(own) + 1)


# A chunk of one tile against all tiles at once tells of every generator; one in between costs a program each.
SHORT_OF_1024 = ("t_copula", "overlays")
CHUNKS = [
    *((name, 256) for name in ENTRIES),
    *(pytest.param(n, 1024, marks=() if n in SHORT_OF_1024 else pytest.mark.long) for n in ENTRIES),
]


@pytest.mark.parametrize(("name", "chunk"), CHUNKS)
def test_every_chunk_of_the_index_range_has_the_same_bits(name: str, chunk: int) -> None:
    generator, shocks, _ = drawn(name)
    key, whole = jax.random.key(SEED), shocks[:2048]
    parts = [draw_scenarios(generator, key, first, chunk) for first in range(0, len(whole), chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole[:256], whole[256:512])


@pytest.mark.parametrize("name", ENTRIES)
def test_the_key_decides_everything(name: str) -> None:
    generator, shocks, _ = drawn(name)
    build, key = ENTRIES[name].build, jax.random.key(SEED)
    again = np.asarray(draw_scenarios(build(key), key, 0, 256))
    np.testing.assert_array_equal(again, shocks[:256])
    other_key = jax.random.key(SEED + 1)
    other = np.asarray(draw_scenarios(build(other_key), other_key, 0, 256))
    assert other.shape == (256, len(generator.factors))
    assert not np.array_equal(other, shocks[:256])


@pytest.mark.parametrize("name", ENTRIES)
def test_bits_do_not_depend_on_the_program_around_the_draw(name: str) -> None:
    generator, shocks, _ = drawn(name)

    @jax.jit
    def constant() -> tuple[jax.Array, jax.Array]:  # nothing is an argument: all could be folded or fused
        rows = draw_scenarios(generator, jax.random.key(SEED), 256, 512)
        return rows, jnp.expm1(rows) * 1e6

    np.testing.assert_array_equal(constant()[0], shocks[256:768])


@pytest.mark.parametrize("name", ENTRIES)
def test_a_path_begins_with_the_scenario_of_its_number(name: str) -> None:
    generator, shocks, _ = drawn(name)
    key = jax.random.key(SEED)
    paths = np.concatenate([draw_paths(generator, key, first, 256, steps=3) for first in (0, 256)])
    assert paths.shape == (512, 3, len(generator.factors))
    assert np.isfinite(paths).all()
    np.testing.assert_array_equal(paths[:, 0], shocks[:512])
    for step in (1, 2):
        assert not np.isclose(paths[:, step], paths[:, step - 1]).all(axis=1).any()


@pytest.mark.parametrize("name", ["t_copula", "overlays"])
def test_chunks_of_paths_have_the_same_bits(name: str) -> None:
    key = jax.random.key(SEED)
    whole = draw_paths(drawn(name).generator, key, 0, 512, steps=3)
    np.testing.assert_array_equal(draw_paths(drawn(name).generator, key, 256, 256, steps=3), whole[256:])


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.more is not None])
def test_adding_a_factor_leaves_the_draws_of_the_others(name: str) -> None:
    key, build = jax.random.key(SEED), ENTRIES[name].more
    assert build is not None
    few, more = build(key)
    assert set(few.factors) < set(more.factors)
    columns = [more.factors.index(factor) for factor in few.factors]
    expected = np.asarray(draw_scenarios(few, key, 0, 256))
    np.testing.assert_array_equal(np.asarray(draw_scenarios(more, key, 0, 256))[:, columns], expected)


@pytest.mark.parametrize("name", ENTRIES)
def test_figures_that_are_not_finite_are_refused_by_name(name: str) -> None:
    assert ENTRIES[name].refused
    for call, message in ENTRIES[name].refused:
        with pytest.raises(ConfigurationError, match=message):
            call()


@pytest.mark.parametrize("name", ENTRIES)
def test_without_float64_no_generator_is_built(name: str) -> None:
    with jax.enable_x64(False), pytest.raises(ConfigurationError, match="jax_enable_x64"):
        ENTRIES[name].build(jax.random.key(SEED))


_ON_DEVICES = """
import sys
import jax
from aggregator.compiler_flags import set_compiler_flags

file, cache, devices, count, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
set_compiler_flags()
jax.config.update("jax_num_cpu_devices", devices)
jax.config.update("jax_enable_x64", True)
if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

import numpy as np
from jax.sharding import PartitionSpec
from aggregator.scenarios import draw_scenarios
from tests.generator_suite import ENTRIES

assert len(jax.devices()) == devices
mesh = jax.make_mesh((devices,), ("devices",))
key, share = jax.random.key(seed), count // devices

def block(generator, key):
    first = jax.lax.axis_index("devices").astype("uint32") * share
    return draw_scenarios(generator, key, first, share)

drawn = {}
for name, entry in ENTRIES.items():
    whole = PartitionSpec()
    rows = PartitionSpec("devices")
    split = jax.shard_map(block, mesh=mesh, in_specs=(whole, whole), out_specs=rows, check_vma=False)
    drawn[name] = np.asarray(jax.jit(split)(entry.build(key), key))
np.savez(file, **drawn)
"""


@pytest.mark.long
def test_on_two_devices_in_another_process(tmp_path: Path) -> None:
    cache = jax.config.jax_compilation_cache_dir or ""  # type: ignore[attr-defined]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # a flag that sets the number of devices would win over the option
    file = tmp_path / "drawn.npz"
    arguments = [str(file), cache, str(DEVICES), str(ON_DEVICES), str(SEED)]
    command = [sys.executable, "-c", _ON_DEVICES, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(file) as shocks:
        assert sorted(shocks) == sorted(ENTRIES)
        for name in ENTRIES:
            np.testing.assert_array_equal(shocks[name], drawn(name).shocks[:ON_DEVICES], err_msg=name)
