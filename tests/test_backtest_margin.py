"""The walk forward: nothing from the future, the product's own law, full revaluation, and verdicts that can say no.

The market of most tests is made here: two anchors, an asset listed later and an implied volatility that begins later,
with volatility that clusters, 620 days. The slice of real history runs when `CROSSMARGIN_RECORDED` is set.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from scipy.special import ndtri
from typer.testing import CliRunner

from aggregator import pricing, risk
from aggregator.backtest_books import BASKET, BOOKS, Book, Leg, OptionLeg, book_losses, named_books, option_price
from aggregator.backtest_laws import Generator, Law, filtered_history, generators
from aggregator.backtest_margin import (
    BLEND,
    TAIL_POINTS,
    Forecasts,
    blended,
    forecast_table,
    judged,
    realised_losses,
    stressed_window,
    tail_of,
    verdict_rows,
    walk_forward,
)
from aggregator.backtest_market import Market, build_market, filled_residuals
from aggregator.backtest_request import Backtest, backtest_document, load_backtest, read_market, run_backtest
from aggregator.cli import app
from aggregator.errors import ConfigurationError
from aggregator.generators.filtered_historical import filtered_historical
from aggregator.history import VolatilityRule, age_weights, factor_history
from aggregator.history_tables import ReturnPanel
from aggregator.scenarios import draw_all, scenario_stream

FLOAT64 = 1e-12  # float64 against float64, another order of additions
DAYS, LISTED, OBSERVED = 620, 140, 300

BOOK_A = Book("A long", (Leg("A", 1.0),))
BOOK_C = Book("C short", (Leg("C", -1.0),))
STRADDLE = Book("straddle", options=(OptionLeg("A", True, 1.0, -1.0), OptionLeg("A", False, 1.0, -1.0)))
DESK = Book("desk", (Leg("A", 0.5), Leg("B", -1.0)), (OptionLeg("B", False, 0.9, -0.5),))
RULES = {"A": VolatilityRule("price:A", -0.2, 0.04), "B": VolatilityRule("price:B", 0.1, 0.05)}


def _returns(days: int = DAYS, seed: int = 1) -> np.ndarray:
    """Returns [days, 3] with clustered volatility and fat tails."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    shocks = generator.standard_t(5, size=(days, 3)) * np.sqrt(0.6)
    shocks[:, 1] = 0.7 * shocks[:, 0] + 0.7 * shocks[:, 1]
    sigma, out = np.full(3, 0.03), np.zeros((days, 3))
    for t in range(days):
        out[t] = sigma * shocks[t]
        sigma = np.sqrt(5e-5 + 0.08 * out[t] ** 2 + 0.86 * sigma**2)
    return out


def _market(returns: np.ndarray | None = None, implied: np.ndarray | None = None, seed: int = 0) -> Market:
    moves = _returns() if returns is None else returns
    moves = moves.copy()
    moves[:LISTED, 2] = np.nan
    dates = np.datetime64("2020-01-01") + np.arange(len(moves))
    panel = ReturnPanel(dates, ("A", "B", "C"), moves, ("perp", "perp", "perp"), (0, 1))
    if implied is None:
        walk = np.random.Generator(np.random.Philox(key=2)).standard_normal(len(moves))
        implied = 0.7 * np.exp(np.cumsum(0.03 * walk - 0.002 * np.sign(np.cumsum(walk))))
    levels = implied.copy()
    levels[:OBSERVED] = np.nan
    changes = np.concatenate([[np.nan], np.diff(np.log(levels))])
    return build_market(panel, {"A": changes}, {"A": levels}, RULES, decay=0.97, floor_fraction=0.5, seed=seed)


@pytest.fixture(scope="module")
def market() -> Market:
    return _market()


# ---- no look into the future ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(generators(None)))
def test_nothing_of_the_future_enters_a_forecast(market: Market, name: str) -> None:
    """Every row from day 560 on is changed: forecasts up to and of that day are the same to the last bit."""
    changed, first = 560, 541
    other = _returns()
    other[changed:] = -3.0 * other[changed:][::-1]
    levels = market.implied[1:, market.factors.index("vol:A")]
    disturbed = _market(other, np.concatenate([levels[:changed], 2.0 * levels[changed:][::-1]]))
    same = _market(_returns(), levels)
    books = [BOOK_A, BOOK_C, STRADDLE, DESK]
    chosen = {name: generators(500.0)[name]}
    blend = name if name == "filtered_history" else None
    before, after = (
        walk_forward(m, books, chosen, first=first, last=changed + 2, refit_days=10, blend_on=blend)
        for m in (same, disturbed)
    )
    reacted = []
    for old, new in zip(before, after, strict=True):
        kept = old.days <= changed
        assert kept.sum() == changed - first + 1
        assert np.array_equal(old.value_at_risk[kept], new.value_at_risk[kept])
        assert np.array_equal(old.tail_points[kept], new.tail_points[kept])
        # the loss of the changed day itself is another one, so the change was seen where it may be seen
        assert old.losses[kept][-1] != new.losses[kept][-1]
        reacted.append(not np.array_equal(old.tail_points[~kept], new.tail_points[~kept]))
    # and it is seen from the next day on (a plain history may hold it outside of a tail)
    assert any(reacted)


def test_two_runs_are_the_same_to_the_last_bit(market: Market) -> None:
    chosen = {name: generators(None)[name] for name in ("filtered_history", "multivariate_t")}
    runs = [walk_forward(_market(), [BOOK_A, DESK], chosen, first=560, last=580) for _ in range(2)]
    for one, two in zip(*runs, strict=True):
        assert np.array_equal(one.tail_points, two.tail_points)
        assert np.array_equal(one.ranks, two.ranks)
    other = _market(seed=9)
    assert not np.array_equal(other.rule_normals, market.rule_normals)


# ---- the product's law ---------------------------------------------------------------------------------------------


def _with_the_draws_of(market: Market, key: jax.Array, until: int) -> Market:
    """The market with the numbers that the product draws under `key` for fills, and for rules by scenario."""

    @jax.jit
    def cell(number: jax.Array, day: jax.Array) -> tuple[jax.Array, jax.Array]:
        one, two = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, number), day))
        return jax.random.uniform(one, (), jnp.float64), jax.random.normal(two, (), jnp.float64)

    uniforms, normals, rules = market.uniforms.copy(), market.normals.copy(), market.rule_normals.copy()
    days = jnp.asarray(market.dates.astype("datetime64[D]").astype(np.int64), dtype=jnp.uint32)
    rows = slice(market.first, until)
    indices = jnp.arange(until - market.first, dtype=jnp.uint32)
    for column, name in enumerate(market.factors):
        number = jnp.uint32(zlib.crc32(f"fill:{name}".encode()))
        drawn = jax.vmap(cell, in_axes=(None, 0))(number, days[rows])
        uniforms[rows, column], normals[rows, column] = (np.asarray(values) for values in drawn)
        if name.startswith("vol:"):
            normal = jax.vmap(lambda i, name=name: jax.random.normal(scenario_stream(key, name, i), (), jnp.float64))
            rules[rows, column] = np.asarray(normal(indices))
    return replace(market, uniforms=uniforms, normals=normals, rule_normals=rules)


def test_filtered_history_is_the_law_of_the_product(market: Market) -> None:
    """Own residuals, a price listed later, an implied volatility with a short history and one without any."""
    until = DAYS
    key = jax.random.key(5)
    panel = ReturnPanel(market.dates, ("A", "B", "C"), market.changes[:, :3], ("perp", "perp", "perp"), market.anchors)
    history = factor_history(panel, market.factors, implied_vols={"A": market.changes[:, 3]}, volatility_rules=RULES)
    weights = age_weights(history.dates, 400.0)
    generator = filtered_historical(market.factors, history, key=key, date_weights=weights)
    drawn = draw_all(generator, key)

    law = filtered_history(400.0).law(_with_the_draws_of(market, key, until), until, None)
    count = len(law.weights)
    assert history.rules.keys() == {"vol:B"}
    assert history.fill_rules.keys() == {"vol:A"}
    np.testing.assert_allclose(law.shocks, np.asarray(drawn.shocks)[:count], rtol=FLOAT64, atol=1e-15)
    np.testing.assert_allclose(law.weights, np.asarray(drawn.weights)[:count], rtol=FLOAT64)
    assert np.asarray(drawn.weights)[count:].sum() == 0.0


def test_tail_is_that_of_the_engine() -> None:
    generator = np.random.Generator(np.random.Philox(key=3))
    engine = jax.jit(lambda losses, weights, confidence: risk.tail_risk(losses, weights, confidence=confidence))
    for count, ties in ((777, False), (1000, True)):
        losses = generator.standard_t(3, count)
        losses = np.round(losses, 1) if ties else losses
        aged = age_weights(np.datetime64("2020-01-01") + np.arange(count), 90.0)
        for weights in (np.full(count, 1.0 / count), aged):
            padded, mass = (jnp.asarray(array) for array in risk.padded_scenarios(losses, weights))
            for confidence in (0.9, 0.99, 0.995):
                found = tail_of(losses, weights, confidence)
                expected = engine(padded, mass, confidence)
                assert found.value_at_risk == float(expected.value_at_risk)
                assert found.points.mean() == pytest.approx(float(expected.expected_shortfall), rel=1e-11)
                assert (np.diff(found.points) <= 1e-12).all()


def test_blend_never_lies_below_the_current_requirement() -> None:
    calm, wild = (
        tail_of(np.arange(100.0), np.full(100, 0.01), 0.9),
        tail_of(2.0 * np.arange(100.0), np.full(100, 0.01), 0.9),
    )
    assert blended(wild, calm) is wild
    mixed = blended(calm, wild)
    assert mixed.points.mean() == pytest.approx(0.75 * calm.points.mean() + 0.25 * wild.points.mean(), rel=FLOAT64)


def test_stressed_window_holds_the_worst_day_known_so_far() -> None:
    losses = np.zeros(1000)
    losses[300], losses[900] = 1.0, 2.0
    assert stressed_window(losses, 30, 800) == (118, 483)
    begin, end = stressed_window(losses, 30, 950)
    assert begin <= 900 < end <= 950
    assert stressed_window(losses, 30, 130) == (30, 130)


# ---- books ---------------------------------------------------------------------------------------------------------


def test_option_prices_are_those_of_the_engine() -> None:
    generator = np.random.Generator(np.random.Philox(key=4))
    forward, sigma = np.exp(0.3 * generator.standard_normal(200)), 0.2 + generator.random(200)

    @jax.jit
    def engine(years: jax.Array, is_call: jax.Array) -> jax.Array:
        def price(f: jax.Array, vol: jax.Array) -> jax.Array:
            return pricing.black76_price(f, 1.05, years=years, vol=vol, is_call=is_call)

        return jax.vmap(price)(jnp.asarray(forward), jnp.asarray(sigma))

    for is_call in (True, False):
        for days in (29.0, 1.0, 0.0):
            mine = option_price(is_call, forward, 1.05, sigma, days)
            theirs = engine(jnp.float64(days / 365.0), jnp.asarray(is_call))
            np.testing.assert_allclose(mine, np.asarray(theirs), rtol=1e-11, atol=1e-13)


def test_losses_of_books_by_hand() -> None:
    moves = {"A": np.log(np.array([1.1, 0.8])), "B": np.log(np.array([1.0, 1.0]))}
    assert book_losses(BOOK_A, moves, {}, {}) == pytest.approx([-0.1, 0.2])
    spread = Book("spread", (Leg("A", 1.0), Leg("B", -1.0), Leg("A", -0.5)))
    assert book_losses(spread, moves, {}, {}) == pytest.approx([-0.05, 0.1])
    quiet = book_losses(STRADDLE, {"A": np.zeros(1)}, {"A": np.zeros(1)}, {"A": 0.7})
    # a day of time value of both options is earned: 2 (V(30 d) - V(29 d)) of a price of 0.4 sigma sqrt(T) each
    assert quiet[0] == pytest.approx(-2 * 0.3989 * 0.7 * (np.sqrt(30 / 365) - np.sqrt(29 / 365)), rel=1e-2)
    # selling volatility loses when it rises, and on a large move either way
    risen = book_losses(STRADDLE, {"A": np.zeros(1)}, {"A": np.array([0.2])}, {"A": 0.7})
    crashed = book_losses(STRADDLE, {"A": np.array([-0.4, 0.4])}, {"A": np.zeros(2)}, {"A": 0.7})
    assert risen[0] > 0.03
    assert (crashed > 0.1).all()


def test_books_have_unit_notional_and_known_names() -> None:
    assert sum(leg.notional for leg in BOOKS["basket"].legs) == pytest.approx(1.0)
    assert {leg.asset for leg in BOOKS["basket"].legs} == set(BASKET)
    assert [book.name for book in named_books(["ETH long", "basket"])] == ["ETH long", "basket"]
    with pytest.raises(ConfigurationError, match="did you mean 'ETH long'"):
        named_books(["ETH lung"])
    with pytest.raises(ConfigurationError, match="each once"):
        named_books(["basket", "basket"])


def test_realised_losses_take_the_volatility_of_their_day(market: Market) -> None:
    losses = realised_losses(market, STRADDLE)
    t = OBSERVED + 50
    vol = market.factors.index("vol:A")
    assert market.recorded[t, vol]
    assert market.recorded[t + 1, vol]
    by_hand = book_losses(
        STRADDLE,
        {"A": market.changes[t : t + 1, 0]},
        {"A": np.log(market.implied[t + 1 : t + 2, vol] / market.implied[t, vol])},
        {"A": float(market.implied[t, vol])},
    )
    assert losses[t] == pytest.approx(by_hand[0], rel=1e-9)
    # before there is a series the level is that of the price's own volatility and the change follows the rule
    assert market.implied[100, vol] == pytest.approx(market.volatility[100, 0] * np.sqrt(365.0))
    assert np.isfinite(market.realised[100, vol])
    assert not market.recorded[100, vol]


# ---- verdicts ------------------------------------------------------------------------------------------------------


def _normal_world(scale: float, days: int = 1400) -> Forecasts:
    """Forecasts of N(0, scale^2) in a world of N(0, 1) days of 3 %, through the whole walk."""
    moves = np.random.Generator(np.random.Philox(key=41)).standard_normal((days, 2)) * 0.03
    dates = np.datetime64("2019-01-01") + np.arange(days)
    panel = ReturnPanel(dates, ("A", "B"), moves, ("perp", "perp"), (0, 1))
    world = build_market(panel, {}, {}, {}, decay=0.97, floor_fraction=0.5, seed=0)
    grid = ndtri((np.arange(4000) + 0.5) / 4000) * 0.03 * scale
    quantiles = np.stack([grid, grid], axis=1)

    def law(market: Market, t: int, fitted: None) -> Law:
        return Law(quantiles, np.full(len(quantiles), 1.0 / len(quantiles)))

    known = Generator(lambda market, t: None, law)
    return walk_forward(world, [BOOK_A], {"known": known}, first=150)[0]


def test_the_right_law_is_kept_and_one_too_narrow_is_not() -> None:
    dates = np.datetime64("2019-01-01") + np.arange(1400)
    right = judged(_normal_world(1.0), dates, confidence=0.99)
    narrow = judged(_normal_world(0.8), dates, confidence=0.99)
    wide = judged(_normal_world(1.4), dates, confidence=0.99)
    assert right.kept
    assert right.pit_p > 0.01
    assert right.shortfall_p > 0.01
    assert not narrow.kept
    assert narrow.kupiec_p < 1e-6
    assert narrow.shortfall_p < 0.01
    assert narrow.berkowitz_p < 1e-6
    assert not wide.kept
    assert wide.coverage > 0.995
    assert right.requirement_mean == pytest.approx(narrow.requirement_mean / 0.8, rel=0.02)


def test_verdict_counts_by_hand() -> None:
    count = 300
    losses = np.full(count, -0.01)
    losses[[10, 11, 100]] = [0.15, 0.12, 0.3]
    made = Forecasts(
        generator="g",
        book="b",
        days=np.arange(count),
        losses=losses,
        value_at_risk=np.full(count, 0.1),
        tail_points=np.full((count, TAIL_POINTS), 0.2),
        ranks=np.linspace(0.01, 0.99, count),
        recorded=np.ones(count, dtype=bool),
        left_out=4,
    )
    dates = np.datetime64("2020-01-01") + np.arange(count)
    found = judged(made, dates, confidence=0.99)
    assert (found.exceptions, found.breaches_of_requirement, found.left_out) == (3, 1, 4)
    assert found.coverage == 0.99
    assert found.breach_largest_to_es == pytest.approx(1.5)
    assert found.increase_20d == 0.0
    assert found.most_in_250 == 3
    assert found.first_date == "2020-01-01"
    assert (found.recorded_forecasts, found.recorded_exceptions, found.kept) == (300, 3, True)
    # 13 in 1,300 days keep the target, unless all of them lie in the 260 days whose volatility was observed
    many = 1300
    late = replace(
        made,
        days=np.arange(many),
        losses=np.where((np.arange(many) < 260) & (np.arange(many) % 20 == 0), 0.11, -0.01),
        value_at_risk=np.full(many, 0.1),
        tail_points=np.full((many, TAIL_POINTS), 0.2),
        ranks=np.linspace(0.01, 0.99, many),
        recorded=np.ones(many, dtype=bool),
    )
    calendar = np.datetime64("2020-01-01") + np.arange(many)
    assert judged(late, calendar, confidence=0.99).kept
    partly = judged(replace(late, recorded=np.arange(many) < 260), calendar, confidence=0.99)
    assert (partly.recorded_exceptions, partly.recorded_forecasts, partly.kept) == (13, 260, False)
    none = judged(replace(made, recorded=np.zeros(count, dtype=bool)), dates, confidence=0.99)
    assert (none.recorded_forecasts, none.recorded_kupiec_p, none.kept) == (0, None, True)
    row = verdict_rows([replace(found, breach_mean_to_es=float("nan"))])[0]
    assert row["breach_mean_to_es"] is None
    assert json.loads(json.dumps(row))["kupiec_p"] == pytest.approx(1.0)
    table = forecast_table([made], np.datetime64("2020-01-01") + np.arange(count))
    assert table.num_rows == count
    assert table["date"][10].as_py().isoformat() == "2020-01-11"


def test_a_book_without_history_is_left_out_and_counted(market: Market) -> None:
    """C has 250 returns from day 390 on: its forecasts begin there, those of the others at once."""
    found = walk_forward(market, [BOOK_A, BOOK_C], {"f": filtered_history()}, first=380, last=399)
    assert [f.left_out for f in found] == [0, 10]
    assert found[1].days[0] == LISTED + 250
    with pytest.raises(ConfigurationError, match="at least 20"):
        judged(found[1], market.dates, confidence=0.99)


def test_walk_refuses_a_history_that_is_too_short(market: Market) -> None:
    with pytest.raises(ConfigurationError, match="at least 100 are needed"):
        walk_forward(market, [BOOK_A], {"f": filtered_history()}, first=100)
    with pytest.raises(ConfigurationError, match="no day between"):
        walk_forward(market, [BOOK_A], {"f": filtered_history()}, first=500, last=499)


def test_fills_of_a_late_listing_follow_the_anchors(market: Market) -> None:
    table = filled_residuals(market, DAYS, market.volatility[DAYS], market.residuals)
    assert np.isfinite(table[:, :4]).all()  # vol:B has no history and follows its rule
    assert np.isnan(table[:, 4]).all()
    before = slice(0, LISTED - market.first)
    assert np.abs(np.corrcoef(table[before, 0], table[before, 2])[0, 1]) < 0.5
    assert 0.5 < table[before, 2].std() / table[LISTED:, 2].std() < 2.0


# ---- from a file to a verdict --------------------------------------------------------------------------------------


def _written(folder: Path, **figures: Any) -> Path:
    """A configuration with a history of BTC and ETH beside it."""
    moves = _returns(500, seed=6)
    dates = np.datetime64("2022-01-01") + np.arange(501)
    rows: dict[str, list[Any]] = {"asset": [], "market": [], "ts": [], "close": []}
    for column, asset in enumerate(("BTC", "ETH")):
        closes = 1000.0 * np.exp(np.concatenate([[0.0], np.cumsum(moves[:, column])]))
        rows["asset"] += [asset] * 501
        rows["market"] += ["perp"] * 501
        rows["ts"] += dates.tolist()
        rows["close"] += closes.tolist()
    table = pa.table({**rows, "ts": pa.array(rows["ts"], pa.date32())})
    pyarrow.parquet.write_table(table, folder / "bars.parquet")
    settings: Mapping[str, Any] = {
        "books": ["BTC long", "BTC short straddle"],
        "generators": ["historical", "filtered_history"],
        **figures,
    }
    lines = [
        "[backtest]",
        'history = "bars.parquet"',
        *(f"{key} = {json.dumps(value)}" for key, value in settings.items()),
    ]
    (folder / "backtest.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder / "backtest.toml"


def test_the_verb_prints_writes_and_repeats_itself(tmp_path: Path) -> None:
    path = _written(tmp_path)
    runner = CliRunner()
    outs = []
    for name in ("one.parquet", "two.parquet"):
        found = runner.invoke(app, ["backtest-margin", str(path), "--json", "--out", str(tmp_path / name)])
        assert found.exit_code == 0, found.output
        outs.append(found.stdout)
    assert outs[0] == outs[1]
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    document = json.loads(outs[0])
    assert {(row["generator"], row["book"]) for row in document["verdicts"]} == {
        (generator, book)
        for generator in ("historical", "filtered_history")
        for book in ("BTC long", "BTC short straddle")
    }
    assert str(tmp_path) not in outs[0]
    printed = runner.invoke(app, ["backtest-margin", str(path), "--out", str(tmp_path / "rows.csv")])
    assert "filtered_history" in printed.stdout
    assert (
        pa.csv.read_csv(tmp_path / "rows.csv").num_rows == pyarrow.parquet.read_table(tmp_path / "one.parquet").num_rows
    )


def test_blend_alone_runs_on_the_filtered_history(tmp_path: Path) -> None:
    figures, folder = load_backtest(_written(tmp_path), overrides=[f'backtest.generators=["{BLEND}"]'])
    tested = run_backtest(figures, folder)
    assert {verdict.generator for verdict in tested.verdicts} == {BLEND}
    assert {found.generator for found in tested.forecasts} == {BLEND}
    plain = run_backtest(figures.model_copy(update={"generators": ("filtered_history",)}), folder)
    for mixed, alone in zip(tested.verdicts, plain.verdicts, strict=True):
        assert mixed.requirement_mean >= alone.requirement_mean


def test_bad_rows_of_the_history_are_named_and_change_nothing_else(tmp_path: Path) -> None:
    path = _written(tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "bars.parquet")
    closes = table["close"].to_pylist()
    closes[10], closes[600], closes[700] = -5.0, None, float("nan")
    broken = table.set_column(3, "close", pa.array(closes, pa.float64()))
    pyarrow.parquet.write_table(pa.concat_tables([broken, broken.slice(20, 1)]), tmp_path / "bars.parquet")
    figures, folder = load_backtest(path, overrides=['backtest.books=["BTC long"]'])
    tested = run_backtest(figures, folder)
    reasons = {(failure.subject, str(failure.reason)) for failure in tested.failures}
    assert reasons == {
        ("BTC", "out_of_range"),
        ("BTC", "duplicate"),
        ("ETH", "missing_field"),
        ("ETH", "not_a_number"),
    }
    assert int(tested.exit_code) == 3
    assert len(tested.verdicts) == 2
    assert len(backtest_document(tested)["failures"]) == len(tested.failures)
    found = CliRunner().invoke(app, ["backtest-margin", str(path)])
    assert found.exit_code == 3
    assert "is -5.0; expected a positive number" in found.output


def test_a_book_whose_asset_has_no_bars_is_a_failure_and_not_a_verdict(tmp_path: Path) -> None:
    figures, folder = load_backtest(_written(tmp_path), overrides=['backtest.books=["BTC long", "basket"]'])
    tested = run_backtest(figures, folder)
    assert {verdict.book for verdict in tested.verdicts} == {"BTC long"}
    assert {failure.subject for failure in tested.failures} == {"basket"}
    assert "has 0 forecasts of basket" in tested.failures[0].message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backtest.confidance=0.9", "unknown key backtest.confidance.*did you mean 'confidence'"),
        ('backtest.generators=["t_copulla"]', "did you mean 't_copula'"),
        ('backtest.books=["BTC lang"]', "did you mean 'BTC long'"),
        ("backtest.confidence=1.5", "backtest.confidence"),
        ("run.seed=1", "expected backtest.key=value"),
        ('backtest.history="nowhere.parquet"', "does not exist"),
        ("backtest.start=2022-03-01", "at least 100 are needed"),
        ("backtest.start=2030-01-01", "no day between"),
        ("backtest.vol_rules={}", "no rule for BTC"),
    ],
)
def test_mistakes_in_the_configuration_are_said_in_a_sentence(tmp_path: Path, override: str, message: str) -> None:
    path = _written(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        run_backtest(*load_backtest(path, overrides=[override]))


def test_history_may_stand_with_the_scenarios(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[scenarios]\ngenerator = "filtered_history"\nhistory = "a.csv"\nanchors = ["ETH"]\n'
        "ewma_lambda = 0.95\nhalf_life_days = 365.0\nsplice = false\n",
        encoding="utf-8",
    )
    figures, _ = load_backtest(path)
    assert (figures.history, figures.anchors) == ("a.csv", ("ETH",))
    assert (figures.decay, figures.half_life_days, figures.splice) == (0.95, 365.0, False)
    path.write_text("[backtest]\nseed = 1\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="names a history"):
        load_backtest(path)


def test_the_page_shows_the_measured_figures() -> None:
    """The table of exceptions in docs/margin-backtest.md is that of the benchmark's file, marks of misses included."""
    root = Path(__file__).resolve().parent.parent
    measured = json.loads((root / "benchmarks" / "results" / "backtest_margin.json").read_text(encoding="utf-8"))
    cells: dict[str, list[str]] = {}
    for row in measured["backtest"]["verdicts"]:
        cells.setdefault(row["generator"], []).append(f"{row['exceptions']}" + ("" if row["kept"] else " **no**"))
    assert set(cells) == {*generators(None), BLEND}
    page = (root / "docs" / "margin-backtest.md").read_text(encoding="utf-8")
    for name, counts in cells.items():
        assert f"| `{name}` | {' | '.join(counts)} |" in page
    assert measured["study"]["variants"] == len(measured["study"]["rules"])
    assert f"{measured['study']['variants']} rules" in page


def test_the_target_is_kept_on_the_real_history(recorded: Path) -> None:
    """BTC and ETH, both sides, from 2021-01-01: Kupiec 5 %, Christoffersen 1 %, coverage 98.5 to 99.5 %."""
    figures = Backtest(
        history=str(recorded / "market" / "ohlcv_1d.parquet"),
        start=date(2021, 1, 1),
        end=date(2024, 6, 30),
        generators=("filtered_history",),
        books=("BTC long", "BTC short", "ETH long", "ETH short"),
    )
    tested = run_backtest(figures, recorded)
    assert tested.failures == ()
    for verdict in tested.verdicts:
        assert verdict.forecasts == 1277
        assert verdict.left_out == 0
        assert verdict.kupiec_p >= 0.05
        assert verdict.christoffersen_p >= 0.01
        assert 0.985 <= verdict.coverage <= 0.995
        assert verdict.kept


def test_recorded_implied_volatilities_are_used_where_there_are_some(recorded: Path) -> None:
    figures = Backtest(
        history=str(recorded / "market" / "ohlcv_1d.parquet"),
        context=str(recorded / "market" / "context.parquet"),
        start=date(2024, 5, 1),
        generators=("filtered_history",),
        books=("BTC short straddle", "yield desk"),
    )
    tested = run_backtest(figures, recorded)
    straddle, desk = tested.forecasts
    assert straddle.recorded.all()  # DVOL of BTC is there on every day since 2022-11
    assert not desk.recorded.any()  # and none of ETH
    market, failures = read_market(figures, recorded)
    assert failures == ()
    column = market.factors.index("vol:BTC")
    assert 0.3 < market.implied[-30:, column].min() < market.implied[-30:, column].max() < 1.0
