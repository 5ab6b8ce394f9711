"""The wheel: what is in it, that it runs without the checkout, and that nobody else owns its package names.

`adapters` and `models` are common names, and a collision of two distributions is silent. So the wheel is built,
unpacked into an empty folder without its dependencies (those come from the running environment), and started from a
folder that holds packages of these names itself. `.ci/wheel` installs it in a clean environment.
"""

import configparser
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hatchling.builders.wheel import WheelBuilder

import aggregator

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("aggregator", "adapters", "models")
DISTRIBUTION = "crossmargin"
METADATA = f"{DISTRIBUTION}-{aggregator.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel of this checkout. No network: the builder is part of the development environment."""
    [built] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return Path(built)


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel and nothing else."""
    folder = tmp_path_factory.mktemp("target")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a `models` and an `adapters` package that are not ours and refuse to be imported."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for package in ("adapters", "models"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("raise ImportError('the decoy was imported')\n", encoding="utf-8")
    return folder


def _run(target: Path, cwd: Path, *arguments: str) -> str:
    """Standard output of the interpreter started in `cwd` with the unpacked wheel first on its path."""
    finished = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_wheel_holds_our_packages_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    assert {name.parts[0] for name in names} == {*PACKAGES, METADATA}
    sources = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {str(name) for name in names if name.suffix == ".py"} == sources
    assert {f"{package}/py.typed" for package in PACKAGES} <= {str(name) for name in names}
    leftovers = [
        str(name)
        for name in names
        if {"tests", "vectors", "payloads", "__pycache__"} & set(name.parts)
        or name.suffix in {".pyc", ".parquet", ".pkl", ".pickle"}
    ]
    assert not leftovers


def test_the_wheel_states_its_license_its_command_and_its_adapters(target: Path) -> None:
    metadata = importlib.metadata.Distribution.at(target / METADATA)
    assert metadata.version == aggregator.__version__
    assert metadata.metadata["Name"] == DISTRIBUTION
    assert metadata.metadata["License-Expression"] == "Apache-2.0"
    license_text = (target / METADATA / "licenses" / "LICENSE").read_text(encoding="utf-8")
    assert license_text == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in license_text

    declared = configparser.ConfigParser()
    declared.read(target / METADATA / "entry_points.txt", encoding="utf-8")
    assert dict(declared["console_scripts"]) == {"crossmargin": "aggregator.cli:main"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert dict(declared["crossmargin.adapters"]) == project["entry-points"]["crossmargin.adapters"]


def test_every_requirement_has_a_lower_bound() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = configuration["project"]
    groups = [
        configuration["build-system"]["requires"],
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *configuration["dependency-groups"].values(),
    ]
    unbounded = [line for group in groups for line in group if ">=" not in line.partition(";")[0]]
    assert not unbounded


def test_the_lock_pins_every_requirement_by_hash_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert "-index" not in lock
    assert "--find-links" not in lock
    entries = [
        entry for entry in lock.replace("\\\n", " ").splitlines() if entry and not entry.lstrip().startswith("#")
    ]
    assert len(entries) > 30
    unpinned = [entry[:60] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry]
    assert not unpinned


def test_the_unpacked_wheel_runs_beside_a_folder_named_models(target: Path, elsewhere: Path) -> None:
    output = _run(target, elsewhere, "-m", "aggregator", "--help")
    for verb in ("sweep", "report", "schema"):
        assert verb in output


def test_every_module_comes_from_the_wheel(target: Path, elsewhere: Path) -> None:
    code = """
import importlib, json, pkgutil, sys
files = {}
for package in ("aggregator", "adapters", "models"):
    found = importlib.import_module(package)
    files[package] = found.__file__
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        if not module.name.endswith("__main__"):
            files[module.name] = importlib.import_module(module.name).__file__
print(json.dumps(files))
"""
    files = json.loads(_run(target, elsewhere, "-c", code))
    assert set(PACKAGES) < set(files)
    foreign = {name: file for name, file in files.items() if not Path(file).is_relative_to(target)}
    assert not foreign


def test_every_declared_adapter_loads_from_the_wheel(target: Path, elsewhere: Path) -> None:
    code = """
import importlib.metadata, json, sys
[distribution] = importlib.metadata.distributions(name="crossmargin", path=[sys.argv[1]])
points = [point for point in distribution.entry_points if point.group == "crossmargin.adapters"]
print(json.dumps({point.name: sys.modules[point.module].__file__ for point in points if point.load() is not None}))
"""
    files = json.loads(_run(target, elsewhere, "-c", code, str(target)))
    assert {"aave_v3", "binance", "derive", "hyperliquid"} <= set(files)
    assert all(Path(file).is_relative_to(target) for file in files.values())


def test_our_package_names_belong_to_our_distribution_alone(target: Path, elsewhere: Path) -> None:
    code = "import importlib.metadata, json; print(json.dumps(dict(importlib.metadata.packages_distributions())))"
    owners = json.loads(_run(target, elsewhere, "-c", code))
    assert {package: set(owners.get(package, [])) for package in PACKAGES} == {
        package: {DISTRIBUTION} for package in PACKAGES
    }
