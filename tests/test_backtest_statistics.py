"""Statistics of the margin backtest: worked figures, closed forms, and their size and power in simulation.

Simulations have fixed seeds; a share of n rejections is accepted within four standard errors of its nominal value.
"""

import math

import numpy as np
import pytest
from scipy.stats import binom, chi2, norm

from aggregator.backtest_statistics import (
    acerbi_szekely,
    berkowitz,
    breach_sizes,
    christoffersen_independence,
    christoffersen_joint,
    kupiec,
    largest_increase,
    peak_to_trough,
    pit_uniformity,
    traffic_light,
)

CLOSED_FORM = 1e-12  # float64 against float64


def _hits(*positions: int, length: int) -> np.ndarray:
    hits = np.zeros(length, dtype=bool)
    hits[list(positions)] = True
    return hits


# ---- number of exceptions ------------------------------------------------------------------------------------------


def test_kupiec_reproduces_his_table_of_non_rejection_regions() -> None:
    """Kupiec (1995), table 3 as usually quoted, size 5 %: N < 7 in 255, 1 < N < 11 in 510, 4 < N < 17 in 1000."""
    for forecasts, lowest, highest in ((255, 0, 6), (510, 2, 10), (1000, 5, 16)):
        accepted = [x for x in range(40) if kupiec(x, forecasts, confidence=0.99).p_value > 0.05]
        # his region for 255 days says N < 7 and leaves open what no exception at all means; LR(0) = 5.126 rejects
        expected = [x for x in range(lowest, highest + 1) if forecasts != 255 or x > 0]
        assert accepted == expected


def test_kupiec_without_exceptions_is_the_log_of_the_chance_of_none() -> None:
    found = kupiec(0, 255, confidence=0.99)
    assert found.statistic == pytest.approx(-2.0 * 255 * math.log(0.99), rel=CLOSED_FORM)
    assert found.p_value == pytest.approx(chi2.sf(found.statistic, 1), rel=1e-9)


def test_kupiec_at_the_nominal_share_has_nothing_to_say() -> None:
    assert kupiec(10, 1000, confidence=0.99).statistic == pytest.approx(0.0, abs=1e-10)
    assert kupiec(5, 5, confidence=0.99).statistic == pytest.approx(-10.0 * math.log(0.01), rel=CLOSED_FORM)


@pytest.mark.parametrize(
    ("exceptions", "forecasts", "confidence"), [(3, 2, 0.99), (-1, 5, 0.99), (0, 0, 0.99), (1, 5, 1.0)]
)
def test_kupiec_refuses_what_cannot_be_counted(exceptions: int, forecasts: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"expected|confidence"):
        kupiec(exceptions, forecasts, confidence=confidence)


# ---- spacing of exceptions -----------------------------------------------------------------------------------------


def test_independence_is_the_likelihood_ratio_of_the_transition_counts() -> None:
    hits = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1], dtype=bool)
    # transitions: 00 five times, 01 three, 10 two, 11 one; 4 of the 11 ends are exceptions
    pooled = 4 * math.log(4 / 11) + 7 * math.log(7 / 11)
    chain = 5 * math.log(5 / 8) + 3 * math.log(3 / 8) + 2 * math.log(2 / 3) + math.log(1 / 3)
    found = christoffersen_independence(hits)
    assert found.statistic == pytest.approx(2.0 * (chain - pooled), rel=1e-9)
    assert found.p_value == pytest.approx(chi2.sf(found.statistic, 1), rel=1e-9)


def test_joint_statistic_is_the_sum_of_both() -> None:
    hits = _hits(10, 11, 40, 200, length=300)
    both = kupiec(4, 300, confidence=0.99).statistic + christoffersen_independence(hits).statistic
    found = christoffersen_joint(hits, confidence=0.99)
    assert found.statistic == pytest.approx(both, rel=CLOSED_FORM)
    assert found.p_value == pytest.approx(math.exp(-both / 2.0), rel=1e-9)  # chi-square with 2 degrees of freedom


def test_clustered_exceptions_are_rejected_and_spread_ones_are_not() -> None:
    assert christoffersen_independence(_hits(*range(100, 110), length=1000)).p_value < 1e-6
    assert christoffersen_independence(_hits(*range(50, 1000, 100), length=1000)).p_value > 0.5
    assert christoffersen_independence(np.zeros(50, dtype=bool)).p_value == 1.0
    with pytest.raises(ValueError, match="at least 2"):
        christoffersen_independence(np.array([True]))


def test_kupiec_and_independence_reject_right_models_at_their_nominal_rate() -> None:
    """10 % exceptions, where the limit law is close: 500 series of 500 draws."""
    generator = np.random.Generator(np.random.Philox(key=11))
    series = generator.random((500, 500)) < 0.1
    share = np.mean([kupiec(int(s.sum()), 500, confidence=0.9).p_value < 0.05 for s in series])
    spacing = np.mean([christoffersen_independence(s).p_value < 0.05 for s in series])
    allowed = 4.0 * math.sqrt(0.05 * 0.95 / 500)
    assert abs(share - 0.05) < allowed
    assert abs(spacing - 0.05) < allowed


def test_kupiec_finds_a_model_that_is_wrong_by_a_factor_of_two() -> None:
    generator = np.random.Generator(np.random.Philox(key=12))
    found = [kupiec(int(x), 1277, confidence=0.99).p_value < 0.05 for x in generator.binomial(1277, 0.02, 300)]
    assert np.mean(found) > 0.8


# ---- traffic light -------------------------------------------------------------------------------------------------


def test_zones_at_99_percent_and_250_days_are_those_of_the_basel_table() -> None:
    """Basel Committee (1996), table 2: green 0 to 4 exceptions, yellow 5 to 9, red 10 and more."""
    for exceptions, zone in ((0, "green"), (4, "green"), (5, "yellow"), (9, "yellow"), (10, "red"), (40, "red")):
        found = traffic_light(_hits(*range(exceptions), length=250), confidence=0.99)
        assert found is not None
        assert (found.last, found.most) == (zone, exceptions)
    assert binom.cdf(4, 250, 0.01) == pytest.approx(0.8922, abs=5e-5)  # the table's cumulative probability of green


def test_light_counts_every_window() -> None:
    found = traffic_light(_hits(0, 1, 2, 3, 4, length=300), confidence=0.99)
    assert found is not None
    # only the first of the 51 windows holds all five
    assert found.yellow == pytest.approx(1 / 51)
    assert (found.red, found.most, found.last) == (0.0, 5, "green")
    assert found.green + found.yellow + found.red == pytest.approx(1.0)
    assert traffic_light(np.zeros(249, dtype=bool), confidence=0.99) is None


# ---- shortfall -----------------------------------------------------------------------------------------------------


def _normal_tail(sigma: float, *, points: int = 20, tail: float = 0.01) -> tuple[float, np.ndarray]:
    """Value at risk of N(0, sigma^2) and the means over equal slices beyond: phi differences over the slice mass."""
    edges = norm.isf(np.linspace(0.0, tail, points + 1))
    density = norm.pdf(edges)
    return sigma * float(norm.isf(tail)), sigma * np.diff(density) * points / tail


def _shortfall_p(losses: np.ndarray, sigma: float, *, draws: int = 400) -> float:
    value_at_risk, points = _normal_tail(sigma)
    return acerbi_szekely(
        losses,
        np.full(len(losses), value_at_risk),
        np.tile(points, (len(losses), 1)),
        confidence=0.99,
        seed=3,
        draws=draws,
    ).p_value


def test_z2_by_hand() -> None:
    losses = np.array([0.0, 3.0, -1.0, 5.0])
    points = np.tile([2.0, 6.0], (4, 1))  # expected shortfall 4
    found = acerbi_szekely(losses, np.full(4, 2.0), points, confidence=0.75, draws=10)
    assert found.statistic == pytest.approx((3.0 + 5.0) / (4 * 0.25 * 4.0) - 1.0, rel=CLOSED_FORM)


def test_z2_null_has_mean_zero_and_the_right_model_keeps_its_size() -> None:
    generator = np.random.Generator(np.random.Philox(key=21))
    histories = generator.standard_normal((200, 500))
    rejected = np.mean([_shortfall_p(row, 1.0) < 0.05 for row in histories])
    assert abs(rejected - 0.05) < 4.0 * math.sqrt(0.05 * 0.95 / 200)


def test_z2_rejects_a_shortfall_that_is_a_fifth_too_small() -> None:
    generator = np.random.Generator(np.random.Philox(key=22))
    histories = generator.standard_normal((60, 1277))
    assert np.mean([_shortfall_p(row, 0.8) < 0.05 for row in histories]) > 0.9
    assert np.mean([_shortfall_p(row, 1.2) < 0.05 for row in histories]) == 0.0


def test_z2_sees_tails_that_are_too_long_where_their_number_is_right() -> None:
    sigma_tail, points = _normal_tail(1.0)
    losses = np.full(1000, -1.0)
    losses[::100] = 2.0 * points.mean()  # ten exceptions of twice the expected shortfall
    found = acerbi_szekely(losses, np.full(1000, sigma_tail), np.tile(points, (1000, 1)), confidence=0.99)
    assert found.statistic == pytest.approx(1.0)
    assert found.p_value < 0.05
    assert kupiec(10, 1000, confidence=0.99).p_value > 0.99


def test_z2_repeats_itself_and_refuses_bad_shapes() -> None:
    losses = np.array([0.1, 3.0, 0.2])
    points = np.tile([2.5, 3.5], (3, 1))
    first, second = (acerbi_szekely(losses, np.full(3, 2.0), points, confidence=0.9, seed=5) for _ in range(2))
    assert first == second
    with pytest.raises(ValueError, match="equal lengths"):
        acerbi_szekely(losses, np.full(2, 2.0), points, confidence=0.9)
    with pytest.raises(ValueError, match="not positive"):
        acerbi_szekely(losses, np.full(3, 2.0), -points, confidence=0.9)


def test_breach_sizes_by_hand() -> None:
    found = breach_sizes(np.array([1.0, 3.0, 8.0]), np.array([2.0, 2.0, 4.0]), np.array([3.0, 3.0, 5.0]))
    assert found == pytest.approx((1.3, 1.6, 0.75, 1.0))
    assert all(math.isnan(f) for f in breach_sizes(np.zeros(3), np.ones(3), np.ones(3)))


# ---- how the requirement moves -------------------------------------------------------------------------------------


def test_moves_of_the_requirement_by_hand() -> None:
    requirement = np.array([1.0, 1.2, 1.5, 3.0, 2.0, 1.0])
    assert largest_increase(requirement, 1) == pytest.approx(1.0)  # 1.5 to 3
    assert largest_increase(requirement, 2) == pytest.approx(1.5)  # 1.2 to 3
    assert peak_to_trough(requirement, 1) == pytest.approx(2.0)
    assert peak_to_trough(requirement, 5) == pytest.approx(3.0)
    assert math.isnan(largest_increase(requirement, 6))
    assert math.isnan(peak_to_trough(requirement, 6))
    with pytest.raises(ValueError, match="not a positive number"):
        largest_increase(np.array([1.0, 0.0]), 1)


# ---- the whole law -------------------------------------------------------------------------------------------------


def test_uniform_ranks_pass_and_a_law_too_narrow_does_not() -> None:
    generator = np.random.Generator(np.random.Philox(key=31))
    normals = generator.standard_normal((300, 250))
    right = norm.cdf(normals)
    rejected = np.mean([berkowitz(row).p_value < 0.05 for row in right])
    assert abs(rejected - 0.05) < 4.0 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean([pit_uniformity(row).p_value < 0.05 for row in right]) < 0.12
    assert np.mean([berkowitz(norm.cdf(1.3 * row)).p_value < 0.05 for row in normals]) > 0.95


def test_berkowitz_sees_ranks_that_follow_each_other() -> None:
    generator = np.random.Generator(np.random.Philox(key=32))
    shocks = generator.standard_normal(1000)
    series = np.zeros(1000)
    for t in range(1, 1000):
        series[t] = 0.3 * series[t - 1] + math.sqrt(1.0 - 0.09) * shocks[t]
    assert berkowitz(norm.cdf(series)).p_value < 1e-6
    assert berkowitz(np.full(100, 0.5)).p_value == 0.0
    with pytest.raises(ValueError, match="too few"):
        berkowitz(np.full(9, 0.5))
    with pytest.raises(ValueError, match="finite"):
        pit_uniformity(np.array([0.5, math.nan]))
