"""Small desks made of the self-written payloads under `payloads/`, and the command line run on them.

A `Desk` is a folder with payload files, parameter files and a configuration that a test may break in one place.
"""

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from typer.testing import CliRunner

from aggregator.cli import app
from aggregator.store import ResultStore

ROOT = Path(__file__).resolve().parent.parent
PAYLOADS = ROOT / "tests" / "payloads"
CONFIGS = ROOT / "configs"

AS_OF = "2024-06-25T14:00:02Z"
"""The receive time of the newest payloads, those of Hyperliquid; the other venues' are up to eleven days older."""

MARKET_FILES: Mapping[str, tuple[str, ...]] = {
    "aave_v3": ("reserves", "emodes"),
    "binance": ("leverage_bracket", "premium_index", "asset_index"),
    "derive": ("ticker_btc_perp", "ticker_eth_20240628_2800_p"),
    "hyperliquid": ("meta_and_asset_ctxs",),
}
OWNER_FILES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("aave_v3", "treasury"): ("user_treasury", "data_treasury"),
    ("binance", "north"): ("north_account", "north_multi_assets", "north_position_risk"),
    ("binance", "south"): ("south_account", "south_multi_assets", "south_position_risk"),
    ("derive", "south"): ("south_subaccount",),
    ("hyperliquid", "trader"): ("clearinghouse_state", "spot_clearinghouse_state"),
}

# Made up, of the size of a calm month of 2024; every factor that the payloads can need has one.
DAILY_STD = {
    "price:BTC": 0.025,
    "price:ETH": 0.03,
    "price:SOL": 0.042,
    "price:BNB": 0.028,
    "price:PEPE": 0.07,
    "price:SHIB": 0.05,
    "price:HYPE": 0.06,
    "vol:ETH": 0.04,
    "peg:USDC": 0.0005,
    "peg:USDT": 0.0006,
    "peg:DAI": 0.0006,
    "peg:GHO": 0.001,
    "peg:wstETH": 0.0015,
    "peg:weETH": 0.002,
}
SCENARIOS = 512

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Run(NamedTuple):
    """What one call of the command line left: exit code, both streams, and the store of its desk."""

    exit_code: int
    stdout: str
    stderr: str
    store: ResultStore

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.stdout)

    @property
    def run_id(self) -> str:
        return str(self.document["run_id"])

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Rows of a result table of this run."""
        return _table(self.store.root, self.run_id, table).to_pylist()

    def failures(self, **wanted: str | None) -> list[dict[str, Any]]:
        """Failure rows whose columns have the wanted values."""
        return [row for row in self.rows("failures") if all(row[k] == v for k, v in wanted.items())]

    def conditions(self) -> list[str]:
        return [condition["condition"] for condition in self.document["conditions"]]


@cache
def _table(root: str, run_id: str, table: str) -> pa.Table:
    # A committed run does not change, and some tests ask for one table a hundred times.
    return ResultStore(root).read(table, run_id)


class Desk:
    """A configuration and its files in `folder`; `document` may be changed until it is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document: dict[str, Any] = {
            "title": "Sample desk",
            "assets": "assets.toml",
            "run": {"as_of": AS_OF, "seed": 7, "detail_top": 3},
            "data": {"max_age_s": 0.0, "max_mark_gap": 0.0},
            # The sample multi-assets account states its total at plain index prices; ours counts the buffers: 4.6 %.
            "reconcile": {"bound_relative": 0.05},
            "scenarios": {
                "generator": "multivariate_t",
                "scenarios": SCENARIOS,
                "nu": 4.0,
                "daily_std": dict(DAILY_STD),
                "correlation": {"price:BTC | price:ETH": 0.8},
                "default_correlation": 0.5,
            },
            # One device: a test process has started JAX long before, and buckets are the same size everywhere.
            "engine": {"host_devices": 1, "scenario_chunk": 512},
            "store": {"path": "results"},
            "report": {"path": ""},
            "sources": [],
            "portfolios": {},
        }
        (folder / "venues").mkdir(parents=True)
        (folder / "payloads").mkdir()
        shutil.copy(CONFIGS / "assets.toml", folder)
        for parameters in (CONFIGS / "venues").glob("*.toml"):
            shutil.copy(parameters, folder / "venues")

    def source(self, venue: str, owner: str = "", *, snapshot: str = "main") -> dict[str, Any]:
        """The source of this venue, owner and snapshot, added empty if there is none yet."""
        for source in self.document["sources"]:
            if (source["venue"], source.get("owner", ""), source["snapshot"]) == (venue, owner, snapshot):
                return source
        source = {"venue": venue, "snapshot": snapshot, "parameters": f"venues/{venue}.toml", "payloads": []}
        self.document["sources"].append(source | ({"owner": owner} if owner else {}))
        return self.document["sources"][-1]

    def add_file(
        self, name: str, content: Any, venue: str, owner: str = "", *, snapshot: str = "main", request: str = ""
    ) -> None:
        """Write a payload file (a text as it is, anything else as JSON) and list it under its source."""
        text = content if isinstance(content, str) else json.dumps(content)
        (self.folder / "payloads" / name).write_text(text, encoding="utf-8")
        entry = {"file": f"payloads/{name}"} | ({"request": request} if request else {})
        listed = self.source(venue, owner, snapshot=snapshot)["payloads"]
        if entry not in listed:
            listed.append(entry)

    def add_market(self, venue: str, *, snapshot: str = "main", change: Mapping[str, "Change"] | None = None) -> None:
        """The market-wide payloads of a venue; `change` maps the stem of a file to what is done to its content."""
        prefix = "" if snapshot == "main" else f"{snapshot}_"
        for stem in MARKET_FILES[venue]:
            self.add_file(f"{prefix}{stem}.json", changed(venue, stem, change), venue, snapshot=snapshot)

    def add_owner(
        self,
        venue: str,
        like: str,
        owner: str = "",
        *,
        snapshot: str = "main",
        change: Mapping[str, "Change"] | None = None,
        portfolio: str | None = None,
    ) -> None:
        """The payloads of the sample owner `like` as those of `owner`, in a portfolio of the owner's name."""
        owner = owner or like
        for stem in OWNER_FILES[venue, like]:
            name = f"{owner}_{stem}.json"
            self.add_file(name, changed(venue, stem, change), venue, owner, snapshot=snapshot)
        self.document["portfolios"].setdefault(portfolio or owner, []).append(f"{venue}:{owner}")

    def write(self, name: str = "desk.toml") -> Path:
        """Write the configuration and return its path."""
        path = self.folder / name
        path.write_text(toml(self.document), encoding="utf-8")
        return path

    def sweep(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Run:
        """`crossmargin sweep --json` on this desk, in this process."""
        run = command("sweep", str(self.write()), "--json", *arguments, environment=environment)
        return Run(run.exit_code, run.stdout, run.stderr, self.store())

    def copied(self, folder: Path) -> "Desk":
        """The desk with all its files, results included, in a folder of its own."""
        shutil.copytree(self.folder, folder)
        other = copy.copy(self)
        other.folder, other.document = folder, copy.deepcopy(self.document)
        return other

    def store(self) -> ResultStore:
        return ResultStore(self.folder / self.document["store"]["path"])


Change = Callable[[Any], Any]
"""Takes the parsed content of a payload file, changes it in place or returns what the file shall hold instead."""


class Answer(NamedTuple):
    """Exit code and both streams of a call."""

    exit_code: int
    stdout: str
    stderr: str


def command(*arguments: str, environment: Mapping[str, str] | None = None) -> Answer:
    """The command line in this process, so that JAX starts and compiles once for all tests of a module."""
    # The colours and the width of a terminal that somebody runs the tests in are no part of the answer.
    quiet = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "FORCE_COLOR": None}
    result = CliRunner().invoke(app, [*arguments], env={**quiet, **(environment or {})}, catch_exceptions=False)
    return Answer(result.exit_code, result.stdout, result.stderr)


def subprocess_environment(**changes: str) -> dict[str, str]:
    """The environment of a child process: compiled programs come from the cache of the checkout."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return {**cache, **os.environ, "NO_COLOR": "1", **changes}


def payload(venue: str, stem: str) -> Any:
    """A sample payload file, parsed."""
    return json.loads((PAYLOADS / venue / f"{stem}.json").read_text(encoding="utf-8"))


def changed(venue: str, stem: str, change: Mapping[str, Change] | None) -> Any:
    """The content of a sample payload file after the change that is meant for it."""
    content = copy.deepcopy(payload(venue, stem))
    if change is None or stem not in change:
        return content
    replaced = change[stem](content)
    return content if replaced is None else replaced


def sample_desk(folder: Path) -> Desk:
    """Two portfolios on three venues: a fund with four accounts at three venues, and a desk of its own at Binance."""
    desk = Desk(folder)
    for venue in ("aave_v3", "binance", "hyperliquid"):
        desk.add_market(venue)
    desk.add_owner("aave_v3", "treasury", portfolio="fund")
    desk.add_owner("hyperliquid", "trader", portfolio="fund")
    desk.add_owner("binance", "north", portfolio="fund")
    desk.add_owner("binance", "south", portfolio="south")
    return desk


def toml(document: Mapping[str, Any]) -> str:
    """`document` as TOML with every table inline but the top ones: exact for texts, numbers, flags, lists, tables."""
    lines = [f"{_key(key)} = {_value(value)}" for key, value in document.items() if not isinstance(value, Mapping)]
    for name, section in document.items():
        if isinstance(section, Mapping):
            lines += ["", f"[{_key(name)}]", *(f"{_key(key)} = {_value(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)


# ---- comparing runs --------------------------------------------------------------------------------------------------

RUN_FACTS = ("run_id", "started_at", "finished_at", "duration_s", "device", "versions")
"""Columns that say which run it was and on what machine."""


def comparable(tables: Mapping[str, pa.Table], *, without: Iterable[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """All rows of a run by table, sorted as they are read, without run facts and the columns named besides."""
    dropped = {*RUN_FACTS, *without}
    return {
        name: table.drop_columns([column for column in table.column_names if column in dropped]).to_pylist()
        for name, table in tables.items()
    }
