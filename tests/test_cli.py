"""The command line: what it prints where, its exit codes, and what it says about a configuration that cannot be run."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import aggregator
from aggregator.schema.canonical import CANONICAL
from aggregator.schema.fields import table_version
from aggregator.schema.headline_tables import PORTFOLIO_MARGIN
from aggregator.schema.results import RESULTS
from tests.sample_desk import ROOT, Answer, Desk, Run, command, comparable, sample_desk, subprocess_environment

pytestmark = pytest.mark.slow

# The bar is one second; importing JAX alone takes longer. Machines that run tests are shared: the fastest try counts.
HELP_SECONDS = 1.0
TRIES = 5

KEYS = {"run_id", "store", "report", "conditions", "notes", "portfolios"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk on which nothing is wrong; tests that change it take a copy."""
    desk = sample_desk(tmp_path_factory.mktemp("cli") / "desk")
    desk.document["report"]["path"] = "reports"
    return desk


@pytest.fixture(scope="module")
def run(desk: Desk) -> Run:
    return desk.sweep()


def again(tmp_path: Path) -> Desk:
    """The same desk anew, to be changed."""
    return sample_desk(tmp_path / "desk")


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real process of the command line."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "aggregator", *arguments],
        env=subprocess_environment(**environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ---- streams and codes -----------------------------------------------------------------------------------------------


def test_json_is_one_object_with_the_rows_of_the_store(run: Run, desk: Desk) -> None:
    assert run.exit_code == 0, run.stderr
    assert run.stdout.count("\n") == 1  # one line, so that a log of runs is a file of JSON lines
    document = run.document
    assert document.keys() == KEYS
    assert document["store"] == str(desk.folder / "results")
    assert document["report"] == str(desk.folder / "reports" / f"{run.run_id}.html")
    assert Path(document["report"]).is_file()
    assert document["conditions"] == []
    columns = [name for name in PORTFOLIO_MARGIN.names if name != "run_id"]
    stored = [{name: row[name] for name in columns} for row in run.rows("portfolio_margin")]
    assert document["portfolios"] == stored
    assert [row["portfolio_id"] for row in stored] == ["fund", "south"]


def test_progress_is_talk_and_goes_to_stderr(run: Run) -> None:
    lines = run.stderr.splitlines()
    for stage in ("read: 1/1", "portfolios: 1/1", "details: 1/1", "report: 1/1"):
        assert stage in lines
    assert any(re.fullmatch(r"Sample desk: configuration [0-9a-f]{12}", line) for line in lines)


def test_without_json_the_table_and_the_places_are_on_stdout(run: Run, desk: Desk) -> None:
    plain = command("sweep", str(desk.write()), "--fresh")
    assert plain.exit_code == 0
    lines = plain.stdout.splitlines()
    assert lines[0].strip() == "Margin sweep (USD)"
    body = next(line for line in lines if "fund" in line)
    row = run.rows("portfolio_margin")[0]
    for column in ("equity_usd", "es_99_pooled_usd", "native_maintenance_usd"):
        assert f"{row[column]:,.0f}" in body
    assert any("south" in line for line in lines)
    tail = [line.split(maxsplit=1) for line in lines[-3:]]
    assert [words[0] for words in tail] == ["run", "results", "report"]
    run_id = tail[0][1].split()[0]
    assert tail[1][1] == str(desk.folder / "results")
    assert tail[2][1] == str(desk.folder / "reports" / f"{run_id}.html")
    assert "portfolios: 1/1" in plain.stderr
    assert "portfolios:" not in plain.stdout


def test_help_answers_at_once_and_without_jax() -> None:
    taken = []
    for _ in range(TRIES):
        # Processor time of the child: what else runs on the machine is not the command's doing.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = process("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        if taken[-1] < HELP_SECONDS:
            break
    assert min(taken) < HELP_SECONDS
    for verb in ("sweep", "report", "reconcile", "doctor", "schema"):
        assert verb in done.stdout
    assert done.stderr == ""
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, aggregator.cli; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"jax", "numpy", "pyarrow", "deltalake", "pydantic"} & set(imported)


def test_the_version_is_the_package_s() -> None:
    assert command("--version") == Answer(0, f"{aggregator.__version__}\n", "")


def test_a_process_keeps_streams_and_codes_apart(tmp_path: Path) -> None:
    desk = again(tmp_path)
    desk.document["run"]["sead"] = 1
    done = process("sweep", str(desk.write()), "--json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document.keys() == KEYS
    assert (document["run_id"], document["store"], document["report"], document["portfolios"]) == (None, None, None, [])
    (condition,) = document["conditions"]
    assert (condition["condition"], condition["code"]) == ("ConfigurationError", 2)
    assert condition["message"] in done.stderr
    plain = process("sweep", str(desk.write()))
    assert (plain.returncode, plain.stdout) == (2, "")
    assert "unknown key run.sead (did you mean 'seed'?)" in plain.stderr
    usage = process("sweep")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "Missing argument" in usage.stderr


# ---- configurations that cannot be run -------------------------------------------------------------------------------


def setting(*path: str | int, to: Any) -> Callable[[Desk], None]:
    """Sets one entry of the configuration."""

    def change(desk: Desk) -> None:
        place = desk.document
        for key in path[:-1]:
            place = place[key]  # type: ignore[index]
        place[path[-1]] = to  # type: ignore[index]

    return change


WRONG: Mapping[str, tuple[Callable[[Desk], None], str]] = {
    "key": (setting("run", "horizon_dais", to=1.0), "unknown key run.horizon_dais (did you mean 'horizon_days'?)"),
    "section": (setting("scenario", to={}), "unknown key scenario (did you mean 'scenarios'?)"),
    "source_key": (setting("sources", 0, "ownr", to="x"), "unknown key sources.0.ownr (did you mean 'owner'?)"),
    "type": (setting("run", "seed", to="seven"), "run.seed: "),
    "range": (setting("scenarios", "nu", to=1.5), "scenarios.nu: "),
    "generator": (setting("scenarios", "generator", to="bootstrap"), "scenarios.generator: expected one of"),
    "venue": (setting("sources", 0, "venue", to="aave_v4"), "unknown venue 'aave_v4' (did you mean 'aave_v3'?)"),
    "request": (
        setting("sources", 0, "payloads", 0, "request", to="getReservesDta"),
        "aave_v3, reserves.json: unknown request 'getReservesDta' (did you mean 'getReservesData'?)",
    ),
    "parameters": (
        setting("sources", 0, "parameters", to="venues/aave.toml"),
        "several parameter files: venues/aave.toml, venues/aave_v3.toml",
    ),
    "assets": (setting("assets", to="asets.toml"), "cannot read the asset book 'asets.toml': No such file"),
    "correlation": (
        setting("scenarios", "correlation", to={"price:BTC | price:ETC": 0.5}),
        "'price:ETC' has no daily_std (did you mean 'price:",
    ),
    "correlation_shape": (
        setting("scenarios", "correlation", to={"price:BTC": 0.5}), 'expected "factor | other factor"',
    ),
    "correlation_twice": (
        setting("scenarios", "correlation", to={"price:BTC | price:ETH": 0.5, "price:ETH | price:BTC": 0.5}),
        "is given twice",
    ),
    "correlation_bound": (
        setting("scenarios", "correlation", to={"price:BTC | price:ETH": 1.5}), "is 1.5; expected -1..1",
    ),
    "proxy": (
        setting("scenarios", "proxies", to={"price:DOGE": {"factor": "price:BTD"}}),
        "proxy of price:DOGE: factor 'price:BTD' has no daily_std (did you mean 'price:BTC'?)",
    ),
    "factors": (setting("scenarios", "daily_std", to={"price:DOGE": 0.1}), "moves none of the factors"),
    "limit": (setting("limits", to=[{"metric": "equity", "minimum": 0.0}]), "limits.0.metric: "),
    "limit_bounds": (
        setting("limits", to=[{"metric": "equity_usd", "minimum": 0.0, "maximum": 1.0}]),
        "give exactly one of minimum and maximum",
    ),
    "as_of": (setting("run", "as_of", to="2024-06-25T14:00:02"), "as_of needs a time zone"),
    "unmapped": (
        setting("portfolios", to={"fund": ["aave_v3:treasury", "hyperliquid:trader", "binance:north"]}),
        "accounts that no portfolio maps: binance:south:multi; add them to [portfolios]",
    ),
    "twice": (
        setting("portfolios", "south", to=["binance:south", "binance:north:USDT"]),
        "accounts in two portfolios: binance:north:USDT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_runs_nothing(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    desk = again(tmp_path)
    # The correlations of the sample name factors that a case may have taken away.
    if name == "factors":
        desk.document["scenarios"]["correlation"] = {}
    change(desk)
    run = desk.sweep()
    assert run.exit_code == 2, run.stderr
    (condition,) = run.document["conditions"]
    assert (condition["condition"], condition["code"]) == ("ConfigurationError", 2)
    assert message in condition["message"]
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not (desk.folder / "results").exists()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "cannot read the configuration 'desk.toml': No such file"),
        (b"title = ", "desk.toml is not valid TOML: "),
        (b"\xff\xfe", "desk.toml is not valid TOML: "),
        (b"", "missing key scenarios"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, written: bytes | None, message: str) -> None:
    path = tmp_path / "desk.toml"
    if written is not None:
        path.write_bytes(written)
    answer = command("sweep", str(path))
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("written", "message"),
    [(None, "cannot read the parameter file 'venues/aave_v3.toml': No such file"), ("a = ", "is not valid TOML")],
)
def test_a_parameter_file_that_cannot_be_read(tmp_path: Path, written: str | None, message: str) -> None:
    desk = again(tmp_path)
    path = desk.folder / "venues" / "aave_v3.toml"
    path.unlink() if written is None else path.write_text(written)
    run = desk.sweep()
    assert run.exit_code == 2
    assert message in run.stderr


def test_without_any_time_the_run_asks_for_one(tmp_path: Path) -> None:
    desk = again(tmp_path)
    del desk.document["run"]["as_of"]
    for path in (desk.folder / "payloads").iterdir():
        content = json.loads(path.read_text()) | {"received_at": None}
        if isinstance(content["body"], dict):
            content["body"].pop("time", None)
        path.write_text(json.dumps(content))
    run = desk.sweep()
    assert run.exit_code == 2
    assert "no payload carries a time: set run.as_of" in run.stderr


# ---- accounts and portfolios -----------------------------------------------------------------------------------------


def test_an_account_that_nobody_read_leaves_its_portfolio_incomplete(tmp_path: Path, run: Run) -> None:
    desk = again(tmp_path)
    desk.document["portfolios"]["south"].append("binance:southern")
    lacking = desk.sweep()
    assert lacking.exit_code == 3
    assert lacking.conditions() == ["failures", "incomplete"]
    (failure,) = lacking.rows("failures")
    assert (failure["reason"], failure["venue"], failure["subject"]) == ("missing_field", "binance", "binance:southern")
    assert failure["message"] == "no account 'binance:southern' was read for portfolio 'south'"
    row = next(row for row in lacking.rows("portfolio_margin") if row["portfolio_id"] == "south")
    assert (row["complete"], json.loads(row["accounts_left_out"])) == (False, ["binance:southern"])
    assert comparable({"a": lacking.store.read("account_margin", lacking.run_id)}) == comparable(
        {"a": run.store.read("account_margin", run.run_id)}
    )


def test_a_portfolio_of_nothing_is_never_complete(tmp_path: Path) -> None:
    desk = again(tmp_path)
    desk.document["portfolios"]["nobody"] = []
    run = desk.sweep()
    assert run.exit_code == 3
    assert run.document["conditions"] == [
        {"condition": "incomplete", "code": 3, "message": "1 portfolios are incomplete: nobody"}
    ]
    row = next(row for row in run.document["portfolios"] if row["portfolio_id"] == "nobody")
    assert (row["status"], row["complete"], row["equity_usd"]) == ("no_complete_account", False, None)


@pytest.mark.parametrize("lost", ["south_south_multi_assets.json", "south_south_account.json"])
def test_a_payload_that_is_not_there(tmp_path: Path, run: Run, lost: str) -> None:
    desk = again(tmp_path)
    (desk.folder / "payloads" / lost).unlink()
    lacking = desk.sweep()
    assert lacking.exit_code == 5
    assert lacking.conditions()[0] == "unreachable"
    assert "incomplete" in lacking.conditions()
    (failure,) = lacking.failures(reason="unreachable")
    assert (failure["venue"], failure["payload"], failure["subject"]) == ("binance", lost, "south")
    assert failure["message"] == "cannot read the payload file: No such file or directory"
    fund, south = lacking.rows("portfolio_margin")
    assert fund | {"run_id": ""} == run.rows("portfolio_margin")[0] | {"run_id": ""}
    assert south["complete"] is False
    assert "binance:south" in json.loads(south["accounts_left_out"])


# ---- limits ----------------------------------------------------------------------------------------------------------

PORTFOLIO_METRICS = (
    "equity_usd", "health_minimum", "p_liquidation_any_at_horizon", "es_99_pooled_usd", "es_995_pooled_usd",
    "equity_to_es_99", "native_maintenance_usd",
)  # fmt: skip
ACCOUNT_METRICS = ("health", "p_liquidation_at_horizon")


def account_scope(metric: str, portfolio: str) -> str:
    """A scope of the metric's kind inside one of the two portfolios."""
    return (
        portfolio
        if metric in PORTFOLIO_METRICS
        else {"fund": "hyperliquid:trader", "south": "binance:south"}[portfolio]
    )


def test_limits_that_are_kept_say_nothing(tmp_path: Path) -> None:
    desk = again(tmp_path)
    bounds = {"minimum": -1e12}, {"maximum": 1e12}
    desk.document["limits"] = [
        {"metric": metric, **bound} for metric in (*PORTFOLIO_METRICS, *ACCOUNT_METRICS) for bound in bounds
    ]
    run = desk.sweep()
    assert run.exit_code == 0, run.document["conditions"]
    assert run.document["conditions"] == []


def test_every_metric_can_be_breached_on_either_side(tmp_path: Path, run: Run) -> None:
    desk = again(tmp_path)
    metrics = (*PORTFOLIO_METRICS, *ACCOUNT_METRICS)
    desk.document["limits"] = [
        {"metric": metric, "scope": account_scope(metric, "south"), **bound}
        for metric in metrics
        for bound in ({"minimum": 1e12}, {"maximum": -1e12})
    ]
    breached = desk.sweep()
    assert breached.exit_code == 4
    conditions = breached.document["conditions"]
    assert {(c["condition"], c["code"]) for c in conditions} == {("limit_breached", 4)}
    assert len(conditions) == 2 * len(metrics)
    portfolio = next(row for row in run.rows("portfolio_margin") if row["portfolio_id"] == "south")
    account = next(row for row in run.rows("account_margin") if row["account_id"] == "binance:south:multi")
    for number, metric in enumerate(metrics):
        row, name = (portfolio, "south") if metric in PORTFOLIO_METRICS else (account, "binance:south:multi")
        below, above = conditions[2 * number : 2 * number + 2]
        assert below["message"] == f"{metric} of {name} is {row[metric]:.6g}, below the limit 1e+12"
        assert above["message"] == f"{metric} of {name} is {row[metric]:.6g}, above the limit -1e+12"


def test_a_limit_at_the_value_itself_is_kept(tmp_path: Path, run: Run) -> None:
    desk = again(tmp_path)
    value = run.rows("portfolio_margin")[0]["es_99_pooled_usd"]
    desk.document["limits"] = [
        {"metric": "es_99_pooled_usd", "scope": "fund", side: value} for side in ("minimum", "maximum")
    ]
    assert desk.sweep().conditions() == []


def test_a_limit_without_a_figure_is_undecided_and_never_kept(tmp_path: Path) -> None:
    desk = again(tmp_path)
    (desk.folder / "payloads" / "south_south_account.json").write_text("{")
    metrics = (*PORTFOLIO_METRICS, *ACCOUNT_METRICS)
    desk.document["limits"] = [
        {"metric": metric, "scope": account_scope(metric, "south"), "minimum": -1e12} for metric in metrics
    ] + [{"metric": "equity_usd", "scope": "sowth", "minimum": 0.0}]
    run = desk.sweep()
    assert run.exit_code == 3
    undecided = [c for c in run.document["conditions"] if c["condition"] == "limit_undecided"]
    assert {c["code"] for c in undecided} == {3}
    messages = [c["message"] for c in undecided]
    assert len(messages) == len(metrics) + 1
    for metric, message in zip(metrics, messages, strict=False):
        assert message.startswith(f"{metric} of ")
        assert "is undecided (" in message
    assert messages[-1] == "equity_usd of sowth: nothing of that name in this run"


def test_an_account_without_requirement_has_no_health_to_limit(tmp_path: Path, run: Run) -> None:
    spot = next(row for row in run.rows("account_margin") if row["account_id"] == "hyperliquid:trader:spot")
    assert (spot["status"], spot["health"]) == ("no_requirement", None)
    desk = again(tmp_path)
    desk.document["limits"] = [{"metric": "health", "scope": "hyperliquid:trader:spot", "minimum": 1.0}]
    assert desk.sweep().conditions() == []


def test_the_worst_condition_decides_the_code_and_all_are_listed(tmp_path: Path) -> None:
    desk = again(tmp_path)
    breach = {"metric": "equity_usd", "scope": "fund", "minimum": 1e12}
    (desk.folder / "payloads" / "south_south_account.json").write_text("{")
    assert desk.sweep().exit_code == 3
    (desk.folder / "payloads" / "south_south_multi_assets.json").unlink()
    lost = desk.sweep()
    assert lost.exit_code == 5
    assert sorted({c["code"] for c in lost.document["conditions"]}) == [3, 5]
    desk.document["limits"] = [breach, {"metric": "equity_usd", "scope": "south", "minimum": 0.0}]
    all_of_them = desk.sweep()
    assert all_of_them.exit_code == 4
    listed = [(c["condition"], c["code"]) for c in all_of_them.document["conditions"]]
    assert listed == [
        ("limit_breached", 4), ("limit_undecided", 3), ("unreachable", 5), ("failures", 3), ("incomplete", 3),
    ]  # fmt: skip
    plain = command("sweep", str(desk.write()), "--fresh")
    assert plain.exit_code == 4
    for name, _ in listed:
        assert any(line.startswith(f"{name}: ") for line in plain.stderr.splitlines())
        assert f"{name}: " not in plain.stdout


# ---- overrides -------------------------------------------------------------------------------------------------------


def test_what_is_set_on_the_line_wins_over_the_environment_over_the_file(desk: Desk, run: Run) -> None:
    def seed(*arguments: str, **environment: str) -> int:
        other = desk.sweep(*arguments, environment=environment)
        assert other.exit_code == 0, other.stderr
        (row,) = other.rows("runs")
        assert json.loads(row["configuration"])["run"]["seed"] == row["seed"]
        return int(row["seed"])

    assert run.rows("runs")[0]["seed"] == 7
    assert seed(CROSSMARGIN__RUN__SEED="8") == 8
    assert seed("--set", "run.seed=9", CROSSMARGIN__RUN__SEED="8") == 9
    assert seed("--set", "run.seed=9", "--set", "run.seed=10") == 10


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--set", "run.seed"), {}, "--set 'run.seed': expected a.b=value"),
        (("--set", "run.sede=1"), {}, "unknown key run.sede (did you mean 'seed'?)"),
        (("--set", "title.a=1"), {}, "'title' is no section"),
        ((), {"CROSSMARGIN__RUN__SEDE": "1"}, "unknown key run.sede"),
        (("--set", "run.seed=-1"), {}, "run.seed: "),
    ],
)
def test_an_override_that_fits_nowhere(
    desk: Desk, arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    run = desk.sweep(*arguments, environment=environment)
    assert run.exit_code == 2
    assert message in run.stderr


# ---- report and schema -----------------------------------------------------------------------------------------------


def test_the_report_of_a_run_by_its_id(tmp_path: Path, run: Run, desk: Desk) -> None:
    store = str(desk.folder / "results")
    page = Path(run.document["report"]).read_text(encoding="utf-8")
    default = command("report", run.run_id, "--store", store)
    assert default == Answer(0, f"{store}/reports/{run.run_id}.html\n", "")
    assert Path(default.stdout.strip()).read_text(encoding="utf-8") == page
    chosen = command("report", run.run_id, "--store", store, "--output", str(tmp_path / "a" / "b.html"), "--json")
    assert json.loads(chosen.stdout) == {"run_id": run.run_id, "report": str(tmp_path / "a" / "b.html")}
    assert (tmp_path / "a" / "b.html").read_text(encoding="utf-8") == page


def test_the_latest_report(tmp_path: Path, desk: Desk) -> None:
    newest = desk.sweep("--set", "run.seed=11")
    answer = command(
        "report", "latest", "--store", str(desk.folder / "results"), "--output", str(tmp_path / "r.html"), "--json"
    )
    assert json.loads(answer.stdout)["run_id"] == newest.run_id


def test_a_report_of_a_run_that_is_not_there(tmp_path: Path, run: Run, desk: Desk) -> None:
    store = str(desk.folder / "results")
    near = command("report", run.run_id[:-1] + "x", "--store", store)
    assert (near.exit_code, near.stdout) == (2, "")
    assert f"(did you mean '{run.run_id}'?)" in near.stderr
    for name in ("nothing", "../../x", "'; drop table runs; --"):
        answer = command("report", name, "--store", store)
        assert (answer.exit_code, answer.stdout) == (2, "")
        assert "holds no finished run" in answer.stderr
    for name in ("latest", run.run_id):
        answer = command("report", name, "--store", str(tmp_path / "elsewhere"))
        assert answer.exit_code == 2
        assert "elsewhere' holds no finished run" in answer.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_a_report_that_cannot_be_written(tmp_path: Path, run: Run, desk: Desk) -> None:
    answer = command("report", run.run_id, "--store", str(desk.folder / "results"), "--output", str(tmp_path))
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert f"cannot write the report to '{tmp_path}': Is a directory" in answer.stderr
    other = again(tmp_path)
    other.document["report"]["path"] = "desk.toml/reports"
    stored = other.sweep()
    assert stored.exit_code == 1
    assert "is stored, but its report cannot be written" in stored.stderr
    assert "Traceback" not in answer.stderr + stored.stderr
    assert len(other.store().committed_runs()) == 1


def test_the_schema_of_all_tables_and_of_one() -> None:
    everything = command("schema")
    assert everything.exit_code == 0
    for name, of in CANONICAL.items():
        assert f"{name} (canonical, version {table_version(of)[1]})" in everything.stdout
    for name, of in RESULTS.items():
        assert f"{name} (result, version {table_version(of)[1]})" in everything.stdout
    one = command("schema", "marks")
    assert one.stdout.splitlines()[0] == f"marks (canonical, version {table_version(CANONICAL['marks'])[1]})"
    assert len(one.stdout.strip().splitlines()) == 1 + len(CANONICAL["marks"])
    (document,) = json.loads(command("schema", "account_margin", "--json").stdout)
    assert (document["kind"], document["table"]) == ("result", "account_margin")
    assert [column["name"] for column in document["columns"]] == RESULTS["account_margin"].names
    both = json.loads(command("schema", "failures", "--json").stdout)  # a canonical table and a result table
    assert [entry["kind"] for entry in both] == ["canonical", "result"]


def test_the_schema_of_no_table() -> None:
    answer = command("schema", "acounts")
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "no table 'acounts' (did you mean 'accounts'?)" in answer.stderr
