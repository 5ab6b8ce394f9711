"""The documentation against the code: links, generated pages, runnable snippets, and that nothing is left out.

Fenced snippets say in their info string what is done with them:

- ```` ```python file=NAME ```` (and toml, json): written to NAME in a folder of their page;
- ```` ```python run ````: executed there, with a result store `results` of a real run; `needs=MODULE` skips without it;
- ```` ```toml run ````: a whole configuration, which must load;
- ```` ```console ````: in lines that begin with `$`, verbs and options of `crossmargin` and targets of `make` exist.

The run behind the snippets is the desk of `docs/add-a-venue.md`: its adapter is built from the page's own
`pyproject.toml` into a wheel, and the command line finds it by its entry point.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import typing
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import typer.core
import typer.main
from hatchling.builders.wheel import WheelBuilder
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from adapters.adapter import adapter_names, find_adapter
from aggregator import config, routes, rule_forms
from aggregator.cli import app
from aggregator.errors import ExitCode, FailureReason
from aggregator.schema.canonical import CANONICAL
from aggregator.schema.results import RESULTS
from aggregator.section import Section

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = (README, *sorted(DOCS.glob("*.md")))
GUIDE = DOCS / "add-a-venue.md"

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[[^\]]+\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    """One fenced block: its page, the line it starts on, its language, the words after it, and its text."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def option(self, name: str) -> str | None:
        """The value of `name=value` among the words."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")), None)


def _snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        language, *words = match[1].split() or [""]
        yield Snippet(page, text.count("\n", 0, match.start()) + 1, language, tuple(words), match[2])


SNIPPETS = [snippet for page in PAGES for snippet in _snippets(page)]


def _where(snippet: Snippet) -> str:
    return f"{snippet.page.name}:{snippet.line}"


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def _text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


# ---- pages and links -------------------------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    """Anchors that a page's headings get: lower case, punctuation dropped, spaces to hyphens."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert linked.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in _anchors(linked), f"{target}: no such heading"


def test_images_are_there_and_are_images() -> None:
    shown = [(page, name) for page in PAGES for name in _IMAGE.findall(_prose(page))]
    assert shown
    for page, name in shown:
        tree = ElementTree.parse(page.parent / name)
        assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg", f"{page.name}: {name}"


def test_every_page_is_in_the_index() -> None:
    listed = {(DOCS / target).resolve() for target in _LINK.findall(_prose(DOCS / "index.md"))}
    assert {page for page in PAGES if page.parent == DOCS and page.name != "index.md"} <= listed
    assert "docs/index.md" in _LINK.findall(_prose(README))


def test_prose_names_files_that_exist() -> None:
    """Paths of the repository in backticks: what begins with one of its folders and has no placeholder."""
    folders = ("adapters/", "aggregator/", "configs/", "docs/", "models/", "tests/", ".ci/")
    for page in PAGES:
        for name in re.findall(r"`([^`\s]+)`", _prose(page)):
            if name.startswith(folders) and not re.search(r"[<>*{}]", name):
                assert (ROOT / name).exists(), f"{page.name} names {name}"


# ---- generated pages -------------------------------------------------------------------------------------------------


def _generator(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("generator", ["generate_schema", "generate_venues"])
def test_generated_pages_are_current(generator: str) -> None:
    for name, text in _generator(generator).pages().items():
        assert _text(name) == text, f"docs/{name} is out of date: run .venv/bin/python -P docs/{generator}.py"


# ---- nothing is left out ---------------------------------------------------------------------------------------------


def _tables(page: str) -> dict[str, dict[str, list[str]]]:
    """Rows of the first table under each heading of a page: first cell without backticks -> the other cells."""
    out: dict[str, dict[str, list[str]]] = {}
    for part in re.split(r"^#+ ", page, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in re.findall(r"^\|.*\|$", body, re.MULTILINE)[2:]]
        out[heading] = {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in rows}
    return out


SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": config.Configuration,
    "[run]": config.Run,
    "[data]": config.Data,
    "[reconcile]": config.Reconcile,
    '[scenarios] with generator = "multivariate_t"': config.MultivariateTFigures,
    '[scenarios] with generator = "filtered_history"': config.FilteredHistoryFigures,
    '[scenarios] with generator = "calibrated"': config.CalibratedFigures,
    "[scenarios.history]": config.HistoryFigures,
    "Forecast of today's scale": config.ScenarioForecast,
    "Moves": config.TailMoves,
    "[scenarios.jumps]": config.JumpFigures,
    "[scenarios.oracle_error]": config.OracleFigures,
    "[scenarios.liquidity_drought]": config.DroughtFigures,
    "Proxy": config.Proxy,
    "Peg law": config.PegFigures,
    "Rule of an implied volatility": config.VolRule,
    "[paths]": config.Paths,
    "[engine]": config.Engine,
    "[store]": config.Store,
    "[report]": config.ReportSection,
    "[tiers]": config.Tiers,
    "[[sources]]": config.Source,
    "Payload": config.PayloadFile,
    "[[limits]]": config.Limit,
}


def test_every_section_of_the_configuration_has_a_table() -> None:
    # Files of other kinds (a calibration, a backtest) have sections too, and pages of their own.
    of_a_run = {section for section in Section.__subclasses__() if section.__module__ == config.__name__}
    assert set(SECTIONS.values()) == of_a_run - {config.Resolved}


ROUTE_SECTIONS: dict[str, type[BaseModel]] = {
    "The whole file": routes.Routes,
    "[operator]": routes.Operator,
    "[deadline]": routes.Deadline,
    "[channels.NAME]": routes.Channel,
    "Outage": routes.Outage,
    "Leg": routes.Leg,
    "[[links]]": routes.Link,
    "[venues.NAME]": routes.VenueRoutes,
    "[[routes]]": routes.WrittenRoute,
    "[[credit]]": routes.CreditLine,
}


def test_every_section_of_the_routes_file_has_a_table() -> None:
    known = {section for section in vars(routes).values() if isinstance(section, type) and issubclass(section, Section)}
    assert set(ROUTE_SECTIONS.values()) == known - {Section}


@pytest.mark.parametrize(
    ("page", "heading", "section"),
    [("configuration.md", *of) for of in SECTIONS.items()]
    + [("transfer-constrained-margin.md", *of) for of in ROUTE_SECTIONS.items()],
)
def test_keys_and_defaults_are_documented(page: str, heading: str, section: type[BaseModel]) -> None:
    rows = _tables(_text(page))[heading]
    fields = section.model_fields
    assert list(rows) == list(fields)
    for name, field in fields.items():
        shown, default = rows[name][0], field.default
        if default is PydanticUndefined:
            assert shown == "*required*", name
        elif default is None:
            assert shown == "*none*", name
        elif isinstance(default, BaseModel):
            assert shown == "section", name
        else:
            literal = tomllib.loads(f"value = {shown.strip('`')}")["value"]
            assert literal == (list(default) if isinstance(default, tuple) else default), name
            assert type(literal) is type(list(default) if isinstance(default, tuple) else default), name


def test_keys_outside_of_the_digest_are_marked(tmp_path: Path) -> None:
    """A dagger stands exactly at the keys whose change leaves the configuration digest alone."""
    base = {
        "scenarios": {"generator": "multivariate_t", "nu": 3.0, "daily_std": {"price:BTC": 0.02}},
        "portfolios": {"desk": ("hyperliquid:north",)},
        "sources": ({"venue": "hyperliquid", "payloads": ({"file": "north.json"},)},),
    }
    digest = config.Resolved(configuration=config.Configuration.model_validate(base), folder=tmp_path).digest()
    changed = {
        "title": "another",
        "assets": "other.toml",
        "run": {"seed": 1},
        "data": {"max_age_s": 1.0},
        "reconcile": {"bound_usd": 5.0},
        "requirement": {"offset_cap": 1.0},
        "stress": "stress.toml",
        "stress_history": "days.parquet",
        "routes": "routes.toml",
        "paths": {"scenarios": 256},
        "engine": {"scenario_chunk": 512},
        "store": {"path": "elsewhere"},
        "report": {"path": ""},
        "tiers": {"market": "history"},
        "limits": ({"metric": "equity_usd", "minimum": 0.0},),
    }
    rows = _tables(_text("configuration.md"))["Top level"]
    for key, value in changed.items():
        other = config.Resolved(configuration=config.Configuration.model_validate(base | {key: value}), folder=tmp_path)
        assert (other.digest() == digest) is rows[key][1].startswith("†"), key
    assert set(changed) | set(base) == set(rows)


def test_limit_metrics_are_documented() -> None:
    text = _text("configuration.md")
    for metric in typing.get_args(config.LimitMetric):
        assert f"`{metric}`" in text, metric


def test_rule_forms_and_their_parameters_are_documented() -> None:
    parts = dict(part.partition("\n")[::2] for part in re.split(r"^#+ ", _text("rule-forms.md"), flags=re.MULTILINE))
    for name, form in rule_forms.FORMS.items():
        assert name in parts, name
        for parameter in form.model_fields:
            assert f"`{parameter}`" in parts[name], f"{parameter} of {name}"


def test_nested_rule_parameters_stand_in_the_formulas() -> None:
    text = _text("rule-forms.md")
    for form in (
        rule_forms.VolShock,
        rule_forms.SkewShock,
        rule_forms.StaticDiscount,
        rule_forms.BasisContingency,
        rule_forms.PegLoss,
        rule_forms.Confidence,
        rule_forms.GridPoint,
    ):
        for parameter in form.model_fields:
            # The skew has a linear and an absolute set of two figures.
            assert re.sub(r"^(linear|abs)_", "", parameter) in text, f"{parameter} of {form.__name__}"


def test_failure_reasons_are_documented() -> None:
    assert list(_tables(_text("data-path.md"))["Incomplete data"]) == [str(reason) for reason in FailureReason]


def test_result_tables_are_documented() -> None:
    assert set(_tables(_text("results.md"))["What to read first"]) == set(RESULTS)


def test_exit_codes_are_documented() -> None:
    assert {int(code) for code in _tables(README.read_text(encoding="utf-8"))["Exit codes"]} == set(ExitCode)


def test_venues_and_their_requests_are_documented() -> None:
    text = _text("venues.md")
    known = set(_tables(text)["Venues"])
    ours = {name for name in adapter_names() if (ROOT / "adapters" / name).exists()}
    assert known == ours
    for name in ours:
        for request in find_adapter(name).requests:
            assert f"`{request}" in text, f"{request} of {name}"


def test_dates_of_the_parameter_files_are_documented() -> None:
    text = _text("venues.md")
    for path in sorted((ROOT / "configs" / "venues").glob("*.toml")):
        date = str(tomllib.loads(path.read_text(encoding="utf-8"))["as_of"])[:10]
        [section] = [part for part in text.split("\n## ") if f"`configs/venues/{path.name}`" in part]
        assert date in section, f"{path.name} is of {date}"


# ---- commands --------------------------------------------------------------------------------------------------------


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


def _command_lines() -> list[tuple[str, list[str]]]:
    """(place, words) of every shell line in the pages: console snippets, and commands in backticks."""
    lines = [
        (_where(s), shlex.split(line.removeprefix("$ "), comments=True))
        for s in SNIPPETS
        if s.language == "console"
        for line in s.text.splitlines()
        if line.startswith("$ ")
    ]
    quoted = re.compile(r"`((?:crossmargin|make) [^`]+)`")
    return lines + [(p.name, shlex.split(found)) for p in PAGES for found in quoted.findall(_prose(p))]


def test_commands_exist() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    lines = _command_lines()
    used: set[str] = set()
    for place, words in lines:
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.+", word)]
        program = Path(words[0]).name
        if program == "make":
            assert set(words[1:]) <= targets, f"{place}: {words}"
        elif program == "crossmargin" and words[1].startswith("-"):
            assert set(words[1:]) <= _options(group) | {"--version"}, f"{place}: {words}"
        elif program == "crossmargin":
            assert words[1] in group.commands, f"{place}: {words}"
            used.add(words[1])
            unknown = {word for word in words[2:] if word.startswith("--")} - _options(group.commands[words[1]])
            assert not unknown, f"{place}: {unknown}"
    assert set(group.commands) <= used, "a verb that no page shows"


def test_schema_tables_named_in_commands_exist() -> None:
    for place, words in _command_lines():
        if words[:2] == ["crossmargin", "schema"] and len(words) > 2 and not words[2].startswith("-"):
            assert words[2] in {*CANONICAL, *RESULTS}, place


# ---- the desk of the guide -------------------------------------------------------------------------------------------


def _sweep(folder: Path, configuration: str, *settings: str, site: Path | None = None) -> dict[str, Any]:
    """The JSON object that `crossmargin sweep` prints in `folder`; it must end well."""
    command = [sys.executable, "-P", "-m", "aggregator", "sweep", configuration, "--json"]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        **{name: value for name, value in os.environ.items() if not name.startswith(config.ENVIRONMENT_PREFIX)},
        "PYTHONPATH": os.pathsep.join([*([str(site)] if site else []), str(ROOT)]),
    }
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    outcome: dict[str, Any] = json.loads(finished.stdout)
    return outcome


# ---- snippets that run -----------------------------------------------------------------------------------------------


def test_info_strings_are_known() -> None:
    for snippet in SNIPPETS:
        for word in snippet.words:
            assert word == "run" or re.fullmatch(r"(file|needs)=\S+", word), f"{_where(snippet)}: {word!r}"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the guide's desk after `crossmargin sweep desk.toml`: payloads, adapter, results and report."""
    folder = tmp_path_factory.mktemp("desk")
    for snippet in _snippets(GUIDE):
        if (name := snippet.option("file")) is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(snippet.text, encoding="utf-8")
    [wheel] = WheelBuilder(str(folder)).build(directory=str(folder / "dist"), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    outcome = _sweep(folder, "desk.toml", site=folder / "site")
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    return folder


def test_the_guide_runs_a_desk_on_its_venue(desk: Path) -> None:
    outcome = json.loads((desk / "outcome.json").read_text(encoding="utf-8"))
    [portfolio] = outcome["portfolios"]
    assert (portfolio["status"], outcome["conditions"]) == ("ok", [])
    # Figures from a configuration know no stressed law and no sizes of markets.
    assert len(outcome["notes"]) == 2
    notionals = {"BTC": Decimal("3.5") * Decimal("60321.5"), "ETH": 40 * Decimal("3379.25")}
    expected = float(Decimal("0.025") * sum(notionals.values()))
    assert portfolio["native_maintenance_usd"] == pytest.approx(expected, rel=1e-12)
    assert Path(outcome["report"]).is_file()


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s.language == "python" and "run" in s.words], ids=_where)
def test_python_snippets_run(snippet: Snippet, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (module := snippet.option("needs")) is not None:
        pytest.importorskip(module)
    monkeypatch.chdir(desk)
    # Lines of a traceback are those of the page.
    source = "\n" * snippet.line + snippet.text
    exec(compile(source, str(snippet.page), "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s.language == "toml" and "run" in s.words], ids=_where)
def test_configuration_snippets_load(snippet: Snippet, tmp_path: Path) -> None:
    path = tmp_path / "snippet.toml"
    path.write_text(snippet.text, encoding="utf-8")
    resolved = config.load_configuration(path)
    assert all(find_adapter(source.venue) for source in resolved.configuration.sources)


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s.language in ("toml", "json")], ids=_where)
def test_data_snippets_parse(snippet: Snippet) -> None:
    parse: Any = tomllib.loads if snippet.language == "toml" else json.loads
    assert parse(snippet.text)
