"""Overlays along paths, against closed forms and plain loops; the common suite has their law of one step."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from aggregator import scenario_laws
from aggregator.errors import ConfigurationError
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.overlays.funding import FundingLaw, funding
from aggregator.overlays.jump_strata import JumpDesign
from aggregator.overlays.liquidity_drought import DroughtLaw, liquidity_drought, tail_depth
from aggregator.overlays.lst_discount import DiscountLaw, lst_discount
from aggregator.overlays.oracle_error import OracleLaw, oracle_error
from aggregator.overlays.partial_default import DefaultLaw
from aggregator.overlays.rare_jumps import RareJumps, rare_jumps
from aggregator.overlays.spot_vol import SpotVolRule, spot_vol
from aggregator.path_views import seen_moves
from aggregator.scenarios import ScenarioGenerator, draw_paths, draw_scenarios, scenario_weights
from aggregator.sobol_points import SobolDesign
from tests.overlay_laws import (
    BASE_FACTORS,
    CALM_COIN,
    OVERLAY_FACTORS,
    STD,
    STRESS,
    STRESSED_COIN,
    all_overlays,
    base_moves,
    default_moments,
)

STANDARD_ERRORS = 4.0  # of a Monte Carlo estimate at a fixed seed
RTOL = 1e-9  # sums of log-changes against levels, in float64
ATOL = 1e-15  # of a logarithm of order 0.1
SEED = 8
KEY = jax.random.key(SEED)
PATHS = 16_384
DAYS_PER_YEAR = 365.0


def assert_mean(values: np.ndarray, expected: float, what: object) -> None:
    """The mean of independent values [n] is the expected one within four standard errors."""
    error = float(np.std(values)) / math.sqrt(len(values))
    assert abs(float(np.mean(values)) - expected) <= STANDARD_ERRORS * error, (what, np.mean(values), expected, error)


def paths_of(generator: ScenarioGenerator, paths: int, steps: int) -> dict[str, np.ndarray]:
    """Log-changes [paths, steps] by factor."""
    drawn = np.asarray(draw_paths(generator, KEY, 0, paths, steps=steps))
    return {name: drawn[:, :, column] for column, name in enumerate(generator.factors)}


def test_the_wrapped_generator_keeps_its_bits() -> None:
    wrapped, plain = paths_of(all_overlays(), 512, 3), paths_of(base_moves(), 512, 3)
    assert tuple(wrapped) == OVERLAY_FACTORS
    for name in ("price:BTC", "price:ETH"):
        np.testing.assert_array_equal(wrapped[name], plain[name])
    # a coin that the base moves: the jump comes on top, and nothing until then
    until = np.cumsum(wrapped["peg:USDC"] != plain["peg:USDC"], axis=1) == 0
    assert 0.1 < (~until).mean() < 0.5
    assert (wrapped["peg:USDC"] - plain["peg:USDC"]).min() < -0.1
    np.testing.assert_array_equal(wrapped["peg:USDC"][until], plain["peg:USDC"][until])


def test_weights_of_the_wrapped_generator_are_kept() -> None:
    points = multivariate_t(BASE_FACTORS, STD, correlation=np.eye(3), nu=4.0, points=SobolDesign(jax.random.key(3), 5))
    overlaid = liquidity_drought(points, {"depth:BTC": DroughtLaw(0.03, 1.0, 0.1)})
    np.testing.assert_array_equal(scenario_weights(overlaid), scenario_weights(points))


# ---- jumps to partial default ----------------------------------------------------------------------------------------

COIN_STEPS = 4
COINS = {
    "peg:heals": CALM_COIN._replace(absorbing_probability=0.0),
    "peg:stays": CALM_COIN._replace(absorbing_probability=1.0, depth_a=0.5, depth_b=0.7),
    "peg:either": CALM_COIN,
    "peg:stressed": STRESSED_COIN,
}


@functools.cache
def coin_paths() -> dict[str, np.ndarray]:
    """Four coins over four half days."""
    return paths_of(rare_jumps(base_moves(), COINS, stress=STRESS, step_days=0.5), PATHS, COIN_STEPS)


def discount(name: str) -> np.ndarray:
    """D [PATHS, COIN_STEPS] of a coin."""
    return -np.expm1(np.cumsum(coin_paths()[name], axis=1))


@pytest.mark.parametrize("name", ["peg:heals", "peg:stays", "peg:either"])
def test_a_path_of_any_length_has_the_law_of_one_jump(name: str) -> None:
    law = COINS[name]
    rate = law.jumps_per_year / DAYS_PER_YEAR
    for steps in range(1, COIN_STEPS + 1):
        days, d = 0.5 * steps, discount(name)[:, steps - 1]
        assert_mean((d > 1e-12).astype(float), -math.expm1(-rate * days), (name, steps, "P(jump)"))
        # the closed form of the methodology, for the share that heals and the one that stays
        size, k, p = (
            law.depth_cap * law.depth_a / (law.depth_a + law.depth_b),
            law.recovery_per_day,
            law.absorbing_probability,
        )
        heals = rate * (math.exp(-rate * days) - math.exp(-k * days)) / (k - rate)
        expected = size * (p * -math.expm1(-rate * days) + (1.0 - p) * heals)
        assert_mean(d, expected, (name, steps, "E[D]"))
        first, second = default_moments(law, days, lambda x: x)
        assert math.isclose(first, expected, rel_tol=1e-3)  # 64 nodes, and a Beta density that is infinite at its ends
        assert_mean(d**2, second, (name, steps, "E[D^2]"))


def test_a_discount_heals_at_its_rate_or_stays_and_comes_once() -> None:
    decay = math.exp(-CALM_COIN.recovery_per_day * 0.5)
    for name, factor in (("peg:heals", decay), ("peg:stays", 1.0)):
        d = discount(name)
        jumped = d[:, :-1] > 1e-12
        np.testing.assert_allclose(d[:, 1:][jumped], factor * d[:, :-1][jumped], rtol=RTOL)
        assert d.max() < CALM_COIN.depth_cap
        assert not (coin_paths()[name][:, 0][d[:, 0] <= 1e-12]).any()
    d = discount("peg:either")
    jumped = d[:, 0] > 1e-12
    stays = np.isclose(d[jumped, 1], d[jumped, 0], rtol=RTOL)
    np.testing.assert_allclose(d[jumped, 1][~stays], decay * d[jumped, 0][~stays], rtol=RTOL)
    assert_mean(stays.astype(float), CALM_COIN.absorbing_probability, "share that stays")


def test_depths_are_beta_times_the_cap() -> None:
    tables = np.asarray(rare_jumps(base_moves(), COINS, stress=STRESS).rates.depths)
    nodes = np.linspace(-37.0, 37.0, tables.shape[1])
    between = np.linspace(-30.0, 30.0, 997)
    for (name, law), table in zip(COINS.items(), tables, strict=True):
        # from the nearer end, as u close to 1 has no digits left
        lower = stats.beta.ppf(1.0 / (1.0 + np.exp(-between)), law.depth_a, law.depth_b)
        upper = stats.beta.isf(1.0 / (1.0 + np.exp(between)), law.depth_a, law.depth_b)
        exact = law.depth_cap * np.where(between < 0.0, lower, upper)
        assert np.abs(np.interp(between, nodes, table) - exact).max() < 1e-4 * law.depth_cap, name
    law, d = COINS["peg:stays"], discount("peg:stays")[:, -1]
    assert stats.kstest(d[d > 1e-12] / law.depth_cap, "beta", (law.depth_a, law.depth_b)).pvalue > 1e-3


def test_stress_raises_the_hazard_of_its_step() -> None:
    rate = 0.5 * STRESSED_COIN.jumps_per_year / DAYS_PER_YEAR
    stress = np.maximum(-coin_paths()["price:BTC"] / (STRESS.daily_std * math.sqrt(0.5)), 0.0)
    hazard = rate * np.exp(STRESSED_COIN.stress_loading * stress)
    jumped = (discount("peg:stressed")[:, 0] > 1e-12).astype(float)
    assert_mean(jumped + np.expm1(-hazard[:, 0]), 0.0, "P(jump | stress)")
    calm, wild = stress[:, 0] == 0.0, stress[:, 0] > 2.0
    assert_mean(jumped[calm], -math.expm1(-rate), "without stress")
    assert jumped[wild].mean() > 2.0 * jumped[calm].mean()


# ---- rare jumps in strata --------------------------------------------------------------------------------------------

RARE = {
    "peg:USDC": DefaultLaw(0.5, 2.0, 3.0, 0.4, 0.5, 0.25),
    "peg:DAI": DefaultLaw(0.3, 1.0, 4.0, 0.3, 0.5, 0.1, stress_loading=0.5),
    "peg:never": DefaultLaw(0.0, 1.0, 4.0, 0.3, 0.5),
    "discount:wstETH": DefaultLaw(0.25, 2.0, 4.0, 0.15, 0.05),
}
STRATIFIED = 16_384


def rare_design(**changes: Any) -> JumpDesign:
    return JumpDesign(KEY, STRATIFIED, 2048)._replace(**changes)


def prices_at_points() -> ScenarioGenerator:
    """BTC, ETH and a coin from eight scrambles of weighted points."""
    return multivariate_t(BASE_FACTORS, STD, correlation=np.eye(3), nu=4.0, points=SobolDesign(KEY, 11))


@functools.cache
def rare_set(with_points: bool, steps: int = 1) -> tuple[RareJumps, dict[str, np.ndarray], np.ndarray]:
    """The generator, the discounts [STRATIFIED] after `steps` half days by coin, and the weights."""
    base = prices_at_points() if with_points else base_moves()
    generator = rare_jumps(base, RARE, stress=STRESS, step_days=0.5, design=rare_design(steps=steps))
    drawn = np.asarray(draw_paths(generator, KEY, 0, STRATIFIED, steps=steps)).sum(axis=1)
    below = np.asarray(draw_paths(base, KEY, 0, STRATIFIED, steps=steps)).sum(axis=1)
    plain = dict(zip(base.factors, below.T, strict=True))
    moves = {name: drawn[:, generator.factors.index(name)] - plain.get(name, 0.0) for name in RARE}
    weights = np.asarray(scenario_weights(generator))
    return generator, {name: -np.expm1(move) for name, move in moves.items()}, weights


def assert_weighted_mean(values: np.ndarray, weights: np.ndarray, expected: float, what: object) -> None:
    """Within four standard errors, those of the eight blocks: what is stratified has less than independent draws."""
    shares = weights.reshape(8, -1) / weights.reshape(8, -1).sum(axis=1, keepdims=True)
    blocks = (shares * values.reshape(8, -1)).sum(axis=1)
    error = float(np.std(blocks, ddof=1)) / math.sqrt(8)
    got = float(weights @ values)
    assert abs(got - expected) <= STANDARD_ERRORS * error + 1e-12 * abs(expected), (what, got, expected, error)


@pytest.mark.parametrize("with_points", [False, True])
def test_rare_jumps_in_strata_keep_their_law(with_points: bool) -> None:
    _, discounts, weights = rare_set(with_points)
    for name in ("peg:USDC", "discount:wstETH"):
        law, d = RARE[name], discounts[name]
        jumps = d > 1e-12
        probability = -math.expm1(-law.jumps_per_year / DAYS_PER_YEAR * 0.5)
        assert_weighted_mean(jumps.astype(float), weights, probability, (name, "P(jump)"))
        first, second = default_moments(law, 0.5, lambda x: x)
        assert_weighted_mean(d, weights, first, (name, "E[D]"))
        assert_weighted_mean(d**2, weights, second, (name, "E[D^2]"))
        # a few expected in as many independent draws, hundreds here
        assert probability * STRATIFIED < 12 < 400 < jumps.sum()
        # the error of the mean of D: at most a fifth of that of independent draws
        blocks = (weights * d).reshape(8, -1).sum(axis=1) * 8
        assert np.std(blocks, ddof=1) / math.sqrt(8) < 0.2 * math.sqrt((second - first**2) / STRATIFIED)
    assert not (discounts["peg:never"] > 1e-12).any()


def test_strata_hold_every_scenario_once_and_weigh_one_on_average() -> None:
    generator, discounts, weights = rare_set(False)
    assert generator.strata is not None
    coin, ratios = np.asarray(generator.strata.coin), np.asarray(generator.strata.ratios)
    assert math.isclose(weights.sum(), 1.0, rel_tol=1e-12)
    np.testing.assert_allclose(ratios.reshape(8, -1).mean(axis=1), 1.0, rtol=1e-12)
    assert ratios.max() <= 1.0 / (1.0 - JumpDesign(KEY, 1).share) * (1.0 + 1e-12)
    names = list(RARE)
    for number in (0, 3):  # one band: everybody of the stratum jumps; those before it never do without stress
        assert (discounts[names[number]][coin == number] > 1e-12).all()
    assert not (discounts["peg:USDC"][coin > 0] > 1e-12).any()
    counts = np.array([np.bincount(block, minlength=5) for block in coin.reshape(8, -1)])
    assert (counts == counts[0]).all()
    assert counts[0][2] == 0
    # of the two bands of DAI the first is that of its hazard without stress, to which stress adds
    dai = (discounts["peg:DAI"] > 1e-12).astype(float)
    assert weights @ dai > -math.expm1(-RARE["peg:DAI"].jumps_per_year / DAYS_PER_YEAR * 0.5)


def test_stress_hastens_rare_jumps_as_much_with_strata_as_without() -> None:
    generator, discounts, weights = rare_set(False)
    prices = np.asarray(draw_scenarios(generator, KEY, 0, STRATIFIED))[:, generator.factors.index("price:BTC")]
    stress = np.maximum(-prices / (STRESS.daily_std * math.sqrt(0.5)), 0.0)
    law = RARE["peg:DAI"]
    hazard = 0.5 * law.jumps_per_year / DAYS_PER_YEAR * np.exp(law.stress_loading * stress)
    jumped = (discounts["peg:DAI"] > 1e-12).astype(float)
    assert_weighted_mean(jumped + np.expm1(-hazard), weights, 0.0, "P(jump | stress)")


def test_strata_of_a_path_are_those_of_all_its_steps() -> None:
    generator, discounts, weights = rare_set(False, steps=4)
    law, d = RARE["peg:USDC"], discounts["peg:USDC"]
    assert_weighted_mean(
        (d > 1e-12).astype(float), weights, -math.expm1(-2.0 * law.jumps_per_year / DAYS_PER_YEAR), "P(jump)"
    )
    assert_weighted_mean(d, weights, float(default_moments(law, 2.0, lambda x: x)[0]), "E[D]")
    assert generator.own_weights is not None


def test_strata_on_points_multiply_their_weights() -> None:
    generator, _, weights = rare_set(True)
    assert generator.strata is not None
    below, ratios = np.asarray(scenario_weights(generator.base)), np.asarray(generator.strata.ratios)
    np.testing.assert_allclose(weights, below * ratios / (below @ ratios), rtol=1e-12)
    # a scramble holds its share of the jumps
    np.testing.assert_allclose(weights.reshape(8, -1).sum(axis=1), 0.125, rtol=0.01)


def test_strata_are_refused_where_they_cannot_be() -> None:
    for design, words in (
        (rare_design(scenarios=100), "100 scenarios are too few for 4 kinds of rare jumps"),
        (rare_design(share=0.7), "share of rare jumps is 0.7"),
        (rare_design(scenarios=8192), "strata of 8192 scenarios on a generator that has 16384"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            rare_jumps(prices_at_points(), RARE, stress=STRESS, design=design)
    stratified = rare_jumps(base_moves(), {"peg:USDC": CALM_COIN}, design=rare_design())
    with pytest.raises(ConfigurationError, match="stratified already"):
        rare_jumps(stratified, {"peg:X": CALM_COIN}, design=rare_design())


# ---- mean reversion --------------------------------------------------------------------------------------------------


def test_a_discount_is_the_exact_mean_reverting_process() -> None:
    today = -0.03
    law = DiscountLaw(0.004, 5.0, -0.002, 0.3, latest=today)
    paths = paths_of(lst_discount(base_moves(), {"discount:X": law, "peg:USDC": law}, step_days=0.5), PATHS, 4)
    level = today + np.cumsum(paths["discount:X"], axis=1)
    k = law.reversion_per_day
    deviation = law.daily_std * math.sqrt(2.0 * k / -math.expm1(-2.0 * k))
    for steps in (1, 2, 4):
        known = scenario_laws.mean_reverting_step(
            today, reversion=k, level=law.mean, deviation=deviation, step=0.5 * steps
        )
        x = level[:, steps - 1]
        assert_mean(x, known.mean, (steps, "mean"))
        assert_mean((x - known.mean) ** 2, known.variance, (steps, "variance"))
    one_day = scenario_laws.mean_reverting_step(today, reversion=k, level=law.mean, deviation=deviation, step=1.0)
    assert math.isclose(one_day.variance, law.daily_std**2, rel_tol=1e-12)
    # a factor of the base moves by both
    assert_mean(paths["peg:USDC"][:, 0] ** 2 - paths["discount:X"][:, 0] ** 2, STD["peg:USDC"] ** 2, "peg:USDC")


FUNDING_STEPS = 3
RATE = FundingLaw(interval_hours=8.0, kappa=0.3, theta=1e-4, sigma=2e-4, cap=1.0, latest=5e-4)
HELD = RATE._replace(cap=3e-4)
SURE = RATE._replace(sigma=0.0, interval_hours=1.0)


@functools.cache
def funding_paths() -> dict[str, np.ndarray]:
    """Funding over steps of eight hours: one interval, or eight of the rate without noise."""
    laws = {"funding:BTC": RATE, "funding:ETH": HELD, "funding:SOL": SURE}
    return paths_of(funding(base_moves(), laws, step_days=1.0 / 3.0), PATHS, FUNDING_STEPS)


def test_funding_is_the_exact_mean_reverting_process_at_every_interval() -> None:
    for step in range(FUNDING_STEPS):
        known = scenario_laws.mean_reverting_step(
            RATE.latest, reversion=RATE.kappa, level=RATE.theta, deviation=RATE.sigma, step=step + 1.0
        )
        paid = funding_paths()["funding:BTC"][:, step]
        assert_mean(paid, known.mean, (step, "mean"))
        assert_mean((paid - known.mean) ** 2, known.variance, (step, "variance"))
        assert stats.kstest(paid, "norm", (known.mean, math.sqrt(known.variance))).pvalue > 1e-3
    first, second = (funding_paths()["funding:BTC"][:, step] for step in (0, 1))
    rest = second - RATE.theta - math.exp(-RATE.kappa) * (first - RATE.theta)
    assert_mean(rest * (first - first.mean()), 0.0, "the noise of an interval is its own")


def test_what_is_paid_is_held_within_the_cap_and_the_process_is_not() -> None:
    known = scenario_laws.mean_reverting_step(
        HELD.latest, reversion=HELD.kappa, level=HELD.theta, deviation=HELD.sigma, step=2.0
    )
    std = math.sqrt(known.variance)
    paid = funding_paths()["funding:ETH"][:, 1]
    assert np.abs(paid).max() == HELD.cap
    low, high = (-HELD.cap - known.mean) / std, (HELD.cap - known.mean) / std
    inside = known.mean * (stats.norm.cdf(high) - stats.norm.cdf(low)) - std * (
        stats.norm.pdf(high) - stats.norm.pdf(low)
    )
    expected = inside + HELD.cap * (stats.norm.sf(high) - stats.norm.cdf(low))
    assert_mean(paid, expected, "mean of the clipped normal")


def test_a_step_pays_all_of_its_intervals() -> None:
    decay = math.exp(-SURE.kappa)
    rates = SURE.theta + (SURE.latest - SURE.theta) * decay ** np.arange(1, 8 * FUNDING_STEPS + 1)
    expected = rates.reshape(FUNDING_STEPS, 8).sum(axis=1)
    np.testing.assert_allclose(funding_paths()["funding:SOL"], np.tile(expected, (PATHS, 1)), rtol=1e-12)


# ---- followers of the price ------------------------------------------------------------------------------------------

STEPS = 8
FOLLOWERS = 512
DEVIATION, HEARTBEAT, DELAY, OUTAGE = 0.03, 3, 2, 3
ORACLES = {
    "oracle:live": OracleLaw("price:BTC"),
    "oracle:late": OracleLaw("price:ETH", delay_steps=DELAY),
    "oracle:lazy": OracleLaw("price:BTC", deviation=DEVIATION, heartbeat_steps=HEARTBEAT),
    "oracle:patient": OracleLaw("price:BTC", deviation=DEVIATION),
    "oracle:frozen": OracleLaw("price:BTC", outages_per_year=60.0, outage_steps=OUTAGE, feed="desk"),
    "oracle:frozen too": OracleLaw("price:ETH", outages_per_year=60.0, outage_steps=OUTAGE, feed="desk"),
    "oracle:wrong": OracleLaw("price:BTC", errors_per_year=90.0, error_std=0.2, error_steps=2),
}
RULE = SpotVolRule(beta=-0.5, eta=0.0, beta_abs=0.6, mean_abs=0.02, reversion_per_day=0.2, level=0.1)
DROUGHT = DroughtLaw(daily_std=0.03, sensitivity=0.5, least=0.4)


@functools.cache
def followers() -> dict[str, np.ndarray]:
    """Everything that is a function of prices, and oracles that fail at times."""
    generator: ScenarioGenerator = spot_vol(base_moves(), {"vol:BTC": RULE})
    generator = liquidity_drought(generator, {"depth:BTC": DROUGHT})
    return paths_of(oracle_error(generator, ORACLES), FOLLOWERS, STEPS)


def ratio(name: str) -> np.ndarray:
    """ln(M / P) [FOLLOWERS, STEPS] of an oracle."""
    return np.cumsum(followers()[name], axis=1)


def levels(name: str) -> np.ndarray:
    """Log-price [FOLLOWERS, STEPS] over today's."""
    return np.cumsum(followers()[name], axis=1)


def test_implied_volatility_follows_its_rule_and_reverts() -> None:
    y = np.zeros(FOLLOWERS)
    pull = -math.expm1(-RULE.reversion_per_day)
    for step in range(STEPS):
        r = followers()["price:BTC"][:, step]
        change = RULE.beta * r + RULE.beta_abs * (np.abs(r) - RULE.mean_abs) - pull * (y - RULE.level)
        np.testing.assert_allclose(followers()["vol:BTC"][:, step], change, rtol=RTOL, atol=ATOL)
        y = y + change


def test_depth_is_a_function_of_the_cumulative_move_with_a_floor() -> None:
    depth = np.exp(np.cumsum(followers()["depth:BTC"], axis=1))
    expected = np.maximum(DROUGHT.least, np.exp(-DROUGHT.sensitivity * np.abs(levels("price:BTC")) / DROUGHT.daily_std))
    np.testing.assert_allclose(depth, expected, rtol=RTOL)
    assert np.isclose(depth, DROUGHT.least).any()
    assert (np.diff(depth, axis=1) > 0.0).any()  # books fill again when the price comes back


def test_a_perfect_oracle_is_the_price_to_the_bit() -> None:
    assert not followers()["oracle:live"].any()


def test_a_late_oracle_reports_the_price_of_some_steps_ago() -> None:
    price = levels("price:ETH")
    past = np.concatenate([np.zeros((FOLLOWERS, DELAY)), price[:, :-DELAY]], axis=1)
    np.testing.assert_allclose(ratio("oracle:late"), past - price, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(("name", "heartbeat"), [("oracle:lazy", HEARTBEAT), ("oracle:patient", STEPS + 1)])
def test_an_oracle_moves_on_a_deviation_or_its_heartbeat(name: str, heartbeat: int) -> None:
    price, mark, age = levels("price:BTC"), np.zeros(FOLLOWERS), np.zeros(FOLLOWERS)
    moved_late = 0
    for step in range(STEPS):
        age = age + 1
        deviates = np.abs(np.exp(price[:, step] - mark) - 1.0) > DEVIATION
        due = deviates | (age >= heartbeat)
        moved_late += int((due & ~deviates).sum())
        mark, age = np.where(due, price[:, step], mark), np.where(due, 0, age)
        np.testing.assert_allclose(ratio(name)[:, step], mark - price[:, step], rtol=RTOL, atol=ATOL)
    assert (moved_late > 0) == (heartbeat <= STEPS)


def test_an_outage_freezes_all_oracles_of_its_feed_for_its_length() -> None:
    frozen = np.abs(ratio("oracle:frozen")) > 1e-12
    np.testing.assert_array_equal(frozen, np.abs(ratio("oracle:frozen too")) > 1e-12)
    probability = -math.expm1(-60.0 / DAYS_PER_YEAR)
    assert_mean(frozen[:, 0].astype(float), probability, "outage in the first step")
    began = frozen[:, 0]
    assert frozen[began, :OUTAGE].all()
    assert_mean(frozen[began, OUTAGE].astype(float), probability, "another one behind it")
    mark = ratio("oracle:frozen") + levels("price:BTC")
    np.testing.assert_allclose(mark[began, :OUTAGE], 0.0, atol=ATOL)  # today's mark all the while
    np.testing.assert_allclose(ratio("oracle:frozen")[~frozen], 0.0, atol=ATOL)


def test_a_wrong_oracle_errs_by_one_factor_for_its_spell() -> None:
    wrong = ratio("oracle:wrong")
    probability = -math.expm1(-90.0 / DAYS_PER_YEAR)
    hit = np.abs(wrong[:, 0]) > 1e-12
    assert_mean(hit.astype(float), probability, "error in the first step")
    np.testing.assert_allclose(wrong[hit, 1], wrong[hit, 0], rtol=RTOL)
    assert_mean((np.abs(wrong[hit, 2]) > 1e-12).astype(float), probability, "another one behind it")
    assert stats.kstest(wrong[hit, 0], "norm", (0.0, 0.2)).pvalue > 1e-3


def test_the_depth_of_the_tail_is_that_of_the_widest_moves() -> None:
    rng = np.random.default_rng(5)
    moves, weights = rng.normal(0.0, 0.03, 999), rng.random(999)
    weights /= weights.sum()
    tail, expected, left = 0.05, 0.0, 0.05
    for place in sorted(range(999), key=lambda s: -abs(moves[s])):
        counted = min(float(weights[place]), left)
        expected += counted * max(DROUGHT.least, math.exp(-DROUGHT.sensitivity * abs(moves[place]) / DROUGHT.daily_std))
        left -= counted
    assert math.isclose(tail_depth(DROUGHT, moves, weights, tail=tail), expected / tail, rel_tol=1e-9)
    assert tail_depth(DROUGHT, 0.0 * moves, weights, tail=tail) == pytest.approx(1.0)
    assert tail_depth(DROUGHT._replace(sensitivity=50.0), moves, weights, tail=tail) == pytest.approx(DROUGHT.least)


# ---- what paths read -------------------------------------------------------------------------------------------------


def test_triggers_see_the_price_at_the_mark_and_funding_beyond_todays_rate() -> None:
    generator: ScenarioGenerator = oracle_error(base_moves(), {"oracle:BTC": OracleLaw("price:BTC", delay_steps=1)})
    generator = funding(generator, {"funding:ETH": SURE, "funding:BTC": RATE}, step_days=1.0 / 3.0)
    drawn = draw_paths(generator, KEY, 0, 256, steps=3)
    of = {name: np.asarray(drawn[:, :, column]) for column, name in enumerate(generator.factors)}
    factors = base_moves().factors
    moves, paid = (np.asarray(part) for part in seen_moves(generator, factors, drawn))
    btc, eth, coin = (factors.index(name) for name in ("price:BTC", "price:ETH", "peg:USDC"))
    # a mark that is one step late: nothing in the first, then the move of the step before
    np.testing.assert_allclose(moves[:, 0, btc], 0.0, atol=ATOL)
    np.testing.assert_allclose(moves[:, 1:, btc], of["price:BTC"][:, :-1], rtol=RTOL, atol=ATOL)
    np.testing.assert_array_equal(moves[:, :, eth], of["price:ETH"])
    np.testing.assert_array_equal(moves[:, :, coin], of["peg:USDC"])
    # eight intervals of an hour, and one of eight hours, at the latest rate
    np.testing.assert_allclose(paid[:, :, eth], of["funding:ETH"] - 8.0 * SURE.latest, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(paid[:, :, btc], of["funding:BTC"] - RATE.latest, rtol=RTOL, atol=ATOL)
    assert not paid[:, :, coin].any()


def test_without_oracles_and_funding_paths_see_what_is_drawn() -> None:
    drawn = draw_paths(base_moves(), KEY, 0, 256, steps=2)
    moves, paid = seen_moves(base_moves(), base_moves().factors, drawn)
    np.testing.assert_array_equal(moves, drawn)
    assert not np.asarray(paid).any()
