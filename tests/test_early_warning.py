"""The measurement of the early warning: accounts, scores and lead times against slow twins, and no look-ahead."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from aggregator.backtest_market import Market, build_market
from aggregator.history import DECAY, FLOOR_FRACTION
from aggregator.history_tables import ReturnPanel
from aggregator.tail_scale import TailForecast, conditioned
from benchmarks.early_warning import (
    LEVEL,
    Margins,
    Rows,
    conditional_shocks,
    day_step,
    laws_at,
    liquidation_probability,
    report,
    walk,
)
from benchmarks.leveraged_accounts import (
    KINDS,
    MAINTENANCE,
    Accounts,
    drawn_accounts,
    first_liquidation,
    surplus_parts,
)
from benchmarks.warning_scores import (
    alarm_threshold,
    area_under_curve,
    brier_terms,
    day_blocks,
    lead_times,
    log_terms,
    scores,
    warned,
)
from models.market_history import PERP, FourHourPanel

RTOL = 1e-12  # float64 against float64
FIRST_DAY = np.datetime64("2022-01-01")
DAYS = 420
ASSETS = ("BTC", "ETH", "AAA", "BBB", "CCC")
WALK = {"first": np.datetime64("2023-01-25", "h"), "last": np.datetime64("2023-02-02", "h"), "accounts": 12}


# ---- accounts --------------------------------------------------------------------------------------------------------


def test_accounts_are_what_their_kind_says_and_the_seed_decides() -> None:
    usable = np.array([True, True, False, True, True, True, True])
    made, again = (drawn_accounts(np.random.default_rng(4), usable, 300) for _ in range(2))
    assert all((a == b).all() for a, b in zip(made, again, strict=True))
    np.testing.assert_allclose(np.abs(made.notional).sum(axis=1), 1.0, rtol=1e-9)
    assert not made.notional[:, 2].any()
    held = (made.notional != 0.0).sum(axis=1)
    for number, name in enumerate(KINDS):
        of = made.kind == number
        net = made.notional[of].sum(axis=1)
        assert of.sum() > 15
        if name == "hedged":
            np.testing.assert_allclose(net, 0.0, atol=1e-12)
        else:
            np.testing.assert_allclose(net, 1.0 if "long" in name else -1.0, rtol=1e-9)
        assert (held[of] == 1).all() if name in ("long", "short") else (held[of] > 1).all()
    assert (made.collateral > MAINTENANCE).all()


def slow_liquidation(accounts: Accounts, number: int, low: np.ndarray, high: np.ndarray, close: np.ndarray) -> int:
    """The account's book, bar by bar, as a venue would keep it."""
    for bar in range(len(close)):
        equity, gross = float(accounts.collateral[number]), 0.0
        for asset, notional in enumerate(accounts.notional[number]):
            if notional == 0.0:
                continue
            hedged = KINDS[accounts.kind[number]] == "hedged"
            price = close[bar, asset] if hedged else (low if notional > 0.0 else high)[bar, asset]
            if math.isnan(price):
                return len(close)
            equity += notional * (price - 1.0)
            gross += abs(notional) * price
        if equity <= MAINTENANCE * gross:
            return bar
    return len(close)


def test_liquidations_are_those_of_a_slow_book() -> None:
    random = np.random.default_rng(8)
    close = np.exp(np.cumsum(0.03 * random.standard_normal((30, 6)), axis=0))
    reach = np.exp(0.02 * np.abs(random.standard_normal((30, 6))))
    close[20:, 5] = np.nan
    low, high = close / reach, close * reach
    accounts = drawn_accounts(random, np.ones(6, dtype=bool), 200)
    found = first_liquidation(accounts, low, high, close)
    assert 20 < (found < 30).sum() < 180
    assert found.tolist() == [slow_liquidation(accounts, number, low, high, close) for number in range(200)]


def test_surplus_is_equity_less_maintenance() -> None:
    random = np.random.default_rng(9)
    accounts = drawn_accounts(random, np.ones(5, dtype=bool), 40)
    ratio, growth = np.exp(0.1 * random.standard_normal((2, 5)))
    constant, parts = surplus_parts(accounts, ratio)
    for number in range(40):
        q = accounts.notional[number]
        equity = accounts.collateral[number] + math.fsum(q * (ratio * growth - 1.0))
        maintenance = MAINTENANCE * math.fsum(np.abs(q) * ratio * growth)
        assert constant[number] + parts[number] @ growth == pytest.approx(equity - maintenance, rel=1e-9, abs=1e-12)


# ---- scores ----------------------------------------------------------------------------------------------------------


def slow_area(probability: np.ndarray, happened: np.ndarray, weights: np.ndarray) -> float:
    won = total = 0.0
    for p, w in zip(probability[happened], weights[happened], strict=True):
        for q, v in zip(probability[~happened], weights[~happened], strict=True):
            won += w * v * (1.0 if p > q else 0.5 if p == q else 0.0)
            total += w * v
    return won / total


def test_area_under_the_curve_is_that_of_all_pairs_in_every_resample() -> None:
    random = np.random.default_rng(2)
    day = np.repeat(np.arange(60), 4)
    probability = np.round(random.uniform(size=240), 1)
    happened = random.uniform(size=240) < 0.3 * probability + 0.05
    blocks = day_blocks(day, 5, draws=3)
    found = area_under_curve(probability, happened, blocks)
    for counts, area in zip(blocks.counts, found, strict=True):
        assert area == pytest.approx(slow_area(probability, happened, counts[blocks.place]), rel=RTOL)
    assert math.isnan(area_under_curve(probability, np.zeros(240, dtype=bool), blocks)[0])


def test_scores_prefer_what_knows_more_and_say_by_how_much() -> None:
    random = np.random.default_rng(3)
    day = np.repeat(np.arange(280), 10)
    danger = random.beta(0.5, 6.0, 2800)
    happened = random.uniform(size=2800) < danger
    blind = np.full(2800, float(happened.mean()))
    found = scores({"filtered": blind, "knowing": danger}, happened, day, against="filtered")
    assert found["laws"]["filtered"]["auc"] == [0.5, 0.0]
    assert found["laws"]["knowing"]["brier"][0] == pytest.approx(float(np.mean((danger - happened) ** 2)), rel=RTOL)
    for key, sign in (("auc", 1.0), ("brier", -1.0), ("log_score", -1.0)):
        difference, error = found["minus_filtered"]["knowing"][key]
        assert sign * difference > 3.0 * error > 0.0, key
    assert brier_terms(np.array([0.2, 0.2]), np.array([True, False])) == pytest.approx([0.64, 0.04])
    assert log_terms(np.array([0.0, 1.0]), np.array([True, True])) == pytest.approx([-math.log(1e-4), 1e-4], rel=1e-3)


def test_thresholds_give_the_rate_of_false_alarms_that_was_asked_for() -> None:
    random = np.random.default_rng(6)
    probability, happened = random.uniform(size=1000), np.arange(1000) < 100
    bound = alarm_threshold(probability, happened, 0.05)
    assert np.mean(probability[~happened] > bound) <= 0.05 < np.mean(probability[~happened] >= bound)


def test_lead_times_by_hand() -> None:
    account = np.repeat([1, 2, 3], 4)
    hours = np.tile([0.0, 8.0, 16.0, 24.0], 3)
    gone = np.repeat([28.0, 24.0, 30.0], 4)
    alarm = np.array([0, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1], dtype=bool)
    found = warned(alarm, account, hours, gone)
    assert found.lasting.tolist() == [20.0, 0.0, 6.0]
    assert found.first.tolist() == [20.0, 24.0, 30.0]
    means = lead_times(found)
    assert means["liquidations"] == 3
    assert means["hours"][0] == pytest.approx(26.0 / 3.0)
    assert means["share_warned"][0] == pytest.approx(2.0 / 3.0)
    silent = warned(np.zeros(12, dtype=bool), account, hours, gone)
    assert lead_times(silent)["hours_from_first_alarm"] == [0.0, 0.0]
    assert lead_times(found, silent)["hours"] == means["hours"]
    assert lead_times(found, found)["share_warned"] == [0.0, 0.0]


# ---- laws and the walk -----------------------------------------------------------------------------------------------


class Made:
    """A made-up market, its bars and margins; `after` changes everything from that day on."""

    def __init__(self, after: np.datetime64 | None = None) -> None:
        random = np.random.default_rng(12)
        common = random.standard_t(4, (DAYS, 6, 1))
        moves = 0.012 * (0.7 * common + 0.7 * random.standard_t(4, (DAYS, 6, len(ASSETS))))
        dates = FIRST_DAY + np.arange(DAYS)
        if after is not None:
            moves[dates >= after] *= -3.0
        path = 100.0 * np.exp(np.cumsum(moves.reshape(-1, len(ASSETS)), axis=0))
        opened = np.concatenate([np.full((1, len(ASSETS)), 100.0), path[:-1]])
        opening = FIRST_DAY.astype("datetime64[us]") + np.arange(6 * DAYS) * np.timedelta64(4, "h")
        blank = np.ones_like(path)
        self.bars = FourHourPanel(
            opening,
            ASSETS,
            np.full(path.shape, PERP),
            opened,
            np.maximum(opened, path) * 1.01,
            np.minimum(opened, path) / 1.01,
            path,
            blank,
            blank,
        )
        panel = ReturnPanel(dates, ASSETS, moves.sum(axis=1), ("perp",) * len(ASSETS), (0, 1))
        self.market: Market = build_market(panel, {}, {}, {}, decay=DECAY, floor_fraction=FLOOR_FRACTION, seed=1)
        self.margins = {}
        for horizon, hours in (("1d", 24), ("8h", 8)):
            times = FIRST_DAY.astype("datetime64[us]") + np.arange(DAYS * 24 // hours) * np.timedelta64(hours, "h")
            rate = 0.2 * (hours / 24) ** 0.5 * np.exp(0.2 * random.standard_normal((len(times), len(ASSETS), 2)))
            if after is not None:
                rate[times >= after] *= 2.0
            for loss in ("close", "adverse"):
                self.margins[f"{horizon}_{loss}"] = Margins(times, ASSETS, {"learned": rate, "classical": 1.1 * rate})


def walked(made: Made, **changed: Any) -> dict[str, Rows]:
    return walk(made.market, made.bars, made.margins, **{**WALK, **changed})


def test_conditional_shocks_are_those_of_the_generator() -> None:
    made = Made()
    step = day_step(made.market, 390)
    down, up = np.full(5, 0.2), np.full(5, 0.3)
    shocks = conditional_shocks(step, down, up)
    for column, name in enumerate(ASSETS):
        of = conditioned(name, step.residuals[:, column], step.weights, TailForecast(LEVEL, 0.2, 0.3))
        np.testing.assert_allclose(shocks[:, column], of.sigma * of.residuals, rtol=RTOL)


def test_probability_of_liquidation_is_the_mass_of_the_scenarios_below_maintenance() -> None:
    made = Made()
    step = day_step(made.market, 390)
    at = made.bars.opening[390 * 6]
    laws = laws_at(step, made.margins, "1d", at, ASSETS)
    assert set(laws) == {
        "historical",
        "filtered",
        *(f"{m} {k}" for m in ("learned", "classical") for k in ("close", "adverse")),
    }
    accounts = drawn_accounts(np.random.default_rng(1), step.usable, 20)
    constant, parts = surplus_parts(accounts, np.ones(5))
    for name, (shocks, weights) in laws.items():
        assert weights.sum() == pytest.approx(1.0, rel=RTOL)
        found = liquidation_probability(shocks, weights, constant, parts)
        slow = [
            math.fsum(w for x, w in zip(shocks, weights, strict=True) if constant[k] + parts[k] @ np.exp(x) <= 0.0)
            for k in range(20)
        ]
        # single precision: a scenario on the very edge may fall to the other side
        np.testing.assert_allclose(found, slow, atol=float(weights.max()) * 1.01, err_msg=name)


def test_the_future_changes_nothing_that_was_said_before_it() -> None:
    change = np.datetime64("2023-01-29")
    before, after = walked(Made()), walked(Made(after=change))
    hour = int(change.astype("datetime64[h]").astype(np.int64))
    for horizon in ("1d", "8h"):
        one, other = before[horizon], after[horizon]
        for name in one.probabilities:
            said = [
                dict(zip(zip(r.hours.tolist(), r.account.tolist(), strict=True), r.probabilities[name], strict=True))
                for r in (one, other)
            ]
            known = {key for key in said[0].keys() & said[1].keys() if key[0] < hour}
            assert len(known) > 50
            assert all(said[0][key] == said[1][key] for key in known), (horizon, name)
        # accounts that were alive: the same ones in both, the future decides only what became of them
        keys = [{(h, a) for h, a in zip(r.hours, r.account, strict=True) if h < hour} for r in (one, other)]
        assert keys[0] == keys[1]
        assert (one.within[one.hours >= hour].mean() > 0.0) or (other.within[other.hours >= hour].mean() > 0.0)


def test_the_walk_repeats_and_its_rows_are_consistent() -> None:
    first, second = walked(Made()), walked(Made())
    for horizon, hours in (("1d", 24), ("8h", 8)):
        rows = first[horizon]
        assert all((a == b).all() for a, b in zip(rows[:5], second[horizon][:5], strict=True))
        assert (rows.gone_hours >= rows.hours).all()
        assert (rows.within == (rows.gone_hours < rows.hours + hours)).all()
        assert all(((p >= 0.0) & (p <= 1.0)).all() for p in rows.probabilities.values())


def test_a_report_has_every_period_and_law() -> None:
    document = json.loads(json.dumps(report(walked(Made()))))
    for horizon in ("1d", "8h"):
        found = document[horizon]
        for outcome in ("at_end", "within"):
            assert set(found[outcome]) == {"all", "other days"}
            assert set(found[outcome]["all"]["laws"]) == {"filtered", *found[outcome]["all"]["minus_filtered"]}
        assert found["within"]["all"]["rows"] == found["within"]["other days"]["rows"]
        assert found["by_crisis"] == found["lead"]["crises"] == {}
        assert set(found["lead"]["other days"]) == {"0.05", "0.1"}


def test_a_walk_without_a_margin_at_its_time_says_so() -> None:
    made = Made()
    made.margins["1d_close"] = made.margins["1d_close"]._replace(
        opening=made.margins["1d_close"].opening + np.timedelta64(1, "h")
    )
    with pytest.raises(ValueError, match="no margin of 1d close at 2023-01-25"):
        walked(made)
