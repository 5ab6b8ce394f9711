"""Every baseline against a slow loop, nothing from the future, and the published figures on recorded history."""

import importlib.util
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
from models.baselines.series import SMALLEST_RATE, Forecast, LogForecast, Moves, Settings, each_series, moves
from models.baselines.tail import tail, trailing_tail
from models.forecast_scores import score
from models.forecast_table import check_forecasts
from models.market_history import PERP, Loss, Windows, losses, read_market, windows

SETTINGS = Settings()
OF_LOSS: dict[Loss, Settings] = {"close": SETTINGS, "adverse": Settings(loss="adverse")}
BOTH = pytest.mark.parametrize("loss", ["close", "adverse"])
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


def series_of(windows: Windows, asset: int, loss: Loss = "close") -> tuple[np.ndarray, Moves]:
    """Positions of an asset's returns, and there its log returns and log losses."""
    returns = np.log1p(windows.simple_return[:, asset])
    rows = np.flatnonzero(np.isfinite(returns))
    long, short = (losses(windows, side, loss)[rows, asset] for side in ("long", "short"))
    return rows, Moves(returns[rows], np.log(1.0 / (1.0 - long)), np.log(1.0 + short))


def slow_volatility(returns: np.ndarray, decay: float) -> list[float]:
    variance = [float(np.mean(returns[:100] ** 2) - np.mean(returns[:100]) ** 2)]
    for value in returns[:-1]:
        variance.append(decay * variance[-1] + (1.0 - decay) * float(value) ** 2)
    return [math.sqrt(value) for value in variance]


def expect(found: Forecast, windows: Windows, slow_quantile: object, loss: Loss = "close") -> None:
    """`slow_quantile(losses, volatility, i)` gives the log quantile of forecast i; checked on every tenth of them."""
    for asset in range(len(windows.assets)):
        rows, own = series_of(windows, asset, loss)
        volatility = slow_volatility(own.log_return, 0.97)
        assert np.isnan(found.margin[rows[:400], asset]).all()
        assert np.isfinite(found.margin[rows[400:], asset]).all()
        assert (found.shortfall[rows[400:], asset] >= found.margin[rows[400:], asset] * (1.0 - ROUNDING)).all()
        for i in range(400, len(rows), 10):
            quantile = slow_quantile(own.long, volatility, i)  # type: ignore[operator]
            assert found.margin[rows[i], asset, 0] == pytest.approx(1.0 - math.exp(-quantile), rel=ROUNDING)
            quantile = slow_quantile(own.short, volatility, i)  # type: ignore[operator]
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


@BOTH
def test_historical_simulation(market: Windows, loss: Loss) -> None:
    found = historical_simulation(moves(market, loss), OF_LOSS[loss])
    expect(found, market, lambda losses, _, i: np.quantile(losses[max(0, i - 500) : i], 0.99), loss)


@BOTH
def test_constant_tier_is_refreshed_every_30_days(market: Windows, loss: Loss) -> None:
    found = constant_tier(moves(market, loss), OF_LOSS[loss])
    expect(found, market, lambda losses, _, i: np.quantile(losses[: 400 + (i - 400) // 30 * 30], 0.995), loss)


@BOTH
def test_normal_volatility(market: Windows, loss: Loss) -> None:
    found = normal(moves(market, loss), OF_LOSS[loss], decay=0.97)
    level = 0.99 if loss == "close" else 0.995
    expect(found, market, lambda _, volatility, i: norm.ppf(level) * volatility[i], loss)
    rows, own = series_of(market, 0)
    beyond = norm.pdf(norm.ppf(level)) / (1.0 - level) * slow_volatility(own.log_return, 0.97)[450]
    assert found.shortfall[rows[450], 0, 1] == pytest.approx(math.exp(beyond) - 1.0, rel=ROUNDING)


def slow_score_quantile(losses: np.ndarray, volatility: list[float], i: int, level: float = 0.99) -> float:
    scores = losses / np.array(volatility)
    return float(np.quantile(scores[max(60, i - 1000) : i], level)) * volatility[i]


@BOTH
def test_filtered_history(market: Windows, loss: Loss) -> None:
    expect(filtered(moves(market, loss), OF_LOSS[loss], decay=0.97), market, slow_score_quantile, loss)


def test_windows_of_eight_hours_take_the_root_of_the_decay() -> None:
    returns = np.random.default_rng(5).standard_normal(500)
    found = ewma_volatility(returns, 0.97, Settings(0.99, 3))
    decay, start = 0.97 ** (1.0 / 3.0), np.var(returns[:300])
    expected = decay**2 * start + (1.0 - decay) * (decay * returns[0] ** 2 + returns[1] ** 2)
    assert found[2] == pytest.approx(math.sqrt(expected), rel=ROUNDING)


@BOTH
def test_adaptive_level_follows_its_breaches(market: Windows, loss: Loss) -> None:
    def slow(losses: np.ndarray, volatility: list[float], last: int) -> float:
        alpha = 0.01
        for i in range(400, last + 1):
            quantile = slow_score_quantile(losses, volatility, i, 1.0 - alpha)
            alpha += 0.005 * (0.01 - (1.0 if losses[i] > quantile else 0.0))
            alpha = min(max(alpha, 0.0005), 0.05)
        return quantile

    expect(adaptive_level(moves(market, loss), OF_LOSS[loss]), market, slow, loss)


@BOTH
def test_tracked_quantile_grows_with_breaches(market: Windows, loss: Loss) -> None:
    def slow(losses: np.ndarray, volatility: list[float], last: int) -> float:
        scores = losses / np.array(volatility)
        quantile = float(np.quantile(scores[60:400], 0.99))
        for i in range(400, last):
            quantile += 0.05 * max(scores[max(60, i - 250) : i]) * ((1.0 if scores[i] > quantile else 0.0) - 0.01)
        return quantile * volatility[last]

    expect(tracked_quantile(moves(market, loss), OF_LOSS[loss]), market, slow, loss)


@BOTH
def test_the_three_tools_of_emir(market: Windows, loss: Loss) -> None:
    of_all, settings = moves(market, loss), OF_LOSS[loss]
    base = filtered(of_all, settings, decay=0.97)
    with_buffer = buffered(base)
    with_stress, with_floor = stressed(base, of_all, settings), floored(base, of_all, settings, decay=0.97)
    for asset in range(2):
        rows, own = series_of(market, asset, loss)
        volatility = slow_volatility(own.log_return, 0.97)
        previous = 1.25 * base.margin[rows[400], asset, 0]
        for i in range(400, len(rows)):
            rate = base.margin[rows[i], asset, 0]
            previous = max(rate, min(1.25 * rate, previous))
            assert with_buffer.margin[rows[i], asset, 0] == pytest.approx(previous, rel=ROUNDING)
            if i % 25:
                continue
            highest = max(np.quantile(own.long[end - 250 : end], 0.99) for end in range(250, i + 1))
            stress = 1.0 - math.exp(-highest)
            expected = max(rate, 0.75 * rate + 0.25 * stress)
            assert with_stress.margin[rows[i], asset, 0] == pytest.approx(expected, rel=ROUNDING)
            score_quantile = slow_score_quantile(own.long, volatility, i) / volatility[i]
            floor = 1.0 - math.exp(-score_quantile * float(np.std(own.log_return[:i])))
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


@BOTH
def test_the_last_loss_is_that_of_the_side(market: Windows, loss: Loss) -> None:
    known = inputs(market, OF_LOSS[loss])
    for asset in range(2):
        rows, own = series_of(market, asset, loss)
        volatility = slow_volatility(own.log_return, 0.97)
        week = sum(own.log_return[445:450]) / 5 / volatility[450]
        expected = ((own.long[449] / volatility[450], -week), (own.short[449] / volatility[450], week))
        for side, of_side in zip(expected, (known.long, known.short), strict=True):
            np.testing.assert_allclose(of_side[rows[450], asset, -2:], side, rtol=1e-9)


# ---- the adverse excursion -----------------------------------------------------------------------------------------


def brownian(days: int, assets: int, *, seed: int, wick: float = 1.0) -> Windows:
    """Days of Brownian log prices at 4 % volatility with their exact highs and lows; `wick` stretches the highs.

    Given the end r of a path, its highest point is (r + sqrt(r^2 - 2 s^2 ln u)) / 2 with u uniform.
    """
    generator = np.random.default_rng(seed)
    deviation = 0.04
    returns = deviation * generator.standard_normal((days, assets))
    highest, lowest = (
        0.5 * (end + np.sqrt(end**2 - 2.0 * deviation**2 * np.log(generator.uniform(size=end.shape))))
        for end in (returns, -returns)
    )
    close = np.exp(np.cumsum(returns, axis=0))
    opened = close * np.exp(-returns)
    given = panel(days, assets, seed=seed)
    return given._replace(
        close=close, open=opened, high=opened * np.exp(highest), low=opened * np.exp(-lowest),
        simple_return=np.expm1(returns), adverse_long=-np.expm1(-lowest), adverse_short=np.expm1(wick * highest),
    )  # fmt: skip


DEGREES = {
    "HS500": math.inf,
    "EWMA97-N": math.inf,
    "EWMA97-FHS": 1.97 / 0.03,
    "EWMA94-FHS": 1.94 / 0.06,
    "ACI-EWMA97": 1.97 / 0.03,
    "QT-EWMA97": 1.97 / 0.03,
    "HAR-QR-pooled": math.inf,
}
"""Of the baselines that aim at the level itself (the tools and the constant tier aim above it) the degrees of freedom
of the scores that they take quantiles of: a normal variable over the root of an exponential average with decay d of its
squares, worth (1 + d) / (1 - d) of them."""


def medians_and_coverage(world: Windows, loss: Loss, names: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    """By model, for long and short: the median log quantile of all days in deviations of 4 %, and the coverage."""
    table = baseline_forecasts(
        world, start=world.opening[0], end=world.opening[-1] + np.timedelta64(1, "D"), loss=loss, names=names
    )
    found: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        for side in ("long", "short"):
            own = table.filter(pc.and_(pc.equal(table["model"], name), pc.equal(table["side"], side)))
            rate = own["margin_rate"].to_numpy()
            days = np.searchsorted(world.opening, own["date"].to_numpy().astype("datetime64[us]"))
            assets = np.searchsorted(world.assets, own["asset"].to_numpy(zero_copy_only=False))
            loss_of = losses(world, side, loss)[days, assets]
            log_rate = -np.log1p(-rate) if side == "long" else np.log1p(rate)
            found.setdefault(name, []).append((float(np.median(log_rate)) / 0.04, float(np.mean(loss_of <= rate))))
    return found


def test_refitted_baselines_meet_a_known_quantile_of_the_excursion() -> None:
    """The highest point of a Brownian day is distributed as the absolute value of its end: 2.576 deviations at 99 %."""
    world = brownian(1600, 4, seed=21)
    for name, sides in medians_and_coverage(world, "adverse", tuple(DEGREES)).items():
        for median, _ in sides:
            # a quantile of 1,000 days has a standard error of 4.3 % (of 500: 6 %), the mean of four assets half of that
            assert median == pytest.approx(student_t.ppf(0.995, DEGREES[name]), rel=0.05), name
        # 9,600 losses have a standard error of 0.001; quantiles from a sample fall short by up to 0.002
        assert np.mean([cover for _, cover in sides]) == pytest.approx(0.989, abs=0.003), name


def test_empirical_baselines_follow_each_side_of_the_excursion() -> None:
    """Highs half as far again: what stands on excursions follows on the short side, a law of the returns does not."""
    names = tuple(name for name in DEGREES if not name.startswith("HAR"))
    for name, (long, short) in medians_and_coverage(brownian(1400, 4, seed=22, wick=1.5), "adverse", names).items():
        quantile = student_t.ppf(0.995, DEGREES[name])
        assert long[0] == pytest.approx(quantile, rel=0.05), name
        assert short[0] == pytest.approx((1.0 if name == "EWMA97-N" else 1.5) * quantile, rel=0.05), name


def test_closes_are_forecast_without_a_look_at_excursions(market: Windows) -> None:
    span = {"start": market.opening[0], "end": market.opening[-1]}
    other = market._replace(adverse_long=0.5 + 0.0 * market.close, adverse_short=2.0 + 0.0 * market.close)
    names = WITHOUT_ARCH if importlib.util.find_spec("arch") is None else list(BASELINES)
    assert baseline_forecasts(market, names=names, **span).equals(baseline_forecasts(other, names=names, **span))


def test_an_unknown_low_counts_as_the_loss_to_the_close(market: Windows) -> None:
    unknown = market.adverse_long.copy()
    unknown[450, 0] = np.nan
    at_least = market.adverse_long.copy()
    at_least[450, 0] = -market.simple_return[450, 0]
    names = ("HS500", "EWMA94-FHS", "QT-EWMA97")
    span = {"start": market.opening[0], "end": market.opening[-1], "loss": "adverse", "names": names}
    one = baseline_forecasts(market._replace(adverse_long=unknown), **span)
    rates = baseline_forecasts(market._replace(adverse_long=at_least), **span)["margin_rate"].to_numpy()
    np.testing.assert_allclose(one["margin_rate"].to_numpy(), rates, rtol=1e-9)
    on_day = pc.equal(one["date"], pa.scalar(market.opening[450].item(), pa.timestamp("us", "UTC")))
    assert one.filter(on_day).num_rows == len(names) * 2  # the other asset is too young


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
        student(moves(market, "close"), SETTINGS)


@BOTH
def test_garch_runs_on_between_fits_and_sees_no_future(loss: Loss) -> None:
    pytest.importorskip("arch", reason="the extra 'baselines' is not installed")
    given = panel(500, 1)
    names = ("GARCH-t", "GJR-FHS")
    span = {"start": given.opening[0], "end": given.opening[-1] + np.timedelta64(1, "D"), "loss": loss}
    whole = baseline_forecasts(given, names=names, **span)
    later = np.arange(500)[:, None] >= 490
    changed = given._replace(
        simple_return=np.where(later, 0.5, given.simple_return), adverse_short=np.where(later, 0.7, given.adverse_short)
    )
    other = baseline_forecasts(changed, names=names, workers=2, **span)
    before = pc.less(whole["date"], pa.scalar(given.opening[491].item(), pa.timestamp("us", "UTC")))
    assert whole.filter(before).equals(other.filter(before))
    assert whole.filter(before).num_rows == 2 * 2 * (491 - 465)
    assert not whole.equals(other)


# ---- the table -----------------------------------------------------------------------------------------------------


@BOTH
def test_nothing_comes_from_the_future(market: Windows, loss: Loss) -> None:
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
        adverse_long=np.where(later[:, None], 0.9, market.adverse_long),
        adverse_short=np.where(later[:, None], 3.0, market.adverse_short),
        volume=disturbed(market.volume),
    )
    span = {"start": market.opening[0], "end": market.opening[first] + np.timedelta64(1, "D")}
    one = baseline_forecasts(market, names=WITHOUT_ARCH, loss=loss, **span)
    # the last forecasts are for the very window from which on everything is another
    assert pc.max(one["date"]).as_py().replace(tzinfo=None) == market.opening[first].item()
    assert one.equals(baseline_forecasts(changed, names=WITHOUT_ARCH, loss=loss, **span))
    assert set(one["loss"].to_pylist()) == {loss}
    assert set(one["model"].to_pylist()) == set(WITHOUT_ARCH)


def test_forecasts_need_400_days_and_a_return(market: Windows) -> None:
    found = baseline_forecasts(market, start=market.opening[0], end=market.opening[-1], names=["HS500"])
    late = found.filter(pc.equal(found["asset"], "A1"))
    assert pc.min(late["date"]).as_py().replace(tzinfo=None) == market.opening[460].item()
    assert check_forecasts(found).equals(found)
    with pytest.raises(ConfigurationError, match="did you mean 'HS500'"):
        baseline_forecasts(market, start=market.opening[0], end=market.opening[-1], names=["HS50"])


def test_a_price_that_never_moves_has_the_smallest_margin(market: Windows) -> None:
    still = market._replace(simple_return=np.zeros_like(market.simple_return))
    own = moves(still, "close")
    found = each_series(own, lambda of: (trailing(of.long), trailing(of.short)))
    assert np.nanmax(found.margin) == SMALLEST_RATE
    for forecast in (filtered(own, SETTINGS, decay=0.97), adaptive_level(own, SETTINGS)):
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
