"""Market history: what is rejected and why, returns without look-ahead, volatility against a slow twin, fill rules."""

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from aggregator.errors import ConfigurationError, DataError, Failure, FailureReason
from aggregator.generators.filtered_historical import filtered_historical
from aggregator.history import FactorHistory, Proxy, VolatilityRule, ewma_volatility, factor_history, volatility_rule
from aggregator.history_tables import ReturnPanel, implied_vol_changes, read_history_table, return_panel
from aggregator.scenarios import PegDistribution, draw_all

RTOL_FLOAT64 = 1e-12  # float64 against float64, a few operations
RTOL_RUNNING_SUM = 1e-10  # windows by differences of running sums against sums of the window
FIRST_DAY = np.datetime64("2023-01-01")
RECORDED_SECONDS = 5.0

Row = tuple[str, str, Any, float | None]


def day(number: int) -> datetime:
    return (FIRST_DAY + number).astype("datetime64[us]").astype(datetime)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def table(rows: list[Row], **columns: list[Any]) -> pa.Table:
    asset, market, ts, close = zip(*rows, strict=True)
    opened = [np.datetime64(t, "ms").astype(datetime) if t is not None else None for t in ts]
    return pa.table(
        {
            "asset": pa.array(asset).dictionary_encode(),
            "market": pa.array(market).dictionary_encode(),
            "ts": pa.array(opened, type=pa.timestamp("ms", tz="UTC")),
            "close": pa.array(close, type=pa.float64()),
            "venue": ["somewhere"] * len(rows),
        }
        | columns
    )


def closes(asset: str, returns: np.ndarray, *, first: int = 0, market: str = "perp") -> list[Row]:
    path = 100.0 * np.exp(np.concatenate([[0.0], np.cumsum(returns)]))
    return [(asset, market, day(first + i), float(price)) for i, price in enumerate(path)]


def daily(seed: int, count: int, std: float = 0.03) -> np.ndarray:
    return std * np.random.default_rng(seed).standard_normal(count)


def anchor_rows(count: int = 20) -> list[Row]:
    return closes("BTC", daily(1, count)) + closes("ETH", daily(2, count))


def reasons(failures: tuple[Failure, ...]) -> list[tuple[str, str]]:
    return [(failure.path, failure.reason.value) for failure in failures]


def column(panel: ReturnPanel, asset: str) -> np.ndarray:
    return panel.returns[:, panel.assets.index(asset)]


# ---- closes to returns ---------------------------------------------------------------------------------------------


def test_returns_are_log_changes_of_consecutive_closes_in_any_order_of_rows() -> None:
    sol = daily(3, 20)
    rows = anchor_rows() + closes("SOL", sol)
    panel, failures = return_panel(table(rows), ["SOL"])
    assert failures == ()
    assert panel.assets == ("BTC", "ETH", "SOL")
    assert panel.anchors == (0, 1)
    assert panel.markets == ("perp", "perp", "perp")
    assert (panel.dates[0], panel.dates[-1], len(panel.dates)) == (FIRST_DAY + 1, FIRST_DAY + 20, 20)
    np.testing.assert_allclose(column(panel, "SOL"), sol, rtol=1e-9, atol=1e-15)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    again, _ = return_panel(table(shuffled), ["SOL"])
    np.testing.assert_array_equal(again.returns, panel.returns)


def test_a_return_across_a_gap_is_missing() -> None:
    rows = anchor_rows() + [row for row in closes("SOL", daily(3, 20)) if row[2] != day(10)]
    panel, failures = return_panel(table(rows), ["SOL"])
    assert failures == ()
    missing = panel.dates[np.isnan(column(panel, "SOL"))]
    np.testing.assert_array_equal(missing, [FIRST_DAY + 10, FIRST_DAY + 11])


def test_dates_are_those_at_which_every_anchor_has_a_return() -> None:
    rows = [row for row in anchor_rows() if row[:3] != ("ETH", "perp", day(5))]
    rows += closes("SOL", daily(3, 40), first=-10)
    panel, _ = return_panel(table(rows), ["SOL"])
    assert (panel.dates[0], panel.dates[-1], len(panel.dates)) == (FIRST_DAY + 1, FIRST_DAY + 20, 18)
    assert np.isfinite(panel.returns).all()


@pytest.mark.parametrize(
    ("change", "reason", "missing"),
    [
        ({7: 0.0}, "out_of_range", [7, 8]),
        ({7: -5.0}, "out_of_range", [7, 8]),
        ({7: math.nan}, "not_a_number", [7, 8]),
        ({7: math.inf}, "not_a_number", [7, 8]),
        ({7: None}, "missing_field", [7, 8]),
    ],
)
def test_a_close_that_is_no_price_fails_and_its_returns_are_missing(
    change: dict[int, float | None], reason: str, missing: list[int]
) -> None:
    sol = [(*row[:3], change.get(i, row[3])) for i, row in enumerate(closes("SOL", daily(3, 20)))]
    panel, failures = return_panel(table(anchor_rows() + sol), ["SOL"])
    assert reasons(failures) == [("SOL/perp/2023-01-08", reason)]
    assert failures[0].subject == "SOL"
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(column(panel, "SOL"))), np.array(missing) - 1)


def test_all_copies_of_a_duplicate_are_rejected() -> None:
    sol = closes("SOL", daily(3, 20))
    panel, failures = return_panel(table(anchor_rows() + sol + [sol[7]]), ["SOL"])
    assert reasons(failures) == [("SOL/perp/2023-01-08", "duplicate")] * 2
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(column(panel, "SOL"))), [6, 7])


def test_a_price_that_stands_still_is_stale() -> None:
    sol = closes("SOL", daily(3, 20))
    sol[5] = (*sol[5][:3], sol[4][3])  # two equal closes happen
    for i in (11, 12, 13):
        sol[i] = (*sol[i][:3], sol[10][3])
    panel, failures = return_panel(table(anchor_rows() + sol), ["SOL"])
    assert reasons(failures) == [(f"SOL/perp/2023-01-{d}", "stale") for d in (12, 13, 14)]
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(column(panel, "SOL"))), [10, 11, 12, 13])
    assert column(panel, "SOL")[4] == 0.0


def test_a_bar_off_the_daily_grid_or_without_time_fails() -> None:
    sol = closes("SOL", daily(3, 20))
    sol[7] = ("SOL", "perp", day(7).replace(hour=8), sol[7][3])
    sol[15] = ("SOL", "perp", None, sol[15][3])
    panel, failures = return_panel(table(anchor_rows() + sol), ["SOL"])
    assert [failure.reason for failure in failures] == [FailureReason.MISSING_FIELD, FailureReason.MALFORMED]
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(column(panel, "SOL"))), [6, 7, 14, 15])


def test_hourly_bars_are_not_taken_for_days() -> None:
    rows: list[Row] = [("BTC", "perp", day(0).replace(hour=h), 100.0 + h) for h in range(24)]
    with pytest.raises(DataError, match="00:00 UTC"):
        return_panel(table(rows), [])


def test_a_last_bar_that_is_not_full_is_dropped() -> None:
    rows = anchor_rows() + closes("SOL", daily(3, 20))
    bars = [24] * len(rows)
    bars[-1] = 7
    bars[-10] = 20  # a maintenance gap inside the series stays
    panel, failures = return_panel(table(rows, nbars=bars), ["SOL"])
    assert failures == ()
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(column(panel, "SOL"))), [19])


def test_nothing_that_was_not_known_at_as_of_is_used() -> None:
    rows = anchor_rows() + closes("SOL", daily(3, 20))
    whole, _ = return_panel(table(rows), ["SOL"])
    cut, _ = return_panel(table(rows), ["SOL"], as_of=moment("2023-01-11T00:00:00"))
    assert cut.dates[-1] == np.datetime64("2023-01-10")  # that day's bar closed at this instant
    earlier, _ = return_panel(table(rows), ["SOL"], as_of=moment("2023-01-10T23:59:59"))
    assert earlier.dates[-1] == np.datetime64("2023-01-09")
    np.testing.assert_array_equal(cut.returns, whole.returns[: len(cut.dates)])
    with pytest.raises(ConfigurationError, match="time zone"):
        return_panel(table(rows), ["SOL"], as_of=datetime(2023, 1, 11))


def test_the_first_market_of_the_preference_is_used_and_spliced_only_when_told() -> None:
    spot, perp = daily(4, 20), daily(5, 8)
    rows = anchor_rows() + closes("SOL", spot, market="spot") + closes("SOL", perp, first=12)
    panel, _ = return_panel(table(rows), ["SOL"])
    assert panel.markets[2] == "perp"
    assert np.count_nonzero(np.isfinite(column(panel, "SOL"))) == 8
    other, _ = return_panel(table(rows), ["SOL"], markets=("spot", "perp"))
    np.testing.assert_allclose(column(other, "SOL"), spot, rtol=1e-9, atol=1e-15)
    joined, _ = return_panel(table(rows), ["SOL"], splice=True)
    assert joined.markets[2] == "perp+spot"
    np.testing.assert_allclose(column(joined, "SOL"), [*spot[:12], *perp], rtol=1e-9, atol=1e-15)


def test_a_bad_row_of_a_lesser_market_counts_only_where_it_is_needed() -> None:
    spot, perp = daily(4, 20), daily(5, 8)
    listed = closes("SOL", perp, first=12)  # its first return is that of day 13
    for bad, needed in ((5, True), (12, True), (13, False), (20, False)):
        of_spot = closes("SOL", spot, market="spot")
        asset, market, opened, _ = of_spot[bad]
        of_spot[bad] = asset, market, opened, -1.0
        joined, failures = return_panel(table(anchor_rows() + of_spot + listed), ["SOL"], splice=True)
        path = f"SOL/spot/{FIRST_DAY + bad}"
        assert [failure.path for failure in failures] == ([path] if needed else []), bad
        missing = [bad - 1, bad] if bad == 5 else [11] if bad == 12 else []  # position 0 is the return of day 1
        assert list(np.flatnonzero(np.isnan(column(joined, "SOL")))) == missing, bad
        _, failures = return_panel(table(anchor_rows() + of_spot), ["SOL"], splice=True)
        assert [failure.path for failure in failures] == [path], bad


def test_missing_columns_and_anchors_are_named() -> None:
    whole = table(anchor_rows())
    with pytest.raises(DataError, match="no column close"):
        return_panel(whole.drop_columns(["close"]), [])
    with pytest.raises(DataError, match="anchor ETH"):
        return_panel(table(closes("BTC", daily(1, 20))), [])
    with pytest.raises(DataError, match="anchor BTC"):
        return_panel(table(closes("SOL", daily(1, 20))), ["SOL"])


def test_the_same_table_in_every_file_format(tmp_path: Path) -> None:
    written = table(anchor_rows() + closes("SOL", daily(3, 20)))
    plain = written.cast(pa.schema([f.with_type(pa.string()) if i < 2 else f for i, f in enumerate(written.schema)]))
    pa.parquet.write_table(written, tmp_path / "bars.parquet")
    pa.csv.write_csv(plain, tmp_path / "bars.csv")
    pa.feather.write_feather(written, tmp_path / "bars.arrow")
    expected, _ = return_panel(written, ["SOL"])
    for name in ("bars.parquet", "bars.csv", "bars.arrow"):
        panel, failures = return_panel(read_history_table(tmp_path / name), ["SOL"])
        assert failures == ()
        np.testing.assert_array_equal(panel.dates, expected.dates)
        np.testing.assert_array_equal(panel.returns, expected.returns, err_msg=name)
    text = (tmp_path / "bars.csv").read_text().splitlines()
    text[5] = text[5].replace(text[5].split(",")[3], '"n/a?"')
    (tmp_path / "bad.csv").write_text("\n".join(text))
    _, failures = return_panel(read_history_table(tmp_path / "bad.csv"), ["SOL"])
    assert reasons(failures) == [("BTC/perp/2023-01-05", "not_a_number")]
    for name, message in (("bars.xlsx", "suffix"), ("absent.csv", "does not exist")):
        if message == "suffix":
            (tmp_path / name).write_text("")
        with pytest.raises(ConfigurationError, match=message):
            read_history_table(tmp_path / name)


# ---- volatility ----------------------------------------------------------------------------------------------------


def slow_volatility(returns: list[float], decay: float, burn_in: int, fraction: float, window: int) -> list[float]:
    """Volatility known before each day and before the next one, by the definition."""
    result = []
    for t in range(len(returns) + 1):
        past = [r for r in returns[:t] if not math.isnan(r)]
        if len(past) < burn_in:
            result.append(math.nan)
            continue
        variance = sum(r * r for r in past[:burn_in]) / burn_in
        for r in past[burn_in:]:
            variance = decay * variance + (1.0 - decay) * r * r
        year = [r for r in returns[max(0, t - window) : t] if not math.isnan(r)]
        floor = fraction * math.sqrt(sum(r * r for r in year) / len(year)) if len(year) >= burn_in else 0.0
        result.append(max(math.sqrt(variance), floor))
    return result


def test_volatility_is_that_of_the_definition() -> None:
    returns = np.stack([daily(1, 260, 0.05), daily(2, 260, 0.02), daily(3, 260, 0.04)], axis=1)
    returns[60:200, 0] *= 0.05  # a calm stretch in which the floor binds
    returns[:35, 1] = np.nan  # listed later
    returns[100:103, 2] = np.nan  # a gap
    got = ewma_volatility(returns, decay=0.94, burn_in=10, floor_fraction=0.5, floor_window=90)
    expected = np.array([slow_volatility(list(returns[:, c]), 0.94, 10, 0.5, 90) for c in range(3)]).T
    np.testing.assert_allclose(got, expected, rtol=RTOL_RUNNING_SUM)
    unfloored = ewma_volatility(returns, decay=0.94, burn_in=10, floor_fraction=0.0, floor_window=90)
    assert (got[:, 0] > unfloored[:, 0] * 1.5).any()
    assert np.isnan(ewma_volatility(np.full((40, 1), np.nan))).all()


def test_volatility_and_residuals_use_the_past_only() -> None:
    returns = daily(1, 100).reshape(-1, 1)
    before = ewma_volatility(returns)
    returns[60:] *= 10.0
    after = ewma_volatility(returns)
    np.testing.assert_array_equal(after[:61], before[:61])
    assert (after[62:] > before[62:]).all()


def test_volatility_rule_is_the_regression_through_the_origin() -> None:
    returns = daily(1, 400)
    noise = daily(2, 400, 0.04)
    changes = -0.6 * returns + noise
    changes[::7] = np.nan
    rule = volatility_rule("price:BTC", changes, returns)
    assert rule is not None
    there = np.isfinite(changes)
    beta = np.linalg.lstsq(returns[there, None], changes[there], rcond=None)[0][0]
    residual = changes[there] - beta * returns[there]
    assert math.isclose(rule.beta, beta, rel_tol=1e-10)
    assert math.isclose(rule.eta, math.sqrt(np.mean(residual**2)), rel_tol=1e-10)
    assert volatility_rule("price:BTC", changes[:200], returns[:200]) is None


# ---- factors -------------------------------------------------------------------------------------------------------

DAYS = 700


def market() -> list[Row]:
    """BTC and ETH from day 0; SOL from day 300 on them; APT with 100 days; LUNA ended 60 days before the others."""
    btc = daily(1, DAYS)
    eth = 0.8 * btc + daily(2, DAYS, 0.02)
    sol = 1.5 * btc + 0.5 * eth + daily(3, DAYS, 0.01)
    rows = closes("BTC", btc) + closes("ETH", eth) + closes("SOL", sol[300:], first=300)
    return rows + closes("APT", daily(4, 100), first=DAYS - 100) + closes("LUNA", daily(5, DAYS - 60))


def context(days: int) -> pa.Table:
    level = 60.0 * np.exp(np.cumsum(daily(9, days, 0.05)))
    return pa.table(
        {
            "asset": ["BTC"] * days,
            "series": ["dvol_close"] * days,
            "ts": pa.array([day(DAYS - days + 1 + i) for i in range(days)], type=pa.timestamp("ms", tz="UTC")),
            "value": level,
        }
    )


def history(factors: tuple[str, ...], *, vol_days: int = 400, **options: Any) -> FactorHistory:
    assets = [name.partition(":")[2] for name in factors if name.startswith("price:")]
    panel, failures = return_panel(table(market()), assets)
    assert failures == ()
    implied, failures = implied_vol_changes(context(vol_days), ["BTC", "ETH"], dates=panel.dates)
    assert failures == ()
    assert list(implied) == ["BTC"]
    return factor_history(panel, factors, implied_vols=implied, **options)


def test_residuals_are_returns_over_the_volatility_known_before() -> None:
    result = history(("price:BTC", "price:SOL"))
    panel, _ = return_panel(table(market()), ["SOL"])
    for asset in ("BTC", "SOL"):
        returns = list(column(panel, asset))
        sigma = slow_volatility(returns, 0.97, 30, 0.5, 365)
        expected = np.array([r / s for r, s in zip(returns, sigma[:-1], strict=True)])[30:]
        index, scale = result.columns[f"price:{asset}"]
        np.testing.assert_allclose(result.residuals[:, index], expected, rtol=RTOL_RUNNING_SUM)
        assert math.isclose(result.sigma_next[index], sigma[-1], rel_tol=RTOL_RUNNING_SUM)
        assert scale == 1.0
    np.testing.assert_array_equal(result.dates, panel.dates[30:])
    btc, sol = result.diagnostics
    assert (btc.filled_share, btc.days, btc.first_date, btc.last_date) == (0.0, 700, "2023-01-02", "2024-12-01")
    assert (sol.days, sol.origin, sol.market, sol.first_date) == (400, "own", "perp", "2023-10-29")
    assert math.isclose(sol.filled_share, 300.0 / 670.0)  # 300 days of 700 and its own burn-in, over 670 dates


def test_a_short_history_is_loaded_on_both_anchors() -> None:
    result = history(("price:SOL",))
    index, _ = result.columns["price:SOL"]
    there = np.isfinite(result.residuals[:, index])
    z, anchors = result.residuals[there, index], result.anchor_residuals[there]
    gram = anchors.T @ anchors
    np.testing.assert_allclose(result.loadings[index], np.linalg.solve(gram, anchors.T @ z), rtol=1e-9)
    np.testing.assert_allclose(result.own_residuals[index], z - anchors @ result.loadings[index], rtol=0, atol=1e-12)
    assert (result.loadings[index] > 0.1).all()  # both anchors are in the returns of this asset
    generator = filtered_historical(("price:SOL",), result, key=jax.random.key(0))
    filled = np.asarray(generator.residuals[:, 0])
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[there], z)


def test_short_ended_and_absent_histories_need_a_proxy() -> None:
    names = ("price:APT", "price:BTC", "price:LUNA", "price:WIF")
    result = history(names)
    assert list(result.columns) == ["price:BTC"]
    assert [(f.subject, f.reason.value) for f in result.failures] == [
        ("price:APT", "missing_parameter"),
        ("price:LUNA", "stale"),
        ("price:WIF", "missing_parameter"),
    ]
    proxies = {"APT": Proxy("SOL", 1.2), "LUNA": Proxy("ETH"), "WIF": Proxy("DOGE", 2.0)}
    panel, _ = return_panel(table(market()), ["APT", "LUNA", "SOL"])
    result = factor_history(panel, names, proxies=proxies)
    assert [failure.subject for failure in result.failures] == ["price:WIF"]
    assert "proxy DOGE" in result.failures[0].message
    own = factor_history(panel, ("price:SOL",))
    index, scale = result.columns["price:APT"]
    assert scale == 1.2
    np.testing.assert_array_equal(result.residuals[:, index], own.residuals[:, 0])
    apt = result.diagnostics[0]
    assert (apt.factor, apt.origin, apt.proxy, apt.proxy_scale) == ("price:APT", "proxy", "SOL", 1.2)
    assert math.isclose(apt.sigma_next, 1.2 * own.sigma_next[0], rel_tol=RTOL_FLOAT64)


def test_implied_volatility_has_its_own_residuals_or_the_rule_of_the_anchor() -> None:
    names = ("price:BTC", "price:ETH", "vol:BTC", "vol:ETH")
    result = history(names)
    panel, _ = return_panel(table(market()), [])
    implied, _ = implied_vol_changes(context(400), ["BTC"], dates=panel.dates)
    fitted = volatility_rule("price:BTC", implied["BTC"], column(panel, "BTC"))
    assert fitted is not None
    assert result.fill_rules == {"vol:BTC": fitted}
    assert result.rules == {"vol:ETH": fitted._replace(underlying="price:ETH")}
    index, _ = result.columns["vol:BTC"]
    sigma = slow_volatility(list(implied["BTC"]), 0.97, 30, 0.5, 365)
    z = result.residuals[:, index]
    np.testing.assert_allclose(z[-1], implied["BTC"][-1] / sigma[-2], rtol=RTOL_RUNNING_SUM)
    assert np.isnan(z).sum() == 670 - (399 - 30)
    shares = {d.factor: (d.origin, d.filled_share) for d in result.diagnostics}
    assert shares["vol:ETH"] == ("rule", 1.0)
    assert shares["vol:BTC"][0] == "own"

    configured = {"ETH": VolatilityRule("price:ETH", -0.2, 0.07)}
    assert history(names, volatility_rules=configured).rules["vol:ETH"] == configured["ETH"]
    short = history(names, vol_days=200)
    assert [f.subject for f in short.failures] == ["vol:BTC", "vol:ETH"]
    assert {f.reason for f in short.failures} == {FailureReason.MISSING_PARAMETER}
    assert list(history(("vol:WIF",)).columns) == []


def test_factors_and_proxies_are_checked() -> None:
    for names in (("BTC",), ("price:",), ("rate:USD",)):
        with pytest.raises(ConfigurationError, match="price:NAME"):
            history(names)
    with pytest.raises(ConfigurationError, match="proxy of WIF: scale"):
        history(("price:WIF",), proxies={"WIF": Proxy("SOL", 0.0)})
    with pytest.raises(ConfigurationError, match="proxy of WIF is WIF itself"):
        history(("price:WIF",), proxies={"WIF": Proxy("WIF")})
    panel, _ = return_panel(table(anchor_rows()), [])
    with pytest.raises(DataError, match="20 common daily returns"):
        factor_history(panel, ("price:BTC",))


def test_history_to_scenarios_has_no_missing_number() -> None:
    names = ("peg:USDC", "price:APT", "price:BTC", "price:ETH", "price:SOL", "vol:BTC", "vol:ETH")
    result = history(names, proxies={"APT": Proxy("SOL", 1.2)})
    assert result.failures == ()
    pegs = {"peg:USDC": PegDistribution(0.0005, 3.0)}
    generator = filtered_historical(names, result, key=jax.random.key(0), pegs=pegs)
    drawn = draw_all(generator, jax.random.key(1))
    shocks = np.asarray(drawn.shocks)
    assert np.isfinite(shocks).all()
    np.testing.assert_allclose(shocks[:, 1], 1.2 * shocks[:, 4], rtol=RTOL_FLOAT64)
    btc = result.columns["price:BTC"][0]
    np.testing.assert_array_equal(shocks[:670, 2], result.sigma_next[btc] * result.residuals[:, btc])


def test_recorded_market_history(recorded: Path) -> None:
    started = time.perf_counter()
    bars = read_history_table(recorded / "market" / "ohlcv_1d.parquet")
    series = read_history_table(recorded / "market" / "context.parquet")
    assets = sorted(set(bars.filter(pa.compute.equal(bars["market"], "perp"))["asset"].to_pylist()))
    panel, rejected = return_panel(bars, assets, as_of=moment("2024-07-01T00:00:00"))
    implied, _ = implied_vol_changes(series, ["BTC", "ETH"], dates=panel.dates)
    names = tuple(sorted([f"price:{asset}" for asset in assets] + ["vol:BTC", "vol:ETH", "vol:SOL"]))
    result = factor_history(panel, names, implied_vols=implied)
    elapsed = time.perf_counter() - started
    assert len(assets) == 50
    assert rejected == ()
    assert result.failures == ()
    assert (str(panel.dates[0]), str(panel.dates[-1])) == ("2020-01-02", "2024-06-30")
    assert elapsed < RECORDED_SECONDS
    generator = filtered_historical(names, result, key=jax.random.key(0))
    table_of_dates = np.asarray(generator.residuals)
    assert np.isfinite(table_of_dates).all()
    assert np.abs(table_of_dates).max() < 40.0
    # the filter must leave residuals of about unit size, filled columns included
    size = np.sqrt(np.mean(table_of_dates**2, axis=0))
    assert ((size > 0.7) & (size < 1.7)).all()
    report = {d.factor: d for d in result.diagnostics}
    assert 0.005 < report["price:BTC"].sigma_next < 0.10
    assert report["price:BTC"].filled_share == 0.0
    assert 0.7 < report["price:SUI"].filled_share < 0.8
    shocks = np.asarray(draw_all(generator, jax.random.key(1)).shocks)
    assert np.isfinite(shocks).all()
    columns = [names.index(f"price:{asset}") for asset in ("BTC", "ETH")]
    assert 0.7 < np.corrcoef(shocks[:, columns].T)[0, 1] < 0.95
