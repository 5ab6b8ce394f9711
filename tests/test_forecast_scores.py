"""The forecast table, every metric against a slow loop, comparisons, and the score of a small market."""

import itertools
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from aggregator.backtest_statistics import christoffersen_independence, kupiec
from aggregator.cli import app
from aggregator.errors import ConfigurationError
from models.forecast_comparison import compare, diebold_mariano
from models.forecast_metrics import Metrics, Rows, constant_pinball, fissler_ziegel, metrics, pinball
from models.forecast_scores import asset_groups, score, scores_text
from models.forecast_table import FORECASTS, check_forecasts, read_forecasts, write_forecasts
from models.market_history import MarketHistory, read_market, windows

LEVEL = 0.9
ROUNDING = 1e-12
"""Sums of a few hundred float64 in another order."""

DAYS = 260
START = np.datetime64("2022-01-01", "us")
ASSETS = ("AAA", "BBB", "PEG", "OLD")


def row(**change: object) -> dict[str, object]:
    return {
        "date": START.item(), "asset": "AAA", "side": "long", "level": 0.99, "horizon": "1d", "loss": "close",
        "margin_rate": 0.1, "es_rate": 0.12, "model": "flat",
    } | change  # fmt: skip


def table(*rows: dict[str, object]) -> pa.Table:
    return pa.table({name: [found[name] for found in rows] for name in rows[0]})


@pytest.fixture(scope="module")
def market_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Daily bars: two perpetuals, a pegged and a delisted spot coin; AAA has three days without a bar."""
    folder = tmp_path_factory.mktemp("market")
    generator = np.random.default_rng(7)
    columns: dict[str, list[object]] = {name: [] for name in ("asset", "market", "ts", "open", "high", "low", "close")}
    for asset, kind, scale in zip(ASSETS, ("perp", "perp", "spot", "spot"), (0.03, 0.05, 0.0005, 0.06), strict=True):
        close = np.exp(np.cumsum(scale * generator.standard_t(4, DAYS)))
        opened = np.concatenate([[1.0], close[:-1]])
        for day in range(DAYS):
            if asset == "AAA" and 100 <= day < 103:
                continue
            body = (opened[day], close[day])
            values = (
                asset,
                kind,
                (START + np.timedelta64(day, "D")).item(),
                opened[day],
                max(body),
                min(body),
                close[day],
            )
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
    bars = pa.table(columns | {"volume": [1.0] * len(columns["ts"]), "quote_vol": [1.0] * len(columns["ts"])})
    bars = bars.append_column("nbars", pa.array([24] * bars.num_rows))
    pa.parquet.write_table(bars, folder / "ohlcv_1d.parquet")
    return folder


@pytest.fixture(scope="module")
def market(market_folder: Path) -> MarketHistory:
    return read_market(market_folder)


def flat_forecasts(market: MarketHistory, model: str, rate: float, assets: tuple[str, ...] = ASSETS) -> pa.Table:
    openings = windows(market, "1d").opening
    return table(
        *(
            row(date=opening.item(), asset=asset, side=side, margin_rate=rate, es_rate=1.3 * rate, model=model)
            for opening in openings
            for asset in assets
            for side in ("long", "short")
        )
    )


# ---- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": "flat"}, "side is not one of"),
        ({"horizon": "2d"}, "horizon is not one of"),
        ({"loss": "worst"}, "loss is not one of"),
        ({"level": 1.0}, "level is not strictly between 0 and 1"),
        ({"margin_rate": 0.0}, "margin_rate is not finite and positive"),
        ({"margin_rate": math.nan}, "margin_rate is not finite and positive"),
        ({"es_rate": 0.09}, "es_rate is not finite or below margin_rate"),
        ({"es_rate": math.inf}, "es_rate is not finite or below margin_rate"),
        ({"model": ""}, "model is empty"),
        ({"asset": None}, "column 'asset' has 1 rows without a value"),
        ({"date": (START + np.timedelta64(8, "h")).item()}, "date is no opening of its horizon"),
        ({}, "duplicate key in 1 rows"),
    ],
)
def test_a_bad_row_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_forecasts(table(row(), row(**change)))


def test_a_missing_column_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="column 'es_rate' is missing"):
        check_forecasts(table(row()).drop_columns(["es_rate"]))


def test_a_file_keeps_its_rows_in_one_order(tmp_path: Path) -> None:
    eight = row(horizon="8h", date=(START + np.timedelta64(8, "h")).item())
    rows = [row(), row(side="short"), row(model="a"), row(asset="B"), eight]
    write_forecasts(table(*rows), tmp_path / "one.parquet")
    write_forecasts(table(*rows[::-1]), tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    found = read_forecasts(tmp_path / "one.parquet")
    assert found.schema.equals(FORECASTS)
    assert found["model"].to_pylist() == ["a", "flat", "flat", "flat", "flat"]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "one.parquet").read_bytes()[:-9])
    with pytest.raises(ConfigurationError, match=r"cut\.parquet: not a complete Parquet file"):
        read_forecasts(tmp_path / "cut.parquet")


# ---- metrics -------------------------------------------------------------------------------------------------------


def slow_metrics(rows: Rows, margin: np.ndarray, shortfall: np.ndarray) -> Metrics:
    """Every definition written out over plain lists."""
    level, tail = rows.level, 1.0 - rows.level
    everything = [
        (float(rows.loss[t, k]), float(margin[t, k]), float(shortfall[t, k]), t, k)
        for k in range(rows.loss.shape[1])
        for t in range(len(rows.loss))
        if not math.isnan(rows.loss[t, k])
    ]

    def pin(x: float, m: float) -> float:
        return level * (x - m) if x > m else tail * (m - x)

    hits = [x > m for x, m, *_ in everything]
    regimes = []
    for number in range(3):
        inside = [hit for hit, item in zip(hits, everything, strict=True) if rows.regime[item[3]] == number]
        regimes.append(1.0 - sum(inside) / len(inside))
    per_series: list[dict[str, float]] = []
    after = again = 0
    for k in range(rows.loss.shape[1]):
        own = [item for item in everything if item[4] == k]
        broken = np.array([x > m for x, m, *_ in own])
        best = float(np.quantile([item[0] for item in own], level))
        rates = [m for _, m, *_ in own]
        share, spacing = kupiec(int(broken.sum()), len(broken), confidence=level), christoffersen_independence(broken)
        after += sum(bool(a) for a in broken[:-1])
        again += sum(bool(a and b) for a, b in itertools.pairwise(broken))
        changes = [math.log(b / a) for a, b in itertools.pairwise(rates)]
        per_series.append(
            {
                "kupiec": share.p_value >= 0.05,
                "independence": spacing.p_value >= 0.05,
                "joint": math.exp(-(share.statistic + spacing.statistic) / 2.0) >= 0.05,
                "scaled": sum(pin(x, m) for x, m, *_ in own) / sum(pin(x, best) for x, *_ in own),
                "dlog": float(np.std(changes)),
                "p2t30": max(max(rates[i : i + 30]) / min(rates[i : i + 30]) for i in range(len(rates) - 29)),
                "p2t": max(rates) / min(rates),
                "up5": max(rates[i + 5] / rates[i] - 1.0 for i in range(len(rates) - 5)),
            }
        )
    ratios = sorted(x / m for x, m, *_ in everything)
    excess = [x / m - 1.0 for x, m, *_ in everything if x > m]
    scores = [(x - m if x >= m else 0.0) / (tail * e) + m / e + math.log(e) - 1.0 for x, m, e, *_ in everything]
    mean_margin = sum(m for _, m, *_ in everything) / len(everything)

    def mean(name: str) -> float:
        return float(np.mean([item[name] for item in per_series]))

    def median(name: str) -> float:
        return float(np.median([item[name] for item in per_series]))

    return Metrics(
        1.0 - sum(hits) / len(hits), mean("kupiec"), mean("independence"), mean("joint"), *regimes,  # type: ignore[call-arg]
        1e4 * sum(pin(x, m) for x, m, *_ in everything) / len(everything), mean("scaled"), sum(scores) / len(scores),
        mean_margin, mean_margin * float(np.quantile(ratios, level)), sum(excess) / len(excess),
        again / after / tail, mean("dlog"), median("p2t30"), median("p2t"), median("up5"), math.nan,
    )  # fmt: skip


def test_metrics_are_their_definitions() -> None:
    generator = np.random.default_rng(3)
    loss = 0.02 * generator.standard_t(3, (120, 5))
    loss[generator.random(loss.shape) < 0.1] = np.nan
    margin = 0.03 * np.exp(0.2 * generator.standard_normal(loss.shape))
    shortfall = margin * (1.1 + generator.random(loss.shape))
    rows = Rows(loss, generator.integers(-1, 3, 120), LEVEL, 1)
    found, expected = metrics(rows, margin, shortfall), slow_metrics(rows, margin, shortfall)
    for name, ours, theirs in zip(Metrics._fields, found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e3 * ROUNDING, nan_ok=True), name


def test_the_constant_in_hindsight_has_scaled_pinball_one() -> None:
    loss = np.random.default_rng(4).standard_normal((400, 3))
    margin = np.broadcast_to(np.quantile(loss, LEVEL, axis=0), loss.shape)
    found = metrics(Rows(loss, np.zeros(400, dtype=np.int64), LEVEL, 1), margin, 1.5 * margin)
    assert found.pin_n == pytest.approx(1.0, rel=ROUNDING)
    assert found.cover == pytest.approx(LEVEL, abs=1e-9)
    assert (found.dlog, found.p2t30, found.p2t, found.up5) == pytest.approx((0.0, 1.0, 1.0, 0.0), abs=ROUNDING)
    assert np.isnan([found.cov_md, found.cov_hi]).all()
    assert 0.0 <= found.green <= 1.0


def test_losses_are_smallest_at_the_true_quantile_and_shortfall() -> None:
    points = (np.arange(20_000) + 0.5) / 20_000
    losses = norm.ppf(points)
    quantile = float(norm.ppf(LEVEL))
    shortfall = float(norm.pdf(quantile) / (1.0 - LEVEL))
    best = float(np.mean(pinball(losses, np.full_like(losses, quantile), LEVEL)))
    joint = float(
        np.mean(fissler_ziegel(losses, np.full_like(losses, quantile), np.full_like(losses, shortfall), LEVEL))
    )
    for factor in (0.8, 0.95, 1.05, 1.2):
        other = np.full_like(losses, factor * quantile)
        assert np.mean(pinball(losses, other, LEVEL)) > best
        assert np.mean(fissler_ziegel(losses, other, np.full_like(losses, shortfall), LEVEL)) > joint
        wrong = np.full_like(losses, factor * shortfall)
        assert np.mean(fissler_ziegel(losses, np.full_like(losses, quantile), wrong, LEVEL)) > joint
    assert constant_pinball(np.full((3, 1), np.nan), LEVEL).tolist() == [pytest.approx(np.nan, nan_ok=True)]


# ---- comparison ----------------------------------------------------------------------------------------------------


def test_diebold_mariano_is_mean_over_newey_west_error() -> None:
    difference = np.convolve(np.random.default_rng(5).standard_normal(300), [1.0, 0.6, 0.3])[:300] + 0.2
    count, centered = len(difference), difference - difference.mean()
    variance = 0.0
    for i in range(count):
        for j in range(max(0, i - 10), min(count, i + 11)):
            variance += (1.0 - abs(i - j) / 11.0) * centered[i] * centered[j]
    expected = difference.mean() / math.sqrt(variance) * count
    assert diebold_mariano(difference) == pytest.approx(expected, rel=1e-10)
    assert diebold_mariano(-difference) == pytest.approx(-expected, rel=1e-10)
    assert diebold_mariano(np.zeros(50)) == 0.0
    assert math.isnan(diebold_mariano(np.ones(1)))


def test_a_comparison_takes_means_of_days() -> None:
    generator = np.random.default_rng(6)
    own, other = generator.random((80, 4)), generator.random((80, 4)) + 0.1
    holes = generator.random(own.shape) < 0.3
    holes[7] = True
    own[holes] = other[holes] = np.nan
    found = compare(("own", "other"), (own, other), (own, other))
    days = [float(np.nanmean(a) - np.nanmean(b)) for a, b in zip(own, other, strict=True) if np.isfinite(a).any()]
    assert found.t == pytest.approx(diebold_mariano(np.array(days)), rel=1e-10)
    assert found.t == found.fz0_t
    assert found.relative == pytest.approx(np.nanmean(own) / np.nanmean(other) - 1.0, rel=ROUNDING)
    assert found.p_value == pytest.approx(2.0 * norm.sf(abs(found.t)), rel=1e-9)


# ---- the score -----------------------------------------------------------------------------------------------------


def test_groups_are_made_by_rules(market: MarketHistory) -> None:
    groups = asset_groups(windows(market, "1d"))
    assert groups == {"perps": ("AAA", "BBB"), "spot": ("OLD", "PEG"), "delisted": ("OLD",), "pegged": ("PEG",)}


def test_models_meet_on_common_rows(market: MarketHistory) -> None:
    late = flat_forecasts(market, "late", 0.08, ("AAA", "BBB", "PEG"))
    cut = pa.scalar((START + np.timedelta64(40, "D")).item(), pa.timestamp("us", "UTC"))
    late = late.filter(pc.greater_equal(late["date"].cast(pa.timestamp("us", "UTC")), cut))
    found = score(pa.concat_tables([flat_forecasts(market, "early", 0.05), late]), market)
    assert [(group.group, group.side) for group in found.groups if group.side == "both"] == [
        ("perps", "both"), ("spot", "both"), ("pegged", "both"),
    ]  # fmt: skip
    perps = found.groups[0]
    # AAA has no bar on 3 days, and the first return after them would span too long
    assert perps.rows == 2 * (2 * (DAYS - 40) - 4)
    assert perps.first == START + np.timedelta64(40, "D")
    possible = 2 * (4 * (DAYS - 1) - 4)
    assert found.missing["early"] == 0.0
    assert found.missing["late"] == pytest.approx(1.0 - 2 * (3 * (DAYS - 40) - 4) / possible, rel=ROUNDING)
    assert perps.metrics["early"].margin == pytest.approx(0.05, rel=ROUNDING)
    assert perps.metrics["late"].cover >= perps.metrics["early"].cover
    text = scores_text(found)
    header = next(line for line in text.splitlines() if line.startswith("model"))
    assert header.split() == ["model", *(name.replace("m_cov", "m@cov") for name in Metrics._fields)]
    assert "missing rows: late" in text


def test_sides_are_halves_of_both(market: MarketHistory) -> None:
    groups = score(flat_forecasts(market, "flat", 0.05), market).groups
    both, long, short = (group for group in groups if group.group == "perps")
    assert long.rows == short.rows == both.rows // 2
    mean = 0.5 * (long.metrics["flat"].pin_bp + short.metrics["flat"].pin_bp)
    assert both.metrics["flat"].pin_bp == pytest.approx(mean, rel=1e-10)


def test_tables_that_cannot_be_scored(market: MarketHistory) -> None:
    good = flat_forecasts(market, "flat", 0.05)
    with pytest.raises(ConfigurationError, match="no market history of ZZZ"):
        score(pa.concat_tables([good, table(row(asset="ZZZ"))]), market)
    with pytest.raises(ConfigurationError, match=r"column 'level' holds \[0.95, 0.99\]"):
        score(pa.concat_tables([good, table(row(level=0.95, model="other"))]), market)
    with pytest.raises(ConfigurationError, match="no rows to score"):
        score(good.slice(0, 0), market)
    future = table(row(date=(START + np.timedelta64(5000, "D")).item()))
    with pytest.raises(ConfigurationError, match="none of them meets a known loss"):
        score(future, market)
    assert score(pa.concat_tables([good, future]), market).unknown_losses > 0


def test_a_period_too_short_to_score_says_so(market: MarketHistory) -> None:
    cut = pa.scalar((START + np.timedelta64(50, "D")).item(), pa.timestamp("us", "UTC"))
    flat = flat_forecasts(market, "flat", 0.05)
    short = flat.filter(pc.less(flat["date"].cast(pa.timestamp("us", "UTC")), cut))
    assert "nothing to score: no asset has 100 common rows" in scores_text(score(short, market))
    assert "nothing to score" not in scores_text(score(flat, market))


def test_the_verb_scores_any_file(market: MarketHistory, market_folder: Path, tmp_path: Path) -> None:
    forecasts, place = flat_forecasts(market, "flat", 0.05), tmp_path / "forecasts.parquet"
    write_forecasts(forecasts, place)
    answer = CliRunner().invoke(app, ["score", str(place), "--market", str(market_folder)])
    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout == scores_text(score(read_forecasts(place), market)) + "\n"
    place.write_bytes(place.read_bytes()[:-9])
    answer = CliRunner().invoke(app, ["score", str(place), "--market", str(market_folder)])
    assert answer.exit_code == 2
    assert str(place) in answer.stderr


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "forecasts.parquet"
    place.mkdir()
    with pytest.raises(ConfigurationError, match=r"forecasts.parquet: cannot be written"):
        write_forecasts(table(row()), place)
    assert list(tmp_path.iterdir()) == [place]
