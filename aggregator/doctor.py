"""The verb `doctor`: whether this installation and this machine can run a sweep, check by check.

No check raises, none writes anything, and none shows the value of a variable that names a file with a secret. What a
check needs is imported inside it, so that a broken library is a finding.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table
from rich.text import Text

from . import __version__
from .errors import CrossmarginError, ExitCode
from .headline import plain_text

if TYPE_CHECKING:
    from .store import ResultStore

DISTRIBUTION = "crossmargin"
PACKAGES = ("aggregator", "adapters", "models")
"""Top-level names of ours, common enough that another distribution may bring one too."""

LIBRARIES = (
    "jax", "jaxlib", "equinox", "optax", "jaxtyping", "numpy", "scipy", "pyarrow", "deltalake", "pydantic", "jinja2",
    "rich", "typer",
)  # fmt: skip

SECRET_FILE = re.compile(r"CROSSMARGIN_(?!_)[A-Z0-9_]*_FILE")
"""Variables that name a file with a secret; `CROSSMARGIN__A__B` overrides a key of the configuration instead."""

LITTLE_SPACE = 2 * 2**30
"""Below this a warning: a run of a large book writes hundreds of megabytes."""
NO_SPACE = 100 * 2**20
CLOCK_TOLERANCE = timedelta(minutes=5)
UNFINISHED = timedelta(days=1)
"""Older ones were killed or given up; no sweep takes them up again by default."""
_FILES_LOOKED_AT = 10_000


class Health(StrEnum):
    """What a check found; closed. Only `error` decides the exit code."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    NOT_USED = "not_used"


class Check(NamedTuple):
    """One finding."""

    name: str
    status: Health
    detail: str


class Adapters(NamedTuple):
    """The registered adapters and what finds one by name, raising `ConfigurationError` for one that is broken."""

    names: Sequence[str]
    find: Callable[[str], Any]


def examine(
    store: str,
    adapters: Callable[[], Adapters],
    *,
    environment: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> list[Check]:
    """Every check, in the order in which things depend on each other. `store`: folder or URL of a result store."""
    variables, moment = os.environ if environment is None else environment, now or datetime.now(UTC)
    parts: tuple[tuple[str, Callable[[], Iterable[Check]]], ...] = (
        ("versions", _versions),
        ("packages", _packages),
        ("adapters", lambda: _adapters(adapters())),
        ("devices", _devices),
        ("compilation cache", lambda: _compilation_cache(variables)),
        ("store", lambda: _store(store, moment)),
        ("disk", lambda: _disk(store)),
        ("clock", lambda: _clock(store, moment)),
        ("secret files", lambda: _secret_files(variables)),
    )
    return [check for name, part in parts for check in _guarded(name, part)]


def exit_code(checks: Iterable[Check]) -> ExitCode:
    """3 when a check found an error, else 0; a warning is no error."""
    return ExitCode.BAD_DATA if any(check.status is Health.ERROR for check in checks) else ExitCode.OK


def checks_table(checks: Sequence[Check]) -> Table:
    """The checks as a table for the terminal."""
    table = Table(title="Doctor", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("detail", overflow="fold")
    styles = {Health.WARNING: "yellow", Health.ERROR: "bold red"}
    for name, status, detail in checks:
        table.add_row(Text(plain_text(name)), Text(status, style=styles.get(status, "")), Text(plain_text(detail)))
    return table


def _guarded(name: str, part: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of one part; what it raises is an error of that part, and the others go on."""
    try:
        yield from part()
    except Exception as error:
        yield Check(name, Health.ERROR, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


# ---- the installation ------------------------------------------------------------------------------------------------


def _versions() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    try:
        installed = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Check("crossmargin", Health.ERROR, f"{__version__}, but no distribution of that name is installed")
        return
    if installed["Version"] != __version__:
        message = f"the code is {__version__}, the installed distribution {installed['Version']}: install it again"
        yield Check("crossmargin", Health.WARNING, message)
    else:
        yield Check("crossmargin", Health.OK, __version__)
    yield _version("python", python, installed["Requires-Python"] or "")
    asked = {
        found[1].lower(): found[2]
        for line in metadata.requires(DISTRIBUTION) or ()
        if "extra ==" not in line and (found := re.match(r"([A-Za-z0-9._-]+)([^;]*)", line))
    }
    for name in LIBRARIES:
        try:
            yield _version(name, metadata.version(name), asked.get(name, ""))
        except metadata.PackageNotFoundError:
            yield Check(name, Health.ERROR, "not installed")


def _version(name: str, version: str, asked: str) -> Check:
    if _satisfies(version, asked):
        return Check(name, Health.OK, version)
    return Check(name, Health.ERROR, f"{version}, needed is {asked.strip()}")


def _satisfies(version: str, asked: str) -> bool:
    """Whether `version` lies in bounds such as `<0.13,>=0.10.0`; only the numbers of a release are looked at."""
    comparisons: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
    }
    found = re.findall(r"(>=|<=|==|!=|>|<)\s*([0-9.]+)", asked)
    return all(comparisons[sign](_release(version), _release(bound)) for sign, bound in found)


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"[0-9]+(\.[0-9]+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    return tuple(parts + [0] * (4 - len(parts)))


def _packages() -> Iterator[Check]:
    """Each of our names belongs to us alone, and is imported from where we are."""
    claims = metadata.packages_distributions()
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        # An editable installation lists no files, so it claims no name; where the name leads to tells.
        others = sorted({owner for owner in claims.get(name, ()) if owner.lower() != DISTRIBUTION})
        spec = util.find_spec(name)
        places = [Path(place).resolve().parent for place in (spec.submodule_search_locations or ())] if spec else []
        if others:
            message = f"also brought by {', '.join(others)}: keep crossmargin in an environment of its own"
            yield Check(f"package {name}", Health.ERROR, message)
        elif not places:
            yield Check(f"package {name}", Health.ERROR, "cannot be imported")
        elif places != [home]:
            message = f"is imported from {places[0]}, not from {home}: start as `crossmargin` or `python -P`"
            yield Check(f"package {name}", Health.ERROR, message)
        else:
            yield Check(f"package {name}", Health.OK, f"from {home}")


def _adapters(adapters: Adapters) -> Iterator[Check]:
    if not adapters.names:
        yield Check("adapters", Health.ERROR, "none is registered: install the distribution again")
    for name in adapters.names:
        try:
            requests = adapters.find(name).requests
        except CrossmarginError as error:
            yield Check(f"adapter {name}", Health.ERROR, str(error))
        except Exception as error:
            yield Check(f"adapter {name}", Health.ERROR, f"{type(error).__name__}: {error}")
        else:
            yield Check(f"adapter {name}", Health.OK, f"{len(requests)} requests")


# ---- the machine -----------------------------------------------------------------------------------------------------


def _devices() -> Iterator[Check]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    found = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in found}))
    message = f"{len(found)} x {kinds} ({jax.default_backend()}), {os.cpu_count()} cores"
    yield Check("devices", Health.OK, message)
    if jnp.zeros(1).dtype == jnp.float64:
        yield Check("64-bit numbers", Health.OK, "on")
    else:
        yield Check("64-bit numbers", Health.ERROR, "off: native margin needs them")


def _compilation_cache(variables: Mapping[str, str]) -> Iterator[Check]:
    name = "compilation cache"
    # An empty variable counts as none, as it does for JAX.
    path = variables.get("JAX_COMPILATION_CACHE_DIR")
    if variables.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "off", "no", "f", "n"):
        yield Check(name, Health.NOT_USED, "switched off by JAX_ENABLE_COMPILATION_CACHE")
    elif not path:
        yield Check(name, Health.NOT_USED, "JAX_COMPILATION_CACHE_DIR is not set: every run compiles anew")
    elif "://" in path:
        yield Check(name, Health.OK, f"{path} (not looked into)")
    elif Path(path).is_dir():
        files = [entry for entry in Path(path).iterdir() if entry.is_file()]
        size = sum(entry.stat().st_size for entry in files) / 2**20
        status = Health.OK if os.access(path, os.W_OK | os.X_OK) else Health.WARNING
        word = "" if status is Health.OK else ", but it cannot be written"
        yield Check(name, status, f"{path}: {len(files)} files, {size:.0f} MB{word}")
    elif _can_be_made(Path(path)):
        yield Check(name, Health.OK, f"{path} will be made by the first run")
    else:
        yield Check(name, Health.WARNING, f"{path} is no folder and cannot be made: every run compiles anew")


def _store(store: str, now: datetime) -> Iterator[Check]:
    from .store import ResultStore

    results = ResultStore(store)
    committed = results.committed_runs()
    started = _started(results)
    unfinished = sorted(set(started) - set(committed))
    newest = f", the newest {committed[-1]}" if committed else ""
    yield Check("store", Health.OK, f"{results.root}: {len(committed)} finished runs{newest}")
    young = [name for name in unfinished if now - started[name] < UNFINISHED]
    message = f"{len(unfinished)}, of them {len(young)} of the last day" if unfinished else "none"
    if young:
        message += f": {young[-1]} runs now, or the next sweep of equal inputs finishes it"
    yield Check("unfinished runs", Health.WARNING if young else Health.OK, message)
    if "://" in store:
        yield Check("store is writable", Health.NOT_USED, "a remote store is not tried")
    elif Path(results.root).is_dir():
        # Tables are folders of their own, which somebody else may have made.
        folders = [Path(results.root), *(p for p in Path(results.root).glob("*/_delta_log") if p.is_dir())]
        closed = [str(folder) for folder in folders if not os.access(folder, os.W_OK | os.X_OK)]
        status, word = (Health.ERROR, f"no: {closed[0]}") if closed else (Health.OK, "yes")
        yield Check("store is writable", status, word)
    elif _can_be_made(Path(results.root)):
        yield Check("store is writable", Health.OK, "it will be made by the first run")
    else:
        yield Check("store is writable", Health.ERROR, f"{results.root} cannot be made")


def _started(results: ResultStore) -> dict[str, datetime]:
    """Start of every run that was begun, by run id."""
    from deltalake import DeltaTable

    location = f"{results.root}/run_starts"
    if not DeltaTable.is_deltatable(location):
        return {}
    rows = DeltaTable(location).to_pyarrow_table(columns=["run_id", "started_at"]).to_pylist()
    return {row["run_id"]: row["started_at"] for row in rows}


def _disk(store: str) -> Iterator[Check]:
    if "://" in store:
        yield Check("disk", Health.NOT_USED, "the store is remote")
        return
    folder = _existing(Path(store).expanduser().absolute())
    free = shutil.disk_usage(folder).free
    status = Health.ERROR if free < NO_SPACE else Health.WARNING if free < LITTLE_SPACE else Health.OK
    yield Check("disk", status, f"{free / 2**30:.1f} GiB free at {folder}")


def _clock(store: str, now: datetime) -> Iterator[Check]:
    """Nothing that exists may be of the future: then the clock is behind, or was ahead when it was written."""
    from .store import ResultStore

    seen = {"the program": _modified(Path(__file__))}
    if "://" not in store:
        files = [path for path, _ in zip(_files(Path(store)), range(_FILES_LOOKED_AT), strict=False)]
        if files:
            seen["the newest file of the store"] = max(map(_modified, files))
        started = _started(ResultStore(store))
        if started:
            run = max(started, key=lambda name: started[name])
            seen[f"run {run}"] = started[run]
    what = max(seen, key=lambda name: seen[name])
    ahead = seen[what] - now
    if ahead > CLOCK_TOLERANCE:
        message = f"{now:%Y-%m-%d %H:%M:%S} UTC, but {what} is of {seen[what]:%Y-%m-%d %H:%M:%S} UTC"
        yield Check("clock", Health.ERROR, message)
    else:
        yield Check("clock", Health.OK, f"{now:%Y-%m-%d %H:%M:%S} UTC, behind nothing that was written")


def _files(folder: Path) -> Iterator[Path]:
    return (Path(root) / name for root, _, names in os.walk(folder) for name in names)


def _modified(path: Path) -> datetime:
    # A file may be gone between its listing and this look.
    return datetime.fromtimestamp(path.stat().st_mtime if path.exists() else 0, UTC)


def _secret_files(variables: Mapping[str, str]) -> Iterator[Check]:
    """Files with secrets are the owner's alone. Neither a content nor the value of a variable is shown: somebody may
    have put the secret where its file's name belongs.
    """
    named = sorted(name for name in variables if SECRET_FILE.fullmatch(name))
    if not named:
        yield Check("secret files", Health.NOT_USED, f"no variable {DISTRIBUTION.upper()}_..._FILE is set")
    for name in named:
        yield Check(name, *_secret_file(variables[name]))


def _secret_file(path: str) -> tuple[Health, str]:
    if not path:
        return Health.ERROR, "is set, but empty"
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:
        return Health.ERROR, f"names no file that can be looked at: {getattr(error, 'strerror', None) or 'no path'}"
    mode = stat.S_IMODE(state.st_mode)
    if not stat.S_ISREG(state.st_mode):
        return Health.ERROR, "names something that is no file"
    if not os.access(path, os.R_OK):
        return Health.ERROR, f"names a file that cannot be read (mode {mode:03o})"
    if mode & 0o077:
        return Health.ERROR, f"names a file that others than its owner may use (mode {mode:03o}): chmod 600"
    if state.st_size == 0:
        return Health.ERROR, "names an empty file"
    return Health.OK, f"a file of its owner alone (mode {mode:03o})"


def _existing(path: Path) -> Path:
    """The path or its nearest ancestor that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _can_be_made(path: Path) -> bool:
    nearest = _existing(path.expanduser().absolute())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


__all__ = [
    "PACKAGES",
    "Adapters",
    "Check",
    "Health",
    "checks_table",
    "examine",
    "exit_code",
]
