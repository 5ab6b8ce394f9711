"""The doctor: each check in each of its statuses, no secret shown, nothing written, and the verb's exit code."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

import aggregator
from aggregator import doctor
from aggregator.doctor import LIBRARIES, Adapters, Check, Health, checks_table, examine, exit_code
from aggregator.errors import ConfigurationError, ExitCode
from aggregator.store import ResultStore
from tests.sample_desk import command
from tests.test_store import DIGEST, write_whole_run

SECRET = "hunter2hunter2"
NOW = datetime.now(UTC)


class Venue(NamedTuple):
    """All that the doctor asks of an adapter."""

    requests: tuple[str, ...]


def adapters() -> Adapters:
    return Adapters(("one", "two"), lambda name: Venue(("a", "b")))


def found(
    store: Path | str,
    *,
    registered: Callable[[], Adapters] = adapters,
    environment: dict[str, str] | None = None,
    now: datetime = NOW,
) -> dict[str, tuple[str, str]]:
    """(Status, detail) by the name of the check."""
    checks = examine(str(store), registered, environment=environment or {}, now=now)
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: (str(check.status), check.detail) for check in checks}


def status(checks: dict[str, tuple[str, str]], name: str) -> str:
    return checks[name][0]


def test_a_sound_machine(tmp_path: Path) -> None:
    checks = examine(str(tmp_path / "results"), adapters, environment={}, now=NOW)
    assert {check.name: check for check in checks if check.status in (Health.ERROR, Health.WARNING)} == {}
    assert exit_code(checks) == ExitCode.OK
    names = {check.name for check in checks}
    assert {"crossmargin", "python", *LIBRARIES, "adapter one", "adapter two"} <= names
    assert {f"package {name}" for name in ("aggregator", "adapters", "models")} <= names
    assert {"devices", "64-bit numbers", "compilation cache", "store", "unfinished runs", "store is writable", "disk",
            "clock", "secret files"} <= names  # fmt: skip
    assert list(tmp_path.iterdir()) == [], "looking makes no folder"


def test_only_an_error_decides_the_code() -> None:
    def code(*statuses: Health) -> ExitCode:
        return exit_code([Check("x", status, "") for status in statuses])

    assert code(Health.OK, Health.NOT_USED, Health.WARNING) == ExitCode.OK
    assert code(Health.OK, Health.ERROR) == ExitCode.BAD_DATA
    assert code() == ExitCode.OK


def test_a_check_that_fails_in_itself_is_an_error_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("no backend\nwith a long story")

    monkeypatch.setattr(jax, "devices", broken)
    checks = found(tmp_path, registered=broken)
    assert checks["devices"] == ("error", "RuntimeError: no backend")
    assert checks["adapters"] == ("error", "RuntimeError: no backend")
    assert status(checks, "clock") == "ok"


# ---- the installation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "asked", "fits"),
    [
        ("0.10.2", "<0.13,>=0.10.0", True), ("0.13.0", "<0.13,>=0.10.0", False), ("0.9.9", "<0.13,>=0.10", False),
        ("0.13", "<0.13.0", False), ("26.0.1", "<27,>=21", True), ("3.11.7", ">=3.11,<3.15", True),
        ("3.9.0", ">=3.11", False), ("1.0", "", True), ("1.2.0rc1", ">=1.2", True), ("2.0", "!=2.0", False),
        ("2.1", "==2.0", False), ("2.0", ">2", False), ("2", "<=2.0", True), ("", ">=1", False),
    ],
)  # fmt: skip
def test_bounds_of_a_version(version: str, asked: str, fits: bool) -> None:
    assert doctor._satisfies(version, asked) is fits


def test_libraries_that_are_missing_or_out_of_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = metadata.version

    def version(name: str) -> str:
        if name == "optax":
            raise metadata.PackageNotFoundError(name)
        return "0.99.0" if name == "jax" else known(name)

    monkeypatch.setattr(metadata, "version", version)
    checks = found(tmp_path)
    assert checks["optax"] == ("error", "not installed")
    assert checks["jax"] == ("error", "0.99.0, needed is <0.13,>=0.10.0")
    assert checks["jaxlib"] == ("ok", known("jaxlib"))
    assert checks["crossmargin"] == ("ok", aggregator.__version__)


def test_a_distribution_that_is_older_than_the_code_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "__version__", "99.0")
    assert status(found(tmp_path), "crossmargin") == "warning"
    monkeypatch.setattr(doctor, "DISTRIBUTION", "crossmargin-of-nobody")
    checks = found(tmp_path)
    assert status(checks, "crossmargin") == "error"
    assert "jax" not in checks


def test_another_distribution_with_a_package_of_our_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = tmp_path / "site" / "zoo-1.0.dist-info"
    claim.mkdir(parents=True)
    (claim / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo\nVersion: 1.0\n")
    (claim / "top_level.txt").write_text("models\n")
    monkeypatch.syspath_prepend(claim.parent)
    checks = found(tmp_path)
    assert checks["package models"][0] == "error"
    assert "also brought by zoo" in checks["package models"][1]
    assert status(checks, "package adapters") == "ok"


def test_a_folder_that_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "models").mkdir(parents=True)
    (tmp_path / "here" / "models" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "models", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "here")
    checks = found(tmp_path)
    assert checks["package models"][0] == "error"
    assert f"is imported from {tmp_path / 'here'}" in checks["package models"][1]


def test_a_package_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("a_package_of_nobody",))
    assert found(tmp_path)["package a_package_of_nobody"] == ("error", "cannot be imported")


def test_adapters_that_cannot_be_found(tmp_path: Path) -> None:
    def find(name: str) -> Venue:
        if name == "refused":
            raise ConfigurationError("venue 'refused': cannot import it")
        if name == "broken":
            raise ValueError("no such thing")
        return Venue(("x",))

    checks = found(tmp_path, registered=lambda: Adapters(("broken", "good", "refused"), find))
    assert checks["adapter good"] == ("ok", "1 requests")
    assert checks["adapter refused"] == ("error", "venue 'refused': cannot import it")
    assert checks["adapter broken"] == ("error", "ValueError: no such thing")
    assert status(found(tmp_path, registered=lambda: Adapters((), find)), "adapters") == "error"


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_what_jax_computes_on(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert checks["devices"][1].startswith(f"{len(jax.devices())} x {jax.devices()[0].device_kind}")
    assert checks["64-bit numbers"] == ("ok", "on")


def test_the_folder_of_compiled_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cache(path: Path | str, **variables: str) -> tuple[str, str]:
        environment = {"JAX_COMPILATION_CACHE_DIR": str(path), **variables}
        return found(tmp_path / "results", environment=environment)["compilation cache"]

    assert cache("")[0] == "not_used"
    assert cache(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[0] == "not_used"
    assert cache(tmp_path / "new" / "folder") == ("ok", f"{tmp_path / 'new' / 'folder'} will be made by the first run")
    assert cache("gs://bucket/cache")[0] == "ok"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "program").write_bytes(b"x" * 2**20)
    assert cache(tmp_path / "cache") == ("ok", f"{tmp_path / 'cache'}: 1 files, 1 MB")
    assert cache(tmp_path / "cache" / "program")[0] == "warning"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache(tmp_path / "cache")[0] == "warning"
    assert cache(tmp_path / "new")[0] == "warning"


def test_the_store_and_its_runs(tmp_path: Path) -> None:
    root = tmp_path / "results"
    store = ResultStore(root)
    finished, young, old = (f"20260102T03040{n}Z-0a1b2c3d" for n in (5, 6, 4))
    write_whole_run(store, finished, started=NOW - timedelta(hours=2))
    checks = found(root)
    assert checks["store"] == ("ok", f"{root}: 1 finished runs, the newest {finished}")
    assert checks["unfinished runs"] == ("ok", "none")
    assert checks["store is writable"] == ("ok", "yes")
    store.start_run(old, run_digest=DIGEST, started_at=NOW - timedelta(days=9), shards=1)
    assert found(root)["unfinished runs"] == ("ok", "1, of them 0 of the last day")
    store.start_run(young, run_digest=DIGEST, started_at=NOW - timedelta(hours=1), shards=1)
    state, detail = found(root)["unfinished runs"]
    assert state == "warning"
    assert detail.startswith(f"2, of them 1 of the last day: {young} ")


def test_a_store_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checks = found(tmp_path / "file")
    assert checks["store"][0] == "error"
    assert "expected a folder, found a file" in checks["store"][1]
    (tmp_path / "foreign" / "runs").mkdir(parents=True)
    (tmp_path / "foreign" / "runs" / "letter.txt").touch()
    assert "is no Delta table" in found(tmp_path / "foreign")["store"][1]


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "results"
    ResultStore(root).start_run("20260102T030405Z-0a1b2c3d", run_digest=DIGEST, started_at=NOW, shards=1)
    log = root / "run_starts" / "_delta_log"
    known = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != log and known(path, mode))
    assert found(root)["store is writable"] == ("error", f"no: {log}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert status(found(tmp_path / "new"), "store is writable") == "error"


@pytest.mark.parametrize(("free", "expected"), [(2**31, "ok"), (2**31 - 1, "warning"), (2**26, "error")])
def test_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: str) -> None:
    known = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: known._replace(free=free))
    checks = found(tmp_path / "not" / "yet")
    assert status(checks, "disk") == expected
    assert checks["disk"][1].endswith(f"GiB free at {tmp_path}")


def test_a_clock_that_lies_behind_what_was_written(tmp_path: Path) -> None:
    root = tmp_path / "results"
    assert status(found(root), "clock") == "ok"
    before = found(root, now=datetime(2019, 1, 1, tzinfo=UTC))["clock"]
    assert before[0] == "error"
    assert "but the program is of 20" in before[1]
    run = "20260102T030405Z-0a1b2c3d"
    ahead = NOW + timedelta(days=3)
    ResultStore(root).start_run(run, run_digest=DIGEST, started_at=ahead, shards=1)
    assert found(root)["clock"] == (
        "error", f"{NOW:%Y-%m-%d %H:%M:%S} UTC, but run {run} is of {ahead:%Y-%m-%d %H:%M:%S} UTC",
    )  # fmt: skip
    assert status(found(root, now=ahead), "clock") == "ok"
    report = tmp_path / "folder" / "report.html"
    report.parent.mkdir()
    report.touch()
    os.utime(report, ((NOW + timedelta(hours=1)).timestamp(),) * 2)
    assert "the newest file of the store" in found(report.parent)["clock"][1]
    os.utime(report, ((NOW + timedelta(minutes=4)).timestamp(),) * 2)
    assert status(found(report.parent), "clock") == "ok", "clocks differ by minutes"


def test_a_remote_store_is_neither_measured_nor_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResultStore, "committed_runs", lambda self: [])
    monkeypatch.setattr(doctor, "_started", lambda results: {})
    checks = found("memory://desk/results")
    assert status(checks, "store") == "ok"
    assert status(checks, "store is writable") == status(checks, "disk") == "not_used"
    assert status(checks, "clock") == "ok"


# ---- files with secrets ----------------------------------------------------------------------------------------------


def secret_file(tmp_path: Path, *, mode: int = 0o600, content: str = SECRET) -> Path:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(mode)
    return path


def of_variable(tmp_path: Path, value: str) -> tuple[str, str]:
    name = "CROSSMARGIN_BINANCE_KEY_FILE"
    checks = examine(str(tmp_path / "results"), adapters, environment={name: value}, now=NOW)
    assert not any(word in check.detail for check in checks for word in (SECRET, value or SECRET))
    (check,) = [check for check in checks if check.name == name]
    return str(check.status), check.detail


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o600, "ok"), (0o400, "ok"), (0o640, "error"), (0o604, "error"), (0o660, "error")]
)
def test_a_secret_is_its_owner_s_alone(tmp_path: Path, mode: int, expected: str) -> None:
    state, detail = of_variable(tmp_path, str(secret_file(tmp_path, mode=mode)))
    assert state == expected
    assert f"mode {mode:03o}" in detail


def test_a_variable_that_names_no_file_of_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The secret itself where its file belongs: it must not be shown.
    state, detail = of_variable(tmp_path, SECRET)
    assert (state, detail) == ("error", "names no file that can be looked at: No such file or directory")
    assert of_variable(tmp_path, "a\0b")[0] == "error"
    assert of_variable(tmp_path, "") == ("error", "is set, but empty")
    assert of_variable(tmp_path, str(secret_file(tmp_path, content=""))) == ("error", "names an empty file")
    (tmp_path / "folder").mkdir(mode=0o700)
    assert of_variable(tmp_path, str(tmp_path / "folder")) == ("error", "names something that is no file")
    path = secret_file(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert of_variable(tmp_path, str(path)) == ("error", "names a file that cannot be read (mode 600)")


def test_only_variables_that_name_a_file_are_looked_at(tmp_path: Path) -> None:
    environment = {"CROSSMARGIN__STORE__X_FILE": SECRET, "CROSSMARGIN_RECORDED": SECRET, "OTHER_FILE": SECRET}
    checks = found(tmp_path, environment=environment)
    assert status(checks, "secret files") == "not_used"
    assert not any(name in checks for name in environment)


# ---- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever adapters are installed, those of this file are registered."""
    monkeypatch.setattr("aggregator.cli._registered_adapters", adapters)


@pytest.mark.usefixtures("sound")
def test_the_verb_prints_a_table_or_one_object(tmp_path: Path) -> None:
    store = str(tmp_path / "results")
    plain = command("doctor", "--store", store)
    assert plain.exit_code == 0, plain.stdout
    assert plain.stderr == ""
    assert plain.stdout.splitlines()[0].strip() == "Doctor"
    answer = command("doctor", "--store", store, "--json")
    assert answer.stdout.count("\n") == 1
    document = json.loads(answer.stdout)
    assert document.keys() == {"checks"}
    assert all(check.keys() == {"name", "status", "detail"} for check in document["checks"])
    for check in document["checks"]:
        assert check["status"] in [str(health) for health in Health]
        assert check["name"] in plain.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("sound")
def test_the_verb_ends_with_3_where_something_is_wrong(tmp_path: Path) -> None:
    path = str(secret_file(tmp_path, mode=0o644))
    answer = command("doctor", "--store", str(tmp_path / "results"), environment={"CROSSMARGIN_DESK_FILE": path})
    assert answer.exit_code == 3
    assert "CROSSMARGIN_DESK_FILE" in answer.stdout
    assert path not in answer.stdout
    assert SECRET not in answer.stdout


def test_the_verb_looks_at_the_adapters_that_are_installed(tmp_path: Path) -> None:
    checks = json.loads(command("doctor", "--store", str(tmp_path), "--json").stdout)["checks"]
    status_of = {check["name"]: check["status"] for check in checks}
    for venue in ("aave_v3", "binance", "derive", "hyperliquid"):
        assert status_of[f"adapter {venue}"] == "ok"


def test_markup_and_control_characters_have_no_effect_in_the_table() -> None:
    table = checks_table([Check("[red]a\x1b[0m", Health.OK, "[bold]b\n")])
    cells = [str(next(iter(column.cells))) for column in table.columns]
    assert cells == ["[red]a\\x1b[0m", "ok", "[bold]b\\n"]
