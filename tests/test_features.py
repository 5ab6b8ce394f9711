"""Features: against slow twins, nothing from the future, and what happens to new, halted and pegged assets."""

import numpy as np
import pyarrow as pa
import pytest

from models.features import OLDEST_DAYS, FeaturePanel, feature_panel, side_inputs
from models.features_cross_section import FALL, LEAST_ASSETS, cross_section
from models.features_market import CALENDAR
from models.features_volatility import (
    PRIOR_QUANTILE,
    PRIOR_STRENGTH,
    bars_ended,
    fading_mean,
    half_life_decay,
    parkinson_variance,
    shrunk,
)
from models.market_files import MarketHistory
from models.market_history import Horizon, windows
from models.offset_windows import offset_windows
from tests.small_tier_market import ASSETS, DAYS, FIRST, HALT, NEW_DAYS, bars, context, history, small_history

EXACT = 1e-9
STORED = 1e-5  # float32


@pytest.fixture(scope="module")
def panel() -> FeaturePanel:
    return feature_panel(small_history(), "1d")


def column(panel: FeaturePanel, name: str) -> np.ndarray:
    if name in panel.even_names:
        return panel.even[..., panel.even_names.index(name)]
    return panel.signed[..., panel.signed_names.index(name)]


def test_a_fading_mean_is_the_loop_over_its_values() -> None:
    values = np.array([[1.0], [np.nan], [3.0], [2.0], [np.nan], [np.nan]])
    mean = fading_mean(values, 0.8)
    total = weight = 0.0
    for time, value in enumerate(values[:, 0]):
        total, weight = 0.8 * total, 0.8 * weight
        if np.isfinite(value):
            total, weight = total + 0.2 * value, weight + 0.2
        assert mean.total[time, 0] == pytest.approx(total, rel=EXACT)
        assert mean.weight[time, 0] == pytest.approx(weight, rel=EXACT)
    prior = np.full((6, 1), 10.0)
    pull = PRIOR_STRENGTH * (1.0 - weight)
    assert shrunk(mean, prior)[-1, 0] == pytest.approx((total + 10.0 * pull) / (weight + pull), rel=EXACT)
    assert shrunk(fading_mean(np.full((1, 1), np.nan), 0.8), prior[:1])[0, 0] == pytest.approx(10.0, rel=EXACT)


def test_bars_count_only_once_they_have_ended() -> None:
    opening = FIRST + np.arange(12) * np.timedelta64(4, "h")
    at = np.array([FIRST, FIRST + np.timedelta64(4, "h"), FIRST + np.timedelta64(1, "D")])
    assert bars_ended(opening, at).tolist() == [-1, 0, 5]


def test_ranges_directions_and_activity_are_those_of_a_slow_loop(panel: FeaturePanel) -> None:
    """One asset with a full history at one opening, from its bars alone."""
    asset, day = ASSETS.index("ZZZ"), 300
    ours = {name: values[: day * 6] for name, values in bars()["ZZZ"].items()}
    scale = float(np.exp(panel.anchor[day, asset]))
    body = np.log(ours["close"] / ours["open"])
    for days in (1, 7, 60):
        expected = body[-6 * days :].sum() / scale / days**0.5
        assert column(panel, f"return_{days}")[day, asset] == pytest.approx(expected, rel=STORED)
    age = np.arange(len(body))[::-1]
    weights = half_life_decay(8.0, 6) ** age
    variance = 6.0 * (weights * parkinson_variance(ours["high"], ours["low"])).sum() / weights.sum()
    # the rest of the weight, 0.5^(300/8), is the prior's
    expected = 0.5 * np.log(variance) - np.log(scale)
    assert column(panel, "range_8")[day, asset] == pytest.approx(expected, abs=1e-5)
    last, high, low = ours["close"][-1], ours["high"][-360:].max(), ours["low"][-360:].min()
    expected = (np.log(last / high) + np.log(last / low)) / scale / 60**0.5
    assert column(panel, "position")[day, asset] == pytest.approx(expected, rel=STORED)
    quick, slow = (half_life_decay(days, 6) ** age for days in (0.5, 40.0))
    value = ours["volume"] * ours["close"]
    expected = np.log((quick * value).sum() / quick.sum()) - np.log((slow * value).sum() / slow.sum())
    assert column(panel, "volume_fast")[day, asset] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("horizon", ["1d", "8h"])
def test_the_whole_market_is_that_of_a_slow_loop(horizon: Horizon, monkeypatch: pytest.MonkeyPatch) -> None:
    """At an opening before NEW is there and while CCC is halted, so that only BTC, PEG and ZZZ have bars."""
    monkeypatch.setattr("models.features_cross_section.LEAST_ASSETS", 2)
    panel = feature_panel(small_history(), horizon)
    day = HALT[0] + 6
    per_day = 3 if horizon == "8h" else 1
    opening, opened = day * per_day, FIRST + np.timedelta64(day, "D")
    returns = {
        name: np.log(own["close"] / own["open"])[own["ts"] < opened]
        for name, own in bars().items()
        if name in ("BTC", "PEG", "ZZZ")
    }
    together = [float(np.mean([one[bar] for one in returns.values()]) ** 2) for bar in range(-18, 0)]
    apart = [float(np.mean([one[bar] ** 2 for one in returns.values()])) for bar in range(-18, 0)]
    fallen = [one[-30:].sum() < FALL for one in returns.values()]
    ordinary = [ASSETS.index("BTC"), ASSETS.index("ZZZ")]
    now, earlier = (panel.anchor[place, ordinary] for place in (opening, opening - 5 * per_day))
    there = panel.usable[opening - 5 * per_day]
    assert there[ASSETS.index("CCC")]  # its bars had ended a day before
    earlier = np.append(earlier, panel.anchor[opening - 5 * per_day, ASSETS.index("CCC")])
    expected = {
        "market_together": np.log(sum(together) / sum(apart)),
        "market_fallen": np.mean(fallen),
        "market_dispersion": np.std(now),
        "market_change": np.median(now) - np.median(earlier),
    }
    for name, value in expected.items():
        found = column(panel, name)[opening]
        assert found[ordinary] == pytest.approx(value, rel=STORED, abs=1e-6), name
        assert np.isnan(found[ASSETS.index("NEW")])


def test_all_assets_that_move_as_one_are_together_and_all_that_fall_have_fallen() -> None:
    body = np.full((60, LEAST_ASSETS), -0.01)
    body[:, 2] = np.nan
    ended, anchor = np.arange(59), np.full((59, LEAST_ASSETS), -3.0)
    found = cross_section(body, ended, anchor, np.ones(anchor.shape, dtype=bool), windows_per_day=6.0)
    assert np.allclose(found["market_together"], 0.0)
    assert (found["market_fallen"][30:] == 1.0).all()  # -0.30 over five days
    assert (found["market_fallen"][14:19] == 0.0).all()
    assert np.isnan(found["market_fallen"][:14]).all()  # fewer than half of the bars
    assert (found["market_dispersion"] == 0.0).all()
    still = cross_section(0.0 * body, ended, anchor, np.ones(anchor.shape, dtype=bool), windows_per_day=6.0)
    assert np.isfinite(still["market_together"]).all()


def test_fewer_than_eight_assets_are_no_market() -> None:
    """Eight that are usable and no pegs at first, seven from some opening on: one has gone, or is pegged."""
    body = np.random.default_rng(3).normal(0.0, 0.01, (90, 10))
    ended, anchor = np.arange(89), np.random.default_rng(4).normal(-3.0, 0.3, (89, 10))
    usable = np.ones(anchor.shape, dtype=bool)
    usable[:, 0] = False  # never usable
    anchor[:, 9] = -6.0  # always pegged
    gone, back, pegged = 40, 45, 80
    usable[gone:back, 4] = False
    anchor[pegged:, 5] = -6.0
    found = cross_section(body, ended, anchor, usable, windows_per_day=6.0)
    missing = np.zeros(len(ended), dtype=bool)
    missing[gone:back] = missing[pegged:] = True
    bars_of_five_days = 30
    before = {
        "market_together": missing,
        "market_dispersion": missing,
        "market_fallen": missing | (ended < bars_of_five_days / 2 - 1),
        "market_change": missing
        | np.concatenate([np.ones(bars_of_five_days, dtype=bool), missing[:-bars_of_five_days]]),
    }
    assert set(found) == set(before)
    for name, expected in before.items():
        assert (np.isnan(found[name]) == expected[:, None]).all(), name


@pytest.mark.parametrize("horizon", ["1d", "8h"])
def test_what_comes_later_changes_nothing(horizon: Horizon) -> None:
    """Every price, volume and context value from a time on is another one; features up to that opening stay."""
    cut = FIRST + np.timedelta64(280, "D")
    changed = bars()
    other = bars(seed=9)
    for asset, columns in changed.items():
        later = columns["ts"] >= cut
        for name in ("open", "high", "low", "close", "volume"):
            columns[name] = np.where(later, 3.0 * other[asset][name], columns[name])
    mood = context()
    stamps = mood["ts"].to_numpy().astype("datetime64[us]")
    values = np.where(stamps >= cut, mood["value"].to_numpy() * -2.0 + 50.0, mood["value"].to_numpy())
    mood = mood.set_column(3, mood.schema.field("value"), pa.array(values))
    before = feature_panel(small_history(), horizon)
    after = feature_panel(history(changed, mood), horizon)
    known = before.opening <= cut
    assert known.sum() > 250
    for name in ("anchor", "volatility", "usable", "even", "signed"):
        assert np.array_equal(getattr(before, name)[known], getattr(after, name)[known], equal_nan=True), name
    assert not np.array_equal(before.anchor[~known], after.anchor[~known])


def test_the_last_row_is_the_window_after_the_history_and_equals_a_longer_history() -> None:
    """The features for tomorrow are those that tomorrow's file gives for that day."""
    cut = FIRST + np.timedelta64(300, "D")
    shorter = {
        asset: {name: values[columns["ts"] < cut] for name, values in columns.items()}
        for asset, columns in bars().items()
    }
    shorter = {asset: columns for asset, columns in shorter.items() if len(columns["ts"])}
    mood = context().slice(0, 0)
    short = feature_panel(history(shorter, mood), "1d")
    full = feature_panel(history({asset: bars()[asset] for asset in shorter}, mood), "1d")
    assert short.opening[-1] == cut
    assert np.array_equal(short.anchor[-1], full.anchor[300])
    assert np.array_equal(short.even[-1], full.even[300], equal_nan=True)


def test_a_new_listing_starts_wide_and_moves_to_its_own_volatility(panel: FeaturePanel) -> None:
    new, first = ASSETS.index("NEW"), DAYS - NEW_DAYS
    assert not panel.usable[first, new]
    others = panel.anchor[first, panel.usable[first]]
    assert panel.anchor[first, new] == pytest.approx(np.quantile(others, PRIOR_QUANTILE), rel=EXACT)
    names = [name for name in panel.even_names if name not in CALENDAR]
    assert all(np.isnan(column(panel, name)[first, new]) for name in names)
    assert panel.usable[first + 1 :, new].all()
    own = bars()["NEW"]
    scale = 0.5 * np.log(6.0 * np.mean(parkinson_variance(own["high"], own["low"])[-60:]))
    assert abs(panel.anchor[-1, new] - scale) < 0.3
    assert np.isnan(column(panel, "long_run")[-2, new])


def test_a_halted_asset_keeps_its_features_for_three_days_and_is_then_wide(panel: FeaturePanel) -> None:
    halted = ASSETS.index("CCC")
    begin, end = HALT
    within = begin + int(OLDEST_DAYS)
    assert panel.usable[begin : within + 1, halted].all()
    assert not panel.usable[within + 1 : end + 1, halted].any()
    assert np.isnan(column(panel, "range_8")[within + 1 : end + 1, halted]).all()
    for day in range(within + 1, end + 1):
        pooled = np.quantile(panel.anchor[day, panel.usable[day]], PRIOR_QUANTILE)
        assert panel.anchor[day, halted] >= pooled - EXACT
    assert panel.usable[end + 1, halted]


def test_a_peg_has_the_small_scale_of_its_own(panel: FeaturePanel) -> None:
    peg = ASSETS.index("PEG")
    assert np.exp(panel.anchor[-1, peg]) < 0.005
    assert np.isfinite(panel.anchor).all()
    assert np.isfinite(panel.volatility).all()


def test_without_context_its_inputs_are_missing_and_all_others_the_same(panel: FeaturePanel) -> None:
    bare = feature_panel(history(bars(), None), "1d")
    mood = {"funding_1", "funding_7", "fear_greed", "fear_greed_level", "funding_level"}
    for name in (*panel.even_names, *panel.signed_names):
        if name in mood:
            assert np.isnan(column(bare, name)).all()
        else:
            assert np.array_equal(column(bare, name), column(panel, name), equal_nan=True), name


def test_the_short_side_turns_signed_inputs_round_and_the_calendar_can_be_left_out(panel: FeaturePanel) -> None:
    time, asset = np.array([200, 201]), np.array([0, 4])
    long = side_inputs(panel, "long", time, asset)
    short = side_inputs(panel, "short", time, asset)
    even = len(panel.even_names)
    assert long.shape == (2, len(panel.names))
    assert np.array_equal(long[:, :even], short[:, :even], equal_nan=True)
    assert np.array_equal(long[:, even:], -short[:, even:], equal_nan=True)
    plain = side_inputs(panel, "long", time, asset, with_calendar=False)
    clock = [panel.names.index(name) for name in CALENDAR]
    assert np.isnan(plain[:, clock]).all()
    rest = [place for place in range(len(panel.names)) if place not in clock]
    assert np.array_equal(plain[:, rest], long[:, rest], equal_nan=True)
    assert np.isfinite(side_inputs(panel, "long", time, asset)[:, clock]).all()


def test_weekdays_are_those_of_the_window(panel: FeaturePanel) -> None:
    # 2022-01-01 was a Saturday
    assert [column(panel, name)[0, 0] for name in ("saturday", "sunday", "monday")] == [1.0, 0.0, 0.0]
    assert [column(panel, name)[1, 0] for name in ("saturday", "sunday", "monday")] == [0.0, 1.0, 0.0]
    assert column(panel, "monday")[2, 0] == 1.0


def test_a_gap_is_no_return() -> None:
    """The price jumps tenfold while CCC is halted; neither the anchor nor the return features notice."""
    moved = bars()
    later = moved["CCC"]["ts"] >= FIRST + np.timedelta64(HALT[1], "D")
    for name in ("open", "high", "low", "close"):
        moved["CCC"][name] = np.where(later, 10.0 * moved["CCC"][name], moved["CCC"][name])
    plain, jumped = (feature_panel(history(one, None), "1d") for one in (bars(), moved))
    halted = ASSETS.index("CCC")
    assert np.allclose(plain.anchor[:, halted], jumped.anchor[:, halted], atol=EXACT)
    for name in ("return_1", "return_60", "semivariance_10"):
        assert np.allclose(column(plain, name), column(jumped, name), atol=STORED, equal_nan=True)
    assert len(windows(small_history(), "1d").opening) == DAYS


def test_daily_bars_alone_are_enough_for_days() -> None:
    """Where nothing finer is known, the anchor goes by squared returns and what needs finer bars is missing."""
    daily = {}
    for asset, own in bars().items():
        of_day = np.arange(len(own["ts"])) // 6
        daily[asset] = {
            "ts": own["ts"][::6],
            "open": own["open"][::6],
            "high": np.maximum.reduceat(own["high"], np.flatnonzero(np.diff(of_day, prepend=-1))),
            "low": np.minimum.reduceat(own["low"], np.flatnonzero(np.diff(of_day, prepend=-1))),
            "close": own["close"][5::6],
            "volume": own["volume"][::6],
        }
    table = history(daily, None).bars_4h
    table = table.set_column(table.column_names.index("nbars"), "nbars", pa.array([6] * table.num_rows, pa.int64()))
    nothing = table.slice(0, 0)
    market = MarketHistory(nothing, nothing, table, None, None)
    fine, coarse = feature_panel(small_history(), "1d"), feature_panel(market, "1d")
    assert np.array_equal(windows(market, "1d").simple_return, windows(small_history(), "1d").simple_return, True)
    assert np.array_equal(coarse.opening, fine.opening)
    assert np.allclose(coarse.volatility, fine.volatility, rtol=EXACT)
    assert np.allclose(coarse.anchor, np.log(coarse.volatility), atol=EXACT)
    assert np.isnan(column(coarse, "semivariance_10")).all()
    assert np.isfinite(column(coarse, "square_0.8")[coarse.usable]).all()
    assert np.isfinite(column(coarse, "age")[coarse.usable]).all()
    assert offset_windows(market, "close") is None
