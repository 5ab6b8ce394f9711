"""`calibrate` end to end on a simulated history: what is read, refused and written, no look-ahead, read back equal."""

import json
import math
import os
import subprocess
import sys
import time
import tomllib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from aggregator.calibrate import Calibrated, calibrate, run_calibrate
from aggregator.calibration.tails import ParetoFit, SemiParametricLaw, law_moments
from aggregator.calibration_file import CalibrationFile, checked_calibration, read_calibration
from aggregator.calibration_request import CalibrationRequest, Window, read_request, request_path
from aggregator.calibration_text import calibration_text
from aggregator.errors import ConfigurationError, DataError, ExitCode, FailureReason

ROOT = Path(__file__).resolve().parent.parent
FIRST_DAY = date(2022, 1, 1)
DAYS = 800
AS_OF = datetime(2024, 3, 11, tzinfo=UTC)  # the day after the last of DAYS
RECORDED_SECONDS = 60.0
_GOOD_REQUEST = 'as_of = 2024-06-30T00:00:00Z\nhistory = "a"\n'

Row = dict[str, Any]


class History(NamedTuple):
    """Rows of the two tables."""

    bars: list[Row]
    context: list[Row]


def opened(number: int) -> datetime:
    return datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC) + timedelta(days=number)


def bars(asset: str, market: str, closes: np.ndarray, *, first: int = 0, volume: float = 1e6) -> list[Row]:
    return [
        {
            "asset": asset,
            "market": market,
            "ts": opened(first + i),
            "open": float(close),
            "high": float(close) * 1.01,
            "low": float(close) * 0.99,
            "close": float(close),
            "volume": volume / float(close),
            "quote_vol": volume if market == "perp" else float("nan"),
        }
        for i, close in enumerate(closes)
    ]


def simulated_history(days: int = DAYS) -> History:
    """BTC, ETH, SOL with fat tails and one factor; OLD ends early, NEW is 30 days old; coins, a staked token, DVOL."""
    rng = np.random.default_rng(2024)
    market = 0.02 * rng.standard_t(4.0, days)
    paths = {
        name: 100.0 * np.exp(np.cumsum(beta * market + own * rng.standard_t(5.0, days)))
        for name, beta, own in (("BTC", 1.0, 0.005), ("ETH", 1.2, 0.012), ("SOL", 1.4, 0.03), ("OLD", 1.0, 0.02))
    }
    rows = []
    for name, volume in (("BTC", 1e9), ("ETH", 5e8), ("SOL", 1e8)):
        rows += bars(name, "perp", paths[name], volume=volume)
        rows += bars(name, "spot", paths[name] * np.exp(5e-4 * rng.standard_normal(days)))
    rows += bars("OLD", "perp", paths["OLD"][:500])
    rows += bars("NEW", "perp", paths["OLD"][-31:], first=days - 31)
    coin = np.round(np.exp(4e-4 * rng.standard_normal(days)), 4)
    coin[300:304] = [0.96, 0.93, 0.97, 0.99]
    rows += bars("USDC", "spot", coin)
    rows += bars("BTC", "spot_long", paths["BTC"] * np.exp(3e-4 * rng.standard_normal(days)))
    rows += bars("BETH", "spot", paths["ETH"] * np.exp(-0.002 + 1e-3 * rng.standard_normal(days)))
    returns = np.diff(np.log(paths["BTC"]), prepend=np.log(100.0))
    vol = 60.0 * np.exp(
        np.cumsum(0.8 * (np.abs(returns) - np.mean(np.abs(returns))) + 0.03 * rng.standard_normal(days))
    )
    context = [{"asset": "BTC", "series": "dvol_close", "ts": opened(i), "value": float(v)} for i, v in enumerate(vol)]
    rate = 1e-4
    for i in range(3 * days):
        rate = 1e-4 + 0.8 * (rate - 1e-4) + 5e-5 * float(rng.standard_normal())
        stamp = opened(0) + timedelta(hours=8 * i)
        context.append({"asset": "BTC", "series": "funding_8h", "ts": stamp, "value": rate})
    return History(rows, context)


def written(history: History, folder: Path) -> Path:
    times = pa.timestamp("ms", tz="UTC")
    for name, rows in (("bars.parquet", history.bars), ("context.parquet", history.context)):
        table = pa.Table.from_pylist(rows)
        table = table.set_column(table.column_names.index("ts"), "ts", table["ts"].cast(times))
        pa.parquet.write_table(table, folder / name)
    return folder


def request(**changes: Any) -> CalibrationRequest:
    given: dict[str, Any] = {
        "as_of": AS_OF,
        "history": "bars.parquet",
        "context": "context.parquet",
        "vols": ("BTC", "ETH"),
        "windows": (Window(name="first_year", first=date(2022, 1, 2), last=date(2022, 12, 31)),),
        "depeg_sample": ("USDC",),
        "correlation_days": 400,
    }
    return CalibrationRequest(**{**given, **changes})


@pytest.fixture(scope="module")
def history() -> History:
    return simulated_history()


@pytest.fixture(scope="module")
def calibrated(history: History, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return calibrate(request(), written(history, tmp_path_factory.mktemp("history")))


@pytest.fixture(scope="module")
def text(calibrated: Calibrated) -> str:
    return calibration_text(calibrated.file)


# ---- what is in the file ---------------------------------------------------------------------------------------------


def test_every_section_is_there_for_every_factor_that_has_one(calibrated: Calibrated) -> None:
    file = calibrated.file
    prices = ["price:BTC", "price:ETH", "price:SOL"]
    assert list(file.factors) == [*prices, "vol:BTC", "vol:ETH", "peg:USDC", "peg:USDT", "peg:DAI", "peg:wstETH"]
    assert list(file.laws) == ["current", "stressed_first_year"]
    assert list(file.margins) == list(file.garch) == [*prices, "vol:BTC", "vol:ETH"]
    assert list(file.jumps.assets) == prices
    assert all(list(state.daily_std) == prices for state in file.regimes.states)
    assert list(file.liquidity) == list(file.basis) == ["BTC", "ETH", "SOL"]
    assert (list(file.funding), list(file.pegs), list(file.discounts)) == (["BTC"], ["USDC", "USDT", "DAI"], ["wstETH"])
    assert (file.calibration.days, file.calibration.last_date) == (DAYS - 1, date(2024, 3, 10))
    assert calibrated.failures == ()


def _next_std(changes: np.ndarray) -> float:
    """EWMA volatility of the next day times the root mean square of the residuals, day by day: the slow twin."""
    variance = sum(float(r) ** 2 for r in changes[:30]) / 30
    squares: list[float] = []
    for i in range(30, len(changes) + 1):
        year = [float(r) ** 2 for r in changes[max(0, i - 365) : i]]
        volatility = max(math.sqrt(variance), 0.5 * math.sqrt(sum(year) / len(year)))
        if i == len(changes):
            return volatility * math.sqrt(sum(squares) / len(squares))
        squares.append((float(changes[i]) / volatility) ** 2)
        variance = 0.97 * variance + 0.03 * float(changes[i]) ** 2
    raise AssertionError("fewer than 30 changes")


def test_figures_are_those_of_the_history(calibrated: Calibrated, history: History) -> None:
    file = calibrated.file
    closes = np.array([row["close"] for row in history.bars if (row["asset"], row["market"]) == ("SOL", "perp")])
    returns = np.diff(np.log(closes))
    current = _next_std(returns)
    assert file.laws["current"].daily_std["price:SOL"] == pytest.approx(current, rel=1e-3)  # four digits in the file
    assert file.liquidity["SOL"].daily_std == file.laws["current"].daily_std["price:SOL"]
    implied = np.array([row["value"] for row in history.context if row["series"] == "dvol_close"])
    moved = np.diff(np.log(implied))
    assert file.laws["current"].daily_std["vol:BTC"] == pytest.approx(_next_std(moved), rel=1e-3)
    assert file.laws["current"].daily_std["vol:ETH"] == file.laws["current"].daily_std["vol:BTC"]
    window = returns[: 365 - 1]
    stressed = file.laws["stressed_first_year"]
    assert stressed.daily_std["price:SOL"] == pytest.approx(float(np.sqrt(np.mean(window**2))), rel=1e-3)
    assert stressed.days == len(window)
    assert file.liquidity["SOL"].adv_usd == 1e8
    assert file.pegs["USDC"].events == 1
    assert file.pegs["USDC"].jumps_per_year == pytest.approx(1.5 * 365 / DAYS, abs=0.01)
    assert file.vol_rules["BTC"].beta_abs == pytest.approx(0.8, abs=0.2)
    assert (file.vol_rules["ETH"].borrowed_from, file.laws["current"].filled["vol:ETH"]) == ("BTC", "rule")
    assert file.margins["vol:ETH"] == file.margins["vol:BTC"]
    assert file.funding["BTC"].kappa == pytest.approx(-np.log(0.8), abs=0.06)
    assert file.discounts["wstETH"].mean == pytest.approx(-0.002, abs=2e-4)
    # independent gaps of 5 bp: the change has sqrt(2) of it
    assert file.basis["BTC"].es_99 == pytest.approx(2.892 * 7.07e-4, rel=0.2)
    assert file.basis["BTC"].charge == max(file.basis["BTC"].es_99, 0.002)
    assert 0.5 < file.laws["current"].matrix(("price:BTC", "price:ETH"))[0, 1] < 1.0


def test_margins_of_the_file_have_variance_one_after_rounding(calibrated: Calibrated) -> None:
    grid = np.array(calibrated.file.margin_probabilities)
    for margin in calibrated.file.margins.values():
        lower, upper = (
            ParetoFit(tail.shape, tail.scale, tail.exceedances, 0.0, False) for tail in (margin.lower, margin.upper)
        )
        mean, variance = law_moments(SemiParametricLaw(grid, np.array(margin.quantiles), lower, upper))
        assert mean == pytest.approx(0.0, abs=1e-4)
        assert variance == pytest.approx(1.0, rel=1e-3)


def test_many_depegs_give_depth_and_recovery(history: History, tmp_path: Path) -> None:
    rows = [dict(row) for row in history.bars]
    coin = [row for row in rows if row["asset"] == "USDC"]
    for start, depth in ((50, 0.02), (120, 0.05), (400, 0.03), (500, 0.1), (700, 0.04)):
        coin[start]["close"], coin[start + 1]["close"], coin[start + 2]["close"] = 1 - depth, 1 - depth / 3, 1.0
    peg = calibrate(request(windows=()), written(History(rows, history.context), tmp_path)).file.pegs["USDC"]
    assert (peg.events, peg.assumed) == (6, ("depth_cap",))
    # the depths above and the one of 7 % that the history has
    assert 0.4 * peg.depth_a / (peg.depth_a + peg.depth_b) == pytest.approx(0.31 / 6, rel=0.02)
    assert 0.5 < peg.recovery_per_day < 3.0
    assert peg.absorbing_probability == pytest.approx(0.5 / 7, abs=1e-3)


def test_short_and_ended_histories_are_refused_by_name_and_reason(calibrated: Calibrated) -> None:
    refused = calibrated.file.refused
    assert list(refused) == ["NEW", "OLD"]
    assert refused["NEW"] == "has 30 daily returns; at least 250 are needed"
    assert refused["OLD"] == "has no return after 2023-05-15, 300 days before the end of the sample"


def test_a_refused_asset_that_was_asked_for_is_a_failure(history: History, tmp_path: Path) -> None:
    found = calibrate(request(assets=("SOL", "NEW", "NOPE")), written(history, tmp_path))
    lacking = {failure.subject: failure for failure in found.failures}
    assert set(lacking) == {"NEW", "NOPE"}
    assert lacking["NEW"].message == "NEW has 30 daily returns; at least 250 are needed"
    assert lacking["NOPE"].reason is FailureReason.MISSING_PARAMETER
    assert "price:SOL" in found.file.factors
    assert "price:OLD" not in found.file.factors


def test_what_the_history_cannot_tell_is_marked(text: str, calibrated: Calibrated) -> None:
    peg = calibrated.file.pegs["DAI"]
    assert set(peg.assumed) == {
        "daily_std", "nu", "depth_a", "depth_b", "depth_cap", "recovery_per_day", "absorbing_probability",
    }  # fmt: skip
    section = text[text.index("[pegs.DAI]") :].split("\n\n")[0]
    for field in peg.assumed:
        assert f"{field} = " in section
        line = next(line for line in section.splitlines() if line.startswith(f"{field} = "))
        assert line.endswith("# ASSUMED")
    assert "events = 1\n" in section


# ---- no look-ahead, same result, bad rows ----------------------------------------------------------------------------


def without_tables(file: CalibrationFile) -> CalibrationFile:
    return file.model_copy(update={"calibration": file.calibration.model_copy(update={"tables": ()})})


def test_nothing_after_as_of_changes_anything(history: History, calibrated: Calibrated, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    later: list[Row] = []
    for asset in ("BTC", "ETH", "SOL", "NEW", "FRESH"):
        later += bars(asset, "perp", 1e3 * np.exp(rng.standard_normal(400)), first=DAYS)
        later += bars(asset, "spot", 1e-3 * np.exp(rng.standard_normal(400)), first=DAYS)
    later += bars("USDC", "spot", np.full(400, 0.5), first=DAYS)
    # a bar that is open at as_of, a rate stamped a second later
    later += bars("OLD", "perp", np.array([7.0]), first=DAYS)
    context = [{"asset": "BTC", "series": "dvol_close", "ts": opened(DAYS + i), "value": 500.0} for i in range(300)]
    stamp = AS_OF + timedelta(seconds=1)
    context.append({"asset": "BTC", "series": "funding_8h", "ts": stamp, "value": 0.5})
    context.append({"asset": "ETH", "series": "funding_8h", "ts": stamp, "value": 0.5})
    again = calibrate(request(), written(History(later + history.bars, context + history.context), tmp_path))
    assert without_tables(again.file) == without_tables(calibrated.file)
    assert again.failures == calibrated.failures


def test_an_earlier_as_of_is_the_same_as_a_history_that_ends_there(history: History, tmp_path: Path) -> None:
    earlier = AS_OF - timedelta(days=200)
    cut = History(
        [row for row in history.bars if row["ts"] + timedelta(days=1) <= earlier],
        [row for row in history.context if row["ts"] <= earlier],
    )
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = calibrate(request(as_of=earlier), written(history, tmp_path / "whole"))
    alone = calibrate(request(as_of=earlier), written(cut, tmp_path / "cut"))
    assert without_tables(whole.file) == without_tables(alone.file)
    assert whole.file.calibration.last_date == earlier.date() - timedelta(days=1)


def test_the_order_of_rows_does_not_matter(history: History, calibrated: Calibrated, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    shuffled = History(
        [history.bars[i] for i in rng.permutation(len(history.bars))],
        [history.context[i] for i in rng.permutation(len(history.context))],
    )
    again = calibrate(request(), written(shuffled, tmp_path))
    assert calibration_text(without_tables(again.file)) == calibration_text(without_tables(calibrated.file))


def test_bad_rows_end_as_failures_and_change_only_their_days(history: History, tmp_path: Path) -> None:
    rows = [dict(row) for row in history.bars]
    sol = [row for row in rows if (row["asset"], row["market"]) == ("SOL", "perp")]
    sol[100]["close"] = float("nan")
    sol[200]["close"] = -1.0
    sol[300]["close"] = None
    rows.append(dict(sol[400]))
    rows.remove(sol[500])
    found = calibrate(request(), written(History(rows, history.context), tmp_path))
    by_path = {failure.path: failure.reason for failure in found.failures if failure.subject == "SOL"}
    assert by_path == {
        f"SOL/perp/{opened(100):%Y-%m-%d}": FailureReason.NOT_A_NUMBER,
        f"SOL/perp/{opened(200):%Y-%m-%d}": FailureReason.OUT_OF_RANGE,
        f"SOL/perp/{opened(300):%Y-%m-%d}": FailureReason.MISSING_FIELD,
        f"SOL/perp/{opened(400):%Y-%m-%d}": FailureReason.DUPLICATE,
    }
    check = found.file.diagnostics.factors["price:SOL"]
    # five days lack two returns each
    assert check.days == DAYS - 1 - 10
    assert check.filled_share == pytest.approx(10 / (DAYS - 1), abs=1e-4)
    assert "price:SOL" in found.file.factors


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: [row for row in rows if row["asset"] != "ETH"], "anchor ETH has no daily returns"),
        (lambda rows: [row for row in rows if row["asset"] != "ETH" or row["ts"] < opened(100)], "anchor BTC has 99"),
        (lambda rows: [{k: v for k, v in row.items() if k != "close"} for row in rows], "no column close"),
        (lambda rows: [{k: v for k, v in row.items() if k != "ts"} | {"at": 1} for row in rows], "no column ts"),
    ],
)
def test_tables_that_cannot_be_used_are_bad_data(history: History, tmp_path: Path, spoil: Any, message: str) -> None:
    table = pa.Table.from_pylist(spoil(history.bars))
    pa.parquet.write_table(table, tmp_path / "bars.parquet")
    with pytest.raises(DataError, match=message):
        calibrate(request(context=None), tmp_path)


def test_without_context_there_are_no_vols_and_that_is_said(history: History, tmp_path: Path) -> None:
    found = calibrate(request(context=None), written(history, tmp_path))
    assert not found.file.vol_rules
    assert not found.file.funding
    assert not any(name.startswith("vol:") for name in found.file.factors)
    assert [failure.subject for failure in found.failures] == ["vol"]
    assert checked_calibration(tomllib.loads(calibration_text(found.file)), "file") == found.file


def test_a_table_of_perpetuals_alone_is_no_failure(history: History, tmp_path: Path) -> None:
    rows = [row for row in history.bars if row["market"] == "perp"]
    asked = CalibrationRequest(as_of=AS_OF, history="bars.parquet", correlation_days=400)
    found = calibrate(asked, written(History(rows, history.context), tmp_path))
    assert found.failures == ()
    assert found.file.factors == ("price:BTC", "price:ETH", "price:SOL")
    assert not found.file.pegs
    assert list(found.file.laws) == ["current", "stressed_2022"]
    assert {basis.assumed for basis in found.file.basis.values()} == {("charge",)}
    assert checked_calibration(tomllib.loads(calibration_text(found.file)), "file") == found.file


def test_an_asset_that_cannot_be_fitted_is_refused_and_the_rest_stays(
    history: History, calibrated: Calibrated, tmp_path: Path
) -> None:
    # a price of three ticks: most of its returns are zero
    ticks = np.tile([5.0, 5.0, 6.0, 6.0], DAYS // 4)
    rows = history.bars + bars("TICK", "perp", ticks)
    folder = written(History(rows, history.context), tmp_path)
    found = calibrate(request(), folder)
    assert found.file.refused["TICK"].startswith("cannot be fitted: two quantiles of the residuals are equal")
    assert found.failures == ()
    assert found.file.laws == calibrated.file.laws
    asked = calibrate(request(assets=("SOL", "TICK")), folder)
    assert [failure.subject for failure in asked.failures] == ["TICK"]


def test_windows_beyond_the_sample_are_left_out_and_named(history: History, tmp_path: Path) -> None:
    windows = (
        Window(name="future", first=date(2024, 1, 1), last=date(2024, 12, 31)),
        Window(name="early", first=date(2021, 1, 1), last=date(2022, 2, 1)),
    )
    found = calibrate(request(windows=windows), written(history, tmp_path))
    assert list(found.file.laws) == ["current"]
    assert {failure.subject for failure in found.failures} == {"stressed_future", "stressed_early"}


def test_an_asset_without_the_window_is_filled_by_beta(history: History, tmp_path: Path) -> None:
    rows = [row for row in history.bars if row["asset"] != "SOL" or row["ts"] >= opened(400)]
    law = calibrate(request(), written(History(rows, history.context), tmp_path)).file.laws["stressed_first_year"]
    assert law.filled["price:SOL"] == "beta"
    assert 0.01 < law.daily_std["price:SOL"] < 0.2
    assert law.matrix(("price:BTC", "price:SOL"))[0, 1] > 0.3


# ---- text and reading ------------------------------------------------------------------------------------------------


def test_what_was_written_reads_back_equal(text: str, calibrated: Calibrated, tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    path.write_text(text, encoding="utf-8")
    assert read_calibration(path) == calibrated.file
    assert calibration_text(read_calibration(path)) == text


def test_figures_that_nobody_rounded_read_back_equal(calibrated: Calibrated) -> None:
    rng = np.random.default_rng(7)

    def jitter(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: jitter(inner) for key, inner in value.items()}
        return value * (1.0 + 1e-3 * float(rng.random())) if isinstance(value, float) else value

    document = calibrated.file.model_dump()
    for section in ("liquidity", "funding", "vol_rules"):
        document[section] = jitter(document[section])
    document["refused"] = {'a "quoted"\n name': "back\\slash\tand é", **document["refused"]}
    file = checked_calibration(document, "edited")
    assert checked_calibration(tomllib.loads(calibration_text(file)), "read") == file


def test_the_text_is_short_of_paths_and_long_lines_have_a_reason(text: str) -> None:
    assert str(ROOT) not in text
    assert "/tmp" not in text
    assert "bars.parquet" in text
    for line in text.splitlines():
        assert len(line) <= 120 or " = { " in line, line
    assert all(f"# ---- {name} " in text for name in ("margins", "garch", "jumps", "regimes", "basis", "diagnostics"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[pegs.USDC]\ndaily_std",
            "[pegs.USDC]\ndaily_sdt",
            r"unknown key pegs.USDC.daily_sdt \(did you mean 'daily_std'\?\)",
        ),
        (
            "[regimes]\ntransition",
            "[regimes]\ntransitions",
            r"unknown key regimes.transitions \(did you mean 'transition'",
        ),
        ("form = ", "from = ", r"unknown key garch.price:BTC.from \(did you mean 'form'\?\)"),
        (
            '"price:ETH" = { form',
            '"price:EHT" = { form',
            r"garch: unknown factor 'price:EHT' \(did you mean 'price:ETH'\?\)",
        ),
        ("[laws.current]\n", "[laws.current]\nnu = 1.5\n", "not valid TOML"),
        ("days = ", 'days = "many" #', "Input should be a valid integer"),
        (
            '"price:BTC | price:ETH"',
            '"price:BTC | price:EHT"',
            r"laws.current: correlation .*unknown factor 'price:EHT'",
        ),
        ('"price:BTC | price:ETH"', '"price:BTC"', 'expected "factor | other factor"'),
        ("[laws.current.daily_std]\n", "[laws.now.daily_std]\n", "laws.now"),
        ("filtered = [", "filtered = [0.5, ", "filtered has"),
    ],
)
def test_a_mistake_in_an_edited_file_is_named(text: str, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "edited.toml"
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_calibration(path)
    assert str(tmp_path) not in str(caught.value)


def test_correlations_that_do_not_fit_together_are_refused(text: str, tmp_path: Path) -> None:
    lines = [
        '"price:BTC | price:SOL" = -0.99' if line.startswith('"price:BTC | price:SOL"') else line
        for line in text.splitlines()
    ]
    path = tmp_path / "edited.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="correlations are inconsistent with each other"):
        read_calibration(path)


def test_a_file_that_is_not_there_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the calibration 'absent\.toml'"):
        read_calibration(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        read_calibration(tmp_path / "bad.toml")


# ---- request and verb ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('history = "a"', "missing key as_of"),
        ('as_of = 2024-06-30T00:00:00\nhistory = "a"', "as_of needs a time zone"),
        ('as_of = 2024-06-30T00:00:00Z\nhistroy = "a"', r"unknown key histroy \(did you mean 'history'\?\)"),
        (
            f"{_GOOD_REQUEST}[[windows]]\nname = 'x'\nfirst = 2022-01-01\nlast = 2021-01-01",
            "windows.0: last must be after",
        ),
        ("as_of = ", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_request_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "request.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        read_request(path)


def test_a_path_takes_variables_of_the_environment(tmp_path: Path) -> None:
    assert request_path("$DATA/a.parquet", tmp_path, {"DATA": "/data"}) == Path("/data/a.parquet")
    assert request_path("b.parquet", tmp_path, {}) == tmp_path / "b.parquet"
    with pytest.raises(ConfigurationError, match="environment variable DATA is not set"):
        request_path("$DATA/a.parquet", tmp_path, {})


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "aggregator", "calibrate", *words],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_verb_writes_the_dated_file_and_says_what_it_did(history: History, tmp_path: Path) -> None:
    written(history, tmp_path)
    (tmp_path / "calibration.toml").write_text(
        'as_of = 2024-03-11T00:00:00Z\nhistory = "bars.parquet"\ncontext = "context.parquet"\nassets = ["SOL", "NEW"]\n'
        'depeg_sample = ["USDC"]\nwindows = []\n',
        encoding="utf-8",
    )
    done = command("calibration.toml", "--json", cwd=tmp_path)
    assert done.returncode == ExitCode.BAD_DATA, done.stderr
    said = json.loads(done.stdout)
    assert said["path"].endswith("calibrated/2024-03-11.toml")
    assert said["refused"] == {"NEW": "has 30 daily returns; at least 250 are needed"}
    assert [failure["subject"] for failure in said["failures"]] == ["NEW"]
    assert read_calibration(tmp_path / "calibrated" / "2024-03-11.toml").factors == tuple(said["factors"])


def test_a_failed_request_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "calibration.toml").write_text(
        'as_of = 2024-03-11T00:00:00Z\nhistory = "no.parquet"\n', encoding="utf-8"
    )
    with pytest.raises(ConfigurationError, match="does not exist"):
        run_calibrate(tmp_path / "calibration.toml")
    assert not (tmp_path / "calibrated").exists()


# ---- recorded history ------------------------------------------------------------------------------------------------


def test_the_file_of_the_repository_is_what_the_verb_makes_of_recorded_history(recorded: Path, tmp_path: Path) -> None:
    shipped = read_calibration(ROOT / "configs" / "calibrated" / "2024-06-30.toml")
    asked = read_request(ROOT / "configs" / "calibration.toml")
    folder = recorded / "market"
    asked = asked.model_copy(
        update={"history": str(folder / "ohlcv_1d.parquet"), "context": str(folder / "context.parquet")}
    )
    begin = time.process_time()
    found = calibrate(asked, tmp_path)
    assert time.process_time() - begin < RECORDED_SECONDS
    assert found.failures == ()
    assert found.file == shipped
    for name in ("stressed_2020", "stressed_2021", "stressed_2022"):
        assert shipped.laws[name].daily_std["price:BTC"] > shipped.laws["current"].daily_std["price:BTC"]
    # found independently: EWMA volatility to the close of 2024-06-29 times the root mean square of its residuals
    assert shipped.laws["current"].daily_std["price:BTC"] == pytest.approx(0.0222911 * 1.0841446, rel=1e-3)
    assert shipped.laws["current"].daily_std["price:ETH"] == pytest.approx(0.0281626 * 1.0519954, rel=1e-3)


def test_the_shipped_file_reads_without_recorded_history() -> None:
    path = ROOT / "configs" / "calibrated" / "2024-06-30.toml"
    file = read_calibration(path)
    assert calibration_text(file) == path.read_text(encoding="utf-8")
    assert {"price:BTC", "price:ETH", "price:SOL"} <= set(file.factors)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("laws/current/daily_std/price:BTC", 2.4),
        ("laws/stressed_2020/daily_std/peg:USDC", 0.4),
        ("laws/current/daily_std/price:BTC", 0.0),
        ("laws/current/correlation/price:BTC | price:ETH", 1.01),
        ("laws/current/nu", 2.0),
        ("laws/current/nu", 1e9),
        ("margins/price:BTC/lower/scale", 500.0),
        ("garch/price:BTC/daily_std_next", 1.5),
        ("jumps/common/per_year", 1e3),
        ("jumps/common/mean", -27.7),
        ("jumps/assets/price:BTC/std", 12.0),
        ("jumps/assets/price:BTC/beta", 400.0),
        ("pegs/USDC/jumps_per_year", 3300.0),
        ("pegs/USDC/daily_std", 0.448),
        ("discounts/wstETH/nu", 1.5),
        ("discounts/wstETH/reversion_per_day", 1e3),
        ("vol_rules/BTC/beta_abs", 105.0),
        ("funding/BTC/latest", 7.3),
        ("funding/BTC/cap", 30.0),
        ("liquidity/BTC/adv_usd", -1.0),
        ("liquidity/BTC/adv_usd", 1e16),
        ("liquidity/BTC/spread", 4.6),
        ("liquidity/BTC/daily_std", 2.2),
        ("basis/BTC/es_99", 36.6),
    ],
)
def test_a_figure_that_no_market_has_is_refused_by_section_and_key(key: str, value: float) -> None:
    path = ROOT / "configs" / "calibrated" / "2024-06-30.toml"
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    *tables, name = key.split("/")
    place = document
    for table in tables:
        place = place[table]
    assert name in place
    place[name] = value
    with pytest.raises(ConfigurationError) as caught:
        checked_calibration(document, path.name)
    assert f"{key.replace('/', '.')}: {value:,.10g} is beyond any " in str(caught.value)
    assert "; expected " in str(caught.value)
