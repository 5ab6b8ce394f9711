"""Every baseline against a slow loop, nothing from the future, and the published figures on recorded history."""

import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import norm
from scipy.stats import t as student_t

from aggregator.errors import ConfigurationError
from models.baselines import BASELINES, baseline_forecasts
from models.baselines.buffers import buffered, floored, stressed
from models.baselines.combination import geometric_mean
from models.baselines.conformal import adaptive_level, tracked_quantile
from models.baselines.empirical_quantile import constant_tier, historical_simulation
from models.baselines.ewma import ewma_volatility, filtered, normal
from models.baselines.garch import Fit, _student_tail, student
from models.baselines.har_quantile import inputs, pooled
from models.baselines.published import slow_to_fall, smoothed
from models.baselines.series import SMALLEST_RATE, Forecast, LogForecast, Settings, each_series, log_returns
from models.baselines.tail import tail, trailing_tail
from models.forecast_scores import score
from models.forecast_table import check_forecasts
from models.market_history import PERP, Windows, read_market, windows

SETTINGS = Settings()
ROUNDING = 1e-10
"""Products and sums over a thousand float64 in another order."""

WITHOUT_ARCH = [name for name in BASELINES if "GARCH" not in name and "GJR" not in name and "COMBO4" not in name]


def panel(days: int, assets: int = 2, *, seed: int = 1, horizon: str = "1d") -> Windows:
    """Returns with changing volatility; the last asset is listed late and the first has a hole of 5 windows."""
    generator = np.random.default_rng(seed)
    volatility = 0.03 * np.exp(np.cumsum(0.05 * generator.standard_normal((days, assets)), axis=0) * 0.5)
    returns = volatility * generator.standard_t(4, (days, assets))
    close = np.exp(np.cumsum(returns, axis=0))
    opened = np.concatenate([np.ones((1, assets)), close[:-1]])
    high, low = np.maximum(opened, close) * 1.01, np.minimum(opened, close) * 0.99
    simple = close / opened - 1.0
    simple[0] = np.nan
    simple[:60, -1] = np.nan
    simple[200:205, 0] = np.nan
    opening = np.datetime64("2020-01-01", "us") + np.arange(days) * np.timedelta64(24 if horizon == "1d" else 8, "h")
    volume = 1000.0 * np.exp(0.3 * generator.standard_normal(close.shape))
    market = np.full(close.shape, PERP, dtype=np.int8)
    names = tuple(f"A{number}" for number in range(assets))
    return Windows(
        "1d" if horizon == "1d" else "8h", opening, names, market, close, opened, high, low,
        simple, 1.0 - low / opened, high / opened - 1.0, volume, volume * close,
    )  # fmt: skip


@pytest.fixture(scope="module")
def market() -> Windows:
    return panel(560)


def series_of(windows: Windows, asset: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and log returns of an asset."""
    returns = np.log1p(windows.simple_return[:, asset])
    rows = np.flatnonzero(np.isfinite(returns))
    return rows, returns[rows]


def slow_volatility(returns: np.ndarray, decay: float) -> list[float]:
    variance = [float(np.mean(returns[:100] ** 2) - np.mean(returns[:100]) ** 2)]
    for value in returns[:-1]:
        variance.append(decay * variance[-1] + (1.0 - decay) * float(value) ** 2)
    return [math.sqrt(value) for value in variance]


def expect(found: Forecast, windows: Windows, slow_quantile: object) -> None:
    """`slow_quantile(losses, volatility, i)` gives the log quantile of forecast i; checked on every tenth of them."""
    for asset in range(len(windows.assets)):
        rows, returns = series_of(windows, asset)
        volatility = slow_volatility(returns, 0.97)
        assert np.isnan(found.margin[rows[:400], asset]).all()
        assert np.isfinite(found.margin[rows[400:], asset]).all()
        assert (found.shortfall[rows[400:], asset] >= found.margin[rows[400:], asset] * (1.0 - ROUNDING)).all()
        for i in range(400, len(rows), 10):
            quantile = slow_quantile(-returns, volatility, i)  # type: ignore[operator]
            assert found.margin[rows[i], asset, 0] == pytest.approx(1.0 - math.exp(-quantile), rel=ROUNDING)
            quantile = slow_quantile(returns, volatility, i)  # type: ignore[operator]
            assert found.margin[rows[i], asset, 1] == pytest.approx(math.exp(quantile) - 1.0, rel=ROUNDING)


# ---- tails ---------------------------------------------------------------------------------------------------------


def test_tail_is_the_quantile_and_the_mean_beyond_it() -> None:
    values = np.random.default_rng(2).standard_t(3, 731)
    for level in (0.0, 0.5, 0.95, 0.99, 0.995, 1.0):
        for count in (1, 2, 100, 101, 731):
            quantile, mean = tail(values[:count], level)
            assert quantile == pytest.approx(np.quantile(values[:count], level), rel=ROUNDING)
            beyond = values[:count][values[:count] >= quantile]
            assert mean == pytest.approx(beyond.mean() if len(beyond) else quantile, rel=ROUNDING)
            assert mean >= quantile


def test_trailing_tails_end_before_the_forecast() -> None:
    values = np.random.default_rng(3).standard_normal(90)
    found = trailing_tail(values, length=50, start=30, level=0.9)
    for i in range(90):
        if i < 30:
            assert np.isnan(found.quantile[i])
        else:
            assert found.quantile[i] == pytest.approx(np.quantile(values[max(0, i - 50) : i], 0.9), rel=ROUNDING)
    assert len(trailing_tail(values[:20], length=50, start=30, level=0.9).quantile) == 20


# ---- twins ---------------------------------------------------------------------------------------------------------


def test_historical_simulation(market: Windows) -> None:
    expect(
        historical_simulation(log_returns(market), SETTINGS),
        market,
        lambda losses, _, i: np.quantile(losses[max(0, i - 500) : i], 0.99),
    )


def test_constant_tier_is_refreshed_every_30_days(market: Windows) -> None:
    found = constant_tier(log_returns(market), SETTINGS)
    expect(found, market, lambda losses, _, i: np.quantile(losses[: 400 + (i - 400) // 30 * 30], 0.995))


def test_normal_volatility(market: Windows) -> None:
    found = normal(log_returns(market), SETTINGS, decay=0.97)
    expect(found, market, lambda _, volatility, i: norm.ppf(0.99) * volatility[i])
    rows, returns = series_of(market, 0)
    beyond = norm.pdf(norm.ppf(0.99)) / 0.01 * slow_volatility(returns, 0.97)[450]
    assert found.shortfall[rows[450], 0, 1] == pytest.approx(math.exp(beyond) - 1.0, rel=ROUNDING)


def slow_score_quantile(losses: np.ndarray, volatility: list[float], i: int, level: float = 0.99) -> float:
    scores = losses / np.array(volatility)
    return float(np.quantile(scores[max(60, i - 1000) : i], level)) * volatility[i]


def test_filtered_history(market: Windows) -> None:
    expect(filtered(log_returns(market), SETTINGS, decay=0.97), market, slow_score_quantile)


def test_windows_of_eight_hours_take_the_root_of_the_decay() -> None:
    returns = np.random.default_rng(5).standard_normal(500)
    found = ewma_volatility(returns, 0.97, Settings(0.99, 3))
    decay, start = 0.97 ** (1.0 / 3.0), np.var(returns[:300])
    expected = decay**2 * start + (1.0 - decay) * (decay * returns[0] ** 2 + returns[1] ** 2)
    assert found[2] == pytest.approx(math.sqrt(expected), rel=ROUNDING)


def test_adaptive_level_follows_its_breaches(market: Windows) -> None:
    def slow(losses: np.ndarray, volatility: list[float], last: int) -> float:
        alpha = 0.01
        for i in range(400, last + 1):
            quantile = slow_score_quantile(losses, volatility, i, 1.0 - alpha)
            alpha += 0.005 * (0.01 - (1.0 if losses[i] > quantile else 0.0))
            alpha = min(max(alpha, 0.0005), 0.05)
        return quantile

    expect(adaptive_level(log_returns(market), SETTINGS), market, slow)


def test_tracked_quantile_grows_with_breaches(market: Windows) -> None:
    def slow(losses: np.ndarray, volatility: list[float], last: int) -> float:
        scores = losses / np.array(volatility)
        quantile = float(np.quantile(scores[60:400], 0.99))
        for i in range(400, last):
            quantile += 0.05 * max(scores[max(60, i - 250) : i]) * ((1.0 if scores[i] > quantile else 0.0) - 0.01)
        return quantile * volatility[last]

    expect(tracked_quantile(log_returns(market), SETTINGS), market, slow)


def test_the_three_tools_of_emir(market: Windows) -> None:
    returns = log_returns(market)
    base = filtered(returns, SETTINGS, decay=0.97)
    with_buffer = buffered(base)
    with_stress, with_floor = stressed(base, returns, SETTINGS), floored(base, returns, SETTINGS, decay=0.97)
    for asset in range(2):
        rows, own = series_of(market, asset)
        volatility = slow_volatility(own, 0.97)
        previous = 1.25 * base.margin[rows[400], asset, 0]
        for i in range(400, len(rows)):
            rate = base.margin[rows[i], asset, 0]
            previous = max(rate, min(1.25 * rate, previous))
            assert with_buffer.margin[rows[i], asset, 0] == pytest.approx(previous, rel=ROUNDING)
            if i % 25:
                continue
            highest = max(np.quantile(-own[end - 250 : end], 0.99) for end in range(250, i + 1))
            stress = 1.0 - math.exp(-highest)
            expected = max(rate, 0.75 * rate + 0.25 * stress)
            assert with_stress.margin[rows[i], asset, 0] == pytest.approx(expected, rel=ROUNDING)
            score_quantile = slow_score_quantile(-own, volatility, i) / volatility[i]
            floor = 1.0 - math.exp(-score_quantile * float(np.std(own[:i])))
            assert with_floor.margin[rows[i], asset, 0] == pytest.approx(max(rate, floor), rel=ROUNDING)
    ratio = base.shortfall / base.margin
    for other in (with_buffer, with_stress, with_floor):
        np.testing.assert_allclose(other.shortfall / other.margin, ratio, rtol=ROUNDING)


def test_combination_and_published_paths() -> None:
    margin = np.array([0.10, 0.20, np.nan, 0.15, 0.05]).reshape(5, 1, 1) * np.ones((1, 1, 2))
    base = Forecast(margin, 2.0 * margin)
    both = geometric_mean([base, Forecast(4.0 * margin, 8.0 * margin)])
    np.testing.assert_allclose(both.margin, 2.0 * margin, rtol=ROUNDING)
    np.testing.assert_allclose(both.shortfall, 4.0 * margin, rtol=ROUNDING)
    slow = slow_to_fall(base, SETTINGS).margin[:, 0, 0]
    np.testing.assert_allclose(slow, [0.10, 0.20, np.nan, 0.97 * 0.20, 0.97**2 * 0.20], rtol=ROUNDING)
    calm = smoothed(base, SETTINGS, weight=0.2).margin[:, 0, 0]
    second = 0.10**0.8 * 0.20**0.2
    third = second**0.8 * 0.15**0.2
    np.testing.assert_allclose(calm, [0.10, second, np.nan, third, third**0.8 * 0.05**0.2], rtol=ROUNDING)


def test_pooled_regression_finds_a_known_law() -> None:
    """Losses whose scale is the EWMA volatility times a weekend factor: the fit recovers quantile and factor."""
    days, assets = 1500, 6
    generator = np.random.default_rng(11)
    given = panel(days, assets, seed=11)
    weekend = (given.opening.astype("datetime64[D]").astype(int) + 3) % 7 >= 5
    returns = np.zeros((days, assets))
    variance = np.full(assets, 1e-3)
    for day in range(days):
        returns[day] = np.sqrt(variance) * (2.0 if weekend[day] else 1.0) * generator.standard_normal(assets)
        variance = 0.97 * variance + 0.03 * 1e-3
    close = np.exp(np.cumsum(returns, axis=0))
    world = given._replace(simple_return=np.expm1(returns), close=close)
    found = pooled(world, SETTINGS)
    scale = inputs(world, SETTINGS).scale
    logs = -np.log1p(-found.margin[1000:, :, 0])
    true = norm.ppf(0.99) * math.sqrt(1e-3) * np.where(weekend[1000:], 2.0, 1.0)[:, None]
    assert np.median(logs / true) == pytest.approx(1.0, abs=0.1)
    ratio = np.median((logs / scale[1000:])[weekend[1000:]]) / np.median((logs / scale[1000:])[~weekend[1000:]])
    assert ratio == pytest.approx(2.0, abs=0.3)
    assert (found.shortfall[1000:] >= found.margin[1000:]).all()


# ---- GARCH ---------------------------------------------------------------------------------------------------------


def test_student_tail_has_unit_variance() -> None:
    fitted = Fit(0.1, 0.1, 0.0, 0.8, 5.0, 1.0, np.zeros(1))
    (quantile, beyond), _ = _student_tail(fitted, 0.99)
    points = student_t.ppf(0.99 + 0.01 * (np.arange(200_000) + 0.5) / 200_000, 5.0) * math.sqrt(3.0 / 5.0)
    assert quantile == pytest.approx(student_t.ppf(0.99, 5.0) * math.sqrt(3.0 / 5.0), rel=1e-9)
    # the midpoint rule misses a little of the last slice of a heavy tail
    assert beyond == pytest.approx(points.mean(), rel=1e-4)


def test_without_the_extra_the_error_names_it(market: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arch", None)
    with pytest.raises(ConfigurationError, match="extra 'baselines'"):
        student(log_returns(market), SETTINGS)


def test_garch_runs_on_between_fits_and_sees_no_future() -> None:
    pytest.importorskip("arch", reason="the extra 'baselines' is not installed")
    given = panel(500, 1)
    names = ("GARCH-t", "GJR-FHS")
    span = {"start": given.opening[0], "end": given.opening[-1] + np.timedelta64(1, "D")}
    whole = baseline_forecasts(given, names=names, **span)
    changed = given._replace(simple_return=np.where(np.arange(500)[:, None] >= 490, 0.5, given.simple_return))
    later = baseline_forecasts(changed, names=names, workers=2, **span)
    before = pc.less(whole["date"], pa.scalar(given.opening[491].item(), pa.timestamp("us", "UTC")))
    assert whole.filter(before).equals(later.filter(before))
    assert whole.filter(before).num_rows == 2 * 2 * (491 - 465)
    assert not whole.equals(later)


# ---- the table -----------------------------------------------------------------------------------------------------


def test_nothing_comes_from_the_future(market: Windows) -> None:
    first = 500
    generator = np.random.default_rng(9)
    later = np.arange(len(market.opening)) >= first

    def disturbed(values: np.ndarray) -> np.ndarray:
        return np.where(later[:, None], values * np.exp(generator.standard_normal(values.shape)), values)

    changed = market._replace(
        simple_return=np.where(
            later[:, None], 0.1 * generator.standard_normal(market.close.shape), market.simple_return
        ),
        high=np.where(later[:, None], 2.0 * market.high, market.high),
        volume=disturbed(market.volume),
    )
    span = {"start": market.opening[0], "end": market.opening[first] + np.timedelta64(1, "D")}
    one = baseline_forecasts(market, names=WITHOUT_ARCH, **span)
    # the last forecasts are for the very window from which on everything is another
    assert pc.max(one["date"]).as_py().replace(tzinfo=None) == market.opening[first].item()
    assert one.equals(baseline_forecasts(changed, names=WITHOUT_ARCH, **span))
    assert set(one["model"].to_pylist()) == set(WITHOUT_ARCH)


def test_forecasts_need_400_days_and_a_return(market: Windows) -> None:
    found = baseline_forecasts(market, start=market.opening[0], end=market.opening[-1], names=["HS500"])
    late = found.filter(pc.equal(found["asset"], "A1"))
    assert pc.min(late["date"]).as_py().replace(tzinfo=None) == market.opening[460].item()
    assert check_forecasts(found).equals(found)
    adverse = baseline_forecasts(
        market, start=market.opening[0], end=market.opening[-1], names=["HS500"], loss="adverse"
    )
    assert adverse["margin_rate"].equals(found["margin_rate"])
    with pytest.raises(ConfigurationError, match="did you mean 'HS500'"):
        baseline_forecasts(market, start=market.opening[0], end=market.opening[-1], names=["HS50"])


def test_a_price_that_never_moves_has_the_smallest_margin(market: Windows) -> None:
    still = market._replace(simple_return=np.zeros_like(market.simple_return))
    found = each_series(log_returns(still), lambda r: (trailing(r), trailing(r)))
    assert np.nanmax(found.margin) == SMALLEST_RATE
    for forecast in (filtered(log_returns(still), SETTINGS, decay=0.97), adaptive_level(log_returns(still), SETTINGS)):
        assert np.nanmax(forecast.margin) == SMALLEST_RATE


def trailing(returns: np.ndarray) -> LogForecast:
    return LogForecast(*trailing_tail(returns, length=100, start=400, level=0.99))


def test_recorded_history_gives_the_published_figures(recorded: Path) -> None:
    """Source: the design page on the yardstick of margin tiers, section 4.1."""
    history = read_market(recorded / "market")
    given = windows(history, "1d")
    found = baseline_forecasts(
        given,
        start=np.datetime64("2020-01-01", "us"),
        end=np.datetime64("2024-07-01", "us"),
        names=["EWMA97-N", "STATIC995"],
    )
    scores = score(found, history)
    perps = scores.groups[0]
    assert (perps.group, perps.side, perps.rows, len(perps.assets)) == ("perps", "both", 102_462, 47)
    ewma, static = perps.metrics["EWMA97-N"], perps.metrics["STATIC995"]
    assert (round(ewma.cover, 4), round(ewma.kup_ok, 2), round(ewma.cc_ok, 2)) == (0.9824, 0.37, 0.35)
    assert (round(ewma.pin_bp, 2), round(ewma.pin_n, 4), round(ewma.fz0, 3)) == (19.94, 0.9903, -1.530)
    assert (round(ewma.m_cov, 4), round(ewma.clus, 1), round(ewma.green, 2)) == (0.1416, 6.5, 0.56)
    assert (round(ewma.dlog, 3), round(ewma.p2t30, 2), round(ewma.up5, 2)) == (0.035, 2.30, 0.90)
    assert (round(static.pin_n, 4), round(static.fz0, 3), round(static.breach, 2)) == (1.2414, -1.393, 0.41)
    crisis = next(c for c in scores.crises if (c.crisis, c.model) == ("2020-03-12", "EWMA97-N"))
    figures = (crisis.cover, crisis.uncovered, crisis.first_margin, crisis.highest)
    assert tuple(round(figure, 3) for figure in figures) == (0.854, 0.152, 0.101, 2.288)
