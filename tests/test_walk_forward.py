"""The walk-forward from history to table: nothing from the future, no row missing, resumable, the same bits again."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aggregator.errors import ConfigurationError
from models.backtest_request import learned_forecasts, run_backtest
from models.checkpoint import read_checkpoint, read_header
from models.classical_margin import classical_rates
from models.features import feature_panel
from models.forecast_table import check_forecasts
from models.learned import latest_rates
from models.market_files import MarketHistory
from models.market_history import windows
from models.offset_windows import day_losses, offset_windows
from models.published_tiers import on_grid
from models.tier_ladder import BaseRates, require_rates
from models.tier_model_settings import TierModelSettings, read_tier_model_settings
from models.train_request import run_training
from models.training import Fit, fit
from models.walk_forward import fit_until, refit_dates, training_rows
from tests.small_tier_market import ASSETS, DAYS, FIRST, HALT, NEW_DAYS, SETTINGS, bars, context, history, small_history

START, END = np.datetime64("2022-06-01"), np.datetime64("2023-02-05")
FIRST_DAY, LAST_DAY = date(2022, 6, 1), date(2023, 2, 4)
REFERENCE = Path(__file__).resolve().parent.parent / "models" / "reference"
CONFIG = Path(__file__).resolve().parent.parent / "models" / "reference" / "tier_model.toml"


def forecasts(market: MarketHistory, **options: object) -> pa.Table:
    panel = windows(market, "1d")
    given: dict[str, object] = {"start": START, "end": END, "levels": (0.95, 0.99)}
    return learned_forecasts(market, panel, "close", SETTINGS, **(given | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return check_forecasts(forecasts(small_history()))


def rates(
    table: pa.Table, model: str, asset: str, side: str = "long", level: float = 0.99
) -> dict[np.datetime64, float]:
    rows = table.filter(
        (pc.field("model") == model)
        & (pc.field("asset") == asset)
        & (pc.field("side") == side)
        & (pc.field("level") == level)
    )
    return dict(zip(rows["date"].to_numpy().astype("datetime64[D]"), rows["margin_rate"].to_numpy(), strict=True))


def test_every_window_of_every_asset_has_a_row_of_both_models(table: pa.Table) -> None:
    days = {asset: np.unique(columns["ts"].astype("datetime64[D]")) for asset, columns in bars().items()}
    for model in ("learned", "learned_published"):
        for asset in ASSETS:
            wanted = [day for day in days[asset] if START <= day < END]
            for side in ("long", "short"):
                assert list(rates(table, model, asset, side)) == wanted, (model, asset, side)
    assert len(rates(table, "learned", "NEW")) == NEW_DAYS
    assert (table["es_rate"].to_numpy() >= table["margin_rate"].to_numpy()).all()


def test_levels_are_in_order_and_published_rates_on_the_grid(table: pa.Table) -> None:
    for model in ("learned", "learned_published"):
        for side in ("long", "short"):
            low, high = (rates(table, model, "ZZZ", side, level) for level in (0.95, 0.99))
            assert all(low[day] <= high[day] for day in low)
    published = np.array(list(rates(table, "learned_published", "BTC").values()))
    assert np.allclose(on_grid(published), published, rtol=1e-12)
    learned = np.array(list(rates(table, "learned", "BTC").values()))
    assert np.abs(np.diff(np.log(published))).mean() < np.abs(np.diff(np.log(learned))).mean()


def test_what_comes_later_changes_no_forecast(table: pa.Table) -> None:
    """Every value from 2023-01-10 on is another one; forecasts for that day and before are the same to the bit."""
    cut = np.datetime64("2023-01-10", "us")
    changed, other = bars(), bars(seed=9)
    for asset, columns in changed.items():
        later = columns["ts"] >= cut
        for name in ("open", "high", "low", "close", "volume"):
            columns[name] = np.where(later, 2.0 * other[asset][name], columns[name])
    mood = context()
    moved = np.where(mood["ts"].to_numpy().astype("datetime64[us]") >= cut, 20.0, mood["value"].to_numpy())
    mood = mood.set_column(3, mood.schema.field("value"), pa.array(moved))
    again = check_forecasts(forecasts(history(changed, mood)))
    until = pc.field("date") <= pa.scalar(cut.item(), pa.timestamp("us", "UTC"))
    before, after = table.filter(until), again.filter(until)
    assert before.num_rows > 3000
    assert before.equals(after)
    assert not table.filter(~until).equals(again.filter(~until))


def until(columns: dict[str, dict[str, np.ndarray]], end: np.datetime64) -> dict[str, dict[str, np.ndarray]]:
    """The bars that open before `end`; an asset without any is not there at all."""
    kept = {asset: {name: values[own["ts"] < end] for name, values in own.items()} for asset, own in columns.items()}
    return {asset: own for asset, own in kept.items() if len(own["ts"])}


def test_a_history_that_ends_sooner_makes_the_same_forecasts(table: pa.Table) -> None:
    """Cut at 2023-01-05: NEW is not known, and the arrays of training are shorter."""
    cut = np.datetime64("2023-01-05", "us")
    market = history(until(bars(), cut), context())
    assert "NEW" not in windows(market, "1d").assets
    before = table.filter(pc.field("date") < pa.scalar(cut.item(), pa.timestamp("us", "UTC")))
    assert check_forecasts(forecasts(market, end=cut)).equals(before)


def test_whether_a_market_goes_on_after_a_gap_changes_no_forecast_before() -> None:
    """Two days are missing, so the window after them has no return; it is forecast the same if nothing follows it."""
    gap = 380
    columns = bars()
    ours = columns["ZZZ"]
    day = (ours["ts"] - FIRST) // np.timedelta64(1, "D")
    columns["ZZZ"] = {name: values[(day < gap) | (day >= gap + 2)] for name, values in ours.items()}

    def margins(columns: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
        market = history(columns, context())
        panel = windows(market, "1d")
        features = feature_panel(market, "1d", panel)
        found = classical_rates(
            features,
            panel,
            "close",
            levels=SETTINGS.network.levels,
            settings=SETTINGS.classical,
            refits=refit_dates(features.opening, 6),
        )
        return found.log_margin[:, features.assets.index("ZZZ")]

    whole = margins(columns)
    for end in (gap, gap + 3, gap + 4):
        assert np.array_equal(margins(until(columns, FIRST + end * np.timedelta64(1, "D"))), whole[: end + 1]), end


def test_new_halted_and_pegged_assets_get_sensible_margins(table: pa.Table) -> None:
    new = rates(table, "learned", "NEW")
    others = rates(table, "learned", "BTC")
    first = min(new)
    assert new[first] > others[first]  # nothing known: as the more volatile assets
    halted = rates(table, "learned", "CCC")
    back = (FIRST + np.timedelta64(HALT[1], "D")).astype("datetime64[D]")
    assert halted[back] > 0.8 * np.median(list(halted.values()))
    peg = np.array(list(rates(table, "learned", "PEG").values()))
    assert 0.001 < np.median(peg) < 0.03
    for rate in (*new.values(), *halted.values()):
        assert 0.01 < rate < 0.9


def test_a_second_run_reads_its_checkpoints_and_gives_the_same_bits(
    table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int, int]] = []
    first = forecasts(small_history(), checkpoints=tmp_path, progress=lambda *step: said.append(step))
    assert check_forecasts(first).equals(table)
    assert said[-1][1:] == (3, 3)
    assert sorted(file.name for file in tmp_path.glob("*.tail")) == [
        "1d_close_2022-07-01.tail",
        "1d_close_2023-01-01.tail",
    ]
    (tmp_path / "1d_close_2023-01-01.tail").write_bytes(b"cut short")
    made: list[int] = []

    def counted(*given: Any, **rest: Any) -> Fit:
        made.append(given[2])
        return fit(*given, **rest)

    monkeypatch.setattr("models.walk_forward.fit", counted)
    assert check_forecasts(forecasts(small_history(), checkpoints=tmp_path)).equals(table)
    assert len(made) == 1  # the broken one
    assert check_forecasts(forecasts(small_history(), checkpoints=tmp_path)).equals(table)
    assert len(made) == 1


def test_rows_of_training_end_before_the_embargo_and_can_leave_assets_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    market = small_history()
    panel = windows(market, "1d")
    features = feature_panel(market, "1d", panel)
    rows = training_rows(features, panel, "close", SETTINGS.training)
    assert np.all(np.diff(rows.ended) >= np.timedelta64(0, "us"))
    known = np.isfinite(panel.simple_return)
    peg = ASSETS.index("PEG")
    assert np.exp(features.anchor[200, peg]) < SETTINGS.training.smallest_volatility
    known &= np.exp(features.anchor[:-1]) >= SETTINGS.training.smallest_volatility
    assert len(rows.ended) == 2 * known.sum()
    some = training_rows(features, panel, "close", SETTINGS.training, assets=frozenset({"BTC", "ZZZ"}))
    assert len(some.ended) == 2 * known[:, [ASSETS.index("BTC"), ASSETS.index("ZZZ")]].sum()
    seen: list[int] = []

    def counted(*given: Any, **rest: Any) -> Fit:
        seen.append(given[2])
        return fit(*given, **rest)

    refit = np.datetime64("2022-07-01")
    monkeypatch.setattr("models.walk_forward.fit", counted)
    offsets = offset_windows(market, "close")
    more = training_rows(features, panel, "close", SETTINGS.training, offsets=offsets)
    assert len(more.ended) > 2.5 * len(rows.ended)
    assert fit_until(more, features, "close", SETTINGS, date=refit) is not None
    assert seen == [int((more.ended <= refit - np.timedelta64(2, "D")).sum())]
    assert fit_until(rows, features, "close", SETTINGS, date=np.datetime64("2022-02-01")) is None


def test_refits_follow_the_calendar_alone() -> None:
    opening = FIRST + np.arange(DAYS) * np.timedelta64(1, "D")
    assert [str(date) for date in refit_dates(opening, 6)] == ["2022-01-01", "2022-07-01", "2023-01-01"]
    assert [str(date) for date in refit_dates(opening[40:], 3)] == [
        "2022-04-01",
        "2022-07-01",
        "2022-10-01",
        "2023-01-01",
    ]


@pytest.mark.parametrize("loss", ["close", "adverse"])
def test_days_from_other_hours_are_those_of_the_bars(loss: str) -> None:
    market = small_history()
    found = offset_windows(market, loss)  # type: ignore[arg-type]
    assert found is not None
    asset, ours = ASSETS.index("ZZZ"), bars()["ZZZ"]
    for hour, expected_known in ((0, False), (8, True), (16, True)):
        opening = FIRST + np.timedelta64(100 * 24 + hour, "h")
        place = int(np.flatnonzero(found.panel.opening == opening)[0])
        assert np.isfinite(found.long[place, asset]) == expected_known
        if not expected_known:
            continue
        day = (ours["ts"] >= opening) & (ours["ts"] < opening + np.timedelta64(1, "D"))
        before = ours["close"][ours["ts"] < opening][-1]
        if loss == "close":
            change = ours["close"][day][-1] / before - 1.0
            assert found.losses("long")[place, asset] == pytest.approx(-change, rel=1e-12)
            assert found.losses("short")[place, asset] == pytest.approx(change, rel=1e-12)
        else:
            assert found.losses("long")[place, asset] == pytest.approx(1.0 - ours["low"][day].min() / before, rel=1e-12)
            assert found.losses("short")[place, asset] == pytest.approx(
                ours["high"][day].max() / before - 1.0, rel=1e-12
            )
    # the last day that is whole begins at the 16:00 before last; nothing crosses the halt
    assert np.isnan(found.long[-2:]).all()
    parts = windows(market, "8h")
    long, _ = day_losses(parts, "close")
    halted = ASSETS.index("CCC")
    assert np.isnan(long[HALT[0] * 3 - 2 : HALT[1] * 3 + 1, halted]).all()
    assert np.isfinite(long[HALT[1] * 3 + 1, halted])


def test_the_verb_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.backtest_request.read_market", lambda folder: small_history())
    given = {
        "start": FIRST_DAY,
        "end": LAST_DAY,
        "horizon": "1d",
        "loss": "close",
        "out": tmp_path / "out.parquet",
        "settings": CONFIG,
    }
    for wrong, message in (
        ({"horizon": "2d"}, "expected 1d or 8h"),
        ({"loss": "open"}, "close or adverse"),
        ({"end": date(2022, 5, 1)}, "before it starts"),
        ({"levels": (0.98,)}, "0.98"),
        ({"out": tmp_path / "no" / "out.parquet"}, "folder does not exist"),
        ({"out": tmp_path}, "is a folder"),
        ({"checkpoints": CONFIG}, "is a file"),
        ({"start": date(2030, 1, 1), "end": date(2030, 2, 1)}, "no window between"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            run_backtest(tmp_path, **(given | wrong))  # type: ignore[arg-type]


def test_the_verb_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: pa.Table) -> None:
    monkeypatch.setattr("models.backtest_request.read_market", lambda folder: small_history())
    monkeypatch.setattr("models.backtest_request.read_tier_model_settings", lambda path: SETTINGS)
    out = tmp_path / "out.parquet"
    outcome = run_backtest(
        tmp_path, start=FIRST_DAY, end=LAST_DAY, horizon="1d", loss="close", out=out, settings=CONFIG
    )
    assert outcome.models == ("learned", "learned_published")
    assert (outcome.first, outcome.last) == ("2022-06-01", "2023-02-04")
    written = pa.parquet.read_table(out)
    assert written.num_rows == outcome.rows
    assert written.equals(table.filter(pc.field("level") == 0.99))


def test_training_writes_a_model_that_forecasts_the_next_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: pa.Table
) -> None:
    monkeypatch.setattr("models.train_request.read_market", lambda folder: small_history())
    monkeypatch.setattr("models.train_request.read_tier_model_settings", lambda path: SETTINGS)
    (trained,) = run_training(tmp_path, out=tmp_path, settings=CONFIG, targets=[("1d", "close")], source="made up")
    assert trained.path == tmp_path / "1d_close.tail"
    header = read_header(trained.path)
    assert header.rows == len(
        training_rows(
            feature_panel(small_history(), "1d"),
            windows(small_history(), "1d"),
            "close",
            SETTINGS.training,
            offsets=offset_windows(small_history(), "close"),
        ).ended
    )
    assert len(header.guard_log_factors) == 3
    assert max(map(abs, header.guard_log_factors)) <= np.log(1.25)
    found = latest_rates(small_history(), trained.path, settings=SETTINGS)
    assert found.opening == FIRST + np.timedelta64(DAYS, "D")
    assert found.assets == ASSETS
    assert found.margin.shape == (5, 2, 3)
    assert np.all(np.diff(found.margin, axis=-1) >= 0.0)
    assert np.all(found.shortfall >= found.margin)
    # a day later by the same rules: of the order of the forecast for the last day of the history
    learned = rates(table, "learned", "ZZZ")
    assert 0.4 < found.margin[ASSETS.index("ZZZ"), 0, 1] / learned[max(learned)] < 2.5
    with pytest.raises(ConfigurationError, match="2d open"):
        run_training(tmp_path, out=tmp_path, settings=CONFIG, targets=[("2d", "open")])
    for wrong in ({"out": CONFIG}, {"checkpoints": CONFIG}):
        with pytest.raises(ConfigurationError, match="is a file"):
            run_training(tmp_path, **({"out": tmp_path, "settings": CONFIG} | wrong))  # type: ignore[arg-type]


def test_a_coin_that_collapses_keeps_a_rate_that_a_ladder_can_use() -> None:
    """ZZZ moves threefold either way in each of the last 60 bars: the forecast for a long position reaches its end."""
    columns = bars()
    ours = columns["ZZZ"]
    steps = np.where(np.arange(60) % 2 == 0, -3.0, 2.9)
    last = float(ours["close"][-61])
    close = last * np.exp(np.cumsum(steps))
    ours["open"][-60:], ours["close"][-60:] = np.concatenate([[last], close[:-1]]), close
    for name, join in (("high", np.maximum), ("low", np.minimum)):
        ours[name][-60:] = join(ours["open"][-60:], ours["close"][-60:])
    settings = read_tier_model_settings(CONFIG)
    found = latest_rates(history(columns, context()), REFERENCE / "1d_adverse.tail", settings=settings)
    long, short = ASSETS.index("ZZZ"), 1
    assert found.margin[long, short].max() > 1.0
    rates_of = BaseRates("long", found.levels, (1.0,), found.margin[long, :1], found.shortfall[long, :1])
    require_rates("ZZZ", rates_of)
    assert found.margin[long, 0].max() > 0.9


@pytest.mark.parametrize("horizon", ["1d", "8h"])
@pytest.mark.parametrize("loss", ["close", "adverse"])
def test_the_shipped_models_are_whole_and_made_for_these_inputs_and_settings(horizon: str, loss: str) -> None:
    path = REFERENCE / f"{horizon}_{loss}.tail"
    names = feature_panel(small_history(), horizon).names  # type: ignore[arg-type]
    header, _ = read_checkpoint(path, inputs=names)
    settings = read_tier_model_settings(CONFIG)
    assert (header.horizon, header.loss) == (horizon, loss)
    assert (header.network, header.training) == (settings.network, settings.training)
    assert sum(file.stat().st_size for file in REFERENCE.iterdir()) < 2 * 2**20
    found = latest_rates(small_history(), path, settings=settings)
    assert np.isfinite(found.margin).all()
    assert np.all(found.margin > 0.0)


def test_settings_are_read_and_wrong_ones_named(tmp_path: Path) -> None:
    assert isinstance(read_tier_model_settings(CONFIG), TierModelSettings)
    text = CONFIG.read_text()
    for old, new, message in (
        ("months = 6", "months = 5", "walk_forward.months"),
        ("seeds =", "sedes =", "training.sedes"),
        ("[guard]", "[gaurd]", "guard"),
        ("levels = [0.9,", "levels = [0.99,", "rise strictly"),
        ("layers = 2", "layers = ", "not valid TOML"),
    ):
        assert old in text
        path = tmp_path / "settings.toml"
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigurationError, match=message):
            read_tier_model_settings(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_tier_model_settings(tmp_path / "none.toml")
