"""Reading a market folder, and the panels of windows, 4-hour bars and context built from it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from aggregator.errors import ConfigurationError
from models.market_history import (
    NOTHING,
    PERP,
    SPOT,
    bars_4h_panel,
    context_series,
    losses,
    read_market,
    windows,
)

HOUR = np.timedelta64(1, "h")
START = np.datetime64("2021-01-01T00:00", "us")
ROUNDING = 1e-12
"""One division of float64 against another order of the same."""


def bars(
    asset: str, market: str, *, first: np.datetime64, hours: int, count: int, price: float = 100.0, seed: int = 0
) -> list[dict[str, object]]:
    """Bars of a random walk, each opening at the close before it."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for number in range(count):
        close = price * float(np.exp(0.01 * generator.standard_normal()))
        high, low = max(price, close) * 1.004, min(price, close) * 0.997
        rows.append(
            {
                "asset": asset, "market": market, "venue": "test", "quote": "USDT", "ts": first + number * hours * HOUR,
                "open": price, "high": high, "low": low, "close": close, "volume": 5.0 + number,
                "quote_vol": 500.0 if market == "perp" else float("nan"), "nbars": 1,
            }
        )  # fmt: skip
        price = close
    return rows


def write_bars(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    table = pa.table(
        {
            key: pa.array(values, pa.timestamp("ms", "UTC"))
            if key == "ts"
            else pa.array(values).dictionary_encode()
            if key in ("asset", "market", "venue", "quote")
            else pa.array(values, pa.float32() if key in ("volume", "quote_vol") else None)
            for key, values in ((k, [v.item() if k == "ts" else v for v in vs]) for k, vs in columns.items())  # type: ignore[attr-defined]
        }
    )
    pa.parquet.write_table(table, folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """AAA: spot for 12 days, perp from the noon of day 5 on. BBB: spot with a gap of 3 days. CCC: one daily file."""
    perp = bars("AAA", "perp", first=START + 5 * 24 * HOUR + 12 * HOUR, hours=4, count=40, seed=1)
    write_bars(tmp_path, "ohlcv_4h.parquet", perp)
    spot = bars("AAA", "spot", first=START, hours=1, count=12 * 24, price=99.0, seed=2)
    with_gap = bars("BBB", "spot", first=START, hours=1, count=12 * 24, price=3.0, seed=3)
    del with_gap[4 * 24 - 7 : 7 * 24]
    write_bars(tmp_path, "ohlcv_1h.parquet", spot + with_gap)
    daily = bars("CCC", "spot", first=START, hours=24, count=9, price=7.0, seed=4)
    for row in daily:
        row["nbars"] = 24
    write_bars(tmp_path, "ohlcv_1d.parquet", daily)
    return tmp_path


def test_windows_are_the_bars_joined(folder: Path) -> None:
    panel = windows(read_market(folder), "1d")
    assert panel.assets == ("AAA", "BBB", "CCC")
    assert (np.diff(panel.opening) == 24 * HOUR).all()
    hours = pa.parquet.read_table(folder / "ohlcv_1h.parquet").to_pylist()
    for asset, day in (("AAA", 2), ("BBB", 1)):
        own = [row for row in hours if row["asset"] == asset][24 * day : 24 * day + 24]
        column = panel.assets.index(asset)
        assert panel.market[day, column] == SPOT
        assert panel.open[day, column] == own[0]["open"]
        assert panel.close[day, column] == own[-1]["close"]
        assert panel.high[day, column] == max(row["high"] for row in own)
        assert panel.low[day, column] == min(row["low"] for row in own)
        assert panel.volume[day, column] == sum(row["volume"] for row in own)
        assert np.isnan(panel.quote_volume[day, column])


def test_spot_serves_until_the_first_perp_return(folder: Path) -> None:
    panel = windows(read_market(folder), "1d")
    own = panel.assets.index("AAA")
    # the perp starts at noon of day 5: day 6 is its first whole day, day 7 its first return
    assert panel.market[:, own].tolist() == [SPOT] * 7 + [PERP] * 5
    assert np.isfinite(panel.simple_return[1:, own]).all()
    perp = [row for row in pa.parquet.read_table(folder / "ohlcv_4h.parquet").to_pylist() if row["asset"] == "AAA"]
    day_6, day_7 = perp[3:9], perp[9:15]
    expected = day_7[-1]["close"] / day_6[-1]["close"] - 1.0
    assert panel.simple_return[7, own] == pytest.approx(expected, rel=ROUNDING)
    low = min(row["low"] for row in day_7)
    assert panel.adverse_long[7, own] == pytest.approx(1.0 - low / day_6[-1]["close"], rel=ROUNDING)
    assert panel.quote_volume[7, own] == 3000.0


def test_gaps_and_short_days_have_no_return(folder: Path) -> None:
    panel = windows(read_market(folder), "1d")
    own = panel.assets.index("BBB")
    # the last 7 hours of day 3 and days 4 to 6 are missing: 17 of 24 hours are too few, and the next return is far away
    assert panel.market[3:7, own].tolist() == [NOTHING] * 4
    assert np.isnan(panel.simple_return[[0, 3, 4, 5, 6, 7], own]).all()
    assert np.isnan(panel.adverse_short[7, own])
    assert np.isfinite(panel.simple_return[[1, 2, 8, 9], own]).all()
    eight = windows(read_market(folder), "8h")
    # day 3 keeps its first 8-hour windows; the gap from there to day 7 is longer than 2 days
    assert np.isfinite(eight.simple_return[3 * 3 : 3 * 3 + 2, own]).all()
    assert np.isnan(eight.simple_return[3 * 3 + 2 : 7 * 3 + 1, own]).all()


def test_a_gap_of_one_day_is_bridged(tmp_path: Path) -> None:
    rows = bars("AAA", "perp", first=START, hours=4, count=36)
    del rows[12:18]
    write_bars(tmp_path, "ohlcv_4h.parquet", rows)
    panel = windows(read_market(tmp_path), "1d")
    assert panel.market[:, 0].tolist() == [PERP, PERP, NOTHING, PERP, PERP, PERP]
    assert panel.simple_return[3, 0] == pytest.approx(panel.close[3, 0] / panel.close[1, 0] - 1.0, rel=ROUNDING)


def test_losses_have_signs(folder: Path) -> None:
    panel = windows(read_market(folder), "1d")
    np.testing.assert_array_equal(losses(panel, "long", "close"), -panel.simple_return)
    np.testing.assert_array_equal(losses(panel, "short", "close"), panel.simple_return)
    for side in ("long", "short"):
        worst, final = losses(panel, side, "adverse"), losses(panel, side, "close")
        known = np.isfinite(final)
        assert (worst[known] >= final[known]).all()
    with pytest.raises(ConfigurationError, match="expected long or short"):
        losses(panel, "flat", "close")  # type: ignore[arg-type]


def test_wicks_are_clipped_and_the_named_fault_is_masked(tmp_path: Path) -> None:
    rows = bars("AAA", "perp", first=START, hours=4, count=18)
    rows[8]["low"], rows[9]["high"] = 0.1, 1e4
    write_bars(tmp_path, "ohlcv_4h.parquet", rows)
    faulty = bars("LINK", "spot", first=np.datetime64("2020-03-10", "us"), hours=1, count=96)
    faulty[48 + 10]["low"] = 0.0001
    write_bars(tmp_path, "ohlcv_1h.parquet", faulty)
    panel = windows(read_market(tmp_path), "1d")
    day = int((START - panel.opening[0]) / (24 * HOUR)) + 1
    own, link = panel.assets.index("AAA"), panel.assets.index("LINK")
    body = rows[8]["open"], rows[8]["close"]
    assert panel.low[day, own] == pytest.approx(min(body) * np.exp(-0.30), rel=ROUNDING)  # type: ignore[type-var]
    assert panel.high[day, own] < 200.0
    # a position would have been liquidated there: adverse losses see more of the wick
    body_of_day = min(panel.open[day, own], panel.close[day, own])
    lowest = body_of_day * np.exp(-0.75) / panel.close[day - 1, own]
    assert panel.adverse_long[day, own] == pytest.approx(1.0 - lowest, rel=ROUNDING)
    assert np.isnan(panel.low[2, link])
    assert np.isnan(panel.adverse_long[2, link])
    assert np.isfinite([panel.adverse_short[2, link], panel.simple_return[2, link], panel.low[1, link]]).all()


def test_until_cuts_to_what_was_there(folder: Path) -> None:
    history = read_market(folder)
    whole, cut = windows(history, "1d"), windows(history, "1d", until=START + 8 * 24 * HOUR + 23 * HOUR)
    assert cut.opening[-1] == START + 7 * 24 * HOUR
    for name in ("market", "close", "high", "simple_return", "adverse_long", "volume"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[: len(cut.opening)])
    with pytest.raises(ConfigurationError, match="no complete window"):
        windows(history, "1d", until=START)


def test_four_hour_panel_keeps_the_asked_order(folder: Path) -> None:
    history = read_market(folder)
    panel = bars_4h_panel(history, ["BBB", "none", "AAA"])
    assert panel.assets == ("BBB", "none", "AAA")
    assert (panel.market[:, 1] == NOTHING).all()
    assert np.isnan(panel.close[:, 1]).all()
    day = windows(history, "1d")
    np.testing.assert_array_equal(panel.close[5:18:6, 0], day.close[:3, 1])


def test_context_is_known_before_the_opening(folder: Path) -> None:
    daily = [START + number * 24 * HOUR for number in range(3)]
    funding = [START + number * 8 * HOUR for number in range(4)]
    table = pa.table(
        {
            "asset": ["BTC"] * 4 + ["MARKET"] * 3,
            "series": ["funding_8h"] * 4 + ["fear_greed"] * 3,
            "ts": pa.array([time.item() for time in (*funding, *daily)], pa.timestamp("ms", "UTC")),
            "value": [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0],
        }
    )
    pa.parquet.write_table(table, folder / "context.parquet")
    history = read_market(folder)
    at = np.array([START, START + 8 * HOUR, START + 9 * HOUR, START + 24 * HOUR, START + 47 * HOUR, START + 200 * HOUR])
    nan = float("nan")
    np.testing.assert_array_equal(context_series(history, "BTC", "funding_8h", at), [nan, 1.0, 2.0, 3.0, 4.0, nan])
    # the index of a day is known when that day is over
    greed = context_series(history, "MARKET", "fear_greed", at)
    np.testing.assert_array_equal(greed, [nan, nan, nan, 10.0, 10.0, nan])
    assert np.isnan(context_series(history, "ETH", "funding_8h", at)).all()
    assert np.isnan(context_series(history._replace(context=None), "BTC", "funding_8h", at)).all()
    with pytest.raises(ConfigurationError, match="did you mean 'fear_greed'"):
        context_series(history, "MARKET", "fear_gred", at)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"row": 5, "close": float("nan")},
            r"ohlcv_4h.parquet: column 'close' is not a finite number, AAA perp at 2021",
        ),
        ({"row": 5, "low": -1.0}, "column 'low' is not positive, AAA perp"),
        ({"row": 5, "high": 1.0}, "column 'high' is below open or close"),
        ({"row": 5, "volume": float("nan")}, "column 'volume' is not a number of 0 or more"),
        ({"row": 5, "ts": START + 16 * HOUR}, "duplicate bar, AAA perp at 2021-01-01T16:00"),
        ({"row": 5, "ts": START}, "bars are not in order of time"),
        ({"row": 5, "ts": START + 21 * HOUR}, "column 'ts' is not a multiple of 4h"),
        ({"row": 5, "nbars": 0}, "column 'nbars' is below 1"),
    ],
)
def test_bad_bars_are_refused_by_name(tmp_path: Path, change: dict[str, object], message: str) -> None:
    rows = bars("AAA", "perp", first=START, hours=4, count=12)
    rows[int(change.pop("row"))].update(change)  # type: ignore[call-overload]
    write_bars(tmp_path, "ohlcv_4h.parquet", rows)
    with pytest.raises(ConfigurationError, match=message):
        read_market(tmp_path)


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such folder"):
        read_market(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"no bars; expected one of ohlcv_4h\.parquet"):
        read_market(tmp_path)
    write_bars(tmp_path, "ohlcv_4h.parquet", bars("AAA", "perp", first=START, hours=4, count=12))
    whole = (tmp_path / "ohlcv_4h.parquet").read_bytes()
    (tmp_path / "ohlcv_4h.parquet").write_bytes(whole[:-40])
    with pytest.raises(ConfigurationError, match=r"ohlcv_4h\.parquet: not a complete Parquet file"):
        read_market(tmp_path)
    (tmp_path / "ohlcv_4h.parquet").write_bytes(whole)
    table = pa.parquet.read_table(tmp_path / "ohlcv_4h.parquet")
    pa.parquet.write_table(table.drop_columns(["close"]), tmp_path / "ohlcv_4h.parquet")
    with pytest.raises(ConfigurationError, match="column 'close' is missing"):
        read_market(tmp_path)
    pa.parquet.write_table(table, tmp_path / "ohlcv_4h.parquet")
    context = pa.table(
        {"asset": ["BTC"] * 2, "series": ["fear_greed"] * 2, "ts": [START.item()] * 2, "value": [1.0] * 2}
    )
    pa.parquet.write_table(context, tmp_path / "context.parquet")
    with pytest.raises(ConfigurationError, match=r"context.parquet: .*fear_greed.* more than once"):
        read_market(tmp_path)


def test_recorded_history(recorded: Path) -> None:
    panel = windows(read_market(recorded / "market"), "1d")
    perps = (panel.market == PERP).any(axis=0)
    assert perps.sum() == 50
    # the published universe: after 400 returns, from 2020, perpetuals with at least 100 rows on each side
    there = np.isfinite(panel.simple_return)
    age = np.cumsum(there, axis=0) - there
    counted = there & (age >= 400) & (panel.opening >= np.datetime64("2020-01-01"))[:, None] & perps
    rows = counted.sum(axis=0)
    assert (rows >= 100).sum() == 47
    assert 2 * rows[rows >= 100].sum() == 102_462


def test_spot_that_is_listed_after_the_perp_changes_nothing_before(folder: Path) -> None:
    """DDD has a perp from the noon of day 1, and spot from day 6 on."""
    perp = bars("DDD", "perp", first=START + 36 * HOUR, hours=4, count=60, seed=5)
    older = [row for row in pa.parquet.read_table(folder / "ohlcv_4h.parquet").to_pylist() if row["asset"] == "AAA"]
    older = [row | {"ts": np.datetime64(row["ts"].replace(tzinfo=None), "us")} for row in older]
    write_bars(folder, "ohlcv_4h.parquet", older + perp)
    without = windows(read_market(folder), "1d")
    spot = bars("DDD", "spot", first=START + 6 * 24 * HOUR, hours=1, count=6 * 24, price=101.0, seed=6)
    write_bars(folder, "ohlcv_1h.parquet", spot)
    later = windows(read_market(folder), "1d")
    for panel in (without, later):
        own = panel.assets.index("DDD")
        first = int((START + 2 * 24 * HOUR - panel.opening[0]) / (24 * HOUR))
        assert panel.market[first : first + 9, own].tolist() == [PERP] * 9
        assert np.isnan(panel.simple_return[first, own])
        assert np.isfinite(panel.simple_return[first + 1 : first + 9, own]).all()
