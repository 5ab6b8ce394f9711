"""Settings that hold for every test, their order, the `--vectors` option and the folder of recorded material.

JAX computes in float64, compiles with the flags of the command line, and refuses to broadcast arrays of different rank,
so that a missing `vmap` fails instead of quietly pairing the wrong axes. Compiled programs are kept in `.cache/jax` of
the checkout, unless the environment names another folder (JAX_COMPILATION_CACHE_DIR) or switches the cache off
(JAX_ENABLE_COMPILATION_CACHE).
"""

import gc
import os
from pathlib import Path

import jax
import pytest
from hypothesis import settings

from aggregator.compiler_flags import set_compiler_flags

ROOT = Path(__file__).resolve().parent.parent
RECORDED_VARIABLE = "CROSSMARGIN_RECORDED"

set_compiler_flags()
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    # Most programs of the suite compile in less than the second that JAX deems worth keeping by default.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Times vary on shared machines and a slow example is no error; the same examples on every run and machine.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors",
        metavar="DIR",
        default=None,
        help="folder of reference cases for test_vectors.py, in the layout of tests/vectors (the default)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist hands out files by their number of tests, the fewest last, and those are the slowest ones.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left with a long one when the others have nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


MOST_MAPPINGS = 25_000
"""Memory mappings from where on a process lets its compiled programs go: a system allows about 65,000, and one more
ends the process. They come back from the compilation cache."""


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Between two files, because the tests of one share their programs."""
    if nextitem is None or nextitem.path == item.path:
        return
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def recorded() -> Path:
    """Folder of recorded payloads and market history, which is not part of the repository."""
    named = os.environ.get(RECORDED_VARIABLE)
    if not named:
        pytest.skip(f"{RECORDED_VARIABLE} does not name the folder of recorded material")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"{RECORDED_VARIABLE} names {named!r}, which is not a folder")
    return folder
