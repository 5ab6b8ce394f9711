"""The configuration: every mistake named with its place, overrides in order, a digest of what decides the numbers."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aggregator.config import (
    ENVIRONMENT_PREFIX,
    TILE,
    Configuration,
    FilteredHistoryFigures,
    MultivariateTFigures,
    Resolved,
    load_configuration,
)
from aggregator.errors import ConfigurationError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SECRET = "hunter2hunter2"

DESK = """
title = "Desk"

[run]
seed = 5

[scenarios]
generator = "multivariate_t"
nu = 4
daily_std = { "price:BTC" = 0.03, "price:ETH" = 0.04 }
correlation = { "price:BTC | price:ETH" = 0.8 }

[scenarios.proxies.SOL]
factor = "price:ETH"

[[sources]]
venue = "binance"
owner = "east"
payloads = [{ file = "account.json", request = "fapi/account" }, { file = "marks.json" }]

[portfolios]
desk = ["binance:east"]

[[limits]]
metric = "health"
minimum = 1.5
"""


def loaded(folder: Path, text: str = DESK, **options: Any) -> Resolved:
    path = folder / "desk.toml"
    path.write_text(text, encoding="utf-8")
    return load_configuration(path, **options)


def refused(folder: Path, text: str, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loaded(folder, text, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(old: str, new: str) -> str:
    assert DESK.count(old) == 1, old
    return DESK.replace(old, new)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_small_configuration_has_every_default(tmp_path: Path) -> None:
    configuration = loaded(tmp_path).configuration
    assert configuration.run.seed == 5
    assert configuration.run.horizon_days == 1.0
    assert configuration.run.as_of is None
    assert configuration.data.max_mark_gap == 0.02
    assert (configuration.reconcile.bound_usd, configuration.reconcile.bound_relative) == (1.0, 0.001)
    assert isinstance(configuration.scenarios, MultivariateTFigures)
    assert configuration.scenarios.proxies["SOL"].factor == "price:ETH"
    assert configuration.scenarios.proxies["SOL"].scale == 1.0
    assert configuration.sources[0].snapshot == "main"
    assert configuration.sources[0].payloads[1].request == ""
    assert configuration.limits[0].scope == "*"
    assert configuration.engine.scenario_chunk % TILE == 0


def test_the_generator_chooses_the_section(tmp_path: Path) -> None:
    start, end = DESK.index("[scenarios]"), DESK.index("[[sources]]")
    text = DESK[:start] + '[scenarios]\ngenerator = "filtered_history"\nhistory = "h.parquet"\n' + DESK[end:]
    scenarios = loaded(tmp_path, text).configuration.scenarios
    assert isinstance(scenarios, FilteredHistoryFigures)
    assert scenarios.anchors == ("BTC", "ETH")
    assert scenarios.scenarios == 0


OF_OTHER_READERS = (*("assets.toml", "calibration.toml", "governance.toml", "routes.toml", "stress.toml"),)


@pytest.mark.parametrize("path", sorted(p.name for p in CONFIGS.glob("*.toml") if p.name not in OF_OTHER_READERS))
def test_every_shipped_configuration_loads(path: str) -> None:
    resolved = load_configuration(CONFIGS / path)
    assert resolved.folder == CONFIGS
    assert resolved.path(resolved.configuration.assets).is_file()


def test_a_bound_of_zero_switches_the_bound_off(tmp_path: Path) -> None:
    data = loaded(tmp_path, overrides=["data.max_age_s=0", "data.max_mark_gap=0"]).configuration.data
    assert not data.max_age_s
    assert not data.max_mark_gap


def test_paths_are_relative_to_the_file_and_not_to_where_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "configs" / "desk.toml").write_text(DESK)
    monkeypatch.chdir(tmp_path / "elsewhere")
    resolved = load_configuration(Path("..") / "configs" / "desk.toml")
    assert resolved.folder == tmp_path / "configs"
    assert resolved.path("account.json") == tmp_path / "configs" / "account.json"
    assert resolved.path("../results") == tmp_path / "results"
    assert resolved.path(str(tmp_path / "absolute")) == tmp_path / "absolute"


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        loaded(tmp_path).configuration.title = "other"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the configuration 'none.toml': No such file"):
        load_configuration(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="cannot read the configuration"):
        load_configuration(tmp_path)


@pytest.mark.parametrize("text", ["[run", "a = ", "[run]\n[run]", 'title = "a"\ntitle = "b"', "x = " + "[" * 50_000])
def test_a_toml_error_is_one(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith("desk.toml is not valid TOML: ")


def test_a_file_that_is_no_utf8_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_bytes(b'title = "\xe4"')
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        load_configuration(tmp_path / "desk.toml")


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "useful"),
    [
        ('title = "Desk"', 'titel = "Desk"', "unknown key titel (did you mean 'title'?)"),
        ("[run]", "[rum]", "unknown key rum (did you mean 'run'?)"),
        ("seed = 5", "sead = 5", "unknown key run.sead (did you mean 'seed'?)"),
        ("nu = 4", "nu = 4\nscenarois = 9", "unknown key scenarios.scenarois (did you mean 'scenarios'?)"),
        ("nu = 4", "nu = 4\ndaily_sdt = 9", "unknown key scenarios.daily_sdt (did you mean 'daily_std'?)"),
        ("nu = 4", "nu = 4\newma_lambda = 0.9", "unknown key scenarios.ewma_lambda"),
        ('factor = "price:ETH"', 'factor = "price:ETH"\nscal = 2', "proxies.SOL.scal (did you mean 'scale'?)"),
        ('owner = "east"', 'owener = "east"', "unknown key sources.0.owener (did you mean 'owner'?)"),
        ('request = "fapi/account"', 'reqest = "x"', "sources.0.payloads.0.reqest (did you mean 'request'?)"),
        ('metric = "health"', 'metric = "health"\nscop = "*"', "unknown key limits.0.scop (did you mean 'scope'?)"),
        ("seed = 5", "zzz = 5", "unknown key run.zzz"),
    ],
)  # fmt: skip
def test_an_unknown_key_anywhere_is_named_with_the_nearest_right_one(
    tmp_path: Path, old: str, new: str, useful: str
) -> None:
    message = refused(tmp_path, changed(old, new))
    assert useful in message
    assert "at least 1 item" not in message, "a list is not empty because an entry of it is wrong"


def test_a_hint_never_names_the_key_itself_or_one_of_the_other_generator(tmp_path: Path) -> None:
    message = refused(tmp_path, changed("nu = 4", "nu = 4\nhistory = 'h.parquet'\nanchors = ['BTC']"))
    assert message == "desk.toml: unknown key scenarios.history; unknown key scenarios.anchors"


@pytest.mark.parametrize(
    ("old", "new", "useful"),
    [
        ("nu = 4", "", "missing key scenarios.nu"),
        ('venue = "binance"', "", "missing key sources.0.venue"),
        ('file = "account.json", ', "", "missing key sources.0.payloads.0.file"),
        ('factor = "price:ETH"', "", "missing key scenarios.proxies.SOL.factor"),
        ('metric = "health"', "", "missing key limits.0.metric"),
        ('[portfolios]\ndesk = ["binance:east"]', "", "missing key portfolios"),
        (
            'generator = "multivariate_t"',
            "",
            "missing key scenarios.generator: one of multivariate_t, filtered_history, calibrated",
        ),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, old: str, new: str, useful: str) -> None:
    assert refused(tmp_path, changed(old, new)) == f"desk.toml: {useful}"


def test_an_empty_file_misses_what_every_run_needs(tmp_path: Path) -> None:
    message = refused(tmp_path, "")
    for key in ("scenarios", "sources", "portfolios"):
        assert f"missing key {key}" in message


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("seed = 5", "seed = 1.5", "run.seed"),
        ("seed = 5", "seed = -1", "run.seed"),
        ("seed = 5", "seed = 9223372036854775808", "run.seed"),
        ("seed = 5", 'seed = "five"', "run.seed"),
        ("seed = 5", "horizon_days = 0", "run.horizon_days"),
        ("seed = 5", "horizon_days = 61", "run.horizon_days"),
        ("seed = 5", "horizon_days = nan", "run.horizon_days"),
        ("seed = 5", "worst_scenarios = 0", "run.worst_scenarios"),
        ("[run]\nseed = 5", "[run]\n[data]\nmax_age_s = inf", "data.max_age_s"),
        ("[run]\nseed = 5", "[run]\n[data]\nmax_age_s = -1", "data.max_age_s"),
        ("[run]\nseed = 5", "[run]\n[data]\nmax_mark_gap = nan", "data.max_mark_gap"),
        ("[run]\nseed = 5", "[run]\n[reconcile]\nbound_usd = -1", "reconcile.bound_usd"),
        ("[run]\nseed = 5", "[run]\n[reconcile]\nbound_relative = inf", "reconcile.bound_relative"),
        ("[run]\nseed = 5", "run = 5", "run"),
        ("nu = 4", "nu = 2", "scenarios.nu"),
        ("nu = 4", "nu = inf", "scenarios.nu"),
        ("nu = 4", "nu = 4\nscenarios = 99", "scenarios.scenarios"),
        ("nu = 4", "nu = 4\nscenarios = 10_000_001", "scenarios.scenarios"),
        ("= 0.03", "= nan", "scenarios.daily_std.price:BTC"),
        ("= 0.03", '= "much"', "scenarios.daily_std.price:BTC"),
        ("= 0.8", "= inf", "scenarios.correlation.price:BTC | price:ETH"),
        ('generator = "multivariate_t"', 'generator = "montecarlo"', "scenarios.generator"),
        ('factor = "price:ETH"', 'factor = "price:ETH"\nscale = 0', "scenarios.proxies.SOL.scale"),
        ('venue = "binance"', "venue = 5", "sources.0.venue"),
        ('owner = "east"', 'owner = "east:west"', "sources.0.owner"),
        ('owner = "east"', 'owner = "../east"', "sources.0.owner"),
        ('owner = "east"', 'owner = "east\\n"', "sources.0.owner"),
        ('desk = ["binance:east"]', 'desk = "binance:east"', "portfolios.desk"),
        ('desk = ["binance:east"]', "", "portfolios"),
        ('metric = "health"', 'metric = "wealth"', "limits.0.metric"),
        ("minimum = 1.5", "minimum = nan", "limits.0.minimum"),
        ("minimum = 1.5", "", "limits.0"),
        ("minimum = 1.5", "minimum = 1.5\nmaximum = 2", "limits.0"),
    ],
)
def test_a_value_of_the_wrong_kind_or_size_is_named_by_its_place(
    tmp_path: Path, old: str, new: str, place: str
) -> None:
    assert refused(tmp_path, changed(old, new)).startswith(f"desk.toml: {place}: ")


def test_no_source_and_no_payload_are_refused(tmp_path: Path) -> None:
    start, end = DESK.index("[[sources]]"), DESK.index("[portfolios]")
    assert "missing key sources" in refused(tmp_path, DESK[:start] + DESK[end:])
    assert "sources: " in refused(tmp_path, "sources = []\n" + DESK[:start] + DESK[end:])
    message = refused(tmp_path, re.sub("payloads = .*", "payloads = []", DESK))
    assert "sources.0.payloads: " in message


@pytest.mark.parametrize("chunk", [0, 255, 257, 4095])
def test_a_chunk_is_whole_tiles(tmp_path: Path, chunk: int) -> None:
    message = refused(tmp_path, DESK + f"[engine]\nscenario_chunk = {chunk}\n")
    assert message.startswith("desk.toml: engine.scenario_chunk: ")
    assert "256" in message


@pytest.mark.parametrize("chunk", [256, 512, 4096])
def test_whole_tiles_are_accepted(tmp_path: Path, chunk: int) -> None:
    engine = loaded(tmp_path, DESK + f"[engine]\nscenario_chunk = {chunk}\n").configuration.engine
    assert engine.scenario_chunk == chunk


def test_a_time_needs_a_zone_and_becomes_utc(tmp_path: Path) -> None:
    for text in ("2024-06-30T02:00:00+02:00", '"2024-06-30T00:00:00Z"'):
        run = loaded(tmp_path, changed("seed = 5", f"as_of = {text}")).configuration.run
        assert run.as_of == datetime(2024, 6, 30, tzinfo=UTC)
        assert run.as_of.tzinfo is UTC
    for text in ("2024-06-30T00:00:00", "2024-06-30", '"2024-06-30 00:00:00"'):
        message = refused(tmp_path, changed("seed = 5", f"as_of = {text}"))
        assert message == "desk.toml: run.as_of: as_of needs a time zone, for example 2024-06-30T00:00:00Z"
    refused(tmp_path, changed("seed = 5", "as_of = 0001-01-01T00:00:00+23:00"))


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, DESK.replace("nu = 4", "nu = 1").replace("seed = 5", "sed = 5") + "minimun = 3\n")
    assert message.count("; ") == 2
    for place in ("run.sed", "scenarios.nu", "limits.0.minimun"):
        assert place in message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed = 5", f'seed = "{SECRET}"'),
        ("seed = 5", f'as_of = "{SECRET}"'),
        ("seed = 5", f'sed = "{SECRET}"'),
        ("nu = 4", f'nu = "{SECRET}"'),
        ('generator = "multivariate_t"', f'generator = "{SECRET}"'),
        ('venue = "binance"', f'venue = ["{SECRET}"]'),
        ('owner = "east"', f'owner = "{SECRET}:x"'),
        ('metric = "health"', f'metric = "{SECRET}"'),
        ("minimum = 1.5", f'minimum = "{SECRET}"'),
        ('desk = ["binance:east"]', f'desk = "{SECRET}"'),
        ('title = "Desk"', f'title = "{SECRET}'),
    ],
)
def test_no_message_repeats_a_value(tmp_path: Path, old: str, new: str) -> None:
    assert SECRET not in refused(tmp_path, changed(old, new))


def test_no_message_repeats_a_value_of_the_environment(tmp_path: Path) -> None:
    assert SECRET not in refused(tmp_path, DESK, environment={f"{ENVIRONMENT_PREFIX}RUN__SEED": SECRET})


# ---- overrides -------------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    environment = {"CROSSMARGIN__RUN__SEED": "6", "CROSSMARGIN__RUN__DETAIL_TOP": "7"}
    run = loaded(tmp_path, environment=environment, overrides=["run.seed=8"]).configuration.run
    assert (run.seed, run.detail_top) == (8, 7)
    assert loaded(tmp_path, environment=environment).configuration.run.seed == 6
    assert loaded(tmp_path).configuration.run.seed == 5


def test_the_last_of_two_overrides_wins(tmp_path: Path) -> None:
    assert loaded(tmp_path, overrides=["run.seed=8", "run.seed=9"]).configuration.run.seed == 9


def test_the_environment_counts_only_when_it_is_given_and_prefixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSMARGIN__RUN__SEED", "6")
    assert loaded(tmp_path).configuration.run.seed == 5
    unrelated = {"CROSSMARGIN_RECORDED": "x", "RUN__SEED": "6", "crossmargin__run__seed": "6"}
    assert loaded(tmp_path, environment=unrelated).configuration.run.seed == 5


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("title=plain text", "plain text"),
        ("title=a=b", "a=b"),
        ('title="quoted = text"', "quoted = text"),
        (" title = spaced ", "spaced"),
        ("title=", ""),
        ("title=one\nrun = 2", "one\nrun = 2"),
        ("title='x'\nrun.seed = 2", "'x'\nrun.seed = 2"),
        ("title=" + "[" * 5000, "[" * 5000),
    ],
)
def test_an_override_is_a_toml_value_or_else_a_text(tmp_path: Path, override: str, read: str) -> None:
    configuration = loaded(tmp_path, overrides=[override]).configuration
    assert configuration.title == read
    assert configuration.run.seed == 5


def test_an_override_reaches_numbers_times_lists_and_new_sections(tmp_path: Path) -> None:
    configuration = loaded(
        tmp_path,
        overrides=[
            "run.as_of=2024-06-30T00:00:00Z",
            'portfolios.other=["binance:west"]',
            "scenarios.daily_std.price:BTC=0.5",
            "engine.scenario_chunk=512",
        ],
    ).configuration
    assert configuration.run.as_of == datetime(2024, 6, 30, tzinfo=UTC)
    assert configuration.portfolios["other"] == ("binance:west",)
    assert isinstance(configuration.scenarios, MultivariateTFigures)
    assert configuration.scenarios.daily_std["price:BTC"] == 0.5
    assert configuration.engine.scenario_chunk == 512


def test_an_override_is_checked_like_the_file(tmp_path: Path) -> None:
    assert "unknown key run.sead (did you mean 'seed'?)" in refused(tmp_path, DESK, overrides=["run.sead=1"])
    assert "engine.scenario_chunk" in refused(tmp_path, DESK, environment={"CROSSMARGIN__ENGINE__SCENARIO_CHUNK": "1"})


def test_an_override_without_a_value_or_through_a_value_is_refused_by_name(tmp_path: Path) -> None:
    assert refused(tmp_path, DESK, overrides=["run.seed"]) == "--set 'run.seed': expected a.b=value"
    assert refused(tmp_path, DESK, overrides=["title.x=1", "title.y=2"]) == "--set title.x: 'title' is no section"
    assert "'sources' is no section" in refused(tmp_path, DESK, overrides=["sources.0.venue=derive"])
    message = refused(tmp_path, DESK, environment={"CROSSMARGIN__TITLE__X": "1"})
    assert message == "CROSSMARGIN__TITLE__X: 'title' is no section"


# ---- digest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "title=another",
        "engine.scenario_chunk=512",
        "engine.host_devices=3",
        "engine.shard_portfolios=1",
        "store.path=elsewhere",
        "store.resume_within_s=0",
        "report.path=",
        "tiers.market=history",
    ],
)
def test_the_digest_does_not_depend_on_what_changes_no_number(tmp_path: Path, override: str) -> None:
    plain, other = loaded(tmp_path), loaded(tmp_path, overrides=[override])
    assert other.text() != plain.text(), "the override did something"
    assert other.digest() == plain.digest()


@pytest.mark.parametrize(
    "override",
    [
        "assets=other.toml",
        "run.as_of=2024-06-30T00:00:00Z",
        "run.seed=6",
        "run.horizon_days=2",
        "run.detail_top=1",
        "run.worst_scenarios=1",
        "data.max_age_s=1",
        "data.max_mark_gap=1",
        "reconcile.bound_usd=2",
        "reconcile.bound_relative=0.01",
        "scenarios.scenarios=500",
        "scenarios.nu=5",
        "scenarios.daily_std.price:BTC=0.031",
        "scenarios.correlation={}",
        "scenarios.default_correlation=0.1",
        "scenarios.proxies.SOL.scale=2",
        "requirement.offset_cap=1",
        "requirement.grid.points=3",
        "stress=stress.toml",
        "stress_history=days.parquet",
        "routes=routes.toml",
        "paths.scenarios=256",
        "paths.steps=2",
        'portfolios.desk=["binance:west"]',
        'portfolios.other=["binance:west"]',
        "limits=[]",
        'sources=[{venue = "binance", owner = "east", payloads = [{file = "account.json"}]}]',
        'sources=[{venue = "binance", owner = "east", snapshot = "b", payloads = [{file = "account.json"}]}]',
    ],
)
def test_the_digest_depends_on_everything_else(tmp_path: Path, override: str) -> None:
    assert loaded(tmp_path, overrides=[override]).digest() != loaded(tmp_path).digest()


def test_every_top_level_key_is_either_in_the_digest_or_tried_above_as_left_out() -> None:
    assert set(Configuration.model_fields) == {
        *("title", "engine", "store", "report", "tiers"),
        *(
            "assets",
            "run",
            "data",
            "reconcile",
            "scenarios",
            "requirement",
            "stress",
            "stress_history",
            "routes",
            "paths",
        ),
        *("sources", "portfolios", "limits"),
    }


def test_the_digest_depends_neither_on_the_order_of_keys_nor_on_spelling_nor_on_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    text = DESK.replace("nu = 4", "nu = 4.0").replace(
        'daily_std = { "price:BTC" = 0.03, "price:ETH" = 0.04 }',
        'daily_std = { "price:ETH" = 4e-2, "price:BTC" = 0.030 }',
    )
    assert text != DESK
    assert loaded(tmp_path / "other", text).digest() == loaded(tmp_path).digest()


def test_one_instant_in_two_zones_is_one_digest(tmp_path: Path) -> None:
    a = loaded(tmp_path, overrides=["run.as_of=2024-06-30T00:00:00Z"])
    b = loaded(tmp_path, overrides=["run.as_of=2024-06-30T02:00:00+02:00"])
    assert a.digest() == b.digest()


def test_the_canonical_text_carries_no_path_of_the_machine(tmp_path: Path) -> None:
    resolved = loaded(tmp_path)
    assert str(tmp_path) not in resolved.text()
    assert re.fullmatch("[0-9a-f]{64}", resolved.digest())


def test_an_environment_variable_finds_a_key_whatever_its_case(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "[scenarios]\ngenerator = 'multivariate_t'\nnu = 4.0\ndaily_std = { 'price:BTC' = 0.03 }\n"
        "[[sources]]\nvenue = 'x'\npayloads = [{ file = 'a.json' }]\n[portfolios]\nMain = ['x:a']\n"
    )
    environment = {"CROSSMARGIN__PORTFOLIOS__MAIN": "['x:b']"}
    assert load_configuration(path, environment=environment).configuration.portfolios == {"Main": ("x:b",)}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (['scenarios.overlays=["depeg", "depeg"]'], "each acts once"),
        (["scenarios.overlays=[]", "scenarios.jumps.stress_loading=1"], "scenarios.jumps is read with the overlay"),
        (["scenarios.oracle_error.error_std=0.1"], "is read with the overlay oracle_error alone"),
        (["scenarios.liquidity_drought.least=0.5"], "scenarios.liquidity_drought is read with the overlay"),
        (['scenarios.overlays=["oracle_error"]', "scenarios.oracle_error.error_std=1e300"], "oracle_error.error_std"),
        (['scenarios.overlays=["liquidity_drought"]', "scenarios.liquidity_drought.least=1e-300"], "least"),
    ],
)
def test_a_section_without_its_overlay_and_absurd_figures_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_configuration(CONFIGS / "quickstart.toml", overrides=overrides)
