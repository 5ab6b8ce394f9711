"""Ladders and haircuts: against slow twins, and what must hold whatever the forecast says."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from aggregator.errors import ConfigurationError, DataError
from aggregator.factors import MarketSize
from aggregator.overlays.partial_default import DefaultLaw
from aggregator.schema.canonical import MARGIN_TIERS
from models.collateral_haircuts import PegMoves, collateral_tiers, peg_haircut, peg_weights
from models.market_history import Side
from models.tier_ladder import (
    BaseRates,
    Ladder,
    Tier,
    build_ladder,
    initial_margin,
    ladders_of,
    maintenance_margin,
    marginal_rates,
    needed_rates,
    rates_in_table,
    rates_over,
    require_ladder,
)
from models.tier_policy import BPS, TierLevel, read_policy

POLICY = read_policy(Path(__file__).parent.parent / "configs" / "governance.toml")
LEVELS, HORIZONS = (0.95, 0.99, 0.995), (1.0 / 3.0, 1.0)
SIZE = MarketSize(daily_volume=2e8, daily_vol=0.05, spread=0.0004)
CAPS = (1e5, 1e6, 1e7, 6e7)


def base_rates(side: Side = "long", *, scale: float = 0.05) -> BaseRates:
    margin = scale * np.array([[0.7, 1.0, 1.2], [1.1, 1.6, 2.0]])
    return BaseRates(side, LEVELS, HORIZONS, margin, 1.3 * margin)


SIDES = (base_rates("long"), base_rates("short", scale=0.06))


def twin_needed(rates: BaseRates, size: MarketSize, notional: float, level: TierLevel) -> float:
    """One position at a time, in plain numbers, with the formulas of the module's docstring."""
    days = max(level.least_days, notional / (POLICY.close_out.participation * size.daily_volume))
    column = rates.levels.index(level.level)
    table = rates.margin if level.measure == "quantile" else rates.shortfall
    largest = 0.0
    for row, horizon in enumerate(rates.horizons_days):
        rate = max(float(table[i, j]) for i in range(row + 1) for j in range(column + 1))
        loss = math.log(1.0 / (1.0 - rate)) if rates.side == "long" else math.log(1.0 + rate)
        largest = max(largest, loss * math.sqrt(days / horizon))
    base = 1.0 - math.exp(-largest) if rates.side == "long" else math.exp(largest) - 1.0
    return base + size.spread / 2.0 + size.daily_vol * math.sqrt(notional / size.daily_volume)


def test_needed_rates_are_those_of_the_twin() -> None:
    notional = np.geomspace(1e3, 3e9, 20)
    for level in (POLICY.ladder.maintenance, POLICY.ladder.initial):
        found = needed_rates("SOL", SIDES, SIZE, notional, level, POLICY)
        expected = [max(twin_needed(rates, SIZE, float(n), level) for rates in SIDES) for n in notional]
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_a_ladder_by_hand() -> None:
    ladder = build_ladder("SOL", (base_rates(),), SIZE, (1e6, 2e7), POLICY)
    # maintenance: 99 % over 8 hours, log 1/0.95 from 8 hours, log 1/0.92 / sqrt(3) from the day is less
    first = 1.0 - 0.95 + 0.0002 + 0.05 * math.sqrt(1e6 / 2e8)
    # 20 million take a day: the day's rate 0.08, or 8 hours' scaled by sqrt(3)
    day = max(0.08, 1.0 - 0.95 ** math.sqrt(3.0)) + 0.0002 + 0.05 * math.sqrt(0.1)
    slope = (2e7 * day - 1e6 * first) / 1.9e7
    shortfall = max(0.104, 1.0 - (1.0 - 0.065) ** math.sqrt(3.0))
    whole = [shortfall + 0.0002 + 0.05 * math.sqrt(share) for share in (0.005, 0.1)]
    up = [POLICY.rounding.up(rate) for rate in (first, slope, *whole)]
    assert up == [540, 1040, 1140, 1260]
    assert ladder == Ladder("SOL", (Tier(0.0, 1e6, 540, 1140), Tier(1e6, 2e7, 1040, 1260)))
    assert ladder.tiers[0].largest_leverage == pytest.approx(10_000 / 1140, rel=1e-15)
    assert maintenance_margin(ladder, 3e6) == pytest.approx(1e6 * 0.054 + 2e6 * 0.104, rel=1e-15)
    assert initial_margin(ladder, 1e6) == pytest.approx(1e6 * 0.114, rel=1e-15)
    assert initial_margin(ladder, 3e6) == pytest.approx(3e6 * 0.126, rel=1e-15)


rate_tables = st.lists(st.floats(1e-4, 0.5), min_size=12, max_size=12).map(
    lambda figures: (np.array(figures[:6]).reshape(2, 3), np.array(figures[6:]).reshape(2, 3))
)
sizes = st.builds(
    MarketSize,
    daily_volume=st.floats(1e5, 1e11),
    daily_vol=st.floats(0.0, 0.3),
    spread=st.floats(0.0, 0.02),
)


@given(tables=rate_tables, size=sizes, side=st.sampled_from(["long", "short"]))
@settings(max_examples=40)
def test_whatever_is_forecast_a_ladder_rises_and_covers(
    tables: tuple[np.ndarray, np.ndarray], size: MarketSize, side: Side
) -> None:
    # rates that cross, a shortfall below its quantile: nothing a ladder could break on
    rates = BaseRates(side, LEVELS, HORIZONS, *tables)
    ladder = build_ladder("A", (rates,), size, CAPS, POLICY)
    require_ladder(ladder)
    whole = [tier.initial_bps for tier in ladder.tiers]
    assert all(tier.initial_bps >= tier.maintenance_bps for tier in ladder.tiers)
    assert whole == sorted(whole)
    notional = np.geomspace(1e3, CAPS[-1], 48)
    needed = {
        name: needed_rates("A", (rates,), size, notional, getattr(POLICY.ladder, name), POLICY)
        for name in ("maintenance", "initial")
    }
    average = [maintenance_margin(ladder, float(n)) / n for n in notional]
    assert np.all(np.diff(average) >= -1e-12)
    if ladder.tiers[-1].maintenance_bps < POLICY.rates.largest:
        assert np.all(np.array(average) >= needed["maintenance"] - 1e-9)
    if ladder.tiers[-1].initial_bps < POLICY.rates.largest:
        assert np.all([initial_margin(ladder, float(n)) / n for n in notional] >= needed["initial"] - 1e-9)


@given(tables=rate_tables, size=sizes, side=st.sampled_from(["long", "short"]), days=st.floats(0.01, 20.0))
@settings(max_examples=40)
def test_more_level_horizon_or_danger_never_needs_less(
    tables: tuple[np.ndarray, np.ndarray], size: MarketSize, side: Side, days: float
) -> None:
    rates = BaseRates(side, LEVELS, HORIZONS, *tables)
    caps = np.array(CAPS)

    def totals(rates: BaseRates, level: float, least_days: float, measure: str) -> np.ndarray:
        wanted = TierLevel.model_validate({"level": level, "measure": measure, "least_days": least_days})
        slopes = marginal_rates(caps, needed_rates("A", (rates,), size, caps, wanted, POLICY))
        assert np.all(np.diff(slopes) >= 0.0)
        return np.cumsum(slopes * np.diff(caps, prepend=0.0))

    base = totals(rates, 0.95, days, "quantile")
    more_danger = rates._replace(margin=np.minimum(1.3 * rates.margin, 0.9))
    for larger in (
        totals(rates, 0.99, days, "quantile"),
        totals(rates, 0.95, 1.5 * days, "quantile"),
        totals(rates, 0.95, days, "shortfall"),
        totals(more_danger, 0.95, days, "quantile"),
    ):
        assert np.all(larger >= base * (1.0 - 1e-12))


def test_a_forecast_keeps_its_own_horizons_and_grows_with_the_root_of_time() -> None:
    calm = BaseRates("long", (0.99,), (1.0 / 3.0, 1.0), np.array([[0.02], [0.05]]), np.array([[0.03], [0.07]]))
    level = TierLevel(level=0.99, measure="quantile", least_days=0.1)
    found = rates_over("A", calm, level=level, days=np.array([1.0, 4.0, 1.0 / 3.0]))
    # the day forecasts more than the root of time makes of 8 hours; 8 hours then stand on the day
    np.testing.assert_allclose(found, [0.05, 1.0 - 0.95**2, 1.0 - 0.95 ** math.sqrt(1.0 / 3.0)], rtol=1e-13)
    forever = rates_over("A", calm, level=level, days=np.array([1e18]))
    # all of the notional, and what keeps the requirement convex: 1 - e^-3 and its tangent, 1.5 e^-3
    assert forever[0] == pytest.approx(1.0 + 0.5 * math.exp(-3.0), rel=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": np.full((2, 3), np.nan)}, "margin at 0.33.* level 0.95 is nan"),
        ({"margin": np.zeros((2, 3))}, "margin at .* is 0.0"),
        ({"margin": np.ones((2, 3))}, "margin at .* is 1.0"),
        ({"shortfall": np.ones((2, 2))}, r"shortfall has the shape \(2, 2\)"),
        ({"levels": (0.99, 0.95, 0.995)}, "levels .* are not positive and rising"),
        ({"levels": (0.95, 0.99, 1.0)}, "level 1.0 is not below 1"),
        ({"levels": (0.9, 0.95, 0.975)}, "level 0.99 is not among"),
        ({"horizons_days": (0.0, 1.0)}, "horizons_days .* are not positive"),
        ({"side": "both"}, "side 'both' is neither"),
    ],
)
def test_wrong_rates_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigurationError, DataError), match=message):
        build_ladder("SOL", (base_rates()._replace(**change),), SIZE, CAPS, POLICY)


def test_wrong_sides_and_brackets_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="each once"):
        build_ladder("SOL", (base_rates(), base_rates()), SIZE, CAPS, POLICY)
    for caps in ((), (1.0, 1.0), (-1.0, 2.0), (1.0, math.nan)):
        with pytest.raises(ConfigurationError, match="brackets of SOL"):
            build_ladder("SOL", SIDES, SIZE, caps, POLICY)
    with pytest.raises(DataError, match="does not trade"):
        build_ladder("SOL", SIDES, SIZE._replace(daily_volume=0.0), CAPS, POLICY)
    with pytest.raises(ConfigurationError, match="notional of SOL is nan"):
        maintenance_margin(Ladder("SOL", (Tier(0.0, None, 1, 1),)), math.nan)
    with pytest.raises(ConfigurationError, match="notional of SOL is -1"):
        initial_margin(Ladder("SOL", (Tier(0.0, None, 1, 1),)), -1.0)


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ((), "there are none"),
        ((Tier(1.0, 2.0, 1, 2),), "begins at 1.0; expected 0.0"),
        ((Tier(0.0, None, 1, 2), Tier(2.0, 3.0, 1, 2)), "tier 1 of SOL has no cap"),
        ((Tier(0.0, 5.0, 1, 2), Tier(6.0, 7.0, 1, 2)), "tier 2 of SOL begins at 6.0; expected 5.0"),
        ((Tier(0.0, math.nan, 1, 2),), "ends at nan"),
        ((Tier(0.0, 5.0, 0, 2),), "not positive"),
        ((Tier(0.0, 5.0, 30, 40), Tier(5.0, 6.0, 20, 40)), "fall below those of the tier before"),
        ((Tier(0.0, 5.0, 30, 40), Tier(5.0, 6.0, 30, 39)), "fall below those of the tier before"),
        ((Tier(0.0, 5.0, 30, 20),), "initial rate 20 bps is below maintenance rate 30 bps"),
    ],
)
def test_ladders_that_contradict_themselves_are_refused(tiers: tuple[Tier, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        require_ladder(Ladder("SOL", tiers))


# ---- canonical tables ------------------------------------------------------------------------------------------------


def margin_tiers(*rows: tuple[str, int, str, str | None, str, str]) -> pa.Table:
    """Rows of one rule set: market, tier, floor, cap, initial and maintenance rate."""
    deduction, rate, content = Decimal(0), Decimal(0), []
    for market, tier, floor, cap, initial, maintenance in rows:
        if tier == 1:
            deduction = rate = Decimal(0)
        deduction += Decimal(floor) * (Decimal(maintenance) - rate)
        rate = Decimal(maintenance)
        content.append(
            {
                "rule_set": "binance",
                "market": market,
                "tier": tier,
                "notional_floor": Decimal(floor),
                "notional_cap": None if cap is None else Decimal(cap),
                "initial_rate": Decimal(initial),
                "maintenance_rate": Decimal(maintenance),
                "deduction": deduction,
                "size_coefficient": None,
                "source": "venue",
            }
        )
    return pa.Table.from_pylist(content, schema=MARGIN_TIERS)


TABLE = margin_tiers(
    ("BTC", 1, "0", "50000", "0.008", "0.004"),
    ("BTC", 2, "50000", "600000", "0.01", "0.005"),
    ("BTC", 3, "600000", "3000000", "0.013333333333333333", "0.0065"),
    ("ETH", 1, "0", None, "0.02", "0.01"),
)


def test_ladders_of_a_table_and_back() -> None:
    ladders = ladders_of(TABLE, "binance")
    assert list(ladders) == ["BTC", "ETH"]
    # 1 / 75 is rounded up to whole bps
    assert ladders["BTC"].tiers[2] == Tier(600000.0, 3000000.0, 65, 134)
    assert ladders["ETH"].tiers == (Tier(0.0, None, 100, 200),)
    assert rates_in_table(TABLE, "binance", list(ladders.values())).equals(TABLE)

    raised = [tier._replace(maintenance_bps=bps) for tier, bps in zip(ladders["BTC"].tiers, (40, 90, 120), strict=True)]
    changed = rates_in_table(TABLE, "binance", [Ladder("BTC", tuple(raised))]).to_pylist()
    assert [row["source"] for row in changed] == ["venue", "model", "model", "venue"]
    assert [row["deduction"] for row in changed] == [0, Decimal(250), Decimal(2050), 0]
    assert changed[2]["initial_rate"] == Decimal("0.013333333333333333")
    # the requirement of the table is that of the ladder
    for notional in (10_000, 50_000, 400_000, 2_500_000):
        row = max((row for row in changed[:3] if row["notional_floor"] < notional), key=lambda row: row["tier"])
        by_table = notional * row["maintenance_rate"] - row["deduction"]
        assert float(by_table) == pytest.approx(maintenance_margin(Ladder("BTC", tuple(raised)), notional), rel=1e-14)


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'binanse' has no margin tiers"):
        ladders_of(TABLE, "binanse")
    with pytest.raises(ConfigurationError, match="tier 1 of BTC in binance is there twice"):
        ladders_of(pa.concat_tables([TABLE, TABLE.slice(0, 1)]), "binance")
    with pytest.raises(ConfigurationError, match=r"tiers of BTC in binance are \[2, 3\]"):
        ladders_of(TABLE.slice(1), "binance")
    falling = margin_tiers(("A", 1, "0", "5", "0.02", "0.01"), ("A", 2, "5", None, "0.02", "0.005"))
    with pytest.raises(ConfigurationError, match="tier 2 of A: its rates"):
        ladders_of(falling, "binance")
    with pytest.raises(ConfigurationError, match="'XRP' has no tiers"):
        rates_in_table(TABLE, "binance", [Ladder("XRP", (Tier(0.0, None, 1, 1),))])
    with pytest.raises(ConfigurationError, match="tiers of BTC have other brackets"):
        rates_in_table(TABLE, "binance", [Ladder("BTC", (Tier(0.0, None, 1, 1),))])


# ---- collateral ------------------------------------------------------------------------------------------------------

LAW = DefaultLaw(jumps_per_year=0.5, depth_a=1.5, depth_b=4.0, depth_cap=0.9, recovery_per_day=0.3)
MOVES = PegMoves(daily_std=0.0005, nu=4.0)


def test_weights_fall_with_value_and_initial_counts_less() -> None:
    tiers = collateral_tiers("SOL", base_rates(), SIZE, CAPS, POLICY)
    for name in ("maintenance_weight_bps", "initial_weight_bps"):
        weights = [getattr(tier, name) for tier in tiers]
        assert weights == sorted(weights, reverse=True)
        assert 0 < weights[-1] <= weights[0] < BPS
    assert all(tier.initial_weight_bps <= tier.maintenance_weight_bps for tier in tiers)
    first = twin_needed(base_rates(), SIZE, CAPS[0], POLICY.collateral.maintenance)
    assert tiers[0].maintenance_weight_bps == BPS - POLICY.rounding.up(first)
    with pytest.raises(ConfigurationError, match="long side"):
        collateral_tiers("SOL", base_rates("short"), SIZE, CAPS, POLICY)


def twin_peg_haircut(level: float, days: float, *, discount: float = 0.0) -> float:
    """Expected shortfalls as integrals of quantiles."""
    depth = stats.beta(LAW.depth_a, LAW.depth_b)
    ordinary = integrate.quad(lambda u: stats.t.ppf(u, MOVES.nu), level, 1.0)[0] / (1.0 - level)
    ordinary = 1.0 - math.exp(-ordinary * MOVES.daily_std * math.sqrt(0.5) * math.sqrt(days))
    if discount:
        below = depth.cdf(discount / LAW.depth_cap)
        tail = integrate.quad(lambda u: depth.ppf(below + u * (1.0 - below)), level, 1.0)[0] / (1.0 - level)
        return float(ordinary + (LAW.depth_cap * tail - discount) / (1.0 - discount))
    jump = 1.0 - math.exp(-LAW.jumps_per_year * days / 365.0)
    start = max(level, 1.0 - jump)
    tail = integrate.quad(lambda u: depth.ppf((u - (1.0 - jump)) / jump), start, 1.0)[0] / (1.0 - level)
    return float(ordinary + LAW.depth_cap * tail)


@pytest.mark.parametrize(
    ("level", "days", "discount"),
    [(0.99, 1.0, 0.0), (0.99, 7.0, 0.0), (0.99, 60.0, 0.0), (0.9, 30.0, 0.0), (0.99, 1.0, 0.08), (0.95, 7.0, 0.5)],
)
def test_a_peg_haircut_is_hazard_times_severity(level: float, days: float, discount: float) -> None:
    found = peg_haircut("USDX", LAW, MOVES, level=level, days=days, discount=discount)
    # the twin's quadrature of a quantile that runs to its end is the less exact of the two
    assert found == pytest.approx(twin_peg_haircut(level, days, discount=discount), rel=2e-6)


def test_a_calm_history_does_not_hide_the_jump() -> None:
    # a jump in two years: within a day its probability is far below 1 %, so that a quantile would be blind to it
    within_a_day = peg_haircut("USDX", LAW, MOVES, level=0.99, days=1.0)
    ordinary = peg_haircut("USDX", LAW._replace(jumps_per_year=1e-9), MOVES, level=0.99, days=1.0)
    mean_depth = 0.9 * 1.5 / 5.5
    assert within_a_day - ordinary == pytest.approx(-math.expm1(-0.5 / 365.0) * mean_depth / 0.01, rel=1e-6)
    assert within_a_day > 10 * ordinary


@given(days=st.floats(0.1, 60.0), hazard=st.floats(1e-6, 20.0), level=st.floats(0.6, 0.999), stress=st.floats(0.0, 5.0))
@settings(max_examples=100)
def test_a_peg_haircut_rises_with_all_that_is_dangerous(
    days: float, hazard: float, level: float, stress: float
) -> None:
    law = LAW._replace(jumps_per_year=hazard, stress_loading=0.5)
    base = peg_haircut("USDX", law, MOVES, level=level, days=days, stress=stress)
    assert 0.0 < base <= 1.0
    for other in (
        peg_haircut("USDX", law, MOVES, level=level, days=1.2 * days, stress=stress),
        peg_haircut("USDX", law, MOVES, level=0.5 * (level + 1.0), days=days, stress=stress),
        peg_haircut("USDX", law, MOVES, level=level, days=days, stress=stress + 0.5),
        peg_haircut("USDX", law._replace(depth_a=2.0), MOVES, level=level, days=days, stress=stress),
    ):
        assert other >= base * (1.0 - 1e-9)


def test_a_broken_peg_is_no_longer_a_rare_event() -> None:
    calm = peg_weights("USDX", LAW, MOVES, POLICY)
    broken = peg_weights("USDX", LAW, MOVES, POLICY, discount=0.05)
    assert calm[0] >= calm[1]
    assert broken[0] < calm[0] - 1_000
    # beyond the cap of the law nothing more can be lost by it; ordinary moves still can
    beyond = peg_haircut("USDX", LAW, MOVES, level=0.99, days=1.0, discount=0.95)
    assert 0.0 < beyond < 0.01


@pytest.mark.parametrize(
    ("law", "figures", "message"),
    [
        (LAW._replace(jumps_per_year=0.0), {}, "jumps_per_year of USDX is 0.0.*every peg can break"),
        (LAW._replace(depth_cap=1.0), {}, "depth_cap of USDX is 1.0"),
        (LAW._replace(depth_a=math.nan), {}, "depth_a of USDX is nan"),
        (LAW, {"days": math.nan}, "days of USDX is nan"),
        (LAW, {"level": 1.0}, "level of USDX is 1.0"),
        (LAW, {"discount": 1.0}, "discount of USDX is 1.0"),
        (LAW, {"stress": -1.0}, "stress of USDX is -1.0"),
    ],
)
def test_wrong_figures_of_a_peg_are_refused(law: DefaultLaw, figures: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        peg_haircut("USDX", law, MOVES, **{"level": 0.99, "days": 1.0, **figures})
